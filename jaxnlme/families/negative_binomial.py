"""Negative binomial counts: quadratic (NB2) and linear (NB1) variance."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy

from jaxnlme._errors import ModelSpecError
from jaxnlme._typing import Array
from jaxnlme.families._base import (
    AbstractExponentialFamily,
    AbstractFamily,
    Parameter,
    need_counts,
    weighted_mean,
)
from jaxnlme.families._laws import AbstractKnownLaw
from jaxnlme.links import Log
from jaxnlme.numerics.special import (
    deviance_gap,
    log_factorial,
    log_rising,
    log_rising_derivatives,
)
from jaxnlme.numerics.tails import log_beta_tails

_WHOLE = "Round the counts, or use family='quasi_poisson' for rates."


def negative_binomial_log_mass(y: Array, mu: Array, theta: Array) -> Array:
    """Log probability with mean ``mu`` and variance ``mu + mu^2 / theta``; stable up to the Poisson limit."""
    value = log_rising(theta, y) - log_factorial(y) + xlogy(y, mu)
    return value - (theta + y) * jnp.log1p(mu / theta)


def negative_binomial_deviance(y: Array, mu: Array, theta: Array) -> Array:
    """``2 (y log(y / mu) - (y + theta) log((y + theta) / (mu + theta)))`` without cancellation."""
    some = y > 0
    safe = jnp.where(some, y, 1)
    first = jnp.where(some, safe * deviance_gap((mu - safe) / safe), mu)
    second = (y + theta) * deviance_gap((mu - y) / (y + theta))
    return 2 * jnp.maximum(first - second, 0)


def nb_tails(y: Array, size: Array, log_odds: Array) -> tuple[Array, Array]:
    """``log P(Y <= y)``, ``log P(Y > y)`` for ``size`` failures and ``log_odds`` = log(size / mean)."""
    inside = y >= 0
    lower, upper = log_beta_tails(size, jnp.where(inside, y + 1, 1), log_odds)
    return jnp.where(inside, lower, -jnp.inf), jnp.where(inside, upper, 0)


def _theta_of_moments(y: Array, weights: Array) -> Array:
    """``theta`` from mean and variance, between 0.1 and 100."""
    centre = weighted_mean(y, weights)
    excess = weighted_mean((y - centre) ** 2, weights) - centre
    return jnp.clip(centre**2 / jnp.maximum(excess, 0.01 * centre), 0.1, 100)


class _Counts(AbstractKnownLaw):
    """What all negative binomial families share; subclasses give size and mean."""

    @abc.abstractmethod
    def _size(self, mu: Any, others: tuple) -> Any:
        """``mean / (variance / mean - 1)``: the number of failures of the negative binomial law."""

    def check_response(self, response):
        need_counts(response, whole=True, cure=_WHOLE)

    def start_mean(self, y, weights):
        return jnp.where(y == 0, y + 1 / 6, y)

    def separated(self, mu, *others):
        return mu < 10 * jnp.finfo(mu.dtype).eps

    def log_tails(self, y, mu, *others):
        size = self._size(mu, others)
        return nb_tails(y, size, jnp.log(size) - jnp.log(mu))

    def law(self, weights, mu, *others):
        size = self._size(mu, others)
        return "nbinom", (size, size / (size + mu)), {}

    def sample(self, rng, weights, mu, *others):
        size = self._size(np.asarray(mu), others)
        return rng.poisson(rng.gamma(size, mu / size)).astype(float)


class NegativeBinomialFixed(_Counts, AbstractExponentialFamily):
    """Counts with ``Var = mu + mu^2 / theta`` for a given ``theta``: an exponential family."""

    theta: Any  # a leaf, so that another value needs no new program

    name = "negative_binomial"
    default_link = Log()
    discrete = True

    def __repr__(self) -> str:
        known = isinstance(self.theta, int | float | np.number | np.ndarray)
        return f"NegativeBinomial(theta={f'{float(self.theta):.4f}' if known else self.theta})"

    def _size(self, mu, others):
        return self.theta

    def _theta(self, mu: Any) -> Array:
        return jnp.broadcast_to(jnp.asarray(self.theta, mu.dtype), mu.shape)

    def variance(self, mu):
        return mu + mu**2 / self._theta(mu)

    def unit_deviance(self, y, mu, *others):
        return negative_binomial_deviance(y, mu, self._theta(mu))

    def kernel(self, y, mu):
        theta = self._theta(mu)
        return (theta + y) * jnp.log1p(mu / theta) - xlogy(y, mu)

    def valid(self, mu, *others):
        return jnp.isfinite(mu) & (mu > 0)

    def log_prob(self, y, mu, *others):
        return negative_binomial_log_mass(y, mu, self._theta(mu))

    def log_tails(self, y, mu, *others):
        theta = self._theta(mu)
        return nb_tails(y, theta, jnp.log(theta) - jnp.log(mu))


class NegativeBinomialTheta(_Counts):
    """Counts with ``Var = mu + mu^2 / theta`` whose ``theta`` has its own predictor (log link)."""

    name = "negative_binomial"
    default_link = Log()
    discrete = True

    @property
    def parameters(self):
        return (Parameter("theta", Log()),)

    def _size(self, mu, others):
        return others[0]

    def at(self, *others):
        return NegativeBinomialFixed(float(others[0]))

    def valid(self, mu, *others):
        return jnp.isfinite(mu) & (mu > 0) & (others[0] > 0) & jnp.isfinite(others[0])

    def log_prob(self, y, mu, *others):
        return negative_binomial_log_mass(y, mu, others[0])

    def unit_deviance(self, y, mu, *others):
        return negative_binomial_deviance(y, mu, others[0])

    def variance_of(self, mu, *others):
        return mu + mu**2 / others[0]

    def start_others(self, y, weights):
        return (_theta_of_moments(y, weights),)

    def boundary_notes(self, scalars, y, weights):
        theta = scalars.get("theta", 0.0)
        live = weights > 0
        centre = np.average(y[live], weights=weights[live])
        if theta < 1e4 * max(centre, 1.0):
            return []
        return [
            f"theta ran to infinity ({theta:.3g}): the counts vary no more than Poisson counts; use "
            "family='poisson'."
        ]

    def working(self, links, y, weights, etas):
        """The derivatives of the base class, written out: one pass of the gamma functions."""
        (mu_link, theta_link), (eta, zeta) = links, etas
        mu, theta = mu_link.inverse(eta), theta_link.inverse(zeta)
        mu_slope, theta_slope = mu_link.derivative(eta), theta_link.derivative(zeta)
        mu_bend = jax.jvp(mu_link.derivative, (eta,), (jnp.ones_like(eta),))[1]
        theta_bend = jax.jvp(theta_link.derivative, (zeta,), (jnp.ones_like(zeta),))[1]
        rising, rising1, rising2 = log_rising_derivatives(theta, y)
        total, gap = theta + mu, y - mu
        log_ratio = jnp.log1p(mu / theta)
        value = rising - log_factorial(y) + xlogy(y, mu) - (theta + y) * log_ratio
        by_mu = gap / mu * (theta / total)
        by_theta = rising1 + y / theta - log_ratio - gap / total
        mu_mu = -y / mu**2 + (theta + y) / total**2
        mu_theta = gap / total**2
        theta_theta = rising2 - y / theta**2 + mu / (theta * total) + gap / total**2
        score = (weights * by_mu * mu_slope, weights * by_theta * theta_slope)
        first = -weights * (mu_mu * mu_slope**2 + by_mu * mu_bend)
        cross = -weights * mu_theta * mu_slope * theta_slope
        second = -weights * (theta_theta * theta_slope**2 + by_theta * theta_bend)
        return -weights * value, score, ((first,), (cross, second))

    def expected_information(self, links, weights, etas):
        """Expected for the mean and orthogonal, observed for ``theta``: errors at fixed ``theta`` (MASS)."""
        mu, theta = (link.inverse(eta) for link, eta in zip(links, etas, strict=True))
        slope = links[0].derivative(etas[0])
        return (weights * slope**2 / (mu + mu**2 / theta),), (jnp.zeros_like(mu), None)


def NegativeBinomial(theta: Any = None) -> AbstractFamily:
    """Counts with ``Var = mu + mu^2 / theta``; default link log.

    Parameters
    ----------
    theta
        A positive number, or None: estimated together with the mean by maximum likelihood (log link, a
        formula through ``parameters={"theta": ...}``). Standard errors are those at fixed ``theta``, as in
        MASS.

    Raises
    ------
    ModelSpecError
        ``theta`` is not a positive number.

    Examples
    --------
    >>> import numpy as np
    >>> float(NegativeBinomial(theta=2.0).variance(np.float32(4.0)))
    12.0
    """
    if theta is None:
        return NegativeBinomialTheta()
    return NegativeBinomialFixed(positive_number(theta, "NegativeBinomial(theta=", "theta"))


def positive_number(value: Any, call: str, name: str) -> float:
    """``value`` as a positive float, or ModelSpecError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not (np.isfinite(number) and number > 0):
        raise ModelSpecError(
            f"{call}{value!r}): {name} must be a positive number, or None to estimate it."
        )
    return number


