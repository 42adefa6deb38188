"""History matching and its Gaussian processes: against scikit-learn, brute force and quadrature."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from calibration import posteriors

from jaxnlme import ModelSpecError, SamplingWarning
from jaxnlme.calibration import (
    Bound,
    EnsembleSampler,
    GaussianLikelihood,
    LogNormal,
    ModelRunner,
    Normal,
    ParameterSet,
    Target,
    Uniform,
    history_match,
    make_posterior,
    posterior_predictive,
    sample,
)
from jaxnlme.calibration.emulator import Kernel, fit_gaussian_process, padded, predict_many, train
from jaxnlme.calibration.standard import from_standard, to_standard

TIMES = np.arange(6.0)
SEEN = 5 * np.exp(-0.4 * TIMES) + np.array([0.1, -0.2, 0.15, 0.05, -0.1, 0.2])


def decay(params):
    return {"y": params["A"] * jnp.exp(-params["k"] * TIMES)}


@functools.cache
def problem():
    return make_posterior(
        ParameterSet({"A": Normal(4, 2), "k": LogNormal(-1, 0.5)}),
        Target().add_variable("y", TIMES, SEEN, 0.2), ModelRunner(decay, times=TIMES),
    )  # fmt: skip


@jax.jit
def _log_prob(posterior, theta):
    return jax.vmap(posterior.log_prob)(theta)


def densities(posterior, theta) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_log_prob(posterior, theta))


# ---- Gaussian processes -------------------------------------------------------------------------


def surface(n: int = 40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2))
    y = np.sin(1.5 * x[:, 0]) + 0.3 * x[:, 1] + 0.1 * rng.normal(size=n)
    return x, (y - y.mean()) / y.std()


def sklearns(numbers: np.ndarray, optimizer=None):
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    process = pytest.importorskip("sklearn.gaussian_process")
    s, t, g = np.exp(numbers[:3])
    kernel = (
        kernels.ConstantKernel(s**2, (1e-6, 1e6)) * kernels.RBF(np.exp(numbers[3:]), (1e-3, 1e4))
        + kernels.ConstantKernel(t**2, (1e-9, 1e6)) * kernels.DotProduct(1.0, "fixed")
        + kernels.WhiteKernel(g**2, (1e-9, 1e2))
    )
    return process.GaussianProcessRegressor(
        kernel, alpha=1e-15, optimizer=optimizer, random_state=0
    )


@pytest.mark.parametrize("numbers", [[0, -1, -2, 0, 1], [0.5, 0.3, -4, -0.5, 0.2]])
def test_marginal_likelihood_and_predictions_are_scikit_learns(numbers: list[float]) -> None:
    """Value 1e-9, slopes 1e-7, means and variances 1e-7 (noise e^-8: condition 1e6)."""
    x, y = surface()
    numbers = np.array(numbers, float)
    theirs = sklearns(numbers).fit(x, y)
    value, slopes = theirs.log_marginal_likelihood(theirs.kernel_.theta, eval_gradient=True)
    ours, own = Kernel(numbers).cost(x, y)
    assert ours == pytest.approx(-value, rel=1e-9)
    s, *lengths, t, g = -slopes  # in the logarithms of s^2, t^2, g^2
    np.testing.assert_allclose(own, [2 * s, 2 * t, 2 * g, *lengths], rtol=1e-7, atol=1e-7)
    new = np.random.default_rng(1).normal(size=(30, 2))
    mean, sd = theirs.predict(new, return_std=True)
    root, white, _ = Kernel(numbers).solve(x, y)
    made = train(x, y[:, None])[0]
    scaled = type(made)(
        inputs=x, shift=np.zeros(2), scale=np.ones(2), numbers=np.exp(numbers)[None],
        weights=(root.T @ white)[None], roots=root[None], mean=np.zeros(1), sd=np.ones(1),
    )  # fmt: skip
    with jax.enable_x64(True):
        found = [np.asarray(a) for a in predict_many(scaled, new)]
        more = [np.asarray(a) for a in predict_many(padded(scaled), new)]
    np.testing.assert_allclose(found[0][:, 0], mean, atol=1e-7)
    np.testing.assert_allclose(found[1][:, 0], sd**2, atol=1e-7)
    for a, b in zip(found, more, strict=True):
        np.testing.assert_allclose(b[:, :1], a, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(b[:, 1:], 0)


@pytest.mark.x64
def test_the_optimum_is_scikit_learns_or_better() -> None:
    x, y = surface()
    ours = fit_gaussian_process(x, y, weak_priors=False)
    theirs = sklearns(np.zeros(5), "fmin_l_bfgs_b").fit(x, y)
    assert -ours.cost(x, y)[0] > theirs.log_marginal_likelihood_value_ - 1e-4
    slopes = ours.cost(x, y)[1]
    assert np.abs(slopes[np.abs(ours.log_numbers) < 5]).max() < 1e-2


@pytest.mark.x64
def test_leave_one_out_errors_are_those_of_brute_force() -> None:
    x, y = surface(12)
    made, errors = train(x, y[:, None])
    inputs = (x - made.shift) / made.scale
    own = (y - made.mean[0]) / made.sd[0]
    kernel = Kernel(np.log(np.asarray(made.numbers)[0]))
    curve, trend = kernel.parts(inputs)
    whole = curve + trend + kernel.g**2 * np.eye(12)
    for k in range(12):
        rest = np.delete(np.arange(12), k)
        weights = np.linalg.solve(whole[np.ix_(rest, rest)], whole[rest, k])
        mean, variance = weights @ own[rest], whole[k, k] - weights @ whole[rest, k]
        assert errors[k, 0] == pytest.approx((own[k] - mean) / np.sqrt(variance), rel=1e-7)


@jax.jit
def _there_and_back(priors, x):
    theta = jax.vmap(lambda row: from_standard(priors, row))(x)
    return theta, jax.vmap(lambda row: to_standard(priors, row))(theta)


@pytest.mark.x64
def test_standard_coordinates_and_back() -> None:
    priors = ParameterSet({
        "n": Normal(3, 2), "l": LogNormal(0, 1), "u": Uniform(-1, 4),
        "t": Bound(Normal(0, 1), lower=0.5),
    }).density()  # fmt: skip
    x = np.random.default_rng(0).normal(size=(50, 4)) * 1.5
    theta, back = (np.asarray(a) for a in _there_and_back(priors, x))
    np.testing.assert_allclose(back, x, atol=1e-7)
    np.testing.assert_allclose(
        theta[:, 3], st.truncnorm(0.5, np.inf).ppf(st.norm.cdf(x[:, 3])), rtol=1e-9
    )


# ---- waves --------------------------------------------------------------------------------------


def grid_moments(posterior) -> tuple[np.ndarray, np.ndarray, float]:
    """Means, sds and log evidence by sums over a fine grid of the box that holds the posterior."""
    a, k = np.linspace(3.8, 6.4, 120), np.linspace(0.2, 0.75, 120)
    theta = np.stack([g.ravel() for g in np.meshgrid(a, k, indexing="ij")], 1)
    value = densities(posterior, theta)
    w = np.exp(value - value.max())
    evidence = value.max() + np.log(w.sum() * (a[1] - a[0]) * (k[1] - k[0]))
    w = w / w.sum()
    mean = w @ theta
    return mean, np.sqrt(w @ theta**2 - mean**2), float(evidence)


def test_the_emulated_posterior_is_the_exact_one() -> None:
    """48 runs at most: means 0.02 sd, sds 2 %, evidence 0.03; densities where the posterior is, 0.05."""
    found = history_match(problem(), n_runs=20, key=1)
    assert len(found.points) == sum(w.runs for w in found.waves) + 8 <= 48
    assert found.check < 0.1
    mean, sd, evidence = grid_moments(problem())
    ours = grid_moments(found.posterior)
    np.testing.assert_allclose((ours[0] - mean) / sd, 0, atol=0.02)
    np.testing.assert_allclose(ours[1], sd, rtol=0.02)
    assert ours[2] == pytest.approx(evidence, abs=0.03)
    theta = mean + sd * np.random.default_rng(0).normal(size=(50, 2)) * 0.7
    np.testing.assert_allclose(
        densities(found.posterior, theta), densities(problem(), theta), atol=0.05
    )
    chain = sample(
        found.posterior, num_steps=1500, n_ensembles=4, moves="de", key=2, progress=False
    )
    assert np.abs((chain.flat_samples(200).mean(0) - mean) / sd).max() < 0.15
    made = posterior_predictive(problem(), chain, n_samples=20)  # by the model itself
    assert made["y"]["simulated"].shape == (20, 6)
    table = found.summary()
    assert list(table["wave"]) == list(range(1, len(found.waves) + 1))
    assert table["space"].iloc[-1] < 0.2
    # What is left meets the data, far points do not, and what the runs say is the model's.
    assert found.implausibility(found.left).max() <= 4
    assert found.implausibility([9.0, 0.1])[0] > 10
    np.testing.assert_allclose(found.log_posteriors, densities(problem(), found.points), rtol=1e-9)
    np.testing.assert_allclose(
        found.outputs["y"][:3],
        found.points[:3, :1] * np.exp(-found.points[:3, 1:] * TIMES),
        rtol=1e-12,
    )


def wiggly(params):
    return {"y": params["A"] * jnp.exp(-params["k"] * TIMES) + jnp.sin(3 * params["A"]) * 0.6}


def test_ignorance_of_the_model_enters_the_posterior_or_is_told() -> None:
    """Twelve runs of a wiggly model, six designs: the exact means are within 3 emulated sds, or the check says no."""
    posterior = make_posterior(
        ParameterSet({"A": Normal(4, 2), "k": LogNormal(-1, 0.5)}),
        Target().add_variable("y", TIMES, SEEN, 0.2), ModelRunner(wiggly, times=TIMES),
    )  # fmt: skip
    exact, wrong = grid_moments(posterior), []
    for key in range(1, 7):
        with pytest.warns(SamplingWarning) as told:
            few = history_match(posterior, n_runs=12, n_waves=1, key=key)
        assert any("ignorance shapes" in str(w.message) for w in told)
        mean, sd, _ = grid_moments(few.posterior)
        far = np.abs((mean - exact[0]) / sd).max() > 3
        assert few.check > 4 or not far
        assert any("off by up" in str(w.message) for w in told) == (few.check > 4)
        wrong.append(far)
    assert 0 < sum(wrong) < 4
    many = history_match(posterior, n_runs=40, n_waves=4, key=1)
    mean, sd, _ = grid_moments(many.posterior)
    np.testing.assert_allclose((mean - exact[0]) / exact[1], 0, atol=0.1)
    np.testing.assert_allclose(sd, exact[1], rtol=0.1)
    assert many.check < 1


def test_plain_python_models_and_failures() -> None:
    def factory(params):
        if params["k"] > 0.9:
            raise FloatingPointError("no solution")
        return {"y": params["A"] * np.exp(-params["k"] * TIMES)}

    runner = ModelRunner(model_factory=factory, output_variables=["y"], times=TIMES)
    sampler = EnsembleSampler(
        ParameterSet({"A": Normal(4, 2), "k": LogNormal(-1, 0.5)}),
        Target().add_variable("y", TIMES, SEEN, 0.2), runner,
    )  # fmt: skip
    found = history_match(sampler, n_runs=40, n_waves=1, key=3)
    assert found.failures == runner.failures > 0
    assert len(found.points) == 48
    mean, sd, _ = grid_moments(problem())
    ours = grid_moments(found.posterior)
    np.testing.assert_allclose((ours[0] - mean) / sd, 0, atol=0.05)


@pytest.mark.study
@pytest.mark.parametrize("name", ["two_layer_offset_a", "two_layer_absolute_a"])
def test_climate_models_in_120_runs(name: str) -> None:
    """Means within 0.15 sd, sds within 10 % of the references."""
    mean, sd, *_ = posteriors.moments(name)
    found = history_match(posteriors.density(name), n_runs=30, n_waves=4, key=1)
    assert len(found.points) <= 130
    assert found.check < 1
    chain = sample(found.posterior, num_steps=4000, n_ensembles=4, moves="de", progress=False)
    flat = chain.flat_samples(800)
    print("moments", name, ((flat.mean(0) - mean) / sd).round(3), (flat.std(0) / sd).round(3))
    np.testing.assert_allclose((flat.mean(0) - mean) / sd, 0, atol=0.15)
    np.testing.assert_allclose(flat.std(0), sd, rtol=0.1)


def test_what_cannot_be_matched_is_told() -> None:
    impossible = make_posterior(
        ParameterSet({"A": Normal(4, 2), "k": LogNormal(-1, 0.5)}),
        Target().add_variable("y", TIMES, [0, 9, 0, 9, 0, 9], 0.2), ModelRunner(decay, times=TIMES),
    )  # fmt: skip
    with pytest.raises(ModelSpecError, match="every point is ruled out"):
        history_match(impossible, n_runs=20, key=1)
    found = history_match(problem(), n_runs=20, n_waves=1, key=1)
    chain = sample(found.posterior, num_steps=5, progress=False)
    for call, says in (
        (lambda: history_match(problem(), n_runs=4), "n_runs=4"),
        (lambda: history_match(problem(), n_waves=0), "n_waves=0"),
        (lambda: history_match(problem(), cutoff=0), "cutoff=0"),
        (lambda: history_match(posteriors.density("expdecay_a")), "are the parameter 'sigma'"),
        (lambda: posterior_predictive(found.posterior, chain), "emulates the model"),
        (lambda: history_match(GaussianLikelihood()), "needs a model with observations"),
    ):
        with pytest.raises(ModelSpecError, match=says):
            call()
