"""TAGE on classes that it never saw: codes of a transformer, nearest codes, and AGE's draws without codes.

Examples:
    python -m benchmarks tage --data omniglot fashion_mnist
    python -m benchmarks tage --data omniglot --steps-scale 0.1 --seeds 1 --docs ""
    python -m benchmarks tage --table-only
    python -m benchmarks tage --table-only --picture docs/images/tage.png

For each data set and seed a run learns from the base classes (--class-split auto). It then takes in novel
classes from 1 or 3 pictures each and draws --n images of each in every mode, from the same run, pictures and
seeds. Real images are the other ones of these classes. Judge and perceptual distance are a small classifier
trained on all classes. Every cell (data set, pictures, mode and seed) is a JSON file under --out; one that is
there is not computed again. The tables are also written into --docs, between two markers. --picture shows
novel classes of the first data set, the first of a shuffled list: three pictures of each, then what is drawn.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

import fewgen
from benchmarks.ablation import (
    Column,
    Grid,
    add_places,
    command_parser,
    figure_texts,
    finish_cell,
    made_by,
    markdown,
    publish,
    refuse,
    spread,
)
from fewgen.data.imageset import ImageSet, joined, to_uint8
from fewgen.encoders.classifier import ClassifierFeatures
from fewgen.errors import FewgenError
from fewgen.evaluation.distances import frechet_distance, kernel_distance
from fewgen.evaluation.diversity import collapse_share
from fewgen.evaluation.perceptual import FeaturePyramid, lpips_distance
from fewgen.evaluation.quality import ssim
from fewgen.generation.pictures import grid
from fewgen.methods.abilities import reconstructed
from fewgen.runs.environment import environment
from fewgen.runs.run import Run

PAGE = "docs/results/tage.md"
MARKERS = ("<!-- tage: begin -->", "<!-- tage: end -->")
ROWS = {"age": "AGE", "nn": "nearest codes", "cpm": "predicted codes"}
CONTROLS = {"back": "real images through the autoencoder", "real": "real images"}
ROWS |= CONTROLS
COLUMNS: tuple[Column, ...] = (
    ("Frechet distance", "frechet", 1.0, 2),
    ("KID", "kid", 1.0, 4),
    ("diversity", "diversity", 1.0, 3),
    ("class kept, %", "retention", 100.0, 1),
    ("collapsed pairs, %", "collapse", 100.0, 1),
)
BACK: tuple[Column, ...] = (
    ("SSIM", "ssim", 1.0, 3),
    ("SSIM after quantising", "ssim_quantised", 1.0, 3),
)
PAIRS_OF = 12
"""Images of a class whose pairs give the diversity."""

Key = tuple[str, int, str, int]
"""Data set, pictures, row, seed."""


@functools.cache
def trained(data: str, seed: int, steps_scale: float, out: str, data_dir: str | None) -> Run:
    """Return the run of a data set and seed, trained now if it is not there."""
    run: Run = fewgen.train(
        "tage",
        data=data,
        class_split="auto",
        seed=seed,
        steps_scale=steps_scale,
        data_dir=data_dir,
        out=Path(out) / "runs" / f"{data}-{steps_scale:g}-{seed}",
        report=False,
        progress=False,
    )
    return run


def chosen(run: Run, shots: int, categories: int, data_dir: str | None) -> tuple[ImageSet, ImageSet]:
    """Return the pictures of novel classes that are taken in, and other real images of these classes."""
    novel = run.other_images(data_dir)["novel"]
    names = list(novel.class_names)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:categories]
    novel = novel.select_classes([names[i] for i in sorted(order.tolist())])
    # The same rest for every number of pictures, so that figures are compared on the same real images.
    support = [(novel.labels == label).nonzero().flatten()[:3] for label in range(novel.n_classes)]
    rest = torch.ones(len(novel), dtype=torch.bool)
    rest[torch.cat(support)] = False
    used = novel.subset(torch.cat([rows[:shots] for rows in support]))
    return used, novel.subset(rest.nonzero().flatten())


@functools.cache
def judge_of(data: str, seed: int, steps_scale: float, out: str, data_dir: str | None) -> ClassifierFeatures:
    """Return the classifier of all classes of a data set."""
    run = trained(data, seed, steps_scale, out, data_dir)
    return ClassifierFeatures.of(joined(list(run.other_images(data_dir, with_base=True).values()), data))


def diversity(images: Tensor, labels: Tensor, judge: ClassifierFeatures) -> float:
    """Return the mean perceptual distance of pairs of a class, averaged over classes.

    >>> diversity(torch.zeros(0, 1, 8, 8), torch.zeros(0), None)
    0.0
    """
    first, second, of_class = [], [], []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()[:PAIRS_OF]
        i, j = torch.triu_indices(len(rows), len(rows), offset=1)
        first.append(rows[i])
        second.append(rows[j])
        of_class.append(len(i))
    if not of_class:
        return 0.0
    a, b = torch.cat(first), torch.cat(second)
    distances = lpips_distance(images[a], images[b], FeaturePyramid(judge))
    return float(torch.stack([part.mean() for part in distances.split(of_class) if len(part)]).mean())


def figures(made: ImageSet, real: ImageSet, judge: ClassifierFeatures) -> dict[str, float]:
    """Return the figures of images beside real ones of the same classes, in the same order of classes."""
    x, y = judge.features(made), judge.features(real)
    number = {name: i for i, name in enumerate(judge.class_names)}
    wanted = torch.tensor([number[name] for name in made.class_names])[made.labels]
    return {
        "frechet": frechet_distance(x, y),
        "kid": kernel_distance(x, y),
        "diversity": diversity(made.images, made.labels, judge),
        "retention": float((judge.predict(made) == wanted).double().mean()),
        "collapse": collapse_share(x, made.labels, y, real.labels, n_classes=made.n_classes).share,
    }


def through(run: Run, images: ImageSet, labels: Tensor) -> dict[str, float]:
    """Return the SSIM of images through the autoencoder, and with their residuals quantised."""
    method: Any = run.method
    with torch.no_grad():
        w = method.autoencoder.encode(images.floats())
        plain, coded = (
            to_uint8(method.autoencoder.decode(v).clamp(-1.0, 1.0)) for v in (w, method.quantised(w, labels))
        )
    return {
        "ssim": float(ssim(images.images, plain).mean()),
        "ssim_quantised": float(ssim(images.images, coded).mean()),
    }


def picture(run: Run, data_dir: str | None, classes: int = 8, n: int = 9) -> Image:
    """Return a row for each of some novel classes: three pictures, then images drawn from them."""
    used, _ = chosen(run, 3, classes, data_dir)
    adapted = fewgen.adapt(run, images=used, progress=False)
    drawn = adapted.generate(class_names=list(used.class_names), n=n).images
    each = drawn.reshape(used.n_classes, n, *drawn.shape[1:])
    order = used.labels.argsort(stable=True)
    shown = used.images[order].reshape(used.n_classes, 3, *drawn.shape[1:])
    heads = ["pictures", "", "", "drawn", *[""] * (n - 1)]
    return grid(torch.cat([shown, each], 1).flatten(0, 1), n + 3, heads=heads)


def compute(key: Key, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cell of a key."""
    data, shots, row, seed = key
    place = (data, seed, settings["steps_scale"], settings["out"], settings["data_dir"])
    run, judge = trained(*place), judge_of(*place)
    used, real = chosen(run, shots, settings["categories"], settings["data_dir"])
    started = time.process_time()
    found: dict[str, float] = {}
    if row in CONTROLS:  # one half against the other
        made = real.subset(torch.arange(0, len(real), 2))
        real = real.subset(torch.arange(1, len(real), 2))
        if row == "back":  # what no draw can be better than
            made = replace(made, images=reconstructed(run.method, made))
    else:
        adapted = fewgen.adapt(run, images=used, progress=False)
        drawn = adapted.generate(class_names=list(used.class_names), n=settings["n"], mode=row)
        n_old = len(run.class_names)
        made = ImageSet(drawn.images, drawn.labels - n_old, used.class_names, name=row)
        if row == "cpm":
            found = through(adapted, real, real.labels + n_old)
    found |= figures(made, real, judge)
    return {
        "asked": asked(key, settings),
        "figures": found,
        "seconds": time.process_time() - started,
        "environment": environment(),
    }


