"""Left sides of formulas, and the formula as a whole."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest

from jaxnlme._errors import DataError, DataWarning, FormulaError, FormulaWarning
from jaxnlme.design.formula import fixed_design
from jaxnlme.design.frames import read_frame
from jaxnlme.design.response import read_formula, read_response, response_columns

FRAME: dict = {
    "y": [1.0, np.nan, 3.0],
    "dead": [1, 2, 3],
    "n": [4, 4, 4],
    "on": [True, False, True],
    "who": ["b", "a", "b"],
    "gone": ["b", None, "a"],
    "n obs": [7, 8, 9],
}


@pytest.mark.parametrize(
    ("lhs", "values", "levels", "columns"),
    [
        ("y", [1, np.nan, 3], None, ("y",)),
        ("log(y)", [0, np.nan, np.log(3)], None, ("y",)),
        ("y^2", [1, np.nan, 9], None, ("y",)),
        ("dead/n", [0.25, 0.5, 0.75], None, ("dead", "n")),
        ("on", [1, 0, 1], None, ("on",)),
        ("who", [1, 0, 1], ("a", "b"), ("who",)),
        ("gone", [1, np.nan, 0], ("a", "b"), ("gone",)),
        ("factor(dead)", [0, 1, 2], (1, 2, 3), ("dead",)),
        ("factor(who, levels=c('b', 'a'))", [0, 1, 0], ("b", "a"), ("who",)),
        ('who == "b"', [1, 0, 1], None, ("who",)),
        ("dead > 1", [0, 1, 1], None, ("dead",)),
        ("y > 1", [0, np.nan, 1], None, ("y",)),
        ("`n obs`", [7, 8, 9], None, ("n obs",)),
        ("cbind(dead, n - dead)", [[1, 3], [2, 2], [3, 1]], None, ("dead", "n")),
        ("cbind(dead, y)", [[1, 1], [2, np.nan], [3, 3]], None, ("dead", "y")),
    ],
)
@pytest.mark.parametrize("kind", [dict, pd.DataFrame, pl.DataFrame])
def test_left_sides(kind: type, lhs: str, values: list, levels: object, columns: tuple) -> None:
    frame = FRAME if kind is dict else kind(FRAME)
    found, found_levels, used = read_response(lhs, read_frame(frame))
    np.testing.assert_array_equal(found, np.array(values, dtype=float))
    assert found.dtype == np.float64
    assert (found_levels, used, response_columns(lhs)) == (levels, columns, columns)


def test_levels_of_categories_and_of_new_data() -> None:
    order = pd.Categorical(["hi", "lo", "hi"], categories=["lo", "mid", "hi"], ordered=True)
    table = read_frame({"g": order})
    with pytest.warns(
        DataWarning, match=r"response 'g'.*without rows \('mid'\); they are left out"
    ):
        values, levels, _ = read_response("g", table)
    np.testing.assert_array_equal(values, [1, 0, 1])
    assert levels == ("lo", "hi")
    # new rows are read against the levels of the fit
    new = read_frame({"g": ["hi", "hi"]})
    np.testing.assert_array_equal(read_response("g", new, levels)[0], [1, 1])
    with pytest.raises(DataError, match=r"response.*'top'"):
        read_response("g", read_frame({"g": ["top"]}), levels)


@pytest.mark.parametrize(
    ("values", "wanted", "levels"),
    [
        ([1, 2], [1, 2], None),
        (np.array([True, False]), [1, 0], None),
        (["u", "t"], [1, 0], ("t", "u")),
        (pd.Categorical(["u", "t"], categories=["u", "t"]), [0, 1], ("u", "t")),
        (pl.Series(["u", "t"]), [1, 0], ("t", "u")),
        (pd.Series([5.0, np.nan], index=[3, 3]), [5, np.nan], None),
    ],
)
def test_arrays(values: object, wanted: list, levels: object) -> None:
    found, found_levels, columns = read_response(values)
    np.testing.assert_array_equal(found, np.array(wanted, dtype=float))
    assert (found_levels, columns) == (levels, ())


def test_arrays_are_left_alone() -> None:
    y = np.array([1.0, 2.0])
    read_response(y)[0][:] = 9
    read_response("y", read_frame({"y": y}))[0][:] = 9
    np.testing.assert_array_equal(y, [1, 2])


@pytest.mark.parametrize(
    ("lhs", "error", "problem"),
    [
        ("Y", FormulaError, "response column 'Y'.*'y'"),
        ("cbind(dead)", FormulaError, "two columns"),
        ("cbind(dead, n, y)", FormulaError, "two columns"),
        ("log(dead - 1)", DataError, r"response log\(dead - 1\) is not finite.*rows 0"),
        ("open(y)", FormulaError, "not allowed"),
        ("y[1]", FormulaError, "subscript"),
        ("cbind(dead, open(y))", FormulaError, "not allowed"),
        ("__import__('os')", FormulaError, "not allowed"),
    ],
)
def test_refused(lhs: str, error: type, problem: str) -> None:
    with pytest.raises(error, match=problem):
        read_response(lhs, read_frame(FRAME))


@pytest.mark.parametrize("y", [np.ones((3, 1)), np.ones((3, 2)), 4.0])
def test_d16_arrays_of_another_shape(y: object) -> None:
    with pytest.raises(DataError, match=r"y has shape \("):
        read_response(y)


def test_d08_numbers_stored_as_text() -> None:
    with pytest.raises(DataError, match=r"'y'.*'1.5'.*C\("):
        read_response("y", read_frame({"y": ["1.5", "2"]}))
    assert read_response("C(y)", read_frame({"y": ["1", "2"]}))[1] == ("1", "2")


def test_the_whole_formula() -> None:
    table = read_frame(FRAME)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_formula("log(y) ~ dead + I(n^2)", table) == ("log(y)", "dead + I(n^2)")
        # '.' is every column that the left side does not use
        left, right = read_formula("cbind(dead, n - dead) ~ . - gone - 1", table)
        assert right == "(y + on + who + gone + `n obs`) - gone - 1"
        spec, _ = fixed_design(
            read_formula("n ~ dead*. ", read_frame({"n": [1, 2], "dead": [1, 3], "x": [4, 5]}))[1],
            read_frame({"dead": [1.0, 3.0], "x": [4.0, 5.0]}),
        )
    assert spec.labels == ("(Intercept)", "dead", "x", "dead:x")
    for text, problem in [
        ("dead + n", "two-sided"),
        ("~ dead", "two-sided"),
        ("y ~ log(.)", "inside log"),
        ("y ~ (dead", "never closed"),
        ("y ~", "right of"),
        ("y ~ dead ~ n", "second"),
    ]:
        with pytest.raises(FormulaError, match=problem):
            read_formula(text, table)
    with pytest.raises(FormulaError, match="no column"):
        read_formula("x ~ .", read_frame({"x": [1.0]}))


def test_f03_the_response_on_the_right() -> None:
    table = read_frame(FRAME)
    with pytest.warns(FormulaWarning, match="'y' is also on the right"):
        _, right = read_formula("y ~ dead*y + n", table)
    spec, _ = fixed_design(right, table)
    assert spec.labels == ("(Intercept)", "dead", "n")
    with pytest.warns(FormulaWarning, match="'y' is also used"):
        assert read_formula("log(y) ~ dead + y", table)[1] == "dead + y"
