"""Grids, strips and pairs as Pillow images, with class names beside the rows.

Made from pixels only: no plotting library, so that writing a grid is fast and exact (one image pixel is
`scale` by `scale` picture pixels, never smoothed).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewgen.errors import DataError, ShapeError

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 2
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
_HEAD_PIXELS = 20
MIN_CELL_PIXELS = 56
"""Small images are enlarged by a whole number until a cell is at least this wide."""


def grid(
    images: Tensor,
    columns: int,
    labels: Sequence[str] | None = None,
    scale: int | None = None,
    heads: Sequence[str] | None = None,
) -> Image:
    """Return images in rows from left to right.

    Args:
        images: uint8 (N, C, H, W), C in {1, 3}.
        columns: images per row.
        labels: a text per row, drawn left of it.
        scale: enlargement by a whole number; by default small images become easy to see.
        heads: a text per column, drawn above it.
    """
    from PIL import Image as PillowImage

    cells = _cells(images)
    if columns < 1:
        raise DataError(f"A grid needs at least 1 column, got {columns}.")
    if len(cells) == 0:
        raise DataError("A grid needs at least one image.")
    scale = scale or max(1, -(-MIN_CELL_PIXELS // min(cells.shape[1:3])))
    cells = cells.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = cells.shape[1:3]
    rows = -(-len(cells) // columns)
    if labels is not None and len(labels) != rows:
        raise ShapeError(f"{len(labels)} row labels for {rows} rows.")
    texts = [_Text(label, height) for label in labels] if labels else []
    margin = max((text.width for text in texts), default=0) + (4 * GAP if texts else 0)
    if heads is not None and len(heads) != columns:
        raise ShapeError(f"{len(heads)} column heads for {columns} columns.")
    top = _HEAD_PIXELS if heads else 0
    canvas = PillowImage.new(
        "RGB", (margin + columns * (width + GAP) + GAP, top + rows * (height + GAP) + GAP), BACKGROUND
    )
    for column, head in enumerate(heads or ()):
        text = _Text(head, 2 * _HEAD_PIXELS)
        middle = margin + GAP + column * (width + GAP) + width // 2
        text.draw(canvas, middle - text.width // 2, 0, _HEAD_PIXELS)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        corner = (margin + GAP + column * (width + GAP), top + GAP + row * (height + GAP))
        canvas.paste(PillowImage.fromarray(cell), corner)
    for row, text in enumerate(texts):
        text.draw(canvas, 2 * GAP, top + GAP + row * (height + GAP), height)
    return canvas


def class_grid(
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    columns: int = 8,
    scale: int | None = None,
    whole: bool = False,
) -> Image:
    """Return a labelled row per class in use; what is missing at its end stays white.

    Args:
        images: uint8 (N, C, H, W).
        labels: index into `class_names`, (N,).
        class_names: texts of the rows.
        columns: images per row.
        scale: enlargement by a whole number.
        whole: show every image, in further rows of a class; else only the first `columns` of each.
    """
    if len(images) == 0:
        raise DataError("A grid needs at least one image.")
    counts = torch.bincount(labels)
    columns = min(columns, int(counts.max()))
    rows, names = [], []
    for label in torch.nonzero(counts).flatten().tolist():
        of_class = images[labels == label]
        if not whole:
            of_class = of_class[:columns]
        rows.append(_filled(of_class, columns))
        names += [class_names[label]] + [""] * (len(rows[-1]) // columns - 1)
    return grid(torch.cat(rows), columns, names, scale)


def strip(images: Tensor, ends: tuple[str, str] | None = None, scale: int | None = None) -> Image:
    """Return images in one row, with a text under the first and the last one."""
    from PIL import Image as PillowImage

    row = grid(images, len(images), scale=scale)
    if ends is None:
        return row
    left, right = (_Text(end, 14) for end in ends)
    width = max(row.width, left.width + right.width + 8 * GAP)
    canvas = PillowImage.new("RGB", (width, row.height + 20), BACKGROUND)
    canvas.paste(row, (0, 0))
    left.draw(canvas, GAP, row.height, 18)
    right.draw(canvas, width - right.width - GAP, row.height, 18)
    return canvas


def pairs(
    originals: Tensor,
    others: Tensor,
    columns: int = 10,
    labels: tuple[str, str] = ("original", "reconstruction"),
    scale: int | None = None,
) -> Image:
    """Return originals with their counterparts directly below, row pair after row pair."""
    if originals.shape != others.shape:
        raise ShapeError(f"Pairs need equal shapes, got {tuple(originals.shape)} and {tuple(others.shape)}.")
    columns = min(columns, len(originals))
    rows, names = [], []
    for start in range(0, len(originals), max(1, columns)):
        for images, name in ((originals, labels[0]), (others, labels[1])):
            rows.append(_filled(images[start : start + columns], columns))
            names.append(name)
    if not rows:
        raise DataError("A picture of pairs needs at least one pair.")
    return grid(torch.cat(rows), columns, names, scale)


def _filled(images: Tensor, columns: int) -> Tensor:
    """Return the images with white ones at the end, so that they fill whole rows."""
    return torch.cat([images, images.new_full((-len(images) % columns, *images.shape[1:]), 255)])


def _cells(images: Tensor) -> np.ndarray:
    """Return the images as uint8 (N, H, W, 3), which is what Pillow pastes."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ShapeError(
            f"Pictures are made of uint8 images (N, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}."
        )
    array = images.cpu().permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(np.repeat(array, 3, axis=3) if array.shape[3] == 1 else array)


def _has_glyphs(font: Any, text: str) -> bool:
    """Tell whether a font can draw a text: what it lacks, it draws as the box of an unassigned character."""
    unusual = {character for character in text if not character.isascii()}
    if not unusual:
        return True
    box = bytes(font.getmask("\U0010ffff"))
    return all(bytes(font.getmask(character)) != box for character in unusual)


@functools.cache
def _wide_font() -> str | None:
    """Return the font file that matplotlib ships, which knows many alphabets; matplotlib is not imported."""
    spec = importlib.util.find_spec("matplotlib")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return str(path)
    return None


class _Text:
    """One line of text, shortened to `MAX` characters, measured before it is drawn."""

    MAX = 28

    def __init__(self, text: str, height: int) -> None:
        from PIL import ImageFont

        cleaned = " ".join(text.split())
        self.text = cleaned if len(cleaned) <= self.MAX else cleaned[: self.MAX - 1] + "…"
        size = max(10, min(16, height // 3))
        try:
            self.font = ImageFont.load_default(size)
            if not _has_glyphs(self.font, self.text) and (path := _wide_font()) is not None:
                self.font = ImageFont.truetype(path, size)
        except (TypeError, OSError):  # Pillow without FreeType has one small bitmap font
            self.font = ImageFont.load_default()
        try:
            self.width = int(self.font.getlength(self.text)) + 1
        except (UnicodeEncodeError, ValueError):  # the bitmap font knows Latin-1 only
            self.text = self.text.encode("ascii", "replace").decode()
            self.width = int(self.font.getlength(self.text)) + 1

    def draw(self, canvas: Image, x: int, y: int, height: int) -> None:
        """Write the text with its middle `height / 2` below `y`."""
        from PIL import ImageDraw

        draw = ImageDraw.Draw(canvas)
        _, top, _, bottom = draw.textbbox((0, 0), self.text, font=self.font)
        draw.text((x, y + (height - (bottom - top)) / 2 - top), self.text, fill=INK, font=self.font)
