"""What the tests of image encoders share: images, weights, settings."""

import torch

from fewgen.data.imageset import ImageSet
from fewgen.encoders.classifier import ClassifierSettings

QUICK = ClassifierSettings(steps=25, batch_size=16, width=16, dim=8)


def bars(n, size=16, seed=0, channels=1):
    """Two classes, noisy bars across or down, easy to tell apart."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (n, channels, size, size), generator=rng, dtype=torch.uint8)
    labels = torch.arange(n) % 2
    places = torch.randint(2, size - 3, (n,), generator=rng)
    for image, label, place in zip(images, labels, places, strict=True):
        (image if label else image.transpose(1, 2))[:, place : place + 2] = 230
    return ImageSet(images, labels, ("down", "across"), name="bars")


def noise_images(n, size, channels=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, channels, size, size), generator=rng, dtype=torch.uint8)
    return ImageSet(images, torch.zeros(n, dtype=torch.int64), ("all",))


def random_weights(network, seed=0):
    """Weights that keep the size of activations, and batch norms that do something."""
    rng = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if value.ndim >= 2:
            fan_in = value[0].numel()
            weights[name] = torch.randn(value.shape, generator=rng) * (2.0 / fan_in) ** 0.5
        elif name.endswith("running_var") or ("bn" in name and name.endswith(".weight")):
            weights[name] = 0.5 + torch.rand(value.shape, generator=rng)
        else:
            weights[name] = 0.1 * torch.randn(value.shape, generator=rng)
    return weights
