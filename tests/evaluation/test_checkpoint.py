"""Figures of a checkpoint's images: they rank generators, find copies, and refuse what they cannot judge."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from tests.methods.test_cada_vqvae import shapes

from fewgen.data.imageset import ImageSet
from fewgen.errors import DataError
from fewgen.evaluation.checkpoint import N_DRAWN, N_SHOWN, CheckpointJudge

TRAIN, HELD_OUT, FRESH = (shapes(n, seed=seed) for n, seed in ((20, 0), (8, 1), (30, 2)))


@pytest.fixture(scope="module")
def judge():
    return CheckpointJudge(TRAIN, HELD_OUT)


def of_classes(images, labels):
    """An image of each of these classes, in their order."""
    places = {k: cycle((images.labels == k).nonzero().flatten().tolist()) for k in range(images.n_classes)}
    return images.images[[next(places[k]) for k in labels.tolist()]]


def noisy(images, size, seed=0):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images.float() + size * noise).clamp(0, 255).to(torch.uint8)


def test_classes_are_drawn_in_the_proportions_of_the_held_out_images(judge):
    counts = torch.bincount(judge.labels)
    assert len(judge.labels) == N_DRAWN
    assert counts.max() - counts.min() <= 1


def test_worse_images_are_farther(judge):
    real = of_classes(FRESH, judge.labels)
    sets = {
        "real": real,
        "grainy": noisy(real, 25),
        "noisy": noisy(real, 100),
        "noise": noisy(torch.full_like(real, 128), 100),
    }
    found = {name: judge(images) for name, images in sets.items()}
    distances = [drawn.distance for drawn in found.values()]
    assert distances == sorted(distances)
    for worse, better in (("grainy", "real"), ("noisy", "grainy"), ("noise", "noisy")):
        assert found[worse].distance > found[better].distance + found[worse].error + found[better].error
    assert abs(found["real"].distance) < 4 * found["real"].error + 0.02
    assert abs(found["real"].real_distance) < 0.05
    assert len(found["real"].images) == N_SHOWN


def test_one_image_per_class_and_images_of_other_classes_are_far(judge):
    real = judge(of_classes(FRESH, judge.labels))
    single = judge(of_classes(FRESH.subset([0, 30, 60]), judge.labels))
    swapped = judge(of_classes(FRESH, (judge.labels + 1) % 3))
    assert min(single.distance, swapped.distance) > 0.15
    assert abs(real.distance) < 0.1
    # Where nobody asks for a class, only the whole counts.
    blind = CheckpointJudge(TRAIN, HELD_OUT, with_classes=False)
    assert abs(blind(of_classes(FRESH, (blind.labels + 1) % 3)).distance) < 0.05


def photographs(n, seed):
    """Images without look-alikes by nature, as bars of few places have them."""
    rng = torch.Generator().manual_seed(seed)
    base = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(3).repeat_interleave(n)
    pixels = base[labels] + torch.rand(3 * n, 1, 12, 12, generator=rng)
    return ImageSet((255 * pixels / 2).to(torch.uint8), labels, ("a", "b", "c"))


@pytest.mark.parametrize("n_held_out", [1, 2, 10])
def test_a_generator_that_has_learned_by_heart_is_caught(n_held_out):
    """Exact copies always; near-copies as soon as held-out images can show what is usual."""
    train = photographs(20, 1)
    judge = CheckpointJudge(train, photographs(n_held_out, 2))
    copies, fresh = of_classes(train, judge.labels), of_classes(photographs(30, 3), judge.labels)
    for images in (copies, copies.flip(3)):
        found = judge(images)
        assert found.copies
        assert found.copy_share == 1.0
    grainy = judge(noisy(copies, 4))
    assert grainy.copy_share == 1.0
    assert grainy.copies or n_held_out < 10
    assert judge(torch.cat([copies[:8], fresh[8:]])).copies
    assert not judge(fresh).copies


def test_what_cannot_be_compared_is_said():
    for held_out, message in (
        (None, "no images are held out"),
        (HELD_OUT.subset([0]), "only 1 image is held out"),
    ):
        judge = CheckpointJudge(TRAIN, held_out)
        with pytest.raises(DataError, match=message):
            judge.labels  # noqa: B018 - computed where it is read
