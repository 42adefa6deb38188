"""What a prior is: the base class, quantiles by bisection, float64 on the host.

Every prior is a small pytree with ``log_prob, cdf, icdf, bounds, sample`` and a map between its
support and the whole line. Numbers and numpy arrays are evaluated in float64 on the host and give
numpy; JAX arrays (also traced ones) are followed in their own dtype.
"""

from __future__ import annotations

import abc
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError
from jaxnlme._precision import host64
from jaxnlme._typing import Array

__all__ = ["AbstractPrior", "as_key", "log_diff_exp"]

LOG_2 = 0.6931471805599453
INF = float("inf")


def number(value: Any) -> Any:
    """Make plain numbers Python floats, so that Normal(0, 1) and Normal(0.0, 1.0) compile once."""
    if isinstance(value, (int, np.integer, np.floating)) and not isinstance(value, bool):
        return float(value)
    return value


def leaf(**options: Any) -> Any:
    return eqx.field(converter=number, **options)


def concrete(value: Any) -> bool:
    return not isinstance(value, Tracer)


def check_finite(name: str, **values: Any) -> None:
    for key, value in values.items():
        if concrete(value) and not np.all(np.isfinite(value)):
            raise ModelSpecError(f"{name}: {key}={value!r} must be a finite number.")


def check_positive(name: str, **values: Any) -> None:
    check_finite(name, **values)
    for key, value in values.items():
        if concrete(value) and not np.all(np.asarray(value) > 0):
            raise ModelSpecError(f"{name}: {key}={value!r} must be positive.")


def check_ordered(name: str, lower: Any, upper: Any) -> None:
    if concrete(lower) and concrete(upper) and not np.all(np.asarray(lower) < np.asarray(upper)):
        raise ModelSpecError(
            f"{name}: lower={lower!r} must be below upper={upper!r}. Swap the two bounds."
        )


def log_diff_exp(a: Any, b: Any) -> Array:
    """Return ``log(exp(a) - exp(b))`` for a >= b without loss of digits; -inf where they are equal.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(log_diff_exp(np.float32(0), np.log(np.float32(0.75)))), 5)
    -1.38629
    """
    d = jnp.minimum(b - jnp.where(jnp.isfinite(a), a, 0), 0)
    near = d > -LOG_2
    safe_near = jnp.where(near & (d < 0), d, -1)
    safe_far = jnp.where(near, -1, d)
    gap = jnp.where(near, jnp.log(-jnp.expm1(safe_near)), jnp.log1p(-jnp.exp(safe_far)))
    return jnp.where((d < 0) & jnp.isfinite(a), a + gap, -jnp.inf)


class AbstractPrior(eqx.Module):
    """A density of one parameter on its natural scale.

    A new prior implements ``_log_prob`` and ``support``; ``_log_cdf`` and ``_log_sf`` give it
    ``cdf``, ``icdf``, latin hypercube starts and :class:`Bound`, and ``_draw`` a faster sampler.
    """

    @abc.abstractmethod
    def _log_prob(self, x: Any) -> Array:
        """Return the log density, elementwise; -inf outside the support. Traced code."""

    @property
    def support(self) -> tuple[Any, Any]:
        """Lower and upper end of the support, -inf and inf where there is none."""
        return (-INF, INF)

    def _log_cdf(self, x: Any) -> Array:
        raise ModelSpecError(
            f"{type(self).__name__} has no distribution function, which cdf, icdf and Bound need: "
            "write its _log_cdf and _log_sf."
        )

    def _log_sf(self, x: Any) -> Array:
        return log_diff_exp(jnp.zeros_like(x), self._log_cdf(x))

    def _icdf(self, q: Any) -> Array:
        return _bisect(self, q)

    def _draw(self, key: Any, shape: tuple[int, ...], dtype: Any) -> Array:
        tiny = jnp.finfo(dtype).eps / 4
        u = jax.random.uniform(key, shape, dtype)
        return self._icdf(jnp.clip(u, tiny, 1 - tiny))

    # ---- what users call ------------------------------------------------------------------------

    def log_prob(self, x: Any) -> Array:
        """Return the log density, elementwise; -inf outside the support."""
        return _evaluate("_log_prob", self, x)

    def ln_pdf(self, x: Any) -> Array:
        """Return the log density: another name of :meth:`log_prob`."""
        return self.log_prob(x)

    def cdf(self, x: Any) -> Array:
        """Return the distribution function, elementwise."""
        return _evaluate("_cdf", self, x)

    def icdf(self, q: Any) -> Array:
        """Return quantiles, elementwise; NaN outside [0, 1]."""
        return _evaluate("_icdf_checked", self, q)

    def bounds(self) -> tuple[float | None, float | None]:
        """Return the ends of the support, None where it is open."""
        lower, upper = (float(v) for v in self.support)
        return (None if lower == -INF else lower, None if upper == INF else upper)

    def sample(self, n: int, key: Any = 0) -> np.ndarray:
        """Return (n,) independent draws in float64; ``key`` is an int or a ``jax.random.key``."""
        return _sample(self, int(n), key)

    def to_unconstrained(self, x: Any) -> Array:
        """Map the support to the whole line: identity, logarithm of the distance to a bound, or logit."""
        return _evaluate("_to_line", self, x)

    def from_unconstrained(self, z: Any) -> Array:
        """Invert :meth:`to_unconstrained`."""
        return _evaluate("_from_line", self, z)

    # ---- shared pieces --------------------------------------------------------------------------

    def _cdf(self, x: Any) -> Array:
        return jnp.exp(self._log_cdf(x))

    def _icdf_checked(self, q: Any) -> Array:
        inside = (q >= 0) & (q <= 1)
        return jnp.where(inside, self._icdf(jnp.where(inside, q, 0.5)), jnp.nan)

    def _ends(self) -> tuple[bool, bool]:
        lower, upper = self.support
        return (
            not (isinstance(lower, float) and lower == -INF),
            not (isinstance(upper, float) and upper == INF),
        )

    def _to_line(self, x: Any) -> Array:
        low, high = self._ends()
        lower, upper = self.support
        if low and high:
            return jnp.log(x - lower) - jnp.log(upper - x)
        if low:
            return jnp.log(x - lower)
        if high:
            return -jnp.log(upper - x)
        return x

    def _from_line(self, z: Any) -> Array:
        low, high = self._ends()
        lower, upper = self.support
        if low and high:
            near = (upper - lower) * jax.nn.sigmoid(-jnp.abs(z))  # no digits lost at either end
            return jnp.clip(jnp.where(z < 0, lower + near, upper - near), lower, upper)
        if low:
            return lower + jnp.exp(z)
        if high:
            return upper - jnp.exp(-z)
        return z

    def _line_log_jacobian(self, z: Any) -> Array:
        """Return log |d from_unconstrained / d z|."""
        low, high = self._ends()
        if low and high:
            lower, upper = self.support
            return jnp.log(upper - lower) - jax.nn.softplus(z) - jax.nn.softplus(-z)
        if low:
            return z
        if high:
            return -z
        return jnp.zeros_like(z)


