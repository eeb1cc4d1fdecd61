"""What a user would take instead of fewgen: seven reference generators in plain PyTorch.

Each learns from the same few images in the same time and generates images for given labels. They are kept
plain on purpose (no search over settings), but sensible: augmentation for those that learn by gradient, a
learning rate that falls to zero by the end of the budget, averaged weights where that is customary.

    reference = REFERENCES["conditional_vae"]()
    reference.fit(train, Budget(minutes=6), seed=0)
    images = reference.sample(labels, seed=0)          # uint8 (N, C, H, W)
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.data.imageset import ImageSet, to_uint8


class Budget:
    """Training time that is used up by waiting (clock "wall") or by computing (clock "cpu").

    The processor clock is for a machine that others use too: it counts the time of all threads and divides
    it by `cores`, so that 6 minutes mean 6 minutes of `cores` fully used cores.

    Args:
        minutes: length.
        clock: "wall" or "cpu".
        cores: cores that "cpu" minutes stand for.
        max_steps: stop after so many steps too (tests).
    """

    def __init__(
        self, minutes: float, clock: str = "wall", cores: int = 2, max_steps: int | None = None
    ) -> None:
        if clock not in ("wall", "cpu"):
            raise ValueError(f'clock must be "wall" or "cpu", got "{clock}".')
        self.seconds, self.clock, self.cores, self.max_steps = minutes * 60, clock, cores, max_steps
        self.start()

    def start(self) -> None:
        """Begin to count."""
        self._started = self._now()

    def _now(self) -> float:
        return time.perf_counter() if self.clock == "wall" else time.process_time() / self.cores

    def used(self) -> float:
        """Return the used share, 0 to 1 and beyond."""
        return (self._now() - self._started) / self.seconds


class Reference(Protocol):
    """A generator that learns from labelled images and draws images for labels."""

    name: str

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Learn; return what happened (steps, losses), JSON-ready."""
        ...

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Return one image per label, uint8 (N, C, H, W)."""
        ...


# ------------------------------------------------------------------------------------------ small helpers


def moved(
    x: Tensor, rng: torch.Generator, *, flip: bool, degrees: float, scale: float, shift: float
) -> Tensor:
    """Rotate, scale, shift and mirror each image (B, C, H, W) at random, continuing it by its edge pixels.

    Args:
        x: images in [-1, 1].
        rng: random stream.
        flip: mirror half of the images from left to right.
        degrees: largest rotation.
        scale: largest relative change of size.
        shift: largest shift, as a share of the image size.
    """
    n = len(x)
    draws = torch.rand(5, n, generator=rng) * 2 - 1
    angle = draws[0] * math.radians(degrees)
    size = 1 + draws[1] * scale
    sign = torch.where(draws[2] < 0, -1.0, 1.0) if flip else torch.ones(n)
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = sign * angle.cos() * size, -angle.sin() * size
    matrix[:, 1, 0], matrix[:, 1, 1] = sign * angle.sin() * size, angle.cos() * size
    # Shifts are in units of half the image.
    matrix[:, 0, 2], matrix[:, 1, 2] = draws[3] * shift * 2, draws[4] * shift * 2
    grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def light(x: Tensor, rng: torch.Generator) -> Tensor:
    """Augmentation while training: small moves; mirroring for colour photos only (shoes face one way)."""
    return moved(x, rng, flip=x.shape[1] == 3, degrees=3.0, scale=0.04, shift=0.04)


def _batch(train: ImageSet, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(0, len(train), (size,), generator=rng)
    return light(train.floats(chosen), rng), train.labels[chosen]


def _descend(
    parameters: list[nn.Parameter],
    loss_of: Callable[[], Tensor],
    budget: Budget,
    *,
    until: float,
    lr: float,
    weight_decay: float = 1e-4,
    after: Callable[[], None] | None = None,
) -> dict[str, object]:
    """AdamW with warm-up and a cosine to zero from the present use of the budget up to the share `until`."""
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    begin, steps, smooth = budget.used(), 0, float("nan")
    while True:
        done = (budget.used() - begin) / max(until - begin, 1e-9)
        if budget.max_steps is not None:
            done = max(done, steps / budget.max_steps)
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        loss = loss_of()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if after is not None:
            after()
        steps += 1
        value = float(loss.detach())
        smooth = value if steps == 1 else 0.99 * smooth + 0.01 * value
    return {"steps": steps, "loss": smooth}


class _Averaged:
    """Exponential moving average of a network, with a warm-up so that short trainings average too."""

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.network, self.decay, self.steps = network, decay, 0
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, new in zip(
            self.average.state_dict().values(), self.network.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(new, 1 - decay)
            else:
                mean.copy_(new)


def _by_parts(labels: Tensor, part: Callable[[Tensor], Tensor], size: int = 250) -> Tensor:
    with torch.no_grad():
        return torch.cat([part(chunk) for chunk in labels.split(size)])


# ------------------------------------------------------------------------------------- without learning


class Copies:
    """The training images themselves, in turn: the control that a good measure must not praise."""

    name = "copies"

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Keep the images."""
        self.train = train
        return {}

    def _pick(self, labels: Tensor) -> Tensor:
        chosen = torch.empty_like(labels)
        for c in labels.unique().tolist():
            members = (self.train.labels == c).nonzero().flatten()
            wanted = (labels == c).nonzero().flatten()
            chosen[wanted] = members[torch.arange(len(wanted)) % len(members)]
        return chosen

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Return the images of each class one after the other, again and again."""
        return self.train.images[self._pick(labels)]


class AugmentedCopies(Copies):
    """Training images rotated by up to 10 degrees, scaled by 10 % and shifted by 7 %; photos mirrored."""

    name = "augmented_copies"

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Return moved training images."""
        rng = torch.Generator().manual_seed(seed)
        x = self.train.floats(self._pick(labels))
        return to_uint8(moved(x, rng, flip=x.shape[1] == 3, degrees=10, scale=0.1, shift=0.07))


