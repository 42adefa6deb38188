"""Gradient samplers and SMC through ``sample``: moments, evidence, options."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from calibration import posteriors, small
from calibration.test_moments import check_moments, evidence, starts

from jaxnlme import ModelSpecError, SamplingWarning
from jaxnlme.calibration import ModelRunner, make_posterior, sample

pytest.importorskip("blackjax")
BOUNDS = {"linreg": [(None, None)] * 3 + [(0, None)]}


def gradient(name: str, method: str, chains: int, steps: int):
    kind = posteriors.family(name)
    found = posteriors.density(name)
    options = {"method": method, "init": starts(name, chains), "num_steps": steps, "key": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # a few divergences in the funnel's neck
        if kind in BOUNDS:
            density = found.function.function
            return sample(density, bounds=BOUNDS[kind], **options)
        return sample(found, **options)


UNIMODAL = [n for n in posteriors.NAMES if posteriors.family(n) not in ("mixture", "banana")]
NUTS_FAST, MCLMC_FAST, SMC_FAST = ["linreg_a"], ["gauss2d_a"], ["mixture_a"]


@pytest.mark.parametrize(
    "name", NUTS_FAST + [pytest.param(n, marks=pytest.mark.study) for n in UNIMODAL if n not in NUTS_FAST]
)  # fmt: skip
def test_nuts(name: str) -> None:
    """24 (20-D: 40) independent chains."""
    chain = gradient(name, "nuts", 40 if "gauss20d" in name else 24, 600)
    check_moments(name, chain)


@pytest.mark.parametrize(
    "name", MCLMC_FAST + [pytest.param(n, marks=pytest.mark.study) for n in UNIMODAL if n not in MCLMC_FAST]
)  # fmt: skip
def test_adjusted_mclmc(name: str) -> None:
    chain = gradient(name, "mclmc", 40 if "gauss20d" in name else 24, 2500)
    check_moments(name, chain)


@pytest.mark.parametrize(
    "name",
    SMC_FAST
    + [pytest.param(n, marks=pytest.mark.study) for n in posteriors.NAMES if n not in SMC_FAST],
)
def test_smc_moments_and_evidence(name: str) -> None:
    """Evidence within 3 standard errors of the stored one, 0 for normalised densities."""
    kind = posteriors.family(name)
    runs, particles = (32, 4000) if kind == "gauss20d" else (16, 3000)
    if kind in ("lotka_volterra", "eight_schools"):
        runs = 24
    found, options = posteriors.density(name), {}
    if kind in BOUNDS:
        found, options = found.function.function, {"bounds": BOUNDS[kind]}
    if kind not in posteriors.PROBLEMS:
        rng = np.random.default_rng(3)
        mean, sd, quantiles, *_ = posteriors.moments(name)
        init = mean + 1.2 * sd * rng.normal(size=(400, len(mean)))
        if kind in BOUNDS:
            init[:, 3] = np.abs(init[:, 3])
        options["init"] = init
    chain = sample(found, method="smc", num_steps=particles, n_ensembles=runs, key=7, **options)
    check_moments(name, chain)
    log_evidence, se = chain.info["log_evidence"], chain.info["log_evidence_se"]
    truth = evidence(name)
    if kind in ("gauss2d", "gauss20d", "banana", "mixture"):
        truth = 0.0
    # For the table of a study, as in `check_moments`.
    print(f"evidence {name}: {log_evidence:.4f} (se {se:.4f}), stored {truth}")
    if truth is not None:
        assert abs(log_evidence - truth) < 3 * np.hypot(se, 0.002)
        assert se < 0.2


def test_starts_by_pathfinder_and_laplace_are_weighed() -> None:
    """A nearly normal posterior: Pareto k is small, and the draws are near the exact mean."""
    posterior = make_posterior(
        small.parameters(), small.target(), ModelRunner(small.line, times=small.TIMES)
    )
    mean, covariance = small.exact()
    for start in ("laplace", "pathfinder"):
        chain = sample(posterior, method="nuts", start=start, num_steps=300, num_warmup=200, key=2)
        assert chain.info["pareto_k"] < 0.7
        assert chain.info["importance_ess"] > 100
        z = (chain.flat_samples().mean(0) - mean) / np.sqrt(np.diag(covariance))
        assert np.abs(z).max() < 0.3
    # Laplace's evidence of a normal posterior is exact but for the bounds of b.
    X = np.column_stack([np.ones(6), small.TIMES])
    cov = 0.25 * np.eye(6) + 25 * np.outer(X[:, 0], X[:, 0])
    # Marginalise b with its flat prior of density 1/20.
    inverse = np.linalg.inv(cov)
    t = X[:, 1]
    b = t @ inverse @ small.VALUES / (t @ inverse @ t)
    r = small.VALUES - b * t
    exact = -0.5 * r @ inverse @ r - 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
    exact += 0.5 * np.log(2 * np.pi / (t @ inverse @ t)) - np.log(20)
    laplace = sample(posterior, method="nuts", start="laplace", num_steps=20, num_warmup=50, key=2)
    assert laplace.info["laplace_log_evidence"] == pytest.approx(exact, abs=0.01)
    smc = sample(posterior, method="smc", num_steps=2000, key=3)
    assert abs(smc.info["log_evidence"] - exact) < 3 * smc.info["log_evidence_se"]


def neck(x):
    """Neal's funnel: NUTS diverges in it."""
    return -0.5 * (x[0] / 3) ** 2 - 0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - 2 * x[0]


