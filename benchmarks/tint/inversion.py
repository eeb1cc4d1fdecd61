"""How well supports come back."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.ablation import Column
from benchmarks.tint.making import learned
from benchmarks.tint.models import pipe_of
from benchmarks.tint.settings import DEFAULT, Row, of_row
from benchmarks.tint.tasks import Task
from fewgen.config.schema import from_dict
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.fitting.seeds import make_rng

COLUMNS: tuple[Column, ...] = (
    ("error x1000", "error", 1000, 3),
    ("factor", "factor", 1, 1),
    ("without null texts x1000", "plain_error", 1000, 3),
    ("unguided (w = 1) x1000", "unguided_error", 1000, 3),
    ("RMS of z_T", "rms", 1, 2),
    ("lowest RMS", "lowest_rms", 1, 2),
    ("inversion, s per image", "seconds_per_image", 1, 2),
)


def inversion_figures(task: Task, row: Row) -> dict[str, Any]:
    """Return how well a task's supports come back."""
    from fewgen.diffusion.inversion import ddim_invert, latent_rms, null_text_inversion, reconstruct
    from fewgen.diffusion.specialisation import encode_images

    settings, pipe = task.settings, pipe_of(task.data, task.settings)
    config = from_dict(SpecialiseConfig, of_row(task.data, row, settings)["tint"])
    # Words do not depend on guidance and null texts: those of the usual settings serve every row.
    words, _ = learned(task, of_row(task.data, DEFAULT, settings)["tint"])
    steps, guidance_scale, batch = config.steps, config.guidance_scale, config.batch
    supports = [task.supports(c) for c in range(task.n_way)]
    z0 = encode_images(pipe, torch.cat(supports), batch=batch)
    with torch.no_grad():
        context = torch.cat(
            [word.context(pipe).expand(len(own), -1, -1) for word, own in zip(words, supports, strict=True)]
        )
        wanted = pipe.decode(z0).float()
    rng = make_rng("cpu", task.seed, "tint ablation", "dequant")
    started = time.perf_counter()
    pivots = ddim_invert(pipe, z0, context, steps, dequant_t=config.dequant_t, rng=rng, batch=batch)
    z_T = pivots[-1]
    corrected = guidance_scale != 1 and config.null_text.inner_steps > 0
    nulls = (
        null_text_inversion(pipe, pivots, context, guidance_scale, config.null_text, batch=batch)
        if corrected
        else None
    )
    seconds = time.perf_counter() - started

    def error(u: Tensor | None, w: float) -> float:
        back = reconstruct(pipe, z_T, context, u, w, steps, batch=batch)
        with torch.no_grad():
            return float((pipe.decode(back).float() - wanted).double().square().mean())

    plain = error(None, guidance_scale)
    own = plain if nulls is None else error(nulls, guidance_scale)
    rms = latent_rms(z_T)
    return {
        "error": own,
        "plain_error": plain,
        "factor": plain / own if own else None,
        "unguided_error": plain if guidance_scale == 1 else error(None, 1.0),
        "rms": float(rms.mean()),
        "lowest_rms": float(rms.min()),
        "seconds_per_image": seconds / len(z0),
    }
