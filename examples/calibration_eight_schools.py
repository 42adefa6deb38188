"""Eight schools: NUTS against sequential Monte Carlo, which also gives the evidence.

Run it: python3 dev.py run python examples/calibration_eight_schools.py
"""

import jax.numpy as jnp
import numpy as np

from jaxnlme.calibration import (
    HalfCauchy,
    ModelRunner,
    Normal,
    ParameterSet,
    Target,
    make_posterior,
    sample,
)

EFFECT = [28, 8, -3, 7, -1, 1, 18, 12]
ERROR = [15, 10, 16, 11, 9, 11, 10, 18]


def schools(params):
    """Effects of eight schools: not centred, so that there is no funnel."""
    eta = jnp.stack([params[f"eta{j}"] for j in range(8)])
    return {"effect": params["mu"] + params["tau"] * eta}


def main():
    parameters = ParameterSet({"mu": Normal(0, 5), "tau": HalfCauchy(5)})
    for j in range(8):
        parameters.add(f"eta{j}", Normal(0, 1))
    target = Target().add_variable("effect", np.arange(8), EFFECT, ERROR)
    posterior = make_posterior(parameters, target, ModelRunner(schools))

    nuts = sample(posterior, method="nuts", num_steps=2000, num_warmup=500, key=1)
    smc = sample(posterior, method="smc", num_steps=4000, key=2)
    for name in ("mu", "tau"):
        print(
            f"{name:4s} NUTS {nuts[name].mean():.2f} +- {nuts[name].std():.2f}   "
            f"SMC {smc[name].mean():.2f} +- {smc[name].std():.2f}"
        )
    print(f"log evidence {smc.info['log_evidence']:.2f}")


if __name__ == "__main__":
    main()
