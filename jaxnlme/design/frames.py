"""Frames at the edge: pandas, polars, pyarrow or a dict of arrays, read by position as numpy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import (
    DataError,
    DataWarning,
    FormulaError,
    PrecisionWarning,
    nearest,
    some,
    warn,
)
from jaxnlme._typing import Frame
from jaxnlme.design.columns import (
    MAX_EXACT_INTEGER,
    Column,
    Factor,
    decode_array,
    decode_pandas,
    decode_series,
    sorted_factor,
)


class Table:
    """Columns of a frame by name, decoded when they are first asked for.

    Rows are positions 0..n-1: an index is never read, nothing is aligned, and the caller's frame
    is never changed. Make one with :func:`read_frame`.
    """

    def __init__(self, sources: dict[str, Any], n: int, kind: str, argument: str = "data") -> None:
        self._sources = sources
        self._decoded: dict[str, Column] = {}
        self._factors: dict[str, Factor] = {}
        self.n = n
        self.kind = kind
        self.argument = argument

    def __repr__(self) -> str:
        return f"Table({self.n} rows, kind={self.kind!r}, columns: {some(self.names, 8)})"

    def __len__(self) -> int:
        return self.n

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in the frame's order."""
        return tuple(self._sources)

    def column(self, name: str, *, role: str = "") -> Column:
        """Return one decoded column; an absent one raises with the nearest names."""
        if name not in self._decoded:
            if name not in self._sources:
                what = f"{role} column" if role else "column"
                raise FormulaError(
                    f"{what} {name!r} is not in {self.argument}.{nearest(name, self.names)} "
                    f"Columns there: {some(self.names, 12)}."
                )
            source = self._sources[name]
            self._decoded[name] = (
                source if isinstance(source, Column) else read_column(source, name)
            )
        return self._decoded[name]

    def is_numeric(self, name: str) -> bool:
        """Return True where the column holds numbers (booleans and categories do not count)."""
        return self.column(name).kind == "number"

    def missing(self, name: str) -> np.ndarray:
        """Return (n,) bool, True where the value is missing (null, None, NaN, NaT)."""
        return self.column(name).missing

    def numeric(self, name: str, role: str = "") -> np.ndarray:
        """Return the column as float64 (n,), NaN where missing.

        Booleans become 0 and 1.

        Raises
        ------
        DataError
            For text, objects, categories, dates, complex and infinite values.

        Warns
        -----
        PrecisionWarning
            Where an integer beyond 2**53 loses digits.
        """
        values = self.floats(name, role)
        return values if values.flags.writeable else values.copy()

    def floats(self, name: str, role: str = "") -> np.ndarray:
        """Return what ``numeric`` does without a copy where it can: read only, for computing."""
        return to_float(self.column(name, role=role), _title(name, role), cast=f"data[{name!r}]")

    def factor(self, name: str, role: str = "") -> Factor:
        """Return the column as codes and levels (text and numbers: sorted; categories: as is)."""
        if name not in self._factors:
            self._factors[name] = sorted_factor(self.column(name, role=role), name)
        return self._factors[name]

    def take(self, rows: Any) -> Table:
        """Return the table at these row positions."""
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        if len(rows) == self.n and np.array_equal(rows, np.arange(self.n)):
            return self
        taken = {name: _LazyColumn(self, name, rows) for name in self._sources}
        return _TakenTable(taken, len(rows), self.kind, self.argument)

    def with_column(self, name: str, values: Any) -> Table:
        """Return the table with one column replaced or added (n values)."""
        return type(self)({**self._sources, name: values}, self.n, self.kind, self.argument)

    def native(self, columns: Mapping[str, Any]) -> Frame:
        """Return a new frame of the caller's kind (dict becomes pandas)."""
        return make_frame(columns, self.kind)


class _LazyColumn:
    """A column of another table at some rows, decoded there first."""

    def __init__(self, table: Table, name: str, rows: np.ndarray) -> None:
        self.table, self.name, self.rows = table, name, rows


class _TakenTable(Table):
    def column(self, name: str, *, role: str = "") -> Column:
        source = self._sources.get(name)
        if isinstance(source, _LazyColumn):
            self._sources[name] = source.table.column(name, role=role).take(source.rows)
        return super().column(name, role=role)


