"""fewgen methods, finished runs and foreign files behind the interface of the reference generators."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.references import REFERENCES, Budget, Reference
from fewgen.data.imageset import ImageSet
from fewgen.errors import ConfigError, suggest


class FewgenGenerator:
    """A fewgen method with a preset, trained through `fewgen.train` for the minutes of the budget.

    Args:
        method: such as "cada_vqvae".
        preset: such as "hybrid".
        run_dir: where the run folder goes; a finished or stopped run there is continued or reused.
        source: what `data` of `fewgen.train` shall be (the name of the data set).
        shots: images per class.
        temperature: of generation.
    """

    def __init__(
        self, method: str, preset: str, run_dir: Path, source: str, shots: int, temperature: float = 1.0
    ) -> None:
        self.name = f"{method}:{preset}"
        self.method, self.preset, self.run_dir = method, preset, run_dir
        self.source, self.shots, self.temperature = source, shots, temperature

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Train by name of the data set, so that the run folder knows its images; the draw is the same."""
        from fewgen import api

        api.train(
            method=self.method,
            preset=self.preset,
            data=self.source,
            shots=self.shots,
            seed=seed,
            out=self.run_dir,
            minutes=budget.seconds / 60,
            report=False,
        )
        return {"run": self.run_dir.name}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Generate by class, one seed per image."""
        return sample_run(self.run_dir, labels, seed, self.temperature)


def sample_run(run_dir: Path, labels: Tensor, seed: int, temperature: float) -> Tensor:
    """Return one image per label from a run folder, uint8 (N, C, H, W)."""
    from fewgen import api
    from fewgen.generate import GenerationRequest, image_seeds

    request = GenerationRequest(labels=labels, seeds=image_seeds(seed, len(labels)), temperature=temperature)
    return api.load_run(run_dir).method.generate(request).images


class FinishedRun:
    """A run folder that was trained before, on the same shots and seed."""

    def __init__(self, run_dir: Path, temperature: float = 1.0) -> None:
        self.name = f"run:{run_dir.name}"
        self.run_dir, self.temperature = run_dir, temperature

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Nothing to do."""
        return {"run": self.run_dir.name}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Generate by class, one seed per image."""
        return sample_run(self.run_dir, labels, seed, self.temperature)


class FileOfImages:
    """Images that another program made, in an .npz or a folder with the classes of the data."""

    def __init__(self, path: Path) -> None:
        self.name = f"file:{path.name}"
        self.path = path

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Read the images."""
        from fewgen.data import load_images

        self.images = load_images(self.path)
        return {"file": self.path.name}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Return the first images of each class; too few of a class is an error."""
        chosen = torch.empty_like(labels)
        for c in labels.unique().tolist():
            members = (self.images.labels == c).nonzero().flatten()
            wanted = (labels == c).nonzero().flatten()
            if len(members) < len(wanted):
                raise ConfigError(
                    f'"{self.path}" holds {len(members)} images of class "{self.images.class_names[c]}", but '
                    f"{len(wanted)} are measured. Set --n to at most {len(members) * self.images.n_classes}."
                )
            chosen[wanted] = members[: len(wanted)]
        return self.images.images[chosen]


def file_name(generator: str) -> str:
    """Return a name that is safe as a folder: "cada_vqvae:hybrid" becomes "cada_vqvae-hybrid"."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", generator).strip("-.")


def make_generator(spec: str, cell: Path, source: str, shots: int, temperature: float) -> Reference:
    """Return the generator that a name on the command line means.

    Args:
        spec: a reference ("diffusion"), METHOD:PRESET ("cada_vqvae:hybrid"), run:FOLDER or file:PATH.
        cell: folder of this cell; the run folder of a fewgen method goes into it.
        source: name of the data set.
        shots: images per class.
        temperature: of generation with fewgen.

    Raises:
        ConfigError: unknown name.
    """
    kinds: dict[str, Callable[[], Reference]] = dict(REFERENCES)
    if spec in kinds:
        return kinds[spec]()
    kind, separator, rest = spec.partition(":")
    if separator and kind == "run":
        return FinishedRun(Path(rest), temperature)
    if separator and kind == "file":
        return FileOfImages(Path(rest))
    if separator and rest:
        return FewgenGenerator(kind, rest, cell / "run", source, shots, temperature)
    raise ConfigError(
        f'There is no generator "{spec}".{suggest(spec, kinds)} Known: {", ".join(kinds)}, METHOD:PRESET '
        "such as cada_vqvae:hybrid, run:FOLDER, file:PATH."
    )
