"""Several fits side by side: information criteria, and tables of coefficients for papers."""

from __future__ import annotations

import html as html_module
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlme._errors import ModelSpecError
from jaxnlme.results.glm import GLMResults
from jaxnlme.results.nlme import NLMEResults
from jaxnlme.results.statistics import quantile, stars

_FORMATS = ("text", "markdown", "html", "latex")


def compare(*fits: Any, names: Sequence[str] | None = None) -> Any:
    """Put the information criteria of fits to the same data side by side, the best first.

    Parameters
    ----------
    *fits
        At least two fits of one kind (GLM, or NLME by one method) with likelihoods.
    names
        One per fit; default: the formulas.

    Returns
    -------
    frame
        model, llf, df, aic, bic, delta_aic, delta_bic, weight (Akaike weight).

    Raises
    ------
    ModelSpecError
        Likelihoods of different kinds or data, quasi families.

    Examples
    --------
    >>> import jaxnlme as jn
    >>> data = {"y": [1, 3, 2, 6, 4, 9], "x": [0, 1, 2, 3, 4, 5], "g": ["a", "b", "a", "b", "a", "b"]}
    >>> fits = [jn.fit_glm(f, data, family="poisson") for f in ("y ~ 1", "y ~ x")]
    >>> list(jn.compare(*fits)["model"])
    ['y ~ x', 'y ~ 1']
    """
    if len(fits) < 2:
        raise ModelSpecError("compare needs at least two fits.")
    _check_kind(fits)
    labels = _names(fits, names, "compare")
    llf = np.array([fit.llf for fit in fits])
    if np.isnan(llf).any():
        at = int(np.flatnonzero(np.isnan(llf))[0])
        raise ModelSpecError(f"compare: {labels[at]!r} has no likelihood (quasi family).")
    df = np.array([_parameters(fit) for fit in fits])
    aic, bic = (np.array([getattr(fit, k) for fit in fits]) for k in ("aic", "bic"))
    order = np.argsort(aic, kind="stable")
    weight = np.exp(-0.5 * (aic - aic.min()))
    columns = {
        "llf": llf, "df": df, "aic": aic, "bic": bic, "delta_aic": aic - aic.min(),
        "delta_bic": bic - bic.min(), "weight": weight / weight.sum(),
    }  # fmt: skip
    rows = {"model": [labels[k] for k in order]} | {k: v[order] for k, v in columns.items()}
    return fits[0]._table.native(rows)


def _parameters(fit: Any) -> int:
    return fit.df_llf if isinstance(fit, GLMResults) else fit.df_model


def _check_kind(fits: Sequence[Any]) -> None:
    first = fits[0]
    for fit in fits:
        if not isinstance(fit, GLMResults | NLMEResults):
            raise ModelSpecError(f"compare takes fits, found {fit.__class__.__name__}.")
        if type(fit) is not type(first):
            raise ModelSpecError(
                "compare: likelihoods of a GLM and of a mixed model do not compare."
            )
        a, b = _response(first), _response(fit)
        if a.shape != b.shape or not np.array_equal(a, b):
            raise ModelSpecError(
                f"compare: the fits use different data ({first.nobs} and {fit.nobs} rows, or another or "
                "transformed response)."
            )
        if isinstance(fit, NLMEResults) and fit.method != first.method:
            raise ModelSpecError(
                f"compare: log-likelihoods of methods {first.method!r} and {fit.method!r} do not compare."
            )


def _response(fit: Any) -> np.ndarray:
    return fit._problem.y if isinstance(fit, GLMResults) else fit._y


def _names(fits: Sequence[Any], names: Sequence[str] | None, door: str) -> list[str]:
    if names is None:
        return [fit.formula for fit in fits]
    if len(names) != len(fits):
        raise ModelSpecError(f"{door}(names=): {len(names)} names for {len(fits)} fits.")
    return [str(n) for n in names]


