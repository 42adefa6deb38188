"""The first thing to run: ``python3 dev.py demo``.

Theophylline in 12 people (R's ``Theoph``), fitted as in MATLAB and as in R, compared with the numbers that R
prints, drawn, and then 1,000 simulated trials fitted in one compiled program.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxnlme as jn
from jaxnlme import batch, nlme
from jaxnlme.results import NLMEResults

MODEL = "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)"
START = {"lKe": -2.4, "lKa": 0.45, "lCl": -3.2}
# R 4.2.2, nlme 3.1-162, tightened control: nlme(..., random = pdDiag(lKa + lCl ~ 1)) and pdSymm(...).
R_DIAGONAL = {
    "log-likelihood": -177.022336, "lKe": -2.454679, "lKa": 0.465635, "lCl": -3.227212,
    "sd(lKa)": 0.643699, "sd(lCl)": 0.166925, "sigma": 0.709242,
}  # fmt: skip
R_FULL = {
    "log-likelihood": -177.022216, "lKe": -2.454696, "lKa": 0.465643, "lCl": -3.227224,
    "sd(lKa)": 0.643688, "sd(lCl)": 0.166918, "sigma": 0.709242,
}  # fmt: skip


def one_compartment(phi, x):
    """First-order absorption and elimination; phi = (Ke, Ka, Cl), x = (Dose, Time)."""
    ke, ka, cl = phi
    dose, t = x[:, 0], x[:, 1]
    return dose * ke * ka / (cl * (ka - ke)) * (jnp.exp(-ke * t) - jnp.exp(-ka * t))


def say(text: str = "") -> None:
    """Print at once."""
    print(text, flush=True)


def compare(title: str, fit: NLMEResults, reference: dict[str, float]) -> None:
    """Print estimates beside R's."""
    psi = np.asarray(fit.psi())
    ours = {
        "log-likelihood": fit.llf, **fit.params.to_dict(),
        "sd(lKa)": psi[0, 0] ** 0.5, "sd(lCl)": psi[1, 1] ** 0.5, "sigma": fit.sigma,
    }  # fmt: skip
    say(f"\n{title}")
    say(f"  {'':<16}{'jaxnlme':>12}{'R nlme':>12}{'difference':>12}")
    for name, value in reference.items():
        say(f"  {name:<16}{ours[name]:12.5f}{value:12.5f}{ours[name] - value:12.1e}")


def fit_like_r(theoph) -> NLMEResults:
    """Fit by ``fit_nlme``: diagonal and full covariance, and FOCE beside LME."""
    fits = {}
    for covariance, reference in (("diagonal", R_DIAGONAL), ("full", R_FULL)):
        say(f"\nfit_nlme, {covariance} covariance: compiling and fitting ...")
        began = time.perf_counter()
        fits[covariance] = jn.fit_nlme(
            MODEL, theoph, group="Subject", fixed="lKe + lKa + lCl ~ 1", random="lKa + lCl ~ 1",
            covariance=covariance, start=START,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        compare(
            f"Theophylline, LME, {covariance} covariance ({seconds:.1f} s)",
            fits[covariance],
            reference,
        )
    say()
    say(fits["diagonal"].summary())
    return fits["diagonal"]


def fit_like_matlab(theoph) -> None:
    """Fit by ``nlmefit`` with log-transformed parameters."""
    say("\nnlmefit, log-transformed parameters: compiling and fitting ...")
    beta, psi, stats, b = jn.nlmefit(
        theoph[["Dose", "Time"]].to_numpy(), theoph["conc"].to_numpy(), theoph["Subject"].astype(int).to_numpy(),
        None, one_compartment, np.array([-2.4, 0.45, -3.2]), ParamTransform=[1, 1, 1], REParamsSelect=[2, 3],
    )  # fmt: skip
    say(f"  beta  {np.array2string(beta, precision=4)}   (log Ke, log Ka, log Cl)")
    say(
        f"  PSI   {np.array2string(np.diag(psi), precision=4)} on its diagonal; b is {b.shape[0]} x {b.shape[1]}"
    )
    say(
        f"  logl  {stats.logl:.4f}   rmse {stats.rmse:.4f}   aic {stats.aic:.3f}   bic {stats.bic:.3f}"
    )


def draw(fit: NLMEResults) -> None:
    """Write the individual fits as a picture."""
    path = Path("demo_output") / "theoph.png"
    path.parent.mkdir(exist_ok=True)
    axes = fit.plot.individual_fits(xlabel="Time (h)", ylabel="Theophylline (mg/L)")
    axes[0].figure.savefig(path, dpi=120)
    say(f"\nPicture written: {path.resolve()}")


def simulate_and_fit(fit: NLMEResults, num_sets: int = 1000) -> None:
    """Fit many simulated trials in one compiled program and report how well the truth is recovered."""
    say(f"\n{num_sets} simulated trials of 12 people, FOCE, one compiled program: compiling ...")
    problems = fit.problem(fit.simulate(num_sets, key=1))
    with jax.enable_x64(True):
        one = functools.partial(nlme.fit, method=nlme.FOCE())
        began = time.perf_counter()
        jax.block_until_ready(batch.fit_many(one, problems))
        cold = time.perf_counter() - began
        began = time.perf_counter()
        fits = jax.block_until_ready(batch.fit_many(one, problems))
        warm = time.perf_counter() - began
    converged = np.mean(np.asarray(fits.result == jn.RESULTS.successful))
    beta = np.asarray(fits.params.beta)
    say(
        f"  {cold:.1f} s with compilation, {warm:.2f} s without: {1e3 * warm / num_sets:.2f} ms per fit"
    )
    say(f"  {100 * converged:.1f} % converged")
    say(f"  {'':<6}{'truth':>10}{'mean':>10}{'sd':>10}{'se of fit':>11}")
    for k, name in enumerate(fit.params.index):
        truth, se = fit.params[name], fit.bse[name]
        say(f"  {name:<6}{truth:10.4f}{beta[:, k].mean():10.4f}{beta[:, k].std():10.4f}{se:11.4f}")


def main() -> None:
    """Run the demonstration."""
    began = time.perf_counter()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    say(f"jaxnlme {jn.__version__}, jax {jax.__version__}, {cores} core(s)")
    theoph = jn.datasets.load("theoph")
    fit = fit_like_r(theoph)
    fit_like_matlab(theoph)
    draw(fit)
    simulate_and_fit(fit)
    say(f"\nDone in {time.perf_counter() - began:.1f} s.")


if __name__ == "__main__":
    main()
