"""The MATLAB door: ``nlmefit`` and ``statset`` with MATLAB's names, defaults and outputs."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnlme._errors import ConvergenceWarning, ModelSpecError, SingularFitWarning, some
from jaxnlme._precision import host64
from jaxnlme._results import RESULTS
from jaxnlme.api import _matlab_data as read
from jaxnlme.api import _matlab_fit as fitting
from jaxnlme.api import _matlab_model as checks
from jaxnlme.api._matlab_options import NlmefitOptions, StatsetOptions, parse_options, statset
from jaxnlme.api._matlab_stats import Linearisation, NlmefitStats, assemble, error_sd

__all__ = ["NlmefitStats", "StatsetOptions", "nlmefit", "statset"]


@host64
def nlmefit(
    X: Any,
    y: Any,
    group: Any,
    V: Any,
    modelfun: Callable[..., Any],
    beta0: Any,
    **name_value: Any,
) -> tuple[np.ndarray, np.ndarray, NlmefitStats, np.ndarray]:
    """Fit a nonlinear mixed-effects model as MATLAB's ``nlmefit`` does.

    The model of group i is ``y = modelfun(phi_i, x, v_i) + error`` with
    ``phi_i = g^-1(A_i beta + B_i b_i)`` and ``b_i ~ N(0, PSI)``.

    Parameters
    ----------
    X : array_like, shape (n, h) or (n,)
        Predictors, one row per observation.
    y : array_like, shape (n,)
        Responses.
    group : array_like, shape (n,)
        Group labels of any type. Groups are ordered by sorted label.
    V : array_like, shape (m, g), list with one array per group, or None or []
        Group predictors in the order of the groups.
    modelfun : callable
        ``modelfun(phi, x)``, with V ``modelfun(phi, x, v)``, written with ``jax.numpy``: ``phi``
        (p,) for one group, ``x`` (n_i, h) that group's rows, ``v`` (g,). Returns one value per row
        and acts row by row, because groups are padded. Define it once at module level: a new
        lambda compiles again.
    beta0 : array_like, shape (f,)
        Start values of the fixed effects, on the transformed scale.
    **name_value
        MATLAB's names in any case, or in snake_case (selections then count from 0):

        - ``FEParamsSelect``, ``FEConstDesign`` (p, f), ``FEGroupDesign`` (p, f, m),
          ``FEObsDesign`` (p, f, n); ``REParamsSelect``, ``REConstDesign``, ``REGroupDesign``,
          ``REObsDesign`` with r columns. Default: an effect on every parameter.
        - ``ApproximationType``: "LME" (default), "RELME", "FO", "FOCE".
        - ``Vectorization``: "SinglePhi" (default) and "SingleGroup" call ``modelfun`` as above;
          "Full" gives it ``phi`` (k, p) and ``v`` (k, g), one row per row of ``x``. With an
          observation design "SinglePhi" is called row by row, "SingleGroup" with ``phi`` (k, p).
        - ``CovPattern``: r x r matrix of 0 and 1, or r block numbers. Default: diagonal.
        - ``CovParameterization``: "logm" (default) or "chol", the numbers in which the covariance
          step searches and ``OutputFcn`` sees ``status.theta``.
        - ``ParamTransform``: per parameter 0 identity, 1 log, 2 probit, 3 logit.
        - ``ErrorModel``: "constant" (default), "proportional", "combined" (a + b|f|),
          "exponential"; ``ErrorParameters``: start of a, or of [a b].
        - ``RefineBeta0``: "on" (default) or "off".
        - ``OptimFun``: "fminsearch" (default) takes MATLAB's path step by step; "fminunc" goes to the
          fixed point of the alternation with exact gradients.
        - ``Options``: :func:`statset` or a dict. ``Jacobian="on"`` replaces forward differences by
          exact derivatives; ``modelfun`` returns values only.
        - ``missing`` (not MATLAB's): "raise" (default) or "drop".

    Returns
    -------
    beta : ndarray, shape (f,)
        Fixed effects on the transformed scale.
    psi : ndarray, shape (r, r)
        Covariance of the random effects.
    stats : NlmefitStats
        MATLAB's 14 fields, by attribute or ``stats["name"]``.
    b : ndarray, shape (r, m)
        Random effects; ``stats.group_labels`` names the columns.

    Raises
    ------
    DataError
        Data are missing, infinite, of different lengths, or cannot identify the model.
    ModelSpecError
        Model function, start values and options do not fit together.
    TypeError
        An unknown argument name, or one given in two spellings.

    Notes
    -----
    "LME" and "RELME" stop where MATLAB stops: psi agrees with its output to the printed digits, and
    is one to three parts in a thousand from the fixed point of the alternation of Lindstrom and Bates
    (1990) that "fminunc" returns. Where a correlation comes to +-1 MATLAB's path is decided by
    rounding: the fixed point is returned there. Tested against ``tests/reference/nlme/matlab_*.json``
    (1e-6; pynlme 0.5.1 in MATLAB mode).

    References
    ----------
    Lindstrom and Bates (1990), Biometrics 46, 673-687. Pinheiro and Bates (2000), chapter 7.

    Examples
    --------
    >>> import jax.numpy as jnp, jaxnlme as jn
    >>> def growth(phi, x):
    ...     return phi[0] / (1 + jnp.exp(-(x[:, 0] - phi[1]) / phi[2]))
    >>> trees = jn.datasets.load("orange")
    >>> beta, psi, stats, b = jn.nlmefit(
    ...     trees["age"], trees["circumference"], trees["Tree"], None, growth, [190, 730, 350],
    ...     REParamsSelect=[1])
    >>> beta.round(0), round(stats.logl, 2)
    (array([191., 723., 344.]), -131.58)
    """
    options = parse_options(name_value)
    call = _read(X, y, group, V, modelfun, read.read_beta0(beta0), options)
    beta = np.asarray(call.problem.beta0)
    if options.refine_beta0:
        beta = fitting.refine_beta0(call, beta)
    watcher = _Watcher(call, options)
    watcher.call_functions(beta, None, "init")
    fitted = fitting.run(call, beta, watcher.watch)
    parts = fitting.linearise(call, fitted.beta, fitted.b)
    stats = _collect(call, fitted, parts, stopped=watcher.stopped)
    watcher.call_functions(fitted.beta, None, "done")
    _report(call, fitted, stats, watcher.last)
    _warn_singular(call, fitted, parts)
    return fitted.beta, fitted.psi, stats, fitted.b


def _read(
    X: Any, y: Any, group: Any, V: Any, modelfun: Any, beta0: np.ndarray, options: NlmefitOptions
) -> fitting.Call:
    """Check everything before the first compile, then the model at the start values."""
    data = read.read_data(X, y, group, V, options.missing)
    designs = read.build_designs(options, beta0, data, len(np.asarray(y)))
    pattern = read.covariance_pattern(options.cov_pattern, designs.num_random)
    if options.error_parameters is not None:
        _check_error_parameters(options)
    if options.error_model == "exponential":
        checks.check_positive(data)
    by_row = "obs" in (designs.fixed_kind, designs.random_kind)
    function = checks.matlab_function(modelfun, options.vectorization, data.V is not None, by_row)
    call = fitting.build_call(data, designs, pattern, function, beta0, options)
    rows = data.group_rows(0)
    first = designs.rows("fixed", data.codes)[rows[0]] @ beta0
    natural = [float(t.forward(v)) for t, v in zip(call.problem.transforms, first, strict=True)]
    checks.check_trace(function, data, np.array(natural))
    return _check_start(call, beta0)


def _check_error_parameters(options: NlmefitOptions) -> None:
    expected = 2 if options.error_model == "combined" else 1
    found = 0 if options.error_parameters is None else options.error_parameters.size
    if found != expected:
        raise ModelSpecError(
            f"ErrorParameters has {found} values, but ErrorModel={options.error_model!r} has "
            f"{expected}."
        )


def _check_start(call: fitting.Call, beta0: np.ndarray) -> fitting.Call:
    point, problem = fitting.evaluate(call, beta0), call.problem
    if call.options.options.FunValCheck == "on" or not np.any(np.isfinite(point.f)):
        checks.check_start(
            point.f, point.phi, problem.transforms, call.data, call.options.error_model
        )
    repadded = fitting.evaluate(fitting.repad(call), beta0)
    checks.check_row_by_row(point.f, repadded.f, call.data)
    elsewhere = fitting.evaluate(call, beta0 + 0.05 * np.maximum(np.abs(beta0), 1.0))
    checks.check_used([point.J, elsewhere.J])
    return fitting.weigh_zero_predictions(call, (point.f == 0) & (elsewhere.f == 0))


def _collect(
    call: fitting.Call, fitted: fitting.Fitted, parts: Linearisation, *, stopped: bool
) -> NlmefitStats:
    data = call.data
    return assemble(
        parts,
        data.codes,
        fitted.b,
        fitted.psi,
        logl=fitted.log_likelihood,
        mse=fitted.mse,
        covb=fitted.covb,
        errorparam=fitted.errorparam,
        error_model=call.options.error_model,
        num_covariances=call.problem.covariance.num_theta,
        restricted=call.options.approximation_type == "RELME",
        group_labels=data.labels,
        row_index=data.row_index,
        converged=bool(fitted.result == RESULTS.successful) and not stopped,
        message="Stopped by OutputFcn." if stopped else RESULTS[fitted.result],
        n_iter=fitted.num_steps,
    )


def _report(
    call: fitting.Call, fitted: fitting.Fitted, stats: NlmefitStats, last: np.ndarray
) -> None:
    """Turn the result code into a warning or an exception, and print for Display."""
    settings = call.options.options
    if bool(fitted.result == RESULTS.nonfinite) and settings.FunValCheck == "on":
        raise ModelSpecError(
            f"nlmefit: modelfun became NaN or infinite during the fit, after beta = {last}. "
            "Change beta0, bound parameters by ParamTransform, or set FunValCheck='off' to get the "
            "last estimate."
        )
    if settings.Display != "off":
        print(  # noqa: T201 - MATLAB's Display
            f"nlmefit: {stats.message} {stats.n_iter} iterations, logl {stats.logl:.6g}"
        )
    if not stats.converged:
        warnings.warn(
            f"nlmefit did not converge in {stats.n_iter} iterations: {stats.message} MaxIter is "
            f"{settings.MaxIter}; to continue, pass beta0=beta.",
            ConvergenceWarning,
            stacklevel=4,
        )


def _warn_singular(call: fitting.Call, fitted: fitting.Fitted, parts: Linearisation) -> None:
    """Warn when a variance is zero or a correlation is at +-1."""
    psi = fitted.psi
    if not np.all(np.isfinite(psi)) or not np.all(np.isfinite(parts.Z)):
        return
    sd = np.sqrt(np.diag(psi))
    noise = error_sd(call.options.error_model, fitted.errorparam, parts.f)[:, None]
    effect = sd * np.sqrt(np.mean((parts.Z / np.where(noise > 0, noise, 1.0)) ** 2, axis=0))
    gone = np.flatnonzero(effect <= 1e-3)
    if gone.size:
        text = (
            f"the variance of random effect {some(gone + 1)} of {len(sd)} is zero: the data do not "
            "need it. Leave it out by REParamsSelect (the likelihood stays the same)."
        )
    elif np.linalg.eigvalsh(psi / sd[:, None] / sd)[0] < 1e-5:
        text = (
            "a correlation of random effects is at +-1 (psi is singular): use a CovPattern with "
            "fewer covariances."
        )
    else:
        return
    warnings.warn(text, SingularFitWarning, stacklevel=4)


class _Watcher:
    """Calls Display and OutputFcn after each iteration."""

    def __init__(self, call: fitting.Call, options: NlmefitOptions) -> None:
        self.call, self.options = call, options
        self.functions = options.options.OutputFcn or ()
        self.verbose = options.options.Display == "iter"
        self.stopped = False
        self.last = np.asarray(call.problem.beta0)
        self.status = types.SimpleNamespace(
            inner=types.SimpleNamespace(procedure="none", state="iter", iteration=0),
            procedure="ALT" if options.approximation_type in ("LME", "RELME") else "LAP",
            iteration=0, fval=float("nan"), Psi=None, theta=None, mse=float("nan"),
        )  # fmt: skip

    def watch(self, info: dict[str, Any]) -> bool:
        """Update the status after an iteration; True stops the fit."""
        if np.all(np.isfinite(info["beta"])):
            self.last = info["beta"]
        if info["step"] == 0 or not (self.verbose or self.functions):
            return False
        problem = self.call.problem
        psi = problem.covariance.psi(info["theta"])[0]
        mse = info["mse"]()
        self.status.iteration = info["step"]
        self.status.fval = -info["log_likelihood"]
        self.status.Psi, self.status.mse = psi, mse
        self.status.theta = self._theta(psi / mse)
        if self.verbose:
            values = " ".join(f"{v:.6g}" for v in info["beta"])
            print(  # noqa: T201 - MATLAB's Display="iter"
                f"{self.status.procedure} {info['step']:4d}  -logl {self.status.fval:.6f}  "
                f"beta {values}"
            )
        self.stopped = self.call_functions(info["beta"], self.status, "iter")
        return self.stopped

    def call_functions(self, beta: np.ndarray, status: Any, state: str) -> bool:
        """Call every OutputFcn; True when one of them asks to stop."""
        status = self.status if status is None else status
        stops = [bool(function(beta, status, state)) for function in self.functions]
        return any(stops)

    def _theta(self, relative: np.ndarray) -> np.ndarray:
        """Free entries of MATLAB's parameterisation of psi / sigma^2."""
        keep = np.triu(np.array(self.call.problem.covariance.blocks[0].pattern)) > 0
        values, vectors = np.linalg.eigh(relative)
        precision = 1.0 / np.maximum(values, 1e-300)
        if self.options.cov_parameterization == "logm":
            return ((vectors * np.log(precision)) @ vectors.T)[keep]
        inverse = (vectors * np.minimum(precision, 1e200)) @ vectors.T
        try:
            return np.linalg.cholesky(inverse).T[keep]
        except np.linalg.LinAlgError:
            return np.full(int(keep.sum()), np.nan)
