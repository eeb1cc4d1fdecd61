"""Two tiny methods: an autoencoder with a second stage, and a GAN with a lazy phase."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewgen.data.imageset import ImageSet
from fewgen.fitting.schedules import cosine
from fewgen.generation.noise import noise
from fewgen.losses.terms import LossTerms
from fewgen.methods.base import DataSpec, Method
from fewgen.methods.registry import register
from fewgen.training import Batch, Context, Phase, Stage, TrainConfig, Trainer

SIZE = 6


def toy_images(n: int = 30, n_classes: int = 3, seed: int = 0) -> ImageSet:
    """Noisy bars, one direction per class."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_classes
    base = torch.rand((n_classes, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(99))
    images = base[labels] + 0.1 * torch.rand((n, 1, SIZE, SIZE), generator=rng)
    return ImageSet(
        (images / images.max() * 255).to(torch.uint8), labels, tuple("abcdefgh"[:n_classes]), name="toy"
    )


@dataclass(frozen=True)
class ToyConfig:
    """Settings of the toy autoencoder."""

    hidden: int = 8
    steps: int = 30
    second_steps: int = 20
    lr: float = 3e-3
    dropout: float = 0.1
    batch_size: int = 7
    patience: int | None = None
    sampler: str = "shuffled"


@register("toy")
class Toy(Method):
    """An autoencoder, then a classifier of its codes."""

    Config = ToyConfig
    capabilities = frozenset({"reconstruct"})

    def __init__(self, config: ToyConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        n = spec.channels * spec.height * spec.width
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(n, config.hidden), nn.LayerNorm(config.hidden))
        self.decoder = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.hidden, n), nn.Tanh())
        self.head = nn.Linear(config.hidden, spec.n_classes)
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.long))
        self.codes: Tensor | None = None

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).view(len(z), *self.spec.shape)

    def loss(self, batch: Batch, context: Context) -> LossTerms:
        z = self.encoder(batch.images)
        z = z + 0.01 * torch.randn(z.shape, generator=context.rng)
        self.n_seen += len(batch)
        error = (self.decode(z) - batch.images).square().flatten(1).sum(1).mean()
        return LossTerms(
            {"image": error, "size": z.square().sum(1).mean()},
            {"size": 0.01 * context.ramp(0.5)},
            {"mean_code": float(z.detach().mean())},
        )

    def prepare(self, context: Context) -> None:
        batch = torch.cat([self.encoder(b.images).detach() for b in context.train.batches(8)])
        self.codes = batch + 0.1 * torch.randn(batch.shape, generator=context.rng)

    def second_loss(self, batch: Batch, context: Context) -> LossTerms:
        assert self.codes is not None
        logits = self.head(self.codes[batch.indices])
        return LossTerms({"class": nn.functional.cross_entropy(logits, batch.labels)})

    def validate(self, context: Context) -> dict[str, float] | None:
        if context.held_out is None:
            return None
        total = sum(
            float((self.decode(self.encoder(b.images)) - b.images).square().sum())
            for b in context.held_out.batches(16)
        )
        return {"image": total / len(context.held_out)}

    def preview(self, context: Context) -> Tensor:
        z = torch.randn((4, self.config.hidden), generator=context.rng)
        return ((self.decode(z) + 1) * 127.5).to(torch.uint8)

    def stages(self, train: ImageSet, held_out: ImageSet | None) -> list[Stage]:
        first = Stage(
            "autoencoder",
            [
                Phase(
                    "image",
                    [self.encoder, self.decoder],
                    self.loss,
                    lr=self.config.lr,
                    weight_decay=0.01,
                    clip=5.0,
                    schedule=cosine(warmup=0.1),
                )
            ],
            steps=self.config.steps,
            batch_size=self.config.batch_size,
            sampler=self.config.sampler,
            augment=lambda x, rng: x + 0.05 * torch.randn(x.shape, generator=rng),
            validate=self.validate if held_out is not None else None,
            monitor="image" if held_out is not None else None,
            patience=self.config.patience,
            preview=self.preview,
            summary="learns to reconstruct",
        )
        if not self.config.second_steps:
            return [first]
        second = Stage(
            "classifier",
            [Phase("class", self.head, self.second_loss, lr=1e-2)],
            steps=self.config.second_steps,
            batch_size=5,
            sampler="balanced",
            on_start=self.prepare,
        )
        return [first, second]

    def sample(self, class_vectors, labels, seeds, temperature, **options):
        z = temperature * noise(seeds, (self.config.hidden,)) + labels[:, None]
        return self.decode(z)


@dataclass(frozen=True)
class ToyGanConfig:
    """Settings of the toy GAN."""

    steps: int = 24


