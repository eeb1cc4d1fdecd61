import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.evaluation.aligned import (
    CLASS_LEVEL,
    MARGIN,
    alignment_test,
    class_retention,
    cosine_scores,
    holm,
    image_to_text_accuracy,
    interpolation_smoothness,
    mcnemar_p,
    paired_difference,
    prototype_scores,
    share_difference,
    text_to_image_accuracy,
)

TEN = tuple(f"class {i}" for i in range(10))
HUNDRED = torch.arange(100) % 10


def judged(wanted, accuracy, rng, n_classes=10):
    """Predictions that hit with the given probability and are wrong evenly over the other classes."""
    other = (wanted + 1 + torch.randint(0, n_classes - 1, (len(wanted),), generator=rng)) % n_classes
    return torch.where(torch.rand(len(wanted), generator=rng) < accuracy, wanted, other)


# ---------------------------------------------------------------------------------------- small statistics


def naive_holm(p_values):
    """Step-down procedure as in the paper: for each test, the smallest level at which it is rejected."""
    found = []
    for i in range(len(p_values)):
        for level in sorted({0.0, 1.0, *(p * k for p in p_values for k in range(1, len(p_values) + 1))}):
            if level > 1:
                continue
            rejected = set()
            for k, j in enumerate(sorted(range(len(p_values)), key=lambda j: p_values[j])):
                if p_values[j] * (len(p_values) - k) > level:
                    break
                rejected.add(j)
            if i in rejected or level == 1.0:
                found.append(level)
                break
    return found


def test_holm_equals_the_step_down_procedure():
    rng = np.random.RandomState(0)
    for n in (1, 2, 5, 9):
        p_values = list(rng.uniform(0, 0.5, n) ** 3)
        assert holm(p_values) == pytest.approx(naive_holm(p_values), abs=1e-15)
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("a", "m", "b", "n", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (10, 10, 0, 20, 0.6791, 1.0),
        (0, 10, 0, 20, -0.1611, 0.2775),
        (10, 10, 0, 10, 0.6075, 1.0),
    ],
)
def test_difference_equals_published_examples(a, m, b, n, low, high):
    found = share_difference(a / m, m, b / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    mirrored = share_difference(b / n, n, a / m, m)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def test_difference_refuses_what_is_no_share():
    for bad in ((1.1, 5, 0.5, 5), (0.5, 0, 0.5, 5), (0.5, 5, -0.1, 5)):
        with pytest.raises(DataError, match="two shares"):
            share_difference(*bad)
    with pytest.raises(ConfigError, match="confidence"):
        share_difference(0.5, 5, 0.5, 5, confidence=1.0)


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
    assert json.loads(json.dumps(found.to_dict()))["answer"] == "yes"
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


# ------------------------------------------------------------------------------- texts and images, both ways


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


def test_scores_equal_loops():
    rng = torch.Generator().manual_seed(12)
    images, texts = torch.randn(7, 5, generator=rng), torch.randn(3, 5, generator=rng)
    scores = cosine_scores(images, texts)
    for i in range(7):
        for c in range(3):
            a, b = images[i].double().numpy(), texts[c].double().numpy()
            assert float(scores[i, c]) == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), abs=1e-12)
    assert torch.allclose(cosine_scores(images * 7, texts * 0.1), scores, atol=1e-6)
    labels = torch.tensor([0, 0, 1, 1, 1])
    train = torch.randn(5, 5, generator=rng)
    near = prototype_scores(images, train, labels, 2)
    for c, mean in enumerate((train[:2].double().mean(0), train[2:].double().mean(0))):
        for i in range(7):
            assert float(near[i, c]) == pytest.approx(-math.dist(images[i].double(), mean), abs=1e-9)


