"""`fewgen adapt`: teach a trained run new classes from a few images.

Examples:
    # a folder of photos of one new class; five are enough to begin with
    fewgen adapt runs/fashion --images photos/boots --class-name "ankle boot" --out runs/boots
    # several new classes: one subfolder for each, named as the class
    fewgen adapt runs/fashion --images photos --out runs/more
    # five of the images; the report shows 1, 3 and 5, and the loss on the others
    fewgen adapt runs/fashion --images bags --class-name bag --shots 5 --curve --out runs/bags
    # a run of tage draws a class that it never saw from one to three pictures, without training
    fewgen adapt runs/letters --images photos/mine --class-name mine --out runs/mine
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from fewgen.cli.command import Argument, Command


def _run(given: dict[str, Any]) -> int:
    import fewgen

    run = fewgen.adapt(**given)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    record = run.info.extra["adapted"]
    n = sum(record["n_images"])
    done = f"{record['steps']} updates" if "steps" in record else "no training"
    print(
        f"Adapted to {', '.join(record['classes'])} with {n} image{'s' if n > 1 else ''} and "
        f"{done} in {record['seconds']:.1f} s: {run.path}"
    )
    if "figures" in record:
        from fewgen.report.adaptation import lines

        for line in lines(record["figures"]):
            print(line)
    print(f"Grid: {Path(run.path) / 'grid.png'}")
    report = Path(run.path) / "report.html"
    if report.is_file():
        print(f"Report: {report}")
    path, name = shlex.quote(str(run.path)), shlex.quote(record["classes"][0])
    print(f"Next: fewgen generate {path} --class-name {name} -n 64 --out images.npz")
    return 0


COMMAND = Command(
    function="adapt",
    page=__doc__,
    run=_run,
    needs_out=", a new folder, for example --out runs/adapted",
    special=(
        Argument("images", "DIR", "--images"),
        Argument("out", "RUN2"),
        Argument("part", "PART"),
        Argument("phrases", type=dict | str),
        Argument("replay", "N"),
        Argument("background", former="--alpha"),
    ),
)
