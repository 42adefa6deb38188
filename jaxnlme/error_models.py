"""Residual error: y = f + sd(f) e with e ~ N(0, 1), or the same on the log scale.

Parameters live on the log scale inside the optimisers (``log_error``). A prior weight w divides the
variance: sd = sd(f) / sqrt(w). A user's own model is a subclass of :class:`AbstractErrorModel`.
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax.numpy as jnp

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme._typing import Array, Float

_LOG_2PI = 1.8378770664093453


class AbstractErrorModel(eqx.Module):
    """How a response scatters around the model's prediction ``f``."""

    name: eqx.AbstractVar[str]
    parameters: eqx.AbstractVar[tuple[str, ...]]
    log_scale: eqx.AbstractVar[bool]
    depends_on_f: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def sd(self, f: Float[Array, "*b"], error: Float[Array, "k"]) -> Float[Array, "*b"]:
        """Standard deviation at prediction ``f`` (on the log scale when ``log_scale``)."""

    def start(self, mean_square_residual: Array, mean_square_f: Array) -> Float[Array, "k"]:
        """Return unconstrained start values from the residuals of the start prediction.

        A quarter of the variance is given to the error, shared between its parameters.
        """
        a = 0.5 * jnp.sqrt(mean_square_residual)
        b = 0.5 * jnp.sqrt(mean_square_residual / mean_square_f)
        share = float(len(self.parameters)) ** -0.5
        parts = [a if self.additive[k] else b for k in range(len(self.parameters))]
        return jnp.log(jnp.stack(parts) * share)

    @property
    def additive(self) -> tuple[bool, ...]:
        """True for parameters in units of the response itself, False for relative ones."""
        return tuple(name == "a" for name in self.parameters)

    @property
    def vanishes_at_zero(self) -> bool:
        """True when the standard deviation is 0 where the model predicts 0."""
        return False

    @property
    def units(self) -> tuple[bool, ...]:
        """True for parameters in units of the response: they scale with the first one."""
        return (True,) * len(self.parameters)

    @property
    def positive(self) -> tuple[bool, ...]:
        """True for parameters that live on the log scale inside the optimisers."""
        return (True,) * len(self.parameters)

    def natural(self, unconstrained: Float[Array, "k"]) -> Float[Array, "k"]:
        """Return the parameters on their natural scale."""
        return jnp.where(jnp.array(self.positive), jnp.exp(unconstrained), unconstrained)

    def shape_sd(self, f: Float[Array, "*b"], shape: Float[Array, "s"]) -> Float[Array, "*b"]:
        """Standard deviation divided by the first parameter, given the others relative to it.

        LME profiles the first parameter out, so it needs the relative part alone. ``shape`` is
        unconstrained.
        """
        head = jnp.zeros((1,), shape.dtype)
        return self.sd(f, self.natural(jnp.concatenate([head, shape])))

    def relative(self, unconstrained: Float[Array, "k"]) -> Float[Array, "s"]:
        """Return the parameters beyond the first relative to it (the inverse of ``absolute``)."""
        units = jnp.array(self.units[1:], bool)
        return unconstrained[1:] - jnp.where(units, unconstrained[0], 0.0)

    def absolute(self, sigma: Float[Array, ""], shape: Float[Array, "s"]) -> Float[Array, "k"]:
        """Return the unconstrained parameters from ``sigma`` and the relative shape."""
        log_sigma = jnp.log(sigma)
        shift = jnp.where(jnp.array(self.units[1:], bool), log_sigma, 0.0)
        return jnp.concatenate([log_sigma[None], shape + shift])


class Constant(AbstractErrorModel):
    """sd = a."""

    name: str = eqx.field(default="constant", static=True)
    parameters: tuple[str, ...] = eqx.field(default=("a",), static=True)
    log_scale: bool = eqx.field(default=False, static=True)
    depends_on_f: bool = eqx.field(default=False, static=True)

    def sd(self, f, error):
        return jnp.broadcast_to(error[0], f.shape)


class Proportional(AbstractErrorModel):
    """sd = b |f|."""

    name: str = eqx.field(default="proportional", static=True)
    parameters: tuple[str, ...] = eqx.field(default=("b",), static=True)
    log_scale: bool = eqx.field(default=False, static=True)
    depends_on_f: bool = eqx.field(default=True, static=True)

    @property
    def vanishes_at_zero(self):
        return True

    def sd(self, f, error):
        return error[0] * _magnitude(f)


