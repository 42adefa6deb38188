"""R's own algorithms in numpy: ``glm.fit``'s early stop, ``confint``'s spline. For tests that explain differences.

R stops when the deviance changes by less than 1e-8, relatively (``glm.control``); its coefficients are then off by
up to the square root of that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats


def glm_fit(fit: Any, weights: np.ndarray, epsilon: float) -> np.ndarray:
    """Coefficients of ``glm.fit`` (log link, Poisson or gamma) on the rows of a fit with these weights."""
    X, y = fit._problem.designs[0].matrix(), fit._problem.y
    poisson = fit.family.name == "poisson"
    mu = y + 0.1 if poisson else y
    eta, before = np.log(mu), np.inf
    for _ in range(25):
        root = np.sqrt(weights * (mu if poisson else 1.0))
        z = eta + (y - mu) / mu
        params = np.linalg.lstsq(X * root[:, None], z * root, rcond=None)[0]
        eta = X @ params
        mu = np.exp(eta)
        rows = y * np.log(y / mu) - (y - mu) if poisson else (y - mu) / mu - np.log(y / mu)
        deviance = 2 * np.sum(weights * rows)
        if abs(deviance - before) / (abs(deviance) + 0.1) < epsilon:
            break
        before = deviance
    return params


def fmm_spline(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """R's ``splinefun(method = "fmm")``: end conditions from cubics through the last four points."""
    n = len(x)
    d, c, b = np.diff(x), np.zeros(n), np.zeros(n)
    s = np.diff(y) / d
    c[1:-1] = np.diff(s)
    b[1:-1] = 2 * (d[:-1] + d[1:])
    b[0], b[-1] = -d[0], -d[-1]
    c[0] = (c[2] / (x[3] - x[1]) - c[1] / (x[2] - x[0])) * d[0] ** 2 / (x[3] - x[0])
    c[-1] = c[-2] / (x[-1] - x[-3]) - c[-3] / (x[-2] - x[-4])
    c[-1] *= -(d[-1] ** 2) / (x[-1] - x[-4])
    system = np.diag(b) + np.diag(d, 1) + np.diag(d, -1)
    c = np.linalg.solve(system, c)
    k = np.clip(np.searchsorted(x, at, side="right") - 1, 0, n - 2)
    slope = s - d * (c[1:] + 2 * c[:-1])
    u = at - x[k]
    return y[k] + u * (slope[k] + u * (3 * c[k] + u * (c[k + 1] - c[k]) / d[k]))


def profile_limits(fit: Any, label: str, level: float = 0.95) -> np.ndarray:
    """``confint(fit, label)`` of MASS: deviances on a grid, a spline, and a line between its points."""
    t_like = fit._problem.family.has_dispersion
    alpha = (1 - level) / 4
    most = stats.f.ppf(1 - alpha, 1, fit.df_resid) if t_like else stats.chi2.ppf(1 - alpha, 1)
    most = np.sqrt(most)
    values, z = [fit.params[label]], [0.0]
    for sign in (-1, 1):
        for step in range(1, 11):
            value = fit.params[label] + sign * step * most / 5 * fit.bse[label]
            rise = fit.update(fix={label: value}).deviance - fit.deviance
            values.append(value)
            z.append(sign * np.sqrt(rise / fit.dispersion))
            if abs(z[-1]) > most:
                break
    order = np.argsort(values)
    values, z = np.array(values)[order], np.array(z)[order]
    fine = np.linspace(values[0], values[-1], 3 * len(values))
    return np.interp(
        stats.norm.ppf([0.5 - level / 2, 0.5 + level / 2]), fmm_spline(values, z, fine), fine
    )
