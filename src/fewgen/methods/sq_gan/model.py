"""SQ-GAN: a style-based GAN whose styles pass through a codebook, so that neighbours look equally real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewgen.data.adversarial import AdversarialAugment, make_adversarial_augment
from fewgen.data.adversarial.base import Draw, repeated
from fewgen.data.augment import Augment
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.encoders.named import make_image_encoder
from fewgen.errors import ConfigError, ShapeError
from fewgen.evaluation.judge import lite_is_installed, photographs
from fewgen.generation.noise import noise
from fewgen.losses import adversarial, consistency
from fewgen.losses.adversarial import PathLength, r1_penalty
from fewgen.losses.terms import LossTerms
from fewgen.methods.base import DataSpec, Method
from fewgen.methods.registry import register
from fewgen.methods.sq_gan.config import SqGanConfig
from fewgen.methods.sq_gan.initialise import starting_codes, transport_stage
from fewgen.methods.sq_gan.monitoring import (
    Neighbours,
    code_counts,
    code_warnings,
    memory_figures,
    neighbour_figures,
    spread_warnings,
    win_warnings,
)
from fewgen.methods.sq_gan.quantizer import StyleCodes, StyleQuantizer
from fewgen.nn.light import LightSynthesis
from fewgen.nn.projected import FeatureMaps, ProjectedDiscriminator, per_head, projected_side
from fewgen.nn.stylegan import (
    Discriminator,
    MappingNetwork,
    SynthesisNetwork,
    channels_per_map,
    group_of,
    mix_styles,
    start_size,
)
from fewgen.training.phases import Batch, Context, LossFunction, Phase, Pixels, Stage
from fewgen.training.sampler import GroupedSampler, Sampler, make_sampler

CENTRE_DRAWS = 512
"""Latents whose mean style is the centre of a class, towards which truncation pulls."""

BATCH_SIZE = 32
"""Images per step where the settings leave it open and there are enough."""

LARGE = 64
"""Side in pixels from which the networks are in the memory layout "channels last"."""

_CENTRE_STREAM = 1 << 16
"""Stream of `generate.noise` for these latents; images use the ones from 0."""

SETTLING = (8, 32)
"""Batches, and latents in each, from which the light generator takes the statistics of its batch norms."""

_SETTLING_STREAM = _CENTRE_STREAM + 1


@dataclass(frozen=True)
class _Drawn:
    """The generated images of a step, from the discriminator's update for the generator's.

    Attributes:
        step: of the stage.
        images: with their graph.
        codes: of their styles.
        seen: what a frozen network makes of them, with its graph; None without one.
        seen_real: the same of the real images.
    """

    step: int
    images: Tensor
    codes: StyleCodes | None
    seen: list[Tensor] | None = None
    seen_real: list[Tensor] | None = None


def _frozen(name: str) -> FeatureMaps:
    encoder: Any = make_image_encoder(name)  # of one that shows its maps; see `ProjectedConfig`
    return encoder  # type: ignore[no-any-return]


@register("sq_gan")
class SqGan(Method):
    """A style-based GAN for little data: styles are cut into pieces and snapped to a learned codebook.

    The discriminator must give nearly the same score to the images of neighbouring latents. On continuous
    styles this ties together images of very different quality; on quantised ones a small step changes
    nothing, or leads to another code that was learned well. The codebook may start from the features of the
    training images, matched by optimal transport.

    Source: Wang, Lan, Zhou, Tian & Lv 2025, arXiv:2503.24282 (SQ-GAN); Karras et al. 2020,
        arXiv:1912.04958 (StyleGAN2).
    Differs: written from public descriptions of the paper; codebook size, beta, the transport's settings and
        the code tokeniser are ours, as are class conditions, groups of one class for the minibatch deviation,
        the start of the generator from the style, the shared draw of generated images for both updates, and
        all settings for small images. The penalties are lazy without the correction of learning rate and
        betas for their extra steps of Adam (StyleGAN2, Appendix B: factor and exponent 16/17 for an interval
        of 16). R1 is taken at the augmented image, in the public code at the image before augmentation.
        Path length takes the whole batch and one style for all layers (Eq. 4), in the public code half a
        batch with mixed styles, each layer's by itself.
    """

    Config: ClassVar[type] = SqGanConfig
    capabilities = frozenset({"text", "interpolate"})
    min_classes = 1
    config: SqGanConfig
    classes: Tensor

    def __init__(self, config: SqGanConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        net = config.network
        _, _, n = start_size(spec.height, spec.width)
        largest = max(8, 32 * 32 // max(32, *spec.shape[1:])) if net.width is None else net.width
        width = channels_per_map(n, largest, net.max_width)
        table = torch.eye(spec.n_classes)
        if net.condition == "text":
            if spec.text is None:
                raise ConfigError(
                    "network.condition text needs a vector per class: choose a text encoder (--text)."
                )
            table = spec.text.vectors.to(torch.float32).clone()
        self.register_buffer("classes", table, persistent=False)
        c_dim = 0 if net.condition == "none" else table.shape[1]
        self.mapping = MappingNetwork(net.z_dim, net.w_dim, net.mapping_layers, c_dim, net.mapping_lr)
        self.synthesis: SynthesisNetwork | LightSynthesis
        if config.generator == "light":
            self.synthesis = LightSynthesis(spec.shape, net.w_dim, width, net.output)
        else:
            self.synthesis = SynthesisNetwork(spec.shape, net.w_dim, width, net.start, net.output)
        self.quantizer: StyleQuantizer | None = None
        if config.quantizer is not None:
            space = config.quantizer.space
            self.quantizer = StyleQuantizer(
                net.z_dim if space == "z" else net.w_dim,
                config.quantizer,
                layers=self.synthesis.n_layers if space == "w+" else 1,
            )
        self.discriminator: Discriminator | ProjectedDiscriminator
        if config.discriminator == "projected":
            self.discriminator = self._projected(c_dim)
        else:
            self.discriminator = Discriminator(
                spec.shape,
                width,
                c_dim,
                net.group_size,
                net.architecture,
                mapping_layers=1,
                lr_multiplier=net.mapping_lr,
            )
        self.path_length = PathLength()
        self.augment = self._augmentation()
        self.view = make_adversarial_augment(
            "diffaugment", spec.channels, policy=config.view, padding=config.padding
        )
        if config.mismatch and spec.n_classes == 1:
            self.notes.append("mismatch has no effect: there is one class.")
        # One draw of generated images serves both updates of a step; see `_discriminator_loss`.
        self._drawn: _Drawn | None = None
        self._settled: tuple[str, list[float]] | None = None
        if max(spec.shape[1:]) >= LARGE:
            # On processors, few channels on large maps take a quarter less time (`benchmarks sqgan_speed`).
            # Here, and not in training alone, so that a model from a file draws the same images to the bit.
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def usual_preset(cls, images: ImageSet) -> tuple[str, str]:
        """Return "projected" for photographs where its extra is installed; see `Method.usual_preset`."""
        if not photographs(images)[0]:
            return "default", ""
        if not lite_is_installed():
            return "default", (
                "These are photographs, of which the preset projected draws better ones. It needs "
                'pip install "fewgen[knowledge]".'
            )
        return "projected", "Preset projected, since these are photographs; --preset default leaves it."

    def _projected(self, c_dim: int) -> ProjectedDiscriminator:
        own, shape = self.config.projected, self.spec.shape
        side = own.side or projected_side(shape)
        return ProjectedDiscriminator(
            shape,
            partial(_frozen, f"{own.encoder}:{side}"),
            c_dim + (self.spec.n_classes if own.embedding else 0),
            side=side,
            mixed=own.mixed,
            width=own.width,
            norm=own.norm,
            condition=own.condition,
            group_size=self.config.network.group_size,
        )

    def _augmentation(self) -> AdversarialAugment:
        config, options = self.config, dict[str, Any]()
        if config.adversarial_augment == "diffaugment":
            options = {"policy": config.policy, "padding": config.padding}
        elif config.adversarial_augment == "ada":
            options = {
                "target": config.ada_target,
                "speed_kimg": config.ada_kimg,
                "flips": config.mirror,
                "padding": config.padding,
                "rotate_degrees": 180.0 if config.mirror else 15.0,
            }
        return make_adversarial_augment(config.adversarial_augment, self.spec.channels, **options)

    @property
    def citations(self) -> tuple[str, ...]:
        """Keys of the works that this configuration rests on."""
        config = self.config
        pairs = config.pairs
        used = {
            "sq_gan": config.quantizer is not None,
            "stylegan2": config.generator == "style" or config.discriminator == "plain",
            "fastgan": config.generator == "light",
            "projected_gan": config.discriminator == "projected",
            "r3gan": config.loss == "relativistic" or config.r2_gamma > 0,
            "vq_vae": config.quantizer is not None,
            "r1": config.r1_gamma > 0,
            "diffaugment": config.adversarial_augment == "diffaugment",
            "ada": config.adversarial_augment == "ada",
            "cr_gan": pairs.real > 0,
            "icr_gan": pairs.fake > 0 or pairs.latent > 0,
            "uniformity": config.quantizer is not None and config.quantizer.uniformity > 0,
            "sinkhorn": config.quantizer is not None and config.init.kind == "transport",
            "clip": any(name.startswith("clip:") for _, name in self.encoders.values()),
        }
        return tuple(key for key, is_used in used.items() if is_used)

    @property
    def encoders(self) -> dict[str, tuple[str, str]]:
        """The pair of encoders that codes start from, and the network whose maps are judged."""
        config, found = self.config, dict[str, tuple[str, str]]()
        if config.quantizer is not None and config.init.kind in ("transport", "features"):
            found["foundation"] = ("joint", config.init.foundation)
        if config.discriminator == "projected":
            found["discriminator"] = ("image", config.projected.encoder)
        return found

    @property
    def knows_classes(self) -> bool:
        """Whether generator and discriminator are told the class, or a text."""
        return self.config.network.condition != "none"

    # ------------------------------------------------------------------------------------ the generator

    def condition(self, labels: Tensor) -> Tensor | None:
        """Return what the networks are told of classes (B,): rows of the table (B, c_dim), or None."""
        return None if self.config.network.condition == "none" else self.classes[labels]

    def _told(self, labels: Tensor) -> Tensor | None:
        """Return what the discriminator is told of classes (B,)."""
        c = self.condition(labels)
        if c is None or self.discriminator.c_dim == c.shape[1]:
            return c
        numbers = nn.functional.one_hot(labels, self.spec.n_classes).to(c)
        return torch.cat([nn.functional.normalize(c, dim=1), numbers], 1)

    def styles(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return continuous styles (B, D) of latents (B, Z) and classes (B,)."""
        return self.mapping(z, self.condition(labels))

    def centre(self, c: Tensor | None, n: int) -> Tensor:
        """Return the mean style (n, D) of each condition (n, c_dim), over a fixed set of latents.

        Source: truncation follows Karras et al. 2019, arXiv:1812.04948, Sec. 2.1 and Appendix B.
        Differs: the mean of `CENTRE_DRAWS` fixed latents for each condition, instead of one running mean for
            all classes, which would pull every class towards the same image.
        """
        z = noise(torch.arange(CENTRE_DRAWS), (self.mapping.z_dim,), stream=_CENTRE_STREAM).to(self.device)
        if self.quantizer is not None and self.quantizer.config.space == "z":
            z = self.quantizer(z, learn=False).styles
        if c is None:
            return self.mapping(z, None).mean(0, keepdim=True).expand(n, -1)
        unique, row = torch.unique(c, dim=0, return_inverse=True)
        # Each condition by itself: the last bits of a matrix product depend on its size.
        means = [self.mapping(z, one.expand(CENTRE_DRAWS, -1)).mean(0) for one in unique]
        return torch.stack(means)[row]

    def quantized(
        self, z: Tensor, c: Tensor | None, psi: float = 1.0, centre: Tensor | None = None
    ) -> tuple[Tensor, StyleCodes | None]:
        """Return what the synthesis network gets: styles, truncated first and quantised last.

        Args:
            z: latents (B, Z).
            c: conditions (B, c_dim), or None.
            psi: 1: no truncation; 0: the centre alone.
            centre: (B, D); None: that of `c`, computed if `psi` is not 1.

        Returns:
            Styles (B, D), or (B, L, D) if W+ is quantised; what the quantiser says, None without one.
        """
        if self.quantizer is None or self.config.quantizer is None:
            return self._truncated(self.mapping(z, c), c, psi, centre), None
        space = self.config.quantizer.space
        if space == "z":
            codes: StyleCodes = self.quantizer(z, learn=False)
            return self._truncated(self.mapping(codes.styles, c), c, psi, centre), codes
        w = self._truncated(self.mapping(z, c), c, psi, centre)
        if space == "w+":
            w = w[:, None].expand(-1, self.synthesis.n_layers, -1)
        codes = self.quantizer(w, learn=False)
        return codes.styles, codes

    def _truncated(self, w: Tensor, c: Tensor | None, psi: float, centre: Tensor | None) -> Tensor:
        if psi == 1.0 and centre is None:
            return w
        own = self.centre(c, len(w))
        return (own if centre is None else centre) + psi * (w - own)

    def _noise(self, n: int, rng: torch.Generator) -> list[Tensor] | str:
        """Draw the noise maps of n images; "none" if the networks take none."""
        if not self.config.network.noise:
            return "none"
        return [
            torch.randn(n, 1, *size, generator=rng, device=rng.device) for size in self.synthesis.noise_sizes
        ]

    def _latents(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.randn(n, self.config.network.z_dim, generator=rng, device=rng.device)

    def _mixing(self, n: int, c: Tensor | None, rng: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Draw styles of other latents for n rows, and the layers (n,) from which on they are used.

        None if styles are not mixed.
        """
        share = self.config.style_mixing
        if share == 0:
            return None
        others, _ = self.quantized(self._latents(n, rng), c)
        n_layers = self.synthesis.n_layers
        cut = torch.randint(1, n_layers, (n,), generator=rng, device=rng.device)
        keep = torch.rand(n, generator=rng, device=rng.device) >= share
        return others, cut.masked_fill(keep, n_layers)

    def _mixed(self, styles: Tensor, mixing: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the styles with those of `_mixing` in later layers."""
        return styles if mixing is None else mix_styles(styles, *mixing, self.synthesis.n_layers)

    # ------------------------------------------------------------------------------------ the objectives

    def _seen(self, images: Tensor) -> list[Tensor]:
        """Return what the discriminator judges: images, or the maps that a frozen network makes of them."""
        d = self.discriminator
        return d.maps(images) if isinstance(d, ProjectedDiscriminator) else [images]

    def _judged(self, seen: list[Tensor], *conditions: Tensor | None) -> list[list[Tensor]]:
        """Return the logits of each head, for each of some conditions."""
        d = self.discriminator
        if not isinstance(d, ProjectedDiscriminator):
            return [[d(*seen, c)] for c in conditions]
        described = d.describe(seen)
        return [d.judge(described, c) for c in conditions]

    def _augmenting(self, n: int, shape: Sequence[int], rng: torch.Generator) -> Draw:
        """Draw the augmentation of a batch; heads that compare images see all of a group changed alike."""
        d = self.discriminator
        group = group_of(n, d.group_size) if isinstance(d, ProjectedDiscriminator) else 1
        return repeated(self.augment.draw(n // group, shape, rng), group)

    def _wrong(self, labels: Tensor, rng: torch.Generator) -> list[Tensor | None]:
        """Return another class's condition for each of labels (B,), if that is asked for and there is one."""
        k = self.spec.n_classes
        if not self.config.mismatch or k == 1 or self.config.network.condition == "none":
            return []
        step = torch.randint(1, k, labels.shape, generator=rng, device=rng.device)
        return [self._told((labels + step.to(labels)) % k)]

    def _discriminator_loss(self, batch: Batch, context: Context) -> LossTerms:
        """Loss on real and generated images, and consistency of pairs.

        The generated images keep their graph for the generator's update that follows in the same step. So do
        the frozen network's maps of them: a projected discriminator judges the same ones in both updates.
        """
        config, rng, n = self.config, context.rng, len(batch)
        pairs = config.pairs
        due = context.step % pairs.every == 0
        c, told = self.condition(batch.labels), self._told(batch.labels)
        z = self._latents(n, rng)
        maps = self._noise(n, rng)
        styles, codes = self.quantized(z, c)
        mixing = self._mixing(n, c, rng)
        fake = self.synthesis(self._mixed(styles, mixing), maps)
        # Both images of a pair get the same draw: otherwise the discriminator is held against that, too.
        draw, real_draw = (self._augmenting(n, fake.shape[1:], rng) for _ in range(2))

        def seen(images: Tensor, draw: Draw) -> list[Tensor]:
            with torch.no_grad():
                return self._seen(self.augment.replay(images, draw))

        seen_real = seen(batch.images, real_draw)
        if isinstance(self.discriminator, ProjectedDiscriminator):
            seen_fake = self._seen(self.augment.replay(fake, draw))
            self._drawn = _Drawn(context.step, fake, codes, seen_fake, seen_real)
            seen_fake = [one.detach() for one in seen_fake]
        else:
            self._drawn = _Drawn(context.step, fake, codes)
            seen_fake = seen(fake.detach(), draw)
        fake = fake.detach()
        real, *wrong = self._judged(seen_real, told, *self._wrong(batch.labels, rng))
        (generated,) = self._judged(seen_fake, told)
        real_logits, fake_logits = per_head(real), per_head(generated)
        self.augment.update(real_logits.detach().mean(1))
        stats: dict[str, Tensor | float] = {
            "real_logit": real_logits.detach().mean(),
            "fake_logit": fake_logits.detach().mean(),
        }
        couples: dict[str, tuple[Tensor, Tensor]] = {}
        if due and pairs.real:
            (again,) = self._judged(seen(self.view(batch.images, rng), real_draw), told)
            couples["real"] = (real_logits, per_head(again))
        if due and pairs.fake:
            (again,) = self._judged(seen(self.view(fake, rng), draw), told)
            couples["fake"] = (fake_logits, per_head(again))
        if due and pairs.latent:
            # The same noise maps and mixing, for the same reason.
            with torch.no_grad():
                near, near_codes = self.quantized(z + pairs.sigma * self._latents(n, rng), c)
                near_images = self.synthesis(self._mixed(near, mixing), maps)
            (again,) = self._judged(seen(near_images, draw), told)
            couples["latent"] = (fake_logits, per_head(again))
            if codes is not None and near_codes is not None:
                stats["changed_codes"] = (codes.indices != near_codes.indices).float().mean()
        values = adversarial.discriminator_terms(config.loss, real, generated)
        weights = pairs.weights()
        if wrong:
            weights["mismatch"] = config.mismatch
            values["mismatch"] = adversarial.mismatch_term(config.loss, real, wrong[0])
        if due:
            values |= consistency.discriminator_terms(pairs, **couples)
        if config.adversarial_augment == "ada":
            # A copy: the buffer moves in place before the log reads it.
            stats["augment_p"] = self.augment.p.clone()  # type: ignore[operator]
        return LossTerms(values, weights, stats)

    def _generator_loss(self, batch: Batch, context: Context) -> LossTerms:
        """Loss on the step's generated images, quantisation loss, uniformity of the codes."""
        config, rng = self.config, context.rng
        if self._drawn is None or self._drawn.step != context.step:
            raise RuntimeError("the generator's update needs the images of the discriminator's")
        drawn, self._drawn = self._drawn, None
        c, told, codes = self.condition(batch.labels), self._told(batch.labels), drawn.codes
        (logits,) = self._judged(drawn.seen or self._seen(self.augment(drawn.images, rng)), told)
        real: list[Tensor] | None = None
        if config.loss == "relativistic":
            with torch.no_grad():
                (real,) = self._judged(drawn.seen_real or self._seen(self.augment(batch.images, rng)), told)
        values = {"adversarial": adversarial.generator_term(config.loss, logits, real)}
        weights: dict[str, float] = {}
        stats: dict[str, Tensor | float] = {}
        if config.spread and drawn.seen and drawn.seen_real:
            assert isinstance(self.discriminator, ProjectedDiscriminator)
            wanted = self.discriminator.spread(drawn.seen_real).clamp_min(1e-6)
            share = self.discriminator.spread(drawn.seen) / wanted
            values["spread"] = (1.0 - share).clamp_min(0.0).mean()
            weights["spread"] = config.spread
            stats["spread_share"] = share.detach().mean()
        if codes is not None and self.quantizer is not None and config.quantizer is not None:
            # Once per step, from the step's own styles, after both images of a pair have met the same codes.
            self.quantizer.learn(codes)
            values["quantisation"] = codes.loss
            values["uniformity"] = self.quantizer.uniformity(rng)
            weights["quantisation"] = config.quantizer.weight
            weights["uniformity"] = config.quantizer.weight * config.quantizer.uniformity
            stats |= {"perplexity": codes.perplexity, "quantisation_error": codes.error}
        pairs = config.pairs
        if pairs.diversity and context.step % pairs.every == 0:
            z = self._latents(len(batch), rng)
            maps = self._noise(len(batch), rng)
            both = [
                self.synthesis(self.quantized(latents, c)[0], maps)
                for latents in (z, z + pairs.sigma * self._latents(len(batch), rng))
            ]
            values["consistency_diversity"] = consistency.generator_term(*both)
            weights["consistency_diversity"] = pairs.weights()["consistency_diversity"]
        return LossTerms(values, weights, stats)

    def _r1_loss(self, batch: Batch, context: Context) -> LossTerms:
        """Gradient penalties on real and on generated images, as the discriminator sees them."""
        config, rng = self.config, context.rng
        gammas = {"r1": config.r1_gamma, "r2": config.r2_gamma}
        gammas = {name: gamma for name, gamma in gammas.items() if gamma}
        values: dict[str, Tensor] = {}
        for name in gammas:
            images = batch.images
            if name == "r2":
                with torch.no_grad():
                    styles, _ = self.quantized(self._latents(len(batch), rng), self.condition(batch.labels))
                    images = self.synthesis(styles, self._noise(len(batch), rng))
            images = self.augment(images, rng).detach().requires_grad_(True)
            values[name] = r1_penalty(self.discriminator(images, self._told(batch.labels)), images)
        # Computed every few steps: the factor makes up for the ones between (lazy regularisation).
        return LossTerms(values, {name: 0.5 * gamma * config.r1_every for name, gamma in gammas.items()})

    def _path_loss(self, batch: Batch, context: Context) -> LossTerms:
        """Path length regularisation with respect to the quantised styles."""
        c, rng = self.condition(batch.labels), context.rng
        styles, _ = self.quantized(self._latents(len(batch), rng), c)
        images = self.synthesis(styles, self._noise(len(batch), rng))
        return LossTerms(
            {"path_length": self.path_length(images, styles, rng)},
            {"path_length": self.config.path_weight * self.config.path_every},
        )

    # ------------------------------------------------------------------------------------ training

    def stages(self, train: ImageSet, held_out: ImageSet | None) -> list[Stage]:
        """Return the codebook's initialisation, if it is trained, and adversarial training.

        Raises:
            ConfigError: if there are fewer images than a batch holds.
        """
        config, n = self.config, len(train)
        if n < 2:
            raise ConfigError("There is 1 training image; telling real from generated ones needs 2 or more.")
        if config.batch_size is not None and config.batch_size > n:
            most = n // config.network.group_size * config.network.group_size
            fewer = f"{most} or less" if most > 1 else f"{n} and --model.network.group_size to 1"
            raise ConfigError(
                f"batch_size {config.batch_size} is more than there are training images ({n}). "
                f"Set --model.batch_size to {fewer}."
            )
        group = self._group_size(train)
        if config.batch_size is not None:
            group = max(g for g in range(1, group + 1) if config.batch_size % g == 0)
        self.discriminator.group_size = group
        batch_size = config.batch_size or self._default_batch_size(n, group)
        generator: list[nn.Module] = [self.mapping, self.synthesis]
        if self.quantizer is not None:
            generator.append(self.quantizer)

        def phase(name: str, modules: nn.Module | list[nn.Module], loss: LossFunction, **more: Any) -> Phase:
            # The total of a penalty makes up for the steps between, so its limit does too.
            limit = config.loss_limit * more.get("every", 1)
            return Phase(name, modules, loss, watch=False, limit=limit, **more)

        adam = {"betas": (config.beta1, 0.99), "schedule": config.schedule}
        phases = [
            phase(
                "discriminator",
                self.discriminator,
                self._discriminator_loss,
                lr=config.discriminator_lr,
                **adam,
            )
        ]
        if config.r1_gamma or config.r2_gamma:
            phases.append(
                phase("r1", self.discriminator, self._r1_loss, every=config.r1_every, shares="discriminator")
            )
        phases.append(phase("generator", generator, self._generator_loss, lr=config.lr, **adam))
        if config.path_weight:
            # The codes have no part in it: the gradient is taken with respect to what they became. The
            # running mean has no parameters, but moves only in training mode, which phases switch on.
            moved: list[nn.Module] = [self.synthesis, self.mapping, self.path_length]
            phases.append(
                phase("path_length", moved, self._path_loss, every=config.path_every, shares="generator")
            )
        stages = []
        if self.quantizer is not None and config.init.kind == "transport":
            stages.append(transport_stage(self, config.init))
        stages.append(
            Stage(
                "adversarial",
                phases,
                steps=config.steps,
                batch_size=batch_size,
                sampler="shuffled"
                if config.network.condition == "none"
                else partial(GroupedSampler, group_size=group),
                # What towers and codes do not need of their quarter comes to this stage.
                time_share=0.75 if stages else None,
                augment=None if config.augment == "none" else Augment(config.augment),
                modules=generator,
                validate=self._validate,
                draws=True,
                preview=self._preview,
                diagnose=self._diagnose,
                on_start=self._start,
                summary="generator against discriminator",
            )
        )
        return stages

    def _group_size(self, *sets: ImageSet | None) -> int:
        """Return how many images the discriminator compares: with classes, at most those of the smallest.

        A group that held an image twice would look less varied than the class is.
        """
        group = self.config.network.group_size
        if self.config.network.condition == "none":
            return min(group, *(len(images) for images in sets if images is not None))
        counts = torch.cat([images.counts() for images in sets if images is not None])
        return min(group, int(counts[counts > 0].min()))

    def _default_batch_size(self, n: int, group: int) -> int:
        """Return the images per step for n images: whole groups, at least one."""
        return max(group, min(BATCH_SIZE, n) // group * group)

    def _start(self, context: Context) -> None:
        """Read the frozen network, if there is one; fill the codebook, unless a stage before this one has."""
        if isinstance(self.discriminator, ProjectedDiscriminator):
            self.discriminator.prepare(context.device)
        kind = self.config.init.kind
        if self.quantizer is not None and kind != "transport":
            self.quantizer.set_codes(starting_codes(self, self.config.init, context))

    def _groups(self, pixels: Pixels, group: int, n_batches: int) -> list[Batch]:
        """Return batches as in training: with classes, the images of a group are of one class."""
        labels, size = pixels.source.labels, self._default_batch_size(len(pixels), group)
        sampler: Sampler
        if self.config.network.condition == "none":
            sampler = make_sampler("shuffled", labels, size, 0)
        else:
            sampler = GroupedSampler(labels, size, 0, group_size=group)
        return [pixels.at(sampler.next()) for _ in range(n_batches)]

    def _validate(self, context: Context) -> dict[str, float]:
        return self.discriminator_figures(context.train, context.held_out, context.rng)

    @torch.no_grad()
    def discriminator_figures(
        self,
        train: Pixels,
        held_out: Pixels | None,
        rng: torch.Generator,
        *,
        sigma: float | None = None,
        n_batches: int = 8,
    ) -> dict[str, float]:
        """Return how far the discriminator has learned the training images by heart, and its consistency.

        Args:
            train: training images.
            held_out: other real images, or None.
            rng: of latents, perturbations and noise maps, none of which training has seen.
            sigma: standard deviation of the perturbation; None: that of the consistency term.
            n_batches: batches of each kind; more measure more finely.

        Returns:
            "logit_train", "accuracy_train" (share of real images with a logit above 0), and with held-out
            images the same of these and "accuracy_gap", train minus held out; "logit_generated";
            "consistency_gap", the mean of |D(g(w)) - D(g(w'))| over neighbouring latents. With a quantiser,
            "perplexity", "codes_used" (share of the codes that are chosen), "codes_per_position" (how many
            different ones a position takes, on average), "changed_codes" (share of the pieces whose code the
            perturbation changes) and "unchanged_styles" (share of the pairs that keep all their codes, so
            that their consistency is 0).
        """
        trained_with = self.discriminator.group_size
        # Equal groups for held-out and training images: otherwise the scores answer different questions.
        group = self._group_size(train.source, None if held_out is None else held_out.source)
        self.discriminator.group_size = group
        sigma = self.config.pairs.sigma if sigma is None else sigma
        try:
            logits = {
                name: torch.cat(
                    [
                        self.discriminator(b.images, self._told(b.labels))
                        for b in self._groups(pixels, group, n_batches)
                    ]
                )
                for name, pixels in (("train", train), ("held_out", held_out))
                if pixels is not None
            }
            pairs = [self._neighbours(batch, sigma, rng) for batch in self._groups(train, group, n_batches)]
        finally:
            self.discriminator.group_size = trained_with
        size = 0 if self.config.quantizer is None else self.config.quantizer.codebook_size
        return memory_figures(logits) | neighbour_figures(pairs, size)

    def _neighbours(self, batch: Batch, sigma: float, rng: torch.Generator) -> Neighbours:
        c, told, n = self.condition(batch.labels), self._told(batch.labels), len(batch)
        z, maps = self._latents(n, rng), self._noise(n, rng)
        own, codes = self.quantized(z, c)
        near, near_codes = self.quantized(z + sigma * self._latents(n, rng), c)
        return Neighbours(
            self.discriminator(self._images(own, maps), told),
            self.discriminator(self._images(near, maps), told),
            None if codes is None else codes.indices,
            None if near_codes is None else near_codes.indices,
        )

    def _preview(self, context: Context) -> Tensor:
        n_classes = min(10, self.spec.n_classes)
        labels = torch.arange(n_classes, device=self.device).repeat(64 // n_classes)
        images = self.sample(None, labels, torch.arange(len(labels)), 1.0)
        return to_uint8(images).cpu()

    def _diagnose(self, context: Context) -> list[str]:
        figures = self._validate(context)
        warnings = win_warnings(figures, self.config)
        if context.progress < 0.2:
            return warnings
        warnings += code_warnings(figures, self.config)
        own = context.train.spread(256)
        pairs = []
        for k in own.labels.unique()[:10].tolist():
            of_class = own.images[own.labels == k]
            if len(of_class) > 1:
                labels = torch.full((16,), k, device=self.device)
                pairs.append((of_class, self.sample(None, labels, torch.arange(16), 1.0)))
        return warnings + spread_warnings(pairs)

    # ------------------------------------------------------------------------------------ using it

    @torch.no_grad()
    def sample(
        self,
        class_vectors: Tensor | None,
        labels: Tensor,
        seeds: Tensor,
        temperature: float,
        **options: Any,
    ) -> Tensor:
        """Return images, float (N, C, H, W) in [-1, 1]; see `Method.sample`.

        The temperature is psi of the truncation.
        """
        if options:
            raise ConfigError(f"Unknown options {sorted(options)}; sq_gan has none.")
        if bool((labels < 0).any()):
            assert class_vectors is not None
            c = self._condition_of(class_vectors)
        else:
            c = self.condition(labels)
        return self._draw(c, seeds, temperature)

    def _draw(
        self, c: Tensor | None, seeds: Tensor, temperature: float, centre: Tensor | None = None
    ) -> Tensor:
        z = noise(seeds, (self.config.network.z_dim,)).to(self.device)
        styles, _ = self.quantized(z, c, temperature, centre)
        return self._images(styles, self._maps(seeds, temperature)).clamp(-1.0, 1.0)

    def _images(self, styles: Tensor, maps: list[Tensor] | str) -> Tensor:
        """Return images of styles in evaluation mode."""
        self._settle()
        images: Tensor = self.synthesis(styles, maps)
        return images

    @torch.no_grad()
    def _settle(self) -> None:
        """Let the light generator find its statistics anew if weights have changed since."""
        if not isinstance(self.synthesis, LightSynthesis):
            return
        modules = [self.mapping, self.synthesis, *([self.quantizer] if self.quantizer else [])]
        tensors = [t for module in modules for t in module.state_dict().values() if t.is_floating_point()]
        now = (str(self.device), torch.stack(list(torch._foreach_norm(tensors))).tolist())
        if self._settled == now:
            return

        def styles() -> Iterator[Tensor]:
            n = SETTLING[1]
            for start in range(0, SETTLING[0] * n, n):
                rows = torch.arange(start, start + n)
                z = noise(rows, (self.config.network.z_dim,), stream=_SETTLING_STREAM).to(self.device)
                yield self.quantized(z, self.condition(rows.to(self.device) % self.spec.n_classes))[0]

        self.synthesis.settle(styles())
        self._settled = now

    def _maps(self, seeds: Tensor, temperature: float) -> list[Tensor] | str:
        if not self.config.network.noise:
            return "none"
        return [
            min(temperature, 1.0) * noise(seeds, (1, *size), stream=i + 1).to(self.device)
            for i, size in enumerate(self.synthesis.noise_sizes)
        ]

    def _condition_of(self, vectors: Tensor) -> Tensor | None:
        """Return the conditions of text vectors (N, D)."""
        net = self.config.network
        if net.condition == "none":
            return None
        vectors = vectors.to(torch.float32)
        if net.condition == "text":
            return vectors
        text = self.spec.text
        assert text is not None
        table = text.vectors.to(vectors)
        # By differences: products of matrices leave equal vectors thousandths apart.
        distance = torch.cdist(vectors, table, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.argmin(1)
        if bool((distance.gather(1, nearest[:, None]) > 1e-4).any()):
            names = ", ".join(f'"{name}"' for name in self.spec.class_names[:12])
            raise ConfigError(
                "This model knows its classes by number, so no other text can be drawn. Train one with "
                f"--model.network.condition text for that. Classes: {names}."
            )
        return self.classes[nearest]

    @torch.no_grad()
    def encode_text(self, vectors: Tensor) -> Tensor:
        """Return latents (N, D + c_dim) of text vectors: the centre of their styles, and their condition."""
        c = self._condition_of(vectors)
        centre = self.centre(c, len(vectors))
        return centre if c is None else torch.cat([centre, c], 1)

    @torch.no_grad()
    def decode(self, latents: Tensor, seeds: Tensor, temperature: float = 1.0) -> Tensor:
        """Return images in [-1, 1], (N, C, H, W), of latents (N, D + c_dim).

        A walk between two latents is a straight line of centres in W, quantised at every point; above
        temperature 0, each image has the offset from the centre that its seed gives under the walk's
        condition.

        Args:
            latents: of `encode_text`, or between them.
            seeds: int64 (N,).
            temperature: psi of the truncation.
        """
        d = self.config.network.w_dim
        if latents.shape[1] != d + self.mapping.c_dim:
            raise ShapeError(f"Latents are (N, {d + self.mapping.c_dim}), got {tuple(latents.shape)}.")
        c = latents[:, d:] if self.mapping.c_dim else None
        return self._draw(c, seeds, temperature, centre=latents[:, :d])

    def _quantised(self) -> StyleQuantizer:
        if self.quantizer is None:
            raise ConfigError("This model has no codes; train it with a quantizer.")
        return self.quantizer

    @torch.no_grad()
    def encode_codes(self, labels: Tensor, seeds: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the codes of the images that `sample` draws, int64 (N, s), or (N, L, s) for W+."""
        self._quantised()
        z = noise(seeds, (self.config.network.z_dim,)).to(self.device)
        _, codes = self.quantized(z, self.condition(labels.to(self.device)), temperature)
        assert codes is not None
        return codes.indices

    @torch.no_grad()
    def from_codes(self, codes: Tensor, seeds: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return images in [-1, 1], (N, C, H, W), of codes (N, s).

        Codes drawn at random are far from anything that the generator has seen; recombine those of images.

        Args:
            codes: int64, of `encode_codes` or `swap_codes`.
            seeds: int64 (N,), of the noise maps, if the networks have any; None: the maps of seed 0 for all.
            labels: int64 (N,); needed if latents are quantised, since their class enters after them.

        Raises:
            ConfigError: the model has no codes, or needs labels.
            ShapeError: a code does not exist.
        """
        quantizer = self._quantised()
        assert self.config.quantizer is not None
        styles = quantizer.lookup(codes.to(self.device))
        if self.config.quantizer.space == "z":
            if labels is None:
                raise ConfigError("This model quantises latents: from_codes needs the labels.")
            styles = self.mapping(styles, self.condition(labels.to(self.device)))
        seeds = torch.zeros(len(codes), dtype=torch.int64) if seeds is None else seeds
        return self._images(styles, self._maps(seeds, 1.0)).clamp(-1.0, 1.0)

    @staticmethod
    def swap_codes(a: Tensor, b: Tensor, positions: Tensor | list[int]) -> tuple[Tensor, Tensor]:
        """Return codes a and b, int64 (N, s), with those at `positions` exchanged.

        Raises:
            ShapeError: if the codes differ in shape, or a position does not exist.
        """
        index = torch.as_tensor(positions, dtype=torch.int64, device=a.device)
        if a.shape != b.shape:
            raise ShapeError(
                f"Codes to be swapped must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}."
            )
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= a.shape[-1]):
            raise ShapeError(f"Positions must be 0 to {a.shape[-1] - 1}, got {index.tolist()}.")
        first, second = a.clone(), b.clone()
        first[..., index], second[..., index] = b[..., index], a[..., index]
        return first, second

    @torch.no_grad()
    def codebook_usage(self, images: ImageSet) -> dict[str, Tensor]:
        """Return how often each code is chosen by latents of the classes of `images`, (K,)."""
        if self.quantizer is None or self.config.quantizer is None:
            return {}
        labels = images.labels[torch.linspace(0, len(images) - 1, 1024).long()]
        indices = self.encode_codes(labels, torch.arange(len(labels)))
        return {"styles": code_counts(indices, self.config.quantizer.codebook_size).cpu()}
