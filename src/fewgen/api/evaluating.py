"""`evaluate`: are images real, diverse, new, useful and of the wanted class? For a run and for any images."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.call import FORMER_NAMES, accepts_config, call_settings, renamed, unwrapped
from fewgen.config.keywords import tidy_out, whole
from fewgen.data.identity import same_images, without
from fewgen.data.split import class_list, split_indices
from fewgen.errors import ConfigError, DataError, OutputError, suggest
from fewgen.progress import ShownProgress
from fewgen.runs.evaluating import Sets, evaluate_sets, images_per_class
from fewgen.runs.run import MODEL_NAME, Run, load_run
from fewgen.runs.source import SPLIT_NAME, load_source

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.encoders.base import FeatureExtractor
    from fewgen.evaluation.evaluation import Evaluation
    from fewgen.generation import GeneratedImages

    Progress = Callable[[str, float], None]


MAX_OVERLAP = 0.1
"""Share of held-out images that may also be training images; those are left out. More is a mistake."""


@renamed(**FORMER_NAMES)
@accepts_config
@tidy_out
def evaluate(
    images: str | Path | Run | ImageSet | GeneratedImages,
    *,
    data: str | Path | ImageSet | None = None,
    holdout: int | str | Path | ImageSet | None = None,
    pool: str | Path | ImageSet = "auto",
    shots: int | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    n: int | None = None,
    features: str = "classifier",
    useful_draws: int = 10,
    other_runs: Sequence[str | Path | Run] | None = None,
    size: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    background: str = "error",
    convert: bool = False,
    out: str | Path | None = None,
    html: bool = True,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    progress: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Evaluation:
    """Say whether images are real-looking, diverse, new, useful and of the wanted class.

    Works for a run and for any images, also from another program. Each test is tried on held-out real images,
    exact copies, augmented copies and noise first; where it cannot tell these apart, it says so.

    Args:
        images: a run or a model file, which then draws new images; or a folder with one subfolder per class,
            or an .npz. A folder of images without classes can be measured, too, as far as that goes.
        data: the images that were learned from: a data set, folder or .npz. A run knows its own.
        holdout: real images that were not learned from: a folder, an .npz, a data set; "test", the test part
            of the data; or a number of images per class of the data to set aside (not for a run, which uses
            its own held-out images). Without any, "new" cannot be told.
        pool: further real images with labels, for the judge and the learning curve: a folder, an .npz, rest
            (what the data have besides) or none; auto is the rest of a data set with a name, else none.
        shots: images per class that were learned from, chosen as fewgen train does.
        class_names: only these classes, in this order.
        seed: of the choice of training images, as in fewgen train, of new images, and of the tests.
        n: images per class that a run draws; 100 if left out, and at least 300 in all.
        features: where images are compared: classifier, pixels, dino:FOLDER, clip:FOLDER or inception:FILE.
        useful_draws: paired trainings of a classifier that show usefulness; 0 leaves it out.
        other_runs: runs of the same method on other draws of the training images (other seeds), so that
            usefulness speaks of the method and not of one draw.
        size: side of the square images in pixels; the images' own if left out.
        channels: 1 for grey, 3 for colour; the images' own if left out.
        fit: how other shapes become square: crop, pad or stretch.
        background: transparent images: error, or put them on white or black.
        convert: accept 16-bit and CMYK images and convert them.
        out: a .json; the page goes beside it, as .html. The command writes evaluation.json if left out.
        html: write the page, too.
        overwrite: replace an existing output.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: where a run draws: auto (CUDA where there is one), cpu or cuda.
        progress: show which part is being measured.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        Verdicts, figures between their controls, what was left out and why, and the nearest pairs.
    """
    given = locals()
    targets = _outputs(out, html, overwrite)
    sets = gather(**{key: given[key] for key in _GATHER})
    for note in sets.notes:
        warnings.warn(note, stacklevel=5)
    extractor = _extractor(features, sets)
    shown = ShownProgress(progress)
    evaluation = evaluate_sets(
        sets, n=n, seed=seed, extractor=extractor, useful_draws=useful_draws, progress=shown
    )
    shown.close()
    evaluation.protocol["loading"] = {
        "data": _shown(data),
        "holdout": _shown(holdout),
        "pool": _shown(pool),
        "shots": shots,
        "size": size,
        "channels": channels,
        "fit": fit,
    }
    if "json" in targets:
        evaluation.save(targets["json"])
    if "html" in targets:
        from fewgen.files import write_text
        from fewgen.report.evidence import render_evaluation

        write_text(targets["html"], render_evaluation(evaluation))
    return evaluation


_GATHER = (
    "images",
    "data",
    "holdout",
    "pool",
    "shots",
    "class_names",
    "seed",
    "n",
    "features",
    "useful_draws",
    "other_runs",
    "size",
    "channels",
    "fit",
    "background",
    "convert",
    "data_dir",
    "download",
    "device",
)
_LOADING = ("split", "size", "channels", "fit", "background", "convert")


def plan_evaluation(**keywords: Any) -> str:
    """Return what `evaluate` would compare with the same keywords; draws, measures and writes nothing."""
    settings = call_settings(unwrapped(evaluate), keywords)
    _outputs(settings["out"], settings["html"], settings["overwrite"], write=False)
    sets = gather(**{key: settings[key] for key in _GATHER})
    if sets.generated is None:
        per_class = images_per_class(settings["n"], sets.train.n_classes)
        made = f"{per_class * sets.train.n_classes} images that {sets.subject} would draw"
    else:
        made = repr(sets.generated)
        if not sets.labelled:
            made = f"{len(sets.generated)} images of {sets.subject}, without classes"
    _extractor(settings["features"], sets)  # features that are not there are better known now
    lines = [f"generated   {made}", f"learned     {sets.train!r}"]
    lines.append(f"held out    {'none' if sets.held_out is None else repr(sets.held_out)}")
    lines.append(f"pool        {'none' if sets.pool is None else repr(sets.pool)}")
    lines.append(f"features    {settings['features']}")
    draws = settings["useful_draws"]
    lines.append(f"useful      {f'{draws} paired draws' if draws else 'left out'}")
    return "\n".join([*lines, *(f"note        {note}" for note in sets.notes)])


def gather(**keywords: Any) -> Sets:
    """Find and check the sets of an evaluation: nothing slow happens before a mistake is known."""
    if keywords["n"] is not None:
        whole("n", keywords["n"], 1)
    whole("useful_draws", keywords["useful_draws"], 0)
    whole("seed", keywords["seed"], 0)
    if isinstance(keywords["holdout"], int):
        whole("holdout", keywords["holdout"], 0)
    from fewgen.data.foreign import has_labels
    from fewgen.evaluation.matching import match_images

    run = _as_run(keywords["images"], keywords["device"])
    notes: list[str] = []
    if run is not None and (run.path / SPLIT_NAME).is_file():
        source, settings, train, held_out = _of_run(run, keywords)
    else:
        source, settings, train, held_out = _of_data(run, keywords)
    generated, labelled = None, True
    if run is None:
        found = _foreign(keywords, settings)
        labelled = has_labels(found)
        generated = match_images(found, train, labels_required=labelled)
        if not labelled:
            notes.append(
                "the images have no class, so what needs one is left out: agreement, distances within a "
                "class, usefulness, and every figure per class."
            )
            # The labels mean nothing and are not used; the names have to be those of the other sets.
            generated = dataclasses.replace(generated, class_names=train.class_names)
    elif run.class_names != train.class_names:
        raise DataError(
            f'"{run.path}" draws the classes {list(run.class_names)}, but the training images have '
            f"{list(train.class_names)}. Give the images it was trained on, or choose --class-name."
        )
    if held_out is not None:
        held_out = _apart(match_images(held_out, train, partial=True), train, notes)
    else:
        notes.append(_offer(run, source))
    if run is None and _is_number(keywords["holdout"]) and int(keywords["holdout"]) > 0:
        notes.append(
            "the images set aside by --holdout are only held out if the program that made these images did "
            "not learn from them; if it learned from all of them, name other real images."
        )
    others = _others(keywords, run, train)
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
    pool = _pool(keywords, source, settings, train, held_out, notes)
    subject = _subject(keywords["images"])
    if generated is not None:
        generated = dataclasses.replace(generated, name=subject)
    return Sets(subject, run, generated, train, held_out, pool, notes, labelled, others)


# ------------------------------------------------------------------------------------------- the sets


def _as_run(images: Any, device: str) -> Run | None:
    """Return the run that is meant, or None if these are images."""
    from fewgen.data.registry import is_named
    from fewgen.files import is_run_dir

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
    return load_run(path, device) if is_run_dir(path) or (path / MODEL_NAME).is_file() else None


def _of_run(run: Run, keywords: Mapping[str, Any]) -> tuple[Any, dict[str, Any], ImageSet, ImageSet | None]:
    """Return the source, how it is read, and the training and held-out images that a run names."""
    for key in ("shots", "class_names", "size", "channels"):
        if keywords[key] is not None:
            raise ConfigError(
                f'"{run.path}" knows its training images, so {key} has no meaning here. Leave it out.'
            )
    holdout = keywords["holdout"]
    if _is_number(holdout):
        raise ConfigError(
            f"holdout is {holdout}, a number of images to set aside, but the images of a run are chosen "
            "already. Leave it out for the run's own held-out images, or name others."
        )
    try:
        train, held_out = run.images(keywords["data_dir"], keywords["download"], source=keywords["data"])
    except DataError as error:
        more = "" if keywords["data"] is not None else " Name the training images with --data."
        raise DataError(f"{error}{more}") from None
    source = run.config.get("data") if keywords["data"] is None else keywords["data"]
    settings = {key: run.config[key] for key in _LOADING if run.config.get(key) is not None}
    if holdout is not None:
        classes = run.config.get("class_names")
        held_out = _real(holdout, source, settings, classes, train, keywords)
    return source, settings, train, held_out


def _of_data(
    run: Run | None, keywords: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], ImageSet, ImageSet | None]:
    """Return the same for images of another program, or for a model file without its folder."""
    from fewgen.data import ImageSet

    source, holdout = keywords["data"], keywords["holdout"]
    if source is None:
        raise ConfigError(
            "data is missing: name the images that were learned from, such as --data digits --shots 30."
        )
    settings = {key: keywords[key] for key in _LOADING if key in keywords}
    if run is not None:
        _, height, width = _shape_of(run)
        if height == width:
            settings |= {"size": height, "channels": _shape_of(run)[0]}
    if not isinstance(source, ImageSet):
        source_images = load_source(settings, source, keywords["data_dir"], keywords["download"])
    else:
        source_images = source
    classes = keywords["class_names"]
    if classes is None and run is not None and set(run.class_names) <= set(source_images.class_names):
        classes = run.class_names
    if classes:
        source_images = source_images.select_classes(class_list(classes, source_images.class_names))
    aside = int(holdout) if _is_number(holdout) else 0
    chosen, rest = split_indices(source_images, keywords["shots"], aside, keywords["seed"])
    train = source_images.subset(chosen)
    if aside:
        return source, settings, train, source_images.subset(rest)
    held_out = None
    if holdout is not None and not _is_number(holdout):
        held_out = _real(holdout, source, settings, classes, train, keywords)
    return source, settings, train, held_out


def _shape_of(run: Run) -> tuple[int, int, int]:
    """Return (C, H, W) of a run's images, without building the model."""
    spec = run.info.spec
    return int(spec["channels"]), int(spec["height"]), int(spec["width"])


