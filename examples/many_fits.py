"""How good are the standard errors? 200 simulated trials, fitted by one compiled program.

Run it: python3 dev.py run python examples/many_fits.py
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxnlme as jn

METHOD = jn.nlme.FOCE()


def fit_with_errors(problem):
    """Fit one data set; return its result code, estimates and standard errors."""
    fit = jn.nlme.fit(problem, METHOD)
    covariance = jnp.linalg.inv(jn.nlme.information(problem, fit.params, METHOD))
    return fit.result, fit.params.beta, jnp.sqrt(jnp.diag(covariance))[: problem.num_fixed]


def main():
    fit = jn.fit_nlme(
        "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)",
        jn.datasets.load("theoph"),
        group="Subject",
        fixed="lKe + lKa + lCl ~ 1",
        random="lKa + lCl ~ 1",
        covariance="diagonal",
        method="FOCE",
    )
    trials = fit.problem(fit.simulate(200, key=1))
    with jax.enable_x64(True):  # pure functions follow the dtype of their input
        result, beta, se = jn.batch.fit_many(fit_with_errors, trials)
    good = np.asarray(result == jn.RESULTS.successful)
    beta, se = np.asarray(beta), np.asarray(se)
    print(f"{good.sum()} of {len(good)} fits converged")

    truth = np.asarray(fit.params)  # what was simulated
    inside = np.abs(beta - truth) < 1.96 * se
    print(f"{'':<6}{'truth':>9}{'mean':>9}{'sd':>9}{'mean se':>9}{'95% covers':>12}")
    for k, name in enumerate(fit.params.index):
        b, s = beta[good, k], se[good, k]
        covers = f"{100 * np.mean(inside[good, k]):.1f} %"
        print(f"{name:<6}{truth[k]:9.4f}{b.mean():9.4f}{b.std():9.4f}{s.mean():9.4f}{covers:>12}")
    print("Twelve subjects are few: variances are underestimated, so intervals are short.")


if __name__ == "__main__":
    main()
