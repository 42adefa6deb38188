"""Iteratively reweighted least squares, and its Newton form for families with several predictors."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme._results import RESULTS
from jaxnlme._typing import Array, Bool, Float, Int
from jaxnlme.glm.evaluate import (
    Layout,
    assemble_gram,
    assemble_score,
    evaluate,
    has_newton,
    start_predictors,
    start_working,
)
from jaxnlme.numerics.small_linalg import cho_solve, cholesky

_SLOW = 1e-2  # a stale information matrix is kept while the decrement falls faster than this
_NEARLY = (
    100.0  # decrement, in thresholds, from which a quickly converging fit needs no further pass
)
_CLOSE = 0.05  # decrement, in rows times dispersion, from which the observed information is used
_SMALLEST_STEP = 2.0**-30
_DAMPINGS = (0.0, 1e-9, 1e-6, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


class IRLSState(eqx.Module):
    """The point, what one pass gave there, and the step to try next."""

    objective: Float[Array, ""]
    score: Float[Array, "p"]
    gram: Float[Array, "p p"]
    direction: Float[Array, "p"]
    fraction: Float[Array, ""]
    decrement: Float[Array, ""]
    ratio: Float[Array, ""]
    damping: Float[Array, ""]
    num_steps: Int[Array, ""]
    num_passes: Int[Array, ""]
    fresh_gram: Bool[Array, ""]
    want_gram: Bool[Array, ""]
    scale: Float[Array, ""]
    newton: Bool[Array, ""]
    done: Bool[Array, ""]


class IRLS(eqx.Module):
    """Newton steps with step halving; Fisher scoring for exponential families.

    Attributes
    ----------
    tolerance
        The fit has converged when the squared Newton step, in the metric of the information, is below
        ``tolerance ** 2`` times the rows times the dispersion (the smaller of Pearson's statistic and the
        objective), or below a hundred times that and falling a hundredfold per pass; the step at hand is taken in
        either case.
    lazy
        Reuse the information matrix over passes while the decrement falls a hundredfold per pass. Pays
        for many rows; off under ``vmap``.

    References
    ----------
    McCullagh and Nelder (1989), Generalized Linear Models, 2.5; bounds: Bertsekas (1982), SIAM J. Control
    Optim. 20, two-metric projection.
    """

    tolerance: Float[Array, ""] | float = 1e-8
    lazy: bool = eqx.field(static=True, default=False)

    def init(
        self,
        layout: Layout,
        bounds,
        params: Float[Array, "p"] | None,
        gram: Float[Array, "p p"] | None = None,
    ):
        """The start and the state before the first pass; ``gram`` is an information matrix to begin with."""
        p, dtype = layout.width, layout.weights.dtype
        zero, infinite = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)
        if params is None:
            b, direction = self._start(layout, bounds)
        else:
            b = jnp.clip(jnp.asarray(params, dtype), *bounds)
            direction = jnp.zeros(p, dtype)
        state = IRLSState(
            objective=infinite,
            score=jnp.zeros(p, dtype),
            gram=jnp.eye(p, dtype=dtype) if gram is None else gram,
            direction=direction,
            fraction=jnp.ones((), dtype),
            decrement=infinite,
            ratio=infinite,
            damping=zero,
            num_steps=jnp.zeros((), jnp.int32),
            num_passes=jnp.zeros((), jnp.int32),
            fresh_gram=jnp.zeros((), bool),
            want_gram=jnp.full((), gram is None),
            scale=infinite,
            newton=jnp.full((), not layout.family.fisher_scoring),
            done=jnp.zeros((), bool),
        )
        return b, state

    def _start(self, layout, bounds):
        """Least squares of the family's starting predictors, approached from constant ones in the domain."""
        rows, flat = start_predictors(layout)
        free = bounds[1] > bounds[0]
        base = jnp.clip(jnp.zeros(layout.width, layout.weights.dtype), *bounds)
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
                tuple(weights[i] if i == j else none for j in range(i + 1))
                for i in range(len(weights))
            ),
        )
        both = jnp.stack([target(flat, zero), target(rows, score)], axis=1)
        found = damped_solve(gram, both, free)[0]
        safe, full = base + found[:, 0], base + found[:, 1]
        safe = jnp.clip(safe, *bounds)
        return safe, jnp.clip(full, *bounds) - safe

    def step(self, layout: Layout, bounds, b: Float[Array, "p"], state: IRLSState):
        """One pass over the rows at a trial point; accept it or halve the step."""
        trial = jnp.clip(b + state.fraction * state.direction, *bounds)
        new = evaluate(layout, trial, state.want_gram, state.gram, state.newton)
        dtype = layout.weights.dtype
        eps = jnp.finfo(dtype).eps
        slack = 64 * eps * jnp.abs(state.objective)
        better = jnp.isfinite(new.objective) & (
            (new.objective <= state.objective + slack) | jnp.isinf(state.objective)
        )
        better = better & jnp.all(jnp.isfinite(new.score))
        lower, upper = bounds
        free = (upper > lower) & ~(
            ((trial <= lower) & (new.score < 0)) | ((trial >= upper) & (new.score > 0))
        )
        direction, damping = damped_solve(new.gram, new.score, free)
        decrement = jnp.sum(jnp.where(free, direction * new.score, 0))
        infinite = jnp.full((), jnp.inf, dtype)
        ratio = jnp.where(jnp.isfinite(state.decrement), decrement / state.decrement, infinite)
        smooth = ratio < _SLOW
        given = jnp.zeros((), bool)
        if not has_newton(layout):  # the matrix to begin with may do for another step
            given = jnp.isinf(state.decrement) & ~state.want_gram
        limit = self.threshold(new.scale, trial, new.gram)
        # the step at hand is still taken: a fit that converges quadratically is then at the optimum
        small = (decrement <= limit) | (smooth & (decrement <= _NEARLY * limit))
        # rounding: steps of a millionth of a standard error that no longer shrink
        eps = jnp.finfo(dtype).eps
        noise = (ratio > 0.25) & jnp.isfinite(ratio) & (decrement <= max(1e-12, eps) * new.scale)
        small = small | noise
        if has_newton(layout):  # the last pass is for the expected information, which is reported
            report = ~state.newton
            newton = ~small
            if (
                layout.family.fisher_scoring
            ):  # expected information far from the optimum: never indefinite
                newton = newton & (decrement <= _CLOSE * new.scale)
        else:
            report, newton = jnp.ones((), bool), jnp.zeros((), bool)
        soon = smooth & (decrement * ratio <= _NEARLY * limit)
        want = small | ~(smooth | given) | soon if self.lazy else jnp.ones((), bool)
        accepted = IRLSState(
            objective=new.objective,
            score=new.score,
            gram=new.gram,
            direction=direction,
            fraction=jnp.ones((), dtype),
            decrement=decrement,
            ratio=ratio,
            damping=damping,
            num_steps=state.num_steps + 1,
            num_passes=state.num_passes + 1,
            fresh_gram=state.want_gram,
            want_gram=want,
            scale=new.scale,
            newton=newton,
            done=small & state.want_gram & report,
        )
        rejected = eqx.tree_at(
            lambda s: (s.fraction, s.num_passes, s.want_gram),
            state,
            (0.5 * state.fraction, state.num_passes + 1, jnp.ones((), bool)),
        )
        state = jax.tree.map(lambda x, y: jnp.where(better, x, y), accepted, rejected)
        return jnp.where(better, trial, b), state

    def threshold(self, scale, b, gram):
        """The decrement below which a step is rounding error or nothing to a user."""
        dtype = gram.dtype
        eps = jnp.finfo(dtype).eps
        tolerance = jnp.maximum(jnp.asarray(self.tolerance, dtype) ** 2, eps**2)
        size = jnp.maximum(b @ (gram @ b), 0.0)
        return tolerance * scale + (1e3 * eps) ** 2 * size

    def terminate(self, b: Float[Array, "p"], state: IRLSState, max_steps: Int[Array, ""]):
        """Whether to stop, and why."""
        done = state.done
        stuck = state.fraction < _SMALLEST_STEP
        late = state.num_passes >= max_steps
        # a step that no longer moves the objective by more than rounding is the end, too
        eps = jnp.finfo(state.gram.dtype).eps
        rounded = stuck & (state.decrement <= 1e3 * eps * jnp.abs(state.objective))
        rounded = rounded & jnp.isfinite(state.objective)
        result = RESULTS.where(late, RESULTS.max_steps_reached, RESULTS.successful)
        result = RESULTS.where(stuck & ~rounded, RESULTS.stalled, result)
        result = RESULTS.where(
            (stuck | late) & ~jnp.isfinite(state.objective), RESULTS.nonfinite, result
        )
        result = RESULTS.where(done | rounded, RESULTS.successful, result)
        singular = (done | rounded) & (state.damping > 0)
        result = RESULTS.where(singular, RESULTS.not_identified, result)
        return done | stuck | late, result


