"""From checked ``nlmefit`` arguments to a problem, its start and its fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme import nlme
from jaxnlme._cache import outer_jit
from jaxnlme._results import RESULTS
from jaxnlme.api._matlab_data import Designs, MatlabData
from jaxnlme.api._matlab_model import MatlabFunction
from jaxnlme.api._matlab_options import TRANSFORMS, NlmefitOptions
from jaxnlme.api._matlab_stats import Linearisation, error_sd
from jaxnlme.covariance import Covariance, CovarianceBlock
from jaxnlme.design.groups import GroupLayout, group_layout
from jaxnlme.error_models import as_error_model
from jaxnlme.mixed.lmm import cross_products, fixed_information, profile
from jaxnlme.nlme.drive import drive
from jaxnlme.nlme.evaluate import derivatives, design_columns, phi_of
from jaxnlme.nlme.lme import fit_residual_error
from jaxnlme.nlme.lme_matlab import MatlabLME, MatlabState, differences
from jaxnlme.nlme.problem import NLMEParams, NLMEProblem, StructuralModel, free_all, unknown_params
from jaxnlme.numerics.bijectors import as_bijector

__all__ = ["Call", "Fitted", "build_call", "evaluate", "linearise", "refine_beta0", "run"]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One ``nlmefit`` call: its problem, and where the rows stand in the padded arrays."""

    problem: NLMEProblem
    data: MatlabData
    designs: Designs
    options: NlmefitOptions
    layout: GroupLayout

    @property
    def y(self) -> np.ndarray:
        """Responses of the rows, on the log scale for the exponential error model."""
        return np.log(self.data.y) if self.options.error_model == "exponential" else self.data.y


def build_call(
    data: MatlabData,
    designs: Designs,
    pattern: tuple[tuple[int, ...], ...],
    function: MatlabFunction,
    beta0: np.ndarray,
    options: NlmefitOptions,
) -> Call:
    """Pad the groups to a shape bucket and build the problem."""
    layout = group_layout(data.codes, data.labels)
    error_model = as_error_model("constant" if _reweighted(options) else options.error_model)
    covariance = Covariance((CovarianceBlock(pattern),))
    codes = options.param_transform or (0,) * designs.num_params
    m = layout.shape[0]
    problem = NLMEProblem(
        y=jnp.asarray(layout.pack(data.y)),
        weights=jnp.asarray(layout.mask.astype(float)),
        x=jnp.asarray(layout.pack(data.X)),
        v=jax.tree.map(lambda a: jnp.asarray(layout.pack_groups(a)), data.V),
        A=jnp.asarray(_packed_design(designs.fixed, designs.fixed_kind, layout)),
        B=jnp.asarray(_packed_design(designs.random, designs.random_kind, layout)),
        beta0=jnp.asarray(beta0),
        free=free_all(len(beta0), covariance.num_theta, len(error_model.parameters)),
        model=StructuralModel(
            function, tuple(f"phi{k + 1}" for k in range(designs.num_params)), "matlab"
        ),
        transforms=tuple(as_bijector(TRANSFORMS[code]) for code in codes),
        covariance=covariance,
        error_model=error_model,
        chunk=m if m <= 512 else math.gcd(m, 512),
    )
    return Call(problem, data, designs, options, layout)


def _reweighted(options: NlmefitOptions) -> bool:
    """FO and FOCE fit an error that depends on f as constant error with refreshed weights."""
    depends = options.error_model in ("proportional", "combined")
    return depends and options.approximation_type in ("FO", "FOCE")


def _packed_design(values: np.ndarray, kind: str, layout: GroupLayout) -> np.ndarray:
    if kind == "const":
        return values[None, None]
    return layout.pack_groups(values)[:, None] if kind == "group" else layout.pack(values)


@outer_jit
def _evaluate(problem: NLMEProblem, beta: Any, b: Any, step: Any) -> tuple[Any, Any, Any]:
    phi = phi_of(problem, beta, b)
    f, J = derivatives(problem, phi, 1) if step is None else differences(problem, phi, step)
    return phi, f, J


