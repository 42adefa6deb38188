"""Exceptions and warnings. Each message names what came, what was expected and the cure."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable


class JaxnlmeError(Exception):
    """Root of everything that jaxnlme raises on purpose."""


class DataError(JaxnlmeError, ValueError):
    """The data cannot be used: missing, infinite, wrong type or wrong length."""


class FormulaError(JaxnlmeError, ValueError):
    """A formula cannot be read, or names something that is not there."""


class ModelSpecError(JaxnlmeError, ValueError):
    """The model, its start values or its options do not fit together."""


class SerializationError(JaxnlmeError):
    """A saved file is damaged, of another version, or belongs to another model."""


class JaxnlmeWarning(UserWarning):
    """Root of every jaxnlme warning."""


class ConvergenceWarning(JaxnlmeWarning):
    """The iteration stopped before its convergence test held."""


class SingularFitWarning(JaxnlmeWarning):
    """A variance component is zero or a correlation is at +-1."""


class SeparationWarning(JaxnlmeWarning):
    """Fitted probabilities are numerically 0 or 1."""


class CollinearityWarning(JaxnlmeWarning):
    """Columns of the design are linearly dependent, or nearly so."""


class IdentifiabilityWarning(JaxnlmeWarning):
    """The likelihood is flat in some direction at the estimate."""


class BoundaryWarning(JaxnlmeWarning):
    """A parameter other than a variance component sits on its bound."""


class PrecisionWarning(JaxnlmeWarning):
    """Digits were lost converting the data to float64."""


class SamplingWarning(JaxnlmeWarning):
    """A Markov chain has not converged."""


class ExtrapolationWarning(JaxnlmeWarning):
    """A prediction lies outside the range of the training data."""


class DataWarning(JaxnlmeWarning):
    """The data were used, but not all of them or not as given."""


class FormulaWarning(JaxnlmeWarning):
    """A formula was read, but probably does not say what was meant."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the caller's own code: the first frame outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _inside(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level + 1)


def _inside(frame) -> bool:
    """True for this package, and for the frames that runtime type checks put between its functions."""
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in ("jaxnlme", "beartype", "jaxtyping", "contextlib", "functools")


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return ``" Did you mean 'a' or 'b'?"`` or an empty string."""
    known = [str(k) for k in known]
    lowered = {k.lower(): k for k in known}
    hits = difflib.get_close_matches(name.lower(), lowered, n=n, cutoff=0.6)
    if not hits:
        return ""
    return " Did you mean " + " or ".join(repr(lowered[h]) for h in hits) + "?"


def some(items: Iterable, limit: int = 5) -> str:
    """Return the first few items as text, ``"3, 7, 9, ... (12 in all)"``."""
    items = list(items)
    text = ", ".join(str(i) for i in items[:limit])
    return text if len(items) <= limit else f"{text}, ... ({len(items)} in all)"
