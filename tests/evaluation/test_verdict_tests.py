"""What each test says of made-up scores."""

import json

import pytest
import torch

from fewgen.data.imageset import ImageSet
from fewgen.errors import DataError
from fewgen.evaluation.copying import Nearest, tail_test
from fewgen.evaluation.side import Side
from fewgen.evaluation.verdict_tests import (
    ALPHA,
    is_diverse,
    looks_real,
    no_copies_in_features,
    no_copies_in_pixels,
    no_repeats,
    not_nearer_on_average,
    repeats_itself,
    shows_its_class,
    standard_tests,
)
from fewgen.evaluation.verdicts import decide, run_controls

NAMES = ("a", "b", "c")


def rng(seed):
    return torch.Generator().manual_seed(seed)


def labelled(n):
    return torch.arange(n) % 3


def without_labels(images):
    blank = ImageSet(images.images, images.labels, images.class_names)
    object.__setattr__(blank, "labels", torch.full_like(images.labels, -1))
    return blank


def side_of(labels, *, features=None, predictions=None, scores=None, images=None, seed=0):
    """A `Side` with these parts; what a test does not look at is made up."""
    labels = torch.as_tensor(labels)
    n = len(labels)
    if images is None:
        images = torch.randint(0, 256, (n, 1, 4, 4), generator=rng(seed)).to(torch.uint8)
    features = torch.randn(n, 4, generator=rng(seed + 1)) if features is None else features
    scores = torch.full((n,), 0.9) if scores is None else torch.as_tensor(scores)
    zeros = torch.zeros(n, dtype=torch.int64)
    nearest = Nearest(scores.double(), zeros, torch.ones(n, dtype=torch.float64), zeros)
    return Side(ImageSet(images, labels, NAMES), features, predictions, nearest, scores.double())


def unlabelled(side):
    return Side(
        without_labels(side.images), side.features, side.predictions, side.nearest, side.feature_scores
    )


# ------------------------------------------------------------------------------------------- copying


def natural(n, seed):
    """Scores as real images have them."""
    return (0.8 + 0.07 * torch.randn(n, generator=rng(seed), dtype=torch.float64)).clamp(0.4, 0.99)


@pytest.mark.parametrize("test", [no_copies_in_pixels, no_copies_in_features])
def test_copies_among_scores(test):
    held_out = side_of(labelled(90), scores=natural(90, 1))
    assert test(side_of(labelled(90), scores=natural(90, 2)), held_out).answer == "yes"
    for n, answer in ((90, "no"), (30, "no"), (9, "no")):
        scores = natural(90, 2)
        scores[:n] = 1e-3 * torch.arange(n)
        found = test(side_of(labelled(90), scores=scores), held_out)
        assert found.answer == answer
        assert found.numbers["clear_copies"] == n
        assert f"{n} of 90 are copies" in found.why
        json.dumps(found.numbers, allow_nan=False)
    # Images that are all far from every training image are new.
    assert test(side_of(labelled(90), scores=torch.full((90,), 0.99)), held_out).answer == "yes"


@pytest.mark.parametrize("test", [no_copies_in_pixels, not_nearer_on_average])
def test_held_out_images_that_are_training_images_do_not_hide_copies(test):
    scores = natural(90, 1)
    generated = side_of(labelled(60), scores=torch.zeros(60))
    expected = test(generated, side_of(labelled(90)[30:], scores=scores[30:]))
    scores[:30] = 0
    found = test(generated, side_of(labelled(90), scores=scores))
    assert found.answer == expected.answer
    assert found.answer in ("no", "partly")


def test_classes_that_look_alike_by_nature_are_no_copies():
    # Images of class 0 come near each other. Nine of ten generated images are of class 0, one of 15 real.
    def scores(labels, seed):
        return natural(len(labels), seed) - torch.where(labels == 0, 0.35, 0.0)

    labels = torch.cat([torch.zeros(180, dtype=torch.int64), torch.arange(20) % 2 + 1])
    generated = side_of(labels, scores=scores(labels, 1))
    real = torch.cat([torch.zeros(6, dtype=torch.int64), torch.arange(84) % 2 + 1])
    held_out = side_of(real, scores=scores(real, 2))
    # Negative control: without regard to classes the same test accuses them.
    assert tail_test(generated.nearest.score, held_out.nearest.score).p_value < ALPHA
    assert no_copies_in_pixels(generated, held_out).answer == "yes"
    assert not_nearer_on_average(generated, held_out).answer == "yes"


