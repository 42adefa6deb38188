"""Observations that a model is calibrated to: variables, times, uncertainties, reference periods."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, ModelSpecError, nearest, some
from jaxnlme._typing import Frame
from jaxnlme.design.frames import Table, read_frame

__all__ = ["AR1", "Observation", "Target"]


@dataclasses.dataclass(frozen=True)
class AR1:
    """A model discrepancy that follows a first-order autoregression in time.

    It adds ``scale**2 * rho**|t_i - t_j|`` to the error covariance.

    Parameters
    ----------
    scale
        Stationary standard deviation in units of the variable, or the name of a parameter.
    rho
        Correlation over one unit of time, in (0, 1), or the name of a parameter.

    Examples
    --------
    >>> AR1(scale=0.1, rho="phi")
    AR1(scale=0.1, rho='phi')
    """

    scale: Any
    rho: Any

    def __post_init__(self) -> None:
        if not isinstance(self.scale, str) and not 0 < float(self.scale) < np.inf:
            raise ModelSpecError(f"AR1: scale={self.scale!r} must be positive.")
        if not isinstance(self.rho, str) and not 0 < float(self.rho) < 1:
            raise ModelSpecError(f"AR1: rho={self.rho!r} must lie between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class Observation:
    """Observations of one variable.

    ``uncertainties`` are standard deviations (n,), the name of a parameter that is the standard
    deviation, or None where a likelihood needs none. ``relative_error`` adds that fraction of the
    value. ``reference`` is ``(start, end, method)`` of the reference period, or None.
    """

    name: str
    times: np.ndarray
    values: np.ndarray
    uncertainties: np.ndarray | str | None = None
    covariance: np.ndarray | None = None
    discrepancy: AR1 | None = None
    relative_error: float | None = None
    reference: tuple[float, float, str] | None = None

    @property
    def in_reference(self) -> np.ndarray:
        """(n,) bool: inside the reference period, both ends included."""
        if self.reference is None:
            return np.zeros(len(self.times), bool)
        return (self.times >= self.reference[0]) & (self.times <= self.reference[1])


class Target:
    """What the model should reproduce: one or more variables, each with times and uncertainties.

    Examples
    --------
    >>> import numpy as np
    >>> target = Target().add_variable("T", [1850, 1900, 1950], [-0.1, 0.1, 0.4], 0.1)
    >>> target = target.with_reference_period(1850, 1900)
    >>> target.names, target["T"].reference
    (['T'], (1850.0, 1900.0, 'exact'))
    """

    def __init__(self) -> None:
        self._observations: dict[str, Observation] = {}

    # ---- building -------------------------------------------------------------------------------

    def add_variable(
        self,
        name: Any,
        times: Any,
        values: Any,
        uncertainties: Any = None,
        *,
        relative_error: Any = None,
        covariance: Any = None,
        discrepancy: AR1 | None = None,
    ) -> Target:
        """Append a variable, and return the target itself.

        Parameters
        ----------
        name
            Key of the model's output.
        times, values
            (n,) observation times, in any order but each once, and the values seen then.
        uncertainties
            Standard deviations: a number, (n,) numbers, or the name of a parameter. None leaves
            them to `relative_error`, `covariance` or a likelihood of counts.
        relative_error
            Standard deviation as a fraction of the absolute value; with `uncertainties` the two add
            in quadrature.
        covariance
            (n, n) error covariance in place of `uncertainties`.
        discrepancy
            An :class:`AR1` model error on top.

        Raises
        ------
        DataError
            Lengths differ, a value or an uncertainty is missing, infinite or not positive, a time
            occurs twice, or the covariance is not symmetric and positive definite.
        """
        if not isinstance(name, str) or not name:
            raise ModelSpecError(f"name={name!r}: give the variable a non-empty text as name.")
        if name in self._observations:
            raise ModelSpecError(f"variable {name!r} is there already; add it once.")
        values = _numbers(f"{name}: values", values)
        times = _numbers(f"{name}: times", times)
        if times.shape != values.shape or not len(times):
            raise DataError(
                f"{name}: {len(times)} times but {len(values)} values; one of each per observation, "
                "and at least one observation."
            )
        unique, counts = np.unique(times, return_counts=True)
        if len(unique) < len(times):
            raise DataError(f"{name}: time {some(unique[counts > 1])} occurs more than once.")
        if covariance is not None:
            if uncertainties is not None or relative_error is not None:
                raise ModelSpecError(
                    f"{name}: covariance= holds all of the error; leave out uncertainties and "
                    "relative_error."
                )
            covariance = _covariance(name, covariance, len(times))
        if uncertainties is not None and not isinstance(uncertainties, str):
            uncertainties = _uncertainties(name, uncertainties, len(times))
        if relative_error is not None:
            relative_error = check_relative(name, relative_error, values)
        self._observations[name] = Observation(
            name, times, values, uncertainties, covariance, discrepancy, relative_error
        )
        return self

    def with_reference_period(
        self,
        start: Any,
        end: Any,
        *,
        variables: str | Sequence[str] | None = None,
        method: str = "exact",
    ) -> Target:
        """Return a copy in which values are anomalies from a reference period.

        Parameters
        ----------
        start, end
            The period, both ends included.
        variables
            Names to which it applies. Default: all.
        method
            ``"exact"``: each variable has an unknown offset with a flat prior, which is integrated
            out; this is the exact likelihood of anomalies whatever period they refer to.
            ``"subtract"``: the model's own mean over the observed times inside the period is
            subtracted from the model (that of the observations from them) and the errors are taken
            as independent.

        Raises
        ------
        DataError
            A variable has no observation inside the period.
        ModelSpecError
            A name or the method is not known, or a variable has a relative error.
        """
        if method not in ("exact", "subtract"):
            raise ModelSpecError(f"method={method!r}: use 'exact' or 'subtract'.")
        start, end = float(start), float(end)
        if not start <= end:
            raise DataError(f"reference period: start={start} is after end={end}.")
        chosen = [variables] if isinstance(variables, str) else list(variables or self.names)
        if not chosen:
            raise ModelSpecError("with_reference_period: add variables first.")
        out = copy.copy(self)
        out._observations = dict(self._observations)
        for name in chosen:
            observation = self[name]
            if observation.relative_error is not None:
                raise ModelSpecError(
                    f"{name}: relative_error={observation.relative_error} has no meaning for "
                    "anomalies, whose zero is arbitrary. Give uncertainties instead."
                )
            observation = dataclasses.replace(observation, reference=(start, end, method))
            if not observation.in_reference.any():
                raise DataError(
                    f"{name}: no observation inside the reference period {start:g} to {end:g}; its "
                    f"times run from {observation.times.min():g} to {observation.times.max():g}."
                )
            out._observations[name] = observation
        return out

    # ---- frames ---------------------------------------------------------------------------------

    @classmethod
    def from_dataframe(
        cls,
        df: Frame,
        *,
        time_col: str = "time",
        variables: Mapping[str, str] | Sequence[str] | None = None,
        uncertainty_col: str | Mapping[str, str] | None = None,
        relative_error: Any = None,
        reference_period: tuple[Any, Any] | None = None,
        variable_col: str | None = None,
        value_col: str = "value",
    ) -> Target:
        """Make a target from a frame: one column per variable, or one row per observation.

        Rows in which a value is missing are left out variable by variable, so that series of
        different length share a wide frame.

        Parameters
        ----------
        df
            Any frame, or a dict of columns.
        time_col
            Column of the times.
        variables
            Wide frame: mapping of the model's output to the column, or a list of columns that have
            the outputs' names. Long frame: the names to keep (default all).
        uncertainty_col
            Column of standard deviations for all variables, or a mapping of output to column.
        relative_error
            Standard deviation as a fraction of the value.
        reference_period
            ``(start, end)`` for all variables, see :meth:`with_reference_period`.
        variable_col, value_col
            Columns of names and values of a long frame; giving `variable_col` makes it long.

        Raises
        ------
        FormulaError, DataError
            A column is not there, or its numbers cannot be used.

        Examples
        --------
        >>> frame = {"year": [2000, 2001], "gmst": [0.4, 0.5], "sd": [0.1, 0.1]}
        >>> target = Target.from_dataframe(
        ...     frame, time_col="year", variables={"T": "gmst"}, uncertainty_col="sd"
        ... )
        >>> target["T"].uncertainties
        array([0.1, 0.1])
        """
        table = read_frame(df, argument="df")
        target = cls()
        if variable_col is not None:
            parts = _long_parts(table, variable_col, value_col, variables)
        else:
            if not variables:
                raise ModelSpecError(
                    "variables: give the columns of a wide frame, such as {'T': 'gmst'}, or "
                    "variable_col= of a long one."
                )
            pairs = dict(variables) if isinstance(variables, Mapping) else {v: v for v in variables}
            parts = {name: (column, np.arange(table.n)) for name, column in pairs.items()}
        for name, (column, rows) in parts.items():
            column_sd = _uncertainty_column(uncertainty_col, name, parts)
            part = table.take(rows)
            values = part.numeric(column, f"{name}:")
            part = part.take(np.flatnonzero(~np.isnan(values)))
            sd = None if column_sd is None else part.numeric(column_sd, f"{name}: uncertainty")
            target.add_variable(
                name,
                part.numeric(time_col, "time"),
                part.numeric(column, f"{name}:"),
                sd,
                relative_error=relative_error,
            )
        if reference_period is not None:
            target = target.with_reference_period(*reference_period)
        return target

    @classmethod
    def from_scmdata(
        cls,
        run: Any,
        *,
        uncertainties: Any = None,
        relative_error: Any = None,
        reference_period: tuple[Any, Any] | None = None,
    ) -> Target:
        """Make a target from an ``scmdata.ScmRun`` or anything with its ``timeseries()``.

        Parameters
        ----------
        run
            Object whose ``timeseries(("variable",), time_axis="year")`` gives a frame with one row
            per variable and one column per time.
        uncertainties
            Standard deviation of all variables, or a mapping of variable to standard deviation.
        relative_error, reference_period
            As for :meth:`from_dataframe`.
        """
        if not hasattr(run, "timeseries"):
            raise DataError(
                f"run: {type(run).__name__} has no timeseries(); give an scmdata.ScmRun, or use "
                "Target.from_dataframe."
            )
        wide = run.timeseries(("variable",), time_axis="year")
        target = cls()
        for name, row in zip(wide.index, np.asarray(wide, float), strict=True):
            name = name[0] if isinstance(name, tuple) else name
            seen = ~np.isnan(row)
            sd = uncertainties.get(name) if isinstance(uncertainties, Mapping) else uncertainties
            times = np.asarray(list(wide.columns), float)
            target.add_variable(
                str(name), times[seen], row[seen], sd, relative_error=relative_error
            )
        if reference_period is not None:
            target = target.with_reference_period(*reference_period)
        return target

    # ---- reading --------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Variables in order."""
        return list(self._observations)

    def __getitem__(self, name: str) -> Observation:
        if name not in self._observations:
            raise ModelSpecError(
                f"variable {name!r} is not in the target.{nearest(str(name), self.names)} "
                f"There are: {some(self.names, 12) or 'none'}."
            )
        return self._observations[name]

    def __iter__(self) -> Iterator[Observation]:
        return iter(self._observations.values())

    def __len__(self) -> int:
        return len(self._observations)

    def __repr__(self) -> str:
        lines = []
        for o in self:
            text = f"{o.name}: {len(o.times)} values, {o.times.min():g} to {o.times.max():g}"
            if o.reference is not None:
                text += f", anomalies from {o.reference[0]:g}-{o.reference[1]:g} ({o.reference[2]})"
            lines.append(text)
        return f"Target({'; '.join(lines)})"


