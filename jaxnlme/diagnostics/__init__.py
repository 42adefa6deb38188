"""What a fit leaves over: weighted residuals."""

from jaxnlme.diagnostics.weighted_residuals import whitened

__all__ = ["whitened"]
