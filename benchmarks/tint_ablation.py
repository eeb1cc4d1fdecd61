"""What each part of TINT contributes: inversion, images, and accuracy of the students that learn from them.

Examples:
    python -m benchmarks tint_ablation --base fashion_mnist=runs/fm omniglot=runs/om --jobs 2
    python -m benchmarks tint_ablation --only students --data omniglot --episodes 20 --docs ""
    python -m benchmarks tint_ablation --part novel --only inversion images students
    python -m benchmarks tint_ablation --table-only

A task is an episode: classes that the diffusion model has never seen, five supports of each, and other real
images of these classes. Task s is the same for every row and question, so differences are paired. Settings
are chosen on validation classes (--part val, the default); --part novel is for final numbers.

Every cell (data set, row and task) is one JSON file under --out; a cell that is there is not computed again,
so a stopped benchmark continues with the same command. What is learned of a task's classes, and images that
several rows share, are kept under --out as well. The tables are also written into --docs, between two
markers; text outside them stays.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ablation import (
    Column,
    Question,
    cell_folder,
    check_same,
    figure_texts,
    finish_cell,
    flat,
    forget_peak,
    known,
    made_by,
    markdown,
    merged,
    peak_megabytes,
    shown_columns,
    write_between,
)
from fewgen.benchmark.environment import command_line, environment
from fewgen.config.schema import from_dict
from fewgen.data import load_images
from fewgen.data.imageset import ImageSet, name_key
from fewgen.distill.knowledge import DistillConfig
from fewgen.distill.protocol import SPECIALISED
from fewgen.distill.settings import PrepareConfig, SpecialiseConfig
from fewgen.distill.summary import PARTS, interval, paired, time_report
from fewgen.episodes import EpisodeSampler, class_split
from fewgen.episodes.episode import Episode
from fewgen.errors import CheckpointError, ConfigError, FewgenError
from fewgen.evaluate import (
    ClassifierFeatures,
    ClassifierSettings,
    frechet_distance,
    kernel_distance,
    label_agreement,
    within_class_distance,
)
from fewgen.evaluate.features import linear_probe
from fewgen.evaluate.planner import between_episode_variance, variance_of_mean
from fewgen.files import make_dir, read_json
from fewgen.training.seeds import derive_seed, make_rng

BASE: dict[str, Any] = {
    "per_class": 200,
    "alpha": 1.0,
    "teacher": "strong",
    "tint": {},
    "training": {"steps": 1000, "batch_size": 90},
    "prepare": {
        "student_channels": 32,
        "pretrain_steps": 1000,
        "teacher": "conv4",
        "teacher_channels": 64,
        "teacher_pretrain_steps": 0,
        "teacher_episodes": 1500,
    },
    "base_images": 6000,
}
"""Settings of every row, which changes some; what is left out has the package's defaults."""

WEAK: dict[str, Any] = {"teacher_channels": 8, "teacher_episodes": 30}
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
        "teacher_episodes": 2,
        "teacher_query": 2,
    },
    "base_images": 40,
}
QUICK_MODEL: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "network": {
        "channels": [8, 8],
        "attention_levels": 1,
        "heads": 2,
        "text_width": 8,
        "text_layers": 1,
        "patch": 2,
    },
}
QUICK_JUDGE = ClassifierSettings(steps=20, batch_size=32, width=8, dim=8)

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

PAGE = "docs/results/tint.md"
MARKERS = ("<!-- tint ablation: begin -->", "<!-- tint ablation: end -->")

