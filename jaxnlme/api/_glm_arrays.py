"""The array call of ``fit_glm``: ``fit_glm(X, y, ...)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, DataWarning, ModelSpecError, some, warn
from jaxnlme.api._glm_inputs import Inputs, finish, read_covariates, read_families
from jaxnlme.design.frames import Table, check_lengths, read_arrays, read_frame
from jaxnlme.design.response import read_response
from jaxnlme.families import Response
from jaxnlme.glm.drive import HostDesign, host_design
from jaxnlme.results.glm_spec import array_design, column_reader


def read_array_model(
    X: Any,
    y: Any,
    *,
    names: Sequence[str] | None,
    intercept: bool,
    family: Any,
    link: Any,
    exposure: Any,
    weights: Any,
    offset: Any,
    parameters: Mapping[str, str] | None,
    missing: str,
    dispersion: Any,
) -> Inputs:
    """Read ``fit_glm(X, y, ...)``; ``X`` (n, p) or a frame of numbers, ``y`` (n,)."""
    if y is None:
        raise DataError("y is missing: fit_glm(X, y) needs the response as its second argument.")
    if missing not in ("drop", "raise"):
        raise DataError(f"missing={missing!r} is not known; use missing='drop' or missing='raise'.")
    chosen, formulas = read_families(family, link, parameters, dispersion)
    if formulas and any(text.replace(" ", "") != "~1" for text in formulas.values()):
        raise ModelSpecError(
            "parameters= with variables needs the formula call: fit_glm('y ~ x', data, parameters={...})."
        )
    matrix, labels = _matrix(X, names)
    values, levels, gaps = _response(y)
    check_lengths({"X": len(matrix), "y": len(values)})
    table = _table(matrix, labels, values, levels)
    covariates = read_covariates(table, weights=weights, offset=offset, exposure=exposure)
    design = host_design(matrix, constant=intercept)
    clean = design.finite and not gaps.any()
    rows = np.arange(len(matrix)) if clean else _complete_rows(matrix, labels, gaps, missing)
    whole = None if len(rows) == len(matrix) else rows
    used = table
    if whole is not None:
        matrix, values, used = matrix[rows], values[rows], table.take(rows)
        design = host_design(matrix, constant=intercept)
    n = len(rows)
    w = covariates.at("weights", whole)
    response = Response(
        values=values, weights=np.ones(n) if w is None else w, weighted=w is not None, levels=levels,
        column=column_reader(used), name="y", rows=rows,
    )  # fmt: skip
    spec = array_design(labels, intercept)

    def build(keep: np.ndarray | None) -> HostDesign:
        return design if keep is None else host_design(matrix, constant=intercept and 0 in keep)

    return finish(
        table=table, rows=rows, used=used, family=chosen, link=link, formulas=formulas, response=response,
        text=f"y ~ {spec.formula}", lhs="y", mean=spec, build=build, covariates=covariates, names=labels,
    )  # fmt: skip


def _matrix(X: Any, names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return X as float64 (n, p), without a copy where that is what it is."""
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype == np.float64:
        matrix = X
        found = None
    else:
        if hasattr(X, "__array__") and not hasattr(X, "columns") and np.ndim(X) == 2:
            X = np.asarray(X)
        matrix = read_arrays(X)[0]
        found = _frame_names(X)
    if len(matrix) == 0:
        raise DataError("X has 0 rows; at least one row is needed.")
    if names is not None:
        found = tuple(str(n) for n in names)
    labels = found or tuple(f"x{j + 1}" for j in range(matrix.shape[1]))
    if len(labels) != matrix.shape[1]:
        raise DataError(f"names has {len(labels)} entries, but X has {matrix.shape[1]} columns.")
    return matrix, labels


def _frame_names(X: Any) -> tuple[str, ...] | None:
    if isinstance(X, Mapping):
        return tuple(str(k) for k in X)
    columns = getattr(X, "columns", None)
    if columns is None:
        return None
    return tuple(str(c) for c in (X.column_names if hasattr(X, "column_names") else columns))


def _response(y: Any) -> tuple[np.ndarray, tuple | None, np.ndarray]:
    """Values (codes for labels), levels, and where they are missing."""
    if not hasattr(y, "dtype") and not isinstance(y, list | tuple):
        y = np.asarray(y)
    shape = np.shape(y)
    if len(shape) != 1:
        raise DataError(
            f"y has shape {shape}; the response is one-dimensional, (n,). Use y.ravel() for (n, 1), and "
            "'cbind(success, failure) ~ ...' in a formula for two columns."
        )
    if isinstance(y, np.ndarray) and y.dtype == np.float64:
        total = np.sum(y)
        gaps = np.zeros(0, bool) if np.isfinite(total) else np.isnan(y)
        if not np.isfinite(total) and np.isinf(y).any():
            raise DataError(
                f"y is infinite in rows {some(np.flatnonzero(np.isinf(y)))}; correct them, or set them to NaN "
                "if they are unknown."
            )
        return y, None, gaps
    values, levels, _ = read_response(y)
    return values, levels, np.isnan(values)


def _table(matrix: np.ndarray, labels: tuple[str, ...], values: np.ndarray, levels: Any) -> Table:
    columns = {name: matrix[:, j] for j, name in enumerate(labels)}
    shown = values if levels is None else np.asarray(levels, object)[values.astype(int)]
    return read_frame({"y": shown, **columns}, argument="X")


def _complete_rows(
    matrix: np.ndarray, labels: tuple[str, ...], gaps: np.ndarray, missing: str
) -> np.ndarray:
    """Rows without a missing value; infinite ones raise."""
    n = len(matrix)
    infinite = np.isinf(matrix)
    if infinite.any():
        j = int(np.flatnonzero(infinite.any(axis=0))[0])
        raise DataError(
            f"column {labels[j]!r} of X is infinite in {int(infinite[:, j].sum())} rows (rows "
            f"{some(np.flatnonzero(infinite[:, j]))}); infinite values are never dropped."
        )
    absent = np.isnan(matrix)
    dropped = absent.any(axis=1)
    counts = {labels[j]: int(c) for j, c in enumerate(absent.sum(axis=0)) if c}
    if gaps.any():
        dropped = dropped | gaps
        counts["y"] = int(gaps.sum())
    if not counts:
        return np.arange(n)
    per_column = ", ".join(f"{name!r}: {count}" for name, count in counts.items())
    if missing == "raise":
        raise DataError(
            f"missing values ({per_column}; rows {some(np.flatnonzero(dropped))}) and missing='raise'. Remove "
            "them, or use missing='drop' to leave these rows out."
        )
    if dropped.all():
        worst = max(counts, key=lambda name: counts[name])
        raise DataError(
            f"0 of {n} rows are left after dropping missing values; column {worst!r} alone removes "
            f"{counts[worst]}."
        )
    warn(
        f"{int(dropped.sum())} of {n} rows dropped because of missing values ({per_column}); row_index says "
        "which rows were used.",
        DataWarning,
    )
    return np.flatnonzero(~dropped)
