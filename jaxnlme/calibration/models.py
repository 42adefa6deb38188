"""The models that are calibrated: JAX functions, or plain Python models evaluated by a host pool."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import DataError, ModelSpecError, nearest, some
from jaxnlme._precision import host64
from jaxnlme._typing import Array
from jaxnlme.numerics.mcmc import map_points

__all__ = ["ModelRunner"]


class FunctionModel(eqx.Module):
    """A JAX model function: ``model(params: dict) -> {variable: array over times}``."""

    function: Callable = eqx.field(static=True)

    def __call__(self, params: dict[str, Any]) -> Any:
        return self.function(params)


class PartitionedModel(eqx.Module):
    """A user's ``equinox.Module``: its float arrays are traced, all else is part of the program."""

    arrays: Any
    static: _Static = eqx.field(static=True)

    def __call__(self, params: dict[str, Any]) -> Any:
        return eqx.combine(self.arrays, self.static.tree)(params)


class _Static:
    """What is not an array in a model, hashable by content."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        leaves, self.structure = jax.tree.flatten(tree)
        self.leaves = tuple(leaves)

    def __hash__(self) -> int:
        return hash((self.leaves, self.structure))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and (
            self.leaves == other.leaves and self.structure == other.structure
        )


def as_model(model: Any) -> eqx.Module:
    """Return a JAX model as a pytree that compiled programs take as an argument."""
    if not isinstance(model, eqx.Module):
        return FunctionModel(model)
    arrays, rest = eqx.partition(model, lambda x: eqx.is_array(x) or isinstance(x, float))
    return PartitionedModel(arrays, _Static(rest))


class HostModel(eqx.Module):
    """A plain Python model called from compiled programs; one call gets all points of a batch."""

    pool: HostPool = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    shapes: tuple[tuple[str, int], ...] = eqx.field(static=True)

    def __call__(self, params: dict[str, Any]) -> dict[str, Array]:
        theta = jnp.stack([params[name] for name in self.names])
        if theta.dtype != jnp.float64:
            raise TypeError("a plain Python model is evaluated in float64; call it through a door.")
        # As 32-bit words: callbacks run in threads of JAX's own, where 64-bit may be off.
        words = jax.lax.bitcast_convert_type(theta, jnp.uint32)
        out = {name: jax.ShapeDtypeStruct((n, 2), jnp.uint32) for name, n in self.shapes}
        found = jax.pure_callback(self._batch, out, words, vmap_method="broadcast_all")
        return {v: jax.lax.bitcast_convert_type(y, jnp.float64) for v, y in found.items()}

    def _batch(self, words: Any) -> dict[str, np.ndarray]:
        theta = np.ascontiguousarray(np.asarray(words)).view(np.float64)[..., 0]
        runs = self.pool.map(self.names, theta.reshape(-1, theta.shape[-1]))
        out = {}
        for k, (name, n) in enumerate(self.shapes):
            rows = np.ascontiguousarray(np.stack([run[k] for run in runs]), np.float64)
            out[name] = rows.view(np.uint32).reshape(*theta.shape[:-1], n, 2)
        return out


@dataclasses.dataclass(eq=False)
class HostPool:
    """Workers that run a plain Python model; a run that fails gives NaN and is counted."""

    factory: Callable
    shapes: tuple[tuple[str, int], ...]
    times: Mapping[str, np.ndarray]
    workers: int
    kind: str
    failures: int = 0
    last_failure: str = ""
    _executor: Any = None
    _lock: Any = dataclasses.field(default_factory=threading.Lock)

    def map(self, names: tuple[str, ...], points: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """Run the model at each point; a tuple of arrays per point, in order of the variables."""
        tasks = [dict(zip(names, map(float, row), strict=True)) for row in points]
        arguments = (self.factory, self.shapes, self.times)
        if self.workers == 1:
            found = [_one_run(*arguments, task) for task in tasks]
        else:
            futures = [self._pool().submit(_one_run, *arguments, task) for task in tasks]
            found = [future.result() for future in futures]
        failed = [message for _, message in found if message]
        if failed:
            with self._lock:
                self.failures += len(failed)
                self.last_failure = failed[-1]
        return [arrays for arrays, _ in found]

    def _pool(self) -> Any:
        if self._executor is None:
            if self.kind == "process":
                # Not fork: JAX is multithreaded.
                context = multiprocessing.get_context("spawn")
                self._executor = concurrent.futures.ProcessPoolExecutor(self.workers, context)
            else:
                self._executor = concurrent.futures.ThreadPoolExecutor(self.workers)
        return self._executor

    def close(self) -> None:
        """Stop the workers."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


def _one_run(
    factory: Callable, shapes: tuple, times: Mapping[str, np.ndarray], params: dict[str, float]
) -> tuple[tuple[np.ndarray, ...], str]:
    try:
        made = factory(params)
        output = made.run() if hasattr(made, "run") else made
        return tuple(_series(output, name, n, times) for name, n in shapes), ""
    except Exception as error:  # noqa: BLE001 - a model may fail in any way; it is counted
        nothing = tuple(np.full(n, np.nan) for _, n in shapes)
        return nothing, f"{type(error).__name__}: {error} at {params}"


