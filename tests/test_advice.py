"""What messages and help pages advise exists, and following it leads on."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.fake_method import Fake

import fewgen
from fewgen.api.training import train_request
from fewgen.cli.main import COMMANDS, load_command, main
from fewgen.data import save_images
from fewgen.diffusion.settings import SpecialiseConfig
from fewgen.distillation.knowledge import DistillConfig
from fewgen.errors import ConfigError, DataError, MissingDependencyError
from fewgen.methods import get_method, method_names
from fewgen.runs.preparing import ONE_CLASS, class_text, prepare
from fewgen.training import TrainConfig
from fewgen.training.meta.settings import MetaConfig

assert Fake.name == "fake"
SOURCE = Path(fewgen.__file__).parent
METHODS = [get_method(name) for name in method_names() if name != "fake"]
SECTIONS = {
    "model": [method.Config for method in METHODS],
    "training": [TrainConfig, DistillConfig],
    "tasks": [MetaConfig],
    "tint": [SpecialiseConfig],
}


def has_key(config, path):
    """Tell whether a settings class has a key such as ["text", "groups"]."""
    hints = typing.get_type_hints(config)
    names = {field.name for field in dataclasses.fields(config)}
    if path[0] not in names:
        return False
    inner = [t for t in (hints[path[0]], *typing.get_args(hints[path[0]])) if dataclasses.is_dataclass(t)]
    return len(path) == 1 or any(has_key(t, path[1:]) for t in inner)


def unknown(text, flags):
    """Return the flags and settings that a text names and that nothing has."""
    found = []
    text = re.sub(r"pip install (--[\w-]+ )*", "", text)  # whose flags are pip's
    for name in re.findall(r"(?<![\w-])--([a-z][\w-]*(?:\.\w+)*)", text):
        section, _, key = name.partition(".")
        if f"--{section}" not in flags:
            found.append(f"--{name}")
        elif section == "options" and key:
            taken = {p for m in METHODS for p in inspect.signature(m.sample).parameters}
            found += [] if key in taken else [f"--{name}"]
        elif key and not any(has_key(config, key.split(".")) for config in SECTIONS[section]):
            found.append(f"--{name}")
    for key in re.findall(r"(?<![\w.-])model\.([a-z]\w*(?:\.[a-z]\w*)*)", text):
        if key != "safetensors" and not any(has_key(c, key.split(".")) for c in SECTIONS["model"]):
            found.append(f"model.{key}")
    return found


def test_flags_and_settings_that_messages_and_help_name_exist():
    flags = {"--version", "--help"} | {flag for name in COMMANDS for flag in load_command(name).flags()}
    others = {"command.py", "environment.py"}  # of which the one makes flags, and the other calls git
    wrong = [
        f"{file.relative_to(SOURCE)}:{node.lineno}: {name}"
        for file in sorted(SOURCE.rglob("*.py"))
        if file.name not in others
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in unknown(node.value, flags)
    ]
    assert wrong == []
    assert unknown("Take --options.top_p 1, --shot 2, --model.latent 3, --tasks.ways 4.", flags) == [
        "--options.top_p",
        "--shot",
        "--model.latent",
        "--tasks.ways",
    ]
    assert unknown("Set model.text.groups, --options.guidance_scale 2 or --shots 3.", flags) == []


def photos(root, **counts):
    """Write a folder of `counts` images per class; the class "" lies in the folder itself."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            kind = ("png", "jpg")[i % 2]
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(root / name / f"{i}.{kind}")
    return root


def prepared(data, method="fake", **keywords):
    return prepare(train_request(method=method, data=str(data), out="no", text="onehot", **keywords))


