"""The ``plot`` accessor of NLME results: collects the data of each picture, then draws it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme.plots import nlme as draw


class NLMEPlots:
    """Pictures of one fit; every ``name()`` has a ``name_data()`` with the numbers drawn."""

    def __init__(self, results: Any) -> None:
        self._results = results

    def __repr__(self) -> str:
        return "<plots: individual_fits, gof, random_effects>"

    def _x(self, x: str | None) -> str:
        """Return the predictor on the horizontal axis: the one asked for, or the one that varies in groups."""
        results = self._results
        names = results._spec.predictors
        if x is not None:
            if x not in names:
                raise ModelSpecError(f"x={x!r} is not a predictor; they are {list(names)}.")
            return x
        if not names:
            raise ModelSpecError("the model has no predictor to draw against.")
        codes = results._grouping.layout.codes

        def spread(name: str) -> float:
            values = self._values(name)
            means = np.bincount(codes, values) / np.bincount(codes)
            total = float(np.var(values))
            return float(np.var(values - means[codes])) / total if total else 0.0

        return max(names, key=spread)

    def _values(self, name: str) -> np.ndarray:
        return self._results._table.numeric(name)[self._results.row_index]

    def _labels(self) -> np.ndarray:
        grouping = self._results._grouping
        return np.array([str(v) for v in grouping.labels[-1]])[grouping.codes[-1]]

    def individual_fits_data(self, x: str | None = None, points: int = 100) -> tuple[Any, Any]:
        """Return two frames: observations (group, x, y) and curves (group, x, population, individual)."""
        results, name = self._results, self._x(x)
        labels, values = self._labels(), self._values(name)
        table = results._table.take(results.row_index)
        first, grid = [], []
        for code in range(len(results._grouping.labels[-1])):
            rows = np.flatnonzero(results._grouping.codes[-1] == code)
            even = np.linspace(values[rows].min(), values[rows].max(), points)
            fine = np.union1d(even, values[rows])  # steep parts are where people measure densely
            first += [rows[0]] * len(fine)
            grid.append(fine)
        rows_of_curves = table.take(np.array(first)).with_column(name, np.concatenate(grid))
        curves = {
            "group": labels[np.array(first)],
            "x": np.concatenate(grid),
            "population": results.predict(rows_of_curves, re="population"),
            "individual": results.predict(rows_of_curves, re="individual"),
        }
        data = {"group": labels, "x": values, "y": results._y}
        return results._table.native(data), results._table.native(curves)

    def individual_fits(self, x: str | None = None, **options: Any) -> np.ndarray:
        """Draw observations, population and individual curve of each group; returns the axes."""
        data, curves = self.individual_fits_data(x)
        options.setdefault("xlabel", self._x(x))
        options.setdefault("ylabel", self._results._spec.response_name)
        return draw.individual_fits(data, curves, **options)

    def gof_data(self, x: str | None = None) -> Any:
        """Return the frame of the goodness-of-fit panels: x, y, population, individual, cwres, iwres."""
        results = self._results
        return results._table.native(
            {
                "group": self._labels(),
                "x": self._values(self._x(x)),
                "y": results._y,
                "population": results._response_scale(results._population.f),
                "individual": results.fittedvalues,
                "cwres": results.residuals("cwres"),
                "iwres": results.residuals("iwres"),
            }
        )

    def gof(self, x: str | None = None, **options: Any) -> np.ndarray:
        """Draw the four goodness-of-fit panels; returns the axes."""
        options.setdefault("xlabel", self._x(x))
        options.setdefault("ylabel", self._results._spec.response_name)
        return draw.gof(self.gof_data(x), **options)

    def random_effects_data(self) -> Any:
        """Return the frame of random effects with conditional standard errors and the model's sd."""
        results = self._results
        frame = results.ranef(cond_var=True)
        columns = {
            name: list(frame[name]) for name in ("group", "level", "term", "estimate", "std_error")
        }
        sds = {
            (level.group, term): float(sd)
            for level, psi in zip(results._spec.levels, results._psi_list(), strict=True)
            for term, sd in zip(level.design.labels, np.sqrt(np.diag(psi)), strict=True)
        }
        keys = zip(columns["group"], columns["term"], strict=True)
        columns["sd"] = [sds[key] for key in keys]
        return results._table.native(columns)

    def random_effects(self, **options: Any) -> np.ndarray:
        """Draw a caterpillar and normal quantiles per random effect; returns the axes."""
        return draw.random_effects(self.random_effects_data(), **options)