def _numbers(title: str, values: Any) -> np.ndarray:
    try:
        out = np.asarray(values, float)
    except (TypeError, ValueError):
        raise DataError(f"{title} must be numbers, got {type(values).__name__}.") from None
    if out.ndim != 1:
        raise DataError(f"{title} must be one-dimensional, got shape {out.shape}.")
    bad = np.flatnonzero(~np.isfinite(out))
    if len(bad):
        raise DataError(f"{title}: missing or infinite at position {some(bad)}; leave them out.")
    return out


def _uncertainties(name: str, values: Any, n: int) -> np.ndarray:
    array = np.asarray(values, float)
    array = np.full(n, float(array)) if array.ndim == 0 else array
    if array.shape != (n,):
        raise DataError(f"{name}: {len(array)} uncertainties for {n} values.")
    bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if len(bad):
        raise DataError(
            f"{name}: uncertainties must be positive numbers, but position {some(bad)} is "
            f"{some(array[bad])}."
        )
    return array


def check_relative(name: str, relative_error: Any, values: np.ndarray) -> float:
    """Return a relative error, if every value can carry one."""
    fraction = float(relative_error)
    if not 0 < fraction < np.inf:
        raise ModelSpecError(f"{name}: relative_error={relative_error!r} must be positive.")
    zero = np.flatnonzero(values == 0)
    if len(zero):
        raise DataError(
            f"{name}: relative_error needs values other than 0, but position {some(zero)} is 0. "
            "Give uncertainties instead."
        )
    return fraction


