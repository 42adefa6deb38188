"""Self-starting models: closed forms, derivatives at the limits, start values from data."""

from __future__ import annotations

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from helpers import reference
from jaxnlme._errors import ModelSpecError
from jaxnlme.structural import selfstart
from jaxnlme.structural.selfstart import SSasymp, SSbiexp, SSfol, SSlogis, initial

TIMES = np.array([0.0, 0.25, 1.0, 3.5, 24.0])


@pytest.mark.x64
def test_values_against_the_closed_forms() -> None:
    t = TIMES
    ke, ka, cl = np.exp([-2.5, 0.4, -3.2])
    fol = 4.02 * ke * ka / cl * (np.exp(-ke * t) - np.exp(-ka * t)) / (ka - ke)
    logis = 190.0 / (1 + np.exp((3.0 - t) / 1.7))
    biexp = 2.8 * np.exp(-np.exp(0.8) * t) + 0.5 * np.exp(-np.exp(-1.3) * t)
    asymp = 103.0 + (-8.5 - 103.0) * np.exp(-np.exp(-3.3) * t)
    # the closed form of SSfol loses up to 3 digits to its difference at small t
    np.testing.assert_allclose(SSfol(4.02, t, -2.5, 0.4, -3.2), fol, rtol=1e-12)
    np.testing.assert_allclose(SSlogis(t, 190.0, 3.0, 1.7), logis, rtol=1e-14)
    np.testing.assert_allclose(SSbiexp(t, 2.8, 0.8, 0.5, -1.3), biexp, rtol=1e-14)
    np.testing.assert_allclose(SSasymp(t, 103.0, -8.5, -3.3), asymp, rtol=1e-13)


@pytest.mark.x64
def test_ssfol_is_exact_where_the_rates_meet() -> None:
    k = np.exp(-2.0)
    limit = 4.0 * np.exp(-2.0 - 2.0 + 3.0) * TIMES * np.exp(-k * TIMES)
    np.testing.assert_allclose(SSfol(4.0, TIMES, -2.0, -2.0, -3.0), limit, rtol=1e-14)
    # swapping the rates changes nothing but the factor exp(lKe + lKa), which is symmetric
    np.testing.assert_allclose(
        SSfol(4.0, TIMES, -2.0, 0.5, -3.0), SSfol(4.0, TIMES, 0.5, -2.0, -3.0), rtol=1e-13
    )

    def slope_in_lka(lka: float, t: float) -> float:
        return float(jax.grad(lambda v: SSfol(4.0, t, -2.0, v, -3.0))(lka))

    for t in (0.25, 3.5, 24.0):
        exact = 4.0 * np.exp(-1.0) * t * np.exp(-k * t) * (1 - k * t / 2)
        assert slope_in_lka(-2.0, t) == pytest.approx(exact, rel=1e-12)
        for gap in (1e-9, 1e-5, 1e-3, 0.2):  # both sides of the switch to the series
            ahead = SSfol(4.0, t, -2.0, -2.0 + gap + 1e-5, -3.0)
            behind = SSfol(4.0, t, -2.0, -2.0 + gap - 1e-5, -3.0)
            difference = float(ahead - behind) / 2e-5
            # central differences with step 1e-5: truncation 1e-10, rounding 1e-11 / t
            assert slope_in_lka(-2.0 + gap, t) == pytest.approx(difference, rel=1e-8)


@pytest.mark.x64
def test_the_series_meets_the_quotient() -> None:
    u = np.array([-0.0199, -1e-3, 1e-9, 0.005, 0.0199, 0.0201, 1.0])
    # the quotient of expm1 is accurate to rounding; the series ends at u^6 / 7!
    np.testing.assert_allclose(
        selfstart._mean_decay(jnp, jnp.asarray(u)), -np.expm1(-u) / u, rtol=5e-16
    )


CURVES = {
    "SSfol": (lambda t, p: SSfol(4.0, t, *p), [-2.0, 0.5, -3.0]),
    "SSlogis": (lambda t, p: SSlogis(t, *p), [2.0, 1.0, 0.7]),
    "SSbiexp": (lambda t, p: SSbiexp(t, *p), [2.8, 0.8, 0.5, -1.3]),
    "SSasymp": (lambda t, p: SSasymp(t, *p), [103.0, -8.5, -3.3]),
}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", list(CURVES))
def test_derivatives_are_finite_at_the_limits(name: str, precision: str) -> None:
    curve, start = CURVES[name]
    with jax.enable_x64(precision == "float64"):
        p0 = jnp.array(start, dtype=precision)
        for t in (0.0, 1e-30, 1.0, 500.0):
            for j in range(len(start)):
                for shift in (-200.0, -20.0, 0.0, 20.0, 200.0):
                    if name in ("SSlogis",) and j == 2 and shift < 0:
                        continue
                    p = p0.at[j].add(shift)
                    if name == "SSfol" and j == 2 and abs(shift) > 50:
                        continue  # exp(200) itself is no float32
                    value, slope = jax.value_and_grad(lambda q, t=t: curve(t, q))(p)
                    assert value.dtype == jnp.dtype(precision)
                    assert np.isfinite(value), (t, j, shift)
                    assert np.isfinite(slope).all(), (t, j, shift)


