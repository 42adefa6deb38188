"""Fitted models: many data sets in one program, and replicated responses of mixed models."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats as st
from calibration.test_fitted import NLME_PRIORS, decay, decays, fitted

import jaxnlme as jn
from jaxnlme import ModelSpecError
from jaxnlme.calibration import (
    Chain,
    HalfNormal,
    ModelRunner,
    Normal,
    ParameterSet,
    Target,
    make_posterior,
    posterior_predictive,
    sample_many,
)
from jaxnlme.calibration.stacked import stack_densities


@jax.jit
def _stacked(density, z):
    return density.ensembles(z)[0], density.to_natural(z), density.log_jacobian(z)


@jax.jit
def _alone(density, z):
    return density.many(z)[0], density.to_natural(z), density.log_jacobian(z)


@functools.cache
def lines(seed: int = 0):
    """Regressions with unknown sigma, a positive parameter that is sampled as its logarithm."""
    rng, made = np.random.default_rng(seed), []
    for k in range(3):
        x = rng.normal(size=30)
        y = 1 + k * x + (0.5 + 0.2 * k) * rng.normal(size=30)
        fit = jn.fit_glm("y ~ x", {"x": x, "y": y})
        posterior = fit.log_posterior({"fixed": Normal(0, 5), "sigma": HalfNormal(2)})
        made.append((np.column_stack([np.ones(30), x]), y, posterior))
    return made


def exact_moments(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and sds of (intercept, slope, sigma): normal given sigma, which is summed over."""
    grid = np.linspace(0.1, 3, 600)
    log_w, means, variances = [], [], []
    for sigma in grid:
        V = np.linalg.inv(X.T @ X / sigma**2 + np.eye(2) / 25)
        covariance = sigma**2 * np.eye(len(y)) + 25 * X @ X.T
        log_w.append(st.multivariate_normal.logpdf(y, np.zeros(len(y)), covariance))
        means.append(V @ X.T @ y / sigma**2)
        variances.append(np.diag(V))
    log_w = np.array(log_w) + st.halfnorm.logpdf(grid, scale=2)
    w = np.exp(log_w - log_w.max())
    w = w / w.sum()
    mean = w @ np.column_stack([means, grid])
    square = w @ np.column_stack([np.array(variances) + np.array(means) ** 2, grid**2])
    return mean, np.sqrt(square - mean**2)


def test_many_fits_with_positive_parameters_are_sampled_in_one_program() -> None:
    """Means (z < 4.5) and sds (7 %) of three data sets by quadrature; other data compile nothing."""
    posteriors = [one for *_, one in lines()]
    chains = sample_many(posteriors, num_steps=2000, thin=2, moves="de", key=2)
    for (X, y, _), chain in zip(lines(), chains, strict=True):
        mean, sd = exact_moments(X, y)
        flat, ess = chain.flat_samples(100), np.array(list(chain.ess(100, "mean").values()))
        z = (flat.mean(0) - mean) / (sd / np.sqrt(ess))
        assert np.abs(z).max() < 4.5
        np.testing.assert_allclose(flat.std(0), sd, rtol=0.07)
        assert chain["sigma"].min() > 0
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    others = [one for *_, one in lines(seed=1)]
    again = sample_many(others, num_steps=100, thin=2, moves="de", key=3)
    assert not compiled
    assert [len(chain) for chain in again] == [50] * 3


@pytest.mark.x64
def test_stacked_densities_are_the_single_ones() -> None:
    """A regression and a mixed model: densities, natural points and Jacobians, 1e-12 (mixed 1e-9: modes)."""
    moved = decays().assign(y=lambda d: 1.1 * d.y)
    second = jn.fit_nlme(decay, moved, group="g", fixed="lA + lk ~ 1", random="lA ~ 1", response="y",
                         predictors=["t"], start={"lA": 1.0, "lk": -0.7}, method="FOCE")  # fmt: skip
    mixed = [fit.log_posterior(NLME_PRIORS) for fit in (fitted(method="FOCE"), second)]
    for made, tolerance in (([one for *_, one in lines()], 1e-12), (mixed, 1e-9)):
        stacked = stack_densities(made)
        theta = np.stack([one.starts(4, key=1) for one in made])
        z = np.array(theta)
        positive = [t is not None for t in made[0].prior.transforms]
        z[..., positive] = np.log(z[..., positive])
        found = [np.asarray(a) for a in _stacked(stacked, z)]
        np.testing.assert_allclose(found[1], theta, rtol=1e-14)
        np.testing.assert_allclose(found[2], z[..., positive].sum(-1), rtol=1e-14)
        alone = np.stack(
            [np.asarray(_alone(one, own)[0]) for one, own in zip(made, z, strict=True)]
        )
        np.testing.assert_allclose(found[0], alone, rtol=tolerance)


# ---- replicated responses of mixed models --------------------------------------------------------


def straight(p, x):
    return p["a"] + p["b"] * x["t"]


@functools.cache
def linear():
    """A linear mixed model, unbalanced, rows of the groups mixed."""
    rng = np.random.default_rng(5)
    g = rng.permutation(np.repeat(np.arange(7), [2, 3, 4, 5, 6, 3, 4]))
    t = rng.uniform(0, 2, len(g))
    b = rng.normal(size=(7, 2)) * [0.8, 0.5]
    y = 2 + b[g, 0] + (1 + b[g, 1]) * t + 0.3 * rng.normal(size=len(g))
    data = pd.DataFrame({"y": y, "t": t, "g": g})
    fit = jn.fit_nlme(straight, data, group="g", fixed="a + b ~ 1", random="a + b ~ 1", response="y",
                      predictors=["t"], start={"a": 2.0, "b": 1.0}, method="FOCE")  # fmt: skip
    posterior = fit.log_posterior({**NLME_PRIORS, "cor": jn.priors.LKJ(2)})
    return data, posterior


