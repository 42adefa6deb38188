"""Covariances that do not trust the model's variances: White's HC family and clusters (host, numpy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxnlme._errors import DataError, ModelSpecError

KINDS = ("HC0", "HC1", "HC2", "HC3", "HC4")


def hc_factor(kind: str, leverage: np.ndarray | None, n: int, p: int) -> np.ndarray | float:
    """Weight of each row's squared score in the meat of a sandwich.

    HC0: 1; HC1: n / (n - p); HC2: 1 / (1 - h); HC3: 1 / (1 - h)^2; HC4: 1 / (1 - h)^min(4, n h / p).

    Parameters
    ----------
    leverage
        h (n,), for HC2 to HC4.
    n, p
        Rows of positive weight, and coefficients.

    References
    ----------
    MacKinnon and White (1985), J. Econometrics 29; Cribari-Neto (2004), CSDA 45 (HC4). As ``vcovHC`` of R's
    sandwich.

    Examples
    --------
    >>> import numpy as np
    >>> hc_factor("HC3", np.array([0.5]), 10, 2).tolist()
    [4.0]
    """
    if kind == "HC0":
        return 1.0
    if kind == "HC1":
        return n / (n - p)
    if leverage is None:
        raise ModelSpecError(
            f"vcov(kind={kind!r}) needs leverages, which a family with several predictors does not have; use "
            "'HC0', 'HC1' or 'cluster'."
        )
    rest = 1 - leverage
    power = {"HC2": 1.0, "HC3": 2.0}.get(kind)
    exponent = np.minimum(4.0, n * leverage / p) if power is None else power
    with np.errstate(divide="ignore"):
        return rest**-exponent


def read_groups(groups: np.ndarray, n: int) -> tuple[np.ndarray, int]:
    """Codes 0..G-1 of cluster labels (n,), and G.

    Raises
    ------
    DataError
        Wrong length, missing labels, fewer than two clusters.
    """
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise DataError(
            f"groups has shape {labels.shape}; one label per row used is needed, ({n},)."
        )
    missing = labels != labels if labels.dtype.kind in "fO" else np.zeros(n, bool)
    if np.any(missing):
        raise DataError(
            f"groups is missing in {int(np.sum(missing))} row(s); every row needs a cluster."
        )
    _, codes = np.unique(
        labels.astype(str) if labels.dtype == object else labels, return_inverse=True
    )
    count = int(codes.max(initial=-1)) + 1
    if count < 2:
        raise DataError(f"groups has {count} distinct label(s); clusters need at least 2.")
    return codes, count


def cluster_meat(
    designs: Sequence[np.ndarray], scores: Sequence[np.ndarray], codes: np.ndarray, count: int
) -> np.ndarray:
    """Sum over clusters of the outer product of their scores, times G / (G - 1) (R's ``vcovCL``).

    Parameters
    ----------
    designs
        (n, p_k) per predictor.
    scores
        (n,) derivative of each row's log-likelihood in each linear predictor.
    codes, count
        From :func:`read_groups`.
    """
    columns = [
        np.bincount(codes, X[:, j] * s, count)
        for X, s in zip(designs, scores, strict=True)
        for j in range(X.shape[1])
    ]
    sums = np.stack(columns, 1)
    return sums.T @ sums * (count / (count - 1))
