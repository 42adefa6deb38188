"""Log densities of all reference posteriors at the given points."""

from __future__ import annotations

import numpy as np
import pytest
from calibration import posteriors as cases

import jaxnlme.calibration.problem as problem
from helpers import reference


@pytest.mark.x64
@pytest.mark.parametrize("name", cases.NAMES)
def test_log_density_at_the_reference_points(name: str) -> None:
    """1e-10 relative; the two integrators behind lotka_volterra differ by 4e-8 in 130."""
    points = reference("calibrate", name)["logp_points"]
    x = np.array([p["x"] for p in points])
    theirs = np.array([float(p["logp"]) for p in points]) + cases.prior_constant(name)
    ours = np.asarray(problem.evaluate_many(cases.density(name), x)[0])
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(np.isfinite(ours), finite)
    tolerance = 1e-9 if cases.family(name) == "lotka_volterra" else 1e-10
    np.testing.assert_allclose(ours[finite], theirs[finite], rtol=tolerance)
    assert (ours[~finite] == -np.inf).all()
