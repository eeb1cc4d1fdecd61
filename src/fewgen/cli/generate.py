"""`fewgen generate`: new images of classes or texts."""

from __future__ import annotations

from typing import Any, Literal

from fewgen.cli.command import Argument, Command
from fewgen.errors import ConfigError


def _run(given: dict[str, Any]) -> int:
    import fewgen
    from fewgen.config.call import call_settings, unwrapped

    out = call_settings(unwrapped(fewgen.generate), given)["out"]
    if out is None:
        raise ConfigError(
            "fewgen generate needs --out: a name ending in .npz or .png, or a folder. "
            "For example: --out images.npz"
        )
    images = fewgen.generate(**given)
    seeds = images.seeds
    first, last = int(seeds.min()), int(seeds.max())
    what = f"1 image, seed {first}" if len(images) == 1 else f"{len(images)} images, seeds {first} to {last}"
    print(f"Wrote {what}: {out}")
    return 0


COMMAND = Command(
    name="generate",
    function="generate",
    summary="make new images of a class or a text",
    arguments=(
        Argument("run", positional=True, metavar="RUN"),
        Argument("class_names", str, "NAME", flag="--class-name", repeat=True),
        Argument("texts", str, "TEXT", flag="--text", repeat=True),
        Argument("n", int | None, "N", short="-n"),
        Argument("seed", int, "N"),
        Argument("seeds", int, "S", many=True),
        Argument("temperature", float, "T"),
        Argument("alpha", float | Literal["uniform"], "A"),
        Argument("alphas", float, "A", many=True),
        Argument("sharpen", float, "X"),
        Argument("options", dict),
        Argument("out", str | None, "OUT"),
        Argument("overwrite", bool),
        Argument("device", metavar="NAME"),
    ),
    examples=(
        (
            "fewgen generate runs/digits --class-name seven -n 64 --out sevens.npz",
            "64 images of one class, with labels and seeds",
        ),
        ("fewgen generate runs/digits -n 10 --out grid.png", "ten of every class, as one picture"),
        ("fewgen generate runs/digits -n 100 --out images", "a folder with one subfolder per class"),
        (
            "fewgen generate runs/digits --class-name seven --seeds 12 40 --out two.png",
            "images that you have seen before, by their seeds",
        ),
        (
            "fewgen generate runs/tint --alphas 0 0.25 0.5 0.75 1 --out strip.png",
            "from real images (method tint) to new ones of their class",
        ),
    ),
    run=_run,
)
