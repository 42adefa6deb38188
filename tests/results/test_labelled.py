"""Labelled vectors and matrices compute like arrays and keep their labels where these fit."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from jaxnlme import ModelSpecError
from jaxnlme.results.labelled import LabelledMatrix, LabelledVector

A, B = np.array([1.0, 4.0, -2.0]), np.array([0.5, 2.0, 8.0])
NAMES = ["(Intercept)", "wt", "a:b"]


@pytest.fixture
def p() -> LabelledVector:
    return LabelledVector(A, NAMES)


@pytest.fixture
def q() -> LabelledVector:
    return LabelledVector(B, NAMES)


def same(found: object, expected: np.ndarray) -> None:
    assert isinstance(found, LabelledVector)
    assert found.index == NAMES
    assert np.array_equal(found.values, expected)


def test_arithmetic_keeps_the_labels(p: LabelledVector, q: LabelledVector) -> None:
    same(p * 2, A * 2)
    same(2 - p, 2 - A)
    same(p / q, A / B)
    same(-p, -A)
    same(abs(p), np.abs(A))
    same(p**2, A**2)
    same(p + B, A + B)
    same(B + p, A + B)
    same(np.exp(p), np.exp(A))
    same(np.maximum(p, 0), np.maximum(A, 0))
    same(np.divmod(p, 2)[1], A % 2)
    same(p.round(0), A.round(0))
    assert np.isclose(p["wt"] / q["wt"], 2.0)


def test_comparisons_are_masks(p: LabelledVector, q: LabelledVector) -> None:
    mask = p > q
    same(mask, A > B)
    assert mask["wt"] is True
    assert mask.dtype == bool
    assert repr(mask).splitlines()[1] == "wt           True"
    assert p[mask].index == ["(Intercept)", "wt"]
    assert p[A < 0].to_dict() == {"a:b": -2.0}
    assert np.array_equal((p == A).values, [True] * 3)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(p == q)


def test_parts(p: LabelledVector) -> None:
    assert p[["wt", "(Intercept)"]].to_dict() == {"wt": 4.0, "(Intercept)": 1.0}
    assert p[1:].index == ["wt", "a:b"]
    assert p[-1] == -2.0
    assert isinstance(p[0], float)
    assert p[[0, 2]].index == ["(Intercept)", "a:b"]
    assert p[None].shape == (1, 3)  # no labels there: a plain array
    with pytest.raises(KeyError, match="Did you mean 'wt'"):
        p["wtt"]
    with pytest.raises(KeyError, match="'x' is not one of"):
        p[["wt", "x"]]


def test_what_has_no_labels_is_a_plain_array(p: LabelledVector) -> None:
    X = np.arange(9.0).reshape(3, 3)
    assert isinstance(X @ p, np.ndarray)
    assert np.array_equal(X @ p, X @ A)
    assert p @ p == A @ A
    assert np.array_equal(np.outer(p, p), np.outer(A, A))
    assert np.sum(p) == 3.0
    assert np.mean(p) == 1.0
    assert np.array_equal(p * np.ones((3, 1)), A * np.ones((3, 1)))
    assert np.array_equal(np.concatenate([p, p]), np.concatenate([A, A]))
    out = np.zeros(3)
    np.multiply(p, 2, out=out)
    assert np.array_equal(out, 2 * A)
    assert np.array_equal(np.add.reduce(p), A.sum())
    with pytest.raises(ValueError, match="broadcast"):
        p + np.ones(2)


def test_operands_with_other_labels(p: LabelledVector) -> None:
    assert type(p + LabelledVector(B, ["x", "y", "z"])) is np.ndarray
    turned = p[NAMES[::-1]]
    with pytest.raises(ModelSpecError, match="different orders"):
        p - turned
    same(p - turned[p.index], np.zeros(3))


def test_matrices(p: LabelledVector) -> None:
    V = LabelledMatrix(np.diag([1.0, 4.0, 9.0]) + 0.5, NAMES)
    assert isinstance(2 * V, LabelledMatrix)
    assert (2 * V)["wt", "wt"] == 9.0
    assert (V - V).to_frame().to_numpy().max() == 0
    assert isinstance(V["wt"], LabelledVector)
    assert np.array_equal(V @ p, V.values @ A)
    assert p @ V @ p == A @ V.values @ A
    assert np.allclose(np.linalg.inv(V) @ V.values, np.eye(3))
    assert type(V * p) is np.ndarray
    assert np.array_equal(V[0], V.values[0])
    assert len(V) == 3
    assert (V > 4)["wt", "wt"] is True
    assert "True" in repr(V > 4)
    with pytest.raises(ValueError, match="labels"):
        LabelledMatrix(np.ones((2, 3)), ["a", "b"])


def test_values_are_read_only_and_the_callers_array_is_not() -> None:
    mine = np.ones(2)
    p = LabelledVector(mine, ["a", "b"])
    with pytest.raises(ValueError, match="read-only"):
        p.values[0] = 2
    mine[0] = 3.0
    array = np.asarray(p)
    array[1] = 7.0
    assert p["b"] == 1.0


def test_copies_and_pickles(p: LabelledVector) -> None:
    for again in (copy.copy(p), copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        same(again, A)
    assert dict(p.items()) == p.to_dict()
    assert p.keys() == NAMES
    assert "wt" in p
    assert list(p) == A.tolist()
    assert (p.size, p.ndim, len(p)) == (3, 1, 3)
