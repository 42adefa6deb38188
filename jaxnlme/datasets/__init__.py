"""Published data sets, shipped with their source: ``load``, ``list``, ``info``."""

from __future__ import annotations

import builtins
import csv
import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jaxnlme._errors import ModelSpecError, nearest

__all__ = ["DatasetInfo", "info", "list", "load"]


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set is: printed as a short page.

    Attributes
    ----------
    name, title, source, licence
        Text.
    rows
        Number of rows.
    columns
        Column name -> meaning, with the unit.
    levels
        Factor column -> its levels in order.
    """

    name: str
    title: str
    source: str
    licence: str
    rows: int
    columns: dict[str, str]
    levels: dict[str, tuple[str, ...]]

    def __str__(self) -> str:
        width = max(len(column) for column in self.columns)
        lines = [f"{self.name}: {self.title} ({self.rows} rows)"]
        lines += [f"  {column:<{width}}  {about}" for column, about in self.columns.items()]
        return "\n".join([*lines, f"Source: {self.source}", f"Licence: {self.licence}"])


@functools.cache
def _catalogue() -> dict[str, dict[str, Any]]:
    return json.loads((resources.files(__name__) / "catalogue.json").read_text("utf-8"))


def _entry(name: str) -> dict[str, Any]:
    catalogue = _catalogue()
    if name not in catalogue:
        raise ModelSpecError(
            f"datasets: no data set {name!r}.{nearest(name, catalogue)} There are: "
            + ", ".join(catalogue)
            + "."
        )
    return catalogue[name]


def list() -> builtins.list[str]:
    """Return the names of all data sets.

    Examples
    --------
    >>> import jaxnlme as jn
    >>> jn.datasets.list()[:3]
    ['theoph', 'indometh', 'orange']
    """
    return builtins.list(_catalogue())


def info(name: str) -> DatasetInfo:
    """Describe a data set: title, source, licence, columns with units, factor levels.

    Examples
    --------
    >>> import jaxnlme as jn
    >>> jn.datasets.info("theoph").columns["conc"]
    'theophylline concentration in serum, mg/L'
    """
    entry = _entry(name)
    columns = entry["columns"]
    return DatasetInfo(
        name=name,
        title=entry["title"],
        source=entry["source"],
        licence=entry["licence"],
        rows=entry["rows"],
        columns={column: about["about"] for column, about in columns.items()},
        levels={c: tuple(about["levels"]) for c, about in columns.items() if "levels" in about},
    )


def load(name: str, as_: str = "pandas") -> Any:
    """Return a data set as a data frame.

    Factors are categorical columns (an ``Enum`` in polars): treatments with their levels in R's
    order, so that the baseline is R's, and group labels in natural order. Rows stand in the order
    of the source. Missing numbers are NaN (null in polars).

    Parameters
    ----------
    name
        One of :func:`list`.
    as_
        ``"pandas"`` or ``"polars"`` (extra ``polars``).

    Raises
    ------
    ModelSpecError
        Unknown `name` or `as_`, or polars is not installed.

    Examples
    --------
    >>> import jaxnlme as jn
    >>> jn.datasets.load("theoph").shape
    (132, 5)
    """
    entry = _entry(name)
    frames = {"pandas": _pandas, "polars": _polars}
    if as_ not in frames:
        raise ModelSpecError(f"datasets.load: as_={as_!r}; expected 'pandas' or 'polars'.")
    text = (resources.files(__name__) / f"{name}.csv").read_text("utf-8")
    rows = builtins.list(csv.reader(text.splitlines()))
    columns = {}
    for column, values in zip(rows[0], zip(*rows[1:], strict=True), strict=True):
        convert = {"float": float, "int": int}.get(entry["columns"][column]["kind"], str)
        columns[column] = [convert(value) if value else None for value in values]
    return frames[as_](columns, entry["columns"])


def _pandas(columns: dict[str, builtins.list], about: dict[str, dict[str, Any]]) -> Any:
    import pandas as pd

    def series(column: str) -> Any:
        kind, values = about[column]["kind"], columns[column]
        if kind in ("float", "int"):
            return pd.Series(values, dtype="float64" if kind == "float" else "int64")
        return pd.Categorical(values, about[column]["levels"], ordered=kind == "ordered")

    return pd.DataFrame({column: series(column) for column in columns})


def _polars(columns: dict[str, builtins.list], about: dict[str, dict[str, Any]]) -> Any:
    try:
        import polars as pl
    except ImportError as error:
        raise ModelSpecError(
            "datasets.load: as_='polars' needs polars: pip install 'jaxnlme[polars]'."
        ) from error

    def dtype(column: str) -> Any:
        kinds = {"float": pl.Float64, "int": pl.Int64}
        return kinds.get(about[column]["kind"]) or pl.Enum(about[column]["levels"])

    return pl.DataFrame([pl.Series(c, values, dtype=dtype(c)) for c, values in columns.items()])
