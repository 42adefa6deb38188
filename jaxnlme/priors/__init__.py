"""Prior densities of parameters: penalised (MAP) fits, and the priors of a calibration.

Every prior is a small pytree with ``log_prob, cdf, icdf, bounds, sample`` and a map between its
support and the whole line. Numbers and numpy arrays are evaluated in float64 on the host and give
numpy; JAX arrays (also traced ones) are followed in their own dtype.
"""

from jaxnlme.priors.base import AbstractPrior
from jaxnlme.priors.bounded import Bound, NumpyroPrior, TruncatedNormal, as_prior
from jaxnlme.priors.densities import (
    LKJ,
    Beta,
    Cauchy,
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    LKJMargin,
    LogNormal,
    Normal,
    StudentT,
    Uniform,
)

__all__ = [
    "LKJ",
    "AbstractPrior",
    "Beta",
    "Bound",
    "Cauchy",
    "Exponential",
    "Gamma",
    "HalfCauchy",
    "HalfNormal",
    "InverseGamma",
    "LKJMargin",
    "LogNormal",
    "Normal",
    "NumpyroPrior",
    "StudentT",
    "TruncatedNormal",
    "Uniform",
    "as_prior",
]
