"""What both uses of `distill` need: settings, images, a teacher that was named, an opened generator."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.errors import ConfigError
from fewgen.runs.folder import check_apart

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.diffusion.pipeline import TextToImage
    from fewgen.distillation.knowledge import DistillConfig
    from fewgen.distillation.settings import SpecialiseConfig
    from fewgen.distillation.students import Student
    from fewgen.distillation.teacher import ProtoNet
    from fewgen.runs.run import Run


class Work:
    """Settings of either use, checked; images are read in the constructors of both."""

    def __init__(self, asked: Mapping[str, Any], training: Mapping[str, Any]) -> None:
        from fewgen.config import to_dict
        from fewgen.config.schema import from_dict
        from fewgen.distillation.knowledge import DistillConfig
        from fewgen.distillation.settings import PrepareConfig, SpecialiseConfig
        from fewgen.distillation.students import make_student

        self.asked = asked
        self.seed = whole("seed", asked["seed"], 0)
        self.per_class = whole("per_class", asked["per_class"], 1)
        self.base_images = whole("base_images", asked["base_images"], 0)
        self.training: DistillConfig = from_dict(DistillConfig, {**training, **(asked["training"] or {})})
        self.tint: SpecialiseConfig = from_dict(SpecialiseConfig, dict(asked["tint"] or {}))
        self.prepare = PrepareConfig(
            student=asked["student"],
            student_channels=asked["student_channels"],
            pretrain_steps=asked["pretrain_steps"],
            teacher=asked["teacher_net"],
            teacher_channels=asked["teacher_channels"],
            teacher_pretrain_steps=asked["teacher_pretrain_steps"],
            teacher_episodes=asked["teacher_episodes"],
            turns=asked["turns"],
        )
        if not 0 <= asked["alpha"] <= 1:
            raise ConfigError(f"alpha must be in [0, 1], got {asked['alpha']:g}.")
        for name in (self.prepare.student, self.prepare.teacher):
            make_student(name, (3, 32, 32), 0, channels=1)  # an unknown name before long work
        self.out = Path(asked["out"])
        for source in (asked["novel"], asked["data"]):
            check_apart(self.out, source)
        self.device: str = asked["device"]
        self.notes: list[str] = []
        self.described = {
            "seed": self.seed,
            "per_class": self.per_class,
            "alpha": float(asked["alpha"]),
            "base_images": self.base_images,
            "training": to_dict(self.training),
            "tint": to_dict(self.tint),
        }

    def load(self, source: Any, size: int | None, channels: int | None) -> ImageSet:
        """Return images as they are, if given in Python, or read from their source."""
        from fewgen.data import ImageSet, load_images

        if isinstance(source, ImageSet):
            return source
        asked = self.asked
        return load_images(
            source,
            split=asked["split"],
            size=size,
            channels=channels,
            fit=asked["fit"],
            background=asked["background"],
            convert=asked["convert"],
            data_dir=asked["data_dir"],
            download=asked["download"],
        )

    def given_teacher(self, shape: tuple[int, int, int]) -> ProtoNet | None:
        """Return the teacher that was named."""
        from fewgen.distillation.preparing import load_teacher

        name = self.asked["teacher"]
        return None if name is None else load_teacher(name, shape)

    def prepared_settings(self, base: ImageSet | None) -> dict[str, Any]:
        """Return what teacher and student are prepared with, all of it in numbers."""
        from fewgen.config import to_dict
        from fewgen.distillation.preparing import has_few_classes

        return to_dict(self.prepare if base is None else self.prepare.filled(has_few_classes(base)))

    def preparing_seconds(self, base: ImageSet, teacher: bool, n_way: int) -> float:
        """Return the seconds, measured, of preparing a student on base images, and a teacher if wanted.

        Args:
            base: images of base classes.
            teacher: whether it is trained, too.
            n_way: classes of its tasks.
        """
        import dataclasses

        from fewgen.distillation.estimate import training_seconds
        from fewgen.distillation.preparing import has_few_classes

        prepare = self.prepare.filled(has_few_classes(base))
        works = [(prepare.student, prepare.student_channels, prepare.pretrain_steps, prepare.pretrain_batch)]
        if teacher:
            size = prepare.teacher, prepare.teacher_channels
            works.append((*size, prepare.teacher_pretrain_steps, prepare.teacher_pretrain_batch))
            # A task: about five supports of each class, and queries.
            works.append((*size, prepare.teacher_episodes or 0, n_way * (5 + prepare.teacher_query)))
        seconds = 0.0
        for name, channels, steps, batch in works:
            if steps:
                training = dataclasses.replace(self.training, steps=steps, batch_size=batch)
                seconds += training_seconds(self.student(base, name, channels), base, training)
        return seconds

    def distilling_seconds(self, images: ImageSet) -> float:
        """Return the seconds, measured, of training a student for a task."""
        from fewgen.distillation.estimate import training_seconds

        student = self.student(images, self.prepare.student, self.prepare.student_channels)
        return training_seconds(student, images, self.training)

    def student(self, images: ImageSet, name: str, channels: int) -> Student:
        """Return a network for images of this shape, without a head, on the device in use."""
        from fewgen.distillation.students import make_student

        return make_student(name, shape_of(images), 0, channels=channels).to(self.device)

    def say(self, text: str) -> None:
        """Print a line on standard error, if progress is wanted."""
        if self.asked["progress"]:
            print(text, file=sys.stderr, flush=True)


def whole(name: str, value: Any, least: int) -> int:
    """Return a whole number of `least` or more, or say which flag is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"--{name.replace('_', '-')} must be a whole number of {least} or more, got {value!r}."
        )
    return value


