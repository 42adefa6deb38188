"""One data set of a generalised linear model."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np

from jaxnlme._typing import Array
from jaxnlme.families import AbstractFamily, as_family
from jaxnlme.families._base import fit_link
from jaxnlme.links import AbstractLink
from jaxnlme.numerics.blocked import Blocks
from jaxnlme.penalties import AbstractPenalty, NoPenalty


class Predictor(eqx.Module):
    """Design of a parameter beside the mean: (n, q) or blocks; ``X=None`` takes the design of the mean."""

    X: Array | Blocks | None = None
    offset: Array | None = None


class GLMProblem(eqx.Module):
    """One data set; a batch exists only through ``vmap``.

    Attributes
    ----------
    X
        Design (n, p), or :class:`~jaxnlme.numerics.blocked.Blocks` for large data.
    y
        Response (n,), or (d, n) for families whose response has several columns.
    weights
        Prior weights (n,); None: ones. A weight of 0 deletes the row.
    offset
        Added to the linear predictor (n,); None: zeros.
    family, link
        Objects or names; ``link=None`` takes the family's own.
    penalty
        Added to the total minus log-likelihood (deviance / 2 for dispersion families).
    others
        One predictor per entry of ``family.parameters``; default: a constant each (or the design of the
        mean where the family says so).
    lower, upper
        Bounds of the coefficients (P,); None: none.

    Examples
    --------
    >>> import numpy as np
    >>> import jaxnlme as jn
    >>> x = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    >>> X = np.stack([np.ones_like(x), x], 1)
    >>> problem = jn.glm.GLMProblem(X, np.array([1, 1, 3, 7], np.float32), family="poisson")
    >>> [round(float(b), 2) for b in jn.glm.fit(problem).params]
    [-0.41, 0.77]
    """

    X: Array | Blocks
    y: Array
    weights: Array
    offset: Array
    family: AbstractFamily
    link: AbstractLink
    penalty: AbstractPenalty
    others: tuple[Predictor, ...]
    lower: Array | None
    upper: Array | None

    def __init__(
        self,
        X: Any,
        y: Any,
        weights: Any = None,
        offset: Any = None,
        *,
        family: Any = "gaussian",
        link: Any = None,
        penalty: AbstractPenalty | None = None,
        others: tuple[Predictor, ...] | None = None,
        lower: Any = None,
        upper: Any = None,
    ) -> None:
        self.X, self.y = X, y
        self.family = as_family(family)
        self.link = fit_link(self.family, link)
        shape = y.shape[1:] if self.family.response_width > 1 else y.shape
        self.weights = np.ones(shape, y.dtype) if weights is None else weights
        self.offset = np.zeros(shape, y.dtype) if offset is None else offset
        self.penalty = NoPenalty() if penalty is None else penalty
        self.others = _default_others(self.family, shape, y.dtype) if others is None else others
        self.lower, self.upper = lower, upper

    @property
    def links(self) -> tuple[AbstractLink, ...]:
        """Link of the mean and of the other parameters."""
        return (self.link, *(p.link for p in self.family.parameters))


def _default_others(family: AbstractFamily, shape, dtype) -> tuple[Predictor, ...]:
    constant = (
        Blocks(np.ones((shape[0], 1, shape[1]), dtype))
        if len(shape) == 2
        else np.ones((*shape, 1), dtype)
    )
    return tuple(Predictor(None if p.formula == "mean" else constant) for p in family.parameters)
