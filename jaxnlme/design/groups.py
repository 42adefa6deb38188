"""Rows of a long table to padded arrays per group and back; sizes in few shape buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def bucket(size: int, *, minimum: int = 8) -> int:
    """Round a size up to a shape bucket, so that data of similar size share a compiled program.

    Powers of two from ``minimum`` to 4096, quarter octaves (in multiples of 512) above.

    Examples
    --------
    >>> [bucket(n) for n in (3, 12, 100, 5000)]
    [8, 16, 128, 6144]
    """
    size = max(int(size), minimum)
    if size <= 4096:
        return 1 << (size - 1).bit_length()
    octave = 2.0 ** (math.ceil(4 * math.log2(size)) / 4)
    return int(512 * math.ceil(octave / 512))


@dataclass(frozen=True)
class GroupLayout:
    """Where each row of a table stands in the padded array ``(m, n)``.

    Parameters
    ----------
    codes
        Group of each row, 0 to ``num_groups - 1``; rows need not be sorted.
    labels
        Label of each group, in the order of the codes.
    shape
        Padded ``(groups, rows per group)``.
    position
        Row's place within its group, in the order of the table.
    """

    codes: np.ndarray
    labels: tuple
    shape: tuple[int, int]
    position: np.ndarray

    @property
    def num_groups(self) -> int:
        return len(self.labels)

    @property
    def mask(self) -> np.ndarray:
        """Boolean ``(m, n)``: True where a row of the table stands."""
        out = np.zeros(self.shape, bool)
        out[self.codes, self.position] = True
        return out

    def pack(self, values: np.ndarray, *, fill: float | None = None) -> np.ndarray:
        """Return ``(m, n, ...)``; padding holds ``fill``, or copies of the group's first row.

        Padded groups copy the first group, so that a model never sees numbers that are not data.
        """
        values = np.asarray(values)
        out = np.zeros(self.shape + values.shape[1:], values.dtype)
        if fill is None:
            first = np.zeros(self.num_groups, int)
            first[self.codes[::-1]] = np.arange(len(self.codes))[::-1]
            out[: self.num_groups] = values[first][:, None]
            out[self.num_groups :] = values[first[0]]
        else:
            out[...] = fill
        out[self.codes, self.position] = values
        return out

    def pack_groups(self, values: np.ndarray) -> np.ndarray:
        """Return one entry per padded group ``(m, ...)``; padding copies the first group."""
        values = np.asarray(values)
        out = np.repeat(values[:1], self.shape[0], axis=0)
        out[: self.num_groups] = values
        return out

    def unpack(self, padded: Any) -> np.ndarray:
        """Return the rows of a padded array in the order of the table."""
        return np.asarray(padded)[self.codes, self.position]


def group_layout(codes: np.ndarray, labels: Sequence, *, pad: bool = True) -> GroupLayout:
    """Lay out rows by group code; with ``pad`` both axes are rounded up to shape buckets."""
    codes = np.asarray(codes, np.int64)
    counts = np.bincount(codes, minlength=len(labels))
    order = np.argsort(codes, kind="stable")
    start = np.concatenate([[0], np.cumsum(counts)[:-1]])
    position = np.empty(len(codes), np.int64)
    position[order] = np.arange(len(codes)) - start[codes[order]]
    m, n = len(labels), int(counts.max())
    shape = (bucket(m), bucket(n)) if pad else (m, n)
    return GroupLayout(codes, tuple(labels), shape, position)