def test_scores_refuse_bad_input():
    ok = torch.ones(2, 3)
    with pytest.raises(ShapeError, match="joint space"):
        cosine_scores(ok, torch.ones(2, 4))
    with pytest.raises(DataError, match="1 of 2 text vectors are zero"):
        cosine_scores(ok, torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
    with pytest.raises(DataError, match="NaN"):
        cosine_scores(ok * math.nan, ok)
    with pytest.raises(DataError, match=r"classes \[1\] have no training image"):
        prototype_scores(ok, ok, torch.tensor([0, 2]), 3)
    with pytest.raises(ShapeError):
        prototype_scores(ok, ok, torch.tensor([0]), 1)
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


# --------------------------------------------------------------------------------------------------- walks


def naive_walk(walk):
    steps = [math.dist(a, b) for a, b in zip(walk[:-1], walk[1:], strict=True)]
    shares = [s / sum(steps) for s in steps]
    return {
        "length": sum(steps),
        "detour": sum(steps) / math.dist(walk[0], walk[-1]),
        "largest_step": max(shares),
        "evenness": -sum(p * math.log(p) for p in shares if p > 0) / math.log(len(steps)),
        "variation": float(np.std(steps) / np.mean(steps)),
    }


def test_smoothness_equals_loops_and_summarises():
    rng = torch.Generator().manual_seed(13)
    walks = torch.randn(6, 9, 4, generator=rng, dtype=torch.float64)
    found = interpolation_smoothness(walks)
    naive = [naive_walk(walk) for walk in walks.tolist()]
    for name in naive[0]:
        values = [n[name] for n in naive]
        assert getattr(found, name) == pytest.approx(values, abs=1e-9)
        assert found.summary()[name]["mean"] == pytest.approx(np.mean(values))
        assert found.summary()[name]["spread"] == pytest.approx(np.std(values, ddof=1))
    alone = interpolation_smoothness(walks[2])
    assert alone.detour[0] == pytest.approx(found.detour[2], abs=1e-12)
    assert alone.summary()["detour"]["spread"] is None
    steps = (walks[:, 1:] - walks[:, :-1]).norm(dim=2)
    for w in range(6):  # the relation to the mean squared step, that of the perceptual path length
        expected = (found.length[w] / 8) ** 2 * (1 + found.variation[w] ** 2)
        assert float(steps[w].square().mean()) == pytest.approx(expected)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["n_steps"] == 8


def test_straight_even_walk_and_jump():
    start, end = torch.zeros(3), torch.tensor([1.0, 2.0, 2.0])
    even = interpolation_smoothness(torch.stack([start + (end - start) * t / 10 for t in range(11)]))
    assert (even.detour[0], even.largest_step[0], even.evenness[0]) == pytest.approx((1, 0.1, 1))
    assert even.variation[0] == pytest.approx(0, abs=1e-6)
    assert even.jump == (False,)
    leap = interpolation_smoothness(torch.stack([start] * 5 + [end] * 6))
    assert (leap.detour[0], leap.largest_step[0], leap.evenness[0]) == pytest.approx((1, 1, 0))
    assert leap.jump == (True,)
    there = torch.stack([start, end])[torch.tensor([0, 1, 0, 1, 0, 1])]
    assert interpolation_smoothness(there).detour[0] == pytest.approx(5)


def test_still_and_closed_walks_are_named_and_not_nan():
    walk = torch.arange(5.0)[:, None] * torch.ones(5, 2)
    still = torch.full((5, 2), 1e4) + 1e-9 * torch.arange(5)[:, None]
    closed = torch.stack([walk[0], walk[1], walk[2], walk[1], walk[0]])
    found = interpolation_smoothness(torch.stack([walk, still, closed]))
    assert found.n_still == 1
    assert found.detour[1:] == (None, None)
    assert (found.largest_step[1], found.evenness[1], found.jump[1]) == (None, None, False)
    assert found.largest_step[2] == pytest.approx(0.25)
    assert found.summary()["detour"] == {"mean": 1.0, "spread": None, "n": 1}
    nothing = interpolation_smoothness(torch.zeros(2, 4, 3))
    assert nothing.n_still == 2
    assert set(nothing.summary()) == {"length"}
    json.dumps(nothing.to_dict(), allow_nan=False)


def test_smoothness_refuses_bad_input():
    with pytest.raises(DataError, match="1 walks of 3 images"):
        interpolation_smoothness(torch.zeros(3, 2))
    with pytest.raises(ShapeError):
        interpolation_smoothness(torch.zeros(3))
    with pytest.raises(DataError, match="NaN"):
        interpolation_smoothness(torch.full((4, 2), math.inf))


# ----------------------------------------------------------------------------------------------- retention


def test_mcnemar_equals_the_binomial_test():
    for lost in range(0, 12):
        for won in range(0, 12):
            expected = 1.0 if lost + won == 0 else stats.binomtest(lost, lost + won, 0.5).pvalue
            assert mcnemar_p(lost, won) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(DataError, match="negative"):
        mcnemar_p(-1, 2)


@pytest.mark.parametrize(
    ("p_lost", "p_won"), [(0.02, 0.02), (0.1, 0.1), (0.2, 0.05), (0.5, 0.02), (0.3, 0.3)]
)
@pytest.mark.parametrize("n", [10, 30])
def test_paired_interval_covers(n, p_lost, p_won):
    """Exact coverage over every possible outcome; Wald's plain interval does not keep it."""
    covered = wald = 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            weight = stats.multinomial.pmf(
                [lost, won, n - lost - won], n, [p_lost, p_won, 1 - p_lost - p_won]
            )
            found = paired_difference(lost, won, n)
            covered += weight * (found.low <= p_won - p_lost <= found.high)
            half = 1.96 * math.sqrt(lost + won - (won - lost) ** 2 / n) / n
            wald += weight * (abs((won - lost) / n - (p_won - p_lost)) <= half)
    assert covered > 0.93
    if (p_lost, p_won, n) == (0.2, 0.05, 10):
        assert wald < 0.88


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
    with pytest.raises(DataError, match="cannot be"):
        paired_difference(3, 3, 5)
