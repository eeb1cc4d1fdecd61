"""Everything that `train` does before its first step: check, load, split, encode the words, build.

Nothing is written here, so that a mistake costs seconds and leaves no folder behind.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.data.identity import fingerprint, identical_images
from fewgen.data.split import asked_per_class, class_list, split_indices
from fewgen.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingDependencyError,
    OutputError,
    TextError,
)
from fewgen.folders import RUN
from fewgen.runs.encoders import check_encoders, started_with, used_encoders
from fewgen.runs.folder import check_apart, is_finished, refuse_adapted
from fewgen.runs.source import SPLIT_NAME, encoder_path, read_phrases, read_split

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.data.imageset import ClassSplit
    from fewgen.data.registry import Reading
    from fewgen.methods.base import Method
    from fewgen.text import ClassText
    from fewgen.training import TrainConfig
    from fewgen.training.meta.settings import MetaConfig
    from fewgen.training.meta.stage import OtherClasses
    from fewgen.training.phases import Stage


AUTO = "auto"
"""The preset that fits the images."""

ONE_CLASS = "train sq_gan, which learns a single class"


@dataclasses.dataclass(frozen=True)
class TrainRequest:
    """What `fewgen.train` is asked for; its docstring says what each part means."""

    method: str
    data: str | Path | ImageSet
    out: str | Path
    reading: Reading
    shots: int | None
    preset: str
    seed: int
    text: str
    text_path: str | None
    encoders: Mapping[str, Any] | None
    phrases: Mapping[str, Any] | str | Path | None
    class_names: Sequence[str] | None
    holdout: int | str
    minutes: float | None
    clock: str | None
    checkpoint: str | None
    steps_scale: float | None
    meta: str | None
    tasks: Mapping[str, Any] | None
    class_split: str | None
    model: Mapping[str, Any] | str | Path | None
    training: Mapping[str, Any] | None
    report: bool
    progress: bool

    def check_out(self) -> None:
        """Refuse a run folder that is not new, empty or the same run, or that lies among the images."""
        out = Path(self.out)
        check_apart(out, self.data)
        RUN.check(out)
        refuse_adapted(out)

    def settings(self) -> dict[str, Any]:
        """Return what `config.yaml` keeps of it: all that another run needs to be the same.

        The limits of time and the display are left out: they stand in the section `training`.
        """
        reading = self.reading
        return {
            "method": self.method,
            "data": self.data,
            "shots": self.shots,
            "preset": self.preset,
            "seed": self.seed,
            "text": self.text,
            "text_path": self.text_path,
            "encoders": self.encoders or None,
            "phrases": self.phrases,
            "class_names": self.class_names,
            "holdout": self.holdout,
            "split": reading.split,
            "size": reading.size,
            "channels": reading.channels,
            "fit": reading.fit,
            "background": reading.background,
            "convert": reading.convert,
            "value_range": None if reading.value_range is None else [*reading.value_range],
            "meta": self.meta,
            "tasks": self.tasks,
            "class_split": self.class_split,
            "model": self.model,
            "training": self.training,
        }


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
        source: all images at hand, which the report of a meta-trained run shows; else None, to free memory.
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
    source: ImageSet | None

    def stages(self) -> list[Stage]:
        """Return what to train: the method's stages, with those of meta-training."""
        stages: list[Stage] = self.method.stages(self.train, self.held_out)
        if self.meta is None:
            return stages
        from fewgen.training.meta.stage import with_meta

        return with_meta(self.method, stages, self.meta, self.tasks, self.others)


