"""Families made from another one: what they pass on to it."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxnlme.families._base import (
    AbstractExponentialFamily,
    AbstractFamily,
    Parameter,
    need_positive,
    need_variation,
    weighted_mean,
)
from jaxnlme.families._laws import AbstractKnownLaw
from jaxnlme.links import Log


class AbstractWrapped(AbstractFamily):
    """A family around a ``base`` family, with its predictors, links and domain."""

    base: AbstractFamily

    @property
    def default_link(self):
        return self.base.default_link

    @property
    def links(self):
        return self.base.links

    @property
    def parameters(self):
        return self.base.parameters

    @property
    def formulas(self):
        return self.base.formulas

    @property
    def discrete(self):
        return self.base.discrete

    @property
    def dispersion_name(self):
        return self.base.dispersion_name

    def valid(self, mu, *others):
        return self.base.valid(mu, *others)

    def for_rows(self, column):
        return eqx.tree_at(lambda f: f.base, self, self.base.for_rows(column))


class WithDispersion(AbstractWrapped):
    """The full likelihood of a positive dispersion family: ``dispersion`` (log link) has its own predictor."""

    base: AbstractExponentialFamily

    @property
    def name(self):
        return self.base.name

    @property
    def parameters(self):
        return (Parameter("dispersion", Log()),)

    def valid(self, mu, *others):
        return self.base.valid(mu) & (others[0] > 0)

    def log_prob(self, y, mu, *others):
        return self.base.log_prob(y, mu, others[0])

    def variance_of(self, mu, *others):
        return others[0] * self.base.variance(mu)

    def log_tails(self, y, mu, *others):
        return self.base.log_tails(y, mu, others[0])

    def cdf(self, y, mu, *others, weights=None):
        return self.base.cdf(
            y, mu, *others
        )  # weights multiply the likelihood, they do not scale phi

    def quantile(self, p, mu, *others, weights=None):
        return self.base.quantile(p, mu, *others)

    def sample(self, rng, weights, mu, *others):
        return self.base.sample(rng, np.ones_like(np.asarray(mu, float)), mu, *others)

    def check_response(self, response):
        self.base.check_response(response)

    def start_mean(self, y, weights):
        return self.base.start_mean(y, weights)

    def start_others(self, y, weights):
        centre = weighted_mean(y, weights)
        spread = weighted_mean((y - centre) ** 2, weights)
        return (spread / self.base.variance(jnp.asarray(centre)),)


class AbstractPositive(AbstractKnownLaw, AbstractExponentialFamily):
    """Positive responses with a dispersion that is estimated after the fit: gamma and inverse Gaussian."""

    has_dispersion = True
    dispersion_name = "dispersion"

    def full_likelihood(self):
        return WithDispersion(self)

    def valid(self, mu, *others):
        return jnp.isfinite(mu) & (mu > 0)

    def llf_dispersion(self, y, weights, mu, deviance):
        return deviance / float(np.sum(weights))

    def check_response(self, response):
        need_positive(response, self.name)
        need_variation(response, "the dispersion would be 0")
