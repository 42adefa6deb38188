"""Parameter transforms: round trips, domains, MATLAB's codes, users' own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nlme.jaxprs import computes_float64
from scipy import stats

from jaxnlme._errors import ModelSpecError
from jaxnlme.numerics.bijectors import (
    BY_MATLAB_CODE,
    BY_NAME,
    AbstractBijector,
    Bijector,
    as_bijector,
)

pytestmark = pytest.mark.x64

ALL = {**BY_NAME, "square": Bijector(jnp.square, jnp.sqrt, name="square", domain=(0.0, np.inf))}
X = np.array([-4.0, -0.7, 0.0, 0.3, 4.0])


@pytest.mark.parametrize("name", BY_NAME)
def test_round_trip_and_domain(name):
    t = ALL[name]
    y = np.asarray(t.forward(jnp.asarray(X)))
    low, high = t.domain
    assert np.all((y > low) & (y < high))
    assert np.all(np.diff(y) > 0)
    # Near 1 the natural value resolves eps / (1 - y) = 1e-11 at x = 4.
    np.testing.assert_allclose(t.inverse(jnp.asarray(y)), X, rtol=1e-10, atol=1e-12)
    slope = jax.vmap(jax.grad(lambda v: jnp.asarray(t.forward(v))))(jnp.asarray(X))
    assert np.all(np.asarray(slope) > 0)


def test_values():
    x = jnp.asarray(X)
    np.testing.assert_allclose(ALL["log"].forward(x), np.exp(X), rtol=1e-14)
    np.testing.assert_allclose(ALL["probit"].forward(x), stats.norm.cdf(X), rtol=1e-12)
    np.testing.assert_allclose(ALL["logit"].forward(x), 1 / (1 + np.exp(-X)), rtol=1e-14)
    np.testing.assert_array_equal(ALL["identity"].forward(x), X)


def test_matlab_codes():
    assert BY_MATLAB_CODE == {0: "identity", 1: "log", 2: "probit", 3: "logit"}


@pytest.mark.parametrize("name", BY_NAME)
def test_float32_stays_float32(name):
    t = ALL[name]
    x = jnp.full(2, 0.4, jnp.float32)
    assert computes_float64(jax.make_jaxpr(lambda v: (t.forward(v), t.inverse(v)))(x)) == []


def test_extremes_are_finite_or_at_the_boundary():
    for name in ("probit", "logit"):
        y = np.asarray(ALL[name].forward(jnp.array([-40.0, 40.0])))
        assert np.all((y >= 0) & (y <= 1))


def test_a_users_bijector():
    t = ALL["square"]
    assert isinstance(t, AbstractBijector)
    assert float(t.forward(jnp.array(3.0))) == 9.0
    assert float(t.inverse(jnp.array(9.0))) == 3.0
    assert as_bijector(t) is t
    assert as_bijector(None) is BY_NAME["identity"]
    assert as_bijector("log") is BY_NAME["log"]


def test_an_unknown_name_raises():
    with pytest.raises(ModelSpecError, match=r"transform='lgo'.*log"):
        as_bijector("lgo")
    with pytest.raises(ModelSpecError, match="transforms"):
        as_bijector("nothing", argument="transforms")