def prepare(request: TrainRequest) -> Prepared:
    """Do everything of `train` that comes before the first step: check, load, split, encode, build."""
    import torch

    from fewgen.config import to_dict
    from fewgen.data import ImageSet
    from fewgen.fitting.seeds import global_seed
    from fewgen.methods import get_method
    from fewgen.methods.base import DataSpec
    from fewgen.nn.building import bounded
    from fewgen.text.table import fitting_phrases

    method_class = get_method(request.method)
    # Settings first: a misspelt key should not wait until a large folder is read.
    model_config, train_config, tasks = configs(request)
    if not method_class.reads_text:
        chosen = request.text not in (None, "auto")
        words = {"text_path": request.text_path, "phrases": request.phrases, "text": chosen}
        given = [name for name, value in words.items() if value]
        if given:
            raise ConfigError(f'The method "{request.method}" reads no words. Leave out {given[0]}.')
    given_phrases = read_phrases(request.phrases)
    source = request.data
    if not isinstance(source, ImageSet):
        every_class = (
            not request.class_names and request.class_split in (None, "all") and request.meta is None
        )
        asked = asked_per_class(request.shots, request.holdout) if every_class else None
        source = request.reading.load(source, method_class.min_classes, asked, ONE_CLASS)
    everything = source
    if request.class_names:
        everything = source.select_classes(class_list(request.class_names, source.class_names))
    otherwise = f"give another --class-name, or {ONE_CLASS}" if request.class_names else ONE_CLASS
    if problem := everything.too_few_classes(method_class.min_classes, otherwise):
        raise DataError(f"The method {request.method} cannot learn from these images: {problem}.")
    phrases = fitting_phrases(given_phrases, everything.class_names)
    classes = split_classes(everything, request.class_split, request.meta, request.seed)
    data = everything.select_classes(classes.base)
    train_indices, held_indices = split_indices(data, request.shots, request.holdout, request.seed)
    train_indices, held_indices, found = identical_images(
        data, train_indices, held_indices, move=request.holdout == "auto"
    )
    train_set = data.subset(train_indices)
    held_out = data.subset(held_indices) if held_indices else None
    if held_out is None and request.holdout != 0:
        more = "More" if request.shots is None else "A larger --shots, more"
        found.append(
            "there are too few images to hold any out, so training does not stop early and the report has no "
            f"figures. {more} images or --holdout 1 changes that."
        )
    table, notes = None, found
    data_dir = request.reading.data_dir
    before = started_with(Path(request.out))
    if method_class.reads_text:
        own_phrases = {k: v for k, v in phrases.items() if k in classes.base}
        table, notes = class_text(
            request.text,
            request.text_path,
            data.class_names,
            own_phrases or None,
            data_dir,
            before.get("text"),
        )
        notes += found
    others: tuple[OtherClasses, ...] = ()
    if request.meta is not None:
        groups = {"base": train_set}
        groups |= {
            name: everything.select_classes(names)
            for name, names in (("validation", classes.val), ("novel", classes.novel))
            if names
        }
        check_tasks(tasks, groups)
        assert table is not None  # what adapts to new classes knows them by their text
        others = other_classes(everything, classes, table, phrases, data_dir)
    request, why = with_preset(request, train_set, before)
    if why:
        model_config, train_config, tasks = configs(request)
        notes.append(why)
    spec = DataSpec.of(train_set, table)
    with global_seed(torch.device("cpu"), request.seed, "weights"), bounded():
        method = method_class(model_config, spec)
    notes += method.notes
    recorded = before.get("encoders") or {}
    encoders = used_encoders(method, recorded)
    # Vectors of words are compared themselves, wherever they come from now.
    there = {use: record for use, record in recorded.items() if use != "text"}
    check_encoders(there, encoders, f'The run in "{request.out}"')
    check_encoders(request.encoders, encoders, "The setting encoders")
    path_given = request.text_path is not None or ":" in str(request.text)
    settings = request.settings() | {
        "data": None if isinstance(request.data, ImageSet) else str(request.data),
        "text": None if table is None else table.encoder_name,
        "text_path": table.encoder_path if table is not None and path_given else None,
        "encoders": encoders or None,
        "phrases": to_dict(phrases) if phrases else None,
        "class_names": list(everything.class_names) if request.class_names else None,
        "tasks": to_dict(tasks) if request.meta is not None else None,
        "model": to_dict(model_config),
        "training": to_dict(train_config),
    }
    split = {
        "data": data.name,
        "class_names": list(data.class_names),
        "classes": {"base": list(classes.base), "val": list(classes.val), "novel": list(classes.novel)},
        "seed": request.seed,
        "shots": request.shots,
        "holdout": request.holdout,
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
        request.meta,
        tasks,
        others,
        None if request.meta is None else source,
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
    data_dir: str | os.PathLike[str] | None,
) -> tuple[OtherClasses, ...]:
    """Return the validation and the novel classes that have images, with their text vectors."""
    from fewgen.text import make_text_encoder
    from fewgen.training.meta.stage import OtherClasses

    if not (classes.val or classes.novel):
        return ()
    encoder = None
    if table.has_meaning:
        path = encoder_path(table.encoder_name, table.encoder_path, data_dir)
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


