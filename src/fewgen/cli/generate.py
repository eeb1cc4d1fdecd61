"""`fewgen generate`: new images of classes or texts.

Examples:
    # 64 images of one class, with labels and seeds
    fewgen generate runs/digits --class-name seven -n 64 --out sevens.npz
    # ten of every class, as one picture
    fewgen generate runs/digits -n 10 --out grid.png
    # a folder with one subfolder per class
    fewgen generate runs/digits -n 100 --out images
    # images that you have seen before, by their seeds
    fewgen generate runs/digits --class-name seven --seeds 12 40 --out two.png
    # from real images (method tint) to new ones of their class
    fewgen generate runs/tint --alphas 0 0.25 0.5 0.75 1 --out strip.png
    # a class of three pictures, after fewgen adapt (method tage): other attributes, half as far
    fewgen generate runs/letters --class-name mine -n 64 --strength 0.5 --out mine.png
    # the same class as a prompt says, if the run learned prompts
    fewgen generate runs/letters --class-name mine -n 64 --prompt "a large drawing" --out large.png
"""

from __future__ import annotations

from typing import Any, Literal

from fewgen.cli.command import Argument, Command


def _run(given: dict[str, Any]) -> int:
    import fewgen

    images = fewgen.generate(**given)
    seeds = images.seeds
    first, last = int(seeds.min()), int(seeds.max())
    what = f"1 image, seed {first}" if len(images) == 1 else f"{len(images)} images, seeds {first} to {last}"
    print(f"Wrote {what}: {given['out']}")
    return 0


COMMAND = Command(
    function="generate",
    page=__doc__,
    run=_run,
    needs_out=": a name ending in .npz or .png, or a folder. For example: --out images.npz",
    special=(
        Argument("texts", "TEXT"),
        Argument("seeds", "S", how="many"),
        Argument("alpha", "A", type=float | Literal["uniform"]),
        Argument("alphas", "A", how="many"),
        Argument("mode", "MODE"),
        Argument("prompt", "TEXT"),
    ),
)
