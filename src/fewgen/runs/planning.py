"""What a training would do, found out by a few trial steps that are thrown away."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any

from fewgen.runs.preparing import TrainRequest, prepare

if TYPE_CHECKING:
    from fewgen.runs.preparing import Prepared
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
        stages: for each stage its name, steps, batch size, and trained parameters.
        parameters: numbers in the model, trained or not.
        seconds: estimate of the training time from a few trial steps; None if a stage could not be tried.
        peak_bytes: memory of this process after the trial steps; None where the system does not say.
        notes: what a reader should know.
        other_classes: "validation" and "novel" -> classes that are not learned from; left out if none.
        after_stages: work that `seconds` leaves out; "" for none.
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
    peak_bytes: int | None
    notes: list[str]
    other_classes: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    after_stages: str = ""

    def __str__(self) -> str:
        channels, height, width = self.shape
        kind = "grey" if channels == 1 else "colour"
        groups = {"classes": self.class_names, **self.other_classes}
        lines = [
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
            per_step = stage["seconds_per_step"]
            minutes = "" if per_step is None else f", about {stage['steps'] * per_step / 60:.1f} minutes"
            lines.append(
                f"stage       {stage['name']}: {stage['steps']} steps of {stage['batch_size']} images, "
                f"{stage['parameters']:,} parameters{minutes}"
            )
        if self.seconds is None:
            lines.append("time        cannot be estimated before the earlier stages have run")
        else:
            limit = self.settings["training"].get("minutes")
            cut = f" (limited to {limit:g})" if limit and self.seconds > limit * 60 else ""
            beside = f"; {self.after_stages} comes on top" if self.after_stages else ""
            lines.append(f"time        about {self.seconds / 60:.1f} minutes on this machine{cut}{beside}")
        if self.peak_bytes is not None:
            lines.append(f"memory      about {self.peak_bytes / 2**20:.0f} MB")
        return "\n".join([*lines, *(f"note        {note}" for note in self.notes)])


def plan_run(request: TrainRequest) -> Plan:
    """Return what a training would do; writes nothing."""
    request.check_out()
    prepared = prepare(request)
    stages = prepared.stages()
    scale = prepared.train_config.steps_scale
    described, seconds = [], 0.0
    known = True
    for stage in stages:
        steps = max(1, round(stage.steps * scale))
        per_step = _time_step(prepared, stage)
        known = known and per_step is not None
        seconds += steps * (per_step or 0.0)
        trained = {id(p): p.numel() for module in stage.trained_modules() for p in module.parameters()}
        described.append(
            {
                "name": stage.name,
                "steps": steps,
                "batch_size": stage.batch_size,
                "parameters": sum(trained.values()),
                "seconds_per_step": per_step,
            }
        )
    spec = prepared.method.spec
    return Plan(
        settings=prepared.settings,
        n_train=len(prepared.train),
        n_held_out=0 if prepared.held_out is None else len(prepared.held_out),
        class_names=spec.class_names,
        shape=spec.shape,
        text_encoder="none" if spec.text is None else spec.text.encoder_name,
        stages=described,
        parameters=sum(p.numel() for p in prepared.method.parameters()),
        seconds=seconds if known else None,
        peak_bytes=_peak_bytes(),
        notes=prepared.notes,
        other_classes={
            name: tuple(prepared.split["classes"][part])
            for part, name in (("val", "validation"), ("novel", "novel"))
            if prepared.split["classes"][part]
        },
        after_stages=prepared.method.after_stages,
    )


SLOW_STEP = 5.0
"""Seconds of a trial step beyond which it is its own estimate: nobody waits for more of them."""


def _time_step(prepared: Prepared, stage: Stage, n_trials: int = 3) -> float | None:
    """Return the seconds of one step of a stage, measured; None if it needs an earlier stage's result."""
    import torch

    from fewgen.training.phases import Context, Pixels

    device = torch.device("cpu")
    train = Pixels(prepared.train, device)
    held_out = None if prepared.held_out is None else Pixels(prepared.held_out, device)
    rng = torch.Generator().manual_seed(0)
    context = Context(0, stage.steps, stage, rng, train, held_out, device)
    try:
        with torch.random.fork_rng(devices=[]):
            begun = time.perf_counter()
            for trial in range(n_trials + 1):
                if trial == 1:
                    start = time.perf_counter()  # the first step pays for warming up
                    if start - begun > SLOW_STEP:
                        return start - begun
                indices = torch.randint(len(train), (stage.batch_size,), generator=rng)
                batch = train.at(indices)
                if stage.augment is not None:
                    batch = dataclasses.replace(batch, images=stage.augment(batch.images, rng))
                for phase in stage.phases:
                    if phase.loss is not None:
                        phase.loss(batch, context).total().backward()
                    elif phase.step is not None:
                        phase.step(batch, context)
            return (time.perf_counter() - start) / n_trials * 1.2  # the optimiser and the average come on top
    except Exception:
        return None
    finally:
        for module in stage.trained_modules():
            module.zero_grad(set_to_none=True)


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
