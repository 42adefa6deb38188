"""Families of response distributions; each one file. :func:`as_family` reads a name."""

from jaxnlme.families._base import (
    AbstractExponentialFamily,
    AbstractFamily,
    Parameter,
    Prepared,
    Response,
)
from jaxnlme.families._registry import FAMILIES, as_family
from jaxnlme.families.gaussian import Gaussian
from jaxnlme.families.poisson import Poisson

__all__ = [
    "FAMILIES",
    "AbstractExponentialFamily",
    "AbstractFamily",
    "Gaussian",
    "Parameter",
    "Poisson",
    "Prepared",
    "Response",
    "as_family",
]