def test_divergences_are_counted_and_told() -> None:
    """B02."""
    init = np.random.default_rng(0).normal(size=(4, 5))
    with pytest.warns(SamplingWarning, match="transitions diverged"):
        chain = sample(neck, method="nuts", init=init, num_steps=500, num_warmup=200)
    assert chain.info["divergences"] > 0
    with pytest.warns(SamplingWarning, match="divergent transitions"):
        chain.summary()
    assert not chain.is_converged()


def test_methods_and_their_options() -> None:
    posterior = make_posterior(
        small.parameters(), small.target(), ModelRunner(small.line, times=small.TIMES)
    )
    chain = sample(posterior, method="auto", num_steps=20, num_warmup=50, n_walkers=3)
    assert chain.info["method"] == "nuts"
    assert chain.samples.shape == (20, 3, 2)
    sampler = small.sampler()
    assert sample(sampler, num_steps=10, progress=False).n_walkers == 32
    plain = make_posterior(
        small.parameters(), small.target(),
        ModelRunner(model_factory=lambda q: {"y": q["a"] + q["b"] * small.TIMES}, times=small.TIMES),
    )  # fmt: skip
    assert sample(plain, method="auto", num_steps=5, progress=False).info["method"] == "ensemble"
    for call, says in (
        (lambda: sample(plain, method="nuts"), "needs a JAX model"),
        (lambda: sample(posterior, method="nutz"), "Did you mean 'nuts'"),
        (lambda: sample(posterior, method="nuts", thin=3), "thin=3 has no use"),
        (lambda: sample(posterior, num_warmup=3), "num_warmup=3 has no use"),
        (lambda: sample(posterior, method="nuts", start="best", num_steps=5), "start='best'"),
        (lambda: sample(neck, num_steps=5), "init= is needed"),
        (lambda: sample(neck, init=np.zeros(3)), r"\(walkers, p\) is needed"),
        (lambda: sample(neck, init=np.zeros((8, 2)), param_names=["a"]), "2 different names"),
        (
            lambda: sample(neck, method="smc", init=np.ones((8, 2)), bounds=[(0, 1)]),
            "1 pairs for 2",
        ),
        (lambda: sample(posterior, method="smc", num_steps=10), "at least 40"),
        (lambda: sample(3), "give log_prob"),
    ):
        with pytest.raises(ModelSpecError, match=says):
            call()
