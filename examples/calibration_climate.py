"""Calibrate the two-layer climate model to temperature and ocean heat, 1850-2020.

Synthetic observations of known parameters; priors, anomalies, point estimate, checkpoint, resume.
Run it: python3 dev.py run python examples/calibration_climate.py
"""

import tempfile
from pathlib import Path

import numpy as np

import jaxnlme.calibration as cal
from jaxnlme.structural.two_layer import TwoLayer

TRUTH = {"lam": 1.3, "gamma": 0.8, "C": 8.0, "Cd": 110.0}


def main():
    rng = np.random.default_rng(1)
    years = np.arange(1750, 2020)
    forcing = 3.2 * np.exp((years - 2019) / 45.0)
    model = TwoLayer(forcing, start=1750)
    runner = cal.ModelRunner(model, output_variables=["T", "H"], times=model.times)
    seen = {v: y[100:] for v, y in runner.run(TRUTH).items()}
    times = model.times[100:]
    T = seen["T"] + 0.1 * rng.normal(size=len(times))
    H = seen["H"] + 4.0 * rng.normal(size=len(times))

    parameters = cal.ParameterSet({
        "lam": cal.Bound(cal.Normal(1.2, 0.5), lower=0.2, upper=3.0),
        "gamma": cal.Uniform(0.2, 2.0),
        "C": cal.LogNormal(np.log(8), 0.4),
        "Cd": cal.LogNormal(np.log(100), 0.5),
    })  # fmt: skip
    target = cal.Target().add_variable("T", times, T, 0.1).add_variable("H", times, H, 4.0)
    target = target.with_reference_period(1850, 1900)  # anomalies: the datum is unknown

    best = cal.PointEstimator(parameters, target, runner).optimize(n_restarts=4, n_samples=200)
    print("best fit  " + "  ".join(f"{k} {v:.3f}" for k, v in best.best_params.items()))

    sampler = cal.EnsembleSampler(
        parameters, target, runner, moves=["de", "stretch"], n_ensembles=4
    )
    start = sampler.initialize("ball", center=best.best_params, radius=[0.1, 0.05, 0.5, 5.0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "climate.chain"
        sampler.run(start, 4000, thin=10, checkpoint_path=path, progress=False)
        chain = sampler.resume(path, 26_000, progress=False)  # the bits of 30 000 at once
    table = chain.summary(discard=500)
    for row in table.itertuples():
        print(
            f"{row.parameter:6s} {row.mean:8.3f} +- {row.sd:6.3f}   true {TRUTH[row.parameter]:g}"
        )
    print(f"converged: {chain.is_converged(discard=500)}")


if __name__ == "__main__":
    main()
