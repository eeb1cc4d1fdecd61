"""Adapting to classes never seen: trainings x shots x adaptation steps, and the speed of meta-training.

Examples:
    python -m benchmarks meta_learning --out runs/meta_learning
    python -m benchmarks meta_learning --data omniglot --trainings none fomaml --episodes 20 --docs ""
    python -m benchmarks meta_learning --table-only
    python -m benchmarks meta_learning --speed

Every training sees the same base classes, and about as many images: `none` takes the ordinary steps that the
others spend on tasks. Every training is adapted to the same episodes of the novel classes, with the same
noise, so differences between trainings are paired. The learning rate of adaptation is chosen for each
training on its validation classes, never on the novel ones. Class accuracy is that of a classifier
trained on all real training images of all classes, asked for the class among all of them.

A training is a run folder and a cell (data, training, shots) one JSON file under --out; what is there is not
computed again, so a stopped benchmark continues with the same command. The tables are also written into
--docs, between two markers; text outside them stays.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewgen.data import load_images
from fewgen.data.imageset import ClassSplit, ImageSet, to_uint8
from fewgen.episodes import EpisodeSampler
from fewgen.errors import ConfigError, FewgenError
from fewgen.evaluation import ClassifierFeatures
from fewgen.files import read_json, write_json, write_text
from fewgen.fitting.seeds import derive_seed, make_rng
from fewgen.runs.environment import environment
from fewgen.training.meta.gradients import Part, Task, maml_gradient, method_loss, reptile_gradient
from fewgen.training.meta.inner import Adam, inner_loop, make_inner_optimizer, parameters_of
from fewgen.training.meta.settings import MetaConfig

TRAININGS = ("none", "joint", "reptile", "fomaml", "maml", "fomaml_rates")
"""Ways to train. "joint" learns from the same tasks without adapting to them, so it tells what the made-up
classes alone give; "fomaml_rates" is FOMAML that learns its inner rates as well."""
META = {"joint": "fomaml", "fomaml_rates": "fomaml"}
"""What `--meta` is called with, where it is not the name."""

SHOTS = (1, 3, 5, 10, 30)
STEPS = (0, 1, 5, 20, 50)
LONGER, LONGER_STEPS = ("none", "reptile"), (50, 200)
"""Trainings that are also adapted to 30 images with more updates, and draw the best of 4."""
MARKERS = ("<!-- meta-learning: begin -->", "<!-- meta-learning: end -->")
MODEL: dict[str, Any] = {"image": {"width": 24, "hidden": 128}, "steps": 2000}
RATES = (0.3, 1.0, 3.0)
"""Factors on the inner learning rate, of which the validation classes choose one."""

PROTOCOL: dict[str, dict[str, int]] = {
    # classes of an episode, queries per class, images drawn per class
    "fashion_mnist": {"n_way": 3, "n_query": 10, "n_draws": 10},
    "omniglot": {"n_way": 5, "n_query": 5, "n_draws": 10},
}


def tasks_of(data: str, training: str) -> dict[str, Any]:
    """Return the settings of meta-training for a data set and a training."""
    settings: dict[str, Any] = {
        "n_way": PROTOCOL[data]["n_way"],
        "n_shot": 5,
        "n_query": 5,
        "steps": 400,
    }
    if training == "reptile":
        settings |= {"inner_steps": 6}  # as many images as the others, which look at their queries
    if training == "joint":
        # All images of a task are queries. Omniglot has too few for one class, hence more tasks.
        settings |= {"inner_steps": 0} | (
            {"n_query": 30} if data != "omniglot" else {"n_query": 11, "steps": 1091}
        )
    if training == "fomaml_rates":
        settings |= {"learn_rates": True}
    return settings


def images_per_run(data: str, training: str) -> int:
    """Return how many images pass through the network forward and back in the meta-training of a run."""
    tasks = MetaConfig(**tasks_of(data, training))
    support, query = tasks.n_way * tasks.n_shot, tasks.n_way * tasks.n_query
    per_task = tasks.inner_steps * support + (0 if training == "reptile" else query)
    return tasks.steps * tasks.tasks_per_step * per_task


def load_all(data: str) -> ImageSet:
    """Return every image at hand of a data set: Omniglot's two parts are drawers of the same characters."""
    train = load_images(data)
    if data != "omniglot":
        return train
    test = load_images(data, split="test")
    return ImageSet(
        torch.cat([train.images, test.images]),
        torch.cat([train.labels, test.labels]),
        train.class_names,
        name=train.name,
    )


