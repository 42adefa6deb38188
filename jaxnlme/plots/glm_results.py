"""The ``plot`` accessor of GLM results: collects the data of each picture, then draws it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme.plots import glm as draw

_NOT_BUILT = frozenset("actual_expected lift double_lift lorenz calibration".split())


class GLMPlots:
    """Pictures of one fit; every ``name()`` has a ``name_data()`` with the numbers drawn."""

    def __init__(self, results: Any) -> None:
        self._results = results

    def __repr__(self) -> str:
        return "<plots: diagnostics>"

    def __getattr__(self, name: str) -> Any:
        if name in _NOT_BUILT:
            raise ModelSpecError(
                f"plot.{name} is not built yet in this version; built: diagnostics."
            )
        raise AttributeError(
            f"the plots of a GLM have no attribute {name!r}; there is diagnostics."
        )

    def diagnostics_data(self, key: Any = 0) -> Any:
        """Return the frame behind the panels, one row per row used of positive weight.

        Columns row (of the input), linear_predictor, quantile_residual (deviance residuals over their standard
        error for quasi families), pearson (standardised), leverage, cooks_distance. The last two are NaN, and
        pearson is not standardised, for families that are not fitted by weighted least squares.
        """
        results = self._results
        likelihood = results._problem.family.has_likelihood
        nan = np.full(len(results.row_index), np.nan)
        columns = {"row": results.row_index, "linear_predictor": results._rows.etas[0]}
        if results._conditional is None:
            columns["quantile_residual"] = results.residuals("quantile", key)
            columns |= {"pearson": results.residuals("pearson"), "leverage": nan}
            columns["cooks_distance"] = nan
        else:
            found = results.influence()
            deviance = found.standardized_deviance
            columns["quantile_residual"] = (
                results.residuals("quantile", key) if likelihood else deviance
            )
            columns |= {"pearson": found.standardized_pearson, "leverage": found.leverage}
            columns["cooks_distance"] = found.cooks_distance
        live = results._problem.weights > 0
        return results._table.native({k: np.asarray(v)[live] for k, v in columns.items()})

    def diagnostics(self, key: Any = 0, **options: Any) -> np.ndarray:
        """Draw four panels: residuals against the predictor, normal quantiles, scale, leverage; returns the axes."""
        likelihood = self._results._problem.family.has_likelihood
        options.setdefault("residual", "Quantile residual" if likelihood else "Deviance residual")
        options.setdefault("rank", self._results.rank)
        return draw.diagnostics(self.diagnostics_data(key), **options)
