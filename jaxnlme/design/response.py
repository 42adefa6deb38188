"""The two sides of a model formula, and the values of the left one."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnlme._errors import DataError, FormulaError, FormulaWarning, warn
from jaxnlme.design.columns import Factor
from jaxnlme.design.expressions import (
    Binary,
    Call,
    Name,
    Node,
    Unary,
    deparse,
    formula_error,
    free_names,
    parse_tree,
    split_formula,
)
from jaxnlme.design.frames import Table, read_column
from jaxnlme.design.terms import expand
from jaxnlme.design.variables import (
    any_missing,
    check_bare_factor,
    check_variable,
    data_part,
    evaluate_column,
    evaluate_floats,
    is_factor_call,
    learn_variable,
    recode,
    variable_values,
)


def read_formula(formula: Any, table: Table) -> tuple[str, str]:
    """Split a two-sided formula; ``.`` on the right becomes all other columns of the data.

    As in R these are all columns that the left side does not use, weights and exposure among them.

    Returns
    -------
    lhs, rhs : str
        For :func:`read_response` and ``fixed_design``. A response that stands on the right too is
        taken out there, as in R.

    Raises
    ------
    FormulaError
        The formula cannot be read or has no response.

    Warns
    -----
    FormulaWarning
        The response is also on the right-hand side.

    Examples
    --------
    >>> from jaxnlme.design.frames import read_frame
    >>> table = read_frame({"y": [1.0], "x": [2.0], "my z": [3.0]})
    >>> read_formula("log(y) ~ . - x", table)
    ('log(y)', '(x + `my z`) - x')
    """
    left, right = split_formula(formula)
    parse_tree(str(formula).strip())  # positions of syntax errors in the whole
    if left is None:
        raise FormulaError(
            f"a two-sided formula is needed, 'response ~ terms', found {formula!r}: name the "
            "response on the left of '~'."
        )
    names = response_columns(left)
    right = _without_dots(right, [name for name in table.names if name not in names])
    response = deparse(parse_tree(left))
    terms = expand(right)
    if response in terms.names:
        warn(
            f"the response {response!r} is also on the right-hand side of {formula!r}; it is "
            "left out there.",
            FormulaWarning,
        )
        held = [label for label in terms.labels if response in label.split(":")]
        return left, " - ".join([right, *held])
    used = [name for node in terms.variables for name in free_names(node)]
    both = [name for name in names if name in used]
    if both:
        warn(
            f"the response column {both[0]!r} is also used on the right-hand side of {formula!r}.",
            FormulaWarning,
        )
    return left, right


def response_columns(lhs: str) -> tuple[str, ...]:
    """Return the data columns of a left side, for example those of ``cbind(a, b - a)``."""
    return free_names(data_part(parse_tree(lhs)))


def read_response(
    lhs: Any, table: Table | None = None, levels: tuple | None = None
) -> tuple[np.ndarray, tuple | None, tuple[str, ...]]:
    """Read the response of a model.

    Parameters
    ----------
    lhs
        The left side of a formula: a column, an expression such as ``log(y)``, ``cbind(a, b)``,
        ``factor(y)``. Or an array (n,) of numbers, booleans or labels.
    table
        The rows of the fit; not needed for an array.
    levels
        The levels of a label response at the fit, to read new data; None learns them: text and
        numbers in ``factor()`` sorted, categories in their order without those that have no row.

    Returns
    -------
    values : ndarray, shape (n,) or (n, 2) for ``cbind``
        float64, NaN where missing; booleans are 0 and 1, labels are positions in ``levels``.
    levels : tuple or None
        The levels of a label response.
    columns : tuple of str
        Data columns that were read.

    Raises
    ------
    DataError
        A column holds no numbers or labels, a value is not finite, an array is not (n,), a level
        was not seen at the fit.
    FormulaError
        The left side cannot be read or names a column that is not there.

    Examples
    --------
    >>> from jaxnlme.design.frames import read_frame
    >>> table = read_frame({"y": ["no", "yes", "no"], "a": [1, 2, 3], "n": [4, 4, 4]})
    >>> read_response("y", table)
    (array([0., 1., 0.]), ('no', 'yes'), ('y',))
    >>> read_response("cbind(a, n - a)", table)[0].tolist()
    [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]
    """
    if not isinstance(lhs, str):
        return (*_read_array(lhs, levels), ())
    assert table is not None
    node = parse_tree(lhs)
    columns = response_columns(lhs)
    for name in columns:
        table.column(name, role="response")
    if isinstance(node, Call) and node.function == "cbind":
        return _read_pair(node, lhs, table), None, columns
    check_variable(node, lhs)
    if isinstance(node, Name):
        if table.column(node.value).kind in ("number", "bool"):
            return table.numeric(node.value, "response"), None, columns
        check_bare_factor(table, node.value)
    elif not is_factor_call(node):
        values = np.asarray(evaluate_column(node, table, {}))
        if values.dtype.kind == "b":
            values = values.astype(np.float64)
            missing = any_missing(columns, table)
            if missing is not None:
                values[missing] = np.nan
            return values, None, columns
        values = evaluate_floats(node, table, {}, f"response {deparse(node)}")
        return np.array(values), None, columns
    variable = learn_variable(node, table, {}, "response")
    if levels is not None:
        factor_codes = _against(variable_values(variable, node, table, {}), variable.levels, levels)
        return factor_codes, levels, columns
    codes = variable_values(variable, node, table, {})
    return _as_numbers(codes), variable.levels, columns


def _read_pair(node: Call, text: str, table: Table) -> np.ndarray:
    if len(node.arguments) != 2 or node.keywords:
        raise formula_error(
            text,
            node.at,
            "cbind() on the left takes two columns, for example cbind(success, failure).",
        )
    pair = []
    for argument in node.arguments:
        check_variable(argument, text)
        pair.append(evaluate_floats(argument, table, {}, f"response {deparse(argument)}"))
    return np.column_stack(pair)


def _read_array(values: Any, levels: tuple | None) -> tuple[np.ndarray, tuple | None]:
    shape = np.shape(values)
    if len(shape) != 1:
        cure = "pass y.ravel()" if len(shape) == 2 and 1 in shape else "pass one response"
        raise DataError(
            f"y has shape {shape}; a vector (n,) is needed: {cure}, or a formula "
            "'cbind(success, failure) ~ ...' for two columns of counts."
        )
    table = Table({"y": read_column(values, "y")}, shape[0], "dict", "y")
    if table.n == 0:
        raise DataError("y has 0 rows; at least one row is needed.")
    if table.column("y").kind in ("number", "bool"):
        return table.numeric("y", "response"), None
    found, found_levels, _ = read_response("y", table, levels)
    return found, found_levels


def _as_numbers(codes: np.ndarray) -> np.ndarray:
    values = codes.astype(np.float64)
    values[codes < 0] = np.nan
    return values


def _against(codes: np.ndarray, own: tuple, levels: tuple) -> np.ndarray:
    return _as_numbers(recode(Factor(codes, own), levels, "the response"))


def _without_dots(rhs: str, names: list[str]) -> str:
    """Write the columns that a ``.`` stands for."""
    found = _dots(parse_tree(rhs), rhs)
    if found and not names:
        raise formula_error(rhs, found[0], "'.' stands for no column: the data have no other.")
    columns = "(" + " + ".join(deparse(Name(name)) for name in names) + ")"
    for at in sorted(found, reverse=True):
        rhs = rhs[:at] + columns + rhs[at + 1 :]
    return rhs


def _dots(node: Node, text: str) -> list[int]:
    if isinstance(node, Name):
        return [node.at] if node.value == "." else []
    if isinstance(node, Unary):
        return _dots(node.operand, text)
    if isinstance(node, Binary):
        return _dots(node.left, text) + _dots(node.right, text)
    if isinstance(node, Call) and node.function == "(":
        return _dots(node.arguments[0], text)
    if isinstance(node, Call) and "." in free_names(node):
        raise formula_error(
            text,
            node.at,
            f"'.' inside {node.function}() has no meaning; it stands for all other columns as "
            "terms of their own.",
        )
    return []


__all__ = ["read_formula", "read_response", "response_columns"]
