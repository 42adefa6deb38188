"""Coefficients, standard errors, deviances and likelihoods against R (tests/reference/glm, nist)."""

from __future__ import annotations

import numpy as np
import pytest
from glm_cases import case, cases, fitted, frame, ids, labels, numbers
from numpy.testing import assert_allclose

import jaxnlme as jn
from helpers import reference

pytestmark = [
    pytest.mark.filterwarnings("ignore::jaxnlme.CollinearityWarning"),
    pytest.mark.filterwarnings("ignore:response 'rate' is not a whole number:jaxnlme.DataWarning"),
]
PLAIN = [(name, key) for name in ("families", "quasi", "contrasts") for key in ids(name)]


def check(
    name: str, key: str, *, coefficients: float, errors: float, likelihood: bool = True
) -> None:
    """The ``fit`` block of a case."""
    chosen, fit = case(name, key), fitted(name, key)
    expected = chosen["fit"]
    kept = list(expected["coef_names"])
    assert fit.params.index == labels(chosen, kept)
    coef, se = numbers(expected["coef"]), numbers(expected["se"])
    scale = np.nanmax(np.abs(coef))
    # relative, with a floor for coefficients that are 0 by symmetry
    assert_allclose(
        np.asarray(fit.params), coef, rtol=coefficients, atol=1e-3 * coefficients * scale
    )
    assert_allclose(np.asarray(fit.bse), se, rtol=errors)
    assert_allclose(fit.deviance, expected["deviance"], rtol=1e-10)
    assert_allclose(fit.null_deviance, expected["null_deviance"], rtol=1e-8)
    assert fit.df_resid == expected["df_residual"]
    assert fit.nobs == expected["nobs"]
    assert_allclose(fit.dispersion, expected["dispersion"], rtol=1e-7)
    assert_allclose(fit.pearson_chi2, expected["pearson_chi2"], rtol=1e-7)
    assert_allclose(np.asarray(fit.tvalues), numbers(expected["stat"]), rtol=10 * errors, atol=1e-9)
    assert_allclose(np.asarray(fit.pvalues), numbers(expected["p_value"]), rtol=1e-5, atol=1e-14)
    head = numbers(expected["fitted_head"])
    assert_allclose(fit.fittedvalues[: len(head)], head, rtol=1e-7)
    assert fit.converged
    if likelihood and expected["loglik"] is not None:
        assert_allclose(fit.llf, expected["loglik"], rtol=1e-9)
        assert_allclose(fit.aic, expected["aic"], rtol=1e-9)
        # R's BIC counts rows of weight 0, although its nobs() does not
        rows = fit.nobs if "zero_weights" not in key else len(fit.fittedvalues)
        bic = fit.bic + (np.log(rows) - np.log(fit.nobs)) * expected["loglik_df"]
        assert_allclose(bic, expected["bic"], rtol=1e-9)
    elif likelihood:
        assert not np.isfinite(fit.llf)  # quasi: no likelihood; counts that are rates: density 0
        assert not np.isfinite(fit.aic)


@pytest.mark.parametrize(("name", "key"), PLAIN, ids=[k for _, k in PLAIN])
def test_families_links_and_contrasts(name: str, key: str) -> None:
    check(name, key, coefficients=1e-7, errors=1e-7)


@pytest.mark.parametrize("key", [k for k in ids("families") if "identity" not in k])
def test_few_steps(key: str) -> None:
    """Eight steps on well-behaved links (fields/glm.md 1a, row 3)."""
    if case("families", key)["link"] in ("log", "logit"):
        assert fitted("families", key).n_iter <= 8


@pytest.mark.parametrize("key", ids("rank_deficient"))
def test_aliased_columns_as_in_r(key: str) -> None:
    chosen, fit = case("rank_deficient", key), fitted("rank_deficient", key)
    expected = chosen["fit"]
    coef = numbers(expected["coef"])
    assert fit.params.index == labels(chosen, expected["coef_names"])
    assert (
        [n for n, v in fit.params.items() if np.isnan(v)] == expected["aliased"]
        if isinstance(expected["aliased"], list)
        else [expected["aliased"]]
    )
    assert_allclose(np.asarray(fit.params), coef, rtol=1e-7, atol=1e-9)
    assert_allclose(
        np.asarray(fit.bse)[~np.isnan(coef)], numbers(expected["se"])[~np.isnan(coef)], rtol=1e-7
    )
    head = numbers(expected["fitted_head"])
    assert_allclose(fit.fittedvalues[: len(head)], head, rtol=1e-8)
    assert_allclose(fit.deviance, expected["deviance"], rtol=1e-10)
    assert fit.df_resid == expected["df_residual"]


