"""What is added to minus the log-likelihood of a fit. A new penalty is one class."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme._typing import Float


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
        return sum(
            (part.hessian(b) for part in self.parts), jnp.zeros((b.shape[0],) * 2, b.dtype)
        )