class Point(NamedTuple):
    """Transformed parameters phi, predictions f and their derivatives J in phi, one per row."""

    phi: np.ndarray
    f: np.ndarray
    J: np.ndarray


def evaluate(
    call: Call, beta: np.ndarray, b: np.ndarray | None = None, step: float | None = None
) -> Point:
    """Evaluate the model at ``beta`` and ``b`` (r, m), b = 0 by default; rows in data order.

    Derivatives are exact, or forward differences of ``step``.
    """
    phi, f, J = _evaluate(call.problem, np.asarray(beta), _padded_b(call, b), step)
    phi = np.broadcast_to(np.asarray(phi), (*call.layout.shape, phi.shape[-1]))
    return Point(*(call.layout.unpack(np.asarray(a)) for a in (phi, f, J)))


def _padded_b(call: Call, b: np.ndarray | None) -> np.ndarray:
    out = np.zeros((call.layout.shape[0], call.problem.num_random))
    if b is not None:
        out[: b.shape[1]] = b.T
    return out


def linearise(call: Call, beta: np.ndarray, b: np.ndarray) -> Linearisation:
    """Return the arrays that ``stats`` is made of, in the order of the rows."""
    at_b, at_0 = evaluate(call, beta, b), evaluate(call, beta)
    A = call.designs.rows("fixed", call.data.codes)
    B = call.designs.rows("random", call.data.codes)
    return Linearisation(
        y=call.y,
        f=at_b.f,
        f_population=at_0.f,
        X=np.einsum("np,npf->nf", at_b.J, A),
        Z=np.einsum("np,npr->nr", at_b.J, B),
        Z_population=np.einsum("np,npr->nr", at_0.J, B),
    )


def repad(call: Call) -> Call:
    """Return the call with other rows as padding: each group's last row, for its first."""
    layout, data = call.layout, call.data
    last = np.zeros(data.num_groups, dtype=int)
    last[data.codes] = np.arange(data.num_rows)
    x = np.array(layout.pack(data.X))
    part = x[: data.num_groups]
    part[...] = np.where(layout.mask[: data.num_groups, :, None], part, data.X[last][:, None])
    return dataclasses.replace(call, problem=dataclasses.replace(call.problem, x=jnp.asarray(x)))


def weigh_zero_predictions(call: Call, zero: np.ndarray) -> Call:
    """Give rows that the model fixes at zero the weight 1 under proportional error, as MATLAB does.

    Their error variance b^2 f^2 would be zero. ``zero`` is (n,) bool.
    """
    if call.problem.error_model.name != "proportional" or not zero.any():
        return call
    # A prior weight divides the variance: this one turns sd(0)^2, kept off zero by the error
    # model, into sd(1)^2.
    sd = np.asarray(call.problem.error_model.sd(jnp.array([0.0, 1.0]), jnp.ones(1)))
    weights = call.layout.pack(np.where(zero, (sd[0] / sd[1]) ** 2, 1.0), fill=0.0)
    return dataclasses.replace(
        call, problem=dataclasses.replace(call.problem, weights=jnp.asarray(weights))
    )


class _Squares(NamedTuple):
    value: float
    residual: np.ndarray
    X: np.ndarray

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.value) and np.all(np.isfinite(self.X)))