def damped_solve(
    a: Float[Array, "p p"], rhs: Float[Array, "p *k"], free: Bool[Array, "p"]
) -> tuple[Float[Array, "p *k"], Float[Array, ""]]:
    """Solve ``a x = rhs`` over the free coordinates, columns scaled, with one step of refinement.

    A matrix that is not positive definite gets the smallest of a few multiples of the identity added
    (after scaling) that makes it so; that multiple is returned, 0 for none.
    """
    dtype, p = a.dtype, a.shape[0]
    diagonal = jnp.abs(jnp.diagonal(a))
    largest = jnp.max(diagonal, initial=0.0)
    tiny = jnp.finfo(dtype).tiny
    empty = diagonal <= tiny
    scale = jnp.sqrt(jnp.where(empty, jnp.maximum(largest, tiny), diagonal))
    scaled = jnp.where(free[:, None] & free[None], a / scale[:, None] / scale[None], 0)
    scaled = scaled + jnp.diag((~free).astype(dtype))
    columns = rhs.reshape(p, -1)
    target = jnp.where(free[:, None], columns / scale[:, None], 0)
    floor = 16 * p * jnp.finfo(dtype).eps
    eye = jnp.eye(p, dtype=dtype)
    dampings = jnp.asarray(_DAMPINGS, dtype)

    def factor(k):
        low = cholesky(scaled + dampings[k] * eye)
        return low, jnp.min(jnp.diagonal(low), initial=1.0) ** 2 > floor  # False for NaN

    def more(carry):
        k, _, good = carry
        return ~good & (k < len(_DAMPINGS) - 1)

    def body(carry):
        k, _, _ = carry
        return k + 1, *factor(k + 1)

    first = (jnp.full((), -1, jnp.int32), jnp.zeros_like(eye), jnp.zeros((), bool))
    k, low, good = jax.lax.while_loop(more, body, first)
    low = jnp.where(good, low, eye)
    x = cho_solve(low, target)
    x = x + cho_solve(low, target - scaled @ x - dampings[k] * x)
    x = jnp.where(free[:, None], x / scale[:, None], 0)
    return x.reshape(rhs.shape), dampings[k]
