"""Beta responses: proportions strictly between 0 and 1."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnlme.families._base import AbstractFamily, Parameter, need_variation, weighted_mean
from jaxnlme.families._laws import AbstractKnownLaw
from jaxnlme.families.negative_binomial import positive_number
from jaxnlme.links import Log, Logit
from jaxnlme.numerics.special import log_gamma
from jaxnlme.numerics.tails import log_beta_tails


class AbstractWithPrecision(AbstractFamily):
    """A family of proportions with a mean and a ``precision`` that is given or has its own predictor."""

    precision: Any = None

    def __init__(self, precision: Any = None) -> None:
        given = precision is not None
        call = f"{type(self).__name__}(precision="
        self.precision = positive_number(precision, call, "precision") if given else None

    @property
    def parameters(self):
        return (Parameter("precision", Log()),) if self.precision is None else ()

    def _precision(self, mu: Any, others: tuple) -> Any:
        return others[0] if self.precision is None else self.precision * (0 * mu + 1)

    def valid(self, mu, *others):
        return (mu > 0) & (mu < 1) & (self._precision(mu, others) > 0)


class Beta(AbstractWithPrecision, AbstractKnownLaw):
    """``y ~ beta(mu phi, (1 - mu) phi)``: ``Var = mu (1 - mu) / (1 + phi)``; default link logit.

    Parameters
    ----------
    precision
        ``phi``: a positive number, or None: estimated with the mean (log link, a formula through
        ``parameters={"precision": ...}``). Standard errors are from the observed information.

    References
    ----------
    Ferrari and Cribari-Neto (2004), Journal of Applied Statistics 31, 799-815.

    Examples
    --------
    >>> import numpy as np
    >>> float(Beta(precision=3.0).variance_of(np.float32(0.5)))
    0.0625
    """

    name = "beta"
    default_link = Logit()

    def log_prob(self, y, mu, *others):
        phi = self._precision(mu, others)
        a, b = mu * phi, (1 - mu) * phi
        constant = log_gamma(phi) - log_gamma(a) - log_gamma(b)
        return constant + (a - 1) * jnp.log(y) + (b - 1) * jnp.log1p(-y)

    def variance_of(self, mu, *others):
        return mu * (1 - mu) / (1 + self._precision(mu, others))

    def start_mean(self, y, weights):
        return jnp.clip(y, 0.01, 0.99)

    def start_others(self, y, weights):
        if self.precision is not None:
            return ()
        centre = weighted_mean(y, weights)
        spread = weighted_mean((y - centre) ** 2, weights)
        return (jnp.maximum(centre * (1 - centre) / spread - 1, 0.5),)

    def check_response(self, response):
        response.refuse(
            ~((response.values >= 0) & (response.values <= 1)),
            "is outside (0, 1)",
            "Beta responses are proportions.",
        )
        response.refuse(
            (response.values == 0) | (response.values == 1),
            "is exactly 0 or 1",
            "The beta density has no mass there: model zeros and ones apart (a binomial fit of y > 0), or squeeze "
            "y to (y (n - 1) + 0.5) / n.",
        )
        need_variation(response, "the precision would be infinite")

    def log_tails(self, y, mu, *others):
        phi = self._precision(mu, others)
        below, above = y <= 0, y >= 1
        safe = jnp.where(below | above, 0.5, y).astype(mu.dtype)
        odds = jnp.log(safe) - jnp.log1p(-safe)
        lower, upper = log_beta_tails(mu * phi, (1 - mu) * phi, odds)
        lower = jnp.where(below, -jnp.inf, jnp.where(above, 0, lower))
        return lower, jnp.where(below, 0, jnp.where(above, -jnp.inf, upper))

    def law(self, weights, mu, *others):
        phi = self._precision(mu, others)
        return "beta", (mu * phi, (1 - mu) * phi), {}

    def sample(self, rng, weights, mu, *others):
        phi = self._precision(np.asarray(mu), others)
        return rng.beta(mu * phi, (1 - mu) * phi)
