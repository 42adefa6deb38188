"""Gauss-Hermite nodes on a tensor grid."""

from __future__ import annotations

import functools
import itertools

import numpy as np

from jaxnlme._errors import ModelSpecError

MAX_NODES = 200_000


@functools.cache
def gauss_hermite(num_nodes: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes ``(k, dim)`` and log weights ``(k,)`` for integrals against N(0, I).

    ``sum(exp(log_weights) * f(nodes))`` approximates ``E f(z)`` and is exact for polynomials of
    degree ``2 num_nodes - 1`` in each coordinate.

    Raises
    ------
    ModelSpecError
        When the grid would hold more than 200,000 nodes.

    Examples
    --------
    >>> nodes, log_weights = gauss_hermite(3, 1)
    >>> round(float(np.sum(np.exp(log_weights) * nodes[:, 0] ** 4)), 12)
    3.0
    """
    if num_nodes < 1:
        raise ModelSpecError(f"AGQ needs at least 1 node, got {num_nodes}.")
    if num_nodes**dim > MAX_NODES:
        raise ModelSpecError(
            f"AGQ with {num_nodes} nodes in {dim} dimensions needs {num_nodes**dim} points per "
            f"group (at most {MAX_NODES}): take fewer nodes, or method='Laplace' or 'FOCE'."
        )
    x, w = np.polynomial.hermite_e.hermegauss(num_nodes)
    log_w = np.log(w) - 0.5 * np.log(2 * np.pi)
    grid = list(itertools.product(range(num_nodes), repeat=dim))
    index = np.array(grid, dtype=np.int64).reshape(len(grid), dim)
    return x[index], log_w[index].sum(1)
