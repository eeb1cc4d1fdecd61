"""Episodes: disjoint, exact, balanced, reproducible; and faults are named."""

from __future__ import annotations

import pickle
import time
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewgen.data import ImageSet
from fewgen.episodes import Episode, EpisodeSampler
from fewgen.errors import ConfigError, DataError, ShapeError


def numbered(counts: list[int], captions: bool = False) -> ImageSet:
    """Shuffled images whose three channels spell their position, so that each can be followed."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    position = torch.arange(len(labels))
    pixels = torch.stack([position % 256, position // 256, labels], dim=1).to(torch.uint8)
    texts = tuple(f"caption {i}" for i in range(len(labels))) if captions else None
    names = tuple(f"class {c}" for c in range(len(counts)))
    return ImageSet(
        pixels[:, :, None, None].expand(-1, 3, 2, 2).contiguous(), labels, names, texts, "numbered"
    )


def positions(images: ImageSet) -> list[int]:
    return (images.images[:, 0, 0, 0].long() + 256 * images.images[:, 1, 0, 0].long()).tolist()


def faults(episode: Episode, data: ImageSet, n_way: int, n_shot: int, n_query: int | None) -> list[str]:
    """Say what is wrong with an episode, from its pixels alone. Knows nothing of the sampler."""
    found = []
    support, query = positions(episode.support), positions(episode.query)
    if set(support) & set(query):
        found.append("support and query share images")
    if len(set(support)) != len(support) or len(set(query)) != len(query):
        found.append("repeated")
    classes = episode.classes.tolist()
    if len(set(classes)) != n_way:
        found.append("classes")
    names = tuple(data.class_names[c] for c in classes)
    for part, where, n in (("support", support, n_shot), ("query", query, n_query)):
        images: ImageSet = getattr(episode, part)
        true = [classes.index(c) if c in classes else None for c in data.labels[where].tolist()]
        if images.labels.tolist() != true:
            found.append(f"{part} labels")
        if images.class_names != names:
            found.append(f"{part} class names")
        wanted = {j: int(data.counts()[c]) - n_shot if n is None else n for j, c in enumerate(classes)}
        if Counter(images.labels.tolist()) != wanted:
            found.append(f"{part} counts")
    return found


@st.composite
def tasks(draw: st.DrawFn) -> tuple[list[int], int, int, int | None, int]:
    n_shot, n_query = draw(st.integers(1, 5)), draw(st.none() | st.integers(1, 5))
    least = n_shot + (n_query or 1)
    counts = draw(st.lists(st.just(0) | st.integers(least, least + 6), min_size=1, max_size=14).filter(any))
    n_way = draw(st.integers(1, sum(n > 0 for n in counts)))
    return counts, n_way, n_shot, n_query, draw(st.integers(0, 2**40))


@given(tasks())
def test_episodes_are_exact_disjoint_and_of_their_classes_only(task) -> None:
    counts, n_way, n_shot, n_query, seed = task
    data = numbered(counts, captions=True)
    sampler = EpisodeSampler(data.labels, n_way, n_shot, n_query, seed)
    for i in (0, 1, 2, 1000):
        episode = sampler.episode(i, data)
        assert faults(episode, data, n_way, n_shot, n_query) == []
        assert episode.index == i
        assert torch.equal(episode.classes, sampler.classes(i))
        assert episode.query.captions == tuple(f"caption {p}" for p in positions(episode.query))
        assert episode.support.name == data.name
        if n_query is not None:
            table = sampler.indices(i)
            assert table.dtype == torch.int64
            assert table.shape == (n_way, n_shot + n_query)
            assert table[:, :n_shot].flatten().tolist() == positions(episode.support)
            assert table[:, n_shot:].flatten().tolist() == positions(episode.query)


@given(tasks(), st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_episodes_do_not_depend_on_who_asks_and_in_which_order(task, asked) -> None:
    counts, n_way, n_shot, n_query, seed = task
    labels = numbered(counts).labels
    one = EpisodeSampler(labels, n_way, n_shot, n_query, seed)
    worker = pickle.loads(pickle.dumps(one))
    for i in asked:
        fresh = EpisodeSampler(labels, n_way, n_shot, n_query, seed)
        for other in (worker, fresh):
            for a, b in zip(one.support_query(i), other.support_query(i), strict=True):
                assert torch.equal(a, b)
            assert torch.equal(one.classes(i), other.classes(i))


def test_asking_draws_nothing_from_the_global_state_and_gives_away_no_memory() -> None:
    data = numbered([6] * 5)
    sampler = EpisodeSampler(data.labels, 3, 2, 2, 0)
    state = torch.get_rng_state()
    before = sampler.indices(4)
    classes = sampler.classes(4)
    assert torch.equal(torch.get_rng_state(), state)
    classes.fill_(-1)
    sampler.indices(4).fill_(-1)
    assert torch.equal(sampler.indices(4), before)


def test_the_draw_is_the_same_on_every_machine() -> None:
    sampler = EpisodeSampler(torch.arange(7).repeat(9), 3, 1, 2, seed=11)
    assert [sampler.classes(i).tolist() for i in (*range(7), 50)] == [
        [2, 1, 3],
        [0, 6, 5],
        [4, 0, 1],
        [6, 5, 3],
        [4, 2, 3],
        [4, 5, 2],
        [0, 6, 1],
        [4, 5, 3],
    ]
    assert sampler.indices(0).tolist() == [[16, 2, 44], [57, 43, 22], [17, 59, 3]]


@given(st.integers(1, 40), st.data())
def test_classes_are_distinct_and_balanced_in_every_block(n_classes, data) -> None:
    n_way = data.draw(st.integers(1, n_classes))
    sampler = EpisodeSampler(torch.arange(n_classes).repeat(2), n_way, 1, 1, data.draw(st.integers(0, 99)))
    n_episodes = sampler.episodes_per_block
    for block in (0, 3):
        drawn = torch.stack([sampler.classes(block * n_episodes + i) for i in range(n_episodes)])
        assert all(len(row.unique()) == n_way for row in drawn)
        assert set(drawn.flatten().bincount().tolist()) == {n_episodes * n_way // n_classes}


def test_every_number_of_classes_and_ways_works() -> None:
    """The proof in the docstring, tried out: each episode takes the classes with the most draws left."""
    for n_classes in range(1, 25):
        for n_way in range(1, n_classes + 1):
            sampler = EpisodeSampler(torch.arange(n_classes).repeat(2), n_way, 1, 1, 5)
            left = torch.full((n_classes,), sampler.episodes_per_block * n_way // n_classes)
            for i in range(sampler.episodes_per_block):
                chosen = sampler.classes(i)
                spared = torch.ones(n_classes, dtype=torch.bool)
                spared[chosen] = False
                assert len(chosen.unique()) == n_way
                if spared.any():
                    assert left[chosen].min() >= left[spared].max()
                left[chosen] -= 1
            assert not left.any()


def test_ties_are_broken_at_random_and_labels_tell_nothing() -> None:
    """Pairs of classes meet about equally often, and no class prefers a place in the episode."""
    n_classes, n_way, n_episodes = 5, 3, 3000
    sampler = EpisodeSampler(torch.arange(n_classes).repeat(2), n_way, 1, 1, 1)
    drawn = torch.stack([sampler.classes(i) for i in range(n_episodes)])
    member = torch.zeros(n_episodes, n_classes).scatter_(1, drawn, 1.0)
    together = member.T @ member
    expected = n_episodes * 3 / 10  # 3 of the 10 pairs are in an episode
    pairs = together[torch.triu(torch.ones(5, 5), 1).bool()]
    assert (pairs - expected).abs().max() < 5 * (n_episodes * 0.3 * 0.7) ** 0.5
    places = torch.stack([drawn[:, j].bincount(minlength=n_classes) for j in range(n_way)])
    assert (places - n_episodes / 5).abs().max() < 5 * (n_episodes * 0.2 * 0.8) ** 0.5


def test_images_are_drawn_evenly() -> None:
    sampler = EpisodeSampler(torch.zeros(10, dtype=torch.int64), 1, 2, 3, 0)
    drawn = torch.stack([sampler.indices(i)[0] for i in range(2000)])
    for part, share in ((drawn[:, :2], 0.2), (drawn[:, 2:], 0.3), (drawn[:, :1], 0.1)):
        times = part.flatten().bincount(minlength=10)
        assert (times - 2000 * share).abs().max() < 5 * (2000 * share * (1 - share)) ** 0.5


def test_other_shots_and_queries_keep_the_rest_of_the_episode() -> None:
    labels = numbered([20, 17, 30, 16, 19, 25]).labels

    def made(n_shot: int, n_query: int) -> EpisodeSampler:
        return EpisodeSampler(labels, 4, n_shot, n_query, 9)

    for i in (0, 5, 17):
        few, many = made(1, 10).indices(i), made(5, 10).indices(i)
        assert torch.equal(made(1, 10).classes(i), made(5, 3).classes(i))
        assert torch.equal(few[:, 0], many[:, 0])
        assert torch.equal(few[:, 1:], many[:, 5:]), "the same queries judge any number of shots"
        assert torch.equal(made(5, 3).indices(i), many[:, :8])
        support, query = EpisodeSampler(labels, 4, 5, None, 9).support_query(i)
        assert torch.equal(support, many[:, :5].flatten())
        assert set(many[:, 5:].flatten().tolist()) <= set(query.tolist())


def test_seeds_episodes_and_classes_differ() -> None:
    labels = torch.arange(6).repeat(30)
    a, b = EpisodeSampler(labels, 6, 5, 5, 0), EpisodeSampler(labels, 6, 5, 5, 1)
    assert not torch.equal(a.indices(0), b.indices(0))
    rows = {tuple((row // 6).tolist()) for i in range(3) for row in a.indices(i)}
    assert len(rows) == 18, "positions within the class: every class of every episode has a stream of its own"


def test_the_draw_of_a_class_does_not_depend_on_its_company() -> None:
    alone = EpisodeSampler(torch.full((12,), 3), 1, 2, 2, 4).indices(6)
    company = torch.cat([torch.full((12,), 3), torch.full((5,), 1)])
    sampler = EpisodeSampler(company, 2, 2, 2, 4)
    row = sampler.classes(6).tolist().index(3)
    assert torch.equal(sampler.indices(6)[row], alone[0])


def test_labels_without_images_are_no_classes() -> None:
    sampler = EpisodeSampler(torch.tensor([7, 2, 7, 2, 5, 5]), 3, 1, 1, 0, class_names=list("abcdefgh"))
    assert sampler.present.tolist() == [2, 5, 7]
    assert sorted(sampler.classes(0).tolist()) == [2, 5, 7]
    assert repr(sampler) == "EpisodeSampler(3 of 3 classes, 1 support and 1 query images each, seed 0)"


def test_all_remaining_images_are_queries_when_n_query_is_none() -> None:
    data = numbered([4, 9, 6])
    sampler = EpisodeSampler(data.labels, 3, 3, None, 2)
    support, query = sampler.support_query(0)
    assert sorted(torch.cat([support, query]).tolist()) == list(range(19))
    assert [data.labels[query].tolist().count(c) for c in sampler.classes(0)] == [
        int(data.counts()[c]) - 3 for c in sampler.classes(0)
    ]
    with pytest.raises(ConfigError, match=r"support_query\(i\), or set --tasks.n_query"):
        sampler.indices(0)
    assert "all other query" in repr(sampler)


class Careless(EpisodeSampler):
    """Draws support and query independently of each other: the usual mistake."""

    def support_query(self, i: int):
        support, _ = super().support_query(i)
        _, query = super().support_query(i + 1)
        return support, query


class WrongClass(EpisodeSampler):
    """Takes the images of another episode's classes."""

    def classes(self, i: int):
        return super().classes(i + 1) if self.lies else super().classes(i)

    lies = False

    def episode(self, i: int, images: ImageSet) -> Episode:
        support, query = self.support_query(i)
        self.lies = True
        return Episode.of(images, support, query, self.classes(i), i)


