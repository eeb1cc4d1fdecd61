"""`report.html`: one file with everything inside, readable on a phone, in light and dark."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import torch

from fewgen.data.imageset import evenly
from fewgen.evaluation.verdicts import summary
from fewgen.generation.pictures import class_grid, grid, pairs, strip
from fewgen.generation.request import GenerationRequest, image_seeds
from fewgen.methods.abilities import Blends, Encodes, able, class_latents, walk
from fewgen.report import plots
from fewgen.report.citations import bibtex
from fewgen.report.evidence import evidence_section, fault_section, pairs_figure
from fewgen.report.new_classes import new_classes_section
from fewgen.report.page import figure, flat, folded, page, png, section, shown, table, warning
from fewgen.runs.findings import MAX_SHOWN_CLASSES, Findings

MAX_BLENDED = 10
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Rows and columns of the picture that leads from real images to new ones."""


def render_report(findings: Findings) -> str:
    """Return the page. A section appears if the method can do what it shows."""
    sections = [
        section(title, functools.partial(make, findings))
        for title, make in (
            ("New images", _samples),
            ("Nearest real images", _nearest),
            ("Held-out images and how they come back", _reconstructions),
            ("From word to word", _interpolations),
            ("From real images to new ones", _blends),
            ("New classes", new_classes_section),
            ("Figures", _figures),
            ("Training", _training),
            ("Images and words in one space", _latents),
            ("Codebook", _codebooks),
            ("Settings", _settings),
            ("Do it again", _commands),
            ("Cite", _citations),
            ("Verdicts", _verdicts),
        )
    ]
    return page(findings.title, _header(findings) + "".join(sections), findings.versions)


def _header(findings: Findings) -> str:
    held = 0 if findings.held_out is None else len(findings.held_out)
    spec, config = findings.method.spec, findings.config
    seconds = sum(float(stage.get("seconds", 0)) for stage in findings.stages)
    steps = sum(int(stage.get("steps", 0)) for stage in findings.stages)
    kind = "grey" if spec.channels == 1 else "colour"
    names = ", ".join(spec.class_names[:20]) + (", ..." if spec.n_classes > 20 else "")
    text = (
        "none"
        if spec.text is None
        else spec.text.encoder_name + ("" if spec.text.has_meaning else " (no meaning)")
    )
    facts = [
        ("method", f"{findings.run.info.method}, preset {config.get('preset', 'unknown')}"),
        ("data", findings.data_name),
        (
            "real images",
            f"{findings.images_per_class} per class: {len(findings.train)} trained on, {held} held out",
        ),
        ("classes", f"{spec.n_classes}: {names}"),
        ("images", f"{spec.height} x {spec.width} pixels, {kind}"),
        ("words", text),
        ("training", f"{steps} steps, {seconds / 60:.1f} minutes" if steps else "unknown"),
        ("model", f"{findings.parameters:,} numbers"),
    ]
    if findings.evaluation is not None:
        facts.append(("verdicts", f"{summary(findings.evaluation.verdicts)} (at the end of this page)"))
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    warnings = "".join(warning(text) for text in findings.warnings)
    return f"<h1>{escape(findings.title)}</h1>\n<dl>{items}</dl>\n{warnings}"


def _samples(findings: Findings) -> str:
    generated = findings.generated
    picture = class_grid(
        generated.images, generated.labels, generated.class_names, findings.per_class, scale=_scale(findings)
    )
    more = ""
    if len(generated.class_names) > MAX_SHOWN_CLASSES:
        more = f" The first {MAX_SHOWN_CLASSES} of {len(generated.class_names)} classes."
    command = f"fewgen generate {findings.shown_path} -n {findings.per_class} --out grid.png"
    caption = f"Not chosen: the first {findings.per_class} of each class, as {command} makes them.{more}"
    return figure(png(picture), "new images, one row per class", caption, pixels=True)


