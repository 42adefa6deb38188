"""Prior densities with closed forms, and the LKJ density of a correlation matrix."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np

from jaxnlme._typing import Array, Float
from jaxnlme.numerics.small_linalg import cholesky, logdet
from jaxnlme.priors.base import (
    INF,
    LOG_2,
    AbstractPrior,
    check_finite,
    check_ordered,
    check_positive,
    leaf,
)

_LOG_2PI = 1.8378770664093453


class _LocationScale(AbstractPrior):
    """Densities with a location and a positive scale."""

    loc: Any = leaf(default=0.0)
    scale: Any = leaf(default=1.0)

    def __check_init__(self):
        check_finite(type(self).__name__, loc=self.loc)
        check_positive(type(self).__name__, scale=self.scale)


class _HalfLine(AbstractPrior):
    """Densities of positive numbers, given where ``x`` lies inside; ``_closed``: 0 is inside."""

    _closed: ClassVar[bool] = False

    @property
    def support(self):
        return (0.0, INF)

    @abc.abstractmethod
    def _density(self, x: Any) -> Array:
        """Return the log density inside."""

    def _inside(self, x: Any) -> tuple[Array, Array]:
        """Where x is inside, and x there (1 elsewhere)."""
        ok = jnp.asarray(x) >= 0 if self._closed else jnp.asarray(x) > 0
        return ok, jnp.where(ok, x, 1)

    def _log_prob(self, x):
        ok, safe = self._inside(x)
        return jnp.where(ok, self._density(safe), -jnp.inf)


class _HalfScale(_HalfLine):
    """Densities folded at zero, with a positive scale."""

    _closed = True

    scale: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive(type(self).__name__, scale=self.scale)


class _Shaped(_HalfLine):
    """Densities of positive numbers with a shape."""

    concentration: Any = leaf()


class Uniform(AbstractPrior):
    """Uniform density between ``lower`` and ``upper``, both ends included.

    Examples
    --------
    >>> Uniform(0.5, 2.0).bounds(), float(Uniform(0, 4).cdf(1.0))
    ((0.5, 2.0), 0.25)
    """

    lower: Any = leaf(default=0.0)
    upper: Any = leaf(default=1.0)

    def __check_init__(self):
        check_finite("Uniform", lower=self.lower, upper=self.upper)
        check_ordered("Uniform", self.lower, self.upper)

    @property
    def support(self):
        return (self.lower, self.upper)

    def _log_prob(self, x):
        inside = (x >= self.lower) & (x <= self.upper)
        return jnp.where(inside, -jnp.log(self.upper - self.lower), -jnp.inf) + jnp.zeros_like(x)

    def _fraction(self, x):
        return jnp.clip((x - self.lower) / (self.upper - self.lower), 0, 1)

    def _log_cdf(self, x):
        return jnp.log(self._fraction(x))

    def _log_sf(self, x):
        return jnp.log(jnp.clip((self.upper - x) / (self.upper - self.lower), 0, 1))

    def _icdf(self, q):
        return jnp.clip(self.lower + q * (self.upper - self.lower), self.lower, self.upper)


class Normal(_LocationScale):
    """Normal density with mean ``loc`` and standard deviation ``scale``.

    Examples
    --------
    >>> round(float(Normal(3.0, 0.5).icdf(0.975)), 4)
    3.98
    """

    def _log_prob(self, x):
        return -0.5 * ((x - self.loc) / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * _LOG_2PI

    def _log_cdf(self, x):
        return jsp.log_ndtr((x - self.loc) / self.scale)

    def _log_sf(self, x):
        return jsp.log_ndtr((self.loc - x) / self.scale)

    def _cdf(self, x):
        return jsp.ndtr((x - self.loc) / self.scale)

    def _icdf(self, q):
        return self.loc + self.scale * jsp.ndtri(q)

    def _draw(self, key, shape, dtype):
        return self.loc + self.scale * jax.random.normal(key, shape, dtype)


class HalfNormal(_HalfScale):
    """Normal density folded at zero."""

    def _density(self, x):
        return -0.5 * (x / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * _LOG_2PI + LOG_2

    def _log_sf(self, x):
        return LOG_2 + jsp.log_ndtr(-jnp.maximum(x, 0) / self.scale)

    def _log_cdf(self, x):
        return jnp.log(jax.lax.erf(jnp.maximum(x, 0) / (self.scale * np.sqrt(2))))

    def _icdf(self, q):
        return -self.scale * jsp.ndtri(0.5 * (1 - q))


class LogNormal(_HalfLine, _LocationScale):
    """exp of a normal variable with mean ``loc`` and standard deviation ``scale`` on the log scale."""

    def _normal(self):
        return Normal(self.loc, self.scale)

    def _density(self, x):
        log_x = jnp.log(x)
        return self._normal()._log_prob(log_x) - log_x

    def _log_cdf(self, x):
        ok, safe = self._inside(x)
        return jnp.where(ok, self._normal()._log_cdf(jnp.log(safe)), -jnp.inf)

    def _log_sf(self, x):
        ok, safe = self._inside(x)
        return jnp.where(ok, self._normal()._log_sf(jnp.log(safe)), 0)

    def _icdf(self, q):
        return jnp.exp(self._normal()._icdf(q))

    def _draw(self, key, shape, dtype):
        return jnp.exp(self._normal()._draw(key, shape, dtype))


class Gamma(_Shaped):
    """Gamma density with ``concentration`` and ``rate`` (mean concentration / rate)."""

    rate: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive("Gamma", concentration=self.concentration, rate=self.rate)

    def _density(self, x):
        a, b = self.concentration, self.rate
        return a * jnp.log(b) - jsp.gammaln(a) + (a - 1) * jnp.log(x) - b * x

    def _log_cdf(self, x):
        return jnp.log(_gammainc(self.concentration, jnp.maximum(x, 0) * self.rate))

    def _log_sf(self, x):
        return jnp.log(_gammaincc(self.concentration, jnp.maximum(x, 0) * self.rate))

    def _draw(self, key, shape, dtype):
        return jax.random.gamma(key, jnp.asarray(self.concentration, dtype), shape) / self.rate


def _gammainc(a, x):
    return jsp.gammainc(jnp.broadcast_to(jnp.asarray(a, x.dtype), x.shape), x)


def _gammaincc(a, x):
    return jsp.gammaincc(jnp.broadcast_to(jnp.asarray(a, x.dtype), x.shape), x)


class InverseGamma(_Shaped):
    """Density of 1 / g for a gamma variable g with ``concentration`` and rate ``scale``.

    ``scale**a / Gamma(a) x**(-a - 1) exp(-scale / x)``
    """

    scale: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive("InverseGamma", concentration=self.concentration, scale=self.scale)

    def _density(self, x):
        a, b = self.concentration, self.scale
        return a * jnp.log(b) - jsp.gammaln(a) - (a + 1) * jnp.log(x) - b / x

    def _log_cdf(self, x):
        ok, safe = self._inside(x)
        return jnp.where(ok, jnp.log(_gammaincc(self.concentration, self.scale / safe)), -jnp.inf)

    def _log_sf(self, x):
        ok, safe = self._inside(x)
        return jnp.where(ok, jnp.log(_gammainc(self.concentration, self.scale / safe)), 0)

    def _draw(self, key, shape, dtype):
        return self.scale / jax.random.gamma(key, jnp.asarray(self.concentration, dtype), shape)


class Beta(AbstractPrior):
    """Beta density on (0, 1), proportional to ``x**(a - 1) (1 - x)**(b - 1)``."""

    a: Any = leaf()
    b: Any = leaf()

    def __check_init__(self):
        check_positive("Beta", a=self.a, b=self.b)

    @property
    def support(self):
        return (0.0, 1.0)

    def _log_prob(self, x):
        ok = (jnp.asarray(x) > 0) & (jnp.asarray(x) < 1)
        safe = jnp.where(ok, x, 0.5)
        constant = jsp.gammaln(self.a + self.b) - jsp.gammaln(self.a) - jsp.gammaln(self.b)
        value = constant + (self.a - 1) * jnp.log(safe) + (self.b - 1) * jnp.log1p(-safe)
        return jnp.where(ok, value, -jnp.inf)

    def _log_cdf(self, x):
        return jnp.log(_betainc(self.a, self.b, jnp.clip(x, 0, 1)))

    def _log_sf(self, x):
        return jnp.log(_betainc(self.b, self.a, 1 - jnp.clip(x, 0, 1)))

    def _draw(self, key, shape, dtype):
        a, b = jnp.asarray(self.a, dtype), jnp.asarray(self.b, dtype)
        return jax.random.beta(key, a, b, shape)


def _betainc(a, b, x):
    a, b = (jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape) for v in (a, b))
    return jsp.betainc(a, b, x)


class Exponential(_HalfLine):
    """Exponential density with ``rate``."""

    _closed = True

    rate: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive("Exponential", rate=self.rate)

    def _density(self, x):
        return jnp.log(self.rate) - self.rate * x

    def _log_sf(self, x):
        return -self.rate * jnp.maximum(x, 0)

    def _log_cdf(self, x):
        return jnp.log(-jnp.expm1(-self.rate * jnp.maximum(x, 0)))

    def _icdf(self, q):
        return -jnp.log1p(-q) / self.rate


class StudentT(AbstractPrior):
    """Student's t density with ``df`` degrees of freedom, ``loc`` and ``scale``."""

    df: Any = leaf()
    loc: Any = leaf(default=0.0)
    scale: Any = leaf(default=1.0)

    def __check_init__(self):
        check_finite("StudentT", loc=self.loc)
        check_positive("StudentT", df=self.df, scale=self.scale)

    def _log_prob(self, x):
        v = self.df
        z = (x - self.loc) / self.scale
        constant = jsp.gammaln((v + 1) / 2) - jsp.gammaln(v / 2) - 0.5 * jnp.log(v * jnp.pi)
        return constant - jnp.log(self.scale) - 0.5 * (v + 1) * jnp.log1p(z**2 / v)

    def _log_cdf(self, x):
        z = (x - self.loc) / self.scale
        half = jnp.asarray(0.5, z.dtype)
        tail = 0.5 * _betainc(0.5 * self.df, half, self.df / (self.df + z**2))
        return jnp.where(z < 0, jnp.log(tail), jnp.log1p(-tail))

    def _log_sf(self, x):
        return self._log_cdf(2 * self.loc - x)

    def _draw(self, key, shape, dtype):
        return self.loc + self.scale * jax.random.t(key, jnp.asarray(self.df, dtype), shape)


