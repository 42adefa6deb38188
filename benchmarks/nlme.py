"""Nonlinear mixed effects: speed and accuracy against pynlme and R's nlme, in one run.

python benchmarks/nlme.py [--quick] [--only SECTION ...] [--out FOLDER]

Contenders of one row run in turn on the same data, model and start; the best of several rounds
counts. CPU seconds are user + system of the process and its children (R: proc.time around the fit).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import (
    HERE,
    ONE_THREAD,
    Goal,
    Report,
    Sample,
    Section,
    fresh,
    loglik,
    race,
    run_sections,
    spend,
)

os.environ.update(ONE_THREAD)  # before numpy loads its BLAS

import _nlme_models as models

WORKERS = HERE / "_nlme_workers.py"
PEER_COLUMNS = ["fit", "program", "CPU ms", "wall ms", "ours / it (CPU)", "log-likelihood"]


def worker(name: str, *, env: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    return fresh(WORKERS, name, json.dumps(options), env=env)


def run_r(sets: list, repeats: int, block: int) -> list[Sample]:
    """Fit data sets by R's nlme; a fit that stops has a NaN log-likelihood."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sets.csv"
        models.write_sets(sets, path)
        done = subprocess.run(
            ["Rscript", str(HERE / "nlme.R"), str(path), str(repeats), str(block)],
            capture_output=True,
            text=True,
            check=True,
        )
    rows = [line.split() for line in done.stdout.strip().splitlines()]
    return [
        Sample(float(cpu), float(wall), float(value) if value != "NA" else float("nan"))
        for _, value, cpu, wall in rows
    ]


# --- one small fit, warm ----------------------------------------------------------------------


def ours(name: str, method: str, error: str, inner: int) -> Callable[[], Sample]:
    """Compile a pure fit and return a measurement of it."""
    import jax

    import jaxnlme as jn

    chosen = models.method(method)
    with jax.enable_x64(True):
        problem = jax.device_put(models.problem(name, models.real(name), error=error))

    def call() -> float:
        fit = jn.nlme.fit(problem, chosen)
        return float(fit.stats["log_likelihood"])

    def measure() -> Sample:
        with jax.enable_x64(True):
            return spend(call, inner)

    measure()
    return measure


def peer_rows(section: Section, fit: str, best: dict[str, Sample]) -> None:
    mine = best["jaxnlme"]
    for name, sample in best.items():
        section.rows.append(
            [
                fit,
                name,
                1e3 * sample.cpu,
                1e3 * sample.wall,
                None if name == "jaxnlme" else mine.cpu / sample.cpu,
                loglik(sample.value),
            ]
        )


def warm_lme(report: Report, quick: bool, r: bool) -> None:
    section = Section(
        "LME, Theoph, warm",
        PEER_COLUMNS,
        note="12 subjects, 132 rows, SSfol, independent effects on lKa and lCl. Ours iterates to "
        "the fixed point (1e-7 standard errors; R's tight control gives -177.022336), the others "
        "stop at their default tolerances.",
    )
    data = models.real("ssfol")
    models.pynlme_fit("ssfol", data, "LME")  # import and first use, as ours compiles untimed
    contenders = {
        "jaxnlme": ours("ssfol", "LME", "constant", 5 if quick else 50),
        "pynlme, R mode": lambda: spend(
            lambda: models.pynlme_fit("ssfol", data, "LME", compat="r"), 1 if quick else 5
        ),
        "pynlme, MATLAB mode": lambda: spend(
            lambda: models.pynlme_fit("ssfol", data, "LME"), 1 if quick else 5
        ),
    }
    if r:
        contenders["R nlme"] = lambda: run_r([data], 1 if quick else 3, 5)[0]
    best = race(contenders, 1 if quick else 5)
    peer_rows(section, "LME (ML)", best)
    report.sections.append(section)
    mine = best["jaxnlme"].cpu
    peer = min(best["pynlme, R mode"].cpu, best["pynlme, MATLAB mode"].cpu)
    report.goals.append(Goal("Theoph LME, CPU, ours / pynlme's faster mode", mine / peer, 0.8))
    if r:
        ratio = mine / best["R nlme"].cpu
        report.goals.append(Goal("Theoph LME, CPU, ours / R nlme", ratio, 0.5))
        report.goals.append(Goal("Theoph LME, CPU, ours / R nlme", ratio, 0.3, binding=False))


