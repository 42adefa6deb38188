"""From the right side of a formula to design columns with R's names, now and at new data."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, DataWarning, FormulaError, SerializationError, some
from jaxnlme.design.bases import BASES
from jaxnlme.design.columns import Column, Factor, decode_array, level_label, sorted_factor
from jaxnlme.design.contrasts import TREATMENT, Contrast, base_position, contrast_matrix
from jaxnlme.design.expressions import (
    Call,
    Expression,
    Name,
    Node,
    Number,
    Text,
    check_expression,
    deparse,
    evaluate,
    formula_error,
    free_names,
)
from jaxnlme.design.frames import Table
from jaxnlme.design.functions import FUNCTIONS
from jaxnlme.design.terms import Terms, expand, members, without

_FACTOR_CALLS = ("C", "factor", "as.factor")
_CONTRASTS = {
    "contr.treatment": "treatment",
    "contr.SAS": "SAS",
    "contr.sum": "sum",
    "contr.helmert": "helmert",
    "contr.poly": "poly",
}


@dataclasses.dataclass(frozen=True)
class Variable:
    """What was learned about one variable: ``kind`` is number, factor or basis."""

    text: str
    kind: str
    levels: tuple = ()
    contrast: Contrast = TREATMENT
    width: int = 1

    def columns(self, full: bool) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Return the coding matrix (factors) and the names of the variable's columns."""
        if self.kind == "factor":
            if full:
                labels = tuple(level_label(level) for level in self.levels)
                return np.eye(len(labels)), tuple(self.text + label for label in labels)
            matrix, suffixes = contrast_matrix(self.contrast, self.levels)
            return matrix, tuple(self.text + suffix for suffix in suffixes)
        if self.kind == "basis" and self.width > 1:
            return None, tuple(f"{self.text}{j + 1}" for j in range(self.width))
        return None, (self.text,)


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
        self._check_columns(data)
        state = dict(self.state)
        values = [
            _variable_values(v, node, data, state)
            for v, node in zip(self.variables, self.terms.variables, strict=True)
        ]
        matrix = np.empty((data.n, len(self.labels)))
        at = 0
        if self.terms.intercept:
            matrix[:, 0], at = 1.0, 1
        for inside, codings, _ in self._layout:
            block = np.ones((data.n, 1))
            for i, coding in zip(inside, codings, strict=True):
                more = values[i] if coding is None else coding[values[i]]
                block = (more[:, :, None] * block[:, None, :]).reshape(data.n, -1)
            matrix[:, at : at + block.shape[1]] = block
            at += block.shape[1]
        matrix[self._missing(data, self.terms.variables)] = np.nan
        return matrix

    def offset(self, data: Table) -> np.ndarray | None:
        """Return the sum of the formula's ``offset()`` terms (n,), None without one."""
        if not self.terms.offsets:
            return None
        self._check_columns(data)
        total = np.zeros(data.n)
        for node in self.terms.offsets:
            total += _numbers(node, data, dict(self.state), f"offset({deparse(node)})")
        total[self._missing(data, self.terms.offsets)] = np.nan
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
            _check_variable(node, spec.formula)
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
            if _kind(column) != kind and not (column.missing.all() and data.n):
                raise DataError(
                    f"column {name!r} held {_KIND_WORDS[kind]} at the fit and now has dtype "
                    f"{column.dtype}; give it the type it had."
                )

    def _missing(self, data: Table, nodes: tuple[Node, ...]) -> np.ndarray:
        missing = np.zeros(data.n, dtype=bool)
        for node in nodes:
            for name in free_names(_data_part(node)):
                missing |= data.missing(name)
        return missing


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
        Positions of the rows to use (those without missing values); None uses all.

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
    terms = expand(rhs)
    nodes = (*terms.variables, *terms.offsets)
    for node in nodes:
        _check_variable(node, rhs)
    names = dict.fromkeys(n for node in nodes for n in free_names(_data_part(node)))
    kinds = {name: _kind(table.column(name)) for name in names}
    used = table if rows is None else table.take(rows)
    state: dict[str, Any] = {}
    learned = [_learn(node, used, state) for node in terms.variables]
    dropped = []
    for variable in learned:
        if variable.kind == "factor" and len(variable.levels) < 2:
            level = variable.levels[0] if variable.levels else None
            dropped.append(variable.text)
            warnings.warn(
                f"factor {variable.text!r} has one level only ({level!r}) in the rows used and is "
                "dropped from the formula.",
                DataWarning,
                stacklevel=2,
            )
    kept = without(terms, {i for i, t in enumerate(terms.names) if t in dropped})
    by_text = {v.text: v for v in learned}
    spec = DesignSpec(
        terms.text, tuple(by_text[t] for t in kept.names), kinds, state, tuple(dropped)
    )
    if not spec.labels:
        raise FormulaError(f"the formula {rhs!r} has no column left; write '1' for a constant.")
    for node in terms.offsets:  # so that scale() and the like learn from the rows of the fit
        _numbers(node, used, state, f"offset({deparse(node)})")
    return spec, spec.matrix(used)


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
    return _numbers(expression.tree, table, {}, f"{title} {expression.text}".strip())


