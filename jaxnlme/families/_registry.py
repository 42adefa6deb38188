"""Names of families as users spell them. (Written by the lead as a start; FAM completes it.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme.families._base import AbstractFamily
from jaxnlme.families.gaussian import Gaussian
from jaxnlme.families.poisson import Poisson

FAMILIES: dict[str, Callable[[], AbstractFamily]] = {"gaussian": Gaussian, "poisson": Poisson}
_ALIASES: dict[str, str] = {}


def as_family(family: Any) -> AbstractFamily:
    """Return a family object from its name or itself.

    Raises
    ------
    ModelSpecError
        Neither a known name nor a family.

    Examples
    --------
    >>> as_family("poisson").name
    'poisson'
    """
    if isinstance(family, str):
        name = _ALIASES.get(family, family)
        if name in FAMILIES:
            return FAMILIES[name]()
        raise ModelSpecError(
            f"family={family!r} is not a family. Families: {', '.join(FAMILIES)}; objects are in "
            f"jn.families.{nearest(family, [*FAMILIES, *_ALIASES])}"
        )
    if isinstance(family, AbstractFamily):
        return family
    raise ModelSpecError(
        f"family: expected a name or a jn.families object, found {family!r}."
    )
