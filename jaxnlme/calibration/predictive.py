"""After sampling: replicated observations, and leave-one-out predictive density.

References
----------
.. [1] Vehtari, Gelman, Gabry (2017). Practical Bayesian model evaluation using leave-one-out
       cross-validation and WAIC. Statistics and Computing 27.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError, SamplingWarning, some, warn
from jaxnlme._precision import host64
from jaxnlme._typing import Array
from jaxnlme.calibration.chain import Chain
from jaxnlme.calibration.fitted import FittedPosterior
from jaxnlme.calibration.problem import Posterior
from jaxnlme.numerics.chain_statistics import pareto_smooth
from jaxnlme.numerics.mcmc import map_points
from jaxnlme.priors.base import as_key

__all__ = ["Loo", "loo", "posterior_predictive"]


def _thinned(chain: Chain, n: int, discard: int, key: Any) -> np.ndarray:
    flat = chain.flat_samples(discard)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(key))).tolist())
    return flat[np.sort(rng.choice(len(flat), size=min(n, len(flat)), replace=False))]


@host64
def posterior_predictive(
    posterior: Posterior, chain: Chain, *, n_samples: Any = 200, discard: Any = 0, key: Any = 0,
    noise: bool = True, re: str | None = None,
) -> dict[str, dict[str, np.ndarray]]:  # fmt: skip
    """Return the model and replicated observations at draws of the chain.

    Parameters
    ----------
    posterior
        From :func:`make_posterior`, ``sampler.posterior``, or ``fit.log_posterior(priors)``.
    chain
        Draws of its parameters.
    n_samples
        Draws to use, at random without replacement.
    noise
        Also draw observation errors.
    re
        Random effects of a mixed model, drawn anew for every draw of the chain. ``"individual"`` (the
        default): those of the groups of the fit, from their distribution given the data and the draw.
        ``"new"``: those of new groups of the same design. ``"population"``: zero.

    Raises
    ------
    ModelSpecError
        The likelihood cannot be simulated, or ``re=`` for a model without random effects.

    Returns
    -------
    dict by variable of dict
        ``times`` (t,), ``values`` (t,) observed, ``model`` (n, t), and with noise ``simulated``
        (n, t). Under a reference period the model is shifted to the datum of the observations. For
        fitted models the observations are the rows of the fit, numbered in ``times``.

    Notes
    -----
    The replicates of ``"individual"`` show whether the model fits each group, those of ``"new"`` whether
    it fits the spread between groups. Random effects given the data are drawn from the normal
    approximation at their mode, followed by 30 Metropolis steps; exact for models that are linear in
    them.

    Examples
    --------
    >>> from jaxnlme.calibration import ModelRunner, Normal, ParameterSet, Target, make_posterior
    >>> posterior = make_posterior(
    ...     ParameterSet({"m": Normal(0, 1)}), Target().add_variable("y", [0.0], [0.5], 1.0),
    ...     ModelRunner(lambda q: {"y": q["m"][None]}),
    ... )
    >>> chain = Chain(np.zeros((10, 2, 1)), np.zeros((10, 2)), ["m"])
    >>> posterior_predictive(posterior, chain, n_samples=5)["y"]["simulated"].shape
    (5, 1)
    """
    theta = _thinned(chain, int(n_samples), discard, key)
    if isinstance(posterior, FittedPosterior):
        seed = np.asarray(jax.random.key_data(jax.random.fold_in(as_key(key), 1))).tolist()
        made = posterior.density.replicate(theta, np.random.default_rng(seed), noise, re)
        return {posterior.data[0].name: made}
    if re is not None:
        raise ModelSpecError(
            f"posterior_predictive(re={re!r}): only mixed models have random effects; leave it out."
        )
    keys = jax.random.split(jax.random.fold_in(as_key(key), 1), len(theta))
    model, simulated = _replicates(posterior, theta, keys, noise)
    out = {}
    for data in posterior.data:
        out[data.name] = {
            "times": np.asarray(data.times),
            "values": np.asarray(data.values),
            "model": np.asarray(model[data.name]),
        }
        if noise:
            out[data.name]["simulated"] = np.asarray(simulated[data.name])
    return out


def _all_replicates(posterior: Posterior, theta: Array, keys: Any, noise: bool) -> Any:
    def one(point: Array, key: Any) -> Any:
        params = posterior.params(point)
        output = posterior.output(params)
        shifted, simulated = {}, {}
        for k, (data, likelihood) in enumerate(
            zip(posterior.data, posterior.likelihoods, strict=True)
        ):
            y = data.centred(output[data.name])
            if data.reference == "exact":  # the best datum of this draw
                weights = 1 / data.variance(params) if data.whiten is None else jnp.ones_like(y)
                y = y + jnp.sum(weights * (data.values - y)) / jnp.sum(weights)
            shifted[data.name] = y
            if noise:
                own = jax.random.fold_in(key, k)
                simulated[data.name] = likelihood.simulate(own, data, y, params)
        return shifted, simulated

    return jax.vmap(one)(theta, keys)


_replicates = outer_jit(_all_replicates, static_argnums=3)


@dataclasses.dataclass(frozen=True)
class Loo:
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling.

    Attributes
    ----------
    elpd : float
        Expected log predictive density, summed over observations; larger is better.
    se : float
        Its standard error.
    p_loo : float
        Effective number of parameters.
    pointwise, pareto_k : ndarray (observations,)
    variable : list of str
        Variable of each observation.
    """

    elpd: float
    se: float
    p_loo: float
    pointwise: np.ndarray
    pareto_k: np.ndarray
    variable: list[str]


