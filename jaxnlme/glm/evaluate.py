"""One pass over the rows: objective, score and information of all coefficients."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme._typing import Array, Bool, Float
from jaxnlme.families import AbstractFamily
from jaxnlme.glm.problem import GLMProblem
from jaxnlme.links import AbstractLink
from jaxnlme.numerics.blocked import Blocks, as_blocks, as_rows
from jaxnlme.numerics.small_linalg import cho_solve, cholesky, logdet
from jaxnlme.penalties import AbstractPenalty

_bar = jax.lax.optimization_barrier


class Layout(eqx.Module):
    """A problem laid out for passes: one design per predictor, rows (k, c)."""

    designs: tuple[Blocks, ...]
    y: Array
    weights: Float[Array, "k c"]
    offsets: tuple[Float[Array, "k c"], ...]
    family: AbstractFamily
    links: tuple[AbstractLink, ...]
    penalty: AbstractPenalty

    @property
    def width(self) -> int:
        """Number of coefficients of all predictors."""
        return sum(design.width for design in self.designs)

    def split(self, b: Float[Array, "p"]) -> list[Array]:
        """Coefficients of each predictor."""
        parts, at = [], 0
        for design in self.designs:
            parts.append(b[at : at + design.width])
            at += design.width
        return parts

    def linear(self, b: Float[Array, "p"]) -> tuple[Array, ...]:
        """Linear predictors, offsets included."""
        return tuple(
            design.linear(part) + offset
            for design, part, offset in zip(self.designs, self.split(b), self.offsets, strict=True)
        )


class Evaluation(NamedTuple):
    """What one pass gives.

    ``scale`` is about the number of rows times the dispersion; ``scoring``: the expected information is that of
    Fisher scoring, never indefinite; ``differs``: the observed information is another one.
    """

    objective: Float[Array, ""]
    score: Float[Array, "p"]
    gram: Float[Array, "p p"]
    scale: Float[Array, ""]
    scoring: Any
    differs: Any


def lay_out(problem: GLMProblem) -> Layout:
    """Bring a problem into blocks of rows."""
    mean = as_blocks(problem.X)
    shape = mean.rows_shape
    offset = as_rows(problem.offset, shape)
    designs, offsets = [mean], [offset]
    for predictor in problem.others:
        designs.append(mean if predictor.X is None else as_blocks(predictor.X))
        given = predictor.offset
        if predictor.X is None and given is None:
            offsets.append(offset)
        else:
            offsets.append(jnp.zeros_like(offset) if given is None else as_rows(given, shape))
    weights = problem.weights
    if weights.shape != shape:  # rows of padding weigh nothing
        n = weights.shape[-1]
        weights = jnp.pad(weights, (0, shape[0] * shape[1] - n)).reshape(shape)
    return Layout(
        tuple(designs),
        as_rows(problem.y, shape),
        weights,
        tuple(offsets),
        problem.family,
        problem.links,
        problem.penalty,
    )


def start_predictors(layout: Layout) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Linear predictors to start from: row by row, and constant ones inside every domain."""
    family, w = layout.family, layout.weights
    mean = family.start_mean(layout.y, w)
    total = jnp.sum(w)
    middle = jnp.sum(jnp.where(w > 0, w * mean, 0)) / total
    others = [jnp.broadcast_to(o, w.shape) for o in family.start_others(layout.y, w)]
    rows, flat = [], []
    for k, link in enumerate(layout.links):
        value = mean if k == 0 else others[k - 1]
        rows.append(link.link(value))
        flat.append(link.link(jnp.broadcast_to(middle, w.shape)) if k == 0 else rows[-1])
    return tuple(rows), tuple(flat)


def working_rows(layout: Layout, etas: tuple[Array, ...]):
    """Cost, score and information per row; 0 for rows of weight 0, an infinite cost outside the domain."""
    live = layout.weights > 0
    cost, score, information = layout.family.working(layout.links, layout.y, layout.weights, etas)
    parameters = [link.inverse(eta) for link, eta in zip(layout.links, etas, strict=True)]
    inside = layout.family.valid(*parameters)
    for link, eta in zip(layout.links, etas, strict=True):
        inside = inside & link.valid(eta)
    zero = jnp.zeros((), cost.dtype)
    infinite = jnp.full((), jnp.inf, cost.dtype)
    cost = jnp.where(live, jnp.where(inside, cost, infinite), zero)
    score = tuple(jnp.where(live, s, zero) for s in score)
    information = tuple(tuple(jnp.where(live, v, zero) for v in row) for row in information)
    return cost, score, information


def assemble_gram(layout: Layout, information) -> Float[Array, "p p"]:
    """The information matrix of all coefficients from its rows (i, j <= i)."""
    lines: list[list[Array]] = []
    for i, design in enumerate(layout.designs):
        line = [design.cross(layout.designs[j], information[i][j]) for j in range(i)]
        lines.append([*line, design.gram(information[i][i])])
    full = []
    for i in range(len(lines)):
        upper = [lines[j][i].T for j in range(i + 1, len(lines))]
        full.append(jnp.concatenate([*lines[i], *upper], axis=1))
    return jnp.concatenate(full, axis=0)


def assemble_score(layout: Layout, score) -> Float[Array, "p"]:
    """The gradient of all coefficients from its rows."""
    return jnp.concatenate([d.score(s) for d, s in zip(layout.designs, score, strict=True)])


