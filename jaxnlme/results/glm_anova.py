"""Tests of terms of a GLM: analysis of deviance of three types, nested fits, drop1, stepwise choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme._precision import host64
from jaxnlme.design.terms import Terms, expand
from jaxnlme.glm.drive import HostProblem, drive
from jaxnlme.inference.wald import sequential, wald
from jaxnlme.results.glm import GLMResults
from jaxnlme.results.glm_again import expanded
from jaxnlme.results.glm_compute import Evaluator
from jaxnlme.results.glm_predict import term_assign
from jaxnlme.results.statistics import chi2_tail, f_tail

TESTS = ("Chisq", "LRT", "F", "Rao", "Wald")


@dataclasses.dataclass(frozen=True)
class Submodel:
    """A fit with some columns held at 0: deviance, rank, what was estimated, and its predictors."""

    deviance: float
    rank: int
    estimated: np.ndarray
    etas: tuple[np.ndarray, ...]


class Submodels:
    """Fits of subsets of the terms of one model: columns are held at 0, so one compiled program does all.

    Scalars such as theta stay at their estimate where the family has an exponential form (as in R).
    """

    def __init__(self, results: GLMResults) -> None:
        problem = results._problem
        results._need_plain("a test of terms", "use wald_test, or fit without it")
        conditional = results._conditional
        self.results = results
        self.problem: HostProblem = (
            results._evaluator.problem if conditional is None else conditional.problem
        )
        width = self.problem.width
        held = np.full(width, np.nan) if problem.held is None else problem.held[:width]
        lower, upper = problem.lower, problem.upper
        self.problem = dataclasses.replace(
            self.problem, held=held, lower=None if lower is None else lower[:width],
            upper=None if upper is None else upper[:width],
        )  # fmt: skip
        self.names, assign = term_assign(results)
        # columns of the other predictors (-2) are never dropped
        self.assign = np.concatenate([assign, np.full(width - len(assign), -2)])
        self._fits: dict[tuple[int, ...], Submodel] = {}

    @property
    def terms(self) -> Terms:
        """The terms of the mean."""
        return self.results._spec.mean.terms

    def relatives(self, term: int) -> list[int]:
        """Terms that contain this one."""
        masks = self.terms.masks
        return [k for k, m in enumerate(masks) if k != term and m & masks[term] == masks[term]]

    def columns(self, terms: Sequence[int]) -> np.ndarray:
        """(P,) bool: columns of these terms."""
        return np.isin(self.assign, list(terms))

    def fit(self, terms: Sequence[int]) -> Submodel:
        """Fit the intercept and these terms."""
        key = tuple(sorted(terms))
        if key not in self._fits:
            self._fits[key] = self._fit(key)
        return self._fits[key]

    def _fit(self, terms: tuple[int, ...]) -> Submodel:
        held = np.array(self.problem.held)
        out = ~self.columns(terms) & (self.assign >= 0)
        if not out.any():
            host = self.results._host
            params, estimated = host.filled[: len(out)], host.estimated[: len(out)]
        else:
            held[out] = 0.0
            fit = drive(dataclasses.replace(self.problem, held=held))
            if fit.result not in ("successful", "not_identified"):
                names = [self.names[k] for k in terms]
                raise ModelSpecError(
                    f"the fit of the terms {names} did not converge ({fit.result}), so it cannot be tested."
                )
            params, estimated = fit.filled, fit.estimated
        rows = Evaluator(self.problem, params).rows()
        return Submodel(float(np.sum(rows.deviance)), int(np.sum(estimated)), estimated, rows.etas)

    def test(self, small: Submodel, big: Submodel, test: str) -> tuple[float, int, float]:
        """Statistic, degrees of freedom and p-value of a smaller fit against a larger one."""
        results = self.results
        df = big.rank - small.rank
        if df <= 0:
            return math.nan, df, math.nan
        if test == "Rao":
            statistic = rao(self.problem, small.etas, big.estimated) / results._scale
            return statistic, df, chi2_tail(statistic, df)
        gain = small.deviance - big.deviance
        if test == "F":
            f = gain / df / results.scale_pearson
            return f, df, f_tail(f, df, results.df_resid)
        statistic = gain / results._scale
        return statistic, df, chi2_tail(max(statistic, 0.0), df)


def rao(problem: HostProblem, etas: tuple[np.ndarray, ...], estimated: np.ndarray) -> float:
    """Score statistic ``U' I^-1 U`` of a model's columns at the predictors of a smaller fit."""
    shifted = dataclasses.replace(problem, offsets=tuple(etas), held=None, lower=None, upper=None)
    score, information = Evaluator(shifted, np.zeros(problem.width)).score()
    use = np.flatnonzero(estimated)
    information = information[np.ix_(use, use)]
    scale = np.sqrt(np.diag(information))
    u = score[use] / scale
    return float(u @ np.linalg.solve(information / scale[:, None] / scale, u))


def chosen_test(test: str | None, results: GLMResults, known: Sequence[str] = TESTS) -> str:
    """The test asked for, or R's default: F where a dispersion is estimated, else Chisq."""
    if test is None:
        return "F" if results._problem.family.has_dispersion else "Chisq"
    if test not in known:
        raise ModelSpecError(f"test={test!r}: use one of {', '.join(map(repr, known))}.")
    return test


