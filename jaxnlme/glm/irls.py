"""Iteratively reweighted least squares, and its Newton form for families with several predictors.

The rule of a step is written once, over either numpy or JAX arrays of a few coefficients: one fit is driven
from the host, where only the pass over the rows is compiled; batches and derivatives run the same rule inside
one compiled loop.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._results import RESULTS
from jaxnlme._typing import Array, Bool, Float
from jaxnlme.glm.evaluate import Evaluation, Layout, evaluate, start_system
from jaxnlme.numerics.arithmetic import TRACED, Arithmetic

_SLOW = 1e-2  # a stale information matrix is kept while the decrement falls faster than this
# decrement, in thresholds, from which a quickly converging fit needs no further pass
_NEARLY = 100.0
_CLOSE = 0.05  # decrement, in rows times dispersion, from which the observed information is used
_NEAR = 1e-5  # ... from which the information hardly changes over a Newton step
_SMALLEST_STEP = 2.0**-30
_DAMPINGS = (0.0, 1e-9, 1e-6, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


class IRLSState(NamedTuple):
    """The point's objective, score (p,) and information (p, p), and the step to try next."""

    objective: Any
    score: Any
    gram: Any
    direction: Any
    fraction: Any
    decrement: Any
    damping: Any
    num_steps: Any
    num_passes: Any
    want_gram: Any
    newton: Any
    done: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IRLS:
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
    lazy: bool = dataclasses.field(default=False, metadata={"static": True})

    def init(
        self,
        layout: Layout,
        bounds,
        params: Float[Array, "p"] | None,
    ):
        """The start and the state before the first pass."""
        dtype = layout.weights.dtype
        if params is None:
            system = start_system(layout, jnp.clip(jnp.zeros(layout.width, dtype), *bounds))
            b, direction = self.approach(system, bounds, TRACED)
        else:
            b = jnp.clip(jnp.asarray(params, dtype), *bounds)
            direction = jnp.zeros_like(b)
        return b, self.begin(direction, None, not layout.family.fisher_scoring, TRACED)

    def begin(self, direction, gram, newton: bool, arithmetic: Arithmetic) -> IRLSState:
        """The state before the first pass.

        ``gram`` is an information matrix to begin with, or None; ``newton``: begin with the observed one.
        """
        xp, dtype = arithmetic.xp, direction.dtype
        zero, infinite = xp.zeros((), dtype), xp.full((), xp.inf, dtype)
        return IRLSState(
            objective=infinite,
            score=xp.zeros_like(direction),
            gram=xp.eye(len(direction), dtype=dtype) if gram is None else gram,
            direction=direction,
            fraction=xp.ones((), dtype),
            decrement=infinite,
            damping=zero,
            num_steps=xp.zeros((), np.int32),
            num_passes=xp.zeros((), np.int32),
            want_gram=xp.full((), gram is None),
            newton=xp.full((), newton),
            done=xp.zeros((), bool),
        )

    def approach(self, system, bounds, arithmetic: Arithmetic):
        """Least squares of the family's starting predictors, approached from constant ones in the domain."""
        base, gram, targets = system
        found = damped_solve(gram, targets, bounds[1] > bounds[0], arithmetic)[0]
        safe, full = base + found[:, 0], base + found[:, 1]
        safe = arithmetic.xp.clip(safe, *bounds)
        return safe, arithmetic.xp.clip(full, *bounds) - safe

    def step(self, layout: Layout, bounds, b: Float[Array, "p"], state: IRLSState):
        """One pass over the rows at a trial point; accept it or halve the step."""
        trial = self.propose(bounds, b, state, TRACED)
        new = evaluate(layout, trial, state.want_gram, state.gram, state.newton)
        return self.judge(bounds, b, trial, new, state, TRACED)

    def propose(self, bounds, b, state: IRLSState, arithmetic: Arithmetic):
        """The next point to look at."""
        return arithmetic.xp.clip(b + state.fraction * state.direction, *bounds)

    def judge(self, bounds, b, trial, new: Evaluation, state: IRLSState, arithmetic: Arithmetic):
        """Accept what a pass found at ``trial`` and form the next step, or halve the one at hand."""
        xp, eps = arithmetic.xp, np.finfo(new.gram.dtype).eps
        slack = 64 * eps * abs(state.objective)
        better = xp.isfinite(new.objective) & xp.all(xp.isfinite(new.score))
        better = better & ((new.objective <= state.objective + slack) | xp.isinf(state.objective))
        lower, upper = bounds
        free = (upper > lower) & ~(
            ((trial <= lower) & (new.score < 0)) | ((trial >= upper) & (new.score > 0))
        )
        direction, damping = damped_solve(new.gram, new.score, free, arithmetic)
        decrement = xp.sum(xp.where(free, direction * new.score, 0))
        first = ~xp.isfinite(state.decrement)
        ratio = xp.where(first, state.decrement, decrement / state.decrement)
        smooth = ratio < _SLOW
        limit = self.threshold(new.scale, trial, new.gram, arithmetic)
        # the step at hand is still taken: a fit that converges quadratically is then at the optimum
        small = (decrement <= limit) | (smooth & (decrement <= _NEARLY * limit))
        # rounding: steps of a millionth of a standard error that no longer shrink
        small = small | (~first & (ratio > 0.25) & (decrement <= max(1e-12, eps) * new.scale))
        if new.differs:  # the last pass is for the expected information, which is reported
            report, given, newton = ~state.newton, xp.zeros((), bool), ~small
            if new.scoring:  # far from the optimum the observed information may be indefinite
                newton = newton & (decrement <= _CLOSE * new.scale)
        else:  # the matrix to begin with may do for another step
            report, given, newton = xp.ones((), bool), first & ~state.want_gram, xp.zeros((), bool)
        # a matrix formed here does for the next step, too
        near = state.want_gram & (decrement <= _NEAR * new.scale)
        soon = smooth & (decrement * ratio <= _NEARLY * limit)
        accepted = IRLSState(
            objective=new.objective,
            score=new.score,
            gram=new.gram,
            direction=direction,
            fraction=xp.ones_like(state.fraction),
            decrement=decrement,
            damping=damping,
            num_steps=state.num_steps + 1,
            num_passes=state.num_passes + 1,
            want_gram=small | ~(smooth | given | near) | soon if self.lazy else xp.ones((), bool),
            newton=newton,
            done=small & state.want_gram & report,
        )
        rejected = state._replace(
            fraction=0.5 * state.fraction,
            num_passes=state.num_passes + 1,
            want_gram=xp.ones((), bool),
        )
        return arithmetic.pick(better, lambda: (trial, accepted), lambda: (b, rejected))

    def threshold(self, scale, b, gram, arithmetic: Arithmetic):
        """The decrement below which a step is rounding error or nothing to a user."""
        xp, dtype = arithmetic.xp, gram.dtype
        eps = np.finfo(dtype).eps
        tolerance = xp.maximum(xp.asarray(self.tolerance, dtype) ** 2, eps**2)
        size = xp.maximum(b @ (gram @ b), 0.0)
        return tolerance * scale + (1e3 * eps) ** 2 * size

    def terminate(self, state: IRLSState, max_steps, arithmetic: Arithmetic):
        """Whether to stop, and why."""
        xp, choose = arithmetic.xp, arithmetic.choose
        stuck = state.fraction < _SMALLEST_STEP
        late = state.num_passes >= max_steps
        finite = xp.isfinite(state.objective)
        # a step that no longer moves the objective by more than rounding is the end, too
        eps = np.finfo(state.gram.dtype).eps
        rounded = stuck & finite & (state.decrement <= 1e3 * eps * abs(state.objective))
        good = state.done | rounded
        result = choose(late, RESULTS.max_steps_reached, RESULTS.successful)
        result = choose(stuck & ~rounded, RESULTS.stalled, result)
        result = choose((stuck | late) & ~finite, RESULTS.nonfinite, result)
        result = choose(good, RESULTS.successful, result)
        result = choose(good & (state.damping > 0), RESULTS.not_identified, result)
        return good | stuck | late, result


