"""What is added to minus the log-likelihood of a fit. A new penalty is one class."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme._errors import ModelSpecError
from jaxnlme._typing import Array, Float


class AbstractPenalty(eqx.Module):
    """A smooth function of the coefficients (P,), on the scale of the total minus log-likelihood."""

    @property
    def trivial(self) -> bool:
        """True when there is nothing to add."""
        return False

    @property
    def jeffreys(self) -> bool:
        """True for Firth's correction: half the log-determinant of the information is subtracted."""
        return False

    @abc.abstractmethod
    def value(self, b: Float[Array, "p"]) -> Float[Array, ""]:
        """The penalty at these coefficients."""

    def gradient(self, b: Float[Array, "p"]) -> Float[Array, "p"]:
        """Its gradient."""
        return jax.grad(self.value)(b)

    def hessian(self, b: Float[Array, "p"]) -> Float[Array, "p p"]:
        """Its second derivatives."""
        return jax.hessian(self.value)(b)


class NoPenalty(AbstractPenalty):
    """Maximum likelihood."""

    @property
    def trivial(self) -> bool:
        return True

    def value(self, b):
        return jnp.zeros((), b.dtype)


class Firth(AbstractPenalty):
    """Jeffreys' prior: removes the first-order bias and keeps estimates finite under separation (Firth 1993)."""

    @property
    def jeffreys(self) -> bool:
        return True

    def value(self, b):
        return jnp.zeros((), b.dtype)

    def gradient(self, b):
        return jnp.zeros_like(b)

    def hessian(self, b):
        return jnp.zeros((b.shape[0],) * 2, b.dtype)


class Quadratic(AbstractPenalty):
    """``b' P b / 2``.

    ``P`` (p, p) is symmetric and positive semidefinite, on the scale of the mean negative log-likelihood
    when given to a door (which multiplies it by the sum of the weights).
    """

    P: Float[Array, "p p"]

    def value(self, b):
        return 0.5 * b @ (self.P @ b)

    def gradient(self, b):
        return self.P @ b

    def hessian(self, b):
        return self.P


class Ridge(eqx.Module):
    """``alpha / 2 * |b|^2`` added to the mean negative log-likelihood, the intercept free.

    The same as ``alpha=`` of :func:`jaxnlme.fit_glm`; on standardised columns when ``standardize`` is on.
    """

    alpha: float | int = eqx.field(static=True)


class Monotone(eqx.Module):
    """Coefficients in ascending (or descending) order: ``Monotone(["age2", "age3", "age4"])``.

    With ``from_zero`` the first of them is also at or above (below) 0, the base level of a treatment
    contrast.
    """

    labels: tuple[str, ...] = eqx.field(static=True, converter=tuple)
    increasing: bool = eqx.field(static=True, default=True)
    from_zero: bool = eqx.field(static=True, default=False)


class LinearEquality(eqx.Module):
    """Coefficients with ``C b = d`` exactly; ``C`` (m, p), ``d`` (m,), in the order of the labels."""

    C: Any
    d: Any = 0.0


class Priors(AbstractPenalty):
    """Minus the log density of independent priors, one per coefficient (None: flat)."""

    priors: tuple[Any, ...]  # jaxnlme.priors objects or None

    def value(self, b):
        total = jnp.zeros((), b.dtype)
        for k, prior in enumerate(self.priors):
            if prior is not None:
                total = total - prior.log_prob(b[k])
        return total


class Sum(AbstractPenalty):
    """Several penalties added."""

    parts: tuple[AbstractPenalty, ...]

    @property
    def jeffreys(self) -> bool:
        return any(part.jeffreys for part in self.parts)

    def value(self, b):
        return sum((part.value(b) for part in self.parts), jnp.zeros((), b.dtype))

    def gradient(self, b):
        return sum((part.gradient(b) for part in self.parts), jnp.zeros_like(b))

    def hessian(self, b):
        return sum((part.hessian(b) for part in self.parts), jnp.zeros((b.shape[0],) * 2, b.dtype))


def __getattr__(name: str) -> Any:
    if name in ("Lasso", "ElasticNet", "SCAD", "MCP", "GroupLasso"):
        raise ModelSpecError(
            f"jn.penalties.{name} is not built yet; it comes with penalty paths. Built: Ridge, Quadratic, "
            "Firth, Monotone, LinearEquality."
        )
    raise AttributeError(f"module 'jaxnlme.penalties' has no attribute {name!r}")
