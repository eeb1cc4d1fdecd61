from pathlib import Path

import numpy as np
import pytest
import torch

from fewgen.data import datasets, load_images
from fewgen.data.registry import data_root
from fewgen.errors import DataError


def test_digits_need_nothing() -> None:
    train, test = load_images("digits"), load_images("digits", split="test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.images.shape[1:] == (1, 28, 28)
    assert train.class_names[:3] == ("zero", "one", "two")
    native = load_images("digits", size=8)
    assert native.images.max() == 255
    assert native.images.min() == 0
    rows = {row.tobytes() for row in native.images.numpy()}
    shared = [
        row for row in load_images("digits", split="test", size=8).images.numpy() if row.tobytes() in rows
    ]
    assert len(shared) == 0, "no test image is a training image"
    assert torch.equal(native.labels, train.labels)


@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_and_channels(size: int, channels: int) -> None:
    data = load_images("digits", split="test", size=size, channels=channels)
    assert data.images.shape == (355, channels, size, size)


def test_names_are_forgiving_but_not_guessed() -> None:
    assert load_images("Digits ", split="test").n_classes == 10
    with pytest.raises(DataError, match='Did you mean "fashion_mnist"'):
        load_images("fashion_mnits")


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWGEN_DATA_DIR", str(tmp_path / "a"))
    assert data_root() == tmp_path / "a"
    assert data_root(tmp_path / "b") == tmp_path / "b"
    monkeypatch.delenv("FEWGEN_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache" / "fewgen" / "data"


def test_list_of_data_sets(tmp_path: Path, data_dir: Path) -> None:
    assert [info.name for info in datasets(tmp_path) if info.available] == ["digits"]
    here = {info.name: info for info in datasets(data_dir)}
    assert all(info.available for info in here.values())
    assert [name for name, info in here.items() if info.downloadable] == ["mnist", "fashion_mnist", "cifar10"]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_idx_data(data_dir: Path, name: str) -> None:
    info = next(info for info in datasets(data_dir) if info.name == name)
    train, test = (load_images(name, split=split, data_dir=data_dir) for split in ("train", "test"))
    assert (len(train), len(test)) == (info.n_train, info.n_test)
    assert train.images.shape[1:] == (1, 28, 28)
    if name == "fashion_mnist":
        assert train.counts().tolist() == [6000] * 10
        assert train.class_names[9] == "Ankle boot"
        mean = train.images.double().mean() / 255
        assert mean == pytest.approx(0.28604, abs=1e-5)  # as its README states


def test_real_cifar10(data_dir: Path) -> None:
    test = load_images("cifar10", split="test", data_dir=data_dir)
    assert test.counts().tolist() == [1000] * 10
    assert test.images.shape[1:] == (3, 32, 32)
    assert test.class_names[1] == "automobile"
    assert "JPEG" in test.name
    # Bright blue sky over ships and planes: red, green and blue are not swapped.
    means = test.select_classes(["airplane", "ship"]).images.double().mean((0, 2, 3))
    assert means[2] > means[0] + 5


def test_real_tiny_imagenet32(data_dir: Path) -> None:
    test = load_images("tiny_imagenet32", split="test", data_dir=data_dir)
    assert test.counts().tolist() == [50] * 180
    assert test.class_names[0] == "goldfish, Carassius auratus"
    split = test.base_novel(100, 30, 0)
    assert [len(part) for part in split.apply(test)] == [5000, 1500, 2500]


def test_real_omniglot(data_dir: Path) -> None:
    train, test = (load_images("omniglot", split=split, data_dir=data_dir) for split in ("train", "test"))
    assert train.counts().tolist() == [14] * 242
    assert test.counts().tolist() == [6] * 242
    assert train.images.float().mean() < 100, "ink is bright on dark"
    large = load_images("omniglot", split="test", size=105, data_dir=data_dir)
    assert large.images.shape[1:] == (1, 105, 105)
    assert large.images.float().mean() < 100
    assert sum(name.startswith("Greek/") for name in test.class_names) == 24


def test_real_imagenette64(data_dir: Path) -> None:
    path = data_dir / "Imagenette64" / "imagenette_64_subset.npz"
    (info,) = (info for info in datasets(data_dir) if info.name == "imagenette64")
    train, test = (load_images("Imagenette64", split=split, data_dir=data_dir) for split in ("train", "test"))
    assert (len(train), len(test), info.where) == (info.n_train, info.n_test, str(path))
    assert train.images.shape[1:] == (info.channels, info.size, info.size)
    assert test.counts().tolist() == [30] * info.classes
    assert train.class_names[0] == "tench, Tinca tinca"
    assert torch.equal(load_images(path).images, train.images)


def test_min_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.zeros(2, int))
    assert len(load_images(tmp_path / "one.npz")) == 2
    with pytest.raises(DataError, match="2 classes are needed, but there is only: 0"):
        load_images(tmp_path / "one.npz", min_classes=2)
