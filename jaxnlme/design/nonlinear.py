"""Parameter formulas of a nonlinear model to design arrays and labels, remembered for new data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxnlme._errors import DataError, DataWarning, ModelSpecError, nearest, some, warn
from jaxnlme.design.expressions import parse_parameter_formulas
from jaxnlme.design.formula import DesignSpec, fixed_design
from jaxnlme.design.frames import Table
from jaxnlme.design.groups import GroupLayout, group_layout


@dataclass(frozen=True)
class ParameterDesign:
    """One design per model parameter: fixed or random effects of one level.

    Parameters
    ----------
    specs
        Pairs of parameter name and its columns, in coefficient order.
    long
        Parameters whose intercept is spelled ``param.(Intercept)`` even if their own formula is ``~ 1``:
        random effects carry the label of the fixed coefficient that they move, as in R.
    """

    specs: tuple[tuple[str, DesignSpec], ...]
    long: frozenset[str] = frozenset()

    @property
    def labels(self) -> tuple[str, ...]:
        """``param`` where the formula is ``~ 1``, else ``param.(Intercept)``, ``param.wt``."""
        out: list[str] = []
        for name, spec in self.specs:
            if spec.labels == ("(Intercept)",) and name not in self.long:
                out.append(name)
            else:
                out += [f"{name}.{label}" for label in spec.labels]
        return tuple(out)

    @property
    def owners(self) -> tuple[str, ...]:
        """The model parameter that each coefficient belongs to."""
        return tuple(name for name, spec in self.specs for _ in spec.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """Data columns that the formulas use."""
        return tuple(dict.fromkeys(c for _, spec in self.specs for c in spec.columns))

    def rows(self, table: Table, parameters: Sequence[str]) -> np.ndarray:
        """Return the design per row ``(N, p, k)`` for the model's parameters."""
        k = len(self.labels)
        out = np.zeros((table.n, len(parameters), k))
        at = 0
        for name, spec in self.specs:
            width = len(spec.labels)
            out[:, parameters.index(name), at : at + width] = spec.matrix(table)
            at += width
        return out


def parameter_design(
    formulas: Mapping[str, str], table: Table, *, long: frozenset[str] = frozenset()
) -> ParameterDesign:
    """Learn the designs of several parameters from the data used in the fit."""
    specs = tuple((n, fixed_design(f, table)[0]) for n, f in formulas.items())
    return ParameterDesign(specs, long)


def long_names(design: ParameterDesign) -> frozenset[str]:
    """Parameters whose fixed formula is more than a constant."""
    return frozenset(n for n, spec in design.specs if spec.labels != ("(Intercept)",))


@dataclass(frozen=True)
class Level:
    """One grouping level: the column that names its groups, and its random effects."""

    group: str
    design: ParameterDesign


@dataclass(frozen=True)
class Grouping:
    """Groups of one data set.

    Parameters
    ----------
    layout
        Rows of the outermost groups.
    labels
        Labels per level, outermost first; inner ones as ``"outer/inner"``.
    codes
        Code of each row per level, into ``labels``.
    copies
        Place of each row's inner group within its outermost group, per level (0 for the first level).
    repeats
        Largest number of a level's groups within one outermost group.
    """

    layout: GroupLayout
    labels: tuple[tuple, ...]
    codes: tuple[np.ndarray, ...]
    copies: tuple[np.ndarray, ...]
    repeats: tuple[int, ...]


def group_columns(group: str | Sequence[str]) -> tuple[str, ...]:
    """Read ``group=``: a column name, ``"a/b"``, or a list of names outermost first."""
    if isinstance(group, str):
        names = tuple(part.strip() for part in group.split("/"))
    elif isinstance(group, Sequence) and all(isinstance(g, str) for g in group):
        names = tuple(group)
    else:
        raise ModelSpecError(
            f"group={group!r}: give a column name, or a list of names for nested groups, "
            "outermost first."
        )
    if not names or len(set(names)) != len(names) or not all(names):
        raise ModelSpecError(f"group={group!r} must name different columns, outermost first.")
    return names


def read_groups(names: Sequence[str], table: Table, *, order: str = "label") -> Grouping:
    """Code the groups of each level; labels follow the factor's levels (sorted for text and numbers).

    ``order="first"`` orders the outermost groups by their first row instead (new data).
    """
    codes: list[np.ndarray] = []
    labels: list[tuple] = []
    copies: list[np.ndarray] = []
    repeats: list[int] = []
    for depth, name in enumerate(names):
        factor = table.factor(name, "group")
        own = np.asarray(factor.codes, np.int64)
        if np.any(own < 0):
            raise DataError(
                f"group column {name!r} is missing in rows {some(np.flatnonzero(own < 0))}: drop "
                "those rows or give them a group."
            )
        if depth == 0:
            used, code = np.unique(own, return_inverse=True)
            if order == "first":
                first = np.array([np.argmax(code == k) for k in range(len(used))])
                rank = np.empty(len(used), np.int64)
                rank[np.argsort(first)] = np.arange(len(used))
                used, code = used[np.argsort(first)], rank[code]
            level_labels = tuple(factor.labels[k] for k in used)
            copy = np.zeros(len(code), np.int64)
        else:
            key = codes[-1] * (own.max() + 1) + own
            used, code = np.unique(key, return_inverse=True)
            parent = used // (own.max() + 1)
            level_labels = tuple(
                f"{labels[-1][p]}/{factor.labels[k % (own.max() + 1)]}"
                for p, k in zip(parent, used, strict=True)
            )
            first_row = np.array([np.argmax(code == k) for k in range(len(used))])
            owner = codes[0][first_row]
            place = np.zeros(len(used), np.int64)
            for g in np.unique(owner):
                inside = np.flatnonzero(owner == g)
                place[inside] = np.arange(len(inside))
            copy = place[code]
        codes.append(code)
        labels.append(level_labels)
        copies.append(copy)
        repeats.append(int(copy.max()) + 1 if len(copy) else 1)
    layout = group_layout(codes[0], labels[0])
    return Grouping(layout, tuple(labels), tuple(codes), tuple(copies), tuple(repeats))


