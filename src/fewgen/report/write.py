"""Write the report and the card into a run folder."""

from __future__ import annotations

from pathlib import Path

from fewgen.files import write_text
from fewgen.report.card import render_card
from fewgen.report.html import render_report
from fewgen.runs.findings import Findings

REPORT_NAME = "report.html"
CARD_NAME = "README.md"


def write_report(findings: Findings) -> Path:
    """Write `report.html` and `README.md` into the folder of the run; return the report's path."""
    path = findings.run.path
    write_text(path / CARD_NAME, render_card(findings))
    write_text(path / REPORT_NAME, render_report(findings))
    return path / REPORT_NAME
