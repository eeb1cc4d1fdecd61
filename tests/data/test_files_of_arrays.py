"""npz, idx, JPEG streams and CIFAR-10 batches: whole files, and every way in which they break."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewgen.data import load_images
from fewgen.data.cifar_binary import ROW_BYTES, load_cifar_binary
from fewgen.data.idx import load_idx, read_idx
from fewgen.data.npz import load_npz, save_npz
from fewgen.errors import DataError

RNG = np.random.default_rng(0)


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


GREY = RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 0])
NAMES = np.array(["a", "b"])


@pytest.mark.parametrize("zipped", [False, True])
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, zipped: bool, shape: list[int]) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    assert np.array_equal(read_idx(path), array)


WHOLE = idx_bytes(GREY)
BROKEN_IDX = {
    "truncated": (WHOLE[:-1], "truncated: 119 of 120"),
    "too long": (WHOLE + b"\0", "longer than"),
    "empty": (b"", "not an idx file"),
    "a png": (b"\x89PNG....", "not an idx file"),
    "another type": (idx_bytes(GREY, kind=13), "0x0d"),
    "header cut": (WHOLE[:9], "damaged idx header"),
    "too many dimensions": (b"\0\0\x08\x09" + b"\0\0\0\1" * 9 + b"x", "damaged idx header"),
    "a lie about the size": (b"\0\0\x08\x03" + b"\xff\xff\xff\xff" * 3, "more than"),
    "gzip truncated": (gzip.compress(WHOLE)[:-9], "gzip"),
    "gzip damaged": (gzip.compress(WHOLE)[:-8] + b"12345678", "gzip"),
    "gzip cut in its head": (gzip.compress(WHOLE)[:5], "gzip"),
}


@pytest.mark.parametrize("name", BROKEN_IDX)
def test_broken_idx_files(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN_IDX[name]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_idx(tmp_path / "file")


def test_idx_files_must_belong_together(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(WHOLE)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS.astype(np.uint8))))
    data = load_images(tmp_path)
    assert data.class_names == ("0", "1")
    assert torch.equal(data.images[:, 0], torch.from_numpy(GREY))
    (tmp_path / "few").write_bytes(idx_bytes(LABELS[:3].astype(np.uint8)))
    with pytest.raises(DataError, match="4 images.*3 labels"):
        load_idx(tmp_path / "train-images-idx3-ubyte", tmp_path / "few")
    with pytest.raises(DataError, match="must hold images"):
        load_idx(tmp_path / "few", tmp_path / "few")
    with pytest.raises(DataError, match="must hold labels"):
        load_idx(tmp_path / "train-images-idx3-ubyte", tmp_path / "train-images-idx3-ubyte")


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
@pytest.mark.parametrize(
    "images",
    [GREY, COLOUR, GREY[..., None], COLOUR.transpose(0, 3, 1, 2)],
    ids=["grey", "colour", "grey1", "nchw"],
)
def test_npz_forms(tmp_path: Path, images: np.ndarray, dtype: type) -> None:
    data = load_images(
        save(tmp_path / "a.npz", images=images, labels=LABELS.astype(dtype), class_names=NAMES)
    )
    expected = COLOUR.transpose(0, 3, 1, 2) if data.channels == 3 else GREY[:, None]
    assert np.array_equal(data.images.numpy(), expected)
    assert data.labels.tolist() == LABELS.tolist()
    assert data.class_names == ("a", "b")


def test_npz_without_names_and_with_parts(tmp_path: Path) -> None:
    assert load_npz(save(tmp_path / "a.npz", images=GREY, labels=LABELS)).class_names == ("0", "1")
    with pytest.raises(DataError, match="no test part"):
        load_npz(tmp_path / "a.npz", "test")
    path = save(
        tmp_path / "b.npz", train_images=GREY, train_labels=LABELS, val_images=GREY[:2], val_labels=LABELS[:2]
    )
    assert len(load_npz(path)) == 4
    assert len(load_npz(path, "test")) == 2


BROKEN_NPZ: dict[str, tuple[dict[str, object], str]] = {
    "objects": ({"images": np.array([object()], dtype=object), "labels": LABELS}, "pickled"),
    "object names": (
        {"images": GREY, "labels": LABELS, "class_names": np.array(["a", "b"], dtype=object)},
        "pickled",
    ),
    "floats": ({"images": GREY / 255.0, "labels": LABELS}, r"must be uint8, got float64. Scale"),
    "int images": ({"images": GREY.astype(int), "labels": LABELS}, "must be uint8, got int64"),
    "alpha": ({"images": np.zeros((4, 6, 5, 4), np.uint8), "labels": LABELS}, "four channels"),
    "two channels": ({"images": np.zeros((4, 6, 5, 2), np.uint8), "labels": LABELS}, "must have the shape"),
    "one image": ({"images": GREY[0], "labels": LABELS}, "must have the shape"),
    "no labels": ({"images": GREY}, 'no "labels"'),
    "no images": ({"x": GREY}, "it holds: x"),
    "few labels": ({"images": GREY, "labels": LABELS[:3]}, "4 images but 3 labels"),
    "float labels": ({"images": GREY, "labels": LABELS / 2}, "must be integers"),
    "high label": (
        {"images": GREY, "labels": LABELS + 1, "class_names": NAMES},
        "reach up to 2, but there are 2",
    ),
    "free text": (
        {"images": GREY, "labels": LABELS - 1, "class_names": NAMES},
        "-1 marks images made from a free text",
    ),
    "same names": (
        {"images": GREY, "labels": LABELS, "class_names": np.array(["a", "A"])},
        "differ only by case",
    ),
    "numbers as names": ({"images": GREY, "labels": LABELS, "class_names": np.array([1, 2])}, "must be text"),
    "empty": ({"images": GREY[:0], "labels": LABELS[:0]}, "is empty"),
}


@pytest.mark.parametrize("name", BROKEN_NPZ)
def test_broken_npz(tmp_path: Path, name: str) -> None:
    arrays, reason = BROKEN_NPZ[name]
    with pytest.raises(DataError, match=reason):
        load_images(save(tmp_path / "a.npz", **arrays))


def test_damaged_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_npz(path, torch.from_numpy(GREY)[:, None], torch.from_numpy(LABELS), ["a", "b"])
    whole = path.read_bytes()
    for content in (
        b"",
        b"not a zip",
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:80] + b"\0\1\2\3" + whole[84:],
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz"):
            load_npz(path)
    with pytest.raises(DataError, match="does not exist"):
        load_npz(tmp_path / "b.npz")


@pytest.mark.parametrize("header", ["{'shape': (1,", "(", "'", "1L2", "\x00", "{}", "[]"])
def test_headers_that_cannot_be_parsed_are_told(tmp_path: Path, header: str) -> None:
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", data)
        archive.writestr("labels.npy", data)
    with pytest.raises(DataError, match='"images" in .* is damaged'):
        load_npz(tmp_path / "x.npz")


def test_npz_that_lies_about_its_size_takes_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 28, 28)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"\0" * 100)
        archive.writestr("labels.npy", header.getvalue())
    with pytest.raises(DataError, match="states the shape"):
        load_npz(tmp_path / "a.npz")


def test_a_checksum_error_at_the_end_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", images=GREY, labels=LABELS)
    data = bytearray(path.read_bytes())
    at = bytes(data).index(GREY.tobytes()) + 7
    data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged"):
        load_npz(path)


def test_save_npz_follows_the_file_contract(tmp_path: Path) -> None:
    images = torch.from_numpy(COLOUR.transpose(0, 3, 1, 2).copy())
    save_npz(
        tmp_path / "a.npz",
        images,
        torch.from_numpy(LABELS),
        ["a", "b"],
        torch.arange(4),
        ["w", "x", "y", "z"],
    )
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {"images", "labels", "class_names", "seeds", "captions"}
        assert (file["images"].dtype, file["images"].shape) == (np.uint8, (4, 6, 5, 3))
        assert file["labels"].dtype == file["seeds"].dtype == np.int64
    assert load_npz(tmp_path / "a.npz").captions == ("w", "x", "y", "z")
    first = (tmp_path / "a.npz").read_bytes()
    save_npz(
        tmp_path / "a.npz",
        images,
        torch.from_numpy(LABELS),
        ["a", "b"],
        torch.arange(4),
        ["w", "x", "y", "z"],
    )
    assert (tmp_path / "a.npz").read_bytes() == first, "the same images give the same file"


def jpegs(n: int = 5, side: int = 8) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    streams, pixels = [], []
    for i in range(n):
        buffer = io.BytesIO()
        Image.fromarray(np.full((side, side, 3), 40 * i, np.uint8)).save(buffer, "JPEG")
        streams.append(buffer.getvalue())
        pixels.append(np.asarray(Image.open(io.BytesIO(streams[-1]))))
    offsets = np.cumsum([0, *(len(stream) for stream in streams)])
    return np.frombuffer(b"".join(streams), np.uint8), offsets, pixels


def test_jpeg_streams(tmp_path: Path) -> None:
    data, offsets, pixels = jpegs()
    path = save(
        tmp_path / "a.npz",
        train_jpeg=data,
        train_offsets=offsets,
        train_labels=np.array([0, 1, 0, 1, 0], np.uint8),
        class_names=NAMES,
    )
    loaded = load_images(path)
    assert np.array_equal(loaded.images.permute(0, 2, 3, 1).numpy(), np.stack(pixels))
    damaged = data.copy()
    damaged[offsets[2] : offsets[2] + 20] = 0
    save(
        path, train_jpeg=damaged, train_offsets=offsets, train_labels=np.zeros(5, np.uint8), class_names=NAMES
    )
    with pytest.raises(DataError, match="Image 2 of .* is damaged"):
        load_images(path)


@pytest.mark.parametrize(
    "offsets", [[0, 10], [0, 5, 3, 9, 10, 11], [-1, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 10**9]]
)
def test_impossible_offsets(tmp_path: Path, offsets: list[int]) -> None:
    path = save(
        tmp_path / "a.npz",
        train_jpeg=jpegs()[0],
        train_offsets=np.array(offsets),
        train_labels=np.zeros(5, int),
        class_names=NAMES,
    )
    with pytest.raises(DataError, match="offsets"):
        load_images(path)


def test_cifar_batches(tmp_path: Path) -> None:
    rows = RNG.integers(0, 256, (7, ROW_BYTES), dtype=np.uint8)
    rows[:, 0] = np.arange(7)
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(rows.tobytes())
    data = load_images(tmp_path)
    assert data.images.shape == (35, 3, 32, 32)
    assert data.class_names[data.labels[3]] == "cat"
    # Red, then green, then blue, each row by row.
    assert data.images[2, 1, 4, 5] == rows[2, 1 + 1024 + 4 * 32 + 5]
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(DataError, match="not a multiple of 3073"):
        load_cifar_binary(tmp_path, "test")
    rows[0, 0] = 10
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes())
    with pytest.raises(DataError, match="label 10"):
        load_cifar_binary(tmp_path, "test")
