import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewgen.data.imageset import ImageSet
from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings
from fewgen.encoders.lpips import ConvTrunk
from fewgen.errors import CheckpointError, DataError, ShapeError
from fewgen.evaluation.perceptual import FeaturePyramid, lpips_distance, read_lpips_weights


class Layers:
    """Two fixed random convolutions as a trunk."""

    channels = (4, 6)

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3, stride=2)

    @torch.no_grad()
    def layers(self, x):
        one = torch.relu(self.first(x))
        return [one, torch.relu(self.second(one))]

    def record(self):
        return {"name": "layers"}


def naive_lpips(layers_x, layers_y, weights):
    """Equation 1, position by position, in NumPy."""
    total = np.zeros(len(layers_x[0]))
    for a, b, w in zip(layers_x, layers_y, weights, strict=True):
        n, channels, height, width = a.shape
        for image in range(n):
            for i in range(height):
                for j in range(width):
                    u, v = a[image, :, i, j], b[image, :, i, j]
                    u, v = (vector / (np.sqrt((vector**2).sum()) + 1e-10) for vector in (u, v))
                    total[image] += sum(w[c] * (u[c] - v[c]) ** 2 for c in range(channels)) / (height * width)
    return total


def pictures(n, seed, size=9, channels=1):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("weighted", [False, True])
def test_against_a_plain_loop(weighted):
    x, y, trunk = pictures(5, 0), pictures(5, 1), Layers()
    weights = (
        [torch.rand(c, generator=torch.Generator().manual_seed(c)) for c in trunk.channels]
        if weighted
        else None
    )
    scales = [w.double().numpy() for w in weights] if weighted else [np.ones(c) for c in trunk.channels]
    layers_x, layers_y = ([layer.double().numpy() for layer in trunk.layers(images)] for images in (x, y))
    found = lpips_distance(x, y, trunk, weights)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), naive_lpips(layers_x, layers_y, scales), rtol=1e-6)


def test_properties():
    x, y, trunk = pictures(7, 0), pictures(7, 1), Layers()
    distance = lpips_distance(x, y, trunk)
    assert torch.equal(lpips_distance(x, x, trunk), torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(lpips_distance(y, x, trunk), distance)
    assert bool((distance > 0).all())
    assert bool((distance <= 4).all())  # two layers, directions without negative parts
    torch.testing.assert_close(lpips_distance(x, y, trunk, batch_size=2), distance, rtol=1e-5, atol=1e-7)
    order = torch.tensor([3, 1, 0, 2, 6, 5, 4])
    torch.testing.assert_close(
        lpips_distance(x[order], y[order], trunk), distance[order], rtol=1e-5, atol=1e-7
    )
    assert lpips_distance(x[:0], y[:0], trunk).shape == (0,)
    # A layer without weight does not count.
    zero = [torch.ones(4), torch.zeros(6)]
    assert bool((lpips_distance(x, y, trunk, zero) < distance).all())


def test_file_images_and_model_images_agree():
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, 256, (3, 1, 9, 9), generator=rng, dtype=torch.uint8) for _ in range(2))
    floats = [v.float() / 127.5 - 1 for v in (x, y)]
    torch.testing.assert_close(lpips_distance(x, y, Layers()), lpips_distance(*floats, Layers()))


def test_positions_without_activation_are_equal():
    class Silent(Layers):
        def layers(self, x):
            return [torch.zeros(len(x), 4, 3, 3), torch.zeros(len(x), 6, 2, 2)]

    assert lpips_distance(pictures(2, 0), pictures(2, 1), Silent()).tolist() == [0.0, 0.0]


def test_wrong_input_is_named():
    x, trunk = pictures(2, 0), Layers()
    with pytest.raises(ShapeError, match="both sets must be equal"):
        lpips_distance(x, x[:1], trunk)
    with pytest.raises(DataError, match="reach from"):
        lpips_distance(x * 127, x, trunk)
    with pytest.raises(DataError, match="reach from nan"):
        lpips_distance(x * torch.nan, x, trunk)
    with pytest.raises(ShapeError, match=r"need \[\(4,\), \(6,\)\]"):
        lpips_distance(x, x, trunk, [torch.ones(4)])
    with pytest.raises(DataError, match="not negative"):
        lpips_distance(x, x, trunk, [torch.ones(4), -torch.ones(6)])


