"""``results.log_posterior(priors)`` of an NLME fit: its marginal likelihood with priors, to be sampled."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError, nearest
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
from jaxnlme.calibration.problem import no_nan
from jaxnlme.error_models import density_given_sd
from jaxnlme.nlme.conditional import conditional_mode, natural, phi_at
from jaxnlme.nlme.evaluate import derivatives
from jaxnlme.nlme.method import AbstractMarginalMethod
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.numerics.small_linalg import cholesky, solve_lower
from jaxnlme.priors import LKJ, LKJMargin
from jaxnlme.priors.densities import lkj_log_constant
from jaxnlme.results.nlme_compute import reported_covariance, variance_parameters

if TYPE_CHECKING:
    from jaxnlme.results.nlme import NLMEResults

__all__ = ["NLMEDensity", "log_posterior"]

STEP = 3e-3  # of differences of gradients, in standard errors
STEPS = 30  # of a chain for the random effects of one draw
EFFECTS = ("individual", "new", "population")


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
    row
        (m, n) row of the fit's table in each place of the padded arrays, -1 for padding.
    """

    problem: NLMEProblem
    method: AbstractMarginalMethod
    base: Float[Array, "d"]
    take: Any
    scale: Float[Array, "p"]
    concentration: Any = None
    row: Any = None

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

    def replicate(self, theta, rng, noise, re):
        kinds = {None: "individual", "conditional": "individual"}
        effects = kinds.get(re, re)
        if effects not in EFFECTS:
            raise ModelSpecError(
                f"posterior_predictive(re={re!r}): use one of {list(EFFECTS)}."
                + nearest(str(re), EFFECTS)
            )
        row = np.asarray(self.row)
        order = np.argsort(row[row >= 0])
        seeds = rng.integers(2**32, size=(len(theta), 2), dtype=np.uint32)
        model, simulated = (
            np.asarray(a)[:, row >= 0][:, order] for a in _replicated(effects, self, theta, seeds)
        )
        out = {"values": np.asarray(self.problem.y)[row >= 0][order]}
        out["times"], out["model"] = np.arange(len(order), dtype=float), model
        return {**out, "simulated": simulated} if noise else out


def _log_density(problem: NLMEProblem, params: NLMEParams, u: Array) -> Array:
    """Log p(y, u) of each group, up to a constant."""
    nat = natural(problem, params)
    f = derivatives(problem, phi_at(problem, params, u), 0)[0]
    error = jnp.sum(density_given_sd(
        problem.response(), f, problem.error_model.sd(f, nat.error), problem.weights
    ), 1)  # fmt: skip
    return -error - 0.5 * jnp.sum(u**2, -1)


def _conditional_draw(problem: NLMEProblem, params: NLMEParams, key: Any) -> Array:
    """Draw spherical random effects (m, q) given the data and the parameters.

    From the normal approximation at the mode, then Metropolis steps: in turn from that approximation with
    twice its width, for tails, and around the present place. Where the model is linear in the random effects
    the first draw is exact already, and stays so.
    """
    m, q, dtype = problem.num_groups, problem.num_random, problem.y.dtype
    mode = conditional_mode(problem, params, jnp.zeros((m, q), dtype))
    width, stride = 2.0, 2.4 / max(q, 1) ** 0.5

    def place(v: Array) -> Array:
        return mode.u + solve_lower(mode.low, v[..., None], transpose=True)[..., 0]

    def step(k: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        v, log_p = carry
        first, second = jax.random.split(jax.random.fold_in(key, k))
        z = jax.random.normal(first, (m, q), dtype)
        wide = k % 2 == 0
        new = jnp.where(wide, width * z, v + stride * z)
        new_log_p = no_nan(_log_density(problem, params, place(new)))
        back = 0.5 / width**2 * jnp.sum(new**2 - v**2, -1)
        ratio = new_log_p - log_p + jnp.where(wide, back, jnp.zeros_like(back))
        accept = jnp.log(jax.random.uniform(second, (m,), dtype)) < ratio
        return jnp.where(accept[:, None], new, v), jnp.where(accept, new_log_p, log_p)

    v = jax.random.normal(key, (m, q), dtype)
    start = (v, no_nan(_log_density(problem, params, place(v))))
    return place(jax.lax.fori_loop(0, STEPS, step, start)[0])


@functools.partial(outer_jit, static_argnums=0)
def _replicated(effects: str, density: NLMEDensity, theta: Array, seeds: Array) -> Any:
    """Predictions and simulated responses (s, m, n) at draws (s, p)."""
    problem = density.problem
    # Rows of weight 0 and of padding are predicted too: the latter hold copies of data.
    shown = eqx.tree_at(lambda p: p.weights, problem, jnp.ones_like(problem.weights))
    w = jnp.where(problem.weights > 0, problem.weights, jnp.ones_like(problem.weights))

    def one(given: Any) -> tuple[Array, Array]:
        point, seed = given
        params, _ = density.params(point)
        first, second = jax.random.split(jax.random.wrap_key_data(seed, impl="threefry2x32"))
        shape = (problem.num_groups, problem.num_random)
        if effects == "individual":
            u = _conditional_draw(problem, params, first)
        elif effects == "new":
            u = jax.random.normal(first, shape, point.dtype)
        else:
            u = jnp.zeros(shape, point.dtype)
        f = derivatives(shown, phi_at(shown, params, u), 0)[0]
        sd = problem.error_model.sd(f, problem.error_model.natural(params.error)) / jnp.sqrt(w)
        y = f + sd * jax.random.normal(second, f.shape, point.dtype)
        return (jnp.exp(f), jnp.exp(y)) if problem.error_model.log_scale else (f, y)

    return jax.lax.map(one, (theta, seeds))


def lkj_beyond_margins(concentration: Any, low: Array, own: Any) -> Array:
    """Log LKJ density of a correlation matrix less the log densities of its entries' marginals.

    Each correlation of an r by r matrix has the density ``(1 - c^2)^(concentration + r/2 - 2)`` (Lewandowski,
    Kurowicka and Joe 2009), normalised, which is the prior that it gets alone.
    """
    r = low.shape[0]
    eta = jnp.asarray(concentration, low.dtype)
    logdet = 2 * jnp.sum(jnp.log(jnp.stack([low[k, k] for k in range(r)])))
    margins = [jnp.log1p(-(value**2)) for (i, j), value in own if i != j]
    # A marginal is the density of two effects with a larger concentration.
    constant = lkj_log_constant(eta, r) - len(margins) * lkj_log_constant(eta + (r / 2 - 1), 2)
    return (eta - 1) * logdet - (eta + (r / 2 - 2)) * sum(margins) - constant


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
        row=_table_rows(results),
    )
    identity = ("NLME", method.name, problem.error_model.name, spec.formula, problem.model.function)
    return fitted_posterior(
        density, sampled, chosen, covariance[np.ix_(free, free)], response=spec.response_name,
        identity=identity,
    )  # fmt: skip


def _table_rows(results: NLMEResults) -> np.ndarray:
    layout = results._grouping.layout
    row = np.full(np.shape(results._problem.y), -1, np.int32)
    row[layout.codes, layout.position] = np.arange(len(layout.codes))
    return row


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