class PcaGaussian:
    """Principal components of all images, and an independent normal distribution of each per class."""

    name = "pca_gaussian"

    def __init__(self, n_components: int = 50) -> None:
        self.n_components = n_components

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Compute the components, and mean and standard deviation of every class along them."""
        x = train.floats().flatten(1)
        self.shape = tuple(train.images.shape[1:])
        self.mean = x.mean(dim=0)
        self.components = torch.linalg.svd(x - self.mean, full_matrices=False)[2][: self.n_components]
        z = (x - self.mean) @ self.components.T
        classes = [z[train.labels == c] for c in range(train.n_classes)]
        self.centres = torch.stack([members.mean(dim=0) for members in classes])
        self.deviations = torch.stack([members.std(dim=0) for members in classes])
        return {"components": len(self.components)}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Draw each component on its own."""
        rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(labels), len(self.components), generator=rng)
        z = self.centres[labels] + self.deviations[labels] * noise
        return to_uint8((self.mean + z @ self.components).reshape(-1, *self.shape))


class ClassPcaGaussian:
    """A Gaussian on the principal components of each class, as many as 95 % of its variance needs.

    A draw mixes the images of a class with random weights of both signs: never a copy, and a strong
    opponent in every figure that looks at features.
    """

    name = "class_pca_gaussian"

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Compute mean, components and standard deviations of every class."""
        self.shape = tuple(train.images.shape[1:])
        self.models = []
        for c in range(train.n_classes):
            x = train.floats((train.labels == c).nonzero().flatten()).flatten(1).double()
            mean = x.mean(dim=0)
            _, values, components = torch.linalg.svd(x - mean, full_matrices=False)
            variance = values**2 / (len(x) - 1)
            kept = 1 + int((variance.cumsum(0) / variance.sum() < 0.95).sum())
            self.models.append((mean, components[:kept], variance[:kept].sqrt()))
        return {"components": [len(m[2]) for m in self.models]}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Draw from the Gaussian of each label."""
        rng = torch.Generator().manual_seed(seed)
        images = torch.empty(len(labels), *self.shape)
        for c in labels.unique().tolist():
            mean, components, deviation = self.models[c]
            wanted = labels == c
            noise = torch.randn(int(wanted.sum()), len(deviation), generator=rng, dtype=torch.float64)
            images[wanted] = (mean + (noise * deviation) @ components).float().reshape(-1, *self.shape)
        return to_uint8(images)


