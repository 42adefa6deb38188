"""Marks for users' model functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


@dataclass(frozen=True)
class Trajectory:
    """A model of all rows of a group; made by :func:`trajectory`. Equal functions make equal models."""

    function: Callable
    time: str | None = None

    def __call__(self, *args: Any) -> Any:
        """Return the function's value."""
        return self.function(*args)

    @property
    def __name__(self) -> str:
        """Name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)


def trajectory(model: Callable | None = None, *, time: str | None = None) -> Any:
    """Mark ``model(params, x)`` as taking all rows of a group at once.

    Parameters
    ----------
    model
        ``params`` is a dict of scalars, ``x`` a dict of arrays ``(n,)`` over the group's rows (padded rows
        hold copies of the group's last row, so that times stay sorted), the return value ``(n,)``.
    time
        Column that must be >= 0 and increase within each group; unsorted, negative or repeated
        times then raise ``DataError`` before the fit. None: no check, any order of rows.

    Examples
    --------
    For models whose rows depend on each other, such as differential equations:

    >>> import jax.numpy as jnp
    >>> @trajectory(time="t")
    ... def decay(params, x):
    ...     return params["A"] * jnp.exp(-params["k"] * x["t"])
    >>> is_trajectory(decay), decay.time
    (True, 't')
    """
    if model is None:
        return functools.partial(trajectory, time=time)
    return Trajectory(model, time)


def is_trajectory(model: Any) -> bool:
    """Say whether a model was marked by :func:`trajectory`."""
    return isinstance(model, Trajectory)


def time_column(model: Any) -> str | None:
    """Return the column that a trajectory model wants sorted, or None."""
    return model.time if isinstance(model, Trajectory) else None


def from_numpy(function: Callable, *, step: float = 6e-6) -> Callable:
    """Wrap a NumPy model for JAX by a host callback.

    ``function(phi, x) -> (n,)`` for ``nlmefit``, ``function(params, x)`` of dicts for ``fit_nlme`` (one row at
    a time; inside :func:`trajectory` all rows of a group, far fewer calls). Derivatives are central
    differences (relative ``step``), first order only, nested for higher orders: slow and accurate to about
    1e-9 in the first derivative. A function written with ``jax.numpy`` is better in every way.

    Examples
    --------
    >>> import numpy as np
    >>> f = from_numpy(lambda phi, x: phi[0] * np.exp(-phi[1] * x[:, 0]))
    >>> float(f(np.array([2.0, 0.0]), np.ones((1, 1)))[0])
    2.0
    """

    def wrapped(params, *x):
        phi, _ = ravel_pytree(params)
        first = x[0] if not isinstance(x[0], dict) else next(iter(x[0].values()))
        shape = jnp.shape(first) if isinstance(x[0], dict) else jnp.shape(first)[:1]
        out = jax.ShapeDtypeStruct(shape, phi.dtype)

        def host(phi, *x):
            given = (
                phi if not isinstance(params, dict) else dict(zip(sorted(params), phi, strict=True))
            )
            return np.asarray(function(given, *x), phi.dtype).reshape(shape)

        return _by_differences(host, out, step)(phi, *x)

    return functools.wraps(function)(wrapped)


def _by_differences(host: Callable, out: jax.ShapeDtypeStruct, step: float) -> Callable:
    """Return a callback of a flat vector whose derivative in it is a central difference."""
    # The callback's thread does not see a scoped 64-bit context and would narrow every float64, so
    # numbers travel as their bits.
    wide = out.dtype == np.float64
    bits = jax.ShapeDtypeStruct((*out.shape, 2), np.uint32) if wide else out

    @jax.custom_jvp
    def call(phi, *x):
        def run(phi, *x):
            value = host(_from_bits(phi), *jax.tree.map(_from_bits, x))
            return value[..., None].view(np.uint32) if wide else value

        packed = jax.tree.map(_to_bits, (phi, *x))
        value = jax.pure_callback(run, bits, *packed, vmap_method="sequential")
        return jax.lax.bitcast_convert_type(value, np.float64) if wide else value

    @call.defjvp
    def call_jvp(primals, tangents):
        phi, *x = primals
        value = call(phi, *x)
        h = step * jnp.maximum(1.0, jnp.abs(phi))
        slopes = []
        for k in range(phi.shape[0]):
            shift = jnp.zeros_like(phi).at[k].set(h[k])
            slopes.append((call(phi + shift, *x) - call(phi - shift, *x)) / (2 * h[k]))
        return value, sum(s * tangents[0][k] for k, s in enumerate(slopes))

    return call


def _to_bits(a):
    a = jnp.asarray(a)
    return jax.lax.bitcast_convert_type(a, np.uint32) if a.dtype == np.float64 else a


def _from_bits(a):
    a = np.ascontiguousarray(a)
    return a.view(np.float64)[..., 0] if a.dtype == np.uint32 else a
