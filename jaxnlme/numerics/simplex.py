"""Nelder and Mead's simplex search, one evaluation per trip of the loop.

:func:`fminsearch` runs it as MATLAB does, step for step: it is the place where that search stops that has to be
reproduced, and libraries start from another simplex and stop by another rule.

References
----------
.. [1] Lagarias, J., Reeds, J., Wright, M. and Wright, P. (1998). Convergence properties of the Nelder-Mead simplex
       method in low dimensions. SIAM Journal on Optimization 9, 112-147.
.. [2] Gao, F. and Han, L. (2012). Implementing the Nelder-Mead simplex algorithm with adaptive parameters.
       Computational Optimization and Applications 51.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnlme._typing import Array, Float, Int

_FILL, _REFLECT, _EXPAND, _OUTSIDE, _INSIDE = range(5)  # what the point under evaluation is


class Coefficients(NamedTuple):
    """How far a step goes, in lengths of the reflection; the usual ones are those of [1]_."""

    expand: float = 2.0
    contract: float = 0.5
    shrink: float = 0.5


def adaptive(n: int) -> Coefficients:
    """Coefficients for ``n`` parameters that still make progress where there are many [2]_.

    Examples
    --------
    >>> adaptive(2) == Coefficients(), adaptive(8)
    (True, Coefficients(expand=1.25, contract=0.6875, shrink=0.875))
    """
    n = max(n, 2)
    return Coefficients(1 + 2 / n, 0.75 - 0.5 / n, 1 - 1 / n)


class Simplex(NamedTuple):
    """The best point found, its value, and whether the search stopped by its tolerances."""

    x: Float[Array, "n"]
    value: Float[Array, ""]
    converged: Any
    num_evaluations: Int[Array, ""]


class _State(NamedTuple):
    points: Float[Array, "k n"]  # best first
    values: Float[Array, "k"]
    trial: Float[Array, "n"]
    kind: Any
    vertex: Any  # which vertex is filled
    reflected: Float[Array, "n"]
    reflected_value: Float[Array, ""]
    steps: Any
    evaluations: Any
    done: Any


def fminsearch(
    function: Callable[[Array], Array],
    x0: Float[Array, "n"],
    *,
    tol_x: Any = 1e-4,
    tol_fun: Any = 1e-4,
    max_steps: Any = None,
) -> Simplex:
    """Minimise ``function`` from ``x0`` as MATLAB does.

    Parameters
    ----------
    function
        Of a vector (n,), returning a scalar that is never NaN.
    x0
        First vertex; the others are 5 % away along each axis (0.00025 where it is zero).
    tol_x, tol_fun, max_steps
        As in :func:`simplex`.

    Examples
    --------
    >>> found = fminsearch(lambda x: (x[0] - 1) ** 2 + (x[1] + 2) ** 2, jnp.array([3.0, 0.0]))
    >>> found.x.round(2), bool(found.converged)
    (Array([ 1., -2.], dtype=float32), True)
    """
    spread = jnp.where(x0 != 0, 1.05 * x0, 0.00025)
    corners = jnp.where(jnp.eye(x0.shape[0], dtype=bool), spread[None], x0[None])
    points = jnp.concatenate([x0[None], corners]).astype(x0.dtype)
    return simplex(function, points, tol_x=tol_x, tol_fun=tol_fun, max_steps=max_steps)


def simplex(
    function: Callable[[Array], Array],
    points: Float[Array, "k n"],
    *,
    tol_x: Any,
    tol_fun: Any,
    rtol_fun: float = 0.0,
    max_steps: Any = None,
    coefficients: Coefficients | None = None,
) -> Simplex:
    """Minimise ``function`` from a simplex of n + 1 points, without derivatives.

    Parameters
    ----------
    function
        Of a vector (n,), returning a scalar that is never NaN; infinity is a wall.
    points
        The vertices.
    tol_x, tol_fun, rtol_fun
        The search stops when all vertices lie within ``tol_x`` of the best one and their values within
        ``tol_fun``, or ``rtol_fun`` times the best value.
    max_steps
        Limit of the steps (of one to n + 2 evaluations each); default 200 n.
    coefficients
        Default: those of [1]_; :func:`adaptive` has others.
    """
    n, dtype = points.shape[1], points.dtype
    limit = 200 * n if max_steps is None else max_steps
    lengths = Coefficients() if coefficients is None else coefficients
    eps = 10 * float(jnp.finfo(dtype).eps)  # ten of MATLAB's eps(x), but for a factor of two
    number = jnp.zeros((), jnp.int32)
    start = _State(
        points=points,
        values=jnp.full(n + 1, jnp.inf, dtype),
        trial=points[0],
        kind=number + _FILL,
        vertex=number,
        reflected=points[0],
        reflected_value=jnp.full((), jnp.inf, dtype),
        steps=number,
        evaluations=number,
        done=jnp.zeros((), bool),
    )

    def body(s: _State) -> _State:
        s = _taken_in(s, function(s.trial), lengths)
        closed = s.kind == _REFLECT  # a step has ended: the simplex is whole and sorted
        flat = jnp.max(jnp.abs(s.values[1:] - s.values[0]), initial=0.0)
        small = jnp.max(jnp.abs(s.points[1:] - s.points[:1]), initial=0.0)
        near = flat <= jnp.maximum(tol_fun, max(rtol_fun, eps) * jnp.abs(s.values[0]))
        near = near & (small <= jnp.maximum(tol_x, eps * jnp.abs(jnp.max(s.points[0]))))
        return s._replace(done=closed & (near | (s.steps >= limit)))

    s = jax.lax.while_loop(lambda s: ~s.done, body, start)
    return Simplex(s.points[0], s.values[0], s.steps < limit, s.evaluations)


def _taken_in(s: _State, value: Array, lengths: Coefficients) -> _State:
    """Use the value at the trial point, and choose the next one."""
    n = s.points.shape[1]
    best, second, worst = s.values[0], s.values[n - 1], s.values[n]
    centroid = jnp.mean(s.points[:n], 0)

    def ray(t: float) -> Array:
        """A point on the line from the worst vertex through the centroid of the others."""
        return (1 + t) * centroid - t * s.points[n]

    filling, reflecting, expanding = s.kind == _FILL, s.kind == _REFLECT, s.kind == _EXPAND
    outside, inside = s.kind == _OUTSIDE, s.kind == _INSIDE
    # What comes next where the step goes on.
    expand = reflecting & (value < best)
    contract_out = reflecting & ~expand & (value >= second) & (value < worst)
    contract_in = reflecting & (value >= worst)
    shrink = (outside & (value > s.reflected_value)) | (inside & (value >= worst))
    more = filling & (s.vertex < n)
    # What replaces the worst vertex where it ends.
    keep_reflected = expanding & (value >= s.reflected_value)
    point = jnp.where(keep_reflected, s.reflected, s.trial)
    ended = ~(expand | contract_out | contract_in | shrink | more)
    put = (jnp.arange(n + 1) == jnp.where(filling, s.vertex, n)) & (filling | ended)
    points = jnp.where(put[:, None], point[None], s.points)
    values = jnp.where(put, jnp.where(keep_reflected, s.reflected_value, value), s.values)
    points = jnp.where(shrink, points[:1] + lengths.shrink * (points - points[:1]), points)
    order = jnp.argsort(values, stable=True)
    points, values = (
        jnp.where(ended, points[order], points),
        jnp.where(ended, values[order], values),
    )
    vertex = jnp.where(shrink, 1, jnp.where(filling, s.vertex + 1, s.vertex))
    middle = jnp.mean(points[:n], 0)
    kind = jnp.where(expand, _EXPAND, jnp.where(contract_out, _OUTSIDE, _INSIDE))
    kind = jnp.where(shrink | more, _FILL, jnp.where(ended, _REFLECT, kind))
    contracted = jnp.where(contract_out, ray(lengths.contract), ray(-lengths.contract))
    trial = jnp.where(expand, ray(lengths.expand), contracted)
    trial = jnp.where(shrink | more, points[jnp.minimum(vertex, n)], trial)
    trial = jnp.where(ended, 2 * middle - points[n], trial)
    return s._replace(
        points=points,
        values=values,
        trial=trial,
        kind=kind.astype(s.kind.dtype),
        vertex=vertex.astype(s.vertex.dtype),
        reflected=jnp.where(reflecting, s.trial, s.reflected),
        reflected_value=jnp.where(reflecting, value, s.reflected_value),
        steps=s.steps + ended,
        evaluations=s.evaluations + 1,
    )
