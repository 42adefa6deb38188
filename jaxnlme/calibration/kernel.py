"""One step of the ensemble sampler, in traced code: random halves, each moved against the other.

Walkers keep their place in the arrays. Walkers k and k + w/2 are a pair, of which a coin decides in
every step who is in the first half: halves are drawn afresh without a sort or a gather. The second
half sees the new places of the first, without which the chain would not keep its distribution.
Random numbers are functions of key and iteration, so that a chain does not depend on how it is cut
into calls.
"""

from __future__ import annotations

import functools
import itertools
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
    Move,
    choose,
    unit,
    unit_fine,
)
from jaxnlme.calibration.problem import AbstractEnsembleDensity
from jaxnlme.numerics.mcmc import random_words, run_steps

__all__ = ["EnsembleState", "run_chunk"]

MAX_SHRINKS = 200  # of a slice; the interval is then below 1e-20 of its first width
MAX_WORDS = 2**16  # random words drawn at once: they shall stay in the cache
MAX_BLOCK = 64  # iterations
STREAM = 0x5EED  # keeps the walkers' numbers apart from keys that are folded from the same one


Half = tuple[Array, Array, Array]  # places (e, h, p), log densities (e, h), blobs (e, h, b)


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
        evaluations=np.float64(0),
    )


class _Drawn(eqx.Module):
    """Random words of a half step of e ensembles, and a key of each."""

    accept: Array  # (e, h)
    moves: tuple[Array, ...]  # (e, words, h) of each move
    keys: Any  # (e,)


def _metropolis(
    density: AbstractEnsembleDensity,
    moves: tuple[Move, ...],
    chosen: Any,
    drawn: _Drawn,
    now: Half,
    others: Array,
) -> tuple[Half, Array, Array]:
    """Propose for one half of every ensemble, and judge; see :func:`_one_kind`."""
    z, value, _ = now

    def proposer(place: int, move: AbstractMove) -> Any:
        return lambda: jax.vmap(move.propose)(drawn.moves[place], drawn.keys, z, others)

    branches = [proposer(k, m) for k, m in enumerate(moves) if isinstance(m, AbstractMove)]
    new, factor = branches[0]() if len(branches) == 1 else jax.lax.switch(chosen, branches)
    new_value, new_blobs = density.ensembles(new)
    log_u = jnp.log(unit(drawn.accept, z.dtype))
    # A difference with NaN (both -inf) compares False: rejected.
    accept = log_u < factor + new_value - value
    return (new, new_value, new_blobs), accept, jnp.asarray(value.size, z.dtype)


