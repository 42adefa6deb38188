"""Chains: draws with names, their convergence, tables, pictures and files."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import (
    DataError,
    ModelSpecError,
    SamplingWarning,
    SerializationError,
    nearest,
    some,
    warn,
)
from jaxnlme.calibration.storage import ChainStorage
from jaxnlme.design.frames import make_frame
from jaxnlme.numerics import chain_statistics as statistics

__all__ = ["Chain"]

MIN_TAUS = 50  # steps in units of the autocorrelation time before that time can be trusted
MIN_ESS = 400


class Chain:
    """Draws of a sampler.

    Walkers (or independent chains) stand side by side on one axis; those of independent ensembles
    follow each other and ``ensemble`` tells them apart.

    Attributes
    ----------
    samples : ndarray (stored steps, walkers, p)
        Parameters on their natural scale.
    log_probs : ndarray (stored steps, walkers)
        Log posterior density on the natural scale.
    acceptance_fractions : ndarray (walkers,)
    param_names : list of str
    ensemble : ndarray (walkers,) of int
    thinning : int
        Raw steps per stored step.
    blobs
        Pytree of arrays (stored steps, walkers, ...), or None.
    info : dict
        What the sampler reports: divergences, step size, log evidence, evaluations.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> chain = Chain(rng.normal(size=(500, 4, 2)), np.zeros((500, 4)), ["a", "b"])
    >>> chain.flat_samples(discard=100).shape, chain.r_hat()["a"] < 1.01
    ((1600, 2), True)
    """

    def __init__(
        self,
        samples: Any,
        log_probs: Any,
        param_names: Sequence[str],
        *,
        acceptance_fractions: Any = None,
        ensemble: Any = None,
        thinning: int = 1,
        accepted: Any = None,
        state: Any = None,
        blobs: Any = None,
        info: Mapping[str, Any] | None = None,
        priors: Any = None,
    ) -> None:
        self.samples = _array(samples, 3, "samples")
        n, walkers, p = self.samples.shape
        self.log_probs = _array(log_probs, 2, "log_probs")
        if self.log_probs.shape != (n, walkers):
            raise DataError(
                f"log_probs has shape {self.log_probs.shape}, expected {(n, walkers)}, that of samples."
            )
        self.param_names = [str(name) for name in param_names]
        if len(self.param_names) != p or len(set(self.param_names)) != p:
            raise DataError(f"param_names: {p} different names are needed, got {self.param_names}.")
        self.thinning = int(thinning)
        self.accepted = None if accepted is None else np.asarray(accepted, float)
        if acceptance_fractions is None:
            acceptance_fractions = _moved(self.samples)
        self.acceptance_fractions = np.asarray(acceptance_fractions, float)
        self.ensemble = np.zeros(walkers, int) if ensemble is None else np.asarray(ensemble, int)
        self.state = state
        self.blobs = blobs
        self.info = dict(info or {})
        self.priors = priors

    # ---- draws ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def n_walkers(self) -> int:
        """Walkers of all ensembles together."""
        return self.samples.shape[1]

    def __repr__(self) -> str:
        n, walkers, _ = self.samples.shape
        groups = len(np.unique(self.ensemble))
        text = f" in {groups} ensembles" if groups > 1 else ""
        return (
            f"Chain({n} stored steps (1 in {self.thinning}), {walkers} walkers{text}, "
            f"parameters {some(self.param_names, 8)})"
        )

    def __getitem__(self, name: str) -> np.ndarray:
        """Draws (stored steps, walkers) of one parameter."""
        return self.samples[:, :, self._place(name)]

    def _place(self, name: str) -> int:
        if name not in self.param_names:
            raise KeyError(
                f"no parameter {name!r}; there are {some(self.param_names, 12)}."
                + nearest(str(name), self.param_names)
            )
        return self.param_names.index(name)

    def flat_samples(self, discard: int = 0) -> np.ndarray:
        """Return (n, p): all walkers of stored step 0, then of step 1, after `discard` stored steps."""
        kept = self._kept(discard)
        return kept.reshape(-1, kept.shape[-1])

    def flat_log_probs(self, discard: int = 0) -> np.ndarray:
        """Return (n,) log densities in the order of :meth:`flat_samples`."""
        self._kept(discard)
        return np.asarray(self.log_probs[discard:]).reshape(-1)

    def _kept(self, discard: Any) -> np.ndarray:
        if not isinstance(discard, (int, np.integer)) or not 0 <= discard < max(len(self), 1):
            raise ModelSpecError(
                f"discard={discard!r}: a whole number of stored steps from 0 to {len(self) - 1}."
            )
        return np.asarray(self.samples[discard:])

    def to_dataframe(self, discard: int = 0, kind: str = "pandas") -> Any:
        """Return a frame with iteration, walker, log_prob and one column per parameter.

        Row k is stored step ``k // walkers`` (plus `discard`) of walker ``k % walkers``.
        """
        kept = self._kept(discard)
        n, walkers, p = kept.shape
        columns = {
            "iteration": np.repeat(np.arange(discard, discard + n), walkers),
            "walker": np.tile(np.arange(walkers), n),
            "log_prob": self.flat_log_probs(discard),
        }
        flat = kept.reshape(-1, p)
        columns |= {name: flat[:, k] for k, name in enumerate(self.param_names)}
        return make_frame(columns, kind)

    def thin(self, k: int) -> Chain:
        """Return every k-th stored step, from the first on."""
        if int(k) < 1:
            raise ModelSpecError(f"thin: k={k} must be at least 1.")
        return self._with(slice(None, None, int(k)), thinning=self.thinning * int(k))

    def _with(self, rows: slice, **changes: Any) -> Chain:
        blobs = None if self.blobs is None else _map_blobs(lambda a: a[rows], self.blobs)
        fields = {
            "acceptance_fractions": self.acceptance_fractions,
            "ensemble": self.ensemble,
            "thinning": self.thinning,
            "accepted": None if self.accepted is None else self.accepted[rows],
            "state": self.state,
            "blobs": blobs,
            "info": self.info,
            "priors": self.priors,
        }
        return Chain(
            self.samples[rows], self.log_probs[rows], self.param_names, **{**fields, **changes}
        )

    def merge(self, other: Chain) -> Chain:
        """Return this chain followed by the stored steps of another one of the same walkers."""
        if self.param_names != other.param_names or self.n_walkers != other.n_walkers:
            raise ModelSpecError(
                f"merge: {self.n_walkers} walkers of {self.param_names} and {other.n_walkers} of "
                f"{other.param_names} do not fit."
            )
        if self.thinning != other.thinning:
            raise ModelSpecError(
                f"merge: one chain stores 1 step in {self.thinning}, the other 1 in {other.thinning};"
                " thin() one of them."
            )
        n, m = len(self), len(other)
        fractions = (n * self.acceptance_fractions + m * other.acceptance_fractions) / max(n + m, 1)
        blobs = None
        if self.blobs is not None and other.blobs is not None:
            blobs = _map_blobs(lambda a, b: np.concatenate([a, b]), self.blobs, other.blobs)
        return Chain(
            np.concatenate([self.samples, other.samples]),
            np.concatenate([self.log_probs, other.log_probs]),
            self.param_names,
            acceptance_fractions=fractions,
            ensemble=self.ensemble,
            thinning=self.thinning,
            state=other.state,
            blobs=blobs,
            info=self.info,
            priors=self.priors,
        )

    # ---- convergence ----------------------------------------------------------------------------

    def _alive(self, discard: int) -> np.ndarray:
        """Kept draws of the walkers that moved; a warning names those that did not."""
        kept = self._kept(discard)
        stuck = self.stuck_walkers(discard)
        if len(stuck) and len(stuck) < kept.shape[1] and len(kept) > 1:
            warn(
                f"{len(stuck)} of {kept.shape[1]} walkers never moved (walker {some(stuck)}) and are "
                "left out of the statistics. Start them elsewhere, or run longer.",
                SamplingWarning,
            )
            kept = np.delete(kept, stuck, axis=1)
        return kept

    def stuck_walkers(self, discard: int = 0) -> np.ndarray:
        """Return the walkers that stand still in all kept steps."""
        kept = self._kept(discard)
        if len(kept) < 2:
            return np.zeros(0, int)
        return np.flatnonzero((kept == kept[:1]).all(axis=(0, 2)))

    def _each(self, function: Any, discard: int) -> dict[str, float]:
        alive = self._alive(discard)
        return {name: function(alive[:, :, k]) for k, name in enumerate(self.param_names)}

    def r_hat(self, discard: int = 0) -> dict[str, float]:
        """Return the rank-normalised split R-hat by parameter, walkers as chains.

        Walkers of one ensemble depend on each other: only several ensembles (`n_ensembles`) and
        :meth:`nested_r_hat` compare independent chains.
        """
        return self._each(statistics.r_hat, discard)

    def nested_r_hat(self, discard: int = 0) -> dict[str, float]:
        """Return the nested R-hat by parameter: between independent ensembles, NaN with only one."""
        kept = self._kept(discard)
        return {
            name: statistics.nested_r_hat(kept[:, :, k], self.ensemble)
            for k, name in enumerate(self.param_names)
        }

    def ess(self, discard: int = 0, kind: str = "bulk") -> dict:
        """Return effective sample sizes by parameter.

        ``"bulk"``: rank-normalised draws with walkers as chains; for ensembles of the stretch move
        0.73 (20 parameters) to 1.03 (5) times the truth. ``"tail"``: the smaller one of the 5 % and
        95 % quantiles. ``"mean"``: without ranks.
        """
        functions = {
            "bulk": statistics.ess_bulk,
            "tail": statistics.ess_tail,
            "mean": statistics.ess_mean,
        }
        if kind not in functions:
            raise ModelSpecError(
                f"kind={kind!r}: use one of {list(functions)}.{nearest(kind, functions)}"
            )
        return self._each(functions[kind], discard)

    def mcse(self, discard: int = 0) -> dict[str, float]:
        """Return the Monte Carlo standard error of each mean."""
        return self._each(statistics.mcse_mean, discard)

    def autocorr_time(self, discard: int = 0) -> dict[str, float]:
        """Return Sokal's autocorrelation time by parameter, in raw steps.

        Too small while the chain is shorter than 50 of them; :meth:`is_converged` asks for that.
        """
        return self._each(lambda x: self.thinning * statistics.autocorr_time(x), discard)

    def acceptance_fraction(self) -> np.ndarray:
        """Return the accepted fraction of proposals of each walker (0.2 to 0.5 is healthy)."""
        return self.acceptance_fractions

    def mean_acceptance_rate(self) -> float:
        """Return the accepted fraction of all proposals."""
        return float(np.mean(self.acceptance_fractions))

    def is_converged(self, discard: int = 0, r_hat_threshold: float = 1.01) -> bool:
        """Return True if R-hat < threshold, steps >= 50 tau and bulk ESS >= 400 for every parameter.

        R-hat alone is met by ensembles after about 12 autocorrelation times.
        """
        return not self.problems(discard, r_hat_threshold)

    def problems(self, discard: int = 0, r_hat_threshold: float = 1.01) -> list[str]:
        """Return what keeps the chain from being converged, one sentence each."""
        n = len(self._kept(discard)) * self.thinning
        found = []
        r_hat, ess = self.r_hat(discard), self.ess(discard)
        tau = self.autocorr_time(discard)
        # Written so that NaN counts as a failure.
        bad = [k for k, v in r_hat.items() if not v < r_hat_threshold]
        if bad:
            worst = max((r_hat[k] for k in bad), key=lambda v: np.inf if np.isnan(v) else v)
            found.append(f"R-hat above {r_hat_threshold:g} for {some(bad)} (worst {worst:.3f})")
        bad = [k for k, v in ess.items() if not v >= MIN_ESS]
        if bad:
            worst = min((ess[k] for k in bad), key=lambda v: -np.inf if np.isnan(v) else v)
            found.append(f"ESS below {MIN_ESS} for {some(bad)} (smallest {worst:.0f})")
        bad = [k for k, v in tau.items() if not n >= MIN_TAUS * v]
        if bad:
            worst = max((tau[k] for k in bad), key=lambda v: np.inf if np.isnan(v) else v)
            found.append(
                f"{n} steps are fewer than {MIN_TAUS} autocorrelation times for {some(bad)} "
                f"(longest {worst:.0f})"
            )
        if self.info.get("divergences", 0):
            found.append(f"{self.info['divergences']} divergent transitions")
        return found

    def summary(self, discard: int = 0, kind: str = "pandas") -> Any:
        """Return a frame with one row per parameter.

        Columns: parameter, mean, sd, mcse, q2.5, q25, median, q75, q97.5, r_hat, ess_bulk,
        ess_tail, tau.

        Warns
        -----
        SamplingWarning
            The chain has not converged (what :meth:`is_converged` asks for); names the parameters.
        """
        alive = self._alive(discard)
        flat = alive.reshape(-1, alive.shape[-1])
        quantiles = np.quantile(flat, [0.025, 0.25, 0.5, 0.75, 0.975], axis=0)
        per = [alive[:, :, k] for k in range(len(self.param_names))]
        columns = {
            "parameter": list(self.param_names),
            "mean": flat.mean(0),
            "sd": flat.std(0, ddof=1),
            "mcse": [statistics.mcse_mean(x) for x in per],
            **dict(zip(["q2.5", "q25", "median", "q75", "q97.5"], quantiles, strict=True)),
            "r_hat": [statistics.r_hat(x) for x in per],
            "ess_bulk": [statistics.ess_bulk(x) for x in per],
            "ess_tail": [statistics.ess_tail(x) for x in per],
            "tau": [self.thinning * statistics.autocorr_time(x) for x in per],
        }
        problems = self.problems(discard)
        if problems:
            warn("the chain has not converged: " + "; ".join(problems) + ".", SamplingWarning)
        return make_frame(columns, kind)

    # ---- files ----------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the chain to a folder; :meth:`load` reads it again.

        Raises
        ------
        SerializationError
            There is a chain at `path` already, or it cannot be written.
        """
        ChainStorage(path).save(self, overwrite=overwrite)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Chain:
        """Read a chain; the draws stay on disk until they are used (memory map).

        Raises
        ------
        SerializationError
            There is no chain, its files are damaged, or it holds moments and no draws.
        """
        store = ChainStorage(path)
        if store.header().get("store") == "moments":
            raise SerializationError(
                f"{path} holds the moments of a run, not its draws: StreamedMoments.load(path)."
            )
        return Chain(**store.read())

    def append(self, path: str | os.PathLike[str]) -> None:
        """Add this chain's draws to those of a folder; the old ones are not written again."""
        ChainStorage(path).append(self)

    def to_xarray(self, discard: int = 0) -> Any:
        """Return an ``xarray.Dataset`` with dimensions chain (walkers) and draw."""
        try:
            import xarray  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("to_xarray needs xarray: `pip install xarray`.") from error
        kept = self._kept(discard)
        dims = ("chain", "draw")
        data = {name: (dims, kept[:, :, k].T) for k, name in enumerate(self.param_names)}
        data["log_prob"] = (dims, np.asarray(self.log_probs[discard:]).T)
        coords = {"ensemble": ("chain", self.ensemble)}
        return xarray.Dataset(data, coords=coords)

    @property
    def plot(self) -> Any:
        """Pictures: ``trace corner autocorr acceptance rank prior_posterior posterior_predictive``."""
        # By name: plots stand above this floor, and load matplotlib only when drawn.
        return importlib.import_module("jaxnlme.plots.calibration").ChainPlots(self)


def _array(values: Any, ndim: int, name: str) -> np.ndarray:
    array = values if isinstance(values, np.ndarray) else np.asarray(values, float)
    if array.ndim != ndim:
        raise DataError(f"{name} must have {ndim} dimensions, got shape {array.shape}.")
    return array


def _moved(samples: np.ndarray) -> np.ndarray:
    if len(samples) < 2:
        return np.full(samples.shape[1], np.nan)
    return (np.diff(samples, axis=0) != 0).any(2).mean(0)


def _map_blobs(function: Any, *trees: Any) -> Any:
    first = trees[0]
    if isinstance(first, Mapping):
        return {k: _map_blobs(function, *(t[k] for t in trees)) for k in first}
    if isinstance(first, tuple | list):
        return type(first)(_map_blobs(function, *parts) for parts in zip(*trees, strict=True))
    return function(*trees)
