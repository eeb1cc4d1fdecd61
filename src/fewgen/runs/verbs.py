"""What a trained run is for: generate, interpolate, reconstruct, retrieve."""

from __future__ import annotations

import dataclasses
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.keywords import checked_temperature, refuse_ignored, whole
from fewgen.config.surroundings import own_surroundings
from fewgen.data.names import name_key, name_labels, unprintable
from fewgen.data.one_image import is_image_file, single_image
from fewgen.data.split import class_list
from fewgen.errors import ConfigError, DataError, OutputError, TextError, suggest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from fewgen.data import ImageSet
    from fewgen.data.registry import Reading
    from fewgen.generation import GeneratedImages
    from fewgen.methods.base import Method

MAX_SEED = 2**63 - 1
"""Of one image: seeds are stored in 64 bits with a sign."""

MAX_PICTURED = 40
"""Reconstructions in a picture, if it is not said how many."""


@dataclasses.dataclass
class Reconstructions:
    """Images and how they come back from the model.

    Attributes:
        originals: as the model sees them (its size and channels).
        images: uint8 (N, C, H, W), in the same order.
    """

    originals: ImageSet
    images: Tensor

    def picture(self, columns: int = 10) -> Image:
        """Return originals with their reconstructions below."""
        from fewgen.generation import pairs

        return pairs(self.originals.images, self.images, columns)


@dataclasses.dataclass
class Retrieved:
    """The nearest words of images.

    Attributes:
        names: a name per image: its file, or its place in the data.
        words: for each image the nearest words with their scores (higher is nearer), best first.
        labels: the true class of each image, where the data have labels that the model knows.
        accuracy: share of images whose nearest word is their class; None without labels.
    """

    names: list[str]
    words: list[list[tuple[str, float]]]
    labels: list[str] | None = None
    accuracy: float | None = None


