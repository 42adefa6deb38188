"""Quasi-likelihood families: a variance function and an estimated dispersion, no density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme.families._base import AbstractExponentialFamily, AbstractFamily, need_counts
from jaxnlme.families.binomial import Binomial, binomial_deviance
from jaxnlme.families.poisson import Poisson, poisson_deviance
from jaxnlme.links import Identity
from jaxnlme.numerics.special import deviance_gap

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


class _NoDistribution(AbstractFamily):
    """Quasi families have two moments and nothing more."""

    def cdf(self, y, mu, *others, weights=None):
        return AbstractFamily.cdf(self, y, mu, *others)

    def quantile(self, p, mu, *others, weights=None):
        return AbstractFamily.quantile(self, p, mu, *others)

    def sample(self, rng, weights, mu, *others):
        return AbstractFamily.sample(self, rng, weights, mu, *others)

    def log_tails(self, y, mu, *others):
        return AbstractFamily.log_tails(self, y, mu, *others)


class QuasiPoisson(_NoDistribution, Poisson):
    """``Var = phi mu / w``: the estimates of :class:`Poisson`, errors scaled by the Pearson dispersion."""

    name = "quasi_poisson"
    has_dispersion = True
    has_likelihood = False
    discrete = False

    def check_response(self, response):
        need_counts(response, whole=False)


class QuasiBinomial(_NoDistribution, Binomial):
    """``Var = phi mu (1 - mu) / w``: the estimates of :class:`Binomial`, errors scaled."""

    name = "quasi_binomial"
    has_dispersion = True
    has_likelihood = False
    discrete = False


_VARIANCES: dict[str, tuple[Callable, Callable, Callable]] = {
    # variance, unit deviance, where the mean may be
    "constant": (jnp.ones_like, lambda y, m: (y - m) ** 2, jnp.isfinite),
    "mu": (lambda m: m, poisson_deviance, lambda m: m > 0),
    "mu^2": (lambda m: m**2, lambda y, m: 2 * deviance_gap((y - m) / m), lambda m: m > 0),
    "mu^3": (lambda m: m**3, lambda y, m: ((y - m) / m) ** 2 / y, lambda m: m > 0),
    "mu(1-mu)": (lambda m: m * (1 - m), binomial_deviance, lambda m: (m > 0) & (m < 1)),
}


class Quasi(AbstractExponentialFamily):
    """Quasi-likelihood with ``Var = phi V(mu) / w``; default link identity, as in R.

    Parameters
    ----------
    variance
        ``"constant"``, ``"mu"``, ``"mu^2"``, ``"mu^3"``, ``"mu(1-mu)"``, or a function of ``mu`` written with
        ``jax.numpy``; its deviance is then ``2 int_mu^y (y - s) / V(s) ds`` by a 40-point Gauss rule.

    Raises
    ------
    ModelSpecError
        Neither a known name nor a function.

    References
    ----------
    Wedderburn (1974), Biometrika 61, 439-447.

    Examples
    --------
    >>> import numpy as np
    >>> float(Quasi(variance="mu^2").variance(np.float32(3.0)))
    9.0
    """

    label: str = eqx.field(static=True)
    function: Callable[[Any], Any] | None = eqx.field(static=True)

    name = "quasi"
    default_link = Identity()
    has_dispersion = True
    has_likelihood = False

    def __init__(self, variance: Any = "constant") -> None:
        if callable(variance):
            self.label, self.function = "function", variance
            return
        name = str(variance).replace(" ", "").replace("**", "^").replace("mu*(", "mu(")
        name = {"mu(1-mu)^1": "mu(1-mu)", "1": "constant"}.get(name, name)
        if name not in _VARIANCES:
            raise ModelSpecError(
                f"Quasi(variance={variance!r}): expected one of {', '.join(map(repr, _VARIANCES))} or a function "
                f"of mu.{nearest(name, _VARIANCES)}"
            )
        self.label, self.function = name, None

    def variance(self, mu):
        if self.function is not None:
            return self.function(mu)
        return _VARIANCES[self.label][0](mu)

    def unit_deviance(self, y, mu, *others):
        if self.function is None:
            return _VARIANCES[self.label][1](y, mu)
        both = (y > 0) & (mu > 0)
        safe_mu, safe_y = jnp.where(both, mu, 1), jnp.where(both, y, 1)
        low = jnp.where(both, jnp.log(safe_mu), mu)
        half = 0.5 * jnp.where(both, jnp.log1p((safe_y - safe_mu) / safe_mu), y - mu)

        def rule(node, weight):
            at = low + half * (1 + node)
            s = jnp.where(both, jnp.exp(jnp.where(both, at, 0)), at)
            stretch = jnp.where(both, s, 1)
            return weight * half * stretch * (y - s) / self.variance(s)

        nodes, weights = (jnp.asarray(v, mu.dtype) for v in (_NODES, _WEIGHTS))
        return 2 * jnp.sum(jax.vmap(rule)(nodes, weights), axis=0)

    def valid(self, mu, *others):
        if self.function is None:
            return jnp.isfinite(mu) & _VARIANCES[self.label][2](mu)
        return jnp.isfinite(mu) & (self.function(mu) > 0)

    def log_prob(self, y, mu, *others):
        return -0.5 * self.unit_deviance(y, mu)  # the quasi-likelihood; it does not integrate to 1

    def start_mean(self, y, weights):
        if self.label == "mu(1-mu)":
            return (weights * y + 0.5) / (weights + 1)
        if self.label in ("constant", "function"):
            return y
        return jnp.where(y == 0, y + 0.1, y)

    def check_response(self, response):
        positive, unit = self.label in ("mu^2", "mu^3"), self.label == "mu(1-mu)"
        bad = response.values <= 0 if self.label == "mu^3" else response.values < 0
        if positive or self.label == "mu":
            response.refuse(bad, "is negative or 0", f"Quasi(variance={self.label!r}) needs y > 0.")
        if unit:
            response.refuse(
                ~((response.values >= 0) & (response.values <= 1)),
                "is outside [0, 1]",
                "Quasi(variance='mu(1-mu)') takes proportions.",
            )
