"""Where the images and the words of a run come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPLIT_NAME = "split.json"


def read_phrases(phrases: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any] | None:
    """Return the phrases of classes as given, or from a YAML file, in which every value is text."""
    from fewgen.config import read_config

    return read_config(phrases, texts=True) if isinstance(phrases, (str, Path)) else phrases


def encoder_path(name: str, path: str | None, data_dir: str | os.PathLike[str] | None) -> str | None:
    """Return where a text encoder is; the folder `glove` of `data_dir` counts as FEWGEN_DATA_DIR does."""
    if name == "glove" and path is None and data_dir is not None and (Path(data_dir) / "glove").is_dir():
        return str(Path(data_dir) / "glove")
    return path
