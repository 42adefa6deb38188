"""The data and the model of one nonlinear mixed-effects fit, as a pytree.

``phi_ij = A_ij beta + B_ij b_i`` on the transformed scale, ``b_i = L(theta) u_i`` with ``u_i ~ N(0, I)``,
``y_ij = f(g^-1(phi_ij), x_ij) + sd e_ij``. Groups are padded to equal length with weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxnlme._typing import Array, Float, PyTree, Shaped
from jaxnlme.covariance import Covariance
from jaxnlme.error_models import AbstractErrorModel
from jaxnlme.numerics.bijectors import AbstractBijector


class NLMEParams(eqx.Module):
    """Parameters on the scale of the optimisers.

    Parameters
    ----------
    beta
        Fixed effects, transformed scale.
    theta
        Free entries of the Cholesky factors of the random-effect covariance (absolute scale, not
        logged; see :mod:`jaxnlme.covariance`).
    error
        Parameters of the error model, unconstrained (positive ones logged).
    """

    beta: Shaped[Array, "f"]
    theta: Shaped[Array, "t"]
    error: Shaped[Array, "k"]

    def flat(self) -> Shaped[Array, "d"]:
        """Return one vector: beta, theta, error."""
        parts = [self.beta, self.theta, self.error]
        if all(isinstance(p, np.ndarray) for p in parts):  # on the host, nothing is compiled
            return np.concatenate(parts)
        return jnp.concatenate(parts)

    def unflat(self, x: Float[Array, "d"]) -> NLMEParams:
        """Return parameters of the same sizes read from a vector."""
        f, t = self.beta.shape[0], self.theta.shape[0]
        return NLMEParams(x[:f], x[f : f + t], x[f + t :])


class StructuralModel(eqx.Module):
    """How one group's predictions are computed from its parameters.

    Parameters
    ----------
    function
        With ``kind="row"``: ``function(params, x) -> scalar`` for one row, dicts of scalars.
        ``kind="group"``: ``function(params, x) -> (n,)``, ``x`` a dict of arrays over the group's rows.
        ``kind="matlab"``: ``function(phi, x)`` or ``function(phi, x, v)`` with ``phi (p,)``, ``x (n, h)``,
        returning ``(n,)`` and acting row by row.
    parameters
        Names of the parameters in the order of ``phi``.
    """

    function: Callable = eqx.field(static=True)
    parameters: tuple[str, ...] = eqx.field(static=True)
    kind: str = eqx.field(static=True, default="row")

    def row(self, phi: Sequence[Float[Array, ""]], x: PyTree, v: PyTree) -> Float[Array, ""]:
        """Predict one row from the p natural-scale parameters."""
        if self.kind == "row":
            return jnp.asarray(self.function(self._named(phi), x))
        rows = {k: a[None] for k, a in x.items()} if isinstance(x, dict) else x[None]
        return self.group(phi, rows, v)[0]

    def group(self, phi: Sequence[Float[Array, ""]], x: PyTree, v: PyTree) -> Float[Array, "n"]:
        """Predict all rows of one group from the p natural-scale parameters."""
        if self.kind == "matlab":
            vector = jnp.stack(list(phi))
            out = self.function(vector, x) if v is None else self.function(vector, x, v)
            return jnp.reshape(jnp.asarray(out), (x.shape[0],))
        return jnp.asarray(self.function(self._named(phi), x))

    def _named(self, phi):
        return dict(zip(self.parameters, phi, strict=True))


class NLMEProblem(eqx.Module):
    """Arrays and nouns of one data set. Batches exist only through ``vmap`` or ``lax.map``.

    Parameters
    ----------
    y, weights
        Responses and prior weights per group and row; weight 0 marks padding.
    x
        Pytree of predictor arrays ``(m, n, ...)``; padded rows hold copies of real rows.
    v
        Pytree of group predictors ``(m, ...)`` or None.
    A, B
        Designs of fixed and random effects, ``(m or 1, n or 1, p, f)`` and ``(m or 1, n or 1, p, q)``; an
        axis of length 1 means constant along it. ``q`` counts all levels and copies.
    beta0
        Start values of the fixed effects.
    free
        Which parameters move: an :class:`NLMEParams` of booleans.
    prior
        Optional log prior density, a pytree with ``log_prob(params, problem) -> scalar``.
    chunk
        Groups handled at once by the likelihood; memory is bounded by it.
    """

    y: Float[Array, "m n"]
    weights: Float[Array, "m n"]
    x: PyTree
    v: PyTree
    A: Float[Array, "ma na p f"]
    B: Float[Array, "mb nb p q"]
    beta0: Float[Array, "f"]
    free: NLMEParams
    model: StructuralModel
    transforms: tuple[AbstractBijector, ...]
    covariance: Covariance
    error_model: AbstractErrorModel
    prior: PyTree = None
    chunk: int = eqx.field(static=True, default=512)

    @property
    def num_groups(self) -> int:
        """Groups including padded ones."""
        return self.y.shape[0]

    @property
    def num_fixed(self) -> int:
        return self.A.shape[-1]

    @property
    def num_random(self) -> int:
        return self.B.shape[-1]

    def response(self) -> Float[Array, "m n"]:
        """Return y, or log y for log-scale error models."""
        if not self.error_model.log_scale:
            return self.y
        return jnp.log(jnp.where(self.weights > 0, self.y, 1.0))

    def log_jacobian(self) -> Float[Array, ""]:
        """Return what the density of y adds to that of the response: -sum log y on the log scale."""
        if not self.error_model.log_scale:
            return jnp.zeros((), self.y.dtype)
        return -jnp.sum(self.response())

    def num_rows(self) -> Float[Array, ""]:
        """Rows of positive weight."""
        return jnp.sum(self.weights > 0).astype(self.y.dtype)


def free_all(num_fixed: int, num_theta: int, num_error: int) -> NLMEParams:
    """Return a mask in which every parameter is estimated."""
    return NLMEParams(
        jnp.ones(num_fixed, bool), jnp.ones(num_theta, bool), jnp.ones(num_error, bool)
    )


def unknown_params(problem: NLMEProblem) -> NLMEParams:
    """Return start parameters with the covariance and the error left to the method (NaN)."""
    dtype = problem.y.dtype
    return NLMEParams(
        beta=problem.beta0.astype(dtype),
        theta=jnp.full(problem.covariance.num_theta, jnp.nan, dtype),
        error=jnp.full(len(problem.error_model.parameters), jnp.nan, dtype),
    )


def has_row_designs(problem: NLMEProblem) -> bool:
    """True when the parameters of a group may differ from row to row (static)."""
    return problem.A.shape[1] > 1 or problem.B.shape[1] > 1
