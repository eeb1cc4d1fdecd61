"""Inception-V3 as a plain module, with weights from a file of the user.

Parameter names are those of the public files: torchvision's `inception_v3` and pytorch-fid's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.encoders.base import FrozenEncoder, as_colour
from fewgen.encoders.weights import load_weights, read_weights
from fewgen.errors import ConfigError

LAYERS = (64, 192, 768, 2048)
"""Features of a layer: after the first and the second pooling, before the last halving, at the end."""


def tf1_resize_matrix(old: int, new: int) -> Tensor:
    """Return the matrix (new, old) of TensorFlow 1's bilinear resizing of one side.

    Pixel i of the result is taken at `i * old / new` of the original, counted from the centre of its first
    pixel: neither the centres nor the corners of both images coincide, and nothing is averaged when it
    shrinks. The weights of published Inception figures were used with exactly this.

    Source: `tf.image.resize_bilinear` of TensorFlow 1 with `align_corners=False`, as in the graph
    `inception-2015-12-05` that Heusel et al. 2017, arXiv:1706.08500, use.
    """
    place = torch.arange(new, dtype=torch.float64) * (old / new)
    low = place.floor().to(torch.int64).clamp_max(old - 1)
    high = (low + 1).clamp_max(old - 1)
    share = place - low
    matrix = torch.zeros(new, old, dtype=torch.float64)
    rows = torch.arange(new)
    matrix.index_put_((rows, low), 1 - share, accumulate=True)
    matrix.index_put_((rows, high), share, accumulate=True)
    return matrix.to(torch.float32)


def tf1_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Return images (N, C, H, W) at (height, width) by `tf1_resize_matrix`."""
    rows = tf1_resize_matrix(x.shape[2], height).to(x.dtype)
    columns = tf1_resize_matrix(x.shape[3], width).to(x.dtype)
    return rows @ x @ columns.T


class _Conv(nn.Module):
    """Convolution without bias, batch norm with epsilon 0.001, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


def _pool_average(x: Tensor) -> Tensor:
    """Average over 3 x 3, of the pixels that exist."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _InceptionA(nn.Module):
    """35 x 35: 1 x 1, 5 x 5, double 3 x 3 and pooling."""

    def __init__(self, inputs: int, pool_features: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, 1)
        self.branch5x5_1 = _Conv(inputs, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(inputs, pool_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_pool_average(x))], dim=1)


class _InceptionB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)], dim=1)


