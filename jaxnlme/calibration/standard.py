"""Two changes of coordinates for expensive models: priors to standard normals, data to unit errors."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError
from jaxnlme._typing import Array, Float
from jaxnlme.calibration.fitted import FittedPosterior
from jaxnlme.calibration.likelihoods import GaussianLikelihood, VariableData
from jaxnlme.calibration.parameters import PriorDensity
from jaxnlme.calibration.problem import Posterior
from jaxnlme.numerics.mcmc import map_points
from jaxnlme.priors import LogNormal, Normal
from jaxnlme.priors.base import AbstractPrior

__all__ = ["WhitenedData", "from_standard", "gaussian_problem", "run_standard", "to_standard"]


def _from_standard(prior: AbstractPrior, x: Array) -> Array:
    if isinstance(prior, Normal):
        return prior.loc + prior.scale * x
    if isinstance(prior, LogNormal):
        return jnp.exp(prior.loc + prior.scale * x)
    tiny = jnp.finfo(x.dtype).eps / 4
    return prior._icdf(jnp.clip(ndtr(x), tiny, 1 - 2 * tiny))


def from_standard(prior: PriorDensity, x: Float[Array, "p"]) -> Float[Array, "p"]:
    """Return the natural point of standard normal coordinates: quantile by quantile, so that the prior is N(0, I)."""
    return jnp.stack([_from_standard(one, x[k]) for k, one in enumerate(prior.priors)])


def _to_standard(prior: AbstractPrior, theta: Array) -> Array:
    if isinstance(prior, Normal):
        return (theta - prior.loc) / prior.scale
    if isinstance(prior, LogNormal):
        positive = theta > 0
        log = jnp.log(jnp.where(positive, theta, jnp.ones_like(theta)))
        return jnp.where(positive, (log - prior.loc) / prior.scale, -jnp.inf)
    below, above = prior._log_cdf(theta), prior._log_sf(theta)
    tail = ndtri(jnp.clip(jnp.exp(jnp.minimum(below, above)), 1e-300, 0.5))
    return jnp.where(below < above, tail, -tail)


def to_standard(prior: PriorDensity, theta: Float[Array, "p"]) -> Float[Array, "p"]:
    """Invert :func:`from_standard`."""
    return jnp.stack([_to_standard(one, theta[k]) for k, one in enumerate(prior.priors)])


class WhitenedData(eqx.Module):
    """The data of a Gaussian likelihood in coordinates in which errors are independent with variance 1.

    The log likelihood of outputs g (n,) is ``constant - 0.5 |y - W g|^2``.

    Attributes
    ----------
    y
        (d,) data.
    parts
        One per variable: (d_v, n_v) matrices of W, or its diagonal (n_v,).
    constant
        Log likelihood where the model meets all data.
    """

    y: Any
    parts: tuple[Any, ...]
    constant: Any

    def whiten(self, outputs: np.ndarray) -> np.ndarray:
        """Return W g for rows (n, all observations); host."""
        pieces, at = [], 0
        for part in self.parts:
            own = outputs[:, at : at + part.shape[-1]]
            at += part.shape[-1]
            pieces.append(own * part if part.ndim == 1 else own @ part.T)
        return np.concatenate(pieces, axis=1)


def gaussian_problem(problem: Any, name: str) -> tuple[Posterior, WhitenedData]:
    """Return the posterior and its whitened data.

    Raises
    ------
    ModelSpecError
        The likelihood is not Gaussian with known errors.
    """
    posterior = getattr(problem, "posterior", problem)
    if not isinstance(posterior, Posterior) or isinstance(posterior, FittedPosterior):
        raise ModelSpecError(
            f"{name} needs a model with observations: a posterior from make_posterior(parameters, target, "
            f"runner) or an EnsembleSampler, got {type(problem).__name__}."
        )
    values, parts, constant = [], [], 0.0
    for data, likelihood in zip(posterior.data, posterior.likelihoods, strict=True):
        if not isinstance(likelihood, GaussianLikelihood):
            raise ModelSpecError(
                f"{name}: {data.name!r} has {type(likelihood).__name__}; only GaussianLikelihood has errors "
                "that are normal and do not depend on the model."
            )
        if data.names_used():
            raise ModelSpecError(
                f"{name}: the errors of {data.name!r} are the parameter {data.names_used()[0]!r}; give them "
                "as numbers."
            )
        simple = data.whiten is None and not data.discrepancy and data.reference == "none"
        slope, curvature, top = (np.asarray(a) for a in _quadratic(simple, likelihood, data))
        if simple:
            part = np.sqrt(-curvature)
            y = slope / part
        else:
            eigen, vectors = np.linalg.eigh(-curvature)
            kept = (
                eigen > 1e-12 * eigen[-1]
            )  # an unknown offset leaves a direction without information
            part = (vectors[:, kept] * np.sqrt(eigen[kept])).T
            y = vectors[:, kept].T @ slope / np.sqrt(eigen[kept])
        values.append(y)
        parts.append(part)
        constant += float(top) + 0.5 * float(y @ y)
    return posterior, WhitenedData(np.concatenate(values), tuple(parts), constant)


def _quadratic_form(simple: bool, likelihood: GaussianLikelihood, data: VariableData) -> Any:
    """Slope, curvature (its diagonal if it has no other entries) and value of the log likelihood at output 0."""
    zero = jnp.zeros_like(data.values)

    def value(g: Array) -> Array:
        return likelihood.log_prob(data, g, {})

    slope = jax.grad(value)(zero)
    if simple:
        curvature = jax.jvp(jax.grad(value), (zero,), (jnp.ones_like(zero),))[1]
    else:
        curvature = jax.hessian(value)(zero)
    return slope, curvature, value(zero)


_quadratic = outer_jit(_quadratic_form, static_argnums=0)


@outer_jit
def run_standard(posterior: Posterior, x: Array) -> tuple[Array, Array, Array]:
    """Run the model at standard coordinates (n, p): natural points, outputs (n, all observations), log priors."""

    def one(point: Array) -> tuple[Array, Array, Array]:
        theta = from_standard(posterior.prior, point)
        output = posterior.output(posterior.params(theta))
        flat = jnp.concatenate([output[d.name] for d in posterior.data])
        return theta, flat, posterior.prior.log_prob(theta)

    return map_points(one, x, posterior.batch)
