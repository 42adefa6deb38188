"""Reading the arguments of ``fit_nlme``: each function takes one, checks it and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme.covariance import CovarianceBlock
from jaxnlme.design.expressions import Expression, parse_formula
from jaxnlme.design.frames import Table
from jaxnlme.design.model_formula import FormulaModel
from jaxnlme.design.nonlinear import Grouping
from jaxnlme.nlme.fo import FO
from jaxnlme.nlme.foce import FOCE
from jaxnlme.nlme.laplace import AGQ, Laplace
from jaxnlme.nlme.lme import LME, RELME
from jaxnlme.nlme.map import MAPPrior, PriorPart
from jaxnlme.nlme.method import AbstractMarginalMethod, AbstractMethod
from jaxnlme.nlme.models import is_trajectory
from jaxnlme.nlme.problem import NLMEParams, StructuralModel
from jaxnlme.priors import LKJ, AbstractPrior
from jaxnlme.results.nlme_spec import NLMESpec

METHODS: dict[str, tuple[Callable[[], AbstractMethod], str]] = {
    "LME": (LME, ""),
    "ML": (LME, ""),
    "REML": (LME, "R-REML"),
    "RELME": (RELME, ""),
    "FO": (FO, ""),
    "FOCE": (FOCE, ""),
    "LAPLACE": (Laplace, ""),
    "AGQ": (AGQ, ""),
}


def read_method(method: str | AbstractMethod) -> tuple[AbstractMethod, str]:
    """Return the method and the dialect of its report (``"R-REML"`` or nothing)."""
    if isinstance(method, AbstractMethod):
        return method, ""
    name = method.upper() if isinstance(method, str) else method
    if name == "SAEM":
        raise ModelSpecError("method='SAEM' is not built yet; use 'FOCE', 'Laplace' or 'AGQ'.")
    if name not in METHODS:
        raise ModelSpecError(
            f"method={method!r} is not known: use one of LME, RELME, ML, REML, FO, FOCE, Laplace, AGQ "
            "or a method object." + nearest(str(method), METHODS)
        )
    make, dialect = METHODS[name]
    return make(), dialect


def read_model(
    model: str | Callable,
    parameters: tuple[str, ...],
    response: str | None,
    predictors: Sequence[str] | None,
    table: Table,
    groups: tuple[str, ...],
) -> tuple[StructuralModel, Expression | None, str, tuple[str, ...]]:
    """Return the structural model, the response expression, its name and the predictors."""
    if isinstance(model, str):
        formula = parse_formula(model)
        if formula.lhs is None and response is None:
            raise ModelSpecError(
                f"the model {model!r} has no response: write 'y ~ ...' or give response=."
            )
        if formula.lhs is not None and response is not None:
            raise ModelSpecError(
                f"response={response!r} and the left side {formula.lhs.text!r} are both given: keep one."
            )
        function = FormulaModel(formula.rhs, parameters, predictors)
        lhs = formula.lhs
        names = function.predictors
        label = response if lhs is None else lhs.text
        if lhs is not None and lhs.names == (lhs.text,):
            label, lhs = lhs.text, None
        for name in names:
            table.column(name, role="predictor")
        function.columns(table)
        return StructuralModel(function, parameters, "row"), lhs, str(label), tuple(names)
    if not callable(model):
        raise ModelSpecError(
            f"model is a {type(model).__name__}: give a formula such as 'y ~ a*exp(-k*t)' or a function "
            "model(params, x) written with jax.numpy."
        )
    if response is None:
        raise ModelSpecError("model is a function: name the response column with response='...'.")
    table.column(response, role="response")
    if predictors is None:
        skip = {response, *groups}
        names = tuple(n for n in table.names if n not in skip and table.is_numeric(n))
        names = _used_predictors(model, parameters, names)
    else:
        names = (predictors,) if isinstance(predictors, str) else tuple(predictors)
        for name in names:
            table.column(name, role="predictor")
    kind = "group" if is_trajectory(model) else "row"
    return StructuralModel(model, parameters, kind), None, response, names


class _Recorder(dict):
    """Predictors that note which of them a model asks for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a predictor, noting its name."""
        self.asked.add(name)
        return super().get(name, default)

    def _all(self) -> None:
        self.asked.update(self.keys())

    def values(self):
        """Return all predictors: the model uses each."""
        self._all()
        return super().values()

    def items(self):
        """Return all predictors by name: the model uses each."""
        self._all()
        return super().items()


def _used_predictors(
    model: Callable, parameters: tuple[str, ...], names: tuple[str, ...]
) -> tuple[str, ...]:
    """Keep the columns that the model asks for, so that gaps elsewhere in the data drop no rows."""
    asked: set[str] = set()
    scalar = jax.ShapeDtypeStruct((), float)
    column = jax.ShapeDtypeStruct((2,), float) if is_trajectory(model) else scalar

    def trace(params, x):
        recorder = _Recorder(x)
        out = model(params, recorder)
        asked.update(recorder.asked)
        return out

    try:
        jax.eval_shape(trace, dict.fromkeys(parameters, scalar), dict.fromkeys(names, column))
    except Exception:  # noqa: BLE001 - user code; the check of the model says later what is wrong, with names and shapes
        return names
    return tuple(n for n in names if n in asked)


def read_start(
    start: Any,
    spec: NLMESpec,
    table: Table,
    y: np.ndarray,
    grouping: Grouping,
    model: str | Callable,
) -> np.ndarray:
    """Return start values of the fixed effects on the transformed scale, in coefficient order."""
    labels, owners = spec.fixed.labels, spec.fixed.owners
    first = {owner: k for k, owner in reversed(list(enumerate(owners)))}
    out = np.zeros(len(labels))
    if start is None:
        found = _self_start(spec, table, y, grouping, model)
        for name, value in found.items():
            out[first[name]] = value
        return out
    if isinstance(start, Mapping):
        missing = [n for n in spec.parameters if n not in start and not _has_label(start, n, spec)]
        for name, value in start.items():
            if name in first:
                k = first[name]
            elif name in labels:
                k = labels.index(name)
            else:
                raise ModelSpecError(
                    f"start names {name!r}, which is neither a parameter {list(spec.parameters)} nor a "
                    f"coefficient {list(labels)}." + nearest(str(name), [*first, *labels])
                )
            out[k] = _number(value, f"start[{name!r}]")
        if missing:
            raise ModelSpecError(f"start has no value for the parameter(s) {missing}.")
    else:
        try:
            values = np.asarray(start, float).ravel()
        except (TypeError, ValueError) as error:
            raise ModelSpecError(
                f"start={start!r} does not hold numbers: give a dict by parameter or {len(labels)} numbers."
            ) from error
        if len(values) != len(labels):
            raise ModelSpecError(
                f"start has {len(values)} values, but there are {len(labels)} coefficients: "
                f"{', '.join(labels)}."
            )
        out[:] = values
    bad = [labels[k] for k in np.flatnonzero(~np.isfinite(out))]
    if bad:
        raise ModelSpecError(
            f"start is not finite for {bad}: a start on the edge of a transformed parameter's domain "
            "(log of 0, logit of 0 or 1) is outside it. Start values are on the transformed scale."
        )
    return out


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ModelSpecError(f"{what}={value!r} is not a number.") from error


def _has_label(start, name, spec) -> bool:
    return any(
        owner == name and label in start
        for label, owner in zip(spec.fixed.labels, spec.fixed.owners, strict=True)
    )


def _self_start(spec, table, y, grouping, model) -> dict[str, float]:
    function = spec.model.function
    if not isinstance(function, FormulaModel) or function.selfstart is None:
        raise ModelSpecError(
            "start= is needed: only self-starting models (SSfol, SSlogis, SSbiexp, SSasymp) find their "
            f"own. Give start={{...}} with values for {list(spec.parameters)}."
        )
    x = {name: table.numeric(name, "predictor") for name in spec.predictors}
    found = function.initial(x, y, grouping.codes[0])
    out = {}
    for name, transform in zip(spec.parameters, spec.transforms, strict=True):
        low, high = transform.domain
        value = found[name]
        if not low < value < high:
            raise ModelSpecError(
                f"the self-starting value {value:.4g} of {name!r} is outside the domain ({low}, {high}) "
                f"of its transform {transform.name!r}: give start=."
            )
        out[name] = float(transform.inverse(value))
    return out


def read_fix(fix: Mapping[str, Any] | None, spec: NLMESpec) -> tuple[NLMEParams, NLMEParams]:
    """Return which parameters move, and the values of those that do not (NaN elsewhere)."""
    f, t, e = len(spec.fixed.labels), len(spec.theta_names), len(spec.error_names)
    free = NLMEParams(np.ones(f, bool), np.ones(t, bool), np.ones(e, bool))
    values = NLMEParams(np.full(f, np.nan), np.full(t, np.nan), np.full(e, np.nan))
    for name, value in (fix or {}).items():
        value = _number(value, f"fix[{name!r}]")
        if not np.isfinite(value):
            raise ModelSpecError(f"fix[{name!r}]={value!r} must be a finite number.")
        if name in spec.fixed.labels:
            k = spec.fixed.labels.index(name)
            free.beta[k], values.beta[k] = False, value
        elif name in spec.theta_names:
            k = spec.theta_names.index(name)
            _check_fixable(name, k, value, spec)
            free.theta[k], values.theta[k] = False, value
        elif name in spec.error_names:
            k = spec.error_names.index(name)
            free.error[k] = False
            if spec.error_model.positive[k] and not value > 0:
                raise ModelSpecError(f"fix[{name!r}]={value!r} must be positive.")
            values.error[k] = np.log(value) if spec.error_model.positive[k] else value
        else:
            raise ModelSpecError(
                f"fix names {name!r}, which is no parameter of this model; they are "
                f"{list(spec.all_names)}." + nearest(str(name), spec.all_names)
            )
    return free, values


def _check_fixable(name: str, k: int, value: float, spec: NLMESpec) -> None:
    """A standard deviation can be held only where no correlation of its row is estimated."""
    at = 0
    for pattern in spec.patterns:
        entries = CovarianceBlock(pattern).entries
        if k < at + len(entries):
            i, j = entries[k - at]
            if i != j:
                raise ModelSpecError(
                    f"fix: the correlation {name!r} cannot be held; leave it out of covariance= (0)."
                )
            if any(pattern[i][other] for other in range(len(pattern)) if other != i):
                raise ModelSpecError(
                    f"fix: {name!r} has free correlations with other random effects; use "
                    "covariance='diagonal' or a pattern without them to hold it."
                )
            if value < 0:
                raise ModelSpecError(f"fix[{name!r}]={value!r} must be >= 0.")
            return
        at += len(entries)


def check_fix(free: NLMEParams, method: AbstractMethod) -> None:
    """LME profiles sigma out and works with relative factors, so it can hold fixed effects only."""
    if isinstance(method, LME) and not (np.all(free.theta) and np.all(free.error)):
        raise ModelSpecError(
            f"method='{method.name}' profiles the error and works relative to it, so fix= may name "
            "fixed effects only: use 'FOCE', 'Laplace', 'AGQ' or 'FO' to hold sd(...) or error parameters."
        )


def read_priors(
    priors: Mapping[str, Any] | None, spec: NLMESpec, method: AbstractMethod
) -> MAPPrior | None:
    """Return the log prior of a penalised fit, or None."""
    if not priors:
        return None
    if not isinstance(method, AbstractMarginalMethod):
        raise ModelSpecError(
            f"priors= needs a method that maximises a likelihood (FOCE, Laplace, AGQ, FO); "
            f"'{method.name}' is a fixed point of two steps."
        )
    f, sds = len(spec.fixed.labels), [n for n in spec.theta_names if n.startswith("sd(")]
    parts: list[PriorPart] = []
    for name, prior in priors.items():
        if name == "cor":
            if not isinstance(prior, LKJ):
                raise ModelSpecError(f"priors['cor']={prior!r}: use LKJ(concentration).")
            parts.append(PriorPart("cor", (), prior))
            continue
        if not isinstance(prior, AbstractPrior):
            raise ModelSpecError(
                f"priors[{name!r}]={prior!r} is not a prior: use jaxnlme.priors.Normal, Gamma, ..."
            )
        if name == "fixed":
            parts.append(PriorPart("beta", tuple(range(f)), prior))
        elif name == "sd":
            parts.append(PriorPart("sd", tuple(range(len(sds))), prior))
        elif name in spec.fixed.labels:
            parts.append(PriorPart("beta", (spec.fixed.labels.index(name),), prior))
        elif name in sds:
            parts.append(PriorPart("sd", (sds.index(name),), prior))
        elif name in spec.error_names:
            parts.append(PriorPart("error", (spec.error_names.index(name),), prior))
        else:
            known = ["fixed", "sd", "cor", *spec.fixed.labels, *sds, *spec.error_names]
            raise ModelSpecError(
                f"priors names {name!r}; use one of {known}." + nearest(str(name), known)
            )
    return MAPPrior(tuple(parts))
