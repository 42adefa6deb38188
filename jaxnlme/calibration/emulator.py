"""Gaussian processes that stand for an expensive model: trained on the host, predicted in traced code.

References
----------
.. [1] Rasmussen, Williams (2006). Gaussian Processes for Machine Learning. MIT Press.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError
from jaxnlme._typing import Array, Float
from jaxnlme.numerics.arithmetic import HOST
from jaxnlme.numerics.mcmc import map_points
from jaxnlme.numerics.outer import advance, start

__all__ = ["GaussianProcesses", "Kernel", "fit_gaussian_process", "padded", "predict_many", "train"]

MAX_STEPS = 100
# Weak priors of the logarithms of (scale, trend, noise, lengths...), for standardised inputs and outputs.
CENTRES = (0.0, 0.0, np.log(1e-3), np.log(2.0))
WIDTHS = (1.5, 1.5, 2.0, 1.0)
LENGTHS = (1.0, 4.0)  # of the two starts


class Kernel:
    """Covariance of one output: squared exponential with a length per input, linear trend, noise.

    ``s^2 exp(-0.5 sum((x - x')^2 / l^2)) + t^2 (1 + x.x') + g^2 [x = x']``, on the host.

    Parameters
    ----------
    log_numbers
        (3 + p,) logarithms of s, t, g and the lengths.
    """

    def __init__(self, log_numbers: np.ndarray) -> None:
        self.log_numbers = np.asarray(log_numbers, float)
        self.s, self.t, self.g = np.exp(self.log_numbers[:3])
        self.lengths = np.exp(self.log_numbers[3:])

    def parts(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the squared exponential and the trend between training inputs."""
        scaled = x / self.lengths
        square = (scaled**2).sum(axis=1)
        distance = np.maximum(square[:, None] + square - 2 * scaled @ scaled.T, 0.0)
        return self.s**2 * np.exp(-0.5 * distance), self.t**2 * (1 + x @ x.T)

    def solve(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the inverse L^-1 of the factor of the covariance, its product with y, and the factor's diagonal."""
        curve, trend = self.parts(x)
        low = np.linalg.cholesky(curve + trend + self.g**2 * np.eye(len(x)))
        inverse = np.linalg.solve(low, np.eye(len(x)))
        return inverse, inverse @ y, np.diag(low)

    def cost(self, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        """Return minus the log marginal likelihood [1]_ (eq. 2.30) and its slopes in the logarithms (eq. 5.9)."""
        curve, trend = self.parts(x)
        try:
            inverse, white, diagonal = self.solve(x, y)
        except np.linalg.LinAlgError:
            return np.inf, np.zeros_like(self.log_numbers)
        value = 0.5 * white @ white + np.log(diagonal).sum() + 0.5 * len(x) * np.log(2 * np.pi)
        weights = inverse.T @ white
        m = 0.5 * (inverse.T @ inverse - np.outer(weights, weights))
        q = m * curve
        lengths = 2 * (q.sum(axis=1) @ x**2 - (x * (q @ x)).sum(axis=0)) / self.lengths**2
        heads = [2 * q.sum(), 2 * (m * trend).sum(), 2 * self.g**2 * np.trace(m)]
        return float(value), np.concatenate([heads, lengths])


def fit_gaussian_process(x: np.ndarray, y: np.ndarray, *, weak_priors: bool = True) -> Kernel:
    """Return the kernel of largest marginal likelihood (times weak priors), by BFGS from two starts.

    Parameters
    ----------
    x
        (n, p) inputs, spread about 1.
    y
        (n,) outputs, mean 0 and spread about 1.
    weak_priors
        Hold lengths and sizes that the data do not tell near 1 (the lengths near 2).
    """
    p = x.shape[1]
    centre = np.array([*CENTRES[:3], *[CENTRES[3]] * p])
    width = np.array([*WIDTHS[:3], *[WIDTHS[3]] * p])

    def cost(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, slopes = Kernel(u).cost(x, y)
        if weak_priors:
            value = value + 0.5 * float((((u - centre) / width) ** 2).sum())
            slopes = slopes + (u - centre) / width**2
        return value, slopes

    found = []
    for length in LENGTHS:
        u = centre.copy()
        u[3:] = np.log(length)
        found.append(_minimised(cost, u))
    return Kernel(min(found, key=lambda one: one[0])[1])


def _minimised(cost: Any, u: np.ndarray) -> tuple[float, np.ndarray]:
    free = np.ones(len(u), bool)
    state = start(u, 0.1 * np.eye(len(u)), free, HOST)
    for _ in range(MAX_STEPS):
        value, slopes = cost(state.trial)
        with np.errstate(all="ignore"):  # infinite costs are part of the rule
            state = advance(state, value, slopes, free=free, max_change=1.0, arithmetic=HOST)
        done = state.decrement < 1e-6 and state.num_rejected == 0
        if done or state.num_rejected > 20 or state.stalls > 3:
            break
    return float(state.value), np.asarray(state.x)


class GaussianProcesses(eqx.Module):
    """K independent processes over the same n training inputs, ready to predict.

    Attributes
    ----------
    inputs
        (n, p) scaled training inputs.
    shift, scale
        (p,) that scale them.
    numbers
        (K, 3 + p): s, t, g and the lengths.
    weights, roots
        (K, n) and (K, n, n): ``C^-1 y`` and ``L^-1`` of the training covariances ``C = L L'``.
    mean, sd
        (K,) of the training outputs.
    """

    inputs: Float[Array, "n p"]
    shift: Float[Array, "p"]
    scale: Float[Array, "p"]
    numbers: Float[Array, "K m"]
    weights: Float[Array, "K n"]
    roots: Float[Array, "K n n"]
    mean: Float[Array, "K"]
    sd: Float[Array, "K"]

    def predict(self, x: Float[Array, "p"]) -> tuple[Float[Array, "K"], Float[Array, "K"]]:
        """Return means and variances (noise included) of all processes at one input; traced."""
        point = (x - self.shift) / self.scale
        numbers = jnp.asarray(self.numbers)
        s, t, g = (numbers[:, k] ** 2 for k in range(3))
        distance = jnp.sum(
            ((self.inputs - point[None])[None] / numbers[:, None, 3:]) ** 2, axis=2
        )  # (K, n)
        trend = 1 + jnp.asarray(self.inputs) @ point
        cross = s[:, None] * jnp.exp(-0.5 * distance) + t[:, None] * trend[None]
        mean = jnp.sum(cross * self.weights, axis=1)
        known = jnp.sum(jnp.einsum("kij,kj->ki", self.roots, cross) ** 2, axis=1)
        own = s + t * (1 + jnp.sum(point**2)) + g
        variance = jnp.maximum(own - known, g)
        return self.mean + self.sd * mean, self.sd**2 * variance


def train(x: np.ndarray, y: np.ndarray) -> tuple[GaussianProcesses, np.ndarray]:
    """Fit a process to each column of y.

    Parameters
    ----------
    x
        (n, p) inputs.
    y
        (n, K) outputs.

    Returns
    -------
    processes
    errors
        (n, K) leave-one-out errors over their predicted standard deviations ([1]_, eq. 5.12).

    Raises
    ------
    ModelSpecError
        Fewer inputs than p + 3.
    """
    n, p = x.shape
    if n < p + 3:
        raise ModelSpecError(f"an emulator needs at least {p + 3} runs, got {n}.")
    shift, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-12)
    inputs = (x - shift) / scale
    mean, sd = y.mean(axis=0), y.std(axis=0)
    sd = np.where(sd > 1e-12 * (1 + np.abs(mean)), sd, 1.0)
    numbers, weights, roots, errors = [], [], [], []
    for own in ((y - mean) / sd).T:
        kernel = fit_gaussian_process(inputs, own)
        root, white, _ = kernel.solve(inputs, own)
        weight = root.T @ white
        numbers.append(np.exp(kernel.log_numbers))
        weights.append(weight)
        roots.append(root)
        errors.append(weight / np.sqrt((root**2).sum(axis=0)))
    processes = GaussianProcesses(
        inputs, shift, scale, np.array(numbers), np.array(weights), np.array(roots), mean, sd
    )
    return processes, np.array(errors).T


def padded(processes: GaussianProcesses) -> GaussianProcesses:
    """Round n and K up to multiples of 32 and 4, so that few programs are compiled.

    Inputs that are added have no weight; processes that are added are 0 with variance 0.
    """
    n, k = len(processes.inputs), len(processes.mean)
    rows, more = -n % 32, -k % 4
    first = np.repeat(np.asarray(processes.inputs)[:1], rows, axis=0)
    return GaussianProcesses(
        inputs=np.concatenate([processes.inputs, first]),
        shift=processes.shift,
        scale=processes.scale,
        numbers=np.pad(processes.numbers, ((0, more), (0, 0)), constant_values=1.0),
        weights=np.pad(processes.weights, ((0, more), (0, rows))),
        roots=np.pad(processes.roots, ((0, more), (0, rows), (0, rows))),
        mean=np.pad(processes.mean, (0, more)),
        sd=np.pad(processes.sd, (0, more)),
    )


@outer_jit
def predict_many(processes: GaussianProcesses, x: Array) -> tuple[Array, Array]:
    """Return means and variances (m, K) at inputs (m, p); compiled."""
    return map_points(processes.predict, x)
