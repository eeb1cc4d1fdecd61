"""What a test is, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fewgen.evaluation.side import Side

ANSWERS = ("no", "partly", "yes", "cannot tell")
"""What a test can say."""

ALPHA = 0.005
"""Level of each single test, so that all verdicts together accuse real images in under 5 % of cases."""


@dataclass(frozen=True)
class Outcome:
    """What one test says of one set of images.

    answer: yes, partly, no or cannot tell.
    why: a sentence with the statistics.
    numbers: those behind it.
    plain: a sentence for people who know no statistics.
    doubt: why a "yes" counts for nothing, though nothing speaks against the images; a control keeps its yes.
    """

    answer: str
    why: str
    numbers: dict[str, Any] = field(default_factory=dict)
    plain: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class VerdictTest:
    """One test of one question.

    name: in words.
    question: which verdict it belongs to.
    run: (images, held-out images to judge them by) -> Outcome.
    must_catch: controls for which the answer must not be "yes" before good news counts.
    must_pass: controls for which it has to be "yes" before bad news counts.
    primary: whether a verdict is "yes" only if this test says so; others can only lower a verdict.
    fewest_held_out: held-out images below which good news counts for nothing; controls are judged by half
        of them, so the limit is not the test's own.
    alone: whether its bad news counts where no other test of the question has an answer.
    rates: whether "partly" is praise: better than each control that must be caught. Then both yes and partly
        count only if all of these get "no", and without its answer the verdict is not "partly" either.
    """

    name: str
    question: str
    run: Callable[[Side, Side], Outcome]
    must_catch: tuple[str, ...]
    must_pass: tuple[str, ...] = ("held_out",)
    primary: bool = True
    fewest_held_out: int = 0
    alone: bool = True
    rates: bool = False


def percent(share: float) -> str:
    """Return a share in percent.

    >>> percent(0.142), percent(0.0042), percent(0)
    ('14%', '0.4%', '0%')
    """
    return f"{share:.0%}" if share == 0 or share >= 0.095 else f"{share:.1%}"
