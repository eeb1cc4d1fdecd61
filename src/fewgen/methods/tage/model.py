"""TAGE: new images of unseen classes from a few pictures, by exchanging what does not make the class."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fewgen.config.checks import above_zero, at_least, choose
from fewgen.config.keywords import whole
from fewgen.data.augment import Augment
from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.errors import ConfigError, ShapeError
from fewgen.fitting.seeds import global_seed
from fewgen.generation.noise import noise, uniform
from fewgen.losses.attributes import orthogonality, sparsity
from fewgen.losses.reconstruction import squared_error, ssim_error
from fewgen.losses.terms import LossTerms
from fewgen.methods.base import DataSpec, Method
from fewgen.methods.registry import register
from fewgen.methods.tage.config import TageConfig
from fewgen.methods.tage.parts import AttributeCodes, Directions, StyleAutoencoder
from fewgen.methods.tage.perception import Perception
from fewgen.methods.tage.prompts import Prompts
from fewgen.methods.tage.weights import about_weights, read_weights, weight_files
from fewgen.nn.code_predictor import CodePredictor, cosine_share, gumbel_codes, sample_codes
from fewgen.nn.modes import evaluating
from fewgen.training.phases import Batch, Context, Phase, Pixels, Stage

GROUP = 256
"""Images that are encoded together."""

CORRUPTION_NOISE = 0.1
"""Standard deviation of the noise on tokens, whose own is about 1."""

_SUPPORT, _KEPT, _DIRECTIONS, _STEPS = range(4)
"""Streams of an image's random numbers."""


