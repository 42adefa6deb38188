"""``bs``, ``ns`` and ``poly`` against R, at the data and at new values."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from helpers import reference
from jaxnlme._errors import DataError, ExtrapolationWarning, FormulaError
from jaxnlme.design.bases import bs, ns
from jaxnlme.design.formula import fixed_design
from jaxnlme.design.frames import read_frame

R = reference("splines", "r_bases")
FORMULAS = {
    "bs_df5": "bs(x, df=5)",
    "ns_df4": "ns(x, df=4)",
    "bs_df6_bk": "bs(x, df=6, Boundary.knots=c(-2, 12))",
    "bs_df6_int": "bs(x, df=6, intercept=TRUE)",
    "poly3": "poly(x, 3)",
}


@pytest.mark.parametrize("case", list(FORMULAS))
def test_columns_are_those_of_r(case: str) -> None:
    spec, matrix = fixed_design(FORMULAS[case] + " - 1", read_frame({"x": R["x"]}))
    # the project's requirement; R's file has 15 digits
    np.testing.assert_allclose(matrix, R[case]["train"], rtol=0, atol=1e-12)
    if "new" not in R[case]:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        new = spec.matrix(read_frame({"x": R["xnew"]}))
    # outside the boundary knots the pieces reach values of order 10
    np.testing.assert_allclose(new, R[case]["new"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["bs_df5", "ns_df4"])
def test_knots_are_those_of_r(case: str) -> None:
    spec, _ = fixed_design(FORMULAS[case], read_frame({"x": R["x"]}))
    (state,) = spec.state.values()
    np.testing.assert_allclose(state["knots"], R[case]["knots"], rtol=1e-14)
    np.testing.assert_allclose(state["boundary"], R[case]["boundary"], rtol=1e-15)
    explicit = f"{case[:2]}(x, knots={state['knots']!r}, boundary_knots={state['boundary']!r}) - 1"
    again = fixed_design(explicit, read_frame({"x": R["x"]}))[1]
    np.testing.assert_allclose(again, R[case]["train"], rtol=0, atol=1e-12)


def test_bases_as_functions() -> None:
    for found, case in [
        (bs(R["x"], df=5), "bs_df5"),
        (ns(np.array(R["x"]), 4), "ns_df4"),
        (bs(R["x"], 6, boundary_knots=(-2, 12)), "bs_df6_bk"),
        (bs(R["x"], 6, intercept=True), "bs_df6_int"),
    ]:
        np.testing.assert_allclose(found, R[case]["train"], rtol=0, atol=1e-12)
    gap = bs([*R["x"], np.nan], df=5)
    np.testing.assert_array_equal(gap[:-1], bs(R["x"], df=5))
    assert np.isnan(gap[-1]).all()
    with pytest.warns(ExtrapolationWarning, match="outside"):
        ns([0.0, 1.0, 5.0], df=1, boundary_knots=(0, 2))


@pytest.mark.parametrize(
    ("x", "options", "error", "problem"),
    [
        (["a"], {}, DataError, "no numbers"),
        ([[1.0, 2.0]], {}, DataError, "shape"),
        ([1.0, np.inf], {}, DataError, "infinite"),
        ([1.0, 2.0, 3.0], {"df": 2}, FormulaError, "at least 3"),
        ([1.0, 2.0, 3.0], {"df": 4, "knots": [2]}, FormulaError, "not both"),
        ([1.0, 2.0, 3.0], {"knots": [9]}, FormulaError, "knots"),
    ],
)
def test_bases_refuse(x: list, options: dict, error: type, problem: str) -> None:
    with pytest.raises(error, match=problem):
        bs(x, **options)
