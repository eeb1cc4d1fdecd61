"""A teacher on the features of an encoder: labels, views, and what its hash depends on."""

import dataclasses

import pytest
import torch
from tests.distillation.toy import NOVEL, data

from fewgen.data.imageset import ImageSet, to_uint8
from fewgen.distillation.encoder_teacher import EncoderTeacher
from fewgen.encoders.pixels import PixelFeatures
from fewgen.encoders.probe import linear_probe
from fewgen.errors import DataError


def pixels():
    return PixelFeatures(1, 16, 16)


@pytest.fixture(scope="module")
def supports():
    return data(5, NOVEL, seed=1)


def test_it_reads_other_images_of_the_classes(supports):
    teacher, queries = EncoderTeacher(pixels()), data(30, NOVEL, seed=2)
    learned = teacher.fit(supports)
    right = float((teacher.predict(queries, learned) == queries.labels).double().mean())
    assert right > 0.8
    shuffled = ImageSet(supports.images, supports.labels.roll(5), NOVEL)
    wrong = teacher.predict(queries, teacher.fit(shuffled)) == queries.labels
    assert float(wrong.double().mean()) < 0.3


def test_without_views_it_is_the_linear_probe(supports):
    teacher, encoder = EncoderTeacher(pixels(), views=0), pixels()
    wanted = linear_probe(encoder.features(supports), supports.labels).logits(encoder.features(supports))
    assert torch.equal(teacher.logits(supports, teacher.fit(supports)), wanted.float())


def test_images_and_their_floats_get_the_same_labels(supports):
    teacher = EncoderTeacher(pixels(), views=1)
    learned = teacher.fit(supports)
    floats = supports.floats()
    assert torch.equal(to_uint8(floats), supports.images)
    assert torch.equal(teacher.logits(floats, learned), teacher.logits(supports, learned))
    # Each label is a function of its image alone.
    assert torch.equal(teacher.logits(floats[3:4], learned), teacher.logits(floats, learned)[3:4])


def test_the_same_supports_are_looked_at_once(supports, monkeypatch):
    teacher, looks = EncoderTeacher(pixels(), views=2), []
    seen = PixelFeatures.features
    monkeypatch.setattr(PixelFeatures, "features", lambda own, x: looks.append(len(x)) or seen(own, x))
    assert teacher.fit(supports) is teacher.fit(supports)
    assert looks == [3 * len(supports)]


def test_its_hash_follows_all_that_its_labels_depend_on():
    teacher = EncoderTeacher(pixels())
    assert teacher.id == EncoderTeacher(pixels()).id
    changes = {"views": 9, "jitter": 0.3, "flip": False, "padding": 2, "seed": 1}
    others = [dataclasses.replace(teacher, **{key: value}).id for key, value in changes.items()]
    others.append(EncoderTeacher(PixelFeatures(1, 20, 20)).id)
    assert len({teacher.id, *others}) == 7


def test_a_class_without_supports_is_named(supports):
    with pytest.raises(DataError, match="1 of 4 classes have no support"):
        EncoderTeacher(pixels()).fit(supports.subset(supports.labels != 2))
