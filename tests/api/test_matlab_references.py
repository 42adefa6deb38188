"""``nlmefit`` against the matlab_*.json files, and what its options do to a fit.

The files come from MATLAB's own schedule (pynlme 0.5.1), whose covariance step stops at 1e-2; the fixed point of the
same alternation lies up to 3.4e-3 (relative) away in psi. ``nlmefit`` follows that schedule, OptimFun="fminunc" goes
to the fixed point: benchmarks/results/matlab-tolerance.md, made by benchmarks/matlab_tolerance.py.
``test_matlab_stats.py`` checks every field at the stored estimates, where no optimiser is involved, to 1e-4.
"""

from __future__ import annotations

import contextlib
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from api.matlab_models import linear_fit, linearise

from helpers import data, reference, references
from jaxnlme import ConvergenceWarning, DataError, ModelSpecError, SingularFitWarning
from jaxnlme.matlab import nlmefit, statset

RTOL = 1e-3
FIXED = {"OptimFun": "fminunc"}  # the fixed point of the alternation
SINGULAR = {"matlab_indometh_doc_all", "matlab_theo_covpattern_full"}


def theo(phi, x):
    ka, volume, clearance = phi
    rate = clearance / volume
    scale = x[:, 0] * ka / (volume * (ka - rate))
    return scale * (jnp.exp(-rate * x[:, 1]) - jnp.exp(-ka * x[:, 1]))


def theo_full(phi, x):
    ka, volume, clearance = phi[:, 0], phi[:, 1], phi[:, 2]
    rate = clearance / volume
    scale = x[:, 0] * ka / (volume * (ka - rate))
    return scale * (jnp.exp(-rate * x[:, 1]) - jnp.exp(-ka * x[:, 1]))


def indometh(phi, x):
    return phi[0] * jnp.exp(-phi[1] * x[:, 0]) + phi[2] * jnp.exp(-phi[3] * x[:, 0])


def orange(phi, x):
    return phi[0] / (1 + jnp.exp(-(x[:, 0] - phi[1]) / phi[2]))


def orange_v(phi, x, v):
    return (phi[0] + v[0]) / (1 + jnp.exp(-(x[:, 0] - phi[1]) / phi[2]))


def orange_full_v(phi, x, v):
    return (phi[:, 0] + v[:, 0]) / (1 + jnp.exp(-(x[:, 0] - phi[:, 1]) / phi[:, 2]))


MODELS = {"theo": theo, "indometh": indometh, "orange": orange}


def arguments(ref):
    frame = data(ref["dataset"].split("/")[-1])
    x = frame[ref["predictors"]].to_numpy(float)
    model = MODELS[ref["id"].split("_")[0]]
    return x, frame[ref["response"]], frame[ref["group"]], None, model, ref["beta0"]