def unchecked(data: ImageSet, support: torch.Tensor, query: torch.Tensor, classes: torch.Tensor) -> Episode:
    """An episode that never went through `Episode.of`."""
    names = tuple(data.class_names[c] for c in classes.tolist())
    parts = []
    for where in (support, query):
        labels = torch.tensor([classes.tolist().index(c) for c in data.labels[where].tolist()])
        parts.append(ImageSet(data.images[where], labels, names))
    return Episode(parts[0], parts[1], classes, 0)


def test_negative_control_careless_samplers_are_caught() -> None:
    data = numbered([8] * 4)
    careless = Careless(data.labels, 4, 4, 4, 0)
    with pytest.raises(
        DataError, match=r"Episode 0 is not valid: \d+ images are in support and query \(posi"
    ):
        careless.episode(0, data)
    support, query = careless.support_query(0)
    made = unchecked(data, support, query, EpisodeSampler(data.labels, 4, 4, 4, 0).classes(0))
    assert "support and query share images" in faults(made, data, 4, 4, 4), (
        "the test's own checker sees it too"
    )
    with pytest.raises(DataError, match="support images are of classes that it does not name") as caught:
        WrongClass(data.labels, 2, 2, 2, 0).episode(0, data)
    assert "these classes have no query image" in str(caught.value)