@host64
def terms_anova(results: GLMResults, type: int, test: str | None) -> Any:
    """Analysis of deviance of one fit, see :func:`jaxnlme.anova`."""
    if type not in (1, 2, 3):
        raise ModelSpecError(
            f"anova(type={type!r}): use 1 (sequential), 2 (marginal to higher interactions) or 3 (each given "
            "all others, as coded)."
        )
    test = chosen_test(test, results)
    if test == "Wald":
        return _wald_anova(results, type)
    models = Submodels(results)
    every = list(range(len(models.names)))
    if type == 1:
        return _sequential_anova(models, every, test)
    rows: dict[str, list] = {k: [] for k in ("term", "df", "deviance", "statistic", "p_value")}
    for t, name in enumerate(models.names):
        left_out = models.relatives(t) if type == 2 else []
        big = [k for k in every if k not in left_out]
        large, small = models.fit(big), models.fit([k for k in big if k != t])
        statistic, df, p = models.test(small, large, test)
        rows["term"].append(name)
        rows["df"].append(df)
        rows["deviance"].append(small.deviance - large.deviance)
        rows["statistic"].append(statistic)
        rows["p_value"].append(p)
    return results._table.native(rows)


def _sequential_anova(models: Submodels, every: list[int], test: str) -> Any:
    results, fit = models.results, models.fit([])
    n = results.nobs
    names = ("term", "df", "deviance", "df_resid", "resid_deviance", "statistic", "p_value")
    rows: dict[str, list] = {k: [] for k in names}

    def add(*values: Any) -> None:
        for name, value in zip(names, values, strict=True):
            rows[name].append(value)

    nan = math.nan
    extra = results.rank - models.fit(every).rank  # scalars are not counted as columns
    add("NULL", nan, nan, n - fit.rank - extra, fit.deviance, nan, nan)
    for t, name in enumerate(models.names):
        more = models.fit(every[: t + 1])
        statistic, df, p = models.test(fit, more, test)
        gain = fit.deviance - more.deviance
        add(name, float(df), gain, n - more.rank - extra, more.deviance, statistic, p)
        fit = more
    return results._table.native(rows)


def _wald_anova(results: GLMResults, type: int) -> Any:
    names, assign = term_assign(results)
    terms = results._spec.mean.terms
    use = np.flatnonzero(results._host.estimated[: len(assign)])
    beta, own = results._host.params[use], assign[use]
    V = results._covariance()[np.ix_(use, use)]

    def chi2(index: np.ndarray) -> float:
        return (
            wald(np.eye(len(use))[index], np.zeros(len(index)), beta, V)[0] if len(index) else 0.0
        )

    rows: dict[str, list] = {k: [] for k in ("term", "df", "statistic", "p_value")}
    for t, name in enumerate(names):
        here = np.flatnonzero(own == t)
        if type == 1:
            statistic = sequential(beta, V, np.flatnonzero(own <= t), here)
        elif type == 2:
            masks = terms.masks
            kin = [k for k, m in enumerate(masks) if k != t and m & masks[t] == masks[t]]
            others = np.flatnonzero(np.isin(own, kin))
            statistic = chi2(np.union1d(here, others)) - chi2(others)
        else:
            statistic = chi2(here)
        rows["term"].append(name)
        rows["df"].append(len(here))
        rows["statistic"].append(statistic if len(here) else math.nan)
        rows["p_value"].append(chi2_tail(statistic, len(here)))
    return results._table.native(rows)


