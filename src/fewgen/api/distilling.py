"""`distill`: a tiny classifier from a few images per class, and the comparison that says what helps."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.api.prepare import check_apart, fingerprint
from fewgen.config.call import accepts_config, call_settings, unwrapped
from fewgen.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from fewgen.api.run import Run
    from fewgen.data import ImageSet
    from fewgen.diffusion.pipeline import TextToImage
    from fewgen.distill.knowledge import DistillConfig
    from fewgen.distill.protocol import Question
    from fewgen.distill.settings import SpecialiseConfig
    from fewgen.distill.teacher import ProtoNet

CELLS_SUFFIX = ".cells"

ONE_TRAINING = {"steps": 1000, "batch_size": 150}
"""Training of one student. The published 10,000 steps take an hour on a processor."""

COMPARED_TRAINING = {"steps": 500, "batch_size": 90}
"""Training of each student of a comparison."""


@dataclasses.dataclass
class Distilled:
    """What `distill` made.

    Attributes:
        path: the folder of the student, or the JSON file of the comparison.
        record: what lies in distill.json.
        notes: what a reader of the result should know.
        was_finished: whether everything was there already.
    """

    path: Path
    record: dict[str, Any]
    notes: list[str]
    was_finished: bool = False


@accepts_config
def distill(
    *,
    out: str | Path,
    novel: str | Path | ImageSet | None = None,
    data: str | Path | ImageSet | None = None,
    generator: str | Path | Run | TextToImage | None = None,
    student: str = "conv4",
    shots: int | None = None,
    class_split: str | None = None,
    n_way: int = 5,
    n_shot: int = 5,
    queries: int | str = "all",
    episodes: int | str = 10,
    half_width: float | None = None,
    compare: bool = False,
    competitors: str | Sequence[str] | None = None,
    per_class: int = 200,
    alpha: float = 1.0,
    teacher: str | Path | None = None,
    teacher_channels: int = 64,
    teacher_episodes: int = 1500,
    student_channels: int = 64,
    pretrain_steps: int = 1000,
    base_images: int = 6000,
    training: Mapping[str, Any] | None = None,
    tint: Mapping[str, Any] | None = None,
    generator_minutes: float | None = None,
    generator_preset: str = "default",
    save_images: bool = False,
    workers: int = 1,
    seed: int = 0,
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    background: str = "error",
    convert: bool = False,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    progress: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Distilled:
    """Make a tiny classifier from a few images per class, or measure how much generated images help it.

    With --novel: a student for your classes. A generator makes images of them, a teacher that was trained on
    base images (--data) labels these softly, and the student learns from both and from your images. The
    folder gets student.safetensors, student.onnx, classes.txt, synthetic.png and distill.json.

    Without --novel: the comparison over few-shot episodes of the novel classes of --data, written as JSON,
    with mean accuracy, 95 % Student interval and paired differences. Teacher, student and generator learn
    from the base classes alone, and all competitors share supports, seeds, first weights and steps.

    The same command resumes what was interrupted.

    Args:
        out: a new folder for the student; or a .json file for the comparison, beside which its cells lie in
            a folder of the same name that ends in .cells.
        novel: your images: a folder with one subfolder per class.
        data: base images to prepare teacher and student on; in the comparison, the data set.
        generator: a run of tint, or of any method that was trained on your classes; or a text-to-image
            model, which is specialised to your images: a run of diffusion, or a Stable Diffusion folder. The
            comparison trains a diffusion model on its base classes if none is given.
        student: conv4 or resnet12.
        shots: images of each class to learn from, drawn by the seed, if there are more; the others measure
            the accuracy. All if left out.
        class_split: which classes of --data are base classes: all, auto (the data set's own split),
            alphabet, counts such as 6/1/3, or a JSON file. auto in the comparison, else all.
        n_way: classes of an episode.
        n_shot: supports of each class.
        queries: images of each class that judge, or all that are left.
        episodes: how many; auto plans them from the first ones for --half-width.
        half_width: wanted half width of the interval of the first competitor's accuracy, a share.
        compare: all competitors: tint, none (no synthetic images), augmentation (supports alone, random
            weights), augmentation_pretrained, textual_inversion, da_fusion, hard_labels and teacher;
            otherwise tint alone.
        competitors: only these.
        per_class: synthetic images of each class.
        alpha: of TINT images: 0 gives the supports back, 1 only shares their class.
        teacher: a teacher.safetensors of an earlier command, or dino:FOLDER; trained on base classes if left
            out.
        teacher_channels: width of the teacher that is trained.
        teacher_episodes: tasks that it is trained on.
        student_channels: width of the student; 8 to 16 make a very small one.
        pretrain_steps: training of the student on base classes, before the task.
        base_images: base images that are shown with soft labels, evenly over the classes; 0 for all.
        training: of students, such as --training.steps 10000 or --training.flip false (for characters); if
            left out 1000 steps of 150 images, and 500 of 90 in the comparison.
        tint: how a text-to-image model is specialised, such as --tint.textual_steps 1000 or --tint.scale 7.5.
        generator_minutes: limit on the training of the diffusion model.
        generator_preset: of the diffusion model.
        save_images: a contact sheet of the first episode: supports and synthetic images.
        workers: episodes at the same time, each in a process with one thread.
        seed: of every draw.
        split: train or test, the part of a data set.
        size: side of the square images in pixels; the images' own, or the generator's, if left out.
        channels: 1 for grey, 3 for colour; the images' own, or the generator's, if left out.
        fit: how other shapes become square: crop, pad or stretch.
        background: transparent images: error, or put them on white or black.
        convert: accept 16-bit and CMYK images and convert them.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: auto (CUDA where there is one), cpu or cuda.
        progress: say on standard error what is being done.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        What was made or measured, with its notes.
    """
    asked = dict(locals())
    del asked["config"]
    work = _work(asked)
    return work.run()


def plan_distillation(**keywords: Any) -> str:
    """Return what `distill` would do with the same keywords, after all checks; writes nothing."""
    return _work(call_settings(unwrapped(distill), keywords)).plan()


def _work(asked: Mapping[str, Any]) -> _Student | _Comparison:
    from fewgen.training.processes import pick_device

    asked = {**asked, "device": str(pick_device(str(asked["device"])))}
    if asked["novel"] is not None:
        _refuse(asked, ("compare", "competitors", "save_images", "half_width"), "--novel makes one student")
        return _Student(asked)
    if asked["data"] is None:
        raise ConfigError(
            "fewgen distill needs --novel DIR, your images, or --data D, to compare on its novel classes."
        )
    _refuse(asked, ("shots",), "a comparison takes --n-shot images of each class")
    return _Comparison(asked)


def _refuse(asked: Mapping[str, Any], names: Sequence[str], why: str) -> None:
    for name in names:
        if asked[name]:
            raise ConfigError(f"--{name.replace('_', '-')} has no use here: {why}.")


# ------------------------------------------------------------------------------------------ what both need


class _Work:
    """Settings of either use, checked; images are read in the constructors of both."""

    def __init__(self, asked: Mapping[str, Any], training: Mapping[str, Any]) -> None:
        from fewgen.config import to_dict
        from fewgen.config.schema import from_dict
        from fewgen.distill.knowledge import DistillConfig
        from fewgen.distill.settings import PrepareConfig, SpecialiseConfig
        from fewgen.distill.students import make_student

        self.asked = asked
        self.seed = _whole("seed", asked["seed"], 0)
        self.per_class = _whole("per_class", asked["per_class"], 1)
        self.base_images = _whole("base_images", asked["base_images"], 0)
        self.training: DistillConfig = from_dict(DistillConfig, {**training, **(asked["training"] or {})})
        self.tint: SpecialiseConfig = from_dict(SpecialiseConfig, dict(asked["tint"] or {}))
        self.prepare = PrepareConfig(
            student=asked["student"],
            student_channels=asked["student_channels"],
            pretrain_steps=asked["pretrain_steps"],
            teacher_channels=asked["teacher_channels"],
            teacher_episodes=asked["teacher_episodes"],
        )
        if not 0 <= asked["alpha"] <= 1:
            raise ConfigError(f"alpha must be in [0, 1], got {asked['alpha']:g}.")
        make_student(self.prepare.student, (3, 32, 32), 0, channels=1)  # an unknown name before long work
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
            "prepare": to_dict(self.prepare),
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
            alpha=asked["background"],
            convert=asked["convert"],
            data_dir=asked["data_dir"],
            download=asked["download"],
        )

    def given_teacher(self, shape: tuple[int, int, int]) -> ProtoNet | None:
        """Return the teacher that was named."""
        from fewgen.distill.preparing import load_teacher

        name = self.asked["teacher"]
        return None if name is None else load_teacher(name, shape)

    def say(self, text: str) -> None:
        """Print a line on standard error, if progress is wanted."""
        if self.asked["progress"]:
            print(text, file=sys.stderr, flush=True)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"--{name.replace('_', '-')} must be a whole number of {least} or more, got {value!r}."
        )
    return value


def _shape(images: ImageSet) -> tuple[int, int, int]:
    return images.channels, *images.size


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def opened_generator(generator: Any, device: str) -> TextToImage | Run:
    """Return a text-to-image model, or a run that generates by class.

    Args:
        generator: either of them, or where it lies.
        device: for a text-to-image model.

    Raises:
        ConfigError, CheckpointError: it is missing, damaged, or of another kind.
    """
    from fewgen.api.pipeline import load_pipeline
    from fewgen.api.run import Run, load_run
    from fewgen.diffusion.pipeline import TextToImage

    if isinstance(generator, TextToImage):
        return generator
    if not isinstance(generator, Run):
        folder = Path(generator).expanduser()
        if (folder / "model_index.json").is_file():
            return load_pipeline(folder, device)
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
            f"The generator makes images of {_shown(pipe.image_shape)}, but these are of "
            f"{_shown(_shape(images))} (channels x height x width). Choose another generator, or set --size "
            f"{height} --channels {channels}."
        )


# ------------------------------------------------------------------------------------------ one student


class _Student(_Work):
    """A student for the user's classes."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        from fewgen.distill.product import supports_and_rest, unseen
        from fewgen.distill.storing import check_parts

        super().__init__(asked, ONE_TRAINING)
        if asked["generator"] is None:
            raise ConfigError(
                "fewgen distill --novel needs --generator: a run of tint for these classes, a run of "
                "diffusion, or a Stable Diffusion folder."
            )
        if self.out.suffix == ".json":
            raise OutputError(f'"{self.out}": a student needs a folder. Choose another --out.')
        if asked["shots"] is not None:
            _whole("shots", asked["shots"], 1)
        self.source = opened_generator(asked["generator"], self.device)
        self.pipe, self.generating_run = _either(self.source)
        shape = _native_shape(self.pipe, self.generating_run)
        size = asked["size"] if asked["size"] is not None or shape is None else shape[1]
        channels = asked["channels"] if asked["channels"] is not None or shape is None else shape[0]
        images = self.load(asked["novel"], size, channels)
        self.supports, rest = supports_and_rest(images, asked["shots"], self.seed)
        if self.pipe is not None:
            check_pipeline(self.pipe, self.supports)
        if self.generating_run is not None:
            self.labels = self._match(self.generating_run)
            rest = self._not_learned(self.generating_run, rest)
        self.held_out = rest
        if rest is None and asked["shots"] is None:
            self.notes.append(
                "Every image is learned from, so none is left to measure the accuracy on. --shots 5 learns "
                "from 5 of each class and measures on the others."
            )
        self.base = self._base()
        shown = _shape(self.supports)
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
        if own != _shape(self.supports):
            raise ConfigError(
                f'The run "{run.path.name}" makes images of {_shown(own)}, but these are of '
                f"{_shown(_shape(self.supports))} (channels x height x width). Set --size {own[1]} "
                f"--channels {own[0]}."
            )
        return [known[name_key(name)] for name in self.supports.class_names]

    def _not_learned(self, run: Run, rest: ImageSet | None) -> ImageSet | None:
        """Leave out of the images that measure those that the generator has learned from."""
        from fewgen.distill.product import unseen

        if rest is None:
            return None
        try:
            learned = run.images(self.asked["data_dir"])[0]
        except DataError as error:
            self.notes.append(
                f"Whether the generator learned from images that measure the accuracy is not known. {error}"
            )
            return rest
        left = unseen(rest, learned) if _shape(learned) == _shape(rest) else rest
        if len(left) < len(rest):
            self.notes.append(
                f"The generator learned from {len(rest) - len(left)} of {len(rest)} images that were not "
                "drawn; they are left out of the measurement."
            )
        return left if len(left) else None

    def _base(self) -> ImageSet | None:
        """Return base images, without classes of the user's names."""
        from fewgen.data.imageset import name_key
        from fewgen.distill.preparing import teacher_tasks
        from fewgen.episodes import class_split

        if self.asked["data"] is None:
            return None
        height, width = self.supports.size
        base = self.load(self.asked["data"], height if height == width else None, self.supports.channels)
        if _shape(base) != _shape(self.supports):
            raise DataError(
                f"The base images are of {_shown(_shape(base))}, yours of {_shown(_shape(self.supports))} "
                "(channels x height x width). Set --size and --channels."
            )
        names = class_split(base, self.asked["class_split"] or "all", self.seed).base
        own = {name_key(name) for name in self.supports.class_names}
        shared = [name for name in names if name_key(name) in own]
        if shared:
            self.notes.append(f"{', '.join(shared)} of the base images are your classes and were left out.")
        base = base.select_classes([name for name in names if name_key(name) not in own])
        teacher_tasks(base, 2, 1, 1)
        return base

    def _settings(self) -> dict[str, Any]:
        from fewgen.distill.preparing import teacher_id

        given = self.teacher_given
        return {
            **self.described,
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
        base = "none" if self.base is None else f"{len(self.base)} of {self.base.n_classes} classes"
        lines = [
            f"classes     {', '.join(self.supports.class_names[:12])}",
            f"images      {min(counts)} to {max(counts)} of each class to learn from, {held_out} to measure "
            "on",
            f"synthetic   {self.per_class} of each class, by "
            + ("its own words" if self.pipe is None else "a text-to-image model that is specialised first"),
            f"base        {base}",
            f"student     {self.prepare.student}, {training.steps} steps of {training.batch_size} images",
        ]
        return "\n".join([*lines, *(f"note        {note}" for note in self.notes)])

    def run(self) -> Distilled:
        """Make the student, or return the finished one."""
        from fewgen.api.evaluating import ShownProgress
        from fewgen.api.using import _tidy
        from fewgen.distill.product import PARTS_NAME, finished, write_product
        from fewgen.distill.storing import open_parts

        there = finished(self.out)
        if there is not None:
            return Distilled(self.out, there, list(there["notes"]), was_finished=True)
        shown = ShownProgress(self.asked["progress"])

        @_tidy
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

        from fewgen.distill.preparing import pretrained_student, trained_teacher
        from fewgen.distill.product import Ingredients
        from fewgen.distill.protocol import some_base
        from fewgen.distill.students import Student, make_student
        from fewgen.training.seeds import derive_seed

        device = torch.device(self.device)
        common: dict[str, Any] = {"seed": self.seed, "device": device, "progress": shown}
        teacher, base = self.teacher_given, self.base
        if base is not None and teacher is None:
            fewest = int(self.supports.counts().min())
            teacher = trained_teacher(
                parts / "teacher.safetensors",
                base,
                self.prepare,
                n_way=self.supports.n_classes,
                n_shot=fewest,
                **common,
            )
        head = derive_seed(self.seed, "student head")
        if base is not None:
            start = pretrained_student(
                parts / "start.safetensors", base, self.prepare, self.training, **common
            )
        else:
            shape, width = _shape(self.supports), self.prepare.student_channels
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
        from fewgen.distill.storing import kept_images
        from fewgen.distill.synthesis import Synthesis

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
        from fewgen.generate.request import GenerationRequest, image_seeds

        shown("generating images", 0.0)
        assert self.generating_run is not None
        labels = torch.tensor(self.labels).repeat_interleave(self.per_class)
        options = {"alpha": float(self.asked["alpha"])} if self.generating_run.info.method == "tint" else {}
        request = GenerationRequest(labels=labels, seeds=image_seeds(self.seed, len(labels)), options=options)
        made = self.generating_run.method.generate(request)
        own = torch.arange(len(self.labels)).repeat_interleave(self.per_class)
        return ImageSet(made.images, own, self.supports.class_names, name="generated"), {}


def _either(source: TextToImage | Run) -> tuple[TextToImage | None, Run | None]:
    from fewgen.api.run import Run

    return (None, source) if isinstance(source, Run) else (source, None)


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

    pipe, run = _either(source)
    if pipe is not None:
        return pipe.model_id[:16]
    assert run is not None
    return hashlib.sha256(run.model_path.read_bytes()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------ the comparison


class _Comparison(_Work):
    """Competitors over episodes."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        from fewgen.distill.competitors import COMPETITORS
        from fewgen.distill.preparing import teacher_tasks
        from fewgen.distill.protocol import SPECIALISED, check_competitors
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
        self.workers = _whole("workers", asked["workers"], 1)
        self.episodes = self._n_episodes()
        self.question = self._question()
        self.images = self.load(asked["data"], asked["size"], asked["channels"])
        self.classes = class_split(self.images, asked["class_split"] or "auto", self.seed)
        self.base, _, self.novel = self.classes.apply(self.images)
        self.question.sampler(self.novel)
        teacher_tasks(self.base, self.question.n_way, self.question.n_shot, self.prepare.teacher_query)
        self.needs_model = bool(set(self.names) & set(SPECIALISED))
        self.source = self._model()
        self.teacher_given = self.given_teacher(_shape(self.novel))
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
        return _whole("episodes", wanted, 1)

    def _question(self) -> Question:
        from fewgen.distill.protocol import Question

        asked = self.asked
        if isinstance(asked["queries"], str) and asked["queries"] != "all":
            raise ConfigError(f'--queries must be a whole number or all, got "{asked["queries"]}".')
        return Question(
            n_way=_whole("n_way", asked["n_way"], 2),
            n_shot=_whole("n_shot", asked["n_shot"], 1),
            n_query=None if asked["queries"] == "all" else _whole("queries", asked["queries"], 1),
            per_class=self.per_class,
            alpha=float(asked["alpha"]),
            seed=self.seed,
            tint=self.tint,
            training=self.training,
        )

    def _model(self) -> TextToImage | None:
        """Return the model that was named, after checking that it fits and knows no novel class."""
        from fewgen.api.run import Run
        from fewgen.data.imageset import name_key

        given = self.asked["generator"]
        if given is None or not self.needs_model:
            return None
        pipe, run = _either(opened_generator(given, self.device))
        if pipe is None:
            assert run is not None
            raise ConfigError(
                f'The comparison specialises a model in each episode, and "{run.path}" is a run of '
                f"{run.info.method}. Name a run of diffusion, or a Stable Diffusion folder."
            )
        check_pipeline(pipe, self.novel)
        if isinstance(given, (str, Path)) and (Path(given) / "model_index.json").is_file():
            self.notes.append("Stable Diffusion has seen the web: novel classes are not new to it.")
        elif isinstance(given, (str, Path, Run)):
            own = (given if isinstance(given, Run) else Run(Path(given).expanduser())).class_names
            novel = {name_key(name) for name in self.classes.novel}
            known = [name for name in own if name_key(name) in novel]
            if known:
                raise ConfigError(
                    f"The generator has learned from novel classes: {', '.join(known[:5])}. Train it with "
                    "--class-split auto and the same --seed, so that it sees base classes alone."
                )
        return pipe

    def _settings(self) -> dict[str, Any]:
        from fewgen.distill.preparing import teacher_id

        question, asked = self.question, self.asked
        trained = {"minutes": asked["generator_minutes"], "preset": asked["generator_preset"]}
        given = self.teacher_given
        return {
            **self.described,
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
        from fewgen.distill.product import FORMAT
        from fewgen.distill.storing import check_parts
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
        from fewgen.distill.protocol import PILOT, missing

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
        return "\n".join([*lines, *(f"note        {note}" for note in self.notes)])

    def run(self) -> Distilled:
        """Compute what is missing and write the record."""
        from fewgen.distill.protocol import missing, run_protocol
        from fewgen.distill.storing import open_parts

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

        from fewgen.api.evaluating import ShownProgress
        from fewgen.distill.preparing import pretrained_student, trained_teacher
        from fewgen.distill.protocol import Prepared, some_base

        generator = self._generator()
        shown = ShownProgress(self.asked["progress"])
        common: dict[str, Any] = {"seed": self.seed, "device": torch.device(self.device), "progress": shown}
        teacher, student = self.cells / "teacher.safetensors", self.cells / "student.safetensors"
        try:
            if self.teacher_given is None:
                n_way, n_shot = self.question.n_way, self.question.n_shot
                trained_teacher(teacher, self.base, self.prepare, n_way=n_way, n_shot=n_shot, **common)
            pretrained_student(student, self.base, self.prepare, self.training, **common)
        finally:
            shown.close()
        named = str(teacher) if self.teacher_given is None else str(self.asked["teacher"])
        base = some_base(self.base, self.base_images, self.seed)
        return Prepared(base, self.novel, named, str(student), generator)

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
            alpha=asked["background"],
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
        from fewgen import __version__
        from fewgen.benchmark.environment import environment
        from fewgen.distill.competitors import about_competitors
        from fewgen.distill.product import FORMAT, FORMAT_VERSION
        from fewgen.distill.protocol import summary
        from fewgen.files import write_json

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