def warm_foce(report: Report, quick: bool, r: bool) -> None:
    section = Section(
        "FOCE, theophylline, warm",
        PEER_COLUMNS,
        note="12 subjects, 120 rows, ka, V, CL log-transformed, three independent effects. With an "
        "error that depends on the prediction ours maximises the likelihood with interaction; "
        "pynlme's FOCE has none, so these log-likelihoods are two different objectives (exact: "
        "-176.3697 proportional, -170.9887 combined).",
    )
    data = models.real("theo")
    models.pynlme_fit("theo", data, "LME")
    limits = {"constant": 1 / 50, "proportional": 1 / 500, "combined": 1 / 500}
    for error in ("constant",) if quick else limits:
        contenders = {
            "jaxnlme": ours("theo", "FOCE", error, 5 if quick else 50),
            "pynlme": lambda error=error: spend(
                lambda: models.pynlme_fit("theo", data, "FOCE", error=error)
            ),
        }
        best = race(contenders, 1 if quick else 3 if error == "constant" else 2)
        peer_rows(section, error, best)
        ratio = best["jaxnlme"].cpu / best["pynlme"].cpu
        text = f"theophylline FOCE {error}, CPU, ours / pynlme"
        report.goals.append(Goal(text, ratio, limits[error]))
    report.sections.append(section)


# --- many data sets ---------------------------------------------------------------------------


def throughput(report: Report, quick: bool, r: bool) -> None:
    lanes, few, peers = (20, 2, 2) if quick else (1000, 20, 5)
    section = Section(
        f"{lanes} simulated data sets on one core, warm",
        ["model", "program", "fits timed", "CPU s per 1,000", "wall s per 1,000", "converged"],
        note="Data simulated from the fit of the real ones (fixed seed). Every process keeps to "
        "one core; peers fit the first data sets in a loop, scaled.",
    )

    def row(model: str, program: str, count: int, sample: dict, converged: Any) -> float:
        scale = 1000 / count
        section.rows.append(
            [model, program, count, scale * sample["cpu"], scale * sample["wall"], converged]
        )
        return scale * sample["cpu"]

    def map_fits(model: str, method: str) -> dict:
        options = {"model": model, "method": method, "lanes": lanes, "cpu": 0}
        return worker("many", driver="1", repeats=2 if quick else 4, **options)

    for model in ("theo", "ssfol"):
        before = map_fits(model, "FOCE")
        peer = worker("pynlme_loop", model=model, count=peers, cpu=0)
        after = before if quick else map_fits(model, "FOCE")
        foce = min(before, after, key=lambda one: one["cpu"])
        mine = row(model, "jaxnlme FOCE", lanes, foce, foce["converged"])
        scaled = {"cpu": peer["cpu"] * peers, "wall": peer["wall"] * peers}
        theirs = row(model, "pynlme FOCE", peers, scaled, None)
        gap = max(abs(a - b) for a, b in zip(foce["llf"], peer["llf"], strict=False))
        section.note += f" Largest log-likelihood gap to pynlme's FOCE ({model}): {gap:.1e}."
        report.goals.append(
            Goal(f"simulated FOCE ({model}), pynlme / ours", theirs / mine, 300, at_least=True)
        )
        text = f"FOCE fits per core and second ({model})"
        report.goals.append(Goal(text, 1000 / mine, 1000, at_least=True, binding=False))
    if r:
        fits = run_r(models.simulated("ssfol", few), 1, 1)
        lme = map_fits("ssfol", "LME")
        good = [k for k, s in enumerate(fits) if s.value == s.value]
        mine = row("ssfol", "jaxnlme LME", lanes, lme, lme["converged"])
        scaled = {"cpu": sum(s.cpu for s in fits), "wall": sum(s.wall for s in fits)}
        theirs = row("ssfol", "R nlme LME", few, scaled, len(good))
        gap = max((abs(fits[k].value - lme["llf"][k]) for k in good), default=float("nan"))
        section.note += f" Largest log-likelihood gap to R's LME: {gap:.1e}."
        report.goals.append(Goal("simulated LME, R nlme / ours", theirs / mine, 6, at_least=True))
        foce_cpu = 1000 / lanes * foce["cpu"]
        report.goals.append(
            Goal("simulated, R nlme LME / our FOCE", theirs / foce_cpu, 6, at_least=True)
        )
    report.sections.append(section)