_KIND_WORDS = {"number": "numbers", "bool": "booleans", "label": "labels", "other": "other values"}


def _kind(column: Column) -> str:
    if column.kind in ("text", "category"):
        return "label"
    return column.kind if column.kind in ("number", "bool") else "other"


def _data_part(node: Node) -> Node:
    """The part of a variable that reads data: not the contrast of ``C(x, contr.sum)``."""
    if isinstance(node, Call) and node.function in _FACTOR_CALLS and node.arguments:
        return _data_part(node.arguments[0])
    return node


def _check_variable(node: Node, text: str) -> None:
    """Raise unless a variable (or offset) uses allowed functions only."""
    if isinstance(node, Call) and node.function in _FACTOR_CALLS:
        if not node.arguments:
            raise formula_error(text, node.at, f"{node.function}() needs a column.")
        _contrast_of(node, text)
        return _check_variable(node.arguments[0], text)
    if isinstance(node, Call) and node.function in BASES:
        if not node.arguments:
            raise formula_error(text, node.at, f"{node.function}() needs a column.")
        for argument in (*node.arguments[1:], *(a for _, a in node.keywords)):
            if free_names(argument):
                raise formula_error(
                    text,
                    node.at,
                    f"the arguments of {node.function}() after the first are numbers.",
                )
            check_expression(argument, text, FUNCTIONS)
        return check_expression(node.arguments[0], text, FUNCTIONS)
    return check_expression(node, text, FUNCTIONS)


def _contrast_of(node: Call, text: str) -> tuple[Contrast, tuple | None]:
    """Return the contrast and the levels that ``C(x, ...)`` or ``factor(x, levels=)`` ask for."""
    keywords = dict(node.keywords)
    if node.function != "C":
        levels = keywords.pop("levels", None)
        if keywords or len(node.arguments) > 1:
            raise formula_error(text, node.at, f"{node.function}() takes a column and levels=.")
        return TREATMENT, None if levels is None else _constants(levels, text)
    chosen = [*node.arguments[1:], *([keywords.pop("contr")] if "contr" in keywords else [])]
    base = keywords.pop("base", None)
    if keywords or len(chosen) > 1:
        raise formula_error(text, node.at, "C() takes a column, a contrast and base=.")
    kind = chosen[0] if chosen else Name("contr.treatment")
    if isinstance(kind, Call):
        inner = dict(kind.keywords)
        position = inner.pop("base", None)
        # contr.treatment(n, base = 2) in R; the number of levels is known here
        if inner or len(kind.arguments) > 1:
            raise formula_error(text, kind.at, f"{kind.function}() takes base= only.")
        base, kind = base or position, Name(kind.function, at=kind.at)
    if not isinstance(kind, Name) or kind.value not in _CONTRASTS:
        raise formula_error(
            text,
            kind.at,
            f"the contrast {deparse(kind)} is not known; there are {', '.join(_CONTRASTS)}.",
        )
    if base is None:
        return Contrast(_CONTRASTS[kind.value]), None
    if kind.value != "contr.treatment" or not isinstance(base, (Number, Text)):
        raise formula_error(
            text, node.at, "base= is a level or its position and belongs to contr.treatment."
        )
    return Contrast("treatment", base.value if isinstance(base, Text) else int(base.value)), None


