"""The functions that a formula may call; everything else is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

CONSTANTS: dict[str, float] = {"pi": math.pi, "Inf": math.inf, "NaN": math.nan, "NA": math.nan}


def _special(xp: Any) -> Any:
    if xp is np:
        import scipy.special

        return scipy.special
    import jax.scipy.special

    return jax.scipy.special


def _log(xp: Any, x: Any, base: Any = None) -> Any:
    return xp.log(x) if base is None else xp.log(x) / xp.log(base)


def _round(xp: Any, x: Any, digits: Any = 0) -> Any:
    return xp.round(x, int(digits))


def _ifelse(xp: Any, test: Any, yes: Any, no: Any) -> Any:
    return xp.where(test, yes, no)


def _extreme(reduce: str) -> Callable:
    def function(xp: Any, first: Any, *others: Any) -> Any:
        for other in others:
            first = getattr(xp, reduce)(first, other)
        return first

    return function


def _normal(value: str) -> Callable:
    def function(xp: Any, x: Any, mean: Any = 0.0, sd: Any = 1.0) -> Any:
        if value == "q":
            return mean + sd * _special(xp).ndtri(x)
        z = (x - mean) / sd
        if value == "p":
            return _special(xp).ndtr(z)
        return xp.exp(-0.5 * z * z) / (sd * math.sqrt(2 * math.pi))

    return function


def _gamma(xp: Any, x: Any) -> Any:
    return _special(xp).gamma(x)


def _lbeta(xp: Any, a: Any, b: Any) -> Any:
    gammaln = _special(xp).gammaln
    return gammaln(a) + gammaln(b) - gammaln(a + b)


def _elementwise(name: str) -> Callable:
    def function(xp: Any, x: Any) -> Any:
        return getattr(xp, name)(x)

    return function


FUNCTIONS: dict[str, Callable] = {
    **{
        name: _elementwise(name)
        for name in (
            "log2", "log10", "log1p", "exp", "expm1", "sqrt", "abs", "sign", "floor", "ceil",
            "trunc", "sin", "cos", "tan", "sinh", "cosh", "tanh",
        )
    },
    "asin": _elementwise("arcsin"),
    "acos": _elementwise("arccos"),
    "atan": _elementwise("arctan"),
    "ceiling": _elementwise("ceil"),
    "log": _log,
    "round": _round,
    "ifelse": _ifelse,
    "pmin": _extreme("minimum"),
    "pmax": _extreme("maximum"),
    "plogis": lambda xp, x, location=0.0, scale=1.0: _special(xp).expit((x - location) / scale),
    "qlogis": lambda xp, p: xp.log(p) - xp.log1p(-p),
    "pnorm": _normal("p"),
    "qnorm": _normal("q"),
    "dnorm": _normal("d"),
    "gamma": _gamma,
    "lgamma": lambda xp, x: _special(xp).gammaln(x),
    "digamma": lambda xp, x: _special(xp).digamma(x),
    "beta": lambda xp, a, b: xp.exp(_lbeta(xp, a, b)),
    "lbeta": _lbeta,
    "as.numeric": lambda xp, x: x * 1.0,
}  # fmt: skip


def _scale(x: np.ndarray, center: Any = True, scale: Any = True) -> list[float]:
    middle = float(np.nanmean(x)) if center is True else float(center or 0.0)
    if scale is True:
        # R: the root mean square about the centre used, with n - 1
        spread = float(np.sqrt(np.nansum((x - middle) ** 2) / (np.sum(~np.isnan(x)) - 1)))
    else:
        spread = float(scale or 1.0)
    return [middle, spread or 1.0]


# What a function learns from the rows of the fit and how it is used on any rows after.
REDUCTIONS: dict[str, tuple[Callable, Callable]] = {
    "mean": (np.nanmean, lambda x, learned: learned),
    "median": (np.nanmedian, lambda x, learned: learned),
    "sd": (lambda x: np.nanstd(x, ddof=1), lambda x, learned: learned),
    "min": (lambda *x: min(float(np.nanmin(v)) for v in x), lambda x, learned: learned),
    "max": (lambda *x: max(float(np.nanmax(v)) for v in x), lambda x, learned: learned),
    "center": (np.nanmean, lambda x, learned: x - learned),
    "scale": (_scale, lambda x, learned: (x - learned[0]) / learned[1]),
}


def call_function(
    name: str,
    arguments: Sequence[Any],
    keywords: Mapping[str, Any],
    xp: Any,
    functions: Mapping[str, Callable],
    state: dict[str, Any] | None,
    text: str,
) -> Any:
    """Call an allowed function; a data-dependent one remembers under its text what it learned."""
    if name in functions:
        if name in FUNCTIONS:
            return functions[name](xp, *arguments, **keywords)
        return functions[name](*arguments, **keywords)
    learn, use = REDUCTIONS[name]
    if state is None:
        raise TypeError(
            "this function depends on all rows of the data and has no meaning here; use pmin and "
            "pmax for the smaller or larger of two values, or pass the number itself"
        )
    if text not in state:
        learned = learn(
            *(np.asarray(a, dtype=float) for a in arguments[:1]), *arguments[1:], **keywords
        )
        state[text] = learned if isinstance(learned, list) else float(learned)
    return use(arguments[0], state[text])
