"""`README.md` of a run: a model card in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fewgen.report.adaptation import lines
from fewgen.report.citations import bibtex
from fewgen.report.evidence import EvidenceView
from fewgen.report.new_classes import NewClassesView
from fewgen.report.page import render, versions
from fewgen.runs.findings import Findings

if TYPE_CHECKING:
    from pathlib import Path

    from fewgen.methods.base import Method


def render_card(findings: Findings) -> str:
    """Return the model card as Markdown."""
    spec = findings.method.spec
    return render(
        "run_card.md.jinja",
        title=findings.title,
        path=findings.run.path,
        spec=spec,
        first=spec.class_names[0],
        findings=findings,
        evidence=None if findings.evaluation is None else EvidenceView(findings.evaluation),
        preset=findings.config.get("preset"),
        # They do not where the last weights are kept.
        chosen_by_images=any(stage.get("best_step") is not None for stage in findings.stages),
        new_classes=NewClassesView(findings).card_line(),
        warnings=findings.warnings,
        bibtex=bibtex(findings.citations),
        versions=versions(),
    )


def render_adapted_card(
    method: Method,
    record: Mapping[str, Any],
    out: Path,
    notes: Sequence[str] = (),
    citations: Sequence[str] = (),
) -> str:
    """Return the model card of an adapted run as Markdown.

    Args:
        method: the adapted model.
        record: what was done; `extra["adapted"]` of the model file.
        out: the folder of the adapted run, as it was given.
        notes: what a reader should know.
        citations: what was used; names that `citations.bib` may know.
    """
    figures = record.get("figures")
    return render(
        "adapted_card.md.jinja",
        title=out.name,
        path=out,
        spec=method.spec,
        first=record["classes"][0],
        method=method.name,
        record=record,
        said=lines(figures) if figures else [],
        warnings=notes,
        bibtex=bibtex(citations),
        versions=versions(),
    )
