"""EfficientNet-Lite from its table alone, in NumPy: every tap of every kernel by hand, nothing shared with fewgen."""

import numpy as np

# Kernel, stride, widened, channels of each block of lite0, written out.
LITE0 = [
    (3, 1, False, 16),
    (3, 2, True, 24),
    (3, 1, True, 24),
    (5, 2, True, 40),
    (5, 1, True, 40),
    (3, 2, True, 80),
    (3, 1, True, 80),
    (3, 1, True, 80),
    (5, 1, True, 112),
    (5, 1, True, 112),
    (5, 1, True, 112),
    (5, 2, True, 192),
    (5, 1, True, 192),
    (5, 1, True, 192),
    (5, 1, True, 192),
    (3, 1, True, 320),
]


def same(n, kernel, stride):
    """TensorFlow's rule: so many places, and so much padding before and after."""
    out = (n + stride - 1) // stride
    total = max((out - 1) * stride + kernel - n, 0)
    return out, total // 2, total - total // 2


def convolve(x, weight, stride, each=False):
    """x (C, H, W); weight (O, C, k, k), or (C, 1, k, k) for each channel alone."""
    kernel = weight.shape[-1]
    rows, top, bottom = same(x.shape[1], kernel, stride)
    columns, left, right = same(x.shape[2], kernel, stride)
    x = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    out = np.zeros((weight.shape[0], rows, columns))
    for i in range(kernel):
        for j in range(kernel):
            seen = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            if each:
                out += weight[:, 0, i, j][:, None, None] * seen
            else:
                out += np.tensordot(weight[:, :, i, j], seen, axes=1)
    return out


def normalise(x, weights, name):
    mean, var, scale, shift = (
        weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 0.001) * scale + shift


def relu6(x):
    return np.minimum(np.maximum(x, 0), 6)


def maps_and_features(image, weights):
    """Stride -> map of one image (3, H, W), already scaled; and its pooled features (1280,)."""
    weights = {name: value.double().numpy() for name, value in weights.items()}
    x = relu6(normalise(convolve(image, weights["_conv_stem.weight"], 2), weights, "_bn0"))
    maps, at = {}, 2
    for i, (_, stride, widened, channels) in enumerate(LITE0):
        block = f"_blocks.{i}."
        before = x
        if widened:
            x = relu6(
                normalise(convolve(x, weights[block + "_expand_conv.weight"], 1), weights, block + "_bn0")
            )
        x = convolve(x, weights[block + "_depthwise_conv.weight"], stride, each=True)
        x = relu6(normalise(x, weights, block + "_bn1"))
        x = normalise(convolve(x, weights[block + "_project_conv.weight"], 1), weights, block + "_bn2")
        assert x.shape[0] == channels
        if stride == 1 and before.shape == x.shape:
            x = x + before
        at *= stride
        maps[at] = x
    last = relu6(normalise(convolve(x, weights["_conv_head.weight"], 1), weights, "_bn1"))
    return {s: m for s, m in maps.items() if s > 2}, last.mean(axis=(1, 2))
