import dataclasses
import json

import pytest
import torch

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
from fewgen.encoders.image import make_extractor
from fewgen.encoders.pixels import PixelFeatures
from fewgen.encoders.probe import class_predictor, linear_probe
from fewgen.errors import CheckpointError, ConfigError, DataError, ShapeError

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


def test_shifts_are_whole_pixels_and_continue_the_edge():
    x = torch.rand(40, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert shift_images(x, 0, torch.Generator()) is x
    moved = shift_images(x, 2, torch.Generator().manual_seed(1))
    seen = set()
    for image, found in zip(x, moved, strict=True):
        places = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(
                found,
                image[:, (torch.arange(5) + dy).clamp(0, 4)][:, :, (torch.arange(7) + dx).clamp(0, 6)],
            )
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 10
    assert {dy for dy, _ in seen} == {dx for _, dx in seen} == {-2, -1, 0, 1, 2}
    assert torch.equal(moved, shift_images(x, 2, torch.Generator().manual_seed(1)))


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


# ------------------------------------------------------------------------------------- classes of features


def test_the_classifier_judges_by_its_own_head(extractor):
    images = bars(50, seed=4)
    described = extractor.describe(images)
    predict = class_predictor(extractor, bars(20))
    assert torch.equal(predict(described.features), described.predictions)
    assert torch.equal(extractor.predict(images), described.predictions)
    # Other class names: the classifier's own classes would be wrong, so a probe takes over.
    names = ("across", "down")
    train = bars(60, seed=5)
    swapped = ImageSet(train.images, 1 - train.labels, names)
    found = class_predictor(extractor, swapped)(described.features)
    assert float((found == 1 - images.labels).double().mean()) > 0.9


def test_a_linear_probe_judges_other_features():
    train, test = bars(200, size=8), bars(100, size=8, seed=1)
    pixels = PixelFeatures(1, 8, 8)
    assert pixels.describe(test).predictions is None
    predict = class_predictor(pixels, train)
    found = predict(pixels.features(test))
    assert found.dtype == torch.int64
    assert float((found == test.labels).double().mean()) > 0.9
    assert torch.equal(class_predictor(pixels, train, pixels.features(train))(pixels.features(test)), found)
    shuffled = ImageSet(
        train.images,
        train.labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))],
        train.class_names,
    )
    chance = class_predictor(pixels, shuffled)(pixels.features(test))
    assert float((chance == test.labels).double().mean()) < 0.7


def test_probe_is_the_optimum_of_its_objective():
    # Two classes in one dimension: minimise the penalised logistic loss by plain gradient descent.
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(30, generator=rng) - 1, torch.randn(20, generator=rng) + 1]).double()
    labels = torch.cat([torch.zeros(30), torch.ones(20)]).long()
    z = (x - x.mean()) / x.std(correction=0)
    slope, offset = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for _ in range(2_000):
        error = torch.sigmoid(slope * z + offset) - labels
        slope -= 0.03 * ((error * z).sum() + slope)
        offset -= 0.03 * error.sum()
    border = float(-offset / slope * x.std(correction=0) + x.mean())
    predict = linear_probe(x[:, None], labels)
    assert predict(torch.tensor([[border - 0.002], [border + 0.002]])).tolist() == [0, 1]


def test_probe_ignores_units_order_and_constant_features():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    x = torch.randn(90, 5, generator=rng).double() + labels[:, None] * torch.tensor([1.0, 0.5, 0, 0, 0])
    test = torch.randn(200, 5, generator=rng).double() + 0.5
    found = linear_probe(x, labels)(test)
    assert len(found.unique()) == 3
    units, places = torch.tensor([1e-6, 1e3, 1.0, 7.0, 0.1]), torch.tensor([1.0, -5.0, 0.0, 100.0, 3.0])
    assert torch.equal(linear_probe(x * units + places, labels)(test * units + places), found)
    order = torch.randperm(90, generator=rng)
    assert torch.equal(linear_probe(x[order], labels[order])(test), found)
    constant = torch.full((90, 1), 0.1).double()
    wild = torch.full((200, 1), 1e6).double()
    assert torch.equal(linear_probe(torch.cat([x, constant], 1), labels)(torch.cat([test, wild], 1)), found)


def test_probe_names_what_it_cannot_use():
    x, labels = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2
    with pytest.raises(DataError, match="at least two classes, but there are 1"):
        linear_probe(x, torch.zeros(10, dtype=torch.int64))
    with pytest.raises(DataError, match="2 of 10 feature vectors hold NaN"):
        linear_probe(torch.cat([x[:8], torch.full((2, 3), torch.nan)]), labels)
    with pytest.raises(ShapeError, match=r"\(10, 3\) and \(9,\)"):
        linear_probe(x, labels[:9])
    predict = linear_probe(x, labels)
    assert predict(x[:0]).shape == (0,)
    with pytest.raises(ShapeError, match="knows 3 features"):
        predict(x[:, :2])
    with pytest.raises(DataError, match="1 of 1 feature vectors"):
        predict(torch.full((1, 3), torch.inf))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinno:x", 'no features "dinno".* Did you mean "dino"'),
        ("pixels:x", 'The features "pixels" take no path'),
        ("inception", 'The features "inception" need a path'),
        ("dino:", 'The features "dino" need a path'),
        ("inception:absent.pth", "no weight file absent.pth"),
        ("inception:absent.pth#sha256=12", "no weight file absent.pth"),
        ("clip:x#sha256=12", 'A checksum goes with "inception" only'),
        ("dino:./absent", "no folder ./absent"),
    ],
)
def test_wrong_names_of_features_are_explained(name, message):
    with pytest.raises(ConfigError, match=message):
        make_extractor(name, bars(4))


def test_features_by_name():
    assert make_extractor("pixels", bars(4, size=6)).dim == 36
    judge = make_extractor("classifier", bars(40), bars(20, seed=1), settings=QUICK, use_cache=False)
    assert judge.record()["n_test"] == 20


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