def start_working(layout: Layout, etas: tuple[Array, ...]):
    """Score and weights per row of the first least-squares fit, at the starting predictors.

    Families that are fitted by Newton's method regress the predictors themselves: their second derivatives
    need not be positive away from the optimum.
    """
    w = layout.weights
    if not layout.family.fisher_scoring:
        return tuple(jnp.zeros_like(eta) for eta in etas), tuple(w for _ in etas)
    _, score, information = working_rows(layout, etas)
    return score, tuple(row[i] for i, row in enumerate(information))


def start_system(layout: Layout, base: Float[Array, "p"]):
    """Least squares of the starting predictors: ``base``, the matrix, and targets from constant ones and rows.

    ``base`` are coefficients inside the bounds; the unknown is the distance from them.
    """
    rows, flat = start_predictors(layout)
    held = layout.linear(base)  # offsets, and what coefficients that are held contribute
    score, weights = start_working(layout, rows)

    def target(etas, score):
        gaps = [w * (e - h) + s for w, e, h, s in zip(weights, etas, held, score, strict=True)]
        return assemble_score(layout, [jnp.where(layout.weights > 0, g, 0) for g in gaps])

    zero = tuple(jnp.zeros_like(s) for s in score)
    none = jnp.zeros_like(layout.weights)
    gram = assemble_gram(
        layout,
        tuple(
            tuple(weights[i] if i == j else none for j in range(i + 1)) for i in range(len(weights))
        ),
    )
    return base, gram, jnp.stack([target(flat, zero), target(rows, score)], axis=1)


def evaluate(
    layout: Layout,
    b: Float[Array, "p"],
    want_gram: Bool[Array, ""],
    old_gram: Float[Array, "p p"],
    newton: Bool[Array, ""],
) -> Evaluation:
    """Evaluate at coefficients; the information matrix is taken over from ``old_gram`` unless wanted.

    With ``newton`` it is the observed one where that differs from the expected one.
    """
    etas = layout.linear(b)
    cost, score, information = working_rows(layout, etas)
    scale = jnp.full((), jnp.inf, cost.dtype)
    if layout.family.fisher_scoring:  # Pearson's statistic
        spread = jnp.where(information[0][0] > 0, information[0][0], scale)
        scale = jnp.sum(score[0] ** 2 / spread)
    differs = has_newton(layout)
    if differs:
        information = _choose(layout, etas, information, newton)
    cost, score, information = _bar((cost, score, information))
    objective = jnp.sum(cost)
    scale = jnp.maximum(jnp.minimum(scale, jnp.abs(objective)), 1e-3 * scale)
    scale = jnp.where(jnp.isfinite(scale), scale, jnp.abs(objective))
    gradient = assemble_score(layout, score)
    penalty = layout.penalty
    gram = jax.lax.cond(
        want_gram,
        lambda i: assemble_gram(layout, i) + (0 if penalty.trivial else penalty.hessian(b)),
        lambda i: old_gram,
        information,
    )
    if penalty.jeffreys:
        objective, gradient = _jeffreys(layout, etas, objective, gradient, gram)
    if not penalty.trivial:
        objective = objective + penalty.value(b)
        gradient = gradient - penalty.gradient(b)
    return Evaluation(objective, gradient, gram, scale, layout.family.fisher_scoring, differs)


def has_newton(layout: Layout) -> bool:
    """Whether observed and expected information differ: the first is quicker, the second is reported."""
    family = layout.family
    if layout.penalty.jeffreys:
        return False
    if family.fisher_scoring:
        return family.canonical != layout.links[0].name
    return family.expected_information(layout.links, layout.weights, layout.offsets) is not None


def reported_rows(layout: Layout, etas: tuple[Array, ...], observed):
    """Information per row for standard errors: expected where the family has it, else ``observed``."""
    expected = layout.family.expected_information(layout.links, layout.weights, etas)
    if expected is None:
        return observed
    live, zero = layout.weights > 0, jnp.zeros((), layout.weights.dtype)
    return tuple(
        tuple(o if e is None else jnp.where(live, e, zero) for e, o in zip(*lines, strict=True))
        for lines in zip(expected, observed, strict=True)
    )


def _choose(layout, etas, information, newton):
    """The observed information per row, or the expected one for the last pass."""
    expected, observed = information, information
    if layout.family.fisher_scoring:
        (rows,) = layout.family.observed_information(layout.links, layout.y, layout.weights, etas)
        observed = ((jnp.where(layout.weights > 0, rows[0], 0),),)
    else:
        expected = reported_rows(layout, etas, information)
    return jax.tree.map(lambda o, e: jnp.where(newton, o, e), observed, expected)


def _jeffreys(layout, etas, objective, gradient, gram):
    """Subtract half the log-determinant of the information (Firth 1993, Biometrika 80, eq. 3)."""
    low = cholesky(gram)
    inverse = cho_solve(low, jnp.eye(gram.shape[0], dtype=gram.dtype))
    (design,) = layout.designs

    def weight(eta):
        return layout.family.working(layout.links, layout.y, layout.weights, (eta,))[2][0][0]

    slope = jax.jvp(weight, etas[:1], (jnp.ones_like(etas[0]),))[1]
    half = 0.5 * design.quadratic(inverse) * jnp.where(layout.weights > 0, slope, 0)
    return objective - 0.5 * logdet(low), gradient + design.score(half)
