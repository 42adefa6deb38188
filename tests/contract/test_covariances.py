"""What every covariance pattern must satisfy. A new pattern joins by one line in PATTERNS."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nlme.jaxprs import computes_float64

from jaxnlme._errors import ModelSpecError
from jaxnlme.covariance import Covariance, CovarianceBlock, pattern_from, semidefinite_cholesky

pytestmark = pytest.mark.x64


def pattern(*rows):
    return tuple(tuple(int(c) for c in row) for row in rows)


PATTERNS = {
    "scalar": pattern("1"),
    "diagonal": pattern("100", "010", "001"),
    "full": pattern("111", "111", "111"),
    "block": pattern("100", "011", "011"),
    "interleaved": pattern("101", "010", "101"),
    "chain": pattern("1100", "1110", "0111", "0011"),
    "star": pattern("111", "110", "101"),  # a zero that the factor must fill in
    "ring": pattern("1101", "1110", "0111", "1011"),  # no order is free of fill-in
}
over_patterns = pytest.mark.parametrize("name", PATTERNS)


def random_theta(block, seed=0):
    """Free entries that dominate on the diagonal, so that solved entries stay moderate."""
    rng = np.random.default_rng(seed)
    return np.array([rng.uniform(1, 2) if i == j else rng.normal() * 0.4 for i, j in block.entries])


@over_patterns
def test_psi_is_symmetric_semidefinite_and_keeps_the_zeros(name):
    block = CovarianceBlock(PATTERNS[name])
    low = np.asarray(block.factor(jnp.asarray(random_theta(block))))
    psi = low @ low.T
    np.testing.assert_array_equal(psi, psi.T)
    assert np.linalg.eigvalsh(psi).min() > 0
    zeros = np.array(PATTERNS[name]) == 0
    # Solved entries cancel to rounding; the others are never touched.
    assert np.all(np.abs(psi[zeros]) <= 1e-15)
    assert np.all(psi[~zeros] != 0)


@over_patterns
def test_theta_comes_back_from_psi(name):
    covariance = Covariance((CovarianceBlock(PATTERNS[name]),))
    theta = random_theta(covariance.blocks[0], seed=1)
    np.testing.assert_allclose(covariance.theta(covariance.psi(theta)), theta, rtol=1e-12)
    assert covariance.num_theta == len(theta)


@over_patterns
def test_signs_of_the_factor_do_not_matter(name):
    covariance = Covariance((CovarianceBlock(PATTERNS[name]),))
    theta = random_theta(covariance.blocks[0], seed=2)
    flipped = theta.copy()
    first_column = [k for k, (_, j) in enumerate(covariance.blocks[0].entries) if j == 0]
    flipped[first_column] *= -1
    (one,), (two,) = covariance.psi(theta), covariance.psi(flipped)
    np.testing.assert_allclose(one, two, atol=1e-14)


@over_patterns
def test_a_variance_of_zero_is_an_ordinary_point(name):
    """The last effect has no variance left: values and derivatives stay finite."""
    block = CovarianceBlock(PATTERNS[name])
    covariance = Covariance((block,))
    theta = random_theta(block, seed=3)
    theta[[k for k, (i, _) in enumerate(block.entries) if i == block.size - 1]] = 0.0
    (psi,) = covariance.psi(theta)
    assert psi[-1, -1] == 0
    np.testing.assert_allclose(covariance.theta([psi]), theta, rtol=1e-12, atol=1e-14)
    slope = jax.jacfwd(covariance.factor)(jnp.asarray(theta))
    assert np.all(np.isfinite(slope))


@over_patterns
def test_every_diagonal_at_zero_gives_finite_derivatives(name):
    covariance = Covariance((CovarianceBlock(PATTERNS[name]),))
    theta = random_theta(covariance.blocks[0], seed=4)
    for k in covariance.diagonal_positions():
        at_zero = theta.copy()
        at_zero[k] = 0.0
        slope = jax.jacrev(covariance.factor)(jnp.asarray(at_zero))
        assert np.all(np.isfinite(slope))
        low = np.asarray(covariance.factor(jnp.asarray(at_zero)))
        (psi,) = covariance.psi(at_zero)
        np.testing.assert_allclose(low @ low.T, psi, atol=1e-14)


@over_patterns
def test_host_and_device_agree(name):
    covariance = Covariance((CovarianceBlock(PATTERNS[name]),))
    theta = random_theta(covariance.blocks[0], seed=5)
    low = np.asarray(covariance.factor(jnp.asarray(theta)))
    (psi,) = covariance.psi(theta)
    np.testing.assert_allclose(low @ low.T, psi, rtol=1e-14, atol=1e-15)
    single = jnp.asarray(theta, jnp.float32)
    assert computes_float64(jax.make_jaxpr(covariance.factor)(single)) == []


def test_perfect_correlation_round_trips():
    sd = np.array([2.0, 0.5, 1.0])
    psi = np.outer(sd, sd)
    covariance = Covariance((CovarianceBlock(PATTERNS["full"]),))
    theta = covariance.theta([psi])
    np.testing.assert_allclose(covariance.psi(theta)[0], psi, rtol=1e-14)
    assert theta[list(covariance.diagonal_positions())[1:]].tolist() == [0.0, 0.0]


def test_zero_covariance_round_trips():
    covariance = Covariance((CovarianceBlock(PATTERNS["full"]),))
    np.testing.assert_array_equal(covariance.theta([np.zeros((3, 3))]), np.zeros(6))


def test_an_indefinite_matrix_raises():
    with pytest.raises(ModelSpecError, match="not positive semi-definite"):
        semidefinite_cholesky(np.array([[1.0, 2.0], [2.0, 1.0]]))


def test_levels_and_copies_stand_on_the_diagonal():
    outer = CovarianceBlock(PATTERNS["full"])
    inner = CovarianceBlock(PATTERNS["scalar"], repeats=3)
    covariance = Covariance((outer, inner))
    theta = np.concatenate([random_theta(outer), [0.7]])
    assert covariance.size == 6
    assert covariance.num_theta == 7
    low = np.asarray(covariance.factor(jnp.asarray(theta)))
    assert low.shape == (6, 6)
    np.testing.assert_array_equal(low[3:, 3:], 0.7 * np.eye(3))
    np.testing.assert_array_equal(low[3:, :3], 0)
    psi = covariance.psi(theta)
    np.testing.assert_allclose(psi[1], [[0.49]])
    np.testing.assert_allclose(covariance.theta(psi), theta, rtol=1e-12)
    assert covariance.diagonal_positions() == (0, 2, 5, 6)


NAMES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("full", "full"),
        ("diagonal", "diagonal"),
        (np.ones((3, 3)), "full"),
        ([[1, 0, 1], [0, 1, 0], [0, 0, 1]], "interleaved"),  # one triangle is enough
        ([1, 2, 2], "block"),
        ([[7, 7, 7]], "full"),
        ([["a", "c"], ["b"]], "interleaved"),
        ((("b", "c"), ("a",)), "block"),
    ],
)
def test_ways_to_write_a_pattern(value, want):
    assert pattern_from(value, NAMES) == PATTERNS[want]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ful", "covariance='ful'"),
        ([["a"], ["d"]], "'d'"),
        ([["a", "b"], ["b", "c"]], "'b'"),
        ([["a"]], r"\['b', 'c'\]"),
        (np.eye(2), r"shape \(2, 2\)"),
        (2 * np.eye(3), "0 and 1"),
    ],
)
def test_patterns_that_are_wrong_raise(value, words):
    with pytest.raises(ModelSpecError, match=words):
        pattern_from(value, NAMES)