class Verbs(ABC):
    """What can be done with a trained model; `Run` says where model and images come from.

    Each function is the one of the same name in `fewgen`, which describes its keywords.
    """

    path: Path

    @property
    @abstractmethod
    def method(self) -> Method:
        """The trained method."""

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The classes it can draw."""

    @abstractmethod
    def images(
        self, data_dir: str | os.PathLike[str] | None, download: bool
    ) -> tuple[ImageSet, ImageSet | None]:
        """Return the images that it was trained on, and the held-out ones."""

    @own_surroundings()
    def generate(
        self,
        *,
        class_names: Sequence[str] | str | None = None,
        texts: Sequence[str] | str | None = None,
        n: int | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        temperature: float = 1.0,
        alpha: float | str | None = None,
        alphas: Sequence[float] | None = None,
        mode: str | None = None,
        strength: float | None = None,
        prompt: str | None = None,
        sharpen: float = 0.0,
        options: Mapping[str, Any] | None = None,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> GeneratedImages:
        """Make new images of classes or of free texts; image i depends on its own seed alone."""
        import torch

        from fewgen.generation import GenerationRequest, check_output, image_seeds, sharpened
        from fewgen.generation.sharpen import check_strength

        check_strength(sharpen)
        if seeds is not None:
            refuse_ignored("with --seeds", {"n": n, "seed": seed}, {"n": None, "seed": 0}, "n", "seed")
        n = whole("n", (16 if alphas is None else 3) if n is None else n, 1)
        temperature = checked_temperature(temperature)
        options = dict(options or {})
        columns = _alphas(alpha, alphas, options)
        self._put_edits({"mode": mode, "strength": strength, "prompt": prompt}, options)
        levels: list[Any] = [*columns] or [options.get("alpha")]
        if "blend" not in self.method.capabilities:
            _refuse_without_noise(temperature, seed)
        elif all(a == 0 for a in levels):
            given = {"temperature": temperature}
            refuse_ignored("with --alpha 0, which takes no noise", given, {"temperature": 1.0}, "temperature")
        if class_names is not None and not class_names:
            raise ConfigError(
                "class_names is empty: name at least one class, or leave it out to draw every class."
            )
        chosen = class_list(class_names, self.class_names) if class_names else []
        free = [texts] if isinstance(texts, str) else list(texts or [])
        for text in free:
            if not isinstance(text, str) or unprintable(text):
                raise ConfigError(
                    f"A text must be words without line breaks or control characters, got {text!r}."
                )
        if chosen or free:
            self._check_classes([*chosen, *free][0])
        else:
            chosen = list(self.class_names)
        if columns or "alpha" in options:
            self._check_blends(free)
        if free:
            self._check_meaning(free[0])
        if out is not None:
            check_output(out, overwrite)
        if seeds is not None:
            own = torch.tensor([whole("seeds", s, 0, MAX_SEED) for s in seeds], dtype=torch.int64)
            if len(own) == 0:
                raise ConfigError("seeds is empty: give at least one, or leave it out.")
            n = len(own)
            every = own.repeat(len(chosen) + len(free))
        else:
            every = image_seeds(whole("seed", seed), n * (len(chosen) + len(free)))

        labels = torch.tensor([self.class_names.index(name) for name in chosen]).repeat_interleave(n)

        def drawn(**asked: Any) -> GeneratedImages:
            return self.method.generate(
                GenerationRequest(**{"temperature": temperature, "options": options, **asked})
            )

        if columns:
            made = _side_by_side(
                [drawn(labels=labels, seeds=every, options={**options, "alpha": a}) for a in columns]
            )
        else:
            parts = []
            if chosen:
                parts.append(drawn(labels=labels, seeds=every[: len(labels)]))
            if free:
                parts.append(
                    drawn(texts=[text for text in free for _ in range(n)], seeds=every[len(labels) :])
                )
            made = _joined(parts)
        made.provenance["run"] = self.path.name
        if columns:
            made.provenance |= {"alphas": columns, "options": options}
        if sharpen:
            made = sharpened(made, sharpen)
        if out is not None:
            self._save(made, out, columns, overwrite)
        return made

    @own_surroundings()
    def interpolate(
        self,
        a: str | Path,
        b: str | Path,
        *,
        steps: int = 8,
        seed: int = 0,
        temperature: float = 0.0,
        sharpen: float = 0.0,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> GeneratedImages:
        """Walk through the latent space from one word or image to another."""
        import torch

        from fewgen.generation import (
            GeneratedImages,
            check_output,
            image_seeds,
            sharpened,
            strip,
            write_picture,
        )
        from fewgen.generation.sharpen import check_strength
        from fewgen.generation.writers import output_kind
        from fewgen.methods.abilities import walk

        check_strength(sharpen)
        if whole("steps", steps) < 2:
            raise ConfigError(f"steps must be 2 or more (both ends count), got {steps}.")
        temperature = checked_temperature(temperature)
        self.method.require("interpolate")
        if not self.method.walk_has_noise:
            given = {"temperature": temperature, "seed": seed}
            why = "with this model, whose walks have no noise"
            refuse_ignored(why, given, {"temperature": 0.0, "seed": 0}, *given)
        _refuse_without_noise(temperature, seed)
        self._check_classes(str(a))
        if out is not None:
            check_output(out, overwrite)
        latents = self._latent(a), self._latent(b)
        seeds = image_seeds(whole("seed", seed), 1).repeat(steps)
        start, end = (Path(x).name if is_image_file(x) else str(x) for x in (a, b))
        made = GeneratedImages(
            walk(self.method, *latents, seeds, temperature),
            torch.full((steps,), -1),
            self.class_names,
            seeds,
            {
                "method": self.method.name,
                "run": self.path.name,
                "from": start,
                "to": end,
                "positions": [round(float(t), 4) for t in torch.linspace(0, 1, steps)],
                "temperature": temperature,
            },
            tuple(f"{start} to {end}" for _ in range(steps)),
        )
        if sharpen:
            made = sharpened(made, sharpen)
        if out is not None and output_kind(out) == "png":
            write_picture(out, strip(made.images, (start, end)), made.provenance)
        elif out is not None:
            made.save(out, overwrite=overwrite)
        return made

    @own_surroundings()
    def reconstruct(
        self,
        *,
        data: str | Path | ImageSet | None = None,
        reading: Reading | None = None,
        n: int | None = None,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> Reconstructions:
        """Send images through the model and back; `reading` says how they are read, but for their size."""
        from fewgen.data.imageset import evenly
        from fewgen.generation import check_output, write_npz, write_picture
        from fewgen.generation.writers import output_kind
        from fewgen.methods.abilities import reconstructed

        self.method.require("reconstruct")
        kind = None if out is None else output_kind(out)
        if out is not None:
            if kind == "folder":
                raise OutputError(
                    f'"{out}": reconstructions are written as .png (pairs to look at) or .npz (in order).'
                )
            check_output(out, overwrite)
        images = self._images_for(data, reading)
        unknown = [name for name in images.class_names if name not in self.class_names]
        if unknown and not is_image_file(data):
            warnings.warn(
                f'The data have classes that the model did not learn, such as "{unknown[0]}" ({len(unknown)} '
                f"of {images.n_classes}): their images come back as the model's own classes allow.",
                stacklevel=6,
            )
        most = MAX_PICTURED if n is None and kind == "png" else n
        if most is not None:
            images = images.subset(sorted(evenly(images.labels.tolist(), whole("n", most, 1))))
        result = Reconstructions(images, reconstructed(self.method, images))
        provenance = {"method": self.method.name, "run": self.path.name, "reconstructed": images.name}
        if out is not None and kind == "png":
            write_picture(out, result.picture(), provenance)
        elif out is not None:
            write_npz(out, result.images, images.labels, images.class_names, None, provenance)
        return result

    @own_surroundings()
    def retrieve(
        self,
        images: str | Path | Sequence[str | Path] | ImageSet,
        *,
        reading: Reading | None = None,
        top: int = 3,
    ) -> Retrieved:
        """Find the nearest class names of images; `reading` says how they are read, but for their size."""
        from fewgen.data import ImageSet
        from fewgen.methods.abilities import class_scores

        if top < 1:
            raise ConfigError(f"top must be 1 or more, got {top}.")
        self.method.require("retrieve")
        sources: list[Any] = [images] if isinstance(images, (str, Path, ImageSet)) else list(images)
        if not sources:
            raise ConfigError("No images are given.")
        sets = [self._images_for(source, reading) for source in sources]
        found = Retrieved([], [])
        labels: list[str] = []
        for source, part in zip(sources, sets, strict=True):
            best = class_scores(self.method, part.images).topk(min(top, len(self.class_names)), dim=1)
            for values, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                found.words.append(
                    [(self.class_names[place], value) for place, value in zip(places, values, strict=True)]
                )
            if is_image_file(source):
                found.names.append(str(source))
            else:
                found.names += [f"{part.name or 'image'} {i}" for i in range(len(part))]
                labels += [part.class_names[label] for label in part.labels.tolist()]
        known = name_labels(self.class_names)
        if len(labels) == len(found.words) and all(name_key(label) in known for label in labels):
            found.labels = [self.class_names[known[name_key(label)]] for label in labels]
            right = [words[0][0] == label for words, label in zip(found.words, found.labels, strict=True)]
            found.accuracy = sum(right) / len(right) if right else None
        return found

    # ------------------------------------------------------------------------------------ what was asked

    def _check_classes(self, asked: str) -> None:
        """Refuse a class or text where images do not depend on it."""
        if not self.method.knows_classes and len(self.class_names) > 1:
            raise ConfigError(
                f'"{self.path}" learned all its classes as one, so it cannot draw "{asked}". Leave the class '
                "or text out, or train without --model.network.condition none."
            )

    def _check_blends(self, texts: Sequence[str]) -> None:
        """Refuse alpha for a method that starts from noise alone."""
        if "blend" not in self.method.capabilities:
            raise ConfigError(
                f'alpha is for methods that start from real images, such as tint; "{self.path}" is a run of '
                f"{self.method.name}. Leave alpha out."
            )
        if texts:
            raise ConfigError("alpha is for classes, not for free texts.")

    def _put_edits(self, given: Mapping[str, Any], options: dict[str, Any]) -> None:
        """Put what was chosen of the keywords of editing methods among the options, or refuse it."""
        chosen = {name: value for name, value in given.items() if value is not None}
        if chosen and "edit" not in self.method.capabilities:
            names = " and ".join(f"--{name}" for name in chosen)
            raise ConfigError(
                f"{names}: only methods that exchange attributes by codes, such as tage, have that; "
                f'"{self.path}" is a run of {self.method.name}. Leave {names} out.'
            )
        for name, value in chosen.items():
            if name in options:
                raise ConfigError(f"{name} is given twice; choose one of {name}, options.")
            options[name] = value

    def _check_meaning(self, asked: str) -> None:
        """Refuse a free text where words carry no meaning, and say which words do work."""
        text = self.method.spec.text
        if text is not None and not text.has_meaning:
            shown = ", ".join(f'"{name}"' for name in self.class_names[:12])
            raise TextError(
                f'"{asked}" is not a class of this model, and its words carry no meaning '
                f"({text.encoder_name}), so no other text can be drawn.{suggest(asked, self.class_names)} "
                f"Classes: {shown}."
            )

    def _images_for(self, data: str | Path | ImageSet | None, reading: Reading | None = None) -> ImageSet:
        """Return images as the run's model needs them."""
        from fewgen.data import ImageSet
        from fewgen.data.registry import Reading

        spec = self.method.spec
        reading = dataclasses.replace(reading or Reading(), size=spec.height, channels=spec.channels)
        if isinstance(data, ImageSet):
            if (data.channels, *data.size) != spec.shape:
                raise DataError(
                    f"The images are {data.channels}x{data.size[0]}x{data.size[1]}, but the model needs "
                    f"{spec.channels}x{spec.height}x{spec.width} (channels x height x width)."
                )
            return data
        if data is None:
            train, held_out = self.images(reading.data_dir, reading.download)
            return train if held_out is None else held_out
        if spec.height != spec.width:
            raise DataError("Images for a model of oblong images must be given as an ImageSet.")
        if is_image_file(data):
            why = f'with the image file "{data}", which is no data set'
            refuse_ignored(why, {"split": reading.split}, {"split": "train"}, "split")
            return single_image(data, reading.form())
        return reading.load(data)

    def _latent(self, end: str | Path) -> Tensor:
        """Return the latent (1, L) of a class, a free text, or an image file."""
        import torch

        from fewgen.methods.abilities import Encodes, ReadsText, able, class_latents

        method = self.method
        if not isinstance(end, (str, os.PathLike)):
            raise ConfigError(f"An end must be a word or an image file, got {end!r}. Put it in quotes.")
        with torch.no_grad():
            if is_image_file(end):
                encoder = able(method, Encodes)
                return encoder.encode(self._images_for(end).floats().to(method.device))
            reader = able(method, ReadsText)
            label = name_labels(self.class_names).get(name_key(str(end)))
            if label is not None:
                return class_latents(method, torch.tensor([label]))
            self._check_meaning(str(end))
            return reader.encode_text(method.text_vectors([str(end)]))

    def _save(
        self, made: GeneratedImages, out: str | Path, columns: Sequence[float], overwrite: bool
    ) -> None:
        """Write images; those at several alphas as one picture with a row for each start."""
        from fewgen.generation import grid, write_picture
        from fewgen.generation.writers import output_kind
        from fewgen.methods.abilities import Blends, able

        if not columns or output_kind(out) != "png":
            made.save(out, overwrite=overwrite)
            return
        n = len(columns)
        labels, seeds = made.labels[::n], made.seeds[::n]
        cells, heads = made.images.unflatten(0, (-1, n)), [f"{a:g}" for a in columns]
        blends = able(self.method, Blends)
        if blends.has_latents:
            import torch

            cells = torch.cat([blends.starts(labels, seeds)[:, None], cells], 1)
            heads.insert(0, "real")
        names = [self.class_names[label] for label in labels.tolist()]
        rows = ["" if i and names[i - 1] == name else name for i, name in enumerate(names)]
        write_picture(out, grid(cells.flatten(0, 1), len(heads), rows, heads=heads), made.provenance)


