"""Readers of tests/reference. Import as ``from helpers import reference, data, vector, matrix``."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE = Path(__file__).parent / "reference"


@functools.cache
def _text(path: Path) -> str:
    return path.read_text()


def reference(field: str, name: str) -> dict[str, Any]:
    """Read ``tests/reference/<field>/<name>.json``; a fresh object at each call."""
    return json.loads(_text(REFERENCE / field / f"{name.removesuffix('.json')}.json"))


def references(field: str, pattern: str = "*") -> list[str]:
    """Return the sorted names (without .json) of a field's reference files."""
    return sorted(path.stem for path in (REFERENCE / field).glob(f"{pattern}.json"))


def data(name: str, **options: Any) -> Any:
    """Read ``tests/reference/data/<name>.csv`` with pandas."""
    import pandas as pd

    return pd.read_csv(REFERENCE / "data" / f"{name.removesuffix('.csv')}.csv", **options)


def vector(value: Any) -> np.ndarray:
    """Return a float64 vector: R writes a vector of length 1 as a scalar, and NA as null."""
    return np.atleast_1d(np.asarray(value, dtype=float))


def matrix(value: Any) -> np.ndarray:
    """Return a float64 matrix: R writes a 1 x 1 matrix as a scalar or a vector."""
    return np.atleast_2d(np.asarray(value, dtype=float))
