"""The ensemble sampler: its transition, starts, thinning, stopping, and the pitfalls of such samplers."""

from __future__ import annotations

import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calibration import small

from jaxnlme import ModelSpecError, SamplingWarning
from jaxnlme.calibration import (
    AbstractMove,
    Bound,
    DifferentialEvolution,
    EnsembleSampler,
    EnsembleSlice,
    LogNormal,
    ModelRunner,
    Normal,
    ParameterSet,
    SamplerState,
    Snooker,
    StopAtMCSE,
    StopAtTau,
    Stretch,
    Target,
    Walk,
    make_posterior,
    sample,
    sample_many,
)
from jaxnlme.calibration import driver as drivers
from jaxnlme.calibration import kernel as kernels
from jaxnlme.calibration.moves import choose, read_moves, unit
from jaxnlme.numerics import mcmc

QUIET = {"progress": False}
random_words = jax.jit(mcmc.random_words)


def log_gauss(x):
    return -0.5 * jnp.sum(x**2)


# ---- the transition -----------------------------------------------------------------------------


@pytest.mark.x64
@pytest.mark.parametrize("twice", [True, False])
def test_one_step_is_that_of_a_numpy_sampler_with_the_same_numbers(
    twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halves in turn, the second against the new first half; walkers keep their places.

    With the density compiled for each half, and once in a loop.
    """
    monkeypatch.setattr(kernels, "MAX_TWICE", 10**6 if twice else 0)
    w, p, key, scale = 8, 3, jax.random.key(5), 2.0 if twice else 3.0  # another program
    z = np.random.default_rng(0).normal(size=(w, p))
    density = make_posterior(
        ParameterSet({n: Normal(0, 1) for n in "abc"}),
        Target().add_variable("y", [0.0], [0.3], 0.2),
        ModelRunner(lambda q: {"y": (q["a"] * q["b"] + q["c"])[None]}),
    )

    def log_prob(x):
        prior = -0.5 * np.sum(x**2) - 1.5 * np.log(2 * np.pi)
        return (
            prior - 0.5 * ((0.3 - x[0] * x[1] - x[2]) / 0.2) ** 2 - np.log(0.2 * np.sqrt(2 * np.pi))
        )

    value = np.array([log_prob(x) for x in z])
    state = kernels.start_state(z[None], value[None], np.zeros((1, w, 0)), key, np.ones(1))
    move = Stretch(scale)
    buffers = kernels.buffers(state, 4)
    new, rows, count = kernels.run_chunk((move,), density, state, buffers, 1, 1, 0)

    # Counters of iteration 0: coins of the pairs (2 k, 2 k + 1); then log u of both halves, u of z
    # and partner of both, and more. The second words follow all first ones.
    own = jax.random.bits(jax.random.fold_in(key, kernels.STREAM), (2,), jnp.uint32)
    h = w // 2

    def words(first: int, count: int) -> np.ndarray:
        place = jnp.arange(first, first + (count + 1) // 2, dtype=jnp.uint32)
        return np.concatenate(random_words(own, jnp.zeros_like(place), place))[:count]

    coin = words(0, h) >> 31
    bits = words(h, 6 * h + 5)
    accept, bits = bits[: 2 * h].reshape(2, h), bits[2 * h : 6 * h].reshape(2, 2, h)
    first = 2 * np.arange(h) + coin.astype(int)
    order = np.concatenate([first, first ^ 1])
    x, lp = z.copy(), value.copy()
    for half in range(2):
        mine, others = order[half * h : (half + 1) * h], order[(1 - half) * h :][:h]
        log_u = np.log(np.asarray(unit(jnp.asarray(accept[half]), jnp.float64)))
        u = np.asarray(unit(jnp.asarray(bits[half, 0]), jnp.float64))
        partner = np.asarray(choose(jnp.asarray(bits[half, 1]), h))
        for k, walker in enumerate(mine):
            factor = ((scale - 1) * u[k] + 1) ** 2 / scale
            centre = x[others[partner[k]]]
            y = centre + factor * (x[walker] - centre)
            if log_u[k] < (p - 1) * np.log(factor) + log_prob(y) - lp[walker]:
                x[walker], lp[walker] = y, log_prob(y)
    np.testing.assert_allclose(np.asarray(new.z[0]), x, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(new.log_density[0]), lp, rtol=1e-10)
    np.testing.assert_array_equal(np.asarray(new.accepted[0]) == 1, (x != z).any(1))
    assert int(count) == 1
    np.testing.assert_array_equal(np.asarray(rows[0][0]), np.asarray(new.z))


def test_random_words_are_those_of_jax_and_of_the_paper() -> None:
    """Known answers of Threefry-2x32-20 (Random123), and JAX's own generator on many counters."""
    full = np.uint32(0xFFFFFFFF)
    for key, counter, words in (
        ([0, 0], [0, 0], [0x6B200159, 0x99BA4EFE]),
        ([full, full], [full, full], [0x1CB996FC, 0xBB002BE7]),
        ([0x13198A2E, 0x03707344], [0x243F6A88, 0x85A308D3], [0xC4923A9C, 0x483DF7A0]),
    ):
        first, second = (jnp.asarray([c], jnp.uint32) for c in counter)
        found = random_words(jnp.asarray(key, jnp.uint32), first, second)
        assert [int(word[0]) for word in found] == words
    key = jax.random.key(3)
    counters = jnp.arange(100, dtype=jnp.uint32)
    ours = random_words(jax.random.key_data(key), jnp.zeros_like(counters), counters)
    theirs = jax.vmap(lambda k: jax.random.key_data(jax.random.fold_in(key, k)))(counters)
    np.testing.assert_array_equal(np.stack(ours, 1), theirs)


@pytest.mark.x64
def test_halves_are_drawn_afresh_and_both_move() -> None:
    """Of a pair, one is in each half; other walkers are together in half of 4,000 steps (se 0.008)."""
    w, h, n = 8, 4, 4000
    key = jax.random.bits(jax.random.fold_in(jax.random.key(1), kernels.STREAM), (2,), jnp.uint32)

    @jax.jit
    def numbers(iterations):
        drawn = kernels._drawn((Stretch(),), key, iterations, jnp.zeros((1, w, 2)))
        return drawn, kernels._turned(key, iterations, 1, h)

    drawn, coins = numbers(jnp.arange(n) + 7)
    coins = np.array(coins)[:, 0]  # (n, h)
    sides, swap = np.array(drawn.sides)[:, 0], np.array(drawn.swap)[:, 0]
    np.testing.assert_array_equal(sides[:-1], np.stack([coins, ~coins], axis=2)[1:])
    np.testing.assert_array_equal(swap, sides[:, :, 0] ^ coins)
    moves_first = np.stack([~coins, coins], axis=2).reshape(n, w)
    assert (moves_first.sum(1) == h).all()
    together = (moves_first[:, :, None] == moves_first[:, None, :]).mean(0)
    pairs = np.kron(np.eye(h), [[0, 1], [1, 0]]).astype(bool)
    assert (together[pairs] == 0).all()
    others = ~pairs & ~np.eye(w, dtype=bool)
    np.testing.assert_allclose(together[others], 0.5, atol=0.035)
    np.testing.assert_allclose(moves_first.mean(0), 0.5, atol=0.035)


@pytest.mark.x64
@pytest.mark.parametrize("move", [DifferentialEvolution(), Snooker(), Walk(), Stretch(3.0)])
def test_moves_use_different_other_walkers_and_stay_finite(move: AbstractMove) -> None:
    rng = np.random.default_rng(2)
    active, others = rng.normal(size=(2, 6, 3))
    bits = jax.random.bits(jax.random.key(3), (move.words, 6), jnp.uint32)
    numbers = move.prepare(bits, 6, 3, jnp.float64)
    proposal, factor = move.propose(
        numbers, jax.random.key(4), jnp.asarray(active), jnp.asarray(others)
    )
    assert proposal.shape == (6, 3)
    assert np.isfinite(proposal).all()
    assert np.isfinite(factor).all()
    assert (np.abs(np.asarray(proposal) - active).max(1) > 0).all()


class Shift(AbstractMove):
    """A user's move with `propose` alone: along the difference of two other walkers, either way."""

    words = 2

    def propose(self, numbers, key, active, others):
        k, h = choose(numbers[0], others.shape[0]), others.shape[0]
        step = 4 * (unit(numbers[1], active.dtype) - 0.5)
        return active + step[:, None] * (others[k] - others[(k + 1) % h]), jnp.zeros_like(step)


def test_a_users_move_needs_propose_alone() -> None:
    s = small.sampler(n_walkers=16, moves=Shift())
    mean, covariance = small.exact()
    chain = s.run(s.initialize("ball", center=mean, radius=0.3, key=3), 4000, **QUIET)
    ess = np.array(list(chain.ess(500).values()))
    z = (chain.flat_samples(500).mean(0) - mean) / np.sqrt(np.diag(covariance) / ess)
    assert np.abs(z).max() < 4.5
    np.testing.assert_allclose(np.cov(chain.flat_samples(500).T), covariance, rtol=0.2)


def test_posterior_of_a_line_is_the_exact_one() -> None:
    s = small.sampler(n_ensembles=24)
    mean, covariance = small.exact()
    state = s.initialize("ball", center=mean, radius=0.3, key=3)
    chain = s.run(state, 1500, **QUIET)
    means = np.array([chain.samples[300:, chain.ensemble == e].mean((0, 1)) for e in range(24)])
    t2 = 24 * (means.mean(0) - mean) @ np.linalg.solve(np.cov(means.T), means.mean(0) - mean)
    assert t2 * 22 / (2 * 23) < 10  # F(2, 22): p = 1e-3 at 9.6
    np.testing.assert_allclose(np.cov(chain.flat_samples(300).T), covariance, rtol=0.1)


# ---- determinism --------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_bits_and_any_cut_too() -> None:
    s = small.sampler()
    state = s.initialize(key=1)
    whole = s.run(state, 60, **QUIET)
    again = s.run(
        s.initialize(key=1), 60, progress=False, callback=lambda i: None, callback_every=7
    )
    np.testing.assert_array_equal(whole.samples, again.samples)
    first = s.run(state, 23, **QUIET)
    second = s.run(first.state, 37, **QUIET)
    np.testing.assert_array_equal(first.merge(second).samples, whole.samples)
    np.testing.assert_array_equal(first.merge(second).log_probs, whole.log_probs)
    np.testing.assert_array_equal(second.state.positions, whole.state.positions)
    assert second.state.iteration == 60
    other = s.run(s.initialize(key=2), 60, **QUIET)
    assert not np.array_equal(whole.samples, other.samples)
    assert jax.config.jax_enable_x64 is False


def test_stored_rows_grow_beyond_what_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "RESERVE", 64)
    rows, blocks = drivers.Rows(4), [np.arange(6.0).reshape(3, 2) + k for k in range(5)]
    for k, block in enumerate(blocks):
        rows.add(samples=block, log_probs=block[:, 0])
        assert len(rows) == 3 * (k + 1)
    np.testing.assert_array_equal(rows.since()["samples"], np.concatenate(blocks))
    np.testing.assert_array_equal(rows.since(12)["log_probs"], blocks[-1][:, 0])


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_keys_of_other_generators_are_read(impl: str) -> None:
    """And the chain does not depend on how it is cut into calls."""
    s, key = small.sampler(), jax.random.key(4, impl=impl)
    positions = np.random.default_rng(0).normal(size=(8, 2))
    state = s.initialize("explicit", positions=positions, key=key)
    whole = s.run(state, 40, **QUIET)
    first = s.run(state, 17, **QUIET)
    second = s.run(first.state, 23, **QUIET)
    np.testing.assert_array_equal(first.merge(second).samples, whole.samples)


