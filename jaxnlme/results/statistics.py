"""What the tables of every model share: tails, quantiles, number formats, random generators."""

from __future__ import annotations

import html as html_module
import math
from typing import Any

import jax
import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme.design.frames import Table


def p_values(t: np.ndarray, df: np.ndarray | float | None) -> np.ndarray:
    """Two-sided p-values: normal, or Student's t with ``df``."""
    from scipy import special  # scipy.stats takes a second to import

    z = -np.abs(np.asarray(t, float))
    return 2 * (special.ndtr(z) if df is None else special.stdtr(df, z))


def chi2_tail(statistic: float, df: float | int) -> float:
    """Upper tail of the chi-square distribution; NaN for 0 degrees of freedom."""
    from scipy import special

    return float(special.chdtrc(df, statistic)) if df > 0 else math.nan


def f_tail(statistic: float, df: float | int, df_resid: float | int) -> float:
    """Upper tail of the F distribution."""
    from scipy import special

    return float(special.fdtrc(df, df_resid, max(statistic, 0.0))) if df > 0 else math.nan


def quantile(level: Any, df: np.ndarray | float | None = None) -> Any:
    """Quantile of the normal distribution, or of Student's t with ``df``."""
    from scipy import special

    return special.ndtri(level) if df is None else special.stdtrit(df, level)


def check_level(level: float, argument: str) -> None:
    """Raise ModelSpecError unless a probability lies strictly between 0 and 1."""
    if not 0 < level < 1:
        raise ModelSpecError(f"{argument}={level!r} must lie between 0 and 1.")


def generator(key: Any) -> np.random.Generator:
    """A numpy generator from an integer or a JAX key; the same key gives the same numbers.

    Examples
    --------
    >>> float(generator(1).random()) == float(generator(1).random())
    True
    """
    if isinstance(key, int | np.integer):
        return np.random.default_rng(int(key))
    if isinstance(key, np.random.Generator):
        return key
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


def p_text(p: float) -> str:
    """A p-value for a table."""
    if math.isnan(p):
        return ""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def stars(p: float) -> str:
    """R's significance codes."""
    if math.isnan(p):
        return ""
    marks = ((0.001, "***"), (0.01, "**"), (0.05, "*"), (0.1, "."))
    return next((mark for limit, mark in marks if p < limit), "")


def html(text: str) -> str:
    """A summary as HTML."""
    return f"<pre>{html_module.escape(text)}</pre>"


def as_given(table: Table, name: str) -> Any:
    """Return a column as the caller gave it: numbers as numbers, categories by level."""
    column = table.column(name)
    if column.kind != "category":
        if column.missing.any() and column.kind in ("number", "bool"):
            values = column.values.astype(float)
            values[column.missing] = np.nan
            return values
        return column.values
    return [None if c < 0 else column.levels[c] for c in column.values]


def plain(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinities become None, numpy becomes Python."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
