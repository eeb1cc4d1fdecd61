"""One tiny classifier from a few images per class: synthetic images, soft labels, a student, its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch

from fewgen.config.checks import Share, Weight, Whole
from fewgen.config.records import read_record
from fewgen.data.identity import without
from fewgen.data.imageset import ImageSet
from fewgen.distillation.encoder_teacher import EncoderTeacher
from fewgen.distillation.knowledge import DistillConfig, accuracy, distill, predict_logits
from fewgen.distillation.storing import load_student, save_student
from fewgen.distillation.students import Student
from fewgen.distillation.teacher import Teacher
from fewgen.errors import DataError, FewgenError, MissingDependencyError
from fewgen.evaluation.statistics import wilson_interval
from fewgen.files import atomic_write, file_sha256, write_json, write_text
from fewgen.fitting.seeds import derive_seed
from fewgen.progress import Progress

STUDENT_NAME, ONNX_NAME, CLASSES_NAME = "student.safetensors", "student.onnx", "classes.txt"
RECORD_NAME, PICTURE_NAME, PARTS_NAME = "distill.json", "synthetic.png", "parts"
FORMAT = "fewgen-distill"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Ingredients:
    """What a student is made from.

    Attributes:
        supports: images to learn from.
        held_out: other images of the same classes, to measure on; None if there are none.
        synthetic: gives the synthetic images of the same classes; None without a generator.
        mixtures: of the supports; None if there are none.
        pool: unlabelled images; None if there are none.
        base: images of base classes; None if there are none.
        teacher: None: synthetic images keep their class as label.
        start: gives the student before its training, with a head for the classes.
        config: of the training.
        notes: what a reader of the result should know.
    """

    supports: ImageSet
    held_out: ImageSet | None
    synthetic: Callable[[], ImageSet] | None
    mixtures: ImageSet | None
    pool: ImageSet | None
    base: ImageSet | None
    teacher: Teacher | None
    start: Callable[[], Student]
    config: DistillConfig
    seed: int
    notes: list[str] = field(default_factory=list)


_AGAIN = "Delete it, and the same command makes it again."


class _Said(TypedDict, total=False):
    teacher: dict[str, Share]


class _Training(_Said):
    seconds: Weight


class _Images(TypedDict):
    support: Whole
    synthetic: Whole


class _Onnx(TypedDict):
    file: str
    bytes: Whole


class _Student(TypedDict):
    parameters: Whole
    file: str
    onnx: _Onnx | None


class _Accuracy(TypedDict):
    student: Share
    low: Share
    high: Share
    n: Whole


class _Needed(TypedDict):
    kind: Literal["student"]
    classes: list[str]
    images: _Images
    student: _Student
    accuracy: _Accuracy | None
    notes: list[str]


class _Record(_Needed, total=False):
    """What is shown of a finished student."""

    training: _Said
    files: dict[str, str] | None


def finished(out: Path) -> dict[str, Any] | None:
    """Return the record of a folder whose student is finished and whose files are those that were written."""
    try:
        shape: Any = _Record
        record: dict[str, Any] = read_record(out / RECORD_NAME, shape)
        onnx, written = record["student"]["onnx"], record.get("files")
        if written is None:  # of 0.1.0, which kept no digests
            load_student(out / STUDENT_NAME)
            there = (out / CLASSES_NAME).is_file() and (out / PICTURE_NAME).is_file()
            whole = there and (onnx is None or (out / ONNX_NAME).stat().st_size == onnx["bytes"])
        else:
            whole = written == _digests(out, record)
    except (FewgenError, OSError):
        return None
    return record if whole else None


def _digests(out: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of each file that a user takes from the folder."""
    names = [STUDENT_NAME, CLASSES_NAME]
    names += [PICTURE_NAME] if record["images"]["synthetic"] else []
    names += [ONNX_NAME] if record["student"]["onnx"] else []
    return {name: file_sha256(out / name) for name in names}


def write_product(
    out: Path, given: Ingredients, settings: dict[str, Any], progress: Progress | None = None
) -> dict[str, Any]:
    """Train the student and write the folder; returns the record, which is written last.

    Args:
        out: the folder, with its parts opened.
        given: what to make the student from.
        settings: for the record.
        progress: told what is done, and the share of it.
    """
    began = time.perf_counter()
    synthetic = None if given.synthetic is None else given.synthetic()
    made = time.perf_counter()
    kept = out / PARTS_NAME / STUDENT_NAME
    history = out / PARTS_NAME / "training.json"
    if not (kept.is_file() and history.is_file()):
        trained, rows = _trained(given, synthetic, progress)
        save_student(trained, kept, given.supports.class_names)
        write_json(history, rows)
    # Read back in either case: last bits depend on how weights lie in memory.
    student, about = load_student(kept)[0], read_record(history, _Training, advice=_AGAIN)
    if progress is not None:
        progress("measuring and writing", 0.0)
    notes = list(given.notes)
    onnx = _export(student, out / ONNX_NAME, given.supports.class_names, notes)
    if onnx is not None:
        channels, height, width = student.image_shape
        onnx["input"] = f"image: float32 (N, {channels}, {height}, {width}), pixel / 127.5 - 1"
        onnx["output"] = f"logits: float32 (N, {student.n_classes}), in the order of {CLASSES_NAME}"
    record: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "student",
        "settings": settings,
        "classes": list(given.supports.class_names),
        "images": {
            "support": len(given.supports),
            **{
                name: 0 if images is None else len(images)
                for name, images in {
                    "synthetic": synthetic,
                    "mixtures": given.mixtures,
                    "pool": given.pool,
                    "base": given.base,
                    "held_out": given.held_out,
                }.items()
            },
        },
        "student": {
            **student.about(),
            "parameters": sum(p.numel() for p in student.parameters()),
            "file": STUDENT_NAME,
            "onnx": onnx,
        },
        "accuracy": measured(student, given, given.held_out),
        "training": about,
        "seconds": {"synthetic": made - began, "distillation": about["seconds"]},
        "notes": notes,
    }
    save_student(student, out / STUDENT_NAME, given.supports.class_names)
    write_text(out / CLASSES_NAME, "".join(f"{name}\n" for name in given.supports.class_names))
    if synthetic is not None:
        contact_sheet(given.supports, synthetic, out / PICTURE_NAME)
    record["files"] = _digests(out, record)
    write_json(out / RECORD_NAME, record)
    return record


