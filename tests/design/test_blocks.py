"""Blocked and coded designs against the plain matrix; fast decoding against numpy's sort."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from jaxnlme._errors import DataError
from jaxnlme.design.assemble import CHUNK
from jaxnlme.design.columns import decode_array, sorted_factor
from jaxnlme.design.formula import fixed_design, learn_design
from jaxnlme.design.frames import read_frame, select_rows
from jaxnlme.numerics.blocked import BLOCK, aligned


def table(n: int):
    draw = np.random.default_rng(3)
    return read_frame(
        {
            "x": draw.normal(size=n),
            "z": draw.integers(0, 9, n),
            "a": np.array(["p", "q", "r"])[np.arange(n) % 3],
            "b": np.array(["u", "v"])[np.arange(n) // 2 % 2],
            "many": np.array([f"L{k:02d}" for k in range(7)])[draw.permutation(np.arange(n) % 7)],
        }
    )


def unblocked(blocks, n: int) -> np.ndarray:
    """Rows and columns as the labels have them, the padding checked on the way."""
    rows = np.swapaxes(blocks.dense, 1, 2).reshape(-1, blocks.dense.shape[1])
    columns = [rows]
    assert not rows[n:].any()
    for codes, size in zip(blocks.codes, blocks.sizes, strict=True):
        assert (codes.reshape(-1)[n:] == size).all()
        columns.append(np.eye(size + 1)[codes.reshape(-1)][:, :size])
    wide = np.concatenate(columns, axis=1)[:n]
    out = np.empty_like(wide)
    out[:, blocks.order] = wide
    return out


FORMULAS = [
    "x + a + z",
    "many + x*a",
    "0 + many + b",
    "a:b + poly(x, 2):b + many",
    "C(many, contr.sum) + C(a, contr.SAS)",
    'C(many, contr.treatment, base="L03")',
]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("expand", [48, 2])
@pytest.mark.parametrize("n", [40, BLOCK, CHUNK + 700])
def test_blocks_and_parts_hold_the_matrix(formula: str, expand: int, n: int) -> None:
    data = table(n)
    spec, matrix = fixed_design(formula, data)
    blocks = spec.blocks(data, expand=expand)
    assert blocks.dense.ctypes.data % 64 == 0  # XLA takes aligned memory over without a copy
    assert sorted(blocks.order) == list(range(len(spec.labels)))
    np.testing.assert_array_equal(unblocked(blocks, n), matrix)
    out = np.full_like(matrix, np.nan)
    for part in spec.parts(data, expand=expand):
        if part.codes is None:
            out[:, part.positions] = part.dense
        else:
            out[:, part.positions] = np.eye(part.size + 1)[part.codes][:, : part.size]
    np.testing.assert_array_equal(out, matrix)
    coded = "many" in formula and "sum" not in formula and expand == 2
    assert bool(blocks.codes) == coded
    assert all(c.dtype == np.int32 for c in blocks.codes)


@pytest.mark.parametrize("rows", [None, 7, BLOCK, 3 * BLOCK - 5])
def test_padding_to_a_number_of_rows(rows: int | None) -> None:
    data = table(BLOCK + 3)
    spec, matrix = fixed_design("x + many", data)
    blocks = spec.blocks(data, rows, expand=2)
    assert blocks.dense.shape[0] == blocks.codes[0].shape[0] == (3 if rows == 3 * BLOCK - 5 else 2)
    np.testing.assert_array_equal(unblocked(blocks, BLOCK + 3), matrix)


def test_a_fitted_design_lays_out_new_rows() -> None:
    spec = learn_design("many + poly(x, 2)", table(60))
    new = table(60).take(np.array([5, 3, 9]))
    np.testing.assert_array_equal(
        unblocked(spec.blocks(new, expand=2), 3), spec.matrix(table(60))[[5, 3, 9]]
    )


def test_blocks_take_complete_rows_only() -> None:
    spec = learn_design("x", table(9))
    with pytest.raises(DataError, match=r"1 rows of data.*rows 1.*select_rows"):
        spec.blocks(read_frame({"x": [1.0, np.nan]}))
    with pytest.raises(DataError, match="missing"):
        spec.parts(read_frame({"x": [1.0, np.nan]}))


def test_all_rows_are_not_copied() -> None:
    data = table(20)
    assert data.take(np.arange(20)) is data
    assert data.take(np.ones(20, bool)) is data
    assert data.take(np.arange(20)[::-1]) is not data
    column = np.linspace(0.0, 1.0, 20)
    shared = read_frame({"x": column})
    assert np.shares_memory(shared.floats("x"), column)
    assert not shared.floats("x").flags.writeable  # a caller's array is never written to
    assert not np.shares_memory(shared.numeric("x"), column)


WORDS = ["", "a", "ab", "abc", "Z", "zürich", "10", "9"]


@pytest.mark.parametrize("kind", ["U", "O", "S", "str", "string", "object", "polars", "pyarrow"])
@pytest.mark.parametrize("with_missing", [False, True])
def test_texts_are_coded_as_numpy_sorts_them(kind: str, with_missing: bool) -> None:
    draw = np.random.default_rng(1)
    words = [w for w in WORDS if kind != "S" or w.isascii()]
    values = np.array(words)[draw.integers(0, len(words), 3000)]
    levels, wanted = np.unique(values, return_inverse=True)
    if with_missing:
        if kind in "US":
            pytest.skip("a numpy text has no missing value")
        values = values.astype(object)
        gone = draw.random(3000) < 0.1
        values[gone], wanted = None, np.where(gone, -1, wanted)
    if kind == "O" and with_missing:  # long enough for the hash table of pandas
        values, wanted = np.tile(values, 5), np.tile(wanted, 5)
    frame = {
        "U": lambda: {"t": values},
        "O": lambda: {"t": values.astype(object)},
        "S": lambda: {"t": values.astype("S")},
        "polars": lambda: pl.DataFrame({"t": list(values)}),
        "pyarrow": lambda: pa.table({"t": list(values)}),
    }.get(kind, lambda: pd.DataFrame({"t": pd.Series(values, dtype=kind)}))()
    data = read_frame(frame)
    factor = data.factor("t")
    assert factor.levels == tuple(levels.tolist())
    np.testing.assert_array_equal(factor.codes, wanted)
    assert data.column("t").kind == "text"
    given = data.column("t").values
    assert given[5] == (None if wanted[5] < 0 else levels[wanted[5]])
    # a part of the rows knows its own levels only
    some = np.flatnonzero(np.isin(wanted, [1, 3, -1]))
    part = data.take(some).factor("t")
    assert part.levels == (levels[1], levels[3])
    np.testing.assert_array_equal(part.codes, [{1: 0, 3: 1, -1: -1}[c] for c in wanted[some]])


@pytest.mark.parametrize("missing", [False, True])
def test_polars_categories_share_a_pool_with_other_columns(missing: bool) -> None:
    first = pl.Series(["x", "y", "w"], dtype=pl.Categorical)
    values = ["y", "b", None if missing else "y", "a"]
    frame = pl.DataFrame({"g": pl.Series(values, dtype=pl.Categorical)})
    assert first.dtype == frame["g"].dtype
    factor = read_frame(frame).factor("g")
    assert factor.levels == ("a", "b", "y")
    np.testing.assert_array_equal(factor.codes, [2, 1, -1 if missing else 2, 0])
    enum = pl.DataFrame({"g": pl.Series(values, dtype=pl.Enum(["y", "b", "a", "c"]))})
    np.testing.assert_array_equal(
        read_frame(enum).factor("g").codes, [0, 1, -1 if missing else 0, 2]
    )


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "float64", "float32", "bool"])
def test_numbers_are_coded_as_numpy_sorts_them(dtype: str) -> None:
    draw = np.random.default_rng(2)
    values = draw.integers(0, 2 if dtype == "bool" else 90, 5000).astype(dtype)
    for shift in (0, 30) if dtype in ("int64", "int8", "float64") else (0,):
        moved = values - values.dtype.type(shift) if shift else values
        levels, wanted = np.unique(moved, return_inverse=True)
        factor = sorted_factor(decode_array(moved, "n"), "n")
        assert factor.levels == tuple(levels.tolist())
        assert [type(v) for v in factor.levels[:2]] == [type(v) for v in levels.tolist()[:2]]
        np.testing.assert_array_equal(factor.codes, wanted)


@pytest.mark.parametrize("odd", [0.5, 1e12])
def test_numbers_that_fill_no_small_range(odd: float) -> None:
    values = np.concatenate([[odd, odd], np.arange(2000.0)])
    factor = sorted_factor(decode_array(values, "n"), "n")
    assert factor.levels == tuple(np.unique(values).tolist())
    assert factor.codes[0] == (1 if odd == 0.5 else 2000)


@pytest.mark.parametrize("kind", ["pandas", "polars", "dict"])
def test_a_large_design_takes_little_more_memory_than_itself(kind: str) -> None:
    n, draw = 100_000, np.random.default_rng(0)
    columns = {f"x{j}": draw.normal(size=n) for j in range(6)}
    for name, levels in (("a", 6), ("b", 11), ("d", 7)):
        words = np.array([f"{name}{k:02d}" for k in range(levels)])[draw.integers(0, levels, n)]
        columns[name] = pd.Categorical(words) if kind == "pandas" else words
    frame = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "dict": dict}[kind](columns)

    def build() -> np.ndarray:
        data = read_frame(frame)
        data = data.take(select_rows(data, columns))
        return learn_design(" + ".join(columns), data).blocks(data).dense

    build()  # loads libraries
    tracemalloc.start()
    try:
        design = build()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # beside the design: codes, and integers (n,) while texts are coded
    assert peak < 1.25 * design.nbytes


def test_threads_never_share_memory_that_is_used_again() -> None:
    shape = (2**18,)
    kept = [aligned(shape) for _ in range(4)]
    del kept  # back to the pool
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(lambda k: aligned(shape), range(64)))
    starts = sorted(a.ctypes.data for a in arrays)
    assert min(np.diff(starts)) >= arrays[0].nbytes
