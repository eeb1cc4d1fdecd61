"""`adapt`: new classes from a few images, old ones kept, the run itself untouched."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fake_method import Fake

import fewgen
from fewgen.api import plan_evaluation
from fewgen.cli.main import main
from fewgen.config import read_config
from fewgen.data import ImageSet, load_images, save_images
from fewgen.data.registry import Reading
from fewgen.encoders.classifier import ClassifierFeatures
from fewgen.errors import ConfigError, DataError, OutputError, RenamedWarning, TextError, TrainingError
from fewgen.evaluation.retention import class_retention
from fewgen.generation import GenerationRequest
from fewgen.methods.store import load_method
from fewgen.report import adaptation
from fewgen.runs import adaptation as measured
from fewgen.runs import adapting as teaching
from fewgen.runs import new_images
from fewgen.runs.adapted import judged_by
from fewgen.runs.run import Run
from fewgen.training.meta.inner import SGD, Adam

assert Fake.name == "fake"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "odd", "even")
OLD = list(WORDS[:4])
QUICK = {"steps": 4, "report": False, "progress": False}
SMALL = {"backbone": "mlp"}


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", size=12)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    vectors = torch.randn(len(WORDS), 10, generator=torch.Generator().manual_seed(0))
    rows = (f"{w} {' '.join(f'{x:.4f}' for x in v)}" for w, v in zip(WORDS, vectors.tolist(), strict=True))
    path.write_text("\n".join(rows) + "\n")
    return path


def _train(out, words=None, model=None, **more):
    text = {"text": "onehot"} if words is None else {"text": "glove", "text_path": str(words)}
    return fewgen.train(
        "cada_vqvae",
        data="digits",
        size=12,
        class_names=OLD,
        shots=10,
        out=out,
        steps_scale=0.004,
        report=False,
        progress=False,
        model={"image": SMALL, **(model or {})},
        **text,
        **more,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, words):
    return _train(tmp_path_factory.mktemp("run") / "digits", words)


@pytest.fixture(scope="module")
def sevens(tmp_path_factory, digits):
    """Return a folder with eight images of sevens directly inside, larger than the model's."""
    folder = tmp_path_factory.mktemp("photos") / "sevens"
    folder.mkdir()
    for i, image in enumerate(digits.select_classes(["seven"]).shots(8, 0).images):
        Image.fromarray(image[0].numpy()).resize((30, 24)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, run, sevens):
    out = tmp_path_factory.mktemp("adapted") / "run"
    return fewgen.adapt(
        run, images=sevens, class_names="seven", shots=5, steps=6, curve=True, out=out, progress=False
    )


