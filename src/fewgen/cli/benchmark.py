"""`fewgen benchmark`: generators side by side, as a table and a plot.

Examples:
    # the presets of fewgen beside five generators that a user would take instead
    fewgen benchmark --data fashion_mnist --shots 30 --budget-minutes 5 --seeds 3
    # two generators on your own images, a fifth of which is set aside to judge by
    fewgen benchmark --data photos --size 32 --seeds 1 --methods copies cada_vqvae:hybrid
    # images that another program made; without usefulness it takes a minute
    fewgen benchmark --data photos --size 32 --seeds 1 --methods file:other.npz --useful-draws 0
    # the cells, which are finished, and how long the others would take
    fewgen benchmark --data fashion_mnist --seeds 3 --dry-run
"""

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
    function="benchmark",
    page=__doc__,
    run=_run,
    special=(
        Argument("out", "FOLDER"),
        Argument("methods", how="many"),
        Argument("budget_minutes", "M"),
        Argument("holdout", type=int | Literal["auto"]),
        Argument("temperature", "T"),
    ),
    dry_run=_dry_run,
)
