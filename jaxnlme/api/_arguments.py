"""Checks of arguments that every door makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError, nearest


def refuse_unknown(unknown: Mapping[str, Any], door: Callable) -> None:
    """Raise ``TypeError`` naming the first unknown keyword and its nearest neighbours."""
    for name in unknown:
        known = [p for p in inspect.signature(door).parameters if p != "unknown"]
        raise TypeError(f"{door.__name__}: unknown argument {name!r}.{nearest(name, known)}")


def check_numbers(counts: Mapping[str, tuple[Any, int]]) -> None:
    """Refuse counts that are not whole numbers from their minimum on: ``{name: (value, minimum)}``."""
    for name, (value, minimum) in counts.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < minimum:
            raise ModelSpecError(f"{name}={value!r} must be a whole number >= {minimum}.")
