"""The special functions of the densities against scipy, which is good to about 1e-13 here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special as sp

from jaxnlme.numerics import special
from jaxnlme.numerics.tails import log_beta_tails, log_gamma_tails

pytestmark = pytest.mark.x64


def test_gamma_functions():
    x = np.concatenate([np.logspace(-8, 10, 60), np.linspace(0.05, 20, 50)])
    np.testing.assert_allclose(special.log_gamma(x), sp.gammaln(x), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(special.digamma(x), sp.digamma(x), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(special.trigamma(x), sp.polygamma(1, x), rtol=1e-13)
    np.testing.assert_allclose(special.tetragamma(x), sp.polygamma(2, x), rtol=1e-13)


def test_log_rising_tends_to_zero_without_cancellation():
    """For large theta it is y (y - 1) / (2 theta) to first order; plain log-gammas lose every digit."""
    theta, y = np.full(3, 1e12), np.array([2.0, 10.0, 300.0])
    got = special.log_rising(theta, y)
    np.testing.assert_allclose(got, y * (y - 1) / 2e12, rtol=0, atol=1e-13)
    theta = np.array([0.05, 1.0, 7.9, 8.1])
    y = np.full(4, 3.5)
    want = sp.gammaln(theta + y) - sp.gammaln(theta) - y * np.log(theta)
    np.testing.assert_allclose(special.log_rising(theta, y), want, rtol=1e-12, atol=1e-13)


def test_normal_tails_and_their_derivatives():
    x = np.array([-300.0, -37.0, -5.0, -0.1, 0.0, 0.1, 5.0])
    np.testing.assert_allclose(special.log_ndtr(x), sp.log_ndtr(x), rtol=1e-13, atol=1e-16)
    slope = jax.vmap(jax.grad(special.log_ndtr))(jnp.asarray(x))
    want = np.exp(-0.5 * x**2 - 0.5 * np.log(2 * np.pi) - sp.log_ndtr(x))
    np.testing.assert_allclose(slope, want, rtol=1e-10)


def test_deviance_gap_is_exact_for_tiny_arguments():
    t = np.array([1e-12, -1e-9, 1e-4])
    np.testing.assert_allclose(special.deviance_gap(t), t**2 / 2 - t**3 / 3 + t**4 / 4, rtol=1e-11)
    assert np.isinf(special.deviance_gap(np.array([-1.0])))[0]


def test_gamma_tails():
    a, x = (
        v.ravel() for v in np.meshgrid([0.1, 0.5, 3.0, 100.0, 1e4], [0.01, 1.0, 5.0, 100.0, 1e4])
    )
    lower, upper = jax.jit(log_gamma_tails)(a, x)
    for got, want in ((lower, sp.gammainc(a, x)), (upper, sp.gammaincc(a, x))):
        shown = want > 1e-290
        np.testing.assert_allclose(
            np.asarray(got)[shown], np.log(want[shown]), rtol=1e-11, atol=1e-11
        )
        assert np.all(np.isfinite(np.asarray(got)))


def test_beta_tails():
    """Both tails over shapes of 0.001 to 1e4; 1e-9: the complement of a tail near 1 loses three digits there."""
    shapes = [1e-3, 0.1, 1.0, 3.0, 1e4]
    a, b, s = (
        v.ravel() for v in np.meshgrid(shapes, shapes, [-200.0, -20.0, -0.01, 0.0, 1.0, 15.0])
    )
    lower, upper = jax.jit(log_beta_tails)(a, b, s)
    x, rest = sp.expit(s), sp.expit(-s)
    wants = (
        np.where(s < 0, sp.betainc(a, b, x), sp.betaincc(b, a, rest)),
        np.where(s < 0, sp.betaincc(a, b, x), sp.betainc(b, a, rest)),
    )
    for got, want in zip((lower, upper), wants, strict=True):
        shown = want > 1e-290
        np.testing.assert_allclose(
            np.asarray(got)[shown], np.log(want[shown]), rtol=1e-9, atol=1e-9
        )
        assert np.all(np.isfinite(np.asarray(got)))


@jax.jit
def _bends(arguments):
    """First and second derivatives (3, 3, n) of a weighted sum of both tails, elementwise."""

    def total(arguments):
        lower, upper = log_beta_tails(*arguments)
        return jnp.sum(lower + 0.6 * upper)

    slopes, push = jax.linearize(jax.grad(total), arguments)
    directions = jnp.eye(3)[:, :, None] * jnp.ones_like(arguments)[None]
    return slopes, jax.vmap(push)(directions)


def test_second_derivatives_of_beta_tails():
    """They are covariances over the tail; equal shapes are no special case."""
    grid = np.meshgrid([0.3, 3.0, 40.0], [0.3, 3.0, 40.0], [-3.0, 0.1, 2.0])
    arguments, h = np.stack([v.ravel() for v in grid]), 1e-5
    exact = _bends(arguments)[1]
    for k, step in enumerate(h * np.eye(3)[:, :, None]):
        difference = (_bends(arguments + step)[0] - _bends(arguments - step)[0]) / (2 * h)
        np.testing.assert_allclose(exact[k], difference, rtol=1e-6, atol=1e-8)


def test_derivatives_of_gamma_tails():
    """At shape 1 the upper tail is exp(-x); in general the density is the slope in x."""
    x = np.array([0.1, 1.0, 5.0, 40.0])
    a = np.array([1.0, 0.4, 7.0, 30.0])

    def upper(a, x):
        return log_gamma_tails(a, x)[1]

    by_x = jax.vmap(jax.grad(upper, 1))(a, x)
    want = -np.exp((a - 1) * np.log(x) - x - sp.gammaln(a)) / sp.gammaincc(a, x)
    np.testing.assert_allclose(by_x, want, rtol=1e-10)
    np.testing.assert_allclose(by_x[0], -1, rtol=1e-12)
    h = 1e-4
    by_a = jax.vmap(jax.grad(upper, 0))(a, x)
    want = (np.log(sp.gammaincc(a + h, x)) - np.log(sp.gammaincc(a - h, x))) / (2 * h)
    np.testing.assert_allclose(by_a, want, rtol=1e-6)
