"""Priors against scipy: densities, distribution functions, quantiles, draws; bounds with exact mass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from jaxnlme import DataError, ModelSpecError
from jaxnlme.calibration import ParameterSet
from jaxnlme.priors import (
    LKJ,
    Beta,
    Bound,
    Cauchy,
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    LogNormal,
    Normal,
    StudentT,
    TruncatedNormal,
    Uniform,
    as_prior,
)

# prior, the same distribution in scipy, bounds
CASES = {
    "uniform": (Uniform(-1, 3), st.uniform(-1, 4), (-1.0, 3.0)),
    "normal": (Normal(1, 2), st.norm(1, 2), (None, None)),
    "lognormal": (LogNormal(0.3, 0.8), st.lognorm(0.8, scale=np.exp(0.3)), (0.0, None)),
    "halfnormal": (HalfNormal(2), st.halfnorm(scale=2), (0.0, None)),
    "gamma": (Gamma(2.5, 3), st.gamma(2.5, scale=1 / 3), (0.0, None)),
    "inversegamma": (InverseGamma(3, 2), st.invgamma(3, scale=2), (0.0, None)),
    "beta": (Beta(2, 0.7), st.beta(2, 0.7), (0.0, 1.0)),
    "studentt": (StudentT(4, 1, 2), st.t(4, 1, 2), (None, None)),
    "exponential": (Exponential(3), st.expon(scale=1 / 3), (0.0, None)),
    "cauchy": (Cauchy(1, 2), st.cauchy(1, 2), (None, None)),
    "halfcauchy": (HalfCauchy(5), st.halfcauchy(scale=5), (0.0, None)),
    "truncated": (
        TruncatedNormal(1, 2, 0, 4), st.truncnorm(-0.5, 1.5, loc=1, scale=2), (0.0, 4.0)
    ),
    "lower": (TruncatedNormal(0, 1, lower=1), st.truncnorm(1, np.inf), (1.0, None)),
    "upper": (Bound(Normal(0, 1), upper=-2), st.truncnorm(-np.inf, -2), (None, -2.0)),
}  # fmt: skip
each = pytest.mark.parametrize("name", CASES)


@each
def test_density_and_distribution_function_are_scipys(name: str) -> None:
    """1e-12 relative for the density; the series of gamma and beta tails keep 11 digits."""
    prior, other, _ = CASES[name]
    x = np.concatenate([np.linspace(-6, 8, 160), other.ppf(np.linspace(0.001, 0.999, 40))])
    ours = prior.log_prob(x)
    assert isinstance(ours, np.ndarray)
    assert ours.dtype == np.float64
    theirs = other.logpdf(x)
    inside = np.isfinite(theirs)
    np.testing.assert_allclose(ours[inside], theirs[inside], rtol=1e-12, atol=1e-12)
    at_an_end = np.isin(x, other.support())  # scipy's and our value at an open end may differ
    assert (ours[~inside & ~at_an_end] == -np.inf).all()
    np.testing.assert_allclose(prior.cdf(x), other.cdf(x), rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(prior.ln_pdf(x), ours)


@each
def test_quantiles_invert_and_reach_into_the_tails(name: str) -> None:
    prior, other, _ = CASES[name]
    q = np.array([1e-9, 1e-4, 0.02, 0.3, 0.5, 0.77, 0.999, 1 - 1e-9])
    np.testing.assert_allclose(prior.icdf(q), other.ppf(q), rtol=2e-7, atol=1e-12)
    assert np.isnan(prior.icdf(np.array([-0.1, 1.1]))).all()


@each
def test_draws_follow_the_distribution_and_repeat(name: str) -> None:
    prior, other, bounds = CASES[name]
    draws = prior.sample(20_000, key=3)
    assert draws.dtype == np.float64
    assert st.kstest(draws, other.cdf).pvalue > 1e-4
    np.testing.assert_array_equal(draws, prior.sample(20_000, key=jax.random.key(3)))
    assert not np.array_equal(draws, prior.sample(20_000, key=4))
    assert prior.bounds() == bounds


@each
def test_the_line_and_back(name: str) -> None:
    """The Jacobian is checked by mass: the density on the line integrates to 1."""
    prior, other, _ = CASES[name]
    x = other.ppf(np.linspace(0.01, 0.99, 23))
    z = prior.to_unconstrained(x)
    assert np.isfinite(z).all()
    np.testing.assert_allclose(prior.from_unconstrained(z), x, rtol=1e-12)
    with jax.enable_x64(True):
        point = jnp.asarray(float(z[5]))
        slope = jax.grad(lambda t: prior.from_unconstrained(t))(point)
        assert float(prior._line_log_jacobian(point)) == pytest.approx(np.log(slope), abs=1e-10)


def test_bounds_far_out_keep_their_mass() -> None:
    """Mass 6e-16 and 3e-316: scipy's own log-space truncated normal is the outside value."""
    for low, high in ((8.0, 9.0), (38.0, 40.0), (-40.0, -38.0)):
        prior = Bound(Normal(0, 1), low, high)
        x = np.linspace(low, high, 7)
        np.testing.assert_allclose(prior.log_prob(x), st.truncnorm.logpdf(x, low, high), rtol=1e-9)
        draws = prior.sample(4000, key=2)
        assert ((draws >= low) & (draws <= high)).all()
        assert st.kstest(draws, lambda v, a=low, b=high: st.truncnorm.cdf(v, a, b)).pvalue > 1e-4
        assert prior.log_prob(low - 1e-9) == -np.inf