def test_thinning_counts_from_the_first_iteration() -> None:
    s = small.sampler()
    state = s.initialize(key=1)
    whole = s.run(state, 60, **QUIET)
    thinned = s.run(state, 60, thin=7, **QUIET)
    np.testing.assert_array_equal(thinned.samples, whole.samples[::7])
    np.testing.assert_array_equal(thinned.samples, whole.thin(7).samples)
    assert len(s.run(state, 100, thin=10, **QUIET)) == 10
    first = s.run(state, 25, thin=7, **QUIET)
    second = s.run(first.state, 35, thin=7, **QUIET)
    np.testing.assert_array_equal(first.merge(second).samples, thinned.samples)
    assert thinned.thinning == 7
    np.testing.assert_allclose(thinned.acceptance_fractions, whole.acceptance_fractions, rtol=1e-12)


def test_one_program_for_any_number_of_steps_and_other_data() -> None:
    s = small.sampler()
    state = s.initialize(key=1)
    s.run(state, 10, **QUIET)
    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiles.append(name) if "backend_compile" in name else None
    )
    s.run(state, 47, thin=3, **QUIET)
    other = EnsembleSampler(
        small.parameters(), small.target(small.VALUES + 1),
        ModelRunner(small.line, times=small.TIMES), n_walkers=8,
    )  # fmt: skip
    before = len(compiles)
    assert before == 0
    other.run(other.initialize(key=2), 31, **QUIET)
    assert len(compiles) == 0


