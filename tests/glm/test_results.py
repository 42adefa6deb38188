"""What a GLM result answers: statistics, tables, predictions, residuals, draws, refits, messages."""

from __future__ import annotations

import importlib
import json
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from glm_cases import case, fitted, frame
from numpy.testing import assert_allclose

import jaxnlme as jn
from jaxnlme.results.compare import compare, table
from jaxnlme.results.glm import make_results

WARP = ("families", "poisson_log_warpbreaks")


@pytest.fixture(scope="module")
def warp() -> Any:
    return fitted(*WARP)


@pytest.fixture(scope="module")
def insurance() -> pd.DataFrame:
    data = frame(case("families", "poisson_offset_insurance"))
    return data.drop(columns=".offset")


@pytest.fixture(scope="module")
def claims(insurance: pd.DataFrame) -> Any:
    return jn.fit_glm(
        "Claims ~ District + Group + Age", insurance, family="poisson", exposure="Holders"
    )


SUMMARY = """\
                           Generalised linear model
==============================================================================
Formula:     breaks ~ wool * tension
Family:      poisson (log link)
Method:      maximum likelihood (Fisher scoring)
------------------------------------------------------------------------------
No. observations:                  54   Df residuals:                       48
Df model:                           5   Dispersion:                          1
Log-likelihood:              -228.485   AIC:                           468.969
Deviance:                     182.305   BIC:                           480.903
Null deviance:                297.372   Pearson chi2:                  180.666
Pseudo R2 (deviance):        0.386946   Converged:                yes, 4 steps
==============================================================================
                  estimate  std_error        z  p_value     [0.025     0.975]
(Intercept)         3.7967    0.04994   76.030  <0.0001      3.699      3.895 ***
woolB             -0.45663    0.08019   -5.694  <0.0001    -0.6138    -0.2995 ***
tensionM          -0.61868     0.0844   -7.330  <0.0001    -0.7841    -0.4533 ***
tensionH           -0.5958    0.08378   -7.112  <0.0001      -0.76    -0.4316 ***
woolB:tensionM     0.63818     0.1222    5.224  <0.0001     0.3988     0.8776 ***
woolB:tensionH     0.18836     0.1299    1.450   0.1470   -0.06623      0.443
==============================================================================
Signif. codes: *** 0.001, ** 0.01, * 0.05, . 0.1"""


def test_summary_text(warp: Any) -> None:
    assert warp.summary() == SUMMARY
    assert str(warp) == SUMMARY
    assert warp._repr_html_() == f"<pre>{SUMMARY.replace('<', '&lt;')}</pre>"
    robust = warp.summary(kind="HC1")
    assert robust.endswith("Standard errors: HC1.")
    assert "0.1354" in robust  # of the intercept: HC0 0.1277 times sqrt(54 / 48)


def test_summary_says_what_is_missing() -> None:
    data = {
        "y": [1.0, 3.0, 2.0, 6.0, 4.0, 9.0, np.nan], "x": [0.0, 1, 2, 3, 4, 5, 6],
        "z": [0.0, 2, 4, 6, 8, 10, 12], "w": [1.0, 0, 1, 1, 0, 1, 0],
    }  # fmt: skip
    with pytest.warns(jn.DataWarning), pytest.warns(jn.CollinearityWarning):
        fit = jn.fit_glm("y ~ x + z + w", data, fix={"w": 0.5})
    text = fit.summary()
    assert "aliased" in text
    assert "held" in text
    assert "Aliased (linearly dependent on others): z." in text
    assert "1 row(s) with missing values were left out." in text
    assert np.isnan(fit.bse["w"])
    assert fit.params["w"] == 0.5
    assert np.isnan(fit.params["z"])
    assert fit.df_resid == 4  # six rows, intercept and x


@pytest.mark.parametrize(
    "key",
    [
        "gaussian_identity_mtcars",
        "binomial_logit_birthwt",
        "gamma_log_airquality",
        "poisson_log_warpbreaks",
    ],
)
def test_predictions_and_their_errors(key: str) -> None:
    c, fit = case("families", key), fitted("families", key)
    expected = c["predict"]
    new = pd.DataFrame(expected["newdata"])
    for column, levels in c.get("factor_levels", {}).items():
        if column in new:
            new[column] = pd.Categorical(new[column].astype(str), levels)
    for kind in ("link", "response"):
        found = fit.predict(new, type=kind, interval="confidence")
        assert_allclose(fit.predict(new, type=kind), expected[kind], rtol=1e-8)
        assert_allclose(found["fit"], expected[kind], rtol=1e-8)
        assert_allclose(found["std_error"], expected[f"{kind}_se"], rtol=1e-6)
    ends = fit.predict(new, type="link", interval="confidence", level=0.9)
    width = np.asarray(ends["high"] - ends["low"]) / np.asarray(ends["std_error"])
    assert_allclose(width, 2 * 1.6448536269514722, rtol=1e-9)


