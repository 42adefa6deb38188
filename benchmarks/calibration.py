"""Ensemble sampling: updates and effective draws per CPU-second against emcee, numpyro and rscm, in one run.

python benchmarks/calibration.py [--quick] [--only SECTION ...] [--out FOLDER]

Contenders of one row run in turn; the best of several rounds counts. CPU seconds are user + system of all
threads of the process. ESS = draws / Sokal's autocorrelation time of the slowest coordinate.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _measure import ROOT, Goal, Report, Sample, Section, race, run_sections, spend

from jaxnlme.calibration import (
    EnsembleSampler,
    ModelRunner,
    Normal,
    ParameterSet,
    Target,
    make_posterior,
    sample,
    sample_many,
)
from jaxnlme.calibration import problem as problems
from jaxnlme.numerics.chain_statistics import autocorr_time

SPEC = json.loads((ROOT / "tests/reference/calibrate/gauss20d_a.json").read_text())["spec"]
MEAN, COVARIANCE = np.array(SPEC["mean"]), np.array(SPEC["cov"])
PRECISION = np.linalg.inv(COVARIANCE)
PEERS = ("emcee", "numpyro", "rscm")


def log_prob(x: Any) -> Any:
    r = x - MEAN
    return -0.5 * r @ (PRECISION @ r)


def numpy_log_prob(x: np.ndarray) -> np.ndarray:
    r = x - MEAN
    return -0.5 * np.einsum("wi,ij,wj->w", r, PRECISION, r)


def start(walkers: int) -> np.ndarray:
    return np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, walkers)


def tau(samples: np.ndarray) -> float:
    """Of the slowest coordinate, in steps; samples (n, walkers, p)."""
    kept = samples[len(samples) // 5 :]
    return max(autocorr_time(kept[:, :, k]) for k in range(kept.shape[2]))


# ---- contenders: each returns a function that gives (steps, walkers, 20) draws -------------------


def ours(moves: str, walkers: int, steps: int) -> Callable[[], np.ndarray]:
    init = start(walkers)
    return lambda: sample(log_prob, init=init, moves=moves, num_steps=steps, progress=False).samples


def with_emcee(walkers: int, steps: int) -> Callable[[], np.ndarray]:
    import emcee

    init = start(walkers)

    def run() -> np.ndarray:
        sampler = emcee.EnsembleSampler(walkers, 20, numpy_log_prob, vectorize=True)
        sampler.run_mcmc(init, steps)
        return np.asarray(sampler.get_chain())

    return run


def with_numpyro(move: str, walkers: int, steps: int) -> Callable[[], np.ndarray]:
    from numpyro.infer import AIES, MCMC

    moves = {"stretch": AIES.StretchMove(), "de": AIES.DEMove()}
    kernel = AIES(potential_fn=lambda x: -log_prob(x), moves={moves[move]: 1.0})
    mcmc = MCMC(kernel, num_warmup=1, num_samples=steps, num_chains=walkers,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    init = start(walkers)

    def run() -> np.ndarray:
        with jax.enable_x64(True):
            mcmc.run(jax.random.key(0), init_params=jnp.asarray(init))
            return np.swapaxes(np.asarray(mcmc.get_samples(group_by_chain=True)), 0, 1)

    return run


def with_rscm(steps: int, free: bool) -> Callable[[], np.ndarray]:
    """The same gaussian as 20 observations of whitened coordinates under wide priors.

    Free: independent normals as priors and a model that returns a constant; the same tau, as affine moves
    do not see the difference.
    """
    import rscm.calibrate as rc

    names = [f"x{k:02d}" for k in range(20)]
    root = np.linalg.inv(np.linalg.cholesky(COVARIANCE))
    parameters, target = rc.ParameterSet(), rc.Target()
    for k, name in enumerate(names):
        scale = 1.0 if free else 1e3 * float(np.sqrt(COVARIANCE[k, k]))
        parameters.add(name, rc.Normal(0.0 if free else float(MEAN[k]), scale))
    nothing = {"y": {0.0: 0.0}}
    for k in range(1 if free else 20):
        target.add_observation("y", float(k), 0.0, 1.0)

    def whitened(params: dict[str, float]) -> dict[str, dict[float, float]]:
        z = root @ (np.array([params[name] for name in names]) - MEAN)
        return {"y": dict(enumerate(z.tolist()))}

    runner = rc.ModelRunner((lambda params: nothing) if free else whitened, names, ["y"])
    sampler = rc.EnsembleSampler(parameters, runner, rc.GaussianLikelihood(), target)
    walkers = sampler.default_n_walkers()
    places = rc.WalkerInit.from_prior() if free else rc.WalkerInit.explicit(start(walkers).tolist())

    def run() -> np.ndarray:
        chain = sampler.run(steps, places)
        return np.asarray(chain.flat_samples(0)).reshape(steps, walkers, 20)

    return run


def measured(run: Callable[[], np.ndarray], keep: list[Any]) -> Callable[[], Sample]:
    """A timed run; its draws stay in `keep`, to be looked at outside the clock."""
    run()  # compiles

    def timed() -> float:
        keep[:] = [run()]
        return 0.0

    return lambda: spend(timed)


def compared(
    programs: dict[str, Callable[[], np.ndarray]], rounds: int
) -> dict[str, tuple[float, float, float]]:
    """Updates per CPU-second, tau, and ESS per CPU-second of each program."""
    kept: dict[str, list[Any]] = {name: [] for name in programs}
    contenders = {n: measured(run, kept[n]) for n, run in programs.items()}
    slow = {n: contenders.pop(n) for n in programs if n.startswith("rscm")}
    best = race(contenders, rounds) | race(slow, 1)
    table = {}
    for name, result in best.items():
        draws = kept[name][0]
        updates = draws.shape[0] * draws.shape[1] / result.cpu
        t = tau(draws)
        table[name] = (updates, t, updates / t)
    return table


COLUMNS = ["program", "updates per CPU s", "tau", "ESS per CPU s", "ESS, jaxnlme de / it"]


def fill(section: Section, table: dict[str, tuple[float, float, float]]) -> None:
    best = table["jaxnlme de"][2]
    section.rows += [[name, u, t, e, best / e] for name, (u, t, e) in table.items()]


# ---- sections ------------------------------------------------------------------------------------


def gaussian(report: Report, quick: bool, r: bool) -> None:
    """20-D gaussian of the references, 64 walkers."""
    steps = 2_000 if quick else 20_000
    programs = {
        "jaxnlme stretch": ours("stretch", 64, steps),
        "jaxnlme de": ours("de", 64, steps),
        "emcee stretch": with_emcee(64, steps),
        "numpyro AIES stretch": with_numpyro("stretch", 64, steps),
        "numpyro AIES de": with_numpyro("de", 64, steps),
        "rscm stretch": with_rscm(steps, free=False),
        "rscm stretch, free model": with_rscm(steps, free=True),
    }
    table = compared(programs, 2 if quick else 5)
    section = Section(
        "20-D gaussian, 64 walkers, warm, draws stored",
        COLUMNS,
        note="Our density and numpyro's is the same function of `jax.numpy`; emcee's is vectorised numpy. rscm "
        "(40 walkers, its only choice) runs a numpy model of 20 outputs; with a free model, normal priors and "
        "a constant output. "
        "Other work on the machine (see the load above) costs those most that write fastest.",
    )
    fill(section, table)
    report.sections.append(section)
    short = 500 if quick else 2_000
    kept: list[Any] = []
    best = race(
        {
            "jaxnlme stretch": measured(ours("stretch", 64, short), kept),
            "jaxnlme de": measured(ours("de", 64, short), kept),
            "numpyro AIES stretch": measured(with_numpyro("stretch", 64, short), kept),
            "numpyro AIES de": measured(with_numpyro("de", 64, short), kept),
        },
        2 if quick else 15,
    )
    speed = {name: 64 * short / result.cpu for name, result in best.items()}
    section = Section(
        f"The same in runs of {short:,} steps", ["program", "updates per CPU s"],
        note="20 MB of draws. numpyro has some 50 ms of its own per run, which count here.",
    )  # fmt: skip
    section.rows = [[name, value] for name, value in speed.items()]
    report.sections.append(section)
    e = {name: values[2] for name, values in table.items()}
    mine = e["jaxnlme de"]
    for text, value, limit, binding in (
        ("ESS, jaxnlme de / emcee", mine / e["emcee stretch"], 15, True),
        ("ESS, jaxnlme de / emcee", mine / e["emcee stretch"], 25, False),
        ("ESS, jaxnlme de / rscm", mine / e["rscm stretch"], 40, True),
        (f"updates, stretch, runs of {short:,}, jaxnlme / numpyro",
         speed["jaxnlme stretch"] / speed["numpyro AIES stretch"], 5, True),
        (f"updates, de, runs of {short:,}, jaxnlme / numpyro",
         speed["jaxnlme de"] / speed["numpyro AIES de"], 5, True),
        (f"updates, stretch, runs of {steps:,}, jaxnlme / numpyro",
         table["jaxnlme stretch"][0] / table["numpyro AIES stretch"][0], 5, True),
        (f"updates, de, runs of {steps:,}, jaxnlme / numpyro",
         table["jaxnlme de"][0] / table["numpyro AIES de"][0], 5, True),
    ):  # fmt: skip
        report.goals.append(Goal(f"20-D, 64 walkers: {text}", value, limit, True, binding))


def large(report: Report, quick: bool, r: bool) -> None:
    """1,024 and 16,384 walkers."""
    for walkers, steps in ((1024, 1000), (16384, 60)):
        steps = max(steps // 10, 10) if quick else steps
        programs = {
            "jaxnlme stretch": ours("stretch", walkers, steps),
            "jaxnlme de": ours("de", walkers, steps),
            "emcee stretch": with_emcee(walkers, steps),
            "numpyro AIES stretch": with_numpyro("stretch", walkers, steps),
        }
        kept: dict[str, list[Any]] = {name: [] for name in programs}
        best = race({n: measured(run, kept[n]) for n, run in programs.items()}, 2 if quick else 4)
        section = Section(
            f"20-D gaussian, {walkers:,} walkers, warm, draws stored",
            ["program", "updates per CPU s", "jaxnlme stretch / it"],
        )
        speed = {n: walkers * steps / result.cpu for n, result in best.items()}
        section.rows = [[n, v, speed["jaxnlme stretch"] / v] for n, v in speed.items()]
        report.sections.append(section)
        ratio = speed["jaxnlme stretch"] / speed["numpyro AIES stretch"]
        text = f"updates, stretch, {walkers:,} walkers, jaxnlme / numpyro"
        report.goals.append(Goal(text, ratio, 10, True, binding=False))


def climate(report: Report, quick: bool, r: bool) -> None:
    """Log densities of the two-layer climate model."""
    sys.path.insert(0, str(ROOT / "tests"))  # for its helpers
    place = ROOT / "tests/calibration/posteriors.py"
    spec = importlib.util.spec_from_file_location("posteriors", place)
    assert spec is not None
    assert spec.loader is not None
    posteriors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(posteriors)
    density = posteriors.density("two_layer_offset_a")
    mean, sd, *_ = posteriors.moments("two_layer_offset_a")
    section = Section(
        "Two-layer climate model: log posterior densities, 270 annual steps, 232 observations",
        ["points", "per CPU s"],
    )
    for n in (64, 1024, 16384):
        z = np.abs(mean + 0.3 * sd * np.random.default_rng(0).normal(size=(n, 5)))
        calls = 1 if quick else max(16384 // n, 1)

        def run(z: np.ndarray = z, calls: int = calls) -> float:
            for _ in range(calls):
                jax.block_until_ready(problems.evaluate_many(density, z))
            return 0.0

        with jax.enable_x64(True):
            run()
            best = race({"": lambda: spend(run)}, 3 if quick else 9)[""]
        section.rows.append([n, n * calls / best.cpu])
    report.sections.append(section)
    speed = section.rows[-1][1]
    report.goals.append(Goal("two-layer log densities per CPU s, 16,384", speed, 7e5, True))


TIMES = np.arange(10.0)


def decay(params: dict[str, Any]) -> dict[str, Any]:
    return {"y": params["A"] * jnp.exp(-params["k"] * TIMES)}


def _decays(count: int) -> list[Any]:
    rng = np.random.default_rng(3)
    parameters = ParameterSet({"A": Normal(5, 2), "k": Normal(0.4, 0.2)})
    seen = 5 * np.exp(-0.4 * TIMES) + 0.2 * rng.normal(size=(count, 10))
    return [
        make_posterior(parameters, Target().add_variable("y", TIMES, y, 0.2), ModelRunner(decay, times=TIMES))
        for y in seen
    ]  # fmt: skip


def many(report: Report, quick: bool, r: bool) -> None:
    """100 data sets by 64 walkers in one program."""
    compiles: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiles.append(name) if "backend_compile" in name else None
    )
    steps = 50 if quick else 500
    posteriors, others = _decays(100), _decays(101)[1:]
    first = time.perf_counter()
    sample_many(posteriors, num_steps=steps, n_walkers=64)
    first, count = time.perf_counter() - first, len(compiles)
    compiles.clear()

    def run() -> float:
        chains = sample_many(others, num_steps=steps, n_walkers=64)
        return float(chains[0].samples.mean())

    best = race({"": lambda: spend(run)}, 2 if quick else 4)[""]
    again = len(compiles)
    section = Section(
        "100 data sets x 64 walkers, exponential decay of 10 observations, one program",
        ["steps", "first call s", "programs compiled", "for other data", "updates per CPU s"],
        note="The first call compiles the draws from the priors, their densities, and the sampler itself.",
    )
    section.rows.append([steps, first, count, again, 6400 * steps / best.cpu])
    report.sections.append(section)
    report.goals.append(Goal("100 data sets: programs compiled for other data", again, 0))


def progress(report: Report, quick: bool, r: bool) -> None:
    """What a progress bar and a callback cost."""
    posterior = _decays(1)[0]
    steps = 2_000 if quick else 40_000
    times, values = TIMES, np.asarray(posterior.data[0].values)
    sampler = EnsembleSampler(
        ParameterSet({"A": Normal(5, 2), "k": Normal(0.4, 0.2)}),
        Target().add_variable("y", times, values, 0.2),
        ModelRunner(decay, times=times),
        n_walkers=64,
    )
    state = sampler.initialize("ball", center=[5, 0.4], radius=[0.2, 0.02], key=1)

    def run(shown: bool) -> Callable[[], Sample]:
        def call() -> float:
            with redirect_stderr(io.StringIO()):
                chain = sampler.run(state, steps, progress=shown)
            return float(chain.samples.mean())

        call()
        return lambda: spend(call)

    best = race({"without": run(False), "with": run(True)}, 2 if quick else 9)
    section = Section(
        f"Progress bar (acceptance, mean log density, tau, ESS, time left), {steps:,} steps",
        ["bar", "CPU s", "wall s"],
        note="Exponential decay, 64 walkers: a density that costs next to nothing.",
    )
    section.rows = [[name, result.cpu, result.wall] for name, result in best.items()]
    report.sections.append(section)
    cost = best["with"].cpu / best["without"].cpu - 1
    report.goals.append(Goal("progress: share of CPU time", cost, 0.05))


SECTIONS = {
    "gaussian": gaussian,
    "large": large,
    "climate": climate,
    "many": many,
    "progress": progress,
}


if __name__ == "__main__":
    about = __doc__.splitlines()[0] if __doc__ else ""
    sys.exit(run_sections("calibration", SECTIONS, about=about, peers=PEERS, r=()))
