"""`fewgen interpolate`: a walk between two words, two images, or a word and an image."""

from __future__ import annotations

from typing import Any

from fewgen.cli.command import Argument, Command
from fewgen.errors import ConfigError


def _run(given: dict[str, Any]) -> int:
    import fewgen
    from fewgen.config.call import call_settings, unwrapped

    out = call_settings(unwrapped(fewgen.interpolate), given)["out"]
    if out is None:
        raise ConfigError("fewgen interpolate needs --out, for example --out strip.png")
    walk = fewgen.interpolate(**given)
    print(f"Wrote {len(walk)} images from {walk.provenance['from']} to {walk.provenance['to']}: {out}")
    return 0


COMMAND = Command(
    name="interpolate",
    function="interpolate",
    summary="walk from one word or image to another",
    arguments=(
        Argument("run", positional=True, metavar="RUN"),
        Argument("a", positional=True, metavar="A"),
        Argument("b", positional=True, metavar="B"),
        Argument("steps", int, "N"),
        Argument("seed", int, "N"),
        Argument("temperature", float, "T"),
        Argument("sharpen", float, "X"),
        Argument("out", str | None, "OUT"),
        Argument("overwrite", bool),
        Argument("device", metavar="NAME"),
    ),
    examples=(
        ("fewgen interpolate runs/digits one seven --steps 8 --out strip.png", "from word to word"),
        ("fewgen interpolate runs/digits my_three.png eight --out strip.png", "from an image to a word"),
    ),
    run=_run,
)
