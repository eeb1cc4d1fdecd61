"""Plots of a report, as PNG bytes; matplotlib without its global state, so nothing leaks between calls.

Projecting latents into a plane and counting codes in use are part of drawing: they choose what is seen.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panels = dict[str, list[tuple[str, list[tuple[int, float]]]]]
"""Name of a panel -> its curves: "training", "held out" or "measured", and (step, value)."""

BLUE, ORANGE = "#3465a4", "#cc5500"
NOT_A_LOSS = ("lr", "norm", "grad_norm", "seconds")
BASE_KEYS = ("kind", "stage", "step", "total_step", "seconds")
OBJECTIVE = ("objective", "loss")
"""What methods call the held-out loss, which is the total of the first phase on other images."""
_SUFFIX = {"training": "_train", "held out": "_held_out"}
"""Ends of the names of figures that a method measures on both sides, such as a discriminator's accuracy."""


def loss_curves(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, bytes]]:
    """Return (stage, picture) for each stage: one small plot per term, training and held-out.

    Terms have scales of their own, so each gets its own axes.
    """
    stages = dict.fromkeys(str(line["stage"]) for line in lines if "stage" in line)
    found = {stage: curves_of(lines, stage) for stage in stages}
    return [(stage, _panels(panels)) for stage, panels in found.items() if panels]


def curves_of(lines: Sequence[Mapping[str, Any]], stage: str) -> Panels:
    """Return name of a panel -> its curves, training and held-out; what is the same figure shares a panel."""
    panels: Panels = {}
    for name, points in _series(lines, stage, "train").items():
        panels.setdefault(name, []).append(("training", points))
    held_out = _series(lines, stage, "held_out")
    # Where a method names the side of its figures, those without one are of what it draws.
    sided = any(name.endswith(tuple(_SUFFIX.values())) for name in held_out)
    for name, points in held_out.items():
        side = next((end for end in ("training", "held out") if name.endswith(_SUFFIX[end])), None)
        if side is not None:
            panels.setdefault(name.removesuffix(_SUFFIX[side]), []).append((side, points))
            continue
        same = "total" if name in OBJECTIVE else name
        home = next((panel for panel in panels if panel.split("/")[-1] == same), name)
        panels.setdefault(home, []).append(("measured" if sided else "held out", points))
    return panels


def _series(lines: Sequence[Mapping[str, Any]], stage: str, kind: str) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in lines:
        if line.get("kind") != kind or line.get("stage") != stage:
            continue
        for name, value in line.items():
            if name in BASE_KEYS or name.split("/")[-1] in NOT_A_LOSS:
                continue
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                series[name].append((int(line["step"]), float(value)))
    return {name: points for name, points in series.items() if len(points) > 1 or kind == "held_out"}


def _panels(panels: Panels) -> bytes:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(2.6 * columns, 1.9 * rows)
    styles: dict[str, dict[str, Any]] = {
        "training": {"color": BLUE},
        "held out": {"color": ORANGE, "marker": "o", "markersize": 2.5},
        "measured": {"color": "grey", "marker": "o", "markersize": 2.5},
    }
    for index, (name, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        for kind, points in curves:
            steps, heights = zip(*points, strict=True)
            axes.plot(steps, heights, linewidth=1.2, label=kind, **styles[kind])
        values = [value for _, points in curves for _, value in points]
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
    used = {kind for curves in panels.values() for kind, _ in curves}
    handles = [Line2D([], [], label=kind, **styles[kind]) for kind in styles if kind in used]
    figure.legend(handles=handles, loc="upper right", fontsize=7, frameon=False, ncols=3)
    return _png(figure, top=0.95 if rows > 1 else 0.9)


def checkpoints(lines: Sequence[Mapping[str, Any]], kept: int) -> bytes:
    """Return the held-out distance and the copy share of the images of each checkpoint.

    Args:
        lines: of metrics.jsonl, kind checkpoint.
        kept: the step whose weights were kept.
    """
    steps = [line["step"] for line in lines]
    figure = _figure(7.2, 3.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.errorbar(
        steps,
        [line["distance"] for line in lines],
        [line["error"] for line in lines],
        color=BLUE,
        marker="o",
        markersize=4,
        linewidth=1.2,
        capsize=2,
        label="drawn images",
    )
    above.axhline(lines[-1]["real_distance"], color=ORANGE, linestyle="--", label="training images")
    above.set_ylabel("held-out distance", fontsize=8)
    below.plot(
        steps,
        [100 * line["copy_share"] for line in lines],
        color=BLUE,
        marker="o",
        markersize=4,
        linewidth=1.2,
    )
    below.axhline(100 * lines[-1]["real_copy_share"], color=ORANGE, linestyle="--", label="held-out images")
    below.set_ylabel("copies, %", fontsize=8)
    below.set_xlabel("steps", fontsize=8)
    below.set_ylim(0, max(5.0, *(110 * line["copy_share"] for line in lines)))
    for axes in (above, below):
        axes.axvline(kept, color="grey", linewidth=5, alpha=0.3, label="kept" if axes is above else None)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, frameon=False)
    return _png(figure)


def latent_map(
    images: np.ndarray,
    labels: np.ndarray,
    held_out: np.ndarray,
    words: np.ndarray,
    class_names: Sequence[str],
) -> tuple[bytes, str]:
    """Return a picture of the latent space in two dimensions, and the name of the projection.

    Args:
        images: latents of images, (N, L).
        labels: their classes, (N,).
        held_out: whether each image was held out, (N,) bool.
        words: latents of the class names, (K, L).
        class_names: (K,).
    """
    both = np.concatenate([images, words]).astype(np.float64)
    points, name = _project(both, int(np.bincount(labels).max()) if len(labels) else 0)
    picture_points, word_points = points[: len(images)], points[len(images) :]
    figure, axes = _axes(5.4)
    colours = _colours(len(class_names))
    for label in range(len(class_names)):
        colour = colours[label]
        for mask, marker in ((~held_out, "."), (held_out, "^")):
            chosen = picture_points[(labels == label) & mask]
            if len(chosen):
                axes.scatter(
                    chosen[:, 0], chosen[:, 1], s=16, color=colour, marker=marker, alpha=0.7, linewidths=0
                )
        x, y = word_points[label]
        axes.scatter(x, y, s=70, color=colour, marker="*", edgecolors="black", linewidths=0.7)
        if len(class_names) <= 30:
            axes.annotate(
                _plain(class_names[label]),
                word_points[label],
                xytext=(5, 5),
                textcoords="offset points",
                fontsize=8,
                parse_math=False,
            )
    axes.set_xticks([])
    axes.set_yticks([])
    return _png(figure), name


def _project(points: np.ndarray, per_class: int) -> tuple[np.ndarray, str]:
    """Return the points in two dimensions; UMAP where it is installed, else t-SNE."""
    if points.shape[1] < 2 or len(points) < 5:
        padded = np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))
        return padded[:, :2], "the first two numbers"
    try:
        import umap
    except Exception:  # a broken install must not cost the report
        from sklearn.manifold import TSNE

        # More neighbours than a class has images would draw each class together into one point.
        perplexity = min(30.0, max(5.0, per_class / 5), (len(points) - 1) / 3)
        # Not every platform's solver is the same to the last bit, so the picture may differ in details.
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points), "t-SNE"
    reducer = umap.UMAP(n_neighbors=min(15, len(points) - 1), random_state=0)
    return np.asarray(reducer.fit_transform(points)), "UMAP"


