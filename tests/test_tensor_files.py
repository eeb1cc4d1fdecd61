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
from fewgen.tensor_files import TensorFile

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
