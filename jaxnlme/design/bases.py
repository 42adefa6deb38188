"""Bases with several columns per variable, exactly as R computes them: ``poly``, ``bs``, ``ns``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import ExtrapolationWarning, FormulaError

State = dict[str, Any]


def learn_poly(x: np.ndarray, degree: float = 1, raw: bool = False) -> State:
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
    df: float | None = None,
    knots: Any = None,
    degree: float = 3,
    intercept: bool = False,
    **boundary: Any,
) -> State:
    """Learn the knots of R's ``splines::bs`` (``df`` counts columns)."""
    degree = _whole("bs", "degree", degree, 1)
    return _learn_spline("bs", x, df, knots, degree, intercept, degree + intercept, boundary)


def learn_ns(
    x: np.ndarray,
    df: float | None = None,
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
        warnings.warn(
            f"{name}(): {100 * share:.3g} % of the rows lie outside the training range "
            f"[{low:g}, {high:g}] and are extrapolated.",
            ExtrapolationWarning,
            stacklevel=2,
        )


def _whole(function: str, name: str, value: Any, smallest: int) -> int:
    if isinstance(value, (Sequence, np.ndarray)) or float(value) != int(value) or value < smallest:
        raise FormulaError(
            f"{function}(): {name} must be a whole number of at least {smallest}, found {value}."
        )
    return int(value)
