"""Usefulness on pictures whose answers are known, and its intervals against simulation."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from fewgen.data.imageset import ImageSet
from fewgen.errors import ConfigError, DataError
from fewgen.evaluation import trainings, usefulness
from fewgen.evaluation.arms import AUGMENTATIONS, Augmentation, UsefulnessSettings, augment, train_arm
from fewgen.evaluation.curve import curve_points, curve_reach, curve_sets, images_needed, worth
from fewgen.evaluation.gains import Gain, crossed_gain
from fewgen.evaluation.statistics import student_interval
from fewgen.evaluation.usefulness import measure_usefulness, usefulness_controls

NAMES = ("down", "across", "dot")
TINY = UsefulnessSettings(width=8, dim=8, steps=12, batch_size=12)
SMALL = UsefulnessSettings(width=8, dim=8, steps=60, batch_size=16)


def shapes(n, seed, size=12, noise=200):
    """Three classes of noisy shapes, equally many of each."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, noise, (n, 1, size, size), generator=rng, dtype=torch.uint8)
    labels = torch.arange(n) % 3
    rows, columns = torch.randint(2, size - 4, (2, n), generator=rng)
    for image, label, row, column in zip(images[:, 0], labels, rows, columns, strict=True):
        if label == 0:
            image[:, column : column + 2] = 230
        elif label == 1:
            image[row : row + 2] = 230
        else:
            image[row : row + 3, column : column + 3] = 230
    return ImageSet(images, labels, NAMES, name="shapes")


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(trainings, "_KEPT", {})


@pytest.fixture
def trained(monkeypatch):
    """Seeds of the classifiers that are really trained."""
    seeds = []
    train = trainings._train_payload

    def counted(*payload):
        seeds.append(payload[-1])
        return train(*payload)

    monkeypatch.setattr(trainings, "_train_payload", counted)
    return seeds


# --------------------------------------------------------------------------------------- augmentation


def test_shifts_move_whole_images():
    x = torch.arange(2 * 25.0).reshape(2, 1, 5, 5)
    rng = torch.Generator().manual_seed(0)
    moved = torch.stack([augment(x, Augmentation(shift=1), rng) for _ in range(40)])
    assert any(torch.equal(m[0], x[0]) for m in moved)  # a shift of zero is the image itself
    # Inside, an image is moved as one piece: neighbours keep their difference of 1.
    assert torch.equal(moved[..., 1:-1, 2:-1] - moved[..., 1:-1, 1:-2], torch.ones(40, 2, 1, 3, 2))
    assert augment(x, AUGMENTATIONS["none"], rng) is x


def test_each_augmentation_does_what_it_says():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(400, 3, 32, 32, generator=rng)
    turned = augment(x, Augmentation(mirror=True), rng)
    same, mirrored = ((turned - y).abs().amax(dim=(1, 2, 3)) == 0 for y in (x, x.flip(3)))
    assert (same ^ mirrored).all()
    assert 150 < int(mirrored.sum()) < 250
    # A rotation keeps the centre of a disc and the distance of a point from it.
    dot = torch.zeros(50, 1, 33, 33)
    dot[:, :, 16, 26] = 1
    out = augment(dot, Augmentation(degrees=10), rng)[:, 0]
    grid = torch.arange(33.0) - 16
    weight = out.sum(dim=(1, 2))
    rows, columns = (out * grid[:, None]).sum((1, 2)) / weight, (out * grid).sum((1, 2)) / weight
    assert torch.allclose(torch.hypot(rows, columns), torch.full((50,), 10.0), atol=0.2)
    angles = torch.atan2(rows, columns).rad2deg()
    assert 6 < float(angles.abs().max()) <= 10.2
    assert float(angles.min()) < -5 < 5 < float(angles.max())
    # Twice the pixels of a 32-pixel image at 64.
    step = torch.arange(64.0).expand(60, 1, 64, 64)
    moves = (augment(step, Augmentation(shift=1), rng) - step)[:, 0, 32, 32]
    assert set(moves.tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}


# --------------------------------------------------------------------------------------------- gains


