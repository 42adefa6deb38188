"""Cholesky kernels for many small matrices.

LAPACK calls under ``vmap`` cost more than the arithmetic for tiny matrices, so up to ``UNROLL``
the factorisation is written out and runs elementwise over the batch. Above it LAPACK is called.
All functions work on trailing axes and accept any batch axes in front.
"""

from __future__ import annotations

import jax.numpy as jnp
import jax.scipy.linalg as jsl

from jaxnlme._typing import Array, Bool, Float

UNROLL = 4


def cholesky(a: Float[Array, "*b q q"]) -> Float[Array, "*b q q"]:
    """Return the lower factor of ``a = L L'``; NaN where ``a`` is not positive definite."""
    q = a.shape[-1]
    if q > UNROLL:
        return jnp.linalg.cholesky(a)
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
    zero = jnp.zeros_like(a[..., 0, 0]) if q else None
    rows = [jnp.stack([low.get((i, j), zero) for j in range(q)], -1) for i in range(q)]
    return jnp.stack(rows, -2) if q else a


def solve_lower(
    low: Float[Array, "*#b q q"], rhs: Float[Array, "*#b q k"], *, transpose: bool = False
) -> Float[Array, "... q k"]:
    """Solve ``L x = rhs`` (or ``L' x = rhs`` with ``transpose``) for several right-hand sides."""
    q = low.shape[-1]
    if q > UNROLL:
        batch = jnp.broadcast_shapes(low.shape[:-2], rhs.shape[:-2])
        low = jnp.broadcast_to(low, batch + low.shape[-2:])
        rhs = jnp.broadcast_to(rhs, batch + rhs.shape[-2:])
        return jsl.solve_triangular(low, rhs, lower=True, trans=1 if transpose else 0)
    x: dict[int, Array] = {}
    order = range(q - 1, -1, -1) if transpose else range(q)
    for i in order:
        value = rhs[..., i, :]
        for k in range(i + 1, q) if transpose else range(i):
            entry = low[..., k, i] if transpose else low[..., i, k]
            value = value - entry[..., None] * x[k]
        x[i] = value / low[..., i, i][..., None]
    return jnp.stack([x[i] for i in range(q)], -2) if q else rhs


def cho_solve(
    low: Float[Array, "*b q q"], rhs: Float[Array, "*b q k"]
) -> Float[Array, "*b q k"]:
    """Solve ``L L' x = rhs``."""
    return solve_lower(low, solve_lower(low, rhs), transpose=True)


def cho_solve_vector(low: Float[Array, "*b q q"], rhs: Float[Array, "*b q"]) -> Float[Array, "*b q"]:
    """Solve ``L L' x = rhs`` for one right-hand side."""
    return cho_solve(low, rhs[..., None])[..., 0]


def logdet(low: Float[Array, "*b q q"]) -> Float[Array, "*b"]:
    """Return ``log det(L L')``."""
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(low, axis1=-2, axis2=-1)), -1)


def inverse_spd(
    a: Float[Array, "d d"], free: Bool[Array, "d"], *, damping: float = 1e-3
) -> Float[Array, "d d"]:
    """Return a damped inverse of an information matrix on the free coordinates.

    The matrix is scaled to unit diagonal and ``damping`` is added there; coordinates that are held or
    have no information get the identity, so the result is always positive definite.
    """
    eye = jnp.eye(a.shape[0], dtype=a.dtype)
    good = free & (jnp.diagonal(a) > 0)
    scale = jnp.sqrt(jnp.where(good, jnp.diagonal(a), 1.0))
    scaled = jnp.where(good[:, None] & good[None], a / scale[:, None] / scale[None], 0.0)
    scaled = scaled + jnp.diag(jnp.where(good, jnp.asarray(damping, a.dtype), 1.0))
    inverse = cho_solve(cholesky(scaled), eye)
    inverse = jnp.where(jnp.all(jnp.isfinite(inverse)), inverse, eye)
    return inverse / scale[:, None] / scale[None]