def shape_of(images: ImageSet) -> tuple[int, int, int]:
    """Return (C, H, W) of an image."""
    return images.channels, *images.size


def shown_shape(shape: Sequence[int]) -> str:
    """Return a shape as a reader writes it."""
    return " x ".join(str(n) for n in shape)


def opened_generator(generator: Any, device: str, download: bool = True) -> TextToImage | Run:
    """Return a text-to-image model, or a run that generates by class.

    Args:
        generator: either of them, or where it lies: a folder, or the name of a Stable Diffusion on the hub.
        device: for a text-to-image model.
        download: whether a model of the hub may be fetched; False looks into the cache alone.

    Raises:
        ConfigError, CheckpointError: it is missing, damaged, or of another kind.
    """
    from fewgen.diffusion.pipeline import TextToImage
    from fewgen.methods.tint.base import is_stable_diffusion, names_hub_model
    from fewgen.runs.pipeline import load_pipeline
    from fewgen.runs.run import Run, load_run

    if isinstance(generator, TextToImage):
        return generator
    if not isinstance(generator, Run):
        folder = Path(generator).expanduser()
        if is_stable_diffusion(folder) or names_hub_model(str(generator)):
            return load_pipeline(generator, device, download)
        generator = load_run(folder, device)
    if generator.info.method == "diffusion":
        return load_pipeline(generator.path, device)
    return generator


def check_pipeline(pipe: TextToImage, images: ImageSet) -> None:
    """Refuse a text-to-image model for other channels, or for smaller images than these.

    Raises:
        ConfigError: with both shapes.
    """
    channels, height, width = pipe.image_shape
    fits = images.channels == channels and images.size[0] <= height and images.size[1] <= width
    if not fits:
        raise ConfigError(
            f"The generator makes images of {shown_shape(pipe.image_shape)}, but these are of "
            f"{shown_shape(shape_of(images))} (channels x height x width). Choose another generator, or set "
            f"--size {height} --channels {channels}."
        )


def either(source: TextToImage | Run) -> tuple[TextToImage | None, Run | None]:
    """Return a text-to-image model and None, or None and a run."""
    from fewgen.runs.run import Run

    return (None, source) if isinstance(source, Run) else (source, None)
