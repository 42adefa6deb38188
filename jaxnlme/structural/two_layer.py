"""The two-layer climate model: temperatures and heat content under radiative forcing.

References
----------
.. [1] Geoffroy et al. (2013). Transient climate response in a two-layer energy-balance model.
       Journal of Climate 26.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, ModelSpecError
from jaxnlme._typing import Array, Float

__all__ = ["TwoLayer", "two_layer"]


def two_layer(
    forcing: Float[Array, "n"], lam: Any, gamma: Any, C: Any, Cd: Any, step: float = 1.0
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Return surface and deep-ocean temperature anomalies at the end of each forcing step.

    Parameters
    ----------
    forcing
        Radiative forcing in W/m2, constant over each step.
    lam
        Climate feedback parameter, W/m2/K.
    gamma
        Heat exchange between the layers, W/m2/K.
    C, Cd
        Heat capacities of the layers, W yr/m2/K.
    step
        Length of a step in years.

    Returns
    -------
    T, Td
        In K; both are 0 before the first step.

    Notes
    -----
    ``C dT/dt = F - lam T - gamma (T - Td)`` and ``Cd dTd/dt = gamma (T - Td)``, exact for
    piecewise constant forcing: the two modes of the matrix exponential are separate recursions
    ``m <- exp(l h) m + (exp(l h) - 1)/l F``. Finite for any positive parameters; a positive
    eigenvalue (negative lam) grows as it should.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> T, Td = two_layer(jnp.full(2000, 3.7), 1.2, 0.7, 8.0, 100.0)
    >>> round(float(T[-1]), 3)  # 3.7 / 1.2 in equilibrium
    3.083
    """
    a, c = -(lam + gamma) / C, gamma / Cd
    half_sum = 0.5 * (a - c)
    root = jnp.sqrt((0.5 * (a + c)) ** 2 + gamma**2 / (C * Cd))
    fast = half_sum - root
    slow = (lam * gamma) / (C * Cd) / fast  # the product of both: no digits lost as in sum + root
    rates = jnp.stack([slow, fast]) * step
    decay = jnp.exp(rates)
    near_zero = jnp.abs(rates) < 1e-12
    gain = jnp.where(near_zero, 1, jnp.expm1(rates) / jnp.where(near_zero, 1, rates)) * step

    def advance(mode: Array, force: Array) -> tuple[Array, Array]:
        mode = decay * mode + gain * force
        return mode, mode

    modes = jax.lax.scan(
        advance, jnp.zeros_like(decay), jnp.asarray(forcing, decay.dtype), unroll=2
    )[1]
    weight = 1 / (2 * root * C)
    surface = weight * ((a - fast) * modes[:, 0] + (slow - a) * modes[:, 1])
    deep = weight * c * (modes[:, 0] - modes[:, 1])
    return surface, deep


class TwoLayer(eqx.Module):
    """The two-layer model as a model to calibrate.

    ``model(params)`` reads ``lam gamma C Cd`` and, where present, ``fscale`` (a factor of the
    forcing), and gives at the end of each year

    * ``T``: surface temperature anomaly, K;
    * ``Td``: deep-ocean temperature anomaly, K;
    * ``H``: heat content ``C T + Cd Td``, W yr/m2.

    Parameters
    ----------
    forcing
        (n,) forcing in W/m2 of each year.
    start
        First year; the state is 0 at its beginning.

    Examples
    --------
    >>> model = TwoLayer([0.0, 1.0, 2.0], start=1750)
    >>> model.times
    array([1751., 1752., 1753.])
    >>> sorted(model({"lam": 1.2, "gamma": 0.7, "C": 8.0, "Cd": 100.0}))
    ['H', 'T', 'Td']
    """

    forcing: Any
    start: float = eqx.field(static=True)

    def __init__(self, forcing: Any, start: Any = 0):
        forcing = np.asarray(forcing, float)
        if forcing.ndim != 1 or not len(forcing) or not np.isfinite(forcing).all():
            raise DataError(
                f"forcing must be a vector of finite numbers, got shape {forcing.shape}."
            )
        self.forcing, self.start = forcing, float(start)

    @property
    def times(self) -> np.ndarray:
        """Times of the output: the end of each year of forcing."""
        return self.start + 1.0 + np.arange(np.shape(self.forcing)[0])

    def __call__(self, params: dict[str, Any]) -> dict[str, Array]:
        missing = [k for k in ("lam", "gamma", "C", "Cd") if k not in params]
        if missing:
            raise ModelSpecError(f"TwoLayer needs the parameters lam, gamma, C, Cd; no {missing}.")
        lam, gamma, C, Cd = (jnp.asarray(params[k]) for k in ("lam", "gamma", "C", "Cd"))
        T, Td = two_layer(self.forcing, lam, gamma, C, Cd)
        scale = params.get("fscale", 1.0)
        T, Td = scale * T, scale * Td
        return {"T": T, "Td": Td, "H": C * T + Cd * Td}
