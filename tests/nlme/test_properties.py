"""What must not change an answer (padding, order, units, chunks, batches), and result codes.

Tolerances: programs that add the same numbers in another order differ by some 1e-14 relative, so
1e-12 relative for values at given parameters. Fits of such programs stop at slightly different
points; half the decrement is below 1e-9 there, so their logLik agrees to 2e-9.
"""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nlme.build import (
    MARGINAL,
    PATTERN,
    THEO_START,
    at,
    build,
    jit_fit,
    log_likelihood,
    params_of,
    theo,
    theo_problem,
)
from nlme.jaxprs import computes_float64, equations

from helpers import data
from jaxnlme import nlme
from jaxnlme._cache import outer_jit
from jaxnlme._results import result_name
from jaxnlme.nlme.drive import drive
from jaxnlme.nlme.problem import NLMEProblem, unknown_params

pytestmark = pytest.mark.x64

LME = nlme.LME()
METHODS = {"LME": LME, "FOCE": nlme.FOCE(), "Laplace": nlme.Laplace()}
PARAMS = ((0.6, 3.3, 0.9), (0.5, 0.15, 0.1, 0.2), [-0.3])
# The logLik of LME is not stationary at its fixed point, which is met to 1e-7 standard errors.
FIT_TOLERANCE = {"LME": 1e-7, "FOCE": 4e-9, "Laplace": 4e-9}


def value_and_gradient(problem, method, params):
    stats = at(problem, method, params).stats
    return float(stats["log_likelihood"]), np.asarray(stats["gradient"])


def fitted(problem, method):
    fit = drive(problem, method)
    assert result_name(fit.result) == "successful"
    return float(fit.stats["log_likelihood"])


@pytest.fixture
def base():
    return theo_problem(pattern=PATTERN)


@pytest.mark.parametrize("method", ["FO", "FOCE", "Laplace", "AGQ"])
def test_padding_leaves_the_objective(base, method):
    bare = theo_problem(pattern=PATTERN, pad=False)
    assert bare.y.shape == (12, 10)
    assert base.y.shape == (16, 16)
    params = params_of(*PARAMS)
    value, gradient = value_and_gradient(bare, MARGINAL[method], params)
    padded, padded_gradient = value_and_gradient(base, MARGINAL[method], params)
    assert abs(padded - value) <= 1e-12 * abs(value)
    assert np.max(np.abs(padded_gradient - gradient)) <= 1e-12 * np.max(np.abs(gradient))


@pytest.mark.parametrize("method", METHODS)
def test_padding_leaves_the_fit(base, method):
    bare = theo_problem(pattern=PATTERN, pad=False)
    one, two = drive(bare, METHODS[method]), drive(base, METHODS[method])
    ours, theirs = (float(f.stats["log_likelihood"]) for f in (one, two))
    assert abs(ours - theirs) <= 1e-12 * abs(ours)
    np.testing.assert_allclose(two.stats["b"][:12], one.stats["b"], atol=1e-8)
    assert int(one.stats["num_steps"]) == int(two.stats["num_steps"])


def test_padding_may_hold_any_finite_numbers(base):
    """Rows of weight 0 hold copies of data by convention; the answer may not depend on them."""
    rng = np.random.default_rng(1)
    used = np.asarray(base.weights) > 0
    y = jnp.asarray(np.where(used, base.y, rng.normal(size=used.shape)))
    x = jnp.asarray(np.where(used[..., None], base.x, rng.uniform(1, 9, base.x.shape)))
    other = eqx.tree_at(lambda p: (p.y, p.x), base, (y, x))
    params = params_of(*PARAMS)
    for method in MARGINAL.values():
        if method != MARGINAL["FOCE-no-interaction"]:
            value, gradient = value_and_gradient(base, method, params)
            again, again_gradient = value_and_gradient(other, method, params)
            assert again == value
            np.testing.assert_array_equal(again_gradient, gradient)


@functools.cache
def _batched(method):
    axes = jax.tree.map(lambda _: None, theo_problem(pattern=PATTERN))
    axes = eqx.tree_at(lambda p: p.y, axes, 0, is_leaf=lambda leaf: leaf is None)
    return outer_jit(jax.vmap(lambda p: nlme.fit(p, method), in_axes=(axes,)))


