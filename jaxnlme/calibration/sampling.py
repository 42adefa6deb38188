"""One call for every sampler: ``sample(log_prob or posterior, method=...)``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme._precision import host64
from jaxnlme.calibration.chain import Chain
from jaxnlme.calibration.driver import Drive, Rows, drive
from jaxnlme.calibration.ensemble import Core, EnsembleSampler
from jaxnlme.calibration.fitted import FittedPosterior
from jaxnlme.calibration.gradient import (
    BoundedFunction,
    Line,
    laplace_start,
    pathfinder_start,
    run_mclmc,
    run_nuts,
)
from jaxnlme.calibration.kernel import start_state
from jaxnlme.calibration.models import HostModel
from jaxnlme.calibration.moves import read_moves
from jaxnlme.calibration.problem import (
    AbstractDensity,
    FunctionDensity,
    Posterior,
    StaticFunction,
    evaluate_many,
)
from jaxnlme.calibration.smc import run_smc
from jaxnlme.calibration.stacked import stack_densities, stacked_starts
from jaxnlme.calibration.starts import (
    check_geometry,
    check_walkers,
    mixing_redraw,
    to_coordinates,
    whole,
)
from jaxnlme.calibration.tempering import run_tempering
from jaxnlme.priors.base import as_key

__all__ = ["sample", "sample_many"]

METHODS = ("ensemble", "nuts", "mclmc", "smc", "tempering", "auto")


@host64
def sample(
    problem: Any,
    *,
    method: str = "ensemble",
    init: Any = None,
    key: Any = 0,
    num_steps: Any = 1000,
    n_walkers: Any = None,
    n_ensembles: Any = 1,
    param_names: Sequence[str] | None = None,
    bounds: Sequence[tuple[Any, Any]] | None = None,
    num_warmup: Any = None,
    start: str = "given",
    thin: Any = 1,
    moves: Any = None,
    stretch_scale: Any = 2.0,
    adapt_steps: Any = 0,
    progress: Any = None,
    callback: Any = None,
    stop: Any = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    checkpoint_every: Any = None,
    overwrite: bool = False,
    store: str = "draws",
    discard: Any = 0,
) -> Any:
    """Draw from a log density.

    Parameters
    ----------
    problem
        ``log_prob(x) -> scalar`` in ``jax.numpy``, defined once at module level; a posterior from
        :func:`make_posterior` or ``fit.log_posterior(priors)``; or an :class:`EnsembleSampler`,
        whose posterior is taken.
    method
        * ``"ensemble"``: affine-invariant ensemble, no gradient; up to about 30 parameters.
        * ``"nuts"``: No-U-turn sampler, one chain per row of `init` (blackjax).
        * ``"mclmc"``: microcanonical Langevin with Metropolis adjustment (blackjax).
        * ``"smc"``: tempered sequential Monte Carlo from the prior (or from a normal around
          `init`); for several modes, and the evidence: ``chain.info["log_evidence"]`` and
          ``["log_evidence_se"]``.
        * ``"tempering"``: ensembles at several temperatures that exchange walkers, from the same
          start as ``"smc"``; for several modes of which SMC may lose one, and the evidence.
        * ``"auto"``: ``"ensemble"`` for plain Python models, else ``"nuts"``.
    init
        (walkers, p) start points on the natural scale: walkers of all ensembles, chains, or the
        points around which SMC starts. A posterior needs none: they are drawn from the prior,
        for a fitted model around its estimates.
    num_steps
        Iterations, draws per chain, or (SMC) particles per ensemble.
    n_walkers, n_ensembles
        Walkers per ensemble (max(2 p, 32)), chains (4) of NUTS and MCLMC; independent ensembles,
        SMC or tempered runs (8).
    param_names
        Names of the components of x. Default x0, x1, ...
    bounds
        (lower, upper) of each component of x, None where open, for a `log_prob` with a bounded
        support: NUTS, MCLMC and SMC then move on the whole line.
    num_warmup
        NUTS and MCLMC: steps of adaptation (1000), not returned; tempering: exchanges (500).
    start
        NUTS and MCLMC: ``"pathfinder"`` or ``"laplace"`` move the starts to draws from a normal
        approximation, checked by Pareto-smoothed importance sampling: ``chain.info["pareto_k"]``.
    thin, moves, stretch_scale, adapt_steps, progress, callback, stop, checkpoint_path, \
