"""Expressions: R's reading, values in numpy and JAX, and everything that must be refused."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlme._errors import FormulaError
from jaxnlme.design.expressions import (
    deparse,
    deparse_number,
    parse,
    parse_formula,
    parse_parameter_formulas,
    parse_tree,
)

ENV = {"x": 2.0, "y": 5.0, "a b": 7.0, "body.wt": 3.0, "_z": 1.0}
VALUES = {
    "-2^2": -4.0,
    "2^-1": 0.5,
    "2^3^2": 512.0,
    "2**3": 8.0,
    "-2*3+4/2": -4.0,
    "1 - 2 - 3": -4.0,
    "8/4/2": 1.0,
    "`a b` + body.wt": 10.0,
    "x^0.5": math.sqrt(2.0),
    "I(x - 70)": -68.0,
    "log(x, base=2)": 1.0,
    "log(8, 2)": 3.0,
    "log10(100) + log2(8) + log1p(0)": 5.0,
    "exp(1) - expm1(1)": 1.0,
    "sqrt(abs(-x*8))": 4.0,
    "sin(pi/2) + cos(0) + tan(0) + atan(0)": 2.0,
    "floor(2.7) + ceiling(2.1)": 5.0,
    "pmin(x, y, 1) + pmax(x, y)": 6.0,
    "ifelse(x > 1 & !(x == 3), 1, 2)": 1.0,
    "ifelse(x > 2 | x <= 1, 1, 2)": 2.0,
    "plogis(0) + qlogis(0.5) + pnorm(0) + qnorm(0.5)": 1.0,
    "plogis(3, 1, 2)": 1 / (1 + math.exp(-1.0)),
    "pnorm(3, mean=1, sd=2)": 0.8413447460685429,
    "gamma(5) + lgamma(1)": 24.0,
    "ifelse(TRUE, 1, 2)": 1.0,
    "1e-3*1E3 + .5 + 5L": 6.5,
}


@pytest.mark.x64
@pytest.mark.parametrize("text", list(VALUES))
def test_values_in_numpy_and_jax(text: str) -> None:
    expression = parse(text)
    # one unit in the last place of a value of order 1, a few operations
    assert float(expression.evaluate(ENV)) == pytest.approx(VALUES[text], rel=1e-14)
    in_jax = expression.evaluate({k: jnp.asarray(v) for k, v in ENV.items()}, jnp)
    assert float(in_jax) == pytest.approx(VALUES[text], rel=1e-13)
    assert float(parse(expression.text).evaluate(ENV)) == pytest.approx(VALUES[text], rel=1e-14)


def test_names_in_order_of_appearance() -> None:
    assert parse("b*`my x` + pi*exp(a.1) + b").names == ("b", "my x", "a.1")


def test_equal_text_is_equal_and_hashes_alike() -> None:
    assert parse("x  +1") == parse("x + 1")
    assert hash(parse("x**2")) == hash(parse("x^2"))
    assert parse("x + 1") != parse("x + 2")


@pytest.mark.x64
def test_gradients_pass_through() -> None:
    expression = parse("x^2 + lgamma(x) + plogis(x)")
    slope = jax.grad(lambda x: expression.evaluate({"x": x}, jnp))(2.0)
    expected = 4.0 + (1 - np.euler_gamma) + math.exp(-2) / (1 + math.exp(-2)) ** 2
    assert float(slope) == pytest.approx(expected, rel=1e-12)
    at_zero = jax.grad(lambda x: parse("x^2 + x^1").evaluate({"x": x}, jnp))(0.0)
    assert float(at_zero) == 1.0


def test_labels_compare_but_do_not_add() -> None:
    labels = np.array(["u", "w"], dtype=object)
    np.testing.assert_array_equal(parse('g == "w"').evaluate({"g": labels}), [False, True])
    for text in ("g + 1", "log(g)", "-g", 'g < "w"'):
        with pytest.raises(FormulaError, match="factor or text"):
            parse(text).evaluate({"g": labels})


def test_booleans_count_as_zero_and_one() -> None:
    flags = np.array([True, True, False])
    np.testing.assert_array_equal(parse("b + b").evaluate({"b": flags}), [2.0, 2.0, 0.0])
    np.testing.assert_array_equal(parse("1 - b").evaluate({"b": flags}), [0.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("I(Wt-70)", "I(Wt - 70)"),
        ("a/b*c^2", "a/b * c^2"),
        ("bs(x1,df=5)", "bs(x1, df = 5)"),
        ("x=='w'", 'x == "w"'),
        ("c([1,2],3)", "c(c(1, 2), 3)"),
        ("(1, 2)", "c(1, 2)"),
        ("log(True)", "log(TRUE)"),
        ("`my x`+`x`", "`my x` + x"),
        ("-x**2", "-x^2"),
        ("b %in% a", "b %in% a"),
    ],
)
def test_deparse_as_r(text: str, printed: str) -> None:
    assert deparse(parse_tree(text)) == printed


@pytest.mark.parametrize(
    ("value", "printed"),
    [(100000.0, "1e+05"), (123456.0, "123456"), (0.1, "0.1"), (1 / 3, "0.333333333333333"),
     (1e-4, "1e-04"), (2.5, "2.5"), (1e-15, "1e-15"), (70.0, "70"), (0.0, "0")],
)  # fmt: skip
def test_numbers_print_as_in_r(value: float, printed: str) -> None:
    assert deparse_number(value) == printed


REFUSED = {
    "__import__('os').system('x')": "not allowed",
    "x.__class__": "attribute access",
    "log(x).real": "attribute access",
    "np.log(x)": "'np.log' is not allowed",
    "os.system('ls')": "not allowed",
    "import os": "'import' is not allowed",
    "lambda y: 1": "'lambda' is not allowed",
    "x[1]": "subscript",
    "log(x)[0]": "subscript",
    "{x}": "not allowed",
    "x; y": "not allowed",
    "x@y": "not allowed",
    "x$y": "not allowed",
    "x <- 1": "assignment",
    "eval('1')": "not allowed",
    "open('f')": "'open' is not allowed",
    "logg(x)": "Did you mean 'log'",
    "x:y": "formula operator",
    "log(x": "never closed",
    "x)": "not open",
    "(x": "never closed",
    "c(1, 2]": r"expected '\)'",
    "a b": "operator is missing",
    "x +": "ends where",
    "* x": "needed before '\\*'",
    "x = 3": "'=='",
    "'abc": "never closed",
    "log(x=1, 2)": "unnamed argument follows",
    "log(x=1, x=2)": "given twice",
    "": "an expression is needed",
}


@pytest.mark.parametrize("text", list(REFUSED))
def test_f01_f09_what_is_refused_is_quoted_with_a_caret(text: str) -> None:
    with pytest.raises(FormulaError, match=REFUSED[text]) as caught:
        parse(text)
    if text:
        quoted, caret = str(caught.value).split("\n")[-2:]
        assert quoted.strip() == text
        assert "^" in caret


def test_f01_the_caret_stands_under_the_open_parenthesis() -> None:
    with pytest.raises(FormulaError) as caught:
        parse("a + log(x")
    quoted, caret = str(caught.value).split("\n")[-2:]
    assert quoted[caret.index("^")] == "("


def test_f09_suggests_a_column() -> None:
    with pytest.raises(FormulaError, match="column of the data"):
        parse("np.sinc(x)")


def test_deep_nesting_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(FormulaError, match="nested"):
        parse("(" * 20000 + "x" + ")" * 20000)


def test_wrong_arguments_and_unknown_names() -> None:
    with pytest.raises(FormulaError, match="foo"):
        parse("log(x, foo=2)").evaluate({"x": 1.0})
    with pytest.raises(FormulaError, match="'time' has no value"):
        parse("log(time)").evaluate({"x": 1.0})


def test_functions_of_all_rows_remember() -> None:
    expression = parse("(x - mean(x)) / max(x)")
    state: dict = {}
    fitted = expression.evaluate({"x": np.array([1.0, 3.0])}, np, state)
    np.testing.assert_allclose(fitted, [-1 / 3, 1 / 3], rtol=1e-15)
    assert expression.evaluate({"x": np.array([5.0])}, np, state)[0] == 1.0
    with pytest.raises(FormulaError, match="pmax"):
        expression.evaluate({"x": 1.0})


def test_own_functions() -> None:
    double = parse("double(x) + 1", functions={"double": lambda v: 2 * v})
    assert double.evaluate({"x": 3.0}) == 7.0


def test_two_sided_and_one_sided_formulas() -> None:
    formula = parse_formula("log(conc) ~ SSfol(Dose, Time, lKe, lKa, lCl)")
    assert formula.lhs is not None
    assert (formula.lhs.text, formula.rhs) == ("log(conc)", "SSfol(Dose, Time, lKe, lKa, lCl)")
    assert parse_formula("~ a*b").lhs is None
    assert parse_formula("~ a*b").rhs == "a*b"
    for text, problem in [
        ("y ~ x ~ z", "second '~'"),
        ("y ~", "right of '~'"),
        ("y ~ (x", "never closed"),
        ("y:z ~ x", "formula operator"),
    ]:
        with pytest.raises(FormulaError, match=problem):
            parse_formula(text)


def test_parameter_formulas() -> None:
    assert parse_parameter_formulas("lKe + lKa + lCl ~ 1") == dict.fromkeys(
        ["lKe", "lKa", "lCl"], "1"
    )
    assert parse_parameter_formulas(["A ~ 1", "xmid ~ Treatment"]) == {
        "A": "1",
        "xmid": "Treatment",
    }
    assert parse_parameter_formulas("A ~ C(x, base=c(1, 2)), B ~ x") == {
        "A": "C(x, base=c(1, 2))",
        "B": "x",
    }
    assert list(parse_parameter_formulas("`my p` + B ~ 1")) == ["my p", "B"]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [("A ~ 1, A ~ x", "'A' has two formulas"), ("~ 1", "names no parameter"),
     ("A*B ~ 1", "joined by"), (["A ~ 1", 3], "int"), ("A ~ (x", "never closed"),
     (7, "int"), ({"A": "1"}, "dict")],
)  # fmt: skip
def test_wrong_parameter_formulas(spec: object, problem: str) -> None:
    with pytest.raises(FormulaError, match=problem):
        parse_parameter_formulas(spec)
