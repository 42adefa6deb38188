"""Arrays at an estimate: predictions, derivatives, conditional variances, covariance of parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme.covariance import CovarianceBlock
from jaxnlme.design.groups import GroupLayout
from jaxnlme.inference.wald import delta
from jaxnlme.nlme.conditional import conditional_mode
from jaxnlme.nlme.evaluate import derivatives, design_columns, phi_of
from jaxnlme.nlme.lme import LME
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem


class Point(NamedTuple):
    """Rows of a table at (beta, b), in the order of the table; log scale for log-scale errors."""

    f: np.ndarray  # (N,)
    X: np.ndarray  # (N, f): df/dbeta
    Z: np.ndarray  # (N, q): df/db, all levels and copies
    sd: np.ndarray  # (N,): residual standard deviation there, weights included
    phi: np.ndarray  # (m, n or 1, p) padded


def _evaluate(problem: NLMEProblem, beta, b, error):
    phi = phi_of(problem, beta, b)
    f, J = derivatives(problem, phi, 1)
    sd = problem.error_model.sd(f, problem.error_model.natural(error))
    return f, design_columns(J, problem.A), design_columns(J, problem.B), sd, phi


def _predict(problem: NLMEProblem, beta, b):
    return derivatives(problem, phi_of(problem, beta, b), 0)[0]


def _mode(problem: NLMEProblem, params: NLMEParams, u0):
    mode = conditional_mode(problem, params, u0)
    return mode.u, mode.converged


_compiled_evaluate = outer_jit(_evaluate)
_compiled_predict = outer_jit(_predict)
_compiled_mode = outer_jit(_mode)


def evaluate(problem: NLMEProblem, layout: GroupLayout, beta: Any, b: Any, error: Any) -> Point:
    """Evaluate the model and its derivatives for all rows."""
    f, X, Z, sd, phi = (np.asarray(a) for a in _compiled_evaluate(problem, beta, b, error))
    w = layout.unpack(problem.weights)
    with np.errstate(divide="ignore"):
        sd = layout.unpack(np.broadcast_to(sd, f.shape)) / np.sqrt(w)
    return Point(layout.unpack(f), layout.unpack(X), layout.unpack(Z), sd, phi)


def predictions(problem: NLMEProblem, layout: GroupLayout, beta: Any, b: Any) -> np.ndarray:
    """Return predictions of all rows on the response scale."""
    f = layout.unpack(np.asarray(_compiled_predict(problem, beta, b)))
    return np.exp(f) if problem.error_model.log_scale else f


def modes(problem: NLMEProblem, params: NLMEParams) -> tuple[np.ndarray, np.ndarray]:
    """Return u and convergence flags of every group at given parameters."""
    u0 = np.zeros((problem.num_groups, problem.num_random))
    u, converged = _compiled_mode(problem, params, u0)
    return np.asarray(u), np.asarray(converged)


def conditional_covariance(point: Point, layout: GroupLayout, factor: np.ndarray) -> np.ndarray:
    """Return Var(b | y) per group ``(m, q, q)``: ``L (I + L'Z'R^-1 Z L)^-1 L'`` at the modes."""
    q = factor.shape[0]
    zl = point.Z @ factor
    scaled = zl / np.where(np.isfinite(point.sd) & (point.sd > 0), point.sd, np.inf)[:, None]
    H = np.broadcast_to(np.eye(q), (layout.num_groups, q, q)).copy()
    np.add.at(H, layout.codes, scaled[:, :, None] * scaled[:, None, :])
    return factor @ np.linalg.solve(H, np.broadcast_to(factor.T, H.shape))


def host_factor(problem: NLMEProblem, theta: Any) -> np.ndarray:
    """Return the factor of all random effects of a group (host)."""
    parts = []
    for block, psi in zip(problem.covariance.blocks, problem.covariance.psi(theta), strict=True):
        low = np.zeros_like(psi)
        for (i, j), value in zip(block.entries, block.theta(psi), strict=True):
            low[i, j] = value
        low = _filled(block, low, psi)
        parts += [low] * block.repeats
    q = sum(p.shape[0] for p in parts)
    out, at = np.zeros((q, q)), 0
    for low in parts:
        k = low.shape[0]
        out[at : at + k, at : at + k] = low
        at += k
    return out


