"""The benchmark of the verdicts: its sets have the faults they are named after, its tables count right."""

import json
from types import SimpleNamespace

import pytest
import torch
from benchmarks.verdicts import (
    BEYOND,
    DATA,
    QUESTIONS,
    TARGETS,
    Protocol,
    faulty_sets,
    main,
    one_draw,
    sets_beyond,
    table,
    three_sets,
)

from benchmarks import verdicts as benchmark
from fewgen.data.imageset import ImageSet
from fewgen.encoders.classifier import ClassifierFeatures
from fewgen.evaluation import evaluation
from fewgen.evaluation.failed import failed_images
from fewgen.evaluation.verdicts import Verdict
from fewgen.files import read_json

FAULTS = (*TARGETS, *BEYOND)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    """12 noisy images of each of 25 classes, in mixed order; every image is another one."""
    labels = torch.arange(300) % 25
    noise = torch.randint(0, 256, (300, 1, 8, 8), generator=rng())
    return ImageSet(noise.to(torch.uint8), labels, tuple(f"class {i}" for i in range(25)))


@pytest.fixture
def small(monkeypatch):
    for name in ("digits", "omniglot"):
        classes = DATA[name].n_classes
        monkeypatch.setitem(DATA, name, Protocol((4, 4, 4), 2, n_classes=classes))


@pytest.fixture
def sets(images, small):
    return three_sets(images, "digits", 0)


def keys(images):
    return {
        (int(label), image.numpy().tobytes())
        for image, label in zip(images.images, images.labels, strict=True)
    }


# ---------------------------------------------------------------------------------------------- sets


@pytest.mark.parametrize(("name", "n_classes"), [("digits", 25), ("omniglot", 20)])
def test_three_sets_are_apart_and_hold_as_many_of_each_class(images, small, name, n_classes):
    for draw in (0, 1):
        parts = three_sets(images, name, draw)
        for part, n in zip(parts, DATA[name].per_class, strict=True):
            assert part.counts().tolist() == [n] * n_classes
        train, held_out, judged = map(keys, parts)
        assert not train & held_out
        assert not train & judged
        assert not held_out & judged


def test_draws_differ_and_repeat(images, small):
    first, again, other = (three_sets(images, "omniglot", draw) for draw in (3, 3, 4))
    assert [keys(part) for part in first] == [keys(part) for part in again]
    assert keys(first[0]) != keys(other[0])
    assert first[0].class_names != other[0].class_names


def test_every_fault_has_as_many_images_of_each_class_as_the_real_images(sets):
    train, _, real = sets
    faulty = faulty_sets(train, real, 0)
    made = {**faulty, **sets_beyond(train, real, faulty["exact copies"], 0)}
    assert set(made) == set(FAULTS)
    assert set(TARGETS.values()) <= set(QUESTIONS)
    for name, images in made.items():
        assert len(images) == len(real), name
        assert torch.equal(images.counts(), real.counts()), name
        assert images.images.shape == real.images.shape, name
        assert images.class_names == real.class_names, name


def test_the_faults_are_what_they_are_called(sets):
    train, held_out, real = sets
    made = faulty_sets(train, real, 0)
    source = made["exact copies"]
    assert keys(source) <= keys(train)
    assert len(keys(source)) == len(real)
    assert torch.equal(made["mirrored copies"].images.flip(3), source.images)
    assert not keys(made["augmented copies"]) & keys(train)
    assert len(made["one image per class"].images.unique(dim=0)) == real.n_classes
    assert keys(made["one image per class"]) <= keys(real)
    shuffled = made["shuffled labels"]
    assert torch.equal(shuffled.images, real.images)
    assert float((shuffled.labels == real.labels).double().mean()) < 0.2
    assert not keys(made["noise"]) & (keys(real) | keys(train) | keys(held_out))
    turned = made["copies turned by 90 degrees"].images
    assert torch.equal(turned.rot90(-1, (2, 3)), source.images)
    enlarged = made["copies enlarged by 15 %"].images
    assert not (enlarged == source.images).flatten(1).all(dim=1).any()
    # Failed generators are imitated on other images than the controls of the verdict.
    for name, failed in failed_images(real, 0).items():
        assert torch.equal(made[name.replace("_", " ")].images, failed.images), name


def test_shifted_copies_are_moved_by_one_pixel_and_repeat_their_border(sets):
    train, _, real = sets
    made = faulty_sets(train, real, 0)
    directions = set()
    for image, source in zip(
        made["shifted by one pixel"].images[:, 0], made["exact copies"].images[:, 0], strict=True
    ):
        moved = {
            "down": torch.cat([source[:1], source[:-1]]),
            "up": torch.cat([source[1:], source[-1:]]),
            "right": torch.cat([source[:, :1], source[:, :-1]], dim=1),
            "left": torch.cat([source[:, 1:], source[:, -1:]], dim=1),
        }
        fitting = [name for name, other in moved.items() if torch.equal(image, other)]
        assert len(fitting) == 1
        directions.update(fitting)
    assert directions == {"down", "up", "right", "left"}


