"""Style-based generator and residual discriminator (StyleGAN2), in pure torch, from 8 to 1024 pixels.

Shapes: B batch, Z numbers of the latent, D numbers of a style, L layers that take a style (`n_layers`),
C channels, H x W pixels. An image of H x W pixels starts from a map of h x w, both from 4 to 7, that is
doubled `n` times: 28 = 7 * 2^2, 32 = 4 * 2^3, 256 = 4 * 2^6. With sizes that are powers of 2 the networks
are those of the paper's public code, number by number, and take its weights (`nn.stylegan_weights`).

Source: Karras et al. 2020, arXiv:1912.04958 (StyleGAN2); layer details of Karras et al. 2020,
    arXiv:2006.06676 (StyleGAN2-ADA).
Differs: modulation scales the input of an ordinary convolution and demodulation its output, which is the same
    function as modulating the weights, and the faster one without grouped convolutions; sizes that are no
    powers of 2; the start from the style; no half precision layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewgen.config.checks import choose
from fewgen.errors import ConfigError, ShapeError

GAIN = math.sqrt(2.0)
"""Keeps the variance of what passes a leaky ReLU of slope 0.2."""

Noise = Literal["fixed", "none"] | Sequence[Tensor]
"""Where the pixel noise comes from: the layer's own fixed map, nowhere, or a drawn map for each layer."""


def start_size(height: int, width: int) -> tuple[int, int, int]:
    """Return (h, w, n): the map that is doubled `n` times to the image.

    Raises:
        ConfigError: if the size is no such product; names the nearest that is.

    >>> start_size(28, 28), start_size(256, 256)
    ((7, 7, 2), (4, 4, 6))
    """
    n = 0
    while min(height, width) >> (n + 1) >= 4 and height % 2 ** (n + 1) == 0 and width % 2 ** (n + 1) == 0:
        n += 1
    h, w = height >> n, width >> n
    if n == 0 or not (4 <= min(h, w) <= 7 and max(h, w) <= 28):
        side = min(height, width)
        good = [base << k for k in range(1, 9) for base in (4, 5, 6, 7)]
        nearest = min(good, key=lambda size: (abs(size - side), size))
        raise ConfigError(
            f"Style-based networks cannot make images of {height} x {width} pixels: each side must be 4 to 7 "
            f"doubled once or more (8, 10, 12, 14, 16, 20, 24, 28, 32, ...). Use size {nearest}."
        )
    return h, w, n


def checked_start(height: int, width: int, channels: Sequence[int]) -> tuple[int, int, int]:
    """Return `start_size`, after a check that there are channels for each map."""
    h, w, n = start_size(height, width)
    if len(channels) != n + 1:
        raise ConfigError(
            f"Images of {height} x {width} pixels pass {n + 1} sizes of map, got channels for "
            f"{len(channels)}: {', '.join(str(c) for c in channels)}."
        )
    return h, w, n


def by_layers(styles: Tensor, n_layers: int, w_dim: int) -> tuple[Tensor, ...]:
    """Return the style of each layer, (B, D) each, of styles (B, D) or W+ (B, L, D).

    Raises:
        ShapeError: if they have another shape.
    """
    if styles.ndim == 2:
        styles = styles[:, None].expand(-1, n_layers, -1)
    if styles.ndim != 3 or styles.shape[1:] != (n_layers, w_dim):
        raise ShapeError(
            f"Synthesis takes styles (B, {w_dim}) or (B, {n_layers}, {w_dim}), got {tuple(styles.shape)}."
        )
    return styles.unbind(1)


