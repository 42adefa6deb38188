"""Censored responses: known only to lie below, above or between limits."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme.families._base import Prepared
from jaxnlme.families._bounds import (
    bound_of_rows,
    bound_values,
    check_order,
    inner_family,
    log_between,
    read_bound,
)
from jaxnlme.families._wrapped import AbstractWrapped


class Censored(AbstractWrapped):
    """A family whose responses are observed up to limits.

    Parameters
    ----------
    family
        The uncensored family or its name; a family with a dispersion takes its full-likelihood form.
    left
        A number or the name of a column of limits: rows with ``y <= left`` are left-censored at it (Tobit:
        ``left=0``). A boolean column instead marks the rows that are left-censored at their ``y``.
    right
        The same for ``y >= right``: right-censored, the true value is ``right`` or more.
    interval
        Names of two columns ``("low", "high")``: the true value lies in (low, high] (counts: low to high
        inclusive); equal ends are exact values, a missing or infinite end is open. The response is not read then.
    event
        Name of a column of 0/1, booleans, or 1/2 as in R's ``Surv``: rows without an event are right-censored at
        their ``y`` (survival times).

    Notes
    -----
    Kernels take ``y`` as rows (lower, upper, further rows of the base family), with ``lower = upper`` for exact
    values. Fitted values are means of the uncensored variable; ``weights`` multiply the log-likelihood.

    Raises
    ------
    ModelSpecError
        No limit was given, or ``interval`` with others.
    DataError
        A limit column is missing, or has its ends in the wrong order.

    References
    ----------
    Tobin (1958), Econometrica 26, 24-36; Kalbfleisch and Prentice (2002), The Statistical Analysis of Failure
    Time Data, chapter 3.

    Examples
    --------
    >>> tobit = Censored("gaussian", left=0)
    >>> survival = Censored("lognormal", event="died")
    >>> survival.columns
    ('died',)
    """

    left: Any = eqx.field(static=True)
    right: Any = eqx.field(static=True)
    interval: Any = eqx.field(static=True)
    event: Any = eqx.field(static=True)

    name = "censored"

    def __init__(
        self,
        family: Any,
        *,
        left: Any = None,
        right: Any = None,
        interval: Any = None,
        event: str | None = None,
    ) -> None:
        self.base = inner_family("Censored", family)
        self.left, self.right = read_bound(left, "left"), read_bound(right, "right")
        self.event = event
        if interval is not None:
            names = tuple(interval) if isinstance(interval, list | tuple) else ()
            if len(names) != 2 or not all(isinstance(n, str) for n in names):
                raise ModelSpecError(
                    f"Censored(interval={interval!r}): expected the names of two columns, ('low', 'high')."
                )
            if self.left is not None or self.right is not None or event is not None:
                raise ModelSpecError(
                    "Censored(interval=...): an interval has both ends; leave out left=, right= and event=."
                )
            interval = names
        elif self.left is None and self.right is None and event is None:
            raise ModelSpecError(
                "Censored(): no limit given. Use left=, right= (numbers or columns), interval=('low', 'high') or "
                "event='column'."
            )
        self.interval = interval

    @property
    def reads_response(self):
        return self.interval is None

    @property
    def columns(self):
        named = [v for v in (self.left, self.right, self.event) if isinstance(v, str)]
        return (*named, *(self.interval or ()), *self.base.columns)

    @property
    def response_width(self):
        return 1 + self.base.response_width

    def log_prob(self, y, mu, *others):
        low, high, rest = y[0], y[1], y[2:]
        exact = low == high
        open_low, open_high = jnp.isneginf(low), jnp.isposinf(high)
        one = jnp.where(open_low, jnp.where(open_high, 1, high), low)
        point = jnp.concatenate([one[None], rest]) if rest.shape[0] else one
        density = self.base.log_prob(point, mu, *others)
        below = low - 1 if self.base.discrete else low
        # an exact row must not meet an interval of width 0
        below = jnp.where(exact, -jnp.inf, below)
        bottom = jnp.concatenate([below[None], rest])
        top = jnp.concatenate([high[None], rest])
        return jnp.where(exact, density, log_between(self.base, bottom, top, mu, others))

    def mean(self, mu, *others):
        return self.base.mean(mu, *others)

    def variance_of(self, mu, *others):
        return self.base.variance_of(mu, *others)

    def observed(self, y):
        low, high = y[0], y[1]
        middle = jnp.where(jnp.isneginf(low), high, jnp.where(jnp.isposinf(high), low, high))
        return jnp.where(jnp.isfinite(low) & jnp.isfinite(high), 0.5 * (low + high), middle)

    def start_mean(self, y, weights):
        return self.base.start_mean(self._points(y), weights)

    def start_others(self, y, weights):
        return self.base.start_others(self._points(y), weights)

    def _points(self, y):
        value = self.observed(y)
        return jnp.concatenate([value[None], y[2:]]) if y.shape[0] > 2 else value

    def read_response(self, response):
        if np.ndim(response.values) != 1:
            raise DataError(f"response {response.name!r}: a censored response is one column.")
        low, high = self._limits(response)
        check_order(low, high, f"response {response.name!r}", response)
        shown = np.where(np.isfinite(low) & np.isfinite(high), 0.5 * (low + high), low)
        shown = np.where(np.isfinite(shown), shown, np.where(np.isfinite(high), high, 1.0))
        if self.base.discrete:
            shown = np.round(shown)
        prepared = self.base.read_response(dataclasses.replace(response, values=shown))
        rest = [] if prepared.y.ndim == 1 else list(prepared.y[1:])
        learned = eqx.tree_at(lambda f: f.base, self, prepared.family)
        return Prepared(learned, np.stack([low, high, *rest]), prepared.weights)

    def _limits(self, response) -> tuple[np.ndarray, np.ndarray]:
        if self.interval is not None:
            low, high = (np.asarray(response.column(c), np.float64) for c in self.interval)
            return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
        values = np.asarray(response.values, np.float64)
        low, high = values.copy(), values.copy()
        if self.left is not None:
            limit, marked = bound_values(self.left, response, "left", -np.inf)
            marked = values <= limit if marked is None else marked
            high = np.where(marked, values if limit is None else limit, high)
            low = np.where(marked, -np.inf, low)
        if self.right is not None:
            limit, marked = bound_values(self.right, response, "right", np.inf)
            marked = values >= limit if marked is None else marked
            low = np.where(marked, values if limit is None else limit, low)
            high = np.where(marked, np.inf, high)
        if self.event is not None:
            high = np.where(self._events(response), high, np.inf)
        both = np.isneginf(low) & np.isposinf(high)
        response.refuse(both, "is left- and right-censored at once", "Check the limits.")
        return low, high

    def _events(self, response) -> np.ndarray:
        column = np.asarray(response.column(self.event))
        codes = np.unique(column.astype(float))
        if set(codes) <= {0.0, 1.0}:
            return column.astype(bool)
        if set(codes) <= {1.0, 2.0}:  # R's Surv: 1 censored, 2 event
            return column == 2
        raise DataError(
            f"event column {self.event!r} must hold 0/1, booleans, or 1/2 (2 = event); found {codes[:5]}."
        )

    def cdf(self, y, mu, *others, weights=None):
        return self.base.cdf(y, mu, *others)

    def quantile(self, p, mu, *others, weights=None):
        return self.base.quantile(p, mu, *others)

    def sample(self, rng, weights, mu, *others):
        return self.base.sample(rng, np.ones_like(np.asarray(mu, float)), mu, *others)

    def between(self, y):
        return y[0], y[1]

    def recorded(self, values, column):
        named = [column(v) for v in (self.left, self.right) if isinstance(v, str)]
        if (
            self.interval is not None
            or self.event is not None
            or any(v.dtype == bool for v in named)
        ):
            return None  # when rows would be censored stands nowhere
        low = bound_of_rows(self.left, column, -np.inf)
        return np.clip(values, low, bound_of_rows(self.right, column, np.inf))
