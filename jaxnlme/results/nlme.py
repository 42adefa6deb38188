"""Results of a nonlinear mixed-effects fit: names, tables, predictions, residuals."""

from __future__ import annotations

import functools
import importlib
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from jaxnlme._errors import (
    ConvergenceWarning,
    DataError,
    IdentifiabilityWarning,
    ModelSpecError,
    SingularFitWarning,
    some,
    warn,
)
from jaxnlme._precision import host64
from jaxnlme._results import RESULTS, result_name, result_sentence
from jaxnlme.design.frames import Table
from jaxnlme.design.nonlinear import Grouping, tight
from jaxnlme.diagnostics.weighted_residuals import whitened
from jaxnlme.inference.wald import restriction, wald
from jaxnlme.nlme.drive import drive, information
from jaxnlme.nlme.fit import NLMEFit
from jaxnlme.nlme.lme import LME
from jaxnlme.nlme.method import AbstractMethod
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.plots.nlme_results import NLMEPlots
from jaxnlme.results import nlme_predict as predicting
from jaxnlme.results import nlme_tables as tables
from jaxnlme.results import statistics
from jaxnlme.results.base import AbstractResults
from jaxnlme.results.labelled import LabelledMatrix, LabelledVector
from jaxnlme.results.nlme_compute import (
    Point,
    conditional_covariance,
    evaluate,
    host_factor,
    interval_scale,
    lme_variance_information,
    reported_covariance,
    reported_covariance_slope,
    variance_parameters,
)
from jaxnlme.results.nlme_spec import NLMESpec, check_response

if TYPE_CHECKING:
    from jaxnlme.calibration.fitted import FittedPosterior


