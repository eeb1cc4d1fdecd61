import json

import pytest
import torch
from scipy import stats
from tests.evaluation.test_agreement import TEN, judged

from fewgen.errors import DataError, ShapeError
from fewgen.evaluation.retention import class_retention


def test_retention_by_hand():
    names = ("cat", "dog", "owl", "emu")
    labels = torch.tensor([0] * 20 + [1] * 20 + [2] * 20)
    before = labels.clone()
    before[40:52] = 0
    after = labels.clone()
    after[:15] = 4  # a class that did not exist before
    after[20:22] = 0
    found = class_retention(before, after, labels, names)
    assert (found.lost, found.won) == (("cat",), ("owl",))
    assert list(found.per_class) == ["cat", "dog", "owl"]
    cat, dog, owl = found.per_class.values()
    assert (cat.before.value, cat.after.value, cat.change.value) == (1.0, 0.25, -0.75)
    assert cat.p_value == pytest.approx(2 * 0.5**15)
    assert cat.p_adjusted == pytest.approx(3 * cat.p_value)
    assert cat.change.high < 0 < owl.change.low
    assert dog.change.low < 0 < dog.change.high
    assert (owl.n_lost, owl.n_won, dog.n_lost, dog.n_won) == (0, 12, 2, 0)
    assert (found.overall.n_lost, found.overall.n_won) == (17, 12)
    assert found.overall.p_value == pytest.approx(stats.binomtest(12, 29).pvalue)
    assert json.loads(json.dumps(found.to_dict()))["lost"] == ["cat"]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert class_retention(before[order], after[order], labels[order], names) == found
    swapped = class_retention(after, before, labels, names)
    assert (swapped.lost, swapped.won) == (found.won, found.lost)
    assert swapped.overall.change.low == pytest.approx(-found.overall.change.high)


def test_retention_seldom_alarms_when_nothing_changed():
    rng = torch.Generator().manual_seed(14)
    wanted = torch.arange(300) % 10
    alarms = 0
    for _ in range(200):
        found = class_retention(judged(wanted, 0.8, rng), judged(wanted, 0.8, rng), wanted, TEN)
        alarms += bool(found.lost or found.won)
    assert alarms <= 10
    same = judged(wanted, 0.8, rng)
    kept = class_retention(same, same, wanted, TEN)
    assert kept.overall.p_value == 1
    assert kept.overall.change.low < 0 < kept.overall.change.high


def test_retention_refuses_bad_input():
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ShapeError):
        class_retention(one, one, torch.zeros(2).long(), ("a",))
    with pytest.raises(DataError, match="no images"):
        class_retention(one[:0], one[:0], one[:0], ("a",))
    with pytest.raises(DataError, match=r"\[0, 1\)"):
        class_retention(one, one, one + 1, ("a",))
