"""Prior densities with closed forms, and the LKJ density of a correlation matrix."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np

from jaxnlme._typing import Array, Float
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


class Normal(AbstractPrior):
    """Normal density with mean ``loc`` and standard deviation ``scale``.

    Examples
    --------
    >>> round(float(Normal(3.0, 0.5).icdf(0.975)), 4)
    3.98
    """

    loc: Any = leaf(default=0.0)
    scale: Any = leaf(default=1.0)

    def __check_init__(self):
        check_finite("Normal", loc=self.loc)
        check_positive("Normal", scale=self.scale)

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


class HalfNormal(AbstractPrior):
    """Normal density folded at zero."""

    scale: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive("HalfNormal", scale=self.scale)

    @property
    def support(self):
        return (0.0, INF)

    def _log_prob(self, x):
        inside = -0.5 * (x / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * _LOG_2PI + LOG_2
        return jnp.where(jnp.asarray(x) >= 0, inside, -jnp.inf)

    def _log_sf(self, x):
        return LOG_2 + jsp.log_ndtr(-jnp.maximum(x, 0) / self.scale)

    def _log_cdf(self, x):
        return jnp.log(jax.lax.erf(jnp.maximum(x, 0) / (self.scale * np.sqrt(2))))

    def _icdf(self, q):
        return -self.scale * jsp.ndtri(0.5 * (1 - q))


class LogNormal(AbstractPrior):
    """exp of a normal variable with mean ``loc`` and standard deviation ``scale`` on the log scale."""

    loc: Any = leaf(default=0.0)
    scale: Any = leaf(default=1.0)

    def __check_init__(self):
        check_finite("LogNormal", loc=self.loc)
        check_positive("LogNormal", scale=self.scale)

    @property
    def support(self):
        return (0.0, INF)

    def _normal(self):
        return Normal(self.loc, self.scale)

    def _log(self, x):
        ok = jnp.asarray(x) > 0
        return ok, jnp.log(jnp.where(ok, x, 1))

    def _log_prob(self, x):
        ok, log_x = self._log(x)
        return jnp.where(ok, self._normal()._log_prob(log_x) - log_x, -jnp.inf)

    def _log_cdf(self, x):
        ok, log_x = self._log(x)
        return jnp.where(ok, self._normal()._log_cdf(log_x), -jnp.inf)

    def _log_sf(self, x):
        ok, log_x = self._log(x)
        return jnp.where(ok, self._normal()._log_sf(log_x), 0)

    def _icdf(self, q):
        return jnp.exp(self._normal()._icdf(q))

    def _draw(self, key, shape, dtype):
        return jnp.exp(self._normal()._draw(key, shape, dtype))


class Gamma(AbstractPrior):
    """Gamma density with ``concentration`` and ``rate`` (mean concentration / rate)."""

    concentration: Any = leaf()
    rate: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive("Gamma", concentration=self.concentration, rate=self.rate)

    @property
    def support(self):
        return (0.0, INF)

    def _log_prob(self, x):
        ok = jnp.asarray(x) > 0
        safe = jnp.where(ok, x, 1)
        a, b = self.concentration, self.rate
        value = a * jnp.log(b) - jsp.gammaln(a) + (a - 1) * jnp.log(safe) - b * safe
        return jnp.where(ok, value, -jnp.inf)

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


class InverseGamma(AbstractPrior):
    """Density of 1 / g for a gamma variable g with ``concentration`` and rate ``scale``.

    ``scale**a / Gamma(a) x**(-a - 1) exp(-scale / x)``
    """

    concentration: Any = leaf()
    scale: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive("InverseGamma", concentration=self.concentration, scale=self.scale)

    @property
    def support(self):
        return (0.0, INF)

    def _log_prob(self, x):
        ok = jnp.asarray(x) > 0
        safe = jnp.where(ok, x, 1)
        a, b = self.concentration, self.scale
        value = a * jnp.log(b) - jsp.gammaln(a) - (a + 1) * jnp.log(safe) - b / safe
        return jnp.where(ok, value, -jnp.inf)

    def _inverse(self, x):
        ok = jnp.asarray(x) > 0
        return ok, self.scale / jnp.where(ok, x, 1)

    def _log_cdf(self, x):
        ok, y = self._inverse(x)
        return jnp.where(ok, jnp.log(_gammaincc(self.concentration, y)), -jnp.inf)

    def _log_sf(self, x):
        ok, y = self._inverse(x)
        return jnp.where(ok, jnp.log(_gammainc(self.concentration, y)), 0)

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


class Exponential(AbstractPrior):
    """Exponential density with ``rate``."""

    rate: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive("Exponential", rate=self.rate)

    @property
    def support(self):
        return (0.0, INF)

    def _log_prob(self, x):
        return jnp.where(jnp.asarray(x) >= 0, jnp.log(self.rate) - self.rate * x, -jnp.inf)

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


class Cauchy(AbstractPrior):
    """Cauchy density with ``loc`` and ``scale``."""

    loc: Any = leaf(default=0.0)
    scale: Any = leaf(default=1.0)

    def __check_init__(self):
        check_finite("Cauchy", loc=self.loc)
        check_positive("Cauchy", scale=self.scale)

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


class HalfCauchy(AbstractPrior):
    """Cauchy density around zero, folded there."""

    scale: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive("HalfCauchy", scale=self.scale)

    @property
    def support(self):
        return (0.0, INF)

    def _log_prob(self, x):
        value = LOG_2 - jnp.log(np.pi * self.scale) - jnp.log1p((x / self.scale) ** 2)
        return jnp.where(jnp.asarray(x) >= 0, value, -jnp.inf)

    def _log_cdf(self, x):
        return jnp.log(2 / np.pi * jnp.arctan(jnp.maximum(x, 0) / self.scale))

    def _log_sf(self, x):
        x = jnp.maximum(x, 0)
        return jnp.log(2 / np.pi * jnp.arctan2(self.scale * jnp.ones_like(x), x))

    def _icdf(self, q):
        return self.scale * jnp.tan(0.5 * np.pi * q)


class LKJ(eqx.Module):
    """Density of a correlation matrix, proportional to ``det(R)^(concentration - 1)``.

    Lewandowski, Kurowicka and Joe (2009). The normalising constant is left out.
    """

    concentration: Any = leaf(default=1.0)

    def __check_init__(self):
        check_positive("LKJ", concentration=self.concentration)

    def log_prob(self, correlation: Float[Array, "r r"]) -> Float[Array, ""]:
        """Return the log density up to its constant."""
        sign, logdet = jnp.linalg.slogdet(correlation)
        return jnp.where(sign > 0, (self.concentration - 1) * logdet, -jnp.inf)
