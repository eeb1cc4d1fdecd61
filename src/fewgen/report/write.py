"""Write the report, the card and the evidence into a run folder."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fewgen.files import write_text
from fewgen.report.card import render_card
from fewgen.report.html import render_report
from fewgen.runs.findings import Findings, collect

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.evaluation.evaluation import Evaluation
    from fewgen.runs import Run

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
    others: Mapping[str, ImageSet] | Callable[[], Mapping[str, ImageSet]] | None = None,
    data_dir: str | Path | None = None,
) -> Path:
    """Write `report.html`, `README.md` and `evaluation.json` into a run folder; return the report's path.

    Args:
        run: a finished or stopped run with a model file.
        train: the images it learned from.
        held_out: the images set aside, or None.
        progress: told the name of the part that is measured and the share of it that is done.
        others: images of the classes that were not learned from, or how to get them, as `Run.other_images`
            returns them; None: from the run's source. Needed only after meta-training.
        data_dir: folder of the named data sets; None for the usual one.
    """
    findings = collect(run, train, held_out)
    try:
        findings.evaluation = _evaluated(run, train, held_out, progress)
        findings.evaluation.save(run.path / EVALUATION_NAME)
    except Exception as error:  # hours of training must not end without a report
        findings.evaluation = None
        findings.evaluation_fault = f"{type(error).__name__}: {error}"
    _measure_new_classes(findings, others, data_dir, progress)
    write_text(run.path / CARD_NAME, render_card(findings))
    write_text(run.path / REPORT_NAME, render_report(findings))
    return run.path / REPORT_NAME


def _evaluated(
    run: Run, train: ImageSet, held_out: ImageSet | None, progress: Callable[[str, float], None] | None
) -> Evaluation:
    """Measure new images of a run, all but their usefulness, which takes minutes."""
    from fewgen.runs.evaluating import Sets, evaluate_sets

    sets = Sets(str(run.path), run, None, train, held_out, None, [])
    per_class = max(MIN_PER_CLASS, min(MAX_PER_CLASS, math.ceil(N_EVALUATED / train.n_classes)))
    return evaluate_sets(sets, n=per_class, useful_draws=0, progress=progress)


def _measure_new_classes(
    findings: Findings,
    others: Mapping[str, ImageSet] | Callable[[], Mapping[str, ImageSet]] | None,
    data_dir: str | Path | None,
    progress: Callable[[str, float], None] | None,
) -> None:
    """Adapt a meta-trained run to its novel classes, if it has any; a fault is noted in the findings."""
    from fewgen.runs.new_classes import measure_new_classes, was_meta_trained

    run = findings.run
    if not was_meta_trained(run):
        return
    images = others if others is not None else functools.partial(run.other_images, data_dir, with_base=True)
    try:
        findings.new_classes = measure_new_classes(
            run, findings.train, findings.held_out, images, data_dir, progress
        )
    except Exception as error:
        findings.new_classes_fault = f"{type(error).__name__}: {error}"
