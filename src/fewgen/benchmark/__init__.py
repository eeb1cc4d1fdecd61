"""Generators side by side: the same images, training time and judge, a table and a plot.

`environment.py`: what a result records; `references/`: what a user would take instead; `candidates.py`:
what a name on the command line stands for; `cells.py`: one generator with one seed; `grid.py`: all of
them; `summary.py`, `plot.py`, `page.py`: what comes out. Nothing heavy is imported here.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewgen.api.benchmarking import BenchmarkResult


class _CallableModule(types.ModuleType):
    """`fewgen.benchmark` is this package and the function of the same name."""

    def __call__(self, *args: Any, **keywords: Any) -> BenchmarkResult:
        """Compare generators; see `fewgen.api.benchmark`."""
        from fewgen.api import benchmark

        return benchmark(*args, **keywords)


# Python sets the attribute `fewgen.benchmark` to this package whenever any part of it is imported, which
# would hide a plain function of that name.
sys.modules[__name__].__class__ = _CallableModule
