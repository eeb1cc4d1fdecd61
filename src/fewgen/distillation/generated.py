"""Generated images of a task's classes: from files, from a run, or from a method that learns the supports."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewgen.api.training import train
from fewgen.data.imageset import ImageSet
from fewgen.data.names import name_key, name_labels
from fewgen.data.registry import Reading
from fewgen.distillation.pool import read_like, refuse_queries
from fewgen.distillation.storing import kept_images
from fewgen.errors import ConfigError
from fewgen.fitting.seeds import make_rng
from fewgen.generation.request import GenerationRequest, image_seeds
from fewgen.runs.run import Run

GENERATED = "generated"
"""Competitor, file and source of such images."""


def holds_images(given: Any) -> bool:
    """Tell whether a generator is images: an `ImageSet`, an .npz, or a folder of folders without a model."""
    if isinstance(given, ImageSet):
        return True
    if not isinstance(given, (str, Path)):
        return False
    path = Path(given).expanduser()
    if not path.is_dir():
        return path.is_file() and path.suffix.lower() == ".npz"
    model = (".fewgen-run", "config.yaml", "model.safetensors", "model_index.json")
    ours = any((path / name).exists() for name in model)
    return not ours and any(entry.is_dir() for entry in path.iterdir())


def own_labels(known: tuple[str, ...], names: tuple[str, ...], who: str, otherwise: str) -> list[int]:
    """Return the label that a generator has for each class.

    Args:
        known: class names of the generator.
        names: of the classes that are wanted.
        who: the generator, at the beginning of the message.
        otherwise: what else can be done, after "or".

    Raises:
        ConfigError: a class that the generator does not have.
    """
    labels = name_labels(known)
    unknown = [name for name in names if name_key(name) not in labels]
    if unknown:
        raise ConfigError(
            f"{who} has no class {', '.join(map(repr, unknown[:5]))}; it has "
            f"{', '.join(map(repr, known[:10]))}. Rename the folders, or {otherwise}."
        )
    return [labels[name_key(name)] for name in names]


def images_of(
    given: Any,
    like: ImageSet,
    queries: ImageSet | None,
    reading: Reading,
    per_class: int,
    seed: int,
    *,
    advice: str,
) -> ImageSet:
    """Return images that a generator made earlier, of the classes of others and in their form.

    Args:
        given: as `holds_images`.
        like: images of the wanted classes and shape.
        queries: that measure, None for none.
        reading: how files are read.
        per_class: images of each class at most, drawn by the seed.
        seed: of the draw.
        advice: what else can be done about images that also measure, after "or".

    Raises:
        DataError: images that cannot be read or measure the accuracy.
        ConfigError: a class without images.
    """
    found = read_like(given, like, reading, "--generator", labelled=True)
    counts = found.counts().tolist()
    there = found.select_classes([name for name, n in zip(found.class_names, counts, strict=True) if n])
    who = f'The folder "{given}"' if isinstance(given, (str, Path)) else "The set of images"
    labels = own_labels(there.class_names, like.class_names, who, "name other images with --generator")
    own = there.select_classes([there.class_names[label] for label in labels])
    order = torch.randperm(len(own), generator=make_rng("cpu", seed, "distill", GENERATED))
    each = [order[own.labels[order] == c][:per_class] for c in range(own.n_classes)]
    own = own.subset(torch.cat(each))
    refuse_queries(own, queries, "--generator", advice)
    return ImageSet(own.images, own.labels, like.class_names, None, GENERATED, own.origins)


def by_run(run: Run, class_names: tuple[str, ...], per_class: int, seed: int, alpha: float = 1.0) -> ImageSet:
    """Return images that a run draws of its own classes, `per_class` of each of these names."""
    own = own_labels(run.class_names, class_names, f'The run "{run.path.name}"', "use another run")
    labels = torch.tensor(own).repeat_interleave(per_class)
    options = {"alpha": alpha} if run.info.method == "tint" else {}
    made = run.method.generate(
        GenerationRequest(labels=labels, seeds=image_seeds(seed, len(labels)), options=options)
    )
    named = torch.arange(len(own)).repeat_interleave(per_class)
    return ImageSet(made.images, named, class_names, name=GENERATED)


@dataclass(frozen=True)
class MethodOfEpisode:
    """A method that is trained on the supports of each episode, and draws from there.

    Attributes:
        method: its name.
        preset: of its settings.
        minutes: limit on each training.
    """

    method: str
    preset: str = "default"
    minutes: float | None = None

    def __call__(self, supports: ImageSet, folder: Path, per_class: int, seed: int) -> ImageSet:
        """Return `per_class` images of each class; the run stays in the folder, and is resumed there."""

        def make() -> tuple[ImageSet, dict[str, Any]]:
            started = time.perf_counter()
            run = train(
                self.method,
                data=supports,
                out=folder / "generator",
                shots=int(supports.counts().min()),  # a few of them tell when to stop
                preset=self.preset,
                minutes=self.minutes,
                seed=seed,
                report=False,
                progress=False,
            )
            if run.result is not None and run.result.interrupted:
                raise KeyboardInterrupt
            images = by_run(run, supports.class_names, per_class, seed)
            return images, {"seconds": time.perf_counter() - started}

        return kept_images(folder / f"{GENERATED}.npz", make)[0]