def refine_beta0(call: Call, beta0: np.ndarray) -> np.ndarray:
    """Fit beta without random effects by Levenberg-Marquardt (MATLAB's RefineBeta0, its damping and its stop).

    A start at which columns of the Jacobian coincide (two exponentials with equal rates) is a
    saddle that exact arithmetic never leaves; it is spread a little, earlier parameters upwards.
    """
    A, settings = call.designs.rows("fixed", call.data.codes), call.options.options
    max_steps, step_of = settings.MaxIter * len(beta0), call.options.difference_step

    def squares(beta: np.ndarray) -> _Squares:
        point = evaluate(call, beta, step=step_of)
        residual = call.y - point.f
        return _Squares(float(residual @ residual), residual, np.einsum("np,npf->nf", point.J, A))

    beta, now = beta0, squares(beta0)
    scale = np.linalg.norm(now.X, axis=0)
    singular = np.linalg.svd(now.X / np.where(scale > 0, scale, 1.0), compute_uv=False)
    if singular[-1] < 1e-8 * singular[0]:
        spread = 1e-2 * np.arange(len(beta), 0, -1) / len(beta)
        moved = beta + spread * np.maximum(np.abs(beta), 1.0)
        trial = squares(moved)
        if trial.finite:
            beta, now = moved, trial
    damping, floor = 1e-2, np.finfo(float).eps
    for _ in range(max_steps):
        gradient = now.X.T @ now.residual
        size = np.sqrt(np.maximum(np.sum(now.X**2, axis=0), 1e-300))
        scaled = (now.X / size).T @ (now.X / size)
        shrink = 0.1
        while True:
            step = np.linalg.solve(scaled + damping * np.eye(len(beta)), gradient / size) / size
            trial = squares(beta + step)
            better = trial.finite and trial.value < now.value
            if better or damping > 1e16:
                break
            damping, shrink = 10 * damping, 1.0
        if not better:
            break
        decrease = now.value - trial.value
        beta, now = beta + step, trial
        damping = max(shrink * damping, floor)
        small = np.linalg.norm(step) < settings.TolX * (np.sqrt(floor) + np.linalg.norm(beta))
        if small and decrease <= settings.TolFun * now.value:
            break
    return beta


class Fitted(NamedTuple):
    """A fit in MATLAB's terms: b is (r, m); RELME's variances are scaled by (n - f) / n."""

    beta: np.ndarray
    psi: np.ndarray
    mse: float
    covb: np.ndarray
    errorparam: np.ndarray
    b: np.ndarray
    log_likelihood: float
    result: RESULTS
    num_steps: int


Callback = Callable[[dict[str, Any]], bool]


def run(call: Call, beta0: np.ndarray, callback: Callback) -> Fitted:
    """Fit by the chosen approximation."""
    options = call.options
    params0 = dataclasses.replace(unknown_params(call.problem), beta=jnp.asarray(beta0))
    if _reweighted(options):
        return _run_reweighted(call, params0, callback)
    if options.error_parameters is not None:
        start = jnp.log(jnp.asarray(options.error_parameters))
        params0 = dataclasses.replace(params0, error=start)
    watch = _Watch(call, callback)

    def fit_by(method: nlme.AbstractMethod) -> nlme.NLMEFit:
        limit = options.options.MaxIter
        return drive(call.problem, method, params0=params0, max_steps=limit, callback=watch)

    fit = fit_by(_method(call, beta0))
    lost = isinstance(fit.state, MatlabState) and (fit.state.flat or fit.state.failed)
    if lost and not watch.stopped:
        watch.steps = int(fit.stats["num_steps"])
        fit = fit_by(_fixed_point(options))
    fitted = _read_fit(call, fit)
    return fitted._replace(num_steps=fitted.num_steps + watch.steps)


class _Watch:
    """Hands each step on to the door, which counts over several fits and asks for ``mse`` where it shows it."""

    def __init__(self, call: Call, callback: Callback) -> None:
        self.call, self.callback = call, callback
        self.steps, self.stopped = 0, False

    def __call__(self, info: dict[str, Any]) -> bool:
        step = info["step"] + self.steps
        self.stopped = self.callback({**info, "step": step, "mse": lambda: self._mse(info)})
        return self.stopped

    def _mse(self, info: dict[str, Any]) -> float:
        error = np.asarray(self.call.problem.error_model.natural(info["error"]))
        return _mean_square(self.call, error, info["state"])