def _is_number(holdout: Any) -> bool:
    if isinstance(holdout, str):
        return holdout.strip().isdigit()
    return isinstance(holdout, int) and not isinstance(holdout, bool)


def _real(
    wanted: Any,
    source: Any,
    settings: Mapping[str, Any],
    classes: Sequence[str] | None,
    train: ImageSet,
    keywords: Mapping[str, Any],
) -> ImageSet:
    """Return real images by "test", name, path or as given, in the size of the training images."""
    from fewgen.data import ImageSet

    if isinstance(wanted, ImageSet):
        return wanted
    settings = dict(settings)
    height, width = train.size
    if height == width:
        settings |= {"size": height, "channels": train.channels}
    if wanted == "test":
        if source is None or isinstance(source, ImageSet):
            raise ConfigError('holdout is "test", but the data are given in Python and have no test part.')
        settings["split"], wanted = "test", source
    else:
        settings["split"] = "train"
    images = load_source(settings, wanted, keywords["data_dir"], keywords["download"])
    return images.select_classes(class_list(classes, images.class_names)) if classes else images


def _foreign(keywords: Mapping[str, Any], settings: Mapping[str, Any]) -> ImageSet:
    """Return images that no run of ours has to draw first."""
    from fewgen.data import ImageSet
    from fewgen.data.foreign import has_labels, load_foreign
    from fewgen.data.registry import is_named
    from fewgen.generation import GeneratedImages

    images = keywords["images"]
    if isinstance(images, GeneratedImages):
        return images.to_image_set()
    if isinstance(images, ImageSet):
        return images
    if is_named(images):
        loaded = load_source(settings, images, keywords["data_dir"], keywords["download"])
    else:
        reading = {key: settings[key] for key in _LOADING if key in settings and key != "split"}
        loaded = load_foreign(images, labels_required=False, **reading)
    wanted = keywords["class_names"]
    if not wanted or not has_labels(loaded):
        return loaded
    return loaded.select_classes(class_list(wanted, loaded.class_names))


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


