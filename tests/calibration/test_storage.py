"""Chain files: exact after a crash, refused when damaged or of another run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from calibration import small

from jaxnlme import SerializationError
from jaxnlme.calibration import (
    Chain,
    ChainStorage,
    EnsembleSampler,
    ModelRunner,
    Normal,
    ParameterSet,
    StudentTLikelihood,
    Uniform,
)

QUIET = {"progress": False}


def same(a: Chain, b: Chain) -> None:
    np.testing.assert_array_equal(a.samples, b.samples)
    np.testing.assert_array_equal(a.log_probs, b.log_probs)
    np.testing.assert_array_equal(a.acceptance_fractions, b.acceptance_fractions)
    np.testing.assert_array_equal(a.accepted, b.accepted)
    assert a.param_names == b.param_names
    assert a.thinning == b.thinning


@pytest.mark.parametrize(("every", "thin"), [(10, 1), (7, 3), (1000, 4)])
def test_resumed_is_bitwise_the_uninterrupted_chain(tmp_path: Path, every: int, thin: int) -> None:
    s = small.sampler()
    state = s.initialize(key=1)
    whole = s.run(state, 90, thin=thin, **QUIET)
    path = tmp_path / "run"
    s.run(state, 31, thin=thin, checkpoint_every=every, checkpoint_path=path, **QUIET)
    resumed = s.resume(path, 20, checkpoint_every=13, **QUIET)
    same(resumed, s.run(state, 51, thin=thin, **QUIET))
    fresh = small.sampler()  # as in another process
    resumed = fresh.resume(path, 39, **QUIET)
    same(resumed, whole)
    same(Chain.load(path), whole)
    np.testing.assert_array_equal(resumed.state.positions, whole.state.positions)


def test_mixes_and_ensembles_and_blobs_resume_too(tmp_path: Path) -> None:
    def blob(params, output):
        return {"sum": params["a"] + params["b"], "y": output["y"]}

    s = small.sampler(moves=["de", "snooker", "stretch"], adapt_steps=40, n_ensembles=3, blobs=blob)
    state = s.initialize(key=2)
    whole = s.run(state, 80, thin=2, **QUIET)
    path = tmp_path / "run"
    s.run(state, 33, thin=2, checkpoint_path=path, checkpoint_every=11, **QUIET)
    resumed = s.resume(path, 47, **QUIET)
    same(resumed, whole)
    for name in ("sum", "y"):
        np.testing.assert_array_equal(resumed.blobs[name], whole.blobs[name])
        np.testing.assert_array_equal(Chain.load(path).blobs[name], whole.blobs[name])
    assert resumed.info["move_weights"] == whole.info["move_weights"]
    np.testing.assert_array_equal(resumed.ensemble, np.repeat([0, 1, 2], 8))


def kill_and_resume(tmp_path: Path, times: int, seed: int) -> None:
    """Kill the same run again and again at random times until it is done."""
    script = Path(__file__).with_name("killed.py")
    steps, every, thin = 4000 * times, 50, 3
    path = tmp_path / "run"
    command = [sys.executable, str(script), str(path), str(steps), str(every), str(thin)]
    rng = np.random.default_rng(seed)
    kills = 0
    while kills < times:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        while not (path / "state.npz").is_file() and time.monotonic() - began < 120:
            time.sleep(0.01)
        before = ChainStorage(path).state()["sampler_iteration"]
        # Wait for its first own checkpoint, then strike anywhere in the following ones.
        while process.poll() is None and time.monotonic() - began < 120:
            if ChainStorage(path).state()["sampler_iteration"] > before:
                break
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.15)))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    left = ChainStorage(path).state()["sampler_iteration"]
    print(f"{kills} kills, the last at iteration {left} of {steps}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    s = small.sampler()
    whole = s.run(s.initialize(key=1), steps, thin=thin, **QUIET)
    same(Chain.load(path), whole)
    assert kills >= times // 2, f"the run was done after {kills} kills"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL")
@pytest.mark.slow
def test_killed_at_random_times_is_bitwise_the_uninterrupted_chain(tmp_path: Path) -> None:
    """Ten times; ``JAXNLME_KILLS=100`` for more (about 4 s each)."""
    kill_and_resume(tmp_path, int(os.environ.get("JAXNLME_KILLS", "10")), seed=1)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL")
def test_what_was_written_after_the_last_state_is_cut_off(tmp_path: Path) -> None:
    """The states a kill can leave: a longer file, a half record, a temporary state file."""
    s = small.sampler()
    state = s.initialize(key=1)
    whole = s.run(state, 60, **QUIET)
    for k, rest in enumerate((b"", b"abc", b"x" * 1000)):
        path = tmp_path / f"run{k}"
        s.run(state, 25, checkpoint_path=path, **QUIET)
        with open(path / "chain.f64", "ab") as file:
            file.write(rest)
        (path / ".state.npz.new").write_bytes(b"half")
        same(s.resume(path, 35, **QUIET), whole)


def test_the_file_is_what_the_header_says_and_maps_into_memory(tmp_path: Path) -> None:
    s = small.sampler()
    path = tmp_path / "run"
    chain = s.run(s.initialize(key=1), 20, checkpoint_path=path, **QUIET)
    header = json.loads((path / "chain.json").read_text())
    assert header["param_names"] == ["a", "b"]
    record = 8 * 2 + 8 + 8 + 1
    table = np.memmap(path / "chain.f64", dtype="<f8", mode="r").reshape(20, record)
    np.testing.assert_array_equal(table[:, :8], chain["a"])  # contiguous per parameter
    np.testing.assert_array_equal(table[:, 16:24], chain.log_probs)
    loaded = Chain.load(path)
    assert isinstance(loaded.samples.base, np.memmap | np.ndarray)
    assert loaded.r_hat() == chain.r_hat()


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    s = small.sampler()
    path = tmp_path / "run"
    s.run(s.initialize(key=1), 20, checkpoint_path=path, **QUIET)
    content = bytearray((path / "chain.f64").read_bytes())
    content[33 * 8 * 5 + 3] ^= 1
    (path / "chain.f64").write_bytes(content)
    with pytest.raises(SerializationError, match="record 5 is damaged"):
        Chain.load(path)
    (path / "chain.f64").write_bytes(content[: 33 * 8 * 4])
    with pytest.raises(SerializationError, match="20 records"):
        s.resume(path, 5)
    (path / "state.npz").write_bytes(b"nothing")
    with pytest.raises(SerializationError, match=r"state\.npz is damaged"):
        Chain.load(path)
    (path / "state.npz").unlink()
    with pytest.raises(SerializationError, match="no complete state"):
        s.resume(path, 5)
    (path / "chain.json").write_text("{")
    with pytest.raises(SerializationError, match="cannot be read"):
        Chain.load(path)
    with pytest.raises(SerializationError, match="holds no chain"):
        Chain.load(tmp_path / "nothing")


def test_a_pickled_state_is_refused(tmp_path: Path) -> None:
    s = small.sampler()
    path = tmp_path / "run"
    s.run(s.initialize(key=1), 5, checkpoint_path=path, **QUIET)
    np.savez(path / "state.npz", records=np.array([object()], dtype=object))
    with pytest.raises(SerializationError, match="damaged"):
        Chain.load(path)


OTHERS = {
    "parameters": lambda: EnsembleSampler(
        ParameterSet({"a": Normal(0.0, 4.0), "b": Uniform(-10.0, 10.0)}), small.target(),
        ModelRunner(small.line, times=small.TIMES), n_walkers=8),
    "target": lambda: EnsembleSampler(
        small.parameters(), small.target(small.VALUES + 0.1),
        ModelRunner(small.line, times=small.TIMES), n_walkers=8),
    "model": lambda: EnsembleSampler(
        small.parameters(), small.target(),
        ModelRunner(lambda q: {"y": q["a"] + 2 * q["b"] * small.TIMES}, times=small.TIMES),
        n_walkers=8),
    "likelihood": lambda: EnsembleSampler(
        small.parameters(), small.target(), ModelRunner(small.line, times=small.TIMES),
        StudentTLikelihood(4.0), n_walkers=8),
    "moves": lambda: small.sampler(moves="de"),
    "n_walkers": lambda: small.sampler(n_walkers=10),
    "n_ensembles": lambda: small.sampler(n_ensembles=2),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_another_configuration_is_refused_by_name(tmp_path: Path, what: str) -> None:
    """S05."""
    s = small.sampler()
    path = tmp_path / "run"
    s.run(s.initialize(key=1), 20, checkpoint_path=path, **QUIET)
    with pytest.raises(SerializationError, match=f"another run: .*{what}"):
        OTHERS[what]().resume(path, 5, **QUIET)
    same(s.resume(path, 5, **QUIET), s.run(s.initialize(key=1), 25, **QUIET))


def test_another_key_is_refused(tmp_path: Path) -> None:
    """S05."""
    s = small.sampler()
    path = tmp_path / "run"
    s.run(s.initialize(key=1), 20, checkpoint_path=path, **QUIET)
    with pytest.raises(SerializationError, match="key differs"):
        s.resume(path, 5, key=2)
    assert len(s.resume(path, 5, key=1, **QUIET)) == 25


def test_a_folder_that_cannot_be_written_leaves_the_old_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S04: no permission, and a disk that fills up in the middle."""
    s = small.sampler()
    state = s.initialize(key=1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SerializationError, match="cannot be written"):
        s.run(state, 5, checkpoint_path=tmp_path / "file" / "run", **QUIET)
    path = tmp_path / "run"
    s.run(state, 20, checkpoint_path=path, **QUIET)
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SerializationError, match=r"No space left.*old checkpoint is left intact"):
        s.resume(path, 30, **QUIET)
    monkeypatch.setattr(os, "fsync", real)
    same(Chain.load(path), s.run(state, 20, **QUIET))
    same(s.resume(path, 30, **QUIET), s.run(state, 50, **QUIET))


