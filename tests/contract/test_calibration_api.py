"""The names, arguments, defaults and results of calibration that users and outside checks rely on."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from calibration import small

import jaxnlme as jn
from jaxnlme.calibration import (
    Bound,
    Chain,
    EnsembleSampler,
    GaussianLikelihood,
    LogNormal,
    ModelRunner,
    Normal,
    ParameterSet,
    PointEstimator,
    SamplerState,
    Target,
    TruncatedNormal,
    Uniform,
)

QUIET = {"progress": False}


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (EnsembleSampler, {"n_walkers": None, "moves": None, "stretch_scale": 2.0, "n_ensembles": 1}),
        (EnsembleSampler.initialize,
         {"method": "prior", "center": None, "radius": None, "positions": None, "key": 0}),
        (EnsembleSampler.run,
         {"thin": 1, "progress": None, "checkpoint_every": None, "checkpoint_path": None,
          "callback": None, "stop": None}),
        (PointEstimator.optimize, {"method": "L-BFGS", "n_restarts": 10, "key": 0}),
        (ParameterSet.add, {"transform": None}),
        (Target.add_variable, {"uncertainties": None, "relative_error": None}),
        (Target.from_dataframe, {"uncertainty_col": None, "relative_error": None, "reference_period": None}),
        (GaussianLikelihood, {"relative_error": None}),
        (jn.calibration.sample,
         {"method": "ensemble", "init": None, "key": 0, "n_walkers": None, "n_ensembles": 1}),
        (jn.calibration.sensitivity, {"method": "sobol"}),
        (Chain.flat_samples, {"discard": 0}),
        (Chain.to_dataframe, {"discard": 0}),
        (Chain.r_hat, {"discard": 0}),
        (Chain.ess, {"discard": 0, "kind": "bulk"}),
        (Chain.autocorr_time, {"discard": 0}),
        (Chain.is_converged, {"discard": 0, "r_hat_threshold": 1.01}),
        (Chain.summary, {"discard": 0}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)  # fmt: skip
def test_arguments_and_defaults(function: Any, expected: dict[str, Any]) -> None:
    found = defaults(function)
    assert {name: found[name] for name in expected} == expected


def test_priors_and_parameters() -> None:
    params = ParameterSet(
        {"ecs": Bound(Normal(3.0, 0.5), lower=1.5, upper=6.0), "k": Uniform(0.5, 2.0)}
    )
    assert params.add("s", LogNormal(0.0, 1.0), transform="log") is params
    assert params.add("t", TruncatedNormal(0.0, 1.0, lower=0.0)).names() == ["ecs", "k", "s", "t"]
    assert params.bounds() == [(1.5, 6.0), (0.5, 2.0), (0.0, None), (0.0, None)]
    assert params.sample(5).shape == (5, 4)
    value = params.ln_prior(params.sample(1)[0])
    assert isinstance(value, float)
    prior = Normal(3.0, 0.5)
    assert prior.sample(3, key=1).shape == (3,)
    assert prior.ln_pdf(3.0) == prior.log_prob(3.0)
    assert prior.bounds() == (None, None)
    assert prior.icdf(prior.cdf(3.3)) == pytest.approx(3.3)
    assert prior.from_unconstrained(prior.to_unconstrained(3.3)) == pytest.approx(3.3)


def test_targets_and_models() -> None:
    years = np.arange(1850.0, 1910)
    values = 0.01 * (years - 1880)
    target = Target().add_variable("T", years, values, 0.1).with_reference_period(1850, 1900)
    frame = {"year": years, "gmst": values, "gmst_sd": np.full(60, 0.1)}
    for column in ("gmst_sd", {"T": "gmst_sd"}):
        other = Target.from_dataframe(
            frame, time_col="year", variables={"T": "gmst"}, uncertainty_col=column,
            relative_error=None, reference_period=(1850, 1900),
        )  # fmt: skip
        np.testing.assert_array_equal(other["T"].values, target["T"].values)
        assert other["T"].reference == target["T"].reference

    def model(params):
        return {"T": params["b"] * (jnp.asarray(years) - 1850)}

    runner = ModelRunner(model, output_variables=["T"], times=years)
    assert runner.run({"b": 0.01})["T"].shape == (60,)
    assert runner.param_names == ["b"] or runner.param_names is None

    def plain(params):
        return {"T": {float(t): params["b"] * (t - 1850) for t in years}}

    factory = ModelRunner(
        model_factory=plain, output_variables=["T"], times=years, param_names=["b"]
    )
    np.testing.assert_allclose(factory.run([0.01])["T"], 0.01 * (years - 1850), rtol=1e-12)
    assert factory.run_batch([[0.01], [0.02]])["T"].shape == (2, 60)


def problem() -> tuple:
    return small.parameters(), small.target(), ModelRunner(small.line, ["y"], times=small.TIMES)


@functools.cache
def chain() -> Chain:
    sampler = EnsembleSampler(*problem(), GaussianLikelihood(relative_error=None), n_walkers=8,
                              n_ensembles=2)  # fmt: skip
    state = sampler.initialize(method="ball", center={"a": 1.0, "b": 2.0}, radius=0.2, key=0)
    return sampler.run(state, n_steps=300, thin=2, progress=False, callback=None, stop=None)


def test_the_sampler(tmp_path: Path) -> None:
    assert EnsembleSampler(*problem()).n_walkers == 32  # max(2 p, 32)
    sampler = EnsembleSampler(*problem(), GaussianLikelihood(), n_walkers=8, moves="stretch",
                              stretch_scale=2.0)  # fmt: skip
    prior = sampler.initialize(method="prior")
    assert isinstance(prior, SamplerState)
    assert prior.positions.shape == (8, 2)
    assert prior.log_probs.shape == (8,)
    assert prior.iteration == 0
    given = sampler.initialize(method="explicit", positions=prior.positions, key=3)
    np.testing.assert_allclose(given.positions, prior.positions, rtol=1e-14)
    path = tmp_path / "run.chain"
    first = sampler.run(given, n_steps=40, thin=10, progress=False, checkpoint_every=20,
                        checkpoint_path=str(path))  # fmt: skip
    assert first.samples.shape == (4, 8, 2)
    assert path.is_dir()
    both = sampler.resume(str(path), n_steps=20, progress=False)
    whole = sampler.run(given, n_steps=60, thin=10, progress=False)
    np.testing.assert_array_equal(both.samples, whole.samples)


def test_the_chain(tmp_path: Path) -> None:
    c = chain()
    assert c.samples.shape == (150, 16, 2)
    assert c.log_probs.shape == (150, 16)
    assert c.acceptance_fractions.shape == c.acceptance_fraction().shape == (16,)
    assert 0 < c.mean_acceptance_rate() < 1
    assert c.param_names == ["a", "b"]
    np.testing.assert_array_equal(c.ensemble, np.repeat([0, 1], 8))
    assert c.flat_samples(discard=50).shape == (1600, 2)
    frame = c.to_dataframe(discard=0)
    assert list(frame.columns) == ["iteration", "walker", "log_prob", "a", "b"]
    for table in (c.r_hat(), c.ess(), c.ess(kind="tail"), c.autocorr_time(discard=10)):
        assert list(table) == ["a", "b"]
        assert all(np.isfinite(v) for v in table.values())
    assert isinstance(c.is_converged(discard=0, r_hat_threshold=1.01), bool)
    with pytest.warns(jn.SamplingWarning):
        summary = c.summary()
    assert summary["parameter"].tolist() == ["a", "b"]
    assert len(c.thin(2)) == 75
    assert len(c.merge(c)) == 300
    c.save(tmp_path / "c")
    c.append(tmp_path / "c")
    assert len(Chain.load(tmp_path / "c")) == 300


def test_a_chain_goes_to_xarray() -> None:
    pytest.importorskip("xarray")
    data = chain().to_xarray()
    assert dict(data.sizes) == {"chain": 16, "draw": 150}
    assert set(data) >= {"a", "b"}


def test_pictures() -> None:
    pytest.importorskip("matplotlib")
    _, target, runner = problem()
    plot = chain().plot
    for draw in (plot.trace, plot.corner, plot.autocorr, plot.acceptance, plot.rank,
                 plot.prior_posterior):  # fmt: skip
        assert np.size(draw()) >= 1
    assert len(plot.posterior_predictive(runner, target, 20, 10)) == 1


@pytest.mark.parametrize("method", ["L-BFGS", "NelderMead", "ParticleSwarm", "RandomSearch"])
def test_point_estimates(method: str) -> None:
    estimator = PointEstimator(*problem(), GaussianLikelihood())
    result = estimator.optimize(method=method, n_restarts=2, n_samples=100, key=0)
    assert list(result.best_params) == ["a", "b"]
    np.testing.assert_allclose(list(result.best_params.values()), small.exact()[0], atol=1e-4)
    assert isinstance(result.best_likelihood, float)
    assert result.samples.shape == (len(result.likelihoods), 2)


def log_prob(x):
    return -0.5 * jnp.sum(x**2)


@pytest.mark.parametrize("method", ["ensemble", "nuts", "mclmc", "smc"])
def test_sample_any_log_density(method: str) -> None:
    if method in ("nuts", "mclmc"):
        pytest.importorskip("blackjax")
    init = np.random.default_rng(0).normal(size=(8, 2))
    more = {"num_warmup": 50} if method in ("nuts", "mclmc") else {}
    c = jn.calibration.sample(
        log_prob, method=method, init=init, key=1, num_steps=60, **more,
        **(QUIET if method == "ensemble" else {}),
    )  # fmt: skip
    assert isinstance(c, Chain)
    assert c.samples.shape == (60, 8, 2)  # SMC: 8 runs of 60 particles
    assert np.isfinite(c.samples).all()
    if method == "nuts":
        assert len(set(c.ensemble)) == 8  # independent chains


def test_sensitivity() -> None:
    params, _, runner = problem()
    for method in ("sobol", "morris", "gradient"):
        table = jn.calibration.sensitivity(runner, params, method=method, n=16)
        assert table["parameter"].tolist() == ["a", "b"]


def test_fitted_models_are_densities() -> None:
    data = {"y": [0, 0, 1, 0, 1, 1, 0, 1], "x": [-2.0, -1, -0.5, 0.5, 1, 2, 0.1, 0.3]}
    fit = jn.fit_glm("y ~ x", data, family="binomial")
    posterior = fit.log_posterior({"fixed": Normal(0, 2.5)})
    c = jn.calibration.sample(posterior, method="ensemble", num_steps=20, key=0, **QUIET)
    assert c.param_names == fit.params.index
    assert c.samples.shape == (20, 32, 2)
    best = PointEstimator(posterior).optimize(n_restarts=1, n_samples=20)
    assert list(best.best_params) == fit.params.index


def test_the_ensemble_sampler_takes_a_fitted_model() -> None:
    data = {"y": [0, 0, 1, 0, 1, 1, 0, 1], "x": [-2.0, -1, -0.5, 0.5, 1, 2, 0.1, 0.3]}
    fit = jn.fit_glm("y ~ x", data, family="binomial")
    posterior = fit.log_posterior({"fixed": Normal(0, 2.5)})
    sampler = EnsembleSampler(posterior, n_walkers=8)
    state = sampler.initialize("explicit", positions=posterior.starts(8))
    assert sampler.run(state, 10, **QUIET).samples.shape == (10, 8, 2)
    with pytest.raises(jn.ModelSpecError, match="target= has no use"):
        EnsembleSampler(posterior, small.target())
