"""One step of the ensemble sampler, in traced code: random halves, each moved against the other.

Walkers 2 k and 2 k + 1 are a pair, of which a coin decides in every step who is in the first half:
halves are drawn afresh without a sort or a gather. The second half sees the new places of the first,
without which the chain would not keep its distribution. Random numbers are functions of key and
iteration, so that a chain does not depend on how it is cut into calls; they, and all that is computed
from them alone, are made for a block of iterations at once.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

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
MAX_TWICE = 150  # operations of a density that is compiled for each half
STREAM = 0x5EED  # keeps the walkers' numbers apart from keys that are folded from the same one


Half = tuple[Array, Array, Array]  # places (e, h, p), log densities (e, h), blobs (e, h, b)
Walkers = tuple[Array, ...]  # those of a half, and its accepted steps (e, h)


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


class _Numbers(eqx.Module):
    """Random numbers of a half of e ensembles; with leading axes (b, 2) those of b iterations."""

    hurdle: Array  # (e, h), exponential: minus the log of a uniform number
    moves: tuple[Any, ...]  # what each move has prepared, (e, ...)
    keys: Array  # (e, 2), words

    def wrapped(self) -> Any:
        """Return a key per ensemble."""
        return jax.random.wrap_key_data(jnp.asarray(self.keys), impl="threefry2x32")


class _Drawn(eqx.Module):
    """Random numbers of b iterations.

    ``sides``: whether the even and the odd walker of a pair are in the second half of the iteration
    after this one; ``swap``: whether that differs from this iteration. ``mix`` chooses the kind of move.
    """

    halves: _Numbers
    sides: Array  # (b, e, h, 2)
    swap: Array  # (b, e, h)
    mix: Array  # (b,)


@functools.partial(jax.jit, inline=True)
def _evaluate(density: AbstractEnsembleDensity, z: Array) -> tuple[Array, Array]:
    """Evaluate a density; traced once for all its uses in a program."""
    return density.ensembles(z)


def _metropolis(
    density: AbstractEnsembleDensity,
    moves: tuple[Move, ...],
    chosen: Any,
    drawn: _Numbers,
    now: Half,
    others: Array,
) -> tuple[Half, Array, Array]:
    """Propose for one half of every ensemble, and judge; see :func:`_one_kind`."""
    z, value, _ = now

    def proposer(place: int, move: AbstractMove) -> Any:
        return lambda: jax.vmap(move.propose)(drawn.moves[place], drawn.wrapped(), z, others)

    branches = [proposer(k, m) for k, m in enumerate(moves) if isinstance(m, AbstractMove)]
    new, factor = branches[0]() if len(branches) == 1 else jax.lax.switch(chosen, branches)
    new_value, new_blobs = _evaluate(density, new)
    # A difference with NaN (both -inf) compares False: rejected. A quotient is computed once; a difference
    # of cheap terms would be computed again in each place that asks who moves.
    accept = (factor + new_value - value) / drawn.hurdle > -1
    return (new, new_value, new_blobs), accept, jnp.asarray(value.size, z.dtype)


def _slice(
    density: AbstractEnsembleDensity,
    move: EnsembleSlice,
    drawn: _Numbers,
    bits: Array,
    now: Half,
    others: Array,
) -> tuple[Half, Array, Array]:
    """Move one half of every ensemble by slice sampling: step out, then shrink."""
    z, value, blobs = now
    dtype, keys = z.dtype, drawn.wrapped()
    direction = jax.vmap(lambda b, x, o: move.direction(b[:2], x, o))(bits, z, others)
    level = value - drawn.hurdle

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
            jax.vmap(lambda k: jax.random.fold_in(k, trip))(keys)
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
    """What the compiled loop carries: the halves of the iteration to come."""

    first: Walkers
    second: Walkers
    evaluations: Any
    iteration: Any
    moves_tried: Any
    moves_gain: Any
    weights: Any


def _into_halves(state: EnsembleState, turned: Array) -> _Loop:
    e, w, _ = state.z.shape
    per_walker = (state.z, state.log_density, state.blobs, state.accepted)
    pairs = [jnp.asarray(a).reshape(e, w // 2, 2, *a.shape[2:]) for a in per_walker]
    even, odd = (tuple(a[:, :, k] for a in pairs) for k in (0, 1))
    first, second = _exchanged(turned, even, odd)
    tried, gain, weights = (
        jnp.asarray(a) for a in (state.moves_tried, state.moves_gain, state.weights)
    )
    return _Loop(
        first=first,
        second=second,
        evaluations=jnp.asarray(state.evaluations),
        iteration=jnp.asarray(state.iteration),
        moves_tried=tried,
        moves_gain=gain,
        weights=weights,
    )


def _exchanged(flags: Array, first: Walkers, second: Walkers) -> tuple[Walkers, Walkers]:
    """Exchange those of a pair where flagged, (e, h)."""
    pairs = list(zip(first, second, strict=True))
    return (
        tuple(jnp.where(_like(flags, a), b, a) for a, b in pairs),
        tuple(jnp.where(_like(flags, a), a, b) for a, b in pairs),
    )


def _in_rows(loop: _Loop, sides: Array) -> Walkers:
    """Return places (e, w, p), log densities (e, w), blobs (e, w, b) and accepted steps (e, w)."""

    def merged(a: Array, b: Array) -> Array:
        both = jnp.where(_like(sides, a[:, :, None]), b[:, :, None], a[:, :, None])
        return both.reshape(a.shape[0], 2 * a.shape[1], *a.shape[2:])

    return tuple(map(merged, loop.first, loop.second))


def _shapes(moves: tuple[Move, ...], e: int, h: int) -> list[tuple[int, ...]]:
    """Return shapes of the random words of an iteration: hurdles, each move's, keys, mix."""
    return [(2, e, h), *((2, e, move.words, h) for move in moves), (2, e, 2), ()]