def fit(name, **extra):
    ref = reference("nlme", name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return nlmefit(*arguments(ref), **{**ref["name_value"], **extra})


def close(found, stored, rtol, name):
    """Compare relative to the largest entry: small entries of a vector carry its error."""
    stored = np.asarray(stored, float)
    np.testing.assert_allclose(
        found, stored, rtol=0, atol=rtol * np.max(np.abs(stored)), err_msg=name
    )


@pytest.mark.parametrize("name", references("nlme", "matlab_*"))
def test_reference(name):
    ref = reference("nlme", name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        beta, psi, stats, b = nlmefit(*arguments(ref), **ref["name_value"])
    assert {w.category for w in caught} == ({SingularFitWarning} if name in SINGULAR else set())
    assert stats.converged
    # 1e-10 was measured where the path is determined; along a zero variance rounding decides
    rtol = RTOL if name in SINGULAR else 1e-6
    close(beta, ref["beta"], rtol, "beta")
    close(psi, ref["psi"], rtol, "psi")
    close(b, ref["b"], rtol, "b")
    for field, stored in ref["stats"].items():
        if field == "logl":
            assert abs(stats.logl - stored) < rtol
        else:
            close(stats[field], stored, rtol, field)
    for field, stored in ref["residuals_first11"].items():
        close(stats[field][:11], stored, RTOL, field)
    labels = np.unique(arguments(ref)[2])
    assert list(stats.group_labels) == list(labels)
    assert b.shape == (len(psi), len(labels))


def test_zero_variance_is_zero_and_flagged():
    """README of the references: below 1e-3 of its scale; the page's number is 0."""
    ref = reference("nlme", "matlab_indometh_doc_all")
    with pytest.warns(SingularFitWarning, match="random effect 4 of 4 is zero"):
        beta, psi, _, _ = nlmefit(*arguments(ref), **ref["name_value"])
    assert np.sqrt(psi[3, 3]) < 1e-3 * abs(beta[3])


def test_documented_numbers_of_the_indometh_page():
    """Digits that MathWorks prints; the labels of the two exponentials come out as there."""
    beta, psi, stats, _ = fit("matlab_indometh_doc_all")
    np.testing.assert_allclose(beta, [2.8277, 0.7729, 0.4606, -1.3459], atol=6e-5)
    np.testing.assert_allclose(np.diag(psi), [0.3264, 0.0250, 0.0124, 0], atol=6e-5)
    np.testing.assert_allclose(stats.sebeta, [0.2558, 0.1066, 0.1092, 0.2244], atol=6e-5)
    assert (stats.dfe, round(stats.rmse, 4), round(stats.logl, 3)) == (57, 0.0787, 54.588)
    assert round(float(stats.errorparam[0]), 4) == 0.0815


def test_logl_is_that_of_the_linearised_model():
    """The core's likelihood and the plain-array one of stats agree at the same linearisation."""

    for name in ("matlab_theo_lme", "matlab_theo_relme"):
        ref = reference("nlme", name)
        beta, psi, stats, b = fit(name, **FIXED)
        ref.update(beta=beta.tolist(), b=b.tolist())
        parts, codes, *_ = linearise(ref)
        linear = linear_fit(
            parts, codes, beta, b, psi / stats.mse, np.ones(len(codes)),
            restricted=name.endswith("relme"),
        )  # fmt: skip
        assert abs(linear.logl - stats.logl) < 1e-8  # tolerance of the fixed point, squared
        np.testing.assert_allclose(linear.mse, stats.mse, rtol=1e-6)


# ---------------------------------------------------------------- the path, and where it leads

TIGHT = {"TolX": 1e-9, "TolFun": 1e-9, "Jacobian": "on"}


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("matlab_theo_lme", {}),
        ("matlab_theo_lme", {"CovParameterization": "chol"}),
        ("matlab_theo_relme", {}),
        ("matlab_orange_re12", {"RefineBeta0": "off"}),
        ("matlab_theo_lme", {"ErrorModel": "proportional"}),
    ],
)
def test_the_path_leads_to_the_fixed_point(name, extra):
    """With tight tolerances and exact derivatives both algorithms meet (a simplex finds 1e-6 of psi)."""
    path, point = fit(name, Options=TIGHT, **extra), fit(name, **{**extra, **FIXED})
    close(path[0], point[0], 1e-6, "beta")
    close(path[1], point[1], 1e-5, "psi")
    close(path[2].covb, point[2].covb, 1e-5, "covb")
    assert abs(path[2].logl - point[2].logl) < 1e-6


def test_differences_are_those_of_the_step():
    """MATLAB's step moves psi by less than 1e-5 from exact derivatives; a coarse one by more."""
    exact = fit("matlab_theo_lme", Options={"Jacobian": "on"})[1]
    close(fit("matlab_theo_lme")[1], exact, 1e-5, "psi")
    coarse = fit("matlab_theo_lme", Options={"DerivStep": 0.05})[1]
    assert np.max(np.abs(coarse - exact)) > 1e-4 * np.max(exact)


def test_a_correlation_at_its_bound_is_not_left_to_rounding():
    """Three correlated effects of Indometh: a change of 1e-13 in y moves pynlme's logl between 58.429 and 58.473."""
    ref = reference("nlme", "matlab_indometh_re123")
    x, y, *rest = arguments(ref)
    options = {**ref["name_value"], "CovPattern": np.ones((3, 3))}
    found = []
    for k in range(2):
        moved = y.to_numpy() * (1 + k * 1e-13 * np.cos(np.arange(66)))
        with pytest.warns(SingularFitWarning, match="correlation"):
            found.append(nlmefit(x, moved, *rest, **options)[2].logl)
    assert found == pytest.approx([58.47318, 58.47318], abs=2e-5)


# ---------------------------------------------------------------- FO and FOCE

# exact_theo_base.json, FO and FOCE optima (pynlme's FO and FOCE agree to five decimals)
FIRST_ORDER = {"FO": -166.91666, "FOCE": -172.09429}


