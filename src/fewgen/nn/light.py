"""The light generator: one convolution per size of map, each conditioned on the style.

Shapes: B batch, D numbers of a style, L layers that take a style (`n_layers`), C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.config.checks import choose
from fewgen.nn.stylegan import Noise, by_layers, checked_start

REACH = 4
"""Doublings between the two maps of an excitation: that of 64 pixels comes from that of 4, as published."""

_EPS = 1e-5


class StyleNorm(nn.Module):
    """Batch norm whose scale and shift are linear functions of the style.

    In training the statistics are those of the batch. In evaluation mode they are those that `settle` of the
    network has found, so that an image depends on its own style alone.

    Args:
        channels: of the map.
        w_dim: D.
    """

    def __init__(self, channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = nn.Linear(w_dim, 2 * channels)
        self.observed: list[Tensor] | None = None
        self.settled: Tensor | None = None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (B, channels, h, w) with styles (B, D) to the same shape."""
        if self.observed is not None:
            self.observed.append(torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)]))
        if self.training or self.observed is not None:
            x = functional.batch_norm(x, None, None, training=True, eps=_EPS)
        else:
            assert self.settled is not None, "the light generator has no statistics yet: call settle"
            x = functional.batch_norm(x, self.settled[0], self.settled[1], eps=_EPS)
        scale, shift = self.affine(style)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, x, scale + 1.0)


def gated(x: Tensor) -> Tensor:
    """Return the first half of the channels times the sigmoid of the second (gated linear unit)."""
    # Not `functional.glu`, which is three times slower with channels last.
    value, gate = x.chunk(2, 1)
    return value * torch.sigmoid(gate)


class DoublingConv(nn.Module):
    """A 3 x 3 convolution of the map with each pixel doubled both ways, in less than half of the products.

    Of the nine weights, those that meet the same pixel are added up first: what is left is a transposed
    convolution of 4 x 4 with stride 2.

    Args:
        n_in: channels in.
        n_out: channels out.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Conv2d(n_in, n_out, 3, bias=False).weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, h, w) to (B, n_out, 2 h, 2 w)."""
        sums = x.new_tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        weight = torch.einsum("ka,oiab,lb->iokl", sums.to(self.weight), self.weight, sums.to(self.weight))
        return functional.conv_transpose2d(x, weight, stride=2, padding=1)


class LightBlock(nn.Module):
    """Twice the size, one convolution, conditional norm, gated linear unit."""

    def __init__(self, n_in: int, n_out: int, w_dim: int) -> None:
        super().__init__()
        self.conv = DoublingConv(n_in, 2 * n_out)
        self.norm = StyleNorm(2 * n_out, w_dim)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (B, n_in, h, w) with styles (B, D) to (B, n_out, 2 h, 2 w)."""
        return gated(self.norm(self.conv(x), style))


class Excitation(nn.Module):
    """Skip-layer excitation: a small map says how strong each channel of a larger one is.

    Args:
        n_small: channels of the small map.
        n_large: of the large one.

    Source: Liu et al. 2021, arXiv:2101.04775, Sec. 3.1.
    """

    def __init__(self, n_small: int, n_large: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(n_small, n_large, 4, bias=False)
        self.gate = nn.Conv2d(n_large, n_large, 1, bias=False)

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        """Return `large` (B, n_large, H, W), scaled by what is in `small` (B, n_small, h, w)."""
        x = functional.silu(self.look(functional.adaptive_avg_pool2d(small, 4)))
        return large * torch.sigmoid(self.gate(x))


class LightSynthesis(nn.Module):
    """From styles to images, with the interface of `nn.stylegan.SynthesisNetwork`.

    Args:
        shape: (C, H, W) of an image.
        w_dim: D.
        width: channels of each map, from the smallest to the image's own size.
        output: "tanh" or "linear".

    Attributes:
        n_layers: L, rows of a W+ input: one for each size of map.
        noise_sizes: none; it takes no noise.

    Source: Liu et al. 2021, arXiv:2101.04775 (FastGAN), with one convolution per size as in Sauer et al.
        2021, arXiv:2111.01007; conditional batch norm: Dumoulin et al. 2017, arXiv:1610.07629.
    Differs: made for (quantised) styles. The smallest map is a linear function of the style in place of the
        latent, and every batch norm takes scale and shift from it. No spectral norm, since what a batch norm
        follows has no scale of its own, and no noise. Batch norm keeps no running means: where images are
        drawn, statistics are those of a fixed set of the network's own styles (`settle`; "standing
        statistics" of Brock et al. 2019, arXiv:1809.11096, Appendix D), which fit averaged weights, too.
    """

    noise_sizes: tuple[tuple[int, int], ...] = ()

    def __init__(
        self,
        shape: tuple[int, int, int],
        w_dim: int,
        width: Sequence[int],
        output: Literal["linear", "tanh"] = "tanh",
    ) -> None:
        super().__init__()
        choose("output", output, ("linear", "tanh"))
        self.output, self.shape, self.w_dim = output, shape, w_dim
        h, w, n = checked_start(shape[1], shape[2], width)
        self.start_shape = (2 * width[0], h, w)
        self.n_layers = n + 1
        self.start = nn.Linear(w_dim, 2 * width[0] * h * w, bias=False)
        self.start_norm = StyleNorm(2 * width[0], w_dim)
        self.blocks = nn.ModuleList(LightBlock(width[i], width[i + 1], w_dim) for i in range(n))
        self.reach = min(REACH, n)
        self.excitations = nn.ModuleList(
            Excitation(width[i], width[i + self.reach]) for i in range(n + 1 - self.reach)
        )
        self.to_image = nn.Conv2d(width[-1], shape[0], 3, padding=1)

    def forward(self, styles: Tensor, noise: Noise = "none") -> Tensor:
        """Return images (B, C, H, W): in [-1, 1] with "tanh", near it and not clamped otherwise.

        Args:
            styles: (B, D), the same for all layers, or W+: (B, L, D).
            noise: not used.

        Raises:
            ShapeError: if styles have other shapes.
        """
        by_layer = by_layers(styles, self.n_layers, self.w_dim)
        x = self.start(by_layer[0]).reshape(-1, *self.start_shape)
        # On processors, channels last halves the cost of these convolutions.
        x = gated(self.start_norm(x.contiguous(memory_format=torch.channels_last), by_layer[0]))
        maps = [x]
        for i, block in enumerate(self.blocks):
            x = block(x, by_layer[i + 1])
            from_map = i + 1 - self.reach
            if from_map >= 0:
                x = self.excitations[from_map](maps[from_map], x)
            maps.append(x)
        image: Tensor = self.to_image(x).contiguous()
        return torch.tanh(image) if self.output == "tanh" else image

    @torch.no_grad()
    def settle(self, batches: Iterable[Tensor]) -> None:
        """Find the statistics for evaluation mode: means over batches of styles, (B, D) or (B, L, D)."""
        norms = [module for module in self.modules() if isinstance(module, StyleNorm)]
        for norm in norms:
            norm.observed = []
        try:
            for styles in batches:
                self(styles)
            for norm in norms:
                assert norm.observed
                norm.settled = torch.stack(norm.observed).mean(0)
        finally:
            for norm in norms:
                norm.observed = None