def test_terms_add_up_to_the_link(claims: Any, insurance: pd.DataFrame) -> None:
    terms = claims.predict(type="terms")
    assert list(terms.columns) == ["District", "Group", "Age"]
    total = np.asarray(terms).sum(1) + claims.params["(Intercept)"] + np.log(insurance["Holders"])
    assert_allclose(total, claims.predict(type="link"), rtol=1e-10)


def test_prediction_keeps_length_and_reads_the_exposure(
    claims: Any, insurance: pd.DataFrame
) -> None:
    new = insurance.iloc[:4].copy()
    new.loc[1, "Age"] = np.nan
    found = claims.predict(new)
    assert np.isnan(found).tolist() == [False, True, False, False]
    assert_allclose(found[[0, 2, 3]], claims.fittedvalues[[0, 2, 3]], rtol=1e-10)
    twice = claims.predict(new, exposure=2 * new["Holders"])
    assert_allclose(twice[0], 2 * found[0], rtol=1e-10)
    new["Age"] = pd.Categorical(["99"] * 4)
    with pytest.raises(jn.DataError, match="99"):
        claims.predict(new)
    with pytest.raises(jn.ModelSpecError, match="goes with newdata"):
        claims.predict(exposure=np.ones(64))


def test_gaussian_prediction_interval_is_student_t() -> None:
    """Against the textbook: mu +- t sqrt(se^2 + s^2 / w); the mixture is solved to 1e-9 or so."""
    from scipy import stats

    fit = fitted("families", "gaussian_identity_mtcars")
    new = frame(case("families", "gaussian_identity_mtcars")).iloc[:5]
    found = fit.predict(new, interval="prediction", weights=np.full(5, 2.0))
    se = np.asarray(fit.predict(new, interval="confidence")["std_error"])
    half = stats.t.ppf(0.975, 27) * np.sqrt(se**2 + fit.dispersion / 2)
    assert_allclose(found["high"] - found["fit"], half, rtol=1e-4)
    assert_allclose(found["fit"] - found["low"], half, rtol=1e-4)


def test_poisson_prediction_interval_covers(warp: Any) -> None:
    """Limits are whole numbers whose mixed probability is at least the level (by simulation, 4 MC errors)."""
    found = warp.predict(interval="prediction", level=0.8)
    low, high = np.asarray(found["low"]), np.asarray(found["high"])
    assert np.all(low == np.round(low))
    draws = warp.simulate(4000, key=1, uncertainty="asymptotic")
    inside = np.mean((draws >= low) & (draws <= high), axis=0)
    assert np.all(inside > 0.8 - 4 * np.sqrt(0.16 / 4000))
    tight = np.mean((draws > low) & (draws < high), axis=0)
    assert np.all(tight < 0.8 + 4 * np.sqrt(0.16 / 4000))


def test_statistics_of_a_model_without_intercept() -> None:
    """The null model is the offset alone (R)."""
    data = frame(case("families", "poisson_log_warpbreaks"))
    fit = jn.fit_glm("breaks ~ wool - 1", data, family="poisson")
    y = data["breaks"].to_numpy(float)
    null = 2 * np.sum(y * np.log(y) - (y - 1))  # mean exp(0) = 1
    assert_allclose(fit.null_deviance, null, rtol=1e-12)
    assert (fit.df_null, fit.df_model, fit.df_resid) == (54, 2, 52)


def test_null_deviance_refits_with_the_offset(claims: Any, insurance: pd.DataFrame) -> None:
    constant = jn.fit_glm("Claims ~ 1", insurance, family="poisson", exposure="Holders")
    assert_allclose(claims.null_deviance, constant.deviance, rtol=1e-10)
    assert_allclose(constant.null_deviance, constant.deviance, rtol=1e-10)


