"""Marks for users' model functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_TRAJECTORY = "__jaxnlme_trajectory__"


def trajectory(model: Callable) -> Callable:
    """Mark ``model(params, x)`` as taking all rows of a group at once.

    ``params`` is a dict of scalars, ``x`` a dict of arrays ``(n,)`` over the group's rows (padded rows hold
    copies of the first row), the return value ``(n,)``. For models whose rows depend on each other, such as
    differential equations.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> @trajectory
    ... def decay(params, x):
    ...     return params["A"] * jnp.exp(-params["k"] * x["t"])
    >>> is_trajectory(decay)
    True
    """

    @functools.wraps(model)
    def marked(*args: Any) -> Any:
        return model(*args)

    setattr(marked, _TRAJECTORY, True)
    return marked


def is_trajectory(model: Callable) -> bool:
    """Say whether a model was marked by :func:`trajectory`."""
    return getattr(model, _TRAJECTORY, False)


def from_numpy(function: Callable, *, step: float = 6e-6) -> Callable:
    """Wrap a NumPy function ``function(phi, x) -> (n,)`` for JAX by a host callback.

    Derivatives are central differences (relative ``step``), first order only, nested for higher orders: slow and
    accurate to about 1e-9 in the first derivative. A function written with ``jax.numpy`` is better in
    every way.

    Examples
    --------
    >>> import numpy as np
    >>> f = from_numpy(lambda phi, x: phi[0] * np.exp(-phi[1] * x[:, 0]))
    >>> float(f(np.array([2.0, 0.0]), np.ones((1, 1)))[0])
    2.0
    """

    def host(phi, *x):
        out = np.asarray(function(np.asarray(phi), *[np.asarray(a) for a in x]))
        return out.reshape(-1).astype(phi.dtype)

    @jax.custom_jvp
    def call(phi, *x):
        shape = jax.ShapeDtypeStruct((x[0].shape[0],), phi.dtype)
        return jax.pure_callback(host, shape, phi, *x, vmap_method="sequential")

    @call.defjvp
    def call_jvp(primals, tangents):
        phi, *x = primals
        dphi = tangents[0]
        out = call(phi, *x)
        h = step * jnp.maximum(1.0, jnp.abs(phi))
        slopes = []
        for k in range(phi.shape[0]):
            shift = jnp.zeros_like(phi).at[k].set(h[k])
            slopes.append((call(phi + shift, *x) - call(phi - shift, *x)) / (2 * h[k]))
        return out, sum(s * dphi[k] for k, s in enumerate(slopes))

    return functools.wraps(function)(lambda phi, *x: call(phi, *x))
