"""What all cells of a run have in common, and what a row changes of it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.ablation import merged
from fewgen.config.schema import from_dict
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.distillation.knowledge import DistillConfig
from fewgen.distillation.settings import PrepareConfig

BASE: dict[str, Any] = {
    "per_class": 200,
    "alpha": 1.0,
    "teacher": "strong",
    "tint": {},
    "training": {"steps": 1000, "batch_size": 90},
    "prepare": {"student_channels": 32, "teacher_pretrain_steps": 1000},
    "base_images": 6000,
}
"""Settings of every row, which changes some; what is left out has the package's defaults."""

WEAK: dict[str, Any] = {
    "teacher": "conv4",
    "teacher_channels": 8,
    "teacher_pretrain_steps": 0,
    "teacher_episodes": 30,
    "turns": "no",
}
"""A teacher that has seen less, on top of `prepare`."""

QUICK: dict[str, Any] = {
    "per_class": 6,
    "tint": {"steps": 3, "textual": {"steps": 2, "batch_size": 2}, "null_text": {"inner_steps": 1}},
    "training": {"steps": 3, "batch_size": 12},
    "prepare": {
        "student_channels": 4,
        "pretrain_steps": 2,
        "pretrain_batch": 8,
        "teacher_channels": 4,
        "teacher_pretrain_steps": 2,
        "teacher_pretrain_batch": 8,
        "teacher_episodes": 2,
        "teacher_query": 2,
    },
    "base_images": 40,
}


SHOTS = 5
WAYS = 5
REAL_PER_CLASS = 300
"""Queries: real images of each class of a task, where there are so many."""

DATA: dict[str, dict[str, Any]] = {
    # how classes are split, and what every student's training has on this data
    "fashion_mnist": {"class_split": "auto", "training": {}},
    "omniglot": {"class_split": "auto", "training": {"flip": False}},
    "tiny_imagenet32": {"class_split": "auto", "training": {}},
    # 28 px, to try the benchmark: three validation classes make a task.
    "digits": {"class_split": "4/3/3", "training": {"flip": False}},
}
IMAGES = tuple(DATA)

REPEATS = 4000
"""Simulated measurements of each variance."""


PART_NAMES = {"val": "validation classes", "novel": "novel classes"}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: in the table.
        what: kind of image, or competitor; the rest of the questions need none.
        settings: on top of `BASE`.
        against: row of the same table that differences are taken to; empty for the default.
    """

    name: str
    what: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    against: str = ""


DEFAULT = Row("tint", "tint")
"""The method as it is; other rows change one thing."""


@dataclass(frozen=True)
class Settings:
    """What all cells of a run have in common; plain values only.

    Attributes:
        out: folder of the cells, and of what they share.
        part: "val" or "novel": the classes of the tasks.
        base: data set -> folder of its diffusion model, as pairs.
        changes: to `BASE`, as JSON.
        quick: whether everything is tiny, to try the benchmark itself.
        data_dir: folder of the data sets.
    """

    out: str
    part: str = "val"
    base: tuple[tuple[str, str], ...] = ()
    changes: str = "{}"
    quick: bool = False
    data_dir: str | None = None

    @property
    def shots(self) -> int:
        """Supports of each class, where a row says no other number."""
        return 2 if self.quick else SHOTS

    @property
    def queries(self) -> int:
        """Queries of each class, where there are so many."""
        return 10 if self.quick else REAL_PER_CLASS

    def general(self, data: str) -> dict[str, Any]:
        """Return the settings that rows change."""
        found = merged(BASE, {"training": DATA[data]["training"]})
        return merged(merged(found, QUICK) if self.quick else found, json.loads(self.changes))


TINY = {"per_class": 25, "steps": 300, "inner_steps": 10, "supports": 5, "shots": 25}
"""By what a quick run divides numbers of its rows."""


def tiny(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a row for a quick run, as different from those of other rows as they were.

    >>> tiny({"per_class": 200, "training": {"steps": 3000}, "alpha": 1.0})
    {'per_class': 8, 'training': {'steps': 10}, 'alpha': 1.0}
    """
    return {
        key: tiny(value) if isinstance(value, Mapping) else -(-value // TINY[key]) if key in TINY else value
        for key, value in own.items()
    }


def of_row(data: str, row: Row, settings: Settings) -> dict[str, Any]:
    """Return every setting of a row on a data set, with the package's defaults filled in; to be read only."""
    return _resolved(data, json.dumps(row.settings, sort_keys=True), settings)


@functools.cache
def _resolved(data: str, text: str, settings: Settings) -> dict[str, Any]:
    own = json.loads(text)
    found = merged(settings.general(data), tiny(own) if settings.quick else own)
    found["tint"] = asdict(from_dict(SpecialiseConfig, found["tint"]))
    found["training"] = asdict(from_dict(DistillConfig, found["training"]))
    found["prepare"] = asdict(from_dict(PrepareConfig, found["prepare"]))
    return found


def repeats_of(settings: Settings) -> int:
    """Return how often a measurement is simulated."""
    return 200 if settings.quick else REPEATS
