"""Write the report and the card into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fewgen.files import write_text
from fewgen.report.card import render_card
from fewgen.report.findings import collect
from fewgen.report.html import render_report

if TYPE_CHECKING:
    from fewgen.api import Run
    from fewgen.data import ImageSet

REPORT_NAME = "report.html"
CARD_NAME = "README.md"


def write_report(run: Run, train: ImageSet, held_out: ImageSet | None) -> Path:
    """Write `report.html` and `README.md` into a run folder and return the path of the report.

    Args:
        run: a finished or stopped run with a model file.
        train: the images it learned from.
        held_out: the images set aside, or None.
    """
    findings = collect(run, train, held_out)
    write_text(run.path / CARD_NAME, render_card(findings))
    write_text(run.path / REPORT_NAME, render_report(findings))
    return run.path / REPORT_NAME
