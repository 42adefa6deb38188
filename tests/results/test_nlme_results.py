"""Methods of ``NLMEResults`` against R's methods (``door_*.json``) and against what they claim to be.

R's values carry R's own stopping tolerance, stored in each file (1e-7 to 1e-9 in the parameters): estimates
and everything linear in them agree to 1e-5 relative. Limits of variance parameters rest on R's numerical
Hessian (``apVar``, steps of about 1e-4): 1e-3.
"""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest
from nlme.cases import case

import jaxnlme as jn
from helpers import data, reference, vector

DOORS = ["theoph_diag2", "co2_cov_full2", "pbg_nested"]
THEOPH = data("theoph")
SSFOL = "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)"
OPTIONS = {
    "group": "Subject", "fixed": "lKe + lKa + lCl ~ 1", "random": "lKa + lCl ~ 1", "covariance": "diagonal",
    "start": {"lKe": -2.4, "lKa": 0.45, "lCl": -3.2},
}  # fmt: skip


def theoph(df=THEOPH, model=SSFOL, **options):
    return jn.fit_nlme(model, df, **{**OPTIONS, **options})


@functools.cache
def door(name):
    stored, call, df = case(f"{name}_ml")
    return jn.fit_nlme(call.pop("model"), df, start=stored["start"], **call)


@functools.cache
def foce():
    return theoph(method="FOCE")


def frame_of(stored):
    return pd.DataFrame({k: v for k, v in stored.items() if k != "_row"})


# ---- against R ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOORS)
def test_summary_table_equals_r(name):
    fit, stored = door(name), reference("nlme", f"door_{name}")
    assert fit.llf == pytest.approx(stored["logLik"], abs=1e-5)
    table = fit.tidy(df_method="containment")
    fixed = table[table.effect == "fixed"]
    r = frame_of(stored["tTable"])
    assert list(fixed.term) == list(r.label)
    np.testing.assert_allclose(fixed.estimate, r.Value, rtol=1e-5)
    np.testing.assert_allclose(fixed.std_error, r["Std.Error"], rtol=1e-5)
    np.testing.assert_allclose(fixed.statistic, r["t-value"], rtol=1e-5)
    np.testing.assert_allclose(fixed.p_value, r["p-value"], rtol=1e-3, atol=1e-15)
    v = np.asarray(fit.vcov())
    d = np.sqrt(np.diag(v))
    np.testing.assert_allclose(v / np.outer(d, d), stored["corFixed"], atol=1e-5)


