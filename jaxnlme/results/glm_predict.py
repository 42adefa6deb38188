"""Predictions, residuals, simulated responses and measures of fit of a GLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnlme._errors import DataError, FormulaError, ModelSpecError
from jaxnlme.design.expressions import parse_formula
from jaxnlme.design.formula import evaluate_numbers
from jaxnlme.design.frames import Table
from jaxnlme.diagnostics.metrics import classification, regression
from jaxnlme.families import AbstractFamily
from jaxnlme.glm.drive import host_design
from jaxnlme.numerics.roots import increasing_root
from jaxnlme.results.glm_compute import Evaluator, Respond, respond
from jaxnlme.results.glm_spec import column_reader, read_covariate
from jaxnlme.results.statistics import check_level, generator, quantile

if TYPE_CHECKING:
    from jaxnlme.results.glm import GLMResults
    from jaxnlme.results.glm_estimates import GLMEstimates

_MANY = 200_000  # rows handed to one program at a time
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()


@dataclass(frozen=True)
class NewRows:
    """Complete rows to predict: their designs, offsets, and where they stand in the input."""

    designs: list[np.ndarray]
    offsets: list[np.ndarray]
    rows: np.ndarray
    length: int
    weights: np.ndarray
    table: Table


_NONE_GIVEN = {"exposure": None, "offset": None, "weights": None}


def rows_of(results: GLMResults, newdata: Any, given: Mapping[str, Any] = _NONE_GIVEN) -> NewRows:
    """Designs and offsets of the fit's rows, or of new data (rows with missing values left out)."""
    problem, spec = results._problem, results._spec
    if newdata is None:
        if any(v is not None for v in given.values()):
            name = next(k for k, v in given.items() if v is not None)
            raise ModelSpecError(f"predict({name}=) goes with newdata=.")
        n = problem.designs[0].n
        matrices = {id(d): d.matrix() for d in problem.designs}
        designs = [matrices[id(d)] for d in problem.designs]
        weights = problem.family.law_weights(problem.y, problem.weights)
        return NewRows(designs, list(problem.offsets), np.arange(n), n, weights, results._used)
    table = spec.read(newdata)
    designs = spec.designs(table)
    offsets = spec.offsets(table, exposure=given["exposure"], offset=given["offset"])
    _, weights = read_covariate(given["weights"], "weights", table)
    if weights is None:
        name = spec.weights.name
        weights = (
            table.numeric(name, "weights")
            if name is not None and name in table
            else np.ones(table.n)
        )
    missing = np.zeros(table.n, bool)
    for values in (*designs, *(o[:, None] for o in offsets)):
        missing |= np.isnan(values).any(axis=1)
    rows = np.flatnonzero(~missing)
    return NewRows(
        [d[rows] for d in designs],
        [o[rows] for o in offsets],
        rows,
        table.n,
        weights[rows],
        table.take(rows),
    )


