"""`report.html`: one file with everything inside, readable on a phone, in light and dark."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fewgen.data.imageset import evenly, to_uint8
from fewgen.generate.pictures import class_grid, pairs, strip
from fewgen.report import plots
from fewgen.report.citations import bibtex
from fewgen.report.findings import MAX_SHOWN_CLASSES, Findings

if TYPE_CHECKING:
    from PIL.Image import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #60646c; --paper: #ffffff; --card: #f5f5f4;
  --line: #dddddb; --warn: #fff3d6; --warn-ink: #6b4a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --soft: #a5a9b0; --paper: #17181a;
  --card: #222427; --line: #383b40; --warn: #43370f; --warn-ink: #ffe3a0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: .5rem 0 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); font-size: .9rem; }
figure { margin: .6rem 0; padding: .5rem; background: #fff; border: 1px solid var(--line);
  border-radius: .4rem; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure img.pixels { image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: .85rem; margin: 0 0 .6rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0;
  border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; } .warn { background: var(--warn); color: var(--warn-ink);
  padding: .5rem .8rem; border-radius: .4rem; margin: .6rem 0; }
pre { background: var(--card); padding: .6rem; border-radius: .4rem; overflow-x: auto; font-size: .82rem; }
details { margin: .4rem 0; } summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem; margin: .8rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The page needs nothing from outside, and says so to the browser."""


def render_report(findings: Findings) -> str:
    """Return the page. A section appears if the method can do what it shows."""
    sections = [
        _section(title, make, findings)
        for title, make in (
            ("New images", _samples),
            ("Nearest real images", _nearest),
            ("Held-out images and how they come back", _reconstructions),
            ("From word to word", _interpolations),
            ("Figures", _figures),
            ("Training", _training),
            ("Images and words in one space", _latents),
            ("Codebook", _codebooks),
            ("Settings", _settings),
            ("Do it again", _commands),
            ("Cite", _citations),
        )
    ]
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(findings.title)} - fewgen</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + _header(findings)
        + "".join(sections)
        + f'<p class="soft">Made by {escape(findings.versions)}.</p>\n</body>\n</html>\n'
    )


def _section(title: str, make: Callable[[Findings], str], findings: Findings) -> str:
    """Return a section, or nothing if there is nothing to show.

    A fault in one section must not cost the others, least of all after hours of training.
    """
    try:
        body = make(findings)
    except Exception as error:
        body = (
            f'<p class="warn">This section could not be made: {escape(type(error).__name__)}: '
            f"{escape(str(error))}</p>\n"
        )
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


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
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    warnings = "".join(f'<p class="warn">{escape(text)}</p>\n' for text in findings.warnings)
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
    return _figure(_png(picture), "new images, one row per class", caption, pixels=True)


def _nearest(findings: Findings) -> str:
    """Show the new images that are nearest to real ones: the eye is the best judge of a copy."""
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
    return _figure(_png(picture), "new images over the nearest real ones", caption, pixels=True)


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
    return _figure(_png(picture), "images over their reconstructions", caption, pixels=True)


def _interpolations(findings: Findings) -> str:
    method = findings.method
    if not {"interpolate", "text"} <= method.capabilities:
        return ""
    n = method.spec.n_classes
    chosen = list(dict.fromkeys([(0, 1), (n // 2, (n // 2 + 1) % n), (n - 1, 0)]))
    figures = []
    with torch.no_grad():
        for a, b in [pair for pair in chosen if pair[0] != pair[1]]:
            vectors = method.class_vectors(torch.tensor([a, b]))
            ends = method.encode_text(vectors)  # type: ignore[operator]
            weights = torch.linspace(0, 1, 9, device=ends.device).unsqueeze(1)
            latents = (1 - weights) * ends[:1] + weights * ends[1:]
            images = method.decode(latents, torch.zeros(9, dtype=torch.int64), 0.0)  # type: ignore[operator]
            names = (method.spec.class_names[a], method.spec.class_names[b])
            picture = strip(to_uint8(images).cpu(), names, scale=_scale(findings))
            figures.append(_figure(_png(picture), f"from {names[0]} to {names[1]}", "", pixels=True))
    caption = '<p class="soft">Equal steps through the latent space, without noise.</p>\n'
    return "".join(figures) + caption


def _figures(findings: Findings) -> str:
    if not findings.figures:
        return ""
    held = 0 if findings.held_out is None else len(findings.held_out)
    note = (
        f'<p class="soft">On the {held} held-out images. They also decided which weights were kept, so the '
        "figures are a little too good, and with so few images rough.</p>\n"
    )
    return _table(("figure", "value", ""), findings.figures) + note


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
    table = _table(("stage", "steps", "time", ""), rows) if rows else ""
    curves = [
        _figure(picture, f"curves of stage {stage}", f"Stage {stage}: each term over the steps, unweighted.")
        for stage, picture in plots.loss_curves(findings.lines)
    ]
    return table + "".join(curves)


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
            parts.append(method.encode(chosen.floats().to(method.device)).cpu())  # type: ignore[operator]
            labels += chosen.labels.tolist()
            held += [is_held] * len(chosen)
        vectors = method.class_vectors(torch.arange(method.spec.n_classes))
        words = method.encode_text(vectors).cpu()  # type: ignore[operator]
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
    return _figure(picture, "map of the latent space", caption)


def _codebooks(findings: Findings) -> str:
    usage = getattr(findings.method, "codebook_usage", None)
    if usage is None:
        return ""
    parts = []
    for name, counts in usage(findings.train).items():
        used = int((counts > 0).sum())
        caption = (
            f"{name}: {used} of {len(counts)} codes are used on the training images; perplexity "
            f"{plots.perplexity(counts):.1f}."
        )
        parts.append(_figure(plots.usage_bars(counts), f"usage of codebook {name}", caption))
    return "".join(parts)


def _settings(findings: Findings) -> str:
    rows = [(key, _value(value)) for key, value in _flat(findings.config)]
    if not rows:
        return ""
    return f"<details><summary>{len(rows)} settings</summary>{_table(('setting', 'value'), rows)}</details>\n"


def _commands(findings: Findings) -> str:
    if not findings.command:
        return ""
    config = shlex.quote(str(findings.run.path / "config.yaml"))
    note = (
        "<p>Every setting, also those without a flag: "
        f"<code>{escape(f'fewgen train --config {config} --out NEW_RUN')}</code>.</p>\n"
    )
    return f"<pre>{escape(findings.command)}</pre>\n{note}"


def _citations(findings: Findings) -> str:
    return f"<pre>{escape(bibtex(findings.citations))}</pre>\n" if findings.citations else ""


# ------------------------------------------------------------------------------------------- pieces


def _scale(findings: Findings) -> int:
    """Return how much to enlarge images: a row of ten should fill a page, not more."""
    return max(1, round(64 / max(findings.method.spec.height, findings.method.spec.width)))


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _figure(png: bytes, alt: str, caption: str, pixels: bool = False) -> str:
    data = base64.b64encode(png).decode("ascii")
    kind = ' class="pixels"' if pixels else ""
    text = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
    image = f'<img{kind} alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}</figure>\n{text}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>\n'


def _flat(values: Mapping[str, Any], where: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{name}.")
        else:
            rows.append((name, value))
    return rows


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value)
    return str(value)
