"""Compile settings: the persistent compilation cache and the options of the outermost ``jit``.

Both are process-wide or per-program settings of JAX that only doors may use. Figures behind the
choices: with JAX's defaults nothing that compiles in under a second is kept, and the newer CPU
fusion emitters double the compile time of a mixed-effects objective without a faster program.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import logging
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jaxlib.version import __version__ as jaxlib_version

from jaxnlme._errors import ModelSpecError
from jaxnlme._programs import Kept

__all__ = ["compiler_options", "enable_cache", "enable_default_cache", "outer_jit"]

log = logging.getLogger("jaxnlme")

MAX_CACHE_BYTES = 256 * 2**20
_FAST_CPU_COMPILE = {"xla_cpu_use_fusion_emitters": False}
# Hoisting out of loops doubles what is compiled where a loop holds one large pass (a censored GLM: 8.2 s, 4.6 s
# without) and gains nothing there.
_NO_HOISTING = {
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion"
}
# AVX-512 vectors where the CPU has them; XLA prefers half of them. A step of 64 walkers in 20 dimensions takes a
# tenth less; results are the same to the bit.
_WIDE_VECTORS = {"xla_cpu_prefer_vector_width": 512}
_OPTION_KNOWN_IN = {(0, 10)}  # jaxlib (major, minor) where the option was seen to work

_lock = threading.Lock()
_compiling = threading.Lock()  # held while a program is traced, which takes the other
_default_tried = False
_ours: str | None = None  # the directory that we set, to tell it from the user's own


def enable_cache(path: str | os.PathLike[str] | None = None) -> Path | None:
    """Keep compiled programs on disk, so that the next process starts quickly.

    Doors call this on first use. A directory that you set through JAX itself
    (``jax_compilation_cache_dir``) is left alone, and ``JAXNLME_CACHE=0`` in the environment
    switches ours off. Entries are executable code: the directory is private to the user (mode
    0700), and holds one folder per JAX version and CPU type. The oldest files are removed beyond
    256 MB.

    Parameters
    ----------
    path
        Directory to use. Default: ``jaxnlme/<jaxlib version>-<cpu>`` in the user's cache directory
        (``$XDG_CACHE_HOME``, else ``~/.cache``; on Windows ``%LOCALAPPDATA%``).

    Returns
    -------
    Path or None
        The directory in use; None when switched off, or when the default cannot be written.

    Raises
    ------
    ModelSpecError
        `path` was given and cannot be used.

    Examples
    --------
    >>> import jaxnlme as jn
    >>> directory = jn.enable_cache()
    """
    global _ours
    if os.environ.get("JAXNLME_CACHE") == "0" or not _setting("enable_compilation_cache"):
        return None
    with _lock:
        present = _setting("compilation_cache_dir")
        if present and present != _ours:
            if path is not None and Path(path).absolute() != Path(present).absolute():
                raise ModelSpecError(
                    f"enable_cache: path={str(path)!r}, but jax_compilation_cache_dir is already "
                    f"set to {present!r}. Unset that (or JAX_COMPILATION_CACHE_DIR) first."
                )
            return Path(present)
        if path is None and present:
            return Path(present)
        problem, directory = _usable(path)
        if directory is None:
            if path is not None:
                raise ModelSpecError(
                    f"enable_cache: path={str(path)!r} cannot be used: {problem}. Give a directory "
                    "that belongs to you and that others cannot write to."
                )
            log.debug("no compilation cache: %s", problem)
            return None
        _prune(directory, MAX_CACHE_BYTES)
        _configure(str(directory))
        _ours = str(directory)
    log.info("compilation cache: %s (JAXNLME_CACHE=0 switches it off)", directory)
    return directory


def enable_default_cache() -> None:
    """Call :func:`enable_cache` once per process. For doors."""
    global _default_tried
    if not _default_tried:
        _default_tried = True
        enable_cache()


def _setting(name: str) -> Any:
    return getattr(jax.config, f"jax_{name}")


def _usable(path: str | os.PathLike[str] | None) -> tuple[str, Path | None]:
    """Return ("", directory) of a private writable directory, or (reason, None)."""
    try:
        directory = _default_directory() if path is None else Path(path).absolute()
        if path is None:
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid"):
            status = directory.stat()
            if status.st_uid != os.getuid():
                return "it belongs to another user", None
            if status.st_mode & 0o077 and path is None:
                directory.chmod(0o700)
            elif status.st_mode & 0o022:
                return "other users can write to it", None
        with tempfile.TemporaryFile(dir=directory):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        return str(error), None
    return "", directory


def _default_directory() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        root = Path(base) if base else Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "jaxnlme" / f"{jaxlib_version}-{_cpu_hash()}"


def _cpu_hash() -> str:
    """Name the CPU's instruction set: a program compiled for another may crash the process."""
    features = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                features = line.partition(":")[2].strip()
                break
    except OSError:
        features = platform.processor()
    text = f"{sys.platform} {platform.machine()} {features}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _prune(directory: Path, limit: int) -> None:
    """Remove empty (broken) entries, then the least recently used ones beyond `limit` bytes."""
    entries = []
    try:
        for item in os.scandir(directory):
            if item.is_file(follow_symlinks=False):
                status = item.stat(follow_symlinks=False)
                entries.append((max(status.st_atime, status.st_mtime), status.st_size, item.path))
    except OSError:
        return
    total = sum(size for _, size, _ in entries)
    for _, size, name in sorted(entries):
        if size and total <= limit:
            continue
        try:
            os.unlink(name)
            total -= size
        except OSError:
            pass  # another process removed it, or holds it open