def _refuse_without_noise(temperature: float, seed: int) -> None:
    """Refuse the seed of noise that is not there."""
    if temperature == 0:
        why = "with --temperature 0: there is noise above 0 alone"
        refuse_ignored(why, {"seed": seed}, {"seed": 0}, "seed")


def _alphas(
    alpha: float | str | None, alphas: Sequence[float] | None, options: dict[str, Any]
) -> list[float]:
    """Return the columns that `alphas` asks for, and put `alpha` among the options."""
    if alpha is not None and (alphas is not None or "alpha" in options):
        raise ConfigError(f"alpha is given twice; choose one of alpha, {'alphas' if alphas else 'options'}.")
    if alpha is not None:
        options["alpha"] = alpha
    if alphas is None:
        return []
    columns = list(alphas)
    wrong = [a for a in columns if isinstance(a, (bool, str)) or not 0 <= a <= 1]
    if wrong or not columns:
        raise ConfigError(f"alphas must be numbers in [0, 1], got {wrong[0] if wrong else 'none'}.")
    return [float(a) for a in columns]


def _joined(parts: Sequence[GeneratedImages]) -> GeneratedImages:
    """Return images of classes and of free texts one after the other."""
    import torch

    if len(parts) == 1:
        return parts[0]
    texts: list[str] = []
    for part in parts:
        texts += part.texts or [""] * len(part)
    return dataclasses.replace(
        parts[0],
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        seeds=torch.cat([part.seeds for part in parts]),
        texts=tuple(texts),
        codes=None,  # no method with codes draws texts
    )


def _side_by_side(parts: Sequence[GeneratedImages]) -> GeneratedImages:
    """Return the images of several draws of the same starts, those of a start one after the other."""
    import torch

    return dataclasses.replace(
        parts[0],
        images=torch.stack([part.images for part in parts], 1).flatten(0, 1),
        labels=parts[0].labels.repeat_interleave(len(parts)),
        seeds=parts[0].seeds.repeat_interleave(len(parts)),
    )
