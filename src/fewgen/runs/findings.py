"""What is known about a run, gathered once for the page and for the card.

Figures here are by-products of a report, on the few held-out images: enough to see that something is
wrong, not enough to claim that it is right. Measuring is the task of `fewgen.evaluate`.
"""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewgen.data.imageset import ImageSet
from fewgen.errors import FewgenError
from fewgen.methods.abilities import class_scores, reconstructed

if TYPE_CHECKING:
    from fewgen.evaluation.evaluation import Evaluation
    from fewgen.generation import GeneratedImages
    from fewgen.methods.base import Method
    from fewgen.runs import Run
    from fewgen.runs.new_classes import NewClasses

MAX_SHOWN_CLASSES = 40
MAX_HELD_OUT = 2000
"""Figures on more held-out images would only take longer."""


@dataclass
class Findings:
    """Everything that the page and the card show.

    Attributes:
        title: name of the run folder.
        run: the run.
        train: images it learned from.
        held_out: images set aside, or None.
        generated: new images, the same number per class, seeds from 0.
        per_class: how many of them per class are shown.
        reconstructed: the held-out images (training images without any) and their reconstructions.
        figures: (name, value, what it means), measured on held-out images.
        lines: of metrics.jsonl.
        warnings: of the training, and notes of the run.
        stages: how each stage went.
        parameters: numbers in the model.
        command: repeats the training.
        citations: what it used, see `citation_keys`.
        versions: of what made the run's report.
        data_name: what the run learned from, in the user's words.
        evaluation: what the evidence says of new images, or None.
        evaluation_fault: why there is no evaluation, if it was tried.
        new_classes: how the run learns its novel classes, or None.
        new_classes_fault: why that is not known, if it was tried.
    """

    title: str
    run: Run
    train: ImageSet
    held_out: ImageSet | None
    generated: GeneratedImages
    per_class: int
    reconstructed: tuple[ImageSet, Tensor] | None = None
    figures: list[tuple[str, str, str]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    parameters: int = 0
    command: str = ""
    citations: list[str] = field(default_factory=list)
    versions: str = ""
    data_name: str = ""
    evaluation: Evaluation | None = None
    evaluation_fault: str = ""
    new_classes: NewClasses | None = None
    new_classes_fault: str = ""

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
    def images_per_class(self) -> str:
        """Smallest and largest number of real images per class, held-out ones included."""
        counts = self.train.counts()
        if self.held_out is not None:
            counts = counts + self.held_out.counts()
        low, high = int(counts.min()), int(counts.max())
        return str(low) if low == high else f"{low} to {high}"


def collect(run: Run, train: ImageSet, held_out: ImageSet | None, per_class: int = 8) -> Findings:
    """Gather what there is to say about a run; draws images and measures on the held-out ones."""
    from fewgen.generation import GenerationRequest
    from fewgen.version import __version__

    method = run.method
    held_out = held_out if held_out is not None and len(held_out) else None
    classes = list(range(min(len(run.class_names), MAX_SHOWN_CLASSES)))
    generated = method.generate(GenerationRequest.per_class(classes, per_class, seed=0))
    lines = read_metrics(run.path / "metrics.jsonl")
    warnings = [*run.notes, *(str(line["text"]) for line in lines if line.get("kind") == "warning")]
    findings = Findings(
        title=run.path.resolve().name,
        run=run,
        train=train,
        held_out=held_out,
        generated=generated,
        per_class=per_class,
        lines=lines,
        warnings=list(dict.fromkeys(warnings)),
        stages=list(run.info.extra.get("training", {}).get("stages", [])),
        parameters=sum(parameter.numel() for parameter in method.parameters()),
        command=training_command(run),
        citations=citation_keys(method, run.config),
        versions=f"fewgen {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        data_name=str(run.config.get("data") or train.name or "images"),
    )
    if "reconstruct" in method.capabilities:
        shown = held_out if held_out is not None else train
        shown = shown.subset(range(min(len(shown), MAX_HELD_OUT)))
        findings.reconstructed = (shown, reconstructed(method, shown))
    findings.figures = _figures(findings)
    return findings


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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; a line cut short by a kill is left out."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict):
                lines.append(line)
    return lines


def training_command(run: Run) -> str:
    """Return a command that trains the same again, as far as flags can say it."""
    config = run.config
    if not config:
        return ""
    words = ["fewgen", "train", str(config.get("method", "")), "--data", str(config.get("data") or "IMAGES")]
    for key in ("shots", "preset", "seed", "text", "text_path", "holdout", "size", "channels"):
        value = config.get(key)
        if value is not None and (key, value) not in (
            ("preset", "default"),
            ("holdout", "auto"),
            ("seed", 0),
        ):
            words += ["--" + key.replace("_", "-"), str(value)]
    for key in ("split", "fit", "background"):
        if config.get(key) not in (None, "train", "crop", "error"):
            words += [f"--{key}", str(config[key])]
    base = (config.get("model") or {}).get("base")
    if base is not None:
        words += ["--model", str(base)]
    for name in config.get("class_names") or []:
        words += ["--class-name", str(name)]
    words += _model_flags(config)
    training = config.get("training", {})
    if training.get("minutes"):
        words += ["--minutes", f"{training['minutes']:g}"]
    if training.get("steps_scale", 1.0) != 1.0:
        words += ["--steps-scale", f"{training['steps_scale']:g}"]
    if config.get("convert"):
        words.append("--convert")
    return shlex.join([*words, "--out", "NEW_RUN"])


def _figures(findings: Findings) -> list[tuple[str, str, str]]:
    from fewgen.evaluation import ssim, wilson_interval

    rows: list[tuple[str, str, str]] = []
    held_out, method = findings.held_out, findings.method
    if findings.reconstructed is not None and held_out is not None:
        originals, images = findings.reconstructed
        error = (images.float() - originals.images.float()).div(255).square().mean()
        rows.append(
            (
                "structural similarity of reconstructions (SSIM)",
                f"{float(ssim(images, originals.images).mean()):.3f}",
                "1 is equal; what the model can show at all",
            )
        )
        rows.append(
            ("mean squared error of reconstructions", f"{float(error):.4f}", "of intensities in [0, 1]")
        )
    if "retrieve" in method.capabilities and held_out is not None:
        part = held_out.subset(range(min(len(held_out), MAX_HELD_OUT)))
        right = int((class_scores(method, part.images).argmax(1) == part.labels).sum())
        share = wilson_interval(right, len(part))
        rows.append(
            (
                "held-out images whose nearest word is their class",
                f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})",
                f"95 % interval; guessing gives {1 / len(findings.run.class_names):.0%}",
            )
        )
    return rows


def _model_flags(config: Mapping[str, Any]) -> list[str]:
    """Return the flags of the method's settings that are not its preset's."""
    from fewgen.config import load_preset, resolve, to_dict
    from fewgen.methods.registry import get_method

    own = {key: value for key, value in (config.get("model") or {}).items() if key != "base"}
    try:
        preset = load_preset(str(config["method"]), str(config.get("preset") or "default"))
        usual = to_dict(resolve(get_method(str(config["method"])).Config, preset["model"]))
    except (FewgenError, KeyError):  # a run of a method or preset that is not there any more
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