class Cauchy(_LocationScale):
    """Cauchy density with ``loc`` and ``scale``."""

    def _log_prob(self, x):
        z = (x - self.loc) / self.scale
        return -jnp.log(np.pi * self.scale) - jnp.log1p(z**2)

    def _log_cdf(self, x):
        z = (x - self.loc) / self.scale
        return jnp.log(jnp.arctan2(jnp.ones_like(z), -z) / np.pi)

    def _log_sf(self, x):
        return self._log_cdf(2 * self.loc - x)

    def _icdf(self, q):
        low = q < 0.5
        p = jnp.where(low, q, 1 - q)
        cotangent = 1 / jnp.tan(np.pi * p)
        return self.loc + self.scale * jnp.where(low, -cotangent, cotangent)


class HalfCauchy(_HalfScale):
    """Cauchy density around zero, folded there."""

    def _density(self, x):
        return LOG_2 - jnp.log(np.pi * self.scale) - jnp.log1p((x / self.scale) ** 2)

    def _log_cdf(self, x):
        return jnp.log(2 / np.pi * jnp.arctan(jnp.maximum(x, 0) / self.scale))

    def _log_sf(self, x):
        x = jnp.maximum(x, 0)
        return jnp.log(2 / np.pi * jnp.arctan2(self.scale * jnp.ones_like(x), x))

    def _icdf(self, q):
        return self.scale * jnp.tan(0.5 * np.pi * q)


