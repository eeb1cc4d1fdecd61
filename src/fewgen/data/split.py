"""Which images of a set are learned from and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fewgen.data.counts import Shots
from fewgen.data.names import name_key, name_labels
from fewgen.errors import ConfigError, ProblemList, suggest

if TYPE_CHECKING:
    from fewgen.data import ImageSet


def class_list(wanted: Sequence[str] | str, known: Sequence[str]) -> list[str]:
    """Return class names as the data spells them; case and how accents are encoded do not matter.

    Raises:
        ConfigError: a name that is no text or that no class has.
    """
    labels = name_labels(known)
    names = []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if not isinstance(name, str):
            raise ConfigError(f"A class name must be text, got {name!r}. Put it in quotes.")
        if name_key(name) not in labels:
            shown = ", ".join(f'"{k}"' for k in known[:12]) + (", ..." if len(known) > 12 else "")
            raise ConfigError(f'There is no class "{name}".{suggest(name, known)} Classes: {shown}.')
        names.append(known[labels[name_key(name)]])
    return names


def asked_per_class(shots: int | None, holdout: int | str) -> Shots | None:
    """Return how many images of a class `split_indices` draws.

    Returns:
        None without `shots`: the numbers then depend on the class.

    Raises:
        ConfigError: they have no meaning.
    """
    if isinstance(holdout, bool) or not (holdout == "auto" or (isinstance(holdout, int) and holdout >= 0)):
        raise ConfigError(f'holdout must be "auto" or a number of images per class, got {holdout!r}.')
    if shots is None:
        return None
    if shots < 1:
        raise ConfigError(f"shots must be 1 or more, got {shots}.")
    if holdout != "auto":
        return Shots(shots, int(holdout))
    n_held = max(1, shots // 10) if shots >= 10 else 0
    return Shots(shots - n_held, n_held, within=True)


def split_indices(
    data: ImageSet, shots: int | None, holdout: int | str, seed: int
) -> tuple[list[int], list[int]]:
    """Return the indices of the training and of the held-out images.

    Held-out images serve early stopping and the report, and are never trained on. With `holdout="auto"`
    and `shots` k they come out of the k (a tenth, at least 1, from k = 10 on), so that "k images per
    class" means all the real images that were used. An explicit number comes on top of the k.

    Args:
        data: all images at hand.
        shots: images per class, or None for all.
        holdout: "auto", or images per class.
        seed: of the draw.

    Raises:
        DataError: a class has too few images; every such class is named.
    """
    asked = asked_per_class(shots, holdout)
    if asked is not None:
        return data.shot_indices(asked, seed)
    train: list[int] = []
    held_out: list[int] = []
    problems = ProblemList("Too few images")
    for name, order in zip(data.class_names, data.class_orders(seed), strict=True):
        count = len(order)
        if count == 0:
            problems.add(f'Class "{name}" has no images. Add some, or choose the other classes.')
            continue
        n_held = (round(count / 5) if count >= 5 else 0) if holdout == "auto" else int(holdout)
        if count <= n_held:
            problems.add(
                f'Class "{name}" has {count} images, and {n_held} of them would be held out: none would be '
                "left to learn from. Add images, or set --holdout lower."
            )
        train += order[: count - n_held]
        held_out += order[count - n_held :]
    problems.raise_if_any()
    return train, held_out
