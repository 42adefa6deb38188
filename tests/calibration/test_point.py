"""Point estimates: the optimum of two-layer problems from every method, bounds, and failures."""

from __future__ import annotations

import numpy as np
import pytest
from calibration import posteriors, small

from jaxnlme import ModelSpecError
from jaxnlme.calibration import ModelRunner, Normal, ParameterSet, PointEstimator, Target, Uniform


def test_every_method_finds_the_optimum_of_the_climate_model() -> None:
    """L-BFGS from every start to 1e-8 of the best; the others by the polish at the end."""
    estimator = PointEstimator(*posteriors.problem("two_layer_offset_a"))
    best = estimator.optimize(n_restarts=10, key=1)
    assert best.converged
    assert best.best_log_posterior == pytest.approx(best.restarts[0], abs=1e-12)
    assert np.ptp(best.restarts) < 1e-6
    rough = estimator.optimize("NelderMead", n_restarts=2, n_samples=200, key=2, polish=False)
    assert rough.best_log_posterior == pytest.approx(best.best_log_posterior, abs=1e-3)
    prior = estimator.parameters.log_prior(best.best_params)
    assert best.best_likelihood == pytest.approx(best.best_log_posterior - prior, abs=1e-9)


def test_swarm_and_random_search_find_an_easy_optimum() -> None:
    estimator = PointEstimator(small.parameters(), small.target(),
                               ModelRunner(small.line, times=small.TIMES))  # fmt: skip
    mean, _ = small.exact()
    for method in ("ParticleSwarm", "RandomSearch"):
        found = estimator.optimize(method, n_restarts=2, key=2)
        np.testing.assert_allclose(list(found.best_params.values()), mean, atol=1e-5)
    swarm = estimator.optimize("ParticleSwarm", n_restarts=2, key=2, polish=False)
    np.testing.assert_allclose(list(swarm.best_params.values()), mean, atol=1e-3)
    search = estimator.optimize("RandomSearch", key=2, polish=False)
    assert not search.converged


def test_the_optimum_is_scipys() -> None:
    from scipy.optimize import minimize

    estimator = PointEstimator(small.parameters(), small.target(),
                               ModelRunner(small.line, times=small.TIMES))  # fmt: skip
    found = estimator.optimize(n_restarts=3)
    mean, _ = small.exact()

    def objective(x):
        r = (small.VALUES - x[0] - x[1] * small.TIMES) / 0.5
        return 0.5 * (r @ r) + 0.5 * (x[0] / 5) ** 2

    other = minimize(objective, [0, 0], method="BFGS", options={"gtol": 1e-10})
    x = np.array([found.best_params[n] for n in ("a", "b")])
    np.testing.assert_allclose(x, mean, atol=1e-6)
    assert objective(x) <= other.fun + 1e-10
    assert found.samples.shape[1] == 2
    assert len(found.samples) == len(found.likelihoods) >= 1000
    again = estimator.optimize(n_restarts=3)
    assert again.best_params == found.best_params


def test_bounds_hold_at_an_optimum_on_them() -> None:
    params = ParameterSet({"a": Uniform(-1.0, 1.0), "b": Uniform(-10.0, 10.0)})
    estimator = PointEstimator(params, small.target(small.VALUES + 10),
                               ModelRunner(small.line, times=small.TIMES))  # fmt: skip
    for method in ("L-BFGS", "NelderMead"):
        found = estimator.optimize(method, n_restarts=2)
        assert found.best_params["a"] == pytest.approx(1.0, abs=1e-3)
        assert found.samples[:, 0].max() <= 1.0


def test_wide_priors_are_sampled_by_their_quantiles() -> None:
    params = ParameterSet({"a": Normal(0, 5), "b": Uniform(-1e3, 1e3)})
    estimator = PointEstimator(params, small.target(), ModelRunner(small.line, times=small.TIMES))
    found = estimator.optimize("RandomSearch", n_samples=500, polish=False)
    assert np.abs(found.samples[:, 0]).max() < 20
    assert len(np.unique(np.floor((found.samples[:, 1] + 1e3) / 4))) == 500


def plain(params):
    if params["b"] < -9.9:
        raise RuntimeError("the model broke")
    return {"y": (params["a"] + params["b"] * small.TIMES).tolist()}


def test_a_plain_python_model_needs_a_method_without_gradient() -> None:
    runner = ModelRunner(model_factory=plain, times=small.TIMES)
    estimator = PointEstimator(small.parameters(), small.target(), runner)
    with pytest.raises(ModelSpecError, match="plain Python model has no gradient"):
        estimator.optimize("L-BFGS")
    found = estimator.optimize("NelderMead", n_restarts=2, n_samples=100)
    mean, _ = small.exact()
    np.testing.assert_allclose(list(found.best_params.values()), mean, atol=1e-5)


def test_bad_options() -> None:
    estimator = PointEstimator(small.parameters(), small.target(),
                               ModelRunner(small.line, times=small.TIMES))  # fmt: skip
    with pytest.raises(ModelSpecError, match="Did you mean 'NelderMead'"):
        estimator.optimize("Nelder-Mead")
    with pytest.raises(ModelSpecError, match="n_restarts=0"):
        estimator.optimize(n_restarts=0)
    hopeless = PointEstimator(
        ParameterSet({"a": Normal()}), Target().add_variable("y", [0.0], [1.0], 1.0),
        ModelRunner(lambda q: {"y": q["a"][None] * np.nan}),
    )  # fmt: skip
    with pytest.raises(ModelSpecError, match="not finite at any of the starts"):
        hopeless.optimize()
