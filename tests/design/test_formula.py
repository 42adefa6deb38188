"""Designs against R's model.matrix, and the traps that fitted formulas must close."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from helpers import reference
from jaxnlme._errors import (
    DataError,
    DataWarning,
    ExtrapolationWarning,
    FormulaError,
    SerializationError,
)
from jaxnlme.design.expressions import parse
from jaxnlme.design.formula import DesignSpec, evaluate_numbers, fixed_design, learn_design
from jaxnlme.design.frames import read_frame, select_rows

R = reference("formula", "model_matrix")
R_DATA = {name: [row[name] for row in R["data"]] for name in R["data"][0]}
every_case = pytest.mark.parametrize("case", R["cases"], ids=lambda case: case["formula"])


@every_case
def test_names_and_values_are_those_of_r(case: dict) -> None:
    spec, matrix = fixed_design(case["formula"], read_frame(R_DATA))
    assert list(spec.labels) == case["names"]
    # 15 digits in the file; scale() and exp() reach values of order 10
    np.testing.assert_allclose(matrix, np.array(case["X"], dtype=float), rtol=0, atol=5e-14)
    assert np.linalg.matrix_rank(matrix) == case["rank"]
    assert len(spec.assign) == len(spec.labels)


@every_case
def test_a_saved_design_gives_the_same_columns(case: dict) -> None:
    spec, matrix = fixed_design(case["formula"], read_frame(R_DATA))
    again = DesignSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again.labels == spec.labels
    # new rows must meet the levels, knots and scales of the fit, not their own
    new = read_frame(R_DATA).take([3, 1])
    np.testing.assert_array_equal(again.matrix(new), matrix[[3, 1]])


# formulaic has another spelling, or none, of these
SHARED = [
    case
    for case in R["cases"]
    if not any(word in case["formula"] for word in ("ns(", "%in%", "contr", "scale"))
]


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case["formula"])
def test_the_column_space_is_formulaics(case: dict) -> None:
    from formulaic import model_matrix

    text = case["formula"].replace("^", "**").replace("I(x1**2)", "{x1**2}")
    text = text.replace("log(e)", "{np.log(e)}").replace("exp(x1)", "{np.exp(x1)}")
    theirs = np.asarray(model_matrix(text, pd.DataFrame(R_DATA), context={"np": np}), dtype=float)
    _, ours = fixed_design(case["formula"], read_frame(R_DATA))
    rank = np.linalg.matrix_rank(ours)
    assert np.linalg.matrix_rank(theirs) == rank
    assert np.linalg.matrix_rank(np.column_stack([ours, theirs])) == rank


FRAME: dict = {
    "wt": [70.0, 80.0, 65.0, 90.0, 75.0, 60.0],
    "Type": ["Quebec", "Mississippi", "Quebec", "Mississippi", "Quebec", "Mississippi"],
    "Treatment": ["chilled", "chilled", "non", "non", "chilled", "non"],
    "n": [1, 2, 3, 1, 2, 3],
    "on": [True, False, True, True, False, False],
}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("1", ["(Intercept)"]),
        ("~ 1 + wt", ["(Intercept)", "wt"]),
        ("wt - 1", ["wt"]),
        ("I(wt-70)", ["(Intercept)", "I(wt - 70)"]),
        ('I(Type == "Quebec")', ["(Intercept)", 'I(Type == "Quebec")TRUE']),
        ("on", ["(Intercept)", "onTRUE"]),
        ("0 + on", ["onFALSE", "onTRUE"]),
        ("factor(n)", ["(Intercept)", "factor(n)2", "factor(n)3"]),
        ("factor(n, levels=[3, 1, 2])",
         ["(Intercept)"] + [f"factor(n, levels = c(3, 1, 2)){k}" for k in (1, 2)]),
        ("C(n, contr.poly)", ["(Intercept)", "C(n, contr.poly).L", "C(n, contr.poly).Q"]),
        ("C(n, contr.treatment(base=2))",
         ["(Intercept)"] + [f"C(n, contr.treatment(base = 2)){k}" for k in (1, 3)]),
        ('C(Type, contr.treatment, base="Quebec")',
         ["(Intercept)", 'C(Type, contr.treatment, base = "Quebec")Mississippi']),
        ("C(n, contr.SAS)", ["(Intercept)", "C(n, contr.SAS)1", "C(n, contr.SAS)2"]),
        ("Type*Treatment",
         ["(Intercept)", "TypeQuebec", "Treatmentnon", "TypeQuebec:Treatmentnon"]),
        ("wt**1 + log(wt, base=2)", ["(Intercept)", "wt", "log(wt, base = 2)"]),
    ],
)  # fmt: skip
def test_labels(text: str, labels: list[str]) -> None:
    spec, matrix = fixed_design(text, read_frame(FRAME))
    assert list(spec.labels) == labels
    assert matrix.shape == (6, len(labels))


def test_category_order_makes_the_base_level() -> None:
    # CO2 in R: Type has the order Quebec, Mississippi; ordered factors too
    for ordered in (False, True):
        frame = pd.DataFrame(FRAME)
        frame["Type"] = pd.Categorical(
            frame["Type"], categories=["Quebec", "Mississippi"], ordered=ordered
        )
        spec, matrix = fixed_design("Type", read_frame(frame))
        assert spec.labels == ("(Intercept)", "TypeMississippi")
        np.testing.assert_array_equal(matrix[:, 1], [0, 1, 0, 1, 0, 1])


def test_every_kind_of_frame_gives_the_same_design() -> None:
    text = "Type*wt + on + factor(n)"
    _, wanted = fixed_design(text, read_frame(FRAME))
    frames = [
        pd.DataFrame(FRAME, index=[3, 3, 1, 0, 9, 9]),
        pl.DataFrame(FRAME),
        pa.table(FRAME),
    ]
    for frame in frames:
        np.testing.assert_array_equal(fixed_design(text, read_frame(frame))[1], wanted)


def test_duplicated_index_and_missing_values() -> None:
    frame = pd.DataFrame({"x": [1.0, np.nan, 3.0], "g": ["a", "b", None]}, index=[0, 0, 0])
    table = read_frame(frame)
    spec, matrix = fixed_design("x", table)
    np.testing.assert_array_equal(matrix, [[1.0, 1.0], [np.nan, np.nan], [1.0, 3.0]])
    with pytest.warns(DataWarning, match="2 of 3"):
        rows = select_rows(table, ["x", "g"])
    with pytest.warns(DataWarning, match="one level"):
        spec, matrix = fixed_design("x + g", table, rows=rows)
    assert spec.labels == ("(Intercept)", "x")
    np.testing.assert_array_equal(matrix, [[1.0, 1.0]])


def test_prediction_keeps_the_length_with_nan_where_something_is_missing() -> None:
    spec, _ = fixed_design("I(wt > 70) + Type", read_frame(FRAME))
    new = read_frame({"wt": [80.0, np.nan, 60.0], "Type": ["Quebec", "Quebec", None]})
    np.testing.assert_array_equal(spec.matrix(new), [[1, 1, 1], [np.nan] * 3, [np.nan] * 3])


def test_levels_come_from_the_rows_used() -> None:
    spec, _ = fixed_design("Type + n", read_frame(FRAME), rows=np.array([1, 3, 0]))
    assert spec.variables[0].levels == ("Mississippi", "Quebec")


def test_knots_and_scales_come_from_all_values_as_in_r() -> None:
    # model.frame evaluates ns(x) and scale(x) before it drops the rows where another column is missing
    x = np.arange(12.0)
    table = read_frame({"x": x, "g": list("aabbaabbaabc")})
    spec, matrix = fixed_design("ns(x, df=2) + I(x - mean(x)) + g", table, rows=np.arange(3, 11))
    states = dict(spec.state)
    assert states["mean(x)"] == 5.5
    assert states["ns(x, df = 2)"]["boundary"] == [0.0, 11.0]
    _, whole = fixed_design("ns(x, df=2) + I(x - mean(x)) + g", table)
    np.testing.assert_array_equal(matrix[:, :4], whole[3:11, :4])
    assert spec.variables[-1].levels == ("a", "b")
    rows = np.arange(3, 11)
    assert (
        learn_design("ns(x, df=2)", table, rows=rows).state
        == fixed_design("ns(x, df=2)", table)[0].state
    )


def test_p01_unseen_level() -> None:
    spec, _ = fixed_design("Type", read_frame(FRAME))
    with pytest.raises(DataError, match=r"'Type'.*'Ontario'.*Mississippi, Quebec"):
        spec.matrix(read_frame({"Type": ["Quebec", "Ontario"]}))
    # a category that lists the level without a row is no unseen level
    listed = pd.Categorical(["Quebec"], categories=["Ontario", "Quebec", "Mississippi"])
    np.testing.assert_array_equal(spec.matrix(read_frame({"Type": listed})), [[1.0, 1.0]])


def test_p02_missing_or_retyped_column() -> None:
    spec, _ = fixed_design("wt + factor(n) + on", read_frame(FRAME))
    full = {"wt": [1.0], "n": [1], "on": [True]}
    assert spec.matrix(read_frame(full)).shape == (1, 5)
    for name, values, problem in [
        ("wt", None, r"'wt'.*is not in data"),
        ("wt", ["80"], "'wt' held numbers"),
        ("n", ["1"], "'n' held numbers"),
        ("on", [1.0], "'on' held booleans"),
    ]:
        changed = {k: v for k, v in full.items() if k != name or values is not None}
        if values is not None:
            changed[name] = values
        with pytest.raises(DataError, match=problem):
            spec.matrix(read_frame(changed))


def test_p04_columns_are_matched_by_name() -> None:
    spec, matrix = fixed_design("wt + Type", read_frame(FRAME))
    shuffled = {"extra": ["?"] * 6, "Type": FRAME["Type"], "wt": FRAME["wt"]}
    np.testing.assert_array_equal(spec.matrix(read_frame(shuffled)), matrix)


def test_d07_absent_column() -> None:
    with pytest.raises(FormulaError, match=r"'Wt' is not in data.*'wt'"):
        fixed_design("log(Wt)", read_frame(FRAME))


@pytest.mark.parametrize(
    ("row", "values", "problem"),
    [
        ("D03", [1.0, np.inf], "infinite"),
        ("D08", ["1.5", "2"], r"'x'.*1\.5.*C\("),
        ("D09", np.array([1.0, 2.0], dtype=object), "objects"),
        ("D10", [datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)], "astype|explicitly"),
        ("D10", np.array(["2020-01-01", "2020-01-02"], dtype="M8[D]"), "explicitly"),
        ("D11", [1j, 2.0], "omplex"),
    ],
)
def test_columns_that_would_become_factors_by_accident(
    row: str, values: object, problem: str
) -> None:
    for frame in ({"x": values}, pd.DataFrame({"x": values})):
        for text in ("x", "log(x)"):
            if row == "D08" and text == "log(x)":
                continue
            with pytest.raises((DataError, FormulaError), match=problem):
                fixed_design(text, read_frame(frame))


def test_d08_labels_that_are_digits_are_asked_for() -> None:
    spec, _ = fixed_design("C(x)", read_frame({"x": ["1", "2", "2"]}))
    assert spec.labels == ("(Intercept)", "C(x)2")
    with pytest.raises(FormulaError, match="factor or text"):
        fixed_design("log(x)", read_frame({"x": ["1", "2"]}))


def test_values_that_are_not_finite_are_named() -> None:
    for text in ("log(x)", "sqrt(x)", "I(1/x)"):
        data = read_frame({"x": [1.0, -0.0 if "/" in text else -1.0, np.nan]})
        with pytest.raises(DataError, match=r"not finite in 1 rows \(rows 1\)"):
            fixed_design(text, data)


def test_x05_factor_with_one_level() -> None:
    with pytest.warns(DataWarning, match=r"'g'.*one level.*'a'"):
        spec, matrix = fixed_design("x*g", read_frame({"x": [1.0, 2.0], "g": ["a", "a"]}))
    assert spec.labels == ("(Intercept)", "x")
    assert DesignSpec.from_dict(spec.to_dict()).labels == spec.labels
    np.testing.assert_array_equal(matrix, [[1.0, 1.0], [1.0, 2.0]])


def test_x06_unused_category() -> None:
    g = pd.Categorical(["a", "c", "a"], categories=["a", "b", "c"])
    with pytest.warns(DataWarning, match=r"'g'.*without rows \('b'\)"):
        spec, matrix = fixed_design("g", read_frame({"g": g}))
    assert spec.labels == ("(Intercept)", "gc")
    assert matrix.any(axis=0).all()


def test_x07_as_many_levels_as_rows() -> None:
    table = read_frame({"id": ["a", "b", "c", "d"], "x": [1.0, 2.0, 3.0, 3.0]})
    for text in ("x + id", "factor(id):x"):
        with pytest.raises(DataError, match=r"as many levels.*\(4\).*random effect.*TE\(\)"):
            learn_design(text, table)
    assert learn_design("factor(x)", table).labels[-1] == "factor(x)3"


def test_offset_is_separate() -> None:
    table = read_frame(FRAME)
    spec, matrix = fixed_design("Type + offset(log(wt))", table)
    assert matrix.shape == (6, 2)
    assert spec.columns == ("Type", "wt")
    np.testing.assert_allclose(spec.offset(table), np.log(FRAME["wt"]), rtol=1e-15)
    assert fixed_design("Type", table)[0].offset(table) is None


def test_what_was_learned_is_used_at_new_data() -> None:
    table = read_frame({"x": [0.0, 2.0, 4.0]})
    spec, _ = fixed_design("scale(x) + I(x - mean(x)) + poly(x, 2)", table)
    new = spec.matrix(read_frame({"x": [4.0]}))
    np.testing.assert_allclose(new, [[1, 1, 2, 1 / np.sqrt(2), 1 / np.sqrt(6)]], rtol=1e-14)


def test_splines_outside_their_range_warn() -> None:
    spec, _ = fixed_design("ns(x, df=2)", read_frame({"x": np.linspace(0, 1, 9)}))
    with pytest.warns(ExtrapolationWarning, match=r"50 %.*\[0, 1\]"):
        new = spec.matrix(read_frame({"x": [0.5, 2.0]}))
    with pytest.warns(ExtrapolationWarning):
        line = spec.matrix(read_frame({"x": [3.0, 2.0, 4.0]}))
    np.testing.assert_allclose(line[0] - line[1], line[2] - line[0], atol=1e-12)
    np.testing.assert_allclose(line[1], new[1], rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("__import__('os')", "not allowed"),
        ("C(Type, os.system)", "contrast"),
        ("C(Type, contr.wrong)", "contr.treatment"),
        ("C(Type, contr.sum, base=2)", "contr.treatment"),
        ("C(Type, contr.treatment(base=9))", "base=9"),
        ('C(Type, contr.treatment, base="Oslo")', "'Oslo'"),
        ("factor(n, foo=1)", "levels="),
        ("C()", "needs a column"),
        ("bs(wt, df=2)", "at least 3"),
        ("bs(wt, knots=c(500))", "knots"),
        ("bs(wt, knots=c(80, 70))", "knots"),
        ("poly(wt, 9)", "different values"),
        ("poly(wt, 2, foo=1)", "foo"),
        ("poly(wt, n)", "numbers"),
        ("2/wt", "cannot be a term"),
        ("s(wt)", "fit_gam"),
        ("TE(Type)", "workbench"),
        ("f(wt)", "'f' is not allowed"),
        ("0", "no column left"),
        ("(1 | Type)", "fit_mixed.*group="),
        ("c(wt, n)", "one value per row"),
        ("I(Type)", "labels, not numbers"),
    ],
)
def test_refused(text: str, problem: str) -> None:
    with pytest.raises(FormulaError, match=problem):
        fixed_design(text, read_frame(FRAME))


def test_a_saved_design_can_not_run_code() -> None:
    saved = fixed_design("wt", read_frame(FRAME))[0].to_dict()
    for formula in ("__import__('os')", "open(wt)"):
        evil = {**saved, "formula": formula}
        evil["variables"] = [{**saved["variables"][0], "text": formula}]
        with pytest.raises(FormulaError, match="not allowed"):
            DesignSpec.from_dict(evil)
    with pytest.raises(SerializationError, match="variables"):
        DesignSpec.from_dict({**saved, "formula": "wt + n"})
    with pytest.raises(SerializationError, match="KeyError"):
        DesignSpec.from_dict({"formula": "wt"})


def test_response_expressions() -> None:
    table = read_frame({"conc": [1.0, np.nan]})
    np.testing.assert_array_equal(evaluate_numbers(parse("log(conc)"), table), [0.0, np.nan])
    with pytest.raises(DataError, match=r"response log.*rows 0"):
        evaluate_numbers(parse("log(conc - 1)"), table, "response")
    with pytest.raises(FormulaError, match="response column 'Conc'"):
        evaluate_numbers(parse("log(Conc)"), table, "response")


def test_treatment_contrasts_load_no_formula_library() -> None:
    code = (
        "import sys\n"
        "from jaxnlme.design.formula import fixed_design\n"
        "from jaxnlme.design.frames import read_frame\n"
        "fixed_design('x*g + I(x^2) - 1', read_frame({'x': [1., 2.], 'g': ['a', 'b']}))\n"
        "print([m for m in ('formulaic', 'pandas', 'narwhals', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['scipy']")


def test_the_design_does_not_warn_by_itself() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed_design("Type*Treatment + log(wt)", read_frame(pd.DataFrame(FRAME)))
