"""Which classes are learned from, which choose settings, and which stay unseen until adaptation."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import torch

from fewgen.data import ClassSplit, ImageSet
from fewgen.data.names import name_key, name_labels
from fewgen.errors import ConfigError, DataError, ProblemList, suggest

_OWN = {
    "mnist": (6, 1, 3),
    "fashion_mnist": (6, 1, 3),
    "cifar10": (6, 1, 3),
    "digits": (6, 1, 3),
    "tiny_imagenet32": (125, 10, 45),
}
"""Base, validation and novel classes of the data sets that have a name."""

_FORMS = '"auto", "all", "alphabet", counts as in "6/1/3" or "6/3", or a file that ends in .json'


def class_split(images: ImageSet, how: str | os.PathLike[str] = "auto", seed: int = 0) -> ClassSplit:
    """Split the classes that have images into base, validation and novel ones.

    What is drawn depends on the seed and on the number and order of the classes (`ImageSet.base_novel`);
    alphabets are sorted before the draw, so their order does not matter.

    Args:
        images: the data; its `name` tells whether it is one of the data sets that have a name.
        how: one of

            - "auto": the data set's own split. MNIST, Fashion-MNIST, CIFAR-10 and the digits 6/1/3; Tiny
              ImageNet 125/10/45; Omniglot by alphabet (of 8: 5, 1 and 2), so that not even the script of a
              novel character was seen. Any other data, and a selection of the classes of these: 30 % of the
              classes are novel and 10 % validation (rounded down, but at least 1 novel one, and from 4
              classes on at least 1 for validation), the rest base. A "/" in the class names means
              nothing here, except for Omniglot.
            - "all": every class is base, even one without images.
            - "none": every class with images is novel.
            - "alphabet": whole groups of classes, the part of their names before the first "/", in the shares
              above. A name without "/" is a group of its own.
            - "6/1/3": so many base, validation and novel classes, together all there are; "6/3": none for
              validation.
            - a path that ends in ".json": as written by `ClassSplit.to_json`. Classes that it does not name
              are left out.
        seed: of the draw.

    Raises:
        ConfigError: `how` has no meaning, or its counts do not add up to the classes at hand.
        DataError: there are too few classes or alphabets to have a novel one; the file is not a split, has a
            class twice, or names classes that the data lacks.
    """
    text = os.fspath(how).strip()
    if text.lower().endswith(".json"):
        return _from_file(images, text)
    if text == "all":
        return ClassSplit(images.class_names, (), ())
    counts = images.counts().tolist()
    names = [name for name, n in zip(images.class_names, counts, strict=True) if n]
    if text == "none":
        return ClassSplit((), (), tuple(names))
    if text == "alphabet":
        return _by_alphabet(names, seed)
    if text == "auto":
        data_set = images.name.split(" (")[0]
        # A single alphabet has nothing to split by but its characters.
        if data_set == "omniglot" and len({_alphabet(name) for name in names}) > 1:
            return _by_alphabet(names, seed)
        own = _OWN.get(data_set)
        shares = own if own and sum(own) == len(names) else _shares(len(names), "classes")
        return _drawn(names, shares, seed)
    if re.fullmatch(r"\d+(/\d+){1,2}", text):
        return _drawn(names, _counts(text, len(names)), seed)
    raise ConfigError(
        f'Unknown class split "{text}".{suggest(text, ("auto", "all", "none", "alphabet"))} Choose {_FORMS}.'
    )


def _alphabet(class_name: str) -> str:
    return class_name.split("/")[0]


def _shares(n: int, what: str) -> tuple[int, int, int]:
    """Return how many of `n` classes or alphabets are base, validation and novel."""
    if n < 2:
        raise DataError(
            f"A split into base and novel classes needs at least 2 {what} with images, got {n}. "
            f'Add {what}, or use "all" to learn from every class.'
        )
    novel = max(1, 3 * n // 10)
    val = max(1, n // 10) if n >= 4 else 0
    return n - val - novel, val, novel


def _counts(text: str, n_classes: int) -> tuple[int, int, int]:
    """Return the base, validation and novel counts that "6/1/3" or "6/3" ask for."""
    parts = [int(part) for part in text.split("/")]
    base, val, novel = parts if len(parts) == 3 else (parts[0], 0, parts[1])
    if base < 1 or novel < 1:
        raise ConfigError(
            f'The class split "{text}" has {base} base and {novel} novel classes, but each needs at least 1. '
            'Use "all" to learn from every class.'
        )
    if base + val + novel != n_classes:
        total = " + ".join(map(str, parts))
        raise ConfigError(
            f'The class split "{text}" does not fit: {total} = {sum(parts)}, but {n_classes} classes have '
            "images. Change the counts, or leave classes out with a .json file."
        )
    return base, val, novel


def _drawn(names: Sequence[str], counts: tuple[int, int, int], seed: int) -> ClassSplit:
    """Draw a split of `names`, which `counts` add up to, as `ImageSet.base_novel` does."""
    nothing = torch.zeros(0, dtype=torch.int64)
    no_images = ImageSet(torch.zeros((0, 1, 1, 1), dtype=torch.uint8), nothing, tuple(names))
    return no_images.base_novel(counts[0], counts[1], seed)


def _by_alphabet(names: Sequence[str], seed: int) -> ClassSplit:
    """Split whole alphabets; the classes keep their order within each part."""
    alphabets = sorted({_alphabet(name) for name in names})
    drawn = _drawn(alphabets, _shares(len(alphabets), "alphabets"), seed)
    base, val, novel = (
        tuple(name for name in names if _alphabet(name) in part)
        for part in map(set, (drawn.base, drawn.val, drawn.novel))
    )
    return ClassSplit(base, val, novel)


def _from_file(images: ImageSet, path: str) -> ClassSplit:
    """Return a split with the names as the data spells them, having checked that it has all of them."""
    split = ClassSplit.from_json(path)
    labels = name_labels(images.class_names)
    problems = ProblemList(f'The class split "{path}" does not fit the images')
    for part, names in (("base", split.base), ("val", split.val), ("novel", split.novel)):
        for name in names:
            if name_key(name) not in labels:
                problems.add(f'there is no class "{name}" ({part}).{suggest(name, images.class_names)}')
    problems.raise_if_any()
    parts = (split.base, split.val, split.novel)
    return ClassSplit(*(tuple(images.class_names[labels[name_key(name)]] for name in part) for part in parts))
