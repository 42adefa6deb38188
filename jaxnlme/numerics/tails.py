"""Logarithms of gamma and beta tail probabilities, differentiable in every argument.

A tail is ``log int exp(theta . T(s) + h(s)) ds - c(theta)`` of a log-concave integrand over a half-line, with
``s = log t`` (gamma) or ``s = logit t`` (beta). The stretch on which its logarithm lies within 40 of the
maximum is found by bisection and integrated by Gauss-Legendre rules on panels that break where an
exponential flank turns into the bell. Only the tail that ends on this side of the median is integrated, so
that it keeps its relative accuracy where it is small; the other is its complement.

Being an exponential family, the first and second derivatives by ``theta`` are means and covariances of ``T`` over
the tail, and those by the end point are in closed form: the same rule gives them all, and nothing is
differentiated through it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._typing import Array
from jaxnlme.numerics.special import (
    digamma,
    digamma_gap,
    log1mexp,
    log_beta,
    log_gamma,
    trigamma,
    trigamma_gap,
)

__all__ = ["log_beta_tails", "log_gamma_tails"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)
_DROP = 40.0
_LOG_2 = float(np.log(2.0))
_BISECTIONS = 30
_FLANK = 25.0  # exp(-25): beyond it the flank is an exponential to rounding error


class _Moments(NamedTuple):
    """Logarithm of a tail, and means and covariances (k, l <= k) of the statistics over it."""

    value: Array
    mean: tuple[Array, ...]
    covariance: tuple[tuple[Array, ...], ...]


class _Gamma:
    """``exp(a s - exp(s)) / Gamma(a)``."""

    @staticmethod
    def exponent(s: Array, theta: tuple[Array, ...]) -> Array:
        return theta[0] * s - jnp.exp(s)

    @staticmethod
    def slope(s: Array, theta: tuple[Array, ...]) -> Array:
        return theta[0] - jnp.exp(s)

    @staticmethod
    def statistics(s: Array) -> tuple[Array, ...]:
        return (s,)

    @staticmethod
    def constant(theta: tuple[Array, ...]) -> Array:
        return log_gamma(theta[0])

    @staticmethod
    def constant_slopes(theta: tuple[Array, ...]) -> tuple[Array, ...]:
        return (digamma(theta[0]),)

    @staticmethod
    def constant_bends(theta: tuple[Array, ...]) -> tuple[tuple[Array, ...], ...]:
        return ((trigamma(theta[0]),),)

    @staticmethod
    def is_lower(end: Array, theta: tuple[Array, ...]) -> Array:
        """Whether the end lies below the median: at the mode both tails are large only for shapes above 1."""
        (a,) = theta
        large = jnp.maximum(a, 1)
        return end <= jnp.where(a < 1, (log_gamma(1 + a) - _LOG_2) / a, jnp.log(large - 1 / 3))

    @staticmethod
    def stretch(lower: Array, end: Array, theta: tuple[Array, ...]) -> tuple[Array, Array, list]:
        """Where the integrand is largest, a point beyond its reach, and where the panels break."""
        (a,) = theta
        mode = jnp.log(a)
        inner = jnp.where(lower, jnp.minimum(end, mode), jnp.maximum(end, mode))
        steep = 2 * _DROP / jnp.exp(jnp.minimum(inner, 50.0))
        up = inner + jnp.minimum(jnp.sqrt(steep), 5 + jnp.log1p(steep))
        down = inner - (_DROP + jnp.exp(inner)) / a - 1
        return inner, jnp.where(lower, down, up), [mode - _FLANK, mode]


class _Beta:
    """``exp(a log p(s) + b log p(-s)) / B(a, b)`` with the logistic function ``p``."""

    @staticmethod
    def exponent(s: Array, theta: tuple[Array, ...]) -> Array:
        a, b = theta
        return a * jax.nn.log_sigmoid(s) + b * jax.nn.log_sigmoid(-s)

    @staticmethod
    def slope(s: Array, theta: tuple[Array, ...]) -> Array:
        a, b = theta
        return a * jax.nn.sigmoid(-s) - b * jax.nn.sigmoid(s)

    @staticmethod
    def statistics(s: Array) -> tuple[Array, ...]:
        return jax.nn.log_sigmoid(s), jax.nn.log_sigmoid(-s)

    @staticmethod
    def constant(theta: tuple[Array, ...]) -> Array:
        return log_beta(*theta)

    @staticmethod
    def constant_slopes(theta: tuple[Array, ...]) -> tuple[Array, ...]:
        a, b = theta
        return -digamma_gap(a, b), -digamma_gap(b, a)

    @staticmethod
    def constant_bends(theta: tuple[Array, ...]) -> tuple[tuple[Array, ...], ...]:
        a, b = theta
        return (-trigamma_gap(a, b),), (-trigamma(a + b), -trigamma_gap(b, a))

    @staticmethod
    def is_lower(end: Array, theta: tuple[Array, ...]) -> Array:
        """Whether the end lies below the median.

        Shapes below 1 pile the density up at an end, where ``P(T <= x)`` is near ``x^a / (a B(a, b))``.
        """
        a, b = theta
        mode = jnp.log(a) - jnp.log(b)
        scale = log_beta(a, b) - _LOG_2
        by_left = jnp.minimum(mode, (jnp.log(a) + scale) / a)
        by_right = jnp.maximum(mode, -(jnp.log(b) + scale) / b)
        piled = jnp.where(a <= b, by_left, by_right)
        return end <= jnp.where(jnp.minimum(a, b) < 1, piled, mode)

    @staticmethod
    def stretch(lower: Array, end: Array, theta: tuple[Array, ...]) -> tuple[Array, Array, list]:
        """See :class:`_Gamma`; beyond the bends the slope is at least half of ``a``, or of ``b``."""
        a, b = theta
        mode = jnp.log(a) - jnp.log(b)
        total = a + b
        inner = jnp.where(lower, jnp.minimum(end, mode), jnp.maximum(end, mode))
        down = jnp.minimum(inner, jnp.log(a / total) - 1) - 2 * _DROP / a - 1
        up = jnp.maximum(inner, 1 - jnp.log(b / total)) + 2 * _DROP / b + 1
        breaks = [jnp.log(a / total) - _FLANK, mode, _FLANK - jnp.log(b / total)]
        return inner, jnp.where(lower, down, up), breaks


def _reach(g: Callable[[Array], Array], inner: Array, outer: Array) -> Array:
    """The point between ``inner`` and ``outer`` where ``g`` has fallen by 40."""
    floor = g(inner) - _DROP

    def halve(_, ends):
        near, far = ends
        middle = 0.5 * (near + far)
        out = g(middle) < floor
        return jnp.where(out, near, middle), jnp.where(out, middle, far)

    return jax.lax.fori_loop(0, _BISECTIONS, halve, (inner, outer))[1]


def _moments(law: Any, lower: Array, end: Array, theta: tuple[Array, ...]) -> _Moments:
    """Integrate by Gauss-Legendre rules between the end and the reach of the integrand."""
    at, fixed = jax.lax.stop_gradient((end, theta))
    inner, outer, breaks = law.stretch(lower, at, fixed)
    far = _reach(lambda s: law.exponent(s, fixed), inner, outer)
    low, high = jnp.where(lower, far, end), jnp.where(lower, end, far)
    edges = [low]
    for b in breaks:  # a break outside gives an empty panel
        edges.append(jnp.where((b > edges[-1]) & (b < high), b, edges[-1]))
    left, right = jnp.stack(edges), jnp.stack([*edges[1:], high])
    full = right > left
    half = 0.5 * jnp.where(full, right - left, 1)
    scale = jnp.where(full, jnp.log(half), -jnp.inf)
    shape = (len(_NODES),) + (1,) * left.ndim
    nodes = jnp.asarray(1 + _NODES, low.dtype).reshape(shape)
    weights = jnp.asarray(np.log(_WEIGHTS), low.dtype).reshape(shape)
    s = left[None] + half[None] * nodes
    values = law.exponent(s, tuple(t[None, None] for t in theta)) + scale[None] + weights
    top = jax.lax.stop_gradient(jnp.max(values, axis=(0, 1)))
    mass = jnp.exp(values - top[None, None])
    total = jnp.sum(mass, axis=(0, 1))
    share = mass / total[None, None]
    rows = law.statistics(s)
    mean = tuple(jnp.sum(share * row, axis=(0, 1)) for row in rows)
    apart = [row - m[None, None] for row, m in zip(rows, mean, strict=True)]
    covariance = tuple(
        tuple(jnp.sum(share * apart[k] * apart[j], axis=(0, 1)) for j in range(k + 1))
        for k in range(len(rows))
    )
    return _Moments(top + jnp.log(total) - law.constant(theta), mean, covariance)


def _slopes(
    law: Any, lower: Array, end: Array, theta: tuple[Array, ...], found: _Moments
) -> tuple[Array, ...]:
    """Derivatives of the logarithm of a tail by its end and by theta."""
    density = jnp.exp(law.exponent(end, theta) - law.constant(theta) - found.value)
    by_theta = [m - c for m, c in zip(found.mean, law.constant_slopes(theta), strict=True)]
    return jnp.where(lower, density, -density), *by_theta


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_slopes(law: Any, lower: Array, end: Array, theta: tuple[Array, ...]) -> tuple:
    """Logarithm of a tail, and its derivatives."""
    found = _moments(law, lower, end, theta)
    return found.value, _slopes(law, lower, end, theta, found)


@_with_slopes.defjvp
def _with_slopes_jvp(law, primals, tangents):
    lower, end, theta = primals
    steps = (tangents[1], *tangents[2])
    found = _moments(law, lower, end, theta)
    slopes = _slopes(law, lower, end, theta, found)
    by_end = slopes[0]
    bends = [[by_end * (law.slope(end, theta) - by_end)]]
    statistics, constants = law.statistics(end), law.constant_bends(theta)
    for k, (value, mean) in enumerate(zip(statistics, found.mean, strict=True)):
        line = [v - c for v, c in zip(found.covariance[k], constants[k], strict=True)]
        bends.append([by_end * (value - mean), *line])
    out = []
    for i in range(len(steps)):
        row = [bends[max(i, j)][min(i, j)] * step for j, step in enumerate(steps)]
        out.append(sum(row[1:], row[0]))
    value = sum((s * d for s, d in zip(slopes[1:], steps[1:], strict=True)), slopes[0] * steps[0])
    return (found.value, slopes), (value, tuple(out))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_tail(law: Any, lower: Array, end: Array, theta: tuple[Array, ...]) -> Array:
    """Logarithm of the lower (or else the upper) tail that ends at ``end``."""
    return _moments(law, lower, end, theta).value


@_log_tail.defjvp
def _log_tail_jvp(law, primals, tangents):
    steps = (tangents[1], *tangents[2])
    value, slopes = _with_slopes(law, *primals)
    pairs = [s * d for s, d in zip(slopes, steps, strict=True)]
    return value, sum(pairs[1:], pairs[0])


def _both(law: Any, end: Array, theta: tuple[Array, ...]) -> tuple[Array, Array]:
    """Both tails from the integral over the smaller one."""
    lower = law.is_lower(*jax.lax.stop_gradient((end, theta)))
    tail = _log_tail(law, lower, end, theta)
    rest = log1mexp(tail)
    return jnp.where(lower, tail, rest), jnp.where(lower, rest, tail)


def log_gamma_tails(shape: Array, x: Array) -> tuple[Array, Array]:
    """``log P(T <= x)`` and ``log P(T > x)`` of a gamma variable with this shape and rate 1.

    Relative accuracy about 1e-12; arguments positive, one shape.

    Examples
    --------
    >>> import numpy as np
    >>> lower, upper = log_gamma_tails(np.ones(1, np.float32), np.full(1, 2.0, np.float32))
    >>> round(float(upper[0]), 4)
    -2.0
    """
    shape, x = jnp.broadcast_arrays(jnp.asarray(shape), jnp.asarray(x))
    return _both(_Gamma, jnp.log(x), (shape,))


def log_beta_tails(a: Array, b: Array, logit_x: Array) -> tuple[Array, Array]:
    """``log P(T <= x)`` and ``log P(T > x)`` of a beta(a, b) variable at ``logit_x = log(x / (1 - x))``.

    Relative accuracy about 1e-11 (1e-9 for shapes of 0.001).

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones(1, np.float32)
    >>> round(float(log_beta_tails(one, one, 0 * one)[0][0]), 4)
    -0.6931
    """
    a, b, end = jnp.broadcast_arrays(jnp.asarray(a), jnp.asarray(b), jnp.asarray(logit_x))
    return _both(_Beta, end, (a, b))
