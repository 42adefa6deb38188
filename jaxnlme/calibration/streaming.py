"""Moments and quantiles of a run whose draws are not kept: memory does not grow with the steps.

References
----------
.. [1] Chan, Golub, LeVeque (1983). Algorithms for computing the sample variance. Am. Stat. 37.
.. [2] Margossian et al. (2024). Nested R-hat: assessing the convergence of MCMC when running many
       short chains. Bayesian Analysis.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import (
    ModelSpecError,
    SamplingWarning,
    SerializationError,
    nearest,
    some,
    warn,
)
from jaxnlme.calibration.driver import Rows, StopAtMCSE
from jaxnlme.calibration.storage import ChainStorage
from jaxnlme.design.frames import make_frame

__all__ = ["Stream", "StreamedMoments"]

GROUP = 2**16  # numbers that are reduced at once: a few walkers are gathered over many steps
BINS = 4096  # of a histogram in asinh((x - centre) / scale)
REACH = 15.0  # of its axis: 1.6 million scales to either side
BATCHES = 256  # means of consecutive steps that are kept; then pairs are merged
MIN_BATCHES = 20
MIN_ENSEMBLES = 4  # from then on the error is taken from the spread between ensembles
MIN_ESS = 400
MAX_DRIFT = 0.1


class Stream(Rows):
    """Sums over draws, in the place of the draws themselves (the driver fills either).

    Steps are reduced in groups of a fixed size, so that the result does not depend on how a run is cut
    into calls and checkpoints.

    Parameters
    ----------
    n_ensembles, n_walkers, p
        Walkers of each ensemble, parameters.
    discard
        Raw steps at the start of the chain that are left out.
    thin
        Raw steps per record.
    iteration
        Raw steps before the first one that comes.
    """

    def __init__(
        self, n_ensembles: int, n_walkers: int, p: int, discard: int, thin: int, iteration: int
    ) -> None:
        super().__init__()
        e = n_ensembles
        self.shape, self.discard, self.thinning = (e, n_walkers, p), discard, thin
        self.group = int(np.clip(GROUP // (e * n_walkers * p), 1, 256))
        self.numbers: dict[str, Any] = {
            "seen": np.int64(-(-iteration // thin)),  # records, also those left out
            "groups": np.int64(0),
            "count": np.int64(0),  # draws of each ensemble
            "mean": np.zeros((e, p)),
            "square": np.zeros((e, p, p)),  # sums of squares and products around the mean
            "log_prob": np.zeros(e),
            "centre": np.zeros(p),
            "scale": np.ones(p),
            "histogram": np.zeros((p, BINS)),
            "anchor": np.zeros(p),
            "batches": np.zeros((0, 2, e, p)),  # means, and mean squares around the anchor
            "batch_length": np.int64(1),  # groups
            "open_batch": np.zeros((2, e, p)),
            "open_count": np.int64(0),
            "waiting": np.zeros((0, e, n_walkers, p)),
            "waiting_log_prob": np.zeros((0, e, n_walkers)),
        }

    # ---- what the driver calls -------------------------------------------------------------------

    def add(self, **blocks: np.ndarray) -> None:
        """Take in records (n, walkers, ...)."""
        e, w, p = self.shape
        x = blocks["samples"].reshape(-1, e, w, p)
        log_prob = blocks["log_probs"].reshape(-1, e, w)
        first = int(self.numbers["seen"])
        self.numbers["seen"] = np.int64(first + len(x))
        skip = min(max(-(-self.discard // self.thinning) - first, 0), len(x))
        x, log_prob = x[skip:], log_prob[skip:]
        if len(self.numbers["waiting"]):
            x = np.concatenate([self.numbers["waiting"], x])
            log_prob = np.concatenate([self.numbers["waiting_log_prob"], log_prob])
        whole = len(x) // self.group * self.group
        for k in range(0, whole, self.group):
            _take(self.numbers, x[k : k + self.group], log_prob[k : k + self.group])
        # A copy: the driver writes over the block.
        self.numbers["waiting"] = x[whole:].copy()
        self.numbers["waiting_log_prob"] = log_prob[whole:].copy()

    def since(self, first: int = 0) -> dict[str, Any]:
        """Return itself as what stop rules look at."""
        return {"samples": self}

    def __len__(self) -> int:
        return min(int(self.numbers["count"]), 1)  # no draws are kept; something can be looked at

    # ---- files ------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays for a checkpoint."""
        return {f"stream_{name}": np.asarray(value) for name, value in self.numbers.items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set what :meth:`arrays` gave."""
        self.numbers = {name: arrays[f"stream_{name}"].copy() for name in self.numbers}

    def finished(self) -> dict[str, Any]:
        """Return the sums with the records that still wait for their group."""
        numbers = {name: value.copy() for name, value in self.numbers.items()}
        if len(numbers["waiting"]):
            _take(numbers, numbers["waiting"], numbers["waiting_log_prob"], whole=False)
        return numbers


def _take(into: dict[str, Any], x: np.ndarray, log_prob: np.ndarray, whole: bool = True) -> None:
    """Add a group (n, e, w, p) of records; a last one that is not whole starts no batch."""
    n, e, w, p = x.shape
    pooled = np.moveaxis(x, 0, 1).reshape(e, n * w, p)
    mean = pooled.mean(axis=1)
    away = pooled - mean[:, None]
    square = np.swapaxes(away, 1, 2) @ away
    groups = into["groups"] = into["groups"] + 1
    if groups & (groups - 1) == 0:  # 1, 2, 4, 8, ...
        _centre_histogram(into, pooled.reshape(-1, p))
    _count(into, pooled.reshape(-1, p))
    old, new = int(into["count"]), n * w
    share = new / (old + new)
    gap = mean - into["mean"]
    into["mean"] = into["mean"] + share * gap
    into["square"] = into["square"] + square + old * share * gap[:, :, None] * gap[:, None, :]
    own = np.moveaxis(log_prob, 0, 1).reshape(e, -1).mean(axis=1)
    into["log_prob"] = into["log_prob"] + share * (own - into["log_prob"])
    into["count"] = np.int64(old + new)
    if groups == 1:
        into["anchor"] = mean.mean(axis=0)
    if whole:
        spread = np.diagonal(square, axis1=1, axis2=2) / new
        _batch(into, np.stack([mean, spread + (mean - into["anchor"]) ** 2]))


def _batch(into: dict[str, Any], sums: np.ndarray) -> None:
    into["open_batch"] = into["open_batch"] + sums
    into["open_count"] = into["open_count"] + 1
    if into["open_count"] < into["batch_length"]:
        return
    closed = into["open_batch"] / into["open_count"]
    into["batches"] = np.concatenate([into["batches"], closed[None]])
    into["open_batch"], into["open_count"] = np.zeros_like(closed), np.int64(0)
    if len(into["batches"]) == BATCHES:
        into["batches"] = 0.5 * (into["batches"][::2] + into["batches"][1::2])
        into["batch_length"] = 2 * into["batch_length"]


def _centre_histogram(into: dict[str, Any], x: np.ndarray) -> None:
    """Put the fine part of the axis where these draws are; counts so far are spread over the new bins."""
    centre = np.median(x, axis=0)
    scale = 0.5 * np.diff(np.quantile(x, [0.16, 0.84], axis=0), axis=0)[0]
    scale = np.where(scale > 0, scale, np.maximum(np.abs(centre), 1.0))
    if into["count"] == 0:
        into["centre"], into["scale"] = centre, scale
        return
    ratio = scale / into["scale"]
    moved = (np.abs(centre - into["centre"]) > into["scale"]) | (ratio > 4) | (ratio < 0.25)
    for k in np.flatnonzero(moved):
        edges = _edges(into["centre"][k], into["scale"][k])
        below = np.concatenate([[0.0], np.cumsum(into["histogram"][k])])
        total = np.interp(_edges(centre[k], scale[k]), edges, below)
        total[0], total[-1] = 0.0, below[-1]
        into["histogram"][k] = np.diff(total)
    into["centre"] = np.where(moved, centre, into["centre"])
    into["scale"] = np.where(moved, scale, into["scale"])


def _pooled(into: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviations over all ensembles."""
    mean = into["mean"].mean(axis=0)
    return mean, np.sqrt(np.diag(_covariance(into)))


def _covariance(into: Mapping[str, Any]) -> np.ndarray:
    """Covariance over all ensembles, around the common mean."""
    e, count = len(into["mean"]), int(into["count"])
    away = into["mean"] - into["mean"].mean(axis=0)
    total = into["square"].sum(axis=0) + count * away.T @ away
    return total / max(e * count - 1, 1)


def _edges(centre: float, scale: float) -> np.ndarray:
    return centre + scale * np.sinh(np.linspace(-REACH, REACH, BINS + 1))


def _count(into: dict[str, Any], x: np.ndarray) -> None:
    per_unit = BINS / (2 * REACH)
    for k in range(x.shape[1]):
        place = np.arcsinh((x[:, k] - into["centre"][k]) / into["scale"][k])
        bin_ = np.clip((place + REACH) * per_unit, 0, BINS - 1).astype(np.int32)
        into["histogram"][k] += np.bincount(bin_, minlength=BINS)


class StreamedMoments:
    """What is left of a run with ``store="moments"``: no draws, but their moments and quantiles.

    Attributes
    ----------
    param_names : list of str
    n_draws : int
        Walkers times records, of all ensembles.
    mean, sd : ndarray (p,)
    cov : ndarray (p, p)
    log_prob : float
        Mean of the log posterior density.
    ensemble_means : ndarray (ensembles, p)
    acceptance_fraction : float
    state
        End of the run, to go on from with ``sampler.run(state, ...)``.
    info : dict

    Notes
    -----
    Moments are exact for the draws that were counted (updates of Chan et al. [1]_). Quantiles come from
    histograms that are finest near the centre, where a bin is 0.7 % of the scale; they are placed by the
    first counted step and moved when the draws move. Leave the burn-in out (``discard=``).

    R-hat and :meth:`drift` compare the two halves of the counted steps, and all ensembles. The error of a
    mean is taken from the spread between independent ensembles, from four on; with fewer
    it is that of up to 256 batches of consecutive steps, which must be much longer than the
    autocorrelation time.

    References
    ----------
    .. [1] Chan, Golub, LeVeque (1983). Algorithms for computing the sample variance. Am. Stat. 37.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxnlme.calibration import sample
    >>> def log_prob(x):
    ...     return -0.5 * jnp.sum(x**2)
    >>> init = np.random.default_rng(0).normal(size=(4 * 500, 2))
    >>> found = sample(log_prob, init=init, n_ensembles=4, num_steps=400, store="moments", discard=100)
    >>> found.n_draws, bool(np.abs(found.sd - 1).max() < 0.02)
    (600000, True)
    """

    def __init__(
        self,
        numbers: Mapping[str, Any],
        param_names: Sequence[str],
        *,
        thinning: int = 1,
        acceptance_fraction: float = float("nan"),
        state: Any = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        if not int(numbers["count"]):
            raise ModelSpecError(
                "store='moments': all steps were discarded; give a smaller discard=."
            )
        self._numbers, self.param_names = dict(numbers), [str(name) for name in param_names]
        self.thinning, self.acceptance_fraction = thinning, acceptance_fraction
        self.state, self.info = state, dict(info or {})
        self.ensemble_means = np.asarray(numbers["mean"])
        self.n_ensembles = len(self.ensemble_means)
        self.n_draws = int(numbers["count"]) * self.n_ensembles
        self.cov = _covariance(numbers)
        self.mean, self.sd = _pooled(numbers)
        self.log_prob = float(np.mean(numbers["log_prob"]))

    def __repr__(self) -> str:
        return (
            f"StreamedMoments({self.n_draws} draws in {self.n_ensembles} ensembles, parameters "
            f"{some(self.param_names, 8)})"
        )

    def quantile(self, q: Any) -> np.ndarray:
        """Return quantiles by interpolation in the histograms: (p,) for one number, (len(q), p) for several.

        Warns
        -----
        SamplingWarning
            A bin is wider than a twentieth of a standard deviation: the first counted steps were far
            from the rest. Discard more.
        """
        levels = np.atleast_1d(np.asarray(q, float))
        if not ((levels >= 0) & (levels <= 1)).all():
            raise ModelSpecError(f"quantile(q={q!r}): numbers from 0 to 1.")
        out, coarse = np.empty((len(levels), len(self.param_names))), []
        for k, name in enumerate(self.param_names):
            edges = _edges(self._numbers["centre"][k], self._numbers["scale"][k])
            below = np.cumsum(self._numbers["histogram"][k])
            held = np.flatnonzero(self._numbers["histogram"][k] > 0)
            share = np.concatenate([[0.0], below]) / below[-1]
            out[:, k] = np.clip(
                np.interp(levels, share, edges), edges[held[0]], edges[held[-1] + 1]
            )
            near = np.clip(np.searchsorted(edges, out[:, k]), 1, BINS)
            if ((edges[near] - edges[near - 1]) > 0.05 * self.sd[k])[
                (levels > 0) & (levels < 1)
            ].any():
                coarse.append(name)
        if coarse:
            warn(
                f"quantiles of {some(coarse)} come from bins wider than 0.05 standard deviations: the "
                "first counted steps were far from the others, or tails are wide. Give a larger discard=.",
                SamplingWarning,
            )
        return out[0] if np.ndim(q) == 0 else out

    def mcse(self) -> dict[str, float]:
        """Return the Monte Carlo standard error of each mean; NaN where there are too few steps."""
        if self.n_ensembles >= MIN_ENSEMBLES:
            error = self.ensemble_means.std(axis=0, ddof=1) / np.sqrt(self.n_ensembles)
        else:
            means = np.asarray(self._numbers["batches"])[:, 0].mean(axis=1)
            error = np.full(len(self.param_names), np.nan)
            if len(means) >= MIN_BATCHES:
                error = means.std(axis=0, ddof=1) / np.sqrt(len(means))
        return self._named(error)

    def ess(self) -> dict[str, float]:
        """Return effective sample sizes: variance over the squared error of the mean."""
        error = np.array(list(self.mcse().values()))
        with np.errstate(divide="ignore"):
            return self._named((self.sd / error) ** 2)

    def _halves(self) -> np.ndarray:
        """(2, 2, e, p): means and mean squares in the first and the second half of the steps."""
        batches = np.asarray(self._numbers["batches"])
        half = len(batches) // 2
        if not half:
            return np.full((2, *batches.shape[1:]), np.nan)
        return np.stack([batches[:half].mean(axis=0), batches[-half:].mean(axis=0)])

    def r_hat(self) -> dict[str, float]:
        """Return the nested R-hat between the halves in time of all ensembles (Margossian et al. 2024)."""
        means = self._halves()[:, 0].reshape(-1, len(self.param_names))
        within = np.diagonal(self._numbers["square"], axis1=1, axis2=2).mean(axis=0)
        within = within / max(int(self._numbers["count"]) - 1, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._named(np.sqrt(1 + means.var(axis=0, ddof=1) / within))

    def drift(self) -> dict[str, float]:
        """Return the relative change of each standard deviation from the first half to the second.

        Ensembles that start alike drift alike, which R-hat does not see.
        """
        mean, square = self._halves().mean(axis=2).swapaxes(0, 1)
        sd = np.sqrt(square - (mean - self._numbers["anchor"]) ** 2)
        return self._named(sd[1] / sd[0] - 1)

    def is_converged(self, r_hat_threshold: float = 1.01) -> bool:
        """Return True if R-hat is below the threshold, ESS 400 and the drift below 10 % everywhere."""
        return not self.problems(r_hat_threshold)

    def problems(self, r_hat_threshold: float = 1.01) -> list[str]:
        """Return what keeps the run from being converged, one sentence each."""
        r_hat, ess, found = self.r_hat(), self.ess(), []
        if bad := [k for k, v in r_hat.items() if not v < r_hat_threshold]:
            worst = max((r_hat[k] for k in bad), key=lambda v: np.inf if np.isnan(v) else v)
            found.append(
                f"nested R-hat above {r_hat_threshold:g} for {some(bad)} (worst {worst:.3f})"
            )
        if bad := [k for k, v in self.drift().items() if not abs(v) < MAX_DRIFT]:
            found.append(f"the spread of {some(bad)} still changes (drift())")
        if bad := [k for k, v in ess.items() if not v >= MIN_ESS]:
            found.append(f"ESS below {MIN_ESS} or unknown for {some(bad)}")
        return found

    def summary(self, kind: str = "pandas") -> Any:
        """Return a frame: parameter, mean, sd, mcse, q2.5, q25, median, q75, q97.5, r_hat, ess.

        Warns
        -----
        SamplingWarning
            The run has not converged.
        """
        quantiles = self.quantile([0.025, 0.25, 0.5, 0.75, 0.975])
        columns = {
            "parameter": list(self.param_names),
            "mean": self.mean,
            "sd": self.sd,
            "mcse": list(self.mcse().values()),
            **dict(zip(["q2.5", "q25", "median", "q75", "q97.5"], quantiles, strict=True)),
            "r_hat": list(self.r_hat().values()),
            "ess": list(self.ess().values()),
        }
        problems = self.problems()
        if problems:
            warn("the run has not converged: " + "; ".join(problems) + ".", SamplingWarning)
        return make_frame(columns, kind)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> StreamedMoments:
        """Read the moments of a checkpoint (``checkpoint_path=`` of a run with ``store="moments"``).

        Raises
        ------
        SerializationError
            There is none, it is damaged, or it holds draws.
        """
        store = ChainStorage(path)
        header, arrays = store.header(), store.state()
        if header.get("store") != "moments":
            raise SerializationError(f"{path} holds draws: read it by Chain.load(path).")
        stream = stream_of(header, 0)
        stream.restore(arrays)
        return StreamedMoments(
            stream.finished(), header["param_names"], thinning=header["thinning"],
            acceptance_fraction=float(arrays["acceptance_fraction"]), info=header["info"],
        )  # fmt: skip

    def _named(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.param_names, np.asarray(values).tolist(), strict=True))


def stream_of(header: Mapping[str, Any], iteration: int) -> Stream:
    """Return the empty sums of a stored or new run."""
    return Stream(
        header["n_ensembles"], header["n_walkers"] // header["n_ensembles"],
        len(header["param_names"]), header["discard"], header["thinning"], iteration,
    )  # fmt: skip


class StopStreamed:
    """:class:`StopAtMCSE` for moments: it looks at the error between ensembles."""

    def __init__(self, rule: StopAtMCSE) -> None:
        self.rule, self.check_every = rule, rule.check_every

    def __call__(self, stream: Stream, thinning: int, memory: dict[str, Any]) -> bool:
        del thinning, memory
        if not int(stream.numbers["count"]):
            return False
        names = [str(k) for k in range(stream.shape[2])]
        ess = StreamedMoments(stream.numbers, names).ess().values()
        return all(v >= max(self.rule.min_ess, 1 / self.rule.fraction**2) for v in ess)


def streamed_stop(stop: Any) -> StopStreamed | None:
    """Return the stop rule of a run that keeps moments.

    Raises
    ------
    ModelSpecError
        The rule needs draws.
    """
    if stop is None:
        return None
    if not isinstance(stop, StopAtMCSE):
        raise ModelSpecError(
            f"stop={stop!r} needs the draws, which store='moments' does not keep; use 'mcse' or None."
        )
    return StopStreamed(stop)


def read_store(store: Any, discard: Any) -> bool:
    """Return whether only moments are kept.

    Raises
    ------
    ModelSpecError
        Another word, or ``discard=`` for draws.
    """
    kinds = ("draws", "moments")
    if store not in kinds:
        raise ModelSpecError(
            f"store={store!r}: use one of {list(kinds)}." + nearest(str(store), kinds)
        )
    if isinstance(discard, bool) or not isinstance(discard, (int, np.integer)) or discard < 0:
        raise ModelSpecError(f"discard={discard!r}: a whole number of raw steps from 0 on.")
    if store == "draws" and discard:
        raise ModelSpecError(
            f"discard={discard!r} is for store='moments'; with draws, give discard= to what reads the "
            "chain: chain.summary(discard=...)."
        )
    return store == "moments"
