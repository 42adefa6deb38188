"""Dicts of terms as formulas."""

from __future__ import annotations

import numpy as np
import pytest

from jaxnlme._errors import DataError, FormulaError, ModelSpecError
from jaxnlme.design.formula import fixed_design
from jaxnlme.design.frames import read_frame
from jaxnlme.design.terms_dict import formula_from_terms

CAT = {"type": "categorical"}


@pytest.mark.parametrize(
    ("terms", "interactions", "wanted"),
    [
        ({"x": {"type": "linear"}, "my x": {}}, None, "x + `my x`"),
        ({"g": CAT}, None, "C(g)"),
        ({"g": {**CAT, "levels": ["a", 'b"c']}}, None, 'I(g == "a") + I(g == "b\\"c")'),
        ({"x": {"type": "bs", "df": 5, "degree": 2}}, None, "bs(x, df = 5, degree = 2)"),
        ({"x": {"type": "ns", "knots": [0.5, 1e-7], "boundary_knots": (0, 2)}}, None,
         "ns(x, knots = c(0.5, 1e-07), boundary_knots = c(0, 2))"),
        ({"x": {"type": "poly", "degree": 2, "raw": True}}, None, "poly(x, degree = 2, raw = TRUE)"),
        ({"sq": {"type": "expression", "expr": "x**2"}}, None, "I(x^2)"),
        ({}, None, "1"),
        ({"x": {}}, [{"x": {}, "g": CAT}], "x + x:C(g)"),
        ({"x": {}}, [{"x": {}, "g": CAT, "include_main": True}], "x + C(g) + x:C(g)"),
        ({}, [{"x": {}, "g": {**CAT, "levels": [1, 2]}}], "x:(I(g == 1) + I(g == 2))"),
    ],
)  # fmt: skip
def test_written_out(terms: dict, interactions: list | None, wanted: str) -> None:
    assert formula_from_terms(terms, interactions) == wanted


def test_the_design_is_that_of_the_formula() -> None:
    draw = np.random.default_rng(0)
    table = read_frame({"x": draw.random(30), "g": np.array(list("abc"))[np.arange(30) % 3]})
    text = formula_from_terms(
        {"x": {"type": "bs", "df": 5}, "g": CAT}, [{"x": {"type": "ns", "df": 2}, "g": CAT}]
    )
    spec, matrix = fixed_design(text, table)
    _, wanted = fixed_design("bs(x, df=5) + g + ns(x, df=2):g", table)
    np.testing.assert_array_equal(matrix, wanted)
    # df counts columns as in R (rustystats: one less)
    assert sum(label.startswith("bs(") for label in spec.labels) == 5


@pytest.mark.parametrize(
    ("terms", "interactions", "error", "problem"),
    [
        ({"x": {"type": "liner"}}, None, FormulaError, "'liner'.*'linear'"),
        ({"x": {"type": "bs", "df": 4, "knot": [1]}}, None, FormulaError, "'knot'.*'knots'"),
        ({"x": "linear"}, None, FormulaError, r"terms\['x'\] is a dict"),
        (["x"], None, FormulaError, "terms= is a dict"),
        ({"x": {"type": "bs"}}, None, FormulaError, "needs df="),
        ({"x": {"type": "bs", "df": 4, "knots": [1]}}, None, FormulaError, "needs df="),
        ({"x": {"type": "bs", "df": "many"}}, None, FormulaError, "df='many' is not a number"),
        ({"x": {"type": "bs", "k": 10}}, None, ModelSpecError, "fit_gam"),
        ({"x": {"type": "expression"}}, None, FormulaError, "needs expr="),
        ({"x": {"type": "expression", "expr": "open(x)"}}, None, FormulaError, "not allowed"),
        ({"x": {"type": "linear", "monotonicity": "increasing"}}, None, ModelSpecError, "bounds="),
        ({"x": {"type": "target_encoding"}}, None, ModelSpecError, "not built yet"),
        ({"x": {"type": "ms", "df": 4}}, None, ModelSpecError, "not built yet"),
        ({}, [{"x": {}}], FormulaError, "two columns"),
        ({}, {"x": {}, "z": {}}, FormulaError, "list of dicts"),
        ({}, [{"a": CAT, "b": CAT, "target_encoding": True}], ModelSpecError, "not built yet"),
    ],
)
def test_refused(terms: object, interactions: object, error: type, problem: str) -> None:
    with pytest.raises(error, match=problem):
        formula_from_terms(terms, interactions)  # type: ignore[arg-type]


def test_a_linear_term_of_labels_is_refused() -> None:
    table = read_frame({"g": ["a", "b"], "x": [1.0, 2.0]})
    assert formula_from_terms({"x": {}, "g": CAT}, None, table) == "x + C(g)"
    for call in (({"g": {}}, None), ({}, [{"x": {}, "g": {"type": "linear"}}])):
        with pytest.raises(DataError, match=r"terms\['g'\].*categorical"):
            formula_from_terms(*call, table)
