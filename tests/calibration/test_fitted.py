"""Fitted models as densities: exact posteriors, quadrature, three samplers against each other, bad input."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats as st

import jaxnlme as jn
from helpers import REFERENCE
from jaxnlme import ModelSpecError
from jaxnlme.calibration import (
    Bound,
    Gamma,
    HalfNormal,
    LKJMargin,
    Normal,
    PointEstimator,
    Uniform,
    fisher_spectrum,
    gradient,
    loo,
    posterior_predictive,
    sample,
)
from jaxnlme.numerics.chain_statistics import pareto_smooth
from jaxnlme.priors import LKJ
from jaxnlme.priors.densities import lkj_log_constant
from jaxnlme.results.nlme_posterior import lkj_beyond_margins

GLM_DATA = REFERENCE / "data" / "glm"
QUIET = {"progress": False}


@jax.jit
def _log_prob(posterior, theta):
    return jax.vmap(posterior.log_prob)(theta)


@jax.jit
def _log_likelihood(posterior, theta):
    return posterior.log_likelihood(theta)


@jax.jit
def _value_and_hessian(posterior, theta):
    return jax.value_and_grad(posterior.log_prob)(theta), jax.hessian(posterior.log_prob)(theta)


def densities(posterior, theta) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_log_prob(posterior, np.atleast_2d(np.asarray(theta, float))))


def likelihood(posterior, theta) -> float:
    with jax.enable_x64(True):
        return float(_log_likelihood(posterior, np.asarray(theta, float)))


@functools.cache
def table(name: str) -> pd.DataFrame:
    return pd.read_csv(GLM_DATA / f"{name}.csv")


@functools.cache
def births():
    """Low birth weight, standardised numbers (Hosmer and Lemeshow)."""
    data = table("birthwt").assign(age=lambda d: (d.age - 23) / 5, lwt=lambda d: (d.lwt - 130) / 30)
    fit = jn.fit_glm("low ~ age + lwt + smoke + ht", data, family="binomial")
    return fit, fit.log_posterior({"fixed": Normal(0, 2.5), "(Intercept)": Normal(0, 5)})


# ---- GLM: exact ---------------------------------------------------------------------------------


def test_gaussian_with_known_sigma_is_the_closed_form() -> None:
    """Density, evidence and Laplace's moments of the conjugate posterior, 1e-10."""
    data, sigma = table("mtcars"), 2.5
    fit = jn.fit_glm("mpg ~ wt + hp", data.assign(hp=data.hp / 100))
    prior = {"fixed": Normal(0, 3), "(Intercept)": Normal(20, 10)}
    posterior = fit.log_posterior(prior, fix={"sigma": sigma})
    assert posterior.names == ("(Intercept)", "wt", "hp")
    X = np.column_stack([np.ones(32), data.wt, data.hp / 100])
    y, m, V = data.mpg.to_numpy(), np.array([20.0, 0, 0]), np.diag([100.0, 9, 9])
    evidence = st.multivariate_normal.logpdf(y, X @ m, X @ V @ X.T + sigma**2 * np.eye(32))
    covariance = np.linalg.inv(X.T @ X / sigma**2 + np.linalg.inv(V))
    mean = covariance @ (X.T @ y / sigma**2 + np.linalg.solve(V, m))
    theta = mean + np.random.default_rng(0).normal(size=(20, 3))
    exact = st.multivariate_normal.logpdf(theta, mean, covariance) + evidence
    np.testing.assert_allclose(densities(posterior, theta), exact, rtol=1e-10)
    with jax.enable_x64(True):
        mode, root, info = gradient.laplace(gradient.Line(posterior), posterior.starts(3))
    np.testing.assert_allclose(mode, mean, rtol=1e-6)
    np.testing.assert_allclose(root @ root.T, covariance, rtol=1e-8, atol=1e-12)
    assert info["laplace_log_evidence"] == pytest.approx(evidence, abs=1e-6)
    spectrum = fisher_spectrum(posterior, mean)  # prior sds are sums over quantiles: 1 %
    scaled = X / sigma * np.sqrt(np.diag(V))
    exact = np.linalg.eigvalsh(scaled.T @ scaled)[::-1]
    np.testing.assert_allclose(spectrum.eigenvalues, exact, rtol=0.02)


