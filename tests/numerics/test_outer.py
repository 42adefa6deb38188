"""The quasi-Newton loop: known minima, steps into nowhere, held coordinates, batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlme._results import RESULTS, result_name
from jaxnlme.numerics import outer

pytestmark = pytest.mark.x64


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def walled(x):
    """Not finite where x[0] > 2; its minimum (1.9, 1) stands close to the wall."""
    inside = jnp.log(2 - x[0])
    return -inside - 10 * x[0] + 0.5 * (x[1] - 1) ** 2


def minimise(f, x0, *, free=None, max_change=jnp.inf, tolerance=1e-14, max_steps=500, h0=None):
    x0 = jnp.asarray(x0, float)
    free = jnp.ones(x0.shape, bool) if free is None else jnp.asarray(free)
    h0 = jnp.eye(x0.shape[0]) if h0 is None else h0

    def body(carry):
        s = outer.advance(
            carry[0], *jax.value_and_grad(f)(carry[0].trial), free=free, max_change=max_change
        )
        return s, *outer.terminate(s, tolerance=tolerance, max_steps=max_steps)

    first = (outer.start(x0, h0, free), jnp.zeros((), bool), RESULTS.max_steps_reached)
    state, _, result = jax.lax.while_loop(lambda c: ~c[1], body, first)
    return state, result


@pytest.mark.parametrize("dim", [2, 5])
def test_rosenbrock(dim):
    x0 = np.tile([-1.2, 1.0], dim)[:dim]
    state, result = minimise(rosenbrock, x0)
    assert result_name(result) == "successful"
    # Half the decrement 1e-14 over a smallest curvature of about 0.4.
    np.testing.assert_allclose(state.x, 1.0, atol=1e-6)
    assert int(state.num_steps) < 150


def test_the_state_belongs_to_one_point():
    state, _ = minimise(rosenbrock, [-1.2, 1.0], max_steps=7)
    np.testing.assert_allclose(state.value, rosenbrock(state.x), rtol=1e-14)
    np.testing.assert_allclose(state.gradient, jax.grad(rosenbrock)(state.x), rtol=1e-12)


def test_a_quadratic_with_its_hessian_needs_two_evaluations():
    a = jnp.array([[3.0, 1.0], [1.0, 2.0]])
    state, result = minimise(lambda x: 0.5 * x @ a @ x, [4.0, -7.0], h0=jnp.linalg.inv(a))
    assert result_name(result) == "successful"
    assert int(state.num_steps) == 2
    np.testing.assert_allclose(state.x, 0, atol=1e-14)


def test_steps_to_where_the_objective_is_not_finite_are_shortened():
    assert np.isnan(walled(jnp.array([2.5, 0.0])))
    state, result = minimise(walled, [0.0, 0.0])
    assert result_name(result) == "successful"
    np.testing.assert_allclose(state.x, [1.9, 1.0], atol=1e-6)


def test_held_coordinates_stay():
    state, result = minimise(rosenbrock, [-1.2, 2.0, 0.3], free=[True, False, True])
    assert result_name(result) == "successful"
    assert state.x[1] == 2.0
    assert state.gradient[1] == 0.0
    # The rest is the minimum given x1 = 2: x2 = x1^2, and a cubic for x0.
    np.testing.assert_allclose(state.x[2], 4.0, atol=1e-6)
    slope = jax.grad(rosenbrock)(state.x)[0]
    assert abs(slope) < 1e-4


def test_one_step_is_bounded():
    points = []
    state = outer.start(jnp.array([5.0, -3.0]), jnp.eye(2), jnp.array([True, True]))
    for _ in range(12):
        state = outer.advance(
            state,
            *jax.value_and_grad(lambda x: 50 * jnp.sum(x**2))(state.trial),
            free=jnp.array([True, True]),
            max_change=jnp.array([0.5, 2.0]),
        )
        points.append(np.array(state.trial - state.x))
    assert np.all(np.abs(points) <= np.array([0.5, 2.0]) + 1e-12)
    assert np.max(np.abs(points)) > 0.4


def test_a_start_that_is_not_finite_ends_at_once():
    state, result = minimise(walled, [3.0, 0.0])
    assert result_name(result) == "nonfinite"
    assert int(state.num_steps) == 1


def test_the_step_limit():
    state, result = minimise(rosenbrock, [-1.2, 1.0], max_steps=5)
    assert result_name(result) == "max_steps_reached"
    assert int(state.num_steps) == 5


def test_a_point_that_no_step_can_leave_stalls():
    def f(x):
        return jnp.where(jnp.all(x == 1.0), jnp.sum(x), jnp.nan)

    state, result = minimise(f, [1.0, 1.0])
    assert result_name(result) == "stalled"
    np.testing.assert_array_equal(state.x, 1.0)


def test_lanes_of_a_batch_do_not_touch_each_other():
    starts = jnp.array([[-1.2, 1.0], [0.5, 0.5], [2.0, -1.0]])
    run = jax.jit(jax.vmap(lambda x: minimise(rosenbrock, x)))
    fine, _ = run(starts)
    hurt, result = run(starts.at[1].set(jnp.nan))
    for a, b in zip(jax.tree.leaves(fine), jax.tree.leaves(hurt), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[[0, 2]], np.asarray(b)[[0, 2]])
    assert result_name(jax.tree.map(lambda a: a[1], result)) == "nonfinite"
