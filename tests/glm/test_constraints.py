"""Penalties, bounds, held values, priors and linear constraints of ``fit_glm``."""

from __future__ import annotations

import numpy as np
import pytest
from glm_cases import case, cases, frame, numbers
from numpy.testing import assert_allclose
from scipy import optimize

import jaxnlme as jn
from helpers import reference

RNG = np.random.default_rng(11)
X = RNG.normal(size=(60, 3))
COUNTS = RNG.poisson(np.exp(0.4 + X @ np.array([0.5, -0.3, 0.0]))).astype(float)
NORMAL = 1.0 + X @ np.array([0.5, -0.3, 0.2]) + 0.5 * RNG.normal(size=60)


def nll(b: np.ndarray) -> float:
    """Mean Poisson negative log-likelihood up to constants, written out again."""
    eta = b[0] + X @ b[1:]
    return float(np.mean(np.exp(eta) - COUNTS * eta))


def minimise(function, **options) -> np.ndarray:
    return optimize.minimize(function, np.zeros(4), tol=1e-13, **options).x


def test_quadratic_penalty_has_its_closed_form() -> None:
    """Reference: (X'X/n + P)^-1 X'y/n, printed by R."""
    for chosen in reference("glm", "penalties_closed_form")["cases"]:
        data = frame(chosen)
        response = chosen.get("response", "medv")
        terms = " + ".join(chosen["columns"][1:])
        penalty = jn.penalties.Quadratic(np.array(chosen["P"], float))
        fit = jn.fit_glm(f"{response} ~ {terms}", data, penalty=penalty)
        assert_allclose(np.asarray(fit.params), numbers(chosen["coef"]), rtol=1e-10)


@pytest.mark.parametrize("standardize", [True, False])
def test_ridge_minimises_the_stated_objective(standardize: bool) -> None:
    scale = X.std(0) if standardize else np.ones(3)
    fit = jn.fit_glm(X, COUNTS, family="poisson", alpha=0.3, standardize=standardize)
    expected = minimise(lambda b: nll(b) + 0.15 * np.sum((scale * b[1:]) ** 2))
    assert_allclose(np.asarray(fit.params), expected, atol=1e-6)
    same = jn.fit_glm(
        X, COUNTS, family="poisson", penalty=jn.penalties.Ridge(0.3), standardize=standardize
    )
    assert_allclose(np.asarray(same.params), np.asarray(fit.params), rtol=1e-12)


def test_weights_count_with_their_mean_in_the_penalty() -> None:
    """Doubling all weights changes nothing: they are normalised to mean 1."""
    one = jn.fit_glm(X, COUNTS, family="poisson", alpha=0.3)
    two = jn.fit_glm(X, COUNTS, family="poisson", alpha=0.3, weights=np.full(60, 2.0))
    assert_allclose(np.asarray(two.params), np.asarray(one.params), rtol=1e-9)


def test_lasso_says_that_it_is_not_built() -> None:
    with pytest.raises(jn.ModelSpecError, match="l1_ratio"):
        jn.fit_glm(X, COUNTS, family="poisson", alpha=0.1, l1_ratio=0.5)
    with pytest.raises(jn.ModelSpecError, match="Lasso"):
        _ = jn.penalties.Lasso


def test_bounds_are_those_of_scipy() -> None:
    fit = jn.fit_glm(X, COUNTS, family="poisson", bounds={"x1": (None, 0.2), "x2": (-0.1, 0.1)})
    box = [(None, None), (None, 0.2), (-0.1, 0.1), (None, None)]
    expected = minimise(nll, bounds=box, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10})
    assert_allclose(np.asarray(fit.params), expected, atol=1e-6)
    assert np.isnan(fit.bse["x1"])  # at its bound
    assert np.isfinite(fit.bse["x3"])


def test_held_values_equal_an_offset() -> None:
    held = jn.fit_glm(X, COUNTS, family="poisson", fix={"x2": -0.25})
    other = jn.fit_glm(X[:, [0, 2]], COUNTS, family="poisson", offset=-0.25 * X[:, 1])
    assert held.params["x2"] == -0.25
    assert np.isnan(held.bse["x2"])
    keep = ["(Intercept)", "x1", "x3"]
    assert_allclose([held.params[k] for k in keep], np.asarray(other.params), rtol=1e-10)
    assert_allclose([held.bse[k] for k in keep], np.asarray(other.bse), rtol=1e-8)
    assert held.df_resid == other.df_resid
    assert_allclose(held.llf, other.llf, rtol=1e-12)


