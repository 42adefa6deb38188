"""Tempered sequential Monte Carlo: several modes, and the evidence.

References
----------
.. [1] Del Moral, Doucet, Jasra (2006). Sequential Monte Carlo samplers. JRSS B 68.
"""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError, SamplingWarning, warn
from jaxnlme._typing import Array
from jaxnlme.calibration.chain import Chain
from jaxnlme.calibration.gradient import Line, naturals, on_line
from jaxnlme.calibration.problem import Posterior
from jaxnlme.numerics.mcmc import map_points

__all__ = ["Base", "both", "pooled_evidence", "read_base", "run_smc", "stages"]

MAX_STAGES = 200
# Metropolis sweeps of a stage go on until the particles have forgotten where they were resampled: with a
# fixed number of them the variances of a 20-D normal came out 2 to 14 % too small.
SWEEPS = 8  # between two looks at the correlation with the resampled places
MAX_SWEEPS = 800
FORGOTTEN = 0.1
PLATEAU = 0.98  # a look at which it has not fallen below this share: modes that are not left


class Base(eqx.Module):
    """Where the particles start: the prior, or a normal density around given points."""

    line: Line
    mean: Any
    root: Any  # lower triangle, or None: the prior
    inverse_root: Any
    log_det: Any

    def draw(self, key: Any, n: int, dtype: Any) -> Array:
        if self.root is None:
            assert isinstance(self.line.density, Posterior)
            theta = self.line.density.prior.draw(key, n, dtype)
            return jax.vmap(self.line.to_line)(theta)
        return self.mean + jax.random.normal(key, (n, self.mean.shape[1]), dtype) @ self.root.T

    def log_prob(self, u: Array) -> Array:
        """Return the normalised log density of u on the line."""
        if self.root is None:
            assert isinstance(self.line.density, Posterior)
            theta, jacobian = self.line.natural(u)
            return self.line.density.prior.log_prob(theta) + jacobian
        z = self.inverse_root @ (u - self.mean[0])
        p = u.shape[0]
        return -0.5 * jnp.sum(z**2) - self.log_det - 0.5 * p * np.log(2 * np.pi)


def both(base: Base, u: Array) -> tuple[Array, Array]:
    """Return base and target log densities at (n, p) points; -inf where either is not a number."""

    def one(point: Array) -> tuple[Array, Array]:
        first, second = base.log_prob(point), base.line.log_prob(point)
        bad = jnp.isnan(first) | jnp.isnan(second)
        return jnp.where(bad, -jnp.inf, first), jnp.where(bad, -jnp.inf, second)

    return map_points(one, u)


def _next_temperature(ratio: Array, temperature: Array, target: float) -> Array:
    """Largest temperature up to 1 at which the weights' ESS is the target fraction (bisection)."""

    def fraction(t: Array) -> Array:
        log_w = jnp.where(jnp.isfinite(ratio), (t - temperature) * ratio, -jnp.inf)
        log_w = log_w - jnp.max(log_w)
        w = jnp.exp(log_w)
        return jnp.sum(w) ** 2 / jnp.sum(w**2) / ratio.shape[0]

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        ok = fraction(middle) >= target
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    one = jnp.ones_like(temperature)
    low, _ = jax.lax.fori_loop(0, 50, halve, (temperature, one))
    return jnp.where(fraction(one) >= target, one, low)


def _stage(base: Base, carry: Any) -> Any:
    u, first, second, temperature, evidence, key, stage, _ = carry
    n, p = u.shape
    dtype = u.dtype
    key, resample_key, move_key = jax.random.split(key, 3)
    ratio = second - first
    new = _next_temperature(ratio, temperature, 0.5)
    log_w = jnp.where(jnp.isfinite(ratio), (new - temperature) * ratio, -jnp.inf)
    top = jnp.max(log_w)
    w = jnp.exp(log_w - top)
    evidence = evidence + top + jnp.log(jnp.mean(w))
    # Systematic resampling.
    edges = jnp.cumsum(w) / jnp.sum(w)
    places = (jnp.arange(n, dtype=dtype) + jax.random.uniform(resample_key, (), dtype)) / n
    index = jnp.clip(jnp.searchsorted(edges, places), 0, n - 1)
    u, first, second = u[index], first[index], second[index]

    def sweep(k: Any, inner: Any) -> Any:
        u, first, second, total = inner
        a, b, c, d = jax.random.split(jax.random.fold_in(move_key, k), 4)
        i = jax.random.randint(a, (n,), 0, n)
        j = (i + jax.random.randint(b, (n,), 1, n)) % n
        # Differences of particles before the move: their covariance and, at factor 1, their modes.
        gamma = jnp.where(k % 4 == 3, 1.0, 2.38 / np.sqrt(2 * p)).astype(dtype)
        factor = gamma * jnp.exp(0.5 * jax.random.normal(d, (n, 1), dtype))
        factor = jnp.where(k % 4 == 3, jnp.ones_like(factor), factor)
        new_u = u + factor * (frozen[i] - frozen[j])
        new_first, new_second = both(base, new_u)

        def tempered(a: Array, b: Array) -> Array:
            value = a + new * (b - a)
            return jnp.where(jnp.isfinite(a) & jnp.isfinite(b), value, -jnp.inf)

        log_u = jnp.log(jax.random.uniform(c, (n,), dtype))
        ok = log_u < tempered(new_first, new_second) - tempered(first, second)
        total = total + jnp.mean(ok)
        return (
            jnp.where(ok[:, None], new_u, u),
            jnp.where(ok, new_first, first),
            jnp.where(ok, new_second, second),
            total,
        )

    def look(inner: Any) -> Any:
        state, k, before, _ = inner
        state = jax.lax.fori_loop(k, k + SWEEPS, sweep, state)
        now = _correlation(frozen, state[0])
        return state, k + SWEEPS, now, now > PLATEAU * before

    def more(inner: Any) -> Array:
        _, k, now, stuck = inner
        return (now > FORGOTTEN) & ~stuck & (k < MAX_SWEEPS)

    frozen = u
    zero, infinite = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)
    start = ((u, first, second, zero), 0, infinite, jnp.zeros((), bool))
    (u, first, second, total), count, _, _ = jax.lax.while_loop(more, look, start)
    return u, first, second, new, evidence, key, stage + 1, total / count