def _series(output: Any, name: str, n: int, times: Mapping[str, np.ndarray]) -> np.ndarray:
    values = output[name]
    if isinstance(values, Mapping):  # {time: value}
        return np.asarray([values.get(t, np.nan) for t in times[name].tolist()], float)
    array = np.asarray(values, float)
    if array.shape != (n,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({n},)")
    return array


class ModelRunner:
    """A model, the variables it gives, and the times at which it gives them.

    Parameters
    ----------
    model
        ``model(params: dict of scalars) -> {variable: array over times}`` in ``jax.numpy``; it is
        compiled, vectorised and differentiated. Define it once at module level: a new function
        object compiles anew. An ``equinox.Module`` with ``__call__`` carries its own arrays.
    output_variables
        Variables to read from the output. Default: those of the target.
    times
        Times of the output arrays, one array or a dict by variable. Default: the output has the observed
        times, in the order of the target.
    model_factory
        A plain Python model instead: ``model_factory(params)`` returns the output, as arrays or as
        ``{variable: {time: value}}``, or an object whose ``run()`` does. A run that raises or gives
        NaN has log-likelihood -inf; :attr:`failures` counts those that raised.
    workers
        Parallel runs of a plain Python model. Default 1.
    pool
        ``"thread"`` suits models that wait or release the interpreter; ``"process"`` all others,
        and needs a `model_factory` that can be pickled (a function of a module).
    param_names
        Order of the parameters for vectors. Default: that of the ParameterSet it is used with.

    Raises
    ------
    ModelSpecError
        Both or none of `model` and `model_factory`, or options that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> def line(params):
    ...     return {"y": params["a"] + params["b"] * np.arange(3.0)}
    >>> runner = ModelRunner(line, output_variables=["y"], times=[0, 1, 2])
    >>> runner.run({"a": 1.0, "b": 2.0})
    {'y': array([1., 3., 5.])}
    """

    def __init__(
        self,
        model: Any = None,
        output_variables: Sequence[str] | str | None = None,
        *,
        times: Any = None,
        model_factory: Any = None,
        workers: Any = None,
        pool: str = "thread",
        param_names: Sequence[str] | None = None,
    ) -> None:
        if (model is None) == (model_factory is None):
            raise ModelSpecError(
                "ModelRunner: give either model= (JAX) or model_factory= (Python)."
            )
        for name, value in {"model": model, "model_factory": model_factory}.items():
            if value is not None and not callable(value):
                raise ModelSpecError(f"ModelRunner: {name}={value!r} cannot be called.")
        if model is not None and workers is not None:
            raise ModelSpecError("workers= is for model_factory=; a JAX model is vectorised.")
        if pool not in ("thread", "process"):
            raise ModelSpecError(f"pool={pool!r}: use 'thread' or 'process'.")
        if isinstance(output_variables, str):
            output_variables = [output_variables]
        self.output_variables = None if output_variables is None else list(output_variables)
        self.model, self.model_factory, self.pool_kind = model, model_factory, pool
        self.workers = 1 if workers is None else int(workers)
        if self.workers < 1:
            raise ModelSpecError(
                f"workers={workers}: at least 1; this machine has {os.cpu_count()}."
            )
        self.times = _read_times(times)
        self.param_names = None if param_names is None else list(param_names)
        self._pools: dict[Any, HostPool] = {}

    # ---- for calibration problems ----------------------------------------------------------------

    def bound(self, target_times: Mapping[str, np.ndarray], names: Sequence[str]) -> eqx.Module:
        """Return the model as a pytree that gives the target's variables."""
        if self.param_names is None:
            self.param_names = list(names)
        if self.output_variables is not None:
            missing = [v for v in target_times if v not in self.output_variables]
            if missing:
                raise ModelSpecError(
                    f"the target has variable {some(missing)}, which is not in output_variables "
                    f"{self.output_variables}." + nearest(missing[0], self.output_variables)
                )
        if self.model is not None:
            return as_model(self.model)
        times = {v: self.times_of(v, t) for v, t in target_times.items()}
        return HostModel(
            self._pool(times), tuple(names), tuple((v, len(t)) for v, t in times.items())
        )

    def _pool(self, times: dict[str, np.ndarray]) -> HostPool:
        """One pool per set of times: compiled programs are kept by its identity."""
        key = tuple((v, t.tobytes()) for v, t in times.items())
        if key not in self._pools:
            shapes = tuple((v, len(t)) for v, t in times.items())
            factory = self.model_factory
            assert factory is not None
            self._pools[key] = HostPool(factory, shapes, times, self.workers, self.pool_kind)
        return self._pools[key]

    def times_of(self, variable: str, observed: np.ndarray | None = None) -> np.ndarray:
        """Return the times of one output variable."""
        if isinstance(self.times, dict):
            if variable not in self.times:
                raise ModelSpecError(
                    f"times has no entry for {variable!r}.{nearest(variable, self.times)}"
                )
            return self.times[variable]
        if self.times is not None:
            return self.times
        if observed is None:
            raise ModelSpecError("ModelRunner: give times= to run a plain Python model on its own.")
        return observed

    def index(self, variable: str, observed: np.ndarray, default: np.ndarray) -> np.ndarray:
        """Return where observed times stand in the output, whose times are `default` if not given."""
        have = self.times_of(variable, default)
        order = np.argsort(have, kind="stable")
        place = np.clip(np.searchsorted(have[order], observed), 0, len(have) - 1)
        near = np.stack([order[place], order[np.maximum(place - 1, 0)]])
        gap = np.abs(have[near] - observed)
        best = near[np.argmin(gap, axis=0), np.arange(len(observed))]
        tolerance = 1e-9 * max(1.0, float(np.abs(have).max()))
        lost = np.abs(have[best] - observed) > tolerance
        if lost.any():
            raise DataError(
                f"{variable}: observed at {some(observed[lost])}, where the model gives no output; "
                f"its times run from {have.min():g} to {have.max():g} ({len(have)} of them)."
            )
        return best

    @property
    def failures(self) -> int:
        """Runs of a plain Python model that raised so far."""
        return sum(pool.failures for pool in self._pools.values())

    @property
    def last_failure(self) -> str:
        """What the last failed run said."""
        return next((p.last_failure for p in reversed(self._pools.values()) if p.last_failure), "")

    def close(self) -> None:
        """Stop the workers of a plain Python model."""
        for pool in self._pools.values():
            pool.close()

    # ---- what users call ------------------------------------------------------------------------

    def run(self, params: Any) -> dict[str, np.ndarray]:
        """Run the model once; `params` is a dict, or a vector in the order of `param_names`."""
        points, names = self._points(params)
        if points.ndim != 1:
            raise DataError(
                f"params has shape {points.shape}; run() takes one point, run_batch() many."
            )
        return {name: rows[0] for name, rows in self._run(points[None], names).items()}

    def run_batch(self, params: Any) -> dict[str, np.ndarray]:
        """Run the model at (n, p) points; arrays (n, times) by variable, NaN where a run failed."""
        points, names = self._points(params)
        if points.ndim != 2:
            raise DataError(f"params has shape {points.shape}; run_batch() takes (n, p) points.")
        return self._run(points, names)

    def _points(self, params: Any) -> tuple[np.ndarray, tuple[str, ...]]:
        if isinstance(params, Mapping):
            names = tuple(self.param_names or params)
            missing = [n for n in names if n not in params]
            if missing:
                raise ModelSpecError(f"params: no value for {some(missing)}.")
            return np.stack([np.asarray(params[n], float) for n in names], axis=-1), names
        if self.param_names is None:
            raise ModelSpecError("params is a vector: give a dict, or ModelRunner(param_names=).")
        points = np.asarray(params, float)
        if points.shape[-1:] != (len(self.param_names),):
            raise DataError(
                f"params has shape {points.shape}, but there are {len(self.param_names)} parameters "
                f"({some(self.param_names, 12)})."
            )
        return points, tuple(self.param_names)

    @host64
    def _run(self, points: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
        if self.model_factory is not None:
            if self.output_variables is None:
                raise ModelSpecError("ModelRunner: give output_variables= to run it on its own.")
            times = {v: self.times_of(v) for v in self.output_variables}
            runs = self._pool(times).map(names, points)
            return {v: np.stack([run[k] for run in runs]) for k, v in enumerate(times)}
        output = dict(_run_many(as_model(self.model), names, points))
        wanted = output if self.output_variables is None else self.output_variables
        missing = [v for v in wanted if v not in output]
        if missing:
            raise ModelSpecError(
                f"the model gives no {some(missing)}; its output has {some(output)}."
                + nearest(missing[0], output)
            )
        return {v: output[v] for v in wanted}


@functools.partial(outer_jit, static_argnums=1)
def _run_many(model: Any, names: tuple[str, ...], points: Array) -> dict[str, Array]:
    def one(theta: Array) -> dict[str, Array]:
        params = {name: theta[k] for k, name in enumerate(names)}
        return {v: jnp.asarray(y, theta.dtype) for v, y in model(params).items()}

    return map_points(one, points)


def _read_times(times: Any) -> Any:
    if times is None:
        return None
    if isinstance(times, Mapping):
        return {str(v): _one_times(t) for v, t in times.items()}
    return _one_times(times)


def _one_times(times: Any) -> np.ndarray:
    array = np.asarray(times, float)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise DataError(f"times must be a vector of finite numbers, got shape {array.shape}.")
    if len(np.unique(array)) < len(array):
        raise DataError("times of the model occur more than once.")
    return array
