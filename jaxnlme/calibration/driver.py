"""The host's part of long runs: calls of the compiled loop, progress, checkpoints, stop rules, Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxnlme._errors import ModelSpecError, SamplingWarning, nearest, warn
from jaxnlme.calibration.kernel import EnsembleState, buffers, run_chunk
from jaxnlme.calibration.moves import Move
from jaxnlme.calibration.problem import AbstractEnsembleDensity
from jaxnlme.numerics import chain_statistics as statistics
from jaxnlme.numerics.blocked import aligned

__all__ = ["Rows", "StopAtMCSE", "StopAtTau", "drive", "read_stop"]

BUFFER = 2**20  # numbers per call: 8 MB, that the copy to the host comes from the cache
SECONDS_PER_CALL = 0.25  # progress, callbacks and Ctrl-C are looked at between calls
SECONDS_PER_PICTURE = 0.2  # between two states of the progress bar
MAX_ROWS = 1024
RESERVE = 2**30  # bytes of an array that are reserved before they are needed


class Rows:
    """Stored steps so far: arrays (k, walkers, ...) by name, filled from the front.

    Parameters
    ----------
    expected
        Rows that are likely to come: their memory is reserved at once, and touched when filled.
    """

    def __init__(self, expected: int = 0) -> None:
        self.expected, self.count = expected, 0
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, **blocks: np.ndarray) -> None:
        """Append one block (n, walkers, ...) of each kind."""
        n = 0
        for name, block in blocks.items():
            n = len(block)
            array = self._arrays.get(name)
            if array is None or self.count + n > len(array):
                array = self._arrays[name] = self._larger(array, block)
            array[self.count : self.count + n] = block
        self.count += n

    def _larger(self, old: np.ndarray | None, block: np.ndarray) -> np.ndarray:
        size = max(block[:1].nbytes, 1)
        most = max(RESERVE // size, 2 * self.count, self.count + len(block))
        rows = max(min(self.expected, most), self.count + len(block))
        new = aligned((rows, *block.shape[1:]), block.dtype)
        if old is not None:
            new[: self.count] = old[: self.count]
        return new

    def since(self, first: int = 0) -> dict[str, np.ndarray]:
        """Return the rows from number `first` on, by name; views."""
        return {name: array[first : self.count] for name, array in self._arrays.items()}

    def __len__(self) -> int:
        return self.count


@dataclasses.dataclass(frozen=True)
class StopAtTau:
    """Stop when the chain is `factor` autocorrelation times long and the time has settled.

    Looked at every `check_every` steps, with the first `discard` (a fraction) left out. Settled:
    it changed by less than `change` since the last look.
    """

    factor: float = 50.0
    change: float = 0.05
    discard: float = 0.25
    check_every: int = 1000

    def __call__(self, samples: np.ndarray, thinning: int, memory: dict[str, Any]) -> bool:
        kept = samples[int(self.discard * len(samples)) :]
        if len(kept) < 8:
            return False
        tau = np.array(
            [thinning * statistics.autocorr_time(kept[:, :, k]) for k in range(kept.shape[2])]
        )
        before = memory.get("tau")
        memory["tau"] = tau
        if before is None or not np.isfinite(tau).all():
            return False
        settled = bool((np.abs(tau - before) < self.change * tau).all())
        return settled and bool((len(kept) * thinning > self.factor * tau).all())


@dataclasses.dataclass(frozen=True)
class StopAtMCSE:
    """Stop when the Monte Carlo error of every mean is below `fraction` of its posterior sd.

    ``fraction`` f is reached at about ``1 / f**2`` effective draws; at least `min_ess` are asked for.
    """

    fraction: float = 0.05
    min_ess: float = 400.0
    discard: float = 0.25
    check_every: int = 1000

    def __call__(self, samples: np.ndarray, thinning: int, memory: dict[str, Any]) -> bool:
        del thinning, memory
        kept = samples[int(self.discard * len(samples)) :]
        if len(kept) < 8:
            return False
        ess = np.array([statistics.ess_bulk(kept[:, :, k]) for k in range(kept.shape[2])])
        return bool((ess >= max(self.min_ess, 1 / self.fraction**2)).all())


def read_stop(stop: Any) -> Any:
    """Return a stop rule: None, ``"tau"``, ``"mcse"``, or an object of this module."""
    rules = {"tau": StopAtTau, "mcse": StopAtMCSE}
    if isinstance(stop, str):
        if stop not in rules:
            raise ModelSpecError(f"stop={stop!r}: use 'tau', 'mcse', StopAtTau(...) or StopAtMCSE(...)."
                                 + nearest(stop, rules))  # fmt: skip
        return rules[stop]()
    if stop is not None and not isinstance(stop, StopAtTau | StopAtMCSE):
        raise ModelSpecError(
            f"stop={stop!r}: use None, 'tau', 'mcse', StopAtTau(...) or StopAtMCSE(...); a function "
            "of the progress goes to callback=."
        )
    return stop


@dataclasses.dataclass
class Drive:
    """One run: what is asked for, and what is done so far."""

    density: AbstractEnsembleDensity
    moves: tuple[Move, ...]
    state: EnsembleState
    n_steps: int
    thin: int
    n_adapt: int
    rows: Rows
    save: Callable[[EnsembleState, dict[str, np.ndarray]], None] | None = None
    save_every: int = 1000
    callback: Callable[[dict[str, Any]], Any] | None = None
    callback_every: int = 100
    stop: Any = None
    progress: Any = None
    buffers: Any = None  # rows of the compiled loop, used again in each call

    @property
    def capacity(self) -> int:
        """Rows of the buffer of one call; depends on shapes only, so that there is one program."""
        e, w, p = self.state.z.shape
        size = e * w * (p + 2 + self.state.blobs.shape[2])
        return int(np.clip(2 ** int(np.log2(max(BUFFER // size, 1))), 1, MAX_ROWS))


def drive(job: Drive) -> tuple[EnsembleState, str]:
    """Run until the steps are done, a rule or callback stops, or Ctrl-C; return why it ended."""
    start = int(job.state.iteration)
    end = start + job.n_steps
    began = time.perf_counter()
    watch = _Progress(job, start, end, began)
    saved, why, per_call, memory = len(job.rows), "finished", 1, {}
    job.buffers = buffers(job.state, job.capacity)
    with _interrupts() as interrupted, watch:
        while int(job.state.iteration) < end:
            now = int(job.state.iteration)
            count = min(per_call, _to_boundary(job, now, end))
            call_began = time.perf_counter()
            _advance(job, count)
            spent = time.perf_counter() - call_began
            # The first call compiles; afterwards the size follows the time, by at most 8 at once.
            wanted = count * SECONDS_PER_CALL / max(spent, 1e-6)
            per_call = int(np.clip(wanted, max(per_call // 8, 1), 8 * per_call))
            now = int(job.state.iteration)
            if job.save is not None and (now % job.save_every == 0 or now == end):
                job.save(job.state, job.rows.since(saved))
                saved = len(job.rows)
            if interrupted:
                why = "interrupted"
            elif watch.told(now):
                why = "callback"
            elif _ruled_off(job, now, memory):
                why = "stop rule"
            if why != "finished":
                break
    if job.save is not None and len(job.rows) > saved:
        job.save(job.state, job.rows.since(saved))
    if why == "interrupted":
        warn(
            f"stopped by Ctrl-C after {int(job.state.iteration) - start} of {job.n_steps} steps; the "
            "chain so far is returned.",
            SamplingWarning,
        )
    return job.state, why


def _ruled_off(job: Drive, now: int, memory: dict[str, Any]) -> bool:
    if job.stop is None or now % job.stop.check_every or not len(job.rows):
        return False
    return job.stop(job.rows.since()["samples"], job.thin, memory)


def _to_boundary(job: Drive, now: int, end: int) -> int:
    """Steps to the next place where the host must look; a call never passes it."""
    # As many rows as the buffer has, counted from the last multiple of thin.
    first = -(-now // job.thin) * job.thin
    limits = [end, first + job.capacity * job.thin]
    if job.save is not None:
        limits.append((now // job.save_every + 1) * job.save_every)
    if job.callback is not None or callable(job.progress):
        limits.append((now // job.callback_every + 1) * job.callback_every)
    if job.stop is not None:
        limits.append((now // job.stop.check_every + 1) * job.stop.check_every)
    return min(limits) - now


def _advance(job: Drive, count: int) -> None:
    state, job.buffers, n = run_chunk(
        job.moves, job.density, job.state, job.buffers,
        np.int64(count), np.int64(job.thin), np.int64(job.n_adapt),
    )  # fmt: skip
    n = int(n)
    infinite = int((np.asarray(state.log_density) == np.inf).sum())
    if infinite:
        raise ModelSpecError(
            f"the log density was +inf at {infinite} proposed points: it is no density there. Look "
            "for a division by zero, or a standard deviation that can reach 0."
        )
    e, w, _ = job.state.z.shape
    # Views of the buffers, copied by `add`: slicing on the device would compile per n.
    blocks = [np.asarray(a)[:n] for a in job.buffers]
    positions, value, blobs, accepted = (a.reshape(n, e * w, *a.shape[3:]) for a in blocks)
    job.rows.add(samples=positions, log_probs=value, blobs=blobs, accepted=accepted)
    job.state = jax.tree.map(_host, state)


def _host(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return np.asarray(leaf)


class _Progress:
    """A tqdm bar, the user's callables, or nothing."""

    def __init__(self, job: Drive, start: int, end: int, began: float) -> None:
        self.job, self.start, self.end, self.began = job, start, end, began
        self.bar: Any = None
        self.looked, self.drawn, self.cost, self.extra = began, began, 0.0, {}
        wanted = job.progress
        if wanted is True or (wanted is None and sys.stderr.isatty()):
            from tqdm import tqdm

            self.bar = tqdm(total=end - start, delay=0 if wanted is True else 2, unit="step")

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def told(self, now: int) -> bool:
        """Report; True if a callable asks to stop."""
        job = self.job
        calls = [c for c in (job.callback, job.progress) if callable(c)]
        due = bool(calls) and (now % job.callback_every == 0 or now == self.end)
        clock = time.perf_counter()
        drawn = self.bar is not None and (
            now == self.end or clock - self.drawn > SECONDS_PER_PICTURE
        )
        if not due and not drawn:
            return False
        info = self._info(now)
        if drawn and self.bar is not None:
            self.drawn = clock
            self.bar.update(now - self.start - self.bar.n)
            shown = {
                "accept": f"{info['acceptance_rate']:.2f}",
                "logp": f"{info['mean_log_prob']:.4g}",
            }
            if info["tau"] is not None:
                shown |= {"tau": f"{info['tau']:.0f}", "ess": f"{info['ess']:.0f}"}
            self.bar.set_postfix(shown)
        return bool(due and sum(call(dict(info)) is True for call in calls))

    def _info(self, now: int) -> dict[str, Any]:
        state, clock = self.job.state, time.perf_counter()
        # tau of the whole chain so far: seldom enough to stay below 2 % of the time.
        if len(self.job.rows) >= 100 and clock - self.looked > max(2.0, 50 * self.cost):
            self._statistics()
            self.cost = time.perf_counter() - clock
            self.looked = time.perf_counter()
        done = now - self.start
        elapsed = time.perf_counter() - self.began
        return {
            "iteration": now,
            "total": self.end,
            "acceptance_rate": float(np.mean(state.accepted) / max(int(state.iteration), 1)),
            "mean_log_prob": float(np.mean(state.log_density)),
            "elapsed": elapsed,
            "remaining": elapsed / max(done, 1) * (self.end - now),
            "tau": self.extra.get("tau"),
            "ess": self.extra.get("ess"),
        }

    def _statistics(self) -> None:
        samples = self.job.rows.since()["samples"]
        kept = samples[len(samples) // 4 :]
        tau = [statistics.autocorr_time(kept[:, :, k]) for k in range(kept.shape[2])]
        worst = float(np.nanmax(tau)) if np.isfinite(tau).any() else float("nan")
        self.extra = {
            "tau": self.job.thin * worst,
            "ess": kept.shape[0] * kept.shape[1] / worst if worst > 0 else float("nan"),
        }


@contextlib.contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """Note the first Ctrl-C (a second one interrupts at once); only the main thread gets signals."""
    seen: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        if seen and callable(before):
            before(number, frame)
        seen.append(True)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
