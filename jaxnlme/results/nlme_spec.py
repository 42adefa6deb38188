"""What a fitted nonlinear mixed model remembers of its data, and how it makes problems from tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme.covariance import Covariance, CovarianceBlock
from jaxnlme.design.expressions import Expression
from jaxnlme.design.formula import evaluate_numbers
from jaxnlme.design.frames import Table
from jaxnlme.design.groups import GroupLayout, bucket
from jaxnlme.design.nonlinear import (
    Grouping,
    Level,
    ParameterDesign,
    collapse,
    random_rows,
)
from jaxnlme.error_models import AbstractErrorModel
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem, StructuralModel
from jaxnlme.numerics.bijectors import AbstractBijector

CHUNK = 512


@dataclass(frozen=True)
class NLMESpec:
    """Names, formulas and nouns of a model; makes a padded problem from any table."""

    model: StructuralModel
    response: Expression | None
    response_name: str
    predictors: tuple[str, ...]
    parameters: tuple[str, ...]
    transforms: tuple[AbstractBijector, ...]
    fixed: ParameterDesign
    levels: tuple[Level, ...]
    patterns: tuple[tuple[tuple[int, ...], ...], ...]
    error_model: AbstractErrorModel
    weights: str | None = None
    formula: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(level.group for level in self.levels)

    @property
    def columns(self) -> tuple[str, ...]:
        """Data columns of the predictors, the parameter formulas and the groups."""
        out = [*self.predictors, *self.fixed.columns]
        for level in self.levels:
            out += [*level.design.columns, level.group]
        return tuple(dict.fromkeys(out))

    @property
    def response_columns(self) -> tuple[str, ...]:
        return self.response.names if self.response is not None else (self.response_name,)

    @property
    def error_names(self) -> tuple[str, ...]:
        """``sigma`` for one error parameter, else the error model's own names."""
        names = self.error_model.parameters
        return ("sigma",) if len(names) == 1 else names

    @property
    def theta_names(self) -> tuple[str, ...]:
        """Labels of the free entries of the factors: ``sd(g).a`` on, ``cor(g).b.a`` off the diagonal."""
        out: list[str] = []
        for level, pattern in zip(self.levels, self.patterns, strict=True):
            labels = level.design.labels
            for i, j in CovarianceBlock(pattern).entries:
                if i == j:
                    out.append(f"sd({level.group}).{labels[i]}")
                else:
                    out.append(f"cor({level.group}).{labels[i]}.{labels[j]}")
        return tuple(out)

    @property
    def all_names(self) -> tuple[str, ...]:
        return (*self.fixed.labels, *self.theta_names, *self.error_names)

    def respond(self, table: Table) -> np.ndarray:
        """Return the response of each row, float64, NaN where missing."""
        if self.response is not None:
            return evaluate_numbers(self.response, table, "response")
        return table.numeric(self.response_name, "response")

    def problem(
        self,
        table: Table,
        grouping: Grouping,
        y: np.ndarray,
        weights: np.ndarray,
        beta0: Any,
        free: NLMEParams,
        prior: Any = None,
        *,
        repeats: tuple[int, ...] | None = None,
    ) -> NLMEProblem:
        """Return the padded arrays of the rows of a table."""
        layout = grouping.layout
        # Copies of inner groups are padded too, so that data with one group more compile nothing.
        count = tuple(bucket(r, minimum=2) if r > 1 else 1 for r in grouping.repeats)
        repeats = count if repeats is None else repeats
        A = collapse(self.fixed.rows(table, self.parameters), layout)
        B = random_rows(self.levels, grouping, table, self.parameters, repeats)
        B = collapse(B, layout)
        if (A.shape[1] > 1 or B.shape[1] > 1) and self.model.kind == "group":
            raise ModelSpecError(
                "a trajectory model takes parameters that are constant within a group, but a formula "
                "of fixed= or random= uses a column that changes within groups (or groups are "
                "nested): pass that column as a predictor and use it inside the model."
            )
        x = {name: layout.pack(table.numeric(name, "predictor")) for name in self.predictors}
        if self.model.kind == "group":
            x = {name: _end_padded(a, layout) for name, a in x.items()}
        blocks = tuple(
            CovarianceBlock(pattern, count)
            for pattern, count in zip(self.patterns, repeats, strict=True)
        )
        m = layout.shape[0]
        return NLMEProblem(
            y=layout.pack(y),
            weights=layout.pack(weights, fill=0.0),
            x=x,
            v=None,
            A=A,
            B=B,
            beta0=np.asarray(beta0, float),
            free=free,
            model=self.model,
            transforms=self.transforms,
            covariance=Covariance(blocks),
            error_model=self.error_model,
            prior=prior,
            chunk=CHUNK if m % CHUNK == 0 else m,
        )

    def natural_error(self, unconstrained: Any) -> np.ndarray:
        """Return the error parameters on their natural scale (host)."""
        e = np.asarray(unconstrained, float)
        return np.where(self.error_model.positive, np.exp(e), e)

    def unconstrained_error(self, natural: np.ndarray) -> np.ndarray:
        """Return the error parameters on the scale of the optimisers (host)."""
        e = np.asarray(natural, float)
        positive = np.array(self.error_model.positive)
        if np.any(positive & ~(e > 0)):
            bad = [
                n for n, p, v in zip(self.error_names, positive, e, strict=True) if p and not v > 0
            ]
            raise ModelSpecError(
                f"the error parameter(s) {bad} must be positive, got {e.tolist()}."
            )
        return np.where(positive, np.log(np.where(positive, e, 1.0)), e)


def _end_padded(packed: np.ndarray, layout: GroupLayout) -> np.ndarray:
    """Let padded rows repeat the group's last row: times that are sorted stay sorted."""
    count = np.bincount(layout.codes, minlength=layout.num_groups)
    last = np.full(layout.shape[0], count[0] - 1)
    last[: layout.num_groups] = count - 1
    row = np.minimum(np.arange(layout.shape[1]), last[:, None])
    packed[layout.num_groups :] = packed[0]
    return np.take_along_axis(packed, row, 1)


def check_response(spec: NLMESpec, y: np.ndarray) -> None:
    """Refuse responses that the error model cannot have."""
    if spec.error_model.log_scale and np.any(y <= 0):
        rows = np.flatnonzero(y <= 0)
        raise DataError(
            f"error_model='{spec.error_model.name}' needs a positive response, but "
            f"{spec.response_name!r} is <= 0 in {len(rows)} row(s), first row {rows[0]}."
        )
