"""`fewgen retrieve`: the nearest words of images."""

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
    name="retrieve",
    function="retrieve",
    summary="find the nearest word of an image",
    arguments=(
        Argument("run", positional=True, metavar="RUN"),
        Argument("images", str, "IMAGES", positional=True, many=True),
        Argument("top", int, "N"),
        Argument("split", metavar="PART"),
        Argument("fit", metavar="HOW"),
        Argument("data_dir", metavar="DIR"),
        Argument("download", bool),
        Argument("device", metavar="NAME"),
    ),
    examples=(
        ("fewgen retrieve runs/digits scan.png", "the nearest words of an image file"),
        ("fewgen retrieve runs/digits digits --split test", "how often the nearest word is right"),
    ),
    run=_run,
)
