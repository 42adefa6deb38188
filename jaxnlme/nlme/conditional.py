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


class Terms(NamedTuple):
    """-log p(y, u) per group (without the normal constants of u) and its derivatives in u."""

    value: Float[Array, "m"]
    gradient: Float[Array, "m q"]
    hessian: Float[Array, "m q q"]
    information: Float[Array, "m q q"]


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


def terms(
    problem: NLMEProblem,
    nat: Natural,
    u: Float[Array, "m q"],
    f: Float[Array, "m n"],
    J: Float[Array, "m n p"],
    K: Float[Array, "m n p p"] | None,
    frozen_sd: Float[Array, "m n"] | None = None,
) -> Terms:
    """Assemble value, gradient, Hessian and expected information in u from derivatives in phi.

    ``frozen_sd`` replaces the error model's sd where it may not follow the random effects (FO, FOCE
    without interaction). ``K = None`` leaves the curvature of the model out of ``hessian``.
    """
    z, w = problem.response(), problem.weights
    used = w > 0
    eye = jnp.eye(u.shape[-1], dtype=u.dtype)[None]

    def sd_of(f):
        return problem.error_model.sd(f, nat.error) if frozen_sd is None else frozen_sd

    def nll(f):
        return density_given_sd(z, f, sd_of(f), w)

    ones = jnp.ones_like(f)

    def slope(f):
        return jax.jvp(nll, (f,), (ones,))[1]

    l1, l2 = jax.jvp(slope, (f,), (ones,))
    sd, dsd = jax.jvp(sd_of, (f,), (ones,))
    safe_sd = jnp.where(used, sd, 1.0)
    info = jnp.where(used, (w + 2.0 * dsd**2) / safe_sd**2, 0.0)

    value = jnp.sum(nll(f), 1) + 0.5 * jnp.sum(u**2, -1)
    gradient = u + to_random(l1[..., None] * J, nat.BL)
    JJ = J[..., :, None] * J[..., None, :]
    curvature = l2[..., None, None] * JJ
    if K is not None:
        curvature = curvature + l1[..., None, None] * K
    hessian = eye + to_random_square(curvature, nat.BL)
    information = eye + to_random_square(info[..., None, None] * JJ, nat.BL)
    return Terms(value, gradient, hessian, information)


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
        t = terms(problem, nat, u, f, J, K, frozen_sd)
        return Evaluation(t.value, t.gradient, t.hessian, t.information, (phi, f, J, K))

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
    gradient = terms(problem, nat, u_hat, f_, J_, None, frozen_sd).gradient
    return u_hat - cho_solve_vector(jax.lax.stop_gradient(chol_hessian), gradient)
