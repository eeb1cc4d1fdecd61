"""Settings of TAGE."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, Literal

from fewgen.config.checks import (
    BelowOne,
    Checked,
    Count,
    Few,
    Positive,
    Rate,
    Share,
    Weight,
    Whole,
    at_least,
)
from fewgen.config.effects import ABOVE_0, GIVEN, NULL, Acts, acts
from fewgen.data.augment import PRESETS
from fewgen.encoders.named import find_encoder
from fewgen.errors import ConfigError, suggest
from fewgen.evaluation.drawings import DRAWING_PROMPTS, caption

TwoOrMore = Annotated[int, partial(at_least, least=2)]
Mode = Literal["cpm", "nn", "age"]


@dataclass(frozen=True)
class NetworkConfig(Checked):
    """Generator and encoder.

    Attributes:
        w_dim: numbers of a style.
        width: channels of the generator's largest map; smaller maps have twice as many each.
        max_width: most channels.
        start: "style" (the smallest map is a linear function of the first style) or "const" (learned, as
            published).
        output: of the generator, "linear" (as published) or "tanh". With "tanh" drawings on black may stay
            black: a large first step makes every pixel so, and no gradient comes back.
        noise: add the layers' fixed noise maps, as published.
        encoder: "pyramid" (small, trained with the generator) or "gradual" (the published one of pSp).
        encoder_width: channels of the pyramid's largest map; of the published encoder's first ones.
        encoder_side: at which the published encoder sees images.
    """

    section: ClassVar[str] = "network"
    effects: ClassVar[tuple[Acts, ...]] = (acts("encoder_side", {"encoder": "gradual"}),)
    w_dim: Count = 256
    width: Count = 16
    max_width: Count = 64
    start: Literal["style", "const"] = "style"
    output: Literal["tanh", "linear"] = "linear"
    noise: bool = False
    encoder: Literal["pyramid", "gradual"] = "pyramid"
    encoder_width: Count = 16
    encoder_side: Count = 256


@dataclass(frozen=True)
class AutoencoderConfig(Checked):
    """The first stage: generator and encoder give images back.

    It moves the encoder alone where the generator is given, and is left out where both are.

    Attributes:
        steps: of this stage.
        batch_size: images per step.
        lr: learning rate.
        ssim: weight of one minus the structural similarity, beside a squared error summed over pixels.
        perceptual: the frozen network that compares images beside their pixels: "classifier" (a small one,
            trained on the training images first), "lite0" (EfficientNet-Lite, for photographs) or "none".
        perceptual_weight: of what it says, here and in the later stages.
        perceptual_steps: of training the classifier.
        norm: weight of the styles' squared distance to their average.
        augment: of the images: preset of `Augment`.
    """

    section: ClassVar[str] = "autoencoder"
    effects: ClassVar[tuple[Acts, ...]] = (
        acts("perceptual_weight", {"perceptual": ("classifier", "lite0")}),
        acts("perceptual", {"perceptual_weight": ABOVE_0}),
        acts("perceptual_steps", {"perceptual": "classifier", "perceptual_weight": ABOVE_0}),
    )
    steps: Count = 3000
    batch_size: Count = 32
    lr: Rate = 1e-2
    ssim: Weight = 30.0
    perceptual: Literal["classifier", "lite0", "none"] = "classifier"
    perceptual_weight: Weight = 5.0
    perceptual_steps: Count = 200
    norm: Weight = 0.0
    augment: str = "shapes"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment not in PRESETS:
            raise ConfigError(
                f'autoencoder.augment is "{self.augment}".{suggest(self.augment, PRESETS)} Choose one of: '
                f"{', '.join(PRESETS)}."
            )


@dataclass(frozen=True)
class AgeConfig(Checked):
    """AGE, the baseline: changes are sums of few directions of a dictionary.

    Attributes:
        rank: directions of each group (r).
        groups: how many layers each group has, from the first layer on; layers after them are never changed.
            null: two of three layers, as published, or two halves where there are fewer than six.
        hidden: widths of the perceptrons that find the directions' coefficients.
        form: of the sparsity and orthogonality losses: "code" (the public code's) or "paper".
        sparse_weight: of the sparsity loss.
        orthogonal_weight: of the orthogonality to the class means.
        latent_weight: of the squared error of styles, which the paper lacks.
        beta: directions whose coefficients are on average no larger are never used.
        steps: of this stage.
        batch_size: images per step.
        lr: learning rate.
    """

    section: ClassVar[str] = "age"
    rank: Count = 32
    groups: tuple[int, ...] | None = None
    hidden: tuple[int, ...] = (256, 256)
    form: Literal["code", "paper"] = "code"
    sparse_weight: Weight = 0.005
    orthogonal_weight: Weight = 0.0005
    latent_weight: Weight = 1.0
    beta: Weight = 0.005
    steps: Count = 600
    batch_size: Count = 16
    lr: Rate = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("groups", "hidden"):
            value = getattr(self, name)
            if value is not None and (not value or min(value) < 1):
                raise ConfigError(f"age.{name} must be numbers of 1 or more, got {list(value)}.")


@dataclass(frozen=True)
class CodebookConfig(Checked):
    """The codebook of attributes (CLM).

    Attributes:
        codebook_size: N, codes; published: 10,000.
        parts: codes for each layer; published: 1, with 18 layers. The style is split along its principal
            axes.
        per_layer: share the codes out among layers and parts instead of one table for all.
        maps: before and after the codes: "linear" (one for each layer, learned) or "identity".
        prefilter: what is quantised: "none" (residuals) or "age" (what AGE's directions make of them).
        commitment_weight: beta of the quantiser.
        image_weight: of the images' squared error.
        image_share: share of the batch whose images are looked at; latents are looked at of all.
        latent_weight: of the styles' squared error.
        orthogonal_weight: of the codes' orthogonality to the class means.
        restart_after: steps without use after which a code is moved; 0 never.
        steps: of this stage.
        batch_size: images per step.
        lr: learning rate.
    """

    section: ClassVar[str] = "codebook"
    codebook_size: TwoOrMore = 256
    parts: Few = 16
    per_layer: bool = False
    maps: Literal["linear", "identity"] = "linear"
    prefilter: Literal["none", "age"] = "none"
    commitment_weight: Weight = 0.25
    image_weight: Weight = 1.0
    image_share: Share = 0.25
    latent_weight: Weight = 1.0
    orthogonal_weight: Weight = 5e-4
    restart_after: Whole = 100
    steps: Count = 600
    batch_size: Count = 64
    lr: Rate = 1e-3


@dataclass(frozen=True)
class PredictorConfig(Checked):
    """The transformer that predicts which codes belong together (CPM).

    Attributes:
        width: of the transformer.
        layers: transformer blocks.
        heads: attention heads; must divide the width.
        tied: codes are scored by their product with a query, instead of each by a row of a head.
        corruption: what it has to see through: "noisy" (masks, noise, codes in place of residuals, residuals
            of other classes), "masked" (masks alone) or "none", which learns the nearest code.
        ce_weight: of the cross-entropy, beside the squared error of the codes.
        steps: of this stage.
        batch_size: images per step.
        lr: learning rate.
    """

    section: ClassVar[str] = "predictor"
    width: Count = 128
    layers: Few = 3
    heads: Count = 4
    tied: bool = True
    corruption: Literal["noisy", "masked", "none"] = "noisy"
    ce_weight: Weight = 0.5
    steps: Count = 3000
    batch_size: Count = 64
    lr: Rate = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ConfigError(
                f"predictor.width {self.width} must be divisible by predictor.heads {self.heads}."
            )


@dataclass(frozen=True)
class SamplerConfig(Checked):
    """How images are drawn, unless the request says it (`SAMPLING`).

    Attributes:
        mode: "cpm" (codes that the transformer predicts), "nn" (the codes nearest to what AGE draws) or "age"
            (AGE's own draw, without codes).
        strength: factor on the change; 0 gives where it starts, 1 is as published. Half of it was nearest to
            real images on Omniglot's classes for such choices, with codes and without.
        top_p: codes are drawn among the likeliest of this total probability.
        steps: in which the codes are filled in.
        keep: share of an image's own codes that a draw around the mean starts from.
        around: where changes start, for a class with several images: "image" (one of them, as in AGE's
            code) or "mean" (what they share, as in its paper).
        single: with one image of a new class, its mean is the image itself ("image") or the image's
            projection on what the class means span ("projection").
    """

    section: ClassVar[str] = "sampler"
    mode: Mode = "cpm"
    strength: Weight = 0.5
    top_p: Annotated[float, partial(at_least, least=0.01)] = 0.95
    steps: Few = 4
    keep: BelowOne = 0.3
    around: Literal["image", "mean"] = "image"
    single: Literal["image", "projection"] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_p > 1:
            raise ConfigError(f"{self.section}.top_p must be at most 1, got {self.top_p}.")


PHOTO_PROMPTS = (
    "a photo in bright light",
    "a photo in the dark",
    "a photo from close by",
    "a photo from far away",
    "a photo from the side",
    "a photo from the front",
)


@dataclass(frozen=True)
class PromptsConfig(Checked):
    """Prompts that say which attributes are drawn (PSM).

    All of it is our design, the paper's is not public. Off by default: the stage takes a minute or two, its
    encoder has to fit the images, and a prompt is followed only where the training images differ in what it
    says. The weight is large because the predictor's terms are sums over the tokens of an image: at 0.1, and
    at three tenths of the predictor's learning rate, 300 steps on Omniglot left all prompts without effect.

    Attributes:
        encoder: of images and texts in one space: "small" (for drawings; trained first, on captions from the
            measured thickness, size and slant of the training images), "lite" or "clip:FOLDER" (for
            photographs).
        texts: the prompts that are learned; null: a list for drawings with "small", else one for photographs.
        neutral: a prompt that says nothing; null: "a drawing" or "a photo".
        injection: how the predictor reads them: "cross" (cross-attention), "adaln" (scale and shift of its
            layer norms) or "token" (one more token).
        form: of the prompt loss: "directional" (the image changes as the text does) or "absolute".
        weight: of the prompt loss.
        text_weight: of the text in its absolute form, beside the image.
        image_share: share of the batch whose images it looks at.
        drop: probability that an image is learned without its prompt.
        temperature: of the Gumbel-softmax at the start; at the end it is three tenths of that.
        guidance: how far drawing goes from what is predicted without the prompt to what is predicted with
            it; 1: just there.
        encoder_steps: of training the encoder "small".
        steps: of this stage.
        batch_size: images per step.
        lr: learning rate.
    """

    section: ClassVar[str] = "prompts"
    effects: ClassVar[tuple[Acts, ...]] = (
        acts("form image_share temperature", {"weight": ABOVE_0}),
        acts("weight temperature", {"image_share": ABOVE_0}),
        acts("text_weight", {"form": "absolute"}),
        acts("encoder_steps", {"encoder": "small"}),
    )
    encoder: str = "small"
    texts: tuple[str, ...] | None = None
    neutral: str | None = None
    injection: Literal["cross", "adaln", "token"] = "cross"
    form: Literal["directional", "absolute"] = "directional"
    weight: Weight = 10.0
    text_weight: Weight = 0.5
    image_share: Share = 0.25
    drop: BelowOne = 0.1
    temperature: Positive = 1.0
    guidance: Weight = 2.0
    encoder_steps: Count = 300
    steps: Count = 600
    batch_size: Count = 64
    lr: Rate = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            find_encoder("joint", self.encoder)
        except ConfigError as error:
            raise ConfigError(f"prompts.encoder: {error}") from None
        plain = [spelled(text) for text in (self.without, *self.listed)]
        if len(plain) < 2 or "" in plain or len(set(plain)) < len(plain):
            raise ConfigError(
                "prompts.texts must be one or more different prompts, none of them empty or prompts.neutral, "
                f"got {list(self.listed)}."
            )

    @property
    def listed(self) -> tuple[str, ...]:
        """The prompts that are learned."""
        usual = DRAWING_PROMPTS if self.encoder == "small" else PHOTO_PROMPTS
        return usual if self.texts is None else self.texts

    @property
    def without(self) -> str:
        """The prompt that says nothing."""
        usual = caption() if self.encoder == "small" else "a photo"
        return usual if self.neutral is None else self.neutral


def spelled(prompt: str) -> str:
    """Return a prompt in lower case, with single spaces."""
    return " ".join(prompt.lower().split())


_PREDICTS = {"sampler.mode": "cpm"}


@dataclass(frozen=True)
class TageConfig(Checked):
    """Settings of TAGE.

    Attributes:
        network: generator and encoder.
        autoencoder: the stage that trains them.
        age: the baseline, which the modes "nn" and "age" need; null leaves it out.
        codebook: of attributes.
        predictor: of codes.
        prompts: that say which attributes are drawn; null learns none.
        sampler: how images are drawn.
        layers: the first so many layers are edited by codes; null: all, as published. With the start "style"
            the first one carries nearly the whole image.
        generator: safetensors file of a StyleGAN2 generator, which stays as it is; null trains one.
        encoder: safetensors file of pSp's encoder for that generator, which stays as it is; null trains one.
        supports: written by `adapt`, images of each new class; leave it out.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    age: AgeConfig | None = field(default_factory=AgeConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    prompts: PromptsConfig | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    layers: Count | None = 1
    generator: str | None = None
    encoder: str | None = None
    supports: tuple[int, ...] = ()

    effects: ClassVar[tuple[Acts, ...]] = (
        acts("sampler.top_p sampler.steps", _PREDICTS),
        acts("age.beta", {"sampler.mode": ("nn", "age")}),
        acts("codebook.prefilter", {"age": GIVEN}),
        acts("sampler.keep", {"sampler.mode": "cpm", "sampler.around": "mean"}),
        acts("codebook.image_share", {"codebook.image_weight": ABOVE_0}),
        acts(
            "autoencoder.steps autoencoder.batch_size autoencoder.lr autoencoder.ssim autoencoder.norm "
            "autoencoder.augment",
            {"encoder": NULL},
        ),
        # Without held-out images only the use of the codes is looked at, which is a warning.
        acts("--training.validate_every", {"--holdout": ABOVE_0}, {"--training.validate_every": 0}),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.age is None and self.sampler.mode != "cpm":
            raise ConfigError(f'sampler.mode "{self.sampler.mode}" needs age. Set age, or the mode to cpm.')
        if self.age is None and self.codebook.prefilter == "age":
            raise ConfigError('codebook.prefilter "age" needs age. Set age, or the prefilter to none.')
        if self.encoder is not None and self.generator is None:
            raise ConfigError(
                f'encoder "{self.encoder}" gives the styles of a generator that is not named. Set generator, '
                "too, or leave encoder out."
            )
        if self.supports and min(self.supports) < 1:
            raise ConfigError("supports is written by `fewgen adapt`. Leave it out.")