def _slice(
    density: AbstractEnsembleDensity,
    move: EnsembleSlice,
    drawn: _Drawn,
    bits: Array,
    now: Half,
    others: Array,
) -> tuple[Half, Array, Array]:
    """Move one half of every ensemble by slice sampling: step out, then shrink."""
    z, value, blobs = now
    dtype = z.dtype
    direction = jax.vmap(lambda b, x, o: move.direction(b[:2], x, o))(bits, z, others)
    level = value + jnp.log(unit(drawn.accept, dtype))

    def at(t: Array) -> tuple[Array, Array]:
        return density.ensembles(z + t[..., None] * direction)

    left = -unit_fine(bits[:, 2], bits[:, 3], dtype)
    right = left + 1
    budget = choose(bits[:, 4], move.max_steps_out)
    budgets = (budget, move.max_steps_out - 1 - budget)

    def widen(carry: Any) -> Any:
        left, right, go_left, go_right, budgets, calls = carry
        low, high = at(left)[0], at(right)[0]
        go_left = go_left & (low > level) & (budgets[0] > 0)
        go_right = go_right & (high > level) & (budgets[1] > 0)
        calls = calls + jnp.sum(go_left) + jnp.sum(go_right)
        left, right = left - go_left, right + go_right
        return left, right, go_left, go_right, (budgets[0] - go_left, budgets[1] - go_right), calls

    yes, zero = jnp.ones(value.shape, bool), jnp.zeros_like(value)
    carry = (left, right, yes, yes, budgets, jnp.asarray(2.0 * value.size, dtype))
    left, right, _, _, _, calls = jax.lax.while_loop(
        lambda c: jnp.any(c[2]) | jnp.any(c[3]), widen, carry
    )

    def shrink(carry: Any) -> Any:
        left, right, t, best, done, trip, calls = carry
        u = jax.vmap(lambda k: jax.random.uniform(k, t.shape[1:], dtype))(
            jax.vmap(lambda k: jax.random.fold_in(k, trip))(drawn.keys)
        )
        trial = left + u * (right - left)
        new_value, new_blobs = at(trial)
        hit = ~done & (new_value > level)
        calls = calls + jnp.sum(~done)
        t = jnp.where(hit, trial, t)
        best = (
            jnp.where(hit, new_value, best[0]),
            jnp.where(hit[..., None], new_blobs, best[1]),
        )
        miss = ~done & ~hit
        left = jnp.where(miss & (trial < 0), trial, left)
        right = jnp.where(miss & (trial >= 0), trial, right)
        return left, right, t, best, done | hit, trip + 1, calls

    start = (left, right, zero, (value, blobs), ~yes, 0, calls)
    out = jax.lax.while_loop(lambda c: ~jnp.all(c[4]) & (c[5] < MAX_SHRINKS), shrink, start)
    _, _, t, (new_value, new_blobs), done, _, calls = out
    now = (z + t[..., None] * direction, new_value, new_blobs)
    return now, done & (t != 0), calls


class _Loop(eqx.Module):
    """What the compiled loop carries; walkers stand in pairs (k, k + w/2)."""

    z: Float[Array, "e 2 h p"]
    log_density: Float[Array, "e 2 h"]
    blobs: Float[Array, "e 2 h b"]
    accepted: Float[Array, "e 2 h"]
    evaluations: Any
    iteration: Any
    moves_tried: Any
    moves_gain: Any
    weights: Any