def test_four_held_out_images_are_too_few_to_speak_of_copies():
    generated = side_of(labelled(9), scores=torch.zeros(9))
    with pytest.raises(DataError, match="4 held-out images"):
        no_copies_in_pixels(generated, side_of(labelled(4)))
    with pytest.raises(DataError):
        not_nearer_on_average(generated, side_of(labelled(4), scores=torch.zeros(4)))


def test_nearness_on_average_is_partly_at_worst():
    held_out = side_of(labelled(60), scores=natural(60, 1))
    assert not_nearer_on_average(side_of(labelled(60), scores=natural(60, 2)), held_out).answer == "yes"
    nearer = side_of(labelled(60), scores=natural(60, 2) - 0.15)
    assert not_nearer_on_average(nearer, held_out).answer == "partly"
    farther = side_of(labelled(60), scores=natural(60, 2) + 0.15)
    assert not_nearer_on_average(farther, held_out).answer == "yes"


# ---------------------------------------------------------------------------------------------- real


def cloud(n, seed, shift=0.0, scale=1.0):
    """Features around one centre per class, and images that look alike."""
    labels = labelled(n)
    centres = 3 * torch.randn(3, 6, generator=rng(99))
    noise = torch.randn(n, 6, generator=rng(seed))
    images = torch.randint(60, 200, (n, 1, 4, 4), generator=rng(seed + 1000)).to(torch.uint8)
    return side_of(labels, features=centres[labels] + scale * noise + shift, images=images)


def test_real_and_other_images():
    held_out = cloud(60, 1)
    assert looks_real(None)(cloud(60, 2), held_out).answer == "yes"
    near = looks_real(None)(cloud(60, 2, shift=0.8), held_out)
    assert near.answer == "partly"
    far = looks_real(None)(cloud(60, 2, shift=8.0), held_out)
    assert far.answer == "no"
    assert far.numbers["p_value"] < ALPHA
    for found in (near, far):
        json.dumps(found.numbers, allow_nan=False)


@pytest.mark.parametrize(
    ("n", "good_news"), [(6, "cannot tell"), (18, "cannot tell"), (21, "yes"), (30, "yes")]
)
def test_few_held_out_images_can_speak_against_images_but_not_for_them(n, good_news):
    """The control is judged by half of the held-out images, and still has to pass."""
    held_out = cloud(n, 1)
    test = next(t for t in standard_tests(held_out, None) if t.question == "real")
    noise = cloud(60, 7, shift=-9.0)
    half = torch.arange(n) % 2 == 0
    controls = run_controls(
        [test], {"held_out": (held_out.at(~half), held_out.at(half)), "noise": (noise, held_out)}
    )
    assert {name: found.answer for name, found in controls[test.name].items()} == {
        "held_out": "yes",
        "noise": "no",
    }

    def verdict(images):
        return decide([test], {test.name: test.run(images, held_out)}, controls, n)["real"]

    found = verdict(cloud(60, 2))
    assert found.answer == good_news
    assert ("at least 20" in found.why) == (good_news == "cannot tell")
    assert verdict(cloud(60, 2, shift=8.0)).answer == "no"


def test_images_as_near_as_augmented_copies_are_real():
    held_out, images = cloud(60, 1), cloud(60, 2, shift=0.8)
    calls = []

    def augmented(shift):
        calls.append(shift)
        return cloud(60, 3, shift=shift)

    assert looks_real(lambda: augmented(1.5))(images, held_out).answer == "yes"
    assert looks_real(lambda: augmented(0.1))(images, held_out).answer == "partly"
    # Images that are not told apart need no such comparison.
    calls.clear()
    assert looks_real(lambda: augmented(1.5))(cloud(60, 2), held_out).answer == "yes"
    assert not calls


def test_pixels_unmask_what_the_judge_takes_for_real():
    held_out = cloud(60, 1)
    images = cloud(60, 2, shift=0.8)
    extreme = (torch.randint(0, 2, (60, 1, 4, 4), generator=rng(5)) * 255).to(torch.uint8)
    fooled = side_of(images.labels, features=images.features, images=extreme)
    assert looks_real(None)(images, held_out).answer == "partly"
    assert looks_real(None)(fooled, held_out).answer == "no"


def test_unequal_class_counts_are_no_difference():
    def apart(labels, seed):  # three classes far from each other
        points = torch.nn.functional.one_hot(labels, 3) + 0.1 * torch.randn(
            len(labels), 3, generator=rng(seed)
        )
        return side_of(labels, features=points)

    held_out = apart(labelled(60), 1)
    uneven = apart(torch.tensor([0] * 50 + [1] * 10 + [2] * 40), 2)
    assert looks_real(None)(uneven, held_out).answer == "yes"
    # Negative control: without labels the same images are told apart.
    assert looks_real(None)(unlabelled(uneven), held_out).answer != "yes"


