"""The projected discriminator: it sees what a frozen network sees of images, not their pixels.

Shapes: B batch, C channels, H x W pixels, S the side at which the frozen network sees images, K heads, one
for each of its maps at strides 4, 8, 16 and 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from fewgen.config.checks import choose
from fewgen.errors import ShapeError
from fewgen.nn.stylegan import group_of, minibatch_deviation

STRIDES = (4, 8, 16, 32)
"""Of the maps that are looked at."""
SMALLEST = 64
"""Side to which smaller images are enlarged, unless another is asked for."""

_LOGITS_SIDE = 4
_CHANNELS = 64


class FeatureMaps(Protocol):
    """A frozen network that shows its maps.

    Attributes:
        network: the network, without gradients to its weights.
    """

    network: nn.Module

    def maps(self, x: Tensor) -> dict[int, Tensor]:
        """Return maps by stride of images (B, 1 or 3, S, S) in [-1, 1], with gradient to the images."""
        ...


@dataclass
class _Frozen:
    """What never learns: the network, and the mixing of its maps. No module: models do not keep it."""

    encoder: FeatureMaps
    across_channels: list[Tensor]
    across_scales: list[Tensor]
    device: torch.device


class Head(nn.Module):
    """Logits per place of one mixed map.

    Args:
        n_in: channels of the map.
        side: of the map; it is halved until it is `_LOGITS_SIDE` or less, and seen by one layer at least.
        width: channels of the layers.
        norm: "batch", "group" or "none", after each.
        n_out: numbers per place.
        compares: the last layer also sees how far images of a group differ in each channel.
    """

    def __init__(
        self, n_in: int, side: int, width: int, norm: str, n_out: int, compares: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while side > _LOGITS_SIDE or not layers:
            kernel, stride = (4, 2) if side > _LOGITS_SIDE else (3, 1)
            conv = nn.Conv2d(n_in, width, kernel, stride, 1, bias=norm == "none")
            layers += [spectral_norm(conv), *_norms(norm, width), nn.LeakyReLU(0.2)]
            n_in, side = width, side // stride
        self.compares = compares
        self.layers = nn.Sequential(*layers)
        self.last = spectral_norm(nn.Conv2d(width * (2 if compares else 1), n_out, 1, bias=False))

    def forward(self, x: Tensor, group_size: int = 1) -> Tensor:
        """Map (B, n_in, side, side) to (B, n_out, places)."""
        x = self.layers(x)
        if self.compares:
            x = minibatch_deviation(x, group_size, x.shape[1])
        y: Tensor = self.last(x)
        return y.flatten(2)


def _norms(kind: str, width: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm2d(width)]
    return [nn.GroupNorm(math.gcd(8, width), width)] if kind == "group" else []


class ProjectedDiscriminator(nn.Module):
    """Logits of images from the maps of a frozen network, mixed at random and judged by small heads.

    Args:
        shape: (C, H, W) of an image.
        load: reads the frozen network; called when images are first judged, or by `prepare`.
        c_dim: numbers of the condition; 0: none.
        side: S; None: `SMALLEST`, or the larger side of the images if that is more.
        mixed: channels of the finest mixed map; coarser ones have twice as many each.
        width: channels of the heads' layers.
        norm: in the heads, "batch" as published, "group" or "none".
        condition: "product" (a place says numbers, and their product with the embedded condition is the
            logit, as published) or "projection" (such a product, and a number of its own).
        group_size: images whose spread the heads see together; with a condition all of one. 1: none, as
            published.
        seed: of the mixing.

    Source: Sauer et al. 2021, arXiv:2111.01007 (projected GAN); Miyato & Koyama 2018, arXiv:1802.05637
        (projection).
    Differs: images are seen at a small side; 3 x 3 mixing across scales, at the coarser of two scales; maps
        are brought to one strength before they are mixed, measured on noise, since those of a network may
        differ tenfold; maps of 4 x 4 or less get a 3 x 3 layer; a condition is scaled to length 1 and
        embedded linearly, for each head by itself.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        load: Callable[[], FeatureMaps],
        c_dim: int = 0,
        *,
        side: int | None = None,
        mixed: int = 32,
        width: int = 128,
        norm: Literal["batch", "group", "none"] = "batch",
        condition: Literal["product", "projection"] = "product",
        group_size: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        choose("norm", norm, ("batch", "group", "none"))
        choose("condition", condition, ("product", "projection"))
        self.shape, self.c_dim, self.group_size, self.seed = shape, c_dim, group_size, seed
        self.side = projected_side(shape) if side is None else side
        self.mixed = [mixed << i for i in range(len(STRIDES))]
        self.own = 1 if c_dim and condition == "projection" else 0
        numbers = _CHANNELS if c_dim else 1
        self.heads = nn.ModuleList(
            Head(channels, -(-self.side // stride), width, norm, numbers + self.own, self.group_size > 1)
            for channels, stride in zip(self.mixed, STRIDES, strict=True)
        )
        self.embeddings = nn.ModuleList(nn.Linear(c_dim, numbers, bias=False) for _ in STRIDES if c_dim)
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight)  # type: ignore[arg-type]
        self._load = load
        self._frozen: _Frozen | None = None

    def prepare(self, device: torch.device) -> None:
        """Read the frozen network and make the mixing, if that has not been done.

        Raises:
            MissingDependencyError: its package is not installed.
        """
        if self._frozen is not None and self._frozen.device == device:
            return
        encoder = self._load()
        # Weights in the layout of the images, which on processors takes a third less time.
        encoder.network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rng = torch.Generator().manual_seed(self.seed)
        # Smooth noise, which stands for photographs where the strength of the maps is measured.
        noise = functional.interpolate(
            torch.randn(16, 3, 8, 8, generator=rng), (self.side, self.side), mode="bilinear"
        )
        with torch.no_grad():
            maps = encoder.maps((0.5 * noise).to(device))
        found = [maps[stride] for stride in STRIDES]
        first = [
            torch.randn(n, x.shape[1], 1, 1, generator=rng)
            / float(x.square().mean().sqrt() * x.shape[1] ** 0.5)
            for n, x in zip(self.mixed, found, strict=True)
        ]
        # From coarse to fine; two maps of equal strength are added.
        second = [
            torch.randn(fine, coarse, 3, 3, generator=rng) / math.sqrt(9 * coarse)
            for fine, coarse in zip(self.mixed, self.mixed[1:], strict=False)
        ]
        self._frozen = _Frozen(encoder, [w.to(device) for w in first], [w.to(device) for w in second], device)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the mixed maps of images (B, C, H, W) near [-1, 1], fine to coarse, with gradient to them.

        Raises:
            ShapeError: if the images have another shape.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise ShapeError(f"The discriminator takes images {self.shape}, got {tuple(images.shape[1:])}.")
        self.prepare(images.device)
        frozen = self._frozen
        assert frozen is not None
        if tuple(images.shape[2:]) != (self.side, self.side):
            smaller = min(images.shape[2:]) > self.side
            images = functional.interpolate(
                images, (self.side, self.side), mode="bilinear", antialias=smaller
            )
        found = frozen.encoder.maps(images.contiguous(memory_format=torch.channels_last))
        mixed = [
            functional.conv2d(found[stride], weight)
            for stride, weight in zip(STRIDES, frozen.across_channels, strict=True)
        ]
        for i in reversed(range(len(mixed) - 1)):
            coarse = functional.conv2d(mixed[i + 1], frozen.across_scales[i], padding=1)
            coarse = functional.interpolate(coarse, mixed[i].shape[2:], mode="bilinear")
            mixed[i] = (mixed[i] + coarse) * math.sqrt(0.5)
        return mixed

    def spread(self, maps: Sequence[Tensor]) -> Tensor:
        """Return how far the images of each group lie apart in each map, (K, groups).

        A group is what `minibatch_deviation` takes for one; the deviations of the numbers at all places are
        averaged as squares.
        """
        found = []
        for x in maps:
            group = group_of(len(x), self.group_size)
            y = x.reshape(group, -1, x[0].numel())
            found.append(((y - y.mean(0)).square().mean((0, 2)) + 1e-8).sqrt())
        return torch.stack(found)

    def describe(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return what each head says of mixed maps before it knows the condition, (B, numbers, places)."""
        return [head(x, self.group_size) for head, x in zip(self.heads, maps, strict=True)]

    def judge(self, described: Sequence[Tensor], c: Tensor | None = None) -> list[Tensor]:
        """Return each head's logits per place, (B, places), of what `describe` returned.

        Args:
            described: of B images.
            c: (B, c_dim), or None without a condition.

        Raises:
            ShapeError: if the condition has another shape.
        """
        found = 0 if c is None else c.shape[-1]
        if found != self.c_dim:
            raise ShapeError(f"The discriminator takes conditions of width {self.c_dim}, got {found}.")
        if c is None:
            return [x.squeeze(1) for x in described]
        c = functional.normalize(c, dim=1)
        logits = []
        for x, embedding in zip(described, self.embeddings, strict=True):
            product = torch.einsum("bnp,bn->bp", x[:, self.own :], embedding(c)) / math.sqrt(_CHANNELS)
            logits.append(product + x[:, 0] if self.own else product)
        return logits

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Return one logit per image (B,): the mean over heads of the means over their places."""
        return per_head(self.judge(self.describe(self.maps(images)), c)).mean(1)


def projected_side(shape: tuple[int, int, int]) -> int:
    """Return the side at which images are seen, unless another is asked for."""
    return max(SMALLEST, *shape[1:])


def per_head(logits: Sequence[Tensor]) -> Tensor:
    """Return one number for each image and head (B, K): the means of the heads' logits (B, ...)."""
    return torch.stack([x.reshape(len(x), -1).mean(1) for x in logits], 1)
