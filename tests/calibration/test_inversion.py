"""Ensemble Kalman inversion: exact where models are linear, near the truth where they are not."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from calibration import posteriors, small

import jaxnlme.calibration.problem as problem
from jaxnlme import ModelSpecError, SamplingWarning
from jaxnlme.calibration import (
    AR1,
    LogNormal,
    ModelRunner,
    Normal,
    ParameterSet,
    StudentTLikelihood,
    Target,
    Uniform,
    kalman_inversion,
    make_posterior,
    posterior_predictive,
)
from jaxnlme.calibration.standard import gaussian_problem, run_standard

TIMES = small.TIMES
X = np.column_stack([np.ones(6), TIMES])
PRIORS = {"a": Normal(0, 5), "b": Normal(1, 3)}
PRECISION = np.diag([1 / 25, 1 / 9])


def line(params):
    return {"y": params["a"] + params["b"] * jnp.asarray(TIMES)}


def covariance() -> np.ndarray:
    return 0.25 * 0.6 ** np.abs(TIMES[:, None] - TIMES[None])


def plain() -> Target:
    return Target().add_variable("y", TIMES, small.VALUES, 0.5)


TARGETS = {
    "independent": (plain, 0.25 * np.eye(6)),
    "covariance": (lambda: Target().add_variable("y", TIMES, small.VALUES, covariance=covariance()), covariance()),
    "AR(1)": (
        lambda: Target().add_variable("y", TIMES, small.VALUES, 0.3, discrepancy=AR1(0.4, 0.6)),
        0.09 * np.eye(6) + 0.16 * 0.6 ** np.abs(TIMES[:, None] - TIMES[None]),
    ),
    "anomalies": (lambda: plain().with_reference_period(0, 2), 0.25 * np.eye(6) + 1e9 * np.ones((6, 6))),
}  # fmt: skip


@pytest.mark.parametrize("kind", TARGETS)
def test_a_linear_gaussian_problem_is_solved_exactly(kind: str) -> None:
    """Mean and covariance of 12 particles, 1e-8 (anomalies: an offset of sd 3e4 stands for a flat one, 1e-5)."""
    make, S = TARGETS[kind]
    posterior = make_posterior(ParameterSet(PRIORS), make(), ModelRunner(line, times=TIMES))
    chain = kalman_inversion(posterior, n_particles=12, key=3)
    inverse = np.linalg.inv(S)
    exact = np.linalg.inv(X.T @ inverse @ X + PRECISION)
    mean = exact @ (X.T @ inverse @ small.VALUES + PRECISION @ [0, 1])
    tolerance = 1e-5 if kind == "anomalies" else 1e-8
    found = chain.flat_samples()
    np.testing.assert_allclose(found.mean(0), mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(np.cov(found.T), exact, rtol=tolerance, atol=1e-3 * tolerance)
    steps = np.diff(chain.info["temperatures"])
    assert len(steps) > 1
    assert (steps > 0).all()
    assert chain.info["temperatures"][-1] == pytest.approx(1, abs=1e-12)
    assert chain.info["evaluations"] == 12 * (len(steps) + 1) == len(chain.info["points"])
    assert chain.info["outputs"]["y"].shape == (len(chain.info["points"]), 6)
    # Their log densities are those of the posterior.
    value = st.multivariate_normal.logpdf(found, mean, exact)
    gap = chain.flat_log_probs() - value
    np.testing.assert_allclose(gap, gap[0], atol=1e-6 if kind != "anomalies" else 1e-3)


@pytest.mark.x64
def test_whitened_data_are_the_likelihood() -> None:
    """Log densities from whitened residuals against the posterior's own, at draws of its prior, 1e-10."""
    posterior = posteriors.density("two_layer_offset_a")
    posterior, data = gaussian_problem(posterior, "test")
    x = np.random.default_rng(0).normal(size=(20, 5))
    theta, output, prior = (np.asarray(a) for a in run_standard(posterior, x))
    found = prior + data.constant - 0.5 * ((data.y - data.whiten(output)) ** 2).sum(1)
    z = posterior.to_coordinates(jnp.asarray(theta))
    exact = np.asarray(problem.evaluate_many(posterior, z)[0])
    np.testing.assert_allclose(found, exact, rtol=1e-10)
    for k in range(5):
        u = np.asarray(posterior.prior.priors[k].cdf(theta[:, k]))
        np.testing.assert_allclose(u, st.norm.cdf(x[:, k]), atol=1e-9)


