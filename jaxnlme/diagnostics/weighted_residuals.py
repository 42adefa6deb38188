"""Residuals divided by the Cholesky factor of their group's marginal covariance. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["whitened"]


def whitened(
    residual: np.ndarray, Z: np.ndarray, sd: np.ndarray, psi: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """Solve each group's lower Cholesky factor of ``Z psi Z' + diag(sd^2)`` for its residuals.

    With ``residual = y - f(b = 0)`` and ``Z`` at b = 0 these are MATLAB's ``pwres``; with
    ``y - f(b) + Z b`` and ``Z`` at the conditional modes its ``cwres``.

    Parameters
    ----------
    residual : ndarray, shape (N,)
    Z : ndarray, shape (N, r)
        Derivatives of the prediction by the random effects of the row's group.
    sd : ndarray, shape (N,)
        Standard deviation of the residual error.
    psi : ndarray, shape (r, r)
        Covariance of the random effects; may be singular.
    codes : ndarray of int, shape (N,)
        Group of each row, from 0. Rows need not be sorted.

    Returns
    -------
    ndarray, shape (N,)
        In the order of the rows. A group's values depend on the order of its rows; NaN in a group
        whose matrix is not finite or not positive definite.

    Examples
    --------
    >>> whitened(np.array([2.0, 3.0]), np.zeros((2, 1)), np.array([2.0, 1.0]), np.eye(1),
    ...          np.array([0, 0]))
    array([1., 3.])
    """
    residual = np.asarray(residual, dtype=float)
    codes = np.asarray(codes)
    if not len(codes):
        return residual.copy()
    rows, mask = _pad_rows(codes)
    width = rows.shape[1]
    out = np.full_like(residual, np.nan)
    for part in _batches(len(rows), width):
        keep, at = mask[part], rows[part]
        z = np.where(keep[..., None], Z[at], 0.0)
        spread = np.where(keep, sd[at], 1.0)
        matrix = z @ psi @ np.swapaxes(z, 1, 2) + spread[..., None] ** 2 * np.eye(width)
        low = _cholesky(matrix)
        right = np.where(keep, residual[at], 0.0)
        good = np.isfinite(low).all(axis=(1, 2)) & np.isfinite(right).all(axis=1)
        solved = np.full_like(right, np.nan)
        if good.any():
            solved[good] = np.linalg.solve(low[good], right[good][..., None])[..., 0]
        out[at[keep]] = solved[keep]
    return out


def _cholesky(matrices: np.ndarray) -> np.ndarray:
    """Lower factors; NaN for those that have none (NumPy refuses the whole batch for one)."""
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        out = np.full_like(matrices, np.nan)
        for i, matrix in enumerate(matrices):
            try:
                out[i] = np.linalg.cholesky(matrix)
            except np.linalg.LinAlgError:
                continue
        return out


def _pad_rows(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (m, n_max) row numbers of each group, in row order, and their mask."""
    counts = np.bincount(codes)
    mask = np.arange(counts.max())[None, :] < counts[:, None]
    rows = np.zeros(mask.shape, dtype=int)
    rows[mask] = np.argsort(codes, kind="stable")
    return rows, mask


def _batches(m: int, width: int) -> Iterator[slice]:
    """Cut groups into batches whose (width x width) matrices take some 64 MB."""
    step = max(1, int(8e6 / max(width * width, 1)))
    for at in range(0, m, step):
        yield slice(at, min(at + step, m))
