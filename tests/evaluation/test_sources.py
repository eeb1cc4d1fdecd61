"""Figures say what they were computed from: formats, sizes and counts of the files on each side."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import fewgen
from fewgen.cli.main import main
from fewgen.data import load_images, save_images
from fewgen.data.foreign import load_foreign
from fewgen.data.origin import DRAWN, Origin, jpeg_quality
from fewgen.evaluation.sources import compared, describe, differences, sentence


def photos(root, n=12, size=16, form="PNG", classes=("cat", "dog"), seed=0, **options):
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(n):
            image = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))
            image.save(root / name / f"{i}.{form.lower()}", form, **options)
    return root


@pytest.mark.parametrize("quality", [1, 10, 40, 60, 75, 95, 100])
def test_the_quality_of_a_jpeg_is_read_from_its_table(quality):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(stream, "JPEG", quality=quality)
    assert jpeg_quality(Image.open(stream)) == quality
    assert jpeg_quality(Image.new("RGB", (4, 4))) is None


def test_origins_follow_their_images(tmp_path):
    photos(tmp_path / "a", 3, 16)
    photos(tmp_path / "a2", 2, 32, "JPEG", classes=("fox",), quality=60)
    (tmp_path / "a2" / "fox").rename(tmp_path / "a" / "fox")
    images = load_images(tmp_path / "a", size=8)
    png, jpeg = Origin("PNG", 16, 16), Origin("JPEG", 32, 32, 60)
    assert images.origins == (png,) * 6 + (jpeg,) * 2
    assert images.subset([7, 0]).origins == (jpeg, png)
    assert images.select_classes(["fox", "cat"]).origins == (png,) * 3 + (jpeg,) * 2
    assert all(o.converted for o in load_images(tmp_path / "a", size=8, channels=1).origins)
    assert describe(images) == {
        "n": 8, "size": [8, 8], "formats": {"JPEG": 2, "PNG": 6}, "jpeg_quality": [60, 60],
        "from": [[16, 16], [32, 32]], "resized": "shrunk", "converted": 0,
    }  # fmt: skip
    save_images(images, tmp_path / "a.npz")
    assert load_images(tmp_path / "a.npz", size=16).origins == (Origin("array", 8, 8),) * 8
    (tmp_path / "flat").mkdir()
    (tmp_path / "a" / "fox" / "0.jpeg").rename(tmp_path / "flat" / "0.jpeg")
    assert load_foreign(tmp_path / "flat", labels_required=False).origins == (jpeg,)
    np.savez(tmp_path / "bare.npz", images=np.zeros((2, 5, 7), np.uint8))
    assert load_foreign(tmp_path / "bare.npz", labels_required=False).origins == (Origin("array", 5, 7),) * 2


def side(form="PNG", n=10, size=8, before=8, **more):
    lossless = {"n": n, "size": [size, size], "formats": {form: n}, "from": [[before, before]] * 2}
    resized = "no" if before == size else "shrunk" if before > size else "enlarged"
    return lossless | {"resized": resized, "converted": 0} | more


def test_what_differs_by_the_files_alone_is_told():
    jpeg = side("JPEG", jpeg_quality=[60, 60])
    png = side()
    (said,) = differences({"training": png, "generated": jpeg})
    assert said == (
        "The training images are PNG, the generated ones JPEG of quality 60: traces of compression alone move "
        "distances between them. Save all in the same format."
    )
    assert differences({"training": png, "generated": side("BMP"), "held-out": side("array")}) == []
    assert differences({"training": jpeg, "generated": side("JPEG", jpeg_quality=[55, 65])}) == []
    (said,) = differences({"training": jpeg, "held-out": side("JPEG", jpeg_quality=[90, 95])})
    assert "JPEG of qualities 90 to 95" in said
    (said,) = differences({"training": side(before=64), "generated": png})
    assert said.startswith(
        "The training images were shrunk from 64x64, the generated ones left in their size:"
    )
    (said,) = differences({"training": side(before=64), "generated": side(before=4)})
    assert "the generated ones enlarged from 4x4" in said
    assert differences({"training": side("JPEG", before=64), "generated": side(DRAWN)}) == []
    assert differences({"training": png, "generated": {"n": 1, "size": [8, 8], "formats": {"x": 1}}}) == []
    assert compared({}) == compared(None) == []


def test_an_evaluation_says_it_in_its_file_its_page_and_on_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "real", 8, 16)
    photos(tmp_path / "held", 4, 8, seed=1)
    photos(tmp_path / "made", 6, 8, "JPEG", seed=2, quality=60)
    words = (
        "evaluate made --data real --holdout held --size 8 --features pixels --useful-draws 0 --out e.json"
    )
    assert main([*words.split(), "--no-progress"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    sides = record["protocol"]["images"]
    assert {name: (own["n"], own["formats"], own["resized"]) for name, own in sides.items()} == {
        "training": (16, {"PNG": 16}, "shrunk"),
        "generated": (12, {"JPEG": 12}, "no"),
        "held-out": (8, {"PNG": 8}, "no"),
    }
    said = compared(record["protocol"])
    assert (
        said[0]
        == sentence(sides)
        == (
            "Compared at 8x8: 16 training images (PNG, shrunk from 16x16), 12 generated images (JPEG of quality "
            "60), 8 held-out images (PNG)."
        )
    )
    assert len(said) == 4, "compression of one side, and sizes of two"
    page = (tmp_path / "e.html").read_text(encoding="utf-8")
    for text in said:
        assert text in printed
        assert text in page


def test_drawn_images_have_no_file():
    labels = torch.zeros(2, dtype=torch.int64)
    made = fewgen.generation.GeneratedImages(
        torch.zeros(2, 1, 4, 6, dtype=torch.uint8), labels, ("cat",), labels
    )
    assert made.to_image_set().origins == (Origin(DRAWN, 4, 6),) * 2
