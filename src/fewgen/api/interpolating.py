"""`interpolate`: a walk from one word or image to another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.call import accepts_config
from fewgen.config.keywords import writes_out
from fewgen.runs.run import Run, load_run

if TYPE_CHECKING:
    from fewgen.generation import GeneratedImages


@accepts_config
@writes_out
def interpolate(
    run: str | Path | Run,
    a: str | Path,
    b: str | Path,
    *,
    steps: int = 8,
    seed: int = 0,
    temperature: float = 0.0,
    sharpen: float = 0.0,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    config: str | Path | Mapping[str, Any] | None = None,
) -> GeneratedImages:
    """Walk through the latent space from one word or image to another.

    Args:
        run: a run folder, or a model file.
        a: where to start: a class, a free text, or an image file.
        b: where to end: a class, a free text, or an image file.
        steps: images, both ends included.
        seed: of the noise, which all images of the walk share.
        temperature: scale of the noise around the walk; 0 shows the walk itself.
        sharpen: strength of a sharpening filter for the eye; 0 is off.
        out: a .png (one strip), an .npz, or a folder.
        overwrite: replace an existing output.
        device: auto (CUDA where there is one), cpu or cuda.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        One image per step; `provenance["positions"]` holds 0 to 1.
    """
    return load_run(run, device).interpolate(
        a,
        b,
        steps=steps,
        seed=seed,
        temperature=temperature,
        sharpen=sharpen,
        out=out,
        overwrite=overwrite,
    )
