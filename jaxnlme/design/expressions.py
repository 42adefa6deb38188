"""R-like expressions: read by our own grammar and evaluated through a list of allowed functions.

Nothing here calls Python's parser or ``eval``: a formula, or a saved model that holds one, can
never run code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from jaxnlme._errors import FormulaError, nearest
from jaxnlme.design.functions import CONSTANTS, FUNCTIONS, REDUCTIONS, call_function


@dataclasses.dataclass(frozen=True)
class Node:
    """A piece of an expression; ``at`` is its position in the text (not compared)."""

    at: int = dataclasses.field(default=0, compare=False, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Number(Node):
    """A number."""

    value: float


@dataclasses.dataclass(frozen=True)
class Text(Node):
    """A quoted text."""

    value: str


@dataclasses.dataclass(frozen=True)
class Truth(Node):
    """TRUE or FALSE."""

    value: bool


@dataclasses.dataclass(frozen=True)
class Name(Node):
    """A data column, parameter or constant."""

    value: str


@dataclasses.dataclass(frozen=True)
class Unary(Node):
    """A sign, ``!`` or a leading ``~``."""

    operator: str
    operand: Node


@dataclasses.dataclass(frozen=True)
class Binary(Node):
    """Two operands and the operator between them."""

    operator: str
    left: Node
    right: Node


@dataclasses.dataclass(frozen=True)
class Call(Node):
    """A function call; ``(`` is the call of a parenthesis."""

    function: str
    arguments: tuple[Node, ...]
    keywords: tuple[tuple[str, Node], ...] = ()


@dataclasses.dataclass(frozen=True)
class _Token:
    kind: str  # number, text, name, quoted, operator, end
    value: str
    at: int


_LEXEMES = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?L?)
    | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<quoted>`[^`]+`)
    | (?P<name>(?:[^\W\d]|\.(?!\d))[\w.]*)
    | (?P<operator>%in%|\*\*|<-|<=|>=|==|!=|&&|\|\||[-+*/^:~|&!<>=(),\[\]])
    )""",
    re.VERBOSE,
)
_FORBIDDEN_WORDS = {
    "import", "lambda", "def", "class", "exec", "eval", "function", "while", "for", "yield",
    "await", "return", "with", "global", "nonlocal", "del",
}  # fmt: skip
_CLOSING = {"(": ")", "[": "]"}
_POWER = 14
_BINDING = {
    "~": 1, "|": 2, "||": 2, "&": 3, "&&": 3,
    "==": 5, "!=": 5, "<": 5, ">": 5, "<=": 5, ">=": 5,
    "+": 6, "-": 6, "*": 8, "/": 8, "%in%": 9, ":": 10, "^": _POWER,
}  # fmt: skip
_NOT, _SIGN = 4, 12
_NAME = re.compile(r"(?:[^\W\d]|\.(?!\d))[\w.]*\Z")


def formula_error(text: str, at: int, problem: str) -> FormulaError:
    """Return a FormulaError that quotes the text with a caret under the position."""
    at = min(max(at, 0), len(text))
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    line = text[start : len(text) if end < 0 else end]
    return FormulaError(f"{problem}\n    {line}\n    {' ' * (at - start)}^ position {at + 1}")


def _not_allowed(text: str, at: int, what: str) -> FormulaError:
    return formula_error(
        text,
        at,
        f"{what} is not allowed in a formula. Compute the value before the call and pass it as a "
        "column of the data.",
    )


@lru_cache(maxsize=512)
def tokenize(text: str) -> tuple[_Token, ...]:
    """Split a formula into tokens; raise at the first character that has no meaning."""
    tokens: list[_Token] = []
    at = 0
    while at < len(text) and text[at:].strip():
        match = _LEXEMES.match(text, at)
        if match is None or match.lastgroup is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            _raise_character(text, at)
        kind = str(match.lastgroup)  # type: ignore[union-attr]
        value, start = match.group(kind), match.start(kind)  # type: ignore[union-attr]
        at = match.end()  # type: ignore[union-attr]
        if value == "<-":
            raise _not_allowed(
                text, start, "an assignment ('<-'; a comparison needs a blank: '< -')"
            )
        if kind == "name":
            _check_word(text, value, start, tokens)
        tokens.append(_Token(kind, value, start))
    tokens.append(_Token("end", "", len(text.rstrip())))
    return tuple(tokens)


