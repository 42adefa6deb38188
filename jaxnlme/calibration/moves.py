"""Moves of the ensemble sampler: each proposes new places of some walkers from the places of others.

A new move is a subclass of :class:`AbstractMove` with one short method, ``propose``. It sees the half
of the walkers that moves, ``active`` (h, p), and the other half, ``others`` (h, p), which stays, and
returns proposals and the log of the factor in the acceptance ratio. What depends on random numbers
alone can go to ``prepare``, which is computed for many iterations at once.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme._typing import Array, Float

__all__ = [
    "AbstractMove",
    "DifferentialEvolution",
    "EnsembleSlice",
    "Move",
    "Snooker",
    "Stretch",
    "Walk",
]

_SCALE32 = 2.0**-32


def unit(bits: Array, dtype: Any) -> Array:
    """Return numbers in (0, 1) of 32 random bits each; never 0 or 1."""
    return (bits.astype(dtype) + 0.5) * jnp.asarray(_SCALE32, dtype)


def unit_fine(high: Array, low: Array, dtype: Any) -> Array:
    """Return numbers in (0, 1) of 64 random bits each."""
    scale = jnp.asarray(_SCALE32, dtype)
    return (high.astype(dtype) + (low.astype(dtype) + 0.5) * scale) * scale


def choose(bits: Array, n: int) -> Array:
    """Return integers below n (bias below n / 2**32)."""
    return (bits % np.uint32(n)).astype(jnp.int32)


def take_rows(a: Float[Array, "h p"], places: Array) -> Float[Array, "k p"]:
    """Return rows of `a`; `places` are within bounds, which is not checked."""
    return jnp.asarray(a).at[places].get(mode="promise_in_bounds", wrap_negative_indices=False)


class AbstractMove(eqx.Module):
    """One kind of proposal. ``words``: how many 32-bit random words a walker needs."""

    words: ClassVar[int] = 1

    def prepare(self, bits: Array, h: int, p: int, dtype: Any) -> Any:
        """Return what `propose` gets for the random words ``bits`` (words, h), by default these."""
        del h, p, dtype
        return bits

    @abc.abstractmethod
    def propose(
        self, numbers: Any, key: Any, active: Float[Array, "h p"], others: Float[Array, "h p"]
    ) -> tuple[Float[Array, "h p"], Float[Array, "h"]]:
        """Return proposals and log factors; ``numbers``: random words (words, h) uint32, or what
        :meth:`prepare` made of them.
        """


class Stretch(AbstractMove):
    """Goodman and Weare (2010): stretch towards or away from another walker.

    Parameters
    ----------
    scale
        a > 1; z has density proportional to ``1 / sqrt(z)`` on (1/a, a).

    Notes
    -----
    ``z = ((a - 1) u + 1)^2 / a``, proposal ``c + z (x - c)``, log factor ``(p - 1) log z``.
    """

    scale: float = eqx.field(static=True, default=2.0)
    words: ClassVar[int] = 2

    def __check_init__(self):
        if not 1 < self.scale < np.inf:
            raise ModelSpecError(
                f"stretch_scale={self.scale!r} must be above 1 (2 is the usual value)."
            )

    def prepare(self, bits, h, p, dtype):
        z = ((self.scale - 1) * unit(bits[0], dtype) + 1) ** 2 / self.scale
        return z, (p - 1) * jnp.log(z), choose(bits[1], h)

    def propose(self, numbers, key, active, others):
        del key
        z, factor, partner = numbers
        centre = take_rows(others, partner)
        return centre + z[:, None] * (active - centre), factor


class DifferentialEvolution(AbstractMove):
    """ter Braak (2006), Nelson et al. (2013): jump along the difference of two other walkers.

    Parameters
    ----------
    gamma
        Factor of the difference. Default ``2.38 / sqrt(2 p)``.
    sigma
        Relative standard deviation of that factor, whose law is uniform here.
    jump
        Fraction of proposals with factor 1, which carry walkers between modes.
    """

    gamma: float | None = eqx.field(static=True, default=None)
    sigma: float = eqx.field(static=True, default=1e-5)
    jump: float = eqx.field(static=True, default=0.1)
    words: ClassVar[int] = 4

    def prepare(self, bits, h, p, dtype):
        first = choose(bits[0], h)
        second = choose(bits[1], h - 1) + 1  # a shift: never the same walker, and no table of pairs
        second = jnp.where(first + second >= h, first + second - h, first + second)
        gamma = 2.38 / np.sqrt(2 * p) if self.gamma is None else self.gamma
        jitter = np.sqrt(12) * (unit(bits[2], dtype) - 0.5)  # sd 1
        factor = gamma * (1 + self.sigma * jitter)
        factor = jnp.where(unit(bits[3], dtype) < self.jump, 1, factor)
        return first, second, factor

    def propose(self, numbers, key, active, others):
        del key
        first, second, factor = numbers
        step = factor[:, None] * (take_rows(others, first) - take_rows(others, second))
        return active + step, jnp.zeros_like(factor)


class Snooker(AbstractMove):
    """ter Braak and Vrugt (2008): jump along the line to another walker.

    The length is ``gamma`` times the difference of two further walkers along that line.
    """

    gamma: float = eqx.field(static=True, default=1.7)
    words: ClassVar[int] = 3

    def prepare(self, bits, h, p, dtype):
        del p, dtype
        place = choose(bits[0], h)
        one = choose(bits[1], h - 1) + 1
        two = choose(bits[2], h - 2) + 1
        two = two + (two >= one)  # a third walker: three different shifts of one index
        return place, (place + one) % h, (place + two) % h

    def propose(self, numbers, key, active, others):
        del key
        p = active.shape[1]
        centre, a, b = (take_rows(others, place) for place in numbers)
        line = active - centre
        length = jnp.sqrt(jnp.sum(line**2, axis=1))
        safe = jnp.where(length > 0, length, 1)
        along = line / safe[:, None]
        proposal = active + self.gamma * along * jnp.sum(along * (a - b), axis=1)[:, None]
        new = jnp.sqrt(jnp.sum((proposal - centre) ** 2, axis=1))
        factor = (p - 1) * (jnp.log(jnp.where(new > 0, new, 1)) - jnp.log(safe))
        return proposal, jnp.where((length > 0) & (new > 0), factor, -jnp.inf)


class Walk(AbstractMove):
    """Goodman and Weare (2010): a Gaussian step with the covariance of the other walkers.

    Parameters
    ----------
    scale
        Factor of the step. Default ``min(1, 2.38 / sqrt(p))``.
    """

    scale: float | None = eqx.field(static=True, default=None)
    words: ClassVar[int] = 1

    def propose(self, numbers, key, active, others):
        del numbers
        h, p = active.shape
        scale = min(1.0, 2.38 / np.sqrt(p)) if self.scale is None else self.scale
        noise = jax.random.normal(key, (h, h), active.dtype)
        centred = others - jnp.mean(others, axis=0, keepdims=True)
        return active + (scale / np.sqrt(h - 1)) * (noise @ centred), jnp.zeros_like(active[:, 0])


class EnsembleSlice(eqx.Module):
    """Karamanis and Beutler (2021): slice sampling along the difference of two other walkers.

    Parameters
    ----------
    scale
        Width of the first interval in units of the difference.
    max_steps_out
        Largest number of widenings, shared at random between the two sides (Neal 2003).

    Notes
    -----
    About 5 evaluations per walker and step, which no other move needs, but short autocorrelation.
    It is no proposal to be judged, and has a loop of its own in the sampler.
    """

    scale: float = eqx.field(static=True, default=1.0)
    max_steps_out: int = eqx.field(static=True, default=64)
    words: ClassVar[int] = 5

    def prepare(self, bits: Array, h: int, p: int, dtype: Any) -> Array:
        """Return the random words ``bits`` (words, h) as they are."""
        del h, p, dtype
        return bits

    def direction(self, bits: Array, active: Array, others: Array) -> Array:
        """Return (h, p) directions."""
        h = active.shape[0]
        first = choose(bits[0], h)
        second = choose(bits[1], h - 1) + 1
        return self.scale * (others[first] - others[(first + second) % h])


Move = AbstractMove | EnsembleSlice

BY_NAME = {
    "stretch": Stretch,
    "de": DifferentialEvolution,
    "snooker": Snooker,
    "walk": Walk,
    "slice": EnsembleSlice,
}


def read_moves(moves: Any, stretch_scale: Any = 2.0) -> tuple[tuple[Move, ...], np.ndarray]:
    """Return moves and their normalised weights.

    Parameters
    ----------
    moves
        None (stretch), a name (``"stretch" "de" "snooker" "walk" "slice"``), a move, or a sequence
        of these or of pairs (move, weight).

    Raises
    ------
    ModelSpecError
        A name is not known, or a weight is not positive.

    Examples
    --------
    >>> moves, weights = read_moves([("de", 3), "snooker"])
    >>> [type(move).__name__ for move in moves], weights
    (['DifferentialEvolution', 'Snooker'], array([0.75, 0.25]))
    """
    if moves is None:
        moves = Stretch(float(stretch_scale))
    if isinstance(moves, str | Move):
        moves = [moves]
    if not isinstance(moves, Sequence) or not len(moves):
        raise ModelSpecError(f"moves={moves!r}: give a move, a name, or a list of (move, weight).")
    found, weights = [], []
    for entry in moves:
        move, weight = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, 1.0)
        if isinstance(move, str):
            if move not in BY_NAME:
                raise ModelSpecError(
                    f"moves: {move!r} is not known; use one of {list(BY_NAME)}."
                    + nearest(move, BY_NAME)
                )
            move = Stretch(float(stretch_scale)) if move == "stretch" else BY_NAME[move]()
        if not isinstance(move, Move):
            raise ModelSpecError(f"moves: {move!r} is neither a move nor one of {list(BY_NAME)}.")
        if not 0 < float(weight) < np.inf:
            raise ModelSpecError(
                f"moves: weight {weight!r} of {type(move).__name__} must be positive."
            )
        found.append(move)
        weights.append(float(weight))
    return tuple(found), np.array(weights) / sum(weights)
