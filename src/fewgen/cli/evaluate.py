"""`fewgen evaluate`: verdicts on a run or on any images, with the evidence as a page.

Examples:
    # a run, against its own held-out images
    fewgen evaluate runs/digits --out digits.json
    # usefulness over three draws of the training images (seeds 0, 1 and 2)
    fewgen evaluate runs/a --other-run runs/b --other-run runs/c --holdout test
    # images from any program, that learned from 30 digits each; the test part is held out
    fewgen evaluate images.npz --data digits --shots 30 --holdout test
    # folders with one subfolder per class
    fewgen evaluate made --data photos --holdout more_photos --size 32 --out made.json
    # what would be compared
    fewgen evaluate images.npz --data digits --shots 30 --holdout test --dry-run
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewgen.cli.command import Argument, Command

OUT = "evaluation.json"


def _run(given: dict[str, Any]) -> int:
    import fewgen
    from fewgen.evaluation.judge import judged
    from fewgen.evaluation.sources import compared

    settings = _with_out(given)
    evaluation = fewgen.evaluate(**settings)
    for line in [*evaluation.lines(), *judged(evaluation.protocol), *compared(evaluation.protocol)]:
        print(line)
    out = Path(settings["out"])
    page = out.with_suffix(".html")
    shown = f"{out} and {page}" if settings["html"] else str(out)
    print(f"Wrote {shown}")
    return 0


def _with_out(given: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords with the name of the output, which the command, unlike Python, always has."""
    import fewgen
    from fewgen.config.call import call_settings, unwrapped

    settings = call_settings(unwrapped(fewgen.evaluate), given)
    return {**settings, "out": settings["out"] or OUT}


def _dry_run(given: dict[str, Any]) -> str:
    from fewgen.api import plan_evaluation

    found = plan_evaluation(**_with_out(given))
    return f"{found}\nNothing was written. Without --dry-run, measuring starts."


COMMAND = Command(
    function="evaluate",
    page=__doc__,
    run=_run,
    special=(
        Argument("images", "IMAGES_OR_RUN"),
        Argument("holdout", "H"),
        Argument("pool", "P"),
        Argument("other_runs", "RUN"),
        Argument("background", former="--alpha"),
    ),
    dry_run=_dry_run,
    dry_run_text="print what would be compared, and stop.",
)
