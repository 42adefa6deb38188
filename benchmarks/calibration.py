"""Ensemble sampling against emcee and numpyro: 20-D gaussian, and densities of the climate model.

All in one run on one machine, per CPU-second (the least of three repeats); ESS = draws / Sokal tau.
Run it: python3 dev.py run python benchmarks/calibration.py   (pip install emcee numpyro for the others)
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme.calibration import problem as problems
from jaxnlme.calibration import sample
from jaxnlme.numerics.chain_statistics import autocorr_time

ROOT = Path(__file__).resolve().parent.parent
SPEC = json.loads((ROOT / "tests/reference/calibrate/gauss20d_a.json").read_text())["spec"]
MEAN, COVARIANCE = np.array(SPEC["mean"]), np.array(SPEC["cov"])
PRECISION = np.linalg.inv(COVARIANCE)
WALKERS = 64


def log_prob(x: Any) -> Any:
    r = x - MEAN
    return -0.5 * r @ (PRECISION @ r)


def numpy_log_prob(x: np.ndarray) -> np.ndarray:
    r = x - MEAN
    return -0.5 * np.einsum("wi,ij,wj->w", r, PRECISION, r)


def start(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, WALKERS)


def tau(samples: np.ndarray) -> float:
    return max(autocorr_time(samples[:, :, k]) for k in range(samples.shape[2]))


def timed(function: Any, repeats: int = 3) -> tuple[float, Any]:
    best, out = np.inf, None
    for _ in range(repeats):
        began = time.process_time()
        out = function()
        best = min(best, time.process_time() - began)
    return best, out


def ours(moves: str, steps: int) -> dict[str, float]:
    def run() -> np.ndarray:
        return sample(log_prob, init=start(0), moves=moves, num_steps=steps, progress=False).samples

    run()  # compile
    seconds, samples = timed(run)
    return row(seconds, samples, steps)


def row(seconds: float, samples: np.ndarray, steps: int) -> dict[str, float]:
    t = tau(samples[steps // 5 :])
    updates = WALKERS * steps / seconds
    return {"updates_per_cpu_s": updates, "tau": t, "ess_per_cpu_s": updates / t}


def with_emcee(steps: int) -> dict[str, float] | None:
    try:
        import emcee
    except ImportError:
        return None

    def run() -> np.ndarray:
        sampler = emcee.EnsembleSampler(WALKERS, 20, numpy_log_prob, vectorize=True)
        sampler.run_mcmc(start(0), steps)
        return sampler.get_chain()

    seconds, samples = timed(run, 2)
    return row(seconds, samples, steps)


def with_numpyro(steps: int) -> dict[str, float] | None:
    try:
        from numpyro.infer import AIES, MCMC
    except ImportError:
        return None
    kernel = AIES(potential_fn=lambda x: -log_prob(x), moves={AIES.StretchMove(): 1.0})
    mcmc = MCMC(kernel, num_warmup=1, num_samples=steps, num_chains=WALKERS,
                chain_method="vectorized", progress_bar=False)  # fmt: skip

    def run() -> np.ndarray:
        mcmc.run(jax.random.key(0), init_params=jnp.asarray(start(0)))
        return np.swapaxes(np.asarray(mcmc.get_samples(group_by_chain=True)), 0, 1)

    with jax.enable_x64(True):
        run()
        seconds, samples = timed(run, 2)
    return row(seconds, samples, steps)


def climate() -> float:
    """Densities of the two-layer problem per CPU-second, 16 384 points."""
    sys.path.insert(0, str(ROOT / "tests"))  # for its helpers
    place = ROOT / "tests/calibration/posteriors.py"
    spec = importlib.util.spec_from_file_location("posteriors", place)
    posteriors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(posteriors)
    density = posteriors.density("two_layer_offset_a")
    mean, sd, *_ = posteriors.moments("two_layer_offset_a")
    z = np.abs(mean + 0.3 * sd * np.random.default_rng(0).normal(size=(16384, 5)))
    with jax.enable_x64(True):
        jax.block_until_ready(problems.evaluate_many(density, z))
        seconds, _ = timed(lambda: jax.block_until_ready(problems.evaluate_many(density, z)), 5)
    return 16384 / seconds


def main() -> None:
    steps = 10_000
    table = {
        "jaxnlme stretch": ours("stretch", steps),
        "jaxnlme de": ours("de", steps),
        "emcee stretch": with_emcee(steps // 2),
        "numpyro AIES stretch": with_numpyro(steps // 2),
    }
    print(f"20-D gaussian, {WALKERS} walkers")
    for name, result in table.items():
        if result is None:
            print(f"  {name:22s} not installed")
            continue
        print(
            f"  {name:22s} {result['updates_per_cpu_s']:10.3g} updates/CPU-s   tau {result['tau']:5.0f}"
            f"   {result['ess_per_cpu_s']:8.0f} ESS/CPU-s"
        )
    print(f"two-layer log densities: {climate():.3g} per CPU-s")


if __name__ == "__main__":
    main()