def test_an_episode_checks_what_it_is_made_of() -> None:
    data = numbered([5, 5])
    a = (data.labels == 0).nonzero().flatten()
    only = torch.tensor([0])
    with pytest.raises(DataError, match="images are repeated"):
        Episode.of(data, a[[0, 0]], a[1:2], only)
    with pytest.raises(DataError, match="reach from 0 to 10 in 10 images"):
        Episode.of(data, torch.tensor([0]), torch.tensor([10]), only)
    with pytest.raises(DataError, match="must be different ones, got \\[0, 0\\]"):
        Episode.of(data, a[:1], a[1:2], torch.tensor([0, 0]))
    with pytest.raises(DataError, match="these classes have no query image: \\[0\\]"):
        Episode.of(data, a[:1], a[:0], only)
    one, other = data.select_classes(["class 0"]), data.select_classes(["class 1"])
    with pytest.raises(DataError, match="must name the same classes"):
        Episode(one, other, only, 0)
    episode = Episode.of(data, a[:2], a[2:], only, 7)
    assert (episode.n_way, episode.class_names, episode.index) == (1, ("class 0",), 7)


def test_episode_refuses_images_of_other_labels() -> None:
    data = numbered([5, 5])
    sampler = EpisodeSampler(data.labels, 2, 1, 1, 0)
    for other in (numbered([5, 6]), data.subset(list(range(9, -1, -1)))):
        with pytest.raises(
            DataError, match="was made with 10 labels, and these 1[01] images have other ones"
        ):
            sampler.episode(0, other)


