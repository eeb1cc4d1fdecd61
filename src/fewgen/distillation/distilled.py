"""What `distill` returns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


@dataclasses.dataclass
class Distilled:
    """What `distill` made.

    Attributes:
        path: the folder of the student, or the JSON file of the comparison.
        record: what lies in distill.json.
        notes: what a reader of the result should know.
        was_finished: whether everything was there already.
    """

    path: Path
    record: dict[str, Any]
    notes: list[str]
    was_finished: bool = False
