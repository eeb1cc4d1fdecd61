import pytest
import torch
from tests.encoders.tools import random_weights

from fewgen.encoders.lpips import ConvTrunk, LpipsTrunk
from fewgen.errors import CheckpointError, ConfigError, ShapeError


@pytest.mark.parametrize(("kind", "published"), [("vgg16", 14_714_688), ("alexnet", 2_469_696)])
def test_trunks_have_the_published_number_of_parameters(kind, published):
    with torch.device("meta"):
        assert sum(p.numel() for p in ConvTrunk(kind).parameters()) == published


def test_trunk_names_are_those_of_public_files():
    with torch.device("meta"):
        vgg, alex = (list(ConvTrunk(kind).state_dict()) for kind in ("vgg16", "alexnet"))
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert vgg == [f"features.{i}.{part}" for i in places for part in ("weight", "bias")]
    assert alex == [f"features.{i}.{part}" for i in (0, 3, 6, 8, 10) for part in ("weight", "bias")]


@pytest.mark.parametrize(
    ("kind", "size", "sides"), [("vgg16", 32, (32, 16, 8, 4, 2)), ("alexnet", 63, (15, 7, 3, 3, 3))]
)
def test_trunk_layers(kind, size, sides):
    network = ConvTrunk(kind).eval()
    layers = network(torch.zeros(1, 3, size, size))
    assert [tuple(layer.shape[1:]) for layer in layers] == [
        (c, s, s) for c, s in zip(network.channels, sides, strict=True)
    ]
    assert all(float(layer.detach().min()) >= 0 for layer in layers)


def test_trunk_scales_its_input():
    network = ConvTrunk("alexnet").eval()
    x = torch.rand(1, 3, 31, 31, generator=torch.Generator().manual_seed(0)) * 2 - 1
    # (x + 1) / 2 in [0, 1], normalised with ImageNet's mean and deviation, is the same to three digits.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    expected = torch.relu(network.features[0](normalised))
    torch.testing.assert_close(network(x)[0], expected, atol=5e-3, rtol=5e-3)


def test_lpips_trunk_reads_a_public_file_and_says_what_it_needs(tmp_path):
    weights = random_weights(ConvTrunk("alexnet"))
    torch.save(weights | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "alexnet.pth")
    trunk = LpipsTrunk("alexnet", tmp_path / "alexnet.pth")
    layers = trunk.layers(torch.zeros(2, 1, 31, 31))  # the smallest, grey
    assert [layer.shape[1] for layer in layers] == list(trunk.channels)
    with pytest.raises(
        ShapeError, match="at least 31 pixels, but these have 28 x 28. Make the trunk with size=64"
    ):
        trunk.layers(torch.zeros(2, 1, 28, 28))
    resized = LpipsTrunk("alexnet", tmp_path / "alexnet.pth", size=64)
    assert resized.layers(torch.zeros(2, 1, 28, 28))[0].shape[2:] == (15, 15)
    assert resized.record()["resize"] == "antialiased bilinear, to 64 x 64"
    assert trunk.record()["resize"] == "none"
    with pytest.raises(ConfigError, match="at least 31 pixels, got 8"):
        LpipsTrunk("alexnet", tmp_path / "alexnet.pth", size=8)
    with pytest.raises(CheckpointError, match="not the weights of vgg16"):
        LpipsTrunk("vgg16", tmp_path / "alexnet.pth")
    with pytest.raises(ConfigError, match='Did you mean "alexnet"'):
        LpipsTrunk("alexnett", tmp_path / "alexnet.pth")


def test_smallest_sides_are_exact():
    for kind in ("vgg16", "alexnet"):
        network = ConvTrunk(kind).eval()
        side = network.smallest_side
        network(torch.zeros(1, 3, side, side))
        with pytest.raises(RuntimeError):
            network(torch.zeros(1, 3, side - 1, side - 1))
