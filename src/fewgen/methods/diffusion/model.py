"""A text-to-image diffusion model that is trained from scratch on captions with class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewgen.config.schema import warn_renamed
from fewgen.data.augment import Augment
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.diffusion.small import SmallDiffusion, Vocabulary, words_of
from fewgen.errors import ConfigError, TextError
from fewgen.evaluation.checkpoint import N_DRAWN
from fewgen.generation.noise import noise
from fewgen.losses.terms import LossTerms
from fewgen.methods.base import DataSpec, Method
from fewgen.methods.diffusion.config import AutoencoderConfig, DiffusionConfig
from fewgen.methods.registry import register
from fewgen.training.phases import Batch, Context, LossFunction, Phase, Stage

SHOWN = 6
"""Classes in a preview, a column each."""

MEASURED = 512
"""Held-out images that are measured at a time, spread evenly over all of them."""

USEFUL_CAPTION = 1e-4
"""How much worse another class's caption must make the squared error of the noise to count."""


@register("diffusion")
class Diffusion(Method):
    """Text-to-image diffusion for small images: on pixels, on patches of them, or on latents.

    The denoiser reads the caption of an image, "a photo of a sneaker", by cross-attention. It is what
    `tint` specialises to new classes, and a generator by itself.

    Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239 (training); Song, Meng & Ermon 2021, arXiv:2010.02502
        (sampling); Ho & Salimans 2022, arXiv:2207.12598 (guidance); Rombach et al. 2022, arXiv:2112.10752
        (cross-attention to text, latents).
    Differs: all sizes and settings are ours, for small images; captions know only the names of the classes.
    """

    Config: ClassVar[type] = DiffusionConfig
    capabilities = frozenset({"text", "interpolate"})
    min_classes = 1
    reads_text = False
    rows = 16
    config: DiffusionConfig
    tokens: Tensor

    def __init__(self, config: DiffusionConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        names = short_names(spec.class_names)
        self.captions = tuple(config.template.replace("{}", name) for name in names)
        _check_names(spec.class_names, names, self.captions)
        longest = max(len(words_of(caption)) for caption in self.captions)
        network = replace(config.network, text_length=max(config.network.text_length, longest))
        self.pipe = SmallDiffusion(network, spec.shape, Vocabulary.of(self.captions, names))
        self.register_buffer("tokens", self.pipe.tokens(list(self.captions)), persistent=False)

    @property
    def citations(self) -> tuple[str, ...]:
        """Keys of the works that this configuration rests on."""
        latent = ("latent_diffusion",) if self.config.network.latent is not None else ()
        return ("ddpm", "ddim", "guidance", *latent)

    # ------------------------------------------------------------------------------------ training

    def stages(self, train: ImageSet, held_out: ImageSet | None) -> list[Stage]:
        """Return the autoencoder's training, if there is one, and the denoiser's."""
        config, augment = self.config, self._augment()

        def stage(
            name: str,
            modules: nn.Module | list[nn.Module],
            loss: LossFunction,
            own: DiffusionConfig | AutoencoderConfig,
            validate: Callable[[Context], dict[str, float]],
            weight_decay: float = 0.0,
            **more: Any,
        ) -> Stage:
            phase = Phase(
                name, modules, loss, lr=own.lr, clip=1.0, weight_decay=weight_decay, schedule=config.schedule
            )
            if held_out is not None:
                more |= {"validate": validate, "monitor": "loss"}
            return Stage(name, [phase], own.steps, own.batch_size, augment=augment, **more)

        denoiser = stage(
            "denoiser",
            [self.pipe.unet, self.pipe.text],
            self._denoiser_loss,
            config,
            self._validate,
            config.weight_decay,
            draws=True,
            # A step passes a batch forwards and back; each step of DDIM reads a caption and none.
            draw_steps=N_DRAWN * 2 * config.sampling_steps / (3 * config.batch_size),
            preview=self._preview,
            diagnose=self._diagnose,
            on_end=self._set_object_word,
            summary="denoiser, conditioned on captions",
        )
        if self.pipe.vae is None:
            return [denoiser]
        autoencoder = stage(
            "autoencoder",
            self.pipe.vae,
            self._autoencoder_loss,
            config.autoencoder,
            self._validate_autoencoder,
            preview=self._preview_autoencoder,
            diagnose=self._diagnose_autoencoder,
            on_end=self._scale_latents,
            summary="autoencoder: images to latents and back",
            time_share=0.25,
        )
        return [autoencoder, denoiser]

    def _augment(self) -> Callable[[Tensor, torch.Generator], Tensor]:
        change = Augment(self.config.augment)
        if not self.config.mirror:
            return change

        def augment(images: Tensor, rng: torch.Generator) -> Tensor:
            images = change(images, rng)
            flip = torch.rand(len(images), generator=rng, device=rng.device) < 0.5
            return torch.where(flip.to(images.device)[:, None, None, None], images.flip(3), images)

        return augment

    def _denoiser_loss(self, batch: Batch, context: Context) -> LossTerms:
        loss = self.pipe.loss(batch.images, self.tokens[batch.labels], context.rng, self.config.drop)
        return LossTerms({"denoising": loss})

    def _autoencoder_loss(self, batch: Batch, context: Context) -> LossTerms:
        loss = self.pipe.autoencoder_loss(batch.images, context.rng, self.config.autoencoder.kl_weight)
        return LossTerms({"reconstruction": loss})

    @torch.no_grad()
    def _validate(self, context: Context) -> dict[str, float]:
        """Error of the noise on held-out images with their captions, and how much worse with others'."""
        assert context.held_out is not None
        batch = context.held_out.spread(MEASURED)
        others = (batch.labels + 1) % self.spec.n_classes
        state = context.rng.get_state()
        loss = self._error(batch.images, batch.labels, context.rng)
        context.rng.set_state(state)  # the same times and noise
        figures = {"loss": loss}
        if self.spec.n_classes > 1:
            figures["caption_gain"] = self._error(batch.images, others, context.rng) - loss
        return figures

    def _error(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> float:
        parts = [
            float(self.pipe.loss(x, self.tokens[y], rng, drop=0.0)) * len(x)
            for x, y in zip(images.split(64), labels.split(64), strict=True)
        ]
        return sum(parts) / len(images)

    def _validate_autoencoder(self, context: Context) -> dict[str, float]:
        assert context.held_out is not None
        images = context.held_out.spread(MEASURED).images
        restored = torch.cat([self.pipe.decode(self.pipe.encode(x)) for x in images.split(64)])
        return {"loss": float(torch.nn.functional.mse_loss(restored, images))}

    def _diagnose_autoencoder(self, context: Context) -> list[str]:
        share = self.pipe.active_share(context.train.spread(64).images) if len(context.train) > 1 else 1.0
        if share > 0.1:
            return []
        return [
            f"Posterior collapse: only {share:.0%} of the latent numbers tell images apart. Lower "
            f"model.autoencoder.kl_weight (now {self.config.autoencoder.kl_weight:g})."
        ]

    @torch.no_grad()
    def _scale_latents(self, context: Context) -> None:
        self.pipe.set_latent_scale(context.train.spread(MEASURED).images)

    def _set_object_word(self, context: Context) -> None:
        # Where "object" is all that the classes are called, training has taught the word itself.
        if self.pipe.vocabulary.class_words:
            self.pipe.set_object_word()

    def _preview(self, context: Context) -> Tensor:
        labels = torch.arange(SHOWN**2, device=self.device) % min(SHOWN, self.spec.n_classes)
        seeds = torch.arange(len(labels))
        images = [
            self.sample(None, y, s, 1.0)
            for y, s in zip(labels.split(self.rows), seeds.split(self.rows), strict=True)
        ]
        return to_uint8(torch.cat(images)).cpu()

    def _preview_autoencoder(self, context: Context) -> Tensor:
        images = context.train.at(torch.linspace(0, len(context.train) - 1, 20).long()).images
        return to_uint8(torch.cat([images, self.pipe.decode(self.pipe.encode(images))])).cpu()

    def _diagnose(self, context: Context) -> list[str]:
        if context.progress < 0.5 or context.held_out is None or self.spec.n_classes < 2:
            return []
        gain = self._validate(context)["caption_gain"]
        if gain >= USEFUL_CAPTION:
            return []
        return [
            f"Captions hardly steer the images: another class's raises the error by {gain:.1e} only. Train "
            "longer, or raise model.network.attention_levels."
        ]

    # ------------------------------------------------------------------------------------ using it

    def contexts(self, captions: Sequence[str]) -> Tensor:
        """Return what the denoiser reads of captions, flattened: (N, L * D)."""
        with torch.no_grad():
            return self.pipe.embed(list(captions)).flatten(1)

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Return what the denoiser reads of free texts, (N, L * D); a bare name is put into the template.

        Raises:
            TextError: a word that no class name has, or too many words.
        """
        template = self.config.template
        before = words_of(template.split("{}")[0])
        whole = [
            text if words_of(text)[: len(before)] == before else template.replace("{}", text)
            for text in texts
        ]
        return self.contexts(whole)

    def class_vectors(self, labels: Tensor) -> Tensor:
        """Return what the denoiser reads of classes, (N, L * D)."""
        unique, rows = labels.unique(return_inverse=True)
        return self.contexts([self.captions[label] for label in unique.tolist()])[rows]

    @torch.no_grad()
    def sample(
        self,
        class_vectors: Tensor | None,
        labels: Tensor,
        seeds: Tensor,
        temperature: float,
        *,
        guidance_scale: float | None = None,
        steps: int | None = None,
        **options: Any,
    ) -> Tensor:
        """Return images, float (N, C, H, W) in [-1, 1]; see `Method.sample`.

        Args:
            class_vectors: (N, L * D) of `text_vectors` or `class_vectors`; None: those of the labels.
            labels: int64 (N,).
            seeds: int64 (N,).
            temperature: scale of the noise that sampling starts from.
            guidance_scale: of guidance; None: `config.guidance_scale`.
            steps: of DDIM; None: `config.sampling_steps`.
            options: there are no others.
        """
        if guidance_scale is None and "scale" in options:
            warn_renamed("scale", "guidance_scale")
            guidance_scale = options.pop("scale")
        if options:
            raise ConfigError(f"Unknown options {sorted(options)}; diffusion has guidance_scale and steps.")
        vectors = self.class_vectors(labels) if class_vectors is None else class_vectors
        context = vectors.to(self.device, torch.float32).unflatten(1, self.pipe.context_shape)
        start = temperature * noise(seeds, self.pipe.latent_shape).to(self.device)
        null = self.contexts([""]).unflatten(1, self.pipe.context_shape).expand_as(context)
        z0 = self.pipe.sample(
            start,
            context,
            null,
            self.config.guidance_scale if guidance_scale is None else guidance_scale,
            self.config.sampling_steps if steps is None else steps,
        )
        return self.pipe.decode(z0)

    def encode_text(self, vectors: Tensor) -> Tensor:
        """Return latents (N, L * D) of text vectors (N, L * D): what the denoiser reads."""
        return vectors

    def decode(self, latents: Tensor, seeds: Tensor, temperature: float = 1.0) -> Tensor:
        """Return images in [-1, 1], (N, C, H, W), of what the denoiser reads, (N, L * D), or between.

        Args:
            latents: of `encode_text`, or between them.
            seeds: int64 (N,), of the noise.
            temperature: scale of the noise.
        """
        return self.sample(latents, torch.full((len(latents),), -1), seeds, temperature)


def short_names(class_names: Sequence[str]) -> list[str]:
    """Return the first of each class's names, or all of them where two classes share the first.

    >>> short_names(["goldfish, Carassius auratus", "crane, bird", "crane, machine"])
    ['goldfish', 'crane, bird', 'crane, machine']
    """
    first = [name.split(",")[0].strip() for name in class_names]
    words = [tuple(words_of(name)) for name in first]
    return [
        short if words.count(own) == 1 and own else name
        for short, own, name in zip(first, words, class_names, strict=True)
    ]


def _check_names(class_names: Sequence[str], names: Sequence[str], captions: Sequence[str]) -> None:
    """Refuse names without a word, and classes that the captions do not tell apart.

    Raises:
        TextError: names every such class, or two of equal caption.
    """
    wordless = [f'"{name}"' for name, short in zip(class_names, names, strict=True) if not words_of(short)]
    if wordless:
        raise TextError(
            f"These class names hold no word: {', '.join(wordless[:8])}. A text-to-image model learns "
            "classes by their words: rename them."
        )
    first: dict[tuple[str, ...], str] = {}
    for name, caption in zip(class_names, captions, strict=True):
        other = first.setdefault(tuple(words_of(caption)), name)
        if other != name:
            raise TextError(
                f'The classes "{other}" and "{name}" have the same words in their captions ("{caption}"). '
                "Rename one of them, or put them into one class."
            )
