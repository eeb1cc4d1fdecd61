"""The sets of images that an evaluation compares: found, read once each, and checked."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.keywords import refuse_ignored, whole
from fewgen.data.identity import same_images, without
from fewgen.data.names import name_labels
from fewgen.data.split import class_list, split_indices
from fewgen.errors import ConfigError, DataError, suggest
from fewgen.runs.run import MODEL_NAME, Run, load_run
from fewgen.runs.source import SPLIT_NAME

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.data.registry import Reading
    from fewgen.encoders.base import ImageEncoder
    from fewgen.evaluation.judge import Judge
    from fewgen.generation import GeneratedImages

    Load = Callable[[Reading, str | Path], ImageSet]

MAX_OVERLAP = 0.1
"""Share of held-out images that may also be training images; those are left out. More is a mistake."""


PER_CLASS = 100
"""Images per class that a run makes, unless another number is asked for."""


AT_LEAST = 300
"""Images that a run makes in all, however few its classes: zero copies in 300 bound their share at 1 %."""


MAX_PROBED = 2000
"""Real images that are described for a linear probe beside usefulness at most: seconds of minutes."""


@dataclasses.dataclass(frozen=True)
class EvaluateRequest:
    """What `fewgen.evaluate` is asked for; its docstring says what each part means."""

    images: str | Path | Run | ImageSet | GeneratedImages
    data: str | Path | ImageSet | None
    holdout: int | str | Path | ImageSet | None
    pool: str | Path | ImageSet
    shots: int | None
    class_names: Sequence[str] | None
    seed: int
    n: int | None
    features: str
    useful_draws: int
    other_runs: Sequence[str | Path | Run] | None
    reading: Reading
    device: str

    @property
    def n_aside(self) -> int | None:
        """The number of images per class to set aside, if `holdout` is one."""
        if isinstance(self.holdout, int):
            return self.holdout
        is_number = isinstance(self.holdout, str) and self.holdout.strip().isdigit()
        return int(str(self.holdout)) if is_number else None


@dataclasses.dataclass
class Sets:
    """Everything that an evaluation compares, checked; a run has not drawn its images yet.

    Attributes:
        subject: what is evaluated, in the user's words.
        run: the run that draws the images, or None.
        generated: the images at hand, or None for a run.
        train: images that were learned from.
        held_out: real images that were not, or None.
        pool: further real images, or None.
        notes: what a reader should know.
        judge: in whose features they are compared.
        labelled: whether the images at hand have classes.
        others: further runs with their training images, for usefulness.
    """

    subject: str
    run: Run | None
    generated: ImageSet | None
    train: ImageSet
    held_out: ImageSet | None
    pool: ImageSet | None
    notes: list[str]
    judge: Judge
    labelled: bool = True
    others: tuple[tuple[Run, ImageSet], ...] = ()

    @functools.cached_property
    def extractor(self) -> ImageEncoder | None:
        """The features of the judge; None stands for the small classifier, which the evaluation trains."""
        return self.judge.encoder(self.train if self.pool is None else self.pool)

    def probed(self, useful_draws: int) -> ImageEncoder | None:
        """Return the encoder of a linear probe to show beside usefulness, unless that would take minutes.

        Args:
            useful_draws: without any, there is nothing to show it beside.
        """
        from fewgen.encoders.efficientnet import EfficientNetFeatures
        from fewgen.evaluation.judge import LITE, Judge, lite_is_installed
        from fewgen.evaluation.real_side import N_TESTED

        n = len(self.train) + min(len(self.held_out or ()), N_TESTED)
        if not (useful_draws and self.held_out and n <= MAX_PROBED) or not lite_is_installed():
            return None
        if isinstance(self.extractor, EfficientNetFeatures):
            return None  # its features are at hand
        return Judge(LITE, LITE, "").encoder(self.train)


@dataclasses.dataclass
class _Real:
    """Where the real images come from, how they are read, and which were learned from and held out."""

    source: str | Path | ImageSet | None
    reading: Reading
    train: ImageSet
    held_out: ImageSet | None


def images_per_class(n: int | None, n_classes: int) -> int:
    """Return how many images of each class a run draws for an evaluation.

    >>> images_per_class(None, 10), images_per_class(None, 2), images_per_class(7, 2)
    (100, 150, 7)
    """
    return max(PER_CLASS, math.ceil(AT_LEAST / n_classes)) if n is None else n


def gather(request: EvaluateRequest) -> Sets:
    """Find and check the sets of an evaluation: nothing slow happens before a mistake is known."""
    if request.n is not None:
        whole("n", request.n, 1)
    whole("useful_draws", request.useful_draws, 0)
    whole("seed", request.seed, 0)
    if isinstance(request.holdout, int):
        whole("holdout", request.holdout, 0)
    from fewgen.data.foreign import has_labels
    from fewgen.data.registry import Reading
    from fewgen.evaluation.judge import choose_judge
    from fewgen.evaluation.matching import match_images

    load = functools.cache(Reading.load)  # several parts of an evaluation come from one source
    run = _as_run(request.images, request.device)
    given = {"n": request.n, "other_run": request.other_runs}
    if run is None:
        refuse_ignored("with images: only a run draws", given, {"n": None}, "n")
    if not request.useful_draws:
        refuse_ignored("with --useful-draws 0", given, {"other_run": None}, "other_run")
    notes: list[str] = []
    if run is not None and (run.path / SPLIT_NAME).is_file():
        real = _of_run(request, run, load)
    else:
        real = _of_data(request, run, load)
    train, held_out = real.train, real.held_out
    generated, labelled, subject = None, True, _subject(request.images)
    if run is None:
        found = _foreign(request, real, load)
        labelled = has_labels(found)
        generated = match_images(found, train, labels_required=labelled)
        if not labelled:
            if request.useful_draws:
                given = {"useful_draws": request.useful_draws}
                refuse_ignored("with images that have no class", given, {"useful_draws": 10}, *given)
            notes.append(
                "the images have no class, so what needs one is left out: agreement, distances within a "
                "class, usefulness, and every figure per class."
            )
            # The labels mean nothing and are not used; the names have to be those of the other sets.
            generated = dataclasses.replace(generated, class_names=train.class_names)
        generated = dataclasses.replace(generated, name=subject)
    elif run.class_names != train.class_names:
        raise DataError(
            f'"{run.path}" draws the classes {list(run.class_names)}, but the training images have '
            f"{list(train.class_names)}. Give the images it was trained on, or choose --class-name."
        )
    if held_out is not None:
        held_out = _apart(match_images(held_out, train, partial=True), train, notes)
    else:
        notes.append(_offer(run, real.source))
    if run is None and request.n_aside:
        notes.append(
            "the images set aside by --holdout are only held out if the program that made these images did "
            "not learn from them; if it learned from all of them, name other real images."
        )
    others = _others(request, run, train, load)
    for other, own in others:
        if held_out is not None:
            held_out, twins = without(held_out, own)
            if twins:
                notes.append(
                    f'{twins} held-out images are left out, as "{other.path.name}" learned from them.'
                )
    if held_out is not None and len(held_out) == 0:
        raise DataError(
            "no held-out image is left that no run learned from. Name others, such as --holdout test."
        )
    pool = _pool(request, dataclasses.replace(real, held_out=held_out), load, notes)
    judge = choose_judge(train, request.features)
    judge = judge if run is None else judge.of_run(run.config.get("encoders"))
    return Sets(subject, run, generated, train, held_out, pool, notes, judge, labelled, others)


def planned(request: EvaluateRequest) -> str:
    """Return what an evaluation would compare and how long it would take; measures nothing."""
    from fewgen.evaluation.cost import USEFULNESS
    from fewgen.progress import shown_seconds

    sets = gather(request)
    if sets.generated is None:
        per_class = images_per_class(request.n, sets.train.n_classes)
        made = f"{per_class * sets.train.n_classes} images that {sets.subject} would draw"
    else:
        made = repr(sets.generated)
        if not sets.labelled:
            made = f"{len(sets.generated)} images of {sets.subject}, without classes"
    check_evaluation(sets)
    seconds = expected_seconds(request, sets)
    total, useful = shown_seconds(sum(seconds.values())), seconds.get(USEFULNESS)
    part = "" if useful is None else f", {shown_seconds(useful)} of it for usefulness"
    draws = request.useful_draws
    lines = {
        "generated": made,
        "learned": sets.train,
        "held out": sets.held_out or "none",
        "pool": sets.pool or "none",
        "features": sets.judge.features + (f", since {sets.judge.why}" if sets.judge.why else ""),
        "useful": f"{draws} paired draws" if draws else "left out",
    }
    notes = [*sets.notes, *filter(None, (sets.judge.better, sets.judge.relative))]
    rows = [*lines.items(), *(("note", note) for note in notes)]
    return "\n".join([f"It takes about {total} here{part}.", *(f"{name:<12}{value}" for name, value in rows)])


def check_evaluation(sets: Sets) -> None:
    """Raise what measuring these sets would raise, before anything slow.

    Raises:
        ConfigError, CheckpointError, MissingDependencyError: features that are not there.
        DataError: an empty set, other classes; a single class without features that know none.
        ShapeError: other sizes or channels.
    """
    from fewgen.evaluation.real_side import check_judge, check_sets

    check_sets(
        {"training": sets.train, "generated": sets.generated, "held-out": sets.held_out, "pool": sets.pool}
    )
    if sets.extractor is None:
        check_judge(sets.train if sets.pool is None else sets.pool)


def expected_seconds(request: EvaluateRequest, sets: Sets) -> dict[str, float]:
    """Return the parts of an evaluation in their order, and how long each will take here."""
    from fewgen.evaluation.cost import evaluation_seconds
    from fewgen.runs.timing import draw_seconds

    n_classes = sets.train.n_classes
    n = images_per_class(request.n, n_classes) * n_classes if sets.generated is None else len(sets.generated)
    return evaluation_seconds(
        n,
        sets.train,
        len(sets.held_out or ()),
        pool=sets.pool,
        useful_draws=request.useful_draws if sets.labelled else 0,
        draw=0.0 if sets.run is None else draw_seconds(sets.run.method),
        run=sets.run is not None,
        extractor=sets.extractor,
        held_out=sets.held_out,
        probed=sets.probed(request.useful_draws),
    )


# ------------------------------------------------------------------------------------------- the sets


def _as_run(images: Any, device: str) -> Run | None:
    """Return the run that is meant, or None if these are images."""
    from fewgen.data.registry import is_named
    from fewgen.folders import RUN

    if isinstance(images, Run):
        return images
    if not isinstance(images, (str, Path)) or is_named(images):
        return None
    path = Path(images).expanduser()
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f'There is neither a run nor a folder nor an .npz "{images}".{suggest(path.name, siblings)}'
        )
    if path.is_file():
        return load_run(path, device) if path.suffix == ".safetensors" else None
    return load_run(path, device) if RUN.holds(path) or (path / MODEL_NAME).is_file() else None


def _of_run(request: EvaluateRequest, run: Run, load: Load) -> _Real:
    """Return the real images that a run names."""
    reading = request.reading
    theirs: dict[str, Any] = {
        "shots": request.shots,
        "class_names": request.class_names,
        "size": reading.size,
        "channels": reading.channels,
    }
    theirs |= {
        key: None if getattr(reading, key) == getattr(type(reading)(), key) else getattr(reading, key)
        for key in ("fit", "background", "convert", "value_range")
    }
    for key, value in theirs.items():
        if value is not None:
            raise ConfigError(
                f'"{run.path}" knows its training images, so {key} has no meaning here. Leave it out.'
            )
    if request.n_aside is not None:
        raise ConfigError(
            f"holdout is {request.holdout}, a number of images to set aside, but the images of a run are "
            "chosen already. Leave it out for the run's own held-out images, or name others."
        )
    try:
        train, held_out = run.images(reading.data_dir, reading.download, request.data, load)
    except DataError as error:
        more = "" if request.data is not None else " Name the training images with --data."
        raise DataError(f"{error}{more}") from None
    source = run.config.get("data") if request.data is None else request.data
    real = _Real(source, run.reading(reading.data_dir, reading.download), train, held_out)
    if request.holdout is not None:
        real.held_out = _named(request.holdout, real, run.config.get("class_names"), load)
    return real


def _of_data(request: EvaluateRequest, run: Run | None, load: Load) -> _Real:
    """Return the real images of another program's data, or of a model file's without its folder."""
    from fewgen.data import ImageSet

    source, reading = request.data, request.reading
    if source is None:
        raise ConfigError(
            "data is missing: name the images that were learned from, such as --data digits --shots 30."
        )
    if run is not None:
        for key, value in {"size": reading.size, "channels": reading.channels}.items():
            why = "with a model file, which says it itself"
            refuse_ignored(why, {key: value}, {key: None}, key)
        spec = run.info.spec  # without building the model
        if spec["height"] == spec["width"]:
            reading = dataclasses.replace(reading, size=int(spec["height"]), channels=int(spec["channels"]))
    images = source if isinstance(source, ImageSet) else load(reading, source)
    classes = request.class_names
    if (
        classes is None
        and run is not None
        and {*name_labels(run.class_names)} <= {*name_labels(images.class_names)}
    ):
        classes = run.class_names
    if classes:
        images = images.select_classes(class_list(classes, images.class_names))
    aside = request.n_aside or 0
    chosen, rest = split_indices(images, request.shots, aside, request.seed)
    real = _Real(source, reading, images.subset(chosen), images.subset(rest) if aside else None)
    if request.holdout is not None and request.n_aside is None:
        real.held_out = _named(request.holdout, real, classes, load)
    return real


def _named(wanted: Any, real: _Real, classes: Sequence[str] | None, load: Load) -> ImageSet:
    """Return real images by "test", name, path or as given, in the size of the training images."""
    from fewgen.data import ImageSet

    if isinstance(wanted, ImageSet):
        return wanted
    reading = dataclasses.replace(real.reading, split="train")
    height, width = real.train.size
    if height == width:
        reading = dataclasses.replace(reading, size=height, channels=real.train.channels)
    if wanted == "test":
        if real.source is None or isinstance(real.source, ImageSet):
            raise ConfigError('holdout is "test", but the data are given in Python and have no test part.')
        reading, wanted = dataclasses.replace(reading, split="test"), real.source
    images = load(reading, wanted)
    return images.select_classes(class_list(classes, images.class_names)) if classes else images


def _foreign(request: EvaluateRequest, real: _Real, load: Load) -> ImageSet:
    """Return images that no run of ours has to draw first."""
    from fewgen.data import ImageSet
    from fewgen.data.foreign import has_labels, load_foreign
    from fewgen.data.registry import is_named
    from fewgen.generation import GeneratedImages

    images: Any = request.images
    if isinstance(images, GeneratedImages):
        return images.to_image_set()
    if isinstance(images, ImageSet):
        return images
    if is_named(images):
        loaded = load(real.reading, images)
    else:
        loaded = load_foreign(images, real.reading, labels_required=False)
    if not request.class_names or not has_labels(loaded):
        return loaded
    return loaded.select_classes(class_list(request.class_names, loaded.class_names))


def _apart(held_out: ImageSet, train: ImageSet, notes: list[str]) -> ImageSet | None:
    """Leave out held-out images that are training images too; many of them are a mistake."""
    kept, twins = without(held_out, train)
    if twins > MAX_OVERLAP * len(held_out):
        raise DataError(
            f"{twins} of the {len(held_out)} held-out images are, pixel by pixel, training images too, so "
            "they cannot show what an unseen image looks like. Name images that were not learned from."
        )
    if twins:
        count = "1 of the held-out images is a training image" if twins == 1 else f"{twins} of the held-out"
        count += "" if twins == 1 else " images are training images"
        notes.append(f"{count}, pixel by pixel, and {'is' if twins == 1 else 'are'} left out.")
    return kept


def _offer(run: Run | None, source: Any) -> str:
    """Return what a user without held-out images can do."""
    from fewgen.data.registry import is_named

    text = 'there are no held-out real images, so "new" cannot be told. '
    if is_named(source):
        return (
            text + "Add --holdout test, or set 6 to 10 images per class aside: fewgen train ... --holdout 8."
        )
    if run is not None:
        return text + "Set 6 to 10 images per class aside when training: fewgen train ... --holdout 8."
    return text + "Name some with --holdout; 6 to 10 per class are enough to begin with."


def _pool(request: EvaluateRequest, real: _Real, load: Load, notes: list[str]) -> ImageSet | None:
    """Return further real images, none of which is among the training or held-out images."""
    from fewgen.data import ImageSet
    from fewgen.data.registry import is_named
    from fewgen.evaluation.matching import match_images

    wanted, source, train = request.pool, real.source, real.train
    if isinstance(wanted, str) and (wanted == "none" or (wanted == "auto" and not is_named(source))):
        return None
    if isinstance(wanted, str) and wanted in ("auto", "rest"):
        if source is None:
            raise ConfigError('pool is "rest", but it is not known of what. Name the data with --data.')
        images = source if isinstance(source, ImageSet) else load(real.reading, source)
        if images.class_names != train.class_names:
            images = images.select_classes(train.class_names)
        images, _ = without(images, train, real.held_out)
        if int(images.counts().min()) == 0:
            if wanted == "rest":
                notes.append("the data have no further images of some classes, so there is no pool.")
            return None
        return images
    images = match_images(_named(wanted, real, request.class_names, load), train)
    images, twins = without(images, train, real.held_out)
    if twins:
        notes.append(f"{twins} images of the pool are training or held-out images too, and are left out.")
    return images if len(images) else None


def _others(
    request: EvaluateRequest, run: Run | None, train: ImageSet, load: Load
) -> tuple[tuple[Run, ImageSet], ...]:
    """Return further runs with their training images, which have to be other ones of the same kind."""
    names = request.other_runs or ()
    if names and run is None:
        raise ConfigError("other_runs needs a run to stand beside: the images at hand are a single draw.")
    found = []
    for name in [names] if isinstance(names, (str, Path)) else names:
        other = load_run(name, request.device)
        own, _ = other.images(request.reading.data_dir, request.reading.download, load=load)
        if own.class_names != train.class_names or own.images.shape[1:] != train.images.shape[1:]:
            raise DataError(
                f'"{other.path}" has the classes {list(own.class_names)} and images of '
                f"{tuple(own.images.shape[1:])}, the run that is evaluated {list(train.class_names)} and "
                f"{tuple(train.images.shape[1:])}. Both must be equal."
            )
        if same_images(own, train):
            raise DataError(
                f'"{other.path}" learned from the same images as the run that is evaluated: it is no '
                "other draw of them. Train it with another --seed."
            )
        found.append((other, own))
    return tuple(found)


def _subject(images: Any) -> str:
    if isinstance(images, Run):
        return str(images.path)
    if isinstance(images, (str, Path)):
        return str(images)
    return getattr(images, "name", "") or "generated images"
