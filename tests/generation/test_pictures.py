"""Grids, strips and pairs hold the pixels they were given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewgen.errors import DataError, ShapeError
from fewgen.generation import class_grid, grid, pairs, strip
from fewgen.generation.pictures import GAP


def _images(n, channels=1, size=8):
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_pixels_are_the_image_pixels(channels):
    images = _images(5, channels)
    picture = np.asarray(grid(images, columns=3, scale=2))
    assert picture.shape == (2 * (16 + GAP) + GAP, 3 * (16 + GAP) + GAP, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        top, left = GAP + row * (16 + GAP), GAP + column * (16 + GAP)
        cell = picture[top : top + 16 : 2, left : left + 16 : 2].transpose(2, 0, 1)
        assert (cell == images[index].numpy()).all()
    assert (picture[-10:, -10:] == 255).all()


def test_heads_stand_above_their_columns_and_move_no_pixel():
    images = _images(4)
    plain, headed = (np.asarray(grid(images, 2, scale=4, heads=heads)) for heads in (None, ["real", "0.5"]))
    top = len(headed) - len(plain)
    assert top > 0
    assert (headed[top:] == plain).all()
    half = headed.shape[1] // 2
    assert all((part < 200).any() for part in (headed[:top, :half], headed[:top, half:]))
    with pytest.raises(ShapeError, match="1 column heads for 2 columns"):
        grid(images, 2, heads=["real"])


def test_row_labels_leave_a_margin_and_survive_odd_names():
    plain, labelled = grid(_images(4), 2), grid(_images(4), 2, ["ankle boot", "字" * 50 + "\n<b>"])
    assert labelled.height == plain.height
    assert labelled.width > plain.width
    with pytest.raises(ShapeError, match="row labels"):
        grid(_images(4), 2, ["one"])


def test_class_grid_has_one_row_per_class_in_use():
    images = _images(7)
    picture = class_grid(images, torch.tensor([2, 0, 2, 2, 0, 2, 2]), ["a", "b", "c"], columns=4, scale=1)
    assert picture.height == 2 * (8 + GAP) + GAP
    labels = torch.tensor([2, 0, 2, 2, 0, 2, 2])
    whole = class_grid(images, labels, ["a", "b", "c"], columns=4, scale=1, whole=True)
    assert whole.height == 3 * (8 + GAP) + GAP
    assert class_grid(images, labels * 0, ["a"], columns=16, scale=1).height == (8 + GAP) + GAP


def test_strip_and_pairs():
    images = _images(10)
    assert strip(images, ("sandal", "sneaker")).height > strip(images).height
    picture = np.asarray(pairs(images, images, columns=10, labels=("", ""), scale=1))
    margin = picture.shape[1] - 10 * (8 + GAP) - GAP
    assert (picture[GAP : GAP + 8, margin:] == picture[2 * GAP + 8 : 2 * GAP + 16, margin:]).all()
    assert pairs(images, images, columns=4).height > pairs(images, images, columns=10).height


def test_bad_input_is_named():
    with pytest.raises(ShapeError, match="uint8"):
        grid(torch.zeros(1, 1, 2, 2), 1)
    with pytest.raises(DataError, match="at least one image"):
        grid(_images(0), 1)
    with pytest.raises(DataError, match="at least one image"):
        class_grid(_images(0), torch.zeros(0, dtype=torch.int64), [])
    with pytest.raises(DataError, match="1 column"):
        grid(_images(1), 0)
    with pytest.raises(ShapeError, match="equal shapes"):
        pairs(_images(1), _images(2))


def test_words_beyond_latin_are_letters_and_not_boxes():
    from fewgen.generation.pictures import _has_glyphs, _Text

    for word in ("кот", "γάτα", "kočka", "mačka → pes", "sandal"):
        text = _Text(word, 28)
        assert _has_glyphs(text.font, text.text), word
        assert text.width > 10
    assert _Text("sandal", 28).font.getname() == _Text("T-shirt/top", 28).font.getname()


def test_words_are_drawn_without_importing_matplotlib():
    import subprocess
    import sys

    code = (
        "import sys; from fewgen.generation.pictures import _Text; _Text('кот', 28); "
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
