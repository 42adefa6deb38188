"""Gradients through the implicit modes against central differences of the objective.

Tolerance 1e-5 relative to the largest entry (the issue's figure): with a step of 1e-5 the
differences themselves are good to about eps |log L| / step = 1e-8 of a gradient of order 10 to 100.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nlme.build import ERRORS, MARGINAL, PATTERN, at, params_of, theo_problem, value_and_grad

from jaxnlme import nlme
from jaxnlme.nlme.drive import drive
from jaxnlme.nlme.fit import marginal_log_likelihood

pytestmark = pytest.mark.x64

BETA = (0.6, 3.3, 0.9)  # off the optimum: no gradient is near zero
# A usual point, and one with a variance of zero.
THETAS = {"usual": (0.5, 0.15, 0.1, 0.2), "zero": (0.5, 0.0, 0.1, 0.2)}
GRID = [
    (m, e)
    for m in MARGINAL
    for e in ERRORS
    # Without an error that follows f there is no interaction to leave out.
    if m != "FOCE-no-interaction" or e not in ("constant", "exponential")
]


def assert_gradient(value_and_gradient, params):
    gradient = np.asarray(value_and_gradient(params)[1])
    x = np.asarray(params.flat())
    numeric = np.zeros_like(x)
    for k in range(len(x)):
        step = 1e-5 * np.eye(len(x))[k]
        up, down = (value_and_gradient(params.unflat(jnp.asarray(x + s)))[0] for s in (step, -step))
        numeric[k] = (up - down) / 2e-5
    assert np.all(np.isfinite(gradient))
    assert np.max(np.abs(gradient - numeric)) <= 1e-5 * np.max(np.abs(numeric))


@pytest.mark.parametrize(("method", "error"), GRID)
def test_gradient_of_every_method_and_error_model(method, error):
    """What the optimisers use: value and gradient of the compiled step."""
    problem = theo_problem(error=error, pattern=PATTERN)

    def value_and_gradient(params):
        stats = at(problem, MARGINAL[method], params).stats
        return -float(stats["log_likelihood"]), stats["gradient"]

    for theta in THETAS.values():
        assert_gradient(value_and_gradient, params_of(BETA, theta, ERRORS[error]))


@pytest.mark.parametrize("method", ["FO", "FOCE", "Laplace", "AGQ"])
def test_gradient_of_the_public_objective(method):
    problem = theo_problem(error="combined", pattern=PATTERN)

    def value_and_gradient(params):
        value, gradient = value_and_grad(problem, params, MARGINAL[method])
        return float(value), gradient.flat()

    params = params_of(BETA, THETAS["zero"], ERRORS["combined"])
    assert_gradient(value_and_gradient, params)
    # The objective is even in a diagonal entry of the factor at zero.
    assert abs(value_and_gradient(params)[1][4]) <= 1e-10


@pytest.mark.parametrize("method", MARGINAL)
def test_score_is_zero_at_the_fit(method):
    problem = theo_problem(error="combined", pattern=PATTERN)
    fit = drive(problem, MARGINAL[method])
    again = at(problem, MARGINAL[method], fit.params)
    gradient = np.asarray(again.stats["gradient"])
    # Half the squared score in standard errors is what the fit stops on; the value is re-evaluated.
    h = np.asarray(fit.state.bfgs.inverse_hessian)
    assert 0.5 * gradient @ h @ gradient <= 2 * MARGINAL[method].tolerance
    np.testing.assert_allclose(
        again.stats["log_likelihood"], fit.stats["log_likelihood"], rtol=1e-12
    )


def test_a_second_derivative_raises():
    problem = theo_problem(pattern=PATTERN)
    params = params_of(BETA, THETAS["usual"], ERRORS["constant"])

    def objective(beta):
        moved = nlme.NLMEParams(beta, params.theta, params.error)
        return marginal_log_likelihood(problem, moved, nlme.FO())

    with pytest.raises(NotImplementedError, match="once"):
        jax.hessian(objective)(params.beta)
    with pytest.raises(NotImplementedError, match="once"):
        jax.grad(lambda b: jnp.sum(jax.grad(objective)(b)))(params.beta)


@pytest.mark.parametrize("what", ["y", "x", "weights"])
def test_a_derivative_in_the_data_raises(what):
    problem = theo_problem(pattern=PATTERN)
    params = params_of(BETA, THETAS["usual"], ERRORS["constant"])

    def objective(values):
        changed = eqx.tree_at(lambda p: getattr(p, what), problem, values)
        return marginal_log_likelihood(changed, params, nlme.FOCE())

    with pytest.raises(NotImplementedError, match="params only"):
        jax.grad(objective)(getattr(problem, what))
