"""Names of classes: what is one name, and what is none, from folders, arrays, flags and Python."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewgen.cli.main import main
from fewgen.data import ClassSplit, ImageSet, load_images
from fewgen.data.imageset import joined
from fewgen.data.npz import save_npz
from fewgen.data.split import class_list
from fewgen.encoders.onehot import OneHotEncoder
from fewgen.episodes import class_split
from fewgen.errors import ConfigError, DataError, TextError
from fewgen.generation.writers import folder_names
from fewgen.text import ClassText
from fewgen.text.table import fitting_phrases

COMPOSED, DECOMPOSED = "caf\u00e9", "Cafe\u0301"
"""One name: accents in two encodings, and another case."""

BAD = ["big\ncat", "a\u0085b", "a\u2028b", "nul\0", "caf\udce9", "tab\t"]


def images_of(*names: str) -> ImageSet:
    labels = torch.arange(len(names)).repeat_interleave(2)
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    return ImageSet(pixels.contiguous(), labels, names)


def test_every_lookup_takes_another_case_and_another_encoding(tmp_path: Path) -> None:
    data = images_of(COMPOSED, "dog")
    assert class_list([DECOMPOSED], data.class_names) == [COMPOSED]
    assert data.class_index(DECOMPOSED) == 0
    assert data.select_classes([DECOMPOSED]).class_names == (DECOMPOSED,)
    assert joined([data, images_of("DOG", DECOMPOSED)]).counts().tolist() == [4, 4]
    ClassSplit((DECOMPOSED,), (), ("Dog",)).to_json(tmp_path / "split.json")
    assert class_split(data, tmp_path / "split.json") == ClassSplit((COMPOSED,), (), ("dog",))
    encoder = OneHotEncoder([COMPOSED, "dog"])
    assert encoder.encode([DECOMPOSED]).tolist() == [[1, 0]]
    table = ClassText.build(encoder, [COMPOSED, "dog"])
    assert torch.equal(table.encode([DECOMPOSED], encoder)[0], table.vectors[0])
    assert fitting_phrases({DECOMPOSED: "coffee"}, [COMPOSED, "dog"]) == {COMPOSED: "coffee"}
    assert len({name.casefold() for name in folder_names((COMPOSED, DECOMPOSED))}) == 2
    assert folder_names((COMPOSED, DECOMPOSED))[1].endswith("-2"), "one folder on a Mac"


def test_two_encodings_of_one_name_are_a_problem() -> None:
    with pytest.raises(DataError, match="differ only in how accents are encoded"):
        images_of(COMPOSED, DECOMPOSED.lower())


@pytest.mark.parametrize("words", [7, None, [1], {"a": "b"}.values()])
def test_phrases_are_texts(words: object) -> None:
    with pytest.raises(TextError, match="must be a text or a list of texts"):
        fitting_phrases({"dog": words}, ["dog"])


def test_phrases_of_one_class_are_given_once() -> None:
    with pytest.raises(TextError, match="given twice"):
        fitting_phrases({COMPOSED: "a", DECOMPOSED: "b"}, [COMPOSED])


@pytest.mark.parametrize("name", BAD)
def test_control_characters_are_refused_from_python_and_arrays(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="control characters"):
        images_of(name, "dog")
    with pytest.raises(DataError, match="control characters"):
        ClassSplit(("dog",), (), (name,))
    if "\ud800" <= name[-1] <= "\udfff" or name.endswith("\0"):
        return  # numpy cannot hold such a text
    save_npz(tmp_path / "x.npz", torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2), [name, "dog"])
    with pytest.raises(DataError, match="control characters"):
        load_images(tmp_path / "x.npz")


@pytest.mark.parametrize("name", [7, None, True])
def test_a_class_name_is_text(name: object) -> None:
    with pytest.raises(DataError, match="must be text"):
        ImageSet(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), (name,))
    with pytest.raises(ConfigError, match="must be text"):
        class_list([name], ["dog"])


@pytest.mark.skipif(os.name == "nt", reason="names of files are Unicode there")
def test_undecodable_and_broken_file_names_are_listed(tmp_path: Path) -> None:
    for folder in (b"caf\xe9", b"dog"):
        place = os.path.join(os.fsencode(tmp_path), folder)
        os.mkdir(place)
        Image.new("L", (4, 4)).save(Path(os.fsdecode(place)) / "1.png")
    for name in ("caf\udce9.png", "two\nlines.png"):
        Image.new("L", (4, 4)).save(tmp_path / "dog" / name)
    with pytest.raises(DataError, match="3 problems") as caught:
        load_images(tmp_path)
    message = str(caught.value)
    assert message.isascii() or message.encode(), "can be printed"
    for shown in (r"'caf\udce9'", r"dog/caf\udce9.png", r"dog/two\nlines.png"):
        assert shown in message.replace(os.sep, "/")


def test_an_undecodable_flag_is_a_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "cada_vqvae", "--data", "caf\udce9"]) == 2
    assert "is not text in UTF-8" in capsys.readouterr().err


def test_too_few_images_are_named_for_every_class() -> None:
    from fewgen.data.split import split_indices

    data = images_of("cat", "dog", "fox").subset([0, 1, 2, 3])
    with pytest.raises(DataError) as caught:
        split_indices(data, None, 2, 0)
    for name in ("cat", "dog", "fox"):
        assert f'"{name}"' in str(caught.value)


def test_numbers_stay_names_in_arrays(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[0, 1], class_names=["1e3", "no"]
    )
    assert load_images(tmp_path / "x.npz").class_names == ("1e3", "no")
