"""Link functions: the scale on which a predictor is linear. A new link is one class (or one function)."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme._typing import Array
from jaxnlme.numerics.special import ndtr

T = TypeVar("T")


def attribute(answer: Callable[[Any], T]) -> T:
    """A property that a subclass may answer with a plain class attribute, also to a type checker."""
    return cast(T, property(answer))


class AbstractLink(eqx.Module):
    """``eta = link(mu)``, ``mu = inverse(eta)``; elementwise, any shape, dtype of the input."""

    @attribute
    @abc.abstractmethod
    def name(self) -> str:
        """Name as users spell it."""

    @abc.abstractmethod
    def link(self, mu: Array) -> Array:
        """The linear predictor of a mean."""

    @abc.abstractmethod
    def inverse(self, eta: Array) -> Array:
        """The mean of a linear predictor; outside the domain a value that ``valid`` refuses, or NaN."""

    def derivative(self, eta: Array) -> Array:
        """``d mu / d eta``."""
        return jax.jvp(self.inverse, (eta,), (jnp.ones_like(eta),))[1]

    def complement(self, eta: Array) -> Array:
        """``1 - inverse(eta)``, without cancellation where a link knows how."""
        return 1 - self.inverse(eta)

    def valid(self, eta: Array) -> Array:
        """Where ``inverse`` is defined, bool."""
        return jnp.isfinite(eta)


class Identity(AbstractLink):
    """``eta = mu``."""

    name = "identity"

    def link(self, mu):
        return mu

    def inverse(self, eta):
        return eta

    def derivative(self, eta):
        return jnp.ones_like(eta)


class Log(AbstractLink):
    """``eta = log mu``."""

    name = "log"

    def link(self, mu):
        return jnp.log(mu)

    def inverse(self, eta):
        return jnp.exp(eta)

    def complement(self, eta):
        return -jnp.expm1(eta)

    def derivative(self, eta):
        return jnp.exp(eta)


class Logit(AbstractLink):
    """``eta = log(mu / (1 - mu))``."""

    name = "logit"

    def link(self, mu):
        return jnp.log(mu) - jnp.log1p(-mu)

    def inverse(self, eta):
        return jax.nn.sigmoid(eta)

    def complement(self, eta):
        return jax.nn.sigmoid(-eta)

    def derivative(self, eta):
        return jax.nn.sigmoid(eta) * jax.nn.sigmoid(-eta)


class Probit(AbstractLink):
    """``eta = Phi^-1(mu)``."""

    name = "probit"

    def link(self, mu):
        return ndtri(mu)

    def inverse(self, eta):
        return ndtr(eta)

    def complement(self, eta):
        return ndtr(-eta)

    def derivative(self, eta):
        return jnp.exp(-0.5 * eta**2) / jnp.sqrt(2 * jnp.asarray(jnp.pi, eta.dtype))


class CLogLog(AbstractLink):
    """``eta = log(-log(1 - mu))``."""

    name = "cloglog"

    def link(self, mu):
        return jnp.log(-jnp.log1p(-mu))

    def inverse(self, eta):
        return -jnp.expm1(-jnp.exp(eta))

    def complement(self, eta):
        return jnp.exp(-jnp.exp(eta))

    def derivative(self, eta):
        return jnp.exp(eta - jnp.exp(eta))


class LogLog(AbstractLink):
    """``eta = -log(-log mu)``."""

    name = "loglog"

    def link(self, mu):
        return -jnp.log(-jnp.log(mu))

    def inverse(self, eta):
        return jnp.exp(-jnp.exp(-eta))

    def complement(self, eta):
        return -jnp.expm1(-jnp.exp(-eta))

    def derivative(self, eta):
        return jnp.exp(-eta - jnp.exp(-eta))


class Cauchit(AbstractLink):
    """``eta = tan(pi (mu - 1/2))``."""

    name = "cauchit"

    def link(self, mu):
        return jnp.tan(jnp.pi * (mu - 0.5))

    def inverse(self, eta):
        return jnp.arctan2(jnp.ones_like(eta), -eta) / jnp.pi

    def complement(self, eta):
        return jnp.arctan2(jnp.ones_like(eta), eta) / jnp.pi

    def derivative(self, eta):
        return 1 / (jnp.pi * (1 + eta**2))


class Inverse(AbstractLink):
    """``eta = 1 / mu``."""

    name = "inverse"

    def link(self, mu):
        return 1 / mu

    def inverse(self, eta):
        return 1 / eta

    def derivative(self, eta):
        return -1 / eta**2

    def valid(self, eta):
        return jnp.isfinite(eta) & (eta != 0)


class InverseSquare(AbstractLink):
    """``eta = 1 / mu^2`` with ``mu > 0``."""

    name = "inverse_square"

    def link(self, mu):
        return 1 / mu**2

    def inverse(self, eta):
        return 1 / jnp.sqrt(eta)

    def derivative(self, eta):
        return -0.5 / (eta * jnp.sqrt(eta))

    def valid(self, eta):
        return jnp.isfinite(eta) & (eta > 0)


class Sqrt(AbstractLink):
    """``eta = sqrt(mu)`` with ``eta > 0``."""

    name = "sqrt"

    def link(self, mu):
        return jnp.sqrt(mu)

    def inverse(self, eta):
        return eta**2

    def derivative(self, eta):
        return 2 * eta

    def valid(self, eta):
        return jnp.isfinite(eta) & (eta > 0)


class Power(AbstractLink):
    """``eta = mu^p`` with ``mu > 0``; ``p = 0`` is the log link.

    Examples
    --------
    >>> import numpy as np
    >>> float(Power(2.0).inverse(np.float32(9.0)))
    3.0
    """

    p: float = eqx.field(static=True)

    def __init__(self, p: Any) -> None:
        value = float(p)
        if not math.isfinite(value):
            raise ModelSpecError(f"Power(p={p!r}): p must be a finite number.")
        self.p = value

    @property
    def name(self) -> str:
        return f"power({self.p:g})"

    def link(self, mu):
        return mu**self.p if self.p else jnp.log(mu)

    def inverse(self, eta):
        return eta ** (1 / self.p) if self.p else jnp.exp(eta)

    def derivative(self, eta):
        return eta ** (1 / self.p - 1) / self.p if self.p else jnp.exp(eta)

    def valid(self, eta):
        return jnp.isfinite(eta) & ((eta > 0) | (self.p == 0))


class Interval(AbstractLink):
    """``eta = logit((mu - low) / (high - low))``: a parameter between two numbers.

    Examples
    --------
    >>> import numpy as np
    >>> float(Interval(1.0, 2.0).inverse(np.float32(0.0)))
    1.5
    """

    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, low: Any, high: Any) -> None:
        if not low < high:
            raise ModelSpecError(f"Interval(low={low!r}, high={high!r}): low must be below high.")
        self.low, self.high = float(low), float(high)

    @property
    def name(self) -> str:
        return f"interval({self.low:g}, {self.high:g})"

    def link(self, mu):
        return jnp.log(mu - self.low) - jnp.log(self.high - mu)

    def inverse(self, eta):
        return self.low + (self.high - self.low) * jax.nn.sigmoid(eta)

    def derivative(self, eta):
        return (self.high - self.low) * jax.nn.sigmoid(eta) * jax.nn.sigmoid(-eta)


class Custom(AbstractLink):
    """A link from one function: the inverse link ``mu = inverse(eta)``, strictly increasing.

    ``link`` is found by bisection over ``|eta| < 1e17``, the derivative by differentiation.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> softplus = Custom(lambda eta: jnp.log1p(jnp.exp(eta)), name="softplus")
    >>> round(float(softplus.link(softplus.inverse(0.7))), 5)
    0.7
    """

    function: Callable[[Any], Any] = eqx.field(static=True)
    label: str = eqx.field(static=True, default="custom")

    def __init__(self, function: Any, name: str = "custom") -> None:
        if not callable(function):
            raise ModelSpecError(
                f"links.Custom: expected a function of eta written with jax.numpy, found {function!r}."
            )
        self.function, self.label = function, name

    @property
    def name(self) -> str:
        return self.label

    def inverse(self, eta):
        return self.function(jnp.asarray(eta))

    def link(self, mu):
        mu = jnp.asarray(mu)
        low, high = jnp.full_like(mu, -40), jnp.full_like(mu, 40)

        def halve(
            _, ends
        ):  # in asinh(eta), which reaches far and resolves eta relative to its size
            low, high = ends
            middle = 0.5 * (low + high)
            value = self.function(jnp.sinh(middle))
            # where the function overflows to NaN the root lies nearer to 0
            below = jnp.where(middle < 0, ~(value >= mu), value < mu)
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        low, high = jax.lax.fori_loop(0, 70, halve, (low, high))
        return jnp.sinh(0.5 * (low + high))


LINKS: dict[str, AbstractLink] = {
    link.name: link
    for link in (
        Identity(), Log(), Logit(), Probit(), CLogLog(), LogLog(), Cauchit(), Inverse(),
        InverseSquare(), Sqrt(),
    )
}  # fmt: skip
_ALIASES = {"1/mu^2": "inverse_square", "1/mu": "inverse", "logistic": "logit"}


def as_link(link: Any, *, argument: str = "link") -> AbstractLink:
    """Return a link object from its name or itself.

    Raises
    ------
    ModelSpecError
        Neither a known name nor a link.

    Examples
    --------
    >>> as_link("probit").name
    'probit'
    """
    if isinstance(link, str):
        name = _ALIASES.get(link, link)
        if name in LINKS:
            return LINKS[name]
        raise ModelSpecError(
            f"{argument}={link!r} is not a link. Links: {', '.join(LINKS)}, or jn.links.Power(p), "
            f"jn.links.Custom(inverse).{nearest(link, LINKS)}"
        )
    if isinstance(link, AbstractLink):
        return link
    raise ModelSpecError(
        f"{argument}: expected a name or a jn.links object, found {type(link).__name__}."
    )
