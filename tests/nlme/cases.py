"""The published R fits as calls of ``fit_nlme``: formula, data and options by reference id."""

from __future__ import annotations

import pandas as pd

from helpers import data, reference

LOGISTIC = "Asym/(1 + exp(-({x} - xmid)/scal))"

CASES = {
    "chickweight_diag2_ml": dict(
        model="weight ~ SSlogis(Time, Asym, xmid, scal)", group="Chick",
        fixed="Asym + xmid + scal ~ 1", random="Asym + xmid ~ 1", covariance="diagonal"),
    "co2_cov_full2_ml": dict(
        model="uptake ~ Asym*(1 - exp(-exp(lrc)*(conc - c0)))", group="Plant",
        fixed=["Asym ~ Type*Treatment", "lrc + c0 ~ 1"], random="Asym + lrc ~ 1"),
    "co2_full2_ml": dict(
        model="uptake ~ Asym*(1 - exp(-exp(lrc)*(conc - c0)))", group="Plant",
        fixed="Asym + lrc + c0 ~ 1", random="Asym + lrc ~ 1"),
    "dnase_diag2_ml": dict(
        model="density ~ SSlogis(log(conc), Asym, xmid, scal)", group="Run",
        fixed="Asym + xmid + scal ~ 1", random="Asym + xmid ~ 1", covariance="diagonal"),
    "indometh_diag3_ml": dict(
        model="conc ~ SSbiexp(time, A1, lrc1, A2, lrc2)", group="Subject",
        fixed="A1 + lrc1 + A2 + lrc2 ~ 1", random="A1 + lrc1 + A2 ~ 1", covariance="diagonal"),
    "indometh_diag3_reml": dict(
        model="conc ~ SSbiexp(time, A1, lrc1, A2, lrc2)", group="Subject",
        fixed="A1 + lrc1 + A2 + lrc2 ~ 1", random="A1 + lrc1 + A2 ~ 1", covariance="diagonal"),
    "indometh_diag4_ml": dict(
        model="conc ~ SSbiexp(time, A1, lrc1, A2, lrc2)", group="Subject",
        fixed="A1 + lrc1 + A2 + lrc2 ~ 1", random="A1 + lrc1 + A2 + lrc2 ~ 1", covariance="diagonal"),
    "loblolly_asym_ml": dict(
        model="height ~ SSasymp(age, Asym, R0, lrc)", group="Seed",
        fixed="Asym + R0 + lrc ~ 1", random="Asym ~ 1"),
    "loblolly_diag2_ml": dict(
        model="height ~ SSasymp(age, Asym, R0, lrc)", group="Seed",
        fixed="Asym + R0 + lrc ~ 1", random="Asym + lrc ~ 1", covariance="diagonal"),
    "orange_asym_ml": dict(
        model="circumference ~ SSlogis(age, Asym, xmid, scal)", group="Tree",
        fixed="Asym + xmid + scal ~ 1", random="Asym ~ 1"),
    "orange_asym_reml": dict(
        model="circumference ~ SSlogis(age, Asym, xmid, scal)", group="Tree",
        fixed="Asym + xmid + scal ~ 1", random="Asym ~ 1"),
    "orthodont_linear_full2_ml": dict(
        model="distance ~ b0 + b1*(age - 11)", group="Subject", fixed="b0 + b1 ~ 1", random="b0 + b1 ~ 1"),
    "orthodont_linear_full2_reml": dict(
        model="distance ~ b0 + b1*(age - 11)", group="Subject", fixed="b0 + b1 ~ 1", random="b0 + b1 ~ 1"),
    "ovary_diag3_ml": dict(
        model="follicles ~ A + B*sin(2*pi*w*Time) + C*cos(2*pi*w*Time)", group="Mare",
        fixed="A + B + C + w ~ 1", random="A + B + w ~ 1", covariance="diagonal"),
    "pbg_nested_ml": dict(
        model="deltaBP ~ A + (B - A)/(1 + exp((xmid - log(dose))/scal))", group="Rabbit/Run",
        fixed=["A + B ~ 1", "xmid ~ Treatment", "scal ~ 1"],
        random={"Rabbit": "B ~ 1", "Run": "B ~ 1"}),
    "soybean_diag2_ml": dict(
        model="weight ~ SSlogis(Time, Asym, xmid, scal)", group="Plot",
        fixed="Asym + xmid + scal ~ 1", random="Asym + xmid ~ 1", covariance="diagonal"),
    "theoph_diag2_ml": dict(
        model="conc ~ SSfol(Dose, Time, lKe, lKa, lCl)", group="Subject",
        fixed="lKe + lKa + lCl ~ 1", random="lKa + lCl ~ 1", covariance="diagonal"),
    "theoph_diag2_reml": dict(
        model="conc ~ SSfol(Dose, Time, lKe, lKa, lCl)", group="Subject",
        fixed="lKe + lKa + lCl ~ 1", random="lKa + lCl ~ 1", covariance="diagonal"),
    "wafer_nested_ml": dict(
        model="current ~ A + B*cos(w*voltage + pi/4)", group="Wafer/Site",
        fixed=["A ~ voltage + I(voltage^2)", "B + w ~ 1"],
        random={"Wafer": ["A ~ voltage + I(voltage^2)", "B + w ~ 1"],
                "Site": ["A ~ voltage + I(voltage^2)", "B ~ 1"]}, covariance="diagonal"),
}  # fmt: skip

LEVELS = {
    "Type": ["Quebec", "Mississippi"],
    "Treatment": {"co2": ["nonchilled", "chilled"], "pbg": ["MDL 72222", "Placebo"]},
}


def frame(name: str) -> pd.DataFrame:
    """Read a data set with text columns as R's factors (reference level first)."""
    df = data(name)
    for column, levels in LEVELS.items():
        if column in df and isinstance(levels, dict):
            levels = levels.get(name, sorted(df[column].unique()))
        if column in df:
            df[column] = pd.Categorical(df[column], levels)
    return df


def case(name: str) -> tuple[dict, dict, pd.DataFrame]:
    """Return the stored result, the call's keywords and the data of a reference."""
    stored = reference("nlme", f"nlme_{name}")
    call = dict(CASES[name])
    return stored, call, frame(stored["dataset"].split("/")[-1].removesuffix(".csv"))
