"""Beta-binomial proportions."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError
from jaxnlme.families._base import Prepared
from jaxnlme.families._laws import AbstractKnownProportion
from jaxnlme.families.beta import AbstractWithPrecision
from jaxnlme.families.binomial import read_proportion, refuse_one_outcome
from jaxnlme.links import Logit
from jaxnlme.numerics.special import log_factorial, log_rising


class BetaBinomial(AbstractWithPrecision, AbstractKnownProportion):
    """Successes out of a size with extra variation between rows; default link logit.

    ``P(success) ~ beta(mu phi, (1 - mu) phi)``, so that the proportion has variance
    ``mu (1 - mu) / size (1 + (size - 1) / (phi + 1))``. The response is ``cbind(success, failure)`` or a
    proportion with ``weights`` the size; the kernels take ``y`` as rows (successes, size).

    Parameters
    ----------
    precision
        ``phi``: a positive number, or None: estimated with the mean (log link, a formula through
        ``parameters={"precision": ...}``).

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([[1.0], [1.0]], np.float32)
    >>> mu = np.array([0.25], np.float32)
    >>> round(float(BetaBinomial(precision=2.0).log_prob(y, mu)[0]), 4)
    -1.3863
    """

    name = "beta_binomial"
    default_link = Logit()
    response_width = 2

    def log_prob(self, y, mu, *others):
        hits, size = y[0], y[1]
        misses = size - hits
        phi = self._precision(mu, others)
        a, b = mu * phi, (1 - mu) * phi
        ways = log_factorial(size) - log_factorial(hits) - log_factorial(misses)
        # log B(hits + a, misses + b) - log B(a, b); log_rising leaves out y log theta
        ratio = log_rising(a, hits) + log_rising(b, misses) - log_rising(phi, size)
        return ways + ratio + hits * jnp.log(mu) + misses * jnp.log1p(-mu)

    def variance_of(self, mu, *others):
        return mu * (1 - mu)

    def observed(self, y):
        return y[0] / y[1]

    def residual_variance(self, y, weights, mu, *others):
        size, phi = y[1], self._precision(mu, others)
        return mu * (1 - mu) / size * (1 + (size - 1) / (phi + 1)) / weights

    def start_mean(self, y, weights):
        return (y[0] + 0.5) / (y[1] + 1)

    def start_others(self, y, weights):
        if self.precision is not None:
            return ()
        live = weights * y[1] > 0
        size = jnp.where(live, y[1], 1)
        rate = jnp.where(live, y[0], 0) / size
        w = jnp.where(live, weights * size, 0)
        centre = jnp.sum(w * rate) / jnp.sum(w)
        # moments: mean of size (rate - centre)^2 = centre (1 - centre) (1 + (size - 1) rho)
        excess = jnp.sum(jnp.where(live, weights * size * (rate - centre) ** 2, 0))
        excess = excess / (centre * (1 - centre)) - jnp.sum(jnp.where(live, weights, 0))
        rho = excess / jnp.maximum(jnp.sum(jnp.where(live, weights * (size - 1), 0)), 1)
        return (1 / jnp.clip(rho, 0.02, 0.8) - 1,)

    def read_response(self, response):
        two = np.ndim(response.values) == 2
        if two:
            plain = dataclasses.replace(response, weights=np.ones_like(response.weights))
            rate, size = read_proportion(self.name, plain)
            weights = response.weights * (size > 0)
        else:
            rate, size = read_proportion(self.name, response)
            weights = (size > 0).astype(float)
        checked = dataclasses.replace(response, values=rate, weights=size)
        refuse_one_outcome(checked, rate, size)
        hits = np.round(rate * size)
        checked.refuse(
            np.abs(hits - rate * size) > 1e-6 * np.maximum(size, 1),
            "times its weight is not a whole number of successes",
            "Give weights= the number of trials of each row.",
        )
        if self.precision is None and np.all(size[size > 0] <= 1):
            raise DataError(
                f"response {response.name!r} has one trial in every row: the precision of a beta-binomial cannot "
                "be estimated. Use family='binomial', or cbind(success, failure) with sizes above 1."
            )
        return Prepared(self, np.stack([hits, np.maximum(size, 1e-300)]), weights)

    def law(self, weights, mu, *others):
        phi = self._precision(mu, others)
        return "betabinom", (self.trials(weights), mu * phi, (1 - mu) * phi), {}

    def sample(self, rng, weights, mu, *others):
        phi = self._precision(np.asarray(mu, float), others)
        size = np.asarray(np.round(weights), np.int64)
        return rng.binomial(size, rng.beta(mu * phi, (1 - mu) * phi)) / np.maximum(size, 1)

    def law_weights(self, y, weights):
        return np.where(weights > 0, np.round(y[1]), 0.0)
