"""Damped Newton search for the conditional mode of many small problems at once.

The groups stand on the leading axis and move together, one evaluation per trip: a rejected
candidate only halves that group's next step. What the evaluation returned at the accepted point is
carried out of the loop, so the objective that uses the mode needs no second evaluation of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme._typing import Array, Bool, Float, PyTree
from jaxnlme.numerics.small_linalg import cho_solve_vector, cholesky


class Evaluation(NamedTuple):
    """What a mode problem answers at ``u``, per group on the leading axis.

    ``hessian`` may be indefinite; ``safe_hessian`` (Gauss-Newton or expected information plus the
    identity) must be positive definite and replaces it there.
    """

    value: Float[Array, "m"]
    gradient: Float[Array, "m q"]
    hessian: Float[Array, "m q q"]
    safe_hessian: Float[Array, "m q q"]
    aux: PyTree


class Mode(eqx.Module):
    """Conditional modes and what the evaluation said there."""

    u: Float[Array, "m q"]
    evaluation: Evaluation
    low: Float[
        Array, "m q q"
    ]  # Cholesky factor of the Hessian, or of the safe one where that is indefinite
    decrement: Float[Array, "m"]
    converged: Bool[Array, "m"]
    num_steps: Array


class _State(NamedTuple):
    u: Array
    evaluation: Evaluation
    low: Array
    direction: Array
    step: Array
    trial: Array
    decrement: Array
    halvings: Array
    done: Array
    k: Array


def _where(mask: Array, a: PyTree, b: PyTree) -> PyTree:
    def pick(x, y):
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(pick, a, b)


def _factor(e: Evaluation) -> Array:
    both = cholesky(jnp.stack([e.hessian, e.safe_hessian]))
    good = jnp.all(jnp.isfinite(both[0]), axis=(-2, -1))
    return _where(good, both[0], both[1])


def find_mode(
    evaluate: Callable[[Array], Evaluation],
    u0: Float[Array, "m q"],
    *,
    max_steps: int = 60,
) -> Mode:
    """Minimise ``evaluate(u).value`` for every group from ``u0``.

    Parameters
    ----------
    evaluate
        Maps ``u (m, q)`` to an :class:`Evaluation`; must act group by group.
    u0
        Start values; groups where the value is not finite there restart from zero.
    max_steps
        Trips of the loop; a group that is not done by then has ``converged`` False.

    Notes
    -----
    A group is done when the Newton decrement ``g' H^-1 g`` is below 1e-13 (float64): the mode is then known
    to 3e-7 of its conditional standard deviation, and to 1e-13 after the Newton step that the objectives
    take from it (:func:`jaxnlme.nlme.conditional.implicit_mode`).
    """
    dtype = u0.dtype
    eps = float(jnp.finfo(dtype).eps)
    tolerance = max(1e-13, (100 * eps) ** 2)
    m = u0.shape[0]
    evaluate = jax.jit(evaluate)  # traced once for its shapes and for the loop
    shapes = jax.eval_shape(evaluate, u0)
    empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    empty = empty._replace(value=jnp.full((m,), jnp.inf, dtype))
    state = _State(
        u=u0,
        evaluation=empty,
        low=empty.hessian,
        direction=jnp.zeros_like(u0),
        step=jnp.ones((m,), dtype),
        trial=u0,
        decrement=jnp.full((m,), jnp.inf, dtype),
        halvings=jnp.zeros((m,), jnp.int32),
        done=jnp.zeros((m,), bool),
        k=jnp.zeros((), jnp.int32),
    )

    def body(s: _State) -> _State:
        e = evaluate(s.trial)
        finite = jnp.isfinite(e.value) & jnp.all(jnp.isfinite(e.gradient), -1)
        first = ~jnp.isfinite(s.evaluation.value)
        slack = 8 * eps * (1 + jnp.abs(s.evaluation.value))
        better = e.value <= s.evaluation.value - 1e-4 * s.step * s.decrement + slack
        accept = finite & (first | better) & ~s.done
        kept = _where(accept, e, s.evaluation)
        u = _where(accept, s.trial, s.u)
        low = _factor(kept)
        d = -cho_solve_vector(low, kept.gradient)
        decrement = -jnp.sum(d * kept.gradient, -1)
        started = jnp.isfinite(kept.value)
        # An unusable start value is replaced by zero, the prior mode, once.
        fallback = ~started & (s.k == 0)
        halvings = jnp.where(accept, 0, s.halvings + 1)
        step = jnp.where(accept, 1.0, 0.5 * s.step).astype(dtype)
        direction = _where(accept, d, s.direction)
        decrement = jnp.where(started, decrement, jnp.inf)
        small = decrement <= tolerance
        stuck = (halvings > 30) | (~started & (s.k > 0))
        trial = u + step[:, None] * direction
        trial = _where(fallback, jnp.zeros_like(u), trial)
        return _State(
            u=u,
            evaluation=kept,
            low=low,
            direction=direction,
            step=step,
            trial=trial,
            decrement=decrement,
            halvings=halvings,
            done=s.done | small | stuck,
            k=s.k + 1,
        )

    def more(s: _State):
        return jnp.any(~s.done) & (s.k < max_steps)

    final = jax.lax.while_loop(more, body, state)
    # Rounding stops some groups short of the tolerance: 1e-10 is still far below what counts.
    converged = final.decrement <= max(1e-9, 1e4 * tolerance)
    return Mode(final.u, final.evaluation, final.low, final.decrement, converged, final.k)
