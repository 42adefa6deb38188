"""Pure fitting: one compiled program per model and shape; batch it with ``vmap`` or ``lax.map``."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnlme._precision import check_precision
from jaxnlme._results import RESULTS
from jaxnlme._typing import Array, Float, PyTree
from jaxnlme.nlme.method import AbstractMethod
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem, unknown_params


class NLMEFit(eqx.Module):
    """A fit as a pytree: no strings, nothing raised, one result code per lane under ``vmap``."""

    params: NLMEParams
    state: PyTree
    result: RESULTS
    stats: dict[str, Array]


def fit(
    problem: NLMEProblem,
    method: AbstractMethod,
    *,
    params0: NLMEParams | None = None,
    max_steps: int = 200,
    key: Array | None = None,
) -> NLMEFit:
    """Fit one data set by ``method``; pure, so it can be jitted, vmapped and mapped.

    Parameters
    ----------
    problem
        One data set. Under ``vmap`` every array may carry a leading axis.
    method
        ``LME() RELME() FO() FOCE() Laplace() AGQ(n)``.
    params0
        Start parameters; NaN in ``theta`` or ``error`` asks for start values. Default: ``problem.beta0``.
    max_steps
        Largest number of steps (evaluations, or alternations for LME).
    key
        Unused by the deterministic methods; stochastic ones need it.

    Returns
    -------
    NLMEFit
        ``params``, the last ``state``, ``result`` and ``stats``: ``log_likelihood``, ``b (m, q)``,
        ``num_steps``, ``gradient`` (of the minimised objective), ``decrement``, ``converged_groups (m,)``.

    Raises
    ------
    TypeError
        When float64 arrays come in while 64-bit is off.
    """
    del key
    check_precision(problem, params0)
    return _fit(problem, method, params0, jnp.asarray(max_steps, jnp.int32))


@jax.jit
def _fit(problem, method, params0, max_steps):
    params = unknown_params(problem) if params0 is None else params0
    state = method.init(problem, params)
    done, result = method.terminate(problem, params, state, max_steps)

    def body(carry):
        params, state, _, _ = carry
        params, state = method.step(problem, params, state)
        done, result = method.terminate(problem, params, state, max_steps)
        return params, state, done, result

    carry = (params, state, done, result)
    params, state, _, result = jax.lax.while_loop(lambda c: ~c[2], body, carry)
    stats = method.summarise(problem, params, state)._asdict()
    return NLMEFit(params, state, result, stats)


def marginal_log_likelihood(
    problem: NLMEProblem, params: NLMEParams, method: AbstractMethod
) -> Float[Array, ""]:
    """Return the log-likelihood that ``method`` maximises, at any parameters.

    Natural logarithm with every constant kept; priors are not included. Differentiable once in
    ``params`` (through the conditional modes, by the implicit function theorem); a second derivative
    raises, take differences of gradients instead.

    Raises
    ------
    TypeError
        When float64 arrays come in while 64-bit is off.
    """
    check_precision(problem, params)
    return _log_likelihood(problem, params, method)


@jax.jit
def _log_likelihood(problem, params, method):
    return _value(method, problem, params)


def _value(method, problem, params):
    problem = jax.tree.map(_constant, problem)
    return method.log_likelihood(problem, jax.tree.map(_once, params))


@jax.custom_jvp
def _constant(x):
    return x


@_constant.defjvp
def _constant_jvp(primals, tangents):
    del tangents
    raise NotImplementedError(
        "marginal_log_likelihood is differentiable in params only, not in the data of the problem."
    )


@jax.custom_vjp
def _once(x):
    return x


def _once_fwd(x):
    return x, None


def _once_bwd(_, g):
    return (_seal(g),)


@jax.custom_jvp
def _seal(g):
    return g


@_seal.defjvp
def _seal_jvp(primals, tangents):
    raise NotImplementedError(
        "The marginal log-likelihood can be differentiated once (the modes are implicit): for the "
        "information matrix take differences of gradients, jaxnlme.nlme.information."
    )


_once.defvjp(_once_fwd, _once_bwd)


@jax.jit
def _gradient(problem, params, method):
    """Gradient of the minimised objective (minus log-likelihood minus log prior) at ``params``."""
    u0 = jnp.zeros((problem.num_groups, problem.num_random), problem.y.dtype)
    return method.evaluate(problem, params, u0).gradient


def information(
    problem: NLMEProblem, params: NLMEParams, method: AbstractMethod, *, step: float = 1e-4
) -> Float[Array, "d d"]:
    """Return the observed information: central differences of exact gradients of -log L.

    The step is ``step * max(1, |x|)`` per parameter of ``params.flat()``; two gradients per parameter.
    """
    check_precision(problem, params)
    x = params.flat()
    h = step * jnp.maximum(1.0, jnp.abs(x))

    def column(k):
        d = jnp.zeros_like(x).at[k].set(h[k])
        up = _gradient(problem, params.unflat(x + d), method)
        down = _gradient(problem, params.unflat(x - d), method)
        return (up - down) / (2 * h[k])

    columns = jax.lax.map(column, jnp.arange(x.shape[0]))
    return 0.5 * (columns + columns.T)
