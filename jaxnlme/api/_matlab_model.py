"""The model function of ``nlmefit``: how it is called, and the checks at the start values."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, ModelSpecError, some
from jaxnlme.api._matlab_data import MatlabData

__all__ = [
    "MatlabFunction",
    "check_positive",
    "check_start",
    "check_trace",
    "check_used",
    "matlab_function",
]


@dataclasses.dataclass(frozen=True)
class MatlabFunction:
    """``modelfun`` behind one signature, hashed by content so that a second call does not compile.

    ``self(phi, x)`` or ``self(phi, x, v)`` with ``phi`` (p,), ``x`` (n, h) and ``v`` of one group.
    ``per_row`` repeats ``phi`` (and a vector ``v``) for every row of ``x``, as MATLAB's
    ``Vectorization="Full"`` does, and ``"SingleGroup"`` with an observation design.
    """

    modelfun: Callable[..., Any]
    per_row: bool = False
    repeat_v: bool = False
    pass_none: bool = False

    def __call__(self, phi: Any, x: Any, v: Any = None) -> Any:
        if self.per_row:
            phi = jnp.broadcast_to(phi, (x.shape[0], phi.shape[-1]))
            if self.repeat_v and v is not None:
                v = jax.tree.map(lambda a: jnp.broadcast_to(a, (x.shape[0], *a.shape)), v)
        if v is None and not self.pass_none:
            return self.modelfun(phi, x)
        return self.modelfun(phi, x, v)


def matlab_function(
    modelfun: Any, vectorization: str, has_v: bool, has_obs_design: bool
) -> MatlabFunction:
    """Wrap ``modelfun``, after checking how many arguments it takes.

    Raises
    ------
    ModelSpecError
        It is not callable, or its arguments do not fit V.
    """
    if not callable(modelfun):
        raise ModelSpecError(
            f"modelfun = {modelfun!r} is not a function: give modelfun(phi, x) or, with group "
            "predictors V, modelfun(phi, x, v)."
        )
    required, most = _positional(modelfun)
    if has_v and most < 3:
        raise ModelSpecError(
            f"modelfun takes {most} arguments, but V is given: with group predictors it is called "
            "as modelfun(phi, x, v). Add v, or pass V=None."
        )
    if required > 3 or most < 2:
        raise ModelSpecError(
            f"modelfun needs {required if required > 3 else most} arguments: it is called as "
            "modelfun(phi, x), or modelfun(phi, x, v) with group predictors V."
        )
    per_row = vectorization == "Full" or (vectorization == "SingleGroup" and has_obs_design)
    return MatlabFunction(
        modelfun,
        per_row=per_row,
        repeat_v=vectorization == "Full",
        pass_none=not has_v and required == 3,
    )


def _positional(function: Callable[..., Any]) -> tuple[int, int]:
    """Number of positional arguments that ``function`` needs, and the most that it takes."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return 2, 3
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p for p in parameters if p.kind in kinds]
    required = sum(p.default is inspect.Parameter.empty for p in positional)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return required, max(len(positional), 3)
    return required, len(positional)


def _phi_text(phi: np.ndarray) -> str:
    return np.array2string(np.asarray(phi), precision=5, separator=", ")


def check_trace(function: MatlabFunction, data: MatlabData, phi: np.ndarray) -> None:
    """Trace ``modelfun`` for the first group, and check what it returns.

    Raises
    ------
    ModelSpecError
        It is written with NumPy, branches on values, fails, or returns another shape than one value
        per row.
    """
    rows = data.group_rows(0)
    x = data.X[rows]
    v = None if data.V is None else jax.tree.map(lambda a: a[0], data.V)
    where = f"for the first group ({data.labels[0]!r}, phi = {_phi_text(phi)})"
    _check_length(function, phi, x, v, where)
    try:
        shape = jax.eval_shape(function, phi, x, v)
    except (jax.errors.TracerArrayConversionError, jax.errors.TracerIntegerConversionError):
        raise ModelSpecError(
            f"modelfun converts a JAX array to NumPy {where}: write it with jax.numpy (import "
            "jax.numpy as jnp; jnp.exp instead of np.exp or math.exp), or wrap a plain NumPy "
            "function by jn.nlme.from_numpy(modelfun) (host calls, finite differences, slow)."
        ) from None
    except jax.errors.ConcretizationTypeError as error:
        first = str(error).splitlines()[0]
        raise ModelSpecError(
            f"modelfun cannot be traced {where}: {first}. A Python branch (if, while, and, or, "
            "float()) on a value of phi or x is the usual cause: use jnp.where or jax.lax.cond; "
            "for a plain NumPy function use jn.nlme.from_numpy(modelfun)."
        ) from None
    except ModelSpecError:
        raise
    except Exception as error:
        raise ModelSpecError(
            f"modelfun failed at the start values {where}: {type(error).__name__}: {error}"
        ) from error
    _check_shape(shape, len(rows), x, where)