def _run_reweighted(call: Call, params: NLMEParams, callback: Callback) -> Fitted:
    """Fit with weights 1 / g(f)^2, refresh them from the fit, until beta settles (MATLAB's way).

    The answer is a fixed point: at f of the fit (b = 0 for FO, the modes for FOCE) the weights
    reproduce themselves. ``combined``: a and b of the residuals y - f, and mse scales them.
    """
    options, settings = call.options, call.options.options
    method, kind = _method(call, np.asarray(params.beta)), options.error_model
    tolerance = settings.TolX if "TolX" in settings.given else 1e-7
    errorparam = np.ones(1)
    start = options.error_parameters
    weights, watch = np.ones(call.data.num_rows), _Watch(call, callback)
    for _ in range(settings.MaxIter):
        packed = jnp.asarray(call.layout.pack(weights**2, fill=0.0))
        now = dataclasses.replace(call, problem=dataclasses.replace(call.problem, weights=packed))
        fit = drive(now.problem, method, params0=params, max_steps=settings.MaxIter, callback=watch)
        fitted = _read_fit(now, fit)
        old, params = np.asarray(params.beta), fit.params
        watch.steps += fitted.num_steps
        change = np.max(np.abs(fitted.beta - old) / np.maximum(np.abs(fitted.beta), 1e-8))
        f = evaluate(call, fitted.beta, fitted.b).f
        if kind == "combined":
            errorparam = start = _combined_error(call, f, start)
        if watch.stopped or change < tolerance or fitted.result != RESULTS.successful:
            break
        g = error_sd(kind, errorparam, f)
        weights = 1.0 / np.where(g > 0, g, 1.0)
    else:
        fitted = fitted._replace(result=RESULTS.max_steps_reached)
    if kind == "combined":
        fitted = fitted._replace(errorparam=errorparam)
    return fitted._replace(num_steps=watch.steps)


def _combined_error(call: Call, f: np.ndarray, start: np.ndarray | None) -> np.ndarray:
    """Fit a and b to the residuals y - f by the core's own fit of LME."""
    if start is None:
        spread = float(np.std(call.y - f))
        start = 0.5 * np.array([spread, spread / np.sqrt(np.mean(f**2))])
    problem = dataclasses.replace(
        call.problem,
        error_model=as_error_model("combined"),
        weights=jnp.asarray(call.layout.mask.astype(float)),
    )
    packed = call.layout.pack(f)
    return np.exp(np.asarray(_residual_error(problem, packed, np.log(start))))


@outer_jit
def _residual_error(problem: NLMEProblem, f: Any, log_start: Any) -> Any:
    return fit_residual_error(problem, f, log_start)


def _method(call: Call, beta0: np.ndarray) -> Any:
    """Return the method: MATLAB's schedule of LME and RELME with "fminsearch", the core's for all others.

    The core's tolerances are its own unless the caller gave one: LME stops on a change in units of
    standard errors, FO and FOCE on the expected decrease of -log L, the square of such a change.
    """
    options = call.options
    if options.follows_matlab:
        values, first = options.options, float(call.data.X.flat[0])
        return MatlabLME(
            options.approximation_type == "RELME",
            options.cov_parameterization,
            exact=options.difference_step is None,
            tol_x=max(values.TolX, np.sqrt(np.spacing(abs(float(beta0[0]))))),
            tol_fun=max(values.TolFun, np.sqrt(np.spacing(abs(first)))),
            deriv_step=values.DerivStep,
            max_iter=float(values.MaxIter),
        )
    if options.approximation_type in ("LME", "RELME"):
        return _fixed_point(options)
    choice = {"tolerance": min(limits) ** 2} if (limits := _limits(options)) else {}
    first_order = options.approximation_type == "FO"
    return nlme.FO(**choice) if first_order else nlme.FOCE(interaction=False, **choice)


