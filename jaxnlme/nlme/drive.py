"""Drive a fit from the host, one step at a time: progress, callbacks, Ctrl-C.

A door compiles one program: of the marginal methods the evaluation of value and gradient, which start
values, line search and the information matrix share (the steps between run in numpy), of the others a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._results import RESULTS
from jaxnlme.nlme.fit import NLMEFit
from jaxnlme.nlme.method import AbstractMarginalMethod, AbstractMethod
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.numerics.arithmetic import HOST

Callback = Callable[[dict[str, Any]], Any]


def _step(problem, method, params, state, max_steps, begin):
    fresh = method.init(problem, params)
    state = jax.tree.map(lambda a, b: jnp.where(begin, a, b), fresh, state)
    params, state = method.step(problem, params, state)
    done, result = method.terminate(problem, params, state, max_steps)
    return params, state, done, result, method.summarise(problem, params, state)


def _evaluation(problem, method, params, u):
    return method.evaluate(problem, params, u)


_compiled_step = outer_jit(_step, keep=True)
_evaluate = outer_jit(_evaluation, keep=True)


def _steps(problem: NLMEProblem, method: AbstractMethod, params: NLMEParams, max_steps: int):
    """Yield after each step: a function that returns the fit, and whether it is done."""
    state, limit, begin = _blank_state(problem, method, params), np.int32(max_steps), np.True_
    problem, done = jax.device_put(problem), False
    while not done:
        params, state, done, result, summary = _compiled_step(
            problem, method, params, state, limit, begin
        )
        begin = np.False_
        fit = NLMEFit(params, state, result, summary._asdict())
        yield lambda fit=fit: fit, bool(done)


def _marginal_steps(
    problem: NLMEProblem, method: AbstractMarginalMethod, params: NLMEParams, max_steps: int
):
    """The same; only the evaluation is compiled."""
    covariance, free = problem.covariance, np.asarray(problem.free.flat())
    problem = eqx.tree_at(lambda p: p.free, problem, jax.tree.map(np.asarray, problem.free))
    state = method.begin(problem, params, HOST)
    problem, done = jax.device_put(problem), False
    judge, ended, unflat = method.judge, method.ended, params.unflat  # slow to look up each time

    def fit():
        summary = jax.tree.map(np.asarray, method.summarise(problem, params, state))
        return NLMEFit(params, state, result, summary._asdict())

    while not done:
        new = _evaluate(problem, method, unflat(state.bfgs.trial), state.u)
        new = jax.tree.map(np.asarray, new)
        with np.errstate(all="ignore"):  # infinite objectives are part of the rule
            params, state = judge(covariance, free, params, state, new, HOST)
            done, result = ended(state, max_steps, HOST)
        yield fit, bool(done)


def drive(
    problem: NLMEProblem,
    method: AbstractMethod,
    *,
    params0: NLMEParams | None = None,
    max_steps: int = 200,
    callback: Callback | None = None,
) -> NLMEFit:
    """Fit like :func:`jaxnlme.nlme.fit`, step by step from the host.

    Parameters
    ----------
    callback
        Called after each step with a dict (``step``, ``log_likelihood``, ``beta``, ``theta``, ``error``,
        ``decrement``, the method's ``state``); a true return value stops the fit with the parameters it has.

    Notes
    -----
    Ctrl-C raises ``KeyboardInterrupt`` between two steps.
    """
    params = host_start(problem) if params0 is None else params0
    params = jax.tree.map(lambda a: np.asarray(a, problem.y.dtype), params)
    if isinstance(method, AbstractMarginalMethod):
        steps = _marginal_steps(problem, method, params, max_steps)
    else:
        steps = _steps(problem, method, params, max_steps)
    result = None
    for result, done in steps:
        if callback is not None:
            fit = result()
            info = {
                "step": int(fit.stats["num_steps"]),
                "log_likelihood": float(fit.stats["log_likelihood"]),
                "beta": np.asarray(fit.params.beta),
                "theta": np.asarray(fit.params.theta),
                "error": np.asarray(fit.params.error),
                "decrement": float(fit.stats["decrement"]),
                "state": fit.state,
                "done": done,
            }
            if callback(info) and not done:
                return NLMEFit(fit.params, fit.state, RESULTS.max_steps_reached, fit.stats)
    assert result is not None
    return result()


def host_start(problem: NLMEProblem) -> NLMEParams:
    """Return the start of beta, with the covariance and the error left to the method (NaN)."""
    return NLMEParams(
        beta=np.asarray(problem.beta0),
        theta=np.full(problem.covariance.num_theta, np.nan),
        error=np.full(len(problem.error_model.parameters), np.nan),
    )


def _blank_state(problem, method, params):
    """Zeros in the shape of the first state; the compiled step fills them (nothing runs eagerly)."""
    shapes = jax.eval_shape(method.init, problem, params)
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)


def gradients(
    problem: NLMEProblem, method: AbstractMarginalMethod, fit: NLMEFit, points: np.ndarray
) -> np.ndarray:
    """Return the gradient of -log L at several parameter vectors ``(k, d)``, by the compiled step."""
    problem = jax.device_put(problem)
    u, params = fit.state.u, jax.tree.map(np.asarray, fit.params)
    unflat = params.unflat
    found = (_evaluate(problem, method, unflat(np.asarray(x)), u) for x in points)
    return np.array([np.asarray(new.gradient) for new in found])


def information(problem: NLMEProblem, method: AbstractMarginalMethod, fit: NLMEFit) -> np.ndarray:
    """Return the observed information of a fit: central differences of exact gradients.

    Steps are a thousandth of the standard error that a parameter has when the others are known.
    """
    x = np.asarray(fit.params.flat())
    index = np.flatnonzero(np.asarray(problem.free.flat()))
    metric = np.asarray(fit.state.bfgs.inverse_hessian)[np.ix_(index, index)]
    with np.errstate(all="ignore"):
        precision = np.diag(np.linalg.pinv(metric, hermitian=True))
        h = np.where(precision > 0, 1e-3 / np.sqrt(precision), np.inf)
    h = np.where(np.isfinite(h), h, 1e-5 * np.maximum(1.0, np.abs(x[index])))
    directions = np.eye(len(x))[index] * h[:, None]
    out = np.zeros((len(x), len(x)))
    out[np.ix_(index, index)] = _slopes(problem, method, fit, x, directions)[:, index] / h[:, None]
    return 0.5 * (out + out.T)


def curvature(
    problem: NLMEProblem,
    method: AbstractMarginalMethod,
    fit: NLMEFit,
    hessian: np.ndarray,
    direction: np.ndarray,
) -> float:
    """Return the second derivative of -log L along ``direction``, at the optimum of all the others.

    Parameters
    ----------
    hessian
        Information of the free parameters at the fit, ``(d, d)``.
    direction
        In the free parameters, ``(d,)``; its length is some standard error.

    Notes
    -----
    Along a curved valley (a product of two parameters) the second derivative at the fit is not zero but in
    proportion to the gradient that is left; two Newton steps across the valley take that away.
    """
    x, g = np.asarray(fit.params.flat()), np.asarray(fit.state.bfgs.gradient)
    index = np.flatnonzero(np.asarray(problem.free.flat()))
    scale = np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-300))
    along = direction * scale / np.linalg.norm(direction * scale)
    across = np.eye(len(index)) - np.outer(along, along)
    inverse = np.linalg.pinv(across @ (hessian / scale[:, None] / scale) @ across, 1e-8)
    for _ in range(2):
        x = x.copy()
        x[index] -= across @ inverse @ (g[index] / scale) / scale
        g = gradients(problem, method, fit, x[None])[0]
    step = np.zeros((1, len(x)))
    step[0, index] = 1e-3 * along / scale
    slope = _slopes(problem, method, fit, x, step)[0, index]
    return float(slope @ (along / scale) / 1e-3)


def _slopes(problem, method, fit, x, steps):
    """Half the differences of the gradients at ``x + step`` and ``x - step``, per step."""
    points = np.stack([x + steps, x - steps], axis=1).reshape(-1, len(x))
    g = gradients(problem, method, fit, points)
    return 0.5 * (g[0::2] - g[1::2])
