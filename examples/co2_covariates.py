"""Carbon dioxide uptake of 12 grass plants: does the asymptote depend on origin and chilling?

Covariates enter through formulas; labels are those of R's model.matrix.
Run it: python3 dev.py run python examples/co2_covariates.py
"""

import jaxnlme as jn

MODEL = "uptake ~ Asym * (1 - exp(-exp(lrc) * (conc - c0)))"


def main():
    co2 = jn.datasets.load("co2")
    plain = jn.fit_nlme(
        MODEL,
        co2,
        group="Plant",
        fixed="Asym + lrc + c0 ~ 1",
        random="Asym + lrc ~ 1",
        start={"Asym": 32.0, "lrc": -4.6, "c0": 49.0},
    )
    full = plain.update(
        fixed=["Asym ~ Type * Treatment", "lrc + c0 ~ 1"],
        start=[36.0, -8.0, -4.0, -6.0, -4.6, 49.0],
    )
    print(full.summary(df_method="containment"))

    print("\nAll covariates at once (likelihood ratio):")
    print(jn.anova(plain, full).to_string(index=False))
    print("\nTerm by term (F tests, as R's anova):")
    print(jn.anova(full).to_string(index=False))


if __name__ == "__main__":
    main()
