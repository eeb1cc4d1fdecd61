"""Damaged files and hostile flags: every command ends with 0 or 2 and a sentence, never with a traceback.

Examples:
    python -m benchmarks fuzz
    python -m benchmarks fuzz --examples 2000 --seconds 600
    python -m benchmarks fuzz --only split.json --keep work

Small valid files of every kind that a command reads lie in a folder of work. Part one goes through them place
by place: each key at every depth becomes null, an empty list, a text, a negative number and so on, or goes. What
no reader of text takes, wherever it stands (a number of 5,000 digits, half of a character), is put in two places.
Entries of one section that are alike (the controls of an evaluation) share these values: the first gets each,
the others some of them in turn. A section without effect, whatever it is, is not gone through. Part two draws
examples with hypothesis: flipped bytes, cut files, changed places and changed flags. Each case runs a command in this process. A case passes if the command returns 0, or 2 with an
"error: " line, within `MOST_SECONDS`, without taking this process `MOST_BYTES` above where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import itertools
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.kills import markdown
from fewgen.cli.main import COMMANDS, load_command
from fewgen.cli.main import main as fewgen
from fewgen.comparison import plot
from fewgen.evaluation import cost
from fewgen.runs.environment import environment

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
RUNS = GOLDEN / "runs" / "0.1.0"
MOST_SECONDS, MOST_BYTES = 20, 1 << 30

# ------------------------------------------------------------------------------------------ valid files

_TINY = (
    "--text onehot --model.image.width 4 --model.image.hidden 8 --model.text.hidden 8 --model.steps 2 "
    "--training.threads 1 --no-progress"
)
TRAIN = f"train cada_vqvae --data data.npz --shots 6 --holdout 4 {_TINY} --no-report"
BENCHMARK = (
    "benchmark --data data.npz --shots 5 --holdout 4 --seeds 1 -n 9 --useful-draws 0 --budget-minutes 0.01 "
    "--no-progress --methods copies file:drawn.npz --out bench"
)
_STUDENT = (
    "--per-class 2 --teacher-net conv4 --teacher-channels 4 --teacher-pretrain-steps 1 --teacher-episodes 1 "
    "--student-channels 4 --pretrain-steps 1 --training.steps 1 --training.batch_size 6 --device cpu --no-progress"
)
DISTILL = f"distill --novel data.npz --generator trained --shots 4 --data base.npz --out tiny {_STUDENT}"
COMPARE = (
    "distill --data base.npz --class-split 3/0/3 --competitors none augmentation --n-way 2 --n-shot 2 "
    f"--queries 2 --episodes 2 --out compared.json {_STUDENT}"
)
EVALUATE = (
    "evaluate drawn.npz --data data.npz --holdout 4 --useful-draws 0 --features pixels --no-html --no-progress "
    "--out evaluated.json --overwrite"
)
ADAPT = (
    "adapt trained --images base.npz --class-name a --shots 3 --steps 1 --no-report --no-progress --device cpu "
    "--out adapted"
)


@dataclass(frozen=True)
class Subject:
    """A file that commands read.

    Attributes:
        file: in the folder of work.
        commands: those that read it, each as one line.
        quick: whether its commands take well below a second, as the test suite needs it.
    """

    file: str
    commands: tuple[str, ...]
    quick: bool = True


GENERATE = "generate {} -n 1 --device cpu --overwrite --out drawn-again.npz"
IMAGES_OF = "evaluate {} --dry-run --useful-draws 0 --pool none --no-progress"

SUBJECTS = (
    Subject("trained/split.json", (IMAGES_OF.format("trained"), TRAIN + " --out trained")),
    Subject("trained/config.yaml", (IMAGES_OF.format("trained"), "train --config trained/config.yaml --out new --print_config")),
    Subject("adapted/split.json", (IMAGES_OF.format("adapted"),)),
    Subject("cada_vqvae_reptile/split.json", (IMAGES_OF.format("cada_vqvae_reptile"),)),
    Subject("run/model.safetensors", (GENERATE.format("run"),)),
    Subject("adapted/model.safetensors", (GENERATE.format("adapted"),)),
    Subject("cada_vqvae_reptile/model.safetensors", (GENERATE.format("cada_vqvae_reptile"),)),
    Subject("tint/model.safetensors", (GENERATE.format("tint"),)),
    Subject("diffusion/model.safetensors", (GENERATE.format("diffusion"),)),
    Subject("sq_gan/model.safetensors", (GENERATE.format("sq_gan"),)),
    Subject("trained/state/current.json", (TRAIN + " --out trained",)),
    Subject("trained/state/00000001/state.json", (TRAIN + " --out trained",), quick=False),
    Subject("trained/metrics.jsonl", (TRAIN.replace("--no-report", "--report") + " --out trained",), quick=False),
    Subject("trained/evaluation.json", (TRAIN + " --out trained",)),
    Subject("bench/cells/copies/seed0/made.json", (BENCHMARK + " --dry-run", BENCHMARK + " --table-only")),
    Subject("bench/cells/copies/seed0/evaluation.json", (BENCHMARK + " --dry-run", BENCHMARK + " --table-only")),
    Subject("bench/judge.safetensors", (BENCHMARK + " --remeasure",), quick=False),
    Subject("tiny/distill.json", (DISTILL,)),
    Subject("tiny/parts/settings.json", (DISTILL,)),
    Subject("half/parts/training.json", (DISTILL.replace("--out tiny", "--out half"),), quick=False),
    Subject("half/parts/generated.images.json", (DISTILL.replace("--out tiny", "--out half"),), quick=False),
    Subject("half/parts/student.safetensors", (DISTILL.replace("--out tiny", "--out half"),), quick=False),
    Subject("compared.json", (COMPARE,)),
    Subject("compared.cells/settings.json", (COMPARE,)),
    Subject("compared.cells/episode0000/none.json", (COMPARE,)),
    Subject("compared.cells/teacher.safetensors", (COMPARE + " --dry-run",), quick=False),
    Subject("accuracies.json", ("plan --accuracies accuracies.json --queries 75 --half-width 0.01",)),
    Subject("phrases.yaml", ("train cada_vqvae --data data.npz --text glove --text-path words.txt --phrases phrases.yaml --out new --dry-run",)),
    Subject("words.txt", ("train cada_vqvae --data data.npz --text glove --text-path words.txt --out new --dry-run",)),
    Subject("groups.json", ("train cada_vqvae --data base.npz --class-split groups.json --out new --dry-run --text onehot",)),
    Subject("train.yaml", ("train --config train.yaml --dry-run",)),
    Subject("benchmark.yaml", ("benchmark --config benchmark.yaml --dry-run",)),
    Subject("evaluate.yaml", ("evaluate --config evaluate.yaml --dry-run",)),
    Subject("generate.yaml", ("generate --config generate.yaml",)),
    Subject("drawn.npz", (EVALUATE + " --dry-run",)),
    Subject("pictures/one/a.png", ("evaluate pictures --data data.npz --dry-run",)),
    Subject("drawn/.fewgen-images.json", ("generate run -n 1 --device cpu --overwrite --out drawn",)),
)  # fmt: skip


def make_work(folder: Path) -> None:
    """Write the valid files; the current folder must be `folder`."""
    for name in ("cada_vqvae_reptile", "tint", "diffusion", "sq_gan"):
        shutil.copytree(RUNS / name, folder / name, ignore=shutil.ignore_patterns("expected"))
    shutil.copytree(RUNS / "cada_vqvae", folder / "run", ignore=shutil.ignore_patterns("expected"))
    shutil.copy(GOLDEN / "glove" / "words.txt", folder / "words.txt")
    rng = np.random.default_rng(0)
    for name, classes in {
        "data": ["zero", "one", "two"],
        "drawn": ["zero", "one", "two"],
        "base": list("abcdef"),
    }.items():
        labels = np.repeat(np.arange(len(classes)), 14)
        images = rng.integers(0, 90, (len(labels), 16, 16)) + 20 * labels[:, None, None]
        np.savez(
            folder / f"{name}.npz",
            images=images.astype(np.uint8),
            labels=labels,
            class_names=np.array(classes),
        )
    from PIL import Image

    for name in ("one", "two"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 255, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{'abc'[i]}.png")
    written = {
        "accuracies.json": {"accuracies": [0.5, 0.6, 0.55, 0.7]},
        "phrases.yaml": {"zero": ["seven", "even"], "one": "odd"},
        "groups.json": {"base": ["a", "b", "c"], "val": ["d"], "novel": ["e", "f"]},
        "train.yaml": {
            "method": "cada_vqvae", "data": "data.npz", "out": "new", "shots": 5, "class_names": ["zero", "one"],
            "seed": 3, "text": "onehot", "value_range": [0, 255], "minutes": 1.5, "phrases": None,
            "model": {"image": {"width": 4}, "steps": 2}, "training": {"ema_decay": 0.9},
        },
        "benchmark.yaml": {"data": "data.npz", "shots": 5, "seeds": 1, "n": 9, "methods": ["copies"], "out": "new", "jobs": 1},
        "evaluate.yaml": {"images": "drawn.npz", "data": "data.npz", "shots": 4, "holdout": 3, "pool": "none", "out": "new.json"},
        "generate.yaml": {"run": "run", "n": 1, "out": "new.npz", "seed": 1, "class_names": ["zero"], "temperature": 0.5, "options": {"a": 1}},
    }  # fmt: skip
    for name, value in written.items():
        (folder / name).write_text(json.dumps(value))
    for line in (
        TRAIN + " --out trained",
        BENCHMARK,
        DISTILL,
        COMPARE,
        "generate run -n 1 --device cpu --out drawn",
        ADAPT,
    ):
        problem = problem_of(line.split(), most_seconds=600)
        if problem:
            raise RuntimeError(f"{line}\n{problem}")
    shutil.copy(RUNS / "cada_vqvae" / "expected" / "evaluation.json", folder / "trained" / "evaluation.json")
    shutil.copytree(folder / "tiny", folder / "half")
    for name in ("distill.json", "student.safetensors"):
        (folder / "half" / name).unlink()


# ---------------------------------------------------------------------------------------------- damages

_TOKENS = {"1e999": "%%inf%%", "NaN": "%%nan%%", "9" * 5000: "%%digits%%", "1" + "0" * 30: "%%big%%"}
GONE = object()
VALUES: dict[str, Any] = {
    "gone": GONE, "null": None, "[]": [], "{}": {}, "text": "text", "-1": -1, "10^9": 10**9,
    "true": True, "0.5": 0.5, "": "", "[[]]": [[]],
    "inf": "%%inf%%", "nan": "%%nan%%", "5,000 digits": "%%digits%%", "10^30": "%%big%%",
    "half of a character": "\ud800",
}  # fmt: skip
"""What is put in the place of a value, by a name."""

PROBES = 7
"""If so many of them, the first ones, change nothing that a command says, nobody reads what stands there."""

NEVER_READ = ("inf", "nan", "5,000 digits", "10^30", "half of a character")
"""Those of them that the readers of JSON and YAML refuse, wherever they stand."""

PER_TWIN = 3
"""Values at a place of an entry that is like one before it in the same section."""

Way = tuple[Any, ...]


def places(value: Any, way: Way = ()) -> Iterator[Way]:
    """Yield the way to every key at every depth, and to the first entry of each list."""
    entries: Any = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for key, item in entries:
        yield (*way, key)
        yield from places(item, (*way, key))


def shape(value: Any) -> Any:
    """Return the keys and types of a value at every depth that `places` reaches."""
    if isinstance(value, dict):
        return tuple((key, shape(item)) for key, item in value.items())
    return [shape(item) for item in value[:1]] if isinstance(value, list) else type(value)


def twins(value: Any, way: Way = ()) -> Iterator[Way]:
    """Yield the way to every section that is like one before it beside it."""
    if isinstance(value, list):
        for item in value[:1]:
            yield from twins(item, (*way, 0))
    if isinstance(value, dict):
        seen: list[Any] = []
        for key, item in value.items():
            if isinstance(item, dict) and shape(item) in seen:
                yield (*way, key)
                continue
            seen.append(shape(item))
            yield from twins(item, (*way, key))


def values_at(value: Any) -> Iterator[tuple[Way, str, Any]]:
    """Yield every place with the name of what is put there, and that."""
    ways = [(), *places(value)]
    own = [item for item in VALUES.items() if item[0] not in NEVER_READ]
    never = [(name, VALUES[name]) for name in NEVER_READ]
    alike = set(twins(value))
    turn = 0
    for way in ways:
        chosen = own
        if any(way[:n] in alike for n in range(1, len(way) + 1)):
            chosen = [own[(turn + i) % len(own)] for i in range(PER_TWIN)]
            turn += PER_TWIN
        for name, new in [*chosen, *(never if way in (ways[:2][-1], max(ways, key=len)) else ())]:
            yield way, name, new


def at(value: Any, way: Way) -> Any:
    """Return what stands at a place."""
    for key in way:
        value = value[key]
    return value


def changed(value: Any, way: Way, new: Any) -> Any:
    """Return a copy of a value with another one, or none (`GONE`), at one place."""
    if not way:
        return None if new is GONE else new
    whole = copy.deepcopy(value)
    inner = whole
    for key in way[:-1]:
        inner = inner[key]
    if new is GONE:
        del inner[way[-1]]
    else:
        inner[way[-1]] = new
    return whole


def to_text(value: Any) -> str:
    """Return JSON with the numbers that Python cannot hold."""
    text = json.dumps(value)
    for token, stand_in in _TOKENS.items():
        text = text.replace(f'"{stand_in}"', token)
    return text


@dataclass(frozen=True)
class Document:
    """Structured text within a file.

    Attributes:
        name: for messages.
        value: what it holds.
        write: returns the bytes of the file with another text in its place.
    """

    name: str
    value: Any
    write: Callable[[str], bytes]


def documents(file: Path) -> list[Document]:
    """Return the structured parts of a file."""
    data = file.read_bytes()
    if file.suffix == ".json":
        return [Document("", json.loads(data), str.encode)]
    if file.suffix == ".yaml":
        return [Document("", yaml.safe_load(data), lambda text: text.replace("NaN", ".nan").encode())]
    if file.suffix == ".jsonl":
        first, rest = data.split(b"\n", 1)
        return [Document("first line", json.loads(first), lambda text: text.encode() + b"\n" + rest)]
    if file.suffix == ".safetensors":
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])

        def with_header(text: str) -> bytes:
            return struct.pack("<Q", len(text)) + text.encode() + data[8 + length :]

        # The numbers of one tensor stand for those of all.
        tensors = [name for name in header if name != "__metadata__"]
        few = {name: header[name] for name in [*tensors[:1], "__metadata__"] if name in header}
        others = {name: header[name] for name in tensors[1:]}
        found = [
            Document(
                "header",
                few,
                lambda text: with_header(
                    text[:-1] + "," + json.dumps(others)[1:] if text[0] == "{" else text
                ),
            )
        ]
        for key, text in header.get("__metadata__", {}).items():
            if text[:1] not in "{[":
                continue

            def write(new: str, key: str = key) -> bytes:
                return with_header(
                    json.dumps({**header, "__metadata__": {**header["__metadata__"], key: new}})
                )

            found.append(Document(key, json.loads(text), write))
        return found
    return []


@dataclass(frozen=True)
class Damage:
    """What a file may become.

    Attributes:
        name: for messages.
        place: what is changed in it: a document and a way; none if the file is cut.
        make: returns its bytes.
    """

    name: str
    place: Way
    make: Callable[[], bytes]


def damages(file: Path, most: int | None = None) -> list[Damage]:
    """Return what a file may become: another value at one place, or the file cut.

    Args:
        file: a valid one.
        most: how many of them, spread evenly over places and values; None for all.
    """
    data = file.read_bytes()
    found = []
    for document in documents(file):
        for way, name, new in values_at(document.value):
            where = ".".join(map(str, (document.name, *way) if document.name else way)) or "the whole"
            make = functools.partial(_changed_file, document, way, new)
            found.append(Damage(f"{where} is {name}", (document.name, *way), make))
    for share in (0.0, 0.3, 0.9, 0.999):
        found.append(Damage(f"cut at {share}", (), functools.partial(_cut, data, share)))
    n = len(found) if most is None else min(most, len(found))
    return [found[int(i * len(found) / n)] for i in range(n)]


def _changed_file(document: Document, way: Way, new: Any) -> bytes:
    return document.write(to_text(changed(document.value, way, new)))


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


# ------------------------------------------------------------------------------------------------ cases


class _TooLong(BaseException):
    """A case that takes too long; no `except Exception` catches it."""


def problem_of(argv: Sequence[str], most_seconds: int = MOST_SECONDS, said: list[Any] | None = None) -> str:
    """Run a command; return what is wrong with how it ended, "" if nothing is; and add what it said to `said`."""

    def stop(*_: Any) -> None:
        raise _TooLong

    out, before = io.StringIO(), peak()
    strict = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # a terminal refuses half of a character
    former = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, most_seconds)  # of the processor, which others may use too
    try:
        with contextlib.redirect_stdout(strict), contextlib.redirect_stderr(out):
            code = fewgen(list(argv))
    except BaseException as error:
        return f"{type(error).__name__}\n{_short(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)
    told = out.getvalue()
    if said is not None:
        strict.flush()
        said += [code, told, strict.buffer.getvalue()]
    if code not in (0, 2):
        return f"exit code {code}: {told[-300:]}"
    if code == 2 and not any(line.startswith("error: ") for line in told.splitlines()):
        return f"no error line: {told[-300:]}"
    for word in (
        "Traceback",
        "KeyError",
        "TypeError",
        "AttributeError",
        "IndexError",
        "NoneType",
        "object is not",
    ):
        if word in told:
            return f"{word} shown: {told[-400:]}"
    if any(len(line) > 3000 for line in told.splitlines()):
        return f"a line of {max(map(len, told.splitlines()))} characters: {told[:200]}"
    if peak() - before > MOST_BYTES:
        return f"{(peak() - before) >> 20} MB more"
    return ""


def _short(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "fewgen" in f.filename][-4:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    return f"{where}: {str(error)[:200]}"


def peak() -> int:
    """Return the most memory that this process has taken, in bytes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class Work:
    """The valid files in a folder of their own, which is the current one meanwhile, and copied for each case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "valid"
        self.case = folder / "case"
        self.said: list[Any] = []

    def __enter__(self) -> Work:
        self._before = os.getcwd(), dict(os.environ)
        self._show_warning = warnings.showwarning
        self._quick = contextlib.ExitStack()
        # Equal figures have equal plots, and what an estimate tries need not be tried long.
        self._quick.enter_context(
            mock.patch.object(plot, "quality_against_copying", _once(plot.quality_against_copying))
        )
        self._quick.enter_context(mock.patch.object(cost, "_TRIAL_STEPS", 0))
        os.environ |= {"FEWGEN_DATA_DIR": str(GOLDEN), "FEWGEN_CACHE_DIR": str(self.folder.parent / "cache")}
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            os.chdir(self.folder)
            make_work(self.folder)
        self._valid = {
            file.relative_to(self.folder): _stamp(file) for file in self.folder.rglob("*") if file.is_file()
        }
        return self

    def __exit__(self, *_: Any) -> None:
        self._quick.close()
        os.chdir(self._before[0])
        os.environ.clear()
        os.environ.update(self._before[1])
        warnings.showwarning = self._show_warning

    def try_file(self, subject: Subject, data: bytes) -> str:
        """Return what goes wrong when a file holds these bytes; "" if nothing does."""
        self.said = []
        for line in subject.commands:
            self._fresh()
            (self.case / subject.file).write_bytes(data)
            problem = problem_of(line.split(), said=self.said)
            if problem:
                return f"fewgen {line}\n    {problem}"
            self.said += [page.read_bytes() for page in sorted(self.case.glob("*/*.[mh]*")) if page.is_file()]
        return ""

    def sweep(self, subject: Subject, most: int | None = None) -> Iterator[tuple[str, str]]:
        """Yield each damage of a file by place with what goes wrong; what nobody reads is not gone through.

        Args:
            subject: the file.
            most: as for `damages`.
        """
        self.try_file(subject, (self.folder / subject.file).read_bytes())
        plain, unread = self.said, set()
        found = damages(self.folder / subject.file, most)
        for place, group in itertools.groupby(found, lambda damage: damage.place):
            if any(place[:n] in unread for n in range(1, len(place) + 1)):
                continue
            same = 0
            for i, damage in enumerate(group):
                if place and same == i >= PROBES:
                    break
                yield damage.name, self.try_file(subject, damage.make())
                same += self.said == plain
            if same >= PROBES:
                unread.add(place)

    def try_flags(self, argv: Sequence[str]) -> str:
        """Return what goes wrong with an argument list."""
        self._fresh()
        self.said = []
        return problem_of(argv, said=self.said)

    def _fresh(self) -> None:
        """Put the folder of the case back to the valid files: what differs in size or time, and no more."""
        os.chdir(self.folder.parent)
        for root, _, names in os.walk(self.case):
            own = Path(root).relative_to(self.case)
            if not (self.folder / own).is_dir():
                shutil.rmtree(root, ignore_errors=True)
                continue
            for name in names:
                if not (self.folder / own / name).is_file():
                    os.unlink(Path(root) / name)
        for relative, stamp in self._valid.items():
            if _stamp(self.case / relative) != stamp:
                (self.case / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.folder / relative, self.case / relative)
        os.chdir(self.case)


def _once(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that remembers what it returned."""
    known: dict[str, Any] = {}

    def wrapper(value: Any) -> Any:
        key = repr(value)
        if key not in known:
            known[key] = function(value)
        return known[key]

    return wrapper


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


