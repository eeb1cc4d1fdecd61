"""StyleGAN2 a second time, slowly: NumPy, float64, one image and one pair of channels at a time.

Networks are read from a dictionary with the tensor names of the public code (`synthesis.b8.conv0.weight`).
Weights are modulated and demodulated for each image, maps are doubled by writing zeros between the pixels,
and filters are sums over shifted windows. Nothing is shared with `fewgen.nn.stylegan`.
"""

from __future__ import annotations

import math
import re

import numpy as np
from scipy.signal import convolve2d, correlate2d

BINOMIAL = np.outer([1.0, 3.0, 3.0, 1.0], [1.0, 3.0, 3.0, 1.0]) / 64.0

Tensors = dict[str, np.ndarray]


# --- Layers ----------------------------------------------------------------------------------------------


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, 0.2 * x, x)


def unit_second_moment(row: np.ndarray) -> np.ndarray:
    return row / math.sqrt(float(np.mean(row**2)) + 1e-8)


def fully_connected(
    row: np.ndarray, weight: np.ndarray, bias: np.ndarray, lr: float = 1.0, activation: bool = False
) -> np.ndarray:
    """One row; learning-rate multiplier on weight and bias, weight also divided by sqrt(inputs)."""
    out = np.array(
        [
            sum(w * x for w, x in zip(weights, row, strict=True)) * lr / math.sqrt(len(row)) + lr * b
            for weights, b in zip(weight, bias, strict=True)
        ]
    )
    return math.sqrt(2.0) * leaky(out) if activation else out


def filtered(channel: np.ndarray, before: int, after: int, gain: float = 1.0) -> np.ndarray:
    """One channel (H, W), zeros around it, [1, 3, 3, 1] in both directions as a sum of shifted windows."""
    wide = np.pad(channel, ((before, after), (before, after)))
    height, width = wide.shape[0] - 3, wide.shape[1] - 3
    out = np.zeros((height, width))
    for i in range(4):
        for j in range(4):
            out += gain * BINOMIAL[i, j] * wide[i : i + height, j : j + width]
    return out


def with_zeros_between(channel: np.ndarray, last: bool) -> np.ndarray:
    """(H, W) -> (2H, 2W) with zeros after each pixel, without the last row and column unless `last`."""
    height, width = channel.shape
    out = np.zeros((2 * height, 2 * width))
    out[::2, ::2] = channel
    return out if last else out[:-1, :-1]


def doubled(image: np.ndarray) -> np.ndarray:
    """An image (C, H, W) of twice the size; the gain of 4 makes up for the zeros."""
    return np.stack([filtered(with_zeros_between(channel, last=True), 2, 1, gain=4.0) for channel in image])


