"""fewgen: learn an image generator from a few images per class, and show how good it is.

    import fewgen
    run = fewgen.train("cada_vqvae", data="digits", shots=30, out="runs/digits")
    images = fewgen.generate(run, class_names=["seven"], n=64)

Everything is loaded at its first use: `import fewgen` imports neither torch nor anything else heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewgen import renamed
from fewgen.lazy import lazy_names
from fewgen.version import __version__

if TYPE_CHECKING:
    from fewgen.api import (
        adapt,
        edit,
        evaluate,
        generate,
        interpolate,
        plan_training,
        quickstart,
        reconstruct,
        retrieve,
        train,
    )
    from fewgen.comparison.benchmarking import benchmark
    from fewgen.comparison.planning import plan
    from fewgen.data import ImageSet, load_images
    from fewgen.distillation.distilling import distill
    from fewgen.runs import Run, load_run

# In words, for type checkers and completion: what a typed package imports is not public by itself.
__all__ = [
    "ImageSet",
    "Run",
    "__version__",
    "adapt",
    "benchmark",
    "distill",
    "edit",
    "evaluate",
    "generate",
    "interpolate",
    "load_images",
    "load_run",
    "plan",
    "plan_training",
    "quickstart",
    "reconstruct",
    "retrieve",
    "train",
]
_HOMES = dict.fromkeys(__all__, "fewgen.api") | {
    "ImageSet": "fewgen.data",
    "Run": "fewgen.runs",
    "benchmark": "fewgen.comparison.benchmarking",
    "distill": "fewgen.distillation.distilling",
    "load_images": "fewgen.data",
    "load_run": "fewgen.runs",
    "plan": "fewgen.comparison.planning",
}

renamed.install()
__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
