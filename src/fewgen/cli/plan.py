"""`fewgen plan`: episodes, queries and draws needed.

Examples:
    # episodes for plus or minus one point
    fewgen plan --accuracy 0.87 --between-sd 0.05 --queries 75 --half-width 0.01
    # the same, from accuracies of episodes that were measured
    fewgen plan --accuracies results.json --queries 75 --half-width 0.005
    # paired draws that see a gain of one point
    fewgen plan --gain 0.01 --sd 0.01
    # the smallest gain that five draws see
    fewgen plan --draws 5 --sd 0.01
"""

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
    function="plan",
    page=__doc__,
    run=_run,
    special=(
        *(
            Argument(name, "SHARE")
            for name in ("accuracy", "between_sd", "gain", "sd", "power", "confidence")
        ),
        Argument("accuracies", "FILE", type=str),
        Argument("as_json", flag="--json"),
    ),
)
