"""What a frozen text-to-image model learned of one class: a word, latents, null texts; and images from it.

A specialisation is worthless beside another model, another guidance scale or another number of steps, where
it would silently give wrong images. It therefore carries all three and refuses the wrong ones.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewgen.config.checks import at_least
from fewgen.diffusion.blend import alpha_rows, blend, check_norm_mode
from fewgen.diffusion.calls import check_batch, check_images, decode_latents, encode_images
from fewgen.diffusion.inversion import (
    Progress,
    check_inversion,
    check_searches,
    class_contexts,
    ddim_invert,
    latent_rms,
    null_text_inversion,
    reconstruct,
    textual_inversion,
)
from fewgen.diffusion.settings import SpecialiseConfig, placeholder
from fewgen.errors import CheckpointError, ConfigError, DataError, ShapeError
from fewgen.generation.noise import noise, uniform
from fewgen.generation.request import image_seeds
from fewgen.tensor_files import TensorFile, write_tensors

if TYPE_CHECKING:
    from fewgen.diffusion.pipeline import TextToImage

_FILE = TensorFile(
    format="fewgen-specialisation",
    version=1,
    about="specialisation",
    wanted="Name a specialisation written by fewgen.",
    foreign="a specialisation. Name a specialisation written by fewgen.",
    outdated="format {version}, but this fewgen reads up to 1. Update fewgen.",
    damaged='The specialisation "{path}" is damaged ({reason}). Use another file, or specialise again.',
    older=True,
)
_SUPPORT, _ALPHA = 1, 2
"""Random streams of an image beside its noise."""


@dataclass(frozen=True)
class Specialisation:
    """What one model learned of one class from K images.

    Attributes:
        class_name: of the class; the model never reads it.
        prompt: with the placeholder word.
        embedding: input embedding of the placeholder, (D_in,).
        z_T: inverted latents of the images, (K, C, h, w); None with the word alone, where alpha must be 1.
        u: unconditional embeddings by falling time, (S, K, L, D); None for textual inversion alone.
        model_id: of the model it belongs to.
        guidance_scale: of the guidance.
        steps: number of sampling steps S.
        settings: how it was made, JSON values.
    """

    class_name: str
    prompt: str
    embedding: Tensor
    z_T: Tensor | None
    u: Tensor | None
    model_id: str
    guidance_scale: float
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        placeholder(self.prompt)
        if not math.isfinite(self.guidance_scale) or self.steps < 1:
            raise ConfigError(
                f"guidance_scale must be finite and steps 1 or more, got {self.guidance_scale:g} and "
                f"{self.steps}."
            )
        if self.embedding.ndim != 1:
            raise ShapeError(f"The embedding must be (D_in,), got {tuple(self.embedding.shape)}.")
        if self.z_T is not None and (self.z_T.ndim != 4 or not len(self.z_T)):
            raise ShapeError(f"z_T must be (K, C, h, w), got {tuple(self.z_T.shape)}.")
        if self.u is not None:
            k = None if self.z_T is None else len(self.z_T)
            if self.u.ndim != 4 or tuple(self.u.shape[:2]) != (self.steps, k):
                raise ShapeError(
                    f"u must be (S, K, L, D) with S = {self.steps} and K = {k}, got {tuple(self.u.shape)}."
                )
        for name, value in self.tensors().items():
            if not value.is_floating_point():
                raise DataError(
                    f"{name} of the specialisation to {self.class_name!r} must be floating point, got "
                    f"{value.dtype}."
                )
            if not torch.isfinite(value).all():
                raise DataError(f"{name} of the specialisation to {self.class_name!r} is not finite.")

    def tensors(self) -> dict[str, Tensor]:
        """Return embedding, z_T and u by name, without those that are None."""
        named = {"embedding": self.embedding, "z_T": self.z_T, "u": self.u}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def rms(self) -> Tensor | None:
        """Root mean square of each inverted latent, float64 (K,); about 1 is right, far below 1 too flat."""
        return None if self.z_T is None else latent_rms(self.z_T)

    def check(
        self, pipe: TextToImage, *, guidance_scale: float | None = None, steps: int | None = None
    ) -> None:
        """Refuse a model, guidance scale or number of steps that this was not made with.

        Args:
            pipe: the model to be used.
            guidance_scale: of the guidance to be used; None: this one's own.
            steps: to be used; None: this one's own.

        Raises:
            CheckpointError: for another model.
            ConfigError: for another guidance scale or number of steps, or more steps than there are times.
            ShapeError: if word, latents or null texts do not fit the model.
        """
        whose = f'The specialisation to "{self.class_name}" was made'
        if self.model_id != pipe.model_id:
            raise CheckpointError(
                f'{whose} with the model "{self.model_id}", and this is the model "{pipe.model_id}". '
                "Use that model, or specialise this one."
            )
        if guidance_scale is not None and guidance_scale != self.guidance_scale:
            raise ConfigError(
                f"{whose} with guidance scale {self.guidance_scale:g}, not {guidance_scale:g}. Use "
                f"{self.guidance_scale:g}, or specialise again."
            )
        if steps is not None and steps != self.steps:
            raise ConfigError(
                f"{whose} with {self.steps} steps, not {steps}. Use {self.steps}, or specialise again."
            )
        if self.embedding.shape != (pipe.word_size,):
            raise ShapeError(
                f"{whose} with a word of {len(self.embedding)} numbers; the model has {pipe.word_size}."
            )
        check_inversion(pipe, self.steps)
        if self.z_T is not None and tuple(self.z_T.shape[1:]) != tuple(pipe.latent_shape):
            raise ShapeError(
                f"{whose} with latents {tuple(self.z_T.shape[1:])}; the model has {tuple(pipe.latent_shape)}."
            )
        if self.u is not None and tuple(self.u.shape[2:]) != tuple(pipe.context_shape):
            raise ShapeError(
                f"{whose} with null texts {tuple(self.u.shape[2:])}; the model has "
                f"{tuple(pipe.context_shape)}."
            )

    def context(self, pipe: TextToImage) -> Tensor:
        """Return the embedded prompt with the learned word in it, (1, L, D)."""
        device = next((p.device for p in pipe.parameters()), torch.device("cpu"))
        with torch.no_grad():
            return class_contexts(pipe, self.prompt, self.embedding[None].to(device))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically; equal content gives equal bytes.

        Raises:
            OutputError: if it cannot be written; an older file stays as it was.
            ConfigError: if the settings are not JSON values.
        """
        about = {
            "class_name": self.class_name,
            "prompt": self.prompt,
            "model_id": self.model_id,
            "scale": self.guidance_scale,
            "steps": self.steps,
            "settings": self.settings,
        }
        try:
            text = json.dumps(about, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"The settings of a specialisation must be JSON values: {error}.") from error
        write_tensors(path, self.tensors(), _FILE.metadata(text))

    @classmethod
    def load(cls, path: str | os.PathLike[str], pipe: TextToImage) -> Specialisation:
        """Return the specialisation in a file, checked against the model to be used with it.

        Args:
            path: the file.
            pipe: the model.

        Raises:
            CheckpointError: if the file is missing, damaged, of another kind or version, or belongs to
                another model.
        """
        about, tensors = _FILE.read(path)
        with _FILE.fits(path):
            found = cls(
                class_name=_of_type(str, about["class_name"]),
                prompt=_of_type(str, about["prompt"]),
                embedding=tensors["embedding"],
                z_T=tensors.get("z_T"),
                u=tensors.get("u"),
                model_id=_of_type(str, about["model_id"]),
                guidance_scale=float(_of_type((int, float), about["scale"])),
                steps=_of_type(int, about["steps"]),
                settings=_of_type(dict, about["settings"]),
            )
        found.check(pipe)
        return found


