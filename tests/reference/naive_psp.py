"""pSp a second time, from tensors with the names of its public checkpoints: encoder, and rosinality's generator.

Written from the layouts of GradualStyleEncoder (IR-SE-50) and of StyleGAN2 in github.com/eladrich/pixel2style2pixel,
with plain arithmetic in float64 where `fewgen.nn` uses modules: batch norm, PReLU and squeeze-excite by their formulas,
resizing by a matrix, weights modulated for each image. Nothing is shared with `fewgen.nn`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

Tensors = dict[str, Tensor]

UNITS = (3, 4, 14, 3)
COARSE, MIDDLE = 3, 7


# --- The encoder -----------------------------------------------------------------------------------------


def normed(t: Tensors, name: str, x: Tensor) -> Tensor:
    """Batch norm with the running figures."""
    mean, var, weight, bias = (
        t[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def prelu(t: Tensors, name: str, x: Tensor) -> Tensor:
    return torch.where(x < 0, t[f"{name}.weight"][:, None, None] * x, x)


def conv(t: Tensors, name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
    return functional.conv2d(x, t[f"{name}.weight"], t.get(f"{name}.bias"), stride, padding)


def unit(t: Tensors, name: str, x: Tensor, stride: int) -> Tensor:
    """A bottleneck of IR-SE."""
    if f"{name}.shortcut_layer.0.weight" in t:
        shortcut = normed(
            t, f"{name}.shortcut_layer.1", conv(t, f"{name}.shortcut_layer.0", x, stride, padding=0)
        )
    else:  # max-pooling of single pixels
        shortcut = x[:, :, ::stride, ::stride]
    res = f"{name}.res_layer"
    y = prelu(t, f"{res}.2", conv(t, f"{res}.1", normed(t, f"{res}.0", x)))
    y = normed(t, f"{res}.4", conv(t, f"{res}.3", y, stride))
    squeezed = y.mean((2, 3))
    hidden = (squeezed @ t[f"{res}.5.fc1.weight"].flatten(1).T).clamp_min(0.0)
    excited = 1.0 / (1.0 + (-(hidden @ t[f"{res}.5.fc2.weight"].flatten(1).T)).exp())
    return y * excited[:, :, None, None] + shortcut


def resizing(n: int, side: int) -> Tensor:
    """(side, n): each row weighs neighbours linearly, first and last places kept (align_corners)."""
    out = torch.zeros(side, n, dtype=torch.float64)
    for i in range(side):
        place = i * (n - 1) / (side - 1)
        left = min(int(place), n - 2)
        out[i, left] += 1.0 - (place - left)
        out[i, left + 1] += place - left
    return out


def added(top: Tensor, own: Tensor) -> Tensor:
    m = resizing(top.shape[2], own.shape[2])
    return torch.einsum("ih,bchw,jw->bcij", m, top, m) + own


def head(t: Tensors, name: str, x: Tensor) -> Tensor:
    layer = 0
    while f"{name}.convs.{layer}.weight" in t:
        x = conv(t, f"{name}.convs.{layer}", x, stride=2)
        x = torch.where(x < 0, 0.01 * x, x)
        layer += 2
    assert x.shape[2:] == (1, 1)
    weight = t[f"{name}.linear.weight"]
    return x[:, :, 0, 0] @ weight.T / math.sqrt(weight.shape[1]) + t[f"{name}.linear.bias"]


def encode(t: Tensors, x: Tensor) -> Tensor:
    """Images (B, 3, side, side) -> styles (B, L, D), with the average style."""
    x = prelu(
        t, "encoder.input_layer.2", normed(t, "encoder.input_layer.1", conv(t, "encoder.input_layer.0", x))
    )
    maps, i = [], 0
    for n in UNITS:
        for k in range(n):
            x = unit(t, f"encoder.body.{i}", x, 1 if k else 2)
            i += 1
        maps.append(x)
    fine, middle, coarse = maps[1:]
    middle = added(coarse, conv(t, "encoder.latlayer1", middle, padding=0))
    fine = added(middle, conv(t, "encoder.latlayer2", fine, padding=0))
    styles = []
    while f"encoder.styles.{len(styles)}.linear.weight" in t:
        j = len(styles)
        styles.append(
            head(t, f"encoder.styles.{j}", coarse if j < COARSE else middle if j < MIDDLE else fine)
        )
    return torch.stack(styles, 1) + t["latent_avg"]


# --- The generator ---------------------------------------------------------------------------------------


def filtered(x: Tensor, before: int, after: int, gain: float) -> Tensor:
    """[1, 3, 3, 1] in both directions, zeros around."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8.0
    kernel = gain * row[:, None] * row[None]
    wide = functional.pad(x, (before, after, before, after))
    height, width = wide.shape[2] - 3, wide.shape[3] - 3
    return sum(kernel[i, j] * wide[:, :, i : i + height, j : j + width] for i in range(4) for j in range(4))


