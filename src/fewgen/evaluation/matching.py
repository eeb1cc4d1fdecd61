"""Bring a set of images, whoever made it, to the classes and the shape of the training images."""

from __future__ import annotations

import warnings

import torch

from fewgen.config.checks import one_of
from fewgen.data.foreign import has_labels, without_labels
from fewgen.data.imageset import ImageSet
from fewgen.data.names import name_key, name_labels
from fewgen.data.transforms import resize
from fewgen.errors import ProblemList, suggest

FITS = ("error", "resize")


def match_images(
    generated: ImageSet,
    train: ImageSet,
    *,
    fit: str = "error",
    labels_required: bool = True,
    partial: bool = False,
) -> ImageSet:
    """Give images the class order of the training images, and check that both can be compared.

    Classes are matched by name, without regard to case and Unicode form. The images keep their order.

    Images without a class (see `load_foreign`) can still be measured as a whole: Frechet and kernel
    distance, precision, recall, density, coverage, Vendi score, and everything about copying. What needs a
    class is left out: class agreement and alignment, distances and collapse within a class, usefulness, and
    every figure per class.

    Args:
        generated: the images to evaluate.
        train: the images that decide the classes, their order, the size and the channels.
        fit: "error" refuses another size; "resize" brings the images to the size of square training images,
            antialiased, cutting the centre out of other shapes. That changes sharpness, so it belongs into
            the record of the evaluation. Channels are never changed here.
        labels_required: False also accepts images without a class. If some of the names are unknown, all
            labels are then dropped, with a warning.
        partial: whether training classes may lack generated images.

    Returns:
        The images with the class names of `train`, or as a set for which `has_labels` is False.

    Raises:
        DataError: lists all problems at once: no images, another size or other channels (with the flag to
            change), unknown classes, classes without images, images without a class.
        ConfigError: unknown `fit`.
    """
    one_of("fit", fit, FITS)
    name = f'"{generated.name}"' if generated.name else "to evaluate"
    problems = ProblemList(f"The images {name} cannot be compared with the training images")
    if len(generated) == 0:
        problems.add("there are no images; generate some")
    _check_shape(generated, train, fit, problems)

    labels = None
    if not has_labels(generated):
        if labels_required:
            problems.add(
                "the images have no class; put them into one folder per class, or set labels_required=False"
            )
    else:
        unknown = _unknown(generated, train)
        if unknown and not labels_required:
            warnings.warn(
                f"The labels of the images {name} are not used, because {unknown[0]}.",
                UserWarning,
                stacklevel=2,
            )
        else:
            for problem in unknown:
                problems.add(problem)
            index = name_labels(train.class_names)
            new = torch.tensor([index.get(name_key(n), -1) for n in generated.class_names], dtype=torch.int64)
            labels = new[generated.labels]
            _check_classes(labels, train, partial, problems)
    problems.raise_if_any()

    images = generated.images
    if fit == "resize" and generated.size != train.size:
        images = resize(images, train.size[0])
    if labels is None:
        return without_labels(images, generated.name, generated.origins)
    return ImageSet(images, labels, train.class_names, generated.captions, generated.name, generated.origins)


def _check_shape(generated: ImageSet, train: ImageSet, fit: str, problems: ProblemList) -> None:
    """Add a problem for another size, and one for other channels."""
    if generated.size != train.size:
        (height, width), (train_height, train_width) = generated.size, train.size
        sizes = (
            f"they have {width}x{height} pixels (width x height), the training images "
            f"{train_width}x{train_height}"
        )
        if train_height != train_width:
            problems.add(f"{sizes}; set size to one number for both (such as --size {min(train.size)})")
        elif fit == "error":
            problems.add(f"{sizes}; set size to {train_height} for both (--size {train_height})")
    if generated.channels != train.channels:
        kinds = {1: "grey", 3: "colour"}
        problems.add(
            f"they are {kinds[generated.channels]}, the training images {kinds[train.channels]}; set "
            f"channels to {train.channels} for both (--channels {train.channels})"
        )


def _unknown(generated: ImageSet, train: ImageSet) -> list[str]:
    """Return one problem per class that has images and is not a training class."""
    known = name_labels(train.class_names)
    counts = generated.counts().tolist()
    unknown = [
        (class_name, n)
        for class_name, n in zip(generated.class_names, counts, strict=True)
        if n and name_key(class_name) not in known
    ]
    numbers = tuple(str(i) for i in range(generated.n_classes))
    if unknown and generated.class_names == numbers:
        shown = ", ".join(f'"{class_name}"' for class_name in train.class_names[:10])
        more = f" and {train.n_classes - 10} more" if train.n_classes > 10 else ""
        return [
            f"their classes have numbers and no names; save class_names beside the labels, as for the "
            f"training images: {shown}{more}"
        ]
    return [
        f'the class "{class_name}" ({n} images) is not one of the {train.n_classes} training classes; rename '
        f"or remove it.{suggest(class_name, train.class_names)}"
        for class_name, n in unknown
    ]


def _check_classes(labels: torch.Tensor, train: ImageSet, partial: bool, problems: ProblemList) -> None:
    """Add a problem for each training class without training images or without generated ones."""
    counts = torch.bincount(labels[labels >= 0], minlength=train.n_classes).tolist()
    for class_name, n, n_train in zip(train.class_names, counts, train.counts().tolist(), strict=True):
        if n_train == 0:
            problems.add(f'the training class "{class_name}" has no images; add some, or leave the class out')
        elif n == 0 and len(labels) and not partial:
            problems.add(
                f'the class "{class_name}" has no images here; generate some, or leave it out of the '
                "training images"
            )
