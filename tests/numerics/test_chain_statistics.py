"""Convergence statistics against arviz-stats and emcee, where installed, and against known truths."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats as st

from jaxnlme.numerics import chain_statistics as cs


def autoregressive(n: int, chains: int, rho: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.zeros((n, chains))
    x[0] = rng.normal(size=chains)
    for t in range(1, n):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=chains)
    return x


CHAINS = {
    "white": autoregressive(400, 4, 0.0, 1),
    "slow": autoregressive(401, 6, 0.95, 2),
    "negative": autoregressive(300, 4, -0.5, 3),
    "apart": autoregressive(200, 4, 0.3, 4) + np.arange(4.0),
    "heavy": np.random.default_rng(5).standard_cauchy((250, 4)),
    "short": autoregressive(7, 3, 0.2, 6),
    "one": autoregressive(500, 1, 0.6, 7),
    "ties": np.round(autoregressive(300, 4, 0.7, 8), 1),
}


def test_the_normal_quantile_is_scipys() -> None:
    p = np.concatenate([10.0 ** -np.arange(1, 300, 13), np.linspace(0.001, 0.999, 97)])
    np.testing.assert_allclose(cs.normal_quantile(p), st.norm.ppf(p), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", CHAINS)
def test_r_hat_and_ess_are_those_of_arviz(name: str) -> None:
    stats = pytest.importorskip("arviz_stats.base").array_stats
    x = CHAINS[name]
    theirs = x.T  # (chain, draw)
    pairs = [
        (cs.r_hat(x), stats.rhat(theirs, method="rank", chain_axis=0, draw_axis=1)),
        (cs.ess_bulk(x), stats.ess(theirs, method="bulk", chain_axis=0, draw_axis=1)),
        (
            cs.ess_tail(x),
            stats.ess(theirs, method="tail", chain_axis=0, draw_axis=1, prob=(0.05, 0.95)),
        ),
        (cs.ess_mean(x), stats.ess(theirs, method="mean", chain_axis=0, draw_axis=1)),
    ]
    if name == "one":
        pairs = pairs[1:]  # arviz gives no R-hat of one chain; ours is that of its halves
    for ours, other in pairs:
        assert ours == pytest.approx(float(other), rel=1e-10)


@pytest.mark.parametrize("name", [n for n in CHAINS if n != "short"])
def test_the_autocorrelation_time_is_emcees(name: str) -> None:
    emcee = pytest.importorskip("emcee")
    x = CHAINS[name]
    theirs = emcee.autocorr.integrated_time(x[:, :, None], c=5, quiet=True, tol=0)
    assert cs.autocorr_time(x) == pytest.approx(float(theirs[0]), rel=1e-10)


def test_known_truths_of_an_autoregression() -> None:
    """tau = (1 + rho) / (1 - rho) = 19; 4 x 20 000 draws give it within 10 %."""
    x = autoregressive(20_000, 4, 0.9, 9)
    assert cs.autocorr_time(x) == pytest.approx(19, rel=0.1)
    assert cs.ess_bulk(x) == pytest.approx(x.size / 19, rel=0.1)
    assert cs.mcse_mean(x) == pytest.approx(np.sqrt(19 / x.size), rel=0.1)
    # The squares have tau (1 + rho^2) / (1 - rho^2), and var(x^2) = 2.
    expected = np.sqrt(2 * (1.81 / 0.19) / x.size) / 2
    assert cs.mcse_sd(x) == pytest.approx(expected, rel=0.15)


def test_degenerate_chains_give_nan_not_a_number_to_trust() -> None:
    for x in (np.ones((50, 4)), np.zeros((2, 4)), np.full((50, 2), np.nan)):
        assert np.isnan(cs.r_hat(x))
        assert np.isnan(cs.ess_bulk(x))
        assert np.isnan(cs.ess_tail(x))
    assert np.isnan(cs.autocorr_time(np.ones((50, 4))))


def test_nested_r_hat_sees_ensembles_that_disagree() -> None:
    x = autoregressive(500, 8, 0.2, 10)
    label = np.repeat([0, 1], 4)
    together = cs.nested_r_hat(x, label)
    apart = cs.nested_r_hat(x + label, label)
    assert together < 1.01 < 1.2 < apart
    assert np.isnan(cs.nested_r_hat(x, np.zeros(8)))
    # By hand: means 0 and 1 apart, within about 1.
    within = np.mean([x[:, label == k].mean(0).var(ddof=1) + x[:, label == k].var(0, ddof=1).mean()
                      for k in (0, 1)])  # fmt: skip
    between = np.var([x[:, :4].mean(), x[:, 4:].mean() + 1], ddof=1)
    assert apart == pytest.approx(np.sqrt(1 + between / within), rel=1e-12)


def test_pareto_smoothing_is_that_of_arviz() -> None:
    stats = pytest.importorskip("arviz_stats.base").array_stats
    for scale, seed in ((0.5, 1), (1.5, 2), (3.0, 3)):
        x = scale * np.random.default_rng(seed).normal(size=2000)
        ours, k = cs.pareto_smooth(x)
        theirs, other = stats.psislw(-x)  # it takes log likelihoods
        assert k == pytest.approx(float(other), abs=1e-8)
        np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-8)
        assert np.exp(ours).sum() == pytest.approx(1, abs=1e-12)
