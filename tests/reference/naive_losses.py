"""Slow, independent versions of the losses: NumPy, float64, loops as the papers write them."""

from __future__ import annotations

import math

import numpy as np


def rbf(a: np.ndarray, b: np.ndarray, gammas: list[float]) -> float:
    d2 = float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    return sum(math.exp(-gamma * d2) for gamma in gammas) / len(gammas)


def mmd2(a: np.ndarray, b: np.ndarray, gammas: list[float], unbiased: bool = False) -> float:
    n, m = len(a), len(b)
    skip = unbiased
    aa = sum(rbf(a[i], a[j], gammas) for i in range(n) for j in range(n) if not (skip and i == j))
    bb = sum(rbf(b[i], b[j], gammas) for i in range(m) for j in range(m) if not (skip and i == j))
    ab = sum(rbf(a[i], b[j], gammas) for i in range(n) for j in range(m))
    if unbiased:
        return aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * ab / (n * m)
    return aa / n**2 + bb / m**2 - 2 * ab / (n * m)


def mmd2_per_class(a, b, labels_a, labels_b, gammas, unbiased=False) -> float:
    values = []
    for k in sorted(set(labels_a.tolist()) & set(labels_b.tolist())):
        mine, theirs = a[labels_a == k], b[labels_b == k]
        if unbiased and min(len(mine), len(theirs)) < 2:
            continue
        values.append(mmd2(mine, theirs, gammas, unbiased))
    return float(np.mean(values)) if values else 0.0


def median_sq_distance(x: np.ndarray, labels: np.ndarray | None = None) -> float:
    found = []
    for i in range(len(x)):
        for j in range(len(x)):
            d2 = float(np.sum((x[i] - x[j]) ** 2))
            if d2 > 1e-9 and (labels is None or labels[i] == labels[j]):
                found.append(d2)
    found.sort()
    return found[(len(found) - 1) // 2]


def supervised_contrastive(features: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    v = [f / np.linalg.norm(f) for f in features]
    anchors = []
    for i in range(len(v)):
        positives = [p for p in range(len(v)) if p != i and labels[p] == labels[i]]
        if not positives:
            continue
        normalizer = sum(math.exp(v[i] @ v[a] / temperature) for a in range(len(v)) if a != i)
        anchors.append(
            -sum(v[i] @ v[p] / temperature - math.log(normalizer) for p in positives) / len(positives)
        )
    return float(np.mean(anchors)) if anchors else 0.0


def supervised_contrastive_wrong_mask(features: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The mask `torch.eq(labels, labels.T)` of a 1-D tensor: every pair counts as positive."""
    return supervised_contrastive(features, np.zeros_like(labels), temperature)


def nt_xent(features: np.ndarray, partner: list[int], temperature: float) -> float:
    """Chen et al. 2020 (SimCLR), Eq. 1: cross-entropy of each sample's one partner."""
    v = features / np.linalg.norm(features, axis=1, keepdims=True)
    losses = []
    for i, j in enumerate(partner):
        logits = [v[i] @ v[a] / temperature for a in range(len(v)) if a != i]
        losses.append(-(v[i] @ v[j] / temperature) + math.log(sum(math.exp(s) for s in logits)))
    return float(np.mean(losses))


def nearest(z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Index of the nearest code of each row, by comparing with all of them."""
    result = []
    for row in z:
        distances = [float(np.sum((row - code) ** 2)) for code in codes]
        result.append(distances.index(min(distances)))
    return np.array(result)


def ema_step(codes, cluster_size, code_sum, z, index, decay, laplace=1e-5):
    """One running-mean update of one table, code by code."""
    k = len(codes)
    cluster_size, code_sum, codes = cluster_size.copy(), code_sum.copy(), codes.copy()
    for c in range(k):
        mine = z[index == c]
        cluster_size[c] = decay * cluster_size[c] + (1 - decay) * len(mine)
        code_sum[c] = decay * code_sum[c] + (1 - decay) * mine.sum(0)
    total = cluster_size.sum()
    for c in range(k):
        codes[c] = code_sum[c] / ((cluster_size[c] + laplace) / (total + k * laplace) * total)
    return codes, cluster_size, code_sum
