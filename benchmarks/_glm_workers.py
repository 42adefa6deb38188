"""What the GLM benchmark measures in processes of its own. Prints one line of JSON.

python _glm_workers.py NAME '{"option": value}'
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak_during(call: Callable[[], Any]) -> float:
    """Largest resident memory above the level before the call, in MB, sampled every millisecond."""
    before, top, stop = _resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            top[0] = max(top[0], _resident())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        call()
    finally:
        stop.set()
        thread.join()
    return (max(top[0], _resident()) - before) / 1e6


def fits() -> dict[str, Callable[[], Any]]:
    """One function per program that fits the large Poisson model on arrays."""
    import _glm_data as data
    import numpy as np

    columns = data.portfolio()
    X, y, exposure = data.design(columns), columns["y"], columns["Exposure"]
    offset = np.log(exposure)

    def ours() -> Any:
        import jaxnlme as jn

        return jn.fit_glm(X, y, family="poisson", intercept=False, exposure=exposure)

    def rustystats() -> Any:
        from rustystats import _rustystats as core

        return core.fit_glm_py(y, X, "poisson", offset=offset, fit_intercept=False)

    def glum() -> Any:
        from glum import GeneralizedLinearRegressor

        model = GeneralizedLinearRegressor(
            family="poisson", alpha=0, fit_intercept=False, gradient_tol=1e-6
        )
        return model.fit(X, y, offset=offset)

    def statsmodels() -> Any:
        import statsmodels.api as sm

        return sm.GLM(y, X, family=sm.families.Poisson(), offset=offset).fit()

    def sklearn() -> Any:
        from sklearn.linear_model import PoissonRegressor

        model = PoissonRegressor(alpha=0, fit_intercept=False, solver="newton-cholesky", tol=1e-8)
        return model.fit(X, y / exposure, sample_weight=exposure)

    return {
        "jaxnlme": ours, "rustystats": rustystats, "glum": glum, "statsmodels": statsmodels,
        "scikit-learn": sklearn,
    }  # fmt: skip


def pair(peer: str, rounds: int) -> dict[str, Any]:
    """Our large fit and one peer's, in turn, in a process that no other program has touched."""
    import _glm_data as data
    import numpy as np
    from _measure import Sample, race, spend

    columns = data.portfolio()
    X, y, exposure = data.design(columns), columns["y"], columns["Exposure"]
    programs = fits()
    read = {"jaxnlme": "params", "rustystats": "params", "statsmodels": "params"}

    def measured(name: str) -> Callable[[], Sample]:
        kept: list[Any] = [None]

        def timed() -> float:
            kept[0] = programs[name]()
            return 0.0

        def measure() -> Sample:
            sample = spend(timed)
            eta = X @ np.asarray(getattr(kept[0], read.get(name, "coef_")), float) + np.log(
                exposure
            )
            gap = float(np.mean(np.exp(eta) - y * eta)) - data.OPTIMUM
            return Sample(sample.cpu, sample.wall, gap)

        measure()  # imports and compiles
        return measure

    best = race({name: measured(name) for name in ("jaxnlme", peer)}, rounds)
    return {"ours": vars(best["jaxnlme"]), "peer": vars(best[peer])}


def memory(program: str) -> dict[str, Any]:
    """Peak memory of the second fit of one program (the first compiles and imports)."""
    from jaxnlme.numerics import blocked

    call = fits()[program]
    call()
    gc.collect()
    blocked._free.clear()  # memory kept for refits counts as new
    return {"megabytes": peak_during(call)}


def cold(rows: int) -> dict[str, Any]:
    """Time from after import and loading to the first fit with standard errors; then a second fit."""
    began = time.perf_counter()
    import jaxnlme as jn

    door = jn.fit_glm
    imported = time.perf_counter() - began
    import _glm_data as data
    import jax
    from _measure import spend

    compilations: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compilations.append(name) if "backend_compile" in name else None
    )
    columns = data.portfolio()
    X, y, exposure = data.design(columns)[:rows], columns["y"][:rows], columns["Exposure"][:rows]

    def call() -> float:
        fit = door(X, y, family="poisson", intercept=False, exposure=exposure)
        return float(sum(fit.bse))

    first = spend(call)
    compiled = len(compilations)
    again = [spend(call) for _ in range(5)]
    X, y, exposure = X[:-5].copy(), y[5:].copy(), exposure[5:].copy()
    before = len(compilations)
    other = spend(call)
    return {
        "import": imported,
        "first": vars(first),
        "compilations": compiled,
        "second": {"cpu": min(s.cpu for s in again), "wall": min(s.wall for s in again)},
        "other": vars(other),
        "other_compilations": len(compilations) - before,
    }


def main() -> None:
    name, options = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps({"pair": pair, "memory": memory, "cold": cold}[name](**options)))


if __name__ == "__main__":
    main()
