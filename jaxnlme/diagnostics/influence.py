"""Leverages, Cook's distances and their kin for a GLM, exactly as R computes them (host, numpy)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Influence:
    """Influence of each row used (rows of weight 0: leverage 0, the rest NaN).

    Attributes
    ----------
    leverage
        Diagonal of the hat matrix at the working weights (n,).
    cooks_distance
        ``(r_P / (1 - h))^2 h / (dispersion p)`` with Pearson residuals (n,).
    dfbetas
        Change of each coefficient when the row is left out, in standard errors, by one step (n, p); 0 for
        aliased coefficients. ``dfbeta`` is the same in the coefficient's units.
    dffits
        Change of the row's own fit, in standard errors (n,).
    studentized
        Residual divided by its standard error with the row left out (R's ``rstudent``, likelihood
        residuals) (n,).
    standardized_deviance, standardized_pearson
        Residuals over ``sqrt(dispersion (1 - h))`` (R's ``rstandard``) (n,).
    covratio
        Ratio of generalised variances without and with the row (n,).
    sigma
        Residual standard deviation without the row (n,).
    labels
        Columns of ``dfbetas``.

    References
    ----------
    Pregibon (1981), Annals of Statistics 9; Williams (1987), Applied Statistics 36; R's ``influence.measures``.
    """

    leverage: np.ndarray
    cooks_distance: np.ndarray
    dfbetas: np.ndarray
    dfbeta: np.ndarray
    dffits: np.ndarray
    studentized: np.ndarray
    standardized_deviance: np.ndarray
    standardized_pearson: np.ndarray
    covratio: np.ndarray
    sigma: np.ndarray
    labels: tuple[str, ...]
    native: Callable[[Any], Any] = dataclasses.field(repr=False)

    def to_frame(self) -> Any:
        """Return one row per row used, ``dfbetas`` as columns ``dfb.<label>``."""
        columns: dict[str, np.ndarray] = {
            name: getattr(self, name)
            for name in ("leverage", "cooks_distance", "dffits", "studentized", "covratio")
        }
        columns |= {f"dfb.{label}": self.dfbetas[:, j] for j, label in enumerate(self.labels)}
        return self.native(columns)

    def __repr__(self) -> str:
        top = np.argsort(-np.nan_to_num(self.cooks_distance))[:3]
        rows = ", ".join(f"{k} ({self.cooks_distance[k]:.3g})" for k in top)
        return f"<Influence of {len(self.leverage)} rows; largest Cook's distances: rows {rows}>"


def influence(
    *,
    design: np.ndarray,
    leverage: np.ndarray,
    working_weights: np.ndarray,
    covariance: np.ndarray,
    pearson: np.ndarray,
    deviance: np.ndarray,
    dispersion: float,
    rank: int,
    live: np.ndarray,
    scaled: bool,
    labels: tuple[str, ...],
    native: Callable[[Any], Any],
) -> Influence:
    """Compute influence measures from one fit.

    Parameters
    ----------
    design
        (n, p) columns of the mean.
    leverage, working_weights
        (n,).
    covariance
        (p, p) inverse information at dispersion 1, 0 for aliased coefficients.
    pearson, deviance
        Residuals (n,) with their weights.
    dispersion
        Pearson's estimate, or 1.
    rank
        Number of estimated coefficients.
    live
        Rows of positive weight (n,).
    scaled
        Whether studentized residuals are divided by the leave-one-out sigma (R: not for binomial and Poisson).
    """
    n = int(np.sum(live))
    one = leverage > 1 - 10 * np.finfo(float).eps
    h = np.where(one, 1.0, np.where(live, leverage, 0.0))
    rest = 1 - h
    blank = np.where(live, 1.0, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = float(np.sum(np.where(live, deviance, 0) ** 2))
        drop = np.where(one, 0.0, deviance**2 / rest)
        sigma = np.sqrt((total - drop) / (n - rank - 1)) * blank
        step = (design @ covariance) * (np.sqrt(working_weights) * deviance / rest)[:, None]
        dfbeta = np.where(one[:, None], 0.0, step) * blank[:, None]
        spread = np.sqrt(np.diag(covariance))
        dfbetas = np.where(spread > 0, dfbeta / sigma[:, None] / spread, 0.0) * blank[:, None]
        cooks = (pearson / rest) ** 2 * h / (dispersion * rank) * blank
        dffits = deviance * np.sqrt(h) / (sigma * rest) * blank
        student = np.sign(deviance) * np.sqrt(deviance**2 + h * pearson**2 / rest)
        student = student / sigma if scaled else student * blank
        e = deviance / (sigma * np.sqrt(rest))
        covratio = 1 / (rest * ((n - rank - 1 + e**2) / (n - rank)) ** rank) * blank
        scale = np.sqrt(dispersion * rest)
        out = (cooks, dffits, student, deviance / scale * blank, pearson / scale * blank, covratio)
    cooks, dffits, student, standard, standard_pearson, covratio = (
        np.where(np.isfinite(v), v, np.nan) for v in out
    )
    return Influence(
        leverage=h, cooks_distance=cooks, dfbetas=dfbetas, dfbeta=dfbeta, dffits=dffits,
        studentized=student, standardized_deviance=standard, standardized_pearson=standard_pearson,
        covratio=covratio, sigma=sigma, labels=labels, native=native,
    )  # fmt: skip
