"""Results objects and the tables that they print."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxnlme.results.glm import GLMResults
    from jaxnlme.results.nlme import NLMEResults
    from jaxnlme.results.term_tests import anova

__all__ = ["GLMResults", "NLMEResults", "anova"]

# A GLM must not pay for loading the nonlinear models, nor they for it.
_LAZY = {"GLMResults": "glm", "NLMEResults": "nlme", "anova": "term_tests"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'jaxnlme.results' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxnlme.results.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
