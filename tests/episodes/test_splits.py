"""Class splits: the data sets' own, counts, alphabets, files; and faults are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewgen.data import ClassSplit, ImageSet, load_images
from fewgen.episodes import EpisodeSampler, class_split
from fewgen.errors import ConfigError, DataError


def fake(class_names: list[str], name: str = "mine", counts: list[int] | None = None) -> ImageSet:
    labels = torch.repeat_interleave(
        torch.arange(len(class_names)), torch.tensor(counts or [1] * len(class_names))
    )
    return ImageSet(
        torch.zeros((len(labels), 1, 2, 2), dtype=torch.uint8), labels, tuple(class_names), None, name
    )


def classes(n: int) -> list[str]:
    return [f"class {i}" for i in range(n)]


def sizes(split: ClassSplit) -> tuple[int, int, int]:
    return len(split.base), len(split.val), len(split.novel)


def alphabets(names: tuple[str, ...]) -> set[str]:
    return {name.split("/")[0] for name in names}


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [
        ("mnist (train)", 10, (6, 1, 3)),
        ("fashion_mnist (test)", 10, (6, 1, 3)),
        ("cifar10 (train, from JPEG)", 10, (6, 1, 3)),
        ("digits (train)", 10, (6, 1, 3)),
        ("tiny_imagenet32 (train, from JPEG)", 180, (125, 10, 45)),
        ("tiny_imagenet32_mine", 180, (108, 18, 54)),
        ("tiny_imagenet32 (train)", 20, (12, 2, 6)),
        ("mnist (train)", 2, (1, 0, 1)),
        ("mine", 3, (2, 0, 1)),
        ("mine", 4, (2, 1, 1)),
        ("mine", 5, (3, 1, 1)),
        ("", 242, (146, 24, 72)),
    ],
)
def test_auto_has_these_sizes(name, n, expected) -> None:
    data = fake(classes(n), name)
    split = class_split(data)
    assert sizes(split) == expected
    assert sorted((*split.base, *split.val, *split.novel)) == sorted(data.class_names)
    assert split == class_split(data, "auto", 0)
    if n > 5:
        assert split != class_split(data, seed=1)
    assert split == data.base_novel(expected[0], expected[1], 0)


@given(st.integers(2, 300), st.integers(0, 99))
def test_any_data_has_base_and_novel_classes(n, seed) -> None:
    base, val, novel = sizes(class_split(fake(classes(n)), "auto", seed))
    assert base + val + novel == n
    assert min(base, novel) >= 1
    assert (val >= 1) == (n >= 4)
    if n >= 20:
        assert abs(novel / n - 0.3) < 0.05
        assert abs(val / n - 0.1) < 0.05


ALPHABETS = {
    "Greek": 4,
    "Latin": 3,
    "Korean": 5,
    "Sanskrit": 2,
    "Tagalog": 3,
    "Aramaic": 2,
    "Balinese": 1,
    "Kana": 6,
}
CHARACTERS = [f"{alphabet}/character{i:02d}" for alphabet, n in ALPHABETS.items() for i in range(n)]


@given(st.integers(0, 200))
def test_omniglot_is_split_by_whole_alphabets(seed) -> None:
    split = class_split(fake(CHARACTERS, "omniglot (train: drawers 1-14)"), seed=seed)
    parts = [alphabets(names) for names in (split.base, split.val, split.novel)]
    assert [len(part) for part in parts] == [5, 1, 2]
    assert len(set.union(*parts)) == 8, "no alphabet is in two parts"
    assert sorted((*split.base, *split.val, *split.novel)) == sorted(CHARACTERS)


def test_alphabets_are_drawn_by_seed_and_not_by_order() -> None:
    one = fake(CHARACTERS, "omniglot (train)")
    other = fake(CHARACTERS[::-1], "omniglot (train)")
    novel = {frozenset(alphabets(class_split(one, seed=seed).novel)) for seed in range(40)}
    assert len(novel) > 10
    for seed in range(10):
        assert set(class_split(one, seed=seed).novel) == set(class_split(other, seed=seed).novel)
    base = class_split(one).base
    assert list(base) == [name for name in CHARACTERS if name in base]


def test_a_slash_means_nothing_in_other_data_unless_asked_for() -> None:
    data = fake(CHARACTERS, "mine")
    split = class_split(data)
    assert sizes(split) == (17, 2, 7)
    assert alphabets(split.base) & alphabets(split.novel), "negative control: a draw by class cuts alphabets"
    split = class_split(data, "alphabet")
    assert not alphabets(split.base) & alphabets(split.novel)
    assert split == class_split(fake(CHARACTERS, "omniglot (train)"))
    split = class_split(fake(["T-shirt/top", "Trouser", "Dress"]), "alphabet")
    assert sizes(split) == (2, 0, 1)


def test_one_alphabet_of_omniglot_is_split_by_character() -> None:
    data = fake([f"Greek/character{i:02d}" for i in range(10)], "omniglot (train)")
    assert sizes(class_split(data)) == (6, 1, 3)
    with pytest.raises(DataError, match="at least 2 alphabets with images, got 1"):
        class_split(data, "alphabet")


def test_all_and_counts() -> None:
    data = fake(classes(10))
    assert class_split(data, "all") == ClassSplit(data.class_names, (), ())
    assert sizes(class_split(data, "5/2/3", 4)) == (5, 2, 3)
    assert class_split(data, " 6/4 ", 4) == data.base_novel(6, 0, 4)
    assert class_split(fake(classes(1)), "all").base == ("class 0",)


def test_draws_leave_classes_without_images_out() -> None:
    data = fake(classes(6), counts=[1, 0, 1, 1, 0, 1])
    assert class_split(data, "all").base == data.class_names
    for how in ("auto", "2/1/1", "alphabet"):
        split = class_split(data, how)
        assert sorted((*split.base, *split.val, *split.novel)) == ["class 0", "class 2", "class 3", "class 5"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("6/1/2", r'"6/1/2" does not fit: 6 \+ 1 \+ 2 = 9, but 10 classes have images'),
        ("6/3", r'"6/3" does not fit: 6 \+ 3 = 9, but 10 classes have images'),
        ("10/0", '"10/0" has 10 base and 0 novel classes'),
        ("0/5/5", '"0/5/5" has 0 base and 5 novel classes'),
        ("alphabets", 'Unknown class split "alphabets". Did you mean "alphabet"?'),
        ("6", 'Unknown class split "6". Choose "auto", "all"'),
        ("6/1/2/1", "Unknown class split"),
        ("-6/16", "Unknown class split"),
        ("", "Unknown class split"),
    ],
)
def test_splits_that_have_no_meaning(how, message) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        class_split(fake(classes(10)), how)


def test_too_few_classes_for_a_novel_one() -> None:
    with pytest.raises(DataError, match='needs at least 2 classes with images, got 1.*use "all"'):
        class_split(fake(classes(1)))
    with pytest.raises(DataError, match="at least 2 classes with images, got 0"):
        class_split(fake(classes(3), counts=[0, 0, 0]))


def test_a_file_names_the_classes(tmp_path: Path) -> None:
    data = fake(["cat", "dog", "fox", "owl"])
    split = ClassSplit(("fox", "cat"), (), ("dog",))
    split.to_json(tmp_path / "split.json")
    assert class_split(data, tmp_path / "split.json") == split
    assert class_split(data, str(tmp_path / "split.json"), 5) == split
    base, _, novel = split.apply(data)
    assert (len(base), len(novel)) == (2, 1), "the owl is left out"
    ClassSplit(("cat", "dogg"), ("x",), ("fox",)).to_json(tmp_path / "wrong.json")
    with pytest.raises(DataError) as caught:
        class_split(data, tmp_path / "wrong.json")
    for part in ("wrong.json", 'no class "dogg" (base). Did you mean "dog"?', 'no class "x" (val).'):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="does not exist"):
        class_split(data, tmp_path / "missing.json")


def test_overlap_of_base_and_novel_names_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"base": ["cat", "dog"], "val": ["Dog"], "novel": ["owl", "cat"]}))
    with pytest.raises(DataError) as caught:
        class_split(fake(["cat", "dog", "owl"]), path)
    assert 'the class "cat" of novel is the class "cat" of base' in str(caught.value)
    assert 'the class "Dog" of val is the class "dog" of base' in str(caught.value)
    assert "owl" not in str(caught.value)
    with pytest.raises(DataError, match='the class name "a" appears twice'):
        ClassSplit(("a", "a"), (), ("b",))


def test_real_omniglot(data_dir: Path) -> None:
    data = load_images("omniglot", data_dir=data_dir)
    split = class_split(data)
    parts = [alphabets(names) for names in (split.base, split.val, split.novel)]
    assert [len(part) for part in parts] == [5, 1, 2]
    assert sum(map(len, (split.base, split.val, split.novel))) == 242
    novel = split.apply(data)[2]
    episode = EpisodeSampler(novel.labels, 5, 4, 10, 0, class_names=novel.class_names).episode(3, novel)
    assert alphabets(episode.class_names) <= parts[2]
    assert (len(episode.support), len(episode.query)) == (20, 50)
    same = (episode.support.images[:, None] == episode.query.images[None]).flatten(2).all(dim=2)
    assert not same.any(), "no image of the query is in the support, pixel by pixel"


def test_real_fashion_mnist(data_dir: Path) -> None:
    data = load_images("fashion_mnist", split="test", data_dir=data_dir)
    split = class_split(data, seed=2)
    assert sizes(split) == (6, 1, 3)
    base, val, novel = split.apply(data)
    assert (len(base), len(val), len(novel)) == (6000, 1000, 3000)
    assert not set(base.class_names) & set(novel.class_names)
    episode = EpisodeSampler(novel.labels, 3, 5, None, 0).episode(0, novel)
    assert (len(episode.support), len(episode.query)) == (15, 2985)
    assert set(episode.class_names) == set(novel.class_names)
