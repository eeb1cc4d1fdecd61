import json
import math

import pytest
import torch
from scipy import stats

from fewgen.errors import DataError, ShapeError
from fewgen.evaluation.agreement import CLASS_LEVEL, MARGIN, alignment_test, label_agreement

TEN = tuple(f"class {i}" for i in range(10))
HUNDRED = torch.arange(100) % 10


def judged(wanted, accuracy, rng, n_classes=10):
    """Predictions that hit with the given probability and are wrong evenly over the other classes."""
    other = (wanted + 1 + torch.randint(0, n_classes - 1, (len(wanted),), generator=rng)) % n_classes
    return torch.where(torch.rand(len(wanted), generator=rng) < accuracy, wanted, other)


def test_agreement_overall_and_per_class():
    wanted = torch.tensor([0, 0, 0, 1, 1, 3])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0])
    found = label_agreement(predicted, wanted, ("a", "b", "c", "d"))
    assert (found.overall.successes, found.overall.n) == (4, 6)
    assert {name: share.value for name, share in found.per_class.items()} == {"a": 2 / 3, "b": 1.0, "d": 0.0}
    assert found.confusion[0] == (2, 1, 0, 0)
    assert found.confusion[3] == (1, 0, 0, 0)
    assert sum(map(sum, found.confusion)) == 6


def test_agreement_refuses_bad_labels():
    with pytest.raises(ShapeError):
        label_agreement(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), ("a",))
    with pytest.raises(DataError, match=r"\[0, 2\)"):
        label_agreement(torch.tensor([2]), torch.tensor([0]), ("a", "b"))
    with pytest.raises(DataError, match="not a share"):
        label_agreement(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), ("a", "b"))


# ------------------------------------------------------------------------- agreement against real images


@pytest.mark.parametrize("accuracy", [0.5, 0.7, 0.95])
def test_false_alarms_and_misses(accuracy):
    rng = torch.Generator().manual_seed(1)
    real, shuffled, n = [], [], 400
    for _ in range(n):
        held_out = judged(HUNDRED, accuracy, rng)
        real.append(alignment_test(judged(HUNDRED, accuracy, rng), HUNDRED, held_out, HUNDRED, TEN).answer)
        mixed = judged(HUNDRED, accuracy, rng)[torch.randperm(100, generator=rng)]
        shuffled.append(alignment_test(mixed, HUNDRED, held_out, HUNDRED, TEN).answer)
    assert real.count("yes") > 0.98 * n
    assert shuffled.count("no") > 0.98 * n
    assert shuffled.count("yes") == 0


def test_poor_judge_and_few_images_cannot_tell():
    rng = torch.Generator().manual_seed(2)
    perfect = alignment_test(HUNDRED, HUNDRED, judged(HUNDRED, 0.1, rng), HUNDRED, TEN)
    assert perfect.answer == "cannot tell"
    assert "chance" in perfect.why
    three = torch.tensor([0, 1, 2])
    few = alignment_test(three, three, judged(HUNDRED, 0.6, rng), HUNDRED, TEN)
    assert few.answer == "cannot tell"
    assert few.shuffled_yes > 0.02
    assert "shuffled labels would pass" in few.why


def test_partly_between_and_a_failing_class_is_named():
    wanted = torch.arange(1000) % 10
    rng = torch.Generator().manual_seed(3)
    real = judged(wanted, 0.9, rng)
    half = alignment_test(judged(wanted, 0.65, rng), wanted, real, wanted, TEN)
    assert half.answer == "partly"
    predicted = judged(wanted, 0.95, rng)
    predicted[wanted == 4] = 7
    lost = alignment_test(predicted, wanted, real, wanted, TEN)
    assert lost.failing == ("class 4",)
    assert lost.answer == "partly"
    assert '"class 4" (0% against' in lost.why
    assert [c.fails for c in lost.per_class] == [i == 4 for i in range(10)]


def test_yes_says_what_it_does_not_rule_out():
    few = alignment_test(HUNDRED, HUNDRED, HUNDRED, HUNDRED, TEN)
    assert few.answer == "yes"
    assert few.why.endswith("not shown to be more than 5 points below real images.")
    predicted = HUNDRED.clone()
    predicted[:5] = 9
    loss = alignment_test(predicted, HUNDRED, HUNDRED, HUNDRED, TEN)
    assert loss.answer == "yes"
    assert f"but {-100 * loss.difference.low:.0f} are not ruled out" in loss.why


@pytest.mark.parametrize(("wrong", "n", "doubtful"), [(4, 24, True), (19, 100, True), (5, 100, False)])
def test_a_yes_with_a_wide_interval_or_a_clear_loss_is_doubtful(wrong, n, doubtful):
    """ "-10 points (-14 to +18), not shown to be more than 5 points below" was a no labelled yes."""
    wanted = torch.arange(n) % 10
    held_out = HUNDRED.clone()
    held_out[:8] = (held_out[:8] + 1) % 10
    predicted = wanted.clone()
    predicted[:wrong] = (predicted[:wrong] + 1) % 10
    found = alignment_test(predicted, wanted, held_out, HUNDRED, TEN)
    assert found.answer == "yes"
    assert ("So wide an interval" in found.doubt) == doubtful