def test_bounds_nest_and_cut_any_prior() -> None:
    nested = Bound(Bound(Gamma(2, 1), 0.5, 6.0), lower=0.1, upper=3.0)
    assert nested.bounds() == (0.5, 3.0)
    base = st.gamma(2)
    mass = base.cdf(3.0) - base.cdf(0.5)
    x = np.linspace(0.5, 3, 9)
    np.testing.assert_allclose(nested.log_prob(x), base.logpdf(x) - np.log(mass), rtol=1e-11)
    np.testing.assert_allclose(nested.cdf(x), (base.cdf(x) - base.cdf(0.5)) / mass, atol=1e-12)
    once = Bound(Uniform(0, 1), upper=0.25)
    assert float(once.log_prob(0.1)) == pytest.approx(np.log(4), rel=1e-12)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Uniform(1, 0), "lower"),
        (lambda: Uniform(0, np.inf), "upper"),
        (lambda: Normal(0, 0), "scale"),
        (lambda: Normal(np.nan, 1), "loc"),
        (lambda: Gamma(-1), "concentration"),
        (lambda: Exponential(0), "rate"),
        (lambda: Bound(Normal()), "lower="),
        (lambda: Bound(Normal(), 2, 1), "lower"),
        (lambda: Bound(Uniform(0, 1), lower=2), "lower"),
        (lambda: Bound("normal", 0, 1), "not a prior"),
        (lambda: Normal().sample(-1), "n=-1"),
        (lambda: Normal().sample(2, key="a"), "key="),
        (lambda: LKJ(0), "concentration"),
        (lambda: as_prior(3.0), "not a prior"),
    ],
)
def test_bad_priors_raise(build, says: str) -> None:
    with pytest.raises(ModelSpecError, match=says):
        build()


def test_pure_use_follows_the_dtype_of_a_jax_array() -> None:
    x = jnp.ones(3, jnp.float32)
    for prior, _, _ in CASES.values():
        assert prior.log_prob(x).dtype == jnp.float32
    batch = jax.vmap(lambda m: Normal(m, 1.0).log_prob(x))(jnp.arange(2.0))
    assert batch.shape == (2, 3)


def test_a_numpyro_distribution_is_a_prior() -> None:
    dist = pytest.importorskip("numpyro.distributions")
    with jax.numpy_rank_promotion("allow"):  # numpyro relies on it
        check_numpyro(dist)


