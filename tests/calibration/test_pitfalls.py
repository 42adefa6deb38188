"""The pitfalls of ensemble samplers and their surroundings, one test each (WHERE says which)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calibration import posteriors, small

import jaxnlme.calibration.problem as problem
from jaxnlme import ModelSpecError
from jaxnlme.calibration import (
    Beta,
    Bound,
    Chain,
    Exponential,
    Gamma,
    HalfNormal,
    LogNormal,
    ModelRunner,
    Normal,
    ParameterSet,
    Target,
    TruncatedNormal,
    Uniform,
    make_posterior,
    sample,
)

QUIET = {"progress": False}

# pitfall -> file: tests
WHERE = {
    "halves in turn, the second against the new first half; walkers are never permuted":
        ("test_ensemble", "test_one_step_is_that_of_a_numpy_sampler_with_the_same_numbers"),
    "NaN and -inf are rejected, from -inf any finite point is accepted":
        ("test_ensemble", "test_nan_and_minus_infinity_are_rejected_and_recovered_from"),
    "both -inf is a rejection: walkers do not drift":
        ("test_pitfalls", "test_walkers_at_a_wall_do_not_drift"),
    "+inf raises": ("test_ensemble", "test_plus_infinity_raises_and_names_the_place"),
    "-inf starts are drawn again":
        ("test_ensemble", "test_starts_without_density_are_drawn_again_and_none_is_left"),
    "failures of plain Python models are counted":
        ("test_targets", "test_plain_python_models_give_the_chain_of_the_jax_model"),
    "walkers that never moved are reported and left out":
        ("test_chain", "test_walkers_that_never_move_are_told_and_left_out"),
    "duplicate, constant, dependent starts": ("test_ensemble", "test_starts_that_do_not_span_the_space_raise"),
    "ill-conditioned starts": ("test_pitfalls", "test_nearly_dependent_starts_raise"),
    "walkers < 2 d, odd walkers":
        ("test_ensemble", "test_fewer_walkers_than_twice_the_parameters_raise", "test_bad_options_of_the_sampler"),
    "exp(s) cosh(q) overflows": ("test_targets", "test_the_climate_model_is_scipys_and_fast_enough"),
    "densities are finite or -inf everywhere in the support":
        ("test_pitfalls", "test_densities_are_finite_or_minus_infinite_in_all_of_the_support"),
    "supports are closed at bounds": ("test_pitfalls", "test_bounds_belong_to_the_support"),
    "one compile per model, walkers, chunk; partial chunks are masked; data are arguments":
        ("test_ensemble", "test_one_program_for_any_number_of_steps_and_other_data"),
    "step keys are a function of the iteration":
        ("test_ensemble", "test_the_same_key_gives_the_same_bits_and_any_cut_too"),
    "resume is bitwise": ("test_storage", "test_resumed_is_bitwise_the_uninterrupted_chain"),
    "typed keys of any kind are stored": ("test_pitfalls", "test_keys_of_another_generator_resume_too"),
    "float64 whatever the flag": ("test_pitfalls", "test_chains_are_float64_whatever_the_flag"),
    "the tail after the last checkpoint is stored": ("test_pitfalls", "test_no_tail_is_lost"),
    "thin counts from the absolute iteration": ("test_ensemble", "test_thinning_counts_from_the_first_iteration"),
    "tau in raw steps, discard in stored ones":
        ("test_chain", "test_diagnostics_are_those_of_the_numerics_and_in_raw_steps"),
    "large ensembles in batches": ("test_pitfalls", "test_many_points_are_evaluated_in_batches"),
    "no pair tables": ("test_pitfalls", "test_memory_of_differential_evolution_is_linear_in_walkers"),
    "reference period without observation raises; relative errors of zeros or anomalies raise":
        ("test_targets", "test_bad_input_is_named"),
    "the model's reference is at the observed times inside the period":
        ("test_pitfalls", "test_the_reference_mean_is_over_the_observed_times"),
    "random search draws the prior, not the bounds": ("test_point", "test_wide_priors_are_sampled_by_their_quantiles"),
    "latin hypercubes by quantiles": ("test_priors", "test_latin_hypercube_hits_every_stratum_once"),
    "the same bits for any number of devices and workers":
        ("test_pitfalls", "test_devices_change_no_bit", "test_workers_change_no_bit"),
    "rows of the frame": ("test_chain", "test_row_k_of_the_frame_is_iteration_k_div_w_of_walker_k_mod_w"),
}  # fmt: skip


@pytest.mark.parametrize("pitfall", WHERE)
def test_every_pitfall_has_its_test(pitfall: str) -> None:
    file, *names = WHERE[pitfall]
    tree = ast.parse(Path(__file__).with_name(f"{file}.py").read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert set(names) <= found


def boxed(x):
    return jnp.where(jnp.all(jnp.abs(x) < 1), jnp.zeros((), x.dtype), -jnp.inf)


def test_walkers_at_a_wall_do_not_drift() -> None:
    """A flat box: most proposals are -inf; none is taken, and the moments are those of the box."""
    init = np.random.default_rng(0).uniform(-0.9, 0.9, (64, 2))
    chain = sample(boxed, init=init, num_steps=2000, n_ensembles=2, key=1, **QUIET)
    assert (np.abs(chain.samples) < 1).all()
    assert (chain.log_probs == 0).all()
    np.testing.assert_allclose((chain.samples[200:] ** 2).mean((0, 1)), 1 / 3, atol=0.02)


def test_nearly_dependent_starts_raise() -> None:
    """Correlation 1 - 1e-12: rank 2 in exact numbers, no volume in float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=8)
    near = np.column_stack([x, 2 * x + 1e-6 * rng.normal(size=8)])
    with pytest.raises(ModelSpecError, match="linearly dependent in a, b"):
        small.sampler().initialize("explicit", positions=near)
    usable = np.column_stack([x, 2 * x + 1e-2 * rng.normal(size=8)])
    small.sampler().initialize("explicit", positions=usable)


