import math

import pytest
import torch

from fewgen.errors import DataError, ShapeError
from fewgen.evaluation import quality
from fewgen.evaluation.quality import mean_squared_error, psnr, ssim


def pictures(n, channels, size, seed):
    """Smooth random images, uint8, and a noisy version of them."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 5, generator=rng)
    x = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    y = (x + 0.15 * torch.randn(x.shape, generator=rng)).clamp(0, 1)
    return (255 * x).round().to(torch.uint8), (255 * y).round().to(torch.uint8)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 64), (3, 12)])
def test_ssim_equals_scikit_image(channels, size):
    from skimage.metrics import structural_similarity

    x, y = pictures(4, channels, size, seed=size)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for found, a, b in zip(ssim(x, y), x.numpy(), y.numpy(), strict=True):
        _, full = structural_similarity(a, b, channel_axis=0, data_range=255, full=True, **settings)
        assert float(found) == pytest.approx(full.mean(), rel=1e-4)


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
