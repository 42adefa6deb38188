"""Fit a GLM from the host: rank, coordinates, padding, a start from a subsample, one compiled program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxnlme._results import result_name
from jaxnlme.design.groups import bucket
from jaxnlme.families import AbstractFamily
from jaxnlme.glm.coordinates import (
    Affine,
    orthogonal_basis,
    scaled_inverse,
    smallest_pivot,
    suspect,
    triangular_inverse,
)
from jaxnlme.glm.fit import GLMFit, solve_on_host
from jaxnlme.glm.irls import IRLS
from jaxnlme.glm.problem import GLMProblem, Predictor
from jaxnlme.links import AbstractLink
from jaxnlme.numerics.blocked import BLOCK, Blocks, host_blocks, host_rows
from jaxnlme.penalties import AbstractPenalty, NoPenalty

SUBSAMPLE_FROM = 128  # blocks; below, a start from a subsample does not pay
SUBSAMPLE = 48  # blocks of the subsample
_ROUGH = 3e-3  # tolerance there: its own sampling error is a hundred times larger
LAZY_FROM = 64  # blocks from which the information matrix is reused between passes


@dataclasses.dataclass(frozen=True)
class HostDesign:
    """Columns of one predictor in blocks (numpy), and where each coefficient stands in the formula's order.

    ``blocks.dense`` is (k, p, c) with rows of padding 0; ``order[j]`` is the formula position of blocked
    coefficient j; ``n`` counts the rows without padding.
    """

    blocks: Blocks
    order: np.ndarray
    n: int
    finite: bool = True  # False: some value may be missing or infinite

    @property
    def width(self) -> int:
        """Number of coefficients."""
        return len(self.order)

    def matrix(self, columns: np.ndarray | None = None) -> np.ndarray:
        """The design (n, p) in the formula's order, or some of its columns."""
        dense = np.asarray(self.blocks.dense)
        positions = np.argsort(self.order)
        wanted = range(self.width) if columns is None else columns
        out = np.zeros((self.n, len(wanted)), order="F")
        p = dense.shape[1]
        for at, j in enumerate(wanted):
            where = int(positions[j])
            if where < p:
                out[:, at] = dense[:, where].reshape(-1)[: self.n]
                continue
            where -= p
            for codes, size in zip(self.blocks.codes, self.blocks.sizes, strict=True):
                if where < size:
                    out[:, at] = np.asarray(codes).reshape(-1)[: self.n] == where
                    break
                where -= size
        return out


def host_design(X: np.ndarray, *, constant: bool = False) -> HostDesign:
    """Lay out a matrix (n, p), padded to a shape bucket; ``constant`` puts a column of ones first."""
    n, p = X.shape
    first = int(constant)
    if n <= BLOCK:
        dense, finite = np.zeros((1, p + first, bucket(n))), bool(np.all(np.isfinite(X)))
        dense[0, first:, :n] = X.T
    else:
        dense, finite = host_blocks(X, rows=BLOCK * num_blocks(n), lead=first)
    if constant:
        dense[:, 0] = 1.0
    return HostDesign(Blocks(dense), np.arange(p + first), n, finite)


