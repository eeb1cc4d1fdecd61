"""What every encoder offers: of texts, of images, and of both in one space.

An image encoder decides what every figure means, so each has a `record()` that goes into the evaluation:
its name, how it was made, how it resizes and how good it is. Image encoders take an `ImageSet` and work in
batches of one fixed size, the last one filled up, so that neither the number of images nor their order
changes a feature. `named.py` makes every encoder by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fewgen.encoders.kept import are_kept, kept_features
from fewgen.errors import ShapeError, TextError

if TYPE_CHECKING:
    from fewgen.data.imageset import ImageSet


class TextEncoder(Protocol):
    """Turns texts into vectors; methods see vectors only, never a particular encoder.

    Attributes:
        name: as given to `make_text_encoder`.
        path: file, folder or hub name that rebuilds this encoder, or None if the name is enough.
        dim: width of the vectors.
        has_meaning: whether similar texts get similar vectors, so that unseen texts can be encoded.
    """

    name: str
    path: str | None
    dim: int
    has_meaning: bool

    def encode(self, texts: list[str]) -> Tensor:
        """Vectors of texts, float32 (len(texts), dim).

        Raises:
            TextError: if a text has no vector.
        """


class UnknownWordError(TextError):
    """No word of some texts has a vector.

    Attributes:
        texts: the texts as they were given to `encode`.
    """

    def __init__(self, message: str, texts: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.texts = tuple(texts)


@dataclass(frozen=True)
class Described:
    """What an image encoder says of images.

    features: (N, dim), float32.
    predictions: the class it sees in each image, int64 (N,); None if it knows no classes
        (`class_predictor` then makes a judge from labelled images).
    """

    features: Tensor
    predictions: Tensor | None


class ImageEncoder(Protocol):
    """Turns images into vectors whose Euclidean distances are meaningful."""

    @property
    def name(self) -> str:
        """Short name for tables and records."""
        ...

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        ...

    def features(self, images: ImageSet) -> Tensor:
        """Return one vector per image, (N, dim), float32, in the order of the images."""
        ...

    def describe(self, images: ImageSet) -> Described:
        """Return features and, if the extractor knows classes, predicted classes, in one pass."""
        ...

    def record(self) -> dict[str, object]:
        """Return what a reader must know to judge figures in these features; JSON-ready."""
        ...


class JointEncoder(Protocol):
    """An image encoder and a text encoder whose features share a space."""

    def image_features(self, images: Tensor) -> Tensor:
        """Return features (N, F) of length 1, without gradient, of float images (N, C, H, W) in [-1, 1]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return features (len(texts), F) of length 1.

        Raises:
            UnknownWordError: for a text that has none.
        """
        ...

    def record(self) -> dict[str, object]:
        """Return what tells it from every other, digests of its weights included; JSON-ready."""
        ...


class FrozenEncoder:
    """An image encoder whose weights were learned elsewhere; what the encoders of that kind share.

    Args:
        name: of the encoder.
        batch_size: images per forward pass.

    Attributes:
        dim: length of a feature vector.
        folder: where features are kept, by content; None: nowhere.
    """

    dim: int

    def __init__(self, name: str, batch_size: int) -> None:
        self.name = name
        self.batch_size = batch_size
        self.folder: Path | None = None

    def vectors(self, images: Tensor) -> Tensor:
        """Return one vector per image (N, 1 or 3, H, W) in [0, 255], all in one pass."""
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        """Return name, digest of the weights, resizing and normalising."""
        raise NotImplementedError

    def features(self, images: ImageSet) -> Tensor:
        """Return one vector per image, (N, dim), float32; grey images as three equal channels."""

        def compute(pixels: Tensor) -> Tensor:
            return in_batches(pixels, self.batch_size, self.vectors)

        return kept_features(images, self.record(), self.folder, compute)

    def keeps(self, images: ImageSet) -> bool:
        """Return whether features of these images lie on the disk."""
        return are_kept(images, self.record(), self.folder)

    def describe(self, images: ImageSet) -> Described:
        """Return features without predictions: its classes, if it has any, are not those of the images."""
        return Described(self.features(images), None)


def in_batches(images: Tensor, size: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to images in batches of exactly `size`, so that a row depends on its image alone.

    The last bits of a matrix product depend on the number of rows; the last batch is therefore filled up
    by repeating its first image.

    Args:
        images: (N, ...), of any type.
        size: rows of a batch.
        function: (size, ...) -> (size, D), each row from its own image.

    Returns:
        (N, D), float32.
    """
    rows = []
    for start in range(0, max(len(images), 1), size):
        batch = images[start : start + size]
        if len(batch) < size:
            first = images[start : start + 1] if len(batch) else images.new_zeros(1, *images.shape[1:])
            batch = torch.cat([batch, first.expand(size - len(batch), *images.shape[1:])])
        rows.append(function(batch).to(torch.float32)[: len(images) - start])
    return torch.cat(rows)


def check_shape(images: ImageSet, wanted: tuple[int, int, int], who: str) -> None:
    """Raise `ShapeError` unless images have the (channels, height, width) that an extractor was made for."""
    found = tuple(images.images.shape[1:])
    if found != wanted:
        raise ShapeError(
            f"{who} was made for images of (channels, height, width) {wanted}, but these are {found}. "
            "Load both with the same size and channels."
        )


def as_colour(images: Tensor) -> Tensor:
    """Return images (N, 1 or 3, H, W) with three channels; grey is repeated."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
