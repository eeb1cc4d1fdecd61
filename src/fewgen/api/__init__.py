"""The Python functions behind every command: each flag of the command line is one keyword here.

Nothing heavy is imported at the top of these files, because the command line reads the signatures and
docstrings to print its help. The `Args` sections are that help.
"""

from typing import TYPE_CHECKING

from fewgen import renamed
from fewgen.api.adapting import adapt
from fewgen.api.editing import edit
from fewgen.api.evaluating import evaluate, plan_evaluation
from fewgen.api.generating import generate
from fewgen.api.interpolating import interpolate
from fewgen.api.reconstructing import reconstruct
from fewgen.api.retrieving import retrieve
from fewgen.api.training import (
    Plan,
    plan_training,
    quickstart,
    quickstart_keywords,
    resolved_settings,
    train,
)
from fewgen.runs.verbs import Reconstructions, Retrieved

__all__ = [
    "Plan",
    "Reconstructions",
    "Retrieved",
    "adapt",
    "edit",
    "evaluate",
    "generate",
    "interpolate",
    "plan_evaluation",
    "plan_training",
    "quickstart",
    "quickstart_keywords",
    "reconstruct",
    "resolved_settings",
    "retrieve",
    "train",
]

if not TYPE_CHECKING:
    __getattr__ = renamed.from_api
