"""Nonlinear mixed effects: problem, methods, pure fits."""

from jaxnlme.nlme.fit import NLMEFit, fit, information, marginal_log_likelihood
from jaxnlme.nlme.fo import FO
from jaxnlme.nlme.foce import FOCE
from jaxnlme.nlme.laplace import AGQ, Laplace
from jaxnlme.nlme.lme import LME, RELME
from jaxnlme.nlme.method import AbstractMarginalMethod, AbstractMethod
from jaxnlme.nlme.models import from_numpy, trajectory
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem, StructuralModel

__all__ = [
    "AGQ",
    "FO",
    "FOCE",
    "LME",
    "RELME",
    "AbstractMarginalMethod",
    "AbstractMethod",
    "Laplace",
    "NLMEFit",
    "NLMEParams",
    "NLMEProblem",
    "StructuralModel",
    "fit",
    "from_numpy",
    "information",
    "marginal_log_likelihood",
    "trajectory",
]
