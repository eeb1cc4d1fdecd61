"""`fewgen benchmark`: generators side by side, as a table and a plot."""

from __future__ import annotations

import sys
from typing import Any, Literal

from fewgen.cli.command import Argument, Command


def _run(given: dict[str, Any]) -> int:
    import fewgen

    result = fewgen.benchmark(**given)
    print(result.table)
    print(f"\nWritten to {result.path}: benchmark.json, table.md, plot.png, benchmark.html")
    for cell in result.failed:
        print(f"error: {cell['generator']}, seed {cell['seed']}: {cell['error']}", file=sys.stderr)
    if result.failed:
        print("Run the same command again to compute only what is missing.", file=sys.stderr)
    return 2 if result.failed else 0


def _dry_run(given: dict[str, Any]) -> str:
    from fewgen.comparison.benchmarking import plan_benchmark

    return f"{plan_benchmark(**given)}\nNothing was written. Without --dry-run, computing starts."


COMMAND = Command(
    name="benchmark",
    function="benchmark",
    summary="compare generators on the same images, time and judge",
    arguments=(
        Argument("data", metavar="D"),
        Argument("out", metavar="FOLDER"),
        Argument("shots", int, "K"),
        Argument("methods", metavar="NAME", many=True),
        Argument("budget_minutes", float, "M"),
        Argument("seeds", int, "N"),
        Argument("n", int, "N", flag="--n", short="-n"),
        Argument("useful_draws", int, "N"),
        Argument("holdout", int | Literal["auto"], "N"),
        Argument("size", int | None, "PIXELS"),
        Argument("channels", int | None, "C"),
        Argument("temperature", float, "T"),
        Argument("clock", metavar="NAME"),
        Argument("jobs", int | None, "N"),
        Argument("remeasure", bool),
        Argument("table_only", bool),
        Argument("data_dir", metavar="DIR"),
        Argument("download", bool),
        Argument("progress", bool),
    ),
    examples=(
        (
            "fewgen benchmark --data fashion_mnist --shots 30 --budget-minutes 5 --seeds 3",
            "the presets of fewgen beside five generators that a user would take instead",
        ),
        (
            "fewgen benchmark --data photos --size 32 --seeds 1 --methods copies cada_vqvae:hybrid",
            "two generators on your own images, a fifth of which is set aside to judge by",
        ),
        (
            "fewgen benchmark --data photos --size 32 --seeds 1 --methods file:other.npz --useful-draws 0",
            "images that another program made; without usefulness it takes a minute",
        ),
        (
            "fewgen benchmark --data fashion_mnist --seeds 3 --dry-run",
            "the cells, which are finished, and how long the others would take",
        ),
    ),
    run=_run,
    dry_run=_dry_run,
)
