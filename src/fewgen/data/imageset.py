"""`ImageSet`: the one form in which labelled images travel, and the seeded draws from it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.config.records import read_record
from fewgen.data.counts import Shots, few_classes
from fewgen.data.names import check_class_names, name_key, name_labels
from fewgen.data.origin import Origin
from fewgen.data.origin import chosen as origins_of
from fewgen.errors import DataError, ProblemList, suggest
from fewgen.files import write_json


def to_uint8(x: Tensor) -> Tensor:
    """Convert model images to file images, the inverse of `ImageSet.floats`.

    Args:
        x: float, any shape, meant to lie in [-1, 1]; what lies outside is clamped.

    Returns:
        uint8 of the same shape, rounded to the nearest value.

    Raises:
        DataError: if `x` holds NaN, which has no grey value.

    >>> to_uint8(torch.tensor([-1.0, 0.0, 1.0, 7.0])).tolist()
    [0, 128, 255, 255]
    """
    if torch.isnan(x).any():
        raise DataError(
            "Images hold NaN and cannot be converted to uint8; the model that made them diverged."
        )
    return x.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_floats(images: Tensor) -> Tensor:
    """Convert uint8 file images to model images, float32 in [-1, 1]; any shape."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def evenly(labels: Sequence[int], n: int) -> list[int]:
    """Return up to `n` indices that visit the classes in turn, so that each is seen.

    >>> evenly([0, 0, 0, 1, 1], 3)
    [0, 3, 1]
    """
    seen: dict[int, int] = {}
    turns = []
    for index, label in enumerate(labels):
        turns.append((seen.get(label, 0), label, index))
        seen[label] = seen.get(label, 0) + 1
    return [index for _, _, index in sorted(turns)[:n]]