# -------------------------------------------------------------------------------------------- hypothesis

NUMBERS = (
    "0", "-1", "-0.5", "0.5", "1e3", "nan", ".nan", "inf", ".inf", "-.inf", "1e999", str(2**31), str(2**63 - 1),
    str(2**63), str(-(2**63)), "9" * 30, "9" * 5000, "0x" + "f" * 5000, "1e300", "1e-320", "1_000", "٣", "",
)  # fmt: skip
WORDS = (
    *NUMBERS,
    "null",
    "true",
    "[]",
    "{}",
    "{a: 1}",
    "[1, 2]",
    "text",
    "--",
    "a\nb",
    "\x00",
    "é" * 300,
    "*a",
    "&a [*a]",
)


def numeric_flags(command: str) -> Iterator[str]:
    """Yield the flags of a command that take a number."""
    for argument in load_command(command).arguments:
        options = getattr(argument.type, "__args__", (argument.type,))
        if not argument.positional and {int, float} & set(options):
            yield argument.flag


BASES = {
    "train": "cada_vqvae --dry-run --data data.npz --text onehot --out new",
    "adapt": "trained --steps 1 --images base.npz --class-name a --shots 2 --no-report --no-progress --out new",
    "generate": "trained -n 1 --out new.npz",
    "edit": "trained --layer 0 --codes 1 --out new.png",
    "interpolate": "trained zero one --steps 2 --out new.png",
    "reconstruct": "trained -n 1 --out new.png",
    "retrieve": "run data.npz",
    "distill": "--dry-run --novel data.npz --generator trained --data base.npz --out new",
    "evaluate": "drawn.npz --dry-run --data data.npz --holdout 4",
    "benchmark": "--dry-run --data data.npz --shots 5 --holdout 4 --out new --methods copies",
    "plan": "--accuracy 0.87 --between-sd 0.05 --queries 75 --half-width 0.01",
    "quickstart": "--dry-run",
    "methods": "",
    "datasets": "",
    "doctor": "",
}
"""Command -> arguments of a short call, to which flags are added or changed; what keeps it short comes first."""


