"""What rustystats 0.9, glum and aurora 1.0 get wrong or refuse (measured against R), each by name.

The reference files hold R's numbers; the findings are those of a comparison over 69, 35 and 67 cases.
"""

from __future__ import annotations

import numpy as np
import pytest
from glm_cases import case, cases, fitted, frame, numbers, options
from numpy.testing import assert_allclose

import jaxnlme as jn
from jaxnlme import families

pytestmark = pytest.mark.filterwarnings(
    "ignore:response 'rate' is not a whole number:jaxnlme.DataWarning"
)


def close(name: str, key: str, *fields: str) -> None:
    fit, expected = fitted(name, key), case(name, key)["fit"]
    for field in fields:
        if field in ("coef", "se", "p_value"):
            got = {"coef": fit.params, "se": fit.bse, "p_value": fit.pvalues}[field]
            assert_allclose(np.asarray(got), numbers(expected[field]), rtol=1e-5, atol=1e-12)
        else:
            got = {"loglik": "llf"}.get(field, field)
            assert_allclose(getattr(fit, got), expected[field], rtol=1e-8)


# ---- rustystats 0.9 ----------------------------------------------------------------------------

REFUSED = {
    "probit": "binomial_probit_birthwt", "cloglog": "binomial_menarche_cloglog",
    "cauchit": "binomial_cauchit_birthwt", "inverse": "gamma_inverse_clotting",
    "sqrt": "poisson_sqrt_insectsprays", "1/mu^2": "invgauss_inverse_square_clotting",
}  # fmt: skip


@pytest.mark.parametrize("link", REFUSED)
def test_links_that_rustystats_refuses(link: str) -> None:
    assert case("families", REFUSED[link])["link"] == link
    close("families", REFUSED[link], "coef", "se")


@pytest.mark.parametrize("key", ["gaussian_identity_mtcars", "gamma_log_airquality"])
def test_p_values_are_students_t_where_the_dispersion_is_estimated(key: str) -> None:
    """rustystats uses the normal distribution: 50-100 % off."""
    assert case("families", key)["fit"]["stat_kind"] == "t"
    close("families", key, "p_value")


@pytest.mark.parametrize(
    "key", ["gaussian_identity_mtcars", "gamma_log_airquality", "gamma_log_leuk"]
)
def test_aic_counts_the_dispersion_and_llf_keeps_its_constants(key: str) -> None:
    """rustystats leaves the parameter out; its gaussian and gamma llf are 1e-3 off."""
    close("families", key, "loglik", "aic", "bic")


@pytest.mark.parametrize("key", ["binomial_counts_esoph", "binomial_menarche_logit"])
def test_grouped_binomial_likelihood_holds_the_binomial_coefficients(key: str) -> None:
    """rustystats is 14 times off."""
    close("families", key, "loglik", "aic")


def test_null_deviance_keeps_a_gaussian_offset() -> None:
    """rustystats ignores it. Without slopes the null model is the mean of y - offset."""
    data = frame(case("families", "gaussian_identity_mtcars"))
    fit = jn.fit_glm("mpg ~ wt", data, offset=data["hp"].to_numpy() / 20.0)
    rest = data["mpg"] - data["hp"] / 20.0
    assert_allclose(fit.null_deviance, np.sum((rest - rest.mean()) ** 2), rtol=1e-10)


def test_null_deviance_keeps_a_tweedie_offset() -> None:
    """rustystats is 15 % off."""
    close("tweedie", "pure_premium_offset", "null_deviance")


def test_weights_enter_the_sandwich_squared() -> None:
    """Prior weights: meat sum of w^2 r^2; rustystats takes w once, 36-94 % off."""
    key = "gaussian_weights_anorexia"
    fit, robust = fitted("families", key), case("families", key)["robust"]
    for kind in ("HC0", "HC1", "HC3"):
        se = np.sqrt(np.diag(np.asarray(fit.vcov(kind))))
        assert_allclose(se, numbers(robust[kind]), rtol=1e-7)


