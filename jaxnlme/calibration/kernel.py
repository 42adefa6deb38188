"""One step of the ensemble sampler, in traced code: shuffled halves, each moved against the other.

Walkers keep their place in the arrays. The second half sees the new places of the first, without
which the chain would not keep its distribution. Keys are folded in from the iteration, so that a
chain does not depend on how it is cut into calls.
"""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._typing import Array, Float
from jaxnlme.calibration.moves import (
    AbstractMove,
    EnsembleSlice,
    choose,
    unit,
    unit_fine,
)
from jaxnlme.calibration.problem import AbstractDensity
from jaxnlme.numerics.mcmc import run_steps

__all__ = ["EnsembleState", "run_chunk"]

MAX_SHRINKS = 200  # of a slice; the interval is then below 1e-20 of its first width


class EnsembleState(eqx.Module):
    """All that a chain needs to go on, e ensembles of w walkers.

    ``moves_tried`` and ``moves_gain`` (m,) count steps of each move and add up squared jumps in
    units of the ensemble's variance; ``weights`` (m,) are those in force.
    """

    z: Float[Array, "e w p"]
    log_density: Float[Array, "e w"]
    blobs: Float[Array, "e w b"]
    accepted: Float[Array, "e w"]
    iteration: Any
    key: Any
    moves_tried: Float[Array, "m"]
    moves_gain: Float[Array, "m"]
    weights: Float[Array, "m"]
    infinite: Any  # proposals with density +inf
    evaluations: Any


def start_state(
    z: Array, log_density: Array, blobs: Array, key: Any, weights: np.ndarray
) -> EnsembleState:
    """Return the state before the first step; arrays (e, w, ...)."""
    zeros = np.zeros(len(weights))
    return EnsembleState(
        z=z,
        log_density=log_density,
        blobs=blobs,
        accepted=np.zeros(log_density.shape),
        iteration=np.int64(0),
        key=key,
        moves_tried=zeros,
        moves_gain=zeros,
        weights=np.asarray(weights),
        infinite=np.int64(0),
        evaluations=np.float64(0),
    )


def shuffled(bits: Array) -> Array:
    """Return a random order of w walkers from (w,) random words: a sort of one array is the cheapest."""
    w = bits.shape[0]
    mask = np.uint32(2 ** max(int(np.ceil(np.log2(w))), 1) - 1)
    order = jnp.sort((bits & ~mask) | jnp.arange(w, dtype=jnp.uint32))
    return (order & mask).astype(jnp.int32)


def _metropolis(
    density: AbstractDensity,
    moves: tuple[AbstractMove, ...],
    chosen: Any,
    bits: Array,
    keys: Any,
    now: tuple[Array, Array, Array],
    others: Array,
) -> tuple[tuple[Array, Array, Array], Array, Array, Array]:
    """Propose for one half of every ensemble, evaluate, accept."""
    z, value, blobs = now

    def proposer(move: AbstractMove) -> Any:
        return jax.vmap(lambda b, k, x, o: move.propose(b[1 : 1 + move.words], k, x, o))

    branches = [proposer(m) for m in moves if not isinstance(m, EnsembleSlice)]
    if len(branches) == 1:
        new, factor = branches[0](bits, keys, z, others)
    else:
        new, factor = jax.lax.switch(chosen, branches, bits, keys, z, others)
    new_value, new_blobs = density.ensembles(new)
    log_u = jnp.log(unit(bits[:, 0], z.dtype))
    # A difference with NaN (both -inf) compares False: rejected.
    accept = (log_u < factor + new_value - value) & (new_value < jnp.inf)
    pick = accept[..., None]
    now = (
        jnp.where(pick, new, z),
        jnp.where(accept, new_value, value),
        jnp.where(pick, new_blobs, blobs),
    )
    count = jnp.asarray(value.size, z.dtype)
    return now, accept, jnp.sum(new_value == jnp.inf, dtype=jnp.int32), count


