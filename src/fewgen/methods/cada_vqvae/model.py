"""CADA-VQ-VAE: images and words in one latent space of 20 numbers, the words through a codebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.config.checks import one_of
from fewgen.config.keywords import refuse_ignored
from fewgen.data.augment import Augment
from fewgen.data.imageset import ImageSet, to_floats, to_uint8
from fewgen.errors import ConfigError
from fewgen.generation.noise import noise, uniform
from fewgen.losses.contrastive import supervised_contrastive
from fewgen.losses.divergence import active_units, kl_diagonal, kl_standard_normal, reparameterize
from fewgen.losses.mmd import RBF, Kernel, MixtureRBF, mmd2, mmd2_per_class
from fewgen.losses.reconstruction import squared_error, ssim_error
from fewgen.losses.terms import LossTerms
from fewgen.losses.transport import w2_diagonal
from fewgen.losses.weighting import GradNormWeights, UncertaintyWeights, Weighting
from fewgen.methods.base import DataSpec, Method
from fewgen.methods.cada_vqvae.config import CadaVqVaeConfig, SpatialConfig
from fewgen.methods.cada_vqvae.spatial import ConditionedPrior, Tokenizer
from fewgen.methods.registry import register
from fewgen.nn.codebook import Codebook, Quantized
from fewgen.nn.conv import ConvImageDecoder, ConvImageEncoder
from fewgen.nn.modes import evaluating
from fewgen.nn.vae import GaussianHead, MLPImageDecoder, MLPImageEncoder, SemanticBody, SemanticDecoder
from fewgen.training.phases import Batch, Context, LossFunction, Phase, Pixels, Stage

REFERENCE = 784
"""Numbers that an image and a word vector count for in the objective, whatever their size."""

ALIGNED = (
    "image_encoder",
    "image_decoder",
    "semantic_encoder",
    "codebook",
    "semantic_head",
    "semantic_decoder",
)
"""The networks of the aligned latent."""

Gaussian = tuple[Tensor, Tensor]


@register("cada_vqvae")
class CadaVqVae(Method):
    """Cross-aligned, vector-quantised autoencoder: images and words share one latent space.

    One pair of networks codes images, the other codes word vectors, whose latent passes through a
    codebook. Each latent must reconstruct both its image and its word, and the two distributions are
    aligned class by class, so that a word alone decodes to images of its class. The preset `hybrid` adds
    a map of codes for detail, drawn by a prior that sees what the latent decodes to.

    Source: project report "Few-Shot Image Generation Using Cross-Aligned and Vector Quantized VAE with
        Meta-Learning"; Schoenfeld et al. 2019, arXiv:1812.01784 (CADA-VAE); van den Oord et al. 2017,
        arXiv:1711.00937 (VQ-VAE); the conditional prior follows Sohn et al. 2015 (CVAE).
    Differs: the published code's cross terms are the self terms, its word posterior gets no gradient and
        bypasses the quantiser, its text output is a sigmoid and its terms are reduced differently. All
        are mended by default and can be switched back on (preset `paper`). Ours, and in none of these works:
        alignment class by class with an unbiased MMD, the word's mean in the cross term, the conditional
        prior in place of N(0, I), groups of codes, the convolutional backbone, standardised word
        vectors, the best of several draws, and the second level's condition.
    """

    Config: ClassVar[type] = CadaVqVaeConfig
    capabilities = frozenset({"reconstruct", "encode", "text", "interpolate", "retrieve", "adapt"})
    adapts_stage = "align"
    # Running means would leak from task to task and are no parameters that a task could adapt.
    meta_settings: ClassVar[Mapping[str, Any]] = {"text": {"update": "gradient"}}
    config: CadaVqVaeConfig
    text_table: Tensor

    def __init__(self, config: CadaVqVaeConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if spec.text is None:
            raise ConfigError("cada_vqvae needs a vector per class: choose a text encoder (--text).")
        if spec.n_classes < 2:
            raise ConfigError(
                f"cada_vqvae aligns images with words and needs 2 classes or more; there is only "
                f'"{spec.class_names[0]}".'
            )
        image, text, size = config.image, config.text, config.latent_size
        if image.backbone == "conv":
            self.image_encoder: nn.Module = ConvImageEncoder(
                spec.shape,
                size,
                image.width,
                image.n_blocks,
                image.hidden,
                image.dropout,
                config.logvar_start,
            )
            self.image_decoder: nn.Module = ConvImageDecoder(
                spec.shape, size, image.width, image.n_blocks, image.hidden
            )
        else:
            self.image_encoder = MLPImageEncoder(
                spec.shape, size, dropout=image.dropout, logvar=config.logvar_start
            )
            self.image_decoder = MLPImageDecoder(spec.shape, size)
        table = spec.text.vectors.to(torch.float32)
        # Part of the file's text table already, so not of the weights.
        self.register_buffer("text_table", table.clone(), persistent=False)
        self.semantic_encoder = SemanticBody(table.shape[1], size, text.hidden)
        self.codebook = Codebook(
            text.codebook_size,
            size // text.groups,
            groups=text.groups,
            update=text.update,
            init=text.init,
            commitment_weight=text.commitment_weight,
            restart_after=text.restart_after,
        )
        self.semantic_head = GaussianHead(size, size, config.logvar_start)
        self.semantic_decoder = SemanticDecoder(size, table.shape[1], text.hidden, text.output)
        self.tokenizer: Tokenizer | None = None
        self.prior: ConditionedPrior | None = None
        if config.spatial is not None:
            self.tokenizer = Tokenizer(spec.shape, config.spatial)
            self.prior = ConditionedPrior(spec.shape, size, config.spatial, self.tokenizer.n_positions)
        self._register_inner_rates()

    @property
    def citations(self) -> tuple[str, ...]:
        """Keys of the works that this configuration rests on."""
        keys = ("cada_vqvae", "cada_vae", "vq_vae", "vae")
        extra = {
            "mmd": self.config.alignment.startswith("mmd"),
            "supcon": self.config.weights.contrastive > 0,
        }
        return (*keys, *(key for key, used in extra.items() if used))

    # ------------------------------------------------------------------------------------ both pathways

    def encode_image(self, x: Tensor) -> Gaussian:
        """Return mu_x and logvar_x, (B, L), of images (B, C, H, W) in [-1, 1]."""
        mu, logvar = self.image_encoder(x)
        # Full precision from here on: the losses lose several percent in bfloat16.
        return mu.float(), logvar.float()

    def encode_word(self, c: Tensor) -> tuple[Tensor, Quantized, Gaussian]:
        """Return z_e (B, L), its quantisation, and (mu_c, logvar_c), of text vectors (B, D)."""
        z_e = self.semantic_encoder(c)
        quantized = self.codebook(z_e)
        source = quantized.codes if self.config.semantic_stats_from == "z_q" else z_e
        mu, logvar = self.semantic_head(source)
        return z_e, quantized, (mu, logvar)

    def decode_image(self, z: Tensor) -> Tensor:
        """Return intensities, (B, C, H, W), of latents (B, L); in [0, 1] unless the output is tanh."""
        raw: Tensor = self.image_decoder(z).float()
        return torch.sigmoid(raw) if self.config.image.output == "sigmoid" else torch.tanh(raw)

    def _second_level(self) -> tuple[Tokenizer, ConditionedPrior, SpatialConfig]:
        if self.tokenizer is None or self.prior is None or self.config.spatial is None:
            raise ConfigError("This model has no second level; train it with the preset hybrid.")
        return self.tokenizer, self.prior, self.config.spatial

    # ------------------------------------------------------------------------------------ the objective

    def objective(
        self,
        images: Tensor,
        labels: Tensor,
        rng: torch.Generator,
        ramp: float = 1.0,
        vectors: Tensor | None = None,
    ) -> LossTerms:
        """Return all terms of the aligned latent, each summed over features and averaged over the batch.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: int64 (B,), rows of the vectors.
            rng: of the latents' noise.
            ramp: share of warm-up that is over, in [0, 1].
            vectors: standardised text vectors (n_classes, D); None: of the model's own classes.
        """
        cfg, w = self.config, self.config.weights
        table = self.text_table if vectors is None else vectors
        x, c = 0.5 * (images + 1.0), table[labels]
        mu_x, logvar_x = self.encode_image(images)
        # Each class once: the codebook would otherwise count a class as often as it has images.
        present, row = torch.unique(labels, return_inverse=True)
        z_e, quantized, (mu_u, logvar_u) = self.encode_word(table[present])
        mu_c, logvar_c = mu_u[row], logvar_u[row]
        z_x = reparameterize(mu_x, logvar_x, rng)
        z_c = reparameterize(mu_c, logvar_c, rng)

        x_hat = self.decode_image(z_x)
        word_source = z_c if cfg.semantic_stats_from == "z_q" else quantized.codes[row]
        c_hat = self.semantic_decoder(word_source)
        if cfg.cross_terms == "real":
            x_cross = self.decode_image(z_c) if cfg.cross_source == "sample" else self.decode_image(mu_u)[row]
            c_cross = self.semantic_decoder(z_x)
        else:
            x_cross, c_cross = x_hat, c_hat

        values = {
            "image": squared_error(x_hat, x),
            "text": squared_error(c_hat, c),
            "cross_image": squared_error(x_cross, x),
            "cross_text": squared_error(c_cross, c),
            "kl": kl_diagonal(mu_x, logvar_x, mu_c, logvar_c)
            if cfg.prior == "conditional"
            else kl_standard_normal(mu_x, logvar_x),
            "kl_text": kl_standard_normal(mu_u, logvar_u),
            "alignment": self._alignment((mu_x, logvar_x, z_x), (mu_c, logvar_c, z_c), z_e[row], labels),
            "codebook": quantized.codebook_loss + quantized.commitment_loss,
            "contrastive": supervised_contrastive(mu_x, labels, cfg.temperature),
        }
        n_x, n_c, b = x[0].numel(), c.shape[1], len(x)
        # Per term: what makes it count the same for any size ("sample"), or as published ("source").
        if cfg.reduction == "sample":
            image_scale, text_scale = REFERENCE / n_x, REFERENCE / n_c
            scale = {
                "image": image_scale,
                "cross_image": image_scale,
                "text": text_scale,
                "cross_text": text_scale,
            }
            unit = 1.0 / REFERENCE
        else:
            scale = {"image": b, "kl": b, "cross_image": 1 / n_x, "text": 1 / n_c, "cross_text": 1 / n_c}
            scale["codebook"] = 1 / cfg.latent_size
            unit = 1.0
        warming = {"kl", "kl_text", "cross_image", "cross_text", "alignment"}
        weights = {
            name: unit * scale.get(name, 1.0) * getattr(w, name) * (ramp if name in warming else 1.0)
            for name in values
        }
        if w.ssim:
            values["ssim"] = ssim_error(x_hat, x)
            weights["ssim"] = unit * w.ssim
        stats = {"perplexity": quantized.perplexity}
        return LossTerms(values, weights, stats)

    def task_terms(
        self, images: Tensor, labels: Tensor, vectors: Tensor | None, rng: torch.Generator
    ) -> LossTerms:
        """Return the objective without warm-up; with a second level, its prior's loss as a further term.

        The tokeniser is left alone: its codes are parts of shapes, and serve new classes as they are.
        """
        terms = self.objective(images, labels, rng, vectors=vectors)
        # A second level that has not been trained yet has nothing to adapt.
        if self.tokenizer is not None and bool(self.tokenizer.codebook.initialised):
            terms.values |= self._prior_loss(images, labels, rng, vectors=vectors).values
        return terms

    def adaptable(self, part: str = "all") -> list[str]:
        """Return the names of the parameters that adapt to a new class; see `Method.adaptable`."""
        prefixes = {
            "all": (*(f"{name}." for name in ALIGNED), "prior."),
            "decoder": ("image_decoder.", "semantic_encoder.", "semantic_head.", "codebook."),
            "heads": (
                "image_encoder.head.",
                "image_decoder.body.0.",
                "semantic_encoder.out.",
                "semantic_head.",
                "semantic_decoder.body.0.",
            ),
        }
        one_of("part to adapt", part, prefixes)
        return [name for name, _ in self.named_parameters() if name.startswith(prefixes[part])]

    def _alignment(
        self,
        image: tuple[Tensor, Tensor, Tensor],
        word: tuple[Tensor, Tensor, Tensor],
        z_e: Tensor,
        labels: Tensor,
    ) -> Tensor:
        cfg = self.config
        kernels: dict[str, Kernel] = {"mixture": MixtureRBF(), "median": MixtureRBF((1.0,)), "rbf": RBF(1.0)}
        kernel = kernels[cfg.kernel]
        a, b = (image[2], word[2]) if cfg.align_on == "samples" else (image[0], z_e)
        if cfg.alignment == "mmd_class":
            # The V-statistic's diagonal is constant but its 1/n^2 is not 1/(n (n-1)): with six images of
            # a class in a batch it would pull them together.
            return mmd2_per_class(a, b, labels, labels, kernel, unbiased=True)
        if cfg.alignment == "mmd":
            return mmd2(a, b, kernel)
        if cfg.alignment == "w2":
            return w2_diagonal(image[0], image[1], word[0], word[1])
        return a.sum() * 0.0

    # ------------------------------------------------------------------------------------ training

    def stages(self, train: ImageSet, held_out: ImageSet | None) -> list[Stage]:
        """Return the aligned latent's stage and, with a second level, its tokeniser's and its prior's."""
        cfg = self.config
        validated = held_out is not None

        def phase(name: str, modules: nn.Module | list[nn.Module], loss: LossFunction, **more: Any) -> Phase:
            return Phase(name, modules, loss, clip=cfg.clip or None, schedule=cfg.schedule, **more)

        def stage(
            name: str,
            phase: Phase,
            validate: Callable[[Context], dict[str, float]],
            monitor: str,
            **more: Any,
        ) -> Stage:
            return Stage(
                name,
                [phase],
                batch_size=cfg.batch_size,
                sampler=cfg.sampler,
                patience=cfg.patience or None if validated else None,
                validate=validate if validated else None,
                monitor=monitor if validated else None,
                **more,
            )

        align = stage(
            "align",
            phase(
                "vae",
                [self.get_submodule(name) for name in ALIGNED],
                self._align_loss,
                lr=cfg.lr,
                weight_decay=cfg.weight_decay,
                weighting=self._weighting(),
            ),
            self._validate_align,
            "objective",
            steps=cfg.steps,
            augment=Augment(cfg.augment),
            tolerance=cfg.tolerance,
            draws=cfg.spatial is None,
            preview=self._preview,
            diagnose=self._diagnose,
            summary="images and words into one latent space",
            time_share=0.3 if cfg.spatial is not None else None,
        )
        if cfg.spatial is None:
            return [align]
        tokenizer, prior, spatial = self._second_level()
        codes = stage(
            "codes",
            phase(
                "tokenizer",
                tokenizer,
                lambda batch, context: tokenizer.loss(batch.images),
                lr=spatial.lr,
                weight_decay=1e-4,
            ),
            self._validate_codes,
            "objective",
            steps=spatial.steps,
            augment=Augment(spatial.augment),
            preview=self._preview_codes,
            diagnose=self._diagnose_codes,
            summary="images into a map of codes",
            time_share=0.4,
        )
        detail = stage(
            "prior",
            phase(
                "prior",
                prior,
                lambda batch, context: self._prior_loss(
                    batch.images, batch.labels, context.rng, spatial.prior_smoothing
                ),
                lr=spatial.prior_lr,
                weight_decay=spatial.prior_weight_decay,
            ),
            self._validate_prior,
            "nats_per_code",
            steps=spatial.prior_steps,
            augment=Augment(spatial.prior_augment),
            draws=True,
            preview=self._preview,
            summary="which maps of codes a latent makes",
            time_share=0.3,
        )
        return [align, codes, detail]

    def _weighting(self) -> Weighting | None:
        names = ["image", "text", "cross_image", "cross_text", "kl", "contrastive"]
        if self.config.weighting == "uncertainty":
            # Without the alignment: its unbiased estimate may be negative, where no noise level is best.
            return UncertaintyWeights(names, speed=20.0)
        if self.config.weighting == "gradnorm":
            shared = [
                self.image_encoder.head.mu.weight,  # type: ignore[union-attr]
                self.semantic_head.mu.weight,
                self.semantic_decoder.out.weight,
            ]
            return GradNormWeights([*names, "alignment"], shared, update_every=10)  # type: ignore[arg-type]
        return None

    def _align_loss(self, batch: Batch, context: Context) -> LossTerms:
        return self.objective(
            batch.images, batch.labels, context.rng, context.ramp(self.config.weights.warm_up)
        )

    def _prior_loss(
        self,
        images: Tensor,
        labels: Tensor,
        rng: torch.Generator,
        smoothing: float = 0.0,
        vectors: Tensor | None = None,
    ) -> LossTerms:
        tokenizer, prior, spatial = self._second_level()
        # Only the prior learns from this; its inputs come from parts that are finished.
        with torch.no_grad():
            indices = tokenizer.indices(images)
            z, share = self._noised_latent(images, labels, rng, spatial.condition_noise, vectors)
            coarse = self._coarse(z)
        condition = prior.condition(coarse, z, share)
        loss = prior.codes.loss(indices, condition, tokenizer.codebook.codes, smoothing)
        return LossTerms({"nats_per_code": loss})

    def _noised_latent(
        self,
        images: Tensor,
        labels: Tensor,
        rng: torch.Generator,
        most: float,
        vectors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return latents of images, moved towards random ones of their class, and by which share."""
        mu, logvar = self.encode_image(images)
        table = self.text_table if vectors is None else vectors
        _, _, (mu_c, logvar_c) = self.encode_word(table[labels])
        z = reparameterize(mu, logvar, rng)
        share = torch.rand(len(z), generator=rng, device=rng.device).to(z) * most
        other = torch.randn(z.shape, generator=rng, device=rng.device).to(z)
        deviation = torch.exp(0.5 * logvar_c)
        own = (z - mu_c) / deviation
        # Variance-preserving, so that a full share gives what generation draws.
        mixed = (1 - share.square()).sqrt()[:, None] * own + share[:, None] * other
        return mu_c + deviation * mixed, share

    def _coarse(self, z: Tensor) -> Tensor:
        return (2.0 * self.decode_image(z) - 1.0).clamp(-1.0, 1.0)

    # ------------------------------------------------------------------------------------ held-out figures

    def _over_held_out(self, context: Context, figures: Any) -> dict[str, float]:
        assert context.held_out is not None
        totals: dict[str, float] = {}
        for batch in context.held_out.batches(256):
            for name, value in figures(batch).items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(batch) / len(context.held_out)
        return totals

    def _validate_align(self, context: Context) -> dict[str, float]:
        def figures(batch: Batch) -> dict[str, Tensor | float]:
            terms = self.objective(batch.images, batch.labels, context.rng)
            scores = self.retrieve(batch.images)
            x = 0.5 * (batch.images + 1.0)
            mean = self.decode_image(self.encode_image(batch.images)[0])
            return {
                "objective": terms.total(),
                "mse": functional.mse_loss(mean, x),
                "retrieval": (scores.argmax(1) == batch.labels).float().mean(),
            }

        return self._over_held_out(context, figures)

    def _validate_codes(self, context: Context) -> dict[str, float]:
        tokenizer = self.tokenizer
        assert tokenizer is not None

        def figures(batch: Batch) -> dict[str, Tensor | float]:
            terms = tokenizer.loss(batch.images)
            return {"objective": terms.total(), "mse": terms.values["image"]}

        return self._over_held_out(context, figures)

    def _validate_prior(self, context: Context) -> dict[str, float]:
        return self._over_held_out(
            context,
            lambda batch: {
                "nats_per_code": self._prior_loss(batch.images, batch.labels, context.rng).total()
            },
        )

    def _preview(self, context: Context) -> Tensor:
        n = min(self.spec.n_classes, 10)
        labels = torch.arange(n).repeat_interleave(8)
        seeds = torch.arange(8).repeat(n)
        vectors = self.class_vectors(labels)
        # The prior is untrained while the first stages run; show what is being learnt.
        ready = context.stage.name == "prior"
        return to_uint8(self._draw(vectors, labels.to(self.device), seeds, 1.0, detail=ready)).cpu()

    def _preview_codes(self, context: Context) -> Tensor:
        pixels = context.held_out if context.held_out is not None else context.train
        batch = _spread(pixels, 32)
        return to_uint8(torch.stack([batch.images, self.reconstruct(batch.images)], 1).flatten(0, 1)).cpu()

    def _diagnose(self, context: Context) -> list[str]:
        warnings = []
        # Of training images: on others, a collapsed posterior strays just because they are new.
        batch = _spread(context.train, 256)
        mu, logvar = self.encode_image(batch.images)
        # Against what the prior already knows: with a conditional prior, a posterior that has collapsed onto
        # its class still differs between classes.
        known = torch.zeros_like(mu)
        if self.config.prior == "conditional":
            known = self.encode_word(self.text_table[batch.labels])[2][0]
        n_active = int(active_units(mu - known, logvar).sum()) if len(mu) > 1 else len(mu[0])
        collapsed = n_active <= self.config.latent_size // 10
        if collapsed:
            warnings.append(
                f"Posterior collapse: only {n_active} of {self.config.latent_size} latent "
                f"numbers tell images apart. Lower model.weights.kl (now {self.config.weights.kl:g})."
            )
        labels = torch.arange(self.spec.n_classes, device=self.device)
        _, quantized, _ = self.encode_word(self.text_table)
        same = (quantized.indices[:, None] == quantized.indices[None]).all(-1)
        same.fill_diagonal_(False)
        if bool(same.any()) and context.progress > 0.2:
            first, second = (int(i) for i in same.nonzero()[0])
            names = self.spec.class_names
            warnings.append(
                f'Codebook collapse: the words of "{names[first]}" and "{names[second]}" share all their '
                "codes. Raise model.text.groups or model.text.codebook_size, or use model.text.init data."
            )
        if context.progress > 0.5 and not collapsed:
            pairs = labels.repeat_interleave(8)
            drawn = self._draw(
                self.text_table[pairs], pairs, torch.arange(8).repeat(len(labels)), 1.0, detail=False
            )
            own = drawn.unflatten(0, (len(labels), 8)).flatten(2)
            spread = own.var(1).mean()
            real = batch.images.flatten(1)
            within = torch.stack(
                [
                    real[batch.labels == k].var(0).mean()
                    for k in batch.labels.unique()
                    if (batch.labels == k).sum() > 1
                ]
                or [spread]
            ).mean()
            if spread < 0.05 * within:
                advice = [f"Lower model.weights.cross_image (now {self.config.weights.cross_image:g})"]
                if self.config.cross_source == "sample":
                    advice.append("set model.cross_source to mean")
                if self.config.alignment == "w2":
                    advice.append("choose another model.alignment than w2")
                warnings.append(
                    "Mode collapse: images of one word hardly differ "
                    f"({100 * float(spread / within):.0f} % of the variance of real ones). "
                    f"{', or '.join(advice)}."
                )
        return warnings

    def _diagnose_codes(self, context: Context) -> list[str]:
        assert self.tokenizer is not None
        pixels = context.held_out if context.held_out is not None else context.train
        perplexity = float(self.tokenizer.quantize(_spread(pixels, 64).images).perplexity)
        size = self.tokenizer.config.codebook_size
        if context.progress > 0.2 and perplexity < 0.05 * size:
            return [
                f"Codebook collapse: perplexity {perplexity:.1f} of {size} codes. Lower "
                "model.spatial.codebook_size, or raise model.spatial.lr."
            ]
        return []

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
        """Return images of words, float (N, C, H, W) in [-1, 1]; see `Method.sample`.

        Options: `candidates` and `trust_noise` (second level), instead of the configuration's.
        """
        known = {"candidates", "trust_noise"}
        if set(options) - known:
            raise ConfigError(f"Unknown options {sorted(set(options) - known)}; known: {sorted(known)}.")
        assert class_vectors is not None
        n_candidates = options.get("candidates", self.config.candidates)
        if isinstance(n_candidates, bool) or not isinstance(n_candidates, int) or n_candidates < 1:
            raise ConfigError(f"candidates must be a whole number of 1 or more, got {n_candidates!r}.")
        trust = options.get("trust_noise")
        if trust is not None:
            self._second_level()
            if not isinstance(trust, (int, float)) or not 0 <= trust <= 1:
                raise ConfigError(f"trust_noise must be in [0, 1], got {trust!r}.")
        if temperature == 0:
            given = {"options.candidates": n_candidates}
            usual = {"options.candidates": self.config.candidates}
            refuse_ignored("with --temperature 0, where all draws are equal", given, usual, *given)
        if n_candidates == 1 or temperature == 0:
            return self._draw(class_vectors, labels, seeds, temperature, **options)
        drawn = [
            self._draw(class_vectors, labels, seeds, temperature, stream=k, **options)
            for k in range(n_candidates)
        ]
        best = torch.stack([self._fit(images, class_vectors, labels) for images in drawn]).argmax(0)
        return torch.stack(drawn)[best, torch.arange(len(labels), device=best.device)]

    def _draw(
        self,
        class_vectors: Tensor | None,
        labels: Tensor,
        seeds: Tensor,
        temperature: float,
        *,
        stream: int = 0,
        detail: bool = True,
        trust_noise: float | None = None,
        candidates: int = 1,
    ) -> Tensor:
        assert class_vectors is not None
        _, _, (mu, logvar) = self.encode_word(class_vectors.to(torch.float32))
        eps = noise(seeds, (self.config.latent_size,), stream=2 * stream).to(mu.device)
        z = mu + temperature * torch.exp(0.5 * logvar) * eps
        return self._render(z, seeds, temperature, stream, detail, trust_noise)

    def _render(
        self,
        z: Tensor,
        seeds: Tensor,
        temperature: float,
        stream: int = 0,
        detail: bool = True,
        trust_noise: float | None = None,
    ) -> Tensor:
        coarse = self._coarse(z)
        if self.tokenizer is None or self.prior is None or self.config.spatial is None or not detail:
            return coarse
        level = self.config.spatial.trust_noise if trust_noise is None else float(trust_noise)
        condition = self.prior.condition(coarse, z, torch.full_like(z[:, 0], level))
        shape = (self.tokenizer.n_positions, self.config.spatial.groups)
        draws = uniform(seeds, shape, stream=2 * stream + 1).to(z.device)
        heat = temperature * self.config.spatial.code_temperature
        indices = self.prior.codes.sample(condition, self.tokenizer.codebook.codes, draws, heat)
        return 2.0 * self.tokenizer.decode(indices) - 1.0

    def _fit(self, images: Tensor, class_vectors: Tensor, labels: Tensor) -> Tensor:
        """How well the image encoder reads images as their word, (N,), higher is better."""
        mu, logvar = self.encode_image(images)
        _, _, (mu_c, logvar_c) = self.encode_word(class_vectors.to(torch.float32))
        own = _log_density(mu, logvar, mu_c, logvar_c)
        others = self.retrieve(images)
        # Against the other classes where the word is one of them, also when it came as a text; any other
        # text competes with all.
        same = (class_vectors[:, None].to(torch.float32) - self.text_table[None]).abs().amax(2) < 1e-6
        known = functional.one_hot(labels.clamp(min=0), self.spec.n_classes).bool() & (labels >= 0)[:, None]
        mask = same | known
        return own - torch.logsumexp(others.masked_fill(mask, -torch.inf), dim=1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the means of the aligned latent, (N, L), of images in [-1, 1]."""
        return self.encode_image(images)[0]

    @torch.no_grad()
    def encode_text(self, vectors: Tensor) -> Tensor:
        """Return the means of the aligned latent, (N, L), of standardised text vectors (N, D)."""
        return self.encode_word(vectors.to(torch.float32))[2][0]

    @property
    def walk_has_noise(self) -> bool:
        """Whether codes are drawn; the aligned latent is taken as it is."""
        return self.config.spatial is not None and self.config.spatial.code_temperature > 0

    @torch.no_grad()
    def decode(self, latents: Tensor, seeds: Tensor, temperature: float = 1.0) -> Tensor:
        """Return images in [-1, 1], (N, C, H, W), of latents (N, L).

        Args:
            latents: of the aligned space.
            seeds: int64 (N,), of the second level's draws; equal seeds keep detail alike along a strip.
            temperature: of the second level; the aligned latent is taken as it is.
        """
        return self._render(latents, seeds, temperature)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Return images as they come back, in [-1, 1]: through the map of codes, or the latent's mean."""
        if self.tokenizer is not None:
            return 2.0 * self.tokenizer.decode(self.tokenizer.indices(images)) - 1.0
        return self._coarse(self.encode(images))

    @torch.no_grad()
    def retrieve(self, images: Tensor) -> Tensor:
        """Return how well each class's word explains the latents of images, (N, n_classes), in nats."""
        mu, logvar = self.encode_image(images)
        _, _, (mu_c, logvar_c) = self.encode_word(self.text_table)
        return _log_density(mu[:, None], logvar[:, None], mu_c[None], logvar_c[None])

    @torch.no_grad()
    def codebook_usage(self, images: ImageSet) -> dict[str, Tensor]:
        """Return how often each code is used, per codebook, (groups * codebook_size,)."""
        with evaluating(self):
            _, quantized, _ = self.encode_word(self.text_table)
            usage = {"words": _counts(quantized.indices, self.config.text.codebook_size)}
            if self.tokenizer is not None:
                parts = [
                    self.tokenizer.indices(to_floats(part).to(self.device))
                    for part in images.images.split(256)
                ]
                usage["map"] = _counts(torch.cat(parts), self.tokenizer.config.codebook_size)
        return usage


def _spread(pixels: Pixels, most: int) -> Batch:
    """Return at most `most` images, evenly spread: image sets are ordered by class."""
    return pixels.at(torch.linspace(0, len(pixels) - 1, min(most, len(pixels))).round().long())


def _log_density(mu: Tensor, logvar: Tensor, mu_c: Tensor, logvar_c: Tensor) -> Tensor:
    """Log N(mu; mu_c, exp(logvar_c) + exp(logvar)), up to a constant, summed over the last dimension."""
    variance = logvar_c.exp() + logvar.exp()
    return -0.5 * ((mu - mu_c).square() / variance + variance.log()).sum(-1)


def _counts(indices: Tensor, size: int) -> Tensor:
    groups = indices.shape[-1]
    offset = torch.arange(groups, device=indices.device) * size
    return torch.bincount((indices.reshape(-1, groups) + offset).flatten(), minlength=groups * size).cpu()
