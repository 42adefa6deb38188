"""Point estimates: the largest posterior density, by gradients or without them.

References
----------
.. [1] Clerc, M. and Kennedy, J. (2002). The particle swarm. IEEE Transactions on Evolutionary
       Computation 6.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ConvergenceWarning, ModelSpecError, nearest, warn
from jaxnlme._precision import host64
from jaxnlme._typing import Array
from jaxnlme.calibration.fitted import FittedPosterior, read_problem
from jaxnlme.calibration.gradient import Line, naturals, on_line
from jaxnlme.calibration.models import HostModel
from jaxnlme.calibration.problem import Posterior, evaluate_many
from jaxnlme.numerics.mcmc import map_points
from jaxnlme.numerics.simplex import adaptive, simplex
from jaxnlme.priors.base import as_key

__all__ = ["PointEstimate", "PointEstimator"]

METHODS = ("L-BFGS", "NelderMead", "ParticleSwarm", "RandomSearch")


@dataclasses.dataclass(frozen=True)
class PointEstimate:
    """The best point of a search.

    Attributes
    ----------
    best_params : dict
        Values on the natural scale.
    best_likelihood : float
        Log likelihood there (without the priors).
    best_log_posterior : float
        What was maximised: log likelihood plus log prior, on the natural scale.
    samples : ndarray (n, p)
        All evaluated points that were kept: starts, and the end of each restart or polish.
    likelihoods : ndarray (n,)
        Log likelihood at these points.
    log_posteriors : ndarray (n,)
    converged : bool
        The gradient at the best point is small. Without a final L-BFGS: the search settled (never true
        of a random search).
    restarts : ndarray (r,)
        Log posterior reached by each restart, best first.
    """

    best_params: dict[str, float]
    best_likelihood: float
    best_log_posterior: float
    samples: np.ndarray
    likelihoods: np.ndarray
    log_posteriors: np.ndarray
    converged: bool
    restarts: np.ndarray


class PointEstimator:
    """Search for the parameters of largest posterior density.

    Parameters
    ----------
    parameters, target, runner, likelihood
        As for :class:`EnsembleSampler`; or one posterior of a fitted model, ``fit.log_posterior(priors)``.

    Examples
    --------
    >>> import numpy as np
    >>> from jaxnlme.calibration import ModelRunner, Normal, ParameterSet, Target
    >>> def line(params):
    ...     return {"y": params["a"] + params["b"] * np.arange(4.0)}
    >>> estimator = PointEstimator(
    ...     ParameterSet({"a": Normal(0, 100), "b": Normal(0, 100)}),
    ...     Target().add_variable("y", np.arange(4.0), [1.0, 3.0, 5.0, 7.0], 0.1),
    ...     ModelRunner(line, times=np.arange(4.0)),
    ... )
    >>> result = estimator.optimize(n_restarts=2)
    >>> {name: round(value, 3) for name, value in result.best_params.items()}
    {'a': 1.0, 'b': 2.0}
    """

    def __init__(
        self, parameters: Any, target: Any = None, runner: Any = None, likelihood: Any = None
    ) -> None:
        self.posterior, self.parameters = read_problem(parameters, target, runner, likelihood)
        self.runner = runner

    @host64
    def optimize(
        self,
        method: str = "L-BFGS",
        *,
        n_restarts: Any = 10,
        key: Any = 0,
        n_samples: Any = 1000,
        polish: bool = True,
    ) -> PointEstimate:
        """Maximise the posterior density on the natural scale.

        Parameters
        ----------
        method
            * ``"L-BFGS"``: gradients, restarts side by side from the best of a latin hypercube.
            * ``"NelderMead"``: adaptive simplex without gradients.
            * ``"ParticleSwarm"``: a swarm of `n_samples` / 20 particles.
            * ``"RandomSearch"``: `n_samples` points of a latin hypercube of the priors.
        n_restarts
            Searches from different starts.
        key
            Randomness.
        n_samples
            Evaluations of the random search, points that compete to be starts, and effort of the
            swarm.
        polish
            End with L-BFGS from the best points (JAX models; a plain Python model has none).

        Returns
        -------
        PointEstimate

        Raises
        ------
        ModelSpecError
            The method is not known, needs a gradient that a plain Python model lacks, or the
            density is not finite at any start.

        Warns
        -----
        ConvergenceWarning
            The gradient at the best point is not small.
        """
        if method not in METHODS:
            raise ModelSpecError(
                f"method={method!r}: use one of {list(METHODS)}." + nearest(str(method), METHODS)
            )
        host = isinstance(self.posterior.model, HostModel)
        if host and method == "L-BFGS":
            raise ModelSpecError(
                "method='L-BFGS' needs a JAX model; a plain Python model has no gradient. Use "
                "'NelderMead', 'ParticleSwarm' or 'RandomSearch'."
            )
        for name, value, least in (("n_restarts", n_restarts, 1), ("n_samples", n_samples, 10)):
            if isinstance(value, bool) or int(value) != value or value < least:
                raise ModelSpecError(f"{name}={value!r}: a whole number from {least} on.")
        key = as_key(key)
        line = Line(self.posterior)
        theta = self.parameters.sample_lhs(int(n_samples), key)
        if isinstance(self.posterior, FittedPosterior):  # wide priors are far from the fit
            near = int(n_samples) // 2
            theta[:near] = self.posterior.starts(near, jax.random.fold_in(key, 2))
        u = np.asarray(on_line(line, theta))
        value = np.asarray(_values(line, u))
        order = np.argsort(-np.where(np.isnan(value), -np.inf, value), kind="stable")
        if not np.isfinite(value[order[0]]):
            raise ModelSpecError(
                "the log density is not finite at any of the starts drawn from the priors; check the "
                "model, or narrow the priors."
            )
        tried = [u]
        best = u[order[: int(n_restarts)]]
        if method == "NelderMead":
            best = np.asarray(_simplex(line, best))
            tried.append(best)
        elif method == "ParticleSwarm":
            size = max(int(n_samples) // 20, 4 * u.shape[1])
            swarm = u[order[:size]]
            keys = jax.random.split(jax.random.fold_in(key, 1), int(n_restarts))
            best, _ = (np.asarray(a) for a in _swarm(200, line, swarm, keys))
            tried.append(best)
        settled: Any = method != "RandomSearch"
        checked = False
        if not host and (polish or method == "L-BFGS"):
            best, _, settled = (np.asarray(a) for a in _descend(line, best))
            tried.append(best)
            checked = True
        return self._result(line, tried, best, settled, checked)

    def _result(
        self, line: Line, tried: list[np.ndarray], best: np.ndarray, settled: Any, checked: bool
    ) -> PointEstimate:
        points = np.concatenate(tried)
        theta, posterior = (np.asarray(a) for a in _naturals(line, points))
        likelihood = posterior - self.parameters.log_prior(theta)
        order = int(np.argmax(np.where(np.isfinite(posterior), posterior, -np.inf)))
        last = posterior[len(points) - len(best) :]
        flags = np.broadcast_to(np.asarray(settled, bool), last.shape)
        converged = bool(flags[int(np.argmax(np.where(np.isfinite(last), last, -np.inf)))])
        if checked and not converged:
            warn(
                "the gradient at the best point is not small: raise n_restarts or n_samples, or check "
                "that the model is smooth.",
                ConvergenceWarning,
            )
        return PointEstimate(
            best_params=dict(zip(line.names, map(float, theta[order]), strict=True)),
            best_likelihood=float(likelihood[order]),
            best_log_posterior=float(posterior[order]),
            samples=theta,
            likelihoods=likelihood,
            log_posteriors=posterior,
            converged=converged,
            restarts=np.sort(last)[::-1],
        )


def _objective(line: Line, u: Array) -> Array:
    """Negative log posterior on the natural scale at a point of the line: no Jacobian, so a mode."""
    theta, _ = line.natural(u)
    value = line.natural_log_prob(theta)
    return jnp.where(jnp.isfinite(value), -value, jnp.inf)


@outer_jit
def _values(line: Line, u: Array) -> Array:
    return -map_points(lambda x: _objective(line, x), u)


@outer_jit
def _naturals(line: Line, u: Array) -> tuple[Array, Array]:
    return naturals(line, u)


@outer_jit
def _descend(line: Line, start: Array) -> tuple[Array, Array, Array]:
    """L-BFGS from each start; a finite wall stands where the density is -inf."""
    import optimistix

    def objective(u: Array, _: Any) -> Any:
        value = _objective(line, u)
        return jnp.where(jnp.isfinite(value), value, 1e30)

    solver = optimistix.LBFGS(rtol=1e-10, atol=1e-10)

    def one(u0: Array) -> tuple[Array, Array, Array]:
        found = optimistix.minimise(objective, solver, u0, max_steps=1000, throw=False)
        value, slope = jax.value_and_grad(lambda u: objective(u, None))(found.value)
        scale = 1e-4 * (1 + jnp.abs(value))
        # A maximum on a bound sits at infinity of the line: the slope vanishes there, too.
        return found.value, -value, jnp.max(jnp.abs(slope)) < scale

    return jax.vmap(one)(start)


@outer_jit
def _simplex(line: Line, start: Array) -> Array:
    """Adaptive Nelder-Mead from each start, side by side."""

    def one(u0: Array) -> Array:
        away = jnp.diag(0.25 * jnp.maximum(jnp.abs(u0), 0.5))
        return simplex(
            lambda u: _objective(line, u),
            jnp.concatenate([u0[None], u0[None] + away]),
            tol_x=jnp.inf,
            tol_fun=1e-12,
            rtol_fun=1e-12,
            coefficients=adaptive(u0.shape[0]),
        ).x

    return jax.vmap(one)(start)


def _batch(line: Line) -> int:
    return getattr(line.density, "batch", 256)


@functools.partial(outer_jit, static_argnums=0)
def _swarm(n_steps: int, line: Line, start: Array, keys: Any) -> tuple[Array, Array]:
    """Particle swarm with constriction, one swarm per key."""
    n, p = start.shape
    inertia, pull = 0.7298, 1.49618

    def many(u: Array) -> Array:
        return map_points(lambda x: _objective(line, x), u, _batch(line))

    def one(key: Any) -> tuple[Array, Array]:
        def step(k: Any, carry: Any) -> Any:
            x, v, own, own_f, best, _ = carry
            a, b = jax.random.uniform(jax.random.fold_in(key, k), (2, n, p), x.dtype)
            v = inertia * v + pull * a * (own - x) + pull * b * (best[None] - x)
            x = x + v
            f = many(x)
            better = f < own_f
            own = jnp.where(better[:, None], x, own)
            own_f = jnp.where(better, f, own_f)
            first = jnp.argmin(own_f)
            return x, v, own, own_f, own[first], own_f[first]

        spread = jnp.std(start, axis=0, keepdims=True)
        kick = jax.random.normal(jax.random.fold_in(key, n_steps), (n, p), start.dtype)
        x = start + 0.1 * spread * kick
        f = many(x)
        first = jnp.argmin(f)
        carry = (x, jnp.zeros_like(x), x, f, x[first], f[first])
        out = jax.lax.fori_loop(0, n_steps, step, carry)
        return out[4], -out[5]

    return jax.lax.map(one, keys)


def evaluate_posterior(posterior: Posterior, theta: np.ndarray) -> np.ndarray:
    """Return log posterior densities at natural points without transforms; for tests and tables."""
    return np.asarray(evaluate_many(posterior, theta)[0])
