"""The rows of bad_inputs.json that concern data, formulas, designs and predictions, through ``fit_glm``."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import jaxnlme as jn
from helpers import reference

N = 40
ROWS = {row["id"]: row for row in reference("badinputs", "bad_inputs")}
KINDS: dict[str, type] = {name: getattr(jn, name) for name in (
    "DataError", "FormulaError", "ModelSpecError", "DataWarning", "FormulaWarning", "PrecisionWarning",
    "CollinearityWarning", "ExtrapolationWarning",
)} | {"TypeError": TypeError}  # fmt: skip


def frame(**changes: Any) -> dict[str, Any]:
    draw = np.random.default_rng(8)
    x, z = draw.normal(size=(2, N))
    data: dict[str, Any] = {
        "y": 1 + x - z + draw.normal(size=N),
        "x": x,
        "z": z,
        "g": np.array(list("abc"))[np.arange(N) % 3],
        "w": np.ones(N),
    }
    data.update(changes)
    return {name: values for name, values in data.items() if values is not None}


def changed(name: str, at: int, value: float) -> dict[str, Any]:
    data = frame()
    data[name] = data[name].copy()
    data[name][at] = value
    return data


def fit(formula: Any = "y ~ x + z + g", data: Any = None, **options: Any) -> Any:
    return jn.fit_glm(formula, frame() if data is None else data, **options)


def arrays(**changes: Any) -> Any:
    data = frame()
    call = {"X": np.column_stack([data["x"], data["z"]]), "y": data["y"], **changes}
    return jn.fit_glm(call.pop("X"), call.pop("y"), **call)


def dates(dtype: str | None) -> Any:
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(days=k) for k in range(N)]
    return days if dtype is None else np.array(days, dtype)


def pure_in_32_bit() -> Any:
    X = np.ones((N, 1))
    return jn.glm.fit(jn.glm.GLMProblem(X, X[:, 0]))


BIG = np.arange(N, dtype=np.int64) * 2**55 + 1
BOTH_NAN = {**changed("x", 3, np.nan), "y": changed("y", 7, np.nan)["y"]}
FACTOR_OFF = frame(g=pd.Categorical(frame()["g"], categories=["a", "b", "c", "never"]))
WITH_E = frame(e=np.linspace(1, 2, N))
EMPTY_CELL = frame(h=np.where((frame()["g"] == "c") | (np.arange(N) % 2 == 0), "u", "v"))

# id: what is called, and words that the message must hold
ERRORS: list[tuple[str, Callable[[], Any], tuple[str, ...]]] = [
    ("D01", lambda: fit(data=BOTH_NAN, missing="raise"), ("'y'", "1 missing", "rows 7", "'drop'", "'raise'")),
    ("D01", lambda: fit(data=changed("x", 3, np.nan), missing="raise"), ("'x'", "1 missing", "rows 3", "'drop'")),
    ("D02", lambda: fit(data=changed("w", 3, np.nan), weights="w"), ("weights", "'w'", "1 missing", "never")),
    ("D02", lambda: fit(data=changed("w", 3, np.nan), offset="w"), ("offset", "1 missing")),
    ("D02", lambda: fit(data=changed("w", 3, np.nan), exposure="w", link="log"), ("exposure", "1 missing")),
    ("D02", lambda: fit(weights=changed("w", 3, np.nan)["w"]), ("weights", "1 missing")),
    ("D03", lambda: fit(data=changed("x", 5, np.inf)), ("'x'", "infinite", "rows 5", "never dropped")),
    ("D03", lambda: fit(data=changed("y", 5, -np.inf)), ("'y'", "infinite", "rows 5")),
    ("D03", lambda: arrays(y=changed("y", 5, np.inf)["y"]), ("y", "infinite", "5")),
    ("D03", lambda: arrays(X=changed("x", 5, np.inf)["x"]), ("X", "infinite", "5")),
    ("D05", lambda: fit(data={k: v[:0] for k, v in frame().items()}), ("0 rows",)),
    ("D05", lambda: fit(data=pd.DataFrame(frame()).iloc[:0]), ("0 rows",)),
    ("D06", lambda: fit(data=frame(x=np.full(N, np.nan))), ("0 of 40 rows", "'x'")),
    ("D07", lambda: fit("y ~ X + z"), ("'X'", "'x'", "not in data")),
    ("D07", lambda: fit("Y ~ x"), ("'Y'", "'y'")),
    ("D07", lambda: fit(weights="ww"), ("'ww'", "'w'")),
    ("D08", lambda: fit(data=frame(x=[f"{k}.5" for k in range(N)])), ("'x'", "0.5", "astype(float)", "C(")),
    ("D09", lambda: fit(data=frame(x=frame()["x"].astype(object))), ("'x'", "objects")),
    ("D10", lambda: fit(data=frame(x=dates("M8[s]"))), ("'x'", "explicitly")),
    ("D10", lambda: fit(data=frame(x=dates(None))), ("'x'", "objects")),
    ("D10", lambda: fit(data=pl.DataFrame(frame(x=dates(None)))), ("'x'", "explicitly")),
    ("D11", lambda: fit(data=frame(x=frame()["x"] + 1j)), ("'x'", "complex")),
    ("D14", lambda: fit(data=pd.concat([pd.DataFrame(frame())] * 2, axis=1)), ("duplicated", "'y'")),
    ("D14", lambda: fit(data=pa.table([pa.array(frame()["x"])] * 2, names=["x", "x"])), ("duplicated", "'x'")),
    ("D15", lambda: arrays(y=np.ones(N - 1)), ("X has 40", "y has 39")),
    ("D15", lambda: fit(data=frame(z=np.ones(3))), ("40", "3")),
    ("D16", lambda: arrays(y=np.ones((N, 1))), ("(40, 1)",)),
    ("D16", lambda: arrays(y=np.ones((N, 2))), ("(40, 2)",)),
    ("D17", lambda: arrays(X=pd.DataFrame(frame())[["x", "z"]], y=pl.Series(np.ones(N + 1))), ("40", "41", "position")),
    ("D17", lambda: fit(weights=pd.Series(np.ones(N - 2))), ("38", "40", "position")),
    ("D19", pure_in_32_bit, ("enable_x64", "float32")),
    ("F01", lambda: fit("y ~ log(x + z"), ("never closed", "^")),
    ("F01", lambda: fit("y ~ x + z)"), ("not open", "^")),
    ("F02", lambda: fit("y ~ (1|)"), ("parentheses",)),
    ("F02", lambda: fit("y ~ 1 | g"), ("put the bar term in parentheses",)),
    ("F04", lambda: fit("~ x"), ("two-sided",)),
    ("F04", lambda: fit("x"), ("two-sided",)),
    ("F08", lambda: fit(family="poison"), ("'poison'", "'poisson'", "gaussian")),
    ("F08", lambda: fit(link="logg"), ("'logg'", "'log'", "identity")),
    ("F09", lambda: fit("y ~ x.__class__"), ("not allowed", "column")),
    ("F09", lambda: fit("y ~ log(x).real"), ("not allowed", "column")),
    ("F09", lambda: fit("y ~ __import__('os')"), ("not allowed",)),
    ("F09", lambda: fit("y ~ (lambda v: v)(x)"), ("not allowed", "column")),
    ("F09", lambda: fit("y ~ exec(x)"), ("not allowed", "column")),
    ("F10", lambda: fit("y ~ bs(x, df=2, degree=3)"), ("df=2", "at least 3")),
    ("F11", lambda: fit("y ~ bs(x, knots=c(0, 1000))"), ("knots", "1000")),
    ("F11", lambda: fit("y ~ ns(x, knots=c(0.5, 0.2))"), ("knots", "0.5, 0.2")),
    ("F11", lambda: fit("y ~ ns(x, knots=c(0.2, 0.2))"), ("knots", "rise")),
    ("F12", lambda: fit("y ~ x + offset(z)", offset="z"), ("offset", "twice")),
    ("F12", lambda: fit("y ~ x", WITH_E, link="log", exposure="e", offset="e"), ("'e'", "twice")),
    ("F12", lambda: fit("y ~ x + offset(log(e))", WITH_E, link="log", exposure="e"), ("exposure", "twice")),
    ("X03", lambda: fit("y ~ x + z", {k: v[:2] for k, v in frame().items()}), ("2", "3", "n", "p")),
    ("X07", lambda: fit(data=frame(g=[f"id{k}" for k in range(N)])), ("'g'", "40", "random effect", "TE()")),
    ("P01", lambda: fit().predict(frame(g=["a", "new"] * 20)), ("'g'", "'new'")),
    ("P02", lambda: fit().predict(frame(z=None)), ("'z'",)),
    ("P02", lambda: fit().predict(frame(z=["a"] * N)), ("'z'",)),
    ("P02", lambda: fit().predict(frame(g=np.ones(N))), ("'g'", "labels")),
]  # fmt: skip

WARNINGS: list[tuple[str, Callable[[], Any], tuple[str, ...]]] = [
    ("D04", lambda: fit(data=BOTH_NAN), ("2 of 40 rows dropped", "'y': 1", "'x': 1", "row_index")),
    ("D13", lambda: fit("y ~ log(big)", frame(big=BIG)), ("'big'", "2**53")),
    ("F03", lambda: fit("y ~ x + y"), ("'y'", "right-hand side")),
    ("X01", lambda: fit("y ~ x + again", frame(again=frame()["x"])), ("again",)),
    ("X01", lambda: fit("y ~ x + one", frame(one=np.ones(N))), ("one",)),
    ("X01", lambda: fit("y ~ a + b + c", frame(**{k: (frame()["g"] == k) * 1.0 for k in "abc"})), ("c",)),
    ("X02", lambda: fit("y ~ x + near", frame(near=frame()["x"] + 1e-9 * frame()["z"])), ("condition", "near")),
    ("X05", lambda: fit("y ~ x + one", frame(one=["only"] * N)), ("'one'", "'only'", "dropped")),
    ("X06", lambda: fit(data=FACTOR_OFF), ("'never'", "removed")),
    ("X08", lambda: fit("y ~ g*h", EMPTY_CELL), ("gc:hv",)),
    ("P03", lambda: fit("y ~ ns(x, df=3)").predict({"x": [99.0, 0.0]}), ("[", "50 %")),
]  # fmt: skip


@pytest.mark.parametrize(("row", "call", "words"), ERRORS, ids=[row for row, *_ in ERRORS])
def test_error(row: str, call: Callable[[], Any], words: tuple[str, ...]) -> None:
    assert ROWS[row]["outcome"] == "error"
    with pytest.raises(KINDS[ROWS[row]["class"]]) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("row", "call", "words"), WARNINGS, ids=[row for row, *_ in WARNINGS])
def test_warning(row: str, call: Callable[[], Any], words: tuple[str, ...]) -> None:
    assert ROWS[row]["outcome"] == "warn"
    with pytest.warns() as caught:
        call()
    kind = KINDS[ROWS[row]["class"]]
    found = [str(w.message) for w in caught if issubclass(w.category, kind)]
    assert found, [str(w.message) for w in caught]
    assert any(all(word in text for word in words) for text in found), found
    assert {w.category for w in caught} == {kind}
    assert all(w.filename == __file__ for w in caught)  # a warning points at the user's line


def test_d04_the_rows_used() -> None:
    with pytest.warns(jn.DataWarning):
        one = fit(data=BOTH_NAN)
    used = np.delete(np.arange(N), [3, 7])
    np.testing.assert_array_equal(one.row_index, used)
    two = fit(data={name: values[used] for name, values in BOTH_NAN.items()})
    np.testing.assert_array_equal(one.params, two.params)
    assert one.nobs == N - 2
    assert len(one.fittedvalues) == N - 2


def test_d12_a_boolean_response() -> None:
    y = frame()["y"] > 1
    one = fit(data=frame(y=y), family="binomial")
    two = fit(data=frame(y=y * 1.0), family="binomial")
    three = fit(data=frame(y=np.where(y, "yes", "no")), family="binomial")
    np.testing.assert_array_equal(one.params, two.params)
    np.testing.assert_array_equal(one.params, three.params)


def test_x01_the_aliased_coefficient_is_nan_and_the_fit_unchanged() -> None:
    with pytest.warns(jn.CollinearityWarning):
        one = fit("y ~ x + again + z", frame(again=2 * frame()["x"]))
    two = fit("y ~ x + z")
    assert np.isnan(one.params["again"])
    assert np.isnan(one.bse["again"])
    np.testing.assert_allclose(
        np.delete(np.asarray(one.params), 2), np.asarray(two.params), rtol=1e-9
    )
    np.testing.assert_allclose(one.fittedvalues, two.fittedvalues, rtol=1e-10)
    assert one.df_resid == two.df_resid


def test_x04_columns_of_very_different_scale() -> None:
    data = frame()
    one = fit("y ~ x + z", data)
    two = fit("y ~ x + z", {**data, "x": 1e9 * data["x"], "z": 1e-4 * data["z"]})
    np.testing.assert_allclose(np.asarray(one.params) / [1, 1e9, 1e-4], two.params, rtol=1e-8)
    # x = 1e9 + noise: as right as the noise is stored (1e-16 * 1e9 of a spread of 1)
    three = fit("y ~ x + z", {**data, "x": 1e9 + data["x"]})
    kept = fit("y ~ x + z", {**data, "x": (1e9 + data["x"]) - 1e9})
    np.testing.assert_allclose(np.asarray(three.params)[1:], np.asarray(kept.params)[1:], rtol=1e-8)
    # the intercept is near -1e9 and stored to 1e-7
    np.testing.assert_allclose(three.fittedvalues, kept.fittedvalues, atol=2e-7)


def test_p04_columns_are_matched_by_name() -> None:
    one = fit()
    new = frame()
    other = pd.DataFrame({"extra": ["?"] * N, **{k: new[k] for k in ("g", "z", "x")}})
    np.testing.assert_array_equal(one.predict(new), one.predict(other))


def test_predict_keeps_the_length_with_nan_where_something_is_missing() -> None:
    new = {"x": [0.0, np.nan, 1.0], "z": [1.0, 1.0, 1.0], "g": ["a", "b", None]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit().predict(new)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True])


def test_every_row_of_the_list_is_here() -> None:
    wanted = [
        *(f"D{k:02d}" for k in range(1, 20) if k != 18),
        *(f"F{k:02d}" for k in (1, 2, 3, 4, 8, 9, 10, 11, 12)),
    ]
    wanted += [*(f"X{k:02d}" for k in range(1, 9)), *(f"P{k:02d}" for k in range(1, 5))]
    here = {row for row, *_ in (*ERRORS, *WARNINGS)} | {"D12", "X04", "P04"}
    assert sorted(here) == sorted(wanted)


@pytest.mark.parametrize(
    ("term", "door"),
    [("s(x)", "fit_gam"), ("(1 | g)", "fit_mixed"), ("TE(g)", "actuarial workbench")],
)
def test_terms_of_other_models(term: str, door: str) -> None:
    with pytest.raises(jn.FormulaError, match=door):
        fit(f"y ~ z + {term}")