@pytest.mark.parametrize("method", METHODS)
def test_a_lane_of_nan_leaves_the_others_bit_identical(base, method):
    rng = np.random.default_rng(2)
    noise = 1 + 0.05 * rng.normal(size=(3, *base.y.shape))
    good = jnp.asarray(np.asarray(base.y) * noise)
    bad = good.at[1, 0, 0].set(jnp.nan)
    run = _batched(METHODS[method])
    fine = run(eqx.tree_at(lambda p: p.y, base, good))
    hurt = run(eqx.tree_at(lambda p: p.y, base, bad))
    names = [result_name(jax.tree.map(lambda a, k=k: a[k], hurt.result)) for k in range(3)]
    assert names == ["successful", "nonfinite", "successful"]
    for a, b in zip(jax.tree.leaves(fine), jax.tree.leaves(hurt), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[[0, 2]], np.asarray(b)[[0, 2]])
    # A lane equals a fit alone: 1e-8 as batched sums may be ordered otherwise.
    alone = drive(eqx.tree_at(lambda p: p.y, base, good[2]), METHODS[method])
    np.testing.assert_allclose(
        fine.stats["log_likelihood"][2], alone.stats["log_likelihood"], rtol=1e-10
    )


def test_steps_on_the_host_are_those_of_the_program(base):
    """numpy and XLA round differently: 1e-9 on the way, the tolerance of the fit at its end."""
    path = []
    host = drive(base, nlme.FOCE(), callback=lambda info: path.append(info["log_likelihood"]))
    program = nlme.fit(base, nlme.FOCE())
    assert int(host.stats["num_steps"]) == int(program.stats["num_steps"])
    for name in ("log_likelihood", "b", "theta_scale"):
        np.testing.assert_allclose(host.stats[name], program.stats[name], rtol=1e-6, atol=1e-7)
    for k in (2, 5, 9):  # the first evaluation finds start values and is not counted
        early = nlme.fit(base, nlme.FOCE(), max_steps=k).stats["log_likelihood"]
        np.testing.assert_allclose(path[k], early, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_new_data_of_the_same_bucket_trace_nothing(method):
    calls = []

    def counted(phi, x):
        calls.append(1)
        return theo(phi, x)

    frame = data("saemix_theo")
    y, x = frame["Concentration"].to_numpy(float), frame[["Dose", "Time"]].to_numpy(float)

    def problem(rows):
        return build(
            y[rows],
            x[rows],
            frame["Id"][rows],
            counted,
            THEO_START,
            pattern=PATTERN,
            transforms=("log",) * 3,
        )[0]

    fit = nlme.fit(problem(np.arange(120)), METHODS[method])
    traced = len(calls)
    assert traced > 0
    # Other values, fewer groups, fewer rows, another iteration limit: the same bucket.
    fewer = problem(np.arange(115))
    again = nlme.fit(fewer, METHODS[method], max_steps=150)
    assert len(calls) == traced
    assert float(again.stats["log_likelihood"]) != float(fit.stats["log_likelihood"])


def shuffled(order):
    frame = data("saemix_theo").iloc[order]
    return build(
        frame["Concentration"].to_numpy(float),
        frame[["Dose", "Time"]].to_numpy(float),
        frame["Id"],
        theo,
        THEO_START,
        pattern=PATTERN,
        transforms=("log",) * 3,
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_rows_and_groups_does_not_matter(base, method):
    rng = np.random.default_rng(3)
    groups = rng.permutation(12)
    rows = np.concatenate([g * 10 + rng.permutation(10) for g in groups])
    problem, layout = shuffled(rows)
    assert layout.labels != tuple(str(k + 1) for k in range(12))
    one, two = drive(base, METHODS[method]), drive(problem, METHODS[method])
    a, b = (float(f.stats["log_likelihood"]) for f in (one, two))
    assert abs(a - b) <= FIT_TOLERANCE[method]
    # The random effects follow their group.
    mine = np.asarray(two.stats["b"])[[layout.labels.index(str(k + 1)) for k in range(12)]]
    np.testing.assert_allclose(mine, one.stats["b"][:12], atol=1e-4)


@pytest.mark.parametrize("method", ["FO", "FOCE", "Laplace", "AGQ"])
def test_units_of_the_response_shift_the_log_likelihood(base, method):
    """y and dose in other units: log L moves by -n log c, the log of the error by log c."""
    c = 37.0
    scaled = eqx.tree_at(lambda p: (p.y, p.x), base, (c * base.y, base.x * jnp.array([[[c, 1.0]]])))
    params = params_of(*PARAMS)
    moved = eqx.tree_at(lambda p: p.error, params, params.error + np.log(c))
    value, gradient = value_and_gradient(base, MARGINAL[method], params)
    other, other_gradient = value_and_gradient(scaled, MARGINAL[method], moved)
    assert abs(other - (value - 120 * np.log(c))) <= 1e-11 * abs(value)
    np.testing.assert_allclose(other_gradient, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("c", [1e-3, 1e3])
def test_units_of_the_response_do_not_change_the_fit(base, method, c):
    scaled = eqx.tree_at(lambda p: (p.y, p.x), base, (c * base.y, base.x * jnp.array([[[c, 1.0]]])))
    value, other = fitted(base, METHODS[method]), fitted(scaled, METHODS[method])
    assert abs(other + 120 * np.log(c) - value) <= FIT_TOLERANCE[method]


@pytest.mark.parametrize("method", METHODS)
def test_units_of_time_shift_the_rates(base, method):
    """Hours to minutes: log ka and log CL move by -log 60, the log-likelihood does not."""
    c = 60.0
    shift = jnp.array([-np.log(c), 0.0, -np.log(c)])
    scaled = eqx.tree_at(
        lambda p: (p.x, p.beta0), base, (base.x * jnp.array([[[1.0, c]]]), base.beta0 + shift)
    )
    one, two = drive(base, METHODS[method]), drive(scaled, METHODS[method])
    a, b = (float(f.stats["log_likelihood"]) for f in (one, two))
    assert abs(a - b) <= FIT_TOLERANCE[method]
    np.testing.assert_allclose(two.params.beta, one.params.beta + shift, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_weight_zero_is_deletion(method):
    weights = np.ones(120)
    gone = [3, 17, 30, 31, 32, *range(90, 100)]  # single rows, and a whole group
    weights[gone] = 0
    kept = np.setdiff1d(np.arange(120), gone)
    masked = theo_problem(pattern=PATTERN, weights=weights)
    deleted, _ = shuffled(kept)
    assert masked.y.shape == deleted.y.shape
    a, b = fitted(masked, METHODS[method]), fitted(deleted, METHODS[method])
    assert abs(a - b) <= FIT_TOLERANCE[method]


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_a_parameter_without_random_effect_is_free(method):
    log = theo_problem(random=[0, 2])
    start = (THEO_START[0], float(np.exp(THEO_START[1])), THEO_START[2])
    plain = theo_problem(random=[0, 2], transforms=("log", "id", "log"), beta0=start)
    one, two = drive(log, METHODS[method]), drive(plain, METHODS[method])
    assert result_name(one.result) == result_name(two.result) == "successful"
    assert abs(one.stats["log_likelihood"] - two.stats["log_likelihood"]) <= FIT_TOLERANCE[method]
    np.testing.assert_allclose(two.params.beta[1], np.exp(one.params.beta[1]), rtol=1e-5)


@pytest.mark.parametrize("method", [*METHODS, "FO", "AGQ", "RELME"])
def test_float32_input_stays_float32_with_the_flag_on(method):
    chosen = {**MARGINAL, **METHODS, "RELME": nlme.RELME()}[method]
    problem = theo_problem(pattern=PATTERN, error="combined", dtype=jnp.float32)
    assert problem.y.dtype == jnp.float32
    assert jax.config.jax_enable_x64
    assert computes_float64(jax.make_jaxpr(lambda p: nlme.fit(p, chosen))(problem)) == []
    params = unknown_params(problem)
    jaxpr = jax.make_jaxpr(lambda q: nlme.fit(problem, chosen, params0=q))(params)
    assert sum(1 for _ in equations(jaxpr)) > 500  # the walk looks inside
    assert computes_float64(jaxpr) == []
    jaxpr = jax.make_jaxpr(lambda q: nlme.marginal_log_likelihood(problem, q, chosen))(params)
    assert computes_float64(jaxpr) == []


def test_a_float32_fit_is_usable():
    single = theo_problem(pattern=PATTERN, dtype=jnp.float32)
    fit = jit_fit(single, nlme.FOCE(tolerance=1e-3))
    assert fit.params.beta.dtype == jnp.float32
    assert result_name(fit.result) == "successful"
    # Single precision resolves -172 to about 1e-5; the decrement adds 1e-3.
    double = fitted(theo_problem(pattern=PATTERN), nlme.FOCE())
    assert abs(float(fit.stats["log_likelihood"]) - double) < 5e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_start_where_the_model_is_not_finite_is_a_code(base, method):
    problem = eqx.tree_at(lambda p: p.beta0, base, jnp.array([0.4, -800.0, 800.0]))
    fit = drive(problem, METHODS[method])
    assert result_name(fit.result) == "nonfinite"


@pytest.mark.parametrize("method", METHODS)
def test_the_iteration_limit_is_a_code(base, method):
    fit = drive(base, METHODS[method], max_steps=2)
    assert result_name(fit.result) == "max_steps_reached"
    assert np.all(np.isfinite(fit.params.flat()))


@pytest.mark.parametrize("method", ["FO", "FOCE", "Laplace"])
def test_chunks_of_groups_change_nothing(base, method):
    params = params_of(*PARAMS)
    chunked = theo_problem(pattern=PATTERN, chunk=4)
    value, gradient = value_and_gradient(base, MARGINAL[method], params)
    parts, parts_gradient = value_and_gradient(chunked, MARGINAL[method], params)
    assert abs(value - parts) <= 1e-10
    np.testing.assert_allclose(parts_gradient, gradient, rtol=1e-10, atol=1e-10)
    fit = drive(chunked, MARGINAL[method])
    np.testing.assert_allclose(fit.stats["b"], drive(base, MARGINAL[method]).stats["b"], atol=1e-6)


def test_chunks_that_do_not_divide_the_groups_raise():
    problem = theo_problem(pattern=PATTERN, chunk=5)
    with pytest.raises(ValueError, match="multiple of the chunk"):
        nlme.marginal_log_likelihood(problem, params_of(*PARAMS), nlme.FO())


def test_float64_arrays_while_the_flag_is_off_raise(base):
    params = params_of(*PARAMS)
    with jax.enable_x64(False):
        for call in (
            lambda: nlme.fit(base, nlme.FOCE()),
            lambda: nlme.marginal_log_likelihood(base, params, nlme.FOCE()),
            lambda: nlme.information(base, params, nlme.FOCE()),
        ):
            with pytest.raises(TypeError, match="float64"):
                call()


def test_parameters_that_are_held_stay_put(base):
    held = eqx.tree_at(lambda p: p.free.beta, base, jnp.array([True, False, True]))
    for method in METHODS.values():
        fit = drive(held, method)
        assert result_name(fit.result) == "successful"
        assert fit.params.beta[1] == base.beta0[1]
        assert float(fit.stats["log_likelihood"]) < fitted(base, method)


@pytest.mark.parametrize("error", ["constant", "combined", "power"])
@pytest.mark.parametrize("restricted", [False, True], ids=["LME", "RELME"])
def test_lme_objective_at_its_fit_is_that_of_the_fit(error, restricted):
    """Beta and sigma are profiled out at the same linearisation: the fixed point."""
    problem = theo_problem(pattern=PATTERN, error=error)
    method = nlme.LME(restricted=restricted)
    fit = drive(problem, method)
    assert result_name(fit.result) == "successful"
    value = log_likelihood(problem, fit.params, method)
    assert abs(value - fit.stats["log_likelihood"]) <= 1e-6


def test_problem_is_a_pytree_without_strings(base):
    assert isinstance(base, NLMEProblem)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(base))
