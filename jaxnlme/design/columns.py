"""One column of a caller's frame as numpy: its kind, its values, where it is missing."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import cached_property
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

    Attributes
    ----------
    kind : str
        number, bool, text, category, object, datetime, complex or other.
    raw : ndarray, shape (n,)
        The values; of a text or category int32 codes into ``levels``, -1 where missing.
    missing : ndarray of bool, shape (n,)
    dtype : str
        The caller's name of the type.
    levels : tuple
        Of a text (sorted) or category.
    ordered : bool
    """

    kind: str
    raw: np.ndarray
    missing: np.ndarray
    dtype: str
    levels: tuple = ()
    ordered: bool = False

    @cached_property
    def values(self) -> np.ndarray:
        """The values as given; codes of a category, texts (None where missing) of a text column."""
        if self.kind == "text":
            return np.array([*self.levels, None], dtype=object)[self.raw]
        return self.raw

    @cached_property
    def any_missing(self) -> bool:
        """True where a value is missing somewhere."""
        return bool(self.missing.any())

    def take(self, rows: np.ndarray) -> Column:
        """Return the column at these row positions."""
        return dataclasses.replace(self, raw=self.raw[rows], missing=self.missing[rows])


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
    return column if mask is None or not mask.any() else _masked(column, mask)


def _masked(column: Column, mask: np.ndarray) -> Column:
    raw = column.raw
    if column.kind == "number":
        raw = np.where(mask, np.nan, raw.astype(np.float64))
    elif column.kind in ("text", "category"):
        raw = np.where(mask, np.int32(-1), raw)
    return dataclasses.replace(column, raw=raw, missing=column.missing | mask)


def decode_pandas(series: Any, name: str) -> Column | None:
    """Decode a pandas Series of numpy, text or categorical type; None for any other type."""
    dtype = series.dtype
    if isinstance(dtype, np.dtype):
        if dtype.kind == "O":
            found = _factorized_text(series, "object")
            if found is not None:
                return found
        return dataclasses.replace(decode_array(series.to_numpy(), name), dtype=str(dtype))
    if hasattr(dtype, "categories"):
        return _pandas_category(series.cat)
    if str(dtype) in ("str", "string"):
        return _factorized_text(series, str(dtype))
    return None


def _factorized_text(series: Any, dtype: str) -> Column | None:
    """Read texts by the hash table of pandas; None where something else is among them."""
    try:
        codes, uniques = series.factorize()
    except TypeError:  # unhashable
        return None
    uniques = list(uniques)
    if not all(isinstance(u, str) for u in uniques) or (dtype == "object" and not uniques):
        return None
    return _text(np.asarray(codes), uniques, dtype)


def decode_series(series: Any) -> Column:
    """Decode a narwhals Series."""
    import narwhals as nw

    dtype = series.dtype
    label = str(dtype)
    if isinstance(dtype, (nw.Categorical, nw.Enum)):
        return _decode_category(series, label)
    if dtype == nw.String:
        return _decode_text(series, label)
    if dtype.is_float():
        values = np.asarray(series.to_numpy(), dtype=np.float64)
        missing = missing_values(values)
        if series.null_count():
            missing = missing | np.asarray(series.is_null().to_numpy(), dtype=bool)
        return Column("number", values, missing, label)
    missing = np.asarray(series.is_null().to_numpy(), dtype=bool)
    if dtype == nw.Decimal:
        values = np.asarray(series.cast(nw.Float64).to_numpy(), dtype=np.float64)
        return Column("number", values, missing | np.isnan(values), label)
    if dtype == nw.Boolean:
        values = series.fill_null(False).to_numpy() if missing.any() else series.to_numpy()
        return Column("bool", np.asarray(values, dtype=bool), missing, label)
    if dtype.is_integer():
        # nulls in an integer column would send the whole column through float64
        values = np.asarray((series.fill_null(0) if missing.any() else series).to_numpy())
        return Column("number", values, missing, label)
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
        return Factor(column.raw, column.levels, column.ordered)
    if column.kind == "text":
        return Factor(*_present_levels(column.raw, column.levels))
    if column.kind in ("complex", "other"):
        raise DataError(
            f"column {name!r} has dtype {column.dtype} and cannot be a factor; convert it to text, "
            "integers or a categorical first."
        )
    if not column.any_missing:
        found = _small_integers(column.raw)
        if found is not None:
            return Factor(*found)
    present = ~column.missing
    values = column.raw[present]
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


