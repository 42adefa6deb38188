"""Blood pressure of five rabbits, each in two runs: random effects on two nested levels.

Data: J. Ludbrook (1994), as in Pinheiro and Bates (2000), appendix A.21 and section 8.1.
Run it: python3 dev.py run python examples/pbg_nested.py
"""

import numpy as np
import pandas as pd

import jaxnlme as jn

DOSE = [6.25, 12.5, 25, 50, 100, 200]  # phenylbiguanide, micrograms
CHANGE = {  # of blood pressure, mm Hg: runs P1-P5 with placebo, T1-T5 with the drug MDL 72222
    "P1": [0.5, 4.5, 10, 26, 37, 32], "T1": [1.25, 0.75, 4, 9, 25, 37],
    "P2": [1, 1.25, 4, 12, 27, 29], "T2": [1.4, 1.7, 1, 2, 15, 28],
    "P3": [0.75, 3, 3, 14, 22, 24], "T3": [0.75, 2.3, 3, 5, 26, 25],
    "P4": [1.25, 1.5, 6, 19, 33, 33], "T4": [2.6, 1.2, 2, 3, 11, 22],
    "P5": [1.5, 1.5, 5, 16, 20, 18], "T5": [2.4, 2.5, 1.5, 2, 9, 19],
}  # fmt: skip


def rabbits():
    run = np.repeat(list(CHANGE), len(DOSE))
    return pd.DataFrame(
        {
            "Rabbit": [name[1] for name in run],
            "Run": run,
            "Treatment": np.where(np.char.startswith(run, "P"), "Placebo", "MDL 72222"),
            "dose": np.tile(DOSE, len(CHANGE)),
            "deltaBP": np.concatenate(list(CHANGE.values())),
        }
    )


def main():
    fit = jn.fit_nlme(
        "deltaBP ~ A + (B - A) / (1 + exp((xmid - log(dose)) / scal))",
        rabbits(),
        group=["Rabbit", "Run"],
        fixed=["A + B ~ 1", "xmid ~ Treatment", "scal ~ 1"],
        random={"Rabbit": "B ~ 1", "Run": "B ~ 1"},
        start=[1.6, 29, 4.6, -1.2, 0.3],
    )
    print(fit.summary())
    print("\nR nlme prints the log-likelihood -145.2294.")
    print(fit.varcorr().to_string(index=False))


if __name__ == "__main__":
    main()
