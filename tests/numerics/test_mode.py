"""The mode finder: exact for quadratics, safe on hard problems, group by group.

A group stops at a squared Newton step of 1e-13 or less (in conditional sd): modes are good to 4e-7.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlme.numerics.mode import Evaluation, find_mode

pytestmark = pytest.mark.x64


def evaluation(value, u, safe=None):
    """Differentiate ``value(u_row, k)`` per group ``k``."""
    k = jnp.arange(u.shape[0])
    gradient = jax.vmap(jax.grad(value))(u, k)
    hessian = jax.vmap(jax.hessian(value))(u, k)
    eye = jnp.broadcast_to(jnp.eye(u.shape[1]), hessian.shape)
    return Evaluation(jax.vmap(value)(u, k), gradient, hessian, eye if safe is None else safe, u)


def test_a_quadratic_is_solved_by_one_step():
    centre = jnp.array([[1.0, -2.0], [0.0, 3.0], [5.0, 5.0]])
    a = jnp.array([[2.0, 0.5], [0.5, 1.0]])

    def value(u, k):
        d = u - centre[k]
        return 0.5 * d @ a @ d

    mode = find_mode(lambda u: evaluation(value, u), jnp.zeros((3, 2)))
    np.testing.assert_allclose(mode.u, centre, atol=1e-14)
    assert bool(jnp.all(mode.converged))
    assert int(mode.num_steps) == 2


def test_the_evaluation_belongs_to_the_mode():
    def value(u, k):
        return jnp.sum(jnp.cosh(u - k))

    mode = find_mode(lambda u: evaluation(value, u), jnp.full((4, 2), 3.0))
    np.testing.assert_array_equal(mode.evaluation.aux, mode.u)
    np.testing.assert_allclose(mode.u, np.arange(4)[:, None] * np.ones(2), atol=4e-7)
    np.testing.assert_allclose(mode.evaluation.value, 2.0, rtol=1e-12)


def test_full_steps_that_overshoot_are_halved():
    """Newton on log cosh diverges from |u| > 1.09."""

    def value(u, k):
        return jnp.sum(jnp.log(jnp.cosh(u)))

    mode = find_mode(lambda u: evaluation(value, u), jnp.array([[2.0], [-3.0], [0.5]]))
    assert bool(jnp.all(mode.converged))
    np.testing.assert_allclose(mode.u, 0, atol=4e-7)


def test_an_indefinite_hessian_is_replaced():
    def value(u, k):
        return 0.25 * jnp.sum(u**4) - 0.5 * jnp.sum(u**2)

    mode = find_mode(lambda u: evaluation(value, u), jnp.array([[0.1], [-0.1]]))
    assert bool(jnp.all(mode.converged))
    np.testing.assert_allclose(mode.u, [[1.0], [-1.0]], atol=4e-7)


def test_a_group_without_finite_values_hurts_no_other():
    def value(u, k):
        return jnp.where(k == 1, jnp.nan, 0.5 * jnp.sum((u - k) ** 2))

    mode = find_mode(lambda u: evaluation(value, u), jnp.zeros((3, 2)))
    np.testing.assert_array_equal(mode.converged, [True, False, True])
    np.testing.assert_allclose(mode.u[2], 2.0, atol=1e-14)


def test_an_unusable_start_begins_again_at_zero():
    def value(u, k):
        return jnp.where(jnp.any(u > 10), jnp.nan, 0.5 * jnp.sum((u - 1) ** 2))

    mode = find_mode(lambda u: evaluation(value, u), jnp.array([[20.0], [2.0]]))
    assert bool(jnp.all(mode.converged))
    np.testing.assert_allclose(mode.u, 1.0, atol=1e-12)


def test_the_step_limit_is_reported_per_group():
    def value(u, k):
        return jnp.sum(jnp.cosh(u))

    mode = find_mode(lambda u: evaluation(value, u), jnp.array([[30.0], [0.0]]), max_steps=3)
    np.testing.assert_array_equal(mode.converged, [False, True])


def test_no_random_effects():
    mode = find_mode(
        lambda u: Evaluation(
            jnp.ones(3), jnp.zeros((3, 0)), jnp.zeros((3, 0, 0)), jnp.zeros((3, 0, 0)), u
        ),
        jnp.zeros((3, 0)),
    )
    assert bool(jnp.all(mode.converged))
