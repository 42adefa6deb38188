"""MATLAB's name-value arguments of ``nlmefit`` and its ``statset``, read into one record.

Names are matched without regard to case; the snake_case spelling of each name works too and reads
selections 0-based. Only values are checked here; sizes are checked against the data later.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError, nearest

__all__ = ["NlmefitOptions", "StatsetOptions", "parse_options", "statset"]

# MATLAB's name -> our snake_case spelling, which is also the field of NlmefitOptions.
NAMES = {
    "FEParamsSelect": "fe_params_select",
    "FEConstDesign": "fe_const_design",
    "FEGroupDesign": "fe_group_design",
    "FEObsDesign": "fe_obs_design",
    "REParamsSelect": "re_params_select",
    "REConstDesign": "re_const_design",
    "REGroupDesign": "re_group_design",
    "REObsDesign": "re_obs_design",
    "ApproximationType": "approximation_type",
    "Vectorization": "vectorization",
    "CovParameterization": "cov_parameterization",
    "CovPattern": "cov_pattern",
    "ParamTransform": "param_transform",
    "ErrorModel": "error_model",
    "ErrorParameters": "error_parameters",
    "RefineBeta0": "refine_beta0",
    "Options": "options",
    "OptimFun": "optim_fun",
}
EXTRA = {"missing": "missing"}  # ours, not MATLAB's
ONLY_NLMEFITSA = (
    "Cov0 ComputeStdErrors LogLikMethod NBurnIn NChains NIterations NMCMCIterations Replicates"
).split()

_LOWER = {name.lower(): name for name in NAMES}
_SNAKE = {snake: name for name, snake in NAMES.items()}

CHOICES = {
    "ApproximationType": ("LME", "RELME", "FO", "FOCE"),
    "Vectorization": ("SinglePhi", "SingleGroup", "Full"),
    "CovParameterization": ("logm", "chol"),
    "ErrorModel": ("constant", "proportional", "combined", "exponential"),
    "OptimFun": ("fminsearch", "fminunc"),
    "missing": ("raise", "drop"),
}
TRANSFORMS = ("identity", "log", "probit", "logit")  # ParamTransform 0, 1, 2, 3

DERIV_STEP = float(np.finfo(float).eps ** (1 / 3))
STATSET = {
    "DerivStep": DERIV_STEP,
    "Display": "off",
    "FunValCheck": "on",
    "Jacobian": "off",
    "MaxIter": 200,
    "OutputFcn": None,
    "TolFun": 1e-4,
    "TolX": 1e-4,
}
# Fields of MATLAB's statset that its nlmefit does not read.
_STATSET_OTHERS = (
    "GradObj MaxFunEvals Robust RobustWgtFun Streams TolBnd TolTypeFun TolTypeX Tune "
    "UseParallel UseSubstreams WgtFun"
).split()
DISPLAY = ("off", "final", "iter")


@dataclasses.dataclass(frozen=True)
class Selection:
    """A parameter selection and the base of its indices (1 as in MATLAB, 0 in snake_case)."""

    values: np.ndarray
    base: int
    name: str

    @property
    def logical(self) -> bool:
        return self.values.dtype == bool


@dataclasses.dataclass(frozen=True)
class Design:
    """A design argument: ``kind`` is const, group or obs; ``values`` (p, k), (p, k, m or n)."""

    kind: str
    values: np.ndarray
    name: str


@dataclasses.dataclass(frozen=True)
class NlmefitOptions:
    """What the name-value arguments of one ``nlmefit`` call say."""

    fixed: Selection | Design | None = None
    random: Selection | Design | None = None
    approximation_type: str = "LME"
    vectorization: str = "SinglePhi"
    cov_parameterization: str = "logm"
    cov_pattern: np.ndarray | None = None
    param_transform: tuple[int, ...] | None = None
    error_model: str = "constant"
    error_parameters: np.ndarray | None = None
    refine_beta0: bool = True
    optim_fun: str = "fminsearch"
    missing: str = "raise"
    options: StatsetOptions = dataclasses.field(default_factory=lambda: StatsetOptions({}))

    @property
    def follows_matlab(self) -> bool:
        """True where the fit takes MATLAB's path step by step, not the shortest one to the fixed point."""
        return self.approximation_type in ("LME", "RELME") and self.optim_fun == "fminsearch"

    @property
    def difference_step(self) -> float | None:
        """DerivStep where the fit takes differences as MATLAB does, None where derivatives are exact."""
        differ = self.follows_matlab and self.options.Jacobian == "off"
        return self.options.DerivStep if differ else None


