import math

import numpy as np
import pytest
import torch
from tests.encoders.test_efficientnet import IMAGENETTE

from fewgen.data import load_images
from fewgen.encoders.joint_lite import imagenet_classes, prototypes
from fewgen.encoders.kept import kept_vectors
from fewgen.encoders.named import encoder_record, make_joint_encoder


def test_the_table_of_classes_is_that_of_the_classifier(data_dir):
    rows = imagenet_classes()
    assert len(rows) == len({synset for synset, *_ in rows}) == 1000
    assert [synset for synset, *_ in rows] == sorted(synset for synset, *_ in rows)
    assert all(names and definition for _, names, definition in rows)
    with np.load(data_dir / "Imagenette64" / "imagenette_64_subset.npz") as file:
        wanted = list(zip(file["wnids"], file["class_names"], strict=True))
    assert [rows[i][:2] for i in IMAGENETTE] == wanted


def test_a_text_is_the_weighted_mean_of_the_classes_that_it_is_like():
    rng = torch.Generator().manual_seed(0)
    texts, classes, rows = (torch.randn(n, d, generator=rng) for n, d in ((2, 4), (6, 4), (6, 9)))
    found = prototypes(3 * texts, 2 * classes, rows, temperature=0.5)
    for i, text in enumerate(texts):
        cosines = [float(text @ c / (text.norm() * c.norm())) for c in classes]
        weights = [math.exp(2 * x) for x in cosines]
        wanted = sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)
        torch.testing.assert_close(found[i], wanted)


def test_vectors_of_texts_are_kept(tmp_path):
    asked = []

    def encode(texts):
        asked.append(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    for texts in (["a", "bcd"], ["a", "bcd"], ["bcd", "a"]):
        assert kept_vectors(texts, {"name": "len"}, tmp_path, encode).flatten().tolist() == [
            len(t) for t in texts
        ]
    assert asked == [["a", "bcd"], ["bcd", "a"]]


def test_it_has_a_digest_of_both_halves():
    assert len(encoder_record("joint", "lite")["sha256"]) == 64


@pytest.mark.slow
def test_images_are_near_to_their_words(data_dir):
    encoder = make_joint_encoder("lite", None)
    images = load_images("cifar10", split="test", data_dir=data_dir)
    images = images.subset(
        [i for label in range(10) for i in (images.labels == label).nonzero()[:40, 0].tolist()]
    )
    words = encoder.encode_texts(images.class_names)
    found = encoder.image_features(images.floats())
    assert found.shape == (400, 1280)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(400))
    accuracy = ((found @ words.T).argmax(1) == images.labels).double().mean()
    assert accuracy > 0.5
    # A text does not depend on its company; a word that it cannot know is told.
    torch.testing.assert_close(encoder.encode_texts(["cat"])[0], words[3], atol=1e-5, rtol=1e-4)
    with pytest.warns(UserWarning, match='nothing like "qwertzui": '):
        encoder.encode_texts(["dog", "qwertzui"])
    assert encoder.record()["image"]["sha256"].startswith("9656183e")
