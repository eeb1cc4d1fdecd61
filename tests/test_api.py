"""The Python functions behind the commands, with a linear method that trains in a second."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fake_method import Fake

import fewgen
from fewgen.api import resolved_settings
from fewgen.api.training import train_request
from fewgen.config import read_config, write_yaml
from fewgen.data import ImageSet, save_images
from fewgen.data.split import split_indices
from fewgen.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FewgenError,
    OutputError,
    RenamedWarning,
    TextError,
)
from fewgen.runs import preparing as prepare
from fewgen.runs.findings import collect
from fewgen.training.checkpoint import read_state, write_state

QUICKLY = {"n": 5, "features": "pixels", "useful_draws": 0, "progress": False}
SMALL = {"data": "digits", "size": 8, "shots": 12, "text": "onehot", "progress": False}


def _images(counts=(8, 6), names=("cat", "dog")):
    labels = torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(labels), 1, 6, 6), generator=rng, dtype=torch.uint8)
    return ImageSet(pixels, labels, names, name="toy")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fewgen.train("fake", out=tmp_path_factory.mktemp("run") / "a", report=False, **SMALL)


def test_import_is_light():
    code = (
        "import sys, fewgen, fewgen.api, fewgen.cli.main; "
        "assert not {'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules), 'heavy import'; "
        "assert fewgen.__version__"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names_are_there():
    for name in fewgen.__all__:
        assert getattr(fewgen, name) is not None
    with pytest.raises(AttributeError):
        fewgen.no_such_name  # noqa: B018


# ------------------------------------------------------------------------------------------ training


def test_train_writes_a_run_folder(run):
    assert run.result.finished
    config = read_config(run.path / "config.yaml")
    assert config["method"] == "fake"
    assert config["shots"] == 12
    assert config["model"]["latent_size"] == 4
    assert config["training"]["seed"] == 0
    assert "out" not in config
    split = json.loads((run.path / "split.json").read_text())
    assert len(split["train"]) == 11 * 10
    assert len(split["held_out"]) == 10
    assert run.info.extra["shots"] == 12
    assert (run.path / "metrics.jsonl").stat().st_size > 0
    train, held_out = run.images()
    assert len(train) == 110
    assert len(held_out) == 10


def test_the_config_of_a_run_repeats_it(run, tmp_path):
    again = fewgen.train(config=run.path / "config.yaml", out=tmp_path / "b", report=False, progress=False)
    assert read_config(again.path / "config.yaml") == read_config(run.path / "config.yaml")
    first, second = run.method.state_dict(), again.method.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_call_resumes_and_another_is_refused(tmp_path):
    short = {**SMALL, "out": tmp_path / "a", "report": False}
    fewgen.train("fake", **short)
    again = fewgen.train("fake", **short)
    assert again.result.finished
    with pytest.raises(FewgenError, match="lr"):
        fewgen.train("fake", **short, model={"lr": 0.5})
    with pytest.raises(OutputError, match="other images"):
        fewgen.train("fake", **{**short, "seed": 1})


def test_a_finished_run_whose_model_is_damaged_says_what_to_do(tmp_path):
    short = {**SMALL, "out": tmp_path / "a", "report": False}
    run = fewgen.train("fake", **short)
    whole = run.model_path.read_bytes()
    run.model_path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(
        CheckpointError, match="is damaged: .* or delete it and repeat the command that made it"
    ):
        fewgen.train("fake", **short)
    run.model_path.unlink()
    assert fewgen.train("fake", **short).result.finished
    assert run.model_path.read_bytes() == whole


def test_a_run_goes_on_where_things_lie_elsewhere_but_not_with_other_things(tmp_path, monkeypatch):
    from fewgen.training import Trainer

    def things(place, seed=0, word="0.5", base=("one", "two")):
        pixels = torch.randint(0, 256, (24, 1, 6, 6), generator=torch.Generator().manual_seed(seed)).byte()
        save_images(ImageSet(pixels, torch.arange(24) % 3, ("one", "three", "two")), place / "photos")
        (place / "words.txt").write_text(f"one 0.1 {word}\ntwo 0.3 -1\nthree -1 0.2\n")
        novel = sorted({"one", "two", "three"} - {*base})
        (place / "split.json").write_text(json.dumps({"base": base, "val": [], "novel": novel}))
        return {"data": place / "photos", "text_path": str(place / "words.txt"), "class_split": str(place / "split.json")}  # fmt: skip

    def train(out, **given):
        training = {"checkpoint_every": 1, "device": "cpu"}
        return fewgen.train("fake", out=out, text="glove", training=training, report=False, progress=False, **given)  # fmt: skip

    given = things(tmp_path / "here")
    whole = train(tmp_path / "whole", **given)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_stage", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "a", **given)
    for changed, message in (
        ({"seed": 1}, "other images"),
        ({"word": "0.4"}, "other vectors of its class names"),
        ({"base": ("one", "three")}, "another split of the classes"),
    ):
        with pytest.raises(OutputError, match=message):
            train(tmp_path / "a", **things(tmp_path / f"changed {next(iter(changed))}", **changed))
    monkeypatch.chdir(tmp_path)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = {key: f"./there/../there/{Path(value).name}" for key, value in given.items()}
    run = train("a", **moved)
    assert run.result.finished
    assert not run.was_finished
    first, second = whole.method.state_dict(), run.method.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_config(run.path / "config.yaml")["data"] == moved["data"]
    assert train("a", **things(tmp_path / "copy")).was_finished


def test_precedence_of_settings(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: {latent_size: 7, lr: 1e-3}\nshots: 10\n", encoding="utf-8")
    settings = resolved_settings(
        method="fake",
        data="digits",
        out="x",
        config=file,
        model={"lr": 0.5},
        training={"log_every": 3},
        seed=5,
    )
    assert settings["model"].latent_size == 7
    assert settings["model"].lr == 0.5
    assert settings["training"].log_every == 3
    assert settings["training"].seed == 5
    assert settings["shots"] == 10


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "fakr"}, ConfigError, 'no method "fakr".*Did you mean "fake"'),
        ({"preset": "defalt"}, ConfigError, 'Did you mean "default"'),
        ({"model": {"latent_siz": 3}}, ConfigError, 'unknown key "model.latent_siz".*latent_size'),
        ({"model": {"lr": "fast"}}, ConfigError, '"model.lr" must be a number'),
        ({"training": {"log_evry": 3}}, ConfigError, "log_every"),
        ({"text": "glov"}, ConfigError, 'Did you mean "glove"'),
        ({"text_path": "x.txt", "text": "auto"}, ConfigError, "say which encoder"),
        ({"shots": 10_000}, DataError, "10000"),
        ({"shots": 0}, ConfigError, "shots must be 1"),
        ({"holdout": "some"}, ConfigError, "holdout must be"),
        ({"class_names": ["sevn"]}, ConfigError, 'no class "sevn".*Did you mean "seven"'),
        ({"data": "digit"}, DataError, 'Did you mean "digits"'),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        fewgen.train(**{"method": "fake", **SMALL, "out": tmp_path / "a", **change})
    assert not (tmp_path / "a" / "config.yaml").exists()


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a fewgen run"):
        fewgen.train("fake", out=tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_plan_tells_what_would_happen_and_writes_nothing(tmp_path):
    plan = fewgen.plan_training(method="fake", out=tmp_path / "a", **SMALL)
    assert (plan.n_train, plan.n_held_out, plan.shape) == (110, 10, (1, 8, 8))
    assert plan.stages[0]["steps"] == 20
    assert plan.seconds > 0
    assert plan.parameters == sum(p.numel() for p in Fake(Fake.Config(), _spec()).parameters())
    assert "110 to learn from, 10 held out" in str(plan)
    assert not (tmp_path / "a").exists()


def _spec():
    from fewgen.methods.base import DataSpec
    from fewgen.text import ClassText, make_text_encoder

    names = tuple("abcdefghij")
    return DataSpec(1, 8, 8, names, ClassText.build(make_text_encoder("onehot", vocabulary=names), names))


# ------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("shots", "holdout", "expected"),
    [
        (30, "auto", (27, 3)),
        (10, "auto", (9, 1)),
        (9, "auto", (9, 0)),
        (30, 0, (30, 0)),
        (30, 10, (30, 10)),
    ],
)
def test_held_out_images_come_out_of_the_shots_unless_a_number_is_given(shots, holdout, expected):
    data = _images((50, 45))
    train, held_out = split_indices(data, shots, holdout, seed=0)
    assert not set(train) & set(held_out)
    assert data.subset(train).counts().tolist() == [expected[0]] * 2
    if expected[1]:
        assert data.subset(held_out).counts().tolist() == [expected[1]] * 2
    if holdout == "auto":
        whole = data.shots(shots, seed=0)
        mine = data.subset(sorted(train + held_out))
        assert sorted(map(tuple, mine.images.flatten(1).tolist())) == sorted(
            map(tuple, whole.images.flatten(1).tolist())
        )


def test_all_images_set_a_fifth_aside():
    data = _images((20, 4))
    train, held_out = split_indices(data, None, "auto", seed=0)
    assert data.subset(held_out).counts().tolist() == [4, 0]
    assert sorted(train + held_out) == list(range(24))
    with pytest.raises(DataError, match='"dog" has 4 images'):
        split_indices(data, None, 4, seed=0)
    with pytest.raises(DataError, match="dog"):
        split_indices(data, 18, 5, seed=0)
    with pytest.raises(DataError, match='"bird" has no images'):
        split_indices(_images((5, 5, 0), ("cat", "dog", "bird")), None, "auto", seed=0)


def _with_twins(*pairs):
    images = _images((20, 20))
    for a, b in pairs:
        images.images[b] = images.images[a]
    return images


def test_identical_images_are_told_and_stay_on_one_side():
    images = _with_twins(*((0, i) for i in range(1, 10)), (12, 13))
    keywords = {"method": "fake", "data": images, "out": "x", "text": "onehot"}
    plan = fewgen.plan_training(**keywords)
    notes = [note for note in plan.notes if "pixel by pixel" in note]
    assert len(notes) == 1
    assert notes[0].startswith(
        '10 images repeat another one pixel by pixel; the first pair is both in "cat".'
    )
    assert not any("more than one class" in note for note in plan.notes)
    train, held_out = split_indices(images, None, "auto", seed=0)
    assert any(i < 10 for i in held_out), "the example must have twins on both sides"
    new_train, new_held, _ = prepare.identical_images(images, train, held_out, move=True)
    assert sorted(new_train + new_held) == list(range(40))
    seen = {images.images[i].numpy().tobytes() for i in new_train}
    assert not any(images.images[i].numpy().tobytes() in seen for i in new_held)
    assert plan.n_held_out == len(new_held)
    # A number was asked for, so it is kept.
    assert fewgen.plan_training(**keywords, holdout=4).n_held_out == 8


def test_one_image_under_two_classes_is_told():
    notes = fewgen.plan_training(method="fake", data=_with_twins((0, 25)), out="x", text="onehot").notes
    assert any(
        '1 image repeats another one pixel by pixel; the first pair is in "cat" and in "dog"' in n
        for n in notes
    )
    assert any("1 image is under more than one class" in note for note in notes)
    clean = fewgen.plan_training(method="fake", data=_images((20, 20)), out="x", text="onehot").notes
    assert not any("pixel" in note or "more than one" in note for note in clean)


def test_a_note_says_that_nothing_is_held_out():
    few = {"method": "fake", "data": _images((4, 4)), "out": "x", "text": "onehot"}
    assert any("too few images to hold any out" in note for note in fewgen.plan_training(**few).notes)
    assert not any("hold any out" in note for note in fewgen.plan_training(**few, holdout=0).notes)
    assert not any("hold any out" in note for note in fewgen.plan_training(**few, holdout=1).notes)


def test_phrases_for_a_class_that_is_not_there_are_named(monkeypatch):
    monkeypatch.setattr("fewgen.text.make_text_encoder", None)  # no encoder is tried
    with pytest.raises(TextError, match='no class "catt".*Did you mean "cat"'):
        fewgen.plan_training(method="fake", data=_images(), out="x", phrases={"catt": ["kitten"]})
    with pytest.raises(ConfigError, match="phrases must"):
        fewgen.plan_training(method="fake", data=_images(), out="x", phrases=["cat"])


# ---------------------------------------------------------------------------------------------- text


def test_text_auto_falls_back_and_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("FEWGEN_DATA_DIR", raising=False)
    import fewgen.encoders.named as encoders

    real = encoders.make_text_encoder

    def without_minilm(name, **keywords):
        if name == "minilm":
            raise TextError("no model here")
        return real(name, **keywords)

    monkeypatch.setattr("fewgen.text.make_text_encoder", without_minilm)
    table, notes = prepare.class_text("auto", None, ["cat", "dog"], None, None)
    assert table.encoder_name == "onehot"
    assert "without meaning" in notes[0]
    folder = tmp_path / "glove"
    folder.mkdir()
    (folder / "glove.test.txt").write_text("cat 1 0 2\ndog 0 1 1\n", encoding="utf-8")
    table, notes = prepare.class_text("auto", None, ["cat", "dog"], None, tmp_path)
    assert table.encoder_name == "glove"
    assert notes == []
    table, _ = prepare.class_text("auto", None, ["cat", "qwertzui"], None, tmp_path)
    assert table.encoder_name == "onehot"
    with pytest.raises(TextError, match="Phrases need vectors"):
        prepare.class_text("auto", None, ["cat", "qwertzui"], {"cat": "dog"}, tmp_path)


# --------------------------------------------------------------------------------------- using a run


def test_generate_counts_per_class_and_by_name(run):
    images = fewgen.generate(run, n=3)
    assert len(images) == 30
    images = fewgen.generate(run.path, class_names=["Seven", "one"], n=2, seed=4)
    assert [images.class_names[label] for label in images.labels] == ["seven", "seven", "one", "one"]
    assert images.seeds.tolist() == [4_000_000, 4_000_001, 4_000_002, 4_000_003]
    assert images.provenance["run"] == run.path.name
    with pytest.raises(ConfigError, match='Did you mean "seven"'):
        fewgen.generate(run, class_names="sevven")


def test_any_image_comes_back_from_its_seed(run):
    many = fewgen.generate(run, class_names=["two", "six"], n=70)
    alone = fewgen.generate(run, class_names="six", seeds=[int(many.seeds[100])])
    assert torch.equal(alone.images[0], many.images[100])
    with pytest.raises(ConfigError, match="seeds is empty"):
        fewgen.generate(run, seeds=[])


@pytest.mark.parametrize("seed", [-1, 2**63, 10**21, 1.5, True, "one"])
def test_seeds_beyond_64_bits_are_refused_with_their_limit(run, seed, tmp_path):
    with pytest.raises(ConfigError, match="seeds must be a whole number from 0 to 9223372036854775807"):
        fewgen.generate(run, class_names="one", seeds=[3, seed], out=tmp_path / "o.npz")
    with pytest.raises(ConfigError, match=r"seed must be (between 0 and 9223372036853|a whole number)"):
        fewgen.generate(run, class_names="one", seed=seed, n=1)
    with pytest.raises(ConfigError, match="seed must be"):
        fewgen.interpolate(run, "one", "two", seed=seed, temperature=0.5)
    with pytest.raises(ConfigError, match=r"seed"):
        fewgen.train("fake", **SMALL, out=tmp_path / "a", seed=seed)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_seeds_work_and_the_limit_is_named(run, tmp_path):
    assert fewgen.generate(run, class_names="one", seeds=[2**63 - 1]).seeds.tolist() == [2**63 - 1]
    fewgen.train("fake", **SMALL, out=tmp_path / "a", report=False, seed=2**63 - 1)
    with pytest.raises(ConfigError, match="seed must be from 0 to 9223372036854775807"):
        fewgen.train("fake", **SMALL, out=tmp_path / "b", seed=2**63)


def test_a_model_file_is_enough_to_generate(run, tmp_path):
    path = tmp_path / "alone.safetensors"
    path.write_bytes((run.path / "model.safetensors").read_bytes())
    assert torch.equal(fewgen.generate(path, n=2).images, fewgen.generate(run, n=2).images)


def test_generate_writes_and_marks_sharpening(run, tmp_path):
    images = fewgen.generate(run, n=2, sharpen=0.3, out=tmp_path / "o.npz")
    assert images.provenance["sharpened"] == 0.3
    with np.load(tmp_path / "o.npz") as file:
        assert "sharpened" in str(file["provenance"])
    with pytest.raises(OutputError, match="exists already"):
        fewgen.generate(run, n=2, out=tmp_path / "o.npz")


@pytest.mark.parametrize("out", ["images", "new/images", "new/o.npz"])
def test_an_interruption_leaves_no_empty_folder(run, tmp_path, monkeypatch, out):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(run.method), "generate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fewgen.generate(run, n=1, out=tmp_path / out)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").mkdir()  # not ours to remove
    with pytest.raises(KeyboardInterrupt):
        fewgen.generate(run, n=1, out=tmp_path / "new")
    assert (tmp_path / "new").is_dir()


def test_free_texts_need_vectors_with_meaning(run):
    with pytest.raises(TextError):
        fewgen.generate(run, texts=["a round thing"], n=1)


def test_classes_and_texts_together(run, monkeypatch):
    monkeypatch.setattr("fewgen.runs.verbs.Verbs._check_meaning", lambda run, asked: None)
    monkeypatch.setattr(
        type(run.method), "text_vectors", lambda self, texts: torch.zeros(len(texts), self.spec.text.dim)
    )
    images = fewgen.generate(run, class_names="one", texts="a loop", n=2)
    assert images.labels.tolist() == [1, 1, -1, -1]
    assert images.named()[1] == ("one", "a loop")


def test_interpolation_ends_at_its_words(run, tmp_path):
    walk = fewgen.interpolate(run, "one", "seven", steps=5, out=tmp_path / "s.png")
    ends = fewgen.generate(run, class_names=["one", "seven"], n=1, temperature=0)
    assert torch.equal(walk.images[[0, -1]], ends.images)
    assert (tmp_path / "s.png").is_file()
    with pytest.raises(TextError, match='Did you mean "seven"'):
        fewgen.interpolate(run, "one", "sevenn")
    with pytest.raises(ConfigError, match="steps"):
        fewgen.interpolate(run, "one", "two", steps=1)


def test_interpolation_from_an_image_file(run, tmp_path):
    train, _ = run.images()
    Image.fromarray(train.images[0, 0].numpy()).resize((20, 30)).convert("RGB").save(tmp_path / "x.png")
    walk = fewgen.interpolate(run, tmp_path / "x.png", "seven", steps=3)
    assert walk.provenance["from"] == "x.png"
    with pytest.raises(DataError, match="no image file"):
        fewgen.interpolate(run, tmp_path / "y.png", "seven")
    (tmp_path / "z.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"z\.png"):
        fewgen.interpolate(run, tmp_path / "z.png", "seven")


def test_reconstruct(run, tmp_path):
    result = fewgen.reconstruct(run)
    assert len(result.images) == 10
    result = fewgen.reconstruct(run, data="digits", split="test", n=7, out=tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as file:
        assert file["images"].shape == (7, 8, 8)
        assert (file["images"] == result.images[:, 0].numpy()).all()
    fewgen.reconstruct(run, out=tmp_path / "p.png")
    with pytest.raises(OutputError, match="pairs"):
        fewgen.reconstruct(run, out=tmp_path / "folder")
    with pytest.raises(DataError, match="model needs"):
        fewgen.reconstruct(run, data=_images())


def test_reconstructing_some_images_shows_every_class(run):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        some = fewgen.reconstruct(run, data="digits", n=25).originals
    assert some.counts().tolist() == [3] * 5 + [2] * 5
    every = fewgen.load_images("digits", size=some.size[0]).images
    places = [int((every == image).flatten(1).all(1).nonzero()[0]) for image in some.images]
    assert places == sorted(places)  # the order of the data
    strange = ImageSet(some.images, some.labels.clamp(max=1), ("one", "violin"))
    with pytest.warns(UserWarning, match='"violin"'):
        fewgen.reconstruct(run, data=strange)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"n": 2.5}, "n must be a whole number of 1 or more"),
        ({"n": "3"}, "n must be a whole number"),
        ({"n": True}, "n must be a whole number"),
        ({"n": 0}, "n must be a whole number of 1 or more, got 0"),
        ({"temperature": "hot"}, "temperature must be a number of 0 or more"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": float("inf")}, "temperature must be"),
        ({"temperature": -1}, "temperature must be"),
        ({"class_names": []}, "class_names is empty"),
    ],
)
def test_values_of_the_wrong_kind_are_told(run, keywords, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fewgen.generate(run, out=tmp_path / "o.npz", **keywords)
    assert list(tmp_path.iterdir()) == []


def test_generated_images_show_themselves_in_a_line(run):
    images = fewgen.generate(run, class_names=["one", "two"], n=np.int64(2), temperature=np.float32(0.5))
    assert repr(images) == "GeneratedImages(4 grey images of 8x8, 2 classes or texts)"


def test_retrieve(run, tmp_path):
    found = fewgen.retrieve(run, "digits", split="test", top=2)
    assert len(found.names) == 355
    assert all(len(words) == 2 and words[0][1] >= words[1][1] for words in found.words)
    assert found.accuracy == pytest.approx(
        np.mean([w[0][0] == label for w, label in zip(found.words, found.labels, strict=True)])
    )
    train, _ = run.images()
    Image.fromarray(train.images[0, 0].numpy()).save(tmp_path / "x.png")
    found = fewgen.retrieve(run, [tmp_path / "x.png", tmp_path / "x.png"])
    assert found.accuracy is None
    assert len(found.words) == 2


def test_a_missing_run_is_an_error_with_a_suggestion(run):
    with pytest.raises(ConfigError, match='Did you mean "a"'):
        fewgen.load_run(run.path.parent / "A")
    with pytest.raises(FewgenError, match=r"model\.safetensors"):
        fewgen.load_run(run.path.parent)


def _as_a_former_release_wrote_it(folder):
    """Give the settings of a run folder, and of its training state, their former names."""
    config = read_config(folder / "config.yaml")
    state = read_state(folder / "state")
    for settings in (config, state.values["settings"]["settings"]):
        settings["alpha"], settings["classes"] = settings.pop("background"), settings.pop("class_names")
    write_yaml(folder / "config.yaml", config)
    write_state(folder / "state", state.tensors, state.values)


def test_a_run_of_a_former_release_is_read_and_resumed_without_a_word(tmp_path):
    given = {"out": tmp_path / "a", "report": False, "class_names": ["seven", "one"], **SMALL}
    fewgen.train("fake", **given)
    _as_a_former_release_wrote_it(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RenamedWarning)
        run = fewgen.train("fake", **given)
        assert run.was_finished
        assert (run.config["background"], run.config["class_names"]) == ("error", ["seven", "one"])
        assert "--class-name seven" in collect(run, *run.images()).command
        assert fewgen.evaluate(run.path, **QUICKLY).protocol["subject"] == str(run.path)
    with pytest.warns(RenamedWarning) as found:
        again = resolved_settings(config=run.path / "config.yaml", out="x")
    assert {str(one.message).split(" ")[0] for one in found} == {"alpha", "classes"}
    assert (again["background"], again["class_names"]) == ("error", ["seven", "one"])


def test_train_asks_for_what_its_keywords_say(tmp_path, monkeypatch):
    asked = []

    def stop(request):
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr("fewgen.api.training.train_run", stop)
    given = {name: f"the {name}" for name in inspect.signature(fewgen.train).parameters if name != "config"}
    given |= {"model": {"a": 1}, "training": {"b": 2}, "tasks": {"c": 3}, "encoders": {"d": 4}}
    with pytest.raises(KeyboardInterrupt):
        fewgen.train(**given)
    assert asked == [train_request(**given)]
    values = {**vars(asked[0]), **vars(asked[0].reading)}
    assert {name: values[name] for name in given if name != "report"} | {"report": "the report"} == given


def test_former_names_of_keywords_work_with_a_warning(tmp_path):
    with pytest.warns(RenamedWarning, match="alpha is called background now"):
        assert len(fewgen.load_images("digits", alpha="white")) == 1442
    keywords = {"method": "fake", "out": tmp_path / "a", **SMALL}
    with pytest.warns(RenamedWarning, match="classes is called class_names now"):
        assert fewgen.plan_training(classes=["one", "two"], **keywords).class_names == ("one", "two")
    with pytest.raises(ConfigError, match="give one of them"):
        fewgen.train(alpha="white", background="black", **keywords)


def test_images_given_in_python(tmp_path):
    run = fewgen.train(
        "fake", data=_images((9, 8)), out=tmp_path / "a", text="onehot", report=False, progress=False
    )
    assert run.class_names == ("cat", "dog")
    assert run.config["data"] is None
    with pytest.raises(DataError, match="given in Python"):
        run.images()


def test_a_choice_of_classes_is_kept(tmp_path):
    run = fewgen.train("fake", out=tmp_path / "a", report=False, class_names=["Seven", "one"], **SMALL)
    assert run.class_names == ("seven", "one")
    train, held_out = run.images()
    assert train.class_names == ("seven", "one")
    assert (len(train), len(held_out)) == (22, 2)
    assert run.config["class_names"] == ["seven", "one"]
    (run.path / "split.json").write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        run.images()


def test_changed_data_is_noticed(tmp_path):
    from fewgen.data import save_images

    save_images(_images((9, 8)), tmp_path / "d.npz")
    run = fewgen.train(
        "fake", data=tmp_path / "d.npz", out=tmp_path / "a", text="onehot", report=False, progress=False
    )
    assert len(run.images()[0]) == 13
    (tmp_path / "d.npz").unlink()
    changed = _images((9, 8))
    save_images(ImageSet(255 - changed.images, changed.labels, changed.class_names), tmp_path / "d.npz")
    with pytest.raises(DataError, match="are not those"):
        fewgen.load_run(run.path).images()


STORED = Path(__file__).parent / "golden" / "runs" / "0.1.0"


@pytest.mark.parametrize(
    ("stored", "verb", "given", "said"),
    [
        ("cada_vqvae", "interpolate", {"temperature": 0.5}, "--temperature has no effect with this model"),
        ("cada_vqvae", "interpolate", {"seed": 3}, "--seed has no effect with this model"),
        ("cada_vqvae_hybrid", "interpolate", {"seed": 3}, "--seed has no effect with --temperature 0"),
        ("cada_vqvae_hybrid", "interpolate", {"seed": 3, "temperature": 0.5}, None),
        (
            "cada_vqvae",
            "generate",
            {"temperature": 0, "options": {"candidates": 3}},
            "--options.candidates has no effect with --temperature 0",
        ),
        ("tint", "generate", {"alpha": 0, "temperature": 0.5}, "--temperature has no effect with --alpha 0"),
        ("tint", "generate", {"alphas": [0, 0.5], "temperature": 0.5}, None),
        ("tint", "generate", {"seed": 3, "temperature": 0}, None),
    ],
)
def test_what_draws_nothing_is_refused(stored, verb, given, said, monkeypatch):
    monkeypatch.chdir(STORED)
    ends = ("zero", "one") if verb == "interpolate" else ()
    usual = {"n": 1} if verb == "generate" else {"steps": 2}
    if said is None:
        assert len(getattr(fewgen, verb)(stored, *ends, **usual, **given)) > 0
        return
    with pytest.raises(ConfigError, match=said):
        getattr(fewgen, verb)(stored, *ends, **usual, **given)