def test_quasi_families_have_no_likelihood() -> None:
    base, quasi = fitted(*WARP), fitted("quasi", "quasipoisson_warpbreaks")
    assert np.isnan([quasi.llf, quasi.aic, quasi.bic]).all()
    assert_allclose(np.asarray(quasi.params), np.asarray(base.params), rtol=1e-12)
    ratio = np.asarray(quasi.bse) / np.asarray(base.bse)
    assert_allclose(ratio, np.sqrt(quasi.dispersion), rtol=1e-12)
    assert_allclose(quasi.dispersion, quasi.pearson_chi2 / quasi.df_resid, rtol=1e-14)
    assert quasi.df_test == 48
    assert json.loads(quasi.to_json())["aic"] is None
    with pytest.raises(jn.ModelSpecError, match="quasi family"):
        quasi.simulate(1)


def test_residual_kinds(warp: Any) -> None:
    y, mu = warp._problem.y, warp.fittedvalues
    assert_allclose(warp.residuals("response"), y - mu, rtol=1e-12)
    assert_allclose(warp.residuals("pearson"), (y - mu) / np.sqrt(mu), rtol=1e-12)
    assert_allclose(warp.residuals("working"), (y - mu) / mu, rtol=1e-12)
    assert_allclose(np.sum(warp.residuals("deviance") ** 2), warp.deviance, rtol=1e-12)
    same = warp.residuals("quantile", key=2)
    assert np.array_equal(same, warp.residuals("quantile", key=2))
    assert not np.array_equal(same, warp.residuals("quantile", key=3))
    with pytest.raises(jn.ModelSpecError, match="'quantile'"):
        warp.residuals("raw")


def test_quantile_residuals_of_a_true_model_are_normal(claims: Any) -> None:
    """64 rows times 30 simulated data sets: mean and variance within 4 Monte Carlo errors."""
    found = np.concatenate(
        [claims.refit(y).residuals("quantile", key=k) for k, y in enumerate(claims.simulate(30))]
    )
    n = len(found)
    assert abs(found.mean()) < 4 / np.sqrt(n)
    # 10 of 64 degrees of freedom went into each fit
    assert abs(found.var() - 54 / 64) < 4 * np.sqrt(2 / n)


def test_quantile_residuals_of_grouped_binomials() -> None:
    """Sizes are the prior weights: the distribution function is that of the successes."""
    from scipy import stats

    fit = fitted("families", "binomial_menarche_logit")
    size, y, mu = fit._problem.weights, fit._problem.y, fit.fittedvalues
    upper = stats.norm.ppf(stats.binom.cdf(np.round(size * y), size, mu))
    lower = stats.norm.ppf(stats.binom.cdf(np.round(size * y) - 1, size, mu))
    found = fit.residuals("quantile")
    inside = np.isfinite(lower) & np.isfinite(upper)
    assert inside.sum() > 15
    assert np.all((found >= lower - 1e-9)[inside] & (found <= upper + 1e-9)[inside])


def test_tables(warp: Any) -> None:
    tidy = warp.tidy()
    assert list(tidy.columns) == [
        "term", "estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high",
    ]  # fmt: skip
    assert list(tidy["term"]) == warp.params.index
    robust = warp.tidy(kind="HC3", conf_int=False)
    assert_allclose(robust["std_error"], np.sqrt(np.diag(warp.vcov("HC3"))), rtol=1e-12)
    glance = warp.glance()
    assert len(glance) == 1
    assert glance["family"][0] == "poisson"
    assert_allclose(glance["aic"][0], warp.aic)
    augment = warp.augment()
    assert list(augment["wool"]) == list(frame(case(*WARP))["wool"])
    assert_allclose(augment["fitted"], warp.fittedvalues)
    codes = warp.coef_table()
    assert list(codes["signif"]) == ["***"] * 5 + [""]
    assert warp.n_nonzero() == 5
    assert warp.selected_features()[0] == "woolB"
    loaded = json.loads(warp.to_json())
    assert_allclose(loaded["params"]["woolB"], warp.params["woolB"])
    assert loaded["nobs"] == 54


def test_tables_come_in_the_kind_of_the_data() -> None:
    import polars as pl

    data = pl.DataFrame({"y": [1, 2, 3, 5, 6, 9], "x": [0.0, 1, 2, 3, 4, 5]})
    fit = jn.fit_glm("y ~ x", data, family="poisson")
    assert isinstance(fit.tidy(), pl.DataFrame)
    assert isinstance(fit.conf_int(), pl.DataFrame)
    assert isinstance(fit.influence().to_frame(), pl.DataFrame)


