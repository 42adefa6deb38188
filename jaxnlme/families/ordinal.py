"""Cumulative link models for ordered classes."""

from __future__ import annotations

import itertools
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from jaxnlme._errors import ModelSpecError
from jaxnlme._typing import Array
from jaxnlme.families._base import Parameter, Prepared
from jaxnlme.families._classes import AbstractClasses, read_classes
from jaxnlme.links import AbstractLink, Identity, as_link

_CDF_LINKS = ("logit", "probit", "cloglog", "loglog", "cauchit")


class Ordinal(AbstractClasses):
    """Ordered classes: ``link(P(y <= k)) = cutpoint_k - eta``, as in MASS's ``polr``.

    The cutpoints ``"low|mid"``, ``"mid|high"``, ... are parameters of the family and stand in for the
    intercept; classes are the levels of the response in their order.

    Parameters
    ----------
    link
        ``logit`` (proportional odds), ``probit``, ``cloglog``, ``loglog`` or ``cauchit``; or a link object whose
        inverse is a distribution function on the whole line.

    References
    ----------
    McCullagh (1980), Journal of the Royal Statistical Society B 42, 109-142.

    Examples
    --------
    >>> [p.name for p in Ordinal(levels=("low", "mid", "high")).parameters]
    ['low|mid', 'mid|high']
    """

    cdf_link: AbstractLink
    levels: tuple = eqx.field(static=True)

    name = "ordinal"
    default_link = Identity()
    links = ("identity",)
    has_intercept = False

    def __init__(self, link: Any = "logit", levels: tuple = ()) -> None:
        chosen = as_link(link)
        if isinstance(link, str) and chosen.name not in _CDF_LINKS:
            raise ModelSpecError(
                f"Ordinal(link={link!r}): expected one of {', '.join(_CDF_LINKS)}: the inverse link must be a "
                "distribution function on the whole line."
            )
        self.cdf_link, self.levels = chosen, tuple(levels)

    @property
    def parameters(self):
        pairs = zip(self.levels[:-1], self.levels[1:], strict=True)
        return tuple(Parameter(f"{a}|{b}", Identity(), listed=True) for a, b in pairs)

    def valid(self, mu, *others):
        inside = jnp.isfinite(mu)
        for low, high in itertools.pairwise(others):
            inside = inside & (low < high)
        return inside

    def _probability(self, low: Array | None, high: Array | None) -> Array:
        """``F(high) - F(low)`` in the tail where it is accurate; None: minus or plus infinity."""
        link = self.cdf_link
        if low is None:
            assert high is not None
            return link.inverse(high)
        if high is None:
            return link.complement(low)
        below = link.inverse(high) - link.inverse(low)
        above = link.complement(low) - link.complement(high)
        return jnp.where(low > 0, above, below)

    def _probabilities(self, mu: Array, others: tuple) -> list[Array]:
        cuts = [None, *(cut - mu for cut in others), None]
        return [self._probability(low, high) for low, high in itertools.pairwise(cuts)]

    def log_prob(self, y, mu, *others):
        rows = self._probabilities(mu, others)
        picked = sum(jnp.where(y == k, value, 0) for k, value in enumerate(rows))
        return jnp.log(jnp.maximum(picked, jnp.finfo(mu.dtype).tiny))

    def mean(self, mu, *others):
        return jnp.stack(self._probabilities(mu, others), axis=-1)

    def start_others(self, y, weights):
        live = weights > 0
        w = jnp.where(live, weights, 0)
        total = jnp.sum(w)
        cumulative = [jnp.sum(jnp.where(y <= k, w, 0)) / total for k in range(len(self.levels) - 1)]
        return tuple(self.cdf_link.link(c) for c in cumulative)

    def read_response(self, response):
        values, levels = read_classes(self.name, response)
        return Prepared(Ordinal(self.cdf_link, levels), values, response.weights)
