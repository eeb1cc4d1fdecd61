"""`adapt`: teach a trained run new classes from a few images, in seconds, and keep the old ones.

The run that is adapted from is only read. Everything is made and measured in memory and then put in place as
one folder, so that a mistake or an interruption leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.call import accepts_config
from fewgen.config.keywords import tidy_out, whole
from fewgen.data.one_image import IMAGE_SUFFIXES
from fewgen.data.split import class_list
from fewgen.errors import ConfigError, DataError, OutputError
from fewgen.runs.adapting import MAX_NEW, Given, adapted, extended, recipe_of, refuse_blank, replayed
from fewgen.runs.folder import check_apart, check_run_dir
from fewgen.runs.run import CONFIG_NAME, MODEL_NAME, Run, load_run
from fewgen.runs.source import SPLIT_NAME

if TYPE_CHECKING:
    from torch import Tensor

    from fewgen.data import ImageSet
    from fewgen.methods.base import Method
    from fewgen.runs.adaptation import Adaptation

    Progress = Callable[[str, float], None]

ADDED_NAME = "new_images.npz"
GRID_NAME = "grid.png"
REPORT_NAME = "report.html"
CARD_NAME = "README.md"


MAX_HELD_OUT = 200
"""Images of a new class that are kept to measure on, of those that are not learned from."""

GRID_CLASSES, GRID_COLUMNS = 10, 8


@accepts_config
@tidy_out
def adapt(
    run: str | Path | Run,
    *,
    images: str | Path | ImageSet | Sequence[str | Path | ImageSet],
    class_names: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    shots: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    part: str | None = None,
    phrases: Mapping[str, Any] | str | Path | None = None,
    text_path: str | None = None,
    replay: int | str = "auto",
    seed: int = 0,
    curve: bool = False,
    judge: bool = False,
    split: str = "train",
    fit: str = "crop",
    alpha: str = "error",
    convert: bool = False,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    report: bool = True,
    progress: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Run:
    """Teach a trained run new classes from a few images each, in seconds.

    The run itself stays as it is; the new folder holds a copy that draws old and new classes. Images that
    the run draws of its old classes are mixed in, so that these are kept without their training images.

    Args:
        run: a run folder, or a model file.
        images: a folder with images of one new class, or a single image file, each with its --class-name;
            or a folder with one subfolder per new class; or a data set or .npz, of which --class-name
            chooses classes. Repeatable, in pairs with --class-name.
        class_names: names of the new classes, one for each --images, in the same order.
        out: the folder of the adapted run: new or empty.
        shots: images per new class to learn from, drawn by the seed; all of them if left out. The report
            measures on the others.
        steps: updates; 50, or what the run was meta-trained for, if left out.
        lr: learning rate of the updates; 0.001, or what the run was meta-trained for, if left out.
        part: which parameters move: all, decoder or heads; all, or what the run was meta-trained for, if
            left out.
        phrases: other words for a new class, such as {"croc": ["sandal", "clog"]}, or a YAML file.
        text_path: where the text encoder's file or folder is now, if it was moved.
        replay: images of old classes in each update, drawn by the run itself; auto takes as many as there
            are new images, 10 to 32. 0 turns it off: the old classes are then forgotten sooner.
        seed: of every draw.
        curve: also adapt with 1, 3, 5, 10 and 30 of the images, for a figure and a table in the report.
        judge: judge the draws by a classifier that is trained on the run's training images and the given
            ones of the new classes, and not by the models' own readers; takes longer, and needs these images.
        split: train or test, the part of a data set.
        fit: how other shapes become square: crop, pad or stretch.
        alpha: transparent images: error, or put them on white or black.
        convert: accept 16-bit and CMYK images and convert them.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: auto (CUDA where there is one), cpu or cuda.
        report: measure what was won and lost, and write report.html.
        progress: say what is being done.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        The adapted run. Without `out` it lives in memory only.
    """
    from fewgen.progress import ShownProgress

    recipe_given = _checked(steps, lr, replay, seed)
    sources = _sources(images)
    names = [class_names] if isinstance(class_names, str) else list(class_names or [])
    original = load_run(run, device)
    if out is not None:
        _check_out(Path(out), original, sources)
    original.method.require("adapt")
    refuse_known(names, original.class_names)
    spec = original.method.spec
    reading = {
        "split": split,
        "fit": fit,
        "alpha": alpha,
        "convert": convert,
        "data_dir": data_dir,
        "download": download,
    }
    found = new_images(sources, names, spec.shape, **reading)
    refuse_known(found.class_names, original.class_names)
    used, rest = _drawn(found, shots, seed)
    recipe = recipe_of(original, recipe_given, part)
    original.method.adaptable(recipe.part)  # an unknown part is better known before words are encoded
    start_model, notes = extended(original, found.class_names, phrases, text_path, data_dir)
    notes += notes_on(original, used)
    shown = ShownProgress(progress)
    try:
        began = time.perf_counter()
        old = replayed(original.method, recipe.seed)
        method = adapted(start_model, used, old, recipe, shown)
        seconds = time.perf_counter() - began
        refuse_blank(start_model, method, used, recipe.optimizer.lr)
        measured: Adaptation | None = None
        if report:
            from fewgen.runs.adaptation import measure

            def again(part_of_images: ImageSet) -> Method:
                return adapted(start_model, part_of_images, old, recipe, None)

            measured = measure(
                original,
                start_model,
                method,
                used,
                rest,
                seconds=seconds,
                again=again if curve else None,
                judge=_judge(original, used, rest, data_dir, download) if judge else None,
                progress=shown,
            )
    finally:
        shown.close()
    record = {
        "from": original.path.name,
        "classes": list(found.class_names),
        "n_images": used.counts().tolist(),
        "steps": recipe.steps,
        "lr": recipe.optimizer.lr,
        "part": recipe.part,
        "replay": recipe.n_replay(min(len(used), MAX_NEW)),
        "seed": recipe.seed,
        "seconds": round(seconds, 3),
        "earlier": _earlier(original.info.extra),
    }
    if measured is not None:
        record["figures"] = measured.figures()
        notes += measured.warnings()
    return _finished(original, method, used, rest, record, measured, out, notes)


# ------------------------------------------------------------------------------------------ what was asked


def _checked(steps: int | None, lr: float | None, replay: int | str, seed: int) -> Given:
    if steps is not None:
        steps = whole("steps", steps, 1)
    fits = isinstance(lr, (int, float)) and not isinstance(lr, bool) and math.isfinite(lr) and lr > 0
    if lr is not None and not fits:
        raise ConfigError(f"lr must be a number above 0, got {lr!r}.")
    if isinstance(replay, str):
        if replay != "auto":
            raise ConfigError(f'replay must be "auto" or a whole number of 0 or more, got "{replay}".')
        return Given(steps, lr, None, whole("seed", seed))
    return Given(steps, lr, whole("replay", replay, 0), whole("seed", seed))


def refuse_known(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a new class whose name the run has already, in any case."""
    from fewgen.data.imageset import name_key

    there = {name_key(name): name for name in known}
    for name in names:
        if not name.strip():
            raise ConfigError("A class name is empty. Give the new class a name with --class-name.")
        if name_key(name) in there:
            raise ConfigError(
                f'The run has a class "{there[name_key(name)]}" already, so "{name}" cannot be added. Give '
                "the new class another name with --class-name, or choose other classes of the data."
            )


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


