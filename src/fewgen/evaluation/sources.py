"""What the sets of an evaluation are made of, and what moves figures that no generator has to answer for.

Source: Parmar, Zhang & Zhu 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation",
    arXiv:2104.11222: compression and resizing of one side move Frechet distances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fewgen.data.imageset import ImageSet
from fewgen.data.origin import DRAWN

LOSSY = ("JPEG", "WEBP")
"""Formats that leave traces in the pixels."""

SHARE = 0.1
"""Shares and qualities (of 100) that differ by more are told."""


def describe(images: ImageSet) -> dict[str, Any]:
    """Return what a set is made of, JSON-ready.

    Returns:
        "n"; "size", [height, width] as compared; and, where it is known, "formats" (format -> images),
        "jpeg_quality" (lowest and highest), "from" (smallest and largest [height, width] of the files, by
        area), "resized" ("no", "shrunk", "enlarged" or "partly") and "converted", the number of images with
        other channels, colours or values.
    """
    found: dict[str, Any] = {"n": len(images), "size": list(images.size)}
    if not images.origins:
        return found | {"formats": {"of unknown files": len(images)}}
    sizes = sorted(((o.height, o.width) for o in images.origins), key=lambda size: (size[0] * size[1], size))
    # The side that was scaled: the short one of "crop", and of two equal ones either.
    scales = Counter(_scaled(min(size), min(images.size)) for size in sizes)
    qualities = [o.quality for o in images.origins if o.quality is not None]
    found["formats"] = dict(sorted(Counter(o.form for o in images.origins).items()))
    if qualities:
        found["jpeg_quality"] = [min(qualities), max(qualities)]
    found["from"] = [list(sizes[0]), list(sizes[-1])]
    found["resized"] = next(iter(scales)) if len(scales) == 1 else "partly"
    found["converted"] = sum(o.converted for o in images.origins)
    return found


def _scaled(before: int, after: int) -> str:
    return "no" if before == after else "shrunk" if before > after else "enlarged"


def differences(sides: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each way in which a side differs from the training images by its files alone.

    Args:
        sides: name -> `describe`; the first is what the others are compared with.
    """
    (first, usual), *others = sides.items()
    found = []
    for name, own in others:
        # What a model draws has no file; that it learned from files of some kind is no fault of either side.
        if not {"from", "resized"} <= own.keys() & usual.keys() or DRAWN in own["formats"]:
            continue
        traces = [_lossy(side) for side in (usual, own)]
        if abs(traces[0] - traces[1]) > SHARE or _far(usual.get("jpeg_quality"), own.get("jpeg_quality")):
            found.append(
                f"The {first} images are {_formats(usual)}, the {name} ones {_formats(own)}: traces of "
                "compression alone move distances between them. Save all in the same format."
            )
        if own["resized"] != usual["resized"]:
            found.append(
                f"The {first} images were {_resizing(usual)}, the {name} ones {_resizing(own)}: sharpness "
                "alone moves distances between them. Give all in the same size."
            )
    return found


def sentence(sides: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what was compared.

    >>> sentence(
    ...     {
    ...         "training": {
    ...             "n": 2,
    ...             "size": [8, 8],
    ...             "formats": {"PNG": 2},
    ...             "from": [[9, 9], [9, 9]],
    ...             "resized": "shrunk",
    ...             "converted": 0,
    ...         },
    ...         "generated": {"n": 3, "size": [8, 8], "formats": {"drawn by the model": 3}},
    ...     }
    ... )
    'Compared at 8x8: 2 training images (PNG, shrunk from 9x9), 3 generated images (drawn by the model).'
    """
    parts = []
    for name, side in sides.items():
        about = [_formats(side)]
        if side.get("resized", "no") != "no" and "from" in side:
            about.append(_resizing(side))
        if side.get("converted"):
            about.append(f"{side['converted']} of them converted")
        parts.append(f"{side['n']} {name} image{'' if side['n'] == 1 else 's'} ({', '.join(about)})")
    return f"Compared at {_size(next(iter(sides.values()))['size'])}: {', '.join(parts)}."


def compared(protocol: Mapping[str, Any] | None) -> list[str]:
    """Return what an evaluation compared and what differs by its files alone, for a terminal or a page."""
    sides = (protocol or {}).get("images")
    return [] if not sides else [sentence(sides), *differences(sides)]


def _lossy(side: Mapping[str, Any]) -> float:
    return float(sum(n for form, n in side["formats"].items() if form in LOSSY)) / max(side["n"], 1)


def _far(a: list[int] | None, b: list[int] | None) -> bool:
    if a is None or b is None:
        return False
    return bool(max(abs(x - y) for x, y in zip(a, b, strict=True)) > 100 * SHARE)


def _formats(side: Mapping[str, Any]) -> str:
    formats, quality = side["formats"], side.get("jpeg_quality")
    shown = []
    for form, n in formats.items():
        text = {"array": "arrays"}.get(form, form)
        if form == "JPEG" and quality:
            low, high = quality
            text += f" of quality {low}" if low == high else f" of qualities {low} to {high}"
        shown.append(text if len(formats) == 1 else f"{n} {text}")
    return " and ".join(shown)


def _resizing(side: Mapping[str, Any]) -> str:
    low, high = (_size(size) for size in side["from"])
    where = low if low == high else f"{low} to {high}"
    return {"no": "left in their size", "partly": f"partly resized from {where}"}.get(
        side["resized"], f"{side['resized']} from {where}"
    )


def _size(size: list[int]) -> str:
    """Return [height, width] as width x height, as messages about sizes do."""
    return f"{size[1]}x{size[0]}"
