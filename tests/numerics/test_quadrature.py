"""Gauss-Hermite grids integrate polynomials exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxnlme._errors import ModelSpecError
from jaxnlme.numerics.quadrature import MAX_NODES, gauss_hermite


def moment(k):
    """E z^k of a standard normal."""
    return 0.0 if k % 2 else float(math.prod(range(k - 1, 0, -2)))


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_exact_up_to_degree_2n_minus_1_and_not_beyond(n):
    nodes, logs = gauss_hermite(n, 1)
    weights = np.exp(logs)
    for k in range(2 * n):
        size = weights @ np.abs(nodes[:, 0]) ** k
        assert abs(weights @ nodes[:, 0] ** k - moment(k)) <= 1e-12 * max(1.0, size)
    beyond = weights @ nodes[:, 0] ** (2 * n)
    # The remainder is n! for the monic polynomial of degree 2 n.
    np.testing.assert_allclose(moment(2 * n) - beyond, math.factorial(n), rtol=1e-9)


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_tensor_grid(dim):
    nodes, logs = gauss_hermite(4, dim)
    assert nodes.shape == (4**dim, dim)
    assert abs(np.exp(logs).sum() - 1) < 1e-13
    value = np.exp(logs) @ np.prod(nodes**4 + nodes**2 * 2 + nodes, axis=1)
    np.testing.assert_allclose(value, 5.0**dim, rtol=1e-12)
    np.testing.assert_allclose(np.exp(logs) @ nodes, np.zeros(dim), atol=1e-13)


def test_many_nodes_keep_finite_weights():
    _, logs = gauss_hermite(100, 1)
    assert np.all(np.isfinite(logs))


def test_grids_that_are_too_large_raise():
    assert 21**4 <= MAX_NODES < 21**5
    gauss_hermite(21, 3)
    with pytest.raises(ModelSpecError, match=r"21 nodes in 5 dimensions.*fewer nodes"):
        gauss_hermite(21, 5)
    with pytest.raises(ModelSpecError, match="at least 1"):
        gauss_hermite(0, 1)
