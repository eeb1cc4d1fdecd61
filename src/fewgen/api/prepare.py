"""Everything that `train` does before its first step: check, load, split, encode the words, build.

Nothing is written here, so that a mistake costs seconds and leaves no folder behind.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingDependencyError,
    OutputError,
    ProblemList,
    TextError,
    suggest,
)

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.data.imageset import ClassSplit
    from fewgen.methods.base import Method
    from fewgen.text import ClassText
    from fewgen.training import TrainConfig
    from fewgen.training.meta import MetaConfig
    from fewgen.training.meta.stage import OtherClasses
    from fewgen.training.phases import Stage

SPLIT_NAME = "split.json"

PREPARE = (
    "method",
    "data",
    "shots",
    "preset",
    "seed",
    "text",
    "text_path",
    "phrases",
    "classes",
    "holdout",
    "split",
    "size",
    "channels",
    "fit",
    "alpha",
    "convert",
    "minutes",
    "steps_scale",
    "meta",
    "tasks",
    "class_split",
    "model",
    "training",
    "data_dir",
    "download",
    "progress",
)
"""Keywords of `train` that decide what is trained."""

NOT_IN_CONFIG = (
    "out",
    "config",
    "report",
    "progress",
    "download",
    "data_dir",
    "minutes",
    "steps_scale",
)
"""Keywords of `train` that config.yaml leaves out: of this call only, or held in its `training` section."""


@dataclasses.dataclass
class Prepared:
    """What a trainer needs, and what a run folder records.

    Attributes:
        method: untrained, with its seeded initial weights.
        train: images to learn from.
        held_out: images set aside, or None.
        train_config: settings of the loop.
        settings: every setting, resolved, for `config.yaml`.
        split: which images were chosen, for `split.json`.
        notes: what a reader of the results should know.
        meta: how to meta-train; None: not at all.
        tasks: settings of meta-learning.
        others: classes that are not learned from, with their images and vectors.
    """

    method: Method
    train: ImageSet
    held_out: ImageSet | None
    train_config: TrainConfig
    settings: dict[str, Any]
    split: dict[str, Any]
    notes: list[str]
    meta: str | None
    tasks: MetaConfig
    others: tuple[OtherClasses, ...]

    def stages(self) -> list[Stage]:
        """Return what to train: the method's stages, with those of meta-training."""
        stages: list[Stage] = self.method.stages(self.train, self.held_out)
        if self.meta is None:
            return stages
        from fewgen.training.meta.stage import with_meta

        return with_meta(self.method, stages, self.meta, self.tasks, self.others)


