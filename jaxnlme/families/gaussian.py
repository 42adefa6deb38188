"""Normal responses."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxnlme.families._base import (
    AbstractExponentialFamily,
    Parameter,
    dispersion_of,
    need_variation,
    weighted_mean,
)
from jaxnlme.families._laws import AbstractKnownLaw
from jaxnlme.links import Identity, Log
from jaxnlme.numerics.special import log_ndtr

_HALF_LOG_2PI = 0.9189385332046727


class Gaussian(AbstractKnownLaw, AbstractExponentialFamily):
    """Normal errors with ``Var = sigma^2 / w``; default link identity.

    ``sigma`` is estimated after the fit, unless ``parameters={"sigma": ...}`` asks for a formula: then
    mean and ``sigma`` (log link) are estimated together.
    """

    name = "gaussian"
    default_link = Identity()
    canonical = "identity"
    has_dispersion = True
    dispersion_name = "sigma"

    def full_likelihood(self):
        return GaussianSigma()

    def variance(self, mu):
        return jnp.ones_like(mu)

    def unit_deviance(self, y, mu, *others):
        return (y - mu) ** 2

    def log_prob(self, y, mu, *others):
        phi = others[0] if others else jnp.ones_like(mu)
        two_pi = jnp.asarray(2 * jnp.pi, phi.dtype)
        return -0.5 * ((y - mu) ** 2 / phi + jnp.log(two_pi * phi))

    def log_likelihood(self, y, weights, mu, *others):
        phi = others[0] if others else jnp.ones_like(mu)
        live = weights > 0
        return jnp.where(live, self.log_prob(y, mu, phi / jnp.where(live, weights, 1)), 0)

    def llf_dispersion(self, y, weights, mu, deviance):
        return deviance / int(np.sum(weights > 0))

    def check_response(self, response):
        need_variation(response, "the residual variance would be 0")

    def law(self, weights, mu, *others):
        return "norm", (), {"loc": mu, "scale": np.sqrt(dispersion_of(others, weights))}

    def sample(self, rng, weights, mu, *others):
        return rng.normal(mu, np.sqrt(dispersion_of(others, weights)))


class GaussianSigma(AbstractKnownLaw):
    """Normal errors whose standard deviation has its own predictor (log link)."""

    name = "gaussian"
    default_link = Identity()
    dispersion_name = "sigma"

    @property
    def parameters(self):
        return (Parameter("sigma", Log()),)

    def valid(self, mu, *others):
        return jnp.isfinite(mu) & (others[0] > 0)

    def log_prob(self, y, mu, *others):
        (sigma,) = others
        return -0.5 * ((y - mu) / sigma) ** 2 - jnp.log(sigma) - _HALF_LOG_2PI

    def variance_of(self, mu, *others):
        return others[0] ** 2 * jnp.ones_like(mu)

    def check_response(self, response):
        need_variation(response, "the residual variance would be 0")

    def start_others(self, y, weights):
        spread = weighted_mean((y - weighted_mean(y, weights)) ** 2, weights)
        return (jnp.sqrt(spread),)

    def log_tails(self, y, mu, *others):
        z = (y - mu) / others[0]
        return log_ndtr(z), log_ndtr(-z)

    def law(self, weights, mu, *others):
        return "norm", (), {"loc": mu, "scale": others[0]}

    def sample(self, rng, weights, mu, *others):
        return rng.normal(mu, others[0])
