"""One update of one phase: loss, gradient, clipping, optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewgen.errors import ConfigError
from fewgen.fitting.optimizers import AdamW
from fewgen.fitting.schedules import make_schedule
from fewgen.training.phases import Batch, Context, Phase
from fewgen.training.processes import Processes

if TYPE_CHECKING:
    from fewgen.losses.terms import LossTerms


Optimizer = torch.optim.Optimizer | AdamW

_NUMBERS = ("total", "terms", "stats", "norm", "limit")


@dataclass
class Entry:
    """What a phase reported in one step, kept as tensors until somebody looks."""

    phase: str
    step: int
    total: Tensor | float
    terms: Mapping[str, Tensor | float]
    stats: Mapping[str, Any]
    norm: Tensor | float | None
    limit: float = math.inf


def is_finite(entry: Entry) -> bool:
    """Tell whether the total and the gradient are finite, and the total within its phase's limit."""
    norm = entry.norm
    return within_limit(entry) and (norm is None or math.isfinite(float(norm)))


def within_limit(entry: Entry) -> bool:
    """Tell whether the total is finite and within its phase's limit."""
    total = float(entry.total)
    return math.isfinite(total) and abs(total) <= entry.limit


def to_json(entry: Entry) -> dict[str, Any]:
    """Return a settled entry as JSON values; JSON has no NaN, so numbers travel as text."""
    texts = {key: _converted(getattr(entry, key), lambda x: repr(float(x))) for key in _NUMBERS}
    return {"phase": entry.phase, "step": entry.step, **texts}


def from_json(values: Mapping[str, Any]) -> Entry:
    """Return what `to_json` wrote."""
    # States of before totals had a limit lack it.
    numbers = {key: _converted(values[key], float) for key in _NUMBERS if key in values}
    return Entry(values["phase"], values["step"], **numbers)


def _converted(value: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: convert(number) for name, number in value.items()}
    return None if value is None else convert(value)


class PhaseRun:
    """A phase with its optimiser."""

    def __init__(self, phase: Phase, others: Mapping[str, PhaseRun], processes: Processes) -> None:
        self.phase = phase
        self.processes = processes
        pairs = phase.trainable()
        self.parameters = [parameter for parameter, _ in pairs]
        self.weighting = phase.weighting
        own = getattr(phase.weighting, "parameters", None)
        self.weighting_parameters: list[nn.Parameter] = list(own()) if own is not None else []
        self.moved = self.parameters + self.weighting_parameters
        self.schedule = make_schedule(phase.schedule)
        self.owner = self if phase.shares is None else others[phase.shares]
        if self.owner is self:
            self.optimizer = self._make_optimizer(pairs)
            self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        else:
            self.optimizer = self.owner.optimizer
            known = {id(parameter) for parameter in self.owner.moved}
            if any(id(parameter) not in known for parameter in self.moved):
                raise ConfigError(
                    f'Phase "{phase.name}" shares the optimiser of "{phase.shares}" but moves parameters '
                    "that the other does not."
                )

    def _make_optimizer(self, pairs: Sequence[tuple[nn.Parameter, bool]]) -> Optimizer:
        phase = self.phase
        decayed = [parameter for parameter, decay in pairs if decay]
        plain = [parameter for parameter, decay in pairs if not decay] + self.weighting_parameters
        settings: dict[str, Any] = {"lr": phase.lr, "weight_decay": phase.weight_decay}
        groups = [{"params": decayed, **settings}, {"params": plain, **settings, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if phase.optimizer is not None:
            return phase.optimizer(groups)
        return AdamW(groups, phase.betas)

    def update(self, batch: Batch, context: Context, autocast: AbstractContextManager[Any]) -> Entry:
        """Take one step of this phase. `total` in the result is not checked yet."""
        phase = self.phase
        with autocast:
            if phase.step is not None:
                terms = phase.step(batch, context)
                total = self._objective(terms).detach()
            else:
                assert phase.loss is not None
                terms = phase.loss(batch, context)
                total = self._objective(terms)
        entry = Entry(
            phase.name,
            context.step + 1,
            total.detach(),
            {name: value.detach() for name, value in terms.values.items()},
            terms.stats,
            None,
            math.inf if phase.limit is None else phase.limit,
        )
        alone = self.processes.size == 1
        # Reading a number is free on the processor, and stops a poisoned update before it happens.
        # On a GPU it would stall the queue; there the loop looks at log steps and before saving.
        if alone and total.device.type == "cpu" and not within_limit(entry):
            return entry
        if phase.step is None:
            total.backward(inputs=self.moved)
        if not alone:
            self._average(entry)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if phase.clip is not None and gradients:
            entry.norm = _clip(gradients, phase.clip)
            if entry.norm.device.type == "cpu" and not math.isfinite(entry.norm.item()):
                return entry
        if not alone and entry.norm is None and not within_limit(entry):
            return entry
        if self.owner is self:
            factor = self.schedule(context.step, context.steps)
            for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = rate * factor
        self.optimizer.step()
        for parameter in self.moved:
            parameter.grad = None
        return entry

    def _objective(self, terms: LossTerms) -> Tensor:
        return terms.total() if self.weighting is None else self.weighting(terms)

    def _average(self, entry: Entry) -> None:
        """Average gradients over processes; the total rides along, so all stop at the same NaN."""
        for parameter in self.moved:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        total = torch.as_tensor(entry.total).float().clone()
        self.processes.average([*(p.grad for p in self.moved if p.grad is not None), total])
        entry.total = total


def _clip(gradients: list[Tensor], limit: float) -> Tensor:
    """Scale gradients in place so that their joint norm is at most `limit`; return the norm before."""
    norms = torch._foreach_norm(gradients)
    norm = torch.linalg.vector_norm(torch.stack(list(norms)))
    if norm.device.type == "cpu":
        if norm.item() > limit:
            torch._foreach_mul_(gradients, limit / (norm.item() + 1e-6))
    else:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def split_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's state as tensors by "parameter.key", and plain values."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        plain[str(index)] = {}
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                plain[str(index)][key] = value
    return tensors, {"state": plain}


def join_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Put back what `split_optimizer` took apart; the groups' settings come from the run itself."""
    state: dict[int, dict[str, Any]] = {int(i): dict(entries) for i, entries in plain["state"].items()}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state[int(index)][key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
