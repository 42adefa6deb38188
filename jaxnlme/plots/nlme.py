"""Pictures of nonlinear mixed-effects fits."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnlme._errors import DataError, ModelSpecError
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

__all__ = ["gof", "individual_fits", "random_effects"]

_MAX_LEVEL_NAMES = 40  # beyond it the names of a caterpillar plot would overlap


def individual_fits(
    data: Any,
    curves: Any = None,
    *,
    axes: Any = None,
    max_groups: int = 24,
    ncols: int = 4,
    xlabel: str = "x",
    ylabel: str = "y",
) -> np.ndarray:
    """Draw one panel per group: observations, population curve and individual curve.

    Parameters
    ----------
    data
        Table (frame or dict of arrays) with columns ``group, x, y``; missing y are left out.
    curves
        Table with columns ``group, x, population, individual`` on a fine grid. Default: ``data``
        itself, which must then hold these columns.
    axes
        Axes to draw into, one per group; with fewer axes than groups the first groups are drawn
        and the legend says so. Default: a new figure.
    max_groups
        Largest number of panels of a new figure. The figure says so when groups are left out.
    ncols
        Panels per row of a new figure.
    xlabel, ylabel
        Axis labels, with units.

    Returns
    -------
    ndarray of Axes
        One per group drawn, in order of first appearance.

    Examples
    --------
    >>> data = {"group": [1, 1, 2, 2], "x": [0, 1, 0, 1], "y": [5.0, 2.0, 6.0, 2.5]}
    >>> fits = {"population": [5.5, 2.2, 5.5, 2.2], "individual": [5.1, 2.1, 5.9, 2.4]}
    >>> axes = individual_fits({**data, **fits}, xlabel="Time (h)", ylabel="Conc (mg/L)")
    >>> axes.shape
    (2,)
    """
    rows = columns(data, ["group", "x", "y"])
    fine = columns(
        data if curves is None else curves,
        ["group", "x", "population", "individual"],
        name="data" if curves is None else "curves",
    )
    for name, value in {"max_groups": max_groups, "ncols": ncols}.items():
        if value < 1:
            raise ModelSpecError(f"{name}={value}: at least 1 is needed.")
    groups = list(dict.fromkeys(rows["group"].tolist()))
    if not groups:
        raise DataError("data: there are no rows to draw.")
    own_figure = axes is None
    if own_figure:
        panels = _panels(min(len(groups), max_groups), ncols, xlabel, ylabel)
    else:
        panels = np.array(axes, dtype=object).ravel()[: len(groups)]
        if not len(panels):
            raise ModelSpecError("axes: at least one is needed, but the sequence is empty.")
        for ax in panels:
            ax.set_xlabel(xlabel, fontsize=SMALL + 1)
            ax.set_ylabel(ylabel, fontsize=SMALL + 1)
    for ax, group in zip(panels, groups, strict=False):
        _individual_panel(ax, rows, fine, group)
    _individual_key(panels, len(groups), own_figure)
    return panels


def _panels(count: int, ncols: int, xlabel: str, ylabel: str) -> np.ndarray:
    cols = min(ncols, count)
    rows = -(-count // cols)
    wide, tall = (2.2, 1.75) if cols > 2 else (3.2, 2.4)  # inches per panel
    size = (wide * cols + 0.8, tall * rows + 0.9)
    grid = new_axes(rows, cols, size, sharex=True, sharey=True)
    for ax in grid.flat[count:]:
        ax.remove()
    for ax in grid.flat[max(count - cols, 0) : count]:
        ax.tick_params(labelbottom=True)
    figure = grid[0, 0].figure
    figure.supxlabel(xlabel, fontsize=SMALL + 2, color=INK)
    figure.supylabel(ylabel, fontsize=SMALL + 2, color=INK)
    return np.array(grid.flat[:count], dtype=object)


def _individual_panel(ax: Any, rows: dict, fine: dict, group: Any) -> None:
    here = fine["group"] == group
    order = np.argsort(fine["x"][here], kind="stable")
    x = fine["x"][here][order]
    for name, color, style in (("population", VERMILION, "--"), ("individual", BLUE, "-")):
        ax.plot(x, fine[name][here][order], style, color=color, linewidth=1.4, label=name)
    mine = rows["group"] == group
    points(ax, *finite(rows["x"][mine], rows["y"][mine]), alpha=0.85, label="observed")
    ax.set_title(str(group), fontsize=SMALL + 1, color=INK, loc="left", pad=3)
    clean(ax)


def _individual_key(panels: np.ndarray, count: int, own_figure: bool) -> None:
    note = "" if len(panels) == count else f"{len(panels)} of {count} groups shown"
    if own_figure:
        figure = panels[0].figure
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside upper right",
            ncols=3,
            frameon=False,
            fontsize=SMALL,
            title=note or None,
            title_fontsize=SMALL,
        )
    else:
        key = panels[0].legend(frameon=False, fontsize=SMALL - 1)
        key.set_title(note or None, prop={"size": SMALL - 1})


def gof(
    data: Any, *, axes: Any = None, xlabel: str = "Time", ylabel: str = "Observed"
) -> np.ndarray:
    """Draw the four goodness-of-fit panels of pharmacometrics.

    Observed against population prediction (DV, PRED) and against individual prediction (DV, IPRED)
    with the line of identity, conditional weighted residuals against x (CWRES, TIME) and against
    the population prediction (CWRES, PRED) with 0 and +-1.96; a robust local-linear trend in each.

    Parameters
    ----------
    data
        Table (frame or dict of arrays) with columns ``x, y, population, individual, cwres``; rows
        with a missing value are left out of the panels that need it.
    axes
        Four axes to draw into. Default: a new figure.
    xlabel, ylabel
        Names of x and of the response, with units.

    Returns
    -------
    ndarray of Axes
        Four, in the order above.

    Examples
    --------
    >>> import numpy as np
    >>> t = np.linspace(0, 8, 40)
    >>> f, noise = 10 * np.exp(-0.3 * t), np.sin(17 * t)
    >>> data = {"x": t, "y": f + noise, "population": f, "individual": f + noise / 2}
    >>> axes = gof({**data, "cwres": noise}, xlabel="Time (h)", ylabel="Conc (mg/L)")
    >>> axes[0].figure.savefig("gof.png")  # doctest: +SKIP
    """
    table = columns(data, ["x", "y", "population", "individual", "cwres"])
    panels = (
        new_axes(2, 2, (8.0, 6.6)).ravel()
        if axes is None
        else given_axes(axes, [4], "the goodness-of-fit plot")
    )
    for ax, name in zip(panels[:2], ("population", "individual"), strict=True):
        _observed_panel(ax, *finite(table[name], table["y"]))
        ax.set_xlabel(f"{name.capitalize()} prediction", fontsize=SMALL + 1)
        ax.set_ylabel(ylabel, fontsize=SMALL + 1)
    below = (("x", xlabel), ("population", "Population prediction"))
    for ax, (name, label) in zip(panels[2:], below, strict=True):
        _residual_panel(ax, *finite(table[name], table["cwres"]))
        ax.set_xlabel(label, fontsize=SMALL + 1)
        ax.set_ylabel("Conditional weighted residual", fontsize=SMALL + 1)
    lines = {line.get_label(): line for line in panels[0].lines}
    key = [lines[name] for name in ("identity", "trend") if name in lines]
    if key:
        panels[0].legend(handles=key, frameon=False, fontsize=SMALL, loc="upper left")
    return panels


def _observed_panel(ax: Any, predicted: np.ndarray, observed: np.ndarray) -> None:
    clean(ax)
    if not len(observed):
        _nothing(ax)
        return
    both = np.concatenate([predicted, observed])
    ends = np.array([both.min(), both.max()])
    ax.plot(ends, ends, "-", color=GREY, linewidth=1.0, label="identity")
    points(ax, predicted, observed, label="observed")
    ax.plot(*trend(predicted, observed), color=VERMILION, linewidth=1.6, label="trend")


def _residual_panel(ax: Any, x: np.ndarray, residual: np.ndarray) -> None:
    clean(ax)
    if not len(residual):
        _nothing(ax)
        return
    ax.axhline(0.0, color=GREY, linewidth=1.0)
    for level in (-1.96, 1.96):
        ax.axhline(level, color=GREY, linewidth=0.8, linestyle=":")
    points(ax, x, residual, label="residuals")
    ax.plot(*trend(x, residual), color=VERMILION, linewidth=1.6, label="trend")
    largest = 1.08 * max(np.abs(residual).max(), 2.3)
    ax.set_ylim(-largest, largest)


def _nothing(ax: Any) -> None:
    ax.text(0.5, 0.5, "no finite values", transform=ax.transAxes, ha="center", fontsize=SMALL)


def random_effects(data: Any, *, axes: Any = None) -> np.ndarray:
    """Draw the random effects: one caterpillar per term, and normal quantiles below it.

    Parameters
    ----------
    data
        Table (frame or dict of arrays) with columns ``level, term, estimate``, as ``fit.ranef()``
        gives it. Optional: ``group`` (name of the grouping factor, when there are several),
        ``std_error`` (conditional standard deviation: bars of +-1.96) and ``sd`` (the model's
        standard deviation of the term, repeated: slope of the line in the quantile plot; default
        the standard deviation of the estimates).
    axes
        Axes to draw into: one per term (caterpillars only), or twice as many (caterpillars, then
        quantile plots). Default: a new figure with both.

    Returns
    -------
    ndarray of Axes
        Caterpillars in order of the terms, then quantile plots.

    Examples
    --------
    >>> data = {"level": ["a", "b", "c"] * 2, "term": ["lKa"] * 3 + ["lCl"] * 3,
    ...         "estimate": [0.3, -0.5, 0.2, 0.1, 0.0, -0.1]}
    >>> random_effects(data).shape
    (4,)
    """
    table = columns(data, ["level", "term", "estimate"], ["group", "std_error", "sd"])
    factor = table.get("group", np.full(len(table["term"]), ""))
    keys = list(dict.fromkeys(zip(factor.tolist(), table["term"].tolist(), strict=True)))
    if not keys:
        raise DataError("data: there are no random effects to draw.")
    several = len({group for group, _ in keys}) > 1
    count = len(keys)
    per_term = [(factor == group) & (table["term"] == term) for group, term in keys]
    if axes is None:
        most = max(int(mask.sum()) for mask in per_term)
        tall = max(1.2 + 0.16 * most, 2.0) if most <= _MAX_LEVEL_NAMES else 3.6
        wide = 2.7 if count > 1 else 3.6
        size = (wide * count + 0.5, tall + 2.4)
        grid = new_axes(2, count, size, height_ratios=[tall, 2.2])
        panels = grid.ravel()
    else:
        panels = given_axes(axes, [count, 2 * count], f"the plot of {count} terms")
    for k, ((group, term), mask) in enumerate(zip(keys, per_term, strict=True)):
        own = {name: values[mask] for name, values in table.items()}
        _caterpillar(panels[k], own)
        panels[k].set_title(f"{group}: {term}" if several else str(term), fontsize=SMALL + 2)
        if len(panels) == 2 * count:
            _quantiles(panels[count + k], own)
    return panels


def _caterpillar(ax: Any, own: dict[str, np.ndarray]) -> None:
    estimate = np.asarray(own["estimate"], dtype=float)
    order = np.argsort(estimate, kind="stable")
    place = np.arange(len(order))
    clean(ax)
    ax.grid(False, axis="y")
    ax.axvline(0.0, color=GREY, linewidth=1.0)
    if "std_error" in own:
        half = 1.96 * np.asarray(own["std_error"], dtype=float)[order]
        low, high = estimate[order] - half, estimate[order] + half
        ax.hlines(place, low, high, color=BLUE, linewidth=1.2, alpha=0.6, label="95 % interval")
    ax.plot(estimate[order], place, "o", color=BLUE, markersize=4, markeredgewidth=0)
    if len(order) <= _MAX_LEVEL_NAMES:
        ax.set_yticks(place, [str(level) for level in own["level"][order]])
    else:
        ax.set_yticks([])
        ax.set_ylabel(f"{len(order)} levels, in order of size", fontsize=SMALL)
    bars = "random effect, +-1.96 conditional sd" if "std_error" in own else "random effect"
    ax.set_xlabel(bars, fontsize=SMALL)


def _quantiles(ax: Any, own: dict[str, np.ndarray]) -> None:
    from scipy.special import ndtri

    (estimate,) = finite(own["estimate"])
    clean(ax)
    n = len(estimate)
    if n == 0:
        _nothing(ax)
        return
    normal = ndtri((np.arange(n) + 0.5) / n)
    model = "sd" in own
    sd = float(own["sd"][0]) if model else float(np.std(estimate))
    ends = np.array([min(normal[0], -1.0), max(normal[-1], 1.0)])
    ax.plot(ends, sd * ends, "-", color=GREY, linewidth=1.0, label="normal")
    points(ax, normal, np.sort(estimate), markerfacecolor=BLUE)
    ax.set_xlabel("normal quantile", fontsize=SMALL)
    ax.set_ylabel("random effect", fontsize=SMALL)
    slope = "model's sd" if model else "sample sd"
    ax.text(0.03, 0.97, f"line: {slope} {sd:.3g}", transform=ax.transAxes, va="top", fontsize=SMALL)
