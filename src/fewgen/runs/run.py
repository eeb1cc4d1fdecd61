"""A trained run: a folder of `train`, or a model file on its own."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.surroundings import own_surroundings
from fewgen.data.identity import fingerprint
from fewgen.errors import ConfigError, DataError, suggest
from fewgen.runs.source import SPLIT_NAME, Added, RunSettings, Split, read_split
from fewgen.runs.verbs import Verbs

if TYPE_CHECKING:
    from fewgen.clock import Limit
    from fewgen.data import ImageSet
    from fewgen.data.registry import Reading
    from fewgen.methods.base import Method
    from fewgen.methods.store import ModelInfo

CONFIG_NAME = "config.yaml"
MODEL_NAME = "model.safetensors"


class Run(Verbs):
    """A run folder or a model file: what was trained, and how to use it.

    Attributes:
        path: the run folder, or the model file.
        notes: what a reader of the results should know (for example that words carry no meaning).
        result: what the trainer returned, for a run that was trained in this process.
        limit: of the command that trained it in this process, or None.
        was_finished: whether `train` found the run finished and trained nothing.
        is_main: False in the helper processes of a training on several devices, which report nothing.
    """

    def __init__(self, path: str | Path, device: str = "auto", notes: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self.device = device
        self.notes = list(notes)
        self.result: Any = None
        self.was_finished = False
        self.limit: Limit | None = None
        self.is_main = True

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.info.method}, {len(self.class_names)} classes)"

    @property
    def model_path(self) -> Path:
        """The model file, which is enough to generate."""
        return self.path / MODEL_NAME if self.path.is_dir() else self.path

    @functools.cached_property
    def info(self) -> ModelInfo:
        """What the model file says about itself; read without building the model."""
        from fewgen.methods.store import read_method_info

        return read_method_info(self.path)

    @functools.cached_property
    def method(self) -> Method:
        """The trained method, loaded at the first use."""
        from fewgen.methods.store import load_method

        with own_surroundings():
            return load_method(self.path, device=_device(self.device))

    def hand_on(self, method: Method) -> None:
        """Use a method that was just trained and saved as this run, instead of reading it from the file."""
        method.zero_grad(set_to_none=True)
        self.__dict__["method"] = method.eval().to(_device(self.device))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes it can draw."""
        return tuple(self.info.spec["class_names"])

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The settings of the run (config.yaml); empty for a model file on its own."""
        from fewgen.config import read_config
        from fewgen.config.call import current_names
        from fewgen.config.records import checked

        path = self.path / CONFIG_NAME
        if not path.is_file():
            return {}
        shape: Any = RunSettings
        found: dict[str, Any] = checked(current_names(read_config(path)), shape, f'"{path}"', ConfigError)
        return found

    def images(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        download: bool = False,
        source: str | Path | ImageSet | None = None,
        load: Callable[[Reading, str | Path], ImageSet] | None = None,
    ) -> tuple[ImageSet, ImageSet | None]:
        """Return the training images and the held-out images of the run, read again from their source.

        Args:
            data_dir: folder of the named data sets; None for the usual one.
            download: whether a missing data set may be fetched.
            source: where the images are now, or the images; None for where they were.
            load: reads the source, such as a function that keeps what it has read; None for `Reading.load`.

        Raises:
            DataError: the source is gone, or its images are not those of the training.
        """
        images, split, where = self._source(data_dir, download, source, load)
        chosen, train = _learned_from(self, images, split, where)
        with _faults(self, where):
            held_out = chosen.subset(split["held_out"])
        if "added" in split:
            train, held_out = _with_added(self, split["added"], train, held_out)
        return train, held_out if len(held_out) else None

    def other_images(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        download: bool = False,
        source: str | Path | ImageSet | None = None,
        with_base: bool = False,
    ) -> dict[str, ImageSet]:
        """Return the images of the classes that were not learned from, read again from the run's source.

        Args:
            data_dir: folder of the named data sets; None for the usual one.
            download: whether a missing data set may be fetched.
            source: where the images are now, or the images; None for where they were.
            with_base: also return all images of the classes that were learned from, whichever of them were.

        Returns:
            "val" and "novel" (and "base") -> images; without an entry where a run has no such classes.

        Raises:
            DataError: the source is gone, or its images are not those of the training.
        """
        images, split, where = self._source(data_dir, download, source)
        _learned_from(self, images, split, where)
        names = _class_groups(self, split)
        wanted = (*(("base",) if with_base else ()), "val", "novel")
        return {group: images.select_classes(names[group]) for group in wanted if names[group]}

    def class_groups(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the "base", "val" and "novel" classes of the run, which may be none.

        Raises:
            DataError: the run does not say which images it was trained on.
        """
        return _class_groups(self, self._split())

    def _split(self) -> Split:
        if not self.config or not (self.path / SPLIT_NAME).is_file():
            raise DataError(f'"{self.path}" does not say which images it was trained on.')
        return read_split(self.path)

    def reading(self, data_dir: str | os.PathLike[str] | None = None, download: bool = False) -> Reading:
        """Return how the images of the run were read from their source."""
        from fewgen.config.call import build
        from fewgen.data.registry import Reading

        return build(Reading, self.config | {"data_dir": data_dir, "download": download})

    def _source(
        self,
        data_dir: str | os.PathLike[str] | None,
        download: bool,
        source: str | Path | ImageSet | None,
        load: Callable[[Reading, str | Path], ImageSet] | None = None,
    ) -> tuple[ImageSet, Split, str]:
        """Return all images of the source, split.json, and what to call the source."""
        from fewgen.data.imageset import ImageSet
        from fewgen.data.registry import Reading

        split = self._split()
        source = self.config.get("data") if source is None else source
        if not source:
            raise DataError(f'"{self.path}" was trained on images given in Python, which it does not keep.')
        if isinstance(source, ImageSet):
            return source, split, source.name or "the images given"
        images = (load or Reading.load)(self.reading(data_dir, download), source)
        return images, split, str(source)


