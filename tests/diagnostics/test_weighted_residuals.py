"""Whitened residuals against a plain loop over groups."""

from __future__ import annotations

import numpy as np

from jaxnlme.diagnostics import whitened


def _case(seed=0, n=40, groups=6, r=2):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, groups, n)
    codes[:groups] = np.arange(groups)
    root = rng.standard_normal((r, r))
    return (
        rng.standard_normal(n), rng.standard_normal((n, r)), rng.uniform(0.5, 2, n),
        root @ root.T, codes,
    )  # fmt: skip


def test_each_group_by_itself():
    residual, Z, sd, psi, codes = _case()
    found = whitened(residual, Z, sd, psi, codes)
    for code in np.unique(codes):
        rows = codes == code
        low = np.linalg.cholesky(Z[rows] @ psi @ Z[rows].T + np.diag(sd[rows] ** 2))
        # both solve the same small triangular systems: rounding only
        np.testing.assert_allclose(low @ found[rows], residual[rows], atol=1e-12)


def test_whitened_residuals_of_the_model_are_white():
    """Drawn from the model itself: unit variance; 4 standard errors of 20,000 values."""
    rng = np.random.default_rng(1)
    m, k = 4000, 5
    codes = np.repeat(np.arange(m), k)
    psi = np.array([[1.0, 0.6], [0.6, 2.0]])
    Z, sd = rng.standard_normal((m * k, 2)), rng.uniform(0.5, 1.5, m * k)
    b = rng.standard_normal((m, 2)) @ np.linalg.cholesky(psi).T
    y = np.sum(Z * b[codes], axis=1) + sd * rng.standard_normal(m * k)
    found = whitened(y, Z, sd, psi, codes)
    assert abs(np.mean(found**2) - 1) < 4 * np.sqrt(2 / (m * k))


def test_singular_psi_and_failing_groups():
    residual, Z, sd, psi, codes = _case()
    zero = whitened(residual, Z, sd, np.zeros_like(psi), codes)
    np.testing.assert_allclose(zero, residual / sd, rtol=1e-14)
    bad = sd.copy()
    bad[codes == 2] = 0.0
    bad[np.flatnonzero(codes == 3)[0]] = np.nan
    found = whitened(residual, 0 * Z, bad, psi, codes)
    lost = np.isin(codes, [2, 3])
    assert np.all(np.isnan(found[lost]))
    np.testing.assert_allclose(found[~lost], (residual / sd)[~lost])


def test_batches_do_not_matter(monkeypatch):
    from jaxnlme.diagnostics import weighted_residuals as module

    case = _case(n=200, groups=50)
    whole = whitened(*case)
    monkeypatch.setattr(module, "_batches", lambda m, width: [slice(i, i + 1) for i in range(m)])
    np.testing.assert_array_equal(np.isnan(whitened(*case)), np.isnan(whole))
    np.testing.assert_allclose(whitened(*case), whole, rtol=1e-13)