def test_crossed_gain_by_hand():
    """Mean squares of a two-way table without repetition, written out."""
    table = np.random.default_rng(0).integers(-1, 2, (4, 30)).astype(float)
    n, count = table.shape
    grand = table.mean()
    ms_rows = count * sum((row.mean() - grand) ** 2 for row in table) / (n - 1)
    ms_columns = n * sum((column.mean() - grand) ** 2 for column in table.T) / (count - 1)
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + grand
    ms_rest = (residual**2).sum() / ((n - 1) * (count - 1))
    variance = (ms_rows + ms_columns - ms_rest) / (n * count)
    variance = max(variance, ms_rows / (n * count), ms_columns / (n * count))
    parts = np.array([ms_rows, ms_columns]) / (n * count)
    degrees = parts.sum() ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (count - 1))
    from scipy.stats import t as student

    half = student.ppf(0.975, degrees) * math.sqrt(variance)
    gain = crossed_gain(torch.from_numpy(table))
    assert gain.mean == pytest.approx(grand, abs=1e-12)
    assert gain.high - gain.mean == pytest.approx(half, rel=1e-9)
    assert gain.mean - gain.low == pytest.approx(half, rel=1e-9)


@pytest.mark.parametrize(("by_draw", "by_image"), [(0.05, 0.05), (0.0, 0.3), (0.1, 0.0)])
def test_crossed_gain_covers_other_draws_and_images(by_draw, by_image):
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1500):
        table = (
            rng.normal(0, by_draw, (8, 1)) + rng.normal(0, by_image, (1, 60)) + rng.normal(0, 0.2, (8, 60))
        )
        gain = crossed_gain(torch.from_numpy(table))
        covered += gain.low <= 0 <= gain.high
    assert 0.935 < covered / 1500 <= 0.99


def test_an_interval_of_draws_alone_does_not_cover_other_images():
    """Why the crossed interval is needed: few test images mislead all draws in the same direction."""
    rng = np.random.default_rng(2)
    missed = 0
    for _ in range(300):
        table = rng.normal(0, 0.3, (1, 60)) + rng.normal(0, 0.2, (8, 60))
        gain = student_interval(table.mean(axis=1).tolist())
        missed += not gain.low <= 0 <= gain.high
    assert missed / 300 > 0.3


def test_crossed_gain_of_tables_without_spread():
    assert crossed_gain(torch.zeros(3, 5)) == Gain(0.0, 0.0, 0.0, 3)
    assert crossed_gain(torch.ones(1, 5)).low is None
    assert crossed_gain(torch.ones(5, 1)).low is None
    with pytest.raises(DataError, match="at least one"):
        crossed_gain(torch.zeros(0, 5))


# ------------------------------------------------------------------------------------- learning curve


def test_images_needed_inverts_the_curve():
    images = torch.tensor([15.0, 30.0, 60.0, 300.0])
    curve = torch.tensor([[0.6, 0.7, 0.7, 0.9]], dtype=torch.float64).repeat(7, 1)
    accuracy = torch.tensor([0.59, 0.6, 0.65, 0.7, 0.8, 0.9, 0.91], dtype=torch.float64)
    found = images_needed(images, curve, accuracy)
    wanted = [0, 15, math.sqrt(15 * 30), 30, math.sqrt(60 * 300), 300, math.inf]
    assert found.tolist() == pytest.approx(wanted)


def hits_of(rates, n_draws, n_images, seed, by_draw=0.01):
    """Hits of arms with these accuracies: images share their difficulty, draws differ a little."""
    rng = torch.Generator().manual_seed(seed)
    difficulty = torch.rand(n_images, generator=rng)
    draw = by_draw * torch.randn(len(rates), n_draws, 1, generator=rng)
    noise = 0.05 * torch.randn(len(rates), n_draws, n_images, generator=rng)
    return (torch.tensor(rates)[:, None, None] + draw + noise > difficulty).double()