@register("tage")
class Tage(Method):
    """A style autoencoder whose images change by codes for what does not make their class.

    Images are inverted to a style for each layer. What is left of a style without the mean of its class is
    its attributes: pose, slant, thickness, light. A codebook learns them from many classes, and a transformer
    which of them go together. A new class needs a picture or more, and no training: drawn attributes are
    added to one of them (or, with `sampler.around` "mean", to what they share).

    Source: "TAGE: Trustworthy Attribute Group Editing for Stable Few-shot Image Generation",
        arXiv:2410.17855; Ding et al. 2022, "Attribute Group Editing for Reliable Few-shot Image Generation"
        (AGE), with the public code github.com/UniBester/AGE; Richardson et al. 2021, arXiv:2008.00951 (pSp).
    Differs: TAGE's equations, sizes and weights could not be obtained; codebook and transformer follow its
        description, and their losses, masks and sampler are our design, as are the jointly trained
        autoencoder, the treatment of a single picture, and all settings for small images. Class means are
        those of the training classes alone (AGE's instructions include test classes). So are prompts, lists
        of them and all that they do (`Prompts`): the paper says no more than that CLIP's features of prompts
        enter the transformer.
    """

    Config: ClassVar[type] = TageConfig
    capabilities = frozenset({"reconstruct", "edit", "encode_classes"})
    reads_text = False
    config: TageConfig
    class_means: Tensor
    support_styles: Tensor
    code_counts: Tensor

    def __init__(self, config: TageConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.autoencoder = StyleAutoencoder(spec.shape, config.network)
        n_layers, w_dim = self.autoencoder.n_layers, self.autoencoder.w_dim
        if config.layers is not None and config.layers > n_layers:
            raise ConfigError(
                f"layers is {config.layers}, but the generator has {n_layers}. Set --model.layers to "
                f"{n_layers} or less."
            )
        if len(config.supports) >= spec.n_classes:
            raise ConfigError("supports is written by `fewgen adapt`. Leave it out.")
        self.n_edited = config.layers or n_layers
        self.directions = None if config.age is None else Directions(config.age, w_dim, n_layers)
        self.codes = AttributeCodes(config.codebook, self.n_edited, w_dim)
        size = config.codebook.codebook_size if self.codes.tables == 1 else self.codes.size
        own = config.predictor
        self.prompts = None if config.prompts is None else Prompts(config.prompts, spec.shape)
        self.predictor = CodePredictor(
            self.codes.n_tokens,
            size,
            self.codes.token_dim,
            n_layers * w_dim,
            own.width,
            own.layers,
            own.heads,
            own.tied,
            0 if self.prompts is None else len(self.prompts.listed),
            "cross" if config.prompts is None else config.prompts.injection,
        )
        self.register_buffer("class_means", torch.zeros(spec.n_classes, n_layers, w_dim))
        self.register_buffer("code_counts", torch.zeros(self.codes.n_tokens, size, dtype=torch.int64))
        self.register_buffer("support_styles", torch.zeros(sum(config.supports), n_layers, w_dim))
        self.perception = Perception(config.autoencoder)
        if about := about_weights(config):
            self.notes.append(about)
        self._styles: dict[str, Tensor] = {}

    @property
    def citations(self) -> tuple[str, ...]:
        """Keys of the works that this configuration rests on."""
        config = self.config
        used = {
            "tage": True,
            "age": config.age is not None,
            "stylegan2": True,
            "psp": True,
            "vq_vae": True,
            "maskgit": True,
            "codeformer": True,
            "lpips": self.perception.looks,
            "gumbel": config.prompts is not None,
            "nada": config.prompts is not None and config.prompts.form == "directional",
            "guidance": config.prompts is not None,
            "clip": config.prompts is not None,
        }
        return tuple(key for key, is_used in used.items() if is_used)

    @property
    def encoders(self) -> dict[str, tuple[str, str]]:
        """The network that compares images, and that of prompts."""
        found = {"perception": ("image", "lite0")} if self.perception.kind == "lite0" else {}
        if self.config.prompts is not None:
            found["prompts"] = ("joint", self.config.prompts.encoder)
        return found

    @property
    def weight_files(self) -> dict[str, tuple[str, str]]:
        """Converted weights of generator and encoder, if they are given."""
        return weight_files(self.config)

    # ------------------------------------------------------------------------------------ training

    def read_weights(self) -> None:
        """Take over `weight_files`; see `weights.read_weights`."""
        read_weights(self.autoencoder, self.config, self.spec.shape)

    def stages(self, train: ImageSet, held_out: ImageSet | None) -> list[Stage]:
        """Return the autoencoder, AGE's directions, the codebook, the predictor and prompts, as wanted.

        A generator from a file is not moved; with an encoder from a file the autoencoder needs no stage.
        """
        config, own = self.config, self.config.autoencoder
        seen = held_out is not None

        def stage(name: str, moved: Any, loss: Any, settings: Any, summary: str, **more: Any) -> Stage:
            if seen and "validate" in more:
                more["monitor"] = "loss"
            else:
                more.pop("validate", None)
            phase = Phase(name, moved, loss, lr=settings.lr, betas=(0.9, 0.99), schedule="late_decay")
            return Stage(
                name,
                [phase],
                steps=settings.steps,
                batch_size=min(settings.batch_size, len(train)),
                summary=summary,
                **more,
            )

        stages = []
        if config.encoder is None:
            stages.append(
                stage(
                    "autoencoder",
                    self.autoencoder if config.generator is None else self.autoencoder.encoder,
                    self._autoencoder_loss,
                    own,
                    "images to styles and back",
                    augment=None if own.augment == "none" else Augment(own.augment),
                    validate=self._validate_autoencoder,
                    preview=self._preview_autoencoder,
                    on_start=self.perception.prepare,
                )
            )
        if self.directions is not None and config.age is not None:
            stages.append(
                stage(
                    "directions",
                    self.directions,
                    self._directions_loss,
                    config.age,
                    "AGE: changes as sums of few directions",
                    on_start=self._prepare,
                    on_end=self._fit_directions,
                    ema_decay=0.0,
                )
            )
        stages.append(
            stage(
                "codebook",
                self.codes,
                self._codebook_loss,
                config.codebook,
                "codes of attributes",
                validate=self._validate_codebook,
                diagnose=self._diagnose_codebook,
                preview=self._preview_codebook,
                on_start=self._start_codebook,
                on_end=self._count_codes,
                ema_decay=0.0,
            )
        )
        stages.append(
            stage(
                "codes",
                self.predictor,
                self._predictor_loss,
                config.predictor,
                "which codes go together",
                validate=self._validate_predictor,
                preview=self._preview,
                on_start=self._start_predictor,
            )
        )
        if config.prompts is not None:
            stages.append(
                stage(
                    "prompts",
                    self.predictor,
                    self._prompts_loss,
                    config.prompts,
                    "codes that follow prompts",
                    validate=self._validate_prompts,
                    preview=self._preview_prompts,
                    on_start=self._prepare_prompts,
                )
            )
        return stages

    def _image_terms(self, x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return squared error, and what the frozen network says, if there is one."""
        values = {"image": squared_error(x_hat, x)}
        if self.perception.looks:
            values["perceptual"] = self.perception.error(x_hat, x)
        return values

    def _autoencoder_loss(self, batch: Batch, context: Context) -> LossTerms:
        own, x = self.config.autoencoder, batch.images
        w = self.autoencoder.encode(x)
        x_hat = self.autoencoder.decode(w)
        values = self._image_terms(x_hat, x)
        weights = {"perceptual": own.perceptual_weight, "ssim": own.ssim, "norm": own.norm}
        if own.ssim and min(x.shape[2:]) >= 7:
            values["ssim"] = ssim_error(0.5 * x_hat + 0.5, 0.5 * x + 0.5)
        if own.norm:
            values["norm"] = (w - self.autoencoder.w_avg).square().flatten(1).sum(1).mean()
        return LossTerms(values, {name: weights[name] for name in values if name in weights})

    @torch.no_grad()
    def _validate_autoencoder(self, context: Context) -> dict[str, float]:
        assert context.held_out is not None
        x = context.held_out.spread(GROUP).images
        x_hat = self.autoencoder(x).clamp(-1.0, 1.0)
        found = {"loss": float(squared_error(x_hat, x))}
        if min(x.shape[2:]) >= 7:
            found["ssim"] = 1.0 - float(ssim_error(0.5 * x_hat + 0.5, 0.5 * x + 0.5))
        return found

    @torch.no_grad()
    def styles(self, pixels: Pixels) -> Tensor:
        """Return the styles (N, L, D) of all images."""
        return torch.cat([self.autoencoder.encode(part.images) for part in pixels.batches(GROUP)])

    @torch.no_grad()
    def _prepare(self, context: Context) -> None:
        """Encode all images, and take the mean of each class; only the autoencoder has a part in it."""
        self.perception.prepare(context)
        w, labels = self.styles(context.train), context.train.labels
        counts = torch.bincount(labels, minlength=self.spec.n_classes).clamp_min(1)
        means = torch.zeros_like(self.class_means).index_add_(0, labels, w) / counts[:, None, None]
        self.class_means.copy_(means)
        self._styles = {"train": w}
        if context.held_out is not None:
            self._styles["held_out"] = self.styles(context.held_out)

    def _residuals(self, part: str, labels: Tensor, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return styles (B, L, D) and what is left of them without their class mean."""
        if not self._styles:
            raise RuntimeError("the residuals of the training images are not prepared")
        w = self._styles[part] if indices is None else self._styles[part][indices]
        return w, w - self.class_means[labels]

    def _edited(self, residuals: Tensor) -> Tensor:
        """Return what is quantised, (B, E, D), of residuals (B, L, D)."""
        own = residuals[:, : self.n_edited]
        if self.config.codebook.prefilter == "none" or self.directions is None:
            return own
        with torch.no_grad():
            change = self.directions.change(self.directions.coefficients(residuals))[:, : self.n_edited]
        return torch.cat([change, own[:, change.shape[1] :]], 1)

    def _onto(self, base: Tensor, change: Tensor, strength: float = 1.0) -> Tensor:
        """Return styles (B, L, D) with a change (B, E, D) of the first layers."""
        n = change.shape[1]
        return torch.cat([base[:, :n] + strength * change, base[:, n:]], 1)

    def _directions_loss(self, batch: Batch, context: Context) -> LossTerms:
        assert self.directions is not None
        assert self.config.age is not None
        own = self.config.age
        w, residuals = self._residuals("train", batch.labels, batch.indices)
        n = self.directions.coefficients(residuals)
        change = self.directions.change(n)
        edited = residuals[:, : change.shape[1]]
        with torch.no_grad():  # layers that are not edited are the image's own
            base = torch.cat([w[:, : change.shape[1]] - edited, w[:, change.shape[1] :]], 1)
        values = self._image_terms(self.autoencoder.decode(self._onto(base, change)), batch.images)
        values["sparse"] = sparsity(n, own.form)
        means = self.class_means[:, : change.shape[1]]
        values["orthogonal"] = orthogonality(means, self.directions.directions, own.form)
        values["latent"] = squared_error(change, edited)
        weights = {
            "perceptual": self.config.autoencoder.perceptual_weight,
            "sparse": own.sparse_weight,
            "orthogonal": own.orthogonal_weight,
            "latent": own.latent_weight,
        }
        return LossTerms(values, {name: weights[name] for name in values if name in weights})

    @torch.no_grad()
    def _fit_directions(self, context: Context) -> dict[str, float]:
        """Fit the Gaussian of the coefficients of all training images."""
        assert self.directions is not None
        assert self.config.age is not None
        if not self._styles:
            self._prepare(context)
        _, residuals = self._residuals("train", context.train.labels)
        n = torch.cat([self.directions.coefficients(part) for part in residuals.split(GROUP)])
        self.directions.fit(n)
        used = float((self.directions.size > self.config.age.beta).float().mean())
        return {"used_directions": used}

    def _start_codebook(self, context: Context) -> None:
        self._prepare(context)
        _, residuals = self._residuals("train", context.train.labels)
        self.codes.start(torch.cat([self._edited(part) for part in residuals.split(GROUP)]))

    def _codebook_loss(self, batch: Batch, context: Context) -> LossTerms:
        own = self.config.codebook
        w, residuals = self._residuals("train", batch.labels, batch.indices)
        edited = self._edited(residuals)
        found = self.codes(edited)
        values = {
            "latent": squared_error(found.change, residuals[:, : self.n_edited]),
            "codebook": found.loss,
        }
        weights = {"latent": own.latent_weight, "image": own.image_weight}
        n = round(own.image_share * len(batch))
        if own.image_weight and n:
            base = torch.cat([self.class_means[batch.labels][:, : self.n_edited], w[:, self.n_edited :]], 1)
            x_hat = self.autoencoder.decode(self._onto(base[:n], found.change[:n]))
            values |= self._image_terms(x_hat, batch.images[:n])
            weights["perceptual"] = own.image_weight * self.config.autoencoder.perceptual_weight
        if own.orthogonal_weight:
            means = self.class_means[:, : self.n_edited].repeat_interleave(self.codes.parts, 1)
            changes = self.codes.changes_of_table()
            values["orthogonal"] = orthogonality(means, changes, "paper") / (len(means) * changes.shape[2])
            weights["orthogonal"] = own.orthogonal_weight
        stats: dict[str, Tensor | float] = {"perplexity": found.perplexity}
        return LossTerms(values, {k: v for k, v in weights.items() if k in values}, stats)

    @torch.no_grad()
    def quantised(self, w: Tensor, labels: Tensor) -> Tensor:
        """Return styles (B, L, D) with their residuals of edited layers replaced by the nearest codes."""
        residuals = w - self.class_means[labels]
        indices = self.codes.nearest(self.codes.tokens(self._edited(residuals)))
        base = torch.cat([self.class_means[labels][:, : self.n_edited], w[:, self.n_edited :]], 1)
        return self._onto(base, self.codes.change(self.codes.lookup(indices)))

    @torch.no_grad()
    def _validate_codebook(self, context: Context) -> dict[str, float]:
        assert context.held_out is not None
        some = context.held_out.spread(GROUP)
        w = self._styles["held_out"][some.indices]
        through = self.quantised(w, some.labels)
        error = squared_error(self.autoencoder.decode(through).clamp(-1.0, 1.0), some.images)
        plain = squared_error(self.autoencoder.decode(w).clamp(-1.0, 1.0), some.images)
        loss = error + self.config.codebook.latent_weight * squared_error(through, w)
        return {"loss": float(loss), "image": float(error), "image_unquantised": float(plain)}

    @torch.no_grad()
    def _code_use(self, context: Context) -> tuple[Tensor, dict[str, float]]:
        """Return how many training images have each code as each token, (T, N), and figures of that."""
        if not self._styles:
            self._prepare(context)
        counts, labels = torch.zeros_like(self.code_counts), context.train.labels
        for part, own in zip(self._styles["train"].split(GROUP), labels.split(GROUP), strict=True):
            indices = self.codes.nearest(self.codes.tokens(self._edited(part - self.class_means[own])))
            for token in range(self.codes.n_tokens):
                counts[token] += torch.bincount(indices[:, token], minlength=counts.shape[1])
        shares = counts.sum(0).double() / counts.sum()
        return counts, {
            "used_codes": float(
                (counts > 0).float().mean() if self.codes.tables > 1 else (shares > 0).float().mean()
            ),
            "perplexity": float(torch.exp(-torch.xlogy(shares, shares).sum())),
        }

    def _count_codes(self, context: Context) -> dict[str, float]:
        counts, figures = self._code_use(context)
        self.code_counts.copy_(counts)
        return figures

    def _diagnose_codebook(self, context: Context) -> list[str]:
        n_tokens = len(context.train) * self.codes.n_tokens
        if context.progress < 0.5 or n_tokens < 4 * self.config.codebook.codebook_size:
            return []
        used = self._code_use(context)[1]["used_codes"]
        if used >= 0.25:
            return []
        return [
            f"The images choose {used:.0%} of the codes. Lower --model.codebook.codebook_size, or set "
            "--model.codebook.restart_after."
        ]

    # ------------------------------------------------------------------------------------ the predictor

    def _start_predictor(self, context: Context) -> None:
        self._prepare(context)
        self.predictor.start(self.code_counts)

    def _category(self, means: Tensor) -> Tensor:
        """Return what the predictor is told of class means (B, L, D)."""
        return functional.layer_norm(means.flatten(1), (means.shape[1] * means.shape[2],))

    def _predict_terms(
        self,
        part: str,
        labels: Tensor,
        indices: Tensor,
        rng: torch.Generator,
        corruption: str,
        prompt: Tensor | None = None,
    ) -> dict[str, Tensor]:
        _, residuals = self._residuals(part, labels, indices)
        with torch.no_grad():
            z = self.codes.tokens(self._edited(residuals))
            target = self.codes.nearest(z)
            codes = self.codes.lookup(target)
            tokens, masked = self._corrupted(z, codes, rng, corruption)
        found = self.predictor(
            tokens, masked, self._category(self.class_means[labels]), self.codes.table.detach(), prompt
        )
        wanted = masked if corruption != "none" else torch.ones_like(masked)
        n = wanted.sum(1).clamp_min(1)
        nats = functional.cross_entropy(found.logits.flatten(0, 1), target.flatten(), reduction="none")
        squares = (found.features - codes).square().mean(2)
        # All tokens of an image together count as much as they do without masks.
        share = self.codes.n_tokens * wanted / n[:, None]
        return {
            "cross_entropy": (nats.reshape(target.shape) * share).sum(1).mean(),
            "feature": (squares * share).sum(1).mean(),
        }

    def _corrupted(self, z: Tensor, codes: Tensor, rng: torch.Generator, kind: str) -> tuple[Tensor, Tensor]:
        """Return what the predictor sees of tokens (B, T, d), and which are masked (B, T).

        A share of the tokens after a cosine is masked. "noisy": of half of the images, the others have noise
        or are swapped with those of another image; of a quarter, they are the codes themselves, as they are
        when images are drawn.

        Source: our design, after Chang et al. 2022, arXiv:2202.04200 (share of masked tokens).
        """
        n, e = z.shape[:2]

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=rng, device=rng.device).to(z.device)

        if kind == "none":
            return z, torch.zeros((n, e), dtype=torch.bool, device=z.device)
        share = cosine_share(draw(n)).to(z)
        order = draw(n, e).argsort(1).argsort(1)
        masked = order < (share * e).ceil()[:, None]
        if kind == "masked":
            return z, masked
        way = draw(n, 1, 1)
        noisy = z + CORRUPTION_NOISE * torch.randn(z.shape, generator=rng, device=rng.device).to(z)
        swapped = torch.where(draw(n, e, 1) < 0.25, z.roll(1, 0), z)
        tokens = torch.where(way < 0.25, noisy, torch.where(way < 0.5, swapped, z))
        return torch.where(way >= 0.75, codes, tokens), masked

    def _predictor_loss(self, batch: Batch, context: Context) -> LossTerms:
        own = self.config.predictor
        values = self._predict_terms("train", batch.labels, batch.indices, context.rng, own.corruption)
        return LossTerms(values, {"cross_entropy": own.ce_weight})

    @torch.no_grad()
    def _validate_predictor(self, context: Context) -> dict[str, float]:
        assert context.held_out is not None
        some = context.held_out.spread(4 * GROUP)
        own = self.config.predictor
        values = self._predict_terms("held_out", some.labels, some.indices, context.rng, own.corruption)
        loss = own.ce_weight * values["cross_entropy"] + values["feature"]
        return {"loss": float(loss), **{name: float(value) for name, value in values.items()}}

    # ------------------------------------------------------------------------------------ prompts

    def _prepare_prompts(self, context: Context) -> None:
        assert self.prompts is not None
        self._prepare(context)
        self.prompts.prepare(context)

    def _prompts_terms(
        self, part: str, labels: Tensor, indices: Tensor, rng: torch.Generator, progress: float
    ) -> LossTerms:
        """Return the predictor's terms with prompts, and the prompt loss of a part of the images.

        For the latter, codes are drawn under any prompt of the list and make images, as in `sample_coded`;
        each is compared with the image that it started from. What belongs to the prompt that an image has
        anyway, the other terms say.
        """
        assert self.prompts is not None
        assert self.config.prompts is not None
        own, config = self.config.predictor, self.config.prompts
        told = self.prompts.of_images(part, indices, rng)
        values = self._predict_terms(part, labels, indices, rng, own.corruption, told)
        weights = {"cross_entropy": own.ce_weight}
        n = round(config.image_share * len(labels))
        if config.weight and n:
            w, residuals = self._residuals(part, labels[:n], indices[:n])
            means, table, strength = w - residuals, self.codes.table.detach(), self.config.sampler.strength
            with torch.no_grad():
                z = self.codes.tokens(self._edited(residuals))
                codes = self.codes.lookup(self.codes.nearest(z))
                if self.config.sampler.around == "mean":
                    _, masked = self._corrupted(z, codes, rng, "masked")
                    source = self._shown(codes, means, w, strength)
                else:  # codes are added to the image
                    masked = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
                    source = self.autoencoder.decode(w).clamp(-1.0, 1.0)
            shape, n_listed = (*z.shape[:2], table.shape[-2]), len(self.prompts.listed)
            draws = torch.rand(shape, generator=rng, device=rng.device).to(z)
            chosen = torch.randint(n_listed, (n,), generator=rng, device=rng.device).to(indices)
            found = self.predictor(codes, masked, self._category(means), table, self.prompts.rows(chosen))
            rows = gumbel_codes(found.logits, draws, self.prompts.temperature(progress))
            drawn = torch.matmul(rows[:, :, None], table)[:, :, 0]
            x_hat = self._shown(torch.where(masked[:, :, None], drawn, codes), means, w, strength)
            values["prompt"] = self.prompts.error(x_hat, source, chosen)
            weights["prompt"] = config.weight
        return LossTerms(values, weights)

    def _prompts_loss(self, batch: Batch, context: Context) -> LossTerms:
        return self._prompts_terms("train", batch.labels, batch.indices, context.rng, context.progress)

    @torch.no_grad()
    def _validate_prompts(self, context: Context) -> dict[str, float]:
        assert context.held_out is not None
        some = context.held_out.spread(4 * GROUP)
        terms = self._prompts_terms("held_out", some.labels, some.indices, context.rng, 1.0)
        return {"loss": float(terms.total()), **{k: float(value) for k, value in terms.values.items()}}

    def _preview_prompts(self, context: Context) -> Tensor:
        """Return a row without a prompt and one for each prompt, of the same classes and seeds."""
        assert self.prompts is not None
        labels, seeds = torch.arange(8, device=self.device) % min(8, self.spec.n_classes), torch.arange(8)
        rows = [self.sample(None, labels, seeds, 1.0, prompt=p) for p in (None, *self.prompts.listed)]
        return to_uint8(torch.cat(rows)).cpu()

    # ------------------------------------------------------------------------------------ pictures

    def _preview_autoencoder(self, context: Context) -> Tensor:
        x = context.train.spread(20).images
        return to_uint8(torch.cat([x, self.autoencoder(x)]).clamp(-1.0, 1.0)).cpu()

    def _preview_codebook(self, context: Context) -> Tensor:
        some = context.train.spread(20)
        w = self._styles["train"][some.indices]
        through = self.autoencoder.decode(self.quantised(w, some.labels))
        return to_uint8(torch.cat([some.images, through]).clamp(-1.0, 1.0)).cpu()

    def _preview(self, context: Context) -> Tensor:
        labels = torch.arange(64, device=self.device) % min(8, self.spec.n_classes)
        return to_uint8(self.sample(None, labels, torch.arange(64), 1.0)).cpu()

    # ------------------------------------------------------------------------------------ using it

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Return images as they come back from the autoencoder, (N, C, H, W) in [-1, 1]."""
        return self.autoencoder(images).clamp(-1.0, 1.0)

    @torch.no_grad()
    def with_classes(self, images: ImageSet) -> Tage:
        """Return a copy that draws new classes, too, from one picture of each or more; nothing is trained.

        Args:
            images: of the new classes, in the model's form; names that the model lacks.

        Raises:
            ShapeError: a class has no picture.
        """
        counts = images.counts().tolist()
        if not counts or min(counts) == 0:
            raise ShapeError("Each new class needs a picture or more.")
        x = images.floats().to(self.device)
        w = torch.cat([self.autoencoder.encode(part) for part in x.split(GROUP)])
        own = [w[(images.labels == label).to(w.device)] for label in range(images.n_classes)]
        config = dataclasses.replace(self.config, supports=(*self.config.supports, *counts))
        names = (*self.spec.class_names, *images.class_names)
        with global_seed(self.device, 0, "weights"):  # they are replaced; the caller's draws stay his
            new = type(self)(config, dataclasses.replace(self.spec, class_names=names))
        new.to(self.device)
        state = {name: value.clone() for name, value in self.state_dict().items()}
        state["class_means"] = torch.cat([self.class_means, torch.stack([self._mean(part) for part in own])])
        state["support_styles"] = torch.cat([self.support_styles, *own])
        new.load_state_dict(state)
        return new.eval()

    def _mean(self, w: Tensor) -> Tensor:
        """Return the mean (L, D) of a new class with the styles (K, L, D)."""
        if len(w) > 1 or self.config.sampler.single == "image":
            return w.mean(0)
        n_learned = self.spec.n_classes - len(self.config.supports)
        return projected(w[0], self.class_means[:n_learned])

    def _starts(self, labels: Tensor, seeds: Tensor, temperature: float) -> Tensor:
        """Return styles (N, L, D) that draws start from: a picture of the class, or its mean without any."""
        w = self.class_means[labels].clone()
        counts = torch.zeros(self.spec.n_classes, dtype=torch.int64)
        n_learned = self.spec.n_classes - len(self.config.supports)
        counts[n_learned:] = torch.tensor(self.config.supports, dtype=torch.int64)
        first = counts.cumsum(0) - counts
        host = labels.cpu()
        own = counts[host]
        if int(own.sum()):
            which = uniform(seeds, (), _SUPPORT) if temperature > 0 else torch.zeros(len(seeds))
            row = first[host] + torch.minimum((which * own).long(), (own - 1).clamp_min(0))
            taken = self.support_styles[row.clamp(max=len(self.support_styles) - 1).to(w.device)]
            w = torch.where((own > 0).to(w.device)[:, None, None], taken, w)
        return w

    @torch.no_grad()
    def sample(
        self,
        class_vectors: Tensor | None,
        labels: Tensor,
        seeds: Tensor,
        temperature: float,
        **options: Any,
    ) -> Tensor:
        """Return images, float (N, C, H, W) in [-1, 1]; see `Method.sample` and `sample_coded`."""
        return self.sample_coded(class_vectors, labels, seeds, temperature, **options)[0]

    @torch.no_grad()
    def sample_coded(
        self,
        class_vectors: Tensor | None,
        labels: Tensor,
        seeds: Tensor,
        temperature: float,
        *,
        mode: str | None = None,
        strength: float | None = None,
        top_p: float | None = None,
        steps: int | None = None,
        prompt: str | None = None,
        guidance: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return images (N, C, H, W) in [-1, 1], and their codes int64 (N, T); None in the mode "age".

        At temperature 0 nothing is drawn: a class has one image.

        Args:
            class_vectors: not used.
            labels: int64 (N,).
            seeds: int64 (N,).
            temperature: of the codes, or of AGE's Gaussian.
            mode: "cpm", "nn" or "age"; None: `sampler.mode`, as for the others.
            strength: factor on the change.
            top_p: of the codes' draws.
            steps: of filling in codes.
            prompt: which attributes to draw; None: any.
            guidance: of the prompt; None: `prompts.guidance`.
            options: there are no others.

        Raises:
            ConfigError: an option that is not known, or of no use in this mode; a prompt of a model that
                learned none.
            UnknownWordError: a prompt with a word that was not learned.
        """
        if options:
            raise ConfigError(
                f"Unknown options {sorted(options)}; tage has mode, strength, top_p, steps, prompt, guidance."
            )
        own = self.config.sampler
        mode = own.mode if mode is None else mode
        choose("mode", mode, ("cpm", "nn", "age"))
        if mode != "cpm" and (top_p is not None or steps is not None):
            raise ConfigError(f'top_p and steps are of the mode "cpm", not of "{mode}". Leave them out.')
        told = self._told(mode, prompt, guidance)
        if mode != "cpm" and self.directions is None:
            raise ConfigError(
                f'The mode "{mode}" needs AGE\'s directions, which this run left out. Use "cpm".'
            )
        strength = _number("strength", own.strength if strength is None else strength)
        top_p = _number("top_p", own.top_p if top_p is None else top_p)
        above_zero("top_p", top_p)
        if top_p > 1:
            raise ConfigError(f"top_p must be at most 1, got {top_p}.")
        steps = whole("steps", own.steps if steps is None else steps, 1, 1000)
        labels = labels.to(self.device)
        w = self._starts(labels, seeds, temperature)
        means = self.class_means[labels]
        if mode == "age":
            change = self._drawn_change(seeds, temperature)
            if own.around == "mean":
                w = torch.cat([means[:, : change.shape[1]], w[:, change.shape[1] :]], 1)
            return self.autoencoder.decode(self._onto(w, change, strength)).clamp(-1.0, 1.0), None
        residuals = w - means
        if mode == "nn":
            change = self._drawn_change(seeds, temperature)
            rest = residuals[:, change.shape[1] :]
            drawn = torch.cat([change, rest], 1)[:, : self.n_edited]
            indices = self.codes.nearest(self.codes.tokens(drawn))
        else:
            # Added to an image, its own codes would count twice.
            known = (residuals.flatten(1).abs().amax(1) > 0) & (own.around == "mean")
            indices = self._predicted_codes(residuals, means, known, seeds, temperature, top_p, steps, told)
        return self._decoded(indices, means, w, strength), indices

    def _told(self, mode: str, prompt: str | None, guidance: float | None) -> tuple[Tensor, float] | None:
        """Return what the predictor is told of a prompt, (n,), and the guidance; None without one."""
        if prompt is None:
            if guidance is not None:
                raise ConfigError("guidance has no effect without a prompt. Leave it out.")
            return None
        if mode != "cpm":
            raise ConfigError(f'A prompt says which codes to predict, and the mode "{mode}" predicts none.')
        if self.prompts is None or self.config.prompts is None:
            raise ConfigError(
                "This run learned no prompts, so it cannot follow one. Train with --model.prompts.encoder "
                "small for drawings, or lite for photographs; or leave the prompt out."
            )
        return self.prompts.told(prompt), _number(
            "guidance", self.config.prompts.guidance if guidance is None else guidance
        )

    def _drawn_change(self, seeds: Tensor, temperature: float) -> Tensor:
        assert self.directions is not None
        assert self.config.age is not None
        shape = tuple(self.directions.mean.shape)
        normal = noise(seeds, shape, _DIRECTIONS).to(self.device)
        return self.directions.change(self.directions.draw(normal, self.config.age.beta, temperature))

    def _decoded(self, indices: Tensor, means: Tensor, w: Tensor, strength: float) -> Tensor:
        """Return images (N, C, H, W) of codes (N, T), class means and the styles that draws start from.

        AGE's paper adds changes to the class mean, its code to the image, which stays as sharp as it was.
        """
        return self._shown(self.codes.lookup(indices), means, w, strength)

    def _shown(self, codes: Tensor, means: Tensor, w: Tensor, strength: float) -> Tensor:
        """Return the same of the codes themselves, (N, T, d)."""
        if self.config.sampler.around == "mean":
            w = torch.cat([means[:, : self.n_edited], w[:, self.n_edited :]], 1)
        return self.autoencoder.decode(self._onto(w, self.codes.change(codes), strength)).clamp(-1.0, 1.0)

    def _predicted_codes(
        self,
        residuals: Tensor,
        means: Tensor,
        known: Tensor,
        seeds: Tensor,
        temperature: float,
        top_p: float,
        steps: int,
        told: tuple[Tensor, float] | None = None,
    ) -> Tensor:
        """Return codes (N, T) that the predictor fills in, the most certain ones first.

        Args:
            residuals: of the styles that draws start from, (N, L, D).
            means: of the classes, (N, L, D).
            known: bool (N,), whether an image has codes of its own to start from.
            seeds: int64 (N,).
            temperature: of the draws.
            top_p: of the draws.
            steps: in which they are filled in.
            told: of a prompt, and the guidance.

        Source: Chang et al. 2022, arXiv:2202.04200, Sec. 3.2 (iterative decoding); Ho & Salimans
            2022, arXiv:2207.12598, Eq. 6 (guidance, here of logits).
        Differs: starts from a share of the image's own codes, our design.
        """
        n, e = len(residuals), self.codes.n_tokens
        indices = self.codes.nearest(self.codes.tokens(self._edited(residuals)))
        order = uniform(seeds, (e,), _KEPT).to(self.device).argsort(1).argsort(1)
        n_kept = round(self.config.sampler.keep * e) if temperature > 0 else 0
        masked = (order >= n_kept) | ~known[:, None]
        n_masked = masked.sum(1)
        category, table = self._category(means), self.codes.table
        draws = uniform(seeds, (steps, 2, e), _STEPS).to(self.device)
        for step in range(steps):
            tokens = self.codes.lookup(indices)
            logits = self.predictor(tokens, masked, category, table).logits
            if told is not None:
                row, guidance = told
                more = self.predictor(tokens, masked, category, table, row.expand(n, -1)).logits
                logits = logits + guidance * (more - logits)
            drawn, chance = sample_codes(logits, draws[:, step, 0], temperature, top_p)
            indices = torch.where(masked, drawn, indices)
            left = 1.0 - (step + 1) / steps
            certain = chance.clamp_min(1e-9).log()
            if temperature > 0:
                certain = (
                    certain - temperature * left * (-draws[:, step, 1].clamp(1e-7, 1 - 1e-7).log()).log()
                )
            certain = certain.masked_fill(~masked, torch.inf)
            hidden = (n_masked * cosine_share((step + 1) / steps).to(self.device)).floor().long()
            masked = certain.argsort(dim=1, stable=True).argsort(1) < hidden[:, None]
        return indices.reshape(n, e)

    @torch.no_grad()
    def encode_codes(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the codes int64 (N, T) nearest to images (N, C, H, W) in [-1, 1] of classes (N,)."""
        w = self.autoencoder.encode(images.to(self.device))
        residuals = w - self.class_means[labels.to(self.device)]
        return self.codes.nearest(self.codes.tokens(self._edited(residuals)))

    @torch.no_grad()
    def with_code(self, image: Tensor | None, layer: int, codes: Tensor, strength: float = 1.0) -> Tensor:
        """Return images in [-1, 1], (N, C, H, W), of which each has one code more than an image.

        The change of a code is added to the image's own style, as AGE adds its directions: what of the style
        is the class's and what its attributes', only a class could say.

        Args:
            image: (1, C, H, W) in [-1, 1]; None: the mean of the classes.
            layer: which of the edited layers, from 0.
            codes: int64 (N,).
            strength: factor on the change.

        Raises:
            ShapeError: there is no such layer or code.
        """
        n_tokens, parts = self.codes.n_tokens, self.codes.parts
        if not 0 <= layer < n_tokens:
            raise ShapeError(
                f"layer is {layer}, but an image has codes 0 to {n_tokens - 1}, {parts} for each layer."
            )
        if image is None:
            w = self.class_means.mean(0, keepdim=True)
        else:
            w = self.autoencoder.encode(image.to(self.device))
        indices = torch.zeros(len(codes), n_tokens, dtype=torch.int64, device=self.device)
        indices[:, layer] = codes.to(self.device)
        alone = torch.arange(n_tokens, device=self.device)[:, None] == layer
        change = self.codes.change(self.codes.lookup(indices) * alone)
        w = self._onto(w.expand(len(codes), -1, -1), change, strength)
        return self.autoencoder.decode(w).clamp(-1.0, 1.0)

    @torch.no_grad()
    def from_codes(
        self,
        codes: Tensor,
        labels: Tensor,
        seeds: Tensor,
        strength: float | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return images in [-1, 1], (N, C, H, W), of codes; those of a draw give its images again.

        Args:
            codes: int64 (N, T), as `sample_coded` and the files of `generate` have them.
            labels: int64 (N,).
            seeds: int64 (N,), which say what layers without codes are taken from.
            strength: factor on the change; None: `sampler.strength`.
            temperature: of the draw; 0 takes a class's first picture.

        Raises:
            ShapeError: there are more or fewer layers, or a code does not exist.
        """
        strength = self.config.sampler.strength if strength is None else strength
        labels = labels.to(self.device)
        parts = []
        with evaluating(self):
            for start in range(0, len(codes), self.rows):
                stop = min(start + self.rows, len(codes))
                rows = torch.arange(start, start + self.rows).clamp(max=stop - 1)
                own = labels[rows.to(self.device)]
                w = self._starts(own, seeds[rows], temperature)
                indices = codes[rows].to(self.device)
                parts.append(self._decoded(indices, self.class_means[own], w, strength)[: stop - start])
        return torch.cat(parts) if parts else torch.empty((0, *self.spec.shape))


def projected(w: Tensor, means: Tensor) -> Tensor:
    """Return a style (L, D) projected, layer by layer, on what the means (M, L, D) span: B B^+ w.

    With as many means as numbers of a style or more, that is the style itself.
    """
    of_layer = means.transpose(0, 1).double()  # (L, M, D)
    onto = torch.linalg.pinv(of_layer) @ of_layer  # the projector on the rows' span
    return torch.einsum("ld,lde->le", w.double(), onto).to(w)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} must be a number, got {value!r}.")
    at_least(name, value, 0)
    return float(value)
