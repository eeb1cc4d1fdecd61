"""Runs of any method on photographs, measured by a judge that is no relative of the pretrained encoders.

Examples:
    python -m benchmarks photographs --runs runs/a runs/b --out runs/photographs
    python -m benchmarks photographs --runs "478bc7b=runs/old0,runs/old1" "projected=runs/new0,runs/new1"
    python -m benchmarks photographs --train sq_gan "sq_gan:projected model.mismatch=1.0" --minutes 15
    python -m benchmarks photographs --train sq_gan --data cifar10 --table-only

The judge is a residual network that is trained from scratch on the whole training part of the data set and
kept under --judges. Distances, coverage, recall and class agreement are in its features, against as many
images of the test part as are drawn; "real images" are other images of the test part, where it has enough.
The linear probe on features of a pretrained encoder stands beside it: it reads what a projected discriminator
learned to write, so it is a relative, and no proof on its own.

Every run is a cell, one JSON file under --out with a sheet of its images beside; a cell that is there is not
computed again, so a stopped benchmark continues with the same command. Runs that differ by their seed alone
are one row. --train trains the runs itself, --minutes of one processor each, and goes on with those that
were stopped.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ablation import (
    Column,
    Grid,
    add_places,
    cell_folder,
    command_parser,
    figure_texts,
    finish_cell,
    flat,
    known,
    made_by,
    markdown,
    publish,
    refuse,
    spread,
)
from benchmarks.sqgan_ablation import copying, verdicts
from fewgen.clock import n_cores
from fewgen.comparison.sets import RealImages, load_real
from fewgen.data.imageset import ImageSet
from fewgen.data.registry import Reading
from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings, ConvNet
from fewgen.encoders.named import make_image_encoder
from fewgen.encoders.probe import class_predictor
from fewgen.errors import ConfigError, FewgenError
from fewgen.evaluation import RealSide, frechet_distance, kernel_distance, label_agreement, neighbour_scores
from fewgen.evaluation.statistics import mean_and_spread
from fewgen.files import atomic_write, file_sha256, make_dir, write_json, write_text
from fewgen.generation.pictures import class_grid
from fewgen.runs.environment import environment
from fewgen.runs.evaluating import draw_images
from fewgen.runs.run import load_run
from fewgen.training.checkpoint import read_state

N_PROBED = 200
"""Real images per class that the linear probe learns from at most."""

FEWEST_STEPS = 1500
"""Of training a judge: a small data set is passed more often."""

N_SHOWN = 10
"""Classes on a sheet, and images of each."""

MARKERS = ("<!-- photographs: begin -->", "<!-- photographs: end -->")


# --------------------------------------------------------------------------------------------- the judge


@dataclass(frozen=True)
class JudgeSettings(ClassifierSettings):
    """How the judge is trained.

    flip: every training image is mirrored half of the time.
    """

    flip: bool = False

    @classmethod
    def of_images(cls, images: ImageSet, steps: int | None = None, width: int = 32) -> JudgeSettings:
        """Return settings for all training images of a data set: 8 passes, 1,500 steps at least.

        Mirror images of photographs are photographs; those of drawings may be of another class.
        """
        return cls(
            steps=max(FEWEST_STEPS, 8 * len(images) // 128) if steps is None else steps,
            lr=5e-3,
            weight_decay=0.05,
            width=width,
            dim=4 * width,
            max_shift=max(1, min(images.size) // 8),
            flip=images.channels == 3,
        )

    def varied(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return training images (B, C, H, W), each shifted and half of them mirrored."""
        x = super().varied(x, rng)
        if not self.flip:
            return x
        mirrored = torch.rand(len(x), generator=rng) < 0.5
        return torch.where(mirrored[:, None, None, None], x.flip(3), x)