def test_worth_of_a_known_curve():
    k, points = 30, [15, 30, 60, 120, 300]
    rates = [0.5 + 0.08 * math.log2(n / 15) for n in points]
    truth = 47.0
    hits = hits_of([*rates, 0.5 + 0.08 * math.log2(truth / 15)], 10, 1000, seed=0)
    curve, found = worth(list(hits[:-1]), points, hits[-1], k=k)
    assert found.images == pytest.approx(truth, rel=0.1)
    assert found.low < truth < found.high
    assert found.text == f"30 images work like {found.images:.0f} ({found.low:.0f}-{found.high:.0f})"
    assert list(curve.monotone) == sorted(curve.monotone)
    assert worth(list(hits[:-1]), points, hits[-1], k=k)[1] == found
    for rate, text in (
        (0.3, "30 images work like fewer than 15"),
        (0.97, "30 images work like more than 300"),
    ):
        hits = hits_of([*rates, rate], 10, 1000, seed=0)
        outside = worth(list(hits[:-1]), points, hits[-1], k=k)[1]
        assert outside.images is None
        assert outside.text.startswith(text)
    # One draw has no interval.
    assert worth(list(hits[:-1, :1]), points, hits[-1, :1], k=k)[1].low is None
    with pytest.raises(DataError, match="increasing"):
        worth(list(hits[:2]), [30, 30], hits[-1], k=k)


def test_the_interval_of_worth_covers():
    points, truth = [15, 30, 60, 120, 300], 47.0
    rates = [0.5 + 0.08 * math.log2(n / 15) for n in [*points, truth]]
    covered = 0
    for seed in range(60):
        hits = hits_of(rates, 4, 300, seed=seed)
        found = worth(list(hits[:-1]), points, hits[-1], k=30)[1]
        covered += (found.low or 0) <= truth <= (found.high or math.inf)
    assert covered >= 54


def test_sets_of_the_curve_are_nested_and_clean():
    everything = shapes(90, 0)
    train, test = everything.subset(range(12)), everything.subset(range(60, 90))
    sets = [trainings.OrderedSet.of(images) for images in (train, everything, test)]
    multiples = curve_points((0.5, 1, 2, 4, 10), curve_reach(*sets))
    assert multiples == [0.5, 1.0, 2.0, 4.0, 5.0]  # 4 + 16 of each class are left
    found = curve_sets(*sets, multiples, seed=3)
    assert [s.images.counts().tolist() for s in found] == [[n] * 3 for n in (2, 4, 8, 16, 20)]
    for small, large in zip(found, found[1:], strict=False):
        assert set(small.digests) < set(large.digests)
    assert found[1].key == sets[0].key
    assert not set(found[-1].digests) & set(sets[2].digests)
    assert len(set(found[-1].digests)) == 60
    assert curve_points((1, 2), 1.1) == [1.0]
    assert curve_points((0.5, 1, 2), 1.1) == [0.5, 1.0]


# ------------------------------------------------------------------------------------- the whole thing


@pytest.mark.slow
def test_more_real_images_help_and_wrong_labels_hurt():
    few, many, test = shapes(9, 1), shapes(300, 2), shapes(300, 3)
    pool = shapes(150, 4)
    options = {"n_draws": 3, "settings": SMALL, "augmentation": "shift1"}
    helped = measure_usefulness([(few, many)], test, pool=pool, **options)
    assert helped.gain.mean > 0.05
    assert helped.gain.low > 0
    assert helped.gain_generated.low > 0
    assert helped.worth.images is None or helped.worth.images > 10
    assert helped.worth.text.startswith("3 images work like ")
    assert helped.losing_classes == ()
    assert helped.smallest_gain > 0
    assert helped.n_seen == 0
    json.dumps(dataclasses.asdict(helped), allow_nan=False)
    figures = helped.figures()
    json.dumps(figures, allow_nan=False)
    assert list(figures) == ["usefulness", "usefulness_generated_only", "worth_images"]
    assert figures["usefulness"]["value"] == helped.gain.mean
    # One class with the name of another: this class loses, and is named.
    labels = many.labels.clone()
    labels[many.labels == 2] = torch.where(torch.arange(100) < 96, 0, 2)
    hurt = measure_usefulness([(few, ImageSet(many.images, labels, NAMES))], test, **options)
    assert "dot" in hurt.losing_classes
    assert hurt.gain_per_class["dot"].mean < -0.1
    assert hurt.gain.mean < helped.gain.mean - 0.1
    assert "pool" in hurt.omitted["worth_images"]
    assert "worth_images" not in hurt.figures()


def test_copies_of_the_training_images_are_no_gain():
    few, test = shapes(30, 1), shapes(200, 3)
    copies = few.subset(torch.arange(30).repeat(5))
    options = {"settings": SMALL, "augmentation": "shift1", "seed": 1}
    found = measure_usefulness([(few, copies)], test, n_draws=6, **options)
    assert found.gain.low <= 0 <= found.gain.high
    assert found.losing_classes == ()