def _in_pairs(state: EnsembleState) -> _Loop:
    e, w, _ = state.z.shape
    per_walker = (state.z, state.log_density, state.blobs, state.accepted)
    mix = (state.moves_tried, state.moves_gain, state.weights)
    z, value, blobs, accepted = (a.reshape(e, 2, w // 2, *a.shape[2:]) for a in per_walker)
    tried, gain, weights = (jnp.asarray(a) for a in mix)
    return _Loop(
        z=z,
        log_density=value,
        blobs=blobs,
        accepted=accepted,
        evaluations=jnp.asarray(state.evaluations),
        iteration=jnp.asarray(state.iteration),
        moves_tried=tried,
        moves_gain=gain,
        weights=weights,
    )


def _in_rows(loop: _Loop) -> tuple[Array, Array, Array, Array]:
    """Return places (e, w, p), log densities (e, w), blobs (e, w, b) and accepted steps (e, w)."""
    e, _, h, _ = loop.z.shape
    per_walker = (loop.z, loop.log_density, loop.blobs, loop.accepted)
    z, value, blobs, accepted = (a.reshape(e, 2 * h, *a.shape[3:]) for a in per_walker)
    return z, value, blobs, accepted


def _words(moves: tuple[Move, ...], h: int) -> int:
    """Return how many random words a half of an ensemble needs: see :func:`_parts`."""
    return h * (2 + sum(move.words for move in moves)) + 3


def _parts(moves: tuple[Move, ...], words: Array) -> tuple[_Drawn, Array, Array]:
    """Cut words (e, n) of a half into those of walkers, coins (e, h), and a word for the mix."""
    e, n = words.shape
    rows = words[:, : n - 3].reshape(e, 2 + sum(move.words for move in moves), -1)
    ends = np.cumsum([2] + [move.words for move in moves])
    bits = tuple(rows[:, a:b] for a, b in itertools.pairwise(ends))
    keys = jax.random.wrap_key_data(jnp.asarray(words[:, -2:]), impl="threefry2x32")
    return _Drawn(rows[:, 0], bits, keys), rows[:, 1] >> 31 == 1, words[0, -3]


def _counters(e: int, h: int, size: int) -> Array:
    """Return (1, 2, e, size) counters of the words of an iteration; both halves share their coins."""
    place = jnp.arange(2 * e * size, dtype=jnp.uint32).reshape(1, 2, e, size)
    column = jnp.arange(size).reshape(1, 1, 1, size)
    return jnp.where((column >= h) & (column < 2 * h), place[:, :1], place)


def step(
    density: AbstractEnsembleDensity,
    moves: tuple[Move, ...],
    n_adapt: Any,
    loop: _Loop,
    drawn: Any,
    k: Any,
) -> _Loop:
    """Advance every ensemble by one iteration: both halves, one kind of move."""
    mixed, counted = len(moves) > 1, _counted(moves)
    chosen = jnp.zeros((), jnp.int32)
    if mixed:  # one kind for all ensembles: no branch is run in vain
        u = unit(_parts(moves, drawn[k, 0])[2], loop.z.dtype)
        chosen = jnp.sum(u > jnp.cumsum(loop.weights)[:-1], dtype=jnp.int32)

    def update(half: Any, carry: Any) -> Any:
        (z, value, blobs), accepted, gain, calls = carry
        own, coin, _ = _parts(moves, drawn[k, half])
        second = coin ^ (half == 1)  # which of a pair moves

        def side(a: Array, flag: Array) -> Array:
            return jnp.where(_like(flag, a[:, 0]), a[:, 1], a[:, 0])

        now = (side(z, second), side(value, second), side(blobs, second))
        others = side(z, ~second)
        new, moved, cost = _one_kind(density, moves, chosen, own, now, others)
        if mixed:
            spread = jnp.var(others, axis=1, keepdims=True)
            jump = (new[0] - now[0]) ** 2 / jnp.where(spread > 0, spread, 1)
            gain = gain + jnp.mean(jnp.where(moved[..., None], jump, 0))
        goes = jnp.stack([moved & ~second, moved & second], axis=1)
        walkers = tuple(
            jnp.where(_like(goes, a), b[:, None], a)
            for a, b in zip((z, value, blobs), new, strict=True)
        )
        if counted:
            calls = calls + cost
        return walkers, accepted + goes, gain, calls

    zero = jnp.zeros((), loop.z.dtype)
    walkers = (loop.z, loop.log_density, loop.blobs)
    start = (walkers, loop.accepted, zero, zero)
    (z, value, blobs), accepted, gain, calls = jax.lax.fori_loop(0, 2, update, start)
    iteration = loop.iteration + 1
    tried, gains, weights = loop.moves_tried, loop.moves_gain, loop.weights
    if mixed:
        tried = tried.at[chosen].add(calls)
        gains = gains.at[chosen].add(gain)
        weights = jnp.where(iteration == n_adapt, _adapted(tried, gains), weights)
    return _Loop(
        z=z,
        log_density=value,
        blobs=blobs,
        accepted=accepted,
        evaluations=loop.evaluations + calls if counted else loop.evaluations,
        iteration=iteration,
        moves_tried=tried,
        moves_gain=gains,
        weights=weights,
    )


def _counted(moves: tuple[Move, ...]) -> bool:
    """Whether evaluations must be counted in the loop: one move without slices needs one each."""
    return len(moves) > 1 or any(isinstance(m, EnsembleSlice) for m in moves)


def _like(flags: Array, a: Array) -> Array:
    """Give flags as many axes as an array, to choose between its rows."""
    return flags.reshape(*flags.shape, *(1,) * (a.ndim - flags.ndim))


def _one_kind(
    density: AbstractEnsembleDensity,
    moves: Any,
    chosen: Any,
    drawn: _Drawn,
    now: Half,
    others: Array,
) -> tuple[Half, Array, Array]:
    """Run the chosen move: slices have a loop of their own, the others share one evaluation.

    Returns
    -------
    new, moved, evaluations
        Where the half would go, (e, h) of whether each goes there, and a count.
    """
    slices = [k for k, move in enumerate(moves) if isinstance(move, EnsembleSlice)]
    plain = [k for k in range(len(moves)) if k not in slices]
    if not slices:
        return _metropolis(density, moves, chosen, drawn, now, others)
    k = slices[0]
    if not plain:
        return _slice(density, moves[k], drawn, drawn.moves[k], now, others)
    place = jnp.asarray(np.cumsum([k in plain for k in range(len(moves))]) - 1)[chosen]
    return jax.lax.cond(
        chosen == k,
        lambda: _slice(density, moves[k], drawn, drawn.moves[k], now, others),
        lambda: _metropolis(density, moves, place, drawn, now, others),
    )


def _adapted(tried: Array, gains: Array) -> Array:
    """Return weights proportional to squared jumps per evaluation, each at least 5 % of the whole."""
    rate = jnp.where(tried > 0, gains / jnp.where(tried > 0, tried, 1), 0)
    total = jnp.sum(rate)
    share = jnp.where(total > 0, rate / jnp.where(total > 0, total, 1), 1 / rate.shape[0])
    floored = jnp.maximum(share, 0.05)
    return floored / jnp.sum(floored)


def buffers(state: EnsembleState, capacity: int) -> tuple[Array, ...]:
    """Return empty rows for :func:`run_chunk`, one more than `capacity`."""
    like = (state.z, state.log_density, state.blobs, state.accepted)
    return tuple(jax.device_put(np.zeros((capacity + 1, *a.shape), a.dtype)) for a in like)


@functools.partial(outer_jit, static_argnums=0, donate_argnums=3)
def run_chunk(
    moves: tuple[Move, ...],
    density: AbstractEnsembleDensity,
    state: EnsembleState,
    rows: tuple[Array, ...],
    n_steps: Any,
    thin: Any,
    n_adapt: Any,
) -> Any:
    """Advance ``n_steps`` iterations; stored rows on the natural scale.

    A walker that meets density +inf goes there and stays: the caller sees it in the state.

    Parameters
    ----------
    rows
        From :func:`buffers` or from the last call; their memory is used again.

    Returns
    -------
    state, (positions (k, e, w, p), log posterior (k, e, w), blobs, accepted so far), count
    """
    key = jax.random.bits(jax.random.fold_in(state.key, STREAM), (2,), jnp.uint32)

    e, w, _ = state.z.shape
    size = _words(moves, w // 2)
    place = _counters(e, w // 2, size)

    def draw(iterations: Array) -> Array:
        shape = (len(iterations), *place.shape[1:])
        first = iterations.astype(jnp.uint32).reshape(-1, 1, 1, 1)
        return random_words(key, jnp.broadcast_to(first, shape), jnp.broadcast_to(place, shape))[0]

    def record(loop: _Loop) -> tuple[Array, ...]:
        z, value, blobs, accepted = _in_rows(loop)
        return density.to_natural(z), value - density.log_jacobian(z), blobs, accepted

    loop, rows, count = run_steps(
        draw,
        lambda loop, drawn, k: step(density, moves, n_adapt, loop, drawn, k),
        record,
        _in_pairs(state),
        rows,
        n_steps,
        thin,
        int(np.clip(MAX_WORDS // place.size, 1, MAX_BLOCK)),
    )
    z, value, blobs, accepted = _in_rows(loop)
    if not _counted(moves):
        steps = (loop.iteration - state.iteration).astype(jnp.asarray(loop.evaluations).dtype)
        loop = eqx.tree_at(lambda x: x.evaluations, loop, loop.evaluations + steps * (e * w))
    state = EnsembleState(
        z=z,
        log_density=value,
        blobs=blobs,
        accepted=accepted,
        iteration=loop.iteration,
        key=state.key,
        moves_tried=loop.moves_tried,
        moves_gain=loop.moves_gain,
        weights=loop.weights,
        evaluations=loop.evaluations,
    )
    return state, rows, count