def correlated(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(I, H, W) with (O, I, k, k), k odd, same size: what deep learning calls a convolution."""
    return np.stack(
        [sum(correlate2d(x[i], weight[o, i], mode="same") for i in range(len(x))) for o in range(len(weight))]
    )


def transposed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(I, H, W) -> (O, 2H + 1, 2W + 1): each pixel writes its 3 x 3 weights at twice its place."""
    out = np.zeros((len(weight), 2 * x.shape[1] + 1, 2 * x.shape[2] + 1))
    for o in range(len(weight)):
        for i in range(len(x)):
            out[o] += convolve2d(with_zeros_between(x[i], last=False), weight[o, i], mode="full")
    return out


def modulated(x: np.ndarray, weight: np.ndarray, style: np.ndarray, demodulate: bool, up: bool) -> np.ndarray:
    """One image (I, H, W) with its own weights (O, I, k, k), scaled per input channel by `style` (I,)."""
    own = np.array(weight, dtype=np.float64)
    for o in range(len(own)):
        for i in range(len(style)):
            own[o, i] *= style[i]
        if demodulate:
            own[o] /= math.sqrt(float(np.sum(own[o] ** 2)) + 1e-8)
    if not up:
        return correlated(x, own)
    return np.stack([filtered(channel, 1, 1, gain=4.0) for channel in transposed(x, own)])


def conv_layer(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    down: bool = False,
    activation: bool = True,
    gain: float = 1.0,
) -> np.ndarray:
    """A layer of the discriminator: filter, convolution, every second pixel, bias, activation, gain."""
    n_in, kernel = weight.shape[1], weight.shape[2]
    scaled = weight / math.sqrt(n_in * kernel**2)
    if down:
        pad = kernel // 2 + 1
        x = np.stack([filtered(channel, pad, pad) for channel in x])
        maps = [
            sum(correlate2d(x[i], scaled[o, i], mode="valid") for i in range(n_in))
            for o in range(len(scaled))
        ]
        x = np.stack(maps)[:, ::2, ::2]
    else:
        x = correlated(x, scaled)
    if bias is not None:
        x = x + bias[:, None, None]
    return gain * (math.sqrt(2.0) * leaky(x) if activation else x)


def deviation_map(x: np.ndarray, group: int) -> np.ndarray:
    """(B, C, H, W) -> (B, C + 1, H, W): images b, b + B/G, b + 2B/G, ... are compared with each other."""
    batch, channels, height, width = x.shape
    step = batch // group
    out = np.zeros((batch, channels + 1, height, width))
    for b in range(batch):
        members = [x[m] for m in range(batch) if m % step == b % step]
        assert len(members) == group
        total = 0.0
        for place in np.ndindex(channels, height, width):
            values = [member[place] for member in members]
            mean = sum(values) / group
            total += math.sqrt(sum((v - mean) ** 2 for v in values) / group + 1e-8)
        out[b, :channels] = x[b]
        out[b, channels] = total / (channels * height * width)
    return out


# --- Networks, from tensors with the public names ----------------------------------------------------------


def resolutions(tensors: Tensors, pattern: str) -> list[int]:
    """Sizes of map named in tensors that match `pattern`, which has one group, the smallest first."""
    found = {int(match.group(1)) for name in tensors if (match := re.match(pattern, name))}
    return sorted(found)


def mapping(
    tensors: Tensors, z: np.ndarray | None, c: np.ndarray | None, prefix: str = "mapping.", lr: float = 0.01
) -> np.ndarray:
    """z (B, Z), c (B, K) -> (B, D)."""
    rows = []
    for b in range(len(z if z is not None else c)):
        parts = []
        if z is not None:
            parts.append(unit_second_moment(z[b]))
        if c is not None:
            embedded = fully_connected(c[b], tensors[f"{prefix}embed.weight"], tensors[f"{prefix}embed.bias"])
            parts.append(unit_second_moment(embedded))
        x = np.concatenate(parts)
        layer = 0
        while f"{prefix}fc{layer}.weight" in tensors:
            weight, bias = tensors[f"{prefix}fc{layer}.weight"], tensors[f"{prefix}fc{layer}.bias"]
            x = fully_connected(x, weight, bias, lr, activation=True)
            layer += 1
        rows.append(x)
    return np.stack(rows)


def style_layer(
    tensors: Tensors, name: str, x: np.ndarray, w: np.ndarray, noise: np.ndarray | None, up: bool
) -> np.ndarray:
    style = fully_connected(w, tensors[f"{name}.affine.weight"], tensors[f"{name}.affine.bias"])
    x = modulated(x, tensors[f"{name}.weight"], style, demodulate=True, up=up)
    if noise is not None:
        x = x + float(tensors[f"{name}.noise_strength"]) * noise
    return math.sqrt(2.0) * leaky(x + tensors[f"{name}.bias"][:, None, None])


def to_rgb(tensors: Tensors, name: str, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    weight = tensors[f"{name}.weight"]
    style = fully_connected(w, tensors[f"{name}.affine.weight"], tensors[f"{name}.affine.bias"])
    style = style / math.sqrt(weight.shape[1] * weight.shape[2] ** 2)
    return modulated(x, weight, style, demodulate=False, up=False) + tensors[f"{name}.bias"][:, None, None]


def synthesis(
    tensors: Tensors,
    styles: np.ndarray,
    noise: str | list[np.ndarray] = "fixed",
    prefix: str = "synthesis.",
) -> np.ndarray:
    """Styles (B, L, D) -> images (B, C, H, W); noise "fixed", "none" or a map (B, 1, h, w) per layer."""
    images = []
    for b, ws in enumerate(styles):
        image = None
        row = 0
        for res in resolutions(tensors, re.escape(prefix) + r"b(\d+)\."):
            block = f"{prefix}b{res}"
            layers = ["conv0", "conv1"]
            if f"{block}.const" in tensors:
                x = tensors[f"{block}.const"]
                layers = ["conv1"]
            for layer in layers:
                name = f"{block}.{layer}"
                if noise == "fixed":
                    own = tensors[f"{name}.noise_const"]
                elif noise == "none":
                    own = None
                else:
                    own = noise[row][b, 0]
                x = style_layer(tensors, name, x, ws[row], own, up=layer == "conv0")
                row += 1
            rgb = to_rgb(tensors, f"{block}.torgb", x, ws[row])
            image = rgb if image is None else doubled(image) + rgb
        assert row + 1 == len(ws)
        images.append(image)
    return np.stack(images)


def discriminator(
    tensors: Tensors, images: np.ndarray, c: np.ndarray | None = None, group: int = 4, prefix: str = ""
) -> np.ndarray:
    """Images (B, C, H, W) -> logits (B,). Blocks with `skip` weights are residual."""
    maps = []
    sizes = resolutions(tensors, re.escape(prefix) + r"b(\d+)\.")
    for x in images:
        for res in reversed(sizes[1:]):
            block = f"{prefix}b{res}"
            if f"{block}.fromrgb.weight" in tensors:
                x = conv_layer(x, tensors[f"{block}.fromrgb.weight"], tensors[f"{block}.fromrgb.bias"])
            residual = f"{block}.skip.weight" in tensors
            share = math.sqrt(0.5) if residual else 1.0
            y = conv_layer(x, tensors[f"{block}.conv0.weight"], tensors[f"{block}.conv0.bias"])
            y = conv_layer(
                y, tensors[f"{block}.conv1.weight"], tensors[f"{block}.conv1.bias"], down=True, gain=share
            )
            if residual:
                skip = tensors[f"{block}.skip.weight"]
                y = y + conv_layer(x, skip, None, down=True, activation=False, gain=share)
            x = y
        maps.append(x)
    last = f"{prefix}b{sizes[0]}"
    x = np.stack(maps)
    if tensors[f"{last}.conv.weight"].shape[1] == x.shape[1] + 1:
        x = deviation_map(x, group)
    logits = []
    projections = None if c is None else mapping(tensors, None, c, prefix=f"{prefix}mapping.")
    for b in range(len(x)):
        y = conv_layer(x[b], tensors[f"{last}.conv.weight"], tensors[f"{last}.conv.bias"])
        y = fully_connected(
            y.reshape(-1), tensors[f"{last}.fc.weight"], tensors[f"{last}.fc.bias"], activation=True
        )
        y = fully_connected(y, tensors[f"{last}.out.weight"], tensors[f"{last}.out.bias"])
        if projections is None:
            logits.append(float(y[0]))
        else:
            logits.append(float(np.dot(y, projections[b])) / math.sqrt(len(y)))
    return np.array(logits)


# --- Random weights with the public names --------------------------------------------------------------------


def random_generator(
    rng: np.random.Generator,
    widths: dict[int, int],
    channels: int,
    w_dim: int,
    z_dim: int,
    c_dim: int = 0,
    n_mapping: int = 2,
) -> Tensors:
    """A generator whose maps have the sizes and channels of `widths`; every tensor random, none zero."""
    out: Tensors = {}

    def draw(name: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> None:
        out[name] = scale * rng.standard_normal(shape) + offset

    if c_dim:
        draw("mapping.embed.weight", w_dim, c_dim)
        draw("mapping.embed.bias", w_dim)
    width = z_dim + (w_dim if c_dim else 0)
    for i in range(n_mapping):
        draw(f"mapping.fc{i}.weight", w_dim, width if i == 0 else w_dim, scale=100.0)
        draw(f"mapping.fc{i}.bias", w_dim, scale=10.0)
    draw("mapping.w_avg", w_dim)
    before = 0
    for res, width in sorted(widths.items()):
        block = f"synthesis.b{res}"
        out[f"{block}.resample_filter"] = BINOMIAL
        if before == 0:
            draw(f"{block}.const", width, res, res)
        for layer, n_in in (("conv0", before), ("conv1", width)):
            if n_in == 0:
                continue
            draw(f"{block}.{layer}.weight", width, n_in, 3, 3)
            draw(f"{block}.{layer}.affine.weight", n_in, w_dim)
            draw(f"{block}.{layer}.affine.bias", n_in, scale=0.2, offset=1.0)
            draw(f"{block}.{layer}.noise_const", res, res)
            draw(f"{block}.{layer}.noise_strength")
            draw(f"{block}.{layer}.bias", width)
            out[f"{block}.{layer}.resample_filter"] = BINOMIAL
        draw(f"{block}.torgb.weight", channels, width, 1, 1)
        draw(f"{block}.torgb.affine.weight", width, w_dim)
        draw(f"{block}.torgb.affine.bias", width, scale=0.2, offset=1.0)
        draw(f"{block}.torgb.bias", channels)
        before = width
    return {name: np.asarray(value) for name, value in out.items()}


def random_discriminator(
    rng: np.random.Generator,
    widths: dict[int, int],
    channels: int,
    c_dim: int = 0,
    residual: bool = True,
    deviation: bool = True,
    condition_dim: int | None = None,
    n_mapping: int = 2,
) -> Tensors:
    """A discriminator; see `random_generator`."""
    out: Tensors = {}

    def draw(name: str, *shape: int, scale: float = 1.0) -> None:
        out[name] = scale * rng.standard_normal(shape)

    sizes = sorted(widths, reverse=True)
    for res, smaller in zip(sizes[:-1], sizes[1:], strict=True):
        block, width, after = f"b{res}", widths[res], widths[smaller]
        out[f"{block}.resample_filter"] = BINOMIAL
        if res == sizes[0]:
            draw(f"{block}.fromrgb.weight", width, channels, 1, 1)
            draw(f"{block}.fromrgb.bias", width)
            out[f"{block}.fromrgb.resample_filter"] = BINOMIAL
        draw(f"{block}.conv0.weight", width, width, 3, 3)
        draw(f"{block}.conv0.bias", width)
        draw(f"{block}.conv1.weight", after, width, 3, 3)
        draw(f"{block}.conv1.bias", after)
        if residual:
            draw(f"{block}.skip.weight", after, width, 1, 1)
    last, res = widths[sizes[-1]], sizes[-1]
    dim = (condition_dim or last) if c_dim else 1
    draw(f"b{res}.conv.weight", last, last + (1 if deviation else 0), 3, 3)
    draw(f"b{res}.conv.bias", last)
    draw(f"b{res}.fc.weight", last, last * res * res)
    draw(f"b{res}.fc.bias", last)
    draw(f"b{res}.out.weight", dim, last)
    draw(f"b{res}.out.bias", dim)
    if c_dim:
        draw("mapping.embed.weight", dim, c_dim)
        draw("mapping.embed.bias", dim)
        for i in range(n_mapping):
            draw(f"mapping.fc{i}.weight", dim, dim, scale=100.0)
            draw(f"mapping.fc{i}.bias", dim, scale=10.0)
    return out