KIND_OF = {
    "tint": "tint",
    "hard_labels": "tint",
    "textual_inversion": "textual_inversion",
    "da_fusion": "da_fusion",
}
"""Competitor -> the synthetic images that it learns from."""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: in the table.
        what: kind of image, or competitor; the rest of the questions need none.
        settings: on top of `BASE`.
    """

    name: str
    what: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table(Question):
    """A question with the work that answers it.

    Attributes:
        group: of `GROUPS`.
        shows: what a reader sees in it, a sentence or two.
    """

    group: str = ""
    shows: str = ""


def _tint(**changes: Any) -> dict[str, Any]:
    return {"tint": changes}


def _null_text_rows() -> tuple[Row, ...]:
    rows = [Row("w = 1", settings=_tint(scale=1.0, null_text={"inner_steps": 0}))]
    for w in (3.0, 7.5):
        rows.append(Row(f"w = {w:g}, no null texts", settings=_tint(scale=w, null_text={"inner_steps": 0})))
        for inner in (1, 3, 10, 30):
            rows += [
                Row(
                    f"w = {w:g}, {inner} x {lr:g}",
                    settings=_tint(scale=w, null_text={"inner_steps": inner, "lr": lr}),
                )
                for lr in (0.01, 0.03)
            ]
    return tuple(rows)


ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT = Row("tint", "tint")
FULL_T = _tint(textual={"t_min": 0})

TABLES = (
    Table(
        "null_text",
        "Reconstruction of supports: guidance, inner steps x learning rate",
        _null_text_rows(),
        IMAGES,
        group="inversion",
        shows="Real images of unseen classes, inverted and sampled again with guidance w. Error: mean "
        "squared difference of pixels in [-1, 1]. Factor: how many times larger the error of the same "
        "images is without null texts.",
    ),
    Table(
        "dequant",
        "Reconstruction of supports: noise before the inversion",
        tuple(Row(f"dequant_t = {t}", settings=_tint(dequant_t=t)) for t in (0, 19, 39)),
        IMAGES,
        group="inversion",
        shows="The same with default null texts, where the inversion starts from the image noised to a small "
        "time. The RMS of z_T should be about 1.",
    ),
    Table(
        "images",
        "Ways to make images",
        (
            Row("none: the word object", "object"),
            Row("textual inversion, all t", "textual_inversion", FULL_T),
            Row("textual inversion, limited t", "textual_inversion"),
            Row("TINT (with null texts)", "tint"),
            Row("DA-Fusion", "da_fusion"),
            Row("other real images", "real"),
        ),
        IMAGES,
        group="images",
        shows="Images of each task's classes against real ones, in features of a classifier that has never "
        "seen these classes. The last row is what real images reach.",
    ),
    Table(
        "alpha",
        "Share of fresh noise",
        tuple(Row(f"alpha = {a:g}", "tint", {"alpha": a}) for a in ALPHAS),
        IMAGES,
        group="images",
        shows="TINT from copies of the supports (alpha = 0) to images that share their class alone (1).",
    ),
    Table(
        "norm",
        "Norm of the blend, at alpha 0.5",
        (
            *(
                Row(mode, "tint", {"alpha": 0.5, **_tint(norm_mode=mode)})
                for mode in ("interp", "gaussian", "none")
            ),
            Row("interp, dequant_t = 19", "tint", {"alpha": 0.5, **_tint(dequant_t=19)}),
        ),
        IMAGES,
        group="images",
        shows="interp is the published norm; none leaves the sum of two latents, which is too short.",
    ),
    Table(
        "guidance",
        "Guidance",
        tuple(
            Row(f"{name}, w = {w:g}", kind, _tint(scale=w))
            for name, kind in (("textual inversion", "textual_inversion"), ("TINT", "tint"))
            for w in (1.0, 3.0, 7.5)
        ),
        IMAGES,
        group="images",
        shows="The same scale in inversion and sampling. At w = 1 null texts have no influence, and both "
        "ways are one.",
    ),
    Table(
        "students",
        "Students: where their images come from",
        (
            DEFAULT,
            Row("none (no synthetic images)", "none"),
            Row("augmentation, random weights", "augmentation"),
            Row("augmentation, prepared weights", "augmentation_pretrained"),
            Row("textual inversion, all t", "textual_inversion", FULL_T),
            Row("textual inversion, limited t", "textual_inversion"),
            Row("DA-Fusion", "da_fusion"),
            Row("hard labels", "hard_labels"),
            Row("teacher itself", "teacher"),
        ),
        IMAGES,
        True,
        "students",
        "Accuracy of a student after equal steps, supports, queries and first weights.",
    ),
    Table(
        "student_alpha",
        "Students: share of fresh noise",
        tuple(Row(f"alpha = {a:g}", "tint", {"alpha": a}) for a in ALPHAS),
        IMAGES,
        True,
        "students",
        "Students of TINT images, whose default is alpha = 1.",
    ),
    Table(
        "amount",
        "Students: synthetic images per class",
        (Row("0", "none"), *(Row(f"{n}", "tint", {"per_class": n}) for n in (50, 200, 500))),
        IMAGES,
        True,
        "students",
        "Students of more and more TINT images, after equal steps.",
    ),
    Table(
        "labels",
        "Students: who labels synthetic images",
        (
            Row("hard labels", "hard_labels"),
            Row("weak teacher", "tint", {"teacher": "weak"}),
            Row("strong teacher", "tint"),
            Row("weak teacher itself", "teacher", {"teacher": "weak"}),
            Row("strong teacher itself", "teacher"),
        ),
        IMAGES,
        True,
        "students",
        "Soft labels of a strong and of a weak teacher, which has seen few tasks and has few channels; base "
        "images have soft labels in every row, with hard labels those of the strong teacher.",
    ),
    Table(
        "student_steps",
        "Students: steps",
        tuple(
            Row(f"{name}, {n} steps", what, {"training": {"steps": n}})
            for n in (300, 1000, 3000)
            for name, what in (("TINT", "tint"), ("none", "none"))
        ),
        IMAGES,
        True,
        "students",
        "With TINT images and without synthetic ones, after equal steps each.",
    ),
    Table(
        "theorem1",
        "Theorem 1: variance of a mean over episodes",
        tuple(
            Row(f"a = {a:g}, s = {s:g}, P = {p}, Q = {q}", settings={"a": a, "s": s, "p": p, "q": q})
            for a, s in ((0.87, 0.05), (0.6, 0.1))
            for p in (10, 120, 600)
            for q in (1, 25, 75, 600)
        ),
        ("simulation",),
        group="theorem1",
        shows="Accuracies of P episodes drawn from a Beta distribution of mean a and standard deviation s, Q "
        "queries each. Predicted: (a (1 - a) / Q + (1 - 1 / Q) s^2) / P. In standard errors: the "
        "difference of both in those of the simulation; within 2 for 95 % of all rows if the theorem holds. "
        "The estimate of s^2 is the mean of the planner's, from each simulated measurement.",
    ),
    Table(
        "cost",
        "Seconds per image",
        (Row("5 supports of each class"),),
        IMAGES,
        group="cost",
        shows="One task from its supports to its images on one thread, split as in the published table; what "
        "is learned once is shared by all images of the task.",
    ),
    Table(
        "memory",
        "Memory of null-text inversion",
        tuple(Row(f"{n} supports", settings={"supports": n, **_tint(batch=5)}) for n in (5, 25, 100)),
        IMAGES,
        group="cost",
        shows="Highest memory of a fresh process beyond what it held before, at an equal batch of 5. It must "
        "not grow with the supports beyond the null texts themselves, whose size is in the last column.",
    ),
)
GROUPS = tuple(dict.fromkeys(table.group for table in TABLES))

INVERSION_COLUMNS: tuple[Column, ...] = (
    ("error x1000", "error", 1000, 3),
    ("factor", "factor", 1, 1),
    ("without null texts x1000", "plain_error", 1000, 3),
    ("unguided (w = 1) x1000", "unguided_error", 1000, 3),
    ("RMS of z_T", "rms", 1, 2),
    ("lowest RMS", "lowest_rms", 1, 2),
    ("seconds per image", "seconds_per_image", 1, 2),
)
IMAGE_COLUMNS: tuple[Column, ...] = (
    ("Fréchet", "frechet", 1, 2),
    ("Fréchet within classes", "frechet_class", 1, 2),
    ("KID x1000", "kid", 1000, 1),
    ("class agreement %", "agreement", 100, 1),
    ("diversity (1 = real)", "diversity", 1, 2),
    ("distance to nearest support", "to_support", 1, 3),
    ("seconds per image", "seconds_per_image", 1, 3),
)
COST_COLUMNS: tuple[Column, ...] = (
    *((f"{part}, s", part, 1, 4) for part in (*PARTS, "total")),
    ("minutes for all images", "minutes", 1, 1),
)
MEMORY_COLUMNS: tuple[Column, ...] = (
    ("growth, MiB", "growth_megabytes", 1, 1),
    ("process, MiB", "peak_megabytes", 1, 0),
    ("null texts and pivots, MiB", "kept_megabytes", 1, 1),
)
THEOREM_COLUMNS: tuple[Column, ...] = (
    ("predicted x10^6", "predicted", 1e6, 3),
    ("simulated x10^6", "simulated", 1e6, 3),
    ("ratio", "ratio", 1, 3),
    ("in standard errors", "deviation", 1, 2),
    ("s^2 x10^4", "s2", 1e4, 2),
    ("estimate of s^2 x10^4", "s2_estimate", 1e4, 2),
)
COLUMNS = {
    "inversion": INVERSION_COLUMNS,
    "images": IMAGE_COLUMNS,
    "theorem1": THEOREM_COLUMNS,
    "cost": COST_COLUMNS,
    "memory": MEMORY_COLUMNS,
}


# --------------------------------------------------------------------------------------------- settings


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
        """Supports of each class."""
        return 2 if self.quick else SHOTS

    @property
    def queries(self) -> int:
        """Queries of each class, where there are so many."""
        return 10 if self.quick else REAL_PER_CLASS

    def general(self, data: str) -> dict[str, Any]:
        """Return the settings that rows change."""
        found = merged(BASE, {"training": DATA[data]["training"]})
        return merged(merged(found, QUICK) if self.quick else found, json.loads(self.changes))


TINY = {"per_class": 25, "steps": 300, "inner_steps": 10, "supports": 5}
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


NEEDS = {
    "inversion": ("tint",),
    "images": ("tint", "alpha", "per_class"),
    "students": ("tint", "alpha", "per_class", "training", "teacher", "prepare", "base_images"),
    "cost": ("tint", "per_class"),
    "memory": ("tint", "supports"),
}
"""Which settings the cells of a group depend on."""


def group_of(table: Table) -> str:
    """Return what computes the cells of a table."""
    return "memory" if table.key == "memory" else table.group


def asked(data: str, group: str, row: Row, settings: Settings) -> dict[str, Any]:
    """Return what a cell is about, to compare with a finished one."""
    if group == "theorem1":
        return {"question": group, "repeats": repeats_of(settings), **row.settings}
    found = of_row(data, row, settings)
    about: dict[str, Any] = {
        "question": group,
        "data": data,
        "part": settings.part,
        "class_split": DATA[data]["class_split"],
        "shots": settings.shots,
        "queries": settings.queries,
        "what": row.what,
        **flat({key: found[key] for key in NEEDS[group] if key in found}),
    }
    if group != "students" or row.what in SPECIALISED:
        pipe = base_id(data, settings)
        about |= {} if pipe is None else {"base": pipe}
    return about


def cell_name(data: str, group: str, row: Row, settings: Settings) -> str:
    """Return the folder of a cell. What all rows share is left out: other values are refused.

    Rows with equal settings are one cell, whatever they are called.
    """
    if group == "theorem1":
        return f"{data}/{cell_folder({'question': group, **row.settings}, {'question': group})}"
    own, shared = of_row(data, row, settings), of_row(data, DEFAULT, settings)
    kept = {key: value for key, value in flat(own).items() if key.split(".")[0] in NEEDS[group]}
    usual = flat(shared)
    changed = {key: value for key, value in kept.items() if usual.get(key) != value}
    about = {"question": group, "part": settings.part, "what": row.what, **changed}
    return f"{data}/{cell_folder(about, {'part': settings.part, 'what': ''})}"


def repeats_of(settings: Settings) -> int:
    """Return how often a measurement is simulated."""
    return 200 if settings.quick else REPEATS


# --------------------------------------------------------------------------------------------- models


def base_folder(data: str, settings: Settings) -> Path:
    """Return where the diffusion model of a data set lies, or will."""
    return Path(dict(settings.base).get(data) or Path(settings.out) / "base" / data)


@functools.cache
def _opened(folder: str) -> Any:
    from fewgen.api.pipeline import load_pipeline

    return load_pipeline(folder)


def pipe_of(data: str, settings: Settings) -> Any:
    """Return the diffusion model of a data set, opened once in a process."""
    return _opened(str(base_folder(data, settings)))


def base_id(data: str, settings: Settings) -> str | None:
    """Return the hash of a diffusion model; None if it is not there (any more)."""
    if not (base_folder(data, settings) / "model.safetensors").is_file():
        return None
    try:
        return str(pipe_of(data, settings).model_id)[:16]
    except CheckpointError:
        if data in dict(settings.base):
            raise
        return None  # its training was stopped, and goes on before any cell


def check_base(data: str, settings: Settings) -> None:
    """Refuse a diffusion model for other images, or one that has learned the classes of the tasks.

    Raises:
        ConfigError: with what is wrong.
    """
    from fewgen.api.distilling_common import check_pipeline
    from fewgen.api.run import Run

    folder = base_folder(data, settings)
    part = images_of(data, settings).part
    check_pipeline(pipe_of(data, settings), part)
    new = {name_key(name) for name in part.class_names}
    known_names = [name for name in Run(folder).class_names if name_key(name) in new]
    if known_names:
        raise ConfigError(
            f'The model in "{folder}" has learned classes of the tasks: {", ".join(known_names[:5])}. '
            f"Train it with --class-split {DATA[data]['class_split']} and seed 0."
        )


def train_base(data: str, settings: Settings, minutes: float | None) -> None:
    """Train the diffusion model of a data set on its base classes, or go on with it."""
    from fewgen import api

    folder = base_folder(data, settings)
    if data in dict(settings.base) or base_id(data, settings) is not None:
        return
    run = api.train(
        "diffusion",
        data=data,
        out=folder,
        class_split=DATA[data]["class_split"],
        seed=0,
        minutes=minutes,
        data_dir=settings.data_dir,
        model=QUICK_MODEL if settings.quick else None,
        training={"validate_every": 0, "preview_every": 0} if settings.quick else None,
        holdout=0 if settings.quick else "auto",
        report=False,
        progress=not settings.quick,
    )
    if run.result is not None and run.result.interrupted:
        raise KeyboardInterrupt


def prepared_folder(data: str, settings: Settings) -> Path:
    """Return where teachers and the student of a data set lie."""
    return Path(settings.out) / "prepared" / data


def prepare(data: str, settings: Settings) -> None:
    """Train teachers and student on base classes, where they are missing.

    Raises:
        ConfigError: those that are there were trained with other settings.
    """
    from fewgen.distill.preparing import pretrained_student, trained_teacher
    from fewgen.distill.storing import open_parts

    general = of_row(data, DEFAULT, settings)
    config = from_dict(PrepareConfig, general["prepare"])
    base = images_of(data, settings).base
    vary = {key: general["training"][key] for key in ("padding", "jitter", "flip")}
    about = {"data": data, "classes": list(base.class_names), "shots": settings.shots}
    folder = open_parts(
        prepared_folder(data, settings),
        {**about, "prepare": general["prepare"], "weak": WEAK, "vary": vary},
    )
    for name, own in (("strong", config), ("weak", replace(config, **WEAK))):
        trained_teacher(folder / f"{name}.safetensors", base, own, n_way=WAYS, n_shot=settings.shots)
    varied = from_dict(DistillConfig, general["training"])
    pretrained_student(folder / "student.safetensors", base, config, varied)


# --------------------------------------------------------------------------------------------- real images


@dataclass
class Images:
    """Images of a data set.

    Attributes:
        base: of base classes.
        part: of the classes that tasks are drawn from.
        judge_train: of all classes but those of the tasks, to train the judge on.
        judge_test: others of the same classes, to say how good it is.
    """

    base: ImageSet
    part: ImageSet
    judge_train: ImageSet
    judge_test: ImageSet


@functools.cache
def images_of(data: str, settings: Settings) -> Images:
    """Load and split a data set; Omniglot's two parts are drawers of the same characters.

    Raises:
        ConfigError: a name of no data set here.
    """
    train, test = (load_images(data, split=part, data_dir=settings.data_dir) for part in ("train", "test"))
    split = class_split(train, DATA[data]["class_split"], 0)
    chosen = split.val if settings.part == "val" else split.novel
    pool = train
    if data == "omniglot":
        pool = ImageSet(
            torch.cat([train.images, test.images]),
            torch.cat([train.labels, test.labels]),
            train.class_names,
            name=train.name,
        )
    others = [name for name in train.class_names if name not in set(chosen)]
    return Images(
        train.select_classes(split.base),
        pool.select_classes(chosen),
        train.select_classes(others),
        test.select_classes(others),
    )


@functools.cache
def judge_of(data: str, settings: Settings) -> ClassifierFeatures:
    """Return the classifier in whose features images are judged; trained once, then read from the cache."""
    images = images_of(data, settings)
    how = QUICK_JUDGE if settings.quick else None
    return ClassifierFeatures.of(images.judge_train, images.judge_test, how)


@dataclass
class Task:
    """One task of a data set.

    Attributes:
        data: its name.
        seed: number of the task.
        episode: supports and queries.
        n_query: queries of each class; None: all others.
        rest: real images of these classes that are neither, with the episode's labels; may be empty.
        settings: of the run.
    """

    data: str
    seed: int
    episode: Episode
    n_query: int | None
    rest: ImageSet
    settings: Settings

    @property
    def n_way(self) -> int:
        """Number of classes."""
        return self.episode.n_way

    def supports(self, c: int) -> Tensor:
        """Return the supports of a class, (K, C, H, W) in [-1, 1]."""
        support = self.episode.support
        return support.floats((support.labels == c).nonzero().flatten())


def n_way_of(part: ImageSet) -> int:
    """Return how many classes a task has."""
    return min(WAYS, int((part.counts() > 0).sum()))


@functools.lru_cache(maxsize=4)
def task_of(data: str, seed: int, settings: Settings) -> Task:
    """Return task number `seed` of a data set."""
    part = images_of(data, settings).part
    wanted = settings.queries
    fewest = int(part.counts().min()) - settings.shots
    n_query = wanted if wanted <= fewest else None
    sampler = EpisodeSampler(
        part.labels, n_way_of(part), settings.shots, n_query, 0, class_names=part.class_names
    )
    episode = sampler.episode(seed, part)
    unused = torch.ones(len(part), dtype=torch.bool)
    unused[torch.cat(sampler.support_query(seed))] = False
    left = part.subset(unused)
    return Task(data, seed, episode, n_query, left.select_classes(episode.class_names), settings)


# --------------------------------------------------------------------------------------------- made images


def _kept(task: Task, what: str, about: Mapping[str, Any]) -> Path:
    """Return the folder of what several rows share of a task; its name depends on all that it depends on."""
    settings = task.settings
    whole = {
        **about,
        "base": base_id(task.data, settings),
        "classes": list(task.episode.class_names),
        "shots": settings.shots,
    }
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(settings.out) / "made" / task.data / settings.part / f"{what}-{digest}"
    return folder / f"task{task.seed:04d}"


def synthesis(task: Task, tint: Mapping[str, Any], folder: Path, per_class: int, alpha: float) -> Any:
    """Return what makes the images of a task, as the comparison of `fewgen distill` does."""
    from fewgen.distill.synthesis import Synthesis

    return Synthesis(
        functools.partial(pipe_of, task.data, task.settings),
        task.episode.support,
        from_dict(SpecialiseConfig, dict(tint)),
        folder,
        per_class=per_class,
        alpha=alpha,
        seed=0,
        first=task.seed,
    )


def learned(task: Task, tint: Mapping[str, Any]) -> tuple[list[Any], Path]:
    """Return the specialisations of a task's classes, and the folder that keeps them."""
    about = {key: value for key, value in tint.items() if key not in ("norm_mode", "batch")}
    folder = _kept(task, "learned", about)
    return synthesis(task, tint, folder, 1, 1.0).specialisations(), folder


