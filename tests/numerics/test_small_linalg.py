"""Small linear algebra against NumPy, on both sides of the size where LAPACK takes over."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxnlme.numerics.arithmetic import HOST, TRACED, inverse_spd
from jaxnlme.numerics.blocks import sandwich, small_matmul, transpose
from jaxnlme.numerics.small_linalg import (
    UNROLL,
    cho_solve,
    cho_solve_vector,
    cholesky,
    expm_symmetric,
    logdet,
    row_factor,
    solve_lower,
)

pytestmark = pytest.mark.x64

SIZES = (1, 2, 3, UNROLL, UNROLL + 1, 9)
over_sizes = pytest.mark.parametrize("q", SIZES)


def spd(q, batch=(5,), seed=0):
    a = np.random.default_rng(seed).normal(size=(*batch, q, q))
    return a @ np.swapaxes(a, -1, -2) + q * np.eye(q)


@over_sizes
def test_cholesky_and_logdet(q):
    a = spd(q)
    low = cholesky(jnp.asarray(a))
    np.testing.assert_allclose(low, np.linalg.cholesky(a), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(logdet(low), np.linalg.slogdet(a)[1], rtol=1e-13)


@over_sizes
@pytest.mark.parametrize("transposed", [False, True])
def test_triangular_solves(q, transposed):
    low = np.linalg.cholesky(spd(q))
    rhs = np.random.default_rng(1).normal(size=(5, q, 3))
    x = solve_lower(jnp.asarray(low), jnp.asarray(rhs), transpose=transposed)
    left = np.swapaxes(low, -1, -2) if transposed else low
    np.testing.assert_allclose(left @ x, rhs, atol=1e-12)


@over_sizes
def test_solves(q):
    a = spd(q)
    rhs = np.random.default_rng(2).normal(size=(5, q, 2))
    low = cholesky(jnp.asarray(a))
    want = np.linalg.solve(a, rhs)
    np.testing.assert_allclose(cho_solve(low, jnp.asarray(rhs)), want, rtol=1e-10, atol=1e-12)
    vector = cho_solve_vector(low, jnp.asarray(rhs[..., 0]))
    np.testing.assert_allclose(vector, want[..., 0], rtol=1e-10, atol=1e-12)


@over_sizes
def test_batches_broadcast(q):
    low = np.linalg.cholesky(spd(q, (1,)))
    rhs = np.random.default_rng(3).normal(size=(4, q, 2))
    x = solve_lower(jnp.asarray(low), jnp.asarray(rhs))
    np.testing.assert_allclose(low @ x, rhs, atol=1e-12)


@over_sizes
def test_a_matrix_that_is_not_positive_definite_gives_nan_in_its_lane_only(q):
    a = spd(q)
    a[2] = -a[2]
    low = np.asarray(cholesky(jnp.asarray(a)))
    assert not np.all(np.isfinite(low[2]))
    assert np.all(np.isfinite(low[[0, 1, 3, 4]]))


@over_sizes
def test_vmap_and_derivatives(q):
    a = spd(q, (3,))

    def f(m):
        return jnp.sum(logdet(cholesky(m)))

    np.testing.assert_allclose(jax.vmap(f)(jnp.asarray(a)), np.linalg.slogdet(a)[1], rtol=1e-13)
    gradient = np.asarray(jax.grad(f)(jnp.asarray(a[0])))
    # d log det A = tr(A^-1 dA); the factor reads the lower triangle or both halves.
    np.testing.assert_allclose(
        gradient + gradient.T, 2 * np.linalg.inv(a[0]), rtol=1e-10, atol=1e-12
    )


@over_sizes
def test_blocks(q):
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(5, q, 3)), rng.normal(size=(1, 3, q))
    s = rng.normal(size=(5, q, q))
    np.testing.assert_allclose(small_matmul(jnp.asarray(a), jnp.asarray(b)), a @ b, atol=1e-13)
    want = np.swapaxes(a, -1, -2) @ s @ a
    np.testing.assert_allclose(sandwich(jnp.asarray(a), jnp.asarray(s)), want, atol=1e-12)
    np.testing.assert_array_equal(transpose(jnp.asarray(a)), np.swapaxes(a, -1, -2))


@pytest.mark.parametrize("arithmetic", [TRACED, HOST], ids=["traced", "host"])
def test_inverse_of_an_information_matrix(arithmetic):
    def inverse(a, free, **options):
        a, free = arithmetic.xp.asarray(a), arithmetic.xp.asarray(free)
        return np.asarray(inverse_spd(a, free, arithmetic=arithmetic, **options))

    a = spd(4, ())
    free = np.array([True, True, False, True])
    a[3, :] = a[:, 3] = 0.0  # no information about the last one
    got = inverse(a, free, damping=0.0)
    np.testing.assert_allclose(got[:2, :2], np.linalg.inv(a[:2, :2]), rtol=1e-12)
    np.testing.assert_array_equal(got[2:, 2:], np.eye(2))
    np.testing.assert_array_equal(got[:2, 2:], 0)
    assert np.all(np.linalg.eigvalsh(inverse(a, free)) > 0)
    with np.errstate(invalid="ignore"):
        assert np.all(np.isfinite(inverse(np.full((2, 2), np.nan), np.ones(2, bool))))
    # indefinite: a diagonal instead
    got = inverse(np.array([[1.0, 3.0], [3.0, 1.0]]), np.ones(2, bool))
    np.testing.assert_array_equal(got, np.eye(2))
    # a floor under the diagonal
    got = inverse(np.diag([1.0, 1e-9]), np.ones(2, bool), floor=np.array([0.0, 0.5]), damping=0.0)
    np.testing.assert_allclose(got, np.diag([1.0, 2.0]), rtol=1e-12)


@pytest.mark.parametrize("q", [1, 2, 3, 6])
def test_exponential_of_a_symmetric_matrix(q):
    """SciPy's; errors are relative to the largest eigenvalue."""
    rng = np.random.default_rng(q)
    for size in (0.1, 3.0, 12.0):
        a = rng.normal(size=(q, q))
        a = size * (a + a.T) / 2
        expected = scipy.linalg.expm(a)
        found = expm_symmetric(jnp.asarray(a))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("q", [1, 2, 3, 6])
def test_row_factor(q):
    rng = np.random.default_rng(q)
    a = rng.normal(size=(q, q))
    low = np.asarray(row_factor(jnp.asarray(a)))
    np.testing.assert_allclose(low, np.linalg.cholesky(a @ a.T), rtol=0, atol=1e-12)
    a[-1] = (
        a[0] * (1 + 1e-9) if q > 1 else 0.0
    )  # nearly dependent: the product has no Cholesky factor
    low = np.asarray(row_factor(jnp.asarray(a)))
    np.testing.assert_allclose(low @ low.T, a @ a.T, rtol=0, atol=1e-14)
    assert np.all(np.diag(low) >= 0)
