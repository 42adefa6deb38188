"""Model formulas as callables: values, identity under jit, start values, clear refusals."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import data
from jaxnlme._errors import FormulaError, ModelSpecError
from jaxnlme.design.frames import read_frame
from jaxnlme.design.model_formula import FormulaModel

PARAMETERS = ("lKe", "lKa", "lCl")
FOL = FormulaModel("conc ~ SSfol(Dose, Time, lKe, lKa, lCl)", PARAMETERS)
TRACES = {"count": 0}


@jax.jit
def _plain(params: dict, x: dict) -> jax.Array:
    return FOL(params, x)


def _count_traces(model: FormulaModel, value: jax.Array) -> jax.Array:
    TRACES["count"] += 1
    return model({"a": value}, {"t": value})


_counted = jax.jit(_count_traces, static_argnums=0)


@pytest.mark.x64
def test_one_row_many_rows_and_vmap_agree() -> None:
    params = {"lKe": -2.5, "lKa": 0.4, "lCl": -3.2}
    x = {"Dose": jnp.array([4.0, 5.0]), "Time": jnp.array([1.0, 0.0])}
    rows = jax.vmap(FOL, in_axes=(None, 0))(params, x)
    np.testing.assert_allclose(FOL(params, x), rows, rtol=1e-15)
    one = _plain(params, {"Dose": 4.0, "Time": 1.0})
    assert one.shape == ()
    assert float(one) == pytest.approx(float(rows[0]), rel=1e-14)
    assert float(rows[1]) == 0.0


def test_equal_models_are_one_static_argument() -> None:
    first = FormulaModel("y ~ exp(-a * t)", ["a"])
    second = FormulaModel("exp(-a*t)", ("a",), ["t"])
    assert first == second
    assert hash(first) == hash(second)
    assert first != FormulaModel("exp(-a*t)*1", ["a"])
    before = TRACES["count"]
    _counted(first, jnp.float32(1.0))
    _counted(second, jnp.float32(2.0))
    assert TRACES["count"] == before + 1


def test_models_copy_pickle_and_stay_as_they_are() -> None:
    for other in (copy.deepcopy(FOL), pickle.loads(pickle.dumps(FOL))):
        assert other == FOL
    with pytest.raises(AttributeError, match="cannot be changed"):
        FOL.parameters = ()  # type: ignore[misc]
    assert "SSfol" in repr(FOL)
    assert FOL.text == "SSfol(Dose, Time, lKe, lKa, lCl)"
    assert FOL.predictors == ("Dose", "Time")


@pytest.mark.x64
def test_models_that_differ_in_a_last_digit_are_two() -> None:
    fine, rounded = (
        FormulaModel(f"{v} * a * x", ["a"]) for v in ("0.12345678901234567", "0.123456789012346")
    )
    assert fine.text == rounded.text  # 15 digits, as R prints it
    assert fine != rounded
    again = pickle.loads(pickle.dumps(fine))
    assert again == fine
    assert float(again({"a": 1.0}, {"x": 1.0})) == 0.12345678901234567


@pytest.mark.x64
def test_named_arguments_and_other_functions() -> None:
    named = FormulaModel("SSlogis(log(conc), scal=s, xmid=m, Asym=A)", ["A", "m", "s"])
    value = named({"A": 2.0, "m": 0.0, "s": 1.0}, {"conc": 1.0})
    assert float(value) == 1.0
    wave = FormulaModel("A + B*sin(2*pi*w*Time)", ["A", "B", "w"])
    assert float(wave({"A": 1.0, "B": 2.0, "w": 1.0}, {"Time": 0.25})) == pytest.approx(3.0)


def test_unknown_names_are_named() -> None:
    with pytest.raises(FormulaError, match=r"'lka' in the model.*'lKa'"):
        FormulaModel("Dose*exp(-lka)", ["lKa"], ["Dose"])
    with pytest.raises(ModelSpecError, match="'k' does not appear"):
        FormulaModel("exp(-a*t)", ["a", "k"])
    with pytest.raises(ModelSpecError, match="both a parameter and a data column"):
        FormulaModel("a*t", ["a"], ["t", "a"])
    with pytest.raises(FormulaError, match=r"SSlogis takes 4 arguments \(input, Asym"):
        FormulaModel("SSlogis(t, a)", ["a"])
    with pytest.raises(FormulaError, match="not allowed"):
        FormulaModel("os.system(a)", ["a"])


def test_self_starting_models_of_later() -> None:
    with pytest.raises(ModelSpecError, match="SSfpl comes later"):
        FormulaModel("SSfpl(x, A, B, xmid, scal)", ["A", "B", "xmid", "scal"])


def test_factor_columns_are_refused() -> None:
    model = FormulaModel("a * Type", ["a"])
    with pytest.raises(FormulaError, match=r"'Type' is a factor.*fixed='Asym ~ Type'"):
        model.columns(read_frame({"Type": ["u", "v"]}))
    with pytest.raises(FormulaError, match="'Type' is a factor"):
        model({"a": 1.0}, {"Type": "u"})
    columns = model.columns(read_frame({"Type": [1, 2]}))
    np.testing.assert_array_equal(columns["Type"], [1.0, 2.0])


def test_functions_of_all_rows_are_refused_in_a_model() -> None:
    with pytest.raises(FormulaError, match="pmax"):
        FormulaModel("a * max(t)", ["a"])({"a": 1.0}, {"t": 1.0})


def test_start_values_come_under_the_users_names() -> None:
    frame = data("dnase")
    x = {"conc": frame["conc"].to_numpy()}
    model = FormulaModel("density ~ SSlogis(log(conc), A, mid, s)", ["s", "A", "mid"])
    assert model.selfstart == "SSlogis"
    start = model.initial(x, frame["density"].to_numpy())
    # the pooled nls() fit of R to three digits
    assert start == pytest.approx({"A": 2.485, "mid": 1.518, "s": 1.098}, abs=1e-3)


def test_a_plain_expression_has_no_start() -> None:
    for text in ("a*exp(-k*t)", "SSlogis(t, a, k, 1)", "2*SSlogis(t, a, k, s)"):
        model = FormulaModel(text, ["a", "k", "s"] if " s)" in text else ["a", "k"])
        assert model.selfstart is None
        with pytest.raises(ModelSpecError, match="start="):
            model.initial({"t": np.arange(3.0)}, np.arange(3.0))
