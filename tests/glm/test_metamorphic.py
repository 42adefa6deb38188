"""Relations that hold between fits of related data, whatever the numbers (Luu et al. 2021)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxnlme as jn

# gamma with the log link is not canonical: observed and expected information differ there
LINKS = {"gaussian": "identity", "poisson": "log", "gamma": "log", "binomial": "logit"}
FORMULA = "y ~ x + z + g"
N = 44  # with up to 20 rows more or less all data share the bucket of 64 rows: one program per family
# Two fits of one optimum stop at different points of the quadratic phase: the squared step is below 1e-16 of the
# objective before the last step is added.
CLOSE: dict[str, float] = {"rtol": 1e-7, "atol": 1e-9}

every_family = pytest.mark.parametrize("family", list(LINKS))
few = settings(max_examples=4, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 10**6)


def simulate(family: str, seed: int, n: int = N) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    x, z, o = draw.normal(size=(3, n)) * [[0.5], [1.0], [0.2]]
    code = draw.permutation(np.arange(n) % 3)
    eta = 0.6 + 0.5 * x - 0.3 * z + np.array([0.0, 0.4, -0.4])[code] + o
    w = draw.integers(1, 4, n).astype(float)
    mean = {"gaussian": eta, "binomial": 1 / (1 + np.exp(-eta))}.get(family, np.exp(eta))
    y = {
        "gaussian": lambda: mean + draw.normal(size=n),
        "poisson": lambda: draw.poisson(mean).astype(float),
        "gamma": lambda: draw.gamma(2.0, mean / 2.0),
        "binomial": lambda: (draw.random(n) < mean).astype(float),
    }[family]()
    return {"y": y, "x": x, "z": z, "g": np.array(["a", "b", "c"])[code], "w": w, "o": o}


def fit(family: str, data: Any, formula: str = FORMULA, **options: Any) -> Any:
    options = {"weights": "w", "offset": "o", **options}
    return jn.fit_glm(formula, data, family=family, link=LINKS[family], **options)


def rows(data: dict, order: Any) -> dict:
    return {name: values[order] for name, values in data.items()}


def same(
    one: Any, two: Any, *, order: Any = slice(None), what: str = "params bse deviance llf"
) -> None:
    for name in what.split():
        a, b = np.asarray(getattr(one, name)), np.asarray(getattr(two, name))
        np.testing.assert_allclose(a[order] if a.ndim else a, b, **CLOSE, err_msg=name)


@every_family
@few
@given(seed=seeds)
def test_row_order(family: str, seed: int) -> None:
    data = simulate(family, seed)
    order = np.random.default_rng(seed + 1).permutation(N)
    one, two = fit(family, data), fit(family, rows(data, order))
    same(one, two)
    same(one, two, order=order, what="fittedvalues")


@every_family
@few
@given(seed=seeds)
def test_repeated_rows_are_weights(family: str, seed: int) -> None:
    data = simulate(family, seed)
    repeats = np.where(np.arange(N) % 3 == 0, 2, 1)
    one = fit(family, rows(data, np.repeat(np.arange(N), repeats)))
    two = fit(family, {**data, "w": data["w"] * repeats})
    # a prior weight is no count: a dispersion divides by the number of rows, so the errors differ there
    same(one, two, what="params deviance")
    if family in ("poisson", "binomial"):
        same(one, two, what="bse")
    else:
        ratio = np.sqrt(one.dispersion / two.dispersion)
        np.testing.assert_allclose(np.asarray(one.bse) / np.asarray(two.bse), ratio, rtol=1e-7)


@every_family
@few
@given(seed=seeds)
def test_weight_zero_is_deletion(family: str, seed: int) -> None:
    data = simulate(family, seed)
    kept = np.arange(N) % 5 != 0
    one = fit(family, {**data, "w": np.where(kept, data["w"], 0.0)})
    two = fit(family, rows(data, kept))
    same(one, two)
    assert (one.df_resid, one.df_model) == (two.df_resid, two.df_model)


@every_family
@pytest.mark.parametrize(("shift", "scale"), [(-3.0, 2.0), (0.0, -1e4), (1e3, 1e-3), (1e6, 1.0)])
def test_affine_columns(family: str, shift: float, scale: float) -> None:
    seed = 7
    data = simulate(family, seed)
    one, two = fit(family, data), fit(family, {**data, "x": shift + scale * data["x"]})
    np.testing.assert_allclose(one.params["x"], scale * two.params["x"], **CLOSE)
    # the information squares the condition number, up to 1e12 here where columns stay as they are
    np.testing.assert_allclose(one.bse["x"], abs(scale) * two.bse["x"], rtol=1e-6)
    intercept = two.params["(Intercept)"] + shift * two.params["x"]
    np.testing.assert_allclose(one.params["(Intercept)"], intercept, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(one.params["z"], two.params["z"], **CLOSE)
    same(one, two, what="deviance fittedvalues llf")


@pytest.mark.parametrize("family", ["gaussian", "gamma"])
@few
@given(seed=seeds, scale=st.sampled_from([1e-6, 7.0, 1e5]))
def test_units_of_the_response(family: str, seed: int, scale: float) -> None:
    data = simulate(family, seed)
    if family == "gaussian":
        data["o"] = np.zeros(N)
    one, two = fit(family, data), fit(family, {**data, "y": scale * data["y"]})
    a, b = np.asarray(one.params), np.asarray(two.params)
    if family == "gaussian":
        np.testing.assert_allclose(scale * a, b, rtol=1e-7)
        np.testing.assert_allclose(one.deviance * scale**2, two.deviance, rtol=1e-10)
    else:
        a[0] += np.log(scale)
        np.testing.assert_allclose(a, b, **CLOSE)
        same(one, two, what="bse deviance")
    # the density of y in other units: log(scale) per row; R's gamma multiplies each row by its weight
    count = N if family == "gaussian" else data["w"].sum()
    np.testing.assert_allclose(one.llf - count * np.log(scale), two.llf, rtol=1e-9)


@every_family
@few
@given(seed=seeds, shift=st.sampled_from([-2.0, 0.3, 5.0]))
def test_shifted_offset(family: str, seed: int, shift: float) -> None:
    data = simulate(family, seed)
    one, two = fit(family, data), fit(family, {**data, "o": data["o"] + shift})
    moved = np.asarray(one.params).copy()
    moved[0] -= shift
    np.testing.assert_allclose(moved, two.params, **CLOSE)
    same(one, two, what="bse deviance fittedvalues")


@every_family
@few
@given(seed=seeds)
def test_names_and_order_of_levels(family: str, seed: int) -> None:
    data = simulate(family, seed)
    renamed = {"a": "p", "b": "q", "c": "r"}
    one = fit(family, data)
    two = fit(family, {**data, "g": np.array([renamed[v] for v in data["g"]])})
    same(one, two)
    assert list(two.params.index) == ["(Intercept)", "x", "z", "gq", "gr"]
    turned = fit(family, data, "y ~ x + z + C(g, contr.treatment, base='c')")
    same(one, turned, what="deviance llf fittedvalues")
    levels = one.params["(Intercept)"] + one.params["gc"], -one.params["gc"]
    np.testing.assert_allclose(np.asarray(turned.params)[[0, 3]], levels, **CLOSE)


@every_family
@few
@given(seed=seeds)
def test_order_of_columns(family: str, seed: int) -> None:
    data = simulate(family, seed)
    one, two = fit(family, data), fit(family, data, "y ~ g + z + x")
    same(one, two, order=np.array([0, 3, 4, 2, 1]), what="params bse")
    same(one, two, what="deviance llf fittedvalues")


@every_family
def test_kinds_of_frames_and_arrays(family: str) -> None:
    data = simulate(family, 5)
    one = fit(family, data)
    frames = [pd.DataFrame(data, index=np.zeros(N, int)), pl.DataFrame(data), pa.table(data)]
    category = pd.DataFrame(data).assign(g=pd.Categorical(data["g"]))
    for frame in [*frames, category]:
        two = fit(family, frame)
        for name in ("params", "bse", "fittedvalues"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    X = np.column_stack([data["x"], data["z"], data["g"] == "b", data["g"] == "c"])
    for matrix in (X, pd.DataFrame(X), X.tolist()):
        arrays = jn.fit_glm(
            matrix,
            data["y"],
            family=family,
            link=LINKS[family],
            weights=data["w"],
            offset=data["o"],
        )
        # another path to the same numbers, not another fit
        np.testing.assert_allclose(arrays.params, np.asarray(one.params), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(arrays.bse, np.asarray(one.bse), rtol=1e-12)


@pytest.mark.parametrize(
    ("family", "size"), [*((family, 64) for family in LINKS), ("poisson", 512)]
)
def test_padding(family: str, size: int) -> None:
    """A fit just above a shape bucket is that of the rows just below and one row of weight 0."""
    data = simulate(family, 11, size + 1)
    one = fit(family, {**data, "w": np.r_[data["w"][:-1], 0.0]})
    two = fit(family, rows(data, slice(size)))
    same(one, two)


def test_other_spellings_of_one_model() -> None:
    data = simulate("poisson", 2)
    one = fit("poisson", data)
    only = {name: data[name] for name in ("y", "x", "z", "g")}
    weights = {"weights": data["w"], "offset": data["o"]}
    spellings = [
        ("y ~ .", only, weights),
        ("y ~ (x + z + g)^2 - x:z - x:g - z:g", data, {}),
        ("y ~ x + z + g + offset(o)", data, {"offset": None}),
        ("`y` ~ 1 + I(x^1) + z + factor(g)", data, {}),
        ("y ~ 0 + g + x + z", data, {}),
        ("y ~ g %in% g + x + z - 1", data, {}),
    ]
    for text, frame, options in spellings:
        two = fit("poisson", frame, text, **options)
        np.testing.assert_allclose(one.fittedvalues, two.fittedvalues, rtol=1e-10, err_msg=text)
        assert two.df_resid == one.df_resid, text
    terms = {"x": {"type": "linear"}, "z": {}, "g": {"type": "categorical"}}
    written = jn.fit_glm(
        terms=terms, response="y", data=data, family="poisson", weights="w", offset="o"
    )
    np.testing.assert_array_equal(one.params, written.params)
    assert list(written.params.index)[-1] == "C(g)c"


# The pure layer


def problem(family: str, seed: int = 0) -> tuple[np.ndarray, ...]:
    data = simulate(family, seed)
    X = np.column_stack([np.ones(N), data["x"], data["z"], data["g"] == "b"])
    return X, data["y"], data["w"], data["o"]


@functools.cache
def solver(family: str) -> Any:
    def params(X, y, w, o):
        return jn.glm.fit(jn.glm.GLMProblem(X, y, w, o, family=family, link=LINKS[family])).params

    return params, jax.jit(params), jax.jit(jax.vmap(params))


@pytest.mark.x64
@pytest.mark.parametrize("family", ["poisson", "gamma"])
def test_a_batch_of_copies_is_the_single_fit(family: str) -> None:
    _, single, batch = solver(family)
    one = problem(family, 1)
    two = problem(family, 2)
    both = batch(*(np.stack([a, b, a]) for a, b in zip(one, two, strict=True)))
    np.testing.assert_array_equal(both[0], both[2])
    # lanes of a batch sum in another order
    np.testing.assert_allclose(both[0], single(*one), rtol=1e-10)
    np.testing.assert_allclose(both[1], single(*two), rtol=1e-10)


@pytest.mark.x64
@pytest.mark.parametrize("family", ["poisson", "gamma", "binomial"])
def test_gradients_through_a_fit(family: str) -> None:
    params, single, _ = solver(family)
    arrays = problem(family, 3)
    draw = np.random.default_rng(4)
    head = draw.normal(size=4)
    gradients = jax.jit(jax.grad(lambda *a: params(*a) @ head, (0, 1, 2, 3)))(*arrays)
    for k, (gradient, name) in enumerate(
        zip(gradients, ("X", "y", "weights", "offset"), strict=True)
    ):
        direction = draw.normal(size=arrays[k].shape)
        h = 1e-4  # truncation h**2, rounding 1e-12 / h: both near 1e-8
        moved = [[*arrays[:k], arrays[k] + s * h * direction, *arrays[k + 1 :]] for s in (1, -1)]
        difference = (single(*moved[0]) - single(*moved[1])) @ head / (2 * h)
        np.testing.assert_allclose(
            np.sum(np.asarray(gradient) * direction), difference, rtol=1e-5, atol=1e-7, err_msg=name
        )
