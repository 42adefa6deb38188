"""A model written as a formula, as a function ``model(params, x)`` of one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import FormulaError, ModelSpecError, nearest
from jaxnlme.design.expressions import (
    Call,
    Expression,
    Name,
    deparse,
    evaluate,
    parse,
    split_formula,
    walk,
)
from jaxnlme.design.frames import Table
from jaxnlme.structural import selfstart


class FormulaModel:
    """The right side of a model formula as a function of parameters and data.

    Two models with the same expression, parameters and predictors are equal and have one hash, so that
    as a static argument of a compiled function a model is compiled once.

    Parameters
    ----------
    text
        For example ``"SSfol(Dose, Time, lKe, lKa, lCl)"`` or ``"a*exp(-k*t)"``; a left side up to
        ``~`` is passed over.
    parameters
        Names of the model's parameters.
    predictors
        Names of the data columns; None takes every other name of the expression.

    Raises
    ------
    FormulaError
        The text cannot be read, or a name is neither parameter nor predictor.
    ModelSpecError
        A name is both, or a self-starting model that comes later.

    Examples
    --------
    >>> model = FormulaModel("A * exp(-k * t)", ["A", "k"])
    >>> model.predictors, float(model({"A": 2.0, "k": 0.0}, {"t": 1.0}))
    (('t',), 2.0)
    """

    __slots__ = ("expression", "given", "parameters", "predictors")
    given: str
    expression: Expression
    parameters: tuple[str, ...]
    predictors: tuple[str, ...]

    def __init__(
        self, text: str, parameters: Sequence[str], predictors: Sequence[str] | None = None
    ) -> None:
        expression = _parse_model(split_formula(text)[1])
        parameters = tuple(parameters)
        if predictors is None:
            predictors = [n for n in expression.names if n not in parameters]
        _check_names(expression, parameters, tuple(predictors))
        object.__setattr__(self, "given", text)
        object.__setattr__(self, "expression", expression)
        object.__setattr__(self, "parameters", parameters)
        object.__setattr__(self, "predictors", tuple(predictors))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a FormulaModel cannot be changed ({name!r})")

    @property
    def text(self) -> str:
        """The expression as R prints it."""
        return self.expression.text

    def _key(self) -> tuple:
        # Not the text: R's 15 digits of a number are not all of it.
        return (self.expression.tree, self.parameters, self.predictors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FormulaModel) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"FormulaModel({self.text!r}, {list(self.parameters)}, {list(self.predictors)})"

    def __reduce__(self) -> tuple:
        return (FormulaModel, (self.given, self.parameters, self.predictors))

    def __call__(self, params: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """Return the model's value for scalars of one row (or arrays of many)."""
        env = {name: _numeric_only(name, x[name]) for name in self.predictors}
        env.update({name: params[name] for name in self.parameters})
        return jnp.asarray(self.expression.evaluate(env, jnp))

    def columns(self, table: Table) -> dict[str, np.ndarray]:
        """Return the predictors of a table as float64 arrays; a factor raises."""
        for name in self.predictors:
            kind = table.column(name, role="predictor").kind
            if kind == "category" or (kind == "text" and not _looks_numeric(table, name)):
                raise _factor_error(name)
        return {name: table.numeric(name, "predictor") for name in self.predictors}

    @property
    def selfstart(self) -> str | None:
        """Name of the self-starting model that this expression is, or None."""
        call = _selfstart_call(self.expression, self.parameters)
        return None if call is None else call[0]

    def initial(self, x: Mapping[str, Any], y: Any, group: Any = None) -> dict[str, float]:
        """Return start values from the data where the model is self-starting.

        Parameters
        ----------
        x
            The predictors by name.
        y
            The response.
        group
            Group labels; each group then has the same total weight.
        """
        call = _selfstart_call(self.expression, self.parameters)
        if call is None:
            raise ModelSpecError(
                f"the model {self.text!r} has no start values of its own: it is not a single call "
                "of a self-starting model with one parameter per argument. Pass start={...} with "
                f"values for {', '.join(self.parameters)}."
            )
        name, arguments, parameter_of = call
        env = {key: np.asarray(value, dtype=np.float64) for key, value in x.items()}
        with np.errstate(divide="ignore", invalid="ignore"):
            data = {
                role: evaluate(node, env, np, self.expression.functions, None, self.text)
                for role, node in arguments.items()
            }
        found = selfstart.initial(name, data, y, group)
        return {parameter_of[key]: value for key, value in found.items()}


def _parse_model(text: str) -> Expression:
    try:
        return parse(text, functions=selfstart.FUNCTIONS)
    except FormulaError:
        for name in selfstart.LATER:
            if f"{name}(" in text.replace(" ", ""):
                selfstart.model(name)  # says that it comes later
        raise


def _check_names(
    expression: Expression, parameters: tuple[str, ...], predictors: tuple[str, ...]
) -> None:
    both = sorted(set(parameters) & set(predictors))
    if both:
        raise ModelSpecError(
            f"{', '.join(map(repr, both))} is both a parameter and a data column; rename one."
        )
    known = (*parameters, *predictors)
    for name in expression.names:
        if name not in known:
            raise FormulaError(
                f"{name!r} in the model {expression.text!r} is neither a parameter "
                f"({', '.join(parameters)}) nor a data column.{nearest(name, known)}"
            )
    unused = [name for name in parameters if name not in expression.names]
    if unused:
        raise ModelSpecError(
            f"the parameter {unused[0]!r} does not appear in the model {expression.text!r}; every "
            f"parameter with a formula must.{nearest(unused[0], expression.names)}"
        )
    for node in walk(expression.tree):
        if isinstance(node, Call) and node.function in selfstart.FUNCTIONS:
            known_model = selfstart.model(node.function)
            wanted = (*known_model.predictors, *known_model.parameters)
            if len(node.arguments) + len(node.keywords) != len(wanted):
                raise FormulaError(
                    f"{node.function} takes {len(wanted)} arguments ({', '.join(wanted)}), found "
                    f"{len(node.arguments) + len(node.keywords)} in {deparse(node)!r}."
                )


def _selfstart_call(
    expression: Expression, parameters: tuple[str, ...]
) -> tuple[str, dict[str, Any], dict[str, str]] | None:
    """Return name, data arguments and own parameter names if the model is one plain SS call."""
    tree = expression.tree
    if not isinstance(tree, Call) or tree.function not in selfstart.FUNCTIONS:
        return None
    known = selfstart.model(tree.function)
    slots = dict(zip((*known.predictors, *known.parameters), tree.arguments, strict=False))
    slots.update(dict(tree.keywords))
    parameter_of: dict[str, str] = {}
    for key in known.parameters:
        node = slots.get(key)
        if not isinstance(node, Name) or node.value not in parameters:
            return None
        parameter_of[key] = node.value
    if len(set(parameter_of.values())) < len(parameter_of):
        return None
    return tree.function, {key: slots[key] for key in known.predictors}, parameter_of


def _numeric_only(name: str, value: Any) -> Any:
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, str) or kind in ("U", "S", "O"):
        raise _factor_error(name)
    return value


def _looks_numeric(table: Table, name: str) -> bool:
    column = table.column(name)
    present = column.values[~column.missing]
    try:
        present.astype(np.float64)
    except ValueError:
        return False
    return True


def _factor_error(name: str) -> FormulaError:
    return FormulaError(
        f"column {name!r} is a factor (text or a category) and stands in the model expression, "
        "which computes with numbers. Let a parameter depend on it, for example "
        f"fixed='Asym ~ {name}', or pass a 0/1 column."
    )
