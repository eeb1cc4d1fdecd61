"""VGG16 and AlexNet up to the layers that LPIPS compares, with weights from a file of the user.

Parameter names are those of the public files: torchvision's `vgg16` and `alexnet`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.encoders.base import as_colour
from fewgen.encoders.weights import load_weights, read_weights
from fewgen.errors import ConfigError, ShapeError, suggest


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for outputs in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if outputs == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers)


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        *[nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)],
        *[nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)],
        *[nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
        *[nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
        *[nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)],
    )


# Positions of the compared layers (the ReLU before each pooling, and every late one of AlexNet), their
# channels, and the smallest side that reaches the last of them.
_TAPS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "vgg16": ((3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16),
    "alexnet": ((1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31),
}
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class ConvTrunk(nn.Module):
    """The convolutions of VGG16 or AlexNet, with the five layers that LPIPS compares.

    14,714,688 parameters (VGG16) and 2,469,696 (AlexNet); random until `LpipsTrunk` loads a file.

    Args:
        kind: "vgg16" or "alexnet".

    Source: Simonyan & Zisserman 2015, arXiv:1409.1556; Krizhevsky 2014, arXiv:1404.5997; the layers: Zhang
    et al. 2018, arXiv:1801.03924, Sec. 3.
    """

    def __init__(self, kind: Literal["vgg16", "alexnet"]) -> None:
        super().__init__()
        if kind not in _TAPS:
            raise ConfigError(f'There is no trunk "{kind}".{suggest(kind, _TAPS)} Choose vgg16 or alexnet.')
        self.kind = kind
        self.features = _vgg16() if kind == "vgg16" else _alexnet()
        self.taps, self.channels, self.smallest_side = _TAPS[kind]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five layers, (B, channels, h, w) each, of images (B, 3, H, W) in [-1, 1]."""
        x = (x - x.new_tensor(_SHIFT)[:, None, None]) / x.new_tensor(_SCALE)[:, None, None]
        found = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                found.append(x)
            if i == self.taps[-1]:
                break
        return found


class LpipsTrunk:
    """VGG16 or AlexNet with a user's weights, for `lpips_distance`.

    Args:
        kind: "vgg16" or "alexnet".
        weights: torchvision's file of that network, .safetensors or .pth; its classifier is ignored.
        sha256: digest that the file must have; None accepts any and records what was found.
        size: side in pixels to which images are resized first (bilinear, antialiased); None leaves them.

    Raises:
        ConfigError: an unknown kind, no such file, or a size that the trunk cannot take.
        CheckpointError: another digest, a damaged file, or weights of another network.
    """

    def __init__(
        self,
        kind: Literal["vgg16", "alexnet"],
        weights: str | Path,
        sha256: str | None = None,
        *,
        size: int | None = None,
    ) -> None:
        with torch.device("meta"):
            network = ConvTrunk(kind)
        if size is not None and size < network.smallest_side:
            raise ConfigError(f"{kind} needs images of at least {network.smallest_side} pixels, got {size}.")
        tensors, found = read_weights(weights, sha256)
        self.network = network.to_empty(device="cpu").eval()
        load_weights(self.network, tensors, f"{kind} ({weights})", ignore=("classifier.",))
        self.channels = self.network.channels
        self.size = size
        self._about = {"weights": Path(weights).name, "sha256": found}

    @torch.no_grad()
    def layers(self, x: Tensor) -> list[Tensor]:
        """Return the five layers of images (B, 1 or 3, H, W) in [-1, 1].

        Raises: ShapeError for images too small for the trunk.
        """
        if self.size is not None and tuple(x.shape[2:]) != (self.size, self.size):
            x = functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        if min(x.shape[2:]) < self.network.smallest_side:
            raise ShapeError(
                f"{self.network.kind} needs images of at least {self.network.smallest_side} pixels, "
                f"but these have {x.shape[2]} x {x.shape[3]}. Make the trunk with size=64."
            )
        layers: list[Tensor] = self.network(as_colour(x))
        return layers

    def record(self) -> dict[str, object]:
        """Return name, weight file and digest, resizing."""
        size = self.size
        return {
            "name": self.network.kind,
            "resize": "none" if size is None else f"antialiased bilinear, to {size} x {size}",
            **self._about,
        }
