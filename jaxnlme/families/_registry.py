"""Names of families as users spell them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme.families._base import AbstractFamily
from jaxnlme.families.beta import Beta
from jaxnlme.families.beta_binomial import BetaBinomial
from jaxnlme.families.binomial import Binomial
from jaxnlme.families.gamma import Gamma
from jaxnlme.families.gaussian import Gaussian
from jaxnlme.families.inverse_gaussian import InverseGaussian
from jaxnlme.families.lognormal import LogNormal
from jaxnlme.families.multinomial import Multinomial
from jaxnlme.families.negative_binomial import NegativeBinomial, NegativeBinomial1
from jaxnlme.families.ordinal import Ordinal
from jaxnlme.families.poisson import Poisson
from jaxnlme.families.quasi import Quasi, QuasiBinomial, QuasiPoisson
from jaxnlme.families.student_t import StudentT
from jaxnlme.families.tweedie import Tweedie

FAMILIES: dict[str, Callable[[], AbstractFamily]] = {
    "gaussian": Gaussian,
    "poisson": Poisson,
    "binomial": Binomial,
    "gamma": Gamma,
    "inverse_gaussian": InverseGaussian,
    "tweedie": Tweedie,
    "negative_binomial": NegativeBinomial,
    "negative_binomial1": NegativeBinomial1,
    "beta": Beta,
    "beta_binomial": BetaBinomial,
    "lognormal": LogNormal,
    "student_t": StudentT,
    "multinomial": Multinomial,
    "ordinal": Ordinal,
    "quasi": Quasi,
    "quasi_poisson": QuasiPoisson,
    "quasi_binomial": QuasiBinomial,
}
_ALIASES = {
    "normal": "gaussian",
    "bernoulli": "binomial",
    "inversegaussian": "inverse_gaussian",
    "wald": "inverse_gaussian",
    "negbinomial": "negative_binomial",
    "negativebinomial": "negative_binomial",
    "nb": "negative_binomial",
    "nb1": "negative_binomial1",
    "nb2": "negative_binomial",
    "quasipoisson": "quasi_poisson",
    "quasibinomial": "quasi_binomial",
    "betabinomial": "beta_binomial",
    "log_normal": "lognormal",
    "studentt": "student_t",
    "t": "student_t",
}


def as_family(family: Any) -> AbstractFamily:
    """Return a family object from its name or itself; names in any case, with ``_``, ``.`` or neither.

    Raises
    ------
    ModelSpecError
        Neither a known name nor a family.

    Examples
    --------
    >>> as_family("poisson").name
    'poisson'
    >>> as_family("quasipoisson").name
    'quasi_poisson'
    """
    if isinstance(family, AbstractFamily):
        return family
    if isinstance(family, str):
        spelled = family.strip().lower().replace(".", "_").replace("-", "_").replace(" ", "_")
        name = _ALIASES.get(spelled, spelled)
        if name in FAMILIES:
            return FAMILIES[name]()
        raise ModelSpecError(
            f"family={family!r} is not a family. Families: {', '.join(FAMILIES)}; ZeroInflated, Hurdle, Censored, "
            f"Truncated and custom are in jn.families.{nearest(family, [*FAMILIES, *_ALIASES])}"
        )
    label = getattr(family, "__name__", None)
    hint = f" Call it: {label}()." if callable(family) and label else ""
    raise ModelSpecError(
        f"family: expected a name or a jn.families object, found {family!r}.{hint}"
    )
