"""Roots of increasing functions: exact, few calls, ends of the bracket."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose
from scipy import stats

from jaxnlme.numerics.roots import increasing_root


def test_quantiles_in_few_calls() -> None:
    levels, calls = np.array([1e-6, 0.3, 0.5, 0.999]), []

    def excess(x: np.ndarray) -> np.ndarray:
        calls.append(1)
        return stats.gamma.cdf(x, 0.7) - levels

    found = increasing_root(excess, np.zeros(4), np.full(4, 50.0))
    assert_allclose(found, stats.gamma.ppf(levels, 0.7), rtol=1e-10)
    assert len(calls) < 30  # bisection: 45


def test_ends_of_the_bracket_are_answers() -> None:
    found = increasing_root(lambda x: x - np.array([-1.0, 0.25, 3.0]), np.zeros(3), np.ones(3))
    assert_allclose(found, [0.0, 0.25, 1.0], rtol=1e-12)


def test_a_jump_is_found_where_it_is() -> None:
    found = increasing_root(lambda x: np.where(x < 0.3, -1.0, 1.0), np.zeros(2), np.ones(2))
    assert_allclose(found, 0.3, rtol=1e-10)
