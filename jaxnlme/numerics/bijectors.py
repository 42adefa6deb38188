"""One-to-one maps from the whole line to a parameter's natural scale.

A user's own map is a subclass of :class:`AbstractBijector`, or any two functions through
:class:`Bijector`; define it once at module level, a new object compiles anew.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.stats as jst

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme._typing import Array, ArrayLike


class AbstractBijector(eqx.Module):
    """Map ``forward``: unconstrained -> natural, ``inverse``: natural -> unconstrained."""

    name: eqx.AbstractVar[str]
    domain: eqx.AbstractVar[tuple[float, float]]

    @abc.abstractmethod
    def forward(self, x: ArrayLike) -> Array:
        """Return the natural value."""

    @abc.abstractmethod
    def inverse(self, y: ArrayLike) -> Array:
        """Return the unconstrained value."""


class Identity(AbstractBijector):
    """No transformation."""

    name: str = eqx.field(default="identity", static=True)
    domain: tuple[float, float] = eqx.field(default=(-float("inf"), float("inf")), static=True)

    def forward(self, x):
        return x

    def inverse(self, y):
        return y


class Log(AbstractBijector):
    """Positive parameters: natural = exp(x)."""

    name: str = eqx.field(default="log", static=True)
    domain: tuple[float, float] = eqx.field(default=(0.0, float("inf")), static=True)

    def forward(self, x):
        return jnp.exp(x)

    def inverse(self, y):
        return jnp.log(y)


class Probit(AbstractBijector):
    """Parameters in (0, 1): natural = Phi(x)."""

    name: str = eqx.field(default="probit", static=True)
    domain: tuple[float, float] = eqx.field(default=(0.0, 1.0), static=True)

    def forward(self, x):
        return jst.norm.cdf(x)

    def inverse(self, y):
        return jax.scipy.special.ndtri(y)


class Logit(AbstractBijector):
    """Parameters in (0, 1): natural = 1 / (1 + exp(-x))."""

    name: str = eqx.field(default="logit", static=True)
    domain: tuple[float, float] = eqx.field(default=(0.0, 1.0), static=True)

    def forward(self, x):
        return jax.nn.sigmoid(x)

    def inverse(self, y):
        y = jnp.asarray(y)
        return jnp.log(y) - jnp.log1p(-y)


class Bijector(AbstractBijector):
    """A user's map from two functions.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> square = Bijector(lambda x: x**2, jnp.sqrt, name="square", domain=(0.0, float("inf")))
    >>> float(square.forward(3.0))
    9.0
    """

    forward_function: Callable = eqx.field(static=True)
    inverse_function: Callable = eqx.field(static=True)
    name: str = eqx.field(static=True)
    domain: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        forward: Callable,
        inverse: Callable,
        *,
        name: str = "user",
        domain: tuple[float, float] = (-float("inf"), float("inf")),
    ):
        self.forward_function = forward
        self.inverse_function = inverse
        self.name = name
        self.domain = domain

    def forward(self, x):
        return self.forward_function(x)

    def inverse(self, y):
        return self.inverse_function(y)


BY_NAME = {"identity": Identity(), "log": Log(), "probit": Probit(), "logit": Logit()}
BY_MATLAB_CODE = {0: "identity", 1: "log", 2: "probit", 3: "logit"}


def as_bijector(value: str | AbstractBijector | None, *, argument: str = "transform"):
    """Return the bijector named ``value``; pass bijectors through."""
    if value is None:
        return BY_NAME["identity"]
    if isinstance(value, AbstractBijector):
        return value
    if isinstance(value, str) and value in BY_NAME:
        return BY_NAME[value]
    raise ModelSpecError(
        f"{argument}={value!r} is not known: use one of {sorted(BY_NAME)} or a Bijector."
        + nearest(str(value), BY_NAME)
    )
