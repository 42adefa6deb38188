"""Tables and text of an NLME fit. Functions take the results object; nothing here computes a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme._results import RESULTS, result_name
from jaxnlme.covariance import CovarianceBlock
from jaxnlme.design.nonlinear import Grouping
from jaxnlme.nlme.drive import curvature
from jaxnlme.nlme.fit import NLMEFit
from jaxnlme.nlme.method import AbstractMarginalMethod
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.results.nlme_spec import NLMESpec
from jaxnlme.results.statistics import as_given, check_level, p_text, p_values, quantile

if TYPE_CHECKING:
    from jaxnlme.results.nlme import NLMEResults


def to_numpy(tree: Any) -> Any:
    """Replace arrays by numpy; result codes pass unchanged."""
    if isinstance(tree, RESULTS) or type(tree).__name__ == "EnumerationItem":
        return tree
    return jax.tree.map(np.asarray, tree)


def containment_df(results: NLMEResults) -> np.ndarray:
    """R's denominator degrees of freedom: rows - innermost groups - (fixed effects - 1)."""
    p = len(results._spec.fixed.labels)
    return np.full(p, float(results.nobs - len(results._grouping.labels[-1]) - (p - 1)))


def _df(results: NLMEResults, df_method: str) -> np.ndarray | None:
    if df_method == "normal":
        return None
    if df_method == "containment":
        return containment_df(results)
    raise ModelSpecError(f"df_method={df_method!r}: use 'normal' or 'containment'.")