def asked(key: Key, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a cell is about."""
    return {
        "data": key[0],
        "pictures": key[1],
        "mode": key[2],
        **{name: settings[name] for name in ("n", "categories", "steps_scale")},
    }


def work(key: Key, settings: Mapping[str, Any], path: str, command: tuple[int, str]) -> str | None:
    """Compute a cell and write its file; return what went wrong, or None."""
    label = f"{key[0]}, {key[1]} pictures, {ROWS[key[2]]}, seed {key[3]}"
    return finish_cell(lambda: compute(key, settings), label, Path(path), command)


def section(cells: Mapping[Key, dict[str, Any]]) -> str:
    """Return the tables of finished cells as Markdown."""
    lines = []
    for data, shots in dict.fromkeys((key[0], key[1]) for key in cells):
        rows = {
            row: {key[3]: cell for key, cell in cells.items() if key[:3] == (data, shots, row)}
            for row in ROWS
        }
        lines += [f"### {data}: {shots} picture{'s' if shots > 1 else ''} of each novel class", ""]
        headings = ["", "seeds", *(heading for heading, *_ in COLUMNS)]
        lines += markdown(
            headings,
            [[ROWS[r], str(len(own)), *figure_texts(own, COLUMNS)] for r, own in rows.items() if own],
        )
        if rows["cpm"]:
            lines += ["", *markdown([h for h, *_ in BACK], [figure_texts(rows["cpm"], BACK)])]
        lines.append("")
    about = [cell["environment"] for cell in cells.values()]
    return "\n".join([*lines, made_by(about, [cell["seconds"] for cell in cells.values()], "drew for")])


def main(arguments: list[str] | None = None) -> int:
    """Compute the missing cells, print the tables and write them into the page."""
    parser = command_parser("tage", __doc__)
    add = parser.add_argument
    add("--data", nargs="+", default=["omniglot"], help="data sets that have a name")
    add("--seeds", type=int, default=3, help="runs of each data set")
    add("--shots", type=int, nargs="+", default=[1, 3], choices=(1, 2, 3), help="pictures of a class")
    add("--n", type=int, default=128, help="images drawn of each class")
    add("--categories", type=int, default=50, help="novel classes at most")
    add("--steps-scale", type=float, default=1.0, help="factor on the steps of training")
    add("--jobs", type=int, default=1, help="cells at a time")
    add("--picture", help="PNG file to write")
    add_places(parser, "runs/benchmark/tage", PAGE)
    options = parser.parse_args(arguments)
    settings = {
        name: getattr(options, name) for name in ("n", "categories", "steps_scale", "out", "data_dir")
    }
    keys = [
        (data, shots, row, seed)
        for data in options.data
        for seed in range(options.seeds)
        for shots in options.shots
        for row in ROWS
    ]
    cells = Grid(
        {key: ROWS[key[2]] for key in keys},
        {k: Path(options.out) / k[0] / f"{k[1]}-{k[2]}-{k[3]}.json" for k in keys},
        lambda key: asked(key, settings),
    )
    problems: list[str | None] = []
    try:
        cells.check()
        if not options.table_only:
            todo = cells.missing()
            for data, seed in dict.fromkeys((key[0], key[3]) for key in todo):
                trained(data, seed, options.steps_scale, options.out, options.data_dir)
            problems = spread(work, [(key, settings, str(cells.paths[key])) for key in todo], options.jobs)
        if options.picture:
            run = trained(options.data[0], 0, options.steps_scale, options.out, options.data_dir)
            picture(run, options.data_dir).save(options.picture)
    except FewgenError as error:
        return refuse(error)
    status = publish(cells, section, options.docs, MARKERS, "TAGE: classes that a run never saw")
    return 2 if any(problems) else status


if __name__ == "__main__":
    sys.exit(main())
