"""Settings of CADA-VQ-VAE."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, Literal

from fewgen.config.checks import BelowOne, Checked, Count, Few, Share, Weight, Whole, at_least
from fewgen.config.effects import ABOVE_0, GIVEN, Acts, acts
from fewgen.errors import ConfigError

Channels = Annotated[int, partial(at_least, least=2)]


@dataclass(frozen=True)
class ImageConfig(Checked):
    """Image encoder and decoder of the aligned latent.

    Attributes:
        backbone: "conv", or "mlp" (784-400-200, as published).
        width: channels of the convolutional map.
        n_blocks: residual blocks on the map.
        hidden: width of the convolutional backbone's fully connected layer.
        dropout: in the encoder.
        output: "sigmoid"; "tanh" is the published fault: half of its range lies outside [0, 1].
    """

    section: ClassVar[str] = "image"
    effects: ClassVar[tuple[Acts, ...]] = (acts("width n_blocks hidden", {"backbone": "conv"}),)
    backbone: Literal["conv", "mlp"] = "conv"
    width: Channels = 48
    n_blocks: Whole = 0
    hidden: Count = 256
    dropout: BelowOne = 0.1
    output: Literal["sigmoid", "tanh"] = "sigmoid"


@dataclass(frozen=True)
class TextConfig(Checked):
    """Semantic encoder, its codebook, and semantic decoder.

    Attributes:
        hidden: width of the hidden layers.
        output: "linear"; "sigmoid" is the published fault: word vectors have a sign.
        codebook_size: codes per group.
        groups: chunks of the latent that are quantised separately, so that classes can share codes.
        update: of the codebook, "ema" or "gradient".
        init: of the codebook, "data" or "uniform" (as published).
        commitment_weight: of the quantiser.
        restart_after: steps without use after which a code is moved; 0 never.
    """

    section: ClassVar[str] = "text"
    hidden: Count = 200
    output: Literal["linear", "sigmoid"] = "linear"
    codebook_size: Count = 32
    groups: Count = 5
    update: Literal["ema", "gradient"] = "ema"
    init: Literal["data", "uniform"] = "data"
    commitment_weight: Weight = 0.25
    restart_after: Whole = 0


@dataclass(frozen=True)
class WeightConfig(Checked):
    """Weight of each term; every term is summed over features and averaged over the batch.

    Image terms count as if an image had 784 numbers and text terms as if a vector had 784, so that a
    weight means the same for any size. `kl`, `kl_text`, both cross terms and `alignment` warm up.

    Attributes:
        image: reconstruct an image from its own latent.
        ssim: structural part of the image terms, relative to their squared error.
        text: reconstruct a word vector from its own latent.
        cross_image: word to image.
        cross_text: image to word.
        kl: image posterior to its prior.
        kl_text: word posterior to N(0, I).
        alignment: of image and word latents.
        codebook: quantiser's codebook and commitment loss.
        contrastive: supervised contrastive loss on image means.
        warm_up: share of the stage over which these five rise, in [0, 1].
    """

    section: ClassVar[str] = "weights"
    image: Weight = 1.0
    ssim: Weight = 0.0
    text: Weight = 0.25
    cross_image: Weight = 0.5
    cross_text: Weight = 0.25
    kl: Weight = 0.05
    kl_text: Weight = 0.1
    alignment: Weight = 10.0
    codebook: Weight = 1.0
    contrastive: Weight = 1.0
    warm_up: Share = 0.2


@dataclass(frozen=True)
class SpatialConfig(Checked):
    """The second level of `hybrid`: a codebook on a small map, and a prior over it.

    Attributes:
        codebook_size: codes per group.
        codebook_dim: numbers per code.
        groups: codes per position.
        width: channels of encoder and decoder.
        n_blocks: residual blocks on the map, in each.
        commitment_weight: of the quantiser.
        ssim: structural part of its reconstruction loss, relative to the squared error.
        augment: of the tokeniser's images; strong, since it only has to draw what it is given.
        lr: of the tokeniser.
        steps: of the tokeniser.
        prior_width: of the transformer.
        prior_layers: transformer blocks.
        prior_heads: attention heads.
        prior_dropout: in the transformer.
        prior_smoothing: of labels.
        prior_augment: of the prior's images; mild, since what it sees is what it makes.
        prior_lr: of the prior.
        prior_weight_decay: of the prior.
        prior_steps: of the prior.
        condition_noise: largest share of the class latent's noise that is mixed into the condition in
            training, in [0, 1].
        trust_noise: share that the prior is told when generating; above 0 it may correct the latent.
        code_temperature: of the codes' draws, on top of the request's temperature. Two codes drawn at each
            of 49 positions add up to grain that no single likely code has.
    """

    section: ClassVar[str] = "spatial"
    codebook_size: Count = 256
    codebook_dim: Count = 8
    groups: Count = 2
    width: Channels = 64
    n_blocks: Whole = 1
    commitment_weight: Weight = 0.25
    ssim: Weight = 20.0
    augment: str = "shapes"
    lr: float = 2e-3
    steps: Count = 1500
    prior_width: Channels = 96
    prior_layers: Whole = 3
    prior_heads: Count = 4
    prior_dropout: BelowOne = 0.2
    prior_smoothing: BelowOne = 0.0
    prior_augment: str = "light"
    prior_lr: float = 1e-3
    prior_weight_decay: Weight = 0.05
    prior_steps: Count = 850
    condition_noise: Share = 0.7
    trust_noise: Share = 0.0
    code_temperature: Weight = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_width % self.prior_heads:
            raise ConfigError(
                f"spatial.prior_width {self.prior_width} must be divisible by "
                f"spatial.prior_heads {self.prior_heads}."
            )


_HELD_OUT = {"--training.validate_every": ABOVE_0, "--holdout": ABOVE_0}
_ORDINARY = ({"--tasks.pretrain": ABOVE_0}, {"--meta": (None, "none")})


@dataclass(frozen=True)
class CadaVqVaeConfig(Checked):
    """Settings of CADA-VQ-VAE.

    Attributes:
        latent_size: L, numbers in the aligned latent.
        logvar_start: log-variance of both posteriors before training.
        image: image encoder and decoder.
        text: semantic encoder, codebook, semantic decoder.
        weights: of the terms.
        cross_terms: "real"; "self" is the published fault: the self-reconstructions again.
        cross_source: word latent behind the word-to-image term: "mean", or "sample". A drawn latent is
            trained against an unrelated image of its class, which teaches the decoder the class average
            whatever the draw; the mean leaves the draws their variety.
        semantic_stats_from: "z_q"; "z_e" is the published fault: the quantiser is bypassed.
        alignment: "mmd_class", "mmd", "w2" or "none".
        align_on: "samples"; "means" is the published choice: image means against z_e.
        kernel: of the MMD: "mixture" of bandwidths around the median, "median", or "rbf" with gamma 1.
        prior: of the image posterior: "standard" N(0, I), or "conditional" on the word.
        temperature: of the contrastive loss.
        reduction: "sample"; "source" is the published imbalance: image terms are summed over the batch,
            the others averaged over everything.
        weighting: of the terms: "fixed", "uncertainty" or "gradnorm".
        steps: training steps of the aligned latent.
        batch_size: images per step.
        sampler: "shuffled" or "balanced"; "single_class" is the published fault.
        augment: preset of `Augment`.
        lr: learning rate.
        schedule: of the learning rate.
        weight_decay: of AdamW.
        clip: norm at which gradients are clipped, a safety net at some ten times the usual norm; 0 turns it
            off.
        patience: held-out measurements without improvement before a stage ends; 0 never.
        tolerance: share by which a later held-out loss of the aligned latent may exceed the best and its
            weights still be kept.
        candidates: draws per image, of which the one that the image encoder reads best as its word is
            kept; 1 keeps every draw.
        spatial: second level; None: the aligned latent alone.
    """

    latent_size: Count = 20
    logvar_start: float = -2.0
    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)
    cross_terms: Literal["real", "self"] = "real"
    cross_source: Literal["sample", "mean"] = "mean"
    semantic_stats_from: Literal["z_q", "z_e"] = "z_q"
    alignment: Literal["mmd_class", "mmd", "w2", "none"] = "mmd_class"
    align_on: Literal["samples", "means"] = "samples"
    kernel: Literal["mixture", "median", "rbf"] = "mixture"
    prior: Literal["standard", "conditional"] = "conditional"
    temperature: Annotated[float, partial(at_least, least=1e-6)] = 0.5
    reduction: Literal["sample", "source"] = "sample"
    weighting: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    steps: Count = 2500
    batch_size: Count = 64
    sampler: Literal["shuffled", "balanced", "single_class"] = "shuffled"
    augment: str = "light"
    lr: float = 2e-3
    schedule: str = "cosine"
    weight_decay: Weight = 1e-3
    clip: Weight = 1.0
    patience: Whole = 12
    tolerance: Weight = 0.0
    candidates: Few = 1
    spatial: SpatialConfig | None = None

    effects: ClassVar[tuple[Acts, ...]] = (
        acts("alignment", {"weights.alignment": ABOVE_0}),
        acts("weights.alignment", {"alignment": ("mmd_class", "mmd", "w2")}),
        acts("kernel align_on", {"alignment": ("mmd_class", "mmd"), "weights.alignment": ABOVE_0}),
        acts("prior", {"weights.kl": ABOVE_0}),
        acts("temperature", {"weights.contrastive": ABOVE_0}),
        acts("cross_source", {"cross_terms": "real", "weights.cross_image": ABOVE_0}),
        acts("cross_terms", {"weights.cross_image": ABOVE_0}, {"weights.cross_text": ABOVE_0}),
        acts("text.commitment_weight", {"weights.codebook": ABOVE_0}),
        acts("patience", {**_HELD_OUT, "--training.checkpoint": ("best", "images")}),
        acts("tolerance", {**_HELD_OUT, "--training.checkpoint": "best"}),
        # Tasks take the place of the ordinary steps of the aligned latent, with rates of their own.
        acts("steps lr weighting weights.warm_up image.dropout text.restart_after tolerance", *_ORDINARY),
        acts("batch_size sampler schedule clip patience", *_ORDINARY, {"spatial": GIVEN}),
        acts("weight_decay", *_ORDINARY, {"--meta": ("fomaml", "maml")}),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_size % self.text.groups:
            raise ConfigError(
                f"latent_size {self.latent_size} must be divisible by text.groups {self.text.groups}. "
                "Change one of them."
            )