def _evaluate(method: str, prior: AbstractPrior, x: Any) -> Array:
    """Follow JAX arrays; give numpy in float64 for anything else."""
    leaves = jax.tree.leaves((prior, x))
    if any(isinstance(leaf, jax.Array | Tracer) for leaf in leaves):
        return getattr(prior, method)(jnp.asarray(x))
    return _host_evaluate(method, prior, np.asarray(x, float))


@host64
def _host_evaluate(method: str, prior: AbstractPrior, x: np.ndarray) -> Array:
    return _jitted(method, prior, x)


@functools.partial(outer_jit, static_argnums=0)
def _jitted(method: str, prior: AbstractPrior, x: Array) -> Array:
    return jnp.asarray(getattr(prior, method)(x), x.dtype)


@host64
def _sample(prior: AbstractPrior, n: int, key: Any) -> Any:
    if n < 0:
        raise ModelSpecError(f"n={n}: the number of draws cannot be negative.")
    return _jitted_draw(n, prior, as_key(key))


@functools.partial(outer_jit, static_argnums=0)
def _jitted_draw(n: int, prior: AbstractPrior, key: Any) -> Array:
    return prior._draw(key, (n,), jnp.float64)


def as_key(key: Any) -> Any:
    """Return a typed key of an int or of a ``jax.random.key``.

    Raises
    ------
    ModelSpecError
        ``key`` is neither.

    Examples
    --------
    >>> as_key(3).shape
    ()
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return jax.random.key(int(key))
    if isinstance(key, jax.Array) and key.shape == ():
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
        raise ModelSpecError("key: old-style uint32 keys are not read; give jax.random.key(...).")
    raise ModelSpecError(f"key={key!r}: give an int or one jax.random.key(...).")


def _bisect(prior: AbstractPrior, q: Any) -> Array:
    """Invert the distribution function by bisection on the line.

    The smaller of the two tails decides, in logarithms, so that quantiles far out keep their
    digits. The line of an unbounded prior is ``loc + scale sinh(t)``.
    """
    q = jnp.asarray(q)
    dtype = q.dtype
    bounded = any(prior._ends())
    loc, scale = getattr(prior, "loc", 0.0), getattr(prior, "scale", 1.0)

    def place(t: Any) -> Array:
        return prior._from_line(t) if bounded else loc + scale * jnp.sinh(t)

    log_q, log_p = jnp.log(q), jnp.log1p(-q)
    upper_tail = jnp.greater(q, 0.5)

    def too_high(x: Any) -> Array:
        return jnp.where(upper_tail, prior._log_sf(x) < log_p, prior._log_cdf(x) > log_q)

    limit = 0.98 * np.log(float(jnp.finfo(dtype).max))
    shape = jnp.shape(q)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        high_side = too_high(place(middle))
        return jnp.where(high_side, low, middle), jnp.where(high_side, middle, high)

    ends = (jnp.full(shape, -limit, dtype), jnp.full(shape, limit, dtype))
    low, high = jax.lax.fori_loop(0, 64, halve, ends)
    x = place(0.5 * (low + high))
    lower, upper = prior.support
    x = jnp.where(q <= 0, lower, jnp.where(q >= 1, upper, x))
    return jnp.asarray(x, dtype)