def made(task: Task, kind: str, own: Mapping[str, Any]) -> tuple[ImageSet, float, Path]:
    """Return images of a kind, the seconds that drawing them took, and the folder that keeps them.

    Args:
        task: whose classes.
        kind: of `fewgen.distill.synthesis.KINDS`.
        own: settings of a row, of `of_row`.
    """
    # Alpha and norm are those of blends; without these, rows share their images.
    tint = {key: value for key, value in own["tint"].items() if key != "norm_mode" or kind == "tint"}
    alpha = float(own["alpha"]) if kind == "tint" else 1.0
    folder = _kept(task, kind, {"tint": tint, "alpha": alpha, "per_class": own["per_class"]})
    source = synthesis(task, own["tint"], folder, own["per_class"], alpha)
    if not (folder / f"{kind}.images.json").is_file():
        _, where = learned(task, own["tint"])
        make_dir(folder)
        for file in sorted(where.glob("specialis*"), key=lambda path: path.suffix == ".json"):
            shutil.copyfile(file, folder / file.name)  # the record last: it says that all are there
    images = source.images(kind)
    source.forget_specialisations()
    return images, float(source.generation[kind]["seconds"]), folder


def _of_word(task: Task, own: Mapping[str, Any], word: str) -> tuple[ImageSet, float]:
    """Return images of a word that the model knew before, the same word for every class."""
    from fewgen.data.imageset import to_uint8
    from fewgen.diffusion.specialisation import generate
    from fewgen.generate.request import image_seeds

    pipe = pipe_of(task.data, task.settings)
    first = learned(task, own["tint"])[0][0]
    plain = replace(first, embedding=pipe.word_embedding(word).float().cpu(), z_T=None, u=None)
    n = task.n_way * own["per_class"]
    started = time.perf_counter()
    seeds = image_seeds(0, (task.seed + 1) * n)[task.seed * n :]
    images = generate(pipe, plain, seeds, 1.0, batch=own["tint"]["batch"], size=task.episode.support.size)
    labels = torch.arange(task.n_way).repeat_interleave(own["per_class"])
    seconds = time.perf_counter() - started
    return ImageSet(to_uint8(images), labels, task.episode.class_names, name="object"), seconds


