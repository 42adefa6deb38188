"""Coordinates in which a fit is run: aliased columns, orthogonal columns, linear constraints (host)."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxnlme.numerics.arithmetic import HOST

ALIAS = 1e-11  # R's glm: min(1e-7, epsilon / 1000)
_SUSPECT = 1e-10
_SUSPECT_FEW = 1e-4
_EXTENDED = 2**24  # multiplications up to which a basis is formed in extended precision


def suspect(n: int, p: int) -> float:
    """Squared pivot of the scaled Gram matrix below which a fit of (n, p) runs on an orthogonal basis.

    At 1e-10 the inverse of the Gram matrix has lost half the digits of the standard errors (2.7e-3 seen at a
    condition number of 1e7). Where a basis costs nothing it is taken earlier, for the digits that a large
    residual loses.
    """
    return _SUSPECT_FEW if n * p * p <= _EXTENDED else _SUSPECT


@dataclasses.dataclass(frozen=True)
class Affine:
    """``b = shift + matrix u``: coefficients (P,) from free coordinates (q,)."""

    matrix: np.ndarray
    shift: np.ndarray

    def coefficients(self, u: np.ndarray) -> np.ndarray:
        """Coefficients at these coordinates."""
        return self.shift + self.matrix @ u

    def covariance(self, covariance: np.ndarray) -> np.ndarray:
        """Covariance of the coefficients from that of the coordinates."""
        return self.matrix @ covariance @ self.matrix.T


@dataclasses.dataclass(frozen=True)
class Basis:
    """Columns that are linearly independent, found in their order.

    ``kept`` (p,) bool; ``q`` (n, r) orthonormal with ``X[:, kept] = q r``.
    """

    kept: np.ndarray
    q: np.ndarray
    r: np.ndarray
    smallest: float


def smallest_pivot(gram: np.ndarray) -> float:
    """Smallest squared pivot of a Gram matrix scaled to unit diagonal: 1 minus a squared multiple correlation.

    Examples
    --------
    >>> import numpy as np
    >>> smallest_pivot(np.array([[4.0, 2.0], [2.0, 4.0]]))
    0.75
    """
    diagonal = np.diag(gram)
    if not len(diagonal):
        return 1.0
    if not np.all(np.isfinite(diagonal)) or np.any(diagonal <= 0):
        return 0.0
    scale = np.sqrt(diagonal)
    rest = gram / scale[:, None] / scale[None]
    least = 1.0
    for j in range(len(rest)):
        pivot = rest[j, j]
        least = min(least, pivot)
        if pivot <= 1e-15:
            return 0.0
        column = rest[j + 1 :, j]
        rest[j + 1 :, j + 1 :] -= np.outer(column, column) / pivot
    return float(least)


def orthogonal_basis(X: np.ndarray, *, tolerance: float = ALIAS) -> Basis:
    """Find aliased columns as R does, and an orthonormal basis of the others.

    Columns are taken in their order; one whose part orthogonal to those before it is smaller than
    ``tolerance`` times its length is aliased (LINPACK's dqrdc2, which ``lm`` and ``glm`` use).
    Gram-Schmidt with reorthogonalisation, which keeps ``q`` orthonormal to rounding error for any condition
    number (Giraud et al. 2005); in extended precision where the machine has it and the data are few, which
    gains what a large residual loses (the square of the condition number; NIST's Wampler5: two digits).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(4.0)
    >>> orthogonal_basis(np.stack([np.ones(4), x, 2 * x, x**2], 1)).kept.tolist()
    [True, True, False, True]
    """
    n, p = X.shape
    dtype = np.longdouble if n * p * p <= _EXTENDED else np.float64
    q = np.zeros((n, min(n, p)), dtype, order="F")
    r = np.zeros((min(n, p), p), dtype)
    kept = np.zeros(p, bool)
    rank, smallest = 0, 1.0
    for j in range(p):
        column = np.array(X[:, j], dtype)
        length = np.linalg.norm(column)
        if rank == n or length == 0:
            continue
        basis = q[:, :rank]
        coefficients = np.zeros(rank, dtype)
        for _ in range(2):
            more = basis.T @ column
            column -= basis @ more
            coefficients += more
        rest = np.linalg.norm(column)
        if rest < tolerance * length:
            continue
        kept[j] = True
        smallest = min(smallest, (rest / length) ** 2)
        r[:rank, j] = coefficients
        r[rank, j] = rest
        q[:, rank] = column / rest
        rank += 1
    q, r = q[:, :rank].astype(np.float64), r[:rank][:, kept].astype(np.float64)
    return Basis(kept, q, r, float(smallest))


def triangular_inverse(r: np.ndarray) -> np.ndarray:
    """Inverse of an upper triangular matrix, columns scaled first."""
    if not len(r):
        return r
    scale = np.linalg.norm(r, axis=0)
    return np.linalg.inv(r / scale) / scale[:, None]


def scaled_inverse(information: np.ndarray) -> np.ndarray:
    """Inverse of a symmetric matrix scaled to unit diagonal; NaN where it is not positive definite."""
    if not len(information):
        return information
    diagonal = np.diag(information)
    if not np.all(np.isfinite(information)) or np.any(diagonal <= 0):
        return np.full_like(information, np.nan)
    scale = np.sqrt(diagonal)
    inverse, _ = HOST.inverse(information / scale[:, None] / scale[None])
    return inverse / scale[:, None] / scale[None]