def _weights(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------ what it gives


def test_the_run_itself_is_untouched_bit_for_bit(run, sevens, tmp_path):
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    weights, state = _weights(run.method), torch.get_rng_state()
    made = fewgen.adapt(
        run, images=sevens, class_names="seven", out=tmp_path / "new", steps=3, progress=False
    )
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == files
    assert _equal(_weights(run.method), weights)
    assert run.method.spec.class_names == run.class_names == tuple(OLD)
    assert torch.equal(torch.get_rng_state(), state)
    assert not _equal(_weights(made.method), weights)


def test_the_folder_holds_everything(adapted):
    names = {path.name for path in adapted.path.iterdir()}
    assert names == {
        ".fewgen-run",
        "README.md",
        "config.yaml",
        "grid.png",
        "model.safetensors",
        "new_images.npz",
        "report.html",
        "split.json",
    }
    assert adapted.class_names == (*OLD, "seven")
    record = adapted.info.extra["adapted"]
    assert record["classes"] == ["seven"]
    assert record["n_images"] == [5]
    assert record["steps"] == 6
    assert record["replay"] == 10
    assert record["earlier"] == []
    assert adapted.info.extra["training"]["finished"]  # what the model file said before is kept
    assert read_config(adapted.path / "config.yaml")["adapted"]["classes"] == ["seven"]
    with Image.open(adapted.path / "grid.png") as picture:
        assert picture.height > 5 * 56


def test_the_file_is_the_model_in_memory(adapted):
    assert _equal(_weights(load_method(adapted.path)), _weights(adapted.method))
    assert torch.equal(load_method(adapted.path).spec.text.vectors, adapted.method.spec.text.vectors)


def test_old_and_new_classes_serve_every_command(adapted, digits, tmp_path):
    path = adapted.path
    made = fewgen.generate(path, class_names=["seven", "two"], n=3)
    assert made.images.shape == (6, 1, 12, 12)
    assert made.labels.tolist() == [4, 4, 4, 2, 2, 2]
    assert len(fewgen.interpolate(path, "seven", "zero", steps=3).images) == 3
    assert len(fewgen.generate(path, texts=["odd"], n=2).images) == 2
    part = digits.select_classes(["seven"]).shots(3, 1)
    assert fewgen.retrieve(path, part).labels == ["seven"] * 3
    assert len(fewgen.reconstruct(path).images) == len(Run(path).images()[1])
    assert "classes" in str(plan_evaluation(images=path))


def test_the_run_knows_the_images_of_its_new_class(adapted, run):
    train, held_out = adapted.images()
    before, before_held_out = run.images()
    assert train.class_names == held_out.class_names == (*OLD, "seven")
    assert train.counts().tolist() == [*before.counts().tolist(), 5]
    assert held_out.counts().tolist() == [*before_held_out.counts().tolist(), 3]
    assert torch.equal(train.images[: len(before)], before.images)


def test_a_second_adaptation_builds_on_the_first(adapted, digits, tmp_path):
    nines = digits.select_classes(["nine"]).shots(3, 0)
    second = fewgen.adapt(adapted.path, images=nines, out=tmp_path / "second", **QUICK)
    assert second.class_names == (*OLD, "seven", "nine")
    assert [one["classes"] for one in second.info.extra["adapted"]["earlier"]] == [["seven"]]
    assert second.images()[0].counts().tolist()[4:] == [5, 3]
    assert second.images()[1].counts().tolist()[4:] == [3, 0]
    rows = adapted.method.spec.text.vectors
    assert torch.equal(second.method.spec.text.vectors[:5], rows)


def test_the_page_names_its_judges_and_loads_nothing(adapted):
    page = (adapted.path / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r'src="(?!data:)', page)
    assert "not an independent judge" in page
    assert "the word alone" in page
    for shots in ("1 image", "3 images", "5 images"):
        assert f"<td>{shots}</td>" in page
    assert "could not be made" not in page


def test_figures_are_those_of_the_models(adapted, run):
    figures = adapted.info.extra["adapted"]["figures"]
    assert [look["shots"] for look in figures["looks"]] == [0, 1, 3, 5]
    assert figures["n_query"] == 3
    drawn = adapted.method.generate(GenerationRequest.per_class([4], 64, seed=0))
    x = drawn.images.float() / 127.5 - 1
    right = int((adapted.method.retrieve(x).argmax(1) == 4).sum())
    assert figures["looks"][-1]["read"]["seven"]["successes"] == right
    request = GenerationRequest.per_class(range(4), 24, seed=0)
    for when, method in (("before", run.method), ("after", adapted.method)):
        made = method.generate(request)
        read = run.method.retrieve(made.images.float() / 127.5 - 1).argmax(1)
        assert figures["retention"]["overall"][when]["successes"] == int((read == made.labels).sum())


def test_variety_is_the_variance_within_classes(adapted, run):
    names = ["a", "b", "c"]
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256, (24, 1, 3, 3)).astype(np.uint8)
    after = before.copy()
    after[8:16] = after[8]  # all draws of b are one
    after[16:] //= 2
    labels = np.repeat(np.arange(3), 8)
    found = measured.class_variety(*(torch.from_numpy(x) for x in (before, after, labels)), names)

    def within(images, c):
        return np.var(images[labels == c] / 255.0, axis=0, ddof=1).mean()

    expected = {n: within(after, c) / within(before, c) for c, n in enumerate(names)}
    assert found.per_class == pytest.approx(expected, rel=1e-12, abs=1e-15)
    total = [sum(within(x, c) for c in range(3)) for x in (after, before)]
    assert found.overall == pytest.approx(total[0] / total[1], rel=1e-12)
    assert found.worst() == "b"
    blank = torch.zeros(4, 1, 3, 3, dtype=torch.uint8)
    with pytest.raises(DataError, match="no variety"):
        measured.class_variety(blank, blank, torch.tensor([0, 0, 1, 2]), names)

    figures = adapted.info.extra["adapted"]["figures"]
    request = GenerationRequest.per_class(range(4), 24, seed=0)
    var = [
        m.generate(request).images.double().unflatten(0, (4, 24)).var(1) for m in (run.method, adapted.method)
    ]
    assert figures["variety"]["overall"] == pytest.approx(float(var[1].mean() / var[0].mean()), rel=1e-9)
    assert "variance within a class" in "".join(adaptation.lines(figures))
    assert "of the pixel variance within a class is" in (adapted.path / "report.html").read_text()
    drawn = adapted.method.generate(GenerationRequest.per_class([4], 64, seed=0)).images.double()
    given = load_images(adapted.path / "new_images.npz").images.double()
    expected = float(drawn.var(0).mean() / given.var(0).mean())
    assert figures["new_variety"]["seven"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("per_class", "new", "said"),
    [
        ({"a": 0.9, "b": 0.4}, {"c": 0.5}, ['"b" 40%']),
        ({"a": 0.9, "b": 0.6}, {"c": 0.05}, ['hardly differ: those of "c" have 5%']),
        ({"a": 0.9, "b": 0.6}, {"c": 0.2}, []),
    ],
)
def test_lost_variety_is_warned_of(per_class, new, said):
    found = measured.Adaptation.__new__(measured.Adaptation)
    found.variety, found.new_variety = measured.Variety(0.7, per_class), new
    warnings = found.warnings()
    assert len(warnings) == len(said)
    assert all(words in text for words, text in zip(said, warnings, strict=True))