@pytest.mark.slow
def test_controls_have_known_answers(trained):
    train, test = shapes(60, 1), shapes(300, 3)
    options = {"n_draws": 4, "settings": dataclasses.replace(SMALL, augmentation="shift1")}
    gains = usefulness_controls(train, test, **options)
    assert gains["more_real_images"].low > 0
    assert gains["copies"].low <= 0
    assert len(trained) == 12
    # The real arm of a measurement with the same settings is there already.
    trained.clear()
    measure_usefulness([(train, shapes(30, 2))], test, augmentation="shift1", **options)
    assert len(trained) == 8
    assert set(usefulness_controls(shapes(3, 1), test, n_draws=2, settings=TINY)) == {"copies"}


def test_order_of_images_changes_nothing():
    sets = [shapes(n, seed) for n, seed in ((12, 1), (30, 2), (40, 3), (40, 4))]
    rng = torch.Generator().manual_seed(9)
    mixed = [images.subset(torch.randperm(len(images), generator=rng)) for images in sets]
    results = []
    for train, generated, test, pool in (sets, mixed):
        trainings._KEPT.clear()
        found = measure_usefulness([(train, generated)], test, n_draws=2, pool=pool, settings=TINY)
        results.append(found)
    assert results[0] == results[1]


def test_real_arms_are_kept_and_the_rest_is_not(tmp_path, trained):
    train, test, pool = shapes(12, 1), shapes(40, 3), shapes(60, 4)
    cache = tmp_path / "deep" / "real.json"
    shares = []
    options = {"n_draws": 2, "pool": pool, "settings": TINY, "real_cache": cache}
    first = measure_usefulness(
        [(train, shapes(30, 2))], test, progress=lambda part, share: shares.append(share), **options
    )
    # 5 candidates x 4 folds, then 2 draws of 3 arms and 4 further points of the curve.
    assert len(trained) == 20 + 2 * (3 + 4)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    for step in range(2):
        trained.clear()
        other = measure_usefulness([(train, shapes(30, 5))], test, **options)
        assert trained == [0, 1, 0, 1]
        assert other.arms["real"] == first.arms["real"]
        assert other.curve == first.curve
        if step == 0:
            trainings._KEPT.clear()  # from the file this time
    # Another training image, or another setting, and everything is trained again.
    trained.clear()
    measure_usefulness([(shapes(12, 6), shapes(30, 2))], test, **options)
    assert len(trained) == 20 + 2 * (3 + 4)
    trained.clear()
    wider = dataclasses.replace(TINY, width=10)
    measure_usefulness([(train, shapes(30, 2))], test, **{**options, "settings": wider})
    assert len(trained) == 20 + 2 * (3 + 4)


@pytest.mark.parametrize(
    "content", ["{", '{"format": "other"}', '{"format": "fewgen-real-arms", "hits": {"a": 1}}']
)
def test_a_file_that_keeps_something_else_is_refused(tmp_path, content):
    cache = tmp_path / "real.json"
    cache.write_text(content)
    with pytest.raises(DataError, match="real.json"):
        measure_usefulness([(shapes(6, 1), shapes(6, 2))], shapes(6, 3), settings=TINY, real_cache=cache)
    assert cache.read_text() == content


@pytest.mark.slow
def test_processes_change_nothing():
    train, generated, test = shapes(12, 1), shapes(30, 2), shapes(40, 3)
    options = {"n_draws": 2, "settings": TINY, "augmentation": "shift1"}
    one = measure_usefulness([(train, generated)], test, **options)
    trainings._KEPT.clear()
    assert measure_usefulness([(train, generated)], test, jobs=2, **options) == one


