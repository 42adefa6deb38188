"""Chains: shapes, tables, convergence as defined, stuck walkers, pictures, and honest sample sizes."""

from __future__ import annotations

import numpy as np
import pytest
from calibration import small

from jaxnlme import DataError, ModelSpecError, SamplingWarning
from jaxnlme.calibration import Chain, loo, posterior_predictive, sample
from jaxnlme.numerics import chain_statistics as statistics


def white(n: int = 600, walkers: int = 4, p: int = 2, seed: int = 0, **options) -> Chain:
    x = np.random.default_rng(seed).normal(size=(n, walkers, p))
    return Chain(x, -0.5 * (x**2).sum(2), ["a", "b", "c"][:p], **options)


def test_row_k_of_the_frame_is_iteration_k_div_w_of_walker_k_mod_w() -> None:
    chain = white(5, 3)
    for kind in ("pandas", "polars"):
        frame = chain.to_dataframe(kind=kind)
        columns = {c: np.asarray(frame[c]) for c in frame.columns}
        assert list(columns) == ["iteration", "walker", "log_prob", "a", "b"]
        for k in range(15):
            i, w = k // 3, k % 3
            assert (columns["iteration"][k], columns["walker"][k]) == (i, w)
            assert columns["a"][k] == chain.samples[i, w, 0]
            assert columns["log_prob"][k] == chain.log_probs[i, w]
    np.testing.assert_array_equal(chain.flat_samples(2), chain.samples[2:].reshape(9, 2))
    assert chain.to_dataframe(2)["iteration"].tolist() == [2] * 3 + [3] * 3 + [4] * 3


def test_convergence_asks_for_r_hat_and_tau_and_ess() -> None:
    assert white().is_converged()
    few = white(60)  # ESS about 240
    assert any("ESS below 400" in text for text in few.problems())
    apart = white()
    shifted = Chain(apart.samples + np.arange(4)[:, None] * [1.0, 0.0], apart.log_probs, ["a", "b"])
    assert not shifted.is_converged()
    with pytest.warns(SamplingWarning, match=r"R-hat above 1\.01 for a \(worst"):
        table = shifted.summary()
    assert table["parameter"].tolist() == ["a", "b"]
    assert white(300, 40).is_converged()
    long_memory = Chain(
        np.repeat(white(40, 40).samples, 20, axis=0), np.zeros((800, 40)), ["a", "b"]
    )
    assert any("autocorrelation times" in text for text in long_memory.problems())


def test_diagnostics_are_those_of_the_numerics_and_in_raw_steps() -> None:
    chain = white(400, thinning=7)
    assert chain.r_hat()["a"] == statistics.r_hat(chain["a"])
    assert chain.ess(100, kind="tail")["b"] == statistics.ess_tail(chain["b"][100:])
    assert chain.autocorr_time()["a"] == 7 * statistics.autocorr_time(chain["a"])
    assert chain.thin(2).thinning == 14
    assert chain.mcse()["a"] == statistics.mcse_mean(chain["a"])
    groups = white(400, 8, ensemble=np.repeat([0, 1], 4))
    assert groups.nested_r_hat()["a"] < 1.01
    assert np.isnan(chain.nested_r_hat()["a"])
    with pytest.raises(ModelSpecError, match="Did you mean 'bulk'"):
        chain.ess(kind="bulky")
    with pytest.raises(ModelSpecError, match="discard=400"):
        chain.r_hat(discard=400)


def test_walkers_that_never_move_are_told_and_left_out() -> None:
    chain = white(500, 6)
    samples = chain.samples.copy()
    samples[:, 4] = 50.0
    stuck = Chain(samples, chain.log_probs, ["a", "b"])
    assert stuck.stuck_walkers().tolist() == [4]
    with pytest.warns(SamplingWarning, match=r"1 of 6 walkers never moved \(walker 4\)"):
        assert stuck.r_hat()["a"] < 1.02
    with pytest.warns(SamplingWarning, match="never moved"):
        assert abs(stuck.summary()["mean"][0]) < 0.2
    assert stuck.acceptance_fractions[4] == 0
    frozen = Chain(np.ones((100, 4, 1)), np.zeros((100, 4)), ["a"])
    assert np.isnan(frozen.r_hat()["a"])
    assert not frozen.is_converged()  # NaN counts as a failure


def test_merge_and_bad_chains() -> None:
    chain = white(50)
    both = chain.merge(white(30, seed=1))
    assert both.samples.shape == (80, 4, 2)
    for other, says in ((white(5, 3), "do not fit"), (white(5, thinning=2), "stores 1 step")):
        with pytest.raises(ModelSpecError, match=says):
            chain.merge(other)
    with pytest.raises(DataError, match="log_probs has shape"):
        Chain(np.zeros((5, 4, 2)), np.zeros((5, 3)), ["a", "b"])
    with pytest.raises(DataError, match="param_names"):
        Chain(np.zeros((5, 4, 2)), np.zeros((5, 4)), ["a", "a"])
    with pytest.raises(DataError, match="3 dimensions"):
        Chain(np.zeros((5, 4)), np.zeros((5, 4)), ["a"])
    with pytest.raises(KeyError, match="Did you mean"):
        white(5, p=3, seed=0)["A"]
    with pytest.raises(ModelSpecError, match="k=0"):
        chain.thin(0)
    assert "600 stored steps" in repr(white())