def specialise(
    pipe: TextToImage,
    images: Sequence[Tensor],
    class_names: Sequence[str],
    config: SpecialiseConfig,
    *,
    rng: torch.Generator,
    progress: Progress | None = None,
) -> list[Specialisation]:
    """Return what the model learns of each class from a few images.

    Args:
        pipe: the model.
        images: of each class, (K, C, H, W) in [-1, 1], any K and size.
        class_names: one per class.
        config: how.
        rng: of every draw.
        progress: told what is done, and the share of it.

    Returns:
        One specialisation per class, on the host.

    Raises:
        ShapeError: if images have other channels than the model's.
        ConfigError, DataError, TextError: as the functions it calls; settings and images are looked at before
            any of them is encoded.
        TrainingError: as the functions it calls.
    """
    if len(images) != len(class_names) or not len(images):
        raise ConfigError(
            f"{len(images)} groups of images for {len(class_names)} class names: one each is needed."
        )
    check_searches(pipe, config)
    for each in images:
        check_images(pipe, each)
    latents = [encode_images(pipe, each, batch=config.batch) for each in images]
    learned = textual_inversion(
        pipe, latents, config.textual, prompt=config.prompt, rng=rng, progress=progress
    )
    counts = [len(z) for z in latents]
    # All images of all classes in one batch, each with the word of its class.
    with torch.no_grad():
        contexts = class_contexts(pipe, config.prompt, learned.embedding)
    each = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    contexts = contexts[each.to(contexts.device)]
    z_T, u = find_latents(pipe, torch.cat(latents), contexts, config, rng=rng, progress=progress)
    return by_class(class_names, pipe.model_id, config, learned.embedding, counts, z_T, u, True)