class _Drawing:
    """Draws images of its classes as it is told."""

    rows = 6

    def __init__(self, images, spec):
        self.images, self.spec = images, spec

    def generate(self, request):
        if self.images is None:
            raise DataError("NaN has no grey value.")
        return SimpleNamespace(images=self.images[request.labels])


def test_blank_draws_are_refused(run):
    spec = SimpleNamespace(n_classes=3, class_names=("a", "b", "new"))
    rng = torch.Generator().manual_seed(0)
    good = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8, generator=rng)
    given = ImageSet(good[2:], torch.tensor([0]), ("new",))
    start = _Drawing(good, spec)
    teaching.refuse_blank(start, start, given, 0.1)
    for lost in range(3):
        images = good.clone()
        images[lost] = 200
        with pytest.raises(TrainingError, match=rf'blank .*--lr 100 \(all of "{spec.class_names[lost]}"'):
            teaching.refuse_blank(start, _Drawing(images, spec), given, 100.0)
    with pytest.raises(TrainingError, match="no image can be drawn"):
        teaching.refuse_blank(start, _Drawing(None, spec), given, 100.0)
    # What was blank before, or is meant to be, is no fault of the adaptation.
    blank = good.clone()
    blank[0] = blank[2] = 0
    white = ImageSet(torch.full((1, 1, 4, 4), 255, dtype=torch.uint8), torch.tensor([0]), ("new",))
    teaching.refuse_blank(
        _Drawing(torch.cat([blank[:1], good[1:]]), spec), _Drawing(blank, spec), white, 100.0
    )


