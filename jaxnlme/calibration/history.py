"""History matching: waves of runs rule out parameters, an emulator of what is left gives the posterior.

References
----------
.. [1] Craig, Goldstein, Seheult, Smith (1997). Pressure matching for hydrocarbon reservoirs: a case
       study in the use of Bayes linear strategies for large computer experiments.
.. [2] Vernon, Goldstein, Bower (2010). Galaxy formation: a Bayesian uncertainty analysis. Bayesian
       Analysis 5.
.. [3] Higdon, Gattiker, Williams, Rightley (2008). Computer model calibration using
       high-dimensional output. JASA 103.
.. [4] Kennedy, O'Hagan (2001). Bayesian calibration of computer models. JRSS B 63.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._cache import outer_jit
from jaxnlme._errors import ModelSpecError, SamplingWarning, warn
from jaxnlme._precision import host64
from jaxnlme._typing import Array, Float
from jaxnlme.calibration.emulator import GaussianProcesses, padded, predict_many, train
from jaxnlme.calibration.fitted import (
    AbstractFittedDensity,
    FittedPosterior,
    emulated_posterior,
)
from jaxnlme.calibration.inversion import Runs
from jaxnlme.calibration.parameters import PriorDensity
from jaxnlme.calibration.standard import (
    from_standard,
    gaussian_problem,
    to_standard,
)
from jaxnlme.calibration.starts import whole
from jaxnlme.design.frames import make_frame
from jaxnlme.numerics.chain_statistics import normal_quantile
from jaxnlme.numerics.mcmc import map_points
from jaxnlme.priors.base import as_key

__all__ = ["EmulatedDensity", "HistoryMatch", "Wave", "history_match"]

CANDIDATES = 4000  # inputs that are judged at once
LEFT = 1000  # of what is left that are kept
ROUNDS = 30  # of drawing candidates around those that are left
DROPPED = 0.01  # variance of outputs, in units of that of the errors, that components may leave out
MAX_COMPONENTS = 20
MAX_CHECK = 4.0  # standard deviations, largest of a few dozen
GOOD_ENOUGH = 0.01  # mean variance of the emulator, in the same units, at which waves end


class Component(eqx.Module):
    """The emulator of one wave: principal components of the whitened outputs.

    Attributes
    ----------
    processes
        One per component.
    data
        (K,) coordinates of the observations.
    """

    processes: GaussianProcesses
    data: Float[Array, "K"]

    def judge(self, x: Float[Array, "p"]) -> tuple[Float[Array, "K"], Float[Array, "K"]]:
        """Return standardised distances to the data, and variances 1 + that of the emulator."""
        mean, variance = self.processes.predict(x)
        return (self.data - mean) / jnp.sqrt(1 + variance), 1 + variance

    def implausibility(self, x: Float[Array, "p"]) -> Float[Array, ""]:
        """Return the largest distance of any component [2]_."""
        return jnp.max(jnp.abs(self.judge(x)[0]))


@outer_jit
def _judged(component: Component, x: Array) -> tuple[Array, Array]:
    """Implausibilities (n,), and variances of the emulator (n, K)."""

    def one(point: Array) -> tuple[Array, Array]:
        distance, variance = component.judge(point)
        return jnp.max(jnp.abs(distance)), variance - 1

    return map_points(one, x)


class EmulatedDensity(AbstractFittedDensity):
    """Likelihood in which the last wave's emulator stands for the model, with its error [4]_.

    Attributes
    ----------
    prior
        Priors, for the coordinates of the emulators.
    last
        Emulator of the last wave.
    before
        Those of earlier waves, which rule out what is above the cutoff.
    cutoff, constant
        Largest implausibility; log likelihood where the components meet the data.
    """

    prior: PriorDensity
    last: Component
    before: tuple[Component, ...]
    cutoff: Any
    constant: Any

    def rows(self, theta):
        x = to_standard(self.prior, theta)
        distance, variance = self.last.judge(x)
        value = -0.5 * (distance**2 + jnp.log(variance)) + self.constant / distance.shape[0]
        inside = jnp.all(jnp.isfinite(x))
        for component in self.before:
            inside = inside & (component.implausibility(x) <= self.cutoff)
        return jnp.where(inside, value, jnp.full_like(value, -jnp.inf))

    @property
    def live(self):
        return np.ones(len(np.asarray(self.last.data)), bool)

    def replicate(self, theta, rng, noise, re):
        raise ModelSpecError(
            "posterior_predictive: this posterior emulates the model; give the posterior of the model itself, "
            "with draws of this one: posterior_predictive(posterior, chain)."
        )


@dataclasses.dataclass(frozen=True)
class Wave:
    """One wave of runs.

    Attributes
    ----------
    runs : int
        New runs of the model.
    trained_on : int
        Runs that the emulator learned from.
    components : int
        Principal components of the outputs.
    space : float
        Share of the prior that is left after it (0: below 1 in 4000).
    variance : float
        Mean variance of the emulator's worst component in what is left, in units of the data's errors.
    outliers : float
        Share of leave-one-out errors beyond 3 predicted standard deviations (0.003 if all is normal).
    """

    runs: int
    trained_on: int
    components: int
    space: float
    variance: float
    outliers: float


@dataclasses.dataclass(frozen=True)
class HistoryMatch:
    """What :func:`history_match` found.

    Attributes
    ----------
    posterior : FittedPosterior
        The emulated posterior, for :func:`sample` and all else that takes one.
    waves : list of Wave
    points : ndarray (n, p)
        All runs, natural scale.
    outputs : dict of ndarray (n, times)
        Their outputs at the observed times, by variable.
    log_posteriors : ndarray (n,)
        Of the model itself at its runs.
    failures : int
        Runs without a result.
    check : float
        Largest error of the last emulator at max(2 p, 8) further runs where the posterior is, in standard
        deviations of data and emulator together. Small where the emulator is the model.
    left : ndarray (m, p)
        Points that no wave rules out.
    """

    posterior: FittedPosterior
    waves: list[Wave]
    points: np.ndarray
    outputs: dict[str, np.ndarray]
    log_posteriors: np.ndarray
    failures: int
    check: float
    left: np.ndarray
    _components: tuple[Component, ...]

    @host64
    def implausibility(self, theta: Any) -> Any:
        """Return the largest implausibility over all waves and components at (n, p) natural points."""
        points = self.posterior.parameters.points(theta)
        x = _standard_many(self.posterior.prior, np.atleast_2d(points))
        return _worst(self._components, np.asarray(x))

    def summary(self, kind: str = "pandas") -> Any:
        """Return a frame with one row per wave: wave, runs, trained_on, components, space, variance, outliers."""
        names = [f.name for f in dataclasses.fields(Wave)]
        columns = {"wave": list(range(1, len(self.waves) + 1))}
        return make_frame(
            columns | {name: [getattr(w, name) for w in self.waves] for name in names}, kind
        )


@outer_jit
def _standard_many(prior: PriorDensity, theta: Array) -> Array:
    return jax.vmap(lambda point: to_standard(prior, point))(theta)


@outer_jit
def _natural_many(prior: PriorDensity, x: Array) -> Array:
    return jax.vmap(lambda point: from_standard(prior, point))(x)


@outer_jit
def _densities(density: EmulatedDensity, prior: PriorDensity, theta: Array) -> Array:
    return jax.lax.map(
        lambda x: prior.log_prob(x) + density.log_likelihood(x), theta, batch_size=64
    )


def _worst(components: tuple[Component, ...], x: np.ndarray) -> np.ndarray:
    if not components:
        return np.zeros(len(x))
    return np.max([np.asarray(_judged(one, x)[0]) for one in components], axis=0)


@host64
def history_match(
    problem: Any,
    *,
    n_waves: Any = 3,
    n_runs: Any = None,
    cutoff: Any = 4.0,
    key: Any = 0,
) -> HistoryMatch:
    """Calibrate an expensive model by waves of runs and Gaussian-process emulators.

    Parameters
    ----------
    problem
        A posterior from :func:`make_posterior`, or an :class:`EnsembleSampler`. The likelihood is
        Gaussian with known errors; the model may be plain Python.
    n_waves
        Waves at most; they end when the emulator's variance is below 1 % of the data's.
    n_runs
        Runs of the model per wave. Default: max(10 p, 30).
    cutoff
        Implausibility from which a point is ruled out: distance between data and emulator over the
        standard deviation of both, largest over principal components. 3 is common [2]_; the default cuts
        less of the posterior where there are many components.
    key
        Randomness.

    Returns
    -------
    HistoryMatch

    Raises
    ------
    ModelSpecError
        Errors that are not Gaussian with known size, too few runs that succeed, or nothing that is left.

    Warns
    -----
    SamplingWarning
        The emulator is off by more than it says (leave-one-out, and at the runs that check it), or its variance
        is above that of the data in what is left: give more runs or waves.

    Notes
    -----
    The first wave is a latin hypercube of the priors; the next ones fill what is left evenly, and max(2 p, 8)
    runs at the end check the emulator. Outputs
    are divided by their errors, and their principal components are emulated [3]_ by processes with a
    squared exponential kernel, a length per parameter and a linear trend. In the likelihood each component
    has the variance of data plus emulator [4]_: ignorance of the model counts as error.

    Examples
    --------
    >>> from jaxnlme.calibration import ModelRunner, Normal, ParameterSet, Target, make_posterior, sample
    >>> times = np.arange(6.0)
    >>> def slow_decay(params):  # think of hours per run
    ...     return {"y": params["A"] * np.exp(-params["k"] * times)}
    >>> posterior = make_posterior(
    ...     ParameterSet({"A": Normal(4, 2), "k": Normal(0.5, 0.2)}),
    ...     Target().add_variable("y", times, 5 * np.exp(-0.4 * times), 0.2),
    ...     ModelRunner(model_factory=slow_decay, output_variables=["y"], times=times),
    ... )
    >>> found = history_match(posterior, n_runs=20, key=1)
    >>> len(found.points), bool(found.check < 0.1)
    (28, True)
    >>> chain = sample(found.posterior, num_steps=500, progress=False)
    >>> [round(float(chain[name][100:].mean()), 1) for name in ("A", "k")]
    [5.0, 0.4]
    """
    posterior, data = gaussian_problem(problem, "history_match")
    p = len(posterior.names)
    n_waves = whole("n_waves", n_waves, 1)
    n = whole("n_runs", max(10 * p, 30) if n_runs is None else n_runs, p + 3)
    if not float(cutoff) > 0:
        raise ModelSpecError(f"cutoff={cutoff!r}: a positive number; 3 to 4 is usual.")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(key))).tolist())
    runs = Runs(posterior, data)
    x = np.stack(
        [normal_quantile((rng.permutation(n) + rng.uniform(size=n)) / n) for _ in range(p)], 1
    )
    components: tuple[Component, ...] = ()
    waves: list[Wave] = []
    xs, zs, values = np.empty((0, p)), np.empty((0, len(data.y))), np.empty(0)
    while True:
        z, _, value = runs(x)
        xs, zs, values = (
            np.concatenate([xs, x]),
            np.concatenate([zs, z]),
            np.concatenate([values, value]),
        )
        used = np.isfinite(zs).all(axis=1) & (_worst(components, xs) <= 1.5 * float(cutoff))
        if used.sum() < p + 3:
            raise ModelSpecError(
                f"history_match: only {used.sum()} runs are usable in wave {len(waves) + 1}; give a larger "
                "n_runs=, or mend the model where it fails."
            )
        component, project, errors, dropped = _emulator(xs[used], zs[used], data.y)
        components = (*components, component)
        left, space = _left(components, float(cutoff), rng, xs[np.argsort(values)[-10 * p :]])
        variance = float(np.asarray(_judged(component, left)[1]).mean(axis=0).max())
        waves.append(Wave(len(x), int(used.sum()), errors.shape[1], space, variance,
                          float((np.abs(errors) > 3).mean())))  # fmt: skip
        if len(waves) == n_waves or variance < GOOD_ENOUGH:
            break
        x = _spread(left, n, rng)
    density = EmulatedDensity(
        prior=posterior.prior, last=component, before=components[:-1], cutoff=float(cutoff),
        constant=float(data.constant) - 0.5 * dropped,
    )  # fmt: skip
    natural = np.asarray(_natural_many(posterior.prior, left))
    value = np.asarray(_densities(density, posterior.prior, natural))
    best = np.argsort(-value)[: 20 * p + 40]
    check = _check(runs, component, project, left[rng.choice(best, size=max(2 * p, 8))])
    _tell(waves[-1], check)
    return HistoryMatch(
        posterior=emulated_posterior(density, posterior.prior, natural[best], "emulated"),
        waves=waves, points=np.concatenate(runs.points), outputs=runs.by_variable(),
        log_posteriors=np.concatenate(runs.values), failures=runs.failures, check=check,
        left=natural, _components=components,
    )  # fmt: skip


def _check(runs: Runs, component: Component, project: Any, x: np.ndarray) -> float:
    """Run the model where the posterior is; the largest error of the emulator over its standard deviation."""
    z, *_ = runs(x)
    z, x = z[np.isfinite(z).all(axis=1)], x[np.isfinite(z).all(axis=1)]
    if not len(z):
        return float("nan")
    mean, variance = (np.asarray(a) for a in predict_many(component.processes, x))
    # Errors far below those of the data do no harm, however sure the emulator is.
    return float((np.abs(project(z) - mean) / np.sqrt(1 + variance)).max())


def _tell(wave: Wave, check: float) -> None:
    if wave.outliers > 0.03 or check > MAX_CHECK:
        warn(
            f"history_match: the emulator is surer than it should be: {wave.outliers:.0%} of its leave-one-out "
            f"errors are beyond 3 of its standard deviations, and at the runs that check it it is off by up "
            f"to {check:.2g} standard deviations of data and emulator. Give a larger n_runs= or n_waves=.",
            SamplingWarning,
        )
    if wave.variance > 1:
        warn(
            f"history_match: the emulator's variance is {wave.variance:.2g} times that of the data in what is "
            "left, so that its ignorance shapes the posterior. Give a larger n_runs= or n_waves=.",
            SamplingWarning,
        )


def _emulator(
    x: np.ndarray, z: np.ndarray, y: np.ndarray
) -> tuple[Component, Any, np.ndarray, float]:
    """Emulate the principal components of whitened outputs (n, d).

    Returns
    -------
    component, function of outputs (m, d) that gives theirs, leave-one-out errors, and the squared distance of
    the data from the span of the components
    """
    middle = z.mean(axis=0)
    _, s, vt = np.linalg.svd(z - middle, full_matrices=False)
    rest = np.concatenate([np.cumsum((s**2 / len(z))[::-1])[::-1], [0.0]])
    count = int(np.clip(np.argmax(rest <= DROPPED), 1, MAX_COMPONENTS))
    basis = vt[:count]
    processes, errors = train(x, (z - middle) @ basis.T)
    gap = y - middle
    own = basis @ gap
    processes = padded(processes)
    data = np.pad(own, (0, len(processes.mean) - count))  # components that are added meet it

    def project(outputs: np.ndarray) -> np.ndarray:
        return np.pad((outputs - middle) @ basis.T, ((0, 0), (0, len(data) - count)))

    return Component(processes, data), project, errors, float(gap @ gap - own @ own)


def _left(
    components: tuple[Component, ...], cutoff: float, rng: np.random.Generator, best: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return points that no wave rules out, and the share of the prior that is left."""
    p = best.shape[1]

    def judge(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Far out an emulator knows nothing and rules nothing out: what the prior excludes is left out.
        far = (x**2).sum(axis=1) > p + 4 * np.sqrt(2 * p)
        return x, np.where(far, np.inf, _worst(components, x))

    x, worst = judge(rng.normal(size=(CANDIDATES, p)))
    kept = x[worst <= cutoff]
    space = len(kept) / CANDIDATES
    tried, how_bad = x, worst
    for _ in range(ROUNDS):
        if len(kept) >= LEFT:
            break
        seeds = kept
        if len(kept) < 4 * p + 4:  # the least implausible ones show the way
            seeds = np.concatenate([kept, tried[np.argsort(how_bad)[: 10 * p + 10]], best])
        root = np.linalg.cholesky(np.cov(seeds.T).reshape(p, p) + 1e-12 * np.eye(p))
        wide = 1.5 * rng.standard_normal((CANDIDATES, p)) @ root.T
        x, worst = judge(seeds.mean(axis=0) + wide)
        kept = np.concatenate([kept, x[worst <= cutoff]])
        pool, bad = np.concatenate([tried, x]), np.concatenate([how_bad, worst])
        order = np.argsort(bad)[:CANDIDATES]
        tried, how_bad = pool[order], bad[order]
    if len(kept) < p + 2:
        raise ModelSpecError(
            f"history_match: every point is ruled out (the smallest implausibility is {how_bad.min():.3g}, "
            f"cutoff={cutoff:g}): the model does not meet the data within their errors. Enlarge these "
            "(discrepancy=), or the cutoff."
        )
    return kept[rng.permutation(len(kept))[:LEFT]], space


def _spread(left: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Choose n of 5 n random points, each far from those before (maximin)."""
    pool = left[rng.permutation(len(left))[: 5 * n]]
    scaled = (pool - pool.mean(axis=0)) / np.maximum(pool.std(axis=0), 1e-12)
    chosen = [0]
    nearest = ((scaled - scaled[0]) ** 2).sum(axis=1)
    for _ in range(min(n, len(pool)) - 1):
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, ((scaled - scaled[chosen[-1]]) ** 2).sum(axis=1))
    return pool[chosen]
