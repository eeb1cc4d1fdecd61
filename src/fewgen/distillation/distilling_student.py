"""`distill --novel`: one student for the user's classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.data.identity import fingerprint
from fewgen.distillation.distilled import Distilled
from fewgen.distillation.distilling_common import (
    Work,
    check_pipeline,
    either,
    opened_generator,
    shape_of,
    shown_shape,
    whole,
)
from fewgen.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.diffusion.pipeline import TextToImage
    from fewgen.runs.run import Run

ONE_TRAINING = {"steps": 1000, "batch_size": 150}
"""Training of one student. The published 10,000 steps take an hour on a processor."""

TASK_CLASSES, TASK_SHOTS = 10, 5
"""Most classes of a task that the teacher is trained on, and supports of each."""


class StudentWork(Work):
    """A student for the user's classes."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        from fewgen.distillation.product import supports_and_rest, unseen
        from fewgen.distillation.storing import check_parts

        super().__init__(asked, ONE_TRAINING)
        if asked["generator"] is None:
            raise ConfigError(
                "fewgen distill --novel needs --generator: a run of tint for these classes, a run of "
                "diffusion, or a Stable Diffusion folder."
            )
        if self.out.suffix == ".json":
            raise OutputError(f'"{self.out}": a student needs a folder. Choose another --out.')
        if asked["shots"] is not None:
            whole("shots", asked["shots"], 1)
        self.source = opened_generator(asked["generator"], self.device, not asked["planning"])
        self.pipe, self.generating_run = either(self.source)
        shape = _native_shape(self.pipe, self.generating_run)
        size = asked["size"] if asked["size"] is not None or shape is None else shape[1]
        channels = asked["channels"] if asked["channels"] is not None or shape is None else shape[0]
        images = self.load(asked["novel"], size, channels)
        self.supports, rest = supports_and_rest(images, asked["shots"], self.seed)
        every = rest is None
        if self.pipe is not None:
            check_pipeline(self.pipe, self.supports)
        if self.generating_run is not None:
            self.labels = self._match(self.generating_run)
            rest = self._not_learned(self.generating_run, rest)
            if asked["tint"]:
                self.notes.append("--tint has no effect: the generator is specialised already.")
        self.held_out = rest
        if every:
            fewer = "--shots 5" if asked["shots"] is None else "A smaller --shots"
            self.notes.append(
                f"Every image is learned from, so none is left to measure the accuracy on. {fewer} learns "
                "from some of each class and measures on the others."
            )
        self.base = self._base()
        shown = shape_of(self.supports)
        self.teacher_given = self.given_teacher(shown)
        if self.base is None and self.teacher_given is None:
            self.notes.append(
                "There are no base images (--data) and no --teacher, so synthetic images keep their class as "
                "label, and the student starts from random weights: expect less than with base images."
            )
        elif self.base is None:
            self.notes.append("There are no base images (--data), so the student starts from random weights.")
        if self.held_out is not None and self.base is not None:
            self.base = unseen(self.base, self.held_out)
        self.settings = self._settings()
        self._check_out()
        check_parts(self.out / "parts", self.settings)

    def _match(self, run: Run) -> list[int]:
        """Return the run's label of each class of the supports.

        Raises:
            ConfigError: a class that the run does not know, or images of another shape.
        """
        from fewgen.data.imageset import name_key

        known = {name_key(name): label for label, name in enumerate(run.class_names)}
        unknown = [name for name in self.supports.class_names if name_key(name) not in known]
        if unknown:
            raise ConfigError(
                f'The run "{run.path.name}" has no class {", ".join(map(repr, unknown[:5]))}; it has '
                f"{', '.join(map(repr, run.class_names[:10]))}. Rename the folders, or use a diffusion run, "
                "which is specialised to any class."
            )
        own = tuple(run.info.spec[key] for key in ("channels", "height", "width"))
        if own != shape_of(self.supports):
            raise ConfigError(
                f'The run "{run.path.name}" makes images of {shown_shape(own)}, but these are of '
                f"{shown_shape(shape_of(self.supports))} (channels x height x width). Set --size {own[1]} "
                f"--channels {own[0]}."
            )
        return [known[name_key(name)] for name in self.supports.class_names]

    def _not_learned(self, run: Run, rest: ImageSet | None) -> ImageSet | None:
        """Leave out of the images that measure those that the generator has learned from."""
        from fewgen.distillation.product import unseen

        if rest is None:
            return None
        try:
            learned = run.images(self.asked["data_dir"])[0]
        except DataError as error:
            self.notes.append(
                f"Whether the generator learned from images that measure the accuracy is not known. {error}"
            )
            return rest
        left = unseen(rest, learned) if shape_of(learned) == shape_of(rest) else rest
        if len(left) < len(rest):
            self.notes.append(
                f"The generator learned from {len(rest) - len(left)} of {len(rest)} images that were not "
                "drawn; they are left out of the measurement."
            )
        return left if len(left) else None

    def _base(self) -> ImageSet | None:
        """Return base images, without classes of the user's names."""
        from fewgen.data.imageset import name_key
        from fewgen.distillation.preparing import teacher_tasks
        from fewgen.episodes import class_split

        if self.asked["data"] is None:
            return None
        height, width = self.supports.size
        base = self.load(self.asked["data"], height if height == width else None, self.supports.channels)
        if shape_of(base) != shape_of(self.supports):
            raise DataError(
                f"The base images are of {shown_shape(shape_of(base))}, yours of "
                f"{shown_shape(shape_of(self.supports))} (channels x height x width). Set --size "
                "and --channels."
            )
        names = class_split(base, self.asked["class_split"] or "all", self.seed).base
        own = {name_key(name) for name in self.supports.class_names}
        shared = [name for name in names if name_key(name) in own]
        if shared:
            self.notes.append(f"{', '.join(shared)} of the base images are your classes and were left out.")
        left = [name for name in names if name_key(name) not in own]
        if shared and len(left) < 2:
            raise DataError(
                f"Without your own classes the base images have {len(left)} classes, but a teacher is "
                "trained on 2 or more. Name other images with --data, or leave it out."
            )
        base = base.select_classes(left)
        teacher_tasks(base, 2, 1, 1)
        return base

    def _settings(self) -> dict[str, Any]:
        from fewgen.distillation.preparing import teacher_id

        given = self.teacher_given
        return {
            **self.described,
            "prepare": self.prepared_settings(self.base),
            "shots": self.asked["shots"],
            "supports": fingerprint(self.supports),
            "held_out": None if self.held_out is None else fingerprint(self.held_out),
            "base": None if self.base is None else fingerprint(self.base),
            "generator": _generator_id(self.source),
            "teacher": None if given is None else teacher_id(given),
        }

    def _check_out(self) -> None:
        """Refuse a folder that is neither new, empty nor ours."""
        if self.out.is_file():
            raise OutputError(f'"{self.out}" is a file, but a folder is needed. Choose another --out.')
        if self.out.is_dir() and not (self.out / "parts" / "settings.json").is_file():
            foreign = [e.name for e in self.out.iterdir() if not e.name.startswith(".") and e.name != "parts"]
            if foreign:
                raise OutputError(
                    f'The folder "{self.out}" is not empty (it holds "{foreign[0]}") and not a distillation '
                    "of ours. Nothing was changed. Choose a new folder for --out."
                )

    def plan(self) -> str:
        """Return what would be done."""
        counts, training = self.supports.counts().tolist(), self.training
        held_out = 0 if self.held_out is None else len(self.held_out)
        base = "none" if self.base is None else self._base_in_words(self.base)
        channels, height, width = shape_of(self.supports)
        each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        lines = [
            f"classes     {', '.join(self.supports.class_names[:12])}",
            f"images      {each} of each class to learn from, {held_out} to measure on; "
            f"{'grey' if channels == 1 else 'colour'}, {height}x{width}",
            f"synthetic   {self.per_class} of each class, by "
            + ("its own words" if self.pipe is None else "a text-to-image model that is specialised first"),
            f"base        {base}",
            f"student     {self.prepare.student}, {training.steps} steps of {training.batch_size} images",
        ]
        lines.append(f"time        {self._time()}")
        return "\n".join([*lines, *(f"note        {note}" for note in self.notes)])

    def _base_in_words(self, base: ImageSet) -> str:
        from fewgen.distillation.preparing import wants_turns

        shown = len(base) if not self.base_images else min(self.base_images, len(base))
        turned = "; turned images join when they prepare" if wants_turns(base, self.prepare.turns) else ""
        return f"{len(base)} of {base.n_classes} classes, {shown} of them shown to the student{turned}"

    def _time(self) -> str:
        """Return what the work will take, measured on a few steps of each part."""
        from fewgen.diffusion.stable import StableDiffusion
        from fewgen.distillation.estimate import making_seconds, shown_seconds
        from fewgen.distillation.product import finished
        from fewgen.distillation.synthesis import by_class

        if finished(self.out) is not None:
            return "none, it is finished"
        parts = {}
        if self.base is not None:
            parts["teacher and student before"] = self.preparing_seconds(
                self.base, self.teacher_given is None, min(self.supports.n_classes, TASK_CLASSES)
            )
        made = "" if self.pipe is not None else "; drawing by the run comes on top"
        if isinstance(self.pipe, StableDiffusion):
            made = "; specialising Stable Diffusion comes on top"
        elif self.pipe is not None:
            seconds = making_seconds(self.pipe, by_class(self.supports), self.tint)
            parts["words"], parts["null texts at most"] = seconds.words, seconds.null_texts
            parts["images"] = seconds.image * self.per_class * self.supports.n_classes
        parts["student"] = self.distilling_seconds(self.supports)
        shown = ", ".join(f"{name} {shown_seconds(value)}" for name, value in parts.items())
        return f"about {shown_seconds(sum(parts.values()))} on this machine ({shown}){made}"

    def run(self) -> Distilled:
        """Make the student, or return the finished one."""
        from fewgen.config.keywords import tidy_out
        from fewgen.distillation.product import PARTS_NAME, finished, write_product
        from fewgen.distillation.storing import open_parts
        from fewgen.progress import ShownProgress

        there = finished(self.out)
        if there is not None:
            return Distilled(self.out, there, list(there["notes"]), was_finished=True)
        shown = ShownProgress(self.asked["progress"])

        @tidy_out
        def work(*, out: Path) -> dict[str, Any]:
            parts = open_parts(out / PARTS_NAME, self.settings)
            return write_product(out, self._ingredients(parts, shown), self.settings, shown)

        try:
            record = work(out=self.out)
        finally:
            shown.close()
        return Distilled(self.out, record, list(record["notes"]))

    def _ingredients(self, parts: Path, shown: Callable[[str, float], None]) -> Any:
        import torch

        from fewgen.distillation.preparing import pretrained_student, trained_teacher
        from fewgen.distillation.product import Ingredients
        from fewgen.distillation.protocol import some_base
        from fewgen.distillation.students import Student, make_student
        from fewgen.fitting.seeds import derive_seed

        device = torch.device(self.device)
        common: dict[str, Any] = {"seed": self.seed, "device": device, "progress": shown}
        teacher, base = self.teacher_given, self.base
        if base is not None and teacher is None:
            fewest = int(self.supports.counts().min())
            teacher = trained_teacher(
                parts / "teacher.safetensors",
                base,
                self.prepare,
                self.training,
                n_way=min(self.supports.n_classes, TASK_CLASSES),
                n_shot=min(fewest, TASK_SHOTS),
                **common,
            )
        head = derive_seed(self.seed, "student head")
        if base is not None:
            start = pretrained_student(
                parts / "start.safetensors", base, self.prepare, self.training, **common
            )
        else:
            shape, width = shape_of(self.supports), self.prepare.student_channels
            start = make_student(self.prepare.student, shape, 0, channels=width, seed=head)

        def with_head() -> Student:
            start.new_head(self.supports.n_classes, seed=head)
            return start.to(device)

        training = self.training
        if teacher is None:
            training = dataclasses.replace(training, hard_labels=True)
        return Ingredients(
            self.supports,
            self.held_out,
            functools.partial(self._synthetic, parts, shown),
            None if base is None or teacher is None else some_base(base, self.base_images, self.seed),
            None if teacher is None else teacher.to(device),
            with_head,
            training,
            self.seed,
            self.notes,
        )

    def _synthetic(self, parts: Path, shown: Callable[[str, float], None]) -> ImageSet:
        from fewgen.distillation.storing import kept_images
        from fewgen.distillation.synthesis import Synthesis

        if self.pipe is not None:
            pipe = self.pipe
            return Synthesis(
                lambda: pipe,
                self.supports,
                self.tint,
                parts,
                per_class=self.per_class,
                alpha=float(self.asked["alpha"]),
                seed=self.seed,
                progress=shown,
            ).images("tint")
        return kept_images(parts / "generated.npz", lambda: self._by_class(shown))[0]

    def _by_class(self, shown: Callable[[str, float], None]) -> tuple[ImageSet, dict[str, Any]]:
        import torch

        from fewgen.data import ImageSet
        from fewgen.generation.request import GenerationRequest, image_seeds

        shown("generating images", 0.0)
        assert self.generating_run is not None
        labels = torch.tensor(self.labels).repeat_interleave(self.per_class)
        options = {"alpha": float(self.asked["alpha"])} if self.generating_run.info.method == "tint" else {}
        request = GenerationRequest(labels=labels, seeds=image_seeds(self.seed, len(labels)), options=options)
        made = self.generating_run.method.generate(request)
        own = torch.arange(len(self.labels)).repeat_interleave(self.per_class)
        return ImageSet(made.images, own, self.supports.class_names, name="generated"), {}


def _native_shape(pipe: TextToImage | None, run: Run | None) -> tuple[int, int, int] | None:
    """Return the shape that images need; None where any smaller one will do (Stable Diffusion)."""
    from fewgen.diffusion.stable import StableDiffusion

    if run is not None:
        spec = run.info.spec
        return spec["channels"], spec["height"], spec["width"]
    if pipe is None or isinstance(pipe, StableDiffusion):
        return None
    return pipe.image_shape


def _generator_id(source: TextToImage | Run) -> str:
    import hashlib

    pipe, run = either(source)
    if pipe is not None:
        return pipe.model_id[:16]
    assert run is not None
    return hashlib.sha256(run.model_path.read_bytes()).hexdigest()[:16]
