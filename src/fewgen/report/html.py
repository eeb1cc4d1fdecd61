"""`report.html`: one file with everything inside, readable on a phone, in light and dark."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewgen.generation.pictures import class_grid, grid, pairs, strip
from fewgen.report import plots
from fewgen.report.citations import bibtex
from fewgen.report.evidence import EvidenceView
from fewgen.report.new_classes import NewClassesView
from fewgen.report.page import render, versions
from fewgen.runs.findings import BLENDS, Checkpoints, Findings

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def render_report(findings: Findings) -> str:
    """Return the page. A section appears if there is something to show in it."""
    return render(
        "report.html.jinja",
        title=findings.title,
        findings=findings,
        faults=defaultdict(str, findings.faults),
        spec=findings.method.spec,
        view=ReportView(findings),
        plots=plots,
        evidence=None if findings.evaluation is None else EvidenceView(findings.evaluation),
        new_classes=NewClassesView(findings),
        alphas=[f"{alpha:g}" for alpha in BLENDS],
        bibtex=bibtex(findings.citations),
        versions=versions(),
    )


@dataclass(frozen=True)
class ReportView:
    """The pictures of the page, each drawn when its section asks for it."""

    findings: Findings

    @property
    def scale(self) -> int:
        """How much to enlarge images: a row of ten should fill a page, not more."""
        spec = self.findings.method.spec
        return max(1, round(64 / max(spec.height, spec.width)))

    def samples(self) -> Image:
        """Return new images, a row per class."""
        made = self.findings.generated
        return class_grid(made.images, made.labels, made.class_names, self.findings.per_class, self.scale)

    def nearest(self, pair: tuple[Tensor, Tensor]) -> Image:
        """Return new images over the training images nearest to them."""
        return pairs(*pair, columns=10, labels=("new", "real"), scale=self.scale)

    def reconstructions(self) -> Image:
        """Return images over their reconstructions, a few of each class."""
        from fewgen.data.imageset import evenly

        assert self.findings.reconstructed is not None
        originals, images = self.findings.reconstructed
        shown = evenly(originals.labels.tolist(), 20)
        return pairs(originals.images[shown], images[shown], columns=10, scale=self.scale)

    def walk(self, names: tuple[str, str], images: Tensor) -> Image:
        """Return the way from one class to another."""
        return strip(images, names, self.scale)

    def blends(self, images: Tensor, heads: list[str]) -> Image:
        """Return a row per training image: itself, then what becomes of it."""
        names = self.findings.method.spec.class_names[: len(images)]
        return grid(images.flatten(0, 1), len(heads), names, self.scale, heads)

    def checkpoints(self, found: Checkpoints) -> Image:
        """Return the images of fixed seeds, a row for each checkpoint."""
        import torch
        from PIL import Image as PillowImage

        from fewgen.data.transforms import from_pillow

        spec, rows = self.findings.method.spec, []
        for path in found.pictures.values():
            with PillowImage.open(path) as picture:
                rows.append(torch.tensor(from_pillow(picture.convert("L" if spec.channels == 1 else "RGB"))))
        cells = torch.stack([cell for row in rows for cell in row.split(spec.width, dim=2)])
        names = [f"{step:,}{' (kept)' if step == found.kept else ''}" for step in found.pictures]
        return grid(cells, rows[0].shape[2] // spec.width, names, self.scale)

    def latents(self) -> tuple[bytes, str]:
        """Return the map of the latent space and the name of its projection."""
        found = self.findings.latents
        assert found is not None
        return plots.latent_map(
            found.images.numpy(),
            found.labels.numpy(),
            found.held_out.numpy(),
            found.words.numpy(),
            self.findings.method.spec.class_names,
        )
