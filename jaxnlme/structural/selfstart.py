"""Self-starting model functions with R's parameterisations, and their start values from data.

The curves are pure ``jax.numpy`` functions of scalars or arrays whose values and derivatives stay
finite at input 0 and for extreme rates. ``initial`` finds start values on the host.

References
----------
.. [1] Pinheiro, J. C. and Bates, D. M. (2000). Mixed-Effects Models in S and S-PLUS, appendix C.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import ModelSpecError

LATER = ("SSasympOff", "SSasympOrig", "SSfpl", "SSgompertz", "SSmicmen", "SSweibull")


def SSasymp(input: Any, Asym: Any, R0: Any, lrc: Any) -> Any:
    """Evaluate the asymptotic regression curve.

    Parameters
    ----------
    input
        Covariate, usually time.
    Asym, R0
        Value at infinity and at input 0, in response units.
    lrc
        Log of the rate constant.

    Notes
    -----
    ``Asym + (R0 - Asym) exp(-exp(lrc) input)``

    Examples
    --------
    >>> float(SSasymp(0.0, 103.0, -8.5, -3.3))
    -8.5
    """
    return _asymp(jnp, input, Asym, R0, lrc)


def SSlogis(input: Any, Asym: Any, xmid: Any, scal: Any) -> Any:
    """Evaluate the logistic curve.

    Parameters
    ----------
    input
        Covariate; -inf (a log of 0) gives the lower limit.
    Asym
        Upper limit.
    xmid, scal
        Input at half of ``Asym``, and the scale of the input.

    Notes
    -----
    ``Asym / (1 + exp((xmid - input) / scal))``

    Examples
    --------
    >>> float(SSlogis(730.0, 190.0, 730.0, 350.0))
    95.0
    """
    return _logis(jnp, input, Asym, xmid, scal)


def SSbiexp(input: Any, A1: Any, lrc1: Any, A2: Any, lrc2: Any) -> Any:
    """Evaluate the sum of two exponentials.

    Parameters
    ----------
    input
        Covariate, usually time.
    A1, lrc1
        Amplitude and log rate of the faster phase.
    A2, lrc2
        Amplitude and log rate of the slower phase.

    Notes
    -----
    ``A1 exp(-exp(lrc1) input) + A2 exp(-exp(lrc2) input)``

    Examples
    --------
    >>> float(SSbiexp(0.0, 2.5, 0.8, 0.5, -1.3))
    3.0
    """
    return _biexp(jnp, input, A1, lrc1, A2, lrc2)


def SSfol(Dose: Any, input: Any, lKe: Any, lKa: Any, lCl: Any) -> Any:
    """Evaluate the one-compartment model with first-order absorption and elimination.

    Parameters
    ----------
    Dose
        Dose given at input 0.
    input
        Time since the dose.
    lKe, lKa, lCl
        Logs of the elimination rate, the absorption rate and the clearance.

    Notes
    -----
    ``Dose exp(lKe + lKa - lCl) (exp(-Ke t) - exp(-Ka t)) / (Ka - Ke)`` with ``Ke = exp(lKe)`` and
    ``Ka = exp(lKa)``; coded so that ``Ka -> Ke`` and ``t = 0`` are exact in value and derivatives.

    Examples
    --------
    >>> round(float(SSfol(4.02, 1.12, -2.4, 0.45, -3.2)), 4)
    6.9391
    """
    return _fol(jnp, Dose, input, lKe, lKa, lCl)


def _rate(xp: Any, log_rate: Any) -> Any:
    """exp, bounded so that rate * 0 stays 0 and products of two rates stay finite."""
    limits: Any = jnp.finfo(jnp.result_type(log_rate, float)) if xp is jnp else np.finfo(float)
    largest = float(np.log(float(limits.max)) / 2.5)
    # not minimum: its derivative at a tie is four times as long a program
    return xp.exp(xp.where(log_rate > largest, largest, log_rate))


def _asymp(xp: Any, input: Any, Asym: Any, R0: Any, lrc: Any) -> Any:
    return Asym + (R0 - Asym) * xp.exp(-_rate(xp, lrc) * input)


def _logis(xp: Any, input: Any, Asym: Any, xmid: Any, scal: Any) -> Any:
    finite = xp.isfinite(input)
    z = (xp.where(finite, input, xmid) - xmid) / scal
    # exp of a negative number only: no overflow on either side
    decay = xp.exp(-xp.abs(z))
    share = xp.where(z >= 0, 1.0, decay) / (1.0 + decay)
    limit = xp.where(xp.sign(input) * xp.sign(scal) > 0, 1.0, 0.0)
    return Asym * xp.where(finite, share, limit)


def _biexp(xp: Any, input: Any, A1: Any, lrc1: Any, A2: Any, lrc2: Any) -> Any:
    return A1 * xp.exp(-_rate(xp, lrc1) * input) + A2 * xp.exp(-_rate(xp, lrc2) * input)


def _fol(xp: Any, Dose: Any, input: Any, lKe: Any, lKa: Any, lCl: Any) -> Any:
    ke, ka = _rate(xp, lKe), _rate(xp, lKa)
    # the curve is symmetric in its two rates: take the smaller one out of the difference
    swap = ka < ke
    slow, fast = xp.where(swap, ka, ke), xp.where(swap, ke, ka)
    share = input * _mean_decay(xp, (fast - slow) * input)
    return Dose * _rate(xp, lKe - lCl) * ka * share * xp.exp(-slow * input)


def _mean_decay(xp: Any, u: Any) -> Any:
    """(1 - exp(-u)) / u, with its series where the quotient loses derivatives."""
    small = xp.abs(u) < 0.02
    safe = xp.where(small, 1.0, u)
    series = xp.where(small, u, 0.0)
    total = series / 5040.0
    for factorial in (-720.0, 120.0, -24.0, 6.0, -2.0):
        total = series * (total + 1.0 / factorial)
    total = 1.0 + total
    return xp.where(small, total, -xp.expm1(-safe) / safe)


@dataclasses.dataclass(frozen=True)
class SelfStart:
    """A self-starting model: which arguments are data, which parameters, how to start.

    The curve is ``basis @ amplitudes`` with amplitudes that are linear given ``rates``, so a grid
    over the rates with a linear fit at each point finds the neighbourhood of the optimum.
    """

    name: str
    function: Callable
    curve: Callable
    predictors: tuple[str, ...]
    parameters: tuple[str, ...]
    grid: Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]
    basis: Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]
    assemble: Callable[[np.ndarray, np.ndarray], list[float] | None]


def _log_rates(t: np.ndarray, n: int) -> np.ndarray:
    """Log rates between a tenth of 1/range and ten times 1/(smallest gap)."""
    unique = np.unique(t)
    span = float(unique[-1] - unique[0])
    gap = float(np.quantile(np.diff(unique), 0.1)) if len(unique) > 1 else span
    gap = max(gap, span / 1e4)
    return np.linspace(np.log(0.1 / span), np.log(4.0 / gap), n)


def _one_rate(x: dict[str, np.ndarray], y: np.ndarray) -> np.ndarray:
    return _log_rates(x["input"], 40)[:, None]


def _two_rates(x: dict[str, np.ndarray], y: np.ndarray) -> np.ndarray:
    rates = _log_rates(x["input"], 24)
    first, second = np.triu_indices(len(rates), 1)
    return np.column_stack([rates[second], rates[first]])  # faster, slower


def _logis_grid(x: dict[str, np.ndarray], y: np.ndarray) -> np.ndarray:
    low, high = float(np.min(x["input"])), float(np.max(x["input"]))
    span = high - low
    middles = np.linspace(low - 0.1 * span, high + 0.6 * span, 20)
    scales = span * np.geomspace(0.02, 0.8, 12)
    falling = np.corrcoef(x["input"], y)[0, 1] < 0
    pairs = np.array([(m, s) for m in middles for s in scales])
    return pairs * np.array([1.0, -1.0]) if falling else pairs


def _decay(rate: float, t: np.ndarray) -> np.ndarray:
    return np.exp(-np.exp(rate) * t)


_MODELS: dict[str, SelfStart] = {
    model.name: model
    for model in (
        SelfStart(
            "SSasymp", SSasymp, _asymp, ("input",), ("Asym", "R0", "lrc"), _one_rate,
            lambda x, r: np.column_stack([1 - _decay(r[0], x["input"]), _decay(r[0], x["input"])]),
            lambda a, r: [a[0], a[1], r[0]],
        ),
        SelfStart(
            "SSlogis", SSlogis, _logis, ("input",), ("Asym", "xmid", "scal"), _logis_grid,
            lambda x, r: _logis(np, x["input"], 1.0, r[0], r[1])[:, None],
            lambda a, r: [a[0], r[0], r[1]],
        ),
        SelfStart(
            "SSbiexp", SSbiexp, _biexp, ("input",), ("A1", "lrc1", "A2", "lrc2"), _two_rates,
            lambda x, r: np.column_stack([_decay(r[0], x["input"]), _decay(r[1], x["input"])]),
            lambda a, r: [a[0], r[0], a[1], r[1]],
        ),
        SelfStart(
            "SSfol", SSfol, _fol, ("Dose", "input"), ("lKe", "lKa", "lCl"), _two_rates,
            lambda x, r: _fol(np, x["Dose"], x["input"], r[1], r[0], 0.0)[:, None],
            lambda a, r: [r[1], r[0], -float(np.log(a[0]))] if a[0] > 0 else None,
        ),
    )
}  # fmt: skip

FUNCTIONS: dict[str, Callable] = {name: model.function for name, model in _MODELS.items()}


def model(name: str) -> SelfStart:
    """Return what is known of a self-starting model by its R name."""
    if name in LATER:
        raise _comes_later(name)
    if name not in _MODELS:
        raise ModelSpecError(
            f"{name!r} is not a self-starting model; there are {', '.join(_MODELS)}."
        )
    return _MODELS[name]


def initial(
    name: str, x: Mapping[str, Any], y: Any, group: Any = None, *, max_rows: int = 2000
) -> dict[str, float]:
    """Return start values of a self-starting model: its least squares fit to all rows together.

    Parameters
    ----------
    name
        ``"SSfol"``, ``"SSlogis"``, ``"SSbiexp"`` or ``"SSasymp"``.
    x
        Predictors by the model's argument names (``input``; for SSfol also ``Dose``).
    y
        Response.
    group
        Group labels or codes. With them each group has the same total weight, whatever its number
        of rows.
    max_rows
        More rows than this are thinned evenly.

    Returns
    -------
    dict
        A value per parameter, in the model's order.

    Raises
    ------
    ModelSpecError
        No curve of this kind fits the data, or there are too few of them.

    Notes
    -----
    For rates on a grid the amplitudes follow by linear least squares; the best point is refined
    by Levenberg-Marquardt steps (R's ``initial`` functions peel the same curves).

    Examples
    --------
    >>> t = np.arange(1.0, 9.0)
    >>> start = initial("SSlogis", {"input": t}, 3.0 / (1 + np.exp((4.0 - t) / 0.7)))
    >>> {name: round(value, 6) for name, value in start.items()}
    {'Asym': 3.0, 'xmid': 4.0, 'scal': 0.7}
    """
    known = model(name)
    columns, y, weights = _clean(known, x, y, group, max_rows)
    best: tuple[float, list[float]] | None = None
    for rates in known.grid(columns, y):
        with np.errstate(all="ignore"):
            basis = known.basis(columns, rates) * weights[:, None]
            if not np.isfinite(basis).all():
                continue
            amplitudes = np.linalg.lstsq(basis, y * weights, rcond=1e-10)[0]
            values = known.assemble(amplitudes, rates)
            error = float(np.sum((y * weights - basis @ amplitudes) ** 2))
        if values is not None and np.isfinite(error) and (best is None or error < best[0]):
            best = (error, values)
    if best is None:
        raise _no_start(name, "no curve of this kind fits the data")
    predictors = [columns[p] for p in known.predictors]

    def residuals(theta: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return (known.curve(np, *predictors, *theta) - y) * weights

    theta = _levenberg_marquardt(residuals, np.array(best[1], dtype=float))
    if not np.isfinite(theta).all():
        raise _no_start(name, "the least squares fit diverged")
    return {p: float(v) for p, v in zip(known.parameters, theta, strict=True)}


def _clean(
    known: SelfStart, x: Mapping[str, Any], y: Any, group: Any, max_rows: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    absent = [p for p in known.predictors if p not in x]
    if absent:
        raise ModelSpecError(
            f"initial({known.name!r}) needs the predictors {', '.join(known.predictors)}; "
            f"{', '.join(absent)} is not in x."
        )
    y = np.asarray(y, dtype=np.float64)
    columns = {
        p: np.broadcast_to(np.asarray(x[p], dtype=np.float64), y.shape) for p in known.predictors
    }
    weights = np.ones(len(y))
    if group is not None:
        _, codes, counts = np.unique(np.asarray(group), return_inverse=True, return_counts=True)
        weights = np.sqrt(len(y) / len(counts) / counts[codes])
    use = np.flatnonzero(
        np.isfinite(y) & np.all([np.isfinite(c) for c in columns.values()], axis=0)
    )
    if len(use) > max_rows:
        use = use[np.linspace(0, len(use) - 1, max_rows).astype(int)]
    columns = {p: c[use] for p, c in columns.items()}
    if len(use) < len(known.parameters) or len(np.unique(columns["input"])) < 3:
        raise _no_start(known.name, "there are too few different finite rows")
    return columns, y[use], weights[use]


def _levenberg_marquardt(
    residuals: Callable[[np.ndarray], np.ndarray], theta: np.ndarray, max_steps: int = 60
) -> np.ndarray:
    """Minimise a sum of squares from a good start (central differences, diagonal scaling)."""
    current = residuals(theta)
    error, damping = float(current @ current), 1e-3
    for _ in range(max_steps):
        jacobian = _central_jacobian(residuals, theta)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ current
        scale = np.diag(np.maximum(np.diag(normal), 1e-12 * (1.0 + np.diag(normal).max())))
        try:
            step = -np.linalg.solve(normal + damping * scale, gradient)
        except np.linalg.LinAlgError:
            break
        trial = residuals(theta + step)
        trial_error = float(trial @ trial) if np.isfinite(trial).all() else np.inf
        if trial_error < error:
            small = error - trial_error <= 1e-10 * error
            theta, current, error = theta + step, trial, trial_error
            damping = max(damping / 10, 1e-12)
            if small:
                break
        else:
            damping *= 10
            if damping > 1e12:
                break
    return theta


def _central_jacobian(residuals: Callable, theta: np.ndarray) -> np.ndarray:
    steps = 6e-6 * np.maximum(np.abs(theta), 1e-2)
    columns = []
    for j, step in enumerate(steps):
        shift = np.zeros_like(theta)
        shift[j] = step
        columns.append((residuals(theta + shift) - residuals(theta - shift)) / (2 * step))
    return np.column_stack(columns)


def _no_start(name: str, reason: str) -> ModelSpecError:
    return ModelSpecError(
        f"no start values for {name} were found ({reason}); pass start={{...}} with a value per "
        "parameter."
    )


def _comes_later(name: str) -> ModelSpecError:
    return ModelSpecError(
        f"the self-starting model {name} comes later; there are {', '.join(_MODELS)}. Write the "
        "formula out and pass start=."
    )


def __getattr__(name: str) -> Any:
    if name in LATER:
        raise _comes_later(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> Sequence[str]:
    return [*_MODELS, "initial", "model"]
