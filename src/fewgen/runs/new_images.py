"""The images of classes that a run shall learn: from anywhere, checked, and shared out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.keywords import whole
from fewgen.data.counts import Shots
from fewgen.data.names import name_key, name_labels, unprintable
from fewgen.data.one_image import is_image_file, single_image
from fewgen.data.split import class_list
from fewgen.errors import ConfigError, DataError, OutputError
from fewgen.folders import RUN, contents
from fewgen.runs.folder import check_apart
from fewgen.runs.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from fewgen.data import ImageSet
    from fewgen.data.registry import Reading

MAX_HELD_OUT = 200
"""Images of a new class that are kept to measure on, of those that are not learned from."""


def check_out(out: Path, run: Run, sources: Sequence[Any]) -> None:
    """Refuse a folder that is not new or empty, or that lies among the images; creates nothing."""
    for source in sources:
        check_apart(out, Path(source).parent if is_image_file(source) else source)
    RUN.check(out)
    if out.is_dir() and contents(out):
        which = "the run that is adapted" if out.resolve() == run.path.resolve() else "a run already"
        raise OutputError(
            f'The folder "{out}" holds {which}. Nothing was changed. Choose a new or empty folder for --out.'
        )


def refuse_known(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a new class whose name the run has already, in any case."""
    there = name_labels(known)
    for name in names:
        if not isinstance(name, str) or unprintable(name):
            raise ConfigError(f"A class name must be text without control characters, got {name!r}.")
        if not name.strip():
            raise ConfigError("A class name is empty. Give the new class a name with --class-name.")
        if name_key(name) in there:
            raise ConfigError(
                f'The run has a class "{known[there[name_key(name)]]}" already, so "{name}" cannot be added. '
                "Give the new class another name with --class-name, or choose other classes of the data."
            )


def new_images(
    sources: Sequence[str | Path | ImageSet],
    names: Sequence[str],
    shape: tuple[int, int, int],
    reading: Reading,
) -> ImageSet:
    """Return the images of the new classes, as the model needs them.

    Args:
        sources: folders of one class, image files, or anything with classes of its own.
        names: one per source, in the same order; with a single source that has classes, which of them; or
            none, where every source has classes.
        shape: (C, H, W) of the model's images.
        reading: how sources are read; size and channels are the model's.

    Raises:
        ConfigError: sources and names do not pair.
        DataError: there are no images, or they cannot be used.
    """
    import torch

    from fewgen.data import ImageSet
    from fewgen.data.imageset import joined

    loaded = [_load(source, shape, reading) for source in sources]
    if len(sources) == 1 and isinstance(loaded[0], ImageSet):
        chosen = [_choose(loaded[0], names)]
    elif len(names) != len(sources):
        nameless = next((s for s, x in zip(sources, loaded, strict=True) if not isinstance(x, ImageSet)), "")
        if names or nameless:
            what = f' ("{nameless}" holds images without a class)' if nameless else ""
            raise ConfigError(
                f"There are {len(sources)} --images and {len(names)} --class-name{what}. Give one "
                "--class-name for each --images, in the same order."
            )
        chosen = [x for x in loaded if isinstance(x, ImageSet)]
    else:
        chosen = [
            _choose(x, [name])
            if isinstance(x, ImageSet)
            else ImageSet(x, torch.zeros(len(x), dtype=torch.int64), (name,))
            for x, name in zip(loaded, names, strict=True)
        ]
    found = joined(chosen, ", ".join(x.name if isinstance(x, ImageSet) else str(x) for x in sources))
    for name, count in zip(found.class_names, found.counts().tolist(), strict=True):
        if count == 0:
            raise DataError(f'There is no image of the class "{name}". Add some, or choose other classes.')
    return found


def _choose(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """Return the named classes of a set; the one class of a set may be given another name."""
    if not names:
        return images
    if images.n_classes == 1 and len(names) == 1:
        return dataclasses.replace(images, class_names=(names[0],))
    return images.select_classes(class_list(names, images.class_names))


def _load(source: str | Path | ImageSet, shape: tuple[int, int, int], reading: Reading) -> ImageSet | Tensor:
    """Return a set with classes, or uint8 images (N, C, H, W) that have none."""
    from fewgen.data import ImageSet
    from fewgen.data.folder import is_flat_folder, load_flat_folder
    from fewgen.data.registry import in_form, is_named

    channels, height, width = shape
    reading = dataclasses.replace(reading, channels=channels)
    if isinstance(source, ImageSet) and source.size == (height, width):
        return in_form(source, reading.form())
    if height != width:
        raise DataError(
            f"The model draws oblong images of {height}x{width}; give new ones of that size as an ImageSet."
        )
    reading = dataclasses.replace(reading, size=height)
    if isinstance(source, ImageSet):
        return in_form(source, reading.form())
    if is_image_file(source):
        return single_image(source, reading.form()).images
    path = Path(source).expanduser()
    if not is_named(source) and path.is_dir():
        if not any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise DataError(f'The folder "{source}" is empty: put images of the new class into it.')
        if is_flat_folder(path) and any(is_image_file(entry) for entry in path.iterdir()):
            return load_flat_folder(path, reading.form())[0]
    return reading.load(source)


def share_out(images: ImageSet, shots: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return the images to learn from, and the others (at most `MAX_HELD_OUT` of a class).

    Args:
        images: of the new classes.
        shots: images per class to learn from; None for all.
        seed: of the draw.
    """
    import torch

    if shots is None:
        return images, images.subset([])
    k = whole("shots", shots, 1)
    used, _ = images.shot_indices(Shots(k), seed)
    free = torch.ones(len(images), dtype=torch.bool)
    free[used] = False
    kept = [
        (free & (images.labels == label)).nonzero().flatten()[:MAX_HELD_OUT]
        for label in range(images.n_classes)
    ]
    return images.subset(used), images.subset(torch.cat(kept))


def notes_on(run: Run, images: ImageSet) -> list[str]:
    """Return what lets little be expected of an adaptation: an unfinished run, or copies of one image."""
    notes = []
    extra = run.info.extra
    if extra.get("training", {}).get("finished") is False and not extra.get("adapted"):
        notes.append(
            f'the training of "{run.path.name}" is not finished. Continue it first, by repeating its fewgen '
            "train command, and then adapt: what it cannot draw yet, no new class will show."
        )
    for label, name in enumerate(images.class_names):
        of_class = images.images[images.labels == label]
        if len(of_class) > 1 and bool((of_class == of_class[0]).all()):
            notes.append(
                f'all {len(of_class)} images of "{name}" are the same, pixel by pixel: more copies teach no '
                "more than one."
            )
    return notes
