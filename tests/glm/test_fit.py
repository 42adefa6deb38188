"""The pure fit: lanes, dtypes, retraces, domains of links, and what the result says."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxnlme as jn
from jaxnlme._results import result_name
from jaxnlme.glm.coordinates import orthogonal_basis, smallest_pivot
from jaxnlme.glm.fit import total_cost

RNG = np.random.default_rng(5)
X = np.column_stack([np.ones(64), RNG.normal(size=(64, 3))])
Y = RNG.poisson(np.exp(X @ np.array([0.3, 0.4, -0.2, 0.1]))).astype(float)
BATCH = RNG.poisson(np.exp(0.3), size=(5, 64)).astype(float)


def fit_one(y, family: str = "poisson"):
    return jn.glm.fit(jn.glm.GLMProblem(X, y, family=family))


@pytest.mark.x64
def test_the_gradient_of_the_cost_is_zero_at_the_fit() -> None:
    spread = RNG.poisson(np.exp(X @ np.array([0.3, 0.4, -0.2, 0.1])) * RNG.gamma(1.0, size=64))
    for family, y in (("poisson", Y), ("gaussian", Y), ("negative_binomial", spread.astype(float))):
        problem = jn.glm.GLMProblem(X, y, family=family)
        fit = jn.glm.fit(problem)
        assert result_name(fit.result) == "successful"
        slope = jax.grad(total_cost, 1)(problem, fit.params)
        step = np.linalg.solve(np.asarray(fit.stats["information"]), np.asarray(slope))
        assert_allclose(step, 0, atol=1e-8)


@pytest.mark.x64
def test_a_bad_lane_leaves_the_others_bit_identical() -> None:
    fits = jax.jit(jax.vmap(fit_one))
    good = fits(BATCH)
    broken = BATCH.copy()
    broken[2] = np.nan
    bad = fits(broken)
    keep = [0, 1, 3, 4]
    assert np.array_equal(np.asarray(good.params)[keep], np.asarray(bad.params)[keep])
    codes = np.asarray(bad.result._value)
    assert codes[2] == int(jn.RESULTS.nonfinite._value)
    assert np.all(codes[keep] == int(jn.RESULTS.successful._value))


def test_float32_stays_float32_with_the_flag_on() -> None:
    problem = jn.glm.GLMProblem(X.astype("f4"), Y.astype("f4"), family="poisson")
    fit = jn.glm.fit(problem)
    assert fit.params.dtype == np.float32
    with jax.enable_x64(True):
        text = str(jax.make_jaxpr(lambda p: jn.glm.fit(p).params)(problem))
    assert "f64" not in text


@pytest.mark.x64
def test_float32_is_near_float64() -> None:
    wide = fit_one(Y).params
    narrow = jn.glm.fit(jn.glm.GLMProblem(X.astype("f4"), Y.astype("f4"), family="poisson")).params
    assert_allclose(np.asarray(narrow), np.asarray(wide), atol=2e-5)


@pytest.mark.x64
def test_new_data_of_the_same_shape_do_not_retrace() -> None:
    traces = []

    @jax.jit
    def fit(y):
        traces.append(1)
        return fit_one(y).params

    for y in BATCH:
        fit(y)
    assert len(traces) == 1


def test_the_door_compiles_once_for_a_bucket_of_rows() -> None:
    """57 to 64 rows share one program."""
    from jaxnlme.glm import drive

    names = []
    listener = lambda name, _, **__: names.append(name) if "backend_compile" in name else None  # noqa: E731
    jn.fit_glm(X[:, 1:], Y, family="poisson")
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for n in (64, 61, 57):
            jn.fit_glm(X[:n, 1:], Y[:n], family="poisson")
    finally:
        jax.monitoring.clear_event_listeners()
    assert drive.num_blocks(64) == 1
    assert names == []


@pytest.mark.x64
def test_exact_data_converge() -> None:
    """The deviance is 0: the threshold must not be relative to it alone."""
    y = X @ np.array([1.0, 2.0, -1.0, 0.5])
    fit = jn.glm.fit(jn.glm.GLMProblem(X, y))
    assert result_name(fit.result) == "successful"
    assert_allclose(np.asarray(fit.params), [1.0, 2.0, -1.0, 0.5], rtol=1e-13)


@pytest.mark.parametrize(
    ("family", "link"), [("poisson", "identity"), ("binomial", "log"), ("gamma", "inverse")]
)
def test_links_whose_domain_binds(family: str, link: str) -> None:
    """Steps are halved inside the domain; the optimum satisfies the score equations."""
    x = np.linspace(0.1, 1.0, 40)
    mean = {"identity": 0.2 + 3 * x, "log": np.exp(-0.1 - x), "inverse": 1 / (0.1 + 2 * x)}[link]
    draw = np.random.default_rng(2)
    y = {
        "poisson": draw.poisson(mean), "binomial": draw.random(40) < mean,
        "gamma": mean * draw.gamma(2.0, 0.5, 40),
    }[family].astype(float)  # fmt: skip
    fit = jn.fit_glm(x[:, None], y, family=family, link=link)
    assert fit.converged
    mu = fit.fittedvalues
    variance = {"poisson": mu, "binomial": mu * (1 - mu), "gamma": mu**2}[family]
    slope = {"identity": np.ones(40), "log": mu, "inverse": -(mu**2)}[link]
    score = np.stack([np.ones(40), x]) @ ((y - mu) * slope / variance)
    assert_allclose(score, 0, atol=1e-6 * np.sum(np.abs((y - mu) * slope / variance)))


def test_too_few_steps_are_said() -> None:
    with pytest.warns(jn.ConvergenceWarning, match="max_steps"):
        fit = jn.fit_glm(X[:, 1:], Y, family="poisson", max_steps=1)
    assert not fit.converged
    assert result_name(fit.result) == "max_steps_reached"


def test_start_values_are_used() -> None:
    free = jn.fit_glm(X[:, 1:], Y, family="poisson")
    again = jn.fit_glm(X[:, 1:], Y, family="poisson", start=list(free.params))
    assert again.n_iter < free.n_iter
    assert_allclose(np.asarray(again.params), np.asarray(free.params), rtol=1e-12)


def test_large_data_take_the_subsample_path() -> None:
    """Above 65,536 rows: the same optimum as from the plain start, to rounding."""
    draw = np.random.default_rng(8)
    n = 70_000
    x = draw.normal(size=(n, 2))
    y = draw.poisson(np.exp(-1 + x @ np.array([0.3, -0.2]))).astype(float)
    fit = jn.fit_glm(x, y, family="poisson")
    plain = jn.fit_glm(x, y, family="poisson", start=[0.0, 0.0, 0.0])
    assert fit.converged
    assert_allclose(np.asarray(fit.params), np.asarray(plain.params), rtol=1e-9)
    assert_allclose(np.asarray(fit.bse), np.asarray(plain.bse), rtol=1e-7)


def test_factors_with_many_levels_stay_codes() -> None:
    """Segment sums against dummies: the same fit to rounding, for 60 and 20 levels beside a number."""
    draw = np.random.default_rng(9)
    n = 3000
    data = {
        name: np.char.add(name, draw.integers(0, levels, n).astype(str))
        for name, levels in (("a", 60), ("b", 55))
    }
    data["x"] = draw.normal(size=n)
    data["y"] = draw.poisson(np.exp(0.2 * data["x"])).astype(float)
    coded = jn.fit_glm("y ~ x + a + b", data, family="poisson")
    assert len(coded.fit.params) == 1 + 1 + 59 + 54
    dummies = np.column_stack(
        [data["x"]]
        + [(data[f] == level).astype(float) for f in "ab" for level in sorted(set(data[f]))[1:]]
    )
    dense = jn.fit_glm(dummies, data["y"], family="poisson")
    assert_allclose(np.asarray(coded.params), np.asarray(dense.params), rtol=1e-8, atol=1e-10)
    assert_allclose(np.asarray(coded.bse), np.asarray(dense.bse), rtol=1e-8)
    assert_allclose(coded.llf, dense.llf, rtol=1e-12)


def test_orthogonal_basis_finds_aliases_in_order() -> None:
    A = RNG.normal(size=(30, 4))
    A = np.column_stack([A, A[:, 1] - 2 * A[:, 3], np.zeros(30)])
    basis = orthogonal_basis(A)
    assert basis.kept.tolist() == [True] * 4 + [False, False]
    assert_allclose(basis.q @ basis.r, A[:, :4], atol=1e-12)
    assert smallest_pivot(A[:, :5].T @ A[:, :5]) < 1e-12


@pytest.mark.x64
def test_quadratic_blocks_equal_dense_ones() -> None:
    """The blocked layout with codes against plain matrix products."""
    from jaxnlme.numerics.blocked import Blocks

    dense = RNG.normal(size=(2, 3, 8))
    codes = RNG.integers(0, 4, size=(2, 8)).astype(np.int32)  # 3: the base level
    blocks = Blocks(dense, (codes,), (3,))
    flat = dense.transpose(0, 2, 1).reshape(16, 3)
    full = np.column_stack([flat, *[(codes.ravel() == k).astype(float) for k in range(3)]])
    w, b = RNG.random((2, 8)), RNG.normal(size=6)
    assert_allclose(np.asarray(blocks.linear(b)).ravel(), full @ b, rtol=1e-13)
    assert_allclose(np.asarray(blocks.score(w)), full.T @ w.ravel(), rtol=1e-13)
    assert_allclose(np.asarray(blocks.gram(w)), full.T @ (w.ravel()[:, None] * full), atol=1e-13)
    M = full.T @ full
    assert_allclose(
        np.asarray(blocks.quadratic(M)).ravel(), np.einsum("np,pq,nq->n", full, M, full), rtol=1e-12
    )
