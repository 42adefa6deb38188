"""One column of a caller's frame as numpy: its kind, its values, where it is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, some

MAX_EXACT_INTEGER = 2**53


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """A categorical column: integer codes into ``levels``.

    Attributes
    ----------
    codes : ndarray of int32, shape (n,)
        Position in ``levels``, -1 where the value is missing.
    levels : tuple
        The level values (str, int, bool or float), in level order.
    ordered : bool
        True for an ordered categorical.
    """

    codes: np.ndarray
    levels: tuple
    ordered: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The levels as R prints them."""
        return tuple(level_label(level) for level in self.levels)


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """Decoded values of one column.

    ``kind`` is number, bool, text, category, object, datetime, complex or other; ``values`` holds
    codes for a category; ``missing`` is (n,) bool; ``dtype`` is the caller's name of the type.
    """

    kind: str
    values: np.ndarray
    missing: np.ndarray
    dtype: str
    levels: tuple = ()
    ordered: bool = False

    def take(self, rows: np.ndarray) -> Column:
        """Return the column at these row positions."""
        return dataclasses.replace(self, values=self.values[rows], missing=self.missing[rows])


def level_label(level: Any) -> str:
    """Return a factor level as R writes it in a coefficient name."""
    if isinstance(level, (bool, np.bool_)):
        return "TRUE" if level else "FALSE"
    if isinstance(level, float) and level.is_integer() and abs(level) < 1e15:
        return str(int(level))
    return str(level)


def plain(value: Any) -> Any:
    """Return a numpy scalar as the Python scalar that JSON can hold."""
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def decode_array(values: Any, name: str) -> Column:
    """Decode anything that ``np.asarray`` makes one-dimensional."""
    mask = None
    if hasattr(values, "codes") and hasattr(values, "categories"):  # pandas.Categorical
        return _pandas_category(values)
    if isinstance(values, np.ma.MaskedArray):
        mask, values = np.ma.getmaskarray(values), values.filled()
    array = _as_array(values)
    if array.ndim != 1:
        raise DataError(
            f"column {name!r} has shape {array.shape}; a column is one-dimensional, one value per "
            "row. Pass each column under its own name."
        )
    column = _decode_by_dtype(array, str(array.dtype))
    if mask is not None and mask.any():
        column = dataclasses.replace(column, missing=column.missing | mask)
        if column.kind == "number":
            column = dataclasses.replace(
                column, values=np.where(mask, np.nan, column.values.astype(np.float64))
            )
    return column


def decode_pandas(series: Any, name: str) -> Column | None:
    """Decode a pandas Series of numpy, text or categorical type; None for any other type."""
    dtype = series.dtype
    if isinstance(dtype, np.dtype):
        return dataclasses.replace(decode_array(series.to_numpy(), name), dtype=str(dtype))
    if hasattr(dtype, "categories"):
        return _pandas_category(series.cat)
    if str(dtype) in ("str", "string"):
        values = series.to_numpy(dtype=object)
        return Column("text", values, np.asarray(series.isna(), dtype=bool), str(dtype))
    return None


def decode_series(series: Any) -> Column:
    """Decode a narwhals Series."""
    import narwhals as nw

    dtype = series.dtype
    missing = np.asarray(series.is_null().to_numpy(), dtype=bool)
    label = str(dtype)
    if isinstance(dtype, (nw.Categorical, nw.Enum)):
        return _decode_category(series, label)
    if dtype == nw.Decimal:
        series, dtype = series.cast(nw.Float64), nw.Float64()
    if dtype == nw.Boolean:
        values = series.fill_null(False).to_numpy() if missing.any() else series.to_numpy()
        return Column("bool", np.asarray(values, dtype=bool), missing, label)
    if dtype.is_integer():
        # nulls in an integer column would send the whole column through float64
        values = np.array((series.fill_null(0) if missing.any() else series).to_numpy())
        return Column("number", values, missing, label)
    if dtype.is_float():
        values = np.asarray(series.to_numpy(), dtype=np.float64)
        return Column("number", values, missing | np.isnan(values), label)
    if dtype == nw.String:
        values = np.asarray(series.to_numpy(), dtype=object)
        return Column("text", values, missing, label)
    if dtype.is_temporal():
        return Column("datetime", np.asarray(series.to_numpy()), missing, label)
    if missing.all() and len(missing):
        return Column("number", np.full(len(missing), np.nan), missing, label)
    if dtype == nw.Unknown or dtype == nw.Object:
        native = series.to_native()
        label = str(getattr(native, "dtype", getattr(native, "type", label)))
        return _decode_by_dtype(np.asarray(series.to_numpy()), label)
    return Column("other", np.asarray(series.to_list(), dtype=object), missing, label)