def with_flag(command: str, flag: str, value: str) -> list[str]:
    """Return the short call of a command with a flag, which replaces the one that is there."""
    words = [command, *BASES[command].split()]
    short = "-n" if flag == "--n" else flag
    for name in (flag, short):
        if name in words:
            at = words.index(name)
            del words[at : at + 2]
    return [*words, f"{flag}={value}"] if flag != "--value-range" else [*words, flag, value, "255"]


def bytes_of(data: bytes) -> st.SearchStrategy[bytes]:
    """Draw what may become of the bytes of a file."""

    def flipped(changes: list[tuple[int, int]]) -> bytes:
        mutable = bytearray(data)
        for place, value in changes:
            mutable[place] = value
        return bytes(mutable)

    end = st.integers(0, max(0, len(data) - 1))
    beginning = st.integers(0, min(200, max(0, len(data) - 1)))
    flips = st.lists(st.tuples(beginning | end, st.integers(0, 255)), min_size=1, max_size=8).map(flipped)
    inserted = st.tuples(end, st.binary(max_size=40)).map(lambda x: data[: x[0]] + x[1] + data[x[0] :])
    return flips | end.map(lambda n: data[:n]) | inserted | st.binary(max_size=200)


def places_of(file: Path) -> st.SearchStrategy[bytes]:
    """Draw a file with other values at one place."""
    found = [(d, way) for d in documents(file) for way in [(), *places(d.value)]]
    values = st.sampled_from([*VALUES.values(), GONE]) | st.integers() | st.text(max_size=20)
    chosen = st.tuples(st.sampled_from(found), values)
    return chosen.map(lambda x: _changed_file(x[0][0], x[0][1], x[1]))


