"""Files that no reader takes are known by their first bytes, and the sentence says what to do."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewgen.cli.main import main
from fewgen.data import load_images
from fewgen.data.kinds import foreign_kind, is_text
from fewgen.errors import DataError

KINDS = {
    "HEIC": b"\0\0\0\x18ftypheic",
    "AVIF": b"\0\0\0\x1cftypavif",
    "JPEG XL": b"\xff\x0a....",
    "DICOM": b"\0" * 128 + b"DICM",
    "zip archive": b"PK\x03\x04....",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "Parquet": b"PAR1....",
    "tar archive": b"x" * 257 + b"ustar\x0000",
    "gzip": b"\x1f\x8b\x08",
    "pickle": b"\x80\x04\x95",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
    "web page": b"<!DOCTYPE html><html>",
    "film": b"\0\0\0\x18ftypisom",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_kind_is_named_in_a_folder_and_as_the_source(tmp_path: Path, kind: str) -> None:
    for place in ("cat/x.png", "cat.bin", "images.npz"):
        file = tmp_path / place
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(KINDS[kind])
    for source in (tmp_path, tmp_path / "cat.bin", *([tmp_path / "images.npz"] * ("zip" not in kind))):
        with pytest.raises(DataError) as caught:
            load_images(source)
        assert kind in str(caught.value)
        assert "; " in str(caught.value), "it says what to do"
        assert "delete" not in str(caught.value)


def crc_of(data: bytes) -> int:
    """CRC-32C, bit by bit from the highest power, as its definition has it."""
    remainder = 0xFFFFFFFF
    for bit in (byte >> i & 1 for byte in data for i in range(8)):
        low = (remainder ^ bit) & 1
        remainder = remainder >> 1 ^ (0x82F63B78 if low else 0)
    return remainder ^ 0xFFFFFFFF


def test_the_checksum_of_tfrecord() -> None:
    assert crc_of(b"123456789") == 0xE3069283, "the published check value"
    length = (5).to_bytes(8, "little")
    masked = ((crc_of(length) >> 15 | crc_of(length) << 17) + 0xA282EAD8) & 0xFFFFFFFF
    record = length + masked.to_bytes(4, "little") + b"hello" + b"\0" * 4
    assert "TFRecord" in foreign_kind(record, len(record))
    assert foreign_kind(record, 20) == "", "a record longer than the file"
    assert foreign_kind(record[:8] + b"\0" * 13, 21) == ""


@pytest.mark.parametrize("name", ["1.txt", "1.json", "metadata.jsonl", "dataset.json", "1.caption"])
@pytest.mark.parametrize("folder", ["", "cat"])
def test_captions_are_nobodys_to_delete(tmp_path: Path, name: str, folder: str) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "1.png")
    for content in ('{"text": "a cat, é"}', ""):
        (tmp_path / folder / name).write_text(content, encoding="utf-8")
        with pytest.raises(DataError) as caught:
            load_images(tmp_path)
        assert "delete" not in str(caught.value)
        assert "out of th" in str(caught.value)


def test_text_may_end_within_a_character() -> None:
    assert is_text("aé".encode()[:2])
    assert not is_text(b"a\xff\xfe\0\1bcdef")
    assert not is_text(b"\0\1\2")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["idx", "cifar"])
def test_missing_files_of_a_data_set_are_named(tmp_path: Path, kind: str, split: str) -> None:
    from fewgen.data.cifar_binary import FILES as CIFAR
    from fewgen.data.idx import FILES as IDX

    files = {"idx": IDX, "cifar": CIFAR}[kind]
    for name in (*files["train"], *files["test"]):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / files[split][0]).unlink()
    with pytest.raises(DataError) as caught:
        load_images(tmp_path, split=split)
    assert f'lacks "{files[split][0]}".' in str(caught.value)


def test_a_missing_file_of_a_named_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"x")
    with pytest.raises(DataError, match='lacks "train-labels-idx1-ubyte"'):
        load_images("mnist", data_dir=tmp_path)


def test_headers_are_compared_before_arrays_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewgen.data.npz_reader import NpzReader

    read = []
    monkeypatch.setattr(NpzReader, "read", lambda reader, name: read.append(name))
    for arrays, message in (
        ({"images": np.zeros((4, 6, 5), np.uint8), "labels": np.zeros(3, int)}, "4 images but 3 labels"),
        ({"images": np.zeros((4, 6), np.uint8), "labels": np.zeros(4, int)}, r"got \(4, 6\)"),
        (
            {"images": np.zeros((4, 6, 5), np.uint8), "labels": np.zeros(4, int), "captions": ["a"]},
            "1 captions",
        ),
    ):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(DataError, match=message):
            load_images(tmp_path / "x.npz")
    assert read == []


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (300, 1024, 1024)}
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(300):
            stream.write(bytes(2**20))
    with pytest.raises(DataError, match="decompression bomb"):
        load_images(tmp_path / "x.npz")


def test_too_few_images_stand_beside_the_other_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, n in (("cat", 3), ("dog", 5)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (8, 8), i * 40).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "images" / "dog" / "bad.png").write_bytes(b"no image")
    words = ["--shots", "4", "--holdout", "1", "--out", str(tmp_path / "run")]
    assert main(["train", "cada_vqvae", "--data", str(tmp_path / "images"), *words]) == 2
    error = capsys.readouterr().err
    assert "(2 problems)" in error
    assert "bad.png" in error
    assert 'Class "cat" has 3 images, but 4 shots + 1 held out = 5 are needed' in error
