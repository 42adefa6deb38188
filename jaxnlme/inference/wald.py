"""Wald tests and delta-method covariances (host, numpy)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import FormulaError, ModelSpecError
from jaxnlme.design.expressions import parse


def restriction(text: str, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read linear restrictions such as ``"x1 = x2, x3 = 0"`` as ``L b = r``.

    Raises
    ------
    FormulaError
        A name is no coefficient, or an expression is not linear.

    Examples
    --------
    >>> L, r = restriction("a = b, 2*b = 1", ["a", "b"])
    >>> L.tolist(), r.tolist()
    ([[1.0, -1.0], [0.0, 2.0]], [0.0, 1.0])
    """
    text, alias = renamed(text, labels)
    rows, rhs = [], []
    for piece in text.split(","):
        left, sign, right = piece.partition("=")
        a, b = _linear(left, alias), _linear(right if sign else "0", alias)
        rows.append(a[1:] - b[1:])
        rhs.append(b[0] - a[0])
    return np.array(rows), np.array(rhs)


def renamed(text: str, labels: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Replace coefficient labels, which may hold any sign, by plain names; the map label -> name.

    Examples
    --------
    >>> renamed("exp(a:b) = 1", ["a", "a:b"])[0]
    'exp(coefficient1) = 1'
    """
    alias = {label: f"coefficient{k}" for k, label in enumerate(labels)}
    longest_first = sorted(labels, key=len, reverse=True)
    # One pass over whole names: a label may be part of another one, or hold a comma.
    names = "|".join(re.escape(label) for label in longest_first)
    text = re.sub(rf"(?<![\w.])(?:{names})(?![\w.])", lambda m: alias[m.group()], text)
    return text, alias


def _linear(text: str, alias: Mapping[str, str]) -> np.ndarray:
    """Constant and slopes of a linear expression in the coefficients."""
    labels = list(alias)
    expression = parse(text.strip())
    unknown = [n for n in expression.names if n not in alias.values()]
    if unknown:
        raise FormulaError(
            f"{unknown[0]!r} in {text!r} is no coefficient; they are {list(labels)}."
        )

    def at(x: np.ndarray) -> float:
        return float(expression.evaluate(dict(zip(alias.values(), x, strict=True)), np))

    zero = np.zeros(len(labels))
    constant = at(zero)
    slopes = np.array([at(e) - constant for e in np.eye(len(labels))])
    probe = np.arange(1.0, len(labels) + 1)
    if abs(at(probe) - constant - slopes @ probe) > 1e-9 * (1 + abs(at(probe))):
        raise FormulaError(f"{text!r} is not linear in the coefficients.")
    return np.concatenate([[constant], slopes])


def wald(L: np.ndarray, rhs: np.ndarray, beta: Any, vcov: np.ndarray) -> tuple[float, int]:
    """Return the chi-square statistic of ``L beta = rhs`` and its degrees of freedom."""
    L = np.atleast_2d(np.asarray(L, float))
    if L.shape[1] != len(beta):
        raise ModelSpecError(f"L has {L.shape[1]} columns, but there are {len(beta)} coefficients.")
    d = L @ beta - rhs
    middle = L @ vcov @ L.T
    if not np.all(np.isfinite(middle)):
        return np.nan, L.shape[0]
    rank = int(np.linalg.matrix_rank(middle))
    return float(d @ np.linalg.pinv(middle) @ d), rank


def sequential(beta: np.ndarray, vcov: np.ndarray, seen: np.ndarray, index: np.ndarray) -> float:
    """Chi-square of a term (``index``, the last of ``seen``) given those before it.

    The Cholesky split of the information, as in R's ``anova.lme``.
    """
    order = np.concatenate([seen, np.setdiff1d(np.arange(len(beta)), seen)])
    root = np.linalg.cholesky(np.linalg.inv(vcov)[np.ix_(order, order)]).T
    effects = root @ beta[order]
    return float(np.sum(effects[len(seen) - len(index) : len(seen)] ** 2))


def delta(function: Callable, x: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Covariance of ``function(x)`` by the delta method, with central differences."""
    h = 1e-6 * np.maximum(1.0, np.abs(x))
    columns = [
        (function(x + h[k] * e) - function(x - h[k] * e)) / (2 * h[k])
        for k, e in enumerate(np.eye(len(x)))
    ]
    J = np.stack(columns, -1)
    return J @ covariance @ J.T
