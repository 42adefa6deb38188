"""What the results of every model share."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from jaxnlme._errors import ModelSpecError, nearest
from jaxnlme._results import RESULTS, result_name, result_sentence
from jaxnlme.results import statistics
from jaxnlme.results.labelled import LabelledVector


class AbstractResults:
    """How a fit ended, its test statistics, and tables that a module ``_tables`` of the model makes."""

    _tables: ClassVar[ModuleType]
    _not_built: ClassVar[frozenset[str]]
    fit: Any
    result: RESULTS
    params: Any
    bse: Any
    summary: Any

    def __getattr__(self, name: str) -> Any:
        known = [n for n in dir(type(self)) if not n.startswith("_")]
        title = type(self).__name__
        if name in self._not_built:
            raise ModelSpecError(
                f"{title}.{name} is not built yet in this version; built are: {', '.join(known)}."
            )
        raise AttributeError(f"{title!r} object has no attribute {name!r}.{nearest(name, known)}")

    @property
    def tvalues(self) -> LabelledVector:
        """Estimates divided by their standard errors."""
        return self.params / self.bse

    @property
    def df_test(self) -> float | None:
        """Degrees of freedom of t tests; None for the normal distribution."""
        return None

    @property
    def pvalues(self) -> LabelledVector:
        """Two-sided p-values of ``params = 0``: Student's t with ``df_test``, or normal."""
        t = self.tvalues
        return LabelledVector(statistics.p_values(np.asarray(t), self.df_test), t.index)

    @property
    def n_iter(self) -> int:
        """Steps of the (outer) iteration."""
        return int(self.fit.stats["num_steps"])

    @property
    def converged(self) -> bool:
        """True when the convergence test held."""
        return result_name(self.result) == "successful"

    @property
    def message(self) -> str:
        """One sentence that says how the fit ended."""
        return result_sentence(result_name(self.result))

    def glance(self) -> Any:
        """Return one row of fit statistics."""
        return self._tables.glance(self)

    def augment(self) -> Any:
        """Return the columns of the model with fitted values and residuals, one row per input row."""
        return self._tables.augment(self)

    def to_json(self) -> str:
        """Return estimates and statistics as JSON (no data, no functions, no NaN)."""
        return json.dumps(statistics.plain(self._tables.as_dict(self)), indent=2)

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return statistics.html(self.summary())