def test_sslogis_of_the_log_of_zero() -> None:
    x = jnp.array([-jnp.inf, 0.0, jnp.inf])
    np.testing.assert_allclose(SSlogis(x, 2.0, 0.0, 1.0), [0.0, 1.0, 2.0])
    slopes = jax.jacobian(lambda p: SSlogis(x, *p))(jnp.array([2.0, 0.0, 1.0]))
    assert np.isfinite(slopes).all()


def read(name: str) -> dict[str, np.ndarray]:
    path = Path(__file__).resolve().parent.parent / "reference" / "data" / f"{name}.csv"
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    return {k: np.array([row[k] for row in rows]) for k in rows[0]}


CASES = {
    "theoph": ("SSfol", {"Dose": "Dose", "input": "Time"}, "conc", "Subject", "theoph_diag2_ml"),
    "orange": ("SSlogis", {"input": "age"}, "circumference", "Tree", "orange_asym_ml"),
    "indometh": ("SSbiexp", {"input": "time"}, "conc", "Subject", "indometh_diag3_ml"),
    "loblolly": ("SSasymp", {"input": "age"}, "height", "Seed", "loblolly_diag2_ml"),
    "dnase": ("SSlogis", {"input": "conc"}, "density", "Run", "dnase_diag2_ml"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_start_values_are_the_pooled_least_squares_fit(case: str) -> None:
    name, roles, response, group, file = CASES[case]
    data = read(case)
    x = {role: data[column].astype(float) for role, column in roles.items()}
    if case == "dnase":
        x["input"] = np.log(x["input"])
    y = data[response].astype(float)
    start = initial(name, x, y)
    known = selfstart.model(name)
    assert tuple(start) == known.parameters
    predictors = [x[p] for p in known.predictors]
    theirs = reference("nlme", f"nlme_{file}")["start"]
    pooled = scipy.optimize.least_squares(
        lambda p: known.curve(np, *predictors, *p) - y,
        [theirs[p] for p in known.parameters],
        x_scale="jac",
        xtol=1e-12, ftol=1e-12, gtol=1e-12,
    )  # fmt: skip
    # our steps end at a relative change of 1e-10 in the sum of squares: 1e-5 in parameters
    np.testing.assert_allclose(list(start.values()), pooled.x, rtol=1e-4)
    # the starts of the reference fits were rounded from another fit of the same curve
    for parameter, value in start.items():
        assert value == pytest.approx(theirs[parameter], rel=0.15, abs=0.25), parameter
    by_group = initial(name, x, y, data[group])
    for parameter, value in by_group.items():
        assert value == pytest.approx(start[parameter], rel=0.05, abs=0.05)


def test_falling_curves_and_scattered_rows() -> None:
    rng = np.random.default_rng(5)
    t = rng.uniform(0, 10, 300)
    falling = initial("SSlogis", {"input": t}, 5 / (1 + np.exp((4 - t) / -0.8)))
    assert falling == pytest.approx({"Asym": 5.0, "xmid": 4.0, "scal": -0.8}, rel=1e-6)
    rising = initial("SSasymp", {"input": t}, 3 - 2 * np.exp(-0.6 * t) + rng.normal(0, 0.01, 300))
    # 300 points with noise 0.01: standard errors below 0.005
    assert rising == pytest.approx({"Asym": 3.0, "R0": 1.0, "lrc": np.log(0.6)}, abs=0.03)


def test_equal_weight_per_group() -> None:
    t = np.arange(8.0)
    low, high = 1 - np.exp(-0.5 * t), 3 - 3 * np.exp(-0.5 * t)
    x = {"input": np.tile(t, 4)}
    y = np.concatenate([low, low, low, high])
    group = np.repeat(["a", "a", "a", "b"], 8)
    assert initial("SSasymp", x, y)["Asym"] == pytest.approx(1.5, rel=1e-6)
    assert initial("SSasymp", x, y, group)["Asym"] == pytest.approx(2.0, rel=1e-6)


def test_missing_rows_are_passed_over_and_many_are_thinned() -> None:
    t = np.linspace(0, 5, 5000)
    y = 2 * np.exp(-3 * t) + np.exp(-0.5 * t)
    y[7] = np.nan
    start = initial("SSbiexp", {"input": t}, y)
    expected = {"A1": 2.0, "lrc1": np.log(3.0), "A2": 1.0, "lrc2": np.log(0.5)}
    assert start == pytest.approx(expected, rel=1e-4)


def test_no_start_is_said() -> None:
    with pytest.raises(ModelSpecError, match=r"no start values for SSlogis.*start="):
        initial("SSlogis", {"input": [1.0, 1.0, 1.0]}, [1.0, 2.0, 3.0])
    with pytest.raises(ModelSpecError, match="Dose is not in x"):
        initial("SSfol", {"input": [1.0]}, [1.0])
    with pytest.raises(ModelSpecError, match=r"SSasymp, SSlogis"):
        initial("SSwhat", {"input": [1.0]}, [1.0])


@pytest.mark.parametrize("name", selfstart.LATER)
def test_the_others_come_later(name: str) -> None:
    with pytest.raises(ModelSpecError, match=f"{name} comes later"):
        getattr(selfstart, name)
    with pytest.raises(ModelSpecError, match="comes later"):
        selfstart.model(name)


def test_other_names_are_ordinary_attribute_errors() -> None:
    with pytest.raises(AttributeError):
        selfstart.SSnothing
