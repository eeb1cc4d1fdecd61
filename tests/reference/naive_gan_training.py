"""Slow, independent versions of the parts of SQ-GAN: nearest codes by loops, and a plain loop that trains a GAN.

The loop has its own optimiser, losses, penalties, schedule and average of weights. It takes the networks as
functions (these have slow versions of their own, `naive_stylegan`) and repeats the method's order of draws.
"""

from __future__ import annotations

import math

import numpy as np
import torch


def quantise(w: np.ndarray, tables: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return quantised rows, indices, and the mean over pieces of the squared distance to the nearest code.

    Args:
        w: (B, s d).
        tables: (T, K, d); T is 1 or s.
    """
    d = tables.shape[2]
    codes, indices, errors = np.empty_like(w), [], []
    for b, row in enumerate(w):
        chosen = []
        for i in range(len(row) // d):
            piece = row[i * d : (i + 1) * d]
            table = tables[min(i, len(tables) - 1)]
            distances = [float(sum((p - q) ** 2 for p, q in zip(piece, code, strict=True))) for code in table]
            best = distances.index(min(distances))
            chosen.append(best)
            errors.append(distances[best])
            codes[b, i * d : (i + 1) * d] = table[best]
        indices.append(chosen)
    return codes, np.array(indices), math.fsum(errors) / len(errors)


def perplexity(indices: np.ndarray) -> float:
    """2 to the entropy in bits of how often each code is chosen."""
    counts = [int((indices == k).sum()) for k in np.unique(indices)]
    total = sum(counts)
    return 2.0 ** -sum(n / total * math.log2(n / total) for n in counts)


class Adam:
    """Adam as in its paper (Kingma & Ba 2015, Algorithm 1), one tensor at a time."""

    def __init__(self, parameters, beta1: float, beta2: float, eps: float = 1e-8) -> None:
        self.parameters = list(parameters)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.t = [0] * len(self.parameters)

    @torch.no_grad()
    def step(self, gradients, lr: float) -> None:
        """Move each parameter that has a gradient."""
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            if g is None:
                continue
            self.t[i] += 1
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * g * g
            m = self.m[i] / (1 - self.beta1 ** self.t[i])
            v = self.v[i] / (1 - self.beta2 ** self.t[i])
            p -= lr * m / (v.sqrt() + self.eps)


def lr_factor(step: int, steps: int) -> float:
    """1 over the first half, then a line to 0.05 at the end."""
    done = step / steps
    return 1.0 if done <= 0.5 else 1.0 - 0.95 * (done - 0.5) / 0.5


def _log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return -torch.log1p(torch.exp(-x))


def train(mapping, synthesis, discriminator, batches, rng, steps: int, settings: dict, ema_decay: float):
    """Train as StyleGAN2 does: logistic losses, lazy R1, lazy path length; return the losses of every step.

    Args:
        mapping: (z, c) -> styles.
        synthesis: (styles, maps) -> images; `noise_sizes` of it are the maps' sizes.
        discriminator: (images, c) -> logits.
        batches: of each step, (images (B, C, H, W) in [-1, 1], conditions (B, c_dim) or None).
        rng: of latents and noise.
        steps: how many.
        settings: lr, discriminator_lr, beta1, r1_gamma, r1_every, path_weight, path_every, noise, z_dim.
        ema_decay: of the averaged weights of the generator.

    Returns:
        For each step a dictionary with "real", "fake", "adversarial", and where due "r1" and "path"; and the
        averaged parameters of mapping and synthesis, by name.
    """
    s = settings
    generator = [*mapping.parameters(), *synthesis.parameters()]
    judge = list(discriminator.parameters())
    adam_g = Adam(generator, s["beta1"], 0.99)
    adam_d = Adam(judge, s["beta1"], 0.99)
    names = [f"{i}.{n}" for i, net in enumerate((mapping, synthesis)) for n, _ in net.named_parameters()]
    average = [p.detach().clone() for p in generator]
    mean_length = 0.0
    log = []

    def maps(n):
        if not s["noise"]:
            return "none"
        return [torch.randn(n, 1, h, w, generator=rng) for h, w in synthesis.noise_sizes]

    for step in range(steps):
        images, c = batches[step]
        n = len(images)
        factor = lr_factor(step, steps)
        z = torch.randn(n, s["z_dim"], generator=rng)
        noise = maps(n)
        fake = synthesis(mapping(z, c), noise)
        seen = {}

        real = -_log_sigmoid(discriminator(images, c)).mean()
        false = -_log_sigmoid(-discriminator(fake.detach(), c)).mean()
        adam_d.step(
            torch.autograd.grad(real + false, judge, allow_unused=True), s["discriminator_lr"] * factor
        )
        seen["real"], seen["fake"] = float(real.detach()), float(false.detach())

        if s["r1_gamma"] and step % s["r1_every"] == 0:
            x = images.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(discriminator(x, c).sum(), x, create_graph=True)
            r1 = sum((one * one).sum() for one in slope) / n
            loss = s["r1_every"] * s["r1_gamma"] / 2 * r1
            adam_d.step(torch.autograd.grad(loss, judge, allow_unused=True), s["discriminator_lr"] * factor)
            seen["r1"], seen["r1_total"] = float(r1.detach()), float(loss.detach())

        fooled = -_log_sigmoid(discriminator(fake, c)).mean()
        adam_g.step(torch.autograd.grad(fooled, generator, allow_unused=True), s["lr"] * factor)
        seen["adversarial"] = float(fooled.detach())

        if s["path_weight"] and step % s["path_every"] == 0:
            styles = mapping(torch.randn(n, s["z_dim"], generator=rng), c)
            pictures = synthesis(styles, maps(n))
            y = torch.randn(pictures.shape, generator=rng) / math.sqrt(pictures.shape[2] * pictures.shape[3])
            (slope,) = torch.autograd.grad((pictures * y).sum(), styles, create_graph=True)
            lengths = slope.norm(dim=1)
            mean_length = mean_length + 0.01 * (float(lengths.detach().mean()) - mean_length)
            path = sum((one - mean_length) ** 2 for one in lengths) / n
            loss = s["path_weight"] * s["path_every"] * path
            adam_g.step(torch.autograd.grad(loss, generator, allow_unused=True), s["lr"] * factor)
            seen["path"], seen["path_total"] = float(path.detach()), float(loss.detach())

        decay = min(ema_decay, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, generator, strict=True)]
        log.append(seen)
    return log, dict(zip(names, average, strict=True))