def _slice(
    density: AbstractDensity, move: EnsembleSlice, bits: Array, keys: Any, now: Any, others: Array
) -> tuple[tuple[Array, Array, Array], Array, Array, Array]:
    """Move one half of every ensemble by slice sampling: step out, then shrink."""
    z, value, blobs = now
    dtype = z.dtype
    direction = jax.vmap(lambda b, x, o: move.direction(b[1:3], x, o))(bits, z, others)
    level = value + jnp.log(unit(bits[:, 0], dtype))

    def at(t: Array) -> tuple[Array, Array]:
        return density.ensembles(z + t[..., None] * direction)

    left = -unit_fine(bits[:, 3], bits[:, 4], dtype)
    right = left + 1
    budget = choose(bits[:, 5], move.max_steps_out)
    budgets = (budget, move.max_steps_out - 1 - budget)

    def widen(carry: Any) -> Any:
        left, right, go_left, go_right, budgets, calls = carry
        low, high = at(left)[0], at(right)[0]
        go_left = go_left & (low > level) & (budgets[0] > 0)
        go_right = go_right & (high > level) & (budgets[1] > 0)
        calls = calls + jnp.sum(go_left) + jnp.sum(go_right)
        left, right = left - go_left, right + go_right
        return left, right, go_left, go_right, (budgets[0] - go_left, budgets[1] - go_right), calls

    yes = jnp.ones(value.shape, bool)
    calls = jnp.asarray(2.0 * value.size, dtype)
    carry = (left, right, yes, yes, budgets, calls)
    left, right, _, _, _, calls = jax.lax.while_loop(
        lambda c: jnp.any(c[2]) | jnp.any(c[3]), widen, carry
    )

    def shrink(carry: Any) -> Any:
        left, right, t, best, done, trip, infinite, calls = carry
        u = jax.vmap(lambda k: jax.random.uniform(k, t.shape[1:], dtype))(
            jax.vmap(lambda k: jax.random.fold_in(k, trip))(keys)
        )
        trial = left + u * (right - left)
        new_value, new_blobs = at(trial)
        infinite = infinite + jnp.sum((new_value == jnp.inf) & ~done, dtype=jnp.int32)
        hit = ~done & (new_value > level) & (new_value < jnp.inf)
        calls = calls + jnp.sum(~done)
        t = jnp.where(hit, trial, t)
        best = (
            jnp.where(hit, new_value, best[0]),
            jnp.where(hit[..., None], new_blobs, best[1]),
        )
        miss = ~done & ~hit
        left = jnp.where(miss & (trial < 0), trial, left)
        right = jnp.where(miss & (trial >= 0), trial, right)
        return left, right, t, best, done | hit, trip + 1, infinite, calls

    start = (
        left,
        right,
        jnp.zeros_like(value),
        (value, blobs),
        jnp.zeros(value.shape, bool),
        0,
        jnp.zeros((), jnp.int32),
        calls,
    )
    out = jax.lax.while_loop(lambda c: ~jnp.all(c[4]) & (c[5] < MAX_SHRINKS), shrink, start)
    _, _, t, (new_value, new_blobs), done, _, infinite, calls = out
    now = (z + t[..., None] * direction, new_value, new_blobs)
    return now, done & (t != 0), infinite, calls


