"""What is known about a run, measured once for the page and for the card, which only draw it.

Figures here are by-products of a report, on the few held-out images: enough to see that something is
wrong, not enough to claim that it is right. Measuring is the task of `fewgen.evaluate`.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import torch
from torch import Tensor

from fewgen.clock import Limit, shown_minutes
from fewgen.config.records import parse_record
from fewgen.data.imageset import ImageSet, evenly
from fewgen.errors import in_words
from fewgen.generation.request import GenerationRequest, image_seeds
from fewgen.methods.abilities import (
    Blends,
    Encodes,
    able,
    class_latents,
    class_scores,
    reconstructed,
    walk,
)
from fewgen.progress import within
from fewgen.runs.steps import preset_model
from fewgen.runs.timing import MAX_SHOWN_CLASSES, PER_CLASS_SHOWN, WALK_STEPS, Share, report_images

if TYPE_CHECKING:
    from fewgen.evaluation.evaluation import Evaluation
    from fewgen.generation import GeneratedImages
    from fewgen.methods.base import Method
    from fewgen.progress import Progress
    from fewgen.runs import Run
    from fewgen.runs.new_classes import NewClasses

    Others = Mapping[str, ImageSet] | Callable[[], Mapping[str, ImageSet]]

T = TypeVar("T")

EVALUATION_NAME = "evaluation.json"

MAX_HELD_OUT = 2000
"""Figures on more held-out images would only take longer."""

MAX_ENCODED = 600
"""Training images, and held-out ones, that a map of the latent space shows."""

MAX_BLENDED = 10
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Rows and columns of the picture that leads from real images to new ones."""


@dataclass(frozen=True)
class Latents:
    """Images and class names in the latent space.

    Attributes:
        images: float32 (N, L).
        labels: int64 (N,).
        held_out: whether each image was held out, bool (N,).
        words: of the class names, float32 (K, L).
    """

    images: Tensor
    labels: Tensor
    held_out: Tensor
    words: Tensor


@dataclass(frozen=True)
class Checkpoints:
    """What the checkpoints of a stage drew.

    Attributes:
        stage: its name.
        lines: of metrics.jsonl, kind checkpoint, one for each.
        kept: the step whose weights were kept.
        pictures: step -> picture of the first of its images, a row.
    """

    stage: str
    lines: list[dict[str, Any]]
    kept: int
    pictures: dict[int, Path]