def channels_per_map(n: int, base: int, most: int) -> tuple[int, ...]:
    """Return channels of the n + 1 maps from the smallest: `base` for the largest, doubled down to `most`.

    >>> channels_per_map(3, 32, 64)
    (64, 64, 64, 32)
    """
    return tuple(min(most, base << (n - i)) for i in range(n + 1))


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, without its gain."""
    return functional.leaky_relu(x, 0.2)


def normalize_second_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Scale each row (B, D) to a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()


class EqualLinear(nn.Module):
    """Linear map whose weights are stored with unit variance and scaled when used.

    Args:
        n_in: numbers in.
        n_out: numbers out.
        activation: leaky ReLU with gain after it.
        lr_multiplier: factor on the effective learning rate; stored weights are divided by it.
        bias: value at the start; None: no bias.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        activation: bool = False,
        lr_multiplier: float = 1.0,
        bias: float | None = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_multiplier)
        self.bias = None if bias is None else nn.Parameter(torch.full((n_out,), float(bias)))
        self.activation = activation
        self.weight_gain = lr_multiplier / math.sqrt(n_in)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        bias: Tensor | None = self.bias
        if bias is not None and self.bias_gain != 1.0:
            bias = bias * self.bias_gain
        x = functional.linear(x, self.weight * self.weight_gain, bias)
        return leaky(x) * GAIN if self.activation else x


