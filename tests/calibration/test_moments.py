"""Every sampler reproduces the reference posteriors, judged by independent ensembles.

Means: Hotelling's T2 over the ensembles, p > 1e-3. Second moments around the true mean and shares
below the true quantiles: t-tests over the ensembles, the smallest p times their number > 1e-3. All
are unbiased whatever the autocorrelation, once the start is forgotten.
"""

from __future__ import annotations

import functools
import zlib

import numpy as np
import pytest
import scipy.stats as st
from calibration import posteriors

from helpers import reference
from jaxnlme.calibration import Chain, sample


def check_moments(name: str, chain: Chain, discard: int = 0) -> None:
    mean, sd, quantiles, probabilities, error = posteriors.moments(name)
    labels = np.unique(chain.ensemble)
    kept = chain.samples[discard:]
    groups = [kept[:, chain.ensemble == k].reshape(-1, kept.shape[2]) for k in labels]
    m, p = len(groups), len(mean)
    assert m > p + 6
    means = np.array([(g.mean(0) - mean) / sd for g in groups])
    covariance = np.cov(means.T).reshape(p, p) / m + np.diag((error / sd) ** 2)
    average = means.mean(0)
    t2 = float(average @ np.linalg.solve(covariance, average))
    p_means = st.f.sf(t2 * (m - p) / (p * (m - 1)), p, m - p)
    tests = [np.array([((g - mean) ** 2).mean(0) for g in groups]) / sd**2 - 1]
    for k, q in enumerate(probabilities):
        tests.append(np.array([(g <= quantiles[:, k]).mean(0) for g in groups]) - q)
    # The references' own errors of sd and quantiles are below 0.006 sd: three of those are free.
    slack = 0.0 if not error.any() else 0.01
    smallest = 1.0
    for values in tests:
        se = values.std(0, ddof=1) / np.sqrt(m)
        t = np.maximum(np.abs(values.mean(0)) - slack, 0) / np.maximum(se, 1e-12)
        smallest = min(smallest, float((2 * st.t.sf(t, m - 1)).min()))
    # For the table of a study: python3 -m pytest -rP shows it.
    print(
        f"moments {name}: p of means {p_means:.3g}, of the rest {min(smallest * len(tests) * p, 1):.3g}"
    )
    assert p_means > 1e-3, (average, np.sqrt(np.diag(covariance)))
    assert smallest * len(tests) * p > 1e-3


def starts(name: str, n: int) -> np.ndarray:
    """Near the posterior: its means and sds, inside the support."""
    mean, sd, quantiles, _, _ = posteriors.moments(name)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = mean + 0.5 * sd * rng.normal(size=(n, len(mean)))
    return np.clip(x, quantiles[:, 0], quantiles[:, -1]) + 0.01 * sd * rng.uniform(-1, 1, x.shape)


@functools.cache
def evidence(name: str) -> float | None:
    found = reference("calibrate", name).get("importance", {}).get("log_evidence")
    return None if found is None else found + posteriors.prior_constant(name)


# steps, discarded, walkers, ensembles: at least 10 autocorrelation times are discarded
PLANS = {
    "gauss2d": (1500, 400, 16, 32), "gauss20d": (4000, 1200, 64, 32), "banana": (15000, 5000, 32, 32),
    "mixture": (6000, 1500, 32, 32), "linreg": (2000, 500, 16, 32), "expdecay": (2000, 500, 16, 32),
    "eight_schools": (4000, 1000, 32, 32), "lotka_volterra": (3000, 1000, 32, 24),
    "two_layer": (2500, 800, 32, 16),
}  # fmt: skip
MOVES = {
    "stretch": "stretch",
    "de": "de",
    "walk": [("walk", 0.7), ("de", 0.3)],
    "slice": "slice",
    "mix": [("de", 0.5), ("snooker", 0.2), ("stretch", 0.3)],
}


def ensemble(name: str, moves: str) -> Chain:
    steps, _, walkers, ensembles = PLANS[posteriors.family(name)]
    if moves == "slice":
        steps //= 3
    if moves == "stretch" and posteriors.family(name) in ("gauss20d", "mixture", "banana"):
        steps *= 3
    return sample(
        posteriors.density(name), init=starts(name, walkers * ensembles), num_steps=steps,
        n_walkers=walkers, n_ensembles=ensembles, moves=MOVES[moves], thin=5, progress=False, key=12,
    )  # fmt: skip


FAST = [("gauss2d_a", "stretch"), ("gauss20d_a", "de"), ("linreg_a", "walk"), ("expdecay_a", "slice"),
        ("two_layer_offset_a", "mix")]  # fmt: skip
GRID = [(name, moves) for name in posteriors.NAMES for moves in MOVES if (name, moves) not in FAST]
CASES = [pytest.param(*c, id="-".join(c)) for c in FAST]
CASES += [pytest.param(*c, id="-".join(c), marks=pytest.mark.study) for c in GRID]


@pytest.mark.parametrize(("name", "moves"), CASES)
def test_ensemble_moves_reproduce_the_posterior(name: str, moves: str) -> None:
    chain = ensemble(name, moves)
    _, discard, _, _ = PLANS[posteriors.family(name)]
    check_moments(name, chain, min(discard // 5, len(chain) // 3))
