"""Students: the two small backbones of few-shot learning, each with a linear head."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.errors import ConfigError, ShapeError, suggest
from fewgen.fitting.seeds import global_seed

SMALLEST_SIDE = 16
"""Four halvings leave one pixel of this."""
HEAD_INPUTS = 256
"""Numbers that the head of a `Conv4` sees of 32 x 32 pixels at 64 channels."""


class Student(nn.Module):
    """A backbone and a linear layer. Make one with `make_student`.

    Attributes:
        name: in the registry.
        body: images -> features, layers only, so that it can be traced for export.
        head: features -> logits; the identity without classes.
        dim: length of a feature vector.
    """

    name: ClassVar[str] = ""

    def __init__(
        self, body: nn.Module, dim: int, channels: int, image_shape: tuple[int, int, int], n_classes: int
    ) -> None:
        super().__init__()
        self.body = body
        self.dim, self.channels, self.image_shape, self.n_classes = dim, channels, image_shape, n_classes
        self.head: nn.Module = nn.Linear(dim, n_classes) if n_classes else nn.Identity()
        for module in body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def head_rate(self) -> float:
        """Factor in (0, 1] on the learning rate of the head."""
        return 1.0

    def features(self, x: Tensor) -> Tensor:
        """Return one vector per image.

        Args:
            x: images (B, C, H, W) in [-1, 1].

        Returns:
            (B, dim).

        Raises:
            ShapeError: images of another shape than it was made for.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            raise ShapeError(
                f"This {self.name} takes images (B, {', '.join(map(str, self.image_shape))}), "
                f"got {tuple(x.shape)}."
            )
        found: Tensor = self.body(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, n_classes) of images (B, C, H, W) in [-1, 1]; features without classes."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def new_head(self, n_classes: int, seed: int = 0) -> None:
        """Put a fresh linear layer for so many classes in place of the head.

        Raises:
            ConfigError: fewer than 1 class.
        """
        if n_classes < 1:
            raise ConfigError(f"A head needs at least 1 class, got {n_classes}.")
        weight = next(self.body.parameters())
        with global_seed(torch.device("cpu"), seed, "student", "head"):
            self.head = nn.Linear(self.dim, n_classes).to(weight)
        self.n_classes = n_classes

    def drop_head(self) -> None:
        """Leave features alone, as of a network for 0 classes."""
        self.head, self.n_classes = nn.Identity(), 0

    def about(self) -> dict[str, object]:
        """Return what `make_student` needs to build the same network; JSON-ready."""
        return {
            "name": self.name,
            "image_shape": list(self.image_shape),
            "n_classes": self.n_classes,
            "channels": self.channels,
        }


