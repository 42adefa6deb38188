"""Priors made of other densities: cut off at bounds, or taken from numpyro."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError
from jaxnlme._precision import host64
from jaxnlme._typing import Array
from jaxnlme.priors.base import (
    INF,
    AbstractPrior,
    check_ordered,
    concrete,
    log_diff_exp,
    number,
)
from jaxnlme.priors.densities import Normal


class Bound(AbstractPrior):
    """Any prior cut off at ``lower`` and ``upper`` and divided by the mass that is left.

    One bound may be left out, and bounds may be nested.

    Parameters
    ----------
    prior
        Density to cut: any prior of this module with a distribution function.
    lower, upper
        Bounds on the natural scale, both inside the support.

    Raises
    ------
    ModelSpecError
        The bounds are missing, in the wrong order, or leave no mass.

    Examples
    --------
    >>> far = Bound(Normal(0.0, 1.0), lower=8.0, upper=9.0)
    >>> draws = far.sample(1000, key=1)
    >>> bool((draws >= 8).all() and (draws <= 9).all()), round(float(far.cdf(8.1)), 4)
    (True, 0.5584)
    """

    prior: AbstractPrior
    lower: Any  # -inf or inf where that side is open
    upper: Any
    log_mass: Any
    from_above: Any
    closed: tuple[bool, bool] = eqx.field(static=True)

    def __init__(self, prior: Any, lower: Any = None, upper: Any = None):
        prior = as_prior(prior, argument="prior")
        if lower is None and upper is None:
            raise ModelSpecError("Bound: give lower=, upper= or both.")
        for key, value in {"lower": lower, "upper": upper}.items():
            if value is not None and concrete(value) and not np.all(np.isfinite(value)):
                raise ModelSpecError(f"Bound: {key}={value!r} must be finite, or left out.")
        (low, high), (has_low, has_high) = prior.support, prior._ends()
        lower = low if lower is None else (_larger(lower, low) if has_low else lower)
        upper = high if upper is None else (-_larger(-upper, -high) if has_high else upper)
        lower, upper = number(lower), number(upper)
        check_ordered("Bound", lower, upper)
        self.prior, self.lower, self.upper = prior, lower, upper
        self.closed = (_bounded(lower), _bounded(upper))
        if any(not concrete(leaf) for leaf in jax.tree.leaves((prior, lower, upper))):
            self.log_mass, self.from_above = _log_mass(prior, lower, upper)
        else:
            self.log_mass, self.from_above = _host_mass(prior, lower, upper)
            if not np.isfinite(self.log_mass):
                raise ModelSpecError(
                    f"Bound: {prior!r} has no mass between {lower!r} and {upper!r}. Widen the bounds."
                )

    @property
    def support(self):
        return (self.lower if self.closed[0] else -INF, self.upper if self.closed[1] else INF)

    def _log_prob(self, x):
        inside = (x >= self.lower) & (x <= self.upper)
        safe = jnp.clip(x, self.lower, self.upper)
        return jnp.where(inside, self.prior._log_prob(safe) - self.log_mass, -jnp.inf)

    def _log_cdf(self, x):
        x = jnp.clip(x, self.lower, self.upper)
        return self._between(jnp.full_like(x, self.lower), x) - self.log_mass

    def _log_sf(self, x):
        x = jnp.clip(x, self.lower, self.upper)
        return self._between(x, jnp.full_like(x, self.upper)) - self.log_mass

    def _between(self, a, b):
        return _log_between(self.prior, a, b, self.from_above)


class TruncatedNormal(AbstractPrior):
    """Normal density cut off at ``lower`` and ``upper`` (None: not on that side).

    The same as ``Bound(Normal(loc, scale), lower, upper)``.

    Examples
    --------
    >>> round(float(TruncatedNormal(0.0, 1.0, lower=0.0).icdf(0.5)), 4)
    0.6745
    """

    bound: Bound

    def __init__(self, loc: Any = 0.0, scale: Any = 1.0, lower: Any = None, upper: Any = None):
        self.bound = Bound(Normal(loc, scale), lower, upper)

    @property
    def support(self):
        return self.bound.support

    def _log_prob(self, x):
        return self.bound._log_prob(x)

    def _log_cdf(self, x):
        return self.bound._log_cdf(x)

    def _log_sf(self, x):
        return self.bound._log_sf(x)


def _bounded(value: Any) -> bool:
    return not (isinstance(value, float) and abs(value) == INF)


def _larger(a: Any, b: Any) -> Any:
    return max(a, b) if concrete(a) and concrete(b) else jnp.maximum(a, b)


def _log_between(prior: AbstractPrior, a: Any, b: Any, from_above: Any) -> Array:
    """Return the log probability of [a, b], from the tail in which it is the larger share."""
    above = log_diff_exp(prior._log_sf(a), prior._log_sf(b))
    below = log_diff_exp(prior._log_cdf(b), prior._log_cdf(a))
    return jnp.where(from_above, above, below)


def _log_mass(prior: AbstractPrior, lower: Any, upper: Any) -> tuple[Array, Array]:
    a, b = jnp.asarray(lower, float), jnp.asarray(upper, float)
    from_above = prior._log_sf(a) < prior._log_cdf(b)
    return _log_between(prior, a, b, from_above), from_above


@host64
def _host_mass(prior: AbstractPrior, lower: Any, upper: Any) -> tuple[float, bool]:
    mass, from_above = _jitted_mass(prior, lower, upper)
    return float(mass), bool(from_above)


@outer_jit
def _jitted_mass(prior: AbstractPrior, lower: Any, upper: Any) -> tuple[Array, Array]:
    return _log_mass(prior, lower, upper)


class NumpyroPrior(AbstractPrior):
    """A univariate continuous distribution of numpyro as a prior.

    ``cdf``, ``icdf`` and :class:`Bound` work where the distribution has a ``cdf``.

    Parameters
    ----------
    distribution
        Distribution object with scalar parameters. numpyro itself is not imported here.
    """

    distribution: Any
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, distribution: Any):
        if tuple(distribution.batch_shape) or tuple(distribution.event_shape):
            raise ModelSpecError(
                f"{type(distribution).__name__}: a prior of one parameter is needed, but it has "
                f"batch_shape {distribution.batch_shape} and event_shape {distribution.event_shape}."
            )
        if getattr(distribution.support, "is_discrete", False):
            raise ModelSpecError(
                f"{type(distribution).__name__} is discrete; samplers need a continuous prior."
            )
        # numpyro keeps JAX arrays of the dtype in force when it was made: host numbers follow ours.
        self.distribution = jax.tree.map(
            lambda v: np.asarray(v, float) if concrete(v) else v, distribution
        )
        limits = {"unit_interval": (0.0, 1.0), "positive": (0.0, INF)}
        name = type(distribution.support).__name__.strip("_").lower()
        low, high = limits.get(name, (-INF, INF))
        self.low = float(getattr(distribution.support, "lower_bound", low))
        self.high = float(getattr(distribution.support, "upper_bound", high))

    @property
    def support(self):
        return (self.low, self.high)

    def _log_prob(self, x):
        inside = (x >= self.low) & (x <= self.high)
        start = _inner_point(self.low, self.high)
        value = self.distribution.log_prob(jnp.where(inside, x, start))
        return jnp.where(inside, value, -jnp.inf)

    def _log_cdf(self, x):
        return jnp.log(self.distribution.cdf(jnp.clip(x, self.low, self.high)))

    def _draw(self, key, shape, dtype):
        return jnp.asarray(self.distribution.sample(key, shape), dtype)


def _inner_point(low: float, high: float) -> float:
    if low > -INF and high < INF:
        return 0.5 * (low + high)
    if low > -INF:
        return low + 1.0
    return high - 1.0 if high < INF else 0.0


def as_prior(value: Any, *, argument: str = "prior") -> AbstractPrior:
    """Return a prior; numpyro distributions are wrapped.

    Raises
    ------
    ModelSpecError
        ``value`` is not a prior.
    """
    if isinstance(value, AbstractPrior):
        return value
    if type(value).__module__.startswith("numpyro."):
        return NumpyroPrior(value)
    raise ModelSpecError(
        f"{argument}={value!r} is not a prior: use Uniform, Normal, LogNormal, TruncatedNormal, "
        "Bound, HalfNormal, Gamma, InverseGamma, Beta, StudentT, Exponential, Cauchy, HalfCauchy, "
        "or a numpyro distribution."
    )
