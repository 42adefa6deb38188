"""Start positions of walkers: from the prior, in a ball, or given; with checks of their geometry."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError, SamplingWarning, some, warn
from jaxnlme._typing import Array
from jaxnlme.calibration.parameters import ParameterSet
from jaxnlme.calibration.problem import AbstractDensity, Posterior, evaluate_many, term_table

__all__ = ["ball", "check_geometry", "check_walkers", "evaluate_starts", "whole"]

MAX_ROUNDS = 100  # of redrawing starts without density
MAX_CONDITION = 1e8  # of the walkers' correlation: beyond it they span no volume in float64


def whole(name: str, value: Any, least: int) -> int:
    """Return a whole number from `least` on.

    Raises
    ------
    ModelSpecError
        It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ModelSpecError(f"{name}={value!r}: a whole number from {least} on.")
    return int(value)


def check_walkers(n_walkers: Any, p: int) -> int:
    """Return the number of walkers of one ensemble; None means max(2 p, 32).

    Raises
    ------
    ModelSpecError
        Odd, or fewer than 2 p: each half must span the space.
    """
    if n_walkers is None:
        return max(2 * p, 32)
    if not isinstance(n_walkers, (int, np.integer)) or n_walkers < 4:
        raise ModelSpecError(f"n_walkers={n_walkers!r}: a whole number from {max(2 * p, 4)} on.")
    if n_walkers < 2 * p:
        raise ModelSpecError(
            f"n_walkers={n_walkers} is below the minimum of {2 * p} walkers, twice the {p} "
            "parameters: each half of the ensemble must span the space."
        )
    if n_walkers % 2:
        raise ModelSpecError(f"n_walkers={n_walkers} is odd; give {n_walkers + 1}, for two halves.")
    return int(n_walkers)


def check_geometry(z: np.ndarray, names: Any) -> None:
    """Refuse walkers (w, p) that do not span the space: affine moves could never leave theirs.

    Raises
    ------
    ModelSpecError
        Not finite, two walkers at one point, a parameter that is the same in all, or a linear
        dependence; names the walkers or parameters.
    """
    w, p = z.shape
    bad = np.flatnonzero(~np.isfinite(z).all(axis=1))
    if len(bad):
        raise ModelSpecError(f"start positions of walker {some(bad)} are not finite.")
    # Equal rows have equal first coordinates: the sort of whole rows is dear for many walkers.
    if len(np.unique(z[:, 0])) < w and len(np.unique(z, axis=0)) < w:
        raise ModelSpecError(
            f"start positions: only {len(np.unique(z, axis=0))} of {w} walkers are at different "
            "points. Spread them, for example with method='ball'."
        )
    centred = z - z.mean(0)
    spread = np.sqrt((centred**2).mean(0))
    constant = np.flatnonzero(spread <= 1e-14 * np.abs(z).max(0))
    if len(constant):
        raise ModelSpecError(
            f"start positions: parameter {some(names[k] for k in constant)} is the same in all "
            "walkers, and would stay there. Spread it."
        )
    scaled = centred / spread
    values, directions = np.linalg.eigh(np.einsum("wi,wj->ij", scaled, scaled))
    if values[0] * MAX_CONDITION < values[-1]:
        weights = directions[:, 0] / np.abs(directions[:, 0]).max()
        parts = [names[k] for k in range(p) if abs(weights[k]) > 0.1]
        raise ModelSpecError(
            f"start positions: the walkers are linearly dependent in {some(parts)}, and would stay "
            f"so. The minimum is {2 * p} walkers that spread in all {p} directions."
        )


@functools.partial(outer_jit, static_argnums=(0, 1))
def _in_ball(n: int, p: int, key: Any) -> Array:
    direction, length = jax.random.split(key)
    x = jax.random.normal(direction, (n, p), jnp.float64)
    x = x / jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True))
    return x * jax.random.uniform(length, (n, 1), jnp.float64) ** (1 / p)


def ball(n: int, center: np.ndarray, radius: Any, key: Any) -> np.ndarray:
    """Return (n, p) points uniform inside a ball (an ellipsoid for a radius per parameter)."""
    p = len(center)
    radius = np.asarray(radius, float)
    if radius.shape not in ((), (p,)) or not (np.isfinite(radius) & (radius > 0)).all():
        raise ModelSpecError(f"radius={radius!r}: a positive number, or {p} of them.")
    return center + radius * np.asarray(_in_ball(n, p, key))


@functools.partial(outer_jit, static_argnums=0)
def _to_coordinates(forward: bool, density: AbstractDensity, points: Array) -> Array:
    return density.to_natural(points) if forward else density.to_coordinates(points)


def to_coordinates(density: AbstractDensity, theta: np.ndarray) -> np.ndarray:
    """Map natural points (n, p) to sampling coordinates."""
    return np.asarray(_to_coordinates(False, density, theta))