class NLMEResults(AbstractResults):
    """A fitted nonlinear mixed-effects model.

    Attributes
    ----------
    params, bse, tvalues, pvalues : LabelledVector
        Fixed effects on the transformed scale, standard errors from ``vcov()``, z values, normal p-values.
    llf : float
        Log-likelihood of the method (every constant kept); values of different methods do not compare.
    aic, bic, bic_groups : float
        ``bic`` uses log(nobs) (restricted fits: log(nobs - p)), ``bic_groups`` log(number of groups).
    sigma, error_params
        First error parameter, and all of them by name.
    fittedvalues : ndarray
        Individual predictions of the rows used; ``row_index`` (0-based) says which rows those are.
    converged : bool
    result : RESULTS
        Why the iteration stopped; ``message`` is its sentence.
    fit : NLMEFit
        The raw pytree, numpy.
    """

    _not_built = frozenset(
        """bootstrap profile sir vpc npde log_likelihood samples save to_arviz hypotheses
        check_residuals marginal_means trace""".split()
    )
    _tables = tables

    def __init__(self, **parts: Any) -> None:
        self._spec: NLMESpec = parts["spec"]
        self._problem: NLMEProblem = parts["problem"]
        self._method: AbstractMethod = parts["method"]
        self._dialect: str = parts["dialect"]
        self._table: Table = parts["table"]
        self._grouping: Grouping = parts["grouping"]
        self._y: np.ndarray = parts["y"]
        self._weights: np.ndarray = parts["weights"]
        self._call: Mapping[str, Any] = parts["call"]
        self._door: Callable = parts["door"]
        self.fit: NLMEFit = parts["fit"]
        self.row_index: np.ndarray = parts["rows"]
        self.attempts: list[dict[str, Any]] = parts["attempts"]
        self.seconds: float = parts["seconds"]
        self._estimates: NLMEParams = parts["estimates"]
        self.llf: float = parts["llf"]
        self._singular: tuple[str, ...] = parts["singular"]
        self._covariance: tuple[np.ndarray, np.ndarray | None] = parts["covariance"]
        self.result: RESULTS = self.fit.result
        self.formula: str = self._spec.formula
        self.family = "gaussian"

    def log_posterior(
        self, priors: Any, *, fix: Mapping[str, Any] | None = None
    ) -> FittedPosterior:
        """Return the log posterior density of the population parameters, for ``jn.calibration.sample``.

        Random effects are integrated out by the method of the fit (FO, FOCE, Laplace, AGQ).

        Parameters
        ----------
        priors
            A prior for each parameter by its label, or for all of a kind: ``{"fixed": Normal(0, 10), "sd":
            HalfNormal(1), "cor": LKJ(2), "sigma": HalfNormal(1)}``. Fixed effects are on the transformed
            scale, as in ``params``; standard deviations, correlations and error parameters are those of
            ``tidy()``.
        fix
            Values of parameters that are not sampled: ``{"sigma": 0.7}``.

        Returns
        -------
        FittedPosterior
            Goes to ``jn.calibration.sample(posterior, method=...)``, ``EnsembleSampler(posterior)`` and
            ``PointEstimator(posterior)``; ``posterior.starts(n)`` are points around the fit to start from.
            Positive parameters are sampled as logarithms, Jacobian included.

        Raises
        ------
        ModelSpecError
            The method has no likelihood to evaluate (LME), the fit has priors already, a parameter has no
            prior, a name is unknown, or a prior does not suit its parameter.

        Notes
        -----
        ``loo`` leaves out groups.

        Examples
        --------
        >>> import jax.numpy as jnp, jaxnlme as jn
        >>> from jaxnlme.priors import HalfNormal, Normal
        >>> def decay(p, x):
        ...     return jnp.exp(p["lA"] - x["t"])
        >>> data = {"t": [0.0, 1.0, 2.0] * 3, "g": [1, 1, 1, 2, 2, 2, 3, 3, 3],
        ...         "y": [2.1, 0.9, 0.2, 4.2, 1.4, 0.7, 2.9, 1.2, 0.3]}
        >>> fit = jn.fit_nlme(decay, data, group="g", fixed="lA ~ 1", random="lA ~ 1",
        ...     response="y", predictors=["t"], start={"lA": 1.0}, method="FOCE")
        >>> posterior = fit.log_posterior(
        ...     {"lA": Normal(0, 2), "sd": HalfNormal(1), "sigma": HalfNormal(1)})
        >>> posterior.names
        ('lA', 'sd(g).lA', 'sigma')
        """
        # By name: it loads the samplers, which a fit does without.
        module = importlib.import_module("jaxnlme.results.nlme_posterior")
        return module.log_posterior(self, priors, fix)

    @property
    def plot(self) -> NLMEPlots:
        """Pictures: ``individual_fits``, ``gof``, ``random_effects``."""
        # made anew: a reference back would keep large data until a collection
        return NLMEPlots(self)

    # ---- estimates ------------------------------------------------------------------------------
    @property
    def method(self) -> str:
        """Name of the method, ``"REML"`` for R's dialect."""
        return "REML" if self._dialect == "R-REML" else self._method.name

    @property
    def params(self) -> LabelledVector:
        """Fixed effects on the transformed scale."""
        return LabelledVector(self._estimates.beta, self._spec.fixed.labels)

    def fixef(self) -> LabelledVector:
        """Return the fixed effects (the same as ``params``)."""
        return self.params

    @property
    def bse(self) -> LabelledVector:
        """Standard errors; NaN for parameters that are held."""
        return LabelledVector(self._standard_errors(), self._spec.fixed.labels)

    def _standard_errors(self) -> np.ndarray:
        variance = np.diag(self._covariance[0])
        free = np.asarray(self._problem.free.beta)
        with np.errstate(invalid="ignore"):
            return np.where(free, np.sqrt(variance), np.nan)

    def vcov(self, kind: str = "model") -> LabelledMatrix:
        """Return the covariance of the fixed effects.

        LME: ``sigma^2 (X'V^-1X)^-1`` of the last linearisation (R's ``varFix``; its ``summary`` multiplies by
        N/(N-p)). Likelihood methods: from the observed information of all parameters.
        """
        if kind != "model":
            raise ModelSpecError(f"vcov(kind={kind!r}): only 'model' is built for NLME fits.")
        return LabelledMatrix(self._covariance[0], self._spec.fixed.labels)

    def psi(self) -> np.ndarray | dict[str, np.ndarray]:
        """Return the covariance of the random effects; with nested levels a dict by group column."""
        parts = self._problem.covariance.psi(self._estimates.theta)
        if len(parts) == 1:
            return parts[0]
        return dict(zip(self._spec.groups, parts, strict=True))

    @property
    def error_params(self) -> LabelledVector:
        """Parameters of the error model on their natural scale."""
        natural = self._spec.natural_error(self._estimates.error)
        return LabelledVector(natural, self._spec.error_names)

    @property
    def sigma(self) -> float:
        """First error parameter: the residual standard deviation for a constant error."""
        return float(self.error_params.values[0])

    @property
    def dispersion(self) -> float:
        """``sigma ** 2``."""
        return self.sigma**2

    # ---- fit statistics -------------------------------------------------------------------------
    @property
    def nobs(self) -> int:
        """Rows of positive weight."""
        return int(np.sum(self._weights > 0))

    @property
    def ngroups(self) -> dict[str, int]:
        """Number of groups per level."""
        return dict(zip(self._spec.groups, (len(v) for v in self._grouping.labels), strict=True))

    @property
    def df_model(self) -> int:
        """Number of estimated parameters: fixed effects, covariance, error."""
        return int(np.sum(self._problem.free.flat()))

    @property
    def df_resid(self) -> int:
        """``nobs - df_model``."""
        return self.nobs - self.df_model

    @property
    def _restricted(self) -> bool:
        return self.method in ("REML", "RELME")

    @property
    def aic(self) -> float:
        """``-2 llf + 2 df_model``."""
        return -2 * self.llf + 2 * self.df_model

    @property
    def bic(self) -> float:
        """``-2 llf + log(nobs) df_model``; restricted fits use log(nobs - p)."""
        p = int(np.sum(self._problem.free.beta)) if self._restricted else 0
        return -2 * self.llf + math.log(self.nobs - p) * self.df_model

    @property
    def bic_groups(self) -> float:
        """``-2 llf + log(outermost groups) df_model``."""
        return -2 * self.llf + math.log(self._grouping.layout.num_groups) * self.df_model

    @property
    def deviance(self) -> float:
        """``-2 llf``."""
        return -2 * self.llf

    @property
    def null_deviance(self) -> float:
        """NaN: a nonlinear model has no null model."""
        return math.nan

    @property
    def ofv(self) -> float:
        """NONMEM's objective: ``-2 llf - nobs log(2 pi)``."""
        return -2 * self.llf - self.nobs * math.log(2 * math.pi)

    @property
    def message(self) -> str:
        """One sentence that says how the fit ended."""
        if self._stopped:
            return "The fit was stopped by progress= before convergence."
        return result_sentence(
            "singular" if self.converged and self._singular else result_name(self.result)
        )

    @property
    def _stopped(self) -> bool:
        return not self.converged and self.attempts[-1]["result"] == "stopped"

    @property
    def is_singular(self) -> bool:
        """True when a variance component is zero or a correlation is at +-1."""
        return bool(self._singular)

    # ---- rows -----------------------------------------------------------------------------------
    @functools.cached_property
    def _b(self) -> np.ndarray:
        return np.asarray(self.fit.stats["b"])

    @functools.cached_property
    def _point(self) -> Point:
        return self._evaluate(self._b)

    @functools.cached_property
    def _population(self) -> Point:
        return self._evaluate(np.zeros_like(self._b))

    @host64
    def _evaluate(self, b: np.ndarray) -> Any:
        e = self._estimates
        return evaluate(self._problem, self._grouping.layout, e.beta, b, e.error)

    def _response_scale(self, f: np.ndarray) -> np.ndarray:
        return np.exp(f) if self._spec.error_model.log_scale else f

    @property
    def fittedvalues(self) -> np.ndarray:
        """Individual predictions of the rows used."""
        return self._response_scale(self._point.f)

    def residuals(self, kind: str = "response") -> np.ndarray:
        """Return one residual per row used.

        Parameters
        ----------
        kind
            ``"response"``: y minus individual prediction. ``"ires"``, ``"pres"``: individual and population
            residuals (on the log scale for exponential error). ``"iwres"`` (= ``"pearson"``): ires / sd at
            the individual prediction. ``"pwres"``: population residuals whitened by
            ``Z0 psi Z0' + diag(sd0^2)`` at b = 0. ``"cwres"``: ``y - f(b) + Z b`` whitened by
            ``Z psi Z' + diag(sd^2)`` at the modes (Hooker et al. 2007).
        """
        z = np.log(self._y) if self._spec.error_model.log_scale else self._y
        if kind == "response":
            return self._y - self.fittedvalues
        if kind == "ires":
            return z - self._point.f
        if kind == "pres":
            return z - self._population.f
        if kind in ("iwres", "pearson"):
            with np.errstate(divide="ignore", invalid="ignore"):
                return (z - self._point.f) / self._point.sd
        codes = self._grouping.layout.codes
        factor = host_factor(self._problem, self._estimates.theta)
        psi = factor @ factor.T
        if kind == "pwres":
            p = self._population
            return whitened(z - p.f, p.Z, p.sd, psi, codes)
        if kind == "cwres":
            p = self._point
            rb = np.einsum("nq,nq->n", p.Z, self._b[codes])
            return whitened(z - p.f + rb, p.Z, p.sd, psi, codes)
        if kind == "npde":
            raise ModelSpecError("residuals(kind='npde') is not built yet.")
        raise ModelSpecError(
            f"residuals(kind={kind!r}): use response, ires, pres, iwres, pearson, pwres or cwres."
        )

    def shrinkage(self) -> LabelledVector:
        """Return eta shrinkage per random effect, ``1 - sd(b) / sd``, and ``eps``: 1 - sd(iwres)."""
        names, values = [], []
        for table, psi in zip(self._random_tables(), self._psi_list(), strict=True):
            level, b = table
            sd = np.sqrt(np.diag(psi))
            with np.errstate(divide="ignore", invalid="ignore"):
                values += list(1 - np.std(b, axis=0, ddof=1) / sd)
            prefix = f"{level.group}." if len(self._spec.levels) > 1 else ""
            names += [prefix + label for label in level.design.labels]
        iwres = self.residuals("iwres")
        return LabelledVector([*values, 1 - np.std(iwres)], [*names, "eps"])

    def _psi_list(self) -> list[np.ndarray]:
        return self._problem.covariance.psi(self._estimates.theta)

    def _random_tables(self) -> list[tuple[Any, np.ndarray]]:
        """Random effects per level, one row per group in the order of the labels."""
        return tables.split_levels(self._spec, self._grouping, self._problem, self._b)

    # ---- tables ---------------------------------------------------------------------------------
    def ranef(self, cond_var: bool = False) -> Any:
        """Return the random effects: frame group, level, term, estimate[, std_error].

        Transformed scale; conditional standard errors are those of ``b`` given y at the estimates.
        """
        variance = None
        if cond_var:
            factor = host_factor(self._problem, self._estimates.theta)
            variance = conditional_covariance(self._point, self._grouping.layout, factor)
        return tables.ranef(self, variance)

    def coef(self, group: str | None = None) -> Any:
        """Return fixed plus random effects of each group of a level (default the innermost)."""
        return tables.coef(self, group)

    def individual_parameters(self) -> Any:
        """Return each row's group's model parameters on the natural scale: frame group, parameter, value."""
        return tables.individual_parameters(self)

    def natural_params(self) -> LabelledVector:
        """Return the fixed effects whose formula is ``~ 1`` on the natural scale."""
        values, names = tables.natural_params(self)
        return LabelledVector(values, names)

    def varcorr(self) -> Any:
        """Return variances and correlations: frame group, term, term2, variance, sd, corr."""
        return tables.varcorr(self)

    def conf_int(self, alpha: float = 0.05, method: str = "wald", df_method: str = "normal") -> Any:
        """Return intervals of all parameters: frame term, conf_low, conf_high.

        Standard deviations and error parameters on the log scale, correlations on the atanh scale.
        ``df_method="containment"`` uses t quantiles for fixed effects as R's ``intervals`` does.
        """
        if method != "wald":
            raise ModelSpecError(
                f"conf_int(method={method!r}): only 'wald' is built for NLME fits."
            )
        return tables.conf_int(self, alpha, df_method)

    @functools.cached_property
    def _variance_table(
        self,
    ) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray], Callable]:
        """Reported variance parameters, their standard errors, and the interval scale."""
        return self._variance_parameters()

    @host64
    def _variance_parameters(self) -> Any:
        e, problem, spec = self._estimates, self._problem, self._spec
        x = np.concatenate([e.theta, e.error])
        values = variance_parameters(problem, x)
        names = (*spec.theta_names, *spec.error_names)
        covariance = self._covariance[1]
        if covariance is None and isinstance(self._method, LME):
            hessian = lme_variance_information(
                problem, self._method, self.fit.state, self.fit.params
            )
            covariance = tables.invert(hessian, self._free_variance())
        full = np.zeros((len(x), len(x))) if covariance is None else covariance
        reported = reported_covariance(problem, x, full)
        moved, back = interval_scale(names, spec.error_model.positive, values)
        slope = reported_covariance_slope(names, spec.error_model.positive, values)
        with np.errstate(invalid="ignore"):
            se = np.sqrt(np.diag(reported))
        free = self._free_variance()
        zero = np.array([n in self._singular for n in names])
        se = np.where(free & ~zero & (covariance is not None), se, np.nan)
        return values, se, (moved, se * slope), back

    def _free_variance(self) -> np.ndarray:
        free = self._problem.free
        return np.concatenate([np.asarray(free.theta), np.asarray(free.error)])

    def tidy(self, conf_int: bool = True, alpha: float = 0.05, df_method: str = "normal") -> Any:
        """Return all parameters: effect, group, term, estimate, std_error, statistic, p_value, conf_low, conf_high.

        ``df_method="containment"``: t tests with R's degrees of freedom and R's inflation of the standard
        errors of an ML fit by sqrt(N/(N-p)).
        """
        return tables.tidy(self, conf_int, alpha, df_method)

    def summary(self, scale: str = "transformed", df_method: str = "normal") -> str:
        """Return the fit as text; ``scale="natural"`` adds back-transformed estimates, %RSE and CV%."""
        return tables.summary(self, scale, df_method)

    def __repr__(self) -> str:
        return (
            f"<NLMEResults {self.method}: {self.formula}; {self.nobs} rows, "
            f"{self._grouping.layout.num_groups} groups, log-likelihood {self.llf:.4f}>"
        )

    # ---- inference ------------------------------------------------------------------------------
    def wald_test(self, L: str | np.ndarray) -> dict[str, float]:
        """Test linear restrictions of the fixed effects: a matrix, or ``"x1 = x2, x3 = 0"``."""
        labels = self._spec.fixed.labels
        matrix, rhs = restriction(L, labels) if isinstance(L, str) else (np.atleast_2d(L), 0.0)
        rhs = np.broadcast_to(rhs, (len(matrix),))
        statistic, df = wald(matrix, rhs, self._estimates.beta, self._covariance[0])
        return {"statistic": statistic, "df": df, "p_value": statistics.chi2_tail(statistic, df)}

    # ---- new data -------------------------------------------------------------------------------
    @host64
    def predict(
        self,
        newdata: Any = None,
        type: str = "response",
        re: str = "individual",
        interval: str | None = None,
        level: float = 0.95,
    ) -> Any:
        """Predict rows of the fit or of new data.

        Parameters
        ----------
        newdata
            Frame with the predictors and, for ``re="individual"``, the group columns; None: rows of the fit.
        type
            ``"response"``, or ``"link"`` (the log scale for exponential error).
        re
            ``"individual"`` (with random effects; unseen groups get the population value and a
            ``DataWarning``) or ``"population"`` (b = 0). With nested groups also the name of a grouping
            column: random effects of that level and of those around it.
        interval
            ``"confidence"`` or ``"prediction"``: a frame fit, low, high by the delta method. Prediction
            intervals of ``re="population"`` are for a row of a new group, those of ``"individual"`` for
            another row of its group.
        level
            Coverage of the interval.

        Returns
        -------
        ndarray or frame
            One value per row of ``newdata``, NaN where a value is missing.

        Raises
        ------
        DataError
            Unseen factor level, missing or retyped column.
        """
        return predicting.predict(self, newdata, type, re, interval, level)

    @host64
    def individual(self, newdata: Any, method: str = "map") -> Any:
        """Estimate random effects of new groups by their mode (MAP), without refitting.

        Returns an object with ``ranef`` (group, level, term, estimate, std_error), ``phi`` (group,
        parameter, value: natural scale) and ``predictions`` (array, one per row).
        """
        if method != "map":
            raise ModelSpecError(f"individual(method={method!r}): only 'map' is built yet.")
        return predicting.individual(self, newdata)

    @host64
    def simulate(
        self, n: int = 1, key: Any = 0, newdata: Any = None, uncertainty: str = "none"
    ) -> np.ndarray:
        """Draw responses ``(n, rows)`` with new random effects and errors.

        ``uncertainty="asymptotic"`` draws the fixed effects from their normal approximation first.
        """
        return predicting.simulate(self, n, key, newdata, uncertainty)

    def problem(self, y: np.ndarray | None = None) -> NLMEProblem:
        """Return the pure problem of the fit, for ``jn.nlme.fit`` and ``jn.batch.fit_many``.

        Parameters
        ----------
        y
            Other responses: ``(rows used,)``, or ``(k, rows used)`` for a problem with a leading axis of k
            data sets (simulated or bootstrapped).
        """
        if y is None:
            return self._problem
        y = np.asarray(y, float)
        if y.shape[-1] != len(self._y) or y.ndim > 2:
            raise ModelSpecError(
                f"problem(y): y has shape {y.shape}, expected ({len(self._y)},) or (k, {len(self._y)})."
            )
        if y.ndim == 1:
            return eqx.tree_at(lambda p: p.y, self._problem, self._grouping.layout.pack(y))
        # A batch compiles its own program anyway, so it pays for no padding.
        grouping = tight(self._grouping)
        base = self._spec.problem(
            self._table.take(self.row_index), grouping, self._y, self._weights,
            self._problem.beta0, self._problem.free, self._problem.prior,
        )  # fmt: skip
        many = jax.tree.map(lambda a: np.broadcast_to(a, (len(y), *np.shape(a))), base)
        return eqx.tree_at(lambda p: p.y, many, np.stack([grouping.layout.pack(row) for row in y]))

    # ---- again ----------------------------------------------------------------------------------
    def update(self, **changes: Any) -> NLMEResults:
        """Fit again with some arguments of the call changed (``data=`` too)."""
        call = {**self._call, **changes}
        model, data = call.pop("model"), call.pop("data")
        return self._door(model, data, **call)

    @host64
    def refit(self, y: np.ndarray) -> NLMEResults:
        """Fit again to another response (one value per row used), starting from these estimates."""
        y = np.asarray(y, float)
        if y.shape != self._y.shape:
            raise DataError(
                f"refit: y has shape {y.shape}, expected {self._y.shape}: one value per row used."
            )
        bad = np.flatnonzero(~np.isfinite(y))
        if len(bad):
            raise DataError(f"refit: y is missing or infinite in {len(bad)} row(s): {some(bad)}.")
        check_response(self._spec, y)
        problem = self._spec.problem(
            self._table.take(self.row_index), self._grouping, y, self._weights,
            self._estimates.beta, self._problem.free, self._problem.prior,
        )  # fmt: skip
        began = time.perf_counter()
        fit = drive(problem, self._method, params0=self.fit.params)
        attempt = {"start": "estimates of the first fit", "result": result_name(fit.result)}
        attempt |= {k: fit.stats[k].item() for k in ("log_likelihood", "num_steps")}
        parts = {"problem": problem, "y": y, "fit": fit, "attempts": [attempt]}
        return make_results(**{**self._parts(), **parts, "seconds": time.perf_counter() - began})

    @host64
    def with_params(self, values: Mapping[str, Any]) -> NLMEResults:
        """Return full results at other parameter values, without fitting.

        ``values`` by the labels of ``params``, ``sd(group).term`` and the error parameters; what is not
        named keeps its estimate. Not for LME, whose likelihood exists at its fixed point only.
        """
        if isinstance(self._method, LME):
            raise ModelSpecError(
                "with_params: the LME likelihood exists only at the alternation's linearisation; fit with "
                "'FOCE', 'Laplace' or 'AGQ' to evaluate other values."
            )
        params = tables.replaced(self, values)
        fit = drive(self._problem, self._method, params0=params, max_steps=1)
        fit = NLMEFit(params, fit.state, RESULTS.successful, fit.stats)
        return make_results(**{**self._parts(), "fit": fit})

    def _parts(self) -> dict[str, Any]:
        return {
            "spec": self._spec, "problem": self._problem, "method": self._method,
            "dialect": self._dialect, "fit": self.fit, "table": self._table, "rows": self.row_index,
            "grouping": self._grouping, "y": self._y, "weights": self._weights,
            "attempts": self.attempts, "call": self._call, "door": self._door, "seconds": self.seconds,
        }  # fmt: skip


