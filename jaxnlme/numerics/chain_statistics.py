"""Convergence statistics of Markov chains: rank R-hat, bulk and tail ESS, autocorrelation time.

Host functions in numpy: chains come in every length, and a compiled program per length would cost
more than it saves. Draws are (n, chains), one parameter at a time. A chain that never moved gives
NaN.

References
----------
.. [1] Vehtari, Gelman, Simpson, Carpenter, Buerkner (2021). Rank-normalization, folding, and
       localization: an improved R-hat. Bayesian Analysis 16.
.. [2] Sokal (1997). Monte Carlo methods in statistical mechanics.
.. [3] Margossian et al. (2024). Nested R-hat. Bayesian Analysis.
.. [4] Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto smoothed importance sampling. JMLR 25.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "autocorr_time",
    "ess_bulk",
    "ess_mean",
    "ess_tail",
    "mcse_mean",
    "mcse_sd",
    "nested_r_hat",
    "normal_quantile",
    "pareto_smooth",
    "r_hat",
]


def normal_quantile(p: Any) -> np.ndarray:
    """Return the standard normal quantile, by Wichura's AS 241 (relative error 1e-15).

    Examples
    --------
    >>> float(normal_quantile(0.975).round(6))
    1.959964
    """
    p = np.asarray(p, float)
    q = p - 0.5
    r = 0.180625 - q**2
    middle = q * _ratio(r, _A, _B)
    tail = np.where(q < 0, p, 1 - p)
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.sqrt(-np.log(tail))
        outer = np.where(s <= 5, _ratio(s - 1.6, _C, _D), _ratio(s - 5, _E, _F))
    return np.asarray(np.where(np.abs(q) <= 0.425, middle, np.where(q < 0, -outer, outer)))


def _ratio(x: Any, top: tuple[float, ...], bottom: tuple[float, ...]) -> Any:
    return np.polyval(top[::-1], x) / np.polyval(bottom[::-1], x)


_A = (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
      1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
      3.3430575583588128105e4, 2.5090809287301226727e3)  # fmt: skip
_B = (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
      2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4,
      5.2264952788528545610e3)  # fmt: skip
_C = (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
      3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
      2.27238449892691845833e-2, 7.74545014278341407640e-4)  # fmt: skip
_D = (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
      1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4,
      1.05075007164441684324e-9)  # fmt: skip
_E = (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0,
      2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
      2.71155556874348757815e-5, 2.01033439929228813265e-7)  # fmt: skip
_F = (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
      7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7,
      2.04426310338993978564e-15)  # fmt: skip


def _split(draws: np.ndarray) -> np.ndarray:
    """Cut each chain in two halves; a middle draw of an odd number is left out."""
    n = len(draws) // 2
    return np.concatenate([draws[:n], draws[len(draws) - n :]], axis=1)


def _ranks(draws: np.ndarray) -> np.ndarray:
    """Average ranks of all draws, from 1."""
    flat = draws.ravel()
    _, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - 0.5 * (counts - 1))[inverse].reshape(draws.shape)


def _rank_normal(draws: np.ndarray) -> np.ndarray:
    return normal_quantile((_ranks(draws) - 0.375) / (draws.size + 0.25))


def _fold(draws: np.ndarray) -> np.ndarray:
    return np.abs(draws - np.median(draws))


def _classic_r_hat(draws: np.ndarray) -> float:
    n = len(draws)
    between = n * draws.mean(0).var(ddof=1)
    within = draws.var(axis=0, ddof=1).mean()
    if within == 0:
        return float("nan")
    return float(np.sqrt((between / within + n - 1) / n))


def _usable(draws: Any, least: int = 4) -> np.ndarray | None:
    draws = np.asarray(draws, float)
    draws = draws[:, None] if draws.ndim == 1 else draws
    if len(draws) < least or not np.isfinite(draws).all():
        return None
    if np.ptp(draws) <= 1e-14 * np.abs(draws).max():
        return None
    return draws


def r_hat(draws: Any) -> float:
    """Return the rank-normalised split R-hat, the larger of bulk and folded.

    Parameters
    ----------
    draws
        (n, chains); at least 4 draws.

    Returns
    -------
    float
        NaN where draws are constant, too few or not finite.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> r_hat(rng.normal(size=(500, 4))) < 1.01
    True
    """
    found = _usable(draws)
    if found is None:
        return float("nan")
    halves = _split(found)
    bulk = _classic_r_hat(_rank_normal(halves))
    return max(bulk, _classic_r_hat(_rank_normal(_fold(halves))))


def _autocovariance(draws: np.ndarray) -> np.ndarray:
    """(n, chains) autocovariances by FFT, divided by n."""
    n = len(draws)
    size = 1 << int(np.ceil(np.log2(2 * n)))
    spectrum = np.fft.rfft(draws - draws.mean(0), size, axis=0)
    return np.fft.irfft(np.abs(spectrum) ** 2, size, axis=0)[:n] / n


def _ess(draws: np.ndarray) -> float:
    """Effective sample size by Geyer's initial monotone sequence with all chains together."""
    n, m = draws.shape
    if n < 3 or np.ptp(draws) == 0:
        return float("nan")
    covariance = _autocovariance(draws).mean(1)
    mean_variance = covariance[0] * n / (n - 1)
    total = mean_variance * (n - 1) / n
    if m > 1:
        total = total + draws.mean(0).var(ddof=1)
    rho = 1 - (mean_variance - covariance) / total
    rho[0] = 1.0
    count = 1 + len(range(1, n - 3, 2))
    pairs = rho[: 2 * count : 2] + rho[1 : 2 * count : 2][:count] if n > 3 else rho[:1]
    ended = np.flatnonzero(pairs <= 0)
    last = int(ended[0]) if len(ended) else len(pairs) - 1
    tau = -1 + 2 * np.minimum.accumulate(pairs[:last]).sum()
    # The even term of the last pair counts once (arviz, posterior).
    tau += rho[2 * last] if pairs[last] >= 0 else max(rho[2 * last], 0.0)
    return float(n * m / max(tau, 1 / np.log10(n * m)))