def to_natural(density: AbstractDensity, z: np.ndarray) -> np.ndarray:
    """Map sampling coordinates (n, p) to the natural scale."""
    return np.asarray(_to_coordinates(True, density, z))


def evaluate_starts(
    density: AbstractDensity, z: np.ndarray, redraw: Any, *, told: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate start points and redraw those without density.

    Parameters
    ----------
    density
        What is sampled.
    z
        (n, p) sampling coordinates.
    redraw
        ``redraw(count, round, good points) -> (count, p)``.
    told
        Warn about redrawn starts (where the user chose them).

    Returns
    -------
    z, log_density, blobs

    Raises
    ------
    ModelSpecError
        The density is +inf somewhere, or -inf at every start after 100 rounds; says which prior or
        variable is to blame.
    """
    value, blobs = (np.array(a) for a in evaluate_many(density, z))
    z = np.array(z)
    first = int((value == -np.inf).sum())
    for trip in range(MAX_ROUNDS):
        _check_plus_infinite(value, z, density)
        lost = np.flatnonzero(value == -np.inf)
        if not len(lost):
            break
        # Whole batches of the same size: one program.
        fresh = redraw(len(z), trip, z[value > -np.inf])
        new_value, new_blobs = (np.asarray(a) for a in evaluate_many(density, fresh))
        _check_plus_infinite(new_value, fresh, density)
        usable = np.flatnonzero(new_value > -np.inf)[: len(lost)]
        lost = lost[: len(usable)]
        z[lost], value[lost], blobs[lost] = fresh[usable], new_value[usable], new_blobs[usable]
    if (value == -np.inf).any():
        raise ModelSpecError(_no_density(density, z, value))
    if first and told:
        warn(
            f"{first} of {len(z)} start positions had log density -inf and were drawn again.",
            SamplingWarning,
        )
    return z, value, blobs


def _check_plus_infinite(value: np.ndarray, z: np.ndarray, density: AbstractDensity) -> None:
    bad = np.flatnonzero(value == np.inf)
    if len(bad):
        names = getattr(density, "names", ())
        theta = to_natural(density, z[bad[:1]])[0]
        at = ", ".join(f"{n}={v:.6g}" for n, v in zip(names, theta, strict=True))
        raise ModelSpecError(
            f"the log density is +inf at {at}: it is no density there. Look for a division by zero, "
            "or a standard deviation that can reach 0."
        )


def _no_density(density: AbstractDensity, z: np.ndarray, value: np.ndarray) -> str:
    lost = int((value == -np.inf).sum())
    text = f"the log density is -inf at {lost} of {len(z)} starts, also after redrawing them"
    if not isinstance(density, Posterior):
        return text + ". Give init where log_prob is finite."
    theta = to_natural(density, z)
    prior, likelihood = (np.asarray(a) for a in term_table(density, theta))
    bad = ~np.isfinite(prior)
    if bad.any():
        names = [n for n, b in zip(density.names, np.any(bad, axis=0), strict=True) if b]
        return text + (
            f": the prior of parameter {some(names)} is -inf there. Start inside its support."
        )
    bad = ~np.isfinite(likelihood)
    parts = []
    for k, data in enumerate(density.data):
        if bad[:, k].any():
            kind = "NaN" if np.isnan(likelihood[:, k]).any() else "-inf"
            parts.append(f"{data.name!r} ({kind} at {int(bad[:, k].sum())})")
    return text + (
        f": the likelihood of variable {', '.join(parts)} is the cause, for parameters "
        f"{some(density.names, 8)} drawn from the prior. Check the model there, or narrow the priors."
    )


def prior_redraw(parameters: ParameterSet, density: AbstractDensity, key: Any) -> Any:
    """Return a function that draws fresh starts from the prior."""

    def redraw(count: int, trip: int, good: np.ndarray) -> np.ndarray:
        del good
        fresh = parameters.sample(count, key=jax.random.fold_in(key, 1000 + trip))
        return to_coordinates(density, fresh)

    return redraw


def mixing_redraw(seed: int) -> Any:
    """Return a function that puts fresh starts between good ones, where there is no prior."""
    rng = np.random.default_rng(seed)

    def redraw(count: int, trip: int, good: np.ndarray) -> np.ndarray:
        del trip
        if not len(good):
            raise ModelSpecError(
                f"the log density is -inf at every one of the {count} starts. Give init where "
                "log_prob is finite."
            )
        i = rng.integers(len(good), size=count)
        j = (i + rng.integers(1, max(len(good), 2), size=count)) % len(good)  # another one
        return good[i] + rng.uniform(0, 0.5, (count, 1)) * (good[j] - good[i])

    return redraw
