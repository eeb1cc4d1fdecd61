"""`evaluate_images` on small digits: known faults are named, real images are not accused, nothing else matters."""

import json
import math

import pytest
import torch

from fewgen.data import load_images
from fewgen.data.imageset import ImageSet
from fewgen.encoders.base import Described
from fewgen.encoders.classifier import ClassifierFeatures, ClassifierSettings
from fewgen.encoders.pixels import PixelFeatures
from fewgen.errors import ConfigError, DataError, ShapeError
from fewgen.evaluation import copying, distances
from fewgen.evaluation import real_side as real_side_module
from fewgen.evaluation.arms import UsefulnessSettings
from fewgen.evaluation.controls import CONTROLS
from fewgen.evaluation.cost import PARTS, USEFULNESS
from fewgen.evaluation.evaluation import N_WORST, RealSide, evaluate_images
from fewgen.evaluation.verdicts import ANSWERS, QUESTIONS
from fewgen.files import read_json

JUDGED = ("real", "diverse", "new", "aligned")
PIXELS = PixelFeatures(1, 8, 8)
TINY = {"settings": UsefulnessSettings(width=8, dim=8, steps=10, batch_size=12), "augmentation": "none"}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def shuffled(images, seed):
    return images.subset(torch.randperm(len(images), generator=rng(seed)))


def with_images(images, like, labels=None):
    labels = like.labels if labels is None else labels
    return ImageSet(images, labels, like.class_names, name=like.name, origins=like.origins)


def of_classes(images, *classes):
    return images.subset(torch.isin(images.labels, torch.tensor(classes)).nonzero().flatten())


def evaluate(generated, train, held_out=None, **options):
    """Evaluate in pixels, without usefulness; the result has to be valid JSON, whatever happened."""
    options = {"extractor": PIXELS, "useful_draws": 0, **options}
    found = evaluate_images(generated, train, held_out, **options)
    check_record(found)
    return found


def check_record(found):
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert "private" not in text.lower()
    assert list(found.verdicts) == list(QUESTIONS)
    for question, verdict in found.verdicts.items():
        assert verdict.question == question
        assert verdict.answer in ANSWERS
        assert verdict.why
    for name, figure in found.figures.items():
        assert isinstance(figure["value"], float | int), name
        assert figure["question"] in QUESTIONS, name
    assert not set(found.figures) & set(found.omitted)
    assert all(found.omitted.values())
    assert len(found.lines()) == len(QUESTIONS)
    assert found.copy_scores.shape == (len(found.generated),)
    assert len(found.worst) == min(N_WORST, len(found.generated))


def answers(found):
    return {question: found.verdicts[question].answer for question in JUDGED}