def _words(key: Array, iterations: Array, first: int, size: int) -> Array:
    """Return (b, size) random words of b iterations; counters start at `first`."""
    half = (size + 1) // 2
    shape = (len(iterations), half)
    place = jnp.broadcast_to(jnp.arange(first, first + half, dtype=jnp.uint32), shape)
    when = jnp.broadcast_to(iterations.astype(jnp.uint32)[:, None], shape)
    return jnp.concatenate(random_words(key, when, place), axis=1)[:, :size]


def _turned(key: Array, iterations: Array, e: int, h: int) -> Array:
    """Return (b, e, h) coins: whether the odd walker of a pair is in the first half."""
    return _words(key, iterations, 0, e * h).reshape(-1, e, h) >> 31 == 1


def _drawn(
    moves: tuple[Move, ...], key: Array, iterations: Array, like: Float[Array, "e w p"]
) -> _Drawn:
    """Make the random numbers of successive iterations (b,), for walkers of a shape and dtype."""
    e, w, p = like.shape
    h, dtype = w // 2, like.dtype
    coins = _turned(key, jnp.append(iterations, iterations[-1] + 1), e, h)
    shapes = _shapes(moves, e, h)
    ends = np.cumsum([0] + [int(np.prod(shape)) for shape in shapes])
    words = _words(key, iterations, e * h, int(ends[-1]))
    accept, *bits, keys, mix = (
        words[:, a:b].reshape(-1, *shape)
        for (a, b), shape in zip(itertools.pairwise(ends), shapes, strict=True)
    )

    def prepared(move: Move, bits: Array) -> Any:
        prepare = functools.partial(move.prepare, h=h, p=p, dtype=dtype)
        return jax.vmap(jax.vmap(jax.vmap(prepare)))(bits)

    halves = _Numbers(
        hurdle=jnp.abs(jnp.log(unit(accept, dtype))),
        moves=tuple(prepared(move, b) for move, b in zip(moves, bits, strict=True)),
        keys=keys,
    )
    return _Drawn(halves, _sides(coins[1:]), coins[1:] ^ coins[:-1], unit(mix, dtype))


def _sides(turned: Array) -> Array:
    """Return (..., 2) of whether the even and the odd walker of a pair are in the second half."""
    return jnp.stack([turned, ~turned], axis=-1)


