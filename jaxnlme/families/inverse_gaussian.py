"""Inverse Gaussian responses."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxnlme.families._base import dispersion_of
from jaxnlme.families._wrapped import AbstractPositive
from jaxnlme.links import InverseSquare
from jaxnlme.numerics.special import log1mexp, log_ndtr


def _log_density(y, mu, phi):
    two_pi = jnp.asarray(2 * jnp.pi, phi.dtype)
    return -0.5 * (((y - mu) / mu) ** 2 / (y * phi) + jnp.log(two_pi * phi) + 3 * jnp.log(y))


class InverseGaussian(AbstractPositive):
    """Positive responses with ``Var = phi mu^3 / w``; default link inverse_square, as in R.

    ``llf`` is taken at ``phi = deviance / sum(w)``, as in R. With ``parameters={"dispersion": ...}`` mean
    and dispersion (log link) are estimated together.
    """

    name = "inverse_gaussian"
    default_link = InverseSquare()
    canonical = "inverse_square"
    canonical_ratio = -0.5

    def variance(self, mu):
        return mu**3

    def unit_deviance(self, y, mu, *others):
        return ((y - mu) / mu) ** 2 / y

    def kernel(self, y, mu):
        return 0.5 * y / mu**2 - 1 / mu

    def log_prob(self, y, mu, *others):
        return _log_density(y, mu, others[0] if others else jnp.ones_like(mu))

    def law(self, weights, mu, *others):
        phi = dispersion_of(others, weights)
        return "invgauss", (mu * phi,), {"scale": 1 / phi}

    def sample(self, rng, weights, mu, *others):
        phi = dispersion_of(others, weights)
        return rng.wald(mu, np.broadcast_to(1 / phi, np.shape(mu)))

    def log_tails(self, y, mu, *others):
        """From ``Phi(r (y/mu - 1))``, its complement and ``exp(2/(mu phi)) Phi(-r (y/mu + 1))``."""
        (phi,) = others
        inside = y > 0
        safe = jnp.where(inside, y, 1)
        root = 1 / jnp.sqrt(safe * phi)
        first = root * (safe / mu - 1)
        below, above = log_ndtr(first), log_ndtr(-first)
        second = 2 / (mu * phi) + log_ndtr(-root * (safe / mu + 1))
        lower = jnp.where(inside, jnp.logaddexp(below, second), -jnp.inf)
        return lower, jnp.where(inside, above + log1mexp(second - above), 0)
