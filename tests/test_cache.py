"""The persistent compilation cache: private, pruned, silent where it cannot work, never forced."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlme import _cache
from jaxnlme._precision import host64

DOOR = """
import jax, jax.numpy as jnp
from jaxnlme._precision import host64
from jaxnlme._cache import outer_jit
hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
kernel = outer_jit(lambda x: jnp.sin(x) @ jnp.cos(x))
before = jax.config.jax_compilation_cache_dir
host64(lambda: kernel(jnp.arange(8.0)))()
print(before, jax.config.jax_compilation_cache_dir, len(hits))
"""


def run_door(**environment: str) -> list[str]:
    """Run a door in a fresh process with warnings as errors; return the three printed words."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "JAXNLME_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DOOR],
        capture_output=True,
        text=True,
        env={**env, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.split()


def test_a_door_fills_a_private_folder_that_the_next_process_reads(tmp_path: Path) -> None:
    before, directory, hits = run_door(XDG_CACHE_HOME=str(tmp_path))
    assert before == "None"
    assert Path(directory).parent == tmp_path / "jaxnlme"
    assert hits == "0"
    assert list(Path(directory).glob("*-cache"))
    if os.name == "posix":
        assert Path(directory).stat().st_mode & 0o777 == 0o700
        Path(directory).chmod(0o755)  # as JAX itself makes it: to be closed again
    assert int(run_door(XDG_CACHE_HOME=str(tmp_path))[2]) >= 1
    if os.name == "posix":
        assert Path(directory).stat().st_mode & 0o777 == 0o700


def test_the_key_does_not_hold_the_folders_path(tmp_path: Path) -> None:
    """With JAX's default a moved folder misses: the path enters the key."""
    run_door(XDG_CACHE_HOME=str(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert int(run_door(XDG_CACHE_HOME=str(tmp_path / "b"))[2]) >= 1


def test_switched_off_by_the_environment(tmp_path: Path) -> None:
    assert run_door(XDG_CACHE_HOME=str(tmp_path), JAXNLME_CACHE="0")[1] == "None"
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_written_neither_fails_nor_warns(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a folder cannot be made below a file, not even by root")
    assert run_door(XDG_CACHE_HOME=str(blocked))[1] == "None"
    if os.name == "posix":
        assert run_door(HOME=str(blocked))[1] == "None"


def test_the_users_own_directory_is_left_alone(tmp_path: Path) -> None:
    own = str(tmp_path / "own")
    before, after, _ = run_door(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=own)
    assert before == after == own
    assert not (tmp_path / "jaxnlme").exists()


@pytest.fixture
def no_cache_dir() -> object:
    """No directory set by the user, and JAX's settings restored afterwards."""
    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
        "jax_persistent_cache_enable_xla_caches",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    ours = _cache._ours
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    _cache._ours = ours
    _cache.reset_jax_cache()


@pytest.mark.usefixtures("no_cache_dir")
def test_explicit_path_is_used_changed_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAXNLME_CACHE", raising=False)
    assert _cache.enable_cache(tmp_path / "one") == tmp_path / "one"
    assert _cache.enable_cache() == tmp_path / "one"
    assert _cache.enable_cache(tmp_path / "two") == tmp_path / "two"
    with pytest.raises(_cache.ModelSpecError, match="cannot be used"):
        (tmp_path / "file").write_text("")
        _cache.enable_cache(tmp_path / "file" / "below")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert _cache.enable_cache() == tmp_path / "own"
    with pytest.raises(_cache.ModelSpecError, match="already set to"):
        _cache.enable_cache(tmp_path / "three")


@pytest.mark.usefixtures("no_cache_dir")
@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(_cache.ModelSpecError, match="other users can write"):
        _cache.enable_cache(shared)


def test_prune_keeps_the_newest_and_drops_empty_files(tmp_path: Path) -> None:
    for age, size in [(1, 40), (2, 40), (3, 40), (0, 0)]:
        item = tmp_path / f"{age}-cache"
        item.write_bytes(bytes(size))
        os.utime(item, (1e9 - age, 1e9 - age))
    _cache._prune(tmp_path, 100)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["1-cache", "2-cache"]
    _cache._prune(tmp_path / "missing", 100)


def test_compiler_options_are_accepted_by_this_xla() -> None:
    options = _cache.compiler_options()
    if jax.default_backend() == "cpu":
        assert options is None or _cache._accepts(options)
    else:
        assert options is None
    assert not _cache._accepts({"xla_cpu_there_is_no_such_option": True})


def test_outer_jit_compiles_once_and_works_in_a_door_under_the_users_jit() -> None:
    traces = []

    def kernel(x: jax.Array, *, power: int) -> jax.Array:
        traces.append(1)
        return x**power

    compiled = _cache.outer_jit(kernel, static_argnames="power")
    door = host64(lambda: compiled(jnp.arange(3.0), power=2))
    door()
    door()
    assert len(traces) == 1
    for _ in range(2):  # its own context there, so one more trace, however many jits follow
        out = jax.jit(lambda x: x + door().astype("float32"))(jnp.zeros(3, "float32"))
        np.testing.assert_array_equal(out, [0, 1, 4])
    assert len(traces) == 2


def test_collection_is_paused_for_all_threads_that_trace() -> None:
    """Two traces that overlap: the first to end leaves collection off, the last one turns it on again."""
    pauses = _cache._collection
    assert gc.isenabled()
    pauses.pause()
    other = threading.Thread(target=lambda: (pauses.pause(), pauses.resume(0)))
    other.start()
    other.join()
    assert not gc.isenabled()
    pauses.resume(0)
    assert gc.isenabled()
