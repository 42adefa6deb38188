"""Reading the arguments of ``fit_glm`` into a spec and host arrays: what both kinds of call share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnlme._errors import (
    DataError,
    DataWarning,
    FormulaError,
    ModelSpecError,
    nearest,
    some,
    warn,
)
from jaxnlme.design.expressions import split_formula
from jaxnlme.design.formula import DesignSpec, fixed_design
from jaxnlme.design.frames import Table
from jaxnlme.families import AbstractFamily, Response, as_family
from jaxnlme.families._base import fit_link
from jaxnlme.glm.drive import HostDesign, host_design
from jaxnlme.links import AbstractLink
from jaxnlme.results.glm_spec import Covariate, GLMSpec, log_exposure, read_covariate


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything that was read: names, designs in blocks, response, weights and offsets of the rows used."""

    spec: GLMSpec
    table: Table
    rows: np.ndarray
    designs: tuple[HostDesign, ...]
    y: np.ndarray
    weights: np.ndarray
    offsets: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Covariates:
    """Weights, offset and exposure of all rows of the table."""

    given: dict[str, Covariate]
    values: dict[str, np.ndarray | None]

    def at(self, role: str, rows: np.ndarray | None) -> np.ndarray | None:
        """Values of the rows used."""
        values = self.values[role]
        return values if values is None or rows is None else values[rows]


def read_covariates(table: Table, *, weights: Any, offset: Any, exposure: Any) -> Covariates:
    """Read and check the three roles.

    Raises
    ------
    DataError
        Missing, infinite or negative values.
    FormulaError
        One column as exposure and as offset.
    """
    given, values = {}, {}
    for role, value in (("weights", weights), ("offset", offset), ("exposure", exposure)):
        given[role], values[role] = read_covariate(value, role, table)
    w = values["weights"]
    if w is not None:
        bad = np.flatnonzero(w < 0)
        if len(bad):
            raise DataError(
                f"weights is negative in {len(bad)} row(s) (rows {some(bad)}); a weight is 0 (the row is left "
                "out) or positive."
            )
        if not w.any():
            raise DataError("weights is 0 in every row; no row is left.")
    if offset is not None and isinstance(offset, str) and offset == exposure:
        raise FormulaError(
            f"column {offset!r} is given twice, as exposure and as offset. exposure= is logged, offset= is "
            "not: leave one out."
        )
    return Covariates(given, values)


def mean_offset(
    covariates: Covariates,
    rows: np.ndarray | None,
    link: AbstractLink,
    in_formula: np.ndarray | None,
    n: int,
) -> np.ndarray:
    """Sum of the formula's offset terms, ``offset=`` and the logged ``exposure=``.

    Raises
    ------
    FormulaError
        Two of them are the same quantity.
    """
    parts: dict[str, np.ndarray] = {}
    if in_formula is not None:
        parts["the formula's offset()"] = in_formula
    offset, exposure = covariates.at("offset", rows), covariates.at("exposure", rows)
    if offset is not None:
        parts["offset="] = offset
        if link.name == "log" and exposure is None:
            _warn_raw_exposure(offset)
    if exposure is not None:
        parts["exposure="] = log_exposure(exposure, link)
    names = list(parts)
    for i, a in enumerate(names):
        for b in names[:i]:
            if np.any(parts[a]) and np.allclose(parts[a], parts[b], rtol=1e-12, atol=0):
                raise FormulaError(
                    f"{b} and {a} are the same quantity, given twice; leave one out (an exposure and a "
                    "different offset add up)."
                )
    total = np.zeros(n)
    for values in parts.values():
        total = values if not total.any() else total + values
    return total


def _warn_raw_exposure(offset: np.ndarray) -> None:
    """An offset that looks like a raw exposure (M08)."""
    low, high = float(np.min(offset)), float(np.max(offset))
    years = low > 0 and high <= 1.0 and high > low
    counts = low >= 0 and high > 50
    if years or counts:
        warn(
            f"offset= lies between {low:.4g} and {high:.4g}, which looks like an exposure; offset= is on the "
            "link scale and is not logged. Pass it as exposure= if it is one.",
            DataWarning,
        )