def by_class(
    class_names: Sequence[str],
    model_id: str,
    config: SpecialiseConfig,
    embedding: Tensor,
    counts: Sequence[int],
    z_T: Tensor | None,
    u: Tensor | None,
    corrected: bool,
) -> list[Specialisation]:
    """Return what was found for all classes together as a specialisation for each, on the host.

    Args:
        class_names: one per class.
        model_id: of the model.
        config: how it was looked for.
        embedding: of the placeholder, (n_classes, D_in).
        counts: images of each class, which lie together.
        z_T: inverted latents of all images, (N, C, h, w); None with words alone.
        u: their null texts, (S, N, L, D), or None.
        corrected: whether null texts were looked for.
    """
    none: list[None] = [None] * len(class_names)
    latents = none if z_T is None else z_T.cpu().split(list(counts))
    nulls = none if u is None else u.cpu().split(list(counts), dim=1)
    return [
        Specialisation(
            class_name=str(name),
            prompt=config.prompt,
            embedding=word.detach().cpu().clone(),
            z_T=None if z is None else z.clone(),
            u=None if own is None else own.clone(),
            model_id=model_id,
            guidance_scale=float(config.guidance_scale),
            steps=config.steps,
            settings=config.searched(corrected),
        )
        for name, word, z, own in zip(class_names, embedding, latents, nulls, strict=True)
    ]


