"""Slow, plain ways to compute what initialises the codes of SQ-GAN: loops over NumPy arrays in float64."""

from __future__ import annotations

import math

import numpy as np


def pair_loss(images, texts, of_image, temperature):
    """Two-sided InfoNCE with several images per text, term by term."""
    n, u = len(images), len(texts)
    scores = [[float(images[i] @ texts[j]) / temperature for j in range(u)] for i in range(n)]
    by_image = 0.0
    for i in range(n):
        by_image -= math.log(math.exp(scores[i][of_image[i]]) / sum(math.exp(s) for s in scores[i]))
    by_text = 0.0
    for j in range(u):
        mine = [i for i in range(n) if of_image[i] == j]
        total = sum(math.exp(scores[i][j]) for i in range(n))
        by_text -= sum(math.log(math.exp(scores[i][j]) / total) for i in mine) / len(mine)
    return 0.5 * (by_image / n + by_text / u)


def tokens(codes, d, blocks, weights, scale):
    """The code tokeniser: weights are (W1, b1, W2, b2) of its perceptron."""
    w1, b1, w2, b2 = weights
    out = np.zeros((len(codes), blocks, len(b2)))
    s = codes.shape[1] // d
    per_block = math.ceil(s / blocks)
    for row in range(len(codes)):
        for block in range(blocks):
            x = np.zeros(per_block * d)
            for k in range(per_block):
                code = block * per_block + k
                if code < s:
                    x[k * d : (k + 1) * d] = codes[row, code * d : (code + 1) * d]
            h = w1 @ x + b1
            h = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in h])
            y = w2 @ h + b2
            out[row, block] = scale * (y - y.mean()) / math.sqrt(y.var() + 1e-5)
    return out


def principal_components(features, n):
    """Scores on the first n principal axes by the eigenvectors of the covariance, largest loading positive."""
    x = features - features.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    out = np.zeros((len(x), n))
    for k, i in enumerate(np.argsort(values)[::-1][:n]):
        axis = vectors[:, i]
        out[:, k] = x @ axis * np.sign(axis[np.abs(axis).argmax()])
    return out
