from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewgen.errors import ConfigError, DataError
from fewgen.training.sampler import SAMPLERS, GroupedSampler, make_sampler

labels_strategy = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(torch.tensor)
kinds = st.sampled_from(sorted(SAMPLERS))


def draw(sampler, n_batches):
    return [sampler.next() for _ in range(n_batches)]


@settings(max_examples=15, deadline=None)
@given(labels_strategy, kinds, st.integers(1, 9), st.integers(0, 2**62), st.integers(0, 30))
def test_restoring_the_position_restores_the_order(labels, kind, batch_size, seed, skipped):
    whole = make_sampler(kind, labels, batch_size, seed)
    draw(whole, skipped)
    other = make_sampler(kind, labels, batch_size, seed)
    other.position = whole.position
    for a, b in zip(draw(whole, 5), draw(other, 5), strict=True):
        assert torch.equal(a, b)
        assert len(a) == batch_size


@settings(max_examples=15, deadline=None)
@given(labels_strategy, kinds, st.integers(1, 4), st.sampled_from([2, 3]), st.integers(0, 1000))
def test_processes_share_the_global_batch(labels, kind, batch_size, n, seed):
    whole = make_sampler(kind, labels, batch_size * n, seed)
    parts = [make_sampler(kind, labels, batch_size, seed, rank, n) for rank in range(n)]
    for _ in range(6):
        assert torch.equal(whole.next(), torch.cat([part.next() for part in parts]))


@settings(max_examples=15, deadline=None)
@given(labels_strategy, st.integers(1, 9), st.integers(0, 1000))
def test_shuffled_visits_every_image_equally_often(labels, batch_size, seed):
    n = len(labels)
    stream = torch.cat(draw(make_sampler("shuffled", labels, batch_size, seed), 3 * n))
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n].tolist()) == list(range(n))


@settings(max_examples=15, deadline=None)
@given(labels_strategy, st.integers(0, 1000))
def test_balanced_visits_every_class_once_per_round(labels, seed):
    present = labels.unique()
    stream = torch.cat(draw(make_sampler("balanced", labels, len(present), seed), 20))
    for round_ in stream.view(-1, len(present)):
        assert sorted(labels[round_].tolist()) == present.tolist()
    for c in present.tolist():
        members = torch.nonzero(labels == c).flatten().tolist()
        of_class = [i for i in stream.tolist() if labels[i] == c]
        for start in range(0, len(of_class) - len(members) + 1, len(members)):
            assert sorted(of_class[start : start + len(members)]) == members


@settings(max_examples=15, deadline=None)
@given(labels_strategy, st.integers(1, 5), st.integers(0, 1000))
def test_single_class_batches_and_rounds(labels, batch_size, seed):
    present = labels.unique().tolist()
    batches = draw(make_sampler("single_class", labels, batch_size, seed), 3 * len(present))
    classes = []
    for batch in batches:
        assert len(labels[batch].unique()) == 1
        classes.append(int(labels[batch[0]]))
    for start in range(0, len(classes), len(present)):
        assert sorted(classes[start : start + len(present)]) == present


def test_seeds_and_passes_differ():
    labels = torch.zeros(20, dtype=torch.long)
    a, b = (make_sampler("shuffled", labels, 20, seed) for seed in (0, 1))
    first, second = a.next(), a.next()
    assert not torch.equal(first, second)
    assert not torch.equal(first, b.next())


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    draw(make_sampler("balanced", torch.arange(9) % 3, 4, 0), 10)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input():
    with pytest.raises(ConfigError, match='Did you mean "balanced"'):
        make_sampler("ballanced", torch.zeros(3), 1, 0)
    with pytest.raises(DataError, match="no training images"):
        make_sampler("shuffled", torch.zeros(0), 1, 0)


@settings(max_examples=15, deadline=None)
@given(labels_strategy, st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_groups_are_of_one_class_and_classes_come_equally_often(labels, group, rounds, seed):
    present = labels.unique().tolist()
    sampler = GroupedSampler(labels, group * rounds, seed, group_size=group)
    classes = []
    for _ in range(3 * len(present)):
        batch = sampler.next()
        table = labels[batch].view(group, rounds)  # as minibatch deviation groups them
        assert (table == table[:1]).all()
        classes += table[0].tolist()
    for start in range(0, len(classes), len(present)):
        assert sorted(classes[start : start + len(present)]) == present


@settings(max_examples=15, deadline=None)
@given(labels_strategy, st.integers(1, 4), st.integers(0, 1000))
def test_grouped_batches_visit_the_images_of_a_class_equally_often(labels, group, seed):
    sampler = GroupedSampler(labels, 2 * group, seed, group_size=group)
    stream = torch.cat(draw(sampler, 40)).tolist()
    for c in labels.unique().tolist():
        members = torch.nonzero(labels == c).flatten().tolist()
        counts = [stream.count(i) for i in members]
        assert max(counts) - min(counts) <= 1


@settings(max_examples=10, deadline=None)
@given(labels_strategy, st.integers(1, 3), st.integers(0, 2**62), st.integers(0, 20))
def test_grouped_order_is_restored_by_the_position(labels, group, seed, skipped):
    whole = GroupedSampler(labels, 2 * group, seed, group_size=group)
    draw(whole, skipped)
    other = GroupedSampler(labels, 2 * group, seed, group_size=group)
    other.position = whole.position
    for a, b in zip(draw(whole, 5), draw(other, 5), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("n_processes", [2, 3])
def test_grouped_batches_of_each_process_hold_whole_groups(n_processes):
    labels = torch.arange(30) % 3
    parts = [GroupedSampler(labels, 4, 5, rank, n_processes, group_size=2) for rank in range(n_processes)]
    whole = GroupedSampler(labels, 4, 5, group_size=2)
    for _ in range(6):
        for part in parts:
            batch = part.next()
            assert torch.equal(batch, whole.next())
            table = labels[batch].view(2, 2)
            assert (table[0] == table[1]).all()


@pytest.mark.parametrize(("batch_size", "group"), [(8, 3), (4, 8), (4, 0)])
def test_a_group_that_does_not_divide_the_batch_is_refused(batch_size, group):
    with pytest.raises(ConfigError, match=f"{batch_size} images.*groups of {group}"):
        GroupedSampler(torch.zeros(9, dtype=torch.long), batch_size, 0, group_size=group)