def _pool(
    keywords: Mapping[str, Any],
    source: Any,
    settings: Mapping[str, Any],
    train: ImageSet,
    held_out: ImageSet | None,
    notes: list[str],
) -> ImageSet | None:
    """Return further real images, none of which is among the training or held-out images."""
    from fewgen.data import ImageSet
    from fewgen.data.registry import is_named
    from fewgen.evaluation.matching import match_images

    wanted = keywords["pool"]
    if wanted == "none" or (wanted == "auto" and not is_named(source)):
        return None
    if isinstance(wanted, str) and wanted in ("auto", "rest"):
        if source is None:
            raise ConfigError('pool is "rest", but it is not known of what. Name the data with --data.')
        if isinstance(source, ImageSet):
            images = source
        else:
            images = load_source(settings, source, keywords["data_dir"], keywords["download"])
        if images.class_names != train.class_names:
            images = images.select_classes(train.class_names)
        images, _ = without(images, train, held_out)
        if int(images.counts().min()) == 0:
            if wanted == "rest":
                notes.append("the data have no further images of some classes, so there is no pool.")
            return None
        return images
    images = match_images(_real(wanted, source, settings, keywords["class_names"], train, keywords), train)
    images, twins = without(images, train, held_out)
    if twins:
        notes.append(f"{twins} images of the pool are training or held-out images too, and are left out.")
    return images if len(images) else None


