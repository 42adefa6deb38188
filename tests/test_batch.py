"""Batches: stacking pads without changing a fit, lanes do not touch each other, one program."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnlme as jn
from jaxnlme.covariance import Covariance, CovarianceBlock
from jaxnlme.design.groups import group_layout
from jaxnlme.error_models import as_error_model
from jaxnlme.nlme.problem import NLMEProblem, StructuralModel, free_all
from jaxnlme.numerics import bijectors

TRACES = {"decay": 0, "root": 0}


def decay(phi, x):
    TRACES["decay"] += 1
    return phi[0] * jnp.exp(-phi[1] * x[:, 0])


def growth(phi, x):
    return phi[0] * jnp.exp(phi[1] * x[:, 0])


def data_set(seed: int, *, groups: int = 6, rows: int = 5, **changes: Any) -> NLMEProblem:
    """Simulated decay curves; numpy arrays, both axes padded to 8."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(groups), rows)
    time = np.tile(np.linspace(0.5, 5.0, rows), groups)
    level = 10 * np.exp(0.3 * rng.normal(size=groups))[codes]
    y = level * np.exp(-0.4 * time) + 0.2 * rng.normal(size=time.size)
    layout = group_layout(codes, range(groups), pad=changes.pop("pad", True))
    log = bijectors.BY_NAME["log"]
    fields = {
        "y": layout.pack(y),
        "weights": layout.pack(np.ones_like(y), fill=0.0),
        "x": layout.pack(time[:, None]),
        "v": None,
        "A": np.eye(2)[None, None],
        "B": np.eye(2)[None, None][..., :1],
        "beta0": np.log([9.0, 0.5]),
        "free": jax.tree.map(np.asarray, free_all(2, 1, 1)),
        "model": StructuralModel(decay, ("level", "rate"), kind="matlab"),
        "transforms": (log, log),
        "covariance": Covariance((CovarianceBlock(((1,),)),)),
        "error_model": as_error_model("constant"),
    }
    return NLMEProblem(**{**fields, **changes})


def foce(**options: Any):
    """Make a partial anew each time, as users do."""
    return functools.partial(jn.nlme.fit, method=jn.nlme.FOCE(), **options)


def lane(tree: Any, k: int) -> Any:
    return jax.tree.map(lambda a: np.asarray(a)[k], tree)


def assert_identical(a: Any, b: Any) -> None:
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def assert_close(a: Any, b: Any, tolerance: float) -> None:
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


# A fit without statistics: Newton's square root, as many steps as the lane needs.


def root(problem: dict, tolerance: float = 1e-12, power: int = 2, label: str = "") -> dict:
    TRACES["root"] += 1

    def body(carry):
        z, steps = carry
        return z - (z**power - problem["a"]) / (power * z ** (power - 1)), steps + jnp.int32(1)

    def more(carry):
        z, steps = carry
        return (jnp.abs(z**power - problem["a"]) > tolerance * problem["a"]) & (steps < 60)

    z, steps = jax.lax.while_loop(more, body, (problem["start"], jnp.zeros((), jnp.int32)))
    return {"z": z, "steps": steps}


def roots(lanes: int, dtype: Any = float) -> dict:
    a = np.linspace(2.0, 50.0, lanes).astype(dtype)
    return {"a": a, "start": np.ones(lanes, dtype)}


# --- stack ----------------------------------------------------------------------------------


def test_stack_gives_every_array_a_leading_axis_and_keeps_the_nouns() -> None:
    problems = [data_set(1), data_set(2)]
    whole = jn.batch.stack(problems)
    assert isinstance(whole, NLMEProblem)
    assert whole.model == problems[0].model
    for part, leaf in zip(jax.tree.leaves(problems[1]), jax.tree.leaves(whole), strict=True):
        assert isinstance(leaf, np.ndarray)
        assert leaf.dtype == part.dtype
        np.testing.assert_array_equal(leaf[1], part)


def test_stack_pads_with_weight_zero_and_copies_of_real_rows() -> None:
    small = data_set(1, groups=3, rows=4, pad=False)
    varying = data_set(2, groups=5, rows=6, pad=False, v=np.arange(10.0).reshape(5, 2))
    small = eqx.tree_at(
        lambda p: p.v, small, np.array([[1.0, 2], [3, 4], [5, 6]]), is_leaf=lambda v: v is None
    )
    varying = eqx.tree_at(lambda p: p.A, varying, np.tile(np.eye(2), (5, 1, 1, 1)))
    whole = jn.batch.stack([small, varying])
    assert whole.y.shape == (2, 5, 6)
    assert whole.x.shape == (2, 5, 6, 1)
    assert whole.A.shape == (2, 5, 1, 2, 2)  # constant over rows in both
    assert whole.B.shape == (2, 1, 1, 2, 1)
    expected = np.zeros((5, 6))
    expected[:3, :4] = 1
    np.testing.assert_array_equal(whole.weights[0], expected)
    np.testing.assert_array_equal(whole.x[0, :3, 4:, 0], np.tile(small.x[:, :1, 0], (1, 2)))
    np.testing.assert_array_equal(whole.x[0, 3, :4], small.x[0])
    np.testing.assert_array_equal(whole.v[0, 3:], [[1.0, 2], [1, 2]])
    np.testing.assert_array_equal(whole.y[1], varying.y)