@register("toy_gan")
class ToyGan(Method):
    """A discriminator, a generator, and lazy R1 every fourth step."""

    Config = ToyGanConfig

    def __init__(self, config: ToyGanConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        n = spec.channels * spec.height * spec.width
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, n), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(n, 16), nn.LeakyReLU(), nn.Linear(16, 1))
        self.calls: list[str] = []

    def fake(self, n: int, rng: torch.Generator) -> Tensor:
        return self.generator(torch.randn((n, 4), generator=rng)).view(n, *self.spec.shape)

    def d_loss(self, batch: Batch, context: Context) -> LossTerms:
        self.calls.append("d")
        fake = self.fake(len(batch), context.rng).detach()
        real = nn.functional.softplus(-self.discriminator(batch.images)).mean()
        return LossTerms({"real": real, "fake": nn.functional.softplus(self.discriminator(fake)).mean()})

    def r1_loss(self, batch: Batch, context: Context) -> LossTerms:
        self.calls.append("r1")
        x = batch.images.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(self.discriminator(x).sum(), x, create_graph=True)
        return LossTerms({"r1": g.square().flatten(1).sum(1).mean()}, {"r1": 0.1 * 4})

    def g_loss(self, batch: Batch, context: Context) -> LossTerms:
        self.calls.append("g")
        score = self.discriminator(self.fake(len(batch), context.rng))
        return LossTerms({"fool": nn.functional.softplus(-score).mean()})

    def stages(self, train: ImageSet, held_out: ImageSet | None) -> list[Stage]:
        d, betas = self.discriminator, (0.0, 0.99)
        return [
            Stage(
                "gan",
                [
                    Phase("d", d, self.d_loss, lr=2e-3, betas=betas, watch=False),
                    Phase("r1", d, self.r1_loss, every=4, shares="d", watch=False),
                    Phase("g", self.generator, self.g_loss, lr=2e-3, betas=betas, watch=False),
                ],
                steps=self.config.steps,
                batch_size=6,
                modules=[self.generator],
                ema_decay=0.9,
            )
        ]

    def sample(self, class_vectors, labels, seeds, temperature, **options):
        return self.generator(temperature * noise(seeds, (4,))).view(len(seeds), *self.spec.shape)


def make(config=None, seed: int = 0, cls=Toy, train=None):
    """Return a freshly initialised method."""
    torch.manual_seed(seed)
    return cls(config or cls.Config(), DataSpec.of(train if train is not None else toy_images()))


def quiet(**settings) -> TrainConfig:
    """Settings for a short silent run on the processor."""
    defaults = {
        "log_every": 4,
        "validate_every": 5,
        "preview_every": 0,
        "checkpoint_every": 0,
        "ema_decay": 0.9,
        "progress": False,
        "device": "cpu",
    }
    return TrainConfig(**{**defaults, **settings})


def trainer(method, run_dir, config=None, held_out=True, **keywords) -> Trainer:
    """Return a trainer of a toy method on toy images."""
    train = toy_images()
    held = toy_images(12, seed=5) if held_out else None
    return Trainer(method, method.stages(train, held), train, held, config or quiet(), run_dir, **keywords)


@dataclass(frozen=True)
class ToyAdaptConfig:
    """Settings of the toy that adapts."""

    steps: int = 20
    lr: float = 1e-2
    noise: float = 0.0


@register("toy_adapt")
class ToyAdapt(Method):
    """One latent, and a decoder that turns it into the picture of every image.

    A task with a class of its own is learned by moving the latent, if the decoder knows what classes have
    in common, and by moving the whole decoder if not.
    """

    Config = ToyAdaptConfig
    capabilities = frozenset({"adapt"})
    adapts_stage = "fit"

    def __init__(self, config: ToyAdaptConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        n = spec.channels * spec.height * spec.width
        self.latent = nn.Parameter(0.5 * torch.randn(3))
        self.drop = nn.Dropout(0.5)
        self.decoder = nn.Linear(3, n)
        self.other = nn.Linear(2, 2)
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.long))
        self._register_inner_rates()

    def task_terms(self, images, labels, vectors, rng):
        if self.training:  # a stage that tasks are run in must be in evaluation mode
            self.n_seen += len(images)
        picture = self.decoder(self.drop(self.latent))
        target = images.flatten(1)
        target = target + self.config.noise * torch.randn(target.shape, generator=rng)
        return LossTerms({"image": (picture - target).square().sum(1).mean()})

    def adaptable(self, part: str = "all") -> list[str]:
        names = {"all": ["latent", "decoder.weight", "decoder.bias"], "decoder": ["decoder.weight"]}
        return [*names.get(part, ["latent"])]

    def loss(self, batch: Batch, context: Context) -> LossTerms:
        return self.task_terms(batch.images, batch.labels, None, context.rng)

    def stages(self, train: ImageSet, held_out: ImageSet | None) -> list[Stage]:
        phase = Phase("image", [self], self.loss, lr=self.config.lr)
        last = Phase(
            "other", [self.other], lambda b, c: LossTerms({"size": self.other.weight.square().sum()})
        )
        return [
            Stage("fit", [phase], steps=self.config.steps, batch_size=9),
            Stage("after", [last], steps=2, batch_size=3),
        ]

    def sample(self, class_vectors, labels, seeds, temperature, **options):
        return self.decoder(self.latent).expand(len(seeds), -1).view(len(seeds), *self.spec.shape)


def family(n_classes: int, n_each: int, seed: int) -> ImageSet:
    """Classes whose pictures are mixtures of the same three patterns, and images with a little noise."""
    patterns = torch.randn((3, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(7))
    rng = torch.Generator().manual_seed(seed)
    mixed = torch.einsum("kp,pchw->kchw", torch.randn((n_classes, 3), generator=rng), patterns)
    labels = torch.arange(n_classes).repeat_interleave(n_each)
    images = mixed[labels] + 0.1 * torch.randn((len(labels), 1, SIZE, SIZE), generator=rng)
    pixels = (127.5 + 40.0 * images).clamp(0, 255).to(torch.uint8)
    return ImageSet(pixels, labels, tuple(f"class {i}" for i in range(n_classes)), name="family")
