"""Settings of the whole test run: runtime shape checks, rank promotion, float64 on request."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before jaxnlme is imported: only modules imported after the hook are checked.
if os.environ.get("JAXNLME_TYPECHECK", "1") != "0" and "jaxnlme" not in sys.modules:
    from jaxtyping import install_import_hook

    install_import_hook("jaxnlme", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _x64_marker(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of pure functions marked ``x64`` run in float64; doors need no mark."""
    if request.node.get_closest_marker("x64") is None:
        before = jax.config.jax_enable_x64
        yield
        assert jax.config.jax_enable_x64 == before, "the test left jax_enable_x64 changed"
        return
    with jax.enable_x64(True):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Enter the 64-bit context for one test."""
    with jax.enable_x64(True):
        yield


# Folders whose time is compilation, not running: there XLA leaves most of its optimisation out, which JAX has a
# setting for (a third of their time). Tests of what the compiled code must keep, bits and padding, stay as users
# have it, as do calibration, the examples, the pages and the demo. JAXNLME_OPTIMISED=1: every test.
_COMPILES = {"api", "contract", "diagnostics", "families", "glm", "nlme", "numerics", "results"}
# The last one has grids of nodes: running takes longer than compiling.
_AS_USERS_HAVE_IT = {"test_properties.py", "test_metamorphic.py", "test_exact_agq.py"}
_quick = False  # how the programs in memory were compiled


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile without optimisation where that costs more than it gains."""
    global _quick
    quick = request.path.parent.name in _COMPILES and request.path.name not in _AS_USERS_HAVE_IT
    quick = quick and os.environ.get("JAXNLME_OPTIMISED") != "1"
    before = jax.config.read("jax_disable_most_optimizations")
    if quick != _quick:
        # JAX finds a program in memory whatever it was compiled with, and the two differ in the last bit.
        jax.clear_caches()
        _quick = quick
    jax.config.update("jax_disable_most_optimizations", quick or before)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Studies take minutes each: they run on request."""
    if os.environ.get("JAXNLME_STUDIES") == "1":
        return
    reason = "a study of minutes: JAXNLME_STUDIES=1 runs it"
    for item in items:
        if item.get_closest_marker("study") is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


_MOST_MAPS = 30_000  # of 65,530 that Linux allows a process
_ran = 0


def pytest_runtest_teardown() -> None:
    """Let compiled programs go before their memory maps run out: XLA then crashes the process."""
    global _ran
    _ran += 1
    maps = Path("/proc/self/maps")
    if _ran % 10 == 0 and maps.exists():
        with maps.open("rb") as file:
            count = sum(1 for _ in file)
        if count > _MOST_MAPS:
            jax.clear_caches()