def _fixed_point(options: NlmefitOptions) -> nlme.LME:
    combined, limits = options.error_model == "combined", _limits(options)
    # Refitting a and b to shrunken residuals can circle at 1e-6 standard errors for ever.
    default = 1e-5 if combined else 1e-7
    return nlme.LME(
        restricted=options.approximation_type == "RELME",
        error_from="residuals" if combined else "marginal",
        tolerance=min(limits) if limits and not options.follows_matlab else default,
    )


def _limits(options: NlmefitOptions) -> list[float]:
    given, values = options.options.given, options.options
    limits = [values.TolX] if "TolX" in given else []
    return limits + ([values.TolFun**0.5] if "TolFun" in given else [])


def _read_fit(call: Call, fit: nlme.NLMEFit) -> Fitted:
    kind, approximation = call.options.error_model, call.options.approximation_type
    alternating = approximation in ("LME", "RELME")
    params, state, problem = fit.params, fit.state, call.problem
    beta, b = np.asarray(params.beta), np.asarray(fit.stats["b"])[: call.data.num_groups].T
    psi = problem.covariance.psi(np.asarray(params.theta))[0]
    error = np.asarray(problem.error_model.natural(params.error))
    errorparam, mse = error, _mean_square(call, error, state)
    log_likelihood = float(fit.stats["log_likelihood"])
    if alternating:
        covb = np.asarray(state.beta_covariance)
        if kind == "combined":
            # a and b of the individual residuals
            if isinstance(state, MatlabState):  # one refit after the last weights
                start = np.log(np.maximum(np.asarray(state.error), 1e-100))
                errorparam = np.exp(np.asarray(_residual_error(problem, state.f, start)))
            else:
                errorparam = np.asarray(problem.error_model.natural(state.residual_error))
    else:
        if approximation == "FO":
            b = np.zeros_like(b)
        if kind == "exponential":
            log_likelihood += float(np.sum(call.y))  # MATLAB leaves -sum(log y) out here
        covb = np.asarray(_fixed_covariance(problem, params, _padded_b(call, b)))
    if approximation == "RELME":
        n = call.data.num_rows
        scale = (n - len(beta)) / n
        psi, covb, mse = psi * scale, covb * scale, mse * scale
        if kind != "combined":
            errorparam = errorparam * np.sqrt(scale)
    steps = int(fit.stats["num_steps"])
    return Fitted(beta, psi, mse, covb, errorparam, b, log_likelihood, fit.result, steps)


def _mean_square(call: Call, error: np.ndarray, state: Any) -> float:
    """The variance of the weighted error: with combined errors it scales what a and b give (MATLAB)."""
    if isinstance(state, MatlabState):
        return float(state.sigma**2)
    alternating = call.options.approximation_type in ("LME", "RELME")
    if alternating and call.options.error_model == "combined":
        return float((error[0] / np.exp(np.asarray(state.residual_error)[0])) ** 2)
    return float(error[0] ** 2)


@outer_jit
def _fixed_covariance(problem: NLMEProblem, params: NLMEParams, b: Any) -> Any:
    """(X' V^-1 X)^-1 of the model linearised at b, the error's sd at b = 0 (FO and FOCE)."""
    phi = phi_of(problem, params.beta, b)
    _, J = derivatives(problem, phi, 1)
    f = derivatives(problem, phi_of(problem, params.beta, jnp.zeros_like(b)), 0)[0]
    sd = problem.error_model.sd(f, problem.error_model.natural(params.error))
    used = problem.weights > 0
    precision = jnp.where(used, problem.weights / jnp.where(used, sd, 1.0) ** 2, 0.0)
    X, Z = design_columns(J, problem.A), design_columns(J, problem.B)
    sums = cross_products(Z, X, jnp.ones_like(f), precision)
    free = jnp.ones(params.beta.shape[0], f.dtype)
    factor = problem.covariance.factor(params.theta)
    fit = profile(sums, factor, problem.num_rows(), free, restricted=False)
    return fixed_information(fit.chol_xvx, free)
