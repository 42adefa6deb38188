"""Pictures of chains: ``chain.plot.trace()`` and its companions."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme.calibration.chain import Chain
from jaxnlme.calibration.predictive import posterior_predictive
from jaxnlme.calibration.problem import make_posterior
from jaxnlme.plots.style import (
    BLUE,
    GREY,
    INK,
    SMALL,
    VERMILION,
    clean,
    given_axes,
    new_axes,
)

__all__ = ["ChainPlots"]

MAX_LINES = 60  # walkers of a trace; more are a grey band
MAX_CORNER = 10


class ChainPlots:
    """Pictures of one chain; every method returns its axes.

    Parameters
    ----------
    chain
        What is drawn. ``params`` of the methods chooses and orders parameters by name.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> chain = Chain(rng.normal(size=(100, 8, 2)), np.zeros((100, 8)), ["a", "b"])
    >>> ChainPlots(chain).corner().shape
    (2, 2)
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def _names(self, params: Any, most: int | None = None) -> list[str]:
        known = self._chain.param_names
        names = known if params is None else [params] if isinstance(params, str) else list(params)
        for name in names:
            if name not in known:
                raise ModelSpecError(f"params: no parameter {name!r}.{nearest(str(name), known)}")
        return names if most is None or params is not None else names[:most]

    def _steps(self, discard: int) -> np.ndarray:
        chain = self._chain
        return np.arange(discard, len(chain)) * chain.thinning

    def _panels(
        self, count: int, axes: Any, what: str, size: tuple[float, float], sharex: bool = True
    ) -> np.ndarray:
        if axes is not None:
            return given_axes(axes, [count], what)
        return new_axes(count, 1, (size[0], size[1] * count + 0.5), sharex=sharex).ravel()

    def trace(self, params: Any = None, *, discard: int = 0, axes: Any = None) -> np.ndarray:
        """Draw each walker over the steps, and the mean of the walkers."""
        names = self._names(params)
        panels = self._panels(len(names), axes, "trace", (7.0, 1.4))
        steps = self._steps(discard)
        stride = max(len(steps) // 1000, 1)
        ensembles = np.unique(self._chain.ensemble)
        for ax, name in zip(panels, names, strict=True):
            values = self._chain[name][discard:]
            shown = np.linspace(0, values.shape[1] - 1, min(values.shape[1], MAX_LINES)).astype(int)
            ax.plot(
                steps[::stride], values[::stride][:, shown], color=GREY, linewidth=0.4, alpha=0.45
            )
            for e in ensembles[:8]:
                mean = values[:, self._chain.ensemble == e].mean(1)
                ax.plot(steps[::stride], mean[::stride], color=BLUE, linewidth=1.1)
            ax.set_ylabel(name, fontsize=SMALL + 1, color=INK)
            clean(ax)
        panels[0].set_title("walkers, and their mean" + (" by ensemble" if len(ensembles) > 1 else ""),
                            fontsize=SMALL + 1, color=INK, loc="left")  # fmt: skip
        panels[-1].set_xlabel("step", fontsize=SMALL + 1, color=INK)
        return panels

    def corner(
        self, params: Any = None, *, discard: int = 0, truth: Any = None, bins: int = 40,
        axes: Any = None,
    ) -> np.ndarray:  # fmt: skip
        """Draw histograms, and densities of pairs with contours around 39, 68 and 95 % of the draws.

        ``truth``: dict of values to mark. The first 10 parameters unless `params` names them.
        """
        names = self._names(params, MAX_CORNER)
        p = len(names)
        grid = new_axes(p, p, (1.7 * p + 0.6, 1.6 * p + 0.6)) if axes is None else np.array(axes)
        if grid.shape != (p, p):
            raise ModelSpecError(f"axes: corner needs ({p}, {p}) axes, got {grid.shape}.")
        draws = np.stack([self._chain[n][discard:].ravel() for n in names], axis=1)
        limits = [_limits(x) for x in draws.T]
        for i in range(p):
            for j in range(p):
                ax = grid[i, j]
                if j > i:
                    ax.set_visible(False)
                    continue
                if i == j:
                    ax.hist(draws[:, i], bins, range=limits[i], color=BLUE, alpha=0.8)
                    ax.set_yticks([])
                else:
                    _density(ax, draws[:, j], draws[:, i], limits[j], limits[i], bins)
                    ax.set_ylim(limits[i])
                ax.set_xlim(limits[j])
                for name, mark in ((names[j], ax.axvline), (names[i], ax.axhline)):
                    if truth is not None and name in truth and (mark == ax.axvline or i != j):
                        mark(truth[name], color=VERMILION, linewidth=1)
                clean(ax)
                ax.grid(False)
                _corner_labels(ax, i, j, p, names)
        return grid

    def autocorr(self, params: Any = None, *, discard: int = 0, axes: Any = None) -> np.ndarray:
        """Draw the autocorrelation (mean of walkers) up to five times Sokal's time, which is marked."""
        names = self._names(params)
        chain = self._chain
        tau = chain.autocorr_time(discard)
        panels = self._panels(len(names), axes, "autocorr", (6.0, 1.4))
        worst = np.nanmax([tau[n] for n in names]) / chain.thinning
        n = len(chain) - discard
        lags = int(np.clip(5 * (worst if np.isfinite(worst) else n), 10, n - 1))
        for ax, name in zip(panels, names, strict=True):
            x = chain[name][discard:]
            x = x - x.mean(0)
            size = 2 * len(x)
            power = np.abs(np.fft.rfft(x, size, axis=0)) ** 2
            acf = np.fft.irfft(power, size, axis=0)[:lags]
            with np.errstate(invalid="ignore"):
                rho = np.nanmean(acf / acf[0], axis=1)
            ax.plot(np.arange(lags) * chain.thinning, rho, color=BLUE, linewidth=1.4)
            ax.axhline(0, color=GREY, linewidth=0.7)
            ax.axvline(tau[name], color=VERMILION, linewidth=1, linestyle="--")
            ax.set_ylabel(name, fontsize=SMALL + 1, color=INK)
            ax.annotate(f"tau = {tau[name]:.0f}", (0.98, 0.8), xycoords="axes fraction", ha="right",
                        fontsize=SMALL, color=VERMILION)  # fmt: skip
            clean(ax)
        panels[-1].set_xlabel("lag (steps)", fontsize=SMALL + 1, color=INK)
        return panels

    def acceptance(self, *, axes: Any = None) -> np.ndarray:
        """Draw the accepted fraction of each walker, and its mean over the steps."""
        chain = self._chain
        if axes is None:
            panels = new_axes(1, 2, (7.0, 2.6)).ravel()
        else:
            panels = given_axes(axes, [2], "acceptance")
        fractions = np.sort(chain.acceptance_fractions)
        panels[0].axhspan(0.2, 0.5, color=BLUE, alpha=0.08, linewidth=0)
        panels[0].plot(np.arange(len(fractions)), fractions, "o", markersize=3, color=INK)
        panels[0].set_xlabel("walker, sorted", fontsize=SMALL + 1, color=INK)
        panels[0].set_ylabel("accepted fraction", fontsize=SMALL + 1, color=INK)
        panels[0].set_ylim(0, max(0.6, float(np.nanmax(fractions)) * 1.1))
        steps = self._steps(0) + 1
        if chain.accepted is not None and np.isfinite(chain.accepted).all():
            panels[1].plot(steps, chain.accepted.mean(1) / steps, color=BLUE, linewidth=1.4)
        else:
            moved = (np.diff(chain.samples, axis=0) != 0).any(2).mean(1)
            panels[1].plot(steps[1:], np.cumsum(moved) / np.arange(1, len(moved) + 1), color=BLUE)
        panels[1].set_xlabel("step", fontsize=SMALL + 1, color=INK)
        panels[1].set_ylabel("mean so far", fontsize=SMALL + 1, color=INK)
        for ax in panels:
            clean(ax)
        return panels

    def rank(
        self, params: Any = None, *, discard: int = 0, bins: int = 20, axes: Any = None
    ) -> np.ndarray:
        """Draw rank histograms of ensembles (or of walkers): level where all sample the same."""
        names = self._names(params)
        chain = self._chain
        several = len(np.unique(chain.ensemble)) > 1
        labels = chain.ensemble if several else np.arange(chain.n_walkers)
        panels = self._panels(len(names), axes, "rank", (6.0, 1.4))
        for ax, name in zip(panels, names, strict=True):
            x = chain[name][discard:]
            ranks = np.argsort(np.argsort(x.ravel())).reshape(x.shape)
            for label in np.unique(labels)[:MAX_LINES]:
                own = ranks[:, labels == label].ravel()
                counts, edges = np.histogram(own, bins, range=(0, x.size))
                ax.stairs(counts * bins / len(own), edges, color=BLUE, alpha=0.35, linewidth=0.8)
            ax.axhline(1, color=VERMILION, linewidth=1, linestyle="--")
            ax.set_ylabel(name, fontsize=SMALL + 1, color=INK)
            ax.set_ylim(0, None)
            clean(ax)
        kind = "ensembles" if several else "walkers"
        panels[-1].set_xlabel(
            f"rank of the draw; one line per {kind[:-1]}", fontsize=SMALL + 1, color=INK
        )
        return panels

    def prior_posterior(
        self, params: Any = None, *, discard: int = 0, axes: Any = None
    ) -> np.ndarray:
        """Draw the density of the draws over that of the prior."""
        chain = self._chain
        priors = chain.priors
        if priors is None:
            raise ModelSpecError("prior_posterior: this chain carries no priors (it was loaded, or "
                                 "sampled from a function).")  # fmt: skip
        names = self._names(params)
        known = dict(zip(chain.param_names, priors.priors, strict=True))
        panels = self._panels(len(names), axes, "prior_posterior", (5.0, 1.6), sharex=False)
        for ax, name in zip(panels, names, strict=True):
            x = chain[name][discard:].ravel()
            low, high = (float(v) for v in known[name].icdf(np.array([0.01, 0.99])))
            low, high = min(low, x.min()), max(high, x.max())
            grid = np.linspace(low, high, 400)
            ax.hist(x, 60, density=True, color=BLUE, alpha=0.7, label="posterior")
            ax.plot(grid, np.exp(known[name].log_prob(grid)), color=VERMILION, label="prior")
            ax.set_xlim(low, high)
            ax.set_yticks([])
            ax.set_xlabel(name, fontsize=SMALL + 1, color=INK)
            ax.tick_params(labelbottom=True)
            clean(ax)
        panels[0].legend(fontsize=SMALL, frameon=False)
        return panels

    def posterior_predictive(
        self, runner: Any, target: Any, n_samples: int = 200, discard: int = 0, *,
        likelihood: Any = None, key: Any = 0, axes: Any = None,
    ) -> np.ndarray:  # fmt: skip
        """Draw the observations and the model at draws of the chain: median, 50 and 90 % bands.

        The darker bands are of the model, the outline is of replicated observations where the
        likelihood can simulate them.
        """
        priors = self._chain.priors
        if priors is None:
            raise ModelSpecError("posterior_predictive: this chain carries no priors; use "
                                 "calibration.posterior_predictive(posterior, chain).")  # fmt: skip
        posterior = make_posterior(priors, target, runner, likelihood)
        found = posterior_predictive(
            posterior, self._chain, n_samples=n_samples, discard=discard, key=key
        )
        panels = self._panels(len(found), axes, "posterior_predictive", (7.0, 2.6))
        for ax, (name, part) in zip(panels, found.items(), strict=True):
            t = part["times"]
            for level, alpha in ((0.9, 0.25), (0.5, 0.4)):
                low, high = np.quantile(part["model"], [(1 - level) / 2, (1 + level) / 2], axis=0)
                ax.fill_between(t, low, high, color=BLUE, alpha=alpha, linewidth=0,
                                label=f"model, {level:.0%}")  # fmt: skip
            low, high = np.quantile(part["simulated"], [0.05, 0.95], axis=0)
            ax.plot(t, low, color=BLUE, linewidth=0.6, linestyle=":", label="observations, 90%")
            ax.plot(t, high, color=BLUE, linewidth=0.6, linestyle=":")
            ax.plot(t, np.median(part["model"], axis=0), color=BLUE, linewidth=1.4)
            ax.plot(t, part["values"], "o", color=INK, markersize=2.5, alpha=0.7, label="observed")
            ax.set_ylabel(name, fontsize=SMALL + 1, color=INK)
            clean(ax)
        panels[0].legend(fontsize=SMALL, frameon=False, ncols=2)
        panels[-1].set_xlabel("time", fontsize=SMALL + 1, color=INK)
        return panels


def _limits(x: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(x, [0.001, 0.999])
    margin = 0.05 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _density(ax: Any, x: Any, y: Any, xlim: Any, ylim: Any, bins: int) -> None:
    counts, xe, ye = np.histogram2d(x, y, bins, range=[xlim, ylim])
    # A small blur: three passes of 1 2 1.
    smooth = counts
    for _ in range(3):
        smooth = np.apply_along_axis(lambda v: np.convolve(v, [0.25, 0.5, 0.25], "same"), 0, smooth)
        smooth = np.apply_along_axis(lambda v: np.convolve(v, [0.25, 0.5, 0.25], "same"), 1, smooth)
    ordered = np.sort(smooth.ravel())[::-1]
    mass = np.cumsum(ordered) / max(ordered.sum(), 1)
    levels = sorted({float(ordered[np.searchsorted(mass, m)]) for m in (0.393, 0.683, 0.954)})
    cx, cy = 0.5 * (xe[1:] + xe[:-1]), 0.5 * (ye[1:] + ye[:-1])
    ax.pcolormesh(xe, ye, smooth.T, cmap="Blues", shading="auto", rasterized=True)
    if len(levels) > 1:
        ax.contour(cx, cy, smooth.T, levels, colors=INK, linewidths=0.6)


def _corner_labels(ax: Any, i: int, j: int, p: int, names: list[str]) -> None:
    ax.tick_params(labelsize=SMALL - 2, rotation=30)
    if i == p - 1:
        ax.set_xlabel(names[j], fontsize=SMALL + 1, color=INK)
    else:
        ax.set_xticklabels([])
    if j == 0 and i > 0:
        ax.set_ylabel(names[i], fontsize=SMALL + 1, color=INK)
    elif j > 0:
        ax.set_yticklabels([])