@pytest.mark.x64
@pytest.mark.parametrize("name", ["two_layer_offset_a", "lv_hare_lynx", "expdecay_a"])
def test_densities_are_finite_or_minus_infinite_in_all_of_the_support(name: str) -> None:
    """Prior draws, and points pushed to the ends of the support by up to 1e8."""
    parameters = posteriors.problem(name)[0]
    theta = parameters.sample(600, key=1)
    factor = 10.0 ** np.random.default_rng(0).uniform(-8, 8, theta.shape)
    for k, (low, high) in enumerate(parameters.bounds()):
        pushed = theta[:, k] * factor[:, k]
        theta[300:, k] = np.clip(pushed, low, high)[300:]
    value = np.asarray(problem.evaluate_many(posteriors.density(name), theta)[0])
    assert not np.isnan(value).any()
    assert (value < np.inf).all()
    assert np.isfinite(value[:300]).mean() > 0.5


def test_bounds_belong_to_the_support() -> None:
    closed = [Uniform(-1, 2), TruncatedNormal(0, 1, -1, 2), Bound(Gamma(2, 1), 0.5, 3.0),
              HalfNormal(1), Exponential(2), Bound(LogNormal(0, 1), upper=2.0)]  # fmt: skip
    for prior in closed:
        for end, outside in zip(prior.bounds(), (-1e-9, 1e-9), strict=True):
            if end is not None and (end != 0 or not isinstance(prior, Bound)):
                assert np.isfinite(prior.log_prob(end))
                assert prior.log_prob(end + outside) == -np.inf
    for open_end in (LogNormal(0, 1), Gamma(2, 1), Beta(2, 2)):
        assert open_end.log_prob(0.0) == -np.inf


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_keys_of_another_generator_resume_too(tmp_path: Path, impl: str) -> None:
    s = small.sampler()
    state = s.initialize(key=jax.random.key(3, impl=impl))
    whole = s.run(state, 40, **QUIET)
    s.run(state, 25, checkpoint_path=tmp_path / "run", **QUIET)
    resumed = small.sampler().resume(tmp_path / "run", 15, **QUIET)
    np.testing.assert_array_equal(resumed.samples, whole.samples)
    assert str(jax.random.key_impl(resumed.state.key)) == impl


def test_chains_are_float64_whatever_the_flag() -> None:
    """A log density near -1e6, where float32 would lose differences below 0.06."""
    target = Target().add_variable("y", small.TIMES, small.VALUES, 1e-3)
    posterior = make_posterior(
        small.parameters(), target, ModelRunner(small.line, times=small.TIMES)
    )
    init = np.random.default_rng(0).normal([1, 2], 0.1, size=(8, 2))
    off = sample(posterior, init=init, num_steps=30, key=1, **QUIET)
    with jax.enable_x64(True):
        on = sample(posterior, init=init, num_steps=30, key=1, **QUIET)
    assert off.samples.dtype == off.log_probs.dtype == np.float64
    np.testing.assert_array_equal(off.samples, on.samples)
    assert (off.log_probs != off.log_probs.astype(np.float32)).mean() > 0.9