def at(posterior, theta: list[float], draws: int) -> Chain:
    """A chain that stands still: every draw is the same."""
    samples = np.broadcast_to(np.array(theta), (draws, 1, len(theta)))
    return Chain(samples, np.zeros((draws, 1)), posterior.names)


THETA = {"a": 2.1, "b": 0.9, "sd(g).a": 0.7, "cor(g).b.a": -0.3, "sd(g).b": 0.4, "sigma": 0.35}


@pytest.mark.parametrize("re", [None, "new", "population"])
def test_replicates_of_a_linear_mixed_model_have_the_exact_moments(re: str | None) -> None:
    """Mean and covariance of 4000 replicates of all rows: every whitened square sum, p > 1e-4."""
    data, posterior = linear()
    assert posterior.names == tuple(THETA)
    draws = 4000
    chain = at(posterior, list(THETA.values()), draws)
    made = posterior_predictive(posterior, chain, n_samples=draws, re=re, key=3)["y"]
    np.testing.assert_array_equal(made["values"], data.y)
    _, _, sa, r, sb, sigma = THETA.values()
    psi = np.array([[sa**2, r * sa * sb], [r * sa * sb, sb**2]])
    z = np.column_stack([np.ones(len(data)), data.t])
    same = data.g.to_numpy()[:, None] == data.g.to_numpy()[None]
    mean, noise = z @ [2.1, 0.9], sigma**2 * np.eye(len(data))
    marginal = np.where(same, z @ psi @ z.T, 0.0)
    if re is None:
        gain = marginal @ np.linalg.inv(marginal + noise)
        mean = mean + gain @ (data.y - mean)
        spread = marginal - gain @ marginal
    else:
        spread = marginal if re == "new" else np.zeros_like(marginal)
    for kind, covariance in (("model", spread), ("simulated", spread + noise)):
        if not covariance.any():
            np.testing.assert_allclose(made[kind], np.tile(mean, (draws, 1)), rtol=1e-12)
            continue
        values, vectors = np.linalg.eigh(covariance)
        kept = values > 1e-9
        white = (made[kind] - mean) @ vectors[:, kept] / np.sqrt(values[kept])
        n = kept.sum()
        assert st.chi2.sf(draws * (white.mean(0) ** 2).sum(), n) > 1e-4
        assert min(2 * st.chi2.cdf((white**2).sum(), draws * n),
                   2 * st.chi2.sf((white**2).sum(), draws * n)) > 1e-4  # fmt: skip
        off = np.corrcoef(white.T)[np.triu_indices(n, 1)] * np.sqrt(draws)
        assert st.chi2.sf((off**2).sum(), len(off)) > 1e-4
        assert np.abs((made[kind] - mean) @ vectors[:, ~kept]).max(initial=0) < 1e-4


def test_random_effects_of_a_nonlinear_model_are_drawn_given_the_data() -> None:
    """Moments of each group's curve by the trapezoidal rule over its one effect, |z| < 4.5; noisy data."""
    posterior = fitted(method="FOCE").log_posterior(NLME_PRIORS)
    theta, draws = [1.0, -0.7, 1.2, 1.5], 3000  # flat and skew: the mode is not the mean
    made = posterior_predictive(posterior, at(posterior, theta, draws), n_samples=draws, key=1)["y"]
    b = np.linspace(-8, 8, 2001)
    data = decays()
    t, y = (data[c].to_numpy().reshape(8, 1, 6) for c in "ty")
    f = np.exp(1.0 + 1.2 * b)[:, None] * np.exp(-np.exp(-0.7) * t)
    log_w = -0.5 * (((y - f) / 1.5) ** 2).sum(2) - 0.5 * b**2
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    w = w / w.sum(1, keepdims=True)
    mean = np.einsum("gb,gbt->gt", w, f).ravel()
    sd = np.sqrt(np.einsum("gb,gbt->gt", w, f**2).ravel() - mean**2)
    z = (made["model"].mean(0) - mean) / (sd / np.sqrt(draws))
    assert np.abs(z).max() < 4.5
    np.testing.assert_allclose(made["model"].std(0), sd, rtol=0.1)
    mode = f.reshape(8, -1, 6)[np.arange(8), log_w.argmax(1)].ravel()
    assert (
        np.abs((mode - mean) / (sd / np.sqrt(draws))).max() > 8
    )  # a plug-in of the mode would fail


def test_wrong_words_for_the_random_effects() -> None:
    _, posterior = linear()
    chain = at(posterior, list(THETA.values()), 3)
    with pytest.raises(ModelSpecError, match=r"re='individuals'.*Did you mean 'individual'"):
        posterior_predictive(posterior, chain, re="individuals")
    glm = lines()[0][2]
    with pytest.raises(ModelSpecError, match="a GLM has no random effects"):
        posterior_predictive(glm, at(glm, [1, 1, 1], 3), re="new")
    plain = make_posterior(
        ParameterSet({"m": Normal(0, 1)}), Target().add_variable("y", [0.0], [0.5], 1.0),
        ModelRunner(lambda q: {"y": jnp.stack([q["m"]])}),
    )  # fmt: skip
    with pytest.raises(ModelSpecError, match="only mixed models"):
        posterior_predictive(plain, Chain(np.zeros((9, 1, 1)), np.zeros((9, 1)), ["m"]), re="new")
