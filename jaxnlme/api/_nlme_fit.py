"""Running a fit of ``fit_nlme``: the user's callback, perturbed starts, flat directions of LME."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme._results import result_name
from jaxnlme.api._progress import line as progress_line
from jaxnlme.nlme.drive import drive
from jaxnlme.nlme.fit import NLMEFit
from jaxnlme.nlme.lme import LME
from jaxnlme.nlme.method import AbstractMethod
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem
from jaxnlme.results.nlme_compute import evaluate
from jaxnlme.results.nlme_spec import NLMESpec
from jaxnlme.results.nlme_tables import describe_direction

FLAT = 1e-7  # relative singular value below which a direction of the fixed effects is flat


class Outcome(NamedTuple):
    """The best fit, what was tried, and a flat direction in words (or None)."""

    fit: NLMEFit
    attempts: list[dict[str, Any]]
    flat: str | None


class Callback:
    """The user's ``progress=``, remembering whether it stopped the fit."""

    def __init__(self, progress: Any) -> None:
        if progress is not None and not isinstance(progress, bool) and not callable(progress):
            raise ModelSpecError(
                f"progress={progress!r}: use None, True, False or a function of one dict."
            )
        if callable(progress):
            self.show = progress
        else:
            self.show = None if progress is False else progress_line(always=progress is True)
        self.stopped = False

    def __call__(self, info: dict[str, Any]) -> bool:
        """Pass on a step and note a wish to stop."""
        self.stopped = bool(self.show(info)) and not info["done"] if self.show else False
        return self.stopped


def run(
    problem: NLMEProblem,
    method: AbstractMethod,
    params0: NLMEParams,
    *,
    spec: NLMESpec,
    layout: Any,
    max_steps: int,
    num_retries: int,
    key: Any,
    progress: Any,
) -> Outcome:
    """Fit from the start given, then from perturbed ones if that fails."""
    callback = Callback(progress)
    seed = _seed(key)

    def fit_from(p: NLMEProblem, start: NLMEParams) -> NLMEFit:
        show = callback if callback.show else None
        return drive(p, method, params0=start, max_steps=max_steps, callback=show)

    fit = fit_from(problem, params0)
    attempts = [_attempt("start", fit, callback)]
    if _good(fit) or callback.stopped:
        return Outcome(fit, attempts, None)
    if isinstance(method, LME) and result_name(fit.result) == "nonfinite":
        held, flat = _flat(problem, spec, layout)
        if flat is not None:
            fit = fit_from(eqx.tree_at(lambda p: p.free.beta, problem, ~held), params0)
            attempts.append(_attempt("one parameter of the flat direction held", fit, callback))
            return Outcome(fit, attempts, flat)
    rng = np.random.default_rng(seed)
    best = fit
    for k in range(num_retries):
        again = fit_from(problem, _perturbed(problem, params0, fit, k, rng))
        attempts.append(_attempt(f"perturbed start {k + 1}", again, callback))
        if _good(again) or _value(again) > _value(best):
            best = again
        if _good(again) or callback.stopped:
            break
    return Outcome(best, attempts, None)


def _perturbed(problem, params0, fit, k, rng) -> NLMEParams:
    """Smaller random effects, and from the second time on moved fixed effects.

    Smaller effects first: the commonest cause is a covariance that starts far too large.
    """
    y = np.asarray(problem.y)[np.asarray(problem.weights) > 0]
    theta = (
        0.3 ** (k + 1) * np.asarray(fit.stats["theta_scale"]) * max(0.1 * float(np.std(y)), 1e-8)
    )
    beta = np.asarray(params0.beta) * (1 + 0.1 * k * rng.standard_normal(params0.beta.shape))
    start = NLMEParams(
        np.where(problem.free.beta, beta, params0.beta),
        np.where(problem.free.theta, theta, params0.theta),
        np.where(problem.free.error, np.nan, params0.error),
    )
    if not np.all(np.isfinite(start.theta)):
        start = NLMEParams(start.beta, params0.theta, start.error)
    return start


def _flat(problem: NLMEProblem, spec: NLMESpec, layout: Any) -> tuple[np.ndarray, str | None]:
    """Find fixed effects that the predictions at the start do not determine.

    Returns which ones to hold (or already held), and the flat direction in words.
    """
    free = np.asarray(problem.free.beta)
    held = ~free
    b = np.zeros((problem.num_groups, problem.num_random))
    error = np.zeros(len(spec.error_names))
    X = evaluate(problem, layout, problem.beta0, b, error).X[:, free]
    if not np.all(np.isfinite(X)) or not X.size:
        return held, None
    norm = np.linalg.norm(X, axis=0)
    scale = np.where(norm > 0, norm, 1.0)
    _, values, rows = np.linalg.svd(X / scale, full_matrices=False)
    if values[-1] > FLAT * values[0]:
        return held, None
    index = np.flatnonzero(free)
    names = [spec.fixed.labels[k] for k in index]
    words = describe_direction(rows[-1] / scale, names)
    # Columns that add nothing to those before them, found by the residual of a projection.
    basis = np.zeros((len(X), 0))
    for at, column in enumerate((X / scale).T):
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)
        size = np.linalg.norm(rest)
        if size <= 10 * FLAT:
            held[index[at]] = True
        else:
            basis = np.column_stack([basis, rest / size])
    return held, words


def _good(fit: NLMEFit) -> bool:
    return result_name(fit.result) == "successful"


def _value(fit: NLMEFit) -> float:
    value = float(fit.stats["log_likelihood"])
    return value if np.isfinite(value) else -np.inf


def _attempt(what: str, fit: NLMEFit, callback: Callback) -> dict[str, Any]:
    return {
        "start": what,
        "result": "stopped" if callback.stopped else result_name(fit.result),
        "log_likelihood": float(fit.stats["log_likelihood"]),
        "num_steps": int(fit.stats["num_steps"]),
    }


def _seed(key: Any) -> int:
    if isinstance(key, int | np.integer) and not isinstance(key, bool) and key >= 0:
        return int(key)
    try:
        return int(np.asarray(jax.random.key_data(key)).astype(np.uint64).sum())
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelSpecError(
            f"key={key!r}: give a whole number >= 0 or jax.random.key(...)."
        ) from error
