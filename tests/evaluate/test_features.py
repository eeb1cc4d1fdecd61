import dataclasses
import json

import pytest
import torch

from fewgen.data.imageset import ImageSet
from fewgen.errors import CheckpointError, ConfigError, DataError, ShapeError
from fewgen.evaluate import ClassifierFeatures, ClassifierSettings, PixelFeatures, make_extractor
from fewgen.evaluate.features import SmallConvNet, cache_folder

QUICK = ClassifierSettings(steps=25, batch_size=16, width=16, dim=8)


def bars(n, size=16, seed=0, channels=1):
    """Two classes, noisy bars across or down, easy to tell apart."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (n, channels, size, size), generator=rng, dtype=torch.uint8)
    labels = torch.arange(n) % 2
    places = torch.randint(2, size - 3, (n,), generator=rng)
    for image, label, place in zip(images, labels, places, strict=True):
        (image if label else image.transpose(1, 2))[:, place : place + 2] = 230
    return ImageSet(images, labels, ("down", "across"), name="bars")


@pytest.fixture(scope="module")
def extractor():
    return ClassifierFeatures.of(bars(200), bars(100, seed=1), QUICK, use_cache=False)


def test_classifier_learns_and_says_how_well(extractor):
    record = extractor.record()
    assert record["test_accuracy"] > 0.9
    assert (record["n_train"], record["n_test"], record["trained_on"]) == (200, 100, "bars")
    json.dumps(record)


def test_features_depend_on_the_image_alone(extractor):
    images = bars(60, seed=2)
    whole = extractor.describe(images)
    assert whole.features.shape == (60, 8)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = extractor.describe(images.subset(order))
    assert torch.allclose(shuffled.features, whole.features[order], atol=1e-5)
    assert torch.equal(shuffled.predictions, whole.predictions[order])
    alone = ClassifierFeatures(
        extractor.network, extractor.image_shape, extractor.class_names, QUICK, {}, batch_size=1
    )
    assert torch.allclose(alone.features(images), whole.features, atol=1e-5)


def test_training_is_repeatable_and_leaves_the_global_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = ClassifierFeatures.of(bars(40), settings=QUICK, use_cache=False)
    assert torch.equal(torch.rand(3), expected)
    second = ClassifierFeatures.of(bars(40), settings=QUICK, use_cache=False)
    for a, b in zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other = ClassifierFeatures.of(bars(40), settings=dataclasses.replace(QUICK, seed=1), use_cache=False)
    assert not torch.equal(other.network.head.weight, first.network.head.weight)


def test_cache_is_used_and_survives_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWGEN_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    images = bars(40)
    made = ClassifierFeatures.of(images, settings=QUICK)
    (path,) = tmp_path.rglob("*.safetensors")
    monkeypatch.setattr(ClassifierFeatures, "_train", None)  # training again would fail
    again = ClassifierFeatures.of(images, settings=QUICK)
    assert torch.equal(again.features(images), made.features(images))
    monkeypatch.undo()
    monkeypatch.setenv("FEWGEN_CACHE_DIR", str(tmp_path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a readable"):
        ClassifierFeatures.load(path)
    mended = ClassifierFeatures.of(images, settings=QUICK)
    assert torch.equal(mended.features(images), made.features(images))
    # One changed pixel is other data.
    changed = images.images.clone()
    changed[0, 0, 0, 0] ^= 1
    ClassifierFeatures.of(ImageSet(changed, images.labels, images.class_names), settings=QUICK)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64), (1, 105)])
def test_network_takes_every_size(channels, size):
    network = SmallConvNet(channels, size, size, 10).eval()
    features, logits = network(torch.zeros(2, channels, size, size))
    assert features.shape == (2, 64)
    assert logits.shape == (2, 10)
    assert 30_000 < sum(p.numel() for p in network.parameters()) < 250_000


def test_pixel_distance_is_root_mean_square():
    images = bars(4, size=6)
    pixels = PixelFeatures(1, 6, 6)
    found = pixels.features(images)
    gap = images.floats()[0] - images.floats()[1]
    assert float((found[0] - found[1]).norm()) == pytest.approx(float(gap.square().mean().sqrt()), rel=1e-5)
    with pytest.raises(ShapeError, match="same size"):
        pixels.features(bars(4, size=8))


def test_wrong_input_is_named(extractor):
    with pytest.raises(ShapeError, match="16, 16"):
        extractor.features(bars(4, size=12))
    other = bars(4)
    with pytest.raises(DataError, match="same classes"):
        extractor.measure(ImageSet(other.images, other.labels, ("a", "b")))
    one = ImageSet(other.images, torch.zeros(4, dtype=torch.int64), ("only",))
    with pytest.raises(DataError, match="two classes"):
        ClassifierFeatures.of(one, use_cache=False)
    with pytest.raises(ConfigError, match='Did you mean "pixels"'):
        make_extractor("pixel", other)
    with pytest.raises(ShapeError, match="too small"):
        SmallConvNet(1, 3, 3, 2)
