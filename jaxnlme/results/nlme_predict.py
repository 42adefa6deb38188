"""Predictions at new rows, random effects of new groups, simulated responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme.design.frames import Table, read_frame
from jaxnlme.design.groups import group_layout
from jaxnlme.design.nonlinear import Grouping, check_times, read_groups, warn_unseen
from jaxnlme.nlme.evaluate import derivatives, phi_of
from jaxnlme.nlme.models import time_column
from jaxnlme.nlme.problem import NLMEProblem
from jaxnlme.results.nlme_compute import (
    Point,
    conditional_covariance,
    evaluate,
    host_factor,
    modes,
    predictions,
)
from jaxnlme.results.nlme_tables import _to_natural, split_levels
from jaxnlme.results.statistics import quantile

if TYPE_CHECKING:
    from jaxnlme.results.nlme import NLMEResults

__all__ = ["individual", "predict", "predictions", "simulate"]


@dataclass(frozen=True)
class NewRows:
    """New data laid out for the model: complete rows only."""

    table: Table
    rows: np.ndarray
    grouping: Grouping
    problem: NLMEProblem


@dataclass(frozen=True)
class Individuals:
    """Random effects of new groups by their conditional modes."""

    ranef: Any
    phi: Any
    predictions: np.ndarray
    converged: np.ndarray


def new_rows(
    results: NLMEResults, newdata: Any, *, groups: bool, response: bool, weighted: bool
) -> NewRows:
    """Read new data: columns and types as in the fit, rows with missing values left out.

    ``weighted`` says that the residual variance matters, so that the weights of the fit must be there.
    """
    spec = results._spec
    table = newdata if isinstance(newdata, Table) else read_frame(newdata, argument="newdata")
    needed = [*spec.predictors, *spec.fixed.columns]
    for level in spec.levels:
        needed += list(level.design.columns)
    if groups:
        needed += list(spec.groups)
    if response:
        needed += list(spec.response_columns)
    if weighted and spec.weights is not None:
        needed.append(spec.weights)
    if weighted and spec.weights is None and np.any(results._weights != 1):
        raise ModelSpecError(
            "the fit had weights= as an array, which new rows do not have: name a column in weights=, fit "
            "again and give newdata that column."
        )
    missing = np.zeros(table.n, bool)
    for name in dict.fromkeys(needed):
        if name not in table:
            raise DataError(
                f"newdata has no column {name!r}, which the model needs; it has {list(table.names)}."
            )
        missing |= table.missing(name)
    rows = np.flatnonzero(~missing)
    if not len(rows):
        raise DataError(
            f"newdata: 0 of {table.n} rows are complete in {list(dict.fromkeys(needed))}."
        )
    used = table.take(rows)
    if groups:
        grouping = read_groups(spec.groups, used)
    else:
        zero = np.zeros(len(rows), np.int64)
        k = len(spec.groups)
        grouping = Grouping(
            group_layout(zero, ("",)), (("",),) * k, (zero,) * k, (zero,) * k, (1,) * k
        )
    y = spec.respond(used) if response else np.zeros(len(rows))
    if spec.error_model.log_scale and not response:
        y = np.ones(len(rows))
    weights = (
        used.numeric(spec.weights, "weights") if weighted and spec.weights else np.ones(len(rows))
    )
    if np.any(weights < 0):
        raise DataError(
            f"newdata: weights column {spec.weights!r} is negative in {np.sum(weights < 0)} row(s)."
        )
    time = time_column(spec.model.function)
    if time is not None and groups:
        check_times(used, time, grouping, rows)
    problem = spec.problem(
        used, grouping, y, weights, results._estimates.beta, results._problem.free
    )
    return NewRows(table, rows, grouping, problem)


@dataclass(frozen=True)
class Place:
    """Where the effects of one level stand: first column here and in the fit, per row; -1 = unseen."""

    size: int
    here: np.ndarray
    fitted: np.ndarray


def known_effects(
    results: NLMEResults, new: NewRows, levels: int
) -> tuple[np.ndarray, list[Place]]:
    """Look up the random effects of known groups; unseen ones get zero and a warning.

    Returns ``b (m, q)`` in the layout of the new problem (zero below the first ``levels`` levels), and each
    level's places.
    """
    problem, old = new.problem, results._grouping
    b = np.zeros((problem.num_groups, problem.num_random))
    at, at_fit, places = 0, 0, []
    for depth, ((level, table), block) in enumerate(
        zip(results._random_tables(), problem.covariance.blocks, strict=True)
    ):
        if depth >= levels:
            break
        fitted = {label: k for k, label in enumerate(results._grouping.labels[depth])}
        labels, codes = new.grouping.labels[depth], new.grouping.codes[depth]
        unseen = []
        here = at + block.size * new.grouping.copies[depth]
        there = np.full(len(codes), -1)
        for k, label in enumerate(labels):
            inside = codes == k
            row = int(np.argmax(inside))
            if label not in fitted:
                unseen.append(label)
                continue
            b[new.grouping.codes[0][row], here[row] : here[row] + block.size] = table[fitted[label]]
            first = int(np.argmax(old.codes[depth] == fitted[label]))
            there[inside] = at_fit + block.size * old.copies[depth][first]
        if unseen:
            warn_unseen(level.group, unseen)
        places.append(Place(block.size, here, there))
        at += block.size * block.repeats
        at_fit += block.size * results._problem.covariance.blocks[depth].repeats
    return b, places


def predict(
    results: NLMEResults, newdata: Any, type: str, re: str, interval: str | None, level: float
) -> Any:
    """See :meth:`NLMEResults.predict`."""
    depth = _depth(results, re)
    if type not in ("response", "link"):
        raise ModelSpecError(f"predict(type={type!r}): use 'response' or 'link' for NLME fits.")
    if interval not in (None, "confidence", "prediction"):
        raise ModelSpecError(
            f"predict(interval={interval!r}): use None, 'confidence' or 'prediction'."
        )
    back = results._response_scale if type == "response" else (lambda f: f)
    if newdata is None and interval is None and depth in (0, len(results._spec.groups)):
        return back((results._point if depth else results._population).f)
    if newdata is None:
        new = NewRows(
            results._table, np.arange(len(results._y)), results._grouping, results._problem
        )
    else:
        new = new_rows(
            results, newdata, groups=depth > 0, response=False, weighted=interval == "prediction"
        )
    problem, layout = new.problem, new.grouping.layout
    b, places = known_effects(results, new, depth)
    length = len(new.rows) if newdata is None else new.table.n
    rows, e = new.rows, results._estimates
    if interval is None:
        f = predictions(problem, layout, e.beta, b)
        f = np.log(f) if type == "link" and results._spec.error_model.log_scale else f
        return _spread(f, rows, length)
    point = evaluate(problem, layout, e.beta, b, e.error)
    variance = _variance(results, new, point, places)
    if interval == "prediction":
        if depth == 0:
            variance = variance + np.sum((point.Z @ host_factor(problem, e.theta)) ** 2, 1)
        variance = variance + point.sd**2
    half = quantile(0.5 + level / 2, None) * np.sqrt(variance)
    low, high = back(point.f - half), back(point.f + half)
    columns = {"fit": back(point.f), "low": low, "high": high}
    return results._table.native({k: _spread(v, rows, length) for k, v in columns.items()})


def _depth(results: NLMEResults, re: str) -> int:
    """How many levels of random effects a prediction holds."""
    groups = results._spec.groups
    if re in ("conditional", "individual"):
        return len(groups)
    if re == "population":
        return 0
    if re in groups:
        return groups.index(re) + 1
    raise ModelSpecError(
        f"predict(re={re!r}): use 'individual', 'population' or a grouping column of {list(groups)}."
    )


def _spread(values: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    out = np.full(length, np.nan)
    out[rows] = values
    return out


def _variance(results: NLMEResults, new: NewRows, point: Point, places: list[Place]) -> np.ndarray:
    """Delta-method variance of the prediction: fixed effects, and random effects given the data.

    Groups of the fit: Var(b | y) at the estimates. Unseen groups: psi.
    """
    covariance = results._covariance[0]
    variance = np.einsum("nf,fg,ng->n", point.X, covariance, point.X)
    factor = host_factor(results._problem, results._estimates.theta)
    posterior = conditional_covariance(results._point, results._grouping.layout, factor)
    fitted = {label: k for k, label in enumerate(results._grouping.layout.labels)}
    labels = new.grouping.layout.labels
    codes = np.array([fitted.get(label, 0) for label in labels])[new.grouping.layout.codes]
    row = np.arange(len(variance))
    known = np.zeros((len(variance), posterior.shape[1]))
    for place, psi in zip(places, results._psi_list(), strict=False):
        seen = place.fitted >= 0
        Z = np.stack([point.Z[row, place.here + k] for k in range(place.size)], -1)
        variance = variance + np.where(seen, 0.0, np.einsum("nq,qr,nr->n", Z, psi, Z))
        for k in range(place.size):
            known[row[seen], place.fitted[seen] + k] = Z[seen, k]
    return variance + np.einsum("nq,nqr,nr->n", known, posterior[codes], known)


def individual(results: NLMEResults, newdata: Any) -> Individuals:
    """See :meth:`NLMEResults.individual`."""
    spec = results._spec
    new = new_rows(results, newdata, groups=True, response=True, weighted=True)
    problem, e = new.problem, results._estimates
    u, converged = modes(problem, e)
    factor = host_factor(problem, e.theta)
    b = u @ factor.T
    layout = new.grouping.layout
    point = evaluate(problem, layout, e.beta, b, e.error)
    variance = conditional_covariance(point, layout, factor)
    sd = np.zeros(b.shape)
    sd[: layout.num_groups] = np.sqrt(np.diagonal(variance, axis1=1, axis2=2))
    columns: dict[str, list] = {
        "group": [],
        "level": [],
        "term": [],
        "estimate": [],
        "std_error": [],
    }
    parts = split_levels(spec, new.grouping, problem, b)
    spreads = split_levels(spec, new.grouping, problem, sd)
    for depth, ((level, table), (_, spread)) in enumerate(zip(parts, spreads, strict=True)):
        labels, terms = new.grouping.labels[depth], level.design.labels
        columns["group"] += [level.group] * table.size
        columns["level"] += [label for label in labels for _ in terms]
        columns["term"] += list(terms) * len(labels)
        columns["estimate"] += table.ravel().tolist()
        columns["std_error"] += spread.ravel().tolist()
    phi = _phi_frame(results, new, point)
    f = _spread(results._response_scale(point.f), new.rows, new.table.n)
    return Individuals(new.table.native(columns), phi, f, converged[: layout.num_groups])


def _phi_frame(results: NLMEResults, new: NewRows, point: Point) -> Any:
    spec, grouping = results._spec, new.grouping
    labels, codes = grouping.labels[-1], grouping.codes[-1]
    first = np.array([np.argmax(codes == k) for k in range(len(labels))])
    phi = np.broadcast_to(point.phi, grouping.layout.shape + point.phi.shape[2:])
    table = phi[grouping.layout.codes[first], grouping.layout.position[first]]
    natural = [_to_natural(spec, name, table[:, k]) for k, name in enumerate(spec.parameters)]
    return new.table.native(
        {
            "group": [label for label in labels for _ in spec.parameters],
            "parameter": list(spec.parameters) * len(labels),
            "value": np.stack(natural, 1).ravel(),
        }
    )


def _draws(problem: NLMEProblem, betas, factor, error, key):
    def one(args):
        beta, k = args
        ku, ke = jax.random.split(k)
        dtype = problem.y.dtype
        u = jax.random.normal(ku, (problem.num_groups, problem.num_random), dtype)
        b = u @ factor.T
        f = derivatives(problem, phi_of(problem, beta, b), 0)[0]
        sd = problem.error_model.sd(f, problem.error_model.natural(error))
        w = jnp.where(problem.weights > 0, problem.weights, 1.0)
        y = f + sd / jnp.sqrt(w) * jax.random.normal(ke, f.shape, dtype)
        return jnp.exp(y) if problem.error_model.log_scale else y

    return jax.lax.map(one, (betas, jax.random.split(key, betas.shape[0])))


_compiled_draws = outer_jit(_draws)


def simulate(results: NLMEResults, n: int, key: Any, newdata: Any, uncertainty: str) -> np.ndarray:
    """See :meth:`NLMEResults.simulate`."""
    if uncertainty not in ("none", "asymptotic"):
        raise ModelSpecError(f"simulate(uncertainty={uncertainty!r}): use 'none' or 'asymptotic'.")
    if int(n) != n or n < 1:
        raise ModelSpecError(f"simulate(n={n!r}): give a whole number >= 1.")
    if newdata is None:
        problem, layout = results._problem, results._grouping.layout
        rows, length = np.arange(len(results._y)), len(results._y)
    else:
        new = new_rows(results, newdata, groups=True, response=False, weighted=True)
        problem, layout, rows, length = new.problem, new.grouping.layout, new.rows, new.table.n
    key = jax.random.key(key) if isinstance(key, int | np.integer) else key
    key, sub = jax.random.split(key)
    e = results._estimates
    betas = np.broadcast_to(e.beta, (n, len(e.beta)))
    if uncertainty == "asymptotic":
        if not np.all(np.isfinite(results._covariance[0])):
            raise ModelSpecError(
                "simulate(uncertainty='asymptotic') needs a covariance of the fixed effects, which this fit "
                "does not have (standard errors are NaN)."
            )
        values, vectors = np.linalg.eigh(results._covariance[0])
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        betas = betas + np.asarray(jax.random.normal(sub, betas.shape)) @ root.T
    factor = host_factor(problem, e.theta)
    padded = np.asarray(_compiled_draws(problem, np.array(betas), factor, e.error, key))
    out = np.full((n, length), np.nan)
    out[:, rows] = padded[:, layout.codes, layout.position]
    return out


def raise_nonfinite(parts: Mapping[str, Any]) -> None:
    """Say which group and row of a start that is not finite is to blame."""
    spec, problem, grouping = parts["spec"], parts["problem"], parts["grouping"]
    zero = np.zeros((problem.num_groups, problem.num_random))
    layout = grouping.layout
    f = predictions(problem, layout, problem.beta0, zero)
    bad = np.flatnonzero(~np.isfinite(f))
    values = ", ".join(
        f"{k}={v:.6g}" for k, v in zip(spec.fixed.labels, problem.beta0, strict=True)
    )
    if len(bad):
        group = layout.labels[layout.codes[bad[0]]]
        raise ModelSpecError(
            f"the model is not finite at the start values ({values}): {f[bad[0]]} in group {group!r}, "
            f"row {int(parts['rows'][bad[0]])} ({len(bad)} row(s) in all). Change start= or guard the "
            "model with jnp.where."
        )
    raise ModelSpecError(
        f"the likelihood or its gradient is not finite at the start values ({values}), although the "
        "predictions are: the model's derivatives may not be, or a prediction of 0 meets an error model "
        "whose sd is 0 there (use error_model='combined'). Change start=."
    )
