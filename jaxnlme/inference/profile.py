"""Profile likelihood intervals: where the deviance has risen by a given amount (host)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_MAX_STEPS = 40


def profile_limit(
    rise: Callable[[float], float], estimate: float, step: float, cutoff: float
) -> float:
    """Solve ``sqrt(rise(value)) = cutoff`` on the side of ``step``; infinite where the deviance stays below.

    Parameters
    ----------
    rise
        Deviance above its minimum, over the dispersion, when the coefficient is held at a value and the
        others are fitted.
    estimate
        Where the rise is 0.
    step
        First step, about the Wald limit; its sign gives the side.
    cutoff
        Normal quantile.

    Returns
    -------
    float
        The limit to 1e-9 of the step; ``inf`` (with the sign of the step) where 16 times the step is not
        enough; NaN where the refits fail.

    References
    ----------
    Venables and Ripley (2002), Modern Applied Statistics with S, 8.4.

    Examples
    --------
    >>> round(profile_limit(lambda x: (x / 2) ** 2, 0.0, 1.0, 1.96), 6)
    3.92
    """

    def signed(value: float) -> float:
        return min(float(np.sqrt(max(rise(value), 0.0))), 1e3) - cutoff

    low, f_low = 0.0, -cutoff
    high = 1.0
    f_high = signed(estimate + step)
    while np.isfinite(f_high) and f_high < 0:
        low, f_low = high, f_high
        if high >= 16:
            return float(np.copysign(np.inf, step))
        high = min(16.0, max(1.25, min(2.0, cutoff / max(f_high + cutoff, 1e-3) * 1.05)) * high)
        f_high = signed(estimate + high * step)
    if not np.isfinite(f_high):
        return float("nan")
    for _ in range(_MAX_STEPS):  # secant inside a bracket: Dowell and Jarratt's Illinois rule
        middle = (low * f_high - high * f_low) / (f_high - f_low)
        value = signed(estimate + middle * step)
        if not np.isfinite(value):
            return float("nan")
        if abs(value) < 1e-9 or abs(high - low) < 1e-9:
            return estimate + middle * step
        if value * f_high < 0:
            low, f_low = high, f_high
        else:
            f_low *= 0.5
        high, f_high = middle, value
    return estimate + high * step
