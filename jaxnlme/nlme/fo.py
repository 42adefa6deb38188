"""FO: first-order approximation at u = 0 (Sheiner and Beal 1980)."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme.error_models import density_given_sd
from jaxnlme.nlme.conditional import natural
from jaxnlme.nlme.evaluate import derivatives, phi_of, taylor, to_random, to_random_square
from jaxnlme.nlme.method import AbstractMarginalMethod, Inner
from jaxnlme.numerics.small_linalg import cho_solve_vector, cholesky, logdet


class FO(AbstractMarginalMethod):
    """``y_i ~ N(f(beta, 0), Z psi Z' + diag(sd^2))`` with Z and sd at b = 0.

    Parameters
    ----------
    tolerance
        Stop when half the Newton decrement of -log L is below it.

    Notes
    -----
    Biased where random effects enter nonlinearly, and its log-likelihood cannot be compared with that
    of other methods. ``-n/2 log 2 pi`` is kept. Tested against ``exact_*.json`` (fo, fo_at_ml).
    """

    tolerance: float = eqx.field(default=1e-9, kw_only=True)

    @property
    def name(self) -> str:
        return "FO"

    def hold(self, problem, params, u0):
        hat = phi_of(problem, params.beta, jnp.zeros_like(u0))
        return hat, derivatives(problem, hat, 2)

    def groups(self, problem, params, held):
        hat, everything = held
        zero = jnp.zeros((problem.num_groups, problem.num_random), problem.y.dtype)
        phi = phi_of(problem, params.beta, zero)
        f, J = taylor(phi, hat, everything)
        nat = natural(problem, params)
        w, z = problem.weights, problem.response()
        sd = jnp.broadcast_to(problem.error_model.sd(f, nat.error), f.shape)
        used = w > 0
        precision = jnp.where(used, w / jnp.where(used, sd, 1.0) ** 2, 0.0)
        residual = jnp.where(used, z - f, 0.0)
        # Woodbury: V^-1 = R^-1 - R^-1 Z L H^-1 L'Z' R^-1 with H = I + L'Z'R^-1 Z L.
        g = to_random((precision * residual)[..., None] * J, nat.BL)
        JJ = J[..., :, None] * J[..., None, :]
        H = jnp.eye(problem.num_random, dtype=f.dtype)[None] + to_random_square(
            precision[..., None, None] * JJ, nat.BL
        )
        chol = cholesky(H)
        u = cho_solve_vector(chol, g)
        value = -jnp.sum(density_given_sd(z, f, sd, w), 1)
        value = value + 0.5 * jnp.sum(g * u, -1) - 0.5 * logdet(chol)
        converged = jnp.isfinite(value)
        return Inner(value, jax.lax.stop_gradient(u), converged, *everything[:2])
