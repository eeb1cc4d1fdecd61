"""The comparison over episodes: the same tasks, seeds, first weights and steps for every competitor.

Each (episode, competitor) is a cell with a file of its own, so that a stopped comparison goes on where it was
and a longer list of competitors or episodes extends it. Episodes are spread over processes by joblib.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from fewgen.config.checks import Count, Share, Weight
from fewgen.config.records import read_record
from fewgen.data.identity import near_identical, without
from fewgen.data.imageset import ImageSet, evenly
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.distillation.competitors import COMPETITORS, NEED_POOL, Outcome, Task
from fewgen.distillation.generated import GENERATED, MethodOfEpisode
from fewgen.distillation.knowledge import DistillConfig
from fewgen.distillation.pool import joint_encoder, mined, unlabelled
from fewgen.distillation.preparing import load_teacher
from fewgen.distillation.storing import load_student
from fewgen.distillation.students import Student, make_student
from fewgen.distillation.summary import episodes_needed, interval, paired, time_report
from fewgen.distillation.synthesis import KINDS, Synthesis
from fewgen.distillation.views import MIXTURES, mixtures
from fewgen.episodes import Episode, EpisodeSampler
from fewgen.errors import CheckpointError, ConfigError, DataError, suggest
from fewgen.files import atomic_write, make_dir, write_json
from fewgen.fitting.seeds import derive_seed

if TYPE_CHECKING:
    from fewgen.diffusion.pipeline import TextToImage

    Generator = TextToImage | str
    OpenModel = Callable[[str, str], TextToImage]

PILOT = 5
"""Episodes from which the number of all is planned."""

MOST_EPISODES = 1000

POOL = 3000
"""Unlabelled images of an episode at most."""


@dataclass(frozen=True)
class Question:
    """What is compared, apart from the images and the prepared models.

    Attributes:
        n_way: classes of an episode.
        n_shot: supports of each class.
        n_query: queries of each class; None for all images that are left.
        per_class: synthetic images of each class, for every competitor that has some.
        alpha: of TINT images.
        seed: of episodes, images, first weights and training.
        mixtures: of the supports, for the competitors that have some.
        joint_encoder: finds images of the pool by class name.
        weigh: whether generated images count as much as the teacher believes that they show their class.
        tint: how the model is specialised and sampled.
        training: of every student.
    """

    n_way: int = 5
    n_shot: int = 5
    n_query: int | None = None
    per_class: int = 200
    alpha: float = 1.0
    seed: int = 0
    mixtures: int = MIXTURES
    joint_encoder: str = "lite"
    weigh: bool = False
    tint: SpecialiseConfig = SpecialiseConfig()
    training: DistillConfig = DistillConfig()

    def __post_init__(self) -> None:
        if self.n_way < 2 or self.n_shot < 1 or self.per_class < 1:
            raise ConfigError(
                "--n-way must be 2 or more, --n-shot and --per-class 1 or more, got "
                f"{self.n_way}, {self.n_shot} and {self.per_class}."
            )
        if self.n_query is not None and self.n_query < 1:
            raise ConfigError(f"--queries must be all, or 1 or more, got {self.n_query}.")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"--alpha must be in [0, 1], got {self.alpha:g}.")

    def sampler(self, novel: ImageSet) -> EpisodeSampler:
        """Return the episodes.

        Raises:
            DataError: fewer novel classes or images than an episode needs.
        """
        counts = novel.counts()
        present = int((counts > 0).sum())
        if present < self.n_way:
            advice = f"Lower --n-way to at most {present}, or make" if present > 1 else "Make"
            raise DataError(
                f"--n-way {self.n_way} needs {self.n_way} novel classes with images, but there are "
                f"{present}. {advice} more classes novel with --class-split."
            )
        needed = self.n_shot + (self.n_query or 1)
        small = [(int(n), name) for n, name in zip(counts, novel.class_names, strict=True) if 0 < n < needed]
        if small:
            shown = ", ".join(f'{n} of "{name}"' for n, name in small[:5])
            more = f" and {len(small) - 5} more classes" if len(small) > 5 else ""
            raise DataError(
                f"--n-shot {self.n_shot} and {self.n_query or 'at least 1'} queries need {needed} images of "
                f"each class, but there are {shown}{more}. Lower --n-shot or --queries, or add images."
            )
        return EpisodeSampler(
            novel.labels, self.n_way, self.n_shot, self.n_query, self.seed, class_names=novel.class_names
        )


def check_competitors(names: Sequence[str]) -> tuple[str, ...]:
    """Return competitors in the order of the table.

    Raises:
        ConfigError: an unknown name.
    """
    for name in names:
        if name not in COMPETITORS:
            raise ConfigError(
                f'There is no competitor "{name}".{suggest(name, COMPETITORS)} Choose among: '
                f"{', '.join(COMPETITORS)}."
            )
    return tuple(name for name in COMPETITORS if name in names)


# ------------------------------------------------------------------------------------------- one episode


@dataclass(frozen=True)
class Prepared:
    """What all episodes share: images, and the models that were prepared on base classes.

    Attributes:
        base: images of base classes that are shown to students; None without base classes.
        novel: images of novel classes.
        teacher: as `load_teacher` takes it.
        student: file; without base classes only its kind counts.
        generator: a model, or where it lies; None where no competitor needs one.
        open_model: opens the model in a folder on a device.
        pool: unlabelled images, none of them of the novel images; None for novel images of any class that
            are neither supports nor queries.
        generated: images of all novel classes, or what makes them of the supports; None: no competitor
            learns from such.
    """

    base: ImageSet | None
    novel: ImageSet
    teacher: str
    student: str
    generator: Generator | None
    open_model: OpenModel | None = None
    pool: ImageSet | None = None
    generated: ImageSet | MethodOfEpisode | None = None


@dataclass(frozen=True)
class Job:
    """What a process needs for the cells of one episode.

    Attributes:
        question: what is asked.
        episode: supports and queries.
        prepared: what all episodes share; its novel images are not looked at.
        folder: of the episode.
        names: competitors whose cells are missing.
        device: "cpu" or "cuda".
        threads: of torch; None leaves them as they are.
        picture: file of a contact sheet to write; None: none.
        progress: whether to say on standard error what is being done.
        pool: unlabelled images; None where no competitor looks at them.
        generated: images of the episode's classes; None: made of the supports, if a competitor needs them.
    """

    question: Question
    episode: Episode
    prepared: Prepared
    folder: Path
    names: tuple[str, ...]
    device: str = "cpu"
    threads: int | None = None
    picture: Path | None = None
    progress: bool = True
    pool: ImageSet | None = None
    generated: ImageSet | None = None


def run_episode(job: Job) -> int:
    """Compute the missing cells of an episode, one file each; returns its number."""
    before = torch.get_num_threads()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    try:
        task, synthesis = _task(job)
        make_dir(job.folder)
        for name in job.names:
            outcome = COMPETITORS[name](task)
            write_json(job.folder / f"{name}.json", _cell(job, name, outcome))
            if job.progress:
                seconds = f", trained in {outcome.seconds:.0f} s" if outcome.seconds else ""
                _say(job, f"{name} {100 * outcome.accuracy:.1f} %{seconds}")
        if job.picture is not None and synthesis.has("tint"):
            _picture(job.picture, job.episode.support, synthesis)
        synthesis.forget_specialisations()
    finally:
        torch.set_num_threads(before)
    return job.episode.index


def _task(job: Job) -> tuple[Task, Synthesis]:
    question, episode = job.question, job.episode
    device = torch.device(job.device)
    number = derive_seed(question.seed, "distill", "episode", episode.index)
    shown = _Parts(job) if job.progress else None
    synthesis = Synthesis(
        functools.partial(_model, job.prepared.generator, job.prepared.open_model, job.device),
        episode.support,
        question.tint,
        job.folder,
        per_class=question.per_class,
        alpha=question.alpha,
        seed=question.seed,
        first=episode.index,
        progress=shown,
    )
    prepared = load_student(job.prepared.student)[0]
    teacher = load_teacher(job.prepared.teacher, episode.support, question.training, number).to(device)

    def with_head(student: Student) -> Student:
        student.new_head(question.n_way, seed=number)
        return student.to(device)

    def fresh() -> Student:
        shape, channels = prepared.image_shape, prepared.channels
        return with_head(make_student(prepared.name, shape, question.n_way, channels=channels, seed=number))

    def mixed() -> ImageSet:
        return mixtures(episode.support, question.mixtures, **question.training.looks, seed=number)

    def pool() -> ImageSet:
        assert job.pool is not None, "run_protocol gives it to the competitors that look at it"
        return job.pool

    def synthetic(kind: str) -> ImageSet:
        if kind != GENERATED:
            return synthesis.images(kind)
        make = job.prepared.generated
        if not isinstance(make, MethodOfEpisode):
            assert job.generated is not None, "run_protocol gives them to the competitor that looks at them"
            return job.generated
        if shown is not None:
            shown(f"training {make.method} on the supports", 0.0)
        return make(episode.support, job.folder, question.per_class, question.seed + episode.index)

    def retrieved() -> ImageSet:
        encoder = joint_encoder(question.joint_encoder)
        return mined(pool(), episode.support.class_names, encoder, question.per_class)

    task = Task(
        episode.support,
        episode.query,
        job.prepared.base,
        teacher,
        fresh,
        fresh if job.prepared.base is None else lambda: with_head(copy.deepcopy(prepared)),
        synthetic,
        mixed,
        pool,
        retrieved,
        question.weigh,
        question.training,
        number,
    )
    return task, synthesis


def _cell(job: Job, name: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "competitor": name,
        "episode": job.episode.index,
        "classes": list(job.episode.class_names),
        "queries": len(job.episode.query),
        "accuracy": outcome.accuracy,
        "seconds": outcome.seconds,
        "about": outcome.about,
    }


def _model(generator: Generator | None, open_model: OpenModel | None, device: str) -> TextToImage:
    if generator is None or (isinstance(generator, str) and open_model is None):
        raise ConfigError("These competitors need a text-to-image model. Name one with --generator.")
    if not isinstance(generator, str):
        return generator
    assert open_model is not None
    return _opened(generator, open_model, device)


@functools.lru_cache(maxsize=1)
def _opened(folder: str, open_model: OpenModel, device: str) -> TextToImage:
    """Return the model in a folder; episodes of a process share the one that was opened last."""
    return open_model(folder, device)


class _Parts:
    """Names each part of making images once."""

    def __init__(self, job: Job) -> None:
        self.job, self.part = job, ""

    def __call__(self, part: str, share: float) -> None:
        if part != self.part and share < 1:
            _say(self.job, f"{part} ...")
        self.part = part


def _say(job: Job, text: str) -> None:
    print(f"[episode {job.episode.index}] {text}", file=sys.stderr, flush=True)


def _picture(path: Path, supports: ImageSet, synthesis: Synthesis) -> None:
    """Write supports, TINT images and those of noised supports, a row each for every class."""
    from fewgen.generation.pictures import grid

    columns = 8
    sources = {"supports": supports}
    sources |= {kind: synthesis.images(kind) for kind in ("tint", "da_fusion") if synthesis.has(kind)}
    rows, labels = [], []
    for c, name in enumerate(supports.class_names):
        for what, images in sources.items():
            own = images.images[images.labels == c][:columns]
            blank = own.new_full((columns - len(own), *own.shape[1:]), 255)
            rows.append(torch.cat([own, blank]))
            labels.append(f"{name.split(',')[0]}: {what}")
    with atomic_write(path) as temporary:
        grid(torch.cat(rows), columns, labels).save(temporary)


# ------------------------------------------------------------------------------------------ all episodes


def episode_folder(cells: Path, index: int) -> Path:
    """Return the folder of an episode."""
    return cells / f"episode{index:04d}"


_AGAIN = "Delete it, and the same command computes it again."


class _About(TypedDict, total=False):
    teacher: dict[str, float]


class _Cell(TypedDict):
    """What is read of a competitor's cell, besides what `_cell` writes."""

    classes: list[str]
    queries: Count
    accuracy: Share
    seconds: Weight | None
    about: _About


