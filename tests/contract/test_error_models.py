"""What every error model must satisfy. A new model joins by one line in MODELS."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nlme.jaxprs import computes_float64

from jaxnlme import error_models
from jaxnlme._errors import ModelSpecError
from jaxnlme.error_models import AbstractErrorModel, as_error_model, negative_log_density

pytestmark = pytest.mark.x64


class Sloped(AbstractErrorModel):
    """A user's model, with no edit in the library: sd = a (1 + f^2)^(1/2)."""

    name: str = eqx.field(default="sloped", static=True)
    parameters: tuple[str, ...] = eqx.field(default=("a",), static=True)
    log_scale: bool = eqx.field(default=False, static=True)
    depends_on_f: bool = eqx.field(default=True, static=True)

    def sd(self, f, error):
        return error[0] * jnp.sqrt(1 + f**2)


# model, unconstrained parameters
MODELS = {
    "constant": (as_error_model("constant"), [-0.5]),
    "proportional": (as_error_model("proportional"), [-1.2]),
    "combined": (as_error_model("combined"), [-0.9, -1.6]),
    "combined2": (as_error_model("combined2"), [-0.9, -1.6]),
    "exponential": (as_error_model("exponential"), [-0.7]),
    "power": (as_error_model("power"), [-1.0, 0.6]),
    "sloped": (Sloped(), [-1.0]),
}

over_models = pytest.mark.parametrize("name", MODELS)


def test_the_list_is_complete():
    assert set(error_models.BY_NAME) <= set(MODELS)


@over_models
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_the_density_of_y_integrates_to_one(name, weight):
    """Trapezoid over +-12 sd: its error for a normal density is far below 1e-12."""
    model, error = MODELS[name]
    natural = model.natural(jnp.array(error))
    f = jnp.array(np.log(3.0) if model.log_scale else 3.0)
    sd = float(model.sd(f, natural)) / np.sqrt(weight)
    z = jnp.linspace(f - 12 * sd, f + 12 * sd, 4001)
    nll = negative_log_density(model, z, jnp.full_like(z, f), jnp.full_like(z, weight), natural)
    density = np.exp(-np.asarray(nll))
    y = np.exp(z) if model.log_scale else np.asarray(z)
    if model.log_scale:  # the problem adds -log y
        density = density / y
        # The grid is not even in y, so the trapezoid rule has its usual error of order h^2.
        assert abs(np.trapezoid(density, y) - 1) < 1e-4
    else:
        assert abs(np.trapezoid(density, y) - 1) < 1e-12


@over_models
@pytest.mark.parametrize("f", [0.0, -2.0, 1e-300, 5.0])
def test_values_and_gradients_are_finite_at_any_prediction(name, f):
    model, error = MODELS[name]

    def nll(f, unconstrained):
        natural = model.natural(unconstrained)
        z, w = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
        return jnp.sum(negative_log_density(model, z, jnp.stack([f, f]), w, natural))

    value, gradients = jax.value_and_grad(nll, argnums=(0, 1))(jnp.array(f), jnp.array(error))
    assert np.isfinite(value)
    assert np.isfinite(gradients[0])
    assert np.all(np.isfinite(gradients[1]))


@over_models
def test_sd_is_positive_and_has_the_shape_of_f(name):
    model, error = MODELS[name]
    f = jnp.array([[0.5, 1.0, 7.0], [2.0, 3.0, -4.0]])
    sd = model.sd(f, model.natural(jnp.array(error)))
    assert jnp.broadcast_to(sd, f.shape).shape == f.shape
    assert np.all(np.asarray(sd) > 0)
    follows = float(np.ptp(np.asarray(jnp.broadcast_to(sd, f.shape)))) > 0
    assert follows == model.depends_on_f


@over_models
def test_weight_zero_counts_nothing_even_for_nan(name):
    model, error = MODELS[name]
    natural = model.natural(jnp.array(error))
    z = jnp.array([jnp.nan, 1.0])
    nll = negative_log_density(model, z, jnp.ones(2), jnp.array([0.0, 1.0]), natural)
    assert nll[0] == 0
    assert np.isfinite(nll[1])


@over_models
def test_weights_divide_the_variance(name):
    model, error = MODELS[name]
    natural = model.natural(jnp.array(error))
    f, z, w = jnp.array([1.5]), jnp.array([1.9]), 3.0
    sd = float(model.sd(f, natural)[0]) / np.sqrt(w)
    want = 0.5 * (0.4 / sd) ** 2 + np.log(sd) + 0.5 * np.log(2 * np.pi)
    got = negative_log_density(model, z, f, jnp.array([w]), natural)[0]
    np.testing.assert_allclose(got, want, rtol=1e-12)


@over_models
def test_the_relative_form_that_lme_profiles_equals_the_absolute_one(name):
    model, error = MODELS[name]
    sigma, f = 1.7, jnp.array([0.3, 2.0, 9.0])
    units = np.array(model.units[1:], bool)
    shape = jnp.array(np.array(error[1:]) - np.where(units, error[0], 0.0))
    whole = model.absolute(jnp.array(sigma), shape)
    assert whole.shape == (len(model.parameters),)
    absolute = model.sd(f, model.natural(whole))
    np.testing.assert_allclose(absolute, sigma * model.shape_sd(f, shape), rtol=1e-12)


@over_models
def test_start_values_are_usable(name):
    model, _ = MODELS[name]
    start = model.start(jnp.array(0.8), jnp.array(25.0))
    assert start.shape == (len(model.parameters),)
    assert np.all(np.isfinite(start))
    sd = model.sd(jnp.array([5.0]), model.natural(start))
    # Within a factor of ten of the residual sd (0.9).
    assert 0.09 < float(sd[0]) < 9


@over_models
def test_float32_stays_float32(name):
    model, error = MODELS[name]

    def run(f, e):
        return model.sd(f, model.natural(e)), model.start(f[0], f[1])

    single = jnp.ones(3, jnp.float32), jnp.asarray(error, jnp.float32)
    assert computes_float64(jax.make_jaxpr(run)(*single)) == []
    assert computes_float64(jax.make_jaxpr(run)(jnp.ones(3), jnp.asarray(error))) != []


def test_formulas():
    f = jnp.array([-2.0, 3.0])
    a, b, c = 0.5, 0.2, 0.7
    table = {
        "constant": ([a], [a, a]),
        "proportional": ([b], [2 * b, 3 * b]),
        "combined": ([a, b], [a + 2 * b, a + 3 * b]),
        "combined2": ([a, b], np.sqrt([a**2 + 4 * b**2, a**2 + 9 * b**2])),
        "exponential": ([a], [a, a]),
        "power": ([b, c], [b * 2**c, b * 3**c]),
    }
    assert set(table) == set(error_models.BY_NAME)
    for name, (error, want) in table.items():
        got = as_error_model(name).sd(f, jnp.array(error))
        np.testing.assert_allclose(got, want, rtol=1e-14)


def test_names():
    assert as_error_model(Sloped()).name == "sloped"
    with pytest.raises(ModelSpecError, match=r"'proportonal'.*proportional"):
        as_error_model("proportonal")