def test_without_out_it_lives_in_memory(run, digits):
    made = fewgen.adapt(run, images=digits.select_classes(["nine"]).shots(2, 0), **QUICK)
    assert made.class_names == (*OLD, "nine")
    assert len(fewgen.generate(made, class_names="nine", n=2).images) == 2
    assert not made.path.exists()


def test_draws_are_seeded(run, sevens):
    same = [
        _weights(fewgen.adapt(run, images=sevens, class_names="seven", shots=3, seed=s, **QUICK).method)
        for s in (1, 1, 2)
    ]
    assert _equal(same[0], same[1])
    assert not _equal(same[0], same[2])


def test_before_the_first_update_the_weights_are_those_of_the_run(run):
    start, notes = teaching.extended(run, ["seven"])
    assert start.spec.class_names == (*OLD, "seven")
    assert _equal(_weights(start), _weights(run.method))
    assert notes == []


def test_only_the_part_that_is_named_moves(run, sevens):
    made = fewgen.adapt(run, images=sevens, class_names="seven", part="decoder", **QUICK)
    before, after = _weights(run.method), _weights(made.method)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert moved <= set(run.method.adaptable("decoder"))
    assert run.method.config.text.update == "ema"
    assert not any(name.startswith("codebook.") for name in moved)  # running means, not parameters: they stay


def test_learned_rates_scale_the_updates(run, sevens):
    method = load_method(run.path)
    names = method.adaptable("all")
    method.set_inner_rates(dict.fromkeys(names[1:], 0.0))
    learned = Run(run.path)
    learned.__dict__["method"] = method
    made = fewgen.adapt(learned, images=sevens, class_names="seven", **QUICK)
    before, after = _weights(method), _weights(made.method)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {names[0]}
    assert made.method.rates_by_name() == method.rates_by_name()


def test_a_model_without_meaning_gets_an_arbitrary_vector(tmp_path, sevens):
    run = _train(tmp_path / "onehot")
    with pytest.raises(
        ConfigError, match=r"--text-path has no effect with the run's class vectors \(onehot\)"
    ):
        fewgen.adapt(run, images=sevens, class_names="croc", text_path="words.txt", **QUICK)
    made = fewgen.adapt(run, images=sevens, class_names="croc", out=tmp_path / "new", steps=2, progress=False)
    assert any("no meaning" in note for note in made.notes)
    assert "say nothing about the class" in (tmp_path / "new" / "report.html").read_text()
    again = fewgen.adapt(made, images=sevens, class_names="clog", **QUICK)
    assert again.method.spec.text.vectors.shape == (6, 4)
    assert len(fewgen.generate(again, class_names="clog", n=2).images) == 2


def test_the_second_level_adapts_too(tmp_path, words, sevens):
    spatial = {"codebook_size": 8, "groups": 1, "codebook_dim": 4}
    run = _train(tmp_path / "hybrid", words, {"spatial": spatial, "candidates": 2, "image": {"width": 8}})
    made = fewgen.adapt(run, images=sevens, class_names="seven", **QUICK)
    before, after = _weights(run.method), _weights(made.method)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "prior" in moved
    assert "tokenizer" not in moved


def test_a_model_file_on_its_own_is_enough(run, sevens, tmp_path):
    made = fewgen.adapt(run.model_path, images=sevens, class_names="seven", out=tmp_path / "new", **QUICK)
    assert fewgen.load_run(made.path).class_names == (*OLD, "seven")
    with pytest.raises(DataError, match="does not say which images"):
        made.images()


