"""Settings of making synthetic images and of preparing teacher and student, at the scale of a processor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fewgen.config.checks import at_least, choose
from fewgen.diffusion.blend import NORM_MODES
from fewgen.diffusion.inversion import NULL_TEXT_SCHEDULES, PROMPT
from fewgen.errors import ConfigError


@dataclass(frozen=True)
class SpecialiseConfig:
    """How a text-to-image model learns a class from its supports, and makes images of it.

    The published setting, for Stable Diffusion: steps 50, scale 7.5, textual_steps 5000, textual_batch 1,
    textual_lr 0.001.

    Attributes:
        steps: of sampling.
        scale: of guidance, in inversion and in sampling.
        textual_steps: updates of the word.
        textual_batch: images of each class in an update.
        textual_lr: learning rate of the word.
        t_min: lowest time shown to the word.
        inner_steps: most updates of a null text at each step.
        null_lr: learning rate of the null texts.
        null_schedule: constant, or published: falling rate, growing tolerance.
        dequant_t: time to which supports are noised before they are inverted; 0 as published.
        norm_mode: norm of a blend: interp (published), gaussian or none.
        prompt: with the placeholder of the word.
        batch: images computed at a time.
    """

    steps: int = 25
    scale: float = 2.0
    textual_steps: int = 300
    textual_batch: int = 8
    textual_lr: float = 1e-2
    t_min: int = 250
    inner_steps: int = 10
    null_lr: float = 1e-2
    null_schedule: str = "constant"
    dequant_t: int = 0
    norm_mode: str = "interp"
    prompt: str = PROMPT
    batch: int = 16

    def __post_init__(self) -> None:
        for name in ("steps", "textual_steps", "textual_batch", "batch"):
            at_least(f"tint.{name}", getattr(self, name), 1)
        for name in ("inner_steps", "t_min", "dequant_t"):
            at_least(f"tint.{name}", getattr(self, name), 0)
        for name in ("textual_lr", "null_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"tint.{name} must be a positive number, got {getattr(self, name)}.")
        if not math.isfinite(self.scale):
            raise ConfigError(f"tint.scale must be a number, got {self.scale}.")
        choose("tint.null_schedule", self.null_schedule, NULL_TEXT_SCHEDULES)
        choose("tint.norm_mode", self.norm_mode, NORM_MODES)

    def keywords(self) -> dict[str, Any]:
        """Return the keywords of `specialise` that stand for these settings."""
        return {
            "prompt": self.prompt,
            "scale": self.scale,
            "steps": self.steps,
            "dequant_t": self.dequant_t,
            "batch": self.batch,
            "textual": {
                "steps": self.textual_steps,
                "batch_size": self.textual_batch,
                "lr": self.textual_lr,
                "t_min": self.t_min,
            },
            "null_text": {
                "inner_steps": self.inner_steps,
                "lr": self.null_lr,
                "schedule": self.null_schedule,
            },
        }


@dataclass(frozen=True)
class PrepareConfig:
    """How teacher and student are prepared on base classes.

    Attributes:
        student: name of the student.
        student_channels: of its first convolutions.
        pretrain_steps: of the student on base classes; 0 leaves it as drawn.
        pretrain_batch: images per step.
        teacher_channels: of the convolutions of the teacher.
        teacher_episodes: tasks that the teacher is trained on.
        teacher_lr: highest learning rate of the teacher.
        teacher_query: queries of each class in a task of the teacher.
    """

    student: str = "conv4"
    student_channels: int = 64
    pretrain_steps: int = 1000
    pretrain_batch: int = 100
    teacher_channels: int = 64
    teacher_episodes: int = 1500
    teacher_lr: float = 1e-3
    teacher_query: int = 15

    def __post_init__(self) -> None:
        at_least("student_channels", self.student_channels, 1)
        at_least("pretrain_steps", self.pretrain_steps, 0)
        at_least("pretrain_batch", self.pretrain_batch, 2)
        at_least("teacher_channels", self.teacher_channels, 1)
        at_least("teacher_episodes", self.teacher_episodes, 1)
        at_least("teacher_query", self.teacher_query, 1)
        if not 0 < self.teacher_lr < math.inf:
            raise ConfigError(f"teacher_lr must be a positive number, got {self.teacher_lr}.")
