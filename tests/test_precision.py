"""Doors compute in float64 and leave the caller's program as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlme._precision import check_precision, host64, to_host


@jax.jit
def _third(x: jax.Array) -> jax.Array:
    return x / 3


@host64
def third(x: object) -> jax.Array:
    return _third(jnp.asarray(x, dtype=float))


THIRD = np.float64(1) / 3  # exact in float64, wrong by 1e-8 in float32


def test_a_door_gives_numpy_float64_and_restores_the_flag() -> None:
    out = third(1.0)
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.float64
    assert out == THIRD
    assert not jax.config.jax_enable_x64
    assert jnp.ones(2).dtype == np.float32
    assert jax.random.normal(jax.random.key(0), (2,)).dtype == np.float32


def test_the_flag_is_restored_after_an_exception() -> None:
    @host64
    def broken() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        broken()
    assert not jax.config.jax_enable_x64


def test_float32_input_and_the_flag_already_on() -> None:
    assert third(jnp.float32(1)).dtype == np.float64
    with jax.enable_x64(True):
        assert third(1.0) == THIRD
        assert jax.config.jax_enable_x64


def test_threads_get_float64_too() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert all(out == THIRD for out in pool.map(third, [1.0] * 8))
    assert jnp.ones(1).dtype == np.float32


def test_a_door_under_the_users_jit_runs_once_on_host_data() -> None:
    calls = []

    @host64
    def door() -> jax.Array:
        calls.append(1)
        return _third(jnp.asarray(1.0))

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        return x + jnp.float32(door())

    program(jnp.float32(1)), program(jnp.float32(2))
    assert program(jnp.float32(0)).dtype == np.float32
    assert len(calls) == 1


@pytest.mark.parametrize("wrap", [jax.jit, jax.vmap, jax.grad], ids=["jit", "vmap", "grad"])
def test_traced_arguments_are_refused(wrap: object) -> None:
    with pytest.raises(TypeError, match="third takes data"):
        wrap(lambda x: third({"x": [x], 1: "mixed keys"}))(jnp.ones(()) if wrap is jax.grad else jnp.ones(2))  # type: ignore[operator]  # fmt: skip


def test_repeated_calls_do_not_trace_again() -> None:
    traces = []

    @jax.jit
    def kernel(x: jax.Array) -> jax.Array:
        traces.append(1)
        return x + 1

    door = host64(lambda x: kernel(jnp.asarray(x)))
    for value in (1.0, 2.0, 3.0):
        door(np.array([value]))
    assert len(traces) == 1


class Pair(NamedTuple):
    first: object
    second: object


class Module(eqx.Module):
    x: jax.Array
    label: str = eqx.field(static=True)


class Results:
    def __init__(self) -> None:
        self.x = np.ones(2)


def test_to_host_reaches_every_array_and_keeps_the_rest() -> None:
    results, key = Results(), jax.random.key(0)
    tree = {"z": [jnp.ones(2)], "a": Pair(jnp.zeros(()), "text"), 3: Module(jnp.ones(1), "m")}
    out = to_host({**tree, "results": results, "key": key, "none": None})
    assert list(out) == ["z", "a", 3, "results", "key", "none"]  # order kept, keys mixed
    assert isinstance(out["z"][0], np.ndarray)
    assert isinstance(out["a"], Pair)
    assert isinstance(out["a"].first, np.ndarray)
    assert isinstance(out[3].x, np.ndarray)
    assert out["results"] is results
    assert out["key"] is key
    assert out["none"] is None


def test_check_precision_refuses_float64_only_while_the_flag_is_off() -> None:
    good = {"x": np.float32([1]), "i": np.arange(2), "s": "text", "f": 1.0}
    check_precision(good, None, jax.random.key(0))
    with pytest.raises(TypeError, match="float64 array of shape"):
        check_precision(good, {"deep": [np.ones(3)]})
    with jax.enable_x64(True):
        wide = jnp.ones(3)
        check_precision(np.ones(3), wide)
    with pytest.raises(TypeError, match="enable_x64"):
        check_precision(wide)
