"""``results.log_posterior(priors)``: the likelihood of a fit with priors on its parameters, to be sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
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
from jaxnlme.glm.evaluate import Layout, lay_out
from jaxnlme.glm.problem import GLMProblem
from jaxnlme.results.glm_compute import natural_slopes

if TYPE_CHECKING:
    from jaxnlme.results.glm import GLMResults

__all__ = ["GLMDensity", "log_posterior"]


class GLMDensity(AbstractFittedDensity):
    """Log-likelihood of a GLM in its free coefficients, family scalars and dispersion.

    Attributes
    ----------
    problem
        Rows in blocks, no penalty.
    base
        (P,) held coefficients (link scale) in the order of the blocks, 0 for aliased ones.
    take
        (P,) position in theta of each coefficient; p where it is held.
    constant
        (k, c) what the log-likelihood adds to minus the cost, where that does not depend on theta.
    phi
        Dispersion where it is held.
    """

    problem: GLMProblem
    base: Float[Array, "P"]
    take: Any
    constant: Any
    phi: Any
    scalars: tuple[tuple[int, int], ...] = eqx.field(static=True)  # (place in theta, link)
    phi_at: int | None = eqx.field(static=True)
    squared: bool = eqx.field(static=True)  # the dispersion is given as a standard deviation

    def rows(self, theta):
        layout = lay_out(self.problem)
        family, links, live = layout.family, layout.links, layout.weights > 0
        etas = self._predictors(layout, theta)
        parameters = [link.inverse(eta) for link, eta in zip(links, etas, strict=True)]
        inside = family.valid(*parameters)
        for link, eta in zip(links, etas, strict=True):
            inside = inside & link.valid(eta)
        if family.has_dispersion:
            phi = self.phi if self.phi_at is None else self._scale(theta[self.phi_at])
            phi = jnp.broadcast_to(jnp.asarray(phi, etas[0].dtype), live.shape)
            inside = inside & (phi > 0)
            rows = family.log_likelihood(layout.y, layout.weights, *parameters, phi)
        elif family.fisher_scoring:  # closer to the edges of its range than the density is
            rows = self.constant - family.working(links, layout.y, layout.weights, tuple(etas))[0]
        else:
            rows = family.log_likelihood(layout.y, layout.weights, *parameters)
        rows = jnp.where(inside, rows, jnp.full_like(rows, -jnp.inf))
        return jnp.where(live, rows, jnp.zeros_like(rows)).reshape(-1)

    def _scale(self, value: Array) -> Array:
        return value * jnp.abs(value) if self.squared else value

    def _predictors(self, layout: Layout, theta: Array) -> list[Array]:
        linked = jnp.asarray(theta)
        for place, link in self.scalars:
            linked = linked.at[place].set(layout.links[link].link(theta[place]))
        extended = jnp.concatenate([linked, jnp.zeros_like(theta[:1])])
        b = jnp.where(self.take < theta.shape[0], extended[self.take], self.base)
        live = layout.weights > 0
        first = jnp.argmax(live.reshape(-1))
        # Rows of padding take the place of a live one: nothing there may be infinite or NaN.
        return [jnp.where(live, e, e.reshape(-1)[first]) for e in layout.linear(b)]

    @property
    def live(self):
        return np.asarray(self.problem.weights).reshape(-1) > 0

    def replicate(self, theta, rng, noise, re):
        family, live = self.problem.family, self.live
        if re is not None:
            raise ModelSpecError(
                f"posterior_predictive(re={re!r}): a GLM has no random effects; leave it out."
            )
        if family.classes is not None:
            raise ModelSpecError(
                f"posterior_predictive: the response of family {family.name!r} is a label; use predict() and "
                "simulate() of the fit."
            )
        parameters, observed = (jax.tree.map(np.asarray, a) for a in _replicates(self, theta))
        mean = np.asarray(parameters[0])[:, live]
        others = [np.asarray(p)[:, live] for p in parameters[1]]
        out = {"values": np.asarray(observed)[live], "model": mean}
        out["times"] = np.arange(live.sum(), dtype=float)
        if noise:
            weights = np.asarray(self.problem.weights).reshape(-1)[live]
            out["simulated"] = np.stack([
                np.asarray(family.sample(rng, weights, *(o[k] for o in others)), float).reshape(
                    -1, live.sum()
                )[0]
                for k in range(len(mean))
            ])  # fmt: skip
        return out


@outer_jit
def _replicates(density: GLMDensity, theta: Array) -> Any:
    """Means and parameters (s, n) at draws, and the observed responses (n,)."""
    layout = lay_out(density.problem)
    family = layout.family

    def one(point: Array) -> Any:
        etas = density._predictors(layout, point)
        parameters = [link.inverse(e) for link, e in zip(layout.links, etas, strict=True)]
        mean = family.mean(*parameters)
        if family.has_dispersion:
            phi = density.phi if density.phi_at is None else density._scale(point[density.phi_at])
            parameters.append(jnp.broadcast_to(jnp.asarray(phi, mean.dtype), mean.shape))
        return mean.reshape(-1), tuple(p.reshape(-1) for p in parameters)

    return jax.lax.map(one, theta), family.observed(layout.y).reshape(-1)


@outer_jit
def _constants(problem: GLMProblem) -> Array:
    """What the log-likelihood of each row adds to minus its cost, found at R's start of the mean."""
    layout = lay_out(problem)
    mean = layout.family.start_mean(layout.y, layout.weights)
    cost = layout.family.working(
        layout.links, layout.y, layout.weights, (layout.links[0].link(mean),)
    )[0]
    rows = layout.family.log_likelihood(layout.y, layout.weights, mean) + cost
    return jnp.where(layout.weights > 0, rows, jnp.zeros_like(rows))


