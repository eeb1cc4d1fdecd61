"""`fewgen edit`: what single codes do to an image.

Examples:
    # the codes that images have most often, a row for each place of a code
    fewgen edit runs/letters --image mine.png --list --out codes.png
    # three codes in one place
    fewgen edit runs/letters --image mine.png --layer 0 --codes 17 40 101 --out strip.png
"""

from __future__ import annotations

from typing import Any

from fewgen.cli.command import Argument, Command


def _run(given: dict[str, Any]) -> int:
    import fewgen

    found = fewgen.edit(**given)
    for layer, codes in zip(found.layers, found.codes, strict=True):
        print(f"Layer {layer}: codes {', '.join(str(code) for code in codes)}")
    print(f"Wrote {found.images.shape[0] * found.images.shape[1]} images: {given['out']}")
    return 0


COMMAND = Command(
    function="edit",
    page=__doc__,
    run=_run,
    needs_out=", a picture, for example --out strip.png",
    special=(
        Argument("image", "FILE"),
        Argument("codes", "N", flag="--codes", how="many"),
        Argument("most_used", flag="--list"),
        Argument("out", "PNG"),
    ),
)