def read_frame(data: Frame, *, argument: str = "data") -> Table:
    """Read a pandas, polars or pyarrow frame, or a dict of 1-D arrays.

    Parameters
    ----------
    data
        The frame. A lazy frame must be collected first.
    argument
        The caller's argument name, for messages.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        No frame, 0 rows, duplicated column names or columns of different length.

    Examples
    --------
    >>> table = read_frame({"time": [0.0, 1.0], "group": ["b", "a"]})
    >>> table.n, table.names, table.factor("group").levels
    (2, ('time', 'group'), ('a', 'b'))
    """
    if isinstance(data, Table):
        return data
    table = (
        _read_dict(data, argument) if isinstance(data, Mapping) else _read_native(data, argument)
    )
    if table.n == 0:
        raise DataError(f"{argument} has 0 rows; at least one row is needed.")
    return table


def read_arrays(
    X: Any,
    y: Any = None,
    group: Any = None,
    *,
    names: Sequence[str] | None = None,
    arguments: tuple[str, str, str] = ("X", "y", "group"),
) -> tuple[np.ndarray, np.ndarray | None, Factor | None]:
    """Check array arguments: ``X`` (n, h) or (n,), ``y`` (n,), ``group`` (n,).

    Returns float64 ``X`` of shape (n, h), float64 ``y`` and the factor of ``group``. A frame of
    numbers is accepted for ``X`` and a series for ``y``; alignment is by position.

    Raises
    ------
    DataError
        Lengths differ, ``y`` is not one-dimensional, values are not finite numbers or missing.

    Examples
    --------
    >>> X, y, group = read_arrays([1.0, 2.0], [3.0, 4.0], ["b", "a"])
    >>> X.shape, group.codes.tolist()
    ((2, 1), [1, 0])
    """
    x_name, y_name, group_name = arguments
    columns = _matrix_columns(X, x_name, names)
    lengths = {x_name: len(columns[0][1])}
    matrix = np.column_stack([to_float(read_column(v, title), title) for title, v in columns])
    if y is not None:
        y = _vector(y, y_name)
        lengths[y_name] = len(y)
        y = np.array(to_float(read_column(y, y_name), y_name))
    factor = None
    if group is not None:
        column = read_column(_ravel_column(group), group_name)
        lengths[group_name] = len(column.missing)
        if column.missing.any():
            raise DataError(
                f"{group_name} is missing in {int(column.missing.sum())} rows (rows "
                f"{some(np.flatnonzero(column.missing))}); every row needs a group."
            )
        factor = sorted_factor(column, group_name)
    check_lengths(lengths)
    if matrix.shape[0] == 0:
        raise DataError(f"{x_name} has 0 rows; at least one row is needed.")
    return matrix, y, factor


def select_rows(
    table: Table,
    columns: Iterable[str],
    missing: str = "drop",
    never_missing: Mapping[str, str] | Iterable[str] = (),
) -> np.ndarray:
    """Return the positions of rows in which none of ``columns`` is missing.

    Parameters
    ----------
    table
        The data.
    columns
        The columns that the model uses.
    missing
        ``"drop"`` (with a DataWarning that counts) or ``"raise"``.
    never_missing
        Columns in which a missing value always raises (weights, offset, exposure), by name or as
        ``{role: column}``.

    Examples
    --------
    >>> import warnings
    >>> table = read_frame({"x": [1.0, float("nan"), 3.0]})
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     select_rows(table, ["x"]).tolist()
    [0, 2]
    """
    if missing not in ("drop", "raise"):
        raise DataError(f"missing={missing!r} is not known; use missing='drop' or missing='raise'.")
    roles = never_missing if isinstance(never_missing, Mapping) else {c: c for c in never_missing}
    for role, name in roles.items():
        check_complete(table.missing(name), role if role == name else f"{role} (column {name!r})")
    counts: dict[str, int] = {}
    dropped = np.zeros(table.n, dtype=bool)
    for name in dict.fromkeys(columns):
        column = table.column(name)
        if column.kind == "number":
            check_finite(column.raw, f"column {name!r}")
        if column.any_missing:
            absent = column.missing
            counts[name] = int(absent.sum())
            if missing == "raise":
                raise DataError(
                    f"column {name!r} has {counts[name]} missing values (rows "
                    f"{some(np.flatnonzero(absent))}) and missing='raise'. Remove them, or use "
                    "missing='drop' to leave these rows out."
                )
            dropped |= absent
    if dropped.all():
        worst = max(counts, key=lambda name: counts[name])
        raise DataError(
            f"0 of {table.n} rows are left after dropping missing values; column {worst!r} alone "
            f"removes {counts[worst]}. Leave it out of the model, or fill it."
        )
    if counts:
        per_column = ", ".join(f"{name!r}: {count}" for name, count in counts.items())
        warn(
            f"{int(dropped.sum())} of {table.n} rows dropped because of missing values "
            f"({per_column}); row_index says which rows were used.",
            DataWarning,
        )
    return np.flatnonzero(~dropped)