@host64
def log_posterior(
    results: GLMResults, priors: Any, fix: Mapping[str, Any] | None
) -> FittedPosterior:
    """Body of :meth:`GLMResults.log_posterior`."""
    _refuse_glm(results)
    spec, host, problem = results._spec, results._host, results._problem
    family, evaluator = problem.family, results._evaluator
    sampled, covariance = _glm_parameters(results)
    hold(sampled, fix)
    chosen = read_priors(priors, sampled)
    free = np.array([s.free for s in sampled])
    place = np.where(free, np.cumsum(free) - 1, free.sum())
    width, order = len(host.params), evaluator.order
    hidden = np.flatnonzero(~spec.listed)
    base = np.array([s.held or 0.0 for s in sampled[:width]])
    for k in hidden:
        if sampled[k].held is not None:
            base[k] = float(np.asarray(problem.links[spec.predictor[k]].link(np.float64(base[k]))))
    last = sampled[-1] if family.has_dispersion else None
    squared, phi = family.dispersion_name == "sigma", None
    if last is not None and last.held is not None:
        phi = last.held**2 if squared else last.held
    prepared = evaluator.prepared
    plain = family.fisher_scoring and not family.has_dispersion
    density = GLMDensity(
        problem=prepared,
        base=base[order],
        take=place[:width][order].astype(np.int32),
        constant=np.asarray(_constants(prepared)) if plain else None,
        phi=phi,
        scalars=tuple((int(place[k]), int(spec.predictor[k])) for k in hidden if free[k]),
        phi_at=None if last is None or not last.free else int(place[-1]),
        squared=squared,
    )
    links = ", ".join(link.name for link in problem.links)
    return fitted_posterior(
        density, sampled, chosen, covariance[np.ix_(free, free)], response=spec.response,
        identity=("GLM", family.name, links, spec.formula),
    )  # fmt: skip


def _refuse_glm(results: GLMResults) -> None:
    problem = results._problem
    if not problem.family.has_likelihood:
        raise ModelSpecError(
            f"log_posterior: family {problem.family.name!r} has no likelihood; fit a full family (poisson, "
            "negative_binomial, binomial, beta_binomial, ...)."
        )
    if not problem.penalty.trivial or problem.penalty.jeffreys:
        raise ModelSpecError(
            "log_posterior: the fit is penalised (alpha=, penalty= or priors= of fit_glm), and a penalty is a "
            "prior: fit without it, and give all priors here."
        )
    if problem.bounded or problem.constraint is not None:
        raise ModelSpecError(
            "log_posterior: the fit has bounds= or a linear constraint; fit without them, and give bounded "
            "coefficients a prior Bound(prior, lower, upper)."
        )


def _glm_parameters(results: GLMResults) -> tuple[list[Sampled], np.ndarray]:
    """All coefficients, then the dispersion; and the covariance of these on the natural scale."""
    spec, host, problem = results._spec, results._host, results._problem
    family, labels = problem.family, spec.all_labels
    natural, slopes = np.array(host.params), np.ones(len(labels))
    hidden = np.flatnonzero(~spec.listed)
    if len(hidden):
        natural[hidden] = results.family_params.values
        links = tuple(problem.links[k] for k in spec.predictor[hidden])
        slopes[hidden] = natural_slopes(links, host.params[hidden])
    held = np.full(len(labels), np.nan) if problem.held is None else problem.held
    sampled = []
    for k, label in enumerate(labels):
        link = problem.links[spec.predictor[k]]
        positive = not spec.listed[k] and link.name == "log"
        sampled.append(Sampled(
            label, float(natural[k]), kind="positive" if positive else "any",
            group="fixed" if spec.listed[k] else None,
            held=None if np.isnan(held[k]) else float(natural[k]),
            note="aliased with other columns" if host.aliased[k] else "",
        ))  # fmt: skip
    covariance = slopes[:, None] * results._covariance() * slopes
    name = family.dispersion_name
    if family.has_dispersion and name is not None:
        if name in labels:
            raise ModelSpecError(
                f"log_posterior: a coefficient has the label {name!r} of the dispersion; rename that column."
            )
        phi, df = results.dispersion, max(results.df_resid, 1)
        value = np.sqrt(phi) if name == "sigma" else phi
        variance = value**2 / (2 * df) if name == "sigma" else 2 * value**2 / df
        sampled.append(Sampled(name, float(value), kind="positive"))
        wide = np.zeros((len(labels) + 1,) * 2)
        wide[:-1, :-1], wide[-1, -1] = covariance, variance
        covariance = wide
    return sampled, covariance
