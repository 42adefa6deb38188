"""Robust covariances, Wald tests and delta-method tests of a GLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlme._errors import FormulaError, ModelSpecError
from jaxnlme.design.expressions import parse
from jaxnlme.inference.sandwich import KINDS, cluster_meat, hc_factor, read_groups
from jaxnlme.inference.wald import renamed, restriction, wald
from jaxnlme.results.statistics import chi2_tail, f_tail, p_values, quantile

if TYPE_CHECKING:
    from jaxnlme.results.glm import GLMResults
    from jaxnlme.results.glm_estimates import GLMEstimates


def robust_covariance(results: GLMEstimates, kind: str, groups: Any) -> np.ndarray:
    """(P, P) sandwich covariance; NaN for aliased coefficients, 0 for scalars such as theta."""
    if kind not in (*KINDS, "cluster"):
        raise ModelSpecError(
            f"kind={kind!r} is no covariance; use 'model', {', '.join(map(repr, KINDS))} or 'cluster'."
        )
    results._need_plain(f"vcov(kind={kind!r})", "use 'model', or bootstrap()")
    conditional, host = results._conditional, results._host
    problem = results._problem if conditional is None else conditional.problem
    evaluator = results._evaluator if conditional is None else conditional
    p = problem.width
    bread = results._bread[:p, :p]
    if kind == "cluster":
        if groups is None:
            raise ModelSpecError(
                "vcov(kind='cluster') needs groups=: labels, one per row, or the name of a column."
            )
        codes, count = read_groups(results._row_values(groups, "groups"), evaluator.n)
        matrices = [design.matrix() for design in problem.designs]
        meat = cluster_meat(matrices, evaluator.row_scores(), codes, count)
    else:
        leverage = None
        if kind not in ("HC0", "HC1") and conditional is not None:
            leverage = results._leverage[0]
        factor = hc_factor(kind, leverage, results.nobs, int(np.sum(host.estimated[:p])))
        meat = evaluator.meat(np.broadcast_to(factor, evaluator.n))
    out = np.zeros((len(host.params),) * 2)
    out[:p, :p] = bread @ meat @ bread
    return np.where(host.aliased[:, None] | host.aliased[None], np.nan, out)


def wald_test(results: GLMResults, L: Any, kind: str, groups: Any, test: str) -> dict[str, float]:
    """See :meth:`GLMResults.wald_test`."""
    if test not in ("Chisq", "F"):
        raise ModelSpecError(f"wald_test(test={test!r}): use 'Chisq' or 'F'.")
    labels = results._spec.labels
    matrix, rhs = restriction(L, labels) if isinstance(L, str) else (np.atleast_2d(L), 0.0)
    matrix = np.asarray(matrix, float)
    rhs = np.broadcast_to(rhs, (len(matrix),))
    beta, vcov = np.asarray(results.params), np.asarray(results.vcov(kind, groups))
    known = np.isfinite(beta)
    if matrix.shape[1] == len(beta) and np.any(matrix[:, ~known]):
        names = [labels[k] for k in np.flatnonzero(~known & np.any(matrix != 0, axis=0))]
        raise ModelSpecError(f"wald_test: {names} are aliased, so nothing can be tested there.")
    if matrix.shape[1] == len(beta):
        matrix, beta, vcov = matrix[:, known], beta[known], vcov[np.ix_(known, known)]
    statistic, df = wald(matrix, rhs, beta, vcov)
    if test == "F":
        f = statistic / df if df else np.nan
        return {
            "statistic": f, "df": df, "df_resid": results.df_resid,
            "p_value": f_tail(f, df, results.df_resid),
        }  # fmt: skip
    return {"statistic": statistic, "df": df, "p_value": chi2_tail(statistic, df)}


def hypotheses(results: GLMResults, hypothesis: Any, kind: str, groups: Any) -> Any:
    """See :meth:`GLMResults.hypotheses`."""
    labels = results._spec.labels
    function, names = _read(hypothesis, labels)
    beta, vcov = np.nan_to_num(np.asarray(results.params)), np.asarray(results.vcov(kind, groups))
    both = jax.jit(lambda b: (function(b), jax.jacfwd(function)(b)))
    value, slope = (np.asarray(v) for v in both(beta))
    used = np.any(slope != 0, axis=0)
    if np.any(used & np.isnan(np.asarray(results.params))):
        raise ModelSpecError(f"hypotheses: {hypothesis!r} uses an aliased coefficient.")
    spread = np.sqrt(np.diag(slope[:, used] @ vcov[np.ix_(used, used)] @ slope[:, used].T))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = value / spread
    df = results.df_test
    names = names if names is not None else [f"f{k + 1}" for k in range(len(value))]
    half = quantile(0.975) * spread
    return results._table.native(
        {
            "hypothesis": names,
            "estimate": value,
            "std_error": spread,
            "statistic": statistic,
            "p_value": p_values(statistic, df),
            "conf_low": value - half,
            "conf_high": value + half,
        }
    )


def _read(hypothesis: Any, labels: tuple[str, ...]) -> tuple[Callable, list[str] | None]:
    """A function of the coefficient vector whose values are zero under the hypotheses, and their texts."""
    if callable(hypothesis):

        def function(b):
            return jnp.atleast_1d(jnp.asarray(hypothesis(dict(zip(labels, b, strict=True)))))

        return function, None
    texts = [hypothesis] if isinstance(hypothesis, str) else list(hypothesis)
    expressions = []
    for text in texts:
        changed, alias = renamed(text, labels)
        left, sign, right = changed.partition("=")
        pair = [parse(part.strip()) for part in (left, right if sign else "0")]
        for name in (n for e in pair for n in e.names):
            if name not in alias.values():
                raise FormulaError(
                    f"{name!r} in {text!r} is no coefficient; they are {list(labels)}."
                )
        expressions.append(pair)
    names = [f"coefficient{k}" for k in range(len(labels))]

    def difference(b):
        at = dict(zip(names, b, strict=True))
        values = [jnp.asarray(e.evaluate(at, jnp) - f.evaluate(at, jnp)) for e, f in expressions]
        return jnp.stack(values)

    return difference, texts
