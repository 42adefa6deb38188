"""Poisson counts."""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.special import xlogy

from jaxnlme.families._base import AbstractExponentialFamily, need_counts
from jaxnlme.families._laws import AbstractKnownLaw
from jaxnlme.links import Log
from jaxnlme.numerics.special import deviance_gap, log_factorial
from jaxnlme.numerics.tails import log_gamma_tails


def poisson_deviance(y, mu):
    """``2 (y log(y / mu) - (y - mu))`` without cancellation."""
    some = y > 0
    safe = jnp.where(some, y, 1)
    return 2 * jnp.where(some, safe * deviance_gap((mu - safe) / safe), mu)


class Poisson(AbstractKnownLaw, AbstractExponentialFamily):
    """Counts with ``Var = mu``; default link log.

    Values that are not whole numbers (a rate with its exposure as ``weights=``) give a warning; their
    likelihood is 0, as in R.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(Poisson().log_prob(np.float32(2.0), np.float32(1.5))), 4)
    -1.3822
    """

    name = "poisson"
    default_link = Log()
    canonical = "log"
    discrete = True

    def variance(self, mu):
        return mu

    def unit_deviance(self, y, mu, *others):
        return poisson_deviance(y, mu)

    def kernel(self, y, mu):
        return mu - xlogy(y, mu)

    def valid(self, mu, *others):
        return jnp.isfinite(mu) & (mu > 0)

    def separated(self, mu, *others):
        return mu < 10 * jnp.finfo(mu.dtype).eps

    def log_prob(self, y, mu, *others):
        value = xlogy(y, mu) - mu - log_factorial(jnp.maximum(y, 0))
        return jnp.where((y == jnp.round(y)) & (y >= 0), value, -jnp.inf)

    def start_mean(self, y, weights):
        return y + 0.1

    def check_response(self, response):
        need_counts(response, whole=False)

    def log_tails(self, y, mu, *others):
        inside = y >= 0
        lower, upper = log_gamma_tails(jnp.where(inside, y + 1, 1), mu)
        return jnp.where(inside, upper, -jnp.inf), jnp.where(inside, lower, 0)

    def law(self, weights, mu, *others):
        return "poisson", (mu,), {}

    def sample(self, rng, weights, mu, *others):
        return rng.poisson(mu).astype(float)