def test_stack_pads_groups_to_whole_chunks() -> None:
    whole = jn.batch.stack([data_set(1, groups=3, chunk=2, pad=False) for _ in range(2)])
    assert whole.y.shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"model": StructuralModel(growth, ("level", "rate"), kind="matlab")}, "model.function"),
        ({"error_model": as_error_model("proportional")}, "error_model is a Proportional"),
        ({"error_model": as_error_model("power")}, "error_model is a Power against a Constant"),
        ({"chunk": 4}, "chunk is 4 against 512"),
        ({"covariance": Covariance((CovarianceBlock(((1,),), 2),))}, "covariance"),
        ({"A": np.ones((1, 1, 2, 3)), "beta0": np.zeros(3)}, r"A has shape \(1, 1, 2, 3\)"),
        ({"B": np.eye(2)[None, None]}, r"B has shape \(1, 1, 2, 2\)"),
        ({"v": np.zeros((8, 1))}, "v is a ndarray against a NoneType"),
        ({"beta0": np.zeros(2, "f4")}, "beta0 is of type float32 against float64"),
    ],
)
def test_problems_of_different_models_are_refused_by_name(other: dict, named: str) -> None:
    with pytest.raises(jn.ModelSpecError, match=f"problems 0 and 1 .*{named}"):
        jn.batch.stack([data_set(1, **other), data_set(2)])


def test_stack_refuses_nothing_and_one_problem() -> None:
    with pytest.raises(jn.DataError, match="empty"):
        jn.batch.stack([])
    with pytest.raises(jn.ModelSpecError, match=r"stack\(\[problem\]\)"):
        jn.batch.stack(data_set(1))
    with pytest.raises(jn.ModelSpecError, match=r"entries \['a'\] against \['b'\]"):
        jn.batch.stack([{"a": np.zeros(1)}, {"b": np.zeros(1)}])


def test_stack_of_python_numbers_keeps_the_width_of_the_arrays() -> None:
    whole = jn.batch.stack([{"y": np.zeros(2, "f4"), "scale": s} for s in (1.0, 2.0)])
    assert whole["scale"].dtype == np.float32
    assert whole["scale"].tolist() == [1.0, 2.0]


# --- fit_many -------------------------------------------------------------------------------


@pytest.mark.x64
def test_lanes_equal_single_fits_and_a_bad_lane_harms_no_other() -> None:
    problems = [data_set(k, groups=4 + k % 3) for k in range(5)]
    whole = jn.batch.stack(problems)
    fits = jn.batch.fit_many(foce(), whole)
    assert fits.params.beta.shape == (5, 2)
    for k, problem in enumerate(problems):
        alone = foce()(problem)
        one = lane(fits, k)
        assert int(one.result._value) == int(alone.result._value) == 0
        # The same arithmetic, fused differently: rounding, not convergence (the tolerance of the
        # stopping rule is 1e-9 in the decrement), so the steps agree too.
        assert_close(one.params, alone.params, 1e-10)
        assert_close(one.stats["log_likelihood"], alone.stats["log_likelihood"], 1e-10)
        assert int(one.stats["num_steps"]) == int(alone.stats["num_steps"])

    y = whole.y.copy()
    y[2, 0, 0] = np.nan
    spoilt = jn.batch.fit_many(foce(), eqx.tree_at(lambda p: p.y, whole, y))
    assert int(lane(spoilt, 2).result._value) != 0
    for k in (0, 1, 3, 4):
        assert_identical(lane(spoilt, k), lane(fits, k))


@pytest.mark.x64
def test_a_list_of_problems_of_different_size_is_stacked() -> None:
    small, large = data_set(1, groups=4, rows=5, pad=False), data_set(2, groups=8, rows=8)
    fits = jn.batch.fit_many(foce(), [small, large])
    alone = jn.batch.fit_many(foce(), [data_set(1, groups=4, rows=5), large])  # padded beforehand
    assert_identical(fits, alone)


@pytest.mark.x64
def test_new_data_and_equal_options_compile_nothing_new() -> None:
    jn.batch.fit_many(foce(max_steps=30), jn.batch.stack([data_set(1), data_set(2)]))
    before = TRACES["decay"]
    again = jn.batch.fit_many(foce(max_steps=30), jn.batch.stack([data_set(3), data_set(4)]))
    assert TRACES["decay"] == before
    assert np.all(np.asarray(again.result._value) == 0)

    loose = functools.partial(root, tolerance=1e-3)
    first = jn.batch.fit_many(loose, roots(4))
    before = TRACES["root"]
    same = jn.batch.fit_many(functools.partial(root, tolerance=1e-3), roots(4))
    tight = jn.batch.fit_many(functools.partial(root, tolerance=1e-9), roots(4))
    assert TRACES["root"] == before
    assert_identical(first, same)
    assert np.all(np.asarray(tight["steps"]) >= np.asarray(first["steps"]))
    assert np.any(np.asarray(tight["steps"]) > np.asarray(first["steps"]))
    cubic = jn.batch.fit_many(functools.partial(root, tolerance=1e-9, power=3), roots(4))
    assert TRACES["root"] > before  # an int is part of the program
    np.testing.assert_allclose(np.asarray(cubic["z"]) ** 3, roots(4)["a"], rtol=1e-8)