def test_settings_below_one_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        EpisodeSampler(torch.zeros(3, dtype=torch.int64), 0, -1, 0, 0)
    for part in ("--tasks.n_way", "--tasks.n_shot must be at least 1, got -1", "--tasks.n_query"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="numbered from 0, got -1"):
        EpisodeSampler(torch.zeros(3, dtype=torch.int64), 1, 1, 1, 0).indices(-1)


def test_fewer_classes_than_n_way() -> None:
    with pytest.raises(DataError) as caught:
        EpisodeSampler(torch.tensor([0, 0, 2, 2]), 5, 1, 1, 0)
    assert str(caught.value) == (
        "These episodes cannot be drawn: n_way = 5 classes are needed, but only 2 have images; "
        "lower --tasks.n_way to at most 2, or add images of 3 more classes."
    )
    with pytest.raises(DataError, match="only 0 have images; add images of 1 more classes"):
        EpisodeSampler(torch.zeros(0, dtype=torch.int64), 1, 1, 1, 0)


def test_fewer_images_than_shots_and_queries() -> None:
    labels = torch.tensor([0] * 3 + [1] * 9 + [2] * 2)
    with pytest.raises(DataError) as caught:
        EpisodeSampler(labels, 2, 3, 2, 0, class_names=("cat", "dog", "fox"))
    assert str(caught.value) == (
        "These episodes cannot be drawn: n_shot + n_query = 3 + 2 = 5 images of each class are needed, but "
        'there are only 3 of "cat", 2 of "fox"; lower --tasks.n_shot and --tasks.n_query to at most 2 '
        "together, add images, or leave these classes out."
    )
    with pytest.raises(
        DataError, match="only 3 of class 0, 2 of class 2; lower --tasks.n_shot to at most 1, "
    ):
        EpisodeSampler(labels, 2, 5, None, 0)
    EpisodeSampler(labels, 2, 1, None, 0)
    with pytest.raises(DataError, match="only 1 of class 0; add images, or leave"):
        EpisodeSampler(torch.tensor([0]), 1, 1, 1, 0)
    with pytest.raises(DataError) as caught:
        EpisodeSampler(torch.arange(25), 30, 1, 1, 0)
    assert "1 of class 9 and 15 more classes" in str(caught.value)
    assert "--tasks.n_way to at most 25" in str(caught.value), "both problems at once"


def test_labels_that_are_none() -> None:
    with pytest.raises(ShapeError, match=r"torch.float32 \(3,\)"):
        EpisodeSampler(torch.zeros(3), 1, 1, 1, 0)
    with pytest.raises(DataError, match="reach from -1 to 1"):
        EpisodeSampler(torch.tensor([-1, 1]), 1, 1, 1, 0)
    with pytest.raises(DataError, match="reach from 0 to 3, but there are 2 class names"):
        EpisodeSampler(torch.tensor([0, 3]), 1, 1, 1, 0, class_names=("a", "b"))


def test_drawing_is_cheap() -> None:
    """Below 0.5 ms per episode at 5 of 180 classes with 500 images each; the best of several tries."""
    labels = torch.arange(180).repeat(500)
    start = time.perf_counter()
    sampler = EpisodeSampler(labels, 5, 5, 15, 0)
    assert time.perf_counter() - start < 1.0
    best = float("inf")
    for _ in range(10):
        start = time.process_time()
        for i in range(36):
            sampler.indices(i)
        best = min(best, (time.process_time() - start) / 36)
    assert best < 5e-4, f"{best * 1e3:.2f} ms per episode"
