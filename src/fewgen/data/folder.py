"""Images from a folder with one subfolder per class.

A folder is checked as a whole: every file that cannot be used is named in one error, with what to do.
Nothing is repaired silently. Where a repair is possible (a background for transparent images, 8 bits for
16, RGB for CMYK), it has an option that the user sets.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from fewgen.data.colour import said_colours, to_srgb, unusable_profiles
from fewgen.data.counts import Shots, few_classes
from fewgen.data.imageset import ImageSet
from fewgen.data.kinds import HEAD_BYTES, foreign_kind, is_text, kind_of
from fewgen.data.names import check_class_names, unprintable
from fewgen.data.origin import Origin, jpeg_quality
from fewgen.data.transforms import Form, fit_image, from_pillow, parallel_map, to_pillow
from fewgen.data.value_range import flag, note_bytes, note_cut, shown, to_bytes, uses_little
from fewgen.errors import DataError, ProblemList
from fewgen.files import atomic_write
from fewgen.folders import atomic_folder

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 10**6
"""Larger images are refused before they are unpacked: a small file can unpack to many gigabytes."""

_IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}
_SPLIT_NAMES = {"train": ("train",), "test": ("test", "val", "validation")}
_NOT_IN_FILE_NAMES = re.compile(r'[/\\:*?"<>|%\x00-\x1f]|^\.|[. ]$')
_ENCODED = re.compile(r"%([0-9A-F]{2})")


class _Problem(Exception):
    """What is wrong with one file; becomes a line of the one error about the folder."""


def class_to_folder(name: str) -> str:
    """Return a folder name for a class, with characters that file systems refuse as %XX.

    >>> class_to_folder("T-shirt/top")
    'T-shirt%2Ftop'
    """
    return _NOT_IN_FILE_NAMES.sub(lambda match: f"%{ord(match.group()):02X}", name)


def folder_to_class(name: str) -> str:
    """Return the class that a folder stands for, the inverse of `class_to_folder`.

    >>> folder_to_class("T-shirt%2Ftop"), folder_to_class("100% wool")
    ('T-shirt/top', '100% wool')
    """

    def decode(match: re.Match[str]) -> str:
        character = chr(int(match.group(1), 16))
        return character if _NOT_IN_FILE_NAMES.search(character) else match.group()

    return _ENCODED.sub(decode, name)


def _visible(folder: Path) -> list[Path]:
    """Return the entries of a folder in a fixed order, without hidden files and those of desktops."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f'The folder "{folder}" cannot be read: {error.strerror or error}.') from error
    return [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _IGNORED]


def _find_split(root: Path, split: str) -> Path:
    """Return the part of `root` that holds a split; `root` itself if it has no parts."""
    names = {entry.name.lower(): entry for entry in _visible(root) if entry.is_dir()}
    known = {name for group in _SPLIT_NAMES.values() for name in group}
    # Only when nothing else is there, so that classes called "train" and "bus" stay classes.
    parts = (
        names and set(names) <= known and all(any(c.is_dir() for c in _visible(p)) for p in names.values())
    )
    if parts:
        for name in _SPLIT_NAMES[split]:
            if name in names:
                return names[name]
    if parts or split != "train":
        raise DataError(
            f'The folder "{root}" has no {split} part. Put the images into "{root / split}", with one '
            "subfolder per class, or name another folder."
        )
    return root


_PLAIN = ("1", "L", "P", "RGB")
"""Modes of files that are read as they are."""

_TOPS = {"8-bit": 255, "16-bit": 65535, "float": 0}
"""Kinds of values -> the largest."""


@dataclass(frozen=True)
class _Decoded:
    array: np.ndarray[Any, Any]  # uint8 (C, H, W)
    origin: Origin
    usable: bool  # whether what the file says of its colours could be used
    values: str  # what its values are: a key of _TOPS
    low: float
    high: float


def _is_16_bit(image: Image.Image, data: bytes) -> bool:
    """Tell whether the file stores more than 8 bits per channel, which Pillow partly hides."""
    if image.mode.startswith("I") or image.mode == "F":
        return True
    if image.format == "PNG":
        return len(data) > 24 and data[24] == 16
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, ())  # type: ignore[attr-defined]
        return max(bits if isinstance(bits, tuple) else (bits,), default=8) > 8
    return False


