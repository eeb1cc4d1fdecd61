"""TINT: what a frozen text-to-image model must be told to draw new images of a few given ones."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.diffusion.calls import decode_latents, encode_images
from fewgen.diffusion.inversion import (
    check_searches,
    class_contexts,
    latent_rms,
    reconstruct,
    word_gradient,
)
from fewgen.diffusion.pipeline import TextToImage
from fewgen.diffusion.small import SmallDiffusion
from fewgen.diffusion.specialisation import (
    Specialisation,
    by_class,
    choose_alphas,
    choose_supports,
    draw,
    find_latents,
)
from fewgen.errors import ConfigError, DataError
from fewgen.generation.request import GeneratedImages, GenerationRequest, image_seeds
from fewgen.losses.terms import LossTerms
from fewgen.methods.base import DataSpec, Method
from fewgen.methods.registry import register
from fewgen.methods.tint.base import describe, open_base, place_on, reopen
from fewgen.methods.tint.config import BaseModel, TintConfig, check_alpha
from fewgen.training.phases import Batch, Context, Phase, Pixels, Stage

SHOWN_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Columns of a strip from a real image to a new one."""

SHOWN_CLASSES = 8
_NOTE_SECONDS = 10.0


class Words(nn.Module):
    """Input embeddings of the classes' words, (n_classes, D_in)."""

    def __init__(self, n_classes: int, word_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(n_classes, word_size))