def _constants(node: Node, text: str) -> tuple:
    items = node.arguments if isinstance(node, Call) and node.function == "c" else (node,)
    if not all(isinstance(item, (Number, Text)) for item in items):
        raise formula_error(text, node.at, "levels are numbers or texts in c().")
    return tuple(item.value for item in items)  # type: ignore[attr-defined]


def _learn(node: Node, table: Table, state: dict[str, Any]) -> Variable:
    """Find out what a variable is and what it has to remember."""
    text = deparse(node)
    if isinstance(node, Call) and node.function in BASES:
        return _learn_basis(node, text, table, state)
    if isinstance(node, Name) and table.is_numeric(node.value):
        return Variable(text, "number")
    if isinstance(node, Call) and node.function in _FACTOR_CALLS:
        contrast, wanted = _contrast_of(node, text)
        factor = _factor_of(node, table, state)
    elif isinstance(node, Name):
        _check_bare_factor(table, node.value)
        contrast, wanted, factor = TREATMENT, None, table.factor(node.value)
    else:
        values = _evaluate(node, table, state)
        if values.dtype.kind != "b":
            return Variable(text, "number")
        contrast, wanted, factor = TREATMENT, None, sorted_factor(decode_array(values, text), text)
    if wanted is not None:
        return Variable(text, "factor", wanted, contrast)
    levels = _used_levels(factor, text, warn=_is_category(node, table))
    try:
        if contrast.kind == "treatment" and len(levels) > 1:
            base_position(contrast.base, tuple(level_label(level) for level in levels))
    except ValueError as error:
        raise FormulaError(f"{text}: {error}.") from None
    return Variable(text, "factor", levels, contrast)


def _learn_basis(node: Call, text: str, table: Table, state: dict[str, Any]) -> Variable:
    learn, use = BASES[node.function]
    x = _numbers(node.arguments[0], table, state, deparse(node.arguments[0]))
    x = x[~np.isnan(x)]
    arguments = [evaluate(a, {}, np, FUNCTIONS, None, text) for a in node.arguments[1:]]
    keywords = {k: evaluate(a, {}, np, FUNCTIONS, None, text) for k, a in node.keywords}
    try:
        state[text] = learn(x, *arguments, **keywords)
    except TypeError as error:
        raise FormulaError(f"{text}: {error}.") from None
    return Variable(text, "basis", width=use(x[:1], state[text]).shape[1])


def _variable_values(
    variable: Variable, node: Node, table: Table, state: dict[str, Any]
) -> np.ndarray:
    """Return codes (n,) of a factor, else columns (n, width)."""
    if variable.kind == "factor":
        factor = (
            table.factor(node.value) if isinstance(node, Name) else _factor_of(node, table, state)
        )
        return _recode(factor, variable)
    if variable.kind == "basis":
        assert isinstance(node, Call)
        x = _numbers(node.arguments[0], table, state, deparse(node.arguments[0]))
        columns = np.full((table.n, variable.width), np.nan)
        known = ~np.isnan(x)
        if known.any():
            columns[known] = BASES[node.function][1](x[known], state[variable.text])
        return columns
    return _numbers(node, table, state, variable.text)[:, None]


