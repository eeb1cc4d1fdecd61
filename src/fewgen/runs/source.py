"""Where the images and the words of a run come from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewgen.errors import ConfigError, ProblemList, TextError, suggest

SPLIT_NAME = "split.json"


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


def encoder_path(name: str, path: str | None, data_dir: str | os.PathLike[str] | None) -> str | None:
    """Return where a text encoder is; the folder `glove` of `data_dir` counts as FEWGEN_DATA_DIR does."""
    if name == "glove" and path is None and data_dir is not None and (Path(data_dir) / "glove").is_dir():
        return str(Path(data_dir) / "glove")
    return path
