"""From the right side of a formula to design columns with R's names, now and at new data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, DataWarning, FormulaError, SerializationError, some, warn
from jaxnlme.design.assemble import EXPAND, Columns, HostBlocks, Part, Values
from jaxnlme.design.contrasts import Contrast
from jaxnlme.design.expressions import Expression, Node, deparse, free_names
from jaxnlme.design.frames import Table
from jaxnlme.design.special import refuse
from jaxnlme.design.terms import Terms, expand, members, without
from jaxnlme.design.variables import (
    KIND_WORDS,
    Variable,
    any_missing,
    check_variable,
    data_part,
    evaluate_floats,
    kind_of,
    learn_state,
    learn_variable,
    variable_values,
)


@dataclasses.dataclass(frozen=True, eq=False)
class DesignSpec:
    """How the columns of a design are made from data: everything prediction needs.

    Attributes
    ----------
    formula : str
        The right side.
    variables : tuple of Variable
        Levels and contrasts of factors.
    kinds : dict
        Kind (number, bool, label) of each data column at the fit.
    state : dict
        What data-dependent functions learned, by their text.
    dropped : tuple of str
        Factors left out because they had one level.
    """

    formula: str
    variables: tuple[Variable, ...]
    kinds: Mapping[str, str]
    state: Mapping[str, Any]
    dropped: tuple[str, ...] = ()

    @cached_property
    def terms(self) -> Terms:
        """The expanded terms."""
        terms = expand(self.formula)
        return without(terms, {i for i, t in enumerate(terms.names) if t in self.dropped})

    @cached_property
    def _layout(self) -> list[tuple[list[int], list[np.ndarray | None], list[tuple[str, ...]]]]:
        codings = self.terms.coding(tuple(v.kind == "factor" for v in self.variables))
        layout = []
        for mask, full in zip(self.terms.masks, codings, strict=True):
            inside = members(mask)
            pairs = [self.variables[i].columns(f) for i, f in zip(inside, full, strict=True)]
            layout.append((inside, [p[0] for p in pairs], [p[1] for p in pairs]))
        return layout

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Column names as R's ``model.matrix`` prints them."""
        labels = ["(Intercept)"] if self.terms.intercept else []
        for _, _, names in self._layout:
            combined = list(names[0])
            for more in names[1:]:
                combined = [f"{a}:{b}" for b in more for a in combined]
            labels += combined
        return tuple(labels)

    @cached_property
    def assign(self) -> tuple[int, ...]:
        """For each column the position of its term in ``terms.labels`` (-1: the intercept)."""
        assign = [-1] if self.terms.intercept else []
        for k, (_, _, names) in enumerate(self._layout):
            assign += [k] * int(np.prod([len(n) for n in names]))
        return tuple(assign)

    @property
    def columns(self) -> tuple[str, ...]:
        """Data columns that the design reads, offsets included."""
        return tuple(self.kinds)

    def matrix(self, data: Table) -> np.ndarray:
        """Return the design (n, k) at these data; a row with a missing value is NaN.

        Raises
        ------
        DataError
            A column is absent or of another kind than at the fit, a factor has an unseen level,
            or a value is not finite.
        """
        columns = self._columns(data)
        matrix = columns.matrix()
        missing = self._missing(data, self.terms.variables)
        if missing is not None:
            matrix[missing] = np.nan
        return matrix

    def parts(self, data: Table, *, expand: int = EXPAND) -> list[Part]:
        """Return the design as a dense part and a part of codes per factor with many levels.

        Parameters
        ----------
        data
            Rows without missing values.
        expand
            A factor that stands alone in its term with more coefficients than this stays codes.
        """
        self._refuse_missing(data)
        return self._columns(data).parts(expand)

    def blocks(self, data: Table, rows: int | None = None, *, expand: int = EXPAND) -> HostBlocks:
        """Return the design in blocks of 512 rows without an (n, p) matrix in between.

        Parameters
        ----------
        data
            Rows without missing values.
        rows
            Number of rows to pad to (default: the next multiple of 512); padding is zero.
        expand
            As in :meth:`parts`.

        Returns
        -------
        HostBlocks
            ``dense, codes, sizes, order``.

        Examples
        --------
        >>> from jaxnlme.design.frames import read_frame
        >>> table = read_frame({"x": [1.0, 2.0], "g": ["a", "b"]})
        >>> blocks = fixed_design("x + g", table)[0].blocks(table)
        >>> blocks.dense.shape, blocks.dense[0, :, 1].tolist(), blocks.order.tolist()
        ((1, 3, 512), [1.0, 2.0, 1.0], [0, 1, 2])
        """
        self._refuse_missing(data)
        return self._columns(data).blocks(rows, expand)

    def offset(self, data: Table) -> np.ndarray | None:
        """Return the sum of the formula's ``offset()`` terms (n,), None without one."""
        if not self.terms.offsets:
            return None
        self._check_columns(data)
        total = np.zeros(data.n)
        for node in self.terms.offsets:
            total += evaluate_floats(node, data, dict(self.state), f"offset({deparse(node)})")
        missing = self._missing(data, self.terms.offsets)
        if missing is not None:
            total[missing] = np.nan
        return total

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain values that JSON can hold."""
        return {
            "formula": self.formula,
            "variables": [
                {
                    "text": v.text,
                    "kind": v.kind,
                    "levels": list(v.levels),
                    "contrast": v.contrast.kind,
                    "base": v.contrast.base,
                    "width": v.width,
                }
                for v in self.variables
            ],
            "kinds": dict(self.kinds),
            "state": dict(self.state),
            "dropped": list(self.dropped),
        }

    @staticmethod
    def from_dict(saved: Mapping[str, Any]) -> DesignSpec:
        """Rebuild a spec from ``to_dict``; nothing in it is ever executed."""
        try:
            spec = DesignSpec(
                formula=str(saved["formula"]),
                variables=tuple(
                    Variable(
                        str(v["text"]),
                        str(v["kind"]),
                        tuple(v["levels"]),
                        Contrast(str(v["contrast"]), v["base"]),
                        int(v["width"]),
                    )
                    for v in saved["variables"]
                ),
                kinds=dict(saved["kinds"]),
                state=dict(saved["state"]),
                dropped=tuple(saved["dropped"]),
            )
            same = spec.terms.names == tuple(v.text for v in spec.variables)
        except FormulaError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise SerializationError(
                f"the saved design cannot be read ({type(error).__name__}: {error}); save it again."
            ) from None
        for node in (*spec.terms.variables, *spec.terms.offsets):
            check_variable(node, spec.formula)
        if not same:
            raise SerializationError(
                f"the saved design holds other variables than its formula {spec.formula!r}."
            )
        return spec

    def _check_columns(self, data: Table) -> None:
        for name, kind in self.kinds.items():
            if name not in data:
                raise DataError(
                    f"column {name!r}, which the formula {self.formula!r} used at the fit, is not "
                    f"in {data.argument}. Columns there: {some(data.names, 12)}."
                )
            column = data.column(name)
            if kind_of(column) != kind and not (column.missing.all() and data.n):
                raise DataError(
                    f"column {name!r} held {KIND_WORDS[kind]} at the fit and now has dtype "
                    f"{column.dtype}; give it the type it had."
                )

    def _columns(self, data: Table) -> Columns:
        self._check_columns(data)
        state = dict(self.state)
        values = [
            variable_values(v, node, data, state)
            for v, node in zip(self.variables, self.terms.variables, strict=True)
        ]
        terms = tuple(
            tuple(Values(values[i], coding) for i, coding in zip(inside, codings, strict=True))
            for inside, codings, _ in self._layout
        )
        return Columns(data.n, self.terms.intercept, terms)

    def _missing(self, data: Table, nodes: tuple[Node, ...]) -> np.ndarray | None:
        names = (name for node in nodes for name in free_names(data_part(node)))
        return any_missing(dict.fromkeys(names), data)

    def _refuse_missing(self, data: Table) -> None:
        missing = self._missing(data, self.terms.variables)
        if missing is not None:
            raise DataError(
                f"{int(missing.sum())} rows of {data.argument} have missing values (rows "
                f"{some(np.flatnonzero(missing))}); leave them out first (select_rows)."
            )


def fixed_design(
    rhs: str, table: Table, *, rows: np.ndarray | None = None
) -> tuple[DesignSpec, np.ndarray]:
    """Build the design of a formula's right side.

    Parameters
    ----------
    rhs
        For example ``"1 + wt"``, ``"Type*Treatment"``, ``"I(Wt - 70)"``.
    table
        The data, from ``read_frame``.
    rows
        Positions of the rows to use (those without missing values); None uses all. As in R, levels come
        from the rows used; knots, polynomials, ``scale()`` and ``mean()`` from every value of their column.

    Returns
    -------
    spec : DesignSpec
        Column labels, and ``spec.matrix(table)`` at new data.
    matrix : ndarray, shape (rows, k)

    Raises
    ------
    FormulaError
        The formula cannot be read, a column is absent, a function is not allowed.
    DataError
        A column cannot be used: numbers stored as text, objects, dates, infinite values.

    Warns
    -----
    DataWarning
        A category has levels without rows (their columns are removed), or one level only.

    Examples
    --------
    >>> from jaxnlme.design.frames import read_frame
    >>> table = read_frame({"wt": [70.0, 80.0, 65.0], "sex": ["m", "f", "m"]})
    >>> spec, matrix = fixed_design("I(wt - 70) + sex", table)
    >>> spec.labels
    ('(Intercept)', 'I(wt - 70)', 'sexm')
    >>> matrix.tolist()
    [[1.0, 0.0, 1.0], [1.0, 10.0, 0.0], [1.0, -5.0, 1.0]]
    """
    used = table if rows is None else table.take(rows)
    spec = _learn(rhs, table, used, special=False)
    return spec, spec.matrix(used)


def learn_design(
    rhs: str, table: Table, *, rows: np.ndarray | None = None, special: bool = False
) -> DesignSpec:
    """Learn from the data of the fit what the design of a right side has to remember.

    Same errors and warnings as :func:`fixed_design`; the design itself is made by
    ``spec.matrix(table)``, ``spec.parts(table)`` or ``spec.blocks(table)``. With ``special`` smooths
    and random effects are passed over (they stand in ``spec.terms.special``), else they raise. A factor
    with a level for every row raises DataError.

    Examples
    --------
    >>> from jaxnlme.design.frames import read_frame
    >>> learn_design("log(x)", read_frame({"x": [1.0, 2.0]})).labels
    ('(Intercept)', 'log(x)')
    """
    used = table if rows is None else table.take(rows)
    spec = _learn(rhs, table, used, special=special)
    for variable in spec.variables:
        if variable.kind == "factor" and len(variable.levels) == used.n > 2:
            raise DataError(
                f"factor {variable.text!r} has as many levels as there are rows ({used.n}): nothing is left "
                "to estimate it from. Is it an identifier? Leave it out, or use a random effect "
                f"(1 | {variable.text}) with jn.fit_mixed, or an encoding TE()."
            )
    return spec


def _learn(rhs: str, table: Table, used: Table, *, special: bool) -> DesignSpec:
    terms = expand(rhs)
    if not special:
        refuse(terms.special, rhs)
    nodes = (*terms.variables, *terms.offsets)
    for node in nodes:
        check_variable(node, rhs)
    names = dict.fromkeys(n for node in nodes for n in free_names(data_part(node)))
    kinds = {name: kind_of(table.column(name)) for name in names}
    state: dict[str, Any] = {}
    for node in nodes:
        learn_state(node, table, state)
    learned = [learn_variable(node, used, state) for node in terms.variables]
    dropped = []
    for variable in learned:
        if variable.kind == "factor" and len(variable.levels) < 2:
            level = variable.levels[0] if variable.levels else None
            dropped.append(variable.text)
            warn(
                f"factor {variable.text!r} has one level only ({level!r}) in the rows used and is "
                "dropped from the formula.",
                DataWarning,
            )
    kept = without(terms, {i for i, t in enumerate(terms.names) if t in dropped})
    by_text = {v.text: v for v in learned}
    spec = DesignSpec(
        terms.text, tuple(by_text[t] for t in kept.names), kinds, state, tuple(dropped)
    )
    if not spec.labels:
        raise FormulaError(f"the formula {rhs!r} has no column left; write '1' for a constant.")
    return spec


def evaluate_numbers(expression: Expression, table: Table, title: str = "") -> np.ndarray:
    """Evaluate an expression such as a response ``log(conc)`` over a table, float64 (n,).

    Missing values give NaN; a value that is not finite where the data are there raises DataError.

    Examples
    --------
    >>> from jaxnlme.design.expressions import parse
    >>> from jaxnlme.design.frames import read_frame
    >>> evaluate_numbers(parse("log(y)"), read_frame({"y": [1.0, 1.0]})).tolist()
    [0.0, 0.0]
    """
    for name in expression.names:
        table.column(name, role=title)
    values = evaluate_floats(expression.tree, table, {}, f"{title} {expression.text}".strip())
    return values if values.flags.writeable else values.copy()