def _split(results: GLMResults, params: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum([d.width for d in results._problem.designs])[:-1]
    return np.split(params, ends)


def linear(results: GLMResults, new: NewRows, params: np.ndarray) -> tuple[np.ndarray, ...]:
    """Linear predictors (n,) of every parameter."""
    return tuple(
        X @ b + o for X, b, o in zip(new.designs, _split(results, params), new.offsets, strict=True)
    )


def _respond(results: GLMResults, etas: tuple[np.ndarray, ...]) -> Respond:
    return respond(results._problem.family, results._problem.links, etas)


def predict(
    results: GLMResults,
    newdata: Any,
    type: str,
    interval: str | None,
    level: float,
    given: Mapping[str, Any],
) -> Any:
    """See :meth:`GLMResults.predict`."""
    check_level(level, "level")
    if type not in ("response", "link", "terms"):
        raise ModelSpecError(f"predict(type={type!r}): use 'response', 'link' or 'terms'.")
    if interval not in (None, "confidence", "prediction"):
        raise ModelSpecError(
            f"predict(interval={interval!r}): use None, 'confidence' or 'prediction'."
        )
    if interval is not None and (type == "terms" or results._problem.family.classes is not None):
        raise ModelSpecError(
            f"predict(interval={interval!r}) is not built for type='terms' and for class probabilities; use "
            "interval=None."
        )
    asked = any(v is not None for v in given.values())
    if newdata is None and interval is None and type != "terms" and not asked:
        return results.fittedvalues if type == "response" else results._rows.etas[0]
    new = rows_of(results, newdata, given)
    if type == "terms":
        return _terms(results, new)
    etas = linear(results, new, results._host.filled)
    if interval is None:
        values = etas[0] if type == "link" else _respond(results, etas).mean
        return _spread(new, values)
    if interval == "prediction":
        if type == "link":
            raise ModelSpecError("predict(interval='prediction') is for type='response'.")
        fit, low, high = _prediction(results, new, etas, level)
        columns = {"fit": fit, "low": low, "high": high}
    else:
        columns = _confidence(results, new, etas, type, level)
    columns = {name: _spread(new, values) for name, values in columns.items()}
    return new.table.native(columns)


def _spread(new: NewRows, values: np.ndarray) -> np.ndarray:
    """Values of complete rows in the length of the input, NaN elsewhere."""
    if len(values) == new.length:
        return values
    out = np.full((new.length, *values.shape[1:]), np.nan)
    out[new.rows] = values
    return out


def _standard_error(
    results: GLMResults, new: NewRows, slopes: tuple[np.ndarray, ...] | None = None
) -> np.ndarray:
    """Of the linear predictor of the mean, or of a function of all predictors with these derivatives, (n,)."""
    V = np.nan_to_num(results._covariance())
    if slopes is None:
        G = new.designs[0]
        V = V[: G.shape[1], : G.shape[1]]
    else:
        G = np.concatenate([s[:, None] * X for s, X in zip(slopes, new.designs, strict=True)], 1)
    return np.sqrt(np.maximum(np.einsum("np,np->n", G @ V, G), 0.0))


def _confidence(results, new, etas, type, level) -> dict[str, np.ndarray]:
    q = quantile(0.5 + level / 2)
    se = _standard_error(results, new)
    if type == "link":
        return {"fit": etas[0], "low": etas[0] - q * se, "high": etas[0] + q * se, "std_error": se}
    here = _respond(results, etas)
    if any(np.any(s != 0) for s in here.slopes[1:]):  # the mean mixes predictors: symmetric
        spread = _standard_error(results, new, here.slopes)
        low, high = here.mean - q * spread, here.mean + q * spread
    else:
        spread = np.abs(here.slopes[0]) * se
        ends = [_respond(results, (etas[0] + s * q * se, *etas[1:])).mean for s in (-1, 1)]
        low, high = np.minimum(*ends), np.maximum(*ends)
    return {"fit": here.mean, "low": low, "high": high, "std_error": spread}


def _law(results: GLMEstimates, parameters: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    """Arguments of the family's ``cdf`` and ``quantile`` after the first; ``weights=`` comes by name."""
    more = (results.dispersion,) if results._problem.family.has_dispersion else ()
    return (*parameters, *more)


def _prediction(results, new, etas, level):
    """Quantiles of a new response: the family's distribution mixed over the normal error of the predictor.

    With an estimated dispersion the probabilities are those that make the gaussian case Student's t interval.
    """
    family = results._problem.family.for_rows(column_reader(new.table))
    se = _standard_error(results, new)
    tails = np.array([0.5 - level / 2, 0.5 + level / 2])
    if results.df_test is not None:
        from scipy import special

        tails = special.ndtr(quantile(tails, results.df_test))
    fit = _respond(results, etas).mean
    shifted = [_respond(results, (etas[0] + z * se, *etas[1:])).parameters for z in _NODES]
    laws = [_law(results, p) for p in shifted]
    ends = []
    for tail in tails:
        # quantiles rise or fall with the predictor: the outer laws bracket the mixture
        outer = [family.quantile(tail, *laws[k], weights=new.weights) for k in (0, -1)]
        low, high = np.minimum(*outer), np.maximum(*outer)
        ends.append(_solve_quantile(family, laws, tail, low, high, new.weights))
    return fit, *ends


def _solve_quantile(
    family: AbstractFamily,
    laws: list,
    tail: float,
    low: np.ndarray,
    high: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Smallest y with mixed distribution function >= tail, between the quantiles of the parts."""

    def mixed(y):
        parts = [family.cdf(y, *law, weights=weights) for law in laws]
        return np.tensordot(_NODE_WEIGHTS, np.asarray(parts), 1)

    if family.discrete:  # bisection over the lattice low, low + step, ..., high
        step = family.spacing(weights)
        a, b = np.full(len(low), -1.0), np.ceil((high - low) / step - 1e-9)
        for _ in range(int(np.ceil(np.log2(np.max(b, initial=1.0) + 2))) + 1):
            m = np.floor((a + b) / 2)
            good = mixed(low + m * step) >= tail - 1e-12
            a, b = np.where(good, a, m), np.where(good, m, b)
        return low + b * step
    return increasing_root(lambda y: mixed(y) - tail, low, high, tolerance=1e-10)


def _terms(results: GLMResults, new: NewRows) -> Any:
    """Contribution of each term of the mean to the link."""
    names, assign = term_assign(results)
    beta = _split(results, results._host.filled)[0]
    columns = {
        name: _spread(new, new.designs[0][:, assign == t] @ beta[assign == t])
        for t, name in enumerate(names)
    }
    return new.table.native(columns)


def term_assign(results: GLMResults) -> tuple[tuple[str, ...], np.ndarray]:
    """Terms of the mean, and for each of its columns the position of its term (-1: intercept)."""
    spec = results._spec
    return spec.mean.terms.labels, np.asarray(spec.mean.assign)[spec.mean_columns]


# ---- residuals ----------------------------------------------------------------------------------
def residuals(results: GLMEstimates, kind: str, key: Any) -> np.ndarray:
    """See :meth:`GLMResults.residuals`."""
    known = ("response", "pearson", "deviance", "working", "quantile")
    if kind not in known:
        raise ModelSpecError(f"residuals(kind={kind!r}): use {', '.join(map(repr, known))}.")
    problem, rows = results._problem, results._rows
    if problem.family.classes is not None:
        raise ModelSpecError(
            f"residuals: family {problem.family.name!r} has classes, for which residuals are not defined; "
            "compare fittedvalues with the classes."
        )
    if kind == "quantile":
        return _quantile_residuals(results, generator(key))
    raw = results._observed - rows.mean
    if kind == "response":
        return raw
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "working":
            return raw / rows.slope
        if kind == "pearson":
            scaled = raw / np.sqrt(results._variance)  # 0 / 0 where a probability is 0 or 1
            return np.where((problem.weights > 0) & (raw != 0), scaled, 0.0)
    if not has_deviance_residuals(results):
        raise ModelSpecError(
            f"residuals(kind='deviance'): family {problem.family.name!r} has no saturated model to compare with; "
            "use 'quantile' or 'pearson'."
        )
    return np.sign(raw) * np.sqrt(np.maximum(rows.deviance, 0.0))


def has_deviance_residuals(results: GLMEstimates) -> bool:
    """Whether rows have a deviance against a perfect fit (exponential families)."""
    return results._conditional is not None


def _quantile_residuals(results: GLMEstimates, rng: np.random.Generator) -> np.ndarray:
    problem = results._problem
    known = problem.family.between(problem.y)
    low, high = (results._observed,) * 2 if known is None else known  # anywhere between
    weights = problem.family.law_weights(problem.y, problem.weights)
    family = problem.family.for_rows(column_reader(results._used))
    law = _law(results, results._rows.parameters)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.asarray(family.cdf(high, *law, weights=weights), float)
        below = level
        if family.discrete:
            step = family.spacing(weights)
            below = np.asarray(family.cdf(low - step, *law, weights=weights), float)
        elif low is not high:
            below = np.asarray(family.cdf(low, *law, weights=weights), float)
        level = below + rng.random(len(level)) * (level - below)
    inside = np.clip(level, np.finfo(float).tiny, 1 - np.finfo(float).epsneg)
    return np.where(problem.weights > 0, quantile(inside), np.nan)


# ---- draws --------------------------------------------------------------------------------------
def draw(
    results: GLMResults, rng: np.random.Generator, new: NewRows, parameters: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, bool]:
    """One response per row, and whether it is what the data would hold (else: the uncensored one)."""
    family = results._problem.family
    more = (np.full(1, results.dispersion),) if family.has_dispersion else ()
    if not family.has_likelihood:
        raise ModelSpecError(
            f"family {family.name!r} is a quasi family: it has no distribution to draw from."
        )
    column = column_reader(new.table)
    safe = np.where(new.weights > 0, new.weights, 1.0)
    values = np.asarray(family.for_rows(column).sample(rng, safe, *parameters, *more), float)
    recorded = family.recorded(values, column)
    return (values, False) if recorded is None else (recorded, True)


def coefficients(results: GLMResults, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, P) draws from the normal approximation; aliased coefficients are 0."""
    covariance = np.nan_to_num(results._covariance())
    known = ~results._host.aliased
    if not np.all(np.isfinite(results._unit_covariance[np.ix_(known, known)])):
        raise ModelSpecError(
            "the coefficients have no covariance (standard errors are NaN), so they cannot be drawn."
        )
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return results._host.filled + rng.standard_normal((n, len(covariance))) @ root.T


def simulate(results: GLMResults, n: int, key: Any, newdata: Any, uncertainty: str) -> np.ndarray:
    """See :meth:`GLMResults.simulate`."""
    if uncertainty not in ("none", "asymptotic"):
        raise ModelSpecError(f"simulate(uncertainty={uncertainty!r}): use 'none' or 'asymptotic'.")
    if isinstance(n, bool) or int(n) != n or n < 1:
        raise ModelSpecError(f"simulate(n={n!r}): give a whole number >= 1.")
    rng = generator(key)
    new = rows_of(results, newdata)
    betas = results._host.filled[None]
    if uncertainty == "asymptotic":
        betas = coefficients(results, int(n), rng)
    laws = list(_responses(results, new, betas))
    out = []
    for k in range(int(n)):
        y, _ = draw(results, rng, new, laws[min(k, len(laws) - 1)].parameters)
        out.append(_spread(new, y))
    return np.stack(out)


def _responses(results: GLMResults, new: NewRows, betas: np.ndarray) -> Iterator[Respond]:
    """Parameters and means at each of several coefficient vectors, many in one call of the program."""
    n = len(new.rows)
    chunk = max(1, _MANY // max(n, 1))
    for at in range(0, len(betas), chunk):
        etas = [linear(results, new, b) for b in betas[at : at + chunk]]
        stacked = tuple(np.concatenate(e) for e in zip(*etas, strict=True))
        found = _respond(results, stacked)
        for k in range(len(etas)):
            here = slice(k * n, (k + 1) * n)
            yield Respond(tuple(p[here] for p in found.parameters), found.mean[here], ())


def samples(results: GLMResults, n: int, key: Any, what: str) -> np.ndarray:
    """See :meth:`GLMResults.samples`."""
    if what not in ("params", "link", "response"):
        raise ModelSpecError(f"samples(what={what!r}): use 'params', 'link' or 'response'.")
    if isinstance(n, bool) or int(n) != n or n < 1:
        raise ModelSpecError(f"samples(n={n!r}): give a whole number >= 1.")
    draws = coefficients(results, int(n), generator(key))
    if what == "params":
        out = draws[:, results._shown]
        out[:, ~np.isfinite(np.asarray(results.params))] = np.nan
        return out
    new = rows_of(results, None)
    if what == "link":
        return np.stack([linear(results, new, b)[0] for b in draws])
    return np.stack([found.mean for found in _responses(results, new, draws)])


# ---- measures of fit ----------------------------------------------------------------------------
def metrics(results: GLMResults, newdata: Any) -> dict[str, float]:
    """See :meth:`GLMResults.metrics`."""
    problem = results._problem
    if problem.family.classes is not None:
        raise ModelSpecError("metrics is not built for class probabilities yet.")
    if newdata is None:
        y, mean, weights = results._observed, results.fittedvalues, problem.weights
        out = {
            "deviance": results.deviance,
            "pseudo_r2": 1 - results.deviance / results.null_deviance,
        }
    else:
        y, mean, weights, deviance = _new_fit(results, newdata)
        out = {"deviance": deviance}
    out |= regression(y, mean, weights)
    if np.all((y == 0) | (y == 1)) and np.all((mean >= 0) & (mean <= 1)):
        out |= classification(y, mean, weights)
    return out


def _new_fit(results: GLMResults, newdata: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Responses, means and weights of complete new rows, and their deviance at the fit's coefficients."""
    problem = results._problem
    if problem.family.response_width > 1:
        raise ModelSpecError(
            f"metrics(newdata) is not built for family {problem.family.name!r}, whose response has several "
            "columns."
        )
    new = rows_of(results, newdata)
    y = new_response(results, new.table)
    live = ~np.isnan(y)
    rows = dataclasses.replace(
        problem,
        designs=tuple(host_design(X[live]) for X in new.designs),
        offsets=tuple(o[live] for o in new.offsets),
        y=y[live],
        weights=new.weights[live],
    )
    found = Evaluator(rows, results._host.filled).rows()
    return y[live], found.mean, new.weights[live], float(np.sum(found.deviance))


def new_response(results: GLMResults, table: Table) -> np.ndarray:
    """The response (n,) of new data, evaluated from the left side of the formula."""
    spec = results._spec
    if spec.names is not None:
        raise ModelSpecError(
            "metrics(newdata) needs a fit by formula; for arrays compute from predict()."
        )
    try:
        left = parse_formula(spec.formula).lhs
        if left is None:
            raise FormulaError("the formula has no left side")
        return evaluate_numbers(left, table, "response")
    except (FormulaError, DataError) as error:
        raise DataError(
            f"metrics(newdata): the response cannot be read as numbers: {error}"
        ) from None
