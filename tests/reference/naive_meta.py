"""Meta-learning written a second time, plainly: NumPy in float64, and copies of whole modules.

Nothing here is fast, and nothing is shared with `fewgen.training.meta`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch

Weights = dict[str, np.ndarray]


# ------------------------------------------------------------------ a small net without autograd


def net_loss(w: Weights, x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean squared error of tanh(x A + a) B + b."""
    out = np.tanh(x @ w["A"] + w["a"]) @ w["B"] + w["b"]
    return float(((out - y) ** 2).mean())


def net_gradient(w: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    """Return the gradient of `net_loss`, derived by hand."""
    h = np.tanh(x @ w["A"] + w["a"])
    r = 2.0 * (h @ w["B"] + w["b"] - y) / y.size
    back = (r @ w["B"].T) * (1.0 - h**2)
    return {"A": x.T @ back, "a": back.sum(0), "B": h.T @ r, "b": r.sum(0)}


# ------------------------------------------------------------------ inner loop and meta-objective


def path(
    gradient: Callable[[Weights], Weights],
    start: Weights,
    steps: int,
    lr: float | dict[str, float],
    *,
    rule: str = "sgd",
    moved: tuple[str, ...] = (),
    decay: float = 1.0,
    betas: tuple[float, float] = (0.0, 0.999),
    eps: float = 1e-8,
) -> list[Weights]:
    """Return the weights before the first and after every update.

    The rate, or that of each name, is `lr` in the first update, `decay * lr` in the last, and on a line between.
    """
    names = moved or tuple(start)
    shares = [1.0] if steps == 1 else list(np.linspace(1.0, decay, steps))
    of_name = lr if isinstance(lr, dict) else dict.fromkeys(names, lr)
    mean = {name: np.zeros_like(start[name]) for name in names}
    square = {name: np.zeros_like(start[name]) for name in names}
    points = [{name: value.copy() for name, value in start.items()}]
    for k in range(steps):
        now = {name: value.copy() for name, value in points[-1].items()}
        g = gradient(points[-1])
        for name in names:
            if rule == "sgd":
                now[name] -= shares[k] * of_name[name] * g[name]
                continue
            mean[name] = betas[0] * mean[name] + (1 - betas[0]) * g[name]
            square[name] = betas[1] * square[name] + (1 - betas[1]) * g[name] ** 2
            m_hat = mean[name] / (1 - betas[0] ** (k + 1))
            v_hat = square[name] / (1 - betas[1] ** (k + 1))
            now[name] -= shares[k] * of_name[name] * m_hat / np.sqrt(v_hat + eps**2)
        points.append(now)
    return points


def meta_objective(
    points: list[Weights], query: Callable[[Weights], float], multi_step: float = 0.0
) -> float:
    """Return the query loss at the end, with the share `multi_step` spread evenly over the points before."""
    *early, last = points
    value = (1.0 - multi_step) * query(last) if early else query(last)
    for point in early:
        value += multi_step / len(early) * query(point)
    return value


def differences(f: Callable[[Weights], float], at: Weights, h: float = 1e-5) -> Weights:
    """Return the gradient of `f` by central differences, number by number."""
    result = {}
    for name in at:
        result[name] = np.zeros_like(at[name])
        for index in np.ndindex(at[name].shape):
            values = []
            for sign in (1.0, -1.0):
                moved = {key: value.copy() for key, value in at.items()}
                moved[name][index] += sign * h
                values.append(f(moved))
            result[name][index] = (values[0] - values[1]) / (2.0 * h)
    return result


def quadratic_maml(
    theta: np.ndarray,
    support: tuple[np.ndarray, np.ndarray],
    query: tuple[np.ndarray, np.ndarray],
    rates: list[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the MAML gradient for the losses (t - c)' H (t - c) / 2, and what FOMAML takes for it.

    With g = H_q (t_n - c_q), these are prod_k (I - a_k H_s) g and g.
    """
    (h_s, c_s), (h_q, c_q) = support, query
    end = theta.copy()
    for a in rates:
        end = end - a * h_s @ (end - c_s)
    first_order = h_q @ (end - c_q)
    exact = first_order
    for a in reversed(rates):
        exact = (np.eye(len(theta)) - a * h_s) @ exact
    return exact, first_order


# ------------------------------------------------------------------ the two first-order methods by copying


def adapted_copy(
    module: torch.nn.Module,
    losses: list[Callable[[torch.nn.Module], torch.Tensor]],
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    moved: set[str] | None = None,
) -> torch.nn.Module:
    """Return a deep copy after one update on each of `losses`, with an optimiser of torch itself."""
    clone = copy.deepcopy(module)
    named = dict(clone.named_parameters())
    optimizer = make([value for name, value in named.items() if moved is None or name in moved])
    for loss in losses:
        clone.zero_grad()
        loss(clone).backward()
        optimizer.step()
    return clone


def fomaml_by_copies(module, support, query, steps, make, moved=None) -> dict[str, torch.Tensor]:
    """Return the gradient of the query loss in the adapted copy."""
    clone = adapted_copy(module, [support] * steps, make, moved)
    clone.zero_grad()
    query(clone).backward()
    return {name: value.grad.clone() for name, value in clone.named_parameters() if value.grad is not None}


def reptile_by_copies(module, losses, make, moved=None) -> dict[str, torch.Tensor]:
    """Return the start less the adapted copy."""
    clone = adapted_copy(module, losses, make, moved)
    ends = dict(clone.named_parameters())
    return {
        name: (value - ends[name]).detach()
        for name, value in module.named_parameters()
        if moved is None or name in moved
    }


def norm(weights) -> float:
    """Return the joint Euclidean norm."""
    return math.sqrt(sum(float((value**2).sum()) for value in weights.values()))
