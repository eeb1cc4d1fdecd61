"""What `distill` is asked for, and what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.keywords import flag, whole
from fewgen.errors import ConfigError

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.data.registry import Reading
    from fewgen.diffusion.pipeline import TextToImage
    from fewgen.runs.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillRequest:
    """The keywords of `distill`, which says what each means; those of how images are read are together."""

    out: str | Path
    novel: str | Path | ImageSet | None
    data: str | Path | ImageSet | None
    generator: str | Path | Run | TextToImage | ImageSet | None
    student: str
    shots: int | None
    class_split: str | None
    n_way: int
    n_shot: int
    queries: int | str
    episodes: int | str
    half_width: float | None
    compare: bool
    competitors: str | Sequence[str] | None
    per_class: int
    alpha: float
    pool: str | Path | ImageSet | None
    joint_encoder: str
    mixtures: int | None
    teacher: str | Path | None
    teacher_net: str
    teacher_channels: int
    teacher_pretrain_steps: int
    teacher_episodes: int | None
    student_channels: int
    pretrain_steps: int
    turns: str
    base_images: int
    training: Mapping[str, Any] | None
    tint: Mapping[str, Any] | None
    generator_minutes: float | None
    generator_preset: str
    save_images: bool
    workers: int
    seed: int
    device: str
    progress: bool
    reading: Reading

    def whole(self, **least: int) -> None:
        """Raise `ConfigError` unless these keywords are whole numbers of so much or more."""
        for name, lowest in least.items():
            whole(flag(name), getattr(self, name), lowest)

    def refuse(self, names: Sequence[str], why: str) -> None:
        """Raise `ConfigError` if one of these keywords was given."""
        for name in names:
            if getattr(self, name):
                raise ConfigError(f"{flag(name)} has no use here: {why}.")


@dataclasses.dataclass
class Distilled:
    """What `distill` made.

    Attributes:
        path: the folder of the student, or the JSON file of the comparison.
        record: what lies in distill.json.
        notes: what a reader of the result should know.
        was_finished: whether everything was there already.
    """

    path: Path
    record: dict[str, Any]
    notes: list[str]
    was_finished: bool = False
