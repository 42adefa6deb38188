"""FOCE: first-order conditional estimation (Lindstrom and Bates 1990; Wang 2007, eq. 9-12)."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme.nlme.conditional import Joint, conditional_mode, implicit_mode, natural, phi_at
from jaxnlme.nlme.evaluate import derivatives, phi_of, taylor
from jaxnlme.nlme.method import AbstractMarginalMethod, Inner
from jaxnlme.numerics.small_linalg import cholesky, logdet


class FOCE(AbstractMarginalMethod):
    """Laplace's approximation at the conditional mode with the expected (Gauss-Newton) information.

    ``log L_i = log p(y_i, u_i) - 1/2 log det(I + L'Z'WZL)``, ``W = 1/sd^2 + 2 (sd'/sd)^2`` per row; normal
    constants of u cancel, ``-n/2 log 2 pi`` is kept.

    Parameters
    ----------
    interaction
        True: the residual sd follows the conditional prediction (FOCE-I). False: it is evaluated at
        u = 0 and ``W = 1/sd^2``. No difference for constant and exponential error.
    tolerance
        Stop when half the Newton decrement of -log L is below it.

    Notes
    -----
    Tested against ``exact_*.json`` (foce, foce_at_ml).
    """

    interaction: bool = eqx.field(static=True, default=True)
    tolerance: float = eqx.field(default=1e-9, kw_only=True)

    @property
    def name(self) -> str:
        return "FOCE"

    def hold(self, problem, params, u0):
        return conditional_mode(problem, params, u0, self._frozen_sd(problem, params, u0))

    def groups(self, problem, params, held):
        mode = held
        sd = self._frozen_sd(problem, params, mode.u)
        u = implicit_mode(problem, params, mode, mode.low, sd)
        phi_hat, f_hat, J_hat, K_hat = mode.evaluation.aux
        f, J = taylor(phi_at(problem, params, u), phi_hat, (f_hat, J_hat, K_hat))
        joint = Joint(problem, natural(problem, params), u, f, J, sd)
        value = -joint.value() - 0.5 * logdet(cholesky(joint.information()))
        return Inner(value, mode.u, mode.converged, f_hat, J_hat)

    def _frozen_sd(self, problem, params, u):
        if problem.error_model.depends_on_f and not self.interaction:
            return population_sd(problem, params, u)
        return None


def population_sd(problem, params, like):
    """Residual sd at u = 0, differentiable once in ``params``."""
    zero = jnp.zeros_like(like)
    phi = phi_of(problem, params.beta, zero)
    hat = jax.lax.stop_gradient(phi)
    (f,) = taylor(phi, hat, derivatives(problem, hat, 1))
    nat = natural(problem, params)
    return jnp.broadcast_to(problem.error_model.sd(f, nat.error), problem.y.shape)
