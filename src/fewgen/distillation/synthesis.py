"""Synthetic images of one task from a text-to-image model: specialised once, drawn in three ways."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from fewgen.config.checks import Weight
from fewgen.config.records import checked, read_record
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.diffusion.noising import noise_and_denoise
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.diffusion.specialisation import Specialisation, generate, specialise
from fewgen.distillation.storing import kept_images
from fewgen.errors import CheckpointError, ConfigError
from fewgen.files import make_dir, write_json
from fewgen.fitting.seeds import make_rng
from fewgen.generation.request import image_seeds
from fewgen.progress import Progress

if TYPE_CHECKING:
    from fewgen.diffusion.pipeline import TextToImage


_RECORD = "specialised.json"


def by_class(images: ImageSet) -> list[Tensor]:
    """Return the images of each class, (K, C, H, W) in [-1, 1]."""
    classes = range(images.n_classes)
    return [images.floats((images.labels == c).nonzero().flatten()) for c in classes]


class PartClock:
    """Adds up the seconds of each part of a work that tells its progress.

    The time since the last call belongs to the part that the call names. What a part's name says after a
    colon does not count.

    Attributes:
        seconds: part -> seconds so far.
    """

    def __init__(self, progress: Progress | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.progress, self.clock = progress, clock
        self.seconds: dict[str, float] = {}
        self.last = clock()

    def __call__(self, part: str, share: float) -> None:
        """Take note that `share` of a part is done."""
        now = self.clock()
        name = part.split(":")[0]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now
        if self.progress is not None:
            self.progress(part, share)


class _About(TypedDict):
    seconds: Weight


class Synthesis:
    """What a model makes of the supports of one task.

    Specialisations and images are kept in the folder and read from there, so that what was interrupted goes
    on, and every user of the same images gets the same.

    Args:
        pipe: gives the model; called at the first need.
        supports: of the task.
        config: how to specialise and to sample.
        folder: of this task.
        per_class: images of each class.
        alpha: of TINT images, in [0, 1]; 1 draws from noise alone.
        seed: of all draws.
        first: number of the first image seed beside `seed`, for tasks that share a seed.
        progress: told what is done, and the share of it.

    Attributes:
        generation: kind -> {"seconds", "images"}, of images made or read so far.
    """

    def __init__(
        self,
        pipe: Callable[[], TextToImage],
        supports: ImageSet,
        config: SpecialiseConfig,
        folder: Path,
        *,
        per_class: int,
        alpha: float = 1.0,
        seed: int = 0,
        first: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.pipe, self.supports, self.config, self.folder = pipe, supports, config, folder
        self.per_class, self.alpha, self.seed, self.first = per_class, alpha, seed, first
        self.progress = progress
        self.generation: dict[str, dict[str, float]] = {}
        self._learned: list[Specialisation] | None = None

    def specialisations(self) -> list[Specialisation]:
        """Return what the model learned of each class, in the order of the supports' classes."""
        if self._learned is not None:
            return self._learned
        pipe, names = self.pipe(), self.supports.class_names
        files = [self.folder / f"specialisation{i}.safetensors" for i in range(len(names))]
        if (self.folder / _RECORD).is_file() and all(file.is_file() for file in files):
            self._learned = [Specialisation.load(file, pipe) for file in files]
            return self._learned
        make_dir(self.folder)
        clock = PartClock(self.progress)
        self._learned = specialise(
            pipe,
            by_class(self.supports),
            names,
            self.config,
            rng=make_rng("cpu", self.seed, "distill", "specialise", self.first),
            progress=clock,
        )
        for file, found in zip(files, self._learned, strict=True):
            found.save(file)
        write_json(self.folder / _RECORD, clock.seconds)
        return self._learned

    def seconds(self) -> dict[str, float] | None:
        """Return the seconds of each part of specialising; None if that has not happened."""
        file, again = self.folder / _RECORD, "Delete its folder, and the same command makes it again."
        return read_record(file, dict[str, float], CheckpointError, again) if file.is_file() else None

    def forget_specialisations(self) -> None:
        """Remove what was learned, which is large for a large model, once all images are made."""
        for file in self.folder.glob("specialisation*.safetensors"):
            file.unlink()
        self._learned = None

    def has(self, kind: str) -> bool:
        """Return whether images of a kind are there, made now or by an earlier call."""
        return self._file(kind).is_file()

    def images(self, kind: str) -> ImageSet:
        """Return `per_class` images of each class.

        Args:
            kind: a name of `KINDS`. All kinds take the same image seeds, and so the same noise.

        Raises:
            ConfigError: an unknown kind.
        """
        if kind not in KINDS:
            raise ConfigError(f'Unknown kind of synthetic images "{kind}". Choose among: {", ".join(KINDS)}.')
        found, about = kept_images(self._file(kind), lambda: self._make(kind))
        seconds = checked(about, _About, f'What is kept of "{self._file(kind)}"', CheckpointError)["seconds"]
        self.generation[kind] = {"seconds": float(seconds), "images": len(found)}
        return found

    def _make(self, kind: str) -> tuple[ImageSet, dict[str, Any]]:
        learned = self.specialisations()
        started = time.perf_counter()
        seeds = (image_seeds(self.seed, (self.first + 1) * len(learned) * self.per_class))[
            self.first * len(learned) * self.per_class :
        ]
        parts = []
        supports = by_class(self.supports)
        for c, own in enumerate(seeds.split(self.per_class)):
            made = KINDS[kind](self, learned[c], supports[c], own)
            parts.append(to_uint8(made))
            if self.progress is not None:
                self.progress(f"images of {kind}", (c + 1) / len(learned))
        labels = torch.arange(len(learned)).repeat_interleave(self.per_class)
        images = ImageSet(torch.cat(parts), labels, self.supports.class_names, name=kind)
        return images, {"seconds": time.perf_counter() - started}

    def _file(self, kind: str) -> Path:
        return self.folder / f"{kind}.npz"


def _tint(task: Synthesis, learned: Specialisation, supports: Tensor, seeds: Tensor) -> Tensor:
    """TINT: learned word, null texts of a support, blend of its latent with noise."""
    config = task.config
    return generate(
        task.pipe(),
        learned,
        seeds,
        task.alpha,
        norm_mode=config.norm_mode,
        batch=config.batch,
        size=task.supports.size,
    )


def _textual_inversion(task: Synthesis, learned: Specialisation, supports: Tensor, seeds: Tensor) -> Tensor:
    """The learned word alone, from noise, with the empty prompt."""
    word = dataclasses.replace(learned, z_T=None, u=None)
    return generate(task.pipe(), word, seeds, 1.0, batch=task.config.batch, size=task.supports.size)


def _da_fusion(task: Synthesis, learned: Specialisation, supports: Tensor, seeds: Tensor) -> Tensor:
    """The learned word; supports noised to a random time and denoised."""
    return noise_and_denoise(
        task.pipe(), learned, supports, seeds, batch=task.config.batch, size=task.supports.size
    )


KINDS: dict[str, Callable[[Synthesis, Specialisation, Tensor, Tensor], Tensor]] = {
    "tint": _tint,
    "textual_inversion": _textual_inversion,
    "da_fusion": _da_fusion,
}
"""Ways to draw images of a class that a model was specialised to."""
