"""`fewgen interpolate`: a walk between two words, two images, or a word and an image.

Examples:
    # from word to word
    fewgen interpolate runs/digits one seven --steps 8 --out strip.png
    # from an image to a word
    fewgen interpolate runs/digits my_three.png eight --out strip.png
"""

from __future__ import annotations

from typing import Any

from fewgen.cli.command import Command


def _run(given: dict[str, Any]) -> int:
    import fewgen

    walk = fewgen.interpolate(**given)
    print(
        f"Wrote {len(walk)} images from {walk.provenance['from']} to {walk.provenance['to']}: {given['out']}"
    )
    return 0


COMMAND = Command(
    function="interpolate",
    page=__doc__,
    run=_run,
    needs_out=", for example --out strip.png",
)
