"""Poisson counts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, xlogy

from jaxnlme.families._base import AbstractExponentialFamily
from jaxnlme.links import Log


class Poisson(AbstractExponentialFamily):
    """Counts with ``Var = mu``; default link log.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(Poisson().log_prob(np.float32(2.0), np.float32(1.5))), 4)
    -1.3822
    """

    name = "poisson"
    default_link = Log()
    discrete = True

    def variance(self, mu):
        return mu

    def unit_deviance(self, y, mu):
        return 2 * (xlogy(y, y / mu) - (y - mu))

    def kernel(self, y, mu):
        return mu - xlogy(y, mu)

    def valid(self, mu, *others):
        return jnp.isfinite(mu) & (mu > 0)

    def log_prob(self, y, mu, *others):
        return xlogy(y, mu) - mu - gammaln(y + 1)

    def start_mean(self, y, weights):
        return y + 0.1

    def check_response(self, response):
        response.refuse(
            response.values < 0, "is negative", "Counts are 0, 1, 2, ...; correct these rows."
        )
        response.refuse(
            response.values != np.round(response.values),
            "is not a whole number",
            "Use counts with exposure= or offset=, or family='quasi_poisson' for a rate with weights=.",
        )

    def cdf(self, y, mu, *others):
        from scipy import stats

        return stats.poisson.cdf(y, mu)

    def quantile(self, p, mu, *others):
        from scipy import stats

        return stats.poisson.ppf(p, mu)

    def sample(self, rng, weights, mu, *others):
        return rng.poisson(mu).astype(float)
