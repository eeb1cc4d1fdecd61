"""`Episode`: the support and query images of one task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewgen.data import ImageSet
from fewgen.errors import DataError, ProblemList


@dataclass(frozen=True, eq=False)
class Episode:
    """One few-shot task, made by `Episode.of` or `EpisodeSampler.episode`.

    Attributes:
        support: images to learn from, with the episode's own labels 0..n_way-1 and class names.
        query: other images of the same classes, to judge by; labels and class names as in `support`.
        classes: int64 (n_way,), `classes[j]` is the label in the whole data of the episode's label j.
        index: number of the episode in its sampler's order.
    """

    support: ImageSet
    query: ImageSet
    classes: Tensor
    index: int

    @classmethod
    def of(cls, images: ImageSet, support: Tensor, query: Tensor, classes: Tensor, index: int = 0) -> Episode:
        """Cut an episode out of an image set, and check that it is one.

        Args:
            images: the whole data.
            support: int64 (S,), positions in `images`.
            query: int64 (Q,), positions in `images`, none of them in `support`.
            classes: int64 (n_way,), labels in `images`; their order gives the episode's labels.
            index: number of the episode.

        Raises:
            DataError: an image is drawn twice, is no image, or is of another class; a class has no support
                or query image. All problems at once.
        """
        support, query, classes = support.cpu(), query.cpu(), classes.cpu()
        problems = ProblemList(f"Episode {index} is not valid")
        drawn = torch.cat([support, query])
        if len(classes) == 0 or len(classes.unique()) != len(classes):
            problems.add(f"its classes must be different ones, got {classes.tolist()}")
        if len(drawn) and not 0 <= int(drawn.min()) <= int(drawn.max()) < len(images):
            problems.add(
                f"positions reach from {int(drawn.min())} to {int(drawn.max())} in {len(images)} images"
            )
            problems.raise_if_any()
        values, counts = drawn.unique(return_counts=True)
        if len(values) != len(drawn):
            both = values[torch.isin(values, support) & torch.isin(values, query)]
            what = f"{len(both)} images are in support and query" if len(both) else "images are repeated"
            problems.add(f"{what} (positions {values[counts > 1][:10].tolist()})")
        for part, positions in (("support", support), ("query", query)):
            labels = images.labels[positions]
            stray = labels[~torch.isin(labels, classes)].unique()
            missing = classes[~torch.isin(classes, labels)]
            if len(stray):
                problems.add(f"{part} images are of classes that it does not name: {stray.tolist()}")
            if len(missing):
                problems.add(f"these classes have no {part} image: {missing.tolist()}")
        problems.raise_if_any()
        names = tuple(images.class_names[c] for c in classes.tolist())
        return cls(
            _relabelled(images, support, classes, names),
            _relabelled(images, query, classes, names),
            classes,
            index,
        )

    def __post_init__(self) -> None:
        if self.support.class_names != self.query.class_names or len(self.classes) != self.n_way:
            raise DataError(
                f"Support, query and classes of episode {self.index} must name the same classes, "
                f"got {self.support.class_names}, {self.query.class_names} and {self.classes.tolist()}."
            )

    @property
    def n_way(self) -> int:
        """Number of classes."""
        return self.support.n_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by the episode's own labels."""
        return self.support.class_names


def _relabelled(images: ImageSet, positions: Tensor, classes: Tensor, names: tuple[str, ...]) -> ImageSet:
    """Return the images at `positions`; `classes[j]` becomes label j, called `names[j]`."""
    labels = (images.labels[positions, None] == classes).to(torch.uint8).argmax(dim=1)
    captions = None if images.captions is None else tuple(images.captions[i] for i in positions.tolist())
    return ImageSet(images.images[positions], labels, names, captions, images.name)