def configs(request: TrainRequest) -> tuple[Any, TrainConfig, MetaConfig]:
    """Return the settings of the method, of the loop and of tasks: defaults < preset < file and flags.

    Raises:
        ConfigError: they are wrong, contradict each other, or would be ignored (but not those of a run that
            is there already, which an earlier release may have started).
    """
    from fewgen.config import load_preset, resolve, to_dict
    from fewgen.config.effects import check_effects
    from fewgen.methods import get_method
    from fewgen.training import TrainConfig
    from fewgen.training.meta.settings import MetaConfig, check_algorithm

    method_class = get_method(request.method)
    preset = load_preset(request.method, "default" if request.preset == AUTO else request.preset)
    flags = _flags(request)
    meta = request.meta
    if meta is None and request.tasks:
        raise ConfigError("--tasks has no use without --meta. Choose reptile, fomaml, maml or none.")
    if meta is not None:
        # Not text: what YAML makes of "meta: no", for example.
        check_algorithm(meta if isinstance(meta, str) else str(meta))
        if "adapt" not in method_class.capabilities:
            raise ConfigError(f'The method "{request.method}" cannot be meta-trained. Leave out --meta.')
    needed = {} if meta is None else method_class.meta_settings
    own: Any = request.model  # a section by now, as `call_settings` reads it
    model: Any = resolve(method_class.Config, preset["model"], needed, own, where="model")
    _check_needed(to_dict(model), needed, "--model")
    training = resolve(TrainConfig, preset["training"], request.training, flags, where="training")
    tasks = resolve(MetaConfig, request.tasks, where="tasks")
    others = {"meta": meta, "holdout": request.holdout, "class_split": request.class_split or "auto"}
    if request.out is None or not (Path(request.out) / "config.yaml").is_file():
        check_effects(
            {**others, **_by_name(model, training, tasks)},
            {
                **others,
                **_by_name(
                    resolve(method_class.Config, preset["model"], needed, where="model"),
                    resolve(TrainConfig, preset["training"], where="training"),
                    MetaConfig(),
                ),
            },
        )
    return model, training, tasks


def with_preset(
    request: TrainRequest, images: ImageSet, before: Mapping[str, Any]
) -> tuple[TrainRequest, str]:
    """Return the request with the preset that "auto" stands for, and why, if it is not the default.

    The preset that fits the images is left alone where settings that were given do not fit it.

    Args:
        request: what was asked for.
        images: to learn from.
        before: settings of the run that was started in the folder: it stays with its preset, whatever is
            installed today.
    """
    from fewgen.methods import get_method

    if request.preset != AUTO:
        return request, ""
    if before.get("preset"):
        return dataclasses.replace(request, preset=str(before["preset"])), ""
    name, why = get_method(request.method).usual_preset(images)
    chosen = dataclasses.replace(request, preset=name)
    if name != "default":
        try:
            configs(chosen)
        except ConfigError as error:
            why = f"{why} It does not fit the settings that were given, so preset default is used: {error}"
            chosen = dataclasses.replace(request, preset="default")
    return chosen, why


def _by_name(model: Any, training: TrainConfig, tasks: MetaConfig) -> dict[str, Any]:
    """Return sections by the names of their keywords, with the keywords for settings of the loop."""
    own = {key: getattr(training, key) for key in ("minutes", "clock", "checkpoint")}
    return {"model": model, "training": training, "tasks": tasks, **own}


def _flags(request: TrainRequest) -> dict[str, Any]:
    """Return the settings of the loop that have keywords of their own.

    Raises:
        ConfigError: one is given in both ways, with two values.
    """
    section = request.training or {}
    flags: dict[str, Any] = {"seed": request.seed}
    given = {key: getattr(request, key) for key in ("minutes", "clock", "checkpoint", "steps_scale")}
    flags |= {key: value for key, value in given.items() if value is not None}
    for key, value in flags.items():
        if key in section and section[key] != value:
            raise ConfigError(
                f"--training.{key} {section[key]} has no effect: --{key.replace('_', '-')} decides, which is "
                f"{value}. Give the latter alone."
            )
    if not request.progress:
        flags["progress"] = False
    return flags


def _check_needed(settings: Mapping[str, Any], needed: Mapping[str, Any], where: str) -> None:
    """Refuse settings of a method that meta-training cannot do with."""
    for key, value in needed.items():
        if isinstance(value, Mapping):
            _check_needed(settings[key], value, f"{where}.{key}")
        elif settings[key] != value:
            raise ConfigError(
                f"{where}.{key} is {settings[key]}, but --meta needs {value}. Leave out one of the two."
            )


