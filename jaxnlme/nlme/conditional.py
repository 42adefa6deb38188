"""Density of one group's responses and random effects, and its mode in u."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnlme._typing import Array, Float
from jaxnlme.error_models import density_given_sd
from jaxnlme.nlme.evaluate import (
    derivatives,
    phi_of,
    random_factor,
    taylor,
    to_random,
    to_random_square,
)
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.numerics.blocks import small_matmul
from jaxnlme.numerics.mode import Evaluation, Mode, find_mode
from jaxnlme.numerics.small_linalg import cho_solve_vector


class Natural(NamedTuple):
    """Parameters as the density uses them."""

    BL: Float[Array, "mb nb p q"]
    factor: Float[Array, "q q"]
    error: Float[Array, "k"]


def natural(problem: NLMEProblem, params: NLMEParams) -> Natural:
    """Return the factor of the covariance and the error parameters on their natural scale."""
    factor = problem.covariance.factor(params.theta)
    error = problem.error_model.natural(params.error)
    return Natural(random_factor(problem.B, factor), factor, error)


def phi_at(
    problem: NLMEProblem, params: NLMEParams, u: Float[Array, "m q"]
) -> Float[Array, "m n p"]:
    """Return phi at spherical random effects ``u``."""
    factor = problem.covariance.factor(params.theta)
    return phi_of(problem, params.beta, small_matmul(u, factor.T))


class Joint(NamedTuple):
    """-log p(y, u) per group (without the normal constants of u) from f and its derivatives in phi.

    Each part is formed where it is asked for: what a program traces and throws away costs start-up time.
    ``frozen_sd`` replaces the error model's sd where it may not follow the random effects (FO, FOCE without
    interaction).
    """

    problem: NLMEProblem
    nat: Natural
    u: Float[Array, "m q"]
    f: Float[Array, "m n"]
    J: Float[Array, "m n p"]
    frozen_sd: Float[Array, "m n"] | None = None

    def sd(self, f: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """Residual sd where the model predicts ``f``."""
        if self.frozen_sd is not None:
            return self.frozen_sd
        return self.problem.error_model.sd(f, self.nat.error)

    def rows(self, f: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """-log density of each response where the model predicts ``f``."""
        return density_given_sd(self.problem.response(), f, self.sd(f), self.problem.weights)

    def slopes(self, f: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """Derivative of :meth:`rows`."""
        return jax.jvp(self.rows, (f,), (jnp.ones_like(f),))[1]

    def slopes_and_curvatures(self) -> tuple[Array, Array]:
        """First and second derivative of :meth:`rows` at ``f``."""
        return jax.jvp(self.slopes, (self.f,), (jnp.ones_like(self.f),))

    def value(self) -> Float[Array, "m"]:
        """Its value."""
        return jnp.sum(self.rows(self.f), 1) + 0.5 * jnp.sum(self.u**2, -1)

    def gradient(self, l1: Float[Array, "m n"]) -> Float[Array, "m q"]:
        """Gradient in u from the slopes."""
        return self.u + to_random(l1[..., None] * self.J, self.nat.BL)

    def hessian(self, l1: Array, l2: Array, K: Float[Array, "m n p p"]) -> Float[Array, "m q q"]:
        """Hessian in u from slopes, curvatures and the curvature of the model."""
        curvature = l2[..., None, None] * self._squares() + l1[..., None, None] * K
        return self._eye() + to_random_square(curvature, self.nat.BL)

    def information(self) -> Float[Array, "m q q"]:
        """Expected (Gauss-Newton) information in u."""
        sd, dsd = jax.jvp(self.sd, (self.f,), (jnp.ones_like(self.f),))
        w, used = self.problem.weights, self.problem.weights > 0
        info = jnp.where(used, (w + 2.0 * dsd**2) / jnp.where(used, sd, 1.0) ** 2, 0.0)
        return self._eye() + to_random_square(info[..., None, None] * self._squares(), self.nat.BL)

    def _squares(self):
        return self.J[..., :, None] * self.J[..., None, :]

    def _eye(self):
        return jnp.eye(self.u.shape[-1], dtype=self.u.dtype)[None]


def conditional_mode(
    problem: NLMEProblem,
    params: NLMEParams,
    u0: Float[Array, "m q"],
    frozen_sd: Float[Array, "m n"] | None = None,
) -> Mode:
    """Find the mode of p(u | y) for every group; ``aux`` holds ``(phi, f, J, K)`` there."""
    nat = natural(problem, params)

    def evaluate(u):
        phi = phi_of(problem, params.beta, small_matmul(u, nat.factor.T))
        f, J, K = derivatives(problem, phi, 2)
        joint = Joint(problem, nat, u, f, J, frozen_sd)
        l1, l2 = joint.slopes_and_curvatures()
        return Evaluation(
            joint.value(),
            joint.gradient(l1),
            joint.hessian(l1, l2, K),
            joint.information(),
            (phi, f, J, K),
        )

    return find_mode(evaluate, u0)


def implicit_mode(
    problem: NLMEProblem,
    params: NLMEParams,
    mode: Mode,
    chol_hessian: Float[Array, "m q q"],
    frozen_sd: Float[Array, "m n"] | None = None,
) -> Float[Array, "m q"]:
    """Return the mode as a function of ``params``: one Newton step from the stored mode.

    At the parameters of ``mode`` the step vanishes, and its derivative is the implicit function
    theorem's ``-H^-1 d(gradient)/d(params)``.
    """
    u_hat = jax.lax.stop_gradient(mode.u)
    phi_hat, f, J, K = mode.evaluation.aux
    nat = natural(problem, params)
    f_, J_ = taylor(phi_at(problem, params, u_hat), phi_hat, (f, J, K))
    joint = Joint(problem, nat, u_hat, f_, J_, frozen_sd)
    gradient = joint.gradient(joint.slopes(f_))
    return u_hat - cho_solve_vector(jax.lax.stop_gradient(chol_hessian), gradient)
