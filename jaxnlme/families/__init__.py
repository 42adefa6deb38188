"""Families of response distributions; each one file. :func:`as_family` reads a name."""

from jaxnlme.families._base import (
    AbstractExponentialFamily,
    AbstractFamily,
    Parameter,
    Prepared,
    Response,
)
from jaxnlme.families._registry import FAMILIES, as_family
from jaxnlme.families.beta import Beta
from jaxnlme.families.beta_binomial import BetaBinomial
from jaxnlme.families.binomial import Binomial
from jaxnlme.families.censored import Censored
from jaxnlme.families.custom import custom
from jaxnlme.families.gamma import Gamma
from jaxnlme.families.gaussian import Gaussian
from jaxnlme.families.inverse_gaussian import InverseGaussian
from jaxnlme.families.lognormal import LogNormal
from jaxnlme.families.multinomial import Multinomial
from jaxnlme.families.negative_binomial import NegativeBinomial, NegativeBinomial1
from jaxnlme.families.ordinal import Ordinal
from jaxnlme.families.poisson import Poisson
from jaxnlme.families.quasi import Quasi, QuasiBinomial, QuasiPoisson
from jaxnlme.families.student_t import StudentT
from jaxnlme.families.truncated import Truncated
from jaxnlme.families.tweedie import Tweedie
from jaxnlme.families.zero_inflated import Hurdle, ZeroInflated

__all__ = [
    "FAMILIES",
    "AbstractExponentialFamily",
    "AbstractFamily",
    "Beta",
    "BetaBinomial",
    "Binomial",
    "Censored",
    "Gamma",
    "Gaussian",
    "Hurdle",
    "InverseGaussian",
    "LogNormal",
    "Multinomial",
    "NegativeBinomial",
    "NegativeBinomial1",
    "Ordinal",
    "Parameter",
    "Poisson",
    "Prepared",
    "Quasi",
    "QuasiBinomial",
    "QuasiPoisson",
    "Response",
    "StudentT",
    "Truncated",
    "Tweedie",
    "ZeroInflated",
    "as_family",
    "custom",
]
