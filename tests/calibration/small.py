"""A small problem that many tests share, so that its programs are compiled once."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnlme.calibration import EnsembleSampler, ModelRunner, Normal, ParameterSet, Target, Uniform

TIMES = np.arange(6.0)
VALUES = np.array([1.1, 2.9, 5.2, 6.8, 9.1, 11.2])


def line(params: dict[str, Any]) -> dict[str, Any]:
    return {"y": params["a"] + params["b"] * jnp.asarray(TIMES)}


def parameters() -> ParameterSet:
    return ParameterSet({"a": Normal(0.0, 5.0), "b": Uniform(-10.0, 10.0)})


def target(values: np.ndarray = VALUES) -> Target:
    return Target().add_variable("y", TIMES, values, 0.5)


def sampler(**options: Any) -> EnsembleSampler:
    options.setdefault("n_walkers", 8)
    return EnsembleSampler(parameters(), target(), ModelRunner(line, times=TIMES), **options)


def exact() -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and covariance; the uniform prior of b has no bearing."""
    X = np.column_stack([np.ones(6), TIMES])
    precision = X.T @ X / 0.25 + np.diag([1 / 25, 0])
    covariance = np.linalg.inv(precision)
    return covariance @ X.T @ VALUES / 0.25, covariance
