"""Where the images and the words of a run come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.errors import (
    ConfigError,
    ProblemList,
    TextError,
    suggest,
)

if TYPE_CHECKING:
    from fewgen.data import ImageSet


SPLIT_NAME = "split.json"


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
        background=settings.get("background", "error"),
        convert=settings.get("convert", False),
        data_dir=data_dir,
        download=download,
        min_classes=min_classes,
    )
    return images


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


def glove_path(path: str | None, data_dir: str | Path | None) -> str | None:
    """Return where GloVe is; the folder `glove` of `data_dir` counts as FEWGEN_DATA_DIR does."""
    if path is None and data_dir is not None and (Path(data_dir) / "glove").is_dir():
        return str(Path(data_dir) / "glove")
    return path
