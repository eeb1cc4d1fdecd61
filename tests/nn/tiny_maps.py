"""A frozen network of a moment's work with the interface of the real ones."""

import torch
from torch import nn
from torch.nn import functional

from fewgen.encoders.named import ENCODERS, NamedEncoder


class TinyMaps:
    """Random convolutions that show maps of 4, 6, 8 and 10 channels at strides 4, 8, 16 and 32."""

    name, dim = "tiny", 10

    def __init__(self, side=32, seed=0):
        self.side = side
        rng = torch.Generator().manual_seed(seed)
        self.network = nn.Sequential(
            *(
                nn.Conv2d(n, m, 2 * stride - 1, stride, stride - 1, bias=False)
                for n, m, stride in ((3, 4, 4), (4, 6, 2), (6, 8, 2), (8, 10, 2))
            )
        ).requires_grad_(False)
        for layer in self.network:
            layer.weight.copy_(
                torch.randn(layer.weight.shape, generator=rng) / layer.weight[0].numel() ** 0.5
            )

    def maps(self, x):
        assert x.shape[2:] == (self.side, self.side)
        x = x.expand(-1, 3, -1, -1)
        found = {}
        for layer, stride in zip(self.network, (4, 8, 16, 32), strict=True):
            x = functional.leaky_relu(layer(x), 0.2)
            found[stride] = x
        return found


def offer(monkeypatch, seed=0):
    """Make it an encoder by name, "tiny"."""
    entry = NamedEncoder(
        "random maps",
        lambda option, at_hand: TinyMaps(int(option), seed),
        option="[PIXELS]",
        sha256=lambda option: f"{seed:064d}",
        maps=True,
    )
    monkeypatch.setitem(ENCODERS, "tiny", entry)
