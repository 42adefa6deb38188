"""Rules of a few parameters written once, over numpy arrays on the host or JAX arrays inside a program.

One fit is driven from the host, where only the pass over the data is compiled: the rule of a step costs more
to trace and compile than to run. Batches and derivatives run the same rule inside one compiled loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._results import RESULTS
from jaxnlme._typing import Array, Bool, Float
from jaxnlme.numerics.small_linalg import sweep_inverse

__all__ = ["HOST", "TRACED", "Arithmetic", "inverse_spd"]


class Arithmetic(NamedTuple):
    """Where the small arrays of a step live: ``numpy`` on the host, ``jax.numpy`` inside a program."""

    xp: Any
    inverse: Callable[..., Any]  # of a positive definite matrix, and its smallest pivot
    choose: Callable[..., Any]  # between result codes
    pick: Callable[..., Any]  # between the pytrees that two functions return
    repeat: Callable[..., Any]  # lax.while_loop


def inverse_spd(
    a: Float[Array, "d d"],
    free: Bool[Array, "d"],
    *,
    floor: Any = 0.0,
    damping: float = 1e-7,
    arithmetic: Arithmetic | None = None,
) -> Float[Array, "d d"]:
    """Return a damped inverse of an information matrix on the free coordinates.

    Diagonal entries below ``floor`` (d,) are raised to it. The matrix is then scaled to unit diagonal and
    ``damping`` is added there; coordinates that are held or have no information get the identity, so the
    result is always positive definite.
    """
    arithmetic = TRACED if arithmetic is None else arithmetic
    xp = arithmetic.xp
    diagonal = xp.diagonal(a)
    raised = xp.maximum(floor, diagonal)
    good = free & (raised > 0)
    scale = xp.sqrt(xp.where(good, raised, 1.0)).astype(a.dtype)
    scaled = xp.where(good[:, None] & good[None], a / scale[:, None] / scale[None], 0.0)
    eye = xp.eye(a.shape[0], dtype=a.dtype)
    # raised and held ones are 1 after scaling
    unit = xp.where(good, xp.asarray(1.0 + damping, a.dtype), xp.asarray(1.0, a.dtype))
    scaled = xp.where(eye > 0, unit[None], scaled)
    inverse, least = arithmetic.inverse(scaled)
    inverse = xp.where((least > 0) & xp.all(xp.isfinite(inverse)), inverse, eye)
    return inverse / scale[:, None] / scale[None]


def _host_inverse(a: np.ndarray) -> tuple[np.ndarray, Any]:
    if not len(a):
        return a, np.inf
    try:
        low = np.linalg.cholesky(a)
        half = np.linalg.inv(low)
    except np.linalg.LinAlgError:
        return np.full_like(a, np.nan), np.nan
    return half.T @ half, np.min(np.diagonal(low)) ** 2


def _pick(condition, x, y):
    return jax.tree.map(lambda u, v: jnp.where(condition, u, v), x(), y())


def _host_pick(condition, x, y):
    return x() if condition else y()


def _host_choose(condition, x, y):
    return x if condition else y


def _host_repeat(more, body, carry):
    while more(carry):
        carry = body(carry)
    return carry


TRACED = Arithmetic(jnp, sweep_inverse, RESULTS.where, _pick, jax.lax.while_loop)
HOST = Arithmetic(np, _host_inverse, _host_choose, _host_pick, _host_repeat)