def invert(hessian: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Inverse on the free coordinates, zero elsewhere; a generalised inverse where it is singular."""
    out = np.zeros_like(hessian)
    index = np.flatnonzero(free)
    block = hessian[np.ix_(index, index)]
    scale = np.sqrt(np.maximum(np.abs(np.diag(block)), 1e-300))
    scaled = block / scale[:, None] / scale
    try:
        inverse = np.linalg.inv(scaled)
    except np.linalg.LinAlgError:
        inverse = np.linalg.pinv(scaled)
    out[np.ix_(index, index)] = inverse / scale[:, None] / scale
    return out


def flat_direction(
    problem: NLMEProblem,
    method: AbstractMarginalMethod,
    fit: NLMEFit,
    hessian: np.ndarray,
    names: tuple[str, ...],
) -> str | None:
    """Name the direction along which the likelihood is flat, or None.

    Near singular, the differences behind ``hessian`` leave doubt, and the curvature is measured again.
    """
    index = np.flatnonzero(np.asarray(problem.free.flat()))
    block = hessian[np.ix_(index, index)]
    if not np.all(np.isfinite(block)):
        return "(the information matrix is not finite)"
    scale = np.sqrt(np.maximum(np.abs(np.diag(block)), 1e-300))
    values, vectors = np.linalg.eigh(block / scale[:, None] / scale)
    direction, least = vectors[:, 0] / scale, values[0]
    if abs(least) < 1e-4:
        least = curvature(problem, method, fit, block, direction)
    if least > 1e-7:
        return None
    return describe_direction(direction, [names[k] for k in index])


def describe_direction(direction: np.ndarray, names: Sequence[str]) -> str:
    """Write a direction as ``"+1*a -0.5*b"``, its small parts left out."""
    direction = direction / np.max(np.abs(direction))
    return " ".join(
        f"{d:+.2g}*{name}" for d, name in zip(direction, names, strict=True) if abs(d) > 0.05
    )


def flat_covariance(covariance: np.ndarray, free: np.ndarray, names: Sequence[str]) -> str | None:
    """Name the direction whose variance is beyond the digits of the inverse (LME), or None."""
    index = np.flatnonzero(free)
    block = covariance[np.ix_(index, index)]
    if not index.size:
        return None
    if not np.all(np.isfinite(block)) or np.any(np.diag(block) <= 0):
        return "(their covariance is not finite)"
    scale = np.sqrt(np.diag(block))
    values, vectors = np.linalg.eigh(block / scale[:, None] / scale)
    if values[0] > 1e-10:
        return None
    # The widest direction of a correlation matrix of rank one, in the parameters' own units.
    return describe_direction(vectors[:, -1] * scale, [names[int(k)] for k in index])


def singular_components(
    spec: NLMESpec, problem: NLMEProblem, fit: NLMEFit, y: np.ndarray
) -> tuple[str, ...]:
    """Names of standard deviations that are zero and correlations at +-1."""
    names, at, out = spec.theta_names, 0, []
    scale = np.asarray(fit.stats["theta_scale"]) * 0.375
    errors = spec.natural_error(fit.params.error)
    typical = errors[0] if len(errors) == 1 and spec.error_model.additive[0] else 0.1 * np.std(y)
    if spec.error_model.log_scale:
        typical = errors[0]
    for block, psi, free in zip(
        problem.covariance.blocks,
        problem.covariance.psi(fit.params.theta),
        problem.covariance.split(np.asarray(problem.free.theta)),
        strict=True,
    ):
        sd = np.sqrt(np.diag(psi))
        low = block_factor(block, psi)
        small = np.zeros(block.size, bool)
        for k, (i, j) in enumerate(block.entries):
            if i == j and free[k] and sd[i] < 1e-3 * typical * scale[at + k]:
                small[i] = True
                out.append(names[at + k])
        for i in range(block.size):
            linked = any(block.pattern[i][j] for j in range(i))
            if linked and not small[i] and abs(low[i, i]) < 1e-4 * sd[i]:
                partner = max((j for j in range(i)), key=lambda j: abs(low[i, j]))
                if not small[partner]:
                    label = f"cor({names[at][3:].split(')')[0]})"
                    labels = [n for n in names[at : at + len(block.entries)] if n.startswith("sd(")]
                    short = [n.partition(").")[2] for n in labels]
                    out.append(f"{label}.{short[i]}.{short[partner]}")
        at += len(block.entries)
    return tuple(out)


def block_factor(block: CovarianceBlock, psi: np.ndarray) -> np.ndarray:
    """Lower factor of one level's covariance (free entries; host)."""
    low = np.zeros_like(psi)
    for (i, j), value in zip(block.entries, block.theta(psi), strict=True):
        low[i, j] = value
    return low


def only_zero_variances(spec: NLMESpec, problem: NLMEProblem, fit: NLMEFit) -> bool:
    """True when a flat Hessian is explained by a zero variance (its correlations are undefined)."""
    y = np.asarray(problem.y)[np.asarray(problem.weights) > 0]
    return bool(singular_components(spec, problem, fit, y))


def r_reml(
    problem: NLMEProblem, fit: NLMEFit, llf: float, beta_covariance: np.ndarray
) -> tuple[NLMEParams, float, np.ndarray]:
    """R nlme's "REML" from the ML fit: variances times N/(N-p), and its own log-likelihood.

    ``llf + N/2 (1 + log 2 pi s^2) - (N-p)/2 (1 + log(2 pi s^2 N/(N-p))) - 1/2 logdet(s^2 V^-1)`` with V the ML
    covariance of the fixed effects; not the restricted likelihood, not even for a linear model.
    """
    n = float(np.sum(np.asarray(problem.weights) > 0))
    p = float(np.sum(problem.free.beta))
    ratio = n / (n - p)
    s2 = float(fit.state.sigma) ** 2
    free = np.flatnonzero(problem.free.beta)
    v = beta_covariance[np.ix_(free, free)]
    llf = (
        llf
        + 0.5 * n * (1 + math.log(2 * math.pi * s2))
        - 0.5 * (n - p) * (1 + math.log(2 * math.pi * s2 * ratio))
        - 0.5 * float(np.linalg.slogdet(s2 * np.linalg.inv(v))[1])
    )
    scale = math.sqrt(ratio)
    units = np.array(problem.error_model.units)
    error = fit.params.error + np.where(units, math.log(scale), 0.0)
    return (
        NLMEParams(fit.params.beta, scale * fit.params.theta, error),
        llf,
        beta_covariance * ratio,
    )


def split_levels(
    spec: NLMESpec, grouping: Grouping, problem: NLMEProblem, b: np.ndarray
) -> list[tuple[Any, np.ndarray]]:
    """Cut ``b (m, q, ...)`` into one table per level, rows in the order of the level's labels."""
    out, at = [], 0
    for depth, (level, block) in enumerate(
        zip(spec.levels, problem.covariance.blocks, strict=True)
    ):
        r, count = block.size, block.repeats
        part = b[:, at : at + r * count]
        part = part.reshape((b.shape[0], count, r, *b.shape[2:]))
        codes = grouping.codes[depth]
        first = np.array([np.argmax(codes == k) for k in range(len(grouping.labels[depth]))])
        out.append((level, part[grouping.codes[0][first], grouping.copies[depth][first]]))
        at += r * count
    return out


def ranef(results: NLMEResults, variance: np.ndarray | None) -> Any:
    """Build the frame of random effects."""
    problem = results._problem
    columns: dict[str, list] = {"group": [], "level": [], "term": [], "estimate": []}
    spread: list[float] = []
    per_level = results._random_tables()
    sds = None
    if variance is not None:
        padded = np.zeros((problem.num_groups, variance.shape[1]))
        padded[: len(variance)] = np.sqrt(np.diagonal(variance, axis1=1, axis2=2))
        sds = split_levels(results._spec, results._grouping, problem, padded)
    for depth, (level, table) in enumerate(per_level):
        terms = level.design.labels
        labels = results._grouping.labels[depth]
        columns["group"] += [level.group] * table.size
        columns["level"] += [label for label in labels for _ in terms]
        columns["term"] += list(terms) * len(labels)
        columns["estimate"] += table.ravel().tolist()
        if sds is not None:
            spread += sds[depth][1].ravel().tolist()
    if sds is not None:
        columns["std_error"] = spread
    return results._table.native(columns)


def coef(results: NLMEResults, group: str | None) -> Any:
    """Build the frame of fixed plus random effects of one level, all outer levels added."""
    groups = results._spec.groups
    name = groups[-1] if group is None else group
    if name not in groups:
        raise ModelSpecError(f"coef({group!r}): the grouping columns are {list(groups)}.")
    depth = groups.index(name)
    labels = results._grouping.labels[depth]
    fixed = results.params.to_dict()
    total = {term: np.full(len(labels), value) for term, value in fixed.items()}
    first = np.array([np.argmax(results._grouping.codes[depth] == k) for k in range(len(labels))])
    for d, (level, table) in enumerate(results._random_tables()[: depth + 1]):
        rows = table[results._grouping.codes[d][first]]
        for k, term in enumerate(level.design.labels):
            total[term] = total.get(term, np.zeros(len(labels))) + rows[:, k]
    return results._table.native({name: list(labels), **total})


def _to_natural(spec: NLMESpec, name: str, values: Any) -> np.ndarray:
    transform = spec.transforms[spec.parameters.index(name)]
    return np.asarray(transform.forward(np.asarray(values, float)))


def individual_parameters(results: NLMEResults) -> Any:
    """Build the frame of natural-scale parameters per innermost group."""
    spec, grouping = results._spec, results._grouping
    codes, labels = grouping.codes[-1], grouping.labels[-1]
    first = np.array([np.argmax(codes == k) for k in range(len(labels))])
    phi = np.asarray(results._point.phi)
    layout = grouping.layout
    rows = np.zeros(len(first), int) if phi.shape[1] == 1 else layout.position[first]
    m = np.zeros(len(first), int) if phi.shape[0] == 1 else layout.codes[first]
    table = phi[m, rows]
    columns: dict[str, Any] = {
        "group": [label for label in labels for _ in spec.parameters],
        "parameter": list(spec.parameters) * len(labels),
    }
    natural = [_to_natural(spec, name, table[:, k]) for k, name in enumerate(spec.parameters)]
    columns["value"] = np.stack(natural, 1).ravel().tolist()
    return results._table.native(columns)


def natural_params(results: NLMEResults) -> tuple[np.ndarray, list[str]]:
    """Back-transform fixed effects with formula ``~ 1``."""
    spec = results._spec
    names = [n for n in spec.fixed.labels if n in spec.parameters]
    values = [_to_natural(spec, n, results.params[n]) for n in names]
    return np.array(values, float), names


def varcorr(results: NLMEResults) -> Any:
    """Build the frame of variances and correlations, residual parameters last."""
    spec = results._spec
    rows: list[tuple] = []
    for level, psi, pattern in zip(spec.levels, results._psi_list(), spec.patterns, strict=True):
        labels, sd = level.design.labels, np.sqrt(np.diag(psi))
        for i, label in enumerate(labels):
            rows.append((level.group, label, "", psi[i, i], sd[i], math.nan))
        for i, j in CovarianceBlock(pattern).entries:
            if i != j:
                scale = sd[i] * sd[j]
                r = psi[i, j] / scale if scale > 0 else math.nan
                rows.append((level.group, labels[j], labels[i], psi[i, j], math.nan, r))
    for name, value in results.error_params.items():
        label = "" if name == "sigma" else name
        rows.append(("Residual", label, "", value**2, value, math.nan))
    names = ("group", "term", "term2", "variance", "sd", "corr")
    columns = {n: list(c) for n, c in zip(names, zip(*rows, strict=True), strict=True)}
    return results._table.native(columns)


def _fixed_inflation(results: NLMEResults, df_method: str) -> float:
    """R's summary multiplies standard errors of an ML fit by sqrt(N / (N - p))."""
    if df_method != "containment" or results.method != "LME":
        return 1.0
    p = len(results._spec.fixed.labels)
    return math.sqrt(results.nobs / (results.nobs - p))


def intervals(results: NLMEResults, alpha: float, df_method: str) -> tuple[np.ndarray, np.ndarray]:
    """Limits of the fixed effects, then of the variance parameters."""
    check_level(alpha, "alpha")
    q = quantile(1 - alpha / 2, _df(results, df_method))
    beta, se = np.asarray(results.params), np.asarray(results.bse)
    _, _, (moved, spread), back = results._variance_table
    z = quantile(1 - alpha / 2)
    low = np.concatenate([beta - q * se, back(moved - z * spread)])
    high = np.concatenate([beta + q * se, back(moved + z * spread)])
    return low, high


def conf_int(results: NLMEResults, alpha: float, df_method: str) -> Any:
    """Build the frame of intervals."""
    low, high = intervals(results, alpha, df_method)
    names = list(results._spec.all_names)
    return results._table.native({"term": names, "conf_low": low, "conf_high": high})


def tidy(results: NLMEResults, with_intervals: bool, alpha: float, df_method: str) -> Any:
    """Build the frame of all parameters."""
    spec = results._spec
    beta, se = np.asarray(results.params), np.asarray(results.bse)
    se = se * _fixed_inflation(results, df_method)
    t = beta / se
    values, spread, _, _ = results._variance_table
    names = list(spec.all_names)
    f = len(beta)
    nan = np.full(len(values), math.nan)
    effects = (
        ["fixed"] * f + ["ran_pars"] * len(spec.theta_names) + ["error"] * len(spec.error_names)
    )
    groups = [""] * f + [n[n.index("(") + 1 : n.index(")")] for n in spec.theta_names]
    groups += ["Residual"] * len(spec.error_names)
    columns: dict[str, Any] = {
        "effect": effects,
        "group": groups,
        "term": names,
        "estimate": np.concatenate([beta, values]),
        "std_error": np.concatenate([se, spread]),
        "statistic": np.concatenate([t, nan]),
        "p_value": np.concatenate([p_values(t, _df(results, df_method)), nan]),
    }
    if with_intervals:
        columns["conf_low"], columns["conf_high"] = intervals(results, alpha, df_method)
    return results._table.native(columns)


STATISTICS = (
    "nobs",
    "df_model",
    "llf",
    "aic",
    "bic",
    "bic_groups",
    "sigma",
    "ofv",
    "converged",
    "n_iter",
)


def glance(results: NLMEResults) -> Any:
    """Build the one-row frame of fit statistics."""
    row = {"method": [results.method], "ngroups": [results._grouping.layout.num_groups]}
    row |= {name: [getattr(results, name)] for name in STATISTICS}
    row["message"] = [results.message]
    return results._table.native(row)


def augment(results: NLMEResults) -> Any:
    """Build the frame of the model's columns, fitted values and residuals, in input length."""
    table, spec = results._table, results._spec
    columns: dict[str, Any] = {}
    for name in dict.fromkeys([*spec.groups, *spec.response_columns, *spec.columns]):
        columns[name] = as_given(table, name)
    computed = {
        "fitted": results.fittedvalues,
        "population": results._response_scale(results._population.f),
    }
    computed |= {
        kind: results.residuals(kind) for kind in ("ires", "pres", "iwres", "pwres", "cwres")
    }
    for name, values in computed.items():
        full = np.full(table.n, np.nan)
        full[results.row_index] = values
        columns[name] = full
    return table.native(columns)


def as_dict(results: NLMEResults) -> dict[str, Any]:
    """Return estimates and statistics as plain Python."""
    clean = {name: getattr(results, name) for name in STATISTICS}
    return {
        "model": results.formula,
        "method": results.method,
        "result": result_name(results.result),
        "message": results.message,
        "ngroups": results.ngroups,
        "params": results.params.to_dict(),
        "std_error": {k: (None if math.isnan(v) else v) for k, v in results.bse.items()},
        "psi": {
            level.group: {"terms": list(level.design.labels), "covariance": psi.tolist()}
            for level, psi in zip(results._spec.levels, results._psi_list(), strict=True)
        },
        "error": results.error_params.to_dict(),
        **{k: (v if not isinstance(v, np.generic) else v.item()) for k, v in clean.items()},
    }


def replaced(results: NLMEResults, values: Mapping[str, Any]) -> NLMEParams:
    """Return parameters with some of them replaced, by their labels."""
    spec, problem = results._spec, results._problem
    beta = np.array(results._estimates.beta)
    error = results._spec.natural_error(results._estimates.error)
    psis = [np.array(p) for p in results._psi_list()]
    for name, value in values.items():
        if not np.isfinite(value):
            raise ModelSpecError(f"with_params: {name!r}={value!r} must be a finite number.")
        if name in spec.fixed.labels:
            beta[spec.fixed.labels.index(name)] = value
        elif name in spec.error_names:
            error[spec.error_names.index(name)] = value
        elif name in spec.theta_names:
            _replace_variance(spec, psis, name, value)
        else:
            raise ModelSpecError(
                f"with_params: {name!r} is no parameter; they are {list(spec.all_names)}."
                + nearest(str(name), spec.all_names)
            )
    for psi in psis:
        if np.min(np.linalg.eigvalsh(psi), initial=0.0) < -1e-10 * np.max(np.abs(psi), initial=0.0):
            raise ModelSpecError("with_params: the correlations given make no covariance matrix.")
    return NLMEParams(beta, problem.covariance.theta(psis), spec.unconstrained_error(error))


def _replace_variance(spec: NLMESpec, psis: list[np.ndarray], name: str, value: float) -> None:
    k, at = spec.theta_names.index(name), 0
    for psi, pattern in zip(psis, spec.patterns, strict=True):
        entries = CovarianceBlock(pattern).entries
        if k >= at + len(entries):
            at += len(entries)
            continue
        i, j = entries[k - at]
        sd = np.sqrt(np.diag(psi))
        if (i == j and value < 0) or (i != j and abs(value) > 1):
            raise ModelSpecError(
                f"with_params: {name!r}={value!r}; "
                + ("a standard deviation is >= 0." if i == j else "a correlation lies in [-1, 1].")
            )
        if i == j:
            factor = value / sd[i] if sd[i] > 0 else 0.0
            psi[i] *= factor
            psi[:, i] *= factor
            psi[i, i] = value**2
        else:
            psi[i, j] = psi[j, i] = value * sd[i] * sd[j]
        return


def summary(results: NLMEResults, scale: str, df_method: str) -> str:
    """Write the fit as text."""
    if scale not in ("transformed", "natural"):
        raise ModelSpecError(f"summary(scale={scale!r}): use 'transformed' or 'natural'.")
    spec = results._spec
    groups = ", ".join(f"{n} {g}" for g, n in results.ngroups.items())
    lines = [
        f"Nonlinear mixed-effects model, method {results.method}",
        f"  {results.formula}",
        f"  {results.nobs} rows, groups: {groups}; error model: {spec.error_model.name}",
        "",
        f"  log-likelihood {results.llf:.4f}   df {results.df_model}   AIC {results.aic:.3f}   "
        f"BIC {results.bic:.3f}   BIC(groups) {results.bic_groups:.3f}",
        "",
        "Fixed effects" + (f" ({df_method} df)" if df_method != "normal" else ""),
        *_fixed_lines(results, df_method),
    ]
    if scale == "natural":
        lines += ["", "Natural scale", *_natural_lines(results)]
    lines += ["", "Random effects", *_random_lines(results), "", *_error_lines(results)]
    held = [n for n, f in zip(spec.all_names, results._problem.free.flat(), strict=True) if not f]
    if held:
        lines += ["", f"Held by fix=: {', '.join(held)}"]
    lines += ["", results.message + (f" ({results.n_iter} steps, {results.seconds:.3g} s)")]
    return "\n".join(lines)


def _fixed_lines(results: NLMEResults, df_method: str) -> list[str]:
    labels = results._spec.fixed.labels
    beta, se = np.asarray(results.params), np.asarray(results.bse)
    se = se * _fixed_inflation(results, df_method)
    t, df = beta / se, _df(results, df_method)
    p = p_values(t, df)
    width = max(12, *(len(n) for n in labels))
    mark = "t" if df is not None else "z"
    out = [f"  {'':<{width}} {'estimate':>12} {'std_error':>11} {mark:>9} {'p_value':>9}"]
    for k, name in enumerate(labels):
        text = p_text(p[k])
        out.append(f"  {name:<{width}} {beta[k]:12.6g} {se[k]:11.5g} {t[k]:9.3f} {text:>9}")
    return out


def _natural_lines(results: NLMEResults) -> list[str]:
    spec = results._spec
    beta, se = results.params, results.bse
    low, high = intervals(results, 0.05, "normal")
    sds = dict(zip(spec.theta_names, results._variance_table[0], strict=False))
    out = [f"  {'':<12} {'estimate':>12} {'%RSE':>8} {'95 % interval':>25} {'BSV':>12}"]
    for k, name in enumerate(spec.fixed.labels):
        if name not in spec.parameters:
            continue
        transform = spec.transforms[spec.parameters.index(name)]
        value = float(_to_natural(spec, name, beta[name]))
        a, b = (float(_to_natural(spec, name, v)) for v in (low[k], high[k]))
        h = 1e-6 * max(1.0, abs(beta[name]))
        up, down = (float(_to_natural(spec, name, beta[name] + s * h)) for s in (1, -1))
        slope = (up - down) / (2 * h)
        rse = 100 * abs(slope * se[name] / value) if value else math.nan
        sd = sds.get(f"sd({spec.groups[0]}).{name}", math.nan)
        log = transform.name == "log"
        bsv = f"{100 * math.sqrt(math.expm1(sd**2)):.1f} CV%" if log else f"sd {sd:.4g}"
        interval = f"[{a:.5g}, {b:.5g}]"
        out.append(
            f"  {name:<12} {value:12.6g} {rse:8.1f} {interval:>25} {bsv if sd == sd else '':>12}"
        )
    return out


def _random_lines(results: NLMEResults) -> list[str]:
    out = []
    for level, psi, pattern in zip(
        results._spec.levels, results._psi_list(), results._spec.patterns, strict=True
    ):
        labels, sd = level.design.labels, np.sqrt(np.diag(psi))
        width = max(12, *(len(n) for n in labels))
        full = any(pattern[i][j] for i in range(len(labels)) for j in range(i))
        out.append(f"  {level.group:<{width}} {'sd':>12} " + ("  corr" if full else ""))
        for i, label in enumerate(labels):
            cells = []
            for j in range(i):
                scale = sd[i] * sd[j]
                r = psi[i, j] / scale if scale > 0 else math.nan
                cells.append(f"{r:7.3f}" if pattern[i][j] else "      .")
            out.append(f"  {label:<{width}} {sd[i]:12.6g} " + " ".join(cells))
    return [line.rstrip() for line in out]


def _error_lines(results: NLMEResults) -> list[str]:
    parts = [f"{name} {value:.6g}" for name, value in results.error_params.items()]
    return [f"Residual error: {', '.join(parts)}"]