@host64
def compare_fits(fits: tuple[GLMResults, ...], test: str | None) -> Any:
    """Analysis of deviance of several nested fits, see :func:`jaxnlme.anova`."""
    largest = max(fits, key=lambda fit: fit.df_llf)
    check_same_data(fits, "anova")
    first = fits[0]
    for fit in fits[1:]:
        if fit._problem.family.name != first._problem.family.name:
            raise ModelSpecError(
                f"anova: families {first._problem.family.name!r} and {fit._problem.family.name!r} differ; "
                "likelihood-ratio tests are for nested models of one family. Use jn.compare (AIC, BIC)."
            )
    test = chosen_test(test, largest, TESTS[:4])
    for fit in fits:
        fit._need_plain("anova", "a penalised fit does not maximise its likelihood; use wald_test")
    rows: dict[str, list] = {
        k: [] for k in ("model", "df_resid", "resid_deviance", "df", "deviance", "statistic", "p_value")
    }  # fmt: skip
    for k, fit in enumerate(fits):
        gain = df = statistic = p = math.nan
        if k:
            gain, df, statistic, p = _step_test(fits[k - 1], fit, largest, test)
        rows["model"].append(fit.formula)
        rows["df_resid"].append(fit.df_resid)
        rows["resid_deviance"].append(fit.deviance)
        rows["df"].append(df)
        rows["deviance"].append(gain)
        rows["statistic"].append(statistic)
        rows["p_value"].append(p)
    return first._table.native(rows)


def _step_test(one: GLMResults, other: GLMResults, largest: GLMResults, test: str):
    small, big = sorted((one, other), key=lambda fit: fit.df_llf)
    scalars = bool(big._problem.family.parameters)
    df = big.df_llf - small.df_llf
    gain = 2 * (big.llf - small.llf) if scalars else small.deviance - big.deviance
    sign = 1 if big is other else -1
    if df == 0:
        return sign * gain, 0.0, math.nan, math.nan
    if test == "Rao":
        if len(small._rows.etas) != len(big._problem.designs):
            raise ModelSpecError("anova(test='Rao') needs fits with the same family parameters.")
        statistic = rao(big._problem, small._rows.etas, big._host.estimated) / largest._scale
        p = chi2_tail(statistic, df)
    elif test == "F":
        statistic = gain / df / largest.scale_pearson
        p = f_tail(statistic, df, largest.df_resid)
    else:
        statistic = gain / largest._scale
        p = chi2_tail(max(statistic, 0.0), df)
    return sign * gain, float(sign * df), statistic, p


def check_same_data(fits: tuple[GLMResults, ...], door: str) -> None:
    """Raise ModelSpecError where fits have other rows, responses or weights."""
    first = fits[0]
    for fit in fits[1:]:
        same = fit._problem.y.shape == first._problem.y.shape
        if not same or not np.array_equal(fit._problem.y, first._problem.y):
            raise ModelSpecError(
                f"{door}: the fits use different data ({first.nobs} and {fit.nobs} rows, or another response). "
                "Fit them to the rows that are complete in all their columns."
            )
        if not np.array_equal(fit._problem.weights, first._problem.weights):
            raise ModelSpecError(f"{door}: the fits use different weights.")