def polished(b, state: IRLSState, bounds, good, arithmetic: Arithmetic):
    """The last step costs nothing: take it."""
    xp = arithmetic.xp
    end = xp.clip(b + state.direction, *bounds)
    return xp.where(good & xp.all(xp.isfinite(end)), end, b)


def damped_solve(
    a: Float[Array, "p p"],
    rhs: Float[Array, "p *k"],
    free: Bool[Array, "p"],
    arithmetic: Arithmetic,
) -> tuple[Float[Array, "p *k"], Any]:
    """Solve ``a x = rhs`` over the free coordinates, columns scaled, with one step of refinement.

    A matrix that is not positive definite gets the smallest of a few multiples of the identity added
    (after scaling) that makes it so; that multiple is returned, 0 for none.
    """
    xp, dtype, p = arithmetic.xp, a.dtype, a.shape[0]
    tiny, eye = np.finfo(dtype).tiny, xp.eye(p, dtype=dtype)
    diagonal = abs(xp.diagonal(a))
    largest = xp.maximum(xp.max(diagonal, initial=0.0), tiny)
    scale = xp.sqrt(xp.where(diagonal <= tiny, largest, diagonal))
    scaled = xp.where(free[:, None] & free[None], a / scale[:, None] / scale[None], 0)
    scaled = scaled + (~free).astype(dtype)[:, None] * eye
    columns = rhs.reshape(p, -1)
    target = xp.where(free[:, None], columns / scale[:, None], 0)
    inverse, damping = _damped_inverse(scaled, 16 * p * np.finfo(dtype).eps, arithmetic)
    x = inverse @ target
    x = x + inverse @ (target - scaled @ x - damping * x)
    return xp.where(free[:, None], x / scale[:, None], 0).reshape(rhs.shape), damping


def _damped_inverse(scaled, floor, arithmetic: Arithmetic):
    xp, dtype = arithmetic.xp, scaled.dtype
    dampings, eye = xp.asarray(_DAMPINGS, dtype), xp.eye(len(scaled), dtype=dtype)

    def more(carry):
        k, _, good = carry
        return ~good & (k < len(_DAMPINGS) - 1)

    def body(carry):
        k = carry[0] + 1
        inverse, least = arithmetic.inverse(scaled + dampings[k] * eye)
        return k, inverse, least > floor  # False for NaN

    first = (xp.full((), -1, np.int32), eye, xp.zeros((), bool))
    k, inverse, good = arithmetic.repeat(more, body, first)
    return xp.where(good, inverse, eye), dampings[k]
