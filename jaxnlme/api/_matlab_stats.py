"""The ``stats`` structure of ``nlmefit``, from plain arrays on the transformed scale.

Definitions follow MATLAB's: weighted residuals use the error's standard deviation at the
*population* prediction, ``rmse`` uses the unweighted individual residuals and ``dfe``, ``bic``
counts groups, and a restricted fit reports its variances times ``(n - f) / n``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxnlme.diagnostics.weighted_residuals import whitened

__all__ = ["Linearisation", "NlmefitStats", "assemble", "error_sd", "residuals"]

FIELDS = "dfe logl mse rmse errorparam aic bic covb sebeta ires pres iwres pwres cwres".split()


@dataclasses.dataclass(frozen=True, eq=False)
class NlmefitStats(Mapping[str, Any]):
    """MATLAB's ``stats``: the 14 fields by attribute or by ``stats["name"]``, in MATLAB's order.

    Attributes
    ----------
    dfe : int
        Error degrees of freedom: rows less all estimated parameters.
    logl : float
        Maximised log-likelihood of the approximation, every constant kept.
    mse : float
        Error variance of the (weighted) linearised model.
    rmse : float
        ``sqrt(sum(ires**2) / dfe)``.
    errorparam : ndarray
        Parameter(s) of the error model.
    aic, bic : float
        ``-2 logl + 2 k`` and ``-2 logl + k log(m)``, m groups (m - f for RELME).
    covb, sebeta : ndarray
        Covariance and standard errors of ``beta``.
    ires, pres : ndarray
        Individual and population residuals (on the log scale for the exponential error model).
    iwres, pwres, cwres : ndarray or None
        Weighted residuals; None where an error variance is zero.

    Notes
    -----
    Beyond MATLAB, as attributes only: ``group_labels`` (labels of the columns of B), ``row_index``
    (rows used), ``converged``, ``message``, ``n_iter``.
    """

    dfe: int
    logl: float
    mse: float
    rmse: float
    errorparam: np.ndarray
    aic: float
    bic: float
    covb: np.ndarray
    sebeta: np.ndarray
    ires: np.ndarray
    pres: np.ndarray
    iwres: np.ndarray | None
    pwres: np.ndarray | None
    cwres: np.ndarray | None
    group_labels: tuple = ()
    row_index: np.ndarray | None = None
    converged: bool = True
    message: str = ""
    n_iter: int = 0

    def __getitem__(self, name: str) -> Any:
        if name not in FIELDS:
            raise KeyError(f"stats has no field {name!r}; it has {', '.join(FIELDS)}")
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(FIELDS)

    def __len__(self) -> int:
        return len(FIELDS)

    def __repr__(self) -> str:
        lines = []
        for name in FIELDS:
            value = self[name]
            if isinstance(value, np.ndarray) and value.size > 6:
                text = f"[{'x'.join(str(s) for s in value.shape)} double]"
            elif isinstance(value, np.ndarray):
                text = np.array2string(value, precision=4).replace("\n", "")
            else:
                text = f"{value:.6g}" if isinstance(value, float) else str(value)
            lines.append(f"{name:>10}: {text}")
        return "\n".join(lines)


class Linearisation(NamedTuple):
    """Arrays of all rows at an estimate, on the scale of the fit (log scale if exponential).

    ``f`` and ``f_population`` (n,): predictions at (beta, b) and at (beta, 0). ``X`` (n, f) and
    ``Z`` (n, r): derivatives by beta and b at (beta, b); ``Z_population`` (n, r) those at b = 0.
    """

    y: np.ndarray
    f: np.ndarray
    f_population: np.ndarray
    X: np.ndarray
    Z: np.ndarray
    Z_population: np.ndarray


def error_sd(error_model: str, errorparam: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Standard deviation of the error at predictions f."""
    if error_model == "proportional":
        return errorparam[0] * np.abs(f)
    if error_model == "combined":
        return errorparam[0] + errorparam[1] * np.abs(f)
    return np.full_like(f, errorparam[0])


def residuals(
    parts: Linearisation,
    codes: np.ndarray,
    b: np.ndarray,
    psi: np.ndarray,
    sd: Callable[[np.ndarray], np.ndarray],
) -> dict[str, np.ndarray | None]:
    """Return the five residuals, one value per row. ``b`` is (r, m)."""
    individual, population = parts.y - parts.f, parts.y - parts.f_population
    out: dict[str, np.ndarray | None] = {"ires": individual, "pres": population}
    g = sd(parts.f_population)
    none = {**out, "iwres": None, "pwres": None, "cwres": None}
    if not np.all(np.isfinite(g)) or np.min(g) <= 1e-150:
        return none
    expanded = individual + np.einsum("nr,nr->n", parts.Z, b.T[codes])
    pwres = whitened(population, parts.Z_population, g, psi, codes)
    cwres = whitened(expanded, parts.Z, g, psi, codes)
    if np.any(np.isnan(pwres)) or np.any(np.isnan(cwres)):
        return none
    return {**out, "iwres": individual / g, "pwres": pwres, "cwres": cwres}


def assemble(
    parts: Linearisation,
    codes: np.ndarray,
    b: np.ndarray,
    psi: np.ndarray,
    *,
    logl: float,
    mse: float,
    covb: np.ndarray,
    errorparam: np.ndarray,
    error_model: str,
    num_covariances: int,
    restricted: bool = False,
    **extra: Any,
) -> NlmefitStats:
    """Put the 14 fields together. ``num_covariances`` counts the free entries of psi."""
    n, num_fixed = parts.X.shape
    m = int(codes.max()) + 1
    k = num_fixed + num_covariances + len(errorparam)
    table = residuals(parts, codes, b, psi, lambda f: error_sd(error_model, errorparam, f))
    ires = table["ires"]
    assert ires is not None
    dfe = n - k
    count = m - num_fixed if restricted else m
    return NlmefitStats(
        dfe=dfe,
        logl=logl,
        mse=mse,
        rmse=float(np.sqrt(ires @ ires / dfe)) if dfe > 0 else float("nan"),
        errorparam=errorparam,
        aic=-2 * logl + 2 * k,
        bic=-2 * logl + k * float(np.log(count)) if count > 0 else float("nan"),
        covb=covb,
        sebeta=np.sqrt(np.diag(covb)),
        **table,  # type: ignore[arg-type]
        **extra,
    )