_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def _deep_colours(upper: Image.Image, data: bytes) -> np.ndarray[Any, Any] | None:
    """Return the values, uint16 (H, W, bands), of a file of 16-bit RGB or RGBA; None for another form.

    Pillow keeps the upper byte of each number. Told that bytes stand in the other order, it keeps the lower.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        tiles: list[Any] = []
        for codec, extents, offset, given in image.tile:
            words = given if isinstance(given, tuple) else (given,)
            form = re.fullmatch(r"(RGBA?;16)([BLN])", str(words[0]))
            if form is None:
                return None
            words = (form[1] + _OTHER_ORDER[form[2]], *words[1:])
            tiles.append((codec, extents, offset, words if isinstance(given, tuple) else words[0]))
        image.tile = tiles
        image.load()
        lower = np.asarray(ImageOps.exif_transpose(image))
    high = np.asarray(upper)
    return (high.astype(np.uint16) << 8) + lower if high.shape == lower.shape else None


def _reduce_16_bit(image: Image.Image) -> Image.Image:
    """Return a grey 8-bit image of the same appearance."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _Problem("has values outside of 16 bits, whose meaning is unknown; save it as 8-bit PNG")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _on_background(image: Image.Image, background: str) -> Image.Image:
    """Return the image without transparency, on the background that the user chose."""
    image = image.convert("RGBA")
    low = image.getchannel("A").getextrema()[0]
    if isinstance(low, (int, float)) and low == 255:
        return image.convert("RGB")  # nothing is transparent, so nothing is lost
    if background == "error":
        raise _Problem(
            "is transparent; save it on a background, or choose one: white or black (--background white)"
        )
    paper = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(paper, image).convert("RGB")


def _is_grey(image: Image.Image) -> bool:
    array = np.asarray(image)
    return bool((array[..., 0] == array[..., 1]).all() and (array[..., 1] == array[..., 2]).all())


_DEEP = "has 16 bits per channel; save it with 8, or set convert (--convert) or value_range (--value-range)"


def _from_deep(image: Image.Image, form: Form, data: bytes) -> tuple[Image.Image, str, float, float]:
    """Return an image of more than 8 bits with 8, what its values are, and the lowest and highest.

    Args:
        image: as Pillow reads it.
        form: what it is made into.
        data: the bytes of its file.

    Without a range the user must allow it; whether it would darken is seen over the whole set.
    """
    given = form.value_range
    if image.mode != "F" and not image.mode.startswith("I"):
        if given is None and not form.convert:
            raise _Problem(_DEEP)
        whole, upper = _deep_colours(image, data), np.asarray(image)
        if whole is None and given is not None:
            raise _Problem(
                "has 16 bits per channel in a form of which only the upper 8 can be read; save it as 16-bit "
                "grey or RGB, or with 8 bits, spread over their range"
            )
        colours = 257.0 * upper if whole is None else whole[..., :3]
        low, high = float(colours.min()), float(colours.max())
        if given is not None:
            image = Image.fromarray(np.concatenate((to_bytes(colours, given), upper[..., 3:]), -1))
        return image, "16-bit", low, high
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    kind = "float" if image.mode == "F" else "16-bit"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise _Problem("has values that are NaN or infinite; replace them")
    if given is not None:
        return Image.fromarray(to_bytes(values, given)), kind, low, high
    if kind == "float":
        raise _Problem(
            "has floating-point values, whose range is unknown; save it as 8-bit PNG, or say which are black "
            f"and white (such as {flag(low, high)})"
        )
    if not form.convert:
        raise _Problem(_DEEP)
    return _reduce_16_bit(image), kind, low, high


