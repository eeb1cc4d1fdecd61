"""What a run leaves for people: `report.html`, one self-contained page, and `README.md`, a model card.

Pages and cards draw what they are given and measure nothing: see `fewgen.runs.findings`.
"""

from fewgen.report.card import render_card
from fewgen.report.citations import bibtex
from fewgen.report.html import render_report
from fewgen.report.write import write_report

__all__ = ["bibtex", "render_card", "render_report", "write_report"]
