"""Car insurance: how often do claims come, and what do they cost? Poisson and gamma models.

The frequencies are MASS's Insurance data; the severities are drawn from a stated gamma distribution.
Run it: python3 dev.py run python examples/glm_claims.py
"""

from pathlib import Path

import numpy as np

import jaxnlme as jn


def frequencies():
    """Claims per policyholder: counts with an exposure."""
    insurance = jn.datasets.load("insurance")
    fit = jn.fit_glm(
        "Claims ~ District + Group + Age", insurance, family="poisson", exposure="Holders"
    )
    print(fit.summary())
    print("\nRelativities: what multiplies the frequency of the base level")
    print(fit.relativities().round(3).to_string(index=False))
    print("\nEach factor after the others (type 2)")
    print(jn.anova(fit, type=2).to_string(index=False))
    return fit


def severities():
    """Cost per claim: amounts with a constant coefficient of variation."""
    rng = np.random.default_rng(1)
    age = rng.integers(18, 80, 500)
    power = rng.integers(4, 12, 500)
    mean = np.exp(6.5 + 0.4 * (age < 25) + 0.05 * power)
    claims = {"cost": rng.gamma(2.0, mean / 2.0), "young": age < 25, "power": power}
    fit = jn.fit_glm("cost ~ young + power", claims, family="gamma", link="log")
    print("\nSeverities: simulated with 6.5, 0.4, 0.05 and dispersion 0.5")
    for label, value in fit.params.items():
        print(f"  {label:<12}{value:8.4f}  se {fit.bse[label]:.4f}")
    print(f"  dispersion  {fit.dispersion:8.4f}")


def main():
    fit = frequencies()
    severities()
    path = Path("demo_output") / "glm_claims.png"
    path.parent.mkdir(exist_ok=True)
    axes = fit.plot.diagnostics()
    axes.flat[0].figure.savefig(path, dpi=110)
    print(f"\nPicture written: {path}")


if __name__ == "__main__":
    main()
