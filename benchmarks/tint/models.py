"""What is trained once for many cells: diffusion models, teachers and students."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.tint.settings import DATA, DEFAULT, WAYS, WEAK, Settings, of_row
from benchmarks.tint.tasks import images_of
from fewgen.config.schema import from_dict
from fewgen.data.names import name_key
from fewgen.distillation.knowledge import DistillConfig
from fewgen.distillation.settings import PrepareConfig
from fewgen.errors import CheckpointError, ConfigError

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


def base_folder(data: str, settings: Settings) -> Path:
    """Return where the diffusion model of a data set lies, or will."""
    return Path(dict(settings.base).get(data) or Path(settings.out) / "base" / data)


@functools.cache
def opened(folder: str) -> Any:
    """Return the diffusion model in a folder, opened once in a process."""
    from fewgen.runs.pipeline import load_pipeline

    return load_pipeline(folder)


def pipe_of(data: str, settings: Settings) -> Any:
    """Return the diffusion model of a data set."""
    return opened(str(base_folder(data, settings)))


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
    from fewgen.distillation.work import check_pipeline
    from fewgen.runs.run import Run

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
    import fewgen

    folder = base_folder(data, settings)
    if data in dict(settings.base) or base_id(data, settings) is not None:
        return
    run = fewgen.train(
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
    from fewgen.distillation.preparing import has_few_classes, pretrained_student, trained_teacher
    from fewgen.distillation.storing import open_parts

    general = of_row(data, DEFAULT, settings)
    config = from_dict(PrepareConfig, general["prepare"])
    base = images_of(data, settings).base
    config = config.filled(has_few_classes(base))
    vary = {key: general["training"][key] for key in ("padding", "jitter", "flip")}
    about = {"data": data, "classes": list(base.class_names), "shots": settings.shots}
    folder = open_parts(
        prepared_folder(data, settings),
        {**about, "prepare": asdict(config), "weak": WEAK, "vary": vary},
    )
    varied = from_dict(DistillConfig, general["training"])
    for name, own in (("strong", config), ("weak", replace(config, **WEAK))):
        trained_teacher(folder / f"{name}.safetensors", base, own, varied, n_way=WAYS, n_shot=settings.shots)
    pretrained_student(folder / "student.safetensors", base, config, varied)