class _InceptionC(nn.Module):
    """17 x 17: 7 x 7 taken apart into rows and columns."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 192, 1)
        self.branch7x7_1 = _Conv(inputs, width, 1)
        self.branch7x7_2 = _Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = _Conv(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = _Conv(inputs, width, 1)
        self.branch7x7dbl_2 = _Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = _Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = _Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = _Conv(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_pool_average(x))], dim=1)


class _InceptionD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(inputs, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(inputs, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, functional.max_pool2d(x, 3, stride=2)], dim=1)


class _InceptionE(nn.Module):
    """8 x 8: branches that split into a row and a column; average or maximum in the pooling branch."""

    def __init__(self, inputs: int, pool: Literal["average", "max"]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1 = _Conv(inputs, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = _pool_average(x) if self.pool == "average" else functional.max_pool2d(x, 3, 1, padding=1)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ],
            dim=1,
        )


class InceptionV3(nn.Module):
    """Inception-V3 in the variant of the Frechet Inception distance, without the auxiliary classifier.

    23,834,568 parameters with 1,000 classes (torchvision's weights), 23,850,960 with 1,008 (the weights of
    the published distance).

    Args:
        n_classes: outputs of the last layer, which plays no part in the features.
        layer: of `LAYERS`, what is returned; the network ends there.

    Source: Szegedy et al. 2016, arXiv:1512.00567; variant: the graph `inception-2015-12-05` of Heusel et
    al. 2017, arXiv:1706.08500.
    Differs from the network of the paper as that graph does: average pooling inside the blocks leaves the
    padding out, and the pooling branch of the last block takes the maximum.
    """

    def __init__(self, n_classes: int = 1008, layer: int = 2048) -> None:
        super().__init__()
        self.layer = layer
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _InceptionA(192, 32)
        self.Mixed_5c = _InceptionA(256, 64)
        self.Mixed_5d = _InceptionA(288, 64)
        self.Mixed_6a = _InceptionB(288)
        self.Mixed_6b = _InceptionC(768, 128)
        self.Mixed_6c = _InceptionC(768, 160)
        self.Mixed_6d = _InceptionC(768, 160)
        self.Mixed_6e = _InceptionC(768, 192)
        self.Mixed_7a = _InceptionD(768)
        self.Mixed_7b = _InceptionE(1280, "average")
        self.Mixed_7c = _InceptionE(2048, "max")
        self.fc = nn.Linear(2048, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the layer's maps, (B, layer), of images (B, 3, 299, 299) in about [-1, 1]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        if self.layer > 64:
            x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
            x = functional.max_pool2d(x, 3, stride=2)
        if self.layer > 192:
            x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
            x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        if self.layer > 768:
            x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


class InceptionFeatures(FrozenEncoder):
    """The 2,048 pool features of Inception-V3, or those of an earlier layer, from a weight file of the user.

    Args:
        weights: file of pytorch-fid (1,008 classes; the published distance) or torchvision (1,000 classes;
            its own figures), .safetensors or .pth.
        sha256: digest that the file must have; None accepts any and records what was found.
        batch_size: images per forward pass.
        layer: of `LAYERS`; with few images, the distance is defined for the first ones alone.

    Raises:
        ConfigError: no such file or layer.
        CheckpointError: another digest, a damaged file, or weights of another network.

    Source: Heusel et al. 2017, arXiv:1706.08500, Sec. 5.
    Differs from pytorch-fid: resizes like TensorFlow 1 (`tf1_resize_matrix`) and scales by
    (pixel - 128) / 128, as the original graph does.
    """

    side = 299

    def __init__(
        self, weights: str | Path, sha256: str | None = None, batch_size: int = 16, layer: int = 2048
    ) -> None:
        if layer not in LAYERS:
            raise ConfigError(f"Inception has layers of {', '.join(map(str, LAYERS))} features, not {layer}.")
        super().__init__("inception", batch_size)
        self.dim = layer
        tensors, found = read_weights(weights, sha256)
        last = tensors.get("fc.weight")
        with torch.device("meta"):
            n_classes = 1008 if last is None or last.ndim != 2 else int(last.shape[0])
            network = InceptionV3(n_classes, layer)
        # torchvision's file also holds the auxiliary classifier, which plays no part in the features.
        self.network = network.to_empty(device="cpu").eval()
        load_weights(self.network, tensors, f"Inception-V3 ({weights})", ignore=("AuxLogits.",))
        self._about = {
            "weights": Path(weights).name,
            "sha256": found,
            "n_classes": self.network.fc.out_features,
        }

    @torch.no_grad()
    def vectors(self, images: Tensor) -> Tensor:
        """Return pool features (N, dim) of images (N, 1 or 3, H, W) in [0, 255]."""
        x = (images.to(torch.float32) - 128.0) / 128.0
        found: Tensor = self.network(as_colour(tf1_resize(x, self.side, self.side)))
        return found

    def record(self) -> dict[str, Any]:
        """Return name, weight file and digest, resizing, and whether published figures compare."""
        return {
            "name": self.name,
            "dim": self.dim,
            "resize": f"bilinear as in TensorFlow 1, not antialiased, to {self.side} x {self.side}",
            "normalise": "(pixel - 128) / 128",
            "comparable_to_published": self._about["n_classes"] == 1008,
            **self._about,
        }
