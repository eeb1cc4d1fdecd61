"""Write generated images: `.npz`, a folder with one subfolder per class, or one picture.

The suffix of the output decides. Nothing is overwritten unless asked: an existing file or a folder that
is not empty is an error, and a file is replaced in one step, so that a kill leaves the old or the new one.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fewgen.data.folder import class_to_folder
from fewgen.data.names import name_key
from fewgen.errors import OutputError
from fewgen.files import atomic_write, parse_json, prepare_output_file, write_json
from fewgen.folders import NEW, atomic_folder, contents
from fewgen.generation import pictures

if TYPE_CHECKING:
    from PIL.Image import Image

PROVENANCE_NAME = ".fewgen-images.json"
"""Hidden, because a loader of class folders refuses files beside them, and rightly so."""
GRID_COLUMNS = 16
MAX_NAME = 80
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


class Writable(Protocol):
    """What can be written: `GeneratedImages`, which knows this file and not the other way round."""

    images: Tensor
    seeds: Tensor
    provenance: dict[str, Any]
    codes: Tensor | None

    def named(self) -> tuple[Tensor, tuple[str, ...]]:
        """Return (labels, names): a name for every image."""


def output_kind(path: str | os.PathLike[str]) -> str:
    """Return "npz", "png" or "folder" for an output path.

    >>> output_kind("o.npz"), output_kind("grid.PNG"), output_kind("images")
    ('npz', 'png', 'folder')
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".npz":
        return "npz"
    if suffix == ".png":
        return "png"
    if suffix in (".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".zip", ".npy", ".pt"):
        raise OutputError(
            f'"{path}": images are not written as {suffix}. Use a name that ends in .npz (images with labels '
            "and seeds), .png (one picture), or none (a folder with a subfolder per class)."
        )
    return "folder"


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Return `path` if images can be written there; called before long work, so that it is not lost."""
    target = Path(path)
    if output_kind(target) == "folder":
        if target.is_dir() and contents(target):
            if not overwrite:
                raise OutputError(
                    f'The folder "{target}" is not empty and was left as it is. Choose another name, or add '
                    "--overwrite to replace the images that an earlier run wrote there."
                )
            if not (target / PROVENANCE_NAME).is_file():
                raise OutputError(
                    f'The folder "{target}" was not written by fewgen (no {PROVENANCE_NAME} in it), so '
                    "--overwrite does not touch it. Choose another name."
                )
            return target
        return NEW.prepare(target)
    if not overwrite and (target.exists() or target.is_symlink()):
        raise OutputError(
            f'"{target}" exists already and was left as it is. Choose another name, or add --overwrite.'
        )
    return prepare_output_file(target, overwrite=overwrite)


def write_images(generated: Writable, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write generated images to an `.npz`, a folder, or a `.png` grid, chosen by the suffix.

    Args:
        generated: what to write; free texts become classes of their own.
        path: the output.
        overwrite: whether an existing file, or the images of an earlier run in a folder, may be replaced.
    """
    target = check_output(path, overwrite)
    labels, names = generated.named()
    kind = output_kind(target)
    if kind == "npz":
        provenance, codes = generated.provenance, generated.codes
        write_npz(target, generated.images, labels, names, generated.seeds, provenance, codes)
    elif kind == "png":
        write_picture(
            target,
            pictures.class_grid(generated.images, labels, names, GRID_COLUMNS, whole=True),
            {**generated.provenance, "seeds": generated.seeds.tolist()},
        )
    elif target.is_dir() and contents(target):
        _write_folder(target, generated, labels, names)
    else:
        with atomic_folder(target) as folder:
            _write_folder(folder, generated, labels, names)
    return target


def write_npz(
    path: str | os.PathLike[str],
    images: Tensor,
    labels: Tensor,
    class_names: tuple[str, ...],
    seeds: Tensor | None = None,
    provenance: dict[str, Any] | None = None,
    codes: Tensor | None = None,
) -> None:
    """Write the `.npz` of the file contract: `images`, `labels`, `class_names`, `seeds`, and `provenance`.

    Images of a method with codes have a row of `codes` each, int64 (N, E).

    Images become uint8 (N, H, W) if grey and (N, H, W, 3) if in colour. The bytes depend on the content
    only (no time stamps), so that equal images give equal files.
    """
    array = images.cpu().permute(0, 2, 3, 1).numpy()
    parts: dict[str, np.ndarray] = {
        "images": array[..., 0] if array.shape[3] == 1 else array,
        "labels": labels.cpu().numpy().astype(np.int64),
        "class_names": np.array(class_names, dtype=np.str_),
    }
    if seeds is not None:
        parts["seeds"] = seeds.cpu().numpy().astype(np.int64)
    if codes is not None:
        parts["codes"] = codes.cpu().numpy().astype(np.int64)
    if provenance is not None:
        parts["provenance"] = np.array(json.dumps(provenance, sort_keys=True, default=str))
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in parts.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(value, order="C"), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, buffer.getvalue())


