"""Generalised linear models: speed, memory and accuracy against the compiled peers, in one run.

python benchmarks/glm.py [--quick] [--only SECTION ...] [--out FOLDER]

Contenders of one row run in turn on the same data; the best of several rounds counts. CPU seconds are
user + system of all threads of the process. Peers: rustystats 0.9 (array core and glm_dict), glum,
statsmodels, scikit-learn; R's MASS where R is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _glm_data as data
import numpy as np
from _measure import HERE, Goal, Report, Sample, Section, fresh, race, run_sections, spend

WORKERS = HERE / "_glm_workers.py"
COLUMNS = [
    "program",
    "CPU s",
    "wall s",
    "ours / it (CPU)",
    "ours / it (wall)",
    "mean objective - optimum",
]
PEERS = ("rustystats", "glum", "statsmodels", "scikit-learn", "polars", "pandas")


def worker(name: str, *, env: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    return fresh(WORKERS, name, json.dumps(options), env=env)


def measured(call: Callable[[], Any], value: Callable[[Any], float]) -> Callable[[], Sample]:
    """A timed call whose value is worked out outside the clock."""
    last: list[Any] = [None]

    def timed() -> float:
        last[0] = call()
        return 0.0

    def measure() -> Sample:
        sample = spend(timed)
        return Sample(sample.cpu, sample.wall, value(last[0]))

    measure()  # imports and compiles
    return measure


def rows(section: Section, best: dict[str, Sample]) -> None:
    mine = best["jaxnlme"]
    for name, sample in best.items():
        ratios = (
            [None, None] if name == "jaxnlme" else [mine.cpu / sample.cpu, mine.wall / sample.wall]
        )
        section.rows.append([name, sample.cpu, sample.wall, *ratios, sample.value])


def goals(report: Report, best: dict[str, Sample], what: str, limits: dict[str, tuple]) -> None:
    mine = best["jaxnlme"]
    for name, (limit, aim) in limits.items():
        for unit in ("cpu", "wall"):
            ratio = getattr(mine, unit) / getattr(best[name], unit)
            label = {"cpu": "CPU", "wall": "wall"}[unit]
            report.goals.append(Goal(f"{what}, {label}, ours / {name}", ratio, limit))
            if aim is not None:
                report.goals.append(
                    Goal(f"{what}, {label}, ours / {name}", ratio, aim, binding=False)
                )


def poisson(report: Report, quick: bool, r: bool) -> None:
    """678,012 x 28 from arrays."""
    section = Section(
        "Poisson, 678,012 rows x 28 columns and constant, log exposure, arrays, warm",
        [
            "peer",
            "ours CPU s",
            "its CPU s",
            "ratio",
            "ours wall s",
            "its wall s",
            "ratio",
            "mean objective - optimum: ours",
            "its",
        ],
        note="Ours: `fit_glm(X, y, ...)`, everything from checking the input to the standard errors' matrix. "
        "rustystats: its compiled array core with the covariance. Each pair runs in turn in a process of its own.",
    )
    limits: dict[str, tuple[float | None, float | None, int]] = {
        "rustystats": (0.7, 0.5, 12),
        "glum": (0.3, 0.2, 7),
        "scikit-learn": (None, None, 3),
        "statsmodels": (0.05, None, 2),
    }
    gaps = []
    for peer, (limit, aim, rounds) in limits.items():
        if quick and peer != "rustystats":
            continue
        threads = {"OMP_NUM_THREADS": str(os.cpu_count())}  # glum's
        got = worker("pair", env=threads, peer=peer, rounds=2 if quick else rounds)
        mine, its = Sample(**got["ours"]), Sample(**got["peer"])
        gaps.append(abs(mine.value))
        section.rows.append(
            [
                peer, mine.cpu, its.cpu, mine.cpu / its.cpu, mine.wall, its.wall, mine.wall / its.wall,
                mine.value, its.value,
            ]
        )  # fmt: skip
        if limit is not None:
            best = {"jaxnlme": mine, peer: its}
            goals(report, best, "Poisson 678k", {peer: (limit, aim)})
    report.sections.append(section)
    report.goals.append(Goal("Poisson 678k, |mean objective - optimum|", max(gaps), 1e-12))


def frame(report: Report, quick: bool, r: bool) -> None:
    """The same from data frames with categories."""
    import rustystats

    import jaxnlme as jn

    columns = data.portfolio()
    polars, pandas = data.frame(columns), data.frame(columns, "pandas")
    terms = {name: {"type": "linear"} for name in data.NUMERIC}
    terms |= {name: {"type": "categorical"} for name in data.FACTORS}

    def rusty() -> Any:
        model = rustystats.glm_dict(
            response="y", terms=terms, data=polars, family="poisson", exposure="Exposure"
        )
        return model.fit()

    def ours(table: Any) -> Callable[[], Any]:
        return lambda: jn.fit_glm(data.formula(), table, family="poisson", exposure="Exposure")

    def value(fit: Any) -> float:
        return float(np.sum(np.asarray(fit.params)))

    best = race(
        {
            "jaxnlme": measured(ours(polars), value),
            "jaxnlme, pandas": measured(ours(pandas), value),
            "rustystats glm_dict": measured(rusty, lambda fit: float(np.sum(fit.params))),
        },
        1 if quick else 5,
    )
    section = Section(
        "The same from a data frame (4 factors), warm",
        [*COLUMNS[:-1], "sum of coefficients"],
        note="jaxnlme: from the polars frame that glm_dict gets.",
    )
    rows(section, best)
    report.sections.append(section)
    goals(report, best, "Poisson 678k from a frame", {"rustystats glm_dict": (0.6, None)})


def negative_binomial(report: Report, quick: bool, r: bool) -> None:
    """100,000 rows, theta by maximum likelihood."""
    from rustystats import _rustystats as core

    import jaxnlme as jn

    X, y = data.overdispersed()

    def ours() -> Any:
        return jn.fit_glm(X, y, family="negative_binomial", intercept=False)

    best = race(
        {
            "jaxnlme": measured(ours, lambda fit: float(fit.theta)),
            "rustystats": measured(
                lambda: core.fit_negbinomial_py(y, X), lambda fit: float(fit[-1]["theta"])
            ),
        },
        2 if quick else 5,
    )
    section = Section(
        "Negative binomial, 100,000 x 29, theta by ML, warm", [*COLUMNS[:-1], "theta"]
    )
    rows(section, best)
    goals(report, best, "NB 100k", {"rustystats": (0.4, None)})
    if r and not quick:
        theta, seconds = _mass(X, y)
        section.rows.append(
            ["R MASS glm.nb", None, seconds, None, best["jaxnlme"].wall / seconds, theta]
        )
        gap = abs(best["jaxnlme"].value - theta) / theta
        report.goals.append(Goal("NB 100k, |theta / MASS - 1|", gap, 1e-7))
    section.rows = [[*row[:-1], f"{row[-1]:.10f}"] for row in section.rows]
    report.sections.append(section)


def _mass(X: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    code = """
    a <- commandArgs(TRUE); d <- readBin(a[1], "double", n = as.integer(a[2]) * as.integer(a[3]))
    d <- matrix(d, ncol = as.integer(a[3])); y <- d[, 1]; X <- d[, -1]; library(MASS)
    s <- proc.time(); f <- glm.nb(y ~ X - 1, control = glm.control(epsilon = 1e-12, maxit = 100))
    cat(sprintf("%.15g %.6f", f$theta, (proc.time() - s)[["elapsed"]]))
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.bin"
        np.asfortranarray(np.column_stack([y, X])).ravel(order="F").tofile(path)
        done = subprocess.run(
            ["Rscript", "-e", code, str(path), str(len(y)), str(X.shape[1] + 1)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    theta, seconds = map(float, done.stdout.split())
    return theta, seconds


def gamma(report: Report, quick: bool, r: bool) -> None:
    """100,000 rows, gamma with log link."""
    from rustystats import _rustystats as core

    import jaxnlme as jn

    X, y = data.severities()
    best = race(
        {
            "jaxnlme": measured(
                lambda: jn.fit_glm(X, y, family="gamma", link="log", intercept=False),
                lambda fit: float(np.sum(np.asarray(fit.params))),
            ),
            "rustystats": measured(
                lambda: core.fit_glm_py(y, X, "gamma", link="log", fit_intercept=False),
                lambda fit: float(np.sum(fit.params)),
            ),
        },
        2 if quick else 5,
    )
    section = Section("Gamma, log link, 100,000 x 29, warm", [*COLUMNS[:-1], "sum of coefficients"])
    rows(section, best)
    report.sections.append(section)


def many(report: Report, quick: bool, r: bool) -> None:
    """1,000 small logistic fits in one program."""
    import jax
    import statsmodels.api as sm

    import jaxnlme as jn

    lanes, n, p, few = (64 if quick else 1000), 200, 4, 20
    draw = np.random.default_rng(3)
    X = np.column_stack([np.ones(n), draw.normal(size=(n, p - 1))])
    prob = 1 / (1 + np.exp(-(X @ np.array([0.2, 0.5, -0.5, 0.3]))))
    Y = (draw.random((lanes, n)) < prob).astype(float)

    @jax.jit
    def fit_all(Y):
        return jax.lax.map(
            lambda y: jn.glm.fit(jn.glm.GLMProblem(X, y, family="binomial")).params,
            Y,
            batch_size=16,
        )

    def ours() -> float:
        with jax.enable_x64(True):
            return float(np.asarray(fit_all(Y)).sum())

    def loop() -> float:
        total = 0.0
        for y in Y[:few]:
            total += float(sm.GLM(y, X, family=sm.families.Binomial()).fit().params.sum())
        return total

    ours()
    mine = min((spend(ours) for _ in range(3)), key=lambda s: s.cpu)
    peer = min((spend(loop) for _ in range(3)), key=lambda s: s.cpu)
    section = Section(
        "1,000 logistic fits of 200 x 4, warm", ["program", "CPU s per 1,000", "wall s per 1,000"]
    )
    section.rows.append(
        ["jaxnlme, lax.map in chunks of 16", mine.cpu * 1000 / lanes, mine.wall * 1000 / lanes]
    )
    section.rows.append(["statsmodels loop", peer.cpu * 1000 / few, peer.wall * 1000 / few])
    report.sections.append(section)
    ratio = (peer.cpu / few) / (mine.cpu / lanes)
    report.goals.append(Goal("1,000 small fits, statsmodels / ours, CPU", ratio, 50, at_least=True))


def memory(report: Report, quick: bool, r: bool) -> None:
    """Peak memory of the large fit."""
    size = 678_012 * 29 * 8 / 1e6
    section = Section(
        "Peak memory above the data, Poisson 678k",
        ["program", "MB", "copies of X"],
        note=f"X is {size:.0f} MB. Second fit in a fresh process, resident size sampled every millisecond.",
    )
    for program in (
        ("jaxnlme", "rustystats") if quick else ("jaxnlme", "rustystats", "glum", "statsmodels")
    ):
        got = worker("memory", program=program)["megabytes"]
        section.rows.append([program, got, got / size])
    report.sections.append(section)
    report.goals.append(Goal("extra memory, copies of X", section.rows[0][2], 2.0))


def cold(report: Report, quick: bool, r: bool) -> None:
    """First fit of a process."""
    section = Section(
        "Cold and second calls of fit_glm (Poisson, with standard errors)",
        ["rows", "cache", "import s", "first call s", "CPU s", "compilations", "second call ms",
         "compilations for other data"],
        note="Fresh processes, counted after import and loading. Cached: a process before it filled the cache.",
    )  # fmt: skip
    for count in (678_012,) if quick else (678_012, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            off = {"JAXNLME_CACHE": "0"}
            on = {"XDG_CACHE_HOME": folder, "JAXNLME_CACHE": "1"}
            worker("cold", env=on, rows=count)
            for kind, env in (("off", off), ("warm", on)):
                tries = [worker("cold", env=env, rows=count) for _ in range(1 if quick else 3)]
                best = min(tries, key=lambda one: one["first"]["wall"])
                section.rows.append(
                    [count, kind, best["import"], best["first"]["wall"], best["first"]["cpu"],
                     best["compilations"], 1e3 * best["second"]["wall"], best["other_compilations"]]
                )  # fmt: skip
                if count == 678_012 and kind == "off":
                    first = best["first"]["wall"]
                    report.goals.append(Goal("fit_glm 678k, first call, cache off, s", first, 1.5))
                    report.goals.append(
                        Goal("fit_glm 678k, first call, cache off, s", first, 1.0, binding=False)
                    )
    report.sections.append(section)


SECTIONS = {
    "poisson": poisson,
    "frame": frame,
    "negative_binomial": negative_binomial,
    "gamma": gamma,
    "many": many,
    "memory": memory,
    "cold": cold,
}


if __name__ == "__main__":
    sys.exit(run_sections("glm", SECTIONS, about=__doc__.splitlines()[0], peers=PEERS, r=("MASS",)))