class Conv4(Student):
    """Four times convolution 3x3, batch norm, ReLU, max-pooling; the last map is the feature vector.

    113,088 parameters without head at 64 channels and 3 colours, whatever the size; 2,040 at 8 channels and
    7,536 at 16. Features: channels * (H // 16) * (W // 16) numbers, 1,600 at 84 x 84.

    Args:
        image_shape: (C, H, W); at least 16 x 16 pixels.
        n_classes: outputs; 0 for no head.
        channels: of every convolution.

    Source: Vinyals et al. 2016, arXiv:1606.04080, Sec. 4.1.1; the form of Snell et al. 2017,
        arXiv:1703.05175, Sec. 3.1.
    Differs: max-pooling before ReLU, which is the same function (both rise) at a quarter of its cost.
    """

    name = "conv4"

    def __init__(self, image_shape: tuple[int, int, int], n_classes: int, channels: int = 64) -> None:
        _check(image_shape, n_classes, channels)
        layers: list[nn.Module] = []
        for inputs in (image_shape[0], channels, channels, channels):
            # The biases do nothing before batch norm; the published count of 113k includes them.
            layers += [
                nn.Conv2d(inputs, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.MaxPool2d(2),
                nn.ReLU(),
            ]
        dim = channels * (image_shape[1] // 16) * (image_shape[2] // 16)
        super().__init__(nn.Sequential(*layers, nn.Flatten()), dim, channels, image_shape, n_classes)

    @property
    def head_rate(self) -> float:
        """Falls with the numbers that the head sees: at the rate for 32 pixels, one for 64 diverges."""
        return min(1.0, HEAD_INPUTS / self.dim)


class Residual(nn.Module):
    """Three times convolution 3x3 and batch norm, ReLU between; a skip before the last ReLU; max-pooling.

    Args:
        inputs: channels of the input.
        outputs: channels of every convolution.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(3):
            layers += [
                nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.main = nn.Sequential(*layers[:-1])
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H // 2, W // 2)."""
        # Pooled before ReLU: the same function, cheaper.
        return functional.relu(self.pool(self.main(x) + self.skip(x)))


class ResNet12(Student):
    """Four residual modules of three convolutions, then the mean over all places.

    7,996,800 parameters without head at 64 channels (64, 128, 256, 512) and 3 colours, whatever the size.

    Args:
        image_shape: (C, H, W); at least 16 x 16 pixels.
        n_classes: outputs; 0 for no head.
        channels: of the first module; each next one has twice as many.

    Source: Oreshkin et al. 2018, arXiv:1805.10123, Sec. 4.1; Landolsi & Kahl, "Tiny models from tiny data",
        for the widths.
    Differs: ReLU, as the paper says; public code for few-shot learning has leaky ReLU and DropBlock there.
    """

    name = "resnet12"

    def __init__(self, image_shape: tuple[int, int, int], n_classes: int, channels: int = 64) -> None:
        _check(image_shape, n_classes, channels)
        widths = [image_shape[0], *(channels * 2**i for i in range(4))]
        modules = [Residual(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        body = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(body, widths[-1], channels, image_shape, n_classes)


STUDENTS: dict[str, type[Conv4] | type[ResNet12]] = {"conv4": Conv4, "resnet12": ResNet12}
"""Students by name."""


def make_student(
    name: str,
    image_shape: tuple[int, int, int],
    n_classes: int,
    *,
    channels: int = 64,
    seed: int = 0,
) -> Student:
    """Return a student by name, with weights that the seed decides.

    Args:
        name: "conv4" or "resnet12".
        image_shape: (C, H, W) with C 1 or 3; at least 16 x 16 pixels.
        n_classes: outputs; 0 for no head, as a backbone.
        channels: of the first convolutions; 8 to 16 make a Conv4 of 2,000 to 7,500 parameters.
        seed: of the first weights.

    Raises:
        ConfigError: an unknown name, no channels, or fewer than 0 classes.
        ShapeError: images that are too small.

    >>> student = make_student("conv4", (3, 32, 32), 5)
    >>> sum(p.numel() for p in student.body.parameters()), student.dim
    (113088, 256)
    """
    if name not in STUDENTS:
        raise ConfigError(
            f'There is no student "{name}".{suggest(name, STUDENTS)} Choose one of: {", ".join(STUDENTS)}.'
        )
    # Layers initialise from the global random state; leave the caller's as it was.
    with global_seed(torch.device("cpu"), seed, "student", name):
        return STUDENTS[name](image_shape, n_classes, channels)


def _check(image_shape: tuple[int, int, int], n_classes: int, channels: int) -> None:
    if len(image_shape) != 3 or image_shape[0] not in (1, 3) or min(image_shape[1:]) < SMALLEST_SIDE:
        raise ShapeError(
            f"A student takes images (1 or 3, H, W) of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, "
            f"got {tuple(image_shape)}. Enlarge the images."
        )
    if n_classes < 0:
        raise ConfigError(f"n_classes must be 0 (no head) or more, got {n_classes}.")
    if channels < 1:
        raise ConfigError(f"channels must be at least 1, got {channels}.")
