"""One cell of the grid: one generator with one seed, from training to its evaluation, in a folder.

    cells/<generator>/seed<s>/run/              of a fewgen method: its run folder
                              images.npz        what it generated
                              grid.png          ten of each class
                              made.json         settings, training, times: written last, so images are whole
                              evaluation.json   figures, controls and verdicts: the cell is finished
                              error.txt         why it failed, if it did

`run_cell` takes plain values alone, so that any joblib backend can run it anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from fewgen.clock import shown_minutes
from fewgen.comparison import sets
from fewgen.comparison.budget import Budget
from fewgen.comparison.candidates import folder_name, make_generator, takes_time
from fewgen.comparison.sets import RealImages
from fewgen.config.checks import Weight, Whole
from fewgen.config.records import read_record
from fewgen.data.identity import fingerprint
from fewgen.data.imageset import ImageSet
from fewgen.data.npz import is_whole_npz, save_npz
from fewgen.data.origin import drawn
from fewgen.data.registry import Reading, load_images
from fewgen.encoders.classifier import ClassifierFeatures
from fewgen.errors import ConfigError, DataError, in_words
from fewgen.evaluation.evaluation import evaluate_images
from fewgen.evaluation.judge import AUTO, CLASSIFIER, Judge, choose_judge
from fewgen.evaluation.real_side import RealSide
from fewgen.files import atomic_write, make_dir, write_json, write_text
from fewgen.generation.pictures import grid
from fewgen.runs.encoders import started_with
from fewgen.runs.environment import COMMAND_VARIABLE, environment

FORMAT = "fewgen-benchmark-cell"
FORMAT_VERSION = 1

Evaluate = Callable[..., Any]
"""As `fewgen.evaluation.evaluation.evaluate_images`."""


@dataclass(frozen=True)
class Settings:
    """What all cells of a benchmark have in common; plain values only.

    data: name, folder or .npz.
    shots: training images per class.
    minutes: training time of each generator.
    n: generated images of each cell, equally many per class.
    holdout: "auto", or held-out images per class; see `load_real`.
    reading: how the images are read.
    temperature: of generation with fewgen methods.
    clock: "wall" or "cpu", what a minute of training is; see `Clock`.
    cores: that "cpu" minutes stand for.
    useful_draws: paired trainings behind the usefulness of a cell; 0 leaves it out.
    features: of the judge, as after --features; "auto" until images are read.
    why: the reason, where a rule chose it.
    better: what to install for a better one, as a sentence.
    """

    data: str
    shots: int
    minutes: float
    n: int
    holdout: int | str = "auto"
    reading: Reading = Reading()
    temperature: float = 1.0
    clock: str = "wall"
    cores: int = 2
    useful_draws: int = 10
    features: str = AUTO
    why: str = ""
    better: str = ""

    @property
    def judge(self) -> Judge:
        """The judge of all cells."""
        return Judge(AUTO if self.why else self.features, self.features, self.why, self.better)

    def chosen(self) -> Settings:
        """Return the same with the judge that "auto" stands for; reads images."""
        if self.features != AUTO:
            return self
        judge = choose_judge(self.real().training)
        return dataclasses.replace(self, features=judge.features, why=judge.why, better=judge.better)

    def of_images(self) -> dict[str, Any]:
        """Return what decides the generated images, without anything that names a place."""
        kept = dataclasses.asdict(self)
        reading, usual = kept.pop("reading"), dataclasses.asdict(Reading())
        measuring = ("useful_draws", "features", "why", "better")
        for key in (*measuring, *(("cores",) if self.clock == "wall" else ())):
            del kept[key]
        # Earlier releases knew size and channels alone.
        kept |= {key: reading[key] for key in ("size", "channels")}
        for key in ("fit", "background", "convert", "value_range"):
            if reading[key] != usual[key]:
                kept[key] = list(reading[key]) if key == "value_range" else reading[key]
        # Which images a folder holds is told by their fingerprint, wherever it lies.
        return kept | {"data": Path(self.data).name}

    def of_measuring(self) -> dict[str, Any]:
        """Return what decides the figures besides the images."""
        return {"useful_draws": self.useful_draws, "features": self.features}

    def real(self) -> RealImages:
        """Load the real images; the last ones are kept in memory."""
        return _load_real(self.data, self.reading, self.holdout)


@functools.lru_cache(maxsize=1)
def _load_real(data: str, reading: Reading, holdout: int | str) -> RealImages:
    return sets.load_real(data, reading, holdout)


@functools.lru_cache(maxsize=1)
def _real_side(settings: Settings, seed: int, judge_path: Path) -> Any:
    """Return the real side of all cells with this seed: controls and their tests are worth keeping."""
    real = settings.real()
    train, rest = real.draw(settings.shots, seed)
    return RealSide(train, real.held_out, load_judge(settings, judge_path), rest, seed)


def forget() -> None:
    """Let go of the images that are kept between cells."""
    _load_real.cache_clear()
    _real_side.cache_clear()


def load_judge(settings: Settings, path: Path) -> Any:
    """Return the features of this benchmark; a classifier whose file is missing is made again, the same."""
    real = settings.real()
    encoder = settings.judge.encoder(real.training)
    if encoder is not None:
        return encoder
    if not path.is_file():
        return ClassifierFeatures.of(real.training, real.held_out)
    judge = ClassifierFeatures.load(path)
    judge.measure(real.held_out)
    return judge


@dataclass(frozen=True)
class Cell:
    """One generator with one seed.

    spec: the generator, as after --methods.
    seed: of the draw of the training images, of training, of generation and of measuring.
    settings: of the benchmark.
    out: folder of the benchmark.
    remeasure: measure again what is measured.
    """

    spec: str
    seed: int
    settings: Settings
    out: Path
    remeasure: bool = False

    @property
    def folder(self) -> Path:
        """Of this cell."""
        return self.out / "cells" / folder_name(self.spec) / f"seed{self.seed}"

    @property
    def to_do(self) -> str:
        """What is left: "make", "measure" or ""."""
        if not _is_made(self.folder):
            return "make"
        return "measure" if self.remeasure or not is_finished(self.folder) else ""

    def images(self) -> tuple[RealImages, ImageSet, ImageSet | None]:
        """Return the real images, those that this cell learns from, and those that are left over."""
        real = self.settings.real()
        return real, *real.draw(self.settings.shots, self.seed)


def is_finished(folder: Path) -> bool:
    """Tell whether the folder of a cell holds its images, whole, and its figures."""
    return _is_made(folder) and (folder / "evaluation.json").is_file()


def _is_made(folder: Path) -> bool:
    return (folder / "made.json").is_file() and not damage(folder)


def damage(folder: Path) -> str:
    """Return what is wrong with the images of a cell that says they are made; "" if nothing is."""
    file = folder / "images.npz"
    if not (folder / "made.json").is_file():
        return ""
    try:
        status = file.stat()
    except OSError:
        return "images.npz is missing"
    return "" if _is_whole(file, status.st_size, status.st_mtime_ns) else "images.npz is damaged"


@functools.lru_cache(maxsize=4096)
def _is_whole(file: Path, *_: int) -> bool:
    """Tell whether images can be read; a file that has not changed since is not read again."""
    return is_whole_npz(file)


def read_cell(folder: Path) -> dict[str, Any]:
    """Return the record of a finished cell.

    Raises:
        DataError: a file of it is damaged.
    """
    made = _read_made(folder)
    evaluation = read_record(folder / "evaluation.json", _Evaluation, advice="Delete it to measure again.")
    return {"generator": made["generator"], "seed": made["seed"], "made": made, "evaluation": evaluation}


class _Made(TypedDict):
    """What is read of `made.json`."""

    format: Literal["fewgen-benchmark-cell"]
    generator: str
    seed: Whole
    settings: dict[str, Any]
    train_fingerprint: str
    train_seconds: Weight


class _Figure(TypedDict, total=False):
    value: float | None
    ratio: float | None
    low: float | None
    high: float | None
    k: float | None
    note: str
    accuracy: dict[str, float]


class _Verdict(TypedDict):
    answer: str


class _Judge(TypedDict, total=False):
    name: str
    test_accuracy: float | None


class _About(TypedDict, total=False):
    relative: str


class _Protocol(TypedDict, total=False):
    extractor: _Judge
    linear_probe: _Judge
    judge: _About


class _Benchmark(TypedDict):
    settings: dict[str, Any]
    measure_seconds: Weight


class _Measured(TypedDict):
    figures: dict[str, _Figure]
    benchmark: _Benchmark


class _Evaluation(_Measured, total=False):
    """What is read of `evaluation.json`."""

    controls: dict[str, dict[str, _Figure]]
    verdicts: dict[str, _Verdict]
    protocol: _Protocol


def _read_made(folder: Path) -> _Made:
    return read_record(folder / "made.json", _Made, advice="Delete its folder to compute it again.")


def measured_by(folder: Path) -> dict[str, Any]:
    """Return with which settings a cell was measured; earlier versions did not write down the features."""
    found = read_cell(folder)["evaluation"]
    judge = (found.get("protocol") or {}).get("extractor") or {}
    return {"features": judge.get("name", CLASSIFIER)} | found["benchmark"]["settings"]


def differences(folder: Path, settings: Settings, remeasure: bool) -> list[str]:
    """Return in which settings a cell that is there differs from those asked for now."""
    if not (folder / "made.json").is_file():
        return []
    pairs = [(_read_made(folder)["settings"], settings.of_images())]
    if (folder / "evaluation.json").is_file() and not remeasure:
        pairs.append((measured_by(folder), settings.of_measuring()))
    return [
        f"{key} {there.get(key)} there, {now.get(key)} now"
        for there, now in pairs
        for key in sorted({*there, *now} - {"data"})  # `check_same_images` compares what lies there
        if there.get(key) != now.get(key)
    ]


def run_cell(
    cell: Cell,
    *,
    threads: int | None = None,
    progress: bool = True,
    evaluate: Evaluate | None = None,
    command: tuple[int, str] | None = None,
) -> dict[str, Any]:
    """Compute what is missing of one cell.

    Args:
        cell: which.
        threads: of torch, during this cell; None leaves them as they are.
        progress: whether to say on standard error what is being done.
        evaluate: `evaluate_images`, or a stand-in.
        command: process number and command that started this; records of another process name it.

    Returns:
        {"generator", "seed", "made", "evaluation"}; or {"generator", "seed", "error"}: whatever goes wrong
        in one cell is told and does not stop the others.
    """
    import torch

    folder, before = cell.folder, torch.get_num_threads()
    if command is not None and command[0] != os.getpid():
        os.environ[COMMAND_VARIABLE] = command[1]

    def say(text: str) -> None:
        if progress:
            print(f"[{cell.spec}, seed {cell.seed}] {text}", file=sys.stderr, flush=True)

    try:
        if threads is not None:
            torch.set_num_threads(threads)
        make_dir(folder)
        if cell.to_do == "make":
            if damage(folder):
                say(f"{damage(folder)}; the cell is computed again")
            _make(cell, say)
        if cell.to_do:
            _measure(cell, say, evaluate)
        found = read_cell(folder)
        (folder / "error.txt").unlink(missing_ok=True)
        return found
    except Exception as error:
        message = in_words(error)
        say(f"failed: {message}")
        _keep_reason(folder, traceback.format_exc())
        return {"generator": cell.spec, "seed": cell.seed, "error": message}
    finally:
        torch.set_num_threads(before)


def _keep_reason(folder: Path, text: str) -> None:
    try:
        write_text(folder / "error.txt", text)
    except OSError as error:  # a full disk, which may be the very reason
        print(f"{text}\n{error}", file=sys.stderr, flush=True)


def _make(cell: Cell, say: Callable[[str], None]) -> None:
    """Train and generate; images.npz, grid.png and made.json are in the folder afterwards."""
    spec, seed, settings, folder = cell.spec, cell.seed, cell.settings, cell.folder
    real, train, _ = cell.images()
    labels = torch.arange(train.n_classes).repeat_interleave(settings.n // train.n_classes)
    generator = make_generator(spec, folder, seed, _training(settings, real), settings.temperature)
    if takes_time(spec):
        say(f"training for {shown_minutes(settings.minutes)} ...")
    budget = Budget(settings.minutes, settings.clock, settings.cores)
    wall, cpu = time.perf_counter(), time.process_time()
    about = generator.fit(train, budget, seed)
    trained_wall, trained_cpu = time.perf_counter(), time.process_time()
    say("generating ...")
    images = generator.sample(labels, seed)
    generated = ImageSet(images, labels, train.class_names, name=spec)
    if images.shape != (len(labels), *train.images.shape[1:]):
        raise DataError(
            f"{spec} made images of the shape {tuple(images.shape)}, but "
            f"{(len(labels), *train.images.shape[1:])} was asked for."
        )
    made = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "generator": spec,
        "seed": seed,
        "settings": settings.of_images(),
        "train_fingerprint": fingerprint(train),
        "held_out": real.how,
        "training": about,
        "train_seconds": round(trained_wall - wall, 2),
        "train_cpu_seconds": round(trained_cpu - cpu, 2),
        "sample_seconds": round(time.perf_counter() - trained_wall, 2),
        "n_images": len(generated),
        "environment": environment(),
    }
    # Images of an earlier attempt that was stopped before made.json belong to nobody.
    (folder / "evaluation.json").unlink(missing_ok=True)
    save_npz(folder / "images.npz", generated.images, labels, train.class_names)
    _picture(generated, folder / "grid.png")
    write_json(folder / "made.json", made)


def _training(settings: Settings, real: RealImages) -> dict[str, Any]:
    """Return the keywords with which `fewgen.train` draws the same images.

    With a test part the data are named, so that the run folder knows where its images came from. Where
    images were set aside, it must not see them, and gets the others themselves.
    """
    if real.how != "test part":
        return {"data": real.training, "shots": settings.shots}
    return {"data": settings.data, "shots": settings.shots, **vars(settings.reading)}


def _picture(images: ImageSet, path: Path) -> None:
    """Write a grid with the first ten images of each of at most twenty classes."""
    shown = range(min(20, images.n_classes))
    rows: list[Tensor] = [(images.labels == c).nonzero().flatten()[:10] for c in shown]
    columns = max(len(row) for row in rows)
    picture = grid(
        images.images[torch.cat(rows)], columns=columns, labels=[images.class_names[c] for c in shown]
    )
    with atomic_write(path) as temporary:
        picture.save(temporary)


def _measure(cell: Cell, say: Callable[[str], None], evaluate: Evaluate | None) -> None:
    """Evaluate the images of a cell; evaluation.json is in the folder afterwards."""
    spec, seed, settings = cell.spec, cell.seed, cell.settings
    started = time.perf_counter()
    made = _read_made(cell.folder)
    real, train, rest = cell.images()
    if made["train_fingerprint"] != fingerprint(train):
        raise ConfigError(
            f"The images of {spec}, seed {seed}, were made from other training images: the data have changed "
            "since. Choose another --out."
        )
    loaded = load_images(cell.folder / "images.npz")
    images = loaded.images
    generated = ImageSet(images, loaded.labels, train.class_names, name=spec, origins=drawn(images))
    say("measuring ...")
    more: dict[str, Any] = {}
    if evaluate is None:
        evaluate = evaluate_images
        side = _real_side(settings, seed, (cell.out / JUDGE_NAME).absolute())
        more = {
            "real_side": side,
            # Trainings on real images alone are the same for every generator.
            "usefulness_options": {"real_cache": cell.out / "real-arms" / f"seed{seed}.json"},
        }
        judge = side.extractor
    else:
        judge = load_judge(settings, cell.out / JUDGE_NAME)
    evaluation = evaluate(
        generated,
        train,
        real.held_out,
        extractor=judge,
        pool=rest,
        useful_draws=settings.useful_draws,
        seed=seed,
        **more,
    )
    encoders = started_with(cell.folder / "run").get("encoders")
    evaluation.protocol["judge"] = settings.judge.of_run(encoders).record()
    seconds = time.perf_counter() - started
    record: Mapping[str, Any] = {
        **evaluation.to_dict(),
        "benchmark": {
            "settings": settings.of_measuring(),
            "seed": seed,
            "measure_seconds": round(seconds, 2),
            "environment": environment(),
        },
    }
    write_json(cell.folder / "evaluation.json", record)
    say(f"measured in {seconds:.0f} s")


JUDGE_NAME = "judge.safetensors"
