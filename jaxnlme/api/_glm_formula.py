"""The formula call of ``fit_glm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnlme._errors import FormulaError, FormulaWarning, warn
from jaxnlme.api._glm_inputs import Inputs, column_reader, finish, read_covariates, read_families
from jaxnlme.design.expressions import parse_formula
from jaxnlme.design.formula import design_spec
from jaxnlme.design.frames import read_frame, select_rows
from jaxnlme.design.response import read_response, response_columns
from jaxnlme.families import Response
from jaxnlme.glm.drive import HostDesign
from jaxnlme.numerics.blocked import Blocks


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
    formula = parse_formula(text)
    if formula.response is None:
        raise FormulaError(
            f"the formula {text!r} has no response; fit_glm needs a two-sided formula such as 'y ~ x'."
        )
    chosen, formulas = read_families(family, link, parameters, dispersion)
    table = read_frame(data)
    lhs_columns = response_columns(formula.response, table)
    covariates = read_covariates(table, weights=weights, offset=offset, exposure=exposure)
    rhs_columns = design_columns(formula.rhs, table, lhs_columns)
    both = [c for c in lhs_columns if c in rhs_columns]
    if both:
        warn(
            f"the response {both[0]!r} is also on the right side of {text!r}; is that meant?", FormulaWarning
        )
    more = [c for t in formulas.values() for c in design_columns(parse_formula(t).rhs, table, ())]
    columns = [*lhs_columns, *rhs_columns, *more]
    rows = select_rows(table, columns, missing=missing)
    used = table.take(rows)
    n = len(rows)
    values, levels, _ = read_response(formula.response, used)
    whole = None if n == table.n else rows
    w = covariates.at("weights", whole)
    response = Response(
        values=values, weights=np.ones(n) if w is None else w, weighted=w is not None, levels=levels,
        column=column_reader(used), name=formula.response, rows=rows,
    )  # fmt: skip
    spec = design_spec(formula.rhs, used, response=lhs_columns)

    def build(keep: np.ndarray | None) -> HostDesign:
        dense, codes, sizes, order = spec.blocks(used, keep=keep)
        return HostDesign(Blocks(dense, codes, sizes), order, n)

    return finish(
        table=table, rows=rows, used=used, family=chosen, link=link, formulas=formulas, response=response,
        text=text, lhs=formula.response, mean=spec, build=build, covariates=covariates,
    )  # fmt: skip
