"""`fewgen plan`: episodes, queries and draws needed."""

from __future__ import annotations

import json
from typing import Any

from fewgen.cli.command import Argument, Command


def _run(given: dict[str, Any]) -> int:
    import fewgen

    found = fewgen.plan(**given)
    print(json.dumps(found, indent=2) if isinstance(found, dict) else "\n".join(found.lines()))
    return 0


COMMAND = Command(
    name="plan",
    function="plan",
    summary="say how many episodes, queries or draws a result needs",
    arguments=(
        Argument("accuracy", float, "SHARE"),
        Argument("between_sd", float, "SHARE"),
        Argument("accuracies", metavar="FILE"),
        Argument("queries", int, "N"),
        Argument("episodes", int, "N"),
        Argument("half_width", float, "SHARE"),
        Argument("gain", float, "SHARE"),
        Argument("sd", float, "SHARE"),
        Argument("draws", int, "N"),
        Argument("power", float, "SHARE"),
        Argument("confidence", float, "SHARE"),
        Argument("as_json", bool, flag="--json"),
    ),
    examples=(
        (
            "fewgen plan --accuracy 0.87 --between-sd 0.05 --queries 75 --half-width 0.01",
            "episodes for plus or minus one point",
        ),
        (
            "fewgen plan --accuracies results.json --queries 75 --half-width 0.005",
            "the same, from accuracies of episodes that were measured",
        ),
        ("fewgen plan --gain 0.01 --sd 0.01", "paired draws that see a gain of one point"),
        ("fewgen plan --draws 5 --sd 0.01", "the smallest gain that five draws see"),
    ),
    run=_run,
)
