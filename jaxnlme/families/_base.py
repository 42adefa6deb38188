"""What a family answers about itself. A new family is one file; nothing asks for its type."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import DataError, DataWarning, ModelSpecError, nearest, some, warn
from jaxnlme._typing import Array
from jaxnlme.links import AbstractLink, as_link, attribute


class Parameter(eqx.Module):
    """A predictor of a family beside its mean: name, link and how it is reported.

    ``formula`` is what the door uses when the user gives none: ``"~ 1"``, or ``"mean"`` for the design of
    the mean (multinomial logits). ``listed`` parameters stand among the coefficients of a fit even when
    their formula is ``~ 1`` (zero inflation, cutpoints); the others are nuisance parameters such as theta.
    """

    name: str = eqx.field(static=True)
    link: AbstractLink
    formula: str = eqx.field(static=True, default="~ 1")
    listed: bool = eqx.field(static=True, default=False)


@dataclasses.dataclass(frozen=True)
class Response:
    """What the door read from the left side, for :meth:`AbstractFamily.read_response`.

    Attributes
    ----------
    values
        (n,) float64; codes into ``levels`` for labels and booleans; (n, 2) for ``cbind(a, b)``.
    weights
        (n,) prior weights, 1 where the user gave none.
    weighted
        Whether the user gave weights.
    levels
        Level labels of a factor response, else None.
    column
        Reads another column of the data by name (bounds of a censored response): float64 (n,).
    name
        Name of the response for messages.
    rows
        Input row of each value, for messages.
    """

    values: np.ndarray
    weights: np.ndarray
    weighted: bool
    levels: tuple | None
    column: Callable[[str], np.ndarray]
    name: str
    rows: np.ndarray

    def refuse(self, bad: np.ndarray, what: str, cure: str) -> None:
        """Raise DataError naming the rows where ``bad`` holds (weight-0 rows are not looked at)."""
        bad = bad & (self.weights > 0)
        if bad.any():
            where = np.flatnonzero(bad)
            example = self.values[where[0]]
            raise DataError(
                f"response {self.name!r} {what} in {len(where)} row(s) (rows {some(self.rows[where])}; "
                f"first value {example}). {cure}"
            )


class Prepared(NamedTuple):
    """A response ready for the kernels: the family (levels learned), ``y`` (n,) or (d, n), weights (n,)."""

    family: AbstractFamily
    y: np.ndarray
    weights: np.ndarray


class AbstractFamily(eqx.Module):
    """The distribution of a response given its predictors, the mean first.

    Elementwise methods take ``y`` and the parameters on their natural scale (``mu`` and one array per
    entry of ``parameters``), all of one shape; families whose response has several columns
    (``response_width`` > 1) get ``y`` with these columns on the leading axis. Everything traced follows
    the dtype of its input.
    """

    # ---- what it is ----------------------------------------------------------------------------
    @attribute
    @abc.abstractmethod
    def name(self) -> str:
        """Name as users spell it."""

    @attribute
    @abc.abstractmethod
    def default_link(self) -> AbstractLink:
        """Link of the mean when the user names none."""

    @attribute
    def links(self) -> tuple[str, ...]:
        """Links that make sense; empty means all."""
        return ()

    @attribute
    def parameters(self) -> tuple[Parameter, ...]:
        """Predictors beside the mean that are estimated with it."""
        return ()

    @attribute
    def response_width(self) -> int:
        """Columns of ``y``."""
        return 1

    @attribute
    def has_intercept(self) -> bool:
        """False where the family itself holds the constant (ordinal cutpoints)."""
        return True

    @attribute
    def mean_name(self) -> str | None:
        """Prefix of the labels of the mean's coefficients (a class of a multinomial response), else None."""
        return None

    @attribute
    def columns(self) -> tuple[str, ...]:
        """Data columns that ``read_response`` reads beside the response (bounds of a censored response)."""
        return ()

    @attribute
    def reads_response(self) -> bool:
        """False where the data come from other columns than the response (intervals)."""
        return True

    @attribute
    def formulas(self) -> dict[str, str]:
        """Formulas that were given with the family itself: ``ZeroInflated(..., zero="~ x")``."""
        return {}

    def separated(self, mu: Array, *others: Array) -> Array:
        """Where a fitted mean lies numerically at the edge of its range (separation), bool."""
        return jnp.zeros(mu.shape, bool)

    def boundary_notes(
        self, scalars: Mapping[str, float], y: np.ndarray, weights: np.ndarray
    ) -> list[str]:
        """Sentences about estimated scalar parameters that ran to the edge of their range (host)."""
        return []

    @attribute
    def discrete(self) -> bool:
        """True for counts and classes: quantile residuals are randomised."""
        return False

    @attribute
    def classes(self) -> tuple | None:
        """Level labels when the mean is a vector of class probabilities, else None."""
        return None

    @attribute
    def has_dispersion(self) -> bool:
        """True when ``Var = phi V(mu) / w`` with ``phi`` estimated after the fit (Pearson): t tests, F tests."""
        return False

    @attribute
    def has_likelihood(self) -> bool:
        """False for quasi families: ``llf``, ``aic`` are NaN."""
        return True

    @attribute
    def canonical(self) -> str | None:
        """Name of the link for which observed and expected information are the same."""
        return None

    @attribute
    def fisher_scoring(self) -> bool:
        """True when ``working`` gives the expected information, so that the first step may use it anywhere."""
        return False

    @attribute
    def dispersion_name(self) -> str | None:
        """Name of the dispersion as a parameter of :meth:`full_likelihood`; None where there is none."""
        return None

    def full_likelihood(self) -> AbstractFamily:
        """The form whose dispersion is a parameter of the likelihood, estimated with the mean.

        Its prior weights multiply the log density, as in glmmTMB and survreg.
        """
        return self

    def at(self, *others: Any) -> AbstractFamily | None:
        """The family with its nuisance parameters held, when that is an exponential family; else None.

        The deviance, the null deviance and deviance residuals of a negative binomial or Tweedie fit are
        those of the family held at the estimates.
        """
        return None

    # ---- the density ---------------------------------------------------------------------------
    @abc.abstractmethod
    def log_prob(self, y: Array, mu: Array, *others: Array) -> Array:
        """Log density (mass) of one observation of weight 1, every constant kept."""

    def log_likelihood(self, y: Array, weights: Array, mu: Array, *others: Array) -> Array:
        """Rows of the log-likelihood with prior weights: ``w log p`` unless a family says otherwise."""
        return weights * self.log_prob(y, mu, *others)

    def cost(self, y: Array, weights: Array, mu: Array, *others: Array) -> Array:
        """Rows of what a fit minimises: minus the log-likelihood, up to constants in ``y``."""
        return -self.log_likelihood(y, weights, mu, *others)

    def valid(self, mu: Array, *others: Array) -> Array:
        """Where the parameters lie inside the family's domain, bool."""
        return jnp.isfinite(mu)

    def working(
        self, links: tuple[AbstractLink, ...], y: Array, weights: Array, etas: tuple[Array, ...]
    ) -> tuple[Array, tuple[Array, ...], tuple[tuple[Array, ...], ...]]:
        """Cost, score and information per row at the linear predictors.

        Returns
        -------
        cost : (...)
        score : tuple over predictors of (...): minus the derivative of the cost
        information : tuple over predictors i of a tuple over j <= i of (...): here the observed second
            derivatives of the cost by differentiation; exponential families give the expected ones.
        """

        def total(etas):
            parameters = [link.inverse(eta) for link, eta in zip(links, etas, strict=True)]
            rows = self.cost(y, weights, *parameters)
            return jnp.sum(rows), rows

        def gradient(etas):
            return jax.grad(total, has_aux=True)(etas)

        # linearised once: K directions through one traced program, K jvps would be traced K times
        slopes, push, rows = jax.linearize(gradient, etas, has_aux=True)
        K = len(etas)
        directions = tuple(
            jnp.stack([jnp.full_like(eta, float(i == j)) for i in range(K)])
            for j, eta in enumerate(etas)
        )
        columns = jax.vmap(push)(directions)
        information = tuple(tuple(columns[j][i] for j in range(i + 1)) for i in range(K))
        return rows, tuple(-s for s in slopes), information

    def expected_information(
        self, links: tuple[AbstractLink, ...], weights: Array, etas: tuple[Array, ...]
    ) -> tuple[tuple[Array | None, ...], ...] | None:
        """Expected information per row (as in ``working``) for standard errors; None: use the observed one.

        An entry None stands for the observed value of that entry.
        """
        return None

    def unit_deviance(self, y: Array, mu: Array, *others: Array) -> Array:
        """Rows of the deviance at weight 1; minus twice the log density without a saturated model."""
        return -2 * self.log_prob(y, mu, *others)

    # ---- moments, tails ------------------------------------------------------------------------
    def mean(self, mu: Array, *others: Array) -> Array:
        """``E[y]``; (..., K) class probabilities where ``classes`` is set."""
        return mu

    @abc.abstractmethod
    def variance_of(self, mu: Array, *others: Array) -> Array:
        """``Var[y]`` of an observation of weight 1."""

    def observed(self, y: Array) -> Array:
        """The response on the scale of :meth:`mean`, (n,) also where ``y`` has several columns."""
        return y if self.response_width == 1 else y[0]

    def residual_variance(self, y: Array, weights: Array, mu: Array, *others: Array) -> Array:
        """Variance of :meth:`observed` at ``phi = 1``, for Pearson residuals."""
        return self.variance_of(mu, *others) / weights

    def cdf(self, y: Any, mu: Any, *others: Any, weights: Any = None) -> np.ndarray:
        """``P(Y <= y)`` on the host (numpy, scipy), for quantile residuals.

        ``y`` on the scale of :meth:`observed`. Families with a dispersion take it as the last of ``others``;
        ``weights`` matter where they change the distribution (sizes, variance weights).
        """
        raise ModelSpecError(f"family {self.name!r} has no distribution function.")

    def quantile(self, p: Any, mu: Any, *others: Any, weights: Any = None) -> np.ndarray:
        """Smallest ``y`` with ``P(Y <= y) >= p`` on the host, for prediction intervals."""
        raise ModelSpecError(f"family {self.name!r} has no quantile function.")

    def sample(
        self, rng: np.random.Generator, weights: np.ndarray, mu: np.ndarray, *others: np.ndarray
    ) -> np.ndarray:
        """Random responses (n,) on the host, on the scale of :meth:`observed`; ``weights`` as in :meth:`cdf`."""
        raise ModelSpecError(f"family {self.name!r} cannot be simulated.")

    # How these apply to the rows of given data.
    def law_weights(self, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The ``weights`` of :meth:`cdf` for rows of the kernels (numbers of trials)."""
        return weights

    def spacing(self, weights: np.ndarray) -> np.ndarray:
        """Distance between neighbouring values of a discrete response."""
        return np.ones_like(weights)

    def between(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Limits between which responses are known to lie (censored ones); None: they are known."""
        return None

    def for_rows(self, column: Callable[[str], np.ndarray]) -> AbstractFamily:
        """The family with the values of data columns (truncation) that its host methods need."""
        return self

    def recorded(
        self, values: np.ndarray, column: Callable[[str], np.ndarray]
    ) -> np.ndarray | None:
        """What the data would hold of drawn values (limits are applied); None: the family cannot tell."""
        return values

    def log_tails(self, y: Array, mu: Array, *others: Array) -> tuple[Array, Array]:
        """Traced ``log P(Y <= y)`` and ``log P(Y > y)``, for ``Censored`` and ``Truncated``."""
        raise ModelSpecError(f"family {self.name!r} cannot be censored or truncated.")

    def log_cdf(self, y: Array, mu: Array, *others: Array) -> Array:
        """Traced ``log P(Y <= y)``."""
        return self.log_tails(y, mu, *others)[0]

    def log_survival(self, y: Array, mu: Array, *others: Array) -> Array:
        """Traced ``log P(Y > y)``."""
        return self.log_tails(y, mu, *others)[1]

    # ---- data and starts -----------------------------------------------------------------------
    def read_response(self, response: Response) -> Prepared:
        """Check the response on the host and bring it into the form of the kernels.

        Raises
        ------
        DataError
            Values outside the support, naming the rows.
        """
        values = plain_response(self, response)
        self.check_response(dataclasses.replace(response, values=values))
        return Prepared(self, values, response.weights)

    def check_response(self, response: Response) -> None:
        """Raise DataError for values outside the support. Overridden by most families."""

    def start_mean(self, y: Array, weights: Array) -> Array:
        """Rows of ``mu`` to start from, inside the domain (R's ``mustart``), traced."""
        return y

    def start_others(self, y: Array, weights: Array) -> tuple[Array, ...]:
        """One scalar start value per entry of ``parameters``, natural scale, traced."""
        return ()

    def with_parameters(self, names: Mapping[str, str]) -> AbstractFamily:
        """The family with predictors for these parameters (a user's ``parameters={"sigma": "~ x"}``).

        Families whose dispersion is normally estimated after the fit return their full-likelihood form.
        """
        full = self.full_likelihood()
        mine, known = [[p.name for p in family.parameters] for family in (self, full)]
        for name in names:
            if name not in mine and name not in known:
                raise ModelSpecError(
                    f"parameters: {name!r} is not a parameter of family {self.name!r}; it has "
                    f"{known or 'none beside its mean'}.{nearest(name, known)}"
                )
        return self if set(names) <= set(mine) else full


class AbstractExponentialFamily(AbstractFamily):
    """An exponential dispersion family (or quasi family): variance function and unit deviance.

    ``Var = phi V(mu) / w``. Fitted by Fisher scoring of the deviance; ``phi`` is 1
    (``has_dispersion`` False) or Pearson's estimate afterwards.
    """

    canonical_ratio = 1.0  # slope of the mean over its variance under the canonical link

    @property
    def fisher_scoring(self) -> bool:
        return True

    def observed_information(self, links, y, weights, etas):
        """Second derivative of the cost per row, by differentiation of the score."""
        (link,), (eta,) = links, etas

        def score(eta):
            return self.working((link,), y, weights, (eta,))[1][0]

        return ((-jax.jvp(score, (eta,), (jnp.ones_like(eta),))[1],),)

    @abc.abstractmethod
    def variance(self, mu: Array) -> Array:
        """Variance function ``V(mu)``."""

    @abc.abstractmethod
    def unit_deviance(self, y: Array, mu: Array, *others: Array) -> Array:
        """``2 (l(y; y) - l(y; mu))`` at ``phi = 1``; 0 at ``mu = y``."""

    def kernel(self, y: Array, mu: Array) -> Array:
        """Half the unit deviance up to constants in ``y``: what a pass over the rows sums."""
        return 0.5 * self.unit_deviance(y, mu)

    def cost(self, y, weights, mu, *others):
        return weights * self.kernel(y, mu)

    def working(self, links, y, weights, etas):
        (link,), (eta,) = links, etas
        mu, slope = link.inverse(eta), link.derivative(eta)
        if link.name == self.canonical:
            ratio = self.canonical_ratio * weights
        else:  # a mean that underflows has slope 0 too, and must not give 0 / 0
            tiny = jnp.finfo(mu.dtype).tiny
            ratio = weights * slope / jnp.maximum(self.variance(mu), tiny)
        return self.cost(y, weights, mu), (ratio * (y - mu),), ((ratio * slope,),)

    def expected_information(self, links, weights, etas):
        (link,), (eta,) = links, etas
        slope, variance = link.derivative(eta), self.variance(link.inverse(eta))
        return ((weights * slope**2 / jnp.maximum(variance, jnp.finfo(eta.dtype).tiny),),)

    def variance_of(self, mu, *others):
        dispersion = others[0] if others else 1.0
        return dispersion * self.variance(mu)

    def llf_dispersion(
        self, y: np.ndarray, weights: np.ndarray, mu: np.ndarray, deviance: float
    ) -> float | None:
        """The dispersion at which ``llf`` is evaluated (R's convention); None when ``phi`` is 1.

        ``llf`` is the sum of ``log_likelihood(y, weights, mu, phi)`` and counts ``phi`` as a parameter.
        """
        return None


def plain_response(family: AbstractFamily, response: Response) -> np.ndarray:
    """Return numeric values (n,), refusing labels and two-column responses."""
    if response.levels is not None and not set(response.levels) <= {False, True}:
        raise DataError(
            f"response {response.name!r} holds labels {some(response.levels)}; family {family.name!r} "
            "needs numbers. For labels use family='binomial' (two levels), Multinomial() or Ordinal()."
        )
    values = np.asarray(response.values, np.float64)
    if values.ndim != 1:
        raise DataError(
            f"response {response.name!r} has {values.shape[1]} columns; family {family.name!r} takes one. "
            "cbind(success, failure) belongs to the binomial and beta-binomial families."
        )
    return values


def need_counts(response: Response, *, whole: bool, cure: str = "") -> None:
    """Refuse negative counts, and counts that are not whole numbers (``whole``) or warn about them.

    All-zero counts put the estimate of the mean on its boundary and are refused, too.
    """
    response.refuse(
        response.values < 0, "is negative", "Counts are 0, 1, 2, ...; correct these rows."
    )
    broken = (response.values != np.round(response.values)) & (response.weights > 0)
    if whole:
        response.refuse(broken, "is not a whole number", cure)
    elif broken.any():
        warn(
            f"response {response.name!r} is not a whole number in {broken.sum()} row(s) (rows "
            f"{some(response.rows[broken])}). A rate with its exposure as weights= gives the estimates of "
            "counts with exposure=, but has no likelihood.",
            DataWarning,
        )
    live = response.values[response.weights > 0]
    if len(live) and not live.any():
        raise DataError(
            f"response {response.name!r} is 0 in every row: the maximum likelihood estimate lies on the "
            "boundary (mean 0). Check the response column."
        )


def need_positive(response: Response, family: str) -> None:
    """Refuse values that are not above 0."""
    response.refuse(
        response.values <= 0,
        "is not positive",
        f"Family {family!r} needs y > 0; family=Tweedie(1.5), Hurdle(Gamma()) or gaussian take zeros.",
    )


def need_variation(response: Response, what: str) -> None:
    """Refuse a constant response, for which ``what`` is estimated on its boundary."""
    live = response.values[response.weights > 0]
    if len(live) > 1 and np.all(live == live[0]):
        raise DataError(
            f"response {response.name!r} is constant ({live[0]:g} in all {len(live)} rows): {what}, on the "
            "boundary of the maximum likelihood problem. Check the response column."
        )


def dispersion_of(others: tuple, weights: Any = None) -> Any:
    """``phi / w`` of an exponential family on the host, 1 where none is given."""
    phi = np.asarray(others[0], float) if others else 1.0
    return phi if weights is None else phi / np.asarray(weights, float)


def weighted_mean(y: Array, weights: Array) -> Array:
    """Mean over all rows, scalar."""
    live = weights > 0
    return jnp.sum(jnp.where(live, weights * y, 0)) / jnp.sum(jnp.where(live, weights, 0))


def fit_link(family: AbstractFamily, link: Any) -> AbstractLink:
    """The link of a fit: the user's, or the family's own; refuses links that the family cannot use."""
    chosen = family.default_link if link is None else as_link(link)
    if family.links and chosen.name not in family.links:
        raise ModelSpecError(
            f"link={chosen.name!r} cannot be used with family {family.name!r}; use one of "
            f"{', '.join(family.links)}."
        )
    return chosen
