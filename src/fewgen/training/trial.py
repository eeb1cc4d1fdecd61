"""A few steps of each stage, taken in memory and thrown away, to see how long they take."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from fewgen.training.loop import Trainer
from fewgen.training.phases import Trial
from fewgen.training.stage_run import StageRun

BUSIER = 1.1
"""A long work is slower by this than a short trial: caches, logs, states."""


@dataclass(frozen=True)
class StageTrial:
    """What a stage takes here.

    Attributes:
        steps: planned.
        start: seconds before the first step.
        step: seconds of a step, with its share of what comes between steps.
        end: seconds after the last step.
    """

    steps: int
    start: float
    step: float
    end: float

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return self.start + self.steps * self.step + self.end


def try_stages(
    trainer: Trainer, seconds: float, *, steps: int = 4, hooks: bool = True
) -> list[StageTrial | None]:
    """Return what each stage takes, None for one that cannot be tried before the others have run.

    Args:
        trainer: of a method that is thrown away afterwards; nothing is written.
        seconds: that the trial may take; a step of each stage is taken in any case.
        steps: of each stage at most.
        hooks: whether what comes before, between and after steps is tried too.
    """
    begun, found = time.perf_counter(), list[StageTrial | None]()
    with trainer.surroundings():
        trainer.method.to(trainer.device)
        train, held_out = trainer.pixels()
        for index, stage in enumerate(trainer.stages):
            trial = None
            until = begun + seconds * (index + 1) / len(trainer.stages)
            on_start = stage.on_start
            if not hooks:
                stage.on_start = None
            with suppress(Exception):  # a stage that needs the results of those before it
                started = trainer.now()
                trainer.trial = Trial(trainer.now)
                run = trainer.begin(train, held_out)
                start = trainer.now() - started + trainer.trial.left_out
                step = _step_seconds(trainer, run, until, steps)
                end = stage.end_seconds()
                if hooks and time.perf_counter() < until:
                    once, share = trainer.measuring_seconds(run, step)
                    step, end = step + share, end + once
                trial = StageTrial(run.planned, start, BUSIER * step, end)
            stage.on_start = on_start
            trainer.heed_stop()
            found.append(trial)
            trainer.skip_stage()
    return found


def _step_seconds(trainer: Trainer, run: StageRun, until: float, steps: int) -> float:
    """Return the seconds of a step; what runs in every 16th step counts a sixteenth."""
    mean = 0.0
    for n in range(steps):
        begun = time.perf_counter()
        taken, phases = trainer.timed_step(run)
        total = taken + sum(seconds / run.phases[name].phase.every for name, seconds in phases.items())
        # The first step pays for warming up, and counts only where no other is taken.
        mean = total if n < 2 else mean + (total - mean) / n
        if 2 * time.perf_counter() - begun > until:
            break
    return mean
