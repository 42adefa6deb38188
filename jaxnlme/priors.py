"""Prior densities of parameters, for penalised (MAP) fits. Calibration adds sampling to these."""

from __future__ import annotations

import abc

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.special as jsp

from jaxnlme._errors import ModelSpecError
from jaxnlme._typing import Array, ArrayLike, Float

_LOG_2PI = 1.8378770664093453


class AbstractPrior(eqx.Module):
    """A density of one parameter on its natural scale."""

    @abc.abstractmethod
    def log_prob(self, x: ArrayLike) -> Array:
        """Return the log density, elementwise; -inf outside the support."""


def _positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if not value > 0:
            raise ModelSpecError(f"{name}: {key}={value!r} must be positive.")


class Normal(AbstractPrior):
    """Normal density with mean ``loc`` and standard deviation ``scale``."""

    loc: float = 0.0
    scale: float = 1.0

    def __check_init__(self):
        _positive("Normal", scale=self.scale)

    def log_prob(self, x):
        return -0.5 * ((x - self.loc) / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * _LOG_2PI


class HalfNormal(AbstractPrior):
    """Normal density folded at zero."""

    scale: float = 1.0

    def __check_init__(self):
        _positive("HalfNormal", scale=self.scale)

    def log_prob(self, x):
        inside = -0.5 * (x / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * _LOG_2PI + jnp.log(2.0)
        return jnp.where(jnp.asarray(x) >= 0, inside, -jnp.inf)


class LogNormal(AbstractPrior):
    """exp of a normal variable with mean ``loc`` and standard deviation ``scale`` on the log scale."""

    loc: float = 0.0
    scale: float = 1.0

    def __check_init__(self):
        _positive("LogNormal", scale=self.scale)

    def log_prob(self, x):
        ok = jnp.asarray(x) > 0
        log_x = jnp.log(jnp.where(ok, x, 1.0))
        return jnp.where(ok, Normal(self.loc, self.scale).log_prob(log_x) - log_x, -jnp.inf)


class Gamma(AbstractPrior):
    """Gamma density with ``concentration`` and ``rate`` (mean concentration / rate)."""

    concentration: float
    rate: float = 1.0

    def __check_init__(self):
        _positive("Gamma", concentration=self.concentration, rate=self.rate)

    def log_prob(self, x):
        ok = jnp.asarray(x) > 0
        safe = jnp.where(ok, x, 1.0)
        a, b = self.concentration, self.rate
        value = a * jnp.log(b) - jsp.gammaln(a) + (a - 1) * jnp.log(safe) - b * safe
        return jnp.where(ok, value, -jnp.inf)


class Exponential(AbstractPrior):
    """Exponential density with ``rate``."""

    rate: float = 1.0

    def __check_init__(self):
        _positive("Exponential", rate=self.rate)

    def log_prob(self, x):
        return jnp.where(jnp.asarray(x) >= 0, jnp.log(self.rate) - self.rate * x, -jnp.inf)


class StudentT(AbstractPrior):
    """Student's t density with ``df`` degrees of freedom, ``loc`` and ``scale``."""

    df: float
    loc: float = 0.0
    scale: float = 1.0

    def __check_init__(self):
        _positive("StudentT", df=self.df, scale=self.scale)

    def log_prob(self, x):
        v = self.df
        z = (x - self.loc) / self.scale
        constant = jsp.gammaln((v + 1) / 2) - jsp.gammaln(v / 2) - 0.5 * jnp.log(v * jnp.pi)
        return constant - jnp.log(self.scale) - 0.5 * (v + 1) * jnp.log1p(z**2 / v)


class Cauchy(AbstractPrior):
    """Cauchy density with ``loc`` and ``scale``."""

    loc: float = 0.0
    scale: float = 1.0

    def __check_init__(self):
        _positive("Cauchy", scale=self.scale)

    def log_prob(self, x):
        return StudentT(1.0, self.loc, self.scale).log_prob(x)


class LKJ(eqx.Module):
    """Density of a correlation matrix, proportional to ``det(R)^(concentration - 1)``.

    Lewandowski, Kurowicka and Joe (2009). The normalising constant is left out.
    """

    concentration: float = 1.0

    def __check_init__(self):
        _positive("LKJ", concentration=self.concentration)

    def log_prob(self, correlation: Float[Array, "r r"]) -> Float[Array, ""]:
        """Return the log density up to its constant."""
        sign, logdet = jnp.linalg.slogdet(correlation)
        return jnp.where(sign > 0, (self.concentration - 1) * logdet, -jnp.inf)
