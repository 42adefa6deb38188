"""Binomial proportions."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy

from jaxnlme._errors import DataError, some
from jaxnlme.families._base import AbstractExponentialFamily, Prepared, Response
from jaxnlme.families._laws import AbstractKnownProportion
from jaxnlme.links import Logit
from jaxnlme.numerics.special import deviance_gap, log_factorial


def binomial_deviance(y, mu):
    """``2 (y log(y / mu) + (1 - y) log((1 - y) / (1 - mu)))`` without cancellation."""
    yes, no = y > 0, y < 1
    hit, miss = jnp.where(yes, y, 1), jnp.where(no, 1 - y, 1)
    first = jnp.where(yes, hit * deviance_gap((mu - y) / hit), 0)
    second = jnp.where(no, miss * deviance_gap((y - mu) / miss), 0)
    # at y = 0 (or 1) only one term is left and keeps its linear part
    edge = jnp.where(yes, 0, mu) + jnp.where(no, 0, 1 - mu)
    return 2 * (first + second + edge)


def read_proportion(family: str, response: Response) -> tuple[np.ndarray, np.ndarray]:
    """Proportions and sizes from 0/1, booleans, two labels, proportions or ``cbind(success, failure)``.

    Returns
    -------
    proportion : (n,)
    size : (n,) prior weight times the number of trials of a row
    """
    values, weights = np.asarray(response.values, np.float64), response.weights
    if values.ndim == 2:
        if values.shape[1] != 2:
            raise DataError(
                f"response {response.name!r} has {values.shape[1]} columns; family {family!r} takes one, or "
                "two as cbind(success, failure)."
            )
        bad = np.any(values < 0, axis=1)
        response.refuse(
            bad,
            "holds negative numbers of successes or failures",
            "In cbind(success, failure) the second column is size - success: check that no row has more "
            "successes than trials.",
        )
        response.refuse(
            (values != np.round(values)).any(axis=1),
            "holds numbers of successes or failures that are not whole",
            "cbind() takes counts; give a proportion with weights=size instead.",
        )
        size = values.sum(axis=1)
        proportion = np.divide(values[:, 0], size, out=np.zeros_like(size), where=size > 0)
        return proportion, weights * size
    if response.levels is not None and not set(response.levels) <= {False, True}:
        if len(response.levels) != 2:
            raise DataError(
                f"response {response.name!r} has {len(response.levels)} level(s) ({some(response.levels)}); "
                f"family {family!r} takes two (the second is the success). For more levels use "
                "Multinomial() or Ordinal()."
            )
        return values, weights
    proportion = values
    response.refuse(
        ~((proportion >= 0) & (proportion <= 1)),
        "is outside [0, 1]",
        "Give 0/1, booleans, two labels, a proportion with weights=size, or "
        "'cbind(success, failure) ~ ...'.",
    )
    return proportion, weights


def refuse_one_outcome(response: Response, proportion: np.ndarray, size: np.ndarray) -> None:
    """Refuse data that hold successes only or failures only."""
    live = proportion[size > 0]
    if len(live) and (np.all(live == 0) or np.all(live == 1)):
        raise DataError(
            f"response {response.name!r} is {live[0]:g} in every row: the maximum likelihood estimate lies on "
            "the boundary (probability 0 or 1). Check the response column."
        )


class Binomial(AbstractKnownProportion, AbstractExponentialFamily):
    """Proportions of ``w`` trials with ``Var = mu (1 - mu) / w``; default link logit.

    The response is 0/1, boolean, a column with two levels (the second is the success), a proportion with
    ``weights`` the number of trials, or ``cbind(success, failure)``.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(Binomial().log_prob(np.float32(1.0), np.float32(0.25))), 4)
    -1.3863
    """

    name = "binomial"
    default_link = Logit()
    canonical = "logit"

    def variance(self, mu):
        # a mean that rounds to 1 must not give 0 / 0 residuals
        return jnp.maximum(mu * (1 - mu), jnp.finfo(mu.dtype).tiny)

    def unit_deviance(self, y, mu, *others):
        return binomial_deviance(y, mu)

    def kernel(self, y, mu):
        return -xlogy(y, mu) - xlogy(1 - y, 1 - mu)

    def working(self, links, y, weights, etas):
        (link,), (eta,) = links, etas
        mu, rest, slope = link.inverse(eta), link.complement(eta), link.derivative(eta)
        if link.name == self.canonical:
            ratio = weights
            cost = weights * (jnp.maximum(eta, 0) - y * eta - jnp.log(jnp.maximum(mu, rest)))
        else:
            ratio = weights * slope / jnp.maximum(mu * rest, jnp.finfo(mu.dtype).tiny)
            cost = -weights * (xlogy(y, mu) + xlogy(1 - y, rest))
        # (1 - y) mu and y rest are exact where mu is next to 0 or 1, y - mu is not
        return cost, (ratio * (y * rest - (1 - y) * mu),), ((ratio * slope,),)

    def expected_information(self, links, weights, etas):
        (link,), (eta,) = links, etas
        variance = link.inverse(eta) * link.complement(eta)
        slope = link.derivative(eta)
        return ((weights * slope**2 / jnp.maximum(variance, jnp.finfo(eta.dtype).tiny),),)

    def valid(self, mu, *others):
        return (mu >= 0) & (mu <= 1)

    def separated(self, mu, *others):
        edge = 10 * jnp.finfo(mu.dtype).eps
        return (mu < edge) | (mu > 1 - edge)

    def log_prob(self, y, mu, *others):
        return xlogy(y, mu) + xlogy(1 - y, 1 - mu)

    def log_likelihood(self, y, weights, mu, *others):
        size, hits = jnp.round(weights), jnp.round(weights * y)
        ways = log_factorial(size) - log_factorial(hits) - log_factorial(size - hits)
        return ways + weights * self.log_prob(y, mu)

    def start_mean(self, y, weights):
        return (weights * y + 0.5) / (weights + 1)

    def read_response(self, response):
        proportion, size = read_proportion(self.name, response)
        self.check_response(dataclasses.replace(response, values=proportion, weights=size))
        return Prepared(self, proportion, size)

    def check_response(self, response):
        refuse_one_outcome(response, response.values, response.weights)

    def law(self, weights, mu, *others):
        return "binom", (self.trials(weights), mu), {}

    def sample(self, rng, weights, mu, *others):
        size = np.asarray(np.round(weights), np.int64)
        return rng.binomial(size, mu) / np.maximum(size, 1)
