"""The formula call of ``fit_glm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnlme.api._glm_inputs import (
    Inputs,
    finish,
    read_covariates,
    read_families,
)
from jaxnlme.design.expressions import free_names, split_formula
from jaxnlme.design.formula import learn_design
from jaxnlme.design.frames import read_frame, select_rows
from jaxnlme.design.response import read_formula, read_response, response_columns
from jaxnlme.design.terms import expand
from jaxnlme.design.variables import data_part
from jaxnlme.families import Response
from jaxnlme.glm.drive import HostDesign, host_design, num_blocks
from jaxnlme.numerics.blocked import BLOCK, Blocks
from jaxnlme.results.glm_spec import column_reader


def read_formula_model(
    text: str,
    data: Any,
    *,
    family: Any,
    link: Any,
    exposure: Any,
    weights: Any,
    offset: Any,
    parameters: Mapping[str, str] | None,
    missing: str,
    dispersion: Any,
) -> Inputs:
    """Read ``fit_glm("y ~ x", data, ...)``."""
    chosen, formulas = read_families(family, link, parameters, dispersion)
    table = read_frame(data)
    lhs, rhs = read_formula(text, table)
    covariates = read_covariates(table, weights=weights, offset=offset, exposure=exposure)
    wanted = [*response_columns(lhs), *_columns(rhs)]
    wanted += [c for formula in formulas.values() for c in _columns(split_formula(formula)[1])]
    for name in (
        *wanted,
        *chosen.columns,
    ):  # a family's own columns may hold missing values (open intervals)
        table.column(name)
    rows = select_rows(table, wanted, missing=missing)
    used, n = table.take(rows), len(rows)
    values, levels, _ = read_response(lhs, used)
    w = covariates.at("weights", None if n == table.n else rows)
    response = Response(
        values=values, weights=np.ones(n) if w is None else w, weighted=w is not None, levels=levels,
        column=column_reader(used), name=lhs, rows=rows,
    )  # fmt: skip
    spec = learn_design(rhs, table, rows=rows)

    def build(keep: np.ndarray | None) -> HostDesign:
        if keep is not None or n <= BLOCK:
            matrix = spec.matrix(used)
            return host_design(matrix if keep is None else matrix[:, keep])
        dense, codes, sizes, order = spec.blocks(used, BLOCK * num_blocks(n))
        return HostDesign(Blocks(dense, codes, sizes), order, n)

    return finish(
        table=table, rows=rows, used=used, family=chosen, link=link, formulas=formulas, response=response,
        text=text, lhs=lhs, mean=spec, build=build, covariates=covariates,
    )  # fmt: skip


def _columns(rhs: str) -> list[str]:
    """Data columns that the right side of a formula reads, offsets included."""
    terms = expand(rhs)
    nodes = (*terms.variables, *terms.offsets)
    return list(dict.fromkeys(name for node in nodes for name in free_names(data_part(node))))
