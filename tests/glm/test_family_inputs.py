"""The family rows M01-M10 of bad_inputs.json through ``fit_glm``.

M06 (separation) is in tests/glm/test_constraints.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import jaxnlme as jn
from helpers import reference
from jaxnlme import families

N = 40
ROWS: dict[str, Any] = {row["id"]: row for row in reference("badinputs", "bad_inputs")}
X = np.random.default_rng(3).normal(size=N)
COUNTS = np.random.default_rng(4).poisson(np.exp(0.5 + 0.3 * X)).astype(float)
AMOUNTS = np.random.default_rng(5).gamma(2.0, np.exp(0.3 * X))
SHARES = np.random.default_rng(6).beta(2.0, 3.0, N)
HITS = np.random.default_rng(7).binomial(5, 0.4, N).astype(float)


def fit(y: Any, family: Any, formula: str = "y ~ x", columns: Any = None, **options: Any) -> Any:
    return jn.fit_glm(formula, {"y": y, "x": X, **(columns or {})}, family=family, **options)


def put(y: np.ndarray, value: float, *rows: int) -> np.ndarray:
    y = y.copy()
    y[list(rows)] = value
    return y


def cbind(success: np.ndarray, failure: np.ndarray, family: Any = "binomial") -> Any:
    return fit(success, family, "cbind(y, f) ~ x", {"f": failure})


NB = "negative_binomial"
# id: what is called, and words that the message must hold
ERRORS: list[tuple[str, Callable[[], Any], tuple[str, ...]]] = [
    ("M01", lambda: fit(put(COUNTS, -1, 4, 9), "poisson"), ("'y'", "negative", "rows 4, 9")),
    ("M01", lambda: fit(put(COUNTS, -1, 4), NB), ("'y'", "negative", "rows 4")),
    ("M01", lambda: fit(put(COUNTS, 1.5, 4), NB), ("whole number", "rows 4", "quasi_poisson")),
    ("M01", lambda: fit(put(COUNTS, 1.5, 4), families.NegativeBinomial1()), ("whole number", "rows 4")),
    ("M01", lambda: fit(put(COUNTS, -1, 4), "quasi_poisson"), ("negative", "rows 4")),
    ("M01", lambda: fit(put(COUNTS, -1, 4), families.ZeroInflated("poisson")), ("negative", "rows 4")),
    ("M01", lambda: fit(put(COUNTS, 1.5, 4), families.Hurdle(NB)), ("whole number", "rows 4")),
    ("M02", lambda: fit(put(SHARES, 1.2, 7), "binomial"), ("'y'", "rows 7")),
    ("M02", lambda: fit(put(SHARES, -0.1, 7), "quasi_binomial"), ("'y'", "rows 7")),
    ("M02", lambda: fit(COUNTS + 1, "binomial"), ("'y'", "rows")),
    ("M02", lambda: cbind(HITS, put(5 - HITS, -1, 3)), ("negative", "rows 3")),
    ("M02", lambda: cbind(HITS, put(5 - HITS, -1, 3), "beta_binomial"), ("negative", "rows 3")),
    ("M03", lambda: fit(put(AMOUNTS, 0, 2), "gamma"), ("'y'", "not positive", "rows 2", "Hurdle")),
    ("M03", lambda: fit(put(AMOUNTS, -1, 2), "inverse_gaussian"), ("'y'", "not positive", "rows 2")),
    ("M03", lambda: fit(put(AMOUNTS, 0, 2), families.Tweedie(2.5)), ("'y'", "rows 2")),
    ("M03", lambda: fit(put(AMOUNTS, -1, 2), families.Tweedie(1.5)), ("'y'", "rows 2")),
    ("M03", lambda: fit(put(AMOUNTS, 0, 2), "lognormal"), ("'y'", "not positive", "rows 2")),
    ("M04", lambda: fit(put(SHARES, 0, 2), "beta"), ("'y'", "0 or 1", "rows 2", "squeeze", "zeros and ones")),
    ("M04", lambda: fit(put(SHARES, 1, 2), "beta"), ("'y'", "0 or 1", "rows 2", "squeeze")),
    ("M05", lambda: fit(0 * COUNTS, "poisson"), ("'y'", "0 in every row", "boundary")),
    ("M05", lambda: fit(0 * COUNTS, NB), ("'y'", "0 in every row", "boundary")),
    ("M05", lambda: fit(0 * COUNTS, "binomial"), ("'y'", "boundary")),
    ("M05", lambda: fit(0 * COUNTS + 1, "binomial"), ("'y'", "boundary")),
    ("M05", lambda: fit(0 * AMOUNTS + 2, "gamma"), ("'y'", "constant (2 in all 40 rows)", "boundary")),
    ("M05", lambda: fit(0 * AMOUNTS + 2, "gaussian"), ("'y'", "constant", "boundary")),
    ("M05", lambda: fit(0 * SHARES + 0.5, "beta"), ("'y'", "constant", "boundary")),
    ("M05", lambda: fit(0 * AMOUNTS, families.Tweedie(1.5)), ("'y'", "boundary")),
    ("M05", lambda: fit(COUNTS + 1, families.ZeroInflated("poisson")), ("no zero", "nothing to estimate")),
    ("M05", lambda: fit(["low"] * N, "binomial"), ("'y'", "low")),
    ("M05", lambda: fit(["low"] * N, families.Ordinal()), ("'y'", "low")),
    ("M07", lambda: fit(COUNTS, "poisson", weights=put(np.ones(N), -1, 6)), ("weights", "negative", "6")),
    ("M08", lambda: fit(COUNTS, "poisson", exposure=put(np.ones(N), 0, 6)), ("exposure", "6")),
    ("M08", lambda: fit(COUNTS, "poisson", exposure=put(np.ones(N), -2, 6)), ("exposure", "6")),
    ("M10", lambda: fit(AMOUNTS, families.Tweedie(0.5)), ("power=0.5", "(1, 2)", "(0, 1)")),
    ("M10", lambda: fit(AMOUNTS, families.Tweedie("p")), ("power='p'", "(0, 1)")),
]  # fmt: skip


@pytest.mark.parametrize(("row", "call", "words"), ERRORS, ids=[row for row, *_ in ERRORS])
def test_error(row: str, call: Callable[[], Any], words: tuple[str, ...]) -> None:
    assert ROWS[row]["outcome"] == "error"
    with pytest.raises(getattr(jn, ROWS[row]["class"])) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("family", ["poisson", "quasi_poisson"])
def test_m01_rates_are_a_warning(family: str) -> None:
    with pytest.warns(
        jn.DataWarning, match=r"not a whole number in 1 row\(s\) \(rows 4\)"
    ) as caught:
        fit(put(COUNTS, 1.5, 4), family)
    assert len(caught) == 1


def test_m07_zero_weights_drop_out_of_n_and_df() -> None:
    """So the fit is that of the other rows: coefficients to rounding of the sums, 1e-10."""
    one = fit(COUNTS, "poisson", weights=put(np.ones(N), 0, 6, 8))
    keep = np.delete(np.arange(N), [6, 8])
    two = jn.fit_glm("y ~ x", {"y": COUNTS[keep], "x": X[keep]}, family="poisson")
    assert (one.nobs, one.df_resid) == (N - 2, N - 4)
    np.testing.assert_allclose(np.asarray(one.params), np.asarray(two.params), rtol=1e-10)
    np.testing.assert_allclose(np.asarray(one.bse), np.asarray(two.bse), rtol=1e-10)


def test_m08_an_offset_that_looks_like_an_exposure() -> None:
    years = np.linspace(0.1, 1.0, N)
    with pytest.warns(jn.DataWarning, match=r"looks like an exposure.*exposure="):
        fit(COUNTS, "poisson", offset=years)
    one = fit(COUNTS, "poisson", exposure=years)
    two = fit(COUNTS, "poisson", offset=np.log(years))
    np.testing.assert_allclose(np.asarray(one.params), np.asarray(two.params), rtol=1e-12)


@pytest.mark.filterwarnings("ignore::jaxnlme.ConvergenceWarning")
@pytest.mark.parametrize("family", [NB, "negative_binomial1"])
def test_m09_counts_without_overdispersion(family: str) -> None:
    """Binomial counts vary less than Poisson counts: theta runs to infinity, the mean is that of a Poisson fit."""
    assert (ROWS["M09"]["class"], ROWS["M09"]["must_name"]) == ("BoundaryWarning", "use poisson")
    with pytest.warns(jn.BoundaryWarning, match="family='poisson'"):
        got = fit(HITS, family)
    plain = fit(HITS, "poisson")
    names = ["(Intercept)", "x"]
    np.testing.assert_allclose(
        [got.params[k] for k in names], [plain.params[k] for k in names], atol=1e-4
    )