@pytest.mark.parametrize("name", list(FIRST_ORDER))
def test_first_order_approximations(name):
    _, psi, stats, b = fit("matlab_theo_lme", ApproximationType=name)
    assert abs(stats.logl - FIRST_ORDER[name]) < 1e-4
    assert stats.dfe == 113 and stats.errorparam.shape == (1,)
    assert np.all(stats.sebeta > 0) and np.all(np.isfinite(stats.cwres))
    assert np.all(b == 0) if name == "FO" else np.all(np.std(b, axis=1) > 0)


def test_first_order_exponential_leaves_the_jacobian_out():
    """pynlme's number, 2.377; with -sum(log y) it would be about -182."""
    _, _, stats, _ = fit("matlab_theo_exponential", ApproximationType="FOCE")
    assert abs(stats.logl - 2.377) < 1e-3


# pynlme 0.5.1 (FOCE figures to three decimals); the weights settle at its tolerance of 1e-6
REWEIGHTED = {
    ("FO", "proportional"): (-156.62766, [0.10584695], 0.01120358),
    ("FO", "combined"): (-157.53805, [0.526939, 0.20370561], 0.12784324),
    ("FOCE", "proportional"): (-179.177, None, None),
    ("FOCE", "combined"): (-171.768, None, None),
}


@pytest.mark.parametrize(("name", "error_model"), list(REWEIGHTED))
def test_first_order_errors_that_depend_on_f(name, error_model):
    _, _, stats, b = fit("matlab_theo_lme", ApproximationType=name, ErrorModel=error_model)
    logl, errorparam, mse = REWEIGHTED[name, error_model]
    assert stats.converged
    assert abs(stats.logl - logl) < 2e-3
    if errorparam is not None:
        close(stats.errorparam, errorparam, 1e-3, "errorparam")
        close(stats.mse, mse, 1e-3, "mse")
    if error_model == "proportional":
        assert stats.errorparam[0] == pytest.approx(np.sqrt(stats.mse))


def test_lme_proportional():
    """At the fixed point: weights 1/|f|, so mse is the mean square of the weighted problem."""
    _, _, stats, _ = fit("matlab_theo_lme", ErrorModel="proportional")
    assert stats.converged
    assert stats.errorparam[0] == pytest.approx(np.sqrt(stats.mse))
    f = arguments(reference("nlme", "matlab_theo_lme"))[1].to_numpy() - stats.pres
    np.testing.assert_allclose(stats.iwres, stats.ires / (stats.errorparam[0] * np.abs(f)))


def test_lme_proportional_where_the_model_is_zero():
    """R's Theoph has rows at time 0, where f = 0: they get weight 1, as in MATLAB.

    Numbers of pynlme 0.5.1 at its default tolerances (1e-4); weighted residuals do not exist.
    """
    frame = data("theoph.csv")
    x, y, group = frame[["Dose", "Time"]].to_numpy(float), frame["conc"], frame["Subject"]
    beta, psi, stats, _ = nlmefit(
        x, y, group, None, theo, [0.5, -0.7, -3.0], ParamTransform=[1, 1, 1],
        REParamsSelect=[1, 3], ErrorModel="proportional",
    )  # fmt: skip
    close(beta, [0.23848286, -0.81820382, -3.23192705], 1e-4, "beta")
    close(np.diag(psi), [0.45018932, 0.05741747], RTOL, "psi")
    assert abs(stats.logl + 183.54296) < 1e-3
    close(stats.errorparam, [0.18624075], 1e-3, "errorparam")
    assert stats.iwres is stats.pwres is stats.cwres is None


# ---------------------------------------------------------------- the same fit said differently


def same(one, two, rtol=1e-5):
    """Two converged fits of one model; 1e-5: the fixed point's tolerance is 1e-7 se per step."""
    for a, b in zip(one[:2], two[:2], strict=True):
        close(a, b, rtol, "estimate")
    assert abs(one[2].logl - two[2].logl) < 1e-6
    close(one[2].cwres, two[2].cwres, 1e-4, "cwres")


@pytest.fixture(scope="module")
def theo_lme():
    return fit("matlab_theo_lme")