@register("tint")
class Tint(Method):
    """A frozen text-to-image model, specialised to classes from a few images each.

    For each class a new word is learned, which makes the model draw such images (textual inversion). Each
    image is taken back to the noise that it comes from (DDIM inversion), and the empty prompt is replaced,
    step by step, by what keeps guided sampling on the way back to it (null-text inversion). A new image
    starts from a blend of an image's noise and fresh noise: alpha 0 gives the image back, alpha 1 shares its
    class and its null texts alone.

    Source: Landolsi & Kahl, "Tiny models from tiny data: Textual and null-text inversion for few-shot
        distillation" (TINT); Gal et al. 2022, arXiv:2208.01618 (textual inversion); Mokady et al. 2023,
        arXiv:2211.09794 (null-text inversion); Song, Meng & Ermon 2021, arXiv:2010.02502 (DDIM).
    Differs: words of all classes are learned in the same steps, each from its own images, which come in
        shuffled passes; Adam without weight decay; sizes and settings of the default preset are ours.
    """

    Config: ClassVar[type] = TintConfig
    capabilities = frozenset({"blend"})
    min_classes = 1
    reads_text = False
    rows = 16
    config: TintConfig
    base_id: Tensor
    z_T: Tensor
    u: Tensor
    images: Tensor

    def __init__(self, config: TintConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self._outside: list[TextToImage] = []  # a list, because a module here would join the model file
        self._latents: tuple[int, Tensor] | None = None
        self._clock = (0.0, 0)
        fitted = config.fitted
        if fitted is None:
            pipe = open_base(config.base, config.attention_slicing)
            self._check_images(pipe)
            self._hold(pipe)
            fitted = describe(pipe, config.base or "")
            self.config = replace(config, fitted=fitted)
        elif fitted.kind == "small":
            self.pipe = SmallDiffusion.from_settings(fitted.settings).requires_grad_(False)
        self.words = Words(spec.n_classes, fitted.word_size)
        if config.fitted is None:
            start = check_searches(self.pipeline(), config)  # before any image is looked at twice
            self.words.embedding.data.copy_(start.float().expand_as(self.words.embedding))
        self.register_buffer("base_id", _digest(fitted))
        if self.config.supports:
            if len(self.config.supports) != spec.n_classes:
                raise ConfigError(
                    f"supports counts the images of {len(self.config.supports)} classes; there are "
                    f"{spec.n_classes}."
                )
            self._make_room()

    def _hold(self, pipe: TextToImage) -> None:
        if isinstance(pipe, SmallDiffusion):
            self.pipe = pipe.requires_grad_(False)
        else:
            self._outside.append(pipe)

    def _check_images(self, pipe: TextToImage) -> None:
        channels, height, width = pipe.image_shape
        kind = {1: "grey", 3: "colour"}
        if channels != self.spec.channels:
            raise ConfigError(
                f"The images are {kind.get(self.spec.channels)}, and the model to specialise draws "
                f"{kind.get(channels)} ones. Add --channels {channels}."
            )
        if (height, width) != (self.spec.height, self.spec.width):
            self.notes.append(
                f"the images of {self.spec.height}x{self.spec.width} pixels are resized to {height}x{width} "
                "for the model, and new images are resized back."
            )

    def _make_room(self) -> None:
        """Make the buffers of what is found for each image; the images of a class lie together."""
        fitted = self._fitted
        n = sum(self.config.supports)
        self.register_buffer("images", torch.zeros((n, *self.spec.shape), dtype=torch.uint8))
        self.register_buffer("z_T", torch.zeros((n, *fitted.latent_shape)))
        if self.config.correct:
            self.register_buffer("u", torch.zeros((self.config.steps, n, *fitted.context_shape)))

    @property
    def _fitted(self) -> BaseModel:
        assert self.config.fitted is not None
        return self.config.fitted

    @property
    def citations(self) -> tuple[str, ...]:
        """Keys of the works that this configuration rests on."""
        used = {
            "tint": True,
            "textual_inversion": True,
            "ddim": True,
            "guidance": self.config.guidance_scale != 1,
            "null_text_inversion": self.config.invert and self.config.correct,
            "latent_diffusion": self._fitted.kind == "stable",
        }
        return tuple(key for key, is_used in used.items() if is_used)

    def pipeline(self) -> TextToImage:
        """Return the base model, where this one is; Stable Diffusion is opened at the first call.

        Raises:
            CheckpointError: the Stable Diffusion is gone, or is another one.
        """
        if self._fitted.kind == "small":
            return self.pipe
        if not self._outside:
            self._outside.append(reopen(self._fitted, self.config.attention_slicing, self.path))
        return place_on(self._outside[0], self.device, self.config.precision)

    @property
    def device(self) -> torch.device:
        """Where the words lie."""
        return self.words.embedding.device

    @property
    def has_latents(self) -> bool:
        """Whether images have been inverted: before the end of training, and without `invert`, none are."""
        return bool(self.config.supports) and bool((self.z_T != 0).any())

    # ------------------------------------------------------------------------------------ training

    def load_state_dict(self, state_dict: Mapping[str, Any], *more: Any, **given: Any) -> Any:
        """Take weights, and refuse those that were learned with another base.

        Raises:
            ConfigError: they were.
        """
        there = state_dict.get("base_id")
        if there is not None and not torch.equal(there.cpu(), _digest(self._fitted)):
            raise ConfigError(
                f'The model in "{self.config.base}" has changed since this run was started. Use a new run '
                "folder."
            )
        return super().load_state_dict(state_dict, *more, **given)

    def stages(self, train: ImageSet, held_out: ImageSet | None) -> list[Stage]:
        """Return the search for words; images are inverted at its end."""
        config, own = self.config, self.config.textual
        counts = tuple(train.counts().tolist())
        if min(counts) < 1:
            raise DataError(f'Class "{train.class_names[counts.index(0)]}" has no images.')
        if config.invert and config.supports != counts:
            self.config = replace(config, supports=counts)
            self._make_room()
        return [
            Stage(
                "textual_inversion",
                [
                    Phase(
                        "words",
                        self.words,
                        step=self._step,
                        lr=own.lr,
                        weight_decay=own.weight_decay,
                        watch=False,  # random times make its errors swing
                    )
                ],
                steps=own.steps,
                batch_size=own.batch_size * self.spec.n_classes,
                sampler="balanced",
                preview=self._preview,
                on_start=self._start,
                on_end=self._finish,
                end_seconds=functools.cache(lambda: self._inversion_seconds(train)),
                ema_decay=0.0,
                summary="a word for each class; then each image is inverted",
            )
        ]

    @torch.no_grad()
    def _inversion_seconds(self, train: ImageSet) -> float:
        """Return about how long the inversion of all images takes, at most: two of its steps are timed."""
        config = self.config
        if not config.invert:
            return 0.0
        few = train.subset(range(min(len(train), config.batch)))
        pipe, contexts = self.pipeline(), self._contexts()[few.labels]
        latents = encode_images(pipe, few.floats(), batch=config.batch).cpu()
        steps = min(2, config.steps)
        null_text = replace(config.null_text, inner_steps=min(1, config.null_text.inner_steps), tol=0.0)
        trial = replace(config, steps=steps, dequant_t=0, null_text=null_text)
        seconds = []
        for correct in (False, False, config.correct):  # the first round pays for warming up
            started = _now(self.device)
            rng = torch.Generator(self.device).manual_seed(0)
            find_latents(pipe, latents, contexts, trial, correct=correct, rng=rng)
            seconds.append(_now(self.device) - started)
        _, path, both = seconds
        inner = max(1, config.null_text.inner_steps) if config.correct else 0
        # Back to the image, guided, with and without null texts, to measure what comes back.
        each = path + inner * max(0.0, both - path) + 2 * path * (1 + config.correct)
        return len(train) / len(few) * config.steps / steps * each

    def _start(self, context: Context) -> None:
        """Encode the images."""
        self._clock = (0.0, 0)
        self._encoded(context)

    def _encoded(self, context: Context) -> Tensor:
        """Return the latents of the training images in their order, on the device."""
        if self._latents is None or self._latents[0] != id(context.train):
            images = [batch.images.cpu() for batch in context.train.batches(self.config.batch)]
            latents = encode_images(self.pipeline(), torch.cat(images), batch=self.config.batch)
            self._latents = (id(context.train), latents.to(self.device))
        return self._latents[1]

    def _step(self, batch: Batch, context: Context) -> LossTerms:
        """Leave the gradient of the words in place."""
        config, rng = self.config, context.rng
        started = time.perf_counter()
        z0 = self._encoded(context)[batch.indices]
        pipe = self.pipeline()
        t = torch.randint(
            config.textual.t_min, len(pipe.schedule), (len(z0),), generator=rng, device=rng.device
        )
        noise = torch.randn(z0.shape, generator=rng, device=rng.device)
        # Gradients of a word are small: the model's own precision, and no other.
        with torch.autocast(self.device.type, enabled=False):
            errors, gradient = word_gradient(
                pipe,
                config.prompt,
                self.words.embedding,
                z0,
                batch.labels,
                t.to(z0.device),
                noise.to(z0),
                batch=config.batch,
            )
        self.words.embedding.grad = gradient
        seconds, n = self._clock
        self._clock = (seconds + _now(self.device) - started, n + 1)
        return LossTerms({"denoising": errors.mean()})

    @torch.no_grad()
    def _contexts(self) -> Tensor:
        """Return the embedded prompt of each class, (n_classes, L, D)."""
        return class_contexts(self.pipeline(), self.config.prompt, self.words.embedding)

    @torch.no_grad()
    def _finish(self, context: Context) -> dict[str, float]:
        """Invert the images, and measure how well they come back and how long it took."""
        config = self.config
        n = len(context.train)
        seconds, steps = self._clock
        figures: dict[str, float] = {}
        if steps:  # a run resumed after the last step has no time of its own
            figures["seconds_per_image/textual_inversion"] = seconds / steps * context.steps / n
        if config.invert:
            figures |= self._find(context.train, self._encoded(context), context)
        self._latents = None
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        context.note(f"TINT: {shown}")
        return figures

    def _find(self, train: Pixels, latents: Tensor, context: Context) -> dict[str, float]:
        config, pipe = self.config, self.pipeline()
        order = train.labels.argsort(stable=True)
        # On the host, and so are paths and null texts: only a batch of them is on the device at a time.
        labels, z0 = train.labels[order], latents[order].cpu()
        contexts = self._contexts()[labels]
        said = time.monotonic()

        def progress(what: str, done: float) -> None:
            nonlocal said
            if time.monotonic() - said > _NOTE_SECONDS:
                said = time.monotonic()
                context.note(f"{what}: {done:.0%}")

        started = _now(self.device)
        z_T, u = find_latents(
            pipe,
            z0,
            contexts,
            config,
            correct=config.correct,
            rng=context.rng,
            progress=progress,
        )
        took = _now(self.device) - started
        self.images.copy_(train.source.images[order.cpu()])
        self.z_T.copy_(z_T)
        if u is not None:
            self.u.copy_(u)
        rms = latent_rms(z_T)
        figures = {
            "rms_z_T/lowest": float(rms.min()),
            "rms_z_T/mean": float(rms.mean()),
            "rms_z_T/highest": float(rms.max()),
        }
        wanted = self._decoded(pipe, z0)
        ways = {"without_null_text": None} if u is None else {"without_null_text": None, "with_null_text": u}
        for name, nulls in ways.items():
            again = _now(self.device)
            back = reconstruct(
                pipe,
                z_T,
                contexts,
                nulls,
                config.guidance_scale,
                config.steps,
                batch=config.batch,
                progress=progress,
            )
            seconds = _now(self.device) - again
            figures[f"reconstruction_error/{name}"] = float(
                (self._decoded(pipe, back) - wanted).square().mean()
            )
        figures["seconds_per_image/null_text_inversion"] = took / len(z0)
        figures["seconds_per_image/generation"] = seconds / len(z0)
        return figures

    def _decoded(self, pipe: TextToImage, z0: Tensor) -> Tensor:
        return torch.cat([decode_latents(pipe, part) for part in z0.split(self.config.batch)])

    def _preview(self, context: Context) -> Tensor:
        """Return one picture: a row per class, from a real image to a new one."""
        labels = torch.arange(min(SHOWN_CLASSES, self.spec.n_classes))
        seeds = image_seeds(0, len(labels))
        alphas = SHOWN_ALPHAS if self.has_latents else (1.0,)
        columns = [self.starts(labels, seeds)] if self.has_latents else []
        columns += [
            self.generate(GenerationRequest(labels=labels, seeds=seeds, options={"alpha": alpha})).images
            for alpha in alphas
        ]
        cells = torch.stack(columns, 1)  # (rows, columns, C, H, W)
        return cells.permute(2, 0, 3, 1, 4).reshape(
            self.spec.channels, len(labels) * self.spec.height, len(columns) * self.spec.width
        )

    # ------------------------------------------------------------------------------------ using it

    def generate(self, request: GenerationRequest) -> GeneratedImages:
        """Make the requested images; `provenance["supports"]` says from which image of its class each starts.

        Raises:
            ConfigError: alpha is outside [0, 1], or below 1 without inverted latents.
        """
        self._check_alpha(request.options.get("alpha", self.config.alpha))
        made = super().generate(request)
        if self.has_latents and request.labels is not None:
            made.provenance["supports"] = self._places(request.labels, request.seeds).tolist()
        return made

    def _check_alpha(self, alpha: float | str) -> None:
        check_alpha(alpha)
        if alpha != 1 and not self.config.supports:
            raise ConfigError(
                f"This model learned words alone, which give images at alpha 1 only; got {alpha}. Train with "
                "inverted latents (without --model.invert false)."
            )

    def _places(self, labels: Tensor, seeds: Tensor) -> Tensor:
        """Return which image of its class each image starts from, int64 (N,)."""
        counts = torch.tensor(self.config.supports)
        return choose_supports(seeds, counts[labels.cpu()])

    def _rows(self, labels: Tensor, seeds: Tensor) -> Tensor:
        """Return the same as rows of the buffers, int64 (N,)."""
        counts = torch.tensor(self.config.supports)
        return (counts.cumsum(0) - counts)[labels.cpu()] + self._places(labels, seeds)

    def starts(self, labels: Tensor, seeds: Tensor) -> Tensor:
        """Return the real image that each image starts from, uint8 (N, C, H, W).

        Raises:
            ConfigError: no images have been inverted.
        """
        if not self.has_latents:
            raise ConfigError("This model learned words alone: its images start from noise.")
        return self.images.cpu()[self._rows(labels, seeds)]

    @torch.no_grad()
    def sample(
        self,
        class_vectors: Tensor | None,
        labels: Tensor,
        seeds: Tensor,
        temperature: float,
        *,
        alpha: float | str | None = None,
        norm_mode: str | None = None,
        **options: Any,
    ) -> Tensor:
        """Return images, float (N, C, H, W) in [-1, 1]; see `Method.sample`.

        Args:
            class_vectors: not looked at.
            labels: int64 (N,).
            seeds: int64 (N,); each decides on noise and the image that is started from.
            temperature: scale of the fresh noise.
            alpha: in [0, 1], or "uniform"; None: `config.alpha`.
            norm_mode: of the blend; None: `config.norm_mode`.
            options: there are no others.
        """
        if options:
            raise ConfigError(f"Unknown options {sorted(options)}; tint has alpha and norm_mode.")
        config = self.config
        alpha = config.alpha if alpha is None else alpha
        self._check_alpha(alpha)
        z_T = u = None
        if self.has_latents:
            rows = self._rows(labels, seeds).to(self.device)
            z_T = self.z_T[rows]
            u = self.u[:, rows] if config.correct else None
        return draw(
            self.pipeline(),
            self._contexts()[labels],
            z_T,
            u,
            seeds,
            choose_alphas(alpha, seeds),
            guidance_scale=config.guidance_scale,
            steps=config.steps,
            norm_mode=config.norm_mode if norm_mode is None else norm_mode,
            temperature=temperature,
            size=(self.spec.height, self.spec.width),
            batch=config.batch,
        )

    # ---------------------------------------------------------------------------- as specialisations

    def specialisations(self) -> list[Specialisation]:
        """Return what was found for each class, as objects of `fewgen.diffusion`."""
        config, found = self.config, self.has_latents
        return by_class(
            self.spec.class_names,
            self._fitted.model_id,
            config,
            self.words.embedding,
            config.supports,
            self.z_T if found else None,
            self.u if found and config.correct else None,
            config.correct and config.invert,
        )

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        pipe: TextToImage,
        specialisations: Sequence[Specialisation],
        folder: str = "",
        batch: int = 64,
    ) -> Tint:
        """Return a method that draws what specialisations describe, at the size of their model.

        Args:
            pipe: the model that they belong to; it is used, not copied.
            specialisations: one per class, made with the same prompt, guidance, steps and parts.
            folder: of a Stable Diffusion, which a saved method refers to.
            batch: most images computed at a time.

        Raises:
            CheckpointError: a specialisation belongs to another model.
            ConfigError: they were made with different settings, or there are none.
        """
        if not specialisations:
            raise ConfigError("There is no specialisation to draw.")
        first = specialisations[0]
        for each in specialisations:
            each.check(pipe, guidance_scale=first.guidance_scale, steps=first.steps)
            parts = (each.prompt, each.z_T is None, each.u is None)
            if parts != (first.prompt, first.z_T is None, first.u is None):
                raise ConfigError(
                    f'The specialisations to "{first.class_name}" and "{each.class_name}" differ in their '
                    "prompts or in what was found. Make them together."
                )
        z_T = [each.z_T for each in specialisations if each.z_T is not None]
        u = [each.u for each in specialisations if each.u is not None]
        dequant_t = first.settings.get("dequant_t", 0)
        config = TintConfig(
            prompt=first.prompt,
            guidance_scale=first.guidance_scale,
            steps=first.steps,
            invert=bool(z_T),
            correct=bool(u),
            dequant_t=dequant_t if type(dequant_t) is int else 0,  # a note; nothing is inverted any more
            batch=batch,
            fitted=describe(pipe, folder),
            supports=tuple(len(z) for z in z_T),
        )
        names = tuple(each.class_name for each in specialisations)
        method = cls(config, DataSpec(*pipe.image_shape, names))
        method.to(next(pipe.parameters()).device)
        method._hold(pipe)
        method.words.embedding.data.copy_(torch.stack([each.embedding for each in specialisations]))
        if z_T:
            method.z_T.copy_(torch.cat(z_T))
            if u:
                method.u.copy_(torch.cat(u, 1))
            # The images themselves are not known: what the model gives back in their place.
            counts = torch.tensor(config.supports)
            contexts = method._contexts()[torch.arange(len(z_T)).repeat_interleave(counts)]
            nulls = method.u if u else None
            back = reconstruct(
                pipe, method.z_T, contexts, nulls, config.guidance_scale, config.steps, batch=batch
            )
            method.images.copy_(to_uint8(method._decoded(pipe, back)))
        return method.eval()


def _digest(fitted: BaseModel) -> Tensor:
    """Return a hash of the base model, uint8 (32,)."""
    digest = hashlib.sha256(fitted.model_id.encode()).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


def _now(device: torch.device) -> float:
    """Return the time in seconds, once the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
