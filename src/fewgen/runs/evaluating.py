"""Draw the images of a run and measure them, with what only a run can be asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.errors import DataError, OutputError
from fewgen.runs.gathering import EvaluateRequest, Sets, check_evaluation, images_per_class
from fewgen.runs.run import Run
from fewgen.runs.steps import training_steps

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.evaluation.evaluation import Evaluation
    from fewgen.progress import Progress


def evaluate_sets(
    sets: Sets,
    *,
    n: int | None = None,
    seed: int = 0,
    useful_draws: int = 10,
    progress: Progress | None = None,
) -> Evaluation:
    """Draw the images of a run if there is one, measure, and add what only a run can be asked.

    Args:
        sets: what to compare.
        n: images per class that a run draws; None for the default.
        seed: of the drawn images and of the tests.
        useful_draws: paired draws of the usefulness test; 0 leaves it out.
        progress: told the name of the part and the share of it that is done.
    """
    from fewgen.evaluation.evaluation import RealSide, evaluate_images
    from fewgen.runs.asking import ask_run

    generated = sets.generated
    if generated is None:
        if sets.run is None:
            raise DataError("there are neither images nor a run to evaluate.")
        if progress is not None:
            progress("drawing images", 0.0)
        generated = draw_images(sets.run, images_per_class(n, sets.train.n_classes), seed, sets.subject)
    per_class = images_per_class(n, sets.train.n_classes)
    draws = [
        (own, draw_images(other, per_class, seed, other.path.name))
        for other, own in sets.others
        if useful_draws
    ]
    real = RealSide(sets.train, sets.held_out, sets.extractor, sets.pool, seed, progress)
    evaluation = evaluate_images(
        generated,
        sets.train,
        sets.held_out,
        pool=sets.pool,
        useful_draws=useful_draws,
        draws=draws,
        seed=seed,
        progress=progress,
        real_side=real,
        labelled=sets.labelled,
        steps=None if sets.run is None else training_steps(sets.run),
        probed=sets.probed(useful_draws),
    )
    evaluation.protocol |= {"subject": sets.subject, "judge": sets.judge.record()}
    if sets.run is not None:
        if progress is not None:
            progress("asking the run for words and walks", 0.0)
        ask_run(sets.run, evaluation, sets.held_out, real.extractor)
    return evaluation


def draw_images(run: Run, n: int, seed: int, subject: str) -> ImageSet:
    """Return `n` new images of each class of a run, named `subject`."""
    from fewgen.generation import GenerationRequest

    request = GenerationRequest.per_class(range(len(run.class_names)), n, seed)
    return dataclasses.replace(run.method.generate(request).to_image_set(), name=subject)


def evaluate_request(request: EvaluateRequest, sets: Sets, progress: Progress | None = None) -> Evaluation:
    """Measure the sets that were gathered for a request, and note how they were read."""
    check_evaluation(sets)
    evaluation = evaluate_sets(
        sets,
        n=request.n,
        seed=request.seed,
        useful_draws=request.useful_draws,
        progress=progress,
    )
    evaluation.protocol["loading"] = {
        "data": _shown(request.data),
        "holdout": _shown(request.holdout),
        "pool": _shown(request.pool),
        "shots": request.shots,
        "size": request.reading.size,
        "channels": request.reading.channels,
        "fit": request.reading.fit,
    }
    return evaluation


def _shown(source: Any) -> Any:
    """Return a source as the record of an evaluation can hold it."""
    return source if source is None or isinstance(source, (int, str)) else str(source)


def output_files(out: str | Path | None, html: bool, overwrite: bool, write: bool = True) -> dict[str, Path]:
    """Return the files to write, by kind, after checking that they may be written."""
    from fewgen.files import prepare_output_file

    if out is None:
        return {}
    path = Path(out)
    if path.suffix.lower() != ".json":
        raise OutputError(f'"{out}" must end in .json, such as evaluation.json; the page goes beside it.')
    targets = {"json": path, **({"html": path.with_suffix(".html")} if html else {})}
    for target in targets.values():
        if not overwrite and (target.exists() or target.is_symlink()):
            raise OutputError(
                f'"{target}" exists already and was left as it is. Choose another name, or add --overwrite.'
            )
        if write:
            prepare_output_file(target, overwrite=overwrite)
    return targets
