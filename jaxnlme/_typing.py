"""Shape aliases. Letters: n rows, p fixed, q random per group, m groups, k basis, t times."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Frame", "Int", "NumpyArray", "PyTree"]

NumpyArray = np.ndarray
Frame = Any  # whatever narwhals accepts, or a dict of 1-D arrays