def usage_bars(counts: Tensor) -> bytes:
    """Return how often each code is used, most used first."""
    values = np.sort(counts.numpy())[::-1]
    figure, axes = _axes(1.6, "codes, most used first", size=7)
    axes.fill_between(np.arange(len(values) + 1), np.append(values, values[-1]), step="post", color=BLUE)
    axes.set_xlim(0, len(values))
    axes.set_ylim(0, None)
    return _png(figure)


def learning_curve(points: Sequence[tuple[float, float]], level: float | None) -> bytes:
    """Return accuracy over the number of real images per class.

    Args:
        points: (images per class, accuracy), in rising order.
        level: accuracy to compare with, as a line across; or None.
    """
    from matplotlib.ticker import NullFormatter

    counts, accuracies = zip(*points, strict=True)
    figure, axes = _axes(3.2, "real images per class", "accuracy")
    axes.plot(counts, accuracies, marker="o", color=BLUE, label="real images alone")
    if level is not None:
        axes.axhline(level, color=ORANGE, label="with the generated images")
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:g}" for count in counts])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=7, frameon=False)
    return _png(figure)


def adaptation_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """Return the loss over the number of updates, a line for each group of classes.

    Args:
        curves: name of a line -> (updates, loss), in rising order of the updates.
    """
    figure, axes = _axes(2.8, "updates", "loss on other images")
    every = sorted({k for points in curves.values() for k, _ in points})
    # Numbers such as 0, 1, 5, 20, 50 stand at even distances: a logarithm has no place for 0.
    place = {k: i for i, k in enumerate(every)}
    for i, (name, points) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": (BLUE, ORANGE)[i % 2], "linestyle": ("-", "--")[i % 2]}
        axes.plot([place[k] for k, _ in points], [y for _, y in points], marker="o", label=name, **style)
    axes.set_xticks(range(len(every)), [str(k) for k in every])
    axes.legend(fontsize=7, frameon=False)
    return _png(figure)


def perplexity(counts: Tensor) -> float:
    """Return exp of the entropy of code usage: the number of codes in effective use."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return math.exp(float(torch.special.entr(shares).sum()))


def _colours(n: int) -> list[Any]:
    import matplotlib

    table = matplotlib.colormaps["tab10" if n <= 10 else "tab20" if n <= 20 else "gist_rainbow"]
    return [table(i) if n <= 20 else table(i / max(1, n - 1)) for i in range(n)]


def _plain(text: str) -> str:
    cleaned = " ".join(text.split())
    return cleaned if len(cleaned) <= 24 else cleaned[:23] + "…"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _axes(height: float, across: str = "", up: str = "", size: int = 8) -> tuple[Figure, Axes]:
    """Return a figure as wide as the page, and its axes with their names.

    Args:
        height: in inches.
        across: name of the horizontal axis.
        up: name of the vertical axis.
        size: of these names, in points.
    """
    figure = _figure(7.2, height)
    axes = figure.add_subplot()
    axes.set_xlabel(across, fontsize=size)
    axes.set_ylabel(up, fontsize=size)
    axes.tick_params(labelsize=size - 1)
    return figure, axes


def _png(figure: Figure, top: float = 1.0) -> bytes:
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # class names in scripts that the bundled font lacks
        figure.tight_layout(rect=(0, 0, 1, top))
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
