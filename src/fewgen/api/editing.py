"""`edit`: what single codes do to an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.call import accepts_config
from fewgen.config.keywords import writes_out
from fewgen.runs.editing import edited
from fewgen.runs.run import Run, load_run

if TYPE_CHECKING:
    from fewgen.runs.editing import Edited


@accepts_config
@writes_out
def edit(
    run: str | Path | Run,
    *,
    image: str | Path | None = None,
    layer: int | None = None,
    codes: Sequence[int] | None = None,
    most_used: bool = False,
    strength: float = 1.0,
    fit: str = "crop",
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    config: str | Path | Mapping[str, Any] | None = None,
) -> Edited:
    """Show what single codes of a layer do to an image, for a method with codes (tage).

    Args:
        run: a run folder, or a model file.
        image: an image file; the mean of the run's classes if left out.
        layer: which of an image's codes, from 0, the one that shapes most: one for each edited layer, or for
            each part of it (codebook.parts).
        codes: numbers of codes.
        most_used: show the eight codes that training images have most often in each place, a row for each, in
            place of layer and codes.
        strength: factor on the change.
        fit: how an image of another shape becomes square: crop, pad or stretch.
        out: a .png: the image, then one with each code.
        overwrite: replace an existing output.
        device: auto (CUDA where there is one), cpu or cuda.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        The image, and the same with each code.
    """
    return edited(
        load_run(run, device),
        image=image,
        layer=layer,
        codes=codes,
        most_used=most_used,
        strength=strength,
        fit=fit,
        out=out,
        overwrite=overwrite,
    )