def test_no_tail_is_lost(tmp_path: Path) -> None:
    """250 steps with a checkpoint every 100: 250 stand on disk, state and draws of one moment."""
    s = small.sampler()
    chain = s.run(
        s.initialize(key=1), 250, checkpoint_path=tmp_path / "run", checkpoint_every=100, **QUIET
    )
    stored = Chain.load(tmp_path / "run")
    np.testing.assert_array_equal(stored.samples, chain.samples)
    assert len(stored) == 250
    more = s.resume(tmp_path / "run", 1, **QUIET)
    np.testing.assert_array_equal(more.samples[249], chain.state.positions)


@pytest.mark.x64
def test_many_points_are_evaluated_in_batches() -> None:
    """Temporary memory of 16 384 climate models is that of a batch, not of all of them."""
    density = posteriors.density("two_layer_offset_a")

    def memory(n: int) -> int:
        z = jax.ShapeDtypeStruct((n, 5), jnp.float64)
        program = jax.jit(lambda d, z: d.many(z)[0]).lower(density, z).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert memory(16384) < memory(256) + 2 * 16384 * 5 * 8 + 2**20


SCRIPT = """
import resource
import numpy as np
from jaxnlme.calibration import sample

def log_prob(x):
    return -0.5 * (x[0] ** 2 + x[1] ** 2)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

init = np.random.default_rng(0).normal(size=(16384, 2))
sample(log_prob, init=init[:64], num_steps=5, moves="de", progress=False)
before = peak()
sample(log_prob, init=init, num_steps=5, moves="de", progress=False)
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource")
def test_memory_of_differential_evolution_is_linear_in_walkers() -> None:
    """A table of all pairs of 8192 others would take 1 GB; MB of growth are printed."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300


DEVICES = """
import hashlib
import jax
from calibration import small

s = small.sampler(n_ensembles=2, moves=["de", "stretch"])
chain = s.run(s.initialize(key=1), 200, progress=False)
print(jax.device_count(), hashlib.sha256(chain.samples.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_devices_change_no_bit() -> None:
    found = {}
    for count in (1, 4):
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        done = subprocess.run(
            [sys.executable, "-c", DEVICES], capture_output=True, text=True, timeout=300, env=env,
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        devices, found[count] = done.stdout.split()
        assert int(devices) == count
    assert found[1] == found[4]


def waiting(params):
    time.sleep(1e-4 * (params["a"] > 1))  # runs end in another order than they began
    return {"y": params["a"] + params["b"] * small.TIMES}


def test_workers_change_no_bit() -> None:
    chains = []
    for workers in (1, 3):
        runner = ModelRunner(model_factory=waiting, times=small.TIMES, workers=workers)
        posterior = make_posterior(small.parameters(), small.target(), runner)
        init = np.random.default_rng(0).normal([1, 2], 0.3, size=(8, 2))
        chains.append(sample(posterior, init=init, num_steps=40, key=1, **QUIET).samples)
        runner.close()
    np.testing.assert_array_equal(*chains)


def test_the_reference_mean_is_over_the_observed_times() -> None:
    """The model has values at more times of the period, which do not enter."""
    times = np.arange(10.0)
    curve = np.array([5.0, 0.3, 7.0, 0.1, 9.0, 0.4, 1.0, 2.0, 3.0, 4.0])

    def model(params):
        return {"y": params["m"] * jnp.asarray(curve)}

    seen = np.array([1, 3, 6, 8])
    target = Target().add_variable("y", times[seen], [0.1, 0.2, 1.3, 2.8], 0.5)
    target = target.with_reference_period(0, 5, method="subtract")
    posterior = make_posterior(
        ParameterSet({"m": Normal()}), target, ModelRunner(model, times=times)
    )
    anomalies = curve[seen] - curve[[1, 3]].mean()
    values = np.array([0.1, 0.2, 1.3, 2.8]) - 0.15
    expected = -0.5 * (((values - anomalies) / 0.5) ** 2).sum() - 4 * np.log(
        0.5 * np.sqrt(2 * np.pi)
    )
    with jax.enable_x64(True):
        found = float(jax.jit(lambda p: p.log_likelihood(jnp.ones(1)))(posterior))
    assert found == pytest.approx(expected, rel=1e-12)
