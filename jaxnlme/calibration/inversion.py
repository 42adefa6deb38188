"""Ensemble Kalman inversion: an approximate posterior of an expensive model in a few hundred runs.

References
----------
.. [1] Iglesias, Law, Stuart (2013). Ensemble Kalman methods for inverse problems. Inverse Problems 29.
.. [2] Iglesias, Yang (2021). Adaptive regularisation for ensemble Kalman inversion. Inverse Problems 37.
.. [3] Bishop, Etherton, Majumdar (2001). Adaptive sampling with the ensemble transform Kalman
       filter. Monthly Weather Review 129.
.. [4] Garbuno-Inigo, Nuesken, Reich (2020). Affine invariant interacting Langevin dynamics for
       Bayesian inference. SIAM J. Applied Dynamical Systems 19.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxnlme._errors import ModelSpecError, SamplingWarning, nearest, warn
from jaxnlme._precision import host64
from jaxnlme.calibration.chain import Chain
from jaxnlme.calibration.problem import Posterior
from jaxnlme.calibration.standard import WhitenedData, gaussian_problem, run_standard
from jaxnlme.priors.base import as_key

__all__ = ["kalman_inversion"]

METHODS = ("eki", "aldi")
MAX_STEPS = 100  # of tempering
FAR = 12.0  # prior standard deviations: no posterior is there


class Runs:
    """The model and all its runs so far."""

    def __init__(self, posterior: Posterior, data: WhitenedData) -> None:
        self.posterior, self.data = posterior, data
        self.points: list[np.ndarray] = []
        self.outputs: list[np.ndarray] = []
        self.values: list[np.ndarray] = []  # log posteriors
        self.failures = 0

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return whitened outputs (n, d), natural points and log posteriors; NaN where a run failed."""
        theta, output, prior = (np.array(a) for a in run_standard(self.posterior, x))
        self.points.append(theta)
        self.outputs.append(output)
        bad = np.logical_not(np.isfinite(output).all(axis=1))
        self.failures += int(bad.sum())
        z = self.data.whiten(np.where(bad[:, None], np.nan, output))
        value = prior + self.data.constant - 0.5 * ((self.data.y - z) ** 2).sum(axis=1)
        self.values.append(np.where(np.isnan(value), -np.inf, value))
        return z, theta, self.values[-1].copy()

    def by_variable(self) -> dict[str, np.ndarray]:
        """All outputs at the observed times."""
        whole, out, at = np.concatenate(self.outputs), {}, 0
        for d in self.posterior.data:
            n = len(np.asarray(d.values))
            out[d.name] = whole[:, at : at + n]
            at += n
        return out


