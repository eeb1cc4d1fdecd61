"""`distill` without images of the user: competitors over episodes of a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
    whole,
)
from fewgen.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from fewgen.diffusion.pipeline import TextToImage
    from fewgen.distillation.protocol import Question

CELLS_SUFFIX = ".cells"

COMPARED_TRAINING = {"steps": 500, "batch_size": 90}
"""Training of each student of a comparison."""


class ComparisonWork(Work):
    """Competitors over episodes."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        from fewgen.distillation.competitors import COMPETITORS, KIND_OF
        from fewgen.distillation.preparing import teacher_tasks
        from fewgen.distillation.protocol import check_competitors
        from fewgen.episodes import class_split

        super().__init__(asked, COMPARED_TRAINING)
        if self.out.suffix != ".json":
            raise OutputError(
                f'"{self.out}": the comparison is written as .json. Name such a file with --out.'
            )
        given = asked["competitors"]
        if given is None:
            given = tuple(COMPETITORS) if asked["compare"] else ("tint",)
        self.names = check_competitors([given] if isinstance(given, str) else given)
        if not self.names:
            raise ConfigError("--competitors needs at least one name.")
        self.workers = whole("workers", asked["workers"], 1)
        self.episodes = self._n_episodes()
        self.question = self._question()
        self.images = self.load(asked["data"], asked["size"], asked["channels"])
        self.classes = class_split(self.images, asked["class_split"] or "auto", self.seed)
        self.base, _, self.novel = self.classes.apply(self.images)
        self.question.sampler(self.novel)
        teacher_tasks(self.base, self.question.n_way, self.question.n_shot, self.prepare.teacher_query)
        self.needs_model = bool(set(self.names) & set(KIND_OF))
        self.source = self._model()
        self.teacher_given = self.given_teacher(shape_of(self.novel))
        if self.teacher_given is not None:
            self.notes.append("The teacher was given: whether it has seen novel classes is not known.")
        self.cells = self.out.with_suffix(CELLS_SUFFIX)
        self.settings = self._settings()
        self._check_out()

    def _n_episodes(self) -> int | None:
        wanted, half = self.asked["episodes"], self.asked["half_width"]
        if wanted == "auto":
            if half is None or not 0 < half < 1:
                raise ConfigError(f"--episodes auto needs --half-width, a share such as 0.02; got {half}.")
            return None
        if half is not None:
            raise ConfigError("--half-width needs --episodes auto.")
        if isinstance(wanted, str):
            raise ConfigError(f'--episodes must be a whole number or auto, got "{wanted}".')
        return whole("episodes", wanted, 1)

    def _question(self) -> Question:
        from fewgen.distillation.protocol import Question

        asked = self.asked
        if isinstance(asked["queries"], str) and asked["queries"] != "all":
            raise ConfigError(f'--queries must be a whole number or all, got "{asked["queries"]}".')
        return Question(
            n_way=whole("n_way", asked["n_way"], 2),
            n_shot=whole("n_shot", asked["n_shot"], 1),
            n_query=None if asked["queries"] == "all" else whole("queries", asked["queries"], 1),
            per_class=self.per_class,
            alpha=float(asked["alpha"]),
            seed=self.seed,
            tint=self.tint,
            training=self.training,
        )

    def _model(self) -> TextToImage | None:
        """Return the model that was named, after checking that it fits and knows no novel class."""
        from fewgen.data.imageset import name_key
        from fewgen.diffusion.stable import StableDiffusion
        from fewgen.runs.run import Run

        given = self.asked["generator"]
        if given is None or not self.needs_model:
            return None
        pipe, run = either(opened_generator(given, self.device, not self.asked["planning"]))
        if pipe is None:
            assert run is not None
            raise ConfigError(
                f'The comparison specialises a model in each episode, and "{run.path}" is a run of '
                f"{run.info.method}. Name a run of diffusion, or a Stable Diffusion folder."
            )
        check_pipeline(pipe, self.novel)
        if isinstance(pipe, StableDiffusion):
            self.notes.append("Stable Diffusion has seen the web: novel classes are not new to it.")
        elif isinstance(given, (str, Path, Run)):
            own = (given if isinstance(given, Run) else Run(Path(given).expanduser())).class_names
            novel = {name_key(name) for name in self.classes.novel}
            known = [name for name in own if name_key(name) in novel]
            if known:
                raise ConfigError(
                    f"The generator has learned from novel classes: {', '.join(known[:5])}. Train it with "
                    f"--class-split {self.asked['class_split'] or 'auto'} and the same --seed, so that it "
                    "sees base classes alone."
                )
        return pipe

    def _settings(self) -> dict[str, Any]:
        from fewgen.distillation.preparing import teacher_id

        question, asked = self.question, self.asked
        trained = {"minutes": asked["generator_minutes"], "preset": asked["generator_preset"]}
        given = self.teacher_given
        return {
            **self.described,
            "prepare": self.prepared_settings(self.base),
            "n_way": question.n_way,
            "n_shot": question.n_shot,
            "n_query": question.n_query,
            "base": fingerprint(self.base),
            "novel": fingerprint(self.novel),
            "generator": trained if self.source is None else self.source.model_id[:16],
            "teacher": "trained on base classes" if given is None else teacher_id(given),
        }

    def _check_out(self) -> None:
        """Refuse a file that is no comparison, and cells of another question."""
        from fewgen.distillation.product import FORMAT
        from fewgen.distillation.storing import check_parts
        from fewgen.files import read_json

        if self.out.is_dir():
            raise OutputError(f'"{self.out}" is a folder, but a file is needed. Choose another --out.')
        if self.out.exists():
            record = read_json(self.out, OutputError)
            if not isinstance(record, dict) or record.get("format") != FORMAT:
                raise OutputError(f'"{self.out}" is not a comparison of ours. Choose another --out.')
        check_parts(self.cells, self.settings)

    def plan(self) -> str:
        """Return what would be done, and what is there already."""
        from fewgen.distillation.protocol import PILOT, missing

        wanted = PILOT if self.episodes is None else self.episodes
        left = sum(len(missing(self.cells, i, self.names)) for i in range(wanted))
        how_many = f"{wanted}" if self.episodes is not None else f"{wanted}, then as many as planned"

        def state(name: str) -> str:
            return "there" if (self.cells / name).exists() else "to be trained on base classes"

        generator = "not needed" if not self.needs_model else state("diffusion")
        question, training = self.question, self.training
        lines = [
            f"classes     {len(self.classes.base)} base, {len(self.classes.val)} validation (not used), "
            f"{len(self.classes.novel)} novel",
            f"episodes    {how_many}; {question.n_way}-way, {question.n_shot}-shot, "
            f"{question.n_query or 'all other'} queries of each class",
            f"competitors {', '.join(self.names)}",
            f"students    {self.prepare.student}, {training.steps} steps of {training.batch_size} images",
            f"teacher     {'given' if self.teacher_given is not None else state('teacher.safetensors')}",
            f"generator   {'given' if self.source is not None else generator}",
            f"cells       {left} of {wanted * len(self.names)} to compute, {self.workers} episodes at a time",
        ]
        lines.append(f"time        {self._time(wanted)}")
        return "\n".join([*lines, *(f"note        {note}" for note in self.notes)])

    def _time(self, wanted: int) -> str:
        """Return what the missing cells of so many episodes will take, by a few steps of each part."""
        from fewgen.diffusion.stable import StableDiffusion
        from fewgen.distillation.competitors import KIND_OF
        from fewgen.distillation.estimate import making_seconds, one_thread, shown_seconds
        from fewgen.distillation.protocol import episode_folder, missing
        from fewgen.distillation.synthesis import by_class

        left = [missing(self.cells, i, self.names) for i in range(wanted)]
        supports = self.question.sampler(self.novel).episode(0, self.novel).support
        before, above = 0.0, ""
        parts = {}
        if not (self.cells / "student.safetensors").exists():
            teacher = self.teacher_given is None and not (self.cells / "teacher.safetensors").exists()
            before = self.preparing_seconds(self.base, teacher, self.question.n_way)
            parts["teacher and student before"] = before
        # Competitors that share a kind of image share its file; kinds of a task share what is learned.
        kinds = [
            sum(
                not (episode_folder(self.cells, i) / f"{kind}.npz").exists()
                for kind in {KIND_OF[name] for name in names if name in KIND_OF}
            )
            for i, names in enumerate(left)
        ]
        with one_thread(self.workers > 1):
            if any(kinds) and isinstance(self.source, StableDiffusion):
                above = "; specialising Stable Diffusion comes on top"
            elif any(kinds) and self.source is not None:
                seconds = making_seconds(self.source, by_class(supports), self.tint)
                learned = sum(n > 0 for n in kinds) * (seconds.words + seconds.null_texts)
                parts["words and null texts at most"] = learned
                parts["images"] = sum(kinds) * seconds.image * self.per_class * self.question.n_way
            elif any(kinds):
                above = "; the generator, and what is made with it, come on top"
            students = sum(name != "teacher" for names in left for name in names)
            if students:
                parts["students"] = students * self.distilling_seconds(supports)
        shown = ", ".join(f"{name} {shown_seconds(value)}" for name, value in parts.items())
        together = f" with {self.workers} at a time" if self.workers > 1 else ""
        total = before + (sum(parts.values()) - before) / min(self.workers, max(wanted, 1))
        return f"about {shown_seconds(total)}{together} on this machine ({shown or 'all is there'}){above}"

    def run(self) -> Distilled:
        """Compute what is missing and write the record."""
        from fewgen.distillation.protocol import missing, run_protocol
        from fewgen.distillation.storing import open_parts

        open_parts(self.cells, self.settings)
        prepared = self._prepared()
        there = not any(missing(self.cells, i, self.names) for i in range(self.episodes or 0))
        episodes = run_protocol(
            self.question,
            prepared,
            self.cells,
            self.names,
            self.episodes,
            half_width=self.asked["half_width"],
            workers=self.workers,
            device=self.device,
            picture=self.cells / "images.png" if self.asked["save_images"] else None,
            progress=self.asked["progress"],
            after=self._write,
        )
        record = self._write(episodes)
        return Distilled(self.out, record, list(record["notes"]), there and self.episodes is not None)

    def _prepared(self) -> Any:
        """Train what is missing of teacher, student and generator, all on base classes."""
        import torch

        from fewgen.distillation.preparing import pretrained_student, trained_teacher
        from fewgen.distillation.protocol import Prepared, some_base
        from fewgen.progress import ShownProgress
        from fewgen.runs.pipeline import load_pipeline

        generator = self._generator()
        shown = ShownProgress(self.asked["progress"])
        common: dict[str, Any] = {"seed": self.seed, "device": torch.device(self.device), "progress": shown}
        teacher, student = self.cells / "teacher.safetensors", self.cells / "student.safetensors"
        try:
            if self.teacher_given is None:
                n_way, n_shot = self.question.n_way, self.question.n_shot
                prepare = self.prepare, self.training
                trained_teacher(teacher, self.base, *prepare, n_way=n_way, n_shot=n_shot, **common)
            pretrained_student(student, self.base, self.prepare, self.training, **common)
        finally:
            shown.close()
        named = str(teacher) if self.teacher_given is None else str(self.asked["teacher"])
        base = some_base(self.base, self.base_images, self.seed)
        return Prepared(base, self.novel, named, str(student), generator, load_pipeline)

    def _generator(self) -> TextToImage | str | None:
        """Return the model, or where it lies for processes of their own; trained first if none was named."""
        if not self.needs_model:
            return None
        given = self.asked["generator"]
        if given is None:
            return self._trained_generator()
        if self.workers > 1 and isinstance(given, (str, os.PathLike)):
            return str(Path(given).expanduser())
        return self.source

    def _trained_generator(self) -> str:
        from fewgen.api.training import train

        asked = self.asked
        folder = self.cells / "diffusion"
        self.say(f"A diffusion model of the base classes, which later commands can name: {folder}")
        run = train(
            "diffusion",
            data=asked["data"],
            out=folder,
            class_split=asked["class_split"] or "auto",
            seed=self.seed,
            preset=asked["generator_preset"],
            minutes=asked["generator_minutes"],
            split=asked["split"],
            size=asked["size"],
            channels=asked["channels"],
            fit=asked["fit"],
            background=asked["background"],
            convert=asked["convert"],
            data_dir=asked["data_dir"],
            download=asked["download"],
            report=False,
            progress=asked["progress"],
        )
        if run.result is not None and run.result.interrupted:
            raise KeyboardInterrupt
        return str(folder)

    def _write(self, episodes: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the record of the episodes so far."""
        from fewgen.distillation.competitors import about_competitors
        from fewgen.distillation.product import FORMAT, FORMAT_VERSION
        from fewgen.distillation.protocol import summary
        from fewgen.files import write_json
        from fewgen.runs.environment import environment
        from fewgen.version import __version__

        about = about_competitors()
        notes = list(self.notes)
        if len(episodes) < 2:
            notes.append("A single episode has no interval. Ask for more --episodes.")
        record = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": "comparison",
            "fewgen": __version__,
            "data": self.images.name or str(self.asked["data"]),
            "settings": self.settings,
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
