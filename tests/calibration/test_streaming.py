"""Runs that keep moments: the same numbers as from the draws, whatever the cuts, files and ensembles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats as st
from calibration import small

from jaxnlme import ModelSpecError, SamplingWarning, SerializationError
from jaxnlme.calibration import Chain, StopAtMCSE, StreamedMoments, sample, streaming

QUIET = {"progress": False}
LEVELS = [0.025, 0.25, 0.5, 0.75, 0.975]


def correlated(x):
    """Normal with sds 1 and 0.5 sqrt(2), covariance 0.5."""
    return -0.5 * (x[0] ** 2 + (x[1] - 0.5 * x[0]) ** 2 / 0.25)


COVARIANCE = np.array([[1, 0.5], [0.5, 0.5]])


def starts(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal([0, 0], COVARIANCE, size=n)


def numbers(found: StreamedMoments) -> list[np.ndarray]:
    return [np.asarray(found._numbers[k]) for k in sorted(found._numbers)]


def test_moments_are_those_of_the_draws() -> None:
    """Mean and covariance to rounding; quantiles to 0.2 % of an sd (bins of 0.7 %, interpolated)."""
    options = {
        "init": starts(800),
        "n_ensembles": 4,
        "num_steps": 600,
        "thin": 3,
        "key": 2,
        **QUIET,
    }
    chain = sample(correlated, **options)
    found = sample(correlated, store="moments", discard=100, **options)
    flat = chain.flat_samples(34)  # the first record from step 100 on is that of step 102
    assert found.n_draws == len(flat) == 166 * 800
    np.testing.assert_allclose(found.mean, flat.mean(0), atol=1e-13)
    np.testing.assert_allclose(found.cov, np.cov(flat.T), rtol=1e-12)
    np.testing.assert_allclose(found.sd, flat.std(0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(found.quantile(LEVELS), np.quantile(flat, LEVELS, axis=0), atol=2e-3)
    assert found.quantile(0.5).shape == (2,)
    per = [chain.samples[34:, chain.ensemble == k].mean((0, 1)) for k in range(4)]
    np.testing.assert_allclose(found.ensemble_means, per, atol=1e-13)
    assert found.log_prob == pytest.approx(chain.flat_log_probs(34).mean(), rel=1e-12)
    assert found.acceptance_fraction == pytest.approx(chain.mean_acceptance_rate(), rel=1e-12)
    np.testing.assert_array_equal(found.state.positions, chain.state.positions)
    error = np.std(per, axis=0, ddof=1) / 2
    np.testing.assert_allclose(list(found.mcse().values()), error, rtol=1e-12)


def test_moments_are_the_exact_ones_of_a_gaussian() -> None:
    """8 ensembles: whitened means within their errors (Hotelling, p > 1e-3), covariance 3 %, quantiles 0.03."""
    found = sample(correlated, init=starts(8 * 256), n_ensembles=8, num_steps=900, moves="de",
                   store="moments", discard=200, key=5)  # fmt: skip
    means = found.ensemble_means
    t2 = 8 * found.mean @ np.linalg.solve(np.cov(means.T), found.mean)
    assert st.f.sf(t2 * 6 / (7 * 2), 2, 6) > 1e-3
    np.testing.assert_allclose(found.cov, COVARIANCE, rtol=0.03)
    exact = st.norm.ppf(LEVELS)[:, None] * np.sqrt(np.diag(COVARIANCE))
    np.testing.assert_allclose(found.quantile(LEVELS), exact, atol=0.03)
    assert found.is_converged()
    table = found.summary().set_index("parameter")
    assert table.loc["x1", "sd"] == pytest.approx(np.sqrt(0.5), rel=0.03)
    assert {"mcse", "median", "r_hat", "ess"} <= set(table.columns)


@pytest.mark.parametrize("walkers", [8, 20_000])
def test_cuts_and_checkpoints_change_no_bit(tmp_path: Path, walkers: int) -> None:
    """Groups of 256 and of one record; stopped in the middle of a group and of a thinning interval."""
    s = small.sampler(n_walkers=walkers)
    state = s.initialize("ball", center=[0, 2], radius=[1.0, 0.3], key=1)
    options = {"store": "moments", "discard": 5, "thin": 2, **QUIET}
    whole = s.run(state, 60, **options)
    path = tmp_path / "run"
    s.run(state, 23, checkpoint_path=path, checkpoint_every=7, **options)
    resumed = small.sampler(n_walkers=walkers).resume(path, 37, checkpoint_every=10, **QUIET)
    read = StreamedMoments.load(path)
    for other in (resumed, read):
        for a, b in zip(numbers(other), numbers(whole), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(resumed.state.positions, whole.state.positions)
    np.testing.assert_array_equal(read.quantile(LEVELS), whole.quantile(LEVELS))
    assert read.acceptance_fraction == whole.acceptance_fraction
    assert not list(path.glob("*.f64")) or (path / "chain.f64").stat().st_size == 0


def test_a_stopped_run_goes_on_from_where_it_stopped(tmp_path: Path) -> None:
    s = small.sampler()
    state = s.initialize("ball", center=[0, 2], radius=[1.0, 0.3], key=1)
    calls = []

    def enough(info):
        calls.append(info["iteration"])
        return len(calls) == 3

    short = s.run(state, 100, store="moments", checkpoint_path=tmp_path / "run", callback=enough,
                  callback_every=11, **QUIET)  # fmt: skip
    assert short.info["stopped_by"] == "callback"
    resumed = s.resume(tmp_path / "run", 67, **QUIET)
    for a, b in zip(
        numbers(resumed), numbers(s.run(state, 100, store="moments", **QUIET)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_histograms_follow_the_draws() -> None:
    """First records far away and wide: the axis moves, counts are kept, and coarse bins are told."""
    rng = np.random.default_rng(0)
    stream = streaming.Stream(1, 1000, 1, 0, 1, 0)
    wide = 50 + 100 * rng.normal(size=(8, 1000, 1))
    narrow = rng.normal(size=(3000, 1000, 1))
    for block in (wide, narrow):
        for part in np.array_split(block, 7):
            stream.add(samples=part, log_probs=part[..., 0])
    found = StreamedMoments(stream.finished(), ["x"])
    assert found._numbers["histogram"].sum() == pytest.approx(3_008_000, abs=1e-3)
    everything = np.concatenate([wide, narrow]).ravel()
    assert found.sd[0] == pytest.approx(everything.std(ddof=1), rel=1e-12)
    np.testing.assert_allclose(found.quantile([0.25, 0.5, 0.75])[:, 0],
                               np.quantile(everything, [0.25, 0.5, 0.75]), atol=0.02)  # fmt: skip
    assert found.drift()["x"] < -0.5
    assert any("still changes" in told for told in found.problems())
    cauchy = streaming.Stream(1, 1000, 1, 0, 1, 0)
    draws = rng.standard_cauchy(size=(500, 1000, 1))
    cauchy.add(samples=draws, log_probs=draws[..., 0])
    quantiles = StreamedMoments(cauchy.finished(), ["x"]).quantile([0.01, 0.5, 0.99])[:, 0]
    np.testing.assert_allclose(
        quantiles, np.quantile(draws, [0.01, 0.5, 0.99]), rtol=5e-3, atol=5e-3
    )
    late = streaming.Stream(1, 1000, 1, 0, 1, 0)
    late.add(samples=1000 * narrow[:1], log_probs=narrow[:1, :, 0])
    late.add(samples=np.tile(narrow[:100], (1, 1, 1)), log_probs=narrow[:100, :, 0])
    late.numbers["scale"] = np.array([1000.0])
    far = StreamedMoments(late.finished(), ["x"])
    far.sd = np.ones(1)
    with pytest.warns(SamplingWarning, match="larger discard"):
        far.quantile(0.3)


def test_errors_of_one_ensemble_come_from_batches() -> None:
    """Independent draws: ESS is their number within 20 %; an autoregression of 0.9 has a 19th of it."""
    rng = np.random.default_rng(1)
    for rho, factor in ((0.0, 1.0), (0.9, 1 / 19)):
        x = rng.normal(size=(40_000, 8, 1))
        for k in range(1, len(x)):
            x[k] = rho * x[k - 1] + np.sqrt(1 - rho**2) * x[k]
        stream = streaming.Stream(1, 8, 1, 0, 1, 0)
        stream.add(samples=x, log_probs=x[..., 0])
        found = StreamedMoments(stream.finished(), ["x"])
        assert found.ess()["x"] == pytest.approx(
            320_000 * factor, rel=0.25
        )  # sd 8 % for 156 batches
        assert found.r_hat()["x"] < 1.001
        assert abs(found.drift()["x"]) < 0.03


def test_stop_rule_by_the_error_between_ensembles() -> None:
    found = sample(correlated, init=starts(4 * 200), n_ensembles=4, num_steps=20_000, store="moments",
                   stop=StopAtMCSE(fraction=0.02, check_every=200), key=1)  # fmt: skip
    assert found.info["stopped_by"] == "stop rule"
    assert min(found.ess().values()) >= 2500
    assert found.n_draws < 20_000 * 800


SCRIPT = """
import resource, sys
import numpy as np
from jaxnlme.calibration import sample

