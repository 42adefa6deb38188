"""Analysis of variance: terms of one fit, or comparison of nested fits."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme.inference.wald import wald
from jaxnlme.results.nlme import NLMEResults
from jaxnlme.results.nlme_tables import chi2_tail, containment_df


def anova(*fits: Any, type: int = 1, test: str = "F") -> Any:
    """Test the terms of one fit, or compare fits of the same data.

    Parameters
    ----------
    *fits
        One fit: Wald tests of each term of each parameter's formula (``type=1``: sequential, each term given
        those before it, R's ``anova.lme``; ``type=3``: each given all others). Several: likelihood-ratio
        tests between neighbours.
    test
        One fit: ``"F"`` (containment degrees of freedom) or ``"Chisq"`` / ``"Wald"``. Several: ``"LRT"``.

    Returns
    -------
    frame
        One fit: term, df, df_resid, statistic, p_value. Several: model, df, aic, bic, llf, test,
        statistic, p_value.

    Raises
    ------
    ModelSpecError
        Fits by different methods, error scales or data: their likelihoods are not comparable.

    Notes
    -----
    The p-value of a likelihood-ratio test for variances is conservative: the null value lies on the
    boundary (Stram and Lee 1994).
    """
    for fit in fits:
        if not isinstance(fit, NLMEResults):
            raise ModelSpecError(f"anova takes fits, found {fit.__class__.__name__}.")
    if not fits:
        raise ModelSpecError("anova needs at least one fit.")
    return _terms(fits[0], type, test) if len(fits) == 1 else _compare(fits, test)


def _terms(fit: NLMEResults, type: int, test: str) -> Any:
    if test not in ("F", "Chisq", "Wald"):
        raise ModelSpecError(f"anova(test={test!r}) of one NLME fit: use 'F', 'Chisq' or 'Wald'.")
    if type not in (1, 3):
        raise ModelSpecError(
            f"anova(type={type!r}) of an NLME fit: use 1 (sequential) or 3 (marginal)."
        )
    beta, vcov = np.asarray(fit.params), np.asarray(fit.vcov())
    n, p = fit.nobs, len(beta)
    if fit.method == "LME":
        vcov = vcov * n / (n - p)
    terms, at = [], 0
    for name, spec in fit._spec.fixed.specs:
        assign = np.asarray(spec.assign)
        single = spec.labels == ("(Intercept)",)
        for t in sorted(set(assign.tolist())):
            index = at + np.flatnonzero(assign == t)
            label = "(Intercept)" if t < 0 else spec.terms.labels[t]
            terms.append((name if single else f"{name}.{label}", index))
        at += len(assign)
    df_resid = containment_df(fit)[0]
    rows: dict[str, list] = {"term": [], "df": [], "df_resid": [], "statistic": [], "p_value": []}
    seen = np.zeros(0, int)
    for label, index in terms:
        if type == 1:
            seen = np.concatenate([seen, index])
            statistic, df = _sequential(beta, vcov, seen, index)
        else:
            statistic, df = wald(np.eye(p)[index], np.zeros(len(index)), beta, vcov)
        rows["term"].append(label)
        rows["df"].append(df)
        rows["df_resid"].append(df_resid)
        rows["statistic"].append(statistic / df if test == "F" else statistic)
        rows["p_value"].append(
            _f_tail(statistic / df, df, df_resid) if test == "F" else chi2_tail(statistic, df)
        )
    return fit._table.native(rows)


def _sequential(beta, vcov, seen, index):
    """Chi-square of a term given the terms before it: the Cholesky split of the information."""
    order = np.concatenate([seen, np.setdiff1d(np.arange(len(beta)), seen)])
    root = np.linalg.cholesky(np.linalg.inv(vcov)[np.ix_(order, order)]).T
    effects = root @ beta[order]
    start = len(seen) - len(index)
    return float(np.sum(effects[start : len(seen)] ** 2)), len(index)


def _f_tail(f: float, df1: float | int, df2: float) -> float:
    from scipy import stats

    return float(stats.f.sf(f, df1, df2))


def _compare(fits: tuple[NLMEResults, ...], test: str) -> Any:
    if test not in ("LRT", "F", "Chisq"):
        raise ModelSpecError(f"anova(test={test!r}) of several NLME fits: only 'LRT'.")
    first = fits[0]
    for fit in fits:
        if fit._problem.prior is not None:
            raise ModelSpecError(
                "anova: a fit with priors= does not maximise its likelihood, so likelihood-ratio tests do not "
                "hold; fit without priors."
            )
    for fit in fits[1:]:
        if fit.method != first.method:
            raise ModelSpecError(
                f"anova: log-likelihoods of method {first.method!r} and {fit.method!r} are different "
                "approximations and cannot be compared: refit by one method."
            )
        if fit.nobs != first.nobs or not np.array_equal(fit._y, first._y):
            raise ModelSpecError(
                f"anova: the fits use different data ({first.nobs} and {fit.nobs} rows, or another response)."
            )
        if fit._restricted and fit._spec.fixed.labels != first._spec.fixed.labels:
            raise ModelSpecError(
                "anova: restricted likelihoods with different fixed effects cannot be compared; refit by ML."
            )
    rows: dict[str, list] = {
        "model": [], "df": [], "aic": [], "bic": [], "llf": [], "test": [], "statistic": [],
        "p_value": [],
    }  # fmt: skip
    for k, fit in enumerate(fits):
        rows["model"].append(fit.formula)
        for name, value in (
            ("df", fit.df_model),
            ("aic", fit.aic),
            ("bic", fit.bic),
            ("llf", fit.llf),
        ):
            rows[name].append(value)
        gap = 0 if k == 0 else fit.df_model - fits[k - 1].df_model
        if gap == 0:
            rows["test"].append("")
            rows["statistic"].append(np.nan)
            rows["p_value"].append(np.nan)
            continue
        ratio = 2 * (fit.llf - fits[k - 1].llf) * np.sign(gap)
        rows["test"].append(f"{k} vs {k + 1}")
        rows["statistic"].append(ratio)
        rows["p_value"].append(chi2_tail(max(ratio, 0.0), abs(gap)))
    return first._table.native(rows)