class _Seconds(TypedDict):
    seconds: Weight


class _Images(TypedDict):
    n: Count
    about: _Seconds


def missing(cells: Path, index: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return the competitors whose cell of an episode is not there, or cannot be read."""
    folder = episode_folder(cells, index)
    return tuple(name for name in names if not _is_cell(folder / f"{name}.json"))


def _is_cell(file: Path) -> bool:
    try:
        read_record(file, _Cell)
    except DataError:
        return False
    return True


def read_episode(cells: Path, index: int, names: Sequence[str]) -> dict[str, Any]:
    """Return the finished cells of an episode.

    Raises:
        CheckpointError: a cell is missing or damaged.
    """
    folder = episode_folder(cells, index)
    found = {name: read_record(folder / f"{name}.json", _Cell, CheckpointError, _AGAIN) for name in names}
    specialised = folder / "specialised.json"
    synthetic = {}
    for kind in (*KINDS, GENERATED):
        if (folder / f"{kind}.npz").is_file():
            about = read_record(folder / f"{kind}.images.json", _Images, CheckpointError, _AGAIN)
            synthetic[kind] = {"seconds": about["about"]["seconds"], "images": about["n"]}
    first = next(iter(found.values()))
    return {
        "episode": index,
        "classes": first["classes"],
        "queries": first["queries"],
        "accuracy": {name: cell["accuracy"] for name, cell in found.items()},
        "specialised": (
            read_record(specialised, dict[str, float], CheckpointError, _AGAIN)
            if specialised.is_file()
            else None
        ),
        "synthetic": synthetic,
        "distilled": {name: cell["seconds"] for name, cell in found.items() if cell["seconds"]},
        "teacher": _readings(found),
    }


READ = (GENERATED, "retrieved")
"""Competitors of whose images it is told how many the teacher reads as their class."""


def _readings(cells: Mapping[str, Any]) -> dict[str, float]:
    """Return what the teacher said of supports and TINT images, and of the images of `READ`."""
    said = {name: cell["about"].get("teacher", {}) for name, cell in cells.items()}
    more = {name: said[name]["synthetic"] for name in READ if "synthetic" in said.get(name, {})}
    return {**said.get("tint", {}), **more}


def some_base(base: ImageSet, n: int, seed: int) -> ImageSet:
    """Return up to `n` base images, evenly over the classes; 0 for all of them."""
    if n == 0 or n >= len(base):
        return base
    rng = torch.Generator().manual_seed(derive_seed(seed, "distill", "base images"))
    order = torch.randperm(len(base), generator=rng)
    chosen = evenly(base.labels[order].tolist(), n)
    return base.subset(order[torch.tensor(chosen)])


def some_of(pool: ImageSet, seed: int) -> ImageSet:
    """Return up to `POOL` images of a pool without their classes."""
    rng = torch.Generator().manual_seed(seed)
    return unlabelled(pool.subset(torch.randperm(len(pool), generator=rng)[:POOL]))


def _pool(novel: ImageSet, episode: Episode, seed: int) -> ImageSet:
    """Return up to `POOL` novel images of any class that are no support or query, nor the same to the eye."""
    left, _ = without(novel, episode.support, episode.query)
    pool = some_of(left, derive_seed(seed, "distill", "pool", episode.index))
    pool = pool.subset(~(near_identical(pool, episode.support) | near_identical(pool, episode.query)))
    if not len(pool):
        raise DataError(
            "The competitors pool and retrieved need novel images that are neither supports nor queries, but "
            "all others are queries. Set --queries, such as --queries 100, or name other images with --pool."
        )
    return pool


def run_protocol(
    question: Question,
    prepared: Prepared,
    cells: Path,
    names: Sequence[str],
    episodes: int | None,
    *,
    half_width: float | None = None,
    workers: int = 1,
    device: str = "cpu",
    picture: Path | None = None,
    progress: bool = True,
    after: Callable[[list[dict[str, Any]]], object] | None = None,
) -> list[dict[str, Any]]:
    """Compute the missing cells and return the episodes.

    Args:
        question: what is asked.
        prepared: what all episodes share.
        cells: folder of the cells.
        names: competitors, of `check_competitors`.
        episodes: how many; None plans them from the accuracies of `names[0]` in the first `PILOT`.
        half_width: to reach then, a share.
        workers: processes, each with one thread of torch; 1 runs here with all threads.
        device: "cpu" or "cuda".
        picture: contact sheet of the first episode.
        progress: whether to say on standard error what is being done.
        after: called with the episodes so far after each.

    Raises:
        ConfigError, DataError: wrong question, or images that do not fit.
    """
    sampler = question.sampler(prepared.novel)

    # The images of all episodes need not travel to each process.
    made = prepared.generated
    shared = dataclasses.replace(prepared, novel=prepared.novel.subset([]), pool=None)
    if isinstance(made, ImageSet):
        shared = dataclasses.replace(shared, generated=None)

    def job(i: int) -> Job:
        episode = sampler.episode(i, prepared.novel)
        wanted = missing(cells, i, names)
        pool = prepared.pool
        if pool is None and set(NEED_POOL) & set(wanted):
            pool = _pool(prepared.novel, episode, question.seed)
        return Job(
            question,
            episode,
            shared,
            episode_folder(cells, i),
            wanted,
            device,
            threads=1 if workers > 1 else None,
            picture=picture if i == 0 else None,
            progress=progress,
            pool=pool,
            generated=made.select_classes(episode.class_names) if isinstance(made, ImageSet) else None,
        )

    found: list[dict[str, Any]] = []
    wanted = PILOT if episodes is None else episodes
    while len(found) < wanted:
        numbers = range(len(found), wanted)
        done = _spread((job(i) for i in numbers if missing(cells, i, names)), workers)
        # In order, so that the record after each episode is about a beginning of the list.
        for i in numbers:
            while missing(cells, i, names):
                next(done)
            found.append(read_episode(cells, i, names))
            if after is not None:
                after(found)
        if episodes is None and half_width is not None:
            wanted = _planned(found, names[0], half_width)
            if progress:
                print(f"[plan] {wanted} episodes for +- {half_width:g}", file=sys.stderr, flush=True)
    return found


def _spread(jobs: Iterator[Job], workers: int) -> Iterator[int]:
    from joblib import Parallel, delayed

    found: Iterator[int] = Parallel(n_jobs=workers, return_as="generator", pre_dispatch=workers)(
        map(delayed(run_episode), jobs)
    )
    return found


def _planned(found: Sequence[dict[str, Any]], name: str, half_width: float) -> int:
    """Return how many episodes reach the half width, from those at hand."""
    values = [episode["accuracy"][name] for episode in found]
    needed = max(PILOT, episodes_needed(values, found[0]["queries"], half_width))
    if needed > MOST_EPISODES:
        raise ConfigError(
            f"--half-width {half_width:g} would take {needed} episodes, more than {MOST_EPISODES}; "
            f"{len(found)} are computed. Ask for a larger one."
        )
    return needed


# ------------------------------------------------------------------------------------------- the record


def summary(episodes: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Return accuracies, paired differences of `names[0]` to the others, and times; JSON-ready."""
    values = {name: [episode["accuracy"][name] for episode in episodes] for name in names}
    first = names[0]
    return {
        "accuracy": {name: interval(own) for name, own in values.items()},
        "differences": {
            f"{first} - {name}": paired(values[first], own) for name, own in values.items() if name != first
        },
        "seconds": time_report(episodes),
        "teacher_agrees": {
            source: interval([e["teacher"][source] for e in episodes])["mean"]
            for source in ("support", "synthetic", *READ)
            if all(source in e["teacher"] for e in episodes)
        },
    }


def table(record: dict[str, Any]) -> str:
    """Return accuracies and differences as a table for a terminal."""
    first = next(iter(record["accuracy"]))
    lines = [f"{'':<26}{'accuracy, %':>18}{f'{first} is better by':>24}"]
    for name, found in record["accuracy"].items():
        difference = record["differences"].get(f"{first} - {name}")
        shown = "" if difference is None else _points(difference)
        lines.append(f"{name:<26}{_points(found):>18}{shown:>24}".rstrip())
    for name in READ:
        if name in record["teacher_agrees"]:
            share = 100 * record["teacher_agrees"][name]
            lines.append(f"The teacher reads {share:.1f} % of the {name} images as their class.")
    return "\n".join(lines)


def _points(found: dict[str, Any]) -> str:
    half = found["half_width"]
    return f"{100 * found['mean']:.1f}" + ("" if half is None else f" +- {100 * half:.1f}")
