"""NumPy models of the matlab_*.json files, linearised by complex steps (no fitting code)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from helpers import data
from jaxnlme.api import _matlab_stats as ms


def _theo(p, x):
    ka, volume, clearance = p
    dose, time = x.T
    rate = clearance / volume
    return dose * ka / (volume * (ka - rate)) * (np.exp(-rate * time) - np.exp(-ka * time))


def _indometh(p, x):
    return p[0] * np.exp(-p[1] * x[:, 0]) + p[2] * np.exp(-p[3] * x[:, 0])


def _orange(p, x):
    return p[0] / (1 + np.exp(-(x[:, 0] - p[1]) / p[2]))


MODELS = {"theo": _theo, "indometh": _indometh, "orange": _orange}


def linearise(ref):
    """Return y, codes and the Linearisation at the stored estimate of a reference."""
    frame = data(ref["dataset"].split("/")[-1])
    codes = np.unique(frame[ref["group"]], return_inverse=True)[1]
    x = frame[ref["predictors"]].to_numpy(float)
    options = ref["name_value"]
    beta, b = np.array(ref["beta"]), np.array(ref["b"])
    p = len(beta)
    chosen = np.array(options.get("REParamsSelect", range(1, p + 1))) - 1
    log = np.array(options.get("ParamTransform", [0] * p)) == 1
    exponential = options.get("ErrorModel") == "exponential"
    model = MODELS[ref["id"].split("_")[0]]

    def f(eta):
        values = model(np.where(log, np.exp(np.where(log, eta, 0)), eta).T, x)
        return np.log(values) if exponential else values

    def jacobian(eta):
        columns = [f(eta + 1e-30j * np.eye(p)[k]).imag / 1e-30 for k in range(p)]
        return np.stack(columns, axis=1)

    flat = np.broadcast_to(beta, (len(x), p))
    eta = flat.copy()
    eta[:, chosen] += b.T[codes]
    y = frame[ref["response"]].to_numpy(float)
    y = np.log(y) if exponential else y
    at_b, at_0 = jacobian(eta), jacobian(flat)
    parts = ms.Linearisation(y, f(eta), f(flat), at_b, at_b[:, chosen], at_0[:, chosen])
    return parts, codes, beta, b


class LinearFit(NamedTuple):
    """The linear mixed model of a linearisation at a relative covariance, beta profiled out."""

    logl: float
    mse: float
    covb: np.ndarray
    beta: np.ndarray


def linear_fit(
    parts: ms.Linearisation,
    codes: np.ndarray,
    beta: np.ndarray,
    b: np.ndarray,
    relative: np.ndarray,
    weights: np.ndarray,
    *,
    restricted: bool = False,
) -> LinearFit:
    """Profile the linearised model at ``relative`` = psi / sigma^2.

    ``b`` is (r, m); ``weights`` are 1 / g with g the relative standard deviation of a row. The
    log-likelihood keeps its constants and adds sum(log weights); a restricted one has n - f degrees
    of freedom and -1/2 log det X'V^-1 X. ``mse`` is rss / n in both cases, as MATLAB reports it.
    """
    n, num_fixed = parts.X.shape
    work = parts.y - parts.f + parts.X @ beta + np.einsum("nr,nr->n", parts.Z, b.T[codes])
    table = weights[:, None] * np.column_stack([parts.X, work])
    gram = np.zeros((num_fixed + 1, num_fixed + 1))
    logdet = 0.0
    for code in range(codes.max() + 1):
        rows = codes == code
        z = weights[rows, None] * parts.Z[rows]
        covariance = np.eye(rows.sum()) + z @ relative @ z.T
        gram += table[rows].T @ np.linalg.solve(covariance, table[rows])
        logdet += np.linalg.slogdet(covariance)[1]
    information, cross = gram[:num_fixed, :num_fixed], gram[:num_fixed, num_fixed]
    gls = np.linalg.solve(information, cross)
    rss = float(gram[num_fixed, num_fixed] - cross @ gls)
    dof = n - num_fixed if restricted else n
    logl = -0.5 * dof * (1 + np.log(2 * np.pi * rss / dof)) - 0.5 * logdet
    if restricted:
        logl -= 0.5 * np.linalg.slogdet(information)[1]
    logl += float(np.sum(np.log(weights)))
    return LinearFit(float(logl), rss / n, rss / n * np.linalg.inv(information), gls)


def combined_error(y: np.ndarray, f: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Fit a and b of sd = a + b|f| to individual residuals, as MATLAB's combined error does.

    Minimises ``sum(((y - f) / g)**2 / 2 + log g)`` over a, b >= 0 with g = a + b|f|, f held: Newton
    on (log a, log b) with step halving and a diagonal shift where the Hessian is not positive.
    """
    size = np.abs(f)

    def evaluate(v: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        a, slope = np.exp(v)
        g = np.maximum(a + slope * size, 1e-300)
        square = ((y - f) / g) ** 2
        first, second = (1 - square) / g, (3 * square - 1) / g**2
        d = np.stack([np.full_like(g, a), slope * size])
        gradient = d @ first
        hessian = (d * second) @ d.T + np.diag(gradient)
        return float(np.sum(square / 2 + np.log(g))), gradient, hessian

    spread = max(float(np.std(y - f)), 1e-12)
    default = np.array([spread, 0.1 * spread / max(float(np.mean(size)), 1e-12)])
    v = np.log(default if start is None else np.maximum(start, 1e-12))
    value, gradient, hessian = evaluate(v)
    for _ in range(200):
        if np.max(np.abs(gradient)) < 1e-9 * max(len(y), 1):
            break
        values, vectors = np.linalg.eigh(hessian)
        step = -vectors @ ((vectors.T @ gradient) / np.maximum(np.abs(values), 1e-6))
        step *= min(1.0, 2.0 / max(np.max(np.abs(step)), 1e-300))
        scale = 1.0
        while scale > 1e-10:
            trial = evaluate(v + scale * step)
            if trial[0] < value:
                break
            scale /= 2
        else:
            break
        v = v + scale * step
        value, gradient, hessian = trial
        if np.min(v) < -60:
            break
    return np.exp(v)
