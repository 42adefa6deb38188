"""What a GLM fit knows about its model: names, designs, family; reads new data the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, FormulaError, ModelSpecError, some
from jaxnlme.design.formula import DesignSpec
from jaxnlme.design.frames import Table, check_lengths, read_frame
from jaxnlme.design.response import read_response
from jaxnlme.design.variables import Variable
from jaxnlme.families import AbstractFamily, Prepared, Response
from jaxnlme.links import AbstractLink


@dataclasses.dataclass(frozen=True)
class Covariate:
    """Weights, offset or exposure as the user gave it: a column, an array, or not at all."""

    role: str
    name: str | None = None
    is_array: bool = False

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self.is_array or self.name is not None


def read_covariate(value: Any, role: str, table: Table) -> tuple[Covariate, np.ndarray | None]:
    """Read a column name or an array (n,); missing and infinite values raise.

    Raises
    ------
    DataError
        Wrong length or shape, missing or infinite values.
    """
    if value is None:
        return Covariate(role), None
    if isinstance(value, str):
        values = table.numeric(value, role)
        given = Covariate(role, name=value)
        title = f"{role} (column {value!r})"
    else:
        values, given, title = np.asarray(value, np.float64), Covariate(role, is_array=True), role
        if values.ndim != 1:
            raise DataError(
                f"{role} has shape {values.shape}; give one value per row, ({table.n},)."
            )
        check_lengths({role: len(values), table.argument: table.n})
    if not np.isfinite(np.sum(values)):
        bad = np.flatnonzero(np.isnan(values))
        if len(bad):
            raise DataError(
                f"{title} has {len(bad)} missing values (rows {some(bad)}); they are never dropped. Fill "
                "them or remove these rows."
            )
        bad = np.flatnonzero(np.isinf(values))
        raise DataError(f"{title} is infinite in {len(bad)} row(s) (rows {some(bad)}).")
    return given, values


def column_reader(table: Table) -> Callable[[str], np.ndarray]:
    """How a family reads further columns: booleans stay booleans, numbers are float64."""

    def read(name: str) -> np.ndarray:
        column = table.column(name)
        return np.asarray(column.values, bool) if column.kind == "bool" else table.numeric(name)

    return read


@dataclasses.dataclass(frozen=True)
class GLMSpec:
    """Names and designs of a GLM.

    Attributes
    ----------
    formula
        The two-sided formula as text (array door: made from the names).
    response
        Left side, or the name of ``y``.
    mean
        Design of the mean.
    others
        One design per entry of ``family.parameters``; None where it shares the design of the mean.
    named
        For each of them, whether the user gave a formula (its coefficients are then listed).
    family, links
        The family (levels learned) and one link per predictor.
    weights, offset, exposure
        How these were given.
    names
        Column names of ``X`` in the array door, else None.
    levels
        Levels of a label response.
    """

    formula: str
    response: str
    mean: DesignSpec
    others: tuple[DesignSpec | None, ...]
    named: tuple[bool, ...]
    family: AbstractFamily
    links: tuple[AbstractLink, ...]
    weights: Covariate
    offset: Covariate
    exposure: Covariate
    names: tuple[str, ...] | None = None
    levels: tuple | None = None

    @property
    def mean_columns(self) -> np.ndarray:
        """Positions of the columns of ``mean.labels`` that are used (ordinal families hold the constant)."""
        labels = self.mean.labels
        keep = [k for k, t in enumerate(labels) if self.family.has_intercept or t != "(Intercept)"]
        return np.array(keep, int)

    @property
    def mean_labels(self) -> tuple[str, ...]:
        """Labels of the mean's design columns, without a class prefix."""
        return tuple(self.mean.labels[k] for k in self.mean_columns)

    @property
    def has_intercept(self) -> bool:
        """Whether the mean has a constant column."""
        return "(Intercept)" in self.mean_labels

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Labels of all P coefficients; a nuisance scalar has the name of its parameter."""
        prefix = "" if self.family.mean_name is None else f"{self.family.mean_name}."
        labels = [prefix + label for label in self.mean_labels]
        for parameter, design in zip(self.family.parameters, self.others, strict=True):
            inner = self.mean_labels if design is None else design.labels
            if inner == ("(Intercept)",) and design is not None:
                labels.append(parameter.name)
            else:
                labels += [f"{parameter.name}.{label}" for label in inner]
        return tuple(labels)

    @property
    def predictor(self) -> np.ndarray:
        """(P,) predictor of each coefficient: 0 the mean, k the k-th parameter of the family."""
        widths = [len(self.mean_labels)]
        widths += [
            len(self.mean_labels if design is None else design.labels) for design in self.others
        ]
        return np.repeat(np.arange(len(widths)), widths)

    @property
    def listed(self) -> np.ndarray:
        """(P,) bool: coefficients that stand in ``params``; the others are nuisance scalars."""
        shown = [True]
        for parameter, named in zip(self.family.parameters, self.named, strict=True):
            shown.append(named or parameter.listed or parameter.formula == "mean")
        return np.array(shown)[self.predictor]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of ``params``."""
        return tuple(t for t, show in zip(self.all_labels, self.listed, strict=True) if show)

    @property
    def columns(self) -> tuple[str, ...]:
        """Data columns that the designs read."""
        designs = [self.mean, *(d for d in self.others if d is not None)]
        return tuple(dict.fromkeys(c for d in designs for c in d.columns))

    def read(self, newdata: Any) -> Table:
        """Read new data: a frame, or for the array door also an array (m, p)."""
        if isinstance(newdata, Table):
            return newdata
        if self.names is None or not isinstance(newdata, np.ndarray | list | tuple):
            return read_frame(newdata, argument="newdata")
        X = np.asarray(newdata, np.float64)
        X = X.reshape(-1, len(self.names)) if X.ndim == 1 else X
        if X.ndim != 2 or X.shape[1] != len(self.names):
            raise DataError(
                f"newdata has shape {X.shape}; the fit used {len(self.names)} columns "
                f"{some(self.names, 8)}."
            )
        return read_frame({n: X[:, j] for j, n in enumerate(self.names)}, argument="newdata")

    def respond(self, table: Table) -> Prepared:
        """Read the response of new data, in the form of the kernels.

        Raises
        ------
        DataError
            The response is absent, has an unseen level or lies outside the family's support.
        """
        values, levels, _ = read_response(self.response, table, self.levels)
        weights = np.ones(table.n)
        if self.weights.name is not None:
            weights = table.numeric(self.weights.name, "weights")
        response = Response(
            values=values, weights=weights, weighted=self.weights.given, levels=levels,
            column=column_reader(table), name=self.response, rows=np.arange(table.n),
        )  # fmt: skip
        return self.family.read_response(response)

    def designs(self, table: Table) -> list[np.ndarray]:
        """One matrix (n, p_k) per predictor; rows with a missing value are NaN."""
        mean = self.mean.matrix(table)
        if not self.family.has_intercept:
            mean = mean[:, self.mean_columns]
        return [mean, *(mean if d is None else d.matrix(table) for d in self.others)]

    def offsets(
        self, table: Table, *, exposure: Any = None, offset: Any = None
    ) -> list[np.ndarray]:
        """One offset (n,) per predictor at new data.

        Columns of the fit are read from the table; what was given to the fit as an array must be given again.

        Raises
        ------
        ModelSpecError
            The fit had an array exposure or offset and none is given here.
        """
        total = np.zeros(table.n)
        given = self.mean.offset(table)
        if given is not None:
            total = total + given
        for covariate, value in ((self.offset, offset), (self.exposure, exposure)):
            value = covariate.name if value is None else value
            if value is None and covariate.is_array:
                raise ModelSpecError(
                    f"the fit had an array as {covariate.role}=; give {covariate.role}= for the new rows "
                    f"too (an array or a column name)."
                )
            _, values = read_covariate(value, covariate.role, table)
            if values is not None:
                if covariate.role == "exposure":
                    values = log_exposure(values, self.links[0])
                total = total + values
        out = [total]
        for design in self.others:
            more = None if design is None else design.offset(table)
            out.append(np.zeros(table.n) if more is None else more)
        return out


