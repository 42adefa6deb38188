"""Links: inverse, derivative, domain; what a link's name may be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlme import links
from jaxnlme._errors import ModelSpecError

pytestmark = pytest.mark.x64


def softplus(eta):
    return jnp.logaddexp(eta, 0.0)


ETA = np.array([-3.0, -0.4, 0.3, 1.7, 4.0])
REAL = {
    "identity", "log", "logit", "probit", "cloglog", "loglog", "cauchit", "interval", "softplus", "power 0",
}  # fmt: skip
LINKS = {
    **links.LINKS,
    "interval": links.Interval(-1, 3),
    "power 2": links.Power(2),
    "power -1/3": links.Power(-1 / 3),
    "power 0": links.Power(0),
    "softplus": links.Custom(softplus, name="softplus"),
}
over_links = pytest.mark.parametrize("name", LINKS)


@over_links
def test_round_trip_and_derivative(name):
    """1e-12: the probability links lose digits of ``eta`` where the mean is near 1 (at 4: exp(-exp(4)))."""
    link = LINKS[name]
    eta = jnp.asarray(ETA if name in REAL else np.abs(ETA))
    eta = jnp.minimum(eta, 2.0) if name == "cloglog" else eta
    eta = jnp.maximum(eta, -2.0) if name == "loglog" else eta
    mu, slope = link.inverse(eta), link.derivative(eta)
    np.testing.assert_allclose(link.link(mu), eta, rtol=1e-10)
    _, by_ad = jax.jvp(link.inverse, (eta,), (jnp.ones_like(eta),))
    np.testing.assert_allclose(slope, by_ad, rtol=1e-12)
    _, by_mu = jax.jvp(link.link, (mu,), (jnp.ones_like(mu),))
    if name != "softplus":  # bisection has no derivative
        np.testing.assert_allclose(by_mu * slope, 1, rtol=1e-9)
    np.testing.assert_allclose(link.complement(eta), 1 - mu, rtol=1e-9)
    assert np.all(np.asarray(link.valid(eta)))
    assert not np.any(np.asarray(link.valid(jnp.asarray([np.nan, np.inf]))))


@pytest.mark.parametrize("name", ["inverse", "inverse_square", "sqrt", "power 2", "power -1/3"])
def test_the_domain_is_checked(name):
    """R leaves these domains silently; a step out of them must be halved."""
    inside = np.asarray(LINKS[name].valid(jnp.asarray([-1.0, 0.0, 1.0])))
    np.testing.assert_array_equal(inside, [name == "inverse", False, True])


@pytest.mark.parametrize("name", ["logit", "probit", "cloglog", "loglog", "cauchit"])
def test_probabilities_near_one_keep_their_complement(name):
    """``1 - mu`` far in the upper tail, against the mirrored link or its closed form."""
    eta = np.array([3.0, 9.0, 20.0])
    want = {
        "logit": lambda: np.exp(-eta) / (1 + np.exp(-eta)),
        "probit": lambda: LINKS["probit"].inverse(-eta),
        "cloglog": lambda: np.exp(-np.exp(eta)),
        "loglog": lambda: -np.expm1(-np.exp(-eta)),
        "cauchit": lambda: np.arctan(1 / eta) / np.pi,
    }[name]()
    np.testing.assert_allclose(LINKS[name].complement(eta), want, rtol=1e-12)
    assert LINKS[name].complement(eta)[0] > 0


@pytest.mark.parametrize("mu", [1e-6, 0.5, 30.0, 5e3, 1e9])
def test_a_custom_link_is_inverted_over_its_whole_range(mu):
    link = LINKS["softplus"]
    np.testing.assert_allclose(link.inverse(link.link(mu)), mu, rtol=1e-10)


def test_float32_stays_float32():
    for link in LINKS.values():
        x = np.full(3, 0.5, np.float32)
        for function in (link.link, link.inverse, link.derivative, link.complement):
            assert jnp.asarray(function(x)).dtype == np.float32


def test_names_and_errors():
    for name, link in links.LINKS.items():
        assert links.as_link(name) is link
        assert links.as_link(link) is link
    assert links.as_link("1/mu^2").name == "inverse_square"
    with pytest.raises(ModelSpecError, match=r"link='logti'.*Did you mean 'logit'"):
        links.as_link("logti")
    with pytest.raises(ModelSpecError, match=r"found int"):
        links.as_link(3)
    with pytest.raises(ModelSpecError, match="finite"):
        links.Power(np.inf)
    with pytest.raises(ModelSpecError, match="low must be below high"):
        links.Interval(1, 1)
    with pytest.raises(ModelSpecError, match="function of eta"):
        links.Custom("exp")  # type: ignore[arg-type]
