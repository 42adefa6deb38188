"""Shape aliases. Letters: n rows, p fixed, q random per group, m groups, k basis, t times."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import Array as JaxArray
from jaxtyping import ArrayLike, Bool, Float, Int, PyTree, Shaped

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Frame", "Int", "NumpyArray", "PyTree", "Shaped"]

NumpyArray = np.ndarray
Array = JaxArray | np.ndarray  # pure functions take both; doors keep numpy
Frame = Any  # whatever narwhals accepts, or a dict of 1-D arrays
