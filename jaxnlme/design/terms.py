"""The term algebra of R's formulas: a right side becomes an ordered list of terms.

A term is a set of variables (a bit mask over the variables in order of appearance), as in R's
``terms.formula``; variables are whatever stands between the operators ``+ - : * / ^ %in%``.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

from jaxnlme._errors import FormulaError
from jaxnlme.design.expressions import (
    Binary,
    Call,
    Name,
    Node,
    Number,
    Unary,
    deparse,
    formula_error,
    parse_tree,
)
from jaxnlme.design.special import Special, is_special, read_special, refuse_bar

_VARIABLE_OPERATORS = ("==", "!=", "<", ">", "<=", ">=", "&", "&&")


@dataclasses.dataclass(frozen=True)
class Terms:
    """A right side after expansion.

    Attributes
    ----------
    text : str
        The right side as it was written.
    variables : tuple of Node
        In order of appearance.
    masks : tuple of int
        One per term, sorted by degree: bit i is set where variable i takes part.
    intercept : bool
    offsets : tuple of Node
        The arguments of ``offset(...)``.
    special : tuple of Special
        Smooths, random effects and encodings, in order of appearance.
    """

    text: str
    variables: tuple[Node, ...]
    masks: tuple[int, ...]
    intercept: bool
    offsets: tuple[Node, ...] = ()
    special: tuple[Special, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The variables as R prints them."""
        return tuple(deparse(v) for v in self.variables)

    @property
    def labels(self) -> tuple[str, ...]:
        """The terms as R prints them, for example ``a:b``."""
        names = self.names
        return tuple(":".join(names[i] for i in members(mask)) for mask in self.masks)

    def coding(self, is_factor: tuple[bool, ...]) -> tuple[tuple[bool, ...], ...]:
        """Return for each term and each of its variables whether a factor needs all its levels.

        R's rule: a factor is coded by contrasts where the rest of the term is contained in an
        earlier term (or is empty), by all its levels otherwise; without an intercept the first
        factor of the first term that has one gets all its levels.
        """
        free = not self.intercept
        codings = []
        for k, mask in enumerate(self.masks):
            full = []
            for i in members(mask):
                rest = mask & ~(1 << i)
                margin = rest == 0 or any(rest & ~earlier == 0 for earlier in self.masks[:k])
                full.append(is_factor[i] and not margin)
                if is_factor[i] and free:
                    full[-1], free = True, False
            codings.append(tuple(full))
        return tuple(codings)


def members(mask: int) -> list[int]:
    """Return the positions of the bits that are set."""
    return [i for i in range(mask.bit_length()) if mask >> i & 1]


class _Expansion:
    def __init__(self, text: str) -> None:
        self.text = text
        self.variables: dict[str, Node] = {}
        self.intercept = True

    def variable(self, node: Node) -> list[int]:
        key = deparse(node)
        self.variables.setdefault(key, node)
        return [1 << list(self.variables).index(key)]

    def encode(self, node: Node) -> list[int]:
        if isinstance(node, Number):
            return self.constant(node)
        if isinstance(node, Name) and node.value == ".":
            raise formula_error(
                self.text, node.at, "'.' for all other columns is not read here; name the columns."
            )
        if is_special(node):
            return self.variable(node)
        if isinstance(node, (Name, Call)) and not _is_parenthesis(node):
            return self.variable(node)
        if _is_parenthesis(node):
            return self.encode(node.arguments[0])  # type: ignore[attr-defined]
        if isinstance(node, Unary):
            return self.unary(node)
        if isinstance(node, Binary):
            return self.binary(node)
        raise formula_error(
            self.text, node.at, f"{deparse(node)} cannot be a term; a column name is needed."
        )

    def constant(self, node: Number) -> list[int]:
        if node.value not in (0.0, 1.0):
            raise formula_error(
                self.text,
                node.at,
                f"the number {deparse(node)} cannot be a term: 1 stands for the intercept, 0 for "
                "none. Arithmetic goes into I().",
            )
        self.intercept = node.value == 1.0
        return [0] if self.intercept else []

    def unary(self, node: Unary) -> list[int]:
        if node.operator == "+":
            return self.encode(node.operand)
        if node.operator == "-":
            self.remove([], node.operand)
            return []
        return self.variable(node)

    def binary(self, node: Binary) -> list[int]:
        operator = node.operator
        if operator in ("|", "||"):
            raise refuse_bar(node, self.text)
        if operator in _VARIABLE_OPERATORS:
            return self.variable(node)
        left = self.encode(node.left)
        if operator == "-":
            return self.remove(left, node.right)
        if operator == "^":
            return self.power(left, node)
        right = self.encode(node.right)
        if operator == "+":
            return _unique(left + right)
        if operator == ":":
            return _cross(left, right)
        if operator == "*":
            return _unique(left + right + _cross(left, right))
        if operator == "/":
            return _unique(left + _cross([_union(left)], right))
        if operator == "%in%":
            return _cross(left, [_union(right)])
        raise formula_error(self.text, node.at, f"{operator!r} has no meaning between terms.")

    def remove(self, left: list[int], right: Node) -> list[int]:
        if isinstance(right, Number) and right.value in (0.0, 1.0):
            self.intercept = right.value == 0.0
            return [m for m in left if m != 0 or self.intercept]
        before = self.intercept
        gone = self.encode(right)
        self.intercept = before and 0 not in gone
        return [m for m in left if m not in gone]

    def power(self, left: list[int], node: Binary) -> list[int]:
        exponent = node.right
        if not isinstance(exponent, Number) or exponent.value not in range(1, 20):
            raise formula_error(
                self.text,
                node.at,
                "between terms '^' asks for interactions up to an order and needs a whole number; "
                f"for an arithmetic power write I({deparse(node)}).",
            )
        result = left
        for _ in range(int(exponent.value) - 1):
            result = _unique(result + _cross(result, left))
        return result


