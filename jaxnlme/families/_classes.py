"""Responses that are classes: their codes, and what the families of classes share."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, some
from jaxnlme.families._base import AbstractFamily, Response


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


class AbstractClasses(AbstractFamily):
    """A family whose mean is the vector of the probabilities of its ``levels``."""

    levels: eqx.AbstractVar[tuple]

    discrete = True

    @property
    def classes(self):
        return self.levels or None

    def variance_of(self, mu, *others):
        p = self.mean(mu, *others)
        return p * (1 - p)

    def start_mean(self, y, weights):
        return jnp.zeros_like(weights)

    def cdf(self, y, mu, *others, weights=None):
        total = np.cumsum(np.asarray(self.mean(np.asarray(mu), *others)), axis=-1)
        codes = np.clip(np.asarray(y, int), -1, len(self.levels) - 1)
        picked = np.take_along_axis(total, np.maximum(codes, 0)[..., None], -1)[..., 0]
        return np.where(codes < 0, 0.0, picked)

    def quantile(self, p, mu, *others, weights=None):
        total = np.cumsum(np.asarray(self.mean(np.asarray(mu), *others)), axis=-1)
        codes = (total < np.asarray(p)[..., None] - 1e-12).sum(-1).astype(float)
        return np.minimum(codes, len(self.levels) - 1)

    def sample(self, rng, weights, mu, *others):
        return self.quantile(rng.random(np.shape(mu)), mu, *others)
