"""``anova``: tests of the terms of one fit, or comparison of nested fits (the door for every model)."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme.inference.wald import sequential, wald
from jaxnlme.results.glm import GLMResults
from jaxnlme.results.glm_anova import compare_fits, terms_anova
from jaxnlme.results.nlme import NLMEResults
from jaxnlme.results.nlme_tables import containment_df
from jaxnlme.results.statistics import chi2_tail, f_tail


def anova(*fits: Any, type: int = 1, test: str | None = None) -> Any:
    """Test the terms of one fit, or compare nested fits of the same data.

    Parameters
    ----------
    *fits
        One fit: tests of each term. GLM: analysis of deviance of the mean's terms; NLME: Wald tests of each
        term of each parameter's formula. Several fits: tests between neighbours.
    type
        1: each term given those before it (R's ``anova``). 2: each term given all others that do not contain
        it (``car::Anova``; GLM only). 3: each given all others, as coded: with interactions it asks for
        contrasts that sum to zero, such as ``C(x, contr.sum)``.
    test
        GLM: ``"Chisq"`` = ``"LRT"`` (deviance over the dispersion), ``"F"`` (Pearson's dispersion), ``"Rao"``
        (score test), ``"Wald"`` (one fit only); default F where the family has a dispersion, else Chisq.
        NLME: ``"F"`` (default; containment degrees of freedom), ``"Chisq"`` / ``"Wald"``; several fits
        ``"LRT"``.

    Returns
    -------
    frame
        GLM, one fit: term, df, deviance, [df_resid, resid_deviance,] statistic, p_value; several: model,
        df_resid, resid_deviance, df, deviance, statistic, p_value. NLME, one fit: term, df, df_resid,
        statistic, p_value; several: model, df, aic, bic, llf, test, statistic, p_value.

    Raises
    ------
    ModelSpecError
        Fits of other data, families, methods or error scales: their likelihoods are not comparable.

    Notes
    -----
    The p-value of a likelihood-ratio test for variances is conservative: the null value lies on the
    boundary (Stram and Lee 1994). Tests of a GLM with one fit keep scalars such as theta at their estimate;
    between fits every model has its own.

    Examples
    --------
    >>> import jaxnlme as jn
    >>> data = {"y": [1, 2, 3, 5, 6, 9], "x": [0, 1, 2, 3, 4, 5], "g": ["a", "b", "a", "b", "a", "b"]}
    >>> table = jn.anova(jn.fit_glm("y ~ x + g", data, family="poisson"), type=2)
    >>> list(table["term"]), [round(p, 4) for p in table["p_value"]]
    (['x', 'g'], [0.0032, 0.8291])
    """
    if not fits:
        raise ModelSpecError("anova needs at least one fit.")
    if all(isinstance(fit, GLMResults) for fit in fits):
        return terms_anova(fits[0], type, test) if len(fits) == 1 else compare_fits(fits, test)
    for fit in fits:
        if not isinstance(fit, NLMEResults | GLMResults):
            raise ModelSpecError(f"anova takes fits, found {fit.__class__.__name__}.")
    if any(isinstance(fit, GLMResults) for fit in fits):
        raise ModelSpecError("anova: a GLM and a nonlinear mixed model cannot be compared.")
    test = "F" if test is None else test
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
            statistic, df = sequential(beta, vcov, seen, index), len(index)
        else:
            statistic, df = wald(np.eye(p)[index], np.zeros(len(index)), beta, vcov)
        rows["term"].append(label)
        rows["df"].append(df)
        rows["df_resid"].append(df_resid)
        rows["statistic"].append(statistic / df if test == "F" else statistic)
        rows["p_value"].append(
            f_tail(statistic / df, df, df_resid) if test == "F" else chi2_tail(statistic, df)
        )
    return fit._table.native(rows)


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
