import math

import numpy as np
import pytest
import torch

from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.evaluation import quality
from fewgen.evaluation.diversity import within_class_distance
from fewgen.evaluation.quality import mean_squared_error, psnr, ssim


def pictures(n, channels, size, seed):
    """Smooth random images, uint8, and a noisy version of them."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 5, generator=rng)
    x = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    y = (x + 0.15 * torch.randn(x.shape, generator=rng)).clamp(0, 1)
    return (255 * x).round().to(torch.uint8), (255 * y).round().to(torch.uint8)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 64), (3, 12)])
@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize("border", ["mirror", "crop"])
def test_ssim_equals_scikit_image(channels, size, window, border):
    from skimage.metrics import structural_similarity

    x, y = pictures(4, channels, size, seed=size)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for found, a, b in zip(ssim(x, y, window=window, border=border), x.numpy(), y.numpy(), strict=True):
        mean, full = structural_similarity(
            a, b, channel_axis=0, data_range=255, full=True, **(settings if window == "gaussian" else {})
        )
        assert float(found) == pytest.approx(full.mean() if border == "mirror" else mean, rel=1e-4)


def test_ssim_equals_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = pictures(3, 1, 28, seed=1)
    theirs = structural_similarity_index_measure(x.double() / 255, y.double() / 255, data_range=1.0)
    # Theirs mirrors without repeating the edge pixel, which reaches the first five rows and columns only.
    assert float(ssim(x, y).mean()) == pytest.approx(float(theirs), abs=0.02)


def test_ssim_of_equal_and_scaled_images():
    x, y = pictures(3, 1, 28, seed=2)
    assert torch.allclose(ssim(x, x), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(ssim(x, y), ssim(y, x))
    assert torch.allclose(ssim(x, y), ssim(x / 255.0, y / 255.0, data_range=1.0), atol=1e-6)
    assert torch.allclose(ssim(x, y)[1:2], ssim(x[1:2], y[1:2]))  # an image does not depend on the others


def test_images_are_judged_alone_whatever_the_block(monkeypatch):
    x, y = pictures(7, 3, 12, seed=6)
    usual = [figure(x, y) for figure in (ssim, mean_squared_error, psnr)]
    for entries in (1, 3 * 12 * 12 * 2):
        monkeypatch.setattr(quality, "BLOCK_ENTRIES", entries)
        for figure, value in zip((ssim, mean_squared_error, psnr), usual, strict=True):
            assert torch.allclose(figure(x, y), value, rtol=1e-12)
            assert torch.allclose(figure(x.flip(0), y.flip(0)).flip(0), value, rtol=1e-12)


def test_signed_images_are_refused():
    # SSIM of images in [-1, 1] is a different, lower number; it must not slip through.
    x, _ = pictures(1, 1, 28, seed=3)
    with pytest.raises(DataError, match="to_uint8"):
        ssim(x / 127.5 - 1, x / 127.5 - 1, data_range=2.0)


def test_ssim_refuses_what_it_does_not_know():
    x, y = pictures(1, 1, 10, seed=4)
    with pytest.raises(ShapeError, match="smaller than the window"):
        ssim(x, y, border="crop")
    with pytest.raises(ConfigError, match="gaussian"):
        ssim(x, y, window="box")
    with pytest.raises(ConfigError, match="mirror"):
        ssim(x, y, border="zero")
    with pytest.raises(ShapeError):
        ssim(x, y[:, :, :5])
    with pytest.raises(DataError, match="no images"):
        ssim(x[:0], y[:0])


def test_psnr_equals_scikit_image():
    from skimage.metrics import mean_squared_error as their_mse
    from skimage.metrics import peak_signal_noise_ratio

    x, y = pictures(3, 3, 16, seed=5)
    for i, (a, b) in enumerate(zip(x.numpy(), y.numpy(), strict=True)):
        assert float(psnr(x, y)[i]) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), rel=1e-9)
        assert float(mean_squared_error(x, y)[i]) == pytest.approx(their_mse(a, b), rel=1e-9)
    assert math.isinf(float(psnr(x, x)[0]))


def test_within_class_distance_equals_loops():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(12, 5, generator=rng)
    labels = torch.tensor([0] * 5 + [1] * 6 + [2])
    found = within_class_distance(features, labels, 3)
    for c, n in ((0, 5), (1, 6)):
        rows = features[labels == c].double().numpy()
        pairs = [np.linalg.norm(rows[i] - rows[j]) for i in range(n) for j in range(i)]
        assert found.per_class[c] == pytest.approx(np.mean(pairs), rel=1e-9)
    assert found.per_class[2] is None
    assert found.mean == pytest.approx((found.per_class[0] + found.per_class[1]) / 2)
    assert within_class_distance(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), 1).mean == 0
    with pytest.raises(DataError, match="no class"):
        within_class_distance(features[:2], torch.tensor([0, 1]), 2)
