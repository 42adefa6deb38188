"""Results of a generalised linear model: estimates, tests, predictions, residuals, influence."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxnlme._errors import ConvergenceWarning, ModelSpecError, nearest, warn
from jaxnlme._precision import host64
from jaxnlme._results import RESULTS, result_name, result_sentence
from jaxnlme.design.frames import Table
from jaxnlme.diagnostics.influence import Influence, influence
from jaxnlme.families import AbstractFamily
from jaxnlme.glm.drive import HostFit, HostProblem
from jaxnlme.glm.fit import GLMFit
from jaxnlme.plots.glm_results import GLMPlots
from jaxnlme.results import glm_again as again
from jaxnlme.results import glm_predict as predicting
from jaxnlme.results import glm_tables as tables
from jaxnlme.results import statistics
from jaxnlme.results.glm_compute import (
    Evaluator,
    Rows,
    conditional_problem,
    natural_slopes,
    natural_values,
    null_fit,
)
from jaxnlme.results.glm_spec import GLMSpec
from jaxnlme.results.glm_wald import hypotheses, robust_covariance, wald_test
from jaxnlme.results.labelled import LabelledMatrix, LabelledVector

_NOT_BUILT = frozenset(
    "save diagnostics to_scorer to_onnx marginal_means check_residuals to_arviz trace".split()
)


class GLMResults:
    """A fitted generalised linear model.

    Attributes
    ----------
    params, bse, tvalues, pvalues : LabelledVector
        Coefficients on the link scale. Aliased ones are NaN; held ones and those at a bound have no standard
        error. Tests use Student's t where the dispersion is estimated, else the normal distribution.
    family : AbstractFamily
        With estimated parameters filled in (``NegativeBinomial(theta=2.1)``).
    family_params, family_params_bse : LabelledVector
        Scalars such as ``theta`` or ``power`` on their natural scale; also ``fit.theta`` and the like.
    nobs, df_model, df_resid : int
        Rows of positive weight; rank less the intercept; ``nobs`` less rank.
    fittedvalues : ndarray
        Means of the rows used ((n, K) for classes); ``row_index`` (0-based) says which rows those are.
    converged : bool
    result : RESULTS
        Why the iteration stopped; ``message`` is its sentence.
    fit : GLMFit
        The raw pytree, numpy.
    """

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
        self.plot = GLMPlots(self)

    def __getattr__(self, name: str) -> Any:
        if name in _NOT_BUILT:
            raise ModelSpecError(
                f"GLMResults.{name} is not built yet in this version; built are: "
                f"{', '.join(n for n in dir(type(self)) if not n.startswith('_'))}, plot."
            )
        if not name.startswith("_") and "_spec" in self.__dict__:  # not while it is being unpickled
            if name in self.family_params:
                return self.family_params[name]
            if name in ("theta", "power", "precision", "df") and hasattr(
                self._problem.family, name
            ):
                return float(np.asarray(getattr(self._problem.family, name)))
        raise AttributeError(
            f"'GLMResults' object has no attribute {name!r}.{nearest(name, dir(type(self)))}"
        )

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
    def tvalues(self) -> LabelledVector:
        """Estimates divided by their standard errors."""
        return self._vector(self._host.params / self._standard_errors())

    @property
    def pvalues(self) -> LabelledVector:
        """Two-sided p-values of ``params = 0``."""
        t = self._host.params / self._standard_errors()
        return self._vector(statistics.p_values(t, self.df_test))

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

    @functools.cached_property
    def _unit_covariance(self) -> np.ndarray:
        """(P, P) inverse information at dispersion 1, NaN where aliased, 0 where held.

        Families that were fitted by their observed information may know the expected one (R's errors of a
        negative binomial are those at fixed theta).
        """
        problem = self._problem
        plain = problem.constraint is None and problem.penalty.trivial
        if problem.family.fisher_scoring or not plain:
            return self._host.covariance
        return again.covariance_at(problem, self._host, self._host.filled)

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

    @property
    def n_iter(self) -> int:
        """Steps of the iteration."""
        return int(self.fit.stats["num_steps"])

    @property
    def converged(self) -> bool:
        """True when the convergence test held."""
        return result_name(self.result) == "successful"

    @property
    def message(self) -> str:
        """One sentence that says how the fit ended."""
        return result_sentence(result_name(self.result))

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

    def influence(self) -> Influence:
        """Return leverages, Cook's distances, dfbetas, dffits, studentized residuals and covratio, as R does."""
        h, weights = self._leverage
        p = len(self._conditional.b)  # type: ignore[union-attr]
        return influence(
            design=self._problem.designs[0].matrix(),
            leverage=h,
            working_weights=weights,
            covariance=self._bread[:p, :p],
            pearson=self.residuals("pearson"),
            deviance=self.residuals("deviance"),
            dispersion=self.dispersion,
            rank=self.rank,
            live=self._problem.weights > 0,
            scaled=self._problem.family.name not in ("binomial", "poisson"),
            labels=self._spec.all_labels[:p],
            native=self._table.native,
        )

    def vif(self) -> Any:
        """Return generalised variance inflation factors of the terms: frame term, df, gvif, gvif_root.

        ``gvif_root = gvif^(1 / (2 df))`` compares terms of different size (Fox and Monette 1992, JASA 87); for
        one column ``gvif`` is the familiar factor.
        """
        return tables.vif(self)

    @host64
    def metrics(self, newdata: Any = None) -> dict[str, float]:
        """Return measures of fit on the rows used or on new data with the response.

        Means are weighted by the prior weights. ``deviance mse mae rmse`` (rows used: ``pseudo_r2``); for a
        0/1 response also ``accuracy log_loss brier auc c_index gini``.
        """
        return predicting.metrics(self, newdata)

    # ---- tables ---------------------------------------------------------------------------------
    @host64
    def conf_int(
        self,
        alpha: float = 0.05,
        method: str = "wald",
        *,
        kind: str = "model",
        groups: Any = None,
        n: int = 1000,
        key: Any = 0,
    ) -> Any:
        """Return intervals of the coefficients: frame term, conf_low, conf_high.

        Parameters
        ----------
        alpha
            One minus the coverage.
        method
            ``"wald"``: normal quantiles, as R's ``confint.default``. ``"profile"``: where the deviance rises
            by the normal quantile squared times the dispersion (R's ``confint``). ``"boot"``: percentiles
            of ``n`` bootstrap samples of the cases (of clusters with ``groups``).
        kind, groups
            Covariance of Wald intervals, see ``vcov``.
        n, key
            Of the bootstrap.
        """
        low, high = tables.intervals(self, alpha, method, kind, groups, n, key)
        columns = {"term": list(self._spec.labels), "conf_low": low, "conf_high": high}
        return self._table.native(columns)

    @host64
    def tidy(
        self, conf_int: bool = True, alpha: float = 0.05, kind: str = "model", groups: Any = None
    ) -> Any:
        """Return the coefficients: frame term, estimate, std_error, statistic, p_value, conf_low, conf_high."""
        return tables.tidy(self, conf_int, alpha, kind, groups)

    def glance(self) -> Any:
        """Return one row of fit statistics."""
        return tables.glance(self)

    def augment(self) -> Any:
        """Return the columns of the model with fitted values and residuals, one row per input row."""
        return tables.augment(self)

    def coef_table(self) -> Any:
        """Return ``tidy()`` with significance codes."""
        return tables.coef_table(self)

    @host64
    def relativities(self, level: float = 0.95) -> Any:
        """Return ``exp`` of the effects: frame term, level, relativity, conf_low, conf_high, exposure_share.

        One row per level of each factor (the base level is 1), one per unit of each number. Needs the log
        link.
        """
        return tables.relativities(self, level)

    @host64
    def relevel(self, by: str = "exposure") -> GLMResults:
        """Fit again with the level of largest exposure as the base of every factor (``by="exposure"``)."""
        return again.relevel(self, by)

    def n_nonzero(self) -> int:
        """Return the number of coefficients that are not zero, the intercept left out."""
        return len(self.selected_features())

    def selected_features(self) -> list[str]:
        """Return the labels of coefficients that are not zero, the intercept left out."""
        return [
            k
            for k, v in self.params.items()
            if v != 0 and math.isfinite(v) and not k.endswith("(Intercept)")
        ]

    @host64
    def summary(self, kind: str = "model", groups: Any = None) -> str:
        """Return the fit as text, with standard errors of this ``kind`` (see ``vcov``)."""
        return tables.summary(self, kind, groups)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return (
            f"<GLMResults {self._problem.family.name} ({self._problem.links[0].name}): {self.formula}; "
            f"{self.nobs} rows, {self.rank} coefficients>"
        )

    def _repr_html_(self) -> str:
        return statistics.html(self.summary())

    def to_json(self) -> str:
        """Return estimates and statistics as JSON (no data, no functions, no NaN)."""
        return json.dumps(statistics.plain(tables.as_dict(self)), indent=2)

    # ---- inference ------------------------------------------------------------------------------
    @host64
    def wald_test(
        self, L: Any, kind: str = "model", groups: Any = None, test: str = "Chisq"
    ) -> dict[str, float]:
        """Test linear restrictions of the coefficients: a matrix, or ``"x1 = x2, x3 = 0"``.

        Returns statistic, df and p_value; ``test="F"`` divides by df and uses the F distribution.
        """
        return wald_test(self, L, kind, groups, test)

    @host64
    def hypotheses(self, hypothesis: Any, kind: str = "model", groups: Any = None) -> Any:
        """Test functions of the coefficients by the delta method: frame hypothesis, estimate, std_error, ...

        Parameters
        ----------
        hypothesis
            ``"exp(x1)/x2 = 1"`` (several: a list), or a function of a dict of coefficients written with
            ``jax.numpy``.
        """
        return hypotheses(self, hypothesis, kind, groups)

    # ---- new data -------------------------------------------------------------------------------
    @host64
    def predict(
        self,
        newdata: Any = None,
        type: str = "response",
        interval: str | None = None,
        level: float = 0.95,
        *,
        exposure: Any = None,
        offset: Any = None,
        weights: Any = None,
    ) -> Any:
        """Predict rows of the fit or of new data.

        Parameters
        ----------
        newdata
            Frame with the predictors, and the offset and exposure columns of the fit.
        type
            ``"response"`` (means, class probabilities (n, K)), ``"link"`` (of the mean) or ``"terms"`` (frame
            with one column per term; with the intercept and the offset they add up to the link).
        interval
            ``"confidence"`` (on the link scale, brought through the link; frame also has ``std_error``, on the
            scale of ``type``) or ``"prediction"`` (quantiles of a new response of weight ``weights``,
            uncertainty of the mean included).
        level
            Coverage of the interval.
        exposure, offset, weights
            Arrays or columns for these rows instead of those of the fit.

        Returns
        -------
        ndarray or frame
            One value per row, NaN where a predictor is missing; with ``interval`` a frame fit, low, high.

        Raises
        ------
        DataError
            Unseen factor level, missing or retyped column.
        """
        given = {"exposure": exposure, "offset": offset, "weights": weights}
        return predicting.predict(self, newdata, type, interval, level, given)

    @host64
    def simulate(
        self, n: int = 1, key: Any = 0, newdata: Any = None, uncertainty: str = "none"
    ) -> np.ndarray:
        """Draw responses ``(n, rows)``; ``uncertainty="asymptotic"`` draws the coefficients first."""
        return predicting.simulate(self, n, key, newdata, uncertainty)

    @host64
    def samples(self, n: int, key: Any = 0, what: str = "params") -> np.ndarray:
        """Draw from the normal approximation: ``"params"`` (n, P), ``"link"`` or ``"response"`` (n, rows)."""
        return predicting.samples(self, n, key, what)

    # ---- again ----------------------------------------------------------------------------------
    @host64
    def bootstrap(self, n: int, key: Any = 0, kind: str = "parametric", groups: Any = None) -> Any:
        """Fit ``n`` bootstrap samples: frame replicate, term, estimate (NaN where a fit failed).

        ``kind``: ``"parametric"`` (responses simulated from the fit), ``"cases"`` (rows drawn with replacement,
        each with its weight) or ``"groups"`` (whole clusters: ``groups`` labels or a column).
        """
        return again.bootstrap_frame(self, n, key, kind, groups)

    def update(self, *arguments: Any, **changes: Any) -> GLMResults:
        """Fit again with some arguments of the call changed (a new formula first, ``data=`` too)."""
        return again.update(self, arguments, changes)

    @host64
    def refit(self, y: Any) -> GLMResults:
        """Fit again to another response (one value per row used), starting from these estimates."""
        return again.refit(self, y)

    @host64
    def with_params(self, values: Mapping[str, Any]) -> GLMResults:
        """Return full results at other coefficients, without fitting; what is not named keeps its estimate.

        Labels of ``params`` (link scale); scalars such as ``theta`` on the scale of their link (log).
        """
        return again.with_params(self, values)

    def _again(self, **changes: Any) -> GLMResults:
        return make_results(**{**self._parts(), **changes})

    def _parts(self) -> dict[str, Any]:
        return {
            "spec": self._spec, "problem": self._problem, "fit": self._host, "table": self._table,
            "rows": self.row_index, "call": self._call, "door": self._door, "seconds": self.seconds,
        }  # fmt: skip


def make_results(**parts: Any) -> GLMResults:
    """Turn a fit into results; nothing is computed here but the warning of a fit that did not converge."""
    results = GLMResults(**parts)
    if not results.converged:
        stats = results.fit.stats
        name = result_name(results.result)
        warn(
            f"the fit did not converge: ({name}) {result_sentence(name)} Steps {results.n_iter}, squared step "
            f"{float(stats['decrement']):.3g} (in standard errors). To continue: fit.update(start=fit.params, "
            "max_steps=...).",
            ConvergenceWarning,
        )
    return results