# ------------------------------------------------------------------------------------------- figures


def inversion_figures(task: Task, row: Row) -> dict[str, Any]:
    """Return how well a task's supports come back."""
    from fewgen.diffusion.inversion import ddim_invert, latent_rms, null_text_inversion, reconstruct
    from fewgen.diffusion.specialisation import encode_images

    settings, pipe = task.settings, pipe_of(task.data, task.settings)
    tint = of_row(task.data, row, settings)["tint"]
    # Words do not depend on guidance and null texts: those of the usual settings serve every row.
    words, _ = learned(task, of_row(task.data, DEFAULT, settings)["tint"])
    steps, scale, batch = tint["steps"], float(tint["scale"]), tint["batch"]
    supports = [task.supports(c) for c in range(task.n_way)]
    z0 = encode_images(pipe, torch.cat(supports), batch=batch)
    with torch.no_grad():
        context = torch.cat(
            [word.context(pipe).expand(len(own), -1, -1) for word, own in zip(words, supports, strict=True)]
        )
        wanted = pipe.decode(z0).float()
    rng = make_rng("cpu", task.seed, "tint ablation", "dequant")
    started = time.perf_counter()
    pivots = ddim_invert(pipe, z0, context, steps, dequant_t=tint["dequant_t"], rng=rng, batch=batch)
    z_T = pivots[-1]
    corrected = scale != 1 and tint["null_text"]["inner_steps"] > 0
    nulls = (
        null_text_inversion(pipe, pivots, context, scale, batch=batch, **tint["null_text"])
        if corrected
        else None
    )
    seconds = time.perf_counter() - started

    def error(u: Tensor | None, w: float) -> float:
        back = reconstruct(pipe, z_T, context, u, w, steps, batch=batch)
        with torch.no_grad():
            return float((pipe.decode(back).float() - wanted).double().square().mean())

    plain = error(None, scale)
    own = plain if nulls is None else error(nulls, scale)
    rms = latent_rms(z_T)
    return {
        "error": own,
        "plain_error": plain,
        "factor": plain / own if own else None,
        "unguided_error": plain if scale == 1 else error(None, 1.0),
        "rms": float(rms.mean()),
        "lowest_rms": float(rms.min()),
        "seconds_per_image": seconds / len(z0),
    }


