"""Log-normal responses."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxnlme.families._base import (
    Parameter,
    need_positive,
    need_variation,
    weighted_mean,
)
from jaxnlme.families._laws import AbstractKnownLaw
from jaxnlme.links import Identity, Log
from jaxnlme.numerics.special import log_ndtr

_HALF_LOG_2PI = 0.9189385332046727


class LogNormal(AbstractKnownLaw):
    """``log y ~ N(mu, sigma^2)``; default link identity, as in R's ``survreg(dist = "lognormal")``.

    The predictor is that of the mean of ``log y``; fitted values are means of ``y``,
    ``exp(mu + sigma^2 / 2)``. ``sigma`` is estimated with it (log link); the likelihood is that of ``y``.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.float32(1.0)
    >>> round(float(LogNormal().log_prob(one, 0 * one, one)), 4)
    -0.9189
    """

    name = "lognormal"
    default_link = Identity()

    @property
    def parameters(self):
        return (Parameter("sigma", Log()),)

    def valid(self, mu, *others):
        return jnp.isfinite(mu) & (others[0] > 0)

    def log_prob(self, y, mu, *others):
        (sigma,) = others
        log_y = jnp.log(y)
        return -0.5 * ((log_y - mu) / sigma) ** 2 - jnp.log(sigma) - _HALF_LOG_2PI - log_y

    def mean(self, mu, *others):
        return jnp.exp(mu + 0.5 * others[0] ** 2)

    def variance_of(self, mu, *others):
        square = others[0] ** 2
        return jnp.expm1(square) * jnp.exp(2 * mu + square)

    def check_response(self, response):
        need_positive(response, self.name)
        need_variation(response, "sigma would be 0")

    def start_mean(self, y, weights):
        return jnp.log(jnp.where(y > 0, y, 1))

    def start_others(self, y, weights):
        log_y = self.start_mean(y, weights)
        return (jnp.sqrt(weighted_mean((log_y - weighted_mean(log_y, weights)) ** 2, weights)),)

    def log_tails(self, y, mu, *others):
        inside = y > 0
        z = (jnp.log(jnp.where(inside, y, 1)) - mu) / others[0]
        return jnp.where(inside, log_ndtr(z), -jnp.inf), jnp.where(inside, log_ndtr(-z), 0)

    def law(self, weights, mu, *others):
        return "lognorm", (others[0],), {"scale": np.exp(mu)}

    def sample(self, rng, weights, mu, *others):
        return rng.lognormal(mu, others[0])