class NegativeBinomial1(_Counts):
    """Counts with ``Var = mu (1 + dispersion)`` (NB1, glmmTMB's ``nbinom1``); default link log.

    ``dispersion`` is estimated with the mean (log link).

    Examples
    --------
    >>> import numpy as np
    >>> float(NegativeBinomial1().variance_of(np.float32(4.0), np.float32(0.5)))
    6.0
    """

    name = "negative_binomial1"
    default_link = Log()
    discrete = True

    @property
    def parameters(self):
        return (Parameter("dispersion", Log()),)

    def _size(self, mu, others):
        return mu / others[0]

    def valid(self, mu, *others):
        return jnp.isfinite(mu) & (mu > 0) & (others[0] > 0)

    def log_prob(self, y, mu, *others):
        (excess,) = others
        size = mu / excess
        # y log size and y log(excess / (1 + excess)) are joined to y log mu - y log(1 + excess)
        return (
            log_rising(size, y) - log_factorial(y) + xlogy(y, mu) - (size + y) * jnp.log1p(excess)
        )

    def variance_of(self, mu, *others):
        return mu * (1 + others[0])

    def start_others(self, y, weights):
        centre = weighted_mean(y, weights)
        spread = weighted_mean((y - centre) ** 2, weights)
        return (jnp.clip(spread / centre - 1, 0.1, 100),)

    def boundary_notes(self, scalars, y, weights):
        if scalars.get("dispersion", 1.0) > 1e-4:
            return []
        return [
            "the dispersion ran to 0: the counts vary no more than Poisson counts; use family='poisson'."
        ]