def _raise_character(text: str, at: int) -> None:
    character = text[at]
    if character in "\"'`":
        raise formula_error(text, at, f"the quote {character} opened here is never closed.")
    if character in "{}@$;\\%?#":
        raise _not_allowed(text, at, f"the character {character!r}")
    raise formula_error(text, at, f"the character {character!r} has no meaning here.")


def _check_word(text: str, word: str, at: int, before: Sequence[_Token]) -> None:
    if before and word.startswith(".") and before[-1].value in (")", "]"):
        raise _not_allowed(text, at, f"attribute access ({word!r})")
    if "__" in word:
        raise _not_allowed(text, at, f"the name {word!r} (attribute access)")
    if word in _FORBIDDEN_WORDS:
        raise _not_allowed(text, at, f"{word!r}")


class _Parser:
    """Operator precedence parser with R's precedences."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokenize(text)
        self.position = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def advance(self) -> _Token:
        token = self.token
        self.position += 1
        return token

    def error(self, token: _Token, problem: str) -> FormulaError:
        return formula_error(self.text, token.at, problem)

    def parse(self) -> Node:
        node = self.expression(0)
        token = self.token
        if token.kind != "end":
            if token.value in ")]":
                raise self.error(token, f"{token.value!r} closes a parenthesis that is not open.")
            if token.value == "=":
                raise self.error(token, "'=' is not a comparison; write '=='.")
            if token.value == "[":
                raise _not_allowed(self.text, token.at, "a subscript")
            raise self.error(token, f"an operator is missing before {token.value!r}.")
        return node

    def expression(self, binding: int) -> Node:
        left = self.prefix()
        while True:
            token = self.token
            operator = "^" if token.value == "**" else token.value
            power = _BINDING.get(operator, -1) if token.kind == "operator" else -1
            if power < 0 or power < binding:
                return left
            self.advance()
            # ^ is right associative and its exponent may carry a sign
            right = self.expression(_SIGN if operator == "^" else power + 1)
            left = Binary(operator, left, right, at=token.at)

    def prefix(self) -> Node:
        token = self.advance()
        if token.kind == "number":
            return Number(float(token.value.rstrip("L")), at=token.at)
        if token.kind == "text":
            return Text(re.sub(r"\\(.)", r"\1", token.value[1:-1]), at=token.at)
        if token.kind == "quoted":
            return Name(token.value[1:-1], at=token.at)
        if token.kind == "name":
            return self.name(token)
        if token.value in ("-", "+"):
            return Unary(token.value, self.expression(_SIGN), at=token.at)
        if token.value == "!":
            return Unary("!", self.expression(_NOT), at=token.at)
        if token.value == "~":
            return Unary("~", self.expression(_BINDING["~"] + 1), at=token.at)
        if token.value == "(":
            node = self.expression(0)
            if self.token.value == ",":  # a Python tuple stands for c()
                self.advance()
                rest, _ = self.arguments(token)
                return Call("c", (node, *rest), at=token.at)
            self.close(token)
            return Call("(", (node,), at=token.at)
        if token.value == "[":  # a Python list stands for c()
            arguments, keywords = self.arguments(token)
            return Call("c", arguments, keywords, at=token.at)
        if token.kind == "end":
            raise self.error(token, "the formula ends where a name or a number is needed.")
        before = self.tokens[self.position - 2].value if self.position > 1 else ""
        if before in ("|", "||"):
            raise self.error(
                token,
                "a grouping column is needed after the bar: put the bar term in parentheses, (x | g).",
            )
        raise self.error(token, f"a name or a number is needed before {token.value!r}.")

    def name(self, token: _Token) -> Node:
        if token.value in ("TRUE", "True", "FALSE", "False"):
            return Truth(token.value in ("TRUE", "True"), at=token.at)
        if self.token.value == "(" and self.token.kind == "operator":
            opening = self.advance()
            arguments, keywords = self.arguments(opening)
            return Call(token.value, arguments, keywords, at=token.at)
        if self.token.value == "[" and self.token.kind == "operator":
            raise _not_allowed(self.text, self.token.at, "a subscript")
        return Name(token.value, at=token.at)

    def arguments(self, opening: _Token) -> tuple[tuple[Node, ...], tuple[tuple[str, Node], ...]]:
        positional: list[Node] = []
        keywords: dict[str, Node] = {}
        closing = _CLOSING[opening.value]
        while self.token.value != closing:
            following = self.tokens[min(self.position + 1, len(self.tokens) - 1)]
            if self.token.kind in ("name", "quoted") and following.value == "=":
                keyword = self.advance()
                self.advance()
                if keyword.value in keywords:
                    raise self.error(keyword, f"argument {keyword.value!r} is given twice.")
                keywords[keyword.value] = self.expression(0)
            elif keywords:
                raise self.error(self.token, "an unnamed argument follows a named one.")
            else:
                positional.append(self.expression(0))
            if self.token.value != ",":
                break
            self.advance()
        self.close(opening)
        return tuple(positional), tuple(keywords.items())

    def close(self, opening: _Token) -> None:
        closing = _CLOSING[opening.value]
        if self.token.value == closing and self.token.kind == "operator":
            self.advance()
            return
        if self.token.kind == "end":
            raise self.error(opening, f"{opening.value!r} is never closed; {closing!r} is missing.")
        raise self.error(
            self.token, f"expected {closing!r} or an operator, found {self.token.value!r}."
        )


@lru_cache(maxsize=512)
def parse_tree(text: Any) -> Node:
    """Read a text as a tree without asking what its names and functions are."""
    if not isinstance(text, str) or not text.strip():
        raise FormulaError(f"an expression is needed, found {text!r}.")
    try:
        return _Parser(text).parse()
    except RecursionError:
        raise FormulaError("the expression is nested too deeply to be read.") from None


def walk(node: Node) -> Iterator[Node]:
    """Yield a tree's nodes from left to right."""
    yield node
    if isinstance(node, Unary):
        yield from walk(node.operand)
    elif isinstance(node, Binary):
        yield from walk(node.left)
        yield from walk(node.right)
    elif isinstance(node, Call):
        for argument in node.arguments:
            yield from walk(argument)
        for _, argument in node.keywords:
            yield from walk(argument)