def make_results(**parts: Any) -> NLMEResults:
    """Turn a fit into results: dialect, covariance, singular components, and the warnings."""
    fit: NLMEFit = parts["fit"]
    problem, method, spec = parts["problem"], parts["method"], parts["spec"]
    fit = NLMEFit(*(tables.to_numpy(p) for p in (fit.params, fit.state, fit.result, fit.stats)))
    name = result_name(fit.result)
    if name == "nonfinite":
        predicting.raise_nonfinite(parts)
    estimates, llf = fit.params, float(fit.stats["log_likelihood"])
    beta_covariance, variance_covariance, flat = _covariance(
        problem, method, fit, spec, parts.pop("flat", None)
    )
    if parts["dialect"] == "R-REML":
        estimates, llf, beta_covariance = tables.r_reml(problem, fit, llf, beta_covariance)
    singular = tables.singular_components(spec, problem, fit, parts["y"])
    results = NLMEResults(
        **{**parts, "fit": fit}, estimates=estimates, llf=llf, singular=singular,
        covariance=(beta_covariance, variance_covariance),
    )  # fmt: skip
    _warn(results, name, flat)
    return results


def _covariance(problem, method, fit, spec, flat):
    f = len(spec.fixed.labels)
    if isinstance(method, LME):
        covariance = np.asarray(fit.state.beta_covariance)
        flat = flat or tables.flat_covariance(
            covariance, np.asarray(problem.free.beta), spec.fixed.labels
        )
        return covariance if flat is None else np.full((f, f), np.nan), None, flat
    hessian = information(problem, method, fit)
    free = np.asarray(problem.free.flat())
    flat = tables.flat_direction(problem, method, fit, hessian, spec.all_names)
    if flat is not None and not tables.only_zero_variances(spec, problem, fit):
        return np.full((f, f), np.nan), np.full((len(free) - f,) * 2, np.nan), flat
    covariance = tables.invert(hessian, free)
    return covariance[:f, :f], covariance[f:, f:], None


def _warn(results: NLMEResults, name: str, flat: Any) -> None:
    spec = results._spec
    if not results.converged:
        stats = results.fit.stats
        why = results.message if results._stopped else f"({name}) {result_sentence(name)}"
        warn(
            f"the fit did not converge: {why} Steps {results.n_iter}, largest "
            f"gradient {float(np.max(np.abs(stats['gradient']), initial=0.0)):.3g}, squared step "
            f"{float(stats['decrement']):.3g} (in standard errors). To continue: "
            "fit.update(start=dict(fit.params.items()), max_steps=...).",
            ConvergenceWarning,
        )
    if results._singular:
        warn(
            f"singular fit: {', '.join(results._singular)} is at the boundary (zero variance or "
            "correlation +-1); its standard error is not defined. Leave it out of random= or use a simpler "
            "covariance=.",
            SingularFitWarning,
        )
    if flat is not None:
        warn(
            "the Hessian at the estimate is not positive definite; the likelihood is flat along "
            f"{flat}. Standard errors are NaN. Fix one of these parameters (fix=) or simplify the model "
            f"{spec.formula!r}.",
            IdentifiabilityWarning,
        )
