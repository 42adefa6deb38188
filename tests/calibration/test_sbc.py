"""Simulation-based calibration: ranks of the true parameters among posterior draws are uniform.

Talts et al. (2018). One program for all replicas; a chi-square test per parameter, Holm-adjusted.
"""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from calibration import posteriors

from helpers import reference
from jaxnlme.calibration import sample_many
from jaxnlme.calibration.problem import AbstractDensity


@jax.jit
def _simulate(posterior, theta, key):
    params = posterior.params(theta)
    data = posterior.data[0]
    model = posterior.output(params)[data.name]
    return posterior.likelihoods[0].simulate(key, data, model, params)


class Linreg(AbstractDensity):
    """Normal-inverse-gamma regression of tests/reference/calibrate/linreg, its data as leaves."""

    X: Any
    y: Any
    V0: tuple[tuple[float, ...], ...] = eqx.field(static=True)
    a0: float = eqx.field(static=True)
    b0: float = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True, default=("b0", "b1", "b2", "sigma2"))

    def evaluate(self, z):
        value = posteriors.linreg(z, self.X, self.y, np.array(self.V0), self.a0, self.b0)
        return value, jnp.zeros(0, z.dtype)


def linreg(replicas: int, draws: int) -> tuple[np.ndarray, np.ndarray, list[Linreg]]:
    """True parameters, other prior draws, and a posterior of simulated data for each truth."""
    spec = reference("calibrate", "linreg_a")["spec"]
    X, V0 = (np.array(spec[k], float) for k in ("X", "V0"))
    rng = np.random.default_rng(7)

    def prior(n: int) -> np.ndarray:
        sigma2 = spec["b0"] / rng.gamma(spec["a0"], size=n)
        beta = np.sqrt(sigma2)[:, None] * rng.multivariate_normal(np.zeros(3), V0, n)
        return np.column_stack([beta, sigma2])

    truth = prior(replicas)
    noise = np.sqrt(truth[:, 3:]) * rng.normal(size=(replicas, len(X)))
    y = truth[:, :3] @ X.T + noise
    static = (tuple(map(tuple, V0.tolist())), float(spec["a0"]), float(spec["b0"]))
    made = [Linreg(X, row, *static) for row in y]
    return truth, prior(draws), made


def simulated(name: str, replicas: int, draws: int) -> tuple[np.ndarray, np.ndarray, list]:
    """The same for a model with a target."""
    posterior, parameters = posteriors.density(name), posteriors.problem(name)[0]
    truth = parameters.sample(replicas, key=21)
    made = []
    for r in range(replicas):
        with jax.enable_x64(True):
            y = np.asarray(_simulate(posterior, truth[r], jax.random.key(1000 + r)))
        data = eqx.tree_at(lambda d: d.values, posterior.data[0], y)
        made.append(eqx.tree_at(lambda p: p.data, posterior, (data,)))
    return truth, parameters.sample(draws, key=22), made


def ranks(name: str, replicas: int, steps: int, walkers: int) -> np.ndarray:
    """(replicas, p) ranks of the true parameters among 99 thinned draws."""
    draw = linreg if name == "linreg" else functools.partial(simulated, name)
    truth, prior, made = draw(replicas, replicas * walkers)
    rng = np.random.default_rng(5)
    # Between the truth and prior draws: nearer starts shorten the burn-in, and are forgotten.
    nearness = rng.uniform(0, 0.02 if name == "linreg" else 0.2, (replicas, walkers, 1))
    prior = prior.reshape(replicas, walkers, -1)
    starts = truth[:, None] + nearness * (prior - truth[:, None])
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
    return min(1.0, float(min(p) * found.shape[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "walkers"),
    [("linreg", 2000, 16), ("expdecay_a", 2000, 16), ("eight_schools_original", 2400, 32)],
)
def test_ranks_are_uniform(name: str, steps: int, walkers: int) -> None:
    p = smallest_p(ranks(name, 1000, steps, walkers))
    print(f"{name}: smallest p, Holm-adjusted, {p:.3f}")
    assert p > 0.01


def test_the_test_of_ranks_can_fail() -> None:
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 100, (1000, 3))
    assert smallest_p(uniform) > 0.01
    narrow = np.clip(uniform * 0.8 + 10, 0, 99).astype(int)
    assert smallest_p(narrow) < 0.01
