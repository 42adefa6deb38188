"""The models of the benchmark: ours, pynlme's (numpy), R's (nlme.R); data, real and simulated.

Two models of theophylline in 12 subjects:

- ``ssfol``: R's Theoph (132 rows), ``SSfol(Dose, Time, lKe, lKa, lCl)``, independent random effects
  on lKa and lCl;
- ``theo``: the 120 rows without time 0; ka, V, CL log-transformed, independent random effects on
  all.
"""

from __future__ import annotations

import csv
from typing import Any, NamedTuple

import numpy as np
from _measure import ROOT


def ssfol_numpy(phi, x):
    ke, ka, cl = np.exp(phi[..., 0]), np.exp(phi[..., 1]), np.exp(phi[..., 2])
    dose, time = x[:, 0], x[:, 1]
    return dose * ke * ka / (cl * (ka - ke)) * (np.exp(-ke * time) - np.exp(-ka * time))


def theo_numpy(phi, x):
    ka, volume, cl = phi[..., 0], phi[..., 1], phi[..., 2]
    dose, time = x[:, 0], x[:, 1]
    ke = cl / volume
    return dose * ka / (volume * (ka - ke)) * (np.exp(-ke * time) - np.exp(-ka * time))


def ssfol(phi, x):
    import jax.numpy as jnp

    ke, ka, cl = jnp.exp(phi[0]), jnp.exp(phi[1]), jnp.exp(phi[2])
    dose, time = x[:, 0], x[:, 1]
    return dose * ke * ka / (cl * (ka - ke)) * (jnp.exp(-ke * time) - jnp.exp(-ka * time))


def theo(phi, x):
    import jax.numpy as jnp

    ka, volume, cl = phi
    dose, time = x[:, 0], x[:, 1]
    ke = cl / volume
    return dose * ka / (volume * (ka - ke)) * (jnp.exp(-ke * time) - jnp.exp(-ka * time))


class Model(NamedTuple):
    """One model for all programs; starts on the scale of the fit, truth for simulation."""

    names: tuple[str, ...]
    function: Any
    numpy: Any
    transforms: tuple[str, ...]
    random: tuple[int, ...]
    start: tuple[float, ...]
    beta: tuple[float, ...]  # truth of the simulated data: the ML fit of the real ones
    sd: tuple[float, ...]
    sigma: float


MODELS = {
    "ssfol": Model(
        ("lKe", "lKa", "lCl"),
        ssfol,
        ssfol_numpy,
        ("identity", "identity", "identity"),
        (1, 2),
        (-2.4, 0.45, -3.2),
        (-2.4547, 0.4656, -3.2272),
        (0.6437, 0.1669),
        0.7092,
    ),
    "theo": Model(
        ("ka", "V", "CL"),
        theo,
        theo_numpy,
        ("log", "log", "log"),
        (0, 1, 2),
        (0.47, 3.434, 1.03),
        (0.47, 3.46, 1.02),
        (0.64, 0.13, 0.26),
        0.70,
    ),
}


class Data(NamedTuple):
    x: np.ndarray  # (N, 2): dose, time
    y: np.ndarray
    group: np.ndarray  # codes


def real(name: str) -> Data:
    """Read the measured data of a model."""
    file, columns, group, y = {
        "ssfol": ("theoph", ("Dose", "Time"), "Subject", "conc"),
        "theo": ("saemix_theo", ("Dose", "Time"), "Id", "Concentration"),
    }[name]
    with open(ROOT / "tests" / "reference" / "data" / f"{file}.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    x = np.array([[float(row[c]) for c in columns] for row in rows])
    labels = sorted({int(row[group]) for row in rows})
    codes = np.array([labels.index(int(row[group])) for row in rows])
    return Data(x, np.array([float(row[y]) for row in rows]), codes)


def simulated(name: str, count: int, *, subjects: int | None = None, seed: int = 20240607) -> list:
    """Simulate data sets from a model; other numbers of subjects repeat the real designs."""
    model, base = MODELS[name], real(name)
    design = [base.x[base.group == k] for k in range(base.group.max() + 1)]
    subjects = len(design) if subjects is None else subjects
    x = np.concatenate([design[k % len(design)] for k in range(subjects)])
    group = np.concatenate([np.full(len(design[k % len(design)]), k) for k in range(subjects)])
    rng = np.random.default_rng(seed)
    natural = np.array([t == "log" for t in model.transforms])
    out = []
    for _ in range(count):
        phi = np.tile(model.beta, (subjects, 1))
        phi[:, list(model.random)] += rng.normal(size=(subjects, len(model.random))) * model.sd
        phi = np.where(natural, np.exp(phi), phi)
        f = model.numpy(phi[group], x)
        out.append(Data(x, f + model.sigma * rng.normal(size=len(f)), group))
    return out


def problem(name: str, data: Data, *, error: str = "constant", chunk: int = 512) -> Any:
    """Make our problem, padded only as far as groups differ and chunks need."""
    import jax

    from jaxnlme.covariance import Covariance, CovarianceBlock
    from jaxnlme.design.groups import group_layout
    from jaxnlme.error_models import as_error_model
    from jaxnlme.nlme.problem import NLMEProblem, StructuralModel, free_all
    from jaxnlme.numerics.bijectors import BY_NAME

    model = MODELS[name]
    q, groups = len(model.random), int(data.group.max()) + 1
    layout = group_layout(data.group, range(groups), pad=False)
    if groups > chunk:
        whole = -(-groups // chunk) * chunk
        layout = type(layout)(
            layout.codes, layout.labels, (whole, layout.shape[1]), layout.position
        )
    error_model = as_error_model(error)
    pattern = tuple(tuple(int(i == j) for j in range(q)) for i in range(q))
    return NLMEProblem(
        y=layout.pack(data.y),
        weights=layout.pack(np.ones_like(data.y), fill=0.0),
        x=layout.pack(data.x),
        v=None,
        A=np.eye(3)[None, None],
        B=np.eye(3)[None, None][..., list(model.random)],
        beta0=np.array(model.start),
        free=jax.tree.map(np.asarray, free_all(3, q, len(error_model.parameters))),
        model=StructuralModel(model.function, model.names, kind="matlab"),
        transforms=tuple(BY_NAME[t] for t in model.transforms),
        covariance=Covariance((CovarianceBlock(pattern),)),
        error_model=error_model,
        chunk=chunk,
    )


def method(name: str) -> Any:
    from jaxnlme import nlme

    return getattr(nlme, name)()


def pynlme_fit(
    name: str, data: Data, approximation: str, *, error: str = "constant", compat: str = "matlab"
) -> float:
    """Fit by pynlme, with the model written for all subjects at once (its fastest way)."""
    import warnings

    import pynlme

    model = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its convergence notes; the log-likelihood is compared
        _, _, stats, _ = pynlme.nlmefit(
            data.x,
            data.y,
            data.group,
            None,
            model.numpy,
            np.array(model.start),
            ApproximationType=approximation,
            ParamTransform=[int(t == "log") for t in model.transforms],
            REParamsSelect=[k + 1 for k in model.random],
            ErrorModel=error,
            Vectorization="Full",
            compat=compat,
        )
    return float(stats.logl)


def write_sets(sets: list[Data], path: Any) -> None:
    """Write data sets for nlme.R."""
    with open(path, "w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(["set", "Subject", "Dose", "Time", "conc"])
        for k, data in enumerate(sets, 1):
            for (dose, time), y, g in zip(data.x, data.y, data.group, strict=True):
                out.writerow([k, g + 1, repr(float(dose)), repr(float(time)), repr(float(y))])
