"""Name-value arguments, statset, data, designs and the model function of the MATLAB door."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxnlme._errors import DataError, DataWarning, ModelSpecError
from jaxnlme.api import _matlab_data as md
from jaxnlme.api import _matlab_model as mm
from jaxnlme.api._matlab_options import CHOICES, NAMES, STATSET, parse_options, statset
from jaxnlme.numerics.bijectors import as_bijector

# ---------------------------------------------------------------- names


def test_every_documented_name_is_known():
    documented = (
        "FEParamsSelect FEConstDesign FEGroupDesign FEObsDesign REParamsSelect REConstDesign "
        "REGroupDesign REObsDesign ApproximationType Vectorization CovParameterization CovPattern "
        "ParamTransform ErrorModel ErrorParameters RefineBeta0 Options OptimFun"
    ).split()
    assert set(documented) == set(NAMES)
    defaults = {
        "DerivStep": np.finfo(float).eps ** (1 / 3), "Display": "off", "FunValCheck": "on",
        "Jacobian": "off", "MaxIter": 200, "OutputFcn": None, "TolFun": 1e-4, "TolX": 1e-4,
    }  # fmt: skip
    assert defaults == STATSET


def test_defaults_are_matlabs():
    options = parse_options({})
    assert options.approximation_type == "LME"
    assert options.vectorization == "SinglePhi"
    assert options.cov_parameterization == "logm"
    assert options.error_model == "constant"
    assert options.refine_beta0 is True
    assert options.optim_fun == "fminsearch"
    assert options.fixed is options.random is options.cov_pattern is options.param_transform is None
    assert options.missing == "raise"


@pytest.mark.parametrize("name", [n for n in CHOICES if n != "missing"])
def test_words_are_matched_without_case_in_both_spellings(name):
    for choice in CHOICES[name]:
        for key in (name, name.lower(), name.upper(), NAMES[name]):
            assert getattr(parse_options({key: choice.upper()}), NAMES[name]) == choice


def test_matlab_names_count_from_one_and_snake_case_from_zero():
    data = _data()
    for options in ({"REParamsSelect": [1, 3]}, {"re_params_select": [0, 2]}):
        designs = md.build_designs(parse_options(options), np.ones(3), data, 6)
        np.testing.assert_array_equal(designs.random, np.eye(3)[:, [0, 2]])
    logical = parse_options({"REParamsSelect": [True, False, True]})
    designs = md.build_designs(logical, np.ones(3), data, 6)
    np.testing.assert_array_equal(designs.random, np.eye(3)[:, [0, 2]])


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"ParamTransfrom": [0]}, TypeError, "Did you mean 'ParamTransform'"),
        ({"param_transfrom": [0]}, TypeError, "Did you mean 'param_transform'"),
        ({"Nonsense": 1}, TypeError, "no argument 'Nonsense'"),
        ({"NChains": 2}, TypeError, "belongs to nlmefitsa"),
        ({"replicates": 2}, TypeError, "belongs to nlmefitsa"),
        ({"ErrorModel": "constant", "error_model": "constant"}, TypeError, "given twice"),
        ({"ErrorModel": "constant", "errormodel": "constant"}, TypeError, "given twice"),
        ({"ParamTransform": [0, 7]}, ModelSpecError, "the code 7"),
        ({"ParamTransform": ["log"]}, ModelSpecError, "0, 1, 2 or 3"),
        ({"REParamsSelect": [0, 5]}, ModelSpecError, "numbers parameters from 1"),
        ({"re_params_select": [-1]}, ModelSpecError, "numbers them from 0"),
        ({"REParamsSelect": [1, 1]}, ModelSpecError, "each parameter once"),
        ({"REParamsSelect": [1.5]}, ModelSpecError, "whole numbers"),
        ({"REParamsSelect": []}, ModelSpecError, "selects no parameter"),
        ({"FEParamsSelect": [False, False]}, ModelSpecError, "selects no parameter"),
        ({"FEParamsSelect": [1], "FEConstDesign": [[1.0]]}, ModelSpecError, "at most one of FE"),
        ({"REConstDesign": [[1.0]], "re_obs_design": np.ones((1, 1, 6))}, ModelSpecError, "at "),
        ({"ApproximationType": "SAEM"}, ModelSpecError, "LME, RELME, FO, FOCE"),
        ({"ErrorModel": "combined2"}, ModelSpecError, "use fit_nlme"),
        ({"ErrorModel": "proportionl"}, ModelSpecError, "Did you mean 'proportional'"),
        ({"ErrorParameters": [1, -1]}, ModelSpecError, "positive number"),
        ({"RefineBeta0": "maybe"}, ModelSpecError, "'on' or 'off'"),
        ({"OptimFun": "fmincon"}, ModelSpecError, "fminsearch, fminunc"),
        ({"Options": 3}, ModelSpecError, "give statset"),
        ({"CovPattern": np.ones((2, 2, 2))}, ModelSpecError, r"shape \(2, 2, 2\)"),
        ({"FEGroupDesign": np.ones(3)}, ModelSpecError, "p x k x m"),
        ({"FEConstDesign": [[np.nan]]}, ModelSpecError, "not finite"),
        ({"missing": "omit"}, ModelSpecError, "raise, drop"),
    ],
)  # fmt: skip
def test_bad_arguments_name_the_argument_and_the_cure(given, error, text):
    with pytest.raises(error, match=text):
        parse_options(given)


def test_empty_means_default():
    empty = {"CovPattern": [], "ErrorModel": [], "Options": None, "FEConstDesign": []}
    options = parse_options(empty)
    assert options == parse_options({})


def test_on_and_off_take_booleans():
    assert parse_options({"RefineBeta0": "OFF"}).refine_beta0 is False
    assert parse_options({"refine_beta0": False}).refine_beta0 is False


# ---------------------------------------------------------------- statset


def test_statset_spellings():
    for options in (
        statset("nlmefit", TolX=1e-6, Display="ITER"),
        statset(tol_x=1e-6, display="iter"),
        statset("tolx", 1e-6, "DISPLAY", "iter"),
        statset(statset(TolX=1e-6), Display="iter"),
        parse_options({"Options": {"TolX": 1e-6, "Display": "iter"}}).options,
    ):
        assert options.TolX == options["tol_x"] == 1e-6
        assert options.Display == "iter"
        assert options.given == ("Display", "TolX")
        assert options.MaxIter == 200
        assert list(options) == list(STATSET)


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"TolXX": 1}, TypeError, "Did you mean 'TolX'"),
        ({"UseParallel": True}, TypeError, "does not read the statset field 'UseParallel'"),
        ({"TolX": 1, "tol_x": 1}, TypeError, "given twice"),
        ({"TolX": -1}, ModelSpecError, "positive number"),
        ({"TolFun": "small"}, ModelSpecError, "positive number"),
        ({"MaxIter": 2.5}, ModelSpecError, "whole number"),
        ({"Display": "loud"}, ModelSpecError, "off"),
        ({"FunValCheck": "yes"}, ModelSpecError, "'on' or 'off'"),
        ({"Jacobian": "exact"}, ModelSpecError, "'on' or 'off'"),
        ({"OutputFcn": "plot"}, ModelSpecError, r"stop = f\(beta, status, state\)"),
        ({"DerivStep": [1e-3, 1e-4]}, ModelSpecError, "one step"),
    ],
)
def test_bad_statset_fields(fields, error, text):
    with pytest.raises(error, match=text):
        statset(**fields)


def test_statset_positional_errors():
    with pytest.raises(ModelSpecError, match="statset\\('nlinfit'\\)"):
        statset("nlinfit")
    with pytest.raises(AttributeError, match="no field 'TolY'"):
        _ = statset().TolY


# ---------------------------------------------------------------- data


def _data(V=None, n=6):
    return md.read_data(np.arange(n, dtype=float), np.ones(n), np.repeat([1, 2], n // 2), V)


def test_groups_are_sorted_numerically_and_rows_keep_their_order():
    """Row G05 of bad_inputs: unsorted, non-contiguous group ids work."""
    data = md.read_data(np.arange(5.0), np.arange(5.0), [10, 9, 10, 2, 9], None)
    assert data.labels == (2, 9, 10)
    assert data.codes.tolist() == [2, 1, 2, 0, 1]
    assert data.group_rows(2).tolist() == [0, 2]
    text = md.read_data(np.arange(4.0), np.arange(4.0), ["b", "a", "b", "a"], [])
    assert text.labels == ("a", "b") and text.V is None
    category = pd.Series(pd.Categorical(["x", "y", "x", "y"], categories=["z", "y", "x"]))
    data = md.read_data(np.arange(4.0), np.arange(4.0), category, None)
    assert data.labels == ("x", "y") and data.codes.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("X", "y", "group", "text"),
    [
        (np.ones(6), np.ones(5), np.repeat([1, 2], 3), "5"),  # D15
        (np.ones(6), np.ones((6, 1)), np.repeat([1, 2], 3), r"\(6, 1\).*ravel"),  # D16
        (np.ones(6), np.ones((6, 2)), np.repeat([1, 2], 3), r"\(6, 2\)"),  # D16
        (np.ones(6), [1, 1, np.inf, 1, 1, 1], np.repeat([1, 2], 3), "y .*infinite.*2"),  # D03
        ([1, 1, 1, 1, -np.inf, 1], np.ones(6), np.repeat([1, 2], 3), "X .*infinite.*4"),  # D03
        (np.ones(6), [1, np.nan, 1, 1, np.nan, 1], np.repeat([1, 2], 3), "y in 2 rows .rows 1, 4"),
        (np.ones(6), np.ones(6), np.ones(6), "one level only"),  # G01
        (np.ones(6), np.ones(6), None, "one group"),
        (np.ones(6), np.ones(6), [], "one group"),
        (np.ones(6), np.ones(6), np.arange(6), "not identified"),  # G02
        (np.ones(6), np.ones(6), [1, 1, 1, 2, 2], "5"),
    ],
)
def test_bad_data(X, y, group, text):
    with pytest.raises(DataError, match=text):
        md.read_data(X, y, group, None)


def test_missing_rows_can_be_dropped():
    y = np.array([1, np.nan, 1, 1, 1, 1.0])
    with pytest.warns(DataWarning, match="1 of 6 rows dropped"):
        data = md.read_data(np.arange(6.0), y, np.repeat([1, 2], 3), [[7.0], [8.0]], "drop")
    assert data.row_index.tolist() == [0, 2, 3, 4, 5]
    assert data.codes.tolist() == [0, 0, 1, 1, 1]
    y = np.array([np.nan, np.nan, 1, 1, 1, 1.0])
    with pytest.warns(DataWarning) as record:
        data = md.read_data(np.arange(6.0), y, [1, 1, 2, 2, 3, 3], [[7.0], [8.0], [9.0]], "drop")
    assert "no complete row is left in group 1" in str([str(w.message) for w in record])
    assert data.labels == (2, 3)
    np.testing.assert_array_equal(data.V, [[8.0], [9.0]])


def test_group_predictors():
    np.testing.assert_array_equal(_data(np.array([[1.0, 2], [3, 4]])).V, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(_data([5.0, 6.0]).V, [[5], [6]])
    np.testing.assert_array_equal(_data(pd.DataFrame({"w": [5, 6]})).V, [[5], [6]])
    assert _data([np.ones((2, 3)), np.zeros((2, 3))]).V.shape == (2, 2, 3)
    first, second = _data([(1.0, [1.0, 2]), (3.0, [4.0, 5])]).V
    np.testing.assert_array_equal(first, [1, 3])
    np.testing.assert_array_equal(second, [[1, 2], [4, 5]])
    cells = np.empty((2, 2), object)
    cells[0, 0], cells[0, 1], cells[1, 0], cells[1, 1] = 1.0, np.ones(3), 2.0, np.zeros(3)
    first, second = _data(cells).V
    assert first.shape == (2,) and second.shape == (2, 3)


@pytest.mark.parametrize(
    ("V", "text"),
    [
        (np.ones((3, 1)), "2 groups"),
        ([1.0, np.nan], "not finite"),
        ([np.ones(2), np.ones(3)], "one shape is needed"),
        (["a", "b"], "not numbers"),
        ([(1.0, 2.0), (1.0,)], "tuple of the same length"),
    ],
)
def test_bad_group_predictors(V, text):
    with pytest.raises(DataError, match=text):
        _data(V)


# ---------------------------------------------------------------- designs


def test_designs_by_group_and_by_row():
    data = _data()
    rng = np.random.default_rng(0)
    by_group, by_row = rng.random((3, 4, 2)), rng.random((3, 2, 6))
    options = parse_options({"FEGroupDesign": by_group, "REObsDesign": by_row})
    designs = md.build_designs(options, np.ones(4), data, 6)
    assert (designs.num_params, designs.num_fixed, designs.num_random) == (3, 4, 2)
    np.testing.assert_array_equal(designs.rows("fixed", data.codes)[4], by_group[:, :, 1])
    np.testing.assert_array_equal(designs.rows("random", data.codes)[4], by_row[:, :, 4])


def test_number_of_parameters_comes_from_what_says_it():
    data = _data()
    cases = [
        ({"FEParamsSelect": [1, 2], "REParamsSelect": [2, 3]}, 2, 3),
        ({"FEParamsSelect": [1, 2, 3], "ParamTransform": [0, 1, 0]}, 3, 3),
        ({"FEParamsSelect": [True, True, False], "REParamsSelect": [3]}, 2, 3),
        ({"REConstDesign": np.eye(3)[:, :1]}, 3, 3),
        ({}, 4, 4),
    ]
    for given, f, p in cases:
        assert md.build_designs(parse_options(given), np.ones(f), data, 6).num_params == p


@pytest.mark.parametrize(
    ("given", "f", "text"),
    [
        ({"ParamTransform": [0, 1, 0]}, 4, "ParamTransform has 3 codes.*beta0 of length 4"),
        ({"FEParamsSelect": [1, 2]}, 3, "beta0 has 3 values.*FEParamsSelect means 2"),
        ({"REParamsSelect": [5]}, 4, "beyond the last parameter.*4 model parameters"),
        ({"REParamsSelect": [True, False]}, 4, "beta0 has 4 values"),
        ({"FEConstDesign": np.eye(3)[:, :2], "REConstDesign": np.eye(2)}, 2, "has 2 rows.*3 model"),
        ({"FEGroupDesign": np.ones((2, 2, 3))}, 2, "there are 2 groups"),
        ({"FEObsDesign": np.ones((2, 2, 3))}, 2, "there are 6 rows"),
        ({"FEConstDesign": np.eye(3)[:, :2], "REParamsSelect": [1]}, 2, "parameter 3 has neither"),
    ],
)
def test_sizes_that_disagree_name_both_arguments(given, f, text):
    with pytest.raises(ModelSpecError, match=text):
        md.build_designs(parse_options(given), np.ones(f), _data(), 6)


@pytest.mark.parametrize("beta0", [[], "abc", [1, np.nan], np.ones((2, 2))])
def test_bad_beta0(beta0):
    with pytest.raises(ModelSpecError, match="beta0"):
        md.read_beta0(beta0)


def test_covariance_pattern_is_closed_to_blocks():
    assert md.covariance_pattern(None, 2) == ((1, 0), (0, 1))
    assert md.covariance_pattern(np.ones((2, 2)), 2) == ((1, 1), (1, 1))
    assert md.covariance_pattern(np.array([1.0, 1, 2]), 3) == ((1, 1, 0), (1, 1, 0), (0, 0, 1))
    chain = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], float)
    assert md.covariance_pattern(chain, 4) == ((1, 1, 1, 0),) * 3 + ((0, 0, 0, 1),)
    with pytest.raises(ModelSpecError, match="2 random effects"):
        md.covariance_pattern(np.ones((3, 3)), 2)
    with pytest.raises(ModelSpecError, match="other than 0 and 1"):
        md.covariance_pattern(np.full((2, 2), 2.0), 2)


# ---------------------------------------------------------------- model function


def _check(modelfun, phi=(1.0, 2.0), V=None, vectorization="SinglePhi", obs=False):
    data = _data(V)
    function = mm.matlab_function(modelfun, vectorization, V is not None, obs)
    mm.check_trace(function, data, np.array(phi))
    return function


def _branching(phi, x):
    if phi[0] > 0:
        return phi[0] * x[:, 0]
    return phi[1] * x[:, 0]


@pytest.mark.parametrize(
    ("modelfun", "text"),
    [
        (3, "not a function"),
        (lambda phi: phi, "takes|needs 1 arguments"),
        (lambda a, b, c, d: a, "needs 4 arguments"),
        (lambda phi, x: phi[0] * np.exp(np.asarray(phi[1]) * x[:, 0]), "jax.numpy.*from_numpy"),
        (_branching, "jnp.where"),
        (lambda phi, x: phi[0] * jnp.stack([x[:, 0], x[:, 0]], 1), r"shape \(3, 2\).*x\[:, 0\]"),
        (lambda phi, x: phi[0], r"shape \(\)"),
        (lambda phi, x: (phi[0] * x[:, 0], 1), "tuple"),
        (lambda phi, x: phi[2] * x[:, 0], "phi has 2 model parameters"),
        (lambda phi, x: phi[0] * x[:, 1], "columns that it reads"),
        (lambda phi, x: jnp.dot(phi, jnp.ones(3)) * x[:, 0], "failed at the start values"),
    ],
)
def test_bad_model_functions(modelfun, text):
    """Row N01 of bad_inputs: wrong shape or not traceable, naming the first group."""
    with pytest.raises(ModelSpecError, match=text):
        _check(modelfun)


def test_model_errors_name_the_first_group_and_phi():
    with pytest.raises(ModelSpecError, match=r"first group \(1, phi = \[1., 2.\]\)"):
        _check(lambda phi, x: phi[0])
    data = _data()
    f = np.ones(6)
    f[5] = np.nan
    phi, same = np.repeat([[1.0, 2], [3, 4]], 3, axis=0), [as_bijector(None)] * 2
    with pytest.raises(ModelSpecError, match=r"group 2, rows 5, phi = \[3., 4.\]"):
        mm.check_start(f, phi, same, data, "constant")
    mm.check_start(np.ones(6), phi, same, data, "constant")
    with pytest.raises(ModelSpecError, match="exponential"):
        mm.check_start(f, phi, same, data, "exponential")


def test_mixed_rows_name_the_group():
    f = np.arange(6.0)
    mm.check_row_by_row(f, f, _data())
    with pytest.raises(ModelSpecError, match="mixes the rows of a group: in group 2"):
        mm.check_row_by_row(f, f + np.array([0, 0, 0, 0, 1, 0]), _data())


def test_group_predictors_need_a_third_argument():
    with pytest.raises(ModelSpecError, match="V is given"):
        _check(lambda phi, x: phi[0] * x[:, 0], V=[1.0, 2.0])
    assert _check(lambda phi, x, v: phi[0] * x[:, 0] + v[0], V=[1.0, 2.0]).pass_none is False
    assert _check(lambda phi, x, v=None: phi[0] * x[:, 0]).pass_none is False
    assert _check(lambda phi, x, v: phi[0] * x[:, 0]).pass_none is True


def test_vectorization_shapes():
    seen = []

    def model(phi, x, v):
        seen.append((phi.shape, x.shape, v.shape))
        return phi[..., 0] * x[:, 0]

    for vectorization, obs, shapes in (
        ("SinglePhi", False, ((2,), (3, 1), (1,))),
        ("SingleGroup", False, ((2,), (3, 1), (1,))),
        ("SingleGroup", True, ((3, 2), (3, 1), (1,))),
        ("Full", False, ((3, 2), (3, 1), (3, 1))),
    ):
        seen.clear()
        _check(model, V=[1.0, 2.0], vectorization=vectorization, obs=obs)
        assert seen[-1] == shapes  # the traced call; the first saw one row of numbers


def test_equal_functions_are_equal_keys():
    """A second call with the same modelfun must find the compiled program."""
    one, two = _check(_line), _check(_line)
    assert one == two and hash(one) == hash(two)


def _line(phi, x):
    return phi[0] * x[:, 0]


def test_idle_parameters_are_refused():
    J = np.ones((6, 3))
    J[:, 1] = 0
    with pytest.raises(ModelSpecError, match="parameter 2 of 3 has no effect"):
        mm.check_used([J, J])
    mm.check_used([J, np.ones((6, 3))])


def test_exponential_error_needs_positive_responses():
    data = md.read_data(np.arange(4.0), [1.0, 0.0, 2.0, -1.0], [1, 1, 2, 2], None)
    with pytest.raises(DataError, match=r"2 rows \(rows 1, 3"):
        mm.check_positive(data)