def num_blocks(n: int) -> int:
    """Blocks of rows for n rows: a shape bucket that wastes little (sixteenth octaves)."""
    k = -(-n // BLOCK)
    if k <= 16:
        return k
    step = 1 << (k.bit_length() - 5)
    return -(-k // step) * step


@dataclasses.dataclass(frozen=True)
class HostProblem:
    """A GLM on the host, before coordinates and padding.

    Attributes
    ----------
    designs
        One per predictor: the mean, then the family's parameters; the same object may stand twice.
    y
        (n,) or (d, n), in the form of ``family.read_response``.
    weights
        (n,).
    offsets
        One (n,) per predictor.
    family, links
        The nouns.
    penalty
        On all coefficients, in the order of the designs and of their formulas.
    held
        (P,) values of coefficients that are fixed, NaN for those that are free.
    lower, upper
        (P,) bounds, infinite where there is none.
    constraint
        ``b = shift + matrix u`` with bounds on ``u`` given by lower and upper; None: b itself.
    """

    designs: tuple[HostDesign, ...]
    y: np.ndarray
    weights: np.ndarray
    offsets: tuple[np.ndarray, ...]
    family: AbstractFamily
    links: tuple[AbstractLink, ...]
    penalty: AbstractPenalty = dataclasses.field(default_factory=NoPenalty)
    held: np.ndarray | None = None
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    constraint: Affine | None = None

    @property
    def width(self) -> int:
        """Number of coefficients of all predictors."""
        return sum(d.width for d in self.designs)

    @property
    def bounded(self) -> bool:
        """Whether any coefficient has a finite bound."""
        bounds = (self.lower, self.upper)
        return any(b is not None and bool(np.any(np.isfinite(b))) for b in bounds)


@dataclasses.dataclass(frozen=True)
class HostFit:
    """A fit on the host, coefficients in the order of the formulas.

    Attributes
    ----------
    params
        (P,), NaN where aliased.
    aliased, estimated
        (P,) bool: columns left out, and coefficients that the data determined.
    at_bound
        (P,) bool.
    covariance
        (P, P) inverse information (dispersion 1); 0 for coefficients that are held or at a bound, NaN where
        aliased.
    fit
        The raw pytree; ``params`` there are in the coordinates of the solver.
    condition
        Rough condition number of the scaled design.
    """

    params: np.ndarray
    aliased: np.ndarray
    estimated: np.ndarray
    at_bound: np.ndarray
    covariance: np.ndarray
    fit: GLMFit
    condition: float

    @property
    def result(self) -> str:
        """Name of the result code."""
        return result_name(self.fit.result)

    @property
    def filled(self) -> np.ndarray:
        """Coefficients with 0 in the place of aliased ones: for predictions."""
        return np.where(self.aliased, 0.0, self.params)


def drive(
    problem: HostProblem,
    *,
    start: np.ndarray | None = None,
    max_steps: int = 50,
    tolerance: float = 1e-8,
    aliased: np.ndarray | None = None,
) -> HostFit:
    """Fit one data set.

    Parameters
    ----------
    start
        Coefficients (P,) to start from.
    max_steps, tolerance
        Of :class:`~jaxnlme.glm.irls.IRLS`.
    aliased
        (P,) bool: columns known to be aliased (refits of the same design); default: found.
    """
    free = np.ones(problem.width, bool) if problem.held is None else np.isnan(problem.held)
    alias = np.zeros(problem.width, bool) if aliased is None else aliased
    options = {"start": start, "max_steps": max_steps, "tolerance": tolerance}
    if problem.constraint is not None:
        inner, affine = _constrained(problem)
        return _run(problem, inner, affine, free, alias, 1.0, **options)
    fit = _run(problem, problem, None, free, alias, 1.0, **options)
    if aliased is not None:
        return fit
    # The information matrix of the fit shows whether columns depend on each other; only then look closer.
    least = smallest_pivot(_free_information(problem, fit))
    limit = suspect(problem.designs[0].n, problem.width)
    if least >= limit:
        return dataclasses.replace(fit, condition=1 / np.sqrt(least))
    alias, bases, least = _find_aliases(problem, free)
    if not problem.bounded and any(b.smallest < limit for b in bases):
        inner, affine = _orthogonal(problem, free, bases)
        return _run(problem, inner, affine, free, alias, least, **options)
    if not alias.any():
        return dataclasses.replace(fit, condition=1 / np.sqrt(least))
    return _run(problem, problem, None, free, alias, least, **options)


def _free_information(problem: HostProblem, fit: HostFit) -> np.ndarray:
    order = order_of(problem.designs)
    free = np.flatnonzero(fit.estimated[order])
    return np.asarray(fit.fit.stats["information"])[np.ix_(free, free)]


def _find_aliases(problem: HostProblem, free: np.ndarray):
    """Which free columns depend linearly on those before them, and orthogonal bases of the others."""
    alias, bases, least, at = np.zeros(problem.width, bool), [], 1.0, 0
    live = problem.weights > 0
    for design in problem.designs:
        columns = at + np.flatnonzero(free[at : at + design.width])
        X = design.matrix(columns - at)
        basis = orthogonal_basis(X if live.all() else X[live])
        bases.append(basis)
        alias[columns] = ~basis.kept
        least = min(least, basis.smallest)
        at += design.width
    return alias, bases, least


def _orthogonal(problem, free, bases):
    """The problem on orthonormal columns: the normal equations then keep the digits of a QR."""
    designs, shift, matrices, offsets, at = [], [], [], [], 0
    for design, basis, offset in zip(problem.designs, bases, problem.offsets, strict=True):
        p = design.width
        held = np.zeros(p) if problem.held is None else np.nan_to_num(problem.held[at : at + p])
        columns = np.flatnonzero(free[at : at + p])
        if len(basis.q) < design.n:  # rows of weight 0 took no part
            basis = orthogonal_basis(design.matrix(columns[basis.kept]))
            basis = dataclasses.replace(basis, kept=bases[len(designs)].kept)
        T = np.zeros((p, basis.q.shape[1]))
        T[columns[basis.kept]] = triangular_inverse(basis.r)
        # unit root-mean-square columns, so that start values and steps have a natural size
        size = np.sqrt(design.n)
        designs.append(host_design(basis.q * size))
        matrices.append(T * size)
        shift.append(held)
        offsets.append(offset + design.matrix() @ held if held.any() else offset)
        at += p
    T = _block_diagonal(matrices)
    affine = Affine(T, np.concatenate(shift))
    penalty = _transformed(problem.penalty, affine)
    inner = dataclasses.replace(
        problem, designs=tuple(designs), offsets=tuple(offsets), penalty=penalty, held=None,
        lower=None, upper=None,
    )  # fmt: skip
    return inner, affine


def _constrained(problem):
    """The problem in the coordinates of a linear constraint (one predictor at a time mixes freely)."""
    affine = problem.constraint
    designs, offsets, at, column = [], [], 0, 0
    T, shift = affine.matrix, affine.shift
    for design, offset in zip(problem.designs, problem.offsets, strict=True):
        p = design.width
        rows = T[at : at + p]
        used = np.flatnonzero(np.any(rows != 0, axis=0))
        if not np.array_equal(used, np.arange(column, column + len(used))):
            raise ValueError("a linear constraint must not mix predictors")
        X = design.matrix()
        designs.append(host_design(X @ rows[:, used]))
        offsets.append(offset + X @ shift[at : at + p])
        at, column = at + p, column + len(used)
    penalty = _transformed(problem.penalty, affine)
    inner = dataclasses.replace(
        problem,
        designs=tuple(designs),
        offsets=tuple(offsets),
        penalty=penalty,
        held=None,
        constraint=None,
    )
    return inner, affine


class _InCoordinates(AbstractPenalty):
    """A penalty of ``b = shift + matrix u`` as one of ``u``."""

    inner: AbstractPenalty
    matrix: Any
    shift: Any

    @property
    def jeffreys(self) -> bool:
        return self.inner.jeffreys

    def value(self, b):
        return self.inner.value(self.shift + self.matrix @ b)


def _transformed(penalty: AbstractPenalty, affine: Affine) -> AbstractPenalty:
    return penalty if penalty.trivial else _InCoordinates(penalty, affine.matrix, affine.shift)


def _block_diagonal(matrices: list[np.ndarray]) -> np.ndarray:
    out = np.zeros((sum(m.shape[0] for m in matrices), sum(m.shape[1] for m in matrices)))
    i = j = 0
    for m in matrices:
        out[i : i + m.shape[0], j : j + m.shape[1]] = m
        i, j = i + m.shape[0], j + m.shape[1]
    return out


def _run(problem, inner, affine, free, alias, least, *, start, max_steps, tolerance):
    """Pad, solve, and bring the result back to the coefficients of the formulas."""
    width = inner.width
    lower = np.full(width, -np.inf) if inner.lower is None else np.array(inner.lower, float)
    upper = np.full(width, np.inf) if inner.upper is None else np.array(inner.upper, float)
    if affine is None:
        fixed = alias | ~free
        value = np.zeros(width) if problem.held is None else np.nan_to_num(problem.held)
        lower = np.where(fixed, np.where(alias, 0.0, value), lower)
        upper = np.where(fixed, lower, upper)
    order = order_of(inner.designs)
    prepared = pad(inner, lower[order], upper[order])
    u0 = None
    if start is not None:
        u0 = (
            start
            if affine is None
            else np.linalg.lstsq(affine.matrix, start - affine.shift, rcond=None)[0]
        )
        u0 = np.nan_to_num(u0)[order]
    gram0 = None
    if u0 is None:
        u0, gram0 = _subsample_start(prepared, width)
    lazy = prepared.weights.shape[0] >= LAZY_FROM
    solver = IRLS(np.float64(tolerance), lazy)
    fit = solve_on_host(prepared, solver, u0, max_steps, gram0)
    if (
        u0 is not None
        and start is None
        and result_name(fit.result) not in ("successful", "not_identified")
    ):
        fit = solve_on_host(prepared, solver, None, max_steps)
    return _unpack(fit, order, affine, free, alias, lower, upper, least)


def _unpack(fit, order, affine, free, alias, lower, upper, least):
    u = np.empty(len(order))
    u[order] = fit.params
    information = np.empty((len(order),) * 2)
    information[np.ix_(order, order)] = fit.stats["information"]
    score = np.empty(len(order))
    score[order] = fit.stats["score"]
    bound = (lower < upper) & (((u <= lower) & (score <= 0)) | ((u >= upper) & (score >= 0)))
    moving = np.flatnonzero((lower < upper) & ~bound)
    covariance = np.zeros((len(order),) * 2)
    covariance[np.ix_(moving, moving)] = scaled_inverse(information[np.ix_(moving, moving)])
    at_bound = np.zeros(len(alias), bool)
    if affine is None:
        params, at_bound = u, bound
    else:
        params = affine.coefficients(u)
        covariance = affine.covariance(covariance)
        if bound.any():
            at_bound = np.any(affine.matrix[:, bound] != 0, axis=1)
    params = np.where(alias, np.nan, params)
    covariance = np.where(alias[:, None] | alias[None], np.nan, covariance)
    estimated = free & ~alias & ~(at_bound if affine is None else False)
    return HostFit(
        params, alias, estimated, at_bound, covariance, fit, 1 / np.sqrt(max(least, 1e-32))
    )


def order_of(designs: Sequence[HostDesign]) -> np.ndarray:
    """Formula position of each coefficient of the blocked problem."""
    parts, at = [], 0
    for design in designs:
        parts.append(at + design.order)
        at += design.width
    return np.concatenate(parts)


def pad(problem: HostProblem, lower: Any = None, upper: Any = None) -> GLMProblem:
    """The pure problem: rows in blocks, padded with weight 0, coefficients in blocked order."""
    mean = problem.designs[0].blocks
    k, _, c = mean.dense.shape

    def rows(values: np.ndarray, fill: float | None = None) -> np.ndarray:
        values = np.asarray(values, np.float64)
        if c == BLOCK:
            return host_rows(values, k, fill)
        n = values.shape[-1]
        out = np.empty((*values.shape[:-1], c))
        out[..., :n] = values
        out[..., n:] = values[..., -1:] if fill is None else fill
        return out.reshape(*values.shape[:-1], k, c)

    first = problem.designs[0]
    zero = np.zeros((k, c))

    def offset(values: np.ndarray) -> np.ndarray:
        return rows(values) if np.any(values) else zero

    others = tuple(
        Predictor(None if design is first else design.blocks, offset(values))
        for design, values in zip(problem.designs[1:], problem.offsets[1:], strict=True)
    )
    penalty, order = problem.penalty, order_of(problem.designs)
    if not penalty.trivial and not np.array_equal(order, np.arange(len(order))):
        selection = np.zeros((len(order),) * 2)
        selection[order, np.arange(len(order))] = 1.0
        penalty = _InCoordinates(penalty, selection, np.zeros(len(order)))
    bounded = lower is not None and (np.any(np.isfinite(lower)) or np.any(np.isfinite(upper)))
    return GLMProblem(
        mean,
        rows(problem.y),
        rows(problem.weights, 0.0),
        offset(problem.offsets[0]),
        family=problem.family,
        link=problem.links[0],
        penalty=penalty,
        others=others,
        lower=lower if bounded else None,
        upper=upper if bounded else None,
    )


def _subsample_start(prepared: GLMProblem, width: int):
    """Coefficients from every so many-th block, and the information matrix scaled up to all rows.

    A large Poisson fit then needs two or three information matrices instead of nine.
    """
    k, c = prepared.weights.shape
    stride = k // max(SUBSAMPLE, -(-100 * width // c))
    if k < SUBSAMPLE_FROM or stride < 3:
        return None, None
    n = k - k % stride
    some = slice(0, n, stride)
    X, weights, offset, others = jax.tree.map(
        lambda a: a[some], (prepared.X, prepared.weights, prepared.offset, prepared.others)
    )
    part = GLMProblem(
        X, prepared.y[..., some, :], weights, offset, family=prepared.family, link=prepared.link,
        penalty=prepared.penalty, others=others, lower=prepared.lower, upper=prepared.upper,
    )  # fmt: skip
    fit = solve_on_host(part, IRLS(np.float64(_ROUGH), False), None, 30)
    if result_name(fit.result) != "successful":
        return None, None
    if not prepared.penalty.trivial:
        return np.asarray(fit.params), None
    return np.asarray(fit.params), np.asarray(fit.stats["information"]) * (k / (n // stride))
