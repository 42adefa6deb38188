"""Every data set loads in both frame kinds and is fully described."""

from __future__ import annotations

import numpy as np
import pytest

import jaxnlme as jn
from helpers import data
from jaxnlme import datasets

SHAPES = {
    "theoph": (132, 5),
    "indometh": (66, 3),
    "orange": (35, 3),
    "loblolly": (84, 3),
    "co2": (84, 5),
    "mauna_loa": (468, 3),
    "phenobarb": (744, 7),
    "quinidine": (1471, 14),
    "dnase": (176, 3),
    "soybean": (412, 5),
    "ovary": (308, 3),
    "orthodont": (108, 4),
    "sleepstudy": (180, 3),
    "penicillin": (144, 3),
    "pastes": (60, 4),
    "cbpp": (56, 4),
    "dyestuff": (30, 2),
    "mcycle": (133, 2),
    "airquality": (111, 6),
    "insurance": (64, 5),
    "quine": (146, 5),
    "airpassengers": (144, 2),
    "hare_lynx": (21, 3),
}
every = pytest.mark.parametrize("name", SHAPES)


def test_the_list_is_the_contracts() -> None:
    assert datasets.list() == list(SHAPES)


@every
def test_loads_in_pandas_and_polars_with_the_same_values(name: str) -> None:
    pandas, polars = datasets.load(name), datasets.load(name, as_="polars")
    assert pandas.shape == polars.shape == SHAPES[name]
    levels = datasets.info(name).levels
    for column in pandas:
        theirs = polars[column]
        if column in levels:
            assert tuple(pandas[column].cat.categories) == levels[column]
            assert tuple(theirs.dtype.categories) == levels[column]
            mine = pandas[column].astype(object)
            assert mine.where(mine.notna(), None).tolist() == theirs.cast(str).to_list()
        else:
            np.testing.assert_array_equal(
                pandas[column].to_numpy(float), theirs.cast(float).to_numpy()
            )


@every
def test_info_is_complete(name: str) -> None:
    about = datasets.info(name)
    assert list(about.columns) == list(datasets.load(name))
    assert about.rows == SHAPES[name][0]
    for text in (about.title, about.source, about.licence, *about.columns.values()):
        assert text.strip()
    for part in (about.title, about.source, *about.columns):
        assert part in str(about)


@pytest.mark.parametrize("name", ["theoph", "indometh", "co2", "phenobarb", "dnase", "soybean"])
def test_values_are_those_of_the_reference_files(name: str) -> None:
    ours, theirs = datasets.load(name), data(name)
    for column in theirs:
        if theirs[column].dtype.kind in "if" and column not in datasets.info(name).levels:
            np.testing.assert_array_equal(ours[column], theirs[column])


def test_known_values() -> None:
    theoph = datasets.load("theoph")
    # Mean concentration and largest dose as printed by R's summary(Theoph).
    assert theoph["conc"].mean() == pytest.approx(4.960, abs=5e-4)
    assert theoph["Dose"].max() == 5.86
    assert datasets.load("insurance")["Group"].cat.ordered
    assert datasets.load("co2")["Treatment"].cat.categories[0] == "nonchilled"
    assert datasets.load("hare_lynx")["lynx"].iloc[-1] == 8.6


def test_a_loaded_frame_belongs_to_the_caller() -> None:
    first = datasets.load("orange")
    first.loc[0, "age"] = -1.0
    assert datasets.load("orange").loc[0, "age"] == 118


def test_wrong_names_raise_with_the_nearest() -> None:
    with pytest.raises(jn.ModelSpecError, match="Did you mean 'theoph'"):
        datasets.load("theof")
    with pytest.raises(jn.ModelSpecError, match="no data set"):
        datasets.info("iris2")
    with pytest.raises(jn.ModelSpecError, match="'pandas' or 'polars'"):
        datasets.load("theoph", as_="arrow")
