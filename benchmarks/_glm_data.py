"""Simulated claim counts in the shape of a motor portfolio; no row of a real data set.

678,012 rows, 28 design columns (6 numeric, 1 + 5 + 10 + 6 dummies) and the constant; about 5 % of the
rows have a claim. The draws are fixed by the seed: the mean Poisson objective at the optimum is
0.210520817340971.
"""

from __future__ import annotations

import functools

import numpy as np

AREAS, BRANDS, REGIONS = 6, 11, 7
NUMERIC = ("VehPower", "VehAge", "DrivAge", "DrivAge2", "BonusMalus", "LogDensity")
FACTORS = {"VehGas": 2, "Area": AREAS, "VehBrand": BRANDS, "Region": REGIONS}
SHARE_BRAND = (0.24, 0.236, 0.08, 0.037, 0.051, 0.042, 0.022, 0.047, 0.196, 0.026, 0.023)
SHARE_REGION = (0.35, 0.2, 0.14, 0.11, 0.09, 0.06, 0.05)
OPTIMUM = 0.210520817340971


@functools.cache
def portfolio(n: int = 678_012, seed: int = 20240229) -> dict[str, np.ndarray]:
    """Return columns, the response ``y`` and ``Exposure``."""
    draw = np.random.Generator(np.random.PCG64(seed))
    power = draw.integers(4, 13, n).astype(float)
    vehicle = np.minimum(draw.gamma(1.6, 4.4, n).round(), 40.0)
    driver = np.clip(draw.normal(45, 14, n).round(), 18, 90)
    bonus = np.where(
        draw.random(n) < 0.57, 50.0, np.clip(50 + draw.gamma(1.2, 22, n).round(), 50, 230)
    )
    density = np.clip(draw.normal(5.9, 1.9, n), 0, 10.2).round(3)
    gas = draw.integers(0, 2, n)
    area = np.clip((density / 10.3 * AREAS).astype(int), 0, AREAS - 1)
    brand = draw.choice(BRANDS, n, p=np.array(SHARE_BRAND))
    region = draw.choice(REGIONS, n, p=np.array(SHARE_REGION))
    exposure = np.where(draw.random(n) < 0.25, 1.0, draw.beta(0.9, 1.5, n))
    exposure = exposure.clip(0.003, 1.0).round(4)
    of_brand, of_region = draw.normal(0, 0.12, BRANDS), draw.normal(0, 0.1, REGIONS)
    of_area = np.linspace(-0.1, 0.25, AREAS)
    squared = (driver - 45) ** 2 / 100
    eta = (-4.0 + 0.02 * power - 0.03 * vehicle - 0.004 * driver + 0.025 * squared + 0.023 * bonus
           + 0.06 * density + 0.06 * gas + of_brand[brand] + of_region[region] + of_area[area])  # fmt: skip
    y = draw.poisson(exposure * np.exp(eta)).astype(float)
    return {
        "VehPower": power, "VehAge": vehicle, "DrivAge": driver, "DrivAge2": squared,
        "BonusMalus": bonus, "LogDensity": density, "VehGas": gas, "Area": area, "VehBrand": brand,
        "Region": region, "Exposure": exposure, "y": y,
    }  # fmt: skip


def design(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Return the dense design (n, 29), the constant first, row-major."""
    n = len(columns["y"])
    parts = [np.ones(n), *(columns[name] for name in NUMERIC)]
    for name, levels in FACTORS.items():
        parts += [(columns[name] == level).astype(float) for level in range(1, levels)]
    return np.ascontiguousarray(np.column_stack(parts))


def frame(columns: dict[str, np.ndarray], kind: str = "polars"):
    """Return a frame with the factors as categories."""
    labelled = {
        name: np.char.add(f"{name[0]}", np.char.zfill(columns[name].astype(str), 2))
        for name in FACTORS
    }
    if kind == "polars":
        import polars as pl

        plain = {k: v for k, v in columns.items() if k not in FACTORS}
        factors = {k: pl.Series(v).cast(pl.Categorical) for k, v in labelled.items()}
        return pl.DataFrame({**plain, **factors})
    import pandas as pd

    return pd.DataFrame({**columns, **{k: pd.Categorical(v) for k, v in labelled.items()}})


def formula() -> str:
    """Return the formula of the frame."""
    return "y ~ " + " + ".join([*NUMERIC, *FACTORS])


def overdispersed(n: int = 100_000) -> tuple[np.ndarray, np.ndarray]:
    """First rows of the portfolio, standardised, with a negative binomial response of theta 1.4.

    The rule: ``mu = exp(0.3 + 0.1 * sum of the first six standardised columns)``, the counts Poisson of
    ``mu`` times a gamma variate of shape and rate 1.4; seed 7.
    """
    X, mu, draw = _standardised(n)
    return X, draw.poisson(mu * draw.gamma(1.4, 1 / 1.4, n)).astype(float)


def severities(n: int = 100_000) -> tuple[np.ndarray, np.ndarray]:
    """The same rows with a gamma response of shape 2: ``y = mu * gamma(2, 1/2)``; seed 7."""
    X, mu, draw = _standardised(n)
    return X, mu * draw.gamma(2.0, 0.5, n)


def _standardised(n: int):
    X = design(portfolio())[:n].copy()
    X[:, 1:] = (X[:, 1:] - X[:, 1:].mean(0)) / X[:, 1:].std(0)
    mu = np.exp(0.3 + 0.1 * X[:, 1:7].sum(1))
    return np.ascontiguousarray(X), mu, np.random.default_rng(7)