# ------------------------------------------------------------------------------------- conditional VAE


class _ConditionalVae(nn.Module):
    def __init__(self, channels: int, size: int, n_classes: int, latent: int, width: int) -> None:
        super().__init__()
        self.small, self.width = size // 4, width
        self.embed = nn.Embedding(n_classes, 32)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Flatten(),
        )  # fmt: skip
        flat = 2 * width * self.small**2
        self.moments = nn.Sequential(nn.Linear(flat + 32, 256), nn.SiLU(), nn.Linear(256, 2 * latent))
        self.expand = nn.Sequential(nn.Linear(latent + 32, 256), nn.SiLU(), nn.Linear(256, flat), nn.SiLU())
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )  # fmt: skip

    def encode(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.moments(torch.cat([self.encoder(x), self.embed(labels)], 1)).chunk(2, 1)
        return mu, logvar.clamp(-12, 6)

    def decode(self, z: Tensor, labels: Tensor) -> Tensor:
        h = self.expand(torch.cat([z, self.embed(labels)], 1))
        return self.decoder(h.reshape(len(z), 2 * self.width, self.small, self.small))


class ConditionalVae:
    """Convolutional VAE with the class given to both halves; cross-entropy per pixel, 20 latents.

    Source: Kingma & Welling 2014, arXiv:1312.6114; Sohn et al. 2015 for the condition.
    """

    name = "conditional_vae"

    def __init__(self, latent: int = 20, width: int = 32, batch_size: int = 64) -> None:
        self.latent, self.width, self.batch_size = latent, width, batch_size

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Train for the whole budget."""
        torch.manual_seed(seed)
        rng = torch.Generator().manual_seed(seed)
        network = _ConditionalVae(train.channels, train.size[0], train.n_classes, self.latent, self.width)
        averaged = _Averaged(network)

        def loss() -> Tensor:
            x, labels = _batch(train, self.batch_size, rng)
            mu, logvar = network.encode(x, labels)
            z = mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=rng)
            logits = network.decode(z, labels)
            grey = functional.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="sum")
            kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum()
            return (grey + kl) / len(x)

        about = _descend(list(network.parameters()), loss, budget, until=1.0, lr=1e-3, after=averaged.update)
        self.network: Any = averaged.average
        return about

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Decode draws from the prior; the image is the mean of the pixels' distribution."""
        rng = torch.Generator().manual_seed(seed)

        def part(chunk: Tensor) -> Tensor:
            z = torch.randn(len(chunk), self.latent, generator=rng)
            return to_uint8(self.network.decode(z, chunk).sigmoid() * 2 - 1)

        return _by_parts(labels, part)


# ------------------------------------------------------------------------------------------- diffusion


class SmallDiffusion:
    """Class-conditional diffusion with a small `UNet2DModel` of diffusers; DDIM sampling.

    Source: Ho et al. 2020, arXiv:2006.11239; Nichol & Dhariwal 2021, arXiv:2102.09672 (cosine schedule);
    Song et al. 2021, arXiv:2010.02502 (DDIM); Salimans & Ho 2022, arXiv:2202.00512 (v-prediction).
    """

    name = "diffusion"

    def __init__(
        self, channels: tuple[int, ...] = (32, 64, 64), batch_size: int = 32, sample_steps: int = 50
    ) -> None:
        self.channels, self.batch_size, self.sample_steps = channels, batch_size, sample_steps

    def _scheduler(self, kind: str):  # type: ignore[no-untyped-def]
        import diffusers

        return getattr(diffusers, kind)(
            num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction",
            clip_sample=True,
        )  # fmt: skip

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Train for the whole budget."""
        from diffusers import UNet2DModel

        torch.manual_seed(seed)
        rng = torch.Generator().manual_seed(seed)
        self.shape = (train.channels, *train.size)
        network: Any = UNet2DModel(
            sample_size=train.size[0], in_channels=train.channels, out_channels=train.channels,
            block_out_channels=self.channels, layers_per_block=1, norm_num_groups=8, attention_head_dim=16,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            num_class_embeds=train.n_classes,
        )  # fmt: skip
        averaged = _Averaged(network)
        scheduler = self._scheduler("DDPMScheduler")

        def loss() -> Tensor:
            x, labels = _batch(train, self.batch_size, rng)
            noise = torch.randn(x.shape, generator=rng)
            t = torch.randint(0, 1000, (len(x),), generator=rng)
            noisy = scheduler.add_noise(x, noise, t)
            found = network(noisy, t, class_labels=labels).sample
            return functional.mse_loss(found, scheduler.get_velocity(x, noise, t))

        about = _descend(list(network.parameters()), loss, budget, until=1.0, lr=1e-3, after=averaged.update)
        self.network = averaged.average
        return about | {"n_parameters": sum(p.numel() for p in network.parameters())}

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Denoise from pure noise in `sample_steps` DDIM steps, without guidance."""
        rng = torch.Generator().manual_seed(seed)

        def part(chunk: Tensor) -> Tensor:
            scheduler = self._scheduler("DDIMScheduler")
            scheduler.set_timesteps(self.sample_steps)
            x = torch.randn(len(chunk), *self.shape, generator=rng)
            for t in scheduler.timesteps:
                x = scheduler.step(self.network(x, t, class_labels=chunk).sample, t, x).prev_sample
            return to_uint8(x.clamp(-1, 1))

        return _by_parts(labels, part)


# ------------------------------------------------------- spatial codebook and autoregressive class prior


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _SpatialCodebook(nn.Module):
    """VQ-VAE with codes on a map of a quarter of the image size, updated by exponential moving average."""

    codes: Tensor
    counts: Tensor
    sums: Tensor
    idle: Tensor

    def __init__(self, channels: int, codes: int, dim: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1), _Residual(width), nn.Conv2d(width, dim, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1), _Residual(width), nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.SiLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
        )  # fmt: skip
        self.register_buffer("codes", torch.randn(codes, dim))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("idle", torch.zeros(codes))
        self.started = False

    def indices(self, z: Tensor) -> Tensor:
        """Return the nearest code (B, h, w) of each place of z (B, D, h, w)."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        return torch.cdist(flat, self.codes).argmin(dim=1).reshape(len(z), *z.shape[2:])

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, rng: torch.Generator, decay: float = 0.99) -> None:
        """Move each code towards the mean of its vectors; restart codes that nobody used for 100 steps."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        hits = functional.one_hot(indices.flatten(), len(self.codes)).to(flat.dtype)
        self.counts.lerp_(hits.sum(0), 1 - decay)
        self.sums.lerp_(hits.T @ flat, 1 - decay)
        self.codes.copy_(self.sums / self.counts.clamp_min(1e-5)[:, None])
        self.idle.add_(1).masked_fill_(hits.any(0), 0)
        dead = (self.idle > 100).nonzero().flatten()
        if len(dead):
            self._restart(flat, dead, rng)

    def _restart(self, flat: Tensor, which: Tensor, rng: torch.Generator) -> None:
        fresh = flat[torch.randint(0, len(flat), (len(which),), generator=rng)]
        self.codes[which], self.sums[which] = fresh, fresh
        self.counts[which], self.idle[which] = 1.0, 0.0

    def forward(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the reconstruction and the commitment loss of images x (B, C, H, W)."""
        z = self.encoder(x)
        if not self.started:
            with torch.no_grad():
                flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
                self._restart(flat, torch.arange(len(self.codes)), rng)
            self.started = True
        indices = self.indices(z.detach())
        quantized = self.codes[indices].permute(0, 3, 1, 2)
        if self.training:
            self.update(z.detach(), indices, rng)
        commitment = functional.mse_loss(z, quantized.detach())
        return self.decoder(z + (quantized - z).detach()), commitment


class _ClassPrior(nn.Module):
    """Causal transformer over code indices in raster order, started by the class."""

    def __init__(
        self, codes: int, length: int, n_classes: int, width: int, depth: int, dropout: float
    ) -> None:
        super().__init__()
        self.start = nn.Embedding(n_classes, width)
        self.code = nn.Embedding(codes, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        self.class_bias = nn.Embedding(n_classes, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, codes))

    def forward(self, labels: Tensor, indices: Tensor) -> Tensor:
        """Return logits (B, T + 1, codes) of the codes that follow each prefix of indices (B, T)."""
        tokens = torch.cat([self.start(labels)[:, None], self.code(indices)], dim=1)
        tokens = tokens + self.place[: tokens.shape[1]] + self.class_bias(labels)[:, None]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.body(tokens, mask=mask, is_causal=True))


class SpatialCodebook:
    """A plain spatial VQ-VAE (256 codes on 7 x 7 at 28 px) and a small autoregressive class prior.

    Half of the time goes to each. The prior has dropout and sees codes of augmented images; with a few
    hundred images it would otherwise repeat them.

    Source: van den Oord et al. 2017, arXiv:1711.00937; EMA codebook as in its appendix A.1.
    """

    name = "spatial_codebook"

    def __init__(
        self,
        codes: int = 256,
        dim: int = 32,
        width: int = 64,
        prior_width: int = 96,
        prior_depth: int = 3,
        dropout: float = 0.2,
        batch_size: int = 64,
    ) -> None:
        self.codes, self.dim, self.width, self.batch_size = codes, dim, width, batch_size
        self.prior_width, self.prior_depth, self.dropout = prior_width, prior_depth, dropout

    def fit(self, train: ImageSet, budget: Budget, seed: int) -> dict[str, object]:
        """Train the codebook in the first half of the budget, the prior in the second."""
        torch.manual_seed(seed)
        rng = torch.Generator().manual_seed(seed)
        images = _SpatialCodebook(train.channels, self.codes, self.dim, self.width)

        def codebook_loss() -> Tensor:
            x, _ = _batch(train, self.batch_size, rng)
            found, commitment = images(x, rng)
            return functional.mse_loss(found, x) + 0.25 * commitment

        first = _descend(list(images.parameters()), codebook_loss, budget, until=0.5, lr=2e-3)
        images.eval()
        self.map = (train.size[0] // 4, train.size[1] // 4)
        prior = _ClassPrior(
            self.codes,
            self.map[0] * self.map[1],
            train.n_classes,
            self.prior_width,
            self.prior_depth,
            self.dropout,
        )
        averaged = _Averaged(prior)

        def prior_loss() -> Tensor:
            x, labels = _batch(train, self.batch_size, rng)
            with torch.no_grad():
                indices = images.indices(images.encoder(x)).flatten(1)
            return functional.cross_entropy(prior(labels, indices[:, :-1]).flatten(0, 1), indices.flatten())

        second = _descend(
            list(prior.parameters()), prior_loss, budget, until=1.0, lr=1e-3, weight_decay=0.01,
            after=averaged.update,
        )  # fmt: skip
        self.images, self.prior = images, averaged.average
        return {"codebook": first, "prior": second}

    def reconstruct(self, images: ImageSet) -> Tensor:
        """Return images as they come back through the codes, uint8 (N, C, H, W)."""
        with torch.no_grad():
            return to_uint8(self.images(images.floats(), torch.Generator())[0])

    def sample(self, labels: Tensor, seed: int) -> Tensor:
        """Draw codes one after the other at temperature 1 and decode them."""
        rng = torch.Generator().manual_seed(seed)

        def part(chunk: Tensor) -> Tensor:
            indices = torch.empty(len(chunk), 0, dtype=torch.int64)
            for _ in range(self.map[0] * self.map[1]):
                weights = self.prior(chunk, indices)[:, -1].softmax(dim=1)
                indices = torch.cat([indices, torch.multinomial(weights, 1, generator=rng)], dim=1)
            codes = self.images.codes[indices.reshape(len(chunk), *self.map)].permute(0, 3, 1, 2)
            return to_uint8(self.images.decoder(codes))

        return _by_parts(labels, part)


REFERENCES: dict[str, Callable[[], Reference]] = {
    kind.name: kind
    for kind in (
        Copies,
        AugmentedCopies,
        PcaGaussian,
        ClassPcaGaussian,
        ConditionalVae,
        SmallDiffusion,
        SpatialCodebook,
    )
}
"""Reference generators by name."""
