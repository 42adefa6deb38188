"""Arrays of an ``nlmefit`` call: rows, groups, group predictors, designs, covariance pattern."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, DataWarning, ModelSpecError, some
from jaxnlme.api._matlab_options import Design, NlmefitOptions, Selection
from jaxnlme.design.frames import Factor, read_arrays

__all__ = ["MatlabData", "build_designs", "covariance_pattern", "read_beta0", "read_data"]


@dataclasses.dataclass(frozen=True)
class MatlabData:
    """Checked arrays of one call, in the order of the caller's rows.

    Attributes
    ----------
    X : ndarray, shape (n, h)
    y : ndarray, shape (n,)
    codes : ndarray of int, shape (n,)
        Group of each row, a position in ``labels``.
    labels : tuple
        Group labels, sorted.
    V : ndarray, tuple of ndarray or None
        Group predictors with a leading axis of m.
    row_index : ndarray of int
        The caller's rows that are used.
    """

    X: np.ndarray
    y: np.ndarray
    codes: np.ndarray
    labels: tuple
    V: Any
    row_index: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.y)

    @property
    def num_groups(self) -> int:
        return len(self.labels)

    def group_rows(self, i: int) -> np.ndarray:
        """Rows of group i, in the caller's order."""
        return np.flatnonzero(self.codes == i)


def read_data(X: Any, y: Any, group: Any, V: Any, missing: str = "raise") -> MatlabData:
    """Check ``X``, ``y``, ``group`` and ``V``.

    Raises
    ------
    DataError
        Shapes or lengths do not fit, values are missing or infinite, or the groups cannot identify
        the model.
    """
    if group is None or np.size(np.asarray(group, dtype=object)) == 0:
        raise DataError(
            "group is empty: all rows would form one group, and a random effect with 1 level "
            "cannot be estimated. Give the group of each row."
        )
    matrix, response, factor = read_arrays(X, y, group)
    assert response is not None
    assert factor is not None
    labels, codes = _sorted_groups(factor)
    rows = _complete_rows(matrix, response, missing)
    left, codes = np.unique(codes[rows], return_inverse=True)
    if len(left) < len(labels):
        gone = [str(labels[i]) for i in sorted(set(range(len(labels))) - set(left.tolist()))]
        if V is not None:
            V = _take_groups(read_group_predictors(V, labels), left)
        warnings.warn(
            f"no complete row is left in group {some(gone)}; left out of the fit.",
            DataWarning,
            stacklevel=4,
        )
        labels = tuple(labels[i] for i in left)
    predictors = read_group_predictors(V, labels)
    _check_groups(codes, labels)
    return MatlabData(matrix[rows], response[rows], codes, labels, predictors, rows)


def _sorted_groups(factor: Factor) -> tuple[tuple, np.ndarray]:
    """Return the labels that occur, sorted (a categorical's own order is not kept), and codes."""
    used = np.unique(factor.codes)
    try:
        order = sorted(range(len(used)), key=lambda i: factor.levels[used[i]])
    except TypeError:  # labels of several types
        order = sorted(range(len(used)), key=lambda i: str(factor.levels[used[i]]))
    place = np.empty(len(factor.levels), dtype=int)
    place[used[order]] = np.arange(len(used))
    return tuple(factor.levels[used[i]] for i in order), place[factor.codes]


def _complete_rows(X: np.ndarray, y: np.ndarray, missing: str) -> np.ndarray:
    absent_y, absent_x = np.isnan(y), np.isnan(X)
    bad = absent_y | absent_x.any(axis=1)
    if not bad.any():
        return np.arange(len(y))
    parts = [f"y in {int(absent_y.sum())} rows"] if absent_y.any() else []
    parts += [
        f"X column {j + 1} in {int(absent_x[:, j].sum())} rows"
        for j in np.flatnonzero(absent_x.any(axis=0))
    ]
    what = f"{', '.join(parts)} (rows {some(np.flatnonzero(bad))}, counted from 0)"
    if missing == "raise":
        raise DataError(
            f"missing values: {what}, and missing='raise'. Remove these rows, or use "
            "missing='drop' to leave them out."
        )
    if bad.all():
        raise DataError(f"0 of {len(y)} rows are left after dropping missing values: {what}.")
    warnings.warn(
        f"{int(bad.sum())} of {len(y)} rows dropped because of missing values: {what}; "
        "stats.row_index says which rows were used.",
        DataWarning,
        stacklevel=5,
    )
    return np.flatnonzero(~bad)


def _check_groups(codes: np.ndarray, labels: tuple) -> None:
    if len(labels) == 1:
        raise DataError(
            f"group has one level only ({labels[0]!r}): the variance of a random effect cannot be "
            "estimated from 1 level. Fit one curve by nonlinear least squares instead."
        )
    if len(codes) == len(labels):
        raise DataError(
            f"each of the {len(labels)} groups has one row: residual variance and random effects "
            "are not identified separately. Check that group holds the subject, not the row."
        )