def ess_mean(draws: Any) -> float:
    """Return the effective sample size for the mean: no rank normalisation."""
    found = _usable(draws)
    return float("nan") if found is None else _ess(_split(found))


def ess_bulk(draws: Any) -> float:
    """Return the effective sample size of rank-normalised split chains.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> 1500 < ess_bulk(rng.normal(size=(500, 4))) < 2500
    True
    """
    found = _usable(draws)
    return float("nan") if found is None else _ess(_rank_normal(_split(found)))


def ess_tail(draws: Any) -> float:
    """Return the smaller effective sample size of the indicators of the 5 % and 95 % quantiles."""
    found = _usable(draws)
    if found is None:
        return float("nan")
    limits = np.quantile(found, [0.05, 0.95])
    return min(_ess(_split((found <= limit).astype(float))) for limit in limits)


def mcse_mean(draws: Any) -> float:
    """Return the Monte Carlo standard error of the mean."""
    return float(np.std(draws, ddof=1) / np.sqrt(ess_mean(draws)))


def mcse_sd(draws: Any) -> float:
    """Return the Monte Carlo standard error of the standard deviation.

    The variance of the squared deviations with their own effective sample size, by the delta
    method.
    """
    draws = np.asarray(draws, float)
    square = (draws - draws.mean()) ** 2
    mean = square.mean()
    variance = (square**2).mean() - mean**2
    return float(np.sqrt(variance / ess_mean(square) / mean / 4))


def nested_r_hat(draws: Any, ensemble: Any) -> float:
    """Return the nested R-hat: superchains are the independent ensembles.

    Parameters
    ----------
    draws
        (n, chains).
    ensemble
        (chains,) index of the ensemble of each chain; all of one size, at least 2.

    Notes
    -----
    sqrt(1 + B / W) with the variance B between the means of ensembles and W, the mean over
    ensembles of the variance between the chain means plus that within chains.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> nested_r_hat(rng.normal(size=(500, 8)), [0, 0, 0, 0, 1, 1, 1, 1]) < 1.01
    True
    """
    draws, ensemble = np.asarray(draws, float), np.asarray(ensemble)
    labels = np.unique(ensemble)
    if len(labels) < 2 or len(draws) < 2:
        return float("nan")
    means = np.array([draws[:, ensemble == k].mean() for k in labels])
    within = []
    for k in labels:
        own = draws[:, ensemble == k]
        between = own.mean(0).var(ddof=1) if own.shape[1] > 1 else 0.0
        within.append(between + own.var(axis=0, ddof=1).mean())
    total = float(np.mean(within))
    return float("nan") if total == 0 else float(np.sqrt(1 + means.var(ddof=1) / total))