def test_a_chain_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    s = small.sampler()
    state = s.initialize(key=1)
    path = tmp_path / "run"
    s.run(state, 20, checkpoint_path=path, **QUIET)
    with pytest.raises(SerializationError, match=r"holds a chain already.*resume"):
        s.run(state, 20, checkpoint_path=path, **QUIET)
    s.run(state, 10, checkpoint_path=path, overwrite=True, **QUIET)
    assert len(Chain.load(path)) == 10


def test_save_load_append(tmp_path: Path) -> None:
    s = small.sampler()
    first = s.run(s.initialize(key=1), 30, **QUIET)
    second = s.run(first.state, 20, **QUIET)
    first.save(tmp_path / "c")
    same(Chain.load(tmp_path / "c"), first)
    before = (tmp_path / "c" / "chain.f64").read_bytes()
    second.append(tmp_path / "c")
    assert (tmp_path / "c" / "chain.f64").read_bytes().startswith(before)
    both = Chain.load(tmp_path / "c")
    np.testing.assert_array_equal(both.samples, first.merge(second).samples)
    np.testing.assert_allclose(
        both.acceptance_fractions, first.merge(second).acceptance_fractions, rtol=1e-12
    )
    with pytest.raises(SerializationError, match="thinning"):
        second.thin(2).append(tmp_path / "c")
    with pytest.raises(SerializationError, match="not written by a sampler"):
        s.resume(tmp_path / "c", 5)
    with pytest.raises(SerializationError, match="already"):
        first.save(tmp_path / "c")