def test_a_meta_trained_run_says_how_it_adapts(run):
    given = teaching.Given.of(None, None, "auto", 0)
    plain = teaching.recipe_of(run, given)
    assert (plain.optimizer, plain.steps, plain.part) == (Adam(1e-3, betas=(0.9, 0.999)), 50, "all")
    meta = {"inner_optimizer": "sgd", "inner_lr": 0.2, "adapt_lr": None, "adapt_steps": 7, "adapt": "heads"}
    trained = Run(run.path)
    trained.__dict__["info"] = dataclasses.replace(run.info, extra={"meta": meta})
    recipe = teaching.recipe_of(trained, given)
    assert (recipe.optimizer, recipe.steps, recipe.part) == (SGD(0.2), 7, "heads")
    asked = teaching.recipe_of(trained, teaching.Given.of(3, 0.5, 0, 0, "all"))
    assert (asked.optimizer, asked.steps, asked.part, asked.replay) == (SGD(0.5), 3, "all", 0)


def test_replay_is_drawn_by_the_run_itself(run):
    old = teaching.replayed(run.method, 0)
    assert len(old) == 64
    assert old.counts().tolist() == [16] * 4
    assert len({image.numpy().tobytes() for image in old.images}) > 50  # not the same few again
    assert torch.equal(old.images, teaching.replayed(run.method, 0).images)
    assert not torch.equal(old.labels, teaching.replayed(run.method, 1).labels)
    recipe = teaching.Recipe(SGD(0.1), 1, "all", None, 0)
    assert [recipe.n_replay(n) for n in (1, 10, 20, 64)] == [10, 10, 20, 32]
    assert dataclasses.replace(recipe, replay=0).n_replay(5) == 0


# ------------------------------------------------------------------------------------------ the images


def _names(*sources, names=()):
    found = new_images.new_images(sources, names, (1, 12, 12), Reading())
    assert found.images.shape[1:] == (1, 12, 12)
    return {name: int(count) for name, count in zip(found.class_names, found.counts(), strict=True)}