def test_relativities(claims: Any, insurance: pd.DataFrame) -> None:
    found = claims.relativities()
    base = found[(found["term"] == "Age") & (found["relativity"] == 1)]
    assert list(base["level"]) == [insurance["Age"].cat.categories[0]]
    share = insurance.groupby("Age", observed=True)["Holders"].sum() / insurance["Holders"].sum()
    mine = found[found["term"] == "Age"].set_index("level")["exposure_share"]
    assert_allclose(mine[share.index], share, rtol=1e-12)
    row = found[(found["term"] == "District") & (found["level"] == "4")].iloc[0]
    assert_allclose(row["relativity"], np.exp(claims.params["District4"]), rtol=1e-12)
    half = 1.959963984540054 * claims.bse["District4"]
    assert_allclose(row["conf_high"], np.exp(claims.params["District4"] + half), rtol=1e-10)
    with pytest.raises(jn.ModelSpecError, match="log link"):
        fitted("families", "binomial_logit_birthwt").relativities()


def test_relevel_puts_the_largest_exposure_first(claims: Any, insurance: pd.DataFrame) -> None:
    moved = claims.relevel()
    assert_allclose(moved.deviance, claims.deviance, rtol=1e-9)
    sizes = insurance.groupby("Age", observed=True)["Holders"].sum()
    assert f"Age{sizes.idxmax()}" not in moved.params
    found = moved.relativities()
    assert_allclose(found["relativity"][found["level"] == str(sizes.idxmax())], 1.0)


def test_metrics_are_those_of_scikit_learn() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    fit = fitted("families", "binomial_logit_birthwt")
    y, p = fit._problem.y, fit.fittedvalues
    found = fit.metrics()
    assert_allclose(found["brier"], sk.brier_score_loss(y, p), rtol=1e-12)
    assert_allclose(found["auc"], sk.roc_auc_score(y, p), rtol=1e-12)
    assert_allclose(found["log_loss"], sk.log_loss(y, p), rtol=1e-12)
    assert_allclose(found["accuracy"], sk.accuracy_score(y, p > 0.5), rtol=1e-12)
    assert_allclose(found["mae"], sk.mean_absolute_error(y, p), rtol=1e-12)


def test_metrics_by_hand() -> None:
    fit = fitted("families", "binomial_logit_birthwt")
    y, p = fit._problem.y, fit.fittedvalues
    found = fit.metrics()
    pairs = p[y == 1][:, None] - p[y == 0][None]
    auc = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert_allclose(found["auc"], auc, rtol=1e-12)
    assert_allclose(found["gini"], 2 * auc - 1, rtol=1e-12)
    assert_allclose(
        found["log_loss"], -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rtol=1e-12
    )
    assert_allclose(found["rmse"] ** 2, np.mean((y - p) ** 2), rtol=1e-12)
    assert_allclose(found["pseudo_r2"], 1 - fit.deviance / fit.null_deviance, rtol=1e-12)
    new = frame(case("families", "binomial_logit_birthwt"))
    again = fit.metrics(new)
    assert_allclose(again["auc"], auc, rtol=1e-9)
    assert_allclose(again["deviance"], fit.deviance, rtol=1e-10)
    assert_allclose(again["brier"], found["brier"], rtol=1e-10)
    part = fit.metrics(new.iloc[:50])
    assert_allclose(part["deviance"], np.sum(fit.residuals("deviance")[:50] ** 2), rtol=1e-10)


def test_draws(warp: Any) -> None:
    draws = warp.samples(4000, key=1)
    se = np.asarray(warp.bse)
    # Monte Carlo error of a mean is se / sqrt(4000), of a variance sqrt(2 / 4000): four of each
    assert np.all(np.abs(draws.mean(0) - np.asarray(warp.params)) < 4 * se / np.sqrt(4000))
    assert np.all(np.abs(draws.var(0) / se**2 - 1) < 4 * np.sqrt(2 / 4000))
    assert warp.samples(2, what="link").shape == (2, 54)
    assert np.all(warp.samples(2, what="response") > 0)
    one, two = warp.simulate(3, key=5), warp.simulate(3, key=5)
    assert one.shape == (3, 54)
    assert np.array_equal(one, two)
    assert warp.simulate(1, newdata=frame(case(*WARP)).iloc[:3]).shape == (1, 3)
    with pytest.raises(jn.ModelSpecError, match="whole number"):
        warp.simulate(0)


