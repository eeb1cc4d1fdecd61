"""New images of a class by noising a given one to a random time and denoising it with the learned word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewgen.diffusion.calls import check_batch, decode_latents, encode_images, frozen, place_of
from fewgen.diffusion.inversion import check_inversion
from fewgen.diffusion.specialisation import Specialisation, choose_supports, seed_rows
from fewgen.generation.noise import noise, uniform

if TYPE_CHECKING:
    from fewgen.diffusion.pipeline import TextToImage

_START = 3
"""Random stream of the step that an image starts at."""


def start_steps(seeds: Tensor | Sequence[int], steps: int) -> Tensor:
    """Return at which step each image starts, int64 (N,), uniform on 0 ... steps - 1; by its seed alone."""
    return (uniform(seeds, (), stream=_START).double() * steps).long().clamp(max=steps - 1)


@torch.no_grad()
def noise_and_denoise(
    pipe: TextToImage,
    specialisation: Specialisation,
    images: Tensor,
    seeds: int | Tensor | Sequence[int],
    *,
    batch: int = 16,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Return variations of the given images, with the learned word of their class.

    Image i takes one of the given images, a step of the sampling and noise by its own seed alone. It is
    noised to the time of that step and denoised from there on, with guidance and the empty prompt: from the
    last step it comes back nearly as it was, from the first it shares little more than the class.

    Args:
        pipe: the model.
        specialisation: to the class; only its word, guidance scale and number of steps are used.
        images: of the class, (K, C, H, W) in [-1, 1], any size.
        seeds: one per image, (N,); a number N gives `image_seeds(0, N)`.
        batch: images computed at a time, which bounds the memory.
        size: (H, W) to resize to, bilinear with antialiasing; None: the model's.

    Returns:
        (N, C, H, W) float32 in [-1, 1], on the host.

    Raises:
        CheckpointError: the specialisation belongs to another model.
        ShapeError: images with other channels than the model's.
        DataError: images that are not finite or far outside of [-1, 1].
        ConfigError: a batch below 1.

    Source: Trabucco et al. 2023, arXiv:2302.07944 (DA-Fusion), with its random strength; Meng et al. 2022,
        arXiv:2108.01073 (SDEdit).
    Differs: deterministic sampling after the noising, as everywhere here; starts are uniform over all steps.
    """
    check_batch(batch)
    specialisation.check(pipe)
    steps, guidance_scale = specialisation.steps, specialisation.guidance_scale
    times = check_inversion(pipe, steps)
    rows = seed_rows(seeds)
    size = (pipe.image_shape[1], pipe.image_shape[2]) if size is None else size
    made = torch.empty((len(rows), pipe.image_shape[0], *size))
    if not len(rows):
        return made
    device, dtype = place_of(pipe)
    clean = encode_images(pipe, images, batch=batch)[choose_supports(rows, len(images))]
    starts = start_steps(rows, steps)
    with frozen(pipe):
        cond, null = specialisation.context(pipe), pipe.embed([""])
        # Those that start together are computed together, so that few wait for others.
        for part in starts.argsort(stable=True).split(batch):
            own = starts[part]
            fresh = noise(rows[part], tuple(pipe.latent_shape))
            t0 = torch.tensor(times)[own]
            z = pipe.schedule.add_noise(clean[part], fresh.to(clean), t0).to(device, dtype)
            for step in range(int(own.min()), steps):
                active = (own <= step).nonzero().flatten().to(device)
                t = torch.full((len(active),), times[step], dtype=torch.int64, device=device)
                eps = pipe.guided(z[active], t, cond, null, guidance_scale).to(dtype)
                after = times[step + 1] if step + 1 < steps else None
                z[active] = pipe.schedule.move(z[active], eps, times[step], after).to(dtype)
            made[part] = decode_latents(pipe, z, size).cpu()
    return made
