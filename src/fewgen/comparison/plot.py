"""Quality against copying, one marker per generator: good generators are low and at the left."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from fewgen.comparison.summary import HELD_OUT

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Told apart with every kind of colour vision.

Source: Okabe & Ito 2008, "Color Universal Design" (without the yellow, which is faint on white).
"""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def quality_against_copying(summary: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """Return a PNG: share of near copies across, Frechet distance up, spread over seeds as bars.

    Colour, marker and a label tell generators apart; the label alone would do.

    Returns:
        None if no generator has both figures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {
        name: (own["figures"]["copy_share"], own["figures"]["frechet_distance"])
        for name, own in summary.items()
        if {"copy_share", "frechet_distance"} <= set(own["figures"])
    }
    if not shown:
        return None
    figure = Figure(figsize=(7.5, 5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (name, (copies, quality)) in enumerate(shown.items()):
        real = name == HELD_OUT
        x, y = 100 * copies["mean"], quality["mean"]
        axes.errorbar(
            x,
            y,
            xerr=None if copies["spread"] is None else 100 * copies["spread"],
            yerr=quality["spread"],
            fmt="+" if real else MARKERS[i % len(MARKERS)],
            color="#777777" if real else COLOURS[i % len(COLOURS)],
            markersize=9,
            capsize=3,
            linewidth=1,
            label=name,
        )
        axes.annotate(name, (x, y), xytext=(7, 5), textcoords="offset points", fontsize=8)
    values = [quality["mean"] for _, quality in shown.values()]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    # Labels of markers at the right edge need room.
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, -2), right + 0.25 * (right - left))
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 100])
    axes.set_xlabel("near copies of training images, %")
    axes.set_ylabel("Frechet distance to held-out images (lower is nearer)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
