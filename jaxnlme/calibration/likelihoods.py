"""Likelihoods: how model output and observations of one variable give a log density.

Every likelihood is a small pytree with ``log_prob(data, model, params)`` for traced code, and
``prepare(observation)`` on the host, which checks that the data suit it. A new one needs both.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np

from jaxnlme._errors import DataError, ModelSpecError, some
from jaxnlme._typing import Array, Float
from jaxnlme.calibration.target import Observation, check_relative

__all__ = [
    "AbstractLikelihood",
    "FunctionLikelihood",
    "GaussianLikelihood",
    "LogNormalLikelihood",
    "NegativeBinomialLikelihood",
    "PoissonLikelihood",
    "StudentTLikelihood",
    "VariableData",
]

_LOG_2PI = 1.8378770664093453


class VariableData(eqx.Module):
    """Observations of one variable as arrays, in order of time.

    ``sigma`` (n,) or None; ``sigma_name``, ``scale_name``, ``rho_name`` are parameters that take
    the place of numbers. ``index`` (n,) picks the observed times from the model's output.
    """

    times: Float[Array, "n"]
    values: Float[Array, "n"]
    sigma: Float[Array, "n"] | None
    relative: Float[Array, "n"] | None
    whiten: Float[Array, "n n"] | None
    log_norm: Any
    reference_weights: Float[Array, "n"] | None
    scale: Any
    rho: Any
    index: Any = None
    name: str = eqx.field(static=True, default="")
    sigma_name: str | None = eqx.field(static=True, default=None)
    discrepancy: bool = eqx.field(static=True, default=False)
    scale_name: str | None = eqx.field(static=True, default=None)
    rho_name: str | None = eqx.field(static=True, default=None)
    reference: str = eqx.field(static=True, default="none")

    def names_used(self) -> list[str]:
        """Return the parameters that the data refer to."""
        return [n for n in (self.sigma_name, self.scale_name, self.rho_name) if n is not None]

    def variance(self, params: dict[str, Any]) -> Float[Array, "n"]:
        """Return the error variance of each observation."""
        total = jnp.zeros_like(self.values)
        if self.sigma is not None:
            total = total + self.sigma**2
        if self.sigma_name is not None:
            total = total + params[self.sigma_name] ** 2
        if self.relative is not None:
            total = total + self.relative**2
        return total

    def centred(self, model: Float[Array, "n"]) -> Float[Array, "n"]:
        """Return the model as anomalies, where the reference method is "subtract"."""
        if self.reference != "subtract":
            return model
        assert self.reference_weights is not None
        return model - jnp.sum(self.reference_weights * model)


def prepare(observation: Observation, relative_error: float | None = None) -> VariableData:
    """Return the arrays of an observation; the covariance is inverted here, once, on the host."""
    o = observation
    order = np.argsort(o.times, kind="stable")
    values, weights, reference = o.values[order], None, "none"
    if o.reference is not None:
        reference = o.reference[2]
        inside = o.in_reference[order].astype(float)
        if reference == "subtract":
            weights = inside / inside.sum()
            values = values - weights @ values
    fraction = o.relative_error
    if relative_error is not None:
        if o.reference is not None:
            raise ModelSpecError(
                f"{o.name}: relative_error={relative_error} of the likelihood has no meaning for "
                "anomalies from a reference period, whose zero is arbitrary."
            )
        fraction = check_relative(o.name, relative_error, o.values)
    sigma_name = o.uncertainties if isinstance(o.uncertainties, str) else None
    sigma = o.uncertainties[order] if isinstance(o.uncertainties, np.ndarray) else None
    whiten, log_norm = None, 0.0
    if o.covariance is not None:
        root = np.linalg.cholesky(o.covariance[np.ix_(order, order)])
        whiten = np.linalg.solve(root, np.eye(len(order)))
        log_norm = float(np.log(np.diag(root)).sum())
    d = o.discrepancy
    if d is not None and whiten is not None:
        raise ModelSpecError(
            f"{o.name}: covariance= and discrepancy= together; add the discrepancy to the covariance."
        )
    return VariableData(
        times=o.times[order],
        values=values,
        sigma=sigma,
        relative=None if fraction is None else fraction * np.abs(o.values[order]),
        whiten=whiten,
        log_norm=log_norm,
        reference_weights=weights,
        scale=None if d is None or isinstance(d.scale, str) else float(d.scale),
        rho=None if d is None or isinstance(d.rho, str) else float(d.rho),
        name=o.name,
        sigma_name=sigma_name,
        discrepancy=d is not None,
        scale_name=d.scale if d is not None and isinstance(d.scale, str) else None,
        rho_name=d.rho if d is not None and isinstance(d.rho, str) else None,
        reference=reference,
    )


class AbstractLikelihood(eqx.Module):
    """How observations scatter around the model."""

    @abc.abstractmethod
    def log_prob(
        self, data: VariableData, model: Float[Array, "n"], params: dict[str, Any]
    ) -> Float[Array, ""]:
        """Return the log density of the observations, constants included. Traced code."""

    @abc.abstractmethod
    def prepare(self, observation: Observation) -> VariableData:
        """Check the observations and return their arrays."""

    def names_used(self) -> list[str]:
        """Return the parameters that this likelihood reads."""
        return []

    def simulate(
        self, key: Any, data: VariableData, model: Float[Array, "n"], params: dict[str, Any]
    ) -> Float[Array, "n"]:
        """Draw replicated observations, for posterior predictive checks."""
        raise ModelSpecError(f"{type(self).__name__} cannot simulate observations.")

    def pointwise(
        self, data: VariableData, model: Float[Array, "n"], params: dict[str, Any]
    ) -> Float[Array, "n"]:
        """Return the log density of each observation alone, for LOO."""
        raise ModelSpecError(f"{type(self).__name__} has no density of single observations.")


def _needs_scale(observation: Observation, extra: Any, name: str) -> None:
    o = observation
    if (
        o.uncertainties is None
        and o.covariance is None
        and o.relative_error is None
        and extra is None
    ):
        raise ModelSpecError(
            f"{o.name}: {name} needs uncertainties; give them in add_variable (numbers or the name "
            "of a parameter), or relative_error=."
        )


def _independent_only(observation: Observation, name: str) -> None:
    o = observation
    if o.covariance is not None or o.discrepancy is not None:
        raise ModelSpecError(f"{o.name}: {name} has independent errors; leave covariance and "
                             "discrepancy out, or use GaussianLikelihood.")  # fmt: skip
    if o.reference is not None and o.reference[2] == "exact":
        raise ModelSpecError(
            f"{o.name}: {name} has no exact likelihood of anomalies; use "
            "with_reference_period(..., method='subtract') or GaussianLikelihood."
        )


def _no_anomalies(observation: Observation, name: str) -> None:
    if observation.reference is not None:
        raise ModelSpecError(f"{observation.name}: {name} needs absolute values, not anomalies.")


class GaussianLikelihood(AbstractLikelihood):
    """Normal errors, independent or correlated, of absolute values or of anomalies.

    Parameters
    ----------
    relative_error
        Standard deviation as a fraction of the absolute value, for all variables; it adds in
        quadrature to uncertainties that are there. Not for anomalies or values of 0.

    Notes
    -----
    With the covariance S and residuals r: ``-0.5 r' S^-1 r - 0.5 log det S - n/2 log 2 pi``.
    Under an exact reference period the unknown offset c of ``r - c`` has a flat prior and is
    integrated out: with ``c = 1' S^-1 r / 1' S^-1 1`` the residuals become r - c, and
    ``0.5 log(2 pi / 1' S^-1 1)`` is added.

    Examples
    --------
    >>> GaussianLikelihood(relative_error=0.05).relative_error
    0.05
    """

    relative_error: float | None = eqx.field(static=True, default=None)

    def prepare(self, observation):
        _needs_scale(observation, self.relative_error, "GaussianLikelihood")
        return prepare(observation, self.relative_error)

    def log_prob(self, data, model, params):
        residual = data.values - data.centred(model)
        if data.discrepancy:
            error, ones, log_norm = _filtered(data, residual, params)
        elif data.whiten is not None:
            error, log_norm = data.whiten @ residual, data.log_norm
            ones = jnp.sum(data.whiten, axis=1)
        else:
            sigma = jnp.sqrt(data.variance(params))
            error, ones, log_norm = residual / sigma, 1 / sigma, jnp.sum(jnp.log(sigma))
        value = -log_norm - 0.5 * _LOG_2PI * data.values.shape[0]
        if data.reference == "exact":
            precision = jnp.sum(ones**2)
            error = error - ones * (jnp.sum(ones * error) / precision)
            value = value + 0.5 * (_LOG_2PI - jnp.log(precision))
        return value - 0.5 * jnp.sum(error**2)

    def simulate(self, key, data, model, params):
        noise = jax.random.normal(key, model.shape, model.dtype)
        if data.whiten is not None:
            return model + jnp.linalg.inv(data.whiten) @ noise
        out = model + jnp.sqrt(data.variance(params)) * noise
        if data.discrepancy:
            out = out + _ar1_path(jax.random.fold_in(key, 1), data, params)
        return out

    def pointwise(self, data, model, params):
        if data.discrepancy or data.whiten is not None:
            return super().pointwise(data, model, params)
        residual = data.values - data.centred(model)
        variance = data.variance(params)
        if data.reference == "exact":
            residual = residual - jnp.sum(residual / variance) / jnp.sum(1 / variance)
        return -0.5 * (residual**2 / variance + jnp.log(variance) + _LOG_2PI)


def _ar1(data: VariableData, params: dict[str, Any]) -> tuple[Any, Float[Array, "n"]]:
    """Return the stationary variance and the correlation to the observation before (first: 0)."""
    scale = data.scale if data.scale_name is None else params[data.scale_name]
    rho = data.rho if data.rho_name is None else params[data.rho_name]
    gaps = data.times[1:] - data.times[:-1]
    carried = jnp.exp(jnp.log(rho) * gaps)
    return scale**2, jnp.concatenate([jnp.zeros_like(carried[:1]), carried])


def _filtered(
    data: VariableData, residual: Float[Array, "n"], params: dict[str, Any]
) -> tuple[Float[Array, "n"], Float[Array, "n"], Float[Array, ""]]:
    """Whiten residuals, and ones, of an AR(1) process seen with independent errors (Kalman filter)."""
    stationary, phi = _ar1(data, params)
    stationary = jnp.asarray(stationary, residual.dtype)

    def one(carry, row):
        mean, mean_ones, variance = carry
        carried, noise, r = row
        mean, mean_ones = carried * mean, carried * mean_ones
        variance = carried**2 * variance + (1 - carried**2) * stationary
        total = variance + noise
        gain = variance / total
        error, error_ones = r - mean, 1 - mean_ones
        carry = (mean + gain * error, mean_ones + gain * error_ones, variance * (1 - gain))
        root = jnp.sqrt(total)
        return carry, (error / root, error_ones / root, jnp.log(root))

    zero = jnp.zeros_like(residual[0])
    rows = (phi, data.variance(params), residual)
    _, (error, ones, logs) = jax.lax.scan(one, (zero, zero, zero), rows)
    return error, ones, jnp.sum(logs)


def _ar1_path(key: Any, data: VariableData, params: dict[str, Any]) -> Float[Array, "n"]:
    stationary, phi = _ar1(data, params)
    shocks = jnp.sqrt(stationary * (1 - phi**2)) * jax.random.normal(key, phi.shape, phi.dtype)

    def one(state, row):
        state = row[0] * state + row[1]
        return state, state

    return jax.lax.scan(one, jnp.zeros_like(shocks[0]), (phi, shocks))[1]


class StudentTLikelihood(AbstractLikelihood):
    """Independent errors with Student's t distribution: outliers weigh little.

    Parameters
    ----------
    df
        Degrees of freedom, or the name of a parameter. The uncertainties are the scale.
    """

    df: Any = 4.0
    df_name: str | None = eqx.field(static=True, default=None)

    def __init__(self, df: Any = 4.0):
        self.df_name = df if isinstance(df, str) else None
        self.df = None if isinstance(df, str) else float(df)
        if self.df is not None and not self.df > 0:
            raise ModelSpecError(f"StudentTLikelihood: df={df!r} must be positive.")

    def names_used(self):
        return [] if self.df_name is None else [self.df_name]

    def prepare(self, observation):
        _needs_scale(observation, None, "StudentTLikelihood")
        _independent_only(observation, "StudentTLikelihood")
        return prepare(observation)

    def log_prob(self, data, model, params):
        return jnp.sum(self.pointwise(data, model, params))

    def pointwise(self, data, model, params):
        df = jnp.asarray(self.df if self.df_name is None else params[self.df_name], model.dtype)
        variance = data.variance(params)
        z2 = (data.values - data.centred(model)) ** 2 / variance
        constant = jsp.gammaln((df + 1) / 2) - jsp.gammaln(df / 2) - 0.5 * jnp.log(df * np.pi)
        return constant - 0.5 * jnp.log(variance) - 0.5 * (df + 1) * jnp.log1p(z2 / df)

    def simulate(self, key, data, model, params):
        df = jnp.asarray(self.df if self.df_name is None else params[self.df_name], model.dtype)
        noise = jax.random.t(key, df, model.shape, model.dtype)
        return model + jnp.sqrt(data.variance(params)) * noise


class LogNormalLikelihood(AbstractLikelihood):
    """Positive values whose logarithm is normal around the logarithm of the model.

    The uncertainties are standard deviations on the log scale. ``-sum(log values)`` is included.
    """

    def prepare(self, observation):
        _needs_scale(observation, None, "LogNormalLikelihood")
        _independent_only(observation, "LogNormalLikelihood")
        _no_anomalies(observation, "LogNormalLikelihood")
        bad = np.flatnonzero(observation.values <= 0)
        if len(bad):
            raise DataError(
                f"{observation.name}: LogNormalLikelihood needs positive values, but position "
                f"{some(bad)} is not."
            )
        return prepare(observation)

    def log_prob(self, data, model, params):
        return jnp.sum(self.pointwise(data, model, params))

    def pointwise(self, data, model, params):
        variance = data.variance(params)
        ok = model > 0
        log_y = jnp.log(data.values)
        r = log_y - jnp.log(jnp.where(ok, model, 1))
        value = -0.5 * (r**2 / variance + jnp.log(variance) + _LOG_2PI) - log_y
        return jnp.where(ok, value, -jnp.inf)

    def simulate(self, key, data, model, params):
        noise = jax.random.normal(key, model.shape, model.dtype)
        return model * jnp.exp(jnp.sqrt(data.variance(params)) * noise)


def _counts(observation: Observation, name: str) -> None:
    _no_anomalies(observation, name)
    o = observation
    if o.uncertainties is not None or o.covariance is not None or o.relative_error is not None:
        raise ModelSpecError(f"{o.name}: {name} has no use for uncertainties; leave them out.")
    bad = np.flatnonzero((o.values < 0) | (o.values != np.round(o.values)))
    if len(bad):
        raise DataError(
            f"{o.name}: {name} needs counts 0, 1, ...; position {some(bad)} is not one."
        )


class PoissonLikelihood(AbstractLikelihood):
    """Counts with the model as mean."""

    def prepare(self, observation):
        _counts(observation, "PoissonLikelihood")
        return prepare(observation)

    def log_prob(self, data, model, params):
        return jnp.sum(self.pointwise(data, model, params))

    def pointwise(self, data, model, params):
        del params
        ok = (model > 0) | ((model == 0) & (data.values == 0))
        value = jsp.xlogy(data.values, jnp.where(model > 0, model, 1)) - model
        return jnp.where(ok, value - jsp.gammaln(data.values + 1), -jnp.inf)

    def simulate(self, key, data, model, params):
        return jax.random.poisson(key, model).astype(model.dtype)


class NegativeBinomialLikelihood(AbstractLikelihood):
    """Counts with the model mu as mean and variance ``mu + mu**2 / theta``.

    Parameters
    ----------
    theta
        Size, a positive number or the name of a parameter.
    """

    theta: Any = 1.0
    theta_name: str | None = eqx.field(static=True, default=None)

    def __init__(self, theta: Any = "theta"):
        self.theta_name = theta if isinstance(theta, str) else None
        self.theta = None if isinstance(theta, str) else float(theta)
        if self.theta is not None and not self.theta > 0:
            raise ModelSpecError(f"NegativeBinomialLikelihood: theta={theta!r} must be positive.")

    def names_used(self):
        return [] if self.theta_name is None else [self.theta_name]

    def prepare(self, observation):
        _counts(observation, "NegativeBinomialLikelihood")
        return prepare(observation)

    def _size(self, params: dict[str, Any], dtype: Any) -> Array:
        return jnp.asarray(
            self.theta if self.theta_name is None else params[self.theta_name], dtype
        )

    def log_prob(self, data, model, params):
        return jnp.sum(self.pointwise(data, model, params))

    def pointwise(self, data, model, params):
        y, size = data.values, self._size(params, model.dtype)
        ok = (model > 0) & (size > 0)
        mu, size = jnp.where(ok, model, 1), jnp.where(size > 0, size, 1)
        value = jsp.gammaln(y + size) - jsp.gammaln(size) - jsp.gammaln(y + 1)
        value = value - size * jnp.log1p(mu / size) + y * (jnp.log(mu) - jnp.log(mu + size))
        return jnp.where(ok, value, -jnp.inf)

    def simulate(self, key, data, model, params):
        size = self._size(params, model.dtype)
        first, second = jax.random.split(key)
        rate = jax.random.gamma(first, size, model.shape, model.dtype) * model / size
        return jax.random.poisson(second, rate).astype(model.dtype)


class FunctionLikelihood(AbstractLikelihood):
    """A user's own log density.

    Parameters
    ----------
    function
        ``function(values, model, sigma, params) -> scalar`` in ``jax.numpy``, for one variable:
        observations (n,), model output at their times (n,), standard deviations (n,) or zeros, and
        the dict of parameters. Define it once at module level.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> def laplace(values, model, sigma, params):
    ...     return -jnp.sum(jnp.abs(values - model) / sigma + jnp.log(2 * sigma))
    >>> likelihood = FunctionLikelihood(laplace)
    """

    function: Callable = eqx.field(static=True)

    def __check_init__(self):
        if not callable(self.function):
            raise ModelSpecError("FunctionLikelihood: function= must be callable.")

    def prepare(self, observation):
        _independent_only(observation, "FunctionLikelihood")
        return prepare(observation)

    def log_prob(self, data, model, params):
        sigma = jnp.sqrt(data.variance(params))
        return self.function(data.values, data.centred(model), sigma, params)
