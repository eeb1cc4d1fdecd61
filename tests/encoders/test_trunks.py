import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewgen.data.imageset import ImageSet
from fewgen.encoders.inception import InceptionFeatures, InceptionV3, _InceptionA, _InceptionE, tf1_resize
from fewgen.encoders.lpips import ConvTrunk, LpipsTrunk
from fewgen.encoders.weights import load_weights, read_weights
from fewgen.errors import CheckpointError, ConfigError, ShapeError
from fewgen.files import file_sha256


def noise_images(n, size, channels=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, channels, size, size), generator=rng, dtype=torch.uint8)
    return ImageSet(images, torch.zeros(n, dtype=torch.int64), ("all",))


def random_weights(network, seed=0):
    """Weights that keep the size of activations, and batch norms that do something."""
    rng = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if value.ndim >= 2:
            fan_in = value[0].numel()
            weights[name] = torch.randn(value.shape, generator=rng) * (2.0 / fan_in) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            weights[name] = 0.5 + torch.rand(value.shape, generator=rng)
        else:
            weights[name] = 0.1 * torch.randn(value.shape, generator=rng)
    return weights


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    with torch.device("meta"):
        network = InceptionV3(1008)
    save_file(random_weights(network), path)
    return path


@pytest.fixture(scope="module")
def inception(inception_file):
    return InceptionFeatures(inception_file, batch_size=2)


# -------------------------------------------------------------------------------------------- weight files


def test_weights_are_read_and_their_checksum_compared(tmp_path):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save(tensors, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        digest = file_sha256(tmp_path / name)
        found, told = read_weights(tmp_path / name, digest.upper())
        assert told == digest
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
        with pytest.raises(CheckpointError, match=f"has sha256 {digest}"):
            read_weights(tmp_path / name, "0" * 64)
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        read_weights(tmp_path / "w.pth", "abc")


def test_known_digest(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class Hostile:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_hostile_damaged_and_foreign_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Hostile()}, "hostile.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    for name in ("hostile.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="not a readable file of tensors"):
            read_weights(name)
    assert not (tmp_path / "ran").exists()
    torch.save([torch.ones(2)], "list.pth")
    with pytest.raises(CheckpointError, match="dictionary of named tensors"):
        read_weights("list.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x80\0\0\0")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        read_weights("cut.safetensors")
    with pytest.raises(ConfigError, match="no weight file"):
        read_weights("absent.pth")
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(ConfigError, match="must end in"):
        read_weights("w.npz")


def test_names_shapes_and_values_must_fit():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    good = {k: v.clone() for k, v in network.state_dict().items()}
    del good["1.num_batches_tracked"]  # old files lack it
    load_weights(network, good | {"old.x": torch.ones(1)}, "net", ignore=("old.",))
    with pytest.raises(CheckpointError, match=r"1 of 7 tensors are missing \(0.bias\)"):
        load_weights(network, {k: v for k, v in good.items() if k != "0.bias"}, "net")
    with pytest.raises(CheckpointError, match=r"1 do not belong to it \(more\)"):
        load_weights(network, good | {"more": torch.ones(1)}, "net")
    with pytest.raises(CheckpointError, match=r"0.bias has shape \(4,\) and not \(3,\)"):
        load_weights(network, good | {"0.bias": torch.ones(4)}, "net")
    with pytest.raises(CheckpointError, match="0.bias holds NaN"):
        load_weights(network, good | {"0.bias": torch.full((3,), torch.nan)}, "net")


# ------------------------------------------------------------------------------------------------- resizing


def naive_tf1(image, new_height, new_width):
    height, width = image.shape
    out = np.zeros((new_height, new_width))
    for i in range(new_height):
        for j in range(new_width):
            y, x = i * height / new_height, j * width / new_width
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            bottom = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


@pytest.mark.parametrize(
    ("old", "new"), [((5, 7), (11, 13)), ((9, 6), (4, 3)), ((6, 6), (6, 6)), ((1, 4), (3, 8))]
)
def test_resizing_like_tensorflow_1(old, new):
    image = np.random.default_rng(0).normal(size=old)
    found = tf1_resize(torch.tensor(image)[None, None].float(), *new)[0, 0].numpy()
    np.testing.assert_allclose(found, naive_tf1(image, *new), atol=1e-5)


def test_resizing_is_not_the_half_pixel_one():
    # Doubled by TensorFlow 1, even pixels are the old ones and the last one is repeated.
    row = torch.tensor([[[[0.0, 2.0, 6.0]]]])
    assert tf1_resize(row, 1, 6).flatten().tolist() == [0.0, 1.0, 2.0, 4.0, 6.0, 6.0]


# ------------------------------------------------------------------------------------------------ Inception


@pytest.mark.parametrize(("n_classes", "published"), [(1000, 23_834_568), (1008, 23_850_960)])
def test_inception_has_the_published_number_of_parameters(n_classes, published):
    with torch.device("meta"):
        network = InceptionV3(n_classes)
    assert sum(p.numel() for p in network.parameters()) == published