def _covariance(name: str, covariance: Any, n: int) -> np.ndarray:
    matrix = np.asarray(covariance, float)
    if matrix.shape != (n, n):
        raise DataError(f"{name}: covariance has shape {matrix.shape}, expected {(n, n)}.")
    if (
        not np.isfinite(matrix).all()
        or np.abs(matrix - matrix.T).max() > 1e-10 * np.abs(matrix).max()
    ):
        raise DataError(f"{name}: the covariance must be finite and symmetric.")
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise DataError(f"{name}: the covariance is not positive definite.") from None
    return matrix


def _long_parts(
    table: Table, variable_col: str, value_col: str, variables: Any
) -> dict[str, tuple[str, np.ndarray]]:
    factor = table.factor(variable_col, "variable")
    levels = [str(v) for v in factor.levels]
    codes = np.asarray(factor.codes)
    pairs = (
        dict(variables) if isinstance(variables, Mapping) else {v: v for v in variables or levels}
    )
    for level in pairs.values():
        if level not in levels:
            raise DataError(
                f"column {variable_col!r} has no variable {level!r}.{nearest(str(level), levels)} "
                f"There are: {some(levels, 12)}."
            )
    return {
        name: (value_col, np.flatnonzero(codes == levels.index(level)))
        for name, level in pairs.items()
    }


def _uncertainty_column(given: Any, name: str, known: Mapping[str, Any]) -> str | None:
    if not isinstance(given, Mapping):
        return given
    extra = [k for k in given if k not in known]
    if extra:
        raise ModelSpecError(
            f"uncertainty_col names {some(extra)}, which is not a variable."
            + nearest(str(extra[0]), known)
        )
    if name not in given:
        raise ModelSpecError(f"uncertainty_col has no entry for variable {name!r}.")
    return given[name]
