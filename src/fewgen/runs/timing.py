"""What a training with its measuring and its report will take here, and how a limit is split among them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from typing import TYPE_CHECKING, Any

import torch

from fewgen.clock import Clock, Limit, TimeIsUp, shown_minutes
from fewgen.errors import ConfigError
from fewgen.evaluation.cost import evaluation_seconds, judge_seconds
from fewgen.evaluation.judge import AUTO, CLASSIFIER, Judge, choose_judge
from fewgen.progress import Display, shown_seconds
from fewgen.runs.checkpoints import checkpoint_images
from fewgen.training.loop import Trainer
from fewgen.training.time_limit import HALF, share_of_rest
from fewgen.training.trial import StageTrial, try_stages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fewgen.data.imageset import ImageSet
    from fewgen.methods.base import Method
    from fewgen.runs.preparing import Prepared
    from fewgen.training.phases import Stage
    from fewgen.training.processes import Processes

MEASURING_SHARE = 0.35
"""Share of a limit that measuring and the report get at most."""

PAGE = 4.0
"""Seconds of drawing the plots of a page."""

N_EVALUATED = 300
"""New images that a report evaluates, over all classes: seconds of work; `fewgen evaluate` takes more."""

MIN_PER_CLASS, MAX_PER_CLASS = 4, 100

PER_CLASS_SHOWN = 8
MAX_SHOWN_CLASSES = 40
WALK_STEPS = 9
"""What the pictures of a report show."""

FEW = 4
"""Images whose drawing says whether a full group can be tried."""


@dataclasses.dataclass(frozen=True)
class RunTrial:
    """What the parts of a run take here.

    Attributes:
        stages: of the training; None for one that could not be tried.
        draw: seconds of drawing an image.
        report: seconds of measuring and the page; 0 without a report.
    """

    stages: list[StageTrial | None]
    draw: float
    report: float

    def agreed(self, processes: Processes) -> RunTrial:
        """Return what the first process has found, in all: they must refuse a limit together, or none."""
        if processes.size == 1:
            return self
        numbers = [self.draw, self.report]
        for trial in self.stages:
            numbers += [-1.0] * 4 if trial is None else [trial.steps, trial.start, trial.step, trial.end]
        draw, report, *rest = processes.from_main(numbers)
        rows = [rest[i : i + 4] for i in range(0, len(rest), 4)]
        stages = [None if row[0] < 0 else StageTrial(int(row[0]), *row[1:]) for row in rows]
        return RunTrial(stages, draw, report)

    def reserved(self, seconds: float) -> float:
        """Return the part of a limit that measuring and the report get."""
        return min(self.report, MEASURING_SHARE * seconds)


def report_images(n_classes: int) -> int:
    """Return how many new images of each class a report measures."""
    return max(MIN_PER_CLASS, min(MAX_PER_CLASS, math.ceil(N_EVALUATED / n_classes)))


def report_judge(train: ImageSet) -> Judge:
    """Return the judge of a report: by the rule of "auto", or pixels where a classifier cannot learn."""
    judge = choose_judge(train)
    if judge.features == CLASSIFIER and len(train.labels.unique()) < 2:
        return Judge(AUTO, "pixels", "these are of a single class")
    return judge


def page_images(n_classes: int, per_class: int = PER_CLASS_SHOWN) -> int:
    """Return about how many new images the pictures of a report show."""
    return min(n_classes, MAX_SHOWN_CLASSES) * (per_class + 1) + 3 * WALK_STEPS


@dataclasses.dataclass(frozen=True)
class Share:
    """What there is time for after training.

    Attributes:
        limit: of the whole command.
        method: trained.
        train: images that it learned from.
        held_out: images set aside, or None.
    """

    limit: Limit
    method: Method
    train: ImageSet
    held_out: ImageSet | None

    @functools.cached_property
    def draw(self) -> float:
        """Seconds of drawing an image; 0 without a limit."""
        return 0.0 if self.limit.minutes is None else draw_seconds(self.method, self.limit.clock.now)

    @functools.cached_property
    def judge(self) -> Judge:
        """Of the new images."""
        return report_judge(self.train)

    def shown(self) -> int:
        """Return how many new images of each class a page can show; 1 at least."""
        n_classes, room = self.train.n_classes, 0.5 * self.limit.left()
        fits = [n for n in (8, 4, 2) if self.draw * page_images(n_classes, n) <= room]
        return min(PER_CLASS_SHOWN, fits[0] if fits else 1)

    def measured(self) -> int:
        """Return how many new images of each class can be measured.

        Raises:
            TimeIsUp: not even the fewest that say something.
        """
        n_classes = self.train.n_classes
        wanted = report_images(n_classes)
        if self.limit.minutes is None:
            return wanted
        n_held_out = len(self.held_out or ())
        how: dict[str, Any] = {"draw": self.draw, "now": self.limit.clock.now, "held_out": self.held_out}
        how["extractor"] = self.judge.encoder(self.train)
        seconds = {
            n: sum(evaluation_seconds(n * n_classes, self.train, n_held_out, **how).values())
            for n in (wanted, MIN_PER_CLASS)
        }
        room = self.limit.left() - PAGE - self.draw * page_images(n_classes, 1)
        if seconds[wanted] <= room or wanted <= MIN_PER_CLASS:
            if seconds[wanted] > room:
                raise TimeIsUp(self.limit.missed)
            return wanted
        if seconds[MIN_PER_CLASS] > room:
            raise TimeIsUp(self.limit.missed)
        per_image = (seconds[wanted] - seconds[MIN_PER_CLASS]) / (wanted - MIN_PER_CLASS)
        return MIN_PER_CLASS + int((room - seconds[MIN_PER_CLASS]) / max(per_image, 1e-9))


def try_run(prepared: Prepared, report: bool, seconds: float = 0.0) -> RunTrial:
    """Try the parts of a run on a copy of its method; nothing is written and nothing is left behind.

    Args:
        prepared: of the run.
        report: whether it ends with one.
        seconds: that may be spent; 0: a single step of each stage, and nothing around the steps.
    """
    begun = time.perf_counter()
    tried = dataclasses.replace(prepared, method=copy.deepcopy(prepared.method))
    trainer = Trainer(
        tried.method,
        tried.stages(),
        tried.train,
        tried.held_out,
        tried.train_config,
        "unused",
        display=Display(False),
        draw=checkpoint_images(tried),
    )
    draw = measuring = 0.0
    now = Clock(tried.train_config.clock).now
    if report:
        draw = draw_seconds(tried.method, now)
        measuring = PAGE + draw * page_images(prepared.train.n_classes)
        measuring += sum(report_parts(prepared, draw, now).values())
    left = max(0.0, seconds - (time.perf_counter() - begun))
    stages = try_stages(trainer, left, steps=4 if seconds else 1, hooks=seconds > 0)
    found = RunTrial(stages, draw, measuring)
    if report:
        found = dataclasses.replace(found, report=measuring + new_classes_seconds(prepared, found, now))
    return found.agreed(trainer.processes)


def new_classes_seconds(prepared: Prepared, found: RunTrial, now: Callable[[], float]) -> float:
    """Return the seconds of showing how a meta-trained run learns its novel classes; 0 for another run.

    Args:
        prepared: of the run.
        found: of its stages and of drawing.
        now: seconds of the clock that counts.
    """
    from fewgen.data.imageset import joined
    from fewgen.runs.adaptation import N_NEW, SHOTS
    from fewgen.runs.adapting import MAX_NEW, MAX_REPLAY, MIN_REPLAY, POOL
    from fewgen.runs.new_classes import choose_classes, split_novel

    novel = next((others.images for others in prepared.others if others.name == "novel"), None)
    if prepared.meta is None or novel is None:
        return 0.0
    shown = novel.select_classes(choose_classes(novel))
    support, _ = split_novel(shown, 0)
    shots = [k for k in SHOTS if k <= len(support) // shown.n_classes]
    stages = zip(prepared.stages(), found.stages, strict=True)
    per_image = next(
        (t.step / s.batch_size for s, t in stages if t and s.name == prepared.method.adapts_stage), 0.0
    )
    new = [min(k * shown.n_classes, MAX_NEW) for k in shots]
    images = sum(n + min(max(n, MIN_REPLAY), MAX_REPLAY) for n in new)
    updates = per_image * prepared.tasks.adapt_steps * images
    drawn = POOL + (1 + len(shots)) * N_NEW * shown.n_classes
    judge = judge_seconds(joined([prepared.train, novel]), None, now)
    return updates + judge + drawn * found.draw


def report_parts(
    prepared: Prepared, draw: float = 0.0, now: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the parts of measuring for the report of a run, with the seconds that each takes."""
    n_classes, n_held_out = prepared.train.n_classes, len(prepared.held_out or ())
    n = report_images(n_classes) * n_classes
    return evaluation_seconds(
        n,
        prepared.train,
        n_held_out,
        draw=draw,
        extractor=report_judge(prepared.train).encoder(prepared.train),
        held_out=prepared.held_out,
        now=now,
    )


