"""Eight schools: the ensemble sampler against sequential Monte Carlo, which also gives the evidence.

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

    smc = sample(posterior, method="smc", num_steps=4000, key=2)
    # Draws from the prior would start walkers far out in the tail of tau.
    init = smc.flat_samples()[::500]
    chain = sample(posterior, init=init, moves="de", num_steps=20_000, thin=10, progress=False)
    for name in ("mu", "tau"):
        a, b = chain[name][200:], smc[name]
        print(
            f"{name:4s} ensemble {a.mean():.2f} +- {a.std():.2f}   SMC {b.mean():.2f} +- {b.std():.2f}"
        )
    print(f"log evidence {smc.info['log_evidence']:.2f}")


if __name__ == "__main__":
    main()
