"""Hare and lynx, 1900-1920: the predator-prey equations, calibrated to both pelts.

Log-normal errors whose standard deviations are parameters; four independent ensembles.
Run it: python3 dev.py run python examples/calibration_hare_lynx.py
"""

import numpy as np

import jaxnlme.calibration as cal
from jaxnlme.structural.predator_prey import PredatorPrey

# Thousands of pelts, Hudson's Bay Company (Carpenter 2018).
HARE = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1, 40.3, 57, 76.6, 52.3, 19.5,
        11.2, 7.6, 14.6, 16.2, 24.7]  # fmt: skip
LYNX = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4, 8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8,
        9.7, 10.1, 8.6]  # fmt: skip


def main():
    times = np.arange(21.0)
    parameters = cal.ParameterSet()
    for name, loc, scale in (("alpha", 1, 0.5), ("beta", 0.05, 0.05), ("gamma", 1, 0.5),
                             ("delta", 0.05, 0.05)):  # fmt: skip
        parameters.add(name, cal.Bound(cal.Normal(loc, scale), lower=0))
    for name in ("u0", "v0"):
        parameters.add(name, cal.LogNormal(np.log(10), 1))
    for name in ("sigma_u", "sigma_v"):
        parameters.add(name, cal.LogNormal(-1, 1))
    target = cal.Target().add_variable("prey", times, HARE, "sigma_u")
    target.add_variable("predator", times, LYNX, "sigma_v")
    runner = cal.ModelRunner(PredatorPrey(times), times=times)
    posterior = cal.make_posterior(parameters, target, runner, cal.LogNormalLikelihood())

    start = cal.PointEstimator(parameters, target, runner, cal.LogNormalLikelihood()).optimize(
        "NelderMead", n_restarts=4, n_samples=2000, polish=False
    )
    rng = np.random.default_rng(0)
    init = np.array(list(start.best_params.values())) * np.exp(0.05 * rng.normal(size=(128, 8)))
    chain = cal.sample(posterior, init=init, n_ensembles=4, moves=["de", "snooker"], num_steps=20_000,
                   thin=10, progress=False)  # fmt: skip
    for name in posterior.names:
        x = chain[name][200:]
        print(f"{name:8s} {x.mean():8.4f} +- {x.std():.4f}")
    print(f"converged: {chain.is_converged(discard=200)}")


if __name__ == "__main__":
    main()