def prepare(**keywords: Any) -> Prepared:
    """Do everything of `train` that comes before the first step: check, load, split, encode, build."""
    from fewgen.config import read_config, to_dict
    from fewgen.data import ImageSet
    from fewgen.methods import get_method
    from fewgen.methods.base import DataSpec
    from fewgen.training.seeds import global_seed

    data, seed = keywords["data"], keywords["seed"]
    method_class = get_method(keywords["method"])
    # Settings first: a misspelt key should not wait until a large folder is read.
    model_config, train_config, tasks = configs(keywords)
    if keywords["meta"] is not None and "adapt" not in method_class.capabilities:
        raise ConfigError(f'The method "{keywords["method"]}" cannot be meta-trained. Leave out --meta.')
    if not method_class.reads_text:
        given = [key for key in ("text_path", "phrases") if keywords[key]]
        given += ["text"] if keywords["text"] not in (None, "auto") else []
        if given:
            raise ConfigError(f'The method "{keywords["method"]}" reads no words. Leave out {given[0]}.')
    phrases = keywords["phrases"]
    if isinstance(phrases, (str, Path)):
        phrases = read_config(phrases)
    if not isinstance(data, ImageSet):
        data = load_source(
            keywords,
            data,
            keywords["data_dir"],
            keywords["download"],
            min_classes=method_class.min_classes,
        )
    if keywords["classes"]:
        data = data.select_classes(class_list(keywords["classes"], data.class_names))
    check_phrases(phrases, data.class_names)
    everything, classes = (
        data,
        split_classes(data, keywords["class_split"], keywords["meta"], keywords["seed"]),
    )
    data = data.select_classes(classes.base)
    holdout = keywords["holdout"]
    train_indices, held_indices = split_indices(data, keywords["shots"], holdout, seed)
    train_indices, held_indices, found = identical_images(
        data, train_indices, held_indices, move=holdout == "auto"
    )
    train_set = data.subset(train_indices)
    held_out = data.subset(held_indices) if held_indices else None
    if held_out is None and holdout != 0:
        found.append(
            "there are too few images to hold any out, so training does not stop early and the report has no "
            "figures. A larger --shots, more images or --holdout 1 changes that."
        )
    table, notes = None, found
    if method_class.reads_text:
        own_phrases = {k: v for k, v in (phrases or {}).items() if k in classes.base}
        table, notes = class_text(
            keywords["text"],
            keywords["text_path"],
            data.class_names,
            own_phrases or None,
            keywords["data_dir"],
        )
        notes += found
    others: tuple[OtherClasses, ...] = ()
    if keywords["meta"] is not None:
        groups = {"base": train_set}
        groups |= {
            name: everything.select_classes(names)
            for name, names in (("validation", classes.val), ("novel", classes.novel))
            if names
        }
        check_tasks(tasks, groups)
        assert table is not None  # what adapts to new classes knows them by their text
        others = other_classes(everything, classes, table, phrases, keywords["data_dir"])
    spec = DataSpec.of(train_set, table)
    import torch

    with global_seed(torch.device("cpu"), seed, "weights"):
        method = method_class(model_config, spec)
    notes += method.notes
    settings = {key: keywords[key] for key in PREPARE if key not in NOT_IN_CONFIG}
    settings |= {
        "data": None if isinstance(keywords["data"], ImageSet) else str(keywords["data"]),
        "text": None if table is None else table.encoder_name,
        "text_path": table.encoder_path if table is not None and keywords["text_path"] else None,
        "phrases": to_dict(phrases) if phrases else None,
        "classes": list(everything.class_names) if keywords["classes"] else None,
        "tasks": to_dict(tasks) if keywords["meta"] is not None else None,
        "model": to_dict(model_config),
        "training": to_dict(train_config),
    }
    split = {
        "data": data.name,
        "class_names": list(data.class_names),
        "classes": {"base": list(classes.base), "val": list(classes.val), "novel": list(classes.novel)},
        "seed": seed,
        "shots": keywords["shots"],
        "holdout": keywords["holdout"],
        "train": train_indices,
        "held_out": held_indices,
        "fingerprint": fingerprint(train_set),
    }
    return Prepared(
        method,
        train_set,
        held_out,
        train_config,
        settings,
        split,
        notes,
        keywords["meta"],
        tasks,
        others,
    )


def split_classes(images: ImageSet, how: str | None, meta: str | None, seed: int) -> ClassSplit:
    """Return which classes are learned from.

    Args:
        images: all images at hand.
        how: of `class_split`; None: the data set's own way with meta-training, every class without.
        meta: how to meta-train, or None.
        seed: of the draw of classes.

    Raises:
        ConfigError: the split has no meaning.
        DataError: it does not fit the images, or leaves fewer than 2 classes to learn from.
    """
    from fewgen.episodes import class_split

    if how is None:
        how = "all" if meta is None else "auto"
    if not isinstance(how, (str, os.PathLike)):
        raise ConfigError(f"class_split must be text or a path, got {how!r}.")
    try:
        split = class_split(images, how, seed)
    except (ConfigError, DataError) as error:
        raise type(error)(f"--class-split {os.fspath(how)}: {error}") from None
    if how != "all" and len(split.base) < 2:
        n = len(split.base)
        raise DataError(
            f"--class-split {os.fspath(how)}: {n} base class{'' if n == 1 else 'es'} to learn from, but at "
            "least 2 are needed. Make more classes base ones, or add classes."
        )
    return split


def other_classes(
    images: ImageSet,
    classes: ClassSplit,
    table: ClassText,
    phrases: Mapping[str, Any] | None,
    data_dir: str | Path | None,
) -> tuple[OtherClasses, ...]:
    """Return the validation and the novel classes that have images, with their text vectors."""
    from fewgen.text import make_text_encoder
    from fewgen.training.meta.stage import OtherClasses

    if not (classes.val or classes.novel):
        return ()
    encoder = None
    if table.has_meaning:
        path = table.encoder_path
        if table.encoder_name == "glove":
            path = _glove_path(path, data_dir)
        encoder = make_text_encoder(table.encoder_name, path=path)
    result = []
    for name, names in (("val", classes.val), ("novel", classes.novel)):
        if not names:
            continue
        own = {k: v for k, v in (phrases or {}).items() if k in names}
        extended = table.extend(names, encoder, own or None)
        vectors = extended.vectors[len(table.class_names) :]
        result.append(OtherClasses(name, images.select_classes(names), vectors))
    return tuple(result)


