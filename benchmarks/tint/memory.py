"""Memory of null-text inversion over the number of supports."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from benchmarks.ablation import Column
from benchmarks.memory import forget_peak, peak_megabytes, resident_megabytes
from benchmarks.tint.models import base_folder, opened
from benchmarks.tint.settings import Row, of_row
from benchmarks.tint.tasks import Task
from fewgen.config.schema import from_dict
from fewgen.diffusion.settings import SpecialiseConfig

COLUMNS: tuple[Column, ...] = (
    ("growth, MiB", "growth_megabytes", 1, 1),
    ("process, MiB", "peak_megabytes", 1, 0),
    ("null texts and pivots, MiB", "kept_megabytes", 1, 1),
)


def memory_figures(task: Task, row: Row) -> dict[str, Any]:
    """Return the memory of null-text inversion, measured in a process of its own."""
    own = of_row(task.data, row, task.settings)
    n = int(own["supports"])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(_measure_memory, str(base_folder(task.data, task.settings)), own, n).result()


def _measure_memory(folder: str, own: dict[str, Any], n: int) -> dict[str, Any]:
    """Invert `n` images of noise: what they show does not matter for the memory."""
    from fewgen.diffusion.specialisation import find_latents

    torch.set_num_threads(1)
    pipe, config = opened(folder), from_dict(SpecialiseConfig, own["tint"])
    # One image first: whatever the library sets up at its first use is no part of the growth. More than one
    # inner step and no tolerance, so that all rows do the same work.
    config = replace(
        config,
        null_text=replace(config.null_text, inner_steps=2, tol=0.0),
        # Guidance is what null texts are for.
        guidance_scale=config.guidance_scale if config.guidance_scale != 1 else 2.0,
    )

    def invert(images: Tensor) -> tuple[Tensor, Tensor | None]:
        context = pipe.embed([""]).detach().expand(len(images), -1, -1)
        return find_latents(pipe, images, context, config, rng=torch.Generator().manual_seed(0))

    rng = torch.Generator().manual_seed(1)
    images = 0.5 * torch.randn((n, *pipe.latent_shape), generator=rng)
    invert(images[:1])
    before = resident_megabytes()
    forget_peak()
    _, nulls = invert(images)
    peak = peak_megabytes()
    assert nulls is not None
    pivots = (config.steps + 1) * images.numel() * images.element_size()
    kept = (nulls.numel() * nulls.element_size() + pivots) / 2**20
    return {
        "growth_megabytes": None if before is None else peak - before,
        "peak_megabytes": peak,
        "kept_megabytes": kept,
        "cpu_seconds": time.process_time(),
    }
