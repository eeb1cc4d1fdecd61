"""How often verdicts are wrong: false alarms on real images, misses on known faults, over repeated draws.

Examples:
    python -m benchmarks verdicts
    python -m benchmarks verdicts --data digits fashion_mnist --draws 20 --jobs 2
    python -m benchmarks verdicts --data cifar10 tiny_imagenet32 imagenette64 --features lite0
    python -m benchmarks verdicts --table-only

Each draw takes training images, held-out images and a third set of real images of the same classes, apart
from each other. The judge learns from the training images alone, as it does for a user who has nothing else;
with --features it is a linear probe on the features of a pretrained encoder that does. Then the third set is
evaluated in place of generated images (every verdict should be "yes"), and sets with one fault each, which
one verdict must name ("no"). What failed generators draw is made from the third set, so that these images
are others than the controls that the verdict is tried on. A draw is a file; those that exist are not
computed again. All sets get their first draw, then their second, and so on.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewgen.comparison.candidates import folder_name
from fewgen.data.imageset import ImageSet
from fewgen.evaluation.failed import FAILED, failed_images
from fewgen.evaluation.judge import CLASSIFIER
from fewgen.files import read_json, write_json
from fewgen.runs.environment import environment


@dataclass(frozen=True)
class Protocol:
    """Images of each class that are trained on, held out and judged, classes of a draw, draws by default."""

    per_class: tuple[int, int, int]
    draws: int
    n_classes: int = 0
    """Classes of each draw, chosen at random; 0: all."""
    resampled: bool = False
    """So few images that draws share most of them: no interval is given."""


DATA = {
    "digits": Protocol((30, 20, 20), 75),
    "mnist": Protocol((30, 20, 20), 75),
    "fashion_mnist": Protocol((30, 20, 20), 75),
    "omniglot": Protocol((8, 6, 6), 75, n_classes=20),
    "cifar10": Protocol((30, 20, 20), 25),
    "tiny_imagenet32": Protocol((30, 20, 20), 25, n_classes=10),
    "imagenette64": Protocol((30, 20, 20), 25, resampled=True),
}

TARGETS = {
    "exact copies": "new",
    "shifted by one pixel": "new",
    "mirrored copies": "new",
    "augmented copies": "new",
    "one image per class": "diverse",
    "shuffled labels": "aligned",
    "copies enlarged by 15 %": "new",
    "copies turned by 90 degrees": "new",
    "noise": "real",
    **{name.replace("_", " "): "real" for name in FAILED},
}
"""Fault -> the question whose verdict must be "no"."""

BEYOND = {
    "a fifth are copies": "new",
    "mixtures of two training images": "new",
    "each image twice": "diverse",
    "dark speckle": "real",
    "fog": "real",
}
"""Faults that no control stands for -> the question they belong to. What is missed here is a known limit."""

QUESTIONS = ("real", "diverse", "new", "aligned")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks verdicts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", nargs="+", default=list(DATA), choices=list(DATA))
    add(
        "--draws",
        type=int,
        default=None,
        help="draws of each data set; by default 75 of small drawings, 25 of photographs",
    )
    add(
        "--first",
        type=int,
        default=4,
        help="first draw; the rules were settled on draws 0 to 3, which do not count",
    )
    add("--jobs", type=int, default=1, help="processes")
    add("--out", default="runs/verdicts", help="folder of the draws")
    add("--features", default=CLASSIFIER, help="the judge, as in fewgen evaluate; each has its own draws")
    add("--data-dir", default=None, help="folder of the data sets; by default FEWGEN_DATA_DIR")
    add("--table-only", action="store_true", help="print the table of the finished draws")
    return parser.parse_args(arguments)


@functools.lru_cache(maxsize=len(DATA))
def _all_images(name: str, data_dir: str | None) -> ImageSet:
    """Return training and test part together: no classifier was trained on either."""
    from fewgen.data import load_images

    parts = [load_images(name, split=split, data_dir=data_dir) for split in ("train", "test")]
    return ImageSet(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        parts[0].class_names,
        name=name,
    )


def three_sets(images: ImageSet, name: str, draw: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Return training, held-out and judged real images of one draw, apart from each other."""
    protocol = DATA[name]
    k, held, judged = protocol.per_class
    if protocol.n_classes:
        order = torch.randperm(images.n_classes, generator=torch.Generator().manual_seed(draw))
        chosen = order[: protocol.n_classes].tolist()
        images = images.select_classes([images.class_names[i] for i in chosen])
    train, rest = images.split_shots(k, held + judged, draw)
    place = torch.arange(len(rest)) % (held + judged)  # the rest is grouped by class
    return train, rest.subset(place < held), rest.subset(place >= held)