@pytest.mark.parametrize(
    "extra",
    [
        {"Vectorization": "SingleGroup"},
        {"CovPattern": [1, 2, 3]},
        {"cov_pattern": np.eye(3), "re_params_select": [0, 1, 2]},
        {"FEConstDesign": np.eye(3), "REParamsSelect": [True, True, True]},
        {"FEGroupDesign": np.repeat(np.eye(3)[..., None], 12, axis=2)},
        {"REGroupDesign": np.repeat(np.eye(3)[..., None], 12, axis=2)},
        {"FEObsDesign": np.repeat(np.eye(3)[..., None], 120, axis=2)},
        {"Options": statset("nlmefit", MaxIter=100, FunValCheck="off")},
        {"ErrorParameters": 0.7},
    ],
    ids=lambda extra: "-".join(extra),
)
def test_equivalent_options(theo_lme, extra):
    same(fit("matlab_theo_lme", **extra), theo_lme)


@pytest.mark.parametrize("extra", [{}, {"REObsDesign": np.repeat(np.eye(3)[..., None], 120, 2)}])
def test_full_vectorization(theo_lme, extra):
    ref = reference("nlme", "matlab_theo_lme")
    x, y, group, _, _, beta0 = arguments(ref)
    full = nlmefit(
        x, y, group, [], theo_full, beta0, Vectorization="Full", **ref["name_value"], **extra
    )
    same(full, theo_lme)


def test_rows_in_any_order(theo_lme):
    """Row G05: groups scattered; residuals come back in the caller's order."""
    ref = reference("nlme", "matlab_theo_lme")
    x, y, group, _, model, beta0 = arguments(ref)
    order = np.argsort(np.random.default_rng(1).permutation(120) % 10, kind="stable")
    beta, psi, stats, b = nlmefit(
        x[order], y.to_numpy()[order], group.to_numpy()[order], None, model, beta0,
        **ref["name_value"],
    )  # fmt: skip
    close(beta, theo_lme[0], 1e-6, "beta")
    close(psi, theo_lme[1], 1e-6, "psi")
    close(b, theo_lme[3], 1e-6, "b")
    close(stats.ires, theo_lme[2].ires[order], 1e-6, "ires")
    text = np.array([f"subject {g:02d}" for g in group])
    named = nlmefit(x, y, text, None, model, beta0, **ref["name_value"])
    assert named[2].group_labels[0] == "subject 01"
    close(named[3], theo_lme[3], 1e-6, "b")


def test_group_predictors_shift_a_parameter():
    """Asym + v with v = 10 for all trees: Asym is 10 lower, all else equal."""
    ref = reference("nlme", "matlab_orange_re12")
    x, y, group, _, model, beta0 = arguments(ref)
    options = {**ref["name_value"], **FIXED}
    plain = nlmefit(x, y, group, None, model, beta0, **options)
    for fun, vectorization in ((orange_v, "SinglePhi"), (orange_full_v, "Full")):
        moved = nlmefit(
            x, y, group, np.full((5, 1), 10.0), fun, beta0, Vectorization=vectorization, **options,
        )  # fmt: skip
        close(moved[0] + [10, 0, 0], plain[0], 1e-6, "beta")
        assert abs(moved[2].logl - plain[2].logl) < 1e-7


def test_group_design_is_a_covariate():
    """A 0/1 group covariate on log clearance equals the same column as an observation design."""
    ref = reference("nlme", "matlab_theo_lme")
    args = arguments(ref)
    heavy = (np.arange(12) % 2).astype(float)
    by_group = np.zeros((3, 4, 12))
    by_group[:, :3] = np.eye(3)[..., None]
    by_group[2, 3] = heavy
    codes = np.unique(args[2], return_inverse=True)[1]
    beta0 = [*ref["beta0"], 0.0]
    one = nlmefit(*args[:5], beta0, FEGroupDesign=by_group, ParamTransform=[1, 1, 1])
    two = nlmefit(*args[:5], beta0, FEObsDesign=by_group[:, :, codes], ParamTransform=[1, 1, 1])
    same(one, two)
    assert one[2].dfe == 112 and one[0].shape == (4,)
    assert one[2].logl > fit("matlab_theo_lme")[2].logl


