"""Gradient samplers of blackjax on the whole line, and starts from normal approximations."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError, SamplingWarning, warn
from jaxnlme._typing import Array, Float
from jaxnlme.calibration.chain import Chain
from jaxnlme.calibration.problem import AbstractDensity, FunctionDensity, Posterior, no_nan
from jaxnlme.numerics.chain_statistics import pareto_smooth
from jaxnlme.numerics.mcmc import BATCH, map_points

__all__ = ["BoundedFunction", "Line", "laplace_start", "pathfinder_start", "run_mclmc", "run_nuts"]


class BoundedFunction(FunctionDensity):
    """A user's ``log_prob`` with a box as support."""

    limits: tuple[tuple[float, float], ...] = eqx.field(static=True, default=())

    def __init__(self, function: Any, names: tuple[str, ...], limits: Any):
        self.function, self.names, self.batch, self.limits = function, names, BATCH, limits


def _limits(density: AbstractDensity) -> list[tuple[Any, Any]]:
    if isinstance(density, Posterior):
        return [prior.support for prior in density.prior.priors]
    return list(getattr(density, "limits", ())) or [(-np.inf, np.inf)] * len(
        getattr(density, "names", ())
    )


class Line(eqx.Module):
    """A density over the whole space: u unconstrained, theta natural."""

    density: AbstractDensity

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(getattr(self.density, "names", ()))

    def natural(self, u: Float[Array, "p"]) -> tuple[Float[Array, "p"], Float[Array, ""]]:
        """Return theta and log |d theta / d u|."""
        if isinstance(self.density, Posterior):
            return self.density.prior.unconstrained(u)
        theta, jacobian = [], jnp.zeros_like(u[0])
        for k, (low, high) in enumerate(_limits(self.density)):
            x = u[k]
            if np.isfinite(low) and np.isfinite(high):
                theta.append(low + (high - low) * jax.nn.sigmoid(x))
                jacobian = jacobian - jax.nn.softplus(x) - jax.nn.softplus(-x) + np.log(high - low)
            elif np.isfinite(low):
                theta.append(low + jnp.exp(x))
                jacobian = jacobian + x
            elif np.isfinite(high):
                theta.append(high - jnp.exp(-x))
                jacobian = jacobian - x
            else:
                theta.append(x)
        return jnp.stack(theta), jacobian

    def to_line(self, theta: Float[Array, "p"]) -> Float[Array, "p"]:
        """Invert :meth:`natural`."""
        if isinstance(self.density, Posterior):
            return self.density.prior.to_line(theta)
        out = []
        for k, (low, high) in enumerate(_limits(self.density)):
            x = theta[k]
            if np.isfinite(low) and np.isfinite(high):
                out.append(jnp.log(x - low) - jnp.log(high - x))
            elif np.isfinite(low):
                out.append(jnp.log(x - low))
            elif np.isfinite(high):
                out.append(-jnp.log(high - x))
            else:
                out.append(x)
        return jnp.stack(out)

    def natural_log_prob(self, theta: Float[Array, "p"]) -> Float[Array, ""]:
        """Return the log density on the natural scale."""
        if isinstance(self.density, Posterior):
            return self.density.log_prob(theta)
        return self.density.evaluate(theta)[0]

    def log_prob(self, u: Float[Array, "p"]) -> Float[Array, ""]:
        """Return the log density of u."""
        theta, jacobian = self.natural(u)
        return no_nan(self.natural_log_prob(theta) + jacobian)


@outer_jit
def on_line(line: Line, theta: Array) -> Array:
    """Map natural points (n, p) to the line; compiled."""
    return jax.vmap(line.to_line)(theta)


@outer_jit
def line_values(line: Line, u: Array) -> Array:
    """Return the log density of u at (n, p) points; compiled."""
    return map_points(line.log_prob, u)


def naturals(line: Line, u: Array) -> tuple[Array, Array]:
    """Return natural points (n, p) and their natural log densities."""

    def one(point: Array) -> tuple[Array, Array]:
        theta, _ = line.natural(point)
        return theta, line.natural_log_prob(theta)

    return map_points(one, u)


def _over_chains(chain: Any, start: Array, keys: Any) -> Any:
    """Few chains one after the other, since under vmap all wait for the deepest tree; many at once."""
    if start.shape[0] < 8:
        return jax.lax.map(chain, (start, keys))
    return jax.vmap(lambda u, k: chain((u, k)))(start, keys)