@pytest.mark.parametrize(
    ("holdout", "shots", "learned"),
    [("auto", 12, 11), (1, 11, 11), (0, 12, 12), (3, 9, 9), (15, 1, 1)],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_too_many_shots_name_the_number_that_works(tmp_path, holdout, shots, learned, as_file):
    data = photos(tmp_path / "photos", cat=12, dog=20)
    if as_file:  # of which the draw tells, and not the reader
        save_images(fewgen.load_images(data), tmp_path / "photos.npz")
        data = tmp_path / "photos.npz"
    with pytest.raises(DataError, match=f"cat.* has 12 images.* or take --shots {shots}") as caught:
        prepared(data, shots=30, holdout=holdout)
    advised = dict(re.findall(r"--(shots|holdout) (\d+)", str(caught.value)))
    found = prepared(data, **{"holdout": holdout, **{key: int(value) for key, value in advised.items()}})
    assert found.train.counts().tolist() == [learned, learned]


def test_images_without_a_class_folder_get_the_command_that_makes_one(tmp_path, capsys):
    data = photos(tmp_path / "my photos", **{"": 20})
    words = ["train", "sq_gan", "--data", str(data), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, "one line, and not one for each image"
    assert '20 images, such as "0.png", are in no class folder' in message
    command = message.split("one class: ")[1].replace("NAME", "cat")
    subprocess.run(command, shell=True, check=True)
    assert prepared(data, "sq_gan").train.class_names == ("cat",)
    assert fewgen.load_images(data).counts().tolist() == [20]

    photos(data, **{"": 3})
    with pytest.raises(DataError, match='3 images, such as "0.png", are in no folder of a class; move each'):
        fewgen.load_images(data)


def test_one_class_is_told_which_method_takes_it(tmp_path):
    data = photos(tmp_path / "photos", cat=12)
    message = f"2 classes are needed, but there is only: cat; add images of another class, or {ONE_CLASS}"
    with pytest.raises(DataError, match=message):
        prepared(data, "cada_vqvae")
    name = ONE_CLASS.split()[1].rstrip(",")
    assert prepared(data, name).method.spec.n_classes == 1
    two = photos(tmp_path / "two", cat=12, dog=12)
    with pytest.raises(DataError, match="another class, or give another --class-name, or train sq_gan"):
        prepared(two, "cada_vqvae", class_names=["cat"])
    with pytest.raises(DataError, match="2 classes are needed.* make a subfolder for each class"):
        prepared(photos(tmp_path / "flat", **{"": 4}), "cada_vqvae")


@pytest.mark.parametrize("n", [3, 6, 9])
def test_a_batch_larger_than_the_set_names_one_that_fits(tmp_path, n):
    data = photos(tmp_path / "photos", cat=n)
    found = prepared(data, "sq_gan", preset="paper256", holdout=0)
    with pytest.raises(ConfigError, match="batch_size 64 is more than there are training images") as caught:
        found.stages()
    assert "Leave" not in str(caught.value), "the preset gave it"
    size = int(re.findall(r"--model.batch_size to (\d+)", str(caught.value))[0])
    group = int(
        dict(re.findall(r"--model.network.(group_size) to (\d+)", str(caught.value))).get("group_size", 4)
    )
    model = {"batch_size": size, "network": {"group_size": group}}
    smaller = prepared(data, "sq_gan", preset="paper256", holdout=0, model=model)
    assert smaller.stages()[-1].batch_size == size


def test_any_glove_file_that_knows_the_words_is_used(tmp_path, monkeypatch):
    def no_package(_):
        raise MissingDependencyError("minilm is not here")

    monkeypatch.setattr("fewgen.encoders.text_transformer.MiniLMEncoder", no_package)
    shelf = tmp_path / "glove"
    shelf.mkdir()
    (shelf / "glove.840B.300d.subset.txt").write_text("cat 1 0 2\nbird 0 1 1\n", encoding="utf-8")
    (shelf / "glove.6B.3d.txt").write_text("cat 1 0 2\nfox 0 1 1\n", encoding="utf-8")
    (shelf / "glove.own.txt").write_text("cat 1 0 2 1\ndog 0 1 1 1\n", encoding="utf-8")
    for name in ("glove", "auto"):
        table, notes = class_text(name, None, ["cat", "dog"], None, tmp_path)
        assert (Path(table.encoder_path).name, table.dim, notes) == ("glove.own.txt", 4, [])
    table, _ = class_text("glove", None, ["cat", "bird"], None, tmp_path)
    assert table.encoder_path == str(shelf), "the preferred file is stored as before"
    with pytest.raises(fewgen.errors.TextError) as caught:
        class_text("glove", None, ["cat", "okapi"], None, tmp_path)
    message = str(caught.value)
    assert 'glove.840B.300d.subset.txt has no vector for "okapi"' in message
    assert "No better: glove.6B.3d.txt, glove.own.txt" in message
    for flag in ("--phrases", "--text-path", "--text"):
        assert flag in message
    table, notes = class_text("auto", None, ["cat", "okapi"], None, tmp_path)
    assert table.encoder_name == "onehot"
    assert 'no vector for "okapi"' in notes[0], "what is missing, and not a folder that is there"


def test_a_limit_of_no_minutes(capsys, tmp_path):
    assert main(["quickstart", "--minutes", "0", "--out", str(tmp_path / "q")]) == 2
    assert capsys.readouterr().err.strip().endswith("minutes must be above 0, got 0.0."), (
        "its default is no None"
    )
