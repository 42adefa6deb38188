"""Parallel tempering: modes far apart get their weights, and the evidence is the exact one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats as st
from calibration import posteriors, small
from calibration.test_moments import check_moments

from jaxnlme import ModelSpecError
from jaxnlme.calibration import ModelRunner, Normal, ParameterSet, Target, make_posterior, sample
from jaxnlme.calibration.tempering import _Ladder


@pytest.mark.parametrize(
    "name", ["mixture_a", pytest.param("mixture_b", marks=pytest.mark.study),
             pytest.param("banana_a", marks=pytest.mark.study)]
)  # fmt: skip
def test_moments_and_evidence_of_the_references(name: str) -> None:
    """24 runs: means, second moments and quantiles by tests between runs; evidence 0 within 3 se."""
    mean, sd, *_ = posteriors.moments(name)
    init = mean + 1.2 * sd * np.random.default_rng(3).normal(size=(400, len(mean)))
    chain = sample(posteriors.density(name), method="tempering", init=init, num_steps=500,
                   n_ensembles=24, n_walkers=16, moves="de", key=1)  # fmt: skip
    assert chain.samples.shape == (500, 24 * 16, len(mean))
    check_moments(name, chain)
    info = chain.info
    assert abs(info["log_evidence"]) < 3 * np.hypot(info["log_evidence_se"], 0.002)
    assert info["log_evidence_se"] < 0.05
    shares = np.array(info["swap_acceptance"])
    assert shares.min() > 0.2
    assert shares.max() - shares.min() < 0.15  # the ladder has settled
    assert info["betas"][0] == 0
    assert info["betas"][-1] == 1
    assert (np.diff(info["betas"]) > 0).all()


def squared(params):
    return {"y": params["a"][None] ** 2 + params["b"][None]}


def test_modes_a_hundred_standard_deviations_apart() -> None:
    """a^2 + b seen as 9 within 0.1, b near 0 and 0.1 small: a is 3 or -3, unequal priors weigh them 1 : 4.5."""
    posterior = make_posterior(
        ParameterSet({"a": Normal(0.5, 2.0), "b": Normal(0.0, 0.3)}),
        Target().add_variable("y", [0.0], [9.0], 0.1), ModelRunner(squared),
    )  # fmt: skip
    chain = sample(posterior, method="tempering", num_steps=700, num_warmup=300, key=2)
    a = np.linspace(-4, 4, 400_001)
    w = st.norm.pdf(a, 0.5, 2) * st.norm.pdf(9 - a**2, 0, np.hypot(0.1, 0.3))
    share = w[a > 0].sum() / w.sum()
    found = [(chain["a"][:, chain.ensemble == k] > 0).mean() for k in range(8)]
    assert abs(np.mean(found) - share) < 4.5 * np.std(found, ddof=1) / np.sqrt(8)
    assert np.std(found) < 0.2
    exact = np.log(w.sum() * (a[1] - a[0]))
    assert abs(chain.info["log_evidence"] - exact) < 3 * np.hypot(
        chain.info["log_evidence_se"], 0.002
    )
    # Stored densities are those of the natural scale.
    last = chain.samples[-1, :3]
    log_prob = st.norm.logpdf(last[:, 0], 0.5, 2) + st.norm.logpdf(last[:, 1], 0, 0.3)
    log_prob += st.norm.logpdf(9 - last[:, 0] ** 2 - last[:, 1], 0, 0.1)
    np.testing.assert_allclose(chain.log_probs[-1, :3], log_prob, rtol=1e-9)
    again = sample(posterior, method="tempering", num_steps=20, num_warmup=10, key=2)
    same = sample(posterior, method="tempering", num_steps=20, num_warmup=10, key=2)
    np.testing.assert_array_equal(again.samples, same.samples)


def test_the_ladder_evens_out_the_exchanges() -> None:
    """Acceptance exp(-2 |log T_i - log T_j|), infinite for the last: the finite gaps become equal."""
    ladder = _Ladder(np.array([0.0, 0.02, 0.3, 0.5, 1.0]))
    for _ in range(3000):
        gaps = np.diff(np.log(np.maximum(ladder.beta, 1e-3)))
        ladder.adapt(np.exp(-0.5 * gaps))
    shares = np.exp(-0.5 * np.diff(np.log(np.maximum(ladder.beta, 1e-3))))
    assert np.ptp(shares) < 0.02
    assert ladder.beta[0] == 0
    assert ladder.beta[-1] == 1
    short = _Ladder(np.array([0.0, 1.0]))
    short.adapt(np.array([0.3]))
    np.testing.assert_array_equal(short.beta, [0, 1])


def test_options_that_have_no_use_are_told() -> None:
    posterior = make_posterior(
        small.parameters(), small.target(), ModelRunner(small.line, times=small.TIMES)
    )
    for call, says in (
        (lambda: sample(posterior, method="tempering", start="laplace"), "has no use"),
        (lambda: sample(posterior, method="tempering", thin=2), "thin=2 has no use"),
        (lambda: sample(posterior, method="tempering", num_warmup=-1), "num_warmup=-1"),
        (lambda: sample(posterior, method="tempering", num_steps=0), "num_steps=0"),
        (lambda: sample(posterior, method="tempering", n_walkers=7), "is odd"),
        (lambda: sample(posterior, method="temper"), "Did you mean 'tempering'"),
    ):
        with pytest.raises(ModelSpecError, match=says):
            call()