def faulty_sets(train: ImageSet, real: ImageSet, seed: int) -> dict[str, ImageSet]:
    """Return the sets with one fault each, as many images as `real` has."""
    from fewgen.evaluation.controls import augmented_copies

    rng = torch.Generator().manual_seed(seed)
    names = train.class_names
    per_class = torch.bincount(real.labels, minlength=len(names))
    chosen = torch.cat(
        [
            (train.labels == c).nonzero().flatten()[torch.arange(int(n)) % int((train.labels == c).sum())]
            for c, n in enumerate(per_class)
        ]
    )
    copies = train.subset(chosen)
    first = torch.stack([(real.labels == c).int().argmax() for c in range(len(names))])

    def made(images: Tensor, labels: Tensor) -> ImageSet:
        return ImageSet(images, labels, names)

    return {
        "exact copies": copies,
        "shifted by one pixel": made(_shifted(copies.images, rng), copies.labels),
        "mirrored copies": made(copies.images.flip(3), copies.labels),
        "augmented copies": augmented_copies(copies, rng),
        "one image per class": made(real.images[first[real.labels]], real.labels),
        "shuffled labels": made(real.images, real.labels[torch.randperm(len(real), generator=rng)]),
        "copies enlarged by 15 %": made(_enlarged(copies.images), copies.labels),
        "copies turned by 90 degrees": made(copies.images.rot90(1, (2, 3)), copies.labels),
        "noise": made(torch.randint(0, 256, real.images.shape, generator=rng).to(torch.uint8), real.labels),
        **{name.replace("_", " "): images for name, images in failed_images(real, seed).items()},
    }


