"""Tables and text of a GLM fit. Functions take the results object."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme._results import result_name
from jaxnlme.design.variables import variable_values
from jaxnlme.glm.drive import drive
from jaxnlme.inference.profile import profile_limit
from jaxnlme.results.glm_again import bootstrap, exposure_of
from jaxnlme.results.glm_compute import Evaluator
from jaxnlme.results.glm_predict import has_deviance_residuals, term_assign
from jaxnlme.results.statistics import (
    as_given,
    check_level,
    p_text,
    p_values,
    quantile,
    stars,
)

if TYPE_CHECKING:
    from jaxnlme.results.glm import GLMResults

STATISTICS = (
    "nobs", "df_model", "df_resid", "llf", "aic", "bic", "deviance", "null_deviance", "pearson_chi2",
    "dispersion", "scale_deviance", "converged", "n_iter",
)  # fmt: skip


# ---- intervals ----------------------------------------------------------------------------------
def intervals(
    results: GLMResults, alpha: float, method: str, kind: str, groups: Any, n: int, key: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Limits of the coefficients that are shown."""
    check_level(alpha, "alpha")
    if method not in ("wald", "profile", "boot"):
        raise ModelSpecError(f"conf_int(method={method!r}): use 'wald', 'profile' or 'boot'.")
    if method != "wald" and kind != "model":
        raise ModelSpecError(f"conf_int(kind={kind!r}) is for method='wald'.")
    if method == "wald":
        return wald_intervals(results, alpha, kind, groups)
    if method == "profile":
        if groups is not None:
            raise ModelSpecError("conf_int(groups=) is for method='boot' and kind='cluster'.")
        return profile_intervals(results, alpha)
    chosen = "cases" if groups is None else "groups"
    draws = bootstrap(results, n, key, chosen, groups)[:, results._shown]
    good = draws[np.isfinite(draws[:, np.isfinite(np.asarray(results.params))]).all(axis=1)]
    if len(good) < 0.9 * len(draws) or not len(good):
        raise ModelSpecError(
            f"conf_int(method='boot'): {len(draws) - len(good)} of {len(draws)} bootstrap fits failed; use "
            "'profile'."
        )
    low, high = np.quantile(good, [alpha / 2, 1 - alpha / 2], axis=0)
    fixed = ~results._host.estimated[results._shown]
    return np.where(fixed, np.nan, low), np.where(fixed, np.nan, high)


