"""Truncated responses: values outside bounds were never recorded."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme._typing import Array
from jaxnlme.families._base import Prepared
from jaxnlme.families._bounds import (
    bound_of_rows,
    bound_values,
    check_order,
    inner_family,
    log_between,
    log_stretches,
    read_bound,
)
from jaxnlme.families._wrapped import AbstractWrapped
from jaxnlme.numerics.special import log1mexp


class Truncated(AbstractWrapped):
    """A family given that its values lie in ``[lower, upper]``, both inclusive.

    Parameters
    ----------
    family
        The untruncated family or its name; a family with a dispersion takes its full-likelihood form.
    lower, upper
        Numbers, or names of columns (deductibles that vary by row; NaN: no bound). Zero-truncated counts are
        ``lower=1``; the number ``lower=0``, which would leave no count out, is read as the same.

    Notes
    -----
    Fitted values are means of the untruncated variable ("the mean of all claims"). Columns of bounds follow the
    value in the rows of ``y``. ``Censored(Truncated("gamma", lower="deductible"), right="limit")`` gives
    severities with deductibles and limits.

    Raises
    ------
    ModelSpecError
        No bound was given.
    DataError
        A response outside its bounds.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.float32(1.0)
    >>> round(float(Truncated("poisson", lower=1).log_prob(one, one)), 4)
    -0.5413
    """

    lower: Any = eqx.field(static=True)
    upper: Any = eqx.field(static=True)

    name = "truncated"

    def __init__(self, family: Any, *, lower: Any = None, upper: Any = None) -> None:
        self.base = inner_family("Truncated", family)
        self.lower, self.upper = read_bound(lower, "lower"), read_bound(upper, "upper")
        if self.lower is None and self.upper is None:
            raise ModelSpecError(
                "Truncated(): no bound given. Use lower= or upper= (numbers or columns), both inclusive."
            )
        if self.base.discrete and self.lower == 0:
            self.lower = 1.0
        low, high = self.lower, self.upper
        if isinstance(low, float) and isinstance(high, float) and low >= high:
            raise ModelSpecError(
                f"Truncated(lower={low:g}, upper={high:g}): lower must be below upper."
            )

    @property
    def columns(self):
        return (
            *(v for v in (self.lower, self.upper) if isinstance(v, str)),
            *self.base.columns,
        )

    @property
    def response_width(self):
        given = sum(isinstance(v, str) for v in (self.lower, self.upper))
        return given + self.base.response_width

    def _parts(self, y: Any, mu: Any) -> tuple[Array, Array, Array]:
        """The value with the base's rows, and both bounds (lower exclusive) with them: (d, ...)."""
        rows = [y] if self.response_width == 1 else list(y)
        value, rest = rows[0], rows[1:]
        bounds = []
        for bound, missing in ((self.lower, -np.inf), (self.upper, np.inf)):
            if isinstance(bound, str):
                bounds.append(rest.pop(0))
            else:
                bounds.append(jnp.full_like(mu, missing if bound is None else bound))
        low, high = bounds
        low = low - 1 if self.base.discrete else low
        return tuple(jnp.stack([row, *rest]) for row in (value, low, high))  # type: ignore[return-value]

    def _point(self, rows: Any) -> Array:
        return rows if rows.shape[0] > 1 else rows[0]

    def _log_inside(self, low: Array, high: Array, mu: Any, others: tuple) -> Array:
        """``log P(lower <= Y <= upper)``."""
        if self.base.discrete and self.lower == 1 and self.upper is None:
            zero = self._point(jnp.zeros_like(low).at[1:].set(low[1:]))
            return log1mexp(self.base.log_prob(zero, mu, *others))
        if self.upper is None and not isinstance(self.lower, str):
            return self.base.log_survival(self._point(low), mu, *others)
        if self.lower is None and not isinstance(self.upper, str):
            return self.base.log_cdf(self._point(high), mu, *others)
        return log_between(self.base, low, high, mu, others)

    def log_prob(self, y, mu, *others):
        value, low, high = self._parts(y, mu)
        inside = self._log_inside(low, high, mu, others)
        return self.base.log_prob(self._point(value), mu, *others) - inside

    def log_tails(self, y, mu, *others):
        value, low, high = self._parts(y, mu)
        at = jnp.concatenate([jnp.clip(value[:1], low[:1], high[:1]), value[1:]])
        below, above, total = log_stretches(self.base, (low, at, high), mu, others)
        return below - total, above - total

    def mean(self, mu, *others):
        return self.base.mean(mu, *others)

    def variance_of(self, mu, *others):
        return self.base.variance_of(mu, *others)

    def start_mean(self, y, weights):
        return self.base.start_mean(self._base_rows(y), weights)

    def start_others(self, y, weights):
        return self.base.start_others(self._base_rows(y), weights)

    def _base_rows(self, y):
        given = sum(isinstance(v, str) for v in (self.lower, self.upper))
        if self.response_width == 1:
            return y
        return y[0] if self.base.response_width == 1 else jnp.concatenate([y[:1], y[1 + given :]])

    def read_response(self, response):
        prepared = self.base.read_response(response)
        rows = [prepared.y] if prepared.y.ndim == 1 else list(prepared.y)
        low, high = np.full(len(rows[0]), -np.inf), np.full(len(rows[0]), np.inf)
        if self.lower is not None:
            low, _ = bound_values(self.lower, response, "lower", -np.inf)
        if self.upper is not None:
            high, _ = bound_values(self.upper, response, "upper", np.inf)
        if low is None or high is None:
            raise DataError("Truncated(): a column of bounds must hold numbers, not booleans.")
        check_order(low, high, f"truncation of {response.name!r}", response)
        outside = (rows[0] < low) | (rows[0] > high)
        dataclasses.replace(response, values=rows[0]).refuse(
            outside,
            "lies outside its truncation bounds",
            "Values outside [lower, upper] cannot have been recorded; zero-truncated counts start at 1.",
        )
        named = [
            values
            for bound, values in ((self.lower, low), (self.upper, high))
            if isinstance(bound, str)
        ]
        learned = eqx.tree_at(lambda f: f.base, self, prepared.family)
        every = [rows[0], *named, *rows[1:]]
        return Prepared(learned, every[0] if len(every) == 1 else np.stack(every), prepared.weights)

    def for_rows(self, column):
        low = bound_of_rows(self.lower, column, -np.inf)
        high = bound_of_rows(self.upper, column, np.inf)
        return _TruncatedRows(self.base.for_rows(column), low, high)

    def cdf(self, y, mu, *others, weights=None):
        return self.for_rows(_no_column).cdf(y, mu, *others)

    def quantile(self, p, mu, *others, weights=None):
        return self.for_rows(_no_column).quantile(p, mu, *others)

    def sample(self, rng, weights, mu, *others):
        return self.for_rows(_no_column).sample(rng, weights, mu, *others)


