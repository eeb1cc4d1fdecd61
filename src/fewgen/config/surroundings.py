"""What libraries keep for the whole process: as fewgen needs it during a call, and as it was afterwards."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def own_surroundings() -> Iterator[None]:
    """Within the block torch computes as after its import; afterwards everything is as the caller had it.

    Default type, default device, recording of gradients, inference mode and autocast are those of a new
    process, so that they change no image. The random states of Python, numpy and torch are put back. A
    library that nobody has imported yet is not imported for it.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        if "numpy" in sys.modules:
            import numpy as np

            stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 - the caller's
        if "torch" in sys.modules:
            stack.enter_context(_torch_as_imported())
        yield


@contextlib.contextmanager
def _torch_as_imported() -> Iterator[None]:
    import torch

    dtype = torch.get_default_dtype()
    cpu, on_cuda = torch.get_rng_state(), torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if on_cuda else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                # Within another autocast, one of ours would keep the weights of its first step in 16 bits
                # for all further ones: the cache is emptied by the outermost alone.
                stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
                torch.set_autocast_cache_enabled(False)
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # a device as context costs time in every call of torch
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_rng_state(cpu)
            if on_cuda:
                torch.cuda.set_rng_state_all(cuda)
            elif torch.cuda.is_initialized():  # by the block: as if the caller had been the first to use it
                torch.cuda.manual_seed_all(torch.initial_seed())