@pytest.mark.parametrize("name", DOORS)
def test_intervals_equal_r(name):
    fit, stored = door(name), reference("nlme", f"door_{name}")
    limits = fit.conf_int(df_method="containment").set_index("term")
    r = frame_of(stored["intervals_fixed"]).set_index("label")
    np.testing.assert_allclose(
        limits.loc[r.index, ["conf_low", "conf_high"]], r[["lower", "upper"]], rtol=1e-5
    )
    narrow = fit.conf_int(0.1, df_method="containment").set_index("term")
    r = frame_of(stored["intervals_fixed_90"]).set_index("label")
    np.testing.assert_allclose(
        narrow.loc[r.index, ["conf_low", "conf_high"]], r[["lower", "upper"]], rtol=1e-5
    )
    for level, part in stored["intervals_random"].items():
        for low, high, label in zip(part["lower"], part["upper"], part["label"], strict=True):
            what, inside = label[:-1].split("(", 1)
            if what == "cor":
                a, b = inside.split(",")
                term = f"cor({level}).{b}.{a}"
            else:
                term = f"sd({level}).{inside}"
            # 2e-3 of the distance for correlations: atanh stretches R's numerical error near -1.
            atol = 2e-3 if what == "cor" else 0.0
            np.testing.assert_allclose(
                limits.loc[term].astype(float), [low, high], rtol=1e-3, atol=atol, err_msg=term
            )
    low, _, high = stored["intervals_sigma"]
    np.testing.assert_allclose(limits.loc["sigma"].astype(float), [low, high], rtol=1e-4)


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize(("kind", "key"), [(1, "anova"), (3, "anova_marginal")])
def test_anova_of_one_fit_equals_r(name, kind, key):
    table, r = jn.anova(door(name), type=kind), frame_of(reference("nlme", f"door_{name}")[key])
    assert list(table.term) == list(r.label)
    np.testing.assert_array_equal(table.df, r.numDF)
    np.testing.assert_array_equal(table.df_resid, r.denDF)
    np.testing.assert_allclose(table.statistic, r["F-value"], rtol=2e-5)
    np.testing.assert_allclose(table.p_value, r["p-value"], rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("name", DOORS)
def test_varcorr_equals_r(name):
    table, stored = door(name).varcorr(), reference("nlme", f"door_{name}")
    rows = [r for r in stored["VarCorr"] if r[1].strip()]
    sd = table[table.sd.notna()]
    # VarCorr prints 6 to 8 digits.
    np.testing.assert_allclose(sd.variance, [float(r[0]) for r in rows], rtol=2e-5)
    np.testing.assert_allclose(sd.sd, [float(r[1]) for r in rows], rtol=2e-5)
    assert table.group.iloc[-1] == "Residual"


@pytest.mark.parametrize("name", DOORS)
def test_random_effects_and_coefficients_equal_r(name):
    fit, stored = door(name), reference("nlme", f"door_{name}")
    ours = fit.ranef()
    for level, part in stored["ranef"].items():
        r = frame_of(part).set_index("label")
        mine = ours[ours.group == level].pivot(index="level", columns="term", values="estimate")
        mine.index = mine.index.astype(str)
        # 1e-5 of the largest effect of a column.
        for term in r.columns:
            scale = np.max(np.abs(r[term]))
            np.testing.assert_allclose(mine.loc[r.index, term], r[term], atol=1e-5 * scale)
    coef = fit.coef()
    level = coef.columns[0]
    r = frame_of(stored["coef"]).set_index("label")
    values = coef.set_index(coef[level].astype(str)).drop(columns=level).loc[r.index]
    np.testing.assert_allclose(values.to_numpy(float), r.to_numpy(float), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DOORS)
def test_predictions_at_new_rows_equal_r(name):
    fit, stored = door(name), reference("nlme", f"door_{name}")
    new, r = pd.DataFrame(stored["newdata"]), stored["predict"]
    levels = [k.removeprefix("predict.") for k in r if k.startswith("predict.")]
    for level in levels:
        re = "population" if level == "fixed" else level
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jn.DataWarning)
            mine = fit.predict(new, re=re)
        want = vector(r[f"predict.{level}"])
        known = ~np.isnan(want)  # R says NA for a new group, we say the population value
        np.testing.assert_allclose(mine[known], want[known], rtol=1e-5)
    assert np.all(np.isfinite(fit.predict(new, re="population")))


@pytest.mark.parametrize("name", DOORS)
def test_residuals_equal_r(name):
    fit, stored = door(name), reference("nlme", f"door_{name}")
    np.testing.assert_allclose(fit.residuals("pearson"), vector(stored["pearson"]), atol=1e-5)
    np.testing.assert_allclose(fit.residuals(), vector(stored["response"]), atol=1e-4)
    population = fit.predict(re="population")
    np.testing.assert_allclose(
        population, vector(stored["fitted_population"]), rtol=1e-5, atol=1e-9
    )


