"""The variables of a formula: what each one is, what it learns from the data, and its values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, DataWarning, FormulaError, some, warn
from jaxnlme.design.bases import BASES, basis_width
from jaxnlme.design.columns import Column, Factor, decode_array, level_label, sorted_factor
from jaxnlme.design.contrasts import TREATMENT, Contrast, base_position, contrast_matrix
from jaxnlme.design.expressions import (
    Call,
    Name,
    Node,
    Number,
    Text,
    check_expression,
    deparse,
    evaluate,
    formula_error,
    free_names,
    walk,
)
from jaxnlme.design.frames import Table
from jaxnlme.design.functions import FUNCTIONS, REDUCTIONS

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


KIND_WORDS = {"number": "numbers", "bool": "booleans", "label": "labels", "other": "other values"}


def kind_of(column: Column) -> str:
    """Return number, bool, label or other: what must not change between fit and prediction."""
    if column.kind in ("text", "category"):
        return "label"
    return column.kind if column.kind in ("number", "bool") else "other"


def data_part(node: Node) -> Node:
    """The part of a variable that reads data: not the contrast of ``C(x, contr.sum)``."""
    if isinstance(node, Call) and node.function in _FACTOR_CALLS and node.arguments:
        return data_part(node.arguments[0])
    return node


def check_variable(node: Node, text: str) -> None:
    """Raise unless a variable (or offset) uses allowed functions only."""
    if isinstance(node, Call) and node.function in _FACTOR_CALLS:
        if not node.arguments:
            raise formula_error(text, node.at, f"{node.function}() needs a column.")
        _contrast_of(node, text)
        return check_variable(node.arguments[0], text)
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


def is_factor_call(node: Node) -> bool:
    """True for ``factor(x)``, ``C(x, ...)`` and their like."""
    return isinstance(node, Call) and node.function in _FACTOR_CALLS


def learn_variable(
    node: Node, table: Table, state: dict[str, Any], title: str = "factor"
) -> Variable:
    """Find out what a variable is and what it has to remember."""
    text = deparse(node)
    if isinstance(node, Call) and node.function in BASES:
        if text not in state:
            learn_state(node, table, state)
        return Variable(text, "basis", width=basis_width(node.function, state[text]))
    if isinstance(node, Name) and table.is_numeric(node.value):
        return Variable(text, "number")
    if isinstance(node, Call) and node.function in _FACTOR_CALLS:
        contrast, wanted = _contrast_of(node, text)
        factor = factor_of(node, table, state)
    elif isinstance(node, Name):
        check_bare_factor(table, node.value)
        contrast, wanted, factor = TREATMENT, None, table.factor(node.value)
    else:
        values = evaluate_column(node, table, state)
        if values.dtype.kind != "b":
            return Variable(text, "number")
        contrast, wanted, factor = TREATMENT, None, sorted_factor(decode_array(values, text), text)
    if wanted is not None:
        return Variable(text, "factor", wanted, contrast)
    levels = used_levels(factor, f"{title} {text!r}", tell=is_category(node, table))
    try:
        if contrast.kind == "treatment" and len(levels) > 1:
            base_position(contrast.base, tuple(level_label(level) for level in levels))
    except ValueError as error:
        raise FormulaError(f"{text}: {error}.") from None
    return Variable(text, "factor", levels, contrast)


def learn_state(node: Node, table: Table, state: dict[str, Any]) -> None:
    """Let the data-dependent functions of a variable learn: knots, polynomials, means and scales."""
    for child in walk(node):
        if isinstance(child, Call) and child.function in REDUCTIONS:
            evaluate_column(child, table, state)
    if not (isinstance(node, Call) and node.function in BASES):
        return
    text = deparse(node)
    x = evaluate_floats(node.arguments[0], table, state, deparse(node.arguments[0]))
    arguments = [evaluate(a, {}, np, FUNCTIONS, None, text) for a in node.arguments[1:]]
    keywords = {k: evaluate(a, {}, np, FUNCTIONS, None, text) for k, a in node.keywords}
    try:
        state[text] = BASES[node.function][0](x[~np.isnan(x)], *arguments, **keywords)
    except TypeError as error:
        raise FormulaError(f"{text}: {error}.") from None


def variable_values(
    variable: Variable, node: Node, table: Table, state: dict[str, Any]
) -> np.ndarray:
    """Return codes (n,) of a factor (-1 where missing), else columns (n, width)."""
    if variable.kind == "factor":
        factor = (
            table.factor(node.value) if isinstance(node, Name) else factor_of(node, table, state)
        )
        return recode(factor, variable.levels, f"factor {variable.text!r}")
    if variable.kind == "basis":
        assert isinstance(node, Call)
        x = evaluate_floats(node.arguments[0], table, state, deparse(node.arguments[0]))
        use = BASES[node.function][1]
        known = ~np.isnan(x)
        if known.all():
            return use(x, state[variable.text])
        columns = np.full((table.n, variable.width), np.nan)
        if known.any():
            columns[known] = use(x[known], state[variable.text])
        return columns
    return evaluate_floats(node, table, state, variable.text)[:, None]


def recode(factor: Factor, levels: tuple, title: str) -> np.ndarray:
    """Return codes into the levels of the fit, -1 where missing; an unseen level raises."""
    if factor.levels == levels:
        return factor.codes
    position = {level: i for i, level in enumerate(levels)}
    unseen = [
        level
        for code, level in enumerate(factor.levels)
        if level not in position and (factor.codes == code).any()
    ]
    if unseen:
        raise DataError(
            f"{title} has levels that the fit did not see: "
            f"{some([repr(u) for u in unseen])}. Known levels: {some(levels, 12)}."
        )
    table = np.array([position.get(level, -1) for level in factor.levels] + [-1], dtype=np.int32)
    return table[factor.codes]


def factor_of(node: Node, table: Table, state: dict[str, Any]) -> Factor:
    """Return the factor that a column, ``factor(x)``, ``C(x, ...)`` or a comparison makes."""
    inner = data_part(node)
    if isinstance(inner, Name):
        return table.factor(inner.value)
    return sorted_factor(
        decode_array(evaluate_column(inner, table, state), deparse(inner)), deparse(node)
    )


def used_levels(factor: Factor, title: str, *, tell: bool) -> tuple:
    """Return the levels that have rows; ``tell`` warns of the others."""
    counts = np.bincount(factor.codes[factor.codes >= 0], minlength=len(factor.levels))
    unused = [level for level, count in zip(factor.levels, counts, strict=True) if count == 0]
    if unused and tell:
        warn(
            f"{title} has levels without rows ({some([repr(u) for u in unused])}); "
            + (
                "their columns are removed." if title.startswith("factor") else "they are left out."
            ),
            DataWarning,
        )
    return tuple(level for level, count in zip(factor.levels, counts, strict=True) if count)


def is_category(node: Node, table: Table) -> bool:
    """True for a categorical column, bare or inside ``C()``."""
    inner = data_part(node)
    return isinstance(inner, Name) and table.column(inner.value).kind == "category"


def check_bare_factor(table: Table, name: str) -> None:
    """Refuse columns that R would code as factors by accident."""
    column = table.column(name)
    if column.kind in ("bool", "category"):
        return
    if column.kind != "text":
        table.numeric(name)  # raises: objects, dates, complex
    try:
        np.array(column.levels, dtype=object).astype(np.float64)
    except ValueError:
        return
    if column.levels:
        table.numeric(name)  # raises: numbers stored as text


def evaluate_floats(node: Node, table: Table, state: dict[str, Any], title: str) -> np.ndarray:
    """Evaluate to float64 (n,), refusing values that are not finite where the data are there."""
    if isinstance(node, Name):
        return table.floats(node.value)
    values = np.asarray(evaluate_column(node, table, state), dtype=np.float64)
    with np.errstate(all="ignore"):
        if np.isfinite(values.sum()):  # one cheap pass
            return values
    missing = any_missing(free_names(node), table)
    missing = np.zeros(table.n, dtype=bool) if missing is None else missing
    wrong = ~np.isfinite(values) & ~missing
    if wrong.any():
        raise DataError(
            f"{title} is not finite in {int(wrong.sum())} rows (rows "
            f"{some(np.flatnonzero(wrong))}), where its columns have values; correct them or "
            "change the formula."
        )
    return np.where(missing, np.nan, values)


def any_missing(names: Iterable[str], table: Table) -> np.ndarray | None:
    """Return where one of these columns is missing (n,), None where nothing is."""
    found = [table.missing(name) for name in names if table.column(name).any_missing]
    return np.logical_or.reduce(found) if found else None


def evaluate_column(node: Node, table: Table, state: dict[str, Any]) -> np.ndarray:
    """Evaluate to numbers or booleans (n,) of any kind."""
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
        return table.floats(name)
    if column.kind == "bool":
        return column.values
    if column.kind in ("text", "category"):
        factor = table.factor(name)
        return np.array([*factor.levels, None], dtype=object)[factor.codes]
    return table.numeric(name)  # raises with the reason