@lru_cache(maxsize=256)
def expand(rhs: str) -> Terms:
    """Expand the right side of a formula into terms.

    Examples
    --------
    >>> terms = expand("a*b - 1")
    >>> terms.labels, terms.intercept
    (('a', 'b', 'a:b'), False)
    """
    tree = parse_tree(rhs)
    if isinstance(tree, Unary) and tree.operator == "~":
        tree = tree.operand
    if isinstance(tree, Binary) and tree.operator == "~":
        raise FormulaError(f"only the right side of a formula is needed here, found {rhs!r}.")
    expansion = _Expansion(rhs)
    masks = [m for m in expansion.encode(tree) if m != 0]
    variables = list(expansion.variables.values())
    offsets, masks = _separate_offsets(rhs, variables, masks)
    special, masks = _separate_special(rhs, variables, masks)
    return _renumbered(
        Terms(
            rhs,
            tuple(variables),
            tuple(masks),
            expansion.intercept,
            tuple(offsets),
            tuple(special),
        )
    )


def without(terms: Terms, dropped: set[int]) -> Terms:
    """Return the terms with some variables (by position) taken out of every term."""
    keep = ~sum(1 << i for i in dropped)
    masks = _unique([m & keep for m in terms.masks])
    return _renumbered(dataclasses.replace(terms, masks=tuple(m for m in masks if m)))


def _renumbered(terms: Terms) -> Terms:
    """Drop the variables that no term uses and sort the terms by degree."""
    used = members(_union(list(terms.masks)))
    position = {old: new for new, old in enumerate(used)}
    masks = [sum(1 << position[i] for i in members(m)) for m in terms.masks]
    masks.sort(key=lambda m: m.bit_count())
    return dataclasses.replace(
        terms, variables=tuple(terms.variables[i] for i in used), masks=tuple(masks)
    )


def _separate_offsets(
    text: str, variables: list[Node], masks: list[int]
) -> tuple[list[Node], list[int]]:
    offsets = []
    for i, node in enumerate(variables):
        if not (isinstance(node, Call) and node.function == "offset"):
            continue
        if len(node.arguments) != 1 or node.keywords:
            raise formula_error(text, node.at, "offset() takes one argument.")
        if any(m >> i & 1 and m != 1 << i for m in masks):
            raise formula_error(text, node.at, "an offset cannot take part in an interaction.")
        if 1 << i in masks:
            offsets.append(node.arguments[0])
            masks = [m for m in masks if m != 1 << i]
    return offsets, masks


def _separate_special(
    text: str, variables: list[Node], masks: list[int]
) -> tuple[list[Special], list[int]]:
    special = []
    for i, node in enumerate(variables):
        if not is_special(node):
            continue
        if any(m >> i & 1 and m != 1 << i for m in masks):
            cure = " Let it vary by a factor with by=." if deparse(node)[0] in "st" else ""
            raise formula_error(
                text, node.at, f"{deparse(node)} cannot take part in an interaction.{cure}"
            )
        if 1 << i in masks:
            special.append(read_special(node, text))
            masks = [m for m in masks if m != 1 << i]
    return special, masks


def _is_parenthesis(node: Node) -> bool:
    return isinstance(node, Call) and node.function == "("


def _unique(masks: list[int]) -> list[int]:
    return list(dict.fromkeys(masks))


def _cross(left: list[int], right: list[int]) -> list[int]:
    return _unique([a | b for a in left for b in right])


def _union(masks: list[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union