@host64
def kalman_inversion(
    problem: Any,
    *,
    method: str = "eki",
    n_particles: Any = None,
    num_steps: Any = None,
    step_size: Any = 0.05,
    key: Any = 0,
) -> Chain:
    """Approximate the posterior of an expensive model by an ensemble that learns from its own runs.

    Parameters
    ----------
    problem
        A posterior from :func:`make_posterior`, or an :class:`EnsembleSampler`; JAX models and plain
        Python models (``workers=`` run side by side). The likelihood is Gaussian with known errors.
    method
        * ``"eki"``: ensemble Kalman inversion, tempered from the prior to the posterior in steps that
          it chooses itself [2]_, with the deterministic transform of [3]_.
        * ``"aldi"``: the same, then Langevin dynamics of the ensemble without gradients [4]_.
    n_particles
        Runs of the model per step; more than p + 1. Default: max(100, 10 p).
    num_steps
        Of ``"aldi"`` (100); all its draws are kept.
    step_size
        Of ``"aldi"``, between 0 and 1: smaller is closer to the dynamics where the model is curved.
    key
        Randomness.

    Returns
    -------
    Chain
        Draws (particles, 1, p), of ``"aldi"`` (steps, particles, p), with their log posterior densities.
        ``info`` has ``temperatures``, ``misfits`` (mean of half the squared whitened residuals at each
        step), ``evaluations``, ``failures``, and all runs: ``points`` (n, p), ``outputs`` by variable.

    Raises
    ------
    ModelSpecError
        Errors that are not Gaussian with known size, too few particles, or too many failed runs.

    Warns
    -----
    SamplingWarning
        The tempering did not end, or the Langevin steps were too long.

    Notes
    -----
    Priors are mapped to standard normals. For models linear in these coordinates the mean and covariance
    of ``"eki"`` are those of the posterior, to rounding, whatever the number of particles; otherwise the
    result is an approximation whose error no number of particles removes. It serves as a start,
    ``sample(posterior, init=chain.flat_samples()[::k])``.
    Failed runs are replaced by draws from the others' normal distribution.

    References
    ----------
    .. [1] Iglesias, Law, Stuart (2013). Ensemble Kalman methods for inverse problems. Inverse Problems 29.
    .. [2] Iglesias, Yang (2021). Adaptive regularisation for ensemble Kalman inversion. Inverse Problems 37.
    .. [3] Bishop, Etherton, Majumdar (2001). Adaptive sampling with the ensemble transform Kalman
           filter. Monthly Weather Review 129.
    .. [4] Garbuno-Inigo, Nuesken, Reich (2020). Affine invariant interacting Langevin dynamics for
           Bayesian inference. SIAM J. Applied Dynamical Systems 19.

    Examples
    --------
    >>> from jaxnlme.calibration import ModelRunner, Normal, ParameterSet, Target, make_posterior
    >>> def line(params):
    ...     return {"y": params["a"] + params["b"] * np.arange(4.0)}
    >>> posterior = make_posterior(
    ...     ParameterSet({"a": Normal(0, 100), "b": Normal(0, 100)}),
    ...     Target().add_variable("y", np.arange(4.0), [1.0, 3.0, 5.0, 7.0], 0.1),
    ...     ModelRunner(line, times=np.arange(4.0)),
    ... )
    >>> chain = kalman_inversion(posterior, n_particles=20)
    >>> [round(float(chain[name].mean()), 3) for name in ("a", "b")]
    [1.0, 2.0]
    """
    if method not in METHODS:
        raise ModelSpecError(
            f"method={method!r}: use one of {list(METHODS)}." + nearest(str(method), METHODS)
        )
    if method == "eki" and num_steps is not None:
        raise ModelSpecError(f"num_steps={num_steps!r} is for method='aldi'; 'eki' ends by itself.")
    posterior, data = gaussian_problem(problem, "kalman_inversion")
    p = len(posterior.names)
    n = max(100, 10 * p) if n_particles is None else n_particles
    if not isinstance(n, (int, np.integer)) or n < p + 2:
        raise ModelSpecError(
            f"n_particles={n!r}: a whole number from {p + 2} on, above the parameters."
        )
    if not 0 < float(step_size) < 1:
        raise ModelSpecError(f"step_size={step_size!r}: a number between 0 and 1.")
    seed = np.asarray(jax.random.key_data(as_key(key))).tolist()
    rng = np.random.default_rng(seed)
    runs = Runs(posterior, data)
    x, info = _tempered(runs, _standardised(rng.normal(size=(n, p))), rng)
    steps = 0
    if method == "aldi":
        steps = 100 if num_steps is None else int(num_steps)
        if steps < 1:
            raise ModelSpecError(f"num_steps={num_steps!r}: at least 1.")
    if steps:
        theta, value = _langevin(runs, x, steps, float(step_size), rng)
    else:
        theta, value = (a[:, None] for a in runs(x)[1:])
    info |= {
        "method": method,
        "evaluations": int(sum(map(len, runs.points))),
        "failures": runs.failures,
        "points": np.concatenate(runs.points),
        "outputs": runs.by_variable(),
    }
    return Chain(theta, value, posterior.names, info=info, priors=posterior.prior)


def _standardised(x: np.ndarray) -> np.ndarray:
    """Draws with mean 0 and covariance I, exactly."""
    x = x - x.mean(axis=0)
    root = np.linalg.cholesky(np.cov(x.T).reshape(x.shape[1], x.shape[1]))
    return np.linalg.solve(root, x.T).T