def free_names(node: Node) -> tuple[str, ...]:
    """Return the data names of a tree in order of appearance."""
    found = (n.value for n in walk(node) if isinstance(n, Name) and n.value not in CONSTANTS)
    return tuple(dict.fromkeys(found))


@dataclasses.dataclass(frozen=True)
class Expression:
    """A checked expression, equal and hashed by its text.

    Attributes
    ----------
    text : str
        As R would print it.
    """

    text: str
    tree: Node = dataclasses.field(compare=False, repr=False)
    functions: Mapping[str, Callable] = dataclasses.field(compare=False, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Free names in order of appearance."""
        return free_names(self.tree)

    def evaluate(
        self, env: Mapping[str, Any], xp: Any = np, state: dict[str, Any] | None = None
    ) -> Any:
        """Evaluate with values for the names.

        Parameters
        ----------
        env
            A value (scalar or array) per name.
        xp
            ``numpy`` or ``jax.numpy``.
        state
            What data-dependent functions (``mean``, ``scale``, ...) learned: filled where empty,
            used where it has an entry, so that new data meet the numbers of the fit.
        """
        return evaluate(self.tree, env, xp, self.functions, state, self.text)


@lru_cache(maxsize=512)
def _parse_standard(text: str) -> Expression:
    return _checked(text, FUNCTIONS)


def parse(text: str, *, functions: Mapping[str, Callable] | None = None) -> Expression:
    """Read an R-like expression.

    Parameters
    ----------
    text
        For example ``"log(conc) + Wt^2"``. ``^`` and ``**`` are powers, backticks quote any name,
        a name may hold dots.
    functions
        Functions allowed besides the standard ones, by name.

    Raises
    ------
    FormulaError
        The text cannot be read, or uses something that is not allowed; a caret shows where.

    Examples
    --------
    >>> float(parse("2*x^2 - log(y)").evaluate({"x": 3.0, "y": 1.0}))
    18.0
    """
    if functions is None:
        return _parse_standard(text)
    return _checked(text, {**FUNCTIONS, **functions})


def _checked(text: str, functions: Mapping[str, Callable]) -> Expression:
    tree = parse_tree(text)
    check_expression(tree, text, functions)
    return Expression(deparse(tree), tree, functions)


def check_expression(tree: Node, text: str, functions: Mapping[str, Callable]) -> None:
    """Raise unless every operator and function of the tree can be evaluated."""
    for node in walk(tree):
        operator = getattr(node, "operator", "")
        if operator in ("~", ":", "%in%"):
            cure = " Sequences are written c(1, 2, 3)." if operator == ":" else ""
            raise formula_error(
                text,
                node.at,
                f"{operator!r} is a formula operator, not part of an expression.{cure}",
            )
        if isinstance(node, Call) and not (
            node.function in functions or node.function in ("(", "I", "c", *REDUCTIONS)
        ):
            raise unknown_function(node.function, node.at, text, functions)


def unknown_function(
    name: str, at: int, text: str, functions: Mapping[str, Callable]
) -> FormulaError:
    """Return the error for a function outside the allowed list."""
    known = [*functions, *REDUCTIONS, "I", "c"]
    return formula_error(
        text,
        at,
        f"the function {name!r} is not allowed in a formula.{nearest(name, known)} Allowed: "
        f"{', '.join(sorted(known))}. Compute anything else before the call and pass it as a "
        "column of the data.",
    )


_ARITHMETIC: dict[str, Callable] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}
_COMPARISON: dict[str, Callable] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def evaluate(
    node: Node,
    env: Mapping[str, Any],
    xp: Any,
    functions: Mapping[str, Callable],
    state: dict[str, Any] | None,
    text: str,
) -> Any:
    """Evaluate a checked tree."""

    def value(child: Node) -> Any:
        return evaluate(child, env, xp, functions, state, text)

    if isinstance(node, (Number, Text, Truth)):
        return node.value
    if isinstance(node, Name):
        if node.value in env:
            return env[node.value]
        if node.value in CONSTANTS:
            return CONSTANTS[node.value]
        raise formula_error(
            text, node.at, f"the name {node.value!r} has no value here.{nearest(node.value, env)}"
        )
    if isinstance(node, Unary):
        operand = value(node.operand)
        if node.operator == "!":
            return xp.logical_not(operand)
        operand = _require_number(operand, node, text)
        return -operand if node.operator == "-" else operand
    if isinstance(node, Binary):
        return _binary(node, value(node.left), value(node.right), xp, text)
    assert isinstance(node, Call)
    if node.function in ("(", "I") and len(node.arguments) == 1 and not node.keywords:
        return value(node.arguments[0])
    arguments = [_require_number(value(a), node, text) for a in node.arguments]
    keywords = {k: _require_number(value(a), node, text) for k, a in node.keywords}
    if node.function == "c":
        return xp.asarray(arguments)
    try:
        return call_function(
            node.function, arguments, keywords, xp, functions, state, deparse(node)
        )
    except TypeError as error:
        raise formula_error(text, node.at, f"{node.function}(): {error}.") from None


def _binary(node: Binary, left: Any, right: Any, xp: Any, text: str) -> Any:
    operator = node.operator
    if operator in ("&", "&&"):
        return xp.logical_and(left, right)
    if operator in ("|", "||"):
        return xp.logical_or(left, right)
    if operator in _COMPARISON:
        if operator not in ("==", "!="):
            _require_number(left, node, text)
            _require_number(right, node, text)
        return _COMPARISON[operator](left, right)
    left, right = _require_number(left, node, text), _require_number(right, node, text)
    if operator == "^":
        return _power(left, right, xp)
    return _ARITHMETIC[operator](left, right)


def _power(base: Any, exponent: Any, xp: Any) -> Any:
    if isinstance(exponent, float) and exponent.is_integer() and abs(exponent) < 2**31:
        exponent = int(exponent)  # an integer power has a derivative at a base <= 0
        if exponent < 0:
            return 1.0 / base**-exponent
    if isinstance(base, float) and isinstance(exponent, float) and base < 0:
        return float("nan")  # R; Python would answer with a complex number
    return base**exponent


def _require_number(value: Any, node: Node, text: str) -> Any:
    """Return the value, an array of booleans as 0 and 1 (numpy would add them as sets)."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, str) or kind in ("U", "S", "O"):
        raise formula_error(
            text,
            node.at,
            "a factor or text takes part in arithmetic here; only == and != compare labels.",
        )
    return value * 1.0 if kind == "b" else value


def deparse(node: Node) -> str:
    """Return a tree as R prints it (coefficient labels are made of this)."""
    if isinstance(node, Number):
        return deparse_number(node.value)
    if isinstance(node, Text):
        return '"' + node.value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(node, Truth):
        return "TRUE" if node.value else "FALSE"
    if isinstance(node, Name):
        return node.value if _NAME.match(node.value) else f"`{node.value}`"
    if isinstance(node, Unary):
        return node.operator + deparse(node.operand)
    if isinstance(node, Binary):
        tight = node.operator in ("^", ":", "/")
        operator = node.operator if tight else f" {node.operator} "
        return deparse(node.left) + operator + deparse(node.right)
    assert isinstance(node, Call)
    arguments = [deparse(a) for a in node.arguments]
    arguments += [f"{k} = {deparse(a)}" for k, a in node.keywords]
    name = "" if node.function == "(" else node.function
    return f"{name}({', '.join(arguments)})"


def deparse_number(value: float) -> str:
    """Return a number as R does: 15 digits, the shorter of fixed and scientific."""
    if not np.isfinite(value):
        return {"inf": "Inf", "-inf": "-Inf"}.get(repr(value), "NaN")
    digits = next(d for d in range(1, 18) if d == 17 or float(f"{value:.{d - 1}e}") == value)
    digits = min(digits, 15)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    scientific = f"{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"
    fixed = f"{value:.{max(digits - 1 - power, 0)}f}"
    return fixed if len(fixed) <= len(scientific) else scientific


@dataclasses.dataclass(frozen=True)
class Formula:
    """Both sides of a formula: the left an expression or None, the right as text."""

    lhs: Expression | None
    rhs: str


def split_formula(text: Any) -> tuple[str | None, str]:
    """Return the texts left and right of ``~`` (left None for a one-sided formula)."""
    if not isinstance(text, str):
        raise FormulaError(f"a formula is a string, found {type(text).__name__}.")
    tildes = [t for t in tokenize(text) if t.kind == "operator" and t.value == "~"]
    if len(tildes) > 1:
        raise formula_error(text, tildes[1].at, "a second '~' in one formula.")
    if not tildes:
        return None, text.strip()
    at = tildes[0].at
    left, right = text[:at].strip(), text[at + 1 :].strip()
    if not right:
        raise formula_error(
            text, at, "nothing stands on the right of '~'; write '~ 1' for a constant."
        )
    return left or None, right


def parse_formula(text: Any) -> Formula:
    """Split a model formula at ``~``; the left side is an expression such as ``log(y)``.

    Examples
    --------
    >>> formula = parse_formula("log(conc) ~ SSfol(Dose, Time, lKe, lKa, lCl)")
    >>> formula.lhs.names, formula.rhs
    (('conc',), 'SSfol(Dose, Time, lKe, lKa, lCl)')
    """
    left, right = split_formula(text)
    parse_tree(text.strip())  # unbalanced parentheses and the like, with positions in the whole
    return Formula(None if left is None else parse(left), right)


def parse_parameter_formulas(spec: Any) -> dict[str, str]:
    """Return the right side of each parameter's formula, in the order of appearance.

    Parameters
    ----------
    spec
        ``"lKe + lKa ~ 1"``, several separated by commas (``"A ~ x, B ~ 1"``) or a list of them.

    Examples
    --------
    >>> parse_parameter_formulas("Asym ~ Type*Treatment, lrc + c0 ~ 1")
    {'Asym': 'Type*Treatment', 'lrc': '1', 'c0': '1'}
    """
    if isinstance(spec, Mapping) or not isinstance(spec, (str, Sequence)):
        raise FormulaError(
            f"parameter formulas are a string or a list of strings, found {type(spec).__name__}."
        )
    formulas: dict[str, str] = {}
    for item in [spec] if isinstance(spec, str) else spec:
        if not isinstance(item, str):
            raise FormulaError(f"a parameter formula is a string, found {type(item).__name__}.")
        for text in _split_commas(item):
            left, right = split_formula(text)
            if left is None:
                raise FormulaError(
                    f"the formula {text.strip()!r} names no parameter; write for example 'lCl ~ 1'."
                )
            parse_tree(text.strip())
            for name in _parameter_names(parse_tree(left), left):
                if name in formulas:
                    raise FormulaError(f"parameter {name!r} has two formulas in {spec!r}.")
                formulas[name] = right
    return formulas


def _split_commas(text: str) -> list[str]:
    pieces, depth, start = [], 0, 0
    for token in tokenize(text):
        if token.kind != "operator":
            continue
        depth += token.value in _CLOSING
        depth -= token.value in (")", "]")
        if token.value == "," and depth == 0:
            pieces.append(text[start : token.at])
            start = token.at + 1
    pieces.append(text[start:])
    return [p.strip() for p in pieces]


def _parameter_names(node: Node, text: str) -> list[str]:
    if isinstance(node, Name):
        return [node.value]
    if isinstance(node, Binary) and node.operator == "+":
        return _parameter_names(node.left, text) + _parameter_names(node.right, text)
    raise formula_error(
        text, node.at, "the left side of a parameter formula is names joined by '+'."
    )