def _filled(block: CovarianceBlock, low: np.ndarray, psi: np.ndarray) -> np.ndarray:
    from_pattern = [(i, j) for i in range(block.size) for j in range(i) if not block.pattern[i][j]]
    for i, j in from_pattern:
        if low[j, j] != 0:
            low[i, j] = (psi[i, j] - low[i, :j] @ low[j, :j]) / low[j, j]
    return low


def variance_parameters(problem: NLMEProblem, x: np.ndarray) -> np.ndarray:
    """Map (theta, error) to what is reported: sd and correlation per free entry, natural errors."""
    t = problem.covariance.num_theta
    out = []
    for block, psi in zip(problem.covariance.blocks, problem.covariance.psi(x[:t]), strict=True):
        sd = np.sqrt(np.diag(psi))
        for i, j in block.entries:
            if i == j:
                out.append(sd[i])
            else:
                scale = sd[i] * sd[j]
                out.append(psi[i, j] / scale if scale > 0 else 0.0)
    error = np.where(problem.error_model.positive, np.exp(x[t:]), x[t:])
    return np.concatenate([out, error])


def interval_scale(names: tuple[str, ...], positive: tuple[bool, ...], values: np.ndarray):
    """Return reported variance parameters on the scale of their intervals, and the way back.

    Log for standard deviations and positive error parameters, atanh for correlations.
    """
    kinds = ["cor" if n.startswith("cor(") else "log" for n in names]
    for k, name in enumerate(reversed(positive)):
        if not name:
            kinds[len(kinds) - 1 - k] = "id"
    forward = {"log": np.log, "cor": np.arctanh, "id": lambda v: v}
    back = {"log": np.exp, "cor": np.tanh, "id": lambda v: v}
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.array([forward[k](v) for k, v in zip(kinds, values, strict=True)])

    def inverse(v: np.ndarray) -> np.ndarray:
        return np.array([back[k](z) for k, z in zip(kinds, v, strict=True)])

    return moved, inverse


def _lme_information(problem: NLMEProblem, method: LME, state, x, h):
    gradient = jax.grad(lambda v: method.variance_objective(problem, state, v))

    def column(k):
        d = jnp.zeros_like(x).at[k].set(h[k])
        return (gradient(x + d) - gradient(x - d)) / (2 * h[k])

    columns = jax.lax.map(column, jnp.arange(x.shape[0]))
    return 0.5 * (columns + columns.T)


_compiled_lme_information = outer_jit(_lme_information)


def lme_variance_information(problem: NLMEProblem, method: LME, state: Any, params: NLMEParams):
    """Observed information of (theta, error) in the LMM of the last linearisation, beta profiled."""
    x = np.concatenate([params.theta, params.error])
    t = problem.covariance.num_theta
    scale = np.asarray(state.theta_scale) * float(state.sigma) * 0.375
    diagonal = np.abs(x[:t]) + 1e-3 * np.where(scale > 0, scale, 1.0)
    h = np.concatenate([1e-4 * diagonal, np.full(len(x) - t, 1e-4)])
    return np.asarray(_compiled_lme_information(problem, method, state, x, h))


def reported_covariance(problem: NLMEProblem, x: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Covariance of the reported variance parameters by the delta method."""
    return delta(lambda v: variance_parameters(problem, v), x, covariance)


def reported_covariance_slope(names, positive, values) -> np.ndarray:
    """Derivative of the interval scale: 1/v for logs, 1/(1 - r^2) for correlations, 1 otherwise."""
    out = []
    errors = len(positive)
    for k, (name, v) in enumerate(zip(names, values, strict=True)):
        at = k - (len(names) - errors)
        if name.startswith("cor("):
            out.append(1 / (1 - v**2) if abs(v) < 1 else np.nan)
        elif at >= 0 and not positive[at]:
            out.append(1.0)
        else:
            out.append(1 / v if v > 0 else np.nan)
    return np.array(out)
