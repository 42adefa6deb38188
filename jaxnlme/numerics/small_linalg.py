"""Cholesky kernels for many small matrices.

Up to ``UNROLL`` the factorisation is written out and runs elementwise over the batch: LAPACK calls cost more
than the arithmetic. Above it a loop over columns does the same with a program of constant size. LAPACK
is not used at all: jaxlib's batched kernels wait for their own tasks inside XLA's thread pool, and two of
them at once stop a program for ever on a machine with few cores (seen with jaxlib 0.10.2 on 2 cores,
``lapack_dtrsm_ffi`` in ``ParallelBatchMap``). All functions work on trailing axes and accept batch axes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxnlme._typing import Array, Float

UNROLL = 4


def cholesky(a: Float[Array, "*b q q"]) -> Float[Array, "*b q q"]:
    """Return the lower factor of ``a = L L'``; NaN where ``a`` is not positive definite."""
    q = a.shape[-1]
    if q > UNROLL:
        return _cholesky_loop(a)
    low: dict[tuple[int, int], Array] = {}
    for j in range(q):
        pivot = a[..., j, j]
        for k in range(j):
            pivot = pivot - low[j, k] ** 2
        low[j, j] = jnp.sqrt(pivot)
        for i in range(j + 1, q):
            entry = a[..., i, j]
            for k in range(j):
                entry = entry - low[i, k] * low[j, k]
            low[i, j] = entry / low[j, j]
    if not q:
        return a
    zero = jnp.zeros_like(low[0, 0])
    flat = [low.get((i, j), zero) for i in range(q) for j in range(q)]
    return jnp.stack(flat, -1).reshape(a.shape)


def _cholesky_loop(a: Float[Array, "*b q q"]) -> Float[Array, "*b q q"]:
    """Right-looking factorisation, one column per trip."""
    q = a.shape[-1]
    index = jnp.arange(q).reshape((1,) * (a.ndim - 2) + (q,))

    def column(j, carry):
        rest, low = carry
        whole = jax.lax.dynamic_index_in_dim(rest, j, axis=a.ndim - 1, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(whole, j, axis=a.ndim - 2)
        col = jnp.where(index >= j, whole / jnp.sqrt(pivot), 0.0)
        low = jax.lax.dynamic_update_index_in_dim(low, col[..., None], j, axis=a.ndim - 1)
        return rest - col[..., :, None] * col[..., None, :], low

    return jax.lax.fori_loop(0, q, column, (a, jnp.zeros_like(a)))[1]


def _solve_loop(low, rhs, transpose):
    """Substitution, one row per trip."""
    q = low.shape[-1]
    batch = jnp.broadcast_shapes(low.shape[:-2], rhs.shape[:-2])
    low = jnp.broadcast_to(low, batch + low.shape[-2:])
    rhs = jnp.broadcast_to(rhs, batch + rhs.shape[-2:])
    rows, cols = low.ndim - 2, low.ndim - 1

    def row(k, x):
        i = q - 1 - k if transpose else k
        line = jax.lax.dynamic_index_in_dim(
            low, i, axis=cols if transpose else rows, keepdims=False
        )
        pivot = jax.lax.dynamic_index_in_dim(line, i, axis=rows)
        known = jnp.sum(line[..., :, None] * x, axis=-2)
        target = jax.lax.dynamic_index_in_dim(rhs, i, axis=rows, keepdims=False)
        value = (target - known) / pivot
        return jax.lax.dynamic_update_index_in_dim(x, value[..., None, :], i, axis=rows)

    return jax.lax.fori_loop(0, q, row, jnp.zeros_like(rhs))


def _substitute(low, columns, *, forward: bool, backward: bool):
    """Substitution written out, for the rows ``columns`` of a right-hand side; entries are taken once."""
    q = len(columns)
    entry = {(i, j): low[..., i, j] for i in range(q) for j in range(i + 1)}
    if q and columns[0].ndim == low.ndim - 1:  # several right-hand sides
        entry = {key: value[..., None] for key, value in entry.items()}
    x = list(columns)
    for i in range(q) if forward else ():
        for k in range(i):
            x[i] = x[i] - entry[i, k] * x[k]
        x[i] = x[i] / entry[i, i]
    for i in reversed(range(q)) if backward else ():
        for k in range(i + 1, q):
            x[i] = x[i] - entry[k, i] * x[k]
        x[i] = x[i] / entry[i, i]
    return x


def solve_lower(
    low: Float[Array, "*#b q q"], rhs: Float[Array, "*#b q k"], *, transpose: bool = False
) -> Float[Array, "... q k"]:
    """Solve ``L x = rhs`` (or ``L' x = rhs`` with ``transpose``) for several right-hand sides."""
    q = low.shape[-1]
    if q > UNROLL:
        return _solve_loop(low, rhs, transpose)
    rows = [rhs[..., i, :] for i in range(q)]
    rows = _substitute(low, rows, forward=not transpose, backward=transpose)
    return jnp.stack(rows, -2) if q else rhs


def cho_solve(low: Float[Array, "*b q q"], rhs: Float[Array, "*b q k"]) -> Float[Array, "*b q k"]:
    """Solve ``L L' x = rhs``."""
    q = low.shape[-1]
    if q > UNROLL:
        return solve_lower(low, solve_lower(low, rhs), transpose=True)
    rows = [rhs[..., i, :] for i in range(q)]
    rows = _substitute(low, rows, forward=True, backward=True)
    return jnp.stack(rows, -2) if q else rhs


def cho_solve_vector(
    low: Float[Array, "*b q q"], rhs: Float[Array, "*b q"]
) -> Float[Array, "*b q"]:
    """Solve ``L L' x = rhs`` for one right-hand side."""
    q = low.shape[-1]
    if q > UNROLL:
        return cho_solve(low, rhs[..., None])[..., 0]
    rows = [rhs[..., i] for i in range(q)]
    rows = _substitute(low, rows, forward=True, backward=True)
    return jnp.stack(rows, -1) if q else rhs


def logdet(low: Float[Array, "*b q q"]) -> Float[Array, "*b"]:
    """Return ``log det(L L')``."""
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(low, axis1=-2, axis2=-1)), -1)


