"""Pictures of generalised linear models."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnlme.plots.style import (
    BLUE,
    GREY,
    INK,
    SMALL,
    VERMILION,
    clean,
    columns,
    finite,
    given_axes,
    new_axes,
    points,
    trend,
)

__all__ = ["diagnostics"]

_MOST = 5000  # points drawn; more of them are thinned evenly, the largest kept


def diagnostics(
    data: Any,
    *,
    axes: Any = None,
    residual: str = "Quantile residual",
    rank: int | None = None,
    labels: int = 3,
) -> np.ndarray:
    """Draw four panels that show how a GLM fails.

    Residuals against the linear predictor (a trend: wrong link or missing term); normal quantiles of the
    residuals (wrong family); square root of their size against the predictor (wrong variance); standardised
    Pearson residuals against leverage with contours of Cook's distance (rows that carry the fit), or against
    the row where there are no leverages.

    Parameters
    ----------
    data
        Table with columns ``linear_predictor, quantile_residual, pearson, leverage, cooks_distance`` and
        ``row`` (names of the marked rows).
    axes
        Four axes to draw into. Default: a new figure.
    residual
        Name of the residuals of the first three panels.
    rank
        Number of coefficients, for the contours of Cook's distance; None leaves them out.
    labels
        How many rows with the largest Cook's distance to name.

    Returns
    -------
    ndarray of Axes
        Four, in the order above.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.linspace(0, 1, 30)
    >>> table = {"row": np.arange(30), "linear_predictor": x, "quantile_residual": np.sin(40 * x),
    ...          "pearson": np.sin(40 * x), "leverage": 0.1 + 0.1 * x, "cooks_distance": 0.01 * x}
    >>> diagnostics(table, rank=2).shape
    (4,)
    """
    names = [
        "row",
        "linear_predictor",
        "quantile_residual",
        "pearson",
        "leverage",
        "cooks_distance",
    ]
    table = columns(data, names)
    panels = (
        new_axes(2, 2, (8.4, 7.0)).ravel()
        if axes is None
        else given_axes(axes, [4], "the diagnostics plot")
    )
    predictor, values = finite(table["linear_predictor"], table["quantile_residual"])
    _against(panels[0], predictor, values, residual)
    _normal(panels[1], values, residual)
    _scale(panels[2], predictor, values, residual)
    if np.isfinite(np.asarray(table["leverage"], float)).any():
        _leverage(panels[3], table, rank, labels)
    else:
        _by_row(panels[3], *finite(table["row"], table["pearson"]))
    for ax in panels:
        clean(ax)
    return panels


def _label(ax: Any, x: str, y: str, title: str) -> None:
    ax.set_xlabel(x, fontsize=SMALL + 1, color=INK)
    ax.set_ylabel(y, fontsize=SMALL + 1, color=INK)
    ax.set_title(title, fontsize=SMALL + 2, color=INK, loc="left")


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= _MOST:
        return x, y
    keep = np.zeros(len(x), bool)
    keep[:: -(-len(x) // _MOST)] = True
    keep[np.argsort(-np.abs(y))[:200]] = True
    return x[keep], y[keep]


def _against(ax: Any, x: np.ndarray, y: np.ndarray, name: str) -> None:
    x, y = _thinned(x, y)
    ax.axhline(0.0, color=GREY, linewidth=1.0)
    for level in (-1.96, 1.96):
        ax.axhline(level, color=GREY, linewidth=0.8, linestyle=":")
    points(ax, x, y)
    ax.plot(*trend(x, y), color=VERMILION, linewidth=1.6)
    _label(ax, "Linear predictor", name, "Residuals against the predictor")


def _normal(ax: Any, values: np.ndarray, name: str) -> None:
    from scipy import special

    ordered = np.sort(values)
    expected = special.ndtri((np.arange(len(ordered)) + 0.5) / max(len(ordered), 1))
    if len(ordered):
        ends = np.array([min(expected[0], ordered[0]), max(expected[-1], ordered[-1])])
        ax.plot(ends, ends, color=GREY, linewidth=1.0)
    points(ax, *_thinned(expected, ordered))
    _label(ax, "Normal quantile", name, "Normal quantiles")


def _scale(ax: Any, x: np.ndarray, y: np.ndarray, name: str) -> None:
    x, y = _thinned(x, np.sqrt(np.abs(y)))
    # mean of sqrt(|z|) of a standard normal z
    ax.axhline(0.8222, color=GREY, linewidth=1.0)
    points(ax, x, y)
    ax.plot(*trend(x, y), color=VERMILION, linewidth=1.6)
    _label(ax, "Linear predictor", f"sqrt |{name.lower()}|", "Spread against the predictor")


def _by_row(ax: Any, row: np.ndarray, r: np.ndarray) -> None:
    ax.axhline(0.0, color=GREY, linewidth=1.0)
    points(ax, *_thinned(row, r))
    _label(ax, "Row", "Pearson residual", "Pearson residuals by row")


def _leverage(ax: Any, table: dict[str, np.ndarray], rank: int | None, labels: int) -> None:
    h, r = (np.asarray(table[k], float) for k in ("leverage", "pearson"))
    good = np.isfinite(h) & np.isfinite(r)
    ax.axhline(0.0, color=GREY, linewidth=1.0)
    points(ax, *_thinned(h[good], r[good]))
    cooks = np.where(good, np.nan_to_num(np.asarray(table["cooks_distance"], float)), 0.0)
    for k in np.argsort(-cooks)[:labels]:
        if cooks[k] > 0:
            ax.annotate(
                str(table["row"][k]), (h[k], r[k]), xytext=(4, 3), textcoords="offset points",
                fontsize=SMALL - 1, color=BLUE,
            )  # fmt: skip
    if rank and good.any():
        limits = ax.get_ylim()
        grid = np.linspace(max(1e-3 * h[good].max(), 1e-9), min(1.05 * h[good].max(), 0.999), 200)
        for level in (0.5, 1.0):
            edge = np.sqrt(level * rank * (1 - grid) / grid)
            for sign in (-1, 1):
                ax.plot(grid, sign * edge, color=VERMILION, linewidth=0.8, linestyle="--")
        ax.set_ylim(limits)
    _label(
        ax, "Leverage", "Standardised Pearson residual", "Leverage (dashed: Cook's distance 0.5, 1)"
    )