class StatsetOptions(Mapping[str, Any]):
    """MATLAB's ``statset('nlmefit')`` structure: attribute and dict access, read only.

    ``given`` names the fields that were set; the others hold MATLAB's defaults.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.given = tuple(name for name in STATSET if name in fields)
        self._values = {**STATSET, **fields}

    def __getitem__(self, name: str) -> Any:
        return self._values[_statset_name(name)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except TypeError as error:
            raise AttributeError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "statset(" + ", ".join(f"{k}={v!r}" for k, v in self._values.items()) + ")"


def statset(*args: Any, **fields: Any) -> StatsetOptions:
    """Return options for ``nlmefit(..., Options=...)``, as MATLAB's ``statset`` does.

    Parameters
    ----------
    *args
        Nothing, ``"nlmefit"`` or an older options object; then names and values in turn.
    **fields
        ``DerivStep Display FunValCheck Jacobian MaxIter OutputFcn TolFun TolX``, in any case, or
        in snake_case.

    Returns
    -------
    StatsetOptions

    Raises
    ------
    TypeError
        A field that ``statset`` does not know.
    ModelSpecError
        A value that the field cannot take.

    Examples
    --------
    >>> options = statset("nlmefit", TolX=1e-6)
    >>> options.TolX, options.MaxIter, options.given
    (1e-06, 200, ('TolX',))
    """
    rest = list(args)
    start: dict[str, Any] = {}
    if rest and isinstance(rest[0], Mapping):
        start = _explicit(rest.pop(0))
    elif len(rest) % 2:
        name = rest.pop(0)
        if str(name).lower() != "nlmefit":
            raise ModelSpecError(
                f"statset({name!r}) is not known here: use statset('nlmefit'), or names and values "
                "such as statset(TolX=1e-6)."
            )
    if len(rest) % 2:
        raise ModelSpecError(
            f"statset: {len(rest)} arguments after the first cannot be paired into names and "
            "values; write statset('TolX', 1e-6) or statset(TolX=1e-6)."
        )
    pairs = [*zip(rest[::2], rest[1::2], strict=True), *fields.items()]
    return StatsetOptions(_read_fields(pairs, start))


def _explicit(options: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(options, StatsetOptions):
        return {name: options[name] for name in options.given}
    return _read_fields(list(options.items()), {})


def _read_fields(pairs: Sequence[tuple[Any, Any]], start: dict[str, Any]) -> dict[str, Any]:
    out, seen = dict(start), set()
    for key, value in pairs:
        name = _statset_name(key)
        if name in seen:
            raise TypeError(f"statset field {name} is given twice (as {key!r} too); give it once.")
        seen.add(name)
        out[name] = _READ[name](name, value)
    return out


def _statset_name(key: Any) -> str:
    plain = str(key).replace("_", "").lower()
    for name in STATSET:
        if name.lower() == plain:
            return name
    known = [n for n in _STATSET_OTHERS if n.lower() == plain]
    if known:
        raise TypeError(
            f"nlmefit does not read the statset field {known[0]!r}; it reads {', '.join(STATSET)}."
        )
    raise TypeError(f"statset has no field {key!r}." + nearest(str(key), STATSET))


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not (np.isfinite(number) and number > 0):
        raise ModelSpecError(f"Options.{name} = {value!r}: give a positive number.")
    return number


def _steps(name: str, value: Any) -> int:
    number = _positive(name, value)
    if number != int(number):
        raise ModelSpecError(f"Options.{name} = {value!r}: give a positive whole number.")
    return int(number)


def _deriv_step(name: str, value: Any) -> float:
    steps = np.unique(np.asarray(value, dtype=float))
    if steps.size != 1:
        raise ModelSpecError(
            f"Options.DerivStep = {value!r}: one step for all parameters is supported. With "
            "Jacobian='on' derivatives are exact (automatic differentiation) and need none."
        )
    return _positive(name, steps[0])


def _switch(name: str, value: Any) -> str:
    word = {True: "on", False: "off"}.get(value) if isinstance(value, bool) else str(value).lower()
    if word not in ("on", "off"):
        raise ModelSpecError(f"{name} = {value!r}: use 'on' or 'off'.")
    return word


def _display(name: str, value: Any) -> str:
    if value in (None, "none"):
        return "off"
    if str(value).lower() not in DISPLAY:
        raise ModelSpecError(f"Options.Display = {value!r}: use one of {DISPLAY}.")
    return str(value).lower()


def _output_functions(name: str, value: Any) -> tuple[Callable[..., Any], ...] | None:
    if value is None or (isinstance(value, list | tuple) and not value):
        return None
    functions = tuple(value) if isinstance(value, list | tuple) else (value,)
    for function in functions:
        if not callable(function):
            raise ModelSpecError(
                f"Options.OutputFcn = {value!r}: give a function stop = f(beta, status, state), or "
                "a list of them."
            )
    return functions


_READ: dict[str, Callable[[str, Any], Any]] = {
    "DerivStep": _deriv_step,
    "Display": _display,
    "FunValCheck": lambda name, value: _switch(f"Options.{name}", value),
    "Jacobian": lambda name, value: _switch(f"Options.{name}", value),
    "MaxIter": _steps,
    "OutputFcn": _output_functions,
    "TolFun": _positive,
    "TolX": _positive,
}


def parse_options(name_value: Mapping[str, Any]) -> NlmefitOptions:
    """Read the name-value arguments of ``nlmefit``.

    Raises
    ------
    TypeError
        A name that ``nlmefit`` does not know, or one given under two spellings.
    ModelSpecError
        A value that the argument cannot take, or two arguments that exclude each other.

    Examples
    --------
    >>> options = parse_options({"REParamsSelect": [1, 2], "errormodel": "Combined"})
    >>> options.error_model, options.random.base
    ('combined', 1)
    """
    given: dict[str, tuple[str, Any]] = {}
    for key, value in name_value.items():
        name = _name(key)
        if name in given:
            raise TypeError(
                f"nlmefit: {name} is given twice, as {given[name][0]!r} and as {key!r}; give it "
                "once."
            )
        given[name] = (key, value)
    read: dict[str, Any] = {}
    for name, (key, value) in given.items():
        if name[:2] in ("FE", "RE") and name != "RefineBeta0":
            continue
        read[NAMES.get(name, EXTRA.get(name, name))] = _value(name, key, value)
    options = NlmefitOptions(
        fixed=_effects("FE", given), random=_effects("RE", given), **_given_only(read)
    )
    _check_derivatives(options)
    return options


def _check_derivatives(options: NlmefitOptions) -> None:
    """Refuse a step of derivatives where there is none."""
    step = options.options.DerivStep
    if step == DERIV_STEP or options.difference_step is not None:
        return
    raise ModelSpecError(
        f"Options.DerivStep = {step:g}: only 'LME' and 'RELME' with OptimFun='fminsearch' and "
        "Jacobian='off' take differences; derivatives are exact here (automatic differentiation). "
        "Leave DerivStep out."
    )


def _given_only(read: dict[str, Any]) -> dict[str, Any]:
    """MATLAB's ``[]`` stands for "use the default"."""
    return {field: value for field, value in read.items() if value is not None}


