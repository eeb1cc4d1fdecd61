"""Settings of meta-learning: what a task is, and what happens inside one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

from fewgen.config.checks import Count, Positive, Share, Weight, Whole, check_fields, choose, one_of
from fewgen.config.effects import ABOVE_0, Acts, acts, other_than
from fewgen.errors import ConfigError, ProblemList

ALGORITHMS = ("none", "reptile", "fomaml", "maml")

# The control, "none", takes over all settings of the training that it is compared with.
_BY_GRADIENT = {"--meta": ("fomaml", "maml", "none")}


@dataclass(frozen=True)
class MetaConfig:
    """How tasks are made and adapted to, while meta-training and afterwards.

    Attributes:
        n_way: classes of a task.
        n_shot: images per class to adapt to.
        n_query: further images per class to measure the adapted model on.
        novelty: share of a task's classes that are made new: under a word that does not exist, turned or
            mirrored at random. Without it, few base classes are learned by heart and nothing is learned about
            adapting. Not where classes are told apart by how they are turned. Without words it has
            no effect.
        tasks_per_step: tasks whose gradients are averaged into one outer step.
        adapt: which parameters a task moves: "all", "decoder" or "heads" (see `Method.adaptable`).
        inner_optimizer: "adam" or "sgd".
        inner_lr: learning rate inside a task.
        learn_rates: learn a factor on `inner_lr` for each parameter tensor (maml, fomaml); the factors are
            kept in the model and used when adapting.
        inner_steps: updates inside a task while meta-training.
        inner_batch: images per inner update of reptile, drawn from support and query together; 0: as many
            as the support has. The others use the whole support in each.
        inner_decay: the inner rate falls linearly to this share of itself over the inner steps; 1: constant.
        multi_step: share of the outer gradient that comes from the query losses before the last inner step,
            falling to 0 over training; 0: only the adapted point counts. Not for reptile.
        task_clip: largest norm of one task's outer gradient (maml, fomaml); 0: no clipping.
        outer_lr: of AdamW over the outer gradient (fomaml, maml).
        outer_step: of reptile, from the old weights (0) to the adapted ones (1); falls linearly to 0.
        steps: outer steps.
        pretrain: share of the ordinary stage's steps that are taken before; 0: meta-training from scratch.
        adapt_steps: updates when adapting to new classes.
        adapt_lr: learning rate when adapting; None: `inner_lr`.
        curve: steps after which the adaptation curve is measured.
        validation_tasks: tasks per measurement of the curve.
    """

    n_way: Count = 3
    n_shot: Count = 5
    n_query: Count = 10
    novelty: Share = 0.7
    tasks_per_step: Count = 4
    adapt: Annotated[str, partial(choose, options=("all", "decoder", "heads"))] = "all"
    inner_optimizer: Annotated[str, partial(choose, options=("adam", "sgd"))] = "adam"
    inner_lr: Positive = 3e-3
    learn_rates: bool = False
    inner_steps: Whole = 5
    inner_batch: Whole = 0
    inner_decay: Share = 1.0
    multi_step: Share = 0.0
    task_clip: Weight = 1.0
    outer_lr: Positive = 1e-3
    outer_step: float = 1.0
    steps: Count = 1000
    pretrain: Weight = 1.0
    adapt_steps: Whole = 50
    adapt_lr: Positive | None = None
    curve: tuple[int, ...] = (0, 1, 5, 20, 50)
    validation_tasks: Count = 4

    effects: ClassVar[tuple[Acts, ...]] = (
        acts("task_clip outer_lr", _BY_GRADIENT),
        acts("learn_rates multi_step", {**_BY_GRADIENT, "inner_steps": ABOVE_0}),
        acts("inner_batch outer_step", {"--meta": ("reptile", "none")}),
        acts("curve validation_tasks", {"--class-split": other_than("all", "auto")}),
    )

    def __post_init__(self) -> None:
        problems = ProblemList("Settings of meta-learning", ConfigError)
        check_fields(self, "tasks", problems)
        if not 0 < self.outer_step <= 1:
            problems.add(f"tasks.outer_step must be above 0 and at most 1, got {self.outer_step}.")
        curve = list(self.curve)
        if not curve or min(curve) < 0 or curve != sorted(set(curve)):
            problems.add(f"tasks.curve must be rising numbers of steps, got {curve}.")
        problems.raise_if_any()

    @property
    def final_lr(self) -> float:
        """Learning rate when adapting to new classes."""
        return self.inner_lr if self.adapt_lr is None else self.adapt_lr

    def to_dict(self) -> dict[str, object]:
        """Return the settings as plain values."""
        return dataclasses.asdict(self)


def check_algorithm(name: str) -> str:
    """Return the name of a way to meta-train.

    Raises:
        ConfigError: if it is unknown.
    """
    one_of("meta-training", name, ALGORITHMS)
    return name
