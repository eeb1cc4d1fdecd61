"""A slowly moving copy of a network's weights, which usually generates better than the latest ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewgen.errors import CheckpointError, ConfigError


class EMA:
    """Exponential moving average of a module's parameters; its buffers are copied.

    After n updates the average follows with decay min(decay, (1 + n) / (10 + n)): early on, when the
    weights still move far, it forgets the random start quickly.

    Args:
        module: the network to follow.
        decay: in [0, 1); 0.999 averages over about a thousand steps.

    Source: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging" (averaging);
        the warm-up is that of tf.train.ExponentialMovingAverage (num_updates).
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"EMA decay is {decay}, but it must be in [0, 1).")
        self.decay = decay
        self.n_updates = 0
        self._average = {name: p.detach().clone() for name, p in module.named_parameters()}
        self._buffers = {name: b.detach().clone() for name, b in module.named_buffers()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights; call once per optimiser step."""
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        self.n_updates += 1
        parameters = dict(module.named_parameters())
        buffers = dict(module.named_buffers())
        self._check(parameters, buffers)
        floating = [name for name, p in parameters.items() if p.is_floating_point()]
        if floating:  # a module may hold buffers alone, as a codebook that follows running means does
            torch._foreach_lerp_(
                [self._average[name] for name in floating],
                [parameters[name].detach() for name in floating],
                1.0 - decay,
            )
        for name, p in parameters.items():
            if not p.is_floating_point():
                self._average[name].copy_(p)
        for name, buffer in buffers.items():
            self._buffers[name].copy_(buffer)

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[nn.Module]:
        """Within the block the module holds the averaged weights; afterwards its own, bit for bit."""
        parameters = dict(module.named_parameters())
        buffers = dict(module.named_buffers())
        self._check(parameters, buffers)
        live = {**parameters, **buffers}
        kept = {name: tensor.detach().clone() for name, tensor in live.items()}
        self._write(live, {**self._average, **self._buffers})
        try:
            yield module
        finally:
            self._write(live, kept)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights for good."""
        parameters = dict(module.named_parameters())
        buffers = dict(module.named_buffers())
        self._check(parameters, buffers)
        self._write({**parameters, **buffers}, {**self._average, **self._buffers})

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue, as tensors only (copies)."""
        state = {"n_updates": torch.tensor(self.n_updates)}
        state.update({f"average.{name}": tensor.clone() for name, tensor in self._average.items()})
        state.update({f"buffer.{name}": tensor.clone() for name, tensor in self._buffers.items()})
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: if names or shapes are not those of the followed module; nothing is changed.
        """
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(state))
        wrong += [name for name in own if name in state and own[name].shape != state[name].shape]
        if wrong:
            raise CheckpointError(
                f"The saved weight average does not fit this network: {', '.join(wrong[:5])}"
                + (f" and {len(wrong) - 5} more differ." if len(wrong) > 5 else " differ(s).")
            )
        with torch.no_grad():
            for name, tensor in self._average.items():
                tensor.copy_(state[f"average.{name}"])
            for name, tensor in self._buffers.items():
                tensor.copy_(state[f"buffer.{name}"])
        self.n_updates = int(state["n_updates"])

    def _check(self, parameters: dict[str, nn.Parameter], buffers: dict[str, Tensor]) -> None:
        wrong = sorted((set(parameters) ^ set(self._average)) | (set(buffers) ^ set(self._buffers)))
        if wrong:
            raise CheckpointError(
                f"The weight average follows another network: {', '.join(wrong[:5])} differ(s)."
            )

    @staticmethod
    @torch.no_grad()
    def _write(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        for name, tensor in live.items():
            tensor.copy_(values[name])