def wald_intervals(
    results: GLMResults, alpha: float, kind: str = "model", groups: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate plus and minus a normal quantile times the standard error."""
    beta = np.asarray(results.params)
    half = quantile(1 - alpha / 2) * results._standard_errors(kind, groups)[results._shown]
    return beta - half, beta + half


def profile_intervals(results: GLMResults, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Profile likelihood limits; other parameters of the family are profiled out too, the dispersion held."""
    problem = results._problem
    results._need_plain("conf_int(method='profile')", "use 'wald' or 'boot'")
    host, shown = results._host, results._shown
    z = quantile(1 - alpha / 2)
    low, high = np.full(len(shown), np.nan), np.full(len(shown), np.nan)
    base = np.full(problem.width, np.nan) if problem.held is None else problem.held
    conditional = results._conditional
    if conditional is not None:  # theta at its estimate, as in R
        problem = dataclasses.replace(
            conditional.problem,
            held=base[: conditional.problem.width],
            lower=None if results._problem.lower is None else results._problem.lower[: conditional.problem.width],
            upper=None if results._problem.upper is None else results._problem.upper[: conditional.problem.width],
        )  # fmt: skip
        base = base[: problem.width]
    best = _objective(problem, host.filled[: problem.width])
    se = results._standard_errors()
    for at, k in enumerate(shown):
        if not host.estimated[k] or not np.isfinite(se[k]):
            continue
        low[at], high[at] = (
            _limit(results, problem, base, best, int(k), sign * z * se[k], z) for sign in (-1, 1)
        )
    return low, high


def _limit(results, problem, base, best, k: int, step: float, z: float) -> float:
    p = problem.width
    estimate = float(results._host.params[k])
    state = {"start": results._host.filled[:p]}
    aliased = results._host.aliased[:p]

    def rise(value: float) -> float:
        held = np.array(base)
        held[k] = value
        start = np.array(state["start"])
        start[k] = value
        inner = dataclasses.replace(problem, held=held)
        fit = drive(inner, start=start, aliased=aliased)
        if fit.result != "successful":
            fit = drive(inner, aliased=aliased)
            if fit.result != "successful":
                return math.nan
        state["start"] = fit.filled
        return (_objective(problem, fit.filled) - best) / results._scale

    return profile_limit(rise, estimate, step, z)


def _objective(problem, params: np.ndarray) -> float:
    """Deviance at these coefficients."""
    if not problem.family.parameters:
        return float(np.sum(Evaluator(problem, params).rows().deviance))
    return -2 * Evaluator(problem, params).llf(None)


# ---- frames -------------------------------------------------------------------------------------
def _columns(results: GLMResults, kind: str, groups: Any) -> dict[str, Any]:
    estimate = np.asarray(results.params)
    spread = results._standard_errors(kind, groups)[results._shown]
    statistic = estimate / spread
    return {
        "term": list(results._spec.labels),
        "estimate": estimate,
        "std_error": spread,
        "statistic": statistic,
        "p_value": p_values(statistic, results.df_test),
    }


def tidy(results: GLMResults, with_intervals: bool, alpha: float, kind: str, groups: Any) -> Any:
    """Build the frame of coefficients."""
    check_level(alpha, "alpha")
    columns = _columns(results, kind, groups)
    if with_intervals:
        half = quantile(1 - alpha / 2) * columns["std_error"]
        columns["conf_low"] = columns["estimate"] - half
        columns["conf_high"] = columns["estimate"] + half
    return results._table.native(columns)


def coef_table(results: GLMResults) -> Any:
    """Build the frame of coefficients with significance codes."""
    columns = _columns(results, "model", None)
    low, high = wald_intervals(results, 0.05)
    codes = [stars(p) for p in columns["p_value"]]
    return results._table.native({**columns, "conf_low": low, "conf_high": high, "signif": codes})


def glance(results: GLMResults) -> Any:
    """Build the one-row frame of fit statistics."""
    family, link = results._problem.family.name, results._problem.links[0].name
    row: dict[str, list] = {"family": [family], "link": [link]}
    row |= {name: [getattr(results, name)] for name in STATISTICS}
    row |= {name: [value] for name, value in results.family_params.items()}
    row["message"] = [results.message]
    return results._table.native(row)


def augment(results: GLMResults) -> Any:
    """Build the frame of the model's columns, fitted values and residuals, in input length."""
    table, spec = results._table, results._spec
    wanted = [*spec.columns, spec.response, spec.weights.name, spec.offset.name, spec.exposure.name]
    columns: dict[str, Any] = {
        name: as_given(table, name) for name in dict.fromkeys(wanted) if name and name in table
    }
    computed: dict[str, np.ndarray] = {}
    if results._problem.family.classes is None:
        computed["fitted"] = results.fittedvalues
        kinds = ("response", "pearson", "deviance")[: 3 if has_deviance_residuals(results) else 2]
        computed |= {f"resid_{kind}": results.residuals(kind) for kind in kinds}
    else:
        for k, label in enumerate(results._problem.family.classes):
            computed[f"fitted_{label}"] = results.fittedvalues[:, k]
    for name, values in computed.items():
        full = np.full(table.n, np.nan)
        full[results.row_index] = values
        columns[name] = full
    return table.native(columns)


def as_dict(results: GLMResults) -> dict[str, Any]:
    """Estimates and statistics as plain values."""
    return {
        "model": results.formula,
        "family": results._problem.family.name,
        "link": results._problem.links[0].name,
        "result": result_name(results.result),
        "message": results.message,
        "params": results.params.to_dict(),
        "std_error": results.bse.to_dict(),
        "p_value": results.pvalues.to_dict(),
        "family_params": results.family_params.to_dict(),
        **{name: getattr(results, name) for name in STATISTICS},
    }


def vif(results: GLMResults) -> Any:
    """Build the frame of generalised variance inflation factors."""
    names, assign = term_assign(results)
    p = len(assign)
    use = np.flatnonzero((assign >= 0) & results._host.estimated[:p])
    V = results._covariance()[np.ix_(use, use)]
    spread = np.sqrt(np.diag(V))
    R, own = V / spread[:, None] / spread, assign[use]
    rows: dict[str, list] = {"term": [], "df": [], "gvif": [], "gvif_root": []}
    for t, name in enumerate(names):
        here = own == t
        if not here.any():
            continue
        value = (
            np.linalg.det(R[np.ix_(here, here)])
            * np.linalg.det(R[np.ix_(~here, ~here)])
            / np.linalg.det(R)
        )
        df = int(here.sum())
        rows["term"].append(name)
        rows["df"].append(df)
        rows["gvif"].append(float(value))
        rows["gvif_root"].append(float(value ** (1 / (2 * df))))
    return results._table.native(rows)


def relativities(results: GLMResults, level: float) -> Any:
    """Build the frame of exponentiated effects."""
    check_level(level, "level")
    spec = results._spec
    if spec.links[0].name != "log":
        raise ModelSpecError(
            f"relativities: effects multiply the mean for the log link only, found {spec.links[0].name!r}; use "
            "params."
        )
    q = quantile(0.5 + level / 2)
    names, assign = term_assign(results)
    beta = results._host.filled[: len(assign)]
    V = np.nan_to_num(results._covariance())[: len(assign), : len(assign)]
    share = exposure_of(results)
    share = share / share.sum()
    out: dict[str, list] = {
        k: [] for k in ("term", "level", "relativity", "conf_low", "conf_high", "exposure_share")
    }

    def add(term: str, label: str, contrast: np.ndarray, part: float, known: bool = True) -> None:
        effect, spread = float(contrast @ beta), float(np.sqrt(contrast @ V @ contrast))
        numbers = (effect, effect - q * spread, effect + q * spread)
        out["term"].append(term)
        out["level"].append(label)
        for column, value in zip(("relativity", "conf_low", "conf_high"), numbers, strict=True):
            out[column].append(math.exp(value) if known else math.nan)
        out["exposure_share"].append(part)

    by_text = {v.text: v for v in spec.mean.variables}
    used = results._table.take(results.row_index)
    aliased = results._host.aliased
    for t, name in enumerate(names):
        columns = np.flatnonzero(assign == t)
        variable = by_text.get(name)
        if variable is not None and variable.kind == "factor":
            node = spec.mean.terms.variables[spec.mean.terms.names.index(name)]
            values = variable_values(variable, node, used, dict(spec.mean.state))
            for code, label, contrast in _levels(variable, columns, len(assign)):
                part = float(np.sum(share[values == code]))
                add(name, label, contrast, part, not aliased[columns[contrast[columns] != 0]].any())
            continue
        for k in columns:
            unit = np.zeros(len(assign))
            unit[k] = 1.0
            add(
                name,
                "" if len(columns) == 1 else spec.mean_labels[k],
                unit,
                math.nan,
                not aliased[k],
            )
    return results._table.native(out)


def _levels(variable: Any, columns: np.ndarray, width: int):
    """Code, label and contrast against the base level for each level of a factor's main effect."""
    full = len(columns) == len(variable.levels)
    coding = np.eye(len(variable.levels)) if full else variable.columns(False)[0]
    zero = np.flatnonzero(~np.any(coding != 0, axis=1))
    base = int(zero[0]) if len(zero) else 0
    for code in [base, *(k for k in range(len(variable.levels)) if k != base)]:
        contrast = np.zeros(width)
        contrast[columns] = coding[code] - coding[base]
        yield code, str(variable.levels[code]), contrast


# ---- text ---------------------------------------------------------------------------------------
def summary(results: GLMResults, kind: str, groups: Any) -> str:
    """Write the fit as text."""
    family, link = results._problem.family, results._problem.links[0]
    width = 78
    left = [
        ("Formula", results.formula),
        ("Family", f"{family.name} ({link.name} link)"),
        ("Method", _method(results)),
    ]
    pairs = [
        (("No. observations", results.nobs), ("Df residuals", results.df_resid)),
        (("Df model", results.df_model), ("Dispersion", results.dispersion)),
        (("Log-likelihood", results.llf), ("AIC", results.aic)),
        (("Deviance", results.deviance), ("BIC", results.bic)),
        (("Null deviance", results.null_deviance), ("Pearson chi2", results.pearson_chi2)),
        (("Pseudo R2 (deviance)", 1 - results.deviance / results.null_deviance),
         ("Converged", f"{'yes' if results.converged else 'no'}, {results.n_iter} steps")),
    ]  # fmt: skip
    lines = ["Generalised linear model".center(width).rstrip(), "=" * width]
    lines += [f"{name + ':':<12} {text}" for name, text in left]
    lines.append("-" * width)
    for (a, x), (b, y) in pairs:
        lines.append(f"{a + ':':<22}{_number(x):>15}   {b + ':':<18}{_number(y):>20}")
    for name, value in results.family_params.items():
        lines.append(
            f"{name + ':':<22}{value:>15.6g}   std. error {results.family_params_bse[name]:.4g}"
        )
    lines += ["=" * width, *_coefficient_lines(results, kind, groups), "=" * width]
    lines.append("Signif. codes: *** 0.001, ** 0.01, * 0.05, . 0.1")
    lines += _notes(results, kind)
    return "\n".join(lines)


def _method(results: GLMResults) -> str:
    problem = results._problem
    if not problem.penalty.trivial:
        return "penalised maximum likelihood"
    if not problem.family.has_likelihood:
        return "quasi-likelihood (Fisher scoring)"
    return "maximum likelihood " + (
        "(Fisher scoring)" if problem.family.fisher_scoring else "(Newton)"
    )


def _number(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _coefficient_lines(results: GLMResults, kind: str, groups: Any) -> list[str]:
    columns = _columns(results, kind, groups)
    half = quantile(0.975) * columns["std_error"]
    mark = "z" if results.df_test is None else "t"
    head = ("estimate", "std_error", mark, "p_value", "[0.025", "0.975]")
    wide = max(12, *(len(t) for t in columns["term"]))
    lines = [
        " " * wide + "".join(f"{h:>{w}}" for h, w in zip(head, (12, 11, 9, 9, 11, 11), strict=True))
    ]
    for k, term in enumerate(columns["term"]):
        b, s, t, p = (columns[c][k] for c in ("estimate", "std_error", "statistic", "p_value"))
        if math.isnan(b):
            lines.append(f"{term:<{wide}}{'aliased':>12}")
        elif math.isnan(s):
            lines.append(f"{term:<{wide}}{b:12.5g}{'':>11}   {_why(results, k)}")
        else:
            row = f"{term:<{wide}}{b:12.5g}{s:11.4g}{t:9.3f}{p_text(p):>9}{b - half[k]:11.4g}{b + half[k]:11.4g}"
            lines.append(f"{row} {stars(p)}".rstrip())
    return lines


def _why(results: GLMResults, at: int) -> str:
    k, problem = results._shown[at], results._problem
    if problem.held is not None and not np.isnan(problem.held[k]):
        return "held"
    return "at its bound" if results._host.at_bound[k] else "no standard error"


def _notes(results: GLMResults, kind: str) -> list[str]:
    notes = []
    if kind != "model":
        notes.append(f"Standard errors: {kind}.")
    aliased = [t for t in results._spec.labels if math.isnan(results.params[t])]
    if aliased:
        notes.append(f"Aliased (linearly dependent on others): {', '.join(aliased)}.")
    dropped = results._table.n - len(results.row_index)
    if dropped:
        notes.append(f"{dropped} row(s) with missing values were left out.")
    if not results.converged:
        notes.append(results.message)
    return notes