def _learned_from(run: Run, images: ImageSet, split: Split, where: str) -> tuple[ImageSet, ImageSet]:
    """Return the images of the run's classes, and those it learned from, which are checked."""
    with _faults(run, where):
        chosen = images.select_classes(split["class_names"])
        train, fingerprint_then = chosen.subset(split["train"]), split["fingerprint"]
    if fingerprint(train) != fingerprint_then:
        raise DataError(f'The images in "{where}" are not those that "{run.path}" was trained on.')
    return chosen, train


def _class_groups(run: Run, split: Split) -> dict[str, tuple[str, ...]]:
    groups: Mapping[str, Any] = split.get("classes") or {}
    base = tuple(groups.get("base") or split["class_names"])
    known = set(run.class_names)  # `adapt` may have taught it some of the others
    val, novel = (tuple(n for n in groups.get(key, ()) if n not in known) for key in ("val", "novel"))
    return {"base": base, "val": val, "novel": novel}


@contextlib.contextmanager
def _faults(run: Run, where: str) -> Iterator[None]:
    """Say in words what is wrong with the images in `where`."""
    try:
        yield
    except IndexError:
        raise DataError(f'"{where}" has fewer images now than when "{run.path}" was trained.') from None


def _with_added(run: Run, added: Added, train: ImageSet, held_out: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return the images of a run with those of the classes it was adapted to, which lie in its folder."""
    import torch

    from fewgen.data import ImageSet
    from fewgen.data.npz import load_npz

    def joined(old: ImageSet, new: ImageSet) -> ImageSet:
        pixels, labels = torch.cat([old.images, new.images]), torch.cat([old.labels, new.labels])
        return ImageSet(pixels, labels, run.class_names, name=old.name)

    file = run.path / Path(added["file"]).name  # never one of another folder
    images = load_npz(file)
    if images.class_names != run.class_names or train.class_names != run.class_names[: train.n_classes]:
        raise DataError(f'The classes of "{file}" are not those of "{run.path}".')
    with _faults(run, str(file)):
        return (
            joined(train, images.subset(added["train"])),
            joined(held_out, images.subset(added["held_out"])),
        )


def load_run(run: str | Path | Run, device: str = "auto") -> Run:
    """Return a run folder or model file, checked and ready to generate.

    Args:
        run: a run folder of `train`, or a `model.safetensors`.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
    """
    if isinstance(run, Run):
        return run
    path = Path(run).expanduser()
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(
            f'There is no run "{run}".{suggest(path.name, siblings)} Train one: fewgen train --help'
        )
    loaded = Run(path, device)
    _ = loaded.info  # a missing or damaged model file is better known now than after long work
    return loaded


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f'Unknown device "{name}". Choose auto, cpu or cuda.') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU. Choose auto or cpu; see fewgen doctor.")
    return device