def log_exposure(values: np.ndarray, link: AbstractLink) -> np.ndarray:
    """Logarithm of an exposure, refused where it is not positive or the link is not the log."""
    if link.name != "log":
        raise ModelSpecError(
            f"exposure= needs the log link, found link={link.name!r}; use offset= on the link scale or "
            "weights=."
        )
    bad = np.flatnonzero(values <= 0)
    if len(bad):
        raise DataError(
            f"exposure is not positive in {len(bad)} row(s) (rows {some(bad)}); it is logged. Remove these "
            "rows or correct them; an offset on the link scale goes to offset=."
        )
    return np.log(values)


def array_design(names: Sequence[str], intercept: bool) -> DesignSpec:
    """The design spec of a matrix of numbers, without looking at the data."""
    if len(set(names)) != len(names):
        twice = next(n for n in names if list(names).count(n) > 1)
        raise DataError(f"names holds {twice!r} twice; every column needs its own name.")
    quoted = [
        n if n.replace(".", "_").replace("_", "a").isalnum() and not n[0].isdigit() else f"`{n}`"
        for n in names
    ]
    if any("`" in n for n in names):
        raise FormulaError("names must not hold a backtick.")
    text = " + ".join(quoted) or "1"
    rhs = text if intercept else f"{text} - 1"
    variables = tuple(Variable(n, "number") for n in names)
    return DesignSpec(rhs, variables, dict.fromkeys(names, "number"), {})
