"""Fitting what ``fit_glm`` read: held values, bounds, penalties, starts, and the checks of sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, ModelSpecError, nearest
from jaxnlme.api._glm_inputs import Inputs
from jaxnlme.glm.coordinates import Affine
from jaxnlme.glm.drive import HostFit, HostProblem, drive
from jaxnlme.penalties import (
    AbstractPenalty,
    Firth,
    LinearEquality,
    Monotone,
    NoPenalty,
    Priors,
    Quadratic,
    Ridge,
    Sum,
)
from jaxnlme.priors import AbstractPrior
from jaxnlme.results.glm_spec import GLMSpec


def fit_host(
    inputs: Inputs,
    *,
    alpha: Any,
    l1_ratio: Any,
    penalty: Any,
    standardize: bool,
    bounds: Mapping[str, Any] | None,
    fix: Mapping[str, Any] | None,
    priors: Mapping[str, Any] | None,
    start: Any,
    max_steps: int,
    tolerance: Any,
) -> tuple[HostProblem, HostFit]:
    """Fit; returns the host problem too, from which results refit."""
    spec = inputs.spec
    tolerance = _number(tolerance, "tolerance")
    if not 0 < tolerance < 1:
        raise ModelSpecError(f"tolerance={tolerance!r} must lie between 0 and 1.")
    held = read_fix(fix, spec)
    problem = HostProblem(
        designs=inputs.designs, y=inputs.y, weights=inputs.weights, offsets=inputs.offsets,
        family=spec.family, links=spec.links, held=held,
    )  # fmt: skip
    problem = _with_penalty(problem, spec, penalty, alpha, l1_ratio, standardize, priors)
    problem = _with_bounds(problem, spec, bounds)
    _check_size(problem, spec)
    outcome = drive(
        problem, start=read_start(start, spec), max_steps=max_steps, tolerance=tolerance
    )
    return problem, outcome


def _check_size(problem: HostProblem, spec: GLMSpec) -> None:
    n, p = int(np.sum(problem.weights > 0)), len(spec.mean_labels)
    free = p if problem.held is None else int(np.sum(np.isnan(problem.held[:p])))
    if n < free and problem.penalty.trivial and problem.constraint is None:
        raise DataError(
            f"the model has p = {free} coefficients but only n = {n} rows of positive weight. Leave terms out, "
            "or add a penalty (alpha=, priors=)."
        )


def read_fix(fix: Mapping[str, Any] | None, spec: GLMSpec) -> np.ndarray | None:
    """Values to hold (P,), NaN where free; family parameters are given on their natural scale."""
    if not fix:
        return None
    labels = spec.all_labels
    held = np.full(len(labels), np.nan)
    for name, value in fix.items():
        k = _position(name, spec, "fix")
        value = _number(value, f"fix[{name!r}]")
        if not spec.listed[k]:
            value = float(np.asarray(spec.links[spec.predictor[k]].link(np.float64(value))))
            if not np.isfinite(value):
                raise ModelSpecError(
                    f"fix[{name!r}]={fix[name]!r} lies outside the parameter's range."
                )
        held[k] = value
    if not np.isnan(held).any():
        raise ModelSpecError(
            "fix= holds every coefficient; nothing is left to fit (use with_params)."
        )
    return held


def read_start(start: Any, spec: GLMSpec) -> np.ndarray | None:
    """Start values (P,) from a sequence or a dict by label."""
    if start is None:
        return None
    labels = spec.all_labels
    if isinstance(start, Mapping):
        out = np.zeros(len(labels))
        for name, value in start.items():
            out[_position(name, spec, "start")] = _number(value, f"start[{name!r}]")
        return out
    values = np.asarray(start, np.float64)
    shown = int(np.sum(spec.listed))
    if values.ndim != 1 or len(values) not in (shown, len(labels)):
        raise ModelSpecError(
            f"start has shape {values.shape}; give one value per coefficient, ({shown},): {list(spec.labels)}."
        )
    if not np.all(np.isfinite(values)):
        raise ModelSpecError("start holds values that are not finite.")
    if len(values) == len(labels):
        return values
    if shown < len(labels):
        raise ModelSpecError(
            f"start has {shown} values, but the family's own parameters need start values too: "
            f"{list(labels)}; leave start= out or give all of them (on the scale of their links)."
        )
    return values


def _position(name: Any, spec: GLMSpec, argument: str) -> int:
    labels = spec.all_labels
    if name not in labels:
        raise ModelSpecError(
            f"{argument} names {name!r}, which is no coefficient; they are {list(labels)}."
            f"{nearest(str(name), labels)}"
        )
    return labels.index(name)


def _number(value: Any, title: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ModelSpecError(f"{title}={value!r}: expected a number.")
    if not np.isfinite(value):
        raise ModelSpecError(f"{title}={value!r} is not finite.")
    return float(value)


def _with_penalty(problem, spec, penalty, alpha, l1_ratio, standardize, priors):
    alpha, l1_ratio = _number(alpha, "alpha"), _number(l1_ratio, "l1_ratio")
    if alpha < 0 or not 0 <= l1_ratio <= 1:
        raise ModelSpecError(
            f"alpha={alpha:g}, l1_ratio={l1_ratio:g}: alpha is >= 0 and l1_ratio lies in [0, 1]."
        )
    if alpha > 0 and l1_ratio > 0:
        raise ModelSpecError(
            f"l1_ratio={l1_ratio:g}: the lasso and the elastic net are not built yet (they come with penalty "
            "paths); l1_ratio=0 is the ridge penalty."
        )
    if not isinstance(standardize, bool):
        raise ModelSpecError(f"standardize={standardize!r}: expected True or False.")
    parts: list[AbstractPenalty] = []
    if alpha > 0:
        parts.append(_ridge(problem, spec, alpha, standardize))
    if isinstance(penalty, str) and penalty != "firth":
        raise ModelSpecError(
            f"penalty={penalty!r}: the only name is 'firth'; others are jn.penalties objects."
        )
    if isinstance(penalty, str | Firth):
        if len(problem.designs) > 1 or not spec.family.fisher_scoring or spec.family.has_dispersion:
            raise ModelSpecError(
                f"penalty='firth' is for families with one predictor and no dispersion (binomial, poisson), "
                f"not {spec.family.name!r}."
            )
        parts.append(Firth())
    elif isinstance(penalty, Ridge):
        parts.append(_ridge(problem, spec, penalty.alpha, standardize))
    elif isinstance(penalty, Quadratic):
        parts.append(_quadratic(problem, spec, penalty))
    elif isinstance(penalty, Monotone | LinearEquality):
        problem = dataclasses.replace(problem, **_constraint(problem, spec, penalty))
    elif penalty is not None and not isinstance(penalty, NoPenalty):
        raise ModelSpecError(
            f"penalty={type(penalty).__name__}: use 'firth' or Ridge, Quadratic, Monotone, LinearEquality of "
            "jn.penalties."
        )
    if priors:
        parts.append(read_priors(priors, spec))
    if not parts:
        return problem
    chosen = parts[0] if len(parts) == 1 else Sum(tuple(parts))
    return dataclasses.replace(problem, penalty=chosen)


def _ridge(problem: HostProblem, spec: GLMSpec, alpha: float, standardize: bool) -> Quadratic:
    """The ridge penalty on the total scale: weights count with their sum."""
    total = float(np.sum(problem.weights))
    diagonal = np.zeros(problem.width)
    p = len(spec.mean_labels)
    scale = np.ones(p)
    if standardize:
        X, share = problem.designs[0].matrix(), problem.weights / total
        center = share @ X
        scale = np.sqrt(np.maximum(share @ (X - center) ** 2, 0.0))
    free = np.array([label != "(Intercept)" for label in spec.mean_labels])
    own = spec.predictor == 0
    diagonal[own] = np.where(free, alpha * scale**2, 0.0)
    for k, design in enumerate(spec.others):
        if design is None:  # further classes of a multinomial response
            diagonal[spec.predictor == k + 1] = np.where(free, alpha * scale**2, 0.0)
    return Quadratic(total * np.diag(diagonal))


def _quadratic(problem: HostProblem, spec: GLMSpec, penalty: Quadratic) -> Quadratic:
    P = np.asarray(penalty.P, np.float64)
    p, width = len(spec.mean_labels), problem.width
    if P.shape not in ((p, p), (width, width)):
        raise ModelSpecError(
            f"penalty=Quadratic(P): P has shape {P.shape}, but there are {p} coefficients {list(spec.mean_labels)}."
        )
    if not np.allclose(P, P.T) or np.min(np.linalg.eigvalsh(P)) < -1e-10 * np.max(np.abs(P)):
        raise ModelSpecError("penalty=Quadratic(P): P must be symmetric and positive semidefinite.")
    full = np.zeros((width, width))
    full[: len(P), : len(P)] = P
    return Quadratic(float(np.sum(problem.weights)) * full)


def _constraint(
    problem: HostProblem, spec: GLMSpec, penalty: Monotone | LinearEquality
) -> dict[str, Any]:
    """Coordinates of a linear constraint, with bounds on them."""
    width = problem.width
    if problem.held is not None:
        raise ModelSpecError(
            "fix= cannot be combined with Monotone or LinearEquality; write the value into C, d."
        )
    if isinstance(penalty, LinearEquality):
        C, d = (
            np.atleast_2d(np.asarray(penalty.C, float)),
            np.atleast_1d(np.asarray(penalty.d, float)),
        )
        p = len(spec.mean_labels)
        if C.shape[1] != p or len(d) != len(C):
            raise ModelSpecError(
                f"penalty=LinearEquality(C, d): C has shape {C.shape} and d {d.shape}; C needs {p} columns "
                f"({list(spec.mean_labels)}) and one row per entry of d."
            )
        u, values, rows = np.linalg.svd(C)
        rank = int(np.sum(values > 1e-12 * values[0]))
        shift = rows[:rank].T @ ((u[:, :rank].T @ d) / values[:rank])
        if not np.allclose(C @ shift, d):
            raise ModelSpecError("penalty=LinearEquality(C, d): no coefficients satisfy C b = d.")
        matrix = np.zeros((width, width - rank))
        matrix[:p, : p - rank] = rows[rank:].T
        matrix[p:, p - rank :] = np.eye(width - p)
        return {"constraint": Affine(matrix, np.concatenate([shift, np.zeros(width - p)]))}
    chain = [_position(name, spec, "Monotone") for name in penalty.labels]
    if any(spec.predictor[k] != 0 for k in chain):
        raise ModelSpecError("penalty=Monotone: only coefficients of the mean can be ordered.")
    sign = 1.0 if penalty.increasing else -1.0
    matrix = np.eye(width)
    for at, k in enumerate(chain):
        matrix[k, :] = 0.0
        matrix[k, chain[: at + 1]] = sign
    lower = np.full(width, -np.inf)
    lower[chain if penalty.from_zero else chain[1:]] = 0.0
    return {
        "constraint": Affine(matrix, np.zeros(width)), "lower": lower, "upper": np.full(width, np.inf),
    }  # fmt: skip


def read_priors(priors: Mapping[str, Any], spec: GLMSpec) -> Priors:
    """Priors by label, or ``"fixed"`` for all coefficients that no other entry names."""
    labels = spec.all_labels
    chosen: list[Any] = [None] * len(labels)
    for name, prior in priors.items():
        if not isinstance(prior, AbstractPrior):
            raise ModelSpecError(
                f"priors[{name!r}]={prior!r} is not a prior: use jn.priors.Normal, Gamma, ..."
            )
        if name == "fixed":
            for k in np.flatnonzero(spec.listed):
                chosen[k] = chosen[k] if labels[k] in priors else prior
            continue
        k = _position(name, spec, "priors")
        if not spec.listed[k]:
            raise ModelSpecError(
                f"priors[{name!r}]: priors on the family's own parameters are not built yet; hold it by fix= or "
                f"give a formula parameters={{{name!r}: '~ 1'}} and priors on its coefficients (link scale)."
            )
        chosen[k] = prior
    return Priors(tuple(chosen))


def _with_bounds(
    problem: HostProblem, spec: GLMSpec, bounds: Mapping[str, Any] | None
) -> HostProblem:
    if not bounds:
        return problem
    if problem.constraint is not None:
        raise ModelSpecError("bounds= together with Monotone or LinearEquality is not possible.")
    lower, upper = np.full(problem.width, -np.inf), np.full(problem.width, np.inf)
    for name, pair in bounds.items():
        k = _position(name, spec, "bounds")
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ModelSpecError(f"bounds[{name!r}]={pair!r}: expected a pair (lower, upper).")
        low = -np.inf if pair[0] is None else float(pair[0])
        high = np.inf if pair[1] is None else float(pair[1])
        if not low <= high:
            raise ModelSpecError(
                f"bounds[{name!r}]={pair!r}: the lower bound is above the upper one."
            )
        lower[k], upper[k] = low, high
    return dataclasses.replace(problem, lower=lower, upper=upper)
