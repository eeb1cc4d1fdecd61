"""Guards against a training that has gone wrong: no figure, gradient or weight may be other than finite."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from fewgen.errors import TrainingError
from fewgen.training.stage_run import StageRun
from fewgen.training.updates import is_finite, within_limit
from fewgen.training.watch import RUNAWAY


class Guards:
    """Stops a training that is no longer finite, and says how to go on.

    Args:
        run_dir: named in messages.
        n_processes: how many processes train together.

    Attributes:
        saved_at: step of the last good checkpoint; None before the first.
    """

    def __init__(self, run_dir: Path, n_processes: int) -> None:
        self.run_dir = run_dir
        self.n_processes = n_processes
        self.saved_at: int | None = None

    def check_figures(self, run: StageRun) -> None:
        """Raise `TrainingError` if a figure since the last look is not finite; names the first."""
        unchecked, run.unchecked = run.unchecked, 0
        if not unchecked:
            return
        run.settle()
        for entry in run.pending[-unchecked:]:
            if is_finite(entry):
                continue  # a term that is switched off may be anything
            phase = f'of phase "{entry.phase}"'
            where = f'at step {entry.step} of stage "{run.stage.name}"'
            bad = [name for name, value in entry.terms.items() if not math.isfinite(value)]
            if len(bad) > 1:
                values = ", ".join(f'"{name}" ({entry.terms[name]})' for name in bad)
                found = f"The loss terms {values} {phase} are not finite {where}."
            elif bad:
                found = f'The loss term "{bad[0]}" ({entry.terms[bad[0]]}) {phase} is not finite {where}.'
            elif not math.isfinite(entry.total):
                other = " All terms of this process are." if self.n_processes > 1 else ""
                found = f"The weighted total {phase} is not finite {where}.{other}"
            elif not within_limit(entry):
                found = (
                    f"Training diverges: the total {phase} is {float(entry.total):.4g} {where}, "
                    f"beyond its limit of {entry.limit:g}."
                )
            else:
                found = f"The gradient {phase} is not finite {where}."
            terms = "these terms" if len(bad) > 1 else "this term" if bad else "the largest term"
            rate = run.phases[entry.phase].owner.phase.lr
            raise self._error(
                found, f"Lower the learning rate (now {rate:g}), or lower the weight of {terms}"
            )

    def check_runaway(self, run: StageRun, phase: str, total: float) -> None:
        """Raise `TrainingError` if a phase's mean total since the last log line is far above its first."""
        entries = [entry for entry in run.pending if entry.phase == phase]
        first = run.first.setdefault(phase, float(entries[0].total))
        if total <= RUNAWAY * max(1.0, abs(first)):
            return
        raise self._error(
            f'Training diverges: the total of phase "{phase}" is {total:.4g} at step {run.step} of stage '
            f'"{run.stage.name}", and was {first:.4g} at its first step.',
            run.phases[phase].phase.advice.removesuffix("."),
        )

    def check_weights(self, method: nn.Module, step: int) -> None:
        """Raise `TrainingError` if a weight is not finite: such a state must not replace a good one."""
        floating = {
            name: value
            for name, value in method.state_dict().items()
            if value.is_floating_point() and value.numel()
        }
        if not floating:
            return
        # The largest absolute value of each tensor is NaN or infinite if any of its numbers is.
        sizes = torch._foreach_norm(list(floating.values()), ord=math.inf)
        finite = torch.isfinite(torch.stack([size.float() for size in sizes]))
        if not bool(finite.all()):
            name = list(floating)[int((~finite).nonzero()[0])]
            raise self._error(
                f'The weights "{name}" are not finite after step {step}.', "Lower the learning rate"
            )

    def _error(self, found: str, advice: str) -> TrainingError:
        """Say what was found, what is left of the run, and which folder other settings can use."""
        if self.saved_at is None:
            last = "Training stopped before the first checkpoint."
            start = "the same folder can be used again with other settings"
        else:
            last = (
                f"Training stopped; the last good checkpoint, of step {self.saved_at}, is in "
                f'"{self.run_dir}".'
            )
            # A folder without a state takes other settings; one with a state refuses them.
            start = "other settings need a new folder"
        return TrainingError(f"{found} {last} {advice}; {start}.")
