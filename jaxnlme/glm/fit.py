"""Pure fitting of one GLM in one compiled program, for batches; and the same steps driven from the host."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._precision import check_precision
from jaxnlme._results import RESULTS, result_name
from jaxnlme._typing import Array, Float, PyTree
from jaxnlme.glm.evaluate import (
    Evaluation,
    assemble_gram,
    evaluate,
    lay_out,
    start_system,
    working_rows,
)
from jaxnlme.glm.irls import IRLS, polished
from jaxnlme.glm.problem import GLMProblem
from jaxnlme.numerics.arithmetic import HOST, TRACED
from jaxnlme.numerics.small_linalg import cho_solve, cholesky, logdet

_SMALL = 2**15  # rows


class GLMFit(eqx.Module):
    """A fit as a pytree: no strings, nothing raised, one result code per lane under ``vmap``.

    ``params`` are the coefficients of the mean, then those of the other predictors. ``stats``:
    ``objective`` (minus log-likelihood up to constants, penalty included), ``information`` (P, P) at the
    estimate, ``score`` (P,), ``decrement``, ``num_steps``, ``num_passes``, ``damping``.
    """

    params: Float[Array, "p"]
    state: PyTree
    result: RESULTS
    stats: dict[str, Array]


def fit(
    problem: GLMProblem,
    solver: IRLS | None = None,
    *,
    params0: Float[Array, "p"] | None = None,
    max_steps: int = 50,
) -> GLMFit:
    """Fit one data set; pure, so it can be jitted, vmapped, mapped and differentiated.

    Parameters
    ----------
    problem
        One data set. Under ``vmap`` every array may carry a leading axis.
    solver
        Default ``IRLS()``.
    params0
        Start coefficients (P,); default: a least-squares fit of the family's starting means.
    max_steps
        Largest number of steps.

    Returns
    -------
    GLMFit
        ``jax.grad`` of the parameters in any array of the problem is exact (implicit function theorem with
        the observed second derivatives).

    Raises
    ------
    TypeError
        When float64 arrays come in while 64-bit is off.
    """
    check_precision(problem, params0)
    return _fit(problem, IRLS() if solver is None else solver, params0, jnp.int32(max_steps))


@eqx.filter_jit
def _fit(problem, solver, params0, max_steps):
    outcome = solve(jax.lax.stop_gradient(problem), solver, params0, max_steps)
    params = _implicit(problem, jax.lax.stop_gradient(outcome.params))
    return eqx.tree_at(lambda f: f.params, outcome, params)


def solve(problem: GLMProblem, solver: IRLS, params0, max_steps) -> GLMFit:
    """The iteration in one program, without derivatives."""
    layout = lay_out(problem)
    bounds = _bounds(problem, layout, jnp)
    b, state = solver.init(layout, bounds, params0)

    def body(carry):
        b, state, _, _ = carry
        b, state = solver.step(layout, bounds, b, state)
        return b, state, *solver.terminate(state, max_steps, TRACED)

    start = (b, state, jnp.zeros((), bool), RESULTS.successful)
    b, state, _, result = jax.lax.while_loop(lambda c: ~c[2], body, start)
    good = result == RESULTS.successful
    return _outcome(polished(b, state, bounds, good, TRACED), state, result)


def _bounds(problem: GLMProblem, layout, xp) -> tuple:
    """Lower and upper bounds (p,), infinite where there are none."""
    dtype = layout.weights.dtype
    both = ((problem.lower, -np.inf), (problem.upper, np.inf))
    found = (xp.asarray(fill if bound is None else bound, dtype) for bound, fill in both)
    return tuple(xp.broadcast_to(bound, (layout.width,)) for bound in found)


def solve_on_host(problem: GLMProblem, solver: IRLS, params0, max_steps: int, gram0=None) -> GLMFit:
    """The same iteration driven from the host: only passes over the rows are compiled, not the steps.

    ``problem`` is laid out in blocks of rows, in float64; ``gram0`` is an information matrix for the first
    step. Returns numpy arrays.
    """
    layout = lay_out(problem)
    if layout.weights.size > _SMALL:  # below, handing arrays over anew at each pass is quicker
        layout = jax.device_put(layout)
    bounds = _bounds(problem, layout, np)
    with np.errstate(all="ignore"):  # infinite objectives are part of the rule
        if params0 is None:
            base = np.clip(np.zeros(layout.width), *bounds)
            system = jax.tree.map(np.asarray, _start(layout, base))
            b, direction = solver.approach(system, bounds, HOST)
        else:
            b = np.clip(np.asarray(params0, np.float64), *bounds)
            direction = np.zeros(layout.width)
        state = solver.begin(direction, gram0, not layout.family.fisher_scoring, HOST)
        done, result = False, RESULTS.successful
        while not done:
            trial = solver.propose(bounds, b, state, HOST)
            new = _pass(layout, trial, state.want_gram, state.gram, state.newton)
            new = _unpacked(np.asarray(new), layout.width)
            b, state = solver.judge(bounds, b, trial, new, state, HOST)
            done, result = solver.terminate(state, max_steps, HOST)
        good = result_name(result) == "successful"
        b = polished(b, state, bounds, good, HOST)
    return _outcome(b, jax.tree.map(np.asarray, state), result)


def _outcome(b, state, result) -> GLMFit:
    stats = {
        "objective": state.objective,
        "information": state.gram,
        "score": state.score,
        "decrement": state.decrement,
        "num_steps": state.num_steps,
        "num_passes": state.num_passes,
        "damping": state.damping,
    }
    return GLMFit(b, state, result, stats)


def _packed(new: Evaluation) -> Float[Array, "m"]:
    """One array: every further one costs as much to fetch as the arithmetic of a small step."""
    scalars = (new.objective, new.scale, new.scoring, new.differs)
    rest = jnp.stack([jnp.asarray(x, new.gram.dtype) for x in scalars])
    return jnp.concatenate([new.gram.reshape(-1), new.score, rest])


def _unpacked(values: np.ndarray, p: int) -> Evaluation:
    objective, scale, scoring, differs = values[-4:]
    gram, score = values[: p * p].reshape(p, p), values[p * p : -4]
    return Evaluation(objective, score, gram, scale, bool(scoring), bool(differs))


_start = outer_jit(start_system, hoist=False)
_pass = outer_jit(lambda layout, *point: _packed(evaluate(layout, *point)), hoist=False)


def total_cost(problem: GLMProblem, b: Float[Array, "p"]) -> Float[Array, ""]:
    """What the fit minimises, differentiable in the problem and in ``b``."""
    layout = lay_out(problem)
    etas = layout.linear(b)
    live = layout.weights > 0
    parameters = [link.inverse(eta) for link, eta in zip(layout.links, etas, strict=True)]
    rows = layout.family.cost(layout.y, layout.weights, *parameters)
    total = jnp.sum(jnp.where(live, rows, 0)) + layout.penalty.value(b)
    if layout.penalty.jeffreys:
        information = working_rows(layout, etas)[2]
        total = total - 0.5 * logdet(cholesky(assemble_gram(layout, information)))
    return total


@jax.custom_jvp
def _implicit(problem, b):
    return b


@_implicit.defjvp
def _implicit_jvp(primals, tangents):
    """Implicit function theorem: the gradient of the cost stays zero (Krantz and Parks 2002)."""
    problem, b = primals
    shift = jax.jvp(lambda p: jax.grad(total_cost, 1)(p, b), (problem,), (tangents[0],))[1]
    hessian = jax.lax.stop_gradient(jax.hessian(total_cost, 1)(problem, b))
    free = jnp.ones(b.shape, bool)
    if problem.lower is not None:
        free = free & (b > problem.lower)
    if problem.upper is not None:
        free = free & (b < problem.upper)
    both = free[:, None] & free[None]
    scale = jnp.sqrt(jnp.where(free, jnp.abs(jnp.diagonal(hessian)), 1))
    scaled = jnp.where(both, hessian / scale[:, None] / scale[None], 0)
    scaled = scaled + jnp.diag((~free).astype(b.dtype))
    inverse = cho_solve(cholesky(scaled), jnp.eye(b.shape[0], dtype=b.dtype))
    return b, -jnp.where(free, inverse @ (jnp.where(free, shift, 0) / scale) / scale, 0)
