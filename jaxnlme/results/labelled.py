"""Small labelled vectors and matrices for results: one kind for every model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError, nearest


class _Labelled(np.lib.mixins.NDArrayOperatorsMixin):
    """Numbers with one set of labels that numpy can compute with.

    Operators and numpy's functions work as on an array. A result element by element of the same shape keeps the
    labels; any other (a product of matrices, a sum, broadcasting to another shape, operands with other
    labels) is a plain array.
    """

    __slots__ = ("_values", "index")
    __array_priority__ = 10.0

    _values: np.ndarray
    index: list[str]

    def __init__(self, values: Any, index: Sequence[str]) -> None:
        values = np.asarray(values)
        if values.dtype != bool:
            values = np.asarray(values, float)
        self._values = values.view()  # so that the caller's array stays writeable
        self._values.setflags(write=False)
        self.index = list(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            return np.asarray(self._values, dtype=dtype)
        return np.array(self._values, dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        labelled = [x for x in inputs if isinstance(x, _Labelled)]
        for other in labelled:
            if other.index != self.index and sorted(other.index) == sorted(self.index):
                raise ModelSpecError(
                    f"{ufunc.__name__}: the labels stand in different orders ({self.index} and {other.index}); "
                    "choose one: b[a.index]."
                )
        arrays = [x._values if isinstance(x, _Labelled) else x for x in inputs]
        out = getattr(ufunc, method)(*arrays, **options)
        same = all(x.index == self.index and x.shape == self.shape for x in labelled)
        if method != "__call__" or ufunc.signature is not None or not same or "out" in options:
            return out
        if isinstance(out, tuple):
            return tuple(self._like(part) for part in out)
        return self._like(out)

    def _like(self, values: Any) -> Any:
        fits = isinstance(values, np.ndarray) and values.shape == self.shape
        return type(self)(values, self.index) if fits and values.dtype.kind in "bfiu" else values

    def __bool__(self) -> bool:
        return bool(self._values)

    def _position(self, key: str) -> int:
        if key not in self.index:
            raise KeyError(f"{key!r} is not one of {self.index}.{nearest(key, self.index)}")
        return self.index.index(key)

    @property
    def values(self) -> np.ndarray:
        """The values as a read-only array."""
        return self._values

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self._values.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._values.ndim

    @property
    def size(self) -> int:
        """Number of values."""
        return self._values.size

    @property
    def dtype(self) -> np.dtype:
        """float64, or bool for comparisons."""
        return self._values.dtype

    def round(self, decimals: int = 0) -> Any:
        """Return the values rounded."""
        return self._like(np.round(self._values, decimals))


def _shown(value: Any, number: str) -> str:
    return str(value) if isinstance(value, bool | np.bool_) else format(value, number)


class LabelledVector(_Labelled):
    """Values with names: ``p["wt"]``, ``.index``, ``np.asarray(p)``, ``.to_dict()``, iteration over values.

    Arithmetic, comparisons and numpy's functions work as on an array and keep the labels where they fit; so do
    slices, masks and lists of labels.

    Raises
    ------
    KeyError
        An unknown label, with the nearest one.
    ModelSpecError
        Arithmetic of two vectors with the same labels in different orders.

    Examples
    --------
    >>> p = LabelledVector([1.0, 2.0], ["a", "b"])
    >>> p["b"], list(p), p.to_dict()
    (2.0, [1.0, 2.0], {'a': 1.0, 'b': 2.0})
    >>> (2 * p)["b"], p[p > 1].index, p[["b", "a"]].index
    (4.0, ['b'], ['b', 'a'])
    """

    __slots__ = ()

    def __init__(self, values: Any, index: Sequence[str]) -> None:
        super().__init__(values, index)
        if self._values.shape != (len(self.index),):
            raise ValueError(f"{self._values.shape} values for {len(self.index)} labels")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._values[self._position(key)].item()
        if isinstance(key, list | tuple) and key and all(isinstance(k, str) for k in key):
            key = [self._position(k) for k in key]
        elif isinstance(key, LabelledVector):
            key = key._values
        out = self._values[key]
        if np.ndim(out) == 0:
            return out.item()
        names = np.asarray(self.index, object)[key]
        return (
            LabelledVector(out, names.tolist())
            if out.shape == names.shape and out.ndim == 1
            else out
        )

    def __contains__(self, key: object) -> bool:
        return key in self.index

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values.tolist())

    def __len__(self) -> int:
        return len(self.index)

    def keys(self) -> list[str]:
        """Return the labels."""
        return list(self.index)

    def items(self) -> list[tuple[str, Any]]:
        """Return pairs of label and value."""
        return list(zip(self.index, self._values.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return a dict of label to value."""
        return dict(self.items())

    def __repr__(self) -> str:
        width = max((len(k) for k in self.index), default=0)
        return "\n".join(f"{k:<{width}}  {_shown(v, ' .6g')}" for k, v in self.items())


class LabelledMatrix(_Labelled):
    """A square matrix with one set of labels: ``m["a", "b"]``, ``.index``, ``np.asarray(m)``, ``.to_frame()``.

    Computes as :class:`LabelledVector` does.

    Examples
    --------
    >>> m = LabelledMatrix([[4.0, 1.0], [1.0, 9.0]], ["a", "b"])
    >>> m["a", "b"], m["a"]["b"], np.sqrt(m)["b", "b"], np.sqrt(np.diag(m)).tolist()
    (1.0, 1.0, 3.0, [2.0, 3.0])
    """

    __slots__ = ()

    def __init__(self, values: Any, index: Sequence[str]) -> None:
        super().__init__(values, index)
        if self._values.shape != (len(self.index),) * 2:
            raise ValueError(f"{self._values.shape} values for {len(self.index)} labels")

    @property
    def columns(self) -> list[str]:
        """Labels of the columns (those of the rows)."""
        return list(self.index)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and all(isinstance(k, str) for k in key):
            i, j = (self._position(k) for k in key)
            return self._values[i, j].item()
        if isinstance(key, str):
            return LabelledVector(self._values[self._position(key)], self.index)
        return self._values[key]

    def __len__(self) -> int:
        return len(self.index)

    def to_frame(self) -> Any:
        """Return a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self._values, index=self.index, columns=self.index)

    def __repr__(self) -> str:
        width = max((len(k) for k in self.index), default=0)
        head = " " * width + "".join(f"  {k:>11}" for k in self.index)
        rows = [
            f"{k:<{width}}" + "".join(f"  {_shown(v, ' 11.4g'):>11}" for v in row)
            for k, row in zip(self.index, self._values, strict=True)
        ]
        return "\n".join([head, *rows])
