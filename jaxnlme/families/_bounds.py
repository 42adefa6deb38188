"""Bounds of censored and truncated responses: numbers or columns of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
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
    if type(base).log_tails is AbstractFamily.log_tails or not base.has_likelihood:
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


def bound_values(
    bound: float | str, response: Response, argument: str, missing: float
) -> tuple[Any, Any]:
    """Bounds per row (n,) and, for a column of booleans, that column; NaN becomes ``missing``."""
    n = len(response.weights)
    if not isinstance(bound, str):
        return np.full(n, bound), None
    column = np.asarray(response.column(bound))
    if column.dtype == bool:
        return None, column
    column = column.astype(np.float64)
    return np.where(np.isnan(column), missing, column), None


def bound_of_rows(bound: Any, column: Callable[[str], np.ndarray], missing: float) -> Any:
    """A bound as a number or one per row (n,), NaN (and None) turned into ``missing``."""
    values = missing if bound is None else column(bound) if isinstance(bound, str) else bound
    return np.where(np.isnan(values), missing, values)


def log_between(family: AbstractFamily, low: Array, high: Array, mu: Any, others: tuple) -> Array:
    """``log P(low < Y <= high)`` from the tail where it is accurate; bounds (d, ...) may be infinite."""
    return log_stretches(family, (low, high), mu, others)[0]


def log_stretches(
    family: AbstractFamily, bounds: tuple[Array, ...], mu: Any, others: tuple
) -> list[Array]:
    """``log P(a < Y <= b)`` for each neighbouring pair of rising bounds, and last from the first to the last.

    One traced call of the family's tails for all bounds: they are the expensive part to compile.
    """
    low, high = bounds[0][0], bounds[-1][0]
    finite = jnp.where(jnp.isfinite(low), low, jnp.where(jnp.isfinite(high), high, 1))
    points = jnp.stack(
        bounds
    )  # an open end must not reach the tails, whose derivative it would spoil
    points = points.at[:, 0].set(jnp.where(jnp.isinf(points[:, 0]), finite, points[:, 0]))
    below, above = jax.vmap(lambda y: family.log_tails(_strip(y), mu, *others))(points)
    pairs = [(k, k + 1) for k in range(len(bounds) - 1)]
    pairs += [(0, len(bounds) - 1)] if len(pairs) > 1 else []
    return [
        _stretch(bounds[i][0], bounds[j][0], (below[i], below[j]), (above[i], above[j]))
        for i, j in pairs
    ]


def _stretch(low: Array, high: Array, below: tuple, above: tuple) -> Array:
    """The probability between two bounds from both tails at each."""
    no_low, no_high = jnp.isneginf(low), jnp.isposinf(high)
    upper = above[0] < below[1]  # both ends lie in the upper tail
    first = jnp.where(upper, above[0], below[1])
    second = jnp.where(upper, above[1], below[0])
    wide = ~no_low & ~no_high & (first > second)
    inside = log_diff_exp(jnp.where(wide, first, 0), jnp.where(wide, second, -1))
    value = jnp.where(wide, inside, -jnp.inf)
    value = jnp.where(no_low & ~no_high, below[1], value)
    value = jnp.where(no_high & ~no_low, above[0], value)
    return jnp.where(no_low & no_high, 0, value)


def _strip(y: Array) -> Array:
    return y if y.shape[0] > 1 else y[0]


def check_order(low: np.ndarray, high: np.ndarray, what: str, response: Response) -> None:
    """Refuse rows whose lower bound lies above the upper one."""
    bad = (low > high) & (response.weights > 0)
    if bad.any():
        k = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{what}: the lower bound is above the upper one in {bad.sum()} row(s) (first row {response.rows[k]}: "
            f"{low[k]:g} > {high[k]:g})."
        )