def test_indometh_intervals_and_anova_as_r_prints_them():
    """R at its default control (5 digits printed, not fully converged): rtol 2e-3."""
    stored, call, df = case("indometh_diag3_ml")
    model = call.pop("model")
    fit = jn.fit_nlme(model, df, start=stored["start"], **call)
    row = fit.tidy(df_method="containment").set_index("term").loc["A1"]
    assert row.std_error == pytest.approx(0.26397, rel=2e-3)
    assert row.statistic == pytest.approx(10.711863, rel=2e-3)
    limits = fit.conf_int(df_method="containment").set_index("term")
    np.testing.assert_allclose(limits.loc["A1"], [2.3152879, 3.3399331], rtol=2e-3)
    np.testing.assert_allclose(limits.loc["sd(Subject).A1"], [0.29440672, 1.1087819], rtol=2e-3)
    np.testing.assert_allclose(limits.loc["sigma"], [0.06654670, 0.09980514], rtol=2e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jn.SingularFitWarning)
        full = jn.fit_nlme(model, df, start=stored["start"], **{**call, "covariance": "full"})
    table = jn.anova(fit, full)
    assert list(table.df) == [8, 11]
    # Both fits of R stop up to 0.004 away in log-likelihood: 0.0512 +- 0.003.
    assert table.p_value.iloc[1] == pytest.approx(0.0512, abs=3e-3)
    assert table.statistic.iloc[1] == pytest.approx(2 * (full.llf - fit.llf), abs=1e-12)


# ---- shapes, kinds, names -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pandas", "polars", "dict"])
def test_tables_come_in_the_callers_frame(kind):
    df = {
        "pandas": lambda: THEOPH,
        "polars": lambda: pl.from_pandas(THEOPH),
        "dict": lambda: {k: THEOPH[k].to_numpy() for k in THEOPH},
    }[kind]()
    fit = theoph(df)
    expected = pl.DataFrame if kind == "polars" else pd.DataFrame
    names = {
        "tidy": "effect group term estimate std_error statistic p_value conf_low conf_high",
        "glance": "method ngroups nobs df_model llf aic bic bic_groups sigma ofv converged n_iter message",
        "augment": "Subject conc Dose Time fitted population ires pres iwres pwres cwres",
        "ranef": "group level term estimate",
        "varcorr": "group term term2 variance sd corr",
        "conf_int": "term conf_low conf_high",
        "coef": "Subject lKe lKa lCl",
        "individual_parameters": "group parameter value",
    }
    for method, columns in names.items():
        table = getattr(fit, method)()
        assert isinstance(table, expected), method
        assert list(table.columns) == columns.split(), method
    assert fit.llf == door("theoph_diag2").llf
    assert isinstance(fit.predict(df, interval="prediction"), expected)
    assert len(fit.glance()) == 1
    given = fit.augment()["Subject"]
    assert list(given) == list(THEOPH.Subject)
    assert "int" in str(given.dtype).lower()


def test_labelled_vectors_and_numbers():
    fit = door("co2_cov_full2")
    p = fit.params
    assert list(p.index)[:2] == ["Asym.(Intercept)", "Asym.TypeMississippi"]
    assert p["lrc"] == fit.fixef()["lrc"] == np.asarray(p)[4]
    assert list(p) == list(p.to_dict().values())
    assert fit.df_model == 10
    assert fit.aic == pytest.approx(-2 * fit.llf + 20)
    assert fit.bic_groups == pytest.approx(-2 * fit.llf + 10 * np.log(12))
    assert fit.ofv == pytest.approx(-2 * fit.llf - 84 * np.log(2 * np.pi))
    for text in (
        fit.summary(),
        fit.summary(scale="natural"),
        str(fit),
        fit._repr_html_(),
        fit.to_json(),
    ):
        assert "Asym" in text
    assert fit.shrinkage().index[-1] == "eps"
    for name in ("profile", "vpc", "npde", "sir", "bootstrap", "log_likelihood"):
        with pytest.raises(jn.ModelSpecError, match="not built"):
            getattr(fit, name)