# ------------------------------------------------------------------------------------------- diverse


@pytest.mark.parametrize(
    ("scale", "answer"), [(1.0, "yes"), (1.6, "yes"), (0.6, "partly"), (0.15, "no"), (0.0, "no")]
)
def test_spread_within_classes(scale, answer):
    held_out = cloud(60, 1)
    found = is_diverse(held_out)(cloud(60, 2, scale=scale), held_out)
    assert found.answer == answer
    json.dumps(found.numbers, allow_nan=False)


def test_one_collapsed_class_is_named():
    held_out, images = cloud(60, 1), cloud(60, 2)
    features = images.features.clone()
    features[images.labels == 1] = images.features[1]
    found = is_diverse(held_out)(side_of(images.labels, features=features), held_out)
    assert found.answer == "partly"
    assert '"b"' in found.why
    assert found.numbers["low"] == ["b"]


def test_few_held_out_images_widen_what_counts_as_chance():
    few, many = cloud(12, 1), cloud(240, 1)
    slack = [is_diverse(held)(cloud(60, 2), held).numbers["slack"][0] for held in (few, many)]
    assert slack[0] > 1.2 * slack[1] > 0


def test_diversity_needs_two_images_of_a_class_and_labels():
    held_out, images = cloud(60, 1), cloud(60, 2)
    for test in (is_diverse(held_out), repeats_itself(held_out)):
        with pytest.raises(DataError, match="class labels"):
            test(unlabelled(images), held_out)
        with pytest.raises(DataError):
            test(images.at(torch.arange(3)), held_out)  # one image of each class
    single = held_out.at(torch.arange(3))
    with pytest.raises(DataError):
        is_diverse(single)(images, single)
    pairs = held_out.at(torch.tensor([0, 1, 3, 4]))  # two images of two classes: no halves, no spread
    with pytest.raises(DataError, match="at least 4"):
        is_diverse(pairs)(images, pairs)


def test_collapsed_pairs():
    held_out, images = cloud(90, 1), cloud(90, 2)
    test = repeats_itself(held_out)
    assert test(images, held_out).answer == "yes"
    features = images.features.clone()
    some = torch.arange(90) < 45  # half of each class: a quarter of its pairs
    features[some] = features[labelled(90)][some]
    assert test(side_of(images.labels, features=features), held_out).answer == "partly"
    all_one = images.features[labelled(90)]
    assert test(side_of(images.labels, features=all_one), held_out).answer == "no"


def test_repeated_images():
    held_out, images = cloud(60, 1), cloud(60, 2)
    assert no_repeats(images, held_out).answer == "yes"
    for n, answer in ((2, "yes"), (10, "partly"), (40, "no")):
        repeated = images.images.images.clone()
        repeated[:n] = repeated[59]
        assert no_repeats(side_of(images.labels, images=repeated), held_out).answer == answer
    with pytest.raises(DataError):
        no_repeats(images, held_out.at(torch.arange(0)))


# ------------------------------------------------------------------------------------------- aligned


def read(labels, share, seed):
    """What a judge sees that is right in this share of cases."""
    wrong = torch.rand(len(labels), generator=rng(seed)) >= share
    return torch.where(wrong, (labels + 1) % 3, labels)


def test_class_agreement():
    labels = labelled(150)
    held_out = side_of(labels, predictions=read(labels, 0.95, 1))
    assert shows_its_class(side_of(labels, predictions=read(labels, 0.96, 2)), held_out).answer == "yes"
    assert shows_its_class(side_of(labels, predictions=read(labels, 0.75, 2)), held_out).answer == "partly"
    shuffled = labels[torch.randperm(150, generator=rng(3))]
    found = shows_its_class(side_of(shuffled, predictions=labels), held_out)
    assert found.answer == "no"
    json.dumps(found.numbers, allow_nan=False)


def test_class_agreement_needs_labels_and_a_judge_who_knows_classes():
    labels = labelled(30)
    side, blind = side_of(labels, predictions=labels), side_of(labels)
    for images, held_out in ((blind, side), (side, blind)):
        with pytest.raises(DataError, match="knows no classes"):
            shows_its_class(images, held_out)
    with pytest.raises(DataError, match="labels"):
        shows_its_class(unlabelled(side), side)
