"""`train`, what it would do, and `quickstart`."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.api.generating import generate
from fewgen.config.call import FORMER_NAMES, accepts_config, call_settings, renamed, unwrapped
from fewgen.runs.folder import check_apart, check_run_dir, is_finished, refuse_adapted
from fewgen.runs.preparing import NOT_IN_CONFIG, PREPARE, check_same_images, configs, prepare
from fewgen.runs.run import Run

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.runs.preparing import Prepared


@renamed(**FORMER_NAMES)
@accepts_config
def train(
    method: str,
    *,
    data: str | Path | ImageSet,
    out: str | Path,
    shots: int | None = None,
    preset: str = "default",
    seed: int = 0,
    text: str = "auto",
    text_path: str | None = None,
    phrases: Mapping[str, Any] | str | Path | None = None,
    class_names: Sequence[str] | None = None,
    holdout: int | str = "auto",
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    background: str = "error",
    convert: bool = False,
    minutes: float | None = None,
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
        data: digits, mnist, fashion_mnist, cifar10, omniglot, tiny_imagenet32, a folder with one subfolder
            per class, or an .npz.
        out: the run folder: new, empty, or the same run to resume.
        shots: images per class to learn from; all of them if left out.
        preset: settings that come with the method; `fewgen methods METHOD` lists them.
        seed: of the choice of images and of the training.
        text: where the vectors of class names come from: glove, minilm, clip, onehot (no meaning), or
            auto, the first of glove, minilm and onehot that is at hand and knows every class.
        text_path: the GloVe file, or the folder or hub name of a text model.
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
        minutes: limit on the training time; stages are shortened to fit.
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
    from fewgen.training import Trainer
    from fewgen.version import __version__

    out = Path(out)
    # Before anything slow: the folder is ours, or the command was wrong.
    check_apart(out, data)
    check_run_dir(out)
    refuse_adapted(out)
    given = locals()
    prepared = prepare(**{key: given[key] for key in PREPARE})
    check_same_images(out, prepared)
    finished = is_finished(out, prepared.train_config.minutes)
    for note in prepared.notes:
        _say(f"note: {note}")
    trainer = Trainer(
        prepared.method,
        prepared.stages(),
        prepared.train,
        prepared.held_out,
        prepared.train_config,
        out,
        record=prepared.settings,
        split=prepared.split,
        extra={
            "fewgen": __version__,
            "data": prepared.split["data"],
            "n_train": len(prepared.train),
            "n_held_out": 0 if prepared.held_out is None else len(prepared.held_out),
            "shots": shots,
            "preset": preset,
            "minutes": prepared.train_config.minutes,
            **(
                {}
                if prepared.meta is None
                else {"meta": {"algorithm": prepared.meta, **prepared.tasks.to_dict()}}
            ),
        },
    )
    result = trainer.run()
    run = Run(out, notes=prepared.notes)
    run.result = result
    run.is_main = trainer.processes.is_main
    run.was_finished = finished
    made = finished and (out / "report.html").is_file()
    if report and run.is_main and not result.interrupted and not made:
        from fewgen.data import ImageSet
        from fewgen.progress import ShownProgress
        from fewgen.report import write_report
        from fewgen.runs.findings import measure_run

        shown = ShownProgress(progress)
        given_images = data if isinstance(data, ImageSet) else None
        others = functools.partial(run.other_images, data_dir, download, given_images, with_base=True)
        write_report(measure_run(run, prepared.train, prepared.held_out, shown, others, data_dir))
        shown.close()
    return run


@dataclasses.dataclass
class Plan:
    """What `train` would do, found out without training.

    Attributes:
        settings: every setting, resolved, as `config.yaml` would hold it.
        n_train: images to learn from.
        n_held_out: images set aside.
        class_names: the classes.
        shape: (C, H, W) of an image.
        text_encoder: where class vectors come from.
        stages: for each stage its name, steps, batch size, and trained parameters.
        parameters: numbers in the model, trained or not.
        seconds: estimate of the training time from a few trial steps; None if a stage could not be tried.
        peak_bytes: memory of this process after the trial steps; None where the system does not say.
        notes: what a reader should know.
        other_classes: "validation" and "novel" -> classes that are not learned from; left out if none.
        after_stages: work that `seconds` leaves out; "" for none.
    """

    settings: dict[str, Any]
    n_train: int
    n_held_out: int
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    text_encoder: str
    stages: list[dict[str, Any]]
    parameters: int
    seconds: float | None
    peak_bytes: int | None
    notes: list[str]
    other_classes: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    after_stages: str = ""

    def __str__(self) -> str:
        channels, height, width = self.shape
        kind = "grey" if channels == 1 else "colour"
        groups = {"classes": self.class_names, **self.other_classes}
        lines = [
            f"method      {self.settings['method']}, preset {self.settings['preset']}",
            f"images      {self.n_train} to learn from, {self.n_held_out} held out; {kind}, {height}x{width}",
            *(
                f"{group:<12}{len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
                for group, names in groups.items()
            ),
            f"text        {self.text_encoder}",
            f"parameters  {self.parameters:,}",
        ]
        for stage in self.stages:
            per_step = stage["seconds_per_step"]
            minutes = "" if per_step is None else f", about {stage['steps'] * per_step / 60:.1f} minutes"
            lines.append(
                f"stage       {stage['name']}: {stage['steps']} steps of {stage['batch_size']} images, "
                f"{stage['parameters']:,} parameters{minutes}"
            )
        if self.seconds is None:
            lines.append("time        cannot be estimated before the earlier stages have run")
        else:
            limit = self.settings["training"].get("minutes")
            cut = f" (limited to {limit:g})" if limit and self.seconds > limit * 60 else ""
            beside = f"; {self.after_stages} comes on top" if self.after_stages else ""
            lines.append(f"time        about {self.seconds / 60:.1f} minutes on this machine{cut}{beside}")
        if self.peak_bytes is not None:
            lines.append(f"memory      about {self.peak_bytes / 2**20:.0f} MB")
        return "\n".join([*lines, *(f"note        {note}" for note in self.notes)])


def plan_training(**keywords: Any) -> Plan:
    """Return what `train` would do with the same keywords; writes nothing.

    The time is measured: a few real steps of each stage are taken in memory and thrown away.
    """
    settings = call_settings(unwrapped(train), keywords)
    check_apart(Path(settings["out"]), settings["data"])
    check_run_dir(Path(settings["out"]))
    refuse_adapted(Path(settings["out"]))
    prepared = prepare(**{key: value for key, value in settings.items() if key in PREPARE})
    stages = prepared.stages()
    scale = prepared.train_config.steps_scale
    described, seconds = [], 0.0
    known = True
    for stage in stages:
        steps = max(1, round(stage.steps * scale))
        per_step = _time_step(prepared, stage)
        known = known and per_step is not None
        seconds += steps * (per_step or 0.0)
        trained = {id(p): p.numel() for module in stage.trained_modules() for p in module.parameters()}
        described.append(
            {
                "name": stage.name,
                "steps": steps,
                "batch_size": stage.batch_size,
                "parameters": sum(trained.values()),
                "seconds_per_step": per_step,
            }
        )
    spec = prepared.method.spec
    return Plan(
        settings=prepared.settings,
        n_train=len(prepared.train),
        n_held_out=0 if prepared.held_out is None else len(prepared.held_out),
        class_names=spec.class_names,
        shape=spec.shape,
        text_encoder="none" if spec.text is None else spec.text.encoder_name,
        stages=described,
        parameters=sum(p.numel() for p in prepared.method.parameters()),
        seconds=seconds if known else None,
        peak_bytes=_peak_bytes(),
        notes=prepared.notes,
        other_classes={
            name: tuple(prepared.split["classes"][part])
            for part, name in (("val", "validation"), ("novel", "novel"))
            if prepared.split["classes"][part]
        },
        after_stages=prepared.method.after_stages,
    )


def resolved_settings(**keywords: Any) -> dict[str, Any]:
    """Return every setting that `train` would use with the same keywords, without reading any image.

    `out` is left out, so that the settings can be used for several runs.
    """
    settings = call_settings(unwrapped(train), keywords)
    model_config, train_config, tasks = configs(settings)
    chosen = {key: settings[key] for key in PREPARE if key not in NOT_IN_CONFIG}
    chosen["tasks"] = tasks if settings["meta"] is not None else None
    return {**chosen, "model": model_config, "training": train_config}


SLOW_STEP = 5.0
"""Seconds of a trial step beyond which it is its own estimate: nobody waits for more of them."""


def _time_step(prepared: Prepared, stage: Any, n_trials: int = 3) -> float | None:
    """Return the seconds of one step of a stage, measured; None if it needs an earlier stage's result."""
    import torch

    from fewgen.training.phases import Context, Pixels

    device = torch.device("cpu")
    train = Pixels(prepared.train, device)
    held_out = None if prepared.held_out is None else Pixels(prepared.held_out, device)
    rng = torch.Generator().manual_seed(0)
    context = Context(0, stage.steps, stage, rng, train, held_out, device)
    try:
        with torch.random.fork_rng(devices=[]):
            begun = time.perf_counter()
            for trial in range(n_trials + 1):
                if trial == 1:
                    start = time.perf_counter()  # the first step pays for warming up
                    if start - begun > SLOW_STEP:
                        return start - begun
                indices = torch.randint(len(train), (stage.batch_size,), generator=rng)
                batch = train.at(indices)
                if stage.augment is not None:
                    batch = dataclasses.replace(batch, images=stage.augment(batch.images, rng))
                for phase in stage.phases:
                    if phase.loss is not None:
                        phase.loss(batch, context).total().backward()
                    elif phase.step is not None:
                        phase.step(batch, context)
            return (time.perf_counter() - start) / n_trials * 1.2  # the optimiser and the average come on top
    except Exception:
        return None
    finally:
        for module in stage.trained_modules():
            module.zero_grad(set_to_none=True)


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _say(text: str) -> None:
    """Print a note where progress goes, so that standard output stays free for results."""
    print(text, file=sys.stderr, flush=True)


