"""A run that has learned new classes: how it comes about, in memory and as a folder.

Everything is made and measured in memory and then put in place as one folder, so that a mistake or an
interruption leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.progress import Progress
from fewgen.runs.adapting import MAX_NEW, Given, adapted, extended, recipe_of, refuse_blank, replayed
from fewgen.runs.new_images import notes_on
from fewgen.runs.run import CONFIG_NAME, MODEL_NAME, Run
from fewgen.runs.source import SPLIT_NAME, read_split

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.methods.base import Method
    from fewgen.runs.adaptation import Adaptation, Reader

ADDED_NAME = "new_images.npz"
GRID_NAME = "grid.png"

GRID_CLASSES, GRID_COLUMNS = 10, 8


@dataclasses.dataclass
class Adapted:
    """A run's model after it has learned new classes, and what is known of that.

    Attributes:
        original: the run that was adapted from.
        method: the model that draws old and new classes.
        used: images of the new classes that were learned from.
        rest: others of them.
        record: what was done, as the model file says it.
        notes: what a reader of the results should know.
        measured: what was won and lost, or None.
    """

    original: Run
    method: Method
    used: ImageSet
    rest: ImageSet
    record: dict[str, Any]
    notes: list[str]
    measured: Adaptation | None

    @property
    def extra(self) -> dict[str, Any]:
        """What the model file holds beside the model."""
        return {**self.original.info.extra, "adapted": self.record}

    @property
    def settings(self) -> dict[str, Any]:
        """What config.yaml says: the run's settings, and what was done to it."""
        info = self.original.info
        settings = dict(self.original.config)
        if not settings:  # a model file on its own
            text = info.text or {}
            settings = {
                "method": info.method,
                "data": None,
                "text": text.get("encoder_name"),
                "text_path": text.get("encoder_path"),
                "model": info.config,
            }
        done = {k: v for k, v in self.record.items() if k not in ("figures", "earlier")}
        return {**settings, "adapted": done}

    @property
    def citations(self) -> list[str]:
        """Names of what was used; see `citation_keys`."""
        from fewgen.runs.findings import citation_keys

        return citation_keys(self.method, self.settings)

    def in_memory(self) -> Run:
        """Return the adapted run, of which nothing is written."""
        from fewgen.config.schema import to_dict
        from fewgen.methods.store import ModelInfo

        original, spec = self.original, self.method.spec
        run = Run(original.path.with_name(f"{original.path.name} (adapted, in memory)"), original.device)
        run.__dict__["config"] = self.settings
        run.__dict__["info"] = ModelInfo(
            original.info.method,
            to_dict(self.method.config),
            {**original.info.spec, "class_names": list(spec.class_names)},
            self.extra,
            None if spec.text is None else spec.text.to_state()[1],
            original.info.shapes,
        )
        return self._with_model(run)

    def write(self, out: Path, pages: Mapping[str, str]) -> Run:
        """Write the folder of the adapted run beside its place, move it there, and return the run.

        Args:
            out: a new or empty folder.
            pages: name -> text of further files.
        """
        from fewgen.config import dump_yaml
        from fewgen.files import write_text
        from fewgen.folders import RUN, atomic_folder
        from fewgen.generation.writers import write_picture

        with atomic_folder(out) as folder:
            RUN.prepare(folder)
            self._write_images(folder)
            picture = _grid(self.method, self.used.n_classes)
            write_picture(folder / GRID_NAME, picture, {"run": out.name, "method": self.method.name})
            for name, text in pages.items():
                write_text(folder / name, text)
            write_text(folder / CONFIG_NAME, dump_yaml(self.settings))
            self.method.save(folder / MODEL_NAME, self.extra)
        return self._with_model(Run(out, self.original.device))

    def _with_model(self, run: Run) -> Run:
        run.__dict__["method"] = self.method
        run.notes = self.notes
        return run

    def _write_images(self, folder: Path) -> None:
        """Write the new images, and which of them were learned from, so that the run knows its images."""
        import torch

        from fewgen.data.npz import load_npz
        from fewgen.files import write_json
        from fewgen.generation.writers import write_npz

        used, rest, path = self.used, self.rest, self.original.path
        names = self.method.spec.class_names
        n_old = len(names) - used.n_classes
        parts, labels = [used.images, rest.images], [used.labels + n_old, rest.labels + n_old]
        train, held_out = list(range(len(used))), list(range(len(used), len(used) + len(rest)))
        split: dict[str, Any] = {}
        if path.is_dir() and (path / SPLIT_NAME).is_file():
            split = dict(read_split(path))
        if (path / ADDED_NAME).is_file() and "added" in split:
            earlier = load_npz(path / ADDED_NAME)
            row = torch.tensor([names.index(name) for name in earlier.class_names])
            parts, labels = [earlier.images, *parts], [row[earlier.labels], *labels]
            shift = len(earlier)
            train = [*split["added"]["train"], *(i + shift for i in train)]
            held_out = [*split["added"]["held_out"], *(i + shift for i in held_out)]
        write_npz(folder / ADDED_NAME, torch.cat(parts), torch.cat(labels), names)
        if split:
            added = {"file": ADDED_NAME, "train": train, "held_out": held_out}
            write_json(folder / SPLIT_NAME, {**split, "added": added})


