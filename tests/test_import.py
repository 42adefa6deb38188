"""`import jaxnlme` is light, and its lazy names agree with what is really there."""

from __future__ import annotations

import ast
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

import jaxnlme as jn

HEAVY = "pandas polars pyarrow narwhals formulaic matplotlib scipy.stats blackjax diffrax optax"
STACK = "import jax, equinox, lineax, optimistix"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("first", ["import jaxnlme", "import jaxnlme as jn; jn.RESULTS"])
def test_import_starts_no_backend_and_loads_nothing_heavy(first: str) -> None:
    code = f"""{first}
import sys
heavy = [name for name in {HEAVY.split()!r} if name in sys.modules]
started = False
if "jax" in sys.modules:
    from jax._src import xla_bridge
    started = xla_bridge.backends_are_initialized()
print(heavy, started)"""
    assert python(code) == "[] False"


@pytest.mark.slow
def test_import_of_everything_costs_little_more_than_the_jax_stack() -> None:
    """All that issue-built doors load, in interleaved fresh processes; noise: three attempts."""
    ours = "import jaxnlme as jn; jn.fit_nlme, jn.nlmefit, jn.nlme, jn.RESULTS"
    python(ours), python(STACK)  # byte code and file cache
    for attempt in range(3):
        times: dict[str, list[float]] = {STACK: [], ours: []}
        for _ in range(5):
            for code, spent in times.items():
                start = time.perf_counter()
                python(code)
                spent.append(time.perf_counter() - start)
        ratio = statistics.median(times[ours]) / statistics.median(times[STACK])
        print(f"attempt {attempt}: import ratio {ratio:.3f}")
        if ratio <= 1.25:
            return
    pytest.fail(f"import jaxnlme costs {ratio:.2f} times {STACK!r}; allowed 1.25")


def test_every_public_name_resolves_and_is_listed() -> None:
    for name in jn.__all__:
        assert getattr(jn, name) is not None
    assert set(jn._LAZY) <= set(jn.__all__)
    assert set(jn.__all__) <= set(dir(jn))
    assert not jn._NOT_BUILT & set(jn.__all__)


def test_type_checkers_see_the_lazy_names() -> None:
    tree = ast.parse(Path(jn.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(jn._LAZY)


def test_names_of_later_issues_say_so() -> None:
    with pytest.raises(jn.ModelSpecError, match="fit_gam is not built yet"):
        jn.fit_gam


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(AttributeError, match="Did you mean 'fit_nlme'"):
        jn.fit_nmle


@pytest.mark.skipif(os.environ.get("JAXNLME_TYPECHECK") == "0", reason="switched off by hand")
def test_shapes_and_types_are_checked_at_run_time_here() -> None:
    with pytest.raises(TypeCheckError, match="name"):
        jn.datasets.load(3)
