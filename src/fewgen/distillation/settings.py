"""Settings of preparing teacher and student, at the scale of a processor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

from fewgen.config.checks import Checked, Count, Positive, Whole, at_least

Batch = Annotated[int, partial(at_least, least=2)]
"""Images of a step of training; batch norm needs two."""


@dataclass(frozen=True)
class PrepareConfig(Checked):
    """How teacher and student are prepared on base classes.

    Attributes:
        student: name of the student.
        student_channels: of its first convolutions.
        pretrain_steps: of the student on base classes; 0 leaves it as drawn.
        pretrain_batch: images per step.
        teacher: name of the teacher's network, one of the students' too.
        teacher_channels: of its first convolutions.
        teacher_pretrain_steps: of the teacher as a classifier of the base classes, before the tasks.
        teacher_pretrain_batch: images per step.
        teacher_pretrain_lr: learning rate of these steps, a tenth of it in their last third; None: by the
            number of base classes, see `filled`.
        teacher_episodes: tasks that the teacher is trained on then; 0 for none after steps as a classifier;
            None: likewise.
        teacher_lr: highest learning rate of the tasks.
        teacher_query: queries of each class in a task of the teacher.
        turns: whether turned base images join as classes of their own, and the teacher measures from the mean
            of base images: "yes", "no", or "auto": where there are few base classes.
    """

    student: str = "conv4"
    student_channels: Count = 64
    pretrain_steps: Whole = 1000
    pretrain_batch: Batch = 100
    teacher: str = "resnet12"
    teacher_channels: Count = 16
    teacher_pretrain_steps: Whole = 2000
    teacher_pretrain_batch: Batch = 128
    teacher_pretrain_lr: Positive | None = None
    teacher_episodes: Whole | None = None
    teacher_lr: Positive = 1e-3
    teacher_query: Count = 15
    turns: Literal["auto", "yes", "no"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_episodes is not None and not self.teacher_pretrain_steps:
            at_least("teacher_episodes", self.teacher_episodes, 1)

    def filled(self, few: bool) -> PrepareConfig:
        """Return these settings with numbers for what is None.

        Args:
            few: whether there are few base classes: features of these suit new classes less the longer they
                are bent to them, so the rate is lower and there are no tasks.
        """
        lr, episodes = self.teacher_pretrain_lr, self.teacher_episodes
        if lr is None:
            lr = 0.02 if few else 0.1
        if episodes is None:
            episodes = 0 if few and self.teacher_pretrain_steps else 300
        return replace(self, teacher_pretrain_lr=lr, teacher_episodes=episodes)
