"""`retrieve`: the nearest class names of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.call import accepts_config
from fewgen.runs.run import Run, load_run

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.runs.verbs import Retrieved


@accepts_config
def retrieve(
    run: str | Path | Run,
    images: str | Path | Sequence[str | Path] | ImageSet,
    *,
    top: int = 3,
    split: str = "train",
    fit: str = "crop",
    value_range: Sequence[float] | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    config: str | Path | Mapping[str, Any] | None = None,
) -> Retrieved:
    """Find the nearest class names of images.

    Args:
        run: a run folder, or a model file.
        images: image files, or one data set, folder or .npz.
        top: words per image.
        split: train or test, the part of a data set.
        fit: how other shapes become square: crop, pad or stretch.
        value_range: the values that become black and white, such as 0 4095 for camera data or 0 1 for masks;
            0 and the largest of their type if left out.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: auto (CUDA where there is one), cpu or cuda.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        The words of each image, and how often the first one is right if the images have labels.
    """
    from fewgen.data.registry import Reading

    reading = Reading(split, fit=fit, data_dir=data_dir, download=download, value_range=value_range)
    return load_run(run, device).retrieve(images, reading=reading, top=top)
