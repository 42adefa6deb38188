"""``fminsearch`` against SciPy's Nelder-Mead, which has the same steps when it is given the same simplex."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxnlme.numerics.simplex import adaptive, fminsearch, simplex

pytestmark = pytest.mark.x64


def valley(x, a):
    """Curved and of different widths; works for NumPy and JAX arrays."""
    return (a * (x - 1) ** 2).sum() + 3 * ((x[1:] - x[:-1] ** 2) ** 2).sum()


@jax.jit
def search(x0, a, tolerance):
    return fminsearch(lambda x: valley(x, a), x0, tol_x=tolerance, tol_fun=tolerance)


def simplex_of(x0):
    corners = [np.where(np.arange(len(x0)) == k, np.where(x0 == 0, 2.5e-4, 1.05 * x0), x0)
               for k in range(len(x0))]  # fmt: skip
    return np.array([x0, *corners])


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_the_same_steps_as_scipy(n, tolerance):
    rng = np.random.default_rng(n)
    for _ in range(3):
        x0 = rng.normal(size=n) * (rng.random(n) < 0.8)
        a = rng.uniform(0.1, 3, n)
        found = search(x0, a, tolerance)
        options = {"xatol": tolerance, "fatol": tolerance, "initial_simplex": simplex_of(x0)}
        theirs = minimize(valley, x0, args=(a,), method="Nelder-Mead", options=options)
        np.testing.assert_allclose(found.x, theirs.x, rtol=0, atol=1e-8)
        assert int(found.num_evaluations) == theirs.nfev
        assert bool(found.converged)


@jax.jit
def adaptive_search(points, a):
    n = points.shape[1]
    return simplex(lambda x: valley(x, a), points, tol_x=1e-6, tol_fun=1e-6, max_steps=5000,
                   coefficients=adaptive(n))  # fmt: skip


def test_adaptive_steps_are_scipys():
    n = 6
    rng = np.random.default_rng(0)
    for _ in range(3):
        points = simplex_of(rng.normal(size=n))
        a = rng.uniform(0.1, 3, n)
        found = adaptive_search(points, a)
        options = {"xatol": 1e-6, "fatol": 1e-6, "initial_simplex": points, "adaptive": True,
                   "maxiter": 5000, "maxfev": 50_000}  # fmt: skip
        theirs = minimize(valley, points[0], args=(a,), method="Nelder-Mead", options=options)
        np.testing.assert_allclose(found.x, theirs.x, rtol=0, atol=1e-6)
        assert int(found.num_evaluations) == theirs.nfev
        assert bool(found.converged)


def test_the_limit_is_kept_and_told():
    found = fminsearch(lambda x: valley(x, jnp.ones(3)), jnp.full(3, -2.0), max_steps=5)
    assert not found.converged
    assert found.value < valley(np.full(3, -2.0), np.ones(3))


def test_lanes_of_a_batch_stop_on_their_own():
    starts = jnp.array([[0.0, 2.0], [1.0, 1.0], [-3.0, 0.5]])
    together = jax.vmap(lambda x: search(x, jnp.ones(2), 1e-4))(starts)
    for k, start in enumerate(starts):
        alone = search(start, jnp.ones(2), 1e-4)
        np.testing.assert_allclose(together.x[k], alone.x, rtol=0, atol=1e-12)
        assert together.num_evaluations[k] == alone.num_evaluations


def test_walls_are_walked_around():
    """A refused region is a large number, as nlmefit has it."""
    wall = fminsearch(lambda x: jnp.where(x[0] > 0.5, 4.5e15, (x[0] - 1) ** 2), jnp.array([0.1]))
    assert 0.49 < float(wall.x[0]) <= 0.5
