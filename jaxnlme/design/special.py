"""Terms that are no columns of a design: smooths, random effects, target encoding.

They are set apart when a right side is expanded, so that GAM and mixed models find them; a door that does
not know them refuses them by :func:`refuse`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxnlme._errors import FormulaError
from jaxnlme.design.expressions import (
    Binary,
    Call,
    Name,
    Node,
    Number,
    Text,
    Truth,
    Unary,
    deparse,
    formula_error,
)

SMOOTHS = ("s", "te", "ti", "t2")
COVARIANCES = ("us", "diag", "cs", "ar1", "toep")
_ARGUMENTS = {
    "s": ("k", "bs", "by", "m", "id", "fx", "sp", "xt", "pc"),
    **dict.fromkeys(("te", "ti"), ("k", "bs", "m", "d", "by", "fx", "np", "xt", "id", "sp", "mc", "pc")),
    "t2": ("k", "bs", "m", "d", "by", "fx", "xt", "id", "sp", "full", "ord", "pc"),
    "TE": ("prior_weight", "n_permutations"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Special:
    """One special term.

    Attributes
    ----------
    function : str
        ``s te ti t2``, ``TE``, or ``|`` and ``||`` for a random effect.
    arguments : tuple of str
        The variables of a smooth as R prints them; of a random effect its terms and its group,
        ``("1 + Days", "Subject")``.
    options : tuple of (str, value)
        Named arguments as plain values (numbers, texts, booleans, None, tuples, dicts); names such as
        ``by=g`` as their text. A covariance wrapper is ``("covariance", "diag")``.
    text : str
        The term as R prints it.
    at : int
        Position in the text of the right side.
    """

    function: str
    arguments: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    text: str
    at: int = dataclasses.field(default=0, compare=False)


def is_special(node: Node) -> bool:
    """True where a node of the term algebra is a smooth, a random effect or an encoding."""
    if not isinstance(node, Call):
        return False
    return node.function in SMOOTHS or node.function == "TE" or _bar(node) is not None


def read_special(node: Node, text: str) -> Special:
    """Read a special term; unknown arguments and values that are no constants raise."""
    assert isinstance(node, Call)
    bar = _bar(node)
    if bar is not None:
        options = () if node.function == "(" else (("covariance", node.function),)
        arguments = (deparse(bar.left), deparse(bar.right))
        return Special(bar.operator, arguments, options, deparse(node), node.at)
    known, options = _ARGUMENTS[node.function], {}
    for key, value in node.keywords:
        if key not in known:
            raise formula_error(
                text,
                node.at,
                f"{node.function}() has no argument {key!r}; it has {', '.join(known)}.",
            )
        options[key] = deparse(value) if key == "by" else literal(value, text, key)
    if not node.arguments:
        raise formula_error(text, node.at, f"{node.function}() needs a variable.")
    if node.function == "TE" and len(node.arguments) > 1:
        raise formula_error(text, node.at, "TE() takes one column.")
    arguments = tuple(deparse(a) for a in node.arguments)
    return Special(node.function, arguments, tuple(options.items()), deparse(node), node.at)


def literal(node: Node, text: str, key: str) -> Any:
    """Return a constant of a formula as a plain value.

    Examples
    --------
    >>> from jaxnlme.design.expressions import parse_tree
    >>> literal(parse_tree('c(5, 10)'), "", "k"), literal(parse_tree("-1"), "", "k")
    ((5, 10), -1)
    """
    if isinstance(node, Number):
        return int(node.value) if node.value.is_integer() else node.value
    if isinstance(node, (Text, Truth)):
        return node.value
    if isinstance(node, Unary) and node.operator == "-":
        value = literal(node.operand, text, key)
        if isinstance(value, (int, float)):
            return -value
    if isinstance(node, Name) and node.value in ("NULL", "NA", "None"):
        return None
    if isinstance(node, Call) and node.function in ("c", "(") and not node.keywords:
        values = tuple(literal(a, text, key) for a in node.arguments)
        return values[0] if node.function == "(" else values
    if isinstance(node, Call) and node.function == "list":
        named = {k: literal(v, text, key) for k, v in node.keywords}
        return named if not node.arguments else tuple(literal(a, text, key) for a in node.arguments)
    raise formula_error(
        text, node.at, f"{key}= takes a number, a text, TRUE, FALSE or c(...), not {deparse(node)}."
    )


def refuse(special: Sequence[Special], formula: str) -> None:
    """Refuse special terms where columns only are known.

    Raises
    ------
    FormulaError
        Names the term and what takes it.
    """
    if not special:
        return
    term = special[0]
    if term.function in SMOOTHS:
        cure = (
            f"{term.text} is a smooth term; jn.fit_gam takes it. Here bs() and ns() make splines."
        )
    elif term.function == "TE":
        cure = (
            f"{term.text} (target encoding) comes with the actuarial workbench and is not built "
            f"yet. Use C({term.arguments[0]}) for a coefficient per level."
        )
    else:
        cure = (
            f"{term.text} is a random-effect (bar) term; jn.fit_mixed takes it. In fit_nlme name the "
            "groups with group=."
        )
    raise formula_error(formula, term.at, cure)


def refuse_bar(node: Binary, text: str) -> FormulaError:
    """Return the error for a bar outside parentheses."""
    bar = f"({deparse(node.left)} {node.operator} {deparse(node.right)})"
    return formula_error(
        text,
        node.at,
        f"put the bar term in parentheses, for example {bar}: it is a random effect, which "
        "jn.fit_mixed takes.",
    )


def _bar(node: Call) -> Binary | None:
    """Return the ``x | g`` of ``(x | g)`` or ``diag(x | g)``."""
    if node.function not in ("(", *COVARIANCES) or len(node.arguments) != 1 or node.keywords:
        return None
    inner = node.arguments[0]
    return inner if isinstance(inner, Binary) and inner.operator in ("|", "||") else None
