"""What distillation keeps on disk: students, images, and the settings that its parts were made with."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypedDict

from torch import Tensor

from fewgen.config.records import read_record
from fewgen.config.schema import with_current_names
from fewgen.data.imageset import ImageSet
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.distillation.students import Student, make_student
from fewgen.errors import ConfigError, DataError, OutputError
from fewgen.files import make_dir, read_json, write_json
from fewgen.folders import NEW, contents
from fewgen.nn.building import shapes_of
from fewgen.tensor_files import TensorFile, write_tensors

_WANTED = "Name a student.safetensors written by fewgen distill."
_FILE = TensorFile(
    format="fewgen-student",
    version=1,
    about="about",
    wanted=_WANTED,
    foreign=f"a student. {_WANTED}",
    outdated="student format {version}, but this fewgen reads 1. Update fewgen.",
    damaged='The student "{path}" does not fit: {reason}',
)
SETTINGS_NAME = "settings.json"
_FOLDER_FORMAT = "fewgen-distill-parts"


def save_student(
    student: Student, path: str | os.PathLike[str], class_names: Sequence[str] = (), **about: Any
) -> None:
    """Write a student as one safetensors file, atomically; equal students give equal bytes.

    Args:
        student: any.
        path: the file.
        class_names: one for each output.
        about: JSON values to keep beside it.

    Raises:
        OutputError: it cannot be written; an older file stays as it was.
    """
    text = json.dumps(
        {"student": student.about(), "class_names": list(class_names), **about},
        ensure_ascii=False,
        sort_keys=True,
    )
    write_tensors(path, student.state_dict(), _FILE.metadata(text))


def load_student(path: str | os.PathLike[str]) -> tuple[Student, tuple[str, ...]]:
    """Return a saved student in evaluation form, and its class names.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    found, tensors = _FILE.read(path)
    with _FILE.fits(path):
        student = network_for(found["student"], tensors)
        student.load_state_dict(tensors)
        names = tuple(str(name) for name in found["class_names"])
    return student.eval(), names


def network_for(about: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = "") -> Student:
    """Return the network that `Student.about` describes, after checking that it is the one of the tensors.

    What is described is first built without memory, so that a file of a few bytes cannot ask for gigabytes.

    Args:
        about: of `Student.about`.
        tensors: its weights by name.
        prefix: of the names.

    Raises:
        ValueError: other tensors than the network has.
        ConfigError, ShapeError, LookupError, TypeError: descriptions that make no sense.
    """
    channels, height, width = about["image_shape"]

    def build() -> Student:
        return make_student(
            about["name"], (channels, height, width), about["n_classes"], channels=about["channels"]
        )

    wanted = {prefix + name: shape for name, shape in shapes_of(build, len(tensors)).items()}
    there = {name: tuple(value.shape) for name, value in tensors.items() if name.startswith(prefix)}
    if there != wanted:
        name = min(name for name in {**there, **wanted} if there.get(name) != wanted.get(name))
        raise ValueError(f"{name} has the shape {there.get(name)}, and {wanted.get(name)} is needed")
    return build()


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return "key: old, now new" for each setting that differs; of nested settings the inner ones."""
    found = []
    for key in sorted({*there, *now}):
        old, new = there.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{key}.{line}" for line in differences(old, new)]
        elif old != new:
            found.append(f"{key}: {_short(old)}, now {_short(new)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


class _Needed(TypedDict):
    format: Literal["fewgen-distill-parts"]
    settings: dict[str, Any]


class _Parts(_Needed, total=False):
    names: dict[str, str]


class _Kept(TypedDict):
    class_names: list[str]
    about: dict[str, Any]


def check_parts(
    folder: Path, settings: Mapping[str, Any], names: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse a folder of parts that is not ours, or was made with other settings; creates nothing.

    Args:
        folder: of the parts.
        settings: that they are to be made with.
        names: of settings that are hashes, for the message.

    Raises:
        OutputError: a file or a foreign folder.
        ConfigError: names every setting that differs.
    """
    if folder.is_file():
        raise OutputError(f'"{folder}" is a file, but a folder is needed. Choose another --out.')
    file = folder / SETTINGS_NAME
    if not file.is_file():
        if folder.is_dir() and contents(folder):
            raise OutputError(
                f'The folder "{folder}" is not empty and holds no distillation of ours. Nothing was changed. '
                "Choose another --out."
            )
        return
    advice = "It was not written by fewgen distill. Choose another --out."
    kept = read_record(file, _Parts, OutputError, advice)
    there, now = dict(kept["settings"]), _plain(settings)
    if isinstance(there.get("tint"), dict):  # of any release, by the names of today
        there["tint"] = with_current_names(SpecialiseConfig, there["tint"], warn=False)
    for key, name in names.items():
        before = kept.get("names", {}).get(key, name)
        if before != name and there.get(key) != now.get(key):
            there[key], now[key] = before, name
    different = differences(there, now)
    if different:
        raise ConfigError(
            f'"{folder}" holds parts that were made with other settings ({"; ".join(different[:8])}). '
            "Nothing was changed. Repeat that command to resume it, or choose another --out."
        )


def holds_parts(folder: Path) -> bool:
    """Tell whether a folder holds parts of ours, whatever they were made with."""
    try:
        record = read_json(folder / SETTINGS_NAME)
    except DataError:
        return False
    return isinstance(record, dict) and record.get("format") == _FOLDER_FORMAT


def open_parts(
    folder: Path, settings: Mapping[str, Any], names: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Return the folder of parts, which names their settings from its first second on; see `check_parts`.

    Raises:
        OutputError, ConfigError: as `check_parts`.
    """
    check_parts(folder, settings, names)
    if not (folder / SETTINGS_NAME).is_file():
        NEW.prepare(folder)
        record = {"format": _FOLDER_FORMAT, "settings": _plain(settings), "names": dict(names)}
        write_json(folder / SETTINGS_NAME, record)
    return folder


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings), allow_nan=False))
    return plain


def kept_images(
    file: Path, make: Callable[[], tuple[ImageSet, dict[str, Any]]]
) -> tuple[ImageSet, dict[str, Any]]:
    """Return images and what is known of them from a file, or make them and keep them there.

    Args:
        file: ends in .npz; what is known lies beside it as .images.json, written last.
        make: called where one of them is missing or damaged.
    """
    from fewgen.data.npz import load_npz, save_npz

    beside = file.with_suffix(".images.json")
    if file.is_file() and beside.is_file():
        with contextlib.suppress(DataError):
            kept = read_record(beside, _Kept)
            loaded = load_npz(file)
            names = tuple(kept["class_names"])
            return ImageSet(loaded.images, loaded.labels, names, name=file.stem), kept["about"]
    images, about = make()
    make_dir(file.parent)
    beside.unlink(missing_ok=True)
    save_npz(file, images.images, images.labels, images.class_names)
    write_json(beside, {"class_names": list(images.class_names), "n": len(images), "about": about})
    return images, about
