"""How often verdicts are wrong: false alarms on real images, misses on known faults, over repeated draws.

Examples:
    python -m benchmarks verdicts
    python -m benchmarks verdicts --data digits fashion_mnist --draws 20 --jobs 2
    python -m benchmarks verdicts --table-only

Each draw takes training images, held-out images and a third set of real images of the same classes, apart
from each other. The judge learns from the training images alone, as it does for a user who has nothing
else. Then seven sets are evaluated in place of generated images: the third set (every verdict should be
"yes"), and sets with one fault each, which one verdict must name ("no"). A draw is a file; those that exist
are not computed again.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.files import read_json, write_json
from fewgen.runs.environment import environment

DATA = {
    # name: training images, held-out images and judged images per class
    "digits": (30, 20, 20),
    "mnist": (30, 20, 20),
    "fashion_mnist": (30, 20, 20),
    "omniglot": (8, 6, 6),
    "cifar10": (30, 20, 20),
}
OMNIGLOT_CLASSES = 20

TARGETS = {
    "exact copies": "new",
    "shifted by one pixel": "new",
    "mirrored copies": "new",
    "augmented copies": "new",
    "one image per class": "diverse",
    "shuffled labels": "aligned",
    "noise": "real",
}
"""Fault -> the question whose verdict must be "no"."""

BEYOND = {
    "a fifth are copies": "new",
    "copies enlarged by 15 %": "new",
    "copies turned by 90 degrees": "new",
    "mixtures of two training images": "new",
    "each image twice": "diverse",
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
    add("--draws", type=int, default=60, help="draws of each data set")
    add(
        "--first",
        type=int,
        default=4,
        help="first draw; the rules were settled on draws 0 to 3, which do not count",
    )
    add("--jobs", type=int, default=1, help="processes")
    add("--out", default="runs/verdicts", help="folder of the draws")
    add("--data-dir", default=None, help="folder of the data sets; by default FEWGEN_DATA_DIR")
    add("--table-only", action="store_true", help="print the table of the finished draws")
    return parser.parse_args(arguments)


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
    k, held, judged = DATA[name]
    if name == "omniglot":
        order = torch.randperm(images.n_classes, generator=torch.Generator().manual_seed(draw))
        images = images.select_classes([images.class_names[i] for i in order[:OMNIGLOT_CLASSES].tolist()])
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
        "noise": made(torch.randint(0, 256, real.images.shape, generator=rng).to(torch.uint8), real.labels),
    }


def sets_beyond(train: ImageSet, real: ImageSet, copies: ImageSet, seed: int) -> dict[str, ImageSet]:
    """Return the sets with the faults of `BEYOND`, as many images as `real` has."""
    rng = torch.Generator().manual_seed(seed)
    names = train.class_names
    fifth = torch.randperm(len(real), generator=rng)[: len(real) // 5]
    mixed = real.images.clone()
    # `copies` has the classes of `real`, in the same order.
    mixed[fifth] = copies.images[fifth]
    height, width = real.size
    grown = torch.nn.functional.interpolate(
        copies.images.float(), scale_factor=1.15, mode="bilinear", antialias=True
    )
    top, left = (grown.shape[2] - height) // 2, (grown.shape[3] - width) // 2
    zoomed = grown[:, :, top : top + height, left : left + width].round().clamp(0, 255).to(torch.uint8)
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
        "copies enlarged by 15 %": ImageSet(zoomed, copies.labels, names),
        "copies turned by 90 degrees": ImageSet(copies.images.rot90(1, (2, 3)), copies.labels, names),
        "mixtures of two training images": ImageSet(blended, copies.labels, names),
        "each image twice": ImageSet(real.images[half], real.labels[half], names),
    }


def _shifted(images: Tensor, rng: torch.Generator) -> Tensor:
    """Move each image by one pixel up, down, left or right; its border is repeated."""
    padded = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)
    height, width = images.shape[2:]
    moves = torch.tensor([(0, 1), (2, 1), (1, 0), (1, 2)])[torch.randint(0, 4, (len(images),), generator=rng)]
    rows = moves[:, :1] + torch.arange(height)
    columns = moves[:, 1:] + torch.arange(width)
    picked = padded[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def one_draw(name: str, draw: int, images: ImageSet) -> dict[str, Any]:
    """Return the verdicts of every set of one draw; JSON-ready."""
    from fewgen.encoders.classifier import ClassifierFeatures
    from fewgen.evaluation.evaluation import RealSide, evaluate_images

    train, held_out, real = three_sets(images, name, draw)
    judge = ClassifierFeatures.of(train, use_cache=False)
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
        "judge_accuracy": judge.record()["test_accuracy"],
        "subjects": found,
        "environment": environment(),
    }


def _cell(name: str, draw: int, path: Path, images: ImageSet) -> None:
    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, one_draw(name, draw, images))
    print(f"{name}, draw {draw}: done", flush=True)


def _rate(hits: int, n: int) -> str:
    from fewgen.evaluation.statistics import wilson_interval

    if n == 0:
        return "-"
    return f"{hits} of {n} (up to {100 * wilson_interval(hits, n).high:.0f} %)"


def table(draws: list[dict[str, Any]]) -> str:
    """Return the tables of false alarms and misses as Markdown."""
    names = list(dict.fromkeys(draw["data"] for draw in draws))
    lines = [
        'False alarms: real images that were not trained on get another answer than "yes".',
        "",
        "| data | draws | judge % | " + " | ".join(QUESTIONS) + " | any | of these cannot tell |",
        "|" + "---|" * (5 + len(QUESTIONS)),
    ]

    def rows(of: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        return [draw for draw in draws if of(draw)]

    for name in [*names, "all"]:
        own = rows(lambda draw, name=name: name in (draw["data"], "all"))  # type: ignore[misc]
        answers = [{q: draw["subjects"]["real images"][q]["answer"] for q in QUESTIONS} for draw in own]
        judge = sum(draw["judge_accuracy"] for draw in own) / len(own)
        cells = [_rate(sum(answer[q] in ("no", "partly") for answer in answers), len(own)) for q in QUESTIONS]
        wrong = sum(any(answer[q] in ("no", "partly") for q in QUESTIONS) for answer in answers)
        unsure = Counter(q for answer in answers for q in QUESTIONS if answer[q] == "cannot tell")
        said = ", ".join(f"{q} {n}" for q, n in unsure.items()) or "none"
        lines.append(
            f"| {name} | {len(own)} | {100 * judge:.0f} | "
            + " | ".join(cells)
            + f" | {_rate(wrong, len(own))} | {said} |"
        )
    lines += [
        "",
        'Misses: the verdict that must say "no" says "yes" or "partly" (counted apart: "cannot tell").',
        "",
        "| data | " + " | ".join(f"{fault} ({question})" for fault, question in TARGETS.items()) + " |",
        "|" + "---|" * (1 + len(TARGETS)),
    ]
    for name in [*names, "all"]:
        own = rows(lambda draw, name=name: name in (draw["data"], "all"))  # type: ignore[misc]
        cells = []
        for fault, question in TARGETS.items():
            answers = [draw["subjects"][fault][question]["answer"] for draw in own]
            counted = Counter(answers)
            text = _rate(counted["yes"] + counted["partly"], len(own))
            if counted["partly"]:
                text += f", {counted['partly']} of these partly"
            if counted["cannot tell"]:
                text += f"; cannot tell {counted['cannot tell']}"
            cells.append(text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += _beyond(draws)
    commits = sorted({str(draw["environment"]["commit"])[:7] for draw in draws})
    lines += ["", f"Commit {', '.join(commits)}; draws {draws[0]['draw']} and later of each data set."]
    return "\n".join(lines)


def _beyond(draws: list[dict[str, Any]]) -> list[str]:
    """Return the table of faults that no control stands for, from the draws that have them."""
    own = [draw for draw in draws if set(BEYOND) <= set(draw["subjects"])]
    if not own:
        return []
    lines = [
        "",
        "Faults that no control stands for: how often the verdict says no, partly, yes, cannot tell.",
        "",
        "| fault (question) | draws | no | partly | yes | cannot tell |",
        "|" + "---|" * 6,
    ]
    for fault, question in BEYOND.items():
        counted = Counter(draw["subjects"][fault][question]["answer"] for draw in own)
        cells = " | ".join(str(counted[answer]) for answer in ("no", "partly", "yes", "cannot tell"))
        lines.append(f"| {fault} ({question}) | {len(own)} | {cells} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Compute the missing draws and print the tables."""
    from joblib import Parallel, delayed

    options = _arguments(arguments)
    out = Path(options.out)
    paths = {
        (name, draw): out / name / f"draw{draw:03d}.json"
        for name in options.data
        for draw in range(options.first, options.first + options.draws)
    }
    if not options.table_only:
        for name in options.data:
            todo = [(key, path) for key, path in paths.items() if key[0] == name and not path.exists()]
            if not todo:
                continue
            images = _all_images(name, options.data_dir)
            Parallel(n_jobs=options.jobs)(
                delayed(_cell)(name, draw, path, images) for (_, draw), path in todo
            )
    found = [read_json(path) for path in paths.values() if path.exists()]
    if not found:
        print("there are no finished draws; leave --table-only out to compute them.", file=sys.stderr)
        return 2
    text = table(found)
    print("\n" + text)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
