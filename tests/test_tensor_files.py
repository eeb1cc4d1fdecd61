"""Files of tensors: what is written comes back, and what is damaged, hostile or of another kind is refused."""

import json
import math
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewgen.errors import CheckpointError, ConfigError
from fewgen.tensor_files import TensorFile, write_tensors

KIND = TensorFile(
    format="fewgen-thing",
    version=2,
    about="thing",
    wanted="Name a thing.",
    foreign="a thing.",
    outdated="thing format {version}, but this fewgen reads up to 2.",
    damaged='The thing "{path}" is damaged: {reason}',
    older=True,
)


def thing(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> Path:
    values = KIND.metadata('{"n": 1}') | metadata
    save_file({"x": torch.arange(3.0)} if tensors is None else tensors, path, metadata=values)
    return path


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_tensor_file_gives_what_was_written(tmp_path: Path) -> None:
    for version in ("1", "2"):
        about, tensors = KIND.read(thing(tmp_path / "a", format_version=version))
        assert about == {"n": 1}
        assert torch.equal(tensors["x"], torch.arange(3.0))
    strict = replace(KIND, older=False)
    strict.read(thing(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="has thing format 1, but this fewgen reads up to 2"):
        strict.read(thing(tmp_path / "a", format_version="1"))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "fewgen-other"}, "is a safetensors file, but not a thing"),
        ({"format_version": "3"}, "thing format 3,"),
        ({"format_version": ""}, "thing format ,"),
        ({"format_version": "-1"}, "thing format -1,"),
        ({"format_version": "\u00b2"}, "thing format \u00b2,"),  # isdigit() takes it for a number
        ({"format_version": "9" * 5000}, "thing format 9{20},"),
        ({"thing": "{"}, "is damaged: "),
        ({"thing": "[]"}, "is damaged: thing is not an object"),
        ({"thing": "[" * 100_000}, "is damaged: "),
    ],
)
def test_metadata_that_make_no_sense_are_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        KIND.read(thing(tmp_path / "a", **metadata))


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for value in (math.nan, math.inf):
        path = thing(tmp_path / "a", {"good": torch.ones(2, dtype=torch.int64), "bad": torch.tensor(value)})
        with pytest.raises(CheckpointError, match="is damaged: bad is not finite"):
            KIND.read(path)


def test_what_goes_wrong_with_the_content_is_one_message(tmp_path: Path) -> None:
    for error in (KeyError("n"), ZeroDivisionError("no"), ConfigError("no"), RuntimeError("two\nlines")):
        with pytest.raises(CheckpointError, match=r'^The thing "x" is damaged: [^\n]+$'), KIND.fits("x"):
            raise error
    with pytest.raises(CheckpointError, match="^own$"), KIND.fits("x"):
        raise CheckpointError("own")
    with pytest.raises(KeyboardInterrupt), KIND.fits("x"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        ([], "is not a safetensors file"),
        ({"x": 1}, "makes no sense"),
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, "makes no sense"),
        ({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, "makes no sense"),
        ({"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "makes no sense"),
        ({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 2**66]}}, "truncated"),
        ({"x": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 1]}}, "makes no sense"),
        ({"x": {"dtype": "U8", "shape": [10**15] * 300_000, "data_offsets": [0, 4]}}, "makes no sense"),
        ({"x": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, "truncated"),
        ({}, "longer than its header says"),
        ({"__metadata__": 10**9}, "metadata must be texts"),
        ({"__metadata__": ["format"]}, "metadata must be texts"),
        ({"__metadata__": {"format": 1}}, "metadata must be texts"),
    ],
)
def test_hostile_headers_are_refused_at_once(tmp_path: Path, header: object, message: str) -> None:
    started = time.process_time()
    with pytest.raises(CheckpointError, match=message):
        KIND.read(raw(tmp_path / "a", header, b"1234"))
    assert time.process_time() - started < 5


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    for names in (("x",), ("x", "y")):
        header = {"__metadata__": KIND.metadata("{}"), **dict.fromkeys(names, entry)}
        path = raw(tmp_path / "a", header, b"1234")
        if len(names) == 1:
            assert KIND.read(path)[1]["x"].tolist() == [49, 50, 51, 52]
        else:
            with pytest.raises(CheckpointError, match="is damaged"):
                KIND.read(path)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    tensors = {"x": torch.arange(1300.0), "flags": torch.tensor([True, False]), "n": torch.tensor(7)}
    write_tensors(path, tensors, KIND.metadata('{"n": 1}'))
    good = path.read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    key = good.index(b'"digest":"') + 1
    for i in [*range(8 + length), *range(8 + length, len(good), 53), len(good) - 1]:
        if key <= i < key + len("digest"):
            continue  # a file without a digest, then
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        with pytest.raises(CheckpointError) as caught:
            KIND.read(path)
        assert str(path) in str(caught.value), i
    zeroed, block = bytearray(good), 8 + length + 64
    zeroed[block : block + 4096] = bytes(4096)
    for changed in (bytes(zeroed), good[:block] + good[block + 4096 :] + good[block : block + 4096]):
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="does not hold the numbers that were written. Copy or"):
            KIND.read(path)
    path.write_bytes(good)
    assert KIND.read(path)[1]["x"].equal(tensors["x"])


def test_equal_content_is_an_equal_file_whatever_its_order(tmp_path: Path) -> None:
    x, y = torch.arange(6.0).reshape(2, 3), torch.ones(3, 2).T
    metadata = KIND.metadata("{}")
    write_tensors(tmp_path / "a", {"x": x, "y": y}, metadata)
    write_tensors(tmp_path / "b", {"y": y.contiguous(), "x": x}, dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_without_a_digest_is_read_with_one_line_that_says_so(tmp_path: Path) -> None:
    path = thing(tmp_path / "a")
    with pytest.warns(UserWarning, match="without a digest: damage to it cannot be noticed") as found:
        KIND.read(path)
    assert len(found) == 1
    assert str(path) in str(found[0].message)
