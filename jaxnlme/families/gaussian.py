"""Normal responses."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxnlme.families._base import AbstractExponentialFamily
from jaxnlme.links import Identity


class Gaussian(AbstractExponentialFamily):
    """Normal errors with ``Var = sigma^2 / w``; default link identity."""

    name = "gaussian"
    default_link = Identity()
    has_dispersion = True

    def variance(self, mu):
        return jnp.ones_like(mu)

    def unit_deviance(self, y, mu):
        return (y - mu) ** 2

    def log_prob(self, y, mu, *others):
        phi = others[0] if others else jnp.ones_like(mu)
        two_pi = jnp.asarray(2 * jnp.pi, phi.dtype)
        return -0.5 * ((y - mu) ** 2 / phi + jnp.log(two_pi * phi))

    def log_likelihood(self, y, weights, mu, *others):
        phi = others[0] if others else jnp.ones_like(mu)
        return self.log_prob(y, mu, phi / weights)

    def llf_dispersion(self, y, weights, mu, deviance):
        return deviance / int(np.sum(weights > 0))
