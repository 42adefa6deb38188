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
        datasets,
        design,
        error_models,
        matlab,
        mixed,
        nlme,
        priors,
        structural,
    )
    from jaxnlme._cache import enable_cache
    from jaxnlme._results import RESULTS
    from jaxnlme.api.matlab import nlmefit
    from jaxnlme.api.nlme import fit_nlme
    from jaxnlme.results import anova
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
    "datasets",
    "design",
    "enable_cache",
    "error_models",
    "fit_nlme",
    "matlab",
    "mixed",
    "nlme",
    "nlmefit",
    "priors",
    "selfstart",
    "structural",
]

# Public name -> "module" (the module itself) or "module:attribute".
_LAZY = {
    "RESULTS": "_results:RESULTS",
    "anova": "results:anova",
    "batch": "batch",
    "datasets": "datasets",
    "design": "design",
    "enable_cache": "_cache:enable_cache",
    "error_models": "error_models",
    "fit_nlme": "api.nlme:fit_nlme",
    "matlab": "matlab",
    "mixed": "mixed",
    "nlme": "nlme",
    "nlmefit": "api.matlab:nlmefit",
    "priors": "priors",
    "selfstart": "structural.selfstart",
    "structural": "structural",
}

# Names of the public interface that are planned. Move one to _LAZY when it works.
_NOT_BUILT = frozenset(
    """
    ChunkSource KFold GroupKFold StratifiedKFold TargetEncoder apply_target_encoding bs
    calibration compare comparisons compat cross_val_score cv_glm drop1 explore_data families
    fit_by fit_gam fit_glm fit_mixed forecast gam glm glm_path gnls grid hypotheses lasso_path
    links load nls nls_list nlmefitsa ns penalties plot_all_smooths plot_smooth pool predictions
    r sklearn slopes smooths step table target_encode warm_up
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
