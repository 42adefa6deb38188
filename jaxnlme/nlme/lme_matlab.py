"""MATLAB's own schedule for "LME" and "RELME": the alternation of Lindstrom and Bates as ``nlmefit`` runs it.

:class:`jaxnlme.nlme.LME` goes to the fixed point. MATLAB stops on the way: its covariance step is a simplex search
that ends at a hundred times TolX and TolFun, and psi carries that stop in its third digit. Who compares with
MATLAB's output wants those digits, so this class takes the same path over the same linearised model:

- PNLS: Gauss-Newton for beta and b together, halved until the penalised sum of squares falls, to
  ``TolX * 10^k`` and ``TolFun * 10^k``;
- covariance: ``fminsearch`` on the profiled likelihood, in the entries of ``log(Delta'Delta)`` ("logm") or of the
  upper triangular ``Delta`` ("chol"), ``psi = sigma^2 (Delta'Delta)^-1``;
- weights ``1 / |f|`` or ``1 / (a + b |f|)`` anew after that, a and b by ``fminsearch``;
- k goes from 2 to 0 each time that neither the likelihood nor beta and b move by more than the tolerances;
- derivatives are forward differences of ``DerivStep`` times the parameter.

beta and b are those of the last PNLS step, all the rest comes from the last covariance step. Where a correlation
comes to +-1 the path has no meaning (a change of 1e-13 in y moves the log-likelihood of a fit of Indometh by 0.04,
in MATLAB's program as well): the state says so, and ``nlmefit`` goes to the fixed point instead. The schedule is
documented by pynlme 0.5.1 (MIT licence, ``matlab_lb.py``), which compared it with R2023b.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme._typing import Array, Bool, Float, Int
from jaxnlme.mixed.lmm import CrossProducts, Profile, cross_products, fixed_information, profile
from jaxnlme.nlme.evaluate import derivatives, design_columns, phi_of
from jaxnlme.nlme.lme import LME, blank_products, why_ended
from jaxnlme.nlme.method import AbstractMethod, Summary, over_chunks
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.numerics.blocks import small_matmul
from jaxnlme.numerics.simplex import fminsearch
from jaxnlme.numerics.small_linalg import expm_symmetric, row_factor, solve_lower

_WORST = 1 / 2.220446049250313e-16  # the objective where there is none
_LOOSEST = 2  # k at the start
_FLAT = 1e-7


class MatlabState(eqx.Module):
    """Where the alternation stands."""

    beta: Float[Array, "f"]
    b: Float[Array, "m q"]
    entries: Float[Array, "t"]  # of log(Delta'Delta) or of Delta
    weights: Float[Array, "m n"]  # of the residuals (MATLAB's, not squared)
    error: Float[Array, "e"]  # a and b of the combined error
    sigma: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    beta_covariance: Float[Array, "f f"]
    objective: Float[Array, ""]
    change: Float[Array, ""]
    looseness: Int[Array, ""]  # k
    k: Int[Array, ""]
    settled: Bool[Array, ""]
    failed: Bool[Array, ""]
    f: Float[Array, "m n"]
    # A correlation at +-1: the likelihood is flat there, rounding steers the search.
    flat: Bool[Array, ""]


class _Point(NamedTuple):
    """A point of PNLS, the data linearised there, and the step that comes next."""

    beta: Array
    b: Array
    sse: Array
    f: Array
    products: CrossProducts
    entries: Array
    d_beta: Array
    d_b: Array
    trial_beta: Array
    trial_b: Array
    k: Array
    done: Array
    failed: Array


class MatlabLME(AbstractMethod):
    """The alternation with MATLAB's steps and stopping rules (see the module).

    Parameters
    ----------
    restricted
        True for "RELME".
    parameterization
        "logm" or "chol".
    exact
        True takes derivatives by automatic differentiation instead of differences.
    tol_x, tol_fun
        TolX and TolFun.
    deriv_step
        DerivStep.
    max_iter
        MaxIter, of which the limits of the inner iterations are multiples.

    Notes
    -----
    It starts from MATLAB's covariance whatever ``params.theta`` is; ``params.error`` starts a and b.
    """

    restricted: bool = eqx.field(static=True, default=False)
    parameterization: str = eqx.field(static=True, default="logm")
    exact: bool = eqx.field(static=True, default=False)
    tol_x: float = 1e-4
    tol_fun: float = 1e-4
    deriv_step: float = 6.055454452393343e-06
    max_iter: float = 200.0

    @property
    def name(self) -> str:
        return "RELME" if self.restricted else "LME"

    def init(self, problem, params):
        dtype, m = problem.y.dtype, problem.num_groups
        f, t = problem.num_fixed, problem.covariance.num_theta
        inf, zero, number = jnp.array(jnp.inf, dtype), jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        error = params.error
        given = problem.error_model.natural(jnp.where(jnp.isfinite(error), error, 0.0))
        return MatlabState(
            beta=params.beta,
            b=jnp.zeros((m, problem.num_random), dtype),
            entries=jnp.zeros(t, dtype),
            weights=(problem.weights > 0).astype(dtype),
            error=given.astype(dtype),
            sigma=jnp.ones((), dtype),
            log_likelihood=-inf,
            beta_covariance=jnp.zeros((f, f), dtype),
            objective=inf,
            change=inf,
            looseness=number + _LOOSEST,
            k=number,
            settled=zero,
            failed=zero,
            f=jnp.zeros_like(problem.y),
            flat=zero,
        )

    def step(self, problem, params, state):
        del params
        point = self._pnls(problem, state)
        pattern, rows = problem.covariance.blocks[0].pattern, problem.num_rows()
        free = jnp.ones_like(state.beta)

        def fitted(entries: Array) -> tuple[Array, Profile, Array]:
            lam = self._factors(entries, pattern)[1]
            fit = profile(point.products, lam, rows, free, restricted=self.restricted)
            value = 0.5 * fit.deviance
            # MATLAB refuses what is singular to the last digit: the Cholesky factor of expm fails.
            usable = jnp.isfinite(value) & ~self._singular(lam, float(jnp.finfo(lam.dtype).eps))
            return jnp.where(usable, value, _WORST), fit, lam

        loose = 10.0**_LOOSEST
        found = fminsearch(
            lambda entries: fitted(entries)[0],
            point.entries,
            tol_x=loose * self.tol_x,
            tol_fun=loose * self.tol_fun,
            max_steps=(state.entries.shape[0] + problem.num_fixed) * self.max_iter,
        )
        objective, fit, lam = fitted(found.x)
        weights, error = self._reweighted(problem, state, point.f)
        sigma = jnp.sqrt(fit.pss / fit.dof)
        used = problem.weights > 0
        log_weights = jnp.sum(jnp.log(jnp.where(used, weights, 1.0)))
        log_likelihood = log_weights - objective + problem.log_jacobian()
        change = _longest(point.beta - state.beta, point.b - state.b)
        scale = 10.0 ** state.looseness.astype(sigma.dtype)
        still = (jnp.abs(state.objective - objective) <= scale * self.tol_fun) & (
            change <= scale * self.tol_x
        )
        factor = row_factor(lam)
        rows_, columns = zip(*problem.covariance.blocks[0].entries, strict=True)
        new = MatlabState(
            beta=point.beta,
            b=point.b,
            entries=found.x,
            weights=weights,
            error=error,
            sigma=sigma,
            log_likelihood=log_likelihood,
            beta_covariance=sigma**2 * fixed_information(fit.chol_xvx, free),
            objective=objective,
            change=change,
            looseness=jnp.maximum(state.looseness - still, 0),
            k=state.k + 1,
            settled=still & (state.looseness <= 0) & found.converged,
            failed=point.failed | ~jnp.isfinite(log_likelihood + sigma) | (objective >= _WORST),
            f=point.f,
            flat=self._singular(lam, _FLAT),
        )
        theta = sigma * factor[jnp.array(rows_), jnp.array(columns)]
        return NLMEParams(new.beta, theta, jnp.log(sigma * error)), new

    def terminate(self, problem, params, state, max_steps):
        del problem, params
        done = state.settled | state.failed | (state.k >= max_steps)
        return done, why_ended(state.settled, state.failed)

    def log_likelihood(self, problem, params):
        return LME(restricted=self.restricted).log_likelihood(problem, params)

    def summarise(self, problem, params, state):
        del problem, params
        return Summary(
            log_likelihood=state.log_likelihood,
            b=state.b,
            num_steps=state.k,
            gradient=jnp.zeros_like(state.entries),  # a simplex search knows none
            decrement=state.change**2,
            converged_groups=jnp.all(jnp.isfinite(state.b), -1),
            theta_scale=jnp.ones_like(state.entries),
        )

    def _pnls(self, problem: NLMEProblem, state: MatlabState) -> _Point:
        """Minimise |W (z - f)|^2 + |Delta b|^2 over beta and b at fixed Delta, by Gauss-Newton.

        The covariance that the first step needs comes from the derivatives at its start.
        """
        pattern = problem.covariance.blocks[0].pattern
        m, q = state.b.shape
        rows, free, squared = problem.num_rows(), jnp.ones_like(state.beta), state.weights**2
        groups = jnp.sum(jnp.any(problem.weights > 0, 1)).astype(free.dtype)
        tolerance = 10.0 ** state.looseness.astype(free.dtype)
        tol_x, tol_fun = tolerance * self.tol_x, tolerance * self.tol_fun
        limit = jnp.minimum((q * m + problem.num_fixed) * self.max_iter, 1e4)

        def evaluate(beta, b):
            def chunk(part, extra):
                return self._linearised(part, beta, *extra)

            return over_chunks(chunk, problem, (b, squared))

        def body(s: _Point) -> _Point:
            sums, (f, zz, zx, zt) = evaluate(s.trial_beta, s.trial_b)
            products = CrossProducts(zz, zx, zt, *sums[:3])
            first = s.k == 0
            begun = self._first_entries(jnp.einsum("mii->i", zz) / groups, pattern)
            entries = jnp.where(first & (state.k == 0), begun, s.entries)
            delta, lam = self._factors(entries, pattern)
            sse = sums[3] + jnp.sum(small_matmul(s.trial_b, delta.T) ** 2)
            length = _longest(s.d_beta, s.d_b)
            stuck = ~first & (length < jnp.finfo(free.dtype).eps)
            accept = first | (sse <= s.sse) | stuck
            fit = profile(products, lam, rows, free, restricted=False)
            near = (jnp.abs(sse - s.sse) <= tol_fun) & (length <= tol_x)

            def pick(a, b):
                return jax.tree.map(lambda a, b: jnp.where(accept, a, b), a, b)

            beta, b = pick((s.trial_beta, s.trial_b), (s.beta, s.b))
            step = fit.beta, small_matmul(fit.u, lam.T) - s.trial_b
            d_beta, d_b = pick(step, (0.5 * s.d_beta, 0.5 * s.d_b))
            failed = ~jnp.isfinite(_longest(d_beta, d_b)) | (first & ~jnp.isfinite(sse))
            return _Point(
                beta=beta,
                b=b,
                sse=jnp.where(accept & ~stuck, sse, s.sse),
                f=pick(f, s.f),
                products=pick(products, s.products),
                entries=entries,
                d_beta=d_beta,
                d_b=d_b,
                trial_beta=beta + d_beta,
                trial_b=b + d_b,
                k=s.k + 1,
                done=failed | stuck | (accept & ~first & near),
                failed=failed,
            )

        start = _Point(
            beta=state.beta,
            b=state.b,
            sse=jnp.full((), jnp.inf, free.dtype),
            f=jnp.zeros_like(problem.y),
            products=blank_products(m, q, problem.num_fixed, free.dtype),
            entries=state.entries,
            d_beta=jnp.zeros_like(state.beta),
            d_b=jnp.zeros_like(state.b),
            trial_beta=state.beta,
            trial_b=state.b,
            k=jnp.zeros((), jnp.int32),
            done=jnp.zeros((), bool),
            failed=jnp.zeros((), bool),
        )
        return jax.lax.while_loop(lambda s: ~s.done & (s.k < limit), body, start)

    def _linearised(self, part: NLMEProblem, beta, b, squared):
        """Cross-products of some groups linearised at (beta, b), and their sum of squares."""
        phi = phi_of(part, beta, b)
        f, J = derivatives(part, phi, 1) if self.exact else differences(part, phi, self.deriv_step)
        Z, X = design_columns(J, part.B), design_columns(J, part.A)
        r = jnp.where(part.weights > 0, part.response() - f, 0.0)
        c = cross_products(Z, X, r + jnp.sum(Z * b[:, None, :], -1), squared)
        return (c.xx, c.xt, c.tt, jnp.sum(squared * r**2)), (f, c.zz, c.zx, c.zt)

    def _first_entries(self, mean_square: Float[Array, "q"], pattern) -> Float[Array, "t"]:
        """Entries of the first Delta: 0.375 times the root mean square derivative (Bates and Pinheiro 1998)."""
        low = 0.375 * jnp.sqrt(mean_square)
        diagonal = 2.0 * jnp.log(low) if self.parameterization == "logm" else low
        return jnp.stack([diagonal[i] * (i == j) for i, j in _places(pattern)])

    def _factors(self, entries: Float[Array, "t"], pattern) -> tuple[Array, Array]:
        """Return Delta and its inverse; for "logm" triangular ones (psi depends on Delta'Delta alone)."""
        q, places = len(pattern), _places(pattern)
        rows, columns = (jnp.array(v) for v in zip(*places, strict=True))
        matrix = jnp.zeros((q, q), entries.dtype).at[rows, columns].set(entries)
        if self.parameterization == "chol":
            eye = jnp.eye(q, dtype=entries.dtype)
            return matrix, solve_lower(matrix.T, eye).T
        if len(places) == q:  # diagonal
            half = 0.5 * jnp.diagonal(matrix)
            return jnp.diag(jnp.exp(half)), jnp.diag(jnp.exp(-half))
        half = 0.5 * jnp.where(jnp.tri(q, dtype=bool), matrix.T, matrix)
        low = row_factor(expm_symmetric(-half))
        return solve_lower(low, jnp.eye(q, dtype=entries.dtype)), low

    def _singular(self, lam: Array, limit: float) -> Array:
        """True where a random effect's variance given the others is less than ``limit`` of its variance."""
        if self.parameterization == "chol":
            return jnp.zeros((), bool)
        return jnp.any(jnp.diagonal(lam) ** 2 < limit * jnp.sum(lam**2, 1))

    def _reweighted(
        self, problem: NLMEProblem, state: MatlabState, f: Array
    ) -> tuple[Array, Array]:
        """Weights at the predictions ``f`` (MATLAB: 1 where they would be infinite), and a and b."""
        model, used = problem.error_model, problem.weights > 0
        error = state.error
        if not model.depends_on_f:
            return state.weights, jnp.ones_like(error)
        if len(model.parameters) == 1:
            error = jnp.ones_like(error)
        else:
            z = problem.response()

            def misfit(error: Array) -> Array:
                sd = jnp.where(used, model.sd(f, jnp.abs(error)), 1.0)
                terms = 0.5 * ((z - f) / sd) ** 2 + jnp.log(sd)
                value = jnp.sum(jnp.where(used, terms, 0.0))
                return jnp.where(jnp.isfinite(value), value, _WORST)

            error = jnp.abs(fminsearch(misfit, error).x)
        sd = model.sd(f, error)
        absent = (f == 0) if model.vanishes_at_zero else ~(sd > 0)
        return jnp.where(used, 1.0 / jnp.where(absent, 1.0, sd), 0.0), error


def _places(pattern: tuple[tuple[int, ...], ...]) -> list[tuple[int, int]]:
    """Free entries of the upper triangle, column by column as MATLAB's ``find`` has them."""
    q = len(pattern)
    return [(i, j) for j in range(q) for i in range(j + 1) if i == j or pattern[i][j]]


def _longest(d_beta: Array, d_b: Array) -> Array:
    return jnp.maximum(jnp.max(jnp.abs(d_beta)), jnp.max(jnp.abs(d_b)))


def differences(
    problem: NLMEProblem, phi: Float[Array, "m k p"], step: Any
) -> tuple[Float[Array, "m n"], Float[Array, "m n p"]]:
    """Predictions and their forward differences in phi, by steps of ``step * phi`` (MATLAB's DerivStep).

    A zero parameter takes ``step`` times the length of its row of phi, or ``step``.
    """
    length = jnp.sqrt(jnp.sum(phi**2, -1, keepdims=True))
    h = step * jnp.where(phi != 0, phi, jnp.where(length > 0, length, 1.0))
    p = phi.shape[-1]
    directions = jnp.concatenate([jnp.zeros((1, p), phi.dtype), jnp.eye(p, dtype=phi.dtype)])
    values = jax.vmap(lambda e: derivatives(problem, phi + h * e[None, None], 0)[0])(directions)
    return values[0], jnp.moveaxis(values[1:] - values[:1], 0, -1) / h