def test_predictive_and_loo_of_a_line() -> None:
    """LOO of a normal line by its closed form: elpd_i = log N(y_i; prediction without i)."""
    s = small.sampler(n_walkers=32)
    # One key in ten gives a Pareto k above 0.7 for the last observation.
    chain = s.run(s.initialize("ball", center=[1, 2], radius=0.2, key=2), 1500, progress=False)
    found = posterior_predictive(s.posterior, chain, n_samples=3000, discard=300, key=2)["y"]
    mean, covariance = small.exact()
    X = np.column_stack([np.ones(6), small.TIMES])
    np.testing.assert_allclose(found["model"].mean(0), X @ mean, atol=0.05)
    sd = np.sqrt(np.einsum("ij,jk,ik->i", X, covariance, X) + 0.25)
    np.testing.assert_allclose(found["simulated"].std(0), sd, rtol=0.08)
    result = loo(s.posterior, chain, n_samples=8000, discard=300)
    exact = []
    for i in range(6):
        keep = np.arange(6) != i
        cov = np.linalg.inv(X[keep].T @ X[keep] / 0.25 + np.diag([1 / 25, 0]))
        m = cov @ X[keep].T @ small.VALUES[keep] / 0.25
        v = X[i] @ cov @ X[i] + 0.25
        exact.append(-0.5 * (small.VALUES[i] - X[i] @ m) ** 2 / v - 0.5 * np.log(2 * np.pi * v))
    np.testing.assert_allclose(result.pointwise, exact, atol=0.06)
    assert result.elpd == pytest.approx(sum(exact), abs=0.15)
    assert (result.pareto_k < 0.7).all()


def test_pictures_show_the_chains_numbers() -> None:
    pytest.importorskip("matplotlib")
    s = small.sampler(n_ensembles=2)
    chain = s.run(s.initialize("ball", center=[1, 2], radius=0.2, key=1), 300, progress=False)
    axes = chain.plot.trace(discard=50)
    assert len(axes) == 2
    line = axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(line, chain.samples[50:, 0, 0])
    grid = chain.plot.corner(truth={"a": 1.0})
    assert sum(patch.get_height() for patch in grid[0, 0].patches) > 0.99 * 300 * 16
    acf = chain.plot.autocorr()[0].lines[0].get_ydata()
    assert acf[0] == pytest.approx(1)
    fractions = chain.plot.acceptance()[0].lines[0].get_ydata()
    np.testing.assert_array_equal(fractions, np.sort(chain.acceptance_fractions))
    assert len(chain.plot.rank()) == len(chain.plot.prior_posterior()) == 2
    panel = chain.plot.posterior_predictive(s.runner, s.target, n_samples=20, discard=50)[0]
    observed = panel.lines[-1]
    np.testing.assert_array_equal(observed.get_ydata(), small.VALUES)
    with pytest.raises(ModelSpecError, match="no parameter 'q'"):
        chain.plot.trace("q")
    with pytest.raises(ModelSpecError, match="carries no priors"):
        Chain(chain.samples, chain.log_probs, ["a", "b"]).plot.prior_posterior()


def log_normal(x):
    import jax.numpy as jnp

    return -0.5 * jnp.sum(x**2)


# d, walkers, steps, independent runs (fields/calibrate.md, section 4)
# The truth has a relative error of sqrt(2 / (runs d)): more runs than 128 in few dimensions.
ROWS = [(2, 32, 2000, 512), (5, 32, 4000, 256), (20, 64, 400, 128), (20, 64, 4000, 128),
        (20, 64, 20000, 32), (20, 256, 4000, 32)]  # fmt: skip


@pytest.mark.parametrize(
    ("d", "w", "n", "runs"),
    [pytest.param(*r, marks=[] if r[1] * r[2] * r[3] < 5e6 else [pytest.mark.slow]) for r in ROWS],
)
def test_bulk_ess_is_within_0_6_to_1_1_of_the_truth(d: int, w: int, n: int, runs: int) -> None:
    """Truth: variance of the mean over independent ensembles; noise of the ratio below 10 %."""
    means, ess = np.zeros((runs, d)), []
    looked = (8, d) if d < 20 else (3, 4)  # runs and coordinates, all alike, whose ESS is estimated
    at_once = max(1, min(runs, int(2**24 / (w * d * n)) or 1))
    for first in range(0, runs, at_once):
        count = min(at_once, runs - first)
        init = np.random.default_rng(first).normal(size=(count * w, d))
        chain = sample(log_normal, init=init, n_ensembles=count, num_steps=n, key=first,
                       progress=False)  # fmt: skip
        for k in range(count):
            own = chain.samples[:, k * w : (k + 1) * w]
            means[first + k] = own.mean((0, 1))
            if first + k < looked[0]:
                ess += [statistics.ess_bulk(own[:, :, j]) for j in range(looked[1])]
    truth = 1 / (means**2).mean()
    ratio = np.mean(ess) / truth
    print(f"d={d} w={w} n={n}: true ESS {truth:.0f}, bulk {np.mean(ess):.0f}, ratio {ratio:.2f}")
    assert 0.6 < ratio < 1.1
