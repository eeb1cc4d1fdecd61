"""Published convolutional trunks as plain modules: Inception-V3, and VGG16 and AlexNet for LPIPS.

No weights come with fewgen. A user's file is read (safetensors, or .pth without pickled code), its
checksum compared if one is given, and its names and shapes checked against the network. Parameter names
are those of the public files: torchvision's `inception_v3`, `vgg16` and `alexnet`, and pytorch-fid's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.data.imageset import ImageSet
from fewgen.encoders.features import Described, in_batches
from fewgen.errors import CheckpointError, ConfigError, ShapeError, suggest

# -------------------------------------------------------------------------------------------- weight files


def file_sha256(path: str | Path) -> str:
    """Return the sha256 digest of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_weights(path: str | Path, sha256: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Read a file of named tensors, without running anything in it.

    Args:
        path: .safetensors, or a PyTorch file (.pth, .pt, .bin) that holds tensors only.
        sha256: digest that the file must have, 64 hexadecimal digits; None for any.

    Returns:
        Tensors by name, and the digest that was found.

    Raises:
        ConfigError: no such file, another ending, or a digest that is not one.
        CheckpointError: another digest, or a file that is damaged or holds more than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"There is no weight file {path}. Give the path of a .safetensors or .pth file.")
    if sha256 is not None and (len(sha256) != 64 or not set(sha256.lower()) <= set("0123456789abcdef")):
        raise ConfigError(f'A sha256 digest has 64 hexadecimal digits, got "{sha256}".')
    found = file_sha256(path)
    if sha256 is not None and found != sha256.lower():
        raise CheckpointError(
            f"{path} has sha256 {found}, but {sha256.lower()} was asked for. "
            "The file is damaged or another one: get it again, or correct the checksum."
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path), found
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise ConfigError(f"{path} must end in .safetensors, .pth, .pt or .bin.")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler has many exceptions of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is not a readable file of tensors: {reason}") from error
    if not isinstance(value, dict) or not all(isinstance(v, Tensor) for v in value.values()):
        raise CheckpointError(f"{path} must hold a dictionary of named tensors and nothing else.")
    return {str(name): tensor for name, tensor in value.items()}, found


def load_weights(
    network: nn.Module, weights: dict[str, Tensor], what: str, ignore: Sequence[str] = ()
) -> None:
    """Copy named tensors into a network, if every name and shape fits.

    Args:
        network: to fill.
        weights: tensors by name. Counters of batch norm (`num_batches_tracked`) may be missing: old files
            lack them, and nothing here uses them.
        what: name of the network and where the weights came from, for the message.
        ignore: beginnings of names that the file may hold besides.

    Raises:
        CheckpointError: names that are missing or too many, other shapes, or values that are not finite.
    """
    wanted = network.state_dict()
    given = {name: value for name, value in weights.items() if not name.startswith(tuple(ignore))}
    missing = [n for n in wanted if n not in given and not n.endswith("num_batches_tracked")]
    extra = [n for n in given if n not in wanted]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(wanted)} tensors are missing ({_some(missing)})")
    if extra:
        problems.append(f"{len(extra)} do not belong to it ({_some(extra)})")
    for name, value in given.items():
        if name in wanted and value.shape != wanted[name].shape:
            problems.append(f"{name} has shape {tuple(value.shape)} and not {tuple(wanted[name].shape)}")
        elif name in wanted and not torch.isfinite(value).all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        raise CheckpointError(
            f"These are not the weights of {what}: {_some(problems, '; ')}. Give the file of this network."
        )
    counters = {
        n: torch.zeros_like(v, device="cpu") for n, v in wanted.items() if n.endswith("num_batches_tracked")
    }
    network.load_state_dict(counters | given)


def _some(names: Iterable[str], join: str = ", ", limit: int = 3) -> str:
    names = list(names)
    return join.join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# ------------------------------------------------------------------------------------------------ resizing


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


def as_colour(images: Tensor) -> Tensor:
    """Return images (N, 1 or 3, H, W) with three channels; grey is repeated."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


# ------------------------------------------------------------------------------------------- Inception-V3


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

    Source: Szegedy et al. 2016, arXiv:1512.00567; variant: the graph `inception-2015-12-05` of Heusel et
    al. 2017, arXiv:1706.08500.
    Differs from the network of the paper as that graph does: average pooling inside the blocks leaves the
    padding out, and the pooling branch of the last block takes the maximum.
    """

    def __init__(self, n_classes: int = 1008) -> None:
        super().__init__()
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
        """Return pool features (B, 2048) of images (B, 3, 299, 299) in about [-1, 1]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


class InceptionFeatures:
    """The 2,048 pool features of Inception-V3, from a weight file of the user.

    Args:
        weights: file of pytorch-fid (1,008 classes; the published distance) or torchvision (1,000 classes;
            its own figures), .safetensors or .pth.
        sha256: digest that the file must have; None accepts any and records what was found.
        batch_size: images per forward pass.

    Raises:
        ConfigError: no such file.
        CheckpointError: another digest, a damaged file, or weights of another network.

    Source: Heusel et al. 2017, arXiv:1706.08500, Sec. 5.
    Differs from pytorch-fid: resizes like TensorFlow 1 (`tf1_resize_matrix`) and scales by
    (pixel - 128) / 128, as the original graph does.
    """

    name = "inception"
    dim = 2048
    side = 299

    def __init__(self, weights: str | Path, sha256: str | None = None, batch_size: int = 16) -> None:
        tensors, found = read_weights(weights, sha256)
        last = tensors.get("fc.weight")
        with torch.device("meta"):
            network = InceptionV3(1008 if last is None or last.ndim != 2 else int(last.shape[0]))
        # torchvision's file also holds the auxiliary classifier, which plays no part in the features.
        self.network = network.to_empty(device="cpu").eval()
        load_weights(self.network, tensors, f"Inception-V3 ({weights})", ignore=("AuxLogits.",))
        self.batch_size = batch_size
        self._about = {
            "weights": Path(weights).name,
            "sha256": found,
            "n_classes": self.network.fc.out_features,
        }

    @torch.no_grad()
    def features(self, images: ImageSet) -> Tensor:
        """Return pool features, (N, 2048), float32; grey images as three equal channels."""

        def pooled(batch: Tensor) -> Tensor:
            x = (batch.to(torch.float32) - 128.0) / 128.0
            return self.network(as_colour(tf1_resize(x, self.side, self.side)))

        return in_batches(images.images, self.batch_size, pooled)

    def describe(self, images: ImageSet) -> Described:
        """Return features without predictions: its classes are not those of the images."""
        return Described(self.features(images), None)

    def record(self) -> dict[str, object]:
        """Return name, weight file and digest, resizing, and whether published figures compare."""
        return {
            "name": self.name,
            "dim": self.dim,
            "resize": f"bilinear as in TensorFlow 1, not antialiased, to {self.side} x {self.side}",
            "normalise": "(pixel - 128) / 128",
            "comparable_to_published": self._about["n_classes"] == 1008,
            **self._about,
        }


# ----------------------------------------------------------------------------------------- trunks for LPIPS


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