def log_prob(x):
    return -0.5 * (x[0] ** 2 + x[1] ** 2)

init = np.random.default_rng(0).normal(size=(200_000, 2))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

sample(log_prob, init=init, num_steps=3, store="moments", progress=False)
before = peak()
found = sample(log_prob, init=init, num_steps=25, store="moments", progress=False)
print(peak() - before, found.n_draws)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource")
def test_memory_does_not_grow_with_the_steps() -> None:
    """200,000 walkers, 25 steps: their draws would be 80 MB; MB of growth are printed."""
    env = {**os.environ, "JAXNLME_TYPECHECK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, env=env
    )
    assert done.returncode == 0, done.stderr
    growth, draws = map(int, done.stdout.split())
    assert draws == 5_000_000
    assert growth < 30


def test_what_moments_cannot_do_is_told(tmp_path: Path) -> None:
    s = small.sampler()
    state = s.initialize(key=1)
    with_blobs = small.sampler(blobs=lambda params, output: params["a"])
    cases = (
        (lambda: s.run(state, 5, store="moment"), "Did you mean 'moments'"),
        (lambda: s.run(state, 5, discard=3), "discard=3 is for store='moments'"),
        (lambda: s.run(state, 5, store="moments", discard=-1), "discard=-1"),
        (lambda: s.run(state, 5, store="moments", discard=9), "smaller discard"),
        (lambda: s.run(state, 5, store="moments", stop="tau"), "needs the draws"),
        (lambda: with_blobs.run(with_blobs.initialize(key=1), 5, store="moments"), "no blobs"),
        (lambda: sample(correlated, method="smc", init=starts(40), store="moments"), "has no use"),
        (lambda: s.run(state, 5, store="moments").quantile(1.2), "from 0 to 1"),
    )
    for call, says in cases:
        with pytest.raises(ModelSpecError, match=says):
            call()
    s.run(state, 5, store="moments", checkpoint_path=tmp_path / "m", **QUIET)
    s.run(state, 5, checkpoint_path=tmp_path / "d", **QUIET)
    with pytest.raises(SerializationError, match=r"StreamedMoments\.load"):
        Chain.load(tmp_path / "m")
    with pytest.raises(SerializationError, match=r"Chain\.load"):
        StreamedMoments.load(tmp_path / "d")
    with pytest.warns(SamplingWarning, match="has not converged"):
        s.run(state, 5, store="moments", **QUIET).summary()
