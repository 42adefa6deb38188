"""Every estimation method runs every error model. A new method joins by one line in METHODS."""

from __future__ import annotations

import inspect

import jax
import numpy as np
import pytest
from nlme.build import ERRORS, MARGINAL, PATTERN, theo_problem

from jaxnlme import error_models, nlme
from jaxnlme._results import result_name
from jaxnlme.nlme.drive import drive
from jaxnlme.nlme.method import AbstractMarginalMethod, AbstractMethod, Summary

pytestmark = pytest.mark.x64

METHODS = {
    **MARGINAL,
    "LME": nlme.LME(),
    "RELME": nlme.RELME(),
    "LME-residuals": nlme.LME(error_from="residuals"),
}
GRID = [
    (m, e)
    for m in METHODS
    for e in ERRORS
    # Options that only tell apart errors that follow f.
    if m not in ("FOCE-no-interaction", "LME-residuals") or e not in ("constant", "exponential")
]


def test_the_lists_are_complete():
    assert set(error_models.BY_NAME) == set(ERRORS)
    public = {
        value
        for value in vars(nlme).values()
        if inspect.isclass(value)
        and issubclass(value, AbstractMethod)
        and value not in (AbstractMethod, AbstractMarginalMethod)
    }
    assert public == {type(method) for method in METHODS.values()}


@pytest.mark.parametrize(("method", "error"), GRID)
def test_every_method_runs_every_error_model(method, error):
    problem = theo_problem(error=error, pattern=PATTERN)
    values = []
    fit = drive(
        problem, METHODS[method], callback=lambda info: values.append(info["log_likelihood"])
    )
    assert result_name(fit.result) == "successful"
    leaves = jax.tree.leaves((fit.params, fit.stats))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert set(fit.stats) == set(Summary._fields)
    assert np.all(fit.stats["converged_groups"])
    assert fit.stats["b"].shape == (16, 3)
    # Padded groups have no data: their random effects stay at zero.
    np.testing.assert_array_equal(np.asarray(fit.stats["b"])[12:], 0)
    assert values[-1] == float(fit.stats["log_likelihood"])
    if isinstance(METHODS[method], AbstractMarginalMethod):
        # Each accepted step raises the objective, but for rounding.
        gains = np.diff([v for v in values if np.isfinite(v)])
        assert np.all(gains >= -1e-9)
    # -182 to -165 for all but FOCE without interaction: its weights follow the population
    # prediction, and moving that lifts it to -146.
    assert -190 < values[-1] < -140


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_a_name_and_static_options(method):
    chosen = METHODS[method]
    assert method.startswith(chosen.name)
    # Options are static or numbers: a method may be passed through jit.
    assert all(isinstance(leaf, int | float) for leaf in jax.tree.leaves(chosen))
    assert hash(jax.tree.structure(chosen)) == hash(jax.tree.structure(METHODS[method]))