def _no_column(name: str) -> np.ndarray:
    raise ModelSpecError(
        f"the bounds of a truncated family stand in column {name!r}: its distribution is known for rows of data "
        "only (family.for_rows)."
    )


class _TruncatedRows(AbstractWrapped):
    """The distribution between bounds given for each row; host methods only."""

    low: np.ndarray
    high: np.ndarray

    name = "truncated"

    def log_prob(self, y, mu, *others):
        return self.base.log_prob(y, mu, *others)

    def variance_of(self, mu, *others):
        return self.base.variance_of(mu, *others)

    def _ends(self, mu: Any, others: tuple) -> tuple[Any, Any]:
        """Probabilities of the base below and up to the bounds."""
        step = 1 if self.base.discrete else 0
        below, above = np.isneginf(self.low), np.isposinf(self.high)
        low = self.base.cdf(np.where(below, 1.0, self.low - step), mu, *others)
        high = self.base.cdf(np.where(above, 1.0, self.high), mu, *others)
        return np.where(below, 0.0, low), np.where(above, 1.0, high)

    def cdf(self, y, mu, *others, weights=None):
        low, high = self._ends(mu, others)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip((self.base.cdf(y, mu, *others) - low) / (high - low), 0, 1)

    def quantile(self, p, mu, *others, weights=None):
        low, high = self._ends(mu, others)
        found = self.base.quantile(low + np.asarray(p) * (high - low), mu, *others)
        return np.clip(found, self.low, self.high)

    def sample(self, rng, weights, mu, *others):
        return self.quantile(1 - rng.random(np.shape(mu)), mu, *others)