def test_the_faults_beyond_the_controls(sets):
    train, _, real = sets
    source = faulty_sets(train, real, 0)["exact copies"]
    assert torch.equal(source.labels, real.labels)
    made = sets_beyond(train, real, source, 0)
    equal = [
        [bool((a == b).all()) for a, b in zip(made["a fifth are copies"].images, other.images, strict=True)]
        for other in (source, real)
    ]
    assert sum(equal[0]) == len(real) // 5
    assert sum(equal[1]) == len(real) - len(real) // 5
    assert not any(a and b for a, b in zip(*equal, strict=True))
    twice = made["each image twice"]
    assert torch.equal(twice.images[0], twice.images[1])
    assert len(twice.images.unique(dim=0)) == (len(real) + 1) // 2
    dark = made["dark speckle"].images.float()
    assert float(dark.mean()) < 0.6 * float(train.images.float().mean())
    fog = made["fog"].images
    assert not keys(ImageSet(fog, real.labels, real.class_names)) & keys(train)
    mean = train.images[train.labels == 0].float().mean(dim=0)
    assert float((fog[real.labels == 0].float() - mean).square().mean()) < float(
        (train.images[train.labels == 0].float() - mean).square().mean()
    )
    # Half of a mixture is its source: the rest lies in [0, 127.5], up to rounding.
    rest = made["mixtures of two training images"].images.double() - source.images.double() / 2
    assert float(rest.min()) >= -0.5
    assert float(rest.max()) <= 128


# ---------------------------------------------------------------------------------------------- draws


def test_one_draw_judges_every_set_by_the_same_real_images(images, small, monkeypatch):
    calls = []

    def evaluate_images(generated, train, held_out, *, real_side, useful_draws, seed):
        calls.append((generated, train, held_out, real_side, useful_draws, seed))
        tests = [{"name": "test", "answer": "yes", "controls": {}, "numbers": {}, "why": ""}]
        return SimpleNamespace(verdicts={q: Verdict(q, "yes", f"{q} because", tests) for q in QUESTIONS})

    judge = SimpleNamespace(record=lambda: {"test_accuracy": 0.75})
    sides = []

    def real_side(train, held_out, extractor, seed):
        sides.append((train, held_out, extractor, seed))
        return "side"

    monkeypatch.setattr(ClassifierFeatures, "of", lambda train, use_cache: judge)
    monkeypatch.setattr(evaluation, "RealSide", real_side)
    monkeypatch.setattr(evaluation, "evaluate_images", evaluate_images)
    found = one_draw("digits", 2, images)
    json.dumps(found, allow_nan=False)
    assert list(found["subjects"]) == ["real images", *FAULTS]
    assert found["counts"] == {"train": 100, "held_out": 100, "judged": 100}
    assert (found["data"], found["draw"], found["judge_accuracy"]) == ("digits", 2, 0.75)
    assert found["subjects"]["noise"]["real"]["why"] == "real because"
    ((train, held_out, extractor, seed),) = sides
    assert extractor is judge
    assert seed == 2
    assert keys(train) == keys(three_sets(images, "digits", 2)[0])
    for _, own_train, own_held, side, useful_draws, own_seed in calls:
        assert own_train is train
        assert own_held is held_out
        assert (side, useful_draws, own_seed) == ("side", 0, 2)


def test_a_pretrained_judge_has_draws_and_a_table_of_its_own(images, small, tmp_path, monkeypatch, capsys):
    side = SimpleNamespace(linear_probe={"test_accuracy": 0.66})
    monkeypatch.setattr(evaluation, "RealSide", lambda train, held_out, extractor, seed: side)
    found = SimpleNamespace(verdicts={q: Verdict(q, "yes", "") for q in QUESTIONS})
    monkeypatch.setattr(evaluation, "evaluate_images", lambda *_, **__: found)
    made = one_draw("digits", 2, images, "pixels")
    assert (made["features"], made["judge_accuracy"]) == ("pixels", 0.66)

    monkeypatch.setattr(
        benchmark, "one_draw", lambda name, draw, images, features: drawn(name, draw) | {"features": features}
    )
    monkeypatch.setattr(benchmark, "_all_images", lambda name, data_dir: None)
    given = ["--data", "digits", "--out", str(tmp_path), "--first", "4", "--draws", "1"]
    assert main(given) == 0
    assert main([*given, "--features", "lite0"]) == 0
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == [
        "draw004-lite0.json",
        "draw004.json",
    ]
    for name, judge in (("table.md", "classifier"), ("table-lite0.md", "lite0")):
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(f"Judge: {judge}.")
    assert "| digits | 1 |" in capsys.readouterr().out