@host64
def drop1(fit: GLMResults, scope: Sequence[str] | None = None, test: str | None = None) -> Any:
    """Fit the model without each of its terms that no other term contains.

    Parameters
    ----------
    fit
        A GLM.
    scope
        Labels of the terms to drop; default: those that are not part of an interaction.
    test
        ``"Chisq"`` (= ``"LRT"``), ``"F"`` or ``"Rao"``; default: F where the dispersion is estimated, from the
        deviance of the fit over its degrees of freedom (as R does).

    Returns
    -------
    frame
        term (``<none>`` first), df, deviance, aic, statistic, p_value. As in R, ``aic`` keeps the dispersion
        of the fit (gaussian: maximised) and scalars such as theta.

    Raises
    ------
    ModelSpecError
        ``scope`` names a term that is not in the model.

    Examples
    --------
    >>> import jaxnlme as jn
    >>> data = {"y": [1, 2, 3, 5, 6, 9], "x": [0, 1, 2, 3, 4, 5], "g": ["a", "b", "a", "b", "a", "b"]}
    >>> fit = jn.fit_glm("y ~ x + g", data, family="poisson")
    >>> list(jn.drop1(fit)["term"])
    ['<none>', 'x', 'g']
    """
    _need_glm(fit, "drop1")
    test = chosen_test(test, fit, TESTS[:4])
    models = Submodels(fit)
    every = list(range(len(models.names)))
    dropped = [t for t in every if not models.relatives(t)]
    if scope is not None:
        unknown = [name for name in scope if name not in models.names]
        if unknown:
            raise ModelSpecError(
                f"drop1: {unknown[0]!r} is no term of the model; they are {list(models.names)}."
            )
        dropped = [models.names.index(name) for name in scope]
    full = models.fit(every)
    family, n = fit._problem.family, fit.nobs
    rows: dict[str, list] = {
        "term": ["<none>"], "df": [math.nan], "deviance": [full.deviance], "aic": [fit.aic],
        "statistic": [math.nan], "p_value": [math.nan],
    }  # fmt: skip
    for t in dropped:
        small = models.fit([k for k in every if k != t])
        statistic, df, p = models.test(small, full, test)
        if test == "F" and df > 0:
            statistic = (small.deviance - full.deviance) / df / fit.scale_deviance
            p = f_tail(statistic, df, fit.df_resid)
        if family.has_dispersion and family.name == "gaussian":
            change = n * math.log(small.deviance / full.deviance)
        else:
            change = (small.deviance - full.deviance) / fit._scale
        rows["term"].append(models.names[t])
        rows["df"].append(float(df))
        rows["deviance"].append(small.deviance)
        rows["aic"].append(fit.aic + change - 2 * df)
        rows["statistic"].append(statistic)
        rows["p_value"].append(p)
    return fit._table.native(rows)


def _need_glm(fit: Any, door: str) -> None:
    if not isinstance(fit, GLMResults):
        raise ModelSpecError(f"{door} takes a GLM fit, found {fit.__class__.__name__}.")


def step(
    fit: GLMResults,
    scope: str | Mapping[str, str] | None = None,
    direction: str = "both",
    criterion: str | float | int = "aic",
) -> GLMResults:
    """Choose terms by adding and dropping one at a time while a criterion falls.

    Parameters
    ----------
    fit
        The model to start from, fitted by formula.
    scope
        Formula of the largest model (``.`` stands for the terms of the fit), or a dict with ``"lower"`` and
        ``"upper"``. Default: from the terms of the fit down to the constant.
    direction
        ``"both"``, ``"backward"`` or ``"forward"``.
    criterion
        ``"aic"``, ``"bic"``, or the price of one parameter (2 is AIC).

    Returns
    -------
    GLMResults
        The last model, with ``step_path``: frame step, term, df_llf, criterion.

    Raises
    ------
    ModelSpecError
        A quasi family (no likelihood), a fit by arrays, or a scope that does not hold the fit's terms.

    Notes
    -----
    A term is dropped only when no interaction with it is left, and an interaction added only when its parts
    are there. Every candidate is fitted with its own dispersion and theta; ``aic`` is ``-2 llf + 2 df_llf``.

    Examples
    --------
    >>> import jaxnlme as jn
    >>> data = {"y": [1, 2, 3, 5, 6, 9], "x": [0, 1, 2, 3, 4, 5], "g": ["a", "b", "a", "b", "a", "b"]}
    >>> chosen = jn.step(jn.fit_glm("y ~ x + g", data, family="poisson"))
    >>> chosen.formula
    'y ~ x'
    """
    _need_glm(fit, "step")
    if direction not in ("both", "backward", "forward"):
        raise ModelSpecError(f"step(direction={direction!r}): use both, backward or forward.")
    if not fit._problem.family.has_likelihood:
        raise ModelSpecError(
            f"step: family {fit._problem.family.name!r} has no likelihood, so no AIC; use drop1(test='F')."
        )
    if fit._spec.names is not None:
        raise ModelSpecError("step needs a fit by formula; with arrays there are no terms.")
    fit._need_plain("step", "fit without it")
    prices = {"aic": 2.0, "bic": math.log(fit.nobs)}
    if isinstance(criterion, str) and criterion not in prices:
        raise ModelSpecError(f"step(criterion={criterion!r}): use 'aic', 'bic' or a number.")
    price = prices[criterion] if isinstance(criterion, str) else float(criterion)
    lower, upper = _scope(fit, scope)
    search = _Search(fit, upper, lower, price)
    return search.run(direction)