def test_negative_binomial_errors_are_not_scaled() -> None:
    """Dispersion 1 at the estimated theta (MASS); rustystats is 0.4-34 % off."""
    chosen = case("negbinomial", "quine_main")
    fit = jn.fit_glm(chosen["formula"], frame(chosen), family="negative_binomial")
    assert fit.dispersion == 1.0
    assert_allclose(np.asarray(fit.bse), numbers(chosen["fit"]["se"]), rtol=1e-5)
    assert_allclose(fit.aic, -chosen["twologlik"] + 2 * (len(fit.params) + 1), rtol=1e-9)


# ---- glum --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["poisson_log_warpbreaks", "binomial_logit_birthwt"])
def test_dispersion_of_counts_is_one(key: str) -> None:
    """glum estimates it even for Poisson and binomial: 2-270 % off."""
    assert fitted("families", key).dispersion == 1.0
    close("families", key, "se")


def test_dispersion_is_divided_by_the_degrees_of_freedom() -> None:
    """glum divides by n."""
    fit = fitted("families", "gaussian_identity_mtcars")
    assert_allclose(fit.dispersion, fit.pearson_chi2 / fit.df_resid, rtol=1e-12)
    close("families", "gaussian_identity_mtcars", "se", "dispersion")


# ---- aurora 1.0 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["invgauss_inverse_square_clotting", "invgauss_log_clotting", "gaussian_inverse_clotting"],
)
def test_inverse_gaussian_and_inverse_links(key: str) -> None:
    """aurora is 100 % off."""
    close("families", key, "coef", "se", "deviance")


def test_negative_binomial_with_weights() -> None:
    """aurora is 15 % off."""
    chosen = case("negbinomial", "quine_weights")
    fit = jn.fit_glm(
        chosen["formula"], frame(chosen), **{**options(chosen), "family": "negative_binomial"}
    )
    assert_allclose(fit.theta, chosen["theta"], rtol=1e-6)
    assert_allclose(np.asarray(fit.params), numbers(chosen["fit"]["coef"]), rtol=1e-6)


def test_tweedie_with_rate_weights() -> None:
    """aurora is 4 % off in coefficients and 100 % in the deviance."""
    close("tweedie", "insurance_rate_weights", "coef", "se", "deviance")


@pytest.mark.parametrize("key", ["gamma_identity_cars", "gamma_log_leuk"])
def test_gamma_errors(key: str) -> None:
    """aurora is 1-11 % off."""
    close("families", key, "se")


# ---- several -----------------------------------------------------------------------------------


def test_a_duplicate_column_is_aliased_not_split() -> None:
    """rustystats and glum raise, statsmodels and aurora split the coefficient."""
    x = np.arange(8.0)
    with pytest.warns(jn.CollinearityWarning, match="x2"):
        fit = jn.fit_glm(np.column_stack([x, x]), np.round(np.exp(0.2 * x)), family="poisson")
    assert np.isnan(fit.params["x2"])
    alone = jn.fit_glm(x[:, None], np.round(np.exp(0.2 * x)), family="poisson")
    assert_allclose(fit.params["x1"], alone.params["x1"], rtol=1e-10)


def test_an_unseen_level_is_an_error() -> None:
    """rustystats predicts the reference level without a word."""
    fit = fitted("families", "poisson_sqrt_insectsprays")
    with pytest.raises(jn.DataError, match="Z"):
        fit.predict({"spray": ["A", "Z"]})


def test_a_negative_count_is_an_error() -> None:
    """rustystats returns coefficients."""
    with pytest.raises(jn.DataError, match="negative"):
        jn.fit_glm(np.arange(4.0)[:, None], np.array([1.0, -1.0, 2.0, 3.0]), family="poisson")


def test_spline_columns_are_counted_as_in_r() -> None:
    """``bs(x, df=5)`` and ``ns(x, df=5)`` have five columns; rustystats has four."""
    data = frame(case("families", "poisson_biochemists"))
    for basis in ("bs", "ns"):
        fit = jn.fit_glm(f"art ~ {basis}(ment, df=5)", data, family=families.Poisson())
        assert len(fit.params) == 6


def test_there_is_no_case_left_out() -> None:
    """Every link of the reference cases is fitted somewhere above or in test_reference."""
    links = {c["link"] for c in cases("families")}
    assert links == {
        "identity",
        "log",
        "inverse",
        "logit",
        "probit",
        "cauchit",
        "cloglog",
        "sqrt",
        "1/mu^2",
    }