def test_images_come_from_anywhere(digits, sevens, tmp_path):
    both = digits.select_classes(["eight", "nine"]).shots(3, 0)
    save_images(both, tmp_path / "both")
    save_images(both, tmp_path / "both.npz")
    assert _names(sevens, names=["boot"]) == {"boot": 8}
    assert _names(sevens / "0.png", names=["boot"]) == {"boot": 1}
    assert _names(sevens / "0.png", sevens / "1.png", names=["boot", "boot"]) == {"boot": 2}
    assert _names(sevens, tmp_path / "both", names=["boot", "NINE"]) == {"boot": 8, "nine": 3}
    assert _names(tmp_path / "both") == {"eight": 3, "nine": 3}
    assert _names(tmp_path / "both.npz", names=["nine"]) == {"nine": 3}
    assert _names(both, names=["nine", "eight"]) == {"nine": 3, "eight": 3}
    assert _names("digits", names=["seven"])["seven"] > 100
    one = ImageSet(torch.zeros(2, 3, 20, 20, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("0",))
    assert _names(one, names=["night"]) == {"night": 2}


def test_a_single_image_is_enough(run, sevens, tmp_path):
    made = fewgen.adapt(
        run, images=sevens / "0.png", class_names="seven", out=tmp_path / "new", steps=3, progress=False
    )
    figures = made.info.extra["adapted"]["figures"]
    assert figures["looks"][-1]["shots"] == 1
    assert "learned from" in figures["omitted"]["query_loss"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"class_names": "SEVEN ", "images": "digits"}, ConfigError, "no class"),
        ({"class_names": "Two"}, ConfigError, 'class "two" already.*--class-name'),
        ({"images": "digits", "class_names": None}, ConfigError, 'class "zero" already'),
        ({"class_names": None}, ConfigError, "1 --images and 0 --class-name.*without a class"),
        ({"class_names": ["seven", "nine"]}, ConfigError, "1 --images and 2 --class-name"),
        ({"class_names": " "}, ConfigError, "empty"),
        ({"images": []}, ConfigError, "No images"),
        ({"images": "EMPTY"}, DataError, "is empty"),
        ({"images": "no_such"}, DataError, "neither a data set nor"),
        ({"images": "no_such.png"}, DataError, "no image file"),
        ({"shots": 9}, DataError, '"seven" has 8 images, but 9'),
        ({"shots": 0}, ConfigError, "shots must be a whole number of 1 or more"),
        ({"steps": 0}, ConfigError, "steps must be a whole number of 1 or more"),
        ({"lr": 0.0}, ConfigError, "lr must be"),
        ({"lr": float("nan")}, ConfigError, "lr must be"),
        ({"replay": "some"}, ConfigError, 'replay must be "auto"'),
        ({"replay": -1}, ConfigError, "replay must be"),
        ({"part": "head"}, ConfigError, 'Did you mean "heads"'),
        ({"class_names": "crocodile"}, TextError, "crocodile.*--phrases"),
        ({"phrases": {"nine": "odd"}}, TextError, 'no class "nine"'),
        ({"phrases": {"seven": "two"}}, TextError, "same text vector"),
        ({"lr": 1e30, "steps": 5}, TrainingError, r"1e\+30\. Nothing was written\. Lower --lr\."),
        ({"run": "no_such_run"}, ConfigError, "no run"),
        ({"out": "IMAGES/new"}, OutputError, "inside the folder of the images"),
        ({"out": "FOREIGN"}, OutputError, "not a fewgen run"),
        ({"out": "RUN"}, OutputError, "the run that is adapted"),
    ],
)
def test_mistakes_are_said_in_one_message_and_leave_nothing(change, error, message, run, sevens, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("dear")
    places = {
        "EMPTY": tmp_path / "empty",
        "IMAGES/new": sevens / "new",
        "FOREIGN": tmp_path / "foreign",
        "RUN": run.path,
    }
    keywords = {"run": run, "images": sevens, "class_names": "seven", "out": tmp_path / "a" / "new", **QUICK}
    keywords |= {k: places.get(v, v) if isinstance(v, str) else v for k, v in change.items()}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        fewgen.adapt(keywords.pop("run"), **keywords)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(list(sevens.iterdir())) == 8


def test_an_adapted_run_is_not_trained_over(adapted, words):
    files = {path: path.read_bytes() for path in adapted.path.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="holds an adapted run, which is not trained further"):
        _train(adapted.path, words)
    with pytest.raises(OutputError, match="holds an adapted run"):
        fewgen.plan_training(method="cada_vqvae", data="digits", out=adapted.path)
    assert {path: path.read_bytes() for path in adapted.path.rglob("*") if path.is_file()} == files


def test_a_method_that_cannot_adapt_says_so(tmp_path, sevens):
    run = fewgen.train(
        "fake",
        data="digits",
        size=8,
        shots=4,
        text="onehot",
        out=tmp_path / "f",
        report=False,
        progress=False,
    )
    with pytest.raises(ConfigError, match='"fake" cannot adapt'):
        fewgen.adapt(run, images=sevens, class_names="croc", **QUICK)


def test_a_phrase_stands_for_an_unknown_word(run, sevens):
    made = fewgen.adapt(run, images=sevens, class_names="croc", phrases={"croc": ["odd", "even"]}, **QUICK)
    assert made.method.spec.text.phrases[-1] == ("odd", "even")


def test_the_class_without_a_vector_is_named_once(run, digits):
    images = dataclasses.replace(
        digits.select_classes(["seven", "eight"]), class_names=("seven", "crocodile")
    )
    with pytest.raises(TextError, match=r'phrases=\{"crocodile": "known words"\}') as caught:
        fewgen.adapt(run, images=images, **QUICK)
    assert "seven" not in str(caught.value).replace("three, four, five, six, seven, eight", "")
    assert str(caught.value).count("words for the class") == 1


def test_the_card_says_what_was_done_and_whom_to_cite(adapted):
    card, page = ((adapted.path / name).read_text() for name in ("README.md", "report.html"))
    assert "classes: zero, one, two, three, seven." in card
    assert "seven (5 images)" in card
    assert "--class-name seven" in card
    assert "Adapted from the run digits" in card
    assert "draws are read as it" in card
    for entry in ("@software{fewgen", "schonfeld2019cadavae"):
        assert entry in card
        assert entry in page


def test_a_full_disk_leaves_no_folder(run, sevens, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OutputError("the disk is full")

    monkeypatch.setattr(type(run.method), "save", full)
    with pytest.raises(OutputError, match="full"):
        fewgen.adapt(run, images=sevens, class_names="seven", out=tmp_path / "a" / "new", **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_an_independent_judge_may_be_asked(run, sevens, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWGEN_CACHE_DIR", str(tmp_path / "cache"))
    made = fewgen.adapt(run, images=sevens, class_names="seven", steps=1, judge=True, progress=False)
    figures = made.info.extra["adapted"]["figures"]
    assert figures["judge"] == "classifier"
    said = adaptation.lines(figures)
    assert all("by a classifier of the training images and the new ones" in line for line in said[:2])
    assert "flatters" not in "".join(said)


def test_the_judge_learns_the_given_images_too(digits):
    train = digits.select_classes(OLD).shots(10, 0)
    new = digits.select_classes(["seven", "nine"])
    used, rest = new.shots(3, 0), new.shots(2, 1)
    shown = judged_by(train, used, rest)
    assert shown.class_names == (*OLD, "seven", "nine")
    assert shown.counts().tolist() == [10] * 6
    sevens = {image.numpy().tobytes() for image in shown.images[shown.labels == 4]}
    given = torch.cat([part.images[part.labels == 0] for part in (used, rest)])
    assert sevens == {image.numpy().tobytes() for image in given}


def test_classes_that_were_never_read_right_are_not_called_retained():
    before = torch.tensor([0] * 8 + [0] * 8 + [0] * 8)
    after = torch.tensor([0] * 8 + [0] * 8 + [2] * 8)
    labels = torch.arange(3).repeat_interleave(8)
    retention = class_retention(before, after, labels, ["a", "b", "c"])
    assert retention.won == ("c",)
    assert measured.cannot_tell(retention) == ["b"]
    figures = {
        "looks": [{"read": {}}],
        "judge": measured.OWN_READER,
        "retention": retention.to_dict(),
        "cannot_tell": ["b"],
        "variety": None,
    }
    said = adaptation.lines(figures)
    assert len(said) == 1
    assert said[0].endswith("the run it was adapted from; won c; cannot tell for b (never read right before)")


def test_notes_say_what_lets_little_be_expected(run, digits):
    one = digits.select_classes(["seven"]).shots(1, 0)
    same = one.subset([0, 0, 0])
    assert new_images.notes_on(run, one) == []
    assert new_images.notes_on(run, digits.select_classes(["seven"]).shots(3, 0)) == []
    assert 'all 3 images of "seven" are the same' in new_images.notes_on(run, same)[0]
    stopped = Run(run.path)
    extra = {**run.info.extra, "training": {**run.info.extra["training"], "finished": False}}
    stopped.__dict__["info"] = dataclasses.replace(run.info, extra=extra)
    assert "is not finished. Continue it first" in new_images.notes_on(stopped, one)[0]


def test_rows_name_classes_of_different_sizes(run, digits, tmp_path):
    new = digits.select_classes(["seven", "nine"])
    rows = [(new.labels == label).nonzero().flatten()[:n] for label, n in ((0, 2), (1, 4))]
    images = new.subset(torch.cat(rows))
    made = fewgen.adapt(run, images=images, out=tmp_path / "new", steps=2, progress=False)
    assert "<td>2 to 4 images</td>" in (tmp_path / "new" / "report.html").read_text()
    last = made.info.extra["adapted"]["figures"]["looks"][-1]
    assert (last["fewest"], last["shots"]) == (2, 4)
    assert adaptation.shots_name(4, 4) == adaptation.shots_name(4) == "4 images"


def test_the_command(run, sevens, tmp_path, capsys):
    out = tmp_path / "new run"
    words = ["adapt", run.path, "--images", sevens, "--class-name", "seven", "--out", out, "--steps", "2"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Adapted to seven with 8 images and 2 updates in \d+\.\d s", said)
    assert re.search(r'"seven": \d+ of 64 draws are read as it', said)
    assert re.search(r"old classes: \d+% -> \d+% of 96 draws", said)
    assert "grid.png" in said
    assert f"Next: fewgen generate '{out}' --class-name seven" in said
    assert main([str(word) for word in words]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["adapt", str(run.path), "--images", str(sevens), "--class-name", "seven"]) == 2
    assert "needs --out" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ does it work?


@pytest.mark.slow
def test_five_images_teach_a_digit_and_replay_keeps_the_others(tmp_path):
    """Judged by a classifier of all digits, which has nothing to do with the model."""
    digits = load_images("digits", size=28)
    names = list(digits.class_names)
    run = fewgen.train(
        "cada_vqvae",
        data="digits",
        class_names=names[:7],
        shots=30,
        text="onehot",
        steps_scale=0.1,
        out=tmp_path / "run",
        report=False,
        progress=False,
    )
    judge = ClassifierFeatures.of(digits, cache_dir=tmp_path / "cache")

    def share(method, labels):
        made = method.generate(GenerationRequest.per_class(labels, 32, seed=5))
        read = judge.classes_of(judge.features(ImageSet(made.images, made.labels, method.spec.class_names)))
        return float((read == made.labels).float().mean())

    sevens = digits.select_classes(["seven"]).shots(5, 0)
    zero, _ = teaching.extended(run, ["seven"])
    with_replay = fewgen.adapt(run, images=sevens, report=False, progress=False).method
    without = fewgen.adapt(run, images=sevens, replay=0, report=False, progress=False).method
    old = share(run.method, range(7))
    assert old > 0.9
    assert share(zero, [7]) < 0.5
    assert share(with_replay, [7]) > 0.8
    assert share(with_replay, range(7)) > 0.9 * old
    assert share(without, range(7)) < share(with_replay, range(7)) - 0.1


def test_the_former_name_of_background_still_works(run, sevens):
    with pytest.warns(RenamedWarning, match="alpha is called background now"):
        fewgen.adapt(run, images=sevens, class_names="seven", alpha="white", **QUICK)
    with pytest.raises(ConfigError, match="former name"):
        fewgen.adapt(run, images=sevens, class_names="seven", alpha="white", background="black", **QUICK)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("verb", ["adapt", "generate"])
def test_a_kill_before_any_write_leaves_nothing_and_the_same_call_works_again(verb, run, sevens, tmp_path):
    out, kills = tmp_path / "new" / "out", 0
    assert run.method is run.method  # loaded once, before all forks

    def write():
        if verb == "generate":
            fewgen.generate(run, class_names="one", n=3, out=out)
        else:
            fewgen.adapt(run, images=sevens, class_names="seven", out=out, **{**QUICK, "steps": 1})

    def child(limit):
        left, replace = [limit], os.replace

        def killed(*paths):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = killed
        try:
            write()
            os._exit(0)
        finally:
            os._exit(1)

    while True:
        process = os.fork()
        if process == 0:
            child(kills + 1)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            break
        kills += 1
        assert not out.is_dir() or list(out.iterdir()) == []
    assert os.WEXITSTATUS(status) == 0
    assert kills >= 4
    if verb == "adapt":
        assert fewgen.load_run(out).method.spec.class_names == (*OLD, "seven")
    else:
        assert len(list(out.rglob("*.png"))) == 3
    assert [path.name for path in out.parent.iterdir()] == ["out"]