def test_inputs_are_left_alone_and_calls_repeat_bit_for_bit():
    df, before = THEOPH.copy(), THEOPH.copy()
    flag = jax.config.jax_enable_x64
    one, two = theoph(df), theoph(df)
    pd.testing.assert_frame_equal(df, before)
    assert jax.config.jax_enable_x64 == flag
    for a, b in zip(jax.tree.leaves(one.fit.params), jax.tree.leaves(two.fit.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.llf == two.llf
    assert isinstance(one.params.values, np.ndarray)


@pytest.mark.parametrize("kind", ["text", "category", "float"])
def test_kind_of_group_labels_does_not_matter(kind):
    labels = {
        "text": THEOPH.Subject.map(lambda s: f"P{s}"),
        "category": pd.Categorical(THEOPH.Subject, list(range(12, 0, -1))),
        "float": THEOPH.Subject.astype(float) + 0.5,
    }[kind]
    fit, base = theoph(THEOPH.assign(Subject=labels)), door("theoph_diag2")
    # Sums over groups run in another order: rounding only.
    assert fit.llf == pytest.approx(base.llf, abs=1e-9)
    np.testing.assert_allclose(fit.fittedvalues, base.fittedvalues, rtol=1e-7, atol=1e-7)


def test_other_data_of_the_same_bucket_compile_nothing():
    theoph()
    seen = []

    def listener(event, duration, **_):
        if "backend_compile" in event:
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        other = THEOPH[THEOPH.Subject > 2].assign(conc=lambda d: d.conc * 1.1)
        theoph(other, start={"lKe": -2.5, "lKa": 0.4, "lCl": -3.1})
    finally:
        jax.monitoring.clear_event_listeners()
    assert seen == []


def test_the_door_works_under_the_users_jit():
    inside = []

    @jax.jit
    def program(x):
        inside.append(theoph().llf)
        return x + 1

    assert program(1.0) == 2.0
    # compiled anew inside the trace: the same nine steps, equal to rounding (seen: 6e-16)
    np.testing.assert_allclose(inside, [theoph().llf], rtol=1e-14)


# ---- new data -----------------------------------------------------------------------------------


def test_prediction_keeps_the_input_length():
    fit = door("theoph_diag2")
    gaps = THEOPH.copy()
    gaps.loc[[2, 9], "Time"] = np.nan
    out = fit.predict(gaps)
    assert np.array_equal(np.flatnonzero(np.isnan(out)), [2, 9])
    np.testing.assert_allclose(
        np.delete(out, [2, 9]), np.delete(fit.fittedvalues, [2, 9]), rtol=1e-12
    )
    with pytest.warns(jn.DataWarning, match="2 of 132"):
        dropped = theoph(gaps)
    assert dropped.nobs == 130
    assert list(dropped.row_index) == [k for k in range(132) if k not in (2, 9)]
    augmented = dropped.augment()
    assert len(augmented) == 132
    assert np.array_equal(np.flatnonzero(augmented.fitted.isna()), [2, 9])


def test_individual_of_the_fits_own_groups_equals_ranef():
    fit = foce()
    own = fit.individual(THEOPH)
    known = fit.ranef(cond_var=True)
    # Two searches of the same mode, each to 1e-8 of its curvature.
    np.testing.assert_allclose(own.ranef.estimate, known.estimate, atol=1e-6)
    np.testing.assert_allclose(own.ranef.std_error, known.std_error, rtol=1e-5)
    np.testing.assert_allclose(own.predictions, fit.fittedvalues, atol=1e-5)
    one = fit.individual(THEOPH[THEOPH.Subject == 5].assign(Subject="new"))
    np.testing.assert_allclose(
        one.ranef.estimate, known[known.level == known.level.iloc[8]].estimate, atol=1e-6
    )


def test_intervals_are_ordered_and_grow():
    fit = door("theoph_diag2")
    confidence = fit.predict(interval="confidence")
    prediction = fit.predict(interval="prediction")
    population = fit.predict(re="population", interval="prediction")
    after = (THEOPH.Time > 0).to_numpy()

    def width(t):
        return (t.high - t.low).to_numpy()[after]

    assert np.all(width(confidence) > 0)
    assert np.all(width(prediction) > width(confidence))
    assert np.mean(width(population)) > np.mean(width(prediction))
    np.testing.assert_array_equal(confidence.fit, fit.fittedvalues)


def test_nested_intervals_do_not_depend_on_which_rows_are_asked_for():
    fit = door("pbg_nested")
    df = case("pbg_nested_ml")[2]
    whole = fit.predict(df, interval="confidence")
    part = fit.predict(df.iloc[[3, 20, 47]], interval="confidence")
    np.testing.assert_allclose(part, whole.iloc[[3, 20, 47]], rtol=1e-9)


def test_a_new_run_of_a_known_rabbit_keeps_the_rabbits_effect():
    fit, df = door("pbg_nested"), case("pbg_nested_ml")[2]
    new = df.iloc[[3]].assign(Run="X9")
    with pytest.warns(jn.DataWarning, match=r"'Run'.*1/X9"):
        value = fit.predict(new)
    np.testing.assert_allclose(value, fit.predict(df.iloc[[3]], re="Rabbit"), rtol=1e-12)


def test_simulations_have_the_models_moments_and_intervals_cover_them():
    fit = door("theoph_diag2")
    y = fit.simulate(2000, key=3)
    assert y.shape == (2000, 132)
    np.testing.assert_array_equal(y[:5], fit.simulate(2000, key=3)[:5])
    assert np.any(y[0] != fit.simulate(1, key=4)[0])
    start = np.flatnonzero(THEOPH.Time == 0)  # f = 0: only the residual error is left
    # sd of 24,000 normal draws: standard error sigma / sqrt(2 n) = 0.5 %; 4 of them.
    assert np.std(y[:, start]) == pytest.approx(fit.sigma, rel=0.02)
    limits = fit.predict(re="population", interval="prediction", level=0.9)
    inside = np.mean((y > limits.low.to_numpy()) & (y < limits.high.to_numpy()))
    # Linearised random effects and the spread of the fixed effects: 90 % within 3 points.
    assert inside == pytest.approx(0.9, abs=0.03)
    # Between-group variance: the mean over a subject's rows varies by psi, not by sigma / sqrt(n) only.
    per_subject = y.reshape(2000, 12, 11).mean(2).std(0)
    assert np.all(per_subject > 2 * fit.sigma / np.sqrt(11))
    wide = fit.simulate(200, key=1, uncertainty="asymptotic")
    assert wide.shape == (200, 132)


# ---- other parameters, other data ---------------------------------------------------------------


def test_with_params_at_the_estimates_is_the_fit():
    fit = foce()
    here = dict(zip(fit.tidy().term, fit.tidy().estimate, strict=True))
    same = fit.with_params(here)
    assert same.llf == pytest.approx(fit.llf, abs=1e-9)
    np.testing.assert_allclose(same.bse, fit.bse, rtol=1e-4)
    other = fit.with_params({"sigma": 0.8, "lKe": -2.4, "sd(Subject).lKa": 0.5})
    assert other.sigma == pytest.approx(0.8)
    assert other.llf < fit.llf
    for values, piece in (
        ({"lke": 1.0}, "Did you mean 'lKe'"),
        ({"sigma": -1.0}, "positive"),
        ({"sd(Subject).lKa": -1.0}, ">= 0"),
        ({"lKe": np.nan}, "finite"),
    ):
        with pytest.raises(jn.ModelSpecError, match=piece):
            fit.with_params(values)
    with pytest.raises(jn.ModelSpecError, match="LME"):
        door("theoph_diag2").with_params({"lKe": -2.4})


def test_fix_holds_parameters_and_the_profile_is_below():
    full = foce()
    held = theoph(method="FOCE", fix={"lKe": -2.4, "sigma": 0.7, "sd(Subject).lCl": 0.2})
    assert (held.params["lKe"], held.sigma) == (-2.4, pytest.approx(0.7))
    assert np.sqrt(held.psi()[1, 1]) == pytest.approx(0.2)
    assert held.df_model == full.df_model - 3
    assert held.llf < full.llf
    table = held.tidy().set_index("term")
    for name in ("lKe", "sigma", "sd(Subject).lCl"):
        assert np.isnan(table.std_error[name]), name
    assert np.isfinite(table.std_error["lKa"])
    assert "Held by fix=: lKe, sd(Subject).lCl, sigma" in held.summary()
    # At the full fit's values nothing is lost. 1e-8: both stop within 1e-4 standard errors.
    same = theoph(method="FOCE", fix={"lKe": full.params["lKe"]})
    assert same.llf == pytest.approx(full.llf, abs=1e-8)


def test_priors_maximise_the_penalised_likelihood():
    prior = jn.priors.Normal(-2.0, 0.1)
    fit = theoph(method="FOCE", priors={"lKe": prior})
    assert foce().params["lKe"] < fit.params["lKe"] < -2.0

    def penalised(value):
        at = foce().with_params({**dict(fit.params.items()), "lKe": value, "sigma": fit.sigma,
                                 **{f"sd(Subject).{t}": np.sqrt(fit.psi()[k, k])
                                    for k, t in enumerate(("lKa", "lCl"))}})  # fmt: skip
        return at.llf + float(prior.log_prob(value))

    at = fit.params["lKe"]
    # The same sum from the unpenalised fit is flat at the MAP estimate (central difference, 1e-3 of its curvature).
    h = 1e-3
    slope = (penalised(at + h) - penalised(at - h)) / (2 * h)
    curvature = (penalised(at + h) - 2 * penalised(at) + penalised(at - h)) / h**2
    assert abs(slope / curvature) < 1e-5
    assert fit.llf == pytest.approx(penalised(at) - float(prior.log_prob(at)), abs=1e-7)
    tight = theoph(method="FOCE", priors={"lKe": jn.priors.Normal(-2.3, 1e-5)})
    assert tight.params["lKe"] == pytest.approx(-2.3, abs=1e-6)
    flat = theoph(method="FOCE", priors={"fixed": jn.priors.Normal(0.0, 1e6)})
    np.testing.assert_allclose(flat.params, foce().params, rtol=1e-6)


def test_integer_weights_repeat_rows():
    weights = np.where(np.arange(132) % 11 == 4, 2, 1)
    fit = theoph(weights=weights)
    repeated = theoph(THEOPH.loc[np.repeat(np.arange(132), weights)])
    # The likelihood counts rows, so sigma differs; the curves agree where sigma / sd(b) is alike: held by FOCE.
    options = {"method": "FOCE", "fix": {"sigma": 0.7}}
    a = theoph(weights=weights, **options)
    b = theoph(THEOPH.loc[np.repeat(np.arange(132), weights)], **options)
    np.testing.assert_allclose(a.params, b.params, rtol=1e-5)
    np.testing.assert_allclose(a.psi(), b.psi(), rtol=1e-4, atol=1e-7)
    assert repeated.nobs == 144
    assert fit.nobs == 132
    zero = theoph(weights=np.where(np.arange(132) == 7, 0.0, 1.0))
    left_out = theoph(THEOPH.drop(index=7))
    assert zero.llf == pytest.approx(left_out.llf, abs=1e-8)
    assert zero.nobs == left_out.nobs == 131
    with pytest.raises(jn.ModelSpecError, match="weights= as an array"):
        fit.predict(THEOPH, interval="prediction")
    named = theoph(THEOPH.assign(w=weights), weights="w")
    assert named.llf == fit.llf
    with pytest.raises(jn.DataError, match="'w'"):
        named.simulate(newdata=THEOPH)


def natural_scale(p, x):
    ke, ka, cl = p["ke"], p["ka"], p["cl"]
    return (
        x["Dose"] * ke * ka / cl / (ka - ke) * (jnp.exp(-ke * x["Time"]) - jnp.exp(-ka * x["Time"]))
    )


NATURAL = {
    "model": natural_scale, "response": "conc", "fixed": "ke + ka + cl ~ 1", "random": "ka + cl ~ 1",
    "start": {"ke": -2.4, "ka": 0.45, "cl": -3.2}, "transform": dict.fromkeys(["ke", "ka", "cl"], "log"),
}  # fmt: skip


def test_log_transform_is_the_model_written_by_hand():
    fit, base = theoph(**NATURAL), door("theoph_diag2")
    assert fit.llf == pytest.approx(base.llf, abs=1e-8)
    np.testing.assert_allclose(fit.params, base.params, rtol=1e-6)
    np.testing.assert_allclose(fit.natural_params(), np.exp(base.params.values), rtol=1e-6)
    table = fit.individual_parameters()
    own = base.coef()
    np.testing.assert_allclose(table[table.parameter == "ka"].value, np.exp(own.lKa), rtol=1e-6)
    assert "CV%" in fit.summary(scale="natural")


@pytest.mark.parametrize("transform", ["logit", "probit"])
def test_bounded_transforms(transform):
    """ke in (0, 1): the same likelihood as log where only the fixed effect is transformed."""
    fit = theoph(**{**NATURAL, "transform": {"ke": transform, "ka": "log", "cl": "log"},
                    "start": {"ke": -2.4 if transform == "logit" else -1.4, "ka": 0.45, "cl": -3.2}})  # fmt: skip
    assert fit.llf == pytest.approx(door("theoph_diag2").llf, abs=1e-6)
    assert fit.natural_params()["ke"] == pytest.approx(
        np.exp(door("theoph_diag2").params["lKe"]), rel=1e-5
    )


def test_unused_columns_with_gaps_drop_no_rows():
    gaps = THEOPH.assign(Wt=np.where(np.arange(132) < 40, np.nan, THEOPH.Wt))
    fit = theoph(gaps, **NATURAL)
    assert fit.nobs == 132
    assert fit._spec.predictors == ("Dose", "Time")


def test_a_trajectory_model_is_the_row_model():
    whole = jn.nlme.trajectory(natural_scale, time="Time")
    fit = theoph(**{**NATURAL, "model": whole})
    assert fit.llf == pytest.approx(theoph(**NATURAL).llf, abs=1e-9)
    padded = np.asarray(fit.problem().x["Time"])
    assert np.all(np.diff(padded, axis=1) >= 0), "padding must keep times sorted"


def test_exponential_error_is_the_log_of_the_data_with_its_jacobian():
    late = THEOPH[THEOPH.Time > 0]
    fit = theoph(late, error_model="exponential")
    logs = theoph(
        late.assign(conc=np.log(late.conc)), "conc ~ log(SSfol(Dose, Time, lKe, lKa, lCl))"
    )
    jacobian = -np.sum(np.log(late.conc))
    assert fit.llf == pytest.approx(logs.llf + jacobian, abs=1e-8)
    np.testing.assert_allclose(fit.params, logs.params, rtol=1e-6)
    np.testing.assert_allclose(np.log(fit.fittedvalues), logs.fittedvalues, atol=1e-6)
    np.testing.assert_allclose(fit.predict(type="link"), logs.fittedvalues, atol=1e-6)
    assert np.all(fit.predict(interval="prediction").low > 0)


def test_covariance_by_blocks_by_matrix_and_by_numbers():
    options = {"random": "lKe + lKa + lCl ~ 1", "method": "FOCE"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jn.SingularFitWarning)
        warnings.simplefilter("ignore", jn.ConvergenceWarning)
        a = theoph(covariance=[["lKa", "lCl"], ["lKe"]], **options)
        b = theoph(covariance=np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1]]), **options)
        c = theoph(covariance=[1, 2, 2], **options)
    assert a.llf == b.llf == c.llf
    psi = a.psi()
    assert psi[0, 1] == psi[0, 2] == 0
    assert psi[1, 2] != 0
    assert "cor(Subject).lCl.lKa" in list(a.tidy().term)


