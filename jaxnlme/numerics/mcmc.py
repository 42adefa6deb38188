"""Scaffolding of Markov chains: steps in one compiled loop, points in batches that fit the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnlme._typing import Array, PyTree

__all__ = ["BATCH", "map_points", "run_steps"]

BATCH = 128  # points per pass: beyond it the arrays of a time-stepping model leave the CPU's cache


def map_points(function: Callable, points: Array, batch: int = BATCH) -> Any:
    """Apply ``function`` to each of (n, p) points, ``batch`` at a time under ``vmap``.

    The last batch is filled up with copies of the last point, so that ``function`` is compiled
    once.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> map_points(jnp.sum, jnp.ones((5, 2)), batch=2)
    Array([2., 2., 2., 2., 2.], dtype=float32)
    """
    n = points.shape[0]
    many = jax.vmap(function)
    if n <= batch:
        return many(points)
    blocks = -(-n // batch)
    short = blocks * batch - n
    if short:
        last = jnp.broadcast_to(points[-1:], (short, *points.shape[1:]))
        points = jnp.concatenate([points, last])
    out = jax.lax.map(many, points.reshape(blocks, batch, *points.shape[1:]))
    return jax.tree.map(lambda a: a.reshape(blocks * batch, *a.shape[2:])[:n], out)


def run_steps(
    step: Callable,
    record: Callable,
    state: PyTree,
    n_steps: Array,
    thin: Array,
    capacity: int,
) -> tuple[PyTree, PyTree, Array]:
    """Advance a chain and keep the state after each iteration that is a multiple of ``thin``.

    Parameters
    ----------
    step
        ``step(state) -> state``; the state has a counter ``iteration`` of iterations done.
    record
        ``record(state) -> pytree`` of what is kept.
    n_steps, thin
        Traced, so that any number of steps is one program, and a chain does not depend on how it is
        cut into calls. Iteration 0 is the first; it is kept for any ``thin``.
    capacity
        Rows of the buffer: at least ``ceil(n_steps / thin)``.

    Returns
    -------
    state, rows, count
        ``rows`` has ``capacity`` rows, of which the first ``count`` are filled.
    """
    shapes = jax.eval_shape(record, state)
    # One row more takes what is not kept: a write without a branch.
    rows = jax.tree.map(lambda s: jnp.zeros((capacity + 1, *s.shape), s.dtype), shapes)

    def body(_: Any, carry: Any) -> Any:
        state, rows, count = carry
        keep = state.iteration % thin == 0
        state = step(state)
        place = jnp.where(keep, count, capacity)
        rows = jax.tree.map(
            lambda buffer, new: jax.lax.dynamic_update_index_in_dim(buffer, new, place, 0),
            rows,
            record(state),
        )
        return state, rows, count + keep

    start = (state, rows, jnp.zeros((), jnp.int32))
    state, rows, count = jax.lax.fori_loop(0, n_steps, body, start)
    return state, jax.tree.map(lambda a: a[:capacity], rows), count
