"""`distill --novel`: one student for the user's classes."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import torch

from fewgen.config.schema import to_dict
from fewgen.data.identity import fingerprint, near_identical, without
from fewgen.data.imageset import ImageSet
from fewgen.diffusion.pipeline import TextToImage
from fewgen.diffusion.stable import StableDiffusion
from fewgen.distillation.encoder_teacher import EncoderTeacher
from fewgen.distillation.estimate import making_seconds
from fewgen.distillation.generated import by_run, holds_images, images_of, own_labels
from fewgen.distillation.knowledge import usual_precision
from fewgen.distillation.pool import read_like, refuse_queries, unlabelled
from fewgen.distillation.preparing import teacher_id, teacher_tasks, wants_turns
from fewgen.distillation.product import (
    PARTS_NAME,
    RECORD_NAME,
    Ingredients,
    finished,
    supports_and_rest,
    write_product,
)
from fewgen.distillation.protocol import some_base
from fewgen.distillation.request import Distilled, DistillRequest
from fewgen.distillation.storing import check_parts, holds_parts, kept_images, open_parts
from fewgen.distillation.students import Student, make_student
from fewgen.distillation.synthesis import Synthesis, by_class
from fewgen.distillation.teacher import ProtoNet
from fewgen.distillation.views import MIXTURES, mixtures
from fewgen.distillation.work import Work, check_pipeline, shared_names, shown_shape, time_in_words
from fewgen.encoders.named import find_encoder
from fewgen.episodes import class_split
from fewgen.errors import ConfigError, DataError, OutputError
from fewgen.files import file_sha256
from fewgen.fitting.seeds import derive_seed
from fewgen.folders import FolderKind
from fewgen.progress import Progress, ShownProgress
from fewgen.runs.run import Run

TASK_CLASSES, TASK_SHOTS = 10, 5
"""Most classes of a task that the teacher is trained on, and supports of each."""

LARGE_SIDE = 256
"""Largest side that images may have unless it is asked for."""

DISTILLATION = FolderKind(
    "a distillation of ours", ".fewgen-distill", lambda folder: holds_parts(folder / PARTS_NAME)
)


class StudentWork(Work):
    """A student for the user's classes."""

    def __init__(self, request: DistillRequest, planning: bool = False) -> None:
        super().__init__(request, planning)
        if request.generator is None and request.teacher is None and request.data is None:
            raise ConfigError(
                "fewgen distill --novel needs something to learn from beside your images: --teacher lite2, a "
                "pretrained encoder that labels mixtures of them (and --pool, unlabelled photographs); or "
                "--generator, a run of tint or diffusion, or a Stable Diffusion folder; or --data, images of "
                "other classes."
            )
        if self.out.suffix == ".json":
            raise OutputError(f'"{self.out}": a student needs a folder. Choose another --out.')
        if request.shots is not None:
            request.whole(shots=1)
        self.source: Run | TextToImage | ImageSet | None = None
        images_given = holds_images(request.generator)
        if request.generator is not None and not images_given:
            self.source = self.generator()
        channels, height = self._native_shape()
        reading = request.reading
        images = self.load(
            request.novel,
            height if reading.size is None else reading.size,
            channels if reading.channels is None else reading.channels,
        )
        self._check_side(images)
        self.supports, rest = supports_and_rest(images, request.shots, self.seed)
        every = rest is None
        if images_given:
            advice = "leave --shots out, so that nothing is measured"
            few = request.per_class, self.seed
            self.source = images_of(request.generator, self.supports, rest, reading, *few, advice=advice)
        elif isinstance(self.source, Run):
            self._match(self.source)
            rest = self._not_learned(self.source, rest)
        elif isinstance(self.source, TextToImage):
            check_pipeline(self.source, self.supports)
        self.held_out = rest
        if every:
            fewest = int(self.supports.counts().min())
            fewer = f"--shots {min(5, fewest - 1)}" if request.shots is None else "A smaller --shots"
            advice = f" {fewer} learns from some of each class and measures on the others."
            self.notes.append(
                "Every image is learned from, so none is left to measure the accuracy on."
                + (advice if fewest > 1 else "")
            )
        self.base = self._base()
        self.teacher = self.named_teacher(self.supports)
        self.pool, self.n_mixtures = self._pool(), self._n_mixtures()
        self._weigh()
        labelled = (self.base, self.pool, request.generator)
        if not self.n_mixtures and all(images is None for images in labelled):
            raise ConfigError(
                "With --mixtures 0 the teacher has nothing to label. Leave it out, or give it --pool, "
                "--generator or --data."
            )
        if self.base is None and self.teacher is None:
            self.notes.append(
                "There are no base images (--data) and no --teacher, so synthetic images keep their class as "
                "label, and the student starts from random weights: expect less than with base images."
            )
        elif self.base is None and isinstance(self.teacher, ProtoNet):
            self.notes.append("There are no base images (--data), so the student starts from random weights.")
        if self.held_out is not None and self.base is not None:
            self.base, _ = without(self.base, self.held_out)
        self.settings = self._settings()
        DISTILLATION.check(self.out)
        check_parts(self.out / PARTS_NAME, self.settings, self.hashed)

    @staticmethod
    def own_training(device: torch.device) -> dict[str, Any]:
        """Return a schedule of minutes: the published 10,000 steps take an hour on a processor."""
        return {"steps": 1000, "batch_size": 96, "precision": usual_precision(device)}

    def _check_side(self, images: ImageSet) -> None:
        """Refuse photographs of a camera as they are: they take hours and all memory."""
        if self.request.reading.size is None and self.source is None and max(images.size) > LARGE_SIDE:
            raise ConfigError(
                f"Your images are of {shown_shape(images.shape)} (channels x height x width), far too large "
                "for a tiny classifier. Set --size, such as --size 64: a side of the square images."
            )

    def _native_shape(self) -> tuple[int | None, int | None]:
        """Return channels and height that images need; None where smaller ones do (Stable Diffusion)."""
        if isinstance(self.source, Run):
            return self.source.info.spec["channels"], self.source.info.spec["height"]
        if self.source is None or isinstance(self.source, StableDiffusion):
            return None, None
        assert isinstance(self.source, TextToImage)
        return self.source.image_shape[:2]

    def _match(self, run: Run) -> None:
        """Refuse a run that does not know a class of the supports, or makes images of another shape."""
        otherwise = "use a diffusion run, which is specialised to any class"
        who = f'The run "{run.path.name}"'
        own_labels(run.class_names, self.supports.class_names, who, otherwise)
        own = tuple(run.info.spec[key] for key in ("channels", "height", "width"))
        if own != self.supports.shape:
            raise ConfigError(
                f'The run "{run.path.name}" makes images of {shown_shape(own)}, but these are of '
                f"{shown_shape(self.supports.shape)} (channels x height x width). Set --size {own[1]} "
                f"--channels {own[0]}."
            )

    def _not_learned(self, run: Run, rest: ImageSet | None) -> ImageSet | None:
        """Leave out of the images that measure those that the generator has learned from."""
        if rest is None:
            return None
        try:
            learned = run.images(self.request.reading.data_dir)[0]
        except DataError as error:
            self.notes.append(
                f"Whether the generator learned from images that measure the accuracy is not known. {error}"
            )
            return rest
        left, n_learned = without(rest, learned) if learned.shape == rest.shape else (rest, 0)
        if n_learned:
            self.notes.append(
                f"The generator learned from {n_learned} of {len(rest)} images that were not "
                "drawn; they are left out of the measurement."
            )
        return left if len(left) else None

    def _base(self) -> ImageSet | None:
        """Return base images, without classes of the user's names."""
        if self.request.data is None:
            return None
        height, width = self.supports.size
        base = self.load(self.request.data, height if height == width else None, self.supports.channels)
        if base.shape != self.supports.shape:
            raise DataError(
                f"The base images are of {shown_shape(base.shape)}, yours of "
                f"{shown_shape(self.supports.shape)} (channels x height x width). Set --size "
                "and --channels."
            )
        names = class_split(base, self.request.class_split or "all", self.seed).base
        shared = shared_names(names, self.supports.class_names)
        if shared:
            self.notes.append(f"{', '.join(shared)} of the base images are your classes and were left out.")
        left = [name for name in names if name not in shared]
        if shared and len(left) < 2:
            raise DataError(
                f"Without your own classes the base images have {len(left)} classes, but a teacher is "
                "trained on 2 or more. Name other images with --data, or leave it out."
            )
        base = base.select_classes(left)
        teacher_tasks(base, 2, 1, 1)
        return base

    def _pool(self) -> ImageSet | None:
        """Return the unlabelled images at the size of the supports, without the supports."""
        given = self.request.pool
        if given is None:
            return None
        if self.teacher is None and self.base is None:
            raise ConfigError(
                "--pool needs a teacher that says what its images show: --teacher lite2, or --data."
            )
        pool = read_like(given, self.supports, self.request.reading, "--pool")
        refuse_queries(pool, self.held_out, "--pool", "leave --shots out, so that nothing is measured")
        known = near_identical(pool, self.supports)
        if bool(known.all()):
            raise DataError(f'"{given}" holds no images beside your own. Leave --pool out, or name others.')
        if bool(known.any()):
            self.notes.append(f"{int(known.sum())} images of --pool are your own; they are left out of it.")
        return unlabelled(pool.subset(~known))

    def _weigh(self) -> None:
        """Unless the user says otherwise, believe a pretrained encoder more than the generator."""
        if self.source is not None:
            self.training = dataclasses.replace(self.training, weigh=self.weighs)
            self.described["training"] = to_dict(self.training)

    def _n_mixtures(self) -> int:
        """Return how many mixtures are made; by default none if a generator and a teacher of ours do."""
        wanted = self.request.mixtures
        if wanted is None:
            return MIXTURES if self.source is None or isinstance(self.teacher, EncoderTeacher) else 0
        self.request.whole(mixtures=0)
        if wanted and self.teacher is None and self.base is None:
            raise ConfigError(
                "--mixtures needs a teacher that says what they show: --teacher lite2, or --data."
            )
        return wanted

    def _settings(self) -> dict[str, Any]:
        source = self.source
        generator = None
        if source is not None:
            generator = (
                file_sha256(source.model_path)
                if isinstance(source, Run)
                else fingerprint(source)
                if isinstance(source, ImageSet)
                else source.model_id
            )
        return {
            **self.described,
            "prepare": self.prepared_settings(self.base),
            "shots": self.request.shots,
            "supports": fingerprint(self.supports),
            "held_out": None if self.held_out is None else fingerprint(self.held_out),
            "base": None if self.base is None else fingerprint(self.base),
            "generator": None if generator is None else generator[:16],
            "mixtures": self.n_mixtures or None,
            "pool": None if self.pool is None else fingerprint(self.pool),
            "teacher": None if self.teacher is None else teacher_id(self.teacher),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of the plan before the time: a word and what it is."""
        counts = self.supports.counts().tolist()
        held_out = 0 if self.held_out is None else len(self.held_out)
        channels, height, width = self.supports.shape
        each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        rows = self._more_in_words()
        return [
            ("classes", ", ".join(self.supports.class_names[:12])),
            (
                "images",
                f"{each} of each class to learn from, {held_out} to measure on; "
                f"{'grey' if channels == 1 else 'colour'}, {height}x{width}",
            ),
            *rows,
            ("student", self.training_in_words),
        ]

    def _more_in_words(self) -> list[tuple[str, str]]:
        """Return what the student sees beside the supports: a word and what it is."""
        made = "a text-to-image model that is specialised first"
        if isinstance(self.source, Run):
            made = "its own words"
        n = f"{self.request.per_class} of each class, by {made}"
        if isinstance(self.source, ImageSet):
            n = f'{len(self.source)} of "{self.request.generator}"'
        rows = [
            ("synthetic", "none" if self.source is None else n),
            ("base", "none" if self.base is None else self._base_in_words(self.base)),
        ]
        if isinstance(self.teacher, EncoderTeacher):
            about = find_encoder("image", str(self.request.teacher))[0].about
            rows.append(("teacher", f"{self.request.teacher}, {about}"))
        if self.n_mixtures:
            rows.append(("mixtures", f"{self.n_mixtures} of your images"))
        if self.pool is not None:
            rows.append(("pool", f"{len(self.pool)} unlabelled images"))
        return rows

    def _base_in_words(self, base: ImageSet) -> str:
        shown = min(self.request.base_images or len(base), len(base))
        turned = "; turned images join when they prepare" if wants_turns(base, self.prepare.turns) else ""
        return f"{len(base)} of {base.n_classes} classes, {shown} of them shown to the student{turned}"

    @property
    def n_way(self) -> int:
        """Classes of a task that the teacher is trained on."""
        return min(self.supports.n_classes, TASK_CLASSES)

    def time(self) -> str:
        """Return what the work will take, measured on a few steps of each part."""
        if finished(self.out) is not None:
            return "none, it is finished"
        parts, above = {}, ""
        if self.base is not None:
            before = self.preparing_seconds(self.base, self.n_way, self.teacher is None)
            parts["teacher and student before"] = before
        if isinstance(self.source, Run):
            above = "; drawing by the run comes on top"
        elif self.source is None or isinstance(self.source, ImageSet):
            above = "; the teacher's labels come on top"
        elif isinstance(self.source, StableDiffusion):
            above = "; specialising Stable Diffusion comes on top"
        else:
            seconds = making_seconds(self.source, by_class(self.supports), self.tint)
            parts["words"], parts["null texts at most"] = seconds.words, seconds.null_texts
            parts["images"] = seconds.image * self.request.per_class * self.supports.n_classes
        parts["student"] = self.distilling_seconds(self.supports)
        return time_in_words(sum(parts.values()), parts, above=above)

    def run(self) -> Distilled:
        """Make the student, or return the finished one."""
        there = finished(self.out)
        if there is not None:
            return Distilled(self.out, there, list(there["notes"]), was_finished=True)
        if (self.out / RECORD_NAME).exists():
            print(
                f'note: files of "{self.out}" are missing or damaged; they are written again.',
                file=sys.stderr,
            )
        shown = ShownProgress(self.request.progress)
        try:
            DISTILLATION.prepare(self.out)
            parts = open_parts(self.out / PARTS_NAME, self.settings, self.hashed)
            record = write_product(self.out, self._ingredients(parts, shown), self.settings, shown)
        finally:
            shown.close()
        return Distilled(self.out, record, list(record["notes"]))

    def _ingredients(self, parts: Path, shown: Progress) -> Ingredients:
        teacher, base = self.teacher, self.base
        head = derive_seed(self.seed, "student head")
        if base is not None:
            n_shot = min(int(self.supports.counts().min()), TASK_SHOTS)
            teacher, start = self.prepared_on(base, parts, "start.safetensors", self.n_way, n_shot, shown)
        else:
            width = self.prepare.student_channels
            start = make_student(self.prepare.student, self.supports.shape, 0, channels=width, seed=head)

        def with_head() -> Student:
            start.new_head(self.supports.n_classes, seed=head)
            return start.to(self.device)

        training = self.training
        if teacher is None:
            training = dataclasses.replace(training, hard_labels=True)
        return Ingredients(
            self.supports,
            self.held_out,
            None if self.source is None else functools.partial(self._synthetic, self.source, parts, shown),
            self._mixtures(),
            self.pool,
            None if base is None else some_base(base, self.request.base_images, self.seed),
            None if teacher is None else teacher.to(self.device),
            with_head,
            training,
            self.seed,
            self.notes,
        )

    def _mixtures(self) -> ImageSet | None:
        if not self.n_mixtures:
            return None
        return mixtures(
            self.supports,
            self.n_mixtures,
            **self.training.looks,
            seed=derive_seed(self.seed, "mixtures of supports"),
        )

    def _synthetic(self, source: Run | TextToImage | ImageSet, parts: Path, shown: Progress) -> ImageSet:
        if isinstance(source, ImageSet):
            return source
        if isinstance(source, Run):
            return kept_images(parts / "generated.npz", lambda: self._by_class(source, shown))[0]
        return Synthesis(
            lambda: source,
            self.supports,
            self.tint,
            parts,
            per_class=self.request.per_class,
            alpha=float(self.request.alpha),
            seed=self.seed,
            progress=shown,
        ).images("tint")

    def _by_class(self, run: Run, shown: Progress) -> tuple[ImageSet, dict[str, Any]]:
        shown("generating images", 0.0)
        names, n, alpha = self.supports.class_names, self.request.per_class, float(self.request.alpha)
        return by_run(run, names, n, self.seed, alpha), {}
