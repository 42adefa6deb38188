"""Numbers of a fitted GLM from passes over its rows: means, deviances, likelihood, scores (compiled once each)."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme.design.groups import bucket
from jaxnlme.families import AbstractFamily
from jaxnlme.glm.drive import HostFit, HostProblem, drive, host_design, order_of, pad
from jaxnlme.glm.evaluate import (
    assemble_gram,
    assemble_score,
    lay_out,
    reported_rows,
    working_rows,
)
from jaxnlme.glm.problem import GLMProblem
from jaxnlme.links import AbstractLink
from jaxnlme.penalties import NoPenalty

_LARGE = 1e8  # rows times columns squared: a QR of a tenth of a second


class Rows(NamedTuple):
    """One value per row used, numpy: predictors, parameters, mean ((n, K) for classes), deviance, slope."""

    etas: tuple[np.ndarray, ...]
    parameters: tuple[np.ndarray, ...]
    mean: np.ndarray
    deviance: np.ndarray
    slope: np.ndarray


class Respond(NamedTuple):
    """Parameters and mean at linear predictors, and the derivative of the mean in each predictor."""

    parameters: tuple[np.ndarray, ...]
    mean: np.ndarray
    slopes: tuple[np.ndarray, ...]


def plain_problem(problem: HostProblem) -> HostProblem:
    """The likelihood alone: no penalty, bounds or held coefficients."""
    return dataclasses.replace(
        problem, penalty=NoPenalty(), held=None, lower=None, upper=None, constraint=None
    )


def conditional_problem(
    problem: HostProblem, params: np.ndarray, scalars: bool
) -> HostProblem | None:
    """The mean alone, in the exponential family that holds the other parameters at their estimates.

    None where there is no such family, or where other parameters have predictors of their own.
    """
    family, links = problem.family, problem.links
    if not family.parameters:
        return plain_problem(problem) if family.fisher_scoring else None
    if not scalars:
        return None
    first = problem.designs[0].width
    values = natural_values(links[1:], params[first:])
    held = family.at(*values)
    if held is None:
        return None
    return dataclasses.replace(
        plain_problem(problem),
        designs=problem.designs[:1],
        offsets=problem.offsets[:1],
        links=links[:1],
        family=held,
    )


def _inverse(link, eta):
    return link.inverse(eta), link.derivative(eta)


_inverse_jit = outer_jit(_inverse)


def natural_values(links: tuple[AbstractLink, ...], values: np.ndarray) -> list[float]:
    """Scalars of the family on their natural scale."""
    pairs = zip(links, values, strict=True)
    return [float(_inverse_jit(link, np.float64(v))[0]) for link, v in pairs]


def natural_slopes(links: tuple[AbstractLink, ...], values: np.ndarray) -> list[float]:
    """Derivatives of these scalars in their coefficients (delta method)."""
    pairs = zip(links, values, strict=True)
    return [float(_inverse_jit(link, np.float64(v))[1]) for link, v in pairs]


# ---- programs over padded rows ------------------------------------------------------------------
def _parameters(layout, b):
    etas = layout.linear(b)
    return etas, tuple(link.inverse(e) for link, e in zip(layout.links, etas, strict=True))


def _rows_program(prepared, b):
    layout = lay_out(prepared)
    etas, parameters = _parameters(layout, b)
    deviance = layout.weights * layout.family.unit_deviance(layout.y, *parameters)
    deviance = jnp.where(layout.weights > 0, deviance, 0)
    mean = layout.family.mean(*parameters)
    return etas, parameters, mean, deviance, layout.links[0].derivative(etas[0])


def _variance_program(prepared, b):
    layout = lay_out(prepared)
    _, parameters = _parameters(layout, b)
    return layout.family.residual_variance(layout.y, layout.weights, *parameters)


def _observed_program(prepared):
    layout = lay_out(prepared)
    return layout.family.observed(layout.y)


def _llf_program(prepared, b, dispersion):
    layout = lay_out(prepared)
    _, parameters = _parameters(layout, b)
    if dispersion is not None:
        parameters = (*parameters, jnp.broadcast_to(dispersion, layout.weights.shape))
    rows = layout.family.log_likelihood(layout.y, layout.weights, *parameters)
    return jnp.sum(jnp.where(layout.weights > 0, rows, 0))


def _constant_deviance(prepared, mu):
    layout = lay_out(prepared)
    mean = jnp.broadcast_to(mu, layout.weights.shape)
    rows = layout.weights * layout.family.unit_deviance(layout.y, mean)
    return jnp.sum(jnp.where(layout.weights > 0, rows, 0))


def _score_program(prepared, b):
    layout = lay_out(prepared)
    etas = layout.linear(b)
    _, score, observed = working_rows(layout, etas)
    information = reported_rows(layout, etas, observed)
    return assemble_score(layout, score), assemble_gram(layout, information)


def _meat_program(prepared, b, factor):
    layout = lay_out(prepared)
    score = working_rows(layout, layout.linear(b))[1]
    rows = tuple(
        tuple(factor * score[i] * score[j] for j in range(i + 1)) for i in range(len(score))
    )
    return assemble_gram(layout, rows)


def _row_scores(prepared, b):
    layout = lay_out(prepared)
    return working_rows(layout, layout.linear(b))[1]


def _leverage_program(prepared, b, covariance):
    layout = lay_out(prepared)
    (design,), etas = layout.designs, layout.linear(b)
    weight = reported_rows(layout, etas, working_rows(layout, etas)[2])[0][0]
    return weight * design.quadratic(covariance), weight


def _respond_program(family, links, etas):
    def mean(etas):
        parameters = tuple(link.inverse(e) for link, e in zip(links, etas, strict=True))
        return family.mean(*parameters), parameters

    slopes = []
    for k in range(len(etas)):
        step = tuple(jnp.full_like(e, 1.0 if j == k else 0.0) for j, e in enumerate(etas))
        slopes.append(jax.jvp(lambda e: mean(e)[0], (etas,), (step,))[1])
    value, parameters = mean(etas)
    return parameters, value, tuple(slopes)


_rows_jit = outer_jit(_rows_program)
_variance_jit = outer_jit(_variance_program)
_observed_jit = outer_jit(_observed_program)
_llf_jit = outer_jit(_llf_program)
_constant_jit = outer_jit(_constant_deviance)
_score_jit = outer_jit(_score_program)
_meat_jit = outer_jit(_meat_program)
_row_scores_jit = outer_jit(_row_scores)
_leverage_jit = outer_jit(_leverage_program)
_respond_jit = outer_jit(_respond_program)


class Evaluator:
    """Passes over the rows of one problem at one set of coefficients, in the order of the formulas."""

    def __init__(self, problem: HostProblem, params: np.ndarray) -> None:
        self.problem = plain_problem(problem)
        self.order = order_of(problem.designs)
        self.n = problem.designs[0].n
        self.prepared: GLMProblem = pad(self.problem)
        self.b = np.asarray(params, float)[self.order]

    def flat(self, values: Any) -> np.ndarray:
        """(k, c, ...) rows of the blocks as (n, ...)."""
        values = np.asarray(values)
        return values.reshape(-1, *values.shape[2:])[: self.n]

    def formula_order(self, matrix: Any) -> np.ndarray:
        """A score (P,) or matrix (P, P) in the order of the formulas."""
        matrix = np.asarray(matrix)
        out = np.empty_like(matrix)
        if matrix.ndim == 1:
            out[self.order] = matrix
        else:
            out[np.ix_(self.order, self.order)] = matrix
        return out

    def blocked(self, matrix: np.ndarray) -> np.ndarray:
        """A matrix (P, P) in the order of the blocks."""
        return np.asarray(matrix, float)[np.ix_(self.order, self.order)]

    def rows(self) -> Rows:
        """Predictors, parameters, means and deviances."""
        etas, parameters, mean, deviance, slope = _rows_jit(self.prepared, self.b)
        return Rows(
            tuple(map(self.flat, etas)),
            tuple(map(self.flat, parameters)),
            self.flat(mean),
            self.flat(deviance),
            self.flat(slope),
        )

    def variance(self) -> np.ndarray:
        """Variance of each response at dispersion 1, weights included."""
        return self.flat(_variance_jit(self.prepared, self.b))

    def observed(self) -> np.ndarray:
        """Responses on the scale of the mean."""
        return self.flat(_observed_jit(self.prepared))

    def llf(self, dispersion: float | None) -> float:
        """Log-likelihood, every constant kept."""
        phi = None if dispersion is None else np.float64(dispersion)
        return float(_llf_jit(self.prepared, self.b, phi))

    def deviance_of_constant(self, mu: float) -> float:
        """Deviance of one mean for all rows."""
        return float(_constant_jit(self.prepared, np.float64(mu)))

    def score(self) -> tuple[np.ndarray, np.ndarray]:
        """Score (P,) and information (P, P), expected where the family has it."""
        score, information = _score_jit(self.prepared, self.b)
        return self.formula_order(score), self.formula_order(information)

    def meat(self, factor: np.ndarray | None = None) -> np.ndarray:
        """``sum_i factor_i g_i g_i'`` with the scores ``g_i`` of the rows, (P, P)."""
        shape = self.prepared.weights.shape
        padded = np.ones(shape).reshape(-1)
        if factor is not None:
            padded[: self.n] = factor
        return self.formula_order(_meat_jit(self.prepared, self.b, padded.reshape(shape)))

    def row_scores(self) -> list[np.ndarray]:
        """Derivative of each row's log-likelihood in each linear predictor."""
        return [self.flat(s) for s in _row_scores_jit(self.prepared, self.b)]

    def leverage(self, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Leverages and working weights (one predictor).

        Of designs that are not large by a QR, which keeps the digits of ``1 - h`` where a leverage is near 1.
        """
        h, w = _leverage_jit(self.prepared, self.b, self.blocked(covariance))
        h, w = self.flat(h), self.flat(w)
        if self.n * len(self.b) ** 2 > _LARGE:
            return h, w
        X = self.problem.designs[0].matrix(np.flatnonzero(np.diag(covariance)))
        q = np.linalg.qr(X * np.sqrt(w)[:, None])[0]
        return np.sum(q**2, axis=1), w


def respond(
    family: AbstractFamily, links: tuple[AbstractLink, ...], etas: tuple[np.ndarray, ...]
) -> Respond:
    """Parameters and means at any linear predictors (n,), padded to a shape bucket."""
    n = len(etas[0])
    rows = bucket(n)

    def padded(eta):
        out = np.empty(rows)
        out[:n], out[n:] = eta, eta[-1:] if n else 0.0
        return out

    parameters, mean, slopes = _respond_jit(family, links, tuple(map(padded, etas)))

    def cut(values):
        return np.asarray(values)[:n]

    return Respond(tuple(map(cut, parameters)), cut(mean), tuple(map(cut, slopes)))


def null_fit(problem: HostProblem, constant: np.ndarray) -> tuple[HostProblem, HostFit]:
    """Fit the constants (``constant`` (P,) bool) alone, offsets and weights kept."""
    problem = plain_problem(problem)
    if len(problem.designs) == 1:
        ones = np.ones((problem.designs[0].n, 1))
        null = dataclasses.replace(problem, designs=(host_design(ones),))
        if not constant.any():
            null = dataclasses.replace(null, held=np.zeros(1))
        return null, drive(null, aliased=np.zeros(1, bool))
    null = dataclasses.replace(problem, held=np.where(constant, np.nan, 0.0))
    return null, drive(null, aliased=np.zeros(problem.width, bool))
