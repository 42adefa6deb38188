"""Fitted models as densities: priors on the parameters of a GLM or mixed model, its likelihood, and starts."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError, nearest, some
from jaxnlme._precision import host64
from jaxnlme._typing import Array, Float
from jaxnlme.calibration.likelihoods import AbstractLikelihood, VariableData
from jaxnlme.calibration.parameters import ParameterSet, PriorDensity
from jaxnlme.calibration.problem import Posterior, make_posterior
from jaxnlme.priors.base import AbstractPrior, as_key
from jaxnlme.priors.bounded import as_prior

__all__ = [
    "AbstractFittedDensity",
    "FittedPosterior",
    "Sampled",
    "emulated_posterior",
    "fitted_posterior",
    "read_priors",
    "read_problem",
]


class AbstractFittedDensity(eqx.Module):
    """The likelihood of a fitted model at its sampled parameters, data as leaves."""

    @abc.abstractmethod
    def rows(self, theta: Float[Array, "p"]) -> Float[Array, "n"]:
        """Return the log-likelihood of each independent piece of data (row or group); traced."""

    def log_likelihood(self, theta: Float[Array, "p"]) -> Float[Array, ""]:
        """Return their sum; traced."""
        return jnp.sum(self.rows(theta))

    @property
    @abc.abstractmethod
    def live(self) -> np.ndarray:
        """(n,) bool: which pieces are data, the others are padding (host)."""

    @abc.abstractmethod
    def replicate(
        self, theta: np.ndarray, rng: np.random.Generator, noise: bool, re: str | None
    ) -> dict[str, np.ndarray]:
        """Return observed values, means and simulated responses at draws (s, p) (host).

        ``re`` says which random effects a mixed model has; others refuse it.
        """


class FittedData(VariableData):
    """Data of a fitted model in the place of observations of a variable."""

    density: Any = None


class FittedLikelihood(AbstractLikelihood):
    """The likelihood that the model was fitted by."""

    def prepare(self, observation):
        raise ModelSpecError("the likelihood of a fitted model takes no other observations.")

    def log_prob(self, data, model, params):
        assert isinstance(data, FittedData)
        return data.density.log_likelihood(model)

    def pointwise(self, data, model, params):
        assert isinstance(data, FittedData)
        return data.density.rows(model)


class Coefficients(eqx.Module):
    """The parameter vector itself: what the likelihood of a fitted model is a function of.

    ``function`` identifies the fitted model in chain files: texts and functions.
    """

    variable: str = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    function: tuple[Any, ...] = eqx.field(static=True)

    def __call__(self, params: dict[str, Any]) -> dict[str, Array]:
        return {self.variable: jnp.stack([params[name] for name in self.names])}


class _All(eqx.Module):
    """Every element of the output, whose length is known."""

    length: int = eqx.field(static=True)

    def __iter__(self) -> Any:
        return iter((None, self.length))


class FittedPosterior(Posterior):
    """Priors times the likelihood of a fitted model: sampled like any other posterior.

    ``names`` are labels of the fit. Densities are on the natural scale (coefficients as reported,
    standard deviations and error parameters themselves); positive parameters are sampled as
    logarithms, their Jacobian included.

    Attributes
    ----------
    estimate : ndarray (p,)
        The fit's estimates, natural scale; NaN where it has none.
    """

    estimate: Any = None
    centre: Any = None  # on the line
    root: Any = None  # of the covariance on the line

    @property
    def parameters(self) -> ParameterSet:
        """Names, priors and transforms."""
        out = ParameterSet()
        for name, prior, transform in zip(
            self.names, self.prior.priors, self.prior.transforms, strict=True
        ):
            out.add(name, prior, transform)
        return out

    @property
    def density(self) -> AbstractFittedDensity:
        """The likelihood with its data."""
        (data,) = self.data
        assert isinstance(data, FittedData)
        return data.density

    @host64
    def starts(self, n: Any, key: Any = 0, spread: Any = 1.0) -> Any:
        """Return (n, p) start points: normal around the estimates with the fit's covariance.

        The draws are made on the unconstrained scale, ``spread`` multiplies their standard deviations; a
        parameter without estimate or standard error is drawn around the median of its prior.
        """
        noise = jax.random.normal(as_key(key), (int(n), len(self.names)), jnp.float64)
        u = self.centre + float(spread) * np.asarray(noise) @ np.asarray(self.root).T
        return np.array(_from_line(self.prior, u))


@outer_jit
def _from_line(prior: PriorDensity, u: Array) -> Array:
    return jax.vmap(lambda one: prior.unconstrained(one)[0])(u)


@outer_jit
def _onto_line(prior: PriorDensity, theta: Array, middle: Array) -> tuple[Array, Array]:
    """Points (p,) on the line, medians where a point has none, and d line / d natural there."""
    places, slopes = [], []
    for k, one in enumerate(prior.priors):
        x = theta[k]
        median = one._icdf(middle)
        inside = jnp.isfinite(x) & jnp.isfinite(one._log_prob(x)) & jnp.isfinite(one._to_line(x))
        x = jnp.where(inside, x, median)
        u, slope = jax.jvp(one._to_line, (x,), (jnp.ones_like(x),))
        places.append(u)
        slopes.append(jnp.where(inside, slope, jnp.nan))
    return jnp.stack(places), jnp.stack(slopes)


@dataclasses.dataclass
class Sampled:
    """One parameter that a fitted model can be sampled in.

    Attributes
    ----------
    name
        Label of the fit.
    estimate
        Natural scale, NaN where there is none.
    kind
        ``"any"``, ``"positive"`` or ``"correlation"``: what values it can have.
    group
        Word that names it together with others in ``priors`` (``"fixed"``, ``"sd"``), or None.
    held
        Its value where the fit or ``fix=`` holds it, else None.
    note
        Why it cannot be sampled (aliased), else empty.
    """

    name: str
    estimate: float
    kind: str = "any"
    group: str | None = None
    held: float | None = None
    note: str = ""

    @property
    def free(self) -> bool:
        """Whether it is sampled."""
        return self.held is None and not self.note


def hold(sampled: Sequence[Sampled], fix: Mapping[str, Any] | None) -> None:
    """Mark what ``fix=`` holds, natural scale."""
    by_name = {s.name: s for s in sampled}
    for name, value in (fix or {}).items():
        if name not in by_name:
            raise ModelSpecError(
                f"fix: {name!r} is no parameter of the fit; they are {some(by_name, 12)}."
                + nearest(str(name), by_name)
            )
        if isinstance(value, bool) or not np.isscalar(value) or not np.isfinite(value):  # pyright: ignore
            raise ModelSpecError(f"fix[{name!r}]={value!r} must be a finite number.")
        one = by_name[name]
        if one.kind == "positive" and not float(value) > 0:  # pyright: ignore[reportArgumentType]
            raise ModelSpecError(f"fix[{name!r}]={value!r} must be positive.")
        if one.note:
            raise ModelSpecError(f"fix: {name!r} is {one.note}.")
        one.held = float(value)  # pyright: ignore[reportArgumentType]


def read_priors(priors: Any, sampled: Sequence[Sampled]) -> list[AbstractPrior]:
    """Return one prior for each free parameter, in order.

    Raises
    ------
    ModelSpecError
        An unknown name, no prior, a parameter without prior, one that is held or aliased, or a prior whose
        support is not that of the parameter.
    """
    if not isinstance(priors, Mapping):
        raise ModelSpecError(
            f"priors={priors!r}: give a dict of priors by label, such as {{'fixed': Normal(0, 2.5)}}."
        )
    by_name = {s.name: s for s in sampled}
    words = dict.fromkeys(s.group for s in sampled if s.group is not None)
    for name in priors:
        if name in words:
            continue
        if name not in by_name:
            known = [*words, *(s.name for s in sampled if s.free)]
            raise ModelSpecError(
                f"priors names {name!r}; use one of {some(known, 12)}." + nearest(str(name), known)
            )
        one = by_name[name]
        if one.note:
            raise ModelSpecError(f"priors: {name!r} is {one.note}; leave its prior out.")
        if one.held is not None:
            raise ModelSpecError(
                f"priors: {name!r} is held at {one.held:g}; leave its prior out, or do not hold it."
            )
    free = [s for s in sampled if s.free]
    missing = [s.name for s in free if s.name not in priors and s.group not in priors]
    if missing:
        groups = [w for w in words if any(s.group == w for s in free if s.name in missing)]
        hint = f" ({', '.join(map(repr, groups))} names all of its kind)" if groups else ""
        raise ModelSpecError(
            f"priors: no prior for {some(missing, 12)}; give one by label{hint}, or hold the parameter at a "
            "value by fix=."
        )
    if not free:
        raise ModelSpecError("log_posterior: every parameter is held; there is nothing to sample.")
    return [_prior(s, priors) for s in free]


def _prior(one: Sampled, priors: Mapping[str, Any]) -> AbstractPrior:
    key = one.name if one.name in priors else str(one.group)
    prior = as_prior(priors[key], argument=f"priors[{key!r}]")
    low, high = (float(v) for v in prior.support)
    if one.kind == "positive" and low < 0:
        raise ModelSpecError(
            f"priors[{key!r}]={prior!r} reaches below 0, but {one.name!r} is positive: use HalfNormal, Gamma, "
            "LogNormal, ... or Bound(prior, lower=0)."
        )
    if one.kind == "correlation" and (low < -1 or high > 1):
        raise ModelSpecError(
            f"priors[{key!r}]={prior!r} reaches beyond [-1, 1], but {one.name!r} is a correlation: use "
            "Uniform(-1, 1) or Bound(prior, -1, 1), or 'cor' with LKJ()."
        )
    return prior


def fitted_posterior(
    density: AbstractFittedDensity,
    sampled: Sequence[Sampled],
    priors: Sequence[AbstractPrior],
    covariance: np.ndarray,
    *,
    response: str,
    identity: tuple[Any, ...],
) -> FittedPosterior:
    """Put priors and the likelihood of a fit together.

    Parameters
    ----------
    density
        Likelihood of the free parameters, natural scale, in their order.
    sampled
        All parameters; the free ones are sampled.
    priors
        One per free parameter.
    covariance
        Of the free parameters, natural scale; NaN where there is none.
    response
        Name of the response.
    identity
        Texts and functions that tell this model from others, for chain files.
    """
    free = [s for s in sampled if s.free]
    names = tuple(s.name for s in free)
    parameters = ParameterSet()
    for one, prior in zip(free, priors, strict=True):
        parameters.add(one.name, prior, "log" if one.kind == "positive" else None)
    prior = parameters.density()
    estimate = np.array([s.estimate for s in free], float)
    centre, slopes = (np.asarray(a) for a in _onto_line(prior, estimate, np.float64(0.5)))
    p = len(names)
    empty = np.zeros(1)
    data = FittedData(
        times=empty, values=empty, sigma=None, relative=None, whiten=None, log_norm=0.0,
        reference_weights=None, scale=None, rho=None, index=_All(p), name=response, density=density,
    )  # fmt: skip
    return FittedPosterior(
        prior=prior,
        model=Coefficients(response, names, identity),
        data=(data,),
        likelihoods=(FittedLikelihood(),),
        batch=max(1, min(128, 2**22 // max(len(density.live), 1))),
        estimate=estimate,
        centre=centre,
        root=_root(slopes[:, None] * np.asarray(covariance, float) * slopes),
    )


def emulated_posterior(
    density: AbstractFittedDensity, prior: PriorDensity, near: np.ndarray, response: str
) -> FittedPosterior:
    """Put priors and the likelihood of an emulator together.

    Parameters
    ----------
    density
        Likelihood in the parameters of the prior.
    prior
        Priors and transforms.
    near
        (m, p) natural points; starts are drawn from their normal distribution on the line.
    response
        Name of what is emulated.
    """
    names, empty = prior.names, np.zeros(1)
    line = np.asarray(_to_line_many(prior, near))
    data = FittedData(
        times=empty, values=empty, sigma=None, relative=None, whiten=None, log_norm=0.0,
        reference_weights=None, scale=None, rho=None, index=_All(len(names)), name=response,
        density=density,
    )  # fmt: skip
    return FittedPosterior(
        prior=prior,
        model=Coefficients(response, names, ("emulator",)),
        data=(data,),
        likelihoods=(FittedLikelihood(),),
        batch=128,
        estimate=near.mean(axis=0),
        centre=line.mean(axis=0),
        root=_root(np.cov(line.T).reshape(len(names), len(names))),
    )


@outer_jit
def _to_line_many(prior: PriorDensity, theta: Array) -> Array:
    return jax.vmap(prior.to_line)(theta)


def _root(covariance: np.ndarray) -> np.ndarray:
    """A root of a covariance; a parameter without variance gets the standard deviation 0.5 alone."""
    good = np.isfinite(covariance).any(axis=1) & (np.nan_to_num(np.diag(covariance)) > 0)
    safe = np.where(good[:, None] & good, np.nan_to_num(covariance), 0.0)
    sd = np.where(good, np.sqrt(np.where(good, np.diag(safe), 1.0)), 0.5)
    values, vectors = np.linalg.eigh(safe / sd[:, None] / sd + np.diag(np.where(good, 0.0, 1.0)))
    return sd[:, None] * vectors * np.sqrt(np.maximum(values, 1e-8))


def read_problem(
    parameters: Any, target: Any, runner: Any, likelihood: Any = None, *, blobs: Any = None
) -> tuple[Posterior, ParameterSet]:
    """Return the posterior and its parameters, of a fitted model or of priors, target and model.

    Raises
    ------
    ModelSpecError
        A fit in the place of its ``log_posterior(priors)``, or parts beside the posterior of a fit.
    """
    if isinstance(parameters, FittedPosterior):
        given = {"target": target, "runner": runner, "likelihood": likelihood, "blobs": blobs}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ModelSpecError(
                f"{extra[0]}= has no use beside the posterior of a fitted model; leave it out."
            )
        return parameters, parameters.parameters
    if hasattr(parameters, "log_posterior"):
        raise ModelSpecError(
            f"{type(parameters).__name__} is a fit, not a density: give fit.log_posterior(priors)."
        )
    return make_posterior(parameters, target, runner, likelihood, blobs=blobs), parameters