# ---- starts -------------------------------------------------------------------------------------


def test_defaults_of_walkers() -> None:
    assert small.sampler(n_walkers=None).n_walkers == 32
    many = ParameterSet({f"p{k}": Normal() for k in range(50)})

    def model(params):
        return {"y": sum(params.values())[None]}

    s = EnsembleSampler(many, Target().add_variable("y", [0], [0.0], 1.0), ModelRunner(model))
    assert s.n_walkers == 100


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_walkers": 2}, "from 4 on"),
        ({"n_walkers": 7}, "odd; give 8"),
        ({"stretch_scale": 1.0}, "stretch_scale=1.0 must be above 1"),
        ({"moves": "strech"}, "Did you mean 'stretch'"),
        ({"moves": [("de", -1)]}, "weight -1"),
        ({"moves": []}, "moves="),
        ({"n_ensembles": 0}, "n_ensembles=0"),
        ({"adapt_steps": 5}, "only one move"),
        ({"moves": [EnsembleSlice(), EnsembleSlice()]}, "one slice move"),
    ],
)
def test_bad_options_of_the_sampler(options: dict, says: str) -> None:
    with pytest.raises(ModelSpecError, match=says):
        small.sampler(**options)


def test_fewer_walkers_than_twice_the_parameters_raise() -> None:
    """B03."""
    params = ParameterSet({n: Normal() for n in "abcde"})
    with pytest.raises(ModelSpecError, match="n_walkers=8 is below the minimum of 10 walkers"):
        EnsembleSampler(
            params, small.target(), ModelRunner(small.line, times=small.TIMES), n_walkers=8
        )