# ---- again --------------------------------------------------------------------------------------


def test_refit_and_update():
    fit = foce()
    same = fit.refit(THEOPH.conc.to_numpy())
    assert same.llf == pytest.approx(fit.llf, abs=1e-8)
    y = fit.simulate(1, key=1)[0]
    again = fit.refit(y)
    fresh = theoph(THEOPH.assign(conc=y), method="FOCE")
    assert again.llf == pytest.approx(fresh.llf, abs=1e-6)
    assert again.attempts[0]["start"] == "estimates of the first fit"
    with pytest.raises(jn.DataError, match="missing or infinite in 1"):
        fit.refit(np.where(np.arange(132) == 3, np.nan, y))
    lme = fit.update(method="LME")
    assert lme.llf == door("theoph_diag2").llf, "update() must keep every argument, start= too"
    co2 = door("co2_cov_full2")
    assert co2.update(covariance="diagonal").df_model == co2.df_model - 1


def test_progress_sees_every_step_and_can_stop():
    infos = []
    fit = theoph(progress=infos.append)
    assert [i["step"] for i in infos][-1] == fit.n_iter
    assert infos[-1]["done"]
    calls = []

    def stop(info):
        calls.append(info["step"])
        return info["step"] >= 3

    with pytest.warns(jn.ConvergenceWarning, match="stopped by progress="):
        stopped = theoph(progress=stop)
    assert not stopped.converged
    assert calls[-1] == 3, "a stopped fit must not be tried again"
    assert stopped.attempts == [{**stopped.attempts[0], "result": "stopped"}]