@pytest.mark.x64
@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 100])
def test_chunks_of_any_size_give_the_same_lanes(chunk: int | None) -> None:
    fits = jn.batch.fit_many(root, roots(7), chunk=chunk)
    assert fits["z"].shape == (7,)
    np.testing.assert_allclose(fits["z"], np.sqrt(roots(7)["a"]), rtol=1e-12)
    spoilt = {**roots(7), "a": np.where(np.arange(7) == 4, np.nan, roots(7)["a"])}
    other = jn.batch.fit_many(root, spoilt, chunk=chunk)
    assert_identical(lane(other, [0, 1, 2, 3, 5, 6]), lane(fits, [0, 1, 2, 3, 5, 6]))
    assert other["steps"][4] == 0


def test_float32_stays_float32_and_float64_is_refused_while_64_bit_is_off() -> None:
    fits = jn.batch.fit_many(functools.partial(root, tolerance=1e-6), roots(3, "f4"))
    assert fits["z"].dtype == jnp.float32
    with pytest.raises(TypeError, match="float64 array of shape"):
        jn.batch.fit_many(root, roots(3))
    with pytest.raises(TypeError, match="float64 array of shape"):
        option = functools.partial(root, tolerance=np.array(1e-6))
        jn.batch.fit_many(option, roots(3, "f4"))


@pytest.mark.x64
def test_it_works_inside_jit_and_under_grad() -> None:
    inside = jax.jit(lambda p: jn.batch.fit_many(root, p)["z"])(roots(4))
    np.testing.assert_allclose(inside, np.sqrt(roots(4)["a"]), rtol=1e-12)

    def total(a):
        return jnp.sum(jn.batch.fit_many(jnp.square, a))

    np.testing.assert_allclose(jax.grad(total)(jnp.arange(3.0)), [0, 2, 4])


def test_bad_calls_say_what_to_do() -> None:
    with pytest.raises(jn.ModelSpecError, match=r"leading sizes are 2, 3.*stack"):
        jn.batch.fit_many(root, {"a": np.ones(2, "f4"), "start": np.ones(3, "f4")})
    with pytest.raises(jn.ModelSpecError, match="leading sizes are none"):
        jn.batch.fit_many(root, {"a": np.float32(1), "start": np.float32(1)})
    with pytest.raises(jn.DataError, match="leading axis is empty"):
        jn.batch.fit_many(root, roots(0, "f4"))
    with pytest.raises(jn.DataError, match="list of problems is empty"):
        jn.batch.fit_many(root, [])
    with pytest.raises(jn.ModelSpecError, match="chunk=0"):
        jn.batch.fit_many(root, roots(2, "f4"), chunk=0)
    with pytest.raises(jn.ModelSpecError, match="cannot be hashed"):
        jn.batch.fit_many(functools.partial(root, label={1, 2}), roots(2, "f4"))
    with pytest.raises(jn.ModelSpecError, match="shard is not built yet"):
        _ = jn.batch.shard


def test_devices_share_the_lanes_without_talking_to_each_other() -> None:
    """Three host devices in a process of its own: the number is fixed before the backend starts."""
    code = """
import functools, jax, numpy as np
from jax.sharding import AxisType
import jaxnlme as jn
from jaxnlme import batch

def root(problem, tolerance):
    def body(z):
        return 0.5 * (z + problem["a"] / z)
    return jax.lax.while_loop(lambda z: abs(z * z - problem["a"]) > tolerance, body, problem["a"])

fit = functools.partial(root, tolerance=1e-9)
assert len(jax.devices()) == 3
with jax.enable_x64(True):
    for lanes in (1, 2, 6, 7):
        problems = {"a": np.linspace(2.0, 9.0, lanes)}
        shared = batch.fit_many(fit, problems)
        assert shared.shape == (lanes,)
        one = batch._lane_mesh(None, 1)
        np.testing.assert_array_equal(shared, batch.fit_many(fit, problems, mesh=one))
    explicit = jax.make_mesh((3,), ("d",), axis_types=(AxisType.Explicit,))
    np.testing.assert_array_equal(shared, batch.fit_many(fit, problems, mesh=explicit))
    problems = {"a": np.linspace(2.0, 9.0, 6)}
    args = (problems, [1e-9], *batch._split(fit)[::2], 1, batch._lane_mesh(None, 6))
    text = jax.jit(batch._run, static_argnums=(2, 3, 4, 5)).lower(*args).compile().as_text()
    assert "while" in text
    for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"):
        assert word not in text, word
"""
    flags = "--xla_force_host_platform_device_count=3"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