def draw_seconds(method: Method, now: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of drawing an image, in full groups unless that would take long itself."""
    from fewgen.generation.request import GenerationRequest, image_seeds

    def drawn(n: int) -> float:
        labels = torch.arange(n) % method.spec.n_classes
        options = {"alpha": 1.0} if "blend" in method.capabilities else {}
        request = GenerationRequest(labels=labels, seeds=image_seeds(0, n), options=options)
        started = now()
        method.generate(request)
        return (now() - started) / n

    rows = method.rows
    vars(method)["rows"] = min(FEW, rows)  # shadows that of the class
    try:
        few = drawn(method.rows)
        del method.rows
        return min(few, drawn(rows)) if few * rows < 3.0 else few
    except Exception:  # a method that cannot draw before it has learned
        return 0.0
    finally:
        vars(method).pop("rows", None)


# ------------------------------------------------------------------------------------------ in words


def steps_within(stages: Sequence[Stage], trials: Sequence[StageTrial], seconds: float) -> list[int]:
    """Return the steps of each stage that fit into the seconds of a training."""
    allowed = []
    for index, trial in enumerate(trials):
        room = seconds * share_of_rest(stages, index)
        start = min(trial.start, HALF * room)  # a limit shortens what prepares a stage
        steps = min(trial.steps, max(1, int((room - start - trial.end) / max(trial.step, 1e-9))))
        allowed.append(steps)
        seconds -= start + steps * trial.step + trial.end
    return allowed


def limit_in_words(
    stages: Sequence[Stage], found: RunTrial, minutes: float | None, size: tuple[int, int], before: float
) -> str:
    """Return what a limit buys, or what it takes without one, as a sentence.

    Args:
        stages: of the training.
        found: what its parts take.
        minutes: the limit, or None.
        size: height and width of the images.
        before: seconds before the first step.
    """
    at = f"at {size[0]} px" if size[0] == size[1] else f"at {size[0]}x{size[1]} px"
    trials = [trial for trial in found.stages if trial is not None]
    if len(trials) < len(found.stages):
        return "How long it takes cannot be said before the first stages have run."
    planned, training = sum(t.steps for t in trials), sum(t.seconds for t in trials)
    whole = before + training + found.report
    if minutes is None:
        measuring = f" and {shown_seconds(found.report)} for measuring and the report" if found.report else ""
        return (
            f"It takes about {shown_seconds(whole)} {at} here: {shown_seconds(training)} for {planned:,} "
            f"steps{measuring}."
        )
    limit = 60.0 * minutes
    one = minutes == 1
    given = shown_minutes(minutes)
    if whole <= limit:
        be = "is" if one else "are"
        return (
            f"{given} {be} enough for all {planned:,} steps {at} here: about {shown_seconds(whole)} in all."
        )
    room = limit - before - found.reserved(limit)
    steps = sum(steps_within(stages, trials, room))
    enough = _minutes(whole / 60)
    text = f"{given} allow{'s' if one else ''} about {steps:,} of {planned:,} steps {at} here"
    if steps >= planned / 10:
        return f"{text}; all of them take --minutes {enough}."
    smaller = f"--size {min(size) // 16 * 8}, or " if min(size) >= 56 else ""  # a size for every method
    return f"{text}: not enough for pictures; take {smaller}--minutes {enough}."


def _minutes(needed: float) -> str:
    """Return minutes that are enough, with two digits.

    >>> _minutes(94.2), _minutes(3.21), _minutes(0.371), _minutes(312)
    ('95', '3.3', '0.38', '320')
    """
    unit = 10.0 ** (math.floor(math.log10(max(needed, 0.01))) - 1)
    return f"{math.ceil(round(needed / unit, 6)) * unit:.10g}"


def check_limit(found: RunTrial, minutes: float, left: float | None = None) -> None:
    """Refuse a limit in which not even a step of each stage fits, before anything is written.

    Args:
        found: what the parts of the run take.
        minutes: the limit.
        left: seconds of it; None: all.

    Raises:
        ConfigError: with the time that they take.
    """
    trials = [trial for trial in found.stages if trial is not None]
    ends = sum(trial.end for trial in trials)
    least = sum(trial.start + trial.step for trial in trials) + ends
    if least <= (60.0 * minutes if left is None else left):
        return
    spent = 0.0 if left is None else 60.0 * minutes - left
    found_out = f", and finding that out took {shown_seconds(spent)}" if least <= 60.0 * minutes else ""
    enough = _minutes((2 * least + spent) / 60)
    after = f", with {shown_seconds(ends)} for what follows the steps," if ends > 1 else ""
    raise ConfigError(
        f"A limit of {shown_minutes(minutes)} is too short: a single step of each stage{after} takes "
        f"{shown_seconds(least)} here{found_out}. Nothing was written. Take --minutes {enough} or more, or "
        "smaller images (--size)."
    )