def test_starts_that_do_not_span_the_space_raise() -> None:
    """B03, and walkers at one point or in a plane."""
    s = small.sampler()
    rng = np.random.default_rng(0)
    x = rng.normal(size=8)
    cases = [
        (np.tile([1.0, 2.0], (8, 1)), "only 1 of 8 walkers"),
        (np.column_stack([x, 2 * x + 1]), "linearly dependent in a, b.*minimum is 4 walkers"),
        (np.column_stack([x, np.full(8, 2.0)]), "parameter b is the same"),
        (np.column_stack([x, np.where(np.arange(8) == 3, np.nan, x)]), "walker 3 are not finite"),
        (rng.normal(size=(6, 2)), r"shape \(6, 2\), expected \(8, 2\)"),
    ]
    for positions, says in cases:
        with pytest.raises(ModelSpecError, match=says):
            s.initialize("explicit", positions=positions)


def test_ball_starts_are_inside_the_ball_and_uniform() -> None:
    s = small.sampler(n_walkers=2000)
    state = s.initialize("ball", center={"a": 1.0, "b": 2.0}, radius=[0.5, 0.1], key=1)
    r2 = (((state.positions - [1.0, 2.0]) / [0.5, 0.1]) ** 2).sum(1)
    assert r2.max() <= 1
    assert np.mean(r2) == pytest.approx(0.5, abs=0.03)  # r^2 is uniform in two dimensions
    with pytest.raises(ModelSpecError, match="radius"):
        s.initialize("ball", center=[1, 2], radius=-1)
    with pytest.raises(ModelSpecError, match="needs center="):
        s.initialize("ball", radius=1)
    with pytest.raises(ModelSpecError, match="has no use for radius="):
        s.initialize("prior", radius=1)
    with pytest.raises(ModelSpecError, match="Did you mean 'ball'"):
        s.initialize("bal")


def fails_above_half(params):
    a = params["a"]
    return {"y": jnp.where(a > 0.5, jnp.nan, a) * jnp.ones(3)}


