"""Predictions of the structural model and their derivatives in phi, by forward mode.

Derivatives are taken in ``phi`` (p numbers per row or group), never in ``u`` or ``beta``: the chain to
those is linear, so one evaluation of the user's model per trip serves every derivative.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from jaxnlme._typing import Array, Float
from jaxnlme.nlme.problem import NLMEProblem, has_row_designs
from jaxnlme.numerics.blocks import sandwich, small_matmul


def phi_of(
    problem: NLMEProblem, beta: Float[Array, "f"], b: Float[Array, "m q"]
) -> Float[Array, "m n p"]:
    """Return the parameters on the transformed scale; the row axis has length 1 if constant."""
    fixed = jnp.sum(problem.A * beta[None, None, None], -1)
    random = jnp.sum(problem.B * b[:, None, None, :], -1)
    return fixed + random


def derivatives(problem: NLMEProblem, phi: Float[Array, "m n p"], order: int) -> tuple[Array, ...]:
    """Return ``f (m, n)`` and its derivatives in phi up to ``order``: ``(m, n, p)``, ``(m, n, p, p)``, ...

    On the log scale for log-scale error models. Rows of weight 0 give zeros.
    """
    model, log_scale = problem.model, problem.error_model.log_scale

    def natural(phi):
        parts = jnp.unstack(phi)
        return [t.forward(part) for t, part in zip(problem.transforms, parts, strict=True)]

    def scale(f):
        return jnp.log(f) if log_scale else f

    def row(phi, x, v):
        return scale(model.row(natural(phi), x, v))

    def group(phi, x, v):
        return scale(model.group(natural(phi), x, v))

    def with_derivatives(function):
        def values(phi, *args):
            out = function(phi, *args)
            return out, (out,)

        for _ in range(order):
            values = _next_order(values)
        return lambda phi, *args: values(phi, *args)[1]

    v_axis = None if problem.v is None else 0
    if model.kind == "row" or has_row_designs(problem):
        over_rows = jax.vmap(with_derivatives(row), in_axes=(0, 0, None))
        if phi.shape[1] == 1:
            over_rows = jax.vmap(with_derivatives(row), in_axes=(None, 0, None))
            phi = phi[:, 0]
        out = jax.vmap(over_rows, in_axes=(0, 0, v_axis))(phi, problem.x, problem.v)
    else:
        over_groups = jax.vmap(with_derivatives(group), in_axes=(0, 0, v_axis))
        out = over_groups(phi[:, 0], problem.x, problem.v)
    used = problem.weights > 0
    # Without the barrier XLA computes the model anew inside every sum that uses it.
    return jax.lax.optimization_barrier(tuple(_mask(used, a) for a in out))


def _next_order(values):
    """Turn phi -> (d, all) into phi -> (d', all + (d',)) with d' the derivative of d."""

    def higher(phi, *args):
        d, everything = jax.jacfwd(lambda p: values(p, *args), has_aux=True)(phi)
        return d, (*everything, d)

    return higher


def _mask(used, a):
    # Both branches are safe: nothing is differentiated through this point by reverse mode.
    return jnp.where(used.reshape(used.shape + (1,) * (a.ndim - 2)), a, 0.0)


def taylor(
    phi: Float[Array, "m n p"], phi_hat: Float[Array, "m n p"], terms: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Expand f and its derivatives to first order in ``phi - phi_hat``.

    ``terms`` are the derivatives at ``phi_hat`` up to some order; the expansions of all but the highest
    come back. At ``phi = phi_hat`` values and first derivatives are exact, so reverse mode through an
    objective built on these costs no second pass through the user's model.
    """
    delta = phi - jax.lax.stop_gradient(phi_hat)
    out = []
    for low, high in itertools.pairwise(terms):
        d = delta.reshape(delta.shape[:2] + (1,) * (low.ndim - 2) + delta.shape[2:])
        out.append(jax.lax.stop_gradient(low) + jnp.sum(jax.lax.stop_gradient(high) * d, -1))
    return tuple(out)


def to_random(rows: Float[Array, "m n p"], BL: Float[Array, "mb nb p q"]) -> Float[Array, "m q"]:
    """Sum over rows of ``BL' rows``: a gradient in phi becomes one in u."""
    if BL.shape[1] == 1:
        rows = jnp.sum(rows, 1, keepdims=True)
    return jnp.sum(rows[..., :, None] * BL, (1, 2))


def to_random_square(
    rows: Float[Array, "m n p p"], BL: Float[Array, "mb nb p q"]
) -> Float[Array, "m q q"]:
    """Sum over rows of ``BL' rows BL``: curvature in phi becomes curvature in u."""
    if BL.shape[1] == 1:
        rows = jnp.sum(rows, 1, keepdims=True)
    return jnp.sum(sandwich(BL, rows), 1)


def design_columns(
    J: Float[Array, "m n p"], design: Float[Array, "md nd p k"]
) -> Float[Array, "m n k"]:
    """Rows of the derivative of f along the columns of a design: ``J_ij design_ij``."""
    return jnp.sum(J[..., :, None] * design, -2)


def random_factor(
    B: Float[Array, "mb nb p q"], low: Float[Array, "q q"]
) -> Float[Array, "mb nb p q"]:
    """``B L``."""
    return small_matmul(B, low[None, None])
