"""Control images: counts, seeds, independence of the order, and that each is what it says."""

import pytest
import torch

from fewgen.data import load_images
from fewgen.data.imageset import ImageSet
from fewgen.evaluation.controls import (
    CONTROLS,
    DESCRIPTIONS,
    augmented_copies,
    halves,
    make_controls,
    spread_over_classes,
)
from fewgen.evaluation.copying import Aligner

NAMES = ("a", "b", "c")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy(labels, seed=0, channels=1, size=8):
    images = torch.randint(0, 256, (len(labels), channels, size, size), generator=rng(seed))
    return ImageSet(images.to(torch.uint8), torch.tensor(labels), NAMES)


def equal(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", size=16).split_shots(6, 5, 0)


# ---------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("n", [1, 3, 7, 8])
def test_spread_over_classes_is_even_as_far_as_classes_reach(n):
    labels = [0] * 20 + [1] * 2 + [2] * 9
    chosen = spread_over_classes(torch.tensor(labels), n, rng())
    counts = torch.bincount(torch.tensor(labels)[chosen], minlength=3).tolist()
    assert len(chosen) == len(set(chosen.tolist())) == n
    assert chosen.tolist() == sorted(chosen.tolist())
    assert max(counts) - min(counts) <= 1
    if n == 8:  # the second class holds only two
        assert counts == [3, 2, 3]


def test_spread_over_classes_draws_at_random_and_takes_all_if_there_are_few():
    images = noisy([0] * 20 + [1] * 20)
    draws = [spread_over_classes(images.labels, 10, rng(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(spread_over_classes(images.labels, 40, rng()), torch.arange(40))
    assert torch.equal(spread_over_classes(images.labels, 99, rng()), torch.arange(40))


@pytest.mark.parametrize(
    "labels", [[0] * 6 + [1] * 4 + [2] * 2, [0] * 5 + [1] * 7, [0, 1, 2] * 3, [0], [0, 1, 2]]
)
def test_halves_are_apart_and_even(labels):
    images = noisy(labels)
    first, second = halves(images, rng())
    assert sorted(first.tolist() + second.tolist()) == list(range(len(labels)))
    assert 0 <= len(first) - len(second) <= 1
    counts = [torch.bincount(images.labels[half], minlength=3) for half in (first, second)]
    assert int((counts[0] - counts[1]).abs().max()) <= 1
    if all(labels.count(c) % 2 == 0 for c in range(3)):
        assert torch.equal(*counts)


def test_halves_are_drawn_anew_by_each_generator():
    images = noisy([0] * 10 + [1] * 10)
    assert torch.equal(halves(images, rng(1))[0], halves(images, rng(1))[0])
    assert not torch.equal(halves(images, rng(1))[0], halves(images, rng(2))[0])


# ------------------------------------------------------------------------------------------- controls


def test_every_control_has_the_classes_that_are_asked_for(digits):
    train, held_out = digits
    wanted = torch.tensor([0] * 9 + [3] * 2 + [9])
    made = make_controls(train, held_out, wanted)
    assert set(made) == set(CONTROLS) - {"held_out"}
    assert set(DESCRIPTIONS) == set(CONTROLS)
    for name in ("copies", "augmented_copies", "noise", "one_per_class"):
        assert torch.equal(made[name].labels, wanted), name
    for images in made.values():
        assert images.class_names == train.class_names
        assert images.images.shape[1:] == train.images.shape[1:]
        assert images.images.dtype == torch.uint8


def test_controls_are_what_they_say(digits):
    train, held_out = digits
    wanted = torch.arange(10).repeat_interleave(8)
    made = make_controls(train, held_out, wanted)
    sources = {
        (int(label), image.numpy().tobytes()) for image, label in zip(train.images, train.labels, strict=True)
    }

    def are_sources(images):
        return [
            (int(label), image.numpy().tobytes()) in sources
            for image, label in zip(images.images, images.labels, strict=True)
        ]

    assert all(are_sources(made["copies"]))
    # 8 copies of 6 images of each class: all of them, two twice.
    assert len(made["copies"].images.unique(dim=0)) == len(train) == 60
    assert not any(are_sources(made["augmented_copies"]))
    assert not any(are_sources(made["noise"]))
    assert len(made["noise"].images.unique(dim=0)) == 80

    single = made["one_per_class"]
    assert len(single.images.unique(dim=0)) == 10
    for c in range(10):
        of_class = single.images[single.labels == c].unique(dim=0)
        assert len(of_class) == 1
        assert bool((held_out.images[held_out.labels == c] == of_class).flatten(1).all(dim=1).any())

    shuffled = made["shuffled_labels"]
    assert torch.equal(shuffled.images, held_out.images)
    assert torch.equal(shuffled.counts(), held_out.counts())
    right = float((shuffled.labels == held_out.labels).double().mean())
    assert right < 0.3


def test_augmented_copies_differ_from_their_sources_and_resemble_them(digits):
    train, held_out = digits
    changed = augmented_copies(train, rng())
    assert torch.equal(changed.labels, train.labels)
    assert len(changed.images.unique(dim=0)) == len(train)
    apart = (changed.images.double() - train.images.double()).abs().mean(dim=(1, 2, 3))
    assert float(apart.min()) > 0.5
    aligner = Aligner(train.images)
    found, usual = aligner.nearest(changed.images), aligner.nearest(held_out.images)
    assert float((found.index == torch.arange(len(train))).double().mean()) > 0.8
    assert float(found.score.median()) < float(usual.score.median()) - 0.1
    # Grey images are not mirrored (a mirrored letter is another letter), colour images are.
    assert not any("mirrored" in aligner.transforms[i] for i in found.transform.tolist())
    grey = train.images.expand(-1, 3, -1, -1).clone()
    colour = ImageSet(grey, train.labels, train.class_names)
    moved = Aligner(grey).nearest(augmented_copies(colour, rng()).images)
    mirrored = ["mirrored" in aligner.transforms[i] for i in moved.transform.tolist()]
    assert 0.2 < sum(mirrored) / len(mirrored) < 0.8


def test_seeds(digits):
    train, held_out = digits
    wanted = train.labels
    first, again, other = (make_controls(train, held_out, wanted, seed) for seed in (0, 0, 1))
    for name in first:
        assert equal(first[name], again[name]), name
    for name in ("augmented_copies", "noise", "shuffled_labels"):
        assert not equal(first[name], other[name]), name


def test_images_without_labels_and_classes_without_images():
    train = noisy([0, 0, 1, 1, 1], 1)
    held_out = noisy([0, 0, 0, 1, 1], 2)
    made = make_controls(train, held_out, torch.full((7,), -1))
    for name in ("noise", "one_per_class"):
        assert made[name].labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for name in ("copies", "augmented_copies"):  # there is no image of class 2 to copy
        assert len(made[name]) == 7
        assert made[name].labels.bincount().tolist()[1] == 2
    assert len(made["one_per_class"].images.unique(dim=0)) <= 3