FAMILIES = {
    "binomial": ("birthwt", "low ~ age + factor(race)", {}),
    "poisson": ("quine", "Days ~ Sex + Age", {}),
    "negative_binomial": ("quine", "Days ~ Sex + Age", {"theta": Gamma(2, 1)}),
    "gaussian": ("mtcars", "mpg ~ wt", {"sigma": HalfNormal(5)}),
    "gamma": ("mtcars", "mpg ~ wt", {"dispersion": HalfNormal(1)}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likelihood_is_that_of_the_fit(family: str) -> None:
    """At the estimates it is ``llf`` (1e-11), and weights of rows and rows of padding are right."""
    name, formula, more = FAMILIES[family]
    data = table(name)
    fit = jn.fit_glm(formula, data, family=family, weights=np.arange(len(data)) % 3.0)
    posterior = fit.log_posterior({"fixed": Normal(0, 10), **more})
    theta = posterior.estimate.copy()
    if fit._llf_dispersion is not None:
        theta[-1] = fit._llf_dispersion ** (0.5 if family == "gaussian" else 1.0)
    assert likelihood(posterior, theta) == pytest.approx(fit.llf, rel=1e-11)
    assert set(posterior.names) == {*fit.params.index, *more}
    np.testing.assert_allclose(posterior.estimate[: len(fit.params)], fit.params.values)
    starts = posterior.starts(400, key=1)
    z = (starts.mean(0) - posterior.estimate)[: len(fit.params)] / np.asarray(fit.bse)
    assert np.abs(z).max() < 0.25
    spread = starts.std(0)[: len(fit.params)] / np.asarray(fit.bse)
    np.testing.assert_allclose(spread, 1, atol=0.25)


def test_one_program_for_other_data_of_the_shape() -> None:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(2):
        x = rng.normal(size=40)
        data = {"x": x, "y": rng.poisson(np.exp(0.5 * x))}
        fit = jn.fit_glm("y ~ x", data, family="poisson")
        made.append(fit.log_posterior({"fixed": Normal(0, 1 + rng.uniform())}))
    run = {"num_steps": 20, "n_walkers": 8, "progress": False}
    sample(made[0], init=made[0].starts(8), **run)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    sample(made[1], init=made[1].starts(8), **run)
    assert not compiled


def test_aliased_and_held_coefficients_are_left_out() -> None:
    data = table("mtcars").assign(twice=lambda d: 2 * d.wt)
    with pytest.warns(jn.CollinearityWarning, match="twice"):
        fit = jn.fit_glm("am ~ wt + twice + hp", data, family="binomial", fix={"hp": 0.01})
    posterior = fit.log_posterior({"fixed": Normal(0, 5)})
    assert posterior.names == ("(Intercept)", "wt")
    assert likelihood(posterior, posterior.estimate) == pytest.approx(fit.llf, rel=1e-12)
    free = jn.fit_glm("am ~ wt + hp", data, family="binomial")
    held = free.log_posterior({"fixed": Normal(0, 5)}, fix={"hp": 0.01})
    theta = [[1.0, -0.5]]
    np.testing.assert_allclose(densities(held, theta), densities(posterior, theta), rtol=1e-12)


def test_means_far_out_keep_a_finite_density() -> None:
    """A probability that rounds to 1: the density is that of the complement, not log 0."""
    data = {"y": [0, 1, 0, 1, 1, 0], "x": [-2.0, 2.0, -1.0, 1.0, -0.5, 0.5]}
    fit = jn.fit_glm("y ~ x", data, family="binomial")
    posterior = fit.log_posterior({"fixed": Normal(0, 1000)})
    found = likelihood(posterior, [50.0, 0.0])
    assert found == pytest.approx(-150.0, rel=1e-12)


# ---- GLM: samplers ------------------------------------------------------------------------------


def importance(posterior, runs: int, draws: int) -> np.ndarray:
    """(runs, 2 p) means and second moments by Laplace's approximation with smoothed weights (PSIS)."""
    with jax.enable_x64(True):
        line = gradient.Line(posterior)
        mode, root, _ = gradient.laplace(line, posterior.starts(3))
        out = []
        for run in range(runs):
            noise = np.random.default_rng(run).standard_t(8, size=(draws, len(mode)))
            u = mode + noise @ root.T
            log_q = st.t.logpdf(noise, 8).sum(1)
            weights, k = pareto_smooth(np.asarray(gradient.line_values(line, u)) - log_q)
            assert k < 0.7
            out.append(np.exp(weights) @ np.column_stack([u, u**2]))
    return np.array(out)


def agree(a: np.ndarray, b: np.ndarray) -> float:
    """Hotelling's two-sample p of rows of independent runs."""
    (m, p), n = a.shape, len(b)
    gap = a.mean(0) - b.mean(0)
    pooled = ((m - 1) * np.cov(a.T) + (n - 1) * np.cov(b.T)) / (m + n - 2)
    t2 = float(gap @ np.linalg.solve(pooled * (1 / m + 1 / n), gap))
    return float(st.f.sf(t2 * (m + n - p - 1) / (p * (m + n - 2)), p, m + n - p - 1))


def runs(chain, discard: int = 0) -> np.ndarray:
    kept = chain.samples[discard:]
    groups = [kept[:, chain.ensemble == k].reshape(-1, kept.shape[2]) for k in set(chain.ensemble)]
    return np.array([np.r_[g.mean(0), (g**2).mean(0)] for g in groups])


def test_nuts_ensemble_and_laplace_agree_on_a_logistic_model() -> None:
    """24 independent runs of each: means and second moments, p > 1e-3 for every pair."""
    _, posterior = births()
    nuts = sample(posterior, method="nuts", init=posterior.starts(24, key=3), num_steps=300,
                  num_warmup=300, key=1)  # fmt: skip
    ensemble = sample(posterior, init=posterior.starts(24 * 32, key=4), num_steps=1000, thin=5,
                      n_walkers=32, n_ensembles=24, moves="de", key=2, **QUIET)  # fmt: skip
    found = [runs(nuts), runs(ensemble, 40), importance(posterior, 24, 4000)]
    p = [agree(found[a], found[b]) for a in range(3) for b in range(a)]
    print(f"ensemble and NUTS {p[0]:.2f}, PSIS and NUTS {p[1]:.2f}, PSIS and ensemble {p[2]:.2f}")
    assert min(p) > 1e-3
    assert agree(found[0] + 0.2 * found[0].std(0) * np.sqrt(24), found[1]) < 1e-3  # it can fail


def test_the_best_point_is_the_penalised_fit() -> None:
    """MAP by PointEstimator against ``fit_glm(priors=)`` with the same normal priors."""
    fit, posterior = births()
    best = PointEstimator(posterior).optimize(n_restarts=3, n_samples=60)
    priors = {"fixed": Normal(0, 2.5), "(Intercept)": Normal(0, 5)}
    penalised = fit.update(priors=priors)
    np.testing.assert_allclose(list(best.best_params.values()), penalised.params.values, atol=1e-5)
    assert list(best.best_params) == list(fit.params.index)
    assert best.converged


def test_predictive_and_loo_of_a_glm() -> None:
    fit, posterior = births()
    chain = sample(posterior, init=posterior.starts(32, key=1), num_steps=600, **QUIET)
    found = posterior_predictive(posterior, chain, n_samples=300, discard=100)["low"]
    np.testing.assert_allclose(found["model"].mean(0), fit.fittedvalues, atol=0.06)
    np.testing.assert_array_equal(found["values"], table("birthwt").low)
    assert set(np.unique(found["simulated"])) == {0.0, 1.0}
    assert found["simulated"].mean() == pytest.approx(found["values"].mean(), abs=0.04)
    result = loo(posterior, chain, n_samples=2000, discard=100)
    assert len(result.pointwise) == 189
    assert 3 < result.p_loo < 7.5  # 5 coefficients
    assert result.elpd == pytest.approx(fit.llf - 5, abs=3)


# ---- NLME ---------------------------------------------------------------------------------------


def decay(p, x):
    return jnp.exp(p["lA"]) * jnp.exp(-jnp.exp(p["lk"]) * x["t"])


@functools.cache
def decays() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    t = np.tile([0.2, 0.5, 1.0, 2.0, 3.0, 4.0], 8)
    g = np.repeat(np.arange(8), 6)
    A, k = np.exp(1 + 0.4 * rng.normal(size=8)), np.exp(-0.7 + 0.3 * rng.normal(size=8))
    return pd.DataFrame(
        {"t": t, "g": g, "y": A[g] * np.exp(-k[g] * t) + 0.15 * rng.normal(size=48)}
    )


@functools.cache
def fitted(random: str = "lA ~ 1", method: str = "AGQ"):
    chosen = jn.nlme.AGQ(9) if method == "AGQ" else method
    return jn.fit_nlme(decay, decays(), group="g", fixed="lA + lk ~ 1", random=random, response="y",
                       predictors=["t"], start={"lA": 1.0, "lk": -0.7}, method=chosen)  # fmt: skip


def by_quadrature(lA, lk, sd, sigma) -> float:
    """Marginal log-likelihood by the trapezoidal rule on 601 points per group, in numpy."""
    z = np.linspace(-8, 8, 601)
    t, y = (decays()[c].to_numpy().reshape(8, 1, 6) for c in "ty")
    f = np.exp(lA + sd * z)[:, None] * np.exp(-np.exp(lk) * t)
    logs = -0.5 * (((y - f) / sigma) ** 2).sum(2) - 6 * np.log(sigma * np.sqrt(2 * np.pi))
    return float(np.log(np.exp(logs) @ st.norm.pdf(z) * (z[1] - z[0])).sum())


NLME_PRIORS = {"fixed": Normal(0, 2), "sd": HalfNormal(1), "sigma": HalfNormal(1)}


def test_the_density_of_a_mixed_model_is_that_of_quadrature() -> None:
    """9 adaptive nodes against 601 points: 1e-6."""
    posterior = fitted().log_posterior(NLME_PRIORS)
    assert posterior.names == ("lA", "lk", "sd(g).lA", "sigma")
    rng = np.random.default_rng(0)
    theta = posterior.estimate * (1 + 0.1 * rng.normal(size=(6, 4)))
    prior = (
        st.norm.logpdf(theta[:, :2], 0, 2).sum(1)
        + st.halfnorm.logpdf(theta[:, 2])
        + st.halfnorm.logpdf(theta[:, 3])
    )
    exact = prior + [by_quadrature(*row) for row in theta]
    np.testing.assert_allclose(densities(posterior, theta), exact, rtol=1e-6, atol=1e-5)
    assert likelihood(posterior, posterior.estimate) == pytest.approx(fitted().llf, abs=1e-8)


def test_derivatives_of_a_mixed_models_density_are_those_of_differences() -> None:
    """Gradients by the implicit modes, curvatures by differences of gradients (Laplace's start)."""
    posterior = fitted(method="FOCE").log_posterior(NLME_PRIORS)
    theta = posterior.estimate * [1.05, 0.9, 1.2, 0.9]
    with jax.enable_x64(True):
        (_, slope), hessian = (
            jax.tree.map(np.asarray, a) for a in _value_and_hessian(posterior, theta)
        )
    h = 1e-4 * np.eye(4)
    up, down = densities(posterior, theta + h), densities(posterior, theta - h)
    np.testing.assert_allclose(slope, (up - down) / 2e-4, rtol=1e-5, atol=1e-4)
    second = (up - 2 * densities(posterior, theta) + down) / 1e-8
    np.testing.assert_allclose(np.diag(hessian), second, rtol=5e-3)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-3, atol=1e-2)
    assert (densities(posterior, theta * [1, 1, -1, 1]) == -np.inf).all()


def test_a_mixed_models_posterior_is_that_of_a_grid() -> None:
    """Two free parameters, the others held: moments against numpy quadrature on a grid, |z| < 4."""
    fix = {"lk": -0.6, "sigma": 0.2}
    posterior = fitted().log_posterior({"lA": Normal(0, 2), "sd": HalfNormal(1)}, fix=fix)
    assert posterior.names == ("lA", "sd(g).lA")
    a, s = np.linspace(0.2, 2.0, 41), np.linspace(0.02, 1.6, 41)
    grid = np.array([[by_quadrature(x, -0.6, v, 0.2) for v in s] for x in a])
    grid += st.norm.logpdf(a, 0, 2)[:, None] + st.halfnorm.logpdf(s)
    weight = np.exp(grid - grid.max())
    weight /= weight.sum()
    exact = np.array([(weight.sum(1) * a).sum(), (weight.sum(0) * s).sum(),
                      (weight.sum(1) * a**2).sum(), (weight.sum(0) * s**2).sum()])  # fmt: skip
    chain = sample(posterior, init=posterior.starts(64, key=2), n_ensembles=8, num_steps=400,
                   n_walkers=8, moves="de", key=3, **QUIET)  # fmt: skip
    found = runs(chain, 100)
    z = (found.mean(0) - exact) / np.hypot(found.std(0, ddof=1) / np.sqrt(8), 2e-4)
    assert np.abs(z).max() < 4.5  # Student's t with 7 degrees of freedom


def test_correlations_have_lkj_or_their_own_priors() -> None:
    fit = fitted("lA + lk ~ 1", "FOCE")
    own = fit.log_posterior({**NLME_PRIORS, "cor": LKJMargin(2)})
    lkj = fit.log_posterior({**NLME_PRIORS, "cor": LKJ(2)})
    named = fit.log_posterior({**NLME_PRIORS, "cor(g).lk.lA": LKJMargin(2)})
    assert own.names == ("lA", "lk", "sd(g).lA", "cor(g).lk.lA", "sd(g).lk", "sigma")
    theta = [[1.0, -0.7, 0.3, 0.4, 0.1, 0.3]]
    first = densities(own, theta)
    np.testing.assert_allclose(densities(lkj, theta), first, rtol=1e-12)
    np.testing.assert_allclose(densities(named, theta), first, rtol=1e-12)
    replaced = fit.with_params(dict(zip(own.names, theta[0], strict=True)))
    assert likelihood(own, theta[0]) == pytest.approx(replaced.llf, abs=1e-8)
    assert densities(own, [[1.0, -0.7, 0.3, 1.2, 0.1, 0.3]])[0] == -np.inf


def correlation(c: list[float]) -> np.ndarray:
    R = np.eye(3)
    for (i, j), value in zip([(1, 0), (2, 0), (2, 1)], c, strict=True):
        R[i, j] = R[j, i] = value
    return R


def test_lkj_of_three_effects_and_its_margins() -> None:
    """What the joint density adds to its margins, at two matrices; draws of a margin."""
    eta = 1.7
    for c in ([0.2, -0.3, 0.5], [-0.6, 0.1, 0.2]):
        R = correlation(c)
        own = list(zip([(1, 0), (2, 0), (2, 1)], c, strict=True))
        with jax.enable_x64(True):
            ours = float(lkj_beyond_margins(eta, np.linalg.cholesky(R), own))
            joint = float(LKJ(eta).log_prob(R))
        ours += sum(float(LKJMargin(eta, 3).log_prob(v)) for v in c)
        assert ours == pytest.approx(joint, rel=1e-12)
    beta = st.beta(eta + 0.5, eta + 0.5, loc=-1, scale=2)
    x = np.linspace(-0.9, 0.9, 7)
    np.testing.assert_allclose(LKJMargin(eta, 3).log_prob(x), beta.logpdf(x), rtol=1e-11)
    np.testing.assert_allclose(LKJMargin(eta, 3).cdf(x), beta.cdf(x), rtol=1e-10)
    assert st.kstest(LKJMargin(eta, 3).sample(4000, key=1), beta.cdf).pvalue > 1e-4
    with jax.enable_x64(True):
        assert float(LKJ(2.0).log_prob(np.array([[1, 2.0], [2, 1]]))) == -np.inf


@pytest.mark.x64
def test_the_constant_of_lkj() -> None:
    """Two effects: quadrature. Three: pi^2 / 2 for concentration 1, Gauss quadrature of 40^3 nodes. Four: mass."""
    from scipy.integrate import quad

    for eta in (0.7, 1.0, 2.5):
        exact = quad(lambda c, a=eta - 1: (1 - c * c) ** a, -1, 1)[0]
        assert float(lkj_log_constant(eta, 2)) == pytest.approx(np.log(exact), rel=1e-8)
    assert float(lkj_log_constant(1.0, 3)) == pytest.approx(np.log(np.pi**2 / 2), rel=1e-12)
    x, w = np.polynomial.legendre.leggauss(40)
    r, s, t = np.meshgrid(x, x, x, indexing="ij")
    # With t = r s + z sqrt((1 - r^2)(1 - s^2)), the determinant is (1 - r^2)(1 - s^2)(1 - z^2).
    width = np.sqrt((1 - r**2) * (1 - s**2))
    t = r * s + t * width
    det = 1 - r**2 - s**2 - t**2 + 2 * r * s * t
    for eta in (2.0, 3.0):
        mass = np.einsum("i,j,k,ijk->", w, w, w, np.maximum(det, 0) ** (eta - 1) * width)
        assert float(lkj_log_constant(eta, 3)) == pytest.approx(np.log(mass), rel=1e-4)
    # Volume of the 4 x 4 correlation matrices (Joe 2006): 32 pi^2 / 27 over the cube of volume 64.
    assert float(lkj_log_constant(1.0, 4)) == pytest.approx(np.log(32 * np.pi**2 / 27), rel=1e-12)
    near = LKJ(2.5).log_prob(np.array([[1, 0.3], [0.3, 1]]))
    assert float(near) == pytest.approx(float(LKJMargin(2.5).log_prob(0.3)), rel=1e-12)


def test_loo_of_a_mixed_model_leaves_out_groups() -> None:
    posterior = fitted().log_posterior(NLME_PRIORS)
    chain = sample(
        posterior, init=posterior.starts(16, key=1), num_steps=150, n_walkers=16, **QUIET
    )
    with pytest.warns(jn.SamplingWarning, match="observations"):
        result = loo(posterior, chain, n_samples=1000, discard=30)  # few groups: k is large
    assert len(result.pointwise) == 8
    assert result.elpd < likelihood(posterior, posterior.estimate)


# ---- bad input ----------------------------------------------------------------------------------


def bad(**options):
    return jn.fit_glm("low ~ age", table("birthwt"), **{"family": "binomial", **options})


BAD = [
    (lambda: bad().log_posterior({"agee": Normal()}), "'agee'.*Did you mean 'age'"),
    (lambda: bad().log_posterior({"age": Normal()}), r"no prior for \(Intercept\).*'fixed' names all"),
    (lambda: bad().log_posterior({"fixed": 2.0}), r"priors\['fixed'\]=2.0 is not a prior"),
    (lambda: bad().log_posterior(Normal()), "give a dict of priors"),
    (lambda: bad(alpha=0.1).log_posterior({"fixed": Normal()}), "the fit is penalised"),
    (lambda: bad(penalty="firth").log_posterior({"fixed": Normal()}), "the fit is penalised"),
    (lambda: bad(priors={"fixed": Normal()}).log_posterior({"fixed": Normal()}), "is penalised"),
    (lambda: bad(bounds={"age": (0, 1)}).log_posterior({"fixed": Normal()}), "Bound"),
    (lambda: bad(family="quasi_binomial").log_posterior({"fixed": Normal()}), "has no likelihood"),
    (lambda: bad(fix={"age": 0.0}).log_posterior({"fixed": Normal(), "age": Normal()}), "held at 0"),
    (lambda: bad().log_posterior({"fixed": Normal()}, fix={"agge": 0}), "fix: 'agge'.*mean 'age'"),
    (lambda: bad().log_posterior({}, fix={"age": 0, "(Intercept)": 0}), "nothing to sample"),
    (lambda: bad(family="gaussian").log_posterior({"fixed": Normal()}), "no prior for sigma"),
    (lambda: bad(family="gaussian").log_posterior({"fixed": Normal(), "sigma": Normal()}),
     "reaches below 0.*HalfNormal"),
    (lambda: bad(family="gaussian").log_posterior({"fixed": Normal()}, fix={"sigma": 0}),
     "must be positive"),
    (lambda: fitted(method="LME").log_posterior(NLME_PRIORS), "method='FOCE'"),
    (lambda: fitted("lA + lk ~ 1", "FOCE").log_posterior(NLME_PRIORS), r"cor\(g\).lk.lA.*'cor' names"),
    (lambda: fitted("lA + lk ~ 1", "FOCE").log_posterior({**NLME_PRIORS, "cor": Uniform(-2, 1)}),
     r"beyond \[-1, 1\]"),
    (lambda: fitted("lA + lk ~ 1", "FOCE").log_posterior(
        {**NLME_PRIORS, "cor": LKJ(1), "cor(g).lk.lA": Uniform(-1, 1)}), "whole matrices"),
    (lambda: PointEstimator(bad()), "give fit.log_posterior"),
    (lambda: PointEstimator(births()[1], 3), "target= has no use"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "says"), BAD)
def test_bad_input_is_named(build, says: str) -> None:
    with pytest.raises(ModelSpecError, match=says):
        build()


def test_bounded_priors_bound_the_coefficient() -> None:
    posterior = bad().log_posterior({"(Intercept)": Normal(0, 5), "age": Bound(Normal(), upper=0)})
    starts = posterior.starts(100, key=1)
    assert starts[:, 1].max() <= 0
    assert densities(posterior, [[0.0, 0.1]])[0] == -np.inf
