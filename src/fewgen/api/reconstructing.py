"""`reconstruct`: images sent through a model and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.call import accepts_config, defaults_of
from fewgen.config.keywords import refuse_ignored, writes_out
from fewgen.runs.run import Run, load_run

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.runs.verbs import Reconstructions


@accepts_config
@writes_out
def reconstruct(
    run: str | Path | Run,
    *,
    data: str | Path | ImageSet | None = None,
    split: str = "train",
    n: int | None = None,
    fit: str = "crop",
    value_range: Sequence[float] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    config: str | Path | Mapping[str, Any] | None = None,
) -> Reconstructions:
    """Send images through the model and back: what it can show at all.

    Args:
        run: a run folder, or a model file.
        data: a data set, folder, .npz or single image file; the run's held-out images if left out.
        split: train or test, the part of a data set.
        n: only so many images, evenly over the classes; all if left out (40 in a picture).
        fit: how other shapes become square: crop, pad or stretch.
        value_range: the values that become black and white, such as 0 4095 for camera data or 0 1 for masks;
            0 and the largest of their type if left out.
        out: a .png (originals above, reconstructions below), or an .npz (in the order of the data).
        overwrite: replace an existing output.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: auto (CUDA where there is one), cpu or cuda.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        Originals and reconstructions.
    """
    from fewgen.data.registry import Reading

    if data is None:
        given, usual = {"split": split, "fit": fit, "value_range": value_range}, defaults_of(reconstruct)
        refuse_ignored("without --data: the run's own images are read as in training", given, usual, *given)
    reading = Reading(split, fit=fit, data_dir=data_dir, download=download, value_range=value_range)
    return load_run(run, device).reconstruct(data=data, reading=reading, n=n, out=out, overwrite=overwrite)