def check_tasks(tasks: MetaConfig, groups: Mapping[str, ImageSet]) -> None:
    """Refuse tasks that the images cannot fill, before anything is built.

    Args:
        tasks: settings of meta-learning.
        groups: "base" -> the training images, and those of "validation" and "novel" classes, on which the
            adaptation curve is measured. The latter may be fewer than `n_way`.

    Raises:
        DataError: names the group, the numbers and the flags.
    """
    from fewgen.episodes import EpisodeSampler

    for name, images in groups.items():
        present = int((images.counts() > 0).sum())
        if present == 0:
            raise DataError(
                f"None of the {name} classes has images. Choose other ones with --class-split, or add images."
            )
        n_way = tasks.n_way if name == "base" else min(tasks.n_way, present)
        try:
            EpisodeSampler(
                images.labels, n_way, tasks.n_shot, tasks.n_query, 0, class_names=images.class_names
            )
        except DataError as error:
            what = "to learn from" if name == "base" else "to measure adaptation on"
            n = images.n_classes
            raise DataError(
                f"The {n} {name} class{'' if n == 1 else 'es'} {what} cannot fill the tasks. {error}"
            ) from None


def configs(keywords: Mapping[str, Any]) -> tuple[Any, TrainConfig, MetaConfig]:
    """Return the settings of the method, of the loop and of tasks: defaults < preset < file and flags."""
    from fewgen.config import load_preset, resolve, to_dict
    from fewgen.methods import get_method
    from fewgen.training import TrainConfig
    from fewgen.training.meta import MetaConfig, check_algorithm

    method_class = get_method(keywords["method"])
    preset = load_preset(keywords["method"], keywords["preset"])
    flags = {"seed": keywords["seed"], "progress": keywords["progress"]}
    flags |= {key: keywords[key] for key in ("minutes", "steps_scale") if keywords[key] is not None}
    meta = keywords["meta"]
    if meta is None and keywords["tasks"]:
        raise ConfigError("--tasks has no use without --meta. Choose reptile, fomaml, maml or none.")
    if meta is not None:
        # Not text: what YAML makes of "meta: no", for example.
        check_algorithm(meta if isinstance(meta, str) else str(meta))
    needed = {} if meta is None else method_class.meta_settings
    model: Any = resolve(method_class.Config, preset["model"], needed, keywords["model"], where="model")
    _check_needed(to_dict(model), needed, "--model")
    return (
        model,
        resolve(TrainConfig, preset["training"], keywords["training"], flags, where="training"),
        resolve(MetaConfig, keywords["tasks"], where="tasks"),
    )


def _check_needed(settings: Mapping[str, Any], needed: Mapping[str, Any], where: str) -> None:
    """Refuse settings of a method that meta-training cannot do with."""
    for key, value in needed.items():
        if isinstance(value, Mapping):
            _check_needed(settings[key], value, f"{where}.{key}")
        elif settings[key] != value:
            raise ConfigError(
                f"{where}.{key} is {settings[key]}, but --meta needs {value}. Leave out one of the two."
            )


def load_source(
    settings: Mapping[str, Any],
    source: str | Path,
    data_dir: str | Path | None,
    download: bool,
    min_classes: int = 1,
) -> ImageSet:
    """Return the images of a source, read as the settings of a run say."""
    from fewgen.data import load_images

    images = load_images(
        source,
        split=settings.get("split", "train"),
        size=settings.get("size"),
        channels=settings.get("channels"),
        fit=settings.get("fit", "crop"),
        alpha=settings.get("alpha", "error"),
        convert=settings.get("convert", False),
        data_dir=data_dir,
        download=download,
        min_classes=min_classes,
    )
    return images


