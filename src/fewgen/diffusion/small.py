"""A small text-to-image diffusion model of diffusers' classes, built from a configuration."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.config.checks import Checked, Count, Few, at_least, between, share
from fewgen.config.effects import NULL, Acts, acts
from fewgen.config.records import checked
from fewgen.config.schema import from_dict, to_dict
from fewgen.diffusion.pipeline import TextToImage, check_shape, content_hash
from fewgen.diffusion.schedule import NoiseSchedule
from fewgen.encoders.pretrained import optional_library
from fewgen.errors import ConfigError, DataError, ShapeError, TextError, suggest
from fewgen.losses.divergence import active_units

OBJECT = "object"
"""The word that means no class in particular: where a new word starts from."""

_TEMPLATE = ("a", "photo", "of", OBJECT)
_PAD = 0
_LEAST_SIGNAL = 1e-12
"""Share of signal at the last time, below which sampling divides by next to nothing."""
_GROUPS = 8


@dataclass(frozen=True)
class SmallLatentConfig(Checked):
    """A small KL autoencoder; each level after the first halves the sides.

    Attributes:
        channels: width of each level.
        latent_channels: channels of a latent.
        layers: residual blocks in each level.
    """

    section: ClassVar[str] = "latent"

    channels: tuple[int, ...] = (16, 32, 32)
    latent_channels: Count = 4
    layers: Few = 1


@dataclass(frozen=True)
class SmallDiffusionConfig(Checked):
    """Sizes of a `SmallDiffusion`; the defaults have about a million parameters.

    Attributes:
        channels: width of each level of the denoiser; each after the first halves the sides.
        layers: residual blocks in each level.
        attention_levels: how many levels, from the coarsest, look at the words.
        heads: attention heads, in denoiser and text tower.
        text_width: width of a word's embedding and of the context.
        text_length: places of a prompt.
        text_layers: transformer layers of the text tower.
        latent: None works on pixels; otherwise the autoencoder whose latents are worked on.
        patch: side of the squares of pixels that become the channels of one place; 2 costs a quarter of 1
            and loses nothing. Without `latent` only.
        schedule: noise schedule.
        times: number of times of the noise schedule.
        prediction: what the network gives; the pipeline gives noise in both cases. With "epsilon", the loss
            hardly sees the noisiest times, where only the caption says what the image will be: small models
            then learn captions many times more slowly.
    """

    channels: tuple[int, ...] = (24, 48, 48)
    layers: Few = 1
    attention_levels: int = 2
    heads: Count = 4
    text_width: Annotated[int, partial(between, least=1, most=65_536)] = 48
    text_length: Few = 8
    text_layers: Annotated[int, partial(between, least=0, most=1000)] = 2
    latent: SmallLatentConfig | None = None
    patch: Count = 1
    schedule: Literal["scaled_linear", "linear", "cosine"] = "scaled_linear"
    times: Annotated[int, partial(at_least, least=2), partial(between, least=2, most=100_000)] = 1000
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"

    effects: ClassVar[tuple[Acts, ...]] = (acts("patch", {"latent": NULL}),)


def words_of(text: str) -> list[str]:
    """Words of a caption, in lower case, without punctuation; "an" counts as "a".

    >>> words_of("A photo of an Ankle boot, worn/used.")
    ['a', 'photo', 'of', 'a', 'ankle', 'boot', 'worn', 'used']
    """
    # One article: a new class must not need an embedding that the captions never trained.
    return ["a" if word == "an" else word for word in re.findall(r"[^\s/,;|_.!?\"()]+", text.lower())]


@dataclass(frozen=True)
class Vocabulary:
    """The words that a small model knows.

    Attributes:
        words: every word once; its row in the table is its place here plus 1, after the padding.
        class_words: those of them that name classes, whose mean becomes "object".
    """

    words: tuple[str, ...]
    class_words: tuple[str, ...]

    @classmethod
    def of(cls, captions: Iterable[str], class_names: Iterable[str] | None = None) -> Vocabulary:
        """Collect the words of captions, and of "a photo of an object".

        Args:
            captions: the texts that the model learns from.
            class_names: names whose words become the class words, known or not from the captions; None:
                the words that not every caption has.

        Raises:
            TextError: there is no word at all.

        >>> Vocabulary.of(["a photo of a cat", "a photo of a dog"]).class_words
        ('cat', 'dog')
        """
        texts: list[set[str]] = [set(words_of(caption)) for caption in set(captions)]
        known: set[str] = set().union(*texts)
        if class_names is None:
            everywhere = known.intersection(*texts)
            named = known - everywhere - {"a"}
        else:
            named = {word for name in class_names for word in words_of(name)}
        found = known | named
        if not found:
            raise TextError('The captions contain no word. Give captions such as "a photo of a sneaker".')
        rest = sorted(found - set(_TEMPLATE))
        return cls((*_TEMPLATE, *rest), tuple(sorted(named - {OBJECT})))


class _TextLayer(nn.Module):
    """Pre-norm transformer layer without masks."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(seen)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class _TextTower(nn.Module):
    """Word table, learned places, transformer layers, last norm.

    Padding is a word like any other: the null prompt is all padding, and every place of it can carry what
    null-text inversion learns.
    """

    def __init__(self, n_words: int, config: SmallDiffusionConfig) -> None:
        super().__init__()
        width = config.text_width
        self.table = nn.Embedding(n_words, width)
        self.places = nn.Parameter(torch.zeros(config.text_length, width))
        self.layers = nn.ModuleList(_TextLayer(width, config.heads) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.table.weight, std=0.1)
        nn.init.normal_(self.places, std=0.05)

    def forward(self, words: Tensor) -> Tensor:
        """Context (B, L, D) of input embeddings (B, L, D)."""
        x = words + self.places
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class _Settings(TypedDict):
    image_shape: tuple[Count, Count, Count]
    words: list[str]
    class_words: list[str]
    config: dict[str, Any]


