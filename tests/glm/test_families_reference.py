"""Families with several predictors, censored and truncated responses, against R (tests/reference/glm)."""

from __future__ import annotations

import numpy as np
import pytest
from glm_cases import case, cases, frame, ids, numbers
from numpy.testing import assert_allclose

import jaxnlme as jn
from jaxnlme import families

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("key", [c["id"] for c in cases("zero_inflated_hurdle") if "kind" in c])
def test_zero_inflation_and_hurdle(key: str) -> None:
    """pscl; coefficients 1e-4, log-likelihood 1e-6 (pscl stops at BFGS's tolerance)."""
    chosen = case("zero_inflated_hurdle", key)
    left, _, right = chosen["formula"].partition("|")
    zero = "~ " + (right.strip() or left.split("~")[1].strip())
    base = {
        "poisson": families.Poisson(), "negbin": families.NegativeBinomial(),
        "geometric": families.NegativeBinomial(theta=1.0),
    }[chosen["dist"]]  # fmt: skip
    make = families.ZeroInflated if chosen["kind"] == "zeroinfl" else families.Hurdle
    family = make(base, zero=zero, link=chosen["zero_link"])
    fit = jn.fit_glm(left.strip(), frame(chosen), family=family)
    expected, se = numbers(chosen["coef"]), numbers(chosen["se"])
    sign = np.ones(len(expected))
    if (
        chosen["kind"] == "hurdle"
    ):  # pscl models the probability of crossing the hurdle, we that of zero
        sign[[n.startswith("zero_") for n in chosen["coef_names"]]] = -1
    good = np.ones(len(expected), bool)
    if (
        key == "zigeom"
    ):  # no zero inflation: its logit runs to minus infinity (theirs stopped at -18)
        good[-1] = False
        assert fit.params["zero"] < -15
    got = np.asarray(fit.params)
    assert_allclose((got - sign * expected)[good] / se[good], 0, atol=1e-3)
    assert_allclose(np.asarray(fit.bse)[good], se[good], rtol=2e-3)
    assert_allclose(fit.llf, chosen["loglik"], rtol=1e-6)
    assert_allclose(fit.aic, chosen["aic"], rtol=1e-6)
    if chosen["theta"]:
        assert_allclose(fit.theta, chosen["theta"], rtol=1e-3)
    head = numbers(chosen["fitted_head"])
    assert_allclose(fit.fittedvalues[: len(head)], head, rtol=1e-4)


@pytest.mark.parametrize("key", ids("beta"))
def test_beta(key: str) -> None:
    """Beta regression with a formula for the precision; betareg-like likelihood, 1e-5."""
    chosen = case("beta", key)
    formula = chosen["precision_formula"]
    parameters = {"precision": formula} if formula != "~1" else None
    fit = jn.fit_glm(
        chosen["formula"], frame(chosen), family="beta", link=chosen["link"], parameters=parameters
    )
    expected, se = numbers(chosen["coef"]), numbers(chosen["se"])
    p = len(fit.params)
    assert_allclose(np.asarray(fit.params), expected[:p], rtol=1e-5)
    assert_allclose(np.asarray(fit.bse), se[:p], rtol=1e-4)  # theirs by differences
    assert_allclose(fit.llf, chosen["loglik"], rtol=1e-9)
    assert_allclose(fit.aic, chosen["aic"], rtol=1e-9)
    if parameters is None:
        assert_allclose(np.log(fit.precision), expected[p], rtol=1e-5)


@pytest.mark.parametrize("key", ids("ordinal"))
def test_ordinal(key: str) -> None:
    """MASS polr: logit P(Y <= k) = zeta_k - x beta."""
    chosen = case("ordinal", key)
    data = frame(chosen)
    weights = ".weights" if ".weights" in data else None
    link = {"logistic": "logit"}.get(chosen["method"], chosen["method"])
    fit = jn.fit_glm(chosen["formula"], data, family=families.Ordinal(link=link), weights=weights)
    assert fit.params.index == [*chosen["coef_names"], *chosen["zeta_names"]]
    expected = np.concatenate([numbers(chosen["coef"]), numbers(chosen["zeta"])])
    assert_allclose(np.asarray(fit.params), expected, rtol=1e-5, atol=1e-5)
    assert_allclose(np.asarray(fit.bse), numbers(chosen["se"]), rtol=1e-4)
    assert_allclose(fit.llf, chosen["loglik"], rtol=1e-9)
    assert_allclose(fit.aic, chosen["aic"], rtol=1e-9)
    head = np.array(chosen["prob_head"])
    assert_allclose(fit.fittedvalues[: len(head)], head, atol=1e-5)


