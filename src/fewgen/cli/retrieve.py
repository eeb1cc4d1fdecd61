"""`fewgen retrieve`: the nearest words of images.

Examples:
    # the nearest words of an image file
    fewgen retrieve runs/digits scan.png
    # how often the nearest word is right
    fewgen retrieve runs/digits digits --split test
"""

from __future__ import annotations

from typing import Any

from fewgen.cli.command import Argument, Command

SHOWN = 50


def _run(given: dict[str, Any]) -> int:
    import fewgen

    if isinstance(given.get("images"), list) and len(given["images"]) == 1:
        given = {**given, "images": given["images"][0]}
    found = fewgen.retrieve(**given)
    width = min(48, max(len(name) for name in found.names))
    for name, words in list(zip(found.names, found.words, strict=True))[:SHOWN]:
        print(f"{name:<{width}}  " + ", ".join(f"{word} {score:.3g}" for word, score in words))
    if len(found.names) > SHOWN:
        print(f"... and {len(found.names) - SHOWN} more images")
    if found.accuracy is not None:
        print(f"The nearest word is the image's class for {found.accuracy:.1%} of {len(found.names)} images.")
    return 0


COMMAND = Command(
    function="retrieve",
    page=__doc__,
    run=_run,
    special=(Argument("images", how="many"),),
)