def _configure(directory: str) -> None:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Any other value puts the directory's own path into the cache key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", directory)
    reset_jax_cache()


def reset_jax_cache() -> None:
    """Make JAX read its cache settings again: it does so only once."""
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


@contextlib.contextmanager
def afresh() -> Iterator[None]:
    """Compile without JAX's cache."""
    with _compiling:
        jax.config.update("jax_enable_compilation_cache", False)
        reset_jax_cache()
        try:
            yield
        finally:
            jax.config.update("jax_enable_compilation_cache", True)
            reset_jax_cache()


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """Return compile options for the OUTERMOST ``jit`` of a door, or None.

    On CPU the older fusion code compiles twice as fast and runs as fast. Starts the backend, so
    call it in a door, never at import; :func:`outer_jit` does that. A ``jit`` with options raises
    ``ValueError`` inside another ``jit``, ``vmap`` or ``lax.map``.
    """
    if jax.default_backend() != "cpu":
        return None
    version = tuple(int(part) for part in jaxlib_version.split(".")[:2])
    if version in _OPTION_KNOWN_IN or _accepts(_FAST_CPU_COMPILE):
        return dict(_FAST_CPU_COMPILE)
    return None


def _accepts(options: dict[str, Any]) -> bool:
    """Say whether this XLA knows the options: it refuses unknown ones with an error."""
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(np.float32(0))
    except Exception:  # noqa: BLE001 - the class of XLA's error is not stable between versions
        return False
    return True


class _Collection(threading.local):
    """Python's garbage collection, off while any thread traces and compiles.

    It walks the million small objects of a trace again and again: a fifth of the time.
    """

    mine = 0  # pauses of this thread
    all_threads: ClassVar[dict[str, Any]] = {"pauses": 0, "was_on": True}

    def pause(self) -> None:
        with _lock:
            if not self.all_threads["pauses"]:
                self.all_threads["was_on"] = gc.isenabled()
            gc.disable()
            self.all_threads["pauses"] += 1
        self.mine += 1

    def resume(self, before: int) -> None:
        """End the pauses of this thread since it had ``before``."""
        if self.mine == before:
            return
        with _lock:
            self.all_threads["pauses"] -= self.mine - before
            if not self.all_threads["pauses"] and self.all_threads["was_on"]:
                gc.enable()
        self.mine = before


_collection = _Collection()


def outer_jit(
    function: Callable[..., Any],
    *,
    hoist: bool = True,
    wide: bool = False,
    keep: bool = False,
    **jit_options: Any,
) -> Callable[..., Any]:
    """Wrap `function` in the outermost ``jit`` with :func:`compiler_options`, made on first call.

    For module-level use in doors: importing the module starts no backend. ``hoist=False`` leaves loop
    invariants where they are, which compiles faster; ``wide=True`` uses the CPU's widest vectors;
    ``keep=True`` keeps the program whole in our cache directory, for functions called by position.

    Examples
    --------
    >>> double = outer_jit(lambda x: 2 * x)
    >>> float(double(np.float32(3)))
    6.0
    """

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        _collection.pause()  # until `call` returns
        return function(*args, **kwargs)

    def options() -> dict[str, Any] | None:
        out = compiler_options()
        if out is not None and not hoist:
            out = {**out, **_NO_HOISTING}
        if out is not None and wide:
            out = {**out, **_WIDE_VECTORS}
        return out

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return jax.jit(traced, compiler_options=options(), **jit_options)

    kept = Kept(traced, options, _private_directory, afresh) if keep else None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = _collection.mine
        try:
            program = kept.find(args) if kept is not None else None
            return compiled()(*args, **kwargs) if program is None else program()
        finally:
            _collection.resume(before)

    return call


def _private_directory() -> str | None:
    """The directory that is ours, where programs may be kept whole."""
    present = _setting("compilation_cache_dir")
    return (
        present if present and present == _ours and _setting("enable_compilation_cache") else None
    )
