"""Settings of SQ-GAN."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, Literal

from fewgen.config.checks import BelowOne, Checked, Count, Rate, Weight, Whole, at_least, choose
from fewgen.config.effects import ABOVE_0, CHOSEN, GIVEN, NULL, Acts, acts, holds
from fewgen.encoders.named import encoders, find_encoder
from fewgen.errors import ConfigError
from fewgen.losses.consistency import CONSISTENCIES, Consistency

TwoOrMore = Annotated[int, partial(at_least, least=2)]
Small = Annotated[float, partial(at_least, least=1e-6)]


@dataclass(frozen=True)
class NetworkConfig(Checked):
    """Generator and discriminator.

    Attributes:
        z_dim: numbers of the latent.
        w_dim: numbers of a style.
        mapping_layers: fully connected layers from latent to style; 0: a style is the latent, with what the
            class is embedded to behind it.
        mapping_lr: factor on their learning rate. The published 0.01 is for millions of images.
        width: channels of the largest map; smaller maps have twice as many each. None: 32 for images of 32
            pixels, half as many for each doubling of that, and 8 at least.
        max_width: most channels.
        start: "style" (the smallest map is a linear function of the style) or "const" (learned, as
            published). With little training, shapes vary much sooner from "style".
        output: of the generator, "tanh" or "linear" (as published). Plain ground is much sooner plain with
            "tanh".
        noise: add noise maps to the layers, as published.
        condition: "class" (generator and discriminator know the class by number), "text" (by the vector of
            its words) or "none".
        group_size: images whose spread the discriminator sees together; with classes, all of one class.
        architecture: of the discriminator, "residual" or "plain".
    """

    section: ClassVar[str] = "network"
    z_dim: Count = 64
    w_dim: Count = 64
    mapping_layers: Whole = 2
    mapping_lr: Small = 1.0
    width: Count | None = 16
    max_width: Count = 64
    start: Literal["style", "const"] = "style"
    output: Literal["tanh", "linear"] = "tanh"
    noise: bool = False
    condition: Literal["class", "text", "none"] = "class"
    group_size: Count = 4
    architecture: Literal["residual", "plain"] = "residual"

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = self.condition == "none"
        if self.mapping_layers == 0 and (self.z_dim != self.w_dim if alone else self.z_dim >= self.w_dim):
            needed, more = ("equal", "") if alone else ("be less than", ", and the class behind it,")
            raise ConfigError(
                f"network.mapping_layers 0 makes the latent{more} the style: network.z_dim {self.z_dim} must "
                f"{needed} network.w_dim {self.w_dim}."
            )


@dataclass(frozen=True)
class QuantizerConfig(Checked):
    """The style quantiser.

    Attributes:
        codebook_size: K.
        code_dim: numbers per code; must divide `network.w_dim`, or `network.z_dim` with space "z".
        per_position: a codebook for each piece of the style instead of one for all.
        space: what is quantised: "w" (styles), "z" (latents), or "w+" (each layer's style, with a codebook
            of its own).
        update: "gradient" (the loss moves the codes) or "ema" (running means of what chose them).
        commitment_weight: beta.
        weight: of quantisation loss and uniformity together (lambda_sq).
        uniformity: of the codes' directions, relative to the quantisation loss.
        uniformity_t: its temperature.
        normalize: scale styles to unit mean square before they are cut.
        project: learned linear maps before and after, starting as identities.
        restart_after: steps without use after which a code is moved; 0 never.
    """

    section: ClassVar[str] = "quantizer"
    codebook_size: TwoOrMore = 128
    code_dim: Count = 4
    per_position: bool = False
    space: Literal["w", "z", "w+"] = "w"
    update: Literal["gradient", "ema"] = "gradient"
    commitment_weight: Weight = 0.25
    weight: Weight = 0.01
    uniformity: Weight = 1.0
    uniformity_t: Small = 2.0
    normalize: bool = False
    project: bool = False
    restart_after: Whole = 0


@dataclass(frozen=True)
class InitConfig(Checked):
    """What the codes are before adversarial training.

    Attributes:
        kind: "transport" (codes, mapping network and a code tokeniser are trained until a text tower makes
            of codes what an image tower makes of the training images, by optimal transport), "features"
            (k-means on the image tower's features), "kmeans" (k-means on styles) or "random".
        foundation: where the towers come from, a joint encoder by name: "small" (trained on the training
            images and their class names, in seconds), "lite" (EfficientNet-Lite and MiniLM) or
            "clip:FOLDER".
        foundation_steps: of training the small towers.
        steps: of the transport.
        batch_size: codes, and images, that are matched at a time.
        blocks: tokens that the codes of a style become; at most as many as there are codes.
        epsilon: entropic regularisation of the transport.
        iterations: of Sinkhorn's algorithm.
        center: subtract each side's mean first, because features of texts and of images lie apart.
        commitment: factor on the quantisation loss of the styles in the transport stage. At 1, styles
            shrink there and codes fall out of use.
        lr: of the transport stage.
    """

    section: ClassVar[str] = "init"
    effects: ClassVar[tuple[Acts, ...]] = (
        acts("steps batch_size blocks epsilon iterations center commitment lr", {"kind": "transport"}),
        acts("foundation", {"kind": ("transport", "features")}),
        acts("foundation_steps", {"kind": ("transport", "features"), "foundation": "small"}),
    )
    kind: Literal["transport", "features", "kmeans", "random"] = "transport"
    foundation: str = "small"
    foundation_steps: Count = 300
    steps: Count = 300
    batch_size: TwoOrMore = 128
    blocks: Count = 4
    epsilon: Annotated[float, partial(at_least, least=1e-4)] = 0.05
    iterations: Count = 100
    center: bool = True
    commitment: Weight = 0.1
    lr: Rate = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            find_encoder("joint", self.foundation)
        except ConfigError as error:
            raise ConfigError(f"init.foundation: {error}") from None


Side = Annotated[int, partial(at_least, least=32)]


@dataclass(frozen=True)
class ProjectedConfig(Checked):
    """The projected discriminator, which sees the maps of a frozen network.

    Attributes:
        encoder: the network, an image encoder that shows its maps: "lite0", "lite1" or "lite2".
        side: pixels at which it sees images; None: 64, or those of larger images.
        mixed: channels of the finest mixed map; each coarser one has twice as many.
        width: channels of the heads.
        norm: in the heads: "batch" (as published), "group" or "none".
        condition: how heads know the class: "product" (of numbers that they say and of the class's; as
            published) or "projection" (that, and a logit of its own).
        embedding: tell them the class by number beside the vector of its words.
    """

    section: ClassVar[str] = "projected"
    encoder: str = "lite0"
    side: Side | None = None
    mixed: Count = 32
    width: Count = 128
    norm: Literal["batch", "group", "none"] = "batch"
    condition: Literal["product", "projection"] = "product"
    embedding: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            named, option = find_encoder("image", self.encoder)
        except ConfigError as error:
            raise ConfigError(f"projected.encoder: {error}") from None
        if not named.maps or option:
            able = ", ".join(name for name, entry in encoders().items() if entry.maps)
            more = " The side is projected.side." if named.maps else ""
            raise ConfigError(
                f'projected.encoder "{self.encoder}" is none whose maps a discriminator can see. '
                f"Choose one of {able}.{more}"
            )


_KNOWS = {"network.condition": ("class", "text")}

_VIEWED = (
    {"consistency": ("bcr", "cr"), "consistency_weights": NULL},
    {"consistency_weights.real": ABOVE_0},
    {"consistency_weights.fake": ABOVE_0},
)
"""Consistency between an image and its augmentation."""


@dataclass(frozen=True)
class SqGanConfig(Checked):
    """Settings of SQ-GAN.

    Attributes:
        network: generator and discriminator.
        generator: "style" (StyleGAN2) or "light" (FastGAN: one convolution per size, skip-layer excitation).
        discriminator: "plain" (StyleGAN2) or "projected" (on the maps of a frozen network).
        projected: settings of the latter.
        loss: "logistic", "hinge", or "relativistic" (each real image against a generated one). With several
            heads it is the sum over them.
        mismatch: weight of real images under another class, which count as generated ones for the
            discriminator.
        spread: weight of what the generated images of a group (`network.group_size`) lack in spread, in the
            maps of the frozen network, of that of real images; for the generator.
        quantizer: of the styles; None: a plain style-based GAN.
        init: of the codebook.
        consistency: published form of the discriminator's regularisation: "none", "cr", "bcr", "zcr", or
            "qcr" (between neighbouring latents, quantised if there is a quantiser).
        consistency_weights: instead of all published ones (`losses.Consistency`: real, fake, latent,
            diversity, sigma, every). They may add terms to those of the named form, but not leave all of its
            own out for others; "none" takes no weights.
        view: augmentation T of consistency on images (cr, bcr): policy of `DiffAugment`.
        augment: of training images before anybody sees them: preset of `Augment`.
        adversarial_augment: what the discriminator sees of real and generated images: "none", "diffaugment"
            or "ada".
        policy: of DiffAugment.
        padding: what moves in at the border: "edge" repeats it, "zero" is mid-grey, as published.
        ada_target: mean sign of the discriminator's logits of real images above which ADA changes more
            images; 0.6: 80 % of them look real to it.
        ada_kimg: thousands of images after which ADA's probability may have gone from 0 to 1.
        mirror: whether ADA may mirror, turn images freely and invert brightness; if not, it turns them by at
            most 15 degrees.
        r1_gamma: weight of the gradient penalty on real images; 0 turns it off.
        r2_gamma: weight of the same penalty on generated images.
        r1_every: steps between two penalties.
        path_weight: of the path length regularisation; 0 turns it off.
        path_every: steps between two.
        style_mixing: probability that later layers follow another latent's style.
        steps: of adversarial training.
        batch_size: images per step; None: 32, or as many whole groups as there are images for.
        lr: of the generator.
        discriminator_lr: learning rate of the discriminator.
        schedule: of both learning rates; "late_decay" falls over the second half.
        beta1: decay of the first moment of Adam. Published is 0; with few steps, 0.5 learns faster.
        loss_limit: size of the generator's or the discriminator's loss, or of a penalty's share per step,
            from which training counts as diverged. Usual losses are below 10.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    generator: Literal["style", "light"] = "style"
    discriminator: Literal["plain", "projected"] = "plain"
    projected: ProjectedConfig = field(default_factory=ProjectedConfig)
    loss: Literal["logistic", "hinge", "relativistic"] = "logistic"
    mismatch: Weight = 0.0
    spread: Weight = 0.0
    quantizer: QuantizerConfig | None = field(default_factory=QuantizerConfig)
    init: InitConfig = field(default_factory=InitConfig)
    consistency: str = "qcr"
    consistency_weights: Consistency | None = None
    view: str = "flip,translation"
    augment: str = "none"
    adversarial_augment: Literal["none", "diffaugment", "ada"] = "none"
    policy: str = "translation"
    padding: Literal["edge", "zero"] = "edge"
    ada_target: BelowOne = 0.6
    ada_kimg: Annotated[float, partial(at_least, least=0.1)] = 500.0
    mirror: bool = False
    r1_gamma: Weight = 0.1
    r2_gamma: Weight = 0.0
    r1_every: Count = 16
    path_weight: Weight = 0.0
    path_every: Count = 4
    style_mixing: BelowOne = 0.0
    steps: Count = 2500
    batch_size: TwoOrMore | None = None
    lr: Rate = 4e-3
    discriminator_lr: Rate = 4e-3
    schedule: str = "late_decay"
    beta1: BelowOne = 0.5
    loss_limit: Annotated[float, partial(at_least, least=1)] = 200.0

    effects: ClassVar[tuple[Acts, ...]] = (
        acts("network.start network.noise", {"generator": "style"}),
        acts(
            "network.mapping_lr",
            {"network.mapping_layers": ABOVE_0},
            {"discriminator": "plain", "network.condition": ("class", "text")},
        ),
        acts("network.architecture", {"discriminator": "plain"}),
        acts("projected spread", {"discriminator": "projected"}),
        acts("projected.condition", _KNOWS),
        acts("projected.embedding", {"network.condition": "text"}),
        acts("mismatch", _KNOWS),
        acts("init", {"quantizer": GIVEN}),
        acts("quantizer.uniformity", {"quantizer.weight": ABOVE_0}, {"init.kind": "transport"}),
        acts(
            "quantizer.uniformity_t",
            {"quantizer.uniformity": ABOVE_0, "quantizer.weight": ABOVE_0},
            {"quantizer.uniformity": ABOVE_0, "init.kind": "transport"},
        ),
        acts("consistency", {"consistency_weights": NULL}, {"consistency_weights": CHOSEN}),
        acts(
            "consistency_weights.sigma",
            {"consistency_weights.latent": ABOVE_0},
            {"consistency_weights.diversity": ABOVE_0},
        ),
        acts("view", *_VIEWED),
        acts("policy", {"adversarial_augment": "diffaugment"}),
        acts(
            "padding",
            {"adversarial_augment": "ada"},
            {"adversarial_augment": "diffaugment", "policy": holds("translation")},
            *({**way, "view": holds("translation")} for way in _VIEWED),
        ),
        acts("ada_target ada_kimg mirror", {"adversarial_augment": "ada"}),
        acts("r1_every", {"r1_gamma": ABOVE_0}, {"r2_gamma": ABOVE_0}),
        acts("path_every", {"path_weight": ABOVE_0}),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("consistency", self.consistency, tuple(CONSISTENCIES))
        self._check_consistency()
        group = self.network.group_size
        if self.batch_size is not None and self.batch_size % group:
            raise ConfigError(
                f"batch_size {self.batch_size} must be a multiple of network.group_size {group}, the images "
                "whose spread the discriminator sees together. Change one of them."
            )

    def _check_consistency(self) -> None:
        """Refuse weights under which the named form would do nothing of what its name says."""
        if self.consistency_weights is None:
            return
        terms = ("real", "fake", "latent", "diversity")
        given = [name for name in terms if getattr(self.consistency_weights, name) > 0]
        own = [name for name in terms if getattr(CONSISTENCIES[self.consistency], name) > 0]
        if given and not set(given) & set(own):
            acts = f"the terms {', '.join(own)}" if own else "no terms"
            raise ConfigError(
                f'consistency "{self.consistency}" has {acts}, but consistency_weights gives '
                f"{', '.join(given)} (the preset's, perhaps). Leave these out with "
                "--model.consistency_weights null."
            )

    @property
    def pairs(self) -> Consistency:
        """The consistency terms in use."""
        return self.consistency_weights or CONSISTENCIES[self.consistency]
