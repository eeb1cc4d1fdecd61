"""Several processes that train one model: averaging and agreeing, and nothing to do when alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewgen.errors import ConfigError


class Processes:
    """This process among those that train together.

    Losses call methods of a network and not its `forward`, and some phases write gradients themselves, so
    gradients are averaged after the fact, as one flat vector, and not by a wrapper around the network.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        device: where this process computes.
    """

    def __init__(self, device: str = "auto", accelerator: Any = None) -> None:
        # accelerate takes as long to import as torch, so a single process does without it.
        if accelerator is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())
        self.accelerator = accelerator
        if accelerator is not None:
            self.rank = int(accelerator.process_index)
            self.size = int(accelerator.num_processes)
            self.device = torch.device(accelerator.device)
        else:
            self.rank, self.size = 0, 1
            self.device = pick_device(device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each floating tensor by its mean over the processes, in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        with torch.no_grad():
            for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def agree(self, modules: Sequence[nn.Module]) -> None:
        """Average the floating buffers (running statistics); take the others from the first process."""
        if self.size == 1:
            return
        buffers = list({id(b): b for module in modules for b in module.buffers()}.values())
        self.average([buffer for buffer in buffers if buffer.is_floating_point()])
        for buffer in buffers:
            if not buffer.is_floating_point():
                torch.distributed.broadcast(buffer, 0)

    def broadcast_module(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                torch.distributed.broadcast(tensor, 0)

    def from_main(self, numbers: Sequence[float]) -> list[float]:
        """Return the first process's numbers, in all processes."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(tensor, 0)
        return [float(value) for value in tensor.tolist()]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        if self.size == 1:
            return flag
        tensor = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return bool(tensor.item() > 0)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every process's tensor (of equal shape), on the host."""
        if self.size == 1:
            return [tensor.cpu()]
        here = tensor.to(self.device)
        parts = [torch.empty_like(here) for _ in range(self.size)]
        torch.distributed.all_gather(parts, here)
        return [part.cpu() for part in parts]

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            torch.distributed.barrier()


def leave() -> None:
    """Leave the group of processes that train together; an exit within it may end in an abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; "auto" is CUDA where there is one.

    Raises:
        ConfigError: if the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f'There is no device "{name}". Use auto, cpu or cuda.') from error
    if device.type == "cuda":
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= n:
            raise ConfigError(f'The device "{name}" is not here: {n} CUDA devices. Use device cpu or auto.')
        return torch.device("cuda", device.index or 0)
    return device