def test_probit_and_logit_parameters():
    """A bounded parameter by code 2 or 3 gives the same curve: equal logl when it has no b."""
    frame = data("orange.csv")
    x, y, group = frame[["age"]].to_numpy(float), frame["circumference"] / 400, frame["Tree"]
    shared = {"REParamsSelect": [2]}
    fits = {
        code: nlmefit(x, y, group, None, orange_scaled, [start, 7, 3], ParamTransform=[code, 0, 0],
                      **shared)
        for code, start in ((0, 0.5), (2, 0.1), (3, 0.2))
    }  # fmt: skip
    asym = fits[0][0][0]
    assert jax.scipy.stats.norm.cdf(fits[2][0][0]) == pytest.approx(asym, rel=1e-4)
    assert 1 / (1 + np.exp(-fits[3][0][0])) == pytest.approx(asym, rel=1e-4)
    assert fits[2][2].logl == pytest.approx(fits[0][2].logl, abs=1e-5)


def orange_scaled(phi, x):
    return phi[0] / (1 + jnp.exp(-(x[:, 0] / 100 - phi[1]) / phi[2]))


# ---------------------------------------------------------------- Options


def test_output_function_sees_and_stops(theo_lme):
    seen = []

    def watch(beta, status, state):
        seen.append((state, status.iteration, status.fval, status.Psi))
        return state == "iter" and status.iteration >= 3

    with pytest.warns(ConvergenceWarning, match="Stopped by OutputFcn"):
        _, _, stats, _ = fit("matlab_theo_lme", Options={"OutputFcn": watch})
    assert [s[0] for s in seen] == ["init", "iter", "iter", "iter", "done"]
    assert not stats.converged and stats.message == "Stopped by OutputFcn."
    assert seen[3][3].shape == (3, 3)
    assert abs(seen[3][2] + theo_lme[2].logl) < 1.0


def test_output_function_sees_theta_in_matlabs_parameterisation(theo_lme):
    for name, error in (("logm", "constant"), ("chol", "constant"), ("logm", "combined")):
        last = {}

        def watch(beta, status, state, last=last):
            if state == "iter":
                last.update(theta=status.theta, mse=status.mse)

        _, psi, stats, _ = fit(
            "matlab_theo_lme", Options={"OutputFcn": [watch]}, CovParameterization=name,
            ErrorModel=error,
        )  # fmt: skip
        variance = np.diag(psi) / stats.mse
        expected = -np.log(variance) if name == "logm" else variance**-0.5
        np.testing.assert_allclose(last["theta"], expected, rtol=1e-5)
        assert last["mse"] == pytest.approx(stats.mse)


