"""What the benchmark measures in processes of its own. Prints one line of JSON.

python _nlme_workers.py NAME '{"option": value}'
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from typing import Any


def pin(cpu: int | None) -> None:
    """Stay on one core; before jax starts its thread pools."""
    if cpu is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[cpu % len(cores)]})


def cold(method: str) -> dict[str, Any]:
    """First and second call of the door in this process, and other data of the same bucket."""
    began = time.perf_counter()
    import jaxnlme as jn

    door = jn.fit_nlme
    imported = time.perf_counter() - began

    import jax
    from _measure import spend

    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compilations.append(name) if "backend_compile" in name else None
    )
    theoph = jn.datasets.load("theoph")
    last: Any = None

    def call(data: Any) -> float:
        nonlocal last
        last = door(
            "conc ~ SSfol(Dose, Time, lKe, lKa, lCl)",
            data,
            group="Subject",
            fixed="lKe + lKa + lCl ~ 1",
            random="lKa + lCl ~ 1",
            covariance="diagonal",
            start={"lKe": -2.4, "lKa": 0.45, "lCl": -3.2},
            method=method,
            progress=False,
        )
        return float(last.llf)

    first = spend(lambda: call(theoph))
    first_compiled = len(compilations)
    errors = list(last.bse)  # standard errors belong to a fit that is looked at
    again = [spend(lambda: call(theoph)) for _ in range(7)]
    second_compiled = len(compilations) - first_compiled
    fewer = theoph[theoph["Subject"].astype(str) != "5"].copy()  # 11 of 12 subjects, new numbers
    fewer["conc"] = 1.05 * fewer["conc"] + 0.01
    before = len(compilations)
    other = spend(lambda: call(fewer))
    return {
        "import": imported,
        "first": vars(first),
        "first_compilations": first_compiled,
        "second": {"cpu": min(s.cpu for s in again), "wall": min(s.wall for s in again)},
        "second_compilations": second_compiled,
        "other": vars(other),
        "other_compilations": len(compilations) - before,
        "std_errors": [float(v) for v in errors],
    }


def many(
    model: str,
    method: str,
    lanes: int,
    driver: str,
    repeats: int,
    cpu: int | None = None,
) -> dict[str, Any]:
    """Fit simulated data sets by one driver: "loop", "vmap" or a chunk size of fit_many."""
    pin(cpu)
    import _nlme_models as models
    import jax
    import numpy as np
    from _measure import spend

    import jaxnlme as jn

    problems = [models.problem(model, data) for data in models.simulated(model, lanes)]
    fit = functools.partial(jn.nlme.fit, method=models.method(method))
    with jax.enable_x64(True):
        if driver == "loop":
            ready = jax.device_put(problems)

            def run():
                return [fit(one) for one in ready]
        else:
            whole = jax.device_put(jn.batch.stack(problems))
            chunk = lanes if driver == "vmap" else int(driver)

            def run():
                return jn.batch.fit_many(fit, whole, chunk=chunk)

        out: Any = None

        def call() -> float:
            nonlocal out
            out = jax.block_until_ready(run())
            return 0.0

        first = spend(call)
        best = [spend(call) for _ in range(repeats)]
    fits = out if isinstance(out, list) else [out]
    llf = np.concatenate([np.atleast_1d(f.stats["log_likelihood"]) for f in fits])
    codes = np.concatenate([np.atleast_1d(f.result._value) for f in fits])
    steps = np.concatenate([np.atleast_1d(f.stats["num_steps"]) for f in fits])
    return {
        "devices": jax.device_count(),
        "first": vars(first),
        "cpu": min(s.cpu for s in best),
        "wall": min(s.wall for s in best),
        "converged": int(np.sum(codes == 0)),
        "finite": int(np.sum(np.isfinite(llf))),
        "steps": [float(np.median(steps)), int(steps.max())],
        "llf": llf[:50].tolist(),
    }


def pynlme_loop(model: str, count: int, cpu: int | None = None) -> dict[str, Any]:
    """Fit the first simulated data sets by pynlme's FOCE, one after another."""
    pin(cpu)
    import _nlme_models as models
    from _measure import spend

    data = models.simulated(model, count)
    models.pynlme_fit(model, data[0], "LME")  # imports
    llf: list[float] = []
    sample = spend(lambda: llf.append(models.pynlme_fit(model, data[len(llf)], "FOCE")), count)
    return {"cpu": sample.cpu, "wall": sample.wall, "llf": llf}


def size(subjects: int, method: str, chunk: int, repeats: int) -> dict[str, Any]:
    """Fit one simulated data set of many subjects; peak temporary memory as XLA allocates it."""
    from _measure import spend

    call, rows, memory = _sized(subjects, method, chunk)
    first = spend(call)  # compiled before: only slow where the fit itself is
    best = [first] if first.wall > 10 else [spend(call) for _ in range(repeats)]
    fit = best[-1].value
    return {
        "cpu": min(s.cpu for s in best),
        "wall": min(s.wall for s in best),
        "llf": float(fit.stats["log_likelihood"]),
        "steps": int(fit.stats["num_steps"]),
        "result": int(fit.result._value),
        "rows": rows,
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
    }


def growth(small: int, large: int, method: str, chunk: int, rounds: int) -> dict[str, Any]:
    """Time a large fit against small ones, in turn, so that both see the machine at one speed."""
    from _measure import spend

    (few, _, _), (many, _, _) = (_sized(n, method, chunk) for n in (small, large))
    times = large // small
    spend(few), spend(many)
    ratios, steps = [], set()
    for _ in range(rounds):
        before, whole, after = spend(few, times // 2), spend(many), spend(few, times // 2)
        ratios.append(2 * whole.wall / (before.wall + after.wall))
        steps.add((int(before.value.stats["num_steps"]), int(whole.value.stats["num_steps"])))
    (found,) = steps
    return {"ratios": sorted(ratios), "steps": found}


def _sized(subjects: int, method: str, chunk: int) -> Any:
    """Return a compiled fit of one simulated data set, its rows and XLA's memory analysis."""
    import _nlme_models as models
    import jax
    import numpy as np

    import jaxnlme as jn

    (data,) = models.simulated("ssfol", 1, subjects=subjects)
    problem = models.problem("ssfol", data, chunk=chunk)
    with jax.enable_x64(True):
        problem = jax.device_put(problem)
        program = jax.jit(functools.partial(jn.nlme.fit, method=models.method(method)))
        compiled = program.lower(problem).compile()

    def call() -> Any:
        with jax.enable_x64(True):
            return jax.block_until_ready(compiled(problem))

    return call, int(np.sum(np.asarray(problem.weights) > 0)), compiled.memory_analysis()


if __name__ == "__main__":
    name, options = sys.argv[1:]
    worker = {
        "cold": cold,
        "many": many,
        "pynlme_loop": pynlme_loop,
        "size": size,
        "growth": growth,
    }[name]
    print(json.dumps(worker(**json.loads(options))))
