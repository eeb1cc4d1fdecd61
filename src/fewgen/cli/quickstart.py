"""`fewgen quickstart`: from nothing to new images and a report in less than two minutes.

Examples:
    # about a minute and a half
    fewgen quickstart
    # better images, if you can wait
    fewgen quickstart --steps-scale 1 --minutes 8 --out runs/better
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from fewgen.cli.command import Argument, Command


def _run(given: dict[str, Any]) -> int:
    import fewgen
    from fewgen.cli.train import verdicts

    start = time.monotonic()
    run = fewgen.quickstart(**given)
    if run.result.interrupted:
        from fewgen.cli.train import finish

        return finish(run, given)
    out = Path(run.path)
    quoted = shlex.quote(str(out))
    shots = run.info.extra.get("shots") or 30
    done = f"Done in {time.monotonic() - start:.0f} s: learned from"
    if run.was_finished:
        done = f"{out} is already finished; nothing trained. It learned from"
    said = "".join(f"\n  {line}" for line in verdicts(run))
    said = f"\n\nWhat the evidence says{said}" if said else ""
    print(
        f"""
{done} {shots} images of each digit, and drew new ones.{said}

Look at
  {out / "grid.png"}      ten new images of each digit
  {out / "report.html"}   what it can and cannot do, with figures

Then try
  fewgen generate {quoted} --class-name seven -n 64 --out sevens.npz
  fewgen interpolate {quoted} one seven --out strip.png
  fewgen train cada_vqvae --data FOLDER_WITH_ONE_SUBFOLDER_PER_CLASS --size 32 --out runs/mine"""
    )
    return 0


def _dry_run(given: dict[str, Any]) -> str:
    import fewgen
    from fewgen.api import quickstart_keywords

    return str(fewgen.plan_training(**quickstart_keywords(**given)))


COMMAND = Command(
    function="quickstart",
    page=__doc__,
    run=_run,
    special=(Argument("out", "RUN"),),
    dry_run=_dry_run,
)