def step(
    density: AbstractEnsembleDensity,
    moves: tuple[Move, ...],
    n_adapt: Any,
    loop: _Loop,
    drawn: _Drawn,
    k: Any,
) -> _Loop:
    """Advance every ensemble by one iteration: both halves, one kind of move."""
    mixed, counted = len(moves) > 1, _counted(moves)
    chosen = jnp.zeros((), jnp.int32)
    if mixed:  # one kind for all ensembles: no branch is run in vain
        chosen = jnp.sum(drawn.mix[k] > jnp.cumsum(loop.weights)[:-1], dtype=jnp.int32)

    def update(half: Any, carry: Any) -> Any:
        mine, others, gain, calls = carry
        numbers = jax.tree.map(lambda a: a[k, half], drawn.halves)
        *now, accepted = mine
        new, moved, cost = _one_kind(density, moves, chosen, numbers, tuple(now), others[0])
        if mixed:
            spread = jnp.var(others[0], axis=1, keepdims=True)
            jump = (new[0] - now[0]) ** 2 / jnp.where(spread > 0, spread, 1)
            gain = gain + jnp.mean(jnp.where(moved[..., None], jump, 0))
        if counted:
            calls = calls + cost
        went = [jnp.where(_like(moved, a), b, a) for a, b in zip(now, new, strict=True)]
        return others, (*went, accepted + moved), gain, calls

    zero = jnp.zeros((), loop.first[0].dtype)
    carry = (loop.first, loop.second, zero, zero)
    if _is_small(density, moves, loop.first[0]):
        carry = update(1, update(0, carry))
    else:
        carry = jax.lax.fori_loop(0, 2, update, carry)
    first, second, gain, calls = carry
    first, second = _exchanged(drawn.swap[k], first, second)
    iteration = loop.iteration + 1
    tried, gains, weights = loop.moves_tried, loop.moves_gain, loop.weights
    if mixed:
        tried = tried.at[chosen].add(calls)
        gains = gains.at[chosen].add(gain)
        weights = jnp.where(iteration == n_adapt, _adapted(tried, gains), weights)
    return _Loop(
        first=first,
        second=second,
        evaluations=loop.evaluations + calls if counted else loop.evaluations,
        iteration=iteration,
        moves_tried=tried,
        moves_gain=gains,
        weights=weights,
    )


def _is_small(density: AbstractEnsembleDensity, moves: tuple[Move, ...], z: Array) -> bool:
    """Say whether both halves are written out: faster, but the density is compiled twice."""
    if _counted(moves):
        return False
    return _size(jax.make_jaxpr(_evaluate)(density, z).jaxpr) <= MAX_TWICE


def _size(jaxpr: Any) -> int:
    """Count the operations of a program, those of its parts too."""
    return sum(1 + sum(map(_size, jaxprs_in_params(e.params))) for e in jaxpr.eqns)


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
    drawn: _Numbers,
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


@functools.partial(outer_jit, wide=True, static_argnums=0, donate_argnums=3)
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
    like = jnp.asarray(state.z)
    size = sum(int(np.prod(shape)) for shape in _shapes(moves, e, w // 2))

    def turned(iteration: Any) -> Array:
        return _turned(key, jnp.asarray(iteration).reshape(1), e, w // 2)[0]

    def record(loop: _Loop, drawn: _Drawn, k: Any) -> tuple[Array, ...]:
        z, value, blobs, accepted = _in_rows(loop, drawn.sides[k])
        return density.to_natural(z), value - density.log_jacobian(z), blobs, accepted

    loop, rows, count = run_steps(
        lambda iterations: _drawn(moves, key, iterations, like),
        lambda loop, drawn, k: step(density, moves, n_adapt, loop, drawn, k),
        record,
        _into_halves(state, turned(state.iteration)),
        rows,
        n_steps,
        thin,
        int(np.clip(MAX_WORDS // size, 1, MAX_BLOCK)),
    )
    z, value, blobs, accepted = _in_rows(loop, _sides(turned(loop.iteration)))
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
