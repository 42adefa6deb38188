"""Gamma responses."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxnlme.families._base import dispersion_of
from jaxnlme.families._wrapped import AbstractPositive
from jaxnlme.links import Inverse
from jaxnlme.numerics.special import deviance_gap, log_gamma
from jaxnlme.numerics.tails import log_gamma_tails


def gamma_log_density(y, mu, phi):
    """Log density with mean ``mu`` and shape ``1 / phi``."""
    shape = 1 / phi
    ratio = y / mu
    # shape (log ratio - ratio) - log y + shape log shape - log Gamma(shape)
    return shape * (jnp.log(ratio) - ratio) - jnp.log(y) + shape * jnp.log(shape) - log_gamma(shape)


class Gamma(AbstractPositive):
    """Positive responses with ``Var = phi mu^2 / w``; default link inverse, as in R.

    ``llf`` is taken at ``phi = deviance / sum(w)``, as in R. With ``parameters={"dispersion": ...}`` mean
    and dispersion (log link) are estimated together.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(Gamma().log_prob(np.float32(2.0), np.float32(1.0))), 4)
    -2.0
    """

    name = "gamma"
    default_link = Inverse()
    canonical = "inverse"
    canonical_ratio = -1.0

    def variance(self, mu):
        return mu**2

    def unit_deviance(self, y, mu, *others):
        return 2 * deviance_gap((y - mu) / mu)

    def kernel(self, y, mu):
        return y / mu + jnp.log(mu)

    def log_prob(self, y, mu, *others):
        return gamma_log_density(y, mu, others[0] if others else jnp.ones_like(mu))

    def law(self, weights, mu, *others):
        phi = dispersion_of(others, weights)
        return "gamma", (1 / phi,), {"scale": mu * phi}

    def sample(self, rng, weights, mu, *others):
        phi = dispersion_of(others, weights)
        return rng.gamma(1 / phi, np.asarray(mu) * phi)

    def log_tails(self, y, mu, *others):
        (phi,) = others
        inside = y > 0
        lower, upper = log_gamma_tails(1 / phi, jnp.where(inside, y, 1) / (mu * phi))
        return jnp.where(inside, lower, -jnp.inf), jnp.where(inside, upper, 0)
