"""Multinomial logits."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, ModelSpecError, nearest, some
from jaxnlme._typing import Array
from jaxnlme.families._base import AbstractFamily, Parameter, Prepared, Response
from jaxnlme.links import Identity


def read_classes(family: str, response: Response) -> tuple[np.ndarray, tuple]:
    """Codes (n,) and level labels of a class response; numbers are their own labels."""
    values = np.asarray(response.values, np.float64)
    if values.ndim != 1:
        raise DataError(
            f"response {response.name!r} has {values.shape[1]} columns; family {family!r} takes one column of "
            "labels."
        )
    levels = response.levels
    if levels is None:
        found, values = np.unique(values, return_inverse=True)
        if len(found) > 50:
            raise DataError(
                f"response {response.name!r} holds {len(found)} different numbers; family {family!r} takes class "
                "labels. For numbers use another family, or make the response a categorical column."
            )
        levels = tuple(int(v) if v == int(v) else float(v) for v in found)
        values = values.astype(float)
    live = values[response.weights > 0]
    used = np.isin(np.arange(len(levels)), live)
    if not used.all():
        empty = [level for level, seen in zip(levels, used, strict=True) if not seen]
        raise DataError(
            f"response {response.name!r}: no row of level(s) {some(empty)}; the maximum likelihood estimate lies on "
            "the boundary. Remove unused levels."
        )
    if len(levels) < 2:
        raise DataError(
            f"response {response.name!r} has one level ({some(levels)}); nothing to tell apart."
        )
    return values, tuple(levels)


class Multinomial(AbstractFamily):
    """Unordered classes: one predictor per class beside the reference, all with the design of the mean.

    ``log(P(class k) / P(reference)) = eta_k``. The reference is the first level, as in R's ``multinom``, unless
    ``reference`` names another. The first predictor ("the mean") is that of the first class that is not the
    reference.

    Examples
    --------
    >>> import numpy as np
    >>> family = Multinomial(levels=("low", "mid", "high"))
    >>> [p.name for p in family.parameters], family.mean_name
    (['high'], 'mid')
    """

    reference: Any = eqx.field(static=True, default=None)
    levels: tuple = eqx.field(static=True, default=())

    name = "multinomial"
    default_link = Identity()
    links = ("identity",)
    discrete = True

    @property
    def classes(self):
        return self.levels or None

    @property
    def _order(self) -> list[int]:
        """Codes of the classes in the order of the predictors, the reference left out."""
        base = 0 if self.reference is None else self.levels.index(self.reference)
        return [k for k in range(len(self.levels)) if k != base]

    @property
    def mean_name(self):
        return str(self.levels[self._order[0]]) if self.levels else None

    @property
    def parameters(self):
        if not self.levels:
            return ()
        names = [str(self.levels[k]) for k in self._order[1:]]
        return tuple(Parameter(name, Identity(), formula="mean", listed=True) for name in names)

    def _log_probabilities(self, mu: Array, others: tuple) -> list[Array]:
        """One array per class, in level order."""
        logits: list[Array] = [jnp.zeros_like(mu)] * len(self.levels)
        for k, eta in zip(self._order, (mu, *others), strict=True):
            logits[k] = eta
        top = logits[0]
        for logit in logits[1:]:
            top = jnp.maximum(top, logit)
        total = sum(jnp.exp(logit - top) for logit in logits)
        return [logit - top - jnp.log(total) for logit in logits]

    def log_prob(self, y, mu, *others):
        logs = self._log_probabilities(mu, others)
        return sum(jnp.where(y == k, value, 0) for k, value in enumerate(logs))

    def mean(self, mu, *others):
        return jnp.stack([jnp.exp(v) for v in self._log_probabilities(mu, others)], axis=-1)

    def variance_of(self, mu, *others):
        p = self.mean(mu, *others)
        return p * (1 - p)

    def start_mean(self, y, weights):
        return jnp.zeros_like(weights)

    def start_others(self, y, weights):
        return tuple(jnp.zeros((), weights.dtype) for _ in self.parameters)

    def read_response(self, response):
        values, levels = read_classes(self.name, response)
        if self.reference is not None and self.reference not in levels:
            raise ModelSpecError(
                f"Multinomial(reference={self.reference!r}): not a level of response {response.name!r} "
                f"({some(levels)}).{nearest(str(self.reference), map(str, levels))}"
            )
        return Prepared(Multinomial(self.reference, levels), values, response.weights)

    def cdf(self, y, mu, *others, weights=None):
        total = np.cumsum(np.asarray(self.mean(mu, *others)), axis=-1)
        codes = np.clip(np.asarray(y, int), -1, len(self.levels) - 1)
        picked = np.take_along_axis(total, np.maximum(codes, 0)[..., None], -1)[..., 0]
        return np.where(codes < 0, 0.0, picked)

    def quantile(self, p, mu, *others, weights=None):
        total = np.cumsum(np.asarray(self.mean(mu, *others)), axis=-1)
        codes = (total < np.asarray(p)[..., None] - 1e-12).sum(-1).astype(float)
        return np.minimum(codes, len(self.levels) - 1)

    def sample(self, rng, weights, mu, *others):
        return self.quantile(rng.random(np.shape(mu)), mu, *others)
