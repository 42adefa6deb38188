"""Predictions at new rows, random effects of new groups, simulated responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme.design.frames import Table, read_frame
from jaxnlme.design.groups import group_layout
from jaxnlme.design.nonlinear import Grouping, read_groups, warn_unseen
from jaxnlme.nlme.evaluate import derivatives, phi_of
from jaxnlme.nlme.problem import NLMEProblem
from jaxnlme.results.nlme_compute import (
    Point,
    conditional_covariance,
    evaluate,
    host_factor,
    modes,
    predictions,
)
from jaxnlme.results.nlme_tables import _quantile, _to_natural, split_levels

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


def new_rows(results: NLMEResults, newdata: Any, *, groups: bool, response: bool) -> NewRows:
    """Read new data: columns and types as in the fit, rows with missing values left out."""
    spec = results._spec
    table = newdata if isinstance(newdata, Table) else read_frame(newdata, argument="newdata")
    needed = [*spec.predictors, *spec.fixed.columns]
    for level in spec.levels:
        needed += list(level.design.columns)
    if groups:
        needed += list(spec.groups)
    if response:
        needed += list(spec.response_columns)
    missing = np.zeros(table.n, bool)
    for name in dict.fromkeys(needed):
        if name not in table:
            raise DataError(
                f"newdata has no column {name!r}, which the model needs; it has {list(table.names)}."
            )
        missing |= table.missing(name)
    rows = np.flatnonzero(~missing)
    if not len(rows):
        raise DataError(f"newdata: 0 of {table.n} rows are complete in {list(dict.fromkeys(needed))}.")
    used = table.take(rows)
    if groups:
        grouping = read_groups(spec.groups, used)
    else:
        zero = np.zeros(len(rows), np.int64)
        k = len(spec.groups)
        grouping = Grouping(group_layout(zero, ("",)), (("",),) * k, (zero,) * k, (zero,) * k, (1,) * k)
    y = spec.respond(used) if response else np.zeros(len(rows))
    if spec.error_model.log_scale and not response:
        y = np.ones(len(rows))
    weights = np.ones(len(rows))
    if spec.weights is not None and spec.weights in table:
        weights = used.numeric(spec.weights)
    problem = spec.problem(used, grouping, y, weights, results._estimates.beta, results._problem.free)
    return NewRows(table, rows, grouping, problem)


def known_effects(results: NLMEResults, new: NewRows) -> tuple[np.ndarray, np.ndarray]:
    """Look up the random effects of known groups; unseen ones get zero and a warning.

    Returns ``b (m, q)`` in the layout of the new problem and, per row, whether all its groups are known.
    """
    problem = new.problem
    b = np.zeros((problem.num_groups, problem.num_random))
    known = np.ones(len(new.rows), bool)
    at = 0
    for depth, ((level, table), block) in enumerate(
        zip(results._random_tables(), problem.covariance.blocks, strict=True)
    ):
        fitted = {label: k for k, label in enumerate(results._grouping.labels[depth])}
        labels, codes = new.grouping.labels[depth], new.grouping.codes[depth]
        unseen = []
        for k, label in enumerate(labels):
            row = int(np.argmax(codes == k))
            if label not in fitted:
                unseen.append(label)
                known[codes == k] = False
                continue
            start = at + block.size * int(new.grouping.copies[depth][row])
            b[new.grouping.codes[0][row], start : start + block.size] = table[fitted[label]]
        if unseen:
            warn_unseen(level.group, unseen, stack=6)
        at += block.size * block.repeats
    return b, known


def predict(
    results: NLMEResults, newdata: Any, type: str, re: str, interval: str | None, level: float
) -> Any:
    """See :meth:`NLMEResults.predict`."""
    if re in ("conditional", "individual"):
        individual_level = True
    elif re == "population":
        individual_level = False
    else:
        raise ModelSpecError(f"predict(re={re!r}): use 'individual' or 'population'.")
    if type not in ("response", "link"):
        raise ModelSpecError(f"predict(type={type!r}): use 'response' or 'link' for NLME fits.")
    if interval not in (None, "confidence", "prediction"):
        raise ModelSpecError(f"predict(interval={interval!r}): use None, 'confidence' or 'prediction'.")
    if newdata is None:
        point = results._point if individual_level else results._population
        layout, problem, known = results._grouping.layout, results._problem, None
        length, rows = len(point.f), np.arange(len(point.f))
    else:
        new = new_rows(results, newdata, groups=individual_level, response=False)
        problem, layout = new.problem, new.grouping.layout
        b, known = np.zeros((problem.num_groups, problem.num_random)), None
        if individual_level:
            b, known = known_effects(results, new)
        e = results._estimates
        length, rows = new.table.n, new.rows
        if interval is None:
            f = predictions(problem, layout, e.beta, b)
            f = np.log(f) if type == "link" and results._spec.error_model.log_scale else f
            return _spread(f, rows, length)
        point = evaluate(problem, layout, e.beta, b, e.error)
    back = results._response_scale if type == "response" else (lambda f: f)
    if interval is None:
        return _spread(back(point.f), rows, length)
    variance = _variance(results, problem, layout, point, individual_level, known)
    if interval == "prediction":
        variance = variance + point.sd**2
    half = _quantile(0.5 + level / 2, None) * np.sqrt(variance)
    low, high = back(point.f - half), back(point.f + half)
    columns = {"fit": back(point.f), "low": low, "high": high}
    return results._table.native({k: _spread(v, rows, length) for k, v in columns.items()})


def _spread(values: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    out = np.full(length, np.nan)
    out[rows] = values
    return out


def _variance(
    results: NLMEResults, problem: NLMEProblem, layout: Any, point: Point, individual: bool, known: Any
) -> np.ndarray:
    """Delta-method variance of the prediction: fixed effects, and random effects given the data.

    Groups of the fit: Var(b | y) at the estimates. Population values and unseen groups: psi.
    """
    covariance = np.nan_to_num(results._covariance[0])
    variance = np.einsum("nf,fg,ng->n", point.X, covariance, point.X)
    factor = host_factor(problem, results._estimates.theta)
    marginal = np.sum((point.Z @ factor) ** 2, 1)
    if not individual:
        return variance
    fitted = host_factor(results._problem, results._estimates.theta)
    posterior = conditional_covariance(results._point, results._grouping.layout, fitted)
    labels = {label: k for k, label in enumerate(results._grouping.layout.labels)}
    where = np.array([labels.get(label, -1) for label in layout.labels])[layout.codes]
    same = posterior.shape[1] == point.Z.shape[1]
    seen = (where >= 0) & (known if known is not None else True) & same
    conditional = np.einsum("nq,nqr,nr->n", point.Z, posterior[where], point.Z) if same else marginal
    return variance + np.where(seen, conditional, marginal)


def individual(results: NLMEResults, newdata: Any) -> Individuals:
    """See :meth:`NLMEResults.individual`."""
    spec = results._spec
    new = new_rows(results, newdata, groups=True, response=True)
    problem, e = new.problem, results._estimates
    u, converged = modes(problem, e)
    factor = host_factor(problem, e.theta)
    b = u @ factor.T
    layout = new.grouping.layout
    point = evaluate(problem, layout, e.beta, b, e.error)
    variance = conditional_covariance(point, layout, factor)
    sd = np.zeros(b.shape)
    sd[: layout.num_groups] = np.sqrt(np.diagonal(variance, axis1=1, axis2=2))
    columns: dict[str, list] = {"group": [], "level": [], "term": [], "estimate": [], "std_error": []}
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
    return Individuals(
        new.table.native(columns), phi, f, converged[: layout.num_groups]
    )


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
        new = new_rows(results, newdata, groups=True, response=False)
        problem, layout, rows, length = new.problem, new.grouping.layout, new.rows, new.table.n
    key = jax.random.key(key) if isinstance(key, int | np.integer) else key
    key, sub = jax.random.split(key)
    e = results._estimates
    betas = np.broadcast_to(e.beta, (n, len(e.beta)))
    if uncertainty == "asymptotic":
        root = np.linalg.cholesky(results._covariance[0] + 1e-300 * np.eye(len(e.beta)))
        betas = betas + np.asarray(jax.random.normal(sub, betas.shape)) @ root.T
    factor = host_factor(problem, e.theta)
    padded = np.asarray(_compiled_draws(problem, np.array(betas), factor, e.error, key))
    out = np.full((n, length), np.nan)
    out[:, rows] = padded[:, layout.codes, layout.position]
    return out