@functools.lru_cache(maxsize=4)
def _real_side(data: str, seed: int, settings: Settings) -> tuple[Tensor, float, Any]:
    """Return features of a task's queries, their spread within classes, and a predictor of classes."""
    task, judge = task_of(data, seed, settings), judge_of(data, settings)
    query = task.episode.query
    features = judge.features(query)
    spread = within_class_distance(features, query.labels, task.n_way).mean
    return features, spread, linear_probe(features, query.labels) if task.n_way > 1 else None


def image_figures(task: Task, row: Row) -> dict[str, Any]:
    """Return what images of a task's classes are like; nothing of real ones where there are no others."""
    own = of_row(task.data, row, task.settings)
    seconds: float | None = None
    if row.what == "real":
        fewest = int(task.rest.counts().min())
        if fewest < 2:
            return {"images": 0}
        images = task.rest.shots(min(own["per_class"], fewest), seed=task.seed)
    elif row.what == "object":
        images, seconds = _of_word(task, own, "object")
    else:
        images, seconds, _ = made(task, row.what, own)
    real, spread, predict = _real_side(task.data, task.seed, task.settings)
    features = judge_of(task.data, task.settings).features(images)
    labels, of_real = images.labels, task.episode.query.labels
    within = [frechet_distance(real[of_real == c], features[labels == c]) for c in range(task.n_way)]
    agreement = None
    if predict is not None:
        agreement = label_agreement(predict(features), labels, images.class_names).overall.value
    return {
        "images": len(images),
        "real": len(real),
        "frechet": frechet_distance(real, features),
        "frechet_class": sum(within) / len(within),
        "kid": kernel_distance(real, features),
        "agreement": agreement,
        "diversity": within_class_distance(features, labels, task.n_way).mean / spread,
        "to_support": to_supports(images, task.episode.support),
        "seconds_per_image": None if seconds is None else seconds / len(images),
    }


