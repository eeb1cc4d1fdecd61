"""A slowly moving copy of a network's weights, which usually generates better than the latest ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewgen.config.checks import below_one
from fewgen.errors import CheckpointError

_AVERAGED = "average."
_COPIED = "buffer."


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
        below_one("EMA decay", decay)
        self.decay = decay
        self.n_updates = 0
        self._kept = {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights; call once per optimiser step."""
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        self.n_updates += 1
        live = self._live(module)
        moving = [name for name, x in live.items() if name.startswith(_AVERAGED) and x.is_floating_point()]
        if moving:  # a module may hold buffers alone, as a codebook that follows running means does
            torch._foreach_lerp_(
                [self._kept[name] for name in moving], [live[name].detach() for name in moving], 1.0 - decay
            )
        _copy({name: self._kept[name] for name in live.keys() - set(moving)}, live)

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[nn.Module]:
        """Within the block the module holds the averaged weights; afterwards its own, bit for bit."""
        live = self._live(module)
        own = {name: tensor.detach().clone() for name, tensor in live.items()}
        _copy(live, self._kept)
        try:
            yield module
        finally:
            _copy(live, own)

    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights for good."""
        _copy(self._live(module), self._kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue, as tensors only (copies)."""
        kept = {name: tensor.clone() for name, tensor in self._kept.items()}
        return {"n_updates": torch.tensor(self.n_updates), **kept}

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
        _copy(self._kept, state)
        self.n_updates = int(state["n_updates"])

    def _live(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of the followed module by their names in the state."""
        live = _tensors(module)
        wrong = sorted(name.partition(".")[2] for name in set(live) ^ set(self._kept))
        if wrong:
            raise CheckpointError(
                f"The weight average follows another network: {', '.join(wrong[:5])} differ(s)."
            )
        return live


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = {f"{_AVERAGED}{name}": p for name, p in module.named_parameters()}
    return {**parameters, **{f"{_COPIED}{name}": b for name, b in module.named_buffers()}}


@torch.no_grad()
def _copy(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in targets.items():
        tensor.copy_(values[name])