def sets_beyond(train: ImageSet, real: ImageSet, copies: ImageSet, seed: int) -> dict[str, ImageSet]:
    """Return the sets with the faults of `BEYOND`, as many images as `real` has."""
    rng = torch.Generator().manual_seed(seed)
    names = train.class_names
    fifth = torch.randperm(len(real), generator=rng)[: len(real) // 5]
    mixed = real.images.clone()
    # `copies` has the classes of `real`, in the same order.
    mixed[fifth] = copies.images[fifth]
    others = train.subset(
        torch.cat(
            [
                members[torch.randint(0, len(members), (int((copies.labels == c).sum()),), generator=rng)]
                for c in range(len(names))
                for members in [(train.labels == c).nonzero().flatten()]
            ]
        )
    )
    blended = ((copies.images.float() + others.images.float()) / 2).round().to(torch.uint8)
    half = torch.arange(len(real)) // 2 * 2

    return {
        "a fifth are copies": ImageSet(mixed, real.labels, names),
        "mixtures of two training images": ImageSet(blended, copies.labels, names),
        "each image twice": ImageSet(real.images[half], real.labels[half], names),
        "dark speckle": ImageSet(_speckle(train.images, len(real), rng), real.labels, names),
        "fog": ImageSet(_fog(train, real.labels, rng), real.labels, names),
    }


def _enlarged(images: Tensor) -> Tensor:
    """Return the middle of images that were enlarged by 15 %."""
    height, width = images.shape[2:]
    grown = torch.nn.functional.interpolate(
        images.float(), scale_factor=1.15, mode="bilinear", antialias=True
    )
    top, left = (grown.shape[2] - height) // 2, (grown.shape[3] - width) // 2
    return grown[:, :, top : top + height, left : left + width].round().clamp(0, 255).to(torch.uint8)


def _speckle(images: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Return n images of noise with half the mean and half the spread of each pixel."""
    x = images.float()
    noise = torch.randn(n, *images.shape[1:], generator=rng)
    return ((x.mean(dim=0) + x.std(dim=0) * noise) / 2).round().clamp(0, 255).to(torch.uint8)


def _fog(train: ImageSet, labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return what a linear model draws: class means, and normal numbers along five principal components."""
    x = train.images.float().flatten(1)
    means = torch.stack([x[train.labels == c].mean(dim=0) for c in range(train.n_classes)])
    _, scale, axes = torch.linalg.svd(x - means[train.labels], full_matrices=False)
    spread = scale[:5] / (len(x) - 1) ** 0.5
    codes = torch.randn(len(labels), len(spread), generator=rng) * spread
    drawn = means[labels] + codes @ axes[: len(spread)]
    return drawn.round().clamp(0, 255).to(torch.uint8).reshape(len(labels), *train.images.shape[1:])


def _shifted(images: Tensor, rng: torch.Generator) -> Tensor:
    """Move each image by one pixel up, down, left or right; its border is repeated."""
    padded = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)
    height, width = images.shape[2:]
    moves = torch.tensor([(0, 1), (2, 1), (1, 0), (1, 2)])[torch.randint(0, 4, (len(images),), generator=rng)]
    rows = moves[:, :1] + torch.arange(height)
    columns = moves[:, 1:] + torch.arange(width)
    picked = padded[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def one_draw(name: str, draw: int, images: ImageSet, features: str = CLASSIFIER) -> dict[str, Any]:
    """Return the verdicts of every set of one draw; JSON-ready."""
    from fewgen.encoders.classifier import ClassifierFeatures
    from fewgen.encoders.named import make_image_encoder
    from fewgen.evaluation.evaluation import RealSide, evaluate_images

    train, held_out, real = three_sets(images, name, draw)
    own = features == CLASSIFIER
    judge = ClassifierFeatures.of(train, use_cache=False) if own else make_image_encoder(features, train)
    side = RealSide(train, held_out, judge, seed=draw)
    found = {}
    faulty = faulty_sets(train, real, draw)
    beyond = sets_beyond(train, real, faulty["exact copies"], draw)
    for subject, judged in {"real images": real, **faulty, **beyond}.items():
        evaluation = evaluate_images(judged, train, held_out, real_side=side, useful_draws=0, seed=draw)
        found[subject] = {
            question: {
                "answer": evaluation.verdicts[question].answer,
                "why": evaluation.verdicts[question].why,
                "tests": [
                    {key: test[key] for key in ("name", "answer", "controls")}
                    for test in evaluation.verdicts[question].tests
                ],
            }
            for question in QUESTIONS
        }
    return {
        "data": name,
        "draw": draw,
        "counts": {"train": len(train), "held_out": len(held_out), "judged": len(real)},
        "features": features,
        "judge_accuracy": (judge.record() if own else side.linear_probe)["test_accuracy"],
        "subjects": found,
        "environment": environment(),
    }


def _cell(name: str, draw: int, path: Path, data_dir: str | None, features: str) -> None:
    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = _all_images(name, data_dir)
    start = time.process_time()
    found = one_draw(name, draw, images, features)
    write_json(path, found | {"processor_seconds": time.process_time() - start})
    print(f"{name}, draw {draw}: {time.process_time() - start:.0f} processor seconds", flush=True)


def _rate(hits: int, n: int, interval: bool = True) -> str:
    from fewgen.evaluation.statistics import wilson_interval

    if n == 0:
        return "-"
    bound = f" (up to {100 * wilson_interval(hits, n).high:.1f} %)" if interval else ""
    return f"{hits} of {n}{bound}"


def _groups(draws: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]], bool]]:
    """Return name, draws, and whether they are apart enough for an interval: each set, and all of those."""
    names = list(dict.fromkeys(draw["data"] for draw in draws))
    found = [
        (name, [draw for draw in draws if draw["data"] == name], not DATA[name].resampled) for name in names
    ]
    apart = [draw for draw in draws if not DATA[draw["data"]].resampled]
    return [*found, ("all but resampled", apart, True)] if apart else found