def sweep_inverse(a: Float[Array, "q q"]) -> tuple[Float[Array, "q q"], Float[Array, ""]]:
    """Return the inverse of a positive definite matrix and its smallest pivot (not positive or NaN: no inverse).

    One loop of symmetric sweeps (Goodnight 1979, Am. Stat. 33): several solves with one matrix compile in a
    quarter of the time of a factor and its substitutions.
    """
    index = jnp.arange(a.shape[0])

    def sweep(k, carry):
        rest, least = carry
        column = jax.lax.dynamic_index_in_dim(rest, k, axis=1, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(column, k, keepdims=False)
        here = index == k
        column = jnp.where(here, -jnp.ones((), a.dtype), column)
        cross = here[:, None] | here[None]
        rest = jnp.where(cross, 0, rest) - column[:, None] * (column / pivot)[None]
        return rest, jnp.minimum(least, pivot)

    start = a, jnp.full((), jnp.inf, a.dtype)
    if a.shape[0] > UNROLL:
        swept, least = jax.lax.fori_loop(0, a.shape[0], sweep, start)
    else:
        swept, least = functools.reduce(lambda carry, k: sweep(k, carry), range(a.shape[0]), start)
    return -swept, least


def expm_symmetric(a: Float[Array, "q q"]) -> Float[Array, "q q"]:
    """Return the exponential of a small symmetric matrix of norm below some fifty.

    Taylor's series of ``a / 2^8``, squared eight times.
    """
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    scaled = a / 2.0**8

    def term(k, series):  # Horner: 1 + x (1 + x/2 (1 + x/3 ...))
        return eye + (scaled @ series) / (13.0 - k).astype(a.dtype)

    series = jax.lax.fori_loop(0, 13, lambda k, s: term(jnp.asarray(k, a.dtype), s), eye)
    return jax.lax.fori_loop(0, 8, lambda _, s: s @ s, series)


def row_factor(a: Float[Array, "q q"]) -> Float[Array, "q q"]:
    """Return the lower triangular L with ``L L' = a a'`` and a diagonal that is not negative.

    Gram and Schmidt on the rows, which a product ``a a'`` close to singular does not harm.
    """
    q = a.shape[-1]
    eye = jnp.eye(q, dtype=a.dtype)
    unit: list[Array] = []
    rows = []
    for i in range(q):
        rest, row = a[i], jnp.zeros(q, a.dtype)
        for j, direction in enumerate(unit):
            along = jnp.sum(rest * direction)
            rest, row = rest - along * direction, row + along * eye[j]
        length = jnp.sqrt(jnp.sum(rest**2))
        unit.append(rest / jnp.where(length > 0, length, 1.0))
        rows.append(row + length * eye[i])
    return jnp.stack(rows)
