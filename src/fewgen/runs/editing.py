"""What single codes do to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewgen.config.keywords import refuse_ignored, whole
from fewgen.config.surroundings import own_surroundings
from fewgen.data.one_image import is_image_file
from fewgen.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from fewgen.runs.run import Run

MOST = 8
"""Codes of each place in the overview."""


@dataclass
class Edited:
    """An image, and what codes make of it.

    Attributes:
        original: as the model gives it back, uint8 (1, C, H, W).
        images: with each code, uint8 (R, K, C, H, W), a row for each place.
        layers: places of the rows: layers, or parts of layers.
        codes: K numbers for each row.
    """

    original: Tensor
    images: Tensor
    layers: list[int]
    codes: list[list[int]]

    def picture(self) -> Image:
        """Return a row for each place: the image, then one with each code."""
        import torch

        from fewgen.generation.pictures import grid

        rows, k = self.images.shape[:2]
        cells = torch.cat([self.original[None].expand(rows, -1, -1, -1, -1), self.images], 1)
        heads = ["image", *(str(code) for code in self.codes[0])] if rows == 1 else None
        labels = [
            f"layer {layer}" if rows == 1 else f"{layer}: {' '.join(str(code) for code in own)}"
            for layer, own in zip(self.layers, self.codes, strict=True)
        ]
        return grid(cells.flatten(0, 1), k + 1, labels, heads=heads)


@own_surroundings()
def edited(
    run: Run,
    *,
    image: str | Path | None = None,
    layer: int | None = None,
    codes: Sequence[int] | None = None,
    most_used: bool = False,
    strength: float = 1.0,
    fit: str = "crop",
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Edited:
    """Return an image with single codes; see `fewgen.edit`.

    Raises:
        ConfigError: the run's method has no codes, or there is no such layer or code.
        DataError: the image is no image file.
        OutputError: the output is no picture, or exists.
    """
    import torch

    from fewgen.data.imageset import to_uint8
    from fewgen.data.registry import Reading
    from fewgen.generation import check_output, write_picture
    from fewgen.generation.writers import output_kind
    from fewgen.methods.abilities import Edits, able
    from fewgen.nn.modes import evaluating

    method = able(run.method, Edits)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise ConfigError(f"strength must be a finite number, got {strength!r}.")
    if out is not None:
        if output_kind(out) != "png":
            raise OutputError(f'"{out}": edited images are written as one picture, .png.')
        check_output(out, overwrite)
    if image is None:
        refuse_ignored("without --image", {"fit": fit}, {"fit": "crop"}, "fit")
    rows = _rows(method.code_counts, layer, codes, most_used)
    x = None
    if image is not None:
        if not is_image_file(image):
            raise DataError(f'"{image}" is no image file. Name one with --image, such as photo.png.')
        x = run._images_for(image, Reading(fit=fit)).floats()
    with torch.no_grad(), evaluating(run.method):
        made = [to_uint8(method.with_code(x, row, torch.tensor(own), strength)) for row, own in rows.items()]
        plain = to_uint8(method.with_code(x, 0, torch.tensor([0]), 0.0))
    found = Edited(plain.cpu(), torch.stack(made).cpu(), list(rows), list(rows.values()))
    if out is not None:
        shown = {
            "method": run.method.name,
            "run": run.path.name,
            "image": None if image is None else str(image),
        }
        write_picture(out, found.picture(), {**shown, "layers": found.layers, "codes": found.codes})
    return found


def _rows(
    counts: Tensor, layer: int | None, codes: Sequence[int] | None, most_used: bool
) -> dict[int, list[int]]:
    """Return place -> codes to show."""
    n_layers, n_codes = counts.shape
    if most_used:
        given = {"layer": layer, "codes": codes}
        refuse_ignored("with --list, which shows every place", given, dict.fromkeys(given), *given)
        order = counts.argsort(dim=1, descending=True, stable=True)
        return dict(enumerate(order[:, : min(MOST, n_codes)].tolist()))
    if layer is None or not codes:
        raise ConfigError(
            "Say which codes of which layer, such as --layer 0 --codes 17 40; --list shows those that images "
            "have most often."
        )
    if whole("layer", layer, 0) >= n_layers:
        raise ConfigError(f"layer is {layer}, but an image has codes 0 to {n_layers - 1}.")
    own = [whole("codes", code, 0) for code in codes]
    if max(own) >= n_codes:
        raise ConfigError(f"There is no code {max(own)}: codes are numbered 0 to {n_codes - 1}.")
    return {int(layer): own}
