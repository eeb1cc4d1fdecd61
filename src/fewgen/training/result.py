"""What training did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class StageResult:
    """How a stage ended.

    Attributes:
        name: of the stage.
        steps: taken.
        planned_steps: what was asked for, after `steps_scale`.
        seconds: of wall-clock time, over all sessions.
        best_step: step of the weights that were kept, if a held-out figure chose them.
        best_value: the best of that figure.
        stopped_early: whether patience ran out.
        summary: the stage's own line.
        why: why these weights were kept, as a part of a sentence.
    """

    name: str
    steps: int
    planned_steps: int
    seconds: float
    best_step: int | None = None
    best_value: float | None = None
    stopped_early: bool = False
    summary: str = ""
    why: str = ""


@dataclass
class TrainResult:
    """What training did.

    Attributes:
        run_dir: where everything lies.
        steps: taken, over all stages and sessions.
        seconds: of wall-clock time, over all sessions.
        stages: how each finished stage ended.
        best: stage name -> best monitored figure.
        warnings: divergence, swings, overfitting, collapse, repaired states.
        stopped_early: whether patience ran out in some stage.
        interrupted: whether it was told to stop; the same call continues.
        finished: whether every stage is done.
    """

    run_dir: Path
    steps: int
    seconds: float
    stages: list[StageResult]
    best: dict[str, float]
    warnings: list[str]
    stopped_early: bool
    interrupted: bool
    finished: bool
