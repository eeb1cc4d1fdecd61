"""One small loop that fits the networks beside a method: judges, small encoders, teachers and students.

Methods have a loop of their own, `fewgen.training`, with stages, validation, and states to continue from.
What is fitted here takes seconds to minutes and starts anew if it is stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fewgen.errors import TrainingError
from fewgen.fitting.optimizers import Optimizer

REPORT_EVERY = 50
"""Steps between two reports."""


def fit(
    network: nn.Module,
    figures_of: Callable[[int], Mapping[str, Tensor]],
    optimizer: Optimizer,
    rates: Iterable[Sequence[float]],
    *,
    clip: float | None = None,
    failure: str = "",
    after: Callable[[float], None] | None = None,
    report: Callable[[int, float], None] | None = None,
) -> list[dict[str, float]]:
    """Descend the gradient of a loss; the network ends in evaluation mode and without gradients.

    Args:
        network: trained in place, in training mode.
        figures_of: step, from 0 -> scalars of a fresh batch by name. Of these "loss" is descended.
        optimizer: of parameters of the network.
        rates: for each step the learning rate of each group of the optimiser; they decide when it ends.
        clip: largest norm of the gradient; None: no clipping.
        failure: what to say of a loss that is not finite, with {value} and {step}; empty: go on.
        after: called after each step with its loss.
        report: called every 50 steps, and after the last, with steps so far and the mean loss since.

    Returns:
        A row for each 50 steps (and the last): `step`, the first group's `lr`, and the mean of each figure.

    Raises:
        TrainingError: a loss that is not finite, if `failure` is given.
    """
    rows: list[dict[str, float]] = []
    sums: dict[str, float] = {}
    step = 0

    def close_row() -> None:
        since = step - (rows[-1]["step"] if rows else 0)
        means = {name: total / since for name, total in sums.items()}
        rows.append({"step": float(step), "lr": optimizer.param_groups[0]["lr"], **means})
        sums.clear()
        if report is not None:
            report(step, means["loss"])

    network.train()
    for step, of_groups in enumerate(rates, start=1):
        figures = figures_of(step - 1)
        values = {name: float(value.detach()) for name, value in figures.items()}
        if failure and not math.isfinite(values["loss"]):
            raise TrainingError(failure.format(value=values["loss"], step=step))
        network.zero_grad(set_to_none=True)
        figures["loss"].backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        for group, rate in zip(optimizer.param_groups, of_groups, strict=True):
            group["lr"] = rate
        optimizer.step()
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        if after is not None:
            after(values["loss"])
        if step % REPORT_EVERY == 0:
            close_row()
    if sums:
        close_row()
    network.zero_grad(set_to_none=True)
    network.eval()
    return rows


class Shuffled:
    """Endless draws without replacement from the indices 0 to n - 1, reshuffled when they are used up.

    Args:
        n: how many indices.
        rng: random stream; indices lie on its device.
        drop_rest: start a new pass where the rest of one is too short for a draw, instead of running across.
    """

    def __init__(self, n: int, rng: torch.Generator, *, drop_rest: bool = False) -> None:
        self.n, self.rng, self.drop_rest = n, rng, drop_rest
        self.left = torch.empty(0, dtype=torch.int64, device=rng.device)

    def draw(self, count: int) -> Tensor:
        """Return the next indices, int64 (count,); `count` is at most n if rests are dropped."""
        while len(self.left) < count:
            fresh = torch.randperm(self.n, generator=self.rng, device=self.rng.device)
            self.left = fresh if self.drop_rest else torch.cat([self.left, fresh])
        chosen, self.left = self.left[:count], self.left[count:]
        return chosen
