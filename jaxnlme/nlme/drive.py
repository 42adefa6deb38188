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
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem, unknown_params

Callback = Callable[[dict[str, Any]], Any]


def _start(problem, method, params0):
    params = unknown_params(problem) if params0 is None else params0
    return params, method.init(problem, params)


def _step(problem, method, params, state, max_steps):
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
    params, state = _start_on_host(problem, method, params0)
    problem, params, state = jax.device_put((problem, params, state))
    limit = np.int32(max_steps)
    while True:
        params, state, done, result, summary = _compiled_step(problem, method, params, state, limit)
        stop = bool(done)
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


def _start_on_host(problem, method, params0):
    # The start is a handful of constants: shapes decide all, so it is built without compiling.
    with jax.disable_jit():
        params, state = jax.tree.map(
            np.asarray, _start(jax.tree.map(np.asarray, problem), method, params0)
        )
    return params, state


def gradients(
    problem: NLMEProblem, method: AbstractMarginalMethod, fit: NLMEFit, points: np.ndarray
) -> np.ndarray:
    """Return the gradient of -log L at several parameter vectors ``(k, d)``, by the compiled step."""
    out = []
    problem = jax.device_put(problem)
    for x in points:
        bfgs = eqx.tree_at(lambda b: b.trial, fit.state.bfgs, jnp.asarray(x))
        state = eqx.tree_at(lambda s: (s.bfgs, s.phase), fit.state, (bfgs, np.int32(2)))
        params = jax.tree.map(np.asarray, fit.params)
        _, after, _, _, _ = _compiled_step(problem, method, params, state, np.int32(10**6))
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
