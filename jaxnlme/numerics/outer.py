"""Quasi-Newton minimiser with one evaluation of value and gradient per trip.

A rejected step only shortens the next one, so one compiled value-and-gradient serves the start
value, the line search and the update, and a batch under ``vmap`` pays for no nested line search.
The update follows Nocedal and Wright (2006), eq. 6.17 with Powell damping (procedure 18.2).
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp

from jaxnlme._results import RESULTS
from jaxnlme._typing import Array, Bool, Float, Int


class BFGSState(eqx.Module):
    """State of the iteration; ``trial`` is where the next evaluation is wanted."""

    x: Float[Array, "d"]
    value: Float[Array, ""]
    gradient: Float[Array, "d"]
    inverse_hessian: Float[Array, "d d"]
    direction: Float[Array, "d"]
    step: Float[Array, ""]
    trial: Float[Array, "d"]
    decrement: Float[Array, ""]
    last_gain: Float[Array, ""]
    num_steps: Int[Array, ""]
    num_rejected: Int[Array, ""]
    started: Bool[Array, ""]
    stalls: Int[Array, ""]


def start(
    x0: Float[Array, "d"], inverse_hessian: Float[Array, "d d"], free: Bool[Array, "d"]
) -> BFGSState:
    """Return a state that asks for the evaluation at ``x0``; coordinates not ``free`` stay."""
    dtype = x0.dtype
    mask = free.astype(dtype)
    inf = jnp.array(jnp.inf, dtype)
    zero = jnp.zeros((), dtype)
    count = jnp.zeros((), jnp.int32)
    return BFGSState(
        x=x0,
        value=inf,
        gradient=jnp.zeros_like(x0),
        inverse_hessian=inverse_hessian * mask[:, None] * mask[None, :],
        direction=jnp.zeros_like(x0),
        step=jnp.ones((), dtype),
        trial=x0,
        decrement=inf,
        last_gain=zero,
        num_steps=count,
        num_rejected=count,
        started=jnp.zeros((), bool),
        stalls=count,
    )


def advance(
    state: BFGSState,
    value: Float[Array, ""],
    gradient: Float[Array, "d"],
    *,
    free: Bool[Array, "d"],
    max_change: Float[Array, "d"] | float = jnp.inf,
) -> BFGSState:
    """Take in the evaluation at ``state.trial`` and choose the next trial point.

    Parameters
    ----------
    value, gradient
        Objective and gradient at ``state.trial``; a non-finite one counts as a rejected step.
    free
        Coordinates that may move.
    max_change
        Largest change of each coordinate in one step.
    """
    dtype = state.x.dtype
    gradient = jnp.where(free, gradient, 0)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    slope = jnp.sum(state.gradient * state.direction)
    noise = 4 * jnp.finfo(dtype).eps * jnp.abs(state.value)
    enough = value <= state.value + 1e-4 * state.step * slope + noise
    accept = finite & (enough | ~state.started)

    delta = state.trial - state.x
    h_new = _update(
        state.inverse_hessian,
        delta,
        jnp.where(finite, gradient, 0) - state.gradient,
    )
    update = accept & state.started
    h = jnp.where(update, h_new, state.inverse_hessian)
    x = jnp.where(accept, state.trial, state.x)
    f = jnp.where(accept, value, state.value)
    g = jnp.where(accept, gradient, state.gradient)

    newton = -h @ g
    descent = jnp.sum(newton * g) < 0
    newton = jnp.where(descent, newton, -g * jnp.abs(jnp.diagonal(h)))
    shrink = jnp.max(jnp.abs(newton) / max_change)
    newton = newton / jnp.maximum(shrink, 1.0)
    direction = jnp.where(accept, newton, state.direction)

    # Quadratic interpolation through f(0), f'(0), f(step), kept inside [0.1, 0.5] of the step.
    rise = value - state.value - state.step * slope
    fitted = -0.5 * slope * state.step**2 / jnp.where(rise > 0, rise, 1.0)
    fitted = jnp.where(finite & (rise > 0), fitted, 0.1 * state.step)
    shorter = jnp.clip(fitted, 0.1 * state.step, 0.5 * state.step)
    step = jnp.where(accept, jnp.ones((), dtype), shorter)
    gain = jnp.where(update, state.value - f, state.last_gain)
    tiny = update & (jnp.abs(state.value - f) <= noise)
    return BFGSState(
        x=x,
        value=f,
        gradient=g,
        inverse_hessian=h,
        direction=direction,
        step=step,
        trial=x + step * direction,
        decrement=jnp.where(jnp.isfinite(f), jnp.sum(g * (h @ g)), jnp.inf),
        last_gain=gain,
        num_steps=state.num_steps + 1,
        num_rejected=jnp.where(accept, 0, state.num_rejected + 1),
        started=state.started | accept,
        stalls=jnp.where(tiny, state.stalls + 1, jnp.where(update, 0, state.stalls)),
    )


def _update(h, s, y):
    """BFGS update of the inverse Hessian, damped so that it stays positive definite."""
    sy = jnp.sum(s * y)
    hy = h @ y
    yhy = jnp.sum(y * hy)
    # Powell damping on the inverse side: mix s with H y until the curvature is positive enough.
    low = sy < 0.2 * yhy
    weight = jnp.where(low, 0.8 * yhy / jnp.where(low, yhy - sy, 1.0), 1.0)
    s_ = weight * s + (1 - weight) * hy
    sy_ = jnp.sum(s_ * y)
    ok = (sy_ > 0) & (yhy > 0) & jnp.isfinite(sy_) & (jnp.sum(s * s) > 0)
    rho = jnp.where(ok, 1.0 / jnp.where(ok, sy_, 1.0), 0.0)
    update = rho * (1 + rho * yhy) * s_[:, None] * s_[None, :] - rho * (
        hy[:, None] * s_[None, :] + s_[:, None] * hy[None, :]
    )
    return jnp.where(ok, h + update, h)


def terminate(
    state: BFGSState, *, tolerance: Float[Array, ""] | float, max_steps: Int[Array, ""] | int
) -> tuple[Bool[Array, ""], RESULTS]:
    """Stop when half the Newton decrement is below ``tolerance`` (in units of the objective)."""
    small = state.started & (state.num_rejected == 0) & (0.5 * state.decrement <= tolerance)
    # At the noise floor of the objective no test on values can decide any more.
    floor = state.started & (state.stalls >= 3) & (0.5 * state.decrement <= 1e3 * tolerance)
    converged = (small & (state.num_steps > 1)) | floor
    give_up = (state.num_rejected >= 40) | (state.stalls >= 10)
    blind = ~state.started & (state.num_steps >= 1)
    limit = state.num_steps >= max_steps
    done = converged | give_up | blind | limit
    at_floor = 0.5 * state.decrement <= 1e3 * tolerance
    result = RESULTS.where(
        converged | (give_up & at_floor & state.started),
        RESULTS.successful,
        RESULTS.where(
            blind,
            RESULTS.nonfinite,
            RESULTS.where(give_up, RESULTS.stalled, RESULTS.max_steps_reached),
        ),
    )
    return done, result
