"""`fewgen adapt`: teach a trained run new classes from a few images."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from fewgen.cli.command import Argument, Command
from fewgen.errors import ConfigError


def _run(given: dict[str, Any]) -> int:
    import fewgen
    from fewgen.config.call import call_settings, unwrapped

    out = call_settings(unwrapped(fewgen.adapt), given)["out"]
    if out is None:
        raise ConfigError("fewgen adapt needs --out, a new folder, for example --out runs/adapted")
    run = fewgen.adapt(**given)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    record = run.info.extra["adapted"]
    n = sum(record["n_images"])
    print(
        f"Adapted to {', '.join(record['classes'])} with {n} image{'s' if n > 1 else ''} and "
        f"{record['steps']} updates in {record['seconds']:.1f} s: {run.path}"
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
    name="adapt",
    function="adapt",
    summary="teach a trained run new classes from a few images",
    arguments=(
        Argument("run", positional=True, metavar="RUN"),
        Argument("images", str, "DIR", repeat=True),
        Argument("class_names", str, "NAME", flag="--class-name", repeat=True),
        Argument("out", str | None, "RUN2"),
        Argument("shots", int | None, "K"),
        Argument("steps", int | None, "N"),
        Argument("lr", float | None, "X"),
        Argument("part", str | None, "PART"),
        Argument("phrases", dict | str, "FILE"),
        Argument("text_path", metavar="PATH"),
        Argument("replay", int | str, "N"),
        Argument("seed", int, "N"),
        Argument("curve", bool),
        Argument("judge", bool),
        Argument("split", metavar="PART"),
        Argument("fit", metavar="HOW"),
        Argument("background", metavar="HOW", former="--alpha"),
        Argument("convert", bool),
        Argument("data_dir", metavar="DIR"),
        Argument("download", bool),
        Argument("device", metavar="NAME"),
        Argument("report", bool),
        Argument("progress", bool),
    ),
    examples=(
        (
            'fewgen adapt runs/fashion --images photos/boots --class-name "ankle boot" --out runs/boots',
            "a folder of photos of one new class; five are enough to begin with",
        ),
        (
            "fewgen adapt runs/fashion --images photos --out runs/more",
            "several new classes: one subfolder for each, named as the class",
        ),
        (
            "fewgen adapt runs/fashion --images bags --class-name bag --shots 5 --curve --out runs/bags",
            "five of the images; the report shows 1, 3 and 5, and the loss on the others",
        ),
    ),
    run=_run,
)
