"""The inner loop: a few updates of a task's own copy of the parameters.

Parameters travel as a dictionary name -> tensor, beside the module, whose own are never touched. So the
model that is adapted from stays as it is, memory does not grow with the number of updates unless the
caller wants to differentiate through them, and a task can be cut off anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewgen.config.checks import choose
from fewgen.errors import ConfigError, TrainingError

Parameters = dict[str, Tensor]
TaskLoss = Callable[[Mapping[str, Tensor], int], Tensor]
"""(parameters, number of the update) -> the loss of a task, a scalar."""
Tensors = list[Tensor]
State = tuple[Tensors, ...]
"""What an optimiser keeps from one update to the next, a list per moment."""
Rate = float | Tensor
"""A learning rate; a tensor if it is learned itself."""

ADVICE = "Lower --tasks.inner_lr or --tasks.inner_steps, or set --tasks.inner_optimizer adam."
"""What mends a loss that is not finite while meta-training."""


@dataclass(frozen=True)
class SGD:
    """Gradient descent, `value - lr * gradient`."""

    lr: float

    def start(self, values: Tensors) -> State:
        """Return the empty state."""
        return ()

    def step(
        self, values: Tensors, gradients: Tensors, state: State, k: int, rates: Sequence[Rate]
    ) -> tuple[Tensors, State]:
        """Return the values after update k (from 0) and the new state; changes nothing in place.

        Args:
            values: the parameters.
            gradients: of the loss of the task, one for each.
            state: of `start`, or of the update before.
            k: number of the update.
            rates: learning rate of each parameter.
        """
        return [v - r * g for v, g, r in zip(values, gradients, rates, strict=True)], state


@dataclass(frozen=True)
class Adam:
    """Adam whose update can be differentiated.

    Attributes:
        lr: learning rate.
        betas: decays; 0 for the first by default, since a task has too few updates for a momentum.
        eps: keeps the division finite.

    Source: Kingma, Ba 2015, arXiv:1412.6980, Algorithm 1; beta1 = 0 inside tasks: Nichol et al. 2018,
        arXiv:1803.02999, Sec. 6.
    Differs: sqrt(v + eps^2) for sqrt(v) + eps, whose derivative at v = 0 is infinite. The two differ by less
        than eps.
    """

    lr: float
    betas: tuple[float, float] = (0.0, 0.999)
    eps: float = 1e-8

    def start(self, values: Tensors) -> State:
        """Return zero means of the gradients and of their squares."""
        zeros = [torch.zeros_like(v) for v in values]
        return zeros, list(zeros)

    def step(
        self, values: Tensors, gradients: Tensors, state: State, k: int, rates: Sequence[Rate]
    ) -> tuple[Tensors, State]:
        """Return the values after update k and the new state; see `SGD.step`."""
        beta1, beta2 = self.betas
        correction1, correction2 = 1.0 - beta1 ** (k + 1), 1.0 - beta2 ** (k + 1)
        means = [torch.lerp(g, m, beta1) for m, g in zip(state[0], gradients, strict=True)]
        squares = [v * beta2 + (1.0 - beta2) * g * g for v, g in zip(state[1], gradients, strict=True)]
        moved = [
            p - (r / correction1) * m / (v / correction2 + self.eps**2).sqrt()
            for p, m, v, r in zip(values, means, squares, rates, strict=True)
        ]
        return moved, (means, squares)


InnerOptimizer = SGD | Adam
"""A rule of updates without state of its own: `start` makes the state, `step` returns the next one."""


def make_inner_optimizer(name: str, lr: float) -> InnerOptimizer:
    """Return the inner optimiser "sgd" or "adam".

    Raises:
        ConfigError: for another name.
    """
    choose("inner_optimizer", name, ("adam", "sgd"))
    return SGD(lr) if name == "sgd" else Adam(lr)


def inner_loop(
    loss: TaskLoss,
    start: Mapping[str, Tensor],
    optimizer: InnerOptimizer,
    steps: int,
    *,
    adapted: Sequence[str] | None = None,
    rates: Mapping[str, Rate] | None = None,
    decay: float = 1.0,
    create_graph: bool = False,
    visit: Callable[[int, Parameters], None] | None = None,
    advice: str = ADVICE,
) -> Parameters:
    """Update a copy of the parameters on the loss of one task.

    Args:
        loss: (parameters, number of the update) -> scalar.
        start: the parameters to begin from; never changed.
        optimizer: how to update.
        steps: number of updates; 0 returns the start.
        adapted: names of the parameters that move; None: all. The others are passed through.
        rates: factor on the learning rate by name, where it is not 1.
        decay: share of the learning rate that is left at the last update, reached linearly.
        create_graph: keep the graph, so that the result can be differentiated with respect to `start`
            (second order). Memory then grows with the number of updates; otherwise it does not.
        visit: called with (updates so far, parameters), before the first and after each update.
        advice: what mends a loss that is not finite, for the message.

    Returns:
        Name -> tensor, all names of `start`.

    Raises:
        TrainingError: if a loss is not finite; names the update and the learning rate. The result is not
            looked at: its loss tells.

    Source: Finn et al. 2017, arXiv:1703.03400, Algorithm 2, lines 5 to 8.
    """
    names = list(start) if adapted is None else list(adapted)
    unknown = [name for name in names if name not in start]
    if unknown:
        raise ConfigError(f'There is no parameter "{unknown[0]}" to adapt.')
    frozen = {name: value for name, value in start.items() if name not in set(names)}
    values = [start[name] for name in names]
    factors = {} if rates is None else rates
    state = optimizer.start(values)
    if visit is not None:
        visit(0, {**frozen, **dict(zip(names, values, strict=True))})
    for k in range(steps):
        if not create_graph:
            values = [value.detach().requires_grad_() for value in values]
        elif k == 0:
            # A parameter itself may be frozen, or the result of a computation; both must carry a graph.
            values = [v if v.requires_grad else v.detach().requires_grad_() for v in values]
        with torch.enable_grad():  # also where a caller measures without gradients
            total = loss({**frozen, **dict(zip(names, values, strict=True))}, k)
            check_finite(float(total.detach()), f"before inner update {k + 1}", optimizer.lr, advice)
            found = torch.autograd.grad(total, values, create_graph=create_graph, allow_unused=True)
        if not create_graph:
            forget_casts()
        gradients = [torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True)]
        lr = optimizer.lr * (1.0 - (1.0 - decay) * k / max(1, steps - 1))
        with torch.set_grad_enabled(create_graph):
            of_each = [lr * factors.get(name, 1.0) for name in names]
            values, state = optimizer.step(values, gradients, state, k, of_each)
        if visit is not None:
            visit(k + 1, {**frozen, **dict(zip(names, values, strict=True))})
    if not create_graph:
        values = [value.detach() for value in values]
    return {**frozen, **dict(zip(names, values, strict=True))}


def check_finite(loss: float, when: str, lr: float, advice: str = ADVICE) -> None:
    """Raise `TrainingError` if the loss of a task is not finite; names when, and the learning rate."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss of a task is {loss} {when}, with the inner learning rate {lr:g}. {advice}"
        )


def forget_casts() -> None:
    """Let go of what mixed precision keeps of parameters that are used no more.

    Inside autocast every parameter is kept with its 16-bit copy until the end of the outer step. Each inner
    update makes new parameters, so memory would grow with their number.
    """
    torch.clear_autocast_cache()


def parameters_of(module: nn.Module) -> Parameters:
    """Return the parameters of a module by name, detached: a start for `inner_loop`."""
    return {name: value.detach() for name, value in module.named_parameters()}
