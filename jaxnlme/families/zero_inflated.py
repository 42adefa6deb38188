"""Zero-inflated and hurdle models: a probability of zero beside another family."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme._typing import Array
from jaxnlme.families._base import Parameter, Prepared, weighted_mean
from jaxnlme.families._registry import as_family
from jaxnlme.families._wrapped import AbstractWrapped
from jaxnlme.links import AbstractLink, as_link
from jaxnlme.numerics.special import log1mexp


class _WithZeros(AbstractWrapped):
    """A base family and the probability ``zero``, the last parameter."""

    zero_formula: str = eqx.field(static=True)
    zero_link: AbstractLink

    def __init__(self, family: Any = "poisson", zero: str = "~ 1", link: Any = "logit") -> None:
        base = as_family(family).full_likelihood()
        if not base.has_likelihood or base.response_width > 1 or base.classes is not None:
            raise ModelSpecError(
                f"{type(self).__name__}({base.name!r}): expected a family of counts or amounts with a likelihood, "
                "such as Poisson(), NegativeBinomial() or Gamma()."
            )
        self.base, self.zero_formula, self.zero_link = base, _formula(zero), as_link(link)

    @property
    def parameters(self):
        zero = Parameter("zero", self.zero_link, self.zero_formula, listed=True)
        return (*self.base.parameters, zero)

    @property
    def formulas(self):
        return {"zero": self.zero_formula}

    def valid(self, mu, *others):
        return self.base.valid(mu, *others[:-1]) & (others[-1] > 0) & (others[-1] < 1)

    def boundary_notes(self, scalars, y, weights):
        return self.base.boundary_notes(scalars, y, weights)

    def read_response(self, response):
        live = response.weights > 0
        if np.ndim(response.values) == 1 and not np.any(live & (response.values == 0)):
            raise DataError(
                f"response {response.name!r} holds no zero: {self.name} has nothing to estimate. Use the family "
                f"{self.base.name!r} itself, or Truncated(...) when zeros cannot occur."
            )
        return self._read(response)

    @abc.abstractmethod
    def _read(self, response) -> Prepared:
        """Let the base family check and bring into form the rows that it explains."""

    def start_mean(self, y, weights):
        positive = jnp.where(y > 0, weights, 0)
        return self.base.start_mean(jnp.where(y > 0, y, weighted_mean(y, positive)), weights)

    def start_others(self, y, weights):
        zeros = weighted_mean((y == 0).astype(weights.dtype), weights)
        start = self.base.start_others(y, jnp.where(y > 0, weights, 0))
        return (*start, jnp.clip(self._start_zero * zeros, 0.01, 0.99))

    _start_zero = 1.0


def _formula(zero: Any) -> str:
    if not isinstance(zero, str) or not zero.strip():
        raise ModelSpecError(f"zero={zero!r}: expected a one-sided formula such as '~ 1' or '~ x'.")
    text = zero.strip()
    return text if text.startswith("~") or text == "mean" else f"~ {text}"


class ZeroInflated(_WithZeros):
    """A mixture of zeros, with probability ``zero``, and a family of counts.

    Parameters
    ----------
    family
        ``Poisson()``, ``NegativeBinomial()`` or another family of counts, or its name.
    zero
        Formula of the probability of an excess zero; ``"mean"`` takes the design of the mean (the default of
        R's pscl).
    link
        Link of that probability.

    Raises
    ------
    ModelSpecError
        The family is not one of counts with a likelihood.

    References
    ----------
    Lambert (1992), Technometrics 34, 1-14.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.float32(1.0)
    >>> family = ZeroInflated("poisson")
    >>> round(float(family.log_prob(0 * one, one, 0.25 * one)), 4)
    -0.6426
    """

    name = "zero_inflated"
    _start_zero = 0.5

    def __init__(self, family: Any = "poisson", zero: str = "~ 1", link: Any = "logit") -> None:
        super().__init__(family, zero, link)
        if not self.base.discrete:
            raise ModelSpecError(
                f"ZeroInflated({self.base.name!r}): amounts have no zeros of their own; use "
                f"Hurdle({self.base.name!r})."
            )

    def log_prob(self, y, mu, *others):
        *rest, zero = others
        log_zero, log_rest = jnp.log(zero), jnp.log1p(-zero)
        mass = log_rest + self.base.log_prob(y, mu, *rest)
        return jnp.where(y == 0, jnp.logaddexp(log_zero, mass), mass)

    def mean(self, mu, *others):
        return (1 - others[-1]) * self.base.mean(mu, *others[:-1])

    def variance_of(self, mu, *others):
        *rest, zero = others
        inner = self.base.variance_of(mu, *rest)
        return (1 - zero) * (inner + zero * self.base.mean(mu, *rest) ** 2)

    def _read(self, response):
        prepared = self.base.read_response(response)
        return Prepared(self, prepared.y, prepared.weights)

    def cdf(self, y, mu, *others, weights=None):
        *rest, zero = others
        return np.where(np.asarray(y) < 0, 0, zero + (1 - zero) * self.base.cdf(y, mu, *rest))

    def quantile(self, p, mu, *others, weights=None):
        *rest, zero = others
        inner = np.clip((np.asarray(p) - zero) / (1 - np.asarray(zero)), 0, 1)
        return np.where(inner > 0, self.base.quantile(inner, mu, *rest), 0.0)

    def sample(self, rng, weights, mu, *others):
        *rest, zero = others
        drawn = self.base.sample(rng, np.ones_like(mu), mu, *rest)
        return np.where(rng.random(np.shape(mu)) < zero, 0.0, drawn)


class Hurdle(_WithZeros):
    """Zero with probability ``zero``; otherwise the family, given that it is positive.

    Counts are truncated at zero; amounts (``Gamma()``, ``LogNormal()``) need no truncation and give a two-part
    model. ``zero`` is the probability of a zero, as in glmmTMB (pscl's zero coefficients have the other sign).

    Parameters
    ----------
    family
        Family of the positive part, or its name.
    zero
        Formula of the probability of a zero; ``"mean"`` takes the design of the mean (the default of pscl).
    link
        Link of that probability.

    References
    ----------
    Mullahy (1986), Journal of Econometrics 33, 341-365.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.float32(1.0)
    >>> round(float(Hurdle("poisson").log_prob(0 * one, one, 0.25 * one)), 4)
    -1.3863
    """

    name = "hurdle"

    def __init__(self, family: Any = "poisson", zero: str = "~ 1", link: Any = "logit") -> None:
        super().__init__(family, zero, link)

    def _log_positive(self, mu: Any, rest: tuple) -> Array:
        """``log P(Y > 0)`` of the base family."""
        if not self.base.discrete:
            return jnp.zeros_like(mu)
        return log1mexp(self.base.log_prob(jnp.zeros_like(mu), mu, *rest))

    def log_prob(self, y, mu, *others):
        *rest, zero = others
        none = y == 0
        inner = self.base.log_prob(jnp.where(none, 1, y).astype(mu.dtype), mu, *rest)
        positive = jnp.log1p(-zero) + inner - self._log_positive(mu, tuple(rest))
        return jnp.where(none, jnp.log(zero), positive)

    def mean(self, mu, *others):
        *rest, zero = others
        inner = self.base.mean(mu, *rest) * jnp.exp(-self._log_positive(mu, tuple(rest)))
        return (1 - zero) * inner

    def variance_of(self, mu, *others):
        *rest, zero = others
        centre = self.base.mean(mu, *rest)
        square = self.base.variance_of(mu, *rest) + centre**2
        square = (1 - zero) * square * jnp.exp(-self._log_positive(mu, tuple(rest)))
        return square - self.mean(mu, *others) ** 2

    def _read(self, response):
        positive = np.where(response.values != 0, response.weights, 0)
        prepared = self.base.read_response(dataclasses.replace(response, weights=positive))
        return Prepared(self, prepared.y, response.weights)

    def _at_zero(self, mu: Any, rest: Any) -> Any:
        return self.base.cdf(0.0 * np.asarray(mu), mu, *rest) if self.base.discrete else 0.0

    def cdf(self, y, mu, *others, weights=None):
        *rest, zero = others
        none = self._at_zero(mu, rest)
        inner = (self.base.cdf(y, mu, *rest) - none) / (1 - none)
        return np.where(np.asarray(y) < 0, 0, zero + (1 - zero) * np.maximum(inner, 0))

    def quantile(self, p, mu, *others, weights=None):
        *rest, zero = others
        none = self._at_zero(mu, rest)
        inner = np.clip((np.asarray(p) - zero) / (1 - np.asarray(zero)), 0, 1)
        value = self.base.quantile(none + (1 - none) * inner, mu, *rest)
        return np.where(inner > 0, value, 0.0)

    def sample(self, rng, weights, mu, *others):
        *rest, zero = others
        none = self._at_zero(mu, rest)
        level = none + (1 - none) * (1 - rng.random(np.shape(mu)))
        drawn = self.base.quantile(level, mu, *rest)
        return np.where(rng.random(np.shape(mu)) < zero, 0.0, drawn)
