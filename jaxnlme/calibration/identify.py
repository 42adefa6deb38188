"""Before sampling: which parameters matter, and which directions the data leave flat.

References
----------
.. [1] Saltelli et al. (2010). Variance based sensitivity analysis of model output. Computer Physics
       Communications 181.
.. [2] Morris, M. D. (1991). Factorial sampling plans. Technometrics 33.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import IdentifiabilityWarning, ModelSpecError, nearest, warn
from jaxnlme._precision import host64
from jaxnlme._typing import Array
from jaxnlme.calibration.models import HostModel, ModelRunner
from jaxnlme.calibration.parameters import ParameterSet
from jaxnlme.calibration.problem import Posterior
from jaxnlme.design.frames import make_frame
from jaxnlme.priors.base import as_key

__all__ = ["FisherSpectrum", "fisher_spectrum", "sensitivity"]

METHODS = ("sobol", "morris", "gradient")


@host64
def sensitivity(
    runner: ModelRunner,
    params: ParameterSet,
    method: str = "sobol",
    *,
    n: Any = 1024,
    key: Any = 0,
    levels: Any = 4,
    kind: str = "pandas",
) -> Any:
    """Return how much each parameter moves each output over its prior.

    Parameters
    ----------
    runner
        The model, with ``times`` and, for a plain Python model, ``output_variables``.
    params
        Parameters with priors.
    method
        * ``"sobol"``: shares of the output's variance. Columns ``first`` (alone) and ``total``
          (with interactions), each with its standard error; n (p + 2) runs.
        * ``"morris"``: elementary effects in prior quantiles over n trajectories. Columns ``mu``,
          ``mu_star`` (mean of sizes) and ``sigma`` (interactions or curvature); n (p + 1) runs.
        * ``"gradient"``: root mean square of the derivative times the prior standard deviation,
          over n draws. Column ``effect``. JAX models only.
    n
        Base points, see `method`.
    levels
        Grid of the Morris trajectories.

    Returns
    -------
    frame
        One row per variable and parameter; values are averaged over the times of the output,
        weighted by the output's variance (Sobol) or plainly.

    Raises
    ------
    ModelSpecError
        The method is not known, or needs derivatives that the model lacks.

    Examples
    --------
    >>> from jaxnlme.calibration import Uniform
    >>> def model(q):
    ...     return {"y": (q["a"] + 2 * q["b"])[None]}
    >>> params = ParameterSet({"a": Uniform(0, 1), "b": Uniform(0, 1)})
    >>> table = sensitivity(ModelRunner(model, times=[0.0]), params, n=4096)
    >>> table["first"].round(1).tolist()
    [0.2, 0.8]
    """
    if method not in METHODS:
        raise ModelSpecError(
            f"method={method!r}: use one of {list(METHODS)}." + nearest(str(method), METHODS)
        )
    n = int(n)
    if n < 8:
        raise ModelSpecError(f"n={n}: at least 8 base points.")
    if runner.param_names is None:
        runner.param_names = params.names()
    key = as_key(key)
    if method == "sobol":
        return make_frame(_sobol(runner, params, n, key), kind)
    if method == "morris":
        return make_frame(_morris(runner, params, n, key, int(levels)), kind)
    return make_frame(_gradient(runner, params, n, key), kind)


def _run(runner: ModelRunner, theta: np.ndarray) -> dict[str, np.ndarray]:
    return {v: y.reshape(len(theta), -1) for v, y in runner.run_batch(theta).items()}


def _sobol(runner: ModelRunner, params: ParameterSet, n: int, key: Any) -> dict[str, Any]:
    p = len(params)
    a = params.sample_lhs(n, jax.random.fold_in(key, 0))
    b = params.sample_lhs(n, jax.random.fold_in(key, 1))
    mixed = [np.where(np.arange(p) == k, b, a) for k in range(p)]
    runs = _run(runner, np.concatenate([a, b, *mixed]))
    rows: dict[str, list[Any]] = {k: [] for k in ("variable", "parameter", "first", "first_se",
                                                  "total", "total_se")}  # fmt: skip
    for variable, y in runs.items():
        keep = np.isfinite(y.reshape(p + 2, n, -1)).all(axis=(0, 2))
        blocks = y.reshape(p + 2, n, -1)[:, keep]
        fa, fb = blocks[0], blocks[1]
        variance = np.concatenate([fa, fb]).var(axis=0)
        total_variance = variance.sum()
        centre = np.concatenate([fa, fb]).mean(0)
        for k, name in enumerate(params.names()):
            mix = blocks[2 + k]
            # Saltelli et al. (2010), table 2 (b) and Jansen's estimator (f), summed over times.
            first = ((fb - centre) * (mix - fa)).sum(1) / total_variance
            total = 0.5 * ((fa - mix) ** 2).sum(1) / total_variance
            for column, values in (("first", first), ("total", total)):
                rows[column].append(values.mean())
                rows[f"{column}_se"].append(values.std(ddof=1) / np.sqrt(len(values)))
            rows["variable"].append(variable)
            rows["parameter"].append(name)
    return rows


def _morris(runner: ModelRunner, params: ParameterSet, n: int, key: Any, levels: int) -> dict:
    if levels < 2:
        raise ModelSpecError(f"levels={levels}: at least 2.")
    p = len(params)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    delta = levels / (2 * (levels - 1)) if levels % 2 == 0 else 0.5
    base = rng.integers(0, max(levels // 2, 1), (n, p)) / (levels - 1)
    sign = rng.choice([-1.0, 1.0], (n, p))
    start = np.where(sign > 0, base, base + delta)
    order = np.argsort(rng.random((n, p)), axis=1)
    q = np.repeat(start[:, None, :], p + 1, axis=1)
    for j in range(p):
        which = order[:, j]
        for k in range(j + 1, p + 1):
            q[np.arange(n), k, which] += sign[np.arange(n), which] * delta
    # Quantiles 0 and 1 of an unbounded prior are infinite: the grid spans 0.005 to 0.995.
    q = 0.005 + 0.99 * np.clip(q, 0, 1)
    theta = np.stack([prior.icdf(q[..., k]) for k, prior in enumerate(params.priors)], axis=-1)
    runs = _run(runner, theta.reshape(-1, p))
    rows: dict[str, list[Any]] = {
        k: [] for k in ("variable", "parameter", "mu", "mu_star", "sigma")
    }
    for variable, y in runs.items():
        y = y.reshape(n, p + 1, -1)
        steps = np.diff(y, axis=1)
        effects = np.empty((n, p, y.shape[2]))
        rows_n = np.arange(n)
        for j in range(p):
            which = order[:, j]
            effects[rows_n, which] = steps[:, j] / (sign[rows_n, which] * 0.99 * delta)[:, None]
        effects = effects[np.isfinite(effects).all(axis=(1, 2))]
        for k, name in enumerate(params.names()):
            rows["variable"].append(variable)
            rows["parameter"].append(name)
            rows["mu"].append(effects[:, k].mean())
            rows["mu_star"].append(np.abs(effects[:, k]).mean())
            rows["sigma"].append(effects[:, k].std(axis=0, ddof=1).mean())
    return rows


def _gradient(runner: ModelRunner, params: ParameterSet, n: int, key: Any) -> dict[str, Any]:
    if runner.model is None:
        raise ModelSpecError("method='gradient' needs a JAX model; use 'sobol' or 'morris'.")
    theta = params.sample(n, key)
    sd = theta.std(axis=0)
    model = runner.bound({}, params.names())
    slopes = _jacobians(model, tuple(params.names()), theta)
    rows: dict[str, list[Any]] = {k: [] for k in ("variable", "parameter", "effect")}
    wanted = runner.output_variables or list(slopes)
    for variable in wanted:
        jacobian = np.asarray(slopes[variable])  # (n, times, p)
        keep = np.isfinite(jacobian).all(axis=(1, 2))
        size = np.sqrt((jacobian[keep] ** 2).mean(axis=(0, 1))) * sd
        for k, name in enumerate(params.names()):
            rows["variable"].append(variable)
            rows["parameter"].append(name)
            rows["effect"].append(size[k])
    return rows


def _all_jacobians(model: Any, names: tuple[str, ...], theta: Array) -> dict[str, Array]:
    def output(point: Array) -> dict[str, Array]:
        params = {name: point[k] for k, name in enumerate(names)}
        return {v: jnp.atleast_1d(jnp.asarray(y)) for v, y in model(params).items()}

    return jax.vmap(jax.jacfwd(output))(theta)


_jacobians = outer_jit(_all_jacobians, static_argnums=1)


@dataclasses.dataclass(frozen=True)
class FisherSpectrum:
    """Eigenvalues of the Fisher information in units of the prior.

    Attributes
    ----------
    eigenvalues : ndarray (p,)
        Largest first. 1 means that the data say as much as the prior; far below 1 that they say
        nothing along that direction.
    directions : ndarray (p, p)
        Unit vectors in parameters divided by their prior standard deviations, one per row.
    names : list of str
    flat : list of str
        Directions that the data leave to the prior (eigenvalue below 1), in words.
    """

    eigenvalues: np.ndarray
    directions: np.ndarray
    names: list[str]
    flat: list[str]

    def __str__(self) -> str:
        lines = ["eigenvalue  direction (prior standard deviations)"]
        for value, direction in zip(self.eigenvalues, self.directions, strict=True):
            lines.append(f"{value:10.3g}  {_words(direction, self.names)}")
        return "\n".join(lines)


@host64
def fisher_spectrum(posterior: Posterior, theta: Any) -> FisherSpectrum:
    """Return the spectrum of the observed information (minus the Hessian) of the likelihood.

    Parameters
    ----------
    posterior
        From :func:`make_posterior`, or ``sampler.posterior``.
    theta
        Dict or vector of natural values, such as ``PointEstimator(...).optimize().best_params``.

    Warns
    -----
    IdentifiabilityWarning
        Some direction is left to the prior; names its parameters.

    Raises
    ------
    ModelSpecError
        The model is plain Python.

    Examples
    --------
    >>> import warnings
    >>> from jaxnlme.calibration import Normal, Target, make_posterior
    >>> def model(q):
    ...     return {"y": (q["a"] + q["b"])[None]}
    >>> posterior = make_posterior(
    ...     ParameterSet({"a": Normal(0, 1), "b": Normal(0, 1)}),
    ...     Target().add_variable("y", [0.0], [1.0], 0.1), ModelRunner(model),
    ... )
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     fisher_spectrum(posterior, [0.5, 0.5]).flat
    ['a - b']
    """
    if isinstance(posterior.model, HostModel):
        raise ModelSpecError(
            "fisher_spectrum needs a JAX model: a plain Python model has no gradient."
        )
    names = list(posterior.names)
    if isinstance(theta, Mapping):
        theta = [theta[name] for name in names]
    point = np.asarray(theta, float)
    if point.shape != (len(names),):
        raise ModelSpecError(f"theta has shape {point.shape}, expected ({len(names)},).")
    grid = (np.arange(2000) + 0.5) / 2000
    scale = np.array([np.std(prior.icdf(grid)) for prior in posterior.prior.priors])
    information = -np.asarray(_curvature(posterior, point)) * np.outer(scale, scale)
    if not np.isfinite(information).all():
        raise ModelSpecError("the likelihood has no finite curvature at theta.")
    values, vectors = np.linalg.eigh(0.5 * (information + information.T))
    values, vectors = values[::-1], vectors[:, ::-1].T
    flat = [_words(v, names) for e, v in zip(values, vectors, strict=True) if e < 1]
    if flat:
        warn(
            "the data leave these directions to the prior: " + "; ".join(flat)
            + " (in prior standard deviations).",
            IdentifiabilityWarning,
        )  # fmt: skip
    return FisherSpectrum(values, vectors, names, flat)


@outer_jit
def _curvature(posterior: Posterior, theta: Array) -> Array:
    return jax.hessian(posterior.log_likelihood)(theta)


def _words(direction: np.ndarray, names: list[str]) -> str:
    """Name a direction by its parts of at least a tenth of the largest."""
    scaled = direction / direction[np.argmax(np.abs(direction))]
    order = [k for k in np.argsort(-np.abs(scaled), kind="stable") if abs(scaled[k]) >= 0.1]
    order = sorted(order)
    if scaled[order[0]] < 0:
        scaled = -scaled
    text = ""
    for k in order:
        size = abs(scaled[k])
        part = names[k] if size > 0.995 else f"{size:.2g} {names[k]}"
        text += part if not text else (f" + {part}" if scaled[k] > 0 else f" - {part}")
    return text
