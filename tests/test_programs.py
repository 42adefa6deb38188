"""Programs kept whole: found where the text of everything static is known, and only there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nlme.build import theo_problem

from jaxnlme import _cache, _programs, error_models, nlme
from jaxnlme._programs import Unknown, describe
from jaxnlme.design.model_formula import FormulaModel
from jaxnlme.nlme.problem import StructuralModel

SSFOL = "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)"
NAMES = ("lKe", "lKa", "lCl")


class Mine(eqx.Module):
    x: jax.Array


def formula(text: str = SSFOL) -> StructuralModel:
    return StructuralModel(FormulaModel(text, NAMES), NAMES)


def test_describe_tells_static_parts_shapes_and_dtypes_apart():
    texts = [
        describe(v)
        for v in (
            formula(),
            formula(SSFOL.replace("Dose", "2*Dose")),
            nlme.FOCE(),
            nlme.FOCE(interaction=False),
            nlme.AGQ(3),
            nlme.AGQ(5),
            error_models.as_error_model("constant"),
            error_models.as_error_model("power"),
            np.zeros(3),
            np.zeros(4),
            np.zeros(3, np.float32),
            {"a": np.zeros(3)},
            {"b": np.zeros(3)},
            (1.0,),
            [1.0],
        )
    ]
    assert len(set(texts)) == len(texts)
    assert describe(formula()) == describe(formula())
    # Values of arrays and numbers are not part of a program.
    assert describe((np.zeros(3), 1.0)) == describe((np.ones(3), 2.0))


@pytest.mark.parametrize(
    "value",
    [
        theo_problem(),  # its model is a function of the tests
        StructuralModel(lambda p, x: p["a"], ("a",)),
        Mine(jnp.zeros(2)),
        {1: np.zeros(2)},
        object(),
    ],
    ids=["function", "lambda", "class", "key", "object"],
)
def test_what_another_process_may_not_have_is_refused(value):
    with pytest.raises(Unknown):
        describe(value)


def kept_in(function, options, directory):
    return _programs.Kept(function, options, directory, _cache.afresh)


def doubled(traces):
    def double(x):
        traces.append(x)
        return {"out": 2 * x["in"]}

    return double


def test_a_program_is_traced_once_and_found_again(tmp_path):
    traces: list = []

    def run(x, dtype: type = np.float32):
        kept = kept_in(
            doubled(traces), lambda: None, lambda: str(tmp_path)
        )  # a new process has a new one
        call = kept.find(({"in": np.asarray(x, dtype)},))
        assert call is not None
        return np.asarray(call()["out"])

    np.testing.assert_array_equal(run([1.0, 2.0]), [2, 4])
    np.testing.assert_array_equal(run([3.0, 4.0]), [6, 8])
    assert len(traces) == len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(run([1.0, 2.0, 3.0]), [2, 4, 6])
    np.testing.assert_array_equal(run([1, 2], np.int32), [2, 4])
    assert len(traces) == 3

    # A broken file is replaced.
    files = sorted(tmp_path.iterdir())
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    np.testing.assert_array_equal(run([5.0, 6.0]), [10, 12])
    assert len(traces) == 4
    assert sum(file.stat().st_size > 100 for file in tmp_path.iterdir()) == 1


def test_settings_that_change_the_bits_are_part_of_a_program(tmp_path):
    """JAX leaves the level of optimisation out of what tells its programs in memory apart."""
    traces: list = []
    kept = kept_in(doubled(traces), lambda: None, lambda: str(tmp_path))
    argument = ({"in": np.ones(2, np.float32)},)
    before = jax.config.read("jax_disable_most_optimizations")
    names = ("jax_enable_x64", "jax_disable_most_optimizations")
    assert all(_programs._setting(name) is not None for name in names)
    assert _programs._setting("jax_no_such_setting") is None
    try:
        for disable in (True, False, True):
            jax.config.update("jax_disable_most_optimizations", disable)
            assert kept.find(argument) is not None
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    assert len(traces) == len(list(tmp_path.iterdir())) == 2


def test_nothing_is_kept_where_it_must_not_be(tmp_path):
    traces: list = []
    argument = {"in": np.ones(2, np.float32)}
    assert kept_in(doubled(traces), lambda: None, lambda: None).find((argument,)) is None
    kept = kept_in(doubled(traces), lambda: None, lambda: str(tmp_path))
    with jax.debug_nans(True):
        assert kept.find((argument,)) is None
    call = kept.find((argument,))
    assert call is not None
    with jax.debug_nans(True):  # nor is one used that is there already
        assert kept.find((argument,)) is None
    for file in tmp_path.iterdir():
        file.unlink()
    traces.clear()
    assert kept.find((Mine(jnp.zeros(2)),)) is None
    seen = []
    jax.vmap(lambda x: seen.append(kept.find(({"in": x},))) or x)(jnp.ones((2, 2)))
    assert seen == [None]
    assert not traces and not list(tmp_path.iterdir())


def test_a_change_of_the_package_is_another_program(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("x = 1")
    monkeypatch.setattr(_programs, "__file__", str(tmp_path / "a.py"))
    before = _programs._stamp.__wrapped__()
    assert _programs._stamp.__wrapped__() == before
    os.utime(tmp_path / "a.py", ns=(1, 1))
    assert _programs._stamp.__wrapped__() != before


SCRIPT = """
import json, sys, jax, jaxnlme as jn, numpy as np
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **__: compiled.append(name) if "to_mlir" in name or "backend_compile" in name else None
)
theoph = jn.datasets.load("theoph")
model = "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)"
options = dict(group="Subject", fixed="lKe + lKa + lCl ~ 1", random="lKa + lCl ~ 1", covariance="diagonal",
               start={"lKe": -2.4, "lKa": 0.45, "lCl": -3.2}, progress=False)
out = {}
for method in sys.argv[1:]:
    fit = jn.fit_nlme(model, theoph, method=method, **options)
    out[method] = [float(fit.llf).hex(), *(float(v).hex() for v in np.asarray(fit.bse))]
out["compiled"] = len(compiled)
print(json.dumps(out))
"""


def test_a_new_process_fits_without_tracing_and_to_the_same_bits(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "JAXNLME_CACHE": "1", "JAX_PLATFORMS": "cpu"}

    def run(*methods, **extra):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *methods],
            env={**env, **extra}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    first, second = run("FOCE", "LME"), run("FOCE", "LME")
    assert first.pop("compiled") > 0
    assert second.pop("compiled") == 0
    assert first == second
    (folder,) = (tmp_path / "jaxnlme").iterdir()
    assert len(list(folder.glob("program-*"))) == 2
    assert folder.stat().st_mode & 0o077 == 0


def test_what_jax_has_in_its_cache_is_compiled_afresh(tmp_path):
    """A program that was read from there cannot be written down again."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    _cache.reset_jax_cache()
    argument = ({"in": np.ones(2, np.float32)},)
    try:
        # The program that Kept will trace, as JAX keeps it.
        traces: list = []
        jax.jit(lambda x: [doubled(traces)({"in": x})["out"]]).lower(
            *jax.tree.leaves(argument)
        ).compile()
        for k in range(3):
            folder = tmp_path / str(k)
            folder.mkdir()
            traces.clear()
            for _ in range(2):
                kept = kept_in(doubled(traces), lambda: None, lambda folder=folder: str(folder))
                call = kept.find(argument)
                assert call is not None
                np.testing.assert_array_equal(call()["out"], 2)
            assert len(traces) == 1
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        _cache.reset_jax_cache()