def to_supports(images: ImageSet, supports: ImageSet) -> float:
    """Return the mean distance of images to the nearest support of their class, root mean square of pixels.

    0 are copies; black and white are 2 apart.
    """
    nearest = []
    for c in range(supports.n_classes):
        own = images.floats((images.labels == c).nonzero().flatten()).flatten(1).double()
        theirs = supports.floats((supports.labels == c).nonzero().flatten()).flatten(1).double()
        distances = torch.cdist(own, theirs, compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(distances.amin(1) / own.shape[1] ** 0.5)
    return float(torch.cat(nearest).mean())


def student_figures(task: Task, row: Row) -> dict[str, Any]:
    """Return the accuracy of a competitor on a task, computed by the comparison of `fewgen distill`."""
    from fewgen.api.pipeline import load_pipeline
    from fewgen.distill.protocol import Job, run_episode, some_base
    from fewgen.distill.protocol import Question as Compared

    settings, data = task.settings, task.data
    own = of_row(data, row, settings)
    compared = Compared(
        n_way=task.n_way,
        n_shot=settings.shots,
        n_query=task.n_query,
        per_class=own["per_class"],
        alpha=float(own["alpha"]),
        seed=0,
        tint=from_dict(SpecialiseConfig, own["tint"]),
        training=from_dict(DistillConfig, own["training"]),
    )
    prepared = prepared_folder(data, settings)
    kind = KIND_OF.get(row.what)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind is not None:
            _, _, where = made(task, kind, own)
            for file in (f"{kind}.npz", f"{kind}.images.json"):
                shutil.copyfile(where / file, folder / file)
        job = Job(
            compared,
            task.episode,
            some_base(images_of(data, settings).base, own["base_images"], 0),
            str(prepared / f"{own['teacher']}.safetensors"),
            str(prepared / "student.safetensors"),
            str(base_folder(data, settings)),
            load_pipeline,
            folder,
            (row.what,),
            progress=False,
        )
        run_episode(job)
        found = read_json(folder / f"{row.what}.json")
    about = found["about"].get("teacher", {})
    return {
        "accuracy": found["accuracy"],
        "queries": found["queries"],
        "teacher_agrees": about.get("synthetic"),
        "train_seconds": found["seconds"] or None,
    }


def theorem_figures(row: Row, seed: int, repeats: int) -> dict[str, Any]:
    """Return predicted and simulated variance of the mean accuracy over P episodes of Q queries.

    Source: TINT, Theorem 1; the standard error of a variance by its fourth moment.
    """
    import numpy as np

    a, s, p, q = (row.settings[key] for key in ("a", "s", "p", "q"))
    rng = np.random.default_rng(derive_seed(seed, "theorem 1", f"{a} {s} {p} {q}"))
    size = a * (1 - a) / s**2 - 1  # sum of the parameters of a Beta with these moments
    accuracies = rng.beta(a * size, (1 - a) * size, (repeats, p))
    measured = rng.binomial(q, accuracies) / q
    means = measured.mean(1)
    predicted = variance_of_mean(a, s, p, q)
    off = (means - means.mean()) ** 2
    simulated = float(off.sum() / (repeats - 1))
    error = float(np.sqrt(max(float((off**2).mean()) - simulated**2, 0.0) / repeats))
    estimate = None
    if q > 1:
        some = measured[: min(repeats, 200)]
        estimate = float(np.mean([between_episode_variance(values.tolist(), q) for values in some]))
    return {
        "predicted": predicted,
        "simulated": simulated,
        "ratio": simulated / predicted,
        "deviation": (simulated - predicted) / error if error else None,
        "s2": s**2,
        "s2_estimate": estimate,
    }


def cost_figures(task: Task, row: Row) -> dict[str, Any]:
    """Return seconds per image of a task that nothing is known of yet."""
    own = of_row(task.data, row, task.settings)
    pipe_of(task.data, task.settings)
    with tempfile.TemporaryDirectory() as name:
        source = synthesis(task, own["tint"], Path(name), own["per_class"], 1.0)
        started = time.perf_counter()
        source.images("tint")
        took = time.perf_counter() - started
        report = time_report(
            [{"specialised": source.seconds(), "synthetic": source.generation, "distilled": {}}]
        )
    return {**report["per_image"], "minutes": took / 60}


def memory_figures(task: Task, row: Row) -> dict[str, Any]:
    """Return the memory of null-text inversion, measured in a process of its own."""
    own = of_row(task.data, row, task.settings)
    n = int(own["supports"])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(_measure_memory, str(base_folder(task.data, task.settings)), own, n).result()


def _measure_memory(folder: str, own: dict[str, Any], n: int) -> dict[str, Any]:
    """Invert `n` images of noise: what they show does not matter for the memory."""
    from fewgen.diffusion.specialisation import find_latents

    torch.set_num_threads(1)
    pipe, tint = _opened(folder), own["tint"]
    # One image first: whatever the library sets up at its first use is no part of the growth. More than one
    # inner step and no tolerance, so that all rows do the same work.
    settings = {**tint["null_text"], "inner_steps": 2, "tol": 0.0}
    # Guidance is what null texts are for.
    scale = float(tint["scale"]) if tint["scale"] != 1 else 2.0

    def invert(images: Tensor) -> tuple[Tensor, Tensor | None]:
        context = pipe.embed([""]).detach().expand(len(images), -1, -1)
        rng = torch.Generator().manual_seed(0)
        steps = tint["steps"]
        return find_latents(
            pipe, images, context, scale, steps, null_text=settings, batch=tint["batch"], rng=rng
        )

    rng = torch.Generator().manual_seed(1)
    images = 0.5 * torch.randn((n, *pipe.latent_shape), generator=rng)
    invert(images[:1])
    before = _resident_megabytes()
    forget_peak()
    _, nulls = invert(images)
    peak = peak_megabytes()
    assert nulls is not None
    pivots = (tint["steps"] + 1) * images.numel() * images.element_size()
    kept = (nulls.numel() * nulls.element_size() + pivots) / 2**20
    return {
        "growth_megabytes": None if before is None else peak - before,
        "peak_megabytes": peak,
        "kept_megabytes": kept,
    }


def _resident_megabytes() -> float | None:
    """Return the memory that this process holds now, in MiB; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 2**10
    except OSError:
        pass
    return None


FIGURES: dict[str, Callable[[Task, Row], dict[str, Any]]] = {
    "inversion": inversion_figures,
    "images": image_figures,
    "students": student_figures,
    "cost": cost_figures,
    "memory": memory_figures,
}

TIMED = ("cost", "memory")
"""Groups whose cells are computed alone."""


# --------------------------------------------------------------------------------------------- cells

Key = tuple[str, str, int]
"""Data set, cell name, task."""


@dataclass(frozen=True)
class Cell:
    """What is to be computed.

    Attributes:
        data: set.
        group: of `FIGURES`, or theorem1.
        row: of a table.
        seed: number of the task.
    """

    data: str
    group: str
    row: Row
    seed: int


def compute(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Return the content of a cell's file."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    started, cpu = time.perf_counter(), time.process_time()
    about: dict[str, Any] = {}
    try:
        if cell.group == "theorem1":
            figures = theorem_figures(cell.row, cell.seed, repeats_of(settings))
        else:
            task = task_of(cell.data, cell.seed, settings)
            figures = FIGURES[cell.group](task, cell.row)
            about = {"classes": list(task.episode.class_names), "queries": len(task.episode.query)}
        if cell.group == "images":
            record = judge_of(cell.data, settings).record()
            about["judge"] = {key: record.get(key) for key in ("key", "test_accuracy", "n_train")}
        # Here, because the number of threads is part of it.
        where = environment()
    finally:
        torch.set_num_threads(before)
    return {
        "row": cell.row.name,
        "seed": cell.seed,
        "asked": asked(cell.data, cell.group, cell.row, settings),
        **about,
        "figures": figures,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "environment": where,
    }


def run_cells(
    cells: Sequence[tuple[Cell, Path]], settings: Settings, command: tuple[int, str]
) -> list[str | None]:
    """Compute cells of one task, one after the other: they share what is learned of its classes.

    A plain function of plain arguments, so that any joblib backend can run it anywhere.
    """
    return [
        finish_cell(
            functools.partial(compute, cell, settings),
            f"{cell.data}, {cell.group}, {cell.row.name}, task {cell.seed}",
            path,
            command,
        )
        for cell, path in cells
    ]


# --------------------------------------------------------------------------------------------- tables

Cells = Mapping[Key, dict[str, Any]]


def cells_of(
    cells: Cells, data: str, table: Table, row: Row, settings: Settings
) -> dict[int, dict[str, Any]]:
    """Return task -> cell of a row."""
    name = cell_name(data, group_of(table), row, settings)
    return {seed: cell for (of, own, seed), cell in cells.items() if (of, own) == (data, name)}


def render(table: Table, data: str, cells: Cells, settings: Settings) -> str:
    """Return the Markdown of one question on one data set; rows without a finished cell show a dash."""
    found = [(row, cells_of(cells, data, table, row, settings)) for row in table.rows]
    about = "" if data == "simulation" else f": {data}, {PART_NAMES[settings.part]}"
    task = next((cell for _, own in found for cell in own.values() if "classes" in cell), None)
    if task is not None:
        about += f", {len(task['classes'])} classes, {task['queries']} queries"
    lines = [f"### {table.asks}{about}", "", table.shows, ""]
    if table.group == "students":
        default = cells_of(cells, data, table, DEFAULT, settings)
        return "\n".join(lines + _student_table(found, default))
    columns = shown_columns((own for _, own in found), COLUMNS[group_of(table)])
    rows = [[row.name, str(len(own)), *figure_texts(own, columns)] for row, own in found]
    count = "simulations" if table.group == "theorem1" else "tasks"
    return "\n".join(lines + markdown(["", count, *(column[0] for column in columns)], rows))


def _student_table(
    found: Sequence[tuple[Row, dict[int, dict[str, Any]]]], default: dict[int, dict[str, Any]]
) -> list[str]:
    """Return accuracies with 95 % Student intervals, and paired differences to the default."""
    reference = known(default, "accuracy")
    rows = []
    for row, own in found:
        values = known(own, "accuracy")
        both = sorted(values.keys() & reference.keys())
        difference = paired([values[s] for s in both], [reference[s] for s in both]) if both else None
        same = bool(both) and own.keys() == default.keys() and all(own[s] is default[s] for s in both)
        accuracy = interval([values[s] for s in sorted(values)]) if values else None
        rows.append(
            [
                row.name,
                str(len(own)),
                _points(accuracy),
                "default" if same else _points(difference, sign=True),
                *figure_texts(own, STUDENT_COLUMNS),
            ]
        )
    headings = ["", "tasks", "accuracy %", f"paired difference to {DEFAULT.name}, points"]
    return markdown([*headings, *(column[0] for column in STUDENT_COLUMNS)], rows)


STUDENT_COLUMNS: tuple[Column, ...] = (
    ("teacher agrees with synthetic classes %", "teacher_agrees", 100, 1),
    ("training s", "train_seconds", 1, 0),
)
PART_NAMES = {"val": "validation classes", "novel": "novel classes"}


def _points(found: Mapping[str, Any] | None, sign: bool = False) -> str:
    """Return mean and half width of an interval in points.

    >>> _points({"mean": 0.5, "half_width": 0.0123}), _points({"mean": 0.02, "half_width": None}, sign=True)
    ('50.0 ± 1.2', '+2.0')
    """
    if found is None:
        return "-"
    mean = 100 * found["mean"]
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text if found["half_width"] is None else f"{text} ± {100 * found['half_width']:.1f}"


def provenance(cells: Cells, settings: Settings) -> str:
    """Return the sentences that say where the numbers come from."""
    judges: dict[str, str] = {}
    bases: dict[str, str] = {}
    tasks: dict[str, set[int]] = {}
    for (data, _, seed), cell in cells.items():
        if data == "simulation":
            continue
        tasks.setdefault(cell["asked"]["question"], set()).add(seed)
        if "base" in cell["asked"]:
            bases[data] = cell["asked"]["base"]
        if (judge := cell.get("judge")) is not None:
            accuracy = judge.get("test_accuracy")
            right = (
                "" if accuracy is None else f", right for {100 * float(accuracy):.1f} % of their test images"
            )
            judges[data] = f"{data}: trained on {judge['n_train']} images of all other classes{right}"
    first = []
    if tasks:
        counts = ", ".join(
            f"{name} {', '.join(map(str, _ranges(sorted(seeds))))}" for name, seeds in sorted(tasks.items())
        )
        first.append(
            f"Tasks of {PART_NAMES[settings.part]}, {settings.shots} supports of each of up to {WAYS} "
            f"classes, drawn by number (seed 0): {counts}. Figures are mean ± standard deviation over tasks; "
            "accuracies and differences mean ± half width of the 95 % Student interval. Class agreement is "
            "by a linear probe on the real images in the judge's features; Fréchet distances of few images "
            "are biased upwards, compare them only within a table."
        )
    if judges:
        first.append(f"Judges: {'. '.join(judges[data] for data in sorted(judges))}.")
    if bases:
        first.append(
            "Diffusion models, trained on base classes: "
            + ", ".join(f"{data} {bases[data]}" for data in sorted(bases))
            + "."
        )
    if any(data == "simulation" for data, _, _ in cells):
        first.append(f"Theorem 1: {repeats_of(settings)} repeats, seed 0.")
    made_of = [cell["environment"] for cell in cells.values()]
    return "\n".join(
        [" ".join(first), "", made_by(made_of, [cell["cpu_seconds"] for cell in cells.values()], "took")]
    )


def _ranges(numbers: Sequence[int]) -> list[str]:
    """Return runs of numbers.

    >>> _ranges([0, 1, 2, 5])
    ['0-2', '5']
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in found]