def _present_levels(codes: np.ndarray, levels: tuple) -> tuple[np.ndarray, tuple]:
    """Drop the levels without a row (a text column at some of its rows)."""
    counts = np.bincount(codes[codes >= 0] if (codes < 0).any() else codes, minlength=len(levels))
    if counts.all():
        return codes, levels
    kept = np.flatnonzero(counts)
    position = np.full(len(levels) + 1, -1, dtype=np.int32)
    position[kept] = np.arange(len(kept), dtype=np.int32)
    return position[codes], tuple(levels[k] for k in kept)


def _small_integers(values: np.ndarray) -> tuple[np.ndarray, tuple] | None:
    """Code whole numbers of a small range by a table instead of a sort; None where it is no gain."""
    if values.dtype.kind not in "biuf" or len(values) < 1000:
        return None
    low, high = values.min(), values.max()
    if not (abs(float(low)) < 2**31 and float(high) - float(low) < len(values)):
        return None
    offsets = (values.astype(np.float64) - float(low)) if values.dtype.kind != "f" else values - low
    place = offsets.astype(np.int32)
    if values.dtype.kind == "f" and not np.array_equal(place, offsets):
        return None
    seen = np.zeros(int(high) - int(low) + 1, dtype=bool)
    seen[place] = True
    kept = np.flatnonzero(seen)
    position = np.empty(len(seen), dtype=np.int32)
    position[kept] = np.arange(len(kept), dtype=np.int32)
    dtype = values.dtype.type
    return position[place], tuple(plain(dtype(int(low) + int(k))) for k in kept)


def missing_values(values: np.ndarray) -> np.ndarray:
    """Return where a numpy array of any kind is missing (None, NaN, NaT)."""
    if values.dtype.kind in "fc":
        with np.errstate(all="ignore"):
            total = values.sum()  # one cheap pass tells that nothing is missing
        return np.isnan(values) if np.isnan(total) else np.zeros(len(values), dtype=bool)
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
    kind = array.dtype.kind
    if kind in "OUS":
        found = _encoded_text(array if kind != "S" else array.astype(str), dtype)
        if found is not None:
            return found
    missing = missing_values(array)
    if kind in "iuf":
        return Column("number", array, missing, dtype)
    if kind == "b":
        return Column("bool", array, missing, dtype)
    if kind in "mM":
        return Column("datetime", array, missing, dtype)
    if kind == "c":
        return Column("complex", array, missing, dtype)
    if kind == "O":
        types = {type(v) for v in array[~missing]}
        if types and types <= {bool, np.bool_}:
            values = np.array(
                [bool(v) if not m else False for v, m in zip(array, missing, strict=True)]
            )
            return Column("bool", values, missing, dtype)
        return Column("object", array, missing, dtype)
    return Column("other", array.astype(object), missing, dtype)


def _encoded_text(array: np.ndarray, dtype: str) -> Column | None:
    """Read an array of texts by a dict of its values; None where something else is among them."""
    if array.dtype.kind == "U" and array.dtype.isnative and 0 < array.dtype.itemsize <= 64:
        codes, first = _distinct_texts(np.ascontiguousarray(array))
        return _text(codes, array[first].tolist(), dtype)
    pandas: Any = sys.modules.get("pandas")  # its hash table, where the caller has loaded it
    if array.dtype.kind == "O" and len(array) > 10_000 and hasattr(pandas, "factorize"):
        return _factorized_text(pandas.Series(array, dtype=object), "object")
    items = array.tolist()
    try:
        position = dict.fromkeys(items)
    except TypeError:  # unhashable
        return None
    uniques = [u for u in position if isinstance(u, str)]
    others = [u for u in position if not isinstance(u, str)]
    if not all(u is None or not _equals_itself(u) for u in others) or (others and not uniques):
        return None
    position.update(dict.fromkeys(others, -1))
    position.update(zip(uniques, range(len(uniques)), strict=True))
    codes = np.fromiter(map(position.__getitem__, items), dtype=np.int32, count=len(items))
    return _text(codes, uniques, dtype)


