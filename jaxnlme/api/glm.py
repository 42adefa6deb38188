"""The door ``fit_glm``: a formula and a frame, or arrays, in; :class:`GLMResults` out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from jaxnlme._errors import DataError, FormulaError, ModelSpecError
from jaxnlme._precision import host64
from jaxnlme.api._arguments import check_numbers, refuse_unknown
from jaxnlme.api._glm_arrays import read_array_model
from jaxnlme.api._glm_fit import fit_host
from jaxnlme.api._glm_formula import read_formula_model
from jaxnlme.api._glm_warnings import check_fit
from jaxnlme.design.expressions import Name, deparse
from jaxnlme.design.frames import read_frame
from jaxnlme.design.terms_dict import formula_from_terms
from jaxnlme.results.glm import GLMResults, make_results


@host64
def fit_glm(
    model: Any = None,
    data: Any = None,
    *,
    family: Any = "gaussian",
    link: Any = None,
    exposure: Any = None,
    weights: Any = None,
    offset: Any = None,
    alpha: float | int = 0.0,
    l1_ratio: float | int = 0.0,
    penalty: Any = None,
    standardize: bool = True,
    bounds: Mapping[str, Any] | None = None,
    fix: Mapping[str, Any] | None = None,
    priors: Mapping[str, Any] | None = None,
    parameters: Mapping[str, str] | None = None,
    start: Any = None,
    missing: str = "drop",
    max_steps: int = 50,
    tolerance: float | int = 1e-8,
    names: Sequence[str] | None = None,
    intercept: bool = True,
    terms: Mapping[str, Any] | None = None,
    interactions: Any = None,
    response: str | None = None,
    y: Any = None,
    **unknown: Any,
) -> GLMResults:
    """Fit a generalised linear model.

    Three ways to call it: ``fit_glm("y ~ x + C(a)", df)``, ``fit_glm(X, y)`` and
    ``fit_glm(terms={...}, response="y", data=df)``.

    Parameters
    ----------
    model
        A formula in R's spelling, or the design ``X`` (n, p): an array, or a frame of numbers.
    data
        pandas, polars or pyarrow frame, or a dict of 1-D arrays; with arrays the response ``y`` (n,).
    family
        Name or object of ``jn.families``: gaussian, poisson, binomial, gamma, inverse_gaussian, tweedie,
        negative_binomial, quasi_poisson, quasi_binomial, beta, beta_binomial, student_t, lognormal, ...
    link
        Name or object of ``jn.links``; default: the family's own.
    exposure
        Column or array of positive exposures: logged and added to the offset (log link only).
    weights
        Column or array of prior weights (variance / weight); for proportions the numbers of trials.
    offset
        Column or array, added to the linear predictor.
    alpha, l1_ratio
        Penalty ``alpha * (1 - l1_ratio) / 2 * |b|^2`` added to the mean negative log-likelihood (weights of mean
        1; gaussian: half the mean squared error), intercept free. ``l1_ratio > 0`` comes with penalty paths.
    penalty
        ``"firth"``, ``jn.penalties.Ridge(alpha)``, ``Quadratic(P)``, ``Monotone(...)``, ``LinearEquality(C, d)``.
    standardize
        Whether ``alpha`` acts on columns divided by their standard deviation (1/n); coefficients are
        reported on the original scale.
    bounds
        ``{"x": (lower, upper)}`` by label; None or an infinity for no bound.
    fix
        ``{"x": 0.5, "theta": 2.0}``: values to hold, coefficients by label, family parameters by name.
    priors
        MAP fit: ``{"fixed": Normal(0, 2.5)}`` for all coefficients, or by label.
    parameters
        Formulas of family parameters: ``{"sigma": "~ x", "zero": "~ 1"}``.
    start
        Start values: a sequence in coefficient order, or a dict by label (others 0).
    missing
        ``"drop"`` rows with missing values (warns) or ``"raise"``.
    max_steps, tolerance
        Limit of the iteration; it has converged when the squared Newton step, in the metric of the
        information, is below ``tolerance ** 2`` times the objective.
    names, intercept
        Arrays only: names of the columns (default ``x1, x2, ...``), and whether a constant is added.
    terms, interactions, response
        A dict of terms instead of a formula, see :func:`jaxnlme.design.terms_dict.formula_from_terms`.
    y
        Response of the array door by keyword.

    Returns
    -------
    GLMResults

    Raises
    ------
    DataError, FormulaError, ModelSpecError
        Before any compilation, naming argument, column, level or rows, and the cure.

    Warns
    -----
    ConvergenceWarning, SeparationWarning, CollinearityWarning, BoundaryWarning, DataWarning

    Examples
    --------
    >>> import jaxnlme as jn
    >>> insurance = jn.datasets.load("insurance")
    >>> fit = jn.fit_glm("Claims ~ Group + Age", insurance, family="poisson", exposure="Holders")
    >>> round(fit.params["(Intercept)"], 4)
    -1.7953
    """
    refuse_unknown(unknown, fit_glm)
    check_numbers({"max_steps": (max_steps, 1)})
    call = {
        "model": model, "data": data, "family": family, "link": link, "exposure": exposure,
        "weights": weights, "offset": offset, "alpha": alpha, "l1_ratio": l1_ratio, "penalty": penalty,
        "standardize": standardize, "bounds": bounds, "fix": fix, "priors": priors,
        "parameters": parameters, "start": start, "missing": missing, "max_steps": max_steps,
        "tolerance": tolerance, "names": names, "intercept": intercept, "terms": terms,
        "interactions": interactions, "response": response, "y": y,
    }  # fmt: skip
    began = time.perf_counter()
    if terms is not None:
        if model is not None or response is None:
            raise ModelSpecError(
                "terms= takes the place of the formula and needs response= and data=."
            )
        if data is None:
            raise DataError("data is missing: terms= needs a frame or a dict of arrays as data=.")
        right = formula_from_terms(terms, interactions, read_frame(data))
        model = f"{deparse(Name(response))} ~ {right}"
    elif interactions is not None or response is not None:
        raise ModelSpecError(
            "interactions= and response= go with terms=; write them into the formula."
        )
    if isinstance(model, str):
        if names is not None or not intercept or y is not None:
            raise ModelSpecError(
                "names=, intercept= and y= go with arrays; in a formula write '- 1' to leave the constant out."
            )
        if data is None:
            raise DataError(
                "data is missing: fit_glm(formula, data) needs a frame or a dict of arrays."
            )
        inputs = read_formula_model(
            model, data, family=family, link=link, exposure=exposure, weights=weights, offset=offset,
            parameters=parameters, missing=missing, dispersion=_needs_dispersion(fix, priors),
        )  # fmt: skip
    elif model is None:
        raise FormulaError("fit_glm needs a formula, an array X or terms=.")
    else:
        if data is not None and y is not None:
            raise ModelSpecError("the response was given twice: as the second argument and as y=.")
        inputs = read_array_model(
            model, y if data is None else data, names=names, intercept=intercept, family=family,
            link=link, exposure=exposure, weights=weights, offset=offset, parameters=parameters,
            missing=missing, dispersion=_needs_dispersion(fix, priors),
        )  # fmt: skip
    problem, outcome = fit_host(
        inputs, alpha=alpha, l1_ratio=l1_ratio, penalty=penalty, standardize=standardize, bounds=bounds,
        fix=fix, priors=priors, start=start, max_steps=max_steps, tolerance=tolerance,
    )  # fmt: skip
    outcome = check_fit(inputs, problem, outcome)
    return make_results(
        spec=inputs.spec, problem=problem, fit=outcome, table=inputs.table, rows=inputs.rows, call=call,
        door=fit_glm, seconds=time.perf_counter() - began,
    )  # fmt: skip


def _needs_dispersion(
    fix: Mapping[str, Any] | None, priors: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the user holds or gives priors: a dispersion among them must be part of the likelihood."""
    return tuple(fix or ()), tuple(priors or ())