def test_again(warp: Any) -> None:
    y = warp.simulate(1)[0]
    data = frame(case(*WARP)).assign(breaks=y)
    direct = jn.fit_glm("breaks ~ wool * tension", data, family="poisson")
    assert_allclose(np.asarray(warp.refit(y).params), np.asarray(direct.params), rtol=1e-8)
    fewer = warp.update(". ~ . - wool:tension")
    assert fewer.params.index == ["(Intercept)", "woolB", "tensionM", "tensionH"]
    assert warp.update(family="quasi_poisson").family.name == "quasi_poisson"
    with pytest.raises(jn.DataError, match="one value per row used"):
        warp.refit(y[:5])
    with pytest.raises(jn.DataError, match="negative"):
        warp.refit(-y - 1)
    with pytest.raises(jn.ModelSpecError, match="one positional"):
        warp.update("y ~ x", data)


def test_tied_coefficients_count_once() -> None:
    """An order constraint that binds gives the fit of the merged levels: deviance, errors, df, AIC."""
    data = frame(case(*WARP)).assign(x=np.arange(54) / 10.0)
    tied = jn.fit_glm(
        "breaks ~ tension + x", data, family="poisson",
        penalty=jn.penalties.Monotone(["tensionM", "tensionH"]),
    )  # fmt: skip
    data["merged"] = np.where(data["tension"] == "L", "L", "M or H")
    merged = jn.fit_glm("breaks ~ merged + x", data, family="poisson")
    assert_allclose(tied.params["tensionH"], merged.params["mergedM or H"], rtol=1e-7)
    assert_allclose(tied.bse["tensionM"], merged.bse["mergedM or H"], rtol=1e-6)
    assert (tied.rank, tied.df_resid) == (merged.rank, merged.df_resid)
    assert_allclose([tied.deviance, tied.aic], [merged.deviance, merged.aic], rtol=1e-10)
    with pytest.raises(jn.ModelSpecError, match="without penalty and constraint"):
        tied.vcov("HC1")
    with pytest.raises(jn.ModelSpecError, match="without penalty and constraint"):
        tied.conf_int(method="profile")


def test_a_coefficient_at_its_bound_is_marked() -> None:
    data = frame(case(*WARP)).assign(x=np.arange(54) / 10.0)
    fit = jn.fit_glm("breaks ~ wool + x", data, family="poisson", bounds={"x": (0.05, None)})
    held = jn.fit_glm("breaks ~ wool + x", data, family="poisson", fix={"x": 0.05})
    assert fit.params["x"] == 0.05
    assert np.isnan(fit.bse["x"])
    assert "at its bound" in fit.summary()
    assert_allclose(fit.bse["woolB"], held.bse["woolB"], rtol=1e-8)
    assert fit.df_resid == held.df_resid == 52


def test_results_can_be_copied_and_pickled(warp: Any) -> None:
    import copy

    assert_allclose(np.asarray(copy.copy(warp).params), np.asarray(warp.params))
    empty = object.__new__(type(warp))
    with pytest.raises(AttributeError):
        empty.theta


def test_results_of_arrays() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 2)), rng.poisson(3.0, 40).astype(float)
    fit = jn.fit_glm(X, y, family="poisson", names=["a", "b"])
    assert fit.params.index == ["(Intercept)", "a", "b"]
    assert_allclose(fit.predict(X), fit.fittedvalues, rtol=1e-12)
    assert list(fit.predict(X[:3], type="terms").columns) == ["a", "b"]
    assert list(jn.anova(fit)["term"]) == ["NULL", "a", "b"]
    assert fit.wald_test("a = b")["df"] == 1
    assert_allclose(np.asarray(fit.update(max_steps=30).params), np.asarray(fit.params))
    with pytest.raises(jn.ModelSpecError, match="made from arrays"):
        fit.update(". ~ . - a")
    with pytest.raises(jn.ModelSpecError, match="by formula"):
        jn.step(fit)
    with pytest.raises(jn.DataError, match="2 columns"):
        fit.predict(X[:, :1])