def train(data: str, training: str, out: Path, seed: int) -> Any:
    """Return the run of a training; made if it is not there."""
    import fewgen

    model = copy.deepcopy(MODEL)
    if training == "none":
        # As many images as the others see in their tasks, on top of the same ordinary steps.
        model["steps"] += round(images_per_run(data, "fomaml") / 64)
    run = fewgen.train(
        "cada_vqvae",
        data=load_all(data),
        out=out,
        meta=META.get(training, training),
        class_split="auto",
        seed=seed,
        text="auto" if data != "omniglot" else "onehot",
        model=model,
        tasks=tasks_of(data, training),
        training={"preview_every": 0, "validate_every": 0, "checkpoint_every": 200, "threads": 1},
        report=False,
        progress=False,
    )
    if run.result.interrupted:
        raise ConfigError(f'The training in "{out}" was stopped. Repeat the command to continue it.')
    return run


class Novel:
    """Classes that a run has not learned from, and how well it takes to them.

    Args:
        run: a run of `train`.
        images: every image of the data set.
        group: "val" or "novel".
        n_way: classes of an episode, at most those of the group.
        n_query: queries per class.
        seed: of episodes and noise: equal for all runs.
    """

    def __init__(self, run: Any, images: ImageSet, group: str, n_way: int, n_query: int, seed: int) -> None:
        from fewgen.runs.preparing import other_classes

        split = read_json(run.path / "split.json")["classes"]
        classes = ClassSplit(*(tuple(split[key]) for key in ("base", "val", "novel")))
        self.method = run.method
        found = {c.name: c for c in other_classes(images, classes, self.method.spec.text, None, None)}
        if group not in found:
            raise ConfigError(f'The run "{run.path}" has no {group} classes.')
        self.images, self.vectors = found[group].images, found[group].vectors
        # Labels of the whole data set, in which the judge answers.
        self.truth = torch.tensor([images.class_index(name) for name in self.images.class_names])
        self.n_way, self.n_query, self.seed = min(n_way, self.images.n_classes), n_query, seed
        self.tasks = MetaConfig(**{k: v for k, v in run.info.extra["meta"].items() if k != "algorithm"})
        self.loss = method_loss(self.method)

    def has(self, shots: int) -> bool:
        """Tell whether every class has images enough."""
        return int(self.images.counts().min()) >= shots + self.n_query

    def adapt(
        self,
        shots: int,
        episode: int,
        lr: float,
        steps: Sequence[int],
        judge: Any = None,
        n_draws: int = 0,
        candidates: int = 1,
    ) -> tuple[list[float], list[float]]:
        """Adapt to one episode; return query loss and class accuracy after each of the numbers of steps.

        With several candidates, the model itself keeps the draw that it reads best as its word.
        """
        sampler = EpisodeSampler(
            self.images.labels, self.n_way, shots, self.n_query, derive_seed(self.seed, "episodes")
        )
        own = sampler.classes(episode)
        row = {int(c): i for i, c in enumerate(own)}
        vectors = None if self.vectors is None else self.vectors[own]
        support, query = (
            Part(
                self.images.floats(rows),
                torch.tensor([row[int(c)] for c in self.images.labels[rows]]),
                vectors,
            )
            for rows in sampler.support_query(episode)
        )
        rng = make_rng("cpu", self.seed, "adapt", episode)
        losses: list[float] = []
        right: list[float] = []
        labels = torch.arange(self.n_way).repeat_interleave(n_draws)
        seeds = torch.arange(len(labels)) + 1_000_000 * episode

        def visit(k: int, parameters: Mapping[str, Tensor]) -> None:
            if k not in steps:
                return
            with torch.no_grad():
                noise = make_rng("cpu", self.seed, "query", episode)
                losses.append(float(self.loss(parameters, query, noise)))
                if judge is not None:
                    assert vectors is not None
                    self.method.load_state_dict(dict(parameters), strict=False)
                    # No labels: the words of an episode are none of the model's own classes.
                    words, none = vectors[labels], torch.full_like(labels, -1)
                    drawn = self.method.sample(words, none, seeds, 1.0, candidates=candidates)
                    seen = judge.classes_of(judge.features(_as_set(to_uint8(drawn), self.images)))
                    right.append(float((seen == self.truth[own][labels]).float().mean()))

        start = {name: value.clone() for name, value in parameters_of(self.method).items()}
        try:
            inner_loop(
                lambda parameters, _: self.loss(parameters, support, rng),
                start,
                make_inner_optimizer(self.tasks.inner_optimizer, lr),
                max(steps),
                adapted=self.method.adaptable(self.tasks.adapt),
                rates=self.method.rates_by_name(),
                visit=visit,
            )
        finally:
            self.method.load_state_dict(start, strict=False)
        return losses, right


