"""Designs of the R references, rebuilt from their coefficient names."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from helpers import data


def case_of(cases: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in cases["cases"] if c["id"] == name)


def frame_of(case: dict[str, Any]):
    """The data that R used: the rows without missing values of the columns in the formula."""
    frame = data("glm/" + case["data"].partition("[")[0])
    if case.get("subset"):
        frame = frame.query(case["subset"]).reset_index(drop=True)
    words = re.findall(r"[A-Za-z_][A-Za-z_.0-9]*", case["formula"])
    used = [c for c in frame.columns if c in words]
    return frame.dropna(subset=used).reset_index(drop=True)


def column(frame, text: str) -> np.ndarray:
    """A number column, ``log(x)`` or ``I(x + 0.5)``."""
    if text in frame.columns:
        return frame[text].to_numpy(float)
    inner = text[2:-1] if text.startswith("I(") else text
    names = {c: frame[c].to_numpy() for c in frame.columns if str(c) in inner}
    return eval(inner, {"__builtins__": {}, "log": np.log}, names)


def design(frame, names: list[str], levels: dict[str, list[str]]) -> np.ndarray:
    """Columns for treatment-coded coefficient names such as ``EthN`` or ``woolB:tensionM``."""

    def part(text: str) -> np.ndarray:
        for factor in frame.columns:
            rest = text.removeprefix(factor)
            if factor in levels and text.startswith(factor) and rest in levels[factor]:
                return (frame[factor].astype(str) == rest).to_numpy(float)
        return column(frame, text)

    columns = []
    for name in names:
        parts = [] if name == "(Intercept)" else name.split(":")
        columns.append(np.prod([np.ones(len(frame)), *map(part, parts)], axis=0))
    return np.stack(columns, axis=1)


def response(frame, formula: str) -> np.ndarray:
    left = formula.partition("~")[0].strip()
    if left.startswith("cbind("):
        return np.stack([column(frame, t.strip()) for t in left[6:-1].split(",", 1)], axis=1)
    return column(frame, left)