# --------------------------------------------------------------------------------------------- command


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks tint_ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    keys = [*GROUPS, *(table.key for table in TABLES if table.key not in GROUPS)]
    add("--data", nargs="+", default=None, choices=IMAGES, help="by default all but digits")
    add("--only", nargs="+", default=None, choices=keys, help="these groups of tables, or tables, only")
    add(
        "--rows",
        nargs="+",
        default=None,
        help="compute rows with these names only; others keep what they have",
    )
    add(
        "--part",
        choices=tuple(PART_NAMES),
        default="val",
        help="classes of the tasks; val to choose settings",
    )
    add(
        "--base",
        nargs="+",
        default=[],
        metavar="DATA=RUN",
        help="finished runs of diffusion; RUN for one data set",
    )
    add("--base-minutes", type=float, default=None, help="limit on the training of a missing one")
    add("--seeds", type=int, default=3, help="tasks of inversion, images and cost")
    add("--episodes", type=int, default=10, help="tasks of students")
    add("--per-class", type=int, default=None, help=f"synthetic images, {BASE['per_class']} by default")
    add("--student-steps", type=int, default=None, help=f"{BASE['training']['steps']} by default")
    add(
        "--student-channels", type=int, default=None, help=f"{BASE['prepare']['student_channels']} by default"
    )
    add(
        "--teacher-episodes", type=int, default=None, help=f"{BASE['prepare']['teacher_episodes']} by default"
    )
    add("--jobs", type=int, default=2, help="tasks at a time, one thread each; costs are measured alone")
    add("--out", default="runs/tint_ablation", help="folder of the cells and of what they share")
    add("--docs", default=None, help=f'page that gets the tables, {PAGE} by default; "" for none')
    add("--data-dir", default=None, help="folder of the data sets; by default FEWGEN_DATA_DIR")
    add("--quick", action="store_true", help="digits, few steps, few rows: tries the benchmark")
    add("--table-only", action="store_true", help="print the tables of the finished cells")
    options = parser.parse_args(arguments)
    counts = (
        "seeds",
        "episodes",
        "per_class",
        "student_steps",
        "student_channels",
        "teacher_episodes",
        "jobs",
    )
    for name in counts:
        value = getattr(options, name)
        if value is not None and value < (2 if name == "per_class" else 1):
            parser.error(f"--{name.replace('_', '-')} is too small: {value}")
    if options.quick:
        options.data = options.data or ["digits"]
        options.seeds, options.episodes = 1, 2
        options.docs = options.docs or ""
    options.docs = PAGE if options.docs is None else options.docs
    options.data = options.data or [name for name in IMAGES if name != "digits"]
    options.base = _bases(parser, options.base, options.data)
    return options


