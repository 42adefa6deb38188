"""Bases with several columns per variable, exactly as R computes them: ``poly``, ``bs``, ``ns``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, ExtrapolationWarning, FormulaError, warn

State = dict[str, Any]


def learn_poly(x: np.ndarray, degree: Any = 1, raw: bool = False) -> State:
    """Learn R's orthogonal polynomials (three-term recurrence) from the rows of the fit."""
    degree = _whole("poly", "degree", degree, 1)
    if raw:
        return {"degree": degree, "raw": True}
    if len(np.unique(x)) <= degree:
        raise FormulaError(
            f"poly(): degree={degree} needs more than {degree} different values, found "
            f"{len(np.unique(x))}."
        )
    alpha: list[float] = []
    norm2 = [1.0, float(len(x))]
    previous, current = np.zeros_like(x), np.ones_like(x)
    for _ in range(degree):
        alpha.append(float(np.sum(x * current**2) / norm2[-1]))
        ratio = norm2[-1] / norm2[-2] if len(alpha) > 1 else 0.0
        previous, current = current, (x - alpha[-1]) * current - ratio * previous
        norm2.append(float(np.sum(current**2)))
    return {"degree": degree, "raw": False, "alpha": alpha, "norm2": norm2}


def use_poly(x: np.ndarray, state: Mapping[str, Any]) -> np.ndarray:
    """Evaluate the learned polynomials."""
    degree = state["degree"]
    if state["raw"]:
        return np.column_stack([x**j for j in range(1, degree + 1)])
    alpha, norm2 = state["alpha"], state["norm2"]
    previous, current, columns = np.zeros_like(x), np.ones_like(x), []
    for j in range(degree):
        ratio = norm2[j + 1] / norm2[j] if j else 0.0
        previous, current = current, (x - alpha[j]) * current - ratio * previous
        columns.append(current / np.sqrt(norm2[j + 2]))
    return np.column_stack(columns)


def learn_bs(
    x: np.ndarray,
    df: Any = None,
    knots: Any = None,
    degree: Any = 3,
    intercept: bool = False,
    **boundary: Any,
) -> State:
    """Learn the knots of R's ``splines::bs`` (``df`` counts columns)."""
    degree = _whole("bs", "degree", degree, 1)
    return _learn_spline("bs", x, df, knots, degree, intercept, degree + intercept, boundary)


def learn_ns(
    x: np.ndarray,
    df: Any = None,
    knots: Any = None,
    intercept: bool = False,
    **boundary: Any,
) -> State:
    """Learn the knots of R's natural splines ``splines::ns``."""
    return _learn_spline("ns", x, df, knots, 3, intercept, 1 + intercept, boundary)


def use_bs(x: np.ndarray, state: Mapping[str, Any]) -> np.ndarray:
    """Evaluate B-splines; outside the boundary knots their end pieces continue."""
    _warn_outside("bs", x, state)
    basis = _spline_design(x, state)
    return basis if state["intercept"] else basis[:, 1:]


def use_ns(x: np.ndarray, state: Mapping[str, Any]) -> np.ndarray:
    """Evaluate natural splines; outside the boundary knots they are straight lines."""
    _warn_outside("ns", x, state)
    low, high = state["boundary"]
    inside = np.clip(x, low, high)
    basis = _spline_design(inside, state)
    slope = _spline_design(inside, state, derivative=1)
    basis = basis + slope * (x - inside)[:, None]
    curvature = _spline_design(np.array([low, high]), state, derivative=2)
    if not state["intercept"]:
        basis, curvature = basis[:, 1:], curvature[:, 1:]
    q, _ = np.linalg.qr(curvature.T, mode="complete")
    return (basis @ q)[:, 2:]


BASES: dict[str, tuple[Callable[..., State], Callable]] = {
    "poly": (learn_poly, use_poly),
    "bs": (learn_bs, use_bs),
    "ns": (learn_ns, use_ns),
}


def basis_width(name: str, state: Mapping[str, Any]) -> int:
    """Return the number of columns of a learned basis."""
    if name == "poly":
        return state["degree"]
    inner = state["degree"] if name == "bs" else 1
    return len(state["knots"]) + inner + state["intercept"]