def drivers(report: Report, quick: bool, r: bool) -> None:
    lanes = 16 if quick else 1000
    section = Section(
        f"Drivers: {lanes} FOCE fits (theo), warm",
        ["driver", "devices", "fits per wall s", "fits per CPU s", "first call s", "converged",
         "steps, median", "steps, most"],
        note="Not pinned. Steps per lane differ: vmap pays the slowest lane for all.",
    )  # fmt: skip
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    chosen = {
        "host loop over the compiled fit": ("loop", None),
        "fit_many, one lane at a time": ("1", None),
        "fit_many, chunks of 32": ("32", None),
        "vmap of all lanes": ("vmap", None),
        "fit_many, one lane at a time, 2 devices": ("1", two),
        "fit_many, chunks of 32, 2 devices": ("32", two),
    }
    walls = {}
    for label, (driver, env) in chosen.items():
        options = {"model": "theo", "method": "FOCE", "lanes": lanes, "driver": driver}
        got = worker("many", env=env, repeats=1 if quick else 2, **options)
        walls[label] = got["wall"]
        section.rows.append(
            [
                label,
                got["devices"],
                lanes / got["wall"],
                lanes / got["cpu"],
                got["first"]["wall"],
                got["converged"],
                *got["steps"],
            ]
        )
    report.sections.append(section)
    if not quick:
        one, both = (walls[f"fit_many, one lane at a time{end}"] for end in ("", ", 2 devices"))
        text = "fit_many on 2 devices, times faster than on 1"
        report.goals.append(Goal(text, one / both, 1.8, at_least=True, binding=False))


# --- size -------------------------------------------------------------------------------------


def sizes(report: Report, quick: bool, r: bool) -> None:
    section = Section(
        "Subjects, warm",
        ["method", "subjects", "chunk", "CPU ms", "wall ms", "steps", "wall us / subject / step",
         "temporary MiB", "data MiB", "result code", "log-likelihood"],
        note="Simulated Theoph designs (11 rows each), SSfol. Temporary: XLA's own figure for the "
        "whole program. Result code 0: converged.",
    )  # fmt: skip
    subjects = (1, 12, 100) if quick else (1, 12, 100, 1000, 10_000)
    got: dict[tuple, dict] = {}

    def measure(method: str, count: int, chunk: int) -> None:
        repeats = 2 if quick else 6
        one = worker("size", subjects=count, method=method, chunk=chunk, repeats=repeats)
        got[method, count, chunk] = one
        section.rows.append(
            [
                method,
                count,
                chunk,
                1e3 * one["cpu"],
                1e3 * one["wall"],
                one["steps"],
                1e6 * one["wall"] / count / one["steps"],
                one["temporary"] / 2**20,
                one["arguments"] / 2**20,
                one["result"],
                loglik(one["llf"]),
            ]
        )

    for method in ("FOCE",) if quick else ("FOCE", "LME"):
        for count in subjects:
            measure(method, count, 512)
    if not quick:
        measure("FOCE", 10_000, 10_000)
        for method in ("FOCE", "LME"):
            paired = worker("growth", small=1000, large=10_000, method=method, chunk=512, rounds=9)
            ratio, text = paired["ratios"][4], f"{method}: time at 10,000 / 1,000 subjects"
            report.goals.append(Goal(f"{text}, in turn, median of 9", ratio, 11))
            section.note += (
                f" {text}, ten small fits around each large one: "
                f"{', '.join(f'{r:.1f}' for r in paired['ratios'])}; steps {paired['steps'][1]} and "
                f"{paired['steps'][0]}."
            )
            bad = sum(got[method, n, 512]["result"] != 0 for n in (1000, 10_000))
            report.goals.append(Goal(f"{method}: large fits that did not converge", float(bad), 0))
        # What grows must be arrays of the data's own size (modes, gradients), not derivatives.
        growth = got["FOCE", 10_000, 512]["temporary"] - got["FOCE", 1000, 512]["temporary"]
        data = got["FOCE", 10_000, 512]["arguments"] - got["FOCE", 1000, 512]["arguments"]
        text = "FOCE: temporary memory that grows with subjects, in units of the data"
        report.goals.append(Goal(text, growth / data, 1.0))
    report.sections.append(section)


