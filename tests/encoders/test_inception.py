import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.encoders.tools import noise_images, random_weights

from fewgen.data.imageset import ImageSet
from fewgen.encoders.inception import InceptionFeatures, InceptionV3, _InceptionA, _InceptionE, tf1_resize
from fewgen.encoders.named import make_image_encoder
from fewgen.encoders.weights import read_weights
from fewgen.errors import CheckpointError, ConfigError
from fewgen.files import file_sha256


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


def test_an_earlier_layer_may_be_taken(inception, inception_file, monkeypatch):
    network, seen = inception.network, {}
    after = {64: "Conv2d_2b_3x3", 192: "Conv2d_4a_3x3", 768: "Mixed_6e"}
    hooks = [
        getattr(network, name).register_forward_hook(lambda m, i, o, n=layer: seen.update({n: o}))
        for layer, name in after.items()
    ]
    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network(x)
        whole = dict(seen)
        for layer in after:
            monkeypatch.setattr(network, "layer", layer)
            found = network(x)
            assert found.shape == (1, layer)
            last = whole[layer] if layer == 768 else torch.nn.functional.max_pool2d(whole[layer], 3, 2)
            torch.testing.assert_close(found, last.mean((2, 3)))
    for hook in hooks:
        hook.remove()
    early = make_image_encoder(f"inception:{inception_file}:64", use_cache=False)
    assert (early.dim, early.network.layer, early.record()["dim"]) == (64, 64, 64)


def test_another_layer_is_refused(inception_file):
    with pytest.raises(ConfigError, match="64, 192, 768, 2048 features, not 100"):
        InceptionFeatures(inception_file, layer=100)


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