def test_with_params(warp: Any) -> None:
    same = warp.with_params({})
    assert_allclose(same.llf, warp.llf, rtol=1e-12)
    assert_allclose(np.asarray(same.bse), np.asarray(warp.bse), rtol=1e-8)
    zero = warp.with_params({"woolB": 0.0, "woolB:tensionM": 0.0, "woolB:tensionH": 0.0})
    y = warp._problem.y
    assert zero.params["woolB"] == 0
    assert_allclose(zero.residuals(), y - zero.predict(), rtol=1e-12)
    assert zero.llf < warp.llf
    with pytest.raises(jn.ModelSpecError, match="Did you mean 'woolB'"):
        warp.with_params({"woolb": 0.0})


def test_what_is_not_built_says_so(warp: Any) -> None:
    with pytest.raises(jn.ModelSpecError, match="not built yet"):
        warp.save("x")
    with pytest.raises(jn.ModelSpecError, match="not built yet"):
        warp.plot.lift()
    with pytest.raises(AttributeError, match="Did you mean 'deviance'"):
        warp.devience


def test_family_parameters_by_name() -> None:
    c = case("negbinomial", "quine_main")
    fit = jn.fit_glm(c["formula"], frame(c), family="negative_binomial")
    assert fit.family_params.index == ["theta"]
    assert fit.theta == fit.family_params["theta"]
    assert_allclose(float(np.asarray(fit.family.theta)), c["theta"], rtol=1e-7)
    assert f"theta:{c['theta']:>31.6g}"[:20].split()[0] in fit.summary()
    fixed = jn.fit_glm(c["formula"], frame(c), family=jn.families.NegativeBinomial(2.0))
    assert fixed.theta == 2.0
    assert len(fixed.family_params) == 0


def test_compare_and_table(warp: Any) -> None:
    small = warp.update(". ~ . - wool:tension")
    found = compare(small, warp)
    assert list(found["model"]) == [warp.formula, small.formula]
    assert_allclose(found["delta_aic"], [0.0, small.aic - warp.aic])
    assert_allclose(np.sum(found["weight"]), 1.0)
    text = table(small, warp, stat="ci", names=["main", "full"])
    assert text.splitlines()[0].split() == ["main", "full"]
    assert "woolB:tensionM" in text
    assert table(warp, format="html").startswith("<table>")
    assert table(warp, format="latex").startswith(r"\begin{tabular}{lr}")
    assert table(warp, format="markdown").splitlines()[1] == "|:--|--:|"
    with pytest.raises(jn.ModelSpecError, match="no likelihood"):
        compare(warp, fitted("quasi", "quasipoisson_warpbreaks"))
    with pytest.raises(jn.ModelSpecError, match="different data"):
        compare(warp, fitted("families", "gaussian_identity_mtcars"))


def test_diagnostic_plot_shows_the_data_behind_it() -> None:
    pytest.importorskip("matplotlib")
    fit = fitted("families", "binomial_logit_birthwt")
    data = fit.plot.diagnostics_data()
    assert_allclose(data["leverage"], fit.influence().leverage)
    assert_allclose(data["quantile_residual"], fit.residuals("quantile"))
    axes = fit.plot.diagnostics()
    assert len(axes) == 4
    drawn = next(line for line in axes[3].lines if line.get_marker() == "o")
    assert_allclose(drawn.get_xdata(), data["leverage"])
    assert "Quantile residual" in axes[0].get_ylabel()
    ordinary = jn.fit_glm(
        "mpg ~ wt",
        frame(case("families", "gaussian_identity_mtcars")),
        family=jn.families.StudentT(df=4.0),
    )
    assert "by row" in ordinary.plot.diagnostics()[3].get_title(loc="left")  # no leverages
    quasi = fitted("quasi", "quasipoisson_warpbreaks").plot.diagnostics()
    assert "Deviance residual" in quasi[0].get_ylabel()


def test_anova_is_a_function_whatever_was_imported_before() -> None:
    """A module of the same name would take its place in the package."""
    importlib.import_module("jaxnlme.results.term_tests")
    assert callable(jn.anova)
    assert callable(importlib.import_module("jaxnlme.results").anova)


def test_results_are_lazy(warp: Any) -> None:
    """Nothing is computed before it is asked for: a result costs next to nothing beyond the fit."""
    began = time.perf_counter()
    for _ in range(20):
        result = make_results(**warp._parts())
    assert (time.perf_counter() - began) / 20 < 0.005
    held = {"_rows", "_evaluator", "_variance", "deviance", "llf", "null_deviance", "_conditional"}
    assert not held & set(result.__dict__)
