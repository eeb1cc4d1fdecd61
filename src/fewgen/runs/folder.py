"""Checks of a run folder before anything is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fewgen.clock import shown_minutes
from fewgen.errors import CheckpointError, OutputError
from fewgen.tensor_files import check_tensor_file


def refuse_adapted(out: Path) -> None:
    """Refuse to train into the folder of an adapted run, which would overwrite its model.

    Such a folder has no training state, so nothing else would tell it from a new one.
    """
    from fewgen.methods.store import read_method_info

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
    """Tell whether a folder holds a finished run; refuse a damaged one, or one that was given another time.

    Another time would change nothing: a finished run is not trained further.

    Args:
        out: the run folder.
        minutes: limit on the training time that is asked for now.
    """
    from fewgen.methods.store import read_method_info

    if not (out / "state").is_dir() or not (out / "model.safetensors").is_file():
        return False
    extra = read_method_info(out).extra
    if not extra.get("training", {}).get("finished"):
        return False
    then = extra.get("minutes")
    if then != minutes:
        raise OutputError(
            f'The run "{out}" is finished with {shown_minutes(then)}, and this command asks for '
            f"{shown_minutes(minutes)}. "
            "A finished run is not trained further. Nothing was changed; choose a new --out."
        )
    check_tensor_file(out / "model.safetensors")
    return True
