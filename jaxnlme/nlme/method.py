"""What an estimation method is, and the part that all marginal-likelihood methods share."""

from __future__ import annotations

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme._results import RESULTS
from jaxnlme._typing import Array, Bool, Float, Int, PyTree
from jaxnlme.covariance import Covariance
from jaxnlme.mixed.lmm import covariance_information, cross_products
from jaxnlme.nlme.conditional import natural
from jaxnlme.nlme.evaluate import design_columns
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.numerics import outer
from jaxnlme.numerics.blocks import small_matmul, transpose
from jaxnlme.numerics.small_linalg import cho_solve, cholesky, inverse_spd


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


class _State(eqx.Module):
    bfgs: outer.BFGSState
    u: Float[Array, "m q"]
    converged: Bool[Array, "m"]
    phase: Int[Array, ""]
    value: Float[Array, ""]  # of the last evaluation, at the trial point of the step
    gradient: Float[Array, "d"]
    theta_scale: Float[Array, "t"]


class AbstractMarginalMethod(AbstractMethod):
    """Maximise an approximation of the marginal likelihood by BFGS over all parameters."""

    tolerance: eqx.AbstractVar[float]

    @abc.abstractmethod
    def groups(self, problem: NLMEProblem, params: NLMEParams, u0: Float[Array, "m q"]) -> Inner:
        """Return each group's marginal log-likelihood, differentiable once in ``params``."""

    def init(self, problem, params):
        x = params.flat()
        known = jnp.isfinite(x)
        bfgs = outer.start(
            jnp.where(known, x, 0.0), jnp.eye(x.shape[0], dtype=x.dtype), _free(problem)
        )
        m, q = problem.num_groups, problem.num_random
        return _State(
            bfgs=bfgs,
            u=jnp.zeros((m, q), x.dtype),
            converged=jnp.ones((m,), bool),
            phase=jnp.where(jnp.all(known), 1, 0).astype(jnp.int32),
            value=jnp.array(jnp.inf, x.dtype),
            gradient=jnp.zeros_like(x),
            theta_scale=jnp.ones_like(params.theta),
        )

    def step(self, problem, params, state):
        trial = params.unflat(state.bfgs.trial)
        value, gradient, u, converged, sums = self.evaluate(problem, trial, state.u)
        free = _free(problem)
        missing = ~jnp.isfinite(params.flat())
        filled = jnp.where(missing, start_values(problem, trial, sums), trial.flat())
        fresh = outer.start(filled, state.bfgs.inverse_hessian, free)

        scale = factor_scale(problem.covariance, sums.zz, sums.occupied)
        typical = jnp.sqrt(sums.rss / sums.rows)
        floor = curvature_floor(problem.covariance, trial.theta, scale * typical)
        h0 = inverse_information(sums, free, floor)
        old = eqx.tree_at(
            lambda b: b.inverse_hessian,
            state.bfgs,
            jnp.where(state.phase == 1, h0, state.bfgs.inverse_hessian),
        )
        moved = outer.advance(
            old, value, gradient, free=free, max_change=_max_change(problem, trial)
        )
        starting = state.phase == 0
        bfgs = jax.tree.map(lambda a, b: jnp.where(starting, a, b), fresh, moved)
        accepted = starting | (moved.num_rejected == 0)
        state = _State(
            bfgs=bfgs,
            u=jnp.where(accepted & ~starting, u, state.u),
            converged=jnp.where(accepted, converged, state.converged),
            phase=jnp.minimum(state.phase + 1, 2),
            value=value,
            gradient=gradient,
            theta_scale=scale,
        )
        return params.unflat(bfgs.x), state

    def terminate(self, problem, params, state, max_steps):
        done, result = outer.terminate(state.bfgs, tolerance=self.tolerance, max_steps=max_steps)
        ran = state.phase >= 2
        lost = (result == RESULTS.successful) & ~jnp.all(state.converged)
        return done & ran, RESULTS.where(lost, RESULTS.inner_failed, result)

    def evaluate(
        self, problem: NLMEProblem, params: NLMEParams, u0: Float[Array, "m q"]
    ) -> tuple[Array, Array, Array, Array, Sums]:
        """Return the objective to minimise, its gradient, the modes, their flags and the sums."""

        def chunk(part, u):
            def objective(p):
                inner = self.groups(part, p, u)
                return -jnp.sum(inner.log_likelihood), inner

            (value, inner), gradient = jax.value_and_grad(objective, has_aux=True)(params)
            return (value, gradient.flat(), chunk_sums(part, params, inner)), (
                inner.u,
                inner.converged,
            )

        (value, gradient, sums), (u, converged) = over_chunks(chunk, problem, u0)
        value = value - problem.log_jacobian()
        if problem.prior is not None:
            log_prior, slope = jax.value_and_grad(problem.prior.log_prob)(params, problem)
            value, gradient = value - log_prior, gradient - slope.flat()
        return value, gradient, u, converged, sums

    def log_likelihood(self, problem, params):
        u0 = jnp.zeros((problem.num_groups, problem.num_random), problem.y.dtype)

        def chunk(part, u):
            inner = self.groups(part, params, u)
            return (jnp.sum(inner.log_likelihood),), (inner.u,)

        (total,), _ = over_chunks(chunk, problem, u0)
        return total + problem.log_jacobian()

    def summarise(self, problem, params, state):
        value = -state.bfgs.value
        if problem.prior is not None:
            value = value - problem.prior.log_prob(params, problem)
        factor = problem.covariance.factor(params.theta)
        return Summary(
            log_likelihood=value,
            b=small_matmul(state.u, factor.T),
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


def _free(problem: NLMEProblem) -> Bool[Array, "d"]:
    return problem.free.flat()


def _max_change(problem, trial):
    """Bound one step: logs of the error by 1, the covariance factor by its own size."""
    size = jnp.max(jnp.abs(trial.theta), initial=0.0)
    return jnp.concatenate(
        [
            jnp.full_like(trial.beta, jnp.inf),
            jnp.full_like(trial.theta, 2.0) * jnp.maximum(size, 1e-8),
            jnp.ones_like(trial.error),
        ]
    )


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


def start_values(problem: NLMEProblem, trial: NLMEParams, sums: Sums) -> Float[Array, "d"]:
    """Return start values from one evaluation at the start of beta without random effects."""
    error = problem.error_model.start(sums.rss / sums.rows, sums.ff / sums.rows)
    typical = 0.5 * jnp.sqrt(sums.rss / sums.rows)
    scale = factor_scale(problem.covariance, sums.zz, sums.occupied)
    theta = typical * scale * diagonal_mask(problem.covariance, scale.dtype)
    return jnp.concatenate([trial.beta, theta, error]).astype(trial.beta.dtype)


def factor_scale(
    covariance: Covariance, zz: Float[Array, "q"], count: Float[Array, "q"]
) -> Float[Array, "t"]:
    """Return the size that counts as large for each entry of the relative factor (by its row).

    The relative precision factor starts at 0.375 times the root mean square of the derivative, as in R's
    ``nlme`` (Bates and Pinheiro 1998, section 4.2); this is its inverse.
    """
    at, parts = 0, []
    for block in covariance.blocks:
        k = block.size * block.repeats
        total = jnp.sum(zz[at : at + k].reshape(block.repeats, block.size), 0)
        groups = jnp.sum(count[at : at + k].reshape(block.repeats, block.size), 0)
        relative = jnp.sqrt(jnp.maximum(groups, 1.0) / jnp.where(total > 0, total, 1.0)) / 0.375
        parts += [relative[i] for i, _ in block.entries]
        at += k
    return jnp.stack(parts) if parts else jnp.zeros(0, zz.dtype)


def curvature_floor(
    covariance: Covariance, theta: Float[Array, "t"], scale: Float[Array, "t"]
) -> Float[Array, "t"]:
    """Return a lower bound of the curvature in each entry of the factor, for entries that stand near zero.

    ``1 / (scale^2 + |row|^2)``: far below the information of a row that is not zero (twice the number of groups
    over its square), and of the right size for one that is.
    """
    rows = []
    for block, part in zip(covariance.blocks, covariance.split(theta), strict=True):
        size = jnp.sum(block.factor(part) ** 2, -1)
        rows += [size[i] for i, _ in block.entries]
    return 1.0 / (scale**2 + jnp.stack(rows))


def diagonal_mask(covariance: Covariance, dtype) -> Float[Array, "t"]:
    """Return 1 for the entries of theta on a factor's diagonal, 0 for the others."""
    positions = covariance.diagonal_positions()
    return jnp.array([k in positions for k in range(covariance.num_theta)], dtype)


def inverse_information(
    sums: Sums, free: Bool[Array, "d"], theta_floor: Float[Array, "t"]
) -> Float[Array, "d d"]:
    """Return the block-diagonal inverse of the expected information, damped, on free parameters.

    Entries of the factor that stand near zero have next to no expected information, although the objective
    is curved there: ``theta_floor`` bounds their curvature from below.
    """
    blocks = [sums.beta_information, sums.theta_information, sums.error_information]
    d = sum(b.shape[0] for b in blocks)
    out = jnp.zeros((d, d), blocks[0].dtype)
    at = 0
    floors = (0.0, theta_floor, 0.0)
    for block, floor in zip(blocks, floors, strict=True):
        k = block.shape[0]
        if k:
            inverse = inverse_spd(block, free[at : at + k], floor=floor)
            out = out.at[at : at + k, at : at + k].set(inverse)
        at += k
    return out