def test_interacting_langevin_dynamics_keeps_the_posterior() -> None:
    """100 particles, 400 steps: means within 0.1 sd, covariance within 10 %."""
    posterior = make_posterior(ParameterSet(PRIORS), plain(), ModelRunner(line, times=TIMES))
    chain = kalman_inversion(posterior, method="aldi", num_steps=400, step_size=0.3, key=1)
    assert chain.samples.shape == (400, 100, 2)
    exact = np.linalg.inv(4 * X.T @ X + PRECISION)
    mean = exact @ (4 * X.T @ small.VALUES + PRECISION @ [0, 1])
    found = chain.flat_samples(20)
    assert np.abs((found.mean(0) - mean) / np.sqrt(np.diag(exact))).max() < 0.1
    np.testing.assert_allclose(np.cov(found.T), exact, rtol=0.1)
    long = kalman_inversion(posterior, method="aldi", num_steps=3, key=1)
    assert long.samples.shape == (3, 100, 2)


def test_a_climate_model_in_300_runs() -> None:
    """Two-layer model, anomalies: means within 0.4 sd of the reference, sds within 35 %."""
    mean, sd, *_ = posteriors.moments("two_layer_offset_a")
    chain = kalman_inversion(posteriors.density("two_layer_offset_a"), key=1)
    assert chain.info["evaluations"] <= 500
    found = chain.flat_samples()
    assert np.abs((found.mean(0) - mean) / sd).max() < 0.4
    np.testing.assert_allclose(found.std(0), sd, rtol=0.35)
    misfits = chain.info["misfits"]
    assert misfits[-1] < 0.35 * misfits[0]
    predicted = posterior_predictive(posteriors.density("two_layer_offset_a"), chain, n_samples=50)
    assert predicted["T"]["simulated"].shape[0] == 50


def test_plain_python_models_may_fail() -> None:
    """A tenth of the prior has no solution: the others carry the ensemble, and failures are counted."""

    def factory(params):
        if params["k"] > 2.5:
            raise FloatingPointError("no solution")
        return {"y": params["A"] * np.exp(-params["k"] * TIMES)}

    seen = 5 * np.exp(-0.4 * TIMES)
    runner = ModelRunner(model_factory=factory, output_variables=["y"], times=TIMES, workers=2)
    posterior = make_posterior(
        ParameterSet({"A": Uniform(0, 10), "k": LogNormal(-0.5, 1)}),
        Target().add_variable("y", TIMES, seen, 0.2), runner,
    )  # fmt: skip
    chain = kalman_inversion(posterior, n_particles=60, key=2)
    assert chain.info["failures"] == runner.failures > 0
    found = chain.flat_samples()
    assert np.abs((found.mean(0) - [5, 0.4]) / found.std(0)).max() < 1.0
    assert (found > 0).all()
    assert (found[:, 0] < 10).all()
    same = kalman_inversion(posterior, n_particles=60, key=2)
    np.testing.assert_array_equal(same.samples, chain.samples)
    runner.close()


def test_bad_input_is_named() -> None:
    runner = ModelRunner(line, times=TIMES)
    good = make_posterior(ParameterSet(PRIORS), plain(), runner)
    student = make_posterior(ParameterSet(PRIORS), plain(), runner, StudentTLikelihood(4.0))
    free = make_posterior(
        ParameterSet({**PRIORS, "s": Uniform(0.1, 1)}), Target().add_variable("y", TIMES, small.VALUES, "s"),
        ModelRunner(line, times=TIMES),
    )  # fmt: skip
    broken = make_posterior(
        ParameterSet(PRIORS), plain(), ModelRunner(lambda q: {"y": jnp.log(-q["a"] ** 2 - jnp.asarray(TIMES))})
    )  # fmt: skip
    for call, says in (
        (lambda: kalman_inversion(good, method="eks"), "use one of"),
        (lambda: kalman_inversion(good, n_particles=3), "n_particles=3"),
        (lambda: kalman_inversion(good, num_steps=3), "ends by itself"),
        (lambda: kalman_inversion(good, method="aldi", num_steps=0), "at least 1"),
        (lambda: kalman_inversion(good, step_size=1.5), "between 0 and 1"),
        (lambda: kalman_inversion(student), "only GaussianLikelihood"),
        (lambda: kalman_inversion(free), "are the parameter 's'"),
        (lambda: kalman_inversion(lambda x: x), "needs a model with observations"),
        (lambda: kalman_inversion(broken, n_particles=20), "only 0 of 20 runs succeeded"),
    ):
        with pytest.raises(ModelSpecError, match=says):
            call()


def sharp(params):
    return {"y": jnp.exp(2 * params["a"] + params["b"] * jnp.asarray(TIMES))}


def test_steps_that_are_too_long_are_told() -> None:
    posterior = make_posterior(
        ParameterSet({"a": Normal(0, 1), "b": Normal(0, 1)}),
        Target().add_variable("y", TIMES, np.exp(0.3 * TIMES), 0.3), ModelRunner(sharp),
    )  # fmt: skip
    with pytest.warns(SamplingWarning, match=r"step_size below 0\.9"):
        chain = kalman_inversion(posterior, method="aldi", step_size=0.9, key=1)
    assert np.isfinite(chain.samples).all()
    assert len(chain) < 100
