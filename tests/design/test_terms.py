"""The term algebra against R's rules, and against formulaic's parser on random formulas."""

from __future__ import annotations

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from jaxnlme._errors import FormulaError
from jaxnlme.design.terms import expand

EXPANSIONS = {
    "1": ((), True),
    "0": ((), False),
    "-1": ((), False),
    "0 + 1": ((), True),
    "~ a + b": (("a", "b"), True),
    "a*b*d": (("a", "b", "d", "a:b", "a:d", "b:d", "a:b:d"), True),
    "a/b": (("a", "a:b"), True),
    "(a + b)/d": (("a", "b", "a:b:d"), True),
    "b %in% a": (("b:a",), True),
    "(a + b + d)^2": (("a", "b", "d", "a:b", "a:d", "b:d"), True),
    "(a + b + d)^2 - a:b": (("a", "b", "d", "a:d", "b:d"), True),
    "a:a": (("a",), True),
    "a + a": (("a",), True),
    "b:a + a": (("a", "b:a"), True),
    "a*b - a - 1": (("b", "a:b"), False),
    "a - (b + 1)": (("a",), False),
    "log(x):a + I(x^2)": (("I(x^2)", "log(x):a"), True),
    "a + offset(log(e))": (("a",), True),
    "x == 2": (("x == 2",), True),
}


@pytest.mark.parametrize("text", list(EXPANSIONS))
def test_expansion(text: str) -> None:
    terms = expand(text)
    assert (terms.labels, terms.intercept) == EXPANSIONS[text]


def test_offsets_are_set_apart() -> None:
    terms = expand("offset(log(e)) + a + offset(b)")
    assert len(terms.offsets) == 2
    assert terms.names == ("a",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a + 2", "number 2 cannot be a term"),
        ("a^b", "whole number"),
        ("x^0.5", r"write I\(x\^0.5\)"),
        ("a ~ b", "right side"),
        ("a + .", r"'\.'"),
        ("a + 'text'", "cannot be a term"),
        ("1 | g", "parentheses"),
        ("1 || g", r"in parentheses, for example \(1 \|\| g\)"),
        ("(1 | )", "grouping column.*parentheses"),
        ("s(x):a", "by="),
        ("(1 | g)*a", "interaction"),
        ("s(x, q=3)", "no argument 'q'; it has k"),
        ("s(x, k=z)", "k= takes a number"),
        ("s(k=3)", "needs a variable"),
        ("TE(a, b)", "one column"),
        ("a:offset(b)", "interaction"),
        ("offset(a, b)", "one argument"),
    ],
)
def test_what_is_no_term(text: str, problem: str) -> None:
    with pytest.raises(FormulaError, match=problem):
        expand(text)


def formulas(depth: int = 3) -> st.SearchStrategy[str]:
    leaf = st.sampled_from(["a", "b", "d", "x"])
    if depth == 0:
        return leaf
    inner = formulas(depth - 1)
    joined = st.tuples(inner, st.sampled_from("+ * : / -".split()), inner).map(
        lambda t: f"({t[0]} {t[1]} {t[2]})"
    )
    power = st.tuples(inner, st.integers(2, 3)).map(lambda t: f"({t[0]})^{t[1]}")
    return st.one_of(leaf, joined, power)


@settings(max_examples=150, deadline=None)
@given(formulas())
def test_expansion_agrees_with_formulaic(text: str) -> None:
    from formulaic.parser import DefaultFormulaParser

    try:
        theirs = DefaultFormulaParser().get_terms(text.replace("^", "**"))
    except TypeError:  # formulaic cannot nest in nothing: (a - a) / b
        reject()
    theirs = {frozenset(f.expr for f in term.factors) for term in theirs} - {frozenset({"1"})}
    ours = {frozenset(label.split(":")) for label in expand(text).labels}
    assert ours == theirs


def test_contrasts_where_the_margin_lies_inside_an_earlier_term() -> None:
    # R's TermCode asks for containment, not equality: {b} lies inside a:b
    terms = expand("a:b + b:g")
    assert terms.labels == ("a:b", "b:g")
    assert terms.coding((True, True, True)) == ((True, True), (True, False))


def test_special_terms_are_set_apart() -> None:
    terms = expand(
        "a*x + s(x, k=10, bs='cr', by=g, m=c(2, -1)) + te(x, log(z), k=[5, 4], fx=TRUE)"
        " + (1 + t | a/b) + diag(0 + t || g) + TE(brand, prior_weight=2) - s(z) + offset(e)"
    )
    assert terms.labels == ("a", "x", "a:x")
    found = [(t.function, t.arguments, dict(t.options)) for t in terms.special]
    assert found == [
        ("s", ("x",), {"k": 10, "bs": "cr", "by": "g", "m": (2, -1)}),
        ("te", ("x", "log(z)"), {"k": (5, 4), "fx": True}),
        ("|", ("1 + t", "a/b"), {}),
        ("||", ("0 + t", "g"), {"covariance": "diag"}),
        ("TE", ("brand",), {"prior_weight": 2}),
    ]
    assert terms.special[2].text == "(1 + t | a/b)"
    assert terms.text[terms.special[1].at :].startswith("te(")


def test_a_removed_smooth_is_gone() -> None:
    assert expand("x + s(z) - s(z)").special == ()
    assert expand("s(x) + s(x)").special == expand("s(x)").special
    assert expand("s(x, xt=list(a=1, b='q'), sp=NULL)").special[0].options == (
        ("xt", {"a": 1, "b": "q"}),
        ("sp", None),
    )
