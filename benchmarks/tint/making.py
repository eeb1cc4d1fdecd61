"""Images of a task's classes, made once and shared by the rows that need the same ones."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.tint.models import base_id, pipe_of
from benchmarks.tint.settings import DEFAULT, of_row
from benchmarks.tint.tasks import Task
from fewgen.config.schema import from_dict
from fewgen.data.imageset import ImageSet
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.files import make_dir


def _kept(task: Task, what: str, about: Mapping[str, Any]) -> Path:
    """Return the folder of what several rows share of a task; its name depends on all that it depends on."""
    settings = task.settings
    whole = {
        **about,
        "base": base_id(task.data, settings),
        "classes": list(task.episode.class_names),
        "shots": task.shots,
    }
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(settings.out) / "made" / task.data / settings.part / f"{what}-{digest}"
    return folder / f"task{task.seed:04d}"


def synthesis(task: Task, tint: Mapping[str, Any], folder: Path, per_class: int, alpha: float) -> Any:
    """Return what makes the images of a task, as the comparison of `fewgen distill` does."""
    from fewgen.distillation.synthesis import Synthesis

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


def _searched(task: Task, kind: str, tint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the search for what images of a kind need, without null texts for nothing.

    Where only the word is read, and the words are not those of the default, no row has a use for null texts.
    """
    usual = of_row(task.data, DEFAULT, task.settings)["tint"]
    if kind == "tint" or tint["textual"] == usual["textual"]:
        return tint
    return {**tint, "null_text": {**tint["null_text"], "inner_steps": 0}}


def made(task: Task, kind: str, own: Mapping[str, Any]) -> tuple[ImageSet, float, Path]:
    """Return images of a kind, the seconds that drawing them took, and the folder that keeps them.

    Args:
        task: whose classes.
        kind: of `fewgen.distillation.synthesis.KINDS`.
        own: settings of a row, of `of_row`.
    """
    # Alpha and norm are those of blends; without these, rows share their images.
    tint = {key: value for key, value in own["tint"].items() if key != "norm_mode" or kind == "tint"}
    alpha = float(own["alpha"]) if kind == "tint" else 1.0
    folder = _kept(task, kind, {"tint": tint, "alpha": alpha, "per_class": own["per_class"]})
    source = synthesis(task, own["tint"], folder, own["per_class"], alpha)
    if not (folder / f"{kind}.images.json").is_file():
        _, where = learned(task, _searched(task, kind, own["tint"]))
        make_dir(folder)
        for file in sorted(where.glob("specialis*"), key=lambda path: path.suffix == ".json"):
            shutil.copyfile(file, folder / file.name)  # the record last: it says that all are there
    images = source.images(kind)
    source.forget_specialisations()
    return images, float(source.generation[kind]["seconds"]), folder


def of_word(task: Task, own: Mapping[str, Any], word: str) -> tuple[ImageSet, float]:
    """Return images of a word that the model knew before, the same word for every class."""
    from fewgen.data.imageset import to_uint8
    from fewgen.diffusion.specialisation import generate
    from fewgen.generation.request import image_seeds

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