def tight(grouping: Grouping) -> Grouping:
    """Return the same groups laid out without padding to shape buckets."""
    layout = group_layout(grouping.codes[0], grouping.labels[0], pad=False)
    return replace(grouping, layout=layout)


def check_groups(grouping: Grouping, names: Sequence[str], num_random: Sequence[int]) -> None:
    """Refuse data that cannot identify the random effects.

    Raises
    ------
    DataError
        Only one group, or one row in every group.
    """
    for name, labels, code, r in zip(
        names, grouping.labels, grouping.codes, num_random, strict=True
    ):
        if r == 0:
            continue
        if len(labels) < 2:
            raise DataError(
                f"group {name!r} has 1 level ({next(iter(labels))!r}) only: a random effect for 1 level is "
                "not identified. Use jn.nls or more groups."
            )
        if np.bincount(code).max() < 2:
            raise DataError(
                f"every group of {name!r} has one row: random effects and a residual variance are "
                "not identified together. Group rows, or fix the residual (fix={'sigma': ...})."
            )


def collapse(rows: np.ndarray, layout: GroupLayout) -> np.ndarray:
    """Pack a row design ``(N, p, k)`` and shorten axes along which nothing changes."""
    if rows.shape[0] == 0 or np.all(rows == rows[:1]):
        return rows[:1][None]
    packed = layout.pack(rows)
    within = packed[:, :1]
    mask = layout.mask
    same = np.all((packed == within) | ~mask.reshape((*mask.shape, 1, 1)))
    return within if same else packed


def random_rows(
    levels: Sequence[Level],
    grouping: Grouping,
    table: Table,
    parameters: Sequence[str],
    repeats: Sequence[int],
) -> np.ndarray:
    """Return the random-effect design per row ``(N, p, q)``; copies of inner levels side by side."""
    parts = []
    for level, copy, count in zip(levels, grouping.copies, repeats, strict=True):
        design = level.design.rows(table, parameters)
        if count == 1:
            parts.append(design)
            continue
        n, p, r = design.shape
        wide = np.zeros((n, p, count, r))
        wide[np.arange(n), :, copy] = design
        parts.append(wide.reshape(n, p, count * r))
    return np.concatenate(parts, -1)


def read_random(
    random, names: Sequence[str], parameters: Sequence[str]
) -> tuple[dict[str, str], ...]:
    """Read ``random=`` into one dict of formulas per level, outermost first.

    A list of parameter names stands for ``a + b ~ 1``; a dict gives the formulas by level.
    """
    if isinstance(random, Mapping):
        unknown = [k for k in random if k not in names]
        if unknown:
            raise ModelSpecError(
                f"random: {unknown[0]!r} is not a grouping column; they are {list(names)}."
                + nearest(str(unknown[0]), names)
            )
        per_level = [random.get(name) for name in names]
    elif len(names) == 1:
        per_level = [random]
    else:
        raise ModelSpecError(
            f"group={list(names)} has {len(names)} levels: give random= as a dict with formulas "
            f"for each, for example {{{names[0]!r}: 'a ~ 1', {names[-1]!r}: 'a ~ 1'}}."
        )
    out = []
    for name, value in zip(names, per_level, strict=True):
        if value is None:
            raise ModelSpecError(f"random: no formula for the grouping column {name!r}.")
        is_names = not isinstance(value, str) and all(
            isinstance(v, str) and "~" not in v for v in value
        )
        formulas = dict.fromkeys(value, "1") if is_names else parse_parameter_formulas(value)
        for parameter in formulas:
            if parameter not in parameters:
                raise ModelSpecError(
                    f"random effect on {parameter!r}, which is not a parameter of the model "
                    f"{list(parameters)}." + nearest(parameter, parameters)
                )
        if not formulas:
            raise ModelSpecError(f"random: the level {name!r} has no random effect.")
        out.append(formulas)
    return tuple(out)


def warn_unseen(name: str, unseen: Sequence) -> None:
    """Warn that groups were not in the fit and get population values."""
    warn(
        f"group column {name!r}: level(s) {some(unseen)} were not in the fit; their rows get the "
        "population value.",
        DataWarning,
    )


def check_times(table: Table, name: str, grouping: Grouping, rows: np.ndarray) -> None:
    """Refuse negative, unsorted or repeated times within a group.

    ``rows`` are the positions of the table's rows in the caller's frame, for the message.

    Raises
    ------
    DataError
    """
    times, codes = table.numeric(name, "time"), grouping.layout.codes
    order = np.argsort(codes, kind="stable")
    same = np.concatenate([[False], codes[order][1:] == codes[order][:-1]])
    step = np.concatenate([[0.0], np.diff(times[order])])
    problems = (
        ("negative", order[times[order] < 0], "Count time from the first record of the group."),
        ("unsorted", order[same & (step < 0)], "Sort the rows by group and time."),
        ("repeated", order[same & (step == 0)], "Keep one row per time, or move one by a little."),
    )
    for what, bad, cure in problems:
        if len(bad):
            labels = dict.fromkeys(grouping.layout.labels[codes[k]] for k in bad)
            raise DataError(
                f"time column {name!r} is {what} in group(s) {some(labels)}, row(s) "
                f"{some(np.sort(rows[bad]))}: the model takes the rows of a group in the order of time. {cure}"
            )
