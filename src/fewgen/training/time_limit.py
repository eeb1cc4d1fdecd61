"""Time of a run over all its sessions, and steps that fit into a limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from fewgen.training.phases import Stage
from fewgen.training.processes import Processes
from fewgen.training.stage_run import StageRun

Rehearsal = tuple[int, Callable[[], None]]
"""Steps between two occasions, and what is done then."""


class TimeLimit:
    """Clock of a run; with a limit it lowers the steps of stages so that they end in time.

    Args:
        minutes: limit of the whole run; None: none.
        stages: that share it.
        processes: which agree on the steps.

    Attributes:
        before: seconds of the sessions before this one.
        total: seconds of a run that is finished, whose clock stands still.
        hooks: seconds spent in hooks in this session, which are no part of a step.
    """

    def __init__(self, minutes: float | None, stages: Sequence[Stage], processes: Processes) -> None:
        self.minutes, self.stages, self.processes = minutes, stages, processes
        self.before = 0.0
        self.total: float | None = None
        self.hooks = 0.0
        self._mark = (0, 0.0, 0.0)
        self.start()

    def start(self) -> None:
        """Begin a session."""
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Return wall-clock seconds over all sessions."""
        if self.total is not None:
            return self.total
        return self.before + time.monotonic() - self._started

    def mark(self, run: StageRun) -> None:
        """Measure the speed from here on."""
        self._synchronize()
        self._mark = (run.step, time.monotonic(), self.hooks)

    def _synchronize(self) -> None:
        device = self.processes.device
        if device.type == "cuda" and self.minutes is not None:
            torch.cuda.synchronize(device)

    def fit(
        self,
        run: StageRun,
        rehearsals: Sequence[Rehearsal],
        note: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        """Lower the stage's steps so that it ends within its share of the limit.

        Called after some warm-up and measured steps, and again later, because a shared machine may
        become slower. The new number is saved, so a resumed run keeps it.

        Args:
            run: the stage, between two steps.
            rehearsals: what will come between steps; done once to see how long it takes.
            note: shows a line.
            warn: notes a warning.
        """
        assert self.minutes is not None
        limit = self._stage_limit(run)
        if not run.measured:
            per_step = self._measured_speed(run, rehearsals)
            self.mark(run)
        else:
            # Since the last measurement or the resumption, with everything that comes between steps.
            step, clock, _ = self._mark
            per_step = (time.monotonic() - clock) / max(run.step - step, 1)
        used = self.seconds() - run.seconds_before
        possible = run.step + int(max(0.0, 0.97 * limit - used) / max(per_step, 1e-9))
        # Later looks only correct a clear overrun: every change bends the learning-rate schedule.
        tolerance = 0 if not run.measured else max(1, run.steps // 33)
        steps = run.steps if possible >= run.steps - tolerance else max(possible, run.step)
        (steps_,) = self.processes.from_main([float(steps)])
        steps = int(steps_)
        if steps < run.steps:
            note(
                f"{run.stage.name}: {per_step * 1e3:.1f} ms per step, so {steps} of {run.planned} steps "
                f"fit into {limit:.0f} s."
            )
            if not run.measured and steps < run.planned // 10:
                warn(
                    f"The limit of {self.minutes:g} minutes allows {steps} of {run.planned} steps of stage "
                    f'"{run.stage.name}"; expect worse images. Raise minutes, or lower steps or batch_size.'
                )
        run.steps = run.context.steps = steps
        run.measured = True
        looks = (steps // 4, steps // 2, 3 * steps // 4, 9 * steps // 10)
        run.check_at = next((look for look in looks if look > run.step), -1)

    def _stage_limit(self, run: StageRun) -> float:
        """Seconds for this stage: its share of what the stages before it have left."""
        assert self.minutes is not None
        given = [stage.time_share for stage in self.stages]
        rest = 1.0 - sum(share for share in given if share is not None)
        without = sum(share is None for share in given)
        shares = [rest / without if share is None else share for share in given]
        ahead = sum(shares[run.index :])
        left = 60.0 * self.minutes - run.seconds_before
        return max(0.0, left) * (shares[run.index] / ahead if ahead > 0 else 1.0)

    def _measured_speed(self, run: StageRun, rehearsals: Sequence[Rehearsal]) -> float:
        """Seconds per step, with its share of what comes between steps."""
        self._synchronize()
        step, clock, hooks = self._mark
        elapsed = time.monotonic() - clock - (self.hooks - hooks)
        per_step = max(elapsed, 1e-9) / max(run.step - step, 1)
        for every, action in rehearsals:
            started = time.monotonic()
            action()
            per_step += (time.monotonic() - started) / every
        return per_step
