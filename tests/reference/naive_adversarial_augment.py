"""Slow, independent versions of the discriminator's augmentations: NumPy, float64, one pixel at a time.

ADA is composed here as its paper does it, one homogeneous matrix per change, multiplied in order.
"""

from __future__ import annotations

import math

import numpy as np
import torch

# --- DiffAugment: each change of one image (C, H, W) ----------------------------------------------------


def brightness(x: np.ndarray, amount: float) -> np.ndarray:
    return x + amount


def saturation(x: np.ndarray, factor: float) -> np.ndarray:
    y = np.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            grey = sum(x[:, i, j]) / len(x)
            y[:, i, j] = grey + factor * (x[:, i, j] - grey)
    return y


def contrast(x: np.ndarray, factor: float) -> np.ndarray:
    mean = float(np.mean(x))
    return mean + factor * (x - mean)


def translation(x: np.ndarray, rows: int, columns: int, padding: str) -> np.ndarray:
    _, height, width = x.shape
    y = np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            a, b = i + rows, j + columns
            if padding == "edge":
                a, b = min(max(a, 0), height - 1), min(max(b, 0), width - 1)
            if 0 <= a < height and 0 <= b < width:
                y[:, i, j] = x[:, a, b]
    return y


def cutout(x: np.ndarray, row: int, column: int) -> np.ndarray:
    _, height, width = x.shape
    y = x.copy()
    for i in range(row, row + math.floor(height / 2 + 0.5)):
        for j in range(column, column + math.floor(width / 2 + 0.5)):
            if 0 <= i < height and 0 <= j < width:
                y[:, i, j] = 0.0
    return y


def diff_augment(x: np.ndarray, policy: list[str], padding: str, draw: dict) -> np.ndarray:
    if "flip" in policy and draw["flip"]:
        x = x[:, :, ::-1]
    if "color" in policy:
        x = contrast(saturation(brightness(x, draw["brightness"]), draw["saturation"]), draw["contrast"])
    if "translation" in policy:
        x = translation(x, *draw["shift"], padding)
    if "cutout" in policy:
        x = cutout(x, *draw["cut"])
    return x


# --- ADA -------------------------------------------------------------------------------------------------


def ada_tables(n: int, rng: torch.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The draws of ADA: gates and parameters (both uniform), normal parameters."""
    gate, u = torch.rand((n, 13), generator=rng), torch.rand((n, 8), generator=rng)
    return gate.double().numpy(), u.double().numpy(), torch.randn((n, 7), generator=rng).double().numpy()


def _scale(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


def _turn(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _move(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def ada_affine(pipeline, flips, rotate_degrees, p, size, gate, u, z) -> np.ndarray:
    """Where a pixel of the result comes from: the inverse of the forward changes, one after another."""
    height, width = size
    forward = np.eye(3)
    if "b" in pipeline:
        if flips and gate[0] < p and u[0] < 0.5:
            forward = _scale(-1, 1) @ forward
        if flips and gate[1] < p:
            forward = _turn(-math.pi / 2 * math.floor(4 * u[1])) @ forward
        if gate[2] < p:
            t = [(2 * value - 1) * 0.125 for value in u[2:4]]
            forward = _move(round(t[0] * width), round(t[1] * height)) @ forward
    if "g" in pipeline:
        limit, p_rotate = math.radians(rotate_degrees), 1 - math.sqrt(1 - p)
        if gate[3] < p:
            forward = _scale(2 ** (0.2 * z[0]), 2 ** (0.2 * z[0])) @ forward
        if gate[4] < p_rotate:
            forward = _turn(-limit * (2 * u[4] - 1)) @ forward
        if gate[5] < p:
            forward = _scale(2 ** (0.2 * z[1]), 2 ** (-0.2 * z[1])) @ forward
        if gate[6] < p_rotate:
            forward = _turn(-limit * (2 * u[5] - 1)) @ forward
        if gate[7] < p:
            forward = _move(0.125 * z[2] * width, 0.125 * z[3] * height) @ forward
    return np.linalg.inv(forward)


def ada_color(flips, p, gate, u, z) -> np.ndarray:
    """The 4 x 4 matrix that acts on (red, green, blue, 1)."""
    v = np.array([1.0, 1.0, 1.0, 0.0]) / math.sqrt(3)
    outer, eye, matrix = np.outer(v, v), np.eye(4), np.eye(4)
    if gate[8] < p:
        shift = np.eye(4)
        shift[:3, 3] = 0.2 * z[4]
        matrix = shift @ matrix
    if gate[9] < p:
        matrix = np.diag([2 ** (0.5 * z[5])] * 3 + [1.0]) @ matrix
    if flips and gate[10] < p and u[6] < 0.5:
        matrix = (eye - 2 * outer) @ matrix
    if gate[11] < p:
        matrix = _around(v[:3], math.pi * (2 * u[7] - 1)) @ matrix
    if gate[12] < p:
        matrix = (outer + (eye - outer) @ np.diag([2 ** z[6]] * 3 + [1.0])) @ matrix
    return matrix


def _around(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation about an axis by the textbook's nine entries."""
    x, y, z = axis
    c, s = math.cos(angle), math.sin(angle)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [c + x * x * (1 - c), x * y * (1 - c) - z * s, x * z * (1 - c) + y * s],
        [y * x * (1 - c) + z * s, c + y * y * (1 - c), y * z * (1 - c) - x * s],
        [z * x * (1 - c) - y * s, z * y * (1 - c) + x * s, c + z * z * (1 - c)],
    ]
    return matrix


def _outside(index: int, size: int, padding: str) -> int | None:
    if padding == "edge":
        return min(max(index, 0), size - 1)
    if padding == "zero":
        return index if 0 <= index < size else None
    if size == 1:
        return 0  # the only pixel mirrors onto itself
    while not 0 <= index < size:
        index = -index if index < 0 else 2 * (size - 1) - index
    return index


def resample(x: np.ndarray, inverse: np.ndarray, padding: str) -> np.ndarray:
    """Bilinear; coordinates are pixels from the middle of the image (C, H, W)."""
    _, height, width = x.shape
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    y = np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            at = inverse @ np.array([j - middle_x, i - middle_y, 1.0])
            across, down = at[0] + middle_x, at[1] + middle_y
            left, top = math.floor(across), math.floor(down)
            for row, share_down in ((top, 1 - (down - top)), (top + 1, down - top)):
                for column, share in ((left, 1 - (across - left)), (left + 1, across - left)):
                    a, b = _outside(row, height, padding), _outside(column, width, padding)
                    if a is not None and b is not None:
                        y[:, i, j] += share_down * share * x[:, a, b]
    return y


def recolor(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Of images with 3 channels; a grey one is made into three equal channels first."""
    three = np.repeat(x, 3, axis=0) if len(x) == 1 else x
    y = np.empty_like(three)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            y[:, i, j] = (matrix @ np.array([*three[:, i, j], 1.0]))[:3]
    return y.mean(axis=0, keepdims=True) if len(x) == 1 else y