def _to_l_or_rgb(image: Image.Image, form: Form) -> Image.Image:
    """Return an image of 8 bits in mode L or RGB, or say why that would lose something."""
    mode = image.mode
    if mode in ("CMYK", "LAB", "HSV"):
        if not form.convert or mode != "CMYK":
            also = ", or set convert (--convert)" if mode == "CMYK" else ""
            raise _Problem(f"is in the colour space {mode}; save it as RGB{also}")
        return image.convert("RGB")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        grey = mode in ("L", "LA", "La", "1")
        image = _on_background(image, form.background)
        return image.convert("L") if grey or (mode in ("P", "PA") and _is_grey(image)) else image
    if mode == "1":
        return image.convert("L")
    if mode == "P":
        # What the pixels use decides, not the rest of the palette.
        image = image.convert("RGB")
        return image.convert("L") if _is_grey(image) else image
    if mode == "YCbCr":
        return image.convert("RGB")
    if mode not in ("L", "RGB"):
        raise _Problem(f"has the unknown pixel form {mode}; save it as RGB or grey PNG")
    return image


_TEXT = "is a text and not an image; captions and lists are not read, so move it out of the folder"


def _what_instead(data: bytes) -> str:
    """Return what a file is that is no image, and what to do; what may be someone's work is not deleted."""
    kind = foreign_kind(data[:HEAD_BYTES], len(data))
    if kind:
        return kind
    if is_text(data[:HEAD_BYTES]):
        return _TEXT
    known = ", ".join(name.lower() for name in FORMATS)
    return (
        f"is not an image, or is damaged (known formats: {known}); replace it, or move it out of the folder"
    )


def _decode(path: Path, form: Form) -> _Decoded:
    """Read one file; raises `_Problem` with what is wrong and what to do."""
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_FILE_BYTES:
            raise _Problem(f"has {n_bytes} bytes, more than {MAX_FILE_BYTES}; reduce it")
        if n_bytes == 0:
            raise _Problem("is empty; replace it, or move it out of the folder")
        data = path.read_bytes()
    except OSError as error:
        raise _Problem(f"cannot be read ({error.strerror or error})") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # A photo with a preview or a depth map beside it (MPO) is one photo, not an animation.
            n_frames = getattr(image, "n_frames", 1)
            if n_frames > 1 and image.format != "MPO":
                raise _Problem(f"is animated or has several pages ({n_frames}); save one of them")
            if image.size[0] * image.size[1] > MAX_PIXELS:
                raise _Problem(
                    f"has {image.size[0]}x{image.size[1]} pixels, more than {MAX_PIXELS}; reduce it"
                )
            if image.format == "PNG":
                # Loading alone does not notice damage after the last pixel, nor a wrong checksum.
                with Image.open(io.BytesIO(data), formats=("PNG",)) as check:
                    check.verify()
            image.load()
            deep = _is_16_bit(image, data)  # asked of the file; a turned copy does not know its format
            upright, usable = ImageOps.exif_transpose(image), True
            kind, low, high = "8-bit", 0.0, 255.0
            if deep:
                upright, kind, low, high = _from_deep(upright, form, data)
            said = said_colours(image, data)
            converted = deep or bool(said) or form.value_range is not None or image.mode not in _PLAIN
            file, quality = str(image.format), jpeg_quality(image)
            if upright.mode == "CMYK" and form.convert and said:
                upright, usable = to_srgb(upright, said)
                said = {}
            plain = _to_l_or_rgb(upright, form)
            if kind == "8-bit":
                bands = np.ravel(plain.getextrema())
                low, high = float(bands.min()), float(bands.max())
                if form.value_range is not None:
                    plain = Image.fromarray(to_bytes(np.asarray(plain), form.value_range))
            if said and form.value_range is None:  # a range is of measured numbers, which have no colours
                plain, usable = to_srgb(plain, said)
    except _Problem:
        raise
    except Image.DecompressionBombError:
        raise _Problem(f"has far more than {MAX_PIXELS} pixels; reduce it") from None
    except UnidentifiedImageError:
        raise _Problem(_what_instead(data)) from None
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise _Problem(
            f"is damaged or truncated ({error}); replace it, or move it out of the folder"
        ) from error
    width, height = plain.size
    if form.channels is not None:
        wanted = "L" if form.channels == 1 else "RGB"
        converted |= plain.mode != wanted
        plain = plain.convert(wanted)
    origin = Origin("JPEG" if file == "MPO" else file, height, width, quality, converted)
    if form.size is not None:
        plain = fit_image(plain, form.size, form.fit)
    return _Decoded(from_pillow(plain), origin, usable, kind, low, high)


