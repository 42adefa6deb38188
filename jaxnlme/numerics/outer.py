"""Quasi-Newton minimiser with one evaluation of value and gradient per trip.

A rejected step only shortens the next one, so one compiled value-and-gradient serves the start
value, the line search and the update, and a batch under ``vmap`` pays for no nested line search.
The update follows Nocedal and Wright (2006), eq. 6.17 with Powell damping (procedure 18.2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnlme._results import RESULTS
from jaxnlme._typing import Array, Bool, Float
from jaxnlme.numerics.arithmetic import TRACED, Arithmetic


class BFGSState(NamedTuple):
    """State of the iteration; ``trial`` is where the next evaluation is wanted.

    Scalars are 0-d arrays, on the host also numpy's scalars.
    """

    x: Float[Array, "d"]
    value: Any
    gradient: Float[Array, "d"]
    inverse_hessian: Float[Array, "d d"]
    direction: Float[Array, "d"]
    step: Any
    trial: Float[Array, "d"]
    decrement: Any
    last_gain: Any
    num_steps: Any
    num_rejected: Any
    started: Any
    stalls: Any


def start(
    x0: Float[Array, "d"],
    inverse_hessian: Float[Array, "d d"],
    free: Bool[Array, "d"],
    arithmetic: Arithmetic = TRACED,
) -> BFGSState:
    """Return a state that asks for the evaluation at ``x0``; coordinates not ``free`` stay."""
    xp, dtype = arithmetic.xp, x0.dtype
    mask = free.astype(dtype)
    inf, zero = xp.full((), np.inf, dtype), xp.zeros((), dtype)
    count = xp.zeros((), np.int32)
    return BFGSState(
        x=x0,
        value=inf,
        gradient=xp.zeros_like(x0),
        inverse_hessian=inverse_hessian * mask[:, None] * mask[None, :],
        direction=xp.zeros_like(x0),
        step=xp.ones((), dtype),
        trial=x0,
        decrement=inf,
        last_gain=zero,
        num_steps=count,
        num_rejected=count,
        started=xp.zeros((), bool),
        stalls=count,
    )


def advance(
    state: BFGSState,
    value: Any,
    gradient: Float[Array, "d"],
    *,
    free: Bool[Array, "d"],
    max_change: Float[Array, "d"] | float = jnp.inf,
    arithmetic: Arithmetic = TRACED,
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
    xp, dtype = arithmetic.xp, state.x.dtype
    gradient = xp.where(free, gradient, 0)
    finite = xp.isfinite(value) & xp.all(xp.isfinite(gradient))
    slope = xp.sum(state.gradient * state.direction)
    noise = 4 * np.finfo(dtype).eps * abs(state.value)
    enough = value <= state.value + 1e-4 * state.step * slope + noise
    accept = finite & (enough | ~state.started)

    delta = state.trial - state.x
    change = xp.where(finite, gradient, 0) - state.gradient
    h_new = _update(state.inverse_hessian, delta, change, xp)
    update = accept & state.started
    h = xp.where(update, h_new, state.inverse_hessian)
    x = xp.where(accept, state.trial, state.x)
    f = xp.where(accept, value, state.value)
    g = xp.where(accept, gradient, state.gradient)

    newton = -h @ g
    descent = xp.sum(newton * g) < 0
    newton = xp.where(descent, newton, -g * abs(xp.diagonal(h)))
    shrink = xp.max(abs(newton) / max_change)
    newton = newton / xp.maximum(shrink, 1.0)
    direction = xp.where(accept, newton, state.direction)

    # Quadratic interpolation through f(0), f'(0), f(step), kept inside [0.1, 0.5] of the step.
    rise = value - state.value - state.step * slope
    fitted = -0.5 * slope * state.step**2 / xp.where(rise > 0, rise, 1.0)
    fitted = xp.where(finite & (rise > 0), fitted, 0.1 * state.step)
    shorter = xp.clip(fitted, 0.1 * state.step, 0.5 * state.step)
    step = xp.where(accept, xp.ones((), dtype), shorter)
    gain = xp.where(update, state.value - f, state.last_gain)
    tiny = update & (abs(state.value - f) <= noise)
    return BFGSState(
        x=x,
        value=f,
        gradient=g,
        inverse_hessian=h,
        direction=direction,
        step=step,
        trial=x + step * direction,
        decrement=xp.where(xp.isfinite(f), xp.sum(g * (h @ g)), np.inf),
        last_gain=gain,
        num_steps=state.num_steps + 1,
        num_rejected=xp.where(accept, 0, state.num_rejected + 1),
        started=state.started | accept,
        stalls=xp.where(tiny, state.stalls + 1, xp.where(update, 0, state.stalls)),
    )


def _update(h, s, y, xp):
    """BFGS update of the inverse Hessian, damped so that it stays positive definite."""
    sy = xp.sum(s * y)
    hy = h @ y
    yhy = xp.sum(y * hy)
    # Powell damping on the inverse side: mix s with H y until the curvature is positive enough.
    low = sy < 0.2 * yhy
    weight = xp.where(low, 0.8 * yhy / xp.where(low, yhy - sy, 1.0), 1.0)
    s_ = weight * s + (1 - weight) * hy
    sy_ = xp.sum(s_ * y)
    ok = (sy_ > 0) & (yhy > 0) & xp.isfinite(sy_) & (xp.sum(s * s) > 0)
    rho = xp.where(ok, 1.0 / xp.where(ok, sy_, 1.0), 0.0)
    update = rho * (1 + rho * yhy) * s_[:, None] * s_[None, :] - rho * (
        hy[:, None] * s_[None, :] + s_[:, None] * hy[None, :]
    )
    return xp.where(ok, h + update, h)


def terminate(
    state: BFGSState,
    *,
    tolerance: Any,
    max_steps: Any,
    success: RESULTS = RESULTS.successful,
    arithmetic: Arithmetic = TRACED,
) -> tuple[Any, RESULTS]:
    """Stop when half the Newton decrement is below ``tolerance`` (in units of the objective).

    ``success`` is the code of a fit that has converged.
    """
    choose = arithmetic.choose
    small = state.started & (state.num_rejected == 0) & (0.5 * state.decrement <= tolerance)
    # At the noise floor of the objective no test on values can decide any more.
    floor = state.started & (state.stalls >= 3) & (0.5 * state.decrement <= 1e3 * tolerance)
    converged = (small & (state.num_steps > 1)) | floor
    give_up = (state.num_rejected >= 40) | (state.stalls >= 10)
    blind = ~state.started & (state.num_steps >= 1)
    limit = state.num_steps >= max_steps
    done = converged | give_up | blind | limit
    at_floor = 0.5 * state.decrement <= 1e3 * tolerance
    result = choose(give_up, RESULTS.stalled, RESULTS.max_steps_reached)
    result = choose(blind, RESULTS.nonfinite, result)
    good = converged | (give_up & at_floor & state.started)
    return done, choose(good, success, result)
