"""Accuracies over episodes: means with Student intervals, paired differences, and where the time went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fewgen.errors import DataError
from fewgen.evaluation.planner import of_measured, required_episodes
from fewgen.evaluation.statistics import mean_and_spread, student_interval

CONFIDENCE = 0.95


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> dict[str, Any]:
    """Return mean and Student interval of independent values; JSON-ready.

    Args:
        values: of each episode, finite.
        confidence: of the two-sided interval.

    Returns:
        `mean`, `half_width`, `low`, `high` and `sd` (None with a single value), and `episodes`, the values.

    Raises:
        DataError: no value, or one that is not finite.

    Source: Student 1908, Biometrika 6(1).

    >>> found = interval([0.5, 0.6, 0.7])
    >>> round(found["mean"], 3), round(found["half_width"], 3)
    (0.6, 0.248)
    """
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise DataError(f"A mean over episodes needs finite values, got {numbers[:10]}.")
    found = student_interval(numbers, confidence)
    ends = {"half_width": found.half_width, "low": found.low, "high": found.high, "sd": found.spread}
    return {"mean": found.mean, **ends, "episodes": numbers}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return the `interval` of the differences ours - theirs, episode by episode.

    Raises:
        DataError: other numbers of episodes.
    """
    if len(ours) != len(theirs):
        raise DataError(f"{len(ours)} and {len(theirs)} episodes cannot be compared in pairs.")
    return interval([a - b for a, b in zip(ours, theirs, strict=True)])


def episodes_needed(accuracies: Sequence[float], queries: int, half_width: float) -> int:
    """Return how many episodes reach a half width of the interval, by Theorem 1 from those at hand.

    Args:
        accuracies: of at least two episodes.
        queries: test images of an episode, over its classes.
        half_width: to reach, a share.

    Raises:
        DataError: fewer than two accuracies.
        ConfigError: a target out of reach.

    Source: Landolsi & Kahl, "Tiny models from tiny data", Theorem 1.
    """
    mean, s = of_measured(accuracies, queries)
    return required_episodes(a=mean, s=s, queries=queries, half_width=half_width)


PARTS = ("textual inversion", "null-text inversion", "generation")
"""Parts of the time of an image, as in the published table."""


def time_report(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return where the seconds of making images and of distilling went.

    Args:
        episodes: of each, `specialised` (part -> seconds, or None), `synthetic` (kind -> {seconds,
            images}) and `distilled` (competitor -> seconds).

    Returns:
        `per_image`: seconds per TINT image, split into `PARTS` and `total`, which is None before any image
        was made; `generation_per_image`: by kind; `distillation`: mean seconds by competitor.
    """
    with_tint = [e for e in episodes if "tint" in e["synthetic"]]
    per_image: dict[str, float] | None = None
    if with_tint and all(e["specialised"] is not None for e in with_tint):
        # The path that null texts keep to belongs to them.
        searches = (("textual inversion",), ("null-text inversion", "DDIM inversion"))
        sums = [
            math.fsum(sum(e["specialised"].get(part, 0.0) for part in own) for e in with_tint)
            for own in searches
        ]
        sums.append(math.fsum(e["synthetic"]["tint"]["seconds"] for e in with_tint))
        n = sum(e["synthetic"]["tint"]["images"] for e in with_tint)
        per_image = {name: seconds / n for name, seconds in zip(PARTS, sums, strict=True)}
        per_image["total"] = math.fsum(sums) / n
    by_kind = {}
    for kind in sorted({kind for e in episodes for kind in e["synthetic"]}):
        of_kind = [e["synthetic"][kind] for e in episodes if kind in e["synthetic"]]
        by_kind[kind] = math.fsum(k["seconds"] for k in of_kind) / sum(k["images"] for k in of_kind)
    names = dict.fromkeys(name for e in episodes for name in e["distilled"])
    distilled = {
        name: mean_and_spread([e["distilled"][name] for e in episodes if name in e["distilled"]])[0]
        for name in names
    }
    return {"per_image": per_image, "generation_per_image": by_kind, "distillation": distilled}