# --- cold -------------------------------------------------------------------------------------


def cold(report: Report, quick: bool, r: bool) -> None:
    section = Section(
        "Cold and second calls of the door fit_nlme (Theoph)",
        ["method", "cache", "import s", "first call s", "CPU s", "compilations", "second call ms",
         "compilations then", "other data ms", "compilations for other data"],
        note="Fresh processes; the first call is counted after import and after the frame is "
        "loaded, until the fit with its standard errors is there. Cached: a process before it "
        "filled the cache. Other data: 11 of the subjects with other values.",
    )  # fmt: skip
    limits = {"FOCE": (2.5, 0.7), "LME": (5.0, 1.2)}
    rounds = 1 if quick else 3
    for method in ("FOCE",) if quick else limits:
        with tempfile.TemporaryDirectory() as folder:
            off = {"JAXNLME_CACHE": "0"}
            on = {"XDG_CACHE_HOME": folder, "JAXNLME_CACHE": "1"}
            worker("cold", env=on, method=method)
            samples: dict[str, list[dict]] = {"off": [], "warm": []}
            for _ in range(rounds):
                samples["off"].append(worker("cold", env=off, method=method))
                samples["warm"].append(worker("cold", env=on, method=method))
        for kind, limit in zip(samples, limits[method], strict=True):
            best = min(samples[kind], key=lambda one: one["first"]["wall"])
            second = min(one["second"]["wall"] for one in samples[kind])
            section.rows.append(
                [
                    method,
                    kind,
                    best["import"],
                    best["first"]["wall"],
                    best["first"]["cpu"],
                    best["first_compilations"],
                    1e3 * second,
                    best["second_compilations"],
                    1e3 * best["other"]["wall"],
                    best["other_compilations"],
                ]
            )
            text = f"fit_nlme(Theoph, {method}), first call, cache {kind}, s"
            report.goals.append(Goal(text, best["first"]["wall"], limit))
            if kind == "off":
                report.goals.append(
                    Goal(f"fit_nlme(Theoph, {method}), second call, ms", 1e3 * second, 25)
                )
                report.goals.append(
                    Goal(
                        f"fit_nlme({method}), compilations for other data of the bucket",
                        float(best["other_compilations"]),
                        0,
                    )
                )
                if method == "FOCE":
                    text = "fit_nlme(Theoph, FOCE), first call, cache off, s"
                    report.goals.append(Goal(text, best["first"]["wall"], 1.5, binding=False))
    report.sections.append(section)


def imports(report: Report, quick: bool, r: bool) -> None:
    lines = {
        "the stack": "import jax, equinox, lineax, optimistix",
        "jaxnlme with its doors": "import jaxnlme as jn; jn.fit_nlme, jn.nlmefit, jn.RESULTS",
    }
    times: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(2 if quick else 7):
        for name, code in lines.items():
            sample = spend(
                lambda code=code: subprocess.run([sys.executable, "-c", code], check=True)
            )
            times[name].append(sample.wall)
    section = Section("Import, whole process", ["", "median s", "best s"])
    for name, spent in times.items():
        section.rows.append([name, statistics.median(spent), min(spent)])
    report.sections.append(section)
    stack, mine = (statistics.median(times[name]) for name in lines)
    report.goals.append(Goal("import, ours / jax, equinox, lineax, optimistix", mine / stack, 1.25))


SECTIONS = {
    "lme": warm_lme,
    "foce": warm_foce,
    "throughput": throughput,
    "drivers": drivers,
    "sizes": sizes,
    "cold": cold,
    "imports": imports,
}


if __name__ == "__main__":
    sys.exit(
        run_sections(
            "nlme", SECTIONS, about=__doc__.splitlines()[0], peers=("pynlme",), r=("nlme",)
        )
    )
