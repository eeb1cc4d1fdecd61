import math

import numpy as np
import pytest
import torch

from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.evaluation.retrieval import image_to_text_accuracy, text_to_image_accuracy


def naive_ways(scores, labels, n_classes):
    """Accuracy both ways by sorting lists, with every tie decided against the right answer."""
    hits = []
    for row, label in zip(scores, labels, strict=True):
        order = sorted(range(n_classes), key=lambda c: (-row[c], c == label))
        hits.append(order[0] == label)
    ranks, precisions = {}, {}
    for c in sorted(set(labels)):
        order = sorted(range(len(labels)), key=lambda i: (-scores[i][c], labels[i] == c))
        right = [labels[i] == c for i in order]
        ranks[c] = right.index(True) + 1
        precisions[c] = sum(right[: sum(right)])
    return hits, ranks, precisions


@pytest.mark.parametrize("coarse", [False, True])
def test_both_ways_equal_sorting(coarse):
    rng = torch.Generator().manual_seed(10)
    names = ("a", "b", "c", "d", "e")
    labels = torch.tensor([0, 0, 1, 1, 1, 3, 3, 4, 0, 3, 3])  # no image of class "c"
    for _ in range(30):
        scores = torch.randn(len(labels), 5, generator=rng, dtype=torch.float64)
        scores[torch.arange(len(labels)), labels] += 1
        if coarse:
            scores = scores.round()  # many ties
        hits, ranks, precisions = naive_ways(scores.tolist(), labels.tolist(), 5)
        to_image = text_to_image_accuracy(scores, labels, names)
        assert to_image.overall.successes == sum(hits)
        for c, share in to_image.per_class.items():
            members = [h for h, label in zip(hits, labels.tolist(), strict=True) if names[label] == c]
            assert (share.successes, share.n) == (sum(members), len(members))
        to_text = image_to_text_accuracy(scores, labels, names, ks=(1, 2, 3))
        assert to_text.rank == {names[c]: r for c, r in ranks.items()}
        assert {c: s.successes for c, s in to_text.precision.items()} == {
            names[c]: n for c, n in precisions.items()
        }
        assert to_text.first.successes == sum(r == 1 for r in ranks.values())
        for k in (1, 2, 3):
            assert to_text.recall[k] == pytest.approx(np.mean([r <= k for r in ranks.values()]))
        assert to_text.mean_recall == pytest.approx(np.mean(list(to_text.recall.values())))
        order = torch.randperm(len(labels), generator=rng)
        assert text_to_image_accuracy(scores[order], labels[order], names) == to_image
        assert image_to_text_accuracy(scores[order], labels[order], names, ks=(1, 2, 3)) == to_text
        classes = torch.tensor([4, 2, 0, 1, 3])
        moved = torch.argsort(classes)[labels]
        turned = text_to_image_accuracy(scores[:, classes], moved, [names[c] for c in classes])
        assert turned.overall == to_image.overall


def test_equal_scores_and_shuffled_labels_are_no_success():
    names = ("a", "b", "c")
    labels = torch.arange(300) % 3
    flat = torch.zeros(300, 3)
    assert text_to_image_accuracy(flat, labels, names).overall.value == 0
    assert text_to_image_accuracy(flat, labels, names).n_ties == 300
    assert image_to_text_accuracy(flat, labels, names).first.value == 0
    rng = torch.Generator().manual_seed(11)
    scores = torch.nn.functional.one_hot(labels, 3) + 0.1 * torch.rand(300, 3, generator=rng)
    assert text_to_image_accuracy(scores, labels, names).overall.value == 1
    good = image_to_text_accuracy(scores, labels, names)
    assert (good.first.value, good.mean_recall) == (1, 1)
    assert all(share.value == 1 for share in good.precision.values())
    shuffled = labels[torch.randperm(300, generator=rng)]
    found = text_to_image_accuracy(scores, shuffled, names)
    assert found.overall.low < found.chance < found.overall.high
    assert all(s.value < 0.5 for s in image_to_text_accuracy(scores, shuffled, names).precision.values())


def test_retrieval_refuses_bad_input():
    with pytest.raises(DataError, match="single class"):
        text_to_image_accuracy(torch.ones(2, 1), torch.zeros(2).long(), ("a",))
    with pytest.raises(DataError, match="one class"):
        image_to_text_accuracy(torch.ones(2, 2), torch.zeros(2).long(), ("a", "b"))
    with pytest.raises(ConfigError, match="ks"):
        image_to_text_accuracy(torch.ones(2, 2), torch.arange(2), ("a", "b"), ks=(0,))
    for function in (text_to_image_accuracy, image_to_text_accuracy):
        with pytest.raises(DataError, match="NaN"):
            function(torch.full((2, 2), math.nan), torch.arange(2), ("a", "b"))
        with pytest.raises(ShapeError):
            function(torch.ones(2, 3), torch.arange(2), ("a", "b"))
        with pytest.raises(DataError, match="no images"):
            function(torch.ones(0, 2), torch.zeros(0).long(), ("a", "b"))
        with pytest.raises(DataError, match=r"\[0, 2\)"):
            function(torch.ones(1, 2), torch.tensor([2]), ("a", "b"))
