"""Hare and lynx, 1900-1920: the predator-prey equations, calibrated to both pelts.

Log-normal errors whose standard deviations are parameters; NUTS and the ensemble sampler agree.
Run it: python3 dev.py run python examples/calibration_hare_lynx.py
"""

import numpy as np

from jaxnlme.calibration import (
    Bound,
    LogNormal,
    LogNormalLikelihood,
    ModelRunner,
    Normal,
    ParameterSet,
    Target,
    make_posterior,
    sample,
)
from jaxnlme.structural.predator_prey import PredatorPrey

# Thousands of pelts, Hudson's Bay Company (Carpenter 2018).
HARE = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1, 40.3, 57, 76.6, 52.3, 19.5,
        11.2, 7.6, 14.6, 16.2, 24.7]  # fmt: skip
LYNX = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4, 8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8,
        9.7, 10.1, 8.6]  # fmt: skip


def main():
    times = np.arange(21.0)
    parameters = ParameterSet()
    for name, loc, scale in (("alpha", 1, 0.5), ("beta", 0.05, 0.05), ("gamma", 1, 0.5),
                             ("delta", 0.05, 0.05)):  # fmt: skip
        parameters.add(name, Bound(Normal(loc, scale), lower=0))
    for name in ("u0", "v0"):
        parameters.add(name, LogNormal(np.log(10), 1))
    for name in ("sigma_u", "sigma_v"):
        parameters.add(name, LogNormal(-1, 1))
    target = Target().add_variable("prey", times, HARE, "sigma_u")
    target.add_variable("predator", times, LYNX, "sigma_v")
    runner = ModelRunner(PredatorPrey(times), times=times)
    posterior = make_posterior(parameters, target, runner, LogNormalLikelihood())

    nuts = sample(posterior, method="nuts", num_steps=1000, num_warmup=500, key=1)
    start = nuts.flat_samples()[::125]  # 32 walkers
    walkers = sample(posterior, init=start, moves="de", num_steps=15_000, thin=10, progress=False)
    print("parameter   NUTS            ensemble")
    for k, name in enumerate(posterior.names):
        a, b = nuts.flat_samples()[:, k], walkers.flat_samples(100)[:, k]
        print(f"{name:9s} {a.mean():8.4f} {a.std():.4f}  {b.mean():8.4f} {b.std():.4f}")
    print(f"divergences {nuts.info['divergences']}, NUTS converged: {nuts.is_converged()}")


if __name__ == "__main__":
    main()