def _scope(fit: GLMResults, scope: Any) -> tuple[set[str], GLMResults]:
    given = scope if isinstance(scope, Mapping) else {"upper": scope}
    unknown = [k for k in given if k not in ("lower", "upper")]
    if unknown:
        raise ModelSpecError(
            f"step(scope=): the keys are 'lower' and 'upper', found {unknown[0]!r}."
        )
    lower: set[str] = set()
    if given.get("lower"):
        lower = set(expand(expanded(given["lower"], fit.formula).partition("~")[2]).labels)
    if not given.get("upper"):
        return lower, fit
    upper = fit.update(given["upper"])
    if len(upper.row_index) != len(fit.row_index):
        raise ModelSpecError(
            f"step: the largest model uses {len(upper.row_index)} rows, the fit {len(fit.row_index)}; remove "
            "the rows with missing values first."
        )
    missing = set(fit._spec.mean.terms.labels) - set(upper._spec.mean.terms.labels)
    if missing:
        raise ModelSpecError(f"step: scope does not hold the terms {sorted(missing)} of the fit.")
    return lower, upper


class _Search:
    """Subsets of the terms of the largest model and their criterion."""

    def __init__(self, fit: GLMResults, upper: GLMResults, lower: set[str], price: float) -> None:
        self.fit, self.upper, self.price = fit, upper, price
        terms = upper._spec.mean.terms
        self.names, self.masks = terms.labels, terms.masks
        self.fixed = {k for k, name in enumerate(self.names) if name in lower}
        self.assign = term_assign(upper)[1]
        self.scores: dict[frozenset[int], tuple[float, int]] = {}

    @host64
    def score(self, terms: frozenset[int]) -> Any:
        """Criterion and number of parameters of a subset."""
        if terms not in self.scores:
            problem = self.upper._problem
            p = len(self.assign)
            held = (
                np.full(problem.width, np.nan) if problem.held is None else np.array(problem.held)
            )
            held[:p] = np.where(
                (self.assign >= 0) & ~np.isin(self.assign, list(terms)), 0.0, held[:p]
            )
            problem = dataclasses.replace(problem, held=held)
            sub = GLMResults(**{**self.upper._parts(), "problem": problem, "fit": drive(problem)})
            value = -2 * sub.llf + self.price * sub.df_llf if sub.converged else math.inf
            self.scores[terms] = (value, sub.df_llf)
        return self.scores[terms]

    def candidates(self, terms: frozenset[int], direction: str):
        """Neighbours: sign, term, subset."""
        masks = self.masks
        if direction != "forward":
            for t in sorted(terms - self.fixed):
                if not any(k != t and masks[k] & masks[t] == masks[t] for k in terms):
                    yield "-", t, terms - {t}
        if direction != "backward":
            for t in range(len(masks)):
                parts = [k for k in range(len(masks)) if k != t and masks[k] & masks[t] == masks[k]]
                if t not in terms and all(k in terms for k in parts):
                    yield "+", t, terms | {t}

    def run(self, direction: str) -> GLMResults:
        """Walk downhill from the fit."""
        here = frozenset(self.names.index(n) for n in self.fit._spec.mean.terms.labels)
        value, df = self.score(here)
        path = [("", df, value)]
        while True:
            options = [
                (self.score(terms)[0], k, sign, t, terms)
                for k, (sign, t, terms) in enumerate(self.candidates(here, direction))
            ]
            if not options or min(options)[0] >= value - 1e-7:
                break
            value, _, sign, t, here = min(options)
            path.append((f"{sign} {self.names[t]}", self.score(here)[1], value))
        result = self.fit.update(self.formula(here))
        columns = {
            "step": list(range(len(path))),
            "term": [row[0] for row in path],
            "df_llf": [row[1] for row in path],
            "criterion": [row[2] for row in path],
        }
        result.step_path = result._table.native(columns)
        return result

    def formula(self, terms: frozenset[int]) -> str:
        """The formula of a subset."""
        mean = self.upper._spec.mean.terms
        pieces = [self.names[k] for k in sorted(terms)]
        pieces += [f"offset({_deparse(node)})" for node in mean.offsets]
        right = " + ".join(pieces) or "1"
        left = self.fit.formula.partition("~")[0].strip()
        return f"{left} ~ {right}" + ("" if mean.intercept else " - 1")


def _deparse(node: Any) -> str:
    from_text = Terms("", (node,), (1,), True)
    return from_text.names[0]
