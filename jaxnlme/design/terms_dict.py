"""A dict of terms, as rustystats takes it, written as a formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxnlme._errors import DataError, FormulaError, ModelSpecError, nearest
from jaxnlme.design.expressions import Name, Text, deparse, deparse_number, parse
from jaxnlme.design.frames import Table

_KEYS = {
    "linear": ("monotonicity",),
    "categorical": ("levels",),
    "bs": ("df", "degree", "knots", "boundary_knots", "k", "monotonicity"),
    "ns": ("df", "knots", "boundary_knots", "k"),
    "poly": ("degree", "raw"),
    "expression": ("expr", "monotonicity"),
}
_LATER = {
    "target_encoding": "target encoding comes with the actuarial workbench",
    "frequency_encoding": "frequency encoding comes with the actuarial workbench",
    "ms": "monotone splines come with the actuarial workbench",
    "s": "penalised smooths come with jn.fit_gam",
}
_NOT_VARIABLES = (
    "include_main",
    "target_encoding",
    "frequency_encoding",
    "prior_weight",
    "n_permutations",
)


def formula_from_terms(terms: Any, interactions: Any = None, table: Table | None = None) -> str:
    """Write a dict of terms as the right side of a formula.

    Parameters
    ----------
    terms
        A specification per column, ``{"type": ..., ...}``; its type is

        - ``"linear"`` (default): the numbers as they are,
        - ``"categorical"``: a coefficient per level; with ``levels=[...]`` of these levels only,
        - ``"bs"``, ``"ns"``: splines with ``df=`` or ``knots=``, ``boundary_knots=``, ``degree=`` (bs),
        - ``"poly"``: orthogonal polynomials of ``degree=``, or ``raw=True``,
        - ``"expression"``: ``expr="x**2"``; the key is a name only.
    interactions
        A dict per product of columns, ``{"Area": {"type": "categorical"}, "VehAge": {"type":
        "linear"}, "include_main": True}``; without ``include_main`` the product alone.
    table
        The data, to refuse a linear term of a column that holds labels.

    Returns
    -------
    str

    Raises
    ------
    FormulaError
        An unknown type or key, or a value of the wrong kind; the nearest known name is given.
    DataError
        A linear term of a column without numbers.
    ModelSpecError
        A type that is not built yet (target and frequency encoding, monotone or penalised splines).

    Notes
    -----
    ``df`` counts columns, as in R. rustystats 0.9 counts one more for the same number of columns
    (``df=5`` has 4 there), so df in R = df in rustystats - 1; the knots differ too, since R puts them
    at quantiles of the values inside the boundary knots.

    Examples
    --------
    >>> formula_from_terms({"DrivAge": {"type": "bs", "df": 5}, "Area": {"type": "categorical"}})
    'bs(DrivAge, df = 5) + C(Area)'
    >>> formula_from_terms({"x": {}}, [{"x": {}, "g": {"type": "categorical"}}])
    'x + x:C(g)'
    """
    if not isinstance(terms, Mapping):
        raise FormulaError(
            f"terms= is a dict such as {{'x': {{'type': 'linear'}}}}, found {type(terms).__name__}."
        )
    pieces = [_term(str(name), spec) for name, spec in terms.items()]
    if table is not None:
        products = interactions if isinstance(interactions, Sequence) else ()
        for group in (terms, *(p for p in products if isinstance(p, Mapping))):
            _check_linear(group, table)
    if interactions is not None and (
        isinstance(interactions, (str, Mapping)) or not isinstance(interactions, Sequence)
    ):
        raise FormulaError("interactions= is a list of dicts, one per product of columns.")
    for interaction in interactions or ():
        pieces += _interaction(interaction)
    return " + ".join(dict.fromkeys(pieces)) or "1"


def _check_linear(terms: Mapping[str, Any], table: Table) -> None:
    for name, spec in terms.items():
        linear = isinstance(spec, Mapping) and spec.get("type", "linear") == "linear"
        if linear and str(name) in table and table.column(str(name)).kind in ("text", "category"):
            raise DataError(
                f"terms[{str(name)!r}]: type 'linear' needs numbers, the column holds labels (dtype "
                f"{table.column(str(name)).dtype}); use {{'type': 'categorical'}}."
            )


def _term(name: str, spec: Any) -> str:
    where = f"terms[{name!r}]"
    if not isinstance(spec, Mapping):
        raise FormulaError(
            f"{where} is a dict such as {{'type': 'linear'}}, found {type(spec).__name__}."
        )
    kind = spec.get("type", "linear")
    if kind in _LATER:
        raise ModelSpecError(f"{where}: type {kind!r} is not built yet: {_LATER[kind]}.")
    if kind not in _KEYS:
        raise FormulaError(
            f"{where}: type {kind!r} is not known; there are {', '.join(_KEYS)}."
            + nearest(str(kind), [*_KEYS, *_LATER])
        )
    for key in spec:
        if key != "type" and key not in _KEYS[kind]:
            raise FormulaError(
                f"{where}: {key!r} is no key of type {kind!r}; it has {', '.join(_KEYS[kind])}."
                + nearest(str(key), _KEYS[kind])
            )
    if spec.get("monotonicity") is not None:
        cure = f" Use bounds={{{name!r}: (0, inf)}}." if kind == "linear" else ""
        raise ModelSpecError(f"{where}: monotonicity= is not built yet.{cure}")
    return _written(kind, name, spec, where)


def _written(kind: str, name: str, spec: Mapping[str, Any], where: str) -> str:
    column = deparse(Name(name))
    if kind == "linear":
        return column
    if kind == "categorical":
        if spec.get("levels") is None:
            return f"C({column})"
        levels = [_constant(level, where, "levels") for level in _listed(spec["levels"])]
        return " + ".join(f"I({column} == {level})" for level in levels)
    if kind == "expression":
        if not isinstance(spec.get("expr"), str):
            raise FormulaError(f"{where}: type 'expression' needs expr=, for example 'x**2'.")
        return f"I({parse(spec['expr']).text})"
    if kind != "poly":
        if spec.get("k") is not None:
            raise ModelSpecError(
                f"{where}: k= asks for a penalised smooth, which comes with jn.fit_gam; give df= here."
            )
        if (spec.get("df") is None) == (spec.get("knots") is None):
            raise FormulaError(
                f"{where}: type {kind!r} needs df= (its number of columns) or knots=."
            )
    given = {key: value for key, value in spec.items() if key != "type" and value is not None}
    options = [f"{key} = {_value(value, where, key)}" for key, value in given.items()]
    return f"{kind}({', '.join([column, *options])})"


def _interaction(interaction: Any) -> list[str]:
    if not isinstance(interaction, Mapping):
        raise FormulaError(
            f"interactions= holds dicts of columns, found {type(interaction).__name__}."
        )
    for key in ("target_encoding", "frequency_encoding"):
        if interaction.get(key):
            raise ModelSpecError(f"interactions: {key} is not built yet: {_LATER[key]}.")
    names = [str(key) for key in interaction if key not in _NOT_VARIABLES]
    if len(names) < 2:
        raise FormulaError(f"interactions: a product needs two columns or more, found {names}.")
    factors = [_term(name, interaction[name]) for name in names]
    product = ":".join(f"({f})" if " + " in f else f for f in factors)
    return [*factors, product] if interaction.get("include_main") else [product]


def _listed(value: Any) -> list:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return [value]
    return list(value)


def _value(value: Any, where: str, key: str) -> str:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return _constant(value, where, key, text=False)
    return f"c({', '.join(_constant(v, where, key, text=False) for v in value)})"


def _constant(value: Any, where: str, key: str, *, text: bool = True) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str) and text:
        return deparse(Text(value))
    try:
        return deparse_number(float(value))
    except (TypeError, ValueError):
        raise FormulaError(f"{where}: {key}={value!r} is not a number.") from None