def _check_out(out: Path, run: Run, sources: Sequence[Any]) -> None:
    """Refuse a folder that is not new or empty, or that lies among the images; creates nothing."""
    for source in sources:
        check_apart(out, Path(source).parent if _is_image(source) else source)
    check_run_dir(out)
    if out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        which = "the run that is adapted" if out.resolve() == run.path.resolve() else "a run already"
        raise OutputError(
            f'The folder "{out}" holds {which}. Nothing was changed. Choose a new or empty folder for --out.'
        )


# ------------------------------------------------------------------------------------------ the images


def _sources(images: Any) -> list[Any]:
    from fewgen.data import ImageSet

    sources = [images] if isinstance(images, (str, Path, ImageSet)) else list(images)
    if not sources:
        raise ConfigError("No images are given. Name a folder of images with --images.")
    return sources


def _is_image(source: Any) -> bool:
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() in IMAGE_SUFFIXES


def new_images(
    sources: Sequence[str | Path | ImageSet],
    names: Sequence[str],
    shape: tuple[int, int, int],
    **reading: Any,
) -> ImageSet:
    """Return the images of the new classes, as the model needs them.

    Args:
        sources: folders of one class, image files, or anything with classes of its own.
        names: one per source, in the same order; with a single source that has classes, which of them; or
            none, where every source has classes.
        shape: (C, H, W) of the model's images.
        reading: split, fit, alpha, convert, data_dir and download.

    Raises:
        ConfigError: sources and names do not pair.
        DataError: there are no images, or they cannot be used.
    """
    import torch

    from fewgen.data import ImageSet

    loaded = [_load(source, shape, **reading) for source in sources]
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
    # Several sources of one name are one class.
    every = tuple(dict.fromkeys(name for part in chosen for name in part.class_names))
    labels = [torch.tensor([every.index(n) for n in part.class_names])[part.labels] for part in chosen]
    joined = ImageSet(
        torch.cat([part.images for part in chosen]),
        torch.cat(labels),
        every,
        name=", ".join(x.name if isinstance(x, ImageSet) else str(x) for x in sources),
    )
    for name, count in zip(joined.class_names, joined.counts().tolist(), strict=True):
        if count == 0:
            raise DataError(f'There is no image of the class "{name}". Add some, or choose other classes.')
    return joined


