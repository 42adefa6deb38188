"""Generalised linear models as pure functions."""

from jaxnlme.glm.fit import GLMFit, fit, total_cost
from jaxnlme.glm.irls import IRLS
from jaxnlme.glm.problem import GLMProblem, Predictor

__all__ = ["IRLS", "GLMFit", "GLMProblem", "Predictor", "fit", "total_cost"]
