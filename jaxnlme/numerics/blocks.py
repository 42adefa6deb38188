"""Products of many small matrices, written so that XLA fuses them on CPU."""

from __future__ import annotations

import jax.numpy as jnp

from jaxnlme._typing import Array

_ELEMENTWISE = 8


def small_matmul(a: Array, b: Array) -> Array:
    """Matrix product on trailing axes; elementwise for tiny matrices, where a batched dot is slow.

    Both arguments must have the same number of axes; axes of length 1 broadcast.
    """
    if max(a.shape[-2:] + b.shape[-2:]) > _ELEMENTWISE:
        return jnp.matmul(a, b)
    return jnp.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)


def transpose(a: Array) -> Array:
    """Swap the trailing two axes."""
    return jnp.swapaxes(a, -1, -2)


def sandwich(b: Array, s: Array) -> Array:
    """``b' s b`` on trailing axes."""
    return small_matmul(transpose(b), small_matmul(s, b))
