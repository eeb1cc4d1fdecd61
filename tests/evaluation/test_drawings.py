"""Thickness, size and slant of drawings."""

import pytest
import torch

from fewgen.errors import ShapeError
from fewgen.evaluation.drawings import (
    DRAWING_PROMPTS,
    caption,
    captions_of,
    every_caption,
    measured,
    promised,
)


def bar(width=2, height=20, lean=0.0, side=32, ground=0, ink=255):
    """An upright bar, whose rows move to the right by `lean` pixels from one to the next one above."""
    image = torch.full((1, side, side), ground, dtype=torch.uint8)
    top = (side - height) // 2
    for row in range(height):
        left = side // 2 - width // 2 + round(lean * (height / 2 - row))
        image[0, top + row, left : left + width] = ink
    return image


def test_a_bar_has_its_width_its_height_and_its_slant():
    images = torch.stack([bar(), bar(width=6), bar(height=10), bar(lean=0.5), bar(lean=-0.25)])
    found = measured(images)
    # 2 area / perimeter of a rectangle; where two edges meet, one diagonal step counts for both.
    exact = [2 * w * h / (2 * (w + h) - 2 + 2**0.5) for w, h in ((2, 20), (6, 20), (2, 10))]
    thickness = found["thickness"][:3].tolist()
    assert thickness == pytest.approx(exact, rel=0.02)
    moment = lambda n: (n * n - 1) / 12  # noqa: E731 - of n equal pixels
    wanted = [(moment(w) + moment(h)) ** 0.5 / 32 for w, h in ((2, 20), (6, 20), (2, 10))]
    assert found["size"][:3].tolist() == pytest.approx(wanted)
    assert found["slant"].tolist() == pytest.approx([0.0, 0.0, 0.0, 0.5, -0.25], abs=0.03)


def test_measures_do_not_depend_on_ground_ink_place_or_scale_of_values():
    image = bar(lean=0.5)
    others = [255 - image, image // 2, image.roll((3, -2), (1, 2)), image.expand(3, -1, -1)]
    wanted = measured(image[None])
    for other in others:
        for name, value in measured(other[None]).items():
            assert float(value) == pytest.approx(float(wanted[name]), rel=0.01), name
    for name, value in measured(image[None].float() / 127.5 - 1.0).items():
        assert float(value) == pytest.approx(float(wanted[name])), name
    empty = measured(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert all(value.tolist() == [0.0, 0.0] for value in empty.values())
    with pytest.raises(ShapeError, match="N, C, H, W"):
        measured(image)


def test_captions_name_what_is_far_from_the_mean():
    same = [bar()] * 8
    found = captions_of(torch.stack([*same, bar(width=6), bar(height=8), bar(lean=0.5), bar(lean=-0.5)]))
    assert set(found[:8]) <= {"a thin drawing", "a drawing"}
    assert "thick" in found[8]
    assert "small" in found[9]
    assert found[10].endswith("slanted to the right")
    assert found[11].endswith("slanted to the left")
    assert set(found) <= set(every_caption())
    assert set(captions_of(torch.stack(same))) == {caption()}
    assert len(set(every_caption())) == 27


def test_each_prompt_promises_one_thing():
    found = {prompt: promised(prompt) for prompt in DRAWING_PROMPTS}
    assert found["a thick drawing"] == ("thickness", 1)
    assert found["a drawing slanted to the left"] == ("slant", -1)
    assert len(set(found.values())) == 6
    assert promised("a thick small drawing") is None  # two promises
    assert promised("a drawing") is None
