from importlib import metadata

import pytest
import torch
from tests.encoders.tools import QUICK, bars

from fewgen import plugins
from fewgen.encoders import named
from fewgen.encoders.named import (
    AtHand,
    NamedEncoder,
    encoder_record,
    encoders,
    find_encoder,
    make_image_encoder,
    make_joint_encoder,
    make_text_encoder,
)
from fewgen.errors import ConfigError, MissingDependencyError, TextError
from fewgen.files import file_sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinno:x", 'no features "dinno".* Did you mean "dino"'),
        ("pixels:x", 'The features "pixels" take no path'),
        ("inception", 'The features "inception" need a path'),
        ("inception:#sha256=12", 'The features "inception" need a path'),
        ("dino:", 'The features "dino" need a path'),
        ("inception:absent.pth", "no weight file absent.pth"),
        ("inception:absent.pth:64", "no weight file absent.pth"),
        ("inception:absent.pth:65", "no weight file absent.pth:65"),
        ("inception:absent.pth#sha256=12", "no weight file absent.pth"),
        ("clip:x#sha256=12", 'A checksum goes with "inception" only'),
        ("dino:./absent", "no folder ./absent"),
        ("minilm", 'no features "minilm".* Choose classifier, pixels, lite0'),
    ],
)
def test_wrong_names_of_features_are_explained(name, message):
    with pytest.raises(ConfigError, match=message):
        make_image_encoder(name, bars(4))


def test_wrong_names_of_other_encoders_are_explained():
    with pytest.raises(ConfigError, match=r"no text encoder \"golve\".*Choose clip:FOLDER, glove\[:FILE\]"):
        make_text_encoder("golve")
    with pytest.raises(TextError, match='text encoder "clip" needs a path: clip:FOLDER'):
        make_text_encoder("clip")
    with pytest.raises(TextError, match='text encoder "onehot" takes no path'):
        make_text_encoder("onehot:x")
    with pytest.raises(ConfigError, match='no joint encoder "lite0".*Choose clip:FOLDER, lite or small'):
        make_joint_encoder("lite0", bars(4))
    with pytest.raises(ConfigError, match="labelled images, and none are given"):
        make_image_encoder("pixels")


def test_features_by_name():
    assert make_image_encoder("pixels", bars(4, size=6)).dim == 36
    judge = make_image_encoder("classifier", bars(40), bars(20, seed=1), settings=QUICK, use_cache=False)
    assert judge.record()["n_test"] == 20


def test_a_path_may_follow_the_name(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("cat 1 0 2\ndog 0 1 1\n", encoding="utf-8")
    alone, beside = make_text_encoder(f"glove:{file}"), make_text_encoder("glove", file)
    assert alone.path == beside.path == str(file)
    assert torch.equal(alone.encode(["cat"]), torch.tensor([[1.0, 0.0, 2.0]]))
    assert encoder_record("text", f"glove:{file}") == {"name": f"glove:{file}", "sha256": file_sha256(file)}
    assert encoder_record("image", "pixels") == {"name": "pixels"}
    assert encoder_record("image", "lite2:64")["sha256"].startswith("9656183e")
    assert encoder_record("text", "minilm")["sha256"].startswith("53aa5117")


def test_encoders_of_other_packages(monkeypatch):
    class Letters:
        name, path, dim, has_meaning = "letters", None, 1, True

        def __init__(self, option):
            self.option = option

    entry = NamedEncoder("letters", text=lambda option, at_hand: Letters(option), option="[CASE]")
    monkeypatch.setattr(named, "_letters", entry, raising=False)
    monkeypatch.setattr(named, "_nothing", 3, raising=False)
    points = tuple(
        metadata.EntryPoint(name, f"fewgen.encoders.named:{value}", "fewgen.encoders")
        for name, value in (("letters", "_letters"), ("nothing", "_nothing"), ("pixels", "_letters"))
    )
    monkeypatch.setattr(plugins, "_installed", lambda group: points)
    with pytest.warns(UserWarning, match='encoder name "pixels" is offered by fewgen and by'):
        assert make_text_encoder("letters:upper").option == "upper"
    with pytest.warns(UserWarning, match='is no NamedEncoder, so "nothing" is no encoder'):
        found = encoders()
    assert found["letters"].kinds == ("text",)
    assert "nothing" not in found
    monkeypatch.setattr(plugins, "_installed", lambda group: points[:1])
    with pytest.raises(ConfigError, match='no features "letters"'):
        make_image_encoder("letters")


def test_every_form_is_a_name_that_is_understood():
    for name, entry in encoders().items():
        assert entry.about
        assert entry.kinds
        for kind in entry.kinds:
            assert find_encoder(kind, f"{name}:x" if entry.needs_option else name)[0] is entry
    assert AtHand().use_cache


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    for make, name in (
        (make_image_encoder, "dino:x"),
        (make_image_encoder, "clip:x"),
        (make_text_encoder, "minilm"),
    ):
        with pytest.raises(MissingDependencyError, match=r"pip install 'fewgen\[text\]'"):
            make(name)
