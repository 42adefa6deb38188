"""Families whose distribution function and quantiles scipy.stats knows (host)."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from jaxnlme.families._base import AbstractFamily


class AbstractKnownLaw(AbstractFamily):
    """A family with one of scipy's distributions."""

    @abc.abstractmethod
    def law(self, weights: Any, mu: np.ndarray, *others: Any) -> tuple[str, tuple, dict[str, Any]]:
        """Name in scipy.stats, shape parameters, and location and scale; ``weights`` as in :meth:`cdf`."""

    def _scipy(self, function: str, at: Any, mu: Any, others: tuple, weights: Any) -> np.ndarray:
        from scipy import stats

        name, shapes, place = self.law(weights, np.asarray(mu, float), *others)
        return getattr(getattr(stats, name), function)(at, *shapes, **place)

    def cdf(self, y, mu, *others, weights=None):
        return self._scipy("cdf", y, mu, others, weights)

    def quantile(self, p, mu, *others, weights=None):
        return self._scipy("ppf", p, mu, others, weights)


class AbstractKnownProportion(AbstractKnownLaw):
    """Proportions of a number of trials, the weights of :meth:`cdf`; the law is that of the successes."""

    discrete = True

    def spacing(self, weights):
        return 1 / np.maximum(weights, 1.0)

    @staticmethod
    def trials(weights: Any) -> Any:
        """Whole numbers of trials; 1 where none are given."""
        return 1.0 if weights is None else np.round(weights)

    def cdf(self, y, mu, *others, weights=None):
        hits = np.floor(self.trials(weights) * np.asarray(y, float) + 1e-9)
        return self._scipy("cdf", hits, mu, others, weights)

    def quantile(self, p, mu, *others, weights=None):
        hits = self._scipy("ppf", p, mu, others, weights)
        return hits / np.maximum(self.trials(weights), 1.0)