def test_inception_names_are_those_of_public_files():
    with torch.device("meta"):
        names = InceptionV3().state_dict()
    assert len([n for n in names if n.endswith("conv.weight")]) == 94
    for name in (
        "Conv2d_1a_3x3.conv.weight",
        "Conv2d_4a_3x3.bn.running_var",
        "Mixed_5b.branch5x5_2.conv.weight",
        "Mixed_6a.branch3x3dbl_3.bn.weight",
        "Mixed_6e.branch7x7dbl_5.conv.weight",
        "Mixed_7a.branch7x7x3_4.bn.bias",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
        "Mixed_7c.branch_pool.bn.running_mean",
        "fc.bias",
    ):
        assert name in names


def test_inception_stages_have_the_sizes_of_the_paper(inception):
    seen = {}
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: tuple(o.shape[1:])}))
        for name, module in inception.network.named_children()
    ]
    inception.network(torch.zeros(1, 3, 299, 299))
    for hook in hooks:
        hook.remove()
    # Szegedy et al. 2016, Table 1; a stage's output is the next one's input.
    assert seen["Conv2d_1a_3x3"] == (32, 149, 149)
    assert seen["Conv2d_2b_3x3"] == (64, 147, 147)
    assert seen["Conv2d_4a_3x3"] == (192, 71, 71)
    assert seen["Mixed_5d"] == (288, 35, 35)
    assert seen["Mixed_6e"] == (768, 17, 17)
    assert seen["Mixed_7a"] == (1280, 8, 8)
    assert seen["Mixed_7c"] == (2048, 8, 8)


def pool_branch(block, x):
    """The pooling branch alone: its 1 x 1 convolution is set to copy the first channels."""
    outputs = block.branch_pool.conv.out_channels
    with torch.no_grad():
        block.branch_pool.conv.weight.zero_()[range(outputs), range(outputs)] = 1.0
    return block.eval()(x)[:, -outputs:]


def naive_pool(x, kind):
    out = np.zeros_like(x)
    _, _, height, width = x.shape
    for i in range(height):
        for j in range(width):
            window = x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            out[:, :, i, j] = window.mean(axis=(2, 3)) if kind == "average" else window.max(axis=(2, 3))
    return out


@pytest.mark.parametrize("kind", ["average", "max"])
def test_pooling_branches_leave_the_padding_out(kind):
    x = torch.rand(2, 192, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = naive_pool(x.numpy().astype(np.float64), kind) / np.sqrt(
        1 + 0.001
    )  # epsilon of the batch norm
    found = pool_branch(_InceptionE(192, kind), x).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    if kind == "average":
        found = pool_branch(_InceptionA(192, 32), x).detach().numpy()
        np.testing.assert_allclose(found, expected[:, :32], atol=1e-6)


def test_the_last_block_takes_the_maximum():
    with torch.device("meta"):
        network = InceptionV3()
    assert (network.Mixed_7b.pool, network.Mixed_7c.pool) == ("average", "max")


def test_inception_features(inception, inception_file):
    images = noise_images(2, 20)
    found = inception.features(images)
    assert found.shape == (2, 2048)
    assert found.dtype == torch.float32
    assert float(found.std(dim=0).mean()) > 0
    order = torch.tensor([1, 0])
    torch.testing.assert_close(inception.features(images.subset(order)), found[order], atol=1e-6, rtol=1e-6)
    record = inception.record()
    assert record["resize"] == "bilinear as in TensorFlow 1, not antialiased, to 299 x 299"
    assert record["sha256"] == file_sha256(inception_file)
    assert record["comparable_to_published"] is True
    # The pixel scale of the TensorFlow graph, by hand.
    x = (images.images[:1].float() - 128) / 128
    with torch.no_grad():
        by_hand = inception.network(tf1_resize(x, 299, 299))
    torch.testing.assert_close(by_hand, found[:1], atol=1e-5, rtol=1e-4)


def test_grey_images_are_three_equal_channels(inception, monkeypatch):
    monkeypatch.setattr(inception, "network", lambda x: x[:, :, 150, 150:160].flatten(1))
    grey = noise_images(3, 12, channels=1)
    colour = ImageSet(grey.images.repeat(1, 3, 1, 1), grey.labels, grey.class_names)
    found = inception.describe(grey)
    assert torch.equal(found.features, inception.features(colour))
    assert found.predictions is None


def test_torchvision_file_is_taken_without_its_auxiliary_classifier(tmp_path, inception_file):
    tensors, _ = read_weights(inception_file)
    tensors |= {
        "fc.weight": tensors["fc.weight"][:1000].clone(),
        "fc.bias": tensors["fc.bias"][:1000].clone(),
    }
    torch.save(tensors | {"AuxLogits.fc.bias": torch.zeros(1000)}, tmp_path / "v.pth")
    extractor = InceptionFeatures(tmp_path / "v.pth")
    assert extractor.record()["comparable_to_published"] is False
    del tensors["Mixed_6b.branch1x1.conv.weight"]
    torch.save(tensors, tmp_path / "v.pth")
    with pytest.raises(
        CheckpointError, match=r"not the weights of Inception-V3 .*Mixed_6b.branch1x1.conv.weight"
    ):
        InceptionFeatures(tmp_path / "v.pth")


# ---------------------------------------------------------------------------------------- trunks for LPIPS


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
