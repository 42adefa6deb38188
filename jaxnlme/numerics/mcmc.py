"""Scaffolding of Markov chains: steps in one compiled loop, random numbers by counter, points in batches.

References
----------
.. [1] Salmon, Moraes, Dror, Shaw (2011). Parallel random numbers: as easy as 1, 2, 3. SC'11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._typing import Array, PyTree

__all__ = ["BATCH", "map_points", "random_words", "run_steps"]

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


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def random_words(key: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Return two arrays of random words: Threefry-2x32 of a pair of counters, 20 rounds [1]_.

    The numbers are those of JAX's own generator, written as one expression, that the compiler makes
    one vectorised loop of. JAX's is a loop of small programs on CPU, and takes ten times as long.

    Parameters
    ----------
    key
        (2,) uint32.
    first, second
        Counters, uint32 arrays of one shape.

    Examples
    --------
    >>> zero = np.zeros(2, np.uint32)
    >>> [hex(int(word[0])) for word in jax.jit(random_words)(zero, zero[:1], zero[:1])]
    ['0x6b200159', '0x99ba4efe']
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    first, second = first + keys[0], second + keys[1]
    for k in range(5):
        for r in _ROTATIONS[k % 2]:
            first = first + second
            second = (second << np.uint32(r)) | (second >> np.uint32(32 - r))
            second = second ^ first
        first = first + keys[(k + 1) % 3]
        second = second + (keys[(k + 2) % 3] + np.uint32(k + 1))
    return first, second


def run_steps(
    draw: Callable,
    step: Callable,
    record: Callable,
    state: PyTree,
    rows: PyTree,
    n_steps: Array,
    thin: Array,
    block: int,
) -> tuple[PyTree, PyTree, Array]:
    """Advance a chain and keep what is recorded after each iteration that is a multiple of ``thin``.

    Parameters
    ----------
    draw
        ``draw(iterations (block,)) -> pytree`` of random numbers, one row per iteration, each a
        function of its iteration alone. Drawn for `block` iterations at once.
    step
        ``step(state, drawn, k) -> state`` with the numbers in row k of `drawn`; the state has a
        counter ``iteration`` of iterations done.
    record
        ``record(state, drawn, k) -> pytree`` of what is kept after that step.
    rows
        Buffers for what is recorded, with at least ``ceil(n_steps / thin) + 1`` rows: the last one
        takes what is not kept, a write without a branch.
    n_steps, thin
        Traced, so that any number of steps is one program, and a chain does not depend on how it is
        cut into calls. Iteration 0 is the first; it is kept for any ``thin``.

    Returns
    -------
    state, rows, count
        The first ``count`` rows are filled.
    """
    last = jax.tree.leaves(rows)[0].shape[0] - 1
    thin = jnp.asarray(thin)

    def kept(iteration: Any) -> Any:
        return (iteration + thin - 1) // thin  # multiples of thin below it

    first = kept(state.iteration)

    def one(k: Any, carry: Any) -> Any:
        drawn, places, state, rows = carry
        state = step(state, drawn, k)
        rows = jax.tree.map(
            lambda buffer, new: jax.lax.dynamic_update_index_in_dim(buffer, new, places[k], 0),
            rows,
            record(state, drawn, k),
        )
        return drawn, places, state, rows

    def many(k: Any, carry: Any) -> Any:
        iterations = carry[0].iteration + jnp.arange(block)
        places = jnp.where(iterations % thin == 0, kept(iterations) - first, last)
        trips = jnp.minimum(block, n_steps - k * block)
        return jax.lax.fori_loop(0, trips, one, (draw(iterations), places, *carry))[2:]

    blocks = (n_steps + block - 1) // block
    state, rows = jax.lax.fori_loop(0, blocks, many, (state, rows))
    return state, rows, kept(state.iteration) - first
