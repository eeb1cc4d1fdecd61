"""Real images: data sets, judges and tasks."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.tint.settings import DATA, WAYS, Settings
from fewgen.data import load_images
from fewgen.data.imageset import ImageSet
from fewgen.episodes import EpisodeSampler, class_split
from fewgen.episodes.episode import Episode
from fewgen.evaluation import ClassifierFeatures, ClassifierSettings

QUICK_JUDGE = ClassifierSettings(steps=20, batch_size=32, width=8, dim=8)


@dataclass
class Images:
    """Images of a data set.

    Attributes:
        base: of base classes.
        part: of the classes that tasks are drawn from.
        judge_train: of all classes but those of the tasks, to train the judge on.
        judge_test: others of the same classes, to say how good it is.
    """

    base: ImageSet
    part: ImageSet
    judge_train: ImageSet
    judge_test: ImageSet


@functools.cache
def images_of(data: str, settings: Settings) -> Images:
    """Load and split a data set; Omniglot's two parts are drawers of the same characters.

    Raises:
        ConfigError: a name of no data set here.
    """
    train, test = (load_images(data, split=part, data_dir=settings.data_dir) for part in ("train", "test"))
    split = class_split(train, DATA[data]["class_split"], 0)
    chosen = split.val if settings.part == "val" else split.novel
    pool = train
    if data == "omniglot":
        pool = ImageSet(
            torch.cat([train.images, test.images]),
            torch.cat([train.labels, test.labels]),
            train.class_names,
            name=train.name,
        )
    others = [name for name in train.class_names if name not in set(chosen)]
    return Images(
        train.select_classes(split.base),
        pool.select_classes(chosen),
        train.select_classes(others),
        test.select_classes(others),
    )


@functools.cache
def judge_of(data: str, settings: Settings) -> ClassifierFeatures:
    """Return the classifier in whose features images are judged; trained once, then read from the cache."""
    images = images_of(data, settings)
    how = QUICK_JUDGE if settings.quick else None
    return ClassifierFeatures.of(images.judge_train, images.judge_test, how)


@dataclass
class Task:
    """One task of a data set.

    Attributes:
        data: its name.
        seed: number of the task.
        episode: supports and queries.
        n_query: queries of each class; None: all others.
        rest: real images of these classes that are neither, with the episode's labels; may be empty.
        settings: of the run.
        shots: supports of each class.
    """

    data: str
    seed: int
    episode: Episode
    n_query: int | None
    rest: ImageSet
    settings: Settings
    shots: int

    @property
    def n_way(self) -> int:
        """Number of classes."""
        return self.episode.n_way

    def supports(self, c: int) -> Tensor:
        """Return the supports of a class, (K, C, H, W) in [-1, 1]."""
        support = self.episode.support
        return support.floats((support.labels == c).nonzero().flatten())


def n_way_of(part: ImageSet) -> int:
    """Return how many classes a task has."""
    return min(WAYS, int((part.counts() > 0).sum()))


@functools.lru_cache(maxsize=4)
def task_of(data: str, seed: int, settings: Settings, shots: int | None = None) -> Task:
    """Return task number `seed` of a data set; with more `shots` it has the same classes and queries."""
    shots = settings.shots if shots is None else shots
    part = images_of(data, settings).part
    wanted = settings.queries
    fewest = int(part.counts().min()) - shots
    n_query = wanted if wanted <= fewest else None
    sampler = EpisodeSampler(part.labels, n_way_of(part), shots, n_query, 0, class_names=part.class_names)
    episode = sampler.episode(seed, part)
    unused = torch.ones(len(part), dtype=torch.bool)
    unused[torch.cat(sampler.support_query(seed))] = False
    left = part.subset(unused)
    return Task(data, seed, episode, n_query, left.select_classes(episode.class_names), settings, shots)