def test_starts_without_density_are_drawn_again_and_none_is_left() -> None:
    params = ParameterSet({"a": Normal(0, 1), "b": Normal(0, 1)})
    target = Target().add_variable("y", [0, 1, 2], [0.1, 0.2, 0.0], 1.0)
    s = EnsembleSampler(params, target, ModelRunner(fails_above_half), n_walkers=32)
    state = s.initialize(key=1)
    assert np.isfinite(state.log_probs).all()
    positions = np.random.default_rng(1).normal(size=(32, 2))
    assert (positions[:, 0] > 0.5).any()
    with pytest.warns(SamplingWarning, match="drawn again"):
        state = s.initialize("explicit", positions=positions)
    chain = s.run(state, 100, **QUIET)
    assert np.isfinite(chain.log_probs).all()
    assert chain["a"].max() <= 0.5


def test_no_density_at_any_start_names_the_cause() -> None:
    """B01."""
    params = ParameterSet({"a": Normal(0, 1), "b": Normal(0, 1)})
    target = Target().add_variable("y", [0, 1], [0.1, 0.2], 1.0)

    def broken(q):
        return {"y": jnp.log(-(q["a"] ** 2) - 1) * jnp.ones(2)}

    s = EnsembleSampler(params, target, ModelRunner(broken))
    with pytest.raises(ModelSpecError, match=r"likelihood of variable 'y' \(NaN at 32\).*a, b"):
        s.initialize(key=1)
    with pytest.raises(ModelSpecError, match="-inf at every one"):
        sample(lambda x: -jnp.inf * jnp.ones(()), init=np.random.default_rng(0).normal(size=(8, 2)))


def infinite_beyond_one(x):
    return jnp.where(x[0] > 1, jnp.inf, -0.5 * jnp.sum(x**2))


def test_plus_infinity_raises_and_names_the_place() -> None:
    init = 0.3 * np.random.default_rng(0).normal(size=(16, 2))
    with pytest.raises(ModelSpecError, match=r"\+inf at [0-9]+ proposed points"):
        sample(infinite_beyond_one, num_steps=200, init=init, **QUIET)
    init[3] = [2.0, 0.5]
    with pytest.raises(ModelSpecError, match=r"\+inf at x0=2, x1=0.5"):
        sample(infinite_beyond_one, num_steps=200, init=init, **QUIET)


@pytest.mark.x64
def test_nan_and_minus_infinity_are_rejected_and_recovered_from() -> None:
    """From -inf any finite proposal is accepted; NaN and -inf never are."""

    def walls(x):
        value = -0.5 * jnp.sum(x**2)
        return jnp.where(x[0] > 1.5, jnp.nan, jnp.where(x[0] < -1.5, -jnp.inf, value))

    from jaxnlme.calibration.problem import FunctionDensity, StaticFunction

    density = FunctionDensity(StaticFunction(walls), ("x0", "x1"))
    z = np.random.default_rng(0).normal(size=(1, 16, 2)) * 0.5
    z[0, 3] = [3.0, 0.0]
    value = np.array([[float(walls(x)) for x in z[0]]])
    value[0, 3] = -np.inf
    state = kernels.start_state(z, value, np.zeros((1, 16, 0)), jax.random.key(1), np.ones(1))
    buffers = kernels.buffers(state, 512)
    new, _, _ = kernels.run_chunk((Stretch(),), density, state, buffers, 500, 1, 0)
    assert np.isfinite(np.asarray(new.log_density)).all()
    assert (np.abs(np.asarray(new.z)[..., 0]) <= 1.5).all()


# ---- running ------------------------------------------------------------------------------------