@pytest.mark.parametrize("key", ids("spline_fits"))
def test_splines_in_formulas(key: str) -> None:
    check("spline_fits", key, coefficients=1e-7, errors=1e-7)


def test_aliased_columns_are_named() -> None:
    chosen = case("rank_deficient", "gaussian_duplicate_column")
    with pytest.warns(jn.CollinearityWarning, match="wt2"):
        jn.fit_glm(chosen["formula"], frame(chosen))


@pytest.mark.parametrize("key", [c["id"] for c in cases("tweedie") if "fit" in c])
def test_tweedie(key: str) -> None:
    fit, chosen = fitted("tweedie", key), case("tweedie", key)
    expected = chosen["fit"]
    assert_allclose(np.asarray(fit.params), numbers(expected["coef"]), rtol=1e-6)
    assert_allclose(np.asarray(fit.bse), numbers(expected["se"]), rtol=1e-6)
    assert_allclose(fit.deviance, expected["deviance"], rtol=1e-10)
    assert_allclose(fit.null_deviance, expected["null_deviance"], rtol=1e-8)
    if "loglik_phi_ml" in chosen:
        assert_allclose(fit.llf, chosen["loglik_phi_ml"], rtol=1e-8)


@pytest.mark.parametrize("key", [c["id"] for c in cases("tweedie") if "ml_all" in c])
def test_tweedie_power_by_maximum_likelihood(key: str) -> None:
    from glm_cases import formula, options

    chosen = case("tweedie", key)
    expected = chosen["ml_all"]
    fit = jn.fit_glm(formula(chosen), frame(chosen), **{**options(chosen), "family": "tweedie"})
    assert_allclose(fit.power, expected["power"], atol=1e-4)
    assert fit.llf >= expected["loglik"] - 1e-6
    assert_allclose(fit.llf, expected["loglik"], atol=1e-3)


@pytest.mark.parametrize("key", ids("negbinomial"))
def test_negative_binomial(key: str) -> None:
    from glm_cases import formula, options

    chosen = case("negbinomial", key)
    fixed = chosen.get("theta_fixed")
    given = {**options(chosen), "link": chosen.get("link") or "log"}
    given["family"] = jn.families.NegativeBinomial(theta=fixed) if fixed else "negative_binomial"
    fit = jn.fit_glm(formula(chosen), frame(chosen), **given)
    expected = chosen["fit"]
    assert_allclose(np.asarray(fit.params), numbers(expected["coef"]), rtol=1e-6)
    assert_allclose(
        np.asarray(fit.bse), numbers(chosen.get("se_dispersion_1") or expected["se"]), rtol=1e-5
    )
    if not fixed:
        assert_allclose(fit.theta, chosen["theta"], rtol=1e-6)
        assert_allclose(fit.family_params_bse["theta"], chosen["theta_se"], rtol=1e-4)
        assert_allclose(2 * fit.llf, chosen["twologlik"], rtol=1e-9)
    else:
        assert_allclose(fit.llf, chosen.get("loglik_true", expected["loglik"]), rtol=1e-9)
    assert_allclose(fit.deviance, expected["deviance"], rtol=1e-6)
    assert_allclose(fit.null_deviance, expected["null_deviance"], rtol=1e-6)


# ---- NIST ------------------------------------------------------------------------------------

LEAST_DIGITS = {"lower": 9.0, "average": 9.0}
NAMED = {"Longley": 9.0, "Filip": 7.0, "Wampler4": 7.0, "Wampler5": 5.5}


def digits(found: np.ndarray, certified: np.ndarray) -> float:
    scale = np.where(certified == 0, 1.0, np.abs(certified))
    error = np.abs(found - certified) / scale
    return float(-np.log10(max(error.max(), 1e-15)))


@pytest.mark.parametrize("name", sorted(reference("nist", "linear")["datasets"]))
def test_nist_linear_regression(name: str) -> None:
    problem = reference("nist", "linear")["datasets"][name]
    y, x, design = np.array(problem["y"]), np.array(problem["x"]), problem["design"]
    if design["kind"] == "poly":
        X = np.column_stack([x**k for k in range(1, design["degree"] + 1)])
    else:
        X = x.reshape(len(y), -1) if x.ndim == 1 or len(x) == len(y) else x.T
    fit = jn.fit_glm(X, y, intercept=design["intercept"])
    certified = problem["certified"]
    wanted = NAMED.get(name, LEAST_DIGITS.get(problem["level"], 9.0))
    assert digits(np.asarray(fit.params), numbers(certified["coef"])) >= wanted
    if name not in ("Wampler1", "Wampler2"):  # exact data: the certified standard errors are 0
        assert digits(np.asarray(fit.bse), numbers(certified["se"])) >= min(wanted, 7.0)