def read_image(path: Path, form: Form) -> np.ndarray[Any, Any]:
    """Return one image file as uint8 (C, H, W).

    Raises:
        DataError: it cannot be used; says why and what to do.
    """
    try:
        decoded = _decode(path, form)
    except _Problem as problem:
        raise DataError(f'"{path}" {problem}.') from None
    problems = ProblemList(f'"{path}" cannot be used')
    _check_values([(path, decoded)], path.parent, problems, form)
    problems.raise_if_any()
    unusable_profiles([] if decoded.usable else [path.name])
    return decoded.array


def _entries(folder: Path, root: Path, problems: ProblemList) -> list[Path]:
    """Return what is in a folder below `root`, but for links that leave `root`: those are problems."""
    real_root = Path(os.path.realpath(root))
    entries = []
    for entry in _visible(folder):
        if unprintable(entry.name) and not entry.is_dir():
            problems.add(
                f"the name {str(entry.relative_to(root))!r} has control characters, such as a line break, or "
                "is not UTF-8 text; rename it"
            )
        elif Path(os.path.realpath(entry)).is_relative_to(real_root):
            entries.append(entry)
        else:
            problems.add(
                f'"{entry.relative_to(root)}" is a link that leads out of the folder; copy what it points to'
            )
    return entries


def _image_files(folder: Path, root: Path, problems: ProblemList, no_folder: str) -> list[Path]:
    """Return the files in a folder below `root`; what else is in it is a problem."""
    files = []
    for entry in _entries(folder, root, problems):
        if entry.is_dir():
            problems.add(f'"{entry.relative_to(root)}" {no_folder}')
        elif not entry.is_file():
            problems.add(f'"{entry.relative_to(root)}" is not an ordinary file; move it away')
        else:
            files.append(entry)
    return files


def _collect(root: Path, problems: ProblemList, min_classes: int) -> tuple[list[str], list[Path], list[int]]:
    """Return class names, files and labels below `root`; problems of names and places are added."""
    class_names: list[str] = []
    folders: list[str] = []
    files: list[Path] = []
    labels: list[int] = []
    loose: list[Path] = []
    for entry in _entries(root, root, problems):
        if not entry.is_dir():
            if kind := _no_image(entry):
                problems.add(f'"{entry.name}" {kind}')
            else:
                loose.append(entry)
            continue
        class_names.append(folder_to_class(entry.name))
        folders.append(entry.name)
        inside = _image_files(
            entry, root, problems, "is a folder inside a class; move its images one folder up"
        )
        if not inside:
            problems.add(f'the class folder "{entry.name}" has no images; add some, or delete it')
        files += inside
        labels += [len(class_names) - 1] * len(inside)
    check_class_names(class_names, problems, folders)
    if loose or not class_names:
        problems.add(_without_class(root, loose, bool(class_names), min_classes))
    return class_names, files, labels


def _no_image(file: Path) -> str:
    """Return what a file is that cannot be an image, and what to do; "" if it may be one."""
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return ""
    return kind_of(file) or (_TEXT if is_text(head) else "")


def _without_class(root: Path, files: list[Path], others: bool, min_classes: int) -> str:
    """Return what to do with images that lie in a folder of classes and in no class.

    Args:
        root: the folder.
        files: the images.
        others: whether there are folders of classes.
        min_classes: that are needed.
    """
    if not files:
        return "there is no class folder; make one subfolder per class, named as the class, with its images"
    which = (
        f'"{files[0].name}" is' if len(files) == 1 else f'{len(files)} images, such as "{files[0].name}", are'
    )
    if others:
        return f"{which} in no folder of a class; move each into that of its class, or out of this folder"
    endings = sorted({file.suffix for file in files})
    place = shlex.quote(str(root))
    moved = " ".join(f"{place}/*{ending}" for ending in (endings if len(endings) <= 4 else ["*.*"]))
    command = f"mkdir {place}/NAME && mv {moved} {place}/NAME/"
    if min_classes < 2:
        return f"{which} in no class folder; this makes them one class: {command}"
    return (
        f"{which} in no class folder, and {min_classes} classes are needed; make a subfolder for each class "
        f"and move its images there; for images of a single class: {command}"
    )