def _complete(settings: Mapping[str, Any]) -> _Settings:
    advice = "The settings of the diffusion model are incomplete."
    return checked(settings, _Settings, "The description", ConfigError, advice)


class SmallDiffusion(TextToImage):
    """Text-to-image diffusion for small images: diffusers' conditional U-Net and a small text tower.

    In pixel space, or in the latents of a small `AutoencoderKL` of diffusers. All state lies in parameters
    and buffers; `settings()` gives the rest as plain values.

    Args:
        config: sizes.
        image_shape: (C, H, W) of the images.
        vocabulary: the words it knows; or captions, whose words it will know.

    Raises:
        ConfigError: sizes that do not fit each other or the images.
        MissingDependencyError: diffusers is not installed.

    Source: Rombach et al. 2022, arXiv:2112.10752, Sec. 3 (denoiser with cross-attention to words, in the
        latents of an autoencoder).
    Differs: the words that it knows are those of its captions, one token each; padding is not masked.
    """

    def __init__(
        self,
        config: SmallDiffusionConfig,
        image_shape: tuple[int, int, int],
        vocabulary: Vocabulary | Iterable[str],
    ) -> None:
        super().__init__()
        words = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.of(vocabulary)
        self.config, self.vocabulary = config, words
        self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        _check(config, self.image_shape)
        self._rows = {word: row for row, word in enumerate(words.words, start=1)}
        self.schedule = getattr(NoiseSchedule, config.schedule)(config.times)
        if self.schedule.bar(config.times - 1) < _LEAST_SIGNAL:
            raise ConfigError(
                f"With {config.times} times the schedule {config.schedule} ends in pure noise. Use fewer "
                "times."
            )
        self.context_shape = (config.text_length, config.text_width)
        self.latent_shape = _latent_shape(config, self.image_shape)
        self.text = _TextTower(1 + len(words.words), config)
        diffusers = optional_library("diffusers", "The model SmallDiffusion", "diffusion")
        self.unet = diffusers.UNet2DConditionModel(**_unet_settings(config, self.latent_shape))
        self.vae = (
            None
            if config.latent is None
            else diffusers.AutoencoderKL(**_vae_settings(config.latent, self.image_shape))
        )
        self.register_buffer("latent_scale", torch.ones(()))
        self.latent_scale: Tensor

    def settings(self) -> dict[str, Any]:
        """Everything but the tensors, as plain values for a model file."""
        return {
            "config": to_dict(self.config),
            "image_shape": list(self.image_shape),
            "words": list(self.vocabulary.words),
            "class_words": list(self.vocabulary.class_words),
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> SmallDiffusion:
        """Build a model from `settings()`; its tensors are then loaded with `load_state_dict`.

        Raises:
            ConfigError: settings that are missing or of another kind.
        """
        found = _complete(settings)
        channels, height, width = found["image_shape"]
        words = Vocabulary(tuple(found["words"]), tuple(found["class_words"]))
        config = from_dict(SmallDiffusionConfig, found["config"])
        return cls(config, (channels, height, width), words)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.latent_scale.device

    @property
    def model_id(self) -> str:
        """Hash of weights and settings; computed anew each time, because training changes it."""
        settings = json.dumps(self.settings(), sort_keys=True).encode()
        return content_hash([("settings", settings), *self.state_dict().items()])

    # images

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents (B, *latent_shape) of images (B, C, H, W) in [-1, 1]; of pixels, patches."""
        check_shape("Images", x, self.image_shape)
        if self.vae is None:
            return functional.pixel_unshuffle(x, self.config.patch)
        return self.vae.encode(x).latent_dist.mode() * self.latent_scale

    @torch.no_grad()
    def decode(self, z0: Tensor) -> Tensor:
        """Images (B, C, H, W), cut off at [-1, 1], of latents (B, *latent_shape)."""
        check_shape("Latents", z0, self.latent_shape)
        if self.vae is None:
            return functional.pixel_shuffle(z0, self.config.patch).clamp(-1, 1)
        x: Tensor = self.vae.decode(z0 / self.latent_scale).sample
        return x.clamp(-1, 1)

    # words

    def _word_ids(self, text: str) -> list[int]:
        words = words_of(text)
        unknown = [word for word in dict.fromkeys(words) if word not in self._rows]
        if unknown:
            named = ", ".join(f'"{word}"' for word in unknown)
            raise TextError(
                f"This diffusion model does not know {named}: it learned {len(self._rows)} words from its "
                f"captions.{suggest(unknown[0], self._rows)} Use its words, or a placeholder with an "
                "embedding."
            )
        return [self._rows[word] for word in words]

    def _framed(self, ids: list[int]) -> list[int]:
        return ids + [_PAD] * (self.config.text_length - len(ids))

    def _table(self) -> Tensor:
        return self.text.table.weight

    def _context(self, ids: Tensor, rows: Tensor) -> Tensor:
        return self.text(functional.embedding(ids, torch.cat([self._table(), rows])))

    @torch.no_grad()
    def set_object_word(self) -> None:
        """Make "object" the mean of the class words' embeddings; call it once they are learned.

        Raises:
            ConfigError: the vocabulary has no class words.
        """
        rows = [self._rows[word] for word in self.vocabulary.class_words]
        if not rows:
            raise ConfigError('There are no class words to make "object" from: name them in the vocabulary.')
        table = self.text.table.weight
        table[self._rows[OBJECT]] = table[rows].mean(0)

    # noise

    def eps(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Noise (B, *latent_shape), in the precision of `z`, at the times `t` int64 (B,)."""
        found = self._network(z, t, context)
        if self.config.prediction == "v_prediction":
            return self.schedule.noise_of_velocity(z, found, t)
        return found

    def _network(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        check_shape("Latents", z, self.latent_shape)
        check_shape("Contexts", context, self.context_shape)
        own = self.unet.conv_in.weight.dtype
        found: Tensor = self.unet(z.to(own), t, encoder_hidden_states=context.to(own)).sample
        return found.to(z.dtype)

    def loss(
        self,
        images: Tensor,
        captions: Sequence[str] | Tensor,
        rng: torch.Generator,
        drop: float = 0.1,
    ) -> Tensor:
        """Mean squared error of the predicted noise (or velocity) at random times; a scalar.

        Args:
            images: (B, C, H, W) in [-1, 1]. In latent space the autoencoder gets no gradient.
            captions: B texts, or their `tokens` int64 (B, L).
            rng: draws times, noise and dropped captions.
            drop: share of captions replaced by the null prompt, so that guidance has something to lean on.

        Raises:
            ShapeError: images of another shape, or another number of captions.
            TextError: a caption with an unknown word.

        Source: Ho et al. 2020, arXiv:2006.11239, Eq. 14; Ho & Salimans 2022, arXiv:2207.12598, Alg. 1.
        """
        share("drop", drop)
        z0 = self.encode(images)
        ids = captions.to(z0.device) if isinstance(captions, Tensor) else self.tokens(captions)
        if tuple(ids.shape) != (len(z0), self.config.text_length):
            needed = (len(z0), self.config.text_length)
            raise ShapeError(f"{len(z0)} images need captions {needed}, got {tuple(ids.shape)}.")
        source = rng.device
        t = torch.randint(len(self.schedule), (len(z0),), generator=rng, device=source).to(z0.device)
        eps = torch.randn(z0.shape, generator=rng, device=source).to(z0)
        dropped = (torch.rand(len(z0), generator=rng, device=source) < drop).to(z0.device)
        ids = ids.masked_fill(dropped[:, None], _PAD)
        context = self._context(ids, self._table()[:0])
        found = self._network(self.schedule.add_noise(z0, eps, t), t, context)
        velocity = self.config.prediction == "v_prediction"
        wanted = self.schedule.velocity(z0, eps, t) if velocity else eps
        return functional.mse_loss(found, wanted)

    # the autoencoder

    def autoencoder_loss(self, images: Tensor, rng: torch.Generator, kl_weight: float = 1e-6) -> Tensor:
        """Squared error of the reconstruction plus the weighted KL to N(0, 1), both per number; a scalar.

        Args:
            images: (B, C, H, W) in [-1, 1].
            rng: draws the latents.
            kl_weight: weight of the KL.

        Raises:
            ConfigError: the model works on pixels.

        Source: Rombach et al. 2022, arXiv:2112.10752, Sec. 3.1 (KL regularisation).
        Differs: no perceptual and no adversarial term.
        """
        vae = self._autoencoder()
        check_shape("Images", images, self.image_shape)
        found = vae.encode(images).latent_dist
        noise = torch.randn(found.mean.shape, generator=rng, device=rng.device).to(found.mean)
        restored = vae.decode(found.mean + found.std * noise).sample
        kl = 0.5 * (found.mean**2 + found.var - 1 - found.logvar).mean()
        return functional.mse_loss(restored, images) + kl_weight * kl

    @torch.no_grad()
    def active_share(self, images: Tensor) -> float:
        """Return the share of the autoencoder's numbers that tell at least 2 images (B, C, H, W) apart."""
        found = self._autoencoder().encode(images).latent_dist
        return float(active_units(found.mean, found.logvar).float().mean())

    @torch.no_grad()
    def set_latent_scale(self, images: Tensor) -> None:
        """Scale latents so that those of `images` (B, C, H, W) have variance 1.

        Call it once the autoencoder is trained.

        Raises:
            ConfigError: the model works on pixels.
            DataError: all latents are equal.

        Source: Rombach et al. 2022, arXiv:2112.10752, App. G.
        """
        self._autoencoder()
        self.latent_scale.fill_(1.0)
        std = float(self.encode(images).double().std())
        if not (math.isfinite(std) and std > 0):
            raise DataError(
                f"The latents of {len(images)} images have the standard deviation {std:g}: they cannot be "
                "scaled. Give several different images."
            )
        self.latent_scale.fill_(1 / std)

    def _autoencoder(self) -> Any:
        if self.vae is None:
            raise ConfigError("This diffusion model works on pixels: it has no autoencoder to train.")
        return self.vae


def _check(config: SmallDiffusionConfig, image_shape: tuple[int, int, int]) -> None:
    """Raise `ConfigError` for sizes that do not fit each other or the images."""
    levels = [("channels", config.channels)]
    if config.latent is not None:
        levels.append(("latent.channels", config.latent.channels))
    for where, widths in levels:
        if not widths or any(width < _GROUPS or width % _GROUPS for width in widths):
            raise ConfigError(f"{where} must be multiples of {_GROUPS}, at least one, got {list(widths)}.")
    if config.patch > 1 and config.latent is not None:
        raise ConfigError(
            f"patch {config.patch} is for pixels. Set network.patch to 1, or network.latent to null."
        )
    n = len(config.channels)
    if not 1 <= config.attention_levels <= n:
        raise ConfigError(f"attention_levels must be in 1 ... {n}, got {config.attention_levels}.")
    for width in (config.text_width, *config.channels[n - config.attention_levels :]):
        if width % config.heads or width < config.heads:
            raise ConfigError(f"A width of {width} cannot be divided into {config.heads} heads.")
    down = config.patch * 2 ** (n - 1 + (0 if config.latent is None else len(config.latent.channels) - 1))
    channels, height, wide = image_shape
    if channels < 1 or min(height, wide) < down or height % down or wide % down:
        raise ConfigError(
            f"Images of {height} x {wide} cannot be divided as often as this model does: the sides must be "
            f"multiples of {down}. Resize the images (--size), or use fewer levels (channels) or patch 1."
        )


def _latent_shape(config: SmallDiffusionConfig, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if config.latent is None:
        side = config.patch
        return image_shape[0] * side**2, image_shape[1] // side, image_shape[2] // side
    down = 2 ** (len(config.latent.channels) - 1)
    return config.latent.latent_channels, image_shape[1] // down, image_shape[2] // down


def _unet_settings(config: SmallDiffusionConfig, latent_shape: tuple[int, int, int]) -> dict[str, Any]:
    n = len(config.channels)
    attends = [level >= n - config.attention_levels for level in range(n)]
    return {
        "sample_size": latent_shape[1:],
        "in_channels": latent_shape[0],
        "out_channels": latent_shape[0],
        "block_out_channels": config.channels,
        "layers_per_block": config.layers,
        "norm_num_groups": _GROUPS,
        "cross_attention_dim": config.text_width,
        # The number of heads, in spite of the name.
        "attention_head_dim": config.heads,
        "down_block_types": tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
    }


def _vae_settings(latent: SmallLatentConfig, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    n = len(latent.channels)
    return {
        "in_channels": image_shape[0],
        "out_channels": image_shape[0],
        "block_out_channels": latent.channels,
        "down_block_types": ("DownEncoderBlock2D",) * n,
        "up_block_types": ("UpDecoderBlock2D",) * n,
        "layers_per_block": latent.layers,
        "latent_channels": latent.latent_channels,
        "norm_num_groups": _GROUPS,
    }