# -------------------------------------------------------------------------------------- published weights


@pytest.mark.parametrize(("kind", "file"), [("vgg16", "vgg.pth"), ("alexnet", "alex.pth")])
def test_published_weights_fit_their_trunk(kind, file):
    # torchmetrics carries the files of the LPIPS authors; finding the package is enough.
    package = importlib.util.find_spec("torchmetrics").submodule_search_locations[0]
    path = Path(package) / "functional" / "image" / "lpips_models" / file
    with torch.device("meta"):
        channels = {k: ConvTrunk(k).channels for k in ("vgg16", "alexnet")}
    weights, digest = read_lpips_weights(path, channels[kind])
    assert [len(w) for w in weights] == list(channels[kind])
    assert all(bool((w >= 0).all()) for w in weights)
    assert len(digest) == 64
    other = channels["alexnet" if kind == "vgg16" else "vgg16"]
    with pytest.raises(
        CheckpointError, match=r"not hold the LPIPS weights of this trunk: lin1.model.1.weight"
    ):
        read_lpips_weights(path, other)
    with pytest.raises(CheckpointError, match="was asked for"):
        read_lpips_weights(path, channels[kind], "0" * 64)


def test_other_files_are_refused(tmp_path):
    torch.save({"lin0.model.1.weight": torch.ones(1, 4, 1, 1)}, tmp_path / "lin.pth")
    assert read_lpips_weights(tmp_path / "lin.pth", (4,))[0][0].tolist() == [1.0] * 4
    with pytest.raises(CheckpointError, match=r"lin1.model.1.weight is missing, wanted \(1, 6, 1, 1\)"):
        read_lpips_weights(tmp_path / "lin.pth", (4, 6))
    with pytest.raises(CheckpointError, match="no such tensor"):
        read_lpips_weights(tmp_path / "lin.pth", ())


# ------------------------------------------------------------------------------------- the small classifier


@pytest.fixture(scope="module")
def classifier():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 80, (40, 1, 16, 16), generator=rng, dtype=torch.uint8)
    labels = torch.arange(40) % 2
    images[labels == 1, :, 4:8] += 150
    settings = ClassifierSettings(steps=20, batch_size=16, width=16, dim=8, pool_first=True)
    return ClassifierFeatures.of(ImageSet(images, labels, ("a", "b")), settings=settings, use_cache=False)


def test_pyramid_gives_the_layers_of_the_classifier(classifier):
    pyramid = FeaturePyramid(classifier)
    assert pyramid.channels == (8, 16)
    seen = []
    hooks = [
        m.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
        for m in classifier.network.body
        if isinstance(m, nn.ReLU)
    ]
    x = pictures(3, 0, size=16)
    with torch.no_grad():
        classifier.network(x)
    for hook in hooks:
        hook.remove()
    layers = pyramid.layers(x)
    assert [layer.shape[1] for layer in layers] == list(pyramid.channels)
    for a, b in zip(layers, seen, strict=True):
        assert torch.equal(a, b)
    assert pyramid.record()["name"] == "classifier_layers"


def test_pyramid_distance_grows_with_the_damage(classifier):
    x = pictures(6, 0, size=16)
    noise = pictures(6, 1, size=16)
    distances = [
        float(lpips_distance(x, (1 - share) * x + share * noise, FeaturePyramid(classifier)).mean())
        for share in (0.0, 0.1, 0.3, 0.6)
    ]
    assert distances[0] == 0
    assert distances == sorted(distances)
    with pytest.raises(ShapeError, match=r"\(1, 16, 16\), but these are \(1, 9, 9\)"):
        FeaturePyramid(classifier).layers(pictures(1, 0))