def calls() -> st.SearchStrategy[list[str]]:
    """Draw a command with changed flags."""

    def of(command: str) -> st.SearchStrategy[list[str]]:
        flags = [a for a in load_command(command).arguments if not a.positional]
        names = [a.flag for a in flags] + [f"{a.flag}.steps" for a in flags if a.type is dict] + ["--config"]
        n_words = {a.flag: len(a.metavar.split()) for a in flags if a.how == "each"}
        word = st.sampled_from(WORDS) | st.text(max_size=8)
        pair = st.sampled_from(names).flatmap(
            lambda name: st.tuples(st.just(name), *[word] * n_words.get(name, 1))
        )
        words = [command, *BASES[command].split()]
        return st.tuples(st.integers(0, len(words) - 1), st.lists(pair, max_size=3)).map(
            lambda x: [*words[: 1 + x[0] if x[0] else len(words)], *(w for p in x[1] for w in p)]
        )

    return st.sampled_from([c for c in COMMANDS if c not in NOT_CALLED]).flatmap(of)


NOT_CALLED = ("quickstart", "doctor")
"""They have no short form."""


def search(work: Work, subjects: Sequence[Subject], examples: int, number: int = 0) -> str:
    """Return the first thing that goes wrong among drawn examples; "" if nothing does.

    Args:
        work: the valid files.
        subjects: whose files are damaged.
        examples: how many.
        number: of the draw.
    """
    options: list[st.SearchStrategy[tuple[Subject | None, Any]]] = [calls().map(lambda argv: (None, argv))]
    for subject in subjects:
        file = work.folder / subject.file
        kinds = bytes_of(file.read_bytes())
        if documents(file):
            kinds = kinds | places_of(file)
        options.append(st.tuples(st.just(subject), kinds))
    problems: list[str] = []

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    @given(st.one_of(options))
    def run(case: tuple[Subject | None, Any]) -> None:
        subject, given_ = case
        problem = work.try_flags(given_) if subject is None else work.try_file(subject, given_)
        if problem:
            problems.append(f"{given_ if subject is None else subject.file}: {problem}")
        assert not problem

    with contextlib.suppress(AssertionError):
        run()
    return problems[0] if problems else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=3000, help="examples of hypothesis")
    parser.add_argument("--seconds", type=float, help="when no new case starts any more")
    parser.add_argument(
        "--most", type=int, help="damages of each file by place, spread evenly; all if left out"
    )
    parser.add_argument("--only", nargs="+", default=[""], help="files whose names hold one of these")
    parser.add_argument("--keep", type=Path, help="folder of work, which is kept")
    parser.add_argument("--seed", type=int, default=0, help="of the examples")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    about: dict[str, Any] = environment()  # of the commit that is there at the start
    started, used, seen = time.monotonic(), time.process_time(), set()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="fewgen-fuzz-"))
    rows: list[tuple[Any, ...]] = []

    def late() -> bool:
        return options.seconds is not None and time.monotonic() - started > options.seconds

    def found(case: str, problem: str) -> bool:
        kind = problem.partition(": ")[0]
        if problem and kind not in seen:
            seen.add(kind)
            print(f"{case}: {problem}", flush=True)
        return bool(problem)

    with Work(folder.resolve()) as work:
        subjects = [s for s in SUBJECTS if any(name in s.file for name in options.only)]
        for subject in subjects:
            n = bad = 0
            for name, problem in work.sweep(subject, options.most):
                n += 1
                bad += found(f"{subject.file}: {name}", problem)
                if late():
                    break
            rows.append((f"`{subject.file}`", len(subject.commands), n, bad))
            print(f"{subject.file}: {n} damages, {bad} not clean", flush=True)
        done = bad = 0
        while done < options.examples and not late():
            n = min(100, options.examples - done)
            bad += found("drawn", search(work, subjects, n, options.seed + done))
            done += n
        rows.append(("all of them and every flag, drawn", "", done, bad))
    if options.keep is None:
        shutil.rmtree(folder)
    rows.append(("**all**", "", sum(row[2] for row in rows), sum(row[3] for row in rows)))
    print("\n" + markdown(("file", "commands that read it", "damages", "failures"), rows))
    print(
        f"\nCommit {about['commit']}, Python {about['python']}, torch {about['versions']['torch']}; "
        f"{(time.process_time() - used) / 60:.0f} minutes of one processor; {len(seen)} kinds of problem"
    )
    return 1 if seen else 0