def test_display(capsys):
    fit("matlab_theo_lme", Options={"Display": "iter"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ALT") and "-logl" in lines[0]
    assert lines[-1].startswith("nlmefit: The fit converged.")
    fit("matlab_theo_lme", Options={"Display": "final"})
    assert len(capsys.readouterr().out.splitlines()) == 1
    fit("matlab_theo_lme")
    assert capsys.readouterr().out == ""


def test_iteration_limit_warns_and_returns():
    with pytest.warns(ConvergenceWarning, match="MaxIter is 2"):
        beta, _, stats, _ = fit("matlab_theo_lme", Options={"MaxIter": 2})
    assert not stats.converged and stats.n_iter == 2 and np.all(np.isfinite(beta))


def test_looser_tolerance_stops_earlier(theo_lme):
    tight = fit("matlab_theo_lme", Options={"TolX": 1e-7, "TolFun": 1e-7})[2]
    assert tight.n_iter > theo_lme[2].n_iter
    loose = fit("matlab_theo_lme", **FIXED, Options={"TolX": 1e-2})[2]
    assert loose.n_iter < fit("matlab_theo_lme", **FIXED)[2].n_iter
    loose = fit("matlab_theo_lme", Options={"TolFun": 1e-4}, ApproximationType="FOCE")[2]
    assert loose.n_iter < fit("matlab_theo_lme", ApproximationType="FOCE")[2].n_iter


# ---------------------------------------------------------------- bad input, before any fit


def nan_at_start(phi, x):
    return jnp.sqrt(phi[0] - x[:, 0])


def idle(phi, x):
    return phi[0] / (1 + jnp.exp(-(x[:, 0] - phi[1]) / phi[2])) + 0 * phi[3]


def numpy_model(phi, x):
    return phi[0] / (1 + np.exp(-(x[:, 0] - phi[1]) / phi[2]))


def mixing(phi, x):
    return orange(phi, x) * jnp.mean(x[:, 0]) / 900


def negative(phi, x):
    return -orange(phi, x)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"modelfun": nan_at_start}, ModelSpecError, "NaN or infinity.*group 1, rows"),  # N01
        ({"modelfun": mixing}, ModelSpecError, "mixes the rows of a group: in group 1"),
        ({"modelfun": numpy_model}, ModelSpecError, "jax.numpy.*jn.nlme.from_numpy"),  # N01
        ({"beta0": [190, 730]}, ModelSpecError, "unpack|phi has 2 model parameters"),  # N02
        ({"modelfun": idle, "beta0": [190, 730, 350, 1]}, ModelSpecError, "parameter 4 of 4"),
        ({"group": np.ones(35)}, DataError, "one level only"),  # G01
        ({"group": np.arange(35)}, DataError, "not identified"),  # G02
        ({"y": np.ones(34)}, DataError, "34"),  # D15
        ({"y": np.ones((35, 1))}, DataError, r"\(35, 1\)"),  # D16
        ({"ParamTransform": [0, 1]}, ModelSpecError, "ParamTransform has 2 codes.*3"),
        ({"ErrorModel": "exponential", "y": -np.ones(35)}, DataError, "y <= 0 in 35 rows"),
        ({"ErrorModel": "exponential", "modelfun": negative}, ModelSpecError, "not positive"),
        ({"ErrorModel": "combined", "ErrorParameters": 1}, ModelSpecError, "combined.*has 2"),
        ({"Options": {"DerivStep": 1e-3}, **FIXED}, ModelSpecError, "DerivStep"),
        ({"Options": {"DerivStep": 1e-3, "Jacobian": "on"}}, ModelSpecError, "DerivStep"),
        ({"REParamsSelect": [4]}, ModelSpecError, "beyond the last parameter"),
        ({"Cov0": np.eye(2)}, TypeError, "nlmefitsa"),
    ],
)  # fmt: skip
def test_bad_calls(changes, error, text):
    frame = data("orange.csv")
    call = {
        "X": frame["age"].to_numpy(float), "y": frame["circumference"], "group": frame["Tree"],
        "V": None, "modelfun": orange, "beta0": [190, 730, 350],
    }  # fmt: skip
    with pytest.raises(error, match=text):
        nlmefit(**{**call, **changes})


def test_nan_during_the_fit():
    """An asymptote above the bound of a probit parameter: the estimate runs to infinity."""
    frame = data("orange.csv")
    call = (frame[["age"]].to_numpy(float), frame["circumference"] / 250, frame["Tree"], None)
    options = {"ParamTransform": [2, 0, 0], "REParamsSelect": [2]}
    with pytest.raises(ModelSpecError, match=r"NaN or infinite during the fit, after beta = \[\d"):
        nlmefit(*call, orange_scaled, [0.7, 7, 3], **options)
    with pytest.warns(ConvergenceWarning, match="not finite"):
        _, _, stats, _ = nlmefit(
            *call, orange_scaled, [0.7, 7, 3], Options={"FunValCheck": "off"}, **options
        )
    assert not stats.converged and np.all(np.isnan(stats.sebeta)) and stats.cwres is None


def test_other_data_of_the_same_bucket_do_not_compile():
    """Perturbed responses, fewer rows, another start: every program is found."""
    ref = reference("nlme", "matlab_theo_lme")
    x, y, group, _, model, beta0 = arguments(ref)
    nlmefit(x, y, group, None, model, beta0, **ref["name_value"])
    keep = np.arange(120) != 7
    other = (x[keep], 1.01 * y.to_numpy()[keep], group.to_numpy()[keep], None)
    with _compilations() as found:
        nlmefit(*other, model, [0.4, 3.5, 1.1], **ref["name_value"])
    assert found == []
    with _compilations() as found:  # a new function is a new program: the count works
        nlmefit(*other, lambda phi, x: theo(phi, x), beta0, **ref["name_value"])
    assert any("step" in text for text in found)


@contextlib.contextmanager
def _compilations():
    found: list[str] = []
    handler = logging.Handler()

    def emit(record):
        if record.getMessage().startswith("Compiling"):
            found.append(record.getMessage())

    handler.emit = emit
    logger = logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield found
    finally:
        logger.removeHandler(handler)


def test_callers_precision_is_left_alone(theo_lme):
    assert jnp.ones(1).dtype == np.float32
    assert theo_lme[0].dtype == theo_lme[2].covb.dtype == np.float64
    assert type(theo_lme[3]) is np.ndarray
