"""Time of a run over all its sessions, and steps that fit into a limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from fewgen.clock import Limit, shown_minutes
from fewgen.errors import ConfigError
from fewgen.training.phases import FEW, Stage, tried
from fewgen.training.processes import Processes
from fewgen.training.stage_run import StageRun

T = TypeVar("T")

Rehearsal = tuple[str, int, Callable[[], None]]
"""Name of a hook, steps between two calls of it, and a call."""

HALF = 0.5
"""Share of a stage's time that a training within a hook gets at most."""

EARLY = 0.5
"""Share of a stage's time after which its speed is looked at, however few steps it has taken."""


class TimeLimit:
    """Clock of a training; with a limit it lowers the steps of stages so that they end in time.

    Args:
        limit: of the whole command.
        reserved: seconds of it that are not the training's.
        stages: that share the rest.
        processes: which agree on the steps.

    Attributes:
        before: seconds by the wall of the sessions before this one.
        total: the same of a run that is finished, whose clock stands still.
        hooks: seconds spent in hooks in this session, which are no part of a step.
        took: name of a hook of the stage under way, or "save" -> seconds that it took last.
    """

    def __init__(self, limit: Limit, reserved: float, stages: Sequence[Stage], processes: Processes) -> None:
        self.limit, self.reserved, self.stages, self.processes = limit, reserved, stages, processes
        self.before = 0.0
        self.total: float | None = None
        self.hooks = 0.0
        self.took: dict[str, float] = {}
        self.start()

    @property
    def on(self) -> bool:
        """Whether there is a limit."""
        return self.limit.minutes is not None

    def start(self) -> None:
        """Begin a session."""
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Return wall-clock seconds over all sessions."""
        if self.total is not None:
            return self.total
        return self.before + time.monotonic() - self._started

    # ------------------------------------------------------------------ sessions

    def record(self) -> dict[str, Any]:
        """Return what a state keeps of the limit."""
        return {"minutes": self.limit.minutes, "clock": self.limit.clock.kind, "spent": self.limit.spent()}

    def resume(self, record: Mapping[str, Any] | None, seconds: float) -> bool:
        """Count the sessions before this one; return whether they had another limit.

        Args:
            record: of `record`; None in states of releases that kept none.
            seconds: by the wall, of these sessions.

        Raises:
            ConfigError: they have taken more than the new limit allows.
        """
        limit, self.before = self.limit, seconds
        limit.before = seconds if record is None else float(record["spent"])
        now = {"minutes": limit.minutes, "clock": limit.clock.kind}
        if record is None or now == {key: record[key] for key in now}:
            return False
        if limit.left() < self.reserved:
            spent, aside = limit.before / 60, self.reserved / 60
            measuring = f" and needs {aside:.1f} for measuring and the report" if aside else ""
            raise ConfigError(
                f"The run has taken {spent:.1f} minutes so far{measuring}, so {shown_minutes(limit.minutes)} "
                "leave no time to continue it. Nothing was changed. Give more --minutes."
            )
        return True

    # ------------------------------------------------------------------ a stage

    def begin(self, run: StageRun, note: Callable[[str], None]) -> None:
        """Note where a stage begins.

        Args:
            run: the stage.
            note: shows a line.
        """
        run.seconds_before = self.limit.spent()
        self.took = {}
        self._of_hook = run, note

    def shortened(self, steps: int, fit: Callable[[int], T]) -> T:
        """Return what a training within a hook makes; with a limit it gets up to half of its stage's time."""
        if not self.on or self.processes.size > 1:
            return fit(steps)
        run, note = self._of_hook
        found, seconds = tried(steps, fit, self.limit.spent)
        room = HALF * self._stage_limit(run) - (self.limit.spent() - run.seconds_before)
        possible = steps if seconds == 0 else min(steps, max(FEW, int(room / seconds)))
        if possible < steps:
            note(
                f'Preparing stage "{run.stage.name}" takes {possible} of {steps} steps; the limit of '
                f"{shown_minutes(self.limit.minutes)} leaves no time for more."
            )
        return found if possible <= FEW else fit(possible)

    def mark(self, run: StageRun) -> None:
        """Measure the speed from here on."""
        if not self.on:
            return
        self._synchronize()
        self._last = self.limit.spent()
        self._mark = (run.step, self._last, self.hooks)

    def _synchronize(self) -> None:
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize(self.processes.device)

    def over(self, run: StageRun) -> bool:
        """Return whether a step like the last one would end too late; called after every step."""
        spent = self.limit.spent()
        step, self._last = spent - self._last, spent
        return self.processes.any(spent + step > self._deadline(run))

    def due(self, run: StageRun) -> bool:
        """Return whether the speed is to be measured now."""
        if run.step == run.check_at:
            return True
        early = not run.measured and self._last - run.seconds_before > EARLY * self._stage_limit(run)
        return self.processes.any(early)

    def leaves(self, what: str) -> bool:
        """Return whether there is time for a hook that could be done without."""
        return not self.on or self.limit.left() - self.reserved > self.took.get(what, 0.0)

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
            rehearsals: what will come between steps; what has not been done yet is, to see how long it takes.
            note: shows a line.
            warn: notes a warning.
        """
        first = not run.measured
        if first:
            per_step = self._measured_speed(run, rehearsals)
            self.mark(run)
        else:
            # Since the last measurement or the resumption, with everything that comes between steps.
            step, then, _ = self._mark
            per_step = (self.limit.spent() - then) / max(run.step - step, 1)
        room = 0.97 * (self._deadline(run) - run.seconds_before) - (self.limit.spent() - run.seconds_before)
        possible = run.step + int(max(0.0, room) / max(per_step, 1e-9))
        # Later looks only correct a clear overrun: every change bends the learning-rate schedule.
        tolerance = 0 if first else max(1, run.steps // 33)
        steps = run.steps if possible >= run.steps - tolerance else max(possible, run.step)
        (steps_,) = self.processes.from_main([float(steps)])
        steps = int(steps_)
        if steps < run.steps:
            note(
                f"{run.stage.name}: {per_step * 1e3:.1f} ms per step, so {steps} of {run.planned} steps "
                f"fit into {self._stage_limit(run):.0f} s."
            )
            if first and steps < run.planned // 10:
                warn(
                    f"The limit of {shown_minutes(self.limit.minutes)} allows {steps} of {run.planned} steps "
                    f'of stage "{run.stage.name}"; expect worse images. Raise minutes, or lower steps or '
                    "batch_size."
                )
        run.steps = run.context.steps = steps
        run.measured = True
        looks = (steps // 4, steps // 2, 3 * steps // 4, 9 * steps // 10)
        run.check_at = next((look for look in looks if look > run.step), -1)

    def _deadline(self, run: StageRun) -> float:
        """Seconds of the limit that are spent when the steps of a stage must end."""
        closing = sum(self.took.get(name, 0.0) for name in ("validate", "checkpoint", "save"))
        return run.seconds_before + self._stage_limit(run) - closing - run.stage.end_seconds()

    def _stage_limit(self, run: StageRun) -> float:
        """Seconds for this stage: its share of what the stages before it have left."""
        left = self.limit.seconds - self.reserved - run.seconds_before
        return max(0.0, left) * share_of_rest(self.stages, run.index)

    def _measured_speed(self, run: StageRun, rehearsals: Sequence[Rehearsal]) -> float:
        """Seconds per step, with its share of what comes between steps."""
        self._synchronize()
        step, then, hooks = self._mark
        elapsed = self.limit.spent() - then - (self.hooks - hooks)
        per_step = max(elapsed, 1e-9) / max(run.step - step, 1)
        room = self._deadline(run) - self.limit.spent()
        for name, every, action in rehearsals:
            # A preview that will not come is not worth its time; at the end there is a validation anyhow.
            if name not in self.took and (name == "validate" or run.step + room / per_step > every):
                action()
            per_step += self.took.get(name, 0.0) / every
        return per_step


def share_of_rest(stages: Sequence[Stage], index: int) -> float:
    """Return the share of a stage in the time that the stages before it have left."""
    given = [stage.time_share for stage in stages]
    rest = 1.0 - sum(share for share in given if share is not None)
    without = sum(share is None for share in given)
    shares = [rest / without if share is None else share for share in given]
    ahead = sum(shares[index:])
    return shares[index] / ahead if ahead > 0 else 1.0
