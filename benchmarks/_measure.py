"""Time, machine and tables: what every benchmark shares. Standard library and numpy only."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# One thread per numpy and R process: idle BLAS threads would be counted as CPU seconds.
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass
class Sample:
    """One measurement: CPU and wall seconds per call, and the log-likelihood reached."""

    cpu: float
    wall: float
    value: Any = float("nan")


def cpu_seconds() -> float:
    """User and system time of this process (all threads) and of children that ended."""
    t = os.times()
    return time.process_time() + t.children_user + t.children_system


def spend(call: Callable[[], Any], inner: int = 1) -> Sample:
    """Run `call` `inner` times between two looks at the clocks."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    value: Any = float("nan")
    for _ in range(inner):
        value = call()
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return Sample(cpu / inner, wall / inner, value)


def race(contenders: dict[str, Callable[[], Sample]], rounds: int) -> dict[str, Sample]:
    """Measure all contenders in turn, `rounds` times; the best CPU and wall time of each count.

    Who begins a round changes: a program pays for the memory and the threads that the one before it left behind.
    """
    best: dict[str, Sample] = {}
    names = list(contenders)
    for turn in range(rounds):
        for k in range(len(names)):
            name = names[(turn + k) % len(names)]
            new = contenders[name]()
            old = best.get(name, new)
            best[name] = Sample(min(old.cpu, new.cpu), min(old.wall, new.wall), new.value)
    return best


def fresh(
    script: Path,
    *args: Any,
    env: dict[str, str] | None = None,
    timeout: float = 1800,
) -> dict[str, Any]:
    """Run a script in a new process; the last line it prints is its answer, in JSON."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, args)],
        env={**os.environ, **ONE_THREAD, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} {args} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


@dataclass
class Section:
    """One table of the report."""

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    note: str = ""


@dataclass
class Goal:
    """A figure with the limit that the project set itself."""

    text: str
    measured: float
    limit: float
    at_least: bool = False
    binding: bool = True  # False: an aim, reported but not required

    @property
    def held(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass
class Report:
    """Tables and goals of one run, with the machine and the versions."""

    name: str
    quick: bool
    peers: tuple[str, ...] = ()
    sections: list[Section] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)  # versions of programs outside Python

    def write(self, folder: Path) -> Path:
        """Write ``<name>-<machine>.md`` and ``.json``; a quick run goes to ``quick-...``."""
        folder.mkdir(parents=True, exist_ok=True)
        where = machine()
        stem = f"{'quick-' if self.quick else ''}{self.name}-{slug(where)}"
        facts = {"date": datetime.date.today().isoformat(), **where}
        facts |= {**versions(self.peers), **self.extra}
        goals = [{**asdict(goal), "held": goal.held} for goal in self.goals]
        document = {
            "facts": facts,
            "goals": goals,
            "sections": [asdict(s) for s in self.sections],
            "skipped": self.skipped,
        }
        (folder / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
        path = folder / f"{stem}.md"
        path.write_text(self._markdown(facts))
        return path

    def _markdown(self, facts: dict[str, Any]) -> str:
        kind = " (quick run: too few repeats to quote)" if self.quick else ""
        out = [f"# Benchmark {self.name}{kind}", ""]
        out += table(["", ""], [[key, value] for key, value in facts.items()])
        if self.goals:
            head = ["goal", "measured", "limit", "held"]
            rows = [
                [
                    goal.text if goal.binding else f"aim: {goal.text}",
                    goal.measured,
                    f"{'>=' if goal.at_least else '<='} {number(goal.limit)}",
                    "yes" if goal.held else "NO" if goal.binding else "not yet",
                ]
                for goal in self.goals
            ]
            out += ["", "## Goals", "", *table(head, rows)]
        for section in self.sections:
            out += ["", f"## {section.title}", ""]
            out += [section.note, ""] if section.note else []
            out += table(section.columns, section.rows)
        if self.skipped:
            out += ["", "## Not measured", "", *[f"- {line}" for line in self.skipped]]
        return "\n".join(out) + "\n"


def run_sections(
    name: str,
    sections: dict[str, Callable[[Report, bool, bool], None]],
    *,
    about: str,
    peers: tuple[str, ...],
    r: tuple[str, ...],
) -> int:
    """The command line of a benchmark: run its sections, write and print the report.

    Returns 0 when all binding goals hold; `r` names the R packages that its R rows need.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="smoke run, no figures to quote")
    parser.add_argument("--only", nargs="+", choices=sorted(sections), default=list(sections))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    chosen = parser.parse_args()
    left_out = [section for section in sections if section not in chosen.only]
    report = Report(f"{name}-partial" if left_out else name, chosen.quick, peers)
    if left_out:
        report.skipped.append(f"sections left out: {', '.join(left_out)}")
    found = r_packages(*r) if r else None
    if found is None and r:
        report.skipped.append(f"R: no Rscript with {', '.join(r)} on this machine")
    elif found is not None:
        report.extra = {"R": found["R"], **{f"R {p}": found[p] for p in r}}
    for section, measure in sections.items():
        if section in chosen.only:
            print(f"{section} ...", flush=True)
            measure(report, chosen.quick, found is not None)
    path = report.write(chosen.out)
    print(path.read_text())
    print(path)
    return int(any(goal.binding and not goal.held for goal in report.goals) and not report.quick)


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" for _ in head) + "|"]
    return lines + ["| " + " | ".join(number(v) for v in row) + " |" for row in rows]


def number(value: Any) -> str:
    """Write a number with three digits (log-likelihoods pass as text); None as a dash."""
    if value is None or value != value:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.2e}"


def loglik(value: float) -> str:
    return "-" if value != value else f"{value:.6f}"


def machine() -> dict[str, Any]:
    """Say what the run stands on, without names that identify the host."""
    cpu = platform.processor() or platform.machine()
    memory = None
    try:
        cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()).group(1)
        kib = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text()).group(1)
        memory = f"{int(kib) / 2**20:.0f} GiB"
    except (OSError, AttributeError):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else None
    return {
        "processor": cpu.strip(),
        "cores": cores,
        "memory": memory,
        "load when written": load,
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def slug(where: dict[str, Any]) -> str:
    words = re.sub(r"\(.*?\)|CPU|Processor|@.*", " ", str(where["processor"]), flags=re.I)
    return re.sub(r"[^a-z0-9]+", "-", f"{words} {where['cores']} cores".lower()).strip("-")


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in ("jaxnlme", "jax", "jaxlib", "numpy", "scipy", *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def r_packages(*names: str) -> dict[str, str] | None:
    """Return versions of R and of its packages; None when R or one of them is missing."""
    program = shutil.which("Rscript")
    if program is None:
        return None
    asked = ", ".join(f'as.character(packageVersion("{name}"))' for name in names)
    code = f"cat(as.character(getRversion()), {asked})"
    done = subprocess.run([program, "-e", code], capture_output=True, text=True)
    if done.returncode:
        return None
    return dict(zip(("R", *names), done.stdout.split(), strict=True))
