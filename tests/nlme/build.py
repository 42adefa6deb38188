"""Padded problems of the pure layer, made from reference files and small tables."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from helpers import data, matrix, reference, references, vector
from jaxnlme import error_models, nlme
from jaxnlme._cache import outer_jit
from jaxnlme.covariance import Covariance, CovarianceBlock
from jaxnlme.design.groups import GroupLayout, group_layout
from jaxnlme.nlme.drive import drive
from jaxnlme.nlme.fit import NLMEFit
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem, StructuralModel, free_all
from jaxnlme.numerics import bijectors

# Models are module-level functions: a new function object would compile anew.


def theo(phi, x):
    """One compartment, first-order absorption; phi = (ka, V, CL), x = (Dose, Time)."""
    ka, volume, clearance = phi
    dose, time = x[:, 0], x[:, 1]
    ke = clearance / volume
    return dose * ka / (volume * (ka - ke)) * (jnp.exp(-ke * time) - jnp.exp(-ka * time))


def ssfol(phi, x):
    """R's SSfol; phi = (lKe, lKa, lCl), x = (Dose, Time)."""
    ke, ka, cl = jnp.exp(phi[0]), jnp.exp(phi[1]), jnp.exp(phi[2])
    dose, time = x[:, 0], x[:, 1]
    return dose * ke * ka / (cl * (ka - ke)) * (jnp.exp(-ke * time) - jnp.exp(-ka * time))


def logistic(phi, x):
    """R's SSlogis; phi = (Asym, xmid, scal)."""
    return phi[0] / (1 + jnp.exp((phi[1] - x[:, 0]) / phi[2]))


def logistic_of_log(phi, x):
    return logistic(phi, jnp.log(x))


def biexponential(phi, x):
    """phi = (A1, r1, A2, r2)."""
    time = x[:, 0]
    return phi[0] * jnp.exp(-phi[1] * time) + phi[2] * jnp.exp(-phi[3] * time)


def growth(phi, x):
    """Monomolecular growth; phi = (A, B, k)."""
    return phi[0] * (1 - phi[1] * jnp.exp(-phi[2] * x[:, 0]))


def line(phi, x):
    """phi = (intercept, slope)."""
    return phi[0] + phi[1] * x[:, 0]


THEO_START = (0.47000362924573563, 3.4339872044851463, 1.0296194171811581)
CODES = {"id": 0, "log": 1, "probit": 2, "logit": 3}


def groups_of(labels: Any) -> tuple[np.ndarray, tuple]:
    """Return codes in the order of first appearance, and the labels."""
    names = list(dict.fromkeys(list(labels)))
    place = {name: k for k, name in enumerate(names)}
    return np.array([place[name] for name in labels]), tuple(str(n) for n in names)


def build(
    y: np.ndarray,
    x: np.ndarray,
    labels: Any,
    model: Callable,
    beta0: Sequence[float] | np.ndarray,
    *,
    random: Sequence[int] | None = None,
    pattern: Any = None,
    transforms: Sequence[str] = (),
    error: str = "constant",
    weights: np.ndarray | None = None,
    pad: bool = True,
    shape: tuple[int, int] | None = None,
    chunk: int = 10**6,
    dtype: Any = None,
) -> tuple[NLMEProblem, GroupLayout]:
    """Make a padded problem in which every parameter has one fixed effect."""
    codes, names = groups_of(labels)
    layout = group_layout(codes, names, pad=pad)
    if shape is not None:
        layout = dataclasses.replace(layout, shape=shape)
    p = len(beta0)
    chosen = list(range(p)) if random is None else list(random)
    q = len(chosen)
    pattern = np.eye(q, dtype=int) if pattern is None else np.asarray(pattern)
    error_model = error_models.as_error_model(error)
    covariance = Covariance(
        (CovarianceBlock(tuple(tuple(int(v) for v in row) for row in pattern)),)
    )
    used = np.ones(len(y)) if weights is None else np.asarray(weights, float)
    codes_ = [CODES[t] for t in (transforms or ["id"] * p)]

    def array(a):
        return jnp.asarray(np.asarray(a, float), dtype)

    problem = NLMEProblem(
        y=array(layout.pack(np.asarray(y, float))),
        weights=array(layout.pack(used, fill=0.0)),
        x=array(layout.pack(np.asarray(x, float))),
        v=None,
        A=array(np.eye(p)[None, None]),
        B=array(np.eye(p)[None, None][..., chosen]),
        beta0=array(beta0),
        free=free_all(p, covariance.num_theta, len(error_model.parameters)),
        model=StructuralModel(model, tuple(f"p{k}" for k in range(p)), kind="matlab"),
        transforms=tuple(bijectors.BY_NAME[bijectors.BY_MATLAB_CODE[c]] for c in codes_),
        covariance=covariance,
        error_model=error_model,
        chunk=chunk,
    )
    return problem, layout


def theo_problem(**options: Any) -> NLMEProblem:
    """Return the 12 x 10 theophylline problem of ``exact_theo_*.json``."""
    frame = data("saemix_theo")
    options.setdefault("transforms", ("log",) * 3)
    model = options.pop("model", theo)
    beta0 = options.pop("beta0", THEO_START)
    x = options.pop("x", frame[["Dose", "Time"]].to_numpy(float))
    y = options.pop("y", frame["Concentration"].to_numpy(float))
    return build(y, x, frame["Id"], model, beta0, **options)[0]