def test_numbers_by_hand():
    """Two classes, three of four and one of four right: against SciPy and the formulas, one by one."""
    wanted = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    predicted = torch.tensor([0, 0, 0, 1, 1, 0, 0, 0])
    real_wanted = torch.tensor([0] * 20 + [1] * 20)
    real_predicted = torch.tensor([0] * 18 + [1] * 2 + [1] * 16 + [0] * 4)
    found = alignment_test(predicted, wanted, real_predicted, real_wanted, ("a", "b"))
    assert (found.generated.value, found.real.value, found.chance) == pytest.approx((0.5, 0.85, 0.5))
    assert (found.generated.n_effective, found.real.n_effective) == pytest.approx((8, 40))
    wilson = [stats.binomtest(k, n).proportion_ci(0.95, method="wilson") for k, n in ((4, 8), (34, 40))]
    assert (found.generated.low, found.generated.high) == pytest.approx((wilson[0].low, wilson[0].high))
    assert found.difference.low == pytest.approx(
        -0.35 - math.hypot(0.5 - wilson[0].low, wilson[1].high - 0.85)
    )
    assert found.nearness.high == pytest.approx(
        0.5 - (0.85 + 0.5) / 2 + math.hypot(wilson[0].high - 0.5, (0.85 - wilson[1].low) / 2)
    )
    for entry, table in zip(found.per_class, ([[3, 1], [18, 2]], [[1, 3], [16, 4]]), strict=True):
        assert entry.p_value == pytest.approx(stats.fisher_exact(table, alternative="less")[1])


def test_order_and_the_size_of_classes_do_not_matter():
    rng = torch.Generator().manual_seed(4)
    wanted = torch.cat([torch.full((n,), c) for c, n in enumerate((50, 10, 25, 40))])
    predicted, real = judged(wanted, 0.6, rng, 4), judged(wanted, 0.8, rng, 4)
    names = ("a", "b", "c", "d")
    first = alignment_test(predicted, wanted, real, wanted, names)
    order = torch.randperm(len(wanted), generator=rng)
    assert alignment_test(predicted[order], wanted[order], real, wanted, names) == first
    # Each class weighs the same: repeating the images of one class moves no share, only intervals.
    more = torch.cat([torch.arange(len(wanted)), (wanted == 0).nonzero().flatten()])
    repeated = alignment_test(predicted[more], wanted[more], real, wanted, names)
    assert repeated.generated.value == pytest.approx(first.generated.value, abs=1e-12)
    assert repeated.difference.value == pytest.approx(first.difference.value, abs=1e-12)
    assert repeated.generated.n_effective > first.generated.n_effective


def test_uneven_classes_do_not_hide_shuffled_labels():
    """95 % of the images are of one class: an unweighted share would be 0.9 after shuffling."""
    rng = torch.Generator().manual_seed(5)
    wanted = torch.cat([torch.zeros(950, dtype=torch.int64), torch.ones(50, dtype=torch.int64)])
    shuffled = wanted[torch.randperm(1000, generator=rng)]
    assert float((shuffled == wanted).double().mean()) > 0.85
    real = torch.arange(200) % 2
    assert alignment_test(shuffled, wanted, real, real, ("a", "b")).answer == "no"
    assert alignment_test(wanted, wanted, real, real, ("a", "b")).answer == "yes"


def test_single_wanted_class_is_judged_against_real_images_of_any_class():
    rng = torch.Generator().manual_seed(6)
    wanted = torch.full((60,), 3)
    real = judged(HUNDRED.repeat(3), 0.9, rng)
    good = alignment_test(judged(wanted, 0.9, rng), wanted, real, HUNDRED.repeat(3), TEN)
    assert good.answer == "yes"
    assert good.chance == pytest.approx(0.1, abs=0.05)
    bad = alignment_test(torch.full((60,), 5), wanted, real, HUNDRED.repeat(3), TEN)
    assert bad.answer == "no"
    assert bad.failing == ("class 3",)


def test_one_class_for_everything_is_no():
    rng = torch.Generator().manual_seed(7)
    collapsed = alignment_test(torch.zeros_like(HUNDRED), HUNDRED, judged(HUNDRED, 0.8, rng), HUNDRED, TEN)
    assert collapsed.answer == "no"
    assert collapsed.generated.value == pytest.approx(0.1)


def test_classes_without_held_out_images_are_named_and_left_out():
    wanted = torch.arange(200) % 4
    real = torch.arange(90) % 3
    found = alignment_test(wanted, wanted, real, real, ("a", "b", "c", "d"))
    assert found.not_compared == ("d",)
    assert [c.class_name for c in found.per_class] == ["a", "b", "c"]
    assert "d" in found.figures()["class_agreement"]["note"]
    with pytest.raises(DataError, match="no class has both"):
        alignment_test(torch.tensor([1]), torch.tensor([1]), torch.tensor([0]), torch.tensor([0]), ("a", "b"))


def test_class_false_alarms_are_rare_also_with_many_images():
    rng = torch.Generator().manual_seed(8)
    wanted = torch.arange(2000) % 10
    alarms = sum(
        bool(alignment_test(judged(wanted, 0.8, rng), wanted, judged(wanted, 0.8, rng), wanted, TEN).failing)
        for _ in range(200)
    )
    assert alarms <= 4
    assert CLASS_LEVEL == 0.01
    assert MARGIN == 0.05


def test_alignment_is_json_and_refuses_bad_labels():
    found = alignment_test(HUNDRED, HUNDRED, HUNDRED, HUNDRED, TEN)
    figures = json.loads(json.dumps(found.figures(), allow_nan=False))
    assert figures["class_agreement"]["value"] == 1.0
    assert figures["class_agreement_difference"]["per_class"]["class 3"] == 0.0
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ShapeError, match="generated"):
        alignment_test(HUNDRED, HUNDRED[:5], HUNDRED, HUNDRED, TEN)
    with pytest.raises(DataError, match="no held-out images"):
        alignment_test(HUNDRED, HUNDRED, empty, empty, TEN)
    with pytest.raises(DataError, match=r"reach from 0 to 9, but must lie in \[0, 2\)"):
        alignment_test(HUNDRED, HUNDRED, HUNDRED, HUNDRED, ("a", "b"))
