"""What a frozen text-to-image model must be told to show given images: a word, a latent, null texts.

Three searches, none of which moves a weight of the model:

- `ddim_invert`: the noise from which deterministic sampling comes back to an image.
- `textual_inversion`: the input embedding of a new word, from all images of a class together.
- `null_text_inversion`: for each image and step the unconditional embedding that keeps *guided* sampling on
  the path of the inversion, from which guidance alone would drift away.

Samples, classes and images are rows of a batch: whatever one of them does (stopping early, above all) leaves
the others alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewgen.diffusion.calls import cast, check_batch, frozen, place_of, predict
from fewgen.diffusion.pipeline import check_shape
from fewgen.diffusion.settings import (
    PLACEHOLDER,
    PROMPT,
    PUBLISHED_DECAY,
    NullTextConfig,
    SpecialiseConfig,
    TextualConfig,
    placeholder,
)
from fewgen.errors import ConfigError, DataError, ShapeError, TrainingError
from fewgen.fitting.optimizers import AdamW
from fewgen.progress import Progress

if TYPE_CHECKING:
    from fewgen.diffusion.pipeline import TextToImage


_PUBLISHED_SLACK = 2e-5
"""With the published schedule, the tolerance grows by this much at each step."""
_BETAS, _ADAM_EPS = (0.9, 0.999), 1e-8
_GRADIENT_SCALE = 2.0**14
"""Keeps gradients of 16-bit models from vanishing. A power of two: it changes no digit elsewhere."""


@dataclass(frozen=True)
class TextualInversion:
    """A word for each class.

    Attributes:
        embedding: input embeddings of the placeholder, (n_classes, D_in).
        losses: mean squared error of the noise at each step, on the host, (steps, n_classes).
        prompt: what was learned with.
    """

    embedding: Tensor
    losses: Tensor
    prompt: str


def class_contexts(pipe: TextToImage, prompt: str, embedding: Tensor) -> Tensor:
    """Return the prompt with the placeholder standing for each class, (n_classes, L, D), differentiable.

    Args:
        pipe: the model.
        prompt: with one placeholder word.
        embedding: input embeddings of the placeholder, (n_classes, D_in).
    """
    # A name of its own for each class; several rows under one name would be a word of several tokens.
    word = placeholder(prompt)
    names = [f"{word}{i}" for i in range(len(embedding))]
    prompts = [PLACEHOLDER.sub(name, prompt) for name in names]
    return pipe.embed(prompts, dict(zip(names, embedding.unbind(), strict=True)))


def latent_rms(z: Tensor) -> Tensor:
    """Return the root mean square of each latent, float64 (B,); that of Gaussian noise is about 1.

    Inverted latents of flat images come out far below 1. A larger `dequant_t` mends that.
    """
    return z.detach().double().square().flatten(1).mean(1).sqrt()


def denoising_errors(pipe: TextToImage, z0: Tensor, t: Tensor, noise: Tensor, context: Tensor) -> Tensor:
    """Return the mean squared error of the predicted noise for each sample, (B,), differentiable.

    Args:
        pipe: the model.
        z0: clean latents, (B, C, h, w).
        t: times, int64 (B,).
        noise: what is added, like `z0`.
        context: embedded prompts, (B, L, D).
    """
    predicted = predict(pipe, pipe.schedule.add_noise(z0, noise, t).to(z0.dtype), t, context)
    return (noise - predicted).square().flatten(1).mean(1)


def word_gradient(
    pipe: TextToImage,
    prompt: str,
    embedding: Tensor,
    z0: Tensor,
    classes: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    batch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the errors of textual inversion, (B,), and the gradient of its objective in the embeddings.

    The objective is the sum over classes of each one's mean error: the update of a class is the one that it
    would have alone.

    Args:
        pipe: the model, whose weights stay as they are and get no gradient.
        prompt: with one placeholder word.
        embedding: input embeddings of the placeholder, (n_classes, D_in).
        z0: clean latents, (B, C, h, w), on the model's device.
        classes: whose image each is, int64 (B,).
        t: times, int64 (B,).
        noise: like `z0`.
        batch: most rows of a network call; None: all. More rows then need no more memory.

    Source: Gal et al. 2022, "An image is worth one word", arXiv:2208.01618, Eq. 2.
    """
    counts = torch.bincount(classes, minlength=len(embedding)).clamp_min(1)
    weights = _GRADIENT_SCALE / counts[classes]
    errors = torch.empty(len(z0), device=z0.device, dtype=z0.dtype)
    with frozen(pipe), torch.enable_grad():
        moving = embedding.detach().requires_grad_(True)
        contexts = class_contexts(pipe, prompt, moving)
        # Once through the text tower, and back once, whatever the number of parts.
        leaf = contexts.detach().requires_grad_(True)
        total = torch.zeros_like(leaf)
        for part in _chunks(len(z0), batch):
            found = denoising_errors(pipe, z0[part], t[part], noise[part], leaf[classes[part]])
            (gradient,) = torch.autograd.grad((found * weights[part]).sum(), leaf)
            total += gradient
            errors[part] = found.detach()
        (gradient,) = torch.autograd.grad(contexts, moving, total)
    return errors, gradient / _GRADIENT_SCALE