def drawn(name, draw, answers=None):
    """A finished draw: every verdict as it should be, but for {(subject, question): answer}."""
    subjects = {}
    for subject in ("real images", *FAULTS):
        subjects[subject] = {question: {"answer": "yes"} for question in QUESTIONS}
        if subject in TARGETS:
            subjects[subject][TARGETS[subject]] = {"answer": "no"}
    for (subject, question), answer in (answers or {}).items():
        subjects[subject][question] = {"answer": answer}
    return {
        "data": name,
        "draw": draw,
        "judge_accuracy": 0.8,
        "subjects": subjects,
        "environment": {"commit": "0123456789"},
        "processor_seconds": 1800.0,
    }


def rows(text):
    """Return row name -> cells of each table."""
    tables, current = [], {}
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            current[cells[0]] = cells[1:]
        elif current:
            tables, current = [*tables, current], {}
    return [*tables, current] if current else tables


def test_the_table_counts_false_alarms_and_misses():
    draws = [
        drawn("digits", 4, {("real images", "new"): "no", ("real images", "real"): "partly"}),
        drawn("digits", 5, {("real images", "new"): "cannot tell", ("noise", "real"): "partly"}),
        drawn("digits", 6, {("exact copies", "new"): "yes", ("noise", "real"): "cannot tell"}),
        drawn("mnist", 4, {("a fifth are copies", "new"): "partly"}),
        drawn("imagenette64", 4, {("real images", "diverse"): "not meaningful", ("fog", "real"): "no"}),
    ]
    text = table(draws)
    alarms, misses, beyond = rows(text)
    head = alarms["data"]
    apart = "all but resampled"
    cell = {name: dict(zip(head, alarms[name], strict=True)) for name in (*DATA, apart) if name in alarms}
    assert set(cell) == {"digits", "mnist", "imagenette64", apart}
    assert cell["digits"]["new"].startswith("1 of 3 ")
    assert cell["digits"]["real"].startswith("1 of 3 ")
    assert cell["digits"]["diverse"].startswith("0 of 3 (up to 56.1 %)")
    assert cell["digits"]["any"].startswith("1 of 3 ")  # both in one draw
    assert cell["digits"]["of these cannot tell"] == "new 1"
    assert cell["digits"]["judge %"] == "80"
    assert cell["mnist"]["any"].startswith("0 of 1 ")
    assert cell["imagenette64"]["diverse"] == "1 of 1"  # draws share their images: no interval
    assert cell[apart]["new"].startswith("1 of 4 ")
    assert cell[apart]["draws"] == "4"

    def miss(fault, group):
        return dict(zip(misses["fault (question)"], misses[fault], strict=True))[group]

    assert miss("exact copies (new)", "digits").startswith("1 of 3 ")
    assert miss("mirrored copies (new)", "digits").startswith("0 of 3 ")
    noise = miss("noise (real)", "digits")
    assert noise.startswith("1 of 3 ")
    assert "1 of these partly" in noise
    assert "cannot tell 1" in noise
    assert miss("exact copies (new)", apart).startswith("1 of 4 ")
    assert miss("all of these", "digits") == f"2 of {3 * len(TARGETS)}, 1 of these partly; cannot tell 1"

    counts = dict(zip(beyond["fault (question)"], beyond["a fifth are copies (new)"], strict=True))
    assert counts == {
        "draws": "5",
        "no": "0",
        "partly": "1",
        "yes": "4",
        "cannot tell": "0",
        "not meaningful": "0",
    }
    assert "2.5 processor hours" in text


def test_finished_draws_are_not_computed_again(tmp_path, monkeypatch, capsys):
    computed = []

    def one(name, draw, images, features="classifier"):
        computed.append((name, draw))
        return drawn(name, draw)

    monkeypatch.setattr(benchmark, "one_draw", one)
    monkeypatch.setattr(benchmark, "_all_images", lambda name, data_dir: None)
    out = tmp_path / "runs"
    given = ["--data", "digits", "mnist", "--out", str(out), "--first", "4"]
    assert main([*given, "--draws", "2", "--table-only"]) == 2
    assert "no finished draws" in capsys.readouterr().err
    assert main([*given, "--draws", "2"]) == 0
    # Every set gets its first draw before any gets its second: what is finished first says something of all.
    assert computed == [("digits", 4), ("mnist", 4), ("digits", 5), ("mnist", 5)]
    assert read_json(out / "mnist" / "draw005.json")["draw"] == 5
    computed.clear()
    assert main([*given, "--draws", "3"]) == 0
    assert computed == [("digits", 6), ("mnist", 6)]
    computed.clear()
    assert main([*given, "--draws", "3", "--table-only"]) == 0
    assert not computed
    text = capsys.readouterr().out
    assert "0 of 6" in text
    assert (out / "table.md").read_text(encoding="utf-8").strip() in text