def test_a_start_far_off_is_tried_again_and_recorded():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = theoph(max_steps=4, method="FOCE")
    assert [a["start"] for a in fit.attempts] == [
        "start",
        *(f"perturbed start {k}" for k in (1, 2, 3)),
    ]
    assert fit.llf == max(a["log_likelihood"] for a in fit.attempts)


def test_wald_test_reads_names_whole():
    fit = door("co2_cov_full2")
    v, beta = np.asarray(fit.vcov()), np.asarray(fit.params)
    one = fit.wald_test("c0 = 50")
    assert one["statistic"] == pytest.approx((beta[5] - 50) ** 2 / v[5, 5])
    two = fit.wald_test("Asym.TypeMississippi = 2*Asym.Treatmentchilled, lrc = -4.5")
    assert two["df"] == 2
    L = np.zeros((2, 6))
    L[0, 1], L[0, 2], L[1, 4] = 1, -2, 1
    d = L @ beta - [0, -4.5]
    assert two["statistic"] == pytest.approx(d @ np.linalg.solve(L @ v @ L.T, d))
    with pytest.raises(jn.FormulaError, match="no coefficient"):
        fit.wald_test("asym = 1")


def test_wald_names_that_hide_in_one_another():
    from jaxnlme.inference.wald import restriction

    L, r = restriction("c = e, cc - 2*e = 1", ["c", "e", "cc"])
    np.testing.assert_array_equal(L, [[1, -1, 0], [0, -2, 1]])
    np.testing.assert_array_equal(r, [0, 1])


def test_anova_refuses_what_cannot_be_compared():
    lme, fc = door("theoph_diag2"), foce()
    with pytest.raises(jn.ModelSpecError, match="different approximations"):
        jn.anova(lme, fc)
    with pytest.raises(jn.ModelSpecError, match="different data"):
        jn.anova(lme, theoph(THEOPH.iloc[:-1]))
    with pytest.raises(jn.ModelSpecError, match="takes fits"):
        jn.anova(lme, "other")
    reml = theoph(method="REML")
    with pytest.raises(jn.ModelSpecError, match="different"):
        jn.anova(lme, reml)
    with pytest.raises(jn.ModelSpecError, match="prior"):
        jn.anova(fc, theoph(method="FOCE", priors={"fixed": jn.priors.Normal(0.0, 1e6)}))