def find_latents(
    pipe: TextToImage,
    z0: Tensor,
    context: Tensor,
    config: SpecialiseConfig,
    *,
    correct: bool = True,
    rng: torch.Generator,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return what gives images back: inverted latents (B, C, h, w), and null texts (S, B, L, D).

    Args:
        pipe: the model.
        z0: latents of images, (B, C, h, w).
        context: embedded prompt of each, (B, L, D).
        config: guidance, steps and the searches.
        correct: False leaves null-text inversion out; there are no null texts then.
        rng: of the noise of `dequant_t`.
        progress: told what is done, and the share of it.
    """
    common: dict[str, Any] = {"batch": config.batch, "progress": progress}
    pivots = ddim_invert(pipe, z0, context, config.steps, dequant_t=config.dequant_t, rng=rng, **common)
    z_T = pivots[-1].clone()
    if not correct:
        return z_T, None
    return z_T, null_text_inversion(pipe, pivots, context, config.guidance_scale, config.null_text, **common)


def choose_alphas(alpha: float | Tensor | str, seeds: Tensor) -> Tensor:
    """Return alpha for each image, float64 (N,): one number, one each, or "uniform", drawn by its seed.

    Raises:
        ConfigError: outside [0, 1], or another word.
    """
    if alpha is None or isinstance(alpha, bool):
        raise ConfigError(f'alpha must be in [0, 1] or "uniform", got {alpha}.')
    if not isinstance(alpha, str):
        return alpha_rows(alpha, len(seeds))
    if alpha != "uniform":
        raise ConfigError(f'alpha must be in [0, 1] or "uniform", got "{alpha}".')
    return uniform(seeds, (), stream=_ALPHA).double()


def choose_supports(seeds: Tensor | Sequence[int], k: int | Tensor) -> Tensor:
    """Return which of `k` support images each image starts from, int64 (N,), uniform; by its seed alone.

    Args:
        seeds: one per image, (N,).
        k: number of support images, one number or one for each image, (N,).
    """
    most = torch.as_tensor(k)
    return (uniform(seeds, (), stream=_SUPPORT).double() * most).long().minimum(most - 1)


def seed_rows(seeds: int | Tensor | Sequence[int]) -> Tensor:
    """Return one seed per image, int64 (N,); a number N gives `image_seeds(0, N)`.

    Raises:
        ConfigError: a number below 0.
        ShapeError: seeds in several rows.
    """
    if isinstance(seeds, int):
        at_least("The number of images", seeds, 0)
        return image_seeds(0, seeds)
    rows = torch.as_tensor(seeds, dtype=torch.int64)
    if rows.ndim != 1:
        raise ShapeError(f"Seeds must be (N,), got {tuple(rows.shape)}.")
    return rows


@torch.no_grad()
def draw(
    pipe: TextToImage,
    context: Tensor,
    z_T: Tensor | None,
    u: Tensor | None,
    seeds: Tensor,
    alphas: Tensor,
    *,
    guidance_scale: float,
    steps: int,
    norm_mode: str = "interp",
    temperature: float = 1.0,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> Tensor:
    """Return images, each from a blend of an inverted latent and fresh noise, (N, C, H, W) in [-1, 1].

    Args:
        pipe: the model.
        context: embedded prompts, (1, L, D) or (N, L, D).
        z_T: the latent that each starts from, (N, C, h, w); None: noise alone.
        u: its null texts, (S, N, L, D); None: the empty prompt's.
        seeds: of the noise, int64 (N,).
        alphas: share of the noise, (N,).
        guidance_scale: of the guidance.
        steps: number of sampling steps S.
        norm_mode: of `blend`.
        temperature: factor on the noise.
        size: (H, W) to resize to, bilinear with antialiasing; None: the model's.
        batch: images computed at a time; None: all.
    """
    check_norm_mode(norm_mode)
    fresh = temperature * noise(seeds, tuple(pipe.latent_shape))
    if z_T is not None:
        # Without noise there is nothing to rescale: at alpha 1, no direction at all.
        fresh = blend(z_T.cpu(), fresh, alphas, norm_mode if temperature > 0 else "none")
    z0 = reconstruct(pipe, fresh.to(context.device), context, u, guidance_scale, steps, batch=batch)
    return decode_latents(pipe, z0, size)


@torch.no_grad()
def generate(
    pipe: TextToImage,
    specialisation: Specialisation,
    seeds: int | Tensor | Sequence[int],
    alpha: float | Tensor | str = 1.0,
    *,
    norm_mode: str = "interp",
    batch: int | None = 16,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Return new images of the class.

    Image i takes noise and one of the support images by its own seed alone. The null texts of that support
    image are used even at alpha = 1, where its latent has no influence any more.

    Args:
        pipe: the model.
        specialisation: to the class.
        seeds: one per image, (N,); a number N gives `image_seeds(0, N)`.
        alpha: in [0, 1]: 0 gives a support image back, 1 an image that shares the class alone; one number,
            one for each image, or "uniform" for a draw from [0, 1) for each image.
        norm_mode: of `blend`.
        batch: images computed at a time, which bounds the memory; None: all.
        size: (H, W) to resize to, bilinear with antialiasing; None: the model's.

    Returns:
        (N, C, H, W) float32 in [-1, 1], on the host.

    Raises:
        ConfigError: if alpha is outside [0, 1], or below 1 without inverted latents.
        CheckpointError: if the specialisation belongs to another model.

    Source: Landolsi, Kahl, "Tiny models from tiny data", Sec. 3.
    """
    specialisation.check(pipe)
    rows = seed_rows(seeds)
    n = len(rows)
    check_batch(batch)
    alphas = choose_alphas(alpha, rows)
    z_T, u = specialisation.z_T, specialisation.u
    if z_T is None and bool((alphas < 1).any()):
        raise ConfigError(
            f'The specialisation to "{specialisation.class_name}" learned the word alone, which gives images '
            f"at alpha 1 only; got {float(alphas.min()):g}. Specialise with inversion."
        )
    context = specialisation.context(pipe)
    device = context.device
    size = tuple(pipe.image_shape)[1:] if size is None else size  # type: ignore[assignment]
    made = []
    for start in range(0, n, batch or max(n, 1)):
        part = slice(start, start + (batch or n))
        which = None if z_T is None else choose_supports(rows[part], len(z_T)).to(z_T.device)
        images = draw(
            pipe,
            context,
            None if z_T is None else z_T[which],
            # Indexed in the chunk: null texts are large, (S, L, D) for each image.
            None if u is None or which is None else u[:, which].to(device),
            rows[part],
            alphas[part],
            guidance_scale=specialisation.guidance_scale,
            steps=specialisation.steps,
            norm_mode=norm_mode,
            size=size,
            batch=batch,
        )
        made.append(images.cpu())
    if not made:
        return torch.empty((0, pipe.image_shape[0], *size))  # type: ignore[misc]
    return torch.cat(made)


def _of_type(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError("wrong types")
    return value
