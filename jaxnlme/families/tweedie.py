"""Tweedie responses: ``Var = phi mu^p / w``."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme._typing import Array
from jaxnlme.families._base import (
    AbstractExponentialFamily,
    AbstractFamily,
    Parameter,
    dispersion_of,
    need_positive,
    need_variation,
    weighted_mean,
)
from jaxnlme.families.gamma import gamma_log_density
from jaxnlme.families.poisson import poisson_deviance
from jaxnlme.links import Interval, Log
from jaxnlme.numerics.roots import increasing_root
from jaxnlme.numerics.special import deviance_gap, digamma, log_gamma, trigamma

_TERMS = 72
_WHOLE_SUM = 26.0  # (1 + alpha) j_max below which the series is summed from its first term
_rule = np.polynomial.legendre.leggauss(10)
# on [0, 1], as Python floats: they follow any dtype
_NODES, _WEIGHTS = 0.5 * (1 + _rule[0]), 0.5 * _rule[1]


def power_deviance(y: Array, mu: Array, p: Any) -> Array:
    """Unit deviance of ``V = mu^p`` for any ``p`` but 1 and 2, without cancellation near ``y = mu``.

    Near by it is ``2 int_mu^y (y - s) s^-p ds`` by a Gauss rule; elsewhere Jorgensen (1997), The Theory of
    Dispersion Models, eq. 4.21.
    """
    near = jnp.abs(y - mu) < 0.2 * mu
    gap = jnp.where(near, y - mu, 0) / mu
    total = jnp.zeros_like(mu)
    for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
        total = total + weight * node * (1 + gap * (1 - node)) ** (-p)
    inner = 2 * gap**2 * total * mu ** (2 - p)
    far = jnp.where(near, 2 * mu, y)
    positive = far > 0
    power = jnp.where(positive, jnp.where(positive, far, 1) ** (2 - p), 0)
    outer = 2 * (
        power / ((1 - p) * (2 - p)) - far * mu ** (1 - p) / (1 - p) + mu ** (2 - p) / (2 - p)
    )
    return jnp.where(near, inner, outer)


# ---- the series of the density, 1 < p < 2 -----------------------------------------------------------


def _nodes(log_z: Array, alpha: Array) -> tuple[Array, Array]:
    """First term and stride of the terms ``j`` that are summed.

    The terms are a smooth log-concave function of ``j`` with its maximum near ``j_max`` and width
    ``sd = sqrt(j_max / (1 + alpha))``. Up to a width of 4, and where the terms next to 0 count, they are
    summed one by one; else every ``sd / 4``, where the trapezoid rule is exact to rounding.
    """
    # j_max solves log z = log j + alpha log(alpha j): Stirling
    j_max = jnp.exp((log_z - alpha * jnp.log(alpha)) / (1 + alpha))
    stride = jnp.maximum(0.25 * jnp.sqrt(j_max / (1 + alpha)), 1)
    stride = jnp.where((1 + alpha) * j_max < _WHOLE_SUM, 1, stride)
    half = 0.5 * (_TERMS - 1)
    each = jnp.maximum(jnp.round(j_max - half), 1)
    return jnp.where(stride > 1, j_max - half * stride, each), stride


def _series_moments(log_z: Array, alpha: Array) -> tuple[Array, ...]:
    """``log sum_j z^j / (j! Gamma(alpha j))`` with its first and second derivatives by ``log z`` and ``alpha``."""
    first, stride = _nodes(log_z, alpha)

    def terms(k):
        j = first + k * stride
        live = j > 0
        safe = jnp.where(live, j, 1)
        value = safe * log_z - log_gamma(safe + 1) - log_gamma(alpha * safe)
        return jnp.where(live, value, -jnp.inf), safe

    steps = jnp.arange(_TERMS, dtype=log_z.dtype)
    values, j = jax.vmap(terms)(steps)
    top = jnp.max(values, axis=0)
    mass = jnp.exp(values - top[None])
    total = jnp.sum(mass, axis=0)
    mass = mass / total[None]
    product = alpha[None] * j
    slope = -j * digamma(product)
    mean_j, mean_slope = jnp.sum(mass * j, axis=0), jnp.sum(mass * slope, axis=0)
    dj, ds = j - mean_j[None], slope - mean_slope[None]
    return (
        top + jnp.log(total) + jnp.log(stride),
        mean_j,
        mean_slope,
        jnp.sum(mass * dj * dj, axis=0),
        jnp.sum(mass * dj * ds, axis=0),
        jnp.sum(mass * (ds * ds - j * j * trigamma(product)), axis=0),
    )


@jax.custom_jvp
def log_series(log_z: Array, alpha: Array) -> Array:
    """``log sum_{j >= 1} z^j / (j! Gamma(alpha j))`` (Dunn and Smyth 2005, eq. 3), abs. error 1e-10."""
    return _series_moments(log_z, alpha)[0]


@jax.custom_jvp
def _series_slopes(log_z: Array, alpha: Array) -> tuple[Array, Array]:
    moments = _series_moments(log_z, alpha)
    return moments[1], moments[2]


@log_series.defjvp
def _log_series_jvp(primals, tangents):
    by_z, by_alpha = _series_slopes(*primals)
    return log_series(*primals), by_z * tangents[0] + by_alpha * tangents[1]


@_series_slopes.defjvp
def _series_slopes_jvp(primals, tangents):
    _, by_z, by_alpha, zz, za, aa = _series_moments(*primals)
    dz, da = tangents
    return (by_z, by_alpha), (zz * dz + za * da, za * dz + aa * da)


def tweedie_log_density(y: Array, mu: Array, phi: Array, p: Array) -> Array:
    """Log density of a compound Poisson-gamma variable, ``1 < p < 2``; absolute error 1e-9.

    Series of Dunn and Smyth (2005), Statistics and Computing 15, 267-280, in logarithms around its
    largest term.
    """
    zero = y <= 0
    safe = jnp.where(zero, 1, y)
    alpha = (2 - p) / (p - 1)
    log_z = alpha * (jnp.log(safe) - jnp.log(p - 1)) - (1 + alpha) * jnp.log(phi) - jnp.log(2 - p)
    exponent = (safe * mu ** (1 - p) / (1 - p) - mu ** (2 - p) / (2 - p)) / phi
    positive = exponent - jnp.log(safe) + log_series(log_z, alpha)
    return jnp.where(zero, -(mu ** (2 - p)) / ((2 - p) * phi), positive)


def _profile(y, weights, mu, log_phi, p):
    """Log-likelihood with its first and second derivatives by ``log phi``."""

    def total(log_phi):
        live = weights > 0
        phi = jnp.exp(log_phi) / jnp.where(live, weights, 1)
        powers = jnp.broadcast_to(p, mu.shape)
        return jnp.sum(jnp.where(live, tweedie_log_density(y, mu, phi, powers), 0))

    def slope(log_phi):
        return jax.jvp(total, (log_phi,), (jnp.ones_like(log_phi),))

    (value, first), (_, second) = jax.jvp(slope, (log_phi,), (jnp.ones_like(log_phi),))
    return value, first, second


_profile_pass = outer_jit(_profile)


def maximise_dispersion(y: Any, weights: Any, mu: Any, p: float, start: float) -> float:
    """The maximum likelihood dispersion at given means, by Newton steps on ``log phi``."""
    at, best, step = np.log(start), None, 0.0
    for _ in range(60):
        value, first, second = (
            float(v) for v in _profile_pass(y, weights, mu, np.float64(at), np.float64(p))
        )
        if best is not None and not value >= best[0] - 1e-12 * abs(best[0]):
            step *= 0.5
            at = best[1] + step
            continue
        best = (value, at)
        step = -first / second if second < 0 else np.sign(first)
        step = float(np.clip(step, -2, 2))
        if abs(step) < 1e-10:
            break
        at += step
    return float(np.exp(at))


def _compound_cdf(
    y: np.ndarray, rate: np.ndarray, shape: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """``P(Y <= y)`` of a Poisson sum of gamma variables (n,) on the host: the counts are summed over.

    The window of 8.5 standard deviations around the mean count leaves out less than 1e-15. The terms are a smooth
    function of the count on the scale of ``sqrt(rate / (1 + shape))``: of many counts every so-manyth is summed, as
    in the density.
    """
    from scipy import special

    half = 8.5 * np.sqrt(rate) + 12
    stride = np.maximum(0.25 * np.sqrt(rate / (1 + shape)), 1.0)
    stride = np.where(rate > half, stride, 1.0)
    first = np.maximum(np.floor(rate - half), 1.0)
    steps = int(np.max(np.ceil((rate + half - first) / stride), initial=1.0)) + 1
    counts = first[:, None] + stride[:, None] * np.arange(steps)
    logs = special.xlogy(counts, rate[:, None]) - rate[:, None] - special.gammaln(counts + 1)
    ratio = np.maximum(y, 0.0) / scale
    total = np.sum(np.exp(logs) * special.gammainc(counts * shape[:, None], ratio[:, None]), axis=1)
    return np.where(y < 0, 0.0, np.minimum(np.exp(-rate) + stride * total, 1.0))


# ---- families ---------------------------------------------------------------------------------------


class _Compound(AbstractFamily):
    """Host distribution of a compound Poisson-gamma variable; subclasses give ``(phi, p)``."""

    @abc.abstractmethod
    def _phi_power(self, others: tuple, weights: Any) -> tuple[Any, Any]:
        """Dispersion (over the weight) and power of each row."""

    def _parts(self, mu, others, weights):
        mu = np.asarray(mu, float)
        phi, p = self._phi_power(others, weights)
        rate = mu ** (2 - p) / (phi * (2 - p))
        return np.broadcast_arrays(rate, (2 - p) / (p - 1), phi * (p - 1) * mu ** (p - 1))

    def cdf(self, y, mu, *others, weights=None):
        y = np.asarray(y, float)
        parts = np.broadcast_arrays(y, *self._parts(mu, others, weights))
        return _compound_cdf(*map(np.ravel, parts)).reshape(parts[0].shape)

    def quantile(self, p, mu, *others, weights=None):
        p, mu = np.broadcast_arrays(np.asarray(p, float), np.asarray(mu, float))
        parts = np.broadcast_arrays(*self._parts(mu, others, weights))
        rate, shape, scale = map(np.ravel, parts)
        level = np.ravel(p)
        rest = np.maximum(1 - level, 1e-300)

        def excess(y):
            return (_compound_cdf(y, rate, shape, scale) - level) / np.minimum(level, rest)

        # Chebyshev's one-sided inequality bounds the quantile
        spread = np.sqrt(rate * shape * (1 + shape)) * scale
        high = rate * shape * scale + spread * np.sqrt(level / rest)
        found = increasing_root(excess, np.zeros_like(high), high)
        return np.where(level >= 1, np.inf, found).reshape(p.shape)

    def sample(self, rng, weights, mu, *others):
        rate, shape, scale = self._parts(mu, others, weights)
        counts = rng.poisson(rate)
        return np.where(counts > 0, rng.gamma(np.maximum(counts, 1) * shape, scale), 0.0)


class TweedieFixed(_Compound, AbstractExponentialFamily):
    """Tweedie responses of a given power: an exponential dispersion family."""

    power: float = eqx.field(static=True)

    name = "tweedie"
    default_link = Log()
    has_dispersion = True
    dispersion_name = "dispersion"

    def __repr__(self) -> str:
        return f"Tweedie(power={self.power:g})"

    @property
    def has_likelihood(self):
        return 1 < self.power < 2 or self.power in (0, 2, 3)

    def full_likelihood(self):
        return TweedieDispersion(self.power) if 1 < self.power < 2 else self

    def variance(self, mu):
        return mu**self.power

    def unit_deviance(self, y, mu, *others):
        if self.power == 1:
            return poisson_deviance(y, mu)
        if self.power == 2:
            return 2 * deviance_gap((y - mu) / mu)
        return power_deviance(y, mu, self.power)

    def kernel(self, y, mu):
        p = self.power
        if p == 1:
            return mu - y * jnp.log(mu)
        if p == 2:
            return y / mu + jnp.log(mu)
        return mu ** (2 - p) / (2 - p) - y * mu ** (1 - p) / (1 - p)

    def valid(self, mu, *others):
        return jnp.isfinite(mu) & ((mu > 0) | (self.power == 0))

    def log_prob(self, y, mu, *others):
        phi = others[0] if others else jnp.ones_like(mu)
        if 1 < self.power < 2:
            return tweedie_log_density(y, mu, phi, jnp.full_like(mu, self.power))
        if self.power == 2:
            return gamma_log_density(y, mu, phi)
        two_pi = jnp.asarray(2 * jnp.pi, phi.dtype)
        spread = phi * (y**self.power if self.power == 3 else jnp.ones_like(y))
        return -0.5 * (self.unit_deviance(y, mu) / phi + jnp.log(two_pi * spread))

    def log_likelihood(self, y, weights, mu, *others):
        phi = others[0] if others else jnp.ones_like(mu)
        live = weights > 0
        return jnp.where(live, self.log_prob(y, mu, phi / jnp.where(live, weights, 1)), 0)

    def llf_dispersion(self, y, weights, mu, deviance):
        rows = int(np.sum(weights > 0))
        if 1 < self.power < 2:
            return maximise_dispersion(y, weights, mu, self.power, max(deviance / rows, 1e-300))
        if self.power in (0, 3):
            return deviance / rows
        return deviance / float(np.sum(weights))

    def start_mean(self, y, weights):
        return jnp.where(y == 0, y + 0.1, y)

    def check_response(self, response):
        p = self.power
        if p >= 2:
            need_positive(response, f"tweedie(p={p:g})")
        elif p >= 1:
            _need_amounts(response)
        need_variation(response, "the dispersion would be 0")

    def _phi_power(self, others, weights):
        if not 1 < self.power < 2:
            raise ModelSpecError(
                f"family {self.name!r} with power={self.power:g} has no distribution function here; use gaussian, "
                "gamma or inverse_gaussian for powers 0, 2 and 3."
            )
        return dispersion_of(others, weights), self.power


def _need_amounts(response) -> None:
    response.refuse(response.values < 0, "is negative", "Tweedie amounts are 0 or positive.")
    live = response.values[response.weights > 0]
    if len(live) and not live.any():
        raise DataError(
            f"response {response.name!r} is 0 in every row: the maximum likelihood estimate lies on the "
            "boundary (mean 0). Check the response column."
        )


def _start_dispersion(y: Array, weights: Array, p: float) -> Array:
    centre = weighted_mean(y, weights)
    return weighted_mean((y - centre) ** 2, weights) / centre**p


class TweedieDispersion(_Compound, AbstractFamily):
    """Tweedie responses of a given power in (1, 2) whose dispersion has its own predictor (log link)."""

    power: float = eqx.field(static=True)

    name = "tweedie"
    default_link = Log()
    dispersion_name = "dispersion"

    @property
    def parameters(self):
        return (Parameter("dispersion", Log()),)

    def at(self, *others):
        return TweedieFixed(self.power)

    def valid(self, mu, *others):
        return jnp.isfinite(mu) & (mu > 0) & (others[0] > 0)

    def log_prob(self, y, mu, *others):
        return tweedie_log_density(y, mu, others[0], jnp.full_like(mu, self.power))

    def unit_deviance(self, y, mu, *others):
        return power_deviance(y, mu, self.power)

    def variance_of(self, mu, *others):
        return others[0] * mu**self.power

    def start_mean(self, y, weights):
        return jnp.where(y == 0, y + 0.1, y)

    def start_others(self, y, weights):
        return (_start_dispersion(y, weights, self.power),)

    def check_response(self, response):
        _need_amounts(response)
        need_variation(response, "the dispersion would be 0")

    def _phi_power(self, others, weights):
        return np.asarray(others[0], float), self.power


class TweediePower(_Compound, AbstractFamily):
    """Tweedie responses whose dispersion (log link) and power (logit link onto (1, 2)) are estimated."""

    name = "tweedie"
    default_link = Log()
    dispersion_name = "dispersion"

    @property
    def parameters(self):
        return (Parameter("dispersion", Log()), Parameter("power", Interval(1.0, 2.0)))

    def at(self, *others):
        return TweedieFixed(float(others[1]))

    def valid(self, mu, *others):
        phi, p = others
        return jnp.isfinite(mu) & (mu > 0) & (phi > 0) & (p > 1) & (p < 2)

    def log_prob(self, y, mu, *others):
        return tweedie_log_density(y, mu, *others)

    def unit_deviance(self, y, mu, *others):
        p = others[1]
        return power_deviance(y, mu, p)

    def variance_of(self, mu, *others):
        phi, p = others
        return phi * mu**p

    def start_mean(self, y, weights):
        return jnp.where(y == 0, y + 0.1, y)

    def start_others(self, y, weights):
        return _start_dispersion(y, weights, 1.5), jnp.full((), 1.5, y.dtype)

    def boundary_notes(self, scalars, y, weights):
        p = scalars.get("power", 1.5)
        if 1.001 < p < 1.999:
            return []
        cure = "poisson or quasi_poisson" if p < 1.5 else "gamma"
        return [f"the power ran to the edge of (1, 2) ({p:.6g}); use family {cure}."]

    def check_response(self, response):
        _need_amounts(response)
        need_variation(response, "the dispersion would be 0")

    def _phi_power(self, others, weights):
        return np.asarray(others[0], float), np.asarray(others[1], float)


def Tweedie(power: Any = None) -> AbstractFamily:
    """Responses with ``Var = phi mu^p / w``: exact zeros and positive amounts for ``1 < p < 2``; link log.

    Parameters
    ----------
    power
        ``p``: 0, 1, or any number outside (0, 1). None (and ``family="tweedie"``): estimated in (1, 2)
        together with the mean and the dispersion by maximum likelihood.

    Notes
    -----
    ``llf`` is taken at the maximum likelihood dispersion, with ``phi / w`` for a row of weight ``w``. It exists
    for ``p`` in (1, 2), 0, 2 and 3; elsewhere it is NaN, as in R's statmod.

    Raises
    ------
    ModelSpecError
        A power in (0, 1), for which no distribution exists, or not a number.

    Examples
    --------
    >>> import numpy as np
    >>> float(Tweedie(power=1.5).variance(np.float32(4.0)))
    8.0
    """
    if power is None:
        return TweediePower()
    try:
        value = float(power)
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value) or 0 < value < 1:
        raise ModelSpecError(
            f"Tweedie(power={power!r}): expected None (estimated in (1, 2)), 0, or a number outside (0, 1): "
            "no Tweedie distribution has a power in (0, 1). 1.5 suits claims with exact zeros."
        )
    return TweedieFixed(value)
