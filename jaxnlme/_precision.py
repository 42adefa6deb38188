"""Float64 at the doors, the caller's dtype in the pure functions.

Doors (host functions that take frames, formulas, numpy) run in a scoped 64-bit context and give
numpy back, so a program that works in float32 stays in float32. Pure functions follow the dtype of
their input; :func:`check_precision` stops JAX from narrowing float64 input without a word.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnlme._cache import enable_default_cache

__all__ = ["check_precision", "host64", "to_host"]

P = ParamSpec("P")
T = TypeVar("T")


def _is_dict(node: Any) -> bool:
    return type(node) is dict


def _leaves(tree: Any) -> Iterator[Any]:
    """Yield leaves; plain dicts are walked by hand because JAX sorts (and must compare) keys."""
    for leaf in jax.tree.leaves(tree, is_leaf=_is_dict):
        if _is_dict(leaf):
            for value in leaf.values():
                yield from _leaves(value)
        else:
            yield leaf


def _host_leaf(leaf: Any) -> Any:
    if _is_dict(leaf):
        return {key: to_host(value) for key, value in leaf.items()}
    if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(leaf)
    return leaf


def to_host(tree: T) -> T:
    """Replace every JAX array in a pytree by numpy.

    Objects that JAX does not know (results, frames) pass unchanged, PRNG keys too; dicts keep
    their order.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> to_host({"b": jnp.ones(2), "a": "text"})
    {'b': array([1., 1.], dtype=float32), 'a': 'text'}
    """
    return jax.tree.map(_host_leaf, tree, is_leaf=_is_dict)


def host64(door: Callable[P, T]) -> Callable[P, T]:
    """Run a door in float64 whatever the caller's ``jax_enable_x64``, and return numpy.

    For every public function that takes data, and for every results method that computes (they run
    after the door has returned). The flag is thread-local and restored afterwards. Under the
    caller's ``jit`` the door runs once, at trace time, on concrete data.

    Raises
    ------
    TypeError
        An argument is being traced.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> @host64
    ... def third(x):
    ...     return jnp.asarray(x) / 3
    >>> third(1.0).dtype, jnp.ones(1).dtype
    (dtype('float64'), dtype('float32'))
    """

    @functools.wraps(door)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if any(isinstance(leaf, Tracer) for leaf in _leaves((args, kwargs))):
            name = getattr(door, "__qualname__", repr(door))
            raise TypeError(
                f"{name} takes data, but an argument is being traced by jit, vmap or grad. Call it "
                "outside the transformation, or use a pure function there, such as "
                "jaxnlme.nlme.fit."
            )
        enable_default_cache()
        with _concrete(), jax.enable_x64(True):
            return to_host(door(*args, **kwargs))

    return cast("Callable[P, T]", call)


def _concrete() -> AbstractContextManager[Any]:
    """Keep a door's arrays concrete under the caller's ``jit``.

    Only there: the context folds constants eagerly, so that tracing our own programs in it would compile
    every ``jnp.zeros`` inside them (160 small programs, seconds, for a first fit).
    """
    if isinstance(jax.device_put(np.float32(0)), Tracer):
        return jax.ensure_compile_time_eval()
    return contextlib.nullcontext()


def check_precision(*trees: Any) -> None:
    """Refuse float64 arrays while 64-bit is off: JAX would narrow them without a word.

    Call it in the un-jitted wrapper of a pure function. Inside ``jit`` the arguments have already
    become float32.

    Raises
    ------
    TypeError
        A leaf is a float64 or complex128 array and ``jax_enable_x64`` is off.

    Examples
    --------
    >>> import numpy as np
    >>> check_precision(np.float32([1, 2]), "text", None)
    """
    if jnp.result_type(float) == np.float64:  # the flag as this thread sees it
        return
    for leaf in _leaves(trees):
        dtype = getattr(leaf, "dtype", None)
        if isinstance(dtype, np.dtype) and dtype in (np.dtype("f8"), np.dtype("c16")):
            raise TypeError(
                f"{dtype} array of shape {np.shape(leaf)} while 64-bit is off: wrap the call in "
                "`with jax.enable_x64(True):` or pass float32."
            )