def _nearest(findings: Findings) -> str:
    """Show the new images that are nearest to real ones: the eye is the best judge of a copy."""
    if findings.evaluation is not None and findings.evaluation.worst:
        return pairs_figure(findings.evaluation)
    new = findings.generated.images.flatten(1).float() / 255
    real = findings.train.images.flatten(1).float() / 255
    distances, nearest = torch.cat([torch.cdist(part, real) for part in new.split(256)]).min(dim=1)
    worst = distances.argsort()[:10]
    picture = pairs(
        findings.generated.images[worst],
        findings.train.images[nearest[worst]],
        columns=10,
        labels=("new", "real"),
        scale=_scale(findings),
    )
    caption = (
        "The ten of the new images above that are nearest to a training image, by their pixels, each over "
        "that training image. Look for copies. This is a picture, not a test."
    )
    return figure(png(picture), "new images over the nearest real ones", caption, pixels=True)


def _reconstructions(findings: Findings) -> str:
    if findings.reconstructed is None:
        return ""
    originals, images = findings.reconstructed
    shown = evenly(originals.labels.tolist(), 20)
    picture = pairs(originals.images[shown], images[shown], columns=10, scale=_scale(findings))
    if findings.held_out is None:
        caption = "No image was held out, so these are training images: they look better than new ones would."
    else:
        caption = (
            "Images that were not trained on, each over its reconstruction: the best that the model can show."
        )
    return figure(png(picture), "images over their reconstructions", caption, pixels=True)