@pytest.mark.parametrize("key", ids("multinomial"))
def test_multinomial(key: str) -> None:
    """nnet multinom, first level the reference; nnet stops at 1e-4 of the optimum."""
    chosen = case("multinomial", key)
    data = frame(chosen)
    weights = ".weights" if ".weights" in data else None
    fit = jn.fit_glm(chosen["formula"], data, family=families.Multinomial(), weights=weights)
    labels = [f"{row}.{name}" for row in chosen["coef_rows"] for name in chosen["coef_names"]]
    assert fit.params.index == labels
    assert_allclose(np.asarray(fit.params), np.ravel(chosen["coef"]), rtol=1e-4, atol=1e-4)
    assert_allclose(np.asarray(fit.bse), np.ravel(chosen["se"]), rtol=1e-3)
    assert_allclose(fit.llf, chosen["loglik"], rtol=1e-7)
    assert_allclose(fit.aic, chosen["aic"], rtol=1e-7)
    head = np.array(chosen["prob_head"])
    assert_allclose(fit.predict()[: len(head)], head, atol=1e-4)


@pytest.mark.parametrize("key", ids("student_t"))
def test_student_t(key: str) -> None:
    chosen = case("student_t", key)
    fit = jn.fit_glm(
        chosen["formula"], frame(chosen), family=families.StudentT(df=chosen.get("nu_fixed"))
    )
    # The file's optimum is BFGS's: its log-likelihood is 8e-9 (mtcars) and 1.3e-7 (boston) below ours, which
    # leaves coefficients within the square root of that, in standard errors.
    assert 0 <= fit.llf - chosen["loglik"] < 1e-6
    se = numbers(chosen["se_coef"])
    assert_allclose((np.asarray(fit.params) - numbers(chosen["coef"])) / se, 0, atol=1e-3)
    assert_allclose(np.asarray(fit.bse), se, rtol=1e-3)
    assert_allclose(fit.sigma, chosen["scale"], rtol=1e-5)
    if "nu_fixed" not in chosen:
        assert_allclose(fit.df, chosen["nu"], rtol=1e-4)


@pytest.mark.parametrize("key", ids("censored"))
def test_censored(key: str) -> None:
    """survreg: Tobit, right-censored lognormal (with the Jacobian in the log-likelihood)."""
    chosen = case("censored", key)
    data = frame(chosen)
    if "tobit" in key:
        family = families.Censored("gaussian", left=0)
    else:
        family = families.Censored("lognormal", event="status")
        data = data.dropna(subset=["ph.ecog"])
    fit = jn.fit_glm(chosen["formula"], data, family=family)
    se = numbers(chosen["se"])
    p = len(fit.params)
    assert_allclose((np.asarray(fit.params) - numbers(chosen["coef"])) / se[:p], 0, atol=1e-5)
    assert_allclose(np.asarray(fit.bse), se[:p], rtol=1e-4)
    assert_allclose(fit.sigma, chosen["scale"], rtol=1e-5)
    assert_allclose(fit.llf, chosen["loglik"], rtol=1e-8)


def test_interval_censored_is_right_censored_with_open_ends() -> None:
    """The same data as intervals: exact values have equal ends, censored ones an open end."""
    chosen = case("censored", "lognormal_lung")
    data = frame(chosen).dropna(subset=["ph.ecog"]).reset_index(drop=True)
    data["from"] = data["time"].astype(float)
    data["to"] = np.where(data["status"] == 2, data["time"], np.nan)
    family = families.Censored("lognormal", interval=("from", "to"))
    fit = jn.fit_glm(chosen["formula"], data, family=family)
    se = numbers(chosen["se"])[: len(fit.params)]
    assert_allclose((np.asarray(fit.params) - numbers(chosen["coef"])) / se, 0, atol=1e-5)
    assert_allclose(fit.llf, chosen["loglik"], rtol=1e-8)


@pytest.mark.parametrize("name", ["truncated", "betabinomial", "parameter_formulas"])
def test_glmmtmb(name: str) -> None:
    """glmmTMB: coefficients within 1e-3 standard errors, log-likelihood 1e-5."""
    for chosen in cases(name):
        family = {
            "truncated": families.Truncated("poisson", lower=1), "betabinomial": "beta_binomial",
            "parameter_formulas": "gaussian",
        }[name]  # fmt: skip
        fit = jn.fit_glm(
            chosen["formula"], frame(chosen), family=family, parameters=chosen.get("parameters")
        )
        p = len(chosen["coef"])
        se = numbers(chosen["se"])
        assert_allclose((np.asarray(fit.params)[:p] - numbers(chosen["coef"])) / se, 0, atol=1e-3)
        assert_allclose(np.asarray(fit.bse)[:p], se, rtol=1e-3)
        assert_allclose(fit.llf, chosen["loglik"], rtol=1e-5)
        assert_allclose(fit.aic, chosen["aic"], rtol=1e-5)
        if name == "parameter_formulas":  # theirs on the scale of log sigma^2
            assert_allclose(2 * np.asarray(fit.params)[p:], numbers(chosen["disp_coef"]), rtol=1e-3)
        if name == "betabinomial":
            assert_allclose(fit.precision, chosen["sigma"], rtol=1e-3)
