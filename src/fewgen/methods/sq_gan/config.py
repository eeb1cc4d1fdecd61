"""Settings of SQ-GAN."""

from __future__ import annotations

from dataclasses import dataclass, field

from fewgen.config.checks import at_least, below_one, choose
from fewgen.errors import ConfigError
from fewgen.losses.consistency import CONSISTENCIES, Consistency


@dataclass(frozen=True)
class NetworkConfig:
    """Generator and discriminator.

    Attributes:
        z_dim: numbers of the latent.
        w_dim: numbers of a style.
        mapping_layers: fully connected layers from latent to style.
        mapping_lr: factor on their learning rate. The published 0.01 is for millions of images.
        width: channels of the largest map; smaller maps have twice as many each.
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

    z_dim: int = 64
    w_dim: int = 64
    mapping_layers: int = 2
    mapping_lr: float = 1.0
    width: int = 16
    max_width: int = 64
    start: str = "style"
    output: str = "tanh"
    noise: bool = False
    condition: str = "class"
    group_size: int = 4
    architecture: str = "residual"

    def __post_init__(self) -> None:
        for name in ("z_dim", "w_dim", "mapping_layers", "width", "max_width", "group_size"):
            at_least(f"network.{name}", getattr(self, name), 1)
        at_least("network.mapping_lr", self.mapping_lr, 1e-6)
        choose("network.start", self.start, ("style", "const"))
        choose("network.output", self.output, ("tanh", "linear"))
        choose("network.condition", self.condition, ("class", "text", "none"))
        choose("network.architecture", self.architecture, ("residual", "plain"))


@dataclass(frozen=True)
class QuantizerConfig:
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

    codebook_size: int = 128
    code_dim: int = 4
    per_position: bool = False
    space: str = "w"
    update: str = "gradient"
    commitment_weight: float = 0.25
    weight: float = 0.01
    uniformity: float = 1.0
    uniformity_t: float = 2.0
    normalize: bool = False
    project: bool = False
    restart_after: int = 0

    def __post_init__(self) -> None:
        at_least("quantizer.codebook_size", self.codebook_size, 2)
        at_least("quantizer.code_dim", self.code_dim, 1)
        choose("quantizer.space", self.space, ("w", "z", "w+"))
        choose("quantizer.update", self.update, ("gradient", "ema"))
        for name in ("commitment_weight", "weight", "uniformity", "restart_after"):
            at_least(f"quantizer.{name}", getattr(self, name), 0)
        at_least("quantizer.uniformity_t", self.uniformity_t, 1e-6)


@dataclass(frozen=True)
class InitConfig:
    """What the codes are before adversarial training.

    Attributes:
        kind: "transport" (codes, mapping network and a code tokeniser are trained until a text tower makes
            of codes what an image tower makes of the training images, by optimal transport), "features"
            (k-means on the image tower's features), "kmeans" (k-means on styles) or "random".
        foundation: where the towers come from: "small" (trained on the training images and their class
            names, in seconds), or "clip:FOLDER".
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

    kind: str = "transport"
    foundation: str = "small"
    foundation_steps: int = 300
    steps: int = 300
    batch_size: int = 128
    blocks: int = 4
    epsilon: float = 0.05
    iterations: int = 100
    center: bool = True
    commitment: float = 0.1
    lr: float = 1e-3

    def __post_init__(self) -> None:
        choose("init.kind", self.kind, ("transport", "features", "kmeans", "random"))
        if self.foundation != "small" and not (self.foundation.startswith("clip:") and self.foundation[5:]):
            raise ConfigError(f'init.foundation is "small" or "clip:FOLDER", got "{self.foundation}".')
        for name in ("foundation_steps", "steps", "blocks", "iterations"):
            at_least(f"init.{name}", getattr(self, name), 1)
        at_least("init.batch_size", self.batch_size, 2)
        at_least("init.epsilon", self.epsilon, 1e-4)
        at_least("init.commitment", self.commitment, 0)
        at_least("init.lr", self.lr, 1e-8)


@dataclass(frozen=True)
class SqGanConfig:
    """Settings of SQ-GAN.

    Attributes:
        network: generator and discriminator.
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
    quantizer: QuantizerConfig | None = field(default_factory=QuantizerConfig)
    init: InitConfig = field(default_factory=InitConfig)
    consistency: str = "qcr"
    consistency_weights: Consistency | None = None
    view: str = "flip,translation"
    augment: str = "none"
    adversarial_augment: str = "none"
    policy: str = "translation"
    padding: str = "edge"
    ada_target: float = 0.6
    ada_kimg: float = 500.0
    mirror: bool = False
    r1_gamma: float = 0.1
    r1_every: int = 16
    path_weight: float = 0.0
    path_every: int = 4
    style_mixing: float = 0.0
    steps: int = 2500
    batch_size: int | None = None
    lr: float = 4e-3
    discriminator_lr: float = 4e-3
    schedule: str = "late_decay"
    beta1: float = 0.5
    loss_limit: float = 200.0

    def __post_init__(self) -> None:
        choose("consistency", self.consistency, tuple(CONSISTENCIES))
        choose("adversarial_augment", self.adversarial_augment, ("none", "diffaugment", "ada"))
        choose("padding", self.padding, ("edge", "zero"))
        for name in ("steps", "r1_every", "path_every"):
            at_least(name, getattr(self, name), 1)
        if self.batch_size is not None:
            at_least("batch_size", self.batch_size, 2)
        for name in ("r1_gamma", "path_weight"):
            at_least(name, getattr(self, name), 0)
        for name in ("lr", "discriminator_lr"):
            at_least(name, getattr(self, name), 1e-8)
        at_least("ada_kimg", self.ada_kimg, 0.1)
        at_least("loss_limit", self.loss_limit, 1)
        below_one("beta1", self.beta1)
        below_one("style_mixing", self.style_mixing)
        below_one("ada_target", self.ada_target)
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
