"""Result codes. A code is data in a fit; doors turn it into a warning or an exception."""

from __future__ import annotations

import equinox as eqx


class RESULTS(eqx.Enumeration):
    """Why an iteration stopped. One code per lane under ``vmap``."""

    successful = "The fit converged."
    max_steps_reached = (
        "The iteration limit was reached before convergence. Raise max_steps, or start from the "
        "last values: pass start=fit.params."
    )
    stalled = (
        "No step along the search direction improves the objective although its gradient is not "
        "zero. Rescale the parameters or start elsewhere."
    )
    nonfinite = (
        "The objective or its gradient is not finite. Check the model at these parameters and the "
        "start values."
    )
    singular = "The fit converged with a variance component at zero or a correlation at +-1."
    not_identified = (
        "The Hessian at the estimate is not positive definite: some combination of parameters is "
        "not determined by the data."
    )
    separation = (
        "Fitted means lie numerically at the edge of their range: some estimates are infinite. Use "
        "penalty='firth' or priors=, or leave the separating term out."
    )
    inner_failed = (
        "The random effects of at least one group could not be found (the inner Newton iteration "
        "did not converge)."
    )


_NAMES = (
    "successful",
    "max_steps_reached",
    "stalled",
    "nonfinite",
    "singular",
    "not_identified",
    "separation",
    "inner_failed",
)


def result_name(result: RESULTS) -> str:
    """Return the name of one concrete result code, for example ``"successful"``."""
    code = int(result._value)  # type: ignore[attr-defined]
    for name in _NAMES:
        if int(getattr(RESULTS, name)._value) == code:
            return name
    raise ValueError(f"{code} is not a result code")


def result_sentence(name: str) -> str:
    """Return the sentence of a result by name."""
    return RESULTS[getattr(RESULTS, name)]
