"""`evaluate`: are images real, diverse, new, useful and of the wanted class? For a run and for any images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.call import FORMER_NAMES, accepts_config, build, call_settings, renamed, unwrapped
from fewgen.config.keywords import writes_out
from fewgen.files import json_text, write_texts
from fewgen.progress import ShownProgress
from fewgen.runs.evaluating import evaluate_request, output_files
from fewgen.runs.gathering import EvaluateRequest, expected_seconds, gather, planned
from fewgen.runs.run import Run

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.evaluation.evaluation import Evaluation
    from fewgen.generation import GeneratedImages


@renamed(**FORMER_NAMES)
@accepts_config
@writes_out
def evaluate(
    images: str | Path | Run | ImageSet | GeneratedImages,
    *,
    data: str | Path | ImageSet | None = None,
    holdout: int | str | Path | ImageSet | None = None,
    pool: str | Path | ImageSet = "auto",
    shots: int | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    n: int | None = None,
    features: str = "auto",
    useful_draws: int = 10,
    other_runs: Sequence[str | Path | Run] | None = None,
    size: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    background: str = "error",
    convert: bool = False,
    value_range: Sequence[float] | None = None,
    out: str | Path | None = None,
    html: bool = True,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    progress: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Evaluation:
    """Say whether images are real-looking, diverse, new, useful and of the wanted class.

    Works for a run and for any images, also from another program. Each test is tried on held-out real images,
    exact copies, augmented copies and noise first; where it cannot tell these apart, it says so.

    Args:
        images: a run or a model file, which then draws new images; or a folder with one subfolder per class,
            or an .npz. A folder of images without classes can be measured, too, as far as that goes.
        data: the images that were learned from: a data set, folder or .npz. A run knows its own.
        holdout: real images that were not learned from: a folder, an .npz, a data set; "test", the test part
            of the data; or a number of images per class of the data to set aside (not for a run, which uses
            its own held-out images). Without any, "new" cannot be told.
        pool: further real images with labels, for the judge and the learning curve: a folder, an .npz, rest
            (what the data have besides) or none; auto is the rest of a data set with a name, else none.
        shots: images per class that were learned from, chosen as fewgen train does.
        class_names: only these classes, in this order.
        seed: of the choice of training images, as in fewgen train, of new images, and of the tests.
        n: images per class that a run draws; 100 if left out, and at least 300 in all.
        features: where images are compared: classifier, pixels, lite0, lite1 or lite2 (EfficientNet of
            ImageNet), dino:FOLDER, clip:FOLDER or inception:FILE; auto is lite0 for photographs where it is
            installed, else the classifier.
        useful_draws: paired trainings of a classifier that show usefulness; 0 leaves it out.
        other_runs: runs of the same method on other draws of the training images (other seeds), so that
            usefulness speaks of the method and not of one draw.
        size: side of the square images in pixels; the images' own if left out.
        channels: 1 for grey, 3 for colour; the images' own if left out.
        fit: how other shapes become square: crop, pad or stretch.
        background: transparent images: error, or put them on white or black.
        convert: accept 16-bit and CMYK images and convert them.
        value_range: the values that become black and white, such as 0 4095 for camera data or 0 1 for masks;
            0 and the largest of their type if left out.
        out: a .json; the page goes beside it, as .html. The command writes evaluation.json if left out.
        html: write the page, too.
        overwrite: replace an existing output.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: where a run draws: auto (CUDA where there is one), cpu or cuda.
        progress: show which part is being measured.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        Verdicts, figures between their controls, what was left out and why, and the nearest pairs.
    """
    from fewgen.data.registry import Reading

    request = EvaluateRequest(
        images=images,
        data=data,
        holdout=holdout,
        pool=pool,
        shots=shots,
        class_names=class_names,
        seed=seed,
        n=n,
        features=features,
        useful_draws=useful_draws,
        other_runs=other_runs,
        reading=Reading("train", size, channels, fit, background, convert, data_dir, download, value_range),
        device=device,
    )
    targets = output_files(out, html, overwrite)
    sets = gather(request)
    for note in sets.notes:
        warnings.warn(note, stacklevel=5)
    shown = ShownProgress(progress, parts=expected_seconds(request, sets) if progress else None)
    evaluation = evaluate_request(request, sets, shown)
    shown.close()
    texts: dict[Any, str] = {}
    if "json" in targets:
        texts[targets["json"]] = json_text(evaluation.to_dict())
    if "html" in targets:
        from fewgen.report.evidence import render_evaluation

        texts[targets["html"]] = render_evaluation(evaluation)
    write_texts(texts)
    return evaluation


def plan_evaluation(**keywords: Any) -> str:
    """Return what `evaluate` would compare with the same keywords; draws, measures and writes nothing."""
    from fewgen.data.registry import Reading

    settings = call_settings(unwrapped(evaluate), keywords)
    output_files(settings["out"], settings["html"], settings["overwrite"], write=False)
    return planned(build(EvaluateRequest, settings, reading=build(Reading, settings)))
