"""Densities of many data sets side by side, one per ensemble, for one compiled program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme._typing import Array
from jaxnlme.calibration.fitted import FittedPosterior
from jaxnlme.calibration.parameters import PriorDensity
from jaxnlme.calibration.problem import AbstractDensity, AbstractEnsembleDensity, Posterior
from jaxnlme.numerics.mcmc import BATCH

__all__ = ["StackedDensity", "stack_densities", "stacked_starts"]

MAX_ROUNDS = 20  # of drawing starts without density again


class StackedDensity(AbstractEnsembleDensity):
    """One density per ensemble: every array of ``inner`` has a leading axis of ensembles."""

    inner: AbstractDensity
    names: tuple[str, ...] = eqx.field(static=True)

    def ensembles(self, z):
        e, h, _ = z.shape
        together = max(k for k in range(1, max(BATCH // h, 1) + 1) if e % k == 0)
        many = jax.vmap(lambda density, points: density.many(points))
        if together == e:
            return many(self.inner, z)
        blocks = jax.tree.map(
            lambda a: a.reshape(e // together, together, *a.shape[1:]), (self.inner, z)
        )
        out = jax.lax.map(lambda block: many(*block), blocks)
        return jax.tree.map(lambda a: a.reshape(e, *a.shape[2:]), out)

    def to_natural(self, z):
        return jax.vmap(lambda density, own: density.to_natural(own))(self.inner, z)

    def to_coordinates(self, theta):
        return jax.vmap(lambda density, own: density.to_coordinates(own))(self.inner, theta)

    def log_jacobian(self, z):
        return jax.vmap(lambda density, own: density.log_jacobian(own))(self.inner, z)


def stack_densities(densities: Sequence[AbstractDensity]) -> StackedDensity:
    """Stack densities of one structure (posteriors of data sets of one shape).

    Raises
    ------
    ModelSpecError
        Their structures or shapes differ.
    """
    first = densities[0]
    for k, other in enumerate(densities):
        same = jax.tree.structure(other) == jax.tree.structure(first)
        if not same or any(
            np.shape(a) != np.shape(b)
            for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
        ):
            raise ModelSpecError(
                f"posterior {k} has another structure than the first: sample_many needs the same "
                "parameters, model, likelihood, and data of the same shapes."
            )
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *densities)
    return StackedDensity(inner=stacked, names=tuple(getattr(first, "names", ())))


def stacked_starts(
    posteriors: Sequence[AbstractDensity], stacked: StackedDensity, init: Any, w: int, key: Any
) -> tuple[Array, Array, Array]:
    """Return starts (e, w, p) in sampling coordinates, their log densities and blobs.

    Without `init` they are drawn from the priors, for fitted models around their estimates; those
    without density are drawn again.

    Raises
    ------
    DataError
        No start with density was found.
    ModelSpecError
        A given start has no density, or there is no prior to draw from.
    """
    e, names = len(posteriors), stacked.names
    if init is not None:
        points = np.asarray(init, float)
        if points.shape != (e, w, len(names)):
            raise ModelSpecError(f"init has shape {points.shape}, expected {(e, w, len(names))}.")
        z, value, blobs = (np.asarray(a) for a in _evaluated(stacked, points))
        lost = ~np.isfinite(value)
        if lost.any():
            k = int(np.flatnonzero(lost.any(axis=1))[0])
            raise ModelSpecError(
                f"posterior {k}: the log density is not finite at a start; give init= where it is."
            )
        return z, value, blobs
    if not isinstance(stacked.inner, Posterior):
        raise ModelSpecError("init= is needed for densities without priors.")
    z, value, blobs = (
        np.array(a) for a in _evaluated(stacked, _drawn(posteriors, stacked, key, 0, w))
    )
    for trip in range(1, MAX_ROUNDS + 1):
        lost = ~np.isfinite(value)
        if not lost.any():
            return z, value, blobs
        fresh = (
            np.asarray(a) for a in _evaluated(stacked, _drawn(posteriors, stacked, key, trip, w))
        )
        for kept, new in zip((z, value, blobs), fresh, strict=True):
            kept[lost] = new[lost]
    k = int(np.flatnonzero(~np.isfinite(value).all(axis=1))[0])
    raise DataError(f"no start with finite density was found for posterior {k}; give init=.")


def _drawn(posteriors: Any, stacked: StackedDensity, key: Any, trip: int, w: int) -> np.ndarray:
    """(e, w, p) natural points."""
    own = jax.random.fold_in(jax.random.fold_in(key, 2**31), trip)
    if isinstance(stacked.inner, FittedPosterior):
        return np.stack(
            [one.starts(w, jax.random.fold_in(own, k)) for k, one in enumerate(posteriors)]
        )
    assert isinstance(stacked.inner, Posterior)
    return np.asarray(_draw_ensembles(stacked.inner.prior, own, len(posteriors), w))


def _coordinates(density: StackedDensity, theta: Array) -> tuple[Array, Array, Array]:
    z = density.to_coordinates(theta)
    value, blobs = density.ensembles(z)
    return z, value, blobs


def _draws(prior: PriorDensity, key: Any, e: int, w: int) -> Array:
    keys = jax.random.split(key, e)
    return jax.vmap(lambda one, k: one.draw(k, w, np.float64))(prior, keys)


_evaluated = outer_jit(_coordinates)
_draw_ensembles = outer_jit(_draws, static_argnums=(2, 3))
