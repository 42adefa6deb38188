"""What an estimation method is, and the part that all marginal-likelihood methods share."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._results import RESULTS
from jaxnlme._typing import Array, Bool, Float, Int, PyTree
from jaxnlme.covariance import Covariance
from jaxnlme.mixed.lmm import covariance_information, cross_products
from jaxnlme.nlme.conditional import natural
from jaxnlme.nlme.evaluate import design_columns
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.numerics import outer
from jaxnlme.numerics.arithmetic import TRACED, Arithmetic, inverse_spd
from jaxnlme.numerics.blocks import small_matmul, transpose
from jaxnlme.numerics.small_linalg import cho_solve, cholesky

_FAR = 0.1  # Newton decrement
_EARLY = 10  # evaluations


class AbstractMethod(eqx.Module):
    """An estimation method: ``init``, ``step``, ``terminate`` over an :class:`NLMEProblem`.

    ``step`` evaluates the model once (marginal methods) or runs one alternation (LME); the door drives
    it from the host, :func:`jaxnlme.nlme.fit` inside one ``lax.while_loop``.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Name as users write it."""

    @abc.abstractmethod
    def init(self, problem: NLMEProblem, params: NLMEParams) -> PyTree:
        """Return the first state; NaN in ``params.theta`` or ``.error`` asks for start values."""

    @abc.abstractmethod
    def step(
        self, problem: NLMEProblem, params: NLMEParams, state: PyTree
    ) -> tuple[NLMEParams, PyTree]:
        """Return better parameters and the next state."""

    @abc.abstractmethod
    def terminate(
        self,
        problem: NLMEProblem,
        params: NLMEParams,
        state: PyTree,
        max_steps: Int[Array, ""] | int,
    ) -> tuple[Bool[Array, ""], RESULTS]:
        """Return whether to stop, and why."""

    @abc.abstractmethod
    def log_likelihood(self, problem: NLMEProblem, params: NLMEParams) -> Float[Array, ""]:
        """Return the objective at any parameters (natural logs, all constants kept)."""

    @abc.abstractmethod
    def summarise(self, problem: NLMEProblem, params: NLMEParams, state: PyTree) -> Summary:
        """Return what a fit reports from the last state."""


class Summary(NamedTuple):
    """What every method reports."""

    log_likelihood: Float[Array, ""]
    b: Float[Array, "m q"]
    num_steps: Int[Array, ""]
    gradient: Float[Array, "d"]
    decrement: Float[Array, ""]
    converged_groups: Bool[Array, "m"]
    theta_scale: Float[Array, "t"]  # start factor relative to sigma: what counts as a large effect


class Inner(NamedTuple):
    """What an evaluation of the marginal likelihood leaves for the outer iteration."""

    log_likelihood: Float[Array, "m"]
    u: Float[Array, "m q"]
    converged: Bool[Array, "m"]
    f: Float[Array, "m n"]
    J: Float[Array, "m n p"]


class Sums(eqx.Module):
    """Sums over groups that give start values and the expected information."""

    rows: Float[Array, ""]
    rss: Float[Array, ""]
    ff: Float[Array, ""]
    zz: Float[Array, "q"]
    occupied: Float[Array, "q"]
    beta_information: Float[Array, "f f"]
    theta_information: Float[Array, "t t"]
    error_information: Float[Array, "k k"]


class Evaluated(NamedTuple):
    """One evaluation of the objective, all that a step needs of the data."""

    value: Float[Array, ""]
    gradient: Float[Array, "d"]
    log_prior: Float[Array, ""]  # in the value
    u: Float[Array, "m q"]
    converged: Bool[Array, "m"]
    sums: Sums
    factor: Float[Array, "q q"]
    error_start: Float[Array, "k"]


class _State(NamedTuple):
    bfgs: outer.BFGSState
    u: Float[Array, "m q"]
    converged: Bool[Array, "m"]
    log_prior: Any
    factor: Float[Array, "q q"]
    phase: Any
    theta_scale: Float[Array, "t"]


class AbstractMarginalMethod(AbstractMethod):
    """Maximise an approximation of the marginal likelihood by BFGS over all parameters."""

    tolerance: eqx.AbstractVar[float]

    def hold(self, problem: NLMEProblem, params: NLMEParams, u0: Float[Array, "m q"]) -> PyTree:
        """Return what is found once at ``params`` and held while :meth:`groups` is differentiated: modes.

        The default are the last evaluation's random effects, ``u0``.
        """
        del problem, params
        return u0

    @abc.abstractmethod
    def groups(self, problem: NLMEProblem, params: NLMEParams, held: PyTree) -> Inner:
        """Return each group's marginal log-likelihood, differentiable once in ``params``."""

    def inner(self, problem: NLMEProblem, params: NLMEParams, u0: Float[Array, "m q"]) -> Inner:
        """Both in turn; differentiable once in ``params``."""
        held = self.hold(problem, jax.lax.stop_gradient(params), u0)
        return self.groups(problem, params, jax.lax.stop_gradient(held))

    def init(self, problem, params):
        return self.begin(problem, params, TRACED)

    def begin(self, problem: NLMEProblem, params: NLMEParams, arithmetic: Arithmetic) -> _State:
        """Return the state before the first evaluation."""
        xp, x = arithmetic.xp, params.flat()
        known = xp.isfinite(x)
        eye, free = xp.eye(x.shape[0], dtype=x.dtype), problem.free.flat()
        m, q = problem.num_groups, problem.num_random
        return _State(
            bfgs=outer.start(xp.where(known, x, 0.0), eye, free, arithmetic),
            u=xp.zeros((m, q), x.dtype),
            converged=xp.ones((m,), bool),
            log_prior=xp.zeros((), x.dtype),
            factor=xp.zeros((q, q), x.dtype),
            phase=xp.where(xp.all(known), 1, 0).astype(np.int32),
            theta_scale=xp.ones_like(params.theta),
        )

    def step(self, problem, params, state):
        new = self.evaluate(problem, params.unflat(state.bfgs.trial), state.u)
        free = problem.free.flat()
        return self.judge(problem.covariance, free, params, state, new, TRACED)

    def judge(
        self,
        covariance: Covariance,
        free: Bool[Array, "d"],
        params: NLMEParams,
        state: _State,
        new: Evaluated,
        arithmetic: Arithmetic,
    ) -> tuple[NLMEParams, _State]:
        """Take in the evaluation at the trial point and choose the next one.

        The first evaluation may only find start values, the next one the metric of the first step.
        """
        xp, pick, sums, bfgs = arithmetic.xp, arithmetic.pick, new.sums, state.bfgs
        typical = xp.sqrt(sums.rss / sums.rows)
        scale = factor_scale(covariance, sums.zz, sums.occupied, xp)

        def fresh():
            theta = 0.5 * typical * scale * diagonal_mask(covariance, scale.dtype)
            beta, given = bfgs.trial[: len(params.beta)], params.flat()
            found = xp.concatenate([beta, theta, new.error_start]).astype(beta.dtype)
            filled = xp.where(xp.isfinite(given), bfgs.trial, found)
            return outer.start(filled, bfgs.inverse_hessian, free, arithmetic)

        def expected():
            floor = curvature_floor(covariance, new.factor, scale * typical, xp)
            return inverse_information(sums, free, floor, arithmetic)

        def moved():
            # Far from the optimum the expected information of here is better than what was learned on the way:
            # a third of the steps less.
            early = (bfgs.decrement > _FAR) & (bfgs.num_steps < _EARLY)
            h = pick(early, expected, lambda: bfgs.inverse_hessian)
            after = outer.advance(
                bfgs._replace(inverse_hessian=h),
                new.value,
                new.gradient,
                free=free,
                max_change=_max_change(params, bfgs.trial, xp),
                arithmetic=arithmetic,
            )
            kept = pick(
                after.num_rejected == 0,
                lambda: after.inverse_hessian,
                lambda: bfgs.inverse_hessian,
            )
            return after._replace(inverse_hessian=kept)

        starting = state.phase == 0
        bfgs = pick(starting, fresh, moved)
        accepted = bfgs.num_rejected == 0
        state = _State(
            bfgs=bfgs,
            u=pick(accepted & ~starting, lambda: new.u, lambda: state.u),
            converged=pick(accepted, lambda: new.converged, lambda: state.converged),
            log_prior=xp.where(accepted, new.log_prior, state.log_prior),
            factor=xp.where(accepted, new.factor, state.factor),
            phase=xp.minimum(state.phase + 1, 2),
            theta_scale=scale,
        )
        return params.unflat(bfgs.x), state

    def terminate(self, problem, params, state, max_steps):
        del problem, params
        return self.ended(state, max_steps, TRACED)

    def ended(self, state: _State, max_steps: Any, arithmetic: Arithmetic) -> tuple[Any, RESULTS]:
        """Return whether to stop, and why."""
        found = arithmetic.xp.all(state.converged)
        done, result = outer.terminate(
            state.bfgs,
            tolerance=self.tolerance,
            max_steps=max_steps,
            success=arithmetic.choose(found, RESULTS.successful, RESULTS.inner_failed),
            arithmetic=arithmetic,
        )
        return done & (state.phase >= 2), result

    def evaluate(
        self, problem: NLMEProblem, params: NLMEParams, u0: Float[Array, "m q"]
    ) -> Evaluated:
        """Return the objective to minimise, its gradient, the modes, their flags and the sums."""

        def chunk(part, u):
            held = self.hold(part, params, u)

            def objective(p):
                inner = self.groups(part, p, held)
                return -jnp.sum(inner.log_likelihood), inner

            (value, inner), gradient = jax.value_and_grad(objective, has_aux=True)(params)
            return (value, gradient.flat(), chunk_sums(part, params, inner)), (
                inner.u,
                inner.converged,
            )

        (value, gradient, sums), (u, converged) = over_chunks(chunk, problem, u0)
        value = value - problem.log_jacobian()
        log_prior = jnp.zeros_like(value)
        if problem.prior is not None:
            log_prior, slope = jax.value_and_grad(problem.prior.log_prob)(params, problem)
            value, gradient = value - log_prior, gradient - slope.flat()
        error = problem.error_model.start(sums.rss / sums.rows, sums.ff / sums.rows)
        factor = problem.covariance.factor(params.theta)
        return Evaluated(value, gradient, log_prior, u, converged, sums, factor, error)

    def log_likelihood(self, problem, params):
        u0 = jnp.zeros((problem.num_groups, problem.num_random), problem.y.dtype)

        def chunk(part, u):
            inner = self.inner(part, params, u)
            return (jnp.sum(inner.log_likelihood),), (inner.u,)

        (total,), _ = over_chunks(chunk, problem, u0)
        return total + problem.log_jacobian()

    def summarise(self, problem, params, state):
        del problem, params
        return Summary(
            log_likelihood=-state.bfgs.value - state.log_prior,
            b=state.u @ state.factor.T,
            num_steps=state.bfgs.num_steps,
            gradient=state.bfgs.gradient,
            decrement=state.bfgs.decrement,
            converged_groups=state.converged,
            theta_scale=state.theta_scale,
        )


