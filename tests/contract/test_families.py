"""What every family must satisfy. A new family joins by one line in FAMILIES."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nlme.jaxprs import computes_float64

import jaxnlme.families as jf
from jaxnlme import links
from jaxnlme._errors import ModelSpecError
from jaxnlme.families._base import AbstractFamily

pytestmark = pytest.mark.x64
N = 4001


def exponential_log_density(y, mu):
    return -jnp.log(mu) - y / mu


@dataclasses.dataclass(frozen=True)
class Case:
    """A family at a few parameter values and the kind of its support."""

    family: Any
    mu: tuple[float, ...]
    others: tuple[float, ...] = ()
    support: str = "positive"  # counts, unit, real, zero (0 and positive)
    draws: bool = True


CASES = {
    "gaussian": Case(jf.Gaussian(), (-1.0, 0.5, 3.0), (0.7,), "real"),
    "gaussian_sigma": Case(jf.Gaussian().full_likelihood(), (-1.0, 0.5, 3.0), (0.7,), "real"),
    "poisson": Case(jf.Poisson(), (0.2, 1.5, 20.0), (), "counts"),
    "binomial": Case(jf.Binomial(), (0.02, 0.5, 0.9), (), "counts"),
    "gamma": Case(jf.Gamma(), (0.3, 1.0, 8.0), (0.4,)),
    "gamma_dispersion": Case(jf.Gamma().full_likelihood(), (0.3, 1.0, 8.0), (1.7,)),
    "inverse_gaussian": Case(jf.InverseGaussian(), (0.3, 1.0, 4.0), (0.3,)),
    "inverse_gaussian_dispersion": Case(
        jf.InverseGaussian().full_likelihood(), (0.3, 1.0, 4.0), (0.3,)
    ),
    "tweedie": Case(jf.Tweedie(1.6), (0.3, 1.0, 8.0), (0.8,), "zero"),
    "tweedie_power": Case(jf.Tweedie(), (0.3, 1.0, 8.0), (1.3, 1.35), "zero"),
    "tweedie_dispersion": Case(jf.Tweedie(1.3).full_likelihood(), (0.3, 1.0, 8.0), (0.8,), "zero"),
    "negative_binomial": Case(jf.NegativeBinomial(1.7), (0.2, 1.5, 20.0), (), "counts"),
    "negative_binomial_theta": Case(jf.NegativeBinomial(), (0.2, 1.5, 20.0), (0.6,), "counts"),
    "negative_binomial1": Case(jf.NegativeBinomial1(), (0.2, 1.5, 20.0), (1.4,), "counts"),
    "beta": Case(jf.Beta(), (0.1, 0.5, 0.8), (3.0,), "unit"),
    "beta_fixed": Case(jf.Beta(precision=9.0), (0.1, 0.5, 0.8), (), "unit"),
    "lognormal": Case(jf.LogNormal(), (-0.5, 0.0, 1.2), (0.6,)),
    "student_t": Case(jf.StudentT(), (-1.0, 0.5, 3.0), (0.8, 6.5), "real"),
    "student_t_fixed": Case(jf.StudentT(df=5.0), (-1.0, 0.5, 3.0), (0.8,), "real"),
    "multinomial": Case(jf.Multinomial(levels=("a", "b", "c")), (-1.0, 0.2, 2.0), (0.4,), "counts"),
    "ordinal": Case(jf.Ordinal("probit", ("a", "b", "c")), (-1.0, 0.2, 2.0), (-0.3, 0.9), "counts"),
    "zero_inflated": Case(
        jf.ZeroInflated(jf.NegativeBinomial()), (0.2, 1.5, 20.0), (0.9, 0.25), "counts"
    ),
    "hurdle": Case(jf.Hurdle("poisson"), (0.2, 1.5, 20.0), (0.35,), "counts"),
    "hurdle_gamma": Case(jf.Hurdle("gamma"), (0.3, 1.0, 8.0), (0.4, 0.35), "zero"),
    "truncated_counts": Case(jf.Truncated(jf.NegativeBinomial(), lower=2, upper=30), (0.5, 1.5, 9.0), (0.9,), "counts"),
    "truncated_amounts": Case(jf.Truncated("gamma", lower=0.5), (0.3, 1.0, 8.0), (0.7,)),
    "custom": Case(
        jf.custom(
            exponential_log_density, variance=lambda mu: mu**2, link="log", name="exponential"
        ),
        (0.3, 1.0, 8.0),
        draws=False,
    ),
}  # fmt: skip
NO_DENSITY = {
    "quasi_poisson": Case(jf.QuasiPoisson(), (0.2, 1.5, 20.0), (), "counts", False),
    "quasi_binomial": Case(jf.QuasiBinomial(), (0.02, 0.5, 0.9), (), "unit", False),
    "quasi": Case(jf.Quasi("mu^3"), (0.3, 1.0, 8.0), (), draws=False),
    "quasi_function": Case(jf.Quasi(lambda mu: mu**2 + mu), (0.3, 1.0, 8.0), draws=False),
    "tweedie_2.5": Case(jf.Tweedie(2.5), (0.3, 1.0, 8.0), draws=False),
}
# their response has further rows: tests of their own
APART = {"beta_binomial", "Censored", "Truncated with columns"}
over_densities = pytest.mark.parametrize("name", CASES)
over_all = pytest.mark.parametrize("name", {**CASES, **NO_DENSITY})
EXPONENTIAL = [n for n, c in {**CASES, **NO_DENSITY}.items() if c.family.fisher_scoring]


def grid(support: str) -> tuple[np.ndarray, np.ndarray]:
    """Points and trapezoid weights on which a smooth density is integrated to rounding error."""
    if support == "counts":
        return np.arange(N, dtype=float), np.ones(N)
    v = np.linspace(-1, 1, N)
    step = v[1] - v[0]
    if support == "real":  # sinh reaches far enough for t tails of 5 degrees of freedom
        u = 12 * v
        return np.sinh(u), 12 * step * np.cosh(u)
    if support == "unit":
        u = 60 * v
        return 1 / (1 + np.exp(-u)), 60 * step * np.exp(-np.abs(u)) / (1 + np.exp(-np.abs(u))) ** 2
    u = 40 * v - 20
    return np.exp(u), 40 * step * np.exp(u)


def values(case: Case, mu: float, y: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.full(y.shape, float(v)) for v in (mu, *case.others))


_log_prob = jax.jit(lambda family, *args: family.log_prob(*args))


@jax.jit
def _tails(family, y, parameters):
    """Both tails of rows, and their derivatives by each parameter."""
    value, push = jax.linearize(lambda p: family.log_tails(y, *p), parameters)
    one = [jnp.stack([jnp.full_like(p, float(i == j)) for i in range(len(parameters))])
           for j, p in enumerate(parameters)]  # fmt: skip
    return value, jax.vmap(push)(one)


_cost = jax.jit(lambda family, *args: family.cost(*args))
_working = jax.jit(lambda family, *args: family.working(*args))


def mass(case: Case, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """Support points and probabilities."""
    y, w = grid("counts" if case.support == "counts" else case.support.replace("zero", "positive"))
    inside = y < 1 if case.support == "unit" else y == y
    at = np.where(inside, y, 0.5)
    with np.errstate(over="ignore"):
        density = np.exp(np.asarray(_log_prob(case.family, at, *values(case, mu, y))))
        p = np.where(inside, density * w, 0)
    if isinstance(case.family, jf.Truncated):
        low, high = case.family.lower or 0, case.family.upper or np.inf
        p = np.where((y >= low) & (y <= high), p, 0)
    limit = {"binomial": 2, "multinomial": 3, "ordinal": 3}.get(case.family.name)
    if limit:
        p = np.where(y < limit, p, 0)
    if case.support == "zero":
        zero = np.exp(np.asarray(_log_prob(case.family, np.zeros(N), *values(case, mu, y))))[0]
        y, p = np.append(y, 0.0), np.append(p, zero)
    return y, p


def test_the_list_is_complete():
    tested = {c.family.name for c in {**CASES, **NO_DENSITY}.values()} | APART
    assert set(jf.FAMILIES) <= tested


@over_densities
def test_the_density_adds_up_and_has_the_stated_moments(name):
    """1e-8: the trapezoid rule; a truncated or t density has an edge (1e-2) or a far tail."""
    case = CASES[name]
    rough = {
        "truncated_amounts": 1e-2,
        "student_t": 1e-6,
        "student_t_fixed": 1e-5,
        "beta": 1e-7,
        "beta_fixed": 1e-7,
    }.get(name, 1e-8)
    for mu in case.mu:
        y, p = mass(case, mu)
        np.testing.assert_allclose(p.sum(), 1, rtol=0, atol=rough)
        if case.family.classes is not None:
            mean = np.asarray(case.family.mean(*values(case, mu, np.zeros(1))))[0]
            np.testing.assert_allclose(mean, p[:3], rtol=1e-12)
            continue
        if isinstance(case.family, jf.Truncated):  # its mean is that of the untruncated variable
            continue
        one = values(case, mu, np.zeros(1))
        mean, variance = (
            np.asarray(case.family.mean(*one))[0],
            np.asarray(case.family.variance_of(*one))[0],
        )
        np.testing.assert_allclose(p @ y, mean, rtol=rough, atol=rough)
        np.testing.assert_allclose(p @ (y - mean) ** 2, variance, rtol=10 * rough)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_unit_deviance(name):
    """0 at ``mu = y``, positive next to it down to a relative distance of 1e-12, slope of the score."""
    case = {**CASES, **NO_DENSITY}[name]
    family = case.family
    y = np.asarray(case.mu)
    assert np.all(np.asarray(family.unit_deviance(y, y)) == 0)
    for gap in (1e-12, 1e-6, 1e-2, 0.3):
        for mu in (y * (1 + gap), y * (1 - gap)):
            if name.endswith("binomial") and not name.startswith("neg"):
                mu = np.clip(mu, 0, 0.999)
            deviance = np.asarray(family.unit_deviance(y, mu))
            assert np.all(deviance > 0)
            if gap <= 1e-6:  # its Taylor series
                want = (y - mu) ** 2 / np.asarray(family.variance(y))
                np.testing.assert_allclose(deviance, want, rtol=20 * gap + 1e-3 * (gap < 1e-9))
    mu = jnp.asarray(y * 0.8)
    slope = jax.vmap(jax.grad(lambda m, v: family.unit_deviance(v, m)))(mu, jnp.asarray(y))
    np.testing.assert_allclose(slope, -2 * (y - mu) / np.asarray(family.variance(mu)), rtol=1e-8)
    kernel = jax.vmap(jax.grad(lambda m, v: family.kernel(v, m)))(mu, jnp.asarray(y))
    np.testing.assert_allclose(kernel, 0.5 * slope, rtol=1e-8)


@pytest.mark.parametrize("name", [n for n in EXPONENTIAL if n in CASES])
def test_the_score_of_the_density_is_that_of_the_variance_function(name):
    case = CASES[name]
    mu = jnp.asarray(case.mu)
    y = jnp.asarray([0.0, 1.0, 1.0] if case.support == "counts" else [0.4, 0.7, 2.5])
    others = [jnp.full_like(mu, o) for o in case.others]
    slope = jax.grad(lambda m: jnp.sum(case.family.log_prob(y, m, *others)))(mu)
    phi = others[0] if others else 1.0
    np.testing.assert_allclose(slope, (y - mu) / (phi * case.family.variance(mu)), rtol=1e-9)


def some_links(case: Case) -> tuple[links.AbstractLink, ...]:
    return (case.family.default_link, *(p.link for p in case.family.parameters))


def some_rows(case: Case, dtype=float):
    """Responses, weights and linear predictors of three rows."""
    y = {"counts": [0.0, 1.0, 2.0], "unit": [0.2, 0.5, 0.9], "real": [-1.0, 0.0, 4.0]}.get(
        case.support, [0.6, 1.0, 3.0]
    )
    if case.family.name in ("binomial", "quasi_binomial"):
        y = [0.0, 1.0, 1.0]
    if isinstance(case.family, jf.Truncated):
        y = [2.0, 3.0, 5.0]
    others = case.others[: len(case.family.parameters)]
    parameters = [jnp.asarray(case.mu, dtype), *(jnp.full(3, o, dtype) for o in others)]
    etas = [link.link(p) for link, p in zip(some_links(case), parameters, strict=True)]
    return jnp.asarray(y, dtype), jnp.asarray([1.0, 2.0, 1.0], dtype), tuple(etas)


@over_all
def test_working_is_the_derivative_of_the_cost(name):
    """Against finite differences of the cost (1e-6), the information of Newton families too (1e-4)."""
    case = {**CASES, **NO_DENSITY}[name]
    y, w, etas = some_rows(case)
    all_links = some_links(case)
    rows, score, information = _working(case.family, all_links, y, w, etas)

    def cost(etas):
        parameters = [link.inverse(e) for link, e in zip(all_links, etas, strict=True)]
        return np.asarray(_cost(case.family, y, w, *parameters))

    np.testing.assert_allclose(rows, cost(etas), rtol=1e-12, atol=1e-12)
    assert np.all(np.isfinite(np.asarray(rows)))
    h = 1e-5
    for i in range(len(etas)):
        up, down = [tuple(e + s * h * (j == i) for j, e in enumerate(etas)) for s in (1, -1)]
        slope = (cost(up) - cost(down)) / (2 * h)
        np.testing.assert_allclose(-np.asarray(score[i]), slope, rtol=1e-6, atol=1e-7)
        if case.family.fisher_scoring:
            assert np.all(np.asarray(information[0][0]) > 0)
            expected = case.family.expected_information(all_links, w, etas)
            np.testing.assert_allclose(expected[0][0], information[0][0], rtol=1e-12)
            continue
        ups = _working(case.family, all_links, y, w, up)[1]
        downs = _working(case.family, all_links, y, w, down)[1]
        for j in range(i + 1):
            bend = -(np.asarray(ups[j]) - np.asarray(downs[j])) / (2 * h)
            np.testing.assert_allclose(information[i][j], bend, rtol=1e-5, atol=1e-7)


@over_all
def test_start_values_lie_inside(name):
    case = {**CASES, **NO_DENSITY}[name]
    y, w, _ = some_rows(case)
    mu = case.family.start_mean(y, w)
    others = [jnp.broadcast_to(o, w.shape) for o in case.family.start_others(y, w)]
    assert mu.shape == w.shape and len(others) == len(case.family.parameters)
    assert np.all(np.asarray(case.family.valid(mu, *others)))
    for link, value in zip(some_links(case), (mu, *others), strict=True):
        eta = link.link(value)
        assert np.all(np.isfinite(np.asarray(eta)) & np.asarray(link.valid(eta)))
        np.testing.assert_allclose(link.inverse(eta), value, rtol=1e-9, atol=1e-12)


@over_all
def test_float32_stays_float32(name):
    """64-bit arithmetic is on: a float64 constant would show."""
    case = {**CASES, **NO_DENSITY}[name]
    family, all_links = case.family, some_links(case)

    def run(y, w, *etas):
        parameters = [link.inverse(e) for link, e in zip(all_links, etas, strict=True)]
        return (
            family.working(all_links, y, w, etas),
            family.log_likelihood(y, w, *parameters),
            family.unit_deviance(y, *parameters),
            family.mean(*parameters),
            family.variance_of(*parameters),
            family.valid(*parameters),
            family.start_mean(y, w),
            family.start_others(y, w),
        )

    y, w, etas = some_rows(case, np.float32)
    assert computes_float64(jax.make_jaxpr(run)(y, w, *etas)) == []


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.draws])
def test_distribution_function_quantiles_and_draws(name):
    case = CASES[name]
    family = case.family
    for mu in case.mu[1:]:
        y, p = mass(case, mu)
        order = np.argsort(y)
        y, total = y[order], np.cumsum(p[order])
        at = np.searchsorted(total, [0.05, 0.3, 0.7, 0.95])
        one = values(case, mu, at)
        got = family.cdf(y[at], *one)
        # the running sum of a density is off by half a cell of the trapezoid rule
        np.testing.assert_allclose(got, total[at], atol=1e-9 if case.support == "counts" else 2e-2)
        levels = np.array([0.02, 0.4, 0.85, 0.99])
        q = family.quantile(levels, *one)
        at_q = family.cdf(q, *one)
        assert np.all(at_q >= levels - 1e-9)
        if case.support in ("counts", "zero"):
            below = family.cdf(q - 1 if case.support == "counts" else q - 1e-6, *one)
            assert np.all((below < levels) | (q <= 0))
        else:
            np.testing.assert_allclose(at_q, levels, atol=1e-9)
        n = 4000
        draws = family.sample(np.random.default_rng(0), np.ones(n), *values(case, mu, np.zeros(n)))
        mean = np.dot(p[order], y)
        error = np.sqrt(np.dot(p[order], (y - mean) ** 2) / n)
        assert abs(draws.mean() - mean) < 4.5 * error


TAILS = [
    name
    for name, case in CASES.items()
    if type(case.family).log_tails is not AbstractFamily.log_tails
    and not case.family.has_dispersion
]


@pytest.mark.parametrize("name", TAILS)
def test_traced_tails(name):
    """log P(Y <= y) and log P(Y > y) against scipy, 1e-9; derivatives by differences, 1e-5."""
    case = CASES[name]
    family = case.family
    y, _, etas = some_rows(case)
    parameters = [link.inverse(e) for link, e in zip(some_links(case), etas, strict=True)]
    parameters += [jnp.full(3, o) for o in case.others[len(family.parameters) :]]
    want = family.cdf(np.asarray(y), *map(np.asarray, parameters))
    (lower, upper), slopes = _tails(family, y, parameters)
    np.testing.assert_allclose(np.exp(lower), want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.exp(upper), 1 - want, rtol=1e-9, atol=1e-12)
    h = 1e-5
    for i in range(len(parameters)):
        ends = [
            _tails(family, y, [p + s * h * (j == i) for j, p in enumerate(parameters)])[0]
            for s in (1, -1)
        ]
        for tail in (0, 1):
            shown = np.isfinite(np.asarray(ends[0][tail]))
            slope = (np.asarray(ends[0][tail])[shown] - np.asarray(ends[1][tail])[shown]) / (2 * h)
            np.testing.assert_allclose(
                np.asarray(slopes[tail][i])[shown], slope, rtol=1e-5, atol=1e-8
            )
        assert shown.any()
    single = [p.astype(jnp.float32) for p in (y, *parameters)]
    assert computes_float64(jax.make_jaxpr(family.log_tails)(*single)) == []


def test_names():
    for name in jf.FAMILIES:
        assert jf.as_family(name).name == name
    aliases = {
        "negbinomial": "negative_binomial", "nb": "negative_binomial", "quasipoisson": "quasi_poisson",
        "quasibinomial": "quasi_binomial", "Gamma": "gamma", "inverse.gaussian": "inverse_gaussian",
    }  # fmt: skip
    for alias, name in aliases.items():
        assert jf.as_family(alias).name == name
    with pytest.raises(
        ModelSpecError, match=r"'poison'.*negative_binomial.*Did you mean 'poisson'"
    ):
        jf.as_family("poison")
    with pytest.raises(ModelSpecError, match=r"Call it: Gamma\(\)"):
        jf.as_family(jf.Gamma)
    with pytest.raises(ModelSpecError, match="found 3"):
        jf.as_family(3)
