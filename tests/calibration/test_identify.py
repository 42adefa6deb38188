"""Sensitivity against closed forms, and the Fisher spectrum of models with flat directions."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from calibration import small

from jaxnlme import IdentifiabilityWarning, ModelSpecError
from jaxnlme.calibration import (
    ModelRunner,
    Normal,
    ParameterSet,
    Target,
    Uniform,
    fisher_spectrum,
    make_posterior,
    sensitivity,
)


def ishigami(params):
    x, y, z = (params[k] for k in "xyz")
    return {"f": (jnp.sin(x) + 7 * jnp.sin(y) ** 2 + 0.1 * z**4 * jnp.sin(x))[None]}


CUBE = ParameterSet({k: Uniform(-np.pi, np.pi) for k in "xyz"})


def test_sobol_indices_of_the_ishigami_function() -> None:
    """First 0.3139 0.4424 0, total 0.5576 0.4424 0.2437 (Saltelli et al.); 4 standard errors."""
    table = sensitivity(ModelRunner(ishigami, times=[0.0]), CUBE, n=8192, key=1)
    for column, exact in (("first", [0.3139, 0.4424, 0]), ("total", [0.5576, 0.4424, 0.2437])):
        z = (table[column].to_numpy() - exact) / table[f"{column}_se"].to_numpy()
        assert np.abs(z).max() < 4
        assert table[f"{column}_se"].max() < 0.03


def test_morris_and_gradient_on_a_linear_model() -> None:
    """Effects over the unit cube are the slopes times the range, without spread."""

    def model(q):
        return {"f": jnp.stack([2 * q["x"] - q["y"], 2 * q["x"] - q["y"]])}

    runner = ModelRunner(model, times=[0.0, 1.0])
    table = sensitivity(runner, CUBE, "morris", n=20, key=1)
    np.testing.assert_allclose(table["mu"], [4 * np.pi, -2 * np.pi, 0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(table["mu_star"], [4 * np.pi, 2 * np.pi, 0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(table["sigma"], 0, atol=1e-9)
    gradient = sensitivity(runner, CUBE, "gradient", n=4000, key=1)
    sd = 2 * np.pi / np.sqrt(12)
    np.testing.assert_allclose(gradient["effect"], [2 * sd, sd, 0], rtol=0.03, atol=1e-12)
    assert sensitivity(runner, CUBE, "sobol", n=512, kind="polars").shape == (3, 6)


def test_plain_python_models_have_sobol_and_no_gradient() -> None:
    runner = ModelRunner(
        model_factory=lambda q: {"f": [q["x"] + 0.0 * q["z"]]}, output_variables=["f"], times=[0.0]
    )
    table = sensitivity(runner, CUBE, n=512)
    assert table["total"][0] == pytest.approx(1, abs=0.2)
    assert table["total"][2] == 0
    with pytest.raises(ModelSpecError, match="needs a JAX model"):
        sensitivity(runner, CUBE, "gradient")
    with pytest.raises(ModelSpecError, match="Did you mean 'morris'"):
        sensitivity(runner, CUBE, "moris")


def product(params):
    return {"y": params["a"] * params["b"] * jnp.ones(4)}


def test_a_flat_direction_is_named() -> None:
    params = ParameterSet({"a": Normal(1, 0.5), "b": Normal(1, 0.5)})
    target = Target().add_variable("y", np.arange(4), [1.0] * 4, 0.1)
    posterior = make_posterior(params, target, ModelRunner(product))
    with pytest.warns(IdentifiabilityWarning, match="a - "):
        spectrum = fisher_spectrum(posterior, {"a": 1.0, "b": 1.0})
    assert spectrum.eigenvalues[0] > 100
    assert abs(spectrum.eigenvalues[1]) < 1e-6
    assert len(spectrum.flat) == 1
    assert "eigenvalue" in str(spectrum)


def test_the_spectrum_of_a_line_is_that_of_its_normal_equations() -> None:
    posterior = make_posterior(
        small.parameters(), small.target(), ModelRunner(small.line, times=small.TIMES)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectrum = fisher_spectrum(posterior, [1.0, 2.0])
    X = np.column_stack([np.ones(6), small.TIMES]) / 0.5 * [5.0, 20 / np.sqrt(12)]
    expected = np.linalg.eigvalsh(X.T @ X)[::-1]
    np.testing.assert_allclose(spectrum.eigenvalues, expected, rtol=0.01)  # sds of priors are sums
