"""Results objects and the tables that they print."""

from jaxnlme.results.anova import anova
from jaxnlme.results.nlme import NLMEResults

__all__ = ["NLMEResults", "anova"]
