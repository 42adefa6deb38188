"""Drive a fit from the host, one compiled step at a time: progress, callbacks, Ctrl-C.

The step is the only program that a door compiles: its state shows value and gradient of the last
evaluation, so start values, line search and the information matrix all run the same executable.
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

Callback = Callable[[dict[str, Any]], Any]


def _step(problem, method, params, state, max_steps, begin):
    fresh = method.init(problem, params)
    state = jax.tree.map(lambda a, b: jnp.where(begin, a, b), fresh, state)
    params, state = method.step(problem, params, state)
    done, result = method.terminate(problem, params, state, max_steps)
    return params, state, done, result, method.summarise(problem, params, state)


_compiled_step = outer_jit(_step)


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
        ``decrement``); a true return value stops the fit with the parameters it has.

    Notes
    -----
    Ctrl-C raises ``KeyboardInterrupt`` between two steps.
    """
    params = host_start(problem) if params0 is None else params0
    params = jax.tree.map(lambda a: np.asarray(a, problem.y.dtype), params)
    problem = jax.device_put(problem)
    state, limit, begin = _blank_state(problem, method, params), np.int32(max_steps), np.True_
    while True:
        params, state, done, result, summary = _compiled_step(
            problem, method, params, state, limit, begin
        )
        stop, begin = bool(done), np.False_
        if callback is not None:
            info = {
                "step": int(summary.num_steps),
                "log_likelihood": float(summary.log_likelihood),
                "beta": np.asarray(params.beta),
                "theta": np.asarray(params.theta),
                "error": np.asarray(params.error),
                "decrement": float(summary.decrement),
                "done": stop,
            }
            if callback(info) and not stop:
                stop, result = True, RESULTS.max_steps_reached
        if stop:
            break
    return NLMEFit(params, state, result, summary._asdict())


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
    out = []
    problem = jax.device_put(problem)
    for x in points:
        bfgs = eqx.tree_at(lambda b: b.trial, fit.state.bfgs, np.asarray(x))
        state = eqx.tree_at(lambda s: (s.bfgs, s.phase), fit.state, (bfgs, np.int32(2)))
        params = jax.tree.map(np.asarray, fit.params)
        _, after, _, _, _ = _compiled_step(
            problem, method, params, state, np.int32(10**6), np.False_
        )
        out.append(np.asarray(after.gradient))
    return np.array(out)


def information(problem: NLMEProblem, method: AbstractMarginalMethod, fit: NLMEFit) -> np.ndarray:
    """Return the observed information of a fit: central differences of exact gradients."""
    x = np.asarray(fit.params.flat())
    free = np.asarray(problem.free.flat())
    scale = np.sqrt(np.maximum(np.diag(np.asarray(fit.state.bfgs.inverse_hessian)), 0.0))
    h = np.where(scale > 0, 1e-3 * scale, 1e-5 * np.maximum(1.0, np.abs(x)))
    index = np.flatnonzero(free)
    points = np.array([x + s * h[k] * np.eye(len(x))[k] for k in index for s in (1.0, -1.0)])
    g = gradients(problem, method, fit, points)
    out = np.zeros((len(x), len(x)))
    out[index] = (g[0::2] - g[1::2]) / (2 * h[index])[:, None]
    out = np.where(free, out, 0.0)
    return 0.5 * (out + out.T)