def read_group_predictors(V: Any, labels: tuple) -> Any:
    """Return V with a leading axis of m: an array, or a tuple of arrays for a row of cells.

    An (m, g) matrix gives ``v`` of shape (g,) per group, m numbers shape (1,). A list with one
    array per group (MATLAB's cell array) gives that array; a list of tuples gives a tuple of
    arrays. All groups need the same shapes, because they are evaluated by one compiled program.
    """
    if V is None or (not isinstance(V, tuple) and np.size(np.asarray(V, dtype=object)) == 0):
        return None
    m = len(labels)
    if isinstance(V, tuple) and V and all(isinstance(v, np.ndarray) and len(v) == m for v in V):
        return V  # already read
    if isinstance(V, np.ndarray) and V.dtype == object and V.ndim == 2 and len(V) == m:
        columns = [_stack_cells(list(V[:, j]), labels) for j in range(V.shape[1])]
        return tuple(columns) if len(columns) > 1 else columns[0]
    V = V if isinstance(V, list | tuple) else np.asarray(V)
    cells = list(V)
    _check_count(len(cells), np.shape(np.asarray(V, dtype=object)), m)
    if any(isinstance(cell, tuple) for cell in cells):
        widths = {len(cell) if isinstance(cell, tuple) else -1 for cell in cells}
        if len(widths) > 1:
            raise DataError("V: every group needs a tuple of the same length, one entry per cell.")
        return tuple(_stack_cells(list(column), labels) for column in zip(*cells, strict=True))
    stacked = _stack_cells(cells, labels)
    return stacked[:, None] if stacked.ndim == 1 else stacked


def _check_count(found: int, shape: tuple, m: int) -> None:
    if found != m:
        raise DataError(
            f"V has shape {shape}, but there are {m} groups: give one row (or one cell) per group, "
            "in the sorted order of the group labels."
        )


def _stack_cells(cells: list, labels: tuple) -> np.ndarray:
    try:
        arrays = [np.asarray(cell, dtype=float) for cell in cells]
    except (TypeError, ValueError):
        raise DataError(
            "V holds values that are not numbers; code text as numbers before the call."
        ) from None
    for label, array in zip(labels, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"V of group {label!r} has shape {array.shape}, of group {labels[0]!r} "
                f"{arrays[0].shape}: one shape is needed for all groups. Pad to the longest and "
                "pass the length as another cell."
            )
        if not np.all(np.isfinite(array)):
            raise DataError(f"V of group {label!r} holds values that are not finite.")
    return np.stack(arrays)


def _take_groups(V: Any, groups: np.ndarray) -> Any:
    return tuple(v[groups] for v in V) if isinstance(V, tuple) else V[groups]


def read_beta0(beta0: Any) -> np.ndarray:
    """Return the start values as a vector of floats."""
    try:
        array = np.asarray(beta0, dtype=float)
    except (TypeError, ValueError):
        raise ModelSpecError(f"beta0 = {beta0!r}: give one number per fixed effect.") from None
    if array.ndim == 2 and min(array.shape) == 1:
        array = array.ravel()
    if array.ndim != 1 or array.size == 0:
        raise ModelSpecError(
            f"beta0 has shape {array.shape}: give a vector with one number per fixed effect."
        )
    if not np.all(np.isfinite(array)):
        raise ModelSpecError(
            f"beta0 is not finite for fixed effect {some(np.flatnonzero(~np.isfinite(array)) + 1)}."
        )
    return array


@dataclasses.dataclass(frozen=True)
class Designs:
    """Designs of the parameters: ``fixed`` is (p, f), (m, p, f) or (n, p, f) as its kind says."""

    num_params: int
    fixed: np.ndarray
    fixed_kind: str
    random: np.ndarray
    random_kind: str

    @property
    def num_fixed(self) -> int:
        return self.fixed.shape[-1]

    @property
    def num_random(self) -> int:
        return self.random.shape[-1]

    def rows(self, which: str, codes: np.ndarray) -> np.ndarray:
        """Return the fixed or random design of every row, shape (n, p, f or r)."""
        values, kind = getattr(self, which), getattr(self, f"{which}_kind")
        if kind == "const":
            return np.broadcast_to(values, (len(codes), *values.shape))
        return values[codes] if kind == "group" else values


def build_designs(
    options: NlmefitOptions, beta0: np.ndarray, data: MatlabData, num_rows: int
) -> Designs:
    """Turn FE* and RE* arguments into design arrays.

    ``num_rows`` is the number of the caller's rows, which observation designs refer to.

    Raises
    ------
    ModelSpecError
        Sizes disagree; the message names both arguments.
    """
    p, source = _num_params(options, len(beta0))
    fixed, fixed_kind = _design_array(options.fixed, p, source, data, num_rows)
    random, random_kind = _design_array(options.random, p, source, data, num_rows)
    if fixed.shape[-1] != len(beta0):
        name = options.fixed.name if options.fixed is not None else source
        raise ModelSpecError(
            f"beta0 has {len(beta0)} values, but {name} means {fixed.shape[-1]} fixed effects; "
            "give one start value per fixed effect."
        )
    if options.param_transform is not None and len(options.param_transform) != p:
        raise ModelSpecError(
            f"ParamTransform has {len(options.param_transform)} codes, but {source} means {p} "
            "model parameters; give one code per parameter."
        )
    _check_covered(fixed, random, p)
    return Designs(p, fixed, fixed_kind, random, random_kind)


