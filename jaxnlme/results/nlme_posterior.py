"""``results.log_posterior(priors)`` of an NLME fit: its marginal likelihood with priors, to be sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme._precision import host64
from jaxnlme._typing import Array, Float
from jaxnlme.calibration.fitted import (
    AbstractFittedDensity,
    FittedPosterior,
    Sampled,
    fitted_posterior,
    hold,
    read_priors,
)
from jaxnlme.nlme.method import AbstractMarginalMethod
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.numerics.small_linalg import cholesky
from jaxnlme.priors import LKJ, LKJMargin
from jaxnlme.results.nlme_compute import reported_covariance, variance_parameters

if TYPE_CHECKING:
    from jaxnlme.results.nlme import NLMEResults

__all__ = ["NLMEDensity", "log_posterior"]

STEP = 3e-3  # of differences of gradients, in standard errors


class NLMEDensity(AbstractFittedDensity):
    """Marginal log-likelihood in fixed effects, standard deviations, correlations and error parameters.

    Attributes
    ----------
    base
        (d,) values of all parameters as reported, for those that are held.
    take
        (d,) position in theta; p where it is held.
    scale
        (p,) size of each free parameter's uncertainty.
    concentration
        Of the LKJ density of correlation matrices, None where correlations have priors of their own.
    """

    problem: NLMEProblem
    method: AbstractMarginalMethod
    base: Float[Array, "d"]
    take: Any
    scale: Float[Array, "p"]
    concentration: Any = None

    def params(self, theta: Float[Array, "p"]) -> tuple[NLMEParams, Float[Array, ""]]:
        """Return the parameters of the likelihood, and what an LKJ prior adds to those of the correlations."""
        extended = jnp.concatenate([theta, jnp.zeros_like(theta[:1])])
        x = jnp.where(self.take < theta.shape[0], extended[self.take], self.base)
        problem = self.problem
        f, at = problem.num_fixed, problem.num_fixed
        parts, extra = [], jnp.zeros_like(x[0])
        for block in problem.covariance.blocks:
            entries = block.entries
            own = dict(zip(entries, x[at : at + len(entries)], strict=True))
            at += len(entries)
            rows = [
                [jnp.ones_like(x[0]) if i == j else own.get((max(i, j), min(i, j)), 0.0 * x[0])
                 for j in range(block.size)] for i in range(block.size)
            ]  # fmt: skip
            low = cholesky(jnp.stack([jnp.stack(row) for row in rows]))
            parts += [own[i, i] * low[i, j] for i, j in entries]
            if self.concentration is not None and block.size > 2:
                extra = extra + lkj_beyond_margins(self.concentration, low, list(own.items()))
        error = x[at:]
        positive = jnp.array(problem.error_model.positive)
        error = jnp.where(positive, jnp.log(jnp.where(positive, error, 1.0)), error)
        theta_part = jnp.stack(parts) if parts else jnp.zeros(0, x.dtype)
        return NLMEParams(x[:f], theta_part, error), extra

    def rows(self, theta):
        params, _ = self.params(theta)
        u0 = jnp.zeros((self.problem.num_groups, self.problem.num_random), theta.dtype)
        value = self.method.inner(self.problem, params, u0).log_likelihood
        if self.problem.error_model.log_scale:
            value = value - jnp.sum(self.problem.response(), axis=1)
        return jnp.where(jnp.sum(self.problem.weights, axis=1) > 0, value, jnp.zeros_like(value))

    def log_likelihood(self, theta):
        return _value(theta, self)

    @property
    def live(self):
        return np.asarray(self.problem.weights).sum(axis=1) > 0

    def replicate(self, theta, rng, noise):
        raise ModelSpecError(
            "posterior_predictive: replicated responses of a mixed model need new random effects; use "
            "fit.with_params(draw).simulate(n) for draws of the chain."
        )


def lkj_beyond_margins(concentration: Any, low: Array, own: Any) -> Array:
    """Log LKJ density of a correlation matrix less the log densities of its entries' marginals.

    Each correlation of an r by r matrix has the density ``(1 - c^2)^(concentration + r/2 - 2)`` (Lewandowski,
    Kurowicka and Joe 2009), which is the prior that it gets alone; up to a constant.
    """
    r = low.shape[0]
    logdet = 2 * jnp.sum(jnp.log(jnp.stack([low[k, k] for k in range(r)])))
    margins = [jnp.log1p(-(value**2)) for (i, j), value in own if i != j]
    return (concentration - 1) * logdet - (concentration + r / 2 - 2) * sum(margins)


def _raw(theta: Array, density: NLMEDensity) -> Array:
    params, extra = density.params(theta)
    return density.method.log_likelihood(density.problem, params) + extra


# The mode of the random effects is an implicit function that can be differentiated once. For curvatures (Laplace's
# approximation) the derivative of the gradient is a central difference of gradients.
@jax.custom_jvp
def _value(theta: Array, density: NLMEDensity) -> Array:
    return _raw(theta, density)


@jax.custom_jvp
def _both(theta: Array, density: NLMEDensity) -> tuple[Array, Array]:
    return jax.value_and_grad(_raw)(theta, density)


@_value.defjvp
def _value_jvp(primals: Any, tangents: Any) -> Any:
    value, slope = _both(*primals)
    return value, jnp.sum(slope * tangents[0])


@_both.defjvp
def _both_jvp(primals: Any, tangents: Any) -> Any:
    theta, density = primals
    direction = tangents[0]
    size = jnp.max(jnp.abs(direction) / density.scale)
    step = STEP / jnp.maximum(size, jnp.finfo(theta.dtype).tiny)
    points = jnp.stack([theta + step * direction, theta - step * direction])
    slopes = jax.lax.map(lambda at: jax.grad(_raw)(at, density), points)
    value, slope = _both(theta, density)
    return (value, slope), (jnp.sum(slope * direction), (slopes[0] - slopes[1]) / (2 * step))


@host64
def log_posterior(
    results: NLMEResults, priors: Any, fix: Mapping[str, Any] | None
) -> FittedPosterior:
    """Body of :meth:`NLMEResults.log_posterior`."""
    method, problem, spec = results._method, results._problem, results._spec
    if not isinstance(method, AbstractMarginalMethod):
        raise ModelSpecError(
            f"log_posterior: {method.name} has no likelihood away from its estimate; fit with method='FOCE', "
            "'Laplace' or 'AGQ' (start=fit.params)."
        )
    if problem.prior is not None:
        raise ModelSpecError(
            "log_posterior: the fit has priors= already; fit without them, and give all priors here."
        )
    sampled, covariance = _nlme_parameters(results)
    hold(sampled, fix)
    priors, concentration = _spread_lkj(priors, results)
    chosen = read_priors(priors, sampled)
    free = np.array([s.free for s in sampled])
    place = np.where(free, np.cumsum(free) - 1, free.sum())
    values = np.array([s.estimate if s.held is None else s.held for s in sampled])
    se = np.sqrt(np.diag(covariance))[free]
    typical = 0.1 * np.maximum(np.abs(values[free]), 1e-2)
    density = NLMEDensity(
        problem=problem,
        method=method,
        base=values,
        take=place.astype(np.int32),
        scale=np.where(np.isfinite(se) & (se > 0), se, typical),
        concentration=concentration,
    )
    identity = ("NLME", method.name, problem.error_model.name, spec.formula, problem.model.function)
    return fitted_posterior(
        density, sampled, chosen, covariance[np.ix_(free, free)], response=spec.response_name,
        identity=identity,
    )  # fmt: skip


def _nlme_parameters(results: NLMEResults) -> tuple[list[Sampled], np.ndarray]:
    """All parameters as reported, and their covariance (blocks: fixed effects, variance parameters)."""
    spec, problem, e = results._spec, results._problem, results._estimates
    f = len(spec.fixed.labels)
    x = np.concatenate([e.theta, e.error])
    values = np.concatenate([e.beta, variance_parameters(problem, x)])
    free = np.asarray(problem.free.flat())
    t, positive = len(spec.theta_names), problem.error_model.positive
    kinds = ["any"] * f
    kinds += ["correlation" if n.startswith("cor(") else "positive" for n in spec.theta_names]
    kinds += ["positive" if yes else "any" for yes in positive]
    words = ["cor" if n.startswith("cor(") else "sd" for n in spec.theta_names]
    groups = [*["fixed"] * f, *words, *[None] * len(positive)]
    sampled = [
        Sampled(name, float(values[k]), kinds[k], groups[k],
                held=None if free[k] else float(values[k]))
        for k, name in enumerate(spec.all_names)
    ]  # fmt: skip
    covariance = np.full((f + t + len(positive),) * 2, np.nan)
    covariance[:f, f:] = covariance[f:, :f] = 0.0
    beta, variance = results._covariance
    covariance[:f, :f] = beta
    if variance is not None and np.isfinite(variance).all():
        covariance[f:, f:] = reported_covariance(problem, x, variance)
    return sampled, covariance


def _spread_lkj(priors: Any, results: NLMEResults) -> tuple[Any, Any]:
    """Replace ``"cor": LKJ(eta)`` by the priors of single correlations that it implies."""
    if not isinstance(priors, Mapping) or not isinstance(priors.get("cor"), LKJ):
        return priors, None
    spec, lkj = results._spec, priors["cor"]
    names = [n for n in spec.theta_names if n.startswith("cor(")]
    if any(n in priors for n in names):
        raise ModelSpecError(
            "priors: 'cor' with LKJ() is a density of whole matrices; leave the priors of single correlations out."
        )
    out = {k: v for k, v in priors.items() if k != "cor"}
    at = 0
    for block in results._problem.covariance.blocks:
        entries = block.entries
        if len(entries) not in (block.size, block.size * (block.size + 1) // 2):
            raise ModelSpecError(
                "priors['cor']: LKJ() is a density of full correlation matrices, but covariance= sets some "
                "entries to zero; give each correlation a prior by its label."
            )
        prior = LKJMargin(float(lkj.concentration), block.size)
        for name, (i, j) in zip(spec.theta_names[at : at + len(entries)], entries, strict=True):
            if i != j:
                out[name] = prior
        at += len(entries)
    return out, float(lkj.concentration)
