"""MATLAB's own names: ``from jaxnlme.matlab import nlmefit, statset``."""

from jaxnlme.api.matlab import nlmefit, statset

__all__ = ["nlmefit", "statset"]