def _name(key: str) -> str:
    if key in _SNAKE:
        return _SNAKE[key]
    if key.lower() in _LOWER:
        return _LOWER[key.lower()]
    if key.lower() in EXTRA:
        return key.lower()
    for name in ONLY_NLMEFITSA:
        if key.lower().replace("_", "") == name.lower():
            raise TypeError(
                f"nlmefit does not take {key!r}: it belongs to nlmefitsa (stochastic "
                "approximation EM). Leave it out."
            )
    known = [*NAMES, *EXTRA] if re.search("[A-Z]", key) else [*_SNAKE, *EXTRA]
    hint = nearest(key, known) or nearest(key, [*NAMES, *_SNAKE, *EXTRA])
    raise TypeError(f"nlmefit has no argument {key!r}.{hint}")


def _value(name: str, key: str, value: Any) -> Any:
    if _empty(value):
        return None
    if name in CHOICES:
        return _choice(name, key, value)
    if name == "RefineBeta0":
        return _switch(key, value) == "on"
    if name == "ParamTransform":
        return _transform(key, value)
    if name == "ErrorParameters":
        return _error_parameters(key, value)
    if name == "CovPattern":
        return _pattern(key, value)
    if isinstance(value, Mapping):  # Options
        return StatsetOptions(_explicit(value))
    raise ModelSpecError(
        f"{key} = {value!r}: give statset(...) or a dict such as {{'TolX': 1e-6}}."
    )


def _empty(value: Any) -> bool:
    if value is None:
        return True
    return not isinstance(value, str | Mapping) and np.size(np.asarray(value, dtype=object)) == 0