def table(draws: list[dict[str, Any]]) -> str:
    """Return the tables of false alarms and misses as Markdown."""
    judges = ", ".join(dict.fromkeys(draw.get("features", CLASSIFIER) for draw in draws))
    lines = [
        f"Judge: {judges}.",
        "",
        'False alarms: real images that were not trained on get "no", "partly" or "not meaningful". In '
        "brackets: the upper end of the 95 % interval (Wilson).",
        "",
        "| data | draws | judge % | " + " | ".join(QUESTIONS) + " | any | of these cannot tell |",
        "|" + "---|" * (5 + len(QUESTIONS)),
    ]
    groups = _groups(draws)
    alarm = {"no", "partly", "not meaningful"}
    for name, own, apart in groups:
        answers = [{q: draw["subjects"]["real images"][q]["answer"] for q in QUESTIONS} for draw in own]
        judge = sum(draw["judge_accuracy"] for draw in own) / len(own)
        cells = [_rate(sum(answer[q] in alarm for answer in answers), len(own), apart) for q in QUESTIONS]
        wrong = sum(any(answer[q] in alarm for q in QUESTIONS) for answer in answers)
        unsure = Counter(q for answer in answers for q in QUESTIONS if answer[q] == "cannot tell")
        said = ", ".join(f"{q} {n}" for q, n in unsure.items()) or "none"
        row = [name, str(len(own)), f"{100 * judge:.0f}", *cells, _rate(wrong, len(own), apart), said]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        'Misses: the verdict that must say "no" says "yes" or "partly" (counted apart: "cannot tell").',
        "",
        "| fault (question) | " + " | ".join(name for name, _, _ in groups) + " |",
        "|" + "---|" * (1 + len(groups)),
    ]
    totals: list[list[str]] = [[] for _ in groups]
    for fault, question in TARGETS.items():
        cells = []
        for (_, own, apart), total in zip(groups, totals, strict=True):
            said_of_fault = [draw["subjects"][fault][question]["answer"] for draw in own]
            total += said_of_fault
            cells.append(_misses(said_of_fault, apart))
        lines.append(f"| {fault} ({question}) | " + " | ".join(cells) + " |")
    # Faults of one draw share its images, so their sum has no interval.
    lines.append("| all of these | " + " | ".join(_misses(answers, False) for answers in totals) + " |")
    lines += _beyond(draws)
    commits = sorted({str(draw["environment"]["commit"])[:7] for draw in draws})
    hours = sum(draw["processor_seconds"] for draw in draws) / 3600
    first = min(draw["draw"] for draw in draws)
    made = f"draws {first} and later of each data set; {hours:.1f} processor hours"
    lines += ["", f"Commit {', '.join(commits)}; {made}."]
    return "\n".join(lines)


def _misses(answers: list[str], interval: bool) -> str:
    counted = Counter(answers)
    text = _rate(counted["yes"] + counted["partly"], len(answers), interval)
    if counted["partly"]:
        text += f", {counted['partly']} of these partly"
    if counted["cannot tell"]:
        text += f"; cannot tell {counted['cannot tell']}"
    return text


def _beyond(draws: list[dict[str, Any]]) -> list[str]:
    """Return the table of faults that no control stands for."""
    answers = ("no", "partly", "yes", "cannot tell", "not meaningful")
    lines = [
        "",
        "Faults that no control stands for: how often the verdict gives each answer.",
        "",
        "| fault (question) | draws | " + " | ".join(answers) + " |",
        "|" + "---|" * (2 + len(answers)),
    ]
    for fault, question in BEYOND.items():
        counted = Counter(draw["subjects"][fault][question]["answer"] for draw in draws)
        cells = " | ".join(str(counted[answer]) for answer in answers)
        lines.append(f"| {fault} ({question}) | {len(draws)} | {cells} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Compute the missing draws and print the tables."""
    from joblib import Parallel, delayed

    options = _arguments(arguments)
    out, judge = Path(options.out), ""
    if options.features != CLASSIFIER:
        judge = f"-{folder_name(options.features)}"
    last = {name: options.first + (options.draws or DATA[name].draws) for name in options.data}
    paths = {
        (name, draw): out / name / f"draw{draw:03d}{judge}.json"
        for draw in range(options.first, max(last.values()))
        for name in options.data
        if draw < last[name]
    }
    if not options.table_only:
        Parallel(n_jobs=options.jobs)(
            delayed(_cell)(name, draw, path, options.data_dir, options.features)
            for (name, draw), path in paths.items()
            if not path.exists()
        )
    found = [read_json(path) for path in paths.values() if path.exists()]
    if not found:
        print("there are no finished draws; leave --table-only out to compute them.", file=sys.stderr)
        return 2
    text = table(sorted(found, key=lambda draw: list(DATA).index(draw["data"])))
    print("\n" + text)
    (out / f"table{judge}.md").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