def over_chunks(function, problem: NLMEProblem, u0):
    """Run ``function(part, u) -> (summed, per group)`` over chunks of groups and join the answers."""
    m, c = problem.num_groups, problem.chunk
    if m <= c:
        return function(problem, u0)
    if m % c:
        raise ValueError(f"{m} groups are not a multiple of the chunk {c}: pad the problem.")
    whole = (*_per_group(problem), u0)

    def cut(a):
        return a.reshape((m // c, c, *a.shape[1:])) if a.shape[0] == m else None

    parts = jax.tree.map(cut, whole)

    def call(part):
        *arrays, u = part
        same = [problem.A, problem.B]
        arrays[4:] = [
            old if new is None else new for old, new in zip(same, arrays[4:], strict=True)
        ]
        piece = eqx.tree_at(_per_group, problem, tuple(arrays), is_leaf=lambda leaf: leaf is None)
        return function(piece, u)

    def body(carry, part):
        summed, rows = call(part)
        return jax.tree.map(jnp.add, carry, summed), rows

    shapes = jax.eval_shape(call, jax.tree.map(lambda a: a[0], parts))[0]
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    carry, rows = jax.lax.scan(body, zero, parts)
    return carry, jax.tree.map(lambda a: a.reshape((m, *a.shape[2:])), rows)


def _per_group(p: NLMEProblem):
    return p.y, p.weights, p.x, p.v, p.A, p.B


def _max_change(like: NLMEParams, trial: Float[Array, "d"], xp: Any) -> Float[Array, "d"]:
    """Bound one step: logs of the error by 1, the covariance factor by its own size."""
    first = len(like.beta)
    last = first + len(like.theta)
    size = xp.maximum(xp.max(abs(trial[first:last]), initial=0.0), 1e-8)
    index = np.arange(len(trial))
    bound = np.where(index < first, np.inf, 1.0).astype(trial.dtype)
    return xp.where((index >= first) & (index < last), 2.0 * size, bound)


def chunk_sums(problem: NLMEProblem, params: NLMEParams, inner: Inner) -> Sums:
    """Sum what start values and the expected information need, at the modes of ``inner``."""
    inner = jax.lax.stop_gradient(inner)
    nat = natural(problem, jax.lax.stop_gradient(params))
    w, z = problem.weights, problem.response()
    used = w > 0
    f = inner.f
    Z = design_columns(inner.J, problem.B)
    X = design_columns(inner.J, problem.A)
    zz = jnp.sum(w[..., None] * Z**2, 1)
    occupied = jnp.sum(zz > 0, 0).astype(f.dtype)

    sd, slope = _sd_and_slope(problem, f, params.error)
    precision = jnp.where(used, w / jnp.where(used, sd, 1.0) ** 2, 0.0)
    c = cross_products(Z, X, jnp.zeros_like(f), precision)
    low = nat.factor[None]
    zzl = small_matmul(c.zz, low)
    chol = cholesky(jnp.eye(Z.shape[-1], dtype=f.dtype)[None] + small_matmul(transpose(low), zzl))
    lzx = small_matmul(transpose(low), c.zx)
    beta_information = c.xx - jnp.sum(small_matmul(transpose(lzx), cho_solve(chol, lzx)), 0)
    dlow = jax.jacfwd(problem.covariance.factor)(params.theta)
    theta_information = 0.5 * covariance_information(
        c.zz, nat.factor, jnp.moveaxis(dlow, -1, 0), problem.num_rows(), profiled=False
    )
    relative = jnp.where(used[..., None], slope / jnp.where(used, sd, 1.0)[..., None], 0.0)
    return Sums(
        rows=jnp.sum(used).astype(f.dtype),
        rss=jnp.sum(jnp.where(used, w * (z - f) ** 2, 0.0)),
        ff=jnp.sum(jnp.where(used, f**2, 0.0)),
        zz=jnp.sum(zz, 0),
        occupied=occupied,
        beta_information=beta_information,
        theta_information=theta_information,
        error_information=2.0 * jnp.einsum("mna,mnb->ab", relative, relative),
    )


def _sd_and_slope(problem, f, unconstrained):
    def sd(e):
        return problem.error_model.sd(f, problem.error_model.natural(e))

    return sd(unconstrained), jax.jacfwd(sd)(unconstrained)


def factor_scale(
    covariance: Covariance, zz: Float[Array, "q"], count: Float[Array, "q"], xp: Any = jnp
) -> Float[Array, "t"]:
    """Return the size that counts as large for each entry of the relative factor (by its row).

    The relative precision factor starts at 0.375 times the root mean square of the derivative, as in R's
    ``nlme`` (Bates and Pinheiro 1998, section 4.2); this is its inverse.
    """
    at, parts = 0, []
    for block in covariance.blocks:
        k = block.size * block.repeats
        total = xp.sum(zz[at : at + k].reshape(block.repeats, block.size), 0)
        groups = xp.sum(count[at : at + k].reshape(block.repeats, block.size), 0)
        relative = xp.sqrt(xp.maximum(groups, 1.0) / xp.where(total > 0, total, 1.0)) / 0.375
        parts.append(relative[np.array([i for i, _ in block.entries], int)])
        at += k
    return xp.concatenate(parts) if parts else xp.zeros(0, zz.dtype)


def curvature_floor(
    covariance: Covariance, factor: Float[Array, "q q"], scale: Float[Array, "t"], xp: Any = jnp
) -> Float[Array, "t"]:
    """Return a lower bound of the curvature in each entry of the factor, for entries that stand near zero.

    ``1 / (scale^2 + |row|^2)``: far below the information of a row that is not zero (twice the number of groups
    over its square), and of the right size for one that is.
    """
    rows, at = [], 0
    for block in covariance.blocks:
        rows += [at + i for i, _ in block.entries]
        at += block.size * block.repeats
    return 1.0 / (scale**2 + xp.sum(factor**2, -1)[np.array(rows, int)])


def diagonal_mask(covariance: Covariance, dtype) -> np.ndarray:
    """Return 1 for the entries of theta on a factor's diagonal, 0 for the others."""
    positions = covariance.diagonal_positions()
    return np.array([k in positions for k in range(covariance.num_theta)], dtype)


def inverse_information(
    sums: Sums,
    free: Bool[Array, "d"],
    theta_floor: Float[Array, "t"],
    arithmetic: Arithmetic = TRACED,
) -> Float[Array, "d d"]:
    """Return the block-diagonal inverse of the expected information, damped, on free parameters.

    Entries of the factor that stand near zero have next to no expected information, although the objective
    is curved there: ``theta_floor`` bounds their curvature from below.
    """
    xp = arithmetic.xp
    blocks = (sums.beta_information, sums.theta_information, sums.error_information)
    d, at, rows = sum(b.shape[0] for b in blocks), 0, []
    for block, floor in zip(blocks, (0.0, theta_floor, 0.0), strict=True):
        k = block.shape[0]
        if k:
            free_ = free[at : at + k]
            inverse = inverse_spd(block, free_, floor=floor, arithmetic=arithmetic)
            rows.append(xp.pad(inverse, ((0, 0), (at, d - at - k))))
        at += k
    return xp.concatenate(rows)