def test_several_draws_of_the_training_images_are_used_in_turn(trained):
    pairs = [(shapes(12, i), shapes(30, 10 + i)) for i in range(3)]
    test = shapes(40, 99)
    found = measure_usefulness(pairs, test, n_draws=6, settings=TINY, augmentation="none")
    assert (found.n_draws, found.n_support_draws) == (6, 3)
    assert "these 3 draws" in found.speaks_of
    assert sorted(trained) == sorted(list(range(6)) * 3)
    all_different = measure_usefulness(pairs, test, n_draws=3, settings=TINY, augmentation="none")
    assert "other draws" in all_different.speaks_of
    single = measure_usefulness(pairs[:1], test, n_draws=2, settings=TINY, augmentation="none")
    assert "alone" in single.speaks_of
    # The first draw of all three is the same training.
    assert found.arms["both"].accuracy[0] == single.arms["both"].accuracy[0]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_very_few_images(k):
    found = measure_usefulness(
        [(shapes(3 * k, 1), shapes(3, 2))], shapes(30, 3), n_draws=2, pool=shapes(20, 4), settings=TINY
    )
    assert found.k == k
    assert found.tuning.folds == (0 if k == 1 else min(k, 4))
    assert ("single training image" in found.tuning.note) == (k == 1)
    assert all(0 <= arm.mean <= 1 for arm in found.arms.values())
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_one_draw_has_no_interval():
    found = measure_usefulness([(shapes(6, 1), shapes(6, 2))], shapes(9, 3), n_draws=1, settings=TINY)
    assert (found.gain.low, found.smallest_gain) == (None, None)
    assert "at least two" in found.power()
    assert "low" not in found.figures()["usefulness"]


@pytest.mark.slow
def test_tuning_prefers_what_the_data_allow():
    """Classes that are mirror images of each other: mirroring must not win. And it looks at no test image."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (80, 1, 12, 12), generator=rng, dtype=torch.uint8)
    labels = torch.arange(80) % 2
    images[labels == 0, :, :, :5] = 220
    images[labels == 1, :, :, 7:] = 220
    train = ImageSet(images, labels, ("left", "right"))
    found = measure_usefulness([(train, train)], train.subset(range(10)), n_draws=1, settings=SMALL)
    scores = found.tuning.scores
    assert set(scores) == set(AUGMENTATIONS)
    assert scores["shift1+mirror"] < 0.8 < scores["shift1"]
    assert found.settings.augmentation == found.tuning.name != "shift1+mirror"
    other = measure_usefulness([(train, train)], train.subset(range(4)), n_draws=1, settings=SMALL)
    assert other.tuning == found.tuning
    assert found.n_seen == 10


def test_test_images_are_limited_by_content(monkeypatch):
    monkeypatch.setattr(usefulness, "MOST_TEST_IMAGES", 20)
    test = shapes(60, 3)
    options = {"n_draws": 1, "settings": TINY, "augmentation": "none"}
    one = measure_usefulness([(shapes(6, 1), shapes(6, 2))], test, **options)
    other = measure_usefulness([(shapes(6, 1), shapes(6, 2))], test.subset(range(59, -1, -1)), **options)
    assert one.n_test == 20
    assert one == other


def test_arms_are_repeatable_and_leave_the_global_stream_alone():
    train, test = shapes(12, 1), shapes(60, 2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = train_arm([train], test, TINY, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, train_arm([train], test, TINY, 3))


def test_bad_input_is_named():
    train, test = shapes(6, 1), shapes(6, 2)
    with pytest.raises(DataError, match="at least one image"):
        measure_usefulness([(train.subset([]), train)], test, settings=TINY)
    with pytest.raises(DataError, match="Both must be equal"):
        measure_usefulness([(shapes(6, 1, size=16), train)], test, settings=TINY)
    with pytest.raises(DataError, match="at least one pair"):
        measure_usefulness([], test)
    with pytest.raises(DataError, match="generated images of every class, but there are none of 'dot'"):
        measure_usefulness([(train, train.subset([0, 1]))], test, settings=TINY)
    with pytest.raises(DataError, match="training images of every class"):
        measure_usefulness([(train.subset([0]), train)], test, settings=TINY)
    with pytest.raises(DataError, match="the pool has classes"):
        measure_usefulness([(train, train)], test, pool=shapes(6, 1, size=16), settings=TINY)
    for options, message in (
        ({"n_draws": 0}, "n_draws must be"),
        ({"jobs": 0}, "jobs must be"),
        ({"curve": (1, 0)}, "above 0"),
        ({"augmentation": "shift"}, 'Did you mean "shift'),
        ({"settings": dataclasses.replace(TINY, batch_size=3)}, "at least 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            measure_usefulness([(train, train)], test, **options)
    with pytest.raises(ConfigError, match="at least 1"):
        UsefulnessSettings(steps=0)