def write_picture(
    path: str | os.PathLike[str], picture: Image, provenance: dict[str, Any] | None = None
) -> None:
    """Write one PNG atomically, with its provenance in a text chunk."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if provenance is not None:
        info.add_itxt("fewgen", json.dumps(provenance, sort_keys=True, default=str))
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def folder_names(names: tuple[str, ...]) -> list[str]:
    """Return a folder name for each class: readable, allowed on every system, and no two alike.

    >>> folder_names(("T-shirt/top", "bag", "Bag"))
    ['T-shirt%2Ftop', 'bag', 'Bag-2']
    """
    used: set[str] = set()
    result = []
    for name in names:
        base = class_to_folder(" ".join(name.split()))[:MAX_NAME].rstrip(" .") or "text"
        if _RESERVED.fullmatch(base):
            base = f"_{base}"
        candidate, count = base, 1
        while name_key(candidate) in used:
            count += 1
            candidate = f"{base}-{count}"
        used.add(name_key(candidate))
        result.append(candidate)
    return result


def _write_folder(target: Path, generated: Writable, labels: Tensor, names: tuple[str, ...]) -> None:
    from PIL import Image as PillowImage

    folders = folder_names(names)
    places: dict[str, int] = {}
    cells = generated.images.cpu().permute(0, 2, 3, 1).numpy()
    for label in sorted(set(labels.tolist())):
        of_class = torch.nonzero(labels == label).flatten().tolist()
        seeds = generated.seeds[of_class].tolist()
        twice = len(set(seeds)) < len(seeds)
        for order, (index, seed) in enumerate(zip(of_class, seeds, strict=True)):
            stem = f"seed{seed:09d}-{order}" if twice else f"seed{seed:09d}"
            places[f"{folders[label]}/{stem}.png"] = index
    record = {
        **generated.provenance,
        "class_folders": {folders[label]: names[label] for label in sorted(set(labels.tolist()))},
        "files": list(places),
    }
    record = json.loads(json.dumps(record, default=str))
    earlier = [name for name in _earlier(target) if name not in places]
    if earlier:  # after a kill in the middle the same command knows which files are ours
        write_json(target / PROVENANCE_NAME, {**record, "files": [*places, *earlier]})
    for name, index in places.items():
        with atomic_write(target / name) as temporary:
            cell = cells[index]
            PillowImage.fromarray(cell[..., 0] if cell.shape[2] == 1 else cell).save(temporary, "PNG")
    _remove(target, earlier)
    write_json(target / PROVENANCE_NAME, record)


def _earlier(target: Path) -> list[str]:
    """Return the files that an earlier run wrote into a folder, as its record lists them."""
    try:
        names = parse_json((target / PROVENANCE_NAME).read_bytes()).get("files", [])
    except (OSError, ValueError, AttributeError):
        return []
    fits = re.compile(r"[^/\\]+/seed[-\d]+\.png").fullmatch
    return [name for name in names if isinstance(name, str) and fits(name)] if isinstance(names, list) else []


def _remove(target: Path, names: list[str]) -> None:
    """Delete files of `_earlier`, and class folders that are empty then."""
    root = target.resolve()
    for name in names:
        path = (target / name).resolve()
        if path.parent.parent == root and path.is_file():
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