@functools.partial(outer_jit, static_argnums=(0, 1))
def _nuts(n_steps: int, warmup: int, line: Line, start: Array, key: Any) -> Any:
    import blackjax

    def chain(given: Any) -> Any:
        u0, own = given
        first, second = jax.random.split(own)
        adaptation = blackjax.window_adaptation(
            blackjax.nuts,
            line.log_prob,
            adaptation_info_fn=lambda *_: None,  # pyright: ignore
        )
        (state, parameters), _ = adaptation.run(first, u0, warmup)  # pyright: ignore[reportCallIssue]
        kernel = blackjax.nuts(line.log_prob, **parameters).step

        def step(state: Any, k: Any) -> Any:
            state, info = kernel(k, state)
            info: Any = info
            return state, (
                state.position, info.is_divergent, info.acceptance_rate, info.num_integration_steps,
            )  # fmt: skip

        out = jax.lax.scan(step, state, jax.random.split(second, n_steps))[1]
        return *out, parameters["step_size"]

    keys = jax.random.split(key, start.shape[0])
    u, divergent, acceptance, steps, size = _over_chains(chain, start, keys)
    theta, value = naturals(line, u.reshape(-1, u.shape[-1]))
    return theta.reshape(u.shape), value.reshape(u.shape[:2]), divergent, acceptance, steps, size


@functools.partial(outer_jit, static_argnums=(0, 1))
def _mclmc(n_steps: int, warmup: int, line: Line, start: Array, key: Any) -> Any:
    from blackjax.adaptation.adjusted_mclmc_adaptation import (
        adjusted_mclmc_find_L_and_step_size as tune,
    )
    from blackjax.mcmc import adjusted_mclmc_dynamic as dynamic

    kernel = dynamic.build_kernel(
        integration_steps_fn=dynamic.make_random_trajectory_length_fn(True)
    )

    def chain(given: Any) -> Any:
        u0, own = given
        a, b, c = jax.random.split(own, 3)
        state = dynamic.init(u0, line.log_prob, a)
        state, tuned, _ = tune(
            kernel, line.log_prob, num_steps=warmup, state=state, rng_key=b, target=0.8,
            frac_tune1=0.4, frac_tune2=0.4, diagonal_preconditioning=True,
        )  # fmt: skip

        def step(state: Any, k: Any) -> Any:
            state, info = kernel(
                rng_key=k, state=state, logdensity_fn=line.log_prob, step_size=tuned.step_size,
                inverse_mass_matrix=tuned.inverse_mass_matrix,
                integration_steps_params=(tuned.L / tuned.step_size,),
            )  # fmt: skip
            return state, (
                state.position, info.is_divergent, info.acceptance_rate, info.num_integration_steps,
            )  # fmt: skip

        out = jax.lax.scan(step, state, jax.random.split(c, n_steps))[1]
        return *out, tuned.step_size

    keys = jax.random.split(key, start.shape[0])
    u, divergent, acceptance, steps, size = _over_chains(chain, start, keys)
    theta, value = naturals(line, u.reshape(-1, u.shape[-1]))
    return theta.reshape(u.shape), value.reshape(u.shape[:2]), divergent, acceptance, steps, size


def _need_blackjax() -> None:
    try:
        import blackjax  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "gradient samplers need blackjax: `pip install jaxnlme[calibration]`."
        ) from error


def _run(kernel: Any, name: str, line: Line, points: np.ndarray, key: Any, n: int, warmup: int,
         info: dict[str, Any], priors: Any) -> Chain:  # fmt: skip
    _need_blackjax()
    if n < 1 or warmup < 20:
        raise ModelSpecError(f"num_steps={n}, num_warmup={warmup}: at least 1 and 20.")
    u = on_line(line, points)
    theta, value, divergent, acceptance, steps, size = (
        np.asarray(a) for a in kernel(n, warmup, line, u, key)
    )
    count = int(divergent.sum())
    info = {
        "method": name,
        "divergences": count,
        "gradients": int(steps.sum()),
        "step_size": np.asarray(size).tolist(),
        "num_warmup": warmup,
        **info,
    }
    if count:
        warn(
            f"{count} of {divergent.size} transitions diverged: the posterior has places that the "
            "sampler cannot enter. Reparameterise, or compare with method='smc'.",
            SamplingWarning,
        )
    chains = len(points)
    return Chain(
        np.swapaxes(theta, 0, 1),
        value.T,
        line.names,
        acceptance_fractions=acceptance.mean(1),
        ensemble=np.arange(chains),
        info=info,
        priors=priors,
    )


def run_nuts(line: Line, points: np.ndarray, key: Any, n: int, warmup: int, info: dict[str, Any],
             priors: Any) -> Chain:  # fmt: skip
    """Draw n times per chain by NUTS (Hoffman and Gelman 2014), with diagonal mass matrix."""
    return _run(_nuts, "nuts", line, points, key, n, warmup, info, priors)


def run_mclmc(line: Line, points: np.ndarray, key: Any, n: int, warmup: int, info: dict[str, Any],
              priors: Any) -> Chain:  # fmt: skip
    """Draw n times per chain by Metropolis-adjusted microcanonical Langevin (Robnik et al. 2023)."""
    return _run(_mclmc, "mclmc", line, points, key, n, warmup, info, priors)


# ---- starts ------------------------------------------------------------------------------------

N_APPROXIMATE = 1000  # draws of the approximation that are weighed


