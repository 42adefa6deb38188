"""The 14 stats fields at the stored estimates: formula errors apart from optimiser errors.

Derivatives by complex steps on NumPy models, so nothing of the fitting code is involved.
"""

from __future__ import annotations

import numpy as np
import pytest
from api.matlab_models import combined_error, linear_fit, linearise

from helpers import reference, references
from jaxnlme.api import _matlab_stats as ms

NAMES = references("nlme", "matlab_*")
FIELDS = [f for f in ms.FIELDS if f not in ("ires", "pres", "iwres", "pwres", "cwres")]


def stats_at_reference(ref):
    parts, codes, beta, b = linearise(ref)
    options, stored = ref["name_value"], ref["stats"]
    model = options.get("ErrorModel", "constant")
    restricted = options.get("ApproximationType") == "RELME"
    psi = np.array(ref["psi"])
    weights = np.ones(len(parts.y))
    errorparam = None
    if model == "combined":
        errorparam = combined_error(parts.y, parts.f)
        weights = 1 / ms.error_sd(model, errorparam, parts.f)
    fit = linear_fit(parts, codes, beta, b, psi / stored["mse"], weights, restricted=restricted)
    logl = fit.logl - (np.sum(parts.y) if model == "exponential" else 0.0)
    if errorparam is None:
        errorparam = np.array([np.sqrt(fit.mse)])
    pattern = np.array(options.get("CovPattern", np.eye(len(psi))))
    return ms.assemble(
        parts,
        codes,
        b,
        psi,
        logl=logl,
        mse=fit.mse,
        covb=fit.covb,
        errorparam=errorparam,
        error_model=model,
        num_covariances=int(np.triu(pattern).sum()),
        restricted=restricted,
    )


@pytest.mark.parametrize("name", NAMES)
def test_all_fields_at_the_stored_estimate(name):
    """1e-4 relative to the largest entry: the stored fit used forward differences (covb 1e-5)."""
    ref = reference("nlme", name)
    stats = stats_at_reference(ref)
    for field in FIELDS:
        np.testing.assert_allclose(
            stats[field],
            ref["stats"][field],
            rtol=1e-4,
            atol=1e-4 * np.max(np.abs(ref["stats"][field])),
            err_msg=field,
        )
    assert abs(stats.logl - ref["stats"]["logl"]) < 1e-4
    for field, stored in ref["residuals_first11"].items():
        # plain functions of the stored numbers: only rounding, and a and b of the combined error
        np.testing.assert_allclose(stats[field][:11], stored, rtol=1e-6, atol=1e-7, err_msg=field)


def test_fields_have_matlabs_order_and_both_accesses():
    stats = stats_at_reference(reference("nlme", "matlab_theo_lme"))
    assert list(stats) == (
        "dfe logl mse rmse errorparam aic bic covb sebeta ires pres iwres pwres cwres".split()
    )
    assert stats["dfe"] == stats.dfe == 113
    assert "covb: [3x3 double]" in repr(stats)
    with pytest.raises(KeyError, match="no field 'sigma'"):
        stats["sigma"]


def test_group_order_and_padding_do_not_matter():
    """Rows shuffled between groups (order kept within): every number the same to rounding."""
    ref = reference("nlme", "matlab_theo_lme")
    parts, codes, beta, b = linearise(ref)
    rng = np.random.default_rng(0)
    keep = rng.random(len(codes)) > 0.3  # groups of unequal size
    parts = ms.Linearisation(*(v[keep] for v in parts))
    codes = codes[keep]
    order = np.argsort(rng.permutation(len(codes)) // 40, kind="stable")
    relative, weights = np.array(ref["psi"]) / ref["stats"]["mse"], np.ones(len(codes))
    one = linear_fit(parts, codes, beta, b, relative, weights)
    shuffled = ms.Linearisation(*(v[order] for v in parts))
    two = linear_fit(shuffled, codes[order], beta, b, relative, weights)
    assert abs(one.logl - two.logl) < 1e-9
    dense = _dense_logl(parts, codes, beta, b, relative)
    assert abs(one.logl - dense) < 1e-8


def _dense_logl(parts, codes, beta, b, relative):
    """The same likelihood from one n x n matrix."""
    n = len(codes)
    same = codes[:, None] == codes[None, :]
    v = np.eye(n) + same * (parts.Z @ relative @ parts.Z.T)
    t = parts.y - parts.f + parts.X @ beta + np.sum(parts.Z * b.T[codes], axis=1)
    inverse = np.linalg.inv(v)
    gls = np.linalg.solve(parts.X.T @ inverse @ parts.X, parts.X.T @ inverse @ t)
    r = t - parts.X @ gls
    return -n / 2 * (1 + np.log(2 * np.pi * (r @ inverse @ r) / n)) - np.linalg.slogdet(v)[1] / 2


def test_weighted_residuals_are_none_at_zero_error():
    ref = reference("nlme", "matlab_theo_lme")
    parts, codes, beta, b = linearise(ref)
    zero = parts._replace(f_population=np.where(np.arange(len(codes)) == 3, 0, parts.f_population))
    table = ms.residuals(
        zero, codes, b, np.array(ref["psi"]), lambda f: ms.error_sd("proportional", np.ones(1), f)
    )
    assert table["iwres"] is table["pwres"] is table["cwres"] is None
    assert table["pres"][3] == zero.y[3]


def test_combined_error_fit_is_stationary():
    rng = np.random.default_rng(3)
    f = rng.uniform(0.5, 9, 400)
    y = f + (0.3 + 0.15 * f) * rng.standard_normal(400)
    a, slope = combined_error(y, f)
    g = a + slope * f
    score = (1 - ((y - f) / g) ** 2) / g
    assert abs(np.sum(score)) < 1e-5 and abs(np.sum(score * f)) < 1e-5
    assert abs(a - 0.3) < 0.15 and abs(slope - 0.15) < 0.04  # three standard errors


def test_combined_error_reaches_the_boundary():
    """Constant errors: b runs to zero instead of failing."""
    rng = np.random.default_rng(5)
    f = np.linspace(1, 5, 60)
    y = f + 0.2 * rng.standard_normal(60) * (1.5 - 0.2 * f)  # larger errors at small f
    a, slope = combined_error(y, f)
    assert slope * 5 < 1e-4 * a
    np.testing.assert_allclose(a, np.sqrt(np.mean((y - f) ** 2)), rtol=1e-3)
