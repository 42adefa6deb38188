"""Columns of a design, written chunk by chunk of rows into a matrix or into blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxnlme.numerics.blocked import BLOCK, aligned

CHUNK = 64 * BLOCK  # rows whose columns stay in the cache
EXPAND = 48  # dummies up to which a dense Gram matrix is faster than segment sums


class HostBlocks(NamedTuple):
    """A design laid out as :class:`jaxnlme.numerics.blocked.Blocks` takes it.

    Attributes
    ----------
    dense : ndarray, shape (k, p, 512)
        Zero in padding rows; its memory is aligned to 64 bytes.
    codes : tuple of int32 ndarray, each (k, 512)
        Position among the coefficients of a coded factor; its size for the base level and padding.
    sizes : tuple of int
        Number of coefficients of each coded factor.
    order : ndarray of int, shape (p + sum(sizes),)
        Position in ``labels`` of each coefficient in blocked order.
    """

    dense: np.ndarray
    codes: tuple[np.ndarray, ...]
    sizes: tuple[int, ...]
    order: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some columns of a design: dense, or those of one factor as codes.

    Attributes
    ----------
    positions : ndarray of int, shape (k,)
        Position of each coefficient in ``labels``.
    dense : ndarray, shape (n, k), or None
    codes : int32 ndarray, shape (n,), or None
        Position among the coefficients of the part; ``size`` for the base level.
    """

    positions: np.ndarray
    dense: np.ndarray | None = None
    codes: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return len(self.positions)


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """One variable of a term: numbers (n, w), or codes (n,) with the coding of their levels."""

    values: np.ndarray
    coding: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.values.shape[1] if self.coding is None else self.coding.shape[1]

    @property
    def one_hot(self) -> np.ndarray | None:
        """For each column the level whose indicator it is; None for other codings."""
        coding = self.coding
        if coding is None or not len(coding) or not np.isin(coding, (0.0, 1.0)).all():
            return None
        single = (coding.sum(0) == 1).all() and (coding.sum(1) <= 1).all()
        return coding.argmax(0) if single else None

    def columns(self, rows: slice) -> list[np.ndarray]:
        """Return the columns at some rows, indicators as booleans."""
        if self.coding is None:
            return [self.values[rows, j] for j in range(self.width)]
        codes, levels = self.values[rows], self.one_hot
        if levels is not None:
            return [codes == level for level in levels]
        return [column[codes] for column in self.coding.T]


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """All columns of a design over n rows, in the order of their labels.

    ``terms`` holds the variables of each term; the columns of the first variable vary fastest.
    """

    n: int
    intercept: bool
    terms: tuple[tuple[Values, ...], ...]

    def matrix(self) -> np.ndarray:
        """Return (n, p), columns contiguous."""
        terms = tuple(range(len(self.terms)))
        width = int(self.intercept) + sum(_width(term) for term in self.terms)
        out = np.empty((self.n, width), order="F")
        for rows in self._chunks():
            for j, column in enumerate(self._dense(terms, rows)):
                out[rows, j] = column
        return out

    def parts(self, expand: int) -> list[Part]:
        """Return one dense part and a part per factor with more than ``expand`` coefficients."""
        dense, coded, at = self._split(expand)
        matrix = Columns(self.n, self.intercept, tuple(self.terms[k] for k in dense)).matrix()
        positions = [np.arange(int(self.intercept))] + [at[k] for k in dense]
        parts = [Part(np.concatenate(positions), matrix)] if matrix.shape[1] else []
        for k in coded:
            codes = np.empty(self.n, np.int32)
            np.take(_places(self.terms[k][0]), self.terms[k][0].values, out=codes)
            parts.append(Part(at[k], codes=codes))
        return parts

    def blocks(self, rows: int | None, expand: int) -> HostBlocks:
        """Return the design in blocks of 512 rows, padded to ``rows`` rows."""
        dense, coded, at = self._split(expand)
        count = -(-max(rows or self.n, self.n, 1) // BLOCK)
        positions = [np.arange(int(self.intercept))] + [at[k] for k in (*dense, *coded)]
        width = sum(map(len, positions)) - sum(len(at[k]) for k in coded)
        out = aligned((count, width, BLOCK))
        for chunk in self._chunks():
            first, full = chunk.start // BLOCK, chunk.stop // BLOCK
            split = (full - first) * BLOCK
            for j, column in enumerate(self._dense(dense, chunk)):
                out[first:full, j] = column[:split].reshape(-1, BLOCK)
                if split < len(column):
                    out[full, j, : len(column) - split] = column[split:]
        if self.n % BLOCK:
            out[self.n // BLOCK, :, self.n % BLOCK :] = 0
        out[-(-self.n // BLOCK) :] = 0
        codes = []
        for k in coded:
            factor, size = self.terms[k][0], len(at[k])
            flat = aligned((count * BLOCK,), np.int32)
            np.take(_places(factor), factor.values, out=flat[: self.n])
            flat[self.n :] = size
            codes.append(flat.reshape(count, BLOCK))
        sizes = tuple(len(at[k]) for k in coded)
        return HostBlocks(out, tuple(codes), sizes, np.concatenate(positions))

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, self.n, CHUNK):
            yield slice(start, min(start + CHUNK, self.n))

    def _dense(self, terms: Sequence[int], rows: slice) -> Iterator[np.ndarray]:
        if self.intercept:
            yield np.ones(rows.stop - rows.start)
        for k in terms:
            yield from _products([v.columns(rows) for v in self.terms[k]])

    def _split(self, expand: int) -> tuple[list[int], list[int], list[np.ndarray]]:
        """Return the terms that are dense, those that stay codes, and each one's positions."""
        dense, coded, at = [], [], []
        start = int(self.intercept)
        for k, term in enumerate(self.terms):
            width = _width(term)
            main = len(term) == 1 and width > expand and term[0].one_hot is not None
            (coded if main else dense).append(k)
            at.append(np.arange(start, start + width))
            start += width
        return dense, coded, at


def _width(term: tuple[Values, ...]) -> int:
    return int(np.prod([v.width for v in term]))


def _products(columns: list[list[np.ndarray]]) -> Iterator[np.ndarray]:
    """Products of one column of each variable, the first varying fastest."""
    if len(columns) == 1:
        yield from columns[0]
        return
    for last in columns[-1]:
        for rest in _products(columns[:-1]):
            yield rest * last


def _places(factor: Values) -> np.ndarray:
    """Position among the coefficients of each level; their number for the base level."""
    levels, coding = factor.one_hot, factor.coding
    assert levels is not None
    assert coding is not None
    places = np.full(len(coding), len(levels), np.int32)
    places[levels] = np.arange(len(levels), dtype=np.int32)
    return places
