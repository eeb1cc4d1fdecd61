"""`distill` without images of the user: competitors over episodes of a data set."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch

from fewgen.api.training import train
from fewgen.data.identity import fingerprint, without
from fewgen.data.imageset import ImageSet
from fewgen.diffusion.pipeline import TextToImage
from fewgen.diffusion.stable import StableDiffusion
from fewgen.distillation.competitors import (
    COMPETITORS,
    KIND_OF,
    NEED_BASE,
    NEED_POOL,
    about_competitors,
)
from fewgen.distillation.encoder_teacher import EncoderTeacher
from fewgen.distillation.estimate import making_seconds, one_thread
from fewgen.distillation.generated import GENERATED, MethodOfEpisode, by_run, holds_images, images_of
from fewgen.distillation.pool import read_like, refuse_queries
from fewgen.distillation.preparing import teacher_id, teacher_tasks
from fewgen.distillation.product import FORMAT, FORMAT_VERSION, STUDENT_NAME
from fewgen.distillation.protocol import (
    PILOT,
    Prepared,
    Question,
    check_competitors,
    episode_folder,
    missing,
    run_protocol,
    some_base,
    some_of,
    summary,
)
from fewgen.distillation.request import Distilled, DistillRequest
from fewgen.distillation.storing import check_parts, open_parts, save_student
from fewgen.distillation.students import make_student
from fewgen.distillation.synthesis import by_class
from fewgen.distillation.teacher import ProtoNet
from fewgen.distillation.views import MIXTURES
from fewgen.distillation.work import (
    TEACHER_NAME,
    Work,
    check_pipeline,
    shared_names,
    shown_shape,
    time_in_words,
)
from fewgen.encoders.base import FrozenEncoder
from fewgen.encoders.named import encoder_record
from fewgen.episodes import class_split
from fewgen.errors import ConfigError, MissingDependencyError, OutputError
from fewgen.files import read_json, write_json
from fewgen.fitting.seeds import derive_seed
from fewgen.methods.registry import method_names
from fewgen.progress import ShownProgress
from fewgen.runs.environment import environment
from fewgen.runs.pipeline import load_pipeline
from fewgen.runs.run import Run
from fewgen.version import __version__

CELLS_SUFFIX = ".cells"

JOINT = "lite"
"""The joint encoder that is not noted in the settings, so that competitors can join a comparison later."""


class ComparisonWork(Work):
    """Competitors over episodes."""

    def __init__(self, request: DistillRequest, planning: bool = False) -> None:
        super().__init__(request, planning)
        if self.out.suffix != ".json":
            raise OutputError(
                f'"{self.out}": the comparison is written as .json. Name such a file with --out.'
            )
        self.opened = self._opened()
        self.names = self._names()
        if not self.names:
            raise ConfigError("--competitors needs at least one name.")
        request.whole(workers=1)
        self.episodes = self._n_episodes()
        self.question = self._question()
        self.images = self.load(request.data, request.reading.size, request.reading.channels)
        self.split_words = request.class_split or "auto"
        self.classes = class_split(self.images, self.split_words, self.seed)
        base, _, self.novel = self.classes.apply(self.images)
        self.generated = self._generated()
        self.base = base if self.classes.base else None
        self.question.sampler(self.novel)
        self.pool = self._pool()
        if self.base is not None:
            n_query = self.prepare.teacher_query
            teacher_tasks(self.base, self.question.n_way, self.question.n_shot, n_query)
        elif request.teacher is None:
            raise ConfigError(
                "Without base classes no teacher can be trained. Name a pretrained one, such as "
                "--teacher lite2, or another --class-split."
            )
        self.needs_model = bool(set(self.names) & set(KIND_OF))
        self.source = self._model()
        self.teacher = self.named_teacher(self.novel)
        self.question = dataclasses.replace(self.question, weigh=self.weighs)
        if self.teacher is not None:
            self.notes.append(self._seen_by(self.teacher))
        self.cells = self.out.with_suffix(CELLS_SUFFIX)
        self.settings = self._settings()
        self._check_out()

    @staticmethod
    def own_training(device: torch.device) -> dict[str, Any]:
        """Return a short schedule, in float32: the same numbers in one process or in several."""
        return {"steps": 500, "batch_size": 90, "precision": "float32"}

    @staticmethod
    def _seen_by(teacher: ProtoNet | EncoderTeacher) -> str:
        """Return whether a teacher that was given has seen novel classes, as far as that is known."""
        if isinstance(teacher, EncoderTeacher) and isinstance(teacher.encoder, FrozenEncoder):
            about = teacher.encoder.record()
            if "trained_on" in about:
                return (
                    f"The teacher {about['name']} has learned from {about['trained_on']}: novel classes that "
                    "are among its classes are not new to it."
                )
        return "The teacher was given: whether it has seen novel classes is not known."

    def _names(self) -> tuple[str, ...]:
        """Return the competitors that were asked for, in the order of the table."""
        request, given = self.request, self.request.competitors
        without_base = request.class_split == "none"
        if given is None and not request.compare:
            given = (
                ("tint",) if not without_base else ("mixtures", GENERATED) if self._draws else ("mixtures",)
            )
        elif given is None:
            left_out = {
                *(NEED_BASE if without_base else ()),
                *(KIND_OF if self._draws else (GENERATED,)),
                *(NEED_POOL if request.queries == "all" and request.pool is None else ()),
            }
            if "retrieved" not in left_out:
                try:
                    encoder_record("joint", request.joint_encoder)
                except MissingDependencyError as error:
                    left_out.add("retrieved")
                    self.notes.append(f"The competitor retrieved is left out. {error}")
            given = [name for name in COMPETITORS if name not in left_out]
        names = check_competitors([given] if isinstance(given, str) else given)
        wrong = [name for name in names if without_base and name in NEED_BASE]
        if wrong:
            raise ConfigError(
                f"{', '.join(wrong)}: these competitors learn from base classes, and with --class-split none "
                "there are none. Choose others with --competitors, or another --class-split."
            )
        if request.pool is not None and not set(NEED_POOL) & set(names):
            request.refuse(("pool",), "no competitor that was asked for learns from unlabelled images")
        if "retrieved" not in names and request.joint_encoder != JOINT:
            request.refuse(("joint_encoder",), "only the competitor retrieved looks images up by name")
        if "retrieved" in names:
            encoder_record("joint", request.joint_encoder)  # an unknown or missing one before long work
        return names

    def _opened(self) -> Any:
        """Return what --generator names: a text-to-image model, or one of what serves `generated`.

        That is a run that draws by class, the name of a method, or images, which are not read yet.
        """
        given = self.request.generator
        if given is None or given in method_names() or holds_images(given):
            return given
        return self.generator()

    @property
    def _draws(self) -> bool:
        """Whether --generator serves the competitor generated."""
        return self.opened is not None and not isinstance(self.opened, TextToImage)

    def _generated(self) -> ImageSet | MethodOfEpisode | None:
        """Return the images that were generated, or what makes them in each episode."""
        request, given = self.request, self.opened
        if GENERATED not in self.names:
            if self._draws and not set(self.names) & set(KIND_OF):
                request.refuse(("generator",), "no competitor that was asked for learns from its images")
            return None
        if not self._draws:
            raise ConfigError(
                "The competitor generated needs --generator: a method that is trained on the supports of "
                "each episode, such as sq_gan; a folder of generated images; or a run of novel classes. "
                "(Text-to-image models compete as tint.)"
            )
        if given in method_names():
            return MethodOfEpisode(given, request.generator_preset, request.generator_minutes)
        if holds_images(given):
            self.notes.append("What the images of --generator were made from is not known.")
            return images_of(
                given,
                self.novel,
                self.novel,
                request.reading,
                request.per_class,
                self.seed,
                advice="compare on other --data",
            )
        run: Run = given
        learned = run.images(request.reading.data_dir)[0]
        made = by_run(run, self.novel.class_names, request.per_class, self.seed, float(request.alpha))
        if made.shape != self.novel.shape:
            raise ConfigError(
                f"The run makes images of {shown_shape(made.shape)}, but these are of "
                f"{shown_shape(self.novel.shape)} (channels x height x width). Set --size and --channels."
            )
        self.novel, n_learned = without(self.novel, learned)
        self.notes.append(
            f"The run of --generator learned from {n_learned} of the novel images: none of them is a support "
            "or a query, so generated images stand for more than the supports."
        )
        return made

    def _pool(self) -> ImageSet | None:
        """Return the unlabelled images that were named, of which none may be an image of an episode."""
        if self.request.pool is None:
            return None
        pool = read_like(self.request.pool, self.novel, self.request.reading, "--pool")
        pool = some_of(pool, derive_seed(self.seed, "distill", "pool"))
        refuse_queries(pool, self.novel, "--pool", "leave it out for other images of --data")
        return pool

    def _n_episodes(self) -> int | None:
        """Return how many, or None if they are planned from the first ones."""
        wanted, half = self.request.episodes, self.request.half_width
        if wanted == "auto":
            if half is None or not 0 < half < 1:
                raise ConfigError(f"--episodes auto needs --half-width, a share such as 0.02; got {half}.")
            return None
        if half is not None:
            raise ConfigError("--half-width needs --episodes auto.")
        if isinstance(wanted, str):
            raise ConfigError(f'--episodes must be a whole number or auto, got "{wanted}".')
        self.request.whole(episodes=1)
        return wanted

    def _question(self) -> Question:
        request = self.request
        queries: int | None = None
        if request.queries != "all":
            if isinstance(request.queries, str):
                raise ConfigError(f'--queries must be a whole number or all, got "{request.queries}".')
            request.whole(queries=1)
            queries = request.queries
        request.whole(n_way=2, n_shot=1)
        if request.mixtures is not None:
            request.whole(mixtures=1)
        return Question(
            n_way=request.n_way,
            n_shot=request.n_shot,
            n_query=queries,
            per_class=request.per_class,
            alpha=float(request.alpha),
            mixtures=MIXTURES if request.mixtures is None else request.mixtures,
            joint_encoder=request.joint_encoder,
            seed=self.seed,
            tint=self.tint,
            training=self.training,
        )

    def _model(self) -> TextToImage | None:
        """Return the model that was named, after checking that it fits and knows no novel class."""
        given = self.request.generator
        if given is None or not self.needs_model:
            return None
        pipe = self.opened
        if not isinstance(pipe, TextToImage):
            is_run = isinstance(pipe, Run)
            what = f'"{pipe.path}" is a run of {pipe.info.method}' if is_run else "--generator names none"
            raise ConfigError(
                f"The comparison specialises a model in each episode, and {what}. Name a run of diffusion, "
                "or a Stable Diffusion folder."
            )
        check_pipeline(pipe, self.novel)
        if isinstance(pipe, StableDiffusion):
            self.notes.append("Stable Diffusion has seen the web: novel classes are not new to it.")
        elif isinstance(given, (str, Path, Run)):
            own = (given if isinstance(given, Run) else Run(Path(given).expanduser())).class_names
            known = shared_names(own, self.classes.novel)
            if known:
                raise ConfigError(
                    f"The generator has learned from novel classes: {', '.join(known[:5])}. Train it with "
                    f"--class-split {self.split_words} and the same --seed, so that it "
                    "sees base classes alone."
                )
        return pipe

    def _settings(self) -> dict[str, Any]:
        question, request, source = self.question, self.request, self.source
        joint = request.joint_encoder
        trained: dict[str, Any] = {"minutes": None, "preset": "default"}
        if not self._draws:
            trained = {"minutes": request.generator_minutes, "preset": request.generator_preset}
        return {
            **self.described,
            "prepare": self.prepared_settings(self.base),
            "n_way": question.n_way,
            "n_shot": question.n_shot,
            "n_query": question.n_query,
            "base": None if self.base is None else fingerprint(self.base),
            "novel": fingerprint(self.novel),
            "pool": None if self.pool is None else fingerprint(self.pool),
            "joint_encoder": None if joint == JOINT else encoder_record("joint", joint),
            "weigh": None if self.weighs or not isinstance(self.teacher, EncoderTeacher) else False,
            "generator": trained if source is None else source.model_id[:16],
            "teacher": "trained on base classes" if self.teacher is None else teacher_id(self.teacher),
        }

    def _check_out(self) -> None:
        """Refuse a file that is no comparison, and cells of another question."""
        if self.out.is_dir():
            raise OutputError(f'"{self.out}" is a folder, but a file is needed. Choose another --out.')
        if self.out.exists():
            advice = "Delete it, and the same command writes it again; or choose another --out."
            record = read_json(self.out, OutputError, advice)
            if not isinstance(record, dict) or record.get("format") != FORMAT:
                raise OutputError(f'"{self.out}" is not a comparison of ours. Choose another --out.')
        check_parts(self.cells, self.settings, self.hashed)
        if self.generated is not None:
            check_parts(self.cells / GENERATED, self._generated_settings())

    def _generated_settings(self) -> dict[str, Any]:
        """Return what tells generated images from others; apart, so that they may join a comparison later."""
        made = self.generated
        assert made is not None
        return {"images": fingerprint(made)} if isinstance(made, ImageSet) else dataclasses.asdict(made)

    @property
    def wanted(self) -> int:
        """Episodes to compute, as far as that is known before the first."""
        return PILOT if self.episodes is None else self.episodes

    def _missing(self) -> list[tuple[str, ...]]:
        """Return the competitors that are missing in each of these episodes."""
        return [missing(self.cells, i, self.names) for i in range(self.wanted)]

    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of the plan before the time: a word and what it is."""
        wanted, question, classes = self.wanted, self.question, self.classes
        left = sum(map(len, self._missing()))

        def state(given: object, name: str) -> str:
            if given is not None:
                return "given"
            return "there" if (self.cells / name).exists() else "to be trained on base classes"

        return [
            (
                "classes",
                f"{len(classes.base)} base, {len(classes.val)} validation (not used), "
                f"{len(classes.novel)} novel",
            ),
            (
                "episodes",
                f"{wanted}{', then as many as planned' if self.episodes is None else ''}; "
                f"{question.n_way}-way, {question.n_shot}-shot, "
                f"{question.n_query or 'all other'} queries of each class",
            ),
            ("competitors", ", ".join(self.names)),
            ("students", self.training_in_words),
            ("teacher", state(self.teacher, TEACHER_NAME)),
            ("generator", self._generator_in_words(state(self.source, "diffusion"))),
            (
                "cells",
                f"{left} of {wanted * len(self.names)} to compute, {self.request.workers} episodes at a time",
            ),
        ]

    def _generator_in_words(self, model: str) -> str:
        made = self.generated
        if isinstance(made, MethodOfEpisode):
            return f"{made.method}, trained on the supports of each episode"
        return model if self.needs_model else "not needed" if made is None else f"{len(made)} images"

    def time(self) -> str:
        """Return what the missing cells will take, by a few steps of each part."""
        left, workers = self._missing(), self.request.workers
        supports = self.question.sampler(self.novel).episode(0, self.novel).support
        before, above = 0.0, ""
        parts = {}
        if self.base is not None and not (self.cells / STUDENT_NAME).exists():
            teacher = self.teacher is None and not (self.cells / TEACHER_NAME).exists()
            before = self.preparing_seconds(self.base, self.question.n_way, teacher)
            parts["teacher and student before"] = before
        # Competitors that share a kind of image share its file; kinds of a task share what is learned.
        kinds = [
            sum(
                not (episode_folder(self.cells, i) / f"{kind}.npz").exists()
                for kind in {KIND_OF[name] for name in names if name in KIND_OF}
            )
            for i, names in enumerate(left)
        ]
        with one_thread(workers > 1):
            if any(kinds) and isinstance(self.source, StableDiffusion):
                above = "; specialising Stable Diffusion comes on top"
            elif any(kinds) and self.source is not None:
                seconds = making_seconds(self.source, by_class(supports), self.tint)
                learned = sum(n > 0 for n in kinds) * (seconds.words + seconds.null_texts)
                parts["words and null texts at most"] = learned
                parts["images"] = sum(kinds) * seconds.image * self.request.per_class * self.question.n_way
            elif any(kinds):
                above = "; the generator, and what is made with it, come on top"
            if any(GENERATED in names for names in left) and isinstance(self.generated, MethodOfEpisode):
                above += f"; training {self.generated.method} in each episode comes on top"
            students = sum(name != "teacher" for names in left for name in names)
            if students:
                parts["students"] = students * self.distilling_seconds(supports)
        together = f" with {workers} at a time" if workers > 1 else ""
        total = before + (sum(parts.values()) - before) / min(workers, max(self.wanted, 1))
        return time_in_words(total, parts, together, above)

    def run(self) -> Distilled:
        """Compute what is missing and write the record."""
        open_parts(self.cells, self.settings, self.hashed)
        if self.generated is not None:
            open_parts(self.cells / GENERATED, self._generated_settings())
        prepared = self._prepared()
        there = not any(missing(self.cells, i, self.names) for i in range(self.episodes or 0))
        episodes = run_protocol(
            self.question,
            prepared,
            self.cells,
            self.names,
            self.episodes,
            half_width=self.request.half_width,
            workers=self.request.workers,
            device=str(self.device),
            picture=self.cells / "images.png" if self.request.save_images else None,
            progress=self.request.progress,
            after=self._write,
        )
        record = self._write(episodes)
        return Distilled(self.out, record, list(record["notes"]), there and self.episodes is not None)

    def _prepared(self) -> Prepared:
        """Train what is missing of teacher, student and generator, all on base classes."""
        generator = self._generator()
        shown, question, base = ShownProgress(self.request.progress), self.question, self.base
        student = self.cells / STUDENT_NAME
        try:
            if base is not None:
                self.prepared_on(base, self.cells, STUDENT_NAME, question.n_way, question.n_shot, shown)
                base = some_base(base, self.request.base_images, self.seed)
            elif not student.is_file():
                name, channels = self.prepare.student, self.prepare.student_channels
                save_student(make_student(name, self.novel.shape, 0, channels=channels), student)
        finally:
            shown.close()
        teacher = self.cells / TEACHER_NAME if self.teacher is None else self.request.teacher
        return Prepared(
            base, self.novel, str(teacher), str(student), generator, load_pipeline, self.pool, self.generated
        )

    def _generator(self) -> TextToImage | str | None:
        """Return the model, or where it lies for processes of their own; trained first if none was named."""
        if not self.needs_model:
            return None
        given = self.request.generator
        if given is None:
            return self._trained_generator()
        if self.request.workers > 1 and isinstance(given, (str, os.PathLike)):
            return str(Path(given).expanduser())
        return self.source

    def _trained_generator(self) -> str:
        request, folder = self.request, self.cells / "diffusion"
        if request.progress:
            text = f"A diffusion model of the base classes, which later commands can name: {folder}"
            print(text, file=sys.stderr, flush=True)
        assert request.data is not None
        run = train(
            "diffusion",
            data=request.data,
            out=folder,
            class_split=self.split_words,
            seed=self.seed,
            preset=request.generator_preset,
            minutes=request.generator_minutes,
            **vars(request.reading),
            report=False,
            progress=request.progress,
        )
        if run.result is not None and run.result.interrupted:
            raise KeyboardInterrupt
        return str(folder)

    def _write(self, episodes: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the record of the episodes so far."""
        about = about_competitors()
        notes = list(self.notes)
        if len(episodes) < 2:
            notes.append("A single episode has no interval. Ask for more --episodes.")
        record = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": "comparison",
            "fewgen": __version__,
            "data": self.images.name or str(self.request.data),
            "settings": {
                **self.settings,
                **({} if self.generated is None else {"generated": self._generated_settings()}),
                **({"generator": None} if self._draws else {}),
            },
            "teacher": self.teacher.encoder.record() if isinstance(self.teacher, EncoderTeacher) else None,
            "classes": {
                "base": list(self.classes.base),
                "validation": list(self.classes.val),
                "novel": list(self.classes.novel),
            },
            "competitors": {name: about[name] for name in self.names},
            "n_episodes": len(episodes),
            "queries": [episode["queries"] for episode in episodes],
            "episode_classes": [episode["classes"] for episode in episodes],
            **summary(episodes, self.names),
            "notes": notes,
            "environment": environment(),
        }
        write_json(self.out, record)
        return record
