"""Digests of images and sets, the orders that follow from them, and what is equal to what."""

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fewgen.data import ImageSet, load_images
from fewgen.data.identity import (
    content_order,
    fingerprint,
    image_digests,
    mixed_content_order,
    near_identical,
    same_images,
    short_fingerprint,
    without,
)

NAMES = ("a", "b", "ü")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy(labels, seed=0, channels=1, size=8):
    images = torch.randint(0, 256, (len(labels), channels, size, size), generator=rng(seed))
    return ImageSet(images.to(torch.uint8), torch.tensor(labels, dtype=torch.int64), NAMES)


def equal(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("order", [content_order, mixed_content_order])
def test_order_does_not_depend_on_the_order_of_the_images(order):
    images = noisy([2, 0, 1, 0, 2, 2, 1, 0, 0, 1])
    expected = images.subset(order(images))
    assert (expected.labels.tolist() == sorted(images.labels.tolist())) is (order is content_order)
    for seed in range(5):
        mixed = images.subset(torch.randperm(10, generator=rng(seed)))
        assert equal(mixed.subset(order(mixed)), expected)
    assert sorted(order(images).tolist()) == list(range(10))


def test_content_order_sees_every_pixel_and_repeated_images():
    images = noisy([0] * 6)
    images.images[3] = images.images[0]
    images.images[4] = images.images[0]
    images.images[4, 0, 7, 7] ^= 1
    order = content_order(images).tolist()
    assert abs(order.index(0) - order.index(3)) == 1
    changed = ImageSet(images.images.clone(), torch.tensor([1, 0, 0, 0, 0, 0]), NAMES)
    assert content_order(changed).tolist()[-1] == 0


def test_without_counts_every_twin():
    images = noisy([0, 1, 0, 1, 0, 1])
    doubled = images.subset([0, 0, 1, 2])
    kept, twins = without(doubled, images.subset([0]), None)
    assert (len(kept), twins) == (2, 2)
    assert without(images, None) == (images, 0)


def test_same_images_counts_repetitions_and_not_the_order():
    images = noisy([0, 1, 0])
    assert same_images(images, images.subset([2, 0, 1]))
    assert not same_images(images.subset([0, 0, 1]), images.subset([0, 1, 1]))
    assert not same_images(images, images.subset([0, 1]))


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.transpose(2, 3), lambda x: x[:0]])
@pytest.mark.parametrize("channels", [1, 3])
def test_values_that_files_hold_never_change(channels, view):
    """Digests as version 0.1 computed them, also for memory that is not in order."""
    full = noisy([0, 1, 2, 1], channels=channels, size=5)
    pixels = view(full.images)
    images = ImageSet(pixels, full.labels[: len(pixels)], NAMES)
    rows = [image.tobytes() for image in images.images.numpy()]
    labels = images.labels.numpy().tobytes()
    assert image_digests(images) == [hashlib.blake2b(row, digest_size=16).digest() for row in rows]
    shape = str(tuple(images.images.shape)).encode()
    assert fingerprint(images) == hashlib.sha256(shape + b"".join(rows) + labels).hexdigest()
    about = json.dumps({"a": 1})
    whole = hashlib.sha256(about.encode() + b"".join(rows) + labels)
    assert fingerprint(images, about) == whole.hexdigest()
    names = "\0".join(NAMES).encode()
    brief = hashlib.blake2b(b"".join(rows) + labels + names, digest_size=8).hexdigest()
    assert short_fingerprint(images) == f"{len(images)} images, {brief}"


def test_fingerprints_see_pixels_labels_and_order():
    images = noisy([0, 1, 2, 1])
    changed = images.images.clone()
    changed[2, 0, 3, 4] ^= 1
    others = [
        images.subset([1, 0, 2, 3]),
        ImageSet(changed, images.labels, NAMES),
        ImageSet(images.images, torch.tensor([0, 1, 2, 2]), NAMES),
    ]
    for digest in (fingerprint, short_fingerprint):
        assert len({digest(images), *map(digest, others)}) == 4


def saved_again(images, quality, enlarged=1):
    """The same images after a stay in a JPEG file, at another size if wished."""
    rows = []
    for x in images.images.permute(0, 2, 3, 1).numpy():
        size = x.shape[1::-1]
        file = io.BytesIO()
        image = Image.fromarray(x).resize([enlarged * side for side in size], Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=quality)
        back = Image.open(file).resize(size, Image.Resampling.BICUBIC)
        rows.append(torch.from_numpy(np.array(back)).permute(2, 0, 1))
    return ImageSet(torch.stack(rows), images.labels, images.class_names)


def test_images_that_were_saved_in_another_way_are_near_identical_and_others_are_not(data_dir):
    photographs = load_images("imagenette64", data_dir=data_dir)
    some, rest = photographs.subset(range(0, 600, 10)), photographs.subset([i for i in range(600) if i % 10])
    assert not near_identical(some, rest).any()
    for again in (some, saved_again(some, 90), saved_again(some, 85, 2)):
        assert near_identical(again, photographs).all()
        assert near_identical(photographs, again).sum() == len(some)
    darker = ImageSet((some.images // 2), some.labels, some.class_names)
    assert not near_identical(darker, some).any()
    assert near_identical(some, photographs.subset([])).tolist() == [False] * len(some)
    assert near_identical(photographs.subset([]), some).tolist() == []


@pytest.mark.parametrize("name", ["digits", "omniglot"])
def test_drawings_of_one_class_are_not_near_identical(data_dir, name):
    drawings = load_images(name, data_dir=data_dir)
    some = torch.arange(len(drawings)) % 3 == 0
    assert not near_identical(drawings.subset(some), drawings.subset(~some)).any()


def test_flat_images_of_two_shades_are_not_near_identical():
    shades = torch.tensor([0, 3, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(4, 1, 20, 20)
    flat = ImageSet(shades.contiguous(), torch.zeros(4, dtype=torch.int64), ("a",))
    found = [near_identical(flat.subset([i]), flat.subset([j])).item() for i in range(4) for j in range(4)]
    assert torch.equal(torch.tensor(found).view(4, 4), torch.eye(4, dtype=torch.bool))
