"""Cases of tests/reference/glm as calls of ``jn.fit_glm``. Import as ``from glm_cases import ...``."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from helpers import REFERENCE, reference

FAMILIES = {
    "Gamma": "gamma", "inverse.gaussian": "inverse_gaussian", "quasipoisson": "quasi_poisson",
    "quasibinomial": "quasi_binomial",
}  # fmt: skip


def cases(name: str) -> list[dict[str, Any]]:
    """The cases of one reference file."""
    return reference("glm", name)["cases"]


def ids(name: str) -> list[str]:
    """Their names, for parametrised tests."""
    return [case["id"] for case in cases(name)]


def case(name: str, key: str) -> dict[str, Any]:
    """One case by its id."""
    return next(c for c in cases(name) if c["id"] == key)


@functools.cache
def _csv(name: str) -> Any:
    import pandas as pd

    return pd.read_csv(REFERENCE / "data" / "glm" / f"{name}.csv")


def frame(case: dict[str, Any]) -> Any:
    """The data with factors in R's level order; ``subset`` and ``[Claims>0]`` are applied."""
    import pandas as pd

    name, _, condition = case["data"].partition("[")
    data = _csv(name).copy()
    if case["id"] == "gaussian_duplicate_column":
        data["wt2"] = 2 * data["wt"] + 1  # the case's note
    condition = condition.rstrip("]") or case.get("subset") or ""
    if condition:
        data = data.query(condition).reset_index(drop=True)
    for column, levels in case.get("factor_levels", {}).items():
        if column in data:
            data[column] = pd.Categorical(data[column].astype(str), categories=levels)
    for role in ("weights", "offset"):
        if isinstance(case.get(role), list):
            data[f".{role}"] = case[role]
    return data


def formula(case: dict[str, Any]) -> str:
    """The formula with the case's contrasts written out where they are not treatment contrasts."""
    text = case["formula"]
    for column, kind in case.get("contrasts", {}).items():
        if kind != "contr.treatment":
            text = re.sub(rf"(?<![\w.]){re.escape(column)}(?![\w.(])", f"C({column}, {kind})", text)
    return text


def labels(case: dict[str, Any], names: list[str]) -> list[str]:
    """R's coefficient names with the contrasts of ``formula`` written out."""
    out = []
    for name in names:
        for column, kind in case.get("contrasts", {}).items():
            if kind != "contr.treatment":
                name = re.sub(rf"(?<![\w.]){re.escape(column)}", f"C({column}, {kind})", name)
        out.append(name)
    return out


def options(case: dict[str, Any]) -> dict[str, Any]:
    """Family, link, weights and offset of a case."""
    import jaxnlme as jn

    family, link = case.get("family"), case.get("link")
    found: dict[str, Any] = {"family": FAMILIES.get(str(family), family), "link": link}
    if family == "quasi":
        found["family"] = jn.families.Quasi(variance=case.get("variance") or _variance(case["id"]))
    if "var_power" in case:
        power = case["link_power"]
        found["family"] = jn.families.Tweedie(power=case["var_power"])
        found["link"] = "log" if power == 0 else jn.links.Power(power)
    if isinstance(found["link"], str) and found["link"].startswith("mu^"):
        found["link"] = jn.links.Power(
            1 / 3 if found["link"] == "mu^0.333" else float(found["link"][3:])
        )
    for role in ("weights", "offset"):
        if isinstance(case.get(role), list):
            found[role] = f".{role}"
    return found


def _variance(key: str) -> str:
    return "mu^2" if "mu2" in key else "mu(1-mu)" if "binvar" in key else "mu"


@functools.cache
def fitted(name: str, key: str) -> Any:
    """The fit of a case by the door, once per run."""
    import jaxnlme as jn

    chosen = case(name, key)
    return jn.fit_glm(formula(chosen), frame(chosen), **options(chosen))


def numbers(values: Any) -> np.ndarray:
    """R's vector with null for NA."""
    return np.atleast_1d(
        np.array([np.nan if v is None else v for v in np.atleast_1d(values)], float)
    )
