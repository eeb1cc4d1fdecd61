"""What a training would do, found out by a few trial steps that are thrown away."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.errors import ConfigError
from fewgen.progress import shown_seconds
from fewgen.runs.preparing import TrainRequest, checked

if TYPE_CHECKING:
    from fewgen.training.phases import Stage


@dataclasses.dataclass
class Plan:
    """What `train` would do, found out without training.

    Attributes:
        settings: every setting, resolved, as `config.yaml` would hold it.
        n_train: images to learn from.
        n_held_out: images set aside.
        class_names: the classes.
        shape: (C, H, W) of an image.
        text_encoder: where class vectors come from.
        stages: for each stage its name, steps, batch size, trained parameters, and the seconds of a step and
            in all; None where it could not be tried.
        parameters: numbers in the model, trained or not.
        seconds: estimate of the training time from a few trial steps; None if a stage could not be tried.
        report_seconds: estimate of measuring and the report.
        sentence: what it takes, or what the limit buys.
        peak_bytes: memory of this process after the trial steps; None where the system does not say.
        notes: what a reader should know.
        other_classes: "validation" and "novel" -> classes that are not learned from; left out if none.
    """

    settings: dict[str, Any]
    n_train: int
    n_held_out: int
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    text_encoder: str
    stages: list[dict[str, Any]]
    parameters: int
    seconds: float | None
    report_seconds: float
    sentence: str
    peak_bytes: int | None
    notes: list[str]
    other_classes: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        channels, height, width = self.shape
        kind = "grey" if channels == 1 else "colour"
        groups = {"classes": self.class_names, **self.other_classes}
        lines = [
            self.sentence,
            f"method      {self.settings['method']}, preset {self.settings['preset']}",
            f"images      {self.n_train} to learn from, {self.n_held_out} held out; {kind}, {height}x{width}",
            *(
                f"{group:<12}{len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
                for group, names in groups.items()
            ),
            f"text        {self.text_encoder}",
            f"parameters  {self.parameters:,}",
        ]
        for stage in self.stages:
            seconds = stage["seconds"]
            minutes = "" if seconds is None else f", about {seconds / 60:.1f} minutes"
            lines.append(
                f"stage       {stage['name']}: {stage['steps']} steps of {stage['batch_size']} images, "
                f"{stage['parameters']:,} parameters{minutes}"
            )
        if self.seconds is not None:
            measuring = shown_seconds(self.report_seconds)
            lines.append(f"time        about {self.seconds / 60:.1f} minutes, and {measuring} for the report")
        if self.peak_bytes is not None:
            lines.append(f"memory      about {self.peak_bytes / 2**20:.0f} MB")
        return "\n".join([*lines, *(f"note        {note}" for note in self.notes)])


TRIAL_SECONDS = 8.0
"""That a plan spends on trying, beside a step of each stage, which it needs."""


def plan_run(request: TrainRequest) -> Plan:
    """Return what a training would do; writes nothing."""
    from fewgen.runs.timing import check_limit, limit_in_words, try_run

    begun = time.perf_counter()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "A dry run is of one process, and this is one of several. Leave out what starts them (torchrun, "
            "accelerate launch)."
        )
    prepared, _ = checked(request)
    before = time.perf_counter() - begun
    found = try_run(prepared, request.report, max(1.0, TRIAL_SECONDS - before))
    stages, config = prepared.stages(), prepared.train_config
    if config.minutes is not None and not (Path(request.out) / "state").is_dir():
        # As the command does, which takes a step of each stage and nothing around it.
        bare = [
            trial and dataclasses.replace(trial, start=0.0, end=stage.end_seconds())
            for stage, trial in zip(stages, found.stages, strict=True)
        ]
        check_limit(dataclasses.replace(found, stages=bare), config.minutes)
    spec = prepared.method.spec
    sentence = limit_in_words(stages, found, config.minutes, prepared.train.size, before)
    known = all(found.stages)
    return Plan(
        settings=prepared.settings,
        n_train=len(prepared.train),
        n_held_out=len(prepared.held_out or ()),
        class_names=spec.class_names,
        shape=spec.shape,
        text_encoder="none" if spec.text is None else spec.text.encoder_name,
        stages=[
            {
                "name": stage.name,
                "steps": config.scaled(stage.steps),
                "batch_size": stage.batch_size,
                "parameters": _parameters(stage),
                "seconds_per_step": trial and trial.step,
                "seconds": trial and trial.seconds,
            }
            for stage, trial in zip(stages, found.stages, strict=True)
        ],
        parameters=sum(p.numel() for p in prepared.method.parameters()),
        seconds=sum(trial.seconds for trial in found.stages if trial is not None) if known else None,
        report_seconds=found.report,
        sentence=sentence,
        peak_bytes=_peak_bytes(),
        notes=prepared.notes,
        other_classes={
            name: tuple(prepared.split["classes"][part])
            for part, name in (("val", "validation"), ("novel", "novel"))
            if prepared.split["classes"][part]
        },
    )


def _parameters(stage: Stage) -> int:
    """Return how many numbers a stage moves."""
    found = {id(p): p.numel() for module in stage.trained_modules() for p in module.parameters()}
    return sum(found.values())


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
