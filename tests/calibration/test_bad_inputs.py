"""The rows B01 to B03, S04 and S05 of reference/badinputs: class of the error, and what it must name."""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from calibration import small

from helpers import REFERENCE
from jaxnlme import ModelSpecError, SamplingWarning, SerializationError
from jaxnlme.calibration import (
    Chain,
    EnsembleSampler,
    ModelRunner,
    Normal,
    ParameterSet,
    Target,
    sample,
)

QUIET = {"progress": False}


def test_b01_no_density_at_any_start_names_what_is_to_blame() -> None:
    def logs(params):
        return {"y": jnp.log(params["a"] - 100) * jnp.ones(2), "z": params["b"] * jnp.ones(2)}

    target = (
        Target().add_variable("y", [0, 1], [0.1, 0.2], 1.0).add_variable("z", [0, 1], [0, 0], 1.0)
    )
    s = EnsembleSampler(ParameterSet({"a": Normal(), "b": Normal()}), target, ModelRunner(logs))
    with pytest.raises(ModelSpecError, match=r"likelihood of variable 'y' \(NaN at 32\).* a, b"):
        s.initialize(key=1)
    # As prior predictive of a plain Python model that always fails.
    plain = ModelRunner(model_factory=lambda q: 1 / 0, output_variables=["y"], times=small.TIMES)
    s = EnsembleSampler(small.parameters(), small.target(), plain, n_walkers=8)
    with pytest.raises(ModelSpecError, match=r"variable 'y' \(NaN at 8\)"):
        s.initialize(key=1)
    assert plain.failures > 8
    assert "ZeroDivisionError" in plain.last_failure
    with pytest.raises(ModelSpecError, match="-inf at every one of the 8 starts"):
        sample(lambda x: jnp.full((), -jnp.inf), init=np.random.default_rng(0).normal(size=(8, 2)))


def test_b02_chains_that_have_not_converged_warn_with_parameters_and_counts() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4, 2)) + np.arange(4)[:, None] * [1.0, 0.0]
    chain = Chain(x, np.zeros((60, 4)), ["ecs", "k"], info={"divergences": 7})
    with pytest.warns(SamplingWarning) as caught:
        chain.summary()
    (text,) = [str(w.message) for w in caught]
    for part in (r"R-hat above 1.01 for ecs (worst 1.", "ESS below 400 for ecs, k", "7 divergent"):
        assert part in text
    assert not chain.is_converged()


def test_b03_too_few_walkers_or_collinear_starts_name_the_minimum() -> None:
    five = ParameterSet({n: Normal() for n in "abcde"})
    for n_walkers in (2, 8):
        with pytest.raises(ModelSpecError, match=r"(minimum of 10 walkers|from 10 on)"):
            EnsembleSampler(five, small.target(), ModelRunner(small.line, times=small.TIMES),
                            n_walkers=n_walkers)  # fmt: skip
    s, x = small.sampler(), np.random.default_rng(0).normal(size=8)
    with pytest.raises(ModelSpecError, match=r"linearly dependent in a, b.*minimum is 4 walkers"):
        s.initialize("explicit", positions=np.column_stack([x, 3 - 2 * x]))
    with pytest.raises(ModelSpecError, match="linearly dependent"):
        sample(lambda v: -jnp.sum(v**2), init=np.column_stack([x, 3 - 2 * x]), num_steps=5)


def test_s04_a_folder_that_cannot_be_written_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = small.sampler()
    state, path = s.initialize(key=1), tmp_path / "run"
    s.run(state, 20, checkpoint_path=path, **QUIET)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            SerializationError, match=r"No space left.*old checkpoint is left intact"
        ):
            s.resume(path, 30, **QUIET)
    whole = s.run(state, 50, **QUIET)
    np.testing.assert_array_equal(Chain.load(path).samples, whole.samples[:20])
    np.testing.assert_array_equal(s.resume(path, 30, **QUIET).samples, whole.samples)
    (tmp_path / "file").write_text("")
    with pytest.raises(SerializationError, match="cannot be written"):
        s.run(state, 5, checkpoint_path=tmp_path / "file" / "run", **QUIET)


def test_s05_resuming_another_model_data_or_key_names_which_differs(tmp_path: Path) -> None:
    s, path = small.sampler(), tmp_path / "run"
    s.run(s.initialize(key=1), 20, checkpoint_path=path, **QUIET)

    def other(target, model) -> EnsembleSampler:
        return EnsembleSampler(small.parameters(), target, model, n_walkers=8)

    runner = ModelRunner(small.line, times=small.TIMES)
    with pytest.raises(SerializationError, match=r"another run: .*target"):
        other(small.target(small.VALUES + 1e-9), runner).resume(path, 5, **QUIET)
    half = ModelRunner(lambda q: {"y": q["a"] + 0.5 * q["b"] * small.TIMES}, times=small.TIMES)
    with pytest.raises(SerializationError, match=r"another run: .*model"):
        other(small.target(), half).resume(path, 5, **QUIET)
    with pytest.raises(SerializationError, match="key differs"):
        s.resume(path, 5, key=2, **QUIET)
    assert len(Chain.load(path)) == 20


def test_the_rows_are_those_of_the_list() -> None:
    """The list has no further rows of these areas."""
    import json

    found = json.loads((REFERENCE / "badinputs" / "bad_inputs.json").read_text())
    mine = {row["id"] for row in found if row["area"] == "bayes"}
    assert mine == {"B01", "B02", "B03"}
