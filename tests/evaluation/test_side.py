"""Sides of a comparison: halves, and parts with equal proportions of the classes."""

import itertools

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.evaluation.test_verdict_tests import labelled, rng, side_of

from fewgen.evaluation.side import matched, split

# ------------------------------------------------------------------------------------------- matched

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(LABELS, LABELS)
def test_matched_gives_both_sides_the_same_proportions(labels, reference):
    shared = set(labels) & set(reference)
    assume(shared)
    own, other = matched(torch.tensor(labels), torch.tensor(reference))
    assert own.tolist() == sorted(set(own.tolist()))
    kept = [labels[i] for i in own.tolist()]
    assert [reference[i] for i in other.tolist()] == [c for c in reference if c in shared]
    assert set(kept) == shared
    scale = min(labels.count(c) / reference.count(c) for c in shared)
    for c in shared:
        assert kept.count(c) <= labels.count(c)
        assert abs(kept.count(c) - scale * reference.count(c)) < 1 + 1e-6
    # The scarcest class is used up: no image is given away for nothing.
    assert any(kept.count(c) == labels.count(c) for c in shared)


@given(LABELS)
def test_matched_keeps_everything_of_equal_proportions(labels):
    own, other = matched(torch.tensor(labels * 3), torch.tensor(labels))
    assert len(own) == 3 * len(labels)
    assert len(other) == len(labels)


def test_matched_without_anything_to_match():
    a, b, none = torch.tensor([0, 0, 1]), torch.tensor([2, 2]), torch.tensor([], dtype=torch.int64)
    for labels, reference in ((a, b), (torch.tensor([-1, -1]), b), (none, b), (a, none), (none, none)):
        own, other = matched(labels, reference)
        assert own.tolist() == list(range(len(labels)))
        assert other.tolist() == list(range(len(reference)))


# -------------------------------------------------------------------------------------------- halves


def test_split_gives_each_half_its_own_parts():
    side = side_of(labelled(12), predictions=labelled(12), scores=torch.linspace(0, 1, 12))
    parts = split(side, rng(0))
    for part in parts:
        for image, score, seen, feature in zip(
            part.images.images, part.nearest.score, part.predictions, part.features, strict=True
        ):
            i = int((side.nearest.score == score).nonzero())
            assert torch.equal(image, side.images.images[i])
            assert int(seen) == int(side.predictions[i])
            assert torch.equal(feature, side.features[i])
    both = sorted(itertools.chain(*(part.feature_scores.tolist() for part in parts)))
    assert both == sorted(side.feature_scores.tolist())