@accepts_config
def quickstart(
    *,
    out: str | Path = "runs/quickstart",
    preset: str = "hybrid",
    shots: int = 30,
    seed: int = 0,
    steps_scale: float = 0.2,
    minutes: float | None = 1.3,
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
        minutes: limit on the training time; on a slow machine fewer steps are taken.
        text: where the vectors of the words "zero" to "nine" come from; see fewgen train --help.
        progress: show a progress bar, or progress lines where there is no terminal.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        The run; its folder holds grid.png, report.html and model.safetensors.
    """
    given = locals()
    keywords = quickstart_keywords(**{key: given[key] for key in _QUICKSTART})
    run = train(**keywords)
    if not run.result.interrupted:
        generate(run, n=10, seed=seed, out=Path(out) / "grid.png", overwrite=True)
    return run


_QUICKSTART = ("out", "preset", "shots", "seed", "steps_scale", "minutes", "text", "progress")


def quickstart_keywords(**keywords: Any) -> dict[str, Any]:
    """Return the keywords of `train` that `quickstart` with these keywords stands for."""
    settings = call_settings(unwrapped(quickstart), keywords)
    # Eight more of each digit than are learned from: enough for the verdicts at the end to mean something.
    return {"method": "cada_vqvae", "data": "digits", "holdout": 8, **settings}
