"""A stage while it runs: everything that lives as long as the stage and must survive a stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewgen.nn.ema import EMA
from fewgen.training.phases import Context, Stage
from fewgen.training.sampler import Sampler
from fewgen.training.selection import Selection
from fewgen.training.updates import Entry, PhaseRun, from_json, to_json
from fewgen.training.watch import Watch

WARM_STEPS = 5
MEASURED_STEPS = 20

# What of a stage is a plain value and must survive a stop.
_COUNTERS = (
    *("steps", "step", "best_value", "best_step", "bad_validations", "validated_at"),
    *("seconds", "seconds_before", "check_at", "measured"),
)


class StageRun:
    """A stage with everything that lives as long as it: optimisers, average, sampler, best weights."""

    def __init__(self, stage: Stage, index: int, planned: int, context: Context, sampler: Sampler) -> None:
        self.stage = stage
        self.index = index
        self.planned = planned
        self.steps = planned
        self.step = 0
        self.context = context
        self.sampler = sampler
        self.container = nn.ModuleList(stage.trained_modules())
        self.phases: dict[str, PhaseRun] = {}
        self.ema: EMA | None = None
        self.best: dict[str, Tensor] | None = None
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.bad_validations = 0
        self.stopped_early = False
        self.validated_at = -1
        self.selection = Selection()
        self.watch = Watch()
        self.first: dict[str, float] = {}
        self.pending: list[Entry] = []
        self.unchecked = 0
        self.seconds = 0.0
        self.seconds_before = 0.0
        self.check_at = WARM_STEPS + MEASURED_STEPS
        self.measured = False
        self.clock: float | None = None

    def weightings(self) -> dict[str, nn.Module]:
        """The weightings that are modules, and so have state."""
        found = {name: run.weighting for name, run in self.phases.items()}
        return {name: value for name, value in found.items() if isinstance(value, nn.Module)}

    def counters(self) -> dict[str, Any]:
        """All plain values that the stage needs to continue."""
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "position": self.sampler.position,
            "watch": self.watch.state(),
            "first": self.first,
            "selection": self.selection.state(),
            "pending": [to_json(entry) for entry in self.pending],
        }

    def load_counters(self, values: Mapping[str, Any]) -> None:
        """Continue from `counters()`."""
        for name in _COUNTERS:
            setattr(self, name, values[name])
        self.sampler.position = values["position"]
        self.watch.load(values["watch"])
        self.selection = Selection.of(values.get("selection"))
        self.first = dict(values.get("first", {}))
        self.pending = [from_json(entry) for entry in values["pending"]]

    def plan_anew(self) -> None:
        """Forget the steps that another limit of time allowed."""
        self.steps = self.context.steps = max(self.planned, self.step)
        self.measured, self.check_at = False, self.step + WARM_STEPS + MEASURED_STEPS

    def means(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the means of the pending figures by "phase/name", and of the totals by phase."""
        values: dict[str, float] = {}
        totals: dict[str, float] = {}
        for name, phase in self.phases.items():
            entries = [entry for entry in self.pending if entry.phase == name]
            if not entries:
                continue
            values[f"{name}/total"] = totals[name] = _mean([entry.total for entry in entries])
            for part in ("terms", "stats"):
                found = [getattr(entry, part) for entry in entries]
                for key in dict.fromkeys(key for figures in found for key in figures):
                    values[f"{name}/{key}"] = _mean([f[key] for f in found if key in f])
            norms = [entry.norm for entry in entries if entry.norm is not None]
            if norms:
                values[f"{name}/grad_norm"] = _mean(norms)
            values[f"{name}/lr"] = float(phase.optimizer.param_groups[0]["lr"])
            weights = getattr(phase.weighting, "weights", None)
            if callable(weights):
                values.update({f"{name}/weight/{key}": float(value) for key, value in weights().items()})
        return values, totals

    def settle(self) -> None:
        """Turn pending figures into plain numbers, in one transfer."""
        flat = [
            value
            for entry in self.pending
            for value in (entry.total, entry.norm, *entry.terms.values(), *entry.stats.values())
            if isinstance(value, Tensor)
        ]
        if not flat:
            return
        numbers = iter(torch.stack([value.detach().reshape(()).float() for value in flat]).tolist())

        def number(value: Any) -> Any:
            return next(numbers) if isinstance(value, Tensor) else value

        for entry in self.pending:
            entry.total = number(entry.total)
            entry.norm = number(entry.norm)
            entry.terms = {name: number(value) for name, value in entry.terms.items()}
            entry.stats = {name: number(value) for name, value in entry.stats.items()}


def _mean(values: Sequence[Any]) -> float:
    return sum(float(value) for value in values) / len(values)