def _distinct_texts(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and first positions of short texts, character by character, without Python objects."""
    characters = array.view(np.uint32).reshape(len(array), -1)
    codes, first = np.zeros(len(array), dtype=np.int32), np.zeros(min(1, len(array)), dtype=np.intp)
    for column in characters.T:
        size = int(column.max(initial=0)) + 1
        _, first, codes = _distinct(codes.astype(np.int64) * size + column)
    return codes, first


def _text(codes: np.ndarray, uniques: Sequence[str], dtype: str) -> Column:
    """Return a text column from codes (-1: missing) into distinct texts of any order."""
    uniques = [str(u) for u in uniques]
    order = sorted(range(len(uniques)), key=uniques.__getitem__)
    position = np.full(len(uniques) + 1, -1, dtype=np.int32)
    position[order] = np.arange(len(uniques), dtype=np.int32)
    codes = position[codes]
    return Column("text", codes, codes < 0, dtype, tuple(uniques[k] for k in order))


def _pandas_category(values: Any) -> Column:
    """Read ``pandas.Categorical`` or a series' ``.cat``."""
    codes = np.array(values.codes, dtype=np.int32)
    levels = tuple(plain(v) for v in values.categories)
    return Column("category", codes, codes < 0, "category", levels, bool(values.ordered))


def _decode_text(series: Any, dtype: str) -> Column:
    import narwhals as nw

    native = series.to_native()
    if hasattr(native, "dictionary_encode"):  # pyarrow
        codes, levels = _arrow_dictionary(native.dictionary_encode())
    elif hasattr(native, "to_physical"):  # polars
        codes, levels = _polars_pool(series.cast(nw.Categorical).to_native())
    else:
        return _decode_by_dtype(np.asarray(series.to_numpy(), dtype=object), dtype)
    return _text(codes, levels, dtype)


def _decode_category(series: Any, dtype: str) -> Column:
    native = series.to_native()
    ordered = False
    accessor = getattr(native, "cat", None)
    if hasattr(accessor, "codes"):
        return _pandas_category(accessor)
    if hasattr(native, "dictionary_encode"):  # pyarrow
        codes, levels = _arrow_dictionary(native)
        ordered = bool(native.type.ordered)
    elif not hasattr(native, "to_physical"):
        found = _decode_by_dtype(np.array(series.to_list(), dtype=object), dtype)
        return found if found.kind != "text" else dataclasses.replace(found, kind="category")
    elif hasattr(series.dtype, "categories"):  # polars Enum: the type owns the order
        codes = native.to_physical().cast(int).fill_null(-1).to_numpy()
        levels = tuple(series.dtype.categories)
    else:  # a polars Categorical shares one string pool with other columns: no order of its own
        text = _text(*_polars_pool(native), dtype)
        codes, levels = text.raw, text.levels
    codes = np.asarray(codes, dtype=np.int32)
    return Column("category", codes, codes < 0, dtype, levels, ordered)


def _arrow_dictionary(native: Any) -> tuple[np.ndarray, tuple]:
    """Return codes (-1: missing) and values of a pyarrow dictionary column."""
    chunk = native.unify_dictionaries().combine_chunks()
    if hasattr(chunk, "num_chunks"):
        chunk = chunk.chunk(0)
    levels = chunk.dictionary.to_pylist()
    codes = chunk.indices.cast("int32").fill_null(-1).to_numpy(zero_copy_only=False)
    if None in levels:
        kept = [k for k, level in enumerate(levels) if level is not None]
        position = np.full(len(levels) + 1, -1, dtype=np.int32)
        position[kept] = np.arange(len(kept), dtype=np.int32)
        codes, levels = position[codes], [levels[k] for k in kept]
    return np.asarray(codes, dtype=np.int32), tuple(levels)


def _polars_pool(native: Any) -> tuple[np.ndarray, list]:
    """Return codes (-1: missing) and texts of a polars Categorical, whose pool holds others too."""
    physical = native.to_physical().cast(int).fill_null(-1).to_numpy()
    present, first, codes = _distinct(physical)
    texts = native.gather(first).to_list()
    shift = int(len(present) > 0 and present[0] < 0)  # -1 comes first
    return codes - shift, texts[shift:]


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``np.unique`` of integers from -1 on, with first positions and codes, by a table if small."""
    n, top = len(values), int(values.max(initial=-1)) + 2
    if top > 4 * n + 1000:
        return np.unique(values, return_index=True, return_inverse=True)
    first = np.full(top, -1, dtype=np.int64)
    first[values[::-1] + 1] = np.arange(n - 1, -1, -1)
    present = np.flatnonzero(first >= 0)
    position = np.empty(top, dtype=np.int32)
    position[present] = np.arange(len(present), dtype=np.int32)
    return present - 1, first[present], position[values + 1]
