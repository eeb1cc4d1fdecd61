"""What both uses of `distill` share: checked settings, images, teacher, student, an opened generator."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fewgen.config.checks import share
from fewgen.config.schema import from_dict, to_dict, with_current_names
from fewgen.data.imageset import ImageSet
from fewgen.data.names import name_key, name_labels
from fewgen.diffusion.pipeline import TextToImage
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.distillation.encoder_teacher import EncoderTeacher
from fewgen.distillation.estimate import training_seconds
from fewgen.distillation.knowledge import DistillConfig
from fewgen.distillation.preparing import has_few_classes, load_teacher, pretrained_student, trained_teacher
from fewgen.distillation.request import Distilled, DistillRequest
from fewgen.distillation.settings import PrepareConfig
from fewgen.distillation.students import Student, make_student
from fewgen.distillation.teacher import ProtoNet
from fewgen.encoders.named import short_name
from fewgen.errors import ConfigError
from fewgen.methods.tint.base import is_stable_diffusion, names_hub_model
from fewgen.progress import Progress, shown_seconds
from fewgen.runs.folder import check_apart
from fewgen.runs.pipeline import load_pipeline
from fewgen.runs.run import Run, load_run
from fewgen.training.processes import pick_device

TEACHER_NAME = "teacher.safetensors"


class Work(abc.ABC):
    """One use of `distill`: everything is checked and read by the constructor, before anything is written.

    Attributes:
        notes: what a reader of the result should know.
        teacher: the teacher that was named; None: it is trained.
        described: settings of both uses, for the record.
    """

    def __init__(self, request: DistillRequest, planning: bool = False) -> None:
        request.whole(seed=0, per_class=1, base_images=0)
        self.request, self.planning, self.seed = request, planning, request.seed
        self.device = pick_device(request.device)
        own = self.own_training(self.device)
        self.training = from_dict(DistillConfig, {**own, **(request.training or {})})
        self.tint = from_dict(
            SpecialiseConfig, with_current_names(SpecialiseConfig, request.tint or {}, "tint")
        )
        prepare = {
            "student": request.student,
            "student_channels": request.student_channels,
            "pretrain_steps": request.pretrain_steps,
            "teacher": request.teacher_net,
            "teacher_channels": request.teacher_channels,
            "teacher_pretrain_steps": request.teacher_pretrain_steps,
            "teacher_episodes": request.teacher_episodes,
            "turns": request.turns,
        }
        self.prepare = from_dict(PrepareConfig, prepare)
        share("alpha", request.alpha)
        for name in (self.prepare.student, self.prepare.teacher):
            make_student(name, (3, 32, 32), 0, channels=1)  # an unknown name before long work
        self.out = Path(request.out)
        for source in (request.novel, request.data):
            check_apart(self.out, source)
        self.teacher: ProtoNet | EncoderTeacher | None = None
        self.notes: list[str] = []
        self.described = {
            "seed": self.seed,
            "per_class": request.per_class,
            "alpha": float(request.alpha),
            "base_images": request.base_images,
            "training": to_dict(self.training),
            "tint": to_dict(self.tint),
        }

    @staticmethod
    @abc.abstractmethod
    def own_training(device: torch.device) -> dict[str, Any]:
        """Return settings of students that differ from `DistillConfig` where the user says nothing."""

    @abc.abstractmethod
    def run(self) -> Distilled:
        """Do what is missing and return everything."""

    @abc.abstractmethod
    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of the plan before the time: a word and what it is."""

    @abc.abstractmethod
    def time(self) -> str:
        """Return what the missing work will take, by a few steps of each part."""

    def plan(self) -> str:
        """Return what would be done, and what is there already."""
        rows = [*self.rows(), ("time", self.time()), *(("note", note) for note in self.notes)]
        return "\n".join(f"{name:<12}{text}" for name, text in rows)

    @property
    def training_in_words(self) -> str:
        """The student and its training, for a plan."""
        return f"{self.prepare.student}, {self.training.steps} steps of {self.training.batch_size} images"

    def load(self, source: Any, size: int | None, channels: int | None) -> ImageSet:
        """Return images as they are, if given in Python, or read from their source."""
        if isinstance(source, ImageSet):
            return source
        return dataclasses.replace(self.request.reading, size=size, channels=channels).load(source)

    def generator(self) -> TextToImage | Run:
        """Return the generator that was named; a plan fetches nothing."""
        return opened_generator(self.request.generator, str(self.device), not self.planning)

    @property
    def weighs(self) -> bool:
        """Whether generated images count as much as the teacher believes: a pretrained one, unless told."""
        told = {"weigh", "hard_labels"} & set(self.request.training or {})
        return self.training.weigh or (isinstance(self.teacher, EncoderTeacher) and not told)

    @property
    def hashed(self) -> dict[str, str]:
        """Names of what settings know as a hash, for messages."""
        pretrained = isinstance(self.teacher, EncoderTeacher)
        return {"teacher": short_name(str(self.request.teacher))} if pretrained else {}

    def named_teacher(self, images: ImageSet) -> ProtoNet | EncoderTeacher | None:
        """Return the teacher that was named, for images of this shape."""
        name = self.request.teacher
        return None if name is None else load_teacher(name, images, self.training, self.seed)

    def prepared_on(
        self,
        base: ImageSet,
        folder: Path,
        student: str,
        n_way: int,
        n_shot: int,
        progress: Progress,
    ) -> tuple[ProtoNet | EncoderTeacher, Student]:
        """Return teacher and student after learning from base images, which are kept in a folder.

        Args:
            base: images of base classes.
            folder: of the files.
            student: name of the student's file.
            n_way: classes of the teacher's tasks.
            n_shot: supports of each class in them.
            progress: told what is done, and the share of it.
        """
        settings = base, self.prepare, self.training
        common: dict[str, Any] = {"seed": self.seed, "device": self.device, "progress": progress}
        teacher = self.teacher
        if teacher is None:
            file = folder / TEACHER_NAME
            teacher = trained_teacher(file, *settings, n_way=n_way, n_shot=n_shot, **common)
        return teacher, pretrained_student(folder / student, *settings, **common)

    def prepared_settings(self, base: ImageSet | None) -> dict[str, Any]:
        """Return what teacher and student are prepared with, all of it in numbers."""
        config = self.prepare if base is None else self.prepare.filled(has_few_classes(base))
        return {**to_dict(config)}

    def preparing_seconds(self, base: ImageSet, n_way: int, teacher: bool) -> float:
        """Return the seconds, measured, of preparing a student on base images, and a teacher if wanted.

        Args:
            base: images of base classes.
            n_way: classes of the teacher's tasks.
            teacher: whether it is trained, too.
        """
        prepare = self.prepare.filled(has_few_classes(base))
        works = [(prepare.student, prepare.student_channels, prepare.pretrain_steps, prepare.pretrain_batch)]
        if teacher:
            size = prepare.teacher, prepare.teacher_channels
            works.append((*size, prepare.teacher_pretrain_steps, prepare.teacher_pretrain_batch))
            # A task: about five supports of each class, and queries.
            works.append((*size, prepare.teacher_episodes or 0, n_way * (5 + prepare.teacher_query)))
        return sum(
            self._seconds(
                base, name, channels, dataclasses.replace(self.training, steps=steps, batch_size=batch)
            )
            for name, channels, steps, batch in works
            if steps
        )

    def distilling_seconds(self, images: ImageSet) -> float:
        """Return the seconds, measured, of training a student for a task."""
        return self._seconds(images, self.prepare.student, self.prepare.student_channels, self.training)

    def _seconds(self, images: ImageSet, name: str, channels: int, training: DistillConfig) -> float:
        student = make_student(name, images.shape, 0, channels=channels).to(self.device)
        return training_seconds(student, images, training)


def time_in_words(total: float, parts: Mapping[str, float], together: str = "", above: str = "") -> str:
    """Return the line of a plan that says how long its parts take, by name in seconds."""
    shown = ", ".join(f"{name} {shown_seconds(value)}" for name, value in parts.items())
    return f"about {shown_seconds(total)}{together} on this machine ({shown or 'all is there'}){above}"


def shown_shape(shape: Sequence[int]) -> str:
    """Return a shape as a reader writes it."""
    return " x ".join(str(n) for n in shape)


def shared_names(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return those of `names` that are among `others`, whatever their case."""
    known = name_labels(others)
    return [name for name in names if name_key(name) in known]


def opened_generator(generator: Any, device: str, download: bool = True) -> TextToImage | Run:
    """Return a text-to-image model, or a run that generates by class.

    Args:
        generator: either of them, or where it lies: a folder, or the name of a Stable Diffusion on the hub.
        device: for a text-to-image model.
        download: whether a model of the hub may be fetched; False looks into the cache alone.

    Raises:
        ConfigError, CheckpointError: it is missing, damaged, or of another kind.
    """
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
            f"{shown_shape(images.shape)} (channels x height x width). Choose another generator, or set "
            f"--size {height} --channels {channels}."
        )