def _as_set(images: Tensor, like: ImageSet) -> ImageSet:
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), like.class_names)


def choose_rate(novel: Novel, episodes: int, factors: Sequence[float] = RATES, steps: int = 20) -> float:
    """Return the learning rate with the least query loss after `steps`, on episodes of validation classes."""
    rates = [factor * novel.tasks.inner_lr for factor in factors]
    shots = min(5, int(novel.images.counts().min()) - novel.n_query)
    losses = []
    for lr in rates:
        try:
            losses.append(sum(novel.adapt(shots, i, lr, (steps,))[0][0] for i in range(episodes)))
        except FewgenError:
            losses.append(math.inf)
    return rates[losses.index(min(losses))]


@dataclass(frozen=True)
class Cell:
    """What is measured of one run.

    Attributes:
        data: name of the data set.
        training: how the run was trained.
        shots: images per class.
        steps: numbers of updates to look after.
        episodes: how many.
        lr: learning rate of the updates.
        seed: of episodes and noise.
        candidates: draws of which the model keeps the one that it reads best.
    """

    data: str
    training: str
    shots: int
    steps: tuple[int, ...]
    episodes: int
    lr: float
    seed: int = 0
    candidates: int = 1

    def path(self, out: Path) -> Path:
        """Return where the figures lie."""
        kind = "cells" if self.candidates == 1 else f"best-of-{self.candidates}"
        return out / kind / f"{self.data}-{self.training}-{self.shots:02d}.json"


