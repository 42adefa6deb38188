"""Theophylline in 12 people, oral dose: R's example by two methods, a table and a picture.

Run it: python3 dev.py run python examples/theoph.py
"""

from pathlib import Path

import jaxnlme as jn


def main():
    theoph = jn.datasets.load("theoph")
    lme = jn.fit_nlme(
        "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)",
        theoph,
        group="Subject",
        fixed="lKe + lKa + lCl ~ 1",
        random="lKa + lCl ~ 1",
        covariance="diagonal",
    )
    print(lme.summary())

    foce = lme.update(method="FOCE")
    print("\nThe same model by two methods (their log-likelihoods are not comparable):")
    print(f"{'':<16}{'LME':>10}{'FOCE':>10}")
    for name in lme.params.index:
        print(f"{name:<16}{lme.params[name]:10.4f}{foce.params[name]:10.4f}")
    sds = zip(lme.varcorr()["sd"], foce.varcorr()["sd"], strict=True)
    for name, (a, b) in zip(["sd(lKa)", "sd(lCl)", "sigma"], sds, strict=True):
        print(f"{name:<16}{a:10.4f}{b:10.4f}")
    print(f"{'log-likelihood':<16}{lme.llf:10.4f}{foce.llf:10.4f}")

    path = Path("demo_output") / "theoph.png"
    path.parent.mkdir(exist_ok=True)
    axes = lme.plot.individual_fits(xlabel="Time (h)", ylabel="Theophylline (mg/L)")
    axes[0].figure.savefig(path, dpi=110)
    print(f"\nPicture written: {path}")


if __name__ == "__main__":
    main()