class EqualConv(nn.Module):
    """Convolution with scaled weights, same size or halved by a low-pass filter and a stride.

    Args:
        n_in: channels in.
        n_out: channels out.
        kernel: side, odd.
        down: halve height and width.
        activation: leaky ReLU after it.
        bias: whether there is one.
        gain: of the output, on top of the activation's.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        *,
        down: bool = False,
        activation: bool = True,
        bias: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None
        self.weight_gain = 1.0 / math.sqrt(n_in * kernel * kernel)
        self.kernel, self.down, self.activation = kernel, down, activation
        self.gain = gain * (GAIN if activation else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, H, W) to (B, n_out, H, W), or half of both sides."""
        # A positive gain passes through a leaky ReLU: on weights it costs nothing, on maps a pass over them.
        weight = self.weight * (self.weight_gain * self.gain)
        bias: Tensor | None = self.bias
        if bias is not None and self.gain != 1.0:
            bias = bias * self.gain
        if not self.down:
            x = functional.conv2d(x, weight, bias, padding=self.kernel // 2)
        elif self.kernel == 1:
            x = functional.conv2d(blur(x, 1, stride=2), weight, bias)
        else:
            pad = self.kernel // 2 + 1
            x = functional.conv2d(blur(x, pad), weight, bias, stride=2)
        return functional.leaky_relu_(x, 0.2) if self.activation else x


def _binomial(x: Tensor, gain: float) -> Tensor:
    """Return the kernel [1, 3, 3, 1] in both directions, of sum `gain`, for each channel: (C, 1, 4, 4)."""
    values = [[gain * a * b / 64.0 for b in (1, 3, 3, 1)] for a in (1, 3, 3, 1)]
    # Made on the host and sent without waiting: `new_tensor` would make the host wait for a GPU each time.
    kernel = torch.tensor(values, dtype=x.dtype).to(x.device, non_blocking=True)
    return kernel.expand(x.shape[1], 1, 4, 4)


def blur(x: Tensor, padding: int, gain: float = 1.0, stride: int = 1) -> Tensor:
    """Filter with the binomial kernel [1, 3, 3, 1] in both directions.

    Args:
        x: (B, C, H, W).
        padding: zeros on each side.
        gain: factor on the result.
        stride: 2 keeps every second pixel.
    """
    return functional.conv2d(x, _binomial(x, gain), stride=stride, padding=padding, groups=x.shape[1])


def upsample(x: Tensor) -> Tensor:
    """Double height and width of (B, C, H, W) with the binomial kernel, zeros outside."""
    return functional.conv_transpose2d(x, _binomial(x, 4.0), stride=2, padding=1, groups=x.shape[1])


class MappingNetwork(nn.Module):
    """From latents, and a condition if there is one, to styles.

    Args:
        z_dim: Z; 0 for a network of the condition alone.
        w_dim: D.
        n_layers: fully connected layers. 0: a style is the latent with the embedded condition behind it.
        c_dim: numbers of the condition (a one-hot class, a text vector); 0: none.
        lr_multiplier: of its layers. The published 0.01 is for millions of images; a network that
            sees thousands needs more.

    Source: Karras et al. 2020, arXiv:2006.06676 (public code).
    """

    def __init__(
        self, z_dim: int, w_dim: int, n_layers: int = 8, c_dim: int = 0, lr_multiplier: float = 0.01
    ) -> None:
        super().__init__()
        if z_dim + c_dim < 1 or w_dim < 1 or n_layers < 0:
            raise ConfigError(
                "A mapping network needs at least one input and one output, "
                f"got z_dim {z_dim}, c_dim {c_dim}, w_dim {w_dim}, n_layers {n_layers}."
            )
        embedded = w_dim if n_layers else w_dim - z_dim
        if not n_layers and (embedded < 1 if c_dim else embedded != 0):
            needed, more = ("fewer than", " and the class") if c_dim else ("as many as", "")
            raise ConfigError(
                f"Without mapping layers a style is the latent{more}: z_dim must be {needed} w_dim {w_dim}, "
                f"got {z_dim}."
            )
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.embed = EqualLinear(c_dim, embedded) if c_dim else None
        width = z_dim + (w_dim if c_dim else 0)
        self.layers = nn.ModuleList(
            EqualLinear(width if i == 0 else w_dim, w_dim, activation=True, lr_multiplier=lr_multiplier)
            for i in range(n_layers)
        )

    def forward(self, z: Tensor | None, c: Tensor | None = None) -> Tensor:
        """Map z (B, Z) and c (B, c_dim) to styles (B, D).

        Raises:
            ShapeError: if either is missing or has another width.
        """
        parts = []
        for name, x, width in (("z", z, self.z_dim), ("c", c, self.c_dim)):
            found = 0 if x is None else x.shape[-1]
            if found != width:
                raise ShapeError(f"The mapping network takes {name} of width {width}, got {found}.")
        if self.z_dim and z is not None:
            parts.append(normalize_second_moment(z))
        if self.embed is not None and c is not None:
            parts.append(normalize_second_moment(self.embed(c)))
        x = torch.cat(parts, 1)
        for layer in self.layers:
            x = layer(x)
        return x


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by a style.

    y_o = d_o sum_i conv(s_i x_i, w_oi) with d_o = (sum_i,k (s_i w_oik)^2)^(-1/2) if `demodulate`.

    Args:
        n_in: channels in.
        n_out: channels out.
        kernel: side, odd.
        w_dim: D.
        up: double height and width.
        demodulate: divide by the expected norm of the output.

    Source: Karras et al. 2020, arXiv:1912.04958, Sec. 2.2, Eq. 1 and 3.
    """

    def __init__(
        self, n_in: int, n_out: int, kernel: int, w_dim: int, *, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.affine = EqualLinear(w_dim, n_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel))
        self.kernel, self.up, self.demodulate = kernel, up, demodulate
        self.style_gain = 1.0 if demodulate else 1.0 / math.sqrt(n_in * kernel * kernel)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (B, n_in, h, w) with styles (B, D) to (B, n_out, h, w), or twice both sides."""
        y, factor = self.parts(x, style)
        return y if factor is None else y * factor[:, :, None, None]

    def parts(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the convolution before demodulation, and d (B, n_out) to multiply it with, or None."""
        scale = self.affine(style)
        if self.style_gain != 1.0:
            scale = scale * self.style_gain
        if self.kernel == 1 and not self.up:
            # Without neighbours it is a product of matrices, and to scale the weights is less than the map.
            weight = self.weight.flatten(1) * scale[:, None]
            y = torch.bmm(weight, x.flatten(2)).unflatten(2, x.shape[2:])
        else:
            y = x * scale[:, :, None, None]
            if self.up:
                y = functional.conv_transpose2d(y, self.weight.transpose(0, 1), stride=2)
                y = blur(y, 1, gain=4.0)
            else:
                y = functional.conv2d(y, self.weight, padding=self.kernel // 2)
        if not self.demodulate:
            return y, None
        # sum over i and k of (s_i w_oik)^2 as a product of two small matrices.
        norms = scale.square() @ self.weight.square().sum((2, 3)).T
        return y, (norms + 1e-8).rsqrt()


class StyleLayer(nn.Module):
    """Modulated 3 x 3 convolution, noise, bias, leaky ReLU.

    Args:
        n_in: channels in.
        n_out: channels out.
        w_dim: D.
        size: (h, w) after it.
        up: double height and width first.
    """

    noise_const: Tensor

    def __init__(self, n_in: int, n_out: int, w_dim: int, size: tuple[int, int], up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(n_in, n_out, 3, w_dim, up=up)
        self.size = size
        self.register_buffer("noise_const", torch.randn(size))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        """Map (B, n_in, h, w) to (B, n_out, *size); noise (B, 1, *size), (*size) or None."""
        x, factor = self.conv.parts(x, style)
        assert factor is not None
        shift = self.bias[:, None, None]
        if noise is not None:
            shift = shift + noise * self.noise_strength
        # The gain passes through the leaky ReLU: the map is gone through three times instead of five.
        x = (x * (factor * GAIN)[:, :, None, None]).add_(shift * GAIN)
        return functional.leaky_relu_(x, 0.2)


class ToImage(nn.Module):
    """Modulated 1 x 1 convolution to an image, without demodulation."""

    def __init__(self, n_in: int, channels: int, w_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(n_in, channels, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (B, n_in, h, w) to (B, C, h, w)."""
        return self.conv(x, style) + self.bias[:, None, None]


class StartMap(nn.Module):
    """The smallest map as a linear function of the style.

    Args:
        w_dim: D.
        channels: of the map.
        size: (h, w) of it.
    """

    def __init__(self, w_dim: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.linear = EqualLinear(w_dim, channels * size[0] * size[1])
        self.shape = (channels, *size)

    def forward(self, style: Tensor) -> Tensor:
        """Map (B, D) to (B, channels, h, w)."""
        x: Tensor = self.linear(style)
        return x.reshape(len(style), *self.shape)


class SynthesisBlock(nn.Module):
    """One size of map: one layer (the first) or two, and what they add to the image."""

    def __init__(
        self, n_in: int, n_out: int, channels: int, w_dim: int, size: tuple[int, int], start: str = ""
    ) -> None:
        super().__init__()
        first = bool(start)
        self.const = nn.Parameter(torch.randn(n_out, *size)) if start == "const" else None
        self.start = StartMap(w_dim, n_out, size) if start == "style" else None
        self.conv0 = None if first else StyleLayer(n_in, n_out, w_dim, size, up=True)
        self.conv1 = StyleLayer(n_out, n_out, w_dim, size)
        self.to_image = ToImage(n_out, channels, w_dim)

    def layers(self) -> list[StyleLayer]:
        """The layers that take noise."""
        return [self.conv1] if self.conv0 is None else [self.conv0, self.conv1]


class SynthesisNetwork(nn.Module):
    """From styles to images.

    Args:
        shape: (C, H, W) of an image.
        w_dim: D.
        width: channels of each map, from the smallest to the image's own size.
        start: where the smallest map comes from: "const" (learned, as published) or "style" (a linear
            function of the first layer's style). From a constant, every shape has to be made by switching
            channels on and off, which takes far more training than a few thousand steps.
        output: "linear", as published, or "tanh": plain black or white ground is then reached by going far
            enough, and not by hitting a value exactly.

    Attributes:
        n_layers: L, rows of a W+ input: one for each layer, and the last one for the image.
        noise_sizes: (h, w) of the noise of each layer that takes some.

    Source: Karras et al. 2020, arXiv:1912.04958, Fig. 7 (output skips).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        w_dim: int,
        width: Sequence[int],
        start: Literal["const", "style"] = "const",
        output: Literal["linear", "tanh"] = "linear",
    ) -> None:
        super().__init__()
        choose("start", start, ("const", "style"))
        choose("output", output, ("linear", "tanh"))
        self.output = output
        channels, height, image_width = shape
        h, w, n = checked_start(height, image_width, width)
        self.shape, self.w_dim = shape, w_dim
        self.blocks = nn.ModuleList(
            SynthesisBlock(
                width[i - 1] if i else 0, width[i], channels, w_dim, (h << i, w << i), "" if i else start
            )
            for i in range(n + 1)
        )
        self.n_layers = 2 * n + 2
        self.noise_sizes = [layer.size for block in self._blocks() for layer in block.layers()]

    def _blocks(self) -> list[SynthesisBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def forward(self, styles: Tensor, noise: Noise = "fixed") -> Tensor:
        """Return images (B, C, H, W): in [-1, 1] with "tanh", near it and not clamped otherwise.

        Args:
            styles: (B, D), the same for all layers, or W+: (B, L, D).
            noise: "fixed" (each layer's own map), "none", or a map (B, 1, h, w) for each of `noise_sizes`.

        Raises:
            ShapeError: if styles or noise have other shapes.
        """
        by_layer = by_layers(styles, self.n_layers, self.w_dim)
        if isinstance(noise, str):
            choose("Noise that is no list of maps", noise, ("fixed", "none"))
        elif len(noise) != len(self.noise_sizes):
            raise ShapeError(f"Synthesis takes {len(self.noise_sizes)} maps of noise, got {len(noise)}.")
        image: Tensor | None = None
        row = 0
        x = styles.new_empty(0)
        for block in self._blocks():
            if block.const is not None:
                x = block.const[None].expand(len(styles), -1, -1, -1)
            elif block.start is not None:
                x = block.start(by_layer[0])
            for layer in block.layers():
                x = layer(x, by_layer[row], self._noise(noise, layer, row))
                row += 1
            # A block's image uses the style of the next block's first layer, as published.
            own = block.to_image(x, by_layer[row])
            image = own if image is None else upsample(image) + own
        assert image is not None
        return torch.tanh(image) if self.output == "tanh" else image

    def _noise(self, noise: Noise, layer: StyleLayer, row: int) -> Tensor | None:
        if isinstance(noise, str):
            return layer.noise_const if noise == "fixed" else None
        if tuple(noise[row].shape[-2:]) != layer.size:
            raise ShapeError(f"Noise {row} must be {layer.size}, got {tuple(noise[row].shape[-2:])}.")
        return noise[row]


def mix_styles(first: Tensor, second: Tensor, cut: Tensor, n_layers: int) -> Tensor:
    """Return W+ styles (B, L, D) that follow `first` before layer `cut` and `second` from there on.

    Args:
        first: (B, D) or (B, L, D).
        second: (B, D) or (B, L, D).
        cut: int64 (B,) in [0, L]; L keeps `first` everywhere.
        n_layers: L.
    """
    late = torch.arange(n_layers, device=cut.device)[None] >= cut[:, None]
    first, second = (styles[:, None] if styles.ndim == 2 else styles for styles in (first, second))
    return torch.where(late[:, :, None], second, first)


class DiscriminatorBlock(nn.Module):
    """Two convolutions and half the size, with a shortcut ("residual") or without ("plain")."""

    def __init__(self, n_in: int, n_out: int, residual: bool) -> None:
        super().__init__()
        share = math.sqrt(0.5) if residual else 1.0
        self.conv0 = EqualConv(n_in, n_in, 3)
        self.conv1 = EqualConv(n_in, n_out, 3, down=True, gain=share)
        self.skip = (
            EqualConv(n_in, n_out, 1, down=True, activation=False, bias=False, gain=share)
            if residual
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, h, w) to (B, n_out, h / 2, w / 2)."""
        y: Tensor = self.conv1(self.conv0(x))
        return y if self.skip is None else y + self.skip(x)


def group_of(batch: int, group_size: int) -> int:
    """Return the largest divisor of a batch up to a group size.

    >>> group_of(32, 4), group_of(9, 4)
    (4, 3)
    """
    return next(g for g in range(min(group_size, batch), 0, -1) if batch % g == 0)


def minibatch_deviation(x: Tensor, group_size: int, n_channels: int = 1) -> Tensor:
    """Return x (B, C, h, w) with `n_channels` more: how far the images of a group differ.

    Groups are made of every (B / G)-th image. A batch that is no multiple of the group size gets smaller
    groups: the largest divisor of B up to `group_size`.

    Source: Karras et al. 2018, arXiv:1710.10196, Sec. 3; groups as in StyleGAN2's public code.
    """
    batch, channels, height, width = x.shape
    group = group_of(batch, group_size)
    y = x.reshape(group, -1, n_channels, channels // n_channels, height, width)
    y = y - y.mean(0)
    y = (y.square().mean(0) + 1e-8).sqrt().mean((2, 3, 4))  # (B / G, n_channels)
    y = y[:, :, None, None].repeat(group, 1, height, width)
    return torch.cat([x, y], 1)


class Discriminator(nn.Module):
    """Logit of an image being real, given a condition if there is one.

    Args:
        shape: (C, H, W) of an image.
        width: channels of each map, from the smallest to the image's own size.
        c_dim: numbers of the condition; 0: none.
        group_size: images compared by the minibatch deviation; 1 or less: not used. The attribute of this
            name may be lowered afterwards, where classes are small.
        architecture: "residual" or "plain" (without shortcuts, as published for CIFAR-10).
        mapping_layers: of the condition's mapping network.
        condition_dim: numbers of the projection; None: as many as channels of the smallest map.
        lr_multiplier: of the condition's mapping network.

    Source: Karras et al. 2020, arXiv:1912.04958, Fig. 7 (residual discriminator); Miyato & Koyama 2018,
        arXiv:1802.05637 (projection).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: Sequence[int],
        c_dim: int = 0,
        group_size: int = 4,
        architecture: Literal["residual", "plain"] = "residual",
        mapping_layers: int = 8,
        condition_dim: int | None = None,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        channels, height, image_width = shape
        h, w, n = checked_start(height, image_width, width)
        choose("architecture", architecture, ("residual", "plain"))
        self.shape, self.c_dim, self.group_size = shape, c_dim, group_size
        self.deviation = group_size > 1
        self.from_image = EqualConv(channels, width[-1], 1)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(width[i], width[i - 1], architecture == "residual") for i in range(n, 0, -1)
        )
        last = width[0]
        dim = 1 if not c_dim else (condition_dim or last)
        self.conv = EqualConv(last + int(self.deviation), last, 3)
        self.fc = EqualLinear(last * h * w, last, activation=True)
        self.out = EqualLinear(last, dim)
        self.mapping = (
            MappingNetwork(0, dim, mapping_layers, c_dim, lr_multiplier=lr_multiplier) if c_dim else None
        )

    def features(self, images: Tensor) -> Tensor:
        """Return the map (B, width[0], h, w) that the logit is made from."""
        x: Tensor = self.from_image(images)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Return logits (B,).

        Args:
            images: (B, C, H, W).
            c: (B, c_dim), or None without a condition.

        Raises:
            ShapeError: if the images or the condition have other shapes.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise ShapeError(f"The discriminator takes images {self.shape}, got {tuple(images.shape[1:])}.")
        x = self.features(images)
        if self.deviation:
            x = minibatch_deviation(x, self.group_size)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if self.mapping is None:
            return x.squeeze(1)
        condition = self.mapping(None, c)
        return (x * condition).sum(1) / math.sqrt(x.shape[1])
