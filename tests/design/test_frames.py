"""Frames: the bad-input rows D01-D17 at the level of this layer, and one answer for every kind."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from jaxnlme._errors import DataError, DataWarning, FormulaError, PrecisionWarning
from jaxnlme.design.frames import (
    Table,
    check_complete,
    check_lengths,
    make_frame,
    read_arrays,
    read_frame,
    select_rows,
)

COLUMNS: dict = {
    "y": [1.5, None, 3.5, 4.0],
    "count": [3, 1, 2, 2],
    "site": ["b", None, "a", "b"],
    "flag": [True, False, True, True],
}


def as_dict() -> dict:
    return dict(COLUMNS)


def as_pandas() -> pd.DataFrame:
    # a duplicated index must not matter
    return pd.DataFrame(COLUMNS, index=[5, 5, 1, 0])


def as_polars() -> pl.DataFrame:
    return pl.DataFrame(COLUMNS)


def as_arrow() -> pa.Table:
    return pa.table(COLUMNS)


KINDS = {"dict": as_dict, "pandas": as_pandas, "polars": as_polars, "pyarrow": as_arrow}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


@every_kind
def test_every_kind_of_frame_reads_the_same(kind: str) -> None:
    table = read_frame(KINDS[kind]())
    assert (table.n, table.names, table.kind) == (4, tuple(COLUMNS), kind)
    np.testing.assert_array_equal(table.numeric("y"), [1.5, np.nan, 3.5, 4.0])
    assert table.numeric("count").dtype == np.float64
    site = table.factor("site")
    assert site.levels == ("a", "b")
    assert site.codes.dtype == np.int32
    np.testing.assert_array_equal(site.codes, [1, -1, 0, 1])
    assert table.factor("flag").labels == ("FALSE", "TRUE")
    np.testing.assert_array_equal(table.missing("site"), [False, True, False, False])
    assert table.is_numeric("count")
    assert not table.is_numeric("site")


@every_kind
def test_rows_are_taken_by_position_and_the_input_is_left_alone(kind: str) -> None:
    frame = KINDS[kind]()
    table = read_frame(frame)
    taken = table.take([3, 0])
    np.testing.assert_array_equal(taken.numeric("y"), [4.0, 1.5])
    assert taken.factor("site").levels == ("b",)
    np.testing.assert_array_equal(
        table.take(np.array([True, False, True, False])).numeric("y"), [1.5, 3.5]
    )
    table.numeric("y")[:] = 99.0
    again = read_frame(frame)
    np.testing.assert_array_equal(again.numeric("y"), [1.5, np.nan, 3.5, 4.0])


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("dict", pd.DataFrame),
        ("pandas", pd.DataFrame),
        ("polars", pl.DataFrame),
        ("pyarrow", pa.Table),
    ],
)
def test_tables_come_back_in_the_callers_kind(kind: str, wanted: type) -> None:
    table = read_frame(KINDS[kind]())
    assert isinstance(table.native({"term": ["a"], "estimate": np.array([1.0])}), wanted)
    assert isinstance(make_frame({"a": [1]}, kind), wanted)


def test_categories_keep_their_order() -> None:
    ordered = pd.Categorical(["lo", "hi", None], categories=["lo", "hi", "top"], ordered=True)
    for frame in ({"d": ordered}, pd.DataFrame({"d": ordered})):
        factor = read_frame(frame).factor("d")
        assert (factor.levels, factor.ordered) == (("lo", "hi", "top"), True)
        np.testing.assert_array_equal(factor.codes, [0, 1, -1])
    enum = pl.DataFrame({"d": pl.Series(["lo", None], dtype=pl.Enum(["top", "lo"]))})
    assert read_frame(enum).factor("d").levels == ("top", "lo")
    np.testing.assert_array_equal(read_frame(enum).factor("d").codes, [1, -1])
    pool = pl.DataFrame({"d": pl.Series(["z", "a", None], dtype=pl.Categorical)})
    assert read_frame(pool).factor("d").levels == ("a", "z")
    dictionary = pa.table({"d": pa.array(["z", "a", None]).dictionary_encode()})
    np.testing.assert_array_equal(read_frame(dictionary).factor("d").codes, [0, 1, -1])
    arrow = pd.Series(["z", "a", None], dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())))
    factor = read_frame(pd.DataFrame({"d": arrow})).factor("d")
    assert factor.levels == ("a", "z")
    np.testing.assert_array_equal(factor.codes, [1, 0, -1])


def test_nullable_integers_and_decimals_are_numbers() -> None:
    frame = pd.DataFrame({"i": pd.array([1, None, 2**53 - 1], dtype="Int64")})
    np.testing.assert_array_equal(read_frame(frame).numeric("i"), [1.0, np.nan, 2.0**53 - 1])
    empty = pl.DataFrame({"x": [None, None]})
    assert np.isnan(read_frame(empty).numeric("x")).all()
    masked = np.ma.masked_array([1.0, 2.0], mask=[False, True])
    np.testing.assert_array_equal(read_frame({"m": masked}).numeric("m"), [1.0, np.nan])


def test_text_and_missing_in_every_pandas_type() -> None:
    for dtype in ("str", "string", object, "category"):
        column = pd.Series(["b", None, "a"], dtype=dtype, index=[1, 1, 1])
        factor = read_frame(pd.DataFrame({"g": column})).factor("g")
        assert factor.levels == ("a", "b")
        np.testing.assert_array_equal(factor.codes, [1, -1, 0])
    flags = pd.DataFrame({"b": pd.array([True, None], dtype="boolean")})
    np.testing.assert_array_equal(read_frame(flags).numeric("b"), [1.0, np.nan])
    na = pd.DataFrame({"g": pd.Series([pd.NA, "a"], dtype=object)})
    np.testing.assert_array_equal(read_frame(na).missing("g"), [True, False])
    stamps = pd.DataFrame({"t": pd.to_datetime(["2020-01-01", None]).tz_localize("UTC")})
    with pytest.raises(DataError, match="explicitly"):
        read_frame(stamps).numeric("t")


def test_series_in_a_dict_are_matched_by_position() -> None:
    table = read_frame({"a": pd.Series([1.0, 2.0], index=[1, 0]), "b": pl.Series([3.0, 4.0])})
    np.testing.assert_array_equal(table.numeric("a"), [1.0, 2.0])
    np.testing.assert_array_equal(table.numeric("b"), [3.0, 4.0])


def test_d01_missing_raise_names_column_count_rows_and_choices() -> None:
    with pytest.raises(DataError) as caught:
        select_rows(read_frame(as_dict()), ["y"], missing="raise")
    for word in ("'y'", "1 missing", "rows 1", "'raise'", "'drop'"):
        assert word in str(caught.value)


def test_d02_weights_are_never_dropped() -> None:
    table = read_frame({"y": [1.0, 2.0], "w": [1.0, np.nan]})
    with pytest.raises(DataError, match=r"weights \(column 'w'\) has 1 missing"):
        select_rows(table, ["y"], never_missing={"weights": "w"})
    with pytest.raises(DataError, match="offset has 1 missing"):
        check_complete(np.array([True, False]), "offset")


@every_kind
def test_d03_infinite_values_raise_and_are_never_dropped(kind: str) -> None:
    frame = {"x": [1.0, float("inf"), 2.0], "y": [1.0, float("nan"), 2.0]}
    frame = {"dict": dict, "pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}[
        kind
    ](frame)
    table = read_frame(frame)
    with pytest.raises(DataError, match=r"'x' is infinite.*rows 1"):
        table.numeric("x")
    with pytest.raises(DataError, match="'x' is infinite"):
        select_rows(table, ["y", "x"])


def test_d04_dropped_rows_are_counted_in_a_warning() -> None:
    with pytest.warns(DataWarning, match=r"1 of 4 rows dropped.*'y': 1, 'site': 1.*row_index"):
        rows = select_rows(read_frame(as_pandas()), ["y", "site", "count"])
    np.testing.assert_array_equal(rows, [0, 2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(select_rows(read_frame(as_pandas()), ["count"]), range(4))


def test_unknown_missing_policy() -> None:
    with pytest.raises(DataError, match=r"missing='omit'.*'drop'.*'raise'"):
        select_rows(read_frame(as_dict()), ["y"], missing="omit")


@pytest.mark.parametrize(
    "frame", [{}, {"x": []}, pd.DataFrame({"x": []}), pl.DataFrame({"x": []})], ids=repr
)
def test_d05_no_rows(frame: object) -> None:
    with pytest.raises(DataError, match="0 rows"):
        read_frame(frame)


def test_d06_no_rows_left_names_the_worst_column() -> None:
    table = read_frame({"a": [np.nan, 1.0], "b": [np.nan, np.nan]})
    with pytest.raises(DataError, match=r"0 of 2 rows.*'b' alone removes 2"):
        select_rows(table, ["a", "b"])


def test_d07_absent_column_names_the_nearest() -> None:
    with pytest.raises(FormulaError, match=r"response column 'Conc' is not in data.*'conc'"):
        read_frame({"conc": [1.0], "time": [0.0]}).numeric("Conc", "response")


BAD_NUMBERS = {
    "D08": (["1.5", "2"], r"'x'.*'1.5'.*astype\(float\).*C\("),
    "D09": (np.array([1.0, 2.0], dtype=object), r"'x'.*objects.*astype\(float\)"),
    "D10": (np.array(["2020-01-01", "2020-01-02"], dtype="M8[ns]"), r"'x'.*explicitly"),
    "D11": (np.array([1j, 2.0]), r"'x'.*complex"),
}


@pytest.mark.parametrize("row", list(BAD_NUMBERS))
@pytest.mark.parametrize("wrap", [dict, pd.DataFrame], ids=["dict", "pandas"])
def test_d08_to_d11_columns_that_are_no_numbers(row: str, wrap: type) -> None:
    values, message = BAD_NUMBERS[row]
    with pytest.raises(DataError, match=message):
        read_frame(wrap({"x": values})).numeric("x")


def test_d10_dates_in_polars_and_arrow() -> None:
    frame = pl.DataFrame({"x": ["2020-01-01"]}).with_columns(pl.col("x").str.to_date())
    for data in (frame, frame.to_arrow()):
        with pytest.raises(DataError, match=r"'x'.*explicitly"):
            read_frame(data).numeric("x")


@pytest.mark.parametrize("big", [np.array([2**60 + 1, 1]), np.array([2**63 + 5], dtype=np.uint64)])
def test_d13_integers_beyond_float64_warn(big: np.ndarray) -> None:
    with pytest.warns(PrecisionWarning, match="'big'"):
        read_frame({"big": big}).numeric("big")
    assert read_frame({"big": big}).factor("big").levels[0] in big.tolist()


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pa.table([[1], [2]], names=["a", "a"]),
        pd.DataFrame([[1, 2]], columns=[1, "1"]),
    ],
    ids=["pandas", "pyarrow", "number and text"],
)
def test_d14_duplicated_names(frame: object) -> None:
    with pytest.raises(DataError, match=r"'[a1]'"):
        read_frame(frame)


def test_d15_lengths_differ() -> None:
    with pytest.raises(DataError, match="X has 3, y has 2 rows"):
        read_arrays(np.ones((3, 2)), np.ones(2))
    with pytest.raises(DataError, match=r"data\['a'\] has 2, data\['b'\] has 1"):
        read_frame({"a": [1.0, 2.0], "b": [1.0]})
    check_lengths({"X": 3, "y": 3})


@pytest.mark.parametrize("shape", [(3, 1), (3, 2)])
def test_d16_y_is_a_vector(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=re.escape(str(shape))):
        read_arrays(np.ones((3, 2)), np.ones(shape))
    with pytest.raises(DataError, match=re.escape(str(shape))):
        read_frame({"a": np.ones(shape)}).numeric("a")


def test_d17_mixed_kinds_by_position() -> None:
    X = pd.DataFrame({"t": [0.0, 1.0]}, index=[7, 3])
    matrix, y, group = read_arrays(X, pl.Series([5.0, 6.0]), pd.Series(["b", "a"], index=[0, 9]))
    np.testing.assert_array_equal(matrix, [[0.0], [1.0]])
    assert y is not None
    assert group is not None
    np.testing.assert_array_equal(y, [5.0, 6.0])
    np.testing.assert_array_equal(group.codes, [1, 0])
    with pytest.raises(DataError, match=r"2, .*group has 3 rows.*position"):
        read_arrays(X, pl.Series([5.0, 6.0]), pd.Series(["b", "a", "c"]))


def test_array_arguments_obey_the_rules_of_columns() -> None:
    with pytest.raises(DataError, match="infinite"):
        read_arrays([1.0, np.inf])
    with pytest.raises(DataError, match="X column 2"):
        read_arrays(np.array([[1.0, np.inf]]))
    with pytest.raises(DataError, match="a number is needed"):
        read_arrays(["1", "2"], [1.0, 2.0])
    with pytest.raises(DataError, match="group is missing in 1"):
        read_arrays([1.0, 2.0], [1.0, 2.0], [1.0, np.nan])
    with pytest.raises(DataError, match="shape"):
        read_arrays(np.ones((2, 2, 2)))
    matrix, _, group = read_arrays([1.0, 2.0], None, np.array([[4], [2]]))
    assert matrix.shape == (2, 1)
    assert group is not None
    assert group.levels == (2, 4)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.ones((3, 2)), r"ndarray of shape \(3, 2\)"),
        (pl.LazyFrame({"a": [1]}), "collect"),
        ({"a": 3}, "not a column"),
        ({"a": "text"}, "not a column"),
        (7, "int"),
    ],
    ids=["array", "lazy", "scalar", "text", "number"],
)
def test_what_is_no_frame(frame: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_frame(frame)


def test_mixed_types_have_no_levels() -> None:
    with pytest.raises(DataError, match=r"'m' mixes.*int, str"):
        read_frame({"m": ["a", 1]}).factor("m")


def test_a_table_reads_as_itself() -> None:
    table = read_frame(as_dict())
    assert read_frame(table) is table
    assert isinstance(table, Table)
    assert "y" in table
    assert len(table) == 4
    assert "4 rows" in repr(table)