def table(
    *fits: Any, format: str = "text", stat: str = "se", names: Sequence[str] | None = None,
    digits: int = 3,
) -> str:  # fmt: skip
    """Write the coefficients of fits into one table, a column per fit.

    Parameters
    ----------
    *fits
        Fits of any kind.
    format
        ``"text"``, ``"markdown"``, ``"html"`` or ``"latex"``.
    stat
        What stands in brackets below an estimate: ``"se"`` (standard error) or ``"ci"`` (95 % interval).
    names
        Column heads; default ``(1), (2), ...``.
    digits
        Significant digits.

    Returns
    -------
    str

    Examples
    --------
    >>> import jaxnlme as jn
    >>> data = {"y": [1, 3, 2, 6, 4, 9], "x": [0, 1, 2, 3, 4, 5]}
    >>> print(jn.table(jn.fit_glm("y ~ x", data, family="poisson"), digits=2))
                    (1)
    -----------  ------
    (Intercept)     0.4
                 (0.49)
    x            0.35**
                 (0.13)
    -----------  ------
    Rows              6
    AIC              25
    """
    if format not in _FORMATS:
        raise ModelSpecError(f"table(format={format!r}): use one of {', '.join(_FORMATS)}.")
    if stat not in ("se", "ci"):
        raise ModelSpecError(f"table(stat={stat!r}): use 'se' or 'ci'.")
    if not fits:
        raise ModelSpecError("table needs at least one fit.")
    heads = [f"({k + 1})" for k in range(len(fits))]
    heads = heads if names is None else _names(fits, names, "table")
    terms = list(dict.fromkeys(t for fit in fits for t in fit.params.index))
    body: list[list[str]] = []
    for term in terms:
        cells = [_cell(fit, term, stat, digits) for fit in fits]
        body.append([term, *(c[0] for c in cells)])
        body.append(["", *(c[1] for c in cells)])
    foot = [["Rows", *(str(fit.nobs) for fit in fits)]]
    foot.append(["AIC", *("" if math.isnan(f.aic) else _digits(f.aic, digits) for f in fits)])
    return _WRITERS[format](["", *heads], body, foot)


def _digits(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text and 1 <= abs(value) < 1e9 else text


def _cell(fit: Any, term: str, stat: str, digits: int) -> tuple[str, str]:
    if term not in fit.params:
        return "", ""
    b, s, p = fit.params[term], fit.bse[term], fit.pvalues[term]
    if math.isnan(b):
        return "aliased", ""
    mark = stars(p).replace(".", "")
    if math.isnan(s):
        return _digits(b, digits), "(held)"
    if stat == "se":
        return _digits(b, digits) + mark, f"({_digits(s, digits)})"
    half = float(quantile(0.975)) * s
    return _digits(b, digits) + mark, f"[{_digits(b - half, digits)}, {_digits(b + half, digits)}]"


def _text(head: list[str], body: list[list[str]], foot: list[list[str]]) -> str:
    rows = [head, *body, *foot]
    wide = [max(len(row[j]) for row in rows) + (2 if j else 0) for j in range(len(head))]
    rule = "".join("-" * w if not j else "  " + "-" * (w - 2) for j, w in enumerate(wide))

    def line(row: list[str]) -> str:
        cells = [
            row[0].ljust(wide[0]),
            *(c.rjust(w) for c, w in zip(row[1:], wide[1:], strict=True)),
        ]
        return "".join(cells).rstrip()

    return "\n".join([line(head), rule, *map(line, body), rule, *map(line, foot)])


def _markdown(head: list[str], body: list[list[str]], foot: list[list[str]]) -> str:
    def line(row: list[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("*", "\\*") for c in row) + " |"

    rule = "|:--|" + "--:|" * (len(head) - 1)
    return "\n".join([line(head), rule, *map(line, body), *map(line, foot)])


def _html(head: list[str], body: list[list[str]], foot: list[list[str]]) -> str:
    def line(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html_module.escape(c)}</{tag}>" for c in row) + "</tr>"

    rows = "".join(line(row, "td") for row in (*body, *foot))
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{rows}</tbody></table>"


def _latex(head: list[str], body: list[list[str]], foot: list[list[str]]) -> str:
    special = {c: "\\" + c for c in "&%$#_{}"} | {
        "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}",
    }  # fmt: skip

    def line(row: list[str]) -> str:
        return " & ".join("".join(special.get(c, c) for c in cell) for cell in row) + r" \\"

    columns = "l" + "r" * (len(head) - 1)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\hline", line(head), "\\hline"]
    lines += [*map(line, body), "\\hline", *map(line, foot), "\\hline", "\\end{tabular}"]
    return "\n".join(lines)


_WRITERS = {"text": _text, "markdown": _markdown, "html": _html, "latex": _latex}
