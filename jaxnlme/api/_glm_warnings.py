"""What a fit of ``fit_glm`` is warned about: collinear columns, separation, parameters at their boundary."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import numpy as np

from jaxnlme._errors import BoundaryWarning, CollinearityWarning, SeparationWarning, some, warn
from jaxnlme._results import RESULTS
from jaxnlme.api._glm_inputs import Inputs
from jaxnlme.glm.drive import HostFit, HostProblem

NEAR = 1 / np.sqrt(np.finfo(float).eps)  # condition number of the centred, scaled design
LONG = 10  # steps after which means at the edge of their range are looked for


def check_fit(inputs: Inputs, problem: HostProblem, fit: HostFit) -> HostFit:
    """Warn, and mark a separated fit.

    Warns
    -----
    CollinearityWarning
        Aliased columns (their coefficients are NaN), or a nearly singular design.
    SeparationWarning
        Some fitted means lie at the edge of their range; names the coefficients that run off.
    BoundaryWarning
        A family parameter ran to the edge of its range.
    """
    _collinear(inputs, fit)
    for message in _at_edge(inputs, fit):
        warn(message, BoundaryWarning)
    return _separated(inputs, problem, fit)


def _collinear(inputs: Inputs, fit: HostFit) -> None:
    labels = inputs.spec.all_labels
    if fit.aliased.any():
        names = [repr(labels[k]) for k in np.flatnonzero(fit.aliased)]
        warn(
            f"{len(names)} column(s) depend linearly on those before them: {some(names, 8)}. Their coefficients "
            "are NaN (aliased, as in R: a duplicate, a dummy trap or an empty cell of an interaction); the fit is "
            "otherwise unchanged. Leave them out of the formula.",
            CollinearityWarning,
        )
    if fit.condition <= NEAR or fit.aliased.all():
        return
    at = 0
    for k, design in enumerate(inputs.designs):
        keep = ~fit.aliased[at : at + design.width]
        X = design.matrix(np.flatnonzero(keep))[inputs.weights > 0]
        names = [labels[at + j] for j in np.flatnonzero(keep)]
        at += design.width
        constant = np.ptp(X, axis=0) == 0
        if constant.any():
            X = X - X.mean(0)
        X, names = X[:, ~constant], [n for n, c in zip(names, constant, strict=True) if not c]
        if X.shape[1] < 2:
            continue
        _, values, rows = np.linalg.svd(X / np.linalg.norm(X, axis=0), full_matrices=False)
        condition = values[0] / max(values[-1], np.finfo(float).tiny)
        if condition > NEAR:
            weight = np.abs(rows[-1])
            worst = [repr(names[j]) for j in np.argsort(-weight) if weight[j] > 0.1 * weight.max()]
            warn(
                f"the columns {some(worst, 6)} are nearly collinear: the condition number of the centred and scaled "
                f"design is {condition:.2g}. The fit was run on orthogonal columns (QR), but these coefficients are "
                "hardly determined; leave one out or combine them.",
                CollinearityWarning,
            )
        del k


def _at_edge(inputs: Inputs, fit: HostFit) -> list[str]:
    spec = inputs.spec
    values = {}
    for k, (name, design) in enumerate(zip(spec.family.parameters, spec.others, strict=True)):
        here = np.flatnonzero(spec.predictor == k + 1)
        if design is not None and len(here) == 1 and fit.estimated[here[0]]:
            values[name.name] = float(np.asarray(name.link.inverse(fit.params[here])).item())
    return spec.family.boundary_notes(values, inputs.y, inputs.weights) if values else []


def _separated(inputs: Inputs, problem: HostProblem, fit: HostFit) -> HostFit:
    """Look for means at the edge of their range, in fits that took long."""
    if int(fit.fit.stats["num_steps"]) < LONG or not problem.penalty.trivial:
        return fit
    spec = inputs.spec
    etas, at = [], 0
    for design, offset in zip(inputs.designs, inputs.offsets, strict=True):
        etas.append(design.matrix() @ fit.filled[at : at + design.width] + offset)
        at += design.width
    parameters = [np.asarray(link.inverse(eta)) for link, eta in zip(spec.links, etas, strict=True)]
    rows = np.asarray(spec.family.separated(*parameters)) & (inputs.weights > 0)
    if not rows.any():
        return fit
    X = inputs.designs[0].matrix()
    p = X.shape[1]
    size = np.sqrt(np.average(X**2, axis=0, weights=inputs.weights))
    spread = np.sqrt(np.maximum(np.diag(fit.covariance)[:p], 0)) * size
    loose = np.flatnonzero(~(spread < 1e2))
    if not len(loose):  # means that are 0 or 1 to rounding, under well-determined coefficients
        return fit
    names = [repr(spec.all_labels[k]) for k in loose]
    warn(
        f"separation: the fitted mean lies numerically at the edge of its range in {int(rows.sum())} row(s) (rows "
        f"{some(inputs.rows[rows])}); the estimates of {some(names, 8)} are infinite and their standard errors mean "
        "nothing. Use penalty='firth' or priors=, or leave the separating term or level out.",
        SeparationWarning,
    )
    raw = eqx.tree_at(lambda f: f.result, fit.fit, RESULTS.separation)
    return dataclasses.replace(fit, fit=raw)