def check_numpyro(dist) -> None:
    cases = [
        (dist.Normal(1.0, 2.0), st.norm(1, 2), (None, None)),
        (dist.LogNormal(0.0, 0.5), st.lognorm(0.5), (0.0, None)),
        (dist.Uniform(-1.0, 2.0), st.uniform(-1, 3), (-1.0, 2.0)),
        (dist.Beta(2.0, 3.0), st.beta(2, 3), (0.0, 1.0)),
    ]
    for outside, other, bounds in cases:
        prior = as_prior(outside)
        assert prior.bounds() == bounds
        x = other.ppf(np.array([0.1, 0.5, 0.9]))
        np.testing.assert_allclose(prior.log_prob(x), other.logpdf(x), rtol=1e-12)
        np.testing.assert_allclose(prior.icdf(np.array([0.1, 0.9])), x[[0, 2]], rtol=1e-9)
        assert prior.log_prob(np.array([-50.0, 50.0]))[1] < -20
    with pytest.raises(ModelSpecError, match="discrete"):
        as_prior(dist.Poisson(3.0))


# ---- parameter sets ---------------------------------------------------------------------------


def test_both_constructions_of_a_set_agree() -> None:
    first = ParameterSet({"b": Normal(0, 1), "a": LogNormal(0, 1)})
    second = ParameterSet().add("b", Normal(0, 1)).add("a", LogNormal(0, 1))
    assert first.names() == second.names() == ["b", "a"]
    assert first.bounds() == [(None, None), (0.0, None)]
    theta = np.array([[0.2, 1.3], [0.5, -1.0], [2.0, 0.4]])
    together = first.log_prior(theta)
    by_hand = [Normal(0, 1).log_prob(r[0]) + LogNormal(0, 1).log_prob(r[1]) for r in theta]
    np.testing.assert_allclose(together, by_hand, rtol=1e-14)
    np.testing.assert_array_equal(together, second.ln_prior(theta))
    assert together[1] == -np.inf
    assert isinstance(first.log_prior(theta[0]), float)
    np.testing.assert_array_equal(first.sample(5, key=1), second.sample(5, key=1))
    assert first.sample(5, key=1).shape == (5, 2)


def test_latin_hypercube_hits_every_stratum_once() -> None:
    params = ParameterSet({"a": LogNormal(0, 1), "b": Bound(Normal(0, 1), 0, 1), "c": Gamma(2),
                           "d": LogNormal(-1, 0.5), "e": Bound(Normal(1, 2), -1, 3)})  # fmt: skip
    draws = params.sample_lhs(100, key=5)
    for k, prior in enumerate(params.priors):
        strata = np.floor(prior.cdf(draws[:, k]) * 100).astype(int)
        assert sorted(strata) == list(range(100))
    assert draws.max() < 50  # not e^700


def test_priors_of_one_kind_keep_their_places_and_numbers() -> None:
    """They are drawn together: each column is of its own prior all the same."""
    priors = [Normal(0, 1), Uniform(2, 3), Normal(10, 5), Bound(Normal(0, 1), 0, 1), Uniform(-9, 0),
              Bound(Normal(1, 2), -1, 3), Normal(-3, 0.1)]  # fmt: skip
    params = ParameterSet({f"p{k}": prior for k, prior in enumerate(priors)})
    draws = params.sample(2000, key=3)
    for k, prior in enumerate(priors):
        assert st.kstest(draws[:, k], lambda x, prior=prior: prior.cdf(x)).pvalue > 1e-3
    assert np.abs(np.corrcoef(draws.T) - np.eye(7)).max() < 0.1


def test_bad_sets_raise() -> None:
    params = ParameterSet({"a": Normal()})
    with pytest.raises(DataError, match=r"shape \(3,\).*1 parameter"):
        params.log_prior(np.zeros(3))
    with pytest.raises(ModelSpecError, match="'a' is there already"):
        params.add("a", Normal())
    with pytest.raises(ModelSpecError, match="name"):
        params.add("", Normal())
    with pytest.raises(ModelSpecError, match="not a prior"):
        params.add("b", 3.0)
    with pytest.raises(ModelSpecError, match="transform"):
        params.add("b", Normal(), transform="lgo")
    with pytest.raises(ModelSpecError, match=r"log.*support"):
        params.add("b", Normal(), transform="log")
    with pytest.raises(ModelSpecError, match="no parameters"):
        ParameterSet().sample(3)