# Error models with unconstrained parameters at which the theophylline data are usual.
ERRORS = {
    "constant": [-0.3],
    "combined": [-0.8, -2.5],
    "combined2": [-0.8, -2.5],
    "proportional": [-1.8],
    "power": [-1.5, 0.7],
    "exponential": [-1.7],
}
MARGINAL = {
    "FO": nlme.FO(),
    "FOCE": nlme.FOCE(),
    "FOCE-no-interaction": nlme.FOCE(interaction=False),
    "Laplace": nlme.Laplace(),
    "AGQ": nlme.AGQ(3),
}
PATTERN = ((1, 0, 1), (0, 1, 0), (1, 0, 1))

EXACT = tuple(
    name.removeprefix("exact_")
    for name in references("nlme", "exact_*")
    # Counts, censoring and a node error of 3e-3: no Gaussian objective to compare.
    if name not in ("exact_rapi_poisson", "exact_theo_m3_lloq2", "exact_phenobarb_base")
)
# The diagonal entry of the factor that is zero at the optimum: an sd of zero, or for theo_block the
# correlation of V and CL at 1.
BOUNDARY = {"cow": 1, "indometh_diag3": 1, "theo_block": 2}


class Case(NamedTuple):
    """One exact_*.json with its problem."""

    problem: NLMEProblem
    layout: GroupLayout
    results: dict
    start: NLMEParams


_MODELS = {
    "cow": (growth, ["time"]),
    "dnase_full2": (logistic_of_log, ["conc"]),
    "indometh_diag3": (biexponential, ["time"]),
    "orange_asym": (logistic, ["age"]),
    "oxboys_full2": (line, ["age"]),
    "soybean_diag2": (logistic, ["Time"]),
    "theo": (theo, ["Dose", "Time"]),
    "theoph_ssfol_diag2": (ssfol, ["Dose", "Time"]),
}


@functools.cache
def exact_case(name: str) -> Case:
    """Make the problem of an ``exact_*.json`` that starts at the file's start."""
    ref = reference("nlme", f"exact_{name}")
    frame = data(ref["dataset"].split("/")[-1])
    model, columns = _MODELS["theo" if name.startswith("theo_") else name]
    params, random = ref["params"], ref["random"]
    start = ref["start_theta"]
    q = len(random)
    pattern = np.eye(q, dtype=int)
    for key in start:
        if key.startswith("logchol:"):
            i, j = (int(k) for k in key.split(":")[1].split(","))
            pattern[i, j] = pattern[j, i] = 1
    word = ref["model"]["error"].split(":")[0]
    params0 = params_from_theta(start)
    problem, layout = build(
        frame[ref["model"]["response"]].to_numpy(float),
        frame[columns].to_numpy(float),
        frame[ref["model"]["group"]],
        model,
        np.asarray(params0.beta),
        random=[params.index(r) for r in random],
        pattern=pattern,
        transforms=ref["transform"],
        error={"combined1": "combined"}.get(word, word),
        # 560 cows in a bucket of 1,024 would double the time; padding has its own tests.
        pad=name != "cow",
        # Shared with the Orthodont problem of test_linear.py: one program for both.
        shape=(32, 16) if name == "oxboys_full2" else None,
    )
    return Case(problem, layout, ref["results"], params0)


def params_from_theta(theta: dict[str, float]) -> NLMEParams:
    """Read a ``theta`` of the exact files: log diagonal of the factor, log error parameters."""
    beta = [v for k, v in theta.items() if k.startswith("beta:")]
    low = [
        np.exp(v) if k.startswith("log_sd_chol") else v
        for k, v in theta.items()
        if k.startswith(("log_sd_chol", "logchol"))
    ]
    error = [v for k, v in theta.items() if k.startswith("log_err")]
    return params_of(beta, low, error)


def params_from_estimates(problem: NLMEProblem, estimates: dict) -> NLMEParams:
    """Read ``beta``, ``omega`` and ``error`` of one result block of the exact files."""
    theta = problem.covariance.theta([matrix(estimates["omega"])])
    return params_of(list(estimates["beta"].values()), theta, np.log(vector(estimates["error"])))


def params_of(beta: Any, theta: Any, error: Any) -> NLMEParams:
    return NLMEParams(
        *(jnp.asarray(np.asarray(v, float).reshape(-1)) for v in (beta, theta, error))
    )


def at(problem: NLMEProblem, method: nlme.AbstractMarginalMethod, params: NLMEParams) -> NLMEFit:
    """Evaluate value, gradient and modes at ``params`` by the program that doors run."""
    return drive(problem, method, params0=params, max_steps=1)


def jit_fit(problem: NLMEProblem, method: nlme.AbstractMethod, *extra: Any) -> NLMEFit:
    """Run ``nlme.fit(problem, method[, params0])`` with the doors' compile settings."""
    return _fit(problem, method, *extra)


@outer_jit
def _fit(problem, method, *extra):
    return nlme.fit(problem, method, params0=extra[0] if extra else None)


@outer_jit
def log_likelihood(problem, params, method):
    """``nlme.marginal_log_likelihood`` with the doors' compile settings."""
    return nlme.marginal_log_likelihood(problem, params, method)


@outer_jit
def value_and_grad(problem, params, method):
    """Return value and gradient of ``nlme.marginal_log_likelihood`` in the parameters."""
    return jax.value_and_grad(lambda p: nlme.marginal_log_likelihood(problem, p, method))(params)


def unknown(params: NLMEParams) -> NLMEParams:
    """Keep beta and leave covariance and error to the method's own start values."""
    nan = jnp.full_like
    return NLMEParams(params.beta, nan(params.theta, jnp.nan), nan(params.error, jnp.nan))