def _choose(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """Return the named classes of a set; the one class of a set may be given another name."""
    if not names:
        return images
    if images.n_classes == 1 and len(names) == 1:
        return dataclasses.replace(images, class_names=(names[0],))
    return images.select_classes(class_list(names, images.class_names))


def _load(
    source: str | Path | ImageSet,
    shape: tuple[int, int, int],
    *,
    split: str,
    fit: str,
    alpha: str,
    convert: bool,
    data_dir: str | Path | None,
    download: bool,
) -> ImageSet | Tensor:
    """Return a set with classes, or uint8 images (N, C, H, W) that have none."""
    import torch

    from fewgen.data import ImageSet, load_images
    from fewgen.data.folder import _decode, _Problem, is_flat_folder, load_flat_folder
    from fewgen.data.registry import _with_pixels, is_named

    channels, height, width = shape
    if isinstance(source, ImageSet):
        if source.size == (height, width):
            return _with_pixels(source, None, channels, fit)
        if height == width:
            return _with_pixels(source, height, channels, fit)
    if height != width:
        raise DataError(
            f"The model draws oblong images of {height}x{width}; give new ones of that size as an ImageSet."
        )
    assert not isinstance(source, ImageSet)
    path = Path(source).expanduser()
    if _is_image(source):
        if not path.is_file():
            raise DataError(f'There is no image file "{source}".')
        try:
            return torch.tensor(_decode(path, height, fit, channels, alpha, convert).array).unsqueeze(0)
        except _Problem as problem:
            raise DataError(f'"{source}" {problem}.') from None
    kind: dict[str, Any] = {
        "size": height,
        "channels": channels,
        "fit": fit,
        "alpha": alpha,
        "convert": convert,
    }
    if not is_named(source) and path.is_dir():
        if not any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise DataError(f'The folder "{source}" is empty: put images of the new class into it.')
        if is_flat_folder(path) and any(_is_image(entry) for entry in path.iterdir()):
            return load_flat_folder(path, **kind)
    return load_images(source, split=split, data_dir=data_dir, download=download, **kind)


def _drawn(images: ImageSet, shots: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return the images to learn from, and the others (at most `MAX_HELD_OUT` of a class)."""
    import torch

    if shots is None:
        return images, images.subset([])
    k = whole("shots", shots, 1)
    keyed = dataclasses.replace(images, captions=tuple(str(i) for i in range(len(images))))
    used = [int(caption) for caption in keyed.shots(k, seed).captions or ()]
    free = torch.ones(len(images), dtype=torch.bool)
    free[used] = False
    kept = [
        (free & (images.labels == label)).nonzero().flatten()[:MAX_HELD_OUT]
        for label in range(images.n_classes)
    ]
    return images.subset(used), images.subset(torch.cat(kept))


# ------------------------------------------------------------------------------------------ the model


def _judge(
    run: Run, used: ImageSet, rest: ImageSet, data_dir: Any, download: bool
) -> Callable[[Tensor], Tensor]:
    """Return a function from images to classes, of a classifier that the model has nothing to do with.

    It learns the old classes from the run's training images, and the new ones from all given images.
    """
    from fewgen.data import ImageSet
    from fewgen.encoders.classifier import ClassifierFeatures

    train, _ = run.images(data_dir, download)
    classifier = ClassifierFeatures.of(judged_by(train, used, rest))

    def read(images: Tensor) -> Tensor:
        import torch

        labels = torch.zeros(len(images), dtype=torch.int64)
        shown = ImageSet(images, labels, classifier.class_names)
        return classifier.classes_of(classifier.features(shown))

    return read


def judged_by(train: ImageSet, used: ImageSet, rest: ImageSet) -> ImageSet:
    """Return what the judge learns from: images of the old classes, then all given ones of the new.

    A few images among thousands would never be the answer, so those of a new class are repeated until they
    are as many as an old class has on average.
    """
    import torch

    from fewgen.data import ImageSet

    wanted = len(train) // train.n_classes
    images, labels = [train.images], [train.labels]
    for label in range(used.n_classes):
        given = torch.cat([part.images[part.labels == label] for part in (used, rest)])
        rows = torch.arange(max(wanted, len(given))) % len(given)
        images.append(given[rows])
        labels.append(torch.full((len(rows),), train.n_classes + label))
    names = (*train.class_names, *used.class_names)
    return ImageSet(torch.cat(images), torch.cat(labels), names)


# ------------------------------------------------------------------------------------------ the new run


def _earlier(extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the adaptations that a run has behind it, oldest first."""
    last = extra.get("adapted")
    if not last:
        return []
    return [*last.get("earlier", []), {key: value for key, value in last.items() if key != "earlier"}]


def _finished(
    original: Run,
    method: Method,
    used: ImageSet,
    rest: ImageSet,
    record: dict[str, Any],
    measured: Adaptation | None,
    out: str | Path | None,
    notes: list[str],
) -> Run:
    from fewgen.methods.store import ModelInfo

    extra = {**original.info.extra, "adapted": record}
    settings = _settings(original, record)
    if out is None:
        run = Run(original.path.with_name(f"{original.path.name} (adapted, in memory)"), original.device)
        run.__dict__["config"] = settings
        run.__dict__["info"] = ModelInfo(
            original.info.method,
            original.info.config,
            {**original.info.spec, "class_names": list(method.spec.class_names)},
            extra,
            None if method.spec.text is None else method.spec.text.to_state()[1],
            original.info.shapes,
        )
    else:
        _write(Path(out), original, method, used, rest, extra, settings, measured, notes)
        run = Run(out, original.device)
    run.__dict__["method"] = method
    run.notes = notes
    return run


def _settings(original: Run, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.yaml says: the run's settings, and what was done to it."""
    settings = dict(original.config)
    if not settings:  # a model file on its own
        text = original.info.text or {}
        settings = {
            "method": original.info.method,
            "data": None,
            "text": text.get("encoder_name"),
            "text_path": text.get("encoder_path"),
            "model": original.info.config,
        }
    return {**settings, "adapted": {k: v for k, v in record.items() if k not in ("figures", "earlier")}}


def _write(
    out: Path,
    original: Run,
    method: Method,
    used: ImageSet,
    rest: ImageSet,
    extra: Mapping[str, Any],
    settings: Mapping[str, Any],
    measured: Adaptation | None,
    notes: Sequence[str],
) -> None:
    """Write the folder beside its place, then move it there."""
    from fewgen.config import dump_yaml
    from fewgen.files import make_dir, no_empty_folders, prepare_output_dir, write_text
    from fewgen.generation.writers import write_picture
    from fewgen.report.card import render_adapted_card
    from fewgen.runs.findings import citation_keys

    with no_empty_folders(out.parent):
        make_dir(out.parent)
        folder = out.parent / f".{out.name[:100]}.{secrets.token_hex(6)}.tmp"
        try:
            prepare_output_dir(folder)
            _write_images(folder, original, method, used, rest)
            picture = _grid(method, used.n_classes)
            write_picture(folder / GRID_NAME, picture, {"run": out.name, "method": method.name})
            citations = citation_keys(method, settings)
            card = render_adapted_card(method, extra["adapted"], out, notes, citations)
            write_text(folder / CARD_NAME, card)
            if measured is not None:
                from fewgen.report.adaptation import render_adaptation

                page = render_adaptation(measured, extra["adapted"], out, notes, citations)
                write_text(folder / REPORT_NAME, page)
            write_text(folder / CONFIG_NAME, dump_yaml(dict(settings)))
            method.save(folder / MODEL_NAME, extra)
            if out.is_dir():  # empty, or with what desktops leave
                for entry in sorted(folder.iterdir()):
                    os.replace(entry, out / entry.name)
            else:
                os.replace(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _write_images(folder: Path, original: Run, method: Method, used: ImageSet, rest: ImageSet) -> None:
    """Write the new images, and which of them were learned from, so that the run knows its images."""
    import torch

    from fewgen.data.npz import load_npz
    from fewgen.files import read_json, write_json
    from fewgen.generation.writers import write_npz

    names = method.spec.class_names
    n_old = len(names) - used.n_classes
    parts, labels = [used.images, rest.images], [used.labels + n_old, rest.labels + n_old]
    train, held_out = list(range(len(used))), list(range(len(used), len(used) + len(rest)))
    split: dict[str, Any] = {}
    if original.path.is_dir() and (original.path / SPLIT_NAME).is_file():
        split = read_json(original.path / SPLIT_NAME)
    before = original.path / ADDED_NAME
    if original.path.is_dir() and before.is_file() and "added" in split:
        earlier = load_npz(before)
        row = torch.tensor([names.index(name) for name in earlier.class_names])
        parts, labels = [earlier.images, *parts], [row[earlier.labels], *labels]
        shift = len(earlier)
        train = [*split["added"]["train"], *(i + shift for i in train)]
        held_out = [*split["added"]["held_out"], *(i + shift for i in held_out)]
    write_npz(folder / ADDED_NAME, torch.cat(parts), torch.cat(labels), names)
    if split:
        added = {"file": ADDED_NAME, "train": train, "held_out": held_out}
        write_json(folder / SPLIT_NAME, {**split, "added": added})


def _grid(method: Method, n_new: int) -> Any:
    """Return a row of new images for each of the first old classes and for each new one."""
    import torch

    from fewgen.generation import GenerationRequest
    from fewgen.generation.pictures import class_grid

    n = method.spec.n_classes
    labels = torch.cat([torch.arange(min(GRID_CLASSES, n - n_new)), torch.arange(n - n_new, n)])
    request = GenerationRequest.per_class(labels.tolist(), GRID_COLUMNS, seed=0)
    drawn = method.generate(request)
    return class_grid(drawn.images, drawn.labels, method.spec.class_names, GRID_COLUMNS)
