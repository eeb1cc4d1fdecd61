"""Settings of the text-to-image diffusion model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fewgen.config.checks import BelowOne, Checked, Count, Rate, Weight, choose
from fewgen.config.effects import ABOVE_0, GIVEN, Acts, acts
from fewgen.data.augment import PRESETS
from fewgen.diffusion.small import SmallDiffusionConfig
from fewgen.errors import ConfigError


@dataclass(frozen=True)
class AutoencoderConfig(Checked):
    """How the autoencoder of a model in latent space is trained, before the denoiser.

    Attributes:
        steps: of training.
        batch_size: images per step.
        lr: learning rate.
        kl_weight: of the divergence of latents from N(0, 1), per number.
    """

    section: ClassVar[str] = "autoencoder"

    steps: Count = 3000
    batch_size: Count = 32
    lr: Rate = 1e-3
    kl_weight: Weight = 1e-6


@dataclass(frozen=True)
class DiffusionConfig(Checked):
    """Settings of the text-to-image diffusion model.

    Attributes:
        network: sizes of denoiser, text tower and autoencoder. `network.text_length` grows by itself to the
            longest caption.
        template: what a class's name becomes before it is read; {} is the name. Of several names with commas
            between, as in WordNet, the first is taken, unless two classes share it.
        drop: share of captions that are left out in training, so that guidance has something to lean on.
        autoencoder: training of the autoencoder, for a model in latent space.
        augment: of training images: preset of `Augment`.
        mirror: show every image and its mirror image equally often.
        steps: of training the denoiser.
        batch_size: images per step.
        lr: learning rate.
        schedule: of the learning rate.
        weight_decay: of AdamW.
        guidance_scale: guidance of generation: 1 follows the caption, more exaggerates what it changes.
        sampling_steps: of DDIM.
    """

    network: SmallDiffusionConfig = field(default_factory=SmallDiffusionConfig)
    template: str = "a photo of a {}"
    drop: BelowOne = 0.1
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    augment: str = "none"
    mirror: bool = False
    steps: Count = 6000
    batch_size: Count = 32
    lr: Rate = 1e-3
    schedule: str = "late_decay"
    weight_decay: Weight = 0.0
    guidance_scale: Weight = 2.0
    sampling_steps: Count = 25

    effects: ClassVar[tuple[Acts, ...]] = (
        acts("autoencoder", {"network.latent": GIVEN}),
        acts("--training.validate_every", {"--holdout": ABOVE_0}, {"--training.validate_every": 0}),
    )

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise ConfigError(f'template must contain {{}} once, for the name; got "{self.template}".')
        choose("augment", self.augment, tuple(PRESETS))
        super().__post_init__()
        if self.sampling_steps > self.network.times:
            raise ConfigError(
                f"sampling_steps {self.sampling_steps} is more than the noise schedule has times "
                f"({self.network.times})."
            )