def _checked_root(path: str | os.PathLike[str]) -> Path:
    root = Path(path)
    if not root.is_dir():
        raise DataError(
            f'The folder "{root}" does not exist.' if not root.exists() else f'"{root}" is not a folder.'
        )
    return root


def _read(
    files: list[Path],
    root: Path,
    problems: ProblemList,
    form: Form,
    check: Callable[[list[int]], None] | None = None,
) -> tuple[torch.Tensor, tuple[Origin, ...]]:
    """Return the images of all files, uint8 (N, C, H, W), and what they were; or raise all problems.

    Args:
        files: below `root`.
        root: the folder.
        problems: those that are known; more are added.
        form: of the images.
        check: is given the indices of the files that can be read, to add problems of its own.
    """

    def decode(file: Path) -> _Decoded | _Problem:
        try:
            return _decode(file, form)
        except _Problem as problem:
            return problem

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is either checked here or harmless
        results = parallel_map(decode, files, chunk=64)
    good: list[tuple[Path, _Decoded]] = []
    for file, result in zip(files, results, strict=True):
        if isinstance(result, _Problem):
            problems.add(f'"{file.relative_to(root)}" {result}')
        else:
            good.append((file, result))
    if check is not None:
        check([i for i, result in enumerate(results) if not isinstance(result, _Problem)])
    if form.size is None:
        sizes = [f"{one.origin.width}x{one.origin.height}" for _, one in good]
        _check_same(good, sizes, root, problems, "sizes", "size to one number for all (such as --size 28)")
    if form.channels is None:
        kinds = ["grey" if one.array.shape[0] == 1 else "colour" for _, one in good]
        _check_same(good, kinds, root, problems, "kinds", "channels to 1 or 3 (--channels 1 for grey)")
    _check_values(good, root, problems, form)
    problems.raise_if_any()
    unusable_profiles([str(file.relative_to(root)) for file, one in good if not one.usable])
    images = torch.from_numpy(np.stack([decoded.array for _, decoded in good]))
    origins = (dataclasses.replace(one.origin, file=str(file.relative_to(root))) for file, one in good)
    return images, tuple(origins)


def load_folder(
    path: str | os.PathLike[str],
    form: Form | None = None,
    *,
    split: str = "train",
    min_classes: int = 1,
    asked: Shots | None = None,
    otherwise: str = "",
    name: str = "",
) -> ImageSet:
    """Read a folder with one subfolder per class, named as the class.

    Args:
        path: the folder. If it holds only `train` and `test` (or `val`), these are its parts.
        form: what the images are made into; a size or number of channels that is kept must be one for all.
        split: "train" or "test"; a folder without parts has only "train".
        min_classes: fewer classes are a problem.
        asked: the images that each class must have; fewer are a problem.
        otherwise: what else can be done about too few classes, after "or".
        name: where the images came from; the folder name if empty.

    Returns:
        Images ordered by class name, then by file name. Files are turned upright as their EXIF data says.

    Raises:
        DataError: lists every problem of the folder at once: unusable files, empty classes, names that
            differ only by case, links that leave the folder, mixed sizes, grey among colour.
    """
    root = _find_split(_checked_root(path), split)
    problems = ProblemList(f'The images in "{root}" cannot be used')
    class_names, files, labels = _collect(root, problems, min_classes)
    if class_names and (problem := few_classes(class_names, min_classes, otherwise)):
        problems.add(problem)
    class_of = torch.tensor(labels, dtype=torch.int64)

    def check_counts(usable: list[int]) -> None:
        counts = torch.bincount(class_of[usable], minlength=len(class_names)).tolist()
        # That a class has no images is a problem already.
        names = [name for name, count in zip(class_names, counts, strict=True) if count]
        for problem in asked.problems(names, [count for count in counts if count]) if asked else []:
            problems.add(problem)

    images, origins = _read(files, root, problems, form or Form(), check_counts)
    return ImageSet(images, class_of, tuple(class_names), None, name or root.resolve().name, origins)