def _recode(factor: Factor, variable: Variable) -> np.ndarray:
    position = {level: i for i, level in enumerate(variable.levels)}
    unseen = [
        level
        for code, level in enumerate(factor.levels)
        if level not in position and (factor.codes == code).any()
    ]
    if unseen:
        raise DataError(
            f"factor {variable.text!r} has levels that the fit did not see: "
            f"{some([repr(u) for u in unseen])}. Known levels: {some(variable.levels, 12)}."
        )
    table = np.array([position.get(level, 0) for level in factor.levels] + [0], dtype=np.intp)
    return table[factor.codes]  # -1 (missing) reads the last entry; its row becomes NaN


def _factor_of(node: Node, table: Table, state: dict[str, Any]) -> Factor:
    inner = _data_part(node)
    if isinstance(inner, Name):
        return table.factor(inner.value)
    return sorted_factor(
        decode_array(_evaluate(inner, table, state), deparse(inner)), deparse(node)
    )


def _used_levels(factor: Factor, text: str, *, warn: bool) -> tuple:
    counts = np.bincount(factor.codes[factor.codes >= 0], minlength=len(factor.levels))
    unused = [level for level, count in zip(factor.levels, counts, strict=True) if count == 0]
    if unused and warn:
        warnings.warn(
            f"factor {text!r} has levels without rows ({some([repr(u) for u in unused])}); their "
            "columns are removed.",
            DataWarning,
            stacklevel=4,
        )
    return tuple(level for level in factor.levels if level not in unused)


def _is_category(node: Node, table: Table) -> bool:
    inner = _data_part(node)
    return isinstance(inner, Name) and table.column(inner.value).kind == "category"


def _check_bare_factor(table: Table, name: str) -> None:
    """Refuse columns that R would code as factors by accident."""
    column = table.column(name)
    if column.kind in ("bool", "category"):
        return
    if column.kind != "text":
        table.numeric(name)  # raises: objects, dates, complex
    present = column.values[~column.missing]
    try:
        present.astype(np.float64)
    except ValueError:
        return
    if len(present):
        table.numeric(name)  # raises: numbers stored as text


def _numbers(node: Node, table: Table, state: dict[str, Any], title: str) -> np.ndarray:
    """Evaluate to float64 (n,), refusing values that are not finite where the data are there."""
    if isinstance(node, Name):
        return table.numeric(node.value)
    values = np.asarray(_evaluate(node, table, state), dtype=np.float64)
    missing = np.zeros(table.n, dtype=bool)
    for name in free_names(node):
        missing |= table.missing(name)
    wrong = ~np.isfinite(values) & ~missing
    if wrong.any():
        raise DataError(
            f"{title} is not finite in {int(wrong.sum())} rows (rows "
            f"{some(np.flatnonzero(wrong))}), where its columns have values; correct them or "
            "change the formula."
        )
    return np.where(missing, np.nan, values)


def _evaluate(node: Node, table: Table, state: dict[str, Any]) -> np.ndarray:
    env = {name: _plain_values(table, name) for name in free_names(node)}
    with np.errstate(all="ignore"):
        values = np.asarray(evaluate(node, env, np, FUNCTIONS, state, deparse(node)))
    if values.ndim == 0:
        values = np.broadcast_to(values, (table.n,))
    if values.shape != (table.n,):
        raise FormulaError(
            f"{deparse(node)} gives shape {values.shape}; one value per row is needed, "
            f"({table.n},)."
        )
    if values.dtype.kind in "OUS":
        raise FormulaError(
            f"{deparse(node)} gives labels, not numbers; write factor(...) for a factor."
        )
    return values


def _plain_values(table: Table, name: str) -> np.ndarray:
    column = table.column(name)
    if column.kind == "number":
        return table.numeric(name)
    if column.kind == "bool":
        return column.values
    if column.kind in ("text", "category"):
        factor = table.factor(name)
        return np.array([*factor.levels, None], dtype=object)[factor.codes]
    return table.numeric(name)  # raises with the reason
