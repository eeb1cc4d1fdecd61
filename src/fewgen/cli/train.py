"""`fewgen train`: learn a generator from labelled images."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from fewgen.cli.command import Argument, Command


def _run(given: dict[str, Any]) -> int:
    import fewgen

    run = fewgen.train(**given)
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
    from fewgen.evaluation.verdicts import verdict_lines
    from fewgen.files import read_json
    from fewgen.runs.findings import EVALUATION_NAME

    try:
        record = read_json(Path(run.path) / EVALUATION_NAME)
        return verdict_lines(record["verdicts"])
    except (DataError, KeyError, TypeError):
        return []


def _dry_run(given: dict[str, Any]) -> str:
    import fewgen

    return f"{fewgen.plan_training(**given)}\nNothing was written. Without --dry-run, training starts."


def _print_config(given: dict[str, Any]) -> dict[str, Any]:
    from fewgen.api import resolved_settings

    return resolved_settings(**given)


COMMAND = Command(
    name="train",
    function="train",
    summary="learn a generator from your images",
    arguments=(
        Argument("method", positional=True, metavar="METHOD"),
        Argument("data", metavar="D", alias="--images"),
        Argument("out", metavar="RUN"),
        Argument("shots", int | None, "K"),
        Argument("preset", metavar="NAME"),
        Argument("seed", int, "N"),
        Argument("text", metavar="NAME"),
        Argument("text_path", metavar="PATH"),
        Argument("phrases", dict | str, "FILE"),
        Argument("class_names", str, "NAME", flag="--class-name", repeat=True),
        Argument("holdout", int | Literal["auto"], "N"),
        Argument("split", metavar="PART"),
        Argument("size", int | None, "PIXELS"),
        Argument("channels", int | None, "C"),
        Argument("fit", metavar="HOW"),
        Argument("background", metavar="HOW", former="--alpha"),
        Argument("convert", bool),
        Argument("minutes", float | None, "M"),
        Argument("steps_scale", float | None, "X"),
        Argument("meta", metavar="HOW"),
        Argument("tasks", dict),
        Argument("class_split", metavar="HOW"),
        Argument("model", dict, "PATH", bare="base"),
        Argument("training", dict),
        Argument("data_dir", metavar="DIR"),
        Argument("download", bool),
        Argument("report", bool),
        Argument("progress", bool),
    ),
    examples=(
        (
            "fewgen train cada_vqvae --data digits --shots 30 --out runs/digits",
            "the bundled digits, 30 images of each",
        ),
        (
            "fewgen train cada_vqvae --data photos --size 32 --out runs/photos",
            "a folder with one subfolder per class, every image in it",
        ),
        (
            "fewgen train cada_vqvae --preset hybrid --data fashion_mnist --shots 30 --out runs/fashion",
            "sharper images; --minutes 6 would limit the time",
        ),
        (
            "fewgen train cada_vqvae --meta fomaml --data fashion_mnist --out runs/base",
            "learn to adapt: on 6 classes, measured on 3 others; then fewgen adapt",
        ),
        (
            "fewgen train tint --model runs/diffusion --images photos --shots 5 --out runs/tint",
            "teach a diffusion model (a run, or a Stable Diffusion folder) classes from 5 images each",
        ),
        (
            "fewgen train cada_vqvae --data photos --size 32 --out runs/photos --dry-run",
            "what would happen, how long it would take",
        ),
    ),
    run=_run,
    dry_run=_dry_run,
    print_config=_print_config,
)
