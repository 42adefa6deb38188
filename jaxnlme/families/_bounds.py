"""Bounds of censored and truncated responses: numbers or columns of the data."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme._typing import Array
from jaxnlme.families._base import AbstractFamily, Response
from jaxnlme.families._registry import as_family
from jaxnlme.numerics.special import log_diff_exp


def inner_family(call: str, family: Any) -> AbstractFamily:
    """The full-likelihood form of a family that has both tails, or ModelSpecError."""
    base = as_family(family).full_likelihood()
    if type(base).log_cdf is AbstractFamily.log_cdf:
        raise ModelSpecError(
            f"{call}({base.name!r}): this family has no distribution function to differentiate. Families that have "
            "one: gaussian, lognormal, student_t, gamma, inverse_gaussian, beta, poisson, negative_binomial, "
            "negative_binomial1."
        )
    return base


def read_bound(value: Any, argument: str) -> float | str | None:
    """A bound as given by the user: None, a number or the name of a column."""
    if value is None or isinstance(value, str):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if np.isnan(number):
        raise ModelSpecError(f"{argument}={value!r}: expected a number or the name of a column.")
    return None if np.isinf(number) else number


def bound_values(bound: float | str, response: Response, argument: str, missing: float):
    """Bounds per row (n,) and, for a column of booleans, that column; NaN becomes ``missing``."""
    n = len(response.weights)
    if not isinstance(bound, str):
        return np.full(n, bound), None
    column = np.asarray(response.column(bound))
    if column.dtype == bool:
        return None, column
    column = column.astype(np.float64)
    return np.where(np.isnan(column), missing, column), None


def log_between(family: AbstractFamily, low: Array, high: Array, mu: Array, others: tuple) -> Array:
    """``log P(low < Y <= high)`` from the tail where it is accurate; bounds may be infinite."""
    no_low, no_high = jnp.isneginf(low[0]), jnp.isposinf(high[0])
    safe_low = low.at[0].set(jnp.where(no_low, jnp.where(no_high, 1, high[0]), low[0]))
    safe_high = high.at[0].set(jnp.where(no_high, safe_low[0], high[0]))
    shape = _strip(safe_low), _strip(safe_high)
    below_low, above_low = _tails(family, shape[0], mu, others)
    below_high, above_high = _tails(family, shape[1], mu, others)
    upper = above_low < below_high  # both ends lie in the upper tail
    minus = jnp.full_like(mu, -jnp.inf)
    first = jnp.where(upper, above_low, below_high)
    second = jnp.where(upper, above_high, below_low)
    both = ~no_low & ~no_high
    wide = both & (first > second)
    inside = log_diff_exp(jnp.where(wide, first, 0), jnp.where(wide, second, -1))
    value = jnp.where(wide, inside, minus)
    value = jnp.where(no_low & ~no_high, below_high, value)
    value = jnp.where(no_high & ~no_low, above_low, value)
    return jnp.where(no_low & no_high, 0, value)


def _strip(y: Array) -> Array:
    return y if y.shape[0] > 1 else y[0]


def _tails(family, y, mu, others):
    return family.log_cdf(y, mu, *others), family.log_survival(y, mu, *others)


def check_order(low: np.ndarray, high: np.ndarray, what: str, response: Response) -> None:
    """Refuse rows whose lower bound lies above the upper one."""
    bad = (low > high) & (response.weights > 0)
    if bad.any():
        k = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{what}: the lower bound is above the upper one in {bad.sum()} row(s) (first row {response.rows[k]}: "
            f"{low[k]:g} > {high[k]:g})."
        )
