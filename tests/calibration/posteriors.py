"""The reference posteriors of tests/reference/calibrate as problems of our own interface."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats as st

from helpers import reference, references
from jaxnlme.calibration import (
    Bound,
    EnsembleSampler,
    GaussianLikelihood,
    HalfCauchy,
    HalfNormal,
    LogNormal,
    LogNormalLikelihood,
    ModelRunner,
    Normal,
    ParameterSet,
    Target,
    Uniform,
    make_posterior,
)
from jaxnlme.calibration.problem import FunctionDensity, StaticFunction
from jaxnlme.structural.predator_prey import PredatorPrey
from jaxnlme.structural.two_layer import TwoLayer

NAMES = [name for name in references("calibrate") if name != "crosscheck_emcee"]


def family(name: str) -> str:
    return reference("calibrate", name)["spec"]["family"]


# ---- densities given as functions ---------------------------------------------------------------


class Density:
    """A log density with its data: an object, so that each reference has a function of its own."""

    def __init__(self, function: Any, spec: dict[str, Any]) -> None:
        self.function = function
        keys = ("mean", "cov", "mu", "s", "t", "w", "m1", "m2", "X", "y", "V0", "a0", "b0")
        self.spec = {k: np.asarray(spec[k], float) for k in keys if k in spec}

    def __call__(self, x: Any) -> Any:
        return self.function(x, **self.spec)


def gauss(x, mean, cov):
    precision = np.linalg.inv(cov)
    constant = -0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
    r = x - mean
    return constant - 0.5 * r @ (precision @ r)


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi)


def banana(x, mu, s, t):
    return normal(x[0], mu, s) + normal(x[1], x[0] ** 2, t)


def mixture(x, w, m1, m2, s):
    a = jnp.log(w) + jnp.sum(normal(x, m1, s))
    b = jnp.log1p(-w) + jnp.sum(normal(x, m2, s))
    return jnp.logaddexp(a, b)


def linreg(x, X, y, V0, a0, b0):
    ok = x[3] > 0
    sigma2 = jnp.where(ok, x[3], 1.0)
    beta, p = x[:3], 3
    prior = a0 * np.log(b0) - jax.scipy.special.gammaln(a0) - (a0 + 1) * jnp.log(sigma2)
    prior = prior - b0 / sigma2
    quad = beta @ (np.linalg.inv(V0) @ beta)
    prior = prior - 0.5 * (p * jnp.log(2 * np.pi * sigma2) + np.linalg.slogdet(V0)[1])
    prior = prior - 0.5 * quad / sigma2
    value = prior + jnp.sum(normal(y, X @ beta, jnp.sqrt(sigma2)))
    return jnp.where(ok, value, -jnp.inf)


FUNCTIONS = {"gauss2d": gauss, "gauss20d": gauss, "banana": banana, "mixture": mixture,
             "linreg": linreg}  # fmt: skip


# ---- densities given as priors, target, model, likelihood -------------------------------------


def decay(spec):
    t = np.array(spec["t"], float)

    def model(params):
        return {"y": params["A"] * jnp.exp(-params["k"] * t)}

    parameters = ParameterSet(
        {"A": LogNormal(np.log(5), 1), "k": LogNormal(np.log(0.5), 1), "sigma": HalfNormal(1)}
    )
    target = Target().add_variable("y", t, spec["y"], "sigma")
    return parameters, target, ModelRunner(model, times=t), GaussianLikelihood()


def schools(spec):
    def model(params):
        eta = jnp.stack([params[f"eta{j}"] for j in range(8)])
        return {"y": params["mu"] + params["tau"] * eta}

    parameters = ParameterSet({"mu": Normal(0, 5), "tau": HalfCauchy(5)})
    for j in range(8):
        parameters.add(f"eta{j}", Normal(0, 1))
    target = Target().add_variable("y", np.arange(8), spec["y"], spec["sigma"])
    return parameters, target, ModelRunner(model), GaussianLikelihood()


def lynx(spec):
    t, y = np.array(spec["t"], float), np.array(spec["y"])
    parameters = ParameterSet({
        "alpha": Bound(Normal(1, 0.5), lower=0), "beta": Bound(Normal(0.05, 0.05), lower=0),
        "gamma": Bound(Normal(1, 0.5), lower=0), "delta": Bound(Normal(0.05, 0.05), lower=0),
        "u0": LogNormal(np.log(10), 1), "v0": LogNormal(np.log(10), 1),
        "sigma_u": LogNormal(-1, 1), "sigma_v": LogNormal(-1, 1),
    })  # fmt: skip
    target = Target().add_variable("prey", t, y[:, 0], "sigma_u")
    target.add_variable("predator", t, y[:, 1], "sigma_v")
    return parameters, target, ModelRunner(PredatorPrey(t), times=t), LogNormalLikelihood()


def climate(spec):
    parameters = ParameterSet({
        "lam": Bound(Normal(1.2, 0.5), 0.2, 3.0), "gamma": Uniform(0.2, 2.0),
        "C": LogNormal(np.log(8), 0.4), "Cd": LogNormal(np.log(100), 0.5),
        "fscale": Bound(Normal(1, 0.2), 0.3, 2.0),
    })  # fmt: skip
    target = Target()
    for v in ("T", "H"):
        target.add_variable(v, spec[f"{v}_time"], spec[f"{v}_obs"], spec[f"{v}_sigma"])
    method = {"offset": "exact", "subtract": "subtract", "absolute": None}[spec["variant"]]
    if method:
        for v, (start, end) in spec["reference_period"].items():
            target = target.with_reference_period(start, end, variables=v, method=method)
    model = TwoLayer(spec["forcing"], start=spec["forcing_years"][0])
    return parameters, target, ModelRunner(model, times=model.times), GaussianLikelihood()


PROBLEMS = {"expdecay": decay, "eight_schools": schools, "lotka_volterra": lynx,
            "two_layer": climate}  # fmt: skip


def prior_constant(name: str) -> float:
    """Log prior constants that the reference leaves out (README: truncation, uniform)."""
    kind = family(name)
    if kind == "lotka_volterra":
        return -2 * st.norm.logsf(0, 1, 0.5) - 2 * st.norm.logsf(0, 0.05, 0.05)
    if kind == "two_layer":
        lam = np.log(st.norm.cdf(3, 1.2, 0.5) - st.norm.cdf(0.2, 1.2, 0.5))
        scale = np.log(st.norm.cdf(2, 1, 0.2) - st.norm.cdf(0.3, 1, 0.2))
        return -lam - scale - np.log(1.8)
    return 0.0


@functools.cache
def density(name: str):
    """The log density of a reference; one object per name, so that programs are compiled once."""
    spec = reference("calibrate", name)["spec"]
    if spec["family"] in FUNCTIONS:
        function = Density(FUNCTIONS[spec["family"]], spec)
        return FunctionDensity(StaticFunction(function), tuple(spec["names"]))
    return make_posterior(*PROBLEMS[spec["family"]](spec))


def problem(name: str):
    """Parameters, target, runner and likelihood of a reference that is a model."""
    spec = reference("calibrate", name)["spec"]
    return PROBLEMS[spec["family"]](spec)


def sampler(name: str, **options: Any) -> EnsembleSampler:
    return EnsembleSampler(*problem(name), **options)


def moments(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Exact means, sds, quantiles (p, 7), probabilities, and the error of the means."""
    ref = reference("calibrate", name)
    rows = [ref["posterior"][n] for n in ref["spec"]["names"]]
    return (
        np.array([r["mean"] for r in rows]),
        np.array([r["sd"] for r in rows]),
        np.array([r["quantiles"] for r in rows]),
        np.array(ref["quantile_probs"]),
        np.array([r.get("mcse_mean", 0.0) for r in rows]),
    )