def sorted_factor(column: Column, name: str) -> Factor:
    """Return the factor of a column: levels sorted, or as the categorical has them."""
    if column.kind == "category":
        return Factor(column.values.astype(np.int32), column.levels, column.ordered)
    if column.kind in ("complex", "other"):
        raise DataError(
            f"column {name!r} has dtype {column.dtype} and cannot be a factor; convert it to text, "
            "integers or a categorical first."
        )
    present = ~column.missing
    values = column.values[present]
    try:
        levels, inverse = np.unique(values, return_inverse=True)
    except TypeError:
        kinds = some(sorted({type(v).__name__ for v in values}))
        raise DataError(
            f"column {name!r} mixes values of different types ({kinds}), so its levels have no "
            "order; convert it to one type, for example text."
        ) from None
    codes = np.full(len(column.missing), -1, dtype=np.int32)
    codes[present] = inverse.astype(np.int32).reshape(-1)
    return Factor(codes, tuple(plain(v) for v in levels))


def missing_values(values: np.ndarray) -> np.ndarray:
    """Return where a numpy array of any kind is missing (None, NaN, NaT)."""
    if values.dtype.kind in "fc":
        return np.isnan(values)
    if values.dtype.kind in "mM":
        return np.isnat(values)
    if values.dtype.kind == "O":
        # NaN, NaT and pandas.NA are not equal to themselves (NA answers with itself)
        return np.array([v is None or not _equals_itself(v) for v in values], dtype=bool)
    return np.zeros(len(values), dtype=bool)


def _equals_itself(value: Any) -> bool:
    try:
        return bool(value == value)
    except (TypeError, ValueError):
        return False


def _as_array(values: Any) -> np.ndarray:
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        # np.asarray(["a", None]) and ["a", 1.0] would silently become text
        array = np.asarray(values, dtype=object)
        if array.ndim != 1:
            return np.asarray(values)
        types = {type(v) for v in values}
        if not types & {str, bytes} and not any(v is None for v in values):
            return np.asarray(values)
        if types <= {int, float, bool, type(None)}:
            return np.asarray([np.nan if v is None else v for v in values], dtype=np.float64)
        return array
    return np.asarray(values)


def _decode_by_dtype(array: np.ndarray, dtype: str) -> Column:
    missing = missing_values(array)
    kind = array.dtype.kind
    if kind in "iuf":
        return Column("number", array, missing, dtype)
    if kind == "b":
        return Column("bool", array, missing, dtype)
    if kind in "US":
        return Column("text", array.astype(str).astype(object), missing, dtype)
    if kind in "mM":
        return Column("datetime", array, missing, dtype)
    if kind == "c":
        return Column("complex", array, missing, dtype)
    if kind == "O":
        types = {type(v) for v in array[~missing]}
        if types and types <= {str, np.str_}:
            return Column("text", array, missing, dtype)
        if types and types <= {bool, np.bool_}:
            values = np.array(
                [bool(v) if not m else False for v, m in zip(array, missing, strict=True)]
            )
            return Column("bool", values, missing, dtype)
        return Column("object", array, missing, dtype)
    return Column("other", array.astype(object), missing, dtype)


def _pandas_category(values: Any) -> Column:
    """Read ``pandas.Categorical`` or a series' ``.cat``."""
    codes = np.array(values.codes, dtype=np.int32)
    levels = tuple(plain(v) for v in values.categories)
    return Column("category", codes, codes < 0, "category", levels, bool(values.ordered))


def _decode_category(series: Any, dtype: str) -> Column:
    native = series.to_native()
    ordered = False
    accessor = getattr(native, "cat", None)
    if hasattr(accessor, "codes"):
        return _pandas_category(accessor)
    values = series.to_list()
    if hasattr(series.dtype, "categories"):  # polars Enum: the type owns the order
        levels = tuple(series.dtype.categories)
    elif hasattr(native, "combine_chunks"):  # pyarrow dictionary
        values = native.to_pylist()
        chunk = native.unify_dictionaries().combine_chunks()
        chunk = chunk.chunk(0) if hasattr(chunk, "num_chunks") else chunk
        levels, ordered = tuple(chunk.dictionary.to_pylist()), bool(native.type.ordered)
    else:  # a polars Categorical shares one string pool with other columns: no order of its own
        levels = tuple(sorted({v for v in values if v is not None}))
    position = {level: i for i, level in enumerate(levels)}
    codes = np.array([-1 if v is None else position[v] for v in values], dtype=np.int32)
    return Column("category", codes, codes < 0, dtype, levels, ordered)