def check_complete(missing: np.ndarray, role: str) -> None:
    """Raise where weights, an offset or an exposure have missing values (``missing`` is bool)."""
    if missing.any():
        raise DataError(
            f"{role} has {int(missing.sum())} missing values (rows {some(np.flatnonzero(missing))})"
            "; they are never dropped. Fill them or remove these rows."
        )


def check_finite(values: np.ndarray, title: str) -> None:
    """Raise where values are infinite (NaN passes)."""
    if values.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        if np.isfinite(values.sum()):  # one cheap pass
            return
    infinite = np.isinf(values)
    if infinite.any():
        raise DataError(
            f"{title} is infinite in {int(infinite.sum())} rows (rows "
            f"{some(np.flatnonzero(infinite))}); infinite values are never dropped. Correct them, "
            "or set them to NaN if they are unknown."
        )


def check_lengths(lengths: Mapping[str, int]) -> None:
    """Raise unless all arguments have one length."""
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise DataError(
            f"arguments of different length: {found} rows. Rows are matched by position, never by "
            "index; pass arrays of one length."
        )


def make_frame(columns: Mapping[str, Any], kind: str) -> Frame:
    """Return a frame of a kind (``"dict"`` becomes pandas)."""
    columns = dict(columns)
    if kind == "polars":
        import polars as pl

        return pl.DataFrame(columns)
    if kind == "pyarrow":
        import pyarrow as pa

        return pa.table({k: pa.array(v) for k, v in columns.items()})
    import pandas as pd

    return pd.DataFrame(columns)


def _title(name: str, role: str) -> str:
    return f"{role} column {name!r}" if role else f"column {name!r}"


def to_float(column: Column, title: str, cast: str = "") -> np.ndarray:
    """Return a decoded column as float64, NaN where missing; ``title`` names it in messages.

    The result is read-only where it shares the caller's memory.
    """
    if column.kind not in ("number", "bool"):
        raise DataError(_not_numeric(column, title, cast or "values"))
    values = column.raw
    if not _exact(values):
        lost = (values > MAX_EXACT_INTEGER) | (values < -MAX_EXACT_INTEGER)
        warn(
            f"{title} holds integers beyond 2**53 (rows {some(np.flatnonzero(lost))}); float64 "
            "cannot keep all their digits. Subtract a constant first, or use a category if "
            "they are labels.",
            PrecisionWarning,
        )
    if column.any_missing:
        values = np.array(values, dtype=np.float64)
        values[column.missing] = np.nan
    else:
        values = np.asarray(values, dtype=np.float64)
        if values is column.raw:
            values = values.view()
            values.flags.writeable = False
    check_finite(values, title)
    return values