@torch.no_grad()
def ddim_invert(
    pipe: TextToImage,
    z0: Tensor,
    context: Tensor,
    steps: int,
    *,
    dequant_t: int = 0,
    rng: torch.Generator | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return the latents of deterministic sampling run backwards, without guidance.

    Each move from a time to the next higher one uses the noise predicted at the higher time, which undoes
    the sampling step between them better than the noise at the lower one.

    Args:
        pipe: the model.
        z0: latents of images, (B, C, h, w).
        context: embedded prompt, (L, D), (1, L, D) or (B, L, D).
        steps: number of sampling steps S.
        dequant_t: 0 starts from `z0` itself. A small time s > 0 starts from `z0` noised to s, which gives
            the latents of flat images the norm of noise; the pivots at and below s follow the same noise.
        rng: of that noise; needed with `dequant_t`.
        batch: samples computed at a time; None: all. More samples then need no more of the device's memory.
        progress: told the share that is done, and at the end the RMS of the last latents.

    Returns:
        Pivots by rising time, (S + 1, B, C, h, w), on the device of `z0`: the first is `z0`, the last z_T.

    Raises:
        ShapeError: if the shapes do not fit the model.
        ConfigError: if `steps`, `batch` or `dequant_t` are out of range, or noise is needed without `rng`.
        DataError: if the latents are not finite.

    Source: Song, Meng, Ermon 2021, "Denoising diffusion implicit models", arXiv:2010.02502, Eq. 13; Mokady et
    al. 2023, "Null-text inversion", arXiv:2211.09794, Sec. 3.2 (pivots).
    Differs: `dequant_t`.
    """
    _check_latents(pipe, z0, "Latents")
    times = check_inversion(pipe, steps, dequant_t)[::-1]
    noise = None
    if dequant_t > 0:
        if rng is None:
            raise ConfigError(f"dequant_t = {dequant_t} adds noise and needs an rng.")
        noise = torch.randn(z0.shape, generator=rng, device=rng.device, dtype=torch.float32)
    device, dtype = place_of(pipe)
    contexts = _context_rows(context, len(z0))
    pivots = torch.empty((steps + 1, *z0.shape), dtype=dtype, device=z0.device)
    parts = _chunks(len(z0), batch)
    with frozen(pipe):
        for number, part in enumerate(parts):
            clean = z0[part].to(device, dtype)
            shown = contexts[part].to(device)
            drawn = None if noise is None else noise[part].to(clean)
            pivots[0, part] = clean.to(z0.device)
            z, here = clean if drawn is None else _noised(pipe, clean, drawn, dequant_t), dequant_t
            for i, t in enumerate(times):
                if drawn is not None and t <= dequant_t:
                    pivots[i + 1, part] = _noised(pipe, clean, drawn, t).to(z0.device)
                    continue
                predicted = predict(pipe, z, t, shown)
                z, here = pipe.schedule.move(z, predicted, here, t).to(dtype), t
                pivots[i + 1, part] = z.to(z0.device)
                if progress is not None:
                    progress("DDIM inversion", (number * steps + i + 1) / (len(parts) * steps))
    rms = latent_rms(pivots[-1])
    if not torch.isfinite(rms).all():
        raise DataError("DDIM inversion gave latents that are not finite. Check the images and the model.")
    if progress is not None:
        progress(f"DDIM inversion: RMS of z_T {float(rms.min()):.2f} to {float(rms.max()):.2f}", 1.0)
    return pivots


def textual_inversion(
    pipe: TextToImage,
    z0: Tensor | Sequence[Tensor],
    config: TextualConfig,
    *,
    prompt: str = PROMPT,
    rng: torch.Generator,
    progress: Progress | None = None,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> TextualInversion:
    """Learn what the placeholder word must mean for the model to show the images of each class.

    Minimises the mean squared error of the noise predicted for the class's own latents over the input
    embedding of the placeholder; everything else is fixed. All classes share each call of the network, with
    draws of their own: what a class learns does not depend on the classes after it.

    Args:
        pipe: the model.
        z0: latents of one class, (K, C, h, w), or of several, a sequence of these with any K.
        config: the search.
        prompt: with one placeholder word, which starts with "#".
        rng: of the images, times and noise.
        progress: told the share that is done.
        on_step: called with the step, its losses (n_classes,) and the embeddings after it.

    Returns:
        The embeddings, one row per class, and the losses.

    Raises:
        ShapeError: if latents do not fit the model.
        ConfigError, TextError: see `check_textual`.
        DataError: if a class has no image.
        TrainingError: if the loss is not finite.

    Source: Gal et al. 2022, "An image is worth one word", arXiv:2208.01618, Eq. 2; Landolsi, Kahl, "Tiny
    models from tiny data" (t >= 250, start from "object").
    Differs: one prompt instead of 27; Adam without weight decay, where the code has 0.01.
    """
    start = check_textual(pipe, prompt, config)
    classes = [z0] if isinstance(z0, Tensor) else list(z0)
    if not classes:
        raise DataError("No class to learn: give the latents of at least one.")
    for i, latents in enumerate(classes):
        _check_latents(pipe, latents, f"Latents of class {i}")
    device, dtype = place_of(pipe)
    n_classes = len(classes)
    latents = torch.cat([z.to(device, dtype) for z in classes])
    first = torch.tensor([0] + [len(z) for z in classes[:-1]]).cumsum(0).tolist()
    streams = _streams(rng, n_classes)
    rows = torch.arange(n_classes, device=device).repeat_interleave(config.batch_size)
    embedding = start.to(device, dtype).repeat(n_classes, 1).requires_grad_(True)
    optimizer = AdamW([{"params": [embedding], "lr": config.lr, "weight_decay": config.weight_decay}])
    losses = torch.empty((config.steps, n_classes))
    with frozen(pipe):
        for step in range(config.steps):
            draws = [
                _draw(stream, len(z), config, len(pipe.schedule), z.shape[1:])
                for stream, z in zip(streams, classes, strict=True)
            ]
            which = torch.cat([k + begin for (k, _, _), begin in zip(draws, first, strict=True)])
            t = torch.cat([t for _, t, _ in draws]).to(device)
            noise = torch.cat([noise for _, _, noise in draws]).to(device, dtype)
            errors, embedding.grad = word_gradient(
                pipe, prompt, embedding, latents[which.to(device)], rows, t, noise
            )
            losses[step] = errors.reshape(n_classes, -1).mean(1).float().cpu()
            if not torch.isfinite(losses[step]).all():
                raise TrainingError(
                    f"Textual inversion: the loss is not finite at step {step} ({losses[step].tolist()}). "
                    "Lower lr, or use float32."
                )
            optimizer.step()
            if on_step is not None:
                on_step(step, losses[step], embedding.detach())
            if progress is not None:
                progress("textual inversion", (step + 1) / config.steps)
    return TextualInversion(embedding.detach().clone(), losses, prompt)


def null_text_inversion(
    pipe: TextToImage,
    pivots: Tensor,
    cond: Tensor,
    guidance_scale: float,
    config: NullTextConfig,
    *,
    batch: int | None = None,
    progress: Progress | None = None,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Return for each image and step the unconditional embedding with which guided sampling returns to it.

    From the highest time down, each embedding starts from the one before, and Adam moves it until the guided
    step lands on the pivot of the next lower time. An image whose error is below the tolerance stops by
    itself and leaves the calls of the network.

    Args:
        pipe: the model.
        pivots: of `ddim_invert`, (S + 1, B, C, h, w).
        cond: embedded prompt, (L, D), (1, L, D) or (B, L, D).
        guidance_scale: of the guidance; sampling must use the same. At 1 the unconditional embedding has no
            influence and stays that of the empty prompt.
        config: the search.
        batch: images optimised at a time, and most rows of a network call; None: all.
        progress: told the share that is done.
        on_step: called after each step of each batch with the step, the errors (b,) and the number of
            updates (b,) of its images.

    Returns:
        Unconditional embeddings by falling time, (S, B, L, D), on the device of `pivots`.

    Raises:
        ShapeError: if the shapes do not fit.
        ConfigError: if a setting is out of range.
        TrainingError: if an error is not finite.

    Source: Mokady et al. 2023, "Null-text inversion", arXiv:2211.09794, Eq. 3 and Alg. 1.
    Differs: the tolerance is looked at before an update and not after it, because the first update of Adam
    has length lr however small the gradient; of all embeddings tried, the one nearest the pivot is kept.
    Rate and tolerance are constant unless `schedule` says otherwise, as in the public code of TINT: they
    then do not depend on the number of steps.
    """
    if pivots.ndim < 3 or len(pivots) < 2:
        raise ShapeError(f"Pivots must be (S + 1, B, C, h, w), got {tuple(pivots.shape)}.")
    _check_latents(pipe, pivots[0], "Pivots")
    steps, n = len(pivots) - 1, pivots.shape[1]
    config.check_steps(steps)
    device, dtype = place_of(pipe)
    conds = _context_rows(cond, n)
    with torch.no_grad(), frozen(pipe):
        null = pipe.embed([""], None)[0].to(device, dtype)
    found = null.to(pivots.device).expand(steps, n, *null.shape).clone()
    if guidance_scale == 1 or config.inner_steps == 0:
        return found
    times = pipe.schedule.timesteps(steps)
    parts = _chunks(n, batch)
    with frozen(pipe), torch.no_grad():
        for number, part in enumerate(parts):
            shown = conds[part].to(device, dtype)
            z = pivots[-1, part].to(device, dtype)
            u = null.expand(len(z), *null.shape).clone()
            for i, (t, after) in enumerate(zip(times, [*times[1:], 0], strict=True)):
                fit = _NullTextStep(
                    pipe, z, pivots[steps - 1 - i, part].to(device, dtype), t, after, shown, guidance_scale
                )
                faded = i if config.schedule == "published" else 0
                lr = config.lr * (1 - faded / PUBLISHED_DECAY)
                tol = config.tol + _PUBLISHED_SLACK * faded
                u, errors, updates = fit.solve(u, config.inner_steps, lr, tol)
                z = fit.reached
                found[i, part] = u.to(pivots.device)
                if on_step is not None:
                    on_step(i, errors, updates)
                if progress is not None:
                    progress("null-text inversion", (number * steps + i + 1) / (len(parts) * steps))
    return found


def check_textual(pipe: TextToImage, prompt: str, config: TextualConfig) -> Tensor:
    """Return the embedding that `textual_inversion` starts from, (D_in,), after checking its settings.

    Raises:
        ConfigError: the model has no such time, the prompt lacks a placeholder, or the model does not know
            `init_word`.
        TextError: the model does not know a word of the prompt, or the prompt is too long.
    """
    placeholder(prompt)
    if config.t_min >= len(pipe.schedule):
        raise ConfigError(f"textual.t_min must be below {len(pipe.schedule)}, got {config.t_min}.")
    start = pipe.word_embedding(config.init_word).detach()
    with torch.no_grad():
        class_contexts(pipe, prompt, start[None])
    return start


def check_inversion(pipe: TextToImage, steps: int, dequant_t: int = 0) -> list[int]:
    """Return the sampling times from high to low, or raise `ConfigError` for what `ddim_invert` refuses."""
    times = pipe.schedule.timesteps(steps)
    if not 0 <= dequant_t < times[0]:
        raise ConfigError(f"dequant_t must be between 0 and {times[0] - 1}, got {dequant_t}.")
    return times


def check_searches(pipe: TextToImage, config: SpecialiseConfig) -> Tensor:
    """Return the embedding that a word starts from, (D_in,), after checking the settings of all searches.

    Raises:
        ConfigError, TextError: as `check_inversion` and `check_textual`.
    """
    check_inversion(pipe, config.steps, config.dequant_t)
    return check_textual(pipe, config.prompt, config.textual)


class _NullTextStep:
    """One guided move of some latents, and the search for the embeddings that bring it to their targets.

    Attributes:
        reached: after `solve`, the latents at the next lower time, (B, C, h, w).
    """

    def __init__(
        self,
        pipe: TextToImage,
        z: Tensor,
        target: Tensor,
        t: int,
        after: int,
        cond: Tensor,
        guidance_scale: float,
    ) -> None:
        self.pipe, self.z, self.target, self.t, self.after, self.guidance_scale = (
            pipe,
            z,
            target,
            t,
            after,
            guidance_scale,
        )
        self.conditional = predict(pipe, z, t, cond)
        self.reached = z

    def move(self, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return where these rows get with the embeddings `u`, and their squared errors, (b,)."""
        z, conditional = self.z[rows], self.conditional[rows]
        unconditional = predict(self.pipe, z, self.t, u)
        guided = unconditional + self.guidance_scale * (conditional - unconditional)
        moved = self.pipe.schedule.move(z, guided, self.t, self.after).to(z.dtype)
        return moved, (moved - self.target[rows]).square().flatten(1).mean(1)

    def solve(self, start: Tensor, inner_steps: int, lr: float, tol: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best embeddings from `start`, (B, L, D), their errors and numbers of updates, (B,)."""
        u, best = start.clone(), start.clone()
        mean, square = torch.zeros_like(u), torch.zeros_like(u)
        errors = torch.full((len(u),), math.inf, dtype=u.dtype, device=u.device)
        updates = torch.zeros(len(u), dtype=torch.int64, device=u.device)
        self.reached = torch.empty_like(self.z)
        rows = torch.arange(len(u), device=u.device)
        for j in range(inner_steps + 1):
            last = j == inner_steps
            tried = u[rows].requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                moved, error = self.move(tried, rows)
                total = error.sum() * _GRADIENT_SCALE
            if not torch.isfinite(error).all():
                raise TrainingError(
                    f"Null-text inversion: the error is not finite at time {self.t}. Lower lr, or use "
                    "float32."
                )
            seen = error.detach()
            better = seen < errors[rows]
            kept = rows[better]
            best[kept], errors[kept] = u[kept], seen[better]
            self.reached[kept] = moved.detach()[better]
            going = seen >= tol
            if last or not going.any():
                break
            (gradient,) = torch.autograd.grad(total, tried)
            # Rows that stopped never come back, so those left have all taken j updates.
            rows, gradient = rows[going], gradient[going] / _GRADIENT_SCALE
            mean[rows] = _BETAS[0] * mean[rows] + (1 - _BETAS[0]) * gradient
            square[rows] = _BETAS[1] * square[rows] + (1 - _BETAS[1]) * gradient.square()
            spread = (square[rows] / (1 - _BETAS[1] ** (j + 1))).sqrt()
            u[rows] -= lr / (1 - _BETAS[0] ** (j + 1)) * mean[rows] / (spread + _ADAM_EPS)
            updates[rows] += 1
        return best, errors, updates


@torch.no_grad()
def reconstruct(
    pipe: TextToImage,
    z_T: Tensor,
    cond: Tensor,
    u: Tensor | None,
    guidance_scale: float,
    steps: int,
    *,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return what guided sampling makes of latents, with their own unconditional embeddings.

    Args:
        pipe: the model.
        z_T: latents at the highest time, (B, C, h, w): inverted ones give their images back.
        cond: embedded prompt, (L, D), (1, L, D) or (B, L, D).
        u: of `null_text_inversion`, (S, B, L, D); None: the empty prompt's.
        guidance_scale: of the guidance, as in the inversion.
        steps: number of sampling steps S, as in the inversion.
        batch: samples computed at a time, each of which has two rows of a network call; None: all.
        progress: told the share that is done.

    Returns:
        Clean latents, (B, C, h, w), on the device of `z_T`.

    Raises:
        ShapeError: if the shapes do not fit.
        ConfigError: if `steps` is not the number of embeddings, or out of range.
    """
    _check_latents(pipe, z_T, "Latents")
    if u is not None and (u.ndim != 4 or u.shape[1] != len(z_T)):
        raise ShapeError(f"Null-text embeddings {tuple(u.shape)} for {len(z_T)} latents.")
    device, dtype = place_of(pipe)
    conds = _context_rows(cond, len(z_T))
    parts = _chunks(len(z_T), batch)
    made = torch.empty(z_T.shape, dtype=dtype, device=z_T.device)
    with frozen(pipe):
        null = pipe.embed([""], None)
        for number, part in enumerate(parts):
            z = z_T[part].to(device, dtype)
            uncond: Tensor | list[Tensor]
            if u is None:
                uncond = null.expand(len(z), *null.shape[1:])
            else:
                uncond = [cast(pipe, step.to(device)) for step in u[:, part]]
            # The sum over the steps keeps its precision, whatever the model computes in.
            result = pipe.sample(z, cast(pipe, conds[part].to(device)), uncond, guidance_scale, steps)
            made[part] = result.to(z_T.device, dtype)
            if progress is not None:
                progress("sampling", (number + 1) / len(parts))
    return made


# ------------------------------------------------------------------------------------------------ helpers


def _noised(pipe: TextToImage, z0: Tensor, noise: Tensor, t: int) -> Tensor:
    return pipe.schedule.add_noise(z0, noise, t).to(z0.dtype)


def _check_latents(pipe: TextToImage, z: Tensor, what: str) -> None:
    check_shape(what, z, pipe.latent_shape)
    if not len(z):
        raise DataError(f"{what}: there are none.")
    if not torch.isfinite(z).all():
        raise DataError(f"{what} are not finite.")


def _context_rows(context: Tensor, n: int) -> Tensor:
    """Return an embedded prompt for each of `n` rows, (n, L, D)."""
    rows = context if context.ndim == 3 else context[None]
    if rows.ndim != 3 or len(rows) not in (1, n):
        raise ShapeError(f"An embedded prompt {tuple(context.shape)} does not fit {n} latents.")
    return rows.detach().expand(n, *rows.shape[1:])


def _chunks(n: int, batch: int | None) -> list[slice]:
    check_batch(batch)
    size = n if batch is None else batch
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _streams(rng: torch.Generator, n: int) -> list[torch.Generator]:
    """Return a generator for each class, on the host; the first ones do not depend on how many there are."""
    seeds = [int(torch.randint(2**62, (), generator=rng, device=rng.device)) for _ in range(n)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _draw(
    rng: torch.Generator, n_images: int, config: TextualConfig, t_end: int, shape: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices of a batch of images, times in [t_min, t_end) and noise."""
    n = config.batch_size
    which = torch.randint(n_images, (n,), generator=rng)
    t = torch.randint(config.t_min, t_end, (n,), generator=rng)
    return which, t, torch.randn((n, *shape), generator=rng)
