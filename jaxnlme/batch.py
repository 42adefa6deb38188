"""Many data sets in one compiled program: stack padded problems, fit every lane, share the devices.

Nothing here knows how a model is fitted: a fit is any function of one problem. What padding means
for a kind of problem is registered with :func:`common_shape`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxnlme._cache import outer_jit
from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme._precision import check_precision
from jaxnlme._typing import PyTree
from jaxnlme.nlme.problem import NLMEProblem

__all__ = ["fit_many", "stack"]

_ACCELERATOR_CHUNK = 1024


def stack(problems: PyTree) -> PyTree:
    """Stack problems of one model: every array gets a leading axis, one entry per data set.

    Problems of different size are padded to a common shape: rows and groups of weight 0 that hold
    copies of real ones.

    Parameters
    ----------
    problems
        List of problems with the same model, transforms, covariance and error model. Any pytrees
        of arrays of equal shapes will do too.

    Returns
    -------
    problem
        Of the same class, numpy arrays with a leading axis.

    Raises
    ------
    DataError
        There is no problem.
    ModelSpecError
        Problems differ in more than their sizes; the message names the field.

    Examples
    --------
    >>> import numpy as np
    >>> stack([{"y": np.zeros(3)}, {"y": np.ones(3)}])["y"].shape
    (2, 3)
    """
    if not isinstance(problems, list | tuple):
        raise ModelSpecError(
            f"stack takes a list of problems, but got one {type(problems).__name__}: write "
            "stack([problem])."
        )
    if not problems:
        raise DataError("stack: the list of problems is empty; there is nothing to fit.")
    problems = common_shape(problems[0], list(problems))
    first = problems[0]
    for k, other in enumerate(problems[1:], 1):
        if difference := _difference(first, other, ""):
            raise ModelSpecError(
                f"problems 0 and {k} cannot share one program: {difference}. Fit them apart."
            )
    real = [d for leaf in jax.tree.leaves(first) if _is_real(d := getattr(leaf, "dtype", None))]
    number = np.result_type(*real) if real else np.dtype(jnp.result_type(float))
    return jax.tree.map(functools.partial(_stack_leaf, number), *problems)


def _is_real(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and np.issubdtype(dtype, np.floating)


def _stack_leaf(number: np.dtype, *leaves: Any) -> Any:
    if any(isinstance(leaf, Tracer) or _is_key(leaf) for leaf in leaves):
        return jnp.stack(leaves)
    if all(isinstance(leaf, float) for leaf in leaves):  # must not widen a float32 problem
        return np.array(leaves, dtype=number)
    return np.stack([np.asarray(leaf) for leaf in leaves])


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _difference(a: Any, b: Any, path: str) -> str:
    """Say where two problems differ in anything but numbers; empty when they agree."""
    name = path or "the problem"
    if type(a) is not type(b):
        arrays = isinstance(a, jax.Array | np.ndarray) and isinstance(b, jax.Array | np.ndarray)
        if not arrays:
            return f"{name} is a {type(a).__name__} against a {type(b).__name__}"
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            inner = f"{path}.{field.name}".lstrip(".")
            parts = (getattr(a, field.name), getattr(b, field.name))
            if field.metadata.get("static", False):
                if parts[0] != parts[1]:
                    return f"{inner} is {parts[0]!r} against {parts[1]!r}"
            elif found := _difference(*parts, inner):
                return found
        return ""
    if isinstance(a, dict) and list(a) != list(b) and set(a) != set(b):
        return f"{name} has the entries {list(a)} against {list(b)}"
    if isinstance(a, dict | list | tuple):
        if len(a) != len(b):
            return f"{name} has {len(a)} entries against {len(b)}"
        for key in a if isinstance(a, dict) else range(len(a)):
            if found := _difference(a[key], b[key], f"{path}[{key!r}]"):
                return found
        return ""
    if np.shape(a) != np.shape(b):
        return f"{name} has shape {np.shape(a)} against {np.shape(b)}"
    kinds = [getattr(leaf, "dtype", type(leaf)) for leaf in (a, b)]
    if kinds[0] != kinds[1]:
        return f"{name} is of type {kinds[0]} against {kinds[1]}"
    if jax.tree.structure(a) != jax.tree.structure(b):
        return f"{name} is {a!r} against {b!r}"
    return ""


@functools.singledispatch
def common_shape(first: Any, problems: list) -> list:
    """Pad problems of one kind (that of ``first``) to one shape; register one function per kind."""
    del first
    return problems


@common_shape.register
def _(first: NLMEProblem, problems: list) -> list:
    if not all(isinstance(p, NLMEProblem) for p in problems):
        return problems
    groups = max(p.y.shape[0] for p in problems)
    if groups > first.chunk:  # the likelihood cuts groups into equal chunks
        groups = -(-groups // first.chunk) * first.chunk
    rows = max(p.y.shape[1] for p in problems)
    varies = {
        name: tuple(
            any(getattr(p, name).shape[axis] > 1 for p in problems if p.y.shape[axis] > 1)
            for axis in (0, 1)
        )
        for name in ("A", "B")
    }
    return [_pad_nlme(p, groups, rows, varies) for p in problems]


def _pad_nlme(problem: NLMEProblem, groups: int, rows: int, varies: dict) -> NLMEProblem:
    def cells(a: Any) -> Any:
        return _repeat_first(_repeat_first(a, groups, 0), rows, 1)

    def design(name: str) -> Any:
        # An axis of length 1 says "constant along it"; it grows only where some problem varies.
        a = getattr(problem, name)
        for axis, size in enumerate((groups, rows)):
            if varies[name][axis]:
                a = _repeat_first(a, size, axis)
        return a

    def of_groups(a: Any) -> Any:
        return _repeat_first(a, groups, 0)

    m, n = problem.y.shape
    pad = ((0, groups - m), (0, rows - n))
    weights = problem.weights
    if pad != ((0, 0), (0, 0)):
        numbers = jnp if isinstance(weights, Tracer) else np
        weights = numbers.pad(weights if numbers is jnp else np.asarray(weights), pad)
    return eqx.tree_at(
        lambda p: (p.y, p.weights, p.x, p.v, p.A, p.B),
        problem,
        (
            cells(problem.y),
            weights,
            jax.tree.map(cells, problem.x),
            jax.tree.map(of_groups, problem.v),
            design("A"),
            design("B"),
        ),
        is_leaf=lambda leaf: leaf is None,
    )


def _repeat_first(a: Any, size: int, axis: int) -> Any:
    """Lengthen an axis with copies of its first entry, so that models see real numbers."""
    missing = size - a.shape[axis]
    if missing <= 0:
        return a
    numbers = jnp if isinstance(a, Tracer) else np
    a = a if numbers is jnp else np.asarray(a)
    first = numbers.take(a, np.array([0]), axis=axis)
    return numbers.concatenate([a, numbers.repeat(first, missing, axis=axis)], axis=axis)


def fit_many(
    fit: Callable[[Any], Any],
    problems: PyTree,
    *,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> PyTree:
    """Fit every data set of a stacked problem in one compiled program.

    On CPU the lanes run one after another on each device (a lane that needs many steps costs its
    own time only) and the devices share the lanes; on GPU and TPU chunks of lanes run in lockstep.

    Parameters
    ----------
    fit
        Function of one problem, for example
        ``functools.partial(jn.nlme.fit, method=jn.nlme.FOCE())``. Partials of equal content share
        one compiled program; floats and arrays among their arguments may change without compiling
        anew. A lambda compiles at each definition: define a function once.
    problems
        A stacked problem (see :func:`stack`), or a list of problems, which is stacked first. Any
        pytree of arrays with one leading axis will do.
    chunk
        Lanes that run in lockstep (``vmap``). Default: 1 on CPU, 1024 elsewhere.
    mesh
        Devices that share the lanes. Default: all devices of the default platform. A CPU counts
        as one device unless ``jax.config.update("jax_num_cpu_devices", n)`` came before the first
        computation.

    Returns
    -------
    fit
        What ``fit`` returns, with a leading axis. A lane that fails (NaN data, no convergence) has
        its own result code and leaves all other lanes bit-identical.

    Raises
    ------
    TypeError
        float64 arrays while 64-bit is off.
    ModelSpecError
        The arrays have no common leading axis, or an option cannot be used.

    Notes
    -----
    Results of one lane agree bit by bit for one ``chunk``; other chunk sizes may differ in the last
    digits.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np
    >>> def mean(problem):
    ...     return jnp.mean(problem["y"])
    >>> fit_many(mean, {"y": np.array([[1, 3], [2, 6]], dtype="f4")}).tolist()
    [2.0, 4.0]
    """
    if isinstance(problems, list):
        problems = stack(problems)
    function, options, kept = _split(fit)
    check_precision(problems, options)
    lanes = _lanes(problems)
    mesh = _lane_mesh(mesh, lanes)
    per_device = -(-lanes // mesh.size)
    if chunk is None:
        chunk = 1 if mesh.devices.flat[0].platform == "cpu" else _ACCELERATOR_CHUNK
    elif chunk < 1:
        raise ModelSpecError(f"chunk={chunk}: at least one lane must run at a time.")
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problems, options)))
    run = _run if traced else _compiled_run
    return run(problems, options, function, kept, min(chunk, per_device), mesh)


def _split(fit: Callable) -> tuple[Callable, list, tuple]:
    """Split a function into a hashable part, which keys the program, and numbers, which do not."""
    partial = isinstance(fit, functools.partial)
    function = fit.func if partial else fit
    leaves, structure = jax.tree.flatten((fit.args, fit.keywords) if partial else ((), {}))
    moving = [isinstance(v, jax.Array | np.ndarray | np.generic | float) for v in leaves]
    kept = tuple(
        None if moves else (type(value), value)  # 1 == True, but they are different options
        for value, moves in zip(leaves, moving, strict=True)
    )
    for part in (function, kept, structure):
        try:
            hash(part)
        except TypeError as error:
            raise ModelSpecError(
                f"fit: {part!r} cannot be hashed ({error}), so its compiled program could not be "
                "found again. Pass a module-level function, and options that are numbers, arrays, "
                "strings or equinox modules."
            ) from error
    numbers = [value for value, moves in zip(leaves, moving, strict=True) if moves]
    return function, numbers, (kept, structure)


def _lanes(problems: PyTree) -> int:
    leaves = jax.tree.leaves(problems)
    sizes = {np.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes == {()}:
        found = ", ".join(sorted("none" if not s else str(s[0]) for s in sizes)) or "no arrays"
        raise ModelSpecError(
            "problems: every array needs the same leading axis, one entry per data set, but the "
            f"leading sizes are {found}. Pass a list of problems, or stack([...]) of it."
        )
    (lanes,) = sizes.pop()
    if lanes == 0:
        raise DataError("problems: the leading axis is empty; there is nothing to fit.")
    return lanes


def _lane_mesh(mesh: Mesh | None, lanes: int) -> Mesh:
    """Return the mesh with automatic axes: explicit ones would need sharding types in the model."""
    if mesh is None:
        devices = np.array(jax.local_devices()[:lanes])
        return Mesh(devices, ("lanes",), axis_types=(AxisType.Auto,))
    if mesh.is_multi_process:
        raise ModelSpecError(
            f"mesh={mesh}: it spans several processes. Pass a mesh of this process's devices "
            "(jax.local_devices()) and a share of the data sets to each process."
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def _run(problems, options, function, kept, chunk, mesh):
    lanes = jax.tree.leaves(problems)[0].shape[0]
    # One shape for all devices and all chunks: a remainder would be a second copy of the program.
    missing = -lanes % (mesh.size * chunk)
    leaves, structure = kept

    def one(problem, options):
        numbers = iter(options)
        values = [next(numbers) if leaf is None else leaf[1] for leaf in leaves]
        args, keywords = jax.tree.unflatten(structure, values)
        return function(problem, *args, **keywords)

    def share(problems, options):
        return jax.lax.map(
            lambda problem: one(problem, options),
            problems,
            batch_size=None if chunk == 1 else chunk,
        )

    if missing:
        problems = jax.tree.map(
            lambda a: jnp.concatenate([a, jnp.repeat(a[:1], missing, axis=0)]), problems
        )
    if mesh.size > 1:
        split = PartitionSpec(mesh.axis_names)
        # check_vma: the loops of a fit carry constants that no lane varies.
        share = jax.shard_map(
            share, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split, check_vma=False
        )
    fits = share(problems, options)
    return jax.tree.map(lambda a: a[:lanes], fits) if missing else fits


_compiled_run = outer_jit(_run, static_argnums=(2, 3, 4, 5))


def __getattr__(name: str) -> Any:
    if name == "shard":
        raise ModelSpecError("jaxnlme.batch.shard is not built yet; built: fit_many, stack.")
    raise AttributeError(f"module 'jaxnlme.batch' has no attribute {name!r}")
