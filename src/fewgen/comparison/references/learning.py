"""What the references that learn by gradient share: batches, descent within a budget, drawing in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.comparison.budget import Budget
from fewgen.data.augment import Augment, AugmentConfig
from fewgen.data.imageset import ImageSet
from fewgen.fitting.fit import fit
from fewgen.nn.ema import EMA


def light(channels: int) -> Augment:
    """Return the augmentation of training: small moves; mirrors for colour only (shoes face one way)."""
    return Augment(
        AugmentConfig(rotate_degrees=3.0, scale=0.04, shift=0.04, flip=0.5 if channels == 3 else 0.0)
    )


class Batches:
    """Random augmented batches of a training set, with sides continued to a multiple of 4 pixels.

    Args:
        train: the images.
        size: images per batch, drawn with replacement.
        rng: random stream.
    """

    def __init__(self, train: ImageSet, size: int, rng: torch.Generator) -> None:
        self.train, self.size, self.rng = train, size, rng
        self.augment = light(train.channels)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) in [-1, 1] and labels (B,)."""
        chosen = torch.randint(0, len(self.train), (self.size,), generator=self.rng)
        return continued(self.augment(self.train.floats(chosen), self.rng)), self.train.labels[chosen]


def multiple_of_4(size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width rounded up to multiples of 4, which networks that halve twice can make.

    >>> multiple_of_4((28, 30))
    (28, 32)
    """
    return -(-size[0] // 4) * 4, -(-size[1] // 4) * 4


def continued(x: Tensor) -> Tensor:
    """Return images with the last row and column repeated up to a multiple of 4; `cut` takes it off."""
    height, width = multiple_of_4((x.shape[2], x.shape[3]))
    more = (0, width - x.shape[3], 0, height - x.shape[2])
    return functional.pad(x, more, mode="replicate") if any(more) else x


def cut(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the part of images (B, C, H', W') that is the image, (B, C, H, W)."""
    return x[:, :, : size[0], : size[1]]


def descend(
    network: nn.Module,
    loss_of: Callable[[], Tensor],
    budget: Budget,
    *,
    until: float,
    lr: float,
    weight_decay: float = 1e-4,
    averaged: bool = False,
) -> dict[str, object]:
    """AdamW with warm-up and a cosine to zero from the present use of the budget up to the share `until`.

    Args:
        network: to train; left in evaluation mode.
        loss_of: the loss of a fresh batch.
        budget: limit.
        until: share of the budget at which to stop, in (0, 1].
        lr: highest learning rate.
        weight_decay: of AdamW.
        averaged: the network ends with the running average of its weights.

    Returns:
        Steps, and the running mean of the loss (None if no step fitted into the budget).
    """
    average = EMA(network) if averaged else None
    begin, steps = budget.used(), 0
    smooth: float | None = None

    def rates() -> Iterator[list[float]]:
        while True:
            done = (budget.used() - begin) / max(until - begin, 1e-9)
            if budget.max_steps is not None:
                done = max(done, steps / budget.max_steps)
            if done >= 1:
                return
            yield [lr * min(1.0, (steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))]

    def after(loss: float) -> None:
        nonlocal steps, smooth
        if average is not None:
            average.update(network)
        steps += 1
        smooth = loss if smooth is None else 0.99 * smooth + 0.01 * loss

    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    fit(network, lambda _: {"loss": loss_of()}, optimizer, rates(), clip=1.0, after=after)
    if average is not None:
        average.copy_to(network)
    # JSON knows no NaN; a loss that is not finite is reported as missing.
    return {"steps": steps, "loss": smooth if smooth is not None and math.isfinite(smooth) else None}


def by_parts(labels: Tensor, part: Callable[[Tensor], Tensor], size: int = 250) -> Tensor:
    """Return the images that `part` makes of up to `size` labels at a time."""
    with torch.no_grad():
        return torch.cat([part(chunk) for chunk in labels.split(size)])
