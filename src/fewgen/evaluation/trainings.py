"""Trainings of the small classifier, kept by the content of their images: none is done twice."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from fewgen.config.checks import Whole
from fewgen.config.records import read_record
from fewgen.data.identity import content_order, image_digests
from fewgen.data.imageset import ImageSet
from fewgen.errors import DataError
from fewgen.evaluation.arms import UsefulnessSettings, train_arm
from fewgen.files import write_json

# Raise when training changes in a way that settings do not show: kept real arms are then ignored.
_FORMAT = 1


@dataclass(frozen=True)
class OrderedSet:
    """Images in an order that depends on their content alone, with their hashes."""

    images: ImageSet
    digests: tuple[bytes, ...]
    key: str

    @classmethod
    def of(cls, images: ImageSet) -> OrderedSet:
        """Return the images in the order of their content."""
        ordered = images.subset(content_order(images))
        return cls._keyed(ordered, tuple(image_digests(ordered)))

    @classmethod
    def _keyed(cls, images: ImageSet, digests: tuple[bytes, ...]) -> OrderedSet:
        header = json.dumps([list(images.images.shape), list(images.class_names)]).encode()
        whole = hashlib.sha256(header + b"".join(digests) + images.labels.numpy().tobytes())
        return cls(images, digests, whole.hexdigest()[:32])

    def part(self, indices: Tensor) -> OrderedSet:
        """The images at increasing indices: a part keeps the order."""
        return self._keyed(self.images.subset(indices), tuple(self.digests[i] for i in indices.tolist()))

    def with_images_of(self, other: OrderedSet, indices: Tensor) -> OrderedSet:
        """The union with some images of another set."""
        added = other.images.subset(indices)
        images = torch.cat([self.images.images, added.images])
        labels = torch.cat([self.images.labels, added.labels])
        return OrderedSet.of(ImageSet(images, labels, self.images.class_names, name=self.images.name))

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Training:
    """One classifier to be trained; `real` marks those that no generator has a part in."""

    sources: tuple[OrderedSet, ...]
    test: OrderedSet
    settings: UsefulnessSettings
    seed: int
    real: bool

    @property
    def key(self) -> str:
        """Digest of all that decides the result."""
        sources, settings = [s.key for s in self.sources], dataclasses.asdict(self.settings)
        parts = [_FORMAT, torch.__version__, sources, self.test.key, settings, self.seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def payload(self) -> tuple[Any, ...]:
        """What a worker needs, as arrays, which joblib shares between processes instead of copying."""
        arrays = [(s.images.images.numpy(), s.images.labels.numpy()) for s in (*self.sources, self.test)]
        return arrays, self.test.images.class_names, self.settings, self.seed


def _train_payload(
    arrays: list[tuple[np.ndarray, np.ndarray]],
    class_names: tuple[str, ...],
    settings: UsefulnessSettings,
    seed: int,
) -> np.ndarray:
    """Train in one thread, so that the result is the same however many processes share the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Shared arrays are read-only, which torch does not know; a copy costs little beside training.
        sets = [
            ImageSet(torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels)), class_names)
            for images, labels in arrays
        ]
        return train_arm(sets[:-1], sets[-1], settings, seed).numpy()
    finally:
        torch.set_num_threads(threads)


_KEPT: dict[str, Tensor] = {}
_MOST_KEPT = 20_000


class _Kept(TypedDict):
    format: Literal["fewgen-real-arms"]
    hits: dict[str, tuple[Whole, str]]


class KeptResults:
    """Results of trainings on real images alone: in memory, and on disk where a file is named."""

    FORMAT = "fewgen-real-arms"

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.exists():
            for key, value in self._read().items():
                _KEPT.setdefault(key, value)

    def _read(self) -> dict[str, Tensor]:
        assert self.path is not None
        advice = "Name another file, or delete this one; it is made again."
        found = read_record(self.path, _Kept, advice=advice)
        try:
            return {key: self._unpack(*value) for key, value in found["hits"].items()}
        except ValueError as error:
            raise DataError(f'"{self.path}" is damaged: {error}. Delete it; it is made again.') from error

    @staticmethod
    def _unpack(n: int, text: str) -> Tensor:
        bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))
        if len(bits) < n:
            raise ValueError(f"{len(bits)} bits for {n} images")
        return torch.from_numpy(bits[:n].astype(bool))

    def get(self, training: Training) -> Tensor | None:
        """Return the result of a training, or None if it is not kept."""
        found = _KEPT.get(training.key)
        return found if found is not None and len(found) == len(training.test) else None

    def put(self, training: Training, hits: Tensor) -> None:
        """Keep the result of a training on real images alone."""
        if not training.real:
            return
        _KEPT[training.key] = hits
        while len(_KEPT) > _MOST_KEPT:
            del _KEPT[next(iter(_KEPT))]
        if self.path is None:
            return
        # Others may write into the same file meanwhile; whoever is last loses at most one training.
        known = self._read() if self.path.exists() else {}
        known[training.key] = hits
        packed = {
            key: [len(value), base64.b64encode(np.packbits(value.numpy()).tobytes()).decode()]
            for key, value in sorted(known.items())
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"format": self.FORMAT, "hits": packed})


class Trainer:
    """Trains classifiers; those that are kept or asked for twice are not trained again.

    Args:
        real_cache: JSON file that keeps the trainings on real images, or None.
        jobs: processes.
        total: trainings that there will be, for the progress.
        progress: called with the share of them that is done.
    """

    def __init__(
        self, real_cache: str | Path | None, jobs: int, total: int, progress: Callable[[float], None]
    ) -> None:
        self.kept, self.jobs, self.total, self.progress = KeptResults(real_cache), jobs, total, progress
        self.done = 0

    def run(self, trainings: Sequence[Training]) -> list[Tensor]:
        """Return the results of trainings, in order."""
        from joblib import Parallel, delayed

        found: dict[str, Tensor] = {}
        missing: dict[str, Training] = {}
        for training in trainings:
            hits = self.kept.get(training)
            if hits is None:
                missing.setdefault(training.key, training)
            else:
                found[training.key] = hits
        todo = list(missing.values())
        results: Iterator[np.ndarray] = iter(())
        if todo:
            parallel = Parallel(n_jobs=self.jobs, return_as="generator")
            results = iter(parallel(delayed(_train_payload)(*training.payload()) for training in todo))
        for training, array in zip(todo, results, strict=True):
            hits = torch.from_numpy(np.array(array, dtype=bool))
            found[training.key] = hits
            self.kept.put(training, hits)
            self.done += 1
            self.progress(self.done / self.total)
        return [found[training.key] for training in trainings]
