"""Fitting a GLM again: other responses, other arguments, resampled rows, other base levels."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnlme._errors import DataError, ModelSpecError, nearest, some
from jaxnlme._precision import host64
from jaxnlme._results import RESULTS
from jaxnlme.families._base import Response
from jaxnlme.glm.coordinates import scaled_inverse
from jaxnlme.glm.drive import HostFit, HostProblem, drive
from jaxnlme.glm.fit import GLMFit
from jaxnlme.inference.sandwich import read_groups
from jaxnlme.results.glm_compute import Evaluator
from jaxnlme.results.glm_predict import NewRows, draw, rows_of
from jaxnlme.results.glm_spec import column_reader
from jaxnlme.results.statistics import generator

if TYPE_CHECKING:
    from jaxnlme.results.glm import GLMResults


def with_response(results: GLMResults, y: np.ndarray) -> HostProblem:
    """The problem of the fit with another response: (n,) as in the data, or in the kernels' form.

    Raises
    ------
    DataError
        Values outside the family's support.
    """
    problem = results._problem
    family = problem.family
    if y.ndim == 1:
        weights = family.law_weights(problem.y, problem.weights)
        column = column_reader(results._used)
        response = Response(y, weights, True, None, column, "y", results.row_index)
        if family.response_width == 1:
            family.check_response(response)
        else:
            y = family.read_response(response).y
    return dataclasses.replace(problem, y=y)


def refit(results: GLMResults, y: Any) -> GLMResults:
    """See :meth:`GLMResults.refit`."""
    y, problem = np.asarray(y, float), results._problem
    n = problem.y.shape[-1]
    if y.shape not in ((n,), problem.y.shape):
        raise DataError(f"refit: y has shape {y.shape}, expected ({n},): one value per row used.")
    if not problem.family.reads_response:
        raise ModelSpecError(
            "refit: this fit reads intervals from two columns, not the response; use update(data=...)."
        )
    bad = np.flatnonzero(~np.isfinite(y)) if y.ndim == 1 else []
    if len(bad):
        raise DataError(f"refit: y is missing or infinite in {len(bad)} row(s): {some(bad)}.")
    began = time.perf_counter()
    problem = with_response(results, y)
    fit = drive(problem, start=_start(results), aliased=results._host.aliased)
    return results._again(problem=problem, fit=fit, seconds=time.perf_counter() - began)


def _start(results: GLMResults) -> np.ndarray | None:
    return results._host.filled if results.converged else None


def with_params(results: GLMResults, values: Mapping[str, Any]) -> GLMResults:
    """See :meth:`GLMResults.with_params`."""
    labels, host = results._spec.all_labels, results._host
    params = np.array(host.params)
    for name, value in values.items():
        if name not in labels:
            raise ModelSpecError(
                f"with_params: {name!r} is no coefficient; they are {list(labels)}."
                + nearest(str(name), labels)
            )
        if not np.isfinite(value):
            raise ModelSpecError(f"with_params: {name!r}={value!r} must be a finite number.")
        params[labels.index(name)] = value
    filled = np.where(np.isnan(params), 0.0, params)
    covariance = covariance_at(results._problem, host, filled)
    fit = GLMFit(params, host.fit.state, RESULTS.successful, host.fit.stats)
    host = dataclasses.replace(host, params=params, covariance=covariance, fit=fit)
    return results._again(fit=host)


@host64
def covariance_at(problem: HostProblem, host: HostFit, params: np.ndarray) -> np.ndarray:
    """(P, P) inverse information at any coefficients, expected where the family has it; NaN where aliased."""
    information = Evaluator(problem, params).score()[1]
    free = np.flatnonzero(host.estimated)
    covariance = np.where(host.aliased[:, None] | host.aliased[None], np.nan, 0.0)
    covariance[np.ix_(free, free)] = scaled_inverse(information[np.ix_(free, free)])
    return covariance


def update(results: GLMResults, arguments: tuple, changes: Mapping[str, Any]) -> GLMResults:
    """See :meth:`GLMResults.update`."""
    if len(arguments) > 1:
        raise ModelSpecError("update takes one positional argument, the formula; name the others.")
    call = {**results._call, **changes}
    if arguments:
        call["model"] = arguments[0]
    if call["model"] is not results._call["model"] and isinstance(call["model"], str):
        if results._spec.names is not None and "data" not in changes:
            raise ModelSpecError(
                "update: the fit was made from arrays, so a new formula needs data= (a frame); or call fit_glm "
                "with other columns."
            )
        call["model"] = expanded(call["model"], results.formula)
        if results._spec.names is not None:
            call |= {"names": None, "intercept": True, "y": None}
        call |= {"terms": None, "interactions": None, "response": None}
        call["parameters"] = changes.get("parameters", call.get("parameters"))
    model, data = call.pop("model"), call.pop("data")
    return results._door(model, data, **call)


def expanded(new: str, old: str) -> str:
    """R's ``update.formula``: a lone ``.`` stands for the same side of the old formula.

    Examples
    --------
    >>> expanded(". ~ . - b", "y ~ a + b")
    'y ~ (a + b) - b'
    """
    left, sign, right = new.partition("~")
    if not sign:
        raise ModelSpecError(f"update: {new!r} is no formula; write it as '. ~ . + x'.")
    before, _, after = old.partition("~")
    dot = r"(?<![\w.`])\.(?![\w.`])"
    left = re.sub(dot, lambda _: before.strip(), left).strip() or before.strip()
    right = re.sub(dot, lambda _: f"({after.strip()})", right).strip()
    return f"{left} ~ {right}"


def relevel(results: GLMResults, by: str) -> GLMResults:
    """See :meth:`GLMResults.relevel`."""
    if by != "exposure":
        raise ModelSpecError(f"relevel(by={by!r}): only 'exposure' is there.")
    import pandas as pd

    share = exposure_of(results)
    table = results._table
    for variable in results._spec.mean.variables:
        name = variable.text
        if variable.kind != "factor" or name not in table:
            continue
        factor = table.factor(name)
        totals = np.bincount(factor.codes[results.row_index], share, minlength=len(factor.levels))
        first = int(np.argmax(totals))
        order = [first, *(k for k in range(len(factor.levels)) if k != first)]
        position = np.argsort(order)
        codes = np.where(factor.codes < 0, -1, position[factor.codes])
        levels = [factor.levels[k] for k in order]
        table = table.with_column(name, pd.Series(pd.Categorical.from_codes(codes, levels)))
    return update(results, (), {"data": table})


def exposure_of(results: GLMResults) -> np.ndarray:
    """Exposure of the rows used: as given to the fit, else the prior weights."""
    spec, given = results._spec.exposure, results._call.get("exposure")
    if not spec.given:
        return results._problem.weights
    if spec.name is not None:
        return results._table.numeric(spec.name)[results.row_index]
    return np.asarray(given, float)[results.row_index]


def bootstrap(results: GLMResults, n: int, key: Any, kind: str, groups: Any = None) -> np.ndarray:
    """(n, P) coefficients of bootstrap samples, NaN where a fit failed."""
    if isinstance(n, bool) or int(n) != n or n < 1:
        raise ModelSpecError(f"bootstrap(n={n!r}): give a whole number >= 1.")
    if kind not in ("parametric", "cases", "groups"):
        raise ModelSpecError(f"bootstrap(kind={kind!r}): use 'parametric', 'cases' or 'groups'.")
    if (groups is not None) != (kind == "groups"):
        raise ModelSpecError("bootstrap: groups= goes with kind='groups', which needs it.")
    rng, rows = generator(key), results._problem.weights.shape[0]
    new = rows_of(results, None)
    codes, count = np.arange(rows), rows
    if kind == "groups":
        codes, count = read_groups(results._row_values(groups, "groups"), rows)
    out = []
    for _ in range(int(n)):
        if kind == "parametric":
            out.append(_redrawn(results, rng, new))
        else:
            drawn = rng.integers(0, count, count)
            out.append(resampled(results, np.bincount(drawn, minlength=count)[codes]))
    return np.array(out)


def _redrawn(results: GLMResults, rng: np.random.Generator, new: NewRows) -> np.ndarray:
    """Coefficients of a fit to drawn responses, NaN where these have no maximum likelihood estimate."""
    y, whole = draw(results, rng, new, results._rows.parameters)
    if not whole:
        raise ModelSpecError(
            "bootstrap(kind='parametric'): when drawn responses would be censored cannot be told from event=, "
            "interval= or marks; use kind='cases', or give the limits by left=, right=."
        )
    try:
        problem = with_response(results, y)
    except DataError:
        return np.full(results._problem.width, np.nan)
    return _estimates(results, problem)


def resampled(results: GLMResults, counts: np.ndarray) -> np.ndarray:
    """(P,) coefficients when row i stands ``counts[i]`` times in the data."""
    problem = results._problem
    return _estimates(results, dataclasses.replace(problem, weights=problem.weights * counts))


def _estimates(results: GLMResults, problem: HostProblem) -> np.ndarray:
    fit: HostFit = drive(problem, start=_start(results), aliased=results._host.aliased)
    if fit.result != "successful":
        fit = drive(problem, aliased=results._host.aliased)
    return fit.params if fit.result == "successful" else np.full(problem.width, np.nan)


def bootstrap_frame(results: GLMResults, n: int, key: Any, kind: str, groups: Any) -> Any:
    """See :meth:`GLMResults.bootstrap`."""
    values = bootstrap(results, n, key, kind, groups)[:, results._shown]
    labels = results._spec.labels
    columns = {
        "replicate": np.repeat(np.arange(len(values)), len(labels)),
        "term": list(labels) * len(values),
        "estimate": values.ravel(),
    }
    return results._table.native(columns)