def test_transform_leaves_the_posterior_and_the_log_density_alone() -> None:
    def model(q):
        return {"y": q["k"] * jnp.ones(4)}

    target = Target().add_variable("y", np.arange(4), [1.0, 1.4, 0.8, 1.2], 0.8)
    runner = ModelRunner(model)
    results = []
    for transform in (None, "log"):
        params = ParameterSet().add("k", LogNormal(0, 1), transform).add("m", Normal(0, 1))
        s = EnsembleSampler(params, target, runner, n_walkers=8, n_ensembles=24)
        chain = s.run(s.initialize(key=4), 1200, **QUIET)
        groups = [chain["k"][200:, chain.ensemble == e] for e in range(24)]
        results.append((np.array([g.mean() for g in groups]), np.array([g.std() for g in groups])))
        x = chain.samples[-1]
        expected = make_posterior(
            ParameterSet({"k": LogNormal(0, 1), "m": Normal(0, 1)}), target, runner
        )
        with jax.enable_x64(True):
            direct = np.asarray(jax.jit(lambda d, v: jax.vmap(d.log_prob)(v))(expected, x))
        np.testing.assert_allclose(chain.log_probs[-1], direct, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(chain.state.positions, x, rtol=1e-12)
    for a, b in zip(*results, strict=True):
        z = (a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / 24 + b.var(ddof=1) / 24)
        assert abs(z) < 3.5


def test_adapted_weights_favour_the_better_move_and_freeze() -> None:
    moves = [("stretch", 0.5), ("de", 0.5)]
    x0 = np.random.default_rng(0).normal(size=(40, 10))
    free = {"moves": moves, "init": x0, "progress": False}
    short = sample(log_gauss, num_steps=300, adapt_steps=300, **free)
    long = sample(log_gauss, num_steps=900, adapt_steps=300, **free)
    assert short.info["move_weights"] == long.info["move_weights"]
    assert long.info["move_weights"][1] > 0.55
    np.testing.assert_array_equal(short.samples, long.samples[:300])
    plain = sample(log_gauss, num_steps=300, **free)
    assert plain.info["move_weights"] == [0.5, 0.5]
    np.testing.assert_array_equal(plain.samples, short.samples)


def test_callbacks_see_the_run_and_can_end_it() -> None:
    s = small.sampler()
    state = s.initialize(key=1)
    seen = []
    chain = s.run(state, 250, callback=seen.append, callback_every=50, **QUIET)
    assert [i["iteration"] for i in seen] == [50, 100, 150, 200, 250]
    assert seen[-1]["acceptance_rate"] == pytest.approx(chain.mean_acceptance_rate())
    assert set(seen[0]) >= {"total", "mean_log_prob", "elapsed", "remaining", "tau", "ess"}
    short = s.run(state, 250, callback=lambda i: i["iteration"] >= 100, callback_every=50, **QUIET)
    assert len(short) == 100
    assert short.info["stopped_by"] == "callback"

    def fails(info):
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        s.run(state, 250, callback=fails, **QUIET)
    with pytest.raises(ModelSpecError, match="callback=3"):
        s.run(state, 10, callback=3, **QUIET)


def test_stop_rules_end_the_run_at_fixed_steps() -> None:
    s = small.sampler()
    state = s.initialize("ball", center=[1, 2], radius=0.1, key=1)
    tau = s.run(state, 20_000, stop=StopAtTau(check_every=500), **QUIET)
    assert tau.info["stopped_by"] == "stop rule"
    assert len(tau) % 500 == 0
    assert len(tau) < 20_000
    assert max(tau.autocorr_time(len(tau) // 4).values()) * 50 < len(tau)
    again = s.run(state, 20_000, stop=StopAtTau(check_every=500), callback=lambda i: None,
                  callback_every=130, **QUIET)  # fmt: skip
    assert len(again) == len(tau)
    error = s.run(state, 20_000, stop=StopAtMCSE(0.1, check_every=300), **QUIET)
    assert min(error.ess(len(error) // 4).values()) >= 400
    for bad in ("taux", 3, lambda c: True):
        with pytest.raises(ModelSpecError, match="stop="):
            s.run(state, 10, stop=bad, **QUIET)


def test_the_bar_shows_and_costs_no_bits(capsys: pytest.CaptureFixture) -> None:
    s = small.sampler()
    state = s.initialize(key=1)
    quiet = s.run(state, 300, **QUIET)
    shown = s.run(state, 300, progress=True)
    np.testing.assert_array_equal(quiet.samples, shown.samples)
    text = capsys.readouterr().err
    assert "accept" in text
    assert "300/300" in text


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="signals of POSIX")
def test_ctrl_c_returns_what_there_is() -> None:
    s = small.sampler()
    state = s.initialize(key=1)
    s.run(state, 10, **QUIET)
    main, before = threading.main_thread(), signal.getsignal(signal.SIGINT)
    threading.Timer(1.0, lambda: signal.pthread_kill(main.ident, signal.SIGINT)).start()  # type: ignore[arg-type]
    began = time.perf_counter()
    with pytest.warns(SamplingWarning, match="stopped by Ctrl-C"):
        chain = s.run(state, 50_000_000, thin=1000, **QUIET)
    assert time.perf_counter() - began < 20
    assert chain.info["stopped_by"] == "interrupted"
    assert len(chain) > 0
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_steps": 0}, "n_steps=0"),
        ({"n_steps": 2.5}, "n_steps=2.5"),
        ({"thin": 0}, "thin=0"),
        ({"checkpoint_every": 5}, "needs checkpoint_path"),
    ],
)
def test_bad_options_of_run(change: dict, says: str) -> None:
    s = small.sampler()
    state = s.initialize(key=1)
    with pytest.raises(ModelSpecError, match=says):
        s.run(state, **{"n_steps": 10, "progress": False, **change})
    with pytest.raises(ModelSpecError, match="SamplerState"):
        s.run(state.positions, 10)
    with pytest.raises(ModelSpecError, match="another sampler"):
        small.sampler(n_walkers=10).run(state, 10)


def test_a_state_made_by_hand_works() -> None:
    s = small.sampler()
    made = s.initialize(key=1)
    by_hand = SamplerState(positions=made.positions, key=1)
    np.testing.assert_array_equal(
        s.run(by_hand, 20, **QUIET).samples, s.run(made, 20, **QUIET).samples
    )


def test_blobs_stay_beside_their_draws() -> None:
    def blob(params, output):
        return {"last": output["y"][-1], "pair": jnp.stack([params["a"], params["b"]])}

    s = small.sampler(blobs=blob)
    chain = s.run(s.initialize(key=1), 40, thin=3, **QUIET)
    assert chain.blobs["last"].shape == (14, 8)
    np.testing.assert_array_equal(chain.blobs["pair"], chain.samples)
    np.testing.assert_allclose(chain.blobs["last"], chain["a"] + 5 * chain["b"], rtol=1e-14)


def test_many_data_sets_are_those_sampled_one_by_one() -> None:
    rng = np.random.default_rng(0)
    posteriors = [
        make_posterior(small.parameters(), small.target(small.VALUES + rng.normal(size=6)),
                       ModelRunner(small.line, times=small.TIMES)) for _ in range(5)
    ]  # fmt: skip
    chains = sample_many(posteriors, num_steps=600, n_walkers=8, key=2)
    assert len(chains) == 5
    X = np.column_stack([np.ones(6), small.TIMES])
    covariance = np.linalg.inv(X.T @ X / 0.25 + np.diag([1 / 25, 0]))
    for posterior, chain in zip(posteriors, chains, strict=True):
        mean = covariance @ X.T @ np.asarray(posterior.data[0].values) / 0.25
        ess = min(chain.ess(100).values())
        z = (chain.flat_samples(100).mean(0) - mean) / np.sqrt(np.diag(covariance) / ess)
        assert np.abs(z).max() < 4.5
    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiles.append(name) if "backend_compile" in name else None
    )
    again = sample_many(posteriors[::-1], num_steps=250, n_walkers=8, key=3)
    assert not compiles  # other data, another number of steps: the same program
    assert again[0].samples.shape == (250, 8, 2)
    other = make_posterior(
        small.parameters(), Target().add_variable("y", [0.0], [1.0], 0.5),
        ModelRunner(small.line, times=small.TIMES),
    )  # fmt: skip
    with pytest.raises(ModelSpecError, match="posterior 1 has another structure"):
        sample_many([posteriors[0], other], num_steps=10)


def test_read_moves() -> None:
    moves, weights = read_moves([("de", 3), Snooker()], 2.0)
    assert [type(m) for m in moves] == [DifferentialEvolution, Snooker]
    np.testing.assert_allclose(weights, [0.75, 0.25])
    assert read_moves(None, 3)[0] == (Stretch(3.0),)


def test_a_bounded_start_far_out_is_sampled() -> None:
    """Closed supports: densities at the ends of the support are finite."""
    prior = Bound(Normal(0, 1), lower=8.0)
    params = ParameterSet({"a": prior, "b": Normal(0, 1)})
    s = EnsembleSampler(params, Target().add_variable("y", [0.0], [9.0], 5.0),
                        ModelRunner(lambda q: {"y": q["a"][None]}), n_walkers=8)  # fmt: skip
    chain = s.run(s.initialize(key=1), 200, **QUIET)
    assert chain["a"].min() >= 8
    assert np.isfinite(params.log_prior([8.0, 0.0]))