def doubled(x: Tensor) -> Tensor:
    wide = x.new_zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    wide[:, :, ::2, ::2] = x
    return filtered(wide, 2, 1, 4.0)


def modulated(t: Tensors, name: str, x: Tensor, w: Tensor, up: bool, demodulate: bool) -> Tensor:
    """Each image with its own weights, which are scaled by 1 / sqrt(inputs)."""
    affine = t[f"{name}.modulation.weight"]
    scales = w @ affine.T / math.sqrt(affine.shape[1]) + t[f"{name}.modulation.bias"]
    shared = t[f"{name}.weight"][0]
    rows = []
    for image, scale in zip(x, scales, strict=True):
        own = shared / math.sqrt(shared[0].numel()) * scale[:, None, None]
        if demodulate:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            y = filtered(functional.conv_transpose2d(image[None], own.transpose(0, 1), stride=2), 1, 1, 4.0)
        else:
            y = functional.conv2d(image[None], own, padding=own.shape[2] // 2)
        rows.append(y)
    return torch.cat(rows)


def decode(t: Tensors, w: Tensor) -> Tensor:
    """Styles (B, L, D) -> images, with the noise maps of the file."""

    def layer(name: str, x: Tensor, row: Tensor, noise: int, up: bool) -> Tensor:
        x = modulated(t, f"decoder.{name}.conv", x, row, up, True)
        x = x + t[f"decoder.{name}.noise.weight"] * t[f"decoder.noises.noise_{noise}"]
        x = x + t[f"decoder.{name}.activate.bias"][:, None, None]
        return math.sqrt(2.0) * torch.where(x < 0, 0.2 * x, x)

    def image(name: str, x: Tensor, row: Tensor) -> Tensor:
        return modulated(t, f"decoder.{name}.conv", x, row, False, False) + t[f"decoder.{name}.bias"]

    x = layer("conv1", t["decoder.input.input"].expand(len(w), -1, -1, -1), w[:, 0], 0, False)
    out = image("to_rgb1", x, w[:, 1])
    i = 0
    while f"decoder.to_rgbs.{i}.bias" in t:
        x = layer(f"convs.{2 * i}", x, w[:, 2 * i + 1], 2 * i + 1, True)
        x = layer(f"convs.{2 * i + 1}", x, w[:, 2 * i + 2], 2 * i + 2, False)
        out = doubled(out) + image(f"to_rgbs.{i}", x, w[:, 2 * i + 3])
        i += 1
    return out


# --- Random weights with the public names and shapes -------------------------------------------------------


def random_checkpoint(
    seed: int, widths: list[int], width: int, w_dim: int, side: int, channels: int = 3, n_mapping: int = 2
) -> Tensors:
    """Encoder, decoder and average style, float32; every tensor random, none zero.

    Args:
        seed: of all numbers.
        widths: channels of the generator's maps, from 4 x 4 px on.
        width: channels of the encoder's first map.
        w_dim: D.
        side: at which the encoder sees images.
        channels: of the generator's images.
        n_mapping: layers of the mapping network.
    """
    rng, out = torch.Generator().manual_seed(seed), {}

    def draw(name: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> None:
        out[name] = scale * torch.randn(shape, generator=rng) + offset

    def norm(name: str, n: int) -> None:
        draw(f"{name}.weight", n, scale=0.1, offset=1.0)
        draw(f"{name}.bias", n, scale=0.1)
        draw(f"{name}.running_mean", n, scale=0.1)
        out[f"{name}.running_var"] = 0.5 + torch.rand(n, generator=rng)
        out[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def kernel(name: str, n_out: int, n_in: int, k: int) -> None:
        draw(name, n_out, n_in, k, k, scale=1.0 / math.sqrt(n_in * k * k))

    kernel("encoder.input_layer.0.weight", width, 3, 3)
    norm("encoder.input_layer.1", width)
    draw("encoder.input_layer.2.weight", width, scale=0.1, offset=0.25)
    n_in, i = width, 0
    for stage, n in enumerate(UNITS):
        n_out = width << stage
        for _ in range(n):
            name = f"encoder.body.{i}"
            if n_in != n_out:
                kernel(f"{name}.shortcut_layer.0.weight", n_out, n_in, 1)
                norm(f"{name}.shortcut_layer.1", n_out)
            norm(f"{name}.res_layer.0", n_in)
            kernel(f"{name}.res_layer.1.weight", n_out, n_in, 3)
            draw(f"{name}.res_layer.2.weight", n_out, scale=0.1, offset=0.25)
            kernel(f"{name}.res_layer.3.weight", n_out, n_out, 3)
            norm(f"{name}.res_layer.4", n_out)
            kernel(f"{name}.res_layer.5.fc1.weight", max(1, n_out // 16), n_out, 1)
            kernel(f"{name}.res_layer.5.fc2.weight", n_out, max(1, n_out // 16), 1)
            n_in, i = n_out, i + 1
    n_layers = 2 * len(widths)
    for j in range(n_layers):
        down = 16 if j < COARSE else 8 if j < MIDDLE else 4
        for k in range((side // down).bit_length() - 1):
            kernel(f"encoder.styles.{j}.convs.{2 * k}.weight", w_dim, w_dim if k else n_in, 3)
            draw(f"encoder.styles.{j}.convs.{2 * k}.bias", w_dim, scale=0.1)
        draw(f"encoder.styles.{j}.linear.weight", w_dim, w_dim)
        draw(f"encoder.styles.{j}.linear.bias", w_dim, scale=0.1)
    for which, n in ((1, n_in // 2), (2, n_in // 4)):
        kernel(f"encoder.latlayer{which}.weight", n_in, n, 1)
        draw(f"encoder.latlayer{which}.bias", n_in, scale=0.1)
    _decoder(out, draw, widths, w_dim, channels, n_mapping)
    out["latent_avg"] = torch.randn(w_dim, generator=rng).repeat(n_layers, 1)
    return out


def _decoder(out, draw, widths, w_dim, channels, n_mapping) -> None:
    binomial = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0])]) / 16.0
    for i in range(1, n_mapping + 1):
        draw(f"decoder.style.{i}.weight", w_dim, w_dim, scale=100.0)
        draw(f"decoder.style.{i}.bias", w_dim, scale=10.0)
    draw("decoder.input.input", 1, widths[0], 4, 4)

    def conv(name: str, n_out: int, n_in: int, k: int) -> None:
        draw(f"{name}.conv.weight", 1, n_out, n_in, k, k)
        draw(f"{name}.conv.modulation.weight", n_in, w_dim)
        draw(f"{name}.conv.modulation.bias", n_in, scale=0.2, offset=1.0)

    def layer(name: str, number: int, n_out: int, n_in: int, side: int) -> None:
        conv(name, n_out, n_in, 3)
        draw(f"{name}.noise.weight", 1)
        draw(f"{name}.activate.bias", n_out)
        draw(f"decoder.noises.noise_{number}", 1, 1, side, side)

    def image(name: str, n_in: int) -> None:
        conv(name, channels, n_in, 1)
        draw(f"{name}.bias", 1, channels, 1, 1)

    layer("decoder.conv1", 0, widths[0], widths[0], 4)
    image("decoder.to_rgb1", widths[0])
    for i, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layer(f"decoder.convs.{2 * i}", 2 * i + 1, n_out, n_in, 8 << i)
        layer(f"decoder.convs.{2 * i + 1}", 2 * i + 2, n_out, n_out, 8 << i)
        image(f"decoder.to_rgbs.{i}", n_out)
        out[f"decoder.convs.{2 * i}.conv.blur.kernel"] = binomial.clone()
        out[f"decoder.to_rgbs.{i}.upsample.kernel"] = binomial.clone()