class LKJMargin(AbstractPrior):
    """Density of one correlation of a ``size`` by ``size`` matrix with the density ``LKJ(concentration)``.

    ``(1 - x^2)^(a - 1)`` on (-1, 1), normalised, with ``a = concentration + size / 2 - 1``; for two effects
    this is the LKJ density itself.

    Examples
    --------
    >>> round(float(LKJMargin(1.0).cdf(-0.5)), 4), round(float(LKJMargin(2.0).log_prob(0.0)), 4)
    (0.25, -0.2877)
    """

    concentration: Any = leaf(default=1.0)
    size: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        check_positive("LKJMargin", concentration=self.concentration)

    def _half(self):
        a = self.concentration + (self.size / 2 - 1)
        return Beta(a, a)

    @property
    def support(self):
        return (-1.0, 1.0)

    def _log_prob(self, x):
        return self._half()._log_prob(0.5 * (1 + x)) - LOG_2

    def _log_cdf(self, x):
        return self._half()._log_cdf(0.5 * (1 + x))

    def _log_sf(self, x):
        return self._half()._log_sf(0.5 * (1 + x))

    def _draw(self, key, shape, dtype):
        return 2 * self._half()._draw(key, shape, dtype) - 1


def lkj_log_constant(concentration: Any, size: int) -> Any:
    """Return the log integral of ``det(R)^(concentration - 1)`` over correlation matrices.

    Over the ``size (size - 1) / 2`` correlations below the diagonal; Lewandowski, Kurowicka and Joe (2009),
    eq. 16. A JAX number is followed in its dtype.

    Examples
    --------
    >>> round(float(jnp.exp(lkj_log_constant(np.float32(1), 3))), 3)  # pi^2 / 2
    4.935
    """
    eta = jnp.asarray(concentration)
    total = jnp.zeros_like(eta)
    for rest in range(1, size):
        a = eta + 0.5 * (rest - 1)
        total = total + rest * ((2 * a - 1) * LOG_2 + 2 * jsp.gammaln(a) - jsp.gammaln(2 * a))
    return total


class LKJ(eqx.Module):
    """Density of a correlation matrix, proportional to ``det(R)^(concentration - 1)``.

    Lewandowski, Kurowicka and Joe (2009), normalised over the correlations below the diagonal.

    Examples
    --------
    >>> prior = LKJ(2.0)
    >>> round(float(prior.log_prob(np.eye(2, dtype=np.float32))), 4)  # log(3 / 4)
    -0.2877
    """

    concentration: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive("LKJ", concentration=self.concentration)

    def log_prob(self, correlation: Float[Array, "r r"]) -> Float[Array, ""]:
        """Return the log density; -inf where the matrix is not positive definite."""
        correlation = jnp.asarray(correlation)
        eta = jnp.asarray(self.concentration, correlation.dtype)
        value = (eta - 1) * logdet(cholesky(correlation))
        value = value - lkj_log_constant(eta, correlation.shape[0])
        return jnp.where(jnp.isnan(value), -jnp.inf, value)