def adapt_run(
    original: Run,
    used: ImageSet,
    rest: ImageSet,
    given: Given,
    *,
    phrases: Mapping[str, Any] | str | Path | None = None,
    text_path: str | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    report: bool = True,
    curve: bool = False,
    judge: bool = False,
    progress: Progress | None = None,
) -> Adapted:
    """Teach a copy of a run's model new classes, and measure what was won and lost.

    Args:
        original: the run, which stays as it is.
        used: images of the new classes to learn from.
        rest: others of them, to measure on; perhaps none.
        given: how, where it is not left to the run.
        phrases: other words for a new class.
        text_path: where the text encoder is now.
        data_dir: folder of the named data sets.
        download: whether a missing data set may be fetched.
        report: whether to measure.
        curve: also with fewer images.
        judge: by a classifier that is trained for it.
        progress: told the name of the part and the share that is done.
    """
    recipe = recipe_of(original, given)
    original.method.adaptable(recipe.part)  # an unknown part is better known before words are encoded
    start, notes = extended(original, used.class_names, phrases, text_path, data_dir)
    notes += notes_on(original, used)
    began = time.perf_counter()
    old = replayed(original.method, recipe.seed)
    method = adapted(start, used, old, recipe, progress)
    seconds = time.perf_counter() - began
    refuse_blank(start, method, used, recipe.optimizer.lr)
    record = {
        "from": original.path.name,
        "classes": list(used.class_names),
        "n_images": used.counts().tolist(),
        "steps": recipe.steps,
        "lr": recipe.optimizer.lr,
        "part": recipe.part,
        "replay": recipe.n_replay(min(len(used), MAX_NEW)),
        "seed": recipe.seed,
        "seconds": round(seconds, 3),
        "earlier": _earlier(original.info.extra),
    }
    measured: Adaptation | None = None
    if report:
        from fewgen.runs.adaptation import measure

        def again(some: ImageSet) -> Method:
            return adapted(start, some, old, recipe, None)

        measured = measure(
            original,
            start,
            method,
            used,
            rest,
            seconds=seconds,
            again=again if curve else None,
            judge=_judge(original, used, rest, data_dir, download) if judge else None,
            progress=progress,
        )
        record["figures"] = measured.figures()
        notes += measured.warnings()
    return Adapted(original, method, used, rest, record, notes, measured)


def take_in(original: Run, used: ImageSet, rest: ImageSet) -> Adapted:
    """Let a copy of a run's model draw new classes, of which it needs pictures and no training.

    Args:
        original: the run, which stays as it is; its method can "encode_classes".
        used: pictures of the new classes.
        rest: others of them, which are kept with the run as held-out images.
    """
    from fewgen.methods.abilities import EncodesClasses, able

    notes = notes_on(original, used)
    began = time.perf_counter()
    method = able(original.method, EncodesClasses).with_classes(used)
    record = {
        "from": original.path.name,
        "classes": list(used.class_names),
        "n_images": used.counts().tolist(),
        "seconds": round(time.perf_counter() - began, 3),
        "earlier": _earlier(original.info.extra),
    }
    return Adapted(original, method, used, rest, record, notes, None)


def _judge(run: Run, used: ImageSet, rest: ImageSet, data_dir: str | Path | None, download: bool) -> Reader:
    """Return a classifier that the model has nothing to do with.

    It learns the old classes from the run's training images, and the new ones from all given images.
    """
    from fewgen.encoders.classifier import ClassifierFeatures
    from fewgen.runs.adaptation import read_by_classifier

    train, _ = run.images(data_dir, download)
    return read_by_classifier(ClassifierFeatures.of(judged_by(train, used, rest)))


def judged_by(train: ImageSet, used: ImageSet, rest: ImageSet) -> ImageSet:
    """Return what the judge learns from: images of the old classes, then all given ones of the new.

    A few images among thousands would never be the answer, so those of a new class are repeated until they
    are as many as an old class has on average.
    """
    import torch

    from fewgen.data import ImageSet

    wanted = len(train) // train.n_classes
    images, labels = [train.images], [train.labels]
    for label in range(used.n_classes):
        given = torch.cat([part.images[part.labels == label] for part in (used, rest)])
        rows = torch.arange(max(wanted, len(given))) % len(given)
        images.append(given[rows])
        labels.append(torch.full((len(rows),), train.n_classes + label))
    names = (*train.class_names, *used.class_names)
    return ImageSet(torch.cat(images), torch.cat(labels), names)


def _earlier(extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the adaptations that a run has behind it, oldest first."""
    last = extra.get("adapted")
    if not last:
        return []
    return [*last.get("earlier", []), {key: value for key, value in last.items() if key != "earlier"}]


def _grid(method: Method, n_new: int) -> Any:
    """Return a row of new images for each of the first old classes and for each new one."""
    from fewgen.generation import GenerationRequest
    from fewgen.generation.pictures import class_grid

    n = method.spec.n_classes
    labels = [*range(min(GRID_CLASSES, n - n_new)), *range(n - n_new, n)]
    drawn = method.generate(GenerationRequest.per_class(labels, GRID_COLUMNS, seed=0))
    return class_grid(drawn.images, drawn.labels, method.spec.class_names, GRID_COLUMNS)
