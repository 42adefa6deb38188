"""A model of your own: a JAX function, log-transformed parameters, combined error, FOCE.

Then a new patient with two measurements: individual parameters without refitting.
Run it: python3 dev.py run python examples/own_model.py
"""

import jax.numpy as jnp

import jaxnlme as jn


def one_compartment(params, x):
    """Concentration after an oral dose, for one row; params and x are dicts of scalars."""
    ka, v, cl = params["ka"], params["V"], params["CL"]
    ke = cl / v
    return x["Dose"] * ka / (v * (ka - ke)) * (jnp.exp(-ke * x["Time"]) - jnp.exp(-ka * x["Time"]))


def main():
    fit = jn.fit_nlme(
        one_compartment,
        jn.datasets.load("theoph"),
        response="conc",
        group="Subject",
        fixed="ka + V + CL ~ 1",
        random="ka + V + CL ~ 1",
        covariance="diagonal",
        transform={"ka": "log", "V": "log", "CL": "log"},
        start={"ka": 0.4, "V": -0.7, "CL": -3.2},  # on the log scale
        error_model="combined",
        method="FOCE",
    )
    print(fit.summary(scale="natural"))

    patient = {
        "Subject": ["new", "new"],
        "Dose": [5.0, 5.0],
        "Time": [1.0, 6.0],
        "conc": [4.1, 8.9],
    }
    new = fit.individual(patient)
    print("\nA new patient, two measurements:")
    print(new.phi.to_string(index=False))
    phi = dict(zip(new.phi["parameter"], new.phi["value"], strict=True))
    later = one_compartment(phi, {"Dose": 5.0, "Time": 24.0})  # the model is a plain function
    print(f"predicted after 24 h: {later:.2f} mg/L")


if __name__ == "__main__":
    main()
