"""Pictures of NLME fits: what is drawn, where, and what too much or too little data does."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxnlme import DataError, ModelSpecError
from jaxnlme.plots.nlme import gof, individual_fits, random_effects
from jaxnlme.plots.style import trend


def population(groups: int = 3, rows: int = 6) -> tuple[dict, dict]:
    """Observations and fine curves of several groups with names that do not sort by appearance."""
    names = np.array([f"subject {chr(122 - k)}" for k in range(groups)])
    t, fine = np.arange(rows, dtype=float), np.linspace(0, rows - 1, 31)
    level = np.arange(groups)[:, None]
    data = {
        "group": np.repeat(names, rows),
        "x": np.tile(t, groups),
        "y": (np.exp(-0.3 * t) + level).ravel(),
    }
    curves = {
        "group": np.repeat(names, fine.size),
        "x": np.tile(fine, groups),
        "population": np.tile(np.exp(-0.3 * fine), groups),
        "individual": (np.exp(-0.3 * fine) + level).ravel(),
    }
    return data, curves


def residuals(rows: int = 60) -> dict:
    t = np.linspace(0, 10, rows)
    f = 8 * np.exp(-0.2 * t)
    noise = np.random.default_rng(1).normal(size=rows)
    return {"x": t, "y": f + noise, "population": f, "individual": f + 0.5 * noise, "cwres": noise}


def effects(levels: int = 5, terms: tuple[str, ...] = ("lKa", "lCl")) -> dict:
    draws = np.random.default_rng(2).normal(size=(len(terms), levels))
    return {
        "level": np.tile([f"s{k}" for k in range(levels)], len(terms)),
        "term": np.repeat(terms, levels),
        "estimate": draws.ravel(),
    }


def line(ax, label: str):
    return next(one for one in ax.lines if one.get_label() == label)


def draw(axes) -> None:
    """Lay out and render: warnings of the layout engine are errors here."""
    axes[0].figure.canvas.draw()


def test_individual_fits_draws_each_group_in_order_of_appearance() -> None:
    data, curves = population()
    axes = individual_fits(data, curves, xlabel="Time (h)", ylabel="Conc (mg/L)")
    draw(axes)
    assert [ax.get_title(loc="left") for ax in axes] == ["subject z", "subject y", "subject x"]
    np.testing.assert_array_equal(line(axes[1], "observed").get_ydata(), data["y"][6:12])
    np.testing.assert_array_equal(
        line(axes[1], "individual").get_ydata(), curves["individual"][31:62]
    )
    np.testing.assert_array_equal(
        line(axes[1], "population").get_ydata(), curves["population"][31:62]
    )
    figure = axes[0].figure
    assert figure.get_supxlabel() == "Time (h)"
    assert figure.get_supylabel() == "Conc (mg/L)"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "population",
        "individual",
        "observed",
    ]


def test_curves_are_joined_in_order_of_x_and_missing_observations_left_out() -> None:
    data, curves = population(groups=1)
    back = {name: values[::-1] for name, values in curves.items()}
    data["y"][2] = np.nan
    axes = individual_fits(data, back)
    assert np.all(np.diff(line(axes[0], "population").get_xdata()) > 0)
    assert len(line(axes[0], "observed").get_xdata()) == 5


def test_without_curves_the_rows_of_the_data_are_joined() -> None:
    data, _ = population(groups=2)
    own = {**data, "population": np.ones(12), "individual": data["y"]}
    np.testing.assert_array_equal(
        line(individual_fits(own)[0], "individual").get_ydata(), data["y"][:6]
    )
    with pytest.raises(DataError, match="no column 'population', 'individual'"):
        individual_fits(data)


def test_too_many_groups_are_left_out_with_a_note() -> None:
    data, curves = population(groups=9)
    axes = individual_fits(data, curves, max_groups=6, ncols=4)
    draw(axes)
    assert len(axes) == 6
    assert len(axes[0].figure.axes) == 6  # the two empty places of the second row are gone
    assert axes[0].figure.legends[0].get_title().get_text() == "6 of 9 groups shown"
    whole = individual_fits(data, curves)
    assert len(whole) == 9
    assert whole[0].figure.legends[0].get_title().get_text() == ""
    with pytest.raises(ModelSpecError, match="max_groups=0"):
        individual_fits(data, curves, max_groups=0)


def test_individual_fits_uses_given_axes() -> None:
    data, curves = population(groups=3)
    mine = Figure(layout="constrained").subplots(1, 2)
    axes = individual_fits(data, curves, axes=mine, xlabel="Time (h)")
    draw(axes)
    assert list(axes) == list(mine)
    assert axes[1].get_xlabel() == "Time (h)"
    assert axes[0].get_legend().get_title().get_text() == "2 of 3 groups shown"
    assert len(individual_fits(data, curves, axes=np.ravel(Figure().subplots(2, 2)))) == 3
    assert len(individual_fits(*population(groups=1), axes=Figure().subplots())) == 1
    with pytest.raises(ModelSpecError, match="sequence is empty"):
        individual_fits(data, curves, axes=[])


def test_gof_has_the_four_panels_of_pharmacometrics() -> None:
    data = residuals()
    axes = gof(data, xlabel="Time (h)", ylabel="Conc (mg/L)")
    draw(axes)
    assert [ax.get_xlabel() for ax in axes] == [
        "Population prediction",
        "Individual prediction",
        "Time (h)",
        "Population prediction",
    ]
    for ax, name in zip(axes[:2], ("population", "individual"), strict=True):
        np.testing.assert_array_equal(line(ax, "observed").get_xdata(), data[name])
        np.testing.assert_array_equal(line(ax, "observed").get_ydata(), data["y"])
        identity = line(ax, "identity")
        np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())
    for ax, name in zip(axes[2:], ("x", "population"), strict=True):
        np.testing.assert_array_equal(line(ax, "residuals").get_xdata(), data[name])
        np.testing.assert_array_equal(line(ax, "residuals").get_ydata(), data["cwres"])
        assert ax.get_ylim()[0] == -ax.get_ylim()[1]


def test_gof_leaves_out_missing_values_panel_by_panel() -> None:
    data = residuals()
    data["cwres"][:3] = np.nan
    axes = gof(data)
    assert len(line(axes[0], "observed").get_xdata()) == 60
    assert len(line(axes[2], "residuals").get_xdata()) == 57
    data["cwres"][:] = np.nan  # no weighted residuals at all, as where the prediction is 0
    empty = gof(data)
    draw(empty)
    assert empty[2].texts[0].get_text() == "no finite values"


def test_gof_uses_exactly_four_given_axes() -> None:
    mine = Figure(layout="constrained").subplots(2, 2)
    assert list(gof(residuals(), axes=mine)) == list(mine.ravel())
    with pytest.raises(ModelSpecError, match="needs 4 axes, but 3 were given"):
        gof(residuals(), axes=mine.ravel()[:3])
    with pytest.raises(DataError, match=r"no column 'cwres'.*there are x, y"):
        gof({name: values for name, values in residuals().items() if name != "cwres"})


def test_random_effects_sorts_levels_and_draws_conditional_intervals() -> None:
    data = effects()
    data["std_error"] = np.full(10, 0.25)
    data["sd"] = np.repeat([1.5, 0.5], 5)
    axes = random_effects(data)
    draw(axes)
    assert [ax.get_title() for ax in axes] == ["lKa", "lCl", "", ""]
    order = np.argsort(data["estimate"][:5])
    assert [t.get_text() for t in axes[0].get_yticklabels()] == list(data["level"][order])
    bars = np.array(axes[0].collections[0].get_segments())
    np.testing.assert_allclose(bars[:, 1, 0] - bars[:, 0, 0], 2 * 1.96 * 0.25)  # rounding only
    np.testing.assert_allclose(bars[:, :, 0].mean(1), data["estimate"][order])
    normal = line(axes[3], "normal")
    slope = np.diff(normal.get_ydata()) / np.diff(normal.get_xdata())
    np.testing.assert_allclose(slope, 0.5)
    assert axes[3].texts[0].get_text() == "line: model's sd 0.5"


def test_random_effects_without_extras_and_with_several_factors() -> None:
    axes = random_effects(effects())
    assert not axes[0].collections
    sd = np.std(effects()["estimate"][:5])
    assert axes[2].texts[0].get_text() == f"line: sample sd {sd:.3g}"
    nested = {**effects(terms=("asym", "asym")), "group": np.repeat(["Block", "Tree"], 5)}
    assert [ax.get_title() for ax in random_effects(nested)[:2]] == ["Block: asym", "Tree: asym"]


def test_random_effects_uses_given_axes() -> None:
    row = Figure().subplots(1, 2)
    assert list(random_effects(effects(), axes=row)) == list(row)
    both = Figure().subplots(2, 2)
    assert random_effects(effects(), axes=both)[2] is both[1, 0]
    assert len(both[1, 0].lines) == 2  # the normal line and the points
    with pytest.raises(ModelSpecError, match="2 terms needs 2 or 4 axes, but 3 were given"):
        random_effects(effects(), axes=Figure().subplots(1, 3))


def test_many_levels_lose_their_names_but_not_their_points() -> None:
    axes = random_effects(effects(levels=300, terms=("lKa",)))
    draw(axes)
    assert len(axes[0].get_yticks()) == 0
    assert axes[0].get_ylabel() == "300 levels, in order of size"
    assert max(len(one.get_xdata()) for one in axes[0].lines) == 300
    assert axes[0].figure.get_size_inches()[1] < 8


def test_frames_of_several_kinds() -> None:
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for frame in (pd.DataFrame(residuals()), pl.DataFrame(residuals())):
        np.testing.assert_array_equal(line(gof(frame)[0], "observed").get_ydata(), residuals()["y"])
    categories = pd.DataFrame({**effects(), "term": pd.Categorical(effects()["term"])})
    assert len(random_effects(categories)) == 4


def test_no_rows_and_unequal_columns_raise() -> None:
    nothing = {"group": [], "x": [], "y": [], "population": [], "individual": []}
    with pytest.raises(DataError, match="no rows"):
        individual_fits(nothing)
    with pytest.raises(DataError, match="no random effects"):
        random_effects({"level": [], "term": [], "estimate": []})
    with pytest.raises(DataError, match="columns of one length"):
        random_effects({**effects(), "level": ["a"]})


def test_trend_follows_a_line_past_outliers_and_keeps_still_with_few_points() -> None:
    x = np.linspace(0, 1, 80)
    y = 2 + 3 * x
    y[10] += 40.0
    grid, fitted = trend(x, y)
    # Least squares would be 0.5 off at the left; the bisquare weight of the outlier is 1e-6.
    np.testing.assert_allclose(fitted, 2 + 3 * grid, atol=1e-4)
    assert trend(x[:9], y[:9])[0].size == 0
    few_times, _ = trend(np.repeat([0.0, 1.0, 2.0], 9), np.zeros(27))
    assert few_times.size == 0


def test_plots_choose_no_backend_and_open_no_window() -> None:
    code = (
        "import sys, numpy as np\n"
        "from jaxnlme.plots.nlme import random_effects\n"
        "assert 'matplotlib' not in sys.modules\n"
        "axes = random_effects({'level': [1, 2], 'term': ['a', 'a'], 'estimate': [0.1, -0.1]})\n"
        "axes[0].figure.canvas.draw()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
