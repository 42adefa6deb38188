"""LME: the alternation of Lindstrom and Bates (1990), plain and restricted.

1. Penalised nonlinear least squares (PNLS): at fixed covariance find beta and the random effects.
2. Linear mixed model (LMM): linearise there, estimate the covariance with beta and sigma profiled out.

The answer is the fixed point of the two, not the maximum of any function: ``log_likelihood`` is that of
the linearised data at the last PNLS step (Pinheiro and Bates 2000, section 7.2.1).
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme._errors import ModelSpecError
from jaxnlme._results import RESULTS
from jaxnlme._typing import Array, Bool, Float, Int
from jaxnlme.error_models import negative_log_density
from jaxnlme.mixed.lmm import (
    CrossProducts,
    covariance_information,
    cross_products,
    fixed_information,
    profile,
)
from jaxnlme.nlme.evaluate import (
    derivatives,
    design_columns,
    phi_of,
    random_factor,
    to_random,
    to_random_square,
)
from jaxnlme.nlme.method import (
    AbstractMethod,
    Summary,
    curvature_floor,
    diagonal_mask,
    factor_scale,
    over_chunks,
)
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.numerics import outer
from jaxnlme.numerics.arithmetic import inverse_spd
from jaxnlme.numerics.blocks import small_matmul
from jaxnlme.numerics.mode import Evaluation, find_mode
from jaxnlme.numerics.small_linalg import cho_solve, solve_lower


class _State(eqx.Module):
    beta: Float[Array, "f"]
    u: Float[Array, "m q"]  # spherical, relative to sigma: b = Lambda u
    theta: Float[Array, "t"]  # relative factor entries, psi = sigma^2 Lambda Lambda'
    shape: Float[Array, "s"]  # unconstrained error parameters relative to the first
    residual_error: Float[Array, "e"]  # unconstrained, from individual residuals (see error_from)
    sigma: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    beta_covariance: Float[Array, "f f"]
    gradient: Float[Array, "ts"]  # of the LMM's -log L in (theta, shape)
    change: Float[Array, ""]
    pnls_decrement: Float[Array, ""]
    k: Int[Array, ""]
    started: Bool[Array, ""]
    failed: Bool[Array, ""]
    theta_scale: Float[Array, "t"]
    f: Float[Array, "m n"]  # predictions that the weights of the next PNLS step follow
    damping: Float[Array, ""]  # share of the LMM's step that is taken
    last_step: Float[Array, "ts"]  # the LMM's whole step in (theta, shape)


class _Pnls(NamedTuple):
    beta: Array
    u: Array
    pss: Array
    f: Array
    J: Array
    d_beta: Array
    d_u: Array
    step: Array
    trial_beta: Array
    trial_u: Array
    decrement: Array
    halvings: Array
    k: Array
    done: Array
    products: CrossProducts  # of the linearised data at (beta, u)


class _Linear(NamedTuple):
    """The linearised data at one PNLS point; ``t`` is the residual plus the random part."""

    X: Array
    Z: Array
    t: Array
    f: Array
    weights: Array
    rows: Array


class LME(AbstractMethod):
    """Lindstrom-Bates alternation (R's ``nlme`` with method "ML", MATLAB's "LME").

    Parameters
    ----------
    restricted
        True maximises the restricted likelihood in the LMM step (MATLAB's "RELME").
    error_from
        How error parameters beyond the first are found: ``"marginal"`` maximises the LMM likelihood over
        them (R's variance functions), ``"residuals"`` fits them to the individual residuals after each
        LMM step (MATLAB's "combined").
    tolerance
        Stop when an alternation moves no parameter by more than this many standard errors.

    Notes
    -----
    ``log_likelihood`` keeps all constants. Tested against ``nlme_*.json`` and ``matlab_*.json``.
    """

    restricted: bool = eqx.field(static=True, default=False)
    error_from: str = eqx.field(static=True, default="marginal")
    tolerance: float = eqx.field(default=1e-7, kw_only=True)

    @property
    def name(self) -> str:
        return "RELME" if self.restricted else "LME"

    def __check_init__(self):
        if self.error_from not in ("marginal", "residuals"):
            raise ModelSpecError(
                f"error_from={self.error_from!r} is not known: use 'marginal' or 'residuals'."
            )

    def init(self, problem, params):
        dtype = problem.y.dtype
        error = params.error
        known = jnp.all(jnp.isfinite(error)) & jnp.all(jnp.isfinite(params.theta))
        sigma = problem.error_model.natural(error)[0]
        inf = jnp.array(jnp.inf, dtype)
        f, t = problem.num_fixed, problem.covariance.num_theta
        moving = t + error.shape[0] - 1  # what the LMM step moves: theta and the relative shape
        return _State(
            beta=params.beta,
            u=jnp.zeros((problem.num_groups, problem.num_random), dtype),
            theta=jnp.where(known, params.theta / jnp.where(known, sigma, 1.0), 0.0),
            shape=jnp.where(known, problem.error_model.relative(error), 0.0).astype(dtype),
            residual_error=jnp.where(known, error, 0.0),
            sigma=jnp.where(known, sigma, 1.0).astype(dtype),
            log_likelihood=-inf,
            beta_covariance=jnp.zeros((f, f), dtype),
            gradient=jnp.zeros(moving, dtype),
            change=inf,
            pnls_decrement=inf,
            k=jnp.zeros((), jnp.int32),
            started=known,
            failed=jnp.zeros((), bool),
            theta_scale=jnp.ones(t, dtype),
            f=jnp.ones_like(problem.y),
            damping=jnp.ones((), dtype),
            last_step=jnp.zeros(moving, dtype),
        )

    def step(self, problem, params, state):
        del params
        pnls = self._pnls(problem, state)
        fresh = self._started(problem, state, pnls)
        moved = self._lmm(problem, state, pnls)
        new = jax.tree.map(lambda a, b: jnp.where(state.started, a, b), moved, fresh)
        new = eqx.tree_at(lambda s: s.theta_scale, new, _theta_scale(problem, pnls))
        return _params(problem, new), new

    def terminate(self, problem, params, state, max_steps):
        del params
        close = state.started & (state.k >= 2) & (state.change <= self.tolerance)
        done = close | state.failed | (state.k >= max_steps)
        return done, why_ended(close, state.failed)

    def log_likelihood(self, problem, params):
        """Return the LMM likelihood of the data linearised at PNLS for ``params.theta`` and ``.error``.

        ``params.beta`` is where PNLS starts: beta and sigma are profiled out, as in the fit.
        """
        # change = 0 asks for the tightest PNLS; weights that follow f need PNLS again at the new f.
        state = eqx.tree_at(
            lambda s: s.change, self.init(problem, params), jnp.zeros((), problem.y.dtype)
        )
        if problem.error_model.depends_on_f:

            def refresh(_, state):
                p = self._pnls(problem, state)
                return eqx.tree_at(lambda s: (s.beta, s.u, s.f), state, (p.beta, p.u, p.f))

            state = jax.lax.fori_loop(0, 20, refresh, state)
        pnls = self._pnls(problem, state)
        weights, _ = _weights_and_slope(problem, pnls.f, state.shape)
        lin = _linearise(problem, weights, pnls.f, pnls.J, pnls.u, state.theta)
        value, _, _ = self._deviance(problem, lin, state.theta, state.shape)
        return -value + problem.log_jacobian()

    def summarise(self, problem, params, state):
        lam = problem.covariance.factor(state.theta)
        return Summary(
            log_likelihood=state.log_likelihood,
            b=small_matmul(state.u, lam.T),
            num_steps=state.k,
            gradient=state.gradient,
            decrement=state.change**2,
            converged_groups=jnp.all(jnp.isfinite(state.u), -1),
            theta_scale=state.theta_scale,
        )

    def _pnls(self, problem: NLMEProblem, state: _State) -> _Pnls:
        """Minimise |W^1/2 (z - f)|^2 + |u|^2 over beta and u at fixed covariance.

        For each beta the random effects go to their modes, group by group; beta then takes the Gauss-Newton
        step of the linearised data, halved while the minimum over u does not fall. One step length for all
        groups together would let the slowest of many groups decide.
        """
        lam = problem.covariance.factor(state.theta)
        free = problem.free.beta.astype(lam.dtype)
        rows = problem.num_rows()
        m, n = problem.y.shape
        dtype = problem.y.dtype
        # The weights of an f-dependent error are held within PNLS and refreshed between alternations.
        weights, _ = _weights_and_slope(problem, state.f, state.shape)
        loose = jnp.clip(1e-4 * state.change**2, 1e-16, 1e-6)
        tolerance = jnp.where(state.started, loose, jnp.inf)

        def evaluate(beta, u):
            def chunk(part, extra):
                u, w = extra
                return _modes_and_products(part, lam, beta, u, w)

            return over_chunks(chunk, problem, (u, weights))

        def body(s: _Pnls) -> _Pnls:
            sums, (u_hat, f, J, zz, zx, zt, ok) = evaluate(s.trial_beta, s.trial_u)
            xx, xt, tt, pss, gx = sums
            finite = jnp.isfinite(pss) & jnp.all(ok)
            first = ~jnp.isfinite(s.pss)
            bound = s.pss - 1e-4 * s.step * s.decrement + 1e-13 * jnp.abs(s.pss)
            accept = finite & (first | (pss <= bound))
            products = CrossProducts(zz, zx, zt, xx, xt, tt)
            fit = profile(products, lam, rows, free, restricted=False)
            decrement = jnp.sum(gx * free * fit.beta)
            solved = jnp.isfinite(decrement)

            def pick(a, b):
                return jnp.where(accept, a, b)

            d_beta = pick(jnp.where(solved, fit.beta, 0.0), s.d_beta)
            d_u = pick(jnp.where(solved, fit.u - u_hat, 0.0), s.d_u)
            beta, u = pick(s.trial_beta, s.beta), pick(u_hat, s.u)
            step = jnp.where(accept, 1.0, 0.5 * s.step).astype(dtype)
            halvings = jnp.where(accept, 0, s.halvings + 1)
            pss_kept = pick(pss, s.pss)
            decrement = pick(decrement, s.decrement)
            small = decrement <= tolerance * pss_kept / rows
            return _Pnls(
                beta=beta,
                u=u,
                pss=pss_kept,
                f=pick(f, s.f),
                J=pick(J, s.J),
                d_beta=d_beta,
                d_u=d_u,
                step=step,
                trial_beta=beta + step * d_beta,
                trial_u=u + step * d_u,
                decrement=decrement,
                halvings=halvings,
                k=s.k + 1,
                done=small | (halvings > 25) | (accept & ~solved),
                products=jax.tree.map(pick, products, s.products),
            )

        p = len(problem.transforms)
        inf = jnp.array(jnp.inf, dtype)
        start = _Pnls(
            beta=state.beta,
            u=state.u,
            pss=inf,
            f=jnp.full((m, n), jnp.nan, dtype),
            J=jnp.full((m, n, p), jnp.nan, dtype),
            d_beta=jnp.zeros_like(state.beta),
            d_u=jnp.zeros_like(state.u),
            step=jnp.ones((), dtype),
            trial_beta=state.beta,
            trial_u=state.u,
            decrement=inf,
            halvings=jnp.zeros((), jnp.int32),
            k=jnp.zeros((), jnp.int32),
            done=jnp.zeros((), bool),
            products=blank_products(m, problem.num_random, problem.num_fixed, dtype),
        )
        return jax.lax.while_loop(lambda s: ~s.done & (s.k < 50), body, start)

    def _started(self, problem: NLMEProblem, state: _State, pnls: _Pnls) -> _State:
        """Choose the first covariance from the derivatives at the start of beta (R's rule)."""
        w, z = problem.weights, problem.response()
        used = w > 0
        rows = problem.num_rows()
        rss = jnp.sum(jnp.where(used, w * (z - pnls.f) ** 2, 0.0))
        ff = jnp.sum(jnp.where(used, pnls.f**2, 0.0))
        error = problem.error_model.start(rss / rows, ff / rows)
        theta = _theta_scale(problem, pnls)
        theta = theta * diagonal_mask(problem.covariance, theta.dtype)
        return _State(
            **{
                **{name: getattr(state, name) for name in state.__dataclass_fields__},
                "theta": theta.astype(z.dtype),
                "shape": problem.error_model.relative(error).astype(z.dtype),
                "residual_error": error.astype(z.dtype),
                "started": jnp.ones((), bool),
                "f": pnls.f,
                "failed": ~jnp.isfinite(pnls.pss) | ~jnp.all(jnp.isfinite(theta)),
            }
        )

    def _deviance(self, problem, lin: _Linear, theta, shape, products: CrossProducts | None = None):
        """Return -log L of the linearised data, its gradient in (theta, shape), and the LMM profile.

        ``products`` saves the pass over the rows where the weights do not depend on ``shape``.
        """
        free = problem.free.beta.astype(theta.dtype)
        used = problem.weights > 0
        lam, pull = jax.vjp(problem.covariance.factor, theta)
        weights, slope = _weights_and_slope(problem, lin.f, shape)
        c = cross_products(lin.Z, lin.X, lin.t, weights) if products is None else products
        fit = profile(c, lam, lin.rows, free, restricted=self.restricted)
        log_weights = jnp.sum(jnp.log(jnp.where(used, weights, 1.0)))
        value = 0.5 * (fit.deviance - log_weights)
        (d_theta,) = pull(fit.gradient)
        if not shape.shape[0]:
            return value, 0.5 * d_theta, fit
        d_shape = self._shape_gradient(lin, lam, weights, slope, c, fit, free)
        return value, 0.5 * jnp.concatenate([d_theta, d_shape]), fit

    def _shape_gradient(self, lin, lam, weights, slope, c, fit, free):
        """Derivative of the deviance in the relative error parameters, through each row's weight."""
        zl = small_matmul(lin.Z, lam[None])
        r = (
            lin.t
            - jnp.sum(lin.X * (fit.beta * free)[None, None], -1)
            - jnp.sum(zl * fit.u[:, None, :], -1)
        )
        half = solve_lower(fit.chol_h, jnp.swapaxes(zl, -1, -2))
        leverage = jnp.sum(half**2, -2)
        per_weight = leverage + (fit.dof / fit.pss) * r**2
        if self.restricted:
            zx = small_matmul(lam.T[None], c.zx * free[None, None])
            ux = cho_solve(fit.chol_h, zx)
            rx = lin.X * free[None, None] - small_matmul(zl, ux)
            whitened = solve_lower(fit.chol_xvx[None], jnp.swapaxes(rx, -1, -2))
            per_weight = per_weight + jnp.sum(whitened**2, -2)
        used = (weights > 0)[..., None]
        total = jnp.where(used, -2.0 * slope * (weights * per_weight - 1.0)[..., None], 0.0)
        return jnp.sum(total, (0, 1))

    def _lmm(self, problem: NLMEProblem, state: _State, pnls: _Pnls) -> _State:
        """Estimate the covariance (and marginal error shape) of the linearised data."""
        weights, _ = _weights_and_slope(problem, pnls.f, state.shape)
        lin = _linearise(problem, weights, pnls.f, pnls.J, pnls.u, state.theta)
        residual_error, shape0 = state.residual_error, state.shape
        if self.error_from == "residuals" and shape0.shape[0]:
            residual_error = fit_residual_error(problem, pnls.f, state.residual_error)
            shape0 = problem.error_model.relative(residual_error)
        t = state.theta.shape[0]
        moving = jnp.concatenate(
            [problem.free.theta, problem.free.error[1:] & (self.error_from == "marginal")]
        )
        x0 = jnp.concatenate([state.theta, shape0])
        # Where the weights do not follow f, PNLS has made the products already.
        products = None
        if not problem.error_model.depends_on_f:
            products = pnls.products
        elif not shape0.shape[0]:
            products = cross_products(lin.Z, lin.X, lin.t, lin.weights)
        info = self._information(problem, lin, state.theta, shape0, products)
        lam = problem.covariance.factor(state.theta)
        near_zero = curvature_floor(problem.covariance, lam, state.theta_scale)
        floor = jnp.concatenate([near_zero, jnp.zeros_like(shape0)])
        bfgs = outer.start(x0, inverse_spd(info, moving, floor=floor), moving)
        tolerance = jnp.clip(1e-5 * state.change**2, 1e-14, 1e-6)

        def body(carry):
            s, _ = carry
            value, gradient, _ = self._deviance(problem, lin, s.trial[:t], s.trial[t:], products)
            size = jnp.maximum(jnp.max(jnp.abs(s.x[:t]), initial=0.0), 1e-8)
            bound = jnp.ones_like(x0).at[:t].set(2.0 * size)
            s = outer.advance(s, value, gradient, free=moving, max_change=bound)
            done, _ = outer.terminate(s, tolerance=tolerance, max_steps=200)
            return s, done

        bfgs, _ = jax.lax.while_loop(lambda c: ~c[1], body, (bfgs, jnp.zeros((), bool)))
        base = jnp.concatenate([state.theta, state.shape])
        x, damping = _damped(base, bfgs.x, info, state)
        theta, shape = x[:t], x[t:]
        value, gradient, fit = self._deviance(problem, lin, theta, shape, products)
        free = problem.free.beta.astype(theta.dtype)
        sigma = jnp.sqrt(fit.pss / fit.dof)
        step = bfgs.x - base
        moved = jnp.sum(step * (info @ step)) + jnp.sum((fit.chol_xvx.T @ fit.beta) ** 2) / sigma**2
        change = jnp.sqrt(jnp.maximum(moved, 0.0))
        bad = ~jnp.isfinite(pnls.pss) | ~jnp.isfinite(value)
        return _State(
            beta=pnls.beta + fit.beta,
            u=fit.u,
            theta=theta,
            shape=shape,
            residual_error=residual_error,
            sigma=sigma,
            log_likelihood=-value + problem.log_jacobian(),
            beta_covariance=sigma**2 * fixed_information(fit.chol_xvx, free),
            gradient=gradient,
            change=jnp.where(pnls.halvings > 25, jnp.maximum(change, 10 * self.tolerance), change),
            pnls_decrement=pnls.decrement,
            k=state.k + 1,
            started=state.started,
            failed=bad,
            theta_scale=state.theta_scale,
            f=pnls.f,
            damping=damping,
            last_step=step,
        )

    def variance_objective(self, problem: NLMEProblem, state: _State, x: Float[Array, "te"]):
        """Return -log L of the data linearised at a fit in (theta, error), absolute; beta profiled out.

        Its second derivatives give the covariance of the variance parameters (R's ``apVar``).
        """
        t = state.theta.shape[0]
        theta, error = x[:t], x[t:]
        sigma = problem.error_model.natural(error)[0]
        shape = problem.error_model.relative(error)
        still = eqx.tree_at(lambda s: s.change, state, jnp.array(1e-7, x.dtype))
        pnls = jax.lax.stop_gradient(self._pnls(problem, still))
        weights, _ = _weights_and_slope(problem, pnls.f, shape)
        lin = _linearise(problem, weights, pnls.f, pnls.J, pnls.u, state.theta)
        c = cross_products(lin.Z, lin.X, lin.t, weights)
        free = problem.free.beta.astype(x.dtype)
        lam = problem.covariance.factor(theta / sigma)
        fit = profile(c, lam, lin.rows, free, restricted=self.restricted)
        k = fit.dof
        used = problem.weights > 0
        log_weights = jnp.sum(jnp.log(jnp.where(used, weights, 1.0)))
        determinants = fit.deviance - k * jnp.log(fit.pss / k) - k
        explicit = determinants + 2 * k * jnp.log(sigma) + fit.pss / sigma**2
        return 0.5 * (explicit - log_weights)

    def _information(self, problem, lin: _Linear, theta, shape, products: CrossProducts | None):
        """Expected Hessian of -log L in (theta, shape), sigma profiled out."""
        weights, slope = _weights_and_slope(problem, lin.f, shape)
        if products is None:
            products = cross_products(lin.Z, lin.X, lin.t, weights)
        zz = products.zz
        lam = problem.covariance.factor(theta)
        dlam = jnp.moveaxis(jax.jacfwd(problem.covariance.factor)(theta), -1, 0)
        info = 0.5 * covariance_information(zz, lam, dlam, lin.rows)
        s = shape.shape[0]
        if not s:
            return info
        slope = jnp.where((problem.weights > 0)[..., None], slope, 0.0)
        total = jnp.sum(slope, (0, 1))
        centred = jnp.einsum("mna,mnb->ab", slope, slope) - total[:, None] * total[None] / lin.rows
        t = theta.shape[0]
        out = jnp.zeros((t + s, t + s), theta.dtype)
        return out.at[:t, :t].set(info).at[t:, t:].set(2.0 * centred)


def RELME(**options) -> LME:
    """Return ``LME(restricted=True)``: the restricted fit of MATLAB's "RELME"."""
    return LME(restricted=True, **options)


def _damped(x0, x, info, state: _State) -> tuple[Array, Array]:
    """Shorten the LMM's step where the alternation swings instead of settling.

    With errors that follow f the map has eigenvalues below -1 on some data: shorter steps whenever one
    turns back on the one before make it settle at the same fixed point.
    """
    step = x - x0
    push = info @ step
    size = jnp.sum(step * push)
    against = jnp.sum(state.last_step * push)
    # A step that is -r times the one before has against = -size / r; r below 0.6 settles by itself.
    swings = (state.k >= 3) & (against < 0) & (size > -0.6 * against)
    damping = jnp.where(swings, 0.5 * state.damping, jnp.minimum(1.0, 1.2 * state.damping))
    damping = jnp.clip(damping, 0.05, 1.0)
    return x0 + damping * step, damping


def _modes_and_products(part: NLMEProblem, lam, beta, u0, weights):
    """Modes of u at ``beta`` for some groups, and the cross-products of the data linearised there."""
    BL = random_factor(part.B, lam)
    z, used = part.response(), weights > 0
    eye = jnp.eye(u0.shape[-1], dtype=u0.dtype)[None]

    def evaluate(u):
        phi = phi_of(part, beta, small_matmul(u, lam.T))
        f, J, K = derivatives(part, phi, 2)
        wr = jnp.where(used, weights * (z - f), 0.0)
        value = 0.5 * jnp.sum(wr * (z - f), 1) + 0.5 * jnp.sum(u**2, -1)
        gradient = u - to_random(wr[..., None] * J, BL)
        JJ = weights[..., None, None] * (J[..., :, None] * J[..., None, :])
        safe = eye + to_random_square(JJ, BL)
        full = eye + to_random_square(JJ - wr[..., None, None] * K, BL)
        return Evaluation(value, gradient, full, safe, (f, J))

    mode = find_mode(evaluate, u0)
    f, J = mode.evaluation.aux
    Z, X = design_columns(J, part.B), design_columns(J, part.A)
    r = jnp.where(used, z - f, 0.0)
    t = r + jnp.sum(small_matmul(Z, lam[None]) * mode.u[:, None, :], -1)
    c = cross_products(Z, X, t, weights)
    gx = jnp.sum(weights[..., None] * X * r[..., None], (0, 1))
    pss = 2.0 * jnp.sum(mode.evaluation.value)
    usable = jnp.isfinite(mode.evaluation.value) & jnp.all(jnp.isfinite(J), (1, 2))
    return (c.xx, c.xt, c.tt, pss, gx), (mode.u, f, J, c.zz, c.zx, c.zt, usable)


def why_ended(settled: Bool[Array, ""], failed: Bool[Array, ""]) -> RESULTS:
    """Return the result code of an alternation."""
    limited = RESULTS.where(settled, RESULTS.successful, RESULTS.max_steps_reached)
    return RESULTS.where(failed, RESULTS.nonfinite, limited)


def blank_products(m: int, q: int, f: int, dtype) -> CrossProducts:
    """Zeros in the shape of the cross-products of m groups."""
    shapes = ((m, q, q), (m, q, f), (m, q), (f, f), (f,), ())
    return CrossProducts(*(jnp.zeros(shape, dtype) for shape in shapes))


def _theta_scale(problem: NLMEProblem, pnls: _Pnls) -> Float[Array, "t"]:
    zz = jnp.sum(problem.weights[..., None] * design_columns(pnls.J, problem.B) ** 2, 1)
    occupied = jnp.sum(zz > 0, 0).astype(zz.dtype)
    return factor_scale(problem.covariance, jnp.sum(zz, 0), occupied)


def _params(problem: NLMEProblem, state: _State) -> NLMEParams:
    error = problem.error_model.absolute(state.sigma, state.shape)
    return NLMEParams(state.beta, state.sigma * state.theta, error.astype(state.beta.dtype))


def _weights_and_slope(problem, f, shape):
    """Weights relative to sigma and the slope of log sd in the relative error parameters."""
    used = problem.weights > 0

    def log_sd(s):
        return jnp.log(jnp.broadcast_to(problem.error_model.shape_sd(f, s), f.shape))

    log_h = log_sd(shape)
    slope = jax.jacfwd(log_sd)(shape) if shape.shape[0] else jnp.zeros((*f.shape, 0), f.dtype)
    return jnp.where(used, problem.weights * jnp.exp(-2.0 * log_h), 0.0), slope


def _linearise(problem, weights, f, J, u, theta) -> _Linear:
    lam = problem.covariance.factor(theta)
    Z = design_columns(J, problem.B)
    zu = jnp.sum(small_matmul(Z, lam[None]) * u[:, None, :], -1)
    used = problem.weights > 0
    t = jnp.where(used, problem.response() - f, 0.0) + zu
    return _Linear(design_columns(J, problem.A), Z, t, f, weights, problem.num_rows())


def fit_residual_error(problem: NLMEProblem, f, error0):
    """Fit all error parameters to the individual residuals (random effects held)."""
    z, w = problem.response(), problem.weights
    free = jnp.ones(error0.shape, bool)

    def objective(e):
        return jnp.sum(
            negative_log_density(problem.error_model, z, f, w, problem.error_model.natural(e))
        )

    def log_sd(e):
        sd = problem.error_model.sd(f, problem.error_model.natural(e))
        return jnp.where(w > 0, jnp.log(jnp.broadcast_to(sd, f.shape)), 0.0)

    slope = jax.jacfwd(log_sd)(error0)
    h0 = inverse_spd(2.0 * jnp.einsum("mna,mnb->ab", slope, slope), free, damping=1e-9)

    def body(carry):
        s, _ = carry
        s = outer.advance(s, *jax.value_and_grad(objective)(s.trial), free=free, max_change=1.0)
        done, _ = outer.terminate(s, tolerance=1e-18, max_steps=100)
        return s, done

    start = (outer.start(error0, h0, free), jnp.zeros((), bool))
    return jax.lax.while_loop(lambda c: ~c[1], body, start)[0].x
