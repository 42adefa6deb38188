"""Programs kept whole on disk, so that a new process runs them without tracing.

JAX's own cache finds what XLA compiled by the traced program, and tracing a mixed-effects objective takes longer
than all the rest of a first call. Here a program is found by what it was traced from. That is possible only where
every static part is a plain value, or an object or a module-level function of this package: a function of the
user's is traced as ever.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxlib.version import __version__ as jaxlib_version

__all__ = ["Kept", "describe"]

log = logging.getLogger("jaxnlme")

_PACKAGE = __name__.partition(".")[0]
# Settings that change what is traced or compiled.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_disable_most_optimizations",
)
# Settings of people who look for errors: everything is traced for them.
_WATCHED = ("jax_debug_nans", "jax_debug_infs", "jax_disable_jit", "jax_check_tracer_leaks")


class Unknown(Exception):
    """An object whose text is not known."""


def describe(value: Any, *, static: bool = False) -> str:
    """Write down what a traced program can depend on: static parts by value, arrays by shape and dtype.

    Raises
    ------
    Unknown
        For anything that another process could not be sure to have too: a user's function or class.
    """
    kind = type(value)
    if value is None or (static and kind in (bool, int, float, str)):
        return repr(value)
    if kind in (tuple, list):
        return f"{kind.__name__}({','.join(describe(v, static=static) for v in value)})"
    if kind is dict:
        items = (f"{k!r}:{describe(v, static=static)}" for k, v in value.items() if _name(k))
        return f"dict({','.join(items)})"
    if not static and isinstance(value, np.ndarray | np.generic | jax.Array):
        return f"{value.dtype}{value.shape}{getattr(value, 'weak_type', False)}"
    if not static and kind in (bool, int, float):
        return kind.__name__
    if kind.__module__.partition(".")[0] == _PACKAGE and _at_module_level(kind):
        return f"{kind.__module__}.{kind.__qualname__}({_parts(value, kind, static)})"
    ours = str(getattr(value, "__module__", "")).partition(".")[0] == _PACKAGE
    if static and ours and _at_module_level(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise Unknown(repr(kind))


def _name(key: Any) -> bool:
    if not isinstance(key, str):
        raise Unknown(repr(key))
    return True


def _parts(value: Any, kind: type, static: bool) -> str:
    if isinstance(value, eqx.Module):
        fields = kind.__dataclass_fields__.values()
        return ",".join(
            f"{f.name}="
            + describe(getattr(value, f.name), static=static or f.metadata.get("static", False))
            for f in fields
        )
    if isinstance(value, tuple):
        return ",".join(describe(v, static=static) for v in value)
    if static and kind.__reduce__ is not object.__reduce__:
        made, arguments = value.__reduce__()[:2]
        if made is kind:
            return describe(arguments, static=True)
    raise Unknown(repr(kind))


def _at_module_level(thing: Any) -> bool:
    """Say whether another process finds this very class or function by its name."""
    name = getattr(thing, "__qualname__", "<")
    return getattr(sys.modules.get(thing.__module__), name, None) is thing


@functools.cache
def _stamp() -> str:
    """Versions, flags and the state of the package's files."""
    root = Path(__file__).parent
    files = sorted(
        (str(path.relative_to(root)), status.st_size, status.st_mtime_ns)
        for path in root.rglob("*.py")
        for status in [path.stat()]
    )
    versions = (sys.version, jax.__version__, jaxlib_version, eqx.__version__, np.__version__)
    return repr((versions, os.environ.get("XLA_FLAGS"), jax.device_count(), files))


class Kept:
    """A function of arrays that is compiled once per machine, where its text is known.

    Parameters
    ----------
    function
        Pure function of pytrees, called by position.
    options
        Returns the compile options, on first use.
    directory
        Returns the private directory of the programs, or None.
    afresh
        Context in which programs do not come from JAX's cache: those cannot be written down again.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: Callable[[], dict[str, Any] | None],
        directory: Callable[[], str | None],
        afresh: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._function, self._options, self._directory = function, options, directory
        self._afresh = afresh
        self._programs: dict[Any, tuple[Any, Any] | None] = {}

    def find(self, args: tuple[Any, ...]) -> Callable[[], Any] | None:
        """Return a call of the program for these arguments, or None where it has to be traced."""
        directory = self._directory()
        if directory is None or jax.config.jax_default_device is not None:  # pyright: ignore
            return None
        if any(getattr(jax.config, name, False) for name in _WATCHED):
            return None
        leaves, tree = jax.tree.flatten(args)
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            return None
        kinds = tuple(
            (getattr(v, "dtype", type(v)), np.shape(v), getattr(v, "weak_type", False))
            for v in leaves
        )
        settings = tuple(_setting(name) for name in _SETTINGS)
        key = (directory, tree, kinds, settings)
        if key not in self._programs:
            self._programs[key] = self._load_or_compile(args, leaves, tree, directory, settings)
        program = self._programs[key]
        if program is None:
            return None
        compiled, out = program
        return lambda: jax.tree.unflatten(out, compiled(*leaves))

    def _load_or_compile(self, args, leaves, tree, directory, settings):
        if jax.default_backend() != "cpu":
            return None
        try:
            text = describe(args)
        except Unknown as unknown:
            log.debug("traced anew in every process: %s is not of %s", unknown, _PACKAGE)
            return None
        options = self._options()
        function = f"{self._function.__module__}.{self._function.__qualname__}"
        whole = repr((function, text, str(options), settings, _stamp()))
        path = Path(directory) / f"program-{hashlib.sha256(whole.encode()).hexdigest()}"
        return _load(path, leaves) or self._compile(path, leaves, tree, options)

    def _compile(self, path, leaves, tree, options):
        found: list[Any] = []

        def flat(*values):
            out = self._function(*jax.tree.unflatten(tree, values))
            found[:] = [jax.tree.structure(out)]
            return jax.tree.leaves(out)

        with self._afresh():
            compiled = jax.jit(flat, compiler_options=options).lower(*leaves).compile()
        (out,) = found
        try:
            from jax.experimental.serialize_executable import serialize

            skeleton = jax.tree.unflatten(out, range(out.num_leaves))
            _write(path, pickle.dumps((serialize(compiled)[0], skeleton)))
        except Exception as error:  # noqa: BLE001 - a program that cannot be kept still runs
            log.debug("program not kept: %s", error)
        return compiled, out


def _setting(name: str) -> Any:
    """Read a setting of JAX; some are attributes, others only `read` knows."""
    if hasattr(jax.config, name):
        return getattr(jax.config, name)
    with contextlib.suppress(AttributeError, KeyError):  # a version without it
        return jax.config.read(name)
    return None


def _load(path: Path, leaves: list[Any]) -> tuple[Any, Any] | None:
    if not path.exists():
        return None
    try:
        from jax.experimental.serialize_executable import deserialize_and_load

        payload, skeleton = pickle.loads(path.read_bytes())  # the directory is the user's alone
        out = jax.tree.structure(skeleton)
        given = jax.tree.structure((tuple(leaves), {}))
        compiled = deserialize_and_load(payload, given, jax.tree.structure([0] * out.num_leaves))
        jax.block_until_ready(compiled(*leaves))  # what cannot run shows only here
    except Exception as error:  # noqa: BLE001 - a broken file must not stop a fit
        log.debug("program %s is not usable: %s", path.name, error)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return compiled, out


def _write(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