def _weighted(u: np.ndarray, log_weights: np.ndarray, count: int, key: Any) -> tuple:
    """Draw `count` points by smoothed importance weights without replacement; Pareto k."""
    log_w, k = pareto_smooth(log_weights)
    gumbel = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist()).gumbel(
        size=len(u)
    )
    chosen = np.argsort(log_w + gumbel)[-count:]
    return u[chosen], k, float(1 / np.exp(2 * log_w).sum())


@outer_jit
def _pathfinder(line: Line, start: Array, key: Any) -> Any:
    import blackjax

    def one(given: Any) -> Any:
        u0, own = given
        first, second = jax.random.split(own)
        state, _ = blackjax.pathfinder.approximate(first, line.log_prob, u0, 100, maxiter=60)
        draws, log_q = blackjax.pathfinder.sample(second, state, N_APPROXIMATE // 4)
        return draws, log_q, state.elbo

    keys = jax.random.split(key, start.shape[0])
    draws, log_q, elbo = jax.lax.map(one, (start, keys))
    flat = draws.reshape(-1, start.shape[-1])
    return flat, log_q.reshape(-1), map_points(line.log_prob, flat), elbo


def pathfinder_start(line: Line, points: np.ndarray, key: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Replace starts by draws of multi-path pathfinder (Zhang et al. 2022), weighted by PSIS."""
    _need_blackjax()
    key = jax.random.fold_in(key, 2**30)
    u = on_line(line, points)
    with jax.numpy_rank_promotion("allow"):  # blackjax relies on it
        draws, log_q, log_p, _ = (np.asarray(a) for a in _pathfinder(line, u, key))
    ratio = np.where(np.isfinite(log_p), log_p, -np.inf) - log_q
    return _chosen(line, draws, ratio, points, key, "pathfinder")


@outer_jit
def _curvature(line: Line, u: Array) -> tuple[Array, Array]:
    return line.log_prob(u), jax.hessian(line.log_prob)(u)


def laplace_start(line: Line, points: np.ndarray, key: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Replace starts by draws of the normal approximation at the mode, weighted by PSIS."""
    key = jax.random.fold_in(key, 2**30 + 1)
    mean, root, k_info = laplace(line, points)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    noise = rng.normal(size=(N_APPROXIMATE, len(mean)))
    draws = mean + noise @ root.T
    log_q = -0.5 * (noise**2).sum(1)
    log_p = np.asarray(line_values(line, draws))
    chosen, info = _chosen(
        line, draws, np.where(np.isfinite(log_p), log_p, -np.inf) - log_q, points, key, "laplace"
    )
    return chosen, {**info, **k_info}


def laplace(line: Line, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return mode (p,) and a root of the covariance (p, p) on the line, and the log evidence."""
    mode = best_mode(line, points)
    value, hessian = (np.asarray(a) for a in _curvature(line, mode))
    eigen, vectors = np.linalg.eigh(-hessian)
    if not (eigen > 0).all():
        raise ModelSpecError(
            "start='laplace': the log density has no strict maximum near the starts (its Hessian is "
            "not negative definite). Use start='pathfinder' or 'given'."
        )
    root = vectors / np.sqrt(eigen)
    evidence = float(value) + 0.5 * (len(mode) * np.log(2 * np.pi) - np.log(eigen).sum())
    return mode, root, {"laplace_log_evidence": evidence}


@outer_jit
def _modes(line: Line, start: Array) -> tuple[Array, Array]:
    import optimistix

    solver = optimistix.BFGS(rtol=1e-10, atol=1e-10)

    def one(u0: Array) -> tuple[Array, Array]:
        found = optimistix.minimise(
            lambda u, _: -line.log_prob(u),  # pyright: ignore[reportArgumentType]
            solver,
            u0,
            max_steps=500,
            throw=False,
        )
        return found.value, line.log_prob(found.value)

    return jax.lax.map(one, start)


def best_mode(line: Line, points: np.ndarray) -> np.ndarray:
    """Return the best of the maxima reached from the points, on the line."""
    places, values = (np.asarray(a) for a in _modes(line, on_line(line, points)))
    values = np.where(np.isfinite(values), values, -np.inf)
    if not (values > -np.inf).any():
        raise ModelSpecError("no maximum was found from any start; give other init points.")
    return places[int(np.argmax(values))]


def _chosen(line: Line, draws: np.ndarray, ratio: np.ndarray, points: np.ndarray, key: Any,
            name: str) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
    u, k, ess = _weighted(draws, ratio, len(points), key)
    if not k < 0.7:
        warn(
            f"start={name!r}: Pareto k = {k:.2f} is above 0.7, so that the normal approximation is "
            "far from the posterior; it serves as a start only.",
            SamplingWarning,
        )
    theta = np.asarray(_to_natural(line, u))
    return theta, {"pareto_k": k, "importance_ess": ess}


@outer_jit
def _to_natural(line: Line, u: Array) -> Array:
    return jax.vmap(lambda point: line.natural(point)[0])(u)
