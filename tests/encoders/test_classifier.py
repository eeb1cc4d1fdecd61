import dataclasses
import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.encoders.tools import QUICK, bars

from fewgen.data.augment import shift_images
from fewgen.data.imageset import ImageSet
from fewgen.data.registry import load_images
from fewgen.encoders.base import in_batches
from fewgen.encoders.classifier import (
    ClassifierFeatures,
    ClassifierSettings,
    SmallConvNet,
    cache_folder,
    working_size,
)
from fewgen.encoders.named import make_image_encoder
from fewgen.errors import CheckpointError, ConfigError, DataError, ShapeError


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
    nothing = extractor.describe(images.subset([]))
    assert (nothing.features.shape, nothing.predictions.shape) == ((0, 8), (0,))
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


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


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
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not a readable .* does not hold the numbers .* or delete it"):
        ClassifierFeatures.load(path)
    metadata = metadata_of(path)
    del metadata["digest"]
    save_file(load_file(path), path, metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClassifierFeatures.of(images, settings=QUICK)  # of an earlier release: made again
    assert "digest" in metadata_of(path)
    # One changed pixel is other data.
    changed = images.images.clone()
    changed[0, 0, 0, 0] ^= 1
    ClassifierFeatures.of(ImageSet(changed, images.labels, images.class_names), settings=QUICK)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_order_of_the_training_images_does_not_matter():
    images = bars(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    first, second = (
        ClassifierFeatures.of(some, settings=QUICK, use_cache=False)
        for some in (images, images.subset(order))
    )
    assert first.record()["key"] == second.record()["key"]
    assert torch.equal(first.network.head.weight, second.network.head.weight)


def test_settings_fit_the_number_of_images(extractor):
    assert ClassifierSettings.for_images(60_000) == ClassifierSettings()
    few = ClassifierSettings.for_images(300, seed=7)
    assert (few.seed, few.steps < ClassifierSettings().steps) == (7, True)
    # Shifts follow the size at which the classifier sees the images.
    sides = {8: 1, 28: 2, 32: 2, 64: 4, 256: 4}
    assert {side: ClassifierSettings.for_images(300, side).max_shift for side in sides} == sides
    chosen = ClassifierFeatures.of(bars(12, size=8), use_cache=False)
    assert chosen.settings == ClassifierSettings.for_images(12, 8)
    assert (
        float((chosen.predict(bars(100, size=8, seed=1)) == bars(100, size=8, seed=1).labels).double().mean())
        > 0.8
    )


def test_a_few_digits_are_told_apart():
    train, test = (load_images("digits", split=split, size=8) for split in ("train", "test"))
    judge = ClassifierFeatures.of(train.shots(30, 0), test, use_cache=False)
    assert judge.record()["test_accuracy"] > 0.93


def test_training_images_are_shifted(monkeypatch):
    seen = []

    def spy(x, max_shift, rng):
        seen.append(max_shift)
        return shift_images(x, max_shift, rng)

    monkeypatch.setattr("fewgen.encoders.classifier.shift_images", spy)
    still, moved = (
        ClassifierFeatures.of(bars(40), settings=dataclasses.replace(QUICK, max_shift=s), use_cache=False)
        for s in (0, 3)
    )
    assert seen == [0] * QUICK.steps + [3] * QUICK.steps
    assert not torch.equal(still.network.head.weight, moved.network.head.weight)


@pytest.mark.parametrize("pool_first", [False, True])
def test_large_images_are_shrunk_and_it_is_recorded(pool_first):
    settings = dataclasses.replace(QUICK, steps=10, pool_first=pool_first)
    images = bars(20, size=100)
    large = ClassifierFeatures.of(images, settings=settings, use_cache=False)
    assert large.record()["resize"] == "antialiased bicubic, 100 x 100 -> 64 x 64"
    small = ClassifierFeatures.of(bars(20, size=64), settings=settings, use_cache=False)
    assert small.record()["resize"] == "none"
    assert large.record()["n_parameters"] == small.record()["n_parameters"]
    assert large.describe(images).features.shape == (20, 8)
    assert large.shrink(images.floats()).shape == (20, 1, 64, 64)
    assert float(large.shrink(images.floats()).abs().max()) <= 1
    with pytest.raises(ShapeError, match="100, 100"):
        large.features(bars(4, size=64))
    assert working_size(65, 300) == (14, 64)


def test_batches_are_filled_up():
    sizes = []

    def function(batch):
        sizes.append(len(batch))
        return batch.flatten(1).double()

    x = torch.arange(14).reshape(7, 2)
    found = in_batches(x, 3, function)
    assert torch.equal(found, x.float())
    assert (sizes, found.dtype) == ([3, 3, 3], torch.float32)
    assert in_batches(x[:0], 3, function).shape == (0, 2)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64), (1, 105)])
def test_network_takes_every_size(channels, size):
    network = SmallConvNet(channels, size, size, 10).eval()
    features, logits = network(torch.zeros(2, channels, size, size))
    assert features.shape == (2, 64)
    assert logits.shape == (2, 10)
    assert 30_000 < sum(p.numel() for p in network.parameters()) < 250_000


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
        make_image_encoder("pixel", other)
    with pytest.raises(ShapeError, match="too small"):
        SmallConvNet(1, 3, 3, 2)
