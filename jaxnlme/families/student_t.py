"""Student-t responses."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnlme.families._base import Parameter, need_variation, weighted_mean
from jaxnlme.families._laws import AbstractKnownLaw
from jaxnlme.families.negative_binomial import positive_number
from jaxnlme.links import Identity, Log
from jaxnlme.numerics.special import log_rising
from jaxnlme.numerics.tails import log_beta_tails

_HALF_LOG_2PI = 0.9189385332046727
_LOG_2 = 0.6931471805599453


class StudentT(AbstractKnownLaw):
    """``y = mu + sigma T`` with ``T`` Student-t; default link identity.

    Parameters
    ----------
    df
        Degrees of freedom: a positive number, or None: estimated (log link). ``sigma`` (the scale, not the
        standard deviation) is always estimated with the mean (log link).

    References
    ----------
    Lange, Little and Taylor (1989), JASA 84, 881-896.

    Examples
    --------
    >>> import numpy as np
    >>> zero = np.float32(0.0)
    >>> round(float(StudentT(df=1.0).log_prob(zero, zero, zero + 1)), 4)
    -1.1447
    """

    df: Any = None

    name = "student_t"
    default_link = Identity()

    def __init__(self, df: Any = None) -> None:
        self.df = positive_number(df, "StudentT(df=", "df") if df is not None else None

    @property
    def parameters(self):
        sigma = Parameter("sigma", Log())
        return (sigma, Parameter("df", Log())) if self.df is None else (sigma,)

    def _split(self, mu: Any, others: tuple) -> tuple[Any, Any]:
        return (others[0], others[1] if self.df is None else self.df * (0 * mu + 1))

    def valid(self, mu, *others):
        sigma, df = self._split(mu, others)
        return jnp.isfinite(mu) & (sigma > 0) & (df > 0) & jnp.isfinite(df)

    def log_prob(self, y, mu, *others):
        sigma, df = self._split(mu, others)
        z = (y - mu) / sigma
        half = jnp.full_like(df, 0.5)
        # log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(df / 2) / 2 is log_rising: 0 in the normal limit
        constant = log_rising(0.5 * df, half) - _HALF_LOG_2PI - jnp.log(sigma)
        return constant - 0.5 * (df + 1) * jnp.log1p(z**2 / df)

    def mean(self, mu, *others):
        return mu

    def variance_of(self, mu, *others):
        sigma, df = self._split(mu, others)
        heavy = df <= 2
        return jnp.where(heavy, jnp.inf, sigma**2 * df / jnp.where(heavy, 1, df - 2))

    def check_response(self, response):
        need_variation(response, "sigma would be 0")

    def start_others(self, y, weights):
        spread = weighted_mean((y - weighted_mean(y, weights)) ** 2, weights)
        sigma = jnp.sqrt(spread)
        return (sigma, jnp.full_like(sigma, 5)) if self.df is None else (sigma,)

    def boundary_notes(self, scalars, y, weights):
        if scalars.get("df", 1.0) < 1e4:
            return []
        return ["df ran to infinity: the errors are normal; use family='gaussian'."]

    def log_tails(self, y, mu, *others):
        """Half of the beta(1/2, df/2) tail of ``z^2 / (df + z^2)``, and its complement."""
        sigma, df = self._split(mu, others)
        z = (y - mu) / sigma
        away = jnp.abs(z) > 1e-8
        safe = jnp.where(away, jnp.abs(z), 1)
        half = jnp.full_like(df, 0.5)
        far = log_beta_tails(half, 0.5 * df, 2 * jnp.log(safe) - jnp.log(df))[1] - _LOG_2
        near = jnp.log1p(-jnp.exp(far))
        # next to 0 the density is flat
        change = jnp.exp(log_rising(0.5 * df, half) - _HALF_LOG_2PI) * jnp.where(away, 0, z)
        lower = jnp.where(away, jnp.where(z > 0, near, far), jnp.log(0.5 + change))
        return lower, jnp.where(away, jnp.where(z > 0, far, near), jnp.log(0.5 - change))

    def law(self, weights, mu, *others):
        sigma, df = self._split(mu, others)
        return "t", (df,), {"loc": mu, "scale": sigma}

    def sample(self, rng, weights, mu, *others):
        sigma, df = self._split(np.asarray(mu), others)
        return mu + sigma * rng.standard_t(np.broadcast_to(df, np.shape(mu)))