def _exact(values: np.ndarray) -> bool:
    """True where float64 holds every value of an array of numbers."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8 or not len(values):
        return True
    return int(values.max()) <= MAX_EXACT_INTEGER and int(values.min()) >= -MAX_EXACT_INTEGER


def _not_numeric(column: Column, title: str, cast: str) -> str:
    if column.kind == "category":
        return (
            f"{title} is a category with levels {some(column.levels)}; a number is needed. Cast it "
            "if its labels are numbers."
        )
    cures = {
        "text": f"If these are numbers, cast first ({cast}.astype(float)); if they are labels, use "
        "C(...) around the name in a formula.",
        "object": f"It holds Python objects, not numbers: cast first ({cast}.astype(float)).",
        "datetime": "Convert dates and times explicitly, for example to hours since the first one.",
        "complex": "Complex numbers are not supported: take the real part or the modulus.",
    }
    present = column.values[~column.missing]
    example = f", for example {present[0]!r}" if len(present) else ""
    cure = cures.get(column.kind, "Convert it to numbers first.")
    return f"{title} has dtype {column.dtype}{example}; a number is needed. {cure}"


def _read_dict(data: Mapping, argument: str) -> Table:
    sources: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for key, values in data.items():
        name = str(key)
        if name in sources:
            raise DataError(f"{argument} has two columns named {name!r}; rename one.")
        if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
            raise DataError(
                f"{argument}[{name!r}] is {type(values).__name__}, not a column; a dict of 1-D "
                "arrays is needed, one value per row."
            )
        sources[name] = values
        lengths[f"{argument}[{name!r}]"] = len(values)
    check_lengths(lengths)
    return Table(sources, next(iter(lengths.values()), 0), "dict", argument)


def _read_native(data: Any, argument: str) -> Table:
    if hasattr(data, "collect") and not hasattr(data, "iter_rows"):
        raise DataError(f"{argument} is lazy ({type(data).__name__}); call .collect() first.")
    _check_duplicates(data, argument)
    if _is_pandas(data) and hasattr(data, "iloc") and hasattr(data, "columns"):
        columns = [data.iloc[:, j] for j in range(data.shape[1])]
        return Table(_named(data.columns, columns, argument), len(data), "pandas", argument)
    import narwhals as nw

    try:
        frame: Any = nw.from_native(data, eager_only=True)
    except TypeError:
        shape = f" of shape {data.shape}" if isinstance(data, np.ndarray) else ""
        raise DataError(
            f"{argument} is {type(data).__name__}{shape}; a pandas, polars or pyarrow frame or a "
            "dict of 1-D arrays is needed."
        ) from None
    kind = frame.implementation.value.lower()
    if kind not in ("pandas", "polars", "pyarrow"):
        raise DataError(
            f"{argument} is a frame of kind {kind!r}; pandas, polars and pyarrow are read. Convert "
            "it first."
        )
    sources = _named(frame.columns, frame.iter_columns(), argument)
    return Table(sources, len(frame), kind, argument)


def _named(names: Iterable, columns: Iterable, argument: str) -> dict[str, Any]:
    sources: dict[str, Any] = {}
    for name, column in zip(names, columns, strict=True):
        if str(name) in sources:
            raise DataError(f"{argument} has two columns named {str(name)!r}; rename one.")
        sources[str(name)] = column
    return sources


def _is_pandas(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "pandas"


def _check_duplicates(data: Any, argument: str) -> None:
    found: Any = getattr(data, "column_names", None)
    names: list[Any] = list(getattr(data, "columns", ()) if found is None else found)
    seen: set = set()
    for name in names:
        if isinstance(name, (str, int, tuple)):
            if name in seen:
                raise DataError(
                    f"{argument} has duplicated column names: {name!r} appears "
                    f"{names.count(name)} times. Rename or drop one."
                )
            seen.add(name)


def _is_series(values: Any) -> bool:
    """pandas, polars, pyarrow and narwhals columns; a jax or numpy array is none."""
    return (hasattr(values, "to_numpy") or hasattr(values, "to_native")) and not hasattr(
        values, "columns"
    )


def read_column(values: Any, name: str) -> Column:
    """Decode one column of any kind: a series, a categorical, an array or a list."""
    if _is_pandas(values) and hasattr(values, "iloc"):
        column = decode_pandas(values, name)  # the usual types, without loading narwhals
        if column is not None:
            return column
    if _is_series(values) and not hasattr(values, "categories"):
        import narwhals as nw

        try:
            return decode_series(nw.from_native(values, series_only=True))
        except TypeError:
            values = np.asarray(values)
    return decode_array(values, name)


def _ravel_column(values: Any) -> Any:
    """MATLAB users hold a column vector as (n, 1)."""
    shape = np.shape(values)
    return np.ravel(values) if len(shape) == 2 and shape[1] == 1 else values


def _matrix_columns(X: Any, argument: str, names: Sequence[str] | None) -> list[tuple[str, Any]]:
    if isinstance(X, Mapping) or hasattr(X, "columns") or hasattr(X, "column_names"):
        table = read_frame(X, argument=argument)
        return [
            (f"{argument} column {name!r}", table.numeric(name, argument)) for name in table.names
        ]
    array = np.asarray(X)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise DataError(
            f"{argument} has shape {np.shape(X)}; (n,) or (n, h) with a column or more is needed."
        )
    if names is not None and len(names) != array.shape[1]:
        raise DataError(
            f"names has {len(names)} entries for the {array.shape[1]} columns of {argument}."
        )
    titles = names or [f"{j + 1}" for j in range(array.shape[1])]
    return [(f"{argument} column {t}", array[:, j]) for j, t in enumerate(titles)]


def _vector(y: Any, argument: str) -> Any:
    shape = np.shape(y)
    if len(shape) != 1:
        cure = f"pass {argument}.ravel()" if len(shape) == 2 and 1 in shape else "pass one response"
        raise DataError(f"{argument} has shape {shape}; a vector (n,) is needed: {cure}.")
    return y


__all__ = [
    "Column",
    "Factor",
    "Table",
    "check_complete",
    "check_finite",
    "check_lengths",
    "make_frame",
    "read_arrays",
    "read_column",
    "read_frame",
    "select_rows",
    "to_float",
]