def _choice(name: str, key: str, value: Any) -> str:
    word = getattr(value, "__name__", value)  # MATLAB passes OptimFun as a string or @handle
    for choice in CHOICES[name]:
        if isinstance(word, str) and word.lower() == choice.lower():
            return choice
    cure = ""
    if name == "ErrorModel" and str(word).lower() in ("combined2", "power"):
        cure = " MATLAB has no such model: use fit_nlme(error_model=...)."
    raise ModelSpecError(
        f"{key} = {value!r} is not known: use one of {', '.join(CHOICES[name])}."
        + (cure or nearest(str(word), CHOICES[name]))
    )


def _numbers(key: str, value: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
        if array.dtype != bool:
            array = array.astype(float)
    except (TypeError, ValueError):
        raise ModelSpecError(f"{key} = {value!r}: give {what}.") from None
    if array.dtype != bool and not np.all(np.isfinite(array)):
        raise ModelSpecError(f"{key} holds values that are not finite: give {what}.")
    return array


def _transform(key: str, value: Any) -> tuple[int, ...]:
    codes = np.ravel(_numbers(key, value, "one code per parameter: 0, 1, 2 or 3"))
    for code in codes:
        if code not in (0, 1, 2, 3):
            raise ModelSpecError(
                f"{key} holds the code {code:g}: use 0 (identity), 1 (log), 2 (probit) or 3 "
                "(logit) for each parameter."
            )
    return tuple(int(code) for code in codes)


def _error_parameters(key: str, value: Any) -> np.ndarray:
    start = np.ravel(_numbers(key, value, "the start of a, or of [a b]"))
    if start.size > 2 or np.any(start <= 0):
        raise ModelSpecError(
            f"{key} = {value!r}: give one positive number, or two for the combined error model."
        )
    return start.astype(float)


def _pattern(key: str, value: Any) -> np.ndarray:
    array = _numbers(key, value, "an r x r matrix of 0 and 1, or r block numbers")
    if array.ndim > 2:
        raise ModelSpecError(
            f"{key} has shape {array.shape}: give an r x r matrix of 0 and 1, or r block numbers."
        )
    return np.atleast_1d(array)


def _effects(prefix: str, given: Mapping[str, tuple[str, Any]]) -> Selection | Design | None:
    """Read the FE* or RE* arguments, at most one of which may be given."""
    found = {
        name: pair
        for name, pair in given.items()
        if name.startswith(prefix)
        and name != "RefineBeta0"
        and (pair[1] is not None and (name.endswith("ParamsSelect") or not _empty(pair[1])))
    }
    if len(found) > 1:
        keys = " and ".join(key for key, _ in found.values())
        raise ModelSpecError(
            f"{keys} are given together; at most one of {prefix}ParamsSelect, {prefix}ConstDesign, "
            f"{prefix}GroupDesign and {prefix}ObsDesign may be given."
        )
    for name, (key, value) in found.items():
        if name.endswith("ParamsSelect"):
            return _selection(name, key, value)
        kind = name[2:].removesuffix("Design").lower()
        return _design(kind, key, value)
    return None


def _selection(name: str, key: str, value: Any) -> Selection:
    base = 0 if key in _SNAKE else 1
    array = np.ravel(_numbers(key, value, "parameter numbers, or a logical value per parameter"))
    if array.size == 0 or (array.dtype == bool and not array.any()):
        raise ModelSpecError(
            f"{key} = {value!r} selects no parameter; at least one fixed and one random effect are "
            "needed. Leave the argument out to select all parameters."
        )
    if array.dtype == bool:
        return Selection(array, base, key)
    numbers = array.astype(int)
    if np.any(numbers != array):
        raise ModelSpecError(f"{key} = {value!r}: parameter numbers are whole numbers.")
    if np.any(numbers < base):
        raise ModelSpecError(
            f"{key} = {value!r}: {name} numbers parameters from 1 as MATLAB does; "
            f"{NAMES[name]} numbers them from 0. For a logical selection pass True and False."
        )
    if len(set(numbers.tolist())) < numbers.size:
        raise ModelSpecError(f"{key} = {value!r}: name each parameter once.")
    return Selection(numbers, base, key)


def _design(kind: str, key: str, value: Any) -> Design:
    shape = {"const": "p x k", "group": "p x k x m (groups)", "obs": "p x k x n (rows)"}[kind]
    array = _numbers(key, value, f"a {shape} array of numbers").astype(float)
    if array.ndim == 1 and kind == "const":
        array = array[:, None]
    if array.ndim == 2 and kind != "const":
        array = array[:, None, :]  # MATLAB drops no axis, numpy users write k = 1 as (p, m)
    if array.ndim != (2 if kind == "const" else 3):
        raise ModelSpecError(f"{key} has shape {array.shape}: give a {shape} array.")
    return Design(kind, array, key)
