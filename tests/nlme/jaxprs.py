"""Look into jaxprs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr and of every jaxpr inside it."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in inner.eqns:
        yield equation
        for sub in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            if hasattr(sub, "eqns") or hasattr(sub, "jaxpr"):
                yield from equations(sub)


def computes_float64(jaxpr: Any) -> list[str]:
    """Name the primitives that put out float64.

    Weak scalars do not count: Python floats (and fields that hold them, such as ``tolerance``) are
    traced as weak float64 and never widen an array.
    """
    return [
        str(equation.primitive)
        for equation in equations(jaxpr)
        for v in equation.outvars
        if getattr(v.aval, "dtype", None) == np.float64
        and not (v.aval.weak_type and v.aval.shape == ())
    ]