def measured(cell: Cell, out: Path, run: Any, images: ImageSet, judge: Any) -> dict[str, Any] | None:
    """Return the figures of a cell, measured if they are not there; None if classes have too few images."""
    path = cell.path(out)
    asked = {"seed": cell.seed, "steps": list(cell.steps), "episodes": cell.episodes, "lr": cell.lr}
    if path.exists():
        record = dict(read_json(path))
        there = {**{key: record.get(key) for key in asked}, "episodes": len(record["loss"])}
        there["seed"] = record.get("seed", cell.seed)
        if there != asked:
            raise ConfigError(
                f'"{path}" was measured with {there}, not {asked}. Use another --out, or delete it.'
            )
        return record
    protocol = PROTOCOL[cell.data]
    novel = Novel(run, images, "novel", protocol["n_way"], protocol["n_query"], cell.seed)
    if not novel.has(cell.shots):
        return None
    started = time.monotonic()
    rows = [
        novel.adapt(cell.shots, i, cell.lr, cell.steps, judge, protocol["n_draws"], cell.candidates)
        for i in range(cell.episodes)
    ]
    record = {
        "data": cell.data,
        "training": cell.training,
        "shots": cell.shots,
        "candidates": cell.candidates,
        **{key: asked[key] for key in ("seed", "steps", "lr")},
        "loss": [row[0] for row in rows],
        "accuracy": [row[1] for row in rows],
        "judge": judge.record(),
        "seconds": round(time.monotonic() - started, 1),
        "environment": environment(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return record


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half width of the 95 % Student-t interval over episodes."""
    from scipy.stats import t

    x = torch.tensor(values, dtype=torch.float64)
    if len(x) < 2:
        return float(x.mean()), math.nan
    half = float(t.ppf(0.975, len(x) - 1)) * float(x.std()) / math.sqrt(len(x))
    return float(x.mean()), half


def table(cells: Sequence[Mapping[str, Any]], figure: str) -> list[str]:
    """Return a Markdown table of a figure: a row for training and shots, a column for steps."""
    factor, digits = (100.0, 1) if figure == "accuracy" else (1.0, 3)
    steps = cells[0]["steps"]
    lines = [
        "| shots | training | " + " | ".join(f"{k} steps" for k in steps) + " |",
        "|---|---|" + "---|" * len(steps),
    ]
    for shots in dict.fromkeys(c["shots"] for c in cells):
        for c in (c for c in cells if c["shots"] == shots):
            columns = list(zip(*c[figure], strict=True))
            shown = [
                "{:.{d}f} ± {:.{d}f}".format(*(factor * v for v in interval(column)), d=digits)
                for column in columns
            ]
            lines.append(f"| {shots} | {c['training']} | " + " | ".join(shown) + " |")
    return lines


def differences(cells: Sequence[Mapping[str, Any]], steps: int = 20) -> list[str]:
    """Return a table of paired differences to `none` after some steps, with intervals over episodes."""
    lines = [
        f"| shots | training | query loss minus none's, {steps} steps | class accuracy minus none's |",
        "|---|---|---|---|",
    ]
    base = {c["shots"]: c for c in cells if c["training"] == "none"}
    for c in cells:
        if c["training"] == "none" or c["shots"] not in base or steps not in c["steps"]:
            continue
        if len(c["loss"]) != len(base[c["shots"]]["loss"]):
            raise ConfigError(
                f"{c['training']} and none have other numbers of episodes for {c['shots']} shots."
            )
        other, at = base[c["shots"]], c["steps"].index(steps)
        shown = []
        for figure, factor, digits in (("loss", 1.0, 3), ("accuracy", 100.0, 1)):
            gaps = [factor * (a[at] - b[at]) for a, b in zip(c[figure], other[figure], strict=True)]
            shown.append("{:+.{d}f} ± {:.{d}f}".format(*interval(gaps), d=digits))
        lines.append(f"| {c['shots']} | {c['training']} | {shown[0]} | {shown[1]} |")
    return lines


def plain_fomaml(method: Any, task: Task, lr: float, steps: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the FOMAML gradient of a task as one would first write it: a copied module and its optimiser."""
    learner = copy.deepcopy(method)
    learner.eval()
    optimizer = torch.optim.Adam(learner.parameters(), lr=lr, betas=(0.0, 0.999))
    for _ in range(steps):
        optimizer.zero_grad()
        part = task.support
        learner.task_terms(part.images, part.labels, part.vectors, rng).total().backward()
        optimizer.step()
    optimizer.zero_grad()
    part = task.query
    learner.task_terms(part.images, part.labels, part.vectors, rng).total().backward()
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def speed(data: str, seconds: float = 3.0) -> list[str]:
    """Return a table: tasks per second of each way to meta-train, one process, one thread."""
    from fewgen.api.training import train_request
    from fewgen.runs.preparing import prepare

    images = load_all(data)
    keywords = {
        "method": "cada_vqvae", "data": images, "out": "unused", "meta": "fomaml", "model": MODEL,
        "tasks": tasks_of(data, "fomaml"), "text": "auto" if data != "omniglot" else "onehot",
    }  # fmt: skip
    prepared = prepare(train_request(**keywords))
    method, tasks = prepared.method, prepared.tasks
    method.train()
    base = prepared.train
    rng = make_rng("cpu", 0)
    spread = base.subset(torch.linspace(0, len(base) - 1, 64).long())
    with torch.no_grad():  # the codebook starts from data
        method.task_terms(spread.floats(), spread.labels, None, rng)
    method.eval()
    sampler = EpisodeSampler(base.labels, tasks.n_way, tasks.n_shot, tasks.n_query, 0)
    loss, start = method_loss(method), parameters_of(method)
    names = method.adaptable("all")

    def next_task(i: int) -> Task:
        rows = sampler.indices(i)
        parts = [rows[:, : tasks.n_shot].flatten(), rows[:, tasks.n_shot :].flatten()]
        return Task(*(Part(base.floats(part), base.labels[part]) for part in parts))

    def ordinary(task: Task) -> None:
        # The images of a task, in ordinary steps of 64.
        n_images = tasks.inner_steps * len(task.support) + len(task.query)
        everything = task.everything()
        for _ in range(max(1, round(n_images / 64))):
            part = everything.at(torch.randint(len(everything), (64,), generator=rng))
            total = method.task_terms(part.images, part.labels, part.vectors, rng).total()
            torch.autograd.grad(total, list(method.parameters()), allow_unused=True)

    adam = Adam(tasks.inner_lr)
    ways = {
        "none (ordinary steps on as many images)": ordinary,
        "reptile": lambda task: reptile_gradient(
            loss, start, task, adam, tasks.inner_steps, rng, adapted=names
        ),
        "fomaml": lambda task: maml_gradient(
            loss, start, task, adam, tasks.inner_steps, rng, adapted=names, first_order=True
        ),
        "maml": lambda task: maml_gradient(
            loss, start, task, adam, tasks.inner_steps, rng, adapted=names
        ),
        "plain loop over a copied module (FOMAML)": lambda task: plain_fomaml(
            method, task, tasks.inner_lr, tasks.inner_steps, rng
        ),
    }  # fmt: skip
    lines = ["| meta-training | tasks per second | ratio to the plain loop |", "|---|---|---|"]
    counted: dict[str, float] = dict.fromkeys(ways, 0.0)
    # In turns, so that other work on the machine slows all alike.
    rounds, spent = 0, dict.fromkeys(ways, 0.0)
    while min(spent.values()) < seconds:
        for name, way in ways.items():
            task = next_task(rounds)
            began = time.perf_counter()
            way(task)
            if rounds:  # the first one warms up
                spent[name] += time.perf_counter() - began
                counted[name] += 1
        rounds += 1
    per_second = {name: counted[name] / spent[name] for name in ways}
    plain = list(per_second.values())[-1]
    lines += [f"| {name} | {value:.2f} | {value / plain:.2f} |" for name, value in per_second.items()]
    return lines


def write_docs(path: Path, text: str) -> None:
    """Put the tables between the markers of a page; text outside them stays."""
    page = (
        path.read_text(encoding="utf-8")
        if path.exists()
        else "# Meta-learning\n\n" + "\n".join(MARKERS) + "\n"
    )
    begin, end = page.find(MARKERS[0]), page.find(MARKERS[1])
    if begin < 0 or end < begin:
        raise ConfigError(f'"{path}" lacks the markers {MARKERS[0]} and {MARKERS[1]}.')
    write_text(path, page[: begin + len(MARKERS[0])] + "\n" + text + page[end:])


def report(out: Path, datas: Sequence[str]) -> str:
    """Return every table as Markdown."""
    parts = []
    for data in datas:
        found = [dict(read_json(path)) for path in sorted((out / "cells").glob(f"{data}-*.json"))]
        if not found:
            continue
        order = {name: i for i, name in enumerate(TRAININGS)}
        found.sort(key=lambda c: (c["shots"], order[c["training"]]))
        accuracy = found[0]["judge"].get("test_accuracy")
        n = " or ".join(str(k) for k in sorted({len(c["loss"]) for c in found}))
        chosen = ", ".join(f"{c['training']} {c['lr']:g}" for c in found if c["shots"] == found[0]["shots"])
        parts += [
            f"\n### {data}\n",
            f"{n} episodes of {PROTOCOL[data]['n_way']} novel classes; mean ± half width of the 95 % "
            f"interval. Learning rate chosen on the validation classes: {chosen}.\n",
            "Class accuracy of drawn images, in %"
            + (f" (the judge is right on {100 * accuracy:.1f} % of real test images)" if accuracy else "")
            + ":\n",
            *table(found, "accuracy"),
            "\nQuery loss:\n",
            *table(found, "loss"),
            "\nAgainst ordinary training, on the same episodes:\n",
            *differences(found),
            "",
        ]
        longer = [dict(read_json(path)) for path in sorted((out / "best-of-4").glob(f"{data}-*.json"))]
        if longer:
            n_longer = len(longer[0]["loss"])
            parts += [
                f"30 images, more updates, and of four draws the one that the model reads best as its word "
                f"({n_longer} episodes), class accuracy in %:\n",
                *table(longer, "accuracy"),
                "",
            ]
        made = found[0]["environment"]
        parts.append(
            f"Commit {made.get('commit', '?')}; torch {made.get('versions', {}).get('torch', '?')}.\n"
        )
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, adapt, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks meta_learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", nargs="+", default=list(PROTOCOL), choices=list(PROTOCOL))
    parser.add_argument("--trainings", nargs="+", default=list(TRAININGS), choices=TRAININGS)
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--episodes", type=int, default=100, help="for 5 shots")
    parser.add_argument("--fewer", type=int, default=30, help="episodes for the other numbers of shots")
    parser.add_argument("--longer", type=int, default=20, help="episodes for 30 shots with more updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/meta_learning"))
    parser.add_argument("--docs", default="docs/results/meta_learning.md", help='"" writes no page')
    parser.add_argument("--table-only", action="store_true", help="print what is there")
    parser.add_argument("--speed", action="store_true", help="print tasks per second and stop")
    options = parser.parse_args(arguments)
    try:
        if options.speed:
            for data in options.data:
                print(f"{data}\n" + "\n".join(speed(data)), flush=True)
            return 0
        if not options.table_only:
            _measure(options)
        text = report(options.out, options.data)
        print(text)
        if options.docs:
            write_docs(Path(options.docs), text)
    except FewgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(options: argparse.Namespace) -> None:
    for data in options.data:
        images = load_all(data)
        judge = ClassifierFeatures.of(load_images(data), load_images(data, split="test"))
        for training in options.trainings:
            started = time.monotonic()
            run = train(data, training, options.out / f"{data}-{training}", options.seed)
            chosen = options.out / "rates" / f"{data}-{training}.json"
            if not chosen.exists():
                protocol = PROTOCOL[data]
                val = Novel(run, images, "val", protocol["n_way"], protocol["n_query"], options.seed)
                chosen.parent.mkdir(parents=True, exist_ok=True)
                write_json(chosen, {"lr": choose_rate(val, 10)})
            lr = float(read_json(chosen)["lr"])
            print(f"{data} {training}: {time.monotonic() - started:.0f} s, lr {lr:g}", flush=True)
            cells = [
                Cell(
                    data,
                    training,
                    shots,
                    tuple(options.steps),
                    options.episodes if shots == 5 else options.fewer,
                    lr,
                    options.seed,
                )
                for shots in options.shots
            ]
            if training in LONGER and 30 in options.shots:
                cells.append(Cell(data, training, 30, LONGER_STEPS, options.longer, lr, options.seed, 4))
            for cell in cells:
                record = measured(cell, options.out, run, images, judge)
                if record is not None:
                    columns = zip(*record["accuracy"], strict=True)
                    means = " ".join(f"{sum(column) / len(column):.2f}" for column in columns)
                    print(f"  {cell.shots} shots: accuracy {means}, {record['seconds']} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