def autocorr_time(draws: Any, c: float = 5.0) -> float:
    """Return the integrated autocorrelation time in draws: mean over chains, Sokal's window.

    Parameters
    ----------
    draws
        (n, chains).
    c
        The window is the smallest M with M >= c tau(M).

    Notes
    -----
    ``tau(M) = 2 sum_0^M rho - 1`` with the autocorrelation of each chain averaged over chains
    (emcee 3). It is too small while n is below 50 tau.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> 0.8 < autocorr_time(rng.normal(size=(2000, 4))) < 1.2
    True
    """
    found = _usable(draws, least=2)
    if found is None:
        return float("nan")
    covariance = _autocovariance(found)
    moving = covariance[0] > 0
    if not moving.any():
        return float("nan")
    rho = (covariance[:, moving] / covariance[0, moving]).mean(1)
    tau = 2 * np.cumsum(rho) - 1
    inside = np.arange(len(tau)) < c * tau
    window = int(np.argmin(inside)) if not inside.all() else len(tau) - 1
    return float(tau[window])


def pareto_smooth(log_weights: Any) -> tuple[np.ndarray, float]:
    """Return smoothed, normalised log importance weights and the Pareto shape k.

    Parameters
    ----------
    log_weights
        (n,) log ratios of target to proposal, up to a constant.

    Returns
    -------
    log_weights, k
        The weights sum to 1. Above k = 0.7 the estimates are not to be trusted.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> weights, k = pareto_smooth(0.1 * rng.normal(size=2000))
    >>> bool(k < 0.5), round(float(np.exp(weights).sum()), 6)
    (True, 1.0)
    """
    x = np.array(log_weights, float)
    x = np.where(np.isfinite(x), x, -np.inf)
    x = x - x.max()
    n = len(x)
    tail = int(min(0.2 * n, 3 * np.sqrt(n)))
    k = float("inf")
    if tail >= 5:
        order = np.argsort(x)
        cut = max(x[order[-tail - 1]], np.log(np.finfo(float).tiny))
        places = np.flatnonzero(x > cut)
        if len(places) > 4:
            excess = np.exp(x[places]) - np.exp(cut)
            k, scale = _pareto_fit(np.sort(excess))
            if np.isfinite(k):
                probability = (np.arange(len(places)) + 0.5) / len(places)
                if abs(k) < 1e-12:
                    smooth = -scale * np.log1p(-probability)
                else:
                    smooth = scale * np.expm1(-k * np.log1p(-probability)) / k
                new = np.minimum(np.log(smooth + np.exp(cut)), 0.0)
                x[places[np.argsort(x[places], kind="stable")]] = new
    top = x.max()
    return x - (top + np.log(np.exp(x - top).sum())), k


def _pareto_fit(x: np.ndarray) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto sample (sorted), by Zhang and Stephens (2009)."""
    n = len(x)
    m = 30 + int(np.sqrt(n))
    b = 1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))
    b = b / (3 * x[int(n / 4 + 0.5) - 1]) + 1 / x[-1]
    k = np.log1p(-b[:, None] * x).mean(1)
    likelihood = n * (np.log(-b / k) - k - 1)
    weights = 1 / np.exp(likelihood - likelihood[:, None]).sum(1)
    weights = np.where(weights >= 10 * np.finfo(float).eps, weights, 0)
    b_mean = float((b * weights / weights.sum()).sum())
    shape = float(np.log1p(-b_mean * x).mean())
    scale = -shape / b_mean
    # A weak prior towards 0.5, worth 10 observations.
    return (n * shape + 5) / (n + 10), scale