def class_list(wanted: Sequence[str] | str, known: Sequence[str]) -> list[str]:
    """Return class names as the data spells them; a name that differs by case only is meant."""
    by_key = {name.casefold(): name for name in known}
    names = []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if name.casefold() not in by_key:
            shown = ", ".join(f'"{k}"' for k in known[:12]) + (", ..." if len(known) > 12 else "")
            raise ConfigError(f'There is no class "{name}".{suggest(name, known)} Classes: {shown}.')
        names.append(by_key[name.casefold()])
    return names


def split_indices(
    data: ImageSet, shots: int | None, holdout: int | str, seed: int
) -> tuple[list[int], list[int]]:
    """Return the indices of the training and of the held-out images.

    Held-out images serve early stopping and the report, and are never trained on. With `holdout="auto"`
    and `shots` k they come out of the k (a tenth, at least 1, from k = 10 on), so that "k images per
    class" means all the real images that were used. An explicit number comes on top of the k.

    Args:
        data: all images at hand.
        shots: images per class, or None for all.
        holdout: "auto", or images per class.
        seed: of the draw.

    Raises:
        DataError: a class has too few images; every such class is named.
    """
    import torch

    from fewgen.data import ImageSet

    if isinstance(holdout, bool) or not (holdout == "auto" or (isinstance(holdout, int) and holdout >= 0)):
        raise ConfigError(f'holdout must be "auto" or a number of images per class, got {holdout!r}.')
    if shots is not None and shots < 1:
        raise ConfigError(f"shots must be 1 or more, got {shots}. Leave it out to use every image.")
    # A stand-in whose captions are the indices: the draw itself stays where it is defined and tested.
    stand_in = ImageSet(
        torch.zeros(len(data), 1, 1, 1, dtype=torch.uint8),
        data.labels,
        data.class_names,
        captions=tuple(str(i) for i in range(len(data))),
        name=data.name,
    )
    if shots is not None:
        inside = max(1, shots // 10) if shots >= 10 else 0
        n_held = inside if holdout == "auto" else int(holdout)
        n_train = shots - n_held if holdout == "auto" else shots
        return tuple(  # type: ignore[return-value]
            [int(c) for c in part.captions or ()] for part in stand_in.split_shots(n_train, n_held, seed)
        )
    train: list[int] = []
    held_out: list[int] = []
    for name, count in zip(data.class_names, data.counts().tolist(), strict=True):
        if count == 0:
            raise DataError(f'Class "{name}" has no images. Add some, or choose the other classes.')
        n_held = (round(count / 5) if count >= 5 else 0) if holdout == "auto" else int(holdout)
        if count <= n_held:
            raise DataError(
                f'Class "{name}" has {count} images, and {n_held} of them would be held out: none would be '
                "left to learn from. Add images, or set --holdout lower."
            )
        parts = stand_in.select_classes([name]).split_shots(count - n_held, n_held, seed)
        for indices, part in zip((train, held_out), parts, strict=True):
            indices += [int(c) for c in part.captions or ()]
    return train, held_out


def identical_images(
    data: ImageSet, train: list[int], held_out: list[int], move: bool
) -> tuple[list[int], list[int], list[str]]:
    """Find images that are equal in every pixel.

    Args:
        data: all images at hand.
        train: indices of those to learn from.
        held_out: indices of those set aside.
        move: whether a held-out image that is also trained on joins the training images, so that held-out
            images stay unknown to the model.

    Returns:
        The indices, and notes on what was found.
    """
    array = data.images.numpy()
    twins: dict[bytes, list[int]] = {}
    for index in sorted([*train, *held_out]):
        pixels = array[index].tobytes()
        twins.setdefault(hashlib.blake2b(pixels, digest_size=16).digest(), []).append(index)
    groups = [group for group in twins.values() if len(group) > 1]
    if not groups:
        return train, held_out, []
    labels = data.labels.tolist()
    in_train = set(train)
    moved = (
        {i for group in groups if in_train & set(group) for i in group if i not in in_train}
        if move
        else set()
    )
    crossing = [group for group in groups if len({labels[i] for i in group}) > 1]

    def named(group: list[int]) -> str:
        other = next((i for i in group if labels[i] != labels[group[0]]), group[1])
        names = [data.class_names[labels[i]] for i in (group[0], other)]
        return f'both in "{names[0]}"' if names[0] == names[1] else f'in "{names[0]}" and in "{names[1]}"'

    n_more = sum(len(group) - 1 for group in groups)
    count = "1 image repeats" if n_more == 1 else f"{n_more} images repeat"
    note = f"{count} another one pixel by pixel; the first pair is {named(groups[0])}."
    if moved:
        note += f" {len(moved)} of the held-out images were learned from instead, as their twins are."
    notes = [note]
    if crossing:
        how_many = "1 image is" if len(crossing) == 1 else f"{len(crossing)} images are"
        notes.append(
            f"{how_many} under more than one class, the first {named(crossing[0])}: such classes cannot be "
            "told apart there. Keep each image in one class."
        )
    return [*train, *(i for i in held_out if i in moved)], [i for i in held_out if i not in moved], notes


def check_phrases(phrases: Any, class_names: Sequence[str]) -> None:
    """Refuse phrases for classes that do not exist, before any text encoder is tried."""
    if not phrases:
        return
    if not isinstance(phrases, Mapping):
        raise ConfigError("phrases must give words for class names, such as {sandal: [sandal, open shoe]}.")
    problems = ProblemList("The phrases do not fit the classes", TextError)
    for name in phrases:
        if name not in class_names:
            problems.add(f'there is no class "{name}".{suggest(str(name), class_names)}')
    problems.raise_if_any()


def class_text(
    name: str,
    path: str | None,
    class_names: Sequence[str],
    phrases: Mapping[str, Any] | None,
    data_dir: str | Path | None,
) -> tuple[ClassText, list[str]]:
    """Return the class vectors, and notes on what they can and cannot do."""
    from fewgen.text import ClassText, make_text_encoder

    choices = ("auto", "glove", "minilm", "clip", "onehot")
    if name not in choices:
        raise ConfigError(
            f'There is no text encoder "{name}".{suggest(name, choices)} Known: {", ".join(choices)}.'
        )
    if name != "auto":
        if name == "glove":
            path = _glove_path(path, data_dir)
        encoder = make_text_encoder(name, path=path, vocabulary=class_names)
        notes = (
            [] if encoder.has_meaning else ["onehot vectors carry no meaning: free texts cannot be drawn."]
        )
        return ClassText.build(encoder, class_names, phrases), notes
    if path is not None:
        raise ConfigError(
            "text_path needs text: say which encoder the path belongs to, such as --text glove."
        )
    reasons = []
    for candidate in ("glove", "minilm"):
        try:
            candidate_path = _glove_path(None, data_dir) if candidate == "glove" else None
            encoder = make_text_encoder(candidate, path=candidate_path, vocabulary=class_names)
            return ClassText.build(encoder, class_names, phrases), []
        except (TextError, MissingDependencyError) as error:
            reasons.append(f"{candidate}: {str(error).splitlines()[0]}")
    if phrases:
        raise TextError("Phrases need vectors with meaning, but none are at hand. " + " ".join(reasons))
    encoder = make_text_encoder("onehot", vocabulary=class_names)
    note = (
        "no word vectors are at hand, so each class gets a vector without meaning (onehot): drawing by class "
        "works, free texts do not. For words, set FEWGEN_DATA_DIR to a folder with glove/, or install "
        '"fewgen[text]".'
    )
    return ClassText.build(encoder, class_names), [note]


def _glove_path(path: str | None, data_dir: str | Path | None) -> str | None:
    """Return where GloVe is; the folder `glove` of `data_dir` counts as FEWGEN_DATA_DIR does."""
    if path is None and data_dir is not None and (Path(data_dir) / "glove").is_dir():
        return str(Path(data_dir) / "glove")
    return path


def fingerprint(images: ImageSet) -> str:
    """Return a digest of pixels and labels, so that a resumed run notices other images."""
    digest = hashlib.sha256(str(tuple(images.images.shape)).encode())
    digest.update(images.images.contiguous().numpy().tobytes())
    digest.update(images.labels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_run_dir(out: Path) -> None:
    """Refuse a folder that is neither new, empty nor a run; creates nothing."""
    from fewgen.files import is_run_dir

    there = next((parent for parent in out.absolute().parents if parent.exists()), None)
    if there is not None and not there.is_dir():
        raise OutputError(f'"{out}" cannot be a folder, because "{there}" is a file. Choose another --out.')
    if there is not None and not out.exists() and not os.access(there, os.W_OK):
        raise OutputError(f'Writing into "{there}" is not permitted. Choose another --out.')
    if out.is_file():
        raise OutputError(f'"{out}" is a file, but the run needs a folder. Choose another --out.')
    if out.is_dir() and any(out.iterdir()) and not is_run_dir(out):
        raise OutputError(
            f'The folder "{out}" is not a fewgen run and is not empty. Nothing was changed. '
            "Choose a new or empty folder for --out."
        )


def refuse_adapted(out: Path) -> None:
    """Refuse to train into the folder of an adapted run, which would overwrite its model.

    Such a folder has no training state, so nothing else would tell it from a new one.
    """
    from fewgen.methods.base import read_method_info

    if not (out / "model.safetensors").is_file():
        return
    try:
        adapted = read_method_info(out).extra.get("adapted")
    except CheckpointError:  # damaged: a training may put a good one in its place
        return
    if adapted:
        raise OutputError(
            f'"{out}" holds an adapted run, which is not trained further. Nothing was changed. '
            "Choose another --out."
        )


def check_apart(out: Path, data: Any) -> None:
    """Refuse a run folder inside the folder of the images, around it, or equal to it.

    The run's own files would become a class of the data, and the next training would learn from them.
    """
    from fewgen.data.registry import is_named

    if not isinstance(data, (str, Path)) or is_named(data):
        return
    folder = Path(data).expanduser()
    if not folder.is_dir():
        return
    run, images = Path(os.path.realpath(out)), Path(os.path.realpath(folder))
    if run == images:
        raise OutputError(f'"{out}" is the folder of the images. Nothing was changed. Choose another --out.')
    if run.is_relative_to(images):
        raise OutputError(
            f'The run folder "{out}" lies inside the folder of the images, "{data}", where it would be taken '
            "for a class. Nothing was changed. Choose another --out."
        )
    if images.is_relative_to(run):
        raise OutputError(
            f'The images "{data}" lie inside the run folder "{out}". Nothing was changed. '
            "Choose another --out."
        )


def is_finished(out: Path, minutes: float | None) -> bool:
    """Tell whether a folder holds a finished run; refuse one that was given another time.

    Another time would change nothing: a finished run is not trained further.

    Args:
        out: the run folder.
        minutes: limit on the training time that is asked for now.
    """
    from fewgen.methods.base import read_method_info

    if not (out / "state").is_dir() or not (out / "model.safetensors").is_file():
        return False
    extra = read_method_info(out).extra
    if not extra.get("training", {}).get("finished"):
        return False
    then = extra.get("minutes")
    if then != minutes:

        def shown(limit: float | None) -> str:
            return "no time limit" if limit is None else f"{limit:g} minutes"

        raise OutputError(
            f'The run "{out}" is finished with {shown(then)}, and this command asks for {shown(minutes)}. '
            "A finished run is not trained further. Nothing was changed; choose a new --out."
        )
    return True


def check_same_images(out: Path, prepared: Prepared) -> None:
    """Refuse to resume a run on other images; the trainer itself compares the settings."""
    from fewgen.files import read_json

    path = out / SPLIT_NAME
    if not path.is_file() or not (out / "state").is_dir():
        return
    there = read_json(path)
    if isinstance(there, dict):
        # A run from before class splits has none, and learned from every class.
        then, now = there.get("classes"), prepared.split["classes"]
        if then is not None and then != now:
            parts = [part for part in ("base", "val", "novel") if then.get(part) != now[part]]
            shown = "; ".join(f"{part}: {_names(then.get(part))}, now {_names(now[part])}" for part in parts)
            raise OutputError(
                f'"{out}" holds a run with another split of the classes ({shown}), which --meta, '
                "--class-split, --class-name and --seed decide. Nothing was changed. Repeat its command to "
                "resume it, or choose another --out."
            )
    if not isinstance(there, dict) or there.get("fingerprint") != prepared.split["fingerprint"]:
        raise OutputError(
            f'"{out}" holds a run on other images (other data, shots, seed, classes or size). Nothing was '
            "changed. Repeat its command to resume it, or choose another --out."
        )


def _names(classes: Any) -> str:
    names = [str(name) for name in classes or ()]
    return (", ".join(names[:5]) + (", ..." if len(names) > 5 else "")) or "none"