def step(
    density: AbstractDensity, moves: tuple[AbstractMove, ...], n_adapt: Array, state: EnsembleState
) -> EnsembleState:
    """Advance every ensemble by one iteration: both halves, one kind of move."""
    e, w, _ = state.z.shape
    h = w // 2
    dtype = state.z.dtype
    words = 1 + max(move.words for move in moves)
    key = jax.random.fold_in(state.key, state.iteration)
    flat = jax.random.bits(key, (e, 2 * words * h + w + 1), jnp.uint32)
    bits = flat[:, : 2 * words * h].reshape(e, 2, words, h)
    order = jax.vmap(shuffled)(flat[:, 2 * words * h : -1])
    chosen = jnp.zeros((), jnp.int32)
    if len(moves) > 1:
        u = unit(flat[0, -1], dtype)  # one kind of move for all ensembles: no branch is run in vain
        chosen = jnp.sum(u > jnp.cumsum(state.weights)[:-1], dtype=jnp.int32)
    own_keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(e) + 1)

    def halves(a: Array) -> Array:
        return jnp.swapaxes(
            jax.vmap(lambda x, i: x[i])(a, order).reshape(e, 2, h, *a.shape[2:]), 0, 1
        )

    def update(half: Any, carry: Any) -> Any:
        (z, value, blobs), accepted, gain, infinite, calls = carry
        others = z[1 - half]
        now = (z[half], value[half], blobs[half])
        keys = jax.vmap(lambda k: jax.random.fold_in(k, half))(own_keys)
        new, moved, bad, cost = _one_kind(density, moves, chosen, bits[:, half], keys, now, others)
        if len(moves) > 1:
            spread = jnp.var(others, axis=1, keepdims=True)
            gain = gain + jnp.mean((new[0] - now[0]) ** 2 / jnp.where(spread > 0, spread, 1))
        z, value, blobs = (a.at[half].set(b) for a, b in zip((z, value, blobs), new, strict=True))
        return (z, value, blobs), accepted.at[half].set(moved), gain, infinite + bad, calls + cost

    start = (
        tuple(halves(a) for a in (state.z, state.log_density, state.blobs)),
        jnp.zeros((2, e, h), bool),
        jnp.zeros((), dtype),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), dtype),
    )
    (z, value, blobs), accepted, gain, infinite, calls = jax.lax.fori_loop(0, 2, update, start)

    def back(a: Array, old: Array) -> Array:
        joined = jnp.swapaxes(a, 0, 1).reshape(old.shape)
        return jax.vmap(lambda x, i: jnp.zeros_like(x).at[i].set(x, unique_indices=True))(
            joined, order
        )

    tried = jnp.asarray(state.moves_tried).at[chosen].add(calls)
    gains = jnp.asarray(state.moves_gain).at[chosen].add(gain)
    iteration = state.iteration + 1
    weights = state.weights
    if len(moves) > 1:
        weights = jnp.where(iteration == n_adapt, _adapted(tried, gains), weights)
    return EnsembleState(
        z=back(z, state.z),
        log_density=back(value, state.log_density),
        blobs=back(blobs, state.blobs),
        accepted=state.accepted + back(accepted.astype(dtype), state.accepted),
        iteration=iteration,
        key=state.key,
        moves_tried=tried,
        moves_gain=gains,
        weights=weights,
        infinite=state.infinite + infinite,
        evaluations=state.evaluations + calls,
    )


def _one_kind(
    density: AbstractDensity, moves: Any, chosen: Any, bits: Any, keys: Any, now: Any, others: Any
) -> Any:
    """Run the chosen move: slices have a loop of their own, the others share one evaluation."""
    slices = [k for k, move in enumerate(moves) if isinstance(move, EnsembleSlice)]
    plain = [k for k in range(len(moves)) if k not in slices]
    if not slices:
        return _metropolis(density, moves, chosen, bits, keys, now, others)
    if not plain:
        return _slice(density, moves[slices[0]], bits, keys, now, others)
    place = jnp.asarray(np.cumsum([k in plain for k in range(len(moves))]) - 1)[chosen]
    return jax.lax.cond(
        chosen == slices[0],
        lambda: _slice(density, moves[slices[0]], bits, keys, now, others),
        lambda: _metropolis(density, moves, place, bits, keys, now, others),
    )


def _adapted(tried: Array, gains: Array) -> Array:
    """Return weights proportional to squared jumps per evaluation, each at least 5 % of the whole."""
    rate = jnp.where(tried > 0, gains / jnp.where(tried > 0, tried, 1), 0)
    total = jnp.sum(rate)
    share = jnp.where(total > 0, rate / jnp.where(total > 0, total, 1), 1 / rate.shape[0])
    floored = jnp.maximum(share, 0.05)
    return floored / jnp.sum(floored)


def _record(density: AbstractDensity, state: EnsembleState) -> tuple[Array, ...]:
    return state.z, state.log_density, state.blobs, state.accepted


@functools.partial(outer_jit, static_argnums=(0, 1))
def run_chunk(
    moves: tuple[AbstractMove, ...],
    capacity: int,
    density: AbstractDensity,
    state: EnsembleState,
    n_steps: Any,
    thin: Any,
    n_adapt: Any,
) -> Any:
    """Advance ``n_steps`` iterations; stored rows on the natural scale.

    Returns
    -------
    state, (positions (k, e, w, p), log posterior (k, e, w), blobs, accepted so far), count
    """
    state, (z, value, blobs, accepted), count = run_steps(
        lambda s: step(density, moves, n_adapt, s),
        lambda s: _record(density, s),
        state,
        n_steps,
        thin,
        capacity,
    )
    value = value - density.log_jacobian(z)
    return state, (density.to_natural(z), value, blobs, accepted), count
