"""What all pictures share: columns of a table, figures without global state, one quiet style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, ModelSpecError, nearest

# Okabe and Ito (2008): told apart in the common kinds of colour blindness, and in grey by darkness.
BLUE, VERMILION, INK, GREY = "#0072B2", "#D55E00", "#333333", "#8A8A8A"
SMALL = 8  # points, for tick labels, notes and legends


def columns(
    data: Any, required: Sequence[str], optional: Sequence[str] = (), *, name: str = "data"
) -> dict[str, np.ndarray]:
    """Return columns of a dict of arrays or of a frame as numpy arrays of one length.

    Raises
    ------
    DataError
        A required column is missing, or lengths differ.

    Examples
    --------
    >>> columns({"x": [1, 2], "z": [3, 4]}, ["x"], ["y"])
    {'x': array([1, 2])}
    """
    present = [str(c) for c in (data.keys() if isinstance(data, Mapping) else data.columns)]
    missing = [c for c in required if c not in present]
    if missing:
        raise DataError(
            f"{name}: no column {', '.join(map(repr, missing))}; the plot needs "
            f"{', '.join(required)}, and there are {', '.join(present)}."
            + nearest(missing[0], present)
        )
    out = {c: np.asarray(data[c]) for c in (*required, *optional) if c in present}
    lengths = {c: len(values) for c, values in out.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{name}: columns of one length are needed, but got {lengths}.")
    return out


def new_axes(rows: int, cols: int, size: tuple[float, float], **share: Any) -> np.ndarray:
    """Return ``(rows, cols)`` axes of a new figure that pyplot does not know.

    No window opens and no backend is chosen, so this works without a screen.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: install it, for example with `pip install jaxnlme[plot]`."
        ) from error
    return Figure(figsize=size, layout="constrained").subplots(rows, cols, squeeze=False, **share)


def given_axes(axes: Any, needed: Sequence[int], what: str) -> np.ndarray:
    """Return the caller's axes as a flat array; their number must be one of ``needed``."""
    flat = np.array(axes, dtype=object).ravel()
    if len(flat) not in needed:
        raise ModelSpecError(
            f"axes: {what} needs {' or '.join(map(str, needed))} axes, but {len(flat)} were given."
        )
    return flat


def clean(ax: Any) -> None:
    """Give one panel a light grid and two spines."""
    ax.grid(True, color="#E6E6E6", linewidth=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(GREY)
    ax.tick_params(labelsize=SMALL, color=GREY, labelcolor=INK)


def points(ax: Any, x: np.ndarray, y: np.ndarray, **options: Any) -> None:
    """Draw small open dots, fainter the more of them there are."""
    alpha = float(np.clip(12.0 / np.sqrt(max(len(x), 1)), 0.15, 0.8))
    style = {"markersize": 4, "markeredgewidth": 0, "markerfacecolor": INK, "alpha": alpha}
    ax.plot(x, y, "o", **{**style, **options})


def finite(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the places where all arrays are finite."""
    numbers = [np.asarray(a, dtype=float) for a in arrays]
    keep = np.logical_and.reduce([np.isfinite(a) for a in numbers])
    return tuple(a[keep] for a in numbers)


def trend(x: np.ndarray, y: np.ndarray, *, span: float = 2 / 3, size: int = 60) -> tuple:
    """Return a robust local-linear smooth ``(grid, values)``; empty when there are too few points.

    Notes
    -----
    Tricube weights over the nearest ``span`` of the points and two bisquare rounds (Cleveland
    1979), at ``size`` places between the extremes of x.
    """
    if len(x) < 10 or len(np.unique(x)) < 4:
        return np.zeros(0), np.zeros(0)
    grid = np.linspace(x.min(), x.max(), size)
    distance = np.abs(grid[:, None] - x)
    nearest_points = max(round(span * len(x)), 4)
    width = np.partition(distance, nearest_points - 1, axis=1)[:, nearest_points - 1]
    # Ties (all points of one design time) must not make a window without extent.
    width = np.maximum(1.001 * width, 2 * np.ptp(x) / size)[:, None]
    local = np.clip(1 - (distance / width) ** 3, 0, None) ** 3
    robust = np.ones_like(x)
    fitted = np.zeros_like(grid)
    for _ in range(3):
        w = local * robust
        total = w.sum(1)
        mx, my = w @ x / total, w @ y / total
        dx = x - mx[:, None]
        sxx = np.einsum("gn,gn->g", w, dx**2)
        sxy = np.einsum("gn,gn,gn->g", w, dx, y - my[:, None])
        slope = np.where(sxx > 1e-12 * np.ptp(x) ** 2 * total, sxy / np.maximum(sxx, 1e-300), 0.0)
        fitted = my + slope * (grid - mx)
        residual = y - np.interp(x, grid, fitted)
        scale = 6 * np.median(np.abs(residual))
        if scale <= 0:
            break
        robust = np.clip(1 - (residual / scale) ** 2, 1e-6, None) ** 2
    return grid, fitted
