"""Adaptive Gauss-Hermite quadrature against ``exact_*.json``, and standard errors.

Tolerance of values: max(1e-6, 3 |logLik - logLik at fewer nodes|), because the place of the nodes
(Cholesky or symmetric root) moves the sum by its own error.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nlme.build import (
    BOUNDARY,
    EXACT,
    at,
    exact_case,
    log_likelihood,
    params_from_theta,
    theo,
    theo_problem,
)
from nlme.test_exact import assert_estimates, squared_score

from jaxnlme import nlme
from jaxnlme._results import result_name
from jaxnlme.nlme.drive import drive, information

pytestmark = pytest.mark.x64


def agq_of(case):
    ref = case.results["ml_agq"]
    node_error = abs(ref["logLik"] - ref["logLik_at_fewer_nodes"])
    return nlme.AGQ(ref["nodes_per_dim"]), ref, 3 * node_error


@pytest.mark.parametrize("name", EXACT)
def test_objective_at_stored_parameters(name):
    case = exact_case(name)
    method, ref, node_error = agq_of(case)
    fit = at(case.problem, method, params_from_theta(ref["theta"]))
    assert abs(fit.stats["log_likelihood"] - ref["logLik"]) <= max(1e-6, node_error)
    assert squared_score(name, case, fit) < 1e-6


@pytest.mark.parametrize("name", EXACT)
def test_optimum(name):
    case = exact_case(name)
    method, ref, node_error = agq_of(case)
    fit = drive(case.problem, method, params0=case.start)
    assert result_name(fit.result) == "successful"
    gain = float(fit.stats["log_likelihood"]) - ref["logLik"]
    assert abs(gain) <= 1e-5 + node_error
    assert_estimates(name, case.problem, fit.params, ref)


def standard_errors(case, hessian, params):
    """Return sd of (beta, log diagonal or plain off-diagonal of the factor, log error).

    ``log_sd_chol`` is the log of a diagonal entry of our factor, ``logchol:i,j`` an entry below it:
    at a maximum (zero gradient) the delta method d log L = dL / L is exact.
    """
    covariance = case.problem.covariance
    theta = np.asarray(params.theta)
    scale = np.ones_like(theta)
    diagonal = list(covariance.diagonal_positions())
    scale[diagonal] = 1 / np.abs(theta[diagonal])
    f, k = len(params.beta), len(params.error)
    full = np.concatenate([np.ones(f), scale, np.ones(k)])
    return full * np.sqrt(np.diag(np.linalg.inv(np.asarray(hessian))))


# Here the grid itself limits the figure: at 21, 27 and 33 nodes one standard error differs from the
# file's (21 nodes, placed by the other root) by 1.3e-4, 7.4e-5 and 5.1e-5.
NODE_LIMITED = {"theo_proportional": 2e-4}


def assert_standard_errors(name, case, hessian, params):
    stored = case.results["ml_agq"]["se_theta_observed_information"]
    want = np.array(list(stored.values()))
    used = np.ones(len(want), bool)
    if name in BOUNDARY:
        # The log of a variance of zero has no standard error; the others do not depend on it.
        used[list(stored).index(f"log_sd_chol:{BOUNDARY[name]}")] = False
    got = standard_errors(case, hessian, params)
    np.testing.assert_allclose(got[used], want[used], rtol=NODE_LIMITED.get(name, 1e-4))


@pytest.mark.parametrize("name", EXACT)
def test_standard_errors(name):
    case = exact_case(name)
    method, ref, _ = agq_of(case)
    params = params_from_theta(ref["theta"])
    fit = at(case.problem, method, params)
    assert_standard_errors(name, case, information(case.problem, method, fit), params)


@pytest.mark.parametrize("name", ["orange_asym", "oxboys_full2", "theoph_ssfol_diag2"])
def test_pure_information_gives_the_same_standard_errors(name):
    case = exact_case(name)
    method, ref, _ = agq_of(case)
    params = params_from_theta(ref["theta"])
    hessian = nlme.information(case.problem, params, method)
    assert_standard_errors(name, case, hessian, params)


def test_one_node_is_laplace():
    """AGQ(1) = Laplace to 1e-9 (the issue's figure)."""
    case = exact_case("theo_base")
    params = params_from_theta(case.results["ml_agq"]["theta"])
    laplace = log_likelihood(case.problem, params, nlme.Laplace())
    one = log_likelihood(case.problem, params, nlme.AGQ(1))
    assert abs(laplace - one) <= 1e-9


def test_values_settle_with_the_number_of_nodes():
    case = exact_case("theo_base")
    ref = case.results["ml_agq"]
    params = params_from_theta(ref["theta"])
    gaps = [
        abs(float(log_likelihood(case.problem, params, nlme.AGQ(k))) - ref["logLik"])
        for k in (1, 3, 9)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 3e-3


def test_quadrature_integrates_a_single_effect_exactly():
    """Against the trapezoid rule over the random effect: nothing of our code but the model."""
    problem = theo_problem(random=[0])
    beta, sd, a = np.array([0.47, 3.43, 1.03]), 0.6, 0.7
    params = nlme.NLMEParams(jnp.asarray(beta), jnp.array([sd]), jnp.log(jnp.array([a])))
    ours = log_likelihood(problem, params, nlme.AGQ(41))
    b = jnp.linspace(-8 * sd, 8 * sd, 4001)
    y, x, w = (np.asarray(v) for v in (problem.y, problem.x, problem.weights))
    total = 0.0
    for i in range(12):
        rows = w[i] > 0
        phi = jnp.exp(beta[None] + jnp.stack([b, 0 * b, 0 * b], -1))
        f = np.asarray(jax.vmap(theo, in_axes=(0, None))(phi, x[i][rows]))
        log_density = -0.5 * ((y[i][rows] - f) / a) ** 2 - np.log(a) - 0.5 * np.log(2 * np.pi)
        joint = log_density.sum(1) - 0.5 * (b / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))
        top = joint.max()
        total += top + np.log(np.trapezoid(np.exp(joint - top), b))
    # 41 nodes leave about 1e-7 here.
    assert abs(float(ours) - total) < 1e-6