checkpoint_every, overwrite, store, discard
        As for :class:`EnsembleSampler`, for ``method="ensemble"`` (moves also for tempering).

    Returns
    -------
    Chain
        With ``store="moments"`` a :class:`StreamedMoments`.

    Raises
    ------
    ModelSpecError
        Options that the method has no use for, missing or unsuitable start points.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> def log_prob(x):
    ...     return -0.5 * jnp.sum(x**2)
    >>> init = np.random.default_rng(0).normal(size=(32, 2))
    >>> chain = sample(log_prob, init=init, num_steps=400, progress=False)
    >>> chain.samples.shape, chain.param_names
    ((400, 32, 2), ['x0', 'x1'])
    """
    if method not in METHODS:
        raise ModelSpecError(
            f"method={method!r}: use one of {list(METHODS)}." + nearest(str(method), METHODS)
        )
    density, priors = _density(problem, init, param_names, bounds)
    key = as_key(key)
    if method == "auto":
        method = "ensemble" if _host(density) else "nuts"
    ensemble_only = {
        "thin": (thin, 1), "moves": (moves, None), "stretch_scale": (stretch_scale, 2.0),
        "adapt_steps": (adapt_steps, 0), "callback": (callback, None), "stop": (stop, None),
        "checkpoint_path": (checkpoint_path, None), "checkpoint_every": (checkpoint_every, None),
        "overwrite": (overwrite, False), "store": (store, "draws"), "discard": (discard, 0),
    }  # fmt: skip
    gradient_only = {"num_warmup": (num_warmup, None), "start": (start, "given")}
    unused = {} if method == "ensemble" else ensemble_only
    if method == "tempering":
        unused = {k: v for k, v in unused.items() if k not in ("moves", "stretch_scale")}
        gradient_only.pop("num_warmup")
    if method not in ("nuts", "mclmc"):
        unused = {**unused, **gradient_only}
    for name, (value, default) in unused.items():
        if value is not default and value != default:
            raise ModelSpecError(
                f"{name}={value!r} has no use for method={method!r}; leave it out."
            )
    if method == "ensemble":
        names = tuple(getattr(density, "names", ()))
        core = Core(
            density,
            n_walkers=check_walkers(_walkers(n_walkers, init, n_ensembles), len(names)),
            moves=moves,
            stretch_scale=stretch_scale,
            n_ensembles=n_ensembles,
            adapt_steps=adapt_steps,
            priors=priors,
        )
        state = _started(core, init, key, priors)
        options = {
            "progress": progress, "callback": callback, "stop": stop,
            "store": store, "discard": discard,
        }  # fmt: skip
        return core.run(
            state, num_steps, thin, checkpoint_every, checkpoint_path, overwrite, options
        )
    if _host(density):
        raise ModelSpecError(
            f"method={method!r} needs a JAX model: a plain Python model has no gradient and is not "
            "run by it. Use method='ensemble'."
        )
    line = Line(density)
    if method == "smc":
        return run_smc(line, init, key, num_steps, 8 if n_ensembles == 1 else n_ensembles, priors)
    if method == "tempering":
        return run_tempering(
            line, init, key, n_steps=whole("num_steps", num_steps, 1),
            warmup=whole("num_warmup", 500 if num_warmup is None else num_warmup, 0),
            runs=8 if n_ensembles == 1 else whole("n_ensembles", n_ensembles, 1),
            walkers=check_walkers(n_walkers, len(line.names)), moves=moves,
            stretch_scale=stretch_scale, priors=priors,
        )  # fmt: skip
    chains = 4 if n_walkers is None else n_walkers
    points = _chain_starts(density, priors, init, chains, key)
    info: dict[str, Any] = {}
    if start == "pathfinder":
        points, info = pathfinder_start(line, points, key)
    elif start == "laplace":
        points, info = laplace_start(line, points, key)
    elif start != "given":
        raise ModelSpecError(f"start={start!r}: use 'given', 'pathfinder' or 'laplace'.")
    warmup = 1000 if num_warmup is None else int(num_warmup)
    run = run_nuts if method == "nuts" else run_mclmc
    return run(line, points, key, int(num_steps), warmup, info, priors)


def _density(problem: Any, init: Any, param_names: Any, bounds: Any) -> tuple[AbstractDensity, Any]:
    if isinstance(problem, EnsembleSampler):
        return problem.posterior, problem.parameters
    if isinstance(problem, AbstractDensity):
        if param_names is not None or bounds is not None:
            raise ModelSpecError(
                "param_names= and bounds= come with the posterior; leave them out."
            )
        if isinstance(problem, FittedPosterior):
            return problem, problem.parameters
        return problem, problem.prior if isinstance(problem, Posterior) else None
    if not callable(problem):
        raise ModelSpecError(
            f"problem={problem!r}: give log_prob(x), a posterior, or an EnsembleSampler."
        )
    if init is None:
        raise ModelSpecError("init= is needed: (walkers, p) start points of a log_prob function.")
    points = np.asarray(init, float)
    if points.ndim != 2:
        raise ModelSpecError(f"init has shape {points.shape}; (walkers, p) is needed.")
    p = points.shape[1]
    names = tuple(param_names) if param_names is not None else tuple(f"x{k}" for k in range(p))
    if len(names) != p or len(set(names)) != p:
        raise ModelSpecError(f"param_names: {p} different names are needed, got {list(names)}.")
    density = FunctionDensity(StaticFunction(problem), names)
    if bounds is None:
        return density, None
    if len(bounds) != p:
        raise ModelSpecError(f"bounds: {len(bounds)} pairs for {p} parameters.")
    return BoundedFunction(StaticFunction(problem), names, _read_bounds(bounds)), None


def _read_bounds(bounds: Sequence[tuple[Any, Any]]) -> tuple[tuple[float, float], ...]:
    out = []
    for k, (low, high) in enumerate(bounds):
        low, high = -np.inf if low is None else float(low), np.inf if high is None else float(high)
        if not low < high:
            raise ModelSpecError(f"bounds[{k}]: lower {low} must be below upper {high}.")
        out.append((low, high))
    return tuple(out)


def _host(density: AbstractDensity) -> bool:
    return isinstance(density, Posterior) and isinstance(density.model, HostModel)


def _walkers(n_walkers: Any, init: Any, n_ensembles: int) -> Any:
    if n_walkers is not None or init is None:
        return n_walkers
    rows = np.shape(init)[0]
    if rows % n_ensembles:
        raise ModelSpecError(f"init has {rows} rows, which {n_ensembles} ensembles cannot share.")
    return rows // n_ensembles


def _started(core: Core, init: Any, key: Any, priors: Any) -> Any:
    total, p = core.n_walkers * core.n_ensembles, len(core.names)
    start = jax.random.fold_in(key, 2**31)
    if init is None:
        if priors is None:
            raise ModelSpecError("init= is needed: start points of a log_prob function.")
        theta = _from_prior(core.density, total, start)
    else:
        theta = np.asarray(init, float)
        if theta.shape != (total, p):
            raise ModelSpecError(f"init has shape {theta.shape}, expected {(total, p)}.")
        check_geometry(theta[: core.n_walkers], core.names)
    z = to_coordinates(core.density, theta)
    redraw = mixing_redraw(int(jax.random.key_data(start).ravel()[-1]))
    return core.started(z, key, redraw, told=init is not None)


def _from_prior(density: AbstractDensity, n: int, key: Any) -> np.ndarray:
    if not isinstance(density, Posterior):
        raise ModelSpecError("init= is needed: start points of a log_prob function.")
    if isinstance(density, FittedPosterior):
        return np.asarray(density.starts(n, key))
    return np.asarray(density.prior.draw(key, n, np.float64))


def _chain_starts(
    density: AbstractDensity, priors: Any, init: Any, chains: int, key: Any
) -> np.ndarray:
    """(chains, p) natural points with density."""
    if init is not None:
        points = np.asarray(init, float)
        if points.ndim != 2 or points.shape[1] != len(getattr(density, "names", ())):
            raise ModelSpecError(f"init has shape {points.shape}; (chains, p) is needed.")
    else:
        if priors is None:
            raise ModelSpecError("init= is needed: start points of a log_prob function.")
        # The best of a few draws per chain: far tails of the prior only waste the adaptation.
        many = _from_prior(density, 32 * chains, jax.random.fold_in(key, 2**31))
        value = np.asarray(evaluate_many(density, to_coordinates(density, many))[0])
        best = np.argmax(value.reshape(chains, 32), axis=1)
        points = many.reshape(chains, 32, -1)[np.arange(chains), best]
    value = np.asarray(evaluate_many(density, to_coordinates(density, points))[0])
    bad = np.flatnonzero(~np.isfinite(value))
    if len(bad):
        raise ModelSpecError(
            f"the log density is not finite at start {bad[:5].tolist()} of {len(points)}; give init "
            "where it is."
        )
    return points


@host64
def sample_many(
    posteriors: Sequence[AbstractDensity],
    *,
    num_steps: Any,
    key: Any = 0,
    init: Any = None,
    n_walkers: Any = None,
    thin: Any = 1,
    moves: Any = None,
    stretch_scale: Any = 2.0,
    progress: Any = False,
) -> list[Chain]:
    """Sample the posteriors of many data sets of one shape in one compiled program.

    Parameters
    ----------
    posteriors
        From :func:`make_posterior` or ``fit.log_posterior(priors)``, with the same parameters, model
        and likelihood, and data of the same shapes.
    num_steps, key, n_walkers, thin, moves, stretch_scale, progress
        As for :func:`sample`.
    init
        (data sets, walkers, p) start points on the natural scale. Default: draws from each prior, for
        fitted models around each estimate.

    Returns
    -------
    list of Chain
        One per posterior, in order.

    Raises
    ------
    ModelSpecError
        The posteriors differ in more than numbers, or a start has no density.

    Examples
    --------
    >>> import jaxnlme as jn
    >>> from jaxnlme.calibration import HalfNormal, Normal
    >>> rng = np.random.default_rng(0)
    >>> posteriors = []
    >>> for slope in (1.0, 2.0):
    ...     x = rng.normal(size=20)
    ...     fit = jn.fit_glm("y ~ x", {"x": x, "y": slope * x + 0.1 * rng.normal(size=20)})
    ...     priors = {"fixed": Normal(0, 5), "sigma": HalfNormal(1)}
    ...     posteriors.append(fit.log_posterior(priors))
    >>> chains = sample_many(posteriors, num_steps=400, key=1)
    >>> [round(float(chain["x"][100:].mean()), 1) for chain in chains]
    [1.0, 2.0]
    """
    if not len(posteriors):
        raise ModelSpecError("posteriors: at least one is needed.")
    stacked, key = stack_densities(posteriors), as_key(key)
    e, names = len(posteriors), stacked.names
    w = check_walkers(n_walkers, len(names))
    chosen, weights = read_moves(moves, stretch_scale)
    z, value, blobs = stacked_starts(posteriors, stacked, init, w, key)
    state = start_state(z, value, blobs, key, weights)
    rows = Rows(int(num_steps) // int(thin) + 1)
    job = Drive(stacked, chosen, state, int(num_steps), int(thin), 0, rows, progress=progress)
    final, _ = drive(job)
    rows = job.rows.since()
    n = len(rows["samples"])
    samples = rows["samples"].reshape(n, e, w, len(names))
    log_probs = rows["log_probs"].reshape(n, e, w)
    fractions = np.asarray(final.accepted) / max(int(final.iteration), 1)
    return [
        Chain(samples[:, k], log_probs[:, k], names, acceptance_fractions=fractions[k],
              thinning=int(thin), info={"method": "ensemble"})
        for k in range(e)
    ]  # fmt: skip