def class_text(
    name: str,
    path: str | None,
    class_names: Sequence[str],
    phrases: Mapping[str, Any] | None,
    data_dir: str | os.PathLike[str] | None,
    before: str | None = None,
) -> tuple[ClassText, list[str]]:
    """Return the class vectors, and notes on what they can and cannot do.

    Args:
        name: of the encoder, or "auto".
        path: of the encoder.
        class_names: in label order.
        phrases: other words for classes.
        data_dir: folder of the named data sets.
        before: what "auto" chose when the run was started: it stays with that, whatever is at hand today.
    """
    from fewgen.text import ClassText, make_text_encoder

    def table(name: str, path: str | None) -> ClassText:
        """Return the table of the first encoder that knows every class: GloVe may have several files."""
        path = encoder_path(name, path, data_dir)
        problems = []
        if name == "glove":
            from fewgen.encoders.glove import GloveEncoder

            for encoder in GloveEncoder.of_each_file(path):
                try:
                    return ClassText.build(encoder, class_names, phrases)
                except TextError as error:
                    problems.append((error, encoder.file.name))
            (first, _), *others = problems
            tried = ", ".join(file for _, file in others)
            raise type(first)(f"{first} No better: {tried}." if others else str(first))
        return ClassText.build(
            make_text_encoder(name, path=path, vocabulary=class_names), class_names, phrases
        )

    if name != "auto":
        name, _, option = name.partition(":")
        if option and path is not None:
            raise ConfigError(f'text "{name}:{option}" names a path already. Leave out text_path.')
        found = table(name, option or path)
        notes = [] if found.has_meaning else ["onehot vectors carry no meaning: free texts cannot be drawn."]
        return found, notes
    if path is not None:
        raise ConfigError(
            "text_path needs text: say which encoder the path belongs to, such as --text glove."
        )
    reasons = []
    for candidate in ("glove", "minilm") if before is None else (before,):
        if candidate == "onehot":
            continue
        try:
            return table(candidate, None), [_OF_AN_EXTRA] if candidate == "minilm" else []
        except (TextError, MissingDependencyError) as error:
            if before is not None:
                raise type(error)(f"The run was started with the text encoder {before}. {error}") from None
            reasons.append(f"{candidate}: {str(error).splitlines()[0]}")
    if phrases:
        raise TextError("Phrases need vectors with meaning, but none are at hand. " + " ".join(reasons))
    note = (
        "no word vectors are at hand for these classes, so each gets a vector without meaning (onehot): "
        f"drawing by class works, free texts do not. {' '.join(reasons)}"
    )
    return table("onehot", None), [note.rstrip()]


def checked(request: TrainRequest) -> tuple[Prepared, bool]:
    """Return what a run needs, and whether it is finished already, once nothing can be refused any more.

    Writes nothing, so that a dry run refuses what the command refuses.
    """
    from fewgen.training.checkpoint import read_state
    from fewgen.training.run_state import compare_settings, settings_of

    out = Path(request.out)
    request.check_out()  # before anything slow: the folder is ours, or the command was wrong
    prepared = prepare(request)
    check_same_images(out, prepared)
    check_same_words(out, prepared)
    finished = is_finished(out, prepared.train_config.minutes)
    state = read_state(out / "state")
    if state is None and not finished:
        prepared.method.read_weights()
    if state is not None and "settings" in state.values:
        images = {"train": prepared.train, "held_out": prepared.held_out}
        before = state.values["settings"]
        now = settings_of(
            prepared.train_config, prepared.stages(), images, before.get("processes", 1), prepared.settings
        )
        compare_settings(before, now, out)
    return prepared, finished


_OF_AN_EXTRA = (
    "MiniLM, which is installed, reads the class names (text auto), as no GloVe file at hand knows them all; "
    "--text minilm makes sure of it."
)


def check_same_images(out: Path, prepared: Prepared) -> None:
    """Refuse to resume a run on other images; the trainer itself compares the settings."""
    if not (out / SPLIT_NAME).is_file() or not (out / "state").is_dir():
        return
    there = read_split(out)
    then, now = there.get("classes"), prepared.split["classes"]
    if then is not None and then != now:
        parts = [part for part in ("base", "val", "novel") if then.get(part) != now[part]]
        shown = "; ".join(f"{part}: {_names(then.get(part))}, now {_names(now[part])}" for part in parts)
        raise OutputError(
            f'"{out}" holds a run with another split of the classes ({shown}), which --meta, '
            "--class-split, --class-name and --seed decide. Nothing was changed. Repeat its command to "
            "resume it, or choose another --out."
        )
    if there["fingerprint"] != prepared.split["fingerprint"]:
        raise OutputError(
            f'"{out}" holds a run on other images (other data, shots, seed, classes or size). Nothing was '
            "changed. Repeat its command to resume it, or choose another --out."
        )


def check_same_words(out: Path, prepared: Prepared) -> None:
    """Refuse to resume a run with other vectors of its classes, wherever the text encoder lies."""
    from fewgen.methods.store import read_class_text

    table = prepared.method.spec.text
    if table is None or not (out / "state").is_dir() or not (out / "model.safetensors").is_file():
        return
    try:
        then = read_class_text(out)
    except CheckpointError:  # damaged: the training puts a good one in its place
        return
    # Another machine may round differently; other words, or another encoder, differ by much more.
    same = then is not None and then.vectors.shape == table.vectors.shape
    if then is None or not same or float((then.vectors - table.vectors).abs().max()) > 1e-3:
        raise OutputError(
            f'"{out}" holds a run with other vectors of its class names: the text encoder or its file has '
            "changed. Nothing was changed. Repeat its command to resume it, or choose another --out."
        )


def _names(classes: Any) -> str:
    names = [str(name) for name in classes or ()]
    return (", ".join(names[:5]) + (", ..." if len(names) > 5 else "")) or "none"
