"""Multinomial logits."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from jaxnlme._errors import ModelSpecError, nearest, some
from jaxnlme._typing import Array
from jaxnlme.families._base import Parameter, Prepared
from jaxnlme.families._classes import AbstractClasses, read_classes
from jaxnlme.links import Identity


class Multinomial(AbstractClasses):
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

    def start_others(self, y, weights):
        return tuple(jnp.zeros((), weights.dtype) for _ in self.parameters)

    def read_response(self, response):
        values, levels = read_classes(self.name, response)
        if self.reference is not None and self.reference not in levels:
            raise ModelSpecError(
                f"Multinomial(reference={self.reference!r}): not a level of response {response.name!r} "
                f"({some(levels)}).{nearest(str(self.reference), map(str, levels))}"
            )
        return Prepared(
            Multinomial(reference=self.reference, levels=levels), values, response.weights
        )
