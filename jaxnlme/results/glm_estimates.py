"""Estimates, fit statistics and rows of a fitted generalised linear model, computed when asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme._precision import host64
from jaxnlme._results import RESULTS
from jaxnlme.design.frames import Table
from jaxnlme.families import AbstractFamily
from jaxnlme.glm.drive import HostFit, HostProblem
from jaxnlme.glm.fit import GLMFit
from jaxnlme.results import glm_predict as predicting
from jaxnlme.results.base import AbstractResults
from jaxnlme.results.glm_compute import (
    Evaluator,
    Rows,
    conditional_problem,
    natural_slopes,
    natural_values,
    null_fit,
)
from jaxnlme.results.glm_spec import GLMSpec
from jaxnlme.results.glm_wald import robust_covariance
from jaxnlme.results.labelled import LabelledMatrix, LabelledVector


class GLMEstimates(AbstractResults):
    """What a GLM fit knows about itself: coefficients, covariances, likelihood, fitted values, residuals."""

    def __init__(self, **parts: Any) -> None:
        self._spec: GLMSpec = parts["spec"]
        self._problem: HostProblem = parts["problem"]
        self._host: HostFit = parts["fit"]
        self._table: Table = parts["table"]
        self._call: Mapping[str, Any] = parts["call"]
        self._door: Callable = parts["door"]
        self.row_index: np.ndarray = parts["rows"]
        self.seconds: float = parts["seconds"]
        self.fit: GLMFit = self._host.fit
        self.result: RESULTS = self.fit.result
        self.formula: str = self._spec.formula
        self.step_path: Any = None  # of jn.step: the models that were walked through

    def __getattr__(self, name: str) -> Any:
        known = (
            "_spec" in self.__dict__ and name not in self._not_built
        )  # not while being unpickled
        if known and not name.startswith("_"):
            if name in self.family_params:
                return self.family_params[name]
            if name in ("theta", "power", "precision", "df") and hasattr(
                self._problem.family, name
            ):
                return float(np.asarray(getattr(self._problem.family, name)))
        return super().__getattr__(name)

    # ---- estimates ------------------------------------------------------------------------------
    @functools.cached_property
    def _shown(self) -> np.ndarray:
        return np.flatnonzero(self._spec.listed)

    def _vector(self, values: Any) -> LabelledVector:
        return LabelledVector(np.asarray(values)[self._shown], self._spec.labels)

    @property
    def params(self) -> LabelledVector:
        """Coefficients on the link scale; NaN where aliased."""
        return self._vector(self._host.params)

    @property
    def bse(self) -> LabelledVector:
        """Standard errors; NaN for coefficients that are aliased, held or at a bound."""
        return self._vector(self._standard_errors())

    def _standard_errors(self, kind: str = "model", groups: Any = None) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            spread = np.sqrt(np.diag(self._covariance(kind, groups)))
        return np.where(self._host.estimated, spread, np.nan)

    @property
    def df_test(self) -> float | None:
        """Degrees of freedom of t tests: ``df_resid`` where the dispersion is estimated, else None (normal)."""
        return float(self.df_resid) if self._problem.family.has_dispersion else None

    @host64
    def vcov(self, kind: str = "model", groups: Any = None) -> LabelledMatrix:
        """Return the covariance of the coefficients.

        Parameters
        ----------
        kind
            ``"model"``: inverse information times the dispersion. ``"HC0"`` to ``"HC4"``: sandwich with
            R's weights (prior weights enter the meat squared). ``"cluster"``: scores summed by ``groups``,
            times G / (G - 1).
        groups
            Cluster of each row used (or of each input row), or the name of a data column.
        """
        shown = self._shown
        return LabelledMatrix(
            self._covariance(kind, groups)[np.ix_(shown, shown)], self._spec.labels
        )

    @host64
    def _covariance(self, kind: str = "model", groups: Any = None) -> np.ndarray:
        """(P, P) covariance of all coefficients."""
        if kind == "model":
            return self._unit_covariance * self._scale
        return robust_covariance(self, kind, groups)

    def _row_values(self, values: Any, role: str) -> np.ndarray:
        """A column or an array with one value per input row or per row used."""
        if isinstance(values, str):
            column = self._table.column(values, role=role).values
            return np.asarray(column)[self.row_index]
        values = np.asarray(values)
        full = len(values) == self._table.n and self._table.n != len(self.row_index)
        return values[self.row_index] if full else values

    def _need_plain(self, what: str, cure: str) -> None:
        """Refuse what has no theory under a penalty or a linear constraint."""
        if self._problem.constraint is not None or not self._problem.penalty.trivial:
            raise ModelSpecError(
                f"{what} is for fits without penalty and constraint (alpha=, penalty=, priors=): {cure}."
            )

    @property
    def _unit_covariance(self) -> np.ndarray:
        """(P, P) inverse information at dispersion 1, NaN where aliased, 0 where held.

        The last pass of a fit uses the expected information where the family knows it (R's errors of a
        negative binomial are those at fixed theta).
        """
        return self._host.covariance

    @property
    def _bread(self) -> np.ndarray:
        """The same with 0 in place of NaN."""
        return np.nan_to_num(self._unit_covariance)

    @property
    def _scale(self) -> float:
        return self.dispersion if self._problem.family.has_dispersion else 1.0

    @property
    def family(self) -> AbstractFamily:
        """The family, estimated parameters filled in where they are scalars."""
        family = self._problem.family
        filled = family.at(*self.family_params.values) if self._scalars else None
        return family if filled is None else filled

    @property
    def _scalars(self) -> bool:
        """Whether every other parameter of the family is one nuisance scalar."""
        return bool(self._problem.family.parameters) and len(self.family_params) == len(
            self._problem.family.parameters
        )

    @functools.cached_property
    def family_params(self) -> LabelledVector:
        """Nuisance scalars of the family (``theta``, ``power``, ...) on their natural scale."""
        return self._natural(False)

    @functools.cached_property
    def family_params_bse(self) -> LabelledVector:
        """Their standard errors (delta method)."""
        return self._natural(True)

    @host64
    def _natural(self, errors: bool) -> Any:
        hidden = np.flatnonzero(~self._spec.listed)
        links = tuple(self._problem.links[k] for k in self._spec.predictor[hidden])
        values = self._host.params[hidden]
        names = [self._spec.all_labels[k] for k in hidden]
        if not errors:
            return LabelledVector(natural_values(links, values), names)
        slopes = np.array(natural_slopes(links, values))
        return LabelledVector(np.abs(slopes) * self._standard_errors()[hidden], names)

    # ---- fit statistics -------------------------------------------------------------------------
    @functools.cached_property
    def nobs(self) -> int:
        """Rows of positive weight."""
        return int(np.count_nonzero(self._problem.weights > 0))

    @property
    def rank(self) -> int:
        """Number of coefficients that were estimated, nuisance scalars not counted (free directions, if tied)."""
        shown = self._shown
        if self._problem.constraint is not None:
            return int(np.linalg.matrix_rank(self._bread[np.ix_(shown, shown)]))
        return int(np.sum(self._host.estimated[shown]))

    @property
    def df_model(self) -> int:
        """Rank less the intercept."""
        constant = self._constant & self._host.estimated
        return self.rank - int(np.sum(constant[: self._problem.designs[0].width]))

    @property
    def df_resid(self) -> int:
        """``nobs`` less the rank."""
        return self.nobs - self.rank

    @property
    def df_llf(self) -> int:
        """Parameters that ``aic`` and ``bic`` count: coefficients, scalars such as theta, and the dispersion."""
        scalars = int(np.sum(self._host.estimated & ~self._spec.listed))
        return self.rank + scalars + (self._llf_dispersion is not None)

    @functools.cached_property
    def _constant(self) -> np.ndarray:
        """(P,) bool: intercepts and scalars, which a null model keeps."""
        names = [p.name for p in self._problem.family.parameters]
        return np.array(
            [t.endswith("(Intercept)") or t in names for t in self._spec.all_labels], bool
        )

    @functools.cached_property
    def _used(self) -> Table:
        """The rows used."""
        return self._table.take(self.row_index)

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self._problem, self._host.filled)

    @functools.cached_property
    @host64
    def _conditional(self) -> Evaluator | None:
        """The mean alone with other parameters held, None where the family has no such form."""
        params = self._host.filled
        problem = conditional_problem(self._problem, params, self._scalars)
        return None if problem is None else Evaluator(problem, params[: problem.width])

    @functools.cached_property
    def _rows(self) -> Rows:
        return self._passed("rows")

    @host64
    def _passed(self, name: str, *arguments: Any) -> Any:
        return getattr(self._evaluator, name)(*arguments)

    @functools.cached_property
    def _variance(self) -> np.ndarray:
        return self._passed("variance")

    @functools.cached_property
    def _observed(self) -> np.ndarray:
        if self._problem.family.response_width == 1:
            return self._problem.y
        return self._passed("observed")

    @functools.cached_property
    @host64
    def _leverage(self) -> tuple[np.ndarray, np.ndarray]:
        conditional = self._conditional
        if conditional is None:
            raise ModelSpecError(
                f"leverages are not defined for family {self._problem.family.name!r}: its mean is not fitted by "
                "weighted least squares."
            )
        p = conditional.problem.width
        return conditional.leverage(self._bread[:p, :p])

    @functools.cached_property
    @host64
    def _llf_dispersion(self) -> float | None:
        family, live = self._problem.family, self._problem.weights > 0
        if not (family.has_likelihood and family.has_dispersion):
            return None
        return family.llf_dispersion(  # type: ignore[attr-defined]
            self._problem.y[..., live],
            self._problem.weights[live],
            self._rows.mean[live],
            self.deviance,
        )

    @functools.cached_property
    def llf(self) -> float:
        """Log-likelihood, every constant kept; NaN for quasi families.

        Where a dispersion is estimated it is R's: ``deviance / nobs`` (gaussian), ``deviance / sum(weights)``
        (gamma, inverse gaussian), maximum likelihood (Tweedie).
        """
        if not self._problem.family.has_likelihood:
            return math.nan
        return float(self._passed("llf", self._llf_dispersion))

    @property
    def aic(self) -> float:
        """``-2 llf + 2 df_llf``."""
        return -2 * self.llf + 2 * self.df_llf

    @property
    def bic(self) -> float:
        """``-2 llf + log(nobs) df_llf``."""
        return -2 * self.llf + math.log(self.nobs) * self.df_llf

    bic_groups = bic  # there are no groups

    @functools.cached_property
    def deviance(self) -> float:
        """Twice the log-likelihood lost against a perfect fit at dispersion 1 (``-2 llf`` where there is none)."""
        return float(np.sum(self._rows.deviance))

    @functools.cached_property
    @host64
    def null_deviance(self) -> float:
        """Deviance of the constant alone, with the offset and weights (no intercept: of the offset alone)."""
        conditional = self._conditional
        if conditional is None:
            problem, constant = self._problem, self._constant
        else:
            problem, constant = conditional.problem, self._constant[: conditional.problem.width]
            if constant.any() and not np.any(problem.offsets[0]):
                w = problem.weights
                return conditional.deviance_of_constant(float(np.sum(w * problem.y) / np.sum(w)))
        null, fit = null_fit(problem, constant)
        return float(np.sum(Evaluator(null, fit.filled).rows().deviance))

    @property
    def df_null(self) -> int:
        """Degrees of freedom of the null model."""
        return self.nobs - (self.rank - self.df_model)

    @functools.cached_property
    def pearson_chi2(self) -> float:
        """Sum of squared Pearson residuals; NaN for classes."""
        if self._problem.family.classes is not None:
            return math.nan
        live = self._problem.weights > 0
        return float(np.sum(np.square(self.residuals("pearson")[live])))

    @property
    def scale_pearson(self) -> float:
        """``pearson_chi2 / df_resid``."""
        return self.pearson_chi2 / self.df_resid if self.df_resid > 0 else math.nan

    @property
    def scale_deviance(self) -> float:
        """``deviance / df_resid``."""
        return self.deviance / self.df_resid if self.df_resid > 0 else math.nan

    @property
    def dispersion(self) -> float:
        """Pearson's estimate where the family has a dispersion, else 1."""
        return self.scale_pearson if self._problem.family.has_dispersion else 1.0

    @property
    def sigma(self) -> float:
        """The family's own ``sigma``, or the square root of ``dispersion``."""
        if "sigma" in self.family_params:
            return self.family_params["sigma"]
        return math.sqrt(self.dispersion) if self.dispersion >= 0 else math.nan

    # ---- rows -----------------------------------------------------------------------------------
    @property
    def fittedvalues(self) -> np.ndarray:
        """Means of the rows used, (n, K) for classes."""
        return self._rows.mean

    def residuals(self, kind: str = "response", key: Any = 0) -> np.ndarray:
        """Return one residual per row used.

        Parameters
        ----------
        kind
            ``"response"``: y - mean. ``"pearson"``: over the standard deviation at dispersion 1, weights
            included. ``"deviance"``: signed square root of the row's deviance (exponential families).
            ``"working"``: on the link scale, (y - mean) d eta / d mean. ``"quantile"``: normal quantile of
            the distribution function at y, drawn uniformly over its jump for counts and over the interval of
            a censored response (Dunn and Smyth 1996).
        key
            Of the draws of quantile residuals.
        """
        return predicting.residuals(self, kind, key)