def _extractor(name: str, sets: Sets) -> FeatureExtractor | None:
    """Return the features by name; None stands for the small classifier, which the evaluation trains."""
    if name == "classifier":
        return None
    from fewgen.encoders.image import make_extractor

    return make_extractor(name, sets.train if sets.pool is None else sets.pool)


# ----------------------------------------------------------------------------------- what a run is asked


def _others(
    keywords: Mapping[str, Any], run: Run | None, train: ImageSet
) -> tuple[tuple[Run, ImageSet], ...]:
    """Return further runs with their training images, which have to be other ones of the same kind."""
    names = keywords["other_runs"] or ()
    if names and run is None:
        raise ConfigError("other_runs needs a run to stand beside: the images at hand are a single draw.")
    found = []
    for name in [names] if isinstance(names, (str, Path)) else names:
        other = load_run(name, keywords["device"])
        own, _ = other.images(keywords["data_dir"], keywords["download"])
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


# ------------------------------------------------------------------------------------------- the output


def _outputs(out: str | Path | None, html: bool, overwrite: bool, write: bool = True) -> dict[str, Path]:
    """Return the files to write, by kind, after checking that they may be written."""
    from fewgen.files import prepare_output_file

    if out is None:
        return {}
    path = Path(out)
    if path.suffix.lower() != ".json":
        raise OutputError(f'"{out}" must end in .json, such as evaluation.json; the page goes beside it.')
    targets = {"json": path, **({"html": path.with_suffix(".html")} if html else {})}
    for target in targets.values():
        if not overwrite and (target.exists() or target.is_symlink()):
            raise OutputError(
                f'"{target}" exists already and was left as it is. Choose another name, or add --overwrite.'
            )
        if write:
            prepare_output_file(target, overwrite=overwrite)
    return targets


def _subject(images: Any) -> str:
    if isinstance(images, Run):
        return str(images.path)
    if isinstance(images, (str, Path)):
        return str(images)
    return getattr(images, "name", "") or "generated images"


def _shown(source: Any) -> Any:
    """Return a source as the record of an evaluation can hold it."""
    return source if source is None or isinstance(source, (int, str)) else str(source)
