"""Optimisers without the optimiser base class of torch.

Constructing any `torch.optim.Optimizer` imports torch's compiler, which takes about as long as importing
torch itself; a command that trains for seconds would spend half of them there. The rules of
`training.meta.inner` are something else: they change nothing in place, so that they can be differentiated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AdamW:
    """Adam with decoupled weight decay, over groups of parameters.

    The arithmetic is torch's own fused kernel, and the state has the layout of `torch.optim.AdamW`.

    Args:
        groups: each with `params`, `lr` and `weight_decay`.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the root of the second mean.

    Source: Loshchilov, Hutter 2019, "Decoupled weight decay regularization", arXiv:1711.05101, Alg. 2.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.param_groups = [dict(group) for group in groups]
        self.betas = betas
        self.eps = eps
        self.state: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._index = {id(p): i for i, p in enumerate(parameters)}
        self._fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self._state_of(p) for p in parameters]
            adamw(
                parameters,
                [p.grad for p in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=self._fused,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=self.eps,
                maximize=False,
            )

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        index = self._index[id(parameter)]
        state = self.state.get(index)
        if state is None:
            # The fused CUDA kernel wants the counter beside the parameter.
            state = self.state[index] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the layout of `torch.optim.AdamW`."""
        groups = []
        for group in self.param_groups:
            plain = {key: value for key, value in group.items() if key != "params"}
            groups.append({**plain, "params": [self._index[id(p)] for p in group["params"]]})
        return {"state": {i: dict(state) for i, state in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; learning rates stay as they are.

        Raises:
            ValueError: if the state is not of these parameters.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        loaded = {}
        for index, entries in state["state"].items():
            if not 0 <= index < len(parameters) or set(entries) != {"step", "exp_avg", "exp_avg_sq"}:
                raise ValueError(f"optimiser state {index} does not fit")
            parameter = parameters[index]
            if any(entries[key].shape != parameter.shape for key in ("exp_avg", "exp_avg_sq")):
                raise ValueError(f"optimiser state {index} has another shape")
            loaded[index] = {
                key: value.detach().clone().to(parameter.device) for key, value in entries.items()
            }
        self.state = loaded


class SGD:
    """Stochastic gradient descent with momentum, over groups of parameters.

    Args:
        groups: each with `params` and `lr`.
        momentum: decay of the running sum of gradients.
        weight_decay: this multiple of a parameter is added to its gradient.

    Source: Sutskever et al. 2013, PMLR 28(3), in the form of `torch.optim.SGD`: v <- m v + g, p <- p - lr v.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, weight_decay: float) -> None:
        self.param_groups = groups
        self.momentum, self.weight_decay = momentum, weight_decay
        self._velocity: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.add(parameter, alpha=self.weight_decay)
                velocity = self._velocity.get(parameter)
                if velocity is None:
                    velocity = self._velocity[parameter] = gradient
                else:
                    velocity.mul_(self.momentum).add_(gradient)
                parameter.add_(velocity, alpha=-group["lr"])


Optimizer = torch.optim.Optimizer | AdamW | SGD
"""Any of them: has `param_groups` and `step()`."""
