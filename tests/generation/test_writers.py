"""Generated images on disk: the file contract, nothing overwritten, nothing half written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fewgen.errors import ConfigError, OutputError, ShapeError
from fewgen.generation import GeneratedImages, sharpen, sharpened, write_images
from fewgen.generation.writers import PROVENANCE_NAME, folder_names


def _generated(n=6, channels=1, texts=None):
    rng = torch.Generator().manual_seed(1)
    return GeneratedImages(
        images=torch.randint(0, 256, (n, channels, 9, 9), generator=rng, dtype=torch.uint8),
        labels=torch.full((n,), -1) if texts else torch.arange(n) % 2,
        class_names=("T-shirt/top", "bag"),
        seeds=torch.arange(n) + 5,
        provenance={"method": "fake", "temperature": 1.0},
        texts=texts,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_holds_the_file_contract(tmp_path, channels):
    generated = _generated(channels=channels)
    path = write_images(generated, tmp_path / "o.npz")
    with np.load(path, allow_pickle=False) as file:
        images = file["images"]
        assert images.dtype == np.uint8
        assert images.shape == ((6, 9, 9) if channels == 1 else (6, 9, 9, 3))
        back = images[:, None] if channels == 1 else images.transpose(0, 3, 1, 2)
        assert (back == generated.images.numpy()).all()
        assert file["labels"].tolist() == [0, 1] * 3
        assert file["labels"].dtype == np.int64
        assert file["class_names"].tolist() == ["T-shirt/top", "bag"]
        assert file["seeds"].tolist() == list(range(5, 11))
        assert json.loads(str(file["provenance"]))["method"] == "fake"


def test_equal_images_give_equal_files(tmp_path):
    first = write_images(_generated(), tmp_path / "a.npz").read_bytes()
    assert write_images(_generated(), tmp_path / "b.npz").read_bytes() == first


@pytest.mark.parametrize("name", ["o.npz", "folder"])
def test_written_images_load_again(tmp_path, name):
    from fewgen.data import load_images

    path = write_images(_generated(), tmp_path / name)
    loaded = load_images(path)
    assert len(loaded) == 6
    assert sorted(loaded.counts().tolist()) == [3, 3]


def test_folder_has_one_subfolder_per_class_and_is_named_by_seed(tmp_path):
    generated = _generated()
    write_images(generated, tmp_path / "out")
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert files[0] == "T-shirt%2Ftop/seed000000005.png"
    assert len(files) == 6
    pixels = np.asarray(Image.open(tmp_path / "out" / files[0]))
    assert (pixels == generated.images[0, 0].numpy()).all()
    record = json.loads((tmp_path / "out" / PROVENANCE_NAME).read_text())
    assert record["class_folders"] == {"T-shirt%2Ftop": "T-shirt/top", "bag": "bag"}


def test_free_texts_become_folders(tmp_path):
    write_images(_generated(2, texts=("a red/blue boot", "..")), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == [
        "%2E%2E",
        "a red%2Fblue boot",
    ]


def test_folder_names_are_safe_and_distinct():
    names = folder_names(("a/b", "a:b", "CON", "..", "A_B", "x" * 300, "../../etc"))
    assert len({name.casefold() for name in names}) == len(names)
    assert all("/" not in name and name not in (".", "..") and len(name) < 90 for name in names)


@pytest.mark.parametrize("name", ["o.npz", "grid.png", "folder"])
def test_nothing_is_overwritten_unless_asked(tmp_path, name):
    path = tmp_path / name
    write_images(_generated(), path)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="--overwrite"):
        write_images(_generated(), path)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
    write_images(_generated(2), path, overwrite=True)
    if name == "folder":
        assert len(list(path.rglob("*.png"))) == 2


def test_overwrite_never_touches_a_foreign_folder(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(OutputError, match="not written by fewgen"):
        write_images(_generated(), tmp_path, overwrite=True)
    (tmp_path / "holiday.txt").unlink()
    outside = tmp_path.parent / "outside.png"
    outside.write_bytes(b"x")
    (tmp_path / PROVENANCE_NAME).write_text(json.dumps({"files": ["../outside.png", "../../x/seed1.png", 3]}))
    write_images(_generated(), tmp_path, overwrite=True)
    assert outside.exists()


def test_a_picture_carries_its_provenance(tmp_path):
    path = write_images(_generated(), tmp_path / "grid.png")
    with Image.open(path) as picture:
        assert json.loads(picture.text["fewgen"])["seeds"] == list(range(5, 11))


@pytest.mark.parametrize("name", ["o.jpg", "o.npy", "o.gif"])
def test_other_endings_are_refused_with_the_choices(tmp_path, name):
    with pytest.raises(OutputError, match=r"\.npz.*\.png"):
        write_images(_generated(), tmp_path / name)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "o.npz"
    write_images(_generated(), path)
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full_disk)
    with pytest.raises(OutputError, match="disk is full"):
        write_images(_generated(2), path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_sharpening_is_marked_and_off_means_unchanged():
    generated = _generated()
    assert torch.equal(sharpen(generated.images, 0), generated.images)
    result = sharpened(generated, 0.5)
    assert result.provenance["sharpened"] == 0.5
    assert "sharpened" not in generated.provenance
    flat = torch.full((1, 1, 4, 4), 77, dtype=torch.uint8)
    assert torch.equal(sharpen(flat, 1), flat)
    spot = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    spot[0, 0, 2, 2] = 20
    assert sharpen(spot, 1)[0, 0, 2, 2] == 100
    with pytest.raises(ConfigError, match="strength"):
        sharpen(flat, -1)
    with pytest.raises(ShapeError, match="uint8"):
        sharpen(flat.float())
