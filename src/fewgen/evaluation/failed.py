"""Images as generators make them that failed, from the training images: what "real" must not be said of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.data.imageset import ImageSet
from fewgen.fitting.fit import fit
from fewgen.fitting.optimizers import AdamW
from fewgen.fitting.seeds import global_seed, make_rng

STEPS = 20
"""Steps of the network that is hardly trained."""

_BATCH, _LR, _Z, _WIDTH = 64, 2e-3, 16, 16


def pixel_noise(source: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return noise with mean and spread of the images in each pixel."""
    noise = torch.randn(source.shape, generator=rng)
    return source.mean(dim=0) + source.std(dim=0, correction=0) * noise


def noisy_mean(source: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return the mean of all images under noise."""
    return source.mean(dim=0) + 0.1 * torch.randn(source.shape, generator=rng)


def blurred(source: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return the images under a blur of a twelfth of their side."""
    x = source
    for dim in (2, 3):
        sigma = source.shape[dim] / 12
        reach = max(1, min(round(3 * sigma), source.shape[dim] - 1))
        steps = torch.arange(-reach, reach + 1)
        weights = torch.exp(-0.5 * (steps / sigma).square())
        weights /= weights.sum()
        padding = [0, 0, reach, reach] if dim == 2 else [reach, reach, 0, 0]
        padded = functional.pad(x, padding, mode="replicate")
        kernel = weights[None, None, :, None] if dim == 2 else weights[None, None, None, :]
        flat = functional.conv2d(padded.flatten(0, 1)[:, None], kernel)
        x = flat.reshape(*source.shape[:2], *flat.shape[2:])
    return x


def scrambled(source: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return images with the power spectra of these and the phases of noise."""
    noise = torch.randn(len(source), 1, *source.shape[2:], generator=rng)
    phase = torch.fft.fft2(noise).angle()
    phase[..., 0, 0] = 0.0  # the mean stays
    return torch.fft.ifft2(torch.polar(torch.fft.fft2(source).abs(), phase.expand_as(source))).real


def averages(source: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return the means of pairs of images, of two classes where there are two."""
    order = torch.randperm(len(source), generator=rng)
    partner = torch.empty_like(order)
    ordered = order[labels[order].argsort(stable=True)]
    partner[ordered] = ordered.roll(len(ordered) // 2)  # half way round: another class where there is one
    return (source + source[partner]) / 2


def barely_trained(source: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
    """Return what a small class-conditional network draws after `STEPS` steps."""
    n, channels, height, width = source.shape
    seed = int(torch.randint(2**31, (), generator=rng))
    draws = make_rng("cpu", seed, "batches")
    classes = functional.one_hot(labels, int(labels.max()) + 1).float()
    side = (max(1, height // 4), max(1, width // 4))
    with global_seed(torch.device("cpu"), seed, "weights"):
        encoder = nn.Linear(channels * height * width, _Z)
        decoder = nn.Sequential(
            nn.Linear(_Z + classes.shape[1], 2 * _WIDTH * side[0] * side[1]),
            nn.ReLU(),
            nn.Unflatten(1, (2 * _WIDTH, *side)),
            nn.Upsample(scale_factor=2.0),
            nn.Conv2d(2 * _WIDTH, _WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(size=(height, width)),
            nn.Conv2d(_WIDTH, channels, 3, padding=1),
            nn.Sigmoid(),
        )
    both = nn.ModuleList([encoder, decoder])

    def loss(step: int) -> dict[str, Tensor]:
        chosen = torch.randint(n, (_BATCH,), generator=draws)
        code = encoder(source[chosen].flatten(1))
        code = code + torch.randn(code.shape, generator=draws)
        drawn = decoder(torch.cat([code, classes[chosen]], dim=1))
        return {"loss": functional.mse_loss(drawn, source[chosen]) + 1e-3 * code.square().mean()}

    optimizer = AdamW([{"params": list(both.parameters()), "lr": _LR, "weight_decay": 0.0}])
    fit(both, loss, optimizer, [(_LR,)] * STEPS)
    with torch.no_grad():
        return decoder(torch.cat([torch.randn(n, _Z, generator=draws), classes], dim=1))


FAILED: dict[str, tuple[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]]] = {
    "pixel_noise": ("noise with the mean and the spread of each pixel", pixel_noise),
    "noisy_mean": ("the mean of all training images, under noise", noisy_mean),
    "blurred": ("strongly blurred training images", blurred),
    "scrambled": ("training images with scrambled phases", scrambled),
    "averages": ("averages of two training images", averages),
    "barely_trained": (f"images of a network trained for {STEPS} steps", barely_trained),
}
"""Name -> what it is, in words; a function of images (N, C, H, W) in [0, 1], labels and a random stream."""


def failed_images(source: ImageSet, seed: int = 0) -> dict[str, ImageSet]:
    """Return images as failed generators make them, as many of each class as `source` holds.

    Args:
        source: real images, labels of known classes.
        seed: of noise, pairs and the network.
    """
    x = source.images.float() / 255
    made = {}
    for name, (_, function) in FAILED.items():
        images = function(x, source.labels, make_rng("cpu", seed, "failed", name))
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        made[name] = ImageSet(pixels, source.labels, source.class_names, name=name.replace("_", " "))
    return made
