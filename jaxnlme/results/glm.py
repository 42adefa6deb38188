"""Results of a generalised linear model: tables, tests, predictions, influence, fits again."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnlme._errors import ConvergenceWarning, warn
from jaxnlme._precision import host64
from jaxnlme._results import result_name
from jaxnlme.diagnostics.influence import Influence, influence
from jaxnlme.plots.glm_results import GLMPlots
from jaxnlme.results import glm_again as again
from jaxnlme.results import glm_predict as predicting
from jaxnlme.results import glm_tables as tables
from jaxnlme.results.glm_estimates import GLMEstimates
from jaxnlme.results.glm_wald import hypotheses, wald_test

if TYPE_CHECKING:
    from jaxnlme.calibration.fitted import FittedPosterior


class GLMResults(GLMEstimates):
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

    _not_built = frozenset(
        "save diagnostics to_scorer to_onnx marginal_means check_residuals to_arviz trace".split()
    )
    _tables = tables

    def log_posterior(
        self, priors: Any, *, fix: Mapping[str, Any] | None = None
    ) -> FittedPosterior:
        """Return the log posterior density of the parameters, for ``jn.calibration.sample``.

        Parameters
        ----------
        priors
            A prior for each parameter by its label, or ``"fixed"`` for all coefficients that have none of
            their own: ``{"fixed": Normal(0, 2.5), "sigma": HalfNormal(1)}``. Coefficients are those of
            ``params`` (link scale); scalars of the family (``theta``, ``power``) and the dispersion
            (``sigma`` of gaussian, else ``dispersion``) are on their natural scale and need priors of their
            own.
        fix
            Values of parameters that are not sampled, natural scale: ``{"sigma": 1.0}``.

        Returns
        -------
        FittedPosterior
            Goes to ``jn.calibration.sample(posterior, method=...)``, ``EnsembleSampler(posterior)`` and
            ``PointEstimator(posterior)``; ``posterior.starts(n)`` are points around the fit to start from.

        Raises
        ------
        ModelSpecError
            A parameter has no prior, a name is unknown, a prior does not suit its parameter, the fit was
            penalised or bounded, or its family has no likelihood.

        Notes
        -----
        The likelihood keeps all constants. Aliased coefficients stay 0, those held by ``fix=`` of the fit
        stay where they are.

        Examples
        --------
        >>> import jaxnlme as jn
        >>> from jaxnlme.priors import Normal
        >>> data = {"y": [0, 0, 1, 0, 1, 1], "x": [-2.0, -1.0, -0.5, 0.5, 1.0, 2.0]}
        >>> fit = jn.fit_glm("y ~ x", data, family="binomial")
        >>> posterior = fit.log_posterior({"fixed": Normal(0, 2.5)})
        >>> posterior.names, posterior.starts(4).shape
        (('(Intercept)', 'x'), (4, 2))
        """
        # By name: it loads the samplers, which a fit does without.
        module = importlib.import_module("jaxnlme.results.glm_posterior")
        return module.log_posterior(self, priors, fix)

    @property
    def plot(self) -> GLMPlots:
        """Pictures: ``diagnostics``."""
        # made anew: a reference back would keep large data until a collection
        return GLMPlots(self)

    # ---- rows -----------------------------------------------------------------------------------
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

    def __repr__(self) -> str:
        return (
            f"<GLMResults {self._problem.family.name} ({self._problem.links[0].name}): {self.formula}; "
            f"{self.nobs} rows, {self.rank} coefficients>"
        )

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
        """Draw responses ``(n, rows)``; ``uncertainty="asymptotic"`` draws the coefficients first.

        As the data hold them: class codes, proportions where there are trials, values at their limit where that is
        a number or a column (``Censored``; with ``event=``, ``interval=`` or marks: the uncensored value).
        """
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
        name, stats = result_name(results.result), results.fit.stats
        warn(
            f"the fit did not converge: ({name}) {results.message} Steps {results.n_iter}, squared step "
            f"{float(stats['decrement']):.3g} (in standard errors). To continue: fit.update(start=fit.params, "
            "max_steps=...).",
            ConvergenceWarning,
        )
    return results