@host64
def loo(posterior: Posterior, chain: Chain, *, n_samples: Any = 2000, discard: Any = 0,
        key: Any = 0) -> Loo:  # fmt: skip
    """Return the leave-one-out predictive density of the observations (groups of a mixed model).

    Parameters
    ----------
    posterior, chain, n_samples, discard, key
        As for :func:`posterior_predictive`.

    Warns
    -----
    SamplingWarning
        Pareto k above 0.7 for some observation: its estimate is not to be trusted.

    Raises
    ------
    ModelSpecError
        The errors are correlated, or the likelihood has no density of single observations.
    """
    theta = _thinned(chain, int(n_samples), discard, key)
    if len(theta) < 50:
        raise ModelSpecError(f"loo needs at least 50 draws, got {len(theta)}.")
    table = np.asarray(_pointwise(posterior, theta))
    if isinstance(posterior, FittedPosterior):
        table = table[:, posterior.density.live]  # rows of padding
    terms, shapes = [], []
    for column in table.T:
        weights, k = pareto_smooth(-column)
        top = (column + weights).max()
        terms.append(top + np.log(np.exp(column + weights - top).sum()))
        shapes.append(k)
    pointwise, k = np.array(terms), np.array(shapes)
    names = [d.name for d in posterior.data for _ in range(len(np.asarray(d.values)))]
    if isinstance(posterior, FittedPosterior):
        names = [posterior.data[0].name] * len(pointwise)
    bad = np.flatnonzero(~(k < 0.7))
    if len(bad):
        warn(
            f"Pareto k is above 0.7 for {len(bad)} of {len(k)} observations (number {some(bad)}): "
            "their leave-one-out densities are not to be trusted.",
            SamplingWarning,
        )
    top = table.max(0)
    within = top + np.log(np.exp(table - top).mean(0))
    return Loo(
        elpd=float(pointwise.sum()),
        se=float(np.sqrt(len(pointwise) * pointwise.var(ddof=1))) if len(pointwise) > 1 else np.nan,
        p_loo=float((within - pointwise).sum()),
        pointwise=pointwise,
        pareto_k=k,
        variable=names,
    )


@outer_jit
def _pointwise(posterior: Posterior, theta: Array) -> Array:
    def one(point: Array) -> Array:
        params = posterior.params(point)
        output = posterior.output(params)
        parts = [
            likelihood.pointwise(d, output[d.name], params)
            for d, likelihood in zip(posterior.data, posterior.likelihoods, strict=True)
        ]
        return jnp.concatenate(parts)

    return map_points(one, theta, posterior.batch)