def bs(
    x: Any,
    df: Any = None,
    knots: Any = None,
    degree: int = 3,
    intercept: bool = False,
    boundary_knots: Any = None,
) -> np.ndarray:
    """B-spline basis of a variable, as R's ``splines::bs``.

    Parameters
    ----------
    x
        Values (n,); NaN gives a row of NaN.
    df
        Number of columns; the knots then stand at quantiles of the values inside the boundary.
    knots
        Interior knots, instead of ``df``.
    degree
        Degree of the pieces.
    intercept
        Whether the first column, which sums to 1 with the others, is kept.
    boundary_knots
        The two ends; default: the range of the values.

    Returns
    -------
    ndarray, shape (n, df)

    Raises
    ------
    DataError
        ``x`` is no vector of finite numbers.
    FormulaError
        ``df`` is too small, or the knots do not rise inside the boundary.

    Warns
    -----
    ExtrapolationWarning
        Values lie outside the boundary knots.

    Examples
    --------
    >>> bs([0.0, 1.0, 2.0], df=3).round(3).tolist()
    [[0.0, 0.0, 0.0], [0.375, 0.375, 0.125], [0.0, 0.0, 1.0]]
    """
    values = _vector(x, "bs")
    ends = {} if boundary_knots is None else {"boundary_knots": boundary_knots}
    state = learn_bs(values[~np.isnan(values)], df, knots, degree, intercept, **ends)
    return _with_gaps(use_bs, values, state)


def ns(
    x: Any, df: Any = None, knots: Any = None, intercept: bool = False, boundary_knots: Any = None
) -> np.ndarray:
    """Natural cubic spline basis of a variable, as R's ``splines::ns``: linear outside the boundary.

    Arguments, result, errors and warnings as in :func:`bs`.

    Examples
    --------
    >>> ns([0.0, 1.0, 2.0, 3.0], df=2).shape
    (4, 2)
    """
    values = _vector(x, "ns")
    ends = {} if boundary_knots is None else {"boundary_knots": boundary_knots}
    state = learn_ns(values[~np.isnan(values)], df, knots, intercept, **ends)
    return _with_gaps(use_ns, values, state)


def _vector(x: Any, name: str) -> np.ndarray:
    try:
        values = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name}(): x holds values that are no numbers.") from None
    if values.ndim != 1 or not len(values):
        raise DataError(f"{name}(): x has shape {values.shape}; a vector (n,) is needed.")
    if np.isinf(values).any() or np.isnan(values).all():
        raise DataError(f"{name}(): x has infinite values, or no value at all.")
    return values


def _with_gaps(use: Callable, values: np.ndarray, state: State) -> np.ndarray:
    known = ~np.isnan(values)
    if known.all():
        return use(values, state)
    basis = use(values[known], state)
    out = np.full((len(values), basis.shape[1]), np.nan)
    out[known] = basis
    return out


def _learn_spline(
    name: str,
    x: np.ndarray,
    df: Any,
    knots: Any,
    degree: int,
    intercept: Any,
    smallest: int,
    boundary: Mapping[str, Any],
) -> State:
    unknown = sorted(set(boundary) - {"Boundary.knots", "boundary_knots"})
    if unknown:
        raise FormulaError(f"{name}() has no argument {unknown[0]!r}.")
    ends = next(iter(boundary.values()), None)
    ends = [float(np.min(x)), float(np.max(x))] if ends is None else sorted(map(float, ends))
    if df is not None and knots is not None:
        raise FormulaError(f"{name}() takes df or knots, not both.")
    if df is not None:
        df = _whole(name, "df", df, 1)
        if df < smallest:
            raise FormulaError(f"{name}(df={df}): df must be at least {smallest}.")
        shares = np.linspace(0.0, 1.0, df - smallest + 2)[1:-1]
        inside = x[(x >= ends[0]) & (x <= ends[1])]
        knots = np.quantile(inside, shares) if len(shares) else []
    knots = [] if knots is None else [float(k) for k in np.atleast_1d(knots)]
    if any(not ends[0] < k < ends[1] for k in knots) or knots != sorted(set(knots)):
        raise FormulaError(
            f"{name}(): the knots {knots} must rise and lie inside the boundary knots {ends}."
        )
    return {"knots": knots, "boundary": ends, "degree": degree, "intercept": bool(intercept)}


def _spline_design(x: np.ndarray, state: Mapping[str, Any], derivative: int = 0) -> np.ndarray:
    from scipy.interpolate import BSpline

    degree, (low, high) = state["degree"], state["boundary"]
    knots = np.array([low] * (degree + 1) + list(state["knots"]) + [high] * (degree + 1))
    spline = BSpline(knots, np.eye(len(knots) - degree - 1), degree, extrapolate=True)
    return spline(x, nu=derivative)


def _warn_outside(name: str, x: np.ndarray, state: Mapping[str, Any]) -> None:
    low, high = state["boundary"]
    share = float(np.mean((x < low) | (x > high)))
    if share > 0:
        warn(
            f"{name}(): {100 * share:.3g} % of the rows lie outside the training range "
            f"[{low:g}, {high:g}] and are extrapolated.",
            ExtrapolationWarning,
        )


def _whole(function: str, name: str, value: Any, smallest: int) -> int:
    if isinstance(value, (Sequence, np.ndarray)) or float(value) != int(value) or value < smallest:
        raise FormulaError(
            f"{function}(): {name} must be a whole number of at least {smallest}, found {value}."
        )
    return int(value)
