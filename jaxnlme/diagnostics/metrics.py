"""Measures of fit of predicted means and probabilities (host, numpy; weights are prior weights)."""

from __future__ import annotations

import numpy as np


def regression(y: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Weighted mean squared and mean absolute error, and the root of the first.

    Examples
    --------
    >>> import numpy as np
    >>> regression(np.array([1.0, 3.0]), np.array([1.0, 2.0]), np.ones(2))["mae"]
    0.5
    """
    mse = float(np.average((y - mean) ** 2, weights=weights))
    mae = float(np.average(np.abs(y - mean), weights=weights))
    return {"mse": mse, "mae": mae, "rmse": float(np.sqrt(mse))}


def classification(y: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Accuracy at 1/2, log loss, Brier score, area under the ROC curve (= c index) and Gini of 0/1 data."""
    eps = np.finfo(float).eps
    p = np.clip(mean, eps, 1 - eps)
    loss = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    auc = area_under_roc(y, mean, weights)
    return {
        "accuracy": float(np.average((mean > 0.5) == (y == 1), weights=weights)),
        "log_loss": float(np.average(loss, weights=weights)),
        "brier": float(np.average((y - mean) ** 2, weights=weights)),
        "auc": auc,
        "c_index": auc,
        "gini": 2 * auc - 1,
    }


def area_under_roc(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> float:
    """Weighted share of pairs of a success and a failure that the score orders rightly; ties count one half.

    NaN without a success or without a failure.

    Examples
    --------
    >>> import numpy as np
    >>> area_under_roc(np.array([0, 1, 1]), np.array([0.1, 0.1, 0.9]), np.ones(3))
    0.75
    """
    values, code = np.unique(score, return_inverse=True)
    hits = np.bincount(code, weights * (y == 1), len(values))
    misses = np.bincount(code, weights * (y != 1), len(values))
    total = hits.sum() * misses.sum()
    if total == 0:
        return float("nan")
    below = np.cumsum(misses) - misses
    return float(np.sum(hits * (below + 0.5 * misses)) / total)