def read_families(
    family: Any,
    link: Any,
    parameters: Mapping[str, str] | None,
    dispersion: tuple[tuple[str, ...], tuple[str, ...]],
) -> tuple[AbstractFamily, dict[str, str]]:
    """The family in the form that is fitted, and the formulas of its parameters."""
    chosen = as_family(family)
    formulas = {**chosen.formulas, **dict(parameters or {})}
    for name, text in formulas.items():
        if not isinstance(text, str):
            raise ModelSpecError(
                f"parameters[{name!r}]={text!r}: expected a formula such as '~ 1 + x'."
            )
    held, priors = dispersion
    wanted = dict(formulas)
    name = chosen.dispersion_name
    if name is not None and (name in held or priors):
        wanted.setdefault(name, "~ 1")
    if priors and not chosen.has_likelihood:
        raise ModelSpecError(
            f"priors= needs a likelihood, which family {chosen.name!r} does not have; use poisson, binomial or "
            "another full family."
        )
    fit_link(chosen, link)  # refuses a link before the data are read
    return chosen.with_parameters(wanted) if wanted else chosen, formulas


def finish(
    *,
    table: Table,
    rows: np.ndarray,
    used: Table,
    family: AbstractFamily,
    link: Any,
    formulas: Mapping[str, str],
    response: Response,
    text: str,
    lhs: str,
    mean: DesignSpec,
    build: Any,
    covariates: Covariates,
    names: tuple[str, ...] | None = None,
) -> Inputs:
    """Prepare the response, build the designs and put the spec together.

    ``build(keep)`` makes the blocked design of the mean; ``keep`` are the columns used (None: all).
    """
    prepared = family.read_response(response)
    family = prepared.family
    chosen = fit_link(family, link)
    links = (chosen, *(p.link for p in family.parameters))
    known = [p.name for p in family.parameters]
    for name in formulas:
        if name not in known:
            raise ModelSpecError(
                f"parameters: {name!r} is not a parameter of family {family.name!r}; it has {known}."
                f"{nearest(str(name), known)}"
            )
    others: list[DesignSpec | None] = []
    matrices: list[np.ndarray | None] = []
    shared: dict[str, tuple[DesignSpec, np.ndarray]] = {}
    for parameter in family.parameters:
        formula = formulas.get(parameter.name, parameter.formula)
        if formula == "mean":
            others.append(None)
            matrices.append(None)
            continue
        if formula not in shared:
            left, right = split_formula(formula)
            if left is not None:
                raise FormulaError(
                    f"parameters[{parameter.name!r}]={formula!r} has a left side; write {'~ ' + right!r}."
                )
            shared[formula] = fixed_design(right, table, rows=rows)
        others.append(shared[formula][0])
        matrices.append(shared[formula][1])
    spec = GLMSpec(
        formula=text, response=lhs, mean=mean, others=tuple(others),
        named=tuple(p.name in formulas for p in family.parameters), family=family, links=links,
        weights=covariates.given["weights"], offset=covariates.given["offset"],
        exposure=covariates.given["exposure"], names=names, levels=response.levels,
    )  # fmt: skip
    design = build(None if family.has_intercept else spec.mean_columns)
    designs = [design]
    made: dict[int, HostDesign] = {}
    for matrix in matrices:
        if matrix is not None and id(matrix) not in made:
            made[id(matrix)] = host_design(matrix)
        designs.append(design if matrix is None else made[id(matrix)])
    whole = None if len(rows) == table.n else rows
    offsets = [mean_offset(covariates, whole, chosen, mean.offset(used), used.n)]
    for other in others:
        more = None if other is None else other.offset(used)
        offsets.append(np.zeros(used.n) if more is None else more)
    inputs = Inputs(spec, table, rows, tuple(designs), prepared.y, prepared.weights, tuple(offsets))
    if not np.any(inputs.weights > 0):
        raise DataError("0 rows have a positive weight; nothing is left to fit.")
    return inputs
