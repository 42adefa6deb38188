"""The door ``fit_nlme``: a formula or a function and a frame in, :class:`NLMEResults` out."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, ModelSpecError, nearest, some
from jaxnlme._precision import host64
from jaxnlme._typing import Frame
from jaxnlme.api._arguments import check_numbers, refuse_unknown
from jaxnlme.api._nlme_fit import run
from jaxnlme.api._nlme_options import (
    check_fix,
    read_fix,
    read_method,
    read_model,
    read_priors,
    read_start,
)
from jaxnlme.covariance import pattern_from
from jaxnlme.design.expressions import free_names, parse_parameter_formulas, parse_tree
from jaxnlme.design.frames import Table, read_frame, select_rows
from jaxnlme.design.nonlinear import (
    Level,
    check_groups,
    check_times,
    group_columns,
    long_names,
    parameter_design,
    read_groups,
    read_random,
)
from jaxnlme.error_models import AbstractErrorModel, as_error_model
from jaxnlme.nlme.method import AbstractMethod
from jaxnlme.nlme.models import time_column
from jaxnlme.nlme.problem import NLMEParams
from jaxnlme.numerics.bijectors import as_bijector
from jaxnlme.results.nlme import NLMEResults, make_results
from jaxnlme.results.nlme_compute import predictions
from jaxnlme.results.nlme_spec import NLMESpec, check_response


@host64
def fit_nlme(
    model: str | Callable,
    data: Frame,
    *,
    group: str | Sequence[str],
    fixed: str | Sequence[str],
    random: str | Sequence[str] | Mapping[str, Any],
    response: str | None = None,
    predictors: Sequence[str] | None = None,
    covariance: Any = "full",
    start: Any = None,
    method: str | AbstractMethod = "LME",
    error_model: str | AbstractErrorModel = "constant",
    transform: Mapping[str, Any] | None = None,
    correlation: Any = None,
    variance: Any = None,
    weights: Any = None,
    fix: Mapping[str, Any] | None = None,
    priors: Mapping[str, Any] | None = None,
    missing: str = "drop",
    max_steps: int = 200,
    num_retries: int = 3,
    progress: Any = None,
    key: Any = 0,
    **unknown: Any,
) -> NLMEResults:
    """Fit a nonlinear mixed-effects model.

    Parameters
    ----------
    model
        A formula ``"conc ~ SSfol(Dose, Time, lKe, lKa, lCl)"`` (R's spelling, self-starting models by
        name), or a function ``model(params, x) -> scalar`` of dicts of scalars for one row, written with
        ``jax.numpy`` and defined once at module level. :func:`jaxnlme.nlme.trajectory` marks a function
        that takes all rows of a group.
    data
        pandas, polars or pyarrow frame, or a dict of 1-D arrays.
    group
        Column that names the groups; a list (outermost first) or ``"a/b"`` for nested groups.
    fixed
        Formulas of the parameters, ``"lKe + lKa + lCl ~ 1"``, ``["A ~ 1", "xmid ~ Treatment"]``.
    random
        Which parameters vary between groups, ``"lKa + lCl ~ 1"``; with nested groups a dict by level.
    response, predictors
        Columns, when ``model`` is a function (predictors default to all numeric columns not used else).
    covariance
        Of the random effects: ``"full"``, ``"diagonal"``, blocks of names, a 0/1 matrix or block
        numbers; with nested groups one value for all or a dict by level.
    start
        Start values by parameter name (other coefficients of its formula start at 0), by coefficient
        label, or a sequence in coefficient order. May be left out for self-starting models.
    method
        ``"LME"`` (= ``"ML"``, Lindstrom-Bates), ``"REML"`` (R nlme's dialect: the ML fit with variances
        times N/(N-p)), ``"RELME"`` (restricted likelihood), ``"FO"``, ``"FOCE"``, ``"Laplace"``, ``"AGQ"``, or an
        object such as ``jn.nlme.AGQ(7)``. Log-likelihoods of different methods are not comparable.
    error_model
        ``"constant"`` (sd a), ``"proportional"`` (b|f|), ``"combined"`` (a + b|f|), ``"combined2"``
        (sqrt(a^2 + b^2 f^2)), ``"exponential"`` (log y = log f + a e), ``"power"`` (b|f|^c), or an object.
    transform
        ``{"ka": "log"}``: the model receives ka on its natural scale; coefficients, random effects and
        ``psi`` are on the transformed scale. ``"log"``, ``"probit"``, ``"logit"`` or a bijector.
    weights
        Column or array of prior weights: residual variance divided by the weight.
    fix
        Parameters to hold, by label: ``{"lKe": -2.5, "sigma": 0.7, "sd(Subject).lCl": 0.2}``.
    priors
        Penalised (MAP) fit: ``{"fixed": Normal(0, 2.5), "sd": Gamma(2, 0.5), "cor": LKJ(2)}`` or by label;
        for methods that maximise a likelihood (not LME).
    missing
        ``"drop"`` rows with missing values (warns) or ``"raise"``.
    max_steps
        Limit of evaluations (alternations for LME).
    num_retries
        How many perturbed starts are tried when a fit does not converge.
    progress
        None (a line when a terminal waits longer than 2 s), True, False, or ``progress(info) -> stop``.
    key
        Seed of the perturbed starts.

    Returns
    -------
    NLMEResults

    Raises
    ------
    DataError, FormulaError, ModelSpecError
        Before any compilation, naming argument, column or rows and the cure.

    Warns
    -----
    ConvergenceWarning
        The limit was reached, or no start led to a fit; ``.attempts`` lists what was tried.
    SingularFitWarning
        A variance is zero or a correlation at +-1.
    IdentifiabilityWarning
        The data do not determine some combination of parameters; standard errors are NaN.
    DataWarning
        Rows were dropped.

    Examples
    --------
    >>> import jaxnlme as jn
    >>> theoph = jn.datasets.load("theoph")
    >>> fit = jn.fit_nlme("conc ~ SSfol(Dose, Time, lKe, lKa, lCl)", theoph, group="Subject",
    ...                   fixed="lKe + lKa + lCl ~ 1", random="lKa + lCl ~ 1", covariance="diagonal",
    ...                   start={"lKe": -2.4, "lKa": 0.45, "lCl": -3.2})
    >>> round(fit.llf, 3)
    -177.022
    """
    refuse_unknown(unknown, fit_nlme)
    for name, value in (("correlation", correlation), ("variance", variance)):
        if value is not None:
            raise ModelSpecError(
                f"{name}= is not built yet for fit_nlme (correlation and variance structures come with "
                "the mixed-model issue). Use error_model='power' or 'proportional' for a variance that "
                "follows the prediction."
            )
    check_numbers({"max_steps": (max_steps, 1), "num_retries": (num_retries, 0)})
    table = read_frame(data)
    chosen, dialect = read_method(method)
    errors = as_error_model(error_model)
    formulas = parse_parameter_formulas(fixed)
    groups = group_columns(group)
    structural, lhs, response_name, names = read_model(
        model, tuple(formulas), response, predictors, table, groups
    )
    random_formulas = read_random(random, groups, tuple(formulas))
    transforms = _read_transforms(transform, tuple(formulas))
    weight_values = _read_weights(weights, table)

    draft = NLMESpec(
        structural, lhs, response_name, names, tuple(formulas), transforms,
        parameter_design({}, table), (), (), errors,
    )  # fmt: skip
    columns = [
        *draft.response_columns,
        *names,
        *_formula_columns(formulas, random_formulas, table),
        *groups,
    ]
    time_name = time_column(model)
    columns += [] if time_name is None else [time_name]
    rows = select_rows(table, columns, missing=missing)
    used = table.take(rows)
    w = np.ones(len(rows)) if weight_values is None else weight_values[rows]
    spec = _spec(draft, formulas, random_formulas, groups, covariance, weights, used, model)

    y = spec.respond(used)
    check_response(spec, y)
    grouping = read_groups(groups, used)
    free, fixed_values = read_fix(fix, spec)
    check_fix(free, chosen)
    if free.error[0] or errors.name not in ("constant", "exponential"):
        check_groups(grouping, groups, [len(level.design.labels) for level in spec.levels])
    beta0 = read_start(start, spec, used, y, grouping, model)
    beta0 = np.where(free.beta, beta0, fixed_values.beta)
    prior = read_priors(priors, spec, chosen)
    if time_name is not None:
        check_times(used, time_name, grouping, rows)
    problem = spec.problem(used, grouping, y, w, beta0, free, prior)
    params0 = NLMEParams(beta0, fixed_values.theta, fixed_values.error)
    _check_model(problem, spec)
    _check_zero_sd(problem, spec, grouping, rows)
    began = time.perf_counter()
    outcome = run(
        problem, chosen, params0, spec=spec, layout=grouping.layout, max_steps=max_steps,
        num_retries=num_retries, key=key, progress=progress,
    )  # fmt: skip
    call = {
        "model": model, "data": data, "group": group, "fixed": fixed, "random": random, "response": response,
        "predictors": predictors, "covariance": covariance, "start": start, "method": method,
        "error_model": error_model, "transform": transform, "weights": weights, "fix": fix,
        "priors": priors, "missing": missing, "max_steps": max_steps, "num_retries": num_retries,
        "key": key,
    }  # fmt: skip
    return make_results(
        spec=spec, problem=problem, method=chosen, dialect=dialect, fit=outcome.fit, table=table, rows=rows,
        grouping=grouping, y=y, weights=w, attempts=outcome.attempts, flat=outcome.flat, call=call, door=fit_nlme,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _read_transforms(transform, parameters):
    given = dict(transform or {})
    for name in given:
        if name not in parameters:
            raise ModelSpecError(
                f"transform: {name!r} is not a parameter of the model {list(parameters)}."
                + nearest(str(name), parameters)
            )
    return tuple(
        as_bijector(given.get(name), argument=f"transform[{name!r}]") for name in parameters
    )


def _read_weights(weights, table: Table) -> np.ndarray | None:
    if weights is None:
        return None
    if isinstance(weights, str):
        values = table.numeric(weights, "weights")
    else:
        values = np.asarray(weights, float)
        if values.shape != (table.n,):
            raise DataError(f"weights has shape {values.shape}, but the data have {table.n} rows.")
    bad = np.flatnonzero(np.isnan(values))
    if len(bad):
        raise DataError(f"weights is missing (NaN) in {len(bad)} row(s): {some(bad)}.")
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(bad):
        raise DataError(f"weights must be finite and >= 0; rows {some(bad)} are not.")
    return values


def _formula_columns(formulas, random_formulas, table: Table) -> list[str]:
    texts = [*formulas.values(), *(f for level in random_formulas for f in level.values())]
    names = [name for text in texts for name in free_names(parse_tree(text))]
    return [name for name in dict.fromkeys(names) if name in table]


def _spec(draft: NLMESpec, formulas, random_formulas, groups, covariance, weights, used, model):
    fixed_effects = parameter_design(formulas, used)
    long = long_names(fixed_effects)
    levels = tuple(
        Level(name, parameter_design(given, used, long=long))
        for name, given in zip(groups, random_formulas, strict=True)
    )
    per_level = covariance if isinstance(covariance, Mapping) else dict.fromkeys(groups, covariance)
    unknown = [k for k in per_level if k not in groups]
    if unknown:
        raise ModelSpecError(f"covariance: {unknown[0]!r} is not a grouping column {list(groups)}.")
    patterns = tuple(
        pattern_from(per_level.get(level.group, "full"), level.design.labels) for level in levels
    )
    return NLMESpec(
        model=draft.model,
        response=draft.response,
        response_name=draft.response_name,
        predictors=draft.predictors,
        parameters=draft.parameters,
        transforms=draft.transforms,
        fixed=fixed_effects,
        levels=levels,
        patterns=patterns,
        error_model=draft.error_model,
        weights=weights if isinstance(weights, str) else None,
        formula=model
        if isinstance(model, str)
        else f"{draft.response_name} ~ {_name_of(model)}(...)",
    )


def _name_of(model: Any) -> str:
    return getattr(model, "__name__", type(model).__name__)


@functools.partial(jax.jit, static_argnums=(0, 1))  # for its memory: a refit traces nothing
def _model_output(function, parameters, phi, x):
    return jnp.asarray(function({name: phi[k] for k, name in enumerate(parameters)}, x))


def _check_model(problem, spec: NLMESpec) -> None:
    """Trace the model once on shapes alone, before anything is compiled."""
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), problem.x)
    phi = jax.ShapeDtypeStruct((len(spec.parameters),), problem.y.dtype)
    n = problem.y.shape[1]
    row = spec.model.kind == "row"
    if row:
        x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x)
    parameters = spec.model.parameters
    expected = () if row else (n,)
    try:
        out = _model_output.eval_shape(spec.model.function, parameters, phi, x)
    except (jax.errors.JAXTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ModelSpecError(
            f"the model {_name_of(spec.model.function)} cannot be traced by JAX: "
            f"{type(error).__name__}. Use jax.numpy instead of numpy, and jnp.where instead of a Python "
            "'if' on parameters or data; jn.nlme.from_numpy(fun) wraps a NumPy function."
        ) from error
    except (KeyError, TypeError, IndexError) as error:
        raise ModelSpecError(
            f"the model {_name_of(spec.model.function)} failed on the first group: "
            f"{type(error).__name__}: {error}. It is called with the parameters "
            f"{list(spec.parameters)} and the predictors {list(spec.predictors)}."
        ) from error
    shape = getattr(out, "shape", None)
    if shape != expected:
        raise ModelSpecError(
            f"the model {_name_of(spec.model.function)} returned shape {shape} for the first group, "
            f"expected {expected}: "
            + ("one scalar per row." if row else "one value per row of the group.")
        )


def _check_zero_sd(problem, spec: NLMESpec, grouping, rows: np.ndarray) -> None:
    """Refuse predictions of 0 under an error whose standard deviation is 0 there."""
    if not spec.error_model.vanishes_at_zero:
        return
    zero = np.zeros((problem.num_groups, problem.num_random))
    f = predictions(problem, grouping.layout, problem.beta0, zero)
    bad = np.flatnonzero(f == 0)
    if len(bad):
        raise ModelSpecError(
            f"error_model='{spec.error_model.name}' has standard deviation 0 where the model predicts 0: "
            f"row(s) {some(rows[bad])} of the data (time 0?). Use error_model='combined' or 'combined2', or "
            "leave these rows out."
        )