def _correlation(before: Array, now: Array) -> Array:
    """Largest correlation, over coordinates, of two sets (n, p) of places."""
    before = before - jnp.mean(before, 0, keepdims=True)
    now = now - jnp.mean(now, 0, keepdims=True)
    size = jnp.sqrt(jnp.sum(before**2, 0) * jnp.sum(now**2, 0))
    return jnp.max(jnp.sum(before * now, 0) / jnp.where(size > 0, size, 1))


@functools.partial(outer_jit, static_argnums=(0, 1))
def _smc(n: int, runs: int, base: Base, key: Any) -> Any:
    def one(own: Any) -> Any:
        first_key, key = jax.random.split(own)
        u = base.draw(first_key, n, jnp.float64)
        first, second = both(base, u)
        zero = jnp.zeros((), jnp.float64)
        carry = (u, first, second, zero, zero, key, 0, zero)
        carry = jax.lax.while_loop(
            lambda c: (c[3] < 1) & (c[6] < MAX_STAGES), lambda c: _stage(base, c), carry
        )
        u, _, _, temperature, evidence, _, stages, accepted = carry
        theta, value = naturals(base.line, u)
        return theta, value, evidence, stages, accepted, temperature

    return jax.lax.map(one, jax.random.split(key, runs))


def stages(base: Base, n: int, key: Any) -> list[tuple[float, np.ndarray]]:
    """Return the temperatures (inverse; 0 to 1) of one run, and its particles (n, p) at each.

    Raises
    ------
    ModelSpecError
        It did not reach the posterior.
    """
    first_key, key = jax.random.split(key)
    u, first, second = _drawn(n, base, first_key)
    zero = np.zeros(())
    carry: Any = (u, first, second, zero, zero, key, np.int64(0), zero)
    found = [(0.0, np.asarray(u))]
    while found[-1][0] < 1:
        if len(found) > MAX_STAGES:
            raise ModelSpecError(
                f"the posterior was not reached from the prior in {MAX_STAGES} stages; give init= nearer to it."
            )
        carry = _one_stage(base, carry)
        found.append((float(carry[3]), np.asarray(carry[0])))
    return found


_one_stage = outer_jit(_stage)


@functools.partial(outer_jit, static_argnums=0)
def _drawn(n: int, base: Base, key: Any) -> tuple[Array, Array, Array]:
    u = base.draw(key, n, jnp.float64)
    return u, *both(base, u)


def read_base(line: Line, init: Any) -> Base:
    """Return where tempering starts: the prior, or a normal density around given natural points.

    Raises
    ------
    ModelSpecError
        There is neither, or the points do not span the space.
    """
    p = len(line.names)
    if init is None:
        if not isinstance(line.density, Posterior):
            raise ModelSpecError("init= is needed: points around which SMC starts.")
        return Base(line, None, None, None, None)
    u = np.asarray(on_line(line, np.asarray(init, float)))
    if len(u) < 2 * p or not np.isfinite(u).all():
        raise ModelSpecError(f"init: at least {2 * p} points inside the bounds are needed.")
    covariance = 4 * np.cov(u.T).reshape(p, p)  # wider than the points: weights stay bounded
    root = np.linalg.cholesky(covariance + 1e-12 * np.trace(covariance) / p * np.eye(p))
    log_det = float(np.log(np.diag(root)).sum())
    return Base(line, u.mean(0, keepdims=True), root, np.linalg.inv(root), log_det)


def pooled_evidence(evidence: np.ndarray) -> dict[str, Any]:
    """Return the log of the mean of the runs' evidences, its standard error, and those of the runs.

    The mean of evidences is unbiased, that of their logarithms is not.
    """
    runs, top = len(evidence), evidence.max()
    weights = np.exp(evidence - top)
    se = float(weights.std(ddof=1) / np.sqrt(runs) / weights.mean()) if runs > 1 else float("nan")
    return {
        "log_evidence": float(top + np.log(weights.mean())),
        "log_evidence_se": se,
        "log_evidences": evidence.tolist(),
    }


def run_smc(line: Line, init: Any, key: Any, n: int, runs: int, priors: Any) -> Chain:
    """Run several independent SMC samplers; a chain with one row per particle, one walker per run.

    Raises
    ------
    ModelSpecError
        Too few particles, or no reference distribution.
    """
    p = len(line.names)
    if n < 20 * p:
        raise ModelSpecError(f"num_steps={n} particles are too few; at least {20 * p}.")
    base = read_base(line, init)
    theta, value, evidence, stages, accepted, temperature = (
        np.asarray(a) for a in _smc(int(n), int(runs), base, key)
    )
    if not (temperature >= 1).all():
        warn(
            f"SMC: {int((temperature < 1).sum())} of {runs} runs did not reach the posterior in "
            f"{MAX_STAGES} stages.",
            SamplingWarning,
        )
    return Chain(
        np.swapaxes(theta, 0, 1),
        value.T,
        line.names,
        acceptance_fractions=accepted,
        ensemble=np.arange(runs),
        info={
            "method": "smc",
            **pooled_evidence(evidence),
            "stages": np.asarray(stages).tolist(),
        },
        priors=priors,
    )
