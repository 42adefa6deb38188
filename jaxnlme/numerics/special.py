"""Special functions of the densities: exact derivatives, any dtype, elementwise.

XLA's ``lgamma`` and ``digamma`` are slow loops of scalar code and ``polygamma`` goes through ``zeta``; here
the gamma functions are a fixed shift by 8 and Stirling's series (Abramowitz and Stegun 6.1.40, 6.3.18,
6.4.11), which vectorise. Arguments are positive.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc, erfcx

from jaxnlme._typing import Array

__all__ = [
    "deviance_gap",
    "digamma",
    "digamma_gap",
    "log1mexp",
    "log_beta",
    "log_diff_exp",
    "log_factorial",
    "log_gamma",
    "log_ndtr",
    "log_rising",
    "ndtr",
    "tetragamma",
    "trigamma",
    "trigamma_gap",
]

_SHIFT = 8
_BERNOULLI = (
    1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798,
    -174611 / 330,
)  # fmt: skip
_STIRLING = tuple(b / (2 * k * (2 * k - 1)) for k, b in enumerate(_BERNOULLI[:8], 1))
_PSI = tuple(-b / (2 * k) for k, b in enumerate(_BERNOULLI[:9], 1))
_PSI1 = _BERNOULLI
_PSI2 = tuple(-(2 * k + 1) * b for k, b in enumerate(_BERNOULLI, 1))
_HALF_LOG_2PI = 0.9189385332046727
_LOG_SQRT_2PI = _HALF_LOG_2PI


def _series(coefficients: tuple[float, ...], t: Any) -> Array:
    """``c0 + c1 t + c2 t^2 + ...``."""
    total = jnp.full_like(t, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * t + c
    return total


def _float(x: Any) -> Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


@jax.custom_jvp
def log_gamma(x: Any) -> Array:
    """Logarithm of the gamma function for ``x > 0``, with derivatives of every order.

    Error 1e-14 relative, absolute near the zeros at 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(log_gamma(np.float32(5.0))), 4)
    3.1781
    """
    x = _float(x)
    small = x < _SHIFT
    product = x
    for k in range(1, _SHIFT):
        product = product * (x + k)
    z = jnp.where(small, x + _SHIFT, x)
    r = 1 / z
    stirling = (z - 0.5) * jnp.log(z) - z + _HALF_LOG_2PI + r * _series(_STIRLING, r * r)
    return stirling - jnp.where(small, jnp.log(jnp.where(small, product, 1)), 0)


@jax.custom_jvp
def digamma(x: Any) -> Array:
    """Derivative of :func:`log_gamma`."""
    x = _float(x)
    small = x < _SHIFT
    drop = sum(1 / (x + k) for k in range(_SHIFT - 1, -1, -1))
    z = jnp.where(small, x + _SHIFT, x)
    r = 1 / z
    return jnp.log(z) - 0.5 * r + r * r * _series(_PSI, r * r) - jnp.where(small, drop, 0)


@jax.custom_jvp
def trigamma(x: Any) -> Array:
    """Second derivative of :func:`log_gamma`."""
    x = _float(x)
    small = x < _SHIFT
    gain = sum((x + k) ** -2 for k in range(_SHIFT - 1, -1, -1))
    z = jnp.where(small, x + _SHIFT, x)
    r = 1 / z
    return r + 0.5 * r * r + r**3 * _series(_PSI1, r * r) + jnp.where(small, gain, 0)


def tetragamma(x: Any) -> Array:
    """Third derivative of :func:`log_gamma`; its own derivative by differentiation of the series."""
    x = _float(x)
    small = x < _SHIFT
    drop = sum((x + k) ** -3 for k in range(_SHIFT - 1, -1, -1))
    z = jnp.where(small, x + _SHIFT, x)
    r = 1 / z
    return -(r**2) - r**3 + r**4 * _series(_PSI2, r * r) - jnp.where(small, 2 * drop, 0)


@log_gamma.defjvp
def _log_gamma_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return log_gamma(x), digamma(x) * t


@digamma.defjvp
def _digamma_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return digamma(x), trigamma(x) * t


@trigamma.defjvp
def _trigamma_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return trigamma(x), tetragamma(x) * t


def log_factorial(y: Any) -> Array:
    """``log y!``."""
    return log_gamma(_float(y) + 1)


@jax.custom_jvp
def log_beta(a: Any, b: Any) -> Array:
    """Logarithm of the beta function; stable when one argument is much larger than the other."""
    large, small = jnp.maximum(a, b), jnp.minimum(a, b)
    return log_gamma(small) - log_rising(large, small) - small * jnp.log(large)


@log_beta.defjvp
def _log_beta_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    return log_beta(a, b), -digamma_gap(a, b) * da - digamma_gap(b, a) * db


# ---- log Gamma(theta + y) - log Gamma(theta) - y log theta ------------------------------------------


def _rising_shift(theta: Any, y: Any) -> tuple[Array, Array, Array]:
    """Where the shift is needed, the shifted argument and the log of the product ratio."""
    small = theta < _SHIFT
    z = jnp.where(small, theta + _SHIFT, theta)
    first, second = jnp.ones_like(z), jnp.ones_like(z)
    safe = jnp.where(small, theta, _SHIFT)
    for k in range(_SHIFT // 2):
        first = first * (1 + y / (safe + k))
        second = second * (1 + y / (safe + k + _SHIFT // 2))
    return small, z, jnp.log(first) + jnp.log(second)


@jax.custom_jvp
def log_rising(theta: Any, y: Any) -> Array:
    """``log Gamma(theta + y) - log Gamma(theta) - y log theta`` for ``theta > 0``, ``y >= 0``.

    Tends to 0 as ``theta`` grows, without the cancellation of the two log-gammas; so do its derivatives.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(log_rising(np.float32(2.0), np.float32(2.0))), 4)
    0.4055
    """
    theta, y = jnp.broadcast_arrays(_float(theta), _float(y))
    small, z, ratio = _rising_shift(theta, y)
    q, r = 1 / (z + y), 1 / z
    change = q * _series(_STIRLING, q * q) - r * _series(_STIRLING, r * r)
    value = (z + y - 0.5) * jnp.log1p(y * r) - y + change
    back = y * jnp.log1p(jnp.where(small, _SHIFT / jnp.where(small, theta, 1), 0)) - ratio
    return value + jnp.where(small, back, 0)


def digamma_gap(theta: Any, y: Any) -> Array:
    """``psi(theta + y) - psi(theta)`` for ``y >= 0``, without the cancellation of the two."""
    small = theta < _SHIFT
    z = jnp.where(small, theta + _SHIFT, theta)
    q, r = 1 / (z + y), 1 / z
    change = q * q * _series(_PSI, q * q) - r * r * _series(_PSI, r * r)
    value = jnp.log1p(y * r) + 0.5 * y * q * r + change
    gain = sum(y / ((theta + k) * (theta + y + k)) for k in range(_SHIFT))
    return value + jnp.where(small, gain, 0)


def trigamma_gap(theta: Any, y: Any) -> Array:
    """``psi'(theta + y) - psi'(theta)`` for ``y >= 0``, without the cancellation of the two."""
    small = theta < _SHIFT
    z = jnp.where(small, theta + _SHIFT, theta)
    q, r = 1 / (z + y), 1 / z
    change = q**3 * _series(_PSI1, q * q) - r**3 * _series(_PSI1, r * r)
    value = -y * q * r - 0.5 * y * q * r * (q + r) + change
    loss = sum(
        y * (2 * theta + 2 * k + y) / ((theta + k) * (theta + y + k)) ** 2 for k in range(_SHIFT)
    )
    return value - jnp.where(small, loss, 0)


@jax.custom_jvp
def _rising_slope(theta: Any, y: Any) -> Array:
    """Derivative by theta: ``psi(theta + y) - psi(theta) - y / theta``."""
    return digamma_gap(theta, y) - y / theta


def _rising_curvature(theta: Any, y: Any) -> Array:
    """Second derivative by theta: ``psi'(theta + y) - psi'(theta) + y / theta^2``."""
    return trigamma_gap(theta, y) + y / theta**2


@log_rising.defjvp
def _log_rising_jvp(primals, tangents):
    (theta, y), (dtheta, dy) = primals, tangents
    by_y = digamma(theta + y) - jnp.log(theta)
    return log_rising(theta, y), _rising_slope(theta, y) * dtheta + by_y * dy


@_rising_slope.defjvp
def _rising_slope_jvp(primals, tangents):
    (theta, y), (dtheta, dy) = primals, tangents
    by_y = trigamma(theta + y) - 1 / theta
    return _rising_slope(theta, y), _rising_curvature(theta, y) * dtheta + by_y * dy


def log_rising_derivatives(theta: Any, y: Any) -> tuple[Array, Array, Array]:
    """:func:`log_rising` with its first and second derivatives by ``theta``, for hand-written Newton steps."""
    return log_rising(theta, y), _rising_slope(theta, y), _rising_curvature(theta, y)


# ---- logarithms without cancellation ----------------------------------------------------------------


def deviance_gap(t: Any) -> Array:
    """``t - log(1 + t)`` for ``t > -1``: never negative, exact for tiny ``t``, inf at -1.

    The building block of unit deviances. Near 0 with ``r = t / (2 + t)`` as
    ``r t - 2 (r^3/3 + r^5/5 + ...)`` (Loader 2000, Fast and accurate computation of binomial
    probabilities).

    Examples
    --------
    >>> import numpy as np
    >>> f"{float(deviance_gap(np.float32(1e-10))):.3e}"
    '5.000e-21'
    """
    t = _float(t)
    near = jnp.abs(t) < 0.25
    safe = jnp.where(near, t, 0)
    r = safe / (2 + safe)
    series = _series(tuple(1 / (2 * k + 3) for k in range(10)), r * r)
    far = jnp.where(near, 1, t)
    return jnp.where(near, r * safe - 2 * r**3 * series, far - jnp.log1p(far))


def log1mexp(x: Any) -> Array:
    """``log(1 - exp(x))`` for ``x <= 0``, accurate at both ends (Maechler 2012)."""
    x = jnp.minimum(_float(x), 0)
    close = x > -0.6931471805599453
    near = jnp.where(close & (x < 0), x, -1)
    far = jnp.where(close, -1, x)
    value = jnp.where(close, jnp.log(-jnp.expm1(near)), jnp.log1p(-jnp.exp(far)))
    return jnp.where(x < 0, value, -jnp.inf)


def log_diff_exp(a: Any, b: Any) -> Array:
    """``log(exp(a) - exp(b))`` for ``a >= b``; ``b`` may be -inf."""
    none = jnp.isneginf(b)
    safe = jnp.where(none, a - 1, b)
    return a + jnp.where(none, 0, log1mexp(safe - a))


# ---- normal tails -----------------------------------------------------------------------------------


def ndtr(x: Any) -> Array:
    """Normal distribution function."""
    x = _float(x)
    return 0.5 * erfc(-x * jnp.asarray(np.sqrt(0.5), x.dtype))


@jax.custom_jvp
def log_ndtr(x: Any) -> Array:
    """Logarithm of the normal distribution function, with stable derivatives in both tails.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(log_ndtr(np.float32(-10.0))), 3)
    -53.231
    """
    x = _float(x)
    root = jnp.asarray(np.sqrt(0.5), x.dtype)
    low = x < 0
    below, above = jnp.where(low, x, -1), jnp.where(low, 1, x)
    left = jnp.log(0.5 * erfcx(-below * root)) - 0.5 * below**2
    return jnp.where(low, left, jnp.log1p(-0.5 * erfc(above * root)))


@jax.custom_jvp
def _mills(x: Any) -> Array:
    """``phi(x) / Phi(x)``."""
    root = jnp.asarray(np.sqrt(0.5), x.dtype)
    low = x < 0
    below, above = jnp.where(low, x, -1), jnp.where(low, 1, x)
    left = jnp.asarray(np.sqrt(2 / np.pi), x.dtype) / erfcx(-below * root)
    density = jnp.exp(-0.5 * above**2 - _LOG_SQRT_2PI)
    return jnp.where(low, left, density / (1 - 0.5 * erfc(above * root)))


@log_ndtr.defjvp
def _log_ndtr_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    x = _float(x)
    return log_ndtr(x), _mills(x) * t


@_mills.defjvp
def _mills_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    m = _mills(x)
    return m, -m * (x + m) * t