def _tempered(
    runs: Runs, x: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    """Move the ensemble from the prior to the posterior."""
    temperature, temperatures, misfits = 0.0, [0.0], []
    for _ in range(MAX_STEPS):
        z = runs(x)[0]
        good = np.isfinite(z).all(axis=1)
        if good.sum() < x.shape[1] + 2:
            raise ModelSpecError(
                f"kalman_inversion: only {good.sum()} of {len(x)} runs succeeded; narrow the priors, or mend "
                "the model."
            )
        misfit = 0.5 * ((runs.data.y - z[good]) ** 2).sum(axis=1)
        misfits.append(float(misfit.mean()))
        step = min(_step(misfit, len(runs.data.y)), 1 - temperature)
        moved = _transform(x[good], z[good], runs.data.y, step)
        new = np.empty_like(x)
        new[good] = moved
        if not good.all():
            root = np.linalg.cholesky(np.cov(moved.T).reshape(x.shape[1], -1))
            new[~good] = moved.mean(axis=0) + rng.normal(size=((~good).sum(), x.shape[1])) @ root.T
        x, temperature = new, temperature + step
        temperatures.append(temperature)
        if temperature >= 1 - 1e-12:
            break
    else:
        warn(
            f"kalman_inversion: after {MAX_STEPS} steps the ensemble is at temperature {temperature:.2g} of "
            "1: the data are far from what the priors allow.",
            SamplingWarning,
        )
    return x, {"temperatures": temperatures, "misfits": misfits}


def _step(misfit: np.ndarray, d: int) -> float:
    """Length of the next step by the data misfit controller [2]_."""
    spread = misfit.var(ddof=1)
    first = d / (2 * misfit.mean())
    return float(max(first, np.sqrt(d / (2 * spread)) if spread > 0 else first))


def _transform(x: np.ndarray, z: np.ndarray, y: np.ndarray, step: float) -> np.ndarray:
    """Kalman update of mean and anomalies with errors of variance 1 / step [3]_."""
    n = len(x)
    mean, away = x.mean(axis=0), x - x.mean(axis=0)
    gap = y - z.mean(axis=0)
    u, s, vt = np.linalg.svd((z - z.mean(axis=0)) * np.sqrt(step / (n - 1)), full_matrices=False)
    gain = u @ (s / (1 + s**2) * (vt @ gap)) * np.sqrt(step / (n - 1))
    shrunk = away + u @ ((1 / np.sqrt(1 + s**2) - 1)[:, None] * (u.T @ away))
    return mean + away.T @ gain + shrunk


def _langevin(
    runs: Runs, x: np.ndarray, steps: int, size: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws (steps, n, p) and log posteriors of interacting Langevin dynamics [4]_.

    The noise has the variance 1 - (1 - size)^2 in the place of 2 size, with which an ensemble in its normal
    stationary state keeps its covariance for any step size. No drift is longer than the ensemble is wide
    (tamed, Hutzenthaler et al. 2012), and a particle whose run fails stays where it was.
    """
    n, p = x.shape
    points, values = np.empty((steps, n, p)), np.empty((steps, n))
    z, theta, value = runs(x)
    lost = ~np.isfinite(z).all(axis=1)
    if lost.any():  # on a place of the others
        spare = rng.choice(np.flatnonzero(~lost), size=lost.sum())
        x[lost], z[lost], theta[lost], value[lost] = x[spare], z[spare], theta[spare], value[spare]
    for k in range(steps):
        away = x - x.mean(axis=0)
        covariance = away.T @ away / n
        cross = away.T @ (z - z.mean(axis=0)) / n
        drift = (runs.data.y - z) @ cross.T - x @ covariance + (p + 1) / n * away
        length = np.sqrt((drift * np.linalg.solve(covariance, drift.T).T).sum(axis=1) / p)
        drift = size * drift / np.maximum(1.0, size * length)[:, None]
        new = (
            x + drift + np.sqrt(2 * size - size**2) * (rng.normal(size=(n, n)) @ away / np.sqrt(n))
        )
        good = np.isfinite((made := runs(new))[0]).all(axis=1)
        for kept, fresh in zip((x, z, theta, value), (new, *made), strict=True):
            kept[good] = fresh[good]
        points[k], values[k] = theta, value
        if np.abs(x).max() > FAR:
            warn(
                f"kalman_inversion: the ensemble left the prior in step {k} of {steps} and its draws end there; "
                f"give a step_size below {size:g}.",
                SamplingWarning,
            )
            return points[: max(k, 1)], values[: max(k, 1)]
    return points, values
