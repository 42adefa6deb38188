"""Statistical models as compiled, differentiable, batchable JAX functions.

``import jaxnlme as jn``. Doors (``jn.fit_nlme``, ``jn.nlmefit``) take data frames or arrays and
return results objects; pure functions (``jn.nlme.fit``) work under ``jit``, ``vmap`` and ``grad``.
Names load on first use, so importing the package starts no backend and loads no pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxnlme._errors import (
    BoundaryWarning,
    CollinearityWarning,
    ConvergenceWarning,
    DataError,
    DataWarning,
    ExtrapolationWarning,
    FormulaError,
    FormulaWarning,
    IdentifiabilityWarning,
    JaxnlmeError,
    JaxnlmeWarning,
    ModelSpecError,
    PrecisionWarning,
    SamplingWarning,
    SeparationWarning,
    SerializationError,
    SingularFitWarning,
    nearest,
)

if TYPE_CHECKING:  # what _LAZY does at run time, for editors and type checkers
    from jaxnlme import (
        batch,
        calibration,
        datasets,
        design,
        error_models,
        families,
        glm,
        links,
        matlab,
        mixed,
        nlme,
        penalties,
        priors,
        structural,
    )
    from jaxnlme._cache import enable_cache
    from jaxnlme._results import RESULTS
    from jaxnlme.api.glm import fit_glm
    from jaxnlme.api.matlab import nlmefit
    from jaxnlme.api.nlme import fit_nlme
    from jaxnlme.design.bases import bs, ns
    from jaxnlme.results.compare import compare, table
    from jaxnlme.results.glm_anova import drop1, step
    from jaxnlme.results.term_tests import anova
    from jaxnlme.structural import selfstart

__version__ = "0.1.0"

__all__ = [
    "RESULTS",
    "BoundaryWarning",
    "CollinearityWarning",
    "ConvergenceWarning",
    "DataError",
    "DataWarning",
    "ExtrapolationWarning",
    "FormulaError",
    "FormulaWarning",
    "IdentifiabilityWarning",
    "JaxnlmeError",
    "JaxnlmeWarning",
    "ModelSpecError",
    "PrecisionWarning",
    "SamplingWarning",
    "SeparationWarning",
    "SerializationError",
    "SingularFitWarning",
    "anova",
    "batch",
    "bs",
    "calibration",
    "compare",
    "datasets",
    "design",
    "drop1",
    "enable_cache",
    "error_models",
    "families",
    "fit_glm",
    "fit_nlme",
    "glm",
    "links",
    "matlab",
    "mixed",
    "nlme",
    "nlmefit",
    "ns",
    "penalties",
    "priors",
    "selfstart",
    "step",
    "structural",
    "table",
]

# Public name -> "module" (the module itself) or "module:attribute".
_LAZY = {
    "RESULTS": "_results:RESULTS",
    "anova": "results.term_tests:anova",
    "batch": "batch",
    "bs": "design.bases:bs",
    "calibration": "calibration",
    "compare": "results.compare:compare",
    "datasets": "datasets",
    "design": "design",
    "drop1": "results.glm_anova:drop1",
    "enable_cache": "_cache:enable_cache",
    "error_models": "error_models",
    "families": "families",
    "fit_glm": "api.glm:fit_glm",
    "fit_nlme": "api.nlme:fit_nlme",
    "glm": "glm",
    "links": "links",
    "matlab": "matlab",
    "mixed": "mixed",
    "nlme": "nlme",
    "nlmefit": "api.matlab:nlmefit",
    "ns": "design.bases:ns",
    "penalties": "penalties",
    "priors": "priors",
    "selfstart": "structural.selfstart",
    "step": "results.glm_anova:step",
    "structural": "structural",
    "table": "results.compare:table",
}

# Names of the public interface that are planned. Move one to _LAZY when it works.
_NOT_BUILT = frozenset(
    """
    ChunkSource KFold GroupKFold StratifiedKFold TargetEncoder apply_target_encoding
    comparisons compat cross_val_score cv_glm explore_data
    fit_by fit_gam fit_mixed forecast gam glm_path gnls grid hypotheses lasso_path
    load nls nls_list nlmefitsa plot_all_smooths plot_smooth pool predictions
    r sklearn slopes smooths target_encode warm_up
    """.split()
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, _, attribute = _LAZY[name].partition(":")
        value = importlib.import_module(f"jaxnlme.{module}")
        if attribute:
            value = getattr(value, attribute)
        globals()[name] = value
        return value
    if name in _NOT_BUILT:
        raise ModelSpecError(
            f"jaxnlme.{name} is not built yet in version {__version__}. Built so far: "
            + ", ".join(sorted(set(_LAZY) - {"RESULTS"}))
            + "."
        )
    raise AttributeError(f"module 'jaxnlme' has no attribute {name!r}.{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