def _interpolations(findings: Findings) -> str:
    method = findings.method
    if not {"interpolate", "text"} <= method.capabilities:
        return ""
    n = method.spec.n_classes
    chosen = list(dict.fromkeys([(0, 1), (n // 2, (n // 2 + 1) % n), (n - 1, 0)]))
    figures = []
    for a, b in [pair for pair in chosen if pair[0] != pair[1]]:
        ends = class_latents(method, torch.tensor([a, b]))
        images = walk(method, ends[:1], ends[1:], torch.zeros(9, dtype=torch.int64))
        names = (method.spec.class_names[a], method.spec.class_names[b])
        picture = strip(images, names, scale=_scale(findings))
        figures.append(figure(png(picture), f"from {names[0]} to {names[1]}", "", pixels=True))
    caption = '<p class="soft">Equal steps through the latent space, without noise.</p>\n'
    return "".join(figures) + caption


def _blends(findings: Findings) -> str:
    method = findings.method
    if "blend" not in method.capabilities or not able(method, Blends).has_latents:
        return ""
    labels = torch.arange(min(method.spec.n_classes, MAX_BLENDED))
    seeds = image_seeds(0, len(labels))
    shown = [able(method, Blends).starts(labels, seeds)]
    for alpha in BLENDS:
        request = GenerationRequest(labels=labels, seeds=seeds, options={"alpha": alpha})
        shown.append(method.generate(request).images)
    heads = ["real", *(f"{alpha:g}" for alpha in BLENDS)]
    names = [method.spec.class_names[label] for label in labels.tolist()]
    cells = torch.stack(shown, 1).flatten(0, 1)
    picture = grid(cells, len(heads), names, scale=_scale(findings), heads=heads)
    columns = " ".join(heads[1:])
    command = f"fewgen generate {findings.shown_path} --alphas {columns} --out strip.png"
    caption = (
        "A training image of each class, and what becomes of it as alpha, the share of fresh noise, rises: "
        f"at 0 it comes back, at 1 the image only shares its class. More: {command}"
    )
    return figure(png(picture), "training images turning into new ones", caption, pixels=True)


def _figures(findings: Findings) -> str:
    if not findings.figures:
        return ""
    held = 0 if findings.held_out is None else len(findings.held_out)
    note = (
        f'<p class="soft">On the {held} held-out images. They also decided which weights were kept, so the '
        "figures are a little too good, and with so few images rough.</p>\n"
    )
    return table(("figure", "value", ""), findings.figures) + note


def _training(findings: Findings) -> str:
    rows = [
        (
            str(stage.get("name", "")),
            f"{stage.get('steps', 0)} of {stage.get('planned_steps', 0)}",
            f"{float(stage.get('seconds', 0)):.0f} s",
            _best(stage),
        )
        for stage in findings.stages
    ]
    stages = table(("stage", "steps", "time", ""), rows) if rows else ""
    curves = [
        figure(picture, f"curves of stage {stage}", f"Stage {stage}: each term over the steps, unweighted.")
        for stage, picture in plots.loss_curves(findings.lines)
    ]
    return stages + "".join(curves)


def _best(stage: Mapping[str, Any]) -> str:
    if stage.get("best_step") is None:
        return "last weights kept"
    early = ", stopped early" if stage.get("stopped_early") else ""
    return f"weights of step {stage['best_step']} kept (held-out figure {stage['best_value']:.4g}){early}"


def _latents(findings: Findings) -> str:
    method = findings.method
    if not {"encode", "text"} <= method.capabilities:
        return ""
    parts, labels, held = [], [], []
    with torch.no_grad():
        for images, is_held in ((findings.train, False), (findings.held_out, True)):
            if images is None:
                continue
            chosen = images.subset(evenly(images.labels.tolist(), 600))
            parts.append(able(method, Encodes).encode(chosen.floats().to(method.device)).cpu())
            labels += chosen.labels.tolist()
            held += [is_held] * len(chosen)
    words = class_latents(method, torch.arange(method.spec.n_classes)).cpu()
    picture, name = plots.latent_map(
        torch.cat(parts).float().numpy(),
        np.array(labels),
        np.array(held),
        words.float().numpy(),
        method.spec.class_names,
    )
    caption = (
        f"{name} of the latent space. Dots: training images. Triangles: held-out images. Stars: class "
        "names. A star among the dots of its colour is a word that the model can draw. Distances between "
        "groups mean little."
    )
    return figure(picture, "map of the latent space", caption)


def _codebooks(findings: Findings) -> str:
    usage = getattr(findings.method, "codebook_usage", None)
    if usage is None:
        return ""
    # A method that reads no images tells which codes its own new images use.
    where = "on the training images" if "encode" in findings.method.capabilities else "by new images"
    parts = []
    for name, counts in usage(findings.train).items():
        used = int((counts > 0).sum())
        caption = (
            f"{name}: {used} of {len(counts)} codes are used {where}; perplexity "
            f"{plots.perplexity(counts):.1f}."
        )
        parts.append(figure(plots.usage_bars(counts), f"usage of codebook {name}", caption))
    return "".join(parts)


def _settings(findings: Findings) -> str:
    rows = [(key, shown(value)) for key, value in flat(findings.config)]
    if not rows:
        return ""
    return folded(f"{len(rows)} settings", table(("setting", "value"), rows))


def _commands(findings: Findings) -> str:
    if not findings.command:
        return ""
    config = shlex.quote(str(findings.run.path / "config.yaml"))
    note = (
        "<p>Every setting, also those without a flag: "
        f"<code>{escape(f'fewgen train --config {config} --out NEW_RUN')}</code>.</p>\n"
    )
    return f"<pre>{escape(findings.command)}</pre>\n{note}"


def _verdicts(findings: Findings) -> str:
    """End with what the evidence says; the nearest pairs have their place further up."""
    if findings.evaluation is None:
        return fault_section(findings.evaluation_fault) if findings.evaluation_fault else ""
    n = len(findings.evaluation.generated)
    command = f"fewgen evaluate {findings.shown_path}"
    note = (
        f'<p class="soft">On {n} new images. More images, and whether they help a classifier: '
        f"<code>{escape(command)}</code>.</p>\n"
    )
    return note + evidence_section(findings.evaluation, with_pairs=not findings.evaluation.worst)


def _citations(findings: Findings) -> str:
    return f"<pre>{escape(bibtex(findings.citations))}</pre>\n" if findings.citations else ""


# ------------------------------------------------------------------------------------------- pieces


def _scale(findings: Findings) -> int:
    """Return how much to enlarge images: a row of ten should fill a page, not more."""
    return max(1, round(64 / max(findings.method.spec.height, findings.method.spec.width)))
