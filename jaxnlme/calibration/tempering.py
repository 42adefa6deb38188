"""Parallel tempering of ensembles: walkers at several temperatures exchange places, and give the evidence.

References
----------
.. [1] Vousden, Farr, Mandel (2016). Dynamic temperature selection for parallel tempering in Markov
       chain Monte Carlo simulations. MNRAS 455.
.. [2] Xie, Lewis, Fan, Kuo, Chen (2011). Improving marginal likelihood estimation for Bayesian
       phylogenetic model selection (stepping stones). Systematic Biology 60.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._typing import Array, Float
from jaxnlme.calibration.chain import Chain
from jaxnlme.calibration.gradient import Line, naturals
from jaxnlme.calibration.kernel import EnsembleState, buffers, run_chunk, start_state
from jaxnlme.calibration.moves import read_moves
from jaxnlme.calibration.problem import AbstractEnsembleDensity
from jaxnlme.calibration.smc import Base, both, pooled_evidence, read_base, stages

__all__ = ["TemperedDensity", "run_tempering"]

SWEEP = 2  # iterations between exchanges
LAG, TIME = (
    100.0,
    10.0,
)  # of the adaptation of temperatures: exchanges until it slows down, and until a ladder moves


class TemperedDensity(AbstractEnsembleDensity):
    """Base density times a power of what the posterior adds to it, one power ``beta (e,)`` per ensemble.

    Coordinates are those of the line. The blobs are the log densities of base and posterior.
    """

    base: Base
    beta: Float[Array, "e"]
    names: tuple[str, ...] = eqx.field(static=True)

    def ensembles(self, z):
        e, h, p = z.shape
        first, second = both(self.base, z.reshape(e * h, p))
        blobs = jnp.stack([first, second], axis=-1).reshape(e, h, 2)
        return _tempered(blobs, jnp.asarray(self.beta), jnp), blobs


def _tempered(blobs: Any, beta: Any, xp: Any) -> Any:
    """Log densities (..., T, w) at inverse temperatures (T,) from those of base and posterior (..., T, w, 2)."""
    first, ratio, beta = blobs[..., 0], blobs[..., 1] - blobs[..., 0], beta[:, None]
    usable = xp.isfinite(first) & xp.isfinite(ratio)
    warm = first + beta * xp.where(usable, ratio, xp.zeros_like(ratio))
    return xp.where(usable | (beta == 0), warm, xp.full_like(warm, -np.inf))


@dataclasses.dataclass
class _Ladder:
    """Inverse temperatures (T,), rising from 0 to 1, the same in all runs."""

    beta: np.ndarray
    exchanges: int = 0

    def adapt(self, accepted: np.ndarray) -> None:
        """Even out the accepted shares (T - 1,) of exchanges: eq. 12 and 13 of [1]_."""
        if len(self.beta) < 3:
            return
        rate = LAG / (self.exchanges + LAG) / TIME
        cold_first = accepted[::-1]
        warm = 1 / self.beta[:0:-1]  # finite temperatures from 1 on
        gaps = np.diff(warm) * np.exp(rate * (cold_first[:-1] - cold_first[1:]))
        self.beta[1:] = 1 / np.concatenate([[1.0], 1 + np.cumsum(gaps)])[::-1]
        self.exchanges += 1


class _Exchange:
    """Walkers (runs, T, w) of all temperatures."""

    def __init__(self, state: EnsembleState, runs: int, rng: np.random.Generator) -> None:
        e, w, p = state.z.shape
        self.shape, self.rng = (runs, e // runs, w), rng
        self.z = np.array(state.z).reshape(*self.shape, p)
        self.blobs = np.array(state.blobs).reshape(*self.shape, 2)

    @property
    def gain(self) -> np.ndarray:
        """(runs, T, w) what the posterior adds to the base; -inf where it has no density."""
        with np.errstate(invalid="ignore"):
            out = self.blobs[..., 1] - self.blobs[..., 0]
        return np.where(np.isnan(out), -np.inf, out)

    def all_pairs(self, beta: np.ndarray) -> np.ndarray:
        """Exchange walkers of neighbours, from hot to cold; accepted shares (T - 1,)."""
        runs, t, w = self.shape
        accepted = np.zeros(t - 1)
        run = np.arange(runs)[:, None]
        for k in range(1, t):
            i = self.rng.permuted(np.tile(np.arange(w), (runs, 1)), axis=1)
            j = np.tile(np.arange(w), (runs, 1))
            gain = self.gain
            log_u = np.log(self.rng.uniform(size=(runs, w)))
            with np.errstate(invalid="ignore"):
                yes = log_u < (beta[k] - beta[k - 1]) * (gain[run, k - 1, j] - gain[run, k, i])
            accepted[k - 1] = yes.mean()
            r = np.broadcast_to(run, yes.shape)[yes]
            cold, hot = (r, k, i[yes]), (r, k - 1, j[yes])
            for a in (self.z, self.blobs):
                a[cold], a[hot] = a[hot], a[cold]
        return accepted

    def into(self, state: EnsembleState, beta: np.ndarray) -> EnsembleState:
        """Return the state with these walkers at these temperatures."""
        with np.errstate(invalid="ignore"):
            value = _tempered(self.blobs, beta, np)
        e, w = state.log_density.shape
        return dataclasses.replace(
            state, z=self.z.reshape(state.z.shape), blobs=self.blobs.reshape(e, w, 2),
            log_density=value.reshape(e, w),
        )  # fmt: skip


def run_tempering(
    line: Line, init: Any, key: Any, *, n_steps: int, warmup: int, runs: int, walkers: int,
    moves: Any, stretch_scale: Any, priors: Any,
) -> Chain:  # fmt: skip
    """Run independent tempered ensembles; the chain of the posterior (n_steps, runs x walkers, p).

    The ladder and the starts are the stages of a short SMC; the ladder is then adapted during the warm-up,
    and kept. The evidence is that of stepping stones, each stone the mean of exp(gap x gain).
    """
    base = read_base(line, init)
    smc_key, run_key, swap_key = jax.random.split(key, 3)
    p = len(line.names)
    found = stages(base, max(runs * walkers, 40 * p), smc_key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(swap_key)).tolist())
    ladder = _Ladder(np.array([beta for beta, _ in found]))
    t = len(ladder.beta)
    z = np.stack([u[rng.permutation(len(u))[: runs * walkers]].reshape(runs, walkers, p)
                  for _, u in found], axis=1)  # fmt: skip
    chosen, weights = read_moves(moves, stretch_scale)
    z = z + 1e-3 * z.std(axis=(0, 2), keepdims=True) * rng.normal(
        size=z.shape
    )  # resampled ones are equal
    z = z.reshape(runs * t, walkers, p)
    density = TemperedDensity(base, np.tile(ladder.beta, runs), line.names)
    value, blobs = (np.asarray(a) for a in _evaluated(density, z))
    state = start_state(z, value, blobs, run_key, weights)
    rows, accepted = buffers(state, 1), np.zeros(t - 1)
    kept = np.empty((n_steps, runs, walkers, p))
    stones = np.full((runs, t - 1), -np.inf)
    never = np.int64(2**40)  # a thinning: nothing is stored on the way
    for k in range(warmup + n_steps):
        density = TemperedDensity(base, np.tile(ladder.beta, runs), line.names)
        state, rows, _ = run_chunk(
            chosen, density, state, rows, np.int64(SWEEP), never, np.int64(0)
        )
        exchange = _Exchange(state, runs, rng)
        shares = exchange.all_pairs(ladder.beta)
        if k < warmup:
            ladder.adapt(shares)
        else:
            accepted += shares / n_steps
            gain = exchange.gain
            part = np.diff(ladder.beta)[:, None] * gain[:, :-1]
            stones = np.logaddexp(stones, np.logaddexp.reduce(part, axis=2))
            kept[k - warmup] = exchange.z[:, -1]
        state = exchange.into(state, ladder.beta)
    evidence = (stones - np.log(n_steps * walkers)).sum(axis=1)
    theta, natural_value = (np.asarray(a) for a in _to_natural(line, kept.reshape(-1, p)))
    shape = (n_steps, runs * walkers)
    cold = np.asarray(state.accepted).reshape(runs, t, walkers)[:, -1]
    return Chain(
        theta.reshape(*shape, p), natural_value.reshape(shape), line.names,
        acceptance_fractions=cold.reshape(-1) / float(state.iteration), thinning=SWEEP,
        ensemble=np.repeat(np.arange(runs), walkers), priors=priors,
        info={
            "method": "tempering", **pooled_evidence(evidence), "betas": ladder.beta.tolist(),
            "swap_acceptance": accepted.tolist(), "evaluations": float(state.evaluations),
        },
    )  # fmt: skip


@outer_jit
def _evaluated(density: TemperedDensity, z: Array) -> tuple[Array, Array]:
    return density.ensembles(z)


_to_natural = outer_jit(naturals)
