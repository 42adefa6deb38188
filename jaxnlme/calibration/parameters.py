"""Named parameters with priors, and the coordinates in which they are sampled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import DataError, ModelSpecError, nearest, some
from jaxnlme._precision import host64
from jaxnlme._typing import Array, Float
from jaxnlme.numerics.bijectors import AbstractBijector, Identity, Log, as_bijector
from jaxnlme.priors.base import AbstractPrior, as_key
from jaxnlme.priors.bounded import as_prior

__all__ = ["ParameterDef", "ParameterSet", "PriorDensity"]


@dataclasses.dataclass(frozen=True)
class ParameterDef:
    """One parameter: its name, its prior, and the bijector of its sampling coordinate or None."""

    name: str
    prior: AbstractPrior
    transform: AbstractBijector | None = None


class PriorDensity(eqx.Module):
    """The joint prior of named parameters as a pytree, for traced code.

    Points are in sampling coordinates ``z`` or on the natural scale ``theta``; they differ where a
    parameter has a ``transform``.
    """

    priors: tuple[AbstractPrior, ...]
    transforms: tuple[AbstractBijector | None, ...]
    names: tuple[str, ...] = eqx.field(static=True)

    def log_prob(self, theta: Float[Array, "p"]) -> Float[Array, ""]:
        """Return the log prior density on the natural scale."""
        terms = [prior._log_prob(theta[k]) for k, prior in enumerate(self.priors)]
        return functools.reduce(jnp.add, terms)

    def terms(self, theta: Float[Array, "p"]) -> Float[Array, "p"]:
        """Return the log prior density of each parameter."""
        return jnp.stack([prior._log_prob(theta[k]) for k, prior in enumerate(self.priors)])

    def to_natural(self, z: Float[Array, "*b p"]) -> Float[Array, "*b p"]:
        """Map sampling coordinates to the natural scale."""
        if all(t is None for t in self.transforms):
            return z
        columns = [
            z[..., k] if t is None else t.forward(z[..., k]) for k, t in enumerate(self.transforms)
        ]
        return jnp.stack(columns, axis=-1)

    def to_coordinates(self, theta: Float[Array, "*b p"]) -> Float[Array, "*b p"]:
        """Map the natural scale to sampling coordinates."""
        columns = [
            theta[..., k] if t is None else t.inverse(theta[..., k])
            for k, t in enumerate(self.transforms)
        ]
        return jnp.stack(columns, axis=-1)

    def log_jacobian(self, z: Float[Array, "*b p"]) -> Float[Array, "*b"]:
        """Return log |d theta / d z|, which the density of z adds to that of theta."""
        total = jnp.zeros_like(z[..., 0])
        for k, transform in enumerate(self.transforms):
            if isinstance(transform, Log):
                total = total + z[..., k]
            elif transform is not None:
                x = z[..., k]
                slope = jax.jvp(transform.forward, (x,), (jnp.ones_like(x),))[1]
                total = total + jnp.log(jnp.abs(slope))
        return total

    def unconstrained(self, u: Float[Array, "p"]) -> tuple[Float[Array, "p"], Float[Array, ""]]:
        """Return the natural point of an unconstrained one, and the log Jacobian of that map."""
        theta, jacobian = [], jnp.zeros_like(u[0])
        for k, prior in enumerate(self.priors):
            theta.append(prior._from_line(u[k]))
            jacobian = jacobian + prior._line_log_jacobian(u[k])
        return jnp.stack(theta), jacobian

    def to_line(self, theta: Float[Array, "p"]) -> Float[Array, "p"]:
        """Invert :meth:`unconstrained`."""
        return jnp.stack([prior._to_line(theta[k]) for k, prior in enumerate(self.priors)])

    def draw(self, key: Any, n: int, dtype: Any) -> Float[Array, "n p"]:
        """Draw ``n`` points on the natural scale."""
        keys = jax.random.split(key, len(self.priors))
        return _columns(lambda prior, key: prior._draw(key, (n,), dtype), self.priors, keys, dtype)

    def draw_lhs(self, key: Any, n: int, dtype: Any) -> Float[Array, "n p"]:
        """Draw a latin hypercube of ``n`` points on the natural scale."""

        # Of all priors at once: a sort takes XLA half a second to compile.
        def places(k: Array) -> Array:
            order, inside = jax.random.split(jax.random.fold_in(key, k))
            u = jax.random.uniform(inside, (n,), dtype, 1e-9, 1 - 1e-9)
            return (jax.random.permutation(order, n) + u) / n

        unit = jax.vmap(places)(jnp.arange(len(self.priors)))
        return _columns(lambda prior, u: prior._icdf(u), self.priors, unit, dtype)


def _columns(
    function: Callable[[AbstractPrior, Any], Array],
    priors: tuple[AbstractPrior, ...],
    values: Array,
    dtype: Any,
) -> Float[Array, "n p"]:
    """Evaluate ``function(prior, value)`` for every prior, a column each; priors of one kind at once.

    A quantile by bisection takes XLA a second to compile, and people give many parameters one kind of prior.
    """
    kinds: dict[Any, list[int]] = {}
    for k, prior in enumerate(priors):
        leaves, tree = jax.tree.flatten(prior)
        kinds.setdefault((tree, tuple(map(jnp.shape, leaves))), []).append(k)

    def stack(*leaves: Any) -> Array:
        out = jnp.stack([jnp.asarray(leaf) for leaf in leaves])
        return out.astype(dtype) if jnp.issubdtype(out.dtype, jnp.inexact) else out

    columns: dict[int, Array] = {}
    for members in kinds.values():
        several = jax.tree.map(stack, *(priors[k] for k in members))
        out = jax.vmap(function)(several, values[np.array(members)])
        columns |= {k: out[i] for i, k in enumerate(members)}
    return jnp.stack([columns[k] for k in range(len(priors))], axis=-1)


class ParameterSet:
    """Parameters in a fixed order, each with a prior.

    Parameters
    ----------
    parameters
        Mapping of name to prior, in order. :meth:`add` appends further ones and returns the set.

    Raises
    ------
    ModelSpecError
        A name is empty or used twice, a value is not a prior, or a transform does not fit the
        support of its prior.

    Examples
    --------
    >>> from jaxnlme.priors import Bound, Normal, Uniform
    >>> params = ParameterSet({"ecs": Bound(Normal(3.0, 0.5), lower=1.5, upper=6.0)})
    >>> params = params.add("k", Uniform(0.5, 2.0))
    >>> params.names(), params.bounds()
    (['ecs', 'k'], [(1.5, 6.0), (0.5, 2.0)])
    >>> params.sample(4, key=1).shape
    (4, 2)
    """

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        self._definitions: dict[str, ParameterDef] = {}
        for name, prior in (parameters or {}).items():
            self.add(name, prior)

    def add(self, name: Any, prior: Any, transform: Any = None) -> ParameterSet:
        """Append a parameter, and return the set itself.

        Parameters
        ----------
        name
            Key under which the model receives the value.
        prior
            Density on the natural scale.
        transform
            Name of a bijector (``"log"``, ``"logit"``, ``"probit"``) or a bijector: the sampler
            then moves in the transformed coordinate, and the posterior stays the same since the
            Jacobian is added.
        """
        if not isinstance(name, str) or not name:
            raise ModelSpecError(f"name={name!r}: give the parameter a non-empty text as name.")
        if name in self._definitions:
            raise ModelSpecError(f"parameter {name!r} is there already; names must be unique.")
        prior = as_prior(prior, argument=name)
        bijector = None if transform is None else as_bijector(transform)
        if isinstance(bijector, Identity):
            bijector = None
        if bijector is not None:
            _check_domain(name, prior, bijector)
        self._definitions[name] = ParameterDef(name, prior, bijector)
        return self

    def names(self) -> list[str]:
        """Return the names in order."""
        return list(self._definitions)

    @property
    def param_names(self) -> list[str]:
        """The names in order."""
        return self.names()

    @property
    def priors(self) -> list[AbstractPrior]:
        """The priors in order."""
        return [d.prior for d in self]

    def bounds(self) -> list[tuple[float | None, float | None]]:
        """Return the ends of each support; None where it is open."""
        return [d.prior.bounds() for d in self]

    def density(self) -> PriorDensity:
        """Return the joint prior as a pytree."""
        if not self._definitions:
            raise ModelSpecError("the ParameterSet has no parameters: add(name, prior) some.")
        return PriorDensity(
            tuple(d.prior for d in self), tuple(d.transform for d in self), tuple(self.names())
        )

    @host64
    def sample(self, n: int, key: Any = 0) -> Any:
        """Return (n, p) independent draws from the prior."""
        return np.array(_draw(int(n), self.density(), as_key(key)))

    @host64
    def sample_lhs(self, n: int, key: Any = 0) -> Any:
        """Return (n, p) draws of a latin hypercube: each of n strata of each prior is hit once."""
        return np.array(_draw_lhs(int(n), self.density(), as_key(key)))

    @host64
    def log_prior(self, theta: Any) -> Any:
        """Return the log prior density of one point (float) or of (n, p) points (array)."""
        points = self.points(theta)
        values = np.asarray(_log_priors(self.density(), np.atleast_2d(points)))
        return float(values[0]) if points.ndim == 1 else values

    def ln_prior(self, theta: Any) -> Any:
        """Return the log prior density: another name of :meth:`log_prior`."""
        return self.log_prior(theta)

    def points(self, theta: Any, argument: str = "theta") -> np.ndarray:
        """Return a dict, one point or several points as a float64 array (p,) or (n, p)."""
        if isinstance(theta, Mapping):
            unknown = [k for k in theta if k not in self._definitions]
            missing = [k for k in self._definitions if k not in theta]
            if unknown or missing:
                raise ModelSpecError(
                    f"{argument}: missing {some(missing) or 'nothing'}, unknown "
                    f"{some(unknown) or 'nothing'}; the parameters are {some(self.names(), 12)}."
                    + (nearest(str(unknown[0]), self.names()) if unknown else "")
                )
            theta = np.stack([np.asarray(theta[k], float) for k in self._definitions], axis=-1)
        points = np.asarray(theta, float)
        if points.ndim not in (1, 2) or points.shape[-1] != len(self):
            raise DataError(
                f"{argument} has shape {points.shape}, but there are {len(self)} parameters "
                f"({some(self.names(), 12)}): give ({len(self)},) or (n, {len(self)})."
                if len(self) != 1
                else f"{argument} has shape {points.shape}, but there is 1 parameter "
                f"({self.names()[0]}): give (1,) or (n, 1)."
            )
        return points

    def __iter__(self) -> Iterator[ParameterDef]:
        return iter(self._definitions.values())

    def __len__(self) -> int:
        return len(self._definitions)

    def __getitem__(self, name: str) -> AbstractPrior:
        if name not in self._definitions:
            raise KeyError(f"no parameter {name!r}.{nearest(name, self.names())}")
        return self._definitions[name].prior

    def __repr__(self) -> str:
        inner = ", ".join(f"{d.name}: {d.prior!r}" for d in self)
        return f"ParameterSet({inner})"


def _check_domain(name: str, prior: AbstractPrior, bijector: AbstractBijector) -> None:
    low, high = bijector.domain
    lower, upper = (float(v) for v in prior.support)
    if lower < low or upper > high:
        raise ModelSpecError(
            f"{name}: transform {bijector.name!r} reaches ({low}, {high}), but the support of its "
            f"prior is ({lower}, {upper}). Choose another transform, or a Bound on the prior."
        )


@functools.partial(outer_jit, static_argnums=0)
def _draw(n: int, density: PriorDensity, key: Any) -> Array:
    return density.draw(key, n, jnp.float64)


@functools.partial(outer_jit, static_argnums=0)
def _draw_lhs(n: int, density: PriorDensity, key: Any) -> Array:
    return density.draw_lhs(key, n, jnp.float64)


@outer_jit
def _log_priors(density: PriorDensity, theta: Array) -> Array:
    return jax.vmap(density.log_prob)(theta)