@dataclass
class Findings:
    """Everything that the page and the card show.

    What a method cannot do is empty or None; what was tried in vain is in `faults`.

    Attributes:
        run: the run.
        train: images it learned from.
        held_out: images set aside, or None.
        generated: new images, the same number per class, seeds from 0.
        per_class: how many of them per class are shown.
        lines: of metrics.jsonl.
        warnings: of the training, and notes of the run.
        evaluation: what the evidence says of new images, or None.
        nearest: new images and the training images that they are nearest to in pixels, both uint8
            (N, C, H, W), nearest first; None where the evaluation knows better.
        reconstructed: the held-out images (training images without any) and their reconstructions.
        figures: (name, value, what it means), measured on held-out images.
        walks: two class names and images on the way from one to the other.
        blends: a training image of each of some classes and what becomes of it at each alpha of `BLENDS`,
            uint8 (N, 1 + len(BLENDS), C, H, W); or None.
        latents: images and words in one space, or None.
        codebooks: name -> how often each code is used, int64 (K,).
        new_classes: how the run learns its novel classes, or None.
        faults: name of one of these attributes -> why it could not be measured.
    """

    run: Run
    train: ImageSet
    held_out: ImageSet | None
    generated: GeneratedImages
    per_class: int
    lines: list[dict[str, Any]]
    warnings: list[str]
    evaluation: Evaluation | None = None
    nearest: tuple[Tensor, Tensor] | None = None
    reconstructed: tuple[ImageSet, Tensor] | None = None
    figures: list[tuple[str, str, str]] = field(default_factory=list)
    walks: list[tuple[tuple[str, str], Tensor]] = field(default_factory=list)
    blends: Tensor | None = None
    latents: Latents | None = None
    codebooks: dict[str, Tensor] = field(default_factory=dict)
    new_classes: NewClasses | None = None
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name of the run folder."""
        return self.run.path.resolve().name

    @property
    def shown_path(self) -> str:
        """The run folder as it was given, quoted for a shell."""
        return shlex.quote(str(self.run.path))

    @property
    def method(self) -> Method:
        """The trained method."""
        return self.run.method

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run."""
        return self.run.config

    @property
    def data_name(self) -> str:
        """What the run learned from, in the user's words."""
        return str(self.config.get("data") or self.train.name or "images")

    @property
    def stages(self) -> list[dict[str, Any]]:
        """How each stage of the training went."""
        return list(self.run.info.extra.get("training", {}).get("stages", []))

    @property
    def checkpoints(self) -> list[Checkpoints]:
        """The checkpoints of each stage that compared some."""
        found = []
        for number, stage in enumerate(self.stages, start=1):
            name = str(stage.get("name"))
            own = [
                line for line in self.lines if (line.get("kind"), line.get("stage")) == ("checkpoint", name)
            ]
            paths = {
                line["step"]: self.run.path / "previews" / f"{number}_{name}_{line['step']:07d}_drawn.png"
                for line in own
            }
            kept = stage.get("best_step")
            pictures = {step: path for step, path in paths.items() if path.is_file()}
            if own:
                found.append(Checkpoints(name, own, stage["steps"] if kept is None else kept, pictures))
        return found

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(int(stage.get("steps", 0)) for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Duration of all stages."""
        return sum(float(stage.get("seconds", 0)) for stage in self.stages)

    @property
    def parameters(self) -> int:
        """Numbers in the model."""
        return sum(parameter.numel() for parameter in self.method.parameters())

    @property
    def n_held_out(self) -> int:
        """Images set aside."""
        return 0 if self.held_out is None else len(self.held_out)

    @property
    def images_per_class(self) -> list[int]:
        """Real images of each class, held-out ones included."""
        counts = self.train.counts()
        if self.held_out is not None:
            counts = counts + self.held_out.counts()
        return counts.tolist()

    @property
    def command(self) -> str:
        """A command that repeats the training, as far as flags can say it."""
        return training_command(self.run)

    @property
    def citations(self) -> list[str]:
        """What the run used, see `citation_keys`."""
        return citation_keys(self.method, self.config)


# ------------------------------------------------------------------------------------------ measuring


def measure_run(
    run: Run,
    train: ImageSet,
    held_out: ImageSet | None,
    progress: Progress | None = None,
    others: Others | None = None,
    data_dir: str | Path | None = None,
    limit: Limit | None = None,
) -> Findings:
    """Measure all that the report of a run shows, and write `evaluation.json` into its folder.

    Args:
        run: a finished or stopped run with a model file.
        train: the images it learned from.
        held_out: the images set aside, or None.
        progress: told the name of the part that is measured and the share of it that is done.
        others: images of the classes that were not learned from, or how to get them, as `Run.other_images`
            returns them; None: from the run's source. Needed only after meta-training.
        data_dir: folder of the named data sets; None for the usual one.
        limit: of the whole command; what there is no time for is left out by name. None: no limit.
    """
    from fewgen.runs.new_classes import measure_new_classes, was_meta_trained

    limit = limit or Limit()
    progress = within(progress, limit)
    faults: dict[str, str] = {}
    share = Share(limit, run.method, train, held_out)
    evaluation = _tried(faults, "evaluation", None, lambda: _evaluated(run, train, held_out, progress, share))
    findings = collect(run, train, held_out, share.shown(), evaluation, limit)
    findings.faults.update(faults)
    if was_meta_trained(run):
        images = functools.partial(run.other_images, data_dir, with_base=True) if others is None else others
        findings.new_classes = _tried(
            findings.faults,
            "new_classes",
            None,
            lambda: measure_new_classes(run, train, findings.held_out, images, data_dir, progress),
        )
    return findings


def collect(
    run: Run,
    train: ImageSet,
    held_out: ImageSet | None,
    per_class: int = PER_CLASS_SHOWN,
    evaluation: Evaluation | None = None,
    limit: Limit | None = None,
) -> Findings:
    """Return what there is to say about a run within moments; draws images, measures on held-out ones."""
    method, classes = run.method, range(min(len(run.class_names), MAX_SHOWN_CLASSES))
    lines = read_metrics(run.path / "metrics.jsonl")
    warnings = [*run.notes, *(str(line["text"]) for line in lines if line.get("kind") == "warning")]
    found = Findings(
        run,
        train,
        held_out if held_out is not None and len(held_out) else None,
        method.generate(GenerationRequest.per_class(classes, per_class, seed=0)),
        per_class,
        lines,
        list(dict.fromkeys(warnings)),
        evaluation,
    )
    for name, measure in _PARTS.items():
        without = getattr(found, name)
        setattr(found, name, _tried(found.faults, name, without, functools.partial(measure, found), limit))
    return found


def _tried(
    faults: dict[str, str], name: str, otherwise: T, measure: Callable[[], T], limit: Limit | None = None
) -> T:
    """Return what is measured; a fault is noted, as hours of training must not end without a report."""
    try:
        if limit is not None:
            limit.check()
        return measure()
    except Exception as error:
        faults[name] = in_words(error)
        return otherwise


def _evaluated(
    run: Run, train: ImageSet, held_out: ImageSet | None, progress: Progress | None, share: Share
) -> Evaluation:
    """Measure new images of a run, all but their usefulness, which takes minutes; write what was found."""
    from fewgen.runs.evaluating import Sets, evaluate_sets

    judge = share.judge.of_run(run.config.get("encoders"))
    sets = Sets(str(run.path), run, None, train, held_out, None, [], judge)
    wanted, per_class = report_images(train.n_classes), share.measured()
    evaluation = evaluate_sets(sets, n=per_class, useful_draws=0, progress=progress)
    if per_class < wanted:
        evaluation.omitted["more images"] = (
            f"{per_class} instead of {wanted} of each class were drawn and measured: the time limit of "
            f"{shown_minutes(share.limit.minutes)}"
        )
    evaluation.save(run.path / EVALUATION_NAME)
    return evaluation


def _nearest(found: Findings) -> tuple[Tensor, Tensor] | None:
    if found.evaluation is not None and found.evaluation.worst:
        return None
    new, train = found.generated.images, found.train.images
    pixels, real = new.flatten(1).float() / 255, train.flatten(1).float() / 255
    distances, nearest = torch.cat([torch.cdist(part, real) for part in pixels.split(256)]).min(dim=1)
    worst = distances.argsort()[:10]
    return new[worst], train[nearest[worst]]


def _reconstructed(found: Findings) -> tuple[ImageSet, Tensor] | None:
    if "reconstruct" not in found.method.capabilities:
        return None
    shown = found.train if found.held_out is None else found.held_out
    shown = shown.subset(range(min(len(shown), MAX_HELD_OUT)))
    return shown, reconstructed(found.method, shown)


def _figures(found: Findings) -> list[tuple[str, str, str]]:
    from fewgen.evaluation import ssim, wilson_interval

    rows: list[tuple[str, str, str]] = []
    held_out, method = found.held_out, found.method
    if held_out is None:
        return rows
    if found.reconstructed is not None:
        originals, images = found.reconstructed
        similarity = float(ssim(images, originals.images).mean())
        error = float((images.float() - originals.images.float()).div(255).square().mean())
        rows += [
            (
                "structural similarity of reconstructions (SSIM)",
                f"{similarity:.3f}",
                "1 is equal; what the model can show at all",
            ),
            ("mean squared error of reconstructions", f"{error:.4f}", "of intensities in [0, 1]"),
        ]
    if "retrieve" in method.capabilities:
        part = held_out.subset(range(min(len(held_out), MAX_HELD_OUT)))
        right = int((class_scores(method, part.images).argmax(1) == part.labels).sum())
        share = wilson_interval(right, len(part))
        rows.append(
            (
                "held-out images whose nearest word is their class",
                f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})",
                f"95 % interval; guessing gives {1 / len(found.run.class_names):.0%}",
            )
        )
    return rows


def _walks(found: Findings) -> list[tuple[tuple[str, str], Tensor]]:
    method = found.method
    if not {"interpolate", "text"} <= method.capabilities:
        return []
    names, n = method.spec.class_names, method.spec.n_classes
    walks = []
    for a, b in dict.fromkeys([(0, 1 % n), (n // 2, (n // 2 + 1) % n), (n - 1, 0)]):
        if a != b:
            ends = class_latents(method, torch.tensor([a, b]))
            images = walk(method, ends[:1], ends[1:], torch.zeros(WALK_STEPS, dtype=torch.int64))
            walks.append(((names[a], names[b]), images))
    return walks


def _blends(found: Findings) -> Tensor | None:
    method = found.method
    if "blend" not in method.capabilities or not able(method, Blends).has_latents:
        return None
    labels = torch.arange(min(method.spec.n_classes, MAX_BLENDED))
    seeds = image_seeds(0, len(labels))
    columns = [able(method, Blends).starts(labels, seeds)]
    for alpha in BLENDS:
        request = GenerationRequest(labels=labels, seeds=seeds, options={"alpha": alpha})
        columns.append(method.generate(request).images)
    return torch.stack(columns, 1)


@torch.no_grad()
def _latents(found: Findings) -> Latents | None:
    method = found.method
    if not {"encode", "text"} <= method.capabilities:
        return None
    sets = [found.train] if found.held_out is None else [found.train, found.held_out]
    chosen = [images.subset(evenly(images.labels.tolist(), MAX_ENCODED)) for images in sets]
    encoder = able(method, Encodes)
    labels = torch.cat([images.labels for images in chosen])
    return Latents(
        torch.cat([encoder.encode(images.floats().to(method.device)).cpu() for images in chosen]).float(),
        labels,
        torch.arange(len(labels)) >= len(chosen[0]),
        class_latents(method, torch.arange(method.spec.n_classes)).cpu().float(),
    )


def _codebooks(found: Findings) -> dict[str, Tensor]:
    usage = getattr(found.method, "codebook_usage", None)
    return {} if usage is None else usage(found.train)


_PARTS: dict[str, Callable[[Findings], Any]] = {
    "nearest": _nearest,
    "reconstructed": _reconstructed,
    "figures": _figures,
    "walks": _walks,
    "blends": _blends,
    "latents": _latents,
    "codebooks": _codebooks,
}
"""Attribute -> its measuring, in the order of what needs what."""


# ------------------------------------------------------------------------------------------ the record


def citation_keys(method: Any, config: Mapping[str, Any]) -> list[str]:
    """Return the names of what a run used, in the order fewgen, works of the method, text encoder, data.

    Args:
        method: a loaded method; its `citations`, if it has any, name works.
        config: the settings of the run (`config.yaml`).
    """
    text = getattr(method.spec, "text", None)
    data = str(config.get("data") or "").strip().lower().replace("-", "_")
    encoder = "" if text is None else text.encoder_name
    used = ("fewgen", *getattr(method, "citations", ()), encoder, data)
    return [name for name in dict.fromkeys(used) if name]


class _Line(TypedDict):
    kind: str


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; a line cut short by a kill, or none of ours, is left out."""
    shape: Any = _Line
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(parse_record(text, shape))
            except ValueError:
                continue
    return lines


_USUAL = {
    "shots": None,
    "preset": "default",
    "seed": 0,
    "text": None,
    "text_path": None,
    "holdout": "auto",
    "size": None,
    "channels": None,
    "split": "train",
    "fit": "crop",
    "background": "error",
}
"""Keyword of `train` -> the value that needs no flag; None: any value needs one."""


def training_command(run: Run) -> str:
    """Return a command that trains the same again, as far as flags can say it."""
    config = run.config
    if not config:
        return ""
    words = ["fewgen", "train", str(config.get("method", "")), "--data", str(config.get("data") or "IMAGES")]
    for key, usual in _USUAL.items():
        if config.get(key) not in (None, usual):
            words += ["--" + key.replace("_", "-"), str(config[key])]
    base = (config.get("model") or {}).get("base")
    if base is not None:
        words += ["--model", str(base)]
    for name in config.get("class_names") or []:
        words += ["--class-name", str(name)]
    words += _model_flags(config)
    training = config.get("training", {})
    if training.get("minutes"):
        words += ["--minutes", f"{training['minutes']:g}"]
        if training.get("clock", "wall") != "wall":
            words += ["--clock", training["clock"]]
    if training.get("checkpoint", "best") != "best":
        words += ["--checkpoint", training["checkpoint"]]
    if training.get("steps_scale", 1.0) != 1.0:
        words += ["--steps-scale", f"{training['steps_scale']:g}"]
    if config.get("convert"):
        words.append("--convert")
    if config.get("value_range"):
        words += ["--value-range", *map(str, config["value_range"])]
    return shlex.join([*words, "--out", "NEW_RUN"])


def _model_flags(config: Mapping[str, Any]) -> list[str]:
    """Return the flags of the method's settings that are not its preset's."""
    own = {key: value for key, value in (config.get("model") or {}).items() if key != "base"}
    usual = preset_model(config)
    if usual is None:
        return []
    return [word for name, value in _differences(own, usual) for word in (f"--model.{name}", value)]


def _differences(own: Mapping[str, Any], usual: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the value, as flags take it, of each setting that differs."""
    for key, value in own.items():
        there = usual.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            yield from ((f"{key}.{name}", text) for name, text in _differences(value, there))
        elif value != there:
            yield key, value if isinstance(value, str) else json.dumps(value)
