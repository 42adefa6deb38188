"""Responses drawn from fits whose data hold sizes, limits or bounds: simulate, refit, bootstrap, residuals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from glm_cases import case, formula, frame
from numpy.testing import assert_allclose
from scipy import stats

import jaxnlme as jn

N = 400


@pytest.fixture(scope="module")
def claims() -> dict[str, np.ndarray]:
    """Losses above a deductible, cut at a limit, as an insurer sees them."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal(3 * N)
    loss = np.exp(6 + 0.4 * x + 0.7 * rng.standard_normal(3 * N))
    deductible = np.where(rng.random(3 * N) < 0.5, 200.0, np.nan)
    limit = np.where(rng.random(3 * N) < 0.5, 900.0, 1500.0)
    seen = np.flatnonzero(~(loss < deductible))[:N]
    return {
        "y": np.minimum(loss, limit)[seen],
        "x": x[seen],
        "d": deductible[seen],
        "l": limit[seen],
    }


@pytest.fixture(scope="module")
def severity(claims: Any) -> Any:
    family = jn.families.Censored(jn.families.Truncated("lognormal", lower="d"), right="l")
    return jn.fit_glm("y ~ x", claims, family=family)


@pytest.fixture(scope="module")
def seeds() -> Any:
    c = case("betabinomial", "cbpp_period")
    return jn.fit_glm(formula(c), frame(c), family="beta_binomial")


def test_simulated_losses_obey_deductible_and_limit(severity: Any, claims: Any) -> None:
    draws = severity.simulate(200, key=1)
    assert draws.shape == (200, N)
    assert np.all(draws <= claims["l"])
    assert np.all(draws[:, np.isfinite(claims["d"])] >= 200)
    mu, sigma = severity._rows.parameters
    low = np.where(
        np.isnan(claims["d"]), 0.0, stats.lognorm.cdf(claims["d"], sigma, scale=np.exp(mu))
    )
    at_limit = stats.lognorm.sf(claims["l"], sigma, scale=np.exp(mu)) / (1 - low)
    found = (draws == claims["l"]).mean(0)
    # 200 draws a row: the sum of squares of 400 standardised shares is chi-square
    z = (found - at_limit) / np.sqrt(at_limit * (1 - at_limit) / 200)
    assert stats.chi2.sf(np.sum(z**2), N) > 1e-4


def test_refit_censors_by_the_same_rule(severity: Any, claims: Any) -> None:
    y = severity.simulate(1, key=2)[0]
    direct = jn.fit_glm("y ~ x", {**claims, "y": y}, family=severity._call["family"])
    assert_allclose(np.asarray(severity.refit(y).params), np.asarray(direct.params), rtol=1e-6)
    assert_allclose(severity.refit(y).llf, direct.llf, rtol=1e-10)
    with pytest.raises(jn.DataError, match="outside its truncation bounds"):
        severity.refit(np.linspace(10.0, 20.0, N))


def test_parametric_bootstrap_of_censored_losses(severity: Any) -> None:
    """60 fits: a standard deviation is known to 9 %, the test allows four times that."""
    draws = np.asarray(severity.bootstrap(60, key=3)["estimate"]).reshape(60, 2)
    assert_allclose(draws.std(0), np.asarray(severity.bse), rtol=0.37)
    assert np.all(np.abs(draws.mean(0) - severity.params) < 4 * severity.bse / np.sqrt(60))


def test_quantile_residuals_between_bounds_are_normal(severity: Any) -> None:
    found = severity.residuals("quantile", key=5)
    assert stats.kstest(found, "norm").pvalue > 1e-3
    wrong = severity.with_params({"x": -0.5}).residuals("quantile", key=5)
    assert stats.kstest(wrong, "norm").pvalue < 1e-6


def test_prediction_interval_between_bounds(severity: Any, claims: Any) -> None:
    """95 % of simulated uncensored losses lie inside (2 %: error of a share of 400 x 200 draws and of the fit)."""
    found = severity.predict(claims, interval="prediction")
    low, high = np.asarray(found["low"]), np.asarray(found["high"])
    assert np.all(low[np.isfinite(claims["d"])] >= 200)
    family = jn.families.Truncated("lognormal", lower="d")
    plain = jn.fit_glm("y ~ x", claims, family=family).with_params(
        {**severity.params.to_dict(), "sigma": np.log(severity.sigma)}
    )
    draws = plain.simulate(200, key=7)
    assert abs(np.mean((draws >= low) & (draws <= high)) - 0.95) < 0.02


def test_where_censoring_is_not_known_the_uncensored_variable_is_drawn() -> None:
    rng = np.random.default_rng(0)
    time, stop = rng.exponential(2.0, 200), rng.exponential(3.0, 200)
    x = rng.standard_normal(200)
    data = {
        "t": np.minimum(time, stop),
        "died": time <= stop,
        "x": x,
        "low": time,
        "high": time + 1,
    }
    fit = jn.fit_glm("t ~ x", data, family=jn.families.Censored("lognormal", event="died"))
    draws = fit.simulate(300, key=1)
    mu, sigma = fit._rows.parameters
    assert stats.kstest(((np.log(draws) - mu) / sigma).ravel(), "norm").pvalue > 1e-4
    with pytest.raises(jn.ModelSpecError, match=r"kind='cases', or give the limits"):
        fit.bootstrap(2)
    again = fit.refit(2 * data["t"])  # events stay events: a change of units
    assert_allclose(again.params["(Intercept)"], fit.params["(Intercept)"] + np.log(2), rtol=1e-6)
    assert_allclose(again.params["x"], fit.params["x"], rtol=1e-6)
    spans = jn.fit_glm(
        "t ~ x", data, family=jn.families.Censored("lognormal", interval=("low", "high"))
    )
    with pytest.raises(jn.ModelSpecError, match="intervals from two columns"):
        spans.refit(data["t"])


def test_beta_binomial_draws_are_proportions_of_the_sizes(seeds: Any) -> None:
    size = seeds._problem.y[1]
    draws = seeds.simulate(2000, key=3)
    assert_allclose(draws * size, np.round(draws * size), atol=1e-9)
    variance = np.asarray(seeds._variance)
    z = (draws.mean(0) - seeds.fittedvalues) / np.sqrt(variance / 2000)
    assert np.all(np.abs(z) < 4.5)
    assert_allclose(np.mean(draws.var(0) / variance), 1.0, rtol=0.05)


def test_beta_binomial_again(seeds: Any) -> None:
    c = case("betabinomial", "cbpp_period")
    data, size = frame(c), seeds._problem.y[1]
    y = seeds.simulate(1, key=8)[0]
    data["incidence"] = np.round(y * size)
    direct = jn.fit_glm(formula(c), data, family="beta_binomial")
    assert_allclose(np.asarray(seeds.refit(y).params), np.asarray(direct.params), rtol=1e-5)
    draws = np.asarray(seeds.bootstrap(10, key=1)["estimate"])
    assert np.all(np.isfinite(draws))
    inside = seeds.predict(interval="prediction")
    within = (y >= np.asarray(inside["low"])) & (y <= np.asarray(inside["high"]))
    assert within.mean() > 0.85
