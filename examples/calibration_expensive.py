"""A model too slow for a sampler: Kalman inversion, and history matching with an emulator.

Run it: python3 dev.py run python examples/calibration_expensive.py
"""

import numpy as np

from jaxnlme import calibration as cal

DAYS = np.arange(0.0, 60.0, 4.0)
TRUTH = {"spread": 0.5, "length": 5.0, "first": 1e-3}


def epidemic(params):
    """Ill per thousand, every fourth day; think of a simulation that takes an hour."""
    ill, well, seen = params["first"], 1.0, []
    for day in range(60):
        if day % 4 == 0:
            seen.append(1000 * ill)
        caught = params["spread"] * ill * well
        ill, well = ill + caught - ill / params["length"], well - caught
    return {"ill": np.array(seen)}


def main():
    rng = np.random.default_rng(1)
    cases = epidemic(TRUTH)["ill"] + 8 * rng.normal(size=len(DAYS))
    parameters = cal.ParameterSet({"spread": cal.Normal(0.6, 0.15), "length": cal.Uniform(2, 10)})
    parameters.add("first", cal.LogNormal(np.log(1e-3), 0.7))
    target = cal.Target().add_variable("ill", DAYS, cases, 8.0)
    runner = cal.ModelRunner(model_factory=epidemic, output_variables=["ill"], times=DAYS)
    posterior = cal.make_posterior(parameters, target, runner)

    quick = cal.kalman_inversion(posterior, n_particles=60, key=1)
    found = cal.history_match(posterior, n_runs=40, n_waves=5, key=1)
    print(found.summary())
    options = {"moves": "de", "progress": False}
    emulated = cal.sample(found.posterior, num_steps=3000, **options)
    print(f"{quick.info['evaluations']} + {len(found.points)} runs")

    # What a model of hours could not do: 32,000 runs.
    exact = cal.sample(posterior, init=emulated.samples[-1], num_steps=1000, **options)
    for name, value in TRUTH.items():
        a, b, c = quick[name], emulated[name][500:], exact[name][200:]
        print(f"{name}: truth {value:.3g}, Kalman {a.mean():.3g} +- {a.std():.2g}, ", end="")
        print(f"emulator {b.mean():.3g} +- {b.std():.2g}, sampler {c.mean():.3g} +- {c.std():.2g}")
        assert abs(b.mean() - c.mean()) < 0.3 * c.std()
    print("the emulator's posterior is the model's")


if __name__ == "__main__":
    main()
