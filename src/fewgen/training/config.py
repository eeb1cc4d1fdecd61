"""Settings of the training loop that hold for every method."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from fewgen.clock import CLOCKS
from fewgen.config.effects import Acts, Must, acts
from fewgen.errors import ConfigError, ProblemList, suggest
from fewgen.training.selection import CHOICES

PRECISIONS = ("auto", "float32", "bfloat16")

HARMLESS = frozenset(
    {
        "log_every",
        "preview_every",
        "checkpoint_every",
        "tensorboard",
        "threads",
        "progress",
        "minutes",
        "clock",
        "device",
    }
)
"""Settings that may differ when a run is resumed: they change what is shown or how long it takes."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train, whatever is trained.

    Attributes:
        seed: of every random draw of the training: order, augmentation, noise, dropout.
        ema_decay: decay per step of the running average of the weights, in [0, 1); 0 turns it off. The
            average is what is validated, previewed and saved. A stage may set its own.
        log_every: steps between lines of metrics.jsonl; a line holds means over these steps.
        validate_every: steps between measurements on held-out images; 0: only at the end of a stage.
        preview_every: steps between preview pictures; 0: only at the end of a stage.
        checkpoint_every: steps between saved states; 0: only at the end of a stage and when stopped.
        precision: "auto" (bfloat16 on CUDA, float32 elsewhere), "float32" or "bfloat16".
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".
        minutes: limit of the whole command, report included; what training gets of it is shared out over
            the stages, whose steps are lowered to fit, never raised. None: no limit.
        clock: what a minute of the limit is: "wall", or "cpu", of computing on all cores.
        checkpoint: which weights of a stage are kept: "best", by the held-out loss, or where a stage has
            none by the images that it draws, see `training.selection`; "images", by the images also where
            there is a held-out loss; "last", those of its last step, without early stopping.
        steps_scale: factor on the steps of every stage; 0.1 is a quick look.
        tensorboard: also write TensorBoard files (needs the package tensorboard).
        threads: processor threads of torch; None leaves torch's own choice.
        deterministic: ask CUDA for reproducible kernels, so that resuming is bit for bit there too.
        progress: show a progress bar or progress lines.
    """

    seed: int = 0
    ema_decay: float = 0.999
    log_every: int = 20
    validate_every: int = 200
    preview_every: int = 500
    checkpoint_every: int = 500
    precision: str = "auto"
    device: str = "auto"
    minutes: float | None = None
    clock: str = "wall"
    checkpoint: str = "best"
    steps_scale: float = 1.0
    tensorboard: bool = False
    threads: int | None = None
    deterministic: bool = True
    progress: bool = True

    effects: ClassVar[tuple[Acts, ...]] = (
        acts("--clock", {"--minutes": Must("N", lambda value: value is not None)}),
    )

    def __post_init__(self) -> None:
        problems = ProblemList("Training settings", ConfigError)
        if not 0 <= self.seed < 2**63:
            problems.add(f"seed must be from 0 to {2**63 - 1}, got {self.seed}.")
        if not 0.0 <= self.ema_decay < 1.0:
            problems.add(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}.")
        if self.log_every < 1:
            problems.add(f"log_every must be 1 or more, got {self.log_every}.")
        for name in ("validate_every", "preview_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                problems.add(f"{name} must be 0 (off) or more, got {getattr(self, name)}.")
        if self.precision not in PRECISIONS:
            problems.add(f'precision must be one of {", ".join(PRECISIONS)}, got "{self.precision}".')
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            problems.add(f"minutes must be above 0, got {self.minutes}.")
        if self.clock not in CLOCKS:
            problems.add(f'clock must be wall or cpu, got "{self.clock}".{suggest(self.clock, CLOCKS)}')
        if self.checkpoint not in CHOICES:
            problems.add(
                f'checkpoint must be best, images or last, got "{self.checkpoint}".'
                f"{suggest(self.checkpoint, CHOICES)}"
            )
        if not (self.steps_scale > 0 and self.steps_scale != float("inf")):
            problems.add(f"steps_scale must be above 0, got {self.steps_scale}.")
        if self.threads is not None and self.threads < 1:
            problems.add(f"threads must be 1 or more, got {self.threads}.")
        problems.raise_if_any()

    def to_dict(self) -> dict[str, object]:
        """Return the settings as plain values."""
        return dataclasses.asdict(self)

    def scaled(self, steps: int) -> int:
        """Return the steps of a stage after `steps_scale`, 1 at least."""
        return max(1, round(steps * self.steps_scale))