class ResidualNet(ConvNet):
    """Three convolutions that halve the side, with a residual block after the second and the third.

    Source: the shape of He et al. 2016, arXiv:1603.05027, cut down to what a processor trains in minutes.

    Args:
        channels: of the images.
        n_classes: outputs of the last layer.
        width: channels of the first convolution; the others have two and four times as many.
    """

    def __init__(self, channels: int, n_classes: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _layer(channels, width, pool=True),
            _layer(width, 2 * width, pool=True),
            _Residual(2 * width),
            _layer(2 * width, 4 * width, pool=True),
            _Residual(4 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, n_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 4 * width) and logits of images (B, C, H, W) in [-1, 1]."""
        # Judged is in float32, so that features are the same whatever the processor.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training and multiplies_bfloat16()):
            features = self.body(x.contiguous(memory_format=torch.channels_last))
        return features.float(), self.head(features.float())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(_layer(width, width), _layer(width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.change(x)
        return out


def _layer(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        *([nn.MaxPool2d(2)] if pool else []),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def multiplies_bfloat16() -> bool:
    """Tell whether the processor multiplies bfloat16 numbers itself; elsewhere they would take longer."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


class Judge(ClassifierFeatures):
    """A classifier of the whole data set: a larger network than the one of evaluations, trained longer."""

    name = "judge"
    Settings = JudgeSettings

    @classmethod
    def build(cls, shape: tuple[int, int, int], n_classes: int, settings: ClassifierSettings) -> ConvNet:
        """Return an untrained network for images of (channels, height, width)."""
        return ResidualNet(shape[0], n_classes, settings.width)

    @classmethod
    def _train(cls, *arguments: Any) -> ClassifierFeatures:
        started = time.process_time()
        made = super()._train(*arguments)
        made._about |= {
            "train_cpu_seconds": round(time.process_time() - started, 1),
            "bfloat16": multiplies_bfloat16(),
        }
        return made


# ------------------------------------------------------------------------------------------ real images


@dataclass(frozen=True)
class Settings:
    """What all cells of a command have in common; plain values only.

    Attributes:
        images: drawn of each class, where the test part has as many.
        probe: encoder of the linear probe, by name; "": no probe.
        judges: folder of the judges.
        judge_steps: of training a judge; None: by the number of images.
        judge_width: channels of its first convolution.
        data_dir: folder of the data sets.
    """

    images: int = 200
    probe: str = "lite2"
    judges: str = "runs/photographs/judges"
    judge_steps: int | None = None
    judge_width: int = 32
    data_dir: str | None = None

    def of_measuring(self) -> dict[str, Any]:
        """Return what decides the figures of a run."""
        return {
            "images": self.images,
            "probe": self.probe,
            "judge": f"{self.judge_steps or 'usual'} steps, width {self.judge_width}",
        }


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Real images of some classes and what is known of them in advance.

    Attributes:
        test: of the test part, as many of each class as are drawn.
        features: of these, by the judge.
        judge: trained on the whole training part.
        known: the judge's number of each class.
        probe: images -> classes by the linear probe, int64 (N,); None: there is none.
        about: of the judge and its accuracy on the whole test part.
        real: figures of real images.
    """

    test: ImageSet
    features: Tensor
    judge: ClassifierFeatures
    known: Tensor
    probe: Callable[[ImageSet], Tensor] | None
    about: dict[str, Any]
    real: dict[str, float | None]

    def figures(self, images: ImageSet) -> dict[str, float | None]:
        """Return what the judge and the probe say of images of these classes, beside as many test images."""
        seen = self.judge.describe(images)
        assert seen.predictions is not None
        near = neighbour_scores(self.features, seen.features)
        names = self.judge.class_names
        read = None if self.probe is None else self.probe(images)
        return {
            "frechet": frechet_distance(self.features, seen.features),
            "kid": kernel_distance(self.features, seen.features),
            "coverage": near.coverage,
            "recall": near.recall,
            "agreement": label_agreement(seen.predictions, self.known[images.labels], names).overall.value,
            "probe": None
            if read is None
            else label_agreement(read, images.labels, images.class_names).overall.value,
        }


@functools.cache
def judge_of(
    data: str, reading: Reading, settings: Settings
) -> tuple[RealImages, ClassifierFeatures, dict[str, Any]]:
    """Return the images of a data set and its judge, trained at the first use; and its record."""
    real = load_real(data, reading)
    how = JudgeSettings.of_images(real.training, settings.judge_steps, settings.judge_width)

    def told(step: int, steps: int, loss: float) -> None:
        print(f"judge of {data}: step {step} of {steps}, loss {loss:.3f}", file=sys.stderr, flush=True)

    judge = Judge.of(real.training, real.held_out, how, cache_dir=settings.judges, progress=told)
    return real, judge, judge.record()  # before others measure it on fewer images


@functools.lru_cache(maxsize=2)
def yardstick_of(data: str, reading: Reading, names: tuple[str, ...], settings: Settings) -> Yardstick:
    """Return the real images of these classes; of the test part twice as many as are drawn, if it can."""
    real, judge, about = judge_of(data, reading, settings)
    held_out = real.held_out.select_classes(names)
    least = int(held_out.counts().min())
    n = min(settings.images, least)
    test, others = held_out.split_shots(n, n if least >= 2 * n else 0, 0)
    probe = None
    if settings.probe:
        some = real.training.select_classes(names)
        some = some.shots(min(N_PROBED, int(some.counts().min())), 0)
        encoder = make_image_encoder(settings.probe, some)
        predict = class_predictor(encoder, some)
        probe = lambda images: predict(encoder.features(images))  # noqa: E731
    known = torch.tensor([judge.class_names.index(name) for name in names])
    yard = Yardstick(test, judge.features(test), judge, known, probe, about, {})
    yard.real.update(yard.figures(others if len(others) else test))
    yard.real["agreement"] = about["test_accuracy"]
    if not len(others):
        # The same images on both sides say nothing of distances.
        yard.real.update(dict.fromkeys(("frechet", "kid", "coverage", "recall")))
    return yard


# ------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Training:
    """A run that is trained here.

    Attributes:
        spec: METHOD[:PRESET] and settings, as after --train.
        data: name, folder or .npz.
        shots: images of each class.
        minutes: of one processor.
        seed: of the choice of images and of the training.
    """

    spec: str
    data: str
    shots: int
    minutes: float
    seed: int

    def about(self) -> dict[str, Any]:
        """Return what its row is about, JSON values."""
        return {"train": self.spec, "data": self.data, "shots": self.shots, "minutes": self.minutes}

    def arguments(self, out: Path, data_dir: str | None) -> list[str]:
        """Return the arguments of `fewgen train`.

        Raises:
            ConfigError: a setting that is not KEY=VALUE.
        """
        named, *settings = shlex.split(self.spec)
        method, _, preset = named.partition(":")
        flags = []
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals:
                raise ConfigError(f'"{setting}" in --train "{self.spec}" is no setting: write it KEY=VALUE.')
            flags += [f"--{key}", value]
        # The clock counts all cores, of which one is used.
        minutes = f"{self.minutes / n_cores():.6g}"
        return [
            *("train", method, "--preset", preset or "default", "--data", self.data),
            *("--shots", str(self.shots), "--seed", str(self.seed), "--minutes", minutes, "--clock", "cpu"),
            *("--training.threads", "1", "--no-report", "--no-progress", "--out", str(out), *flags),
            *(("--data-dir", data_dir) if data_dir else ()),
        ]


@dataclass(frozen=True)
class Cell:
    """A run and the row that it stands in.

    Attributes:
        row: name in the table.
        run: its folder.
        number: of the run among those of the row.
        training: how it is trained; None: it is there.
    """

    row: str
    run: Path
    number: int
    training: Training | None = None


def call_fewgen(arguments: Sequence[str]) -> None:
    """Run a command of fewgen on one thread, as a process of its own.

    Raises:
        FewgenError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "fewgen", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise FewgenError(f"fewgen {' '.join(arguments[:2])}: {lines[-1].removeprefix('error: ')}")


def processor_seconds(run: Path) -> float | None:
    """Return the processor seconds that a run has taken, in all sessions; None if it did not count them."""
    state = read_state(run / "state")
    limit = None if state is None else state.values.get("limit")
    if not limit or limit["clock"] != "cpu":
        return None
    return float(limit["spent"]) * n_cores()


def asked(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Return what a cell is about: a run by how it is trained, or by the numbers in its model file."""
    if cell.training is not None:
        return {**cell.training.about(), "seed": cell.training.seed, **settings.of_measuring()}
    return {"model": file_sha256(load_run(cell.run).model_path), **settings.of_measuring()}


def compute(cell: Cell, settings: Settings, sheet: Path) -> dict[str, Any]:
    """Train the run if that is to be done, draw its images and measure them."""
    torch.set_num_threads(1)
    if cell.training is not None:
        call_fewgen(cell.training.arguments(make_dir(cell.run), settings.data_dir))
    run = load_run(cell.run, "cpu")
    data = run.config.get("data")
    if not data:
        raise ConfigError(f'"{cell.run}" does not say on which images it was trained: name a run folder.')
    train, _ = run.images(settings.data_dir)
    yard = yardstick_of(str(data), run.reading(settings.data_dir), run.class_names, settings)
    generated = draw_images(run, int(yard.test.counts()[0]), 0, cell.row)
    figures = measure(generated, RealSide(train, yard.test, yard.judge), yard)
    some = generated.subset(generated.labels < N_SHOWN)
    with atomic_write(make_dir(sheet.parent) / sheet.name) as temporary:
        class_grid(some.images, some.labels, some.class_names, columns=N_SHOWN).save(temporary, format="PNG")
    encoders = run.config.get("encoders") or {}
    return {
        "row": cell.row,
        "run": str(cell.run),
        "seed": run.config.get("seed"),
        "asked": asked(cell, settings),
        "data": str(data),
        "shots": run.config.get("shots"),
        "n_test": len(yard.test),
        "trained_with": sorted({r["name"] for use, r in encoders.items() if use != "text"}),
        "judge": yard.about,
        "real": yard.real,
        "figures": {**figures, "cpu_seconds": processor_seconds(cell.run)},
        "sheet": str(sheet),
        "environment": environment(),
    }


def measure(generated: ImageSet, real: RealSide, yard: Yardstick) -> dict[str, Any]:
    """Return the figures of generated images, and the verdict on copies with its reason.

    Args:
        generated: the images.
        real: what they were learned from, beside the images of the yardstick.
        yard: real images of their classes.
    """
    assert real.held_out is not None
    side = real.side(generated)
    usual = real.held_out.nearest.distance.median()
    return {
        **yard.figures(generated),
        "nearest": float(side.nearest.distance.median() / usual),
        **copying(side, real),
    }


def run_cell(cell: Cell, settings: Settings, path: Path, command: tuple[int, str]) -> str | None:
    """Compute a cell and write its file; return what went wrong, or None."""
    label = f"{cell.row}, {cell.run}"
    return finish_cell(lambda: compute(cell, settings, path.with_suffix(".png")), label, path, command)


# -------------------------------------------------------------------------------------------------- rows


def cells_of_runs(runs: Sequence[str], data_dir: str | None = None) -> list[Cell]:
    """Return the cells of run folders: NAME=FOLDER,FOLDER is a row, the others are grouped by their settings.

    Raises:
        FewgenError: a folder that is no run.
    """
    rows: dict[str, list[Path]] = {}
    alike: dict[str, list[Path]] = {}
    for text in runs:
        name, equals, folders = text.partition("=")
        if equals and not Path(text).exists():
            rows.setdefault(name, []).extend(Path(folder) for folder in folders.split(",") if folder)
        else:
            config = flat(load_run(text).config)
            about = {key: value for key, value in config.items() if key not in ("seed", "training.seed")}
            alike.setdefault(json.dumps(about, sort_keys=True), []).append(Path(text))
    first: dict[str, dict[str, Any]] = {}
    for about_text, folders_alike in alike.items():
        own = json.loads(about_text)
        name = f"{own['method']}:{own['preset']}" if own else folders_alike[0].name
        base = first.setdefault(name, own)
        changes = [f"{key.removeprefix('model.')} {v}" for key, v in own.items() if base.get(key) != v]
        rows.setdefault(" ".join([name, *changes]), []).extend(folders_alike)
    return [Cell(name, folder, i) for name, folders in rows.items() for i, folder in enumerate(folders)]


def cells_to_train(options: argparse.Namespace) -> list[Cell]:
    """Return the cells of --train, seed by seed: every row comes once before any comes twice."""
    cells = []
    for number, seed in enumerate(options.seeds):
        for spec in options.train:
            training = Training(spec, options.data, options.shots, options.minutes, seed)
            folder = Path(options.out) / "runs" / cell_folder(training.about(), {}) / f"seed{seed}"
            training.arguments(folder, None)  # a spec that cannot be read is told before any training
            cells.append(Cell(spec, folder, number, training))
    return cells


# ------------------------------------------------------------------------------------------------ tables


def by_row(cells: Mapping[Any, dict[str, Any]]) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """Return (data set and shots, row) -> number -> cell."""
    rows: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for cell in cells.values():
        shots = "all images" if cell["shots"] is None else f"{cell['shots']} images per class"
        own = rows.setdefault((f"{cell['data']}, {shots}", cell["row"]), {})
        own[len(own)] = cell
    return rows


def columns_of(settings: Settings) -> tuple[Column, ...]:
    """Return the columns of the tables."""
    return (
        ("Fréchet", "frechet", 1, 2),
        ("KID", "kid", 1, 3),
        ("coverage", "coverage", 1, 2),
        ("recall", "recall", 1, 2),
        ("class agreement %", "agreement", 100, 1),
        *([(f"probe on {settings.probe} (relative) %", "probe", 100, 1)] if settings.probe else []),
        ("median distance to nearest training image (1 = real)", "nearest", 1, 2),
        ("processor s", "cpu_seconds", 1, 0),
    )


def section(cells: Mapping[Any, dict[str, Any]], settings: Settings) -> str:
    """Return the tables of finished cells, and where the numbers come from."""
    columns, rows = columns_of(settings), by_row(cells)
    lines: list[str] = []
    for title in dict.fromkeys(title for title, _ in rows):
        found = {name: own for (of, name), own in rows.items() if of == title}
        first = next(iter(found.values()))[0]
        headings = ["", "runs", *(column[0] for column in columns), "new?", "trained with"]
        real = figure_texts({0: {"figures": first["real"]}}, columns)
        table = [["real images", "", *real, "", ""]]
        for name, own in found.items():
            used = sorted({encoder for cell in own.values() for encoder in cell["trained_with"]})
            table.append(
                [name, str(len(own)), *figure_texts(own, columns), verdicts(own), ", ".join(used) or "-"]
            )
        judge = first["judge"]
        lines += [f"### {title}", "", *markdown(headings, table), ""]
        lines += [
            f"{first['n_test']} generated images, as many of each class, beside as many of the test part. "
            f"Judge: trained from scratch on {judge['n_train']} images in {judge['train_cpu_seconds']:.0f} "
            f"processor seconds, right for {100 * judge['test_accuracy']:.1f} % of {judge['n_test']} test "
            "images.",
            "",
        ]
    relative = (
        f" The probe on {settings.probe} learned from up to {N_PROBED} real images of each class; it is a "
        "relative of discriminators on pretrained features."
        if settings.probe
        else ""
    )
    seconds = [s for cell in cells.values() if (s := cell["figures"]["cpu_seconds"]) is not None]
    made = made_by([cell["environment"] for cell in cells.values()], seconds or [0.0])
    made = made if seconds else made.rpartition(";")[0] + "."
    return "\n".join([*lines, f"Mean ± standard deviation over runs.{relative} {made}"])


def record(cells: Mapping[Any, dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """Return the rows of the tables with all their numbers, JSON-ready."""
    found = []
    for (title, name), own in by_row(cells).items():
        figures = {}
        for _, key, _, _ in columns_of(settings):
            values = list(known(own, key).values())
            if values:
                mean, deviation = mean_and_spread(values)
                figures[key] = {"mean": mean, "spread": deviation, "values": values}
        found.append({"title": title, "row": name, "figures": figures, "cells": list(own.values())})
    return found


# ----------------------------------------------------------------------------------------------- command


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_parser("photographs", __doc__)
    add = parser.add_argument
    add("--runs", nargs="+", default=[], help="run folders; NAME=FOLDER,FOLDER is a row of that name")
    add("--train", nargs="+", default=[], help='rows to train: "METHOD[:PRESET] KEY=VALUE ..."')
    add("--data", default="cifar10", help="what --train learns from")
    add("--shots", type=int, default=30, help="images per class that --train learns from")
    add("--minutes", type=float, default=15.0, help="of one processor, for each run of --train")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of --train")
    add("--images", type=int, default=200, help="drawn of each class, if the test part has as many")
    add("--probe", default="lite2", help='encoder of the linear probe; "" for none')
    add("--judges", default=None, help="folder of the judges; by default within --out")
    add("--judge-steps", type=int, default=None, help="of training a judge; by default 8 passes")
    add("--judge-width", type=int, default=32, help="channels of its first convolution")
    add("--jobs", type=int, default=1, help="cells at a time, one thread each")
    add_places(parser, "runs/photographs", "")
    options = parser.parse_args(arguments)
    if not options.runs and not options.train:
        parser.error("name --runs, or rows to --train")
    if min(options.jobs, options.images, options.shots, options.judge_width) < 1 or options.minutes <= 0:
        parser.error("--jobs, --images, --shots and --judge-width must be 1 or more, --minutes above 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Compute the missing cells, print the tables and write them."""
    options = _arguments(arguments)
    out = Path(options.out)
    settings = Settings(
        options.images,
        options.probe,
        options.judges or str(out / "judges"),
        options.judge_steps,
        options.judge_width,
        options.data_dir,
    )
    try:
        cells = {}
        for cell in [*cells_of_runs(options.runs), *cells_to_train(options)]:
            about = asked(cell, settings)
            cells[cell_folder({"row": cell.row, **about}, about), cell.number] = cell
        grid = Grid(
            {key: cell.row for key, cell in cells.items()},
            {key: out / "cells" / f"{key[0]}.json" for key in cells},
            lambda key: asked(cells[key], settings),
        )
        grid.check()
        todo = [] if options.table_only else grid.missing()
        if options.jobs > 1:
            for data, reading in dict.fromkeys(source_of(cells[key], settings) for key in todo):
                judge_of(data, reading, settings)  # trained once, before several cells need it
    except FewgenError as error:
        return refuse(error)
    calls = [(cells[key], settings, grid.paths[key]) for key in todo]
    failed = spread(run_cell, calls, options.jobs) if calls else []
    found = grid.finished()
    if found:
        write_json(out / "photographs.json", record(found, settings))
        write_text(out / "table.md", section(found, settings) + "\n")
    title = "Photographs: results"
    status = publish(grid, lambda done: section(done, settings), options.docs, MARKERS, title)
    return 2 if any(failed) else status


def source_of(cell: Cell, settings: Settings) -> tuple[str, Reading]:
    """Return the data of a run and how they are read."""
    if cell.training is not None:
        return cell.training.data, Reading(data_dir=settings.data_dir)
    run = load_run(cell.run)
    return str(run.config.get("data")), run.reading(settings.data_dir)


if __name__ == "__main__":
    sys.exit(main())
