"""The rule of "real": failed generators get "no", soft images "partly", real images neither."""

import pytest
import torch
from torch.nn import functional

from fewgen.data import load_images
from fewgen.data.imageset import ImageSet
from fewgen.evaluation.controls import augmented_copies
from fewgen.evaluation.copying import Nearest
from fewgen.evaluation.failed import FAILED, failed_images
from fewgen.evaluation.looks_failed import DECIDING, looks_failed
from fewgen.evaluation.side import Side
from fewgen.fitting.seeds import make_rng


def side_of(images):
    """A side whose judge sees the blurred image: enough to know a shape."""
    features = functional.adaptive_avg_pool2d(images.images.float() / 64, 7).flatten(1)
    unknown = Nearest.unknown(len(images))
    return Side(images, features, None, unknown, unknown.distance)


def like(images, pixels):
    pixels = pixels.clamp(0, 255).round().to(torch.uint8)
    return ImageSet(pixels, images.labels, images.class_names)


@pytest.fixture(scope="module")
def sets():
    train, rest = load_images("mnist").split_shots(20, 20, 0)
    place = torch.arange(len(rest)) % 20
    return train, rest.subset(place < 8), rest.subset(place >= 8)


@pytest.fixture(scope="module")
def test(sets):
    train = sets[0]
    failed = {name: side_of(images) for name, images in failed_images(train).items()}
    augmented = side_of(augmented_copies(train, torch.Generator().manual_seed(0)))
    return looks_failed(train, lambda: failed, lambda: augmented)


@pytest.mark.parametrize("name", FAILED)
def test_failed_generators_look_failed(sets, test, name):
    _, held_out, real = sets
    found = test(side_of(failed_images(real, 1)[name]), side_of(held_out))
    assert found.answer == "no"
    assert FAILED[name][0] in found.plain or found.numbers["beyond_the_middle_in"]


def test_fog_and_blobs_look_failed_and_soft_images_partly_real(sets, test):
    _, held_out, real = sets
    mean = real.images.float().mean(0)
    rng = make_rng("cpu", 0)
    fog = like(real, (0.6 * mean + 6 * torch.randn(real.images.shape, generator=rng)))
    blobs = functional.interpolate(
        functional.adaptive_avg_pool2d(real.images.float(), 4), 28, mode="bilinear"
    )
    for images in (fog, like(real, 0.6 * blobs)):
        assert test(side_of(images), side_of(held_out)).answer == "no"
    soft = functional.avg_pool2d(real.images.float(), 2, 1, 1)[:, :, :28, :28]
    found = test(side_of(like(real, soft)), side_of(held_out))
    assert found.answer == "partly"
    assert set(found.numbers["told_apart"]) & set(DECIDING)


def test_real_images_look_real(sets, test):
    _, held_out, real = sets
    assert test(side_of(real), side_of(held_out)).answer == "yes"
    assert (
        test(side_of(held_out.subset(range(0, 80, 2))), side_of(held_out.subset(range(1, 80, 2)))).answer
        == "yes"
    )
    # Also in one class, and in uneven classes.
    for labels in ((3,), (0, 0, 0, 5)):
        chosen = torch.cat([(real.labels == c).nonzero().flatten() for c in labels])
        assert test(side_of(real.subset(chosen)), side_of(held_out)).answer == "yes"


def test_few_real_images_are_not_called_failed():
    data = load_images("digits", size=8).select_classes(["one", "four", "six", "seven"])
    wrong = 0
    for seed in range(20):
        train, rest = data.split_shots(12, 8, seed)
        place = torch.arange(len(rest)) % 8
        failed = {name: side_of(images) for name, images in failed_images(train, seed).items()}
        rule = looks_failed(train, lambda failed=failed: failed, None, seed)
        found = rule(side_of(rest.subset(place >= 3)), side_of(rest.subset(place < 3)))
        wrong += found.answer == "no"
    assert wrong == 0