def _class_rng(seed: int, name: str, purpose: str) -> torch.Generator:
    """Return a random stream that depends on the seed and one name, and on nothing else."""
    digest = hashlib.sha256(f"fewgen/{purpose}/{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size.

    Attributes:
        images: uint8, (N, C, H, W), C in {1, 3}.
        labels: int64, (N,), in [0, len(class_names)).
        class_names: one name per class; no two differ only by case.
        captions: one text per image, or None.
        name: where the images came from, for reports.
        origins: what each image was before it was read, or None where that is not known.

    Raises:
        DataError: if the parts do not fit each other; all problems at once.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    captions: tuple[str, ...] | None = None
    name: str = ""
    origins: tuple[Origin, ...] | None = None

    def __post_init__(self) -> None:
        problems = ProblemList(
            f'The image set "{self.name}" is not valid' if self.name else "Not a valid image set"
        )
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8:
            problems.add(f"images must be uint8, got {images.dtype}")
        if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
            problems.add(f"images must have the shape (N, 1 or 3, H, W), got {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.ndim != 1:
            problems.add(f"labels must be int64 of shape (N,), got {labels.dtype} {tuple(labels.shape)}")
        elif images.ndim and len(labels) != len(images):
            problems.add(f"{len(images)} images but {len(labels)} labels")
        elif len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < len(self.class_names)):
            problems.add(
                f"labels reach from {int(labels.min())} to {int(labels.max())}, "
                f"but there are {len(self.class_names)} class names"
            )
        if self.captions is not None and len(self.captions) != len(images):
            problems.add(f"{len(images)} images but {len(self.captions)} captions")
        if self.origins is not None and len(self.origins) != len(images):
            problems.add(f"{len(images)} images but {len(self.origins)} origins")
        check_class_names(self.class_names, problems)
        problems.raise_if_any()

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def __repr__(self) -> str:
        height, width = self.size
        kind = "grey" if self.channels == 1 else "colour"
        what = f"{len(self)} {kind} images of {height}x{width}, {self.n_classes} classes"
        return f"ImageSet({self.name or 'unnamed'}: {what})"

    @property
    def n_classes(self) -> int:
        """Number of class names, whether or not each has images."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return int(self.images.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.images.shape[2]), int(self.images.shape[3])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels, *self.size

    def counts(self) -> Tensor:
        """Return the number of images per class, int64 (n_classes,)."""
        return torch.bincount(self.labels, minlength=self.n_classes)

    def floats(self, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return images as models see them: float32 in [-1, 1], (N, C, H, W).

        Args:
            indices: which images, in which order; None for all.
        """
        images = self.images if indices is None else self.images[torch.as_tensor(indices, dtype=torch.int64)]
        return to_floats(images)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """Return the images at `indices` (integers, or a mask of N booleans), in that order."""
        chosen = torch.as_tensor(indices)
        chosen = chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen.to(torch.int64)
        captions = None if self.captions is None else tuple(self.captions[i] for i in chosen.tolist())
        return ImageSet(
            self.images[chosen],
            self.labels[chosen],
            self.class_names,
            captions,
            self.name,
            origins_of(self.origins, chosen.tolist()),
        )

    def class_index(self, class_name: str) -> int:
        """Return the label of a class, whose name may differ by case or in how accents are encoded.

        Raises:
            DataError: if no class has this name; the message suggests the closest one.
        """
        label = name_labels(self.class_names).get(name_key(class_name))
        if label is not None:
            return label
        known = ", ".join(f'"{name}"' for name in self.class_names[:10])
        more = f" and {self.n_classes - 10} more" if self.n_classes > 10 else ""
        raise DataError(
            f'There is no class "{class_name}".{suggest(class_name, self.class_names)} '
            f"Classes: {known}{more}."
        )

    def select_classes(self, names: Iterable[str]) -> ImageSet:
        """Return the images of these classes, in their order here; `names[i]` gets the label i."""
        chosen = tuple(names)
        new_label = torch.full((self.n_classes,), -1, dtype=torch.int64)
        for label, class_name in enumerate(chosen):
            new_label[self.class_index(class_name)] = label
        labels = new_label[self.labels]
        keep = (labels >= 0).nonzero().flatten()
        captions = None if self.captions is None else tuple(self.captions[i] for i in keep.tolist())
        origins = origins_of(self.origins, keep.tolist())
        return ImageSet(self.images[keep], labels[keep], chosen, captions, self.name, origins)

    def too_few_classes(self, least: int, otherwise: str = "") -> str:
        """Return what to say if fewer than `least` classes have images, else "".

        Args:
            least: classes that are needed.
            otherwise: what else can be done, after "or".
        """
        counted = zip(self.class_names, self.counts().tolist(), strict=True)
        return few_classes([name for name, count in counted if count], least, otherwise)

    def class_orders(self, seed: int) -> list[list[int]]:
        """Return for each class the indices of its images in a random order.

        The order of a class depends on its own images, its name and the seed, not on the other classes.
        """
        orders = []
        for label, class_name in enumerate(self.class_names):
            indices = (self.labels == label).nonzero().flatten()
            order = torch.randperm(len(indices), generator=_class_rng(seed, class_name, "shots"))
            orders.append(indices[order].tolist())
        return orders

    def shot_indices(self, shots: Shots, seed: int) -> tuple[list[int], list[int]]:
        """Return the indices of the images that `split_shots` draws, grouped by class."""
        k, n_holdout = shots.k, shots.n_holdout
        if k < 1 or n_holdout < 0:
            raise DataError(f"shots must be at least 1 and n_holdout at least 0, got {k} and {n_holdout}.")
        problems = ProblemList("Too few images")
        for problem in shots.problems(self.class_names, self.counts().tolist()):
            problems.add(problem)
        problems.raise_if_any()
        orders = self.class_orders(seed)
        train = [index for order in orders for index in order[:k]]
        return train, [index for order in orders for index in order[k : k + n_holdout]]

    def shots(self, k: int, seed: int) -> ImageSet:
        """Draw k images per class.

        The draw of a class depends on its own images, its name and the seed, not on the other classes,
        and is nested: `shots(5, seed)` is contained in `shots(30, seed)`.

        Args:
            k: images per class, at least 1.
            seed: the same seed gives the same images on every machine.

        Returns:
            k * n_classes images, grouped by class.

        Raises:
            DataError: if a class has fewer than k images; names every such class.
        """
        return self.split_shots(k, 0, seed)[0]

    def split_shots(self, k: int, n_holdout: int, seed: int) -> tuple[ImageSet, ImageSet]:
        """Draw k images per class for training and `n_holdout` other ones to hold out.

        Returns:
            The training set, equal to `shots(k, seed)`, and the held-out set (empty if `n_holdout` is 0).

        Raises:
            DataError: if a class has fewer than k + n_holdout images; names every such class.
        """
        train, held_out = self.shot_indices(Shots(k, n_holdout), seed)
        return self.subset(train), self.subset(held_out)

    def base_novel(self, n_base: int, n_val: int, seed: int) -> ClassSplit:
        """Split the classes at random into base, validation and novel ones (the rest).

        Raises:
            DataError: if no class would be left as novel.
        """
        if n_base < 1 or n_val < 0 or n_base + n_val >= self.n_classes:
            raise DataError(
                f"n_base = {n_base} and n_val = {n_val} cannot be taken from {self.n_classes} classes: "
                "n_base must be at least 1, and at least one class must remain as novel."
            )
        order = torch.randperm(self.n_classes, generator=_class_rng(seed, "", "classes")).tolist()
        names = [self.class_names[i] for i in order]
        return ClassSplit(
            tuple(names[:n_base]), tuple(names[n_base : n_base + n_val]), tuple(names[n_base + n_val :])
        )


def joined(parts: Sequence[ImageSet], name: str | None = None) -> ImageSet:
    """Return several sets as one; classes of the same name are one class.

    Args:
        parts: sets of one size.
        name: of the whole; None: that of the first part.
    """
    names: dict[str, str] = {}
    for class_name in (class_name for part in parts for class_name in part.class_names):
        names.setdefault(name_key(class_name), class_name)
    label = name_labels([*names])
    labels = [torch.tensor([label[name_key(n)] for n in part.class_names])[part.labels] for part in parts]
    images = torch.cat([part.images for part in parts])
    origins = [origin for part in parts for origin in part.origins or ()]
    return ImageSet(
        images,
        torch.cat(labels),
        tuple(names.values()),
        name=parts[0].name if name is None else name,
        origins=tuple(origins) if len(origins) == len(images) else None,
    )


@dataclass(frozen=True)
class ClassSplit:
    """Disjoint groups of class names: to train on, to choose settings by, and to adapt to.

    Raises:
        DataError: if a class is in two groups.
    """

    base: tuple[str, ...]
    val: tuple[str, ...]
    novel: tuple[str, ...]

    def __post_init__(self) -> None:
        problems = ProblemList("Not a valid class split")
        seen: dict[str, tuple[str, str]] = {}
        for part, names in (("base", self.base), ("val", self.val), ("novel", self.novel)):
            check_class_names(names, problems)
            for name in names:
                first, known = seen.setdefault(name_key(name), (part, name))
                if first != part:
                    problems.add(f'the class "{name}" of {part} is the class "{known}" of {first}')
        problems.raise_if_any()

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the split as JSON with the keys base, val and novel."""
        write_json(path, {"base": list(self.base), "val": list(self.val), "novel": list(self.novel)})

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> ClassSplit:
        """Read a split written by `to_json`.

        Raises:
            DataError: if the file is missing or is not a split.
        """
        value = read_record(path, dict[str, list[str]])
        keys = ("base", "val", "novel")
        if set(value) != set(keys):
            raise DataError(
                f'"{path}" is not a class split: it must have exactly the keys base, val and novel.'
            )
        return cls(*(tuple(value[key]) for key in keys))

    def apply(self, images: ImageSet) -> tuple[ImageSet, ImageSet, ImageSet]:
        """Return the base, validation and novel images, each relabelled from 0."""
        return (
            images.select_classes(self.base),
            images.select_classes(self.val),
            images.select_classes(self.novel),
        )
