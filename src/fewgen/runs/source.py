"""Where the images and the words of a run come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from fewgen.config.checks import Count, Positive, Weight, Whole
from fewgen.config.records import read_record

SPLIT_NAME = "split.json"


class _Training(TypedDict, total=False):
    minutes: Weight | None
    steps_scale: Positive | None
    clock: str | None


class RunSettings(TypedDict, total=False):
    """What readers of `config.yaml` rely on: how images were read, and what a card repeats."""

    method: str
    preset: str | None
    data: str | None
    class_names: list[str] | None
    seed: Whole | None
    phrases: dict[str, Any] | None
    model: dict[str, Any] | None
    training: _Training | None
    split: str
    size: Count | None
    channels: Count | None
    fit: str
    background: str
    convert: bool
    value_range: list[float] | None


class Groups(TypedDict, total=False):
    """Names of the classes of a run: learned from, to choose settings by, and never seen."""

    base: list[str]
    val: list[str]
    novel: list[str]


class Added(TypedDict):
    """Images of the classes that a run was adapted to: a file beside, and the numbers of its images."""

    file: str
    train: list[Whole]
    held_out: list[Whole]


class _Split(TypedDict):
    class_names: list[str]
    train: list[Whole]
    held_out: list[Whole]
    fingerprint: str


class Split(_Split, total=False):
    """What `split.json` says: which images of the source were learned from, which held out.

    Runs from before class splits lack `classes`, and learned from every class.
    """

    classes: Groups | None
    added: Added


def read_split(run: Path) -> Split:
    """Return what a run folder says of its images.

    Raises:
        DataError: the file is missing or damaged.
    """
    return read_record(run / SPLIT_NAME, Split, advice="So the images of the run are not known.")


def read_phrases(phrases: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any] | None:
    """Return the phrases of classes as given, or from a YAML file, in which every value is text."""
    from fewgen.config import read_config

    return read_config(phrases, texts=True) if isinstance(phrases, (str, Path)) else phrases


def encoder_path(name: str, path: str | None, data_dir: str | os.PathLike[str] | None) -> str | None:
    """Return where a text encoder is; the folder `glove` of `data_dir` counts as FEWGEN_DATA_DIR does."""
    if name == "glove" and path is None and data_dir is not None and (Path(data_dir) / "glove").is_dir():
        return str(Path(data_dir) / "glove")
    return path