def _num_params(options: NlmefitOptions, num_beta: int) -> tuple[int, str]:
    """Number of model parameters (length of phi) and the argument that says so."""
    effects = (options.fixed, options.random)
    for effect in effects:
        if isinstance(effect, Design):
            return effect.values.shape[0], f"{effect.name} with {effect.values.shape[0]} rows"
    for effect in effects:
        if isinstance(effect, Selection) and effect.logical:
            return effect.values.size, f"logical {effect.name} of length {effect.values.size}"
    if options.fixed is None:
        return num_beta, f"beta0 of length {num_beta} without an FE* argument"
    if options.param_transform is not None:
        p = len(options.param_transform)
        return p, f"ParamTransform of length {p}"
    ends = [int(e.values.max()) + 1 - e.base for e in effects if isinstance(e, Selection)]
    return max(ends), "the largest parameter number selected"


def _design_array(
    effect: Selection | Design | None, p: int, source: str, data: MatlabData, num_rows: int
) -> tuple[np.ndarray, str]:
    if effect is None:
        return np.eye(p), "const"
    if isinstance(effect, Selection):
        return np.eye(p)[:, _chosen(effect, p, source)], "const"
    values = effect.values
    if values.shape[0] != p:
        raise ModelSpecError(
            f"{effect.name} has {values.shape[0]} rows, but {source} means {p} model parameters; "
            "fixed and random designs need one row per parameter."
        )
    if effect.kind == "const":
        return values, "const"
    length = {"group": data.num_groups, "obs": num_rows}[effect.kind]
    unit = {"group": "groups", "obs": "rows"}[effect.kind]
    if values.shape[2] != length:
        raise ModelSpecError(
            f"{effect.name} has shape {values.shape}, but there are {length} {unit}: its third "
            f"axis runs over the {unit}."
        )
    values = np.moveaxis(values, 2, 0)
    return (values[data.row_index] if effect.kind == "obs" else values), effect.kind


def _chosen(select: Selection, p: int, source: str) -> np.ndarray:
    if select.logical:
        if select.values.size != p:
            raise ModelSpecError(
                f"{select.name} has {select.values.size} logical values, but {source} means {p} "
                "model parameters."
            )
        return np.flatnonzero(select.values)
    chosen = select.values - select.base
    if np.any(chosen >= p):
        raise ModelSpecError(
            f"{select.name} = {select.values.tolist()} selects beyond the last parameter: {source} "
            f"means {p} model parameters, numbered from {select.base}."
        )
    return chosen


def _check_covered(fixed: np.ndarray, random: np.ndarray, p: int) -> None:
    for k in range(p):
        if not np.any(fixed[..., k, :]) and not np.any(random[..., k, :]):
            raise ModelSpecError(
                f"model parameter {k + 1} has neither a fixed nor a random effect, so it would "
                "stay at zero: select it in FEParamsSelect or REParamsSelect, or put the constant "
                "into modelfun."
            )


def covariance_pattern(
    option: np.ndarray | None, r: int, name: str = "CovPattern"
) -> tuple[tuple[int, ...], ...]:
    """Return the 0/1 pattern of PSI: symmetric, closed to blocks as MATLAB does.

    Raises
    ------
    ModelSpecError
        The size is not r x r or r.

    Examples
    --------
    >>> covariance_pattern(np.array([1.0, 2.0, 1.0]), 3)
    ((1, 0, 1), (0, 1, 0), (1, 0, 1))
    """
    if option is None:
        linked = np.eye(r, dtype=bool)
    elif option.shape == (r, r):
        if not np.all(np.isin(option, [0, 1])):
            raise ModelSpecError(f"{name} holds values other than 0 and 1 in its {r} x {r} matrix.")
        linked = (option != 0) | (option.T != 0) | np.eye(r, dtype=bool)
    elif option.size == r and option.ndim <= 2:
        numbers = option.ravel()
        linked = numbers[:, None] == numbers[None, :]
    else:
        raise ModelSpecError(
            f"{name} has shape {option.shape}, but there are {r} random effects: give a {r} x {r} "
            f"matrix of 0 and 1, or {r} block numbers."
        )
    for _ in range(r):  # transitive closure: a covariance has the pattern only in blocks
        linked = linked | ((linked.astype(int) @ linked.astype(int)) > 0)
    return tuple(tuple(int(v) for v in row) for row in linked)
