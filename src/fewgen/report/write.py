"""Write the report, the card and the evidence into a run folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fewgen.files import write_text
from fewgen.report.card import render_card
from fewgen.report.findings import collect
from fewgen.report.html import render_report

if TYPE_CHECKING:
    from fewgen.api import Run
    from fewgen.data import ImageSet
    from fewgen.evaluate.evaluation import Evaluation

REPORT_NAME = "report.html"
CARD_NAME = "README.md"
EVALUATION_NAME = "evaluation.json"

N_EVALUATED = 300
"""New images that a report evaluates, over all classes: seconds of work; `fewgen evaluate` takes more."""

MIN_PER_CLASS = 4
MAX_PER_CLASS = 100


def write_report(
    run: Run,
    train: ImageSet,
    held_out: ImageSet | None,
    progress: Callable[[str, float], None] | None = None,
) -> Path:
    """Write `report.html`, `README.md` and `evaluation.json` into a run folder; return the report's path.

    Args:
        run: a finished or stopped run with a model file.
        train: the images it learned from.
        held_out: the images set aside, or None.
        progress: told the name of the part that is measured and the share of it that is done.
    """
    findings = collect(run, train, held_out)
    try:
        findings.evaluation = _evaluated(run, train, held_out, progress)
        findings.evaluation.save(run.path / EVALUATION_NAME)
    except Exception as error:  # hours of training must not end without a report
        findings.evaluation = None
        findings.evaluation_fault = f"{type(error).__name__}: {error}"
    write_text(run.path / CARD_NAME, render_card(findings))
    write_text(run.path / REPORT_NAME, render_report(findings))
    return run.path / REPORT_NAME


def _evaluated(
    run: Run, train: ImageSet, held_out: ImageSet | None, progress: Callable[[str, float], None] | None
) -> Evaluation:
    """Measure new images of a run, all but their usefulness, which takes minutes."""
    from fewgen.api.evaluating import Sets, evaluate_sets

    sets = Sets(str(run.path), run, None, train, held_out, None, [])
    per_class = max(MIN_PER_CLASS, min(MAX_PER_CLASS, math.ceil(N_EVALUATED / train.n_classes)))
    return evaluate_sets(sets, n=per_class, useful_draws=0, progress=progress)
