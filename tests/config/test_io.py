"""YAML in and out, safely, and the presets of the package."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fewgen.config import dump_yaml, list_presets, load_preset, parse_yaml, read_config
from fewgen.config.io import PRESETS_DIR
from fewgen.errors import ConfigError


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.e-3", "+1e-3"])
def test_exponents_are_numbers(text):
    assert parse_yaml(f"lr: {text}")["lr"] == pytest.approx(1e-3)


def test_plain_words_and_numbers_stay_what_they_are():
    values = parse_yaml("a: 3\nb: e5\nc: 1.2.3\nd: true\ne: null\nf: -2\ng: .5\nh: '1e-3'")
    assert values == {"a": 3, "b": "e5", "c": "1.2.3", "d": True, "e": None, "f": -2, "g": 0.5, "h": "1e-3"}


def test_dump_and_parse_round_trip():
    values = {
        "a": {"lr": 1e-5, "sizes": [1, 2], "name": "t-shirt/top", "none": None, "yes": "yes", "f": 1e22}
    }
    assert parse_yaml(dump_yaml(values)) == values


YAML_WORDS = [
    "1e3",
    "no",
    "007",
    "a\u0085b",
    "~",
    "null",
    "2020-01-01",
    "=",
    "<<",
    "1:30",
    ".inf",
    "0x1F",
    "- a",
]


@given(st.text(max_size=8), st.text(max_size=8))
@example("1e3", "a\u0085b")
@example("caf\udce9", "two\nlines\r\n ")
def test_every_text_survives_as_key_and_value(key, value):
    values = {"class_names": [value, key], "phrases": {key: [value], f"{key}x": value}, "data": value}
    assert parse_yaml(dump_yaml(values)) == values


@pytest.mark.parametrize("word", YAML_WORDS)
def test_words_that_yaml_reads_as_something_else_survive(word):
    values = {"class_names": [word], "phrases": {word: word}, "list": [word, 7, None], word: 1}
    assert parse_yaml(dump_yaml(values)) == values


def test_names_written_by_hand_are_texts(tmp_path):
    settings = parse_yaml("class_names: [1e3, no, 007, dog]\nphrases: {no: [7, off]}\nseed: 1e3\n")
    assert settings == {
        "class_names": ["1e3", "no", "007", "dog"],
        "phrases": {"no": ["7", "off"]},
        "seed": 1000.0,
    }
    assert parse_yaml("class_names: null\nphrases:\n") == {"class_names": None, "phrases": None}
    (tmp_path / "phrases.yaml").write_text("007: [no, 1e3]\nno: off\n", encoding="utf-8")
    assert read_config(tmp_path / "phrases.yaml", texts=True) == {"007": ["no", "1e3"], "no": "off"}
    assert parse_yaml("x: &a [*a]", texts=True)["x"], "a list that holds itself does no harm"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1\n- 2", "key: value"),
        ("a: 1\na: 2", 'key "a" is given twice'),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: 2020-99-99", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_clear_message(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "x.yaml")


def test_read_config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\n", encoding="utf-8")
    assert read_config(path) == {"seed": 3} == read_config({"seed": 3})
    assert read_config(None) == {}
    with pytest.raises(ConfigError, match="does not exist"):
        read_config(tmp_path / "no.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "b.yaml")


def test_an_unknown_preset_is_an_error_with_a_suggestion():
    assert list_presets("no_such_method") == ["default"]
    with pytest.raises(ConfigError, match='Did you mean "default"'):
        load_preset("no_such_method", "defalt")


@pytest.mark.parametrize(
    ("method", "preset"), sorted((path.parent.name, path.stem) for path in PRESETS_DIR.glob("*/*.yaml"))
)
def test_every_shipped_preset_loads_into_its_dataclasses(method, preset):
    from fewgen.config import from_dict
    from fewgen.methods.registry import get_method
    from fewgen.training import TrainConfig

    values = load_preset(method, preset)
    assert values["description"]
    assert values["expected"], "a preset says what to expect"
    from_dict(get_method(method).Config, values["model"], "model")
    from_dict(TrainConfig, values["training"], "training")
