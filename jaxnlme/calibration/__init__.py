"""Calibration of any model: priors, targets, point estimates, ensemble sampling."""

from jaxnlme.calibration.chain import Chain
from jaxnlme.calibration.driver import StopAtMCSE, StopAtTau
from jaxnlme.calibration.ensemble import EnsembleSampler, SamplerState
from jaxnlme.calibration.fitted import FittedPosterior
from jaxnlme.calibration.history import HistoryMatch, history_match
from jaxnlme.calibration.identify import FisherSpectrum, fisher_spectrum, sensitivity
from jaxnlme.calibration.inversion import kalman_inversion
from jaxnlme.calibration.likelihoods import (
    AbstractLikelihood,
    FunctionLikelihood,
    GaussianLikelihood,
    LogNormalLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from jaxnlme.calibration.models import ModelRunner
from jaxnlme.calibration.moves import (
    AbstractMove,
    DifferentialEvolution,
    EnsembleSlice,
    Snooker,
    Stretch,
    Walk,
)
from jaxnlme.calibration.parameters import ParameterDef, ParameterSet
from jaxnlme.calibration.point import PointEstimate, PointEstimator
from jaxnlme.calibration.predictive import Loo, loo, posterior_predictive
from jaxnlme.calibration.problem import Posterior, make_posterior
from jaxnlme.calibration.sampling import sample, sample_many
from jaxnlme.calibration.storage import ChainStorage
from jaxnlme.calibration.streaming import StreamedMoments
from jaxnlme.calibration.target import AR1, Observation, Target
from jaxnlme.priors import (
    AbstractPrior,
    Beta,
    Bound,
    Cauchy,
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    LKJMargin,
    LogNormal,
    Normal,
    NumpyroPrior,
    StudentT,
    TruncatedNormal,
    Uniform,
)

__all__ = [
    "AR1",
    "AbstractLikelihood",
    "AbstractMove",
    "AbstractPrior",
    "Beta",
    "Bound",
    "Cauchy",
    "Chain",
    "ChainStorage",
    "DifferentialEvolution",
    "EnsembleSampler",
    "EnsembleSlice",
    "Exponential",
    "FisherSpectrum",
    "FittedPosterior",
    "FunctionLikelihood",
    "Gamma",
    "GaussianLikelihood",
    "HalfCauchy",
    "HalfNormal",
    "HistoryMatch",
    "InverseGamma",
    "LKJMargin",
    "LogNormal",
    "LogNormalLikelihood",
    "Loo",
    "ModelRunner",
    "NegativeBinomialLikelihood",
    "Normal",
    "NumpyroPrior",
    "Observation",
    "ParameterDef",
    "ParameterSet",
    "PointEstimate",
    "PointEstimator",
    "PoissonLikelihood",
    "Posterior",
    "SamplerState",
    "Snooker",
    "StopAtMCSE",
    "StopAtTau",
    "StreamedMoments",
    "Stretch",
    "StudentT",
    "StudentTLikelihood",
    "Target",
    "TruncatedNormal",
    "Uniform",
    "Walk",
    "fisher_spectrum",
    "history_match",
    "kalman_inversion",
    "loo",
    "make_posterior",
    "posterior_predictive",
    "sample",
    "sample_many",
    "sensitivity",
]
