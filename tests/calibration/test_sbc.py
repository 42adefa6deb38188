"""Simulation-based calibration: ranks of the true parameters among posterior draws are uniform.

Talts et al. (2018). One program for all replicas; a chi-square test per parameter, Holm-adjusted.
"""

from __future__ import annotations

import equinox as eqx
import jax
import numpy as np
import pytest
import scipy.stats as st
from calibration import posteriors

from jaxnlme.calibration import sample_many


@jax.jit
def _simulate(posterior, theta, key):
    params = posterior.params(theta)
    data = posterior.data[0]
    model = posterior.output(params)[data.name]
    return posterior.likelihoods[0].simulate(key, data, model, params)


def ranks(name: str, replicas: int, steps: int, walkers: int) -> np.ndarray:
    """(replicas, p) ranks of the true parameters among 99 thinned draws."""
    posterior = posteriors.density(name)
    parameters = posteriors.problem(name)[0]
    truth = parameters.sample(replicas, key=21)
    made, starts = [], np.empty((replicas, walkers, truth.shape[1]))
    rng = np.random.default_rng(5)
    prior = parameters.sample(replicas * walkers, key=22).reshape(starts.shape)
    for r in range(replicas):
        with jax.enable_x64(True):
            y = np.asarray(_simulate(posterior, truth[r], jax.random.key(1000 + r)))
        data = eqx.tree_at(lambda d: d.values, posterior.data[0], y)
        made.append(eqx.tree_at(lambda p: p.data, posterior, (data,)))
        # Between the truth and prior draws: nearer starts shorten the burn-in, and are forgotten.
        starts[r] = truth[r] + rng.uniform(0, 0.2, (walkers, 1)) * (prior[r] - truth[r])
    chains = sample_many(made, num_steps=steps, init=starts, n_walkers=walkers, key=4,
                         moves=[("de", 0.7), ("stretch", 0.3)], thin=steps // 40)  # fmt: skip
    out = np.empty(truth.shape, int)
    for r, chain in enumerate(chains):
        draws = chain.flat_samples(20)
        pick = np.sort(rng.choice(len(draws), 99, replace=False))
        out[r] = (draws[pick] < truth[r]).sum(0)
    return out


def smallest_p(found: np.ndarray, bins: int = 20) -> float:
    p = []
    for column in found.T:
        counts = np.bincount(column * bins // 100, minlength=bins)
        p.append(st.chisquare(counts).pvalue)
    return float(min(p) * found.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "walkers"), [("expdecay_a", 16), ("eight_schools_original", 32)])
def test_ranks_are_uniform(name: str, walkers: int) -> None:
    assert smallest_p(ranks(name, 1000, 4000, walkers)) > 0.01


def test_the_test_of_ranks_can_fail() -> None:
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 100, (1000, 3))
    assert smallest_p(uniform) > 0.01
    narrow = np.clip(uniform * 0.8 + 10, 0, 99).astype(int)
    assert smallest_p(narrow) < 0.01
