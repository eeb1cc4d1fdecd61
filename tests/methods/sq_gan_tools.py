"""Small models of SQ-GAN and images for them."""

from __future__ import annotations

import hashlib

import torch

from fewgen.config import resolve
from fewgen.data.imageset import ImageSet
from fewgen.fitting.seeds import global_seed
from fewgen.methods.base import DataSpec
from fewgen.methods.sq_gan import SqGan, SqGanConfig
from fewgen.text import ClassText
from fewgen.training.phases import Batch, Context, Pixels

NAMES = ("rows", "columns", "spots")

# Everything that a test relies on is set here: the defaults are tuned for real data, and may move.
SMALL = {
    "network": {
        "z_dim": 8,
        "w_dim": 8,
        "mapping_layers": 1,
        "mapping_lr": 1.0,
        "width": 4,
        "max_width": 8,
        "start": "style",
        "output": "tanh",
        "noise": False,
        "condition": "class",
        "group_size": 2,
        "architecture": "residual",
    },
    "quantizer": {"codebook_size": 16, "code_dim": 4, "weight": 0.01, "restart_after": 0},
    "init": {"kind": "kmeans"},
    "consistency": "qcr",
    "augment": "none",
    "adversarial_augment": "none",
    "r1_gamma": 0.1,
    "r1_every": 4,
    "style_mixing": 0.0,
    "steps": 6,
    "batch_size": 8,
    "lr": 4e-3,
    "discriminator_lr": 4e-3,
    "schedule": "late_decay",
    "beta1": 0.5,
}

KINDS = {
    "default": {},
    "per position": {"quantizer": {"per_position": True}},
    "projected": {"quantizer": {"project": True, "normalize": True}},
    "latents": {"quantizer": {"space": "z"}},
    "every layer": {"quantizer": {"space": "w+"}},
    "running means": {"quantizer": {"update": "ema", "restart_after": 1}},
    "plain": {"quantizer": None},
    "noise": {"network": {"noise": True, "start": "const", "output": "linear"}},
    "no classes": {"network": {"condition": "none"}},
    "words": {"network": {"condition": "text"}},
    "light": {"generator": "light"},
    "light, every layer": {"generator": "light", "quantizer": {"space": "w+"}},
}
"""Names of tests -> settings."""


class Words:
    """A text encoder without a file: a fixed random vector per text."""

    name, path, dim, has_meaning = "words", None, 12, True

    def encode(self, texts):
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.lower().encode()).digest()[:4], "little")
            rows.append(torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows)


def shapes(n_per_class=8, size=8, channels=1, n_classes=3, seed=0):
    """Bars across, bars down, and spots, at random places."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.zeros(n_classes * n_per_class, channels, size, size, dtype=torch.uint8)
    labels = torch.arange(n_classes).repeat_interleave(n_per_class)
    third = size // 4
    for i, label in enumerate(labels.tolist()):
        a, b = (int(v) for v in torch.randint(1, size - third, (2,), generator=rng))
        value = int(torch.randint(150, 255, (1,), generator=rng))
        rows = slice(None) if label == 1 else slice(a, a + third)
        columns = slice(None) if label == 0 else slice(b, b + third)
        images[i, :, rows, columns] = value
    return ImageSet(images, labels, NAMES[:n_classes], name="shapes")


def config_of(*changes):
    """Settings: the small ones and changes."""
    return resolve(SqGanConfig, SMALL, *changes, where="model")


def make(*changes, data=None, seed=0, loud=True, text=True):
    """A fresh small model in evaluation mode; `loud` noise maps matter, though they start without effect."""
    data = shapes() if data is None else data
    table = ClassText.build(Words(), data.class_names) if text else None
    with global_seed(torch.device("cpu"), seed):
        method = SqGan(config_of(*changes), DataSpec.of(data, table))
        for name, parameter in method.named_parameters():
            if loud and "noise_strength" in name:
                torch.nn.init.constant_(parameter, 0.5)
    if method.quantizer is not None:
        # Codes as far apart as styles are.
        for i, table_ in enumerate(method.quantizer.tables()):
            table_.start_from(0.7 * draw(*table_.codes.shape, seed=50 + i))
    return method.eval()


def draw(*shape, seed=0):
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=3):
    """A stream of random numbers."""
    return torch.Generator().manual_seed(seed)


def context_of(data, step=0, steps=10, seed=3):
    """What a loss is given."""
    return Context(step, steps, None, rng(seed), Pixels(data, torch.device("cpu")), None, torch.device("cpu"))


def batch_of(data, n=8):
    """The first images, spread over the classes."""
    where = torch.arange(n) * len(data) // n
    return Batch(data.floats(where), data.labels[where], where)
