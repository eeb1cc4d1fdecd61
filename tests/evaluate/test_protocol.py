"""The whole protocol on pictures whose answers are known: copies, fresh draws, noise, wrong labels."""

import json
import math

import pytest
import torch

from fewgen.data.imageset import ImageSet
from fewgen.errors import ConfigError, DataError
from fewgen.evaluate import ClassifierFeatures, ClassifierSettings, RealSide, UsefulnessSettings
from fewgen.evaluate.protocol import FIGURES, measure_generated, reference_subset

NAMES = ("down", "across", "dot")
TINY = UsefulnessSettings(width=8, dim=8, steps=20, batch_size=16)


def shapes(n, seed, size=12, hard=False):
    """Three classes of noisy shapes; `hard` has strong noise."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 200 if hard else 50, (n, 1, size, size), generator=rng, dtype=torch.uint8)
    labels = torch.arange(n) % 3
    rows, columns = torch.randint(2, size - 4, (2, n), generator=rng)
    for image, label, row, column in zip(images[:, 0], labels, rows, columns, strict=True):
        if label == 0:
            image[:, column : column + 2] = 230
        elif label == 1:
            image[row : row + 2] = 230
        else:
            image[row : row + 3, column : column + 3] = 230
    return ImageSet(images, labels, NAMES, name="shapes")


@pytest.fixture(scope="module")
def real():
    train, test = shapes(30, seed=1), shapes(300, seed=2)
    extractor = ClassifierFeatures.of(
        shapes(600, seed=0),
        settings=ClassifierSettings(steps=60, batch_size=32, width=16, dim=8),
        use_cache=False,
    )
    return RealSide.of(train, test, extractor)


def measure(real, generated, **options):
    options = {"usefulness_settings": TINY, "usefulness_seeds": (0,)} | options
    return measure_generated(generated, real.train, real.test, real.extractor, real_side=real, **options)


CHEAP = [name for name in FIGURES if not name.startswith("usefulness")]


def value(found, name):
    return found["figures"][name]["value"]


def test_every_figure_is_there_finite_and_json(real):
    found = measure(real, shapes(90, seed=3))
    json.dumps(found, allow_nan=False)
    assert list(found["figures"]) == list(FIGURES)
    assert found["omitted"] == {}
    assert all(math.isfinite(value(found, name)) for name in FIGURES)
    protocol = found["protocol"]
    assert (protocol["n_generated"], protocol["n_train"], protocol["n_test"]) == (90, 30, 300)
    assert protocol["extractor"]["test_accuracy"] > 0.9


def test_controls_are_told_apart(real):
    fresh = measure(real, shapes(300, seed=4), figures=CHEAP)
    copies = measure(real, real.train.subset(torch.arange(30).repeat(10)), figures=CHEAP)
    rng = torch.Generator().manual_seed(0)
    noise = ImageSet(
        torch.randint(0, 256, (300, 1, 12, 12), generator=rng, dtype=torch.uint8),
        torch.arange(300) % 3,
        NAMES,
    )
    junk = measure(real, noise, figures=CHEAP)
    turned = shapes(300, seed=4)
    wrong = measure(real, ImageSet(turned.images, (turned.labels + 1) % 3, NAMES), figures=CHEAP)

    assert value(fresh, "class_agreement") > 0.9 > 0.1 > value(wrong, "class_agreement")
    assert value(fresh, "frechet_distance") < 0.1 * value(junk, "frechet_distance")
    assert value(fresh, "coverage") > value(copies, "coverage") > value(junk, "coverage")
    for space in ("copy_share", "copy_share_pixels"):
        assert value(copies, space) == 1.0
        assert value(fresh, space) < 0.05


def test_order_of_images_changes_nothing(real):
    generated = shapes(120, seed=5)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    shuffled_test = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    options = {"figures": CHEAP, "n_reference": 200}
    one = measure(real, generated, **options)
    side = RealSide.of(real.train, real.test.subset(shuffled_test), real.extractor)
    other = measure(side, generated.subset(order), **options)
    for name in CHEAP:
        assert value(one, name) == pytest.approx(value(other, name), rel=1e-5, abs=1e-7), name


def test_figures_that_need_more_are_omitted_by_name(real):
    one = measure(real, shapes(1, seed=6), figures=CHEAP)
    assert "at least 2" in one["omitted"]["frechet_distance"]
    assert "class_agreement" in one["figures"]
    few = RealSide.of(real.train, real.test.subset(torch.arange(50)), real.extractor)
    assert "at least 100" in measure(few, shapes(30, seed=6), figures=CHEAP)["omitted"]["copy_share"]


def test_bad_sets_are_refused(real):
    with pytest.raises(DataError, match="empty"):
        measure(real, shapes(3, seed=0).subset([]))
    images = shapes(6, seed=0)
    with pytest.raises(DataError, match="same class names"):
        measure(real, ImageSet(images.images, images.labels, ("a", "b", "c")))
    with pytest.raises(ConfigError, match='Did you mean "coverage"'):
        measure(real, images, figures=["covrage"])


def test_reference_subset_is_by_content():
    images = shapes(50, seed=7)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    chosen, again = reference_subset(images, 20), reference_subset(images.subset(order), 20)
    assert set(chosen.tolist()) == set(order[again].tolist())
    assert torch.equal(reference_subset(images, 99), torch.arange(50))