def test_a_held_sigma_gives_the_known_covariance() -> None:
    fit = jn.fit_glm(X, NORMAL, fix={"sigma": 0.5})
    design = np.column_stack([np.ones(60), X])
    assert_allclose(np.asarray(fit.vcov()), 0.25 * np.linalg.inv(design.T @ design), rtol=1e-8)


def test_unknown_labels_are_named() -> None:
    with pytest.raises(jn.ModelSpecError, match="x9"):
        jn.fit_glm(X, COUNTS, family="poisson", fix={"x9": 0.0})
    with pytest.raises(jn.ModelSpecError, match="x4"):
        jn.fit_glm(X, COUNTS, family="poisson", bounds={"x4": (0, 1)})


def test_linear_equality() -> None:
    """Constrained least squares in closed form (Lagrange multipliers)."""
    C, d = np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]), np.array([0.3, 0.1])
    fit = jn.fit_glm(X, NORMAL, penalty=jn.penalties.LinearEquality(C, d))
    design = np.column_stack([np.ones(60), X])
    system = np.block([[design.T @ design, C.T], [C, np.zeros((2, 2))]])
    expected = np.linalg.solve(system, np.concatenate([design.T @ NORMAL, d]))[:4]
    assert_allclose(np.asarray(fit.params), expected, rtol=1e-9)
    assert_allclose(C @ np.asarray(fit.vcov()) @ C.T, 0, atol=1e-12)


def test_monotone_coefficients() -> None:
    """Ascending coefficients: scipy's SLSQP on the same objective."""
    fit = jn.fit_glm(X, COUNTS, family="poisson", penalty=jn.penalties.Monotone(["x1", "x2", "x3"]))
    rules = [{"type": "ineq", "fun": lambda b, k=k: b[k + 1] - b[k]} for k in (1, 2)]
    expected = minimise(nll, constraints=rules, method="SLSQP", options={"ftol": 1e-14})
    assert_allclose(np.asarray(fit.params), expected, atol=1e-5)
    b = np.asarray(fit.params)[1:]
    assert np.all(np.diff(b) >= -1e-12)


def test_normal_priors_are_a_ridge() -> None:
    """Normal(0, s) on all slopes adds b^2 / (2 s^2) to the total minus log-likelihood."""
    priors = {name: jn.priors.Normal(0.0, 0.4) for name in ("x1", "x2", "x3")}
    fit = jn.fit_glm(X, COUNTS, family="poisson", priors=priors)
    expected = minimise(lambda b: nll(b) + np.sum(b[1:] ** 2) / (2 * 0.16 * 60))
    assert_allclose(np.asarray(fit.params), expected, atol=1e-6)


def test_priors_with_an_estimated_sigma_maximise_the_joint_density() -> None:
    prior = jn.priors.Normal(0.0, 0.1)
    fit = jn.fit_glm(X, NORMAL, priors={"fixed": prior})

    def joint(v: np.ndarray) -> float:
        r = NORMAL - v[0] - X @ v[1:4]
        sigma = np.exp(v[4])
        return float(np.sum(r**2) / (2 * sigma**2) + 60 * v[4] + np.sum(v[:4] ** 2) / (2 * 0.01))

    best = optimize.minimize(joint, np.zeros(5), tol=1e-12).x
    assert_allclose(np.asarray(fit.params), best[:4], atol=1e-5)
    assert_allclose(fit.sigma, np.exp(best[4]), rtol=1e-5)


# ---- separation and Firth ---------------------------------------------------------------------


@pytest.mark.parametrize("key", [c["id"] for c in cases("separation")])
def test_firth(key: str) -> None:
    """logistf: coefficients and standard errors 1e-5."""
    chosen = case("separation", key)
    fit = jn.fit_glm(chosen["formula"], frame(chosen), family="binomial", penalty="firth")
    expected = chosen["firth"]
    assert_allclose(np.asarray(fit.params), numbers(expected["coef"]), rtol=1e-5)
    assert_allclose(np.asarray(fit.bse), numbers(expected["se"]), rtol=1e-5)
    assert fit.converged


@pytest.mark.filterwarnings("ignore::jaxnlme.ConvergenceWarning")
@pytest.mark.parametrize("key", ["complete", "quasi"])
def test_separation_is_said_and_flagged(key: str) -> None:
    chosen = case("separation", key)
    with pytest.warns(jn.SeparationWarning, match="x"):
        fit = jn.fit_glm(chosen["formula"], frame(chosen), family="binomial")
    assert not fit.converged


def test_large_but_finite_effects_are_no_separation() -> None:
    chosen = case("separation", "firth_birthwt")
    fit = jn.fit_glm(chosen["formula"], frame(chosen), family="binomial")
    assert fit.converged