def _bases(parser: argparse.ArgumentParser, given: Sequence[str], data: Sequence[str]) -> dict[str, str]:
    """Return data set -> run."""
    found = {}
    for text in given:
        name, sign, path = text.partition("=")
        if sign and name in IMAGES:
            found[name] = path
        elif len(data) == 1 and len(given) == 1:
            found[data[0]] = text
        else:
            parser.error(f"--base takes DATA=RUN, and several data sets need it so: got {text}")
    return found


def chosen_tables(options: argparse.Namespace) -> list[Table]:
    """Return the tables that are asked for, each with the data sets that were asked for."""
    found = []
    for table in TABLES:
        data = tuple(name for name in options.data if name in table.data)
        data = ("simulation",) if table.group == "theorem1" else data
        if data and (options.only is None or {table.key, table.group} & set(options.only)):
            rows = table.rows[:1] + table.rows[-2:] if options.quick and len(table.rows) > 3 else table.rows
            found.append(replace(table, data=data, rows=rows))
    return found


def without_tasks(tables: Sequence[Table], settings: Settings) -> tuple[list[Table], list[str]]:
    """Return the tables without students where a single class leaves nothing to tell apart, and notes."""
    notes, found = [], []
    for table in tables:
        data = []
        for name in table.data:
            if table.group == "students" and n_way_of(images_of(name, settings).part) < 2:
                notes.append(
                    f"{name} has one {PART_NAMES[settings.part][:-2]}: no students; see --part novel."
                )
            else:
                data.append(name)
        if data:
            found.append(replace(table, data=tuple(data)))
    return found, list(dict.fromkeys(notes))


def wanted_cells(tables: Sequence[Table], seeds: int, episodes: int, settings: Settings) -> dict[Key, Cell]:
    """Return what is to be there, task by task and table by table: every row once before any row twice."""
    found: dict[Key, Cell] = {}
    for seed in range(max(seeds, episodes)):
        for table in tables:
            most = {"students": episodes, "theorem1": 1}.get(table.group, seeds)
            if table.key == "memory":
                most = 1
            if seed >= most:
                continue
            for data in table.data:
                group = group_of(table)
                for row in table.rows:
                    key = data, cell_name(data, group, row, settings), seed
                    found.setdefault(key, Cell(data, group, row, seed))
                if table.group == "students":
                    # Differences are taken to it.
                    key = data, cell_name(data, group, DEFAULT, settings), seed
                    found.setdefault(key, Cell(data, group, DEFAULT, seed))
    return found


def _changes(options: argparse.Namespace) -> str:
    """Return what the command changes of `BASE`, as JSON."""
    found: dict[str, Any] = {}
    if options.per_class is not None:
        found["per_class"] = options.per_class
    if options.student_steps is not None:
        found["training"] = {"steps": options.student_steps}
    prepare = {
        key: value
        for key, value in (
            ("student_channels", options.student_channels),
            ("teacher_episodes", options.teacher_episodes),
        )
        if value is not None
    }
    if prepare:
        found["prepare"] = prepare
    return json.dumps(found, sort_keys=True)


def _needs_base(cell: Cell) -> bool:
    return cell.group != "theorem1" and (cell.group != "students" or cell.row.what in SPECIALISED)


def get_ready(cells: Sequence[Cell], settings: Settings, minutes: float | None) -> None:
    """Train once what several cells need: diffusion models, judges, teachers and students."""
    for data in dict.fromkeys(cell.data for cell in cells if cell.data != "simulation"):
        own = [cell for cell in cells if cell.data == data]
        print(f"{data}: models ...", flush=True)
        if any(_needs_base(cell) for cell in own):
            train_base(data, settings, minutes)
            check_base(data, settings)
        if any(cell.group == "images" for cell in own):
            judge_of(data, settings)
        if any(cell.group == "students" for cell in own):
            prepare(data, settings)


def check_cells(wanted: Mapping[Key, Cell], paths: Mapping[Key, Path], settings: Settings) -> None:
    """Refuse finished cells that answer another question.

    Raises:
        ConfigError: names the first one and what differs.
    """
    for key, path in paths.items():
        if path.exists():
            cell = wanted[key]
            now = asked(cell.data, cell.group, cell.row, settings)
            check_same(read_json(path)["asked"], json.loads(json.dumps(now)), cell.row.name, cell.seed)


def main(arguments: list[str] | None = None) -> int:
    """Compute the missing cells, print the tables and write them into the page."""
    from joblib import Parallel, delayed

    options = _arguments(arguments)
    settings = Settings(
        out=options.out,
        part=options.part,
        base=tuple(sorted(options.base.items())),
        changes=_changes(options),
        quick=options.quick,
        data_dir=options.data_dir,
    )
    failed: list[str | None] = []
    try:
        tables, notes = without_tasks(chosen_tables(options), settings)
        for note in notes:
            print(f"note: {note}", flush=True)
        if not tables:
            print("error: none of these tables is about these data sets.", file=sys.stderr)
            return 2
        wanted = wanted_cells(tables, options.seeds, options.episodes, settings)
        paths = {key: Path(options.out) / "cells" / key[1] / f"task{key[2]}.json" for key in wanted}
        check_cells(wanted, paths, settings)
        todo = [key for key, path in paths.items() if not path.exists() and not options.table_only]
        if options.rows:
            todo = [key for key in todo if wanted[key].row.name in options.rows]
        get_ready([wanted[key] for key in todo], settings, options.base_minutes)
        check_cells(wanted, paths, settings)  # again, now that every model is there
    except FewgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if todo:
        print(f"{len(todo)} of {len(paths)} cells to compute, {options.jobs} tasks at a time", flush=True)
        command = os.getpid(), command_line()
        together: dict[tuple[int, str, bool], list[tuple[Cell, Path]]] = {}
        for key in todo:
            cell = wanted[key]
            together.setdefault((cell.seed, cell.data, cell.group in TIMED), []).append((cell, paths[key]))
        shared = [cells for (_, _, timed), cells in together.items() if not timed]
        alone = [cells for (_, _, timed), cells in together.items() if timed]
        for jobs, parts in ((options.jobs, shared), (1, alone)):
            results = Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=jobs)(
                delayed(run_cells)(cells, settings, command) for cells in parts
            )
            failed += [problem for problems in results for problem in problems]
    cells = {key: read_json(path) for key, path in paths.items() if path.exists()}
    if not cells:
        print("There are no finished cells.", file=sys.stderr)
        return 2
    shown = [render(table, data, cells, settings) for table in tables for data in table.data]
    section = "\n\n".join([*shown, provenance(cells, settings)])
    print("\n" + section)
    if options.docs:
        try:
            write_between(Path(options.docs), section, MARKERS, "TINT: results")
        except FewgenError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 2 if any(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