def same_record(a, b, tolerance=1e-9):
    """Compare two values from JSON: numbers within a tolerance, all else exactly."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            same_record(a[name], b[name], tolerance)
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same_record(one, other, tolerance)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    else:
        assert a == b


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", size=8)


@pytest.fixture(scope="module")
def sets(digits):
    """30 training, 10 held-out and 10 further real images of each digit."""
    train, rest = digits.split_shots(30, 20, 0)
    place = torch.arange(len(rest)) % 20
    return train, rest.subset(place < 10), rest.subset(place >= 10)


@pytest.fixture(scope="module")
def few(digits):
    """5 training, 6 held-out, 6 further real images and a pool of 10 of each digit."""
    train, rest = digits.split_shots(5, 22, 0)
    place = torch.arange(len(rest)) % 22
    return train, rest.subset(place < 6), rest.subset((place >= 6) & (place < 12)), rest.subset(place >= 12)


@pytest.fixture(scope="module")
def real_side(sets):
    train, held_out, _ = sets
    return RealSide(train, held_out, PIXELS)


@pytest.fixture(scope="module")
def few_side(few):
    return RealSide(few[0], few[1], PIXELS)


@pytest.fixture(scope="module")
def judge(sets):
    settings = ClassifierSettings(steps=60, batch_size=64, width=16, dim=16)
    return ClassifierFeatures.of(sets[0], settings=settings, use_cache=False)


@pytest.fixture(scope="module")
def of_real(sets, real_side):
    train, held_out, real = sets
    return evaluate(real, train, held_out, real_side=real_side)


# ------------------------------------------------------------------------------------------ verdicts


def test_real_images_are_not_accused(of_real):
    assert answers(of_real) == dict.fromkeys(JUDGED, "yes")
    assert of_real.verdicts["useful"].answer == "not measured"
    assert not any(pair.score == 0 for pair in of_real.worst)


def faults(train, real):
    copies = train.subset(torch.cat([(train.labels == c).nonzero().flatten()[:10] for c in range(10)]))
    moved = torch.randint(0, 256, copies.images.shape, generator=rng()).to(torch.uint8)
    moved[:, :, 1:, :-1] = copies.images[:, :, :-1, 1:]
    first = torch.stack([(real.labels == c).int().argmax() for c in range(10)])
    mixed = real.labels[torch.randperm(len(real), generator=rng())]
    noise = torch.randint(0, 256, real.images.shape, generator=rng()).to(torch.uint8)
    return {
        "exact copies": ("new", copies),
        "copies moved by a pixel": ("new", with_images(moved, copies)),
        "mirrored copies": ("new", with_images(copies.images.flip(3), copies)),
        "one image of each class": ("diverse", real.subset(first[real.labels])),
        "wrong labels": ("aligned", with_images(real.images, real, mixed)),
        "noise": ("real", with_images(noise, real)),
    }


@pytest.mark.parametrize(
    "fault",
    [
        "exact copies",
        "copies moved by a pixel",
        "mirrored copies",
        "one image of each class",
        "wrong labels",
        "noise",
    ],
)
def test_a_fault_is_named_by_its_verdict(sets, real_side, fault):
    train, held_out, real = sets
    question, generated = faults(train, real)[fault]
    found = evaluate(generated, train, held_out, real_side=real_side)
    assert found.verdicts[question].answer == "no"
    if question == "new":
        assert found.figures["copy_share"]["value"] > 0.95
        assert found.copy_scores.tolist() == [0.0] * 100
        assert all(pair.suspicious for pair in found.worst)


def test_a_small_classifier_as_judge(sets, judge):
    train, held_out, real = sets
    side = RealSide(train, held_out, judge)
    expected = {"real images": dict.fromkeys(JUDGED, "yes")}
    given = {"real images": real, **{name: images for name, (_, images) in faults(train, real).items()}}
    for name, (question, _) in faults(train, real).items():
        expected[name] = {question: "no"}
    for name, images in given.items():
        found = answers(evaluate(images, train, held_out, real_side=side))
        assert {question: found[question] for question in expected[name]} == expected[name], name


def test_held_out_images_as_generated_ones_prove_nothing(sets, real_side):
    train, held_out, _ = sets
    found = evaluate(held_out, train, held_out, real_side=real_side)
    assert answers(found) == dict.fromkeys(JUDGED, "cannot tell")
    assert found.figures["held_out_share"]["value"] == 1.0


class Blind:
    """A judge to whom all images are alike, or all different whatever they show."""

    name = "blind"
    dim = 8

    def __init__(self, see):
        self.see = see

    def features(self, images):
        return self.see(images.images)

    def describe(self, images):
        return Described(self.features(images), None)

    def record(self):
        return {"name": self.name}


def by_chance(images):
    """Features that depend on an image, but on nothing that can be seen."""
    seeds = [hash(image.numpy().tobytes()[:7]) % 2**31 for image in images]
    return torch.stack([torch.randn(8, generator=rng(seed)) for seed in seeds])


@pytest.mark.parametrize("see", [lambda x: torch.ones(len(x), 8), by_chance], ids=["constant", "by chance"])
def test_a_blind_judge_cannot_tell(few, see):
    """Negative control: nothing good or bad is said on the word of a judge who sees nothing."""
    train, held_out, real, _ = few
    side = RealSide(train, held_out, Blind(see))
    # Appearance and pixels need no judge: they can speak against images, but not alone for them, and "partly"
    # speaks for them: better than any failed generator.
    flipped, noise = with_images(real.images.flip(2), real), faults(train, real)["noise"][1]
    for images, answer in ((real, "cannot tell"), (flipped, "cannot tell"), (noise, "no")):
        found = evaluate(images, train, held_out, real_side=side).verdicts
        assert (found["real"].answer, found["aligned"].answer) == (answer, "cannot tell")
        assert found["real"].tests[0]["answer"] == "cannot tell"


def test_features_that_are_not_numbers_are_refused(few):
    train, held_out, real, _ = few
    with pytest.raises(DataError, match="NaN"):
        evaluate(real, train, held_out, extractor=Blind(lambda x: torch.full((len(x), 8), math.nan)))


# --------------------------------------------------------------------------------- without held-out


def test_without_held_out_images_nothing_is_claimed(sets):
    train, _, real = sets
    found = evaluate(real, train, useful_draws=2)
    for question in QUESTIONS:
        assert found.verdicts[question].answer == "cannot tell"
        assert "--holdout" in found.verdicts[question].why
    assert not found.figures
    assert not found.controls
    assert "frechet_distance" in found.omitted
    assert all("held-out" in reason for reason in found.omitted.values())
    assert not any(pair.suspicious for pair in found.worst)
    assert "equal a training image" not in found.verdicts["new"].why


def test_without_held_out_images_exact_copies_are_still_named(sets):
    train, _, real = sets
    images = real.images.clone()
    images[7] = train.images[3]
    found = evaluate(with_images(images, real), train)
    assert found.verdicts["new"].answer == "partly"
    assert found.verdicts["new"].plain == "1 of 100 images is a training image."
    assert [pair.suspicious for pair in found.worst] == [True] + [False] * 9
    images[20] = train.images[200].flip(1)  # mirrored and turned by 180 degrees
    found = evaluate(with_images(images, real), train)
    assert (found.verdicts["new"].answer, found.verdicts["new"].plain) == (
        "no",
        "2 of 100 images are training images.",
    )
    copies = evaluate(train.subset(range(0, 300, 7)), train)
    assert copies.verdicts["new"].answer == "no"
    assert copies.verdicts["new"].plain == "43 of 43 images are training images."


# ------------------------------------------------------------------------------ what must not matter


def permuted(images, seed):
    order = torch.randperm(len(images), generator=rng(seed))
    return images.subset(order), order


def test_the_order_of_the_images_changes_nothing(few):
    train, held_out, real, pool = few
    found = evaluate(real, train, held_out, pool=pool)
    (other_real, g), (other_train, t) = permuted(real, 1), permuted(train, 2)
    other = evaluate(other_real, other_train, shuffled(held_out, 3), pool=shuffled(pool, 4))
    first, second = found.to_dict(), other.to_dict()
    scores = torch.tensor(second.pop("copy_scores"))
    assert torch.equal(torch.tensor(first.pop("copy_scores"))[g], scores)
    for pair in second["worst_pairs"]:
        pair["generated"], pair["train"] = int(g[pair["generated"]]), int(t[pair["train"]])
    same_record(first, second)


def test_batches_and_blocks_change_nothing(sets, judge, monkeypatch):
    train, held_out, real = sets
    found = evaluate(real, train, held_out, extractor=judge)
    monkeypatch.setattr(copying, "_BLOCK", 10**5)
    monkeypatch.setattr(distances, "BLOCK_ENTRIES", 999)
    monkeypatch.setattr(distances, "_LEAST_ROWS", 3)
    same_record(found.to_dict(), evaluate(real, train, held_out, extractor=judge).to_dict())
    # The network's own batches change the last digits of its float32 features, and no answer.
    monkeypatch.setattr(judge, "batch_size", 7)
    other = evaluate(real, train, held_out, extractor=judge)
    assert answers(other) == answers(found)
    first, second = ({k: v["value"] for k, v in e.figures.items()} for e in (found, other))
    same_record(first, second, 1e-3)


def test_a_shared_real_side_keeps_nothing_of_other_images(sets, of_real, real_side):
    train, held_out, real = sets
    fresh = evaluate(real, train, held_out)
    same_record(fresh.to_dict(), of_real.to_dict())
    evaluate(of_classes(real, 0, 1), train, held_out, real_side=real_side)
    evaluate(real.subset(range(0, 100, 2)), train, held_out, real_side=real_side, labelled=False)
    same_record(evaluate(real, train, held_out, real_side=real_side).to_dict(), fresh.to_dict())


def test_the_seed_decides(few):
    train, held_out, real, _ = few
    first, other = (evaluate(real, train, held_out, seed=seed).to_dict() for seed in (0, 1))
    assert first["controls"]["noise"] != other["controls"]["noise"]


# --------------------------------------------------------------------------------- figures and record


def test_figures_stand_between_their_controls(of_real):
    assert set(of_real.controls) == set(CONTROLS)
    shares = (
        "precision",
        "recall",
        "coverage",
        "class_agreement",
        "copy_share",
        "collapse_share",
        "authenticity",
    )
    for figures in (of_real.figures, *of_real.controls.values()):
        for name in shares:
            assert 0 <= figures[name]["value"] <= 1, name
    of = {name: {k: v["value"] for k, v in figures.items()} for name, figures in of_real.controls.items()}
    real = {name: figure["value"] for name, figure in of_real.figures.items()}
    assert real["frechet_distance"] < of["noise"]["frechet_distance"] / 5
    assert of["held_out"]["kernel_distance"] < of["noise"]["kernel_distance"]
    assert of["noise"]["precision"] == 0 < of["held_out"]["precision"]
    assert of["copies"]["copy_share"] == 1 > real["copy_share"]
    assert of["copies"]["authenticity"] == 0 < real["authenticity"]
    assert of["one_per_class"]["collapse_share"] == 1 > real["collapse_share"]
    assert of["one_per_class"]["within_class_distance"] == 0 < real["within_class_distance"]
    assert of["shuffled_labels"]["class_agreement"] < 0.3 < real["class_agreement"]
    assert of["copies"]["c_t"] < -5 < real["c_t"]
    assert set(of_real.figures["class_agreement"]["per_class"]) == set(of_real.train.class_names)


def test_protocol_says_what_was_compared(of_real):
    protocol = of_real.protocol
    assert [protocol[f"n_{name}"] for name in ("generated", "train", "held_out", "pool")] == [
        100,
        300,
        100,
        0,
    ]
    assert protocol["extractor"] == PIXELS.record()
    assert protocol["image_shape"] == [1, 8, 8]
    assert protocol["copying"]["largest_shift"] == 1
    assert protocol["labelled"]


def test_the_record_is_saved_and_read(of_real, tmp_path):
    path = tmp_path / "evaluation.json"
    of_real.save(path)
    read = read_json(path)
    assert read == of_real.to_dict()
    assert (read["format"], read["format_version"]) == ("fewgen-evaluation", 1)
    assert list(read["verdicts"]) == list(QUESTIONS)
    for verdict in read["verdicts"].values():
        for test in verdict["tests"]:
            assert set(test["controls"]) == {*test["must_pass"], *test["must_catch"]}


def test_a_figure_that_is_no_number_is_not_saved(of_real, tmp_path, monkeypatch):
    monkeypatch.setitem(of_real.figures, "vendi", {"value": math.nan, "question": "diverse"})
    path = tmp_path / "evaluation.json"
    with pytest.raises(ValueError, match="JSON"):
        of_real.save(path)
    assert not path.exists()


def test_worst_pairs_point_at_the_images_they_were_given(sets):
    train, held_out, real = sets
    train, real = shuffled(train, 5), shuffled(real, 6)
    images = real.images.clone()
    planted = {17: (201, "as it is"), 40: (7, "mirrored"), 88: (150, "as it is")}
    for generated, (source, how) in planted.items():
        images[generated] = train.images[source].flip(2) if how == "mirrored" else train.images[source]
    generated = with_images(images, real)
    found = evaluate(generated, train, held_out)
    assert {pair.generated: (pair.train, pair.transform) for pair in found.worst[:3]} == planted
    for pair in found.worst[:3]:
        assert (pair.score, pair.distance, pair.suspicious) == (0.0, 0.0, True)
        assert pair.class_name == real.class_names[int(real.labels[pair.generated])]
    assert found.copy_scores.nonzero().flatten().tolist() == [i for i in range(100) if i not in planted]
    assert [pair.score for pair in found.worst] == sorted(pair.score for pair in found.worst)
    for pair in found.worst:
        assert pair.score == pytest.approx(float(found.copy_scores[pair.generated]))


def test_progress_is_told(few):
    train, held_out, real, _ = few
    told = []
    evaluate(real, train, held_out, progress=lambda name, share: told.append((name, share)))
    names = list(dict.fromkeys(name for name, _ in told))
    assert names == list(PARTS[2:7])
    assert all(0 <= share <= 1 for _, share in told)


# ------------------------------------------------------------------------------------- other material


def test_images_without_labels(few, few_side):
    train, held_out, real, _ = few
    found = evaluate(real, train, held_out, real_side=few_side, labelled=False, useful_draws=2)
    assert found.verdicts["real"].answer == "yes"
    for question in ("diverse", "aligned", "useful"):
        assert found.verdicts[question].answer == "cannot tell"
        assert "label" in found.verdicts[question].why
    for name in ("vendi", "within_class_distance", "collapse_share", "class_agreement"):
        assert "label" in found.omitted[name]
    assert {"frechet_distance", "precision", "copy_share", "c_t"} <= set(found.figures)
    assert {pair.class_name for pair in found.worst} == {""}
    assert not found.protocol["labelled"]
    # The labels that the set happens to carry mean nothing.
    mixed = with_images(real.images, real, torch.zeros_like(real.labels))
    other = evaluate(mixed, train, held_out, real_side=few_side, labelled=False, useful_draws=2)
    same_record(found.to_dict(), other.to_dict())


def test_more_images_without_labels_than_a_control_has(few, monkeypatch):
    monkeypatch.setattr(real_side_module, "N_CONTROL", 20)
    train, held_out, real, _ = few
    found = evaluate(real, train, held_out, labelled=False)
    assert found.controls["noise"]["precision"]["value"] == 0
    assert answers(evaluate(real, train, held_out))["real"] == "yes"


@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_few_held_out_images(few, per_class):
    train, held_out, real, _ = few
    found = evaluate(real, train, held_out.shots(per_class, 0))
    assert "collapse_share" in found.omitted
    assert found.figures["frechet_distance"]["value"] > 0
    if per_class == 1:
        assert {"vendi", "within_class_distance"} <= set(found.omitted)
        assert found.verdicts["diverse"].answer == "cannot tell"


@pytest.mark.parametrize(
    ("chosen", "labelled"),
    [
        ([0], True),
        ([0], False),
        ([0, 6], True),
        ([0, 1], False),
        ([0, 6, 12, 18], True),
        ([0, 1, 2, 3, 4, 5], True),
    ],
)
def test_hardly_any_held_out_images(few, chosen, labelled):
    train, held_out, real, _ = few
    found = evaluate(real, train, held_out.subset(chosen), labelled=labelled)
    assert "collapse_share" in found.omitted
    assert "no" not in answers(found).values()
    if len(chosen) == 1:
        assert answers(found) == dict.fromkeys(JUDGED, "cannot tell")
        assert "frechet_distance" in found.omitted


def test_classes_without_held_out_images(few):
    train, held_out, real, _ = few
    found = evaluate(real, train, of_classes(held_out, 0, 1, 2, 3))
    assert found.figures["class_agreement"]["value"] > 0.5
    assert found.verdicts["real"].answer == "yes"
    # No class at all in common: nothing is compared class by class.
    apart = evaluate(of_classes(real, 7, 8), train, of_classes(held_out, 0, 1))
    assert {"vendi", "collapse_share"} <= set(apart.omitted)
    for question in ("real", "diverse", "aligned"):
        assert apart.verdicts[question].answer == "cannot tell"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_generated_images(few, n, few_side):
    train, held_out, real, _ = few
    found = evaluate(real.subset(range(n)), train, held_out, real_side=few_side)
    assert not set(answers(found).values()) & {"no", "partly"}
    assert "kernel_distance" in found.omitted


def test_generated_images_of_one_class_or_of_uneven_classes(few, few_side):
    train, held_out, real, _ = few
    for images in (
        of_classes(real, 4),
        real.subset([*range(2), *range(6, 60)]),
        real.subset(range(0, 60, 5)),
    ):
        found = evaluate(images, train, held_out, real_side=few_side)
        assert not set(answers(found).values()) & {"no", "partly"}
        assert found.figures["class_agreement"]["value"] > 0.5
    assert "class_agreement" not in found.omitted


def test_three_training_images_of_each_class(few, digits):
    train, held_out, real, _ = few
    found = evaluate(real, train.shots(3, 0), held_out)
    assert found.verdicts["real"].answer == "yes"
    assert found.verdicts["new"].answer in ("yes", "cannot tell")


def test_two_training_images(few):
    train, held_out, real, _ = few
    found = evaluate(real, train.subset([0, 29]), held_out)
    assert {pair.train for pair in found.worst} <= {0, 1}
    with pytest.raises(DataError, match="at least 2"):
        evaluate(real, train.subset([0]), held_out)


def test_a_single_class(few):
    train, held_out, real = (images.select_classes(["three"]) for images in few[:3])
    found = evaluate(real, train, held_out)
    assert found.verdicts["aligned"].answer == "cannot tell"
    assert "no classes" in found.verdicts["aligned"].why
    assert "class_agreement" in found.omitted
    assert found.verdicts["real"].answer in ("yes", "cannot tell")
    with pytest.raises(DataError, match=r"two classes.*--features"):
        evaluate_images(real, train, held_out, useful_draws=0)


def test_a_judge_of_other_classes(few, judge):
    train, held_out, real, _ = few
    names = tuple(f"sign {i}" for i in range(10))
    sets = [ImageSet(images.images, images.labels, names) for images in (real, train, held_out)]
    found = evaluate(*sets, extractor=judge)
    assert found.figures["class_agreement"]["value"] > 0.5


def test_flat_images(few, few_side):
    train, held_out, real, _ = few
    flat = with_images(torch.full_like(real.images, 128), real)
    found = evaluate(flat, train, held_out, real_side=few_side)
    assert found.verdicts["real"].answer == "no"
    assert found.verdicts["diverse"].answer == "no"
    every = [with_images(images.images * 0, images) for images in (real, train, held_out)]
    # They do equal the training images; nothing else can be told of images without content.
    found = answers(evaluate(*every))
    assert found == {**dict.fromkeys(JUDGED, "cannot tell"), "new": "no"}


def test_held_out_images_that_are_training_images(few):
    train, held_out, real, _ = few
    # Only those: there is nothing to compare with, and a fact needs nothing.
    found = evaluate(train, train, train.shots(3, 0))
    assert found.verdicts["new"].answer == "no"
    assert evaluate(real, train, train.shots(3, 0)).verdicts["new"].answer == "cannot tell"
    # A few: they do not make copies usual.
    images = held_out.images.clone()
    images[::20] = train.images[::20]
    kept = train.subset([i for i in range(50) if i % 20])
    found = evaluate(kept, train, with_images(images, held_out))
    assert found.verdicts["new"].answer == "no"


def test_colour_and_rectangular_images(sets):
    def changed(images):
        colour = images.images.expand(-1, 3, -1, -1)[:, :, :, :7].clone()
        colour[:, 0] = 255 - colour[:, 0]
        return with_images(colour, images)

    train, held_out, real = (changed(images) for images in sets)
    side = RealSide(train, held_out, PixelFeatures(3, 8, 7))
    found = evaluate(real, train, held_out, real_side=side)
    assert set(answers(found).values()) <= {"yes", "cannot tell"}
    mirrored = train.subset(range(0, 300, 3))
    copies = evaluate(with_images(mirrored.images.flip(3), mirrored), train, held_out, real_side=side)
    assert copies.verdicts["new"].answer == "no"
    assert copies.protocol["copying"]["window"] == [6, 5]


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("which", ["generated", "train", "held_out", "pool"])
@pytest.mark.parametrize("fault", ["size", "channels", "names", "order of names", "empty"])
def test_sets_that_do_not_fit_are_refused(few, which, fault):
    train, held_out, real, pool = few
    sets = {"generated": real, "train": train, "held_out": held_out, "pool": pool}
    good = sets[which]
    names = {"names": tuple("abcdefghij"), "order of names": good.class_names[::-1]}.get(
        fault, good.class_names
    )
    images = {
        "size": good.images[:, :, :, :-1],
        "channels": good.images.expand(-1, 3, -1, -1),
        "empty": good.images[:0],
    }.get(fault, good.images)
    sets[which] = ImageSet(images, good.labels[: len(images)], names)
    with pytest.raises(ShapeError if fault in ("size", "channels") else DataError) as error:
        evaluate(**sets)
    said = str(error.value)
    assert ("training" if which == "train" else which.replace("_", "-")) in said
    if fault in ("size", "channels"):
        assert "(1, 8, 8)" in said
    if fault == "names":
        assert "'a'" in said


def test_a_negative_number_of_draws(few):
    with pytest.raises(ConfigError, match="-1"):
        evaluate(few[2], few[0], few[1], useful_draws=-1)


def test_a_real_side_of_other_images_is_refused(sets, few, real_side):
    train, held_out, real = sets
    for other_train, other_held in ((few[0], held_out), (train, few[1]), (train, None)):
        with pytest.raises(ConfigError, match="real_side"):
            evaluate(real, other_train, other_held, real_side=real_side)
    # The order of the images makes them no other images.
    assert evaluate(real, shuffled(train, 1), shuffled(held_out, 2), real_side=real_side)


# --------------------------------------------------------------------------------------- usefulness


def test_usefulness_without_and_with_a_pool(few):
    train, held_out, real, pool = few
    found = evaluate(real, train, held_out, useful_draws=2, usefulness_options=TINY)
    verdict = found.verdicts["useful"]
    assert set(verdict.tests[0]["controls"]) >= {"more_real_images", "copies"}
    figure = found.figures["usefulness"]
    assert figure["n_draws"] == 2
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert -1 <= found.figures["usefulness_generated_only"]["value"] <= 1
    assert "pool" in found.omitted["worth_images"]
    assert found.protocol["useful_draws"] == 2

    told = []
    found = evaluate(
        real,
        train,
        held_out,
        pool=pool,
        useful_draws=2,
        usefulness_options={**TINY, "curve": (1, 2, 3)},
        draws=[(pool.shots(5, 1), real)],
        progress=lambda name, share: told.append((name, share)),
    )
    curve = found.figures["worth_images"]["curve"]
    assert [point["images_per_class"] for point in curve] == [5, 10]
    assert found.figures["usefulness"]["n_support_draws"] == 2
    assert "worth_images" not in found.omitted
    assert (USEFULNESS, 1.0) in told


def test_usefulness_says_why_it_is_missing(few, few_side):
    train, held_out, real, _ = few
    found = evaluate(
        of_classes(real, 0, 1), train, held_out, real_side=few_side, useful_draws=2, usefulness_options=TINY
    )
    assert found.verdicts["useful"].answer == "cannot tell"
    assert "'two'" in found.omitted["usefulness"]
    found = evaluate(real, train, held_out, real_side=few_side)
    assert "not measured" in found.omitted["usefulness"]


def test_usefulness_of_images_that_it_is_tested_on(few, few_side):
    train, held_out, real, _ = few
    found = evaluate(held_out, train, held_out, real_side=few_side, useful_draws=2, usefulness_options=TINY)
    assert found.figures["usefulness"]["n_seen"] == len(held_out)
    assert found.verdicts["useful"].answer == "cannot tell"


# -------------------------------------------------------------------------------------- the judge


def test_the_judge_is_trained_on_the_pool_or_else_on_the_training_images(few, monkeypatch):
    train, held_out, real, pool = few
    learned = []

    def of(images, **options):
        learned.append(len(images))
        settings = ClassifierSettings(steps=2, batch_size=16, width=8, dim=8)
        return original(images, settings=settings, use_cache=False)

    original = ClassifierFeatures.of
    monkeypatch.setattr(ClassifierFeatures, "of", of)
    for options, said in (({}, "the training images"), ({"pool": pool}, "other real images")):
        found = evaluate_images(real, train, held_out, useful_draws=0, **options)
        check_record(found)
        assert found.protocol["judge_trained_on"] == said
        assert found.protocol["extractor"]["n_test"] == len(held_out)
    assert learned == [len(train), len(pool)]


def test_held_out_images_among_the_generated_ones_are_noticed(few):
    train, held_out, real, _ = few
    images = real.images.clone()
    images[::10] = held_out.images[::10]
    found = evaluate(with_images(images, real), train, held_out)
    assert set(answers(found).values()) == {"cannot tell"}
    assert "held-out images, pixel by pixel" in found.verdicts["new"].why
    assert found.figures["held_out_share"]["value"] == pytest.approx(0.1, abs=0.02)


def test_images_that_repeat_each_other_are_not_diverse(few):
    train, held_out, real, _ = few
    half = torch.arange(len(real)) // 2 * 2
    found = evaluate(with_images(real.images[half], real), train, held_out)
    test = next(t for t in found.verdicts["diverse"].tests if t["name"] == "repeated images")
    assert test["answer"] == "partly"
    assert found.verdicts["diverse"].answer in ("partly", "no")


def test_controls_stand_at_the_counts_of_the_generated_images(few):
    train, held_out, real, _ = few
    found = evaluate(real, train, held_out)
    for control in ("copies", "augmented_copies", "noise"):
        assert found.controls[control]["frechet_distance"]["n"] == len(real)
        assert found.controls[control]["coverage"]["n_reference"] == len(held_out)
    halves = found.controls["held_out"]["frechet_distance"]
    assert halves["n"] + halves["n_reference"] == len(held_out)
