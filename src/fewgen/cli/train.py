"""`fewgen train`: learn a generator from labelled images.

Examples:
    # the bundled digits, 30 images of each
    fewgen train cada_vqvae --data digits --shots 30 --out runs/digits
    # a folder with one subfolder per class, every image in it
    fewgen train cada_vqvae --data photos --size 32 --out runs/photos
    # sharper images; --minutes 6 would limit the time
    fewgen train cada_vqvae --preset hybrid --data fashion_mnist --shots 30 --out runs/fashion
    # learn to adapt: on 6 classes, measured on 3 others; then fewgen adapt
    fewgen train cada_vqvae --meta fomaml --data fashion_mnist --out runs/base
    # teach a diffusion model (a run, or a Stable Diffusion folder) classes from 5 images each
    fewgen train tint --model runs/diffusion --images photos --shots 5 --out runs/tint
    # what would happen, how long it would take
    fewgen train cada_vqvae --data photos --size 32 --out runs/photos --dry-run
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from fewgen.cli.command import Argument, Command


def _run(given: dict[str, Any]) -> int:
    import fewgen

    run = fewgen.train(**given)
    from fewgen.training.processes import leave

    leave()
    return finish(run, given)


def finish(run: Any, given: dict[str, Any]) -> int:
    """Say what training left behind and what to do next; return the exit code."""
    result = run.result
    if not run.is_main:
        return 130 if result.interrupted else 0
    if result.interrupted:
        print(
            f"Stopped after {result.steps} steps; everything is in {run.path}. "
            "Run the same command again to continue.",
            file=sys.stderr,
        )
        return 130
    minutes, seconds = divmod(round(result.seconds), 60)
    if run.was_finished:
        print(f"{run.path} is already finished; nothing trained.")
    else:
        print(f"Trained {result.steps} steps in {minutes} min {seconds} s: {run.path}")
    for line in verdicts(run):
        print(line)
    report = Path(run.path) / "report.html"
    if report.is_file():
        print(f"Report: {report}")
    path, name = shlex.quote(str(run.path)), shlex.quote(run.class_names[0])
    print(f"Next: fewgen generate {path} --class-name {name} -n 64 --out images.npz")
    return 0


def verdicts(run: Any) -> list[str]:
    """Return what the evidence in a run folder says, a line per question; nothing if there is none."""
    from fewgen.errors import DataError
    from fewgen.evaluation.judge import judged
    from fewgen.evaluation.sources import compared
    from fewgen.evaluation.verdicts import read_verdicts, verdict_lines
    from fewgen.runs.findings import EVALUATION_NAME

    try:
        found, protocol = read_verdicts(Path(run.path) / EVALUATION_NAME)
        return [*verdict_lines(found, protocol), *judged(protocol), *compared(protocol)]
    except DataError:
        return []


def _dry_run(given: dict[str, Any]) -> str:
    import fewgen

    return f"{fewgen.plan_training(**given)}\nNothing was written. Without --dry-run, training starts."


def _print_config(given: dict[str, Any]) -> dict[str, Any]:
    from fewgen.api import resolved_settings

    return resolved_settings(**given)


COMMAND = Command(
    function="train",
    page=__doc__,
    run=_run,
    special=(
        Argument("data", alias="--images"),
        Argument("out", "RUN"),
        Argument("phrases", type=dict | str),
        Argument("holdout", type=int | Literal["auto"]),
        Argument("background", former="--alpha"),
        Argument("meta", "HOW"),
        Argument("model", "PATH", bare="base"),
    ),
    print_config=_print_config,
    dry_run=_dry_run,
)
