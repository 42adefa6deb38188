"""Laplace's approximation of the marginal likelihood, and adaptive Gauss-Hermite quadrature on it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme._errors import ModelSpecError
from jaxnlme.error_models import negative_log_density
from jaxnlme.nlme.conditional import (
    Joint,
    conditional_mode,
    implicit_mode,
    natural,
    phi_at,
)
from jaxnlme.nlme.evaluate import derivatives, taylor
from jaxnlme.nlme.method import AbstractMarginalMethod, Inner
from jaxnlme.numerics.quadrature import gauss_hermite
from jaxnlme.numerics.small_linalg import cholesky, logdet, solve_lower


class Laplace(AbstractMarginalMethod):
    """``log L_i = log p(y_i, u_i) - 1/2 log det H_i`` with the full Hessian H of -log p(y_i, u) at its mode.

    Parameters
    ----------
    tolerance
        Stop when half the Newton decrement of -log L is below it.

    Notes
    -----
    Wolfinger (1993); ``-n/2 log 2 pi`` is kept. Tested against ``exact_*.json`` (laplace, laplace_at_ml).
    A group whose Hessian is not positive definite at the mode gives NaN, so the step is rejected.
    """

    tolerance: float = eqx.field(default=1e-9, kw_only=True)

    @property
    def name(self) -> str:
        return "Laplace"

    def hold(self, problem, params, u0):
        return _mode_and_derivatives(problem, params, u0)

    def groups(self, problem, params, held):
        return _laplace(problem, params, held)[0]


class AGQ(AbstractMarginalMethod):
    """Adaptive Gauss-Hermite quadrature: a tensor grid at the mode, scaled by the Hessian there.

    Parameters
    ----------
    num_nodes
        Nodes per random effect; 1 is Laplace's approximation.
    tolerance
        Stop when half the Newton decrement of -log L is below it.

    Raises
    ------
    ModelSpecError
        When the grid would hold more than 200,000 points per group.

    Notes
    -----
    Pinheiro and Bates (1995), eq. 2.9: ``log L_i = -1/2 log det H + log sum_k w_k exp(|z_k|^2 / 2 + log p(y_i,
    u_i + H^-1/2 z_k))`` with ``H^-1/2`` the inverse transposed Cholesky factor. Tested against
    ``exact_*.json`` (ml_agq).
    """

    num_nodes: int = eqx.field(static=True, default=9)
    tolerance: float = eqx.field(default=1e-9, kw_only=True)

    @property
    def name(self) -> str:
        return "AGQ"

    def __check_init__(self):
        if int(self.num_nodes) != self.num_nodes or self.num_nodes < 1:
            raise ModelSpecError(f"AGQ(num_nodes={self.num_nodes!r}): give a whole number >= 1.")

    def hold(self, problem, params, u0):
        return _mode_and_derivatives(problem, params, u0)

    def groups(self, problem, params, held):
        inner, u = _laplace(problem, params, held)
        mode, everything = held
        if self.num_nodes == 1:
            return inner
        q = problem.num_random
        nodes, log_weights = gauss_hermite(self.num_nodes, q)
        dtype = u.dtype
        z = jnp.asarray(nodes, dtype)
        logs = jnp.asarray(log_weights, dtype)
        nat = natural(problem, params)
        phi = phi_at(problem, params, u)
        f, J, K = taylor(phi, mode.evaluation.aux[0], everything)
        joint = Joint(problem, nat, u, f, J)
        chol = cholesky(joint.hessian(*joint.slopes_and_curvatures(), K))
        offsets = solve_lower(
            chol, jnp.broadcast_to(z.T, (*chol.shape[:-1], z.shape[0])), transpose=True
        )

        def at_node(node):
            shift, squared, log_weight = node
            v = u + shift
            target = phi_at(problem, params, v)
            hat = jax.lax.stop_gradient(target)
            (f,) = taylor(target, hat, derivatives(problem, hat, 1))
            nll = negative_log_density(
                problem.error_model, problem.response(), f, problem.weights, nat.error
            )
            joint = -jnp.sum(nll, 1) - 0.5 * jnp.sum(v**2, -1)
            return log_weight + 0.5 * squared + joint

        xs = (jnp.moveaxis(offsets, -1, 0), jnp.sum(z**2, -1), logs)
        # Nodes are mapped in slices, so that memory stays that of a few hundred nodes.
        values = jax.lax.map(jax.checkpoint(at_node), xs, batch_size=min(256, z.shape[0]))
        total = jax.scipy.special.logsumexp(values, axis=0) - 0.5 * logdet(chol)
        return inner._replace(log_likelihood=total)


def _mode_and_derivatives(problem, params, u0):
    mode = conditional_mode(problem, params, u0)
    return mode, derivatives(problem, mode.evaluation.aux[0], 3)


def _laplace(problem, params, held):
    """Laplace's approximation per group, and the mode as a function of params."""
    mode, everything = held
    u = implicit_mode(problem, params, mode, mode.low)
    f, J, K = taylor(phi_at(problem, params, u), mode.evaluation.aux[0], everything)
    joint = Joint(problem, natural(problem, params), u, f, J)
    hessian = joint.hessian(*joint.slopes_and_curvatures(), K)
    value = -joint.value() - 0.5 * logdet(cholesky(hessian))
    return Inner(value, mode.u, mode.converged, *everything[:2]), u
