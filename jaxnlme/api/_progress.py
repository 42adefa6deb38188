"""A progress line for fits that take longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


def line(*, always: bool) -> Callable[[dict[str, Any]], None] | None:
    """Return a callback that writes one changing line to the terminal, or None without a terminal."""
    if not always and not sys.stderr.isatty():
        return None
    began = time.perf_counter()
    written = False

    def show(info: dict[str, Any]) -> None:
        nonlocal written
        waited = time.perf_counter() - began
        if not always and waited < 2.0:
            return
        written = True
        text = (
            f"\rstep {info['step']:4d}  log-likelihood {info['log_likelihood']:.4f}  {waited:.1f} s"
        )
        sys.stderr.write(text + "  ")
        if info.get("done"):
            sys.stderr.write("\n")
        sys.stderr.flush()

    return show
