"""Slow, independent versions of the parts of distillation: NumPy, float64, loops as the papers write them."""

from __future__ import annotations

import math

import numpy as np


def softmax(row: np.ndarray) -> np.ndarray:
    powers = [math.exp(v - max(row)) for v in row]
    return np.array([p / sum(powers) for p in powers])


def kd_row(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cross_entropy_row(logits: np.ndarray, label: int) -> float:
    return -math.log(softmax(logits)[label])


def distillation_loss(student, teacher, labels, sources, temperature, hard_labels) -> float:
    """`sources` names the source of every row; the mean of the supports plus the mean of all others."""
    supports, others = [], []
    for row, target, label, source in zip(student, teacher, labels, sources, strict=True):
        if source == "support":
            supports.append(cross_entropy_row(row, label))
        elif source == "synthetic" and hard_labels:
            others.append(cross_entropy_row(row, label))
        else:
            others.append(kd_row(row, target, temperature))
    return sum(float(np.mean(part)) for part in (supports, others) if part)


def cosine_logits(features, prototypes, scale: float, bias: float) -> np.ndarray:
    found = np.empty((len(features), len(prototypes)))
    for i, f in enumerate(features):
        for j, p in enumerate(prototypes):
            cosine = float(f @ p) / math.sqrt(float(f @ f)) / math.sqrt(float(p @ p))
            found[i, j] = scale * (cosine + bias)
    return found


def prototypes(features: np.ndarray, labels: list[int], n_classes: int) -> np.ndarray:
    return np.stack(
        [
            np.mean([f for f, y in zip(features, labels, strict=True) if y == c], axis=0)
            for c in range(n_classes)
        ]
    )


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Convolution with stride 1 that keeps the size; x (C, H, W), weight (O, C, k, k)."""
    reach = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
    out = np.zeros((len(weight), *x.shape[1:]))
    for dy in range(weight.shape[2]):
        for dx in range(weight.shape[3]):
            window = padded[:, dy : dy + x.shape[1], dx : dx + x.shape[2]]
            out += np.einsum("oc,chw->ohw", weight[:, :, dy, dx], window)
    return out if bias is None else out + bias[:, None, None]


def norm(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    factor = state[f"{name}.weight"] / np.sqrt(var + 1e-5)
    return (x - mean[:, None, None]) * factor[:, None, None] + state[f"{name}.bias"][:, None, None]


def pool(x: np.ndarray) -> np.ndarray:
    height, width = x.shape[1] // 2, x.shape[2] // 2
    return x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2).max(axis=(2, 4))


def conv4(x: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """As published, ReLU before max-pooling; `state` of `Conv4.body`."""
    for i in range(0, 16, 4):
        x = norm(conv(x, state[f"{i}.weight"], state[f"{i}.bias"]), state, f"{i + 1}")
        x = pool(np.maximum(x, 0))
    return x.reshape(-1)


def resnet12(x: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """As published, ReLU before max-pooling; `state` of `ResNet12.body`."""
    for i in range(4):
        y = x
        for j in (0, 3, 6):
            y = norm(conv(y, state[f"{i}.main.{j}.weight"]), state, f"{i}.main.{j + 1}")
            y = np.maximum(y, 0) if j < 6 else y
        skip = norm(conv(x, state[f"{i}.skip.0.weight"]), state, f"{i}.skip.1")
        x = pool(np.maximum(y + skip, 0))
    return x.mean(axis=(1, 2))