def is_flat_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds files, and no subfolder that could be a class."""
    root = Path(path)
    if not root.is_dir():
        return False
    entries = _visible(root)
    return bool(entries) and not any(entry.is_dir() for entry in entries)


def load_flat_folder(
    path: str | os.PathLike[str], form: Form | None = None
) -> tuple[torch.Tensor, tuple[Origin, ...]]:
    """Read the images that lie directly in a folder; they have no class.

    Args:
        path: the folder; it may hold nothing else.
        form: as in `load_folder`.

    Returns:
        uint8, (N, C, H, W), ordered by file name, and what each file was.

    Raises:
        DataError: lists every problem of the folder at once, as `load_folder`.
    """
    root = _checked_root(path)
    problems = ProblemList(f'The images in "{root}" cannot be used')
    files = _image_files(root, root, problems, "is a folder among images without a class; move it away")
    if not files:
        problems.add("there is no image")
    return _read(files, root, problems, form or Form())


def _check_values(good: list[tuple[Path, _Decoded]], root: Path, problems: ProblemList, form: Form) -> None:
    """Look at the values of a whole set: note or refuse what uses little of its type, or is cut."""
    if form.value_range is not None:
        kinds = [one.values for _, one in good]
        _check_same(
            good, kinds, root, problems, "values", "value_range for files of one kind of values alone"
        )
    for kind, top in _TOPS.items():
        of_kind = [one for _, one in good if one.values == kind]
        if not of_kind:
            continue
        low, high = min(one.low for one in of_kind), max(one.high for one in of_kind)
        where = f'the images in "{root}"'
        if form.value_range is not None:
            note_cut(low, high, form.value_range, where)
        elif kind == "8-bit":
            note_bytes(low, high, where)
        elif uses_little(low, high, top):
            problems.add(
                f"the values of the {kind} images reach from {shown(low)} to {shown(high)} of {top}, so "
                f"with 8 bits they are nearly one shade; set {flag(low, high)} (value_range) to spread them, "
                f"or {flag(0, top)} to keep them dark"
            )


def _check_same(
    good: list[tuple[Path, _Decoded]],
    kinds: list[str],
    root: Path,
    problems: ProblemList,
    what: str,
    advice: str,
) -> None:
    """Add one problem if images are of several kinds, with the count and one example of each."""
    counts = Counter(kinds)
    if len(counts) < 2:
        return
    shown = [
        f'{n} of {kind} (such as "{good[kinds.index(kind)][0].relative_to(root)}")'
        for kind, n in counts.most_common(4)
    ]
    more = f" and {len(counts) - 4} more {what}" if len(counts) > 4 else ""
    problems.add(f"the images have mixed {what}: {', '.join(shown)}{more}; set {advice}")


def save_folder(
    path: str | os.PathLike[str],
    images: torch.Tensor,
    labels: torch.Tensor,
    class_names: tuple[str, ...],
    seeds: torch.Tensor | None = None,
) -> Path:
    """Write one PNG per image into one subfolder per class.

    Args:
        path: a new or empty folder.
        images: uint8, (N, C, H, W).
        labels: integers, (N,); -1 goes into the folder "text".
        class_names: names of the labels; see `class_to_folder` for names such as "T-shirt/top".
        seeds: int64, (N,); becomes part of the file name.

    Returns:
        The folder.

    Raises:
        OutputError: if the folder holds anything, or cannot be written.
    """
    with atomic_folder(path) as folder:
        for i, label in enumerate(labels.tolist()):
            class_name = "text" if label < 0 else class_names[label]
            seed = "" if seeds is None else f"-seed{int(seeds[i])}"
            with atomic_write(folder / class_to_folder(class_name) / f"{i:06d}{seed}.png") as temporary:
                to_pillow(images[i]).save(temporary, format="PNG")
    return Path(path)
