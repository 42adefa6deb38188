"""Families from a user's log density."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from jaxnlme._errors import ModelSpecError
from jaxnlme.families._base import AbstractFamily, Parameter, weighted_mean
from jaxnlme.links import AbstractLink, as_link


class _Custom(AbstractFamily):
    """A family whose density is a function; everything else follows by differentiation."""

    function: Callable[..., Any] = eqx.field(static=True)
    label: str = eqx.field(static=True)
    link: AbstractLink
    extra: tuple[Parameter, ...]
    start: tuple[float, ...] = eqx.field(static=True)
    variance_function: Callable[..., Any] | None = eqx.field(static=True)
    counts: bool = eqx.field(static=True)

    @property
    def name(self):
        return self.label

    @property
    def default_link(self):
        return self.link

    @property
    def parameters(self):
        return self.extra

    @property
    def discrete(self):
        return self.counts

    def valid(self, mu, *others):
        inside = jnp.isfinite(mu)
        for other in others:
            inside = inside & jnp.isfinite(other)
        return inside

    def log_prob(self, y, mu, *others):
        return self.function(y, mu, *others)

    def variance_of(self, mu, *others):
        if self.variance_function is None:
            return jnp.full_like(mu, jnp.nan)
        return self.variance_function(mu, *others)

    def start_mean(self, y, weights):
        # one value for all rows: the mean lies inside every sensible domain, single responses may not
        return jnp.broadcast_to(weighted_mean(y, weights), weights.shape)

    def start_others(self, y, weights):
        return tuple(jnp.full((), value, weights.dtype) for value in self.start)


def custom(
    log_prob: Any,
    *,
    link: Any = "log",
    name: str = "custom",
    parameters: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    variance: Any = None,
    discrete: bool = False,
) -> AbstractFamily:
    """Make a family from one log density.

    Parameters
    ----------
    log_prob
        ``log_prob(y, mu, *parameters)``: log density of one observation, elementwise, written with ``jax.numpy``;
        twice differentiable in ``mu`` and the parameters. Define it once, at module level: each new function
        compiles anew.
    link
        Link of ``mu``.
    name
        Name for tables.
    parameters
        Further parameters in the order of the arguments: name to link, ``{"sigma": "log"}``.
    start
        Start values of the parameters; default 1 (identity link: 0).
    variance
        ``variance(mu, *parameters)``, for Pearson residuals; without it they are NaN.
    discrete
        True for counts.

    Raises
    ------
    ModelSpecError
        ``log_prob`` is not a function, or a start value has no parameter.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> def exponential(y, mu):
    ...     return -jnp.log(mu) - y / mu
    >>> family = custom(exponential, link="log", name="exponential")
    >>> float(family.log_prob(np.float32(2.0), np.float32(1.0)))
    -2.0
    """
    if not callable(log_prob):
        raise ModelSpecError(
            f"custom(log_prob={log_prob!r}): expected a function of (y, mu) written with jax.numpy."
        )
    named = dict(parameters or {})
    begin = dict(start or {})
    unknown = set(begin) - set(named)
    if unknown:
        raise ModelSpecError(
            f"custom(start=): {sorted(unknown)} are not parameters; parameters are {list(named)}."
        )
    extra = tuple(Parameter(key, as_link(value)) for key, value in named.items())
    values = tuple(
        float(begin.get(p.name, 0.0 if p.link.name == "identity" else 1.0)) for p in extra
    )
    return _Custom(log_prob, name, as_link(link), extra, values, variance, discrete)
