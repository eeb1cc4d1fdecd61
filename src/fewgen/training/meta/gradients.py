"""Outer gradients: what a task teaches the parameters that every task starts from.

Each function returns the gradient of one task by parameter name, to be averaged over tasks and given to any
optimiser. `loss` is (parameters, part of the task, rng) -> scalar; `method_loss` makes it of a method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fewgen.fitting.fit import Shuffled
from fewgen.training.meta.inner import InnerOptimizer, Parameters, check_finite, forget_casts, inner_loop

BatchLoss = Callable[[Mapping[str, Tensor], "Part", torch.Generator], Tensor]
"""(parameters, part of a task, rng of the noise) -> scalar."""


@dataclass(frozen=True)
class Part:
    """The support or the query of a task.

    Attributes:
        images: float32 (B, C, H, W) in [-1, 1].
        labels: int64 (B,), rows of `vectors`, or classes of the model if it is None.
        vectors: text vectors of the task's classes, (n_classes, D), or None.
    """

    images: Tensor
    labels: Tensor
    vectors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: Tensor) -> Part:
        """Return the images at `indices`."""
        return Part(self.images[indices], self.labels[indices], self.vectors)


@dataclass(frozen=True)
class Task:
    """An episode as tensors on the device: what to adapt to, and what to measure on."""

    support: Part
    query: Part

    def everything(self) -> Part:
        """Return support and query as one."""
        return Part(
            torch.cat([self.support.images, self.query.images]),
            torch.cat([self.support.labels, self.query.labels]),
            self.support.vectors,
        )


@dataclass(frozen=True)
class TaskGradient:
    """What one task gave.

    Attributes:
        gradient: by parameter name; names without one are left out.
        support_loss: before the first inner update.
        query_loss: after the last one; for reptile on the query, which it has learned from as well.
        rates: gradient of the logarithm of each inner rate, by parameter name; empty unless rates are given.
    """

    gradient: Parameters
    support_loss: float
    query_loss: float
    rates: Parameters = field(default_factory=dict)


def method_loss(method: Any) -> BatchLoss:
    """Return the loss of a method's batch as a function of its parameters.

    Args:
        method: a `Method` with the capability "adapt".
    """

    def loss(parameters: Mapping[str, Tensor], part: Part, rng: torch.Generator) -> Tensor:
        terms = functional_call(method, dict(parameters), (part.images, part.labels, part.vectors, rng))
        return terms.total()

    return loss


def maml_gradient(
    loss: BatchLoss,
    start: Mapping[str, Tensor],
    task: Task,
    optimizer: InnerOptimizer,
    steps: int,
    rng: torch.Generator,
    *,
    adapted: Sequence[str] | None = None,
    rates: Mapping[str, Tensor] | None = None,
    decay: float = 1.0,
    multi_step: float = 0.0,
    first_order: bool = False,
) -> TaskGradient:
    """Return the gradient of the query loss at the adapted parameters.

    Args:
        loss: see the module.
        start: the parameters that tasks share.
        task: support and query.
        optimizer: of the inner loop.
        steps: inner updates; 0 gives the gradient of the query loss itself.
        rng: of the loss's noise.
        adapted: names that the inner loop moves; the gradient is taken for all.
        rates: factors on the inner rate by name, scalars; the result then has a gradient for each.
        decay: of the inner rate.
        multi_step: share of the gradient from the query losses before the last update, equal parts.
        first_order: take the adapted parameters as if they were the start (FOMAML). The gradient lacks the
            curvature of the inner loop, and memory does not grow with `steps`.

    Source: Finn et al. 2017, arXiv:1703.03400, Eq. 1 and Sec. 5.2 (first order); multi-step loss:
        Antoniou et al. 2019, arXiv:1810.09502, Sec. 4; learned rates: Li et al. 2017, arXiv:1707.09835
        (one for each number), Antoniou et al. 2019 (one for each layer and update).
    Differs: the multi-step weights are equal for all updates but the last. One rate for each parameter
        tensor, over all updates.
    """
    root = {name: value.detach().requires_grad_() for name, value in start.items()}
    factors = {name: rate.detach().requires_grad_() for name, rate in (rates or {}).items()}
    of_rates: Parameters = {}
    first: list[float] = []
    early = multi_step / steps if steps else 0.0
    collected: Parameters = {}
    query_terms: list[Tensor] = []

    def support_loss(parameters: Mapping[str, Tensor], k: int) -> Tensor:
        value = loss(parameters, task.support, rng)
        if k == 0:
            first.append(float(value.detach()))
        return value

    def collect(parameters: Parameters, weight: float) -> float:
        value, gradient = _gradient_at(loss, parameters, task.query, rng)
        accumulate(collected, gradient, weight)
        # To first order an update is its rate times a fixed direction, so the way that was gone is the
        # derivative with respect to the logarithm of the rate.
        ways = {n: (parameters[n] - start[n]).detach() for n in factors if n in gradient}
        accumulate(of_rates, {n: (gradient[n] * way).sum() for n, way in ways.items()}, weight)
        return value

    def visit(k: int, parameters: Parameters) -> None:
        if k == steps or not early:
            return
        if first_order:
            collect(parameters, early)
        else:
            query_terms.append(early * loss(parameters, task.query, rng))

    end = inner_loop(
        support_loss,
        parameters_detached(root) if first_order else root,
        optimizer,
        steps,
        adapted=adapted,
        rates=factors,
        decay=decay,
        create_graph=not first_order,
        visit=visit if early else None,
    )
    last = 1.0 - (multi_step if steps else 0.0)
    if first_order:
        query_loss = collect(end, last)
        check_finite(query_loss, f"after {steps} inner updates", optimizer.lr)
    else:
        final = loss(end, task.query, rng)
        query_loss = float(final.detach())
        check_finite(query_loss, f"after {steps} inner updates", optimizer.lr)
        total = torch.stack([last * final, *query_terms]).sum()
        leaves = [*root.values(), *factors.values()]
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        collected = {n: g for n, g in zip(root, found, strict=False) if g is not None}
        of_rates = {
            n: g * factors[n].detach()
            for n, g in zip(factors, found[len(root) :], strict=True)
            if g is not None
        }
    return TaskGradient(collected, first[0] if first else query_loss, query_loss, of_rates)


def reptile_gradient(
    loss: BatchLoss,
    start: Mapping[str, Tensor],
    task: Task,
    optimizer: InnerOptimizer,
    steps: int,
    rng: torch.Generator,
    *,
    adapted: Sequence[str] | None = None,
    rates: Mapping[str, Tensor] | None = None,
    decay: float = 1.0,
    batch: int = 0,
) -> TaskGradient:
    """Return the way back from the parameters adapted on support and query to the start.

    Gradient descent with rate e on it goes the share e of the way to the adapted parameters.

    Args:
        loss: see the module.
        start: the parameters that tasks share.
        task: its support and query are learned from together.
        optimizer: of the inner loop.
        steps: inner updates.
        rng: of the minibatches and of the loss's noise.
        adapted: names that the inner loop moves; the others get no gradient.
        rates: factors on the inner rate by name; nothing is learned about them.
        decay: of the inner rate.
        batch: images per inner update, shuffled passes; 0: as many as the support has.

    Source: Nichol et al. 2018, arXiv:1803.02999, Algorithm 2.
    """
    everything = task.everything()
    size = min(batch or len(task.support), len(everything))
    first: list[float] = []
    order = Shuffled(len(everything), rng)

    def minibatch_loss(parameters: Mapping[str, Tensor], k: int) -> Tensor:
        value = loss(parameters, everything.at(order.draw(size).to(everything.labels.device)), rng)
        if k == 0:
            first.append(float(value.detach()))
        return value

    end = inner_loop(
        minibatch_loss,
        parameters_detached(start),
        optimizer,
        steps,
        adapted=adapted,
        rates=rates,
        decay=decay,
    )
    with torch.no_grad():
        query_loss = float(loss(end, task.query, rng))
    check_finite(query_loss, f"after {steps} inner updates", optimizer.lr)
    moved = list(start) if adapted is None else list(adapted)
    gradient = {name: start[name].detach() - end[name] for name in moved}
    return TaskGradient(gradient, first[0] if first else query_loss, query_loss)


def parameters_detached(parameters: Mapping[str, Tensor]) -> Parameters:
    """Return the parameters without their graph."""
    return {name: value.detach() for name, value in parameters.items()}


def _gradient_at(
    loss: BatchLoss, parameters: Mapping[str, Tensor], part: Part, rng: torch.Generator
) -> tuple[float, Parameters]:
    names = list(parameters)
    values = [parameters[name].detach().requires_grad_() for name in names]
    with torch.enable_grad():
        total = loss(dict(zip(names, values, strict=True)), part, rng)
        found = torch.autograd.grad(total, values, allow_unused=True)
    forget_casts()
    return float(total.detach()), {n: g for n, g in zip(names, found, strict=True) if g is not None}


def accumulate(into: Parameters, gradient: Mapping[str, Tensor], weight: float) -> None:
    """Add the weighted gradients to those that are there."""
    for name, value in gradient.items():
        into[name] = weight * value if name not in into else into[name] + weight * value
