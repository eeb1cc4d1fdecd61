"""`train`, what it would do, and `quickstart`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.api.generating import generate
from fewgen.config.call import FORMER_NAMES, accepts_config, build, call_settings, renamed, unwrapped
from fewgen.config.keywords import writes_out
from fewgen.config.surroundings import own_surroundings
from fewgen.progress import ShownProgress
from fewgen.runs.planning import Plan, plan_run
from fewgen.runs.preparing import AUTO, TrainRequest, configs
from fewgen.runs.run import Run
from fewgen.runs.training import train_run

if TYPE_CHECKING:
    from fewgen.data import ImageSet


@renamed(**FORMER_NAMES)
@accepts_config
@writes_out
def train(
    method: str,
    *,
    data: str | Path | ImageSet,
    out: str | Path,
    shots: int | None = None,
    preset: str = "auto",
    seed: int = 0,
    text: str = "auto",
    text_path: str | None = None,
    encoders: Mapping[str, Any] | None = None,
    phrases: Mapping[str, Any] | str | Path | None = None,
    class_names: Sequence[str] | None = None,
    holdout: int | str = "auto",
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    background: str = "error",
    convert: bool = False,
    value_range: Sequence[float] | None = None,
    minutes: float | None = None,
    clock: str | None = None,
    checkpoint: str | None = None,
    steps_scale: float | None = None,
    meta: str | None = None,
    tasks: Mapping[str, Any] | None = None,
    class_split: str | None = None,
    model: Mapping[str, Any] | str | Path | None = None,
    training: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    report: bool = True,
    progress: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Run:
    """Learn an image generator from labelled images and write a run folder.

    The same call on the same folder resumes where it stopped, bit for bit on the same machine.

    Args:
        method: which system to train; `fewgen methods` lists them.
        data: digits, mnist, fashion_mnist, cifar10, omniglot, tiny_imagenet32, imagenette64, a folder with
            one subfolder per class, or an .npz.
        out: the run folder: new, empty, or the same run to resume.
        shots: images per class to learn from; all of them if left out.
        preset: settings that come with the method, listed by `fewgen methods METHOD`; auto takes
            default, or projected for photographs with sq_gan, if the extra `knowledge` is installed.
        seed: of the choice of images and of the training.
        text: where the vectors of class names come from: glove, minilm, clip:FOLDER, onehot (no meaning), or
            auto, the first of glove, minilm and onehot that is at hand and knows every class.
        text_path: the GloVe file, or the folder or hub name of a text model.
        encoders: weights that must be the same, as config.yaml keeps them: name and sha256 of each encoder
            from outside, by its use. Others are refused.
        phrases: other words for a class, such as {"T-shirt/top": ["t-shirt", "top"]}, or a YAML file.
        class_names: only these classes, in this order.
        holdout: images per class set aside for the held-out loss, early stopping and the report. auto
            takes them out of the shots (a tenth, from 10 shots on), so no further real image is used;
            without shots it sets a fifth aside. A number takes so many images besides the shots; 0 none.
        split: train or test, the part of the data set to learn from.
        size: side of the square images in pixels; the images' own if left out.
        channels: 1 for grey, 3 for colour; the images' own if left out.
        fit: how other shapes become square: crop, pad or stretch.
        background: transparent images: error, or put them on white or black.
        convert: accept 16-bit and CMYK images and convert them.
        value_range: the values that become black and white, such as 0 4095 for camera data or 0 1 for masks;
            0 and the largest of their type if left out.
        minutes: limit on the time of the whole command: training, measuring and report. Stages are shortened
            to fit, and what there was no time to measure is named. A run may be resumed with another limit.
        clock: what a minute of the limit is: wall (the default), or cpu, of computing on all cores.
        checkpoint: which weights are kept: best (the default), by the held-out loss, or where there is none,
            as in a GAN, by images of fixed seeds drawn on the way: the latest that are about as near to
            held-out images as any and copy no training images; images, by these in any case; or last.
        steps_scale: factor on the number of steps; 0.1 is a quick look.
        meta: learn to adapt to new classes from few images: reptile, fomaml or maml; or none, ordinary
            training on the same classes with the same measurements, to compare with.
        tasks: settings of meta-learning, such as --tasks.n_way 5 or --tasks.inner_steps 10.
        class_split: which classes to learn from: all, auto (the data set's own split into base, validation
            and novel classes), alphabet, counts such as 6/1/3, or a JSON file. auto with --meta, else all.
        model: settings of the method, such as --model.latent_size 20; or the model that it starts from, a
            run, a Stable Diffusion folder or its name on the hub (owner/model), for the method tint.
        training: settings of the training loop, such as --training.ema_decay 0.99.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        report: write report.html, README.md and evaluation.json at the end.
        progress: show a progress bar, or progress lines where there is no terminal.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        The run, with its method loaded at the first use.
    """
    from fewgen.data.registry import Reading

    reading = Reading(split, size, channels, fit, background, convert, data_dir, download, value_range)
    request = TrainRequest(
        method=method,
        data=data,
        out=out,
        reading=reading,
        shots=shots,
        preset=preset,
        seed=seed,
        text=text,
        text_path=text_path,
        encoders=encoders,
        phrases=phrases,
        class_names=class_names,
        holdout=holdout,
        minutes=minutes,
        clock=clock,
        checkpoint=checkpoint,
        steps_scale=steps_scale,
        meta=meta,
        tasks=tasks,
        class_split=class_split,
        model=model,
        training=training,
        report=report,
        progress=progress,
    )
    run, prepared = train_run(request)
    made = run.was_finished and (run.path / "report.html").is_file()
    if report and run.is_main and not run.result.interrupted and not made:
        from fewgen.report import write_report
        from fewgen.runs.findings import measure_run
        from fewgen.runs.timing import report_parts

        shown = ShownProgress(progress, parts=report_parts(prepared) if progress else None)
        others = functools.partial(run.other_images, data_dir, download, prepared.source, with_base=True)
        given = (run, prepared.train, prepared.held_out)
        write_report(measure_run(*given, shown, others, data_dir, run.limit))
        shown.close()
    return run


def train_request(**keywords: Any) -> TrainRequest:
    """Return what `train` with the same keywords is asked for."""
    from fewgen.data.registry import Reading

    settings = call_settings(unwrapped(train), keywords)
    return build(TrainRequest, settings, reading=build(Reading, settings))


@own_surroundings()
def plan_training(**keywords: Any) -> Plan:
    """Return what `train` would do with the same keywords; writes nothing.

    The time is measured: a few real steps of each stage are taken in memory and thrown away.
    """
    return plan_run(train_request(**keywords))


def resolved_settings(**keywords: Any) -> dict[str, Any]:
    """Return every setting that `train` would use with the same keywords, without reading any image.

    `out` is left out, so that the settings can be used for several runs. The preset "auto", which depends on
    the images, is taken as "default".
    """
    request = train_request(**keywords)
    if request.preset == AUTO:
        request = dataclasses.replace(request, preset="default")
    model, training, tasks = configs(request)
    tasks_used = None if request.meta is None else tasks
    return {**request.settings(), "tasks": tasks_used, "model": model, "training": training}


@accepts_config
def quickstart(
    *,
    out: str | Path = "runs/quickstart",
    preset: str = "hybrid",
    shots: int = 30,
    seed: int = 0,
    steps_scale: float = 0.2,
    minutes: float | None = 1.8,
    text: str = "auto",
    progress: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Run:
    """Learn to draw digits from 30 bundled images each, and write a picture and a report.

    Needs no network, no data set and no graphics card. The same call resumes.

    Args:
        out: the run folder.
        preset: settings of the method cada_vqvae.
        shots: images per digit to learn from; eight more of each are held out for the verdicts.
        seed: of the choice of images and of the training.
        steps_scale: factor on the preset's number of steps.
        minutes: limit on the time of the whole command; on a slow machine fewer steps are taken.
        text: where the vectors of the words "zero" to "nine" come from; see fewgen train --help.
        progress: show a progress bar, or progress lines where there is no terminal.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        The run; its folder holds grid.png, report.html and model.safetensors.
    """
    run = train(
        **_QUICKSTART,
        out=out,
        preset=preset,
        shots=shots,
        seed=seed,
        steps_scale=steps_scale,
        minutes=minutes,
        text=text,
        progress=progress,
    )
    if not run.result.interrupted:
        generate(run, n=10, seed=seed, out=Path(out) / "grid.png", overwrite=True)
    return run


# Eight more of each digit than are learned from: enough for the verdicts at the end to mean something.
_QUICKSTART: dict[str, Any] = {"method": "cada_vqvae", "data": "digits", "holdout": 8}


def quickstart_keywords(**keywords: Any) -> dict[str, Any]:
    """Return the keywords of `train` that `quickstart` with these keywords stands for."""
    return {**_QUICKSTART, **call_settings(unwrapped(quickstart), keywords)}