class Combined(AbstractErrorModel):
    """sd = a + b |f| (MATLAB's ``combined``, also called combined1)."""

    name: str = eqx.field(default="combined", static=True)
    parameters: tuple[str, ...] = eqx.field(default=("a", "b"), static=True)
    log_scale: bool = eqx.field(default=False, static=True)
    depends_on_f: bool = eqx.field(default=True, static=True)

    def sd(self, f, error):
        return error[0] + error[1] * _magnitude(f)


class Combined2(AbstractErrorModel):
    """sd = sqrt(a^2 + b^2 f^2) (saemix's and nlmixr2's ``combined``)."""

    name: str = eqx.field(default="combined2", static=True)
    parameters: tuple[str, ...] = eqx.field(default=("a", "b"), static=True)
    log_scale: bool = eqx.field(default=False, static=True)
    depends_on_f: bool = eqx.field(default=True, static=True)

    def sd(self, f, error):
        return jnp.sqrt(error[0] ** 2 + (error[1] * f) ** 2)


class Exponential(AbstractErrorModel):
    """log y = log f + a e; the density of y itself is reported (minus sum log y)."""

    name: str = eqx.field(default="exponential", static=True)
    parameters: tuple[str, ...] = eqx.field(default=("a",), static=True)
    log_scale: bool = eqx.field(default=True, static=True)
    depends_on_f: bool = eqx.field(default=False, static=True)

    def sd(self, f, error):
        return jnp.broadcast_to(error[0], f.shape)


class Power(AbstractErrorModel):
    """sd = b |f|^c (R's varPower with sigma = b; the seed's ``f^(2s)`` variance)."""

    name: str = eqx.field(default="power", static=True)
    parameters: tuple[str, ...] = eqx.field(default=("b", "c"), static=True)
    log_scale: bool = eqx.field(default=False, static=True)
    depends_on_f: bool = eqx.field(default=True, static=True)

    @property
    def units(self):
        return (True, False)

    @property
    def positive(self):
        return (True, False)

    def start(self, mean_square_residual, mean_square_f):
        b = 0.5 * jnp.sqrt(mean_square_residual / jnp.sqrt(mean_square_f))
        return jnp.stack([jnp.log(b), jnp.full_like(b, 0.5)])

    @property
    def vanishes_at_zero(self):
        return True

    def sd(self, f, error):
        return error[0] * _magnitude(f) ** error[1]


def _magnitude(f):
    """|f|, kept away from zero so that gradients stay finite where the model predicts 0."""
    tiny = 1e-10
    return jnp.where(jnp.abs(f) > tiny, jnp.abs(jnp.where(f == 0, 1.0, f)), tiny)


def negative_log_density(
    model: AbstractErrorModel, z: Array, f: Array, weights: Array, error: Array
) -> Array:
    """-log density of each response; zero where the weight is zero. Includes log(2 pi) / 2.

    ``z`` and ``f`` are on the log scale for log-scale models; the Jacobian -log y is added by the
    problem, once.
    """
    return density_given_sd(z, f, model.sd(f, error), weights)


def density_given_sd(z: Array, f: Array, sd: Array, weights: Array) -> Array:
    """-log N(z; f, sd^2 / weights), zero where the weight is zero."""
    used = weights > 0
    w = jnp.where(used, weights, 1.0)
    r = jnp.where(used, z - f, 0.0)
    nll = 0.5 * w * (r / sd) ** 2 + jnp.log(sd) - 0.5 * jnp.log(w) + 0.5 * _LOG_2PI
    return jnp.where(used, nll, 0.0)


BY_NAME = {
    m.name: m for m in (Constant(), Proportional(), Combined(), Combined2(), Exponential(), Power())
}


def as_error_model(value: str | AbstractErrorModel) -> AbstractErrorModel:
    """Return the error model named ``value``; pass objects through.

    Examples
    --------
    >>> as_error_model("combined").parameters
    ('a', 'b')
    """
    if isinstance(value, AbstractErrorModel):
        return value
    if isinstance(value, str) and value in BY_NAME:
        return BY_NAME[value]
    raise ModelSpecError(
        f"error_model={value!r} is not known: use one of {sorted(BY_NAME)} or an "
        "AbstractErrorModel." + nearest(str(value), BY_NAME)
    )
