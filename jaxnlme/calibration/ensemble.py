"""The affine-invariant ensemble sampler of a calibration problem."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, ModelSpecError, SerializationError, nearest, some
from jaxnlme._precision import host64
from jaxnlme.calibration.chain import Chain
from jaxnlme.calibration.driver import Drive, Rows, drive, read_stop
from jaxnlme.calibration.fitted import read_problem
from jaxnlme.calibration.kernel import EnsembleState, start_state
from jaxnlme.calibration.moves import EnsembleSlice, read_moves
from jaxnlme.calibration.problem import AbstractDensity, Posterior, fingerprint
from jaxnlme.calibration.starts import (
    ball,
    check_geometry,
    check_walkers,
    evaluate_starts,
    prior_redraw,
    to_coordinates,
    to_natural,
    whole,
)
from jaxnlme.calibration.storage import ChainStorage, blob_shapes, shape_blobs
from jaxnlme.calibration.streaming import (
    Stream,
    StreamedMoments,
    read_store,
    stream_of,
    streamed_stop,
)
from jaxnlme.priors.base import as_key

__all__ = ["EnsembleSampler", "SamplerState"]


@dataclasses.dataclass
class SamplerState:
    """Where the walkers stand.

    Attributes
    ----------
    positions : ndarray (walkers of all ensembles, p)
        On the natural scale.
    log_probs : ndarray (walkers,) or None
        Log posterior density on the natural scale.
    iteration : int
        Steps done.
    key
        Source of randomness, an int or a ``jax.random.key``.
    inner
        What else the sampler needs to go on bit for bit; made by the sampler.
    """

    positions: np.ndarray
    log_probs: np.ndarray | None = None
    iteration: int = 0
    key: Any = 0
    inner: EnsembleState | None = None


class EnsembleSampler:
    """Goodman and Weare's ensemble sampler with further moves, many ensembles, files and stop rules.

    Parameters
    ----------
    parameters, target, runner
        What is sampled, what was seen, and the model between them; or the posterior of a fitted
        model alone, ``EnsembleSampler(fit.log_posterior(priors))``.
    likelihood
        One likelihood for all variables (default :class:`GaussianLikelihood`), or a dict by
        variable.
    n_walkers
        Walkers per ensemble, even and at least 2 p. Default: max(2 p, 32).
    moves
        None (the stretch move), a name (``"stretch" "de" "snooker" "walk" "slice"``), a move, or a
        list of these or of pairs (move, weight); one kind is drawn for each step.
    stretch_scale
        a of the stretch move, above 1.
    n_ensembles
        Independent ensembles in one program; the only honest R-hat is between them
        (:meth:`Chain.nested_r_hat`).
    adapt_steps
        With several moves: after so many steps the weights are set in proportion to squared jumps
        per evaluation, and stay. Discard these steps. 0: the weights stay as given.
    blobs
        ``blobs(params, output) -> pytree`` of numbers kept with each stored draw.

    Raises
    ------
    ModelSpecError
        Types or options do not fit, see the messages.

    Notes
    -----
    Walkers are split into two random halves in every step; one half moves against the other, and
    the other against the new places of the first. A density that is NaN or -inf is a rejected
    proposal; +inf raises. All randomness is a function of the key and of the iteration, so that
    neither chunks nor checkpoints change a bit.

    References
    ----------
    .. [1] Goodman, J. and Weare, J. (2010). Ensemble samplers with affine invariance. CAMCoS 5.
    .. [2] Foreman-Mackey et al. (2013). emcee: the MCMC hammer. PASP 125.

    Examples
    --------
    >>> import numpy as np
    >>> from jaxnlme.calibration import ModelRunner, Normal, ParameterSet, Target
    >>> def line(params):
    ...     return {"y": params["a"] + params["b"] * np.arange(5.0)}
    >>> sampler = EnsembleSampler(
    ...     ParameterSet({"a": Normal(0, 10), "b": Normal(0, 10)}),
    ...     Target().add_variable("y", np.arange(5.0), [0.1, 2.1, 3.9, 6.0, 8.1], 0.1),
    ...     ModelRunner(line, times=np.arange(5.0)),
    ... )
    >>> chain = sampler.run(sampler.initialize(key=1), n_steps=500, progress=False)
    >>> bool(abs(chain["b"][250:].mean() - 2.0) < 0.05)
    True
    """

    def __init__(
        self,
        parameters: Any,
        target: Any = None,
        runner: Any = None,
        likelihood: Any = None,
        *,
        n_walkers: Any = None,
        moves: Any = None,
        stretch_scale: Any = 2.0,
        n_ensembles: Any = 1,
        adapt_steps: Any = 0,
        blobs: Callable | None = None,
    ) -> None:
        self.posterior, self.parameters = read_problem(
            parameters, target, runner, likelihood, blobs=blobs
        )
        self.target, self.runner = target, runner
        self._core = Core(
            self.posterior,
            n_walkers=check_walkers(n_walkers, len(self.parameters)),
            moves=moves,
            stretch_scale=stretch_scale,
            n_ensembles=n_ensembles,
            adapt_steps=adapt_steps,
            priors=self.parameters,
        )

    @property
    def n_walkers(self) -> int:
        """Walkers of one ensemble."""
        return self._core.n_walkers

    @property
    def n_ensembles(self) -> int:
        """Independent ensembles."""
        return self._core.n_ensembles

    @host64
    def initialize(
        self,
        method: str = "prior",
        *,
        center: Any = None,
        radius: Any = None,
        positions: Any = None,
        key: Any = 0,
    ) -> SamplerState:
        """Place the walkers.

        Parameters
        ----------
        method
            ``"prior"``: draws from the prior. ``"ball"``: uniform inside the ball of `radius` (one
            number, or one per parameter) around `center` (a dict or p numbers). ``"explicit"``: the
            given `positions` (walkers of all ensembles, p).
        key
            Randomness of the start and of the run that follows.

        Returns
        -------
        SamplerState

        Raises
        ------
        ModelSpecError
            Too few or dependent walkers, or no density at any start; says which parameter or
            variable is to blame.

        Notes
        -----
        A start without density (-inf, or a model that fails) is drawn again from the prior, with a
        warning unless ``method="prior"``.
        """
        key = as_key(key)
        core, total = self._core, self.n_walkers * self.n_ensembles
        given = {"center": center, "radius": radius, "positions": positions}
        needed = {"prior": [], "ball": ["center", "radius"], "explicit": ["positions"]}
        if method not in needed:
            raise ModelSpecError(
                f"method={method!r}: use 'prior', 'ball' or 'explicit'."
                + nearest(str(method), needed)
            )
        for name, value in given.items():
            if (value is not None) != (name in needed[method]):
                verb = "needs" if name in needed[method] else "has no use for"
                raise ModelSpecError(f"initialize: method={method!r} {verb} {name}=.")
        start = jax.random.fold_in(key, 2**31)
        if method == "prior":
            theta = self.parameters.sample(total, key=start)
        elif method == "ball":
            middle = self.parameters.points(center, "center")
            theta = ball(total, middle, radius, start)
        else:
            theta = self.parameters.points(positions, "positions")
            if theta.shape[0] != total or theta.ndim != 2:
                raise ModelSpecError(
                    f"positions has shape {theta.shape}, expected {(total, len(self.parameters))}: "
                    f"{self.n_walkers} walkers in {self.n_ensembles} ensemble(s)."
                )
        if method != "prior":
            bad = np.flatnonzero(~np.isfinite(theta).all(axis=1))
            if len(bad):
                raise ModelSpecError(f"start positions of walker {some(bad)} are not finite.")
        z = to_coordinates(self.posterior, theta)
        redraw = prior_redraw(self.parameters, self.posterior, start)
        # A start outside the domain of its transform has no coordinate: drawn again as well.
        outside = ~np.isfinite(z).all(axis=1)
        if outside.any():
            z[outside] = redraw(total, 10_000, z)[outside]
        return core.started(z, key, redraw, told=method != "prior")

    @host64
    def run(
        self,
        state: Any,
        n_steps: Any,
        *,
        thin: Any = 1,
        progress: Any = None,
        checkpoint_every: Any = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        callback: Any = None,
        stop: Any = None,
        callback_every: Any = 100,
        overwrite: bool = False,
        store: str = "draws",
        discard: Any = 0,
    ) -> Any:
        """Run the sampler.

        Parameters
        ----------
        state
            From :meth:`initialize`, or ``chain.state`` of an earlier run to go on from its end.
        n_steps
            Iterations; each walker is moved once in each.
        thin
            Store iterations 0, thin, 2 thin, ... counted from the first one ever.
        progress
            None: a bar on a terminal after 2 s. True, False, or a callable that gets the same as
            `callback`.
        checkpoint_every, checkpoint_path
            Write the chain to a folder every so many steps (1000), and at the end;
            :meth:`resume` goes on from there.
        callback, callback_every
            ``callback(info)`` after every `callback_every` steps; it stops the run by returning
            True. ``info``: iteration, total, acceptance_rate, mean_log_prob, elapsed, remaining,
            tau, ess.
        stop
            ``"tau"`` or ``"mcse"``, or :class:`StopAtTau`, :class:`StopAtMCSE`: end early.
        overwrite
            Replace a chain that is at `checkpoint_path`.
        store
            ``"moments"`` keeps no draws but their mean, covariance and quantiles, for very many walkers:
            the result is a :class:`StreamedMoments`, memory does not grow with the steps.
        discard
            With ``store="moments"``: raw steps, counted from the first one ever, that are left out.

        Returns
        -------
        Chain or StreamedMoments
            Also after Ctrl-C, with what there is and a warning.

        Raises
        ------
        SerializationError
            The checkpoint cannot be written, or there is a chain already.
        """
        options = {
            "progress": progress,
            "callback": callback,
            "stop": stop,
            "callback_every": callback_every,
            "store": store,
            "discard": discard,
        }
        return self._core.run(
            state, n_steps, thin, checkpoint_every, checkpoint_path, overwrite, options
        )

    @host64
    def resume(
        self,
        checkpoint_path: str | os.PathLike[str],
        n_steps: Any,
        *,
        progress: Any = None,
        checkpoint_every: Any = None,
        callback: Any = None,
        stop: Any = None,
        callback_every: Any = 100,
        key: Any = None,
    ) -> Any:
        """Go on with a stored chain for `n_steps` more, bit for bit as if it had never stopped.

        Returns the old and the new draws (or their moments, if those were stored). `key` is only
        compared with that of the chain.

        Raises
        ------
        SerializationError
            The folder holds no complete chain, is damaged, or belongs to another configuration;
            names what differs (parameters, target, model, likelihood, moves, walkers, key).
        """
        options = {
            "progress": progress,
            "callback": callback,
            "stop": stop,
            "callback_every": callback_every,
        }
        return self._core.resume(checkpoint_path, n_steps, checkpoint_every, options, key)


class Core:
    """Sampling of any density by ensembles: shared by EnsembleSampler and ``sample``."""

    def __init__(
        self,
        density: AbstractDensity,
        *,
        n_walkers: int,
        moves: Any = None,
        stretch_scale: Any = 2.0,
        n_ensembles: Any = 1,
        adapt_steps: Any = 0,
        priors: Any = None,
    ) -> None:
        self.density, self.n_walkers, self.priors = density, n_walkers, priors
        self.names = tuple(getattr(density, "names", ()))
        self.moves, self.weights = read_moves(moves, stretch_scale)
        if sum(isinstance(m, EnsembleSlice) for m in self.moves) > 1:
            raise ModelSpecError("moves: one slice move at most.")
        self.n_ensembles = whole("n_ensembles", n_ensembles, 1)
        self.adapt_steps = whole("adapt_steps", adapt_steps, 0)
        if self.adapt_steps and len(self.moves) == 1:
            raise ModelSpecError(
                "adapt_steps: there is only one move, so that no weight can adapt."
            )
        self.blob_shapes = _blob_shapes(density)

    def started(self, z: np.ndarray, key: Any, redraw: Any, *, told: bool) -> SamplerState:
        """Evaluate starts (walkers of all ensembles, p) in sampling coordinates, and check them."""
        z, value, blobs = evaluate_starts(self.density, z, redraw, told=told)
        return self._state(z, value, blobs, key)

    def _state(self, z: np.ndarray, value: np.ndarray, blobs: np.ndarray, key: Any) -> SamplerState:
        e, w = self.n_ensembles, self.n_walkers
        for one in z.reshape(e, w, -1):
            check_geometry(one, self.names)
        inner = start_state(
            z.reshape(e, w, z.shape[1]),
            value.reshape(e, w),
            blobs.reshape(e, w, blobs.shape[1]),
            key,
            self.weights,
        )
        return self._outer(inner)

    def _outer(self, inner: EnsembleState) -> SamplerState:
        z = np.asarray(inner.z).reshape(-1, len(self.names))
        value = np.asarray(inner.log_density).reshape(-1) - _log_jacobian(self.density, z)
        natural = to_natural(self.density, z)
        return SamplerState(natural, value, int(inner.iteration), inner.key, inner)

    def _inner(self, state: Any) -> EnsembleState:
        if not isinstance(state, SamplerState):
            raise ModelSpecError(
                f"state must be a SamplerState from initialize(), got {type(state).__name__}."
            )
        total = self.n_walkers * self.n_ensembles
        if np.shape(state.positions) != (total, len(self.names)):
            raise ModelSpecError(
                f"state.positions has shape {np.shape(state.positions)}, expected "
                f"{(total, len(self.names))}; it belongs to another sampler."
            )
        if state.inner is not None:
            if len(state.inner.weights) != len(self.moves):
                raise ModelSpecError("state belongs to a sampler with other moves.")
            return state.inner
        z = to_coordinates(self.density, np.asarray(state.positions, float))
        redraw = _no_redraw
        made = self.started(z, as_key(state.key), redraw, told=True)
        assert made.inner is not None
        return dataclasses.replace(made.inner, iteration=np.int64(state.iteration))

    # ---- running --------------------------------------------------------------------------------

    def run(
        self, state: Any, n_steps: Any, thin: Any, every: Any, path: Any, overwrite: bool,
        options: dict[str, Any],
    ) -> Any:  # fmt: skip
        """Run from a state; see EnsembleSampler.run."""
        n_steps, thin = whole("n_steps", n_steps, 1), whole("thin", thin, 1)
        discard = options.pop("discard", 0)
        moments = read_store(options.pop("store", "draws"), discard)
        if every is not None and path is None:
            raise ModelSpecError("checkpoint_every= needs checkpoint_path=.")
        inner = self._inner(state)
        header = self._header(thin, int(discard) if moments else None)
        rows = Rows(n_steps // thin + 1)
        if moments:
            rows = stream_of(header, int(inner.iteration))
        job = self._job(inner, n_steps, thin, options, rows)
        if path is not None:
            store = ChainStorage(path)
            store.create(header, overwrite=overwrite)
            store.write(self._no_rows(), self._stored(inner, 0, rows))
            self._save_to(job, store, every, 0)
        return self._finish(job)

    def resume(self, path: Any, n_steps: Any, every: Any, options: dict[str, Any], key: Any) -> Any:
        """Go on from a folder; see EnsembleSampler.resume."""
        n_steps = whole("n_steps", n_steps, 1)
        store = ChainStorage(path)
        header, arrays = store.header(), store.state()
        store.check_configuration(self._configuration(header["thinning"], header.get("discard")))
        if "sampler_key" not in arrays:
            raise SerializationError(
                f"{path}: chains were appended to it, so that its end is no state of the sampler."
            )
        inner = self._restored(arrays)
        if key is not None and not np.array_equal(
            jax.random.key_data(as_key(key)), jax.random.key_data(inner.key)
        ):
            raise SerializationError(
                f"{path} belongs to another run: key differs from what it was started with."
            )
        thin, records = int(header["thinning"]), int(arrays["records"])
        if header.get("store") == "moments":
            rows = stream_of(header, 0)
            rows.restore(arrays)
        else:
            old, rows = store.rows(), Rows(records + n_steps // thin + 1)
            store.truncate(records)
            rows.add(
                samples=np.asarray(old["samples"]),
                log_probs=np.asarray(old["log_probs"]),
                blobs=np.asarray(old["flat_blobs"]),
                accepted=np.asarray(old["accepted"]),
            )
        job = self._job(inner, n_steps, thin, options, rows)
        self._save_to(job, store, every, records)
        return self._finish(job)

    def _job(
        self,
        inner: EnsembleState,
        n_steps: int,
        thin: int,
        options: dict[str, Any],
        rows: Rows,
    ) -> Drive:
        every = whole("callback_every", options.pop("callback_every", 100), 1)
        for name in ("callback", "progress"):
            value = options.get(name)
            if value is not None and not callable(value) and not isinstance(value, bool):
                raise ModelSpecError(f"{name}={value!r} cannot be called.")
        stop = read_stop(options.pop("stop", None))
        if isinstance(rows, Stream):
            stop = streamed_stop(stop)
            if self.blob_shapes is not None:
                raise ModelSpecError("store='moments' keeps no blobs; leave blobs= out.")
        return Drive(
            self.density, self.moves, inner, n_steps, thin, self.adapt_steps, rows,
            callback_every=every, stop=stop, **options,
        )  # fmt: skip

    def _save_to(self, job: Drive, store: ChainStorage, every: Any, records: int) -> None:
        count = records

        def save(inner: EnsembleState, rows: dict[str, Any]) -> None:
            nonlocal count
            if isinstance(job.rows, Stream):
                rows = self._no_rows()
            count += len(rows["samples"])
            store.write(rows, self._stored(inner, count, job.rows))

        job.save = save
        job.save_every = 1000 if every is None else whole("checkpoint_every", every, 1)

    def _finish(self, job: Drive) -> Any:
        inner, why = drive(job)
        done = max(int(inner.iteration), 1)
        info = {
            "method": "ensemble",
            "stopped_by": why,
            "evaluations": float(inner.evaluations),
            "move_weights": np.asarray(inner.weights).tolist(),
        }
        if isinstance(job.rows, Stream):
            if job.save is not None and why != "finished":
                job.save(
                    inner, {}
                )  # the driver saves what ends between checkpoints only with draws
            return StreamedMoments(
                job.rows.finished(), self.names, thinning=job.thin, info=info,
                acceptance_fraction=float(np.mean(np.asarray(inner.accepted) / done)), state=self._outer(inner),
            )  # fmt: skip
        rows = job.rows.since()
        return Chain(
            rows["samples"],
            rows["log_probs"],
            self.names,
            acceptance_fractions=np.asarray(inner.accepted).reshape(-1) / done,
            ensemble=np.repeat(np.arange(self.n_ensembles), self.n_walkers),
            thinning=job.thin,
            accepted=rows["accepted"],
            state=self._outer(inner),
            blobs=shape_blobs(rows["blobs"], self.blob_shapes),
            info=info,
            priors=self.priors,
        )

    # ---- files ----------------------------------------------------------------------------------

    def _configuration(self, thin: int, discard: int | None) -> dict[str, str]:
        texts = {
            **fingerprint(self.density),
            "moves": repr(self.moves) + repr(self.weights.tolist()) + str(self.adapt_steps),
            "n_walkers": str(self.n_walkers),
            "n_ensembles": str(self.n_ensembles),
            "thin": str(thin),
            "blobs": repr(self.blob_shapes),
        }
        if discard is not None:
            texts["store"] = f"moments {discard}"
        return {k: hashlib.sha256(v.encode()).hexdigest()[:16] for k, v in texts.items()}

    def _header(self, thin: int, discard: int | None) -> dict[str, Any]:
        e, w = self.n_ensembles, self.n_walkers
        size = 0 if self.blob_shapes is None else _size(self.blob_shapes)
        own: dict[str, Any] = {"ensemble": np.repeat(np.arange(e), w).tolist()}
        if discard is not None:
            own = {"store": "moments", "n_ensembles": e, "discard": discard}
        return {
            "param_names": list(self.names),
            "n_walkers": e * w,
            "thinning": thin,
            "blob_size": size,
            "blob_shapes": self.blob_shapes,
            "configuration": self._configuration(thin, discard),
            "info": {"method": "ensemble"},
            **own,
        }

    def _no_rows(self) -> dict[str, np.ndarray]:
        total, size = self.n_walkers * self.n_ensembles, 0
        if self.blob_shapes is not None:
            size = _size(self.blob_shapes)
        return {
            "samples": np.zeros((0, total, len(self.names))),
            "log_probs": np.zeros((0, total)),
            "accepted": np.zeros((0, total)),
            "blobs": np.zeros((0, total, size)),
        }

    def _stored(self, inner: EnsembleState, records: int, rows: Rows) -> dict[str, Any]:
        done = max(int(inner.iteration), 1)
        fields = {f.name: getattr(inner, f.name) for f in dataclasses.fields(inner)}
        fields["key"] = jax.random.key_data(inner.key)
        fractions = np.asarray(inner.accepted).reshape(-1) / done
        own = {"acceptance_fractions": fractions}
        if isinstance(rows, Stream):
            own = {"acceptance_fraction": np.mean(fractions), **rows.arrays()}
        return {
            "records": np.int64(records),
            **own,
            "sampler_impl": np.array(str(jax.random.key_impl(inner.key))),
            **{f"sampler_{name}": np.asarray(value) for name, value in fields.items()},
        }

    def _restored(self, arrays: dict[str, np.ndarray]) -> EnsembleState:
        impl = str(arrays["sampler_impl"])
        fields = {f.name: arrays[f"sampler_{f.name}"] for f in dataclasses.fields(EnsembleState)}
        fields["key"] = jax.random.wrap_key_data(jnp.asarray(fields["key"]), impl=impl)
        return EnsembleState(**fields)


@host64
def _blob_shapes(density: AbstractDensity) -> Any:
    return blob_shapes(density.blob_structure()) if isinstance(density, Posterior) else None


def _size(shapes: Any) -> int:
    if isinstance(shapes, Mapping):
        if set(shapes) == {"shape"}:
            return int(np.prod(shapes["shape"]))
        return sum(_size(part) for part in shapes.values())
    return sum(_size(part) for part in shapes)


def _no_redraw(count: int, trip: int, good: np.ndarray) -> np.ndarray:
    raise DataError(
        "state.positions has walkers at which the log density is -inf; use initialize() to place "
        "them."
    )


def _log_jacobian(density: AbstractDensity, z: np.ndarray) -> np.ndarray:
    if not isinstance(density, Posterior) or all(t is None for t in density.prior.transforms):
        return np.zeros(len(z))
    return np.asarray(density.log_jacobian(jnp.asarray(z)))
