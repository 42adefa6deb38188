"""``bad_inputs.json``, row by row: the class that is raised or warned, and what its message must name.

Each row's checks are calls with the pieces that the message must hold. A row of the list without a check
fails. Rows N01-P04 are those of the nonlinear models; the others come with their models.
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

import jaxnlme as jn
from helpers import data, reference

ROWS = """N01 N02 N03 N05 N06 G01 G02 G04 G05 D01 D02 D03 D04 D05 D06 D07 D08 D09 D10 D11 D13 D14 D15 D16
D17 D19 P01 P02 P04""".split()
LISTED = {row["id"]: row for row in reference("badinputs", "bad_inputs") if row["id"] in ROWS}

THEOPH = data("theoph")
MODEL = "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)"
START = {"lKe": -2.4, "lKa": 0.45, "lCl": -3.2}
OPTIONS = {
    "group": "Subject",
    "fixed": "lKe + lKa + lCl ~ 1",
    "random": "lKa + lCl ~ 1",
    "covariance": "diagonal",
    "start": START,
}


def fit(df=THEOPH, model=MODEL, **options):
    return jn.fit_nlme(model, df, **{**OPTIONS, **options})


@functools.cache
def theoph_fit():
    return fit()


def changed(**columns):
    return THEOPH.assign(**columns)


def with_nan(*rows):
    values = THEOPH.conc.to_numpy().copy()
    values[list(rows)] = np.nan
    return values


def first_order(phi, x):
    ke, ka, cl = jnp.exp(phi)
    scale = x[:, 0] * ke * ka / cl / (ka - ke)
    return scale * (jnp.exp(-ke * x[:, 1]) - jnp.exp(-ka * x[:, 1]))


CONC_VALUES, SUBJECTS = THEOPH.conc.to_numpy(), THEOPH.Subject.to_numpy()


def nlmefit(X=THEOPH[["Dose", "Time"]], y=CONC_VALUES, group=SUBJECTS):
    start = list(START.values())
    return jn.nlmefit(X, y, group, None, first_order, start, REParamsSelect=[2, 3])


# ---- models that cannot be used -----------------------------------------------------------------


def two_values(p, x):
    return jnp.stack([p["lKe"] + p["lKa"] + p["lCl"], x["Time"]])


def numpy_model(p, x):
    return np.exp(p["lKe"]) * x["Time"] + p["lKa"] + p["lCl"]


def branching(p, x):
    return p["lKe"] * x["Time"] if p["lKa"] > 0 else p["lCl"] * x["Time"]


def nan_at_start(p, x):
    return jnp.log(p["lKe"]) * x["Time"] + p["lKa"] + p["lCl"]


def misspelt(p, x):
    return p["lke"] * x["Time"]


def short(p, x):
    return p["lKe"] * x["Time"][:3]


@jn.nlme.trajectory(time="Time")
def decay(p, x):
    return (
        x["Dose"]
        * jnp.exp(p["lKe"] + p["lKa"] - p["lCl"])
        * jnp.exp(-jnp.exp(p["lKe"]) * x["Time"])
    )


def time_changed(row, value):
    times = THEOPH.Time.to_numpy().copy()
    times[row] = value
    return changed(Time=times)


PRODUCT = "conc ~ Dose*aa*bb*(exp(-exp(lKe)*Time)-exp(-exp(lKa)*Time))"
PRODUCT_OPTIONS = {
    "model": PRODUCT, "fixed": "lKe + lKa + aa + bb ~ 1", "random": "lKa ~ 1",
    "start": {"lKe": -2.4, "lKa": 0.45, "aa": 1.2, "bb": 1.7},
}  # fmt: skip
CONC = {"response": "conc"}
DUPLICATED = THEOPH.copy()
DUPLICATED.insert(0, "Time", 1.0, allow_duplicates=True)
ARRAYS = {name: THEOPH[name].to_numpy() for name in THEOPH}
BIG = changed(Dose=np.full(132, 2**53 + 1))

CHECKS = {
    "N01": [
        (lambda: fit(model=two_values, **CONC), ["two_values", "(2,)", "expected ()", "first group"]),
        (lambda: fit(model=jn.nlme.trajectory(short), **CONC), ["short", "(3,)", "expected (16,)", "first group"]),
        (lambda: fit(model=numpy_model, **CONC), ["numpy_model", "jax.numpy", "from_numpy"]),
        (lambda: fit(model=branching, **CONC), ["branching", "jnp.where", "'if'"]),
        (lambda: fit(model=nan_at_start, **CONC), ["lKe=-2.4", "group '1'", "row 0", "start="]),
        (lambda: fit(model=misspelt, **CONC), ["misspelt", "'lke'", "lKe", "Time"]),
    ],
    "N02": [
        (lambda: fit(start=[1.0, 2.0]), ["2 values", "3 coefficients", "lKe, lKa, lCl"]),
        (lambda: fit(start={**START, "lKa": -np.inf}, transform={"lKa": "log"}), ["lKa", "log of 0"]),
        (lambda: fit(start={**START, "lCl": np.nan}), ["not finite", "lCl"]),
        (lambda: fit(start={"lKe": 1.0, "lKa": 1.0}), ["no value", "lCl"]),
        (lambda: fit(start={**START, "lcl": 1.0}), ["'lcl'", "Did you mean 'lCl'"]),
        (lambda: fit(start={**START, "lCl": "big"}), ["start['lCl']", "'big'", "not a number"]),
        (lambda: fit(model="conc ~ lKe + lKa*exp(-lCl*Time)", start=None), ["start=", "lKe"]),
    ],
    "N03": [
        (lambda: fit(max_steps=2, num_retries=0), ["largest gradient", "squared step", "fit.update(start="]),
    ],
    "N05": [
        (lambda: fit(**PRODUCT_OPTIONS, method="FOCE"), ["not positive definite", "*aa", "*bb", "NaN"]),
        (lambda: fit(**PRODUCT_OPTIONS), ["not positive definite", "*aa", "*bb", "NaN"]),
    ],
    "N06": [
        (lambda: fit(time_changed(14, 0.01), decay, **CONC), ["'Time'", "unsorted", "group(s) 2", "row(s) 14"]),
        (lambda: fit(time_changed(0, -0.5), decay, **CONC), ["'Time'", "negative", "group(s) 1", "row(s) 0"]),
        (lambda: fit(time_changed(3, 0.57), decay, **CONC), ["'Time'", "repeated", "group(s) 1", "row(s) 3"]),
    ],
    "G01": [
        (lambda: fit(THEOPH[THEOPH.Subject == 3]), ["'Subject'", "random effect for 1 level", "'3'"]),
    ],
    "G02": [
        (lambda: fit(changed(Row=np.arange(132)), group="Row"), ["'Row'", "not identified", "fix={'sigma'"]),
    ],
    "G04": [
        (lambda: fit(random="lKe + lKa + lCl ~ 1"), ["sd(Subject).lKe", "boundary"]),
    ],
    "G05": [(lambda: None, [])],
    "D01": [
        (lambda: fit(changed(conc=with_nan(3, 7, 20)), missing="raise"),
         ["'conc'", "3 missing", "3, 7, 20", "missing='raise'", "missing='drop'"]),
        (lambda: fit(time_changed(4, np.nan), missing="raise"), ["'Time'", "1 missing", "4"]),
    ],
    "D02": [
        (lambda: fit(weights=with_nan(4)), ["weights", "1 row", "4"]),
        (lambda: fit(changed(w=with_nan(4, 5)), weights="w"), ["weights", "2 row", "4, 5"]),
    ],
    "D03": [
        (lambda: fit(changed(conc=np.where(np.arange(132) == 5, np.inf, THEOPH.conc))), ["'conc'", "infinite", "5"]),
        (lambda: fit(changed(Time=np.where(np.arange(132) == 8, -np.inf, THEOPH.Time), conc=with_nan(8))),
         ["'Time'", "infinite", "8", "never dropped"]),
    ],
    "D04": [
        (lambda: fit(time_changed([7, 9], np.nan).assign(conc=with_nan(3, 7))),
         ["3 of 132 rows", "'conc': 2", "'Time': 2", "row_index"]),
    ],
    "D05": [(lambda: fit(THEOPH.iloc[:0]), ["0 rows"])],
    "D06": [(lambda: fit(changed(conc=np.nan)), ["0 of 132 rows", "'conc'"])],
    "D07": [
        (lambda: fit(model="conc ~ SSfol(Dose, time, lKe, lKa, lCl)"), ["'time'", "Did you mean 'Time'"]),
        (lambda: fit(model="Conc ~ SSfol(Dose, Time, lKe, lKa, lCl)"), ["'Conc'", "Did you mean 'conc'"]),
        (lambda: fit(fixed=["lKe + lKa ~ 1", "lCl ~ Wtt"]), ["'Wtt'", "Did you mean 'Wt'"]),
        (lambda: fit(group="subject"), ["'subject'", "Did you mean 'Subject'"]),
    ],
    "D08": [
        (lambda: fit(changed(conc=THEOPH.conc.astype(str))), ["'conc'", "str", "'0.74'", "astype", "C(...)"]),
        (lambda: fit(changed(Time=THEOPH.Time.astype(str))), ["'Time'", "str", "'0.0'", "astype"]),
    ],
    "D09": [
        (lambda: fit(changed(Time=THEOPH.Time.astype(object))), ["'Time'", "object"]),
        (lambda: fit(changed(Wt=THEOPH.Wt.astype(object)), fixed=["lKe + lKa ~ 1", "lCl ~ Wt"]), ["'Wt'", "object"]),
    ],
    "D10": [
        (lambda: fit(changed(Time=pd.Timestamp("2020-01-01") + pd.to_timedelta(THEOPH.Time, unit="h"))),
         ["'Time'", "datetime64", "hours since"]),
    ],
    "D11": [(lambda: fit(changed(Dose=THEOPH.Dose.to_numpy() + 0j)), ["'Dose'", "complex128"])],
    "D13": [(lambda: fit(BIG, "conc ~ SSfol(4 + 0*Dose, Time, lKe, lKa, lCl)"), ["'Dose'", "2**53"])],
    "D14": [(lambda: fit(DUPLICATED), ["'Time'", "2 times"])],
    "D15": [
        (lambda: fit({**ARRAYS, "conc": ARRAYS["conc"][:-1]}), ["has 132", "data['conc'] has 131"]),
        (lambda: nlmefit(y=THEOPH.conc.to_numpy()[:-1]), ["X has 132", "y has 131"]),
        (lambda: theoph_fit().refit(np.ones(3)), ["(3,)", "(132,)"]),
    ],
    "D16": [
        (lambda: fit({**ARRAYS, "conc": ARRAYS["conc"][:, None]}), ["'conc'", "(132, 1)"]),
        (lambda: nlmefit(y=THEOPH[["conc"]].to_numpy()), ["(132, 1)", "ravel"]),
        (lambda: nlmefit(y=THEOPH[["conc", "Time"]].to_numpy()), ["(132, 2)"]),
    ],
    "D17": [
        (lambda: nlmefit(y=pl.Series(THEOPH.conc[:-2])), ["X has 132", "y has 130"]),
        (lambda: fit(weights=pl.Series(np.ones(100))), ["weights", "100", "132"]),
    ],
    "D19": [
        (lambda: jn.nlme.fit(theoph_fit().problem(), jn.nlme.LME()), ["float64", "64-bit", "float32"]),
    ],
    "P01": [(lambda: co2_fit().predict(CO2_NEW.assign(Type="Ontario")), ["'Type'", "Ontario", "Quebec"])],
    "P02": [
        (lambda: theoph_fit().predict(THEOPH.drop(columns="Dose")), ["'Dose'", "newdata"]),
        (lambda: theoph_fit().predict(changed(Time=THEOPH.Time.astype(str))), ["'Time'", "str"]),
    ],
    "P04": [(lambda: None, [])],
}  # fmt: skip

CO2_NEW = pd.DataFrame(
    {"Plant": ["Qn1"], "Type": ["Quebec"], "Treatment": ["chilled"], "conc": [250.0]}
)


@functools.cache
def co2_fit():
    return jn.fit_nlme(
        "uptake ~ Asym*(1 - exp(-exp(lrc)*(conc - c0)))", data("co2"), group="Plant",
        fixed=["Asym ~ Type", "lrc + c0 ~ 1"], random="Asym ~ 1",
        start={"Asym": 36.0, "lrc": -4.6, "c0": 49.0},
    )  # fmt: skip


def test_every_row_of_the_list_has_checks():
    assert sorted(LISTED) == sorted(ROWS) == sorted(CHECKS)


CASES = [(i, k) for i in ROWS if LISTED[i]["outcome"] != "ok" for k in range(len(CHECKS[i]))]


@pytest.mark.parametrize(("row", "k"), CASES)
def test_bad_input(row, k):
    call, pieces = CHECKS[row][k]
    stored = LISTED[row]
    category = TypeError if stored["class"] == "TypeError" else getattr(jn, stored["class"])
    if stored["outcome"] == "error":
        # P02 and N06 warn of nothing before they raise; pytest turns a warning into another error.
        with pytest.raises(category) as caught:
            call()
        message = str(caught.value)
    else:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
        assert {w.category for w in seen} == {category}
        assert all(w.filename == __file__ for w in seen), "a warning points into the package"
        message = str(seen[0].message)
    for piece in pieces:
        assert piece in message, message


@pytest.mark.parametrize("method", ["LME", "FOCE"])
def test_n05_flat_direction_has_no_standard_errors(method):
    with pytest.warns(jn.IdentifiabilityWarning):
        flat = fit(**PRODUCT_OPTIONS, method=method)
    assert np.all(np.isnan(np.asarray(flat.bse)))
    # The likelihood depends on the product only: the same model with one parameter less. 1e-6: tolerance.
    one = fit(model=PRODUCT.replace("aa*bb", "aa"), fixed="lKe + lKa + aa ~ 1", random="lKa ~ 1",
              start={"lKe": -2.4, "lKa": 0.45, "aa": 2.0}, method=method)  # fmt: skip
    assert flat.llf == pytest.approx(one.llf, abs=1e-6)
    assert flat.params["aa"] * flat.params["bb"] == pytest.approx(one.params["aa"], rel=1e-4)


def test_n03_result_says_what_happened():
    with pytest.warns(jn.ConvergenceWarning):
        stopped = fit(max_steps=2, num_retries=0)
    assert not stopped.converged
    assert stopped.result == jn.RESULTS.max_steps_reached
    assert [a["start"] for a in stopped.attempts] == ["start"]
    again = stopped.update(start=dict(stopped.params.items()), max_steps=200)
    assert again.converged
    assert again.llf == pytest.approx(theoph_fit().llf, abs=1e-6)


def test_n03_under_vmap_is_a_code_and_no_exception():
    base = theoph_fit()
    y = np.stack([base._y, np.full(132, np.nan)])
    with jax.enable_x64(True):
        many = base.problem(y)
        out = jax.jit(jax.vmap(lambda p: jn.nlme.fit(p, jn.nlme.LME(), max_steps=2)))(many)
    codes = np.asarray(out.result._value)
    assert codes[0] == int(jn.RESULTS.max_steps_reached._value)
    assert codes[1] == int(jn.RESULTS.nonfinite._value)


def test_n06_rows_in_any_order_are_fine_for_models_of_one_row():
    order = np.random.default_rng(0).permutation(132)
    assert fit(THEOPH.iloc[order]).llf == pytest.approx(theoph_fit().llf, abs=1e-9)


def test_n06_sorted_times_pass_and_new_data_are_checked():
    late = THEOPH[THEOPH.Time > 3]
    good = fit(late, decay, **CONC, random="lCl ~ 1", fix={"lKa": 0.45})
    np.testing.assert_array_equal(good.predict(late), good.fittedvalues)
    with pytest.raises(jn.DataError, match=r"unsorted"):
        good.predict(time_changed(14, 0.01))


def test_n01_a_numpy_model_works_through_from_numpy():
    def plain(p, x):
        ke, ka = np.exp(p["lKe"]), np.exp(p["lKa"])
        scale = x["Dose"] * ke * ka / np.exp(p["lCl"]) / (ka - ke)
        return scale * (np.exp(-ke * x["Time"]) - np.exp(-ka * x["Time"]))

    model = jn.nlme.trajectory(jn.nlme.from_numpy(plain))
    # Central differences, 1e-9 in the derivatives: the fixed point moves by less than 1e-6.
    assert fit(model=model, **CONC).llf == pytest.approx(theoph_fit().llf, abs=1e-6)


def test_g05_unsorted_groups_in_both_doors():
    order = np.random.default_rng(1).permutation(132)
    one = theoph_fit()
    other = fit(THEOPH.iloc[order])
    np.testing.assert_allclose(other.fittedvalues, one.fittedvalues[order], rtol=1e-8, atol=1e-8)
    pd.testing.assert_frame_equal(other.ranef(), one.ranef(), rtol=1e-7)
    beta, psi, stats, b = nlmefit()
    mixed = THEOPH.iloc[order]
    beta2, psi2, stats2, b2 = nlmefit(mixed[["Dose", "Time"]], mixed.conc.to_numpy(), mixed.Subject)
    np.testing.assert_allclose(psi2, psi, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(beta2, beta, rtol=1e-6)
    np.testing.assert_allclose(b2, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats2.ires, stats.ires[order], rtol=1e-5, atol=1e-6)


def test_p01_new_group_gets_the_population_value():
    new = CO2_NEW.assign(Plant="new")
    with pytest.warns(jn.DataWarning, match="'Plant'.*new") as seen:
        individual = co2_fit().predict(new)
    assert seen[0].filename == __file__
    np.testing.assert_array_equal(individual, co2_fit().predict(new, re="population"))


def test_p04_columns_are_matched_by_name():
    new = THEOPH[["Time", "conc", "Dose", "Wt", "Subject"]].assign(other="x")
    np.testing.assert_array_equal(theoph_fit().predict(new), theoph_fit().predict(THEOPH))


def test_d17_alignment_is_by_position():
    weights = np.r_[2.0, np.ones(131)]
    reversed_index = pd.Series(weights, index=np.arange(132)[::-1])
    assert fit(weights=reversed_index).llf == fit(weights=weights).llf


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        ({"max_steps": 0}, ["max_steps=0", ">= 1"]),
        ({"num_retries": -1}, ["num_retries=-1", ">= 0"]),
        ({"progress": "yes"}, ["progress='yes'"]),
        ({"key": "a"}, ["key='a'"]),
        ({"method": "FOCEI"}, ["'FOCEI'", "Did you mean 'FOCE'"]),
        ({"method": "SAEM"}, ["SAEM", "not built"]),
        ({"correlation": "AR1"}, ["correlation=", "not built"]),
        ({"variance": "VarPower"}, ["variance=", "not built", "error_model"]),
        ({"error_model": "prop"}, ["'prop'", "proportional"]),
        ({"transform": {"ka": "log"}}, ["'ka'", "Did you mean 'lKa'"]),
        ({"transform": {"lKa": "lg"}}, ["'lg'", "Did you mean 'log'"]),
        ({"covariance": [["lKa"]]}, ["lCl"]),
        ({"covariance": {"Patient": "full"}}, ["'Patient'", "Subject"]),
        ({"random": "lka ~ 1"}, ["'lka'", "Did you mean 'lKa'"]),
        ({"fix": {"lke": 1.0}}, ["'lke'", "Did you mean 'lKe'"]),
        ({"fix": {"lKe": "x"}}, ["fix['lKe']", "'x'"]),
        ({"fix": {"sigma": 1.0}}, ["LME", "FOCE"]),
        ({"priors": {"fixed": 1.0}}, ["priors", "LME"]),
        ({"priors": {"fixed": 1.0}, "method": "FOCE"}, ["priors['fixed']", "not a prior"]),
        ({"error_model": "proportional"}, ["proportional", "predicts 0", "combined"]),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options, pieces):
    with pytest.raises(jn.ModelSpecError) as caught:
        fit(**options)
    for piece in pieces:
        assert piece in str(caught.value)


def test_unknown_keyword_names_the_nearest():
    with pytest.raises(TypeError, match=r"'metod'.*Did you mean 'method'"):
        fit(metod="LME")


def test_a_response_that_is_not_positive_under_exponential_error():
    with pytest.raises(jn.DataError, match=r"'conc' is <= 0 in .* row"):
        fit(error_model="exponential")
