"""Small labelled vectors and matrices for results: one kind for every model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import nearest


class LabelledVector:
    """Values with names: ``p["wt"]``, ``.index``, ``np.asarray(p)``, ``.to_dict()``, iteration over values.

    Examples
    --------
    >>> p = LabelledVector([1.0, 2.0], ["a", "b"])
    >>> p["b"], list(p), p.to_dict()
    (2.0, [1.0, 2.0], {'a': 1.0, 'b': 2.0})
    """

    __slots__ = ("_values", "index")

    def __init__(self, values: Any, index: Sequence[str]) -> None:
        self._values = np.asarray(values, float)
        self._values.setflags(write=False)
        self.index = list(index)
        if self._values.shape != (len(self.index),):
            raise ValueError(f"{self._values.shape} values for {len(self.index)} labels")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.index:
                raise KeyError(f"{key!r} is not one of {self.index}.{nearest(key, self.index)}")
            return float(self._values[self.index.index(key)])
        out = self._values[key]
        return float(out) if np.ndim(out) == 0 else out

    def __contains__(self, key: object) -> bool:
        return key in self.index

    def __iter__(self) -> Iterator[float]:
        return iter(self._values.tolist())

    def __len__(self) -> int:
        return len(self.index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return np.array(self._values, dtype=dtype)

    @property
    def values(self) -> np.ndarray:
        """The values as a read-only array."""
        return self._values

    def keys(self) -> list[str]:
        """Return the labels."""
        return list(self.index)

    def items(self) -> list[tuple[str, float]]:
        """Return pairs of label and value."""
        return list(zip(self.index, self._values.tolist(), strict=True))

    def to_dict(self) -> dict[str, float]:
        """Return a dict of label to value."""
        return dict(self.items())

    def __repr__(self) -> str:
        width = max((len(k) for k in self.index), default=0)
        return "\n".join(f"{k:<{width}}  {v: .6g}" for k, v in self.items())


class LabelledMatrix:
    """A square matrix with one set of labels: ``m["a", "b"]``, ``.index``, ``np.asarray(m)``, ``.to_frame()``."""

    __slots__ = ("_values", "index")

    def __init__(self, values: Any, index: Sequence[str]) -> None:
        self._values = np.asarray(values, float)
        self._values.setflags(write=False)
        self.index = list(index)

    @property
    def columns(self) -> list[str]:
        """Labels of the columns (those of the rows)."""
        return list(self.index)

    @property
    def values(self) -> np.ndarray:
        """The matrix as a read-only array."""
        return self._values

    @property
    def shape(self) -> tuple[int, int]:
        return self._values.shape  # type: ignore[return-value]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and all(isinstance(k, str) for k in key):
            i, j = (self._position(k) for k in key)
            return float(self._values[i, j])
        if isinstance(key, str):
            return LabelledVector(self._values[self._position(key)], self.index)
        return self._values[key]

    def _position(self, key: str) -> int:
        if key not in self.index:
            raise KeyError(f"{key!r} is not one of {self.index}.{nearest(key, self.index)}")
        return self.index.index(key)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return np.array(self._values, dtype=dtype)

    def to_frame(self) -> Any:
        """Return a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self._values, index=self.index, columns=self.index)

    def __repr__(self) -> str:
        width = max((len(k) for k in self.index), default=0)
        head = " " * width + "".join(f"  {k:>11}" for k in self.index)
        rows = [
            f"{k:<{width}}" + "".join(f"  {v: 11.4g}" for v in row)
            for k, row in zip(self.index, self._values, strict=True)
        ]
        return "\n".join([head, *rows])