def _trained(
    given: Ingredients, synthetic: ImageSet | None, progress: Progress | None
) -> tuple[Student, dict[str, Any]]:
    student = given.start()
    started = time.perf_counter()
    if progress is not None and given.teacher is not None:
        progress("the teacher looks at the images", 0.0)
    history = distill(
        student,
        given.supports,
        synthetic,
        given.base,
        given.teacher,
        given.config,
        mixtures=given.mixtures,
        pool=given.pool,
        seed=derive_seed(given.seed, "student training"),
        progress=None if progress is None else lambda done, n, _: progress("training the student", done / n),
    )
    return student.cpu(), {
        "seconds": time.perf_counter() - started,
        "parts": history.parts,
        "rows": history.rows,
        "teacher": history.teacher,
        "taught_by": given.teacher.encoder.record() if isinstance(given.teacher, EncoderTeacher) else None,
    }


def measured(student: Student, given: Ingredients, images: ImageSet | None) -> dict[str, Any] | None:
    """Return the accuracy of student and teacher on images that nothing learned from; None without."""
    if images is None or not len(images):
        return None
    share = accuracy(student, images)
    right = round(share * len(images))
    interval = wilson_interval(right, len(images))
    predicted = predict_logits(student, images).argmax(dim=1)
    per_class = {}
    for c, name in enumerate(images.class_names):
        own = images.labels == c
        if int(own.sum()):
            per_class[name] = float((predicted[own] == c).double().mean())
    found: dict[str, Any] = {
        "student": share,
        "low": interval.low,
        "high": interval.high,
        "n": len(images),
        "per_class": per_class,
        "chance": 1 / images.n_classes,
    }
    if given.teacher is not None:
        learned = given.teacher.fit(given.supports)
        hits = given.teacher.predict(images, learned) == images.labels
        found["teacher"] = float(hits.double().mean())
    return found


def _export(student: Student, path: Path, names: tuple[str, ...], notes: list[str]) -> dict[str, Any] | None:
    from fewgen.distillation.export import export_onnx

    try:
        written = export_onnx(student, path, class_names=names, overwrite=True)
    except MissingDependencyError as error:
        notes.append(f"No ONNX file was written. {error}")
        return None
    return {
        "file": path.name,
        "bytes": written.n_bytes,
        "largest_difference": written.largest_difference,
    }


def contact_sheet(supports: ImageSet, synthetic: ImageSet, path: Path, columns: int = 5) -> None:
    """Write a row for each class: up to `columns` supports, then as many synthetic images."""
    from fewgen.generation.pictures import grid

    rows, labels = [], []
    for c, name in enumerate(supports.class_names[:20]):
        row = []
        for images in (supports, synthetic):
            own = images.images[images.labels == c][:columns]
            row += [own, own.new_full((columns - len(own), *own.shape[1:]), 255)]
        rows.append(torch.cat(row))
        labels.append(name)
    with atomic_write(path) as temporary:
        grid(torch.cat(rows), 2 * columns, labels).save(temporary)


def supports_and_rest(images: ImageSet, shots: int | None, seed: int) -> tuple[ImageSet, ImageSet | None]:
    """Return the images to learn from, and those that are left to measure on.

    Args:
        images: of every class.
        shots: images of each class to learn from; None: all.
        seed: of the draw; the same as that of `train` with as many shots.

    Raises:
        DataError: fewer than 2 classes, or too few images in one.
    """
    present = [name for name, n in zip(images.class_names, images.counts().tolist(), strict=True) if n]
    if len(present) < 2:
        raise DataError(
            f"A classifier needs 2 classes or more, but {len(present)} "
            f"{'has' if len(present) == 1 else 'have'} images. Put the images of each class into a subfolder "
            "of its own."
        )
    if len(present) < images.n_classes:
        images = images.select_classes(present)
    if shots is None:
        return images, None
    supports = images.shots(shots, seed)
    rest, _ = without(images, supports)
    return supports, rest if len(rest) else None
