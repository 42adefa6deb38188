"""Logarithms of gamma and beta tail probabilities, differentiable in every argument.

A tail is ``log int exp(g(s)) ds`` of a log-concave ``g`` over a half-line, with ``s = log t`` (gamma) or
``s = logit t`` (beta). The stretch on which ``g`` lies within 40 of its maximum is found by bisection and
integrated by Gauss-Legendre rules on panels that break where an exponential flank turns into the
bell. Only the tail that ends on this side of the median is integrated, so that it keeps its relative
accuracy where it is small; the other is its complement. Derivatives, also by the shape parameters,
pass through the rule.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._typing import Array
from jaxnlme.numerics.special import log1mexp, log_beta, log_gamma

__all__ = ["log_beta_tails", "log_gamma_tails"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)
_DROP = 40.0
_LOG_2 = float(np.log(2.0))
_BISECTIONS = 40
_FLANK = 25.0  # exp(-25): beyond it the flank is an exponential to rounding error


def _reach(g: Callable[[Array], Array], inner: Array, outer: Array) -> Array:
    """The point between ``inner`` and ``outer`` where ``g`` has fallen by 40."""
    floor = g(inner) - _DROP

    def halve(_, ends):
        near, far = ends
        middle = 0.5 * (near + far)
        out = g(middle) < floor
        return jnp.where(out, near, middle), jnp.where(out, middle, far)

    return jax.lax.fori_loop(0, _BISECTIONS, halve, (inner, outer))[1]


def _log_integral(g: Callable[[Array], Array], low: Array, high: Array, breaks: list) -> Array:
    """``log int_low^high exp(g)`` by a Gauss-Legendre rule on the panels between ``breaks``."""
    edges = [low]
    for b in breaks:  # a break outside gives an empty panel at an end that keeps its derivative
        edges.append(jnp.where((b > edges[-1]) & (b < high), b, edges[-1]))
    left, right = jnp.stack(edges), jnp.stack([*edges[1:], high])
    full = right > left
    half = 0.5 * jnp.where(full, right - left, 1)
    scale = jnp.where(full, jnp.log(half), -jnp.inf)
    nodes = jnp.asarray(1 + _NODES, low.dtype)
    weights = jnp.asarray(np.log(_WEIGHTS), low.dtype)
    panels = jax.vmap(g)
    values = jax.vmap(lambda node, weight: panels(left + half * node) + scale + weight)
    return jax.scipy.special.logsumexp(values(nodes, weights), axis=(0, 1))


def _both(
    g: Callable[[Array], Array], lower: Array, end: Array, far: Array, breaks: list
) -> tuple[Array, Array]:
    """Both tails from the integral over the lower (or else the upper) one."""
    tail = _log_integral(g, jnp.where(lower, far, end), jnp.where(lower, end, far), breaks)
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
    constant = log_gamma(shape)
    end = jnp.log(x)
    a, b = jax.lax.stop_gradient((shape, end))

    def g(s, a=shape, c=constant):
        return a * s - jnp.exp(s) - c

    def still(s):
        return g(s, a, jnp.zeros_like(a))

    mode = jnp.log(a)
    # about the median: at the mode both tails are large only for shapes above 1
    large = jnp.maximum(a, 1)
    middle = jnp.where(a < 1, (log_gamma(1 + a) - _LOG_2) / a, jnp.log(large - 1 / 3))
    lower = b <= middle
    inner = jnp.where(lower, jnp.minimum(b, mode), jnp.maximum(b, mode))
    steep = 2 * _DROP / jnp.exp(jnp.minimum(inner, 50.0))
    up = inner + jnp.minimum(jnp.sqrt(steep), 5 + jnp.log1p(steep))
    down = inner - (_DROP + jnp.exp(inner)) / a - 1
    far = _reach(still, inner, jnp.where(lower, down, up))
    return _both(g, lower, end, far, [mode - _FLANK, mode])


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
    constant = log_beta(a, b)
    left, right, at = jax.lax.stop_gradient((a, b, end))

    def g(s, a=a, b=b, c=constant):
        return a * jax.nn.log_sigmoid(s) + b * jax.nn.log_sigmoid(-s) - c

    def still(s):
        return g(s, left, right, jnp.zeros_like(left))

    mode = jnp.log(left) - jnp.log(right)
    total = left + right
    flanks = [jnp.log(left / total) - _FLANK, mode, _FLANK - jnp.log(right / total)]
    # about the median: below 1 the density piles up at an end, P(T <= x) is near x^a / (a B(a, b))
    scale = log_beta(left, right) - _LOG_2
    by_left = jnp.minimum(mode, (jnp.log(left) + scale) / left)
    by_right = jnp.maximum(mode, -(jnp.log(right) + scale) / right)
    piled = jnp.where(left <= right, by_left, by_right)
    lower = at <= jnp.where(jnp.minimum(left, right) < 1, piled, mode)
    inner = jnp.where(lower, jnp.minimum(at, mode), jnp.maximum(at, mode))
    # beyond the bends the slope is at least half of `left`, or of `right`
    down = jnp.minimum(inner, jnp.log(left / total) - 1) - 2 * _DROP / left - 1
    up = jnp.maximum(inner, 1 - jnp.log(right / total)) + 2 * _DROP / right + 1
    far = _reach(still, inner, jnp.where(lower, down, up))
    return _both(g, lower, end, far, flanks)