def _check_length(function: MatlabFunction, phi: np.ndarray, x: Any, v: Any, where: str) -> None:
    """JAX clamps an index beyond the end; NumPy does not, so a call on one row of numbers finds it.

    One row whatever the data: nothing is compiled again for other data.
    """
    x = x[:1]
    if function.per_row:
        phi = np.broadcast_to(phi, (len(x), phi.shape[-1]))
        if function.repeat_v and v is not None:
            v = jax.tree.map(lambda a: np.broadcast_to(a, (len(x), *np.shape(a))), v)
    args = (phi, x) if v is None and not function.pass_none else (phi, x, v)
    try:
        function.modelfun(*args)
    except (IndexError, ValueError) as error:
        text = str(error)
        if isinstance(error, IndexError) or "unpack" in text:
            raise ModelSpecError(
                f"modelfun failed at the start values {where}: {text}. phi has {phi.shape[-1]} "
                "model parameters; check that beta0 (or the FE* design) gives one per parameter "
                "that modelfun uses, and that x has the columns that it reads."
            ) from error
    except Exception:  # noqa: BLE001 - traced next, where the message is made
        return


def _check_shape(found: Any, n: int, x: np.ndarray, where: str) -> None:
    if not hasattr(found, "shape"):
        raise ModelSpecError(
            f"modelfun returned a {type(found).__name__} {where}; one array with one value per row "
            f"({n},) is expected."
        )
    if found.shape in ((n,), (n, 1)):
        return
    hint = ""
    if len(found.shape) == 2 and found.shape[0] == n:
        hint = f" x has shape {x.shape}: take its columns as x[:, 0], x[:, 1], ..."
    elif found.shape == ():
        hint = " A constant needs one value per row, for example c + 0 * x[:, 0]."
    raise ModelSpecError(
        f"modelfun returned shape {tuple(found.shape)} {where}; one value per row, shape ({n},), "
        f"is expected.{hint}"
    )


def check_row_by_row(f: np.ndarray, other: np.ndarray, data: MatlabData) -> None:
    """Refuse a model that mixes rows: ``f`` and ``other`` (n,) differ in the padding rows only."""
    changed = ~np.isclose(f, other, rtol=1e-8, atol=1e-300, equal_nan=True)
    if changed.any():
        group = data.codes[np.flatnonzero(changed)].min()
        raise ModelSpecError(
            f"modelfun mixes the rows of a group: in group {data.labels[group]!r} its values "
            "change when other rows are added. Groups are padded to equal length with copies of "
            "their rows, so act row by row; give sums or means over a group as group predictors V."
        )


def check_start(
    f: np.ndarray,
    phi: np.ndarray,
    transforms: Sequence[Any],
    data: MatlabData,
    error_model: str,
) -> None:
    """Check predictions ``f`` (n,) at the start values, ``phi`` (n, p) before ``transforms``.

    Raises
    ------
    ModelSpecError
        A prediction is not finite, or not positive under the exponential error model. The message
        names group, phi and rows.
    """
    bad = np.flatnonzero(~np.isfinite(f))
    if not bad.size:
        return
    group = data.codes[bad].min()
    bad = bad[data.codes[bad] == group]
    found = "NaN or infinity"
    if error_model == "exponential":
        found = "a value that is not positive and finite (ErrorModel='exponential' takes its log)"
    natural = [float(t.forward(v)) for t, v in zip(transforms, phi[bad[0]], strict=True)]
    raise ModelSpecError(
        f"modelfun returned {found} at the start values in group {data.labels[group]!r}, rows "
        f"{some(data.row_index[bad])}, phi = {_phi_text(np.array(natural))}. Change beta0, or keep "
        "the model finite there (jnp.where on the input of log, sqrt and division)."
    )


def check_used(derivatives: list[np.ndarray]) -> None:
    """Refuse a model parameter that no prediction depends on.

    ``derivatives`` are (n, p) arrays at two different points.
    """
    largest = np.max([np.max(np.abs(J), axis=0) for J in derivatives], axis=0)
    idle = np.flatnonzero(largest == 0)
    if idle.size:
        raise ModelSpecError(
            f"model parameter {some(idle + 1)} of {len(largest)} has no effect on modelfun at the "
            "start values and near them: its derivative is zero in every row. Check that beta0 (or "
            "the FE* design) has one value per parameter that modelfun uses, and that no start is "
            "so extreme that its term vanishes."
        )


def check_positive(data: MatlabData) -> None:
    """Refuse responses that the exponential error model cannot take."""
    bad = np.flatnonzero(data.y <= 0)
    if bad.size:
        raise DataError(
            f"ErrorModel='exponential' takes log(y), but y <= 0 in {bad.size} rows (rows "
            f"{some(data.row_index[bad])}). Leave these rows out, or use another error model."
        )
