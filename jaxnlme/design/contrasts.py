"""Contrast matrices of factors with the column names of R.

The one module that knows formulaic: it computes the sum, Helmert and polynomial contrasts.
Treatment contrasts, the default, need no more than an identity matrix and do not load it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxnlme.design.columns import level_label

KINDS = ("treatment", "SAS", "sum", "helmert", "poly")


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A kind of contrast; ``base`` (treatment only) is a 1-based position or a level."""

    kind: str = "treatment"
    base: int | str = 1


TREATMENT = Contrast()


def contrast_matrix(contrast: Contrast, levels: tuple) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the (levels, levels - 1) coding matrix and the suffixes of its columns.

    Examples
    --------
    >>> contrast_matrix(Contrast("sum"), ("a", "b", "c"))[0].tolist()
    [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]
    """
    labels = tuple(level_label(level) for level in levels)
    k = len(labels)
    if contrast.kind in ("treatment", "SAS"):
        base = k - 1 if contrast.kind == "SAS" else base_position(contrast.base, labels)
        kept = [i for i in range(k) if i != base]
        return np.eye(k)[:, kept], tuple(labels[i] for i in kept)
    matrix = _by_formulaic(contrast.kind, labels)
    if contrast.kind == "poly":
        names = (".L", ".Q", ".C")
        return matrix, tuple(names[j] if j < 3 else f"^{j + 1}" for j in range(k - 1))
    return matrix, tuple(str(j + 1) for j in range(k - 1))


def base_position(base: int | str, labels: tuple[str, ...]) -> int:
    """Return the 0-based position of a base level given by position (from 1) or by name."""
    if isinstance(base, str):
        if base not in labels:
            raise ValueError(f"the base level {base!r} is not among {', '.join(labels)}")
        return labels.index(base)
    if not 1 <= base <= len(labels):
        raise ValueError(f"base={base} is not between 1 and the number of levels, {len(labels)}")
    return base - 1


def _by_formulaic(kind: str, labels: tuple[str, ...]) -> np.ndarray:
    from formulaic.transforms import contrasts

    classes: dict[str, Any] = {
        "sum": contrasts.SumContrasts,
        "helmert": contrasts.HelmertContrasts,
        "poly": contrasts.PolyContrasts,
    }
    coding = classes[kind]().get_coding_matrix(list(labels), reduced_rank=True, sparse=False)
    return np.asarray(coding, dtype=np.float64)
