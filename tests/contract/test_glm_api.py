"""Every name of the GLM interface is called once: it works, or says that it is not built and what to do."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxnlme as jn

pytestmark = pytest.mark.filterwarnings("ignore:.*smoothed.*:DeprecationWarning")
N = 60
DOOR = {
    "family": "gaussian", "link": None, "exposure": None, "weights": None, "offset": None, "alpha": 0.0,
    "l1_ratio": 0.0, "penalty": None, "standardize": True, "bounds": None, "fix": None, "priors": None,
    "start": None, "missing": "drop", "max_steps": 50, "tolerance": 1e-8,
}  # fmt: skip
ATTRIBUTES = """params bse tvalues pvalues llf aic bic bic_groups nobs df_model df_resid deviance null_deviance
    dispersion sigma fittedvalues converged result n_iter formula family fit row_index pearson_chi2 scale_pearson
    scale_deviance""".split()
SIGNATURES = {
    "vcov": {"kind": "model", "groups": None},
    "conf_int": {"alpha": 0.05, "method": "wald", "kind": "model", "groups": None},
    "residuals": {"kind": "response"},
    "predict": {"newdata": None, "type": "response", "interval": None, "level": 0.95, "exposure": None, "offset": None},
    "simulate": {"n": 1, "key": 0, "newdata": None, "uncertainty": "none"},
    "samples": {"key": 0, "what": "params"},
    "bootstrap": {"key": 0, "kind": "parametric"},
    "tidy": {"kind": "model"},
    "summary": {"kind": "model"},
    "relativities": {"level": 0.95},
    "relevel": {"by": "exposure"},
    "metrics": {"newdata": None},
}  # fmt: skip
CALLS: dict[str, Any] = {
    "vcov model": lambda f: f.vcov()["x", "x"] > 0,
    "vcov HC": lambda f: [f.vcov(f"HC{k}") for k in range(5)],
    "vcov cluster": lambda f: f.vcov("cluster", groups="a"),
    "conf_int": lambda f: list(f.conf_int()) == ["term", "conf_low", "conf_high"],
    "conf_int HC": lambda f: f.conf_int(kind="HC1"),
    "conf_int profile": lambda f: f.conf_int(method="profile"),
    "conf_int boot": lambda f: f.conf_int(method="boot", n=12),
    "residuals": lambda f: [f.residuals(k) for k in "response pearson deviance working quantile".split()],
    "predict": lambda f: f.predict(type="link").shape == (N,),
    "predict terms": lambda f: list(f.predict(type="terms")) == ["x", "a"],
    "predict confidence": lambda f: list(f.predict(interval="confidence"))[:3] == ["fit", "low", "high"],
    "predict prediction": lambda f: list(f.predict(interval="prediction")) == ["fit", "low", "high"],
    "simulate": lambda f: f.simulate(2, uncertainty="asymptotic").shape == (2, N),
    "samples": lambda f: [f.samples(2, what=w) for w in ("params", "link", "response")],
    "bootstrap": lambda f: list(f.bootstrap(2)) == ["replicate", "term", "estimate"],
    "bootstrap kinds": lambda f: [f.bootstrap(2, kind="cases"), f.bootstrap(2, kind="groups", groups="a")],
    "refit": lambda f: f.refit(f._problem.y + 1).converged,
    "update": lambda f: f.update(". ~ . - a").params.index == ["(Intercept)", "x"],
    "with_params": lambda f: f.with_params({"x": 0.0}).params["x"] == 0.0,
    "wald_test text": lambda f: set(f.wald_test("aq = ar, x = 0")) == {"statistic", "df", "p_value"},
    "wald_test matrix": lambda f: f.wald_test(np.eye(4)[1:3])["df"] == 2,
    "hypotheses": lambda f: f.hypotheses("exp(x)/aq = 1"),
    "hypotheses function": lambda f: f.hypotheses(lambda p: p["x"] - p["aq"]),
    "summary": lambda f: "poisson" in f.summary(kind="HC0"),
    "html": lambda f: f._repr_html_().startswith("<pre>"),
    "tidy": lambda f: list(f.tidy())[:5] == ["term", "estimate", "std_error", "statistic", "p_value"],
    "tidy kind": lambda f: f.tidy(kind="HC3"),
    "glance": lambda f: len(f.glance()) == 1,
    "augment": lambda f: len(f.augment()) == N,
    "to_json": lambda f: f.to_json().startswith("{"),
    "relativities": lambda f: list(f.relativities(level=0.9)) == [
        "term", "level", "relativity", "conf_low", "conf_high", "exposure_share"],
    "relevel": lambda f: f.relevel(by="exposure").converged,
    "coef_table": lambda f: f.coef_table(),
    "n_nonzero": lambda f: f.n_nonzero() == 3,
    "selected_features": lambda f: f.selected_features() == ["x", "aq", "ar"],
    "influence": lambda f: [
        getattr(f.influence(), k) for k in "leverage cooks_distance dfbetas dffits studentized".split()],
    "vif": lambda f: f.vif(),
    "plot.diagnostics": lambda f: len(f.plot.diagnostics()) == 4,
    "metrics": lambda f: f.metrics(),
    "metrics newdata": lambda f: f.metrics(f._call["data"]),
    "anova": lambda f: [jn.anova(f, type=k) for k in (1, 2, 3)],
    "anova tests": lambda f: [jn.anova(f, test=t) for t in ("Chisq", "F", "LRT", "Rao")],
    "anova Wald": lambda f: jn.anova(f, type=3, test="Wald"),
    "drop1": lambda f: jn.drop1(f),
    "step": lambda f: jn.step(f, scope=None, direction="both", criterion="aic").converged,
    "compare": lambda f: jn.compare(f, f.update(". ~ . - a")),
    "table": lambda f: [
        jn.table(f, format=k, stat=s) for k in "text markdown html latex".split() for s in ("se", "ci")],
}  # fmt: skip
LATER = {
    "save": lambda f: f.save("x"),
    "diagnostics": lambda f: f.diagnostics(None),
    "to_scorer": lambda f: f.to_scorer("x"),
    "to_onnx": lambda f: f.to_onnx("x"),
    "marginal_means": lambda f: f.marginal_means("a"),
    "check_residuals": lambda f: f.check_residuals(),
    "lift": lambda f: f.plot.lift(),
    "actual_expected": lambda f: f.plot.actual_expected("a"),
    "double_lift": lambda f: f.plot.double_lift(f),
    "lorenz": lambda f: f.plot.lorenz(),
    "calibration": lambda f: f.plot.calibration(),
    "l1_ratio": lambda f: f.update(alpha=0.1, l1_ratio=1.0),
    **{name: lambda f, n=name: getattr(jn.penalties, n) for name in "Lasso ElasticNet SCAD MCP GroupLasso".split()},
    **{name: lambda f, n=name: getattr(jn, n) for name in (
        "glm_path lasso_path cv_glm explore_data TargetEncoder target_encode apply_target_encoding "
        "cross_val_score ChunkSource predictions slopes comparisons grid load").split()},
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=N), rng.choice(list("pqr"), N)
    mu = np.exp(1 + 0.4 * x + 0.3 * (a == "q"))
    return pd.DataFrame({
        "x": x, "z": rng.normal(size=N), "a": a, "n": rng.poisson(mu), "e": rng.uniform(0.5, 2, N),
        "y": rng.gamma(2, mu / 2), "b": rng.random(N) < 0.5, "s": rng.binomial(5, 0.4, N),
        "k": rng.choice(["low", "mid", "top"], N), "u": rng.uniform(0.1, 0.9, N),
    })  # fmt: skip


@pytest.fixture(scope="module")
def fit(data: pd.DataFrame) -> Any:
    return jn.fit_glm("n ~ x + a", data, family="poisson", exposure="e")


def test_the_door_has_the_arguments_of_the_contract() -> None:
    parameters = inspect.signature(jn.fit_glm).parameters
    found = {name: p.default for name, p in parameters.items() if name in DOOR}
    assert found == DOOR
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in DOOR)


def test_methods_have_the_arguments_of_the_contract(fit: Any) -> None:
    for name, expected in SIGNATURES.items():
        parameters = inspect.signature(getattr(fit, name)).parameters
        assert {k: parameters[k].default for k in expected} == expected, name


def test_attributes(fit: Any) -> None:
    for name in ATTRIBUTES:
        assert getattr(fit, name) is not None, name
    for name in ("params", "bse", "tvalues", "pvalues"):
        vector = getattr(fit, name)
        assert vector.index == ["(Intercept)", "x", "aq", "ar"]
        assert vector["x"] == np.asarray(vector)[1] == vector.to_dict()["x"] == list(vector)[1]


@pytest.mark.parametrize("name", CALLS)
def test_calls(fit: Any, name: str) -> None:
    found = CALLS[name](fit)
    assert found is not False
    assert found is not None


@pytest.mark.parametrize("name", LATER)
def test_what_comes_later_says_so(fit: Any, name: str) -> None:
    with pytest.raises(jn.ModelSpecError, match="not built yet"):
        LATER[name](fit)


def test_penalties_constraints_and_values(data: pd.DataFrame) -> None:
    def params(formula: str = "n ~ x + a", family: Any = "poisson", **options: Any) -> Any:
        return jn.fit_glm(formula, data, family=family, **options).params

    free = params()
    ridge = params(alpha=0.1)
    assert abs(ridge["x"]) < abs(free["x"])
    np.testing.assert_allclose(params(penalty=jn.penalties.Ridge(0.1)), ridge)
    quadratic = params("n ~ x", penalty=jn.penalties.Quadratic(np.diag([0.0, 0.1])))
    np.testing.assert_allclose(quadratic, params("n ~ x", alpha=0.1, standardize=False), rtol=1e-6)
    ordered = params(penalty=jn.penalties.Monotone(["aq", "ar"]))
    assert ordered["aq"] <= ordered["ar"]
    sums = params(penalty=jn.penalties.LinearEquality([[0, 1, 1, 1]], [0]))
    assert abs(sums[1:].values.sum()) < 1e-12
    assert params(bounds={"x": (0, 0.1)})["x"] == 0.1
    assert params(fix={"x": 0.2})["x"] == 0.2
    assert abs(params(priors={"fixed": jn.priors.Normal(0, 0.1)})["x"]) < abs(free["x"])
    np.testing.assert_allclose(params(start=free), free, rtol=1e-8)
    assert np.all(np.isfinite(params("b ~ x", "binomial", penalty="firth")))


def test_penalised_fits_refuse_what_has_no_theory(data: pd.DataFrame) -> None:
    fit = jn.fit_glm("n ~ x + a", data, family="poisson", alpha=0.1)
    for call in (
        lambda: fit.vcov("HC1"),
        lambda: fit.tidy(kind="HC3"),
        lambda: fit.conf_int(method="profile"),
        lambda: jn.anova(fit),
        lambda: jn.anova(fit, fit.update(". ~ . - a")),
        lambda: jn.drop1(fit),
        lambda: jn.step(fit),
    ):
        with pytest.raises(jn.ModelSpecError, match="without penalty"):
            call()
    assert np.all(np.isfinite(fit.bse))
    assert np.all(np.isfinite(fit.bootstrap(2)["estimate"]))


def test_other_ways_to_give_a_model(data: pd.DataFrame) -> None:
    by_formula = jn.fit_glm("n ~ x + z", data, family="poisson")
    X, y = data[["x", "z"]], data["n"]
    for fit in (
        jn.fit_glm(X.to_numpy(), y.to_numpy(), family="poisson", names=["x", "z"]),
        jn.fit_glm(X, y, family="poisson"),
        jn.fit_glm(terms={"x": {"type": "linear"}, "z": {"type": "linear"}}, response="n", data=data, family="poisson"),
    ):  # fmt: skip
        np.testing.assert_allclose(fit.params / by_formula.params, 1, rtol=1e-8)
    assert jn.fit_glm(X.to_numpy(), y.to_numpy(), intercept=False).params.index == ["x1", "x2"]
    assert jn.bs(np.arange(9.0), df=5).shape == (9, 5)
    assert jn.ns(np.arange(9.0), df=3).shape == (9, 3)


@pytest.mark.parametrize(
    ("formula", "family", "names"),
    [
        ("y ~ x", lambda: jn.families.Tweedie(power=1.5), []),
        ("n ~ x", lambda: jn.families.NegativeBinomial(theta=2.0), []),
        ("n ~ x", lambda: jn.families.NegativeBinomial1(), []),
        ("y ~ x", lambda: jn.families.Quasi(variance="mu^2"), []),
        ("k ~ x", lambda: jn.families.Multinomial(), []),
        ("k ~ x", lambda: jn.families.Ordinal(link="logit"), []),
        ("n ~ x", lambda: jn.families.Hurdle(jn.families.Poisson(), zero="~ x"), ["zero.x"]),
        ("y ~ x", lambda: jn.families.Truncated("lognormal", lower=0.01, upper=None), []),
        ("y ~ x", lambda: jn.families.Censored("lognormal", left=None, right=6.0, interval=None), []),
        ("cbind(s, 5 - s) ~ x", lambda: "binomial", []),
    ],
)  # fmt: skip
def test_families_as_objects(
    data: pd.DataFrame, formula: str, family: Any, names: list[str]
) -> None:
    fit = jn.fit_glm(formula, data, family=family())
    assert fit.converged
    assert all(name in fit.params for name in names)
    if fit._problem.family.classes is not None:
        assert fit.predict(data).shape == (N, 3)


def test_links_by_name_and_object() -> None:
    for (
        name
    ) in "identity log logit probit cloglog loglog cauchit inverse inverse_square sqrt".split():
        assert jn.links.as_link(name).name == name
    assert float(jn.links.Power(0.5).link(np.full(1, 4.0))[0]) == 2.0


def test_a_formula_for_a_family_parameter(data: pd.DataFrame) -> None:
    fit = jn.fit_glm("u ~ x", data, family="beta", parameters={"precision": "~ z"})
    assert fit.params.index[2:] == ["precision.(Intercept)", "precision.z"]


def test_pure_names() -> None:
    problem = jn.glm.GLMProblem(
        np.ones((4, 1), np.float32), np.arange(4, dtype=np.float32), family="poisson"
    )
    fit = jn.glm.fit(problem, jn.glm.IRLS(), max_steps=50)
    assert np.allclose(np.exp(fit.params), 1.5)
    assert {"params", "state", "result", "stats"} <= set(vars(fit))
