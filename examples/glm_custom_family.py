"""A family from one log density, the gradient of a fit, and 200 bootstrap fits in one program.

Afternoon ozone is skewed: a Gumbel distribution suits it better than a normal one.
Run it: python3 dev.py run python examples/glm_custom_family.py
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxnlme as jn


def gumbel(y, mu, scale):
    """Log density of one observation: location mu, scale > 0."""
    z = (y - mu) / scale
    return -z - jnp.exp(-z) - jnp.log(scale)


GUMBEL = jn.families.custom(
    gumbel, link="identity", name="gumbel", parameters={"scale": "log"}, start={"scale": 10.0}
)


def temperature_slope(weights, X, y):
    """The coefficient of the temperature, a function of the weights of the days."""
    return jn.glm.fit(jn.glm.GLMProblem(X, y, weights, family=GUMBEL)).params[1]


def main():
    air = jn.datasets.load("airquality")
    fit = jn.fit_glm("Ozone ~ Temp + Wind", air, family=GUMBEL)
    normal = jn.fit_glm("Ozone ~ Temp + Wind", air)
    print(f"AIC {fit.aic:.2f} (gumbel), {normal.aic:.2f} (gaussian)")

    y = air["Ozone"].to_numpy(float)
    X = np.column_stack([np.ones_like(y), air["Temp"], air["Wind"]])
    rng = np.random.default_rng(1)
    samples = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=200).astype(float)
    with jax.enable_x64(True):  # pure functions follow the dtype of their input
        influence = jax.jit(jax.grad(temperature_slope))(np.ones_like(y), X, y)
        many = jax.jit(jax.vmap(temperature_slope, in_axes=(0, None, None)))
        slopes = np.asarray(many(samples, X, y))
    day = int(np.argmax(np.abs(influence)))
    where = f"{air['Month'].iloc[day]}-{air['Day'].iloc[day]:02d}, ozone {y[day]:.0f}"
    print(f"the day that moves the slope most: 1973-{where} ({influence[day]:+.4f})")
    print(f"slope {fit.params['Temp']:.4f}, model standard error {fit.bse['Temp']:.4f}")
    print(f"standard deviation over {len(slopes)} bootstrap fits: {slopes.std(ddof=1):.4f}")


if __name__ == "__main__":
    main()
